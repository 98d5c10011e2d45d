//! A message for those who are away waits as long as the page shows it already, and reaches each account once, and only then.

use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::Daemon;
use fanfare_loadtest::mock::{Mock, Subscription};
use serde_json::{Value, json};

use crate::support::{number, seconds_of, send, start, status, subscribe, texts, wait, wait_ended, wait_events};

/// `presence.grace` of these tests, in seconds.
const GRACE: f64 = 1.0;

/// A daemon that has run for longer than the grace: from then on who was never seen is offline.
fn settled() -> (Mock, Daemon) {
    let (mock, daemon) = start(|config| config.set("presence.grace", GRACE));
    std::thread::sleep(Duration::from_secs_f64(GRACE + 0.5));
    (mock, daemon)
}

/// A browser of an account.
fn visitor(client: &mut Client, mock: &Mock, account: &str) -> Subscription {
    let browser = mock.subscribe(0, 1).remove(0);
    subscribe(client, &browser, json!({"account": account}));
    browser
}

fn present(client: &mut Client, account: &str, state: &str, more: Value) -> Value {
    let request = crate::support::with(json!({"op": "presence", "account": account, "state": state}), more);
    client.ok(&request)
}

fn when_offline(client: &mut Client, account: &str, more: Value) -> String {
    send(client, json!({"accounts": [account]}), crate::support::with(json!({"when": "offline"}), more))
}

/// Seconds from `begin` until the browser had a message.
fn until_it_came(mock: &Mock, browser: &Subscription, begin: Instant) -> f64 {
    assert!(wait(Duration::from_secs(30), || !texts(mock, browser).is_empty()), "it never came");
    begin.elapsed().as_secs_f64()
}

#[test]
fn it_waits_while_the_account_is_online_and_comes_once_after_the_grace() {
    let (mock, daemon) = settled();
    let mut client = daemon.client();
    let browser = visitor(&mut client, &mock, "alice");
    let told = present(&mut client, "alice", "online", json!({"lease": 60}));
    assert_eq!((&told["state"], &told["durable"]), (&json!("online"), &json!(false)), "{told}");
    assert!((50.0..70.0).contains(&(seconds_of(&told["until"]) - crate::support::now())), "{told}");
    assert_eq!(client.ok(&json!({"op": "account", "account": "alice"}))["presence"], "online");
    let id = when_offline(&mut client, "alice", json!({}));
    std::thread::sleep(Duration::from_secs_f64(2.0 * GRACE));
    assert_eq!((texts(&mock, &browser).len(), number(&status(&mut client, &id), "pending")), (0, 1));
    let begin = Instant::now();
    let told = present(&mut client, "alice", "offline", json!({}));
    assert_eq!(told["state"], "offline", "{told}");
    let took = until_it_came(&mock, &browser, begin);
    assert!((GRACE - 0.05..GRACE + 3.0).contains(&took), "it came after {took:.2} s");
    wait_ended(&mut client, &id);
    std::thread::sleep(Duration::from_secs_f64(GRACE));
    assert_eq!(texts(&mock, &browser), ["news"], "once");
    assert_eq!(client.ok(&json!({"op": "account", "account": "alice"}))["presence"], "offline");
}

#[test]
fn who_is_away_gets_it_at_once() {
    let (mock, daemon) = settled();
    let mut client = daemon.client();
    let browser = visitor(&mut client, &mock, "alice");
    let begin = Instant::now();
    when_offline(&mut client, "alice", json!({}));
    let took = until_it_came(&mock, &browser, begin);
    assert!(took < GRACE, "it came after {took:.2} s");
    // And a message without `when` cares for nobody's presence.
    present(&mut client, "alice", "online", json!({"lease": 60}));
    let id = send(&mut client, json!({"accounts": ["alice"]}), json!({"payload": "always"}));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 1);
}

#[test]
fn a_lease_that_is_not_renewed_runs_out() {
    let (mock, daemon) = settled();
    let mut client = daemon.client();
    let browsers = ["runs out", "renewed"].map(|account| visitor(&mut client, &mock, account));
    let begin = Instant::now();
    for account in ["runs out", "renewed"] {
        present(&mut client, account, "online", json!({"lease": 1.5}));
        when_offline(&mut client, account, json!({}));
    }
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(600));
        present(&mut client, "renewed", "online", json!({"lease": 1.5}));
    }
    let first = mock.received_by(&browsers[0]);
    assert_eq!((first.len(), texts(&mock, &browsers[1]).len()), (1, 0), "after {:?}", begin.elapsed());
    let took = until_it_came(&mock, &browsers[1], Instant::now());
    assert!((1.5 + GRACE - 0.2..1.5 + GRACE + 3.0).contains(&took), "the renewed lease ran out after {took:.2} s");
}

