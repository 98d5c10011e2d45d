//! Operation (section 5): SIGTERM finishes what is in flight within `deliver.drain`, leaves the rest on disk in its order and exits 0;
//! what was answered is not repeated. `drain` takes no new lines and delivers the
//! accepted ones. SIGHUP takes new keys and certificates. A second
//! instance exits 75 and names the first.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use fanfare_loadtest::daemon::write_vapid_key;
use fanfare_loadtest::mock::{Fault, Scope};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::*;

#[test]
fn sigterm_finishes_what_is_in_flight_and_keeps_the_rest() {
    let mock = mock(1);
    let mut daemon = daemon(&mock, |config| config.set("deliver.drain", 30));
    let mut client = daemon.client();
    mock.set_fault(Scope::Origin(0), Fault::late(Duration::from_secs(1)));
    let requests: Vec<Value> =
        mock.subscribe(0, 400).iter().map(|browser| send_of(&browser.json(), json!({"payload": browser.token}))).collect();
    let ids = send_all(&mut client, &requests);
    assert!(mock.wait(PATIENCE, |counters| counters.origins[0].in_flight >= 16));
    assert_eq!(daemon.terminate().expect("an orderly end"), 0);
    let counters = mock.counters();
    assert_eq!(counters.origins[0].in_flight, 0, "nothing was cut off");
    assert!(counters.accepted >= 16 && counters.accepted < 400, "{}", counters.accepted);
    mock.clear_all_faults();
    daemon.restart().expect("it starts again");
    let mut client = daemon.client();
    for id in &ids {
        let ended = wait_ended(&mut client, id);
        assert_eq!((&ended["accepted"], &ended["retries"]), (&json!(1), &json!(0)), "{ended}");
    }
    let counters = mock.counters();
    assert_eq!((counters.accepted, counters.repeats), (400, 0), "after an orderly stop nothing is repeated");
}

#[test]
fn what_is_not_answered_within_the_drain_is_left_for_later() {
    let mock = mock(1);
    let mut daemon = daemon(&mock, |config| config.set("deliver.drain", 1));
    let mut client = daemon.client();
    mock.set_fault(Scope::Origin(0), Fault::Stall);
    let browsers = mock.subscribe(0, 10);
    let requests: Vec<Value> = browsers.iter().map(|browser| send_of(&browser.json(), json!({"payload": "x"}))).collect();
    let ids = send_all(&mut client, &requests);
    assert!(mock.wait_requests(10, PATIENCE));
    let began = Instant::now();
    assert_eq!(daemon.terminate().expect("an orderly end"), 0);
    assert!(began.elapsed() < Duration::from_secs(25), "it ended after {:?}, without waiting for answers", began.elapsed());
    mock.clear_all_faults();
    daemon.restart().expect("it starts again");
    let mut client = daemon.client();
    for id in &ids {
        assert_eq!(wait_ended(&mut client, id)["accepted"], 1);
    }
}

#[test]
fn a_restart_keeps_the_order() {
    let mock = mock(1);
    let mut daemon = daemon(&mock, |config| config.set("deliver.connections_per_origin", 1).set("encrypt.threads", 1));
    let mut client = daemon.client();
    mock.stop_listening(0);
    let browsers = mock.subscribe(0, 40);
    let urgencies = ["very-low", "low", "normal", "high"];
    let requests: Vec<Value> = browsers
        .iter()
        .enumerate()
        .map(|(n, browser)| send_of(&browser.json(), json!({"payload": n.to_string(), "urgency": urgencies[n % 4]})))
        .collect();
    let ids = send_all(&mut client, &requests);
    daemon.kill9();
    mock.set_fault(Scope::Origin(0), Fault::MaxStreams(1));
    mock.resume_listening(0);
    daemon.restart().expect("it starts again");
    let mut client = daemon.client();
    for id in &ids {
        assert_eq!(wait_ended(&mut client, id)["accepted"], 1);
    }
    let arrived: Vec<String> = mock.received().iter().map(|received| received.text()).collect();
    let expected: Vec<String> =
        [3, 2, 1, 0].into_iter().flat_map(|class| (0..40).filter(move |n| n % 4 == class)).map(|n| n.to_string()).collect();
    assert_eq!(arrived, expected);
}

#[test]
fn drain_takes_no_new_lines_and_delivers_the_accepted_ones() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config);
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    mock.stop_listening(0);
    let id = send(&mut client, &browser, json!({"payload": "accepted before"}));
    client.ok(&json!({"op": "drain", "on": true}));
    let error = client.error(&send_of(&browser.json(), json!({"payload": "too late"})));
    assert_eq!(error["code"], "shutting_down", "{error}");
    assert!(error["retry_after"].as_f64().is_some_and(|seconds| seconds > 0.0), "{error}");
    assert_eq!(client.ok(&json!({"op": "ping"}))["state"], "draining");
    mock.resume_listening(0);
    assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
    client.ok(&json!({"op": "drain", "on": false}));
    assert_eq!(client.ok(&json!({"op": "ping"}))["state"], "ok");
    let id = send(&mut client, &browser, json!({"payload": "again"}));
    assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
}

