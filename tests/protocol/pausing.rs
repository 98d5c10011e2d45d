//! `pause`, `resume` and `cancel` of messages, labels and apps.

use super::*;

#[test]
fn paused_from_the_start_until_resumed() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    let mut ids = Vec::new();
    for recipients in [&browsers[..2], &browsers[..]] {
        let reply = client.ok(&send(recipients, json!({"paused": true, "payload": "p"})));
        assert_eq!(reply["state"], "paused");
        ids.push((id_of(&reply), recipients.len()));
    }
    daemon.kill9();
    daemon.restart().unwrap();
    client = daemon.client();
    std::thread::sleep(Duration::from_millis(300));
    for (id, recipients) in &ids {
        let told = status(&mut client, id);
        assert_eq!((&told["state"], &told["pending"]), (&json!("paused"), &json!(recipients)));
    }
    assert_eq!(mock.counters().requests, 0);
    for (id, recipients) in &ids {
        client.ok(&json!({"op": "resume", "message_id": id}));
        client.ok(&json!({"op": "resume", "message_id": id}));
        let told = wait_ended(&mut client, id);
        assert_eq!((&told["state"], &told["accepted"]), (&json!("done"), &json!(recipients)));
    }
    // Paused and scheduled: `resume` does not make it early.
    let at = in_seconds(2.0);
    let id = id_of(&client.ok(&send(&browsers[..1], json!({"paused": true, "at": at, "payload": "both"}))));
    client.ok(&json!({"op": "resume", "message_id": id}));
    assert_eq!(status(&mut client, &id)["state"], "scheduled");
    assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
    let last = mock.received().pop().unwrap();
    assert!(i128::from(last.time) >= millis(&json!(at)) * 1_000, "it came before its time");
}

#[test]
fn a_paused_label_or_app_holds_what_comes_later_too() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    for target in [json!({"label": "l"}), json!({"app": "default"})] {
        let op = |name: &str| {
            let mut request = target.clone();
            request["op"] = name.into();
            request
        };
        let before = mock.counters().requests;
        client.ok(&op("pause"));
        client.ok(&op("pause"));
        let mut ids = Vec::new();
        for recipients in [&browsers[..2], &browsers[..]] {
            for more in [json!({"label": "l"}), json!({"label": "l", "at": in_seconds(0.2)})] {
                let reply = client.ok(&send(recipients, more));
                assert_eq!(reply["state"], "paused");
                ids.push((id_of(&reply), recipients.len()));
            }
        }
        let free = client.ok(&send(&browsers[..1], json!({"label": "other", "payload": "free"})));
        std::thread::sleep(Duration::from_millis(500));
        for (id, recipients) in &ids {
            let told = status(&mut client, id);
            assert_eq!((&told["state"], &told["pending"]), (&json!("paused"), &json!(recipients)));
        }
        let others = u64::from(target.get("label").is_some());
        if others == 1 {
            wait_ended(&mut client, &id_of(&free));
        }
        assert_eq!(mock.counters().requests - before, others);
        client.ok(&op("resume"));
        for (id, recipients) in &ids {
            assert_eq!(wait_ended(&mut client, id)["accepted"], *recipients);
        }
        wait_ended(&mut client, &id_of(&free));
    }
}

/// What was sent `paused`, or paused by its id, is one of those that a label or an app names.
#[test]
fn resume_of_a_label_or_an_app_starts_what_was_sent_paused() {
    let (mock, mut daemon) = start(|config| config);
    let browsers = mock.subscribe(0, 70);
    for (target, other) in [(json!({"label": "l"}), json!({"label": "m"})), (json!({"app": "default"}), json!({"label": "m"}))] {
        let mut client = daemon.client();
        let mut ids = Vec::new();
        for recipients in [&browsers[..2], &browsers[..]] {
            ids.push((id_of(&client.ok(&send(recipients, json!({"paused": true, "label": "l"})))), recipients.len()));
            let id = id_of(&client.ok(&send(recipients, json!({"at": in_seconds(1.0), "label": "l"}))));
            client.ok(&json!({"op": "pause", "message_id": id}));
            ids.push((id, recipients.len()));
        }
        // Rules that were read from disk are taken back like others.
        daemon.kill9();
        daemon.restart().unwrap();
        client = daemon.client();
        for (id, _) in &ids {
            let told = status(&mut client, id);
            assert_eq!((&told["state"], &told["paused_by"]), (&json!("paused"), &json!(["message"])), "{told}");
        }
        let with_op = |target: &Value| {
            let mut request = target.clone();
            request["op"] = "resume".into();
            request
        };
        assert_eq!(client.ok(&with_op(&other))["messages"], 0);
        let resumed = client.ok(&with_op(&target));
        assert_eq!((&resumed["messages"], &resumed["recipients"]), (&json!(4), &json!(144)), "{resumed}");
        for (id, recipients) in &ids {
            let told = wait_ended(&mut client, id);
            assert_eq!((&told["accepted"], &told["paused_by"]), (&json!(recipients), &json!([])), "{told}");
        }
    }
}

