//! After `erase` and compaction nothing of an account is in any file of the store, and what was told of it names nobody.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{Daemon, write_vapid_key};
use fanfare_loadtest::mock::{Fault, Mock, Subscription};
use serde_json::{Value, json};

use crate::support::{
    PATIENCE, answer, count, events, id_of, in_seconds, number, send, start, status, subscribe, texts, wait, wait_ended, with,
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

/// Both apps know the same browsers, as accounts of the same name. What one of them erases, the other does not even notice.
#[test]
fn an_app_erases_only_what_is_its_own() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    let (mock, _daemon) = start(|mut config| {
        for app in ["shop", "news"] {
            let key = path(&format!("{app}.pem"));
            write_vapid_key(key.as_ref()).expect("writable");
            config = config
                .set(&format!("apps.{app}.vapid_keys"), json!([key]))
                .set(&format!("apps.{app}.subject"), "mailto:ops@example.com")
                .set(&format!("sockets.{app}.path"), path(app))
                .set(&format!("sockets.{app}.apps"), json!([app]));
        }
        config
    });
    let [mut shop, mut news] = ["shop", "news"].map(|app| Client::connect(path(app)).expect("it listens"));
    for way in ["subscription_id", "endpoint", "account"] {
        let browser = mock.subscribe(0, 1).remove(0);
        let account = format!("{ACCOUNT} by {way}");
        let fill = |client: &mut Client| {
            subscribe(client, &browser, json!({"account": account}));
            // The push service has it gone once, so that there is an event that names it.
            answer(&mock, &browser, Fault::status(410));
            let gone = send(client, json!({"accounts": [account]}), json!({"ref": way}));
            wait_ended(client, &gone);
            mock.clear_all_faults();
            subscribe(client, &browser, json!({"account": account}));
            let at = json!({"at": in_seconds(8.0), "payload": way});
            let list = with(at.clone(), json!({"rate": 1_000}));
            vec![
                send(client, json!({"subscription": browser.json()}), at.clone()),
                send(client, json!({"subscription_ids": [id_of(&browser)]}), at.clone()),
                send(client, json!({"accounts": [account]}), at.clone()),
                send(client, json!({"subscriptions": [browser.json()]}), list.clone()),
                send(client, json!({"accounts": [account]}), list),
                send(client, json!({"segment": {"all": true}}), at),
            ]
        };
        let (of_shop, of_news) = (fill(&mut shop), fill(&mut news));
        let seen = |client: &mut Client| {
            let of = |client: &mut Client, id: &String| status(client, id);
            let statuses: Vec<Value> = of_news.iter().map(|id| of(client, id)).collect();
            let events = events(client, json!({}));
            let named = events.iter().filter(|event| event["subscription_id"] == id_of(&browser)).count();
            let asked = client.ok(&json!({"op": "account", "account": account}));
            let stats = client.ok(&json!({"op": "stats", "by": ["label", "service"]}));
            (json!([statuses, events, asked, stats]), named)
        };
        let before = seen(&mut news);
        assert_eq!(before.1, 1, "{way}: {}", before.0);
        let erase = match way {
            "subscription_id" => json!({"op": "erase", way: id_of(&browser)}),
            "endpoint" => json!({"op": "erase", way: browser.endpoint}),
            _ => json!({"op": "erase", way: account}),
        };
        let told = shop.ok(&erase);
        assert_eq!((number(&told, "removed"), number(&told, "cancelled"), number(&told, "blanked")), (1, 3, 1), "{way}: {told}");
        assert_eq!(seen(&mut news), before, "{way}");
        assert!(events(&mut shop, json!({})).iter().all(|event| event["subscription_id"] != id_of(&browser)), "{way}");
        // Again there is nothing, though the other app has all of it still.
        let told = shop.ok(&erase);
        assert_eq!((number(&told, "removed"), number(&told, "cancelled"), number(&told, "blanked")), (0, 0, 0), "{way}: {told}");
        assert_eq!(seen(&mut news), before, "{way}");
        for id in &of_news {
            let ended = wait_ended(&mut news, id);
            assert_eq!((number(&ended, "accepted"), number(&ended, "recipients")), (1, 1), "{way}: {ended}");
        }
        for id in &of_shop {
            assert_eq!(number(&wait_ended(&mut shop, id), "accepted"), 0, "{way}");
        }
        assert_eq!(texts(&mock, &browser), vec![way; of_news.len()], "{way}");
        news.ok(&json!({"op": "erase", "account": account}));
    }
}
