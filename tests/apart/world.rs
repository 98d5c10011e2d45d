//! A daemon with two apps, `news` and `shop`, each with a socket of its own.

use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, write_vapid_key};
use fanfare_loadtest::mock::Mock;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const APPS: [&str; 2] = ["news", "shop"];
/// Lines and bytes that are on their way at once: the socket takes them whole, whoever reads first.
const PIPELINED: usize = 200;
const PIPELINED_BYTES: usize = 64 * 1024;
/// How long an answer is waited for: many lines of `erase` are on their way at once, and each waits for what it ends.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a request that never ends is listened to, and how many of them at once.
const FOLLOWED: Duration = Duration::from_millis(300);
const FOLLOWERS: usize = 32;

/// The apps' VAPID keys, two for each: the same in every world.
pub struct Keys(TempDir);

impl Keys {
    pub fn write() -> Keys {
        let directory = TempDir::new().expect("a temporary directory");
        for name in ["shop", "shop-second", "news", "news-second", "default"] {
            write_vapid_key(&directory.path().join(name)).expect("writable");
        }
        Keys(directory)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("text").to_owned()
    }
}

pub struct World {
    daemon: Daemon,
    sockets: TempDir,
}

impl World {
    pub fn start(mock: &Mock, keys: &Keys) -> World {
        let sockets = TempDir::new().expect("a temporary directory");
        let mut config = ConfigBuilder::new()
            .mock(mock)
            .set("apps.default.vapid_keys", json!([keys.path("default")]))
            .set("presence.grace", 1)
            .set("store.checkpoint_interval", 0.05);
        for app in APPS {
            config = config
                .set(&format!("apps.{app}.vapid_keys"), json!([keys.path(app), keys.path(&format!("{app}-second"))]))
                .set(&format!("apps.{app}.subject"), "mailto:ops@example.com")
                .set(&format!("sockets.{app}.path"), sockets.path().join(app).to_str().expect("text"))
                .set(&format!("sockets.{app}.apps"), json!([app]));
        }
        let daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), config).expect("the daemon starts");
        World { daemon, sockets }
    }

    pub fn client(&self, app: &str) -> Client {
        let mut client = Client::connect(self.sockets.path().join(app)).expect("it listens");
        client.set_timeout(Some(PATIENCE)).expect("a timeout");
        client
    }

    /// The lines that answer each request, asked one behind the other.
    pub fn ask(&self, app: &str, requests: &[Value]) -> Vec<Vec<Value>> {
        let mut client = self.client(app);
        let mut told = Vec::with_capacity(requests.len());
        let mut rest = requests;
        while let Some(first) = rest.first() {
            let mut bytes = 0;
            let follows = first["follow"] == true;
            let most = if follows { FOLLOWERS } else { PIPELINED };
            let fits = |request: &&Value| {
                bytes += request.to_string().len();
                (bytes <= PIPELINED_BYTES) && (request["follow"] == true) == follows
            };
            let count = rest.iter().take(most).take_while(fits).count().max(1);
            let (burst, behind) = rest.split_at(count);
            if follows {
                told.extend(self.follow(app, burst));
            } else {
                let lines: String = burst.iter().map(|request| format!("{request}\n")).collect();
                client.send_raw(lines.as_bytes()).expect("the daemon reads");
                told.extend(burst.iter().map(|request| answer(&mut client, request)));
            }
            rest = behind;
        }
        told
    }

    /// The lines that requests tell which are never answered to the end.
    fn follow(&self, app: &str, requests: &[Value]) -> Vec<Vec<Value>> {
        let mut clients: Vec<Client> = requests.iter().map(|_| self.client(app)).collect();
        for (client, request) in clients.iter_mut().zip(requests) {
            client.send(request).expect("the daemon reads");
        }
        std::thread::sleep(FOLLOWED);
        clients
            .iter_mut()
            .map(|client| {
                client.set_timeout(Some(Duration::from_millis(1))).expect("a timeout");
                std::iter::from_fn(|| client.recv().ok()).collect()
            })
            .collect()
    }

    /// Waits until nothing is under way and what the app is told of itself stays the same.
    pub fn settle(&self, app: &str) {
        const STILL: usize = 5;
        let looks = [json!({"op": "stats", "by": ["label"]}), json!({"op": "events", "after": "newest"})];
        let mut operator = self.daemon.client();
        let deadline = Instant::now() + Duration::from_secs(60);
        let (mut last, mut still) = (Vec::new(), 0);
        while still < STILL {
            assert!(Instant::now() < deadline, "{app} never comes to rest");
            std::thread::sleep(Duration::from_millis(20));
            let now = self.ask(app, &looks);
            let origins = operator.ok(&json!({"op": "origins"}));
            let idle = |origin: &Value| origin["in_flight"] == 0 && origin["waiting"] == 0;
            let at_rest = origins["origins"].as_array().expect("an array").iter().all(idle);
            still = if at_rest && now == last { still + 1 } else { 0 };
            last = now;
        }
    }
}

/// Lines until the one that ends the answer.
fn answer(client: &mut Client, request: &Value) -> Vec<Value> {
    let mut lines = Vec::new();
    loop {
        let line = client.recv().unwrap_or_else(|problem| panic!("{problem} instead of an answer to {request}"));
        let last = line.get("ok").is_some();
        lines.push(line);
        if last {
            return lines;
        }
    }
}
