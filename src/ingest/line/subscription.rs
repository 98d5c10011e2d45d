//! A browser's own object S, as `send`, `add` and `subscribe` take it -> a [`Recipient`].

use std::collections::HashSet;
use std::sync::Arc;

use super::Rules;
use super::fields::{invalid, missing, number, pick, shown, text, within};
use crate::limits::{ATTRIBUTES_BYTES_MAX, ATTRIBUTES_MAX, COMMIT_RECIPIENTS_MAX, NAME_MAX, REFERENCE_MAX};
use crate::message::{Attributes, Encoding, KeyId, Name, Recipient, Reference, UnixMillis};
use crate::protocol::json::{Value, write_string};
use crate::protocol::keys::{PointProblem, decode_exactly, decode_point, key_id};
use crate::protocol::request::{Code, Problem, Rejected, Subscriptions};

/// What a browser's subscription is judged by.
pub(super) struct Judge<'r> {
    pub rules: &'r Rules,
    /// None: any app of the socket. An `add` does not say its message's app.
    pub app: Option<&'r Arc<str>>,
    pub now: UnixMillis,
    /// Whether attributes are kept; they are checked in any case.
    pub attributes: bool,
}

/// The members of a subscription beside its keys, however they were read; null equals absent.
#[derive(Default)]
pub(super) struct Given<'v, 'a> {
    pub endpoint: Option<&'v Value<'a>>,
    pub expiration: Option<&'v Value<'a>>,
    pub encoding: Option<&'v Value<'a>>,
    pub server_key: Option<&'v Value<'a>>,
    pub own_reference: Option<&'v Value<'a>>,
    pub attributes: Option<&'v Value<'a>>,
}

