//! A browser whose endpoint changes keeps what waits for it; one that changes hands does not show it to the other.

use std::time::Duration;

use fanfare_loadtest::mock::Fault;
use serde_json::{Value, json};

use crate::support::{
    answer, count, events, id_of, in_seconds, number, send, start, status, subscribe, subscription, texts, wait_ended,
    wait_events,
};

#[test]
fn what_waits_follows_to_the_new_endpoint() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 3);
    let first = subscribe(&mut client, &browsers[0], json!({"account": "alice", "tags": ["a"], "name": "phone"}));
    let at = in_seconds(2.0);
    let by_id = send(&mut client, json!({"subscription_ids": [first]}), json!({"at": at, "payload": "by id"}));
    let by_account = send(&mut client, json!({"accounts": ["alice"]}), json!({"at": at, "payload": "by account"}));
    let created = subscription(&mut client, &browsers[0])["created"].clone();
    // Once by endpoint, once by id.
    subscribe(&mut client, &browsers[1], json!({"replaces": browsers[0].endpoint}));
    subscribe(&mut client, &browsers[2], json!({"replaces": id_of(&browsers[1])}));
    for id in [&by_id, &by_account] {
        let ended = wait_ended(&mut client, id);
        assert_eq!(number(&ended, "accepted"), 1, "{ended}");
    }
    let mut got = texts(&mock, &browsers[2]);
    got.sort();
    assert_eq!(got, ["by account", "by id"]);
    assert_eq!((texts(&mock, &browsers[0]).len(), texts(&mock, &browsers[1]).len()), (0, 0));
    // It is the same subscription, with all it had.
    let now = subscription(&mut client, &browsers[2]);
    assert_eq!(
        (&now["account"], &now["tags"], &now["name"], &now["created"]),
        (&json!("alice"), &json!(["a"]), &json!("phone"), &created)
    );
    for old in &browsers[..2] {
        assert_eq!(client.error(&json!({"op": "subscription", "subscription_id": id_of(old)}))["code"], "not_found");
    }
    assert_eq!(count(&mut client, json!({"segment": {"tags": {"any": ["a"]}}})), 1);
}

#[test]
fn replacing_what_nobody_knows_is_a_new_subscription() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    let request = json!({"op": "subscribe", "subscription": browsers[0].json(), "replaces": browsers[1].endpoint});
    assert_eq!(client.ok(&request)["created"], true);
    assert_eq!(client.ok(&request)["created"], false, "a reply that was lost is asked for again");
    assert_eq!(count(&mut client, json!({})), 1);
}

#[test]
fn another_push_service_is_another_subscription() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let (old, new) = (mock.subscribe(0, 1).remove(0), mock.subscribe(1, 1).remove(0));
    let id = subscribe(&mut client, &old, json!({"account": "alice"}));
    let waiting = send(&mut client, json!({"subscription_ids": [id]}), json!({"at": in_seconds(1.5)}));
    subscribe(&mut client, &new, json!({"account": "alice", "replaces": old.endpoint}));
    let ended = wait_ended(&mut client, &waiting);
    assert_eq!((number(&ended, "accepted"), number(&ended, "skipped")), (0, 1), "{ended}");
    assert_eq!(mock.counters().requests, 0);
    assert_eq!(count(&mut client, json!({})), 1);
    let id = send(&mut client, json!({"accounts": ["alice"]}), json!({}));
    wait_ended(&mut client, &id);
    assert_eq!((texts(&mock, &old).len(), texts(&mock, &new).len()), (0, 1));
}

#[test]
fn a_late_410_for_the_old_endpoint_does_not_remove_the_new() {
    let (mock, daemon) = start(|config| config.set("retry.min", 0.1));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    let id = subscribe(&mut client, &browsers[0], json!({"account": "alice"}));
    answer(&mock, &browsers[0], Fault::status(410).delay(Duration::from_millis(1_500)));
    let sent = send(&mut client, json!({"subscription_ids": [id]}), json!({}));
    assert!(mock.wait_requests(1, Duration::from_secs(30)));
    subscribe(&mut client, &browsers[1], json!({"replaces": browsers[0].endpoint}));
    let ended = wait_ended(&mut client, &sent);
    assert_eq!((number(&ended, "accepted"), number(&ended, "gone")), (1, 0), "{ended}");
    assert_eq!(texts(&mock, &browsers[1]), ["news"]);
    assert_eq!(events(&mut client, json!({"types": ["gone"]})), Vec::<Value>::new());
    assert_eq!(count(&mut client, json!({})), 1);
    assert_eq!(subscription(&mut client, &browsers[1])["account"], "alice");
}

#[test]
fn a_moved_browser_does_not_show_what_was_for_its_former_account() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 4);
    for browser in &browsers {
        subscribe(&mut client, browser, json!({"account": "alice"}));
    }
    let secret = send(&mut client, json!({"accounts": ["alice"]}), json!({"at": in_seconds(1.5), "payload": "for alice"}));
    assert_eq!(number(&status(&mut client, &secret), "recipients"), 4);
    // Somebody else logs in, by either way; somebody logs out; one stays.
    subscribe(&mut client, &browsers[0], json!({"account": "bob"}));
    client.ok(&json!({"op": "update_subscription", "subscription_id": id_of(&browsers[1]), "account": "bob"}));
    client.ok(&json!({"op": "update_subscription", "subscription_id": id_of(&browsers[2]), "account": null}));
    let ended = wait_ended(&mut client, &secret);
    assert_eq!((number(&ended, "accepted"), number(&ended, "skipped")), (1, 3), "{ended}");
    let events = wait_events(&mut client, json!({"types": ["skipped"], "message_id": secret}), 3);
    assert!(events.iter().all(|event| event["reason"] == "moved"), "{events:?}");
    assert_eq!(mock.counters().requests, 1);
    assert_eq!(texts(&mock, &browsers[3]), ["for alice"]);
    // The browser is the new account's from now on; a message to the browser itself concerns no account.
    let id = send(&mut client, json!({"accounts": ["bob"]}), json!({"payload": "for bob"}));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 2);
    let id = send(&mut client, json!({"subscription_ids": [id_of(&browsers[2])]}), json!({"payload": "for the browser"}));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 1);
    let account = client.ok(&json!({"op": "account", "account": "alice"}));
    assert_eq!(account["subscriptions"].as_array().map(Vec::len), Some(1), "{account}");
}
