//! Promise 6: memory is bounded by configuration, whatever applications make the daemon hold; and no app takes another's part.
//!
//! Each test fills one thing from one app's socket as far as it goes, looks at the resident set, lets another app have its part, and
//! starts the daemon anew after a kill: what was held is held again within the same bound.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, write_vapid_key};
use fanfare_loadtest::mock::{Mock, Options};
use serde_json::{Value, json};

const MB: u64 = 1 << 20;
/// Two apps with a socket each, beside the operator's: half of what is bounded is divided by three.
const APPS: u64 = 3;

struct House {
    _mock: Mock,
    daemon: Daemon,
    directory: tempfile::TempDir,
}

impl House {
    fn start(change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> House {
        let directory = tempfile::tempdir().expect("a directory");
        let mock = Mock::start(Options::default());
        let mut config = ConfigBuilder::new()
            .mock(&mock)
            .set("ingest.memory_mb", 8)
            .set("store.cache_mb", 16)
            .set("store.fresh_mb", 4)
            .set("encrypt.warm_memory", 4)
            .set("encrypt.threads", 1);
        for app in ["a", "b"] {
            let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
            let key = path(&format!("{app}.pem"));
            write_vapid_key(key.as_ref()).expect("a key");
            config = config
                .set(&format!("apps.{app}.vapid_keys"), json!([key]))
                .set(&format!("apps.{app}.subject"), "mailto:ops@example.com")
                .set(&format!("sockets.{app}.path"), path(app))
                .set(&format!("sockets.{app}.apps"), json!([app]));
        }
        let daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), change(config)).expect("the daemon starts");
        House { _mock: mock, daemon, directory }
    }

    /// Sends so many lines to an app's socket, pipelined, and counts the replies by their error's code; `ok` is the empty one.
    fn flood(&self, app: &str, lines: u64, line: impl Fn(u64) -> Value + Send + Sync) -> (u64, u64) {
        let stream = UnixStream::connect(self.directory.path().join(app)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        let mut writing = stream.try_clone().expect("a second handle");
        let (mut taken, mut overloaded) = (0, 0);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for n in 0..lines {
                    let mut text = line(n).to_string();
                    text.push('\n');
                    writing.write_all(text.as_bytes()).expect("it reads");
                }
            });
            for reply in BufReader::new(&stream).lines().take(lines as usize) {
                let reply: Value = serde_json::from_str(&reply.expect("a reply")).expect("JSON");
                match reply["error"]["code"].as_str() {
                    None => taken += 1,
                    Some("overloaded") => overloaded += 1,
                    Some(_) => panic!("{reply}"),
                }
            }
        });
        (taken, overloaded)
    }

    fn resident(&self, what: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).expect("it runs");
        let line = status.lines().find(|line| line.starts_with(what)).expect("the kernel tells");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") * 1024
    }

    /// Looks at memory before and after, now and at the peak of a start after a kill: more than `bound` is too much.
    fn grows_at_most(&mut self, bound: u64, fill: impl FnOnce(&House)) {
        let before = self.resident("VmRSS");
        fill(self);
        let grown = self.resident("VmRSS").saturating_sub(before);
        assert!(grown <= bound, "it grew by {} of {} MB", grown / MB, bound / MB);
        self.daemon.kill9();
        self.daemon.restart().expect("it starts again");
        let peak = self.resident("VmHWM").saturating_sub(before);
        assert!(peak <= bound, "the start took {} of {} MB more than the first one", peak / MB, bound / MB);
    }
}

/// Memory that may come beside what is filled: write buffers and cache of the store, the queues of lines, the allocator's slack.
const BESIDE: u64 = (16 + 8 + 4 + 4 + 12) * MB;

