//! A topic replaces what is still undelivered, in our own queue too: the older ends `skipped`, reason `superseded`.

use super::*;

/// The older ones end so, each with one event that names its recipient; the newer is delivered.
fn superseded(client: &mut Client, id: &Value, recipients: &[Subscription]) {
    let told = wait_ended(client, id);
    assert_eq!((&told["state"], &told["skipped"]), (&json!("done"), &json!(recipients.len())), "{told}");
    let events = wait_events(client, id, recipients.len());
    let mut named: Vec<&str> = events
        .iter()
        .map(|event| {
            assert_eq!((&event["type"], &event["reason"]), (&json!("skipped"), &json!("superseded")), "{event}");
            event["subscription_id"].as_str().unwrap_or_else(|| panic!("{event} names its subscription"))
        })
        .collect();
    named.sort_unstable();
    named.dedup();
    assert_eq!((events.len(), named.len()), (recipients.len(), recipients.len()));
}

#[test]
fn what_waits_is_superseded_wherever_it_waits() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    let held = json!({"op": "pause", "label": "held"});
    client.ok(&held);
    for recipients in [&browsers[..2], &browsers[..]] {
        for (n, more) in
            [json!({"at": in_seconds(3_600.0)}), json!({"paused": true}), json!({"label": "held"})].into_iter().enumerate()
        {
            let mut more = more;
            more["topic"] = format!("t{n}-{}", recipients.len()).into();
            more["payload"] = "old".into();
            let old = id_of(&client.ok(&send(recipients, more.clone())));
            assert_eq!(status(&mut client, &old)["pending"], recipients.len());
            let new = client.ok(&send(recipients, json!({"topic": more["topic"], "payload": "new"})));
            superseded(&mut client, &old, recipients);
            assert_eq!(wait_ended(&mut client, &id_of(&new))["accepted"], recipients.len());
        }
    }
    // Another topic, another recipient, another app: nothing to do with each other.
    let old = id_of(&client.ok(&send(&browsers[..1], json!({"topic": "a", "paused": true}))));
    client.ok(&send(&browsers[..1], json!({"topic": "b", "payload": "x"})));
    client.ok(&send(&browsers[1..2], json!({"topic": "a", "payload": "x"})));
    client.ok(&send(&browsers[..1], json!({"payload": "x"})));
    assert_eq!(status(&mut client, &old)["pending"], 1);
    client.ok(&json!({"op": "resume", "label": "held"}));
    client.ok(&json!({"op": "resume", "message_id": old}));
    assert_eq!(wait_ended(&mut client, &old)["accepted"], 1);
    assert!(mock.received().iter().all(|received| received.text() != "old"));
}

#[test]
fn what_waits_for_its_next_try_is_superseded() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 66);
    for recipients in [&browsers[..1], &browsers[..]] {
        put_off(&mock, &browsers[0]);
        let old = id_of(&client.ok(&send(recipients, json!({"topic": "t", "payload": "old"}))));
        wait_for("a retry", || {
            Some(status(&mut client, &old))
                .filter(|status| status["retries"] == 1 && status["pending"] == 1 && status["in_flight"] == 0)
        });
        mock.clear_all_faults();
        let new = id_of(&client.ok(&send(&browsers[..1], json!({"topic": "t", "payload": "new"}))));
        assert_eq!(wait_ended(&mut client, &new)["accepted"], 1);
        assert_eq!(wait_ended(&mut client, &old)["skipped"], 1);
        let events = wait_events(&mut client, &old, 1);
        assert_eq!((events.len(), &events[0]["reason"]), (1, &json!("superseded")));
    }
}

/// In flight when the newer one came, and to be tried again: it would overtake the newer one at the push service.
#[test]
fn what_was_in_flight_is_superseded_instead_of_being_tried_again() {
    let (mock, daemon) = start(|config| config.set("retry.min", 0.1));
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1);
    let answer = Fault::status(500).delay(Duration::from_secs(1));
    mock.set_fault_times(Scope::Subscription(browser[0].token.clone()), answer, 1);
    let old = id_of(&client.ok(&send(&browser, json!({"topic": "t", "payload": "old"}))));
    assert!(mock.wait_requests(1, PATIENCE));
    let new = id_of(&client.ok(&send(&browser, json!({"topic": "t", "payload": "new"}))));
    superseded(&mut client, &old, &browser);
    assert_eq!(wait_ended(&mut client, &new)["accepted"], 1);
    assert_eq!(texts(&mock, &browser[0]), ["old", "new"]);
}

/// Lines of one write, and so of one commit: only the last of each topic is sent.
#[test]
fn messages_of_one_commit_supersede_each_other() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    for (n, recipients, more) in [
        (0, &browsers[..3], json!({})),
        (1, &browsers[..3], json!({"paused": true})),
        (2, &browsers[..3], json!({"at": in_seconds(3_600.0)})),
        (3, &browsers[..], json!({"paused": true})),
        (4, &browsers[..], json!({})),
    ] {
        // So that none has left when the next one comes.
        client.ok(&json!({"op": "pause", "app": "default"}));
        let before = mock.counters().requests;
        let mut lines = String::new();
        for round in 0..5 {
            let mut more = if round < 4 { more.clone() } else { json!({}) };
            more["topic"] = format!("t{n}").into();
            more["payload"] = format!("{n}/{round}").into();
            lines.push_str(&format!("{}\n", send(recipients, more)));
        }
        client.send_raw(lines.as_bytes()).unwrap();
        let ids: Vec<Value> = (0..5).map(|_| id_of(&client.recv().unwrap())).collect();
        client.ok(&json!({"op": "resume", "app": "default"}));
        assert_eq!(wait_ended(&mut client, &ids[4])["accepted"], recipients.len());
        for id in &ids[..4] {
            superseded(&mut client, id, recipients);
        }
        assert_eq!(mock.counters().requests - before, recipients.len() as u64, "case {n}");
        assert_eq!(*texts(&mock, &browsers[2]).last().unwrap(), format!("{n}/4"));
    }
    // And at full speed: whatever was superseded was not sent, and the last one always is.
    let before = mock.received().len();
    let mut lines = String::new();
    for round in 0..400 {
        lines.push_str(&format!("{}\n", send(&browsers[..1], json!({"topic": "fast", "payload": format!("fast {round}")}))));
    }
    client.send_raw(lines.as_bytes()).unwrap();
    let ids: Vec<Value> = (0..400).map(|_| id_of(&client.recv().unwrap())).collect();
    let mut accepted = 0;
    for id in &ids {
        accepted += wait_ended(&mut client, id)["accepted"].as_u64().unwrap();
    }
    let received = mock.received();
    assert_eq!(accepted as usize, received.len() - before, "what ended as skipped was not sent");
    assert_eq!(received.last().unwrap().text(), "fast 399");
    assert!(accepted < 400, "nothing was superseded");
}
