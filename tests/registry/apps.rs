//! A socket of several apps finds what belongs to any of them, and judges it by the rules of the app that it belongs to.

use std::collections::BTreeSet;

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, write_vapid_key};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{count, id_of, start, subscribe, with};

const APPS: [&str; 3] = ["alpha", "beta", "gamma"];

/// Three apps beside `default`; each lists a scope of its own and one that all have. `pair` is the socket of two of them.
fn apps(directory: &TempDir, mut config: ConfigBuilder) -> ConfigBuilder {
    let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    for app in APPS {
        write_vapid_key(path(app).as_ref()).expect("writable");
        config = config
            .set(&format!("apps.{app}.vapid_keys"), json!([path(app)]))
            .set(&format!("apps.{app}.subject"), "mailto:ops@example.com")
            .set(&format!("apps.{app}.scopes"), json!(["news", format!("{app}-only")]));
    }
    config.set("sockets.pair.path", path("pair.sock")).set("sockets.pair.apps", json!(["alpha", "beta"]))
}

#[test]
fn each_operation_finds_it_in_whichever_app_has_it() {
    let directory = TempDir::new().expect("a temporary directory");
    let (mock, daemon) = start(|config| apps(&directory, config));
    let mut operator = daemon.client();
    let mut pair = Client::connect(directory.path().join("pair.sock")).expect("it listens");
    for app in APPS {
        for by_endpoint in [false, true] {
            let browsers = mock.subscribe(0, 2);
            for browser in &browsers {
                subscribe(&mut operator, browser, json!({"app": app}));
            }
            let named = |n: usize| match by_endpoint {
                true => json!({"endpoint": browsers[n].endpoint}),
                false => json!({"subscription_id": id_of(&browsers[n])}),
            };
            let update = |name: &str| json!({"op": "update_subscription", "subscription_id": id_of(&browsers[0]), "name": name});
            let ask = with(json!({"op": "subscription"}), named(0));
            let unsubscribe = with(json!({"op": "unsubscribe"}), named(0));
            let erase = with(json!({"op": "erase"}), named(1));
            if app == "gamma" {
                // Of an app that is not the socket's, nothing is there, and nothing happens to it.
                assert_eq!(pair.error(&ask)["code"], "not_found", "{ask}");
                assert_eq!(pair.error(&update("x"))["code"], "not_found");
                assert_eq!(pair.ok(&unsubscribe)["removed"], false);
                assert_eq!(pair.ok(&erase)["removed"], 0);
            }
            // Each by the smallest socket that has it, and by the operator's.
            let client = if app == "gamma" { &mut operator } else { &mut pair };
            assert_eq!(client.ok(&ask)["subscription"]["app"], app, "{ask}");
            assert_eq!(client.ok(&update("phone"))["subscription"]["name"], "phone");
            assert_eq!(operator.ok(&ask)["subscription"]["name"], "phone");
            assert_eq!(operator.ok(&update("other"))["subscription"]["name"], "other");
            let client = if by_endpoint && app != "gamma" { &mut pair } else { &mut operator };
            assert_eq!(client.ok(&unsubscribe)["removed"], true, "{unsubscribe}");
            assert_eq!(client.ok(&erase)["removed"], 1, "{erase}");
            assert_eq!(count(&mut operator, json!({"app": app})), 0);
        }
    }
}

#[test]
fn who_leaves_leaves_every_app_of_the_socket() {
    let directory = TempDir::new().expect("a temporary directory");
    let (mock, daemon) = start(|config| apps(&directory, config));
    let mut operator = daemon.client();
    let mut pair = Client::connect(directory.path().join("pair.sock")).expect("it listens");
    let browsers = mock.subscribe(0, 2);
    for browser in &browsers {
        for app in APPS {
            subscribe(&mut operator, browser, json!({"app": app}));
        }
    }
    assert_eq!(pair.ok(&json!({"op": "unsubscribe", "endpoint": browsers[0].endpoint}))["removed"], true);
    assert_eq!(pair.ok(&json!({"op": "erase", "subscription_id": id_of(&browsers[1])}))["removed"], 2);
    let counts = |operator: &mut Client| APPS.map(|app| count(operator, json!({"app": app})));
    assert_eq!(counts(&mut operator), [0, 0, 2]);
    assert_eq!(operator.ok(&json!({"op": "unsubscribe", "subscription_id": id_of(&browsers[0])}))["removed"], true);
    assert_eq!(operator.ok(&json!({"op": "erase", "endpoint": browsers[1].endpoint}))["removed"], 1);
    assert_eq!(counts(&mut operator), [0, 0, 0]);
}

