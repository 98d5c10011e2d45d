//! One record of a file, whatever shape its application gave it -> the request that hands it in.
//!
//! Promises: what is wrong with a record by itself is found here, so that `--dry-run` names what an import would name; what is
//! written is a request in the form of the protocol. What only the daemon knows (its apps, its push services, its accounts)
//! is for the daemon to judge. A problem's message never repeats a key or an endpoint.

use std::borrow::Cow;
use std::collections::BTreeSet;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::endpoint::{EndpointPolicy, EndpointProblem, Policy};
use crate::limits::{
    ACCOUNT_MAX, ATTRIBUTES_BYTES_MAX, ATTRIBUTES_MAX, NAME_MAX, NAMES_MAX, REFERENCE_MAX, SUBSCRIPTION_NAME_MAX,
};
use crate::message::UnixMillis;
use crate::protocol::json::{Members, Value, read_line, write_compact, write_string};
use crate::protocol::keys::{PointProblem, decode_exactly, decode_point};
use crate::protocol::request::{Code, Problem};
use crate::protocol::time::parse_time;

/// Names of members that are remembered as left out; more than anybody reads.
const LEFT_OUT_MAX: usize = 64;

/// Turns records into requests.
pub struct Records {
    /// Whose they are, whatever they say.
    app: Option<String>,
    endpoints: EndpointPolicy,
    now: UnixMillis,
    /// Members that are of no use here: told in the end, for one of them may be a misspelt one.
    pub left_out: BTreeSet<String>,
}

/// A record's requests: lines without their newlines.
#[derive(Debug, PartialEq, Eq)]
pub struct Requests {
    pub kind: Kind,
    pub line: Vec<u8>,
    /// To be sent when `line` was taken: what `subscribe` itself cannot say.
    pub then: Option<Switch>,
}

/// A request that switches a subscription on or off.
#[derive(Debug, PartialEq, Eq)]
pub struct Switch {
    /// What is new is on already.
    pub on: bool,
    pub line: Vec<u8>,
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Subscribe,
    Account,
    /// Switches on or off what was subscribed.
    Switch,
}

impl Records {
    /// `app` wins over what records say; `now` is what expirations are compared with.
    pub fn new(app: Option<String>, now: UnixMillis) -> Records {
        Records { app, endpoints: EndpointPolicy::new(Policy::Public, Vec::new()), now, left_out: BTreeSet::new() }
    }

