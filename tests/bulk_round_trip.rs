//! What goes into a daemon's registry comes out again, whole: `import`, `export`, `backup` and `restore` against a running daemon.
//!
//! `tests/bulk.rs` plays the other end of the socket and breaks it; here the other end is real.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, write_vapid_key};
use fanfare_loadtest::mock::{Fault, Mock, Options, Scope, Subscribe, Subscription, subscription_id};
use fanfare_loadtest::output::stderr;
use serde_json::{Value, json};
use tempfile::TempDir;

const BROWSERS: usize = 3_000;
/// Disabled accounts without a browser.
const BANNED: usize = 1_203;
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn what_was_imported_is_exported_and_imported_again() {
    let mock = Mock::start(Options { listeners: 2, ..Options::default() });
    let keys = Keys::make();
    let daemon = keys.daemon(&mock);
    let public = public_keys(&daemon);
    let browsers = browsers(&mock, BROWSERS);
    let lines: Vec<Value> = browsers.iter().enumerate().map(|(n, browser)| record(n, browser, &public)).collect();
    let mut file: Vec<Value> = lines.clone();
    file.push(json!({"account": "anna 3", "app": "default", "enabled": false}));
    // Who has no browser at all is not forgotten either: more of them than a page holds, of both apps.
    let banned = |n: usize| json!({"account": format!("banned.{n} ż"), "app": app_of(n), "enabled": false});
    file.extend((0..BANNED).map(banned));
    let directory = TempDir::new().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    write_lines(&path("in"), &file);

    let dry = run(&daemon, &["import", "--dry-run"], &[&path("in")]);
    assert_eq!((&dry["good"], &dry["rejected"]), (&json!(file.len()), &json!(0)), "{dry}");
    assert_eq!(count(&daemon), 0, "nothing was sent");
    let summary = run(&daemon, &["import"], &[&path("in")]);
    assert_eq!((&summary["created"], &summary["rejected"]), (&json!(BROWSERS), &json!(0)), "{summary}");
    assert_eq!(summary["left_out"], Value::Null, "{summary}");

    let told = run(&daemon, &["export"], &[&path("out")]);
    assert_eq!((&told["subscriptions"], &told["disabled_accounts"]), (&json!(BROWSERS), &json!(BANNED + 1)), "{told}");
    assert_eq!(path("out").metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
    let expected: BTreeMap<String, Value> = file.iter().map(|line| (key(line), normal(line))).collect();
    same(&read(&path("out")), &expected);

    // Once more changes nothing but when they were seen: browsers that `anna 3` has already are no new ones.
    let again = run(&daemon, &["import"], &[&path("out")]);
    assert_eq!((&again["updated"], &again["rejected"]), (&json!(BROWSERS), &json!(0)), "{again}");
    run(&daemon, &["export"], &[&path("out")]);
    same(&read(&path("out")), &expected);

    // Another daemon, of the same keys.
    let second = keys.daemon(&mock);
    let summary = run(&second, &["import"], &[&path("out")]);
    assert_eq!((&summary["created"], &summary["rejected"]), (&json!(BROWSERS), &json!(0)), "{summary}");
    run(&second, &["export"], &[&path("out2")]);
    same(&read(&path("out2")), &expected);
    let told = second.client().ok(&json!({"op": "account", "account": "anna 3", "app": "default"}));
    assert_eq!((&told["enabled"], &told["reachable"]), (&json!(false), &json!(false)), "{told}");
    let told = second.client().ok(&json!({"op": "account", "account": "banned.4 ż", "app": "shop"}));
    assert_eq!((&told["enabled"], &told["subscriptions"]), (&json!(false), &json!([])), "{told}");

    // A part holds the accounts of that part only.
    run(&second, &["export", "--app", "shop"], &[&path("shop")]);
    let shop = expected.iter().filter(|(_, line)| line["app"] == "shop").map(|(key, line)| (key.clone(), line.clone()));
    same(&read(&path("shop")), &shop.collect());
    let told = run(&second, &["export", "--app", "default", "--tag", "t3"], &[&path("tagged")]);
    assert_eq!(told["disabled_accounts"], 1, "that of `anna 3`, who has such a browser: {told}");

    // And of other keys: whoever was subscribed with a key that it does not have could not be written to.
    let stranger = Keys::make().daemon(&mock);
    let output = fanfare(&stranger, &["import"], &[&path("out")]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!((&last(&output)["created"], &last(&output)["rejected"]), (&json!(0), &json!(BROWSERS)), "all of them");
    let rejects = fs::read_to_string(path("out.rejects")).expect("told");
    assert!(rejects.contains("applicationServerKey"), "{}", rejects.lines().next().unwrap_or_default());
}

#[test]
fn what_a_line_says_of_on_and_off_is_so_after() {
    let mock = Mock::start(Options::default());
    let daemon = Keys::make().daemon(&mock);
    let mut client = daemon.client();
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("in");
    // On, off and unsaid, each for one that is new, one that is on and one that is off.
    let browsers = mock.subscribe(0, 9);
    let before = |n: usize| [None, Some(true), Some(false)][n / 3];
    let said = |n: usize| [None, Some(true), Some(false)][n % 3];
    for (n, browser) in browsers.iter().enumerate() {
        if let Some(on) = before(n) {
            client.ok(&json!({"op": "subscribe", "app": "default", "subscription": browser.json()}));
            client
                .ok(&json!({"op": "update_subscription", "subscription_id": subscription_id(&browser.endpoint), "enabled": on}));
        }
    }
    let line = |(n, browser): (usize, &Subscription)| {
        let mut line = json!({"subscription": browser.json(), "app": "default"});
        said(n).into_iter().for_each(|on| line["enabled"] = on.into());
        line
    };
    write_lines(&file, &browsers.iter().enumerate().map(line).collect::<Vec<_>>());
    let summary = run(&daemon, &["import"], &[&file]);
    assert_eq!((&summary["created"], &summary["updated"]), (&json!(3), &json!(6)), "{summary}");
    assert_eq!((&summary["lines"], &summary["rejected"]), (&json!(9), &json!(0)), "{summary}");
    for (n, browser) in browsers.iter().enumerate() {
        let told = client.ok(&json!({"op": "subscription", "endpoint": browser.endpoint}));
        let wanted = said(n).or(before(n)).unwrap_or(true);
        assert_eq!(told["subscription"]["enabled"], wanted, "{:?} -> {:?}", before(n), said(n));
    }
    assert_eq!(count(&daemon), 5, "on are: new and unsaid, new, unsaid, on, and back on");
}

#[test]
fn what_only_the_daemon_knows_is_told_like_the_rest() {
    let mock = Mock::start(Options::default());
    let daemon = Keys::make().daemon(&mock);
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("in");
    let browsers = mock.subscribe(0, 4);
    daemon.client().ok(&json!({"op": "account", "account": "closed", "enabled": false}));
    let mut elsewhere = browsers[1].json();
    elsewhere["endpoint"] = "https://push.nobody.example/1".into();
    write_lines(
        &file,
        &[
            json!({"subscription": browsers[0].json(), "account": "open"}),
            elsewhere,
            json!({"subscription": browsers[2].json(), "account": "closed"}),
            json!({"subscription": browsers[3].json(), "app": "nobody"}),
        ],
    );
    let output = fanfare(&daemon, &["import"], &[&file]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!((&last(&output)["created"], &last(&output)["rejected"]), (&json!(1), &json!(3)), "{}", last(&output));
    let rejects = fs::read_to_string(directory.path().join("in.rejects")).expect("told");
    let mut rejects: Vec<Value> = rejects.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    rejects.sort_by_key(|reject| reject["line"].as_u64());
    let told: Vec<_> = rejects.iter().map(|one| (one["line"].clone(), one["code"].clone(), one["field"].clone())).collect();
    let expected = [(2, "endpoint_refused", "subscription.endpoint"), (3, "not_allowed", "account"), (4, "invalid_field", "app")];
    assert_eq!(told, expected.map(|(line, code, field)| (json!(line), json!(code), json!(field))));
}

#[test]
fn an_import_that_was_killed_goes_on() {
    let mock = Mock::start(Options::default());
    let daemon = Keys::make().daemon(&mock);
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("in");
    // Long enough that it can be hit: the mock needs to know none of them.
    let browser = mock.subscribe(0, 1).remove(0);
    let total = 200_000;
    let lines: Vec<Value> = (0..total)
        .map(|n| {
            let mut own = browser.json();
            own["endpoint"] = format!("{}-{n}", browser.endpoint).into();
            json!({"subscription": own, "account": format!("{}", n / 3), "tags": ["t"]})
        })
        .collect();
    write_lines(&file, &lines);
    let mut killed = 0;
    loop {
        let mut child = start(&daemon, &["import"], &[&file]);
        let begun = Instant::now();
        let state = PathBuf::from(format!("{}.import-state", file.display()));
        let earlier = fs::read(&state).ok();
        // Not before it has noted something, else there is nothing to go on with.
        while child.try_wait().expect("asked").is_none() && (fs::read(&state).ok() == earlier) {
            assert!(begun.elapsed() < PATIENCE + PATIENCE, "the import does not move");
            std::thread::sleep(Duration::from_millis(5));
        }
        if child.try_wait().expect("asked").is_none() && killed < 2 {
            child.kill().expect("it runs");
            child.wait().expect("it ends");
            killed += 1;
            continue;
        }
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", stderr(&output));
        if killed > 0 {
            assert!(stderr(&output).contains("going on with line"), "{}", stderr(&output));
        }
        let summary = last(&output);
        assert_eq!((&summary["lines"], &summary["rejected"]), (&json!(total), &json!(0)), "{summary}");
        break;
    }
    println!("killed {killed} times");
    assert_eq!(count(&daemon), total);
}

#[test]
fn a_backup_of_a_campaign_on_its_way_goes_on_elsewhere_when_it_is_told() {
    let mock = Mock::start(Options::default());
    let keys = Keys::make();
    let daemon = keys.daemon(&mock);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2_000);
    subscribe(&mut client, &browsers);
    let send = json!({"op": "send", "to": {"segment": {"all": true}}, "payload": "x", "rate": 200, "app": "default", "label": "evening"});
    let id = client.ok(&send)["message_id"].clone();
    let status = json!({"op": "status", "message_id": id});
    wait(|| client.ok(&status)["accepted"].as_u64() > Some(100));

    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("fanfare.tar");
    let told = run(&daemon, &["backup", "evening", "--to"], &[&file]);
    assert_eq!(told["name"], "evening", "{told}");
    assert_eq!(file.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
    assert!(fs::read_dir(daemon.data_dir().join("backups")).expect("there").next().is_none(), "it was moved out");
    // In the daemon's own directory, and only once of a name.
    let kept = run(&daemon, &["backup", "kept"], &[]);
    assert!(Path::new(kept["path"].as_str().expect("a path")).join("FROM_BACKUP").exists(), "{kept}");
    let twice = fanfare(&daemon, &["backup", "kept"], &[]);
    assert_eq!(twice.status.code(), Some(64), "{}", stderr(&twice));
    assert!(stderr(&twice).contains("there is a backup of this name"), "{}", stderr(&twice));
    let before = client.ok(&status);
    client.ok(&json!({"op": "cancel", "message_id": id}));
    drop(client);
    drop(daemon);

    let mut second = keys.prepare(&mock);
    fs::create_dir_all(second.data_dir()).expect("writable");
    second.restart().expect("its configuration is written");
    assert_eq!(second.terminate().expect("it ends"), 0);
    fs::remove_dir_all(second.data_dir()).expect("it is there");
    let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .arg("--config")
        .arg(second.config_path())
        .arg("restore")
        .arg(&file)
        .output()
        .expect("built");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("every app paused"), "{}", stderr(&output));
    let posted = mock.received().len();
    second.restart().expect("it starts on the backup");
    assert!(second.log().contains("this store comes from a backup"), "{}", second.log());
    let mut client = second.client();
    let held = client.ok(&status);
    assert_eq!((&held["state"], &held["label"]), (&json!("paused"), &json!("evening")), "{held}");
    assert!(held["accepted"].as_u64() <= before["accepted"].as_u64(), "{held} is not older than {before}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(mock.received().len(), posted, "nothing goes out by itself");
    run(&second, &["resume", "--app", "default", "--rate", "2000"], &[]);
    wait(|| client.ok(&status)["state"] == "done");
    let done = client.ok(&status);
    assert_eq!((&done["recipients"], &done["accepted"]), (&json!(browsers.len()), &json!(browsers.len())), "{done}");
}

#[test]
fn the_registry_of_a_backup_is_handed_to_a_running_daemon() {
    let mock = Mock::start(Options { listeners: 2, ..Options::default() });
    let keys = Keys::make();
    let daemon = keys.daemon(&mock);
    let public = public_keys(&daemon);
    let browsers = browsers(&mock, 500);
    let mut client = daemon.client();
    let mut lines: Vec<Value> = browsers.iter().enumerate().map(|(n, browser)| record(n, browser, &public)).collect();
    lines.push(json!({"account": "anna 3", "app": "default", "enabled": false}));
    let directory = TempDir::new().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    write_lines(&path("in"), &lines);
    run(&daemon, &["import"], &[&path("in")]);
    // One that is gone stays behind.
    let victim = &browsers[4];
    mock.set_fault(Scope::Subscription(victim.token.clone()), Fault::status(410));
    let target =
        json!({"op": "send", "to": {"subscription_ids": [subscription_id(&victim.endpoint)]}, "app": app_of(4), "payload": "x"});
    let reachable = count(&daemon);
    client.ok(&target);
    wait(|| count(&daemon) == reachable - 1);
    let kept = PathBuf::from(run(&daemon, &["backup"], &[])["path"].as_str().expect("a path"));
    run(&daemon, &["backup", "--to"], &[&path("tar")]);

    let expected: BTreeMap<String, Value> = lines
        .iter()
        .filter(|line| line["subscription"]["endpoint"] != victim.endpoint.as_str())
        .map(|line| (key(line), normal(line)))
        .collect();
    for from in [kept, path("tar")] {
        let second = keys.daemon(&mock);
        let output = fanfare_in(directory.path(), &second, &["restore", "--registry"], &[&from]);
        assert!(output.status.success(), "{}", stderr(&output));
        let summary = last(&output);
        assert_eq!(
            (&summary["created"], &summary["rejected"], &summary["accounts"]),
            (&json!(499), &json!(0), &json!(1)),
            "{summary}"
        );
        run(&second, &["export"], &[&path("out")]);
        // Among the rest, the key that each was made with.
        same(&read(&path("out")), &expected);
        assert!(!stderr(&output).contains("vapid_keys"), "{}", stderr(&output));
        let told = second.client().ok(&json!({"op": "account", "account": "anna 3", "app": "default"}));
        assert_eq!(told["enabled"], false, "{told}");
        assert!(!told["subscriptions"].as_array().expect("an array").is_empty(), "{told}");
        let stats = second.client().ok(&json!({"op": "stats", "by": ["app"]}));
        assert_eq!(stats["stats"], json!([]), "nothing is sent");
    }

    // A daemon that has given up one of the keys.
    let only = keys.directory.path().join("second.pem");
    let third = keys.daemon_with(&mock, |config| config.set("apps.default.vapid_keys", json!([only.to_str().expect("text")])));
    let output = fanfare_in(directory.path(), &third, &["restore", "--registry"], &[&path("tar")]);
    assert_eq!((&last(&output)["created"], &last(&output)["rejected"]), (&json!(499), &json!(0)), "{}", stderr(&output));
    run(&third, &["export"], &[&path("out")]);
    let mut wanted = expected;
    let mut lost = 0;
    for line in wanted.values_mut() {
        if line["subscription"]["applicationServerKey"] == public[0].as_str() {
            line["subscription"]["applicationServerKey"] = public[2].as_str().into();
            lost += 1;
        }
    }
    same(&read(&path("out")), &wanted);
    let said = stderr(&output);
    assert!(said.contains(&format!("{lost} subscriptions of default were made with a key")), "{said}");
    assert!(!said.contains("of shop"), "{said}");
}

#[test]
fn the_socket_of_one_app_makes_no_backup_and_shows_no_other_app() {
    let mock = Mock::start(Options::default());
    let keys = Keys::make();
    let socket = keys.directory.path().join("shop.sock");
    let daemon = keys.daemon_with(&mock, |config| {
        config.set("sockets.shop.path", socket.to_str().expect("text")).set("sockets.shop.apps", json!(["shop"]))
    });
    let browsers = mock.subscribe(0, 2);
    let mut client = daemon.client();
    client.ok(&json!({"op": "subscribe", "app": "default", "subscription": browsers[0].json()}));
    client.ok(&json!({"op": "subscribe", "app": "shop", "subscription": browsers[1].json()}));
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .arg("--json")
            .arg("--socket")
            .arg(&socket)
            .args(arguments)
            .output()
            .expect("built");
        (output.status.code(), String::from_utf8(output.stdout).expect("UTF-8"), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    for arguments in [&["backup"][..], &["drain", "on"]] {
        let (code, _, said) = run(arguments);
        assert_eq!(code, Some(77), "{arguments:?}: {said}");
    }
    let (code, out, said) = run(&["export", "-"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(out.contains(&browsers[1].endpoint) && !out.contains(&browsers[0].endpoint), "{out}");
}

// What the tests share.

/// Key files of the two apps, so that a second daemon signs as the first did.
struct Keys {
    directory: TempDir,
}

impl Keys {
    fn make() -> Keys {
        let directory = TempDir::new().expect("a temporary directory");
        for name in ["first.pem", "second.pem", "shop.pem"] {
            write_vapid_key(&directory.path().join(name)).expect("writable");
        }
        Keys { directory }
    }

    fn config(&self, mock: &Mock) -> ConfigBuilder {
        let path = |name: &str| self.directory.path().join(name).to_str().expect("text").to_owned();
        ConfigBuilder::new()
            .mock(mock)
            .set("apps.default.vapid_keys", json!([path("first.pem"), path("second.pem")]))
            .set("apps.shop.vapid_keys", json!([path("shop.pem")]))
            .set("apps.shop.subject", "mailto:shop@example.com")
    }

    fn prepare(&self, mock: &Mock) -> Daemon {
        Daemon::prepare(env!("CARGO_BIN_EXE_fanfare"), self.config(mock)).expect("a directory")
    }

    fn daemon(&self, mock: &Mock) -> Daemon {
        self.daemon_with(mock, |config| config)
    }

    fn daemon_with(&self, mock: &Mock, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> Daemon {
        Daemon::start(env!("CARGO_BIN_EXE_fanfare"), change(self.config(mock))).expect("the daemon starts")
    }
}

/// The first public keys of `default` and `shop`, and the other one of `default`.
fn public_keys(daemon: &Daemon) -> [String; 3] {
    let [default, shop] = ["default", "shop"].map(|app| daemon.client().ok(&json!({"op": "vapid_public_key", "app": app})));
    assert_eq!((&shop["other_keys"], &default["other_keys"][1]), (&Value::Null, &Value::Null), "{shop} {default}");
    [&default["public_key"], &shop["public_key"], &default["other_keys"][0]].map(|key| key.as_str().expect("text").to_owned())
}

/// Every tenth is an old browser.
fn browsers(mock: &Mock, count: usize) -> Vec<Subscription> {
    let old = Subscribe { aesgcm: true, ..Subscribe::default() };
    let mut browsers = Vec::with_capacity(count);
    for n in 0..count {
        browsers.extend(mock.subscribe_with(n % 2, 1, if n % 10 == 9 { &old } else { &DEFAULT }));
    }
    browsers
}

static DEFAULT: Subscribe = Subscribe { application_server_key: None, host: None, vendor: None, aesgcm: false };

fn app_of(n: usize) -> &'static str {
    if n.is_multiple_of(4) { "shop" } else { "default" }
}

/// A line of a file, of everything that a subscription can have, each in some of them only.
fn record(n: usize, browser: &Subscription, public: &[String; 3]) -> Value {
    let mut own = browser.json();
    let key = if app_of(n) == "shop" { 1 } else { n % 2 * 2 };
    own["applicationServerKey"] = public[key].as_str().into();
    if n % 5 == 1 {
        own["expirationTime"] = json!(4_000_000_000_000_u64 + n as u64);
    }
    match n % 3 {
        0 => own["ref"] = json!(format!("row {n}")),
        1 => own["ref"] = json!(n),
        _ => {}
    }
    let mut line = json!({"subscription": own, "app": app_of(n)});
    let mut put = |when: bool, name: &str, value: Value| {
        if when {
            line[name] = value;
        }
    };
    put(n % 3 != 2, "account", json!(if n % 7 == 3 { "anna 3".to_owned() } else { format!("zażółć \"{}\"", n / 4) }));
    put(n.is_multiple_of(2), "name", json!(format!("Anna's phone\n{n}")));
    put(n.is_multiple_of(3), "user_agent", json!("Mozilla/5.0 (X11; Linux x86_64)"));
    put(n % 4 == 1, "scopes", json!(["chat", "news"]));
    put(n % 4 == 2, "scopes", json!([]));
    put(n % 2 == 1, "tags", json!(["a", format!("t{}", n % 17)]));
    put(n % 3 == 1, "attributes", json!({"lang": "pl", "age": n % 90, "paid": n.is_multiple_of(2), "score": 1.5}));
    put(n % 11 == 5, "enabled", json!(false));
    line
}

/// A line with everything that is said by leaving it out.
fn normal(line: &Value) -> Value {
    let mut line = line.clone();
    let members = line.as_object_mut().expect("an object");
    members.remove("created");
    members.remove("seen");
    if let Some(own) = members.get_mut("subscription").and_then(Value::as_object_mut) {
        own.retain(|_, value| !value.is_null());
        members.entry("enabled").or_insert(json!(true));
        members.entry("tags").or_insert(json!([]));
        members.entry("attributes").or_insert(json!({}));
    }
    line
}

fn key(line: &Value) -> String {
    line["subscription"]["endpoint"].as_str().or(line["account"].as_str()).expect("one of them").to_owned()
}

fn read(path: &Path) -> BTreeMap<String, Value> {
    let text = fs::read_to_string(path).expect("it is there");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.map(|line| (key(&line), normal(&line))).collect()
}

fn same(found: &BTreeMap<String, Value>, expected: &BTreeMap<String, Value>) {
    assert_eq!(found.len(), expected.len());
    for (key, line) in expected {
        assert_eq!(found.get(key), Some(line));
    }
}

fn write_lines(path: &Path, lines: &[Value]) {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).expect("writable");
}

fn subscribe(client: &mut Client, browsers: &[Subscription]) {
    for some in browsers.chunks(500) {
        for browser in some {
            client.send(&json!({"op": "subscribe", "app": "default", "subscription": browser.json()})).expect("it reads");
        }
        for _ in some {
            assert_eq!(client.recv().expect("a reply")["ok"], true);
        }
    }
}

fn count(daemon: &Daemon) -> u64 {
    daemon.client().ok(&json!({"op": "count"}))["count"].as_u64().expect("a number")
}

fn wait(condition: impl FnMut() -> bool) {
    assert!(fanfare_loadtest::wait(PATIENCE, condition), "waited in vain");
}

fn command(daemon: &Daemon, arguments: &[&str], files: &[&Path]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    command
        .arg("--json")
        .arg("--config")
        .arg(daemon.config_path())
        .arg("--socket")
        .arg(daemon.socket())
        .args(arguments)
        .args(files);
    command
}

fn start(daemon: &Daemon, arguments: &[&str], files: &[&Path]) -> Child {
    command(daemon, arguments, files).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("built")
}

fn fanfare(daemon: &Daemon, arguments: &[&str], files: &[&Path]) -> Output {
    command(daemon, arguments, files).output().expect("built")
}

fn fanfare_in(directory: &Path, daemon: &Daemon, arguments: &[&str], files: &[&Path]) -> Output {
    command(daemon, arguments, files).current_dir(directory).output().expect("built")
}

/// What a command that succeeds says in the end.
fn run(daemon: &Daemon, arguments: &[&str], files: &[&Path]) -> Value {
    let output = fanfare(daemon, arguments, files);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    last(&output)
}

fn last(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{text} ends without JSON"))
}
