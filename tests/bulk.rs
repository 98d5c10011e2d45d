//! Whole registries and stores in and out: `import` of every shape, `export` that `import` reads, `backup` and `restore`.
//!
//! The registry is played by the test, behind a socket like the daemon's; what came of a command is asked through that socket. The
//! store of `restore` is a real one, and so is the daemon that starts on it.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use fanfare::config;
use fanfare::store::Store;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::mock::{Mock, Options};
use fanfare_loadtest::output::{code, stderr, stdout};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

// Import.

#[test]
fn every_shape_is_imported() {
    let wrapped = |n: usize| json!({"subscription": subscription(n), "userId": n}).to_string();
    let bare = |n: usize| {
        let mut bare = subscription(n);
        bare["account"] = n.to_string().into();
        bare.to_string()
    };
    let row = |n: usize| format!("{},{POINT},{AUTH},{n}", endpoint(n));
    let laravel = |n: usize| format!("{n};App\\Models\\User;{n};{};{POINT};{AUTH};aes128gcm;2026-01-01 00:00:00", endpoint(n));
    let shapes: [(&str, String); 7] = [
        ("web-push, wrapped", lines(4, wrapped)),
        ("PushSubscription", lines(4, bare)),
        ("flat CSV", format!("endpoint,p256dh,auth,account\n{}", lines(4, row))),
        ("CSV with dotted names", format!("endpoint,keys.p256dh,keys_auth,user_id\r\n{}", lines(4, row).replace('\n', "\r\n"))),
        (
            "Laravel's push_subscriptions",
            format!(
                "id;subscribable_type;subscribable_id;endpoint;public_key;auth_token;content_encoding;created_at\n{}",
                lines(4, laravel)
            ),
        ),
        ("django-push-notifications", format!("registration_id,p256dh,auth,user\n{}", lines(4, row))),
        (
            "JSON in a column",
            format!(
                "account\tsubscription\n{}",
                lines(4, |n| format!("{n}\t\"{}\"", subscription(n).to_string().replace('"', "\"\"")))
            ),
        ),
    ];
    for (name, text) in shapes {
        let registry = Registry::start(Play::default());
        let file = registry.file("subscribers", &text);
        let output = registry.run(&["import", &file]);
        assert_eq!(code(&output), 0, "{name}: {}", stderr(&output));
        let summary = last(&output);
        assert_eq!((&summary["lines"], &summary["created"], &summary["rejected"]), (&json!(4), &json!(4), &json!(0)), "{name}");
        let kept = registry.subscriptions();
        assert_eq!(kept.len(), 4, "{name}");
        for (n, one) in kept.iter().enumerate() {
            assert_eq!(one["account"], n.to_string(), "{name}");
            assert_eq!(one["subscription"]["endpoint"], endpoint(n), "{name}");
            assert_eq!(one["subscription"]["keys"], json!({"p256dh": POINT, "auth": AUTH}), "{name}");
        }
        assert!(
            !Path::new(&format!("{file}.import-state")).exists() && !Path::new(&format!("{file}.rejects")).exists(),
            "{name}"
        );

        let again = last(&registry.run(&["import", &file]));
        assert_eq!((&again["created"], &again["updated"]), (&json!(0), &json!(4)), "{name}");
    }
}

