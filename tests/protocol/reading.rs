//! `status`, `list_messages`, `stats`, `origins`, `ping`, `vapid_public_key`, `drain`, retention.

use super::*;
use std::collections::BTreeSet;

#[test]
fn a_status_has_all_its_members() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    let stream = id_of(&client.ok(&json!({"op": "send", "to": {"stream": true}})));
    let single = id_of(&client.ok(&send(&browsers[..1], json!({"label": "l", "ref": "r", "paused": true}))));
    let list = id_of(&client.ok(&send(&browsers, json!({"rate": 2.5, "at": in_seconds(3_600.0)}))));
    let numbers = [
        "recipients",
        "rejected",
        "pending",
        "accepted",
        "gone",
        "refused",
        "expired",
        "cancelled",
        "skipped",
        "in_flight",
        "retries",
        "shown",
        "clicked",
        "dismissed",
    ];
    for (id, state, open, label, rate) in [
        (&stream, "sending", true, Value::Null, Value::Null),
        (&single, "paused", false, json!("l"), Value::Null),
        (&list, "scheduled", false, Value::Null, json!(2.5)),
    ] {
        let reply = client.ok(&json!({"op": "status", "message_id": id, "id": "x"}));
        let mut names: BTreeSet<&str> = reply.as_object().unwrap().keys().map(String::as_str).collect();
        for name in numbers {
            assert!(reply[name].is_u64(), "{name}: {reply}");
            names.remove(name);
        }
        for name in ["created", "at", "expires"] {
            millis(&reply[name]);
            names.remove(name);
        }
        assert!((0.0..=1.0).contains(&reply["walked"].as_f64().unwrap()), "{reply}");
        assert_eq!((&reply["message_id"], &reply["state"], &reply["open"]), (id, &json!(state), &json!(open)));
        assert_eq!(
            (&reply["label"], &reply["rate"], &reply["eta"], &reply["position"]),
            (&label, &rate, &Value::Null, &Value::Null)
        );
        assert_eq!(reply["paused_by"], if state == "paused" { json!(["message"]) } else { json!([]) });
        for name in ["id", "ok", "message_id", "state", "paused_by", "open", "label", "ref", "position", "walked", "rate", "eta"]
        {
            assert!(names.remove(name), "{name} is missing: {reply}");
        }
        assert!(names.is_empty(), "unknown: {names:?}");
    }
    assert_eq!(status(&mut client, &single)["ref"], "r");
}

#[test]
fn list_messages_tells_the_newest_first() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    let mut ids = Vec::new();
    for n in 0..7 {
        let label = if n % 2 == 0 { "even" } else { "odd" };
        ids.push(id_of(&client.ok(&json!({"op": "send", "to": {"stream": true}, "label": label}))));
        client.ok(&send(&browsers, json!({"label": label, "paused": true})));
    }
    for id in &ids[..3] {
        client.ok(&json!({"op": "cancel", "message_id": id}));
    }
    ids.reverse();
    let told = |reply: &Value| -> Vec<Value> {
        let messages = reply["messages"].as_array().expect("messages").clone();
        assert!(messages.iter().all(adds_up), "{messages:?}");
        messages.iter().map(id_of).collect()
    };
    let reply = client.ok(&json!({"op": "list_messages"}));
    assert_eq!((told(&reply), &reply["after"]), (ids.clone(), &Value::Null), "singles are not among them");
    // Page by page.
    let (mut seen, mut after) = (Vec::new(), Value::Null);
    loop {
        let reply = client.ok(&json!({"op": "list_messages", "limit": 3, "after": after}));
        seen.extend(told(&reply));
        after = reply["after"].clone();
        if after.is_null() {
            break;
        }
        assert!(seen.len() < 10);
    }
    assert_eq!(seen, ids);
    assert_eq!(told(&client.ok(&json!({"op": "list_messages", "state": "cancelled"}))), ids[4..]);
    assert_eq!(told(&client.ok(&json!({"op": "list_messages", "label": "odd"}))), [&ids[1], &ids[3], &ids[5]].map(Clone::clone));
    assert_eq!(
        told(&client.ok(&json!({"op": "list_messages", "label": "odd", "state": "sending"}))),
        [&ids[1], &ids[3]].map(Clone::clone)
    );
    assert_eq!(told(&client.ok(&json!({"op": "list_messages", "label": "none"}))), Vec::<Value>::new());
    for (request, field) in
        [(json!({"after": "x"}), "after"), (json!({"limit": 0}), "limit"), (json!({"state": "open"}), "state")]
    {
        let mut request = request;
        request["op"] = "list_messages".into();
        let error = client.error(&request);
        assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!(field)));
    }
}

