//! One message to many: `send` with a stream, `add` after `add`, `close`.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use serde_json::{Value, json};

use super::bench::{Bench, SETTLE};
use super::progress::Progress;
use super::report::Report;
use crate::Stream;

/// Runs the measurement and prints its report.
pub fn run(flags: &Stream) -> io::Result<()> {
    report(flags)?.print(flags.place.json)
}

/// Runs the measurement.
pub fn report(flags: &Stream) -> io::Result<Report> {
    let bench = Bench::start(&flags.place, |config| config)?;
    let every = Duration::from_millis(50);
    let warm_up = bench.mock.subscriptions(1_000, None)?;
    let subscriptions = bench.mock.subscriptions(flags.recipients, None)?;
    let messages = subscriptions.len() as u64;
    let mut client = Client::connect(&bench.socket)?;
    client.set_timeout(Some(Duration::from_secs(120)))?;

    let begin = bench.mock.counters()?.accepted;
    send(&mut client, &warm_up, flags, 64)?;
    bench.mock.wait("warm-up", begin + warm_up.len() as u64, every, |mock| Ok(mock.counters()?.accepted))?;
    std::thread::sleep(SETTLE);
    let counters_before = bench.mock.counters()?;
    let before = bench.reading()?;

    let started = Instant::now();
    let message_id = send(&mut client, &subscriptions, flags, flags.body)?;
    let added = started.elapsed();
    let wanted = counters_before.accepted + messages;
    bench.mock.wait("delivered", wanted, every, |mock| Ok(mock.counters()?.accepted))?;
    let elapsed = started.elapsed();
    std::thread::sleep(SETTLE);
    let after = bench.reading()?;
    let counters = bench.mock.counters()?;
    let status = client.try_request(&json!({"op": "status", "message_id": message_id}))?;

    let mut report = Report::default();
    report.count("recipients", "recipients", messages);
    report.must_be("accepted", "accepted by the push service", counters.accepted - counters_before.accepted, messages);
    report.must_be("told_accepted", "accepted, says the daemon", status["accepted"].as_u64().unwrap_or(0), messages);
    if flags.place.verifies_all() {
        report.must_be("verified", "decrypted and verified", counters.verified - counters_before.verified, messages);
    }
    report.violations(&counters);
    report.must_be("repeats", "repeated", counters.repeats - counters_before.repeats, 0);
    report.rate("added_per_second", "recipients a second, acknowledged", messages, added);
    report.rate("messages_per_second", "messages a second, delivered", messages, elapsed);
    report.readings(before, after, messages);
    bench.finish()?;
    Ok(report)
}

/// Sends a stream to these with so many lines unanswered at most; returns its message id.
fn send(client: &mut Client, to: &[Box<serde_json::value::RawValue>], flags: &Stream, body: usize) -> io::Result<Value> {
    let good = |reply: Value| {
        if reply["ok"] == true { Ok(reply) } else { Err(io::Error::other(format!("a line was answered {reply}"))) }
    };
    let payload = json!({"text": "x".repeat(body.saturating_sub(11))});
    let opened = json!({"op": "send", "to": {"stream": true}, "payload": payload, "ttl": 86_400, "label": "load"});
    let message_id = good(client.try_request(&opened)?)?["message_id"].clone();
    let progress = Progress::new("added", to.len() as u64);
    let mut unanswered = VecDeque::new();
    let mut added = 0;
    for chunk in to.chunks(flags.chunk.max(1)) {
        if unanswered.len() >= flags.window.max(1) {
            good(client.recv()?)?;
            added += unanswered.pop_front().unwrap_or(0);
            progress.at(added);
        }
        let texts: Vec<&str> = chunk.iter().map(|subscription| subscription.get()).collect();
        let line = format!("{{\"op\":\"add\",\"message_id\":{message_id},\"subscriptions\":[{}]}}\n", texts.join(","));
        client.send_raw(line.as_bytes())?;
        unanswered.push_back(chunk.len() as u64);
    }
    for _ in unanswered {
        good(client.recv()?)?;
    }
    good(client.try_request(&json!({"op": "close", "message_id": message_id}))?)?;
    Ok(message_id)
}
