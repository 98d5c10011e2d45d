//! Whoever could not be reached by push is told to the application, once, in time to write an e-mail instead.

use std::time::Duration;

use fanfare_loadtest::client::Client;
use fanfare_loadtest::mock::Fault;
use serde_json::{Value, json};

use crate::support::{answer, events, now, send, start, subscribe, wait_ended, wait_events};

fn unreachable(client: &mut Client) -> Vec<Value> {
    events(client, json!({"types": ["unreachable"]}))
}

#[test]
fn an_account_without_a_browser_is_told_at_once() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    subscribe(&mut client, &browser, json!({"account": "alice"}));
    let began = now();
    let more = json!({"fallback": {"after": 3_600}, "ref": "order 7", "label": "orders"});
    let id = send(&mut client, json!({"accounts": ["alice", "nobody"]}), more);
    let told = wait_events(&mut client, json!({"types": ["unreachable"]}), 1);
    assert!(now() - began < 30.0, "at once");
    assert_eq!(told.len(), 1, "{told:?}");
    for (name, wanted) in
        [("account", json!("nobody")), ("message_id", json!(id)), ("message_ref", json!("order 7")), ("label", json!("orders"))]
    {
        assert_eq!(told[0][name], wanted, "{told:?}");
    }
    wait_ended(&mut client, &id);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(unreachable(&mut client).len(), 1, "who was reached is not told");
}

#[test]
fn nothing_accepted_in_time_is_told_once_an_account() {
    let (mock, mut daemon) = start(|config| config.set("retry.min", 0.1).set("retry.max", 0.3));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 5);
    // Alice has two browsers, of which one is reached; bob two that say "later"; carol one that is gone.
    for (browser, account) in browsers.iter().zip(["alice", "alice", "bob", "bob", "carol"]) {
        subscribe(&mut client, browser, json!({"account": account}));
    }
    for browser in [&browsers[1], &browsers[2], &browsers[3]] {
        answer(&mock, browser, Fault::status(429).retry_after(3_600));
    }
    answer(&mock, &browsers[4], Fault::status(410));
    let began = now();
    let id = send(&mut client, json!({"accounts": ["alice", "bob", "carol"]}), json!({"fallback": {"after": 2}, "ttl": 86_400}));
    let told = wait_events(&mut client, json!({"types": ["unreachable"], "message_id": id}), 2);
    let mut accounts: Vec<&str> = told.iter().filter_map(|event| event["account"].as_str()).collect();
    accounts.sort_unstable();
    assert_eq!(accounts, ["bob", "carol"], "{told:?}");
    assert!((1.5..30.0).contains(&(now() - began)));
    // A start does not tell it again.
    daemon.kill9();
    daemon.restart().expect("it starts");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(unreachable(&mut daemon.client()).len(), 2);
}

#[test]
fn it_survives_a_kill_before_its_time() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    subscribe(&mut client, &browser, json!({"account": "alice"}));
    answer(&mock, &browser, Fault::status(429).retry_after(3_600));
    send(&mut client, json!({"accounts": ["alice"]}), json!({"fallback": {"after": 3}}));
    daemon.kill9();
    daemon.restart().expect("it starts");
    let told = wait_events(&mut daemon.client(), json!({"types": ["unreachable"]}), 1);
    assert_eq!((told.len(), &told[0]["account"]), (1, &json!("alice")), "{told:?}");
}

#[test]
fn with_receipts_it_wants_to_be_shown() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    subscribe(&mut client, &browsers[0], json!({"account": "looks"}));
    subscribe(&mut client, &browsers[1], json!({"account": "sleeps"}));
    let more = json!({"fallback": {"after": 2}, "receipts": true, "payload": {"text": "hi"}});
    let id = send(&mut client, json!({"accounts": ["looks", "sleeps"]}), more);
    wait_ended(&mut client, &id);
    let payload: Value = serde_json::from_str(&mock.received_by(&browsers[0])[0].text()).expect("JSON");
    client.ok(&json!({"op": "feedback", "receipt": payload["receipt"], "type": "shown"}));
    let told = wait_events(&mut client, json!({"types": ["unreachable"]}), 1);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((unreachable(&mut client).len(), &told[0]["account"]), (1, &json!("sleeps")), "{told:?}");
}

#[test]
fn it_is_for_accounts() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    for to in [json!({"subscription": browser.json()}), json!({"segment": {"all": true}}), json!({"stream": true})] {
        let error = client.error(&json!({"op": "send", "to": to, "payload": "x", "fallback": {"after": 1}}));
        assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("fallback")), "{to}: {error}");
    }
}
