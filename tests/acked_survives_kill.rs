//! Promises 1, 2 and 4: what was answered `"ok":true` survives kill -9; a crash repeats only what was in flight or had been
//! settled since the last checkpoint; every recipient ends in one state, with one event, and statuses add up at any moment.
//!
//! A hundred times the daemon is killed at a random moment under load. The load has singles of one and of three recipients,
//! lists, deliveries that wait for their time, topics that supersede each other, cancellations, and three push services of
//! which each answers some requests with 503, 429 or 410. Lines whose reply was lost are sent again with their key.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::mock::{Fault, Mock, Options, Received, Scope, Subscription};
use fanfare_loadtest::random::Random;
use fanfare_loadtest::status::{ENDED, adds_up};
use serde_json::{Value, json};

const KILLS: usize = 100;
/// Every so many kills the load runs for longer than any checkpoint may take, so that an unwritten outcome would be seen.
const LONG_EVERY: usize = 25;
const LONG: Duration = Duration::from_secs(7);
/// How long before a kill a message that it repeats may have been taken: `checkpoint_interval` is 250 ms, sending stops when a
/// checkpoint is later than twice that, and what was in flight is added. The rest is for a busy machine.
const WINDOW: Duration = Duration::from_secs(3);
/// What a crash may repeat beside what was in flight (promise 2), and more than can be in flight.
const OUTCOMES: usize = 8_192;
const IN_FLIGHT: usize = 4_096;
const LINES_A_BURST: usize = 20;

/// One line of the load; kept until its reply has come.
#[derive(Clone)]
struct Line {
    number: u64,
    request: Value,
    recipients: u64,
}

/// What the test knows of a message that was acknowledged.
struct Acked {
    id: String,
    number: u64,
    recipients: u64,
    /// Recipients that had ended when its status was asked last.
    ended: u64,
}

/// What one connection brought home.
#[derive(Default)]
struct Harvest {
    acked: Vec<(Line, String, bool)>,
    unanswered: Vec<Line>,
    cancelled: usize,
    statuses: Vec<Value>,
    problems: Vec<String>,
}

