//! What is switched off receives nothing, stays known, and comes back when it is switched on.

use std::time::Duration;

use fanfare_loadtest::mock::Fault;
use serde_json::{Value, json};

use crate::support::{answer, id_of, in_seconds, number, send, start, subscribe, subscription, texts, wait_ended, wait_events};

#[test]
fn a_disabled_account_gets_nothing_until_it_is_enabled() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 3);
    subscribe(&mut client, &browsers[0], json!({"account": "alice", "tags": ["a"]}));
    subscribe(&mut client, &browsers[1], json!({"account": "alice"}));
    subscribe(&mut client, &browsers[2], json!({"account": "bob"}));
    let told = client.ok(&json!({"op": "account", "account": "alice", "enabled": false}));
    assert_eq!((&told["account"], &told["enabled"]), (&json!("alice"), &json!(false)), "{told}");
    let ways = [
        json!({"accounts": ["alice"]}),
        json!({"subscription_ids": [id_of(&browsers[0])]}),
        json!({"segment": {"tags": {"any": ["a"]}}}),
    ];
    let mut after_kill = false;
    loop {
        for to in &ways {
            let id = send(&mut client, to.clone(), json!({}));
            let ended = wait_ended(&mut client, &id);
            assert_eq!(number(&ended, "accepted"), 0, "{to}: {ended}");
        }
        let everybody = send(&mut client, json!({"segment": {"all": true}}), json!({"payload": "all"}));
        assert_eq!(number(&wait_ended(&mut client, &everybody), "accepted"), 1);
        assert_eq!((texts(&mock, &browsers[0]).len(), texts(&mock, &browsers[1]).len()), (0, 0));
        if after_kill {
            break;
        }
        // A start does not forget it.
        daemon.kill9();
        daemon.restart().expect("it starts");
        client = daemon.client();
        after_kill = true;
    }
    assert_eq!(subscription(&mut client, &browsers[0])["account"], "alice", "what is disabled stays known");
    let told = client.ok(&json!({"op": "account", "account": "alice", "enabled": true}));
    assert_eq!(told["enabled"], true, "{told}");
    for to in &ways {
        let id = send(&mut client, to.clone(), json!({"payload": "again"}));
        assert!(number(&wait_ended(&mut client, &id), "accepted") > 0, "{to}");
    }
    assert_eq!((texts(&mock, &browsers[0]).len(), texts(&mock, &browsers[1]).len()), (3, 1));
}

#[test]
fn an_account_disabled_while_a_message_waits_does_not_get_it() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    subscribe(&mut client, &browsers[0], json!({"account": "alice"}));
    subscribe(&mut client, &browsers[1], json!({"account": "bob"}));
    let at = in_seconds(1.5);
    let waiting = send(&mut client, json!({"accounts": ["alice", "bob"]}), json!({"at": at}));
    let by_id = send(&mut client, json!({"subscription_ids": [id_of(&browsers[0])]}), json!({"at": at}));
    client.ok(&json!({"op": "account", "account": "alice", "enabled": false}));
    let ended = wait_ended(&mut client, &waiting);
    assert_eq!((number(&ended, "accepted"), number(&ended, "skipped")), (1, 1), "{ended}");
    let ended = wait_ended(&mut client, &by_id);
    assert_eq!((number(&ended, "accepted"), number(&ended, "skipped")), (0, 1), "{ended}");
    assert_eq!(texts(&mock, &browsers[0]), Vec::<String>::new());
    let events = wait_events(&mut client, json!({"types": ["skipped"]}), 2);
    assert!(events.iter().all(|event| event["reason"] == "disabled" && event["account"] == "alice"), "{events:?}");
}

