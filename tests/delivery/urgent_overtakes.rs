//! Section 2.2 and promise 5: an urgent message does not queue behind 200,000 others, neither at the same push service nor at another.

use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::mock::{Fault, Mock, Options, Scope, Subscription};
use serde_json::{Value, json};

use crate::support::*;

const BACKLOG: u64 = 200_000;
const SAMPLES: usize = 20;

#[test]
fn an_urgent_message_overtakes_200_000() {
    // Few bodies are decrypted: the mock is not to be the bottleneck. The urgent ones are found by their subscription.
    let mock = Mock::start(Options { listeners: 2, verify_every: 1_000, ..Options::default() });
    let daemon = daemon(&mock, |config| config.set("events.log", json!(["expired"])));
    let mut client = daemon.client();
    let (crowd, here, elsewhere) = (mock.subscribe(0, 200), mock.subscribe(0, SAMPLES), mock.subscribe(1, SAMPLES));
    // Both origins have been met: what is measured is no TLS handshake.
    for browser in [&here[0], &elsewhere[0]] {
        let id = send(&mut client, browser, json!({"payload": "hello"}));
        wait_ended(&mut client, &id);
    }
    mock.stop_listening(0);
    fill(&mut client, &crowd);
    assert_eq!(mock.counters().origins[0].requests, 1);

    // A service whose streams are all taken: an answer takes 100 ms.
    mock.set_fault(Scope::Origin(0), Fault::late(Duration::from_millis(100)));
    mock.set_fault(Scope::Origin(0), Fault::MaxStreams(10));
    mock.resume_listening(0);
    assert!(mock.wait(PATIENCE, |counters| counters.origins[0].accepted > 300), "the backlog moves");
    let same = measure(&mock, &mut client, &here, 0, Duration::from_millis(50));
    let other = measure(&mock, &mut client, &elsewhere, 1, Duration::from_millis(20));
    report("to the same, slow service", &same);
    report("to another service, beside a slow one", &other);
    // A stream is kept for it, or becomes free within 100 ms; the rest is the machine's.
    assert!(median(&same) < 150.0 && worst(&same) < 5_000.0);
    assert!(median(&other) < 250.0 && worst(&other) < 5_000.0);

    // And at full speed, when all of the machine is busy with the backlog.
    mock.clear_all_faults();
    let before = mock.counters().origins[0].accepted;
    let began = Instant::now();
    assert!(mock.wait(PATIENCE, |counters| counters.origins[0].accepted > before + 2_000), "the backlog moves");
    let (same, other) = (
        measure(&mock, &mut client, &here, 0, Duration::from_millis(20)),
        measure(&mock, &mut client, &elsewhere, 1, Duration::from_millis(20)),
    );
    let taken = mock.counters().origins[0].accepted;
    let rate = (taken - before) as f64 / began.elapsed().as_secs_f64();
    report(&format!("to the same service at {rate:.0} messages/s"), &same);
    report(&format!("to another service at {rate:.0} messages/s"), &other);
    assert!(taken < BACKLOG, "the backlog must outlast the measurement");
    assert!(median(&same) < 500.0 && worst(&same) < 5_000.0);
    assert!(median(&other) < 250.0 && worst(&other) < 5_000.0);
    // In line it would have waited for all of these, longer than it did.
    let rest = (BACKLOG - taken) as f64 / rate;
    assert!(rest > 0.5, "a backlog of {rest:.1} s");
}

/// 200,000 singles that wait.
fn fill(client: &mut Client, crowd: &[Subscription]) {
    let lines: Vec<Vec<u8>> = crowd
        .iter()
        .map(|browser| format!("{}\n", send_of(&browser.json(), json!({"payload": "one of many"}))).into_bytes())
        .collect();
    let mut chunk = Vec::new();
    for _ in 0..BACKLOG / 1_000 {
        chunk.clear();
        (0..1_000).for_each(|n| chunk.extend_from_slice(&lines[n % lines.len()]));
        client.send_raw(&chunk).expect("the daemon reads");
        (0..1_000).for_each(|_| assert_eq!(client.recv().expect("a reply")["ok"], true));
    }
}

/// Milliseconds from before the line is written to the whole request at the push service, sorted.
fn measure(mock: &Mock, client: &mut Client, browsers: &[Subscription], origin: usize, pause: Duration) -> Vec<f64> {
    let mut all: Vec<f64> = browsers
        .iter()
        .map(|browser| {
            let (number, sent) = (mock.counters().requests, now());
            let others = mock.counters().origins[0].accepted;
            let line: Value = send_of(&browser.json(), json!({"payload": "urgent", "urgency": "high"}));
            client.ok(&line);
            let mut arrived = None;
            let found = wait(PATIENCE, || {
                arrived = mock.received_after(number.saturating_sub(64)).into_iter().find(|received| {
                    received.subscription == browser.token
                        && received.urgency.as_deref() == Some("high")
                        && time(received) >= sent
                });
                arrived.is_some()
            });
            assert!(found, "the urgent message did not arrive");
            let arrived = arrived.expect("found");
            assert_eq!(arrived.origin, origin);
            assert!(mock.counters().origins[0].accepted - others < BACKLOG / 4, "it went in line");
            std::thread::sleep(pause);
            (time(&arrived) - sent) * 1_000.0
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

fn worst(sorted: &[f64]) -> f64 {
    sorted[sorted.len() - 1]
}

fn report(what: &str, sorted: &[f64]) {
    let (n, median, worst) = (sorted.len(), median(sorted), worst(sorted));
    println!("urgent {what}: median {median:.1} ms, worst of {n} {worst:.1} ms");
}
