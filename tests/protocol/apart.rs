//! What belongs to one app does not exist on the socket of another (promise 8).

use super::*;
use fanfare_loadtest::daemon::write_vapid_key;
use std::os::unix::fs::PermissionsExt;

#[test]
fn two_apps_sockets_see_nothing_of_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (mock, daemon) = start(|mut config| {
        for app in ["shop", "news"] {
            write_vapid_key(path(&format!("{app}.pem")).as_ref()).unwrap();
            config = config
                .set(&format!("apps.{app}.vapid_keys"), json!([path(&format!("{app}.pem"))]))
                .set(&format!("apps.{app}.subject"), "mailto:ops@example.com")
                .set(&format!("sockets.{app}.path"), path(app))
                .set(&format!("sockets.{app}.mode"), 0o600)
                .set(&format!("sockets.{app}.apps"), json!([app]));
        }
        config.set("events.log", json!(["accepted", "cancelled", "gone"]))
    });
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
    assert_eq!(news.error(&json!({"op": "drain"}))["code"], "not_allowed");
    // A label, an idempotency key, a topic is each app's own.
    for op in ["pause", "resume", "cancel"] {
        news.ok(&json!({"op": op, "label": "l"}));
    }
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
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (mock, daemon) = start(|mut config| {
        for app in ["shop", "news"] {
            write_vapid_key(path(&format!("{app}.pem")).as_ref()).unwrap();
            config = config
                .set(&format!("apps.{app}.vapid_keys"), json!([path(&format!("{app}.pem"))]))
                .set(&format!("apps.{app}.subject"), "mailto:ops@example.com")
                .set(&format!("sockets.{app}.path"), path(app))
                .set(&format!("sockets.{app}.apps"), json!([app]));
        }
        config
    });
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
