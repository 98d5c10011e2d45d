//! Campaigns reach whom their segment names, at the time and pace they were told, and can be held, let go and ended.

use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::mock::{Fault, Mock, Scope, Subscription};
use serde_json::{Value, json};

use crate::support::{
    count, events, in_seconds, now, number, reached, seconds_of, send, start, status, subscribe, subscribe_all, texts, wait,
    wait_ended, wait_status,
};

fn all() -> Value {
    json!({"segment": {"all": true}})
}

/// So many browsers at the first push service, without fields.
fn readers(client: &mut Client, mock: &Mock, count: usize) -> Vec<Subscription> {
    let browsers = mock.subscribe(0, count);
    subscribe_all(client, &browsers, |_| json!({}));
    browsers
}

/// When each request came, in seconds since 1970, in order.
fn times(mock: &Mock) -> Vec<f64> {
    mock.received().iter().map(|received| received.time as f64 / 1e6).collect()
}

#[test]
fn a_pause_holds_and_a_resume_goes_on() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = readers(&mut client, &mock, 1_500);
    let id = send(&mut client, all(), json!({"rate": 500}));
    assert!(mock.wait_received(100, Duration::from_secs(30)));
    client.ok(&json!({"op": "pause", "message_id": id}));
    // What was in flight is let finish.
    std::thread::sleep(Duration::from_millis(500));
    let held = mock.counters().requests;
    assert!(held < 1_400, "{held} had gone out");
    let paused = status(&mut client, &id);
    assert_eq!((&paused["state"], &paused["open"]), (&json!("paused"), &json!(true)), "{paused}");
    // In thousandths: with every digit of a fraction one would know its denominator, which is what all apps have.
    let walked = paused["walked"].as_f64().expect("a campaign walks");
    assert!(walked > 0.0 && walked < 1.0 && (walked * 1_000.0 - (walked * 1_000.0).round()).abs() < 1e-9, "{paused}");
    client.ok(&json!({"op": "pause", "message_id": id}));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(mock.counters().requests, held, "it is paused");
    client.ok(&json!({"op": "resume", "message_id": id, "rate": 5_000}));
    let ended = wait_ended(&mut client, &id);
    assert_eq!((number(&ended, "accepted"), &ended["state"]), (1_500, &json!("done")), "{ended}");
    assert_eq!(reached(&mock, &browsers).len(), 1_500);
}

#[test]
fn what_a_cancel_leaves_is_counted_and_told_at_once() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = readers(&mut client, &mock, 3_000);
    let id = send(&mut client, all(), json!({"rate": 300, "label": "cancelled"}));
    assert!(mock.wait_received(100, Duration::from_secs(30)));
    client.ok(&json!({"op": "cancel", "message_id": id}));
    client.ok(&json!({"op": "cancel", "message_id": id}));
    let ended = wait_ended(&mut client, &id);
    assert_eq!(ended["state"], "cancelled", "{ended}");
    let (accepted, cancelled) = (number(&ended, "accepted"), number(&ended, "cancelled"));
    assert_eq!((number(&ended, "recipients"), accepted + cancelled), (3_000, 3_000), "{ended}");
    assert!(accepted >= 100 && cancelled >= 1_000, "{ended}");
    let told = |client: &mut Client| -> Vec<u64> {
        let events = events(client, json!({"types": ["cancelled"], "message_id": id}));
        events.iter().map(|event| event["count"].as_u64().unwrap_or(1)).collect()
    };
    assert!(wait(Duration::from_secs(5), || told(&mut client).iter().sum::<u64>() == cancelled), "{:?}", told(&mut client));
    assert!(told(&mut client).iter().any(|count| *count >= 1_000), "the rest is one event: {:?}", told(&mut client));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(reached(&mock, &browsers).len() as u64, accepted, "nothing is sent after a cancel");
}

#[test]
fn what_is_out_of_time_is_counted_as_expired() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = readers(&mut client, &mock, 3_000);
    let began = now();
    let id = send(&mut client, all(), json!({"rate": 200, "ttl": 3}));
    // Expiry is told within a minute.
    let ended = wait_ended(&mut client, &id);
    assert_eq!(number(&ended, "accepted") + number(&ended, "expired"), 3_000, "{ended}");
    assert!(number(&ended, "expired") > 1_000, "{ended}");
    assert_eq!(reached(&mock, &browsers).len() as u64, number(&ended, "accepted"));
    assert!(times(&mock).iter().all(|time| *time < began + 3.5), "nothing is sent after its time");
    let told: u64 = events(&mut client, json!({"types": ["expired"], "message_id": id}))
        .iter()
        .map(|event| event["count"].as_u64().unwrap_or(1))
        .sum();
    assert_eq!(told, number(&ended, "expired"));
}

