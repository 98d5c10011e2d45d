//! `send`, `add` and `close`: messages and their recipients.

use std::sync::Arc;

use super::Rules;
use super::body::{self, Personal};
use super::fields::{
    self, above_zero, account, app_or_default, arguments, at_most, boolean, bounded, checked_subscription_id, each_once, fields,
    invalid, missing, number, own, required_message_id, text, unknown, within,
};
use super::fingerprint::fingerprint;
use super::segment::segment;
use super::subscription::Judge;
use crate::limits::{COMMIT_RECIPIENTS_MAX, FALLBACK_MAX, IDEMPOTENCY_KEY_MAX, LABEL_MAX, POSITION_MAX, TOPIC_MAX};
use crate::message::{UnixMillis, Urgency};
use crate::protocol::json::{Members, Value, write_compact};
use crate::protocol::request::{Add, Devices, Problem, Request, Send, Step, Subscriptions, To};
use crate::protocol::time::parse_time;

/// The members of a `send` beside `to`, however they were read; null equals absent.
#[derive(Default)]
pub(super) struct Given<'v, 'a> {
    pub payload: Option<&'v Value<'a>>,
    pub payload_base64: Option<&'v Value<'a>>,
    pub notification: Option<&'v Value<'a>>,
    pub app_badge: Option<&'v Value<'a>>,
    pub mutable: Option<&'v Value<'a>>,
    pub ttl: Option<&'v Value<'a>>,
    pub urgency: Option<&'v Value<'a>>,
    pub topic: Option<&'v Value<'a>>,
    pub app: Option<&'v Value<'a>>,
    pub idempotency_key: Option<&'v Value<'a>>,
    pub at: Option<&'v Value<'a>>,
    pub paused: Option<&'v Value<'a>>,
    pub label: Option<&'v Value<'a>>,
    pub reference: Option<&'v Value<'a>>,
    pub rate: Option<&'v Value<'a>>,
    pub spread: Option<&'v Value<'a>>,
    pub scope: Option<&'v Value<'a>>,
    pub when: Option<&'v Value<'a>>,
    pub receipts: Option<&'v Value<'a>>,
    pub fallback: Option<&'v Value<'a>>,
    pub template: Option<&'v Value<'a>>,
}

/// `send`.
pub(super) fn send(members: &Members<'_>, rules: &Rules, now: UnixMillis) -> Result<Request, Problem> {
    let (mut to, mut given) = (None, Given::default());
    for (name, value) in own(members) {
        let slot = if name == "to" { Some(&mut to) } else { given.slot(name) };
        *slot.ok_or_else(|| unknown(name))? = Some(value);
    }
    let to = to.ok_or_else(|| missing("to"))?;
    let mut send = given.send(rules, now, |judge| recipients(to, judge))?;
    if send.idempotency_key.is_some() {
        send.fingerprint = fingerprint(members);
    }
    Ok(Request::Send(Box::new(send)))
}

impl<'v, 'a> Given<'v, 'a> {
    /// Where the member of this name belongs.
    fn slot(&mut self, name: &str) -> Option<&mut Option<&'v Value<'a>>> {
        Some(match name {
            "payload" => &mut self.payload,
            "payload_base64" => &mut self.payload_base64,
            "notification" => &mut self.notification,
            "app_badge" => &mut self.app_badge,
            "mutable" => &mut self.mutable,
            "ttl" => &mut self.ttl,
            "urgency" => &mut self.urgency,
            "topic" => &mut self.topic,
            "app" => &mut self.app,
            "idempotency_key" => &mut self.idempotency_key,
            "at" => &mut self.at,
            "paused" => &mut self.paused,
            "label" => &mut self.label,
            "ref" => &mut self.reference,
            "rate" => &mut self.rate,
            "spread" => &mut self.spread,
            "scope" => &mut self.scope,
            "when" => &mut self.when,
            "receipts" => &mut self.receipts,
            "fallback" => &mut self.fallback,
            "template" => &mut self.template,
            _ => return None,
        })
    }