    /// Whether a CSV header with these columns can hold subscriptions.
    pub fn names_subscriptions<'n>(mut columns: impl Iterator<Item = &'n str>) -> bool {
        columns.any(|name| matches!(slot(name), Some((Slot::Subscription | Slot::Endpoint, _))))
    }

    /// The requests of one record.
    pub fn requests(&mut self, record: &Members<'_>) -> Result<Requests, Problem> {
        let outer = Found::of(record);
        self.remember(&outer);
        let tree = outer.get(Slot::Subscription).map(|value| object(value, "subscription")).transpose()?;
        let inner = tree.as_ref().map(|tree| Found::of(tree.members()));
        // What stands in the subscription itself comes first, then what stands beside it.
        let found = |slot: Slot| inner.as_ref().and_then(|inner| inner.get(slot)).or_else(|| outer.get(slot));
        if inner.is_none() && found(Slot::Endpoint).is_none() {
            if outer.get(Slot::Account).is_some() && outer.get(Slot::Enabled).is_some() {
                return self.account(&outer);
            }
            return Err(missing("subscription"));
        }

        let mut line = Vec::with_capacity(512);
        line.extend_from_slice(b"{\"op\":\"subscribe\",\"subscription\":{\"endpoint\":");
        let endpoint = text(found(Slot::Endpoint).ok_or_else(|| missing("subscription.endpoint"))?, "subscription.endpoint")?;
        let id = self.subscription_id(endpoint)?;
        write_string(endpoint, &mut line);
        if let Some(value) = found(Slot::Expiration) {
            line.extend_from_slice(format!(",\"expirationTime\":{}", self.expiration(value)?).as_bytes());
        }

        let tree = found(Slot::Keys).map(|value| object(value, "subscription.keys")).transpose()?;
        let keys = tree.as_ref().map(|tree| Found::of(tree.members()));
        let key = |slot: Slot| keys.as_ref().and_then(|keys| keys.get(slot)).or_else(|| found(slot));
        let (p256dh, auth) = ("subscription.keys.p256dh", "subscription.keys.auth");
        let point = text(key(Slot::P256dh).ok_or_else(|| missing(p256dh))?, p256dh)?;
        decode_point(point).map_err(|problem| bad_point(p256dh, problem))?;
        let secret = text(key(Slot::Auth).ok_or_else(|| missing(auth))?, auth)?;
        decode_exactly::<16>(secret).ok_or_else(|| invalid(auth, "must be 16 bytes in base64url"))?;
        line.extend_from_slice(b",\"keys\":{\"p256dh\":");
        write_string(point, &mut line);
        line.extend_from_slice(b",\"auth\":");
        write_string(secret, &mut line);
        line.push(b'}');

        if let Some(value) = found(Slot::Encoding) {
            const FIELD: &str = "subscription.contentEncoding";
            match text(value, FIELD)? {
                // The default.
                "aes128gcm" => {}
                "aesgcm" => line.extend_from_slice(b",\"contentEncoding\":\"aesgcm\""),
                _ => return Err(invalid(FIELD, "must be aes128gcm or aesgcm")),
            }
        }
        if let Some(value) = found(Slot::ServerKey) {
            const FIELD: &str = "subscription.applicationServerKey";
            let key = text(value, FIELD)?;
            decode_point(key).map_err(|problem| bad_point(FIELD, problem))?;
            line.extend_from_slice(b",\"applicationServerKey\":");
            write_string(key, &mut line);
        }
        if let Some(value) = found(Slot::Reference) {
            write_reference(value, &mut line)?;
        }
        line.push(b'}');

        self.write_app(&outer, &mut line)?;
        for (slot, name, max) in [
            (Slot::Account, "account", ACCOUNT_MAX),
            (Slot::Name, "name", SUBSCRIPTION_NAME_MAX),
            // The daemon cuts what is too long.
            (Slot::UserAgent, "user_agent", usize::MAX),
            (Slot::Replaces, "replaces", usize::MAX),
        ] {
            if let Some(value) = outer.get(slot) {
                write_member(name, &short_text(value, name, max)?, &mut line);
            }
        }
        for (slot, name) in [(Slot::Scopes, "scopes"), (Slot::Tags, "tags")] {
            if let Some(value) = outer.get(slot) {
                write_names(value, name, &mut line)?;
            }
        }
        // Those of the subscription itself count where there are no others.
        let beside = outer.get(Slot::Attributes).is_some() || !outer.attributes.is_empty();
        write_attributes(inner.as_ref().filter(|_| !beside).unwrap_or(&outer), &mut line)?;
        line.push(b'}');

        let enabled = outer.get(Slot::Enabled).map(|value| boolean(value, "enabled")).transpose()?;
        let then = enabled.map(|on| Switch {
            on,
            line: format!(r#"{{"op":"update_subscription","subscription_id":"{id}","enabled":{on}}}"#).into_bytes(),
        });
        Ok(Requests { kind: Kind::Subscribe, line, then })
    }

    /// An account without a browser: a record of what is switched on or off.
    fn account(&self, record: &Found<'_>) -> Result<Requests, Problem> {
        let (Some(account), Some(enabled)) = (record.get(Slot::Account), record.get(Slot::Enabled)) else {
            return Err(missing("account"));
        };
        let mut line = b"{\"op\":\"account\"".to_vec();
        write_member("account", &short_text(account, "account", ACCOUNT_MAX)?, &mut line);
        self.write_app(record, &mut line)?;
        line.extend_from_slice(format!(",\"enabled\":{}}}", boolean(enabled, "enabled")?).as_bytes());
        Ok(Requests { kind: Kind::Account, line, then: None })
    }

    fn write_app(&self, record: &Found<'_>, line: &mut Vec<u8>) -> Result<(), Problem> {
        match (&self.app, record.get(Slot::App)) {
            (Some(app), _) => write_member("app", app, line),
            (None, Some(value)) => write_member("app", text(value, "app")?, line),
            (None, None) => {}
        }
        Ok(())
    }

    /// The id by which the daemon knows the endpoint, which is checked on the way.
    fn subscription_id(&self, endpoint: &str) -> Result<String, Problem> {
        let id = |endpoint: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest(endpoint)[..12]);
        match self.endpoints.check(endpoint) {
            Ok((checked, _)) => Ok(id(checked.as_str().as_bytes())),
            // `endpoints.allow_hosts` may name it.
            Err(EndpointProblem::NotPublic) => Ok(id(endpoint.as_bytes())),
            Err(problem) => Err(Problem {
                code: Code::EndpointRefused,
                field: Some("subscription.endpoint".to_owned()),
                message: problem.to_string(),
            }),
        }
    }

    /// Milliseconds since 1970; a time as databases write it is taken too.
    fn expiration(&self, value: &Value<'_>) -> Result<u64, Problem> {
        const FIELD: &str = "subscription.expirationTime";
        let number =
            |digits: &str| digits.parse().ok().filter(|millis: &f64| millis.is_finite()).map(|millis| millis.max(0.0) as u64);
        let millis = match value {
            Value::Number(digits) => number(digits),
            Value::Text(text) => number(text).or_else(|| parse_time(text).map(|time| time.0)),
            _ => None,
        };
        match millis {
            None => Err(invalid(FIELD, "must be milliseconds since 1970, or a time as in RFC 3339")),
            Some(millis) if millis <= self.now.0 => Err(invalid(FIELD, "lies in the past: the subscription has expired")),
            Some(millis) => Ok(millis),
        }
    }

    fn remember(&mut self, record: &Found<'_>) {
        for name in &record.unknown {
            if self.left_out.len() < LEFT_OUT_MAX && !self.left_out.contains(*name) {
                self.left_out.insert((*name).to_owned());
            }
        }
    }
}