/// Every dimension of `stats` sums to what the statuses tell.
#[test]
fn stats_are_the_sum_of_the_statuses() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 80);
    for browser in &browsers[..5] {
        mock.set_fault(Scope::Subscription(browser.token.clone()), Fault::status(410));
    }
    mock.set_fault_times(Scope::Subscription(browsers[5].token.clone()), Fault::status(429).retry_after(1), 1);
    let mut ids = Vec::new();
    for (recipients, more) in [
        (&browsers[..3], json!({"label": "a"})),
        (&browsers[..], json!({"label": "a"})),
        (&browsers[..70], json!({"label": "b", "paused": true})),
        (&browsers[3..9], json!({})),
        (&browsers[..2], json!({"label": "b", "paused": true})),
        (&browsers[10..11], json!({"label": "b", "at": in_seconds(3_600.0)})),
    ] {
        ids.push(id_of(&client.ok(&send(recipients, more))));
    }
    let with_rejected = json!({"op": "send", "to": {"subscriptions": [browsers[7].json(), {"endpoint": "x"}]}, "label": "c"});
    ids.push(id_of(&client.ok(&with_rejected)));
    client.ok(&json!({"op": "cancel", "label": "b"}));
    for id in &ids {
        wait_ended(&mut client, id);
    }
    const NAMES: [&str; 9] =
        ["recipients", "rejected", "accepted", "gone", "refused", "expired", "cancelled", "skipped", "retries"];
    for restart in [false, true] {
        if restart {
            assert_eq!(daemon.terminate().unwrap(), 0);
            daemon.restart().unwrap();
            client = daemon.client();
        }
        let mut wanted = [0u64; 9];
        for id in &ids {
            let told = status(&mut client, id);
            NAMES.iter().zip(&mut wanted).for_each(|(name, sum)| *sum += told[*name].as_u64().unwrap());
        }
        for by in [
            json!(null),
            json!("day"),
            json!(["label"]),
            json!(["app"]),
            json!(["service"]),
            json!(["key"]),
            json!(["day", "label", "app", "service", "key"]),
        ] {
            let told = wait_for("stats", || {
                let reply = client.ok(&json!({"op": "stats", "by": by}));
                let lines = reply["stats"].as_array().expect("stats").clone();
                let mut sums = [0u64; 9];
                for line in &lines {
                    NAMES.iter().zip(&mut sums).for_each(|(name, sum)| *sum += line[*name].as_u64().unwrap());
                    for dimension in by.as_array().into_iter().flatten() {
                        assert!(line.get(dimension.as_str().unwrap()).is_some(), "{line}");
                    }
                }
                (sums == wanted).then_some(lines)
            });
            if by == json!(["label"]) {
                let labels: Vec<&Value> = told.iter().map(|line| &line["label"]).collect();
                assert_eq!(labels, [&Value::Null, &json!("a"), &json!("b"), &json!("c")]);
                assert_eq!((&told[2]["recipients"], &told[2]["cancelled"]), (&json!(73), &json!(73)));
            }
        }
        let tomorrow = &in_seconds(2.0 * 86_400.0)[..10];
        assert_eq!(client.ok(&json!({"op": "stats", "from": tomorrow}))["stats"], json!([]));
        assert_eq!(client.ok(&json!({"op": "stats", "to": "2020-01-01"}))["stats"], json!([]));
    }
}

