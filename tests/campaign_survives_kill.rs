//! Promises 1, 2 and 4 for a campaign: it reaches each subscription that was there at its start exactly once, whatever happens
//! meanwhile, but for what a crash may repeat; it reaches none that came later; its counters add up at any moment.
//!
//! The daemon is killed twenty times while a campaign walks over 100,000 subscriptions of two push services. Meanwhile
//! subscriptions are added, replaced, re-tagged and removed, and some that the push services no longer know are answered 410.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::mock::{Crowd, Mock, Options, Plan};
use fanfare_loadtest::population;
use fanfare_loadtest::random::Random;
use fanfare_loadtest::status::{ENDED, adds_up};
use serde_json::{Value, json};

const KILLS: usize = 20;
/// At each of the two push services.
const AT_START: u32 = 50_000;
/// Numbers from here on are of those who come later, ...
const LATER: u32 = AT_START;
/// ... and from here on of those who take the place of another.
const SUCCESSORS: u32 = AT_START + 10_000;
const MEMBERS: u32 = AT_START + 20_000;
/// Deliveries a second at most, so that the walk outlasts the kills.
const RATE: u64 = 6_000;
/// What can be in flight: two push services, four connections each, 128 streams each.
const IN_FLIGHT: u64 = 1_024;
/// A checkpoint comes every 250 ms; it counts twice, for a busy machine.
const OUTCOMES: u64 = RATE / 2;
const PATIENCE: Duration = Duration::from_secs(120);

/// What is done to a member, at most one thing to each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It subscribes for the first time.
    Added,
    /// Its endpoint is replaced by that of another number.
    ReplacedBy(u32),
    Retagged,
    Removed,
}

