//! Whose key signs, and what the body and its headers are: an app's other keys are tried once each on a key mismatch, each app signs
//! with its own, a token that is refused is signed again, a body that is too large loses its padding once, old browsers get
//! aesgcm, Declarative Web Push its content type, and a topic goes out hashed.

use fanfare_loadtest::daemon::{ConfigBuilder, write_vapid_key};
use fanfare_loadtest::mock::{Fault, Mock, Scope, Subscribe, Subscription, Vendor, vendor};
use serde_json::{Value, json};

use crate::support::*;

fn of(token: &str) -> Scope {
    Scope::Subscription(token.to_owned())
}

/// A key file of its own for an app, and its directory.
fn key_file() -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("key.pem");
    write_vapid_key(&path).expect("a key");
    let path = path.to_string_lossy().into_owned();
    (directory, path)
}

/// Subscriptions that were made with this key.
fn made_with(mock: &Mock, key: &str, vendor: Vendor) -> Subscription {
    let how = Subscribe { application_server_key: Some(key.to_owned()), vendor: Some(vendor), ..Subscribe::default() };
    mock.subscribe_with(0, 1, &how).remove(0)
}

/// The app `default` has `keys`; with `more` apps of one key each. Gives each app's first public key.
fn app(name: &str, keys: &[&str], config: ConfigBuilder) -> ConfigBuilder {
    config
        .set(&format!("apps.{name}.vapid_keys"), json!(keys))
        .set(&format!("apps.{name}.subject"), format!("mailto:{name}@example.org"))
}

/// The key that an app gives to pages.
fn public_key(client: &mut fanfare_loadtest::client::Client, app: &str) -> String {
    client.ok(&json!({"op": "vapid_public_key", "app": app}))["public_key"].as_str().expect("a key").to_owned()
}

#[test]
fn a_key_mismatch_tries_the_app_s_other_keys_once_each() {
    let (first, second, third, stranger) = (key_file(), key_file(), key_file(), key_file());
    let mock = mock(1);
    // The other apps only tell the public halves.
    let daemon = daemon(&mock, |config| {
        let config = app("default", &[&first.1, &second.1, &third.1], config);
        let config = app("second", &[&second.1], config);
        let config = app("third", &[&third.1], config);
        app("stranger", &[&stranger.1], config)
    });
    let mut client = daemon.client();
    let keys = ["default", "second", "third", "stranger"].map(|app| public_key(&mut client, app));
    for vendor in [Vendor::Fcm, Vendor::Mozilla, Vendor::Apple] {
        for (tries, key) in keys[..3].iter().enumerate() {
            let browser = made_with(&mock, key, vendor);
            let id = send(&mut client, &browser, json!({"payload": "x"}));
            let ended = wait_ended(&mut client, &id);
            assert_eq!(ended["accepted"], 1, "{vendor:?} {tries}: {ended}");
            let signed: Vec<String> = mock
                .received_by(&browser)
                .iter()
                .filter(|received| received.taken())
                .map(|received| received.vapid.as_ref().expect("a token").key.clone())
                .collect();
            assert_eq!(
                (signed.as_slice(), mock.received_by(&browser).len()),
                ([key.clone()].as_slice(), tries + 1),
                "{vendor:?}"
            );
            // Told which key it was, nothing has to be tried.
            let told = made_with(&mock, key, vendor);
            let mut json = told.json();
            json["applicationServerKey"] = json!(key);
            let id = id_of(&client.ok(&send_of(&json, json!({"payload": "x"}))));
            assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
            assert_eq!(mock.received_by(&told).len(), 1);
        }
        let hopeless = made_with(&mock, &keys[3], vendor);
        let id = send(&mut client, &hopeless, json!({"payload": "x"}));
        wait_ended(&mut client, &id);
        let event = event_of(&mut client, &id);
        // FCM and Apple say it for good; a 401 is never a reason to drop a subscription (docs/push-services.md 3.6).
        let kind = if vendor == Vendor::Mozilla { "refused" } else { "gone" };
        assert_eq!((&event["type"], &event["reason"]), (&json!(kind), &json!("key_mismatch")), "{vendor:?}: {event}");
        assert_eq!(mock.received_by(&hopeless).len(), 3, "each of the three keys once");
    }
    let unknown = made_with(&mock, &keys[3], Vendor::Generic);
    let mut json = unknown.json();
    json["applicationServerKey"] = json!(keys[3]);
    let error = client.error(&send_of(&json, json!({"payload": "x"})));
    assert_eq!(error["code"], "invalid_field", "{error}");
}

