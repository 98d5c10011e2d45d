//! One line of the protocol (docs/protocol.md) -> a checked [`Request`].
//!
//! Promises: any bytes give a request or one [`Problem`] that names the field, never a panic; the `id` comes back with both
//! wherever it could be read; what is in a request needs no further check of its form. A problem's message never repeats a
//! key, an endpoint or a payload.
//!
//! Following one line: this file reads its JSON, finds its `op` and asks `send`, `control`, `registry` or `queries`; the common
//! `send` is read by `fast`, which makes no tree of it. Those use `body` for what is sent, `subscription` for a browser's own object, `segment` for a choice among the registry's, and `fields`
//! for single members.

mod body;
mod control;
mod fast;
mod fields;
mod fingerprint;
mod queries;
mod registry;
mod segment;
mod send;
mod subscription;
#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::str::Utf8Error;
use std::sync::Arc;

use self::fields::{NO_SCOPE, bad_json, invalid, missing, pick, text};
use crate::config;
use crate::endpoint::EndpointPolicy;
use crate::limits::REQUEST_ID_MAX;
use crate::message::{KeyId, Name, UnixMillis};
use crate::protocol::json::{Members, Value, read_line};
use crate::protocol::request::{Code, Problem, Request, RequestId};

/// What the lines of one socket are judged by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The apps of this socket, each with its VAPID keys.
    pub apps: BTreeMap<Arc<str>, Vec<KeyId>>,
    /// The app of a request that names none: the socket's only one, else "default".
    pub default_app: Option<Arc<str>>,
    pub policy: Arc<EndpointPolicy>,
    pub messages: config::Messages,
    /// The valid scopes of each app that lists them; in the others every name is one.
    pub scopes: BTreeMap<Arc<str>, BTreeSet<Name>>,
}

impl Rules {
    /// `apps` are those of the socket.
    pub fn new(apps: BTreeMap<Arc<str>, Vec<KeyId>>, policy: Arc<EndpointPolicy>, messages: config::Messages) -> Rules {
        let mut names = apps.keys();
        let default_app = match (names.next(), names.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => apps.get_key_value("default").map(|(name, _)| name.clone()),
        };
        Rules { apps, default_app, policy, messages, scopes: BTreeMap::new() }
    }

    /// The same with the valid scopes of those apps that list them.
    pub fn with_scopes(self, scopes: BTreeMap<Arc<str>, BTreeSet<Name>>) -> Rules {
        Rules { scopes, ..self }
    }

    /// Whether a scope is a valid one of an app.
    pub fn has_scope(&self, app: &str, scope: &str) -> bool {
        self.scopes.get(app).is_none_or(|valid| valid.contains(scope))
    }
}

/// What is wrong with the scopes of an `update_subscription` whose subscription belongs to an app that has no such scope.
pub fn foreign_scope(scope: &str) -> Problem {
    invalid("scopes", format!("{scope} {NO_SCOPE}"))
}

/// Reads and checks one line, given without its newline; `now` is the time of acceptance.
pub fn parse(line: &[u8], rules: &Rules, now: UnixMillis) -> (RequestId, Result<Request, Problem>) {
    let text = std::str::from_utf8(line);
    let common = text.ok().and_then(|text| fast::parse(text, rules, now));
    common.unwrap_or_else(|| by_tree(line, text, rules, now))
}

/// The same for every line by the general way alone: what [`parse`] is held against.
pub fn parse_by_tree(line: &[u8], rules: &Rules, now: UnixMillis) -> (RequestId, Result<Request, Problem>) {
    by_tree(line, std::str::from_utf8(line), rules, now)
}