impl Judge<'_> {
    /// Each of an array by itself, an endpoint once; `place` is the array's path in the line.
    pub fn list(&self, value: &Value<'_>, place: &str) -> Result<Subscriptions, Problem> {
        let Value::Array(items) = value else { return Err(invalid(place, "must be an array")) };
        if items.len() > COMMIT_RECIPIENTS_MAX {
            return Err(invalid(place, format!("must hold at most {COMMIT_RECIPIENTS_MAX}")));
        }
        let mut judged = Subscriptions { good: Vec::with_capacity(items.len().min(4_096)), rejected: Vec::new() };
        let mut endpoints = HashSet::new();
        for (index, item) in items.iter().enumerate() {
            match self.one(item) {
                Ok(recipient) => {
                    if items.len() == 1 || endpoints.insert(recipient.endpoint.bytes().clone()) {
                        judged.good.push(recipient);
                    }
                }
                Err(problem) => {
                    let reference = match item {
                        Value::Object(members) => pick(members, ["ref"])[0].and_then(|value| reference(value).ok()),
                        _ => None,
                    };
                    let problem = within(problem, format_args!("{place}[{index}]"));
                    judged.rejected.push(Rejected { index, reference, problem });
                }
            }
        }
        Ok(judged)
    }

    /// One subscription as a browser serialises it; fields are named from there.
    pub fn one(&self, value: &Value<'_>) -> Result<Recipient, Problem> {
        let Value::Object(members) = value else {
            let message = "must be a browser's PushSubscription, an object".to_owned();
            return Err(Problem { code: Code::InvalidField, field: None, message });
        };
        // Unknown members are the browser's own business.
        let [endpoint, expiration, keys, encoding, server_key, own_reference, attributes] =
            pick(members, ["endpoint", "expirationTime", "keys", "contentEncoding", "applicationServerKey", "ref", "attributes"]);
        let given = Given { endpoint, expiration, encoding, server_key, own_reference, attributes };
        self.given(given, || match keys.ok_or_else(|| missing("keys"))? {
            Value::Object(keys) => Ok(pick(keys, ["p256dh", "auth"])),
            _ => Err(invalid("keys", "must be an object with p256dh and auth")),
        })
    }

    /// One subscription by its members; `keys` gives `p256dh` and `auth` when it is their turn.
    pub fn given<'v, 'a: 'v>(
        &self,
        given: Given<'v, 'a>,
        keys: impl FnOnce() -> Result<[Option<&'v Value<'a>>; 2], Problem>,
    ) -> Result<Recipient, Problem> {
        let Given { endpoint, expiration, encoding, server_key, own_reference, attributes } = given;
        let reference = own_reference.map(reference).transpose()?;
        let endpoint = endpoint.ok_or_else(|| missing("endpoint"))?;
        let refused = |message: String| Problem { code: Code::EndpointRefused, field: Some("endpoint".to_owned()), message };
        let Value::Text(endpoint) = endpoint else { return Err(refused("an endpoint is a string".to_owned())) };
        let (endpoint, service) = self.rules.policy.check(endpoint).map_err(|problem| refused(problem.to_string()))?;

        let [p256dh, auth] = keys()?;
        let auth = text(auth.ok_or_else(|| missing("keys.auth"))?, "keys.auth")?;
        let auth = decode_exactly(auth).ok_or_else(|| invalid("keys.auth", "must be 16 bytes in base64url"))?;
        let p256dh = text(p256dh.ok_or_else(|| missing("keys.p256dh"))?, "keys.p256dh")?;
        let p256dh = decode_point(p256dh).map_err(|problem| bad_point("keys.p256dh", problem))?;

        let attributes = attributes.map(|value| checked_attributes(value, "attributes")).transpose()?;
        Ok(Recipient {
            service,
            endpoint,
            p256dh,
            auth,
            encoding: match encoding {
                Some(value) => match text(value, "contentEncoding")? {
                    "aes128gcm" => Encoding::Aes128gcm,
                    "aesgcm" => Encoding::Aesgcm,
                    _ => return Err(invalid("contentEncoding", "must be aes128gcm or aesgcm")),
                },
                None => Encoding::Aes128gcm,
            },
            key: server_key.map(|value| self.server_key(value)).transpose()?,
            expiration: expiration.map(|value| self.expiration(value)).transpose()?,
            reference,
            attributes: attributes.filter(|_| self.attributes).map(Arc::new),
            registered: None,
        })
    }

    fn server_key(&self, value: &Value<'_>) -> Result<KeyId, Problem> {
        const FIELD: &str = "applicationServerKey";
        let point = decode_point(text(value, FIELD)?).map_err(|problem| bad_point(FIELD, problem))?;
        let id = key_id(&point);
        let known = match self.app {
            Some(app) => self.rules.apps.get(app).is_some_and(|keys| keys.contains(&id)),
            None => self.rules.apps.values().any(|keys| keys.contains(&id)),
        };
        if known { Ok(id) } else { Err(invalid(FIELD, "must be one of the app's VAPID keys")) }
    }

    /// Milliseconds since 1970, a DOMHighResTimeStamp: decimals are possible.
    fn expiration(&self, value: &Value<'_>) -> Result<UnixMillis, Problem> {
        const FIELD: &str = "expirationTime";
        let millis = number(value, FIELD)?;
        // Beyond u64 the cast saturates, which is as good as never.
        let expiration = UnixMillis(millis.max(0.0) as u64);
        if expiration <= self.now {
            Err(invalid(FIELD, "lies in the past: the subscription has expired"))
        } else {
            Ok(expiration)
        }
    }
}

fn bad_point(field: &str, problem: PointProblem) -> Problem {
    invalid(
        field,
        match problem {
            PointProblem::Length => "must be an uncompressed P-256 point, 65 bytes in base64url",
            PointProblem::NotOnCurve => "is not a point of the curve P-256",
        },
    )
}