#[test]
fn each_that_was_there_is_reached_once_and_none_that_came_later() {
    let mut random = Random::new();
    let mock = Mock::start(Options { listeners: 2, keep: 0, ..Options::default() });
    let crowds: [Arc<Crowd>; 2] =
        [0, 1].map(|origin| mock.crowd(Plan { seed: origin as u64 + 1, members: MEMBERS, keys: 500, origin, ..Plan::default() }));
    let config = ConfigBuilder::new().mock(&mock).set("retry.min", 0.1).set("retry.max", 0.5).set("store.reserve_mb", 1);
    let mut daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), config).expect("it starts");
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for crowd in &crowds {
            scope.spawn(|| population::subscribe_all(&daemon.socket(), &crowd.members, 0..AT_START).expect("all are taken"));
        }
    });
    println!("{} subscribed in {:.1?}", 2 * AT_START, begin.elapsed());
    // One in fifty is gone when its turn comes; it is left alone otherwise.
    for crowd in &crowds {
        (0..AT_START).filter(|_| random.below(50) == 0).for_each(|number| crowd.set_gone(number));
    }
    let gone: u64 = crowds.iter().map(|crowd| (0..AT_START).filter(|number| crowd.is_gone(*number)).count() as u64).sum();

    let mut client = daemon.client();
    let sent = client.ok(&json!({
        "op": "send", "to": {"segment": {"all": true}}, "payload": "extra, extra", "ttl": 86_400, "rate": RATE, "label": "news",
    }));
    let id = sent["message_id"].as_str().expect("an id").to_owned();
    drop(client);

    let stop = AtomicBool::new(false);
    let (changes, polls) = std::thread::scope(|scope| {
        let (socket, stop) = (daemon.socket(), &stop);
        let changers: Vec<_> = crowds
            .iter()
            .map(|crowd| {
                let (socket, random) = (socket.clone(), random.fork());
                scope.spawn(move || change(&socket, crowd, random, stop))
            })
            .collect();
        let (polled, id_polled) = (socket.clone(), id.clone());
        let poller = scope.spawn(move || poll(&polled, &id_polled, stop));
        for kill in 0..KILLS {
            std::thread::sleep(Duration::from_millis(250 + random.below(500)));
            if kill == KILLS - 1 {
                let status = daemon.client().ok(&json!({"op": "status", "message_id": id}));
                assert_eq!(status["open"], true, "the campaign ended before the last kill: {status}");
            }
            daemon.kill9();
            daemon.restart().expect("it starts after a kill");
        }
        // What was changed was changed while it was walked.
        std::thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        let changes: Vec<HashMap<u32, Change>> =
            changers.into_iter().map(|changer| changer.join().expect("the changes are made")).collect();
        (changes, poller.join().expect("the status is read"))
    });
    let mut client = daemon.client();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        let status = client.ok(&json!({"op": "status", "message_id": id}));
        assert!(adds_up(&status), "{status}");
        if status["pending"] == 0 && status["open"] == false {
            break status;
        }
        assert!(Instant::now() < deadline, "it does not end: {status}");
        std::thread::sleep(Duration::from_millis(50));
    };

    // Each by itself.
    let mut repeats = 0;
    let mut wrong = Vec::new();
    let (mut added, mut removed, mut replaced) = (0, 0, 0);
    for (crowd, changes) in crowds.iter().zip(&changes) {
        let mut look = |number: u32, what: &str, came: u64, least: u64, most: u64| {
            if came < least || most == 0 && came > 0 {
                wrong.push(format!("{number} of {} ({what}) was posted {came} times", crowd.members.endpoint(number)));
            }
            repeats += came.saturating_sub(most.max(1));
        };
        for number in 0..SUCCESSORS {
            let change = changes.get(&number).copied();
            match change {
                Some(Change::Added) => added += 1,
                Some(Change::Removed) => removed += 1,
                Some(Change::ReplacedBy(_)) => replaced += 1,
                _ => {}
            }
            match change {
                _ if number >= LATER => look(number, "later", crowd.asked(number), 0, 0),
                Some(Change::ReplacedBy(by)) => {
                    look(number, "replaced", crowd.asked(number) + crowd.asked(by), 1, 1);
                }
                Some(Change::Removed) => look(number, "removed", crowd.asked(number), 0, 1),
                _ if crowd.is_gone(number) => {
                    look(number, "gone", crowd.asked(number), 1, 1);
                    assert_eq!(crowd.taken(number), 0);
                }
                _ => look(number, "there all the time", crowd.taken(number), 1, 1),
            }
        }
        let successors: Vec<u32> =
            changes.values().filter_map(|change| if let Change::ReplacedBy(by) = change { Some(*by) } else { None }).collect();
        (SUCCESSORS..MEMBERS)
            .filter(|number| !successors.contains(number))
            .for_each(|number| look(number, "nobody", crowd.asked(number), 0, 0));
    }
    println!("{added} added, {replaced} replaced, {removed} removed, {gone} gone; {polls} statuses; {repeats} repeats; {status}");
    assert_eq!(wrong.iter().take(10).cloned().collect::<Vec<_>>(), Vec::<String>::new(), "{} in all", wrong.len());
    assert!(repeats <= KILLS as u64 * (OUTCOMES + IN_FLIGHT), "{repeats} repeats");
    assert!(added > 100 && replaced > 100 && removed > 100 && gone > 100, "the changes were some");

    // As a whole.
    let n = |name: &str| status[name].as_u64().unwrap_or_else(|| panic!("{name} in {status}"));
    let there = u64::from(2 * AT_START);
    assert!((there - removed..=there).contains(&n("recipients")), "{status}");
    assert!((there - removed - gone..=there - gone).contains(&n("accepted")), "{status}");
    assert_eq!(n("gone"), gone, "{status}");
    assert!(n("skipped") <= removed, "{status}");
    assert_eq!((n("refused"), n("expired"), n("cancelled")), (0, 0, 0), "{status}");
    assert_eq!((&status["state"], &status["walked"].as_f64()), (&json!("done"), &Some(1.0)), "{status}");
    let count = client.ok(&json!({"op": "count", "segment": {"all": true}}))["count"].as_u64();
    assert_eq!(count, Some(there + added - removed - gone), "as many are left");

    // Each that is gone is told once.
    let mut told: HashMap<String, u64> = HashMap::new();
    let mut after = json!("oldest");
    loop {
        let request = json!({"op": "events", "after": after, "types": ["gone"], "message_id": id, "limit": 1_000});
        let (events, end) = client.events(&request).expect("events");
        for event in events {
            *told.entry(event["subscription_id"].as_str().expect("an id").to_owned()).or_default() += 1;
        }
        after = end["cursor"].clone();
        if end["more"] != true {
            break;
        }
    }
    assert_eq!((told.len() as u64, told.values().max()), (gone, Some(&1)));
    for crowd in &crowds {
        for number in (0..AT_START).filter(|number| crowd.is_gone(*number)) {
            assert!(told.contains_key(&crowd.members.id(number)), "nobody told that {number} is gone");
        }
    }
    assert_eq!(mock.counters().violations, Vec::<String>::new());
    assert_eq!(daemon.terminate().expect("it ends"), 0);
}

