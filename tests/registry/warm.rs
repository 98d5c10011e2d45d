//! Key agreements are made ahead for whom a paused or scheduled message goes to, within `encrypt.warm_memory`, used once, and gone with
//! their message. The mock opens every body with the browser's own key.

use std::fs;
use std::time::Duration;

use fanfare_loadtest::daemon::Daemon;
use fanfare_loadtest::mock::Mock;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    PATIENCE, in_seconds, number, reached, send, start, status, subscribe, subscribe_all, texts, wait, wait_ended,
};

fn all() -> Value {
    json!({"segment": {"all": true}})
}

fn secrets(daemon: &Daemon) -> u64 {
    daemon.metric("fanfare_encrypt_warm_entries{kind=\"secret\"}").expect("metrics") as u64
}

fn hits(daemon: &Daemon) -> u64 {
    daemon.metric("fanfare_encrypt_warm_hits_total{kind=\"secret\"}").expect("metrics") as u64
}

fn bytes(daemon: &Daemon) -> u64 {
    daemon.metric("fanfare_encrypt_warm_bytes").expect("metrics") as u64
}

/// Metrics are set every second.
fn become_equal(wanted: u64, now: impl Fn() -> u64) {
    assert!(wait(PATIENCE, || now() == wanted), "{}, not {wanted}", now());
}

fn no_rule_is_broken(mock: &Mock) {
    assert_eq!(mock.counters().violation_count, 0, "{:?}", mock.counters().violations);
}

#[test]
fn a_paused_campaign_is_sent_with_what_was_made_ahead() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let (here, there) = (mock.subscribe(0, 1_500), mock.subscribe(1, 700));
    subscribe_all(&mut client, &here, |number| json!({"tags": [if number < 1_000 { "news" } else { "sport" }]}));
    subscribe_all(&mut client, &there, |_| json!({"tags": ["news"]}));
    let id = send(&mut client, json!({"segment": {"tags": {"any": ["news"]}}}), json!({"paused": true}));
    become_equal(1_700, || secrets(&daemon));
    // Whoever comes before it begins is in it.
    let late = mock.subscribe(1, 10);
    subscribe_all(&mut client, &late, |_| json!({"tags": ["news"]}));
    become_equal(1_710, || secrets(&daemon));
    let (counted, at_least) = (bytes(&daemon), 1_710 * 160);
    assert!(counted > at_least, "{counted} bytes are told for 1,710 of 160");

    client.ok(&json!({"op": "resume", "message_id": id}));
    let ended = wait_ended(&mut client, &id);
    assert_eq!((number(&ended, "accepted"), number(&ended, "recipients")), (1_710, 1_710), "{ended}");
    assert_eq!(reached(&mock, &here), (0..1_000).collect::<Vec<_>>());
    assert_eq!((reached(&mock, &there).len(), reached(&mock, &late).len()), (700, 10));
    no_rule_is_broken(&mock);
    become_equal(1_710, || hits(&daemon));
    assert_eq!(secrets(&daemon), 0, "each was used up");
}

#[test]
fn a_campaign_that_is_paused_on_its_way_is_warm_from_there() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 1_500);
    subscribe_all(&mut client, &browsers, |_| json!({}));
    let id = send(&mut client, all(), json!({"rate": 500, "label": "slow"}));
    assert!(mock.wait_received(100, PATIENCE));
    client.ok(&json!({"op": "pause", "label": "slow"}));
    // What was in flight is let finish.
    std::thread::sleep(Duration::from_millis(500));
    let sent = status(&mut client, &id)["accepted"].as_u64().expect("a number");
    assert!(sent < 1_400);
    // Those of a run that a worker had when it was paused wait by themselves, and have none.
    let (most, least) = (1_500 - sent, 1_500 - sent - 100);
    assert!(wait(PATIENCE, || secrets(&daemon) >= least), "{}, not {least}", secrets(&daemon));
    std::thread::sleep(Duration::from_secs(3));
    let made = secrets(&daemon);
    assert!(made <= most, "{made} for {most}");
    client.ok(&json!({"op": "resume", "label": "slow"}));
    client.ok(&json!({"op": "resume", "message_id": id, "rate": 5_000}));
    wait_ended(&mut client, &id);
    assert_eq!(reached(&mock, &browsers).len(), 1_500);
    no_rule_is_broken(&mock);
    become_equal(made, || hits(&daemon));
}

