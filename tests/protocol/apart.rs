//! What belongs to one app does not exist on the socket of another (promise 8).

use super::*;
use std::os::unix::fs::PermissionsExt;

/// A daemon with the apps `shop` and `news` beside `default`.
fn two_apps(directory: &tempfile::TempDir) -> (Mock, Daemon) {
    start(|config| with_two_apps(config, directory).set("events.log", json!(["accepted", "cancelled", "gone"])))
}

#[test]
fn two_apps_sockets_see_nothing_of_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (mock, daemon) = two_apps(&directory);
    let mut operator = daemon.client();
    let [mut shop, mut news] = ["shop", "news"].map(|app| Client::connect(path(app)).unwrap());
    assert_eq!(std::fs::metadata(path("shop")).unwrap().permissions().mode() & 0o777, 0o600);
    let browsers = mock.subscribe(0, 70);
    // The only app of a socket needs no name.
    let keys: Vec<Value> = [&mut shop, &mut news].map(|client| client.ok(&json!({"op": "vapid_public_key"}))).to_vec();
    assert_eq!((&keys[0]["app"], &keys[1]["app"]), (&json!("shop"), &json!("news")));
    assert_ne!(keys[0]["public_key"], keys[1]["public_key"]);
    let single = id_of(&shop.ok(&send(&browsers[..2], json!({"label": "l", "paused": true, "payload": "shop"}))));
    let list = id_of(&shop.ok(&send(&browsers, json!({"label": "l", "paused": true, "payload": "shop"}))));
    let stream = id_of(&shop.ok(&json!({"op": "send", "to": {"stream": true}, "label": "l"})));
    let sent =
        id_of(&shop.ok(&send(&browsers[..1], json!({"label": "m", "payload": "shop", "idempotency_key": "k", "topic": "t"}))));
    wait_ended(&mut shop, &sent);

    // Nothing of it is there.
    for id in [&single, &list, &stream, &sent] {
        for op in ["status", "cancel", "pause", "resume", "close"] {
            let error = news.error(&json!({"op": op, "message_id": id}));
            assert_eq!((&error["code"], &error["field"]), (&json!("not_found"), &json!("message_id")), "{op}");
        }
        let error = news.error(&json!({"op": "add", "message_id": id, "subscriptions": all(&browsers[..1])}));
        assert_eq!(error["code"], "not_found");
        assert!(events_of(&mut news, id).is_empty());
    }
    for request in [
        json!({"op": "cancel", "app": "shop"}),
        json!({"op": "pause", "app": "shop"}),
        json!({"op": "resume", "app": "default"}),
        json!({"op": "events", "app": "shop"}),
        json!({"op": "vapid_public_key", "app": "shop"}),
        send(&browsers[..1], json!({"app": "shop"})),
        json!({"op": "send", "to": {"stream": true}, "app": "default"}),
    ] {
        let error = news.error(&request);
        assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("app")), "{request}");
    }
    assert_eq!(news.ok(&json!({"op": "list_messages"}))["messages"], json!([]));
    assert_eq!(news.ok(&json!({"op": "stats", "by": ["app", "label"]}))["stats"], json!([]));
    assert_eq!(news.events(&json!({"op": "events"})).unwrap().0, Vec::<Value>::new());
    for op in ["drain", "reload", "backup"] {
        assert_eq!(news.error(&json!({"op": op}))["code"], "not_allowed", "{op}");
    }
    let ping = news.ok(&json!({"op": "ping"}));
    assert_eq!((&ping["pending"], ping.get("uptime")), (&json!(0), None), "{ping}");
    assert_eq!(shop.ok(&json!({"op": "ping"}))["pending"], 72);
    assert_eq!(operator.ok(&json!({"op": "ping"}))["pending"], 72);
    // A label, an idempotency key, a topic is each app's own.
    for op in ["pause", "resume", "cancel"] {
        let told = news.ok(&json!({"op": op, "label": "l"}));
        assert_eq!((&told["messages"], &told["recipients"], &told["more"]), (&json!(0), &json!(0), &Value::Null), "{told}");
    }
    let told = shop.ok(&json!({"op": "pause", "label": "l"}));
    assert_eq!((&told["messages"], &told["recipients"]), (&json!(3), &json!(72)), "{told}");
    assert_eq!((&status(&mut shop, &single)["state"], &status(&mut shop, &list)["pending"]), (&json!("paused"), &json!(70)));
    let reply = news.ok(&send(&browsers[..1], json!({"payload": "news", "idempotency_key": "k", "topic": "t"})));
    assert!(reply.get("duplicate").is_none() && reply["message_id"] != sent, "{reply}");
    wait_ended(&mut news, &id_of(&reply));

    // The operator sees all; with several apps and one called default, that is the one meant.
    for id in [&single, &list, &stream, &sent, &id_of(&reply)] {
        status(&mut operator, id);
    }
    assert_eq!(operator.ok(&json!({"op": "vapid_public_key"}))["app"], "default");
    assert_eq!(operator.ok(&json!({"op": "stats", "by": "app"}))["stats"].as_array().unwrap().len(), 2);
    operator.ok(&json!({"op": "cancel", "label": "l"}));
    assert_eq!(wait_ended(&mut shop, &list)["cancelled"], 70);
    assert_eq!(wait_ended(&mut shop, &single)["cancelled"], 2);
    // Each was signed by its own app.
    let subjects: Vec<_> =
        mock.received().iter().map(|received| (received.text(), received.vapid.clone().map(|vapid| vapid.key.clone()))).collect();
    for (text, key) in subjects {
        let own = if text == "shop" { &keys[0] } else { &keys[1] };
        assert_eq!(key.map(Value::from).as_ref(), Some(&own["public_key"]), "{text}");
    }
}