#[test]
fn open_streams_are_bounded_and_their_bodies_lie_on_disk() {
    let mut house = House::start(|config| config.set("messages.max_open", 6_000));
    let body = "x".repeat(3_900);
    let stream = |n| json!({"op": "send", "to": {"stream": true}, "payload": body, "label": format!("label {n}")});
    // 5,000 bodies are 20 MB; beside them each takes a kilobyte and a half.
    house.grows_at_most(BESIDE + 8 * MB, |house| {
        let (taken, overloaded) = house.flood("a", 7_000, stream);
        assert_eq!((taken, overloaded), (6_000 - 2 * 6_000 / (2 * APPS), 2_000 + 7_000 - 6_000));
        assert_eq!(house.flood("b", 1_500, stream).0, 6_000 / (2 * APPS), "the other app has its part");
    });
    let mut client = Client::connect(house.directory.path().join("a")).expect("it listens");
    assert_eq!(client.error(&stream(0))["code"], "overloaded", "what is open is known after a start");
    client.ok(&json!({"op": "cancel", "label": "label 7"}));
    let free = fanfare_loadtest::wait(Duration::from_secs(20), || client.request(&stream(7))["ok"] == true);
    assert!(free, "a place is free");
}

#[test]
fn scheduled_campaigns_are_bounded() {
    let mut house = House::start(|config| config.set("messages.max_open", 3_000));
    let at = time::OffsetDateTime::from(std::time::SystemTime::now() + Duration::from_secs(864_000));
    let at = at.format(&time::format_description::well_known::Rfc3339).expect("a date");
    let campaign =
        |_| json!({"op": "send", "to": {"segment": {"all": true}}, "payload": "y".repeat(3_900), "at": at, "ttl": 600});
    house.grows_at_most(BESIDE + 4 * MB, |house| {
        let (taken, overloaded) = house.flood("a", 3_000, campaign);
        assert_eq!((taken, overloaded), (2_000, 1_000));
    });
}

#[test]
fn no_app_fills_what_may_be_pending() {
    let house = House::start(|config| config.set("messages.max_pending", 600));
    let browsers = house._mock.subscribe(0, 1);
    let line = |_| json!({"op": "send", "to": {"subscription": browsers[0].json()}, "payload": "z", "paused": true});
    let (taken, overloaded) = house.flood("a", 700, line);
    assert_eq!((taken, overloaded), (400, 300));
    let state = |app: &str| {
        Client::connect(house.directory.path().join(app)).expect("it listens").ok(&json!({"op": "ping"}))["state"].clone()
    };
    assert_eq!((state("a"), state("b")), (json!("overloaded"), json!("ok")), "who is not refused is told nothing");
    assert_eq!(house.flood("b", 150, line), (100, 50));
    // The operator's own app is full like another; what is urgent finds a twentieth more.
    let mut operator = house.daemon.client();
    let request = |urgency: &str, app: &str| json!({"op": "send", "to": {"subscription": browsers[0].json()}, "payload": "z", "paused": true, "urgency": urgency, "app": app});
    assert_eq!(operator.error(&request("normal", "a"))["code"], "overloaded");
    operator.ok(&request("high", "a"));
}

#[test]
fn accounts_that_are_online_or_disabled_take_little_memory() {
    let mut house = House::start(|config| config);
    house.grows_at_most(BESIDE + 30 * MB, |house| {
        let online =
            |n| json!({"op": "presence", "account": format!("account {n}"), "state": "online", "lease": 3_600, "session": "s"});
        assert_eq!(house.flood("a", 60_000, online).1, 0);
        let disabled = |n| json!({"op": "account", "account": format!("account {n}"), "enabled": false});
        assert_eq!(house.flood("a", 20_000, disabled).1, 0);
    });
}

#[test]
fn paused_and_cancelled_labels_take_little_memory() {
    let mut house = House::start(|config| config);
    house.grows_at_most(BESIDE + 20 * MB, |house| {
        for op in ["pause", "cancel"] {
            let line = |n| json!({"op": op, "label": format!("{op} {n:0>100}")});
            assert_eq!(house.flood("a", 20_000, line).1, 0);
        }
    });
}