/// Attributes by name; a null is none.
pub(super) fn checked_attributes(value: &Value<'_>, field: &str) -> Result<Attributes, Problem> {
    let Value::Object(members) = value else { return Err(invalid(field, "must be an object")) };
    let mut attributes = Attributes::new();
    let mut bytes = 0;
    for (name, value) in members {
        let wrong = |message: String| invalid(format!("{field}.{}", shown(name)), message);
        let value = match value {
            Value::Null => continue,
            Value::Bool(true) => "true".to_owned(),
            Value::Bool(false) => "false".to_owned(),
            Value::Number(digits) => one_spelling(digits).ok_or_else(|| wrong("is too large a number".to_owned()))?,
            Value::Text(text) => {
                let mut json = Vec::with_capacity(text.len() + 2);
                write_string(text, &mut json);
                String::from_utf8(json).expect("a JSON string is made of strings")
            }
            Value::Array(_) | Value::Object(_) => return Err(wrong("must be a string, a number or a boolean".to_owned())),
        };
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(wrong(format!("the name of an attribute must be 1 to {NAME_MAX} bytes long")));
        }
        bytes += name.len() + value.len();
        attributes.insert(Name::from(name.as_ref()), value.into_boxed_str());
    }
    if attributes.len() > ATTRIBUTES_MAX {
        return Err(invalid(field, format!("must hold at most {ATTRIBUTES_MAX}")));
    }
    if bytes > ATTRIBUTES_BYTES_MAX {
        return Err(invalid(field, format!("must have at most {ATTRIBUTES_BYTES_MAX} bytes, names and values together")));
    }
    Ok(attributes)
}

/// A number as text that is the same for equal numbers: an integer by its digits, whatever its size; any other by the shortest
/// decimals of the double it denotes, without an exponent. None beyond the range of a double, which readers of JSON do not take.
fn one_spelling(digits: &str) -> Option<String> {
    let number = digits.parse::<f64>().ok().filter(|number| number.is_finite())?;
    Some(match digits {
        _ if number == 0.0 => "0".to_owned(),
        _ if !digits.contains(['.', 'e', 'E']) => digits.to_owned(),
        _ => number.to_string(),
    })
}