#[test]
fn an_app_is_told_of_push_services_without_what_others_send_there() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (mock, daemon) = start(|config| with_two_apps(config, &directory));
    let mut operator = daemon.client();
    let [mut shop, mut news] = ["shop", "news"].map(|app| Client::connect(path(app)).unwrap());
    let browsers = mock.subscribe(0, 5);
    let origins = |client: &mut Client| client.ok(&json!({"op": "origins"}))["origins"].as_array().unwrap().clone();
    let id = id_of(&shop.ok(&send(&browsers, json!({}))));
    wait_ended(&mut shop, &id);
    assert_eq!(origins(&mut news), Vec::<Value>::new(), "it has sent nowhere");
    let id = id_of(&news.ok(&send(&browsers[..1], json!({}))));
    wait_ended(&mut news, &id);
    let (all, own) = (origins(&mut operator).remove(0), origins(&mut news).remove(0));
    for name in ["service", "origin", "state", "probe_at", "last_error", "last_error_at", "protocol"] {
        assert_eq!(own[name], all[name], "{name}");
    }
    assert!(own["token_expires"].is_string() && own["protocol"].is_string(), "{own}");
    for name in ["window", "in_flight", "waiting", "connections", "capacity", "resends", "timeouts"] {
        assert!(own[name].is_null() && all[name].is_u64(), "{name}: {own} {all}");
    }
    // A push service that takes nothing is known to all: what they send waits for it.
    mock.set_fault(Scope::Origin(0), Fault::status(503));
    let id = id_of(&shop.ok(&send(&browsers, json!({}))));
    wait_for("the origin to close", || Some(origins(&mut news).remove(0)).filter(|own| own["state"] != "open"));
    shop.ok(&json!({"op": "cancel", "message_id": id}));
}

/// What version 0.1 would have told: the commit that took a message, and its place in it.
fn commit_and_place(id: &Value) -> (u64, u64) {
    let ulid = ulid::Ulid::from_string(id.as_str().unwrap()).unwrap().0;
    ((ulid >> 24) as u64 & ((1 << 56) - 1), (ulid >> 8) as u64 & 0xffff)
}

#[test]
fn ids_and_cursors_of_one_app_do_not_tell_how_much_another_does() {
    let directory = tempfile::tempdir().unwrap();
    let (mock, daemon) = two_apps(&directory);
    let [mut shop, mut news] = ["shop", "news"].map(|app| Client::connect(directory.path().join(app)).unwrap());
    let browsers = mock.subscribe(0, 4);
    let paused = send(&browsers[..1], json!({"paused": true, "payload": "x"}));
    let (mut ids, mut cursors) = (Vec::new(), Vec::new());
    for n in 0..128 {
        ids.push(commit_and_place(&id_of(&news.ok(&paused))));
        for _ in 0..n % 4 {
            let id = id_of(&shop.ok(&paused));
            shop.ok(&json!({"op": "cancel", "message_id": id}));
        }
        let end = news.events(&json!({"op": "events", "after": "newest"})).unwrap().1;
        cursors.push(end["cursor"].as_str().unwrap().to_owned());
    }
    // A coin thrown 127 times gives fewer than 30 or more than 98 heads once in 10^9.
    let rising = ids.windows(2).filter(|pair| pair[0].0 < pair[1].0).count();
    assert!((30..98).contains(&rising), "{rising} of 127 came from a later commit than the one before");
    let near = ids.windows(2).filter(|pair| pair[0].0.abs_diff(pair[1].0) < 1 << 40).count();
    assert_eq!(near, 0, "commits next to each other look so");
    let places: std::collections::HashSet<u64> = ids.iter().map(|(_, place)| *place).collect();
    assert!(places.len() > 100, "each was alone in its commit, and its place is not told: {places:?}");

    // The log has grown by 192 events of the other app meanwhile; no cursor tells the number, and none is found by trying.
    let (store, number) = cursors.last().unwrap().split_once('-').unwrap();
    assert!(number.len() == 22 && !number.bytes().all(|byte| byte.is_ascii_digit()), "{number}");
    for guess in 0..400 {
        let error = news.error(&json!({"op": "events", "after": format!("{store}-{guess}")}));
        assert_eq!(error["code"], "cursor_expired", "{guess}");
    }
    // Each goes on from where it was all the same, also on the operator's socket.
    let id = id_of(&news.ok(&paused));
    news.ok(&json!({"op": "cancel", "message_id": id}));
    wait_events(&mut news, &id, 1);
    for cursor in &cursors {
        let (events, _) = news.events(&json!({"op": "events", "after": cursor})).unwrap();
        assert_eq!(events.iter().map(id_of).collect::<Vec<_>>(), std::slice::from_ref(&id));
    }
    for cursor in &cursors {
        assert_eq!(shop.error(&json!({"op": "events", "after": cursor}))["code"], "cursor_expired", "it is the other app's");
    }
    let (events, _) = daemon.client().events(&json!({"op": "events", "after": cursors[0], "limit": 100_000})).unwrap();
    assert_eq!(events.len(), 193, "those of the other app, and the one of this");
}