/// Makes a tree of the line's JSON, and a request of the tree.
fn by_tree(line: &[u8], text: Result<&str, Utf8Error>, rules: &Rules, now: UnixMillis) -> (RequestId, Result<Request, Problem>) {
    let (text, cut) = match text {
        Ok(text) => (text, None),
        // What lies before is read for the sake of its `id`.
        Err(error) => {
            let whole = error.valid_up_to();
            (std::str::from_utf8(&line[..whole]).unwrap_or_default(), Some(whole))
        }
    };
    let read = read_line(text);
    if read.id.is_some_and(|id| id.len() > REQUEST_ID_MAX) {
        return (None, Err(invalid("id", format!("must be at most {REQUEST_ID_MAX} bytes long"))));
    }
    let id = read.id.map(Box::from);
    let members = match (cut, read.members) {
        (Some(at), _) => return (id, Err(bad_json(format!("the line is not UTF-8 at byte {at}")))),
        (None, Err(bad)) => return (id, Err(bad_json(format!("{} (at byte {})", bad.what, bad.at)))),
        (None, Ok(members)) => members,
    };
    (id, request(&members, rules, now))
}

fn request(members: &Members<'_>, rules: &Rules, now: UnixMillis) -> Result<Request, Problem> {
    let [id, op] = pick(members, ["id", "op"]);
    if let Some(Value::Array(_) | Value::Object(_)) = id {
        return Err(invalid("id", "must be a string, a number or a boolean"));
    }
    let name = text(op.ok_or_else(|| missing("op"))?, "op")?;
    match OPERATIONS.iter().find(|(known, _)| *known == name) {
        Some((_, read)) => read(members, rules, now),
        None => Err(Problem {
            code: Code::UnknownOp,
            field: Some("op".to_owned()),
            message: format!("must be one of {}", OPERATIONS.map(|(known, _)| known).join(", ")),
        }),
    }
}

