//! A stream goes on by its position after a crash of either side, without a gap and without a repeat.
//!
//! The worker plays an application: it reads `WHERE id > position` from its own database and adds the rows that it finds. It
//! learns the position from a repeated `send` with its idempotency key, from `status`, or from a `conflict`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::mock::{Mock, Options, Subscription};
use fanfare_loadtest::random::Random;
use fanfare_loadtest::status::ENDED;
use serde_json::json;

const ROWS: usize = 4_000;
const ROWS_A_STEP: usize = 10;
const DISTURBANCES: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn after_a_kill_of_the_daemon() {
    let stage = Stage::new();
    let mut daemon = stage.daemon();
    let mut random = Random::new();
    let mut kills = 0;
    let message = std::thread::scope(|scope| {
        let socket = daemon.socket();
        let worker = scope.spawn(|| {
            let socket = socket;
            let mut random = Random::new();
            let deadline = Instant::now() + PATIENCE * 2;
            loop {
                assert!(Instant::now() < deadline, "the stream is not done");
                // An error is a daemon that was killed: it will be back.
                match stage.work(&socket, &mut random, None) {
                    Ok(message) => return message,
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        while kills < DISTURBANCES && !worker.is_finished() {
            std::thread::sleep(Duration::from_millis(10 + random.below(60)));
            daemon.kill9();
            kills += 1;
            daemon.restart().expect("it starts after a kill");
        }
        worker.join().expect("the worker")
    });
    assert!(kills > 2, "the stream was done before it was disturbed");
    stage.check(&mut daemon, &message);
    println!("{kills} kills, {} deliveries repeated", stage.mock.counters().repeats);
}

#[test]
fn after_the_client_has_died() {
    let stage = Stage::new();
    let mut daemon = stage.daemon();
    let mut random = Random::new();
    let mut deaths = 0;
    let message = loop {
        // The connection ends after so many steps, at any byte of a line, with replies unread.
        let steps = (deaths < DISTURBANCES).then(|| random.below((ROWS / ROWS_A_STEP / DISTURBANCES) as u64 * 2) as usize);
        match stage.work(&daemon.socket(), &mut random, steps) {
            Ok(message) => break message,
            Err(problem) => assert_eq!(problem.kind(), io::ErrorKind::Interrupted, "{problem}"),
        }
        deaths += 1;
    };
    assert!(deaths > 2, "the stream was done before it was disturbed");
    stage.check(&mut daemon, &message);
    assert_eq!(stage.mock.counters().repeats, 0, "the daemon never died, so nothing is sent twice");
    println!("{deaths} deaths");
}

/// The application's database, and the push service of its subscribers.
struct Stage {
    mock: Mock,
    rows: Vec<Subscription>,
}

impl Stage {
    fn new() -> Stage {
        let mock = Mock::start(Options::default());
        let rows = mock.subscribe(0, ROWS);
        Stage { mock, rows }
    }

    fn daemon(&self) -> Daemon {
        let config = ConfigBuilder::new()
            .mock(&self.mock)
            .set("store.reserve_mb", 1)
            .set("store.min_free_percent", 0)
            .set("events.log", json!(ENDED));
        Daemon::start(env!("CARGO_BIN_EXE_fanfare"), config).expect("it starts")
    }

    /// One life of the worker: learns the position, adds what comes after it, closes. It dies after `steps`, if told so, which
    /// is the error `Interrupted`; any other error is a connection that ended. Gives the message.
    fn work(&self, socket: &Path, random: &mut Random, steps: Option<usize>) -> io::Result<String> {
        let mut client = Client::connect(socket)?;
        let send = json!({"op": "send", "to": {"stream": true}, "payload": {"news": true}, "idempotency_key": "news of today"});
        let reply = client.try_request(&send)?;
        assert_eq!(reply["ok"], true, "{reply}");
        let message = reply["message_id"].as_str().expect("an id").to_owned();
        let told = match random.below(2) {
            0 => reply,
            _ => client.try_request(&json!({"op": "status", "message_id": message}))?,
        };
        assert_eq!(told["ok"], true, "{told}");
        let mut position = told["position"].as_u64();
        let mut done = 0;
        while position != Some(ROWS as u64 + 1) {
            // Some steps at once, pipelined.
            let mut lines = Vec::new();
            let mut previous = position;
            for _ in 0..1 + random.below(5) {
                let next = (previous.unwrap_or(0) as usize + ROWS_A_STEP).min(ROWS);
                let rows = &self.rows[previous.unwrap_or(0) as usize..next];
                let mut line = json!({"message_id": message, "previous": previous, "position": next});
                if rows.is_empty() {
                    line["op"] = "close".into();
                    // Its position is one more than the last row's: a step of its own.
                    line["position"] = (ROWS + 1).into();
                    lines.push(line);
                    break;
                }
                line["op"] = "add".into();
                line["subscriptions"] = rows.iter().map(Subscription::json).collect();
                lines.push(line);
                previous = Some(next as u64);
            }
            let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            done += lines.len();
            if steps.is_some_and(|steps| done >= steps) {
                text.truncate(random.below(text.len() as u64 + 1) as usize);
                client.send_raw(text.as_bytes())?;
                return Err(io::ErrorKind::Interrupted.into());
            }
            client.send_raw(text.as_bytes())?;
            let mut conflicted = false;
            for line in &lines {
                let reply = client.recv()?;
                if reply["ok"] == true {
                    position = line["position"].as_u64();
                    assert_eq!(reply["position"].as_u64(), position, "{reply}");
                } else {
                    // What the life before had sent was still on its way when this one asked; and what was pipelined behind a
                    // line that was refused does not follow either.
                    assert_eq!(reply["error"]["code"], "conflict", "{reply}");
                    let kept = reply["error"]["position"].as_u64();
                    assert!(
                        kept > position || conflicted && kept == position,
                        "a conflict with what was told: {reply} at {position:?}"
                    );
                    position = kept;
                    conflicted = true;
                }
            }
        }
        Ok(message)
    }

    /// No gap and no repeat: every row is one recipient, delivered, with one event.
    fn check(&self, daemon: &mut Daemon, message: &str) {
        let mut client = daemon.client();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = client.ok(&json!({"op": "status", "message_id": message}));
            assert_eq!(status["recipients"], ROWS, "{status}");
            assert_eq!(status["open"], false, "{status}");
            assert_eq!(status["position"], ROWS + 1, "{status}");
            if status["accepted"] == ROWS {
                assert_eq!(status["state"], "done", "{status}");
                break;
            }
            assert!(Instant::now() < deadline, "{status}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut taken: BTreeMap<String, usize> = BTreeMap::new();
        for post in self.mock.received().iter().filter(|post| post.taken()) {
            *taken.entry(post.subscription.clone()).or_default() += 1;
        }
        assert!(self.rows.iter().all(|row| taken.contains_key(&row.token)), "{} of {ROWS} rows were reached", taken.len());
        let mut ended: BTreeMap<String, usize> = BTreeMap::new();
        let mut after = "oldest".to_owned();
        loop {
            let (events, end) = client.events(&json!({"op": "events", "after": after, "limit": 1_000})).expect("the daemon runs");
            for event in events {
                assert_eq!(event["type"], "accepted", "{event}");
                *ended.entry(event["subscription_id"].as_str().expect("an id").to_owned()).or_default() += 1;
                after = event["cursor"].as_str().expect("a cursor").to_owned();
            }
            if end["more"] != true {
                break;
            }
        }
        assert_eq!(ended.len(), ROWS, "rows with an ending event");
        assert!(ended.values().all(|events| *events == 1), "one event a row");
        assert_eq!(self.mock.counters().violations, Vec::<String>::new());
    }
}