#[test]
fn acked_lines_survive_a_hundred_kills() {
    let mut random = Random::new();
    let mock = Mock::start(Options { listeners: 3, ..Options::default() });
    mock.set_fault_every(Scope::Origin(0), Fault::status(503), 13);
    mock.set_fault_every(Scope::Origin(1), Fault::status(429).retry_after(1), 11);
    mock.set_fault_every(Scope::Origin(2), Fault::status(410), 9);
    let browsers: Vec<Subscription> = (0..3).flat_map(|origin| mock.subscribe(origin, 100)).collect();
    let config = ConfigBuilder::new()
        .mock(&mock)
        .set("events.log", json!(ENDED))
        .set("retry.min", 0.1)
        .set("retry.max", 0.5)
        .set("store.reserve_mb", 1)
        .set("store.min_free_percent", 0);
    let mut daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), config).expect("it starts");

    let mut acked: BTreeMap<String, Acked> = BTreeMap::new();
    let mut by_number: HashMap<u64, String> = HashMap::new();
    let mut unanswered: Vec<Line> = Vec::new();
    let mut events = Events::default();
    let mut kills: Vec<u64> = Vec::new();
    let mut next = 0;
    let (mut lost_replies, mut cancelled) = (0, 0);
    for kill in 0..KILLS {
        let load = match kill % LONG_EVERY {
            1 => LONG,
            _ => Duration::from_millis(50 + random.below(550)),
        };
        let again = std::mem::take(&mut unanswered);
        lost_replies += again.len();
        let half = again.len() / 2;
        let jobs = [(again[..half].to_vec(), next), (again[half..].to_vec(), next + 1_000_000)];
        next += 10_000;
        let socket = daemon.socket();
        let harvests: Vec<Harvest> = std::thread::scope(|scope| {
            let threads: Vec<_> = jobs
                .into_iter()
                .map(|(again, first)| {
                    let (socket, browsers, random) = (socket.clone(), &browsers, random.fork());
                    let slow = load == LONG;
                    scope.spawn(move || work(&socket, again, first, browsers, random, slow))
                })
                .collect();
            let mut newer = Events { cursor: events.cursor.clone(), seen: Vec::new() };
            let events_socket = daemon.socket();
            let reader = scope.spawn(move || {
                newer.follow(&events_socket);
                newer
            });
            std::thread::sleep(load);
            kills.push(micros());
            daemon.kill9();
            events.join(reader.join().expect("the reader of events"));
            threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
        });
        for harvest in harvests {
            assert_eq!(harvest.problems, Vec::<String>::new());
            cancelled += harvest.cancelled;
            unanswered.extend(harvest.unanswered);
            for (line, id, duplicate) in harvest.acked {
                match by_number.get(&line.number) {
                    Some(known) => assert_eq!(known, &id, "one idempotency key names one message"),
                    None => {
                        let _new = by_number.insert(line.number, id.clone());
                        let message = Acked { id: id.clone(), number: line.number, recipients: line.recipients, ended: 0 };
                        assert!(acked.insert(id, message).is_none(), "an id names one message");
                    }
                }
                assert!(!duplicate || lost_replies > 0, "nothing was sent twice");
            }
            for status in harvest.statuses {
                look(&status, acked.get_mut(status["message_id"].as_str().expect("an id")));
            }
        }
        daemon.restart().expect("it starts after a kill");
        // All of the last rounds, and some of the older ones.
        let skip = acked.len().saturating_sub(600);
        let mut asked: Vec<String> = acked.keys().skip(skip).cloned().collect();
        asked.extend(acked.keys().take(skip).filter(|_| random.below(100) == 0).cloned());
        check_statuses(&mut daemon.client(), &asked, &mut acked);
        events.read(&mut daemon.client()).expect("events after a start");
    }

    // What was lost with the last kill is sent once more; then everything ends.
    let harvest = {
        let mut harvest = Harvest::default();
        let mut client = daemon.client();
        exchange(&mut client, unanswered, &mut harvest).expect("the daemon runs");
        harvest
    };
    for (line, id, _) in harvest.acked {
        let recipients = line.recipients;
        by_number.insert(line.number, id.clone());
        acked.entry(id.clone()).or_insert(Acked { id, number: line.number, recipients, ended: 0 });
    }
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut client = daemon.client();
    let mut open: Vec<String> = acked.keys().cloned().collect();
    while !open.is_empty() {
        let statuses = check_statuses(&mut client, &open, &mut acked);
        if Instant::now() >= deadline {
            for status in statuses.iter().filter(|status| status["pending"] != 0).take(10) {
                println!("{status}");
            }
            println!("{}", client.ok(&json!({"op": "origins"})));
            panic!("{} of {} messages have not ended", open.len(), acked.len());
        }
        open = statuses.iter().filter(|status| status["pending"] != 0).map(|status| word(status, "message_id")).collect();
        std::thread::sleep(Duration::from_millis(100));
    }
    events.read(&mut daemon.client()).expect("events at the end");
    assert_eq!(daemon.terminate().expect("it ends"), 0);
    assert_eq!(mock.counters().violations, Vec::<String>::new());

    let received = mock.received();
    check_events(&events, &acked, &received);
    let (repeats, oldest) = check_repeats(&received, &kills);
    println!(
        "{} messages, {} events, {} posts; {lost_replies} lines sent again, {cancelled} cancelled, {repeats} deliveries repeated by {KILLS} kills, at most {oldest:?} old",
        acked.len(),
        events.seen.len(),
        received.len(),
    );
    assert!(acked.len() > 1_000 && lost_replies > 0 && cancelled > 0, "the load was a load");
}

/// One connection's work until the daemon is killed: bursts of pipelined lines, a cancellation or a status between them. `slow`:
/// with pauses, and without what is answered only after a checkpoint, so that outcomes alone say when one is written.
fn work(socket: &Path, again: Vec<Line>, first: u64, browsers: &[Subscription], mut random: Random, slow: bool) -> Harvest {
    let mut harvest = Harvest::default();
    let mut number = first;
    let mut client = match Client::connect(socket) {
        Ok(client) => client,
        Err(_) => {
            harvest.unanswered = again;
            return harvest;
        }
    };
    let mut burst = again;
    loop {
        if exchange(&mut client, burst, &mut harvest).is_err() {
            return harvest;
        }
        let known: Vec<String> = harvest.acked.iter().rev().take(LINES_A_BURST).map(|(_, id, _)| id.clone()).collect();
        for id in known.iter().filter(|_| random.below(25) == 0 && !slow) {
            match client.try_request(&json!({"op": "cancel", "message_id": id})) {
                Ok(reply) if reply["ok"] == true => harvest.cancelled += 1,
                Ok(reply) => harvest.problems.push(format!("cancel: {reply}")),
                Err(_) => return harvest,
            }
        }
        for id in known.iter().filter(|_| random.below(10) == 0) {
            match client.try_request(&json!({"op": "status", "message_id": id})) {
                Ok(status) => harvest.statuses.push(status),
                Err(_) => return harvest,
            }
        }
        std::thread::sleep(Duration::from_millis(if slow { 50 } else { random.below(60) }));
        burst = (0..LINES_A_BURST).map(|_| line(&mut number, browsers, &mut random, slow)).collect();
    }
}

