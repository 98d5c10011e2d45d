//! `send`: bodies, options, idempotency, `cancel`.

use super::*;

#[test]
fn a_body_arrives_byte_by_byte_as_specified() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let cases: &[(&str, Option<&[u8]>)] = &[
        (r#""payload":"""#, None),
        (r#""payload":"plain \u017c \n \ud83d\ude00""#, Some("plain ż \n 😀".as_bytes())),
        (r#""payload":{ "z" : 1.50 , "a":[ 1e3, true ,null, "\u00e9\/\"" ],"é":{} }"#, Some(r#"{"z":1.50,"a":[1e3,true,null,"é/\""],"é":{}}"#.as_bytes())),
        (r#""payload":[ ]"#, Some(b"[]")),
        (r#""payload_base64":"/+8=""#, Some(&[255, 239])),
        (r#""payload_base64":"_-8""#, Some(&[255, 239])),
        (r#""payload_base64":"_-8=""#, Some(&[255, 239])),
        (r#""payload_base64":"/+8""#, Some(&[255, 239])),
        (
            r#""notification":{ "title":"Hi ż", "navigate":"https://example.com/a?b", "x":[1, 2] }"#,
            Some(r#"{"web_push":8030,"notification":{"title":"Hi ż","navigate":"https://example.com/a?b","x":[1,2]}}"#.as_bytes()),
        ),
        (
            r#""notification":{"title":"t","navigate":"https://example.com/"},"app_badge":3,"mutable":true"#,
            Some(br#"{"web_push":8030,"notification":{"title":"t","navigate":"https://example.com/"},"app_badge":3,"mutable":true}"#),
        ),
    ];
    let browsers = mock.subscribe(0, cases.len() + 2);
    for ((members, _), browser) in cases.iter().zip(&browsers) {
        client
            .send_raw(format!("{{\"op\":\"send\",\"to\":{{\"subscription\":{}}},{members}}}\n", browser.json()).as_bytes())
            .unwrap();
        let reply = client.recv().unwrap();
        assert_eq!(reply["ok"], true, "{members}: {reply}");
    }
    let largest = "x".repeat(3_993);
    client.ok(&json!({"op": "send", "to": {"subscription": browsers[cases.len()].json()}, "payload": largest}));
    client.ok(&json!({"op": "send", "to": {"subscription": browsers[cases.len() + 1].json()}}));
    assert!(mock.wait_received(cases.len() as u64 + 2, PATIENCE));
    for ((members, body), browser) in cases.iter().zip(&browsers) {
        let received = &mock.received_by(browser)[0];
        assert_eq!(received.payload.as_deref().filter(|body| !body.is_empty()), *body, "{members}");
        let declarative = members.contains("notification").then_some("application/notification+json");
        assert_eq!(received.content_type.as_deref().filter(|kind| kind.contains("json")), declarative, "{members}");
    }
    assert_eq!(texts(&mock, &browsers[cases.len()]), [largest]);
    assert_eq!(mock.counters().violations, Vec::<String>::new());
}

#[test]
fn options_reach_the_push_service() {
    let (mock, daemon) = start(|config| config.set("messages.ttl_default", 1_000).set("messages.ttl_max", 2_000));
    let browsers = mock.subscribe(0, 6);
    let mut client = daemon.client();
    for (browser, urgency) in browsers.iter().zip(["very-low", "low", "normal", "high"]) {
        let reply = client.ok(
            &json!({"op": "send", "to": {"subscription": browser.json()}, "urgency": urgency, "ttl": 100.9, "topic": "news"}),
        );
        assert_eq!((&reply["state"], &reply["recipients"]), (&json!("sending"), &json!(1)));
    }
    let reply = client.ok(&json!({"op": "send", "to": {"subscription": browsers[4].json()}, "label": "l", "ref": "r"}));
    let status = status(&mut client, id_of(&reply));
    assert_eq!((&status["label"], &status["ref"], &status["expires"]), (&json!("l"), &json!("r"), &reply["expires"]));
    let life = millis(&status["expires"]) - millis(&status["created"]);
    assert!((990_000..=1_000_000).contains(&life), "ttl_default is kept: {life}");
    assert_eq!(client.error(&json!({"op": "send", "to": {"subscription": browsers[4].json()}, "ttl": 2_001}))["field"], "ttl");
    client.ok(&json!({"op": "send", "to": {"subscription": browsers[5].json()}, "ttl": 0}));
    assert!(mock.wait_received(6, PATIENCE));
    let mut topics = Vec::new();
    for (browser, urgency) in browsers.iter().zip(["very-low", "low", "normal", "high"]) {
        let received = &mock.received_by(browser)[0];
        assert_eq!(received.urgency.as_deref().unwrap_or("normal"), urgency);
        assert!(received.ttl.is_some_and(|ttl| (60..=100).contains(&ttl)), "{:?}", received.ttl);
        topics.extend(received.topic.clone());
    }
    assert!(
        topics.len() == 4 && topics.iter().all(|topic| *topic == topics[0] && topic.len() == 32 && topic != "news"),
        "{topics:?}"
    );
    assert_eq!(mock.received_by(&browsers[5])[0].ttl, Some(0));
}

#[test]
fn an_idempotency_key_is_answered_as_the_first_time() {
    let (mock, mut daemon) = start(|config| config);
    let browsers = mock.subscribe(0, 2);
    let mut client = daemon.client();
    let request = json!({"op": "send", "to": {"subscription": browsers[0].json()}, "payload": {"a": 1, "b": 2}, "ttl": 60, "idempotency_key": "k", "id": 1});
    // Twice in one write: decided by the writer, in one commit.
    client.send_raw(format!("{request}\n{request}\n").as_bytes()).unwrap();
    let (first, second) = (client.recv().unwrap(), client.recv().unwrap());
    assert_eq!((first.get("duplicate"), &second["duplicate"]), (None, &json!(true)));
    let same = |reply: &Value| {
        for name in ["message_id", "state", "expires", "recipients"] {
            assert_eq!(reply[name], first[name], "{name} of {reply}");
        }
        assert_eq!(reply["duplicate"], true);
    };
    same(&second);
    wait_ended(&mut client, &id_of(&first));
    // The same request: another id, another order and spelling.
    let line = format!(
        "{{\"idempotency_key\":\"k\",\"ttl\":6e1,\"payload\":{{\"a\":1,\"b\":2}},\"label\":null,\"to\":{{\"subscription\":{}}},\"op\":\"send\"}}\n",
        browsers[0].json()
    );
    client.send_raw(line.as_bytes()).unwrap();
    same(&client.recv().unwrap());
    let mut other = request.clone();
    other["payload"] = "other".into();
    let error = client.error(&other);
    assert_eq!((&error["code"], &error["field"]), (&json!("conflict"), &json!("idempotency_key")));
    for kill in [true, false] {
        if kill {
            daemon.kill9();
        } else {
            assert_eq!(daemon.terminate().unwrap(), 0);
        }
        daemon.restart().unwrap();
        client = daemon.client();
        same(&client.ok(&request));
        assert_eq!(client.error(&other)["code"], "conflict");
    }
    // Also while nothing new is taken.
    client.ok(&json!({"op": "drain"}));
    same(&client.ok(&request));
    assert_eq!(texts(&mock, &browsers[0]).len(), 1);
}

#[test]
fn at_is_not_before_and_a_past_one_is_now() {
    let (mock, daemon) = start(|config| config);
    let browsers = mock.subscribe(0, 70);
    let mut client = daemon.client();
    let past = client.ok(&send(&browsers[..1], json!({"payload": "past", "at": in_seconds(-3_600.0), "ttl": 60})));
    assert_eq!(past["state"], "sending");
    let at = in_seconds(2.0);
    // A single and a list.
    let single = client.ok(&send(&browsers[..2], json!({"payload": "single", "at": at, "ttl": 60})));
    let list = client.ok(&send(&browsers, json!({"payload": "list", "at": at, "ttl": 60})));
    for reply in [&single, &list] {
        assert_eq!(reply["state"], "scheduled");
        let status = status(&mut client, id_of(reply));
        assert_eq!((&status["state"], &status["accepted"]), (&json!("scheduled"), &json!(0)));
        assert!((millis(&status["at"]) - millis(&json!(at))).abs() <= 1, "{status}");
        assert_eq!(millis(&status["expires"]) - millis(&status["at"]), 60_000);
        assert_eq!(status["expires"], reply["expires"]);
    }
    assert_eq!(wait_ended(&mut client, &id_of(&past))["accepted"], 1);
    assert_eq!(wait_ended(&mut client, &id_of(&single))["accepted"], 2);
    assert_eq!(wait_ended(&mut client, &id_of(&list))["accepted"], 70);
    let early = millis(&json!(at)) * 1_000;
    for received in mock.received().iter().filter(|received| received.text() != "past") {
        assert!(i128::from(received.time) >= early, "{} came before its time", received.text());
    }
    let error = client.error(&send(&browsers[..1], json!({"at": in_seconds(91.0 * 86_400.0)})));
    assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("at")));
}

/// `cancel` in every state: what is not in flight ends at once, and the status right after the reply says so.
#[test]
fn cancel_ends_at_once_what_is_not_in_flight() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let quick = mock.subscribe(0, 80);
    let (late, retried) = (mock.subscribe(0, 1), mock.subscribe(0, 1));
    slow(&mock, &late[0], Duration::from_secs(3));
    put_off(&mock, &retried[0]);
    let mut cancelled = 0;
    let mut ended: Vec<(Value, usize)> = Vec::new();
    for recipients in [&quick[..3], &quick[..]] {
        for more in [json!({"at": in_seconds(3_600.0)}), json!({"paused": true})] {
            let id = id_of(&client.ok(&send(recipients, more)));
            client.ok(&json!({"op": "cancel", "message_id": id}));
            let status = status(&mut client, &id);
            assert_eq!(
                (&status["state"], &status["cancelled"], &status["pending"]),
                (&json!("cancelled"), &json!(recipients.len()), &json!(0))
            );
            cancelled += recipients.len();
            // Lists tell it in one event.
            ended.push((id, if recipients.len() > 64 { 1 } else { recipients.len() }));
        }
    }
    // Waiting for its next try.
    let retry = id_of(&client.ok(&send(&retried, json!({"payload": "retry"}))));
    wait_for("a retry", || Some(status(&mut client, &retry)).filter(|status| status["retries"] == 1 && status["in_flight"] == 0));
    client.ok(&json!({"op": "cancel", "message_id": retry}));
    let told = status(&mut client, &retry);
    assert_eq!((&told["state"], &told["cancelled"]), (&json!("cancelled"), &json!(1)));
    cancelled += 1;
    ended.push((retry.clone(), 1));
    // In flight: let finish, and counted as what it was.
    let flying = id_of(&client.ok(&send(&late, json!({"payload": "flying"}))));
    wait_for("the post", || (!mock.received_by(&late[0]).is_empty()).then_some(()));
    client.ok(&json!({"op": "cancel", "message_id": flying}));
    let told = status(&mut client, &flying);
    assert_eq!((&told["state"], &told["pending"], &told["in_flight"]), (&json!("sending"), &json!(1), &json!(1)));
    loop {
        let told = status(&mut client, &flying);
        assert_eq!(told["cancelled"], 0, "it was in flight: {told}");
        if told["accepted"] == 1 {
            break;
        }
    }
    // Again, and of what has ended: nothing happens.
    for (id, events) in ended {
        client.ok(&json!({"op": "cancel", "message_id": id}));
        client.ok(&json!({"op": "pause", "message_id": id}));
        client.ok(&json!({"op": "resume", "message_id": id}));
        assert_eq!(status(&mut client, &id)["state"], "cancelled");
        let told = wait_events(&mut client, &id, events);
        assert_eq!(told.len(), events);
        assert!(told.iter().all(|event| event["type"] == "cancelled" && event["reason"] == "cancelled"), "{told:?}");
        let count: u64 = told.iter().map(|event| event["count"].as_u64().unwrap_or(1)).sum();
        cancelled -= count as usize;
    }
    assert_eq!(cancelled, 0);
    client.ok(&json!({"op": "cancel", "message_id": flying}));
    assert_eq!(status(&mut client, &flying)["state"], "done");
    assert_eq!(mock.counters().requests, 2);
}

/// In flight when it was cancelled, and answered so that it would be tried again: it ends instead.
#[test]
fn what_was_in_flight_when_it_was_cancelled_is_not_tried_again() {
    let (mock, daemon) = start(|config| config.set("retry.min", 0.1));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    for browser in &browsers {
        let answer = Fault::status(500).delay(Duration::from_secs(1));
        mock.set_fault(Scope::Subscription(browser.token.clone()), answer);
    }
    let by_id = id_of(&client.ok(&send(&browsers[..1], json!({}))));
    let by_label = id_of(&client.ok(&send(&browsers[1..], json!({"label": "l"}))));
    assert!(mock.wait_requests(2, PATIENCE));
    client
        .send_raw(
            format!("{}\n{}\n", json!({"op": "cancel", "message_id": by_id}), json!({"op": "cancel", "label": "l"})).as_bytes(),
        )
        .unwrap();
    assert_eq!((&client.recv().unwrap()["ok"], &client.recv().unwrap()["ok"]), (&json!(true), &json!(true)));
    for id in [by_id, by_label] {
        let told = wait_ended(&mut client, &id);
        assert_eq!((&told["state"], &told["cancelled"]), (&json!("cancelled"), &json!(1)));
        assert_eq!(wait_events(&mut client, &id, 1).len(), 1);
    }
    assert_eq!(mock.counters().requests, 2);
}

#[test]
fn rate_and_spread_keep_their_time() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 60);
    let times = |text: &str| -> Vec<u64> {
        let mut times: Vec<u64> =
            mock.received().iter().filter(|received| received.text() == text).map(|received| received.time / 1_000).collect();
        times.sort_unstable();
        times
    };
    let rate = client.ok(&send(&browsers[..30], json!({"payload": "rate", "rate": 10})));
    let spread = client.ok(&send(&browsers, json!({"payload": "spread", "spread": 3, "ttl": 60})));
    assert_eq!(status(&mut client, id_of(&rate))["rate"].as_f64(), Some(10.0));
    assert_eq!(wait_ended(&mut client, &id_of(&spread))["accepted"], 60);
    assert_eq!(wait_ended(&mut client, &id_of(&rate))["accepted"], 30);
    let rate = times("rate");
    let lasted = rate[29] - rate[0];
    assert!((2_600..=6_000).contains(&lasted), "30 at 10 a second took {lasted} ms");
    // Never more than the rate, and a slice, in any second; arrivals may bunch by as much as the machine is late.
    for (at, first) in rate.iter().enumerate() {
        let within = rate[at..].iter().take_while(|time| **time < first + 1_000).count();
        assert!(within <= 16, "{within} within a second");
    }
    let spread = times("spread");
    let lasted = spread[59] - spread[0];
    assert!((2_000..=5_000).contains(&lasted), "60 over 3 s took {lasted} ms");
    let half = spread.iter().filter(|time| **time < spread[0] + 1_500).count();
    assert!((15..=50).contains(&half), "{half} of 60 in the first half");
    // `resume` may carry a new rate; for a label too.
    let slow = client.ok(&send(&browsers[..20], json!({"payload": "slow", "rate": 0.1, "label": "slow"})));
    client.ok(&json!({"op": "resume", "label": "slow", "rate": 1_000}));
    assert_eq!(wait_ended(&mut client, &id_of(&slow))["rate"].as_f64(), Some(1_000.0));
    let slow = client.ok(&send(&browsers[..20], json!({"payload": "slower", "rate": 0.1, "paused": true})));
    client.ok(&json!({"op": "resume", "message_id": slow["message_id"], "rate": 500}));
    assert_eq!(wait_ended(&mut client, &id_of(&slow))["accepted"], 20);
}
