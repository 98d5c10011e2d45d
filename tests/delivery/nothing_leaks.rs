//! Promise 8: logs, even at their most talkative, metrics and errors show a host, and never an endpoint's path, a browser's key, a
//! private key, a token, a payload, or what an application calls its users.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use fanfare_loadtest::mock::{Body, Fault, Scope, Subscribe, vendor};
use serde_json::{Value, json};

use crate::support::*;

const SECRET_TEXT: &str = "the-payload-nobody-may-read";
const SECRET_LABEL: &str = "label-of-account-4711";
const SECRET_REF: &str = "ref-of-account-4711";
const SECRET_TOPIC: &str = "topic-of-account-4711";

#[test]
fn neither_log_nor_metrics_nor_errors_tell_a_secret() {
    let mock = mock(2);
    let mut daemon = daemon(&mock, |config| {
        config
            .env("FANFARE_LOG", "trace")
            .env("RUST_LOG", "trace")
            .set("deliver.timeout", 1)
            .set("retry.min", 0.1)
            .set("retry.max", 0.3)
    });
    let mut client = daemon.client();
    let faults = [
        Fault::from(Fault::status(500).text("oops")),
        Fault::status(429).retry_after(1).into(),
        Fault::Stall,
        Fault::Reset(8),
        Fault::Reset(7),
        Fault::Close,
        Fault::CloseInAnswer,
        vendor::fcm_gone().into(),
        vendor::fcm_key_mismatch().into(),
        vendor::fcm_invalid_jwt().into(),
        Fault::status(400).text("what is this").into(),
        Fault::status(413).into(),
        Fault::status(201).body(Body::Huge(1_000_000)).into(),
        Fault::redirect(307, "https://127.0.0.1:1/redirected-to-a-secret"),
        Fault::status(503).retry_after(1).into(),
    ];
    let mut browsers = mock.subscribe(0, faults.len() + 20);
    browsers.extend(mock.subscribe_with(0, 3, &Subscribe { aesgcm: true, ..Subscribe::default() }));
    browsers.extend(mock.subscribe(1, 10));
    let mut ids = Vec::new();
    for (n, browser) in browsers.iter().enumerate() {
        if let Some(fault) = faults.get(n) {
            mock.set_fault_times(Scope::Subscription(browser.token.clone()), fault.clone(), 1);
        }
        let mut json = browser.json();
        json["ref"] = json!(SECRET_REF);
        let more = json!({
            "payload": SECRET_TEXT, "label": SECRET_LABEL, "topic": SECRET_TOPIC, "ref": SECRET_REF, "ttl": 60,
            "idempotency_key": format!("{SECRET_REF}-{n}"),
        });
        ids.push(id_of(&client.ok(&send_of(&json, more))));
    }
    ids.push(id_of(&client.ok(&list_of(&browsers, json!({"payload": SECRET_TEXT, "label": SECRET_LABEL})))));
    // Connections that fail on the way, and a lane that closes.
    for fault in [Fault::Untrusted, Fault::Garbage] {
        mock.stop_listening(1);
        mock.resume_listening(1);
        mock.set_fault_times(Scope::Origin(1), fault, 1);
        ids.push(send(&mut client, browsers.last().expect("some"), json!({"payload": SECRET_TEXT})));
        std::thread::sleep(Duration::from_millis(300));
    }
    // Lines that are refused: their errors name the field and repeat no value of a secret.
    let one = &browsers[0];
    let mut replies: Vec<Value> = Vec::new();
    let mut wrong = one.json();
    wrong["keys"]["auth"] = json!(format!("{}A", one.auth()));
    replies.push(client.request(&send_of(&wrong, json!({"payload": SECRET_TEXT}))));
    let mut wrong = one.json();
    wrong["endpoint"] = json!(one.endpoint.replace("https:", "http:"));
    replies.push(client.request(&send_of(&wrong, json!({"payload": SECRET_TEXT}))));
    let mut wrong = one.json();
    wrong["endpoint"] = json!(format!("https://elsewhere.example/{}", one.token));
    replies.push(client.request(&send_of(&wrong, json!({"payload": SECRET_TEXT}))));
    replies.push(client.request(&send_of(&one.json(), json!({"payload": SECRET_TEXT.repeat(200)}))));
    replies.push(client.request(&send_of(&one.json(), json!({"payload": SECRET_TEXT, "urgency": SECRET_LABEL}))));
    assert!(replies.iter().all(|reply| reply["ok"] == false), "{replies:?}");
    let half = send_of(&one.json(), json!({"payload": SECRET_TEXT})).to_string();
    client.send_raw(format!("{}\n", &half[..half.len() - 2]).as_bytes()).expect("the daemon reads");
    replies.push(client.recv().expect("a reply"));
    for id in &ids {
        wait_ended(&mut client, id);
    }
    client.ok(&json!({"op": "cancel", "label": SECRET_LABEL}));
    let shown = client.ok(&json!({"op": "origins"}));
    let metrics = daemon.metrics().expect("metrics");
    let told = events(&mut client);
    daemon.signal(nix::sys::signal::Signal::SIGHUP).expect("it runs");
    assert_eq!(daemon.terminate().expect("an orderly end"), 0);

    let log = daemon.log();
    assert!(log.contains("DEBUG") || log.contains("TRACE"), "the log is talkative: {log}");
    let mut secrets: Vec<(&str, String)> = vec![
        ("payload", SECRET_TEXT.to_owned()),
        ("payload in base64", STANDARD.encode(SECRET_TEXT)),
        ("label", SECRET_LABEL.to_owned()),
        ("ref", SECRET_REF.to_owned()),
        ("topic", SECRET_TOPIC.to_owned()),
        ("a token's scheme", "vapid t=".to_owned()),
        ("a redirect", "redirected-to-a-secret".to_owned()),
    ];
    for browser in &browsers {
        secrets.push(("endpoint", browser.token.clone()));
        secrets.push(("auth", browser.auth()));
        secrets.push(("p256dh", browser.p256dh()));
        secrets.push(("auth in standard base64", STANDARD.encode(browser.keys.auth)));
    }
    for received in mock.received() {
        if let Some(vapid) = &received.vapid {
            secrets.push(("token", vapid.token.clone()));
            secrets.push(("token's signature", vapid.token.rsplit('.').next().expect("three parts").to_owned()));
        }
    }
    let pem = std::fs::read_to_string(daemon.directory().join("vapid.pem")).expect("the key");
    for line in pem.lines().filter(|line| !line.starts_with('-')) {
        secrets.push(("private key", line.to_owned()));
    }
    // The scalar itself: 32 bytes behind the tag 04 20 of RFC 5915.
    let der = STANDARD.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>()).expect("base64");
    let at = der.windows(2).position(|pair| pair == [0x04, 0x20]).expect("a scalar") + 2;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    secrets.push(("private key", URL_SAFE_NO_PAD.encode(&der[at..at + 32])));
    secrets.push(("private key in hex", hex(&der[at..at + 32])));
    secrets.sort();
    secrets.dedup();
    let errors = Value::from(replies).to_string();
    for (what, secret) in &secrets {
        for (place, text) in
            [("the log", &log), ("the metrics", &metrics), ("the errors", &errors), ("origins", &shown.to_string())]
        {
            if let Some(line) = text.lines().find(|line| line.contains(secret.as_str())) {
                panic!("{what} in {place}: {line}");
            }
        }
    }
    // Events are for the application, and carry its own label and ref; a capability they do not carry either.
    let told = Value::from(told).to_string();
    for (what, secret) in secrets.iter().filter(|(what, _)| !["label", "ref"].contains(what)) {
        assert!(!told.contains(secret.as_str()), "{what} in events");
    }
}