#[test]
fn an_account_is_online_while_any_session_is() {
    let (mock, daemon) = settled();
    let mut client = daemon.client();
    let browser = visitor(&mut client, &mock, "alice");
    for session in ["tab 1", "tab 2"] {
        present(&mut client, "alice", "online", json!({"lease": 60, "session": session}));
    }
    when_offline(&mut client, "alice", json!({}));
    let told = present(&mut client, "alice", "offline", json!({"session": "tab 1"}));
    assert_eq!(told["state"], "online", "the other tab is open: {told}");
    std::thread::sleep(Duration::from_secs_f64(2.0 * GRACE));
    assert_eq!(texts(&mock, &browser).len(), 0);
    let begin = Instant::now();
    present(&mut client, "alice", "offline", json!({"session": "tab 2"}));
    let took = until_it_came(&mock, &browser, begin);
    assert!(took >= GRACE - 0.05, "it came after {took:.2} s");
}

#[test]
fn who_comes_back_within_the_grace_was_never_away() {
    let (mock, daemon) = settled();
    let mut client = daemon.client();
    let browser = visitor(&mut client, &mock, "alice");
    present(&mut client, "alice", "online", json!({"lease": 60}));
    when_offline(&mut client, "alice", json!({}));
    for _ in 0..5 {
        // From one page to the next.
        present(&mut client, "alice", "offline", json!({}));
        std::thread::sleep(Duration::from_secs_f64(GRACE * 0.4));
        present(&mut client, "alice", "online", json!({"lease": 60}));
        std::thread::sleep(Duration::from_secs_f64(GRACE * 0.4));
    }
    assert_eq!(texts(&mock, &browser).len(), 0);
    present(&mut client, "alice", "offline", json!({}));
    until_it_came(&mock, &browser, Instant::now());
}

#[test]
fn what_was_read_or_cancelled_does_not_come() {
    let (mock, daemon) = settled();
    let mut client = daemon.client();
    let browser = visitor(&mut client, &mock, "alice");
    let other = visitor(&mut client, &mock, "bob");
    for account in ["alice", "bob"] {
        present(&mut client, account, "online", json!({"lease": 60}));
    }
    let by_topic = when_offline(&mut client, "alice", json!({"topic": "chat-1", "payload": "by topic"}));
    let by_id = when_offline(&mut client, "alice", json!({"payload": "by id"}));
    let cancelled = when_offline(&mut client, "alice", json!({"payload": "cancelled"}));
    let left = when_offline(&mut client, "alice", json!({"topic": "chat-2", "payload": "left"}));
    let of_bob = when_offline(&mut client, "bob", json!({"topic": "chat-1", "payload": "of bob"}));
    assert_eq!(client.ok(&json!({"op": "mark_read", "account": "alice", "topic": "chat-1"}))["withdrawn"], 1);
    assert_eq!(client.ok(&json!({"op": "mark_read", "account": "alice", "message_id": by_id}))["withdrawn"], 1);
    assert_eq!(client.ok(&json!({"op": "mark_read", "account": "alice", "message_id": by_id}))["withdrawn"], 0);
    assert_eq!(client.ok(&json!({"op": "mark_read", "account": "alice", "topic": "nothing"}))["withdrawn"], 0);
    client.ok(&json!({"op": "cancel", "message_id": cancelled}));
    for id in [&by_topic, &by_id, &cancelled] {
        let ended = wait_ended(&mut client, id);
        assert_eq!((number(&ended, "accepted"), number(&ended, "recipients")), (0, 1), "{ended}");
    }
    for account in ["alice", "bob"] {
        present(&mut client, account, "offline", json!({}));
    }
    for id in [&left, &of_bob] {
        assert_eq!(number(&wait_ended(&mut client, id), "accepted"), 1);
    }
    assert_eq!((texts(&mock, &browser), texts(&mock, &other)), (vec!["left".to_owned()], vec!["of bob".to_owned()]));
}