#[test]
fn a_rate_is_kept_and_can_be_changed() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    readers(&mut client, &mock, 1_200);
    let id = send(&mut client, all(), json!({"rate": 200}));
    assert!(mock.wait_received(800, Duration::from_secs(30)));
    let times = times(&mock);
    let seconds = times[799] - times[0];
    assert!((3.0..8.0).contains(&seconds), "800 at 200 a second took {seconds:.1} s");
    // In no second more than the rate, but for a moment's worth.
    for (place, time) in times.iter().enumerate() {
        let within = times[place..].iter().take_while(|later| **later < time + 1.0).count();
        assert!(within <= 280, "{within} within a second");
    }
    assert_eq!(status(&mut client, &id)["rate"].as_f64(), Some(200.0));
    let begin = Instant::now();
    client.ok(&json!({"op": "resume", "message_id": id, "rate": 4_000}));
    wait_ended(&mut client, &id);
    assert!(begin.elapsed() < Duration::from_secs(2), "the rest took {:?}", begin.elapsed());
}

#[test]
fn a_spread_is_even() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    readers(&mut client, &mock, 800);
    let id = send(&mut client, all(), json!({"spread": 5, "ttl": 3_600}));
    let ended = wait_ended(&mut client, &id);
    assert_eq!(number(&ended, "accepted"), 800);
    let times = times(&mock);
    let (whole, half) = (times[799] - times[0], times[399] - times[0]);
    assert!((3.5..7.0).contains(&whole), "800 spread over 5 s took {whole:.1} s");
    assert!((0.3..0.7).contains(&(half / whole)), "half took {half:.1} s of {whole:.1} s");
}

#[test]
fn a_scope_reaches_those_who_accept_it() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 5);
    let scopes = [Value::Null, json!([]), json!(["news"]), json!(["sport"]), json!(["sport", "news"])];
    subscribe_all(&mut client, &browsers, |number| json!({"scopes": scopes[number]}));
    let id = send(&mut client, all(), json!({"scope": "news"}));
    wait_ended(&mut client, &id);
    assert_eq!(reached(&mock, &browsers), [0, 2, 4]);
    assert_eq!(count(&mut client, json!({"scope": "news"})), 3);
    assert_eq!(count(&mut client, json!({"scope": "weather"})), 1);
    // A message without scope goes to every browser.
    let id = send(&mut client, all(), json!({"payload": "to all"}));
    wait_ended(&mut client, &id);
    assert!(browsers.iter().all(|browser| texts(&mock, browser).last().is_some_and(|text| text == "to all")));
    // A scope of a message to named browsers counts as well.
    let id = send(
        &mut client,
        json!({"subscription_ids": browsers.iter().map(crate::support::id_of).collect::<Vec<_>>()}),
        json!({"scope": "sport", "payload": "goal"}),
    );
    let ended = wait_ended(&mut client, &id);
    assert_eq!(number(&ended, "accepted"), 3, "{ended}");
    assert_eq!(texts(&mock, &browsers[2]), ["news", "to all"]);
}

#[test]
fn an_apps_own_scopes_are_the_valid_ones() {
    let (mock, daemon) = start(|config| config.set("apps.default.scopes", json!(["news", "sport"])));
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    let error = client.error(&json!({"op": "subscribe", "subscription": browser.json(), "scopes": ["news", "weather"]}));
    assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("scopes[1]")), "{error}");
    subscribe(&mut client, &browser, json!({"scopes": ["news"]}));
    let error = client.error(&json!({"op": "send", "to": all(), "payload": "x", "scope": "weather"}));
    assert_eq!((&error["code"], &error["field"]), (&json!("invalid_field"), &json!("scope")), "{error}");
}