fn reference(value: &Value<'_>) -> Result<Reference, Problem> {
    match value {
        Value::Text(text) if text.len() <= REFERENCE_MAX => Ok(Reference::Text(text.as_ref().to_owned())),
        Value::Number(digits) if let Ok(integer) = digits.parse() => Ok(Reference::Integer(integer)),
        _ => Err(invalid("ref", format!("must be a string of at most {REFERENCE_MAX} bytes or an integer"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{key_id, *};
    use super::*;
    use crate::protocol::request::{Request, To};

    #[test]
    fn one_subscription() {
        let full = recipient(&s(&format!(
            r#","contentEncoding":"aesgcm","applicationServerKey":"{POINT}","ref":"r","attributes":{{"n":"x","m":1,"o":null}},"browserThing":{{"a":1}}"#
        )));
        assert_eq!(
            (full.encoding, full.key, full.reference),
            (Encoding::Aesgcm, Some(key_id(POINT)), Some(Reference::Text("r".to_owned())))
        );
        assert_eq!(recipient(&s(r#","ref":-7"#)).reference, Some(Reference::Integer(-7)));
        assert_eq!(recipient(&s(r#","contentEncoding":"aes128gcm""#)).encoding, Encoding::Aes128gcm);
        assert_eq!(
            recipient(&s(r#","contentEncoding":null,"ref":null,"attributes":null,"applicationServerKey":null"#)),
            recipient(&s(""))
        );
        let timed = |time: &str| s("").replace("\"expirationTime\":null", &format!("\"expirationTime\":{time}"));
        assert_eq!(recipient(&timed("1795343400001.7")).expiration, Some(UnixMillis(NOW.0 + 1)));
        assert_eq!(recipient(&timed("1e300")).expiration, Some(UnixMillis::NEVER));
        for time in ["1795343400000", "0", "-5", "\"2027-01-01T00:00:00Z\"", "1e999", "true"] {
            assert_eq!(bad_s(&timed(time)), (Code::InvalidField, "expirationTime".to_owned()), "{time}");
        }
        let padded = STANDARD.encode(URL_SAFE_NO_PAD.decode(POINT).expect("a point"));
        assert_eq!(recipient(&s("").replace(POINT, &padded)), recipient(&s("")));
        let keys = |keys: &str| format!(r#"{{"endpoint":"{FCM}","keys":{keys}}}"#);
        let not_on_curve = POINT.replace("Aiw4", "Aiw5").replace("BCVx", "BCVy");
        let compressed = URL_SAFE_NO_PAD.encode([2; 33]);
        for (s, code, field) in [
            ("null".to_owned(), Code::MissingField, ""),
            ("[]".to_owned(), Code::InvalidField, ""),
            ("\"x\"".to_owned(), Code::InvalidField, ""),
            ("{}".to_owned(), Code::MissingField, "endpoint"),
            (s("").replace(FCM, "http://fcm.googleapis.com/x"), Code::EndpointRefused, "endpoint"),
            (s("").replace(FCM, ""), Code::EndpointRefused, "endpoint"),
            (s("").replace(&format!("\"{FCM}\""), "7"), Code::EndpointRefused, "endpoint"),
            (s("").replace(FCM, "https://example.com/x"), Code::EndpointRefused, "endpoint"),
            (format!(r#"{{"endpoint":"{FCM}"}}"#), Code::MissingField, "keys"),
            (keys("null"), Code::MissingField, "keys"),
            (keys("[]"), Code::InvalidField, "keys"),
            (keys(&format!(r#"{{"auth":"{AUTH}"}}"#)), Code::MissingField, "keys.p256dh"),
            (keys(&format!(r#"{{"p256dh":"{POINT}"}}"#)), Code::MissingField, "keys.auth"),
            (s("").replace(POINT, &not_on_curve), Code::InvalidField, "keys.p256dh"),
            (s("").replace(POINT, &compressed), Code::InvalidField, "keys.p256dh"),
            (s("").replace(POINT, ""), Code::InvalidField, "keys.p256dh"),
            (s("").replace(&format!("\"{POINT}\""), "1"), Code::InvalidField, "keys.p256dh"),
            (s("").replace(AUTH, "AAAA"), Code::InvalidField, "keys.auth"),
            (s("").replace(AUTH, "BTBZMqHH6r4Tts7J_aSIggA"), Code::InvalidField, "keys.auth"),
            (s("").replace(&format!("\"{AUTH}\""), "{}"), Code::InvalidField, "keys.auth"),
            (s(r#","contentEncoding":"gzip""#), Code::InvalidField, "contentEncoding"),
            (s(r#","contentEncoding":1"#), Code::InvalidField, "contentEncoding"),
            (s(&format!(r#","applicationServerKey":"{OTHER_POINT}""#)), Code::InvalidField, "applicationServerKey"),
            (s(r#","applicationServerKey":"AAAA""#), Code::InvalidField, "applicationServerKey"),
            (s(r#","ref":1.5"#), Code::InvalidField, "ref"),
            (s(r#","ref":99999999999999999999"#), Code::InvalidField, "ref"),
            (s(r#","ref":true"#), Code::InvalidField, "ref"),
            (s(&format!(r#","ref":"{}""#, "a".repeat(65))), Code::InvalidField, "ref"),
            (s(r#","attributes":[]"#), Code::InvalidField, "attributes"),
            (s(r#","attributes":{"a":{}}"#), Code::InvalidField, "attributes.a"),
        ] {
            if s == "null" {
                assert_eq!(bad(r#"{"op":"send","to":{"subscription":null}}"#), (Code::MissingField, "to".to_owned()));
            } else {
                assert_eq!(bad_s(&s), (code, field.to_owned()), "{s}");
            }
        }
    }

    #[test]
    fn each_of_a_list_is_judged_by_itself() {
        let other = s_at("https://web.push.apple.com/b", r#","ref":2"#);
        let no_auth = s_at("https://web.push.apple.com/c", r#","ref":"three""#).replace(AUTH, "");
        let list = [s(r#","ref":1"#), "null".to_owned(), other, no_auth, s(r#","ref":5"#), "[]".to_owned()].join(",");
        let Request::Send(send) = good(&format!(r#"{{"op":"send","to":{{"subscriptions":[{list}]}}}}"#)) else {
            panic!("a send")
        };
        let To::Subscriptions(judged) = send.to else { panic!("subscriptions") };
        let good: Vec<_> = judged.good.iter().map(|recipient| recipient.reference.clone()).collect();
        assert_eq!(good, [Some(Reference::Integer(1)), Some(Reference::Integer(2))], "an endpoint is sent once: the first one");
        let rejected: Vec<_> = judged
            .rejected
            .iter()
            .map(|rejected| (rejected.index, rejected.problem.code, rejected.problem.field.as_deref().unwrap_or_default()))
            .collect();
        assert_eq!(
            rejected,
            [
                (1, Code::InvalidField, "to.subscriptions[1]"),
                (3, Code::InvalidField, "to.subscriptions[3].keys.auth"),
                (5, Code::InvalidField, "to.subscriptions[5]"),
            ]
        );
        assert_eq!(judged.rejected[1].reference, Some(Reference::Text("three".to_owned())));
        let none = format!(r#"{{"op":"send","to":{{"subscriptions":[{},7]}}}}"#, s("").replace("https:", "http:"));
        assert_eq!(bad(&none), (Code::EndpointRefused, "to.subscriptions[0].endpoint".to_owned()));
    }

    #[test]
    fn attributes() {
        let of = |attributes: &str| {
            let line = format!(
                r#"{{"op":"add","message_id":"{ULID}","subscriptions":[{}]}}"#,
                s(&format!(r#","attributes":{attributes}"#))
            );
            match good(&line) {
                Request::Add(mut add) if add.subscriptions.rejected.is_empty() => add.subscriptions.good.remove(0).attributes,
                other => panic!("{other:?}"),
            }
        };
        let one = |json: &str| of(&format!(r#"{{"a":{json}}}"#)).expect("attributes")["a"].to_string();
        for (given, kept) in [
            (r#""x\u017c\/\n""#, r#""xż/\n""#),
            (r#""""#, r#""""#),
            ("true", "true"),
            ("false", "false"),
            ("1", "1"),
            ("1.0", "1"),
            ("10e-1", "1"),
            ("-0", "0"),
            ("-0.0", "0"),
            ("0e5", "0"),
            ("1E2", "100"),
            ("-1.50", "-1.5"),
            ("15e-1", "1.5"),
            ("0.1", "0.1"),
            ("1e16", "10000000000000000"),
            ("10000000000000000", "10000000000000000"),
            ("12345678901234567890123", "12345678901234567890123"),
            ("1e-7", "0.0000001"),
        ] {
            assert_eq!(one(given), kept, "{given}");
            assert_eq!(one(kept), kept);
            serde_json::from_str::<serde_json::Value>(kept).expect("JSON");
        }
        assert_eq!(of("null"), None);
        assert_eq!(of(r#"{"b":1,"a":"x","c":null}"#).as_deref(), Some(&attributes_of([("a", r#""x""#), ("b", "1")])));
        assert_eq!(of(r#"{}"#).as_deref(), Some(&Attributes::new()));

        let many = |n: usize| format!("{{{}}}", (0..n).map(|n| format!(r#""{n}":1"#)).collect::<Vec<_>>().join(","));
        assert_eq!(of(&many(ATTRIBUTES_MAX)).expect("attributes").len(), ATTRIBUTES_MAX);
        // Name, two quotes, text.
        let long = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 3));
        of(&long(ATTRIBUTES_BYTES_MAX));
        of(&format!(r#"{{"{}":1}}"#, "n".repeat(NAME_MAX)));
        for (attributes, field) in [
            ("[]".to_owned(), "attributes".to_owned()),
            ("\"x\"".to_owned(), "attributes".to_owned()),
            (r#"{"lang":["pl"]}"#.to_owned(), "attributes.lang".to_owned()),
            (r#"{"lang":{}}"#.to_owned(), "attributes.lang".to_owned()),
            (r#"{"n":1e999}"#.to_owned(), "attributes.n".to_owned()),
            (format!(r#"{{"n":1{}}}"#, "0".repeat(400)), "attributes.n".to_owned()),
            (r#"{"":1}"#.to_owned(), "attributes.".to_owned()),
            (format!(r#"{{"{}":1}}"#, "n".repeat(NAME_MAX + 1)), format!("attributes.{}…", "n".repeat(64))),
            (many(ATTRIBUTES_MAX + 1), "attributes".to_owned()),
            (long(ATTRIBUTES_BYTES_MAX + 1), "attributes".to_owned()),
        ] {
            assert_eq!(bad_s(&s(&format!(r#","attributes":{attributes}"#))), (Code::InvalidField, field), "{attributes:.80}");
        }
    }
}
