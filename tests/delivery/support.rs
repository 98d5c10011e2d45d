//! What these tests do again and again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::mock::{Mock, Options, Received, Subscription};
use fanfare_loadtest::status::ENDED;
pub use fanfare_loadtest::status::status;
pub use fanfare_loadtest::wait;
use serde_json::{Value, json};

/// Generous: the machine is shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A mock with so many origins.
pub fn mock(origins: usize) -> Mock {
    Mock::start(Options { listeners: origins, ..Options::default() })
}

/// A daemon that knows the mock's origins, each as a service of its own, and keeps every event.
pub fn daemon(mock: &Mock, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Daemon {
    start(change(every_event(ConfigBuilder::new().mock(mock))))
}

/// As [`daemon`], but all of the mock's origins are one service with several origins.
pub fn daemon_of_one_service(mock: &Mock, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Daemon {
    start(change(every_event(ConfigBuilder::new().allow_host("127.0.0.1").root(mock.ca_pem()))))
}

/// A daemon that reaches the real hosts' names, and finds the mock there.
pub fn daemon_of_real_names(mock: &Mock) -> Daemon {
    start(every_event(ConfigBuilder::new().mock(mock)).set("deliver.proxy", mock.proxy_url()))
}

fn start(config: ConfigBuilder) -> Daemon {
    Daemon::start(env!("CARGO_BIN_EXE_fanfare"), config).expect("the daemon starts")
}

/// `accepted` is not kept unless told. How full the machine's disk is, is no matter of these tests.
fn every_event(config: ConfigBuilder) -> ConfigBuilder {
    config.set("store.min_free_percent", 0.5).set("events.log", json!(ENDED))
}

/// A `send` to one subscription with further fields.
pub fn send_of(subscription: &Value, more: Value) -> Value {
    let mut request = json!({"op": "send", "to": {"subscription": subscription}});
    merge(&mut request, more);
    request
}

/// A `send` to a list.
pub fn list_of(subscriptions: &[Subscription], more: Value) -> Value {
    let all: Vec<Value> = subscriptions.iter().map(Subscription::json).collect();
    let mut request = json!({"op": "send", "to": {"subscriptions": all}});
    merge(&mut request, more);
    request
}

fn merge(request: &mut Value, more: Value) {
    for (key, value) in more.as_object().expect("fields") {
        request[key] = value.clone();
    }
}

/// Sends to one subscription; gives the message's id.
pub fn send(client: &mut Client, subscription: &Subscription, more: Value) -> String {
    id_of(&client.ok(&send_of(&subscription.json(), more)))
}

/// Sends many requests in one go; gives the ids.
pub fn send_all(client: &mut Client, requests: &[Value]) -> Vec<String> {
    requests
        .chunks(1_000)
        .flat_map(|chunk| {
            chunk.iter().for_each(|request| client.send(request).expect("the daemon reads"));
            let ids: Vec<String> = chunk.iter().map(|_| id_of(&client.recv().expect("a reply"))).collect();
            ids
        })
        .collect()
}

/// The message's id of a good reply.
pub fn id_of(reply: &Value) -> String {
    assert_eq!(reply["ok"], true, "{reply}");
    reply["message_id"].as_str().expect("an id").to_owned()
}

/// Waits until the status is as wanted, and gives it.
pub fn wait_status(client: &mut Client, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let met = wait(PATIENCE, || {
        last = status(client, id);
        wanted(&last)
    });
    assert!(met, "the message stays {last}");
    last
}

/// Waits until nothing of the message is pending.
pub fn wait_ended(client: &mut Client, id: &str) -> Value {
    wait_status(client, id, |status| status["pending"] == 0)
}

/// All events so far.
pub fn events(client: &mut Client) -> Vec<Value> {
    let mut after = json!("oldest");
    let mut all = Vec::new();
    loop {
        let request = json!({"op": "events", "after": after, "limit": 1_000});
        let (events, end) = client.events(&request).expect("events");
        assert_eq!(end["ok"], true, "{end}");
        all.extend(events);
        if end["more"] != true {
            return all;
        }
        after = end["cursor"].clone();
    }
}

/// The one ending event of a message with one recipient.
pub fn event_of(client: &mut Client, id: &str) -> Value {
    let mut of: Vec<Value> = events(client).into_iter().filter(|event| event["message_id"] == id).collect();
    assert_eq!(of.len(), 1, "one ending event: {of:?}");
    of.remove(0)
}

/// What `origins` tells of an origin; null if it was never met.
pub fn origin(client: &mut Client, url: &str) -> Value {
    let reply = client.ok(&json!({"op": "origins"}));
    let all = reply["origins"].as_array().expect("an array");
    all.iter().find(|origin| origin["origin"] == url).cloned().unwrap_or(Value::Null)
}

/// Waits until an origin is in a state.
pub fn wait_origin(client: &mut Client, url: &str, state: &str) {
    let mut last = Value::Null;
    let met = wait(PATIENCE, || {
        last = origin(client, url);
        last["state"] == state
    });
    assert!(met, "{url} is not {state}: {last}");
}

/// When the mock had the request, in seconds since 1970.
pub fn time(received: &Received) -> f64 {
    received.time as f64 / 1e6
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// RFC 3339 in UTC, whole seconds.
pub fn rfc3339(seconds: u64) -> String {
    let (days, of_day) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Howard Hinnant's `civil_from_days`.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}

/// Seconds since 1970 of a time that the daemon wrote.
pub fn seconds_of(time: &Value) -> f64 {
    let text = time.as_str().unwrap_or_else(|| panic!("a time, not {time}"));
    let number = |range: std::ops::Range<usize>| text[range].parse::<i64>().expect("digits");
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    // Howard Hinnant's `days_from_civil`.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let seconds = days * 86_400 + number(11..13) * 3_600 + number(14..16) * 60 + number(17..19);
    let fraction = text[19..].trim_end_matches('Z');
    let fraction: f64 = if fraction.is_empty() { 0.0 } else { format!("0{fraction}").parse().expect("a fraction") };
    seconds as f64 + fraction
}

#[test]
fn times_are_read_as_they_are_written() {
    for seconds in [0u64, 951_782_400, 1_709_164_799, 1_800_000_000, 4_102_444_799] {
        assert_eq!(seconds_of(&json!(rfc3339(seconds))), seconds as f64, "{}", rfc3339(seconds));
    }
    assert_eq!(seconds_of(&json!("1970-01-01T00:00:01.250Z")), 1.25);
}