#[test]
fn pause_resume_and_cancel_say_how_much_they_concern() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    let mut ask = |op: &str, mut target: Value| {
        target["op"] = op.into();
        let reply = client.ok(&target);
        assert!(reply.get("more").is_none(), "{reply}");
        (reply["messages"].as_u64().expect("a number"), reply["recipients"].as_u64().expect("a number"))
    };
    let mut more = daemon.client();
    let later = json!({"label": "l", "at": in_seconds(3_600.0)});
    let single = id_of(&more.ok(&send(&browsers[..2], later.clone())));
    let list = id_of(&more.ok(&send(&browsers, later.clone())));
    more.ok(&send(&browsers[..1], json!({"label": "other", "at": in_seconds(3_600.0)})));
    let ended = id_of(&more.ok(&send(&browsers[..1], json!({"label": "l"}))));
    wait_ended(&mut more, &ended);
    let paused_by = |more: &mut Client, id: &Value| status(more, id)["paused_by"].clone();

    // A word that names nothing says so.
    for op in ["pause", "resume", "cancel"] {
        assert_eq!(ask(op, json!({"label": "typo"})), (0, 0), "{op}");
        assert_eq!(ask(op, json!({"message_id": ended})), (0, 0), "{op}");
    }
    assert_eq!(ask("resume", json!({"label": "l"})), (0, 0), "nothing of it is paused");
    assert_eq!(ask("pause", json!({"label": "l"})), (2, 72));
    assert_eq!(ask("pause", json!({"message_id": list})), (1, 70));
    assert_eq!(ask("pause", json!({"message_id": single})), (1, 2));
    assert_eq!(ask("pause", json!({"app": "default"})), (3, 73));
    for id in [&single, &list] {
        assert_eq!(paused_by(&mut more, id), json!(["message", "label", "app"]));
    }
    assert_eq!(ask("resume", json!({"label": "l"})), (0, 0), "the app is paused still");
    assert_eq!(paused_by(&mut more, &single), json!(["app"]));
    assert_eq!(ask("resume", json!({"app": "default"})), (3, 73));
    assert_eq!(ask("resume", json!({"app": "default"})), (0, 0), "once is enough");
    for id in [&single, &list] {
        let told = status(&mut more, id);
        assert_eq!((&told["state"], &told["paused_by"]), (&json!("scheduled"), &json!([])));
    }
    assert_eq!(ask("pause", json!({"message_id": single})), (1, 2));
    assert_eq!(ask("resume", json!({"message_id": single})), (1, 2));
    assert_eq!(ask("resume", json!({"message_id": single})), (0, 0));
    // What this connection has sent in the same breath counts.
    let lines = format!("{}\n{}\n", send(&browsers[..1], later), json!({"op": "cancel", "label": "l"}));
    more.send_raw(lines.as_bytes()).unwrap();
    more.recv().unwrap();
    let cancelled = more.recv().unwrap();
    assert_eq!((&cancelled["messages"], &cancelled["recipients"]), (&json!(3), &json!(73)), "{cancelled}");
    assert_eq!(ask("cancel", json!({"label": "l"})), (0, 0));
    assert_eq!(ask("cancel", json!({"message_id": list})), (0, 0));
    assert_eq!(ask("cancel", json!({"app": "default"})), (1, 1));
}

/// A list that is paused in the middle goes on where it was: nobody is left out, nobody twice.
#[test]
fn a_list_is_paused_and_resumed_again_and_again() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 1_500);
    let id = id_of(&client.ok(&send(&browsers, json!({"payload": "again"}))));
    for _ in 0..12 {
        client.ok(&json!({"op": "pause", "message_id": id}));
        let held = status(&mut client, &id);
        std::thread::sleep(Duration::from_millis(30));
        client.ok(&json!({"op": "resume", "message_id": id}));
        if held["pending"] == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(15));
    }
    assert_eq!(wait_ended(&mut client, &id)["accepted"], 1_500);
    let counters = mock.counters();
    assert_eq!((counters.accepted, counters.repeats), (1_500, 0));
}

