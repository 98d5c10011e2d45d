//! What is sent: the payload fields of `send`, `test` and `confirm` -> a [`Payload`].

use bytes::Bytes;
use url::Url;

use super::fields::{boolean, invalid, missing, pick, text};
use crate::limits::{PAYLOAD_MAX, RECEIPT_CHARS};
use crate::message::ContentType;
use crate::protocol::json::{Members, Value, write_compact, write_string};
use crate::protocol::keys::decode;
use crate::protocol::request::{Code, Payload, Problem};
use crate::template::{self, TemplateError};

/// The names of the payload fields, in the order in which [`payload`] takes them.
pub(super) const FIELDS: [&str; 5] = ["payload", "payload_base64", "notification", "app_badge", "mutable"];

/// What makes the body another one for each recipient.
#[derive(Clone, Copy, Default)]
pub(super) struct Personal {
    pub receipts: bool,
    pub template: bool,
}

/// At most one of `payload`, `payload_base64` and `notification`, as it is sent; none of them is an empty body.
pub(super) fn payload(
    [payload, payload_base64, notification, app_badge, mutable]: [Option<&Value<'_>>; 5],
    personal: Personal,
) -> Result<Payload, Problem> {
    const ONE: &str = "at most one of payload, payload_base64 and notification can be given";
    const BASE64: &str = "payload_base64";
    if notification.is_none() {
        for (field, value) in [("app_badge", app_badge), ("mutable", mutable)] {
            if value.is_some() {
                return Err(invalid(field, "can only stand beside notification"));
            }
        }
    }
    match (payload, payload_base64, notification) {
        (Some(_), Some(_), _) => return Err(invalid(BASE64, ONE)),
        (None, Some(_), Some(_)) | (Some(_), None, Some(_)) => return Err(invalid("notification", ONE)),
        _ => {}
    }
    if !matches!((payload, notification), (Some(Value::Object(_)), None) | (None, Some(_))) {
        for (field, asked) in [("receipts", personal.receipts), ("template", personal.template)] {
            if asked {
                return Err(invalid(field, "needs a notification, or a payload that is an object"));
            }
        }
    }
    let mut body = Vec::new();
    let (field, receipt_at) = match (payload, payload_base64, notification) {
        (Some(Value::Text(text)), ..) => {
            if text.len() <= PAYLOAD_MAX {
                body.extend_from_slice(text.as_bytes());
            } else {
                return Err(too_large("payload", text.len()));
            }
            ("payload", None)
        }
        (Some(value @ (Value::Object(_) | Value::Array(_))), ..) => {
            body.reserve(256);
            let receipt_at = match value {
                Value::Object(members) if personal.receipts => Some(write_with_receipt(members, "payload", &mut body)?),
                _ => {
                    write_compact(value, &mut body);
                    None
                }
            };
            ("payload", receipt_at)
        }
        (Some(_), ..) => return Err(invalid("payload", "must be a string, an object or an array")),
        (None, Some(value), _) => {
            body = decode(text(value, BASE64)?).ok_or_else(|| invalid(BASE64, "must be base64 or base64url"))?;
            (BASE64, None)
        }
        (None, None, Some(value)) => {
            body.reserve(256);
            ("notification", declarative(value, app_badge, mutable, personal.receipts, &mut body)?)
        }
        (None, None, None) => return Ok(Payload::opaque(Bytes::new())),
    };
    if body.len() > PAYLOAD_MAX {
        return Err(too_large(field, body.len()));
    }
    let payload = Payload {
        content_type: if notification.is_some() { ContentType::Notification } else { ContentType::Opaque },
        body: Bytes::from(body),
        template: personal.template,
        receipt_at: receipt_at.map(|at| u16::try_from(at).expect("it lies in the body, whose length was compared")),
    };
    if payload.template {
        check_template(&payload)?;
    }
    Ok(payload)
}

/// Whether a template can be sent as it is with its defaults.
fn check_template(payload: &Payload) -> Result<(), Problem> {
    template::check(&payload.body, payload.receipt_at).map_err(|error| {
        let code = match error {
            TemplateError::Malformed(_) => Code::InvalidField,
            TemplateError::TooLong { .. } => Code::PayloadTooLarge,
        };
        Problem { code, field: Some("template".to_owned()), message: error.to_string() }
    })
}

fn too_large(field: &str, length: usize) -> Problem {
    Problem {
        code: Code::PayloadTooLarge,
        field: Some(field.to_owned()),
        message: format!("a payload has at most {PAYLOAD_MAX} bytes, this one has {length}"),
    }
}

/// Writes an object with a `receipt` behind its other members; `place` is its path. Returns where the receipt begins.
fn write_with_receipt(members: &Members<'_>, place: &str, out: &mut Vec<u8>) -> Result<usize, Problem> {
    out.push(b'{');
    for (name, member) in members {
        if name == "receipt" {
            return Err(invalid(format!("{place}.receipt"), "is where the receipt will stand: it cannot be given"));
        }
        write_member(name, member, out);
    }
    let at = write_receipt(out);
    out.push(b'}');
    Ok(at)
}

/// Writes a notification whose `data` has a receipt.
fn write_notification_with_receipt(members: &Members<'_>, out: &mut Vec<u8>) -> Result<usize, Problem> {
    const DATA: &str = "notification.data";
    let mut at = None;
    out.push(b'{');
    for (name, member) in members {
        match member {
            _ if name != "data" => write_member(name, member, out),
            // What it is when it is not given.
            Value::Null => {}
            Value::Object(data) => {
                out.extend_from_slice(b"\"data\":");
                at = Some(write_with_receipt(data, DATA, out)?);
                out.push(b',');
            }
            _ => return Err(invalid(DATA, "must be an object, because the receipt is put into it")),
        }
    }
    let at = match at {
        Some(at) => at,
        None => {
            out.extend_from_slice(b"\"data\":{");
            let at = write_receipt(out);
            out.extend_from_slice(b"},");
            at
        }
    };
    // In place of the last comma.
    out.pop();
    out.push(b'}');
    Ok(at)
}

fn write_member(name: &str, member: &Value<'_>, out: &mut Vec<u8>) {
    write_string(name, out);
    out.push(b':');
    write_compact(member, out);
    out.push(b',');
}

/// The member that each recipient's receipt is put into: zeros so far.
fn write_receipt(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(b"\"receipt\":\"");
    let at = out.len();
    out.resize(at + RECEIPT_CHARS, b'0');
    out.push(b'"');
    at
}

/// Declarative Web Push (docs/push-services.md 2.5): `app_badge` and `mutable` are members of the outer object.
fn declarative(
    value: &Value<'_>,
    app_badge: Option<&Value<'_>>,
    mutable: Option<&Value<'_>>,
    receipt: bool,
    body: &mut Vec<u8>,
) -> Result<Option<usize>, Problem> {
    /// An `unsigned long long` that must survive a JSON reader made of doubles.
    const BADGE_MAX: u64 = (1 << 53) - 1;
    let Value::Object(members) = value else { return Err(invalid("notification", "must be an object")) };
    let [title, navigate] = pick(members, ["title", "navigate"]);
    text(title.ok_or_else(|| missing("notification.title"))?, "notification.title")?;
    let navigate = text(navigate.ok_or_else(|| missing("notification.navigate"))?, "notification.navigate")?;
    if Url::parse(navigate).is_err() {
        return Err(invalid("notification.navigate", "must be an absolute URL"));
    }
    body.extend_from_slice(b"{\"web_push\":8030,\"notification\":");
    let receipt_at = if receipt {
        Some(write_notification_with_receipt(members, body)?)
    } else {
        write_compact(value, body);
        None
    };
    if let Some(value) = app_badge {
        let badge = match value {
            Value::Number(digits) => digits.parse::<u64>().ok().filter(|badge| *badge <= BADGE_MAX),
            _ => None,
        };
        let badge = badge.ok_or_else(|| invalid("app_badge", "must be an integer from 0 to 9007199254740991"))?;
        body.extend_from_slice(format!(",\"app_badge\":{badge}").as_bytes());
    }
    if let Some(value) = mutable {
        let mutable = boolean(value, "mutable")?;
        body.extend_from_slice(format!(",\"mutable\":{mutable}").as_bytes());
    }
    body.push(b'}');
    Ok(receipt_at)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn bodies() {
        let body = |more: &str| String::from_utf8(sent(&format!(",{more}")).payload.body.to_vec()).expect("text");
        assert_eq!(body(r#""payload":"plain \u017c""#), "plain ż");
        assert_eq!(body(r#""payload":"""#), "");
        assert_eq!(body(r#""payload":{"b" : [1.0, 1E2,null] , "a":"\u017c\/"}"#), r#"{"b":[1.0,1E2,null],"a":"ż/"}"#);
        assert_eq!(body(r#""payload":[ 1e999 ]"#), "[1e999]");
        for encoded in [r"-_-_", r"+/+/"] {
            assert_eq!(sent(&format!(r#","payload_base64":"{encoded}""#)).payload.body, &[0xfb, 0xff, 0xbf][..]);
        }
        assert_eq!(body(r#""payload_base64":"YQ==""#), "a");
        assert_eq!(body(r#""payload_base64":"YQ""#), "a");
        assert_eq!(sent(r#","payload":"x""#).payload.content_type, ContentType::Opaque);
        all_bad(
            Code::InvalidField,
            &[
                (r#""payload":1"#, "payload"),
                (r#""payload":true"#, "payload"),
                (r#""payload_base64":"Y""#, "payload_base64"),
                (r#""payload_base64":"a b""#, "payload_base64"),
                (r#""payload_base64":1"#, "payload_base64"),
                (r#""payload":"a","payload_base64":"YQ""#, "payload_base64"),
                (r#""payload":"a","notification":{"title":"t","navigate":"https://e.com/"}"#, "notification"),
                (r#""payload_base64":"YQ","notification":{"title":"t","navigate":"https://e.com/"}"#, "notification"),
            ],
        );
        let sized = |length: usize| line(&format!(r#","payload":"{}""#, "a".repeat(length)));
        good(&sized(PAYLOAD_MAX));
        assert_eq!(bad(&sized(PAYLOAD_MAX + 1)), (Code::PayloadTooLarge, "payload".to_owned()));
        let array = |length: usize| line(&format!(r#","payload":["{}"]"#, "a".repeat(length - 4)));
        good(&array(PAYLOAD_MAX));
        assert_eq!(bad(&array(PAYLOAD_MAX + 1)), (Code::PayloadTooLarge, "payload".to_owned()));
        let encoded = |length: usize| line(&format!(r#","payload_base64":"{}""#, STANDARD.encode(vec![0; length])));
        good(&encoded(PAYLOAD_MAX));
        assert_eq!(bad(&encoded(PAYLOAD_MAX + 1)), (Code::PayloadTooLarge, "payload_base64".to_owned()));
    }

    #[test]
    fn notifications() {
        let n = r#""notification":{"title": "t","body":"ż","navigate":"https://e.com/a","data":{"x":null}}"#;
        let send = sent(&format!(r#",{n},"mutable":true,"app_badge":3"#));
        assert_eq!(send.payload.content_type, ContentType::Notification);
        assert_eq!(
            std::str::from_utf8(&send.payload.body),
            Ok(
                r#"{"web_push":8030,"notification":{"title":"t","body":"ż","navigate":"https://e.com/a","data":{"x":null}},"app_badge":3,"mutable":true}"#
            )
        );
        assert!(!sent(&format!(",{n}")).payload.body.ends_with(b"true}"));
        all_bad(
            Code::InvalidField,
            &[
                (r#""notification":"t""#, "notification"),
                (r#""notification":{"title":1,"navigate":"https://e.com/"}"#, "notification.title"),
                (r#""notification":{"title":"t","navigate":"/a"}"#, "notification.navigate"),
                (r#""notification":{"title":"t","navigate":7}"#, "notification.navigate"),
                (&format!(r#"{n},"app_badge":-1"#), "app_badge"),
                (&format!(r#"{n},"app_badge":1.5"#), "app_badge"),
                (&format!(r#"{n},"app_badge":9007199254740992"#), "app_badge"),
                (&format!(r#"{n},"app_badge":true"#), "app_badge"),
                (&format!(r#"{n},"mutable":1"#), "mutable"),
                (r#""app_badge":1"#, "app_badge"),
                (r#""payload":"x","mutable":true"#, "mutable"),
            ],
        );
        all_bad(
            Code::MissingField,
            &[
                (r#""notification":{"navigate":"https://e.com/"}"#, "notification.title"),
                (r#""notification":{"title":"t"}"#, "notification.navigate"),
                (r#""notification":{"title":null,"navigate":"https://e.com/"}"#, "notification.title"),
                (r#""notification":{"web_push":8030,"notification":{}}"#, "notification.title"),
            ],
        );
        let long = line(&format!(r#","notification":{{"title":"{}","navigate":"https://e.com/"}}"#, "a".repeat(PAYLOAD_MAX)));
        assert_eq!(bad(&long), (Code::PayloadTooLarge, "notification".to_owned()));
    }

    #[test]
    fn receipts() {
        let zeros = "0".repeat(RECEIPT_CHARS);
        let filled = |more: &str| {
            let payload = sent(&format!(r#","receipts":true,{more}"#)).payload;
            let text = String::from_utf8(payload.body.to_vec()).expect("text");
            let at = usize::from(payload.receipt_at.expect("a place"));
            assert_eq!(&text[at..at + RECEIPT_CHARS], zeros, "{text}");
            // Only there: else the place of another one could be told.
            assert_eq!(&text[at - 1..at], "\"");
            assert_eq!(&text[at + RECEIPT_CHARS..=at + RECEIPT_CHARS], "\"");
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
            format!("{}R{}", &text[..at], &text[at + RECEIPT_CHARS..])
        };
        assert_eq!(filled(r#""payload":{}"#), r#"{"receipt":"R"}"#);
        assert_eq!(filled(r#""payload":{ "b" : "\u017c" ,"a":{"receipt":1}}"#), r#"{"b":"ż","a":{"receipt":1},"receipt":"R"}"#);
        assert_eq!(filled(&format!(r#""payload":{{"a":"{zeros}"}}"#)), format!(r#"{{"a":"{zeros}","receipt":"R"}}"#));
        for (notification, expected) in [
            (
                r#"{"title":"t","navigate":"https://e.com/"}"#,
                r#"{"title":"t","navigate":"https://e.com/","data":{"receipt":"R"}}"#,
            ),
            (
                r#"{"title":"t","data":null,"navigate":"https://e.com/"}"#,
                r#"{"title":"t","navigate":"https://e.com/","data":{"receipt":"R"}}"#,
            ),
            (
                r#"{"data":{},"title":"t","navigate":"https://e.com/"}"#,
                r#"{"data":{"receipt":"R"},"title":"t","navigate":"https://e.com/"}"#,
            ),
            (
                r#"{"title":"t","navigate":"https://e.com/","data":{"x":[null]}}"#,
                r#"{"title":"t","navigate":"https://e.com/","data":{"x":[null],"receipt":"R"}}"#,
            ),
        ] {
            assert_eq!(
                filled(&format!(r#""notification":{notification},"mutable":false"#)),
                format!(r#"{{"web_push":8030,"notification":{expected},"mutable":false}}"#)
            );
        }
        assert_eq!(sent(r#","receipts":false,"payload":"x""#).payload.receipt_at, None);
        let n =
            |data: &str| format!(r#""receipts":true,"notification":{{"title":"t","navigate":"https://e.com/","data":{data}}}"#);
        all_bad(
            Code::InvalidField,
            &[
                (r#""receipts":true"#, "receipts"),
                (r#""receipts":true,"payload":"x""#, "receipts"),
                (r#""receipts":true,"payload":[{}]"#, "receipts"),
                (r#""receipts":true,"payload_base64":"YQ""#, "receipts"),
                (r#""receipts":true,"payload":{"receipt":null}"#, "payload.receipt"),
                (&n("7"), "notification.data"),
                (&n("[]"), "notification.data"),
                (&n(r#""x""#), "notification.data"),
                (&n(r#"{"receipt":"x"}"#), "notification.data.receipt"),
                (r#""receipts":"yes","payload":{}"#, "receipts"),
            ],
        );
        // {"a":"…","receipt":"…"}
        let room = PAYLOAD_MAX - r#"{"a":"","receipt":""}"#.len() - RECEIPT_CHARS;
        let sized = |length: usize| line(&format!(r#","receipts":true,"payload":{{"a":"{}"}}"#, "a".repeat(length)));
        good(&sized(room));
        assert_eq!(bad(&sized(room + 1)), (Code::PayloadTooLarge, "payload".to_owned()));
    }

    #[test]
    fn templates() {
        let payload = |more: &str| sent(&format!(r#","template":true,{more}"#)).payload;
        let of_object = payload(r#""payload":{"a":"{{name|friend}}"}"#);
        assert_eq!(
            (of_object.template, of_object.receipt_at, &of_object.body[..]),
            (true, None, &br#"{"a":"{{name|friend}}"}"#[..])
        );
        assert!(payload(r#""notification":{"title":"{{name}}","navigate":"https://e.com/"}"#).template);
        let both = payload(r#""receipts":true,"payload":{"a":"{{name}}"}"#);
        assert_eq!((both.template, both.receipt_at), (true, Some(r#"{"a":"{{name}}","receipt":""#.len() as u16)));
        assert!(!sent(r#","payload":{},"template":false"#).payload.template);
        all_bad(
            Code::InvalidField,
            &[
                (r#""template":true"#, "template"),
                (r#""template":true,"payload":"{{name}}""#, "template"),
                (r#""template":true,"payload":[]"#, "template"),
                (r#""template":true,"payload_base64":"YQ""#, "template"),
                (r#""template":1,"payload":{}"#, "template"),
            ],
        );
    }
}
