//! Any bytes are judged, and the answer to them is one line of JSON that repeats the `id`; a request is what it promises to be;
//! the reader of JSON agrees with serde_json.

#![no_main]

use std::sync::LazyLock;

use fanfare_fuzz::ingest::json::{Value, read_line, write_compact};
use fanfare_fuzz::ingest::line::{Rules, parse};
use fanfare_fuzz::ingest::reply::write_problem;
use fanfare_fuzz::ingest::request::{Request, Subscriptions, To};
use fanfare_fuzz::limits::PAYLOAD_MAX;
use fanfare_fuzz::{NOW, rules};
use libfuzzer_sys::fuzz_target;

static RULES: LazyLock<Rules> = LazyLock::new(rules);

fuzz_target!(|bytes: &[u8]| {
    let (id, judged) = parse(bytes, &RULES, NOW);
    match judged {
        Ok(Request::Send(send)) => {
            assert!(send.body.len() <= PAYLOAD_MAX);
            assert!(send.spread.is_none_or(|spread| spread <= f64::from(send.ttl)));
            if let To::Subscriptions(judged) = &send.to {
                assert!(!judged.good.is_empty());
                check(judged);
            }
        }
        Ok(Request::Add(add)) => check(&add.subscriptions),
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
    }
}
