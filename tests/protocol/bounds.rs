//! What a client may have open: lines, bytes, connections; and the socket itself.

use super::*;
use fanfare_loadtest::machine::status_bytes;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};

fn resident(daemon: &Daemon) -> u64 {
    status_bytes(daemon.pid(), "VmRSS").expect("the process runs")
}

/// Beyond its share a connection is not read: its writes wait, and nothing is lost.
#[test]
fn fifty_thousand_lines_before_the_first_reply_is_read() {
    const LINES: usize = 50_000;
    let (_mock, daemon) = start(|config| config);
    let before = resident(&daemon);
    let mut client = daemon.client();
    client.set_timeout(None).unwrap();
    let mut writer = UnixStream::connect(daemon.socket()).unwrap();
    let reader = writer.try_clone().unwrap();
    let long = "y".repeat(300);
    let writing = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for id in 0..LINES {
            // A write, a refusal and a read in turn.
            let _infallible = match id % 3 {
                0 => writeln!(lines, "{{\"op\":\"ping\",\"id\":{id}}}"),
                1 => writeln!(lines, "{{\"op\":\"{long}\",\"id\":{id}}}"),
                _ => writeln!(lines, "{{\"op\":\"vapid_public_key\",\"id\":{id}}}"),
            };
        }
        writer.write_all(&lines).unwrap();
        writer
    });
    std::thread::sleep(Duration::from_secs(2));
    assert!(!writing.is_finished(), "all lines were taken though no reply was read");
    let grown = resident(&daemon).saturating_sub(before);
    assert!(grown < 64 << 20, "one connection costs {grown} bytes");
    assert_eq!(client.ok(&json!({"op": "ping"}))["state"], "ok");
    let mut input = std::io::BufReader::new(reader);
    for id in 0..LINES {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut input, &mut line).unwrap();
        let reply: Value = serde_json::from_str(&line).unwrap_or_else(|problem| panic!("{problem}: {line}"));
        assert_eq!((&reply["id"], &reply["ok"]), (&json!(id), &json!(id % 3 != 1)), "{reply}");
    }
    drop(writing.join().unwrap());
}

/// A client that never reads is cut off; until then it costs others nothing.
#[test]
fn clients_that_never_read_are_cut_off() {
    let (_mock, daemon) = start(|config| config);
    let before = resident(&daemon);
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        deaf.push(std::thread::spawn(move || {
            let lines = "{\"op\":\"ping\"}\n".repeat(10_000);
            // Ends when the daemon closes the connection.
            while stream.write_all(lines.as_bytes()).is_ok() {}
        }));
    }
    let mut client = daemon.client();
    let deadline = Instant::now() + Duration::from_secs(90);
    while deaf.iter().any(|thread| !thread.is_finished()) {
        assert!(Instant::now() < deadline, "a client that never reads is still connected");
        let asked = Instant::now();
        client.ok(&json!({"op": "ping"}));
        assert!(asked.elapsed() < Duration::from_secs(5), "others wait {:?}", asked.elapsed());
        let grown = resident(&daemon).saturating_sub(before);
        assert!(grown < 150 << 20, "eight of them cost {grown} bytes");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn one_connection_too_many_is_told_so() {
    let (_mock, daemon) = start(|config| config.set("ingest.connections", 3));
    // The connection that waited for the start may still be counted.
    let mut clients = Vec::new();
    let connect = || {
        wait_for("a connection", || {
            let mut client = daemon.client();
            client.try_request(&json!({"op": "ping"})).is_ok_and(|reply| reply["ok"] == true).then_some(client)
        })
    };
    for _ in 0..3 {
        clients.push(connect());
    }
    let mut refused = daemon.client();
    let line = refused.recv().expect("one line");
    assert_eq!((&line["ok"], &line["error"]["code"]), (&json!(false), &json!("overloaded")), "{line}");
    assert!(line["error"]["retry_after"].as_f64().is_some_and(|seconds| seconds > 0.0), "{line}");
    assert!(refused.at_end().unwrap_or(true));
    for client in &mut clients {
        client.ok(&json!({"op": "ping"}));
    }
    clients.pop();
    connect();
}

#[test]
fn more_than_max_pending_is_overloaded_and_told_when_to_come_again() {
    let (mock, daemon) = start(|config| config.set("messages.max_pending", 5));
    let browsers = mock.subscribe(0, 4);
    let mut client = daemon.client();
    let first = client.ok(&send(&browsers, json!({"payload": "a", "paused": true})));
    let error = client.error(&send(&browsers, json!({"payload": "b"})));
    assert_eq!(error["code"], "overloaded");
    assert!(error["retry_after"].as_f64().is_some_and(|seconds| seconds > 0.0), "{error}");
    let ping = client.ok(&json!({"op": "ping"}));
    assert_eq!((&ping["state"], &ping["reasons"]), (&json!("overloaded"), &json!(["max_pending"])));
    client.ok(&json!({"op": "cancel", "message_id": first["message_id"]}));
    let second = wait_for("a place", || {
        Some(client.request(&send(&browsers, json!({"payload": "b"})))).filter(|reply| reply["ok"] == true)
    });
    assert_eq!(wait_ended(&mut client, &id_of(&second))["accepted"], 4);
}

#[test]
fn a_socket_has_its_mode_and_group_and_replaces_a_stale_one() {
    let mock = Mock::start(Options::default());
    let group = nix::unistd::Group::from_gid(nix::unistd::getgid()).unwrap().expect("the own group has a name");
    let config = ConfigBuilder::new().mock(&mock).set("ingest.socket_mode", 0o620).set("ingest.socket_group", group.name);
    let mut daemon = Daemon::prepare(binary(), config).unwrap();
    // Left behind by a process that was killed.
    drop(UnixListener::bind(daemon.socket()).unwrap());
    assert!(daemon.socket().exists());
    daemon.restart().unwrap();
    let file = std::fs::symlink_metadata(daemon.socket()).unwrap();
    assert_eq!((file.permissions().mode() & 0o777, file.gid()), (0o620, group.gid.as_raw()));
    daemon.kill9();
    daemon.restart().unwrap();
    daemon.client().ok(&json!({"op": "ping"}));
    assert_eq!(daemon.terminate().unwrap(), 0);
    assert!(!daemon.socket().exists(), "an orderly end leaves no socket");
    // One that is listened on is somebody else's.
    let _other = UnixListener::bind(daemon.socket()).unwrap();
    daemon.spawn().unwrap();
    assert_eq!(daemon.wait_exit(PATIENCE).unwrap().code(), Some(75));
}
