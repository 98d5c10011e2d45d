//! One message, in each reader's own words.

use serde_json::{Value, json};

use crate::support::{number, send, start, subscribe_all, texts, wait_ended};

#[test]
fn each_recipient_has_its_own_values_or_the_defaults() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 4);
    let names = [
        json!({"name": "Zoë", "city": "Łódź"}),
        json!({"name": "A \"B\" \\ \n{{city}}"}),
        json!({}),
        json!({"name": 7, "city": true}),
    ];
    subscribe_all(&mut client, &browsers, |number| json!({"attributes": names[number]}));
    let notification = json!({
        "title": "Hello {{name|friend}}", "body": "{{name|friend}} of {{city|nowhere}}, {{name|friend}}!",
        "navigate": "https://example.com/", "data": {"list": ["{{city|nowhere}}", 5], "{{name}}": "key"},
    });
    let id = send(
        &mut client,
        json!({"segment": {"all": true}}),
        json!({"payload": null, "notification": notification, "template": true}),
    );
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 4);
    let wanted = [
        ("Zoë", "Łódź"),
        // What stands in a value is text: neither JSON nor a placeholder.
        ("A \"B\" \\ \n{{city}}", "nowhere"),
        ("friend", "nowhere"),
        ("7", "true"),
    ];
    for (browser, (name, city)) in browsers.iter().zip(wanted) {
        let all: Value = serde_json::from_str(&texts(&mock, browser)[0]).expect("JSON");
        let got = &all["notification"];
        assert_eq!(got["title"], format!("Hello {name}"));
        assert_eq!(got["body"], format!("{name} of {city}, {name}!"));
        assert_eq!(got["data"]["list"], json!([city, 5]));
        assert_eq!(got["data"]["{{name}}"], "key", "only values are filled");
    }
}

#[test]
fn raw_subscriptions_bring_their_own_attributes() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    let mut first = browsers[0].json();
    first["attributes"] = json!({"name": "Ada"});
    let to = json!({"subscriptions": [first, browsers[1].json()]});
    let id = send(&mut client, to, json!({"payload": {"text": "Hello {{name|you}}", "n": 1}, "template": true}));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 2);
    assert_eq!(texts(&mock, &browsers[0]), [r#"{"n":1,"text":"Hello Ada"}"#]);
    assert_eq!(texts(&mock, &browsers[1]), [r#"{"n":1,"text":"Hello you"}"#]);
}

#[test]
fn without_template_nothing_is_filled() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    let id = send(&mut client, json!({"subscription": browser.json()}), json!({"payload": {"text": "{{name|you}}"}}));
    wait_ended(&mut client, &id);
    assert_eq!(texts(&mock, &browser), [r#"{"text":"{{name|you}}"}"#]);
}

#[test]
fn who_makes_it_too_long_gets_the_defaults() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 2);
    let names = ["n".repeat(2_000), "short".to_owned()];
    subscribe_all(&mut client, &browsers, |number| json!({"attributes": {"name": names[number]}}));
    let text = "{{name|x}} {{name|x}} {{name|x}}";
    let id = send(&mut client, json!({"segment": {"all": true}}), json!({"payload": {"text": text}, "template": true}));
    assert_eq!(number(&wait_ended(&mut client, &id), "accepted"), 2);
    assert_eq!(texts(&mock, &browsers[0]), [r#"{"text":"x x x"}"#]);
    assert_eq!(texts(&mock, &browsers[1]), [r#"{"text":"short short short"}"#]);
}

#[test]
fn it_is_checked_at_the_door() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    let browser = mock.subscribe(0, 1).remove(0);
    let to = json!({"subscription": browser.json()});
    for body in [
        json!({"payload": {"text": "{{name"}}),
        json!({"payload": {"text": "{{}}"}}),
        json!({"payload": {"text": "{{|friend}}"}}),
        json!({"payload": "{{name}}"}),
        json!({"payload_base64": "AAAA"}),
    ] {
        let request = crate::support::with(json!({"op": "send", "to": to, "template": true}), body);
        let error = client.error(&request);
        assert_eq!(error["code"], "invalid_field", "{request}: {error}");
    }
    let long =
        json!({"op": "send", "to": to, "template": true, "payload": {"text": format!("{{{{name|{}}}}}", "x".repeat(4_000))}});
    assert_eq!(client.error(&long)["code"], "payload_too_large");
    assert_eq!(mock.counters().requests, 0);
}
