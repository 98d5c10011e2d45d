//! Promises 5 and 6 at the door: whatever the clients of one socket, or whoever can reach the metrics, open, hold, leave half done or do
//! not take, the others get in, the store goes on, and memory and log stay within their bounds.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, write_vapid_key};
use fanfare_loadtest::machine::status_bytes;
use fanfare_loadtest::mock::{Mock, Options, Subscription};
use fanfare_loadtest::status::status;
use fanfare_loadtest::wait;
use serde_json::{Value, json};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon with the operator's socket and one for each of two apps.
struct Stage {
    daemon: Daemon,
    mock: Mock,
    directory: TempDir,
}

impl Stage {
    fn start(config: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Stage {
        room_for_many();
        let directory = tempfile::tempdir().expect("a directory");
        let mock = Mock::start(Options::default());
        let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
        let mut builder = ConfigBuilder::new().mock(&mock);
        for app in ["shop", "news"] {
            write_vapid_key(path(&format!("{app}.pem")).as_ref()).expect("it is written");
            builder = builder
                .set(&format!("apps.{app}.vapid_keys"), json!([path(&format!("{app}.pem"))]))
                .set(&format!("apps.{app}.subject"), "mailto:ops@example.com")
                .set(&format!("sockets.{app}.path"), path(app))
                .set(&format!("sockets.{app}.apps"), json!([app]));
        }
        let daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), config(builder)).expect("it starts");
        Stage { daemon, mock, directory }
    }

    fn socket(&self, app: &str) -> PathBuf {
        self.directory.path().join(app)
    }

    fn connect(&self, app: &str) -> UnixStream {
        let stream = UnixStream::connect(self.socket(app)).expect("it listens");
        stream.set_write_timeout(Some(Duration::from_millis(200))).expect("it can be set");
        stream
    }

    fn resident(&self) -> u64 {
        status_bytes(self.daemon.pid(), "VmRSS").expect("it runs")
    }

    /// The largest resident set while `work` is done, above that before.
    fn grown_while(&self, work: impl FnOnce()) -> u64 {
        let before = self.resident();
        fanfare_loadtest::machine::reset_peak(self.daemon.pid()).expect("it can be reset");
        work();
        status_bytes(self.daemon.pid(), "VmHWM").expect("it runs").saturating_sub(before)
    }

    fn descriptors(&self) -> BTreeSet<u32> {
        let names = std::fs::read_dir(format!("/proc/{}/fd", self.daemon.pid())).expect("it runs");
        names.map(|entry| entry.expect("readable").file_name().to_str().expect("digits").parse().expect("digits")).collect()
    }

    /// What it may open, from now on.
    fn limit(&self, open_files: u32) {
        let pid = self.daemon.pid();
        let limited = Command::new("prlimit").arg(format!("--pid={pid}")).arg(format!("--nofile={open_files}:20000")).status();
        assert!(limited.expect("prlimit is there").success());
    }
}

/// The tests open thousands of connections themselves.
fn room_for_many() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("it can be asked");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit can be raised");
}

fn send(to: &Subscription, payload: &Value) -> Value {
    json!({"op": "send", "to": {"subscription": to.json()}, "payload": payload})
}

fn until(what: &str, so: impl FnMut() -> bool) {
    assert!(wait(PATIENCE, so), "in a minute it was not so that {what}");
}

/// Asks and is answered, within a second.
fn in_time(client: &mut Client, request: &Value) {
    let asked = Instant::now();
    client.ok(request);
    assert!(asked.elapsed() < Duration::from_secs(1), "{} took {:?}", request["op"], asked.elapsed());
}

