//! Promise 4, and what an application needs to keep its own table clean: a 410 or 404 is told in `events` with the application's own
//! `ref`, is never tried again, also after a restart, and each recipient has exactly one ending event.

use std::collections::BTreeMap;

use fanfare_loadtest::mock::{Fault, Scope, vendor};
use serde_json::{Value, json};

use crate::support::*;

#[test]
fn gone_is_told_once_and_never_tried_again() {
    let mock = mock(1);
    let mut daemon = daemon(&mock, |config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 100);
    let answers = [vendor::fcm_gone(), vendor::mozilla_gone(), vendor::apple_gone(), Fault::status(404), vendor::fcm_stale()];
    let gone = |index: usize| index.is_multiple_of(4);
    for (index, browser) in browsers.iter().enumerate().filter(|(index, _)| gone(*index)) {
        mock.set_fault(Scope::Subscription(browser.token.clone()), answers[index / 4 % answers.len()].clone());
    }
    // The first ten one by one, the others as a list: both ways through the store.
    let with_ref = |index: usize| {
        let mut json = browsers[index].json();
        json["ref"] = json!(format!("row {index}"));
        json
    };
    let singles: Vec<Value> = (0..10).map(|index| send_of(&with_ref(index), json!({"payload": "one"}))).collect();
    let mut ids = send_all(&mut client, &singles);
    let list: Vec<Value> = (10..100).map(with_ref).collect();
    let list = json!({"op": "send", "to": {"subscriptions": list}, "payload": "list", "ref": "the list"});
    ids.push(id_of(&client.ok(&list)));
    for id in &ids {
        wait_ended(&mut client, id);
    }
    let of_list = status(&mut client, &ids[10]);
    assert_eq!(
        (&of_list["accepted"], &of_list["gone"], &of_list["state"]),
        (&json!(68), &json!(22), &json!("done")),
        "{of_list}"
    );
    assert_eq!((&of_list["retries"], &of_list["in_flight"]), (&json!(0), &json!(0)), "{of_list}");

    let told = events(&mut client);
    let mut by_ref: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for event in &told {
        by_ref.entry(event["ref"].as_str().expect("a ref").to_owned()).or_default().push(event);
    }
    assert_eq!((told.len(), by_ref.len()), (100, 100), "exactly one ending event each");
    for (index, _) in browsers.iter().enumerate() {
        let event = by_ref[&format!("row {index}")][0];
        let kind = if gone(index) { "gone" } else { "accepted" };
        assert_eq!(event["type"], kind, "{event}");
        if gone(index) {
            let expected =
                if answers[index / 4 % answers.len()].status == 410 { (410, "unsubscribed") } else { (404, "not_found") };
            assert_eq!((&event["status"], &event["reason"]), (&json!(expected.0), &json!(expected.1)), "{event}");
        }
        assert_eq!(event["message_id"], ids[index.min(10)], "{event}");
        assert_eq!(event["message_ref"], if index < 10 { Value::Null } else { json!("the list") }, "{event}");
    }

    assert_eq!(daemon.terminate().expect("an orderly end"), 0);
    daemon.restart().expect("it starts again");
    let mut client = daemon.client();
    // What is sent now comes behind all that waits: once it has arrived, nothing of the gone ones did.
    let marker = send(&mut client, &mock.subscribe(0, 1)[0], json!({"payload": "marker", "urgency": "very-low"}));
    wait_ended(&mut client, &marker);
    assert_eq!(mock.counters().requests, 101, "each was posted once");
    assert_eq!(events(&mut client).len(), 101, "nothing is told twice");
    assert_eq!(mock.counters().violations, Vec::<String>::new());
}

#[test]
fn an_expiration_time_that_has_passed_is_gone_without_a_post() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config);
    let mut client = daemon.client();
    let mut subscription = mock.subscribe(0, 1)[0].json();
    subscription["expirationTime"] = json!(((now() + 1.5) * 1_000.0) as u64);
    // Valid when it was taken, over when its turn comes.
    let at = rfc3339(now() as u64 + 4);
    let id = id_of(&client.ok(&send_of(&subscription, json!({"payload": "late", "at": at}))));
    wait_ended(&mut client, &id);
    assert_eq!(event_of(&mut client, &id)["type"], "gone");
    assert_eq!(mock.counters().requests, 0);
}