#[test]
fn ping_drain_origins_and_the_public_key() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    let ping = client.ok(&json!({"op": "ping"}));
    assert_eq!((&ping["state"], &ping["reasons"], &ping["protocol"]), (&json!("ok"), &json!([]), &json!(1)));
    assert!(ping["version"].is_string() && ping["limits"]["line_limit"] == 1_048_576, "{ping}");
    assert!(ping["pending"] == 0 && ping["uptime"].as_u64().is_some_and(|seconds| seconds < 600), "{ping}");
    let key = client.ok(&json!({"op": "vapid_public_key"}));
    assert_eq!((&key["app"], key["public_key"].as_str().map(str::len)), (&json!("default"), Some(87)));
    let open = id_of(&client.ok(&json!({"op": "send", "to": {"stream": true}, "payload": "s"})));
    let held = id_of(&client.ok(&send(&browsers, json!({"paused": true, "payload": "h"}))));
    client.ok(&json!({"op": "drain"}));
    let ping = client.ok(&json!({"op": "ping"}));
    assert_eq!(ping["pending"], 2);
    assert_eq!((&ping["state"], &ping["reasons"]), (&json!("draining"), &json!(["draining"])));
    for request in [send(&browsers, json!({})), json!({"op": "add", "message_id": open, "subscriptions": all(&browsers)})] {
        let error = client.error(&request);
        assert_eq!(error["code"], "shutting_down");
        assert!(error["retry_after"].as_f64().is_some_and(|seconds| seconds > 0.0), "{error}");
    }
    // The rest goes on.
    client.ok(&json!({"op": "resume", "message_id": held}));
    assert_eq!(wait_ended(&mut client, &held)["accepted"], 2);
    client.ok(&json!({"op": "close", "message_id": open}));
    client.ok(&json!({"op": "drain", "on": false}));
    assert_eq!(client.ok(&json!({"op": "ping"}))["state"], "ok");
    let id = id_of(&client.ok(&send(&browsers, json!({}))));
    wait_ended(&mut client, &id);
    let origins = client.ok(&json!({"op": "origins"}));
    let origin = &origins["origins"][0];
    assert_eq!((&origin["origin"], &origin["state"]), (&json!(mock.origin(0)), &json!("open")), "{origins}");
    for name in ["window", "in_flight", "waiting"] {
        assert!(origin[name].is_u64(), "{name}: {origin}");
    }
    assert!(millis(&origin["token_expires"]) > millis(&json!(in_seconds(0.0))));
    assert!(origin.get("last_error").is_some());
}

#[test]
fn what_has_ended_is_forgotten_after_its_retention() {
    let (mock, daemon) = start(|config| config.set("messages.retention", 2));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    let mut ids = Vec::new();
    for recipients in [&browsers[..2], &browsers[..]] {
        ids.push(id_of(&client.ok(&send(recipients, json!({})))));
    }
    let open = id_of(&client.ok(&send(&browsers[..2], json!({"paused": true}))));
    let stream = id_of(&client.ok(&json!({"op": "send", "to": {"stream": true}})));
    let closed = id_of(&client.ok(&json!({"op": "send", "to": {"stream": true}})));
    client.ok(&json!({"op": "add", "message_id": closed, "subscriptions": all(&browsers[..1])}));
    wait_for("the add", || Some(status(&mut client, &closed)).filter(|told| told["accepted"] == 1));
    std::thread::sleep(Duration::from_millis(600));
    client.ok(&json!({"op": "close", "message_id": closed}));
    ids.push(closed);
    for id in &ids {
        let gone = wait_for("the end of a retention", || {
            let reply = client.request(&json!({"op": "status", "message_id": id}));
            (reply["ok"] == false).then(|| reply["error"].clone())
        });
        assert_eq!((&gone["code"], &gone["field"]), (&json!("not_found"), &json!("message_id")));
    }
    // What is open is not forgotten.
    assert_eq!(status(&mut client, &open)["pending"], 2);
    assert_eq!(status(&mut client, &stream)["open"], true);
    client.ok(&json!({"op": "resume", "message_id": open}));
    assert_eq!(wait_ended(&mut client, &open)["accepted"], 2);
}