#[test]
fn idle_connections_of_one_app_leave_the_operator_and_the_other_app_their_part() {
    let stage = Stage::start(|config| config.set("ingest.connections", 96));
    let idle: Vec<UnixStream> = (0..500).map(|_| stage.connect("shop")).collect();
    // A quarter of 96, among three sockets.
    for socket in [stage.daemon.socket(), stage.socket("news")] {
        let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(&socket).expect("it listens")).collect();
        for client in &mut clients {
            in_time(client, &json!({"op": "ping"}));
        }
    }
    stage.daemon.client().ok(&json!({"op": "drain"}));
    let mut told = 0;
    for mut stream in &idle {
        let mut text = [0; 512];
        stream.set_read_timeout(Some(Duration::from_millis(10))).expect("it can be set");
        told += usize::from(stream.read(&mut text).is_ok_and(|read| text[..read].windows(10).any(|part| part == b"overloaded")));
    }
    assert_eq!(told, 500 - (96 - 8 - 8), "each one too many is told so");
    drop(idle);
    until("the app gets in again", || {
        Client::connect(stage.socket("shop")).is_ok_and(|mut client| client.try_request(&json!({"op": "ping"})).is_ok())
    });
}

#[test]
fn thousands_of_connections_end_nothing_where_a_thousand_files_may_be_open() {
    let mut stage = Stage::start(|config| config.open_files(1_024).set("store.cache_mb", 16));
    assert!(stage.daemon.log().contains("LimitNOFILE="), "it is told that there are fewer connections than configured");
    let browsers = stage.mock.subscribe(0, 10);
    let mut client = stage.daemon.client();
    let first = client.ok(&send(&browsers[0], &json!("first")));
    let pages: Vec<TcpStream> =
        (0..300).map(|_| TcpStream::connect(stage.daemon.metrics_address()).expect("it listens")).collect();
    let mut held = Vec::new();
    let mut acked = vec![first["message_id"].as_str().expect("an id").to_owned()];
    for round in 0..8 {
        for app in ["shop", "news"] {
            held.extend((0..250).map(|_| stage.connect(app)));
        }
        // Enough for new log files and tables.
        for n in 0..500 {
            let padding = "x".repeat(3_000);
            let reply = client.ok(&send(&browsers[n % browsers.len()], &json!({"n": n, "round": round, "padding": padding})));
            acked.push(reply["message_id"].as_str().expect("an id").to_owned());
        }
        in_time(&mut stage.daemon.client(), &json!({"op": "ping"}));
        let open = stage.descriptors().len();
        assert!(open < 1_000, "{open} files are open");
    }
    let log = stage.daemon.log();
    assert!(!log.contains("Too many open files"), "{log}");
    assert!(log.lines().count() < 200, "{} lines:\n{log}", log.lines().count());
    for id in &acked {
        until("it is delivered", || status(&mut client, id)["accepted"] == 1);
    }
    drop((pages, held));
    assert_eq!(stage.daemon.terminate().expect("it ends"), 0);
}

#[test]
fn a_store_that_finds_no_descriptor_is_opened_again_in_the_process_and_loses_nothing() {
    let mut stage = Stage::start(|config| config.set("store.cache_mb", 16));
    let browsers = stage.mock.subscribe(0, 10);
    let mut client = stage.daemon.client();
    client.ok(&json!({"op": "ping"}));
    // No more than it has open now; what is free below that, clients take.
    let limit = stage.descriptors().last().expect("some") + 1;
    stage.limit(limit);
    let mut fillers = Vec::new();
    until("all descriptors are taken", || {
        fillers.push(stage.connect("shop"));
        std::thread::sleep(Duration::from_millis(5));
        stage.descriptors().range(..limit).count() as u32 == limit || stage.daemon.log().contains("accepting failed")
    });
    let pid = stage.daemon.pid();
    let mut acked = Vec::new();
    let (mut refused, mut n) = (0, 0);
    let deadline = Instant::now() + PATIENCE;
    // Until the store has been closed and opened, and some more.
    let mut more = 200;
    while more > 0 {
        assert!(Instant::now() < deadline, "no log file was begun, or it stays closed: {}", stage.daemon.log());
        n += 1;
        let request = send(&browsers[n % browsers.len()], &json!({"n": n, "padding": "x".repeat(3_000)}));
        let reply = client.try_request(&request).unwrap_or_else(|problem| panic!("{problem}: {}", stage.daemon.log()));
        if reply["ok"] == true {
            acked.push(reply["message_id"].as_str().expect("an id").to_owned());
            more -= usize::from(refused > 0);
        } else {
            assert_eq!(reply["error"]["code"], "read_only", "{reply}");
            refused += 1;
        }
    }
    assert!(stage.daemon.log().contains("no descriptor for a file"), "{}", stage.daemon.log());
    stage.limit(4_096);
    for id in &acked {
        until("what was accepted is delivered", || status(&mut client, id)["accepted"] == 1);
    }
    assert!(stage.daemon.running() && stage.daemon.pid() == pid, "without a restart");
    drop(fillers);
    assert_eq!(stage.daemon.terminate().expect("it ends"), 0);
    stage.daemon.restart().expect("it starts again");
    let mut client = stage.daemon.client();
    for id in &acked {
        assert_eq!(status(&mut client, id)["accepted"], 1);
    }
}

