//! After `erase` and compaction nothing of an account is in any file of the store, and what was told of it names nobody.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fanfare_loadtest::daemon::Daemon;
use fanfare_loadtest::mock::{Fault, Mock, Subscription};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE, answer, count, events, id_of, in_seconds, number, send, start, status, subscribe, texts, wait, wait_ended,
};

const ACCOUNT: &str = "erika-mustermann-7431";
const NAME: &str = "Erikas Quetschkommode";

/// What may stand nowhere any more, and what it is.
fn traces(browsers: &[Subscription]) -> Vec<(String, Vec<u8>)> {
    let mut traces = vec![("account".to_owned(), ACCOUNT.as_bytes().to_vec()), ("name".to_owned(), NAME.as_bytes().to_vec())];
    for (place, browser) in browsers.iter().enumerate() {
        let id = id_of(browser);
        let raw = URL_SAFE_NO_PAD.decode(&id).expect("base64url");
        for (what, bytes) in [
            ("token", browser.token.clone().into_bytes()),
            ("id in text", id.into_bytes()),
            ("id", raw),
            // The head of a point is its form; compressed or not, the first coordinate is in it.
            ("p256dh", browser.keys.public[1..33].to_vec()),
            ("auth", browser.keys.auth.to_vec()),
        ] {
            traces.push((format!("{what} of browser {place}"), bytes));
        }
    }
    traces
}

/// Which traces are in which files.
fn found(directory: &Path, traces: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("the store can be listed").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(self::found(&path, traces));
            continue;
        }
        // A file may go between the listing and the look.
        let Ok(bytes) = fs::read(&path) else { continue };
        for (what, trace) in traces {
            if contains(&bytes, trace) {
                found.push(format!("{what} in {}", path.file_name().unwrap_or_default().to_string_lossy()));
            }
        }
    }
    found
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(place) = rest.iter().position(|byte| *byte == part[0]) {
        if rest[place..].starts_with(part) {
            return true;
        }
        rest = &rest[place + 1..];
    }
    false
}

/// Browsers of the account with all kinds of things in the store: two that wait, one that is gone, one that was replaced.
fn fill(mock: &Mock, daemon: &Daemon) -> (Vec<Subscription>, Vec<String>) {
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 4);
    for browser in &browsers[..3] {
        subscribe(&mut client, browser, json!({"account": ACCOUNT, "name": NAME, "tags": ["a"], "attributes": {"name": NAME}}));
    }
    answer(mock, &browsers[0], Fault::status(410));
    let gone = send(&mut client, json!({"accounts": [ACCOUNT]}), json!({}));
    assert_eq!(number(&wait_ended(&mut client, &gone), "gone"), 1);
    subscribe(&mut client, &browsers[3], json!({"replaces": browsers[2].endpoint}));
    client.ok(&json!({"op": "presence", "account": ACCOUNT, "state": "online", "lease": 600}));
    let to = json!({"subscription_ids": [id_of(&browsers[1]), id_of(&browsers[3])]});
    let waiting = vec![
        send(&mut client, json!({"accounts": [ACCOUNT]}), json!({"at": in_seconds(600.0)})),
        send(&mut client, json!({"accounts": [ACCOUNT]}), json!({"when": "offline"})),
        send(&mut client, to, json!({"at": in_seconds(600.0)})),
    ];
    (browsers, waiting)
}

#[test]
fn nothing_of_the_account_is_left_in_any_file() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let other = mock.subscribe(0, 1).remove(0);
    subscribe(&mut client, &other, json!({"account": "somebody else"}));
    let (browsers, waiting) = fill(&mock, &daemon);
    let traces = traces(&browsers);
    let before = found(&daemon.data_dir(), &traces);
    assert!(before.len() > 10, "the search finds what is there: {before:?}");
    let reply = client.ok(&json!({"op": "erase", "account": ACCOUNT}));
    println!("{reply}; before: {before:?}");
    for id in &waiting {
        let ended = wait_ended(&mut client, id);
        assert_eq!(number(&ended, "cancelled"), number(&ended, "recipients"), "what waits is cancelled: {ended}");
    }
    for browser in &browsers {
        assert_eq!(client.error(&json!({"op": "subscription", "subscription_id": id_of(browser)}))["code"], "not_found");
        assert_eq!(events(&mut client, json!({"subscription_id": id_of(browser)})), Vec::<Value>::new());
    }
    assert_eq!(events(&mut client, json!({"account": ACCOUNT})), Vec::<Value>::new());
    let told = events(&mut client, json!({}));
    assert!(
        !told.is_empty() && told.iter().all(|event| event["account"] != ACCOUNT),
        "the events are there, without names: {told:?}"
    );
    assert_eq!(count(&mut client, json!({})), 1);

    let mut left = Vec::new();
    let clean = wait(PATIENCE, || {
        left = found(&daemon.data_dir(), &traces);
        left.is_empty()
    });
    assert!(clean, "left after a minute: {left:?}");
    assert_eq!(daemon.terminate().expect("it ends"), 0);
    assert_eq!(found(&daemon.data_dir(), &traces), Vec::<String>::new(), "after a stop");
    daemon.restart().expect("it starts");
    assert_eq!(found(&daemon.data_dir(), &traces), Vec::<String>::new(), "after a start");

    // The other is as it was.
    let mut client = daemon.client();
    let id = send(&mut client, json!({"accounts": ["somebody else"]}), json!({}));
    wait_ended(&mut client, &id);
    assert_eq!(texts(&mock, &other), ["news"]);
    for id in &waiting {
        assert_eq!(number(&status(&mut client, id), "pending"), 0);
    }
}

#[test]
fn erasing_again_is_answered() {
    let (mock, daemon) = start(|config| config);
    let (mut client, mut other) = (daemon.client(), daemon.client());
    let browser = mock.subscribe(0, 1).remove(0);
    for round in 0..3 {
        subscribe(&mut client, &browser, json!({"account": "alice"}));
        let requests = [json!({"op": "erase", "subscription_id": id_of(&browser)}), json!({"op": "erase", "account": "alice"})];
        for request in &requests {
            // One after the other, and two at once. No message comes between them, so that all are about the same stretch.
            client.ok(request);
            client.ok(request);
            client.send(request).expect("it reads");
            other.send(request).expect("it reads");
            for client in [&mut client, &mut other] {
                let reply = client.recv().expect("a reply");
                assert_eq!((&reply["ok"], &reply["removed"]), (&json!(true), &json!(0)), "round {round}: {reply}");
            }
        }
    }
}

#[test]
fn a_browser_can_be_erased_by_itself() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 3);
    for browser in &browsers {
        subscribe(&mut client, browser, json!({"account": "alice"}));
    }
    client.ok(&json!({"op": "erase", "subscription_id": id_of(&browsers[0])}));
    client.ok(&json!({"op": "erase", "endpoint": browsers[1].endpoint}));
    let id = send(&mut client, json!({"accounts": ["alice"]}), json!({}));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 1);
    assert_eq!((count(&mut client, json!({})), texts(&mock, &browsers[2]).len()), (1, 1));
    let mut left = Vec::new();
    let traces: Vec<_> = traces(&browsers[..2]).into_iter().skip(2).collect();
    let clean = wait(PATIENCE, || {
        left = found(&daemon.data_dir(), &traces);
        left.is_empty()
    });
    assert!(clean, "left after a minute: {left:?}");
}
