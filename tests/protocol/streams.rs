//! Streams: `add`, `close`, positions.

use super::*;

fn stream(client: &mut Client, more: Value) -> Value {
    let mut request = json!({"op": "send", "to": {"stream": true}, "payload": "stream"});
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    let reply = client.ok(&request);
    assert_eq!(reply["recipients"], 0);
    id_of(&reply)
}

fn add(id: &Value, subscriptions: Value, position: Value, previous: Value) -> Value {
    json!({"op": "add", "message_id": id, "subscriptions": subscriptions, "position": position, "previous": previous})
}

#[test]
fn positions_are_kept_and_checked() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 6);
    let request = json!({"op": "send", "to": {"stream": true}, "payload": "stream", "idempotency_key": "s"});
    let id = id_of(&client.ok(&request));
    let told = status(&mut client, &id);
    assert_eq!((&told["open"], &told["position"], &told["state"]), (&json!(true), &Value::Null, &json!("sending")));
    let first = add(&id, all(&browsers[..2]), json!(10), Value::Null);
    assert_eq!(client.ok(&first)["recipients"], 2);
    // Sending starts with the first add.
    assert!(mock.wait_received(2, PATIENCE));
    let again = client.ok(&first);
    assert_eq!((&again["duplicate"], &again["recipients"], &again["position"]), (&json!(true), &json!(2), &json!(10)));
    let error = client.error(&add(&id, all(&browsers[2..3]), json!(30), json!(20)));
    assert_eq!((&error["code"], &error["field"], &error["position"]), (&json!("conflict"), &json!("previous"), &json!(10)));
    let error = client.error(&add(&id, all(&browsers[2..3]), json!(30), Value::Null));
    assert_eq!((&error["code"], &error["position"]), (&json!("conflict"), &json!(10)));
    // An add of which none is good is still taken.
    let reply = client.ok(&add(&id, json!([{"ref": "bad"}]), json!("row-20"), json!(10)));
    assert_eq!(
        (&reply["recipients"], &reply["rejected"][0]["ref"], &reply["position"]),
        (&json!(2), &json!("bad"), &json!("row-20"))
    );
    for _ in 0..2 {
        let told = status(&mut client, &id);
        assert_eq!((&told["position"], &told["recipients"], &told["rejected"]), (&json!("row-20"), &json!(2), &json!(1)));
        let repeated = client.ok(&request);
        assert_eq!((&repeated["duplicate"], &repeated["position"]), (&json!(true), &json!("row-20")));
        daemon.kill9();
        daemon.restart().unwrap();
        client = daemon.client();
    }
    // Without a position it is not moved; with a close it is.
    client.ok(&json!({"op": "add", "message_id": id, "subscriptions": all(&browsers[2..4])}));
    assert_eq!(client.error(&json!({"op": "close", "message_id": id, "position": 40, "previous": 10}))["position"], "row-20");
    let close = json!({"op": "close", "message_id": id, "position": 40, "previous": "row-20"});
    let reply = client.ok(&close);
    assert_eq!((&reply["position"], &reply["recipients"], reply.get("duplicate")), (&json!(40), &json!(4), None));
    assert_eq!(client.ok(&close)["duplicate"], true);
    let told = wait_ended(&mut client, &id);
    assert_eq!((&told["state"], &told["accepted"], &told["position"]), (&json!("done"), &json!(4), &json!(40)));
    let error = client.error(&add(&id, all(&browsers[4..]), json!(50), json!(40)));
    assert_eq!((&error["code"], &error["field"]), (&json!("conflict"), &json!("message_id")));
    assert_eq!(client.ok(&close)["duplicate"], true);
    assert_eq!(client.ok(&request)["position"], 40, "also when it has ended");
    // The kills may have made some go out twice (promise 2).
    assert_eq!(mock.counters().distinct, 4);
}