#[test]
fn whoever_can_reach_the_metrics_takes_nothing_from_the_sockets_nor_fills_the_log() {
    let stage = Stage::start(|config| config);
    let (files, log) = (stage.descriptors().len(), stage.daemon.log().len());
    let mut silent = Vec::new();
    let grown = stage.grown_while(|| {
        for n in 0..3_000 {
            let mut stream = TcpStream::connect(stage.daemon.metrics_address()).expect("it listens");
            if n % 2 == 0 {
                // It may be closed already, in favour of a later one.
                let _closed = stream.write_all(b"GET /metrics HTTP/1.1\r\nX: ");
            }
            silent.push(stream);
        }
        in_time(&mut stage.daemon.client(), &json!({"op": "ping"}));
        assert!(stage.daemon.metric("fanfare_lines_total").expect("the page") > 0.0);
    });
    let open = stage.descriptors().len();
    assert!(open < files + 40, "{open} files are open, {files} were");
    assert!(grown < 8 << 20, "{grown} bytes");
    assert!(stage.daemon.log().len() < log + 4_096, "{}", stage.daemon.log());
}

#[test]
fn half_lines_stay_within_the_configured_memory_and_are_turned_away() {
    const MEMORY_MB: u64 = 16;
    let stage = Stage::start(|config| config.set("ingest.memory_mb", MEMORY_MB));
    let browsers = stage.mock.subscribe(0, 1);
    // A whole line that is longer than what is read at once.
    let long = json!({"op": "send", "to": {"subscriptions": vec![browsers[0].json(); 700]}, "payload": "x", "app": "news"});
    assert!(long.to_string().len() > 128 * 1024, "{}", long.to_string().len());
    let half = vec![b'x'; 1_000_000];
    let mut held = Vec::new();
    let began = Instant::now();
    let grown = stage.grown_while(|| {
        for _ in 0..500 {
            let mut stream = stage.connect("shop");
            // What the daemon does not read stays in the socket, up to its buffer.
            let _written = stream.set_write_timeout(Some(Duration::from_millis(2))).and_then(|()| stream.write_all(&half));
            held.push(stream);
        }
        // Other sockets have their part.
        let mut news = Client::connect(stage.socket("news")).expect("it listens");
        in_time(&mut news, &long);
        in_time(&mut stage.daemon.client(), &long);
        // And on the same one a whole line goes on before the half ones have had all their time.
        let mut whole = long.clone();
        whole["app"] = "shop".into();
        until("a whole line is taken", || {
            Client::connect(stage.socket("shop"))
                .is_ok_and(|mut client| client.try_request(&whole).is_ok_and(|reply| reply["ok"] == true))
        });
        assert!(began.elapsed() < Duration::from_secs(28), "it waited for the others' time: {:?}", began.elapsed());
    });
    let bound = (MEMORY_MB << 20) * 11 / 10 + (8 << 20);
    assert!(grown < bound, "{grown} bytes for {MEMORY_MB} MiB");
    // A line has 30 seconds.
    let mut late = stage.connect("shop");
    late.write_all(b"{\"op\":").expect("it is taken");
    late.set_read_timeout(Some(Duration::from_secs(40))).expect("it can be set");
    let asked = Instant::now();
    let mut told = String::new();
    late.read_to_string(&mut told).expect("one line, and the end");
    assert!(asked.elapsed() > Duration::from_secs(29) && told.contains("overloaded"), "{told} after {:?}", asked.elapsed());
    let metrics = stage.daemon.metrics().expect("the page");
    for reason in ["line_time", "line_memory"] {
        assert!(metrics.contains(&format!("fanfare_turned_away_total{{reason=\"{reason}\"}}")), "{metrics}");
    }
}

