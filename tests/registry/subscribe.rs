//! `subscribe` is called on every page view: it creates, changes or leaves as it is, and costs nothing when nothing is new.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{Daemon, write_vapid_key};
use fanfare_loadtest::machine::written_bytes;
use serde_json::{Value, json};

use crate::support::{
    count, id_of, now, number, seconds_of, send, start, subscribe, subscription, texts, wait, wait_ended, with,
};

#[test]
fn what_is_not_given_stays_as_it_is() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    let began = now();
    let first = json!({
        "op": "subscribe", "subscription": browser.json(), "account": "alice", "name": "phone", "user_agent": "Browser/1.0",
        "scopes": ["news"], "tags": ["a", "b"], "attributes": {"lang": "pl", "age": 7},
    });
    assert_eq!(client.ok(&first)["created"], true);
    let second = json!({"op": "subscribe", "subscription": browser.json(), "tags": ["c"]});
    assert_eq!(client.ok(&second)["created"], false);
    daemon.kill9();
    daemon.restart().expect("it starts");
    let mut client = daemon.client();
    let told = subscription(&mut client, &browser);
    for (name, wanted) in [
        ("app", json!("default")),
        ("account", json!("alice")),
        ("name", json!("phone")),
        ("user_agent", json!("Browser/1.0")),
        ("enabled", json!(true)),
        ("scopes", json!(["news"])),
        ("tags", json!(["c"])),
        ("attributes", json!({"lang": "pl", "age": 7})),
        ("valid", json!("unknown")),
    ] {
        assert_eq!(told[name], wanted, "{name} in {told}");
    }
    for name in ["created", "seen"] {
        assert!((seconds_of(&told[name]) - began).abs() < 60.0, "{name} in {told}");
    }
    for secret in ["endpoint", "keys"] {
        assert!(told.get(secret).is_none_or(Value::is_null), "only with `reveal`: {told}");
    }
    let revealed = client.ok(&json!({"op": "subscription", "endpoint": browser.endpoint, "reveal": true}));
    assert_eq!(revealed["subscription"]["endpoint"], browser.endpoint, "{revealed}");
    assert_eq!(revealed["subscription"]["keys"], browser.json()["keys"], "{revealed}");
    // In `update_subscription` null clears.
    let cleared = client.ok(&json!({
        "op": "update_subscription", "subscription_id": id_of(&browser), "name": null, "scopes": null, "account": null, "tags": [],
    }));
    let told = &cleared["subscription"];
    assert_eq!(
        (&told["name"], &told["scopes"], &told["account"], &told["tags"]),
        (&Value::Null, &Value::Null, &Value::Null, &json!([]))
    );
    assert_eq!(told["attributes"], json!({"lang": "pl", "age": 7}), "{told}");
}

#[test]
fn new_keys_of_a_known_endpoint_are_used() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    let mut wrong = browsers[0].json();
    wrong["keys"] = browsers[1].json()["keys"].clone();
    client.ok(&json!({"op": "subscribe", "subscription": wrong}));
    assert_eq!(client.ok(&json!({"op": "subscribe", "subscription": browsers[0].json()}))["created"], false);
    let id = send(&mut client, json!({"subscription_ids": [id_of(&browsers[0])]}), json!({}));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 1);
    assert_eq!(texts(&mock, &browsers[0]), ["news"]);
    assert!(wait(Duration::from_secs(5), || subscription(&mut client, &browsers[0])["valid"] == true));
}

/// Length of the store's write-ahead logs, whichever they are.
fn log_bytes(daemon: &Daemon) -> u64 {
    let files = fs::read_dir(daemon.data_dir()).expect("the store can be listed").flatten();
    let logs = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "log"));
    logs.filter_map(|file| Some(file.metadata().ok()?.size())).sum()
}

