//! `events`: order, cursors, limits, filters, following, trimming.

use super::*;
use std::path::PathBuf;

use fanfare_loadtest::machine::status_bytes;

/// A daemon with a socket for each of two apps.
fn start_two(config: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> (tempfile::TempDir, Mock, Daemon, [PathBuf; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let (mock, daemon) = start(|builder| config(with_two_apps(builder, &directory)));
    let sockets = ["shop", "news"].map(|app| directory.path().join(app));
    (directory, mock, daemon, sockets)
}

/// Has so many events told, 64 a message, by messages that are cancelled before they go out.
fn cancel_many(mock: &Mock, client: &mut Client, count: usize) {
    let browsers = mock.subscribe(0, 64);
    let line = serde_json::to_vec(&send(&browsers, json!({"paused": true, "label": "flood", "payload": "p"}))).unwrap();
    let mut last = Value::Null;
    for left in (0..count.div_ceil(64)).rev() {
        client.send_raw(&[&line[..], b"\n"].concat()).unwrap();
        if left % 50 == 0 {
            client.send(&json!({"op": "ping"})).unwrap();
            last = std::iter::from_fn(|| client.recv().ok()).take_while(|line| line["message_id"].is_string()).last().unwrap();
        }
    }
    client.ok(&json!({"op": "cancel", "label": "flood"}));
    // They are gone through in the order in which they came.
    wait_ended(client, &id_of(&last));
}

fn ask(client: &mut Client, more: Value) -> (Vec<Value>, Value) {
    let mut request = json!({"op": "events"});
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    client.events(&request).expect("events")
}

/// Sends one message to each, all of which end as `gone`.
fn bury(mock: &Mock, client: &mut Client, browsers: &[Subscription], more: Value) -> Vec<Value> {
    for browser in browsers {
        mock.set_fault(Scope::Subscription(browser.token.clone()), Fault::status(410));
    }
    let mut ids = Vec::new();
    for browser in browsers {
        let id = id_of(&client.ok(&send(std::slice::from_ref(browser), more.clone())));
        wait_ended(client, &id);
        ids.push(id);
    }
    ids
}

#[test]
fn a_reader_may_begin_so_many_events_before_the_end() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 6);
    let mut ids = bury(&mock, &mut client, &browsers[..4], json!({"label": "a"}));
    ids.extend(bury(&mock, &mut client, &browsers[4..], json!({"label": "b"})));
    for restart in [false, true] {
        if restart {
            daemon.kill9();
            daemon.restart().unwrap();
            client = daemon.client();
        }
        for (more, expected) in [
            (json!({"last": 3}), &ids[3..]),
            (json!({"last": 1000}), &ids[..]),
            (json!({"last": 3, "label": "a"}), &ids[1..4]),
            (json!({"last": 3, "limit": 2}), &ids[3..5]),
            (json!({"last": 3, "label": "nobody"}), &[]),
        ] {
            let (events, end) = ask(&mut client, more.clone());
            let named: Vec<Value> = events.iter().map(id_of).collect();
            assert_eq!(named, expected, "{more}");
            assert_eq!(end["more"], json!(more["limit"] == 2), "{more}");
        }
    }
    let mut follower = daemon.client();
    follower.send(&json!({"op": "events", "follow": true, "last": 2})).unwrap();
    for id in &ids[4..] {
        assert_eq!(id_of(&follower.recv().unwrap()), *id);
    }
    let more = mock.subscribe(0, 1);
    let later = bury(&mock, &mut client, &more, json!({}));
    assert_eq!(id_of(&follower.recv().unwrap()), later[0]);
}

