//! The log against a plain list of its events, and what of it goes.

use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::message::Ending;
use crate::protocol::request::{After, EventType, Events};
use crate::store::record::Put;
use crate::store::testing;

const APPS: [&str; 3] = ["a", "b", "shop"];
/// Some of them would be told apart wrongly by bytes alone, were they not written as they are.
const LABELS: [&str; 6] = ["l", "l\"", "\",\"app\":\"b\",\"x\":\"", "\\u00e9", "é/\u{7f}\n", "other"];

fn open() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = reopen(&directory);
    (directory, store)
}

/// As a start does.
fn reopen(directory: &tempfile::TempDir) -> Store {
    let store = Store::open(directory.path(), &testing::settings(), &[]).expect("it opens");
    let end = store.reader().expect("open").value(family::META, "events_end").expect("read");
    let end = end.map_or(1, |row| u64::from_be_bytes(row.as_ref().try_into().expect("a number")));
    store.events_end.send_replace(end);
    store.load_log(end).expect("read");
    store
}

fn event(app: &str, label: &str, more: usize) -> Vec<u8> {
    let kind = if more.is_multiple_of(2) { "gone" } else { "expired" };
    let event =
        serde_json::json!({"app": app, "label": label, "type": kind, "message_id": format!("m{more}"), "reason": "x".repeat(60)});
    event.to_string().into_bytes()
}

fn row(lines: &[Vec<u8>]) -> Vec<u8> {
    let mut row = Put::versioned();
    row.u32(lines.len() as u32).bytes(&lines.join(&b'\n'));
    row.0
}

/// A checkpoint with these events, each of an app.
fn write(store: &Store, events: &[(&str, Vec<u8>)]) {
    let rows = put(store, events);
    let count = events.len() as u64;
    store.log.append(rows);
    store.events_end.send_modify(|end| *end += count);
}

/// One of which nobody knows whether it is there.
fn put(store: &Store, events: &[(&str, Vec<u8>)]) -> Vec<Row> {
    let mut by_app: Vec<(Arc<str>, Vec<Vec<u8>>)> = Vec::new();
    for (app, event) in events {
        match by_app.iter_mut().find(|(known, _)| **known == **app) {
            Some((_, lines)) => lines.push(event.clone()),
            None => by_app.push(((*app).into(), vec![event.clone()])),
        }
    }
    let values = by_app.into_iter().map(|(app, lines)| (app, lines.len() as u32, row(&lines))).collect();
    let first = *store.events_end.borrow();
    let reader = store.reader().expect("open");
    let mut rows = Rows::new();
    let placed = store.log.put(first, values, &reader, &mut rows);
    rows.put(&reader, family::META, "events_end", number(first + events.len() as u64));
    store.write(rows).expect("written");
    placed
}

/// A row as 0.1 wrote it: events of all apps.
fn write_mixed(store: &Store, events: &[(&str, Vec<u8>)]) {
    let first = *store.events_end.borrow();
    let lines: Vec<Vec<u8>> = events.iter().map(|(_, event)| event.clone()).collect();
    let reader = store.reader().expect("open");
    let mut rows = Rows::new();
    rows.put(&reader, family::EVENTS, number(first), row(&lines));
    rows.put(&reader, family::META, "events_end", number(first + lines.len() as u64));
    store.write(rows).expect("written");
    store.events_end.send_modify(|end| *end += lines.len() as u64);
}

fn apps(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| (*name).into()).collect()
}

fn asked() -> Events {
    Events {
        after: After::Oldest,
        limit: None,
        follow: false,
        types: None,
        app: None,
        label: None,
        message_id: None,
        account: None,
        subscription_id: None,
    }
}

