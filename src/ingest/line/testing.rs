//! What the tests of this folder share: a socket's rules, and lines around what is tested.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub use base64::Engine;
pub use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};

use super::{Rules, parse};
use crate::config;
use crate::endpoint::{EndpointPolicy, Policy};
use crate::message::{Attributes, KeyId, Name, Recipient, UnixMillis};
pub use crate::message::{Service, SubscriptionId};
pub use crate::protocol::request::Code;
use crate::protocol::request::{Problem, Request, Send, To};

/// 2026-11-22T10:30:00Z
pub const NOW: UnixMillis = UnixMillis(1_795_343_400_000);
/// RFC 8291 section 5.
pub const POINT: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
/// RFC 8291 section 5, the other one.
pub const OTHER_POINT: &str = "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8";
pub const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";
pub const ULID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
pub const FCM: &str = "https://fcm.googleapis.com/fcm/send/x";

pub fn key_id(point: &str) -> KeyId {
    KeyId(Sha256::digest(URL_SAFE_NO_PAD.decode(point).expect("a point"))[..8].try_into().expect("eight bytes"))
}

pub fn rules_of(apps: &[(&str, &str)]) -> Rules {
    let apps = apps.iter().map(|(name, point)| (Arc::from(*name), vec![key_id(point)])).collect();
    let messages = config::Messages {
        ttl_default: 2_419_200,
        ttl_max: 2_419_200,
        ttl0_patience: Duration::from_secs(5),
        retention: Duration::from_secs(604_800),
        at_max: Duration::from_secs(7_776_000),
        max_pending: 20_000_000,
        max_open: 20_000,
    };
    Rules::new(apps, Arc::new(EndpointPolicy::new(Policy::Known, Vec::new())), messages)
}

/// Two apps, of which the shop lists its scopes.
pub fn rules() -> Rules {
    let scopes = BTreeSet::from([Arc::from("news"), Arc::from("offers")]);
    rules_of(&[("default", POINT), ("shop", OTHER_POINT)]).with_scopes([(Arc::from("shop"), scopes)].into())
}

pub fn judged(line: &str) -> Result<Request, Problem> {
    parse(line.as_bytes(), &rules(), NOW).1
}

pub fn good(line: &str) -> Request {
    judged(line).unwrap_or_else(|problem| panic!("{line}: {problem:?}"))
}

pub fn bad(line: &str) -> (Code, String) {
    let problem = judged(line).err().unwrap_or_else(|| panic!("{line} is good"));
    assert!(
        !problem.message.is_empty() && !problem.message.contains(AUTH) && !problem.message.contains("/fcm/send"),
        "{problem:?}"
    );
    (problem.code, problem.field.unwrap_or_default())
}

/// A subscription with `endpoint`, and `more` members after a comma.
pub fn s_at(endpoint: &str, more: &str) -> String {
    format!(r#"{{"endpoint":"{endpoint}","expirationTime":null,"keys":{{"p256dh":"{POINT}","auth":"{AUTH}"}}{more}}}"#)
}

pub fn s(more: &str) -> String {
    s_at(FCM, more)
}

/// A `send` to one subscription with `more` members.
pub fn line(more: &str) -> String {
    format!(r#"{{"op":"send","to":{{"subscription":{}}}{more}}}"#, s(""))
}

pub fn sent(more: &str) -> Send {
    match good(&line(more)) {
        Request::Send(send) => *send,
        other => panic!("{other:?}"),
    }
}

pub fn recipient(s: &str) -> Recipient {
    match good(&format!(r#"{{"op":"send","to":{{"subscription":{s}}}}}"#)) {
        Request::Send(send) => match send.to {
            To::Subscriptions(mut judged) => judged.good.remove(0),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// What is wrong with one subscription, its field named from there.
pub fn bad_s(s: &str) -> (Code, String) {
    let (code, field) = bad(&format!(r#"{{"op":"send","to":{{"subscription":{s}}}}}"#));
    (code, field.strip_prefix("to.subscription").expect("its place in the line").trim_start_matches('.').to_owned())
}

pub fn all_bad(code: Code, cases: &[(&str, &str)]) {
    for (more, field) in cases {
        assert_eq!(bad(&line(&format!(",{more}"))), (code, (*field).to_owned()), "{more}");
    }
}

pub fn id_of(line: &[u8]) -> Option<String> {
    parse(line, &rules(), NOW).0.map(String::from)
}

/// The id `AAECAwQFBgcICQoL`.
pub const ID: SubscriptionId = SubscriptionId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);

/// Lines of an operation, made of `fixed` and each case's members, with the code and the field that each is answered.
pub fn bad_with(op: &str, fixed: &str, cases: &[(&str, Code, &str)]) {
    for (more, code, field) in cases {
        let members = [fixed, more]
            .into_iter()
            .filter(|members| !members.is_empty())
            .fold(String::new(), |all, members| all + "," + members);
        let line = format!(r#"{{"op":"{op}"{members}}}"#);
        assert_eq!(bad(&line), (*code, (*field).to_owned()), "{line}");
    }
}

pub fn names_of<const N: usize>(names: [&str; N]) -> Vec<Name> {
    names.map(Name::from).to_vec()
}

pub fn attributes_of<const N: usize>(attributes: [(&str, &str); N]) -> Attributes {
    attributes.map(|(name, json)| (Name::from(name), json.into())).into()
}
