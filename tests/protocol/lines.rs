//! Framing, ids, order, and what is wrong with a line.

use super::*;

#[test]
fn replies_come_in_the_order_of_the_requests_and_repeat_their_ids() {
    let (mock, daemon) = start(|config| config);
    let browser = &mock.subscribe(0, 1)[0];
    let mut client = daemon.client();
    let mut lines = String::new();
    let mut ids = Vec::new();
    for round in 0..50 {
        let nobody = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        for (kind, request) in [
            json!({"op": "ping"}),
            json!({"op": "send", "to": {"subscription": browser.json()}, "payload": "x"}),
            json!({"op": "status", "message_id": nobody}),
            json!({"op": "nonsense"}),
            json!({"op": "list_messages"}),
            json!({"op": "cancel", "message_id": nobody}),
            json!({"op": "events", "after": "newest"}),
            json!({"op": "vapid_public_key"}),
            json!({"op": "send", "to": {"subscription": 7}}),
        ]
        .into_iter()
        .enumerate()
        {
            let mut request = request;
            request["id"] = format!("{round}/{kind}").into();
            ids.push(request["id"].clone());
            lines.push_str(&format!("{request}\n"));
        }
    }
    client.send_raw(lines.as_bytes()).unwrap();
    for id in ids {
        // An `events` may tell some before its reply.
        let reply = wait_for("a reply", || Some(client.recv().expect("a reply")).filter(|line| line.get("ok").is_some()));
        assert_eq!(reply["id"], id, "{reply}");
    }
}