#[test]
fn events_are_in_order_and_paged_by_cursors() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let (none, end) = ask(&mut client, json!({}));
    assert_eq!((none.len(), &end["more"]), (0, &json!(false)));
    let at_first = end["cursor"].clone();
    let browsers = mock.subscribe(0, 7);
    let ids = bury(&mock, &mut client, &browsers, json!({"label": "l", "ref": "m"}));
    for restart in [false, true] {
        if restart {
            daemon.kill9();
            daemon.restart().unwrap();
            client = daemon.client();
        }
        for after in [json!(null), json!("oldest"), at_first.clone()] {
            let (events, end) = ask(&mut client, json!({"after": after}));
            let named: Vec<Value> = events.iter().map(id_of).collect();
            assert_eq!(named, ids);
            assert_eq!((&end["more"], &end["cursor"]), (&json!(false), &events[6]["cursor"]));
            for (event, browser) in events.iter().zip(&browsers) {
                assert_eq!((&event["type"], &event["status"], &event["app"]), (&json!("gone"), &json!(410), &json!("default")));
                assert_eq!(
                    (&event["label"], &event["message_ref"], &event["service"]),
                    (&json!("l"), &json!("m"), &json!(mock.host(0)))
                );
                assert!(event["reason"].is_string());
                millis(&event["time"]);
                // An application can compute the id (docs/design.md 3.1).
                use base64::Engine;
                use sha2::Digest;
                let hash = sha2::Sha256::digest(browser.endpoint.as_bytes());
                let id = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&hash[..12]);
                assert_eq!(event["subscription_id"], id);
            }
        }
        // Page by page.
        let (mut seen, mut after, mut pages) = (Vec::new(), json!("oldest"), 0);
        loop {
            let (events, end) = ask(&mut client, json!({"after": after, "limit": 3}));
            assert!(events.len() <= 3);
            seen.extend(events.iter().map(id_of));
            after = end["cursor"].clone();
            pages += 1;
            if end["more"] == false {
                break;
            }
            assert_eq!(events.len(), 3);
        }
        assert_eq!((seen, pages), (ids.clone(), 3));
        let (events, end) = ask(&mut client, json!({"after": "newest"}));
        assert_eq!((events.len(), &end["cursor"]), (0, &after));
    }
    // Of another store, beyond the end, no cursor at all.
    let newest = ask(&mut client, json!({"after": "newest"})).1["cursor"].as_str().unwrap().to_owned();
    let (store, number) = newest.split_once('-').unwrap();
    // A cursor tells no number, and none can be made of one: this is the seventh event.
    assert_eq!(number.len(), 22);
    for wrong in [
        format!("{store}-7"),
        format!("{store}-0"),
        format!("{store}-{}", "A".repeat(22)),
        format!("0000000000000000-{number}"),
        "nonsense".into(),
        format!("{store}-"),
        format!("{store}-+1"),
    ] {
        let error = client.error(&json!({"op": "events", "after": wrong}));
        assert_eq!(
            (&error["code"], &error["field"], &error["newest"]),
            (&json!("cursor_expired"), &json!("after"), &json!(newest)),
            "{wrong}"
        );
        assert_eq!(ask(&mut client, json!({"after": error["oldest"]})).0.len(), 7);
    }
    assert_eq!(client.error(&json!({"op": "events", "limit": 0}))["field"], "limit");
}

#[test]
fn every_filter_filters() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 3);
    let gone = bury(&mock, &mut client, &browsers[..2], json!({"label": "a"}));
    let cancelled = id_of(&client.ok(&send(&browsers[2..], json!({"label": "b", "paused": true}))));
    client.ok(&json!({"op": "cancel", "message_id": cancelled}));
    let (events, _) = ask(&mut client, json!({}));
    assert_eq!(events.len(), 3);
    for (filter, wanted) in [
        (json!({"types": ["gone"]}), vec![&gone[0], &gone[1]]),
        (json!({"types": ["cancelled", "expired"]}), vec![&cancelled]),
        (json!({"types": ["accepted"]}), vec![]),
        (json!({"label": "a"}), vec![&gone[0], &gone[1]]),
        (json!({"label": "c"}), vec![]),
        (json!({"app": "default"}), vec![&gone[0], &gone[1], &cancelled]),
        (json!({"message_id": gone[1]}), vec![&gone[1]]),
        (json!({"subscription_id": events[2]["subscription_id"]}), vec![&cancelled]),
        (json!({"account": "nobody"}), vec![]),
        (json!({"label": "a", "subscription_id": events[2]["subscription_id"]}), vec![]),
        (json!({"label": "a", "limit": 1}), vec![&gone[0]]),
        (json!({"types": ["cancelled"], "limit": 1}), vec![&cancelled]),
    ] {
        let (events, end) = ask(&mut client, filter.clone());
        assert_eq!(events.iter().map(|event| &event["message_id"]).collect::<Vec<_>>(), wanted, "{filter}");
        assert!(end["cursor"].is_string() && end["more"].is_boolean());
    }
}