#[test]
fn who_was_online_until_the_deadline_was_present() {
    let (mock, daemon) = settled();
    let mut client = daemon.client();
    let browser = visitor(&mut client, &mock, "alice");
    present(&mut client, "alice", "online", json!({"lease": 600}));
    let id = when_offline(&mut client, "alice", json!({"ttl": 2}));
    let ended = wait_ended(&mut client, &id);
    assert_eq!((number(&ended, "skipped"), number(&ended, "expired")), (1, 0), "{ended}");
    let events = wait_events(&mut client, json!({"message_id": id}), 1);
    assert_eq!((events.len(), &events[0]["type"], &events[0]["reason"]), (1, &json!("skipped"), &json!("present")));
    present(&mut client, "alice", "offline", json!({}));
    std::thread::sleep(Duration::from_secs_f64(2.0 * GRACE));
    assert_eq!(texts(&mock, &browser).len(), 0);
}

#[test]
fn a_burst_with_one_topic_arrives_as_one() {
    let (mock, daemon) = settled();
    let mut client = daemon.client();
    let browser = visitor(&mut client, &mock, "alice");
    present(&mut client, "alice", "online", json!({"lease": 60}));
    let ids: Vec<String> = (1..=20)
        .map(|number| when_offline(&mut client, "alice", json!({"topic": "chat", "payload": format!("answer {number}")})))
        .collect();
    present(&mut client, "alice", "offline", json!({}));
    let mut accepted = 0;
    for id in &ids {
        let ended = wait_ended(&mut client, id);
        assert_eq!(number(&ended, "accepted") + number(&ended, "skipped"), 1, "{ended}");
        accepted += number(&ended, "accepted");
    }
    assert_eq!((accepted, texts(&mock, &browser)), (1, vec!["answer 20".to_owned()]));
}

#[test]
fn what_waits_survives_a_kill() {
    let (mock, mut daemon) = settled();
    let mut client = daemon.client();
    let browser = visitor(&mut client, &mock, "alice");
    present(&mut client, "alice", "online", json!({"lease": 600}));
    let id = when_offline(&mut client, "alice", json!({}));
    // Presence is written with checkpoints.
    std::thread::sleep(Duration::from_secs(1));
    daemon.kill9();
    daemon.restart().expect("it starts");
    let mut client = daemon.client();
    std::thread::sleep(Duration::from_secs_f64(2.5 * GRACE));
    assert_eq!((texts(&mock, &browser).len(), number(&status(&mut client, &id), "pending")), (0, 1), "its lease still runs");
    present(&mut client, "alice", "offline", json!({}));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 1);
    assert_eq!(texts(&mock, &browser), ["news"]);
}

#[test]
fn who_was_there_before_a_start_is_there_for_the_grace() {
    let (mock, mut daemon) = start(|config| config.set("presence.grace", 30));
    let mut client = daemon.client();
    visitor(&mut client, &mock, "alice");
    present(&mut client, "alice", "online", json!({"lease": 2}));
    let presence =
        |client: &mut Client, account: &str| client.ok(&json!({"op": "account", "account": account}))["presence"].take();
    assert_eq!((presence(&mut client, "alice"), presence(&mut client, "bob")), (json!("online"), json!("offline")));
    // Presence is written with checkpoints.
    std::thread::sleep(Duration::from_secs(1));
    daemon.kill9();
    // Its pages could not say so meanwhile.
    std::thread::sleep(Duration::from_secs(2));
    daemon.restart().expect("it starts");
    let mut client = daemon.client();
    assert_eq!((presence(&mut client, "alice"), presence(&mut client, "bob")), (json!("online"), json!("offline")));
}

#[test]
fn a_shorter_lease_takes_the_place_of_a_longer_one() {
    let (_mock, daemon) = settled();
    let mut client = daemon.client();
    present(&mut client, "alice", "online", json!({"lease": 600, "session": "tab"}));
    present(&mut client, "alice", "online", json!({"lease": 0.5, "session": "tab"}));
    let mut online = || client.ok(&json!({"op": "account", "account": "alice"}))["presence"] == "online";
    assert!(wait(Duration::from_secs(30), || !online()), "the page said that it would be gone by now");
}
