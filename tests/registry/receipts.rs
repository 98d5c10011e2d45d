//! A receipt says once that a notification was shown, clicked or dismissed; nobody can make one up.

use fanfare_loadtest::client::Client;
use fanfare_loadtest::mock::{Mock, Subscription};
use serde_json::{Value, json};

use crate::support::{events, id_of, number, send, start, status, subscribe, wait, wait_ended, wait_events};

fn notification(title: &str) -> Value {
    json!({"payload": null, "receipts": true, "notification": {"title": title, "navigate": "https://example.com/", "data": {"own": 1}}})
}

/// The payload that a browser had last.
fn payload(mock: &Mock, browser: &Subscription) -> Value {
    let received = mock.received_by(browser);
    serde_json::from_str(&received.last().expect("it had a message").text()).expect("it is JSON")
}

fn receipt(mock: &Mock, browser: &Subscription) -> String {
    let payload = payload(mock, browser);
    payload["notification"]["data"]["receipt"].as_str().unwrap_or_else(|| panic!("a receipt in {payload}")).to_owned()
}

fn feedback(receipt: &str, kind: &str) -> Value {
    json!({"op": "feedback", "receipt": receipt, "type": kind})
}

/// Counters come with a checkpoint.
fn wait_shown(client: &mut Client, id: &str, wanted: [u64; 3]) {
    let mut last = Value::Null;
    let met = wait(crate::support::PATIENCE, || {
        last = status(client, id);
        ["shown", "clicked", "dismissed"].map(|name| number(&last, name)) == wanted
    });
    assert!(met, "shown, clicked and dismissed should be {wanted:?}: {last}");
}

#[test]
fn each_kind_is_counted_once_a_recipient() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 3);
    for browser in &browsers {
        subscribe(&mut client, browser, json!({"account": "alice"}));
    }
    let id = send(&mut client, json!({"segment": {"all": true}}), notification("News"));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 3);
    let receipts: Vec<String> = browsers.iter().map(|browser| receipt(&mock, browser)).collect();
    assert!(receipts[0] != receipts[1] && receipts[1] != receipts[2]);
    assert_eq!(payload(&mock, &browsers[0])["notification"]["data"]["own"], 1, "the application's own data stays");
    for receipt in &receipts[..2] {
        for _ in 0..3 {
            client.ok(&feedback(receipt, "shown"));
        }
    }
    client.ok(&feedback(&receipts[0], "clicked"));
    client.ok(&feedback(&receipts[1], "dismissed"));
    wait_shown(&mut client, &id, [2, 1, 1]);
    // Also not after a start.
    daemon.kill9();
    daemon.restart().expect("it starts");
    let mut client = daemon.client();
    client.ok(&feedback(&receipts[0], "shown"));
    client.ok(&feedback(&receipts[2], "shown"));
    wait_shown(&mut client, &id, [3, 1, 1]);
    let shown = wait_events(&mut client, json!({"types": ["shown"], "message_id": id}), 3);
    let mut told: Vec<&str> = shown.iter().filter_map(|event| event["subscription_id"].as_str()).collect();
    let mut wanted: Vec<String> = browsers.iter().map(id_of).collect();
    told.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(told, wanted);
}

#[test]
fn an_object_payload_and_a_raw_subscription_have_one_too() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    let id = send(&mut client, json!({"subscription": browser.json()}), json!({"payload": {"text": "hi"}, "receipts": true}));
    wait_ended(&mut client, &id);
    let payload = payload(&mock, &browser);
    assert_eq!(payload["text"], "hi");
    client.ok(&feedback(payload["receipt"].as_str().expect("a receipt"), "clicked"));
    wait_shown(&mut client, &id, [0, 1, 0]);
}

#[test]
fn what_was_made_up_is_refused() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    let to = json!({"subscriptions": [browsers[0].json(), browsers[1].json()]});
    let id = send(&mut client, to, notification("News"));
    wait_ended(&mut client, &id);
    let (first, second) = (receipt(&mock, &browsers[0]), receipt(&mock, &browsers[1]));
    let refused = |client: &mut Client, receipt: &str| {
        let error = client.error(&feedback(receipt, "shown"));
        let code = error["code"].as_str().unwrap_or_default();
        assert!(["invalid_field", "not_found"].contains(&code) && error["field"] == "receipt", "{receipt}: {error}");
    };
    // Any changed character that changes a bit; the last one may have bits that mean nothing.
    for place in 0..first.len() - 1 {
        let mut forged = first.clone().into_bytes();
        forged[place] = if forged[place] == b'A' { b'B' } else { b'A' };
        refused(&mut client, &String::from_utf8(forged).expect("ASCII"));
    }
    // The head of one with the tail of the other, and other nonsense.
    let half = first.len() / 2;
    refused(&mut client, &format!("{}{}", &first[..half], &second[half..]));
    for nonsense in ["", "A", &first[1..], &format!("{first}A"), &"A".repeat(59), &"A".repeat(5_000), "łódź"] {
        refused(&mut client, nonsense);
    }
    let error = client.error(&feedback(&first, "liked"));
    assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("type")), "{error}");
    assert_eq!(number(&status(&mut client, &id), "shown"), 0);
    assert_eq!(events(&mut client, json!({"types": ["shown"]})), Vec::<Value>::new());
    client.ok(&feedback(&first, "shown"));
    wait_shown(&mut client, &id, [1, 0, 0]);
}

#[test]
fn a_stale_one_is_refused() {
    let (mock, daemon) = start(|config| config.set("messages.retention", 1));
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    let id = send(&mut client, json!({"subscription": browser.json()}), notification("News"));
    assert!(mock.wait_received(1, crate::support::PATIENCE));
    let receipt = receipt(&mock, &browser);
    let gone = wait(crate::support::PATIENCE + crate::support::PATIENCE, || {
        client.request(&json!({"op": "status", "message_id": id}))["error"]["code"] == "not_found"
    });
    assert!(gone, "the message is forgotten after its retention");
    assert_eq!(client.request(&feedback(&receipt, "shown"))["ok"], false);
}

#[test]
fn it_needs_a_body_that_can_hold_it() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    for body in [json!({"payload": "text"}), json!({"payload_base64": "AAAA"}), json!({"payload": [1]}), json!({})] {
        let request = crate::support::with(json!({"op": "send", "to": {"subscription": browser.json()}, "receipts": true}), body);
        let error = client.error(&request);
        assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("receipts")), "{request}: {error}");
    }
}