#[test]
fn an_unchanged_one_writes_nothing() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 10);
    let request = |number: usize| {
        let more = json!({"account": "alice", "tags": ["b", "a"], "scopes": ["news"], "attributes": {"lang": "pl", "n": number}});
        with(json!({"op": "subscribe", "subscription": browsers[number].json()}), more)
    };
    for number in 0..10 {
        assert_eq!(client.ok(&request(number))["created"], true);
    }
    // What a write leaves to be done is done a moment later.
    std::thread::sleep(Duration::from_secs(1));
    client.ok(&json!({"op": "ping"}));
    let (log, written) = (log_bytes(&daemon), written_bytes(daemon.pid()));
    for turn in 0..1_000 {
        assert_eq!(client.ok(&request(turn % 10))["created"], false);
    }
    client.ok(&json!({"op": "ping"}));
    std::thread::sleep(Duration::from_secs(1));
    client.ok(&json!({"op": "ping"}));
    assert!(log_bytes(&daemon) <= log + 1_024, "the log grew from {log} to {}", log_bytes(&daemon));
    if let (Some(before), Some(after)) = (written, written_bytes(daemon.pid())) {
        assert!(after <= before + 65_536, "{} bytes were written", after - before);
    }
}

#[test]
fn a_confirmation_is_sent_once() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    let confirm = json!({"notification": {"title": "Welcome", "navigate": "https://example.com/"}});
    for created in [true, false, false] {
        let request = json!({"op": "subscribe", "subscription": browser.json(), "account": "alice", "confirm": confirm});
        assert_eq!(client.ok(&request)["created"], created);
    }
    assert!(mock.wait_received(1, Duration::from_secs(30)));
    std::thread::sleep(Duration::from_secs(1));
    let got: Vec<Value> = texts(&mock, &browser).iter().map(|text| serde_json::from_str(text).expect("JSON")).collect();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0]["notification"]["title"], "Welcome");
}

#[test]
fn an_expiration_time_is_obeyed() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    let mut passing = browsers[0].json();
    passing["expirationTime"] = json!(((now() + 2.0) * 1_000.0) as u64);
    client.ok(&json!({"op": "subscribe", "subscription": passing, "account": "alice"}));
    subscribe(&mut client, &browsers[1], json!({"account": "alice"}));
    let id = send(&mut client, json!({"accounts": ["alice"]}), json!({"payload": "in time"}));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 2);
    std::thread::sleep(Duration::from_millis(2_500));
    for to in [json!({"accounts": ["alice"]}), json!({"segment": {"all": true}})] {
        let id = send(&mut client, to.clone(), json!({"payload": "too late"}));
        assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 1, "{to}");
    }
    // By its id it is refused at once, or not sent.
    let reply = client.request(&json!({"op": "send", "to": {"subscription_ids": [id_of(&browsers[0])]}, "payload": "too late"}));
    if let Some(id) = reply["message_id"].as_str() {
        assert_eq!(number(&wait_ended(&mut client, id), "accepted"), 0);
    }
    assert_eq!(texts(&mock, &browsers[0]), ["in time"]);
    assert_eq!(texts(&mock, &browsers[1]), ["in time", "too late", "too late"]);
}

#[test]
fn an_account_has_so_many_browsers_and_no_more() {
    let (mock, daemon) = start(|config| config.set("registry.browsers_per_account", 3));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 5);
    for browser in &browsers[..3] {
        subscribe(&mut client, browser, json!({"account": "alice"}));
    }
    let fourth = json!({"op": "subscribe", "subscription": browsers[3].json(), "account": "alice"});
    assert_eq!(client.error(&fourth)["code"], "not_allowed");
    subscribe(&mut client, &browsers[4], json!({"account": "bob"}));
    let moved = json!({"op": "update_subscription", "subscription_id": id_of(&browsers[4]), "account": "alice"});
    assert_eq!(client.error(&moved)["code"], "not_allowed");
    // A known one is none more, and one that leaves makes room.
    subscribe(&mut client, &browsers[0], json!({"account": "alice", "tags": ["a"]}));
    client.ok(&json!({"op": "unsubscribe", "endpoint": browsers[0].endpoint}));
    assert_eq!(client.ok(&fourth)["created"], true);
    let listed = client.ok(&json!({"op": "list_subscriptions", "account": "alice"}));
    assert_eq!(listed["subscriptions"].as_array().map(Vec::len), Some(3), "{listed}");
}