/// 10,000 in many adds; the counters add up at any moment.
#[test]
fn ten_thousand_in_adds() {
    let (mock, daemon) = start(|config| config);
    mock.set_verify_every(50);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 10_000);
    let id = stream(&mut client, json!({"label": "many"}));
    let adding = {
        let (id, browsers, mut client) = (id.clone(), browsers.clone(), daemon.client());
        std::thread::spawn(move || {
            let sizes = [1usize, 63, 64, 65, 511, 512, 513, 1_025];
            let (mut at, mut round) = (0, 0);
            while at < browsers.len() {
                let end = browsers.len().min(at + sizes[round % sizes.len()]);
                let reply =
                    client.ok(&add(&id, all(&browsers[at..end]), json!(end), if at == 0 { Value::Null } else { json!(at) }));
                assert_eq!(reply["recipients"], end);
                (at, round) = (end, round + 1);
            }
            client.ok(&json!({"op": "close", "message_id": id}));
        })
    };
    let mut most = 0;
    let told = wait_for("the end", || {
        let told = status(&mut client, &id);
        let ended = told["recipients"].as_u64().unwrap() - told["pending"].as_u64().unwrap();
        assert!(ended >= most, "an ending was taken back: {told}");
        most = ended;
        (told["open"] == false && told["pending"] == 0).then_some(told)
    });
    adding.join().unwrap();
    assert_eq!((&told["accepted"], &told["state"], &told["walked"]), (&json!(10_000), &json!("done"), &json!(1)));
    let counters = mock.counters();
    assert_eq!((counters.accepted, counters.repeats), (10_000, 0));
}

#[test]
fn a_list_of_several_chunks() {
    let (mock, daemon) = start(|config| config);
    mock.set_verify_every(20);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 1_300);
    for count in [64, 65, 512, 513, 1_300] {
        let id = id_of(&client.ok(&send(&browsers[..count], json!({"payload": format!("{count}")}))));
        assert_eq!(wait_ended(&mut client, &id)["accepted"], count);
    }
}

#[test]
fn a_stream_that_nobody_closes_is_closed_at_its_deadline() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 3);
    put_off(&mock, &browsers[2]);
    let empty = stream(&mut client, json!({"ttl": 3}));
    let id = stream(&mut client, json!({"ttl": 3}));
    client.ok(&json!({"op": "add", "message_id": id, "subscriptions": all(&browsers)}));
    wait_for("the first", || Some(status(&mut client, &id)).filter(|told| told["accepted"] == 2));
    assert_eq!(status(&mut client, &id)["open"], true);
    // The third is put off beyond the deadline: it ends now or then, but as expired.
    let told = wait_ended(&mut client, &id);
    assert_eq!((&told["state"], &told["accepted"], &told["expired"]), (&json!("done"), &json!(2), &json!(1)));
    assert_eq!(wait_ended(&mut client, &empty)["state"], "done");
    for id in [&id, &empty] {
        let error = client.error(&json!({"op": "add", "message_id": id, "subscriptions": all(&browsers)}));
        assert_eq!(error["code"], "conflict");
    }
}

/// What was in flight of a cancelled list when the process ended is not sent again, and is not pending for ever.
#[test]
fn a_cancelled_list_ends_across_a_crash() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    for browser in &browsers {
        slow(&mock, browser, Duration::from_secs(20));
    }
    let id = id_of(&client.ok(&send(&browsers, json!({}))));
    assert!(mock.wait_requests(1, PATIENCE));
    client.ok(&json!({"op": "cancel", "message_id": id}));
    let told = status(&mut client, &id);
    assert_eq!((&told["state"], told["pending"].as_u64() > Some(0)), (&json!("cancelled"), true), "{told}");
    daemon.kill9();
    mock.clear_all_faults();
    daemon.restart().unwrap();
    client = daemon.client();
    let told = wait_ended(&mut client, &id);
    assert_eq!((&told["state"], &told["cancelled"]), (&json!("cancelled"), &json!(70)), "{told}");
    let count = |events: &[Value]| events.iter().map(|event| event["count"].as_u64().unwrap_or(1)).sum::<u64>();
    wait_for("its events", || Some(count(&events_of(&mut client, &id))).filter(|count| *count == 70));
}