#[test]
fn what_belongs_to_a_subscription_is_imported_too() {
    let registry = Registry::start(Play::default());
    let csv = format!(
        "endpoint,p256dh,auth,name,tags,scopes,attributes.lang,attributes,enabled,created_at\n\
         {},{POINT},{AUTH},\"Anna's\nphone\",news; sport,[],pl,\"{{\"\"age\"\":7}}\",false,2026-01-01\n",
        endpoint(1)
    );
    let output = registry.run(&["import", &registry.file("x.csv", &csv), "--app", "shop"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(last(&output)["left_out"], json!(["created_at"]));
    let kept = registry.subscriptions().remove(0);
    assert_eq!(
        (&kept["app"], &kept["name"], &kept["tags"], &kept["scopes"], &kept["attributes"], &kept["enabled"]),
        (
            &json!("shop"),
            &json!("Anna's\nphone"),
            &json!(["news", "sport"]),
            &json!([]),
            &json!({"lang": "pl", "age": 7}),
            &json!(false)
        )
    );
}

#[test]
fn a_bad_line_stops_nothing_and_is_told() {
    let registry = Registry::start(Play::default());
    let mut elsewhere = subscription(4);
    elsewhere["endpoint"] = "https://push.refused.example.com/4".into();
    let mut off_curve = subscription(5);
    off_curve["keys"]["p256dh"] = POINT.replace("iw4", "iw8").into();
    let text = format!(
        "{}\n\n{{\"endpoint\"\nnot JSON\n{}\n{elsewhere}\n{off_curve}\n{{\"id\":7}}\n{}\n",
        subscription(0),
        subscription(1),
        subscription(2)
    );
    let file = registry.file("subscribers.ndjson", &text);
    let expected = [
        (3, "bad_json", ""),
        (4, "bad_json", ""),
        (7, "invalid_field", "subscription.keys.p256dh"),
        (8, "missing_field", "subscription"),
    ];
    let told = |path: &str| {
        let text = fs::read_to_string(path).expect("rejects are written");
        assert!(!text.contains(AUTH) && !text.contains("fcm.googleapis.com"), "rejects show no subscription: {text}");
        let mut rejects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        rejects.sort_by_key(|reject| reject["line"].as_u64());
        rejects
    };
    let seen = |rejects: &[Value]| -> Vec<(u64, String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        rejects.iter().map(|one| (one["line"].as_u64().unwrap_or(0), text(&one["code"]), text(&one["field"]))).collect()
    };
    let own = |(line, code, field): (u64, &str, &str)| (line, code.to_owned(), field.to_owned());

    let dry = registry.run(&["import", &file, "--dry-run", "--rejects", &registry.path("dry")]);
    assert_eq!(code(&dry), 0, "{}", stderr(&dry));
    assert_eq!((&last(&dry)["good"], &last(&dry)["rejected"]), (&json!(4), &json!(4)));
    assert_eq!(seen(&told(&registry.path("dry"))), expected.map(own));
    assert!(registry.requests().is_empty(), "nothing is sent");

    let output = registry.run(&["import", &file]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!((&last(&output)["created"], &last(&output)["rejected"]), (&json!(3), &json!(5)));
    assert!(stderr(&output).contains("5 of 8 lines were not taken"), "{}", stderr(&output));
    let rejects = told(&format!("{file}.rejects"));
    // What only the daemon knows is told like the rest.
    assert_eq!(rejects[2]["line"], 6);
    assert_eq!((&rejects[2]["code"], &rejects[2]["message"]), (&json!("endpoint_refused"), &json!("is not taken here")));
    assert_eq!(rejects.len(), 5);
    assert_eq!(registry.subscriptions().len(), 3);
}

#[test]
fn an_import_survives_a_daemon_that_restarts_and_one_without_room() {
    let play = Play { lose_after: Some(2_500), overloaded_from: Some(4_000), overloaded: 700, ..Play::default() };
    let registry = Registry::start(play);
    let file = registry.file("subscribers", &lines(10_000, |n| subscription(n).to_string()));
    let output = registry.run(&["import", &file]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let summary = last(&output);
    assert_eq!(summary["rejected"], 0);
    assert_eq!(summary["created"].as_u64().zip(summary["updated"].as_u64()).map(|(new, old)| new + old), Some(10_000));
    assert_eq!(registry.subscriptions().len(), 10_000);
}

#[test]
fn no_more_is_on_its_way_than_the_daemon_takes() {
    let registry = Registry::start(Play { hold: true, ..Play::default() });
    let file = registry.file("subscribers", &lines(25_000, |n| subscription(n).to_string()));
    let output = registry.run(&["import", &file]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(registry.subscriptions().len(), 25_000);
    let state = registry.state();
    let (most_lines, most_bytes) = state.most;
    assert!((1_000..10_000).contains(&most_lines), "{most_lines} lines unanswered");
    assert!(most_bytes < 4 << 20, "{most_bytes} bytes unanswered");
}

#[test]
fn an_import_goes_on_where_it_stopped() {
    let registry = Registry::start(Play { unknown_op_after: Some(6_000), ..Play::default() });
    let mut text = format!("endpoint,p256dh,auth\n{}", lines(3_000, |n| format!("{},{POINT},{AUTH}", endpoint(n))));
    text.push_str(&format!("{},short,{AUTH}\n", endpoint(1)));
    text.push_str(&lines(9_000, |n| format!("{},{POINT},{AUTH}", endpoint(n + 3_000))));
    let file = registry.file("subscribers.csv", &text);
    let state = format!("{file}.import-state");
    assert_eq!(code(&registry.run(&["import", &file, "--resume"])), 64, "there is nothing to resume");

    let broken = registry.run(&["import", &file]);
    assert_eq!(code(&broken), 64, "{}", stderr(&broken));
    assert!(stderr(&broken).contains("Run the same command again"), "{}", stderr(&broken));
    let noted: Value = serde_json::from_str(&fs::read_to_string(&state).expect("it notes where it stopped")).expect("JSON");
    let line = noted["line"].as_u64().expect("a line");
    assert!((6_000..6_010).contains(&line), "{noted}");

    {
        let mut state = registry.state();
        state.play = Play::default();
        state.requests.clear();
    }
    let output = registry.run(&["import", &file, "--resume"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(registry.subscriptions().len(), 12_000);
    let subscribed = registry.requests().iter().filter(|request| request["op"] == "subscribe").count() as u64;
    assert_eq!(subscribed, 12_002 - line + 1, "only what was not settled");
    let summary = last(&output);
    assert_eq!((&summary["lines"], &summary["rejected"]), (&json!(12_001), &json!(1)));
    assert_eq!(summary["created"], 12_000);
    assert!(!Path::new(&state).exists(), "it is done");
    let rejects = fs::read_to_string(format!("{file}.rejects")).expect("one line was not taken");
    assert_eq!(rejects.lines().count(), 1, "{rejects}");
}

#[test]
fn a_pipe_is_imported_like_a_file() {
    let registry = Registry::start(Play::default());
    let rejects = registry.path("rejects");
    let mut child = registry
        .command(&["import", "-", "--rejects", &rejects])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let text = lines(3, |n| subscription(n).to_string()) + "x\n";
    child.stdin.take().expect("it is piped").write_all(text.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!((registry.subscriptions().len(), &last(&output)["rejected"]), (3, &json!(1)));
    assert!(fs::read_to_string(rejects).expect("one was not taken").contains("\"line\":4"));
}

#[test]
fn what_cannot_be_imported_is_said_before_anything_is_sent() {
    let registry = Registry::start(Play::default());
    for text in ["[{\"endpoint\":\"x\"}]", "id,email\n1,a@example.com\n"] {
        let output = registry.run(&["import", &registry.file("x", text)]);
        assert_eq!(code(&output), 64, "{text}: {}", stderr(&output));
    }
    assert!(registry.requests().is_empty());
    let file = registry.file("x", &subscription(1).to_string());
    let other_app = registry.run(&["import", &file, "--app", "nobody"]);
    assert_eq!(code(&other_app), 64, "{}", stderr(&other_app));
    assert!(registry.subscriptions().is_empty());
    let no_daemon = fanfare(&["--socket", "/no/such/socket", "import", &file]).output().expect("built");
    assert_eq!(code(&no_daemon), 69, "{}", stderr(&no_daemon));
    let empty = registry.run(&["import", &registry.file("empty", "")]);
    assert_eq!((code(&empty), &last(&empty)["lines"]), (0, &json!(0)), "{}", stderr(&empty));
}

// Export.

#[test]
fn an_export_can_be_imported() {
    let registry = Registry::start(Play::default());
    let line = |n: usize| {
        json!({"subscription": subscription(n), "account": n.to_string(), "tags": [format!("t{}", n % 3)], "enabled": n != 7,
            "attributes": {"n": n}})
        .to_string()
    };
    let file = registry.file("subscribers", &lines(2_345, line));
    assert_eq!(code(&registry.run(&["import", &file])), 0);
    let before = registry.subscriptions();

    let exported = registry.path("exported");
    let output = registry.run(&["export", &exported]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(last(&output)["subscriptions"], 2_345);
    assert_eq!(Path::new(&exported).metadata().expect("written").permissions().mode() & 0o777, 0o600);

    let other = Registry::start(Play::default());
    let imported = other.run(&["import", &exported]);
    assert_eq!(code(&imported), 0, "{}", stderr(&imported));
    assert_eq!((&last(&imported)["rejected"], &last(&imported)["left_out"]), (&json!(0), &Value::Null));
    let known = |list: Vec<Value>| -> HashMap<String, Value> {
        list.into_iter().map(|one| (one["subscription_id"].to_string(), one)).collect()
    };
    assert_eq!(known(other.subscriptions()), known(before));

    let part = registry.run(&["export", "-", "--tag", "t1"]);
    assert_eq!(code(&part), 0, "{}", stderr(&part));
    assert_eq!(stdout(&part).lines().count(), 782);
    let one: Value = serde_json::from_str(stdout(&part).lines().next().expect("a line")).expect("JSON");
    assert_eq!(one["subscription"]["keys"]["auth"], AUTH);
}

#[test]
fn a_broken_export_leaves_no_file() {
    let registry = Registry::start(Play { pages: Some(1), ..Play::default() });
    let file = registry.file("subscribers", &lines(1_500, |n| subscription(n).to_string()));
    assert_eq!(code(&registry.run(&["import", &file])), 0);
    let exported = registry.path("exported");
    let output = registry.run(&["export", &exported]);
    assert_eq!(code(&output), 75, "{}", stderr(&output));
    let left: Vec<String> = fs::read_dir(registry.directory.path())
        .expect("readable")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("exported"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

// Backup and restore.

#[test]
fn a_backup_is_taken_out_as_an_archive_and_put_in_place_again() {
    let registry = Registry::start(Play::default());
    let data_dir = registry.directory.path().join("data");
    let store = open_store(&data_dir);
    let made = store.backup("nightly").expect("a backup");
    drop(store);
    registry.state().backup = Some(json!({"ok": true, "name": made.name, "path": made.path, "bytes": made.bytes}));

    let archive = registry.path("nightly.tar");
    let output = registry.run(&["backup", "nightly", "--to", &archive]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(Path::new(&archive).metadata().expect("written").permissions().mode() & 0o777, 0o600);
    assert!(!made.path.exists(), "nothing is left in the data directory");

    let configuration = registry.configuration(&registry.directory.path().join("other"));
    let restore =
        |more: &[&str]| fanfare(&[&["--config", &configuration, "restore", &archive], more].concat()).output().expect("built");
    let first = restore(&[]);
    assert_eq!(code(&first), 0, "{}", stderr(&first));
    assert!(stderr(&first).contains("paused"), "{}", stderr(&first));
    assert_eq!(last(&first)["name"], "nightly");
    let other = open_store(&registry.directory.path().join("other"));
    assert_eq!(other.from_backup().expect("it says so").name, "nightly");

    let in_use = restore(&["--replace"]);
    assert_eq!(code(&in_use), 75, "{}", stderr(&in_use));
    assert!(stderr(&in_use).contains(&std::process::id().to_string()), "{}", stderr(&in_use));
    drop(other);
    let refused = restore(&[]);
    assert_eq!(code(&refused), 64, "{}", stderr(&refused));
    assert!(stderr(&refused).contains("--replace"), "{}", stderr(&refused));
    let replaced = restore(&["--replace"]);
    assert_eq!(code(&replaced), 0, "{}", stderr(&replaced));
    assert!(Path::new(last(&replaced)["put_aside"].as_str().expect("the old one is kept")).join("CURRENT").exists());

    // Cut off, and made of something else.
    let bytes = fs::read(&archive).expect("readable");
    for (name, bytes) in [("half", &bytes[..bytes.len() / 2]), ("none", &b"hello"[..])] {
        let file = registry.path(name);
        fs::write(&file, bytes).expect("writable");
        let output = fanfare(&["--config", &configuration, "restore", &file, "--replace"]).output().expect("built");
        assert!(matches!(code(&output), 64 | 74), "{name}: {}", stderr(&output));
    }
    assert!(open_store(&registry.directory.path().join("other")).from_backup().is_some(), "it is as it was");
}

#[test]
fn a_backup_stays_where_it_is_unless_told() {
    let registry = Registry::start(Play::default());
    registry.state().backup = Some(json!({"ok": true, "name": "x", "path": "/var/lib/fanfare/backups/x", "bytes": 7}));
    let output = registry.run(&["backup"]);
    assert_eq!((code(&output), last(&output)["bytes"].as_u64()), (0, Some(7)), "{}", stderr(&output));
    registry.state().backup = Some(json!({"ok": true, "name": "x", "path": registry.path("data/backups/x"), "bytes": 7}));
    let gone = registry.run(&["backup", "--to", &registry.path("x.tar")]);
    assert_eq!(code(&gone), 74, "{}", stderr(&gone));
    assert!(!Path::new(&registry.path("x.tar")).exists());
}

#[test]
fn what_a_reply_names_is_taken_away_only_if_it_is_a_backup_of_this_store() {
    let registry = Registry::start(Play::default());
    let store = open_store(&registry.directory.path().join("data"));
    let made = store.backup("one").expect("a backup").path;
    // Not a backup; a backup elsewhere; a link to it among the backups; something else beside a backup's files.
    let photos = registry.directory.path().join("photos");
    fs::create_dir(&photos).expect("writable");
    fs::write(photos.join("holiday.jpg"), "precious").expect("writable");
    let elsewhere = registry.directory.path().join("elsewhere");
    fs::rename(store.backup("moved").expect("a backup").path, &elsewhere).expect("ours");
    let link = made.with_file_name("link");
    std::os::unix::fs::symlink(&elsewhere, &link).expect("ours");
    let odd = store.backup("odd").expect("a backup").path;
    fs::write(odd.join("holiday.jpg"), "precious").expect("writable");
    fs::create_dir(made.with_file_name("photos")).expect("writable");
    fs::write(made.with_file_name("photos").join("holiday.jpg"), "precious").expect("writable");
    drop(store);
    for (name, path, exit) in [
        ("photos", photos.clone(), 78),
        ("elsewhere", elsewhere.clone(), 78),
        ("../../photos", made.with_file_name("../../photos"), 78),
        ("..", made.with_file_name(".."), 78),
        ("one", photos.clone(), 78),
        ("link", link, 74),
        ("photos", made.with_file_name("photos"), 64),
    ] {
        registry.state().backup = Some(json!({"ok": true, "name": name, "path": path, "bytes": 7}));
        let output = registry.run(&["backup", "--to", &registry.path("x.tar")]);
        assert_eq!(code(&output), exit, "{name}: {}", stderr(&output));
        assert!(!Path::new(&registry.path("x.tar")).exists(), "{name}");
    }
    assert!(photos.join("holiday.jpg").exists() && elsewhere.join("FROM_BACKUP").exists() && made.join("CURRENT").exists());
    assert!(made.with_file_name("photos").join("holiday.jpg").exists());
    // It is archived, and what is not its own stays.
    registry.state().backup = Some(json!({"ok": true, "name": "odd", "path": odd, "bytes": 7}));
    let output = registry.run(&["backup", "--to", &registry.path("odd.tar")]);
    assert_eq!(code(&output), 74, "{}", stderr(&output));
    assert!(stderr(&output).contains("cannot remove"), "{}", stderr(&output));
    assert!(odd.join("holiday.jpg").exists() && Path::new(&registry.path("odd.tar")).exists());
}

#[test]
fn a_restored_store_starts_with_everything_paused_and_says_so() {
    let mock = Mock::start(Options::default());
    let mut daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), ConfigBuilder::new().mock(&mock)).expect("it starts");
    let at = time::OffsetDateTime::from(SystemTime::now() + Duration::from_secs(3_600));
    let at = at.format(&time::format_description::well_known::Rfc3339).expect("a date");
    let browser = mock.subscribe(0, 1).remove(0);
    let send = json!({"op": "send", "to": {"subscription": browser.json()}, "payload": "x", "at": at});
    let id = daemon.client().ok(&send)["message_id"].clone();
    let status = json!({"op": "status", "message_id": id});
    assert_eq!(daemon.client().ok(&status)["state"], "scheduled");
    let cursor = daemon.client().ok(&json!({"op": "events"}))["cursor"].clone();
    assert_eq!(daemon.terminate().expect("it ends"), 0);

    let backup = open_store(&daemon.data_dir()).backup("before").expect("a backup").path;
    let configuration = daemon.config_path().to_str().expect("text").to_owned();
    let output =
        fanfare(&["--config", &configuration, "restore", backup.to_str().expect("text"), "--replace"]).output().expect("built");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    daemon.restart().expect("it starts on the backup");
    assert!(daemon.log().contains("this store comes from a backup"), "{}", daemon.log());
    assert_eq!(daemon.client().ok(&status)["state"], "paused");
    assert_eq!(daemon.client().error(&json!({"op": "events", "after": cursor}))["code"], "cursor_expired");
    daemon.client().ok(&json!({"op": "resume", "app": "default"}));
    assert_eq!(daemon.client().ok(&status)["state"], "scheduled");

    // Once only: from then on it is a store like any other.
    assert_eq!(daemon.terminate().expect("it ends"), 0);
    let before = daemon.log().matches("this store comes from a backup").count();
    daemon.restart().expect("it starts");
    assert_eq!(daemon.log().matches("this store comes from a backup").count(), before);
    assert_eq!(daemon.client().ok(&status)["state"], "scheduled");
    let held =
        fanfare(&["--config", &configuration, "restore", backup.to_str().expect("text"), "--replace"]).output().expect("built");
    assert_eq!(code(&held), 75, "{}", stderr(&held));
    assert!(stderr(&held).contains(&daemon.pid().to_string()), "{}", stderr(&held));
}

// What the tests share.

/// RFC 8291 section 5.
const POINT: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

fn endpoint(n: usize) -> String {
    format!("https://fcm.googleapis.com/fcm/send/browser-{n}")
}

fn subscription(n: usize) -> Value {
    json!({"endpoint": endpoint(n), "expirationTime": null, "keys": {"p256dh": POINT, "auth": AUTH}})
}

fn lines(count: usize, line: impl Fn(usize) -> String) -> String {
    (0..count).map(|n| line(n) + "\n").collect()
}

fn open_store(data_dir: &Path) -> Store {
    let settings = config::Store {
        checkpoint_interval: Duration::from_millis(250),
        cache_mb: 16,
        min_free_percent: 0.0,
        reserve_mb: 1,
        fresh_mb: 1,
    };
    Store::open(data_dir, &settings, &[]).expect("nobody else has it open")
}

fn fanfare(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanfare"));
    command.env_clear().stdin(Stdio::null()).args(arguments);
    command
}

/// The last line of its output.
fn last(output: &Output) -> Value {
    let text = stdout(output);
    let line = text.lines().last().unwrap_or_else(|| panic!("it says nothing: {}", stderr(output)));
    serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))
}

// The registry that is played.

/// What the played registry does besides.
#[derive(Default)]
struct Play {
    /// Ends the connection when so many were taken, before the last of them is answered; once.
    lose_after: Option<usize>,
    /// From then on so many lines are answered `overloaded`.
    overloaded_from: Option<usize>,
    overloaded: usize,
    /// From then on nothing is known.
    unknown_op_after: Option<usize>,
    /// Answers only when nothing more comes.
    hold: bool,
    /// So many pages of a list, then the connection ends.
    pages: Option<usize>,
}

#[derive(Default)]
struct State {
    play: Play,
    requests: Vec<Value>,
    /// By endpoint, in the order in which they came.
    kept: Vec<Value>,
    places: HashMap<String, usize>,
    taken: usize,
    /// Most lines and bytes that were unanswered.
    most: (usize, usize),
    backup: Option<Value>,
}

struct Registry {
    directory: TempDir,
    socket: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Registry {
    fn start(play: Play) -> Registry {
        let directory = TempDir::new().expect("a temporary directory");
        let socket = directory.path().join("fanfare.sock");
        let listener = UnixListener::bind(&socket).expect("the directory is writable");
        let state = Arc::new(Mutex::new(State { play, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream.expect("a connection"), &shared));
            }
        });
        Registry { directory, socket, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the played registry did not panic")
    }

    fn requests(&self) -> Vec<Value> {
        self.state().requests.clone()
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("text").to_owned()
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).expect("writable");
        path
    }

    /// A configuration with another data directory.
    fn configuration(&self, data_dir: &Path) -> String {
        let key = self.path("vapid.pem");
        fanfare_loadtest::daemon::write_vapid_key(Path::new(&key)).expect("writable");
        let text = format!(
            "data_dir = {}\n[apps.default]\nvapid_keys = [{}]\nsubject = \"mailto:ops@example.com\"\n",
            json!(data_dir),
            json!(key)
        );
        self.file("fanfare.toml", &text)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = fanfare(&[&["--socket", self.socket.to_str().expect("text")], arguments].concat());
        command.env("FANFARE__DATA_DIR", self.path("data"));
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program was built")
    }

    /// All that it keeps, asked through the socket.
    /// As they were handed in: this registry hides nothing.
    fn subscriptions(&self) -> Vec<Value> {
        let output = self.run(&["subscriptions", "--all"]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

/// A subscription as `list_subscriptions` tells it: the browser's own members beside the others.
fn told(one: &Value) -> Value {
    let mut told = one.clone();
    let members = told.as_object_mut().expect("an object");
    if let Some(Value::Object(own)) = members.remove("subscription") {
        members.extend(own);
    }
    told
}

fn serve(mut stream: UnixStream, state: &Mutex<State>) {
    let mut writer = stream.try_clone().expect("a second handle");
    if state.lock().expect("no panic").play.hold {
        return serve_slowly(&mut stream, &mut writer, state);
    }
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let mut state = state.lock().expect("no panic");
        let Some(reply) = state.answer(&line) else {
            let _ended = writer.shutdown(std::net::Shutdown::Both);
            return;
        };
        if writeln!(writer, "{reply}").is_err() {
            return;
        }
    }
}

/// Reads until nothing more comes, and answers then.
fn serve_slowly(stream: &mut UnixStream, writer: &mut UnixStream, state: &Mutex<State>) {
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
    let mut text: Vec<u8> = Vec::new();
    let mut bytes = vec![0; 1 << 16];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(read) => {
                text.extend_from_slice(&bytes[..read]);
                continue;
            }
            Err(_) if text.is_empty() => continue,
            Err(_) => {}
        }
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut state = state.lock().expect("no panic");
        let lines: Vec<String> = String::from_utf8_lossy(&text[..whole]).lines().map(str::to_owned).collect();
        state.most = (state.most.0.max(lines.len()), state.most.1.max(whole));
        let replies: String = lines.iter().filter_map(|line| state.answer(line)).map(|reply| format!("{reply}\n")).collect();
        text.drain(..whole);
        drop(state);
        if writer.write_all(replies.as_bytes()).is_err() {
            return;
        }
    }
}

impl State {
    /// None: the connection ends.
    fn answer(&mut self, line: &str) -> Option<Value> {
        let request: Value = serde_json::from_str(line).expect("every request is JSON");
        let reply = self.reply(&request);
        self.requests.push(request);
        reply
    }

    fn reply(&mut self, request: &Value) -> Option<Value> {
        let refused = |code: &str, field: &str, message: &str| {
            Some(json!({"ok": false, "error": {"code": code, "field": field, "message": message, "retry_after": 0.05}}))
        };
        if request["app"].as_str().is_some_and(|app| !matches!(app, "default" | "shop")) {
            return refused("invalid_field", "app", "is no app of this socket");
        }
        match request["op"].as_str().expect("every request has op") {
            "subscribe" => {
                if self.play.unknown_op_after.is_some_and(|after| self.taken >= after) {
                    return refused("unknown_op", "op", "is not known");
                }
                if self.play.overloaded_from.is_some_and(|from| self.taken >= from) && self.play.overloaded > 0 {
                    self.play.overloaded -= 1;
                    return refused("overloaded", "", "there is no room");
                }
                let endpoint = request["subscription"]["endpoint"].as_str().expect("checked before it is sent").to_owned();
                if endpoint.contains("refused") {
                    return refused("endpoint_refused", "subscription.endpoint", "is not taken here");
                }
                let id = BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(&endpoint)[..12]);
                let known = self.places.get(&id).copied();
                let place = known.unwrap_or_else(|| {
                    self.places.insert(id.clone(), self.kept.len());
                    self.kept
                        .push(json!({"subscription_id": id, "app": "default", "enabled": true, "service": "fcm", "key": "k",
                        "valid": "unknown", "scopes": null, "tags": [], "attributes": {}}));
                    self.kept.len() - 1
                });
                for (name, value) in request.as_object().expect("an object") {
                    if name != "op" {
                        self.kept[place][name] = value.clone();
                    }
                }
                self.taken += 1;
                if self.play.lose_after == Some(self.taken) {
                    self.play.lose_after = None;
                    return None;
                }
                Some(json!({"ok": true, "subscription_id": id, "created": known.is_none()}))
            }
            "update_subscription" => {
                let place = request["subscription_id"].as_str().and_then(|id| self.places.get(id).copied());
                let Some(place) = place else { return refused("not_found", "subscription_id", "is not known") };
                self.kept[place]["enabled"] = request["enabled"].clone();
                Some(json!({"ok": true, "subscription": {}}))
            }
            "count" => Some(json!({"ok": true, "count": self.matching(request).len()})),
            "list_subscriptions" => {
                if let Some(pages) = &mut self.play.pages {
                    *pages = pages.checked_sub(1)?;
                }
                let from: usize = request["after"].as_str().map_or(0, |after| after.parse().expect("told before"));
                let limit = usize::try_from(request["limit"].as_u64().expect("it is given")).expect("small");
                assert!(limit <= 1_000);
                let all = self.matching(request);
                let page: Vec<Value> = all
                    .iter()
                    .skip(from)
                    .take(limit)
                    .map(|one| if request["reveal"] == true { told(one) } else { one.clone() })
                    .collect();
                let after = (from + limit < all.len()).then(|| (from + limit).to_string());
                Some(json!({"ok": true, "subscriptions": page, "after": after}))
            }
            "backup" => self.backup.clone(),
            _ => Some(json!({"ok": true})),
        }
    }

    fn matching(&self, request: &Value) -> Vec<Value> {
        let tags = request["segment"]["tags"]["all"].as_array().cloned().unwrap_or_default();
        let has = |one: &Value, tag: &Value| one["tags"].as_array().is_some_and(|tags| tags.contains(tag));
        self.kept.iter().filter(|one| tags.iter().all(|tag| has(one, tag))).cloned().collect()
    }
}