#[test]
fn a_list_and_a_scheduled_message_are_warm_too() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 600);
    let raw: Vec<Value> = browsers.iter().map(|browser| browser.json()).collect();
    let list = send(&mut client, json!({"subscriptions": raw}), json!({"paused": true}));
    become_equal(600, || secrets(&daemon));
    become_equal(0, || daemon.metric("fanfare_batches").expect("metrics") as u64);
    let registered = mock.subscribe(0, 200);
    subscribe_all(&mut client, &registered, |_| json!({}));
    let scheduled = send(&mut client, all(), json!({"at": in_seconds(10.0)}));
    become_equal(800, || secrets(&daemon));
    client.ok(&json!({"op": "resume", "message_id": list}));
    wait_ended(&mut client, &list);
    wait_ended(&mut client, &scheduled);
    assert_eq!((reached(&mock, &browsers).len(), reached(&mock, &registered).len()), (600, 200));
    no_rule_is_broken(&mock);
    become_equal(800, || hits(&daemon));
}

#[test]
fn a_changed_key_is_not_served_an_old_secret() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 3);
    // The first one's endpoint, with another one's keys.
    let mut mixed = browsers[0].json();
    mixed["keys"]["p256dh"] = browsers[1].json()["keys"]["p256dh"].clone();
    client.ok(&json!({"op": "subscribe", "subscription": mixed}));
    subscribe(&mut client, &browsers[2], json!({}));
    let id = send(&mut client, all(), json!({"paused": true}));
    become_equal(2, || secrets(&daemon));
    subscribe(&mut client, &browsers[0], json!({}));
    client.ok(&json!({"op": "resume", "message_id": id}));
    wait_ended(&mut client, &id);
    assert_eq!((texts(&mock, &browsers[0]), texts(&mock, &browsers[2])), (vec!["news".to_owned()], vec!["news".to_owned()]));
    no_rule_is_broken(&mock);
    become_equal(1, || hits(&daemon));
    become_equal(0, || secrets(&daemon));
}

#[test]
fn what_ends_takes_its_secrets_along() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    subscribe_all(&mut client, &mock.subscribe(0, 300), |_| json!({}));
    let cancelled = send(&mut client, all(), json!({"paused": true}));
    let expired = send(&mut client, all(), json!({"paused": true, "ttl": 20}));
    become_equal(600, || secrets(&daemon));
    client.ok(&json!({"op": "cancel", "message_id": cancelled}));
    become_equal(300, || secrets(&daemon));
    become_equal(0, || secrets(&daemon));
    assert_eq!(status(&mut client, &expired)["accepted"], 0);
    assert_eq!((hits(&daemon), mock.counters().requests), (0, 0));
}

#[test]
fn nothing_is_made_ahead_for_a_message_without_body() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 300);
    subscribe_all(&mut client, &browsers, |_| json!({}));
    let list: Vec<Value> = browsers.iter().map(|browser| browser.json()).collect();
    let bodiless =
        [all(), json!({"subscriptions": list})].map(|to| send(&mut client, to, json!({"paused": true, "payload": null})));
    let with_body = send(&mut client, all(), json!({"paused": true}));
    // Of three paused messages, the one that has a body.
    become_equal(300, || secrets(&daemon));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(secrets(&daemon), 300);
    for id in bodiless {
        client.ok(&json!({"op": "resume", "message_id": id}));
        assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 300);
    }
    assert_eq!((secrets(&daemon), hits(&daemon)), (300, 0));
    client.ok(&json!({"op": "cancel", "message_id": with_body}));
    no_rule_is_broken(&mock);
}

#[test]
fn the_bound_is_kept_also_a_new_one_and_the_nearest_goes_first() {
    let (mock, daemon) = start(|config| config.set("encrypt.warm_memory", 2));
    let mut client = daemon.client();
    for origin in [0, 1] {
        let (browsers, tag) = (mock.subscribe(origin, 7_000), json!({"tags": [format!("t{origin}")]}));
        subscribe_all(&mut client, &browsers, |_| tag.clone());
    }
    let tagged = |tag: &str| json!({"segment": {"tags": {"any": [tag]}}});
    let later = send(&mut client, tagged("t0"), json!({"at": in_seconds(3_600.0)}));
    become_equal(7_000, || secrets(&daemon));
    let sooner = send(&mut client, tagged("t1"), json!({"at": in_seconds(1_800.0)}));
    assert!(wait(PATIENCE, || secrets(&daemon) != 7_000));
    std::thread::sleep(Duration::from_secs(3));
    let (secrets_now, bytes_now) = (secrets(&daemon), bytes(&daemon));
    assert!((7_500..10_000).contains(&secrets_now) && (2_000_000..=2 << 20).contains(&bytes_now), "{secrets_now} in {bytes_now}");
    // What is left when the later one is gone are all of the sooner one's.
    client.ok(&json!({"op": "cancel", "message_id": later}));
    become_equal(7_000, || secrets(&daemon));

    reload(&daemon, 2, 1);
    assert!(wait(PATIENCE, || (1..5_500).contains(&secrets(&daemon))), "{}", secrets(&daemon));
    assert!(bytes(&daemon) <= 1 << 20);
    reload(&daemon, 1, 0);
    become_equal(0, || secrets(&daemon));
    become_equal(0, || bytes(&daemon));
    let held = send(&mut client, tagged("t0"), json!({"paused": true}));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((secrets(&daemon), bytes(&daemon)), (0, 0));
    client.ok(&json!({"op": "resume", "message_id": held}));
    assert_eq!(number(&wait_ended(&mut client, &held), "accepted"), 7_000);
    assert_eq!(status(&mut client, &sooner)["state"], "scheduled");
    no_rule_is_broken(&mock);
    assert_eq!(hits(&daemon), 0);
}