#[test]
fn an_id_comes_back_as_it_was_written() {
    let (_mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    for id in ["7", "-1.50e3", "12345678901234567890123", "true", "false", "\"\"", "\"a\\u00e9/\\\"\"", "\"ż\""] {
        client.send_raw(format!("{{\"id\":{id},\"op\":\"ping\"}}\n").as_bytes()).unwrap();
        let line = String::from_utf8(client.recv_raw().unwrap()).unwrap();
        assert!(line.starts_with(&format!("{{\"id\":{id},\"ok\":true")), "{id}: {line}");
        // With a failure too.
        client.send_raw(format!("{{\"op\":\"x\",\"id\":{id}}}\n").as_bytes()).unwrap();
        let line = String::from_utf8(client.recv_raw().unwrap()).unwrap();
        assert!(line.starts_with(&format!("{{\"id\":{id},\"ok\":false")), "{id}: {line}");
    }
    for line in ["{\"op\":\"ping\"}", "{\"op\":\"ping\",\"id\":null}"] {
        client.send_raw(format!("{line}\n").as_bytes()).unwrap();
        let line = String::from_utf8(client.recv_raw().unwrap()).unwrap();
        assert!(line.starts_with("{\"ok\":true"), "{line}");
    }
}

#[test]
fn empty_lines_and_carriage_returns_are_ignored() {
    let (_mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    client.send_raw(b"\n\r\n\n{\"op\":\"ping\",\"id\":1}\r\n\r\n{\"op\":\"ping\",\"id\":2}\n").unwrap();
    assert_eq!(client.recv().unwrap()["id"], 1);
    assert_eq!(client.recv().unwrap()["id"], 2);
    // A line may come in pieces.
    for piece in ["{\"op\":", "\"ping\"", ",\"id\":3}", "\n"] {
        client.send_raw(piece.as_bytes()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(client.recv().unwrap()["id"], 3);
    // What has no newline is no line: it may be half of one.
    client.send_raw(b"{\"op\":\"ping\",\"id\":4}\n{\"op\":\"ping\",\"id\":5}").unwrap();
    client.finish().unwrap();
    assert_eq!(client.recv().unwrap()["id"], 4);
    assert!(client.at_end().unwrap());
}

#[test]
fn of_a_line_that_is_too_long_the_rest_is_skipped() {
    let (_mock, daemon) = start(|config| config.set("ingest.line_limit", 4_096));
    let mut client = daemon.client();
    let line = |length: usize| {
        let head = "{\"op\":\"ping\",\"id\":\"";
        format!("{head}{}\"}}", "x".repeat(length - head.len() - 2))
    };
    // Within the limit: the id alone is too long.
    client.send_raw(format!("{}\n", line(4_096)).as_bytes()).unwrap();
    assert_eq!(client.recv().unwrap()["error"]["code"], "invalid_field");
    for length in [4_097, 4_098, 100_000, 1_000_000] {
        client.send_raw(format!("{}\n{{\"op\":\"ping\",\"id\":{length}}}\n", line(length)).as_bytes()).unwrap();
        let reply = client.recv().unwrap();
        assert_eq!((&reply["ok"], &reply["error"]["code"]), (&json!(false), &json!("line_too_long")), "{reply}");
        assert!(reply["error"]["message"].as_str().unwrap().contains("4096"), "{reply}");
        assert_eq!(client.recv().unwrap()["id"], length);
    }
}

/// A bad line is answered with its code and the path of its field, and the connection lives on.
#[test]
fn what_is_wrong_is_named() {
    let (mock, daemon) = start(|config| config);
    let browser = mock.subscribe(0, 1)[0].json();
    let mut client = daemon.client();
    let to = |change: fn(&mut Value)| {
        let mut browser = browser.clone();
        change(&mut browser);
        json!({"op": "send", "to": {"subscriptions": [browser]}}).to_string()
    };
    let good = |more: &str| format!("{{\"op\":\"send\",\"to\":{{\"subscription\":{browser}}}{more}}}");
    let large = good(&format!(",\"payload\":\"{}\"", "x".repeat(3_994)));
    let cases: Vec<(String, &str, Option<&str>)> = vec![
        ("nonsense".into(), "bad_json", None),
        ("[]".into(), "bad_json", None),
        ("{\"op\":\"ping\"".into(), "bad_json", None),
        ("{\"op\":\"ping\",\"op\":\"ping\"}".into(), "bad_json", None),
        (good(",\"payload\":{\"a\":1,\"b\":{\"c\":1,\"c\":2}}"), "bad_json", None),
        ("{}".into(), "missing_field", Some("op")),
        ("{\"op\":\"Send\"}".into(), "unknown_op", Some("op")),
        ("{\"op\":\"subscribe\"}".into(), "missing_field", Some("subscription")),
        ("{\"op\":\"ping\",\"x\":1}".into(), "unknown_field", Some("x")),
        ("{\"op\":\"status\"}".into(), "missing_field", Some("message_id")),
        ("{\"op\":\"status\",\"message_id\":\"x\"}".into(), "invalid_field", Some("message_id")),
        ("{\"op\":\"status\",\"message_id\":\"01ARZ3NDEKTSV4RRFFQ69G5FAV\"}".into(), "not_found", Some("message_id")),
        ("{\"op\":\"cancel\",\"message_id\":\"01ARZ3NDEKTSV4RRFFQ69G5FAV\"}".into(), "not_found", Some("message_id")),
        (
            "{\"op\":\"add\",\"message_id\":\"01ARZ3NDEKTSV4RRFFQ69G5FAV\",\"subscriptions\":[]}".into(),
            "not_found",
            Some("message_id"),
        ),
        ("{\"op\":\"cancel\"}".into(), "missing_field", Some("message_id")),
        ("{\"op\":\"pause\",\"label\":\"a\",\"app\":\"default\"}".into(), "invalid_field", Some("app")),
        ("{\"op\":\"pause\",\"app\":\"nobody\"}".into(), "invalid_field", Some("app")),
        ("{\"op\":\"events\",\"after\":\"0011223344556677-1\"}".into(), "cursor_expired", Some("after")),
        ("{\"op\":\"events\",\"types\":[\"gone\",\"read\"]}".into(), "invalid_field", Some("types[1]")),
        ("{\"op\":\"send\"}".into(), "missing_field", Some("to")),
        ("{\"op\":\"send\",\"to\":{\"segment\":{\"some\":true}}}".into(), "unknown_field", Some("to.segment.some")),
        ("{\"op\":\"send\",\"to\":{\"everybody\":true}}".into(), "unknown_field", Some("to.everybody")),
        ("{\"op\":\"send\",\"to\":{\"subscriptions\":[]}}".into(), "invalid_field", Some("to.subscriptions")),
        (to(|s| s["endpoint"] = "http://127.0.0.1/x".into()), "endpoint_refused", Some("to.subscriptions[0].endpoint")),
        (to(|s| s["endpoint"] = "https://example.com/x".into()), "endpoint_refused", Some("to.subscriptions[0].endpoint")),
        (to(|s| s["endpoint"] = 7.into()), "endpoint_refused", Some("to.subscriptions[0].endpoint")),
        (to(|s| s["endpoint"] = Value::Null), "missing_field", Some("to.subscriptions[0].endpoint")),
        (to(|s| s["keys"]["auth"] = "AAAA".into()), "invalid_field", Some("to.subscriptions[0].keys.auth")),
        (to(|s| s["keys"]["p256dh"] = "AAAA".into()), "invalid_field", Some("to.subscriptions[0].keys.p256dh")),
        (to(|s| s["keys"] = Value::Null), "missing_field", Some("to.subscriptions[0].keys")),
        (large, "payload_too_large", Some("payload")),
        (good(",\"payload\":\"a\",\"notification\":{}"), "invalid_field", Some("notification")),
        (good(",\"payload\":7"), "invalid_field", Some("payload")),
        (good(",\"notification\":{\"navigate\":\"https://example.com\"}"), "missing_field", Some("notification.title")),
        (good(",\"notification\":{\"title\":\"a\",\"navigate\":\"/x\"}"), "invalid_field", Some("notification.navigate")),
        (good(",\"ttl\":2419201"), "invalid_field", Some("ttl")),
        (good(",\"topic\":\"a b\""), "invalid_field", Some("topic")),
        (good(",\"app\":\"nobody\""), "invalid_field", Some("app")),
        (good(",\"at\":\"tomorrow\""), "invalid_field", Some("at")),
        (good(",\"spread\":61,\"ttl\":60"), "invalid_field", Some("spread")),
        (good(",\"receipts\":true"), "invalid_field", Some("receipts")),
        (good(",\"when\":\"offline\""), "invalid_field", Some("when")),
        (good(",\"scope\":\"a\""), "invalid_field", Some("scope")),
        (good(",\"fallback\":{\"after\":1}"), "invalid_field", Some("fallback")),
        (good(",\"template\":true"), "invalid_field", Some("template")),
    ];
    for (line, code, field) in cases {
        client.send_raw(format!("{line}\n{{\"op\":\"ping\",\"id\":\"alive\"}}\n").as_bytes()).unwrap();
        let reply = client.recv().unwrap();
        let error = &reply["error"];
        assert_eq!(
            (&reply["ok"], error["code"].as_str(), error["field"].as_str()),
            (&json!(false), Some(code), field),
            "{line}: {reply}"
        );
        let message = error["message"].as_str().expect("a message");
        assert!(!message.is_empty() && !message.contains(browser["keys"]["auth"].as_str().unwrap()), "{reply}");
        assert!(error.get("retry_after").is_none(), "that is for the caller to mend: {reply}");
        assert_eq!(client.recv().unwrap()["id"], "alive", "{line}");
    }
    // Bytes that are no UTF-8.
    client.send_raw(b"{\"op\":\"ping\",\"id\":\"\xff\"}\n").unwrap();
    assert_eq!(client.recv().unwrap()["error"]["code"], "bad_json");
    assert_eq!(mock.counters().requests, 0, "nothing of all this was sent");
}

#[test]
fn each_subscription_is_judged_by_itself() {
    let (mock, daemon) = start(|config| config);
    let browsers = mock.subscribe(0, 3);
    let mut client = daemon.client();
    let mut list: Vec<Value> = browsers.iter().map(Subscription::json).collect();
    list[1]["keys"]["auth"] = "short".into();
    list[1]["ref"] = "user-7".into();
    // Unknown members of a browser's own object are ignored, one endpoint twice is sent once.
    list[0]["options"] = json!({"userVisibleOnly": true});
    list.push(list[0].clone());
    list.push(json!({"ref": 8, "endpoint": "https://example.com/"}));
    list.push(json!("nonsense"));
    let request = json!({"op": "send", "to": {"subscriptions": list}, "payload": "judged"});
    let reply = client.ok(&request);
    assert_eq!(reply["recipients"], 2, "{reply}");
    let rejected = reply["rejected"].as_array().expect("rejected");
    let told: Vec<_> = rejected
        .iter()
        .map(|entry| {
            assert!(entry["message"].is_string(), "{entry}");
            (
                entry["index"].as_u64().unwrap(),
                entry["ref"].clone(),
                entry["code"].as_str().unwrap(),
                entry["field"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (1, json!("user-7"), "invalid_field", "to.subscriptions[1].keys.auth"),
            (4, json!(8), "endpoint_refused", "to.subscriptions[4].endpoint"),
            (5, Value::Null, "invalid_field", "to.subscriptions[5]"),
        ]
    );
    let status = wait_ended(&mut client, &id_of(&reply));
    assert_eq!((&status["recipients"], &status["rejected"], &status["accepted"]), (&json!(2), &json!(3), &json!(2)));
    assert_eq!(texts(&mock, &browsers[0]), ["judged"]);
    assert_eq!(texts(&mock, &browsers[2]), ["judged"]);
    // None that is good: nothing is taken.
    let error = client.error(&json!({"op": "send", "to": {"subscriptions": [list[1], list[4]]}}));
    assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("to.subscriptions[0].keys.auth")));
}
