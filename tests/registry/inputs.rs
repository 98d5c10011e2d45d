//! Every operation's bad inputs: a code and the field, and the connection lives on.

use serde_json::{Value, json};

use crate::support::{start, subscribe};

#[test]
fn each_bad_input_is_named() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    let id = subscribe(&mut client, &browsers[0], json!({"account": "alice"}));
    let good = browsers[1].json();
    let with = |path: &str, value: Value| {
        let mut subscription = good.clone();
        *subscription.pointer_mut(path).expect("a member") = value;
        subscription
    };
    let unknown = "A".repeat(16);
    let long = "x".repeat(200);
    let many: Vec<String> = (0..65).map(|number| format!("tag-{number}")).collect();
    let ulid = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    let cases = [
        // subscribe
        (json!({"op": "subscribe"}), "missing_field", "subscription"),
        (json!({"op": "subscribe", "subscription": "x"}), "invalid_field", "subscription"),
        (json!({"op": "subscribe", "subscription": {}}), "missing_field", "subscription.endpoint"),
        (
            json!({"op": "subscribe", "subscription": with("/endpoint", json!("http://127.0.0.1/x"))}),
            "endpoint_refused",
            "subscription.endpoint",
        ),
        (
            json!({"op": "subscribe", "subscription": with("/endpoint", json!("https://example.com/x"))}),
            "endpoint_refused",
            "subscription.endpoint",
        ),
        (
            json!({"op": "subscribe", "subscription": with("/keys/p256dh", json!("AAAA"))}),
            "invalid_field",
            "subscription.keys.p256dh",
        ),
        (json!({"op": "subscribe", "subscription": with("/keys/auth", json!(5))}), "invalid_field", "subscription.keys.auth"),
        (json!({"op": "subscribe", "subscription": good, "tag": "x"}), "unknown_field", "tag"),
        (json!({"op": "subscribe", "subscription": good, "app": "nothing"}), "invalid_field", "app"),
        (json!({"op": "subscribe", "subscription": good, "account": ""}), "invalid_field", "account"),
        (json!({"op": "subscribe", "subscription": good, "account": long}), "invalid_field", "account"),
        (json!({"op": "subscribe", "subscription": good, "account": 5}), "invalid_field", "account"),
        (json!({"op": "subscribe", "subscription": good, "name": long}), "invalid_field", "name"),
        (json!({"op": "subscribe", "subscription": good, "scopes": "news"}), "invalid_field", "scopes"),
        (json!({"op": "subscribe", "subscription": good, "scopes": ["news", ""]}), "invalid_field", "scopes[1]"),
        (json!({"op": "subscribe", "subscription": good, "tags": {}}), "invalid_field", "tags"),
        (json!({"op": "subscribe", "subscription": good, "tags": ["a", 5]}), "invalid_field", "tags[1]"),
        (json!({"op": "subscribe", "subscription": good, "tags": ["a", long]}), "invalid_field", "tags[1]"),
        (json!({"op": "subscribe", "subscription": good, "tags": many}), "invalid_field", "tags"),
        (json!({"op": "subscribe", "subscription": good, "attributes": ["a"]}), "invalid_field", "attributes"),
        (json!({"op": "subscribe", "subscription": good, "attributes": {"a": ["b"]}}), "invalid_field", "attributes.a"),
        (json!({"op": "subscribe", "subscription": good, "attributes": {"a": "x".repeat(5_000)}}), "invalid_field", "attributes"),
        (json!({"op": "subscribe", "subscription": good, "replaces": 7}), "invalid_field", "replaces"),
        (json!({"op": "subscribe", "subscription": good, "confirm": "hello"}), "invalid_field", "confirm"),
        (json!({"op": "subscribe", "subscription": good, "confirm": {"title": "x"}}), "unknown_field", "confirm.title"),
        (
            json!({"op": "subscribe", "subscription": good, "confirm": {"payload": "x".repeat(4_000)}}),
            "payload_too_large",
            "confirm.payload",
        ),
        // update_subscription
        (json!({"op": "update_subscription"}), "missing_field", "subscription_id"),
        (json!({"op": "update_subscription", "subscription_id": "?"}), "invalid_field", "subscription_id"),
        (json!({"op": "update_subscription", "subscription_id": unknown, "enabled": true}), "not_found", "subscription_id"),
        (json!({"op": "update_subscription", "subscription_id": id, "enabled": "yes"}), "invalid_field", "enabled"),
        (json!({"op": "update_subscription", "subscription_id": id, "endpoint": "x"}), "unknown_field", "endpoint"),
        (json!({"op": "update_subscription", "subscription_id": id, "tags": [""]}), "invalid_field", "tags[0]"),
        // unsubscribe, subscription
        (json!({"op": "unsubscribe"}), "missing_field", "subscription_id"),
        (json!({"op": "unsubscribe", "subscription_id": 5}), "invalid_field", "subscription_id"),
        (json!({"op": "unsubscribe", "subscription_id": id, "endpoint": browsers[0].endpoint}), "invalid_field", "endpoint"),
        (json!({"op": "subscription"}), "missing_field", "subscription_id"),
        (json!({"op": "subscription", "subscription_id": unknown}), "not_found", "subscription_id"),
        (json!({"op": "subscription", "endpoint": browsers[1].endpoint}), "not_found", "subscription_id"),
        (json!({"op": "subscription", "subscription_id": id, "reveal": 1}), "invalid_field", "reveal"),
        // account, presence, mark_read
        (json!({"op": "account"}), "missing_field", "account"),
        (json!({"op": "account", "account": "alice", "enabled": 1}), "invalid_field", "enabled"),
        (json!({"op": "presence", "account": "alice"}), "missing_field", "state"),
        (json!({"op": "presence", "state": "online"}), "missing_field", "account"),
        (json!({"op": "presence", "account": "alice", "state": "away"}), "invalid_field", "state"),
        (json!({"op": "presence", "account": "alice", "state": "online", "lease": 0}), "invalid_field", "lease"),
        (json!({"op": "presence", "account": "alice", "state": "online", "lease": -1}), "invalid_field", "lease"),
        (json!({"op": "presence", "account": "alice", "state": "online", "lease": 1e9}), "invalid_field", "lease"),
        (json!({"op": "presence", "account": "alice", "state": "online", "session": long}), "invalid_field", "session"),
        (json!({"op": "mark_read", "account": "alice"}), "missing_field", "message_id"),
        (json!({"op": "mark_read", "account": "alice", "message_id": "x"}), "invalid_field", "message_id"),
        (json!({"op": "mark_read", "account": "alice", "message_id": ulid, "topic": "x"}), "invalid_field", "topic"),
        (json!({"op": "mark_read", "topic": "x"}), "missing_field", "account"),
        // list_subscriptions, count
        (json!({"op": "list_subscriptions", "account": "alice", "segment": {"all": true}}), "invalid_field", "segment"),
        (json!({"op": "list_subscriptions", "limit": 0}), "invalid_field", "limit"),
        (json!({"op": "list_subscriptions", "after": "?"}), "invalid_field", "after"),
        (json!({"op": "count", "segment": {}}), "invalid_field", "segment"),
        (json!({"op": "count", "segment": {"all": false}}), "invalid_field", "segment.all"),
        (json!({"op": "count", "segment": {"tag": "x"}}), "unknown_field", "segment.tag"),
        (json!({"op": "count", "segment": {"tags": {}}}), "invalid_field", "segment"),
        (json!({"op": "count", "segment": {"tags": {"some": ["a"]}}}), "unknown_field", "segment.tags.some"),
        (json!({"op": "count", "segment": {"tags": {"any": []}}}), "invalid_field", "segment.tags.any"),
        (json!({"op": "count", "segment": {"tags": {"any": ["a", 1]}}}), "invalid_field", "segment.tags.any[1]"),
        (json!({"op": "count", "segment": {"attributes": {"a": {}}}}), "invalid_field", "segment.attributes.a"),
        (json!({"op": "count", "scope": 5}), "invalid_field", "scope"),
        (json!({"op": "count", "app": "nothing"}), "invalid_field", "app"),
        // send
        (json!({"op": "send", "payload": "x", "to": {"segment": {}}}), "invalid_field", "to.segment"),
        (json!({"op": "send", "payload": "x", "to": {"segment": {"all": true, "tgas": {}}}}), "unknown_field", "to.segment.tgas"),
        (json!({"op": "send", "payload": "x", "to": {"subscription_ids": []}}), "invalid_field", "to.subscription_ids"),
        (json!({"op": "send", "payload": "x", "to": {"subscription_ids": [id, "?"]}}), "invalid_field", "to.subscription_ids[1]"),
        (json!({"op": "send", "payload": "x", "to": {"accounts": []}}), "invalid_field", "to.accounts"),
        (json!({"op": "send", "payload": "x", "to": {"accounts": ["a", ""]}}), "invalid_field", "to.accounts[1]"),
        (json!({"op": "send", "payload": "x", "to": {"accounts": ["a"], "devices": "some"}}), "invalid_field", "to.devices"),
        (
            json!({"op": "send", "payload": "x", "to": {"subscription_ids": [id], "devices": "all"}}),
            "invalid_field",
            "to.devices",
        ),
        (json!({"op": "send", "payload": "x", "to": {"accounts": ["a"], "segment": {"all": true}}}), "invalid_field", "to"),
        (json!({"op": "send", "payload": "x", "to": {"segment": {"all": true}}, "when": "offline"}), "invalid_field", "when"),
        (json!({"op": "send", "payload": "x", "to": {"accounts": ["a"]}, "when": "away"}), "invalid_field", "when"),
        (json!({"op": "send", "payload": "x", "to": {"accounts": ["a"]}, "fallback": {}}), "missing_field", "fallback.after"),
        (
            json!({"op": "send", "payload": "x", "to": {"accounts": ["a"]}, "fallback": {"after": -1}}),
            "invalid_field",
            "fallback.after",
        ),
        (json!({"op": "send", "payload": "x", "to": {"accounts": ["a"]}, "receipts": "yes"}), "invalid_field", "receipts"),
        (json!({"op": "send", "payload": "x", "to": {"accounts": ["a"]}, "scope": ""}), "invalid_field", "scope"),
        // test, feedback, erase
        (json!({"op": "test", "payload": "x"}), "missing_field", "subscription_ids"),
        (json!({"op": "test", "payload": "x", "account": "alice", "subscription_ids": [id]}), "invalid_field", "account"),
        (json!({"op": "test", "payload": "x", "account": "alice", "wait": 61}), "invalid_field", "wait"),
        (json!({"op": "feedback", "type": "shown"}), "missing_field", "receipt"),
        (json!({"op": "feedback", "receipt": 5, "type": "shown"}), "invalid_field", "receipt"),
        (json!({"op": "feedback", "receipt": "A".repeat(59)}), "missing_field", "type"),
        (json!({"op": "erase"}), "missing_field", "account"),
        (json!({"op": "erase", "account": "alice", "subscription_id": id}), "invalid_field", "subscription_id"),
        (json!({"op": "backup", "name": "../x"}), "invalid_field", "name"),
    ];
    let mut wrong = Vec::new();
    for (request, code, field) in cases {
        let reply = client.request(&request);
        let error = &reply["error"];
        if reply["ok"] != false || error["code"] != code || error["field"] != field || !error["message"].is_string() {
            wrong.push(format!("{code} {field} expected, {request} was answered {reply}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    // Nothing came of any of them.
    assert_eq!(client.ok(&json!({"op": "count"}))["count"], 1);
    assert_eq!(client.ok(&json!({"op": "account", "account": "alice"}))["enabled"], true);
    assert_eq!(mock.counters().requests, 0);
}