#[test]
fn what_is_due_goes_before_what_is_paused() {
    let (mock, daemon) = start(|config| config.set("encrypt.warm_memory", 1));
    let mut client = daemon.client();
    for origin in [0, 1] {
        let (browsers, tag) = (mock.subscribe(origin, 3_000), json!({"tags": [format!("t{origin}")]}));
        subscribe_all(&mut client, &browsers, |_| tag.clone());
    }
    let tagged = |tag: &str| json!({"segment": {"tags": {"any": [tag]}}});
    // Each has room for itself, both have not. A draft may lie for weeks.
    let draft = send(&mut client, tagged("t0"), json!({"paused": true}));
    become_equal(3_000, || secrets(&daemon));
    send(&mut client, tagged("t1"), json!({"at": in_seconds(3_600.0)}));
    assert!(wait(PATIENCE, || secrets(&daemon) > 3_500));
    std::thread::sleep(Duration::from_secs(3));
    let both = secrets(&daemon);
    client.ok(&json!({"op": "resume", "message_id": draft}));
    assert_eq!(number(&wait_ended(&mut client, &draft), "accepted"), 3_000);
    become_equal(both - 3_000, || hits(&daemon));
    become_equal(3_000, || secrets(&daemon));
    no_rule_is_broken(&mock);
}

#[test]
fn displaced_lists_keep_no_memory() {
    let (mock, daemon) = start(|config| config.set("encrypt.warm_memory", 1));
    let mut client = daemon.client();
    subscribe_all(&mut client, &mock.subscribe(0, 5_500), |_| json!({}));
    send(&mut client, all(), json!({"at": in_seconds(3_600.0)}));
    assert!(wait(PATIENCE, || secrets(&daemon) > 4_000));
    for sooner in 1..8u32 {
        send(&mut client, all(), json!({"at": in_seconds(3_600.0 - 60.0 * f64::from(sooner))}));
        std::thread::sleep(Duration::from_millis(1_500));
    }
    assert!(wait(PATIENCE, || secrets(&daemon) > 4_000), "{} in {}", secrets(&daemon), bytes(&daemon));
    assert!(bytes(&daemon) <= 1 << 20);
}

#[test]
fn an_urgent_message_does_not_wait_for_what_is_made_ahead() {
    let (mock, daemon) = start(|config| config.set("encrypt.threads", 1));
    let mut client = daemon.client();
    subscribe_all(&mut client, &mock.subscribe(0, 20_000), |_| json!({}));
    let visitor = &mock.subscribe(1, 1)[0];
    let urgent = |client: &mut fanfare_loadtest::client::Client| {
        send(client, json!({"subscription": visitor.json()}), json!({"urgency": "high"}))
    };
    let first = urgent(&mut client);
    wait_ended(&mut client, &first);
    send(&mut client, all(), json!({"paused": true}));
    assert!(wait(PATIENCE, || secrets(&daemon) > 0), "the only worker has begun");
    // Twenty thousand take the worker 0.2 s at the very least, and it is the only one.
    for round in 2..8 {
        urgent(&mut client);
        assert!(mock.wait_received(round, PATIENCE));
    }
    become_equal(20_000, || secrets(&daemon));
    no_rule_is_broken(&mock);
}

/// Changes `encrypt.warm_memory` of a running daemon.
fn reload(daemon: &Daemon, from: u64, to: u64) {
    let setting = |megabytes: u64| format!("warm_memory = {megabytes}\n");
    let text = fs::read_to_string(daemon.config_path()).expect("the configuration");
    assert!(text.contains(&setting(from)));
    fs::write(daemon.config_path(), text.replace(&setting(from), &setting(to))).expect("it is written");
    daemon.signal(Signal::SIGHUP).expect("it runs");
}