#[test]
fn following_tells_events_as_they_come_and_is_the_last_request() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 5);
    let before = bury(&mock, &mut client, &browsers[..1], json!({"label": "a"}));
    let mut follower = daemon.client();
    let mut filtered = daemon.client();
    let mut limited = daemon.client();
    let mut half = daemon.client();
    follower
        .send_raw(b"{\"op\":\"ping\",\"id\":1}\n{\"op\":\"events\",\"follow\":true,\"id\":2}\n{\"op\":\"ping\",\"id\":3}\n")
        .unwrap();
    filtered.send(&json!({"op": "events", "follow": true, "after": "newest", "label": "b"})).unwrap();
    limited.send(&json!({"op": "events", "follow": true, "limit": 2, "id": "l"})).unwrap();
    // It sends nothing more, but it reads.
    half.send(&json!({"op": "events", "follow": true})).unwrap();
    half.finish().unwrap();
    assert_eq!(follower.recv().unwrap()["id"], 1);
    assert_eq!(id_of(&follower.recv().unwrap()), before[0]);
    std::thread::sleep(Duration::from_millis(300));
    let later = bury(&mock, &mut client, &browsers[1..3], json!({"label": "a"}));
    let other = bury(&mock, &mut client, &browsers[3..], json!({"label": "b"}));
    for id in later.iter().chain(&other) {
        assert_eq!(id_of(&follower.recv().unwrap()), *id);
    }
    for id in &other {
        assert_eq!(id_of(&filtered.recv().unwrap()), *id);
    }
    for id in [&before[0], &later[0]] {
        assert_eq!(id_of(&limited.recv().unwrap()), *id);
    }
    let end = limited.recv().unwrap();
    assert_eq!((&end["id"], &end["ok"]), (&json!("l"), &json!(true)));
    assert!(limited.at_end().unwrap(), "it was the last request");
    for id in before.iter().chain(&later).chain(&other) {
        assert_eq!(id_of(&half.recv().unwrap()), *id);
    }
    follower.set_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(follower.recv().is_err(), "what came behind it is not answered");
}

#[test]
fn only_the_types_that_are_logged_are_kept() {
    let (mock, daemon) = start(|config| config.set("events.log", json!(["accepted", "cancelled"])));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 80);
    bury(&mock, &mut client, &browsers[..1], json!({}));
    let id = id_of(&client.ok(&json!({"op": "send", "to": {"subscriptions": [{"endpoint": browsers[1].endpoint, "keys": browsers[1].json()["keys"], "ref": "r1"}]}})));
    wait_ended(&mut client, &id);
    let (events, _) = ask(&mut client, json!({}));
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((&events[0]["type"], &events[0]["ref"], &events[0]["status"]), (&json!("accepted"), &json!("r1"), &json!(201)));
    // A list ends by one event that counts.
    let list = id_of(&client.ok(&send(&browsers[1..], json!({"paused": true, "ref": "whole"}))));
    client.ok(&json!({"op": "cancel", "message_id": list}));
    let events = wait_events(&mut client, &list, 1);
    assert_eq!(
        (&events[0]["count"], &events[0]["message_ref"], events[0].get("subscription_id")),
        (&json!(79), &json!("whole"), None)
    );
}

#[test]
fn a_list_out_of_time_is_told_in_one_event() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 70);
    let list = id_of(&client.ok(&send(&browsers, json!({"paused": true, "ttl": 1}))));
    let told = wait_ended(&mut client, &list);
    assert_eq!((&told["state"], &told["expired"]), (&json!("done"), &json!(70)));
    let events = wait_events(&mut client, &list, 1);
    assert_eq!((events.len(), &events[0]["count"], &events[0]["type"]), (1, &json!(70), &json!("expired")));
}

#[test]
fn old_events_are_trimmed_and_their_cursors_expire() {
    let (mock, daemon) = start(|config| config.set("events.retention", 2).set("messages.retention", 2));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 6);
    bury(&mock, &mut client, &browsers[..3], json!({}));
    let (events, _) = ask(&mut client, json!({"limit": 1}));
    let cursor = events[0]["cursor"].clone();
    std::thread::sleep(Duration::from_millis(2_500));
    let kept = bury(&mock, &mut client, &browsers[3..], json!({}));
    let error = wait_for("the trimming", || {
        client.send(&json!({"op": "events", "after": cursor})).unwrap();
        let line = wait_for("a reply", || Some(client.recv().unwrap()).filter(|line| line.get("ok").is_some()));
        (line["ok"] == false).then(|| line["error"].clone())
    });
    assert_eq!((&error["code"], &error["field"]), (&json!("cursor_expired"), &json!("after")));
    let (events, end) = ask(&mut client, json!({"after": error["oldest"]}));
    assert!(events.len() <= 3 && events.iter().all(|event| kept.contains(&event["message_id"])), "{events:?}");
    assert_eq!(end["cursor"], error["newest"]);
}