/// Reads the members of one operation.
type Read = fn(&Members<'_>, &Rules, UnixMillis) -> Result<Request, Problem>;

/// Every operation of the protocol. There is no other list: the answer to an unknown one tells this one, and the tests that go
/// through all operations learn them there, so that a new one is in them from its first day.
const OPERATIONS: [(&str, Read); 29] = [
    ("send", send::send),
    ("add", send::add),
    ("close", |members, _, _| send::close(members)),
    ("status", |members, _, _| queries::status(members)),
    ("cancel", |members, rules, _| control::cancel(members, rules)),
    ("pause", |members, rules, _| control::pause(members, rules)),
    ("resume", |members, rules, _| control::resume(members, rules)),
    ("list_messages", |members, _, _| queries::list_messages(members)),
    ("events", |members, rules, _| queries::events(members, rules)),
    ("stats", |members, _, _| queries::stats(members)),
    ("origins", |members, _, _| queries::origins(members)),
    ("vapid_public_key", |members, rules, _| queries::vapid_public_key(members, rules)),
    ("ping", |members, _, _| queries::ping(members)),
    ("subscribe", registry::subscribe),
    ("update_subscription", |members, rules, _| registry::update_subscription(members, rules)),
    ("unsubscribe", |members, rules, _| registry::unsubscribe(members, rules)),
    ("subscription", |members, rules, _| queries::subscription(members, rules)),
    ("account", |members, rules, _| registry::account(members, rules)),
    ("presence", |members, rules, _| registry::presence(members, rules)),
    ("mark_read", |members, rules, _| registry::mark_read(members, rules)),
    ("list_subscriptions", |members, rules, _| queries::list_subscriptions(members, rules)),
    ("disabled_accounts", |members, rules, _| queries::disabled_accounts(members, rules)),
    ("count", |members, rules, _| queries::count(members, rules)),
    ("test", |members, rules, _| registry::test(members, rules)),
    ("feedback", |members, _, _| registry::feedback(members)),
    ("erase", |members, rules, _| registry::erase(members, rules)),
    ("drain", |members, _, _| control::drain(members)),
    ("reload", |members, _, _| control::reload(members)),
    ("backup", |members, _, _| control::backup(members)),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::*;
    use super::*;
    use crate::protocol::request::To;

    #[test]
    fn lines_that_are_no_requests() {
        for (line, code, field) in [
            ("", Code::BadJson, ""),
            ("hello", Code::BadJson, ""),
            ("[]", Code::BadJson, ""),
            (r#"{"op":"ping""#, Code::BadJson, ""),
            (r#"{"op":"ping","op":"ping"}"#, Code::BadJson, ""),
            (r#"{"op":"ping"}{"op":"ping"}"#, Code::BadJson, ""),
            ("{}", Code::MissingField, "op"),
            (r#"{"op":null}"#, Code::MissingField, "op"),
            (r#"{"op":7}"#, Code::InvalidField, "op"),
            (r#"{"op":"fly"}"#, Code::UnknownOp, "op"),
            (r#"{"op":"PING"}"#, Code::UnknownOp, "op"),
            (r#"{"op":"restore"}"#, Code::UnknownOp, "op"),
            (r#"{"op":"ping","id":[1]}"#, Code::InvalidField, "id"),
            (r#"{"op":"fly","id":{}}"#, Code::InvalidField, "id"),
        ] {
            assert_eq!(bad(line), (code, field.to_owned()), "{line}");
        }
        // A duplicate anywhere, also where members are ignored.
        for line in [
            line(r#","payload":{"a":[{"b":1,"b":2}]}"#),
            line(r#","ttl":1,"ttl":1"#),
            line(r#","notification":{"title":"t","navigate":"https://e.com/","data":{"x":1,"x":1}}"#),
            format!(r#"{{"op":"send","to":{{"subscription":{}}}}}"#, s(r#","odd":{"x":1,"x":1}"#)),
            format!(r#"{{"op":"send","to":{{"subscription":{}}}}}"#, s(r#","endpoint":"https://fcm.googleapis.com/y""#)),
            format!(r#"{{"op":"send","to":{{"subscription":{}}}}}"#, s(r#","attributes":{"x":1,"\u0078":1}"#)),
        ] {
            assert_eq!(bad(&line), (Code::BadJson, String::new()), "{line}");
        }
        assert_eq!(bad(&format!(r#"{{"op":"ping","x":{}{}}}"#, "[".repeat(500), "]".repeat(500))).0, Code::BadJson);
        good("{\"op\":\"ping\"}\r");
        good(" {\t\"op\" : \"ping\" } ");
    }

    #[test]
    fn unknown_op_lists_what_is_known() {
        let list = judged(r#"{"op":"restore"}"#).expect_err("no operation").message;
        let ops: Vec<&str> = list.strip_prefix("must be one of ").expect("a list").split(", ").collect();
        assert_eq!(ops.len(), 29);
        for op in ops {
            let judged = judged(&format!(r#"{{"op":"{op}"}}"#));
            assert!(!judged.is_err_and(|problem| problem.code == Code::UnknownOp), "{op}");
        }
    }

    #[test]
    fn ids_come_back() {
        for (line, id) in [
            (r#"{"op":"ping","id":"a\u0062"}"#, Some(r#""a\u0062""#)),
            (r#"{"op":"ping","id":1.50}"#, Some("1.50")),
            (r#"{"op":"ping","id":true}"#, Some("true")),
            (r#"{"op":"ping","id":null}"#, None),
            (r#"{"op":"ping"}"#, None),
            (r#"{"id":7,"op":"fly"}"#, Some("7")),
            (r#"{"op":"ping","x":1,"id":7}"#, Some("7")),
            (r#"{"id":7,"op":}"#, Some("7")),
            (r#"{"id":7,"id":8}"#, Some("7")),
            (r#"{"op":"ping","id":[7]}"#, None),
        ] {
            assert_eq!(id_of(line.as_bytes()).as_deref(), id, "{line}");
        }
        let (id, judged) = parse(b"{\"id\":7,\"op\":\"\xff\"}", &rules(), NOW);
        assert_eq!(id.as_deref(), Some("7"));
        assert_eq!(judged.expect_err("not UTF-8").code, Code::BadJson);
        let long = format!(r#"{{"op":"ping","id":"{}"}}"#, "a".repeat(REQUEST_ID_MAX));
        assert_eq!((id_of(long.as_bytes()), bad(&long)), (None, (Code::InvalidField, "id".to_owned())));
    }

    /// Lines near enough to good ones that every check is met.
    fn near_lines() -> impl Strategy<Value = String> {
        let value = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("1".to_owned()),
            Just("-1e999".to_owned()),
            Just("\"2026-11-22T10:30:00Z\"".to_owned()),
            Just("[]".to_owned()),
            Just("{\"stream\":true}".to_owned()),
            Just("{\"segment\":{\"tags\":{\"any\":[\"a\"]}}}".to_owned()),
            Just("{\"accounts\":[\"a\"],\"devices\":\"latest\"}".to_owned()),
            Just("{\"subscription_ids\":[\"AAECAwQFBgcICQoL\"]}".to_owned()),
            Just("{\"all\":true}".to_owned()),
            Just("{\"after\":60}".to_owned()),
            Just("{\"payload\":{\"receipt\":\"{{a|b}}\"}}".to_owned()),
            Just("{\"title\":\"t\",\"navigate\":\"https://e.com/\",\"data\":{}}".to_owned()),
            Just("[\"a\",\"b\",\"a\"]".to_owned()),
            Just("[\"AAECAwQFBgcICQoL\"]".to_owned()),
            Just("\"AAECAwQFBgcICQoL\"".to_owned()),
            Just("\"https://fcm.googleapis.com/x\"".to_owned()),
            Just(s("")),
            prop::sample::select(vec!["online", "offline", "shown", "a", "shop", "news"]).prop_map(|word| format!("\"{word}\"")),
            Just(format!("{{\"subscriptions\":[{}]}}", s(""))),
            Just(format!("\"{ULID}\"")),
            any::<String>().prop_map(|text| serde_json::Value::from(text).to_string()),
        ];
        let name = prop::sample::select(vec![
            "to",
            "payload",
            "payload_base64",
            "notification",
            "ttl",
            "urgency",
            "topic",
            "app",
            "idempotency_key",
            "at",
            "label",
            "rate",
            "spread",
            "message_id",
            "subscriptions",
            "position",
            "previous",
            "limit",
            "after",
            "types",
            "from",
            "by",
            "on",
            "id",
            "subscription",
            "subscription_id",
            "subscription_ids",
            "endpoint",
            "account",
            "enabled",
            "name",
            "user_agent",
            "scopes",
            "scope",
            "tags",
            "attributes",
            "replaces",
            "confirm",
            "reveal",
            "state",
            "lease",
            "session",
            "segment",
            "wait",
            "receipt",
            "type",
            "when",
            "receipts",
            "fallback",
            "template",
        ]);
        let op = prop::sample::select(vec![
            "send",
            "add",
            "close",
            "status",
            "cancel",
            "pause",
            "resume",
            "list_messages",
            "events",
            "stats",
            "drain",
            "reload",
            "subscribe",
            "update_subscription",
            "unsubscribe",
            "subscription",
            "account",
            "presence",
            "mark_read",
            "list_subscriptions",
            "disabled_accounts",
            "count",
            "test",
            "feedback",
            "erase",
            "backup",
            "x",
        ]);
        (op, proptest::collection::vec((name, value), 0..6)).prop_map(|(op, members)| {
            let members: String = members.iter().map(|(name, value)| format!(",\"{name}\":{value}")).collect();
            format!("{{\"op\":\"{op}\"{members}}}")
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, &rules(), NOW);
        }

        #[test]
        fn near_lines_are_survived(line in near_lines()) {
            if let (_, Err(problem)) = parse(line.as_bytes(), &rules(), NOW) {
                prop_assert!(!problem.message.is_empty());
                prop_assert!(problem.field.is_some() || problem.code == Code::BadJson);
            }
        }

        /// A good line with one byte changed is judged, and where it is still good it names a recipient that can be reached.
        #[test]
        fn damaged_lines_are_survived(at in 0usize..400, byte in any::<u8>()) {
            let mut line = line(r#","payload":{"a":"ż"},"ttl":60,"id":1"#).into_bytes();
            let at = at % line.len();
            line[at] = byte;
            if let (_, Ok(Request::Send(send))) = parse(&line, &rules(), NOW) {
                let To::Subscriptions(judged) = send.to else { panic!("one subscription became a stream") };
                prop_assert!(p256::PublicKey::from_sec1_bytes(&judged.good[0].p256dh).is_ok());
            }
        }
    }
}
