//! Every recipient ends in exactly one state (promise 4): the sums hold whenever they are asked for, and each recipient has exactly
//! one ending event.

use super::*;
use fanfare_loadtest::random::Random;
use std::collections::HashMap;

#[test]
fn every_recipient_ends_once_under_a_mixed_load() {
    let (mock, mut daemon) = start(|config| config.set("retry.min", 0.1).set("retry.max", 0.5).set("events.log", json!(ENDED)));
    let browsers = mock.subscribe(0, 600);
    for (n, browser) in browsers.iter().enumerate() {
        let scope = Scope::Subscription(browser.token.clone());
        match n % 12 {
            0 => mock.set_fault(scope, Fault::status(410)),
            1 => mock.set_fault(scope, Fault::status(400)),
            2 => mock.set_fault_times(scope, Fault::status(429).retry_after(1), 3),
            3 => mock.set_fault(scope, Fault::late(Duration::from_millis(200))),
            4 => mock.set_fault(scope, Fault::status(429).retry_after(3_600)),
            _ => {}
        }
    }
    let mut client = daemon.client();
    let mut dice = Random::seeded(0x9E37_79B9_7F4A_7C15);
    let mut ids: Vec<Value> = Vec::new();
    let mut recipients: HashMap<String, u64> = HashMap::new();
    let mut endings: HashMap<String, Value> = HashMap::new();
    for round in 0..300 {
        let labels = ["a", "b", "c"];
        let label = labels[dice.below(3) as usize];
        match dice.below(10) {
            0..=5 => {
                let count = if dice.below(4) == 0 { 65 + dice.below(500) } else { 1 + dice.below(20) } as usize;
                let first = dice.below((600 - count + 1) as u64) as usize;
                let mut more = json!({"label": label, "payload": format!("round {round}"), "ttl": 2 + dice.below(8)});
                match dice.below(6) {
                    0 => more["paused"] = true.into(),
                    1 => more["at"] = in_seconds(dice.below(20) as f64 / 10.0).into(),
                    2 => more["topic"] = format!("t{}", dice.below(2)).into(),
                    3 => more["rate"] = (50 + dice.below(2_000)).into(),
                    _ => {}
                }
                let reply = client.ok(&send(&browsers[first..first + count], more));
                recipients.insert(id_of(&reply).as_str().unwrap().to_owned(), count as u64);
                ids.push(id_of(&reply));
            }
            6 => {
                client.ok(&json!({"op": "cancel", "label": label}));
            }
            7 if !ids.is_empty() => {
                let id = &ids[dice.below(ids.len() as u64) as usize];
                let op = ["cancel", "pause", "resume", "resume"][dice.below(4) as usize];
                client.ok(&json!({"op": op, "message_id": id}));
            }
            8 => {
                client.ok(&json!({"op": "pause", "label": label}));
            }
            _ => {
                client.ok(&json!({"op": "resume", "label": label}));
            }
        }
        // The sums hold whenever they are asked for, and an ending is never taken back.
        for _ in 0..4 {
            if ids.is_empty() {
                break;
            }
            let id = &ids[dice.below(ids.len() as u64) as usize];
            check(&mut client, id, &recipients, &mut endings);
        }
        if round == 150 {
            daemon.kill9();
            daemon.restart().unwrap();
            client = daemon.client();
            for id in &ids {
                check(&mut client, id, &recipients, &mut endings);
            }
        }
    }
    for label in ["a", "b", "c"] {
        client.ok(&json!({"op": "resume", "label": label}));
    }
    // Whatever waits is out of time after 10 s, and told within a minute.
    let deadline = Instant::now() + Duration::from_secs(90);
    let mut open = ids.clone();
    while !open.is_empty() {
        assert!(Instant::now() < deadline, "pending for ever: {:?}", status(&mut client, &open[0]));
        open.retain(|id| check(&mut client, id, &recipients, &mut endings));
        std::thread::sleep(Duration::from_millis(50));
    }
    // One event a recipient.
    let (mut told, mut after): (HashMap<String, HashMap<String, u64>>, Value) = (HashMap::new(), json!("oldest"));
    let mut single: HashMap<(String, String), u64> = HashMap::new();
    loop {
        let (events, end) = client.events(&json!({"op": "events", "after": after})).unwrap();
        for event in events {
            let id = event["message_id"].as_str().unwrap().to_owned();
            let kind = event["type"].as_str().unwrap().to_owned();
            *told.entry(id.clone()).or_default().entry(kind).or_default() += event["count"].as_u64().unwrap_or(1);
            if let Some(subscription) = event["subscription_id"].as_str() {
                *single.entry((id, subscription.to_owned())).or_default() += 1;
            }
        }
        after = end["cursor"].clone();
        if end["more"] == false {
            break;
        }
    }
    assert!(single.values().all(|count| *count == 1), "a recipient has two endings");
    let mut kinds: HashMap<&str, u64> = HashMap::new();
    for id in &ids {
        let status = status(&mut client, id);
        for ending in ENDED {
            let counted = status[ending].as_u64().unwrap();
            let events = told.get(id.as_str().unwrap()).and_then(|kinds| kinds.get(ending)).copied().unwrap_or(0);
            assert_eq!(counted, events, "{ending}: {status}");
            *kinds.entry(ending).or_default() += counted;
        }
    }
    for ending in ENDED {
        assert!(kinds[ending] > 0, "the load had nothing that ended as {ending}: {kinds:?}");
    }
    assert_eq!(client.ok(&json!({"op": "ping"}))["state"], "ok");
}

/// Whether anything is pending.
fn check(client: &mut Client, id: &Value, recipients: &HashMap<String, u64>, endings: &mut HashMap<String, Value>) -> bool {
    let status = status(client, id);
    let id = id.as_str().unwrap();
    assert_eq!(status["recipients"], recipients[id], "{status}");
    if let Some(before) = endings.get(id) {
        for ending in ENDED {
            assert!(status[ending].as_u64() >= before[ending].as_u64(), "{ending} was taken back: {before} {status}");
        }
    }
    let pending = status["pending"] != 0;
    endings.insert(id.to_owned(), status);
    pending
}