#[test]
fn each_app_signs_with_its_own_key_and_subject() {
    let shop = key_file();
    let mock = mock(1);
    let daemon = daemon(&mock, |config| app("shop", &[&shop.1], config));
    let mut client = daemon.client();
    let keys = ["default", "shop"].map(|app| public_key(&mut client, app));
    assert_ne!(keys[0], keys[1]);
    for (name, key, subject) in [("default", &keys[0], "mailto:ops@example.com"), ("shop", &keys[1], "mailto:shop@example.org")] {
        let browser = made_with(&mock, key, Vendor::Generic);
        let id = send(&mut client, &browser, json!({"payload": "x", "app": name, "topic": "news"}));
        assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
        let vapid = mock.received_by(&browser)[0].vapid.clone().expect("a token");
        assert_eq!((&vapid.key, vapid.sub.as_str(), vapid.aud.as_str()), (key, subject, mock.origin(0).as_str()));
        let ahead = vapid.exp as f64 - now();
        assert!(ahead > 3_600.0 && ahead <= 23.0 * 3_600.0, "exp {ahead} s ahead");
    }
    let topics: Vec<_> = mock.received().into_iter().map(|received| received.topic).collect();
    assert_ne!(topics[0], topics[1], "one topic of two apps is two");
}

#[test]
fn a_refused_token_is_signed_again() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config.set("retry.min", 0.2).set("retry.max", 1));
    let mut client = daemon.client();
    for answer in [vendor::fcm_invalid_jwt(), vendor::apple(403, "BadJwtToken"), vendor::mozilla_vapid("ExpiredSignature")] {
        let browser = mock.subscribe(0, 1).remove(0);
        mock.set_fault_times(of(&browser.token), answer, 1);
        let id = send(&mut client, &browser, json!({"payload": "x"}));
        let ended = wait_ended(&mut client, &id);
        assert_eq!((&ended["accepted"], &ended["retries"]), (&json!(1), &json!(1)), "{ended}");
    }
    assert_eq!(origin(&mut client, &mock.origin(0))["state"], "open", "the origin is not at fault");
}

#[test]
fn a_body_that_is_too_large_loses_its_padding_once() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config.set("encrypt.padding", 1_000));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    mock.set_fault_times(of(&browsers[0].token), vendor::mozilla(413, Some(104), "payload reached size limit"), 1);
    mock.set_fault(of(&browsers[1].token), vendor::mozilla(413, Some(104), "payload reached size limit"));
    let text = "p".repeat(1_234);
    let first = send(&mut client, &browsers[0], json!({"payload": text}));
    assert_eq!(wait_ended(&mut client, &first)["accepted"], 1);
    let attempts = mock.received_by(&browsers[0]);
    assert_eq!(attempts.len(), 2);
    assert!(attempts[0].padding >= 700 && attempts[1].padding == 0, "{} {}", attempts[0].padding, attempts[1].padding);
    assert!(attempts.iter().all(|attempt| attempt.text() == text));
    let second = send(&mut client, &browsers[1], json!({"payload": text}));
    assert_eq!(wait_ended(&mut client, &second)["refused"], 1);
    assert_eq!(event_of(&mut client, &second)["reason"], "payload_too_large");
    assert_eq!(mock.received_by(&browsers[1]).len(), 2, "once with, once without");
}