#[test]
fn scopes_are_those_of_the_subscriptions_own_app() {
    let directory = TempDir::new().expect("a temporary directory");
    let (mock, daemon) = start(|config| apps(&directory, config));
    let mut operator = daemon.client();
    let mut pair = Client::connect(directory.path().join("pair.sock")).expect("it listens");
    let browsers = mock.subscribe(0, 4);
    for (browser, app) in browsers.iter().zip(["alpha", "beta", "gamma", "default"]) {
        subscribe(&mut operator, browser, json!({"app": app}));
    }
    let update = |n: usize, scopes: Value| json!({"op": "update_subscription", "subscription_id": id_of(&browsers[n]), "scopes": scopes, "name": "x"});
    for client in [&mut operator, &mut pair] {
        for (n, app, other) in [(0, "alpha", "beta"), (1, "beta", "alpha")] {
            let own = format!("{app}-only");
            let told = client.ok(&update(n, json!([own, "news"])));
            assert_eq!(told["subscription"]["scopes"], json!([own, "news"]), "{told}");
            for foreign in [json!([format!("{other}-only")]), json!(["news", format!("{other}-only"), own])] {
                let error = client.error(&update(n, foreign.clone()));
                assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("scopes")), "{foreign}: {error}");
                let message = error["message"].as_str().expect("text");
                assert!(message.starts_with(&format!("{other}-only ")), "it says which: {error}");
            }
            let told = client.ok(&json!({"op": "subscription", "subscription_id": id_of(&browsers[n])}));
            assert_eq!(told["subscription"]["scopes"], json!([own, "news"]), "a refused line changes nothing: {told}");
            assert_eq!(client.ok(&update(n, Value::Null))["subscription"]["scopes"], Value::Null);
            assert_eq!(client.ok(&update(n, json!([])))["subscription"]["scopes"], json!([]));
        }
        // Of an app that is not the socket's, and of nobody, it says no more than that.
        let nobody = json!({"op": "update_subscription", "subscription_id": "AAECAwQFBgcICQoL", "scopes": ["alpha-only"]});
        assert_eq!(client.error(&nobody)["code"], "not_found");
    }
    assert_eq!(pair.error(&update(2, json!(["alpha-only"])))["code"], "not_found");
    assert_eq!(pair.error(&update(2, json!(["news"])))["code"], "not_found");
    assert_eq!(operator.ok(&update(2, json!(["gamma-only"])))["subscription"]["app"], "gamma");
    // An app that lists none takes any name.
    assert_eq!(operator.ok(&update(3, json!(["weather"])))["subscription"]["scopes"], json!(["weather"]));
}

#[test]
fn a_list_has_each_once_whatever_its_pages() {
    let directory = TempDir::new().expect("a temporary directory");
    let (mock, daemon) = start(|config| apps(&directory, config));
    let mut operator = daemon.client();
    // Of one account, at both push services, in several apps; of each app every other one has a tag.
    let mut known = BTreeSet::new();
    for n in 0..24 {
        let browser = mock.subscribe(n % 2, 1).remove(0);
        let tags = if n % 4 < 2 { json!(["a"]) } else { json!([]) };
        let more = json!({"app": APPS[n % 3], "account": "alice", "tags": tags});
        known.insert((APPS[n % 3], n % 4 < 2, subscribe(&mut operator, &browser, more)));
    }
    let mut pages = |request: Value, limit: usize| {
        let (mut found, mut after) = (Vec::new(), Value::Null);
        loop {
            let reply = operator.ok(&with(request.clone(), json!({"limit": limit, "after": after})));
            let page = reply["subscriptions"].as_array().expect("an array");
            assert!(page.len() <= limit && found.len() + page.len() <= 24, "{limit}: it goes on for ever: {reply}");
            found.extend(page.iter().map(|one| one["subscription_id"].as_str().expect("text").to_owned()));
            after = reply["after"].clone();
            if after.is_null() {
                found.sort();
                return found;
            }
        }
    };
    let sorted = |wanted: &dyn Fn(&str, bool) -> bool| {
        let mut ids: Vec<String> =
            known.iter().filter(|(app, tagged, _)| wanted(app, *tagged)).map(|(_, _, id)| id.clone()).collect();
        ids.sort();
        ids
    };
    let tagged = json!({"tags": {"any": ["a", "b"]}});
    for limit in [1, 3, 4, 7, 24, 1_000] {
        let list = |more: Value| with(json!({"op": "list_subscriptions"}), more);
        assert_eq!(pages(list(json!({})), limit), sorted(&|_, _| true), "{limit}");
        assert_eq!(pages(list(json!({"account": "alice"})), limit), sorted(&|_, _| true), "{limit}");
        assert_eq!(pages(list(json!({"account": "alice", "app": "beta"})), limit), sorted(&|app, _| app == "beta"), "{limit}");
        assert_eq!(pages(list(json!({"segment": tagged})), limit), sorted(&|_, tagged| tagged), "{limit}");
    }
}

#[test]
fn an_account_is_online_if_it_is_in_any_of_the_apps() {
    let directory = TempDir::new().expect("a temporary directory");
    let (mock, daemon) = start(|config| apps(&directory, config));
    let mut operator = daemon.client();
    let mut pair = Client::connect(directory.path().join("pair.sock")).expect("it listens");
    let browser = mock.subscribe(0, 1).remove(0);
    subscribe(&mut operator, &browser, json!({"app": "gamma", "account": "alice"}));
    for app in APPS {
        let presence = |state: &str| json!({"op": "presence", "account": "alice", "app": app, "state": state});
        operator.ok(&presence("online"));
        let told = operator.ok(&json!({"op": "account", "account": "alice"}));
        assert_eq!((&told["presence"], &told["reachable"]), (&json!("online"), &json!(true)), "{app}: {told}");
        let told = pair.ok(&json!({"op": "account", "account": "alice"}));
        let seen = if app == "gamma" { "offline" } else { "online" };
        assert_eq!((&told["presence"], &told["subscriptions"]), (&json!(seen), &json!([])), "{app}: {told}");
        operator.ok(&presence("offline"));
        assert_eq!(operator.ok(&json!({"op": "account", "account": "alice"}))["presence"], "offline");
    }
}