/// Sends lines pipelined and takes their replies; an error is a connection that ended, and what has no reply stays unanswered.
fn exchange(client: &mut Client, lines: Vec<Line>, harvest: &mut Harvest) -> io::Result<()> {
    let text: String = lines.iter().map(|line| format!("{}\n", line.request)).collect();
    // Of what was written before the daemon died some may be in its store, so all of it is unanswered.
    let sent = client.send_raw(text.as_bytes());
    let mut lines = lines.into_iter();
    while let Some(line) = lines.next() {
        match client.recv() {
            Ok(reply) if reply["ok"] == true => {
                if reply["recipients"] != line.recipients {
                    harvest.problems.push(format!("{} recipients became {reply}", line.recipients));
                }
                let duplicate = reply["duplicate"] == true;
                harvest.acked.push((line, word(&reply, "message_id"), duplicate));
            }
            Ok(reply) => {
                harvest.problems.push(format!("a line was answered {reply}"));
            }
            Err(ended) => {
                harvest.unanswered.push(line);
                harvest.unanswered.extend(lines);
                return Err(ended);
            }
        }
    }
    sent
}

/// The next line: mostly a single to one browser.
fn line(number: &mut u64, browsers: &[Subscription], random: &mut Random, slow: bool) -> Line {
    let number = std::mem::replace(number, *number + 1);
    let kind = random.below(200);
    let wanted = match kind {
        0 => 150,
        1..20 => 3,
        _ => 1,
    };
    // The places are all different: 299 is a multiple of no small number's difference.
    let start = random.below(browsers.len() as u64) as usize;
    let to: Vec<Value> = (0..wanted).map(|place| browsers[(start + place) % browsers.len()].json()).collect();
    let mut request = json!({
        "op": "send",
        "to": {"subscriptions": to},
        "payload": {"n": number},
        "ref": number.to_string(),
        "idempotency_key": format!("key {number}"),
        "urgency": (random.one(&["very-low", "low", "normal", "high"])),
    });
    match kind {
        20..40 => request["at"] = (SystemTime::now() + Duration::from_millis(random.below(1_500))).rfc3339().into(),
        40..45 if !slow => request["topic"] = format!("t{}", random.below(3)).into(),
        _ => {}
    }
    Line { number, request, recipients: wanted as u64 }
}

/// Asks for these messages; every one must be there and add up.
fn check_statuses(client: &mut Client, ids: &[String], acked: &mut BTreeMap<String, Acked>) -> Vec<Value> {
    let mut statuses = Vec::new();
    for ids in ids.chunks(500) {
        for id in ids {
            client.send(&json!({"op": "status", "message_id": id})).expect("the daemon runs");
        }
        for id in ids {
            let status = client.recv().expect("the daemon runs");
            assert_eq!(status["ok"], true, "the acknowledged message {id}: {status}");
            look(&status, acked.get_mut(id));
            statuses.push(status);
        }
    }
    statuses
}

/// A status adds up, and what has ended stays so.
fn look(status: &Value, of: Option<&mut Acked>) {
    assert!(adds_up(status), "{status}");
    if let Some(of) = of {
        let ended: u64 = ENDED.iter().filter_map(|name| status[name].as_u64()).sum();
        assert_eq!(status["recipients"], of.recipients, "{status}");
        assert!(ended >= of.ended, "{} recipients had ended: {status}", of.ended);
        of.ended = ended;
    }
}

/// The event log, read by one cursor from the first event to the last.
#[derive(Default)]
struct Events {
    cursor: Option<String>,
    seen: Vec<Value>,
}

impl Events {
    fn join(&mut self, later: Events) {
        self.cursor = later.cursor;
        self.seen.extend(later.seen);
    }

    /// Reads all there is.
    fn read(&mut self, client: &mut Client) -> io::Result<()> {
        loop {
            client.send(&json!({"op": "events", "after": self.cursor.as_deref().unwrap_or("oldest"), "limit": 1_000}))?;
            loop {
                let line = client.recv()?;
                if let Some(ok) = line.get("ok") {
                    assert_eq!(ok, true, "the cursor is taken after a kill: {line}");
                    if line["more"] == true {
                        break;
                    }
                    return Ok(());
                }
                self.cursor = Some(word(&line, "cursor"));
                self.seen.push(line);
            }
        }
    }

