//! One line of the protocol -> a checked [`Request`] (DESIGN 3, 3.1 and 3.2).
//!
//! Promises: any bytes give a request or one [`Problem`] that names the field, never a panic; the `id` comes back with both
//! wherever it could be read; what is in a request needs no further check of its form. A problem's message never repeats a
//! key, an endpoint or a payload.
//!
//! The operations of the registry are not known here yet: they are `unknown_op`, and what belongs to them in `send` is
//! `unknown_field`.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use url::Url;

use super::json::{Members, Value, read_line, write_compact};
use super::keys::{PointProblem, decode, decode_exactly, decode_point};
use super::reply::parse_time;
use super::request::{
    Add, After, By, Code, EventType, Events, Problem, Rejected, Request, RequestId, Send, State, Step, Subscriptions, Target, To,
};
use crate::config;
use crate::endpoint::EndpointPolicy;
use crate::limits::{
    ACCOUNT_MAX, COMMIT_RECIPIENTS_MAX, IDEMPOTENCY_KEY_MAX, LABEL_MAX, PAYLOAD_MAX, POSITION_MAX, REFERENCE_MAX, REQUEST_ID_MAX,
    TOPIC_MAX,
};
use crate::message::{ContentType, Encoding, KeyId, MessageId, Recipient, Reference, SubscriptionId, UnixMillis, Urgency};

/// What the lines of one socket are judged by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The apps of this socket, each with its VAPID keys.
    pub apps: BTreeMap<Arc<str>, Vec<KeyId>>,
    /// The app of a request that names none: the socket's only one, else "default".
    pub default_app: Option<Arc<str>>,
    pub policy: Arc<EndpointPolicy>,
    pub messages: config::Messages,
}

impl Rules {
    /// `apps` are those of the socket.
    pub fn new(apps: BTreeMap<Arc<str>, Vec<KeyId>>, policy: Arc<EndpointPolicy>, messages: config::Messages) -> Rules {
        let mut names = apps.keys();
        let default_app = match (names.next(), names.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => apps.get_key_value("default").map(|(name, _)| name.clone()),
        };
        Rules { apps, default_app, policy, messages }
    }
}

/// Reads and checks one line, given without its newline; `now` is the time of acceptance.
pub fn parse(line: &[u8], rules: &Rules, now: UnixMillis) -> (RequestId, Result<Request, Problem>) {
    let (text, cut) = match std::str::from_utf8(line) {
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
    match text(op.ok_or_else(|| missing("op"))?, "op")? {
        "send" => send(members, rules, now),
        "add" => add(members, rules, now),
        "close" => {
            let [message_id, position, previous] = arguments(members, ["message_id", "position", "previous"])?;
            Ok(Request::Close { message_id: required_message_id(message_id)?, step: step(position, previous)? })
        }
        "status" => {
            let [message_id] = arguments(members, ["message_id"])?;
            Ok(Request::Status { message_id: required_message_id(message_id)? })
        }
        "cancel" => Ok(Request::Cancel(target(arguments(members, ["message_id", "label", "app"])?, rules)?)),
        "pause" => Ok(Request::Pause(target(arguments(members, ["message_id", "label", "app"])?, rules)?)),
        "resume" => {
            let [message_id, label, app, rate] = arguments(members, ["message_id", "label", "app", "rate"])?;
            let target = target([message_id, label, app], rules)?;
            Ok(Request::Resume { target, rate: rate.map(|value| above_zero(value, "rate")).transpose()? })
        }
        "list_messages" => list_messages(members),
        "events" => events(members, rules),
        "stats" => stats(members),
        "origins" => arguments(members, []).map(|[]| Request::Origins),
        "vapid_public_key" => {
            let [app] = arguments(members, ["app"])?;
            Ok(Request::VapidPublicKey { app: app_or_default(app, rules)? })
        }
        "ping" => arguments(members, []).map(|[]| Request::Ping),
        "drain" => {
            let [on] = arguments(members, ["on"])?;
            Ok(Request::Drain { on: on.map_or(Ok(true), |value| boolean(value, "on"))? })
        }
        _ => Err(Problem {
            code: Code::UnknownOp,
            field: Some("op".to_owned()),
            message: "must be one of send, add, close, status, cancel, pause, resume, list_messages, events, stats, origins, \
                      vapid_public_key, ping, drain"
                .to_owned(),
        }),
    }
}

fn send(members: &Members<'_>, rules: &Rules, now: UnixMillis) -> Result<Request, Problem> {
    let [
        to,
        payload,
        payload_base64,
        notification,
        app_badge,
        mutable,
        ttl,
        urgency,
        topic,
        app,
        idempotency_key,
        at,
        paused,
        label,
        reference,
        rate,
        spread,
    ] = arguments(
        members,
        [
            "to",
            "payload",
            "payload_base64",
            "notification",
            "app_badge",
            "mutable",
            "ttl",
            "urgency",
            "topic",
            "app",
            "idempotency_key",
            "at",
            "paused",
            "label",
            "ref",
            "rate",
            "spread",
        ],
    )?;
    let to = to.ok_or_else(|| missing("to"))?;
    let app = app_or_default(app, rules)?;
    let ttl = ttl.map_or(Ok(rules.messages.ttl_default), |value| seconds_to_live(value, rules))?;
    let urgency = match urgency {
        Some(value) => Urgency::parse(text(value, "urgency")?)
            .ok_or_else(|| invalid("urgency", "must be one of very-low, low, normal, high"))?,
        None => Urgency::Normal,
    };
    let idempotency_key = match idempotency_key {
        Some(value) => Some(bounded(value, "idempotency_key", 1, IDEMPOTENCY_KEY_MAX)?.to_owned()),
        None => None,
    };
    let spread = match spread {
        Some(value) => {
            let spread = above_zero(value, "spread")?;
            if spread > f64::from(ttl) {
                return Err(invalid("spread", format!("must be at most the ttl, {ttl} seconds")));
            }
            Some(spread)
        }
        None => None,
    };
    let (content_type, body) = body(payload, payload_base64, notification, app_badge, mutable)?;
    let mut send = Send {
        to: To::Stream,
        content_type,
        body,
        ttl,
        urgency,
        topic: topic.map(checked_topic).transpose()?,
        fingerprint: if idempotency_key.is_some() { fingerprint(members) } else { [0; 16] },
        idempotency_key,
        at: at.map(|value| not_before(value, rules, now)).transpose()?,
        paused: paused.map_or(Ok(false), |value| boolean(value, "paused"))?,
        label: label.map(|value| bounded(value, "label", 1, LABEL_MAX)).transpose()?.map(Arc::from),
        reference: reference.map(|value| bounded(value, "ref", 1, LABEL_MAX)).transpose()?.map(Arc::from),
        rate: rate.map(|value| above_zero(value, "rate")).transpose()?,
        spread,
        app,
    };
    // Last, because it is the dearest.
    send.to = recipients(to, &Judge { rules, app: Some(&send.app), now })?;
    Ok(Request::Send(Box::new(send)))
}

fn add(members: &Members<'_>, rules: &Rules, now: UnixMillis) -> Result<Request, Problem> {
    let [message_id, subscriptions, position, previous] =
        arguments(members, ["message_id", "subscriptions", "position", "previous"])?;
    let message_id = required_message_id(message_id)?;
    let step = step(position, previous)?;
    let subscriptions = subscriptions.ok_or_else(|| missing("subscriptions"))?;
    let subscriptions = Judge { rules, app: None, now }.list(subscriptions, "subscriptions")?;
    Ok(Request::Add(Add { message_id, subscriptions, step }))
}

fn list_messages(members: &Members<'_>) -> Result<Request, Problem> {
    const LIMIT_DEFAULT: u32 = 100;
    const LIMIT_MAX: u32 = 1_000;
    const STATES: [State; 5] = [State::Scheduled, State::Sending, State::Paused, State::Done, State::Cancelled];
    let [state, label, limit, after] = arguments(members, ["state", "label", "limit", "after"])?;
    Ok(Request::ListMessages {
        state: match state {
            Some(value) => {
                let word = text(value, "state")?;
                let state = STATES.into_iter().find(|state| state.as_str() == word);
                Some(state.ok_or_else(|| invalid("state", "must be one of scheduled, sending, paused, done, cancelled"))?)
            }
            None => None,
        },
        label: label.map(|value| bounded(value, "label", 1, LABEL_MAX)).transpose()?.map(str::to_owned),
        limit: limit.map_or(Ok(LIMIT_DEFAULT), |value| count(value, "limit", LIMIT_MAX))?,
        after: after.map(|value| bounded(value, "after", 1, CURSOR_MAX)).transpose()?.map(str::to_owned),
    })
}

fn events(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [after, limit, follow, types, app, label, message_id, account, subscription_id] =
        arguments(members, ["after", "limit", "follow", "types", "app", "label", "message_id", "account", "subscription_id"])?;
    Ok(Request::Events(Events {
        after: match after {
            Some(value) => match bounded(value, "after", 1, CURSOR_MAX)? {
                "oldest" => After::Oldest,
                "newest" => After::Newest,
                cursor => After::Cursor(cursor.to_owned()),
            },
            None => After::Oldest,
        },
        limit: limit.map(|value| count(value, "limit", u32::MAX)).transpose()?,
        follow: follow.map_or(Ok(false), |value| boolean(value, "follow"))?,
        types: types
            .map(|value| {
                words(
                    value,
                    "types",
                    "must be one of gone, refused, expired, cancelled, skipped, accepted, unreachable, shown, clicked, dismissed",
                    EventType::parse,
                )
            })
            .transpose()?,
        app: app.map(|value| named_app(value, rules)).transpose()?,
        label: label.map(|value| bounded(value, "label", 1, LABEL_MAX)).transpose()?.map(str::to_owned),
        message_id: message_id.map(checked_message_id).transpose()?,
        account: account.map(|value| bounded(value, "account", 1, ACCOUNT_MAX)).transpose()?.map(str::to_owned),
        subscription_id: match subscription_id {
            Some(value) => Some(
                decode_exactly(text(value, "subscription_id")?)
                    .map(SubscriptionId)
                    .ok_or_else(|| invalid("subscription_id", "must be 16 characters of base64url"))?,
            ),
            None => None,
        },
    }))
}

fn stats(members: &Members<'_>) -> Result<Request, Problem> {
    let [from, to, by] = arguments(members, ["from", "to", "by"])?;
    let from = from.map(|value| day(value, "from")).transpose()?;
    let to = to.map(|value| day(value, "to")).transpose()?;
    if let (Some(from), Some(to)) = (from, to)
        && from > to
    {
        return Err(invalid("from", "must not be later than to"));
    }
    let by = match by {
        Some(value) => words(value, "by", "must be one of day, label, app, service, key", |word| match word {
            "day" => Some(By::Day),
            "label" => Some(By::Label),
            "app" => Some(By::App),
            "service" => Some(By::Service),
            "key" => Some(By::Key),
            _ => None,
        })?,
        None => Vec::new(),
    };
    Ok(Request::Stats { from, to, by })
}

/// `to` of a `send`.
fn recipients(to: &Value<'_>, judge: &Judge<'_>) -> Result<To, Problem> {
    const ONE: &str = "must hold exactly one of subscription, subscriptions, stream";
    const LIST: &str = "to.subscriptions";
    let Value::Object(to) = to else { return Err(invalid("to", ONE)) };
    match fields(to, ["subscription", "subscriptions", "stream"]).map_err(|problem| within(problem, "to"))? {
        [None, None, None] => Err(Problem { message: ONE.to_owned(), ..missing("to") }),
        [Some(value), None, None] => {
            let recipient = judge.one(value).map_err(|problem| within(problem, "to.subscription"))?;
            Ok(To::Subscriptions(Subscriptions { good: vec![recipient], rejected: Vec::new() }))
        }
        [None, Some(value), None] => {
            let judged = judge.list(value, LIST)?;
            if !judged.good.is_empty() {
                return Ok(To::Subscriptions(judged));
            }
            Err(match judged.rejected.into_iter().next() {
                Some(first) => first.problem,
                None => invalid(LIST, "must not be empty"),
            })
        }
        [None, None, Some(Value::Bool(true))] => Ok(To::Stream),
        [None, None, Some(_)] => Err(invalid("to.stream", "must be true")),
        _ => Err(invalid("to", ONE)),
    }
}

/// What a browser's subscription is judged by.
struct Judge<'r> {
    rules: &'r Rules,
    /// None: any app of the socket. An `add` does not say its message's app.
    app: Option<&'r Arc<str>>,
    now: UnixMillis,
}

