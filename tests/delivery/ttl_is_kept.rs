//! Promise 3: nothing is sent after its time. The TTL header of an attempt is what is left; expiry is told within 60 s of the deadline,
//! also behind a closed lane; `at` moves the deadline and nothing else does; TTL 0 is one attempt.

use std::time::Duration;

use fanfare_loadtest::mock::{Fault, Scope};
use serde_json::{Value, json};

use crate::support::*;

fn of(token: &str) -> Scope {
    Scope::Subscription(token.to_owned())
}

#[test]
fn the_ttl_header_counts_down_and_then_it_expires() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config.set("retry.min", 1).set("retry.max", 1));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 40);
    mock.set_fault(of(&browsers[0].token), Fault::status(500));
    let reply = client.ok(&send_of(&browsers[0].json(), json!({"payload": "x", "ttl": 6})));
    let (id, expires) = (id_of(&reply), seconds_of(&reply["expires"]));
    assert!((now() + 6.0 - expires).abs() < 5.0, "{reply}");
    // Good answers in between keep the origin open.
    for chunk in browsers[1..].chunks(8) {
        let list: Vec<Value> = chunk.iter().map(|browser| send_of(&browser.json(), json!({"payload": "good"}))).collect();
        send_all(&mut client, &list);
        std::thread::sleep(Duration::from_millis(900));
    }
    let ended = wait_ended(&mut client, &id);
    assert_eq!(ended["expired"], 1, "{ended}");
    let event = event_of(&mut client, &id);
    assert_eq!((&event["type"], &event["reason"]), (&json!("expired"), &json!("deadline")), "{event}");
    assert!(seconds_of(&event["time"]) < expires + 60.0, "told in time: {event}");
    let attempts = mock.received_by(&browsers[0]);
    assert!(attempts.len() >= 3, "{} attempts", attempts.len());
    // After the last one either no time was left for a retry, or it was waited for and the time ran out.
    let retries = ended["retries"].as_u64().expect("a number") as usize;
    assert!(retries == attempts.len() || retries + 1 == attempts.len(), "{ended}");
    for attempt in &attempts {
        let left = expires - time(attempt);
        let ttl = attempt.ttl.expect("a TTL") as f64;
        assert!(ttl >= 1.0 && ttl >= left - 1.0 - 0.01 && ttl < left + 2.0, "TTL {ttl} with {left} s left");
        assert!(left > 0.0, "sent after its time");
    }
    let first = attempts[0].ttl.expect("a TTL");
    assert!(attempts.last().and_then(|last| last.ttl) < Some(first), "it counts down from {first}");
}

#[test]
fn it_expires_behind_a_closed_lane_too() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config);
    let mut client = daemon.client();
    mock.stop_listening(0);
    let browsers = mock.subscribe(0, 220);
    let singles: Vec<Value> =
        browsers[..10].iter().map(|browser| send_of(&browser.json(), json!({"payload": "single", "ttl": 2}))).collect();
    let mut ids = send_all(&mut client, &singles);
    ids.push(id_of(&client.ok(&list_of(&browsers[10..210], json!({"payload": "list", "ttl": 2})))));
    let kept: Vec<Value> = browsers[210..].iter().map(|browser| send_of(&browser.json(), json!({"payload": "kept"}))).collect();
    let kept = send_all(&mut client, &kept);
    for (id, recipients) in ids.iter().zip([1; 10].into_iter().chain([200])) {
        let ended = wait_status(&mut client, id, |status| status["pending"] == 0);
        assert_eq!(ended["expired"], recipients, "{ended}");
        let late = now() - seconds_of(&ended["expires"]);
        // A probe that is taken with less than a second left has expired already (promise 3).
        assert!((-1.0..60.0).contains(&late), "told {late} s after the deadline");
    }
    let expired: u64 = events(&mut client).iter().map(|event| event["count"].as_u64().unwrap_or(1)).sum();
    assert_eq!(expired, 210, "each is told once");
    assert_eq!(origin(&mut client, &mock.origin(0))["last_error"], "connect_refused");
    mock.resume_listening(0);
    for id in &kept {
        let ended = wait_ended(&mut client, id);
        assert_eq!((&ended["accepted"], &ended["retries"]), (&json!(1), &json!(0)), "{ended}");
    }
    let arrived: Vec<String> = mock.received().iter().map(|received| received.text()).collect();
    assert_eq!(arrived, vec!["kept"; 10]);
}

