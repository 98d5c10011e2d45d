//! What these tests do again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::mock::{Fault, Mock, Options, Scope, Subscription, subscription_id};
pub use fanfare_loadtest::random::Random;
pub use fanfare_loadtest::status::status;
pub use fanfare_loadtest::wait;
use serde_json::{Value, json};

/// Generous: the machine is shared.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A mock with two origins and a daemon that knows each as a service.
pub fn start(change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> (Mock, Daemon) {
    let mock = Mock::start(Options { listeners: 2, ..Options::default() });
    let config = change(ConfigBuilder::new().mock(&mock).set("presence.grace", 1));
    let daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), config).expect("the daemon starts");
    (mock, daemon)
}

/// A request with more members.
pub fn with(mut request: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("members") {
        request[name] = value.clone();
    }
    request
}

/// Subscribes a browser: its id, which any application can compute.
pub fn subscribe(client: &mut Client, browser: &Subscription, more: Value) -> String {
    let reply = client.ok(&with(json!({"op": "subscribe", "subscription": browser.json()}), more));
    assert_eq!(reply["subscription_id"], id_of(browser), "{reply}");
    id_of(browser)
}

/// Subscribes many at once.
pub fn subscribe_all(client: &mut Client, browsers: &[Subscription], more: impl Fn(usize) -> Value) {
    let requests: Vec<Value> = browsers
        .iter()
        .enumerate()
        .map(|(number, browser)| with(json!({"op": "subscribe", "subscription": browser.json()}), more(number)))
        .collect();
    for burst in requests.chunks(500) {
        burst.iter().for_each(|request| client.send(request).expect("the daemon reads"));
        for _ in burst {
            let reply = client.recv().expect("a reply");
            assert_eq!((&reply["ok"], &reply["created"]), (&json!(true), &json!(true)), "{reply}");
        }
    }
}

/// The id of a browser's subscription.
pub fn id_of(browser: &Subscription) -> String {
    subscription_id(&browser.endpoint)
}

/// Sends; the message's id.
pub fn send(client: &mut Client, to: Value, more: Value) -> String {
    let reply = client.ok(&with(json!({"op": "send", "to": to, "payload": "news"}), more));
    reply["message_id"].as_str().unwrap_or_else(|| panic!("{reply} has no id")).to_owned()
}

/// A number of a status.
pub fn number(status: &Value, name: &str) -> u64 {
    status[name].as_u64().unwrap_or_else(|| panic!("{name} in {status}"))
}

/// Asks until the status is as wanted.
pub fn wait_status(client: &mut Client, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE + PATIENCE;
    loop {
        let status = status(client, id);
        if wanted(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "the message stays {status}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The status when the message has ended.
pub fn wait_ended(client: &mut Client, id: &str) -> Value {
    wait_status(client, id, |status| status["pending"] == 0 && status["open"] == false)
}

/// All events so far that pass these filters.
pub fn events(client: &mut Client, filters: Value) -> Vec<Value> {
    let request = with(json!({"op": "events", "after": "oldest", "limit": 100_000}), filters);
    let (events, end) = client.events(&request).expect("events");
    assert_eq!((&end["ok"], &end["more"]), (&json!(true), &json!(false)), "{end}");
    events
}

/// Events that pass these filters, once there are so many.
pub fn wait_events(client: &mut Client, filters: Value, count: usize) -> Vec<Value> {
    let mut all = Vec::new();
    let met = wait(PATIENCE, || {
        all = events(client, filters.clone());
        all.len() >= count
    });
    assert!(met, "waited in vain for {count} of {filters}: {all:?}");
    all
}

/// What `subscription` tells of a browser.
pub fn subscription(client: &mut Client, browser: &Subscription) -> Value {
    client.ok(&json!({"op": "subscription", "subscription_id": id_of(browser)}))["subscription"].take()
}

/// The number of a segment; all if none is given.
pub fn count(client: &mut Client, more: Value) -> u64 {
    let reply = client.ok(&with(json!({"op": "count"}), more));
    reply["count"].as_u64().unwrap_or_else(|| panic!("{reply} has no count"))
}

/// Every text that a browser has taken.
pub fn texts(mock: &Mock, browser: &Subscription) -> Vec<String> {
    mock.received_by(browser).iter().filter(|received| received.taken()).map(|received| received.text()).collect()
}

/// Requests by browser, whatever became of them.
pub fn requests(mock: &Mock) -> BTreeMap<String, usize> {
    let mut requests = BTreeMap::new();
    for received in mock.received() {
        *requests.entry(received.subscription).or_default() += 1;
    }
    requests
}

/// Which of these browsers have taken something, by their number; each at most once.
pub fn reached(mock: &Mock, browsers: &[Subscription]) -> Vec<usize> {
    let requests = requests(mock);
    let of = |browser: &Subscription| requests.get(&browser.token).copied().unwrap_or(0);
    assert!(browsers.iter().all(|browser| of(browser) <= 1), "one was reached twice: {requests:?}");
    (0..browsers.len()).filter(|number| of(&browsers[*number]) == 1).collect()
}

/// This subscription's push service answers so from now on.
pub fn answer(mock: &Mock, browser: &Subscription, fault: impl Into<Fault>) {
    mock.set_fault(Scope::Subscription(browser.token.clone()), fault);
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// So many seconds from now, as the protocol writes a time.
pub fn in_seconds(seconds: f64) -> String {
    let time = time::OffsetDateTime::now_utc() + time::Duration::seconds_f64(seconds);
    time.format(&time::format_description::well_known::Rfc3339).expect("a time")
}

/// Seconds since 1970 of a time of the protocol.
pub fn seconds_of(time: &Value) -> f64 {
    let text = time.as_str().unwrap_or_else(|| panic!("a time, not {time}"));
    let parsed = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).expect("RFC 3339");
    parsed.unix_timestamp_nanos() as f64 / 1e9
}