/// What a paused list has waiting for its next try is held too.
#[test]
fn a_paused_list_makes_no_retries() {
    let (mock, daemon) = start(|config| config.set("retry.min", 0.5).set("retry.max", 0.5));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    mock.set_fault_times(Scope::Subscription(browsers[0].token.clone()), Fault::status(429).retry_after(2), 1);
    let id = id_of(&client.ok(&send(&browsers, json!({"payload": "x"}))));
    wait_for("a retry", || Some(status(&mut client, &id)).filter(|status| status["accepted"] == 69 && status["retries"] == 1));
    client.ok(&json!({"op": "pause", "message_id": id}));
    std::thread::sleep(Duration::from_millis(2_800));
    let told = status(&mut client, &id);
    assert_eq!((&told["state"], &told["pending"]), (&json!("paused"), &json!(1)));
    assert_eq!(mock.received_by(&browsers[0]).len(), 1);
    client.ok(&json!({"op": "resume", "message_id": id}));
    assert_eq!(wait_ended(&mut client, &id)["accepted"], 70);
}

/// `cancel` of a label ends what there is, wherever it waits, and nothing that comes later, not even in the same write.
#[test]
fn a_cancelled_label_ends_what_was_before_and_nothing_after() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    for round in 0..10 {
        let label = format!("l{}", round % 2);
        let mut lines = String::new();
        let mut add = |request: Value| lines.push_str(&format!("{request}\n"));
        add(send(&browsers[..2], json!({"label": label, "at": in_seconds(3_600.0)})));
        add(send(&browsers[..2], json!({"label": label, "paused": true})));
        add(send(&browsers, json!({"label": label, "paused": true})));
        add(json!({"op": "cancel", "label": label}));
        add(send(&browsers[..2], json!({"label": label, "payload": format!("after {round}")})));
        add(send(&browsers[..1], json!({"label": "other", "payload": "other"})));
        client.send_raw(lines.as_bytes()).unwrap();
        let mut replies: Vec<Value> = (0..6).map(|_| client.recv().unwrap()).collect();
        assert!(replies.iter().all(|reply| reply["ok"] == true), "{replies:?}");
        let cancel = replies.remove(3);
        assert!(cancel.get("message_id").is_none());
        for reply in &replies[..3] {
            // Right after the reply, and from then on.
            for _ in 0..20 {
                let told = status(&mut client, id_of(reply));
                assert_eq!((&told["state"], &told["cancelled"]), (&json!("cancelled"), &reply["recipients"]), "{told}");
            }
        }
        assert_eq!(wait_ended(&mut client, &id_of(&replies[3]))["accepted"], 2);
        assert_eq!(wait_ended(&mut client, &id_of(&replies[4]))["accepted"], 1);
        for (reply, events) in replies.iter().zip([2, 2, 1]) {
            assert_eq!(wait_events(&mut client, &id_of(reply), events).len(), events);
        }
    }
    // The label is not cursed.
    let id = id_of(&client.ok(&send(&browsers[..2], json!({"label": "l0"}))));
    assert_eq!(wait_ended(&mut client, &id)["accepted"], 2);
}

/// Under load, with singles on their way in every stage, what a label's cancellation has told stays so.
#[test]
fn a_status_does_not_go_back_on_a_cancelled_label() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 200);
    for browser in &browsers[..60] {
        put_off(&mock, browser);
    }
    mock.set_fault_every(Scope::Everything, Fault::late(Duration::from_millis(100)), 3);
    let lines: String =
        browsers.iter().map(|browser| format!("{}\n", send(std::slice::from_ref(browser), json!({"label": "l"})))).collect();
    client.send_raw(lines.as_bytes()).unwrap();
    let ids: Vec<Value> = (0..200).map(|_| id_of(&client.recv().unwrap())).collect();
    client.ok(&json!({"op": "cancel", "label": "l"}));
    let mut ended = vec![None; ids.len()];
    let deadline = Instant::now() + PATIENCE;
    while ended.iter().any(Option::is_none) && Instant::now() < deadline {
        for (id, before) in ids.iter().zip(&mut ended) {
            let told = status(&mut client, id);
            let now = ENDED.into_iter().find(|ending| told[*ending] == 1);
            assert!(before.is_none() || *before == now, "it was {before:?}, now it is {told}");
            *before = now;
            assert!(now.is_some() || told["in_flight"] == 1, "neither in flight nor ended: {told}");
        }
    }
    for (id, ending) in ids.iter().zip(ended) {
        let ending = ending.expect("it ended");
        let expected = usize::from(ending != "accepted");
        let told = wait_events(&mut client, id, expected);
        assert_eq!(told.len(), expected, "{ending}: {told:?}");
    }
}