#[test]
fn sighup_takes_new_keys_and_certificates() {
    let (mock, later) = (mock(1), mock(1));
    // The second mock's authority is not trusted at first.
    let daemon = daemon(&mock, |config| config.allow_host(&later.host(0)));
    let mut client = daemon.client();
    let key = |client: &mut fanfare_loadtest::client::Client| client.ok(&json!({"op": "vapid_public_key"}))["public_key"].clone();
    let old = key(&mut client);
    let waiting = send(&mut client, &later.subscribe(0, 1)[0], json!({"payload": "x"}));
    wait_origin(&mut client, &later.origin(0), "closed");
    assert_eq!(origin(&mut client, &later.origin(0))["last_error"], "tls");

    let path = daemon.directory().join("vapid.pem");
    fs::remove_file(&path).expect("the old key");
    write_vapid_key(&path).expect("a new key");
    let roots = daemon.directory().join("roots.pem");
    fs::write(&roots, [mock.ca_pem(), later.ca_pem()].concat()).expect("roots");
    daemon.signal(Signal::SIGHUP).expect("it runs");
    assert!(wait(PATIENCE, || daemon.log().contains("reloaded")), "{}", daemon.log());
    let new = key(&mut client);
    assert_ne!(old, new);
    assert_eq!(wait_ended(&mut client, &waiting)["accepted"], 1, "the certificate is trusted now");
    let browser = mock.subscribe(0, 1).remove(0);
    let id = send(&mut client, &browser, json!({"payload": "x"}));
    wait_ended(&mut client, &id);
    assert_eq!(mock.received_by(&browser)[0].vapid.as_ref().expect("a token").key, new.as_str().expect("a key"));

    // What is wrong is logged and changes nothing.
    fs::write(&path, "no key").expect("written");
    daemon.signal(Signal::SIGHUP).expect("it runs");
    assert!(wait(PATIENCE, || daemon.log().contains("not reloaded")), "{}", daemon.log());
    assert_eq!(key(&mut client), new);
}

#[test]
fn a_reload_says_what_is_wrong_and_which_keys_want_a_restart() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| {
        config
            .set("messages.ttl_max", 7_000)
            .set("messages.ttl_default", 5_000)
            .set("deliver.timeout", 29)
            .set("retry.max", 301)
            .set("messages.max_pending", 9_001)
    });
    let mut client = daemon.client();
    let reload = json!({"op": "reload"});
    assert_eq!(client.ok(&reload)["restart"], json!([]));
    let text = fs::read_to_string(daemon.config_path()).expect("the configuration");
    let change = |changes: &[(&str, &str)]| {
        let changed = changes.iter().fold(text.clone(), |text, (from, to)| {
            assert!(text.contains(from), "{from} in {text}");
            text.replace(from, to)
        });
        fs::write(daemon.config_path(), changed).expect("written");
    };
    change(&[
        ("ttl_max = 7000", "ttl_max = 6000"),
        ("timeout = 29", "timeout = 28"),
        ("max = 301", "max = 302"),
        ("max_pending = 9001", "max_pending = 9002"),
    ]);
    let reloaded = client.ok(&reload);
    assert_eq!(reloaded["restart"], json!(["messages.max_pending", "deliver.timeout", "retry.max"]));
    let limits = client.ok(&json!({"op": "ping"}))["limits"].clone();
    // What holds is told, not what will.
    assert_eq!((&limits["ttl_max"], &limits["max_pending"]), (&json!(6_000), &json!(9_001)));
    let named = "used only after a restart: messages.max_pending, deliver.timeout, retry.max";
    assert!(daemon.log().contains(named), "{}", daemon.log());

    change(&[("ttl_max = 7000", "ttl_max = \"long\"\nno_such_key = 1")]);
    let error = client.error(&reload);
    assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &Value::Null), "{error}");
    let told = error["message"].as_str().expect("text");
    assert!(told.contains("messages.ttl_max") && told.contains("no_such_key"), "{told}");
    assert_eq!(client.ok(&json!({"op": "ping"}))["limits"]["ttl_max"], 6_000, "the old one stays");
    let log = daemon.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("not reloaded")).collect();
    assert!(lines.len() == 1 && lines[0].contains("no_such_key") && lines[0].contains("messages.ttl_max"), "{log}");
    // As `systemctl reload` asks.
    let asked = |expected: i32| {
        let output = Command::new(env!("CARGO_BIN_EXE_fanfare")).arg("--socket").arg(daemon.socket()).arg("reload").output();
        let output = output.expect("it starts");
        assert_eq!(output.status.code(), Some(expected), "{}", String::from_utf8_lossy(&output.stderr));
    };
    asked(78);
    change(&[]);
    asked(0);
    assert_eq!(client.ok(&reload)["restart"], json!([]), "as at the start");
}

#[test]
fn a_second_instance_exits_75_and_names_the_first() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config);
    let second = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .args(["serve", "--config"])
        .arg(daemon.config_path())
        .output()
        .expect("it starts");
    let said = format!("{}{}", String::from_utf8_lossy(&second.stdout), String::from_utf8_lossy(&second.stderr));
    assert_eq!(second.status.code(), Some(75), "{said}");
    assert!(said.contains(&daemon.pid().to_string()), "{said}");
    assert_eq!(daemon.client().ok(&json!({"op": "ping"}))["state"], "ok", "the first one does not mind");
}