    /// Checks everything; `to` judges the recipients when it is their turn. The fingerprint is still to be made.
    pub fn send(
        self,
        rules: &Rules,
        now: UnixMillis,
        to: impl FnOnce(&Judge<'_>) -> Result<To, Problem>,
    ) -> Result<Send, Problem> {
        let app = app_or_default(self.app, rules)?;
        let ttl = self.ttl.map_or(Ok(rules.messages.ttl_default), |value| seconds_to_live(value, rules))?;
        let urgency = match self.urgency {
            Some(value) => Urgency::parse(text(value, "urgency")?)
                .ok_or_else(|| invalid("urgency", "must be one of very-low, low, normal, high"))?,
            None => Urgency::Normal,
        };
        let idempotency_key = match self.idempotency_key {
            Some(value) => Some(bounded(value, "idempotency_key", 1, IDEMPOTENCY_KEY_MAX)?.to_owned()),
            None => None,
        };
        let spread = match self.spread {
            Some(value) => {
                let spread = above_zero(value, "spread")?;
                if spread > f64::from(ttl) {
                    return Err(invalid("spread", format!("must be at most the ttl, {ttl} seconds")));
                }
                Some(spread)
            }
            None => None,
        };
        let personal = Personal {
            receipts: self.receipts.map_or(Ok(false), |value| boolean(value, "receipts"))?,
            template: self.template.map_or(Ok(false), |value| boolean(value, "template"))?,
        };
        let sent = [self.payload, self.payload_base64, self.notification, self.app_badge, self.mutable];
        let mut send = Send {
            to: To::Stream,
            payload: body::payload(sent, personal)?,
            ttl,
            urgency,
            topic: self.topic.map(checked_topic).transpose()?,
            fingerprint: [0; 16],
            idempotency_key,
            at: self.at.map(|value| not_before(value, rules, now)).transpose()?,
            paused: self.paused.map_or(Ok(false), |value| boolean(value, "paused"))?,
            label: self.label.map(|value| bounded(value, "label", 1, LABEL_MAX)).transpose()?.map(Arc::from),
            reference: self.reference.map(|value| bounded(value, "ref", 1, LABEL_MAX)).transpose()?.map(Arc::from),
            rate: self.rate.map(|value| above_zero(value, "rate")).transpose()?,
            spread,
            scope: self.scope.map(|value| fields::scope(value, Some(&app), rules)).transpose()?,
            when_offline: self.when.map_or(Ok(false), offline)?,
            fallback: self.fallback.map(seconds_to_fallback).transpose()?,
            app,
        };
        // Last, because it is the dearest.
        send.to = to(&Judge { rules, app: Some(&send.app), now, attributes: personal.template })?;
        suits(&send)?;
        Ok(send)
    }
}

/// Whether the options fit the recipients.
fn suits(send: &Send) -> Result<(), Problem> {
    let accounts = matches!(send.to, To::Accounts { .. });
    if send.scope.is_some() && matches!(send.to, To::Subscriptions(_) | To::Stream) {
        return Err(invalid("scope", "can only stand beside to.subscription_ids, to.accounts or to.segment"));
    }
    if send.when_offline && !accounts {
        return Err(invalid("when", "can only stand beside to.accounts"));
    }
    if send.fallback.is_some() && !accounts {
        return Err(invalid("fallback", "can only stand beside to.accounts"));
    }
    Ok(())
}

/// `add`.
pub(super) fn add(members: &Members<'_>, rules: &Rules, now: UnixMillis) -> Result<Request, Problem> {
    let [message_id, subscriptions, position, previous] =
        arguments(members, ["message_id", "subscriptions", "position", "previous"])?;
    let message_id = required_message_id(message_id)?;
    let step = step(position, previous)?;
    let subscriptions = subscriptions.ok_or_else(|| missing("subscriptions"))?;
    // Whether its message is a template is not in the line: the attributes come along, the store drops them.
    let subscriptions = Judge { rules, app: None, now, attributes: true }.list(subscriptions, "subscriptions")?;
    Ok(Request::Add(Add { message_id, subscriptions, step }))
}

/// `close`.
pub(super) fn close(members: &Members<'_>) -> Result<Request, Problem> {
    let [message_id, position, previous] = arguments(members, ["message_id", "position", "previous"])?;
    Ok(Request::Close { message_id: required_message_id(message_id)?, step: step(position, previous)? })
}

/// `to` of a `send`.
fn recipients(to: &Value<'_>, judge: &Judge<'_>) -> Result<To, Problem> {
    const ONE: &str = "must hold exactly one of subscription, subscriptions, stream, subscription_ids, accounts, segment";
    const LIST: &str = "to.subscriptions";
    let Value::Object(to) = to else { return Err(invalid("to", ONE)) };
    let [one, list, stream, ids, accounts, of_segment, devices] =
        fields(to, ["subscription", "subscriptions", "stream", "subscription_ids", "accounts", "segment", "devices"])
            .map_err(|problem| within(problem, "to"))?;
    if devices.is_some() && accounts.is_none() {
        return Err(invalid("to.devices", "can only stand beside accounts"));
    }
    match [one, list, stream, ids, accounts, of_segment] {
        [None, None, None, None, None, None] => Err(Problem { message: ONE.to_owned(), ..missing("to") }),
        [Some(value), None, None, None, None, None] => {
            let recipient = judge.one(value).map_err(|problem| within(problem, "to.subscription"))?;
            Ok(To::Subscriptions(Subscriptions { good: vec![recipient], rejected: Vec::new() }))
        }
        [None, Some(value), None, None, None, None] => {
            let judged = judge.list(value, LIST)?;
            if !judged.good.is_empty() {
                return Ok(To::Subscriptions(judged));
            }
            Err(match judged.rejected.into_iter().next() {
                Some(first) => first.problem,
                None => invalid(LIST, "must not be empty"),
            })
        }
        [None, None, Some(value), None, None, None] => match value {
            Value::Bool(true) => Ok(To::Stream),
            _ => Err(invalid("to.stream", "must be true")),
        },
        [None, None, None, Some(value), None, None] => {
            Ok(To::Ids(each_once(value, "to.subscription_ids", COMMIT_RECIPIENTS_MAX, checked_subscription_id)?))
        }
        [None, None, None, None, Some(value), None] => Ok(To::Accounts {
            accounts: each_once(value, "to.accounts", COMMIT_RECIPIENTS_MAX, account)?,
            devices: match devices {
                Some(value) => match text(value, "to.devices")? {
                    "all" => Devices::All,
                    "latest" => Devices::Latest,
                    _ => return Err(invalid("to.devices", "must be all or latest")),
                },
                None => Devices::All,
            },
        }),
        [None, None, None, None, None, Some(value)] => segment(value, "to.segment").map(To::Segment),
        _ => Err(invalid("to", ONE)),
    }
}

/// `when`: there is one word so far.
fn offline(value: &Value<'_>) -> Result<bool, Problem> {
    if text(value, "when")? == "offline" { Ok(true) } else { Err(invalid("when", "must be offline")) }
}

/// `fallback`: an object, because more than the time may be wanted one day.
fn seconds_to_fallback(value: &Value<'_>) -> Result<f64, Problem> {
    const AFTER: &str = "fallback.after";
    let Value::Object(members) = value else { return Err(invalid("fallback", "must be an object with after")) };
    let [after] = fields(members, ["after"]).map_err(|problem| within(problem, "fallback"))?;
    at_most(after.ok_or_else(|| missing(AFTER))?, AFTER, false, FALLBACK_MAX)
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
pub(super) fn checked_topic(value: &Value<'_>) -> Result<Arc<str>, Problem> {
    let topic = text(value, "topic")?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if topic.is_empty() || topic.len() > TOPIC_MAX || !topic.bytes().all(good) {
        return Err(invalid("topic", format!("must be 1 to {TOPIC_MAX} characters of base64url")));
    }
    Ok(Arc::from(topic))
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

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::super::testing::*;
    use super::*;
    use crate::limits::ACCOUNT_MAX;
    use crate::message::{ContentType, Encoding, Segment};

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
            (send.app.as_ref(), send.ttl, send.urgency, send.paused, send.payload.content_type, send.payload.body.len()),
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
        assert_eq!(send.payload.body, "ż".as_bytes());
        assert_eq!(
            (send.ttl, send.urgency, send.topic.as_deref(), send.app.as_ref()),
            (60, Urgency::VeryLow, Some("a_-9"), "shop")
        );
        assert_eq!((send.idempotency_key.as_deref(), send.at), (Some("k"), Some(UnixMillis(NOW.0 + 1_000))));
        assert_eq!((send.paused, send.label.as_deref(), send.reference.as_deref()), (true, Some("news"), Some("42")));
        assert_eq!((send.rate, send.spread), (Some(0.5), Some(60.0)));
        let nulls = sent(
            r#","payload":null,"payload_base64":null,"notification":null,"app_badge":null,"mutable":null,"ttl":null,"urgency":null,"topic":null,
               "app":null,"idempotency_key":null,"at":null,"paused":null,"label":null,"ref":null,"rate":null,"spread":null,"scope":null,"when":null,"receipts":null,"fallback":null,
               "template":null"#,
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
                (r#""message_id":"x""#, "message_id"),
                (r#""TTL":1"#, "TTL"),
                (r#""devices":"all""#, "devices"),
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
        for other in
            [r#""stream":true"#, r#""subscription_ids":["AAECAwQFBgcICQoL"]"#, r#""accounts":["a"]"#, r#""segment":{"all":true}"#]
        {
            assert_eq!(to(&format!(r#"{{"subscriptions":[],{other}}}"#)), (Code::InvalidField, "to".to_owned()), "{other}");
        }
        assert_eq!(to(r#"{"everybody":true}"#), (Code::UnknownField, "to.everybody".to_owned()));
        assert!(
            matches!(good(r#"{"op":"send","to":{"stream":true,"subscription":null}}"#), Request::Send(send) if send.to == To::Stream)
        );
        let many = format!(r#"{{"op":"send","to":{{"subscriptions":[{}0]}}}}"#, "0,".repeat(COMMIT_RECIPIENTS_MAX));
        assert_eq!(bad(&many), (Code::InvalidField, "to.subscriptions".to_owned()));
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

    fn to(to: &str, more: &str) -> Send {
        match good(&format!(r#"{{"op":"send","to":{to}{more}}}"#)) {
            Request::Send(send) => *send,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_registrys_recipients() {
        let send = to(r#"{"subscription_ids":["AAECAwQFBgcICQoL","AAAAAAAAAAAAAAAA","AAECAwQFBgcICQoL"]}"#, "");
        assert_eq!(send.to, To::Ids(vec![ID, SubscriptionId([0; 12])]), "in their order, each once");
        let accounts = |accounts: &str| to(&format!(r#"{{"accounts":{accounts}}}"#), "").to;
        let all =
            |accounts: Vec<&str>| To::Accounts { accounts: accounts.into_iter().map(Arc::from).collect(), devices: Devices::All };
        assert_eq!(accounts(r#"["b","a","b"]"#), all(vec!["b", "a"]));
        assert_eq!(accounts(r#"["a"],"devices":null"#), all(vec!["a"]));
        assert_eq!(accounts(r#"["a"],"devices":"all""#), all(vec!["a"]));
        assert_eq!(
            accounts(r#"["a"],"devices":"latest""#),
            To::Accounts { accounts: vec!["a".into()], devices: Devices::Latest }
        );
        let longest = "ż".repeat(ACCOUNT_MAX / 2);
        assert_eq!(accounts(&format!(r#"["{longest}"]"#)), all(vec![&longest]));
        assert!(matches!(to(r#"{"segment":{"all":true}}"#, "").to, To::Segment(segment) if segment == Segment::default()));
        for (to, field) in [
            (r#"{"subscription_ids":[]}"#.to_owned(), "to.subscription_ids"),
            (r#"{"subscription_ids":"AAECAwQFBgcICQoL"}"#.to_owned(), "to.subscription_ids"),
            (r#"{"subscription_ids":["AAECAwQFBgcICQoL","AAECAwQFBgcICQo"]}"#.to_owned(), "to.subscription_ids[1]"),
            (r#"{"subscription_ids":[null]}"#.to_owned(), "to.subscription_ids[0]"),
            (format!(r#"{{"subscription_ids":[{}0]}}"#, "0,".repeat(COMMIT_RECIPIENTS_MAX)), "to.subscription_ids"),
            (r#"{"accounts":[]}"#.to_owned(), "to.accounts"),
            (r#"{"accounts":"a"}"#.to_owned(), "to.accounts"),
            (r#"{"accounts":["a",""]}"#.to_owned(), "to.accounts[1]"),
            (r#"{"accounts":[7]}"#.to_owned(), "to.accounts[0]"),
            (format!(r#"{{"accounts":["{}"]}}"#, "a".repeat(ACCOUNT_MAX + 1)), "to.accounts[0]"),
            (format!(r#"{{"accounts":[{}0]}}"#, "0,".repeat(COMMIT_RECIPIENTS_MAX)), "to.accounts"),
            (r#"{"accounts":["a"],"devices":"newest"}"#.to_owned(), "to.devices"),
            (r#"{"accounts":["a"],"devices":1}"#.to_owned(), "to.devices"),
            (r#"{"segment":{"all":true},"devices":"all"}"#.to_owned(), "to.devices"),
            (r#"{"devices":"all"}"#.to_owned(), "to.devices"),
            (r#"{"accounts":["a"],"segment":{"all":true}}"#.to_owned(), "to"),
            (r#"{"segment":{}}"#.to_owned(), "to.segment"),
        ] {
            assert_eq!(bad(&format!(r#"{{"op":"send","to":{to}}}"#)), (Code::InvalidField, field.to_owned()), "{to:.80}");
        }
    }

    #[test]
    fn options_of_the_registry() {
        const ACCOUNT: &str = r#"{"accounts":["a"]}"#;
        const IDS: &str = r#"{"subscription_ids":["AAECAwQFBgcICQoL"]}"#;
        const SEGMENT: &str = r#"{"segment":{"all":true}}"#;
        const STREAM: &str = r#"{"stream":true}"#;
        let raw = format!(r#"{{"subscription":{}}}"#, s(""));
        for kind in [ACCOUNT, IDS, SEGMENT] {
            assert_eq!(to(kind, r#","scope":"anything""#).scope.as_deref(), Some("anything"));
            assert_eq!(to(kind, r#","scope":"news","app":"shop""#).scope.as_deref(), Some("news"));
            let send = to(kind, r#","rate":5,"spread":60,"topic":"t""#);
            assert_eq!((send.rate, send.spread), (Some(5.0), Some(60.0)));
        }
        let send = to(ACCOUNT, r#","when":"offline","fallback":{"after":0.5}"#);
        assert_eq!((send.when_offline, send.fallback), (true, Some(0.5)));
        assert_eq!(to(ACCOUNT, r#","fallback":{"after":7776000,"x":null}"#).fallback, Some(FALLBACK_MAX));
        assert_eq!((to(ACCOUNT, "").when_offline, to(ACCOUNT, "").fallback), (false, None));
        for (kind, more, code, field) in [
            (ACCOUNT, r#""scope":"""#, Code::InvalidField, "scope"),
            (ACCOUNT, r#""scope":7"#, Code::InvalidField, "scope"),
            (ACCOUNT, &format!(r#""scope":"{}""#, "a".repeat(65)), Code::InvalidField, "scope"),
            (ACCOUNT, r#""scope":"sport","app":"shop""#, Code::InvalidField, "scope"),
            (&raw, r#""scope":"news""#, Code::InvalidField, "scope"),
            (STREAM, r#""scope":"news""#, Code::InvalidField, "scope"),
            (ACCOUNT, r#""when":"online""#, Code::InvalidField, "when"),
            (ACCOUNT, r#""when":true"#, Code::InvalidField, "when"),
            (IDS, r#""when":"offline""#, Code::InvalidField, "when"),
            (SEGMENT, r#""when":"offline""#, Code::InvalidField, "when"),
            (STREAM, r#""when":"offline""#, Code::InvalidField, "when"),
            (&raw, r#""when":"offline""#, Code::InvalidField, "when"),
            (ACCOUNT, r#""fallback":60"#, Code::InvalidField, "fallback"),
            (ACCOUNT, r#""fallback":{}"#, Code::MissingField, "fallback.after"),
            (ACCOUNT, r#""fallback":{"after":0}"#, Code::InvalidField, "fallback.after"),
            (ACCOUNT, r#""fallback":{"after":-1}"#, Code::InvalidField, "fallback.after"),
            (ACCOUNT, r#""fallback":{"after":7776001}"#, Code::InvalidField, "fallback.after"),
            (ACCOUNT, r#""fallback":{"after":"60"}"#, Code::InvalidField, "fallback.after"),
            (ACCOUNT, r#""fallback":{"after":60,"to":"mail"}"#, Code::UnknownField, "fallback.to"),
            (IDS, r#""fallback":{"after":60}"#, Code::InvalidField, "fallback"),
            (SEGMENT, r#""fallback":{"after":60}"#, Code::InvalidField, "fallback"),
            (STREAM, r#""fallback":{"after":60}"#, Code::InvalidField, "fallback"),
            (&raw, r#""fallback":{"after":60}"#, Code::InvalidField, "fallback"),
            (&raw, r#""payload":{},"receipts":1"#, Code::InvalidField, "receipts"),
            (&raw, r#""payload":{},"template":"yes""#, Code::InvalidField, "template"),
        ] {
            let line = format!(r#"{{"op":"send","to":{kind},{more}}}"#);
            assert_eq!(bad(&line), (code, field.to_owned()), "{line}");
        }
    }

    #[test]
    fn attributes_are_kept_for_templates() {
        let with = |more: &str| {
            let list = format!(r#"{{"subscriptions":[{}]}}"#, s(r#","attributes":{"n":"x"}"#));
            match to(&list, more).to {
                To::Subscriptions(mut judged) => judged.good.remove(0).attributes,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(with(r#","payload":{},"template":true"#), Some(Arc::new(attributes_of([("n", r#""x""#)]))));
        assert_eq!(with(r#","payload":{},"template":false"#), None);
        assert_eq!(with(""), None);
        let add = format!(r#"{{"op":"add","message_id":"{ULID}","subscriptions":[{}]}}"#, s(r#","attributes":{"n":1}"#));
        let Request::Add(add) = good(&add) else { panic!("an add") };
        assert_eq!(add.subscriptions.good[0].attributes, Some(Arc::new(attributes_of([("n", "1")]))));
    }
}