impl Judge<'_> {
    /// Each of an array by itself, an endpoint once; `place` is the array's path in the line.
    fn list(&self, value: &Value<'_>, place: &str) -> Result<Subscriptions, Problem> {
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
    fn one(&self, value: &Value<'_>) -> Result<Recipient, Problem> {
        let Value::Object(members) = value else {
            let message = "must be a browser's PushSubscription, an object".to_owned();
            return Err(Problem { code: Code::InvalidField, field: None, message });
        };
        // Members that we do not know are the browser's own business (DESIGN 3).
        let [endpoint, expiration, keys, encoding, server_key, own_reference, attributes] =
            pick(members, ["endpoint", "expirationTime", "keys", "contentEncoding", "applicationServerKey", "ref", "attributes"]);
        let reference = own_reference.map(reference).transpose()?;
        let endpoint = endpoint.ok_or_else(|| missing("endpoint"))?;
        let refused = |message: String| Problem { code: Code::EndpointRefused, field: Some("endpoint".to_owned()), message };
        let Value::Text(endpoint) = endpoint else { return Err(refused("an endpoint is a string".to_owned())) };
        let (endpoint, service) = self.rules.policy.check(endpoint).map_err(|problem| refused(problem.to_string()))?;

        let Value::Object(keys) = keys.ok_or_else(|| missing("keys"))? else {
            return Err(invalid("keys", "must be an object with p256dh and auth"));
        };
        let [p256dh, auth] = pick(keys, ["p256dh", "auth"]);
        let auth = text(auth.ok_or_else(|| missing("keys.auth"))?, "keys.auth")?;
        let auth = decode_exactly(auth).ok_or_else(|| invalid("keys.auth", "must be 16 bytes in base64url"))?;
        let p256dh = text(p256dh.ok_or_else(|| missing("keys.p256dh"))?, "keys.p256dh")?;
        let p256dh = decode_point(p256dh).map_err(|problem| bad_point("keys.p256dh", problem))?;

        if let Some(attributes) = attributes {
            scalars(attributes)?;
        }
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
        })
    }

    fn server_key(&self, value: &Value<'_>) -> Result<KeyId, Problem> {
        const FIELD: &str = "applicationServerKey";
        let point = decode_point(text(value, FIELD)?).map_err(|problem| bad_point(FIELD, problem))?;
        let hash = Sha256::digest(point);
        let mut id = KeyId([0; 8]);
        id.0.copy_from_slice(&hash[..8]);
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

/// Attributes are for templates: checked, not kept.
fn scalars(attributes: &Value<'_>) -> Result<(), Problem> {
    let Value::Object(attributes) = attributes else { return Err(invalid("attributes", "must be an object")) };
    match attributes.iter().find(|(_, value)| matches!(value, Value::Array(_) | Value::Object(_))) {
        Some((name, _)) => Err(invalid(format!("attributes.{}", shown(name)), "must be a string, a number or a boolean")),
        None => Ok(()),
    }
}

fn reference(value: &Value<'_>) -> Result<Reference, Problem> {
    match value {
        Value::Text(text) if text.len() <= REFERENCE_MAX => Ok(Reference::Text(text.as_ref().to_owned())),
        Value::Number(digits) if let Ok(integer) = digits.parse() => Ok(Reference::Integer(integer)),
        _ => Err(invalid("ref", format!("must be a string of at most {REFERENCE_MAX} bytes or an integer"))),
    }
}

fn body(
    payload: Option<&Value<'_>>,
    payload_base64: Option<&Value<'_>>,
    notification: Option<&Value<'_>>,
    app_badge: Option<&Value<'_>>,
    mutable: Option<&Value<'_>>,
) -> Result<(ContentType, Bytes), Problem> {
    const ONE: &str = "at most one of payload, payload_base64 and notification can be given";
    if notification.is_none() {
        for (field, value) in [("app_badge", app_badge), ("mutable", mutable)] {
            if value.is_some() {
                return Err(invalid(field, "can only stand beside notification"));
            }
        }
    }
    let too_large = |field: &str, length: usize| Problem {
        code: Code::PayloadTooLarge,
        field: Some(field.to_owned()),
        message: format!("a payload has at most {PAYLOAD_MAX} bytes, this one has {length}"),
    };
    let (field, content_type, body) = match (payload, payload_base64, notification) {
        (None, None, None) => return Ok((ContentType::Opaque, Bytes::new())),
        (Some(value), None, None) => {
            let body = match value {
                Value::Text(text) if text.len() > PAYLOAD_MAX => return Err(too_large("payload", text.len())),
                Value::Text(text) => text.as_bytes().to_vec(),
                Value::Object(_) | Value::Array(_) => {
                    let mut body = Vec::with_capacity(256);
                    write_compact(value, &mut body);
                    body
                }
                _ => return Err(invalid("payload", "must be a string, an object or an array")),
            };
            ("payload", ContentType::Opaque, body)
        }
        (None, Some(value), None) => {
            const FIELD: &str = "payload_base64";
            let body = decode(text(value, FIELD)?).ok_or_else(|| invalid(FIELD, "must be base64 or base64url"))?;
            (FIELD, ContentType::Opaque, body)
        }
        (None, None, Some(value)) => ("notification", ContentType::Notification, declarative(value, app_badge, mutable)?),
        (None, Some(_), Some(_)) => return Err(invalid("notification", ONE)),
        (Some(_), Some(_), _) => return Err(invalid("payload_base64", ONE)),
        (Some(_), None, Some(_)) => return Err(invalid("notification", ONE)),
    };
    if body.len() > PAYLOAD_MAX {
        return Err(too_large(field, body.len()));
    }
    Ok((content_type, Bytes::from(body)))
}

/// Declarative Web Push (PUSH-SERVICES 2.5): `app_badge` and `mutable` are members of the outer object.
fn declarative(value: &Value<'_>, app_badge: Option<&Value<'_>>, mutable: Option<&Value<'_>>) -> Result<Vec<u8>, Problem> {
    /// An `unsigned long long` that must survive a JSON reader made of doubles.
    const BADGE_MAX: u64 = (1 << 53) - 1;
    let Value::Object(members) = value else { return Err(invalid("notification", "must be an object")) };
    let [title, navigate] = pick(members, ["title", "navigate"]);
    text(title.ok_or_else(|| missing("notification.title"))?, "notification.title")?;
    let navigate = text(navigate.ok_or_else(|| missing("notification.navigate"))?, "notification.navigate")?;
    if Url::parse(navigate).is_err() {
        return Err(invalid("notification.navigate", "must be an absolute URL"));
    }
    let mut body = Vec::with_capacity(256);
    body.extend_from_slice(b"{\"web_push\":8030,\"notification\":");
    write_compact(value, &mut body);
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
    Ok(body)
}

fn seconds_to_live(value: &Value<'_>, rules: &Rules) -> Result<u32, Problem> {
    let max = rules.messages.ttl_max;
    let seconds = number(value, "ttl")?;
    let whole = seconds.trunc();
    if seconds < 0.0 || whole > f64::from(max) {
        return Err(invalid("ttl", format!("must be 0 to {max} seconds")));
    }
    Ok(whole as u32)
}

fn not_before(value: &Value<'_>, rules: &Rules, now: UnixMillis) -> Result<UnixMillis, Problem> {
    let at =
        parse_time(text(value, "at")?).ok_or_else(|| invalid("at", "must be a time as in RFC 3339, 2026-11-22T10:30:00Z"))?;
    let max = rules.messages.at_max;
    if u128::from(at.since(now)) > max.as_millis() {
        return Err(invalid("at", format!("must lie at most {} seconds ahead", max.as_secs())));
    }
    Ok(at)
}

/// RFC 8030 section 5.4.
fn checked_topic(value: &Value<'_>) -> Result<Arc<str>, Problem> {
    let topic = text(value, "topic")?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if topic.is_empty() || topic.len() > TOPIC_MAX || !topic.bytes().all(good) {
        return Err(invalid("topic", format!("must be 1 to {TOPIC_MAX} characters of base64url")));
    }
    Ok(Arc::from(topic))
}

fn app_or_default(value: Option<&Value<'_>>, rules: &Rules) -> Result<Arc<str>, Problem> {
    match value {
        Some(value) => named_app(value, rules),
        None => rules.default_app.clone().ok_or_else(|| Problem {
            message: "is needed, because this socket has several apps and none is called default".to_owned(),
            ..missing("app")
        }),
    }
}

fn named_app(value: &Value<'_>, rules: &Rules) -> Result<Arc<str>, Problem> {
    match rules.apps.get_key_value(text(value, "app")?) {
        Some((name, _)) => Ok(name.clone()),
        None => Err(invalid("app", "is no app of this socket")),
    }
}

fn target([message_id, label, app]: [Option<&Value<'_>>; 3], rules: &Rules) -> Result<Target, Problem> {
    const ONE: &str = "exactly one of message_id, label and app must be given";
    match (message_id, label, app) {
        (Some(value), None, None) => Ok(Target::Message(checked_message_id(value)?)),
        (None, Some(value), None) => Ok(Target::Label(Arc::from(bounded(value, "label", 1, LABEL_MAX)?))),
        (None, None, Some(value)) => Ok(Target::App(named_app(value, rules)?)),
        (None, None, None) => Err(Problem { message: ONE.to_owned(), ..missing("message_id") }),
        (Some(_), Some(_), _) => Err(invalid("label", ONE)),
        (_, _, Some(_)) => Err(invalid("app", ONE)),
    }
}

fn required_message_id(value: Option<&Value<'_>>) -> Result<MessageId, Problem> {
    checked_message_id(value.ok_or_else(|| missing("message_id"))?)
}

fn checked_message_id(value: &Value<'_>) -> Result<MessageId, Problem> {
    text(value, "message_id")?.parse().map_err(|_| invalid("message_id", "must be a message id, a ULID of 26 characters"))
}

fn step(position: Option<&Value<'_>>, previous: Option<&Value<'_>>) -> Result<Option<Step>, Problem> {
    let previous = previous.map(|value| scalar(value, "previous")).transpose()?;
    match position {
        Some(value) => Ok(Some(Step { position: scalar(value, "position")?, previous })),
        None if previous.is_some() => {
            Err(Problem { message: "is needed where previous is given".to_owned(), ..missing("position") })
        }
        None => Ok(None),
    }
}

/// Any JSON scalar, as compact JSON.
fn scalar(value: &Value<'_>, field: &str) -> Result<Box<str>, Problem> {
    if let Value::Array(_) | Value::Object(_) = value {
        return Err(invalid(field, "must be a string, a number or a boolean"));
    }
    let mut json = Vec::new();
    write_compact(value, &mut json);
    if json.len() > POSITION_MAX {
        return Err(invalid(field, format!("must be at most {POSITION_MAX} bytes long")));
    }
    let json = String::from_utf8(json).expect("compact JSON is made of strings");
    Ok(json.into_boxed_str())
}

/// One word or an array of different words.
fn words<T: PartialEq>(
    value: &Value<'_>,
    field: &str,
    choice: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Problem> {
    let Value::Array(items) = value else {
        return Ok(vec![parse(text(value, field)?).ok_or_else(|| invalid(field, choice))?]);
    };
    if items.is_empty() {
        return Err(invalid(field, "must not be empty"));
    }
    let mut found = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let wrong = |message: &str| invalid(format!("{field}[{index}]"), message);
        let Value::Text(word) = item else { return Err(wrong("must be a string")) };
        let word = parse(word).ok_or_else(|| wrong(choice))?;
        if found.contains(&word) {
            return Err(wrong("is given twice"));
        }
        found.push(word);
    }
    Ok(found)
}

/// A date, or a time, of which the day in UTC counts; as days since 1970-01-01.
fn day(value: &Value<'_>, field: &str) -> Result<u32, Problem> {
    const DAY_MILLIS: u64 = 24 * 60 * 60 * 1_000;
    let date = text(value, field)?;
    let time = if date.len() == "2026-11-22".len() { parse_time(&format!("{date}T00:00:00Z")) } else { parse_time(date) };
    time.and_then(|time| u32::try_from(time.0 / DAY_MILLIS).ok())
        .ok_or_else(|| invalid(field, "must be a date, 2026-11-22, or a time as in RFC 3339"))
}

/// Longest cursor that is looked at.
const CURSOR_MAX: usize = 128;

fn text<'v>(value: &'v Value<'_>, field: &str) -> Result<&'v str, Problem> {
    match value {
        Value::Text(text) => Ok(text),
        _ => Err(invalid(field, "must be a string")),
    }
}

fn bounded<'v>(value: &'v Value<'_>, field: &str, min: usize, max: usize) -> Result<&'v str, Problem> {
    let text = text(value, field)?;
    if (min..=max).contains(&text.len()) { Ok(text) } else { Err(invalid(field, format!("must be {min} to {max} bytes long"))) }
}

fn boolean(value: &Value<'_>, field: &str) -> Result<bool, Problem> {
    match value {
        Value::Bool(on) => Ok(*on),
        _ => Err(invalid(field, "must be true or false")),
    }
}

fn number(value: &Value<'_>, field: &str) -> Result<f64, Problem> {
    let number = match value {
        Value::Number(digits) => digits.parse().ok().filter(|number: &f64| number.is_finite()),
        _ => None,
    };
    number.ok_or_else(|| invalid(field, "must be a number"))
}

fn above_zero(value: &Value<'_>, field: &str) -> Result<f64, Problem> {
    let number = number(value, field)?;
    if number > 0.0 { Ok(number) } else { Err(invalid(field, "must be above 0")) }
}

fn count(value: &Value<'_>, field: &str, max: u32) -> Result<u32, Problem> {
    let number = match value {
        Value::Number(digits) => digits.parse().ok().filter(|number| (1..=max).contains(number)),
        _ => None,
    };
    number.ok_or_else(|| invalid(field, format!("must be an integer from 1 to {max}")))
}

/// The members called `names` of a request; null equals absent, `op` and `id` are every request's, another one is an error.
fn arguments<'v, 'a, const N: usize>(members: &'v Members<'a>, names: [&str; N]) -> Result<[Option<&'v Value<'a>>; N], Problem> {
    only(members, names, &["op", "id"])
}

/// The same for an object that is no request.
fn fields<'v, 'a, const N: usize>(members: &'v Members<'a>, names: [&str; N]) -> Result<[Option<&'v Value<'a>>; N], Problem> {
    only(members, names, &[])
}

fn only<'v, 'a, const N: usize>(
    members: &'v Members<'a>,
    names: [&str; N],
    others: &[&str],
) -> Result<[Option<&'v Value<'a>>; N], Problem> {
    let mut found = [None; N];
    for (name, value) in members {
        if let Some(n) = names.iter().position(|known| known == name) {
            found[n] = Some(value).filter(|value| **value != Value::Null);
        } else if *value != Value::Null && !others.contains(&name.as_ref()) {
            return Err(Problem { code: Code::UnknownField, field: Some(shown(name)), message: "is not known here".to_owned() });
        }
    }
    Ok(found)
}

/// The members called `names`, whatever else there is.
fn pick<'v, 'a, const N: usize>(members: &'v Members<'a>, names: [&str; N]) -> [Option<&'v Value<'a>>; N] {
    let mut found = [None; N];
    for (name, value) in members {
        if let Some(n) = names.iter().position(|known| known == name) {
            found[n] = Some(value).filter(|value| **value != Value::Null);
        }
    }
    found
}

/// A member's name as it may stand in an error: not longer than anybody reads.
fn shown(name: &str) -> String {
    const SHOWN_MAX: usize = 64;
    match name.char_indices().nth(SHOWN_MAX) {
        Some((cut, _)) => format!("{}…", &name[..cut]),
        None => name.to_owned(),
    }
}

/// First 16 bytes of the SHA-256 of all that a request asks for: every member but `id` and `idempotency_key`, in the order of their names,
/// with one spelling for each number and string.
fn fingerprint(members: &Members<'_>) -> [u8; 16] {
    let mut canonical = Vec::with_capacity(1_024);
    let own = |name: &str| !matches!(name, "id" | "idempotency_key");
    write_canonical_members(members, own, false, &mut canonical);
    let hash = Sha256::digest(&canonical);
    let mut first = [0; 16];
    first.copy_from_slice(&hash[..16]);
    first
}

/// `nulls`: a null is a member like any other, as it is inside what is sent; elsewhere it equals an absent one.
fn write_canonical_members(members: &Members<'_>, counts: impl Fn(&str) -> bool, nulls: bool, out: &mut Vec<u8>) {
    let mut sorted: Vec<_> = members.iter().filter(|(name, value)| counts(name) && (nulls || *value != Value::Null)).collect();
    sorted.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    out.push(b'{');
    write_length(sorted.len(), out);
    for (name, value) in sorted {
        write_canonical_text(name, out);
        let sent = nulls || matches!(name.as_ref(), "payload" | "notification");
        write_canonical(value, sent, out);
    }
}

fn write_canonical(value: &Value<'_>, nulls: bool, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.push(b'n'),
        Value::Bool(true) => out.push(b't'),
        Value::Bool(false) => out.push(b'f'),
        Value::Number(digits) => write_canonical_number(digits, out),
        Value::Text(text) => {
            out.push(b'"');
            write_canonical_text(text, out);
        }
        Value::Array(items) => {
            out.push(b'[');
            write_length(items.len(), out);
            for item in items {
                write_canonical(item, nulls, out);
            }
        }
        Value::Object(members) => write_canonical_members(members, |_| true, nulls, out),
    }
}

/// Integers by their digits, whatever their size (JSON allows no leading zeros); all others by the double they denote, and if that is an
/// integer a double holds exactly, by its digits.
fn write_canonical_number(digits: &str, out: &mut Vec<u8>) {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let text = |text: &str, out: &mut Vec<u8>| {
        out.push(b'i');
        write_canonical_text(text, out);
    };
    if !digits.contains(['.', 'e', 'E']) {
        return text(if digits == "-0" { "0" } else { digits }, out);
    }
    match digits.parse::<f64>() {
        Ok(number) if number.trunc() == number && number.abs() < EXACT => text(&format!("{}", number as i64), out),
        Ok(number) if number.is_finite() => {
            out.push(b'd');
            out.extend_from_slice(&number.to_bits().to_be_bytes());
        }
        _ => text(digits, out),
    }
}

fn write_canonical_text(text: &str, out: &mut Vec<u8>) {
    write_length(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}

fn write_length(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&(length as u64).to_be_bytes());
}

fn bad_json(message: String) -> Problem {
    Problem { code: Code::BadJson, field: None, message }
}

fn missing(field: &str) -> Problem {
    Problem { code: Code::MissingField, field: Some(field.to_owned()), message: "is missing".to_owned() }
}

fn invalid(field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem { code: Code::InvalidField, field: Some(field.into()), message: message.into() }
}

/// The same problem, its field named from one level further out.
fn within(problem: Problem, place: impl Display) -> Problem {
    let field = match problem.field {
        Some(field) => format!("{place}.{field}"),
        None => place.to_string(),
    };
    Problem { field: Some(field), ..problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Policy;
    use crate::message::Service;
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;
    use std::time::Duration;

    /// 2026-11-22T10:30:00Z
    const NOW: UnixMillis = UnixMillis(1_795_343_400_000);
    /// RFC 8291 section 5.
    const POINT: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
    /// RFC 8291 section 5, the other one.
    const OTHER_POINT: &str = "BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8";
    const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";
    const ULID: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
    const FCM: &str = "https://fcm.googleapis.com/fcm/send/x";

    fn key_id(point: &str) -> KeyId {
        KeyId(Sha256::digest(URL_SAFE_NO_PAD.decode(point).expect("a point"))[..8].try_into().expect("eight bytes"))
    }

    fn rules_of(apps: &[(&str, &str)]) -> Rules {
        let apps = apps.iter().map(|(name, point)| (Arc::from(*name), vec![key_id(point)])).collect();
        let messages = config::Messages {
            ttl_default: 2_419_200,
            ttl_max: 2_419_200,
            ttl0_patience: Duration::from_secs(5),
            retention: Duration::from_secs(604_800),
            at_max: Duration::from_secs(7_776_000),
            max_pending: 20_000_000,
        };
        Rules::new(apps, Arc::new(EndpointPolicy::new(Policy::Known, Vec::new())), messages)
    }

    fn rules() -> Rules {
        rules_of(&[("default", POINT), ("shop", OTHER_POINT)])
    }

    fn judged(line: &str) -> Result<Request, Problem> {
        parse(line.as_bytes(), &rules(), NOW).1
    }

    fn good(line: &str) -> Request {
        judged(line).unwrap_or_else(|problem| panic!("{line}: {problem:?}"))
    }

    fn bad(line: &str) -> (Code, String) {
        let problem = judged(line).err().unwrap_or_else(|| panic!("{line} is good"));
        assert!(
            !problem.message.is_empty() && !problem.message.contains(AUTH) && !problem.message.contains("/fcm/send"),
            "{problem:?}"
        );
        (problem.code, problem.field.unwrap_or_default())
    }

    /// A subscription with `endpoint`, and `more` members after a comma.
    fn s_at(endpoint: &str, more: &str) -> String {
        format!(r#"{{"endpoint":"{endpoint}","expirationTime":null,"keys":{{"p256dh":"{POINT}","auth":"{AUTH}"}}{more}}}"#)
    }

    fn s(more: &str) -> String {
        s_at(FCM, more)
    }

    /// A `send` to one subscription with `more` members.
    fn line(more: &str) -> String {
        format!(r#"{{"op":"send","to":{{"subscription":{}}}{more}}}"#, s(""))
    }

    fn sent(more: &str) -> Send {
        match good(&line(more)) {
            Request::Send(send) => *send,
            other => panic!("{other:?}"),
        }
    }

    fn recipient(s: &str) -> Recipient {
        match good(&format!(r#"{{"op":"send","to":{{"subscription":{s}}}}}"#)) {
            Request::Send(send) => match send.to {
                To::Subscriptions(mut judged) => judged.good.remove(0),
                To::Stream => panic!("a stream"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// What is wrong with one subscription, its field named from there.
    fn bad_s(s: &str) -> (Code, String) {
        let (code, field) = bad(&format!(r#"{{"op":"send","to":{{"subscription":{s}}}}}"#));
        (code, field.strip_prefix("to.subscription").expect("its place in the line").trim_start_matches('.').to_owned())
    }

    fn all_bad(code: Code, cases: &[(&str, &str)]) {
        for (more, field) in cases {
            assert_eq!(bad(&line(&format!(",{more}"))), (code, (*field).to_owned()), "{more}");
        }
    }

    fn id_of(line: &[u8]) -> Option<String> {
        parse(line, &rules(), NOW).0.map(String::from)
    }

    #[test]
    fn the_smallest_send() {
        let send = sent("");
        let To::Subscriptions(judged) = &send.to else { panic!("{send:?}") };
        assert_eq!((judged.good.len(), judged.rejected.len()), (1, 0));
        let recipient = &judged.good[0];
        assert_eq!((recipient.service, recipient.endpoint.as_str()), (Service::FCM, FCM));
        assert_eq!(URL_SAFE_NO_PAD.encode(recipient.p256dh), POINT);
        assert_eq!(URL_SAFE_NO_PAD.encode(recipient.auth), AUTH);
        assert_eq!((recipient.encoding, recipient.key, recipient.expiration), (Encoding::Aes128gcm, None, None));
        assert_eq!(
            (send.app.as_ref(), send.ttl, send.urgency, send.paused, send.content_type, send.body.len()),
            ("default", 2_419_200, Urgency::Normal, false, ContentType::Opaque, 0)
        );
        assert_eq!(
            (&send.topic, &send.at, &send.label, &send.reference, send.rate, send.spread),
            (&None, &None, &None, &None, None, None)
        );
        assert_eq!((send.idempotency_key, send.fingerprint), (None, [0; 16]));
    }

    #[test]
    fn all_options() {
        let send = sent(
            r#","payload":"ż","ttl":60.9,"urgency":"very-low","topic":"a_-9","app":"shop","idempotency_key":"k","at":"2026-11-22T11:30:01+01:00",
               "paused":true,"label":"news","ref":"42","rate":0.5,"spread":6e1"#,
        );
        assert_eq!(send.body, "ż".as_bytes());
        assert_eq!(
            (send.ttl, send.urgency, send.topic.as_deref(), send.app.as_ref()),
            (60, Urgency::VeryLow, Some("a_-9"), "shop")
        );
        assert_eq!((send.idempotency_key.as_deref(), send.at), (Some("k"), Some(UnixMillis(NOW.0 + 1_000))));
        assert_eq!((send.paused, send.label.as_deref(), send.reference.as_deref()), (true, Some("news"), Some("42")));
        assert_eq!((send.rate, send.spread), (Some(0.5), Some(60.0)));
        let nulls = sent(
            r#","payload":null,"payload_base64":null,"notification":null,"app_badge":null,"mutable":null,"ttl":null,"urgency":null,"topic":null,
               "app":null,"idempotency_key":null,"at":null,"paused":null,"label":null,"ref":null,"rate":null,"spread":null,"when":null"#,
        );
        assert_eq!(nulls, sent(""));
    }

    #[test]
    fn bad_options() {
        all_bad(
            Code::InvalidField,
            &[
                (r#""ttl":-1"#, "ttl"),
                (r#""ttl":-0.001"#, "ttl"),
                (r#""ttl":2419201"#, "ttl"),
                (r#""ttl":1e999"#, "ttl"),
                (r#""ttl":"60""#, "ttl"),
                (r#""ttl":true"#, "ttl"),
                (r#""urgency":"urgent""#, "urgency"),
                (r#""urgency":"High""#, "urgency"),
                (r#""urgency":1"#, "urgency"),
                (r#""topic":"""#, "topic"),
                (r#""topic":"a b""#, "topic"),
                (r#""topic":"a=""#, "topic"),
                (r#""topic":"ż""#, "topic"),
                (r#""topic":"123456789012345678901234567890123""#, "topic"),
                (r#""topic":7"#, "topic"),
                (r#""app":"nobody""#, "app"),
                (r#""app":"""#, "app"),
                (r#""app":1"#, "app"),
                (r#""idempotency_key":"""#, "idempotency_key"),
                (r#""idempotency_key":7"#, "idempotency_key"),
                (r#""at":"tomorrow""#, "at"),
                (r#""at":1795343400"#, "at"),
                (r#""at":"2026-11-22T10:30:00""#, "at"),
                (r#""at":"2027-02-20T10:30:00.001Z""#, "at"),
                (r#""paused":"yes""#, "paused"),
                (r#""paused":1"#, "paused"),
                (r#""label":"""#, "label"),
                (r#""label":["a"]"#, "label"),
                (r#""ref":7"#, "ref"),
                (r#""rate":0"#, "rate"),
                (r#""rate":-1"#, "rate"),
                (r#""rate":1e999"#, "rate"),
                (r#""rate":"1""#, "rate"),
                (r#""spread":0"#, "spread"),
                (r#""spread":61,"ttl":60"#, "spread"),
                (r#""spread":2419201"#, "spread"),
                (r#""spread":1,"ttl":0"#, "spread"),
            ],
        );
        for (field, max) in
            [("label", LABEL_MAX), ("ref", LABEL_MAX), ("idempotency_key", IDEMPOTENCY_KEY_MAX), ("topic", TOPIC_MAX)]
        {
            let of = |length: usize| line(&format!(r#","{field}":"{}""#, "a".repeat(length)));
            good(&of(max));
            assert_eq!(bad(&of(max + 1)), (Code::InvalidField, field.to_owned()));
        }
        all_bad(
            Code::UnknownField,
            &[
                (r#""prio":1"#, "prio"),
                (r#""when":"offline""#, "when"),
                (r#""scope":"a""#, "scope"),
                (r#""receipts":true"#, "receipts"),
                (r#""fallback":{}"#, "fallback"),
                (r#""template":true"#, "template"),
                (r#""message_id":"x""#, "message_id"),
                (r#""TTL":1"#, "TTL"),
            ],
        );
        let long = "ż".repeat(100);
        assert_eq!(bad(&line(&format!(r#","{long}":1"#))).1, format!("{}…", "ż".repeat(64)));
    }

    #[test]
    fn times_to_live_and_to_start() {
        assert_eq!(sent(r#","ttl":0"#).ttl, 0);
        assert_eq!(sent(r#","ttl":-0"#).ttl, 0);
        assert_eq!(sent(r#","ttl":0.99"#).ttl, 0);
        assert_eq!(sent(r#","ttl":2419200.9"#).ttl, 2_419_200);
        assert_eq!(sent(r#","ttl":6E1"#).ttl, 60);
        assert_eq!(sent(r#","at":"1960-01-01T00:00:00Z""#).at, Some(UnixMillis(0)));
        assert_eq!(sent(r#","at":"2027-02-20T10:30:00Z""#).at, Some(UnixMillis(NOW.0 + 7_776_000_000)));
    }

    #[test]
    fn the_default_app() {
        let app = |apps: &[(&str, &str)]| {
            parse(line("").as_bytes(), &rules_of(apps), NOW).1.map(|request| match request {
                Request::Send(send) => send.app.to_string(),
                other => panic!("{other:?}"),
            })
        };
        assert_eq!(app(&[("shop", POINT)]).as_deref(), Ok("shop"));
        assert_eq!(app(&[("default", POINT), ("shop", POINT)]).as_deref(), Ok("default"));
        let problem = app(&[("news", POINT), ("shop", POINT)]).expect_err("none is the default");
        assert_eq!((problem.code, problem.field.as_deref()), (Code::MissingField, Some("app")));
    }

    #[test]
    fn bodies() {
        let body = |more: &str| String::from_utf8(sent(&format!(",{more}")).body.to_vec()).expect("text");
        assert_eq!(body(r#""payload":"plain \u017c""#), "plain ż");
        assert_eq!(body(r#""payload":"""#), "");
        assert_eq!(body(r#""payload":{"b" : [1.0, 1E2,null] , "a":"\u017c\/"}"#), r#"{"b":[1.0,1E2,null],"a":"ż/"}"#);
        assert_eq!(body(r#""payload":[ 1e999 ]"#), "[1e999]");
        for encoded in [r"-_-_", r"+/+/"] {
            assert_eq!(sent(&format!(r#","payload_base64":"{encoded}""#)).body, &[0xfb, 0xff, 0xbf][..]);
        }
        assert_eq!(body(r#""payload_base64":"YQ==""#), "a");
        assert_eq!(body(r#""payload_base64":"YQ""#), "a");
        assert_eq!(sent(r#","payload":"x""#).content_type, ContentType::Opaque);
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
        assert_eq!(send.content_type, ContentType::Notification);
        assert_eq!(
            std::str::from_utf8(&send.body),
            Ok(
                r#"{"web_push":8030,"notification":{"title":"t","body":"ż","navigate":"https://e.com/a","data":{"x":null}},"app_badge":3,"mutable":true}"#
            )
        );
        assert!(!sent(&format!(",{n}")).body.ends_with(b"true}"));
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
    fn recipients_are_exactly_one_kind() {
        let to = |to: &str| bad(&format!(r#"{{"op":"send","to":{to}}}"#));
        assert_eq!(bad(r#"{"op":"send"}"#), (Code::MissingField, "to".to_owned()));
        assert_eq!(to("null"), (Code::MissingField, "to".to_owned()));
        assert_eq!(to("{}"), (Code::MissingField, "to".to_owned()));
        assert_eq!(to("[]"), (Code::InvalidField, "to".to_owned()));
        assert_eq!(to("\"all\""), (Code::InvalidField, "to".to_owned()));
        assert_eq!(to(&format!(r#"{{"subscription":{},"stream":true}}"#, s(""))), (Code::InvalidField, "to".to_owned()));
        assert_eq!(to(r#"{"stream":false}"#), (Code::InvalidField, "to.stream".to_owned()));
        assert_eq!(to(r#"{"subscriptions":[]}"#), (Code::InvalidField, "to.subscriptions".to_owned()));
        assert_eq!(to(r#"{"subscriptions":{}}"#), (Code::InvalidField, "to.subscriptions".to_owned()));
        for field in ["subscription_ids", "accounts", "segment", "devices"] {
            assert_eq!(to(&format!(r#"{{"{field}":[]}}"#)), (Code::UnknownField, format!("to.{field}")));
        }
        assert!(
            matches!(good(r#"{"op":"send","to":{"stream":true,"subscription":null}}"#), Request::Send(send) if send.to == To::Stream)
        );
        let many = format!(r#"{{"op":"send","to":{{"subscriptions":[{}0]}}}}"#, "0,".repeat(COMMIT_RECIPIENTS_MAX));
        assert_eq!(bad(&many), (Code::InvalidField, "to.subscriptions".to_owned()));
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
    fn streams() {
        let added = |more: &str| good(&format!(r#"{{"op":"add","message_id":"{ULID}",{more}}}"#));
        let Request::Add(add) = added(&format!(r#""subscriptions":[{}],"position":"a\u0062","previous":1.0"#, s(""))) else {
            panic!("an add")
        };
        assert_eq!(add.message_id.to_string(), ULID);
        assert_eq!(add.step, Some(Step { position: "\"ab\"".into(), previous: Some("1.0".into()) }));
        assert_eq!(add.subscriptions.good.len(), 1);
        let Request::Add(add) = added(r#""subscriptions":[7],"position":false,"previous":null"#) else { panic!("an add") };
        assert_eq!(add.step, Some(Step { position: "false".into(), previous: None }));
        assert_eq!(add.subscriptions.rejected[0].problem.field.as_deref(), Some("subscriptions[0]"));
        let Request::Add(add) = added(r#""subscriptions":[],"position":null"#) else { panic!("an add") };
        assert_eq!((add.step, add.subscriptions), (None, Subscriptions::default()));
        let key = format!(r#""subscriptions":[{}]"#, s(&format!(r#","applicationServerKey":"{OTHER_POINT}""#)));
        let Request::Add(add) = added(&key) else { panic!("an add") };
        assert_eq!(
            add.subscriptions.good[0].key,
            Some(key_id(OTHER_POINT)),
            "any app's key: the message's app is not in the line"
        );

        assert_eq!(
            good(&format!(r#"{{"op":"close","message_id":"{ULID}"}}"#)),
            Request::Close { message_id: ULID.parse().expect("a ULID"), step: None }
        );
        for op in ["add", "close"] {
            let subscriptions = if op == "add" { r#","subscriptions":[]"# } else { "" };
            let bad = |more: &str| bad(&format!(r#"{{"op":"{op}"{subscriptions}{more}}}"#));
            let id = format!(r#","message_id":"{ULID}""#);
            assert_eq!(bad(""), (Code::MissingField, "message_id".to_owned()));
            assert_eq!(bad(r#","message_id":"x""#), (Code::InvalidField, "message_id".to_owned()));
            assert_eq!(bad(r#","message_id":7"#), (Code::InvalidField, "message_id".to_owned()));
            assert_eq!(bad(&format!(r#"{id},"previous":1"#)), (Code::MissingField, "position".to_owned()));
            assert_eq!(bad(&format!(r#"{id},"position":[]"#)), (Code::InvalidField, "position".to_owned()));
            assert_eq!(bad(&format!(r#"{id},"position":1,"previous":{{}}"#)), (Code::InvalidField, "previous".to_owned()));
            assert_eq!(
                bad(&format!(r#"{id},"position":"{}""#, "a".repeat(POSITION_MAX))),
                (Code::InvalidField, "position".to_owned())
            );
            assert_eq!(bad(&format!(r#"{id},"app":"shop""#)), (Code::UnknownField, "app".to_owned()));
        }
        assert_eq!(bad(&format!(r#"{{"op":"add","message_id":"{ULID}"}}"#)), (Code::MissingField, "subscriptions".to_owned()));
        assert_eq!(
            bad(&format!(r#"{{"op":"add","message_id":"{ULID}","subscriptions":7}}"#)),
            (Code::InvalidField, "subscriptions".to_owned())
        );
    }

    #[test]
    fn targets() {
        let id = ULID.parse().expect("a ULID");
        assert_eq!(good(&format!(r#"{{"op":"status","message_id":"{ULID}"}}"#)), Request::Status { message_id: id });
        assert_eq!(
            good(&format!(r#"{{"op":"cancel","message_id":"{ULID}","label":null}}"#)),
            Request::Cancel(Target::Message(id))
        );
        assert_eq!(good(r#"{"op":"pause","label":"news"}"#), Request::Pause(Target::Label("news".into())));
        assert_eq!(
            good(r#"{"op":"resume","app":"shop","rate":5}"#),
            Request::Resume { target: Target::App("shop".into()), rate: Some(5.0) }
        );
        for op in ["cancel", "pause", "resume"] {
            let bad = |more: &str| bad(&format!(r#"{{"op":"{op}"{more}}}"#));
            assert_eq!(bad(""), (Code::MissingField, "message_id".to_owned()));
            assert_eq!(bad(r#","message_id":"nope""#), (Code::InvalidField, "message_id".to_owned()));
            assert_eq!(bad(r#","app":"nobody""#), (Code::InvalidField, "app".to_owned()));
            assert_eq!(bad(r#","label":"""#), (Code::InvalidField, "label".to_owned()));
            assert_eq!(bad(r#","label":"a","app":"shop""#), (Code::InvalidField, "app".to_owned()));
            assert_eq!(bad(&format!(r#","label":"a","message_id":"{ULID}""#)), (Code::InvalidField, "label".to_owned()));
            assert_eq!(bad(&format!(r#","app":"shop","message_id":"{ULID}""#)), (Code::InvalidField, "app".to_owned()));
            assert_eq!(bad(r#","label":"a","why":"b""#), (Code::UnknownField, "why".to_owned()));
        }
        assert_eq!(bad(r#"{"op":"resume","label":"a","rate":0}"#), (Code::InvalidField, "rate".to_owned()));
        assert_eq!(bad(r#"{"op":"pause","label":"a","rate":1}"#), (Code::UnknownField, "rate".to_owned()));
    }

    #[test]
    fn questions() {
        assert_eq!(good(r#"{"op":"ping"}"#), Request::Ping);
        assert_eq!(good(r#"{"op":"origins"}"#), Request::Origins);
        assert_eq!(good(r#"{"op":"drain"}"#), Request::Drain { on: true });
        assert_eq!(good(r#"{"op":"drain","on":false}"#), Request::Drain { on: false });
        assert_eq!(good(r#"{"op":"vapid_public_key"}"#), Request::VapidPublicKey { app: "default".into() });
        assert_eq!(good(r#"{"op":"vapid_public_key","app":"shop"}"#), Request::VapidPublicKey { app: "shop".into() });
        assert_eq!(
            good(r#"{"op":"list_messages"}"#),
            Request::ListMessages { state: None, label: None, limit: 100, after: None }
        );
        assert_eq!(
            good(r#"{"op":"list_messages","state":"paused","label":"l","limit":1000,"after":"c"}"#),
            Request::ListMessages {
                state: Some(State::Paused),
                label: Some("l".to_owned()),
                limit: 1_000,
                after: Some("c".to_owned())
            }
        );
        let all = Events {
            after: After::Oldest,
            limit: None,
            follow: false,
            types: None,
            app: None,
            label: None,
            message_id: None,
            account: None,
            subscription_id: None,
        };
        assert_eq!(good(r#"{"op":"events"}"#), Request::Events(all.clone()));
        assert_eq!(good(r#"{"op":"events","after":"newest"}"#), Request::Events(Events { after: After::Newest, ..all }));
        let events = good(&format!(
            r#"{{"op":"events","after":"abc","limit":5,"follow":true,"types":["gone","shown"],"app":"shop","label":"l","message_id":"{ULID}",
                "account":"a","subscription_id":"AAECAwQFBgcICQoL"}}"#
        ));
        assert_eq!(
            events,
            Request::Events(Events {
                after: After::Cursor("abc".to_owned()),
                limit: Some(5),
                follow: true,
                types: Some(vec![EventType::parse("gone").expect("a type"), EventType::Shown]),
                app: Some("shop".into()),
                label: Some("l".to_owned()),
                message_id: ULID.parse().ok(),
                account: Some("a".to_owned()),
                subscription_id: Some(SubscriptionId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])),
            })
        );
        assert_eq!(good(r#"{"op":"stats"}"#), Request::Stats { from: None, to: None, by: vec![] });
        assert_eq!(
            good(r#"{"op":"stats","from":"1970-01-02","to":"1970-01-04T01:00:00+02:00","by":["day","key"]}"#),
            Request::Stats { from: Some(1), to: Some(2), by: vec![By::Day, By::Key] }
        );
        assert_eq!(good(r#"{"op":"stats","by":"label"}"#), Request::Stats { from: None, to: None, by: vec![By::Label] });
        for (line, code, field) in [
            (r#"{"op":"ping","x":1}"#, Code::UnknownField, "x"),
            (r#"{"op":"drain","on":"yes"}"#, Code::InvalidField, "on"),
            (r#"{"op":"vapid_public_key","app":"nobody"}"#, Code::InvalidField, "app"),
            (r#"{"op":"list_messages","state":"open"}"#, Code::InvalidField, "state"),
            (r#"{"op":"list_messages","limit":0}"#, Code::InvalidField, "limit"),
            (r#"{"op":"list_messages","limit":1001}"#, Code::InvalidField, "limit"),
            (r#"{"op":"list_messages","after":7}"#, Code::InvalidField, "after"),
            (r#"{"op":"events","limit":1.5}"#, Code::InvalidField, "limit"),
            (r#"{"op":"events","limit":-1}"#, Code::InvalidField, "limit"),
            (r#"{"op":"events","after":""}"#, Code::InvalidField, "after"),
            (r#"{"op":"events","follow":1}"#, Code::InvalidField, "follow"),
            (r#"{"op":"events","types":[]}"#, Code::InvalidField, "types"),
            (r#"{"op":"events","types":["gone","delivered"]}"#, Code::InvalidField, "types[1]"),
            (r#"{"op":"events","types":["gone","gone"]}"#, Code::InvalidField, "types[1]"),
            (r#"{"op":"events","types":[1]}"#, Code::InvalidField, "types[0]"),
            (r#"{"op":"events","app":"nobody"}"#, Code::InvalidField, "app"),
            (r#"{"op":"events","message_id":"x"}"#, Code::InvalidField, "message_id"),
            (r#"{"op":"events","account":""}"#, Code::InvalidField, "account"),
            (r#"{"op":"events","subscription_id":"AAECAwQFBgcICQo"}"#, Code::InvalidField, "subscription_id"),
            (r#"{"op":"stats","from":"1970-13-01"}"#, Code::InvalidField, "from"),
            (r#"{"op":"stats","to":"yesterday"}"#, Code::InvalidField, "to"),
            (r#"{"op":"stats","to":7}"#, Code::InvalidField, "to"),
            (r#"{"op":"stats","from":"2026-11-22","to":"2026-11-21"}"#, Code::InvalidField, "from"),
            (r#"{"op":"stats","by":"hour"}"#, Code::InvalidField, "by"),
            (r#"{"op":"stats","by":["day","day"]}"#, Code::InvalidField, "by[1]"),
            (r#"{"op":"status"}"#, Code::MissingField, "message_id"),
            (r#"{"op":"status","message_id":"01ARZ3NDEKTSV4RRFFQ69G5FA"}"#, Code::InvalidField, "message_id"),
            (r#"{"op":"status","message_id":"81ARZ3NDEKTSV4RRFFQ69G5FAV"}"#, Code::InvalidField, "message_id"),
        ] {
            assert_eq!(bad(line), (code, field.to_owned()), "{line}");
        }
    }

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
            (r#"{"op":"subscribe","subscription":{}}"#, Code::UnknownOp, "op"),
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

    #[test]
    fn fingerprints() {
        let print = |more: &str| sent(&format!(r#","idempotency_key":"k"{more}"#)).fingerprint;
        let base = print(r#","ttl":60,"payload":{"a":1,"b":[null,1.5]},"label":"l""#);
        assert_ne!(base, [0; 16]);
        for same in [
            r#","label":"l","payload":{"b":[null,15e-1],"a":1.0},"ttl":6e1"#,
            r#","ttl":60.0,"payload":{"a":1,"b":[null,1.5]},"label":"\u006c","urgency":null,"id":9"#,
        ] {
            assert_eq!(print(same), base, "{same}");
        }
        let other_key = sent(r#","idempotency_key":"other","ttl":60,"payload":{"a":1,"b":[null,1.5]},"label":"l""#);
        assert_eq!(other_key.fingerprint, base);
        for other in [
            r#","ttl":61,"payload":{"a":1,"b":[null,1.5]},"label":"l""#,
            r#","ttl":60,"payload":{"a":1,"b":[1.5]},"label":"l""#,
            r#","ttl":60,"payload":{"a":1,"b":[null,1.5],"c":null},"label":"l""#,
            r#","ttl":60,"payload":{"a":"1","b":[null,1.5]},"label":"l""#,
            r#","ttl":60,"payload":"{\"a\":1,\"b\":[null,1.5]}","label":"l""#,
            r#","ttl":60,"payload":{"a":1,"b":[null,1.5]},"label":"l","ref":"r""#,
            r#","ttl":60,"payload":{"a":12345678901234567890123,"b":[null,1.5]},"label":"l""#,
            r#","ttl":60,"payload":{"a":12345678901234567890124,"b":[null,1.5]},"label":"l""#,
            r#","ttl":60,"payload":{"a":[],"b":[null,1.5]},"label":"l""#,
            r#","ttl":60,"payload":{"a":{},"b":[null,1.5]},"label":"l""#,
        ] {
            assert_ne!(print(other), base, "{other}");
        }
        let mut prints =
            vec![base, print(r#","payload":["ab","c"]"#), print(r#","payload":["a","bc"]"#), print(r#","payload":[["a"],"bc"]"#)];
        prints
            .extend([print(r#","payload":{"a":12345678901234567890123}"#), print(r#","payload":{"a":12345678901234567890124}"#)]);
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), 6);
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
