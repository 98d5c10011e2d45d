//! Promise 7: a full disk is refused, loses nothing, and the daemon recovers by itself when space returns.
//!
//! The store lies on a small disk of its own that another file fills: first to below `store.min_free_percent`, then to the last
//! byte.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::disk::Disk;
use fanfare_loadtest::mock::{Mock, Options, Subscription};
use fanfare_loadtest::status::status;
use fanfare_loadtest::wait;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn low_space_refuses_new_lines_while_accepted_ones_go_on() {
    let disk = match Disk::make(256) {
        Ok(disk) => disk,
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    let mock = Mock::start(Options::default());
    let browsers = mock.subscribe(0, 50);
    let mut daemon = start(&disk, &mock, 50);
    let mut client = daemon.client();
    let at = |seconds| {
        let time = time::OffsetDateTime::from(SystemTime::now() + Duration::from_secs(seconds));
        json!({"at": time.format(&time::format_description::well_known::Rfc3339).expect("a date")})
    };
    let send = |client: &mut Client, number: usize, more: Value| {
        let mut request = send_request(&browsers[number], number as u64);
        request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        word(&client.ok(&request), "message_id")
    };
    let waiting: Vec<String> = (0..40).map(|number| send(&mut client, number, at(6))).collect();
    let cancelled = send(&mut client, 40, at(3_600));
    let paused = send(&mut client, 41, at(3_600));
    let stream = word(&client.ok(&json!({"op": "send", "to": {"stream": true}, "payload": {"n": 1}})), "message_id");

    disk.fill(disk.free().expect("it is mounted") / 4).expect("it can be filled");
    let mut number = 42;
    until("new lines are refused", || {
        let reply = client.request(&send_request(&browsers[42], number));
        number += 1;
        reply["error"]["code"] == "read_only"
    });
    let ping = client.ok(&json!({"op": "ping"}));
    assert_eq!(ping["state"], "read_only", "{ping}");
    let error = client.error(&send_request(&browsers[42], number));
    assert!(error["retry_after"].as_f64().is_some_and(|after| after > 0.0), "{error}");
    let add = json!({"op": "add", "message_id": stream, "subscriptions": [browsers[43].json()]});
    assert_eq!(client.error(&add)["code"], "read_only");
    // What frees or protects goes on.
    client.ok(&json!({"op": "cancel", "message_id": cancelled}));
    client.ok(&json!({"op": "pause", "message_id": paused}));
    // What was accepted goes on.
    for id in &waiting {
        until("what was accepted is delivered", || status(&mut client, id)["accepted"] == 1);
    }
    assert_eq!(client.error(&send_request(&browsers[42], number))["code"], "read_only", "there was no space all the while");
    assert_eq!(status(&mut client, &cancelled)["cancelled"], 1);
    assert_eq!(status(&mut client, &paused)["state"], "paused");

    disk.empty().expect("the filler goes");
    until("new lines are taken again", || client.request(&send_request(&browsers[44], 1_000))["ok"] == true);
    client.ok(&add);
    client.ok(&json!({"op": "close", "message_id": stream}));
    client.ok(&json!({"op": "resume", "message_id": paused}));
    assert_eq!(status(&mut client, &paused)["state"], "scheduled");
    let recipients = until_done(&mut client, &stream);
    assert_eq!(recipients, 1, "what was refused is not there, what was taken is");
    assert_eq!(daemon.terminate().expect("it ends"), 0);
}

#[test]
fn a_full_disk_loses_nothing_and_recovers_in_the_process() {
    let disk = match Disk::make(192) {
        Ok(disk) => disk,
        Err(reason) => return println!("SKIPPED: {reason}"),
    };
    let mock = Mock::start(Options { listeners: 2, ..Options::default() });
    let browsers: Vec<Subscription> = (0..2).flat_map(|origin| mock.subscribe(origin, 25)).collect();
    // What is for one of the two waits on disk: it must be there afterwards.
    mock.stop_listening(1);
    let mut daemon = start(&disk, &mock, 0);
    let pid = daemon.pid();
    let full = AtomicBool::new(true);
    let mut acked: Vec<(String, u64)> = Vec::new();
    let mut client = daemon.client();
    let mut number = 0;
    std::thread::scope(|scope| {
        let _ended_by_panics_too = Guard(&full);
        scope.spawn(|| {
            // Whatever is freed (the reserve, a compaction) is taken at once.
            while full.load(Ordering::SeqCst) {
                disk.fill(0).expect("it can be filled");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        // RocksDB has laid hold of some space ahead, and gives up the reserve first: lines are taken until both are used up.
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut refused_since: Option<Instant> = None;
        while refused_since.is_none_or(|since| since.elapsed() < Duration::from_secs(8)) {
            assert!(Instant::now() < deadline, "the disk is full and lines are taken");
            let burst: Vec<u64> = (number..number + 20).collect();
            number += 20;
            let mut refused = 0;
            for line in &burst {
                client.send(&send_request(&browsers[*line as usize % browsers.len()], *line)).expect("it runs");
            }
            for line in &burst {
                let reply = client.recv().unwrap_or_else(|problem| panic!("{problem}: {}", daemon.log()));
                if reply["ok"] == true {
                    acked.push((word(&reply, "message_id"), *line));
                } else {
                    assert_eq!(reply["error"]["code"], "read_only", "{reply}");
                    refused += 1;
                }
            }
            if refused < burst.len() {
                refused_since = None;
            } else {
                refused_since.get_or_insert_with(Instant::now);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        // Nothing can be settled, so nothing is sent: what was in flight has ended in the 8 s.
        let requests = mock.counters().requests;
        mock.resume_listening(1);
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(mock.counters().requests, requests, "posted without a place for its outcome");
        assert_eq!(client.ok(&json!({"op": "ping"}))["state"], "read_only");
    });
    println!("{} lines acknowledged, {} refused", acked.len(), number as usize - acked.len());
    assert!(!acked.is_empty());

    disk.empty().expect("the filler goes");
    let freed = Instant::now();
    until("lines are taken again", || client.request(&send_request(&browsers[0], number))["ok"] == true);
    // Every 5 s it looks; the rest is for a busy machine.
    assert!(freed.elapsed() < Duration::from_secs(20), "recovered only after {:?}", freed.elapsed());
    for (id, _) in &acked {
        until("what was acknowledged is delivered", || {
            let status = status(&mut client, id);
            assert_eq!(status["recipients"], 1, "{status}");
            status["accepted"] == 1
        });
    }
    let taken: BTreeSet<u64> = mock.received().iter().filter(|post| post.taken()).map(|post| number_of(&post.text())).collect();
    let missing: Vec<u64> = acked.iter().map(|(_, line)| *line).filter(|line| !taken.contains(line)).collect();
    assert_eq!(missing, Vec::<u64>::new());
    assert_eq!(mock.counters().repeats, 0, "no crash, so nothing is sent twice");
    assert!(daemon.running() && daemon.pid() == pid, "it recovered without a restart");
    assert_eq!(daemon.terminate().expect("it ends"), 0);
    // And all of it is on disk.
    daemon.restart().expect("it starts again");
    let mut client = daemon.client();
    for (id, _) in &acked {
        assert_eq!(status(&mut client, id)["accepted"], 1);
    }
}

/// Ends the filling thread, also when an assertion fails.
struct Guard<'a>(&'a AtomicBool);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

fn start(disk: &Disk, mock: &Mock, min_free_percent: u64) -> Daemon {
    let config = ConfigBuilder::new()
        .mock(mock)
        .set("data_dir", disk.path().join("data").to_string_lossy().into_owned())
        .set("store.cache_mb", 16)
        .set("store.reserve_mb", 8)
        .set("store.min_free_percent", min_free_percent);
    Daemon::start(env!("CARGO_BIN_EXE_fanfare"), config).expect("it starts")
}

fn send_request(to: &Subscription, number: u64) -> Value {
    json!({"op": "send", "to": {"subscription": to.json()}, "payload": {"n": number, "padding": "x".repeat(2_000)}})
}

/// Waits until a message is done: its recipients, all of them delivered.
fn until_done(client: &mut Client, id: &str) -> u64 {
    until("the stream is done", || status(client, id)["state"] == "done");
    let status = status(client, id);
    assert_eq!(status["accepted"], status["recipients"], "{status}");
    status["recipients"].as_u64().expect("a number")
}

fn until(what: &str, so: impl FnMut() -> bool) {
    assert!(wait(PATIENCE, so), "in a minute it was not so that {what}");
}

fn number_of(payload: &str) -> u64 {
    let payload: Value = serde_json::from_str(payload).expect("our own payload");
    payload["n"].as_u64().expect("its number")
}

fn word(of: &Value, name: &str) -> String {
    of[name].as_str().unwrap_or_else(|| panic!("no {name} in {of}")).to_owned()
}