/// What a member can mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Subscription,
    Endpoint,
    Keys,
    P256dh,
    Auth,
    Expiration,
    Encoding,
    ServerKey,
    Reference,
    App,
    Account,
    Name,
    UserAgent,
    Scopes,
    Tags,
    Attributes,
    Replaces,
    Enabled,
}

const SLOTS: usize = Slot::Enabled as usize + 1;

/// What a member of this name means; the protocol's own name (0) wins over what others call it.
fn slot(name: &str) -> Option<(Slot, u8)> {
    Some(match name {
        "subscription" => (Slot::Subscription, 0),
        "endpoint" => (Slot::Endpoint, 0),
        "keys" => (Slot::Keys, 0),
        "p256dh" => (Slot::P256dh, 0),
        "auth" => (Slot::Auth, 0),
        "expirationTime" => (Slot::Expiration, 0),
        "contentEncoding" => (Slot::Encoding, 0),
        "applicationServerKey" => (Slot::ServerKey, 0),
        "ref" => (Slot::Reference, 0),
        "app" => (Slot::App, 0),
        "account" => (Slot::Account, 0),
        "name" => (Slot::Name, 0),
        "user_agent" => (Slot::UserAgent, 0),
        "scopes" => (Slot::Scopes, 0),
        "tags" => (Slot::Tags, 0),
        "attributes" => (Slot::Attributes, 0),
        "replaces" => (Slot::Replaces, 0),
        "enabled" => (Slot::Enabled, 0),
        // pywebpush's name, and those of columns that hold the browser's object as JSON.
        "subscription_info" | "push_subscription" | "pushSubscription" | "subscriptionInfo" | "subscription_json" => {
            (Slot::Subscription, 1)
        }
        // django-push-notifications
        "registration_id" => (Slot::Endpoint, 1),
        // Flattened objects; Laravel's `push_subscriptions`; Rails columns.
        "keys.p256dh" | "keys_p256dh" | "keysP256dh" | "p256dh_key" | "p256dhKey" | "key_p256dh" | "public_key" | "publicKey" => {
            (Slot::P256dh, 1)
        }
        "keys.auth" | "keys_auth" | "keysAuth" | "auth_key" | "authKey" | "key_auth" | "auth_token" | "authToken"
        | "auth_secret" | "authSecret" => (Slot::Auth, 1),
        "expiration_time" | "expires_at" | "expiration" => (Slot::Expiration, 1),
        "content_encoding" => (Slot::Encoding, 1),
        "application_server_key" | "vapid_public_key" => (Slot::ServerKey, 1),
        "user_id" | "userId" | "userID" | "account_id" | "accountId" | "uid" => (Slot::Account, 1),
        // Laravel: the other half, `subscribable_type`, is nearly always the same class.
        "subscribable_id" => (Slot::Account, 2),
        "user" => (Slot::Account, 3),
        "userAgent" => (Slot::UserAgent, 1),
        "active" => (Slot::Enabled, 1),
        _ => return None,
    })
}

