//! The program as a person or a script meets it: exit codes, what is written where, and the client commands against a daemon
//! that is played by the test.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use fanfare_loadtest::output::{code, stderr, stdout};
use serde_json::{Value, json};
use tempfile::TempDir;

fn fanfare() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    command.env_clear().stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    fanfare().args(arguments).output().expect("the program was built")
}

fn feed(arguments: &[&str], input: &str) -> Output {
    let mut child = fanfare()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    // A program that does not want its input closes it.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

// Usage.

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [&["--help"][..], &["--version"], &["send", "--help"], &["help", "events"]] {
        let output = run(arguments);
        assert_eq!(code(&output), 0, "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}

/// Every command of the program, as its help names them.
fn commands() -> Vec<String> {
    let help = stdout(&run(&["--help"]));
    let (_, list) = help.split_once("\nCommands:\n").expect("there are commands");
    let names =
        list.lines().take_while(|line| !line.is_empty()).filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<String> =
        names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect();
    assert!(names.len() > 30, "{names:?}");
    names
}

#[test]
fn help_is_continued_between_words_at_the_end_of_a_line() {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let mut asked: Vec<(PathBuf, Vec<String>)> = commands()
        .into_iter()
        .map(|name| (PathBuf::from(env!("CARGO_BIN_EXE_fanfare")), vec![name, "--help".to_owned()]))
        .collect();
    for program in ["fanfare", "fanfare-load", "fanfare-mock"] {
        asked.push((Path::new(env!("CARGO_BIN_EXE_fanfare")).with_file_name(program), vec!["--help".to_owned()]));
    }
    for (program, arguments) in asked {
        let help = |columns: &str| {
            let output = Command::new(&program).args(&arguments).env_clear().env("COLUMNS", columns).output();
            stdout(&output.expect("the program was built: `cargo build --workspace --bins`"))
        };
        let (narrow, wide) = (help("80"), help("100"));
        assert_eq!(words(&narrow), words(&wide), "{arguments:?}");
        for line in narrow.lines() {
            assert!(line.chars().count() <= 80, "{program:?} {arguments:?}: {line}");
        }
    }
}

// Output that nobody reads, and a disk that is full.

/// A pipe whose reader has gone.
fn closed() -> Stdio {
    std::io::pipe().expect("a pipe").1.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").expect("every Linux has it").into()
}

/// Runs a program with this standard output. Exit code and standard error.
fn into(program: &Path, arguments: &[&str], to: Stdio) -> (i32, String) {
    let output = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(to)
        .output()
        .expect("the program was built");
    assert!(!stderr(&output).contains("panicked"), "{arguments:?}: {}", stderr(&output));
    (code(&output), stderr(&output))
}

#[test]
fn a_reader_that_has_gone_is_no_failure_and_a_full_disk_is_one_error() {
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    let directory = TempDir::new().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    let configuration = path("fanfare.toml");
    assert_eq!(code(&run(&["keygen", "--out", &path("vapid.pem")])), 0);
    let text = format!(
        "data_dir = {}\n[apps.default]\nvapid_keys = [{}]\nsubject = \"mailto:ops@fanfare.dev\"\n",
        json!(path("data")),
        json!(path("vapid.pem"))
    );
    fs::write(&configuration, text).expect("writable");
    let subscription = r#"{"endpoint":"https://push.example/1","keys":{"p256dh":"x","auth":"y"}}"#;
    let element = json!({"ok": true, "messages": [{"message_id": "A"}], "subscriptions": [{"subscription_id": "A", "endpoint": "e", "keys": {}}],
        "stats": [{"day": "2027-01-31"}], "origins": [{"service": "fcm"}]});
    let many: Vec<Value> = (0..20).flat_map(|_| [element.clone(), element.clone()]).collect();
    let owner = directory.path().metadata().expect("ours").uid().to_string();
    let own = path("fanfare.sock");
    let mut asked: Vec<Vec<&str>> = vec![
        vec!["--help"],
        vec!["--version"],
        vec!["help", "send"],
        vec!["--config", &configuration, "--socket", &own, "check-config", "--user", &owner],
        vec!["--config", &configuration, "--socket", &own, "--json", "check-config", "--user", &owner],
    ];
    let daemon = Daemon::start(Play { answers: many.into(), ..Play::default() });
    for arguments in [
        &["ping"][..],
        &["status", "M"],
        &["list"],
        &["stats"],
        &["origins"],
        &["subscriptions"],
        &["count", "--all"],
        &["export"],
        &["account", "anna"],
        &["subscribe", "--subscription", subscription],
        &["send", "--subscription", subscription],
        &["backup"],
        &["vapid-public-key"],
    ] {
        asked.push([&["--socket", &daemon.socket], arguments].concat());
    }
    for arguments in &asked {
        let (code, told) = into(program, arguments, closed());
        assert_eq!(code, 0, "{arguments:?}: {told}");
        let (code, told) = into(program, arguments, full());
        assert_eq!(code, 74, "{arguments:?}: {told}");
        let errors: Vec<&str> = told.lines().filter(|line| line.contains("cannot write to standard output")).collect();
        assert_eq!(errors.len(), 1, "{arguments:?}: {told}");
    }
    let followed = Daemon::start(Play { answers: vec![json!({"cursor": "c1", "type": "gone"})].into(), ..Play::default() });
    assert_eq!(into(program, &["--socket", &followed.socket, "events", "--follow"], closed()).0, 0);

    for (name, arguments) in
        [("fanfare-load", &["--help"][..]), ("fanfare-mock", &["--help"]), ("fanfare-mock", &["--with-parent"])]
    {
        let program = program.with_file_name(name);
        assert_eq!(into(&program, arguments, closed()).0, 0, "{name} {arguments:?}");
        let (code, told) = into(&program, arguments, full());
        assert!(code == 74 && told.contains("cannot write to standard output"), "{name} {arguments:?}: {code} {told}");
    }
}

#[test]
fn setup_goes_on_to_its_end_where_nobody_reads() {
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    for (to, expected) in [(closed as fn() -> Stdio, 0), (full, 74)] {
        let root = TempDir::new().expect("a temporary directory");
        let arguments = ["setup", "--root", root.path().to_str().expect("text"), "--subject", "ops@fanfare.dev"];
        let (code, told) = into(program, &arguments, to());
        assert_eq!(code, expected, "{told}");
        for path in ["etc/fanfare/vapid.pem", "etc/fanfare/fanfare.toml", "var/lib/fanfare"] {
            assert!(root.path().join(path).exists(), "{path}");
        }
    }
    let directory = TempDir::new().expect("a temporary directory");
    for (name, to, expected) in [("a.pem", closed(), 0), ("b.pem", full(), 74)] {
        let file = directory.path().join(name);
        assert_eq!(into(program, &["keygen", "--out", file.to_str().expect("text")], to).0, expected);
        assert!(file.exists());
    }
}

#[test]
fn what_is_wrong_decides_the_exit_code_wherever_output_and_errors_go() {
    for arguments in [&["fly"][..], &["--config", "/no/such/file", "check-config"], &["--socket", "/no/such/socket", "ping"]] {
        let expected = code(&run(arguments));
        for to in [closed as fn() -> Stdio, full] {
            let output = fanfare().args(arguments).stdout(to()).stderr(to()).status().expect("the program was built");
            assert_eq!(output.code(), Some(expected), "{arguments:?}");
        }
    }
}

#[test]
fn usage_errors_exit_64() {
    for arguments in [
        &[][..],
        &["fly"],
        &["send"],
        &["send", "--to", "x", "--subscription", "{}"],
        &["send", "--to", "x", "--payload", "a", "--payload-file", "b"],
        &["send", "--to", "x", "--title", "without navigate"],
        &["send", "--to", "x", "--ttl", "soon"],
        &["send", "--to", "x", "--rate", "0"],
        &["cancel"],
        &["cancel", "ID", "--label", "both"],
        &["status"],
        &["drain", "maybe"],
        &["setup"],
        &["setup", "--subject", "ops at example.com"],
        &["keygen", "only-one-key", "--import"],
        &["keygen", "public", "private"],
        &["list", "--limit", "0"],
        &["send", "--to-account", "anna", "--all"],
        &["send", "--to-id", "A", "--devices", "all"],
        &["send", "--all", "--when", "offline"],
        &["send", "--all", "--payload-json", "{"],
        &["send", "--segment", "[]"],
        &["send", "--segment", "{}", "--tag", "a"],
        &["send", "--attribute", "lang"],
        &["subscribe"],
        &["subscribe", "--subscription", "{}{}"],
        &["subscribe", "--subscription", "{}", "--attributes", "x"],
        &["update", "A"],
        &["update", "A", "--enable", "--disable"],
        &["unsubscribe"],
        &["mark-read", "anna"],
        &["presence", "anna", "away"],
        &["subscriptions", "--account", "anna", "--tag", "a"],
        &["test"],
        &["feedback", "R", "seen"],
        &["erase"],
        &["count", "--all", "--tag", "a"],
        &["export", "--all", "--attribute", "lang=pl"],
        &["events", "--last", "0"],
        &["events", "--last", "5", "--from", "oldest"],
        &["import"],
        &["import", "/no/such/file"],
        &["import", "x", "--format", "xml"],
        &["restore"],
        &["--no-such-flag", "ping"],
    ] {
        let output = run(arguments);
        assert_eq!(code(&output), 64, "{arguments:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{arguments:?} says nothing");
    }
}

// Keys and setup.

#[test]
fn keygen_writes_a_private_file_once() {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("vapid.pem");
    let name = file.to_str().expect("the path is text");
    let made = run(&["keygen", "--out", name]);
    assert_eq!(code(&made), 0, "{}", stderr(&made));
    assert_eq!(stdout(&made).trim().len(), 87, "the public key and nothing else: {}", stdout(&made));
    assert_eq!(file.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
    let before = fs::read(&file).expect("it is ours");
    assert!(before.starts_with(b"-----BEGIN PRIVATE KEY-----"));

    let again = run(&["keygen", "--out", name]);
    assert_eq!(code(&again), 64, "{}", stderr(&again));
    assert_eq!(fs::read(&file).expect("it is ours"), before);

    let nowhere = run(&["keygen", "--out", directory.path().join("no/such/vapid.pem").to_str().expect("text")]);
    assert_eq!(code(&nowhere), 74, "{}", stderr(&nowhere));
}

#[test]
fn a_key_that_root_makes_is_given_to_the_owner_of_the_keys_beside_it() {
    let directory = TempDir::new().expect("a temporary directory");
    if directory.path().metadata().expect("ours").uid() != 0 {
        println!("SKIPPED: only root can give a file away");
        return;
    }
    let made = |name: &str| {
        let file = directory.path().join(name);
        let output = run(&["keygen", "--out", file.to_str().expect("text")]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let found = file.metadata().expect("it was made");
        assert_eq!(found.permissions().mode() & 0o777, 0o600);
        (found.uid(), stderr(&output))
    };
    assert_eq!(made("first.pem").0, 0, "everything here is root's");
    std::os::unix::fs::chown(directory.path().join("first.pem"), Some(65_534), None).expect("root may");
    let (owner, told) = made("second.pem");
    assert!(owner == 65_534 && told.contains("which belongs to nobody"), "{told}");

    // A stranger's file that is no key decides nothing, and neither does one that others can read.
    for name in ["first.pem", "second.pem"] {
        fs::remove_file(directory.path().join(name)).expect("ours");
    }
    fs::write(directory.path().join("a.txt"), "no key").expect("writable");
    std::os::unix::fs::chown(directory.path().join("a.txt"), Some(65_533), None).expect("root may");
    fs::set_permissions(directory.path().join("a.txt"), fs::Permissions::from_mode(0o600)).expect("root may");
    assert_eq!(made("third.pem").0, 0);
    std::os::unix::fs::chown(directory.path(), Some(65_534), None).expect("root may");
    assert_eq!(made("fourth.pem").0, 65_534, "the directory's owner");
}

/// A pair made with `web-push generate-vapid-keys --json`'s format, from RFC 8291's example (appendix A).
const PUBLIC: &str = "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8";
const PRIVATE: &str = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw";
const OTHER_PUBLIC: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";

#[test]
fn keygen_imports_what_belongs_together() {
    let directory = TempDir::new().expect("a temporary directory");
    let file = |name: &str| directory.path().join(name).to_str().expect("the path is text").to_owned();
    let pair = |public: &str| json!({"publicKey": public, "privateKey": PRIVATE}).to_string();

    let good = feed(&["keygen", "--import", "--out", &file("a")], &pair(PUBLIC));
    assert_eq!((code(&good), stdout(&good).trim()), (0, PUBLIC), "{}", stderr(&good));
    let arguments = run(&["keygen", "--import", "--out", &file("b"), PUBLIC, PRIVATE]);
    assert_eq!((code(&arguments), stdout(&arguments).trim()), (0, PUBLIC), "{}", stderr(&arguments));
    let environment = fanfare()
        .args(["keygen", "--import", "--out", &file("c")])
        .envs([("VAPID_PUBLIC_KEY", PUBLIC), ("VAPID_PRIVATE_KEY", PRIVATE)])
        .output()
        .expect("the program was built");
    assert_eq!((code(&environment), stdout(&environment).trim()), (0, PUBLIC), "{}", stderr(&environment));
    let alone = feed(&["keygen", "--import", "--out", &file("d")], PRIVATE);
    assert_eq!((code(&alone), stdout(&alone).trim()), (0, PUBLIC), "{}", stderr(&alone));

    for (name, input) in
        [("mismatch", pair(OTHER_PUBLIC)), ("half", format!("{{\"privateKey\":\"{PRIVATE}\"}}")), ("none", String::new())]
    {
        let bad = feed(&["keygen", "--import", "--out", &file(name)], &input);
        assert_eq!(code(&bad), 64, "{name}");
        assert!(!stderr(&bad).contains(PRIVATE), "{name} shows the private key");
        assert!(!Path::new(&file(name)).exists(), "{name}");
    }
}

#[test]
fn setup_takes_over_a_key_pair() {
    let root = TempDir::new().expect("a temporary directory");
    let arguments = ["setup", "--root", root.path().to_str().expect("text"), "--subject", "ops@example.com", "--import"];
    let pair = json!({"publicKey": PUBLIC, "privateKey": PRIVATE}).to_string();
    let output = feed(&arguments, &pair);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains(PUBLIC), "{}", stdout(&output));
    assert_eq!(code(&feed(&arguments, &pair)), 64, "a key that is there is never replaced");
}

#[test]
fn setup_makes_what_is_missing_and_keeps_the_rest() {
    let root = TempDir::new().expect("a temporary directory");
    let name = root.path().to_str().expect("the path is text");
    let first = run(&["setup", "--root", name, "--subject", "ops@example.com"]);
    assert_eq!(code(&first), 0, "{}", stderr(&first));
    let mode = |path: &str| root.path().join(path).metadata().unwrap_or_else(|_| panic!("{path}")).permissions().mode() & 0o777;
    assert_eq!(mode("etc/fanfare"), 0o755);
    assert_eq!(mode("etc/fanfare/vapid.pem"), 0o600);
    assert_eq!(mode("etc/fanfare/fanfare.toml"), 0o644);
    assert_eq!(mode("var/lib/fanfare"), 0o700);
    let configuration = fs::read_to_string(root.path().join("etc/fanfare/fanfare.toml")).expect("it was made");
    assert!(configuration.contains("subject = \"mailto:ops@example.com\""), "{configuration}");
    assert!(stdout(&first).contains("applicationServerKey"), "{}", stdout(&first));

    let key = fs::read(root.path().join("etc/fanfare/vapid.pem")).expect("it was made");
    let second = run(&["setup", "--root", name, "--subject", "other@example.com"]);
    assert_eq!(code(&second), 0, "{}", stderr(&second));
    assert_eq!(fs::read(root.path().join("etc/fanfare/vapid.pem")).expect("kept"), key);
    assert_eq!(fs::read_to_string(root.path().join("etc/fanfare/fanfare.toml")).expect("kept"), configuration);

    fs::set_permissions(root.path().join("etc/fanfare/vapid.pem"), fs::Permissions::from_mode(0o644)).expect("it is ours");
    let open = run(&["setup", "--root", name, "--subject", "ops@example.com"]);
    assert_eq!(code(&open), 77, "a key that others can read: {}", stderr(&open));
}

// Reaching the daemon.

#[test]
fn without_a_daemon_the_exit_code_is_69() {
    let directory = TempDir::new().expect("a temporary directory");
    let missing = directory.path().join("missing.sock");
    let left_over = directory.path().join("left-over.sock");
    drop(UnixListener::bind(&left_over).expect("the directory is writable"));
    for path in [missing, left_over] {
        let output = run(&["--socket", path.to_str().expect("text"), "ping"]);
        assert_eq!(code(&output), 69, "{}", stderr(&output));
        assert!(stderr(&output).contains("systemctl"), "it says what to do: {}", stderr(&output));
    }
}

#[test]
fn a_socket_of_others_is_77() {
    if nix::unistd::geteuid().is_root() {
        println!("SKIPPED: root may use every socket");
        return;
    }
    let directory = TempDir::new().expect("a temporary directory");
    let path = directory.path().join("closed.sock");
    let _listener = UnixListener::bind(&path).expect("the directory is writable");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).expect("it is ours");
    let output = run(&["--socket", path.to_str().expect("text"), "ping"]);
    assert_eq!(code(&output), 77, "{}", stderr(&output));
    assert!(stderr(&output).contains("usermod"), "{}", stderr(&output));
}

#[test]
fn the_socket_comes_from_the_configuration() {
    let daemon = Daemon::start(Play::default());
    let file = daemon.directory.path().join("fanfare.toml");
    fs::write(&file, format!("[ingest]\nsocket = {}\n", json!(daemon.socket))).expect("writable");
    let named = run(&["ping", "--config", file.to_str().expect("text")]);
    assert_eq!(code(&named), 0, "{}", stderr(&named));
    let environment = fanfare().arg("ping").env("FANFARE__INGEST__SOCKET", &daemon.socket).output().expect("built");
    assert_eq!(code(&environment), 0, "{}", stderr(&environment));
    let missing = run(&["ping", "--config", "/no/such/file.toml"]);
    assert_eq!(code(&missing), 78, "{}", stderr(&missing));
}

// Requests and replies.

#[test]
fn requests_are_those_of_the_protocol() {
    for (arguments, expected) in [
        (&["ping"][..], json!({"op": "ping"})),
        (&["cancel", "ID"], json!({"op": "cancel", "message_id": "ID"})),
        (&["pause", "--label", "news"], json!({"op": "pause", "label": "news"})),
        (&["resume", "--app", "shop", "--rate", "50"], json!({"op": "resume", "app": "shop", "rate": 50})),
        (&["drain", "on"], json!({"op": "drain", "on": true})),
        (&["drain", "off"], json!({"op": "drain", "on": false})),
        (&["reload"], json!({"op": "reload"})),
        (&["vapid-public-key"], json!({"op": "vapid_public_key"})),
        (&["status", "ID"], json!({"op": "status", "message_id": "ID"})),
        (&["origins"], json!({"op": "origins"})),
        (&["list", "--state", "paused"], json!({"op": "list_messages", "state": "paused", "limit": 50})),
        (
            &["stats", "--from", "2027-01-01", "--by", "day,label"],
            json!({"op": "stats", "from": "2027-01-01", "by": ["day", "label"]}),
        ),
        (&["events", "--from", "newest"], json!({"op": "events", "after": "newest", "limit": 1000})),
        (&["events", "--last", "3"], json!({"op": "events", "last": 3, "limit": 1000})),
        (
            &["events", "--after", "newest", "--types", "gone,refused", "--label", "news", "--limit", "7"],
            json!({"op": "events", "after": "newest", "types": ["gone", "refused"], "label": "news", "limit": 7}),
        ),
        (
            &[
                "send",
                "--subscription",
                "{\n\"endpoint\":\"https://x\"}",
                "--payload",
                "{\"b\":1,\"a\":2}",
                "--ttl",
                "2h",
                "--urgency",
                "very-low",
                "--topic",
                "t",
                "--app",
                "shop",
                "--label",
                "l",
                "--ref",
                "r",
                "--at",
                "2027-01-01T00:00:00Z",
                "--paused",
                "--idempotency-key",
                "k",
                "--rate",
                "2.5",
                "--spread",
                "60",
            ],
            json!({"op": "send", "to": {"subscription": {"endpoint": "https://x"}}, "payload": "{\"b\":1,\"a\":2}", "ttl": 7200,
                "urgency": "very-low", "topic": "t", "app": "shop", "label": "l", "ref": "r", "at": "2027-01-01T00:00:00Z", "paused": true,
                "idempotency_key": "k", "rate": 2.5, "spread": 60}),
        ),
        (
            &[
                "send",
                "--to-account",
                "anna",
                "--to-account",
                "ben",
                "--devices",
                "latest",
                "--when",
                "offline",
                "--fallback",
                "5m",
                "--payload-json",
                "{\"b\":1,\"a\":2}",
                "--receipts",
                "--template",
                "--scope",
                "news",
            ],
            json!({"op": "send", "to": {"accounts": ["anna", "ben"], "devices": "latest"}, "payload": {"b": 1, "a": 2}, "when": "offline",
                "fallback": {"after": 300}, "receipts": true, "template": true, "scope": "news"}),
        ),
        (&["send", "--to-id", "A", "--to-id", "B"], json!({"op": "send", "to": {"subscription_ids": ["A", "B"]}})),
        (&["send", "--all"], json!({"op": "send", "to": {"segment": {"all": true}}})),
        (&["send", "--segment", "{\"all\":true}"], json!({"op": "send", "to": {"segment": {"all": true}}})),
        (
            &["send", "--tag", "a", "--tag", "b", "--tag-any", "c", "--tag-none", "d", "--attribute", "lang=pl"],
            json!({"op": "send", "to": {"segment": {"tags": {"all": ["a", "b"], "any": ["c"], "none": ["d"]}, "attributes": {"lang": "pl"}}}}),
        ),
        (
            &[
                "subscribe",
                "--subscription",
                "{\"endpoint\":\"https://x\"}",
                "--app",
                "shop",
                "--account",
                "anna",
                "--name",
                "Phone",
                "--user-agent",
                "M",
                "--scope",
                "news",
                "--tag",
                "a",
                "--attributes",
                "{\"age\":7}",
                "--replaces",
                "https://old",
                "--confirm",
                "{\"payload\":\"hi\"}",
            ],
            json!({"op": "subscribe", "subscription": {"endpoint": "https://x"}, "app": "shop", "account": "anna", "name": "Phone",
                "user_agent": "M", "scopes": ["news"], "tags": ["a"], "attributes": {"age": 7}, "replaces": "https://old",
                "confirm": {"payload": "hi"}}),
        ),
        (
            &["update", "A", "--disable", "--detach", "--no-scopes", "--no-tags", "--name", "N", "--attribute", "a=b=c"],
            json!({"op": "update_subscription", "subscription_id": "A", "enabled": false, "account": null, "scopes": [], "tags": null,
                "name": "N", "attributes": {"a": "b=c"}}),
        ),
        (
            &["update", "A", "--enable", "--all-scopes"],
            json!({"op": "update_subscription", "subscription_id": "A", "enabled": true, "scopes": null}),
        ),
        (&["unsubscribe", "A"], json!({"op": "unsubscribe", "subscription_id": "A"})),
        (&["unsubscribe", "--endpoint", "https://x"], json!({"op": "unsubscribe", "endpoint": "https://x"})),
        (&["subscription", "A", "--reveal"], json!({"op": "subscription", "subscription_id": "A", "reveal": true})),
        (&["account", "anna"], json!({"op": "account", "account": "anna"})),
        (
            &["account", "anna", "--disable", "--app", "shop"],
            json!({"op": "account", "account": "anna", "enabled": false, "app": "shop"}),
        ),
        (
            &["presence", "anna", "online", "--lease", "1m", "--session", "tab"],
            json!({"op": "presence", "account": "anna", "state": "online", "lease": 60, "session": "tab"}),
        ),
        (&["mark-read", "anna", "--topic", "t"], json!({"op": "mark_read", "account": "anna", "topic": "t"})),
        (&["mark-read", "anna", "--message", "M"], json!({"op": "mark_read", "account": "anna", "message_id": "M"})),
        (&["subscriptions"], json!({"op": "list_subscriptions", "limit": 50})),
        (
            &["subscriptions", "--account", "anna", "--all", "--reveal"],
            json!({"op": "list_subscriptions", "account": "anna", "limit": 1000, "reveal": true}),
        ),
        (&["count"], json!({"op": "count"})),
        (&["count", "--all", "--app", "shop"], json!({"op": "count", "app": "shop"})),
        (
            &["count", "--tag-any", "a", "--scope", "news", "--app", "shop"],
            json!({"op": "count", "segment": {"tags": {"any": ["a"]}}, "scope": "news", "app": "shop"}),
        ),
        (
            &["test", "A", "B", "--title", "T", "--navigate", "https://example.com/", "--wait"],
            json!({"op": "test", "subscription_ids": ["A", "B"], "wait": 10,
                "notification": {"title": "T", "navigate": "https://example.com/"}}),
        ),
        (&["test", "--account", "anna"], json!({"op": "test", "account": "anna"})),
        (&["feedback", "R", "clicked"], json!({"op": "feedback", "receipt": "R", "type": "clicked"})),
        (&["erase", "--account", "anna"], json!({"op": "erase", "account": "anna"})),
        (&["erase", "--subscription", "A"], json!({"op": "erase", "subscription_id": "A"})),
        (&["backup", "nightly"], json!({"op": "backup", "name": "nightly"})),
        (
            &["send", "--subscription", "{}", "--title", "T", "--navigate", "https://example.com/", "--body", "B"],
            json!({"op": "send", "to": {"subscription": {}},
                "notification": {"title": "T", "navigate": "https://example.com/", "body": "B"}}),
        ),
    ] {
        let daemon = Daemon::start(Play::default());
        let output = run(&[&["--socket", &daemon.socket], arguments].concat());
        assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
        assert_eq!(daemon.requests(), [expected], "{arguments:?}");
    }
}

#[test]
fn refusals_become_exit_codes() {
    for (error, exit) in
        [("invalid_field", 64), ("not_found", 69), ("not_allowed", 77), ("overloaded", 75), ("shutting_down", 75)]
    {
        let reply = json!({"ok": false, "error": {"code": error, "field": "message_id", "message": "no such message"}});
        let daemon = Daemon::start(Play { answers: VecDeque::from([reply]), ..Play::default() });
        let output = run(&["--socket", &daemon.socket, "status", "ID"]);
        assert_eq!(code(&output), exit, "{error}: {}", stderr(&output));
        assert!(stderr(&output).contains("no such message") && stderr(&output).contains(error), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
    }
}

/// Runs a command against a daemon that gives this reply.
fn answered(arguments: &[&str], reply: Value) -> Output {
    let daemon = Daemon::start(Play { answers: VecDeque::from([reply]), ..Play::default() });
    run(&[&["--socket", &daemon.socket], arguments].concat())
}

#[test]
fn a_word_that_concerns_no_message_exits_69() {
    for command in ["cancel", "pause", "resume"] {
        for (messages, more, exit) in [(0, false, 69), (2, false, 0), (0, true, 0)] {
            let reply = json!({"ok": true, "messages": messages, "recipients": 7 * messages, "more": more});
            let output = answered(&[command, "--label", "typo"], reply.clone());
            assert_eq!(code(&output), exit, "{command} {reply}: {}", stderr(&output));
            // What the daemon said is said all the same.
            assert_eq!(serde_json::from_str::<Value>(&stdout(&output)).expect("JSON"), reply);
            assert_eq!(stderr(&output).contains("no message"), exit == 69, "{}", stderr(&output));
        }
    }
}

#[test]
fn ping_exits_75_while_no_new_messages_are_taken() {
    for (state, exit) in [("ok", 0), ("overloaded", 0), ("read_only", 75), ("draining", 75)] {
        let reply = json!({"ok": true, "version": "1", "state": state, "pending": 12, "uptime": 345});
        let output = answered(&["ping"], reply);
        assert_eq!(code(&output), exit, "{state}: {}", stderr(&output));
        let told: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        assert_eq!((&told["pending"], &told["uptime"]), (&json!(12), &json!(345)));
        assert_eq!(stderr(&output).contains("refused"), exit == 75, "{}", stderr(&output));
    }
}

#[test]
fn a_reload_of_a_bad_configuration_exits_78() {
    let wrong = json!({"ok": false, "error": {"code": "invalid_field", "message": "the configuration cannot be used:\na: wrong\nb: wrong"}});
    let output = answered(&["reload"], wrong);
    assert_eq!(code(&output), 78, "{}", stderr(&output));
    assert!(stderr(&output).contains("not reloaded") && stderr(&output).contains("b: wrong"), "{}", stderr(&output));
    let output = answered(&["reload"], json!({"ok": false, "error": {"code": "not_allowed", "message": "not here"}}));
    assert_eq!(code(&output), 77);
    let output = answered(&["reload"], json!({"ok": true, "restart": ["deliver.timeout"]}));
    assert_eq!((code(&output), stdout(&output).contains("deliver.timeout")), (0, true), "{}", stderr(&output));
}

#[test]
fn a_missing_configuration_or_key_is_named_with_setup_and_exits_78() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name).to_str().expect("text").to_owned();
    let named = run(&["serve", "--config", &path("none.toml")]);
    assert_eq!(code(&named), 78, "{}", stderr(&named));
    assert!(stderr(&named).contains("none.toml") && stderr(&named).contains("fanfare setup"), "{}", stderr(&named));
    if Path::new("/etc/fanfare/fanfare.toml").exists() {
        println!("SKIPPED: this machine has a configuration where it lies by convention");
    } else {
        for command in ["serve", "check-config"] {
            let bare = run(&[command]);
            assert_eq!(code(&bare), 78, "{}", stderr(&bare));
            assert!(stderr(&bare).contains("/etc/fanfare/fanfare.toml. `fanfare setup"), "{}", stderr(&bare));
        }
    }
    let config = path("fanfare.toml");
    let key = path("vapid.pem");
    let text = format!(
        "data_dir = {}\n[ingest]\nsocket = {}\n[metrics]\nlisten = \"\"\n[apps.default]\nvapid_keys = [{}]\nsubject = \"mailto:ops@fanfare.dev\"\n",
        json!(path("data")),
        json!(path("s")),
        json!(key)
    );
    fs::write(&config, text).expect("writable");
    let output = run(&["serve", "--config", &config]);
    assert_eq!(code(&output), 78, "{}", stderr(&output));
    assert!(stderr(&output).contains(&key) && stderr(&output).contains("fanfare setup"), "{}", stderr(&output));
}

#[test]
fn programs_get_json_lines() {
    let reply = json!({"ok": true, "messages": [{"message_id": "A", "recipients": 3}, {"message_id": "B", "recipients": 4}]});
    let daemon = Daemon::start(Play { answers: VecDeque::from([reply]), ..Play::default() });
    let output = run(&["--socket", &daemon.socket, "list"]);
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines, [json!({"message_id": "A", "recipients": 3}), json!({"message_id": "B", "recipients": 4})]);
}

#[test]
fn events_are_read_page_by_page() {
    let event = |n: u32| json!({"cursor": format!("c{n}"), "type": "gone", "message_id": "M"});
    let answers = VecDeque::from([
        event(1),
        event(2),
        json!({"ok": true, "cursor": "c2", "more": true}),
        event(3),
        json!({"ok": true, "cursor": "c3", "more": false}),
    ]);
    let daemon = Daemon::start(Play { answers, ..Play::default() });
    let output = run(&["--socket", &daemon.socket, "events"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 3);
    let after: Vec<Value> = daemon.requests().iter().map(|request| request["after"].clone()).collect();
    assert_eq!(after, [json!("oldest"), json!("c2")]);
}

#[test]
fn followed_events_that_break_off_name_their_cursor() {
    let event = json!({"cursor": "c1", "type": "gone", "message_id": "M"});
    let daemon = Daemon::start(Play { answers: VecDeque::from([event]), hang_up: true, ..Play::default() });
    let output = run(&["--socket", &daemon.socket, "events", "--follow"]);
    assert_eq!(code(&output), 75, "{}", stderr(&output));
    assert!(stderr(&output).contains("--after c1"), "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 1);
}

#[test]
fn watching_ends_when_every_recipient_has_ended() {
    let status = |state: &str, pending: u32, open: bool| json!({"ok": true, "message_id": "M", "state": state, "recipients": 4, "pending": pending, "open": open});
    let answers = VecDeque::from([status("sending", 4, true), status("done", 0, false)]);
    let daemon = Daemon::start(Play { answers, ..Play::default() });
    let output = run(&["--socket", &daemon.socket, "status", "M", "--watch"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 2, "one line a change: {}", stdout(&output));
}

#[test]
fn long_lists_are_read_page_by_page() {
    let page = |from: u32, to: u32, after: Value| {
        let subscriptions: Vec<Value> = (from..to).map(|n| json!({"subscription_id": n.to_string()})).collect();
        json!({"ok": true, "subscriptions": subscriptions, "after": after})
    };
    let answers =
        || VecDeque::from([page(0, 1_000, json!("1000")), page(1_000, 2_000, json!("2000")), page(2_000, 2_001, Value::Null)]);
    let daemon = Daemon::start(Play { answers: answers(), ..Play::default() });
    let output = run(&["--socket", &daemon.socket, "subscriptions", "--all"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().count(), 2_001);
    let after: Vec<Value> = daemon.requests().iter().map(|request| request["after"].clone()).collect();
    assert_eq!(after, [Value::Null, json!("1000"), json!("2000")]);

    let daemon = Daemon::start(Play { answers: answers(), ..Play::default() });
    let output = run(&["--socket", &daemon.socket, "subscriptions", "--limit", "2000", "--after", "0"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(stdout(&output).lines().last(), Some(r#"{"after":"2000"}"#));
    assert_eq!(daemon.requests()[0]["after"], "0");
    assert_eq!(daemon.requests().len(), 2);
}

#[test]
fn a_subscription_may_come_from_a_file_or_a_pipe() {
    let daemon = Daemon::start(Play::default());
    let output =
        feed(&["--socket", &daemon.socket, "subscribe", "-", "--account", "anna"], "{\n\"endpoint\": \"https://x\"\n}\n");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(daemon.requests(), [json!({"op": "subscribe", "subscription": {"endpoint": "https://x"}, "account": "anna"})]);
}

// Files of subscriptions.

fn subscriptions(count: usize) -> String {
    (0..count)
        .map(|n| format!("{{\"endpoint\":\"https://push.example/{n}\",\"keys\":{{\"p256dh\":\"x\",\"auth\":\"y\"}}}}\n"))
        .collect()
}

fn endpoints(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("https://push.example/{n}")).collect()
}

#[test]
fn a_few_subscriptions_share_one_line() {
    let daemon = Daemon::start(Play::default());
    let file = daemon.directory.path().join("subscriptions");
    fs::write(&file, subscriptions(3)).expect("writable");
    let output = run(&["--socket", &daemon.socket, "send", "--to", file.to_str().expect("text"), "--payload", "hello"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let requests = daemon.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0]["to"]["subscriptions"].as_array().expect("an array").len(), 3);
}

#[test]
fn nothing_to_send_to_is_said_before_anything_is_sent() {
    let daemon = Daemon::start(Play::default());
    for input in ["", "[]", "{\"endpoint\":", &format!("{}{{", subscriptions(2_000))] {
        let file = daemon.directory.path().join("subscriptions");
        fs::write(&file, input).expect("writable");
        let output = run(&["--socket", &daemon.socket, "send", "--to", file.to_str().expect("text")]);
        assert_eq!(code(&output), 64, "{}", stderr(&output));
    }
    assert_eq!(code(&run(&["--socket", &daemon.socket, "send", "--to", "/no/such/file"])), 64);
    assert!(daemon.requests().is_empty());
}

#[test]
fn many_subscriptions_become_a_stream() {
    let daemon = Daemon::start(Play::default());
    let input = subscriptions(3_210);
    let output = feed(&["--socket", &daemon.socket, "send", "--to", "-", "--payload", "hello"], &input);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(daemon.taken(), endpoints(3_210));
    let summary: Value = serde_json::from_str(stdout(&output).trim()).expect("one line of JSON");
    assert_eq!((&summary["message_id"], &summary["recipients"]), (&json!("M"), &json!(3_210)));
    assert_eq!(daemon.requests().last().expect("requests")["op"], "status");
    assert!(daemon.state().closed);
}

#[test]
fn a_stream_survives_a_daemon_that_restarts_and_one_without_room() {
    // The connection ends after the line was committed and before it was answered; then two lines get `overloaded`.
    let daemon = Daemon::start(Play { lose_after_adds: Some(3), overloaded_adds: 2, ..Play::default() });
    let output = feed(&["--socket", &daemon.socket, "send", "--to", "-"], &subscriptions(5_000));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(daemon.taken(), endpoints(5_000), "each once, in order");
}

#[test]
fn a_repeated_command_goes_on_where_it_stopped() {
    let daemon = Daemon::start(Play { refuse_after_adds: Some(2), ..Play::default() });
    let arguments = ["--socket", &daemon.socket, "send", "--to", "-", "--idempotency-key", "k"];
    let first = feed(&arguments, &subscriptions(3_000));
    assert_eq!(code(&first), 77, "{}", stderr(&first));
    assert!(stderr(&first).contains("--idempotency-key") && stderr(&first).contains("fanfare cancel M"), "{}", stderr(&first));
    let before = daemon.taken().len();
    assert!(before > 0 && before < 3_000);
    daemon.state().play.refuse_after_adds = None;
    let second = feed(&arguments, &subscriptions(3_000));
    assert_eq!(code(&second), 0, "{}", stderr(&second));
    assert_eq!(daemon.taken(), endpoints(3_000), "each once, in order");
    let third = feed(&arguments, &subscriptions(3_000));
    assert_eq!(code(&third), 0, "{}", stderr(&third));
    assert_eq!(daemon.taken().len(), 3_000);
    let other_file = feed(&arguments, &subscriptions(2_000));
    assert_eq!(code(&other_file), 64, "{}", stderr(&other_file));
}

#[test]
fn rejected_subscriptions_are_told_by_their_place_in_the_file() {
    let daemon = Daemon::start(Play { reject: Some(1_234), ..Play::default() });
    let output = feed(&["--socket", &daemon.socket, "send", "--to", "-"], &subscriptions(2_000));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let lines: Vec<Value> = stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0]["rejected"]["index"], 1_234);
    assert_eq!((&lines[1]["rejected"], &lines[1]["recipients"]), (&json!(1), &json!(1_999)));
}

#[test]
fn a_file_is_handed_in_to_its_end_although_nobody_reads_which_were_rejected() {
    for (to, expected) in [(closed as fn() -> Stdio, 0), (full, 74)] {
        let daemon = Daemon::start(Play { reject: Some(12), ..Play::default() });
        let file = daemon.directory.path().join("subscriptions");
        fs::write(&file, subscriptions(5_000)).expect("writable");
        let arguments = ["--socket", &daemon.socket, "send", "--to", file.to_str().expect("text")];
        let (code, told) = into(Path::new(env!("CARGO_BIN_EXE_fanfare")), &arguments, to());
        assert_eq!(code, expected, "{told}");
        assert_eq!(daemon.taken().len(), 4_999, "{told}");
        assert!(daemon.state().closed);
    }
}

// The daemon that is played.

/// What the played daemon does.
#[derive(Default)]
struct Play {
    /// Given out one after the other, whatever is asked; an event is followed by the next without a request.
    answers: VecDeque<Value>,
    /// Ends the connection when the answers are used up.
    hang_up: bool,
    /// Takes so many adds, then ends the connection without answering the last of them; once.
    lose_after_adds: Option<usize>,
    /// Then so many adds get `overloaded`.
    overloaded_adds: usize,
    /// From then on adds get `not_allowed`.
    refuse_after_adds: Option<usize>,
    /// The n-th subscription is rejected.
    reject: Option<usize>,
}

#[derive(Default)]
struct State {
    play: Play,
    requests: Vec<Value>,
    adds: usize,
    position: Value,
    taken: Vec<String>,
    closed: bool,
}

struct Daemon {
    directory: TempDir,
    socket: String,
    state: Arc<Mutex<State>>,
}

impl Daemon {
    fn start(play: Play) -> Daemon {
        let directory = TempDir::new().expect("a temporary directory");
        let socket: PathBuf = directory.path().join("fanfare.sock");
        let listener = UnixListener::bind(&socket).expect("the directory is writable");
        let state = Arc::new(Mutex::new(State { play, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream.expect("a connection"), &shared));
            }
        });
        Daemon { socket: socket.to_str().expect("the path is text").to_owned(), directory, state }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("the played daemon did not panic")
    }

    fn requests(&self) -> Vec<Value> {
        self.state().requests.clone()
    }

    fn taken(&self) -> Vec<String> {
        self.state().taken.clone()
    }
}

fn serve(stream: UnixStream, state: &Mutex<State>) {
    let mut writer = stream.try_clone().expect("a second handle");
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let request: Value = serde_json::from_str(&line).expect("every request is JSON");
        let mut state = state.lock().expect("no panic");
        state.requests.push(request.clone());
        for reply in state.answer(&request) {
            if writeln!(writer, "{reply}").is_err() {
                return;
            }
        }
        if state.play.hang_up && state.play.answers.is_empty() || state.play.lose_after_adds == Some(state.adds) {
            state.play.lose_after_adds = None;
            let _ = writer.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
}

impl State {
    fn answer(&mut self, request: &Value) -> Vec<Value> {
        if !self.play.answers.is_empty() {
            let mut replies = Vec::new();
            while let Some(reply) = self.play.answers.pop_front() {
                let is_last = reply.get("ok").is_some();
                replies.push(reply);
                if is_last {
                    break;
                }
            }
            return replies;
        }
        let refused = |code: &str, more: Value| {
            let mut error = json!({"code": code, "message": "as the test wants it", "retry_after": 0.05});
            error.as_object_mut().expect("made above").extend(more.as_object().expect("an object").clone());
            vec![json!({"ok": false, "error": error})]
        };
        match request["op"].as_str().expect("every request has op") {
            "send" => vec![json!({"ok": true, "message_id": "M", "state": "sending", "expires": "2027-01-01T00:00:00Z",
                "recipients": self.taken.len(), "position": self.position, "duplicate": !self.position.is_null()})],
            "add" => {
                if self.play.refuse_after_adds.is_some_and(|adds| self.adds >= adds) {
                    return refused("not_allowed", json!({}));
                }
                if self.adds >= 3 && self.play.overloaded_adds > 0 {
                    self.play.overloaded_adds -= 1;
                    return refused("overloaded", json!({}));
                }
                if request["position"] == self.position {
                    return vec![json!({"ok": true, "duplicate": true})];
                }
                if request["previous"] != self.position {
                    return refused("conflict", json!({"position": self.position}));
                }
                let mut rejected = Vec::new();
                for (index, subscription) in request["subscriptions"].as_array().expect("an array").iter().enumerate() {
                    let endpoint = subscription["endpoint"].as_str().expect("the tests make it").to_owned();
                    if self.play.reject.is_some_and(|n| endpoint.ends_with(&format!("/{n}"))) {
                        rejected
                            .push(json!({"index": index, "code": "invalid_field", "field": "keys.auth", "message": "too short"}));
                    } else {
                        self.taken.push(endpoint);
                    }
                }
                self.position = request["position"].clone();
                self.adds += 1;
                if self.play.lose_after_adds == Some(self.adds) {
                    return Vec::new();
                }
                if rejected.is_empty() { vec![json!({"ok": true})] } else { vec![json!({"ok": true, "rejected": rejected})] }
            }
            "close" => {
                self.closed = true;
                vec![json!({"ok": true})]
            }
            "status" => vec![
                json!({"ok": true, "message_id": "M", "state": "sending", "open": !self.closed, "recipients": self.taken.len(),
                "pending": 0, "expires": "2027-01-01T00:00:00Z"}),
            ],
            "events" => vec![json!({"ok": true, "cursor": "c0", "more": false})],
            _ => vec![json!({"ok": true})],
        }
    }
}
