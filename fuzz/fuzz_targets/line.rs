//! Any bytes are judged, and the answer to them is one line of JSON that repeats the `id`; a request is what it promises to be;
//! the reader of JSON agrees with serde_json, and the short way of the common line with the general one.

#![no_main]

use std::sync::LazyLock;

use fanfare_fuzz::ingest::line::{Rules, parse, parse_by_tree};
use fanfare_fuzz::limits::{
    ATTRIBUTES_BYTES_MAX, ATTRIBUTES_MAX, FALLBACK_MAX, LEASE_MAX, NAME_MAX, NAMES_MAX, PAYLOAD_MAX, RECEIPT_CHARS,
    USER_AGENT_MAX,
};
use fanfare_fuzz::message::{Attributes, Name, Segment};
use fanfare_fuzz::protocol::json::{Value, read_line, write_compact};
use fanfare_fuzz::protocol::reply::write_problem;
use fanfare_fuzz::protocol::request::{Of, Payload, Request, Subscriptions, To};
use fanfare_fuzz::{NOW, rules};
use libfuzzer_sys::fuzz_target;

static RULES: LazyLock<Rules> = LazyLock::new(rules);

fuzz_target!(|bytes: &[u8]| {
    let (id, judged) = parse(bytes, &RULES, NOW);
    let by_tree = parse_by_tree(bytes, &RULES, NOW);
    assert_eq!((&id, &judged), (&by_tree.0, &by_tree.1));
    match judged {
        Ok(Request::Send(send)) => {
            check_payload(&send.payload);
            assert!(send.spread.is_none_or(|spread| spread <= f64::from(send.ttl)));
            assert!(send.fallback.is_none_or(|after| after > 0.0 && after <= FALLBACK_MAX));
            assert!(send.fallback.is_none() && !send.when_offline || matches!(send.to, To::Accounts { .. }));
            match &send.to {
                To::Subscriptions(judged) => {
                    assert!(!judged.good.is_empty() && send.scope.is_none());
                    check(judged);
                }
                To::Stream => assert!(send.scope.is_none()),
                To::Ids(ids) => assert!(!ids.is_empty()),
                To::Accounts { accounts, .. } => assert!(!accounts.is_empty()),
                To::Segment(segment) => check_segment(segment),
            }
        }
        Ok(Request::Add(add)) => check(&add.subscriptions),
        Ok(Request::Subscribe(subscribe)) => {
            check(&Subscriptions { good: vec![subscribe.subscription.clone()], rejected: Vec::new() });
            subscribe.scopes.iter().flatten().chain(&subscribe.tags).for_each(|names| check_names(names));
            subscribe.attributes.iter().for_each(check_attributes);
            subscribe.confirm.iter().for_each(check_payload);
            assert!(subscribe.user_agent.is_none_or(|agent| agent.len() <= USER_AGENT_MAX));
        }
        Ok(Request::UpdateSubscription(update)) => {
            update.scopes.iter().flatten().chain(&update.tags).for_each(|names| check_names(names));
            update.attributes.iter().for_each(check_attributes);
        }
        Ok(Request::Presence { online, lease, .. }) => {
            assert!(lease.is_none_or(|lease| online && lease > 0.0 && lease <= LEASE_MAX));
        }
        Ok(Request::Test(test)) => check_payload(&test.payload),
        Ok(Request::ListSubscriptions { of: Of::Segment(segment), .. } | Request::Count { segment: Some(segment), .. }) => {
            check_segment(&segment);
        }
        Ok(Request::Backup { name: Some(name) }) => {
            assert!(!name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']));
        }
        Ok(_) => {}
        Err(problem) => {
            let mut reply = Vec::new();
            write_problem(&mut reply, &id, &problem, None, &[]);
            assert_eq!(reply.iter().filter(|byte| **byte == b'\n').count(), 1);
            // An id may be a number beyond what serde_json reads.
            if id.as_deref().is_none_or(|id| serde_json::from_str::<serde_json::Value>(id).is_ok()) {
                let reply: serde_json::Value = serde_json::from_slice(&reply).expect("a reply is JSON");
                assert_eq!(reply["ok"], false);
            }
        }
    }

    if let Ok(text) = std::str::from_utf8(bytes) {
        let oracle: Result<serde_json::Map<String, serde_json::Value>, _> = serde_json::from_str(text);
        match read_line(text).members {
            Ok(members) => {
                let mut compact = Vec::new();
                write_compact(&Value::Object(members), &mut compact);
                match oracle {
                    Ok(oracle) => {
                        let again: serde_json::Map<String, serde_json::Value> =
                            serde_json::from_slice(&compact).expect("what was read is written as JSON");
                        assert_eq!(again, oracle);
                    }
                    Err(error) => assert!(error.to_string().contains("number out of range"), "{error}"),
                }
            }
            Err(bad) => assert!(oracle.is_err() || bad.what == "a member is given twice", "{bad:?}"),
        }
    }
});

fn check(judged: &Subscriptions) {
    for recipient in &judged.good {
        assert!(p256::PublicKey::from_sec1_bytes(&recipient.p256dh).is_ok());
        let (again, service) = RULES.policy.check(recipient.endpoint.as_str()).expect("a checked endpoint is good");
        assert_eq!((again, service), (recipient.endpoint.clone(), recipient.service));
        assert!(recipient.expiration.is_none_or(|expiration| expiration > NOW));
        recipient.attributes.iter().for_each(|attributes| check_attributes(attributes));
    }
}

/// A receipt's place is a whole JSON string of zeros, and what surrounds it is JSON.
fn check_payload(payload: &Payload) {
    assert!(payload.body.len() <= PAYLOAD_MAX);
    if let Some(at) = payload.receipt_at {
        let at = usize::from(at);
        assert!(payload.body[at..at + RECEIPT_CHARS].iter().all(|byte| *byte == b'0'));
        assert_eq!((payload.body[at - 1], payload.body[at + RECEIPT_CHARS]), (b'"', b'"'));
        // A number beyond what serde_json reads is sent as it was written.
        if let Err(error) = serde_json::from_slice::<serde_json::Value>(&payload.body) {
            assert!(error.to_string().contains("number out of range"), "{error}");
        }
    }
}

fn check_names(names: &[Name]) {
    assert!(names.len() <= NAMES_MAX && names.is_sorted_by(|one, next| one < next));
    assert!(names.iter().all(|name| (1..=NAME_MAX).contains(&name.len())));
}

fn check_attributes(attributes: &Attributes) {
    assert!(attributes.len() <= ATTRIBUTES_MAX);
    assert!(attributes.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() <= ATTRIBUTES_BYTES_MAX);
    for (name, value) in attributes {
        assert!((1..=NAME_MAX).contains(&name.len()));
        let value: serde_json::Value = serde_json::from_str(value).expect("a value is JSON");
        assert!(value.is_boolean() || value.is_number() || value.is_string());
    }
}

fn check_segment(segment: &Segment) {
    [&segment.tags_any, &segment.tags_all, &segment.tags_none].into_iter().for_each(|names| check_names(names));
    check_attributes(&segment.attributes);
}