/// A record's members by their meaning.
struct Found<'v> {
    slots: [Option<(u8, &'v Value<'v>)>; SLOTS],
    /// `attributes.NAME`.
    attributes: Vec<(&'v str, &'v Value<'v>)>,
    unknown: Vec<&'v str>,
}

impl<'v> Found<'v> {
    fn of(members: &'v Members<'v>) -> Found<'v> {
        let mut found = Found { slots: [None; SLOTS], attributes: Vec::new(), unknown: Vec::new() };
        for (name, value) in members {
            match slot(name) {
                // A `user` that is an object is no account.
                Some((Slot::Account, 3)) if matches!(value, Value::Object(_)) => found.unknown.push(name),
                Some((slot, rank)) => {
                    let place = &mut found.slots[slot as usize];
                    if !is_empty(value) && place.is_none_or(|(other, _)| rank < other) {
                        *place = Some((rank, value));
                    }
                }
                None => match name.strip_prefix("attributes.") {
                    Some(attribute) if !is_empty(value) => found.attributes.push((attribute, value)),
                    Some(_) => {}
                    None if is_told_by_export(name) => {}
                    None => found.unknown.push(name),
                },
            }
        }
        found
    }

    fn get(&self, slot: Slot) -> Option<&'v Value<'v>> {
        self.slots[slot as usize].map(|(_, value)| value)
    }
}

/// An empty cell says nothing, like null.
fn is_empty(value: &Value<'_>) -> bool {
    match value {
        Value::Null => true,
        Value::Text(text) => text.is_empty(),
        _ => false,
    }
}

/// What the registry tells and makes anew.
fn is_told_by_export(name: &str) -> bool {
    matches!(name, "created" | "seen" | "key" | "valid" | "service" | "subscription_id" | "last_failure" | "reason")
}

/// An object, or the text of one: databases keep a browser's subscription in either form.
enum Tree<'v> {
    There(&'v Members<'v>),
    Parsed(Members<'v>),
}

impl Tree<'_> {
    fn members(&self) -> &Members<'_> {
        match self {
            Tree::There(members) => members,
            Tree::Parsed(members) => members,
        }
    }
}

fn object<'v>(value: &'v Value<'v>, field: &str) -> Result<Tree<'v>, Problem> {
    match value {
        Value::Object(members) => Ok(Tree::There(members)),
        Value::Text(text) => match read_line(text).members {
            Ok(members) => Ok(Tree::Parsed(members)),
            Err(_) => Err(invalid(field, "must be an object, or the JSON of one")),
        },
        _ => Err(invalid(field, "must be an object")),
    }
}

fn text<'v>(value: &'v Value<'_>, field: &str) -> Result<&'v str, Problem> {
    match value {
        Value::Text(text) => Ok(text),
        _ => Err(invalid(field, "must be a string")),
    }
}

/// Text; the number of a database's row is taken as its digits.
fn short_text<'v>(value: &'v Value<'_>, field: &str, max: usize) -> Result<Cow<'v, str>, Problem> {
    let text = match value {
        Value::Text(text) => Cow::Borrowed(text.as_ref()),
        Value::Number(digits) => Cow::Borrowed(*digits),
        _ => return Err(invalid(field, "must be a string")),
    };
    if text.len() > max { Err(invalid(field, format!("must be at most {max} bytes long"))) } else { Ok(text) }
}

fn boolean(value: &Value<'_>, field: &str) -> Result<bool, Problem> {
    match value {
        Value::Bool(on) => Ok(*on),
        Value::Number("1") => Ok(true),
        Value::Number("0") => Ok(false),
        Value::Text(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "1" | "yes" => Ok(true),
            "false" | "f" | "0" | "no" => Ok(false),
            _ => Err(invalid(field, "must be true or false")),
        },
        _ => Err(invalid(field, "must be true or false")),
    }
}