#[test]
fn the_latest_device_is_the_one_seen_last() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 3);
    for browser in &browsers {
        subscribe(&mut client, browser, json!({"account": "alice"}));
        std::thread::sleep(Duration::from_millis(1_100));
    }
    let id = send(&mut client, json!({"accounts": ["alice"], "devices": "latest"}), json!({}));
    let ended = wait_ended(&mut client, &id);
    assert_eq!((number(&ended, "recipients"), number(&ended, "accepted")), (1, 1), "{ended}");
    assert_eq!(texts(&mock, &browsers[2]), ["news"]);
}

#[test]
fn a_test_tells_what_came_of_it() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    for browser in &browsers {
        subscribe(&mut client, browser, json!({"account": "alice"}));
    }
    crate::support::answer(&mock, &browsers[1], fanfare_loadtest::mock::Fault::status(410));
    let reply = client.ok(&json!({"op": "test", "account": "alice", "payload": "test", "wait": 30}));
    assert!(reply["message_id"].is_string(), "{reply}");
    let results = reply["results"].as_array().unwrap_or_else(|| panic!("results in {reply}"));
    assert_eq!(results.len(), 2, "{reply}");
    assert!(results.iter().any(|result| result["subscription_id"] == id_of(&browsers[0])), "{reply}");
    assert_eq!(texts(&mock, &browsers[0]), ["test"]);
    let reply = client.ok(&json!({"op": "test", "subscription_ids": [id_of(&browsers[0])], "payload": "again"}));
    assert!(reply.get("results").is_none_or(Value::is_null), "only with `wait`: {reply}");
    assert!(wait(Duration::from_secs(30), || texts(&mock, &browsers[0]).len() == 2));
}

#[test]
fn apps_know_nothing_of_each_other() {
    let keys = tempfile::tempdir().expect("a directory");
    let (key, socket) = (keys.path().join("shop.pem"), keys.path().join("shop.sock"));
    write_vapid_key(&key).expect("a key");
    let (mock, daemon) = start(|config| {
        config
            .set("apps.shop.vapid_keys", json!([key.to_string_lossy()]))
            .set("apps.shop.subject", "mailto:shop@example.com")
            .set("sockets.shop.path", socket.to_string_lossy().into_owned())
            .set("sockets.shop.apps", json!(["shop"]))
    });
    let mut operator = daemon.client();
    let mut shop = Client::connect(&socket).expect("the shop's socket");
    let browsers = mock.subscribe(0, 2);
    let id = subscribe(&mut operator, &browsers[0], json!({"account": "alice", "tags": ["a"]}));
    subscribe(&mut shop, &browsers[1], json!({"account": "alice", "tags": ["a"]}));
    for request in [
        json!({"op": "subscription", "subscription_id": id}),
        json!({"op": "subscription", "endpoint": browsers[0].endpoint}),
        json!({"op": "update_subscription", "subscription_id": id, "enabled": false}),
    ] {
        assert_eq!(shop.error(&request)["code"], "not_found", "{request}");
    }
    assert_ne!(shop.request(&json!({"op": "unsubscribe", "subscription_id": id}))["removed"], true);
    assert_eq!(count(&mut shop, json!({"segment": {"tags": {"any": ["a"]}}})), 1);
    assert_eq!(count(&mut operator, json!({"app": "default"})), 1);
    assert_eq!(count(&mut operator, json!({"app": "shop"})), 1);
    let listed = shop.ok(&json!({"op": "list_subscriptions", "segment": {"all": true}}));
    assert_eq!(listed["subscriptions"].as_array().map(Vec::len), Some(1), "{listed}");
    for to in [json!({"segment": {"all": true}}), json!({"accounts": ["alice"]})] {
        let sent = send(&mut shop, to.clone(), json!({}));
        assert_eq!(number(&wait_ended(&mut shop, &sent), "recipients"), 1, "{to}");
    }
    assert_eq!((texts(&mock, &browsers[0]).len(), texts(&mock, &browsers[1]).len()), (0, 2));
    shop.ok(&json!({"op": "account", "account": "alice", "enabled": false}));
    let sent = send(&mut operator, json!({"accounts": ["alice"]}), json!({"app": "default"}));
    assert_eq!(number(&wait_ended(&mut operator, &sent), "accepted"), 1, "it is another alice");
}