    /// Reads again and again until the daemon is killed, so that events are met that were written just before.
    fn follow(&mut self, socket: &Path) {
        let Ok(mut client) = Client::connect(socket) else { return };
        while self.read(&mut client).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Every recipient has one ending event, of a message that was acknowledged, and what it says happened.
fn check_events(events: &Events, acked: &BTreeMap<String, Acked>, received: &[Received]) {
    let mut answers: HashMap<(u64, String), HashSet<u16>> = HashMap::new();
    for post in received {
        let of = answers.entry((number_of(post), subscription_id(post))).or_default();
        of.extend(post.status);
    }
    let mut told: HashMap<&str, u64> = HashMap::new();
    let mut ended: HashSet<(String, String)> = HashSet::new();
    let mut cursors = HashSet::new();
    for event in events.seen.iter() {
        assert!(cursors.insert(word(event, "cursor")), "a cursor came twice: {event}");
        let id = event["message_id"].as_str().expect("an id");
        let message = acked.get(id).unwrap_or_else(|| panic!("a message that nobody was told of: {event}"));
        *told.entry(message.id.as_str()).or_default() += event["count"].as_u64().unwrap_or(1);
        let Some(subscription) = event["subscription_id"].as_str() else {
            assert_eq!(event["type"], "cancelled", "{event}");
            continue;
        };
        assert!(ended.insert((id.to_owned(), subscription.to_owned())), "a second end: {event}");
        let met = answers.get(&(message.number, subscription.to_owned()));
        let has = |status: u16| met.is_some_and(|met| met.contains(&status));
        match event["type"].as_str().expect("a type") {
            "accepted" => assert!(has(201), "never taken: {event}"),
            "gone" => assert!(has(410), "never refused: {event}"),
            "cancelled" | "skipped" => {}
            other => panic!("nothing ends as {other} here: {event}"),
        }
    }
    for message in acked.values() {
        let told = told.get(message.id.as_str()).copied().unwrap_or(0);
        assert_eq!(told, message.recipients, "ending events of {}", message.id);
    }
}

/// What was taken twice was taken the first time shortly before a kill, and the second time after it.
fn check_repeats(received: &[Received], kills: &[u64]) -> (usize, Duration) {
    let mut taken: HashMap<(u64, &str), u64> = HashMap::new();
    let mut of_kill: BTreeMap<u64, usize> = BTreeMap::new();
    let mut oldest = Duration::ZERO;
    for post in received.iter().filter(|post| post.taken()) {
        if let Some(before) = taken.insert((number_of(post), &post.subscription), post.time) {
            // The kill itself takes a moment: what came then is dated before or after it.
            let kill = kills.iter().copied().find(|kill| kill + 100_000 >= before).unwrap_or(u64::MAX);
            assert!(kill < post.time, "a repeat without a kill between: {} at {before} and {}", post.text(), post.time);
            let age = Duration::from_micros(kill.saturating_sub(before));
            assert!(age <= WINDOW, "a repeat of what was taken {age:?} before the kill");
            oldest = oldest.max(age);
            *of_kill.entry(kill).or_default() += 1;
        }
    }
    let most = of_kill.values().max().copied().unwrap_or(0);
    assert!(most <= OUTCOMES + IN_FLIGHT, "one kill repeated {most}");
    (of_kill.values().sum(), oldest)
}

fn number_of(post: &Received) -> u64 {
    let payload: Value = serde_json::from_str(&post.text()).expect("our own payload");
    payload["n"].as_u64().expect("its number")
}

/// The id of the subscription that got this post (docs/design.md 3.1).
fn subscription_id(post: &Received) -> String {
    use base64::Engine;
    use sha2::Digest;
    let endpoint = format!("{}/push/{}", post.vapid.as_ref().map_or("", |vapid| vapid.aud.as_str()), post.subscription);
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&sha2::Sha256::digest(endpoint.as_bytes())[..12])
}

fn word(of: &Value, name: &str) -> String {
    of[name].as_str().unwrap_or_else(|| panic!("no {name} in {of}")).to_owned()
}

fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as u64
}

/// `rfc3339` of a time.
trait Rfc3339 {
    fn rfc3339(&self) -> String;
}

impl Rfc3339 for SystemTime {
    fn rfc3339(&self) -> String {
        time::OffsetDateTime::from(*self).format(&time::format_description::well_known::Rfc3339).expect("a date of today")
    }
}