/// All pages behind `after`, and how many there were.
fn all(store: &Store, filter: &EventFilter, mut after: u64, most: usize) -> (Vec<(u64, Vec<u8>)>, usize) {
    let (mut found, mut pages) = (Vec::new(), 0);
    loop {
        let page = store.events_page(filter, after, most).expect("read");
        assert!(page.ended || page.reached > after, "it comes on");
        assert!(page.events.len() <= most);
        assert!(page.events.iter().all(|event| event.number > after && event.number <= page.reached));
        after = page.reached;
        pages += 1;
        found.extend(page.events.into_iter().map(|event| (event.number, event.json.to_vec())));
        if page.ended {
            return (found, pages);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever lies in which row, of 0.1 or later, on disk or in memory: a reader is told what a plain list would tell it.
    #[test]
    fn pages_tell_what_a_filter_wants_and_all_of_it(
        events in prop::collection::vec((0..3usize, 0..LABELS.len(), 0..9usize), 1..120),
        mixed in 0..4usize,
        size in 1..20usize,
        after in 0..130u64,
        most in 1..40usize,
        (of, label, kind) in (prop::option::of(0..3usize), prop::option::of(0..LABELS.len()), any::<bool>()),
        restart in any::<bool>(),
    ) {
        let (directory, mut store) = open();
        let mut told: Vec<(u64, &str, Vec<u8>)> = Vec::new();
        for (index, part) in events.chunks(size).enumerate() {
            let events: Vec<(&str, Vec<u8>)> =
                part.iter().map(|(app, label, more)| (APPS[*app], event(APPS[*app], LABELS[*label], *more))).collect();
            let first = *store.events_end.borrow();
            if index < mixed {
                write_mixed(&store, &events);
                told.extend((first..).zip(&events).map(|(number, (app, json))| (number, *app, json.clone())));
            } else {
                if index == mixed && mixed > 0 {
                    drop(store);
                    store = reopen(&directory);
                }
                write(&store, &events);
                // Within a checkpoint app by app, in the order in which they were met.
                let mut order: Vec<&str> = Vec::new();
                events.iter().for_each(|(app, _)| if !order.contains(app) { order.push(app) });
                let sorted = order.iter().flat_map(|app| events.iter().filter(move |(of, _)| of == app));
                told.extend((first..).zip(sorted).map(|(number, (app, json))| (number, *app, json.clone())));
            }
        }
        if restart || mixed >= events.chunks(size).len() {
            drop(store);
            store = reopen(&directory);
        }
        let socket = apps(&APPS[..2]);
        let types = kind.then(|| vec![EventType::Ended(Ending::Gone)]);
        let wanted = Events {
            app: of.filter(|of| *of < 2).map(|of| APPS[of].into()),
            label: label.map(|label| LABELS[label].to_owned()),
            types: types.clone(),
            ..asked()
        };
        let filter = EventFilter::new(&wanted, &socket);
        let wanted_numbers = all(&store, &filter, 0, most).0;
        let begin = store.before_last_events(&filter, most).expect("read");
        let found = wanted_numbers.iter().filter(|(number, _)| *number > begin).count();
        let looked_at: usize = told.iter().filter(|(number, _, _)| *number > begin).map(|(_, _, json)| json.len()).sum();
        prop_assert!(found <= most);
        prop_assert!(found == most.min(wanted_numbers.len()) || looked_at * 5 / 4 >= LOOKED_AT_BYTES, "{found} of {most}");
        let after = after.min(events.len() as u64);
        let plain: Vec<(u64, Vec<u8>)> = told
            .iter()
            .filter(|(number, app, json)| {
                let event: serde_json::Value = serde_json::from_slice(json).expect("JSON");
                *number > after
                    && socket.iter().any(|of| **of == **app)
                    && wanted.app.as_ref().is_none_or(|of| **of == **app)
                    && wanted.label.as_ref().is_none_or(|label| event["label"] == **label)
                    && (types.is_none() || event["type"] == "gone")
            })
            .map(|(number, _, json)| (*number, json.clone()))
            .collect();
        prop_assert_eq!(all(&store, &filter, after, most).0, plain);
        prop_assert_eq!(all(&store, &EventFilter::all(), 0, most).0.len(), events.len());
    }
}

#[test]
fn a_filter_that_matches_nothing_takes_no_line_apart() {
    let (_directory, store) = open();
    for checkpoint in 0..40 {
        let events: Vec<_> = (0..25).map(|more| ("a", event("a", LABELS[more % 6], checkpoint + more))).collect();
        write(&store, &events);
    }
    let filter = EventFilter::new(&Events { label: Some("nobody".to_owned()), ..asked() }, &apps(&["a"]));
    let (found, pages) = all(&store, &filter, 0, PAGE);
    assert_eq!((found.len(), filter.parsed.load(Ordering::Relaxed)), (0, 0));
    assert!(pages > 10, "a page ends also where nothing is found: {pages}");
    // Of another app nothing is even read.
    let other = EventFilter::new(&asked(), &apps(&["b"]));
    assert_eq!(store.log.newest(&other), 0);
    assert_eq!(all(&store, &other, 0, PAGE).1, 1);
    // What is taken apart is what is told.
    let some = EventFilter::new(&Events { label: Some(LABELS[1].to_owned()), ..asked() }, &apps(&["a"]));
    assert_eq!(all(&store, &some, 0, PAGE).0.len(), some.parsed.load(Ordering::Relaxed));
}

#[test]
fn who_follows_is_served_from_memory_until_the_tail_is_forgotten() {
    let (_directory, store) = open();
    write(&store, &[("a", event("a", "l", 0)), ("b", event("b", "l", 1))]);
    let (a, end) = (EventFilter::new(&asked(), &apps(&["a"])), *store.events_end.borrow());
    let of_a = store.log.tail(&a, 0).expect("it is in memory");
    assert_eq!(of_a.len(), 1, "its own only");
    store.log.forget_tail(end);
    assert!(store.log.tail(&a, 0).is_none() && store.log.tail(&a, end - 1).expect("nothing").is_empty());
    assert_eq!(all(&store, &a, 0, PAGE).0.len(), 1, "from disk");
    for more in 0..200 {
        write(&store, &[("a", event("a", "l", more))]);
    }
    assert!(lock(&store.log.0).tail_bytes <= TAIL_BYTES);
    assert!(store.log.tail(&a, 1).is_none());
}

#[test]
fn a_level_gives_each_its_share_and_what_others_leave() {
    assert_eq!(level(vec![10, 10], 100), u64::MAX);
    assert_eq!(level(vec![1_000, 10], 320), 300);
    assert_eq!(level(vec![1_000, 200, 900, 0], 3_200), u64::MAX);
    assert_eq!(level(vec![9_000, 200, 900, 0], 3_200), 2_000);
    // Never below its share, whatever is made free.
    assert_eq!(level(vec![9_000, 9_000], 3_200), 1_600);
    assert_eq!(level(vec![9_000, 1_600], 3_200), 1_600);
}

#[test]
fn who_has_too_many_loses_its_oldest_and_nobody_else_does() {
    let (directory, mut store) = open();
    let configured = apps(&APPS);
    write(&store, &(0..5).map(|more| ("b", event("b", "l", more))).collect::<Vec<_>>());
    for more in 0..300 {
        write(&store, &[("a", event("a", "l", more)), ("a", event("a", "l", more))]);
    }
    let [a, b] = ["a", "b"].map(|app| EventFilter::new(&asked(), &apps(&[app])));
    let both = EventFilter::new(&asked(), &apps(&["a", "b"]));
    let of_b = all(&store, &b, 0, PAGE).0;
    let bytes = |store: &Store| store.log.bytes().iter().map(|(_, bytes)| bytes).sum::<u64>();
    assert_eq!(store.log.excess(&configured, bytes(&store)), [], "there is room for all");
    let most = 20_000;
    for round in 0..2 {
        let excess = store.log.excess(&configured, most);
        assert_eq!(excess.iter().map(|of| &*of.app).collect::<Vec<_>>(), ["a"]);
        let before = all(&store, &a, 0, PAGE).0;
        let mut dropped = Dropped::default();
        for Excess { app, keep_from } in excess {
            store.drop_events(&app, |position, _| position >= keep_from, &configured, &mut dropped).expect("read");
        }
        // Known before the rows are gone: a reader that meets the gap is told.
        let gone_to = store.log.dropped(&a)["a"];
        assert!(gone_to > 5);
        let mut rows = Rows::new();
        {
            let reader = store.reader().expect("open");
            dropped.ranges.iter().for_each(|(family, from, to)| rows.delete_range(&reader, family, from, to));
            dropped.put.iter().for_each(|(family, key, value)| rows.put(&reader, family, key, value));
        }
        store.write(rows).expect("written");
        store.log.forget_tail(*store.events_end.borrow());
        for restarted in [false, true] {
            if restarted {
                drop(store);
                store = reopen(&directory);
            }
            assert!((most * 8 / 10..=most).contains(&bytes(&store)), "{}", bytes(&store));
            let left: Vec<_> = before.iter().filter(|(number, _)| *number > gone_to).cloned().collect();
            assert!(!left.is_empty());
            assert_eq!(all(&store, &a, 0, PAGE).0, left, "its newest are there");
            assert_eq!(all(&store, &b, 0, PAGE).0, of_b, "the other's all");
            assert_eq!((store.event_range(&a).oldest, store.event_range(&b).oldest), (gone_to, 0));
            assert_eq!(store.event_range(&both).oldest, gone_to);
            assert_eq!(all(&store, &both, 0, PAGE).0.len(), left.len() + of_b.len());
        }
        if round == 0 {
            for more in 0..100 {
                write(&store, &[("a", event("a", "l", more))]);
            }
        }
    }
}

#[test]
fn rows_of_0_1_are_read_and_go_as_if_they_were_of_one_app() {
    let (directory, store) = open();
    // A start of this version has not been yet.
    for more in 0..100 {
        write_mixed(&store, &[("a", event("a", "l", more)), ("b", event("b", "l", more))]);
    }
    for more in 0..50 {
        write_mixed(&store, &[("a", event("a", "l", more))]);
    }
    drop(store);
    let store = reopen(&directory);
    write(&store, &[("b", event("b", "l", 7)), ("shop", event("shop", "l", 7))]);
    let [a, b, shop] = APPS.map(|app| EventFilter::new(&asked(), &apps(&[app])));
    assert_eq!([&a, &b, &shop].map(|filter| all(&store, filter, 0, PAGE).0.len()), [150, 101, 1]);
    let mut dropped = Dropped::default();
    let of: Arc<str> = MIXED.into();
    let half = store.log.held(MIXED).bytes() / 2;
    store.drop_events(&of, |position, _| position >= half, &apps(&APPS), &mut dropped).expect("read");
    let gone = [&a, &b, &shop].map(|filter| store.event_range(filter).oldest);
    assert!(gone[0] >= 100 && gone[1] + 1 >= gone[0] && gone[0] < 160 && gone[2] == 0, "{gone:?}");
    let mut rows = Rows::new();
    {
        let reader = store.reader().expect("open");
        dropped.ranges.iter().for_each(|(family, from, to)| rows.delete_range(&reader, family, from, to));
        dropped.put.iter().for_each(|(family, key, value)| rows.put(&reader, family, key, value));
    }
    store.write(rows).expect("written");
    drop(store);
    let store = reopen(&directory);
    assert_eq!([&a, &b, &shop].map(|filter| store.event_range(filter).oldest), gone);
    let left = all(&store, &a, 0, PAGE).0;
    assert!(left.len() < 110 && left.iter().all(|(number, _)| *number > gone[0]), "{}", left.len());
    assert_eq!(all(&store, &shop, 0, PAGE).0.len(), 1);
}

#[test]
fn a_store_whose_log_0_1_has_trimmed_says_so_to_every_app() {
    let (directory, store) = open();
    for more in 0..10 {
        write_mixed(&store, &[("a", event("a", "l", more))]);
    }
    let mut rows = Rows::new();
    {
        let reader = store.reader().expect("open");
        rows.delete_range(&reader, family::EVENTS, &number(0), &number(5));
        rows.put(&reader, family::META, "events_first", [number(4), vec![0]].concat());
    }
    store.write(rows).expect("written");
    drop(store);
    for _ in 0..2 {
        let store = reopen(&directory);
        for app in ["a", "b"] {
            assert_eq!(store.event_range(&EventFilter::new(&asked(), &apps(&[app]))).oldest, 4, "{app}");
        }
        assert_eq!(all(&store, &EventFilter::all(), 0, PAGE).0.len(), 6);
        assert_eq!(store.log.held(MIXED).first, 5);
    }
}

#[test]
fn what_a_failed_write_left_is_not_told() {
    let (_directory, store) = open();
    write(&store, &[("a", event("a", "l", 0))]);
    // It is on disk after all, and was not known to be.
    put(&store, &[("a", event("a", "lost", 1)), ("b", event("b", "lost", 1)), ("b", event("b", "lost", 2))]);
    write(&store, &[("a", event("a", "l", 3))]);
    for more in 0..3 {
        write(&store, &[("b", event("b", "l", more))]);
    }
    store.log.forget_tail(*store.events_end.borrow());
    let told = all(&store, &EventFilter::all(), 0, PAGE).0;
    assert_eq!(told.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(told.iter().all(|(_, json)| !String::from_utf8_lossy(json).contains("lost")));
}

/// Prints how long it takes to find nothing among 30,000 events, and to take each of them apart, as was done before.
#[test]
fn to_find_nothing_costs_little_beside_taking_apart() {
    let (_directory, store) = open();
    for checkpoint in 0..300 {
        let events: Vec<_> = (0..100).map(|more| ("a", event("a", LABELS[more % 6], checkpoint * 100 + more))).collect();
        write(&store, &events);
    }
    let filter = EventFilter::new(&Events { label: Some("nobody".to_owned()), ..asked() }, &apps(&["a"]));
    let pass_over = || {
        let began = Instant::now();
        assert_eq!(all(&store, &filter, 0, PAGE).0.len(), 0);
        began.elapsed()
    };
    // Other tests run beside it.
    let passed_over = (0..5).map(|_| pass_over()).min().expect("five");
    let began = Instant::now();
    let parsed = all(&store, &EventFilter::all(), 0, PAGE).0;
    let parse = |json: &Vec<u8>| serde_json::from_slice::<serde_json::Value>(json).is_ok();
    assert_eq!(parsed.iter().filter(|(_, json)| parse(json)).count(), 30_000);
    let taken_apart = began.elapsed();
    println!("30,000 events: {passed_over:?} to find nothing, {taken_apart:?} to take each apart");
    assert!(passed_over < taken_apart / 2, "{passed_over:?} {taken_apart:?}");
}