/// Tags or scopes: an array of strings, the JSON of one, or words between semicolons.
fn write_names(value: &Value<'_>, field: &str, line: &mut Vec<u8>) -> Result<(), Problem> {
    let names: Vec<&str> = match value {
        Value::Text(text) if text.trim_start().starts_with('[') => {
            // The reader of lines reads objects.
            let wrapped = format!("{{\"\":{text}}}");
            let members = read_line(&wrapped).members.unwrap_or_default();
            return match members.as_slice() {
                [(_, array @ Value::Array(_))] => write_names(array, field, line),
                _ => Err(invalid(field, "must be a JSON array, or words with `;` between them")),
            };
        }
        Value::Text(text) => text.split(';').map(str::trim).filter(|name| !name.is_empty()).collect(),
        Value::Array(items) => items.iter().map(|item| text(item, field)).collect::<Result<_, _>>()?,
        _ => return Err(invalid(field, "must be an array of strings")),
    };
    if names.len() > NAMES_MAX {
        return Err(invalid(field, format!("must hold at most {NAMES_MAX}")));
    }
    if !names.iter().all(|name| (1..=NAME_MAX).contains(&name.len())) {
        return Err(invalid(field, format!("must hold names of 1 to {NAME_MAX} bytes")));
    }
    line.extend_from_slice(format!(",\"{field}\":[").as_bytes());
    for (place, name) in names.iter().enumerate() {
        if place > 0 {
            line.push(b',');
        }
        write_string(name, line);
    }
    line.push(b']');
    Ok(())
}

/// An object or the JSON of one, and members `attributes.NAME`, which win.
fn write_attributes(record: &Found<'_>, line: &mut Vec<u8>) -> Result<(), Problem> {
    const FIELD: &str = "attributes";
    let tree = record.get(Slot::Attributes).map(|value| object(value, FIELD)).transpose()?;
    if tree.is_none() && record.attributes.is_empty() {
        return Ok(());
    }
    let whole = tree.as_ref().map(|tree| tree.members().as_slice()).unwrap_or_default();
    let own = |name: &str| record.attributes.iter().any(|(other, _)| *other == name);
    let all = whole.iter().map(|(name, value)| (name.as_ref(), value)).filter(|(name, _)| !own(name));
    let all = all.chain(record.attributes.iter().copied());
    line.extend_from_slice(b",\"attributes\":{");
    let (from, mut count) = (line.len(), 0);
    for (name, value) in all {
        if matches!(value, Value::Array(_) | Value::Object(_)) {
            return Err(invalid(format!("{FIELD}.{name}"), "must be a string, a number or a boolean"));
        }
        if !(1..=NAME_MAX).contains(&name.len()) {
            return Err(invalid(FIELD, format!("must have names of 1 to {NAME_MAX} bytes")));
        }
        if count > 0 {
            line.push(b',');
        }
        count += 1;
        write_string(name, line);
        line.push(b':');
        write_compact(value, line);
    }
    if count > ATTRIBUTES_MAX || line.len() - from > ATTRIBUTES_BYTES_MAX + 8 * ATTRIBUTES_MAX {
        let message = format!("must be at most {ATTRIBUTES_MAX}, together at most {ATTRIBUTES_BYTES_MAX} bytes");
        return Err(invalid(FIELD, message));
    }
    line.push(b'}');
    Ok(())
}

/// The application's own name for a subscription: text or an integer.
fn write_reference(value: &Value<'_>, line: &mut Vec<u8>) -> Result<(), Problem> {
    const FIELD: &str = "subscription.ref";
    match value {
        Value::Text(text) if text.len() <= REFERENCE_MAX => {}
        Value::Number(digits) if digits.parse::<i64>().is_ok() => {}
        _ => return Err(invalid(FIELD, format!("must be a string of at most {REFERENCE_MAX} bytes, or an integer"))),
    }
    line.extend_from_slice(b",\"ref\":");
    write_compact(value, line);
    Ok(())
}

fn write_member(name: &str, value: &str, line: &mut Vec<u8>) {
    line.extend_from_slice(b",\"");
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\":");
    write_string(value, line);
}