#[test]
fn tags_and_attributes_name_whom() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers: Vec<Subscription> = (0..8).map(|number| mock.subscribe(number % 2, 1).remove(0)).collect();
    // Bit 0: a, bit 1: b, bit 2: c. The last four read Polish; all but the first have a plan.
    subscribe_all(&mut client, &browsers, |number| {
        let tags: Vec<&str> =
            ["a", "b", "c"].into_iter().enumerate().filter(|(bit, _)| number >> bit & 1 == 1).map(|(_, tag)| tag).collect();
        json!({"tags": tags, "attributes": {"lang": if number >= 4 { "pl" } else { "en" }, "plan": number > 0, "level": number}})
    });
    for (segment, wanted) in [
        (json!({"all": true}), vec![0, 1, 2, 3, 4, 5, 6, 7]),
        (json!({"tags": {"any": ["a"]}}), vec![1, 3, 5, 7]),
        (json!({"tags": {"any": ["a", "b"]}}), vec![1, 2, 3, 5, 6, 7]),
        (json!({"tags": {"all": ["a", "b"]}}), vec![3, 7]),
        (json!({"tags": {"none": ["a"]}}), vec![0, 2, 4, 6]),
        (json!({"tags": {"any": ["a", "b"], "none": ["c"]}}), vec![1, 2, 3]),
        (json!({"tags": {"any": ["a", "b"], "all": ["c"], "none": ["b"]}}), vec![5]),
        (json!({"tags": {"any": ["nobody"]}}), vec![]),
        (json!({"tags": {"any": ["nobody", "c"]}}), vec![4, 5, 6, 7]),
        (json!({"attributes": {"lang": "pl"}}), vec![4, 5, 6, 7]),
        (json!({"attributes": {"lang": "pl", "level": 6}}), vec![6]),
        (json!({"attributes": {"plan": false}}), vec![0]),
        (json!({"attributes": {"plan": "false"}}), vec![]),
        (json!({"tags": {"any": ["a"]}, "attributes": {"lang": "en"}}), vec![1, 3]),
    ] {
        let before = mock.counters().accepted;
        let text = segment.to_string();
        let id = send(&mut client, json!({"segment": segment}), json!({"payload": text}));
        let ended = wait_ended(&mut client, &id);
        let got: Vec<usize> =
            (0..8).filter(|number| texts(&mock, &browsers[*number]).iter().filter(|had| **had == text).count() == 1).collect();
        assert_eq!(got, wanted, "{text}");
        assert_eq!(mock.counters().accepted - before, wanted.len() as u64, "{text}");
        assert_eq!(
            (number(&ended, "recipients"), number(&ended, "accepted")),
            (wanted.len() as u64, wanted.len() as u64),
            "{ended}"
        );
        assert_eq!(count(&mut client, json!({"segment": segment})), wanted.len() as u64, "{text}");
    }
}

#[test]
fn a_paused_start_waits_to_be_resumed() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = readers(&mut client, &mock, 50);
    let id = send(&mut client, all(), json!({"paused": true}));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!((mock.counters().requests, &status(&mut client, &id)["state"]), (0, &json!("paused")));
    client.ok(&json!({"op": "resume", "message_id": id}));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 50);
    assert_eq!(reached(&mock, &browsers).len(), 50);
}

#[test]
fn at_is_not_before() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    readers(&mut client, &mock, 50);
    let at = in_seconds(2.5);
    let id = send(&mut client, all(), json!({"at": at}));
    assert_eq!(status(&mut client, &id)["state"], "scheduled");
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 50);
    let first = times(&mock)[0];
    assert!(
        (0.0..3.0).contains(&(first - seconds_of(&json!(at)))),
        "the first came {:.2} s late",
        first - seconds_of(&json!(at))
    );
}

#[test]
fn who_subscribes_after_its_start_is_not_reached() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = readers(&mut client, &mock, 600);
    let id = send(&mut client, all(), json!({"rate": 200}));
    assert!(mock.wait_received(20, Duration::from_secs(30)));
    let later: Vec<Subscription> = (0..2).flat_map(|origin| mock.subscribe(origin, 50)).collect();
    subscribe_all(&mut client, &later, |_| json!({}));
    let ended = wait_ended(&mut client, &id);
    assert_eq!((number(&ended, "recipients"), number(&ended, "accepted")), (600, 600), "{ended}");
    assert_eq!(reached(&mock, &browsers).len(), 600);
    assert_eq!(reached(&mock, &later), Vec::<usize>::new());
    assert_eq!(count(&mut client, json!({})), 700);
}