#[test]
fn a_disabled_subscription_gets_nothing_until_it_is_enabled() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    for browser in &browsers {
        subscribe(&mut client, browser, json!({"account": "alice"}));
    }
    let off = client.ok(&json!({"op": "update_subscription", "subscription_id": id_of(&browsers[0]), "enabled": false}));
    assert_eq!(off["subscription"]["enabled"], false, "{off}");
    for to in [json!({"accounts": ["alice"]}), json!({"segment": {"all": true}})] {
        let id = send(&mut client, to.clone(), json!({}));
        assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 1, "{to}");
    }
    let account = json!({"op": "account", "account": "alice"});
    assert_eq!(client.ok(&account)["reachable"], true, "one of two is on");
    // Also one that is disabled while a message waits.
    let waiting = send(&mut client, json!({"subscription_ids": [id_of(&browsers[1])]}), json!({"at": in_seconds(1.0)}));
    client.ok(&json!({"op": "update_subscription", "subscription_id": id_of(&browsers[1]), "enabled": false}));
    let ended = wait_ended(&mut client, &waiting);
    assert_eq!((number(&ended, "accepted"), number(&ended, "skipped")), (0, 1), "{ended}");
    let told = client.ok(&account);
    assert_eq!((&told["enabled"], &told["reachable"]), (&json!(true), &json!(false)), "none is on: {told}");
    // A page view does not enable what its owner has disabled.
    subscribe(&mut client, &browsers[0], json!({"account": "alice"}));
    assert_eq!(subscription(&mut client, &browsers[0])["enabled"], false);
    assert_eq!(texts(&mock, &browsers[0]), Vec::<String>::new());
    client.ok(&json!({"op": "update_subscription", "subscription_id": id_of(&browsers[0]), "enabled": true}));
    let id = send(&mut client, json!({"accounts": ["alice"]}), json!({"payload": "again"}));
    wait_ended(&mut client, &id);
    assert_eq!(texts(&mock, &browsers[0]), ["again"]);
}

#[test]
fn a_disabled_account_takes_no_new_subscription() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    subscribe(&mut client, &browsers[0], json!({"account": "alice"}));
    client.ok(&json!({"op": "account", "account": "alice", "enabled": false}));
    let request = json!({"op": "subscribe", "subscription": browsers[1].json(), "account": "alice"});
    assert_eq!(client.error(&request)["code"], "not_allowed");
    let told = client.ok(&json!({"op": "account", "account": "alice"}));
    assert_eq!((&told["enabled"], told["subscriptions"].as_array().map(Vec::len)), (&json!(false), Some(1)), "{told}");
    client.ok(&json!({"op": "account", "account": "alice", "enabled": true}));
    assert_eq!(client.ok(&request)["created"], true);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(mock.counters().requests, 0, "nothing was sent to anybody");
}

#[test]
fn a_browser_that_is_gone_is_none_of_its_accounts_any_more() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    for browser in &browsers {
        subscribe(&mut client, browser, json!({"account": "alice"}));
    }
    for (n, browser) in browsers.iter().enumerate() {
        answer(&mock, browser, Fault::status(410));
        let id = send(&mut client, json!({"subscription_ids": [id_of(browser)]}), json!({}));
        assert_eq!(number(&wait_ended(&mut client, &id), "gone"), 1);
        let left: Vec<String> = browsers[n + 1..].iter().map(id_of).collect();
        let told = client.ok(&json!({"op": "account", "account": "alice"}));
        let ids = |told: &Value| -> Vec<String> {
            let all = told["subscriptions"].as_array().expect("an array").iter();
            all.map(|one| one["subscription_id"].as_str().expect("text").to_owned()).collect()
        };
        assert_eq!((ids(&told), &told["reachable"]), (left.clone(), &json!(!left.is_empty())), "{told}");
        assert_eq!(ids(&client.ok(&json!({"op": "list_subscriptions", "account": "alice"}))), left);
    }
    // Asked for by its name it is there until it is dropped, and says why.
    let told = subscription(&mut client, &browsers[0]);
    assert_eq!((&told["valid"], &told["account"]), (&json!(false), &json!("alice")), "{told}");
}