fn missing(field: &str) -> Problem {
    Problem { code: Code::MissingField, field: Some(field.to_owned()), message: "is missing".to_owned() }
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem { code: Code::InvalidField, field: Some(field.into()), message: message.into() }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8291 section 5.
    const POINT: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";
    const FCM: &str = "https://fcm.googleapis.com/fcm/send/x";
    const NOW: UnixMillis = UnixMillis(1_795_343_400_000);

    fn read(text: &str) -> Result<Requests, Problem> {
        let text = text.replace("POINT", POINT).replace("AUTH", AUTH).replace("FCM", FCM);
        let members = read_line(&text).members.unwrap_or_else(|bad| panic!("{text}: {bad:?}"));
        Records::new(None, NOW).requests(&members)
    }

    fn line(text: &str) -> String {
        let requests = read(text).unwrap_or_else(|problem| panic!("{text}: {problem:?}"));
        String::from_utf8(requests.line).expect("UTF-8")
    }

    fn bad(text: &str) -> (Code, String) {
        let problem = read(text).expect_err(text);
        assert!(!problem.message.contains(AUTH) && !problem.message.contains("/fcm/send"), "{problem:?}");
        (problem.code, problem.field.unwrap_or_default())
    }

    #[test]
    fn every_shape_gives_the_same_request() {
        let expected = format!(
            r#"{{"op":"subscribe","subscription":{{"endpoint":"{FCM}","keys":{{"p256dh":"{POINT}","auth":"{AUTH}"}}}},"account":"7"}}"#
        );
        for text in [
            r#"{"subscription":{"endpoint":"FCM","expirationTime":null,"keys":{"p256dh":"POINT","auth":"AUTH"}},"account":"7"}"#,
            r#"{"subscription":{"endpoint":"FCM","keys":{"p256dh":"POINT","auth":"AUTH"}},"userId":7}"#,
            r#"{"endpoint":"FCM","expirationTime":null,"keys":{"auth":"AUTH","p256dh":"POINT"},"user_id":"7"}"#,
            r#"{"endpoint":"FCM","p256dh":"POINT","auth":"AUTH","user":7}"#,
            r#"{"endpoint":"FCM","keys.p256dh":"POINT","keys_auth":"AUTH","account":"7","userId":"8"}"#,
            r#"{"id":1,"subscribable_type":"App\\User","subscribable_id":7,"endpoint":"FCM","public_key":"POINT","auth_token":"AUTH","content_encoding":"aes128gcm"}"#,
            r#"{"registration_id":"FCM","p256dh":"POINT","auth":"AUTH","active":true,"user":7}"#,
            r#"{"subscription":"{\"endpoint\":\"FCM\",\"keys\":{\"p256dh\":\"POINT\",\"auth\":\"AUTH\"}}","account":7}"#,
            r#"{"endpoint":"FCM","keys":"{\"p256dh\":\"POINT\",\"auth\":\"AUTH\"}","account":"7","name":"","scopes":null}"#,
            r#"{"subscription_info":{"endpoint":"FCM","keys":{"p256dh":"POINT","auth":"AUTH"}},"account":"7"}"#,
        ] {
            assert_eq!(line(text), expected, "{text}");
        }
    }

    #[test]
    fn what_belongs_to_a_subscription_comes_along() {
        let text = line(
            r#"{"subscription":{"endpoint":"FCM","expirationTime":1795343400001.5,"keys":{"p256dh":"POINT","auth":"AUTH"},"contentEncoding":"aesgcm","applicationServerKey":"POINT"},
               "app":"shop","account":"ż","name":"Phone","user_agent":"Mozilla","scopes":[],"tags":["a","b"],"attributes":{"lang":"pl","age":42},"attributes.lang":"de",
               "replaces":"https://old.example/1","created":"2026-01-01T00:00:00Z","seen":null,"enabled":true}"#,
        );
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            value,
            serde_json::json!({"op": "subscribe", "subscription": {"endpoint": FCM, "expirationTime": 1_795_343_400_001_u64,
                "keys": {"p256dh": POINT, "auth": AUTH}, "contentEncoding": "aesgcm", "applicationServerKey": POINT},
                "app": "shop", "account": "ż", "name": "Phone", "user_agent": "Mozilla", "scopes": [], "tags": ["a", "b"],
                "attributes": {"age": 42, "lang": "de"}, "replaces": "https://old.example/1"})
        );
    }

    #[test]
    fn cells_hold_lists_and_objects() {
        let of = |more: &str| line(&format!(r#"{{"endpoint":"FCM","p256dh":"POINT","auth":"AUTH",{more}}}"#));
        for tags in [r#""tags":"a; b;""#, r#""tags":"[\"a\",\"b\"]""#, r#""tags":["a","b"]"#] {
            assert!(of(tags).ends_with(r#","tags":["a","b"]}"#), "{tags}");
        }
        assert!(of(r#""scopes":"[]""#).ends_with(r#","scopes":[]}"#));
        assert!(of(r#""attributes":"{\"n\":1}","attributes.x":"y""#).ends_with(r#","attributes":{"n":1,"x":"y"}}"#));
    }

    #[test]
    fn what_is_switched_on_or_off_is_so_after() {
        let then = |enabled: &str| {
            let own = r#""endpoint":"HTTPS://fcm.GoogleAPIs.com:443/x","p256dh":"POINT","auth":"AUTH""#;
            read(&format!("{{{own}{enabled}}}")).expect("good").then
        };
        let id = BASE64_URL_SAFE_NO_PAD.encode(&Sha256::digest("https://fcm.googleapis.com/x")[..12]);
        for (enabled, on) in [(r#","enabled":"f""#, false), (r#","enabled":true"#, true), (r#","active":"1""#, true)] {
            let line = format!(r#"{{"op":"update_subscription","subscription_id":"{id}","enabled":{on}}}"#);
            assert_eq!(then(enabled), Some(Switch { on, line: line.into_bytes() }), "{enabled}");
        }
        assert_eq!(then(""), None);

        let account = read(r#"{"account":"anna","app":"shop","enabled":false}"#).expect("good");
        assert_eq!(account.kind, Kind::Account);
        assert_eq!(account.line, br#"{"op":"account","account":"anna","app":"shop","enabled":false}"#);
    }

    #[test]
    fn problems_name_the_field() {
        let s = |endpoint: &str, p256dh: &str, auth: &str| {
            bad(&format!(r#"{{"endpoint":"{endpoint}","keys":{{"p256dh":"{p256dh}","auth":"{auth}"}}}}"#))
        };
        assert_eq!(bad(r#"{"id":7}"#), (Code::MissingField, "subscription".to_owned()));
        assert_eq!(bad(r#"{"subscription":{}}"#), (Code::MissingField, "subscription.endpoint".to_owned()));
        assert_eq!(bad(r#"{"subscription":"{"}"#), (Code::InvalidField, "subscription".to_owned()));
        assert_eq!(s("http://x", POINT, AUTH), (Code::EndpointRefused, "subscription.endpoint".to_owned()));
        assert_eq!(s("", POINT, AUTH), (Code::MissingField, "subscription".to_owned()));
        assert_eq!(s(FCM, &POINT[1..], AUTH), (Code::InvalidField, "subscription.keys.p256dh".to_owned()));
        let off = POINT.replace("iw4", "iw8");
        assert_eq!(s(FCM, &off, AUTH), (Code::InvalidField, "subscription.keys.p256dh".to_owned()));
        assert_eq!(s(FCM, POINT, &AUTH[..20]), (Code::InvalidField, "subscription.keys.auth".to_owned()));
        assert_eq!(s(FCM, POINT, ""), (Code::MissingField, "subscription.keys.auth".to_owned()));
        let with = |more: &str| bad(&format!(r#"{{"endpoint":"FCM","p256dh":"POINT","auth":"AUTH",{more}}}"#));
        for (more, field) in [
            (r#""expirationTime":1"#, "subscription.expirationTime"),
            (r#""expirationTime":"soon""#, "subscription.expirationTime"),
            (r#""content_encoding":"gzip""#, "subscription.contentEncoding"),
            (r#""applicationServerKey":"x""#, "subscription.applicationServerKey"),
            (r#""account":{}"#, "account"),
            (r#""tags":{}"#, "tags"),
            (r#""tags":"[1""#, "tags"),
            (r#""tags":[1]"#, "tags"),
            (r#""attributes":"x""#, "attributes"),
            (r#""attributes":{"a":[]}"#, "attributes.a"),
            (r#""enabled":"perhaps""#, "enabled"),
        ] {
            assert_eq!(with(more), (Code::InvalidField, field.to_owned()), "{more}");
        }
        let long = "x".repeat(ACCOUNT_MAX + 1);
        assert_eq!(with(&format!(r#""account":"{long}""#)), (Code::InvalidField, "account".to_owned()));
    }

    #[test]
    fn an_app_that_was_named_wins() {
        let text = format!(r#"{{"endpoint":"{FCM}","p256dh":"{POINT}","auth":"{AUTH}","app":"old","tag":"x"}}"#);
        let mut records = Records::new(Some("new".to_owned()), NOW);
        let requests = records.requests(&read_line(&text).members.expect("JSON")).expect("good");
        assert!(requests.line.ends_with(br#","app":"new"}"#));
        assert_eq!(records.left_out.into_iter().collect::<Vec<_>>(), ["tag"], "a misspelt member is told");
    }
}