/// Connections that send `lines` as far as they are taken and read nothing.
fn deaf(stage: &Stage, connections: usize, lines: &[u8]) -> Vec<UnixStream> {
    let mut deaf = Vec::new();
    for _ in 0..connections {
        let mut stream = stage.connect("shop");
        // The daemon does not read on, or has cut it off.
        let _taken = stream.write_all(lines);
        deaf.push(stream);
    }
    deaf
}

#[test]
fn answers_that_nobody_takes_stay_within_the_configured_memory() {
    const MEMORY_MB: u64 = 16;
    let stage = Stage::start(|config| config.set("ingest.memory_mb", MEMORY_MB));
    let mut shop = Client::connect(stage.socket("shop")).expect("it listens");
    let about = "a".repeat(1_000);
    for browser in stage.mock.subscribe(0, 1_000) {
        shop.ok(&json!({"op": "subscribe", "subscription": browser.json(), "attributes": {"about": about}}));
    }
    let page = json!({"op": "list_subscriptions", "limit": 1_000});
    let size = shop.ok(&page).to_string().len();
    assert!(size > 500_000, "an answer of {size} bytes");
    let bound = (MEMORY_MB << 20) * 11 / 10 + (16 << 20);
    for (what, lines, connections) in [
        ("pages", format!("{page}\n").repeat(20), 150),
        ("errors", "{\"op\":\"nonsense\"}\n".repeat(20_000), 100),
        ("pings", "{\"op\":\"ping\"}\n".repeat(20_000), 100),
    ] {
        let mut held = Vec::new();
        let grown = stage.grown_while(|| {
            held = deaf(&stage, connections, lines.as_bytes());
            std::thread::sleep(Duration::from_secs(3));
            in_time(&mut stage.daemon.client(), &json!({"op": "ping"}));
            let mut news = Client::connect(stage.socket("news")).expect("it listens");
            in_time(&mut news, &json!({"op": "list_subscriptions", "limit": 10}));
        });
        assert!(grown < bound, "{what}: {grown} bytes for {MEMORY_MB} MiB");
        until("the app is answered again", || {
            Client::connect(stage.socket("shop")).is_ok_and(|mut client| client.try_request(&page).is_ok())
        });
    }
}

#[test]
fn a_flood_of_connections_that_are_refused_writes_a_few_lines() {
    let stage = Stage::start(|config| config.set("ingest.connections", 12));
    let held: Vec<UnixStream> = (0..12).map(|_| stage.connect("shop")).collect();
    let (log, files) = (stage.daemon.log().lines().count(), stage.descriptors().len());
    for _ in 0..20_000 {
        drop(stage.connect("shop"));
    }
    let refused: Vec<UnixStream> = (0..500).map(|_| stage.connect("shop")).collect();
    in_time(&mut stage.daemon.client(), &json!({"op": "ping"}));
    let written = stage.daemon.log().lines().count() - log;
    assert!(written < 100, "{written} lines");
    assert!(stage.descriptors().len() < files + 10, "those that were refused hold nothing");
    drop((held, refused));
}