/// Changes one subscription after the other until told to stop; what has no reply because the daemon died is done again.
fn change(socket: &Path, crowd: &Crowd, mut random: Random, stop: &AtomicBool) -> HashMap<u32, Change> {
    let mut changes = HashMap::new();
    let (mut later, mut successor) = (LATER, SUCCESSORS);
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        let member = random.below(u64::from(AT_START)) as u32;
        if crowd.is_gone(member) || changes.contains_key(&member) {
            continue;
        }
        let id = crowd.members.id(member);
        let (number, change, request) = match random.below(4) {
            0 if later < SUCCESSORS => {
                later += 1;
                let new = crowd.members.json(later - 1);
                (later - 1, Change::Added, json!({"op": "subscribe", "subscription": new, "tags": ["late"]}))
            }
            1 if successor < MEMBERS => {
                successor += 1;
                // By endpoint or by id.
                let old = if random.below(2) == 0 { crowd.members.endpoint(member) } else { id };
                let new = crowd.members.json(successor - 1);
                let request = json!({"op": "subscribe", "subscription": new, "replaces": old});
                (member, Change::ReplacedBy(successor - 1), request)
            }
            2 => {
                let tags = json!(["t0", format!("new-{}", random.below(5))]);
                (member, Change::Retagged, json!({"op": "update_subscription", "subscription_id": id, "tags": tags}))
            }
            _ => (member, Change::Removed, json!({"op": "unsubscribe", "subscription_id": id})),
        };
        let reply = ask(&mut client, socket, &request);
        assert_eq!(reply["ok"], true, "{request} was answered {reply}");
        changes.insert(number, change);
        std::thread::sleep(Duration::from_millis(1));
    }
    changes
}

/// Reads the status until told to stop: it adds up, and what is told as ended stays so. How often it was read.
fn poll(socket: &Path, id: &str, stop: &AtomicBool) -> u64 {
    let mut client = None;
    let mut before: Option<Value> = None;
    let mut polls = 0;
    while !stop.load(Ordering::Relaxed) {
        let status = ask(&mut client, socket, &json!({"op": "status", "message_id": id}));
        assert_eq!(status["ok"], true, "{status}");
        assert!(adds_up(&status), "{status}");
        if let Some(before) = &before {
            for name in ENDED {
                assert!(status[name].as_u64() >= before[name].as_u64(), "{name} was taken back: {before} {status}");
            }
            assert!(status["walked"].as_f64() >= before["walked"].as_f64(), "it walked back: {before} {status}");
        }
        before = Some(status);
        polls += 1;
        std::thread::sleep(Duration::from_millis(5));
    }
    polls
}

/// Asks until there is an answer, over new connections if it must be.
fn ask(client: &mut Option<Client>, socket: &Path, request: &Value) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if client.is_none() {
            *client = Client::connect(socket).ok();
        }
        if let Some(Ok(reply)) = client.as_mut().map(|client| client.try_request(request)) {
            // What waits for a start, or is told at an end, is tried again.
            if reply["ok"] == true || !["overloaded", "shutting_down"].contains(&reply["error"]["code"].as_str().unwrap_or("")) {
                return reply;
            }
        } else {
            *client = None;
        }
        assert!(Instant::now() < deadline, "no reply to {request}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