#[test]
fn bodies_and_headers_are_what_was_asked_for() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config);
    let mut client = daemon.client();
    let old = mock.subscribe_with(0, 1, &Subscribe { aesgcm: true, ..Subscribe::default() }).remove(0);
    let id = send(&mut client, &old, json!({"payload": "für alte Browser", "urgency": "low"}));
    assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
    let received = &mock.received_by(&old)[0];
    assert_eq!((received.content_encoding.as_deref(), received.text().as_str()), (Some("aesgcm"), "für alte Browser"));
    assert_eq!(received.urgency.as_deref(), Some("low"));

    let browser = mock.subscribe(0, 1).remove(0);
    let notification = json!({"title": "Naïve", "navigate": "https://example.com/a?b", "lang": "fr"});
    let id = send(&mut client, &browser, json!({"notification": notification, "app_badge": 7}));
    assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
    let received = &mock.received_by(&browser)[0];
    assert_eq!(received.content_type.as_deref(), Some("application/notification+json"));
    let body: Value = serde_json::from_str(&received.text()).expect("JSON");
    assert_eq!((&body["web_push"], &body["notification"]["title"]), (&json!(8030), &json!("Naïve")), "{body}");
    assert_eq!(body["notification"]["navigate"], "https://example.com/a?b");

    let bodies = [
        (json!({"payload": {"z": 1, "a": ["ä"]}}), r#"{"z":1,"a":["ä"]}"#.to_owned()),
        (json!({"payload_base64": "aGVsbG8_"}), "hello?".to_owned()),
        (json!({"payload": "x".repeat(3_993)}), "x".repeat(3_993)),
    ];
    for (fields, expected) in bodies {
        let browser = mock.subscribe(0, 1).remove(0);
        // Sent as text: the order of the keys counts, and a parsed object might lose it.
        let line = send_of(&browser.json(), fields.clone()).to_string();
        let line =
            if fields["payload"].is_object() { line.replace(r#"{"a":["ä"],"z":1}"#, r#"{"z":1,"a":["ä"]}"#) } else { line };
        client.send_raw(format!("{line}\n").as_bytes()).expect("the daemon reads");
        let id = id_of(&client.recv().expect("a reply"));
        assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
        let received = &mock.received_by(&browser)[0];
        assert_eq!(received.text(), expected);
        assert_eq!(received.content_type.as_deref(), Some("application/octet-stream"));
    }
    assert_eq!(mock.counters().violations, Vec::<String>::new());
}

#[test]
fn a_message_without_payload_is_posted_without_body() {
    const SECURED: [Option<&str>; 2] = [None, None];
    for over in ["HTTP/2.0", "HTTP/1.1"] {
        let mock = mock(1);
        if over == "HTTP/1.1" {
            mock.set_fault(Scope::Origin(0), Fault::Http1Only);
        }
        // Padding has nothing to pad.
        let daemon = daemon(&mock, |config| config.set("encrypt.padding", 256));
        let mut client = daemon.client();
        let of = |aesgcm| mock.subscribe_with(0, 1, &Subscribe { aesgcm, ..Subscribe::default() }).remove(0);
        let cases = [
            (of(false), json!({})),
            (of(false), json!({"payload": ""})),
            (of(false), json!({"payload_base64": ""})),
            (of(false), json!({"payload": null})),
            (of(true), json!({})),
        ];
        for (browser, fields) in &cases {
            let mut fields = fields.clone();
            fields["topic"] = json!("news");
            fields["urgency"] = json!("high");
            fields["ttl"] = json!(600);
            let id = send(&mut client, browser, fields.clone());
            assert_eq!(wait_ended(&mut client, &id)["accepted"], 1, "{over} {fields}");
            let received = &mock.received_by(browser)[0];
            assert_eq!((received.version.as_str(), received.body_length, received.text().as_str()), (over, 0, ""), "{fields}");
            assert_eq!([received.content_encoding.as_deref(), received.content_type.as_deref()], SECURED, "{over} {fields}");
            assert!(received.ttl.is_some_and(|ttl| (598..=600).contains(&ttl)), "{:?}", received.ttl);
            assert_eq!((received.urgency.as_deref(), received.topic.as_ref().map(String::len)), (Some("high"), Some(32)));
            assert!(received.vapid.is_some());
        }
        // In one slice with others that have a body, each gets its own.
        let browsers = mock.subscribe(0, 24);
        let requests: Vec<Value> = browsers
            .iter()
            .enumerate()
            .map(|(n, browser)| send_of(&browser.json(), if n % 3 == 0 { json!({}) } else { json!({"payload": n.to_string()}) }))
            .collect();
        for id in send_all(&mut client, &requests) {
            assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
        }
        for (n, browser) in browsers.iter().enumerate() {
            let expected = if n % 3 == 0 { String::new() } else { n.to_string() };
            assert_eq!(mock.received_by(browser)[0].text(), expected, "{over}");
        }
        // A body that is too large is tried again without padding; there is no padding to be lost here.
        let full = mock.subscribe(0, 1).remove(0);
        mock.set_fault(Scope::Subscription(full.token.clone()), vendor::mozilla(413, Some(104), "payload reached size limit"));
        let id = send(&mut client, &full, json!({}));
        assert_eq!(wait_ended(&mut client, &id)["refused"], 1);
        assert_eq!(mock.received_by(&full).len(), 1);
        assert_eq!(mock.counters().violations, Vec::<String>::new());
    }
}

#[test]
fn a_topic_goes_out_hashed_and_replaces_what_waits() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    mock.set_fault_times(of(&browsers[0].token), Fault::status(503).retry_after(3), 1);
    let opener = send(&mut client, &browsers[0], json!({"payload": "opener"}));
    wait_origin(&mut client, &mock.origin(0), "closed");
    let topic =
        |client: &mut _, topic: &str, payload: &str| send(client, &browsers[1], json!({"payload": payload, "topic": topic}));
    let ids = [
        topic(&mut client, "score", "1:0"),
        topic(&mut client, "score", "1:1"),
        topic(&mut client, "weather", "rain"),
        topic(&mut client, "score", "2:1"),
    ];
    for id in ids.iter().chain([&opener]) {
        wait_ended(&mut client, id);
    }
    for id in &ids[..2] {
        let event = event_of(&mut client, id);
        assert_eq!((&event["type"], &event["reason"]), (&json!("skipped"), &json!("superseded")), "{event}");
    }
    let mut arrived: Vec<(String, String)> =
        mock.received_by(&browsers[1]).into_iter().map(|received| (received.text(), received.topic.expect("a topic"))).collect();
    arrived.sort();
    assert_eq!(arrived.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), ["2:1", "rain"]);
    assert!(arrived.iter().all(|(_, topic)| topic.len() == 32 && topic != "score" && topic != "weather"));
    let again = topic(&mut client, "score", "3:1");
    wait_ended(&mut client, &again);
    let last = mock.received_by(&browsers[1]).pop().expect("it arrived");
    assert_eq!(last.topic.as_ref(), Some(&arrived[0].1), "the same topic is the same hash");
    assert_ne!(arrived[0].1, arrived[1].1);
}