#[test]
fn cursors_of_lists_tell_no_number_and_are_good_where_they_were_given_only() {
    let directory = tempfile::tempdir().unwrap();
    let (mock, daemon) = two_apps(&directory);
    let [mut shop, mut news] = ["shop", "news"].map(|app| Client::connect(directory.path().join(app)).unwrap());
    let browsers = mock.subscribe(0, 3);
    // As long as a name may be: the cursor holds it.
    let long = |n: usize| format!("{n}{}", "a".repeat(127));
    for client in [&mut shop, &mut news] {
        for (n, browser) in browsers.iter().enumerate() {
            client.ok(&json!({"op": "subscribe", "subscription": browser.json()}));
            client.ok(&json!({"op": "account", "account": long(n), "enabled": false}));
            client.ok(&json!({"op": "send", "to": {"stream": true}, "payload": "x"}));
        }
    }
    for (op, rows) in [("list_subscriptions", "subscriptions"), ("disabled_accounts", "accounts"), ("list_messages", "messages")]
    {
        let (mut seen, mut after, mut first) = (Vec::new(), Value::Null, String::new());
        loop {
            let page = news.ok(&json!({"op": op, "limit": 1, "after": after}));
            seen.extend(page[rows].as_array().unwrap().clone());
            after = page["after"].clone();
            let Some(text) = after.as_str() else { break };
            assert!(text.len() >= 22 && !text[..22].contains('.'), "{text}");
            if first.is_empty() {
                first = text.to_owned();
            }
            assert!(seen.len() < 4, "{op} ends");
        }
        assert_eq!(seen.len(), 3, "{op}");
        let mut refused = vec!["?".to_owned(), "A".repeat(22), format!("{}.x", "A".repeat(22)), cursor_of_another(&mut news, op)];
        // As version 0.1 wrote them: app, service and serial, or app and account, or the message.
        refused.extend((0..4).flat_map(|app| (0..20).map(move |service| format!("{app}.{service}.1"))));
        refused.extend((0..4).map(|app| format!("{app}.{}", long(0))));
        refused.push("01ARZ3NDEKTSV4RRFFQ69G5FAV".to_owned());
        for wrong in refused {
            let error = news.error(&json!({"op": op, "limit": 1, "after": wrong}));
            assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("after")), "{op} {wrong}");
        }
        let error = shop.error(&json!({"op": op, "limit": 1, "after": first}));
        assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("after")), "{op}: it is the other app's");
        assert_eq!(daemon.client().ok(&json!({"op": op, "limit": 1, "after": first}))[rows].as_array().unwrap().len(), 1, "{op}");
    }
}

/// A good cursor, but of another operation.
fn cursor_of_another(client: &mut Client, op: &str) -> String {
    match op {
        "list_messages" => client.ok(&json!({"op": "list_subscriptions", "limit": 1}))["after"].as_str().unwrap().to_owned(),
        _ => client.ok(&json!({"op": "list_messages", "limit": 1}))["after"].as_str().unwrap().to_owned(),
    }
}

#[test]
fn an_app_sees_the_push_services_that_it_sends_to_and_not_how_much_all_send() {
    let directory = tempfile::tempdir().unwrap();
    let (mock, daemon) = two_apps(&directory);
    let [mut shop, mut news] = ["shop", "news"].map(|app| Client::connect(directory.path().join(app)).unwrap());
    let id = id_of(&shop.ok(&send(&mock.subscribe(0, 1), json!({"payload": "x"}))));
    wait_ended(&mut shop, &id);
    assert_eq!(news.ok(&json!({"op": "origins"}))["origins"], json!([]), "it has sent nothing");
    let [own, all] = [&mut shop, &mut daemon.client()].map(|client| client.ok(&json!({"op": "origins"}))["origins"].clone());
    assert_eq!((own.as_array().unwrap().len(), &own[0]["state"]), (1, &json!("open")));
    for name in ["window", "in_flight", "waiting", "connections", "capacity", "resends", "timeouts"] {
        assert_eq!(own[0][name], Value::Null, "{name}");
        assert!(all[0][name].is_number(), "{name}: {all}");
    }
    for name in ["service", "origin", "state", "probe_at", "last_error", "last_error_at", "protocol", "token_expires"] {
        assert_eq!(own[0][name], all[0][name], "{name}");
    }
}