#[test]
fn its_progress_is_told() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    readers(&mut client, &mock, 1_200);
    let id = send(&mut client, all(), json!({"rate": 300, "label": "progress", "ref": "issue 7"}));
    let mut walked = Vec::new();
    let mut etas = Vec::new();
    loop {
        let status = status(&mut client, &id);
        walked.push(status["walked"].as_f64().unwrap_or_else(|| panic!("walked in {status}")));
        if status["pending"] == 0 && status["open"] == false {
            assert_eq!(
                (&status["label"], &status["ref"], &status["state"]),
                (&json!("progress"), &json!("issue 7"), &json!("done"))
            );
            break;
        }
        if status["eta"].is_string() {
            etas.push((now(), seconds_of(&status["eta"])));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let ended = now();
    assert!(walked.is_sorted() && walked.last() == Some(&1.0), "{walked:?}");
    assert!(walked.iter().any(|walked| (0.1..0.9).contains(walked)), "{walked:?}");
    assert!(etas.len() > 5, "an eta is told: {etas:?}");
    // From the second second on it is a guess that can be shown to people.
    let late: Vec<_> = etas.iter().filter(|(asked, _)| ended - asked < 2.0).collect();
    assert!(late.iter().all(|(_, eta)| (eta - ended).abs() < 2.0), "ended at {ended}: {late:?}");
    let messages = client.ok(&json!({"op": "list_messages"}));
    assert_eq!(messages["messages"][0]["message_id"], json!(id), "{messages}");
}

#[test]
fn one_without_recipients_is_done() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let nobody = send(&mut client, all(), json!({}));
    readers(&mut client, &mock, 10);
    let no_tag = send(&mut client, json!({"segment": {"tags": {"any": ["nobody"]}}}), json!({}));
    for id in [nobody, no_tag] {
        let ended = wait_ended(&mut client, &id);
        assert_eq!(
            (number(&ended, "recipients"), &ended["state"], ended["walked"].as_f64()),
            (0, &json!("done"), Some(1.0)),
            "{ended}"
        );
    }
    assert_eq!(mock.counters().requests, 0);
}

#[test]
fn two_take_turns() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    readers(&mut client, &mock, 4_000);
    let ids: Vec<String> =
        ["first", "second"].iter().map(|text| send(&mut client, all(), json!({"payload": text, "paused": true}))).collect();
    for id in &ids {
        client.ok(&json!({"op": "resume", "message_id": id}));
    }
    for id in &ids {
        assert_eq!(number(&wait_ended(&mut client, id), "accepted"), 4_000);
    }
    let of_second = mock.received().iter().take(4_000).filter(|received| received.text() == "second").count();
    assert!((1_000..3_000).contains(&of_second), "of the first half {of_second} were of the second");
}

#[test]
fn a_label_pauses_resumes_and_cancels() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    readers(&mut client, &mock, 600);
    client.ok(&json!({"op": "pause", "label": "digest"}));
    let held = send(&mut client, all(), json!({"label": "digest", "payload": "held"}));
    let free = send(&mut client, all(), json!({"label": "other", "payload": "free"}));
    wait_ended(&mut client, &free);
    assert_eq!((mock.counters().accepted, &status(&mut client, &held)["state"]), (600, &json!("paused")));
    client.ok(&json!({"op": "resume", "label": "digest", "rate": 200}));
    assert!(mock.wait_received(650, Duration::from_secs(30)));
    client.ok(&json!({"op": "cancel", "label": "digest"}));
    let ended = wait_ended(&mut client, &held);
    assert_eq!(number(&ended, "accepted") + number(&ended, "cancelled"), 600, "{ended}");
    assert!(number(&ended, "cancelled") > 100, "{ended}");
}

#[test]
fn who_leaves_before_the_turn_is_not_in_it_and_who_is_gone_leaves() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = readers(&mut client, &mock, 20);
    for browser in &browsers[..5] {
        mock.set_fault(Scope::Subscription(browser.token.clone()), Fault::status(410));
    }
    let id = send(&mut client, all(), json!({"paused": true}));
    for browser in &browsers[15..] {
        assert_eq!(client.ok(&json!({"op": "unsubscribe", "endpoint": browser.endpoint}))["removed"], true);
    }
    client.ok(&json!({"op": "resume", "message_id": id}));
    let ended = wait_ended(&mut client, &id);
    assert_eq!((number(&ended, "recipients"), number(&ended, "accepted"), number(&ended, "gone")), (15, 10, 5), "{ended}");
    let next = send(&mut client, all(), json!({}));
    assert_eq!(number(&wait_ended(&mut client, &next), "recipients"), 10);
    assert_eq!(count(&mut client, json!({})), 10);
}

#[test]
fn it_goes_on_after_a_stop() {
    let (mock, mut daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = readers(&mut client, &mock, 1_000);
    let id = send(&mut client, all(), json!({"rate": 300}));
    assert!(mock.wait_received(100, Duration::from_secs(30)));
    assert_eq!(daemon.terminate().expect("it ends"), 0);
    daemon.restart().expect("it starts");
    let mut client = daemon.client();
    let status = wait_status(&mut client, &id, |status| status["pending"] == 0 && status["open"] == false);
    assert_eq!(number(&status, "accepted"), 1_000, "{status}");
    // An orderly stop repeats nothing.
    assert_eq!(reached(&mock, &browsers).len(), 1_000);
}
