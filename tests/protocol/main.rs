//! The socket protocol (docs/protocol.md) as the developer of a client sees it, sentence by sentence: over the socket of a
//! running
//! daemon, with the mock push service as the other end.

mod apart;
mod balance;
mod bounds;
mod events;
mod lines;
mod pausing;
mod reading;
mod sending;
mod streams;
mod topics;

use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, write_vapid_key};
use fanfare_loadtest::mock::{Fault, Mock, Options, Scope, Subscription};
use fanfare_loadtest::status::{ENDED, adds_up, status};
use serde_json::{Value, json};

/// Generous: the machine may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

/// Adds the apps `shop` and `news`, each with a socket of its own in `directory`.
fn with_two_apps(mut config: ConfigBuilder, directory: &tempfile::TempDir) -> ConfigBuilder {
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    for app in ["shop", "news"] {
        write_vapid_key(path(&format!("{app}.pem")).as_ref()).unwrap();
        config = config
            .set(&format!("apps.{app}.vapid_keys"), json!([path(&format!("{app}.pem"))]))
            .set(&format!("apps.{app}.subject"), "mailto:ops@example.com")
            .set(&format!("sockets.{app}.path"), path(app))
            .set(&format!("sockets.{app}.mode"), 0o600)
            .set(&format!("sockets.{app}.apps"), json!([app]));
    }
    config
}

/// A mock and a daemon that knows it.
fn start(config: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> (Mock, Daemon) {
    let mock = Mock::start(Options::default());
    // Whatever the disk that this runs on has left.
    let defaults = ConfigBuilder::new().mock(&mock).set("store.min_free_percent", 0.1);
    let daemon = Daemon::start(binary(), config(defaults)).expect("the daemon starts");
    (mock, daemon)
}

fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_fanfare")
}

/// Asks until there is an answer.
fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn all(subscriptions: &[Subscription]) -> Value {
    subscriptions.iter().map(Subscription::json).collect()
}

/// A `send` to some subscriptions, with more members.
fn send(subscriptions: &[Subscription], more: Value) -> Value {
    let mut request = json!({"op": "send", "to": {"subscriptions": all(subscriptions)}});
    for (name, value) in more.as_object().expect("members") {
        request[name] = value.clone();
    }
    request
}

/// The id of what a reply tells of.
fn id_of(reply: &Value) -> Value {
    assert!(reply["message_id"].is_string(), "{reply}");
    reply["message_id"].clone()
}

/// The status once nothing is pending.
fn wait_ended(client: &mut Client, id: &Value) -> Value {
    wait_for("the end of a message", || {
        Some(status(client, id)).filter(|status| status["pending"] == 0 && status["open"] == false)
    })
}

/// All events of a message so far.
fn events_of(client: &mut Client, id: &Value) -> Vec<Value> {
    client.events(&json!({"op": "events", "message_id": id, "limit": 100_000})).expect("events").0
}

/// The types of events of a message, sorted, once there are so many.
fn wait_events(client: &mut Client, id: &Value, count: usize) -> Vec<Value> {
    wait_for("events", || Some(events_of(client, id)).filter(|events| events.len() >= count))
}

/// The next try of this subscription's deliveries is an hour away: its service says so.
fn put_off(mock: &Mock, subscription: &Subscription) {
    mock.set_fault(Scope::Subscription(subscription.token.clone()), Fault::status(429).retry_after(3_600));
}

/// The subscription's answers come this late.
fn slow(mock: &Mock, subscription: &Subscription, delay: Duration) {
    mock.set_fault(Scope::Subscription(subscription.token.clone()), Fault::late(delay));
}

fn texts(mock: &Mock, subscription: &Subscription) -> Vec<String> {
    mock.received_by(subscription).iter().map(|received| received.text()).collect()
}

/// Milliseconds since 1970 of a time of the protocol.
fn millis(time: &Value) -> i128 {
    let text = time.as_str().unwrap_or_else(|| panic!("{time} is a time"));
    let parsed = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).expect("RFC 3339");
    parsed.unix_timestamp_nanos() / 1_000_000
}

/// So many seconds from now, as the protocol writes a time.
fn in_seconds(seconds: f64) -> String {
    let time = time::OffsetDateTime::now_utc() + time::Duration::seconds_f64(seconds);
    time.format(&time::format_description::well_known::Rfc3339).expect("a time")
}