#[test]
fn who_floods_the_log_loses_its_own_oldest_events_and_no_other_app_does() {
    let (_directory, mock, mut daemon, sockets) = start_two(|config| config.set("events.max_mb", 1));
    let [mut shop, mut news] = [0, 1].map(|app: usize| Client::connect(&sockets[app]).unwrap());
    let [at_first, of_news] = [&mut shop, &mut news].map(|client| ask(client, json!({})).1["cursor"].clone());
    let browsers = mock.subscribe(0, 3);
    let mut unread = Vec::new();
    for browser in &browsers {
        let id = id_of(&news.ok(&send(std::slice::from_ref(browser), json!({"paused": true}))));
        news.ok(&json!({"op": "cancel", "message_id": id}));
        unread.push(id);
    }
    wait_for("the events", || (ask(&mut news, json!({})).0.len() == 3).then_some(()));
    cancel_many(&mock, &mut shop, 12_800);
    let expired = |client: &mut Client, cursor: &Value| {
        client.send(&json!({"op": "events", "after": cursor, "limit": 1})).unwrap();
        let line = wait_for("a reply", || Some(client.recv().unwrap()).filter(|line| line.get("ok").is_some()));
        (line["ok"] == false).then(|| line["error"].clone())
    };
    let error = wait_for("the trimming", || expired(&mut shop, &at_first));
    assert_eq!(error["code"], "cursor_expired");
    assert!(error["message"].as_str().unwrap().contains("events of shop behind this cursor"), "{error}");
    let bytes = wait_for("the bound", || {
        let metrics = daemon.metrics().unwrap();
        let of = |app: &str| {
            let name = format!("fanfare_event_log_bytes{{app=\"{app}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok())
        };
        let (shop, news) = (of("shop")?, of("news")?);
        (shop > 0.0 && shop + news <= f64::from(1 << 20)).then_some(shop)
    });
    assert!(bytes > f64::from(1 << 19), "no more goes than must: {bytes}");
    for restarted in [false, true] {
        if restarted {
            daemon.kill9();
            daemon.restart().unwrap();
            [shop, news] = [0, 1].map(|app: usize| Client::connect(&sockets[app]).unwrap());
        }
        for after in [json!("oldest"), of_news.clone()] {
            let (events, end) = ask(&mut news, json!({"after": after}));
            assert_eq!(events.iter().map(id_of).collect::<Vec<_>>(), unread, "the other has lost none");
            assert_eq!(end["more"], false);
        }
        let error = expired(&mut shop, &at_first).expect("it has lost some");
        let (left, end) = ask(&mut shop, json!({"after": error["oldest"], "limit": 100_000}));
        assert!((1_000..12_800).contains(&left.len()), "{}", left.len());
        assert_eq!((&end["cursor"], &end["more"]), (&error["newest"], &json!(false)));
        assert_eq!(ask(&mut shop, json!({"limit": 100_000})).0.len(), left.len(), "oldest is all that there is");
    }
}

#[test]
fn clients_that_ask_for_much_and_leave_delay_nobody() {
    let (_directory, mock, daemon, sockets) = start_two(|config| config);
    let [mut shop, mut news] = [0, 1].map(|app: usize| Client::connect(&sockets[app]).unwrap());
    cancel_many(&mock, &mut shop, 100_000);
    let browsers = mock.subscribe(0, 1);
    let gone = bury(&mock, &mut news, &browsers, json!({}));
    let before = status_bytes(daemon.pid(), "VmRSS").unwrap();
    let line = b"{\"op\":\"events\",\"label\":\"that nobody has ever sent\"}\n";
    let lines = line.repeat(248_000 / line.len());
    for round in 0..2 {
        let clients: Vec<Client> = (0..16)
            .map(|_| {
                let mut client = Client::connect(&sockets[0]).unwrap();
                client.send_raw(&lines).unwrap();
                client
            })
            .collect();
        if round == 0 {
            // They have begun.
            std::thread::sleep(Duration::from_millis(300));
        }
        let mut worst = Duration::ZERO;
        let mut try_both = |news: &mut Client| {
            for _ in 0..5 {
                let began = Instant::now();
                news.ok(&send(&browsers, json!({"paused": true, "urgency": "high"})));
                let (events, _) = ask(news, json!({"types": ["gone"]}));
                assert_eq!(events.iter().map(id_of).collect::<Vec<_>>(), gone);
                news.ok(&json!({"op": "status", "message_id": gone[0]}));
                worst = worst.max(began.elapsed());
            }
        };
        if round == 0 {
            try_both(&mut news);
        }
        drop(clients);
        try_both(&mut news);
        // 100 ms and then some: this is built to be built fast, and other tests run beside it.
        assert!(worst < Duration::from_millis(500), "{worst:?}");
    }
    // What they had asked for is not read any more.
    let cpu = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
        fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
    };
    std::thread::sleep(Duration::from_millis(500));
    let began = cpu();
    std::thread::sleep(Duration::from_secs(1));
    assert!(cpu() - began < 50, "hundredths of a second of work for nobody: {}", cpu() - began);
    let grown = status_bytes(daemon.pid(), "VmRSS").unwrap().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown}");
}
