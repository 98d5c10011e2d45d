//! Promise 8 between applications: what belongs to one app does not exist on the socket of another, and neither can change, stop
//! or learn anything of the other.
//!
//! Two worlds are alike: in both the apps `shop` and `news` have lived the same life, with names of their own, and have left much of
//! it waiting. Then the news says each line of that life anew, with other values in each place. In the one world they are the shop's:
//! every id, label, account, endpoint, cursor, topic, key and receipt that it has used, or will use later. In the other world they are
//! made up: of the same form, and nobody's. What the news is told must be the same in both, the shop must find all as it was, and
//! whatever it does next must go as in the world where nobody touched it.
//!
//! Which operations and members there are is learnt from the daemon, so that the life must have a line with each of them.

use std::collections::BTreeMap;
use std::time::Duration;

use fanfare_loadtest::mock::{Fault, Mock, Options, Scope};
use serde_json::{Value, json};

use crate::lives::{BROWSERS, GONE, Life, Told};
use crate::members;
use crate::values::{Mask, Values};
use crate::world::{Keys, World};

/// Differences that a failure shows.
const SHOWN: usize = 60;
/// The items of a list whose values are exchanged: the others are like them.
const ITEMS: usize = 1;

#[test]
fn whatever_one_app_tries_with_the_values_of_another_is_answered_as_if_they_were_nobodys_and_changes_nothing() {
    let mock = Mock::start(Options::default());
    let keys = Keys::write();
    let [of_news, of_shop, of_nobody] = [0, 0, 8].map(|more| mock.subscribe(0, BROWSERS + more));
    for browsers in [&of_news, &of_shop, &of_nobody] {
        mock.set_fault(Scope::Subscription(browsers[GONE].token.clone()), Fault::status(410));
    }
    let worlds = [World::start(&mock, &keys), World::start(&mock, &keys)];
    let [touched, untouched] = [0, 1].map(|world| {
        let shop = Life::begin(&worlds[world], &mock, "shop", &of_shop);
        (shop, Life::begin(&worlds[world], &mock, "news", &of_news))
    });
    let values = [&touched, &untouched].map(|(shop, news)| Values::of(shop, news, &of_shop));
    assert_eq!(values[0].0.len(), values[1].0.len(), "two lives are not alike");
    let shops_masks = [0, 1].map(|world| Mask::new(&values[world]));
    let [own, other] = values;
    let values = [own, other.made_up(&of_shop, &of_nobody)];
    let mut wrong = Vec::new();

    // What the news is told.
    let view = touched.0.look();
    let [first, second] = std::thread::scope(|scope| {
        [(&touched, &values[0]), (&untouched, &values[1])]
            .map(|((shop, news), values)| scope.spawn(move || try_all(shop, news, values)))
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    println!("{} values of the shop, {} lines of the news", values[0].0.len(), first.len());
    let mut by_form: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (one, other) in first.iter().zip(&second).filter(|(one, other)| one.lines != other.lines) {
        let (with, without) = (unlike(&one.lines, &other.lines), unlike(&other.lines, &one.lines));
        let all = by_form.entry(&one.form).or_default();
        all.push(format!("{}\n      the shop's: {with}\n      nobody's:   {without}", short(&one.request.to_string())));
    }
    for (form, all) in by_form {
        wrong.push(format!("`{form}` tells of the shop, {} times, such as\n    {}", all.len(), all[0]));
    }
    assert_eq!(first.len(), second.len());
    for told in first.iter().filter(|told| told.lines.iter().any(|line| line.contains("\"overloaded\""))).take(1) {
        wrong.push(format!("there was no room for {}", told.request));
    }

    // What the shop finds.
    for ((request, before), (_, after)) in view.into_iter().zip(touched.0.look()) {
        let [before, after] = [before, after].map(unmoving);
        if before == after {
            continue;
        }
        wrong.push(format!(
            "the news changed what the shop is told\n    {}\n      before: {}\n      after:  {}",
            short(&request.to_string()),
            unlike(&before, &after),
            unlike(&after, &before)
        ));
    }
    let mut rest = [&touched.0, &untouched.0].into_iter().zip(&shops_masks).map(|(shop, mask)| {
        let told = shop.end().into_iter().chain(shop.look());
        told.map(|(request, lines)| (request, mask.lines(lines))).collect::<Vec<_>>()
    });
    let (one, other) = (rest.next().expect("two"), rest.next().expect("two"));
    for (request, lines) in &other[..untouched.0.future.len()] {
        assert!(lines.iter().any(|line| line.contains("\"ok\":true")), "{request} was answered {lines:?}");
    }
    for ((request, one), (_, other)) in one.iter().zip(&other).filter(|(one, other)| one.1 != other.1) {
        wrong.push(format!(
            "the shop goes on otherwise than without the news\n    {}\n      touched:   {}\n      untouched: {}",
            short(&request.to_string()),
            unlike(one, other),
            unlike(other, one)
        ));
    }

    let lines: Vec<Value> = lines_of(&untouched.1).collect();
    for member in members::missing(&worlds[1], "news", &lines) {
        wrong.push(format!("`{member}`: no line of an app's life has that, so that its values are not tried"));
    }
    assert!(wrong.is_empty(), "{} borders do not hold:\n{}", wrong.len(), wrong[..wrong.len().min(SHOWN)].join("\n"));
}

/// The lines but for where the log goes on, which moves with what others write to it, and for when a token ends: that is counted
/// back from now.
fn unmoving(lines: Vec<Value>) -> Vec<String> {
    let without = |mut line: Value| {
        line.as_object_mut().expect("a line").remove("cursor");
        for origin in line.get_mut("origins").and_then(Value::as_array_mut).into_iter().flatten() {
            origin["token_expires"] = Value::Null;
        }
        line.to_string()
    };
    lines.into_iter().map(without).collect()
}

/// Each line of a life, also those that it will still say.
fn lines_of<'l>(life: &'l Life<'_>) -> impl Iterator<Item = Value> + use<'l> {
    life.past.iter().map(|(request, _)| request.clone()).chain(life.future.iter().cloned())
}

/// A request, and what was told as it is compared.
struct Tried {
    /// The operation and the member whose values are exchanged.
    form: String,
    request: Value,
    lines: Vec<String>,
}

/// The news tries the values in each line of its life, while it delivers nothing, and then cancels what it has made.
fn try_all(shop: &Life<'_>, news: &Life<'_>, values: &Values) -> Vec<Tried> {
    let mask = Mask::new(values);
    let own = |(request, lines): Told| Tried { form: format!("{} of its own", request["op"]), lines: mask.lines(lines), request };
    let mut told: Vec<Tried> = news.past.iter().cloned().map(own).collect();
    news.ask(&[json!({"op": "pause", "app": "news"})]);
    let past = news.past.iter().map(|(_, lines)| lines.as_slice()).chain(std::iter::repeat(&[] as &[Value]));
    let mut last = Value::Null;
    for ((news_line, shop_line), answered) in lines_of(news).zip(lines_of(shop)).zip(past) {
        assert_eq!(news_line["op"], shop_line["op"]);
        if std::mem::replace(&mut last, news_line["op"].clone()) != news_line["op"] {
            news.settle();
        }
        let tries = tries(&news_line, &values.line(&shop_line), values);
        let requests: Vec<Value> = tries.iter().map(|(_, request)| request.clone()).collect();
        // What is shown of something may be the work of a line behind.
        let shows = |line: &Value| line.as_object().expect("a line").values().any(|value| value.is_object() || value.is_array());
        let answers = match answered.iter().any(shows) {
            true => requests.chunks(1).flat_map(|request| news.ask(request)).collect(),
            false => news.ask(&requests),
        };
        for ((form, request), lines) in tries.into_iter().zip(answers) {
            told.push(Tried { form, request, lines: mask.lines(lines) });
        }
    }
    news.ask(&[json!({"op": "cancel", "app": "news"})]);
    let ended = || {
        let lists = news.ask(&[json!({"op": "list_messages", "limit": 1000})]).remove(0).remove(0);
        lists["messages"].as_array().expect("an array").iter().all(|list| list["pending"] == 0 && list["open"] == false)
    };
    assert!(fanfare_loadtest::wait(Duration::from_secs(60), ended), "what was cancelled does not end");
    news.settle();
    // How far a line that follows has come is a matter of time.
    told.extend(news.look().into_iter().filter(|(request, _)| request["follow"] != true).map(own));
    told
}

/// A line of the shop's, and those between it and the same line of the news: each value of the news in the shop's line, and in
/// each place of the news' line whatever may belong there.
fn tries(news: &Value, shop: &Value, values: &Values) -> Vec<(String, Value)> {
    let op = news["op"].as_str().expect("text");
    let mut tries = vec![(op.to_owned(), shop.clone())];
    for (place, member) in places("", "", news) {
        let form = format!("{op} {member}");
        let own = news.pointer(&place).expect("it is there");
        let with = |line: &Value, value: &Value| {
            let mut line = line.clone();
            line.pointer_mut(&place).map(|slot| *slot = value.clone()).map(|()| (form.clone(), line))
        };
        tries.extend(with(shop, own));
        tries.extend(values.tried_as(&member).into_iter().filter_map(|value| with(news, &value.into())));
    }
    tries.retain(|(_, line)| line != news);
    tries
}

/// Where in a line a text stands, and the member that it is in.
fn places(place: &str, member: &str, value: &Value) -> Vec<(String, String)> {
    match value {
        Value::String(_) if place != "/op" => vec![(place.to_owned(), member.to_owned())],
        Value::Array(items) => {
            items.iter().take(ITEMS).enumerate().flat_map(|(n, item)| places(&format!("{place}/{n}"), member, item)).collect()
        }
        Value::Object(members) => {
            members.iter().flat_map(|(name, value)| places(&format!("{place}/{name}"), name, value)).collect()
        }
        _ => Vec::new(),
    }
}

/// The first line that the other has not.
fn unlike(lines: &[String], other: &[String]) -> String {
    let line = lines.iter().zip(other).find(|(line, other)| line != other).map(|(line, _)| line);
    match line.or_else(|| lines.get(other.len())) {
        Some(line) => format!("{} lines, {}", lines.len(), short(line)),
        None => format!("{} lines", lines.len()),
    }
}

fn short(text: &str) -> String {
    const LONGEST: usize = 700;
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}