#[test]
fn at_is_kept_and_moves_the_deadline() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 102);
    let at = now() as u64 + 4;
    let options = json!({"payload": "later", "at": rfc3339(at), "ttl": 100});
    let single = client.ok(&send_of(&browsers[0].json(), options.clone()));
    let list = client.ok(&list_of(&browsers[1..101], options));
    let past = client.ok(&send_of(&browsers[101].json(), json!({"payload": "past", "at": rfc3339(at - 1_000), "ttl": 100})));
    assert_eq!((&single["state"], &list["state"]), (&json!("scheduled"), &json!("scheduled")));
    for reply in [&single, &list] {
        assert_eq!(seconds_of(&reply["expires"]), (at + 100) as f64);
        assert_eq!(status(&mut client, id_of(reply))["state"], "scheduled");
    }
    wait_ended(&mut client, &id_of(&past));
    assert!(time(&mock.received_by(&browsers[101])[0]) < at as f64, "in the past means now");
    for reply in [&single, &list] {
        let ended = wait_ended(&mut client, &id_of(reply));
        assert_eq!(ended["accepted"], ended["recipients"], "{ended}");
    }
    for received in mock.received().iter().filter(|received| received.text() == "later") {
        assert!(time(received) >= at as f64, "{} s too early", at as f64 - time(received));
        assert!(received.ttl.is_some_and(|ttl| (80..=100).contains(&ttl)), "{:?}", received.ttl);
    }
    assert_eq!(mock.counters().accepted, 102);
}

#[test]
fn ttl_0_is_one_attempt() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config.set("deliver.timeout", 1).set("retry.min", 0.1).set("retry.max", 0.2));
    let mut client = daemon.client();
    let faults = [
        Fault::from(Fault::status(500)),
        Fault::status(429).retry_after(1).into(),
        Fault::status(401).text("invalid JWT provided").into(),
        Fault::Stall,
        Fault::Reset(8),
        Fault::Close,
        // Condemns the origin, and was the attempt all the same.
        Fault::status(503).retry_after(2).into(),
    ];
    let browsers = mock.subscribe(0, faults.len() + 1);
    for (browser, fault) in browsers.iter().zip(faults) {
        mock.set_fault_times(of(&browser.token), fault, 1);
        let id = send(&mut client, browser, json!({"payload": "now", "ttl": 0}));
        let ended = wait_ended(&mut client, &id);
        assert_eq!(ended["expired"], 1, "{ended}");
        let event = event_of(&mut client, &id);
        assert_eq!(event["reason"], "ttl_zero_one_attempt", "{event}");
        // A good answer in between, so that the faults are not taken for mostly 5xx.
        for other in mock.subscribe(0, 2) {
            let id = send(&mut client, &other, json!({"payload": "in between"}));
            wait_ended(&mut client, &id);
        }
        let attempts = mock.received_by(browser);
        assert_eq!((attempts.len(), attempts[0].ttl), (1, Some(0)));
    }
    let good = browsers.last().expect("one is left");
    let id = send(&mut client, good, json!({"payload": "now", "ttl": 0}));
    assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
    assert_eq!(mock.received_by(good)[0].ttl, Some(0));
}

#[test]
fn a_refused_stream_is_no_attempt_of_ttl_0() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config);
    let mut client = daemon.client();
    let browser = &mock.subscribe(0, 1)[0];
    mock.set_fault_times(of(&browser.token), Fault::Reset(7), 2);
    let id = send(&mut client, browser, json!({"payload": "now", "ttl": 0}));
    let ended = wait_ended(&mut client, &id);
    assert_eq!((&ended["accepted"], &ended["retries"]), (&json!(1), &json!(0)), "{ended}");
    assert_eq!(mock.received_by(browser).len(), 3);
}

#[test]
fn ttl_0_leaves_within_its_patience_or_never() {
    let mock = mock(2);
    let mut daemon = daemon(&mock, |config| config.set("messages.ttl0_patience", 1));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 3);
    mock.stop_listening(0);
    let id = send(&mut client, &browsers[0], json!({"payload": "never", "ttl": 0}));
    let ended = wait_ended(&mut client, &id);
    assert_eq!(ended["expired"], 1, "{ended}");
    mock.resume_listening(0);
    let marker = send(&mut client, &browsers[1], json!({"payload": "marker"}));
    wait_ended(&mut client, &marker);
    assert_eq!(mock.received_by(&browsers[0]).len(), 0);

    daemon.reconfigure(|config| config.set("messages.ttl0_patience", 60));
    daemon.restart().expect("it starts again");
    let mut client = daemon.client();
    mock.stop_listening(0);
    let id = send(&mut client, &browsers[2], json!({"payload": "in time", "ttl": 0}));
    wait_origin(&mut client, &mock.origin(0), "closed");
    mock.resume_listening(0);
    let ended = wait_ended(&mut client, &id);
    assert_eq!((&ended["accepted"], mock.received_by(&browsers[2])[0].ttl), (&json!(1), Some(0)), "{ended}");
}
