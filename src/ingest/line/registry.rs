//! The operations that change the registry, or ask it to send.

use std::sync::Arc;

use super::Rules;
use super::body::{self, Personal};
use super::fields::{
    self, app_or_default, arguments, arguments_with_nulls, at_most, boolean, bounded, checked_message_id,
    checked_subscription_id, each_once, id_of_endpoint, id_or_endpoint, invalid, missing, names, one_subscription, scopes, text,
    whose, within,
};
use super::send::checked_topic;
use super::subscription::{Judge, checked_attributes};
use crate::limits::{
    LEASE_MAX, RECEIPT_CHARS, SESSION_MAX, SINGLE_RECIPIENTS_MAX, SUBSCRIPTION_NAME_MAX, TEST_WAIT_MAX, USER_AGENT_MAX,
};
use crate::message::UnixMillis;
use crate::protocol::json::{Members, Value};
use crate::protocol::keys::decode_exactly;
use crate::protocol::request::{Erase, EventType, Payload, Problem, Read, Request, Scopes, Subscribe, Test, TestTo, Update};

/// `subscribe`.
pub(super) fn subscribe(members: &Members<'_>, rules: &Rules, now: UnixMillis) -> Result<Request, Problem> {
    let [subscription, app, account, name, user_agent, of_scopes, tags, attributes, replaces, confirm] = arguments(
        members,
        ["subscription", "app", "account", "name", "user_agent", "scopes", "tags", "attributes", "replaces", "confirm"],
    )?;
    const S: &str = "subscription";
    let subscription = subscription.ok_or_else(|| missing(S))?;
    let app = app_or_default(app, rules)?;
    let account = account.map(|value| fields::account(value, "account")).transpose()?;
    let name = name.map(|value| bounded(value, "name", 1, SUBSCRIPTION_NAME_MAX)).transpose()?;
    let user_agent = user_agent.map(|value| text(value, "user_agent")).transpose()?;
    let scopes = of_scopes.map(|value| scopes(value, Some(&app), rules)).transpose()?;
    let tags = tags.map(|value| names(value, "tags")).transpose()?;
    let attributes = attributes.map(|value| checked_attributes(value, "attributes")).transpose()?;
    let replaces = replaces.map(|value| id_or_endpoint(value, "replaces", rules)).transpose()?;
    let confirm = confirm.map(confirmation).transpose()?;
    // Last, because it is the dearest.
    let judge = Judge { rules, app: Some(&app), now, attributes: true };
    let mut subscription = judge.one(subscription).map_err(|problem| within(problem, S))?;
    let own = subscription.attributes.take().map(Arc::unwrap_or_clone);
    Ok(Request::Subscribe(Box::new(Subscribe {
        subscription,
        account,
        name: name.map(Box::from),
        user_agent: user_agent.map(|text| Box::from(start(text, USER_AGENT_MAX))),
        scopes: scopes.map(Some),
        tags,
        attributes: attributes.or(own),
        replaces,
        confirm,
        app,
    })))
}

/// At most `max` bytes of a text, cut between characters.
fn start(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    &text[..end]
}

/// `confirm`: the payload fields, in an object of their own.
fn confirmation(value: &Value<'_>) -> Result<Payload, Problem> {
    const FIELD: &str = "confirm";
    let Value::Object(members) = value else { return Err(invalid(FIELD, "must be an object with the fields of a payload")) };
    fields::fields(members, body::FIELDS)
        .and_then(|given| body::payload(given, Personal::default()))
        .map_err(|problem| within(problem, FIELD))
}

/// `update_subscription`. Here a null is no absence: it clears.
pub(super) fn update_subscription(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [id, enabled, name, account, of_scopes, tags, attributes] =
        arguments_with_nulls(members, ["subscription_id", "enabled", "name", "account", "scopes", "tags", "attributes"])?;
    let [id, enabled] = [id, enabled].map(|member| member.filter(|value| **value != Value::Null));
    let subscription = checked_subscription_id(id.ok_or_else(|| missing("subscription_id"))?, "subscription_id")?;
    if [enabled, name, account, of_scopes, tags, attributes].iter().all(Option::is_none) {
        let message = "at least one of enabled, name, account, scopes, tags and attributes must be given".to_owned();
        return Err(Problem { message, ..missing("enabled") });
    }
    Ok(Request::UpdateSubscription(Box::new(Update {
        subscription,
        enabled: enabled.map(|value| boolean(value, "enabled")).transpose()?,
        name: change(name, |value| Ok(Box::from(bounded(value, "name", 1, SUBSCRIPTION_NAME_MAX)?)))?,
        account: change(account, |value| fields::account(value, "account"))?,
        // Whose app it is, only the store knows: here any app's scopes are let through.
        scopes: change(of_scopes, |value| scopes(value, None, rules))? as Option<Scopes>,
        tags: change(tags, |value| names(value, "tags"))?.map(Option::unwrap_or_default),
        attributes: change(attributes, |value| checked_attributes(value, "attributes"))?.map(Option::unwrap_or_default),
    })))
}

/// None: not given; `Some(None)`: null.
fn change<T>(member: Option<&Value<'_>>, check: impl Fn(&Value<'_>) -> Result<T, Problem>) -> Result<Option<Option<T>>, Problem> {
    match member {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(None)),
        Some(value) => Ok(Some(Some(check(value)?))),
    }
}

/// `unsubscribe`.
pub(super) fn unsubscribe(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    Ok(Request::Unsubscribe { subscription: one_subscription(arguments(members, ["subscription_id", "endpoint"])?, rules)? })
}

/// `account`.
pub(super) fn account(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [account, app, enabled] = arguments(members, ["account", "app", "enabled"])?;
    Ok(Request::Account {
        who: whose(account, app, rules)?,
        enabled: enabled.map(|value| boolean(value, "enabled")).transpose()?,
    })
}

/// `presence`.
pub(super) fn presence(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [account, app, state, lease, session] = arguments(members, ["account", "app", "state", "lease", "session"])?;
    let who = whose(account, app, rules)?;
    let online = match text(state.ok_or_else(|| missing("state"))?, "state")? {
        "online" => true,
        "offline" => false,
        _ => return Err(invalid("state", "must be online or offline")),
    };
    if lease.is_some() && !online {
        return Err(invalid("lease", "can only stand beside state online"));
    }
    Ok(Request::Presence {
        who,
        online,
        lease: lease.map(|value| at_most(value, "lease", false, LEASE_MAX)).transpose()?,
        session: session.map(|value| bounded(value, "session", 0, SESSION_MAX)).transpose()?.map(Box::from),
    })
}

/// `mark_read`.
pub(super) fn mark_read(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    const ONE: &str = "exactly one of message_id and topic must be given";
    let [account, app, message_id, topic] = arguments(members, ["account", "app", "message_id", "topic"])?;
    let who = whose(account, app, rules)?;
    let what = match (message_id, topic) {
        (Some(value), None) => Read::Message(checked_message_id(value)?),
        (None, Some(value)) => Read::Topic(checked_topic(value)?),
        (None, None) => return Err(Problem { message: ONE.to_owned(), ..missing("message_id") }),
        (Some(_), Some(_)) => return Err(invalid("topic", ONE)),
    };
    Ok(Request::MarkRead { who, what })
}

/// `test`.
pub(super) fn test(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    const ONE: &str = "exactly one of subscription_ids and account must be given";
    let [ids, account, app, wait, payload, payload_base64, notification, app_badge, mutable] = arguments(
        members,
        ["subscription_ids", "account", "app", "wait", "payload", "payload_base64", "notification", "app_badge", "mutable"],
    )?;
    let to = match (ids, account) {
        (Some(value), None) => TestTo::Ids(each_once(value, "subscription_ids", SINGLE_RECIPIENTS_MAX, checked_subscription_id)?),
        (None, Some(value)) => TestTo::Account(fields::account(value, "account")?),
        (None, None) => return Err(Problem { message: ONE.to_owned(), ..missing("subscription_ids") }),
        (Some(_), Some(_)) => return Err(invalid("account", ONE)),
    };
    Ok(Request::Test(Box::new(Test {
        app: app_or_default(app, rules)?,
        to,
        payload: body::payload([payload, payload_base64, notification, app_badge, mutable], Personal::default())?,
        wait: wait.map(|value| at_most(value, "wait", true, TEST_WAIT_MAX)).transpose()?,
    })))
}

/// `feedback`.
pub(super) fn feedback(members: &Members<'_>) -> Result<Request, Problem> {
    let [receipt, kind] = arguments(members, ["receipt", "type"])?;
    let receipt = text(receipt.ok_or_else(|| missing("receipt"))?, "receipt")?;
    let receipt = decode_exactly(receipt)
        .ok_or_else(|| invalid("receipt", format!("must be a receipt, {RECEIPT_CHARS} characters of base64url")))?;
    let kind = match text(kind.ok_or_else(|| missing("type"))?, "type")? {
        "shown" => EventType::Shown,
        "clicked" => EventType::Clicked,
        "dismissed" => EventType::Dismissed,
        _ => return Err(invalid("type", "must be one of shown, clicked, dismissed")),
    };
    Ok(Request::Feedback { receipt, kind })
}

/// `erase`.
pub(super) fn erase(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    const ONE: &str = "exactly one of account, subscription_id and endpoint must be given";
    let [account, app, id, endpoint] = arguments(members, ["account", "app", "subscription_id", "endpoint"])?;
    if app.is_some() && account.is_none() {
        return Err(invalid("app", "can only stand beside account"));
    }
    Ok(Request::Erase(match (account, id, endpoint) {
        (Some(_), None, None) => Erase::Account(whose(account, app, rules)?),
        (None, Some(value), None) => Erase::Subscription(checked_subscription_id(value, "subscription_id")?),
        (None, None, Some(value)) => Erase::Subscription(id_of_endpoint(value, "endpoint", rules)?),
        (None, None, None) => return Err(Problem { message: ONE.to_owned(), ..missing("account") }),
        (_, _, Some(_)) => return Err(invalid("endpoint", ONE)),
        (_, Some(_), _) => return Err(invalid("subscription_id", ONE)),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::super::testing::*;
    use super::*;
    use crate::limits::{ACCOUNT_MAX, ENDPOINT_MAX, NAME_MAX, NAMES_MAX};
    use crate::message::ContentType;
    use crate::protocol::request::Whose;
    const SUBSCRIPTION_ID: &str = r#""subscription_id":"AAECAwQFBgcICQoL""#;

    fn subscribed(more: &str) -> Subscribe {
        match good(&format!(r#"{{"op":"subscribe","subscription":{}{more}}}"#, s(""))) {
            Request::Subscribe(subscribe) => *subscribe,
            other => panic!("{other:?}"),
        }
    }

    fn updated(more: &str) -> Update {
        match good(&format!(r#"{{"op":"update_subscription",{SUBSCRIPTION_ID},{more}}}"#)) {
            Request::UpdateSubscription(update) => *update,
            other => panic!("{other:?}"),
        }
    }

    fn whose(account: &str, app: Option<&str>) -> Whose {
        Whose { account: account.into(), app: app.map(Arc::from) }
    }

    #[test]
    fn a_subscription_is_made() {
        let least = Subscribe {
            app: "default".into(),
            subscription: recipient(&s("")),
            account: None,
            name: None,
            user_agent: None,
            scopes: None,
            tags: None,
            attributes: None,
            replaces: None,
            confirm: None,
        };
        assert_eq!(subscribed(""), least);
        assert_eq!(
            subscribed(
                r#","app":null,"account":null,"name":null,"user_agent":null,"scopes":null,"tags":null,"attributes":null,"replaces":null,"confirm":null"#
            ),
            least
        );
        assert_eq!(
            subscribed(
                r#","app":"shop","account":"a","name":"Phone","user_agent":"","scopes":["offers","news","offers"],"tags":["b","a"],
                   "attributes":{"lang":"pl","n":1.0,"x":null},"replaces":"AAECAwQFBgcICQoL","confirm":{"payload":[1]}"#
            ),
            Subscribe {
                app: "shop".into(),
                account: Some("a".into()),
                name: Some("Phone".into()),
                user_agent: Some("".into()),
                scopes: Some(Some(names_of(["news", "offers"]))),
                tags: Some(names_of(["a", "b"])),
                attributes: Some(attributes_of([("lang", r#""pl""#), ("n", "1")])),
                replaces: Some(ID),
                confirm: Some(Payload::opaque(b"[1]".as_slice().into())),
                ..least
            }
        );
        let emptied = subscribed(r#","scopes":[],"tags":[],"attributes":{}"#);
        assert_eq!(
            (emptied.scopes, emptied.tags, emptied.attributes),
            (Some(Some(Vec::new())), Some(Vec::new()), Some(attributes_of([])))
        );
        assert_eq!(subscribed(r#","scopes":["sport"]"#).scopes, Some(Some(names_of(["sport"]))), "this app lists none");

        let agent = |text: &str| subscribed(&format!(r#","user_agent":"{text}""#)).user_agent.expect("given");
        assert_eq!(agent(&"a".repeat(USER_AGENT_MAX)).len(), USER_AGENT_MAX);
        assert_eq!(agent(&"a".repeat(USER_AGENT_MAX + 1)).len(), USER_AGENT_MAX);
        assert_eq!(*agent(&format!("a{}", "ż".repeat(USER_AGENT_MAX))), format!("a{}", "ż".repeat(USER_AGENT_MAX / 2 - 1)));

        let replaced = |text: &str| subscribed(&format!(r#","replaces":"{text}""#)).replaces;
        assert_eq!(replaced(FCM), Some(SubscriptionId::of(FCM)));
        assert_eq!(replaced("http://gone.example/x"), Some(SubscriptionId::of("http://gone.example/x")), "it is only looked up");

        let n = r#"{"title":"t","navigate":"https://e.com/"}"#;
        let confirm = subscribed(&format!(r#","confirm":{{"notification":{n},"app_badge":1}}"#)).confirm.expect("given");
        assert_eq!((confirm.content_type, confirm.template, confirm.receipt_at), (ContentType::Notification, false, None));
        assert_eq!(&confirm.body[..], format!(r#"{{"web_push":8030,"notification":{n},"app_badge":1}}"#).as_bytes());
    }

    #[test]
    fn attributes_of_a_browsers_own_object() {
        let of = |own: &str, more: &str| {
            let line = format!(r#"{{"op":"subscribe","subscription":{}{more}}}"#, s(own));
            match good(&line) {
                Request::Subscribe(subscribe) => {
                    assert_eq!(subscribe.subscription.attributes, None);
                    subscribe.attributes
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(of(r#","attributes":{"a":1}"#, ""), Some(attributes_of([("a", "1")])));
        assert_eq!(of(r#","attributes":{"a":1}"#, r#","attributes":{"b":2}"#), Some(attributes_of([("b", "2")])));
        assert_eq!(of(r#","attributes":{"a":1}"#, r#","attributes":{}"#), Some(attributes_of([])));
        assert_eq!(of(r#","attributes":{"a":1}"#, r#","attributes":null"#), Some(attributes_of([("a", "1")])));
    }

    #[test]
    fn bad_subscribes() {
        use Code::{EndpointRefused, InvalidField, MissingField, PayloadTooLarge, UnknownField};
        let long = |length: usize| "a".repeat(length);
        let many: Vec<String> = (0..=NAMES_MAX).map(|n| format!(r#""{n}""#)).collect();
        let fixed = format!(r#""subscription":{}"#, s(""));
        let cases = [
            (r#""app":"nobody""#.to_owned(), InvalidField, "app"),
            (r#""app":7"#.to_owned(), InvalidField, "app"),
            (r#""account":"""#.to_owned(), InvalidField, "account"),
            (r#""account":7"#.to_owned(), InvalidField, "account"),
            (format!(r#""account":"{}""#, long(ACCOUNT_MAX + 1)), InvalidField, "account"),
            (r#""name":"""#.to_owned(), InvalidField, "name"),
            (r#""name":[]"#.to_owned(), InvalidField, "name"),
            (format!(r#""name":"{}""#, long(SUBSCRIPTION_NAME_MAX + 1)), InvalidField, "name"),
            (r#""user_agent":7"#.to_owned(), InvalidField, "user_agent"),
            (r#""scopes":"news""#.to_owned(), InvalidField, "scopes"),
            (r#""scopes":["news",""]"#.to_owned(), InvalidField, "scopes[1]"),
            (r#""scopes":[null]"#.to_owned(), InvalidField, "scopes[0]"),
            (r#""scopes":["news","sport"],"app":"shop""#.to_owned(), InvalidField, "scopes[1]"),
            (format!(r#""scopes":["{}"]"#, long(NAME_MAX + 1)), InvalidField, "scopes[0]"),
            (format!(r#""scopes":[{}]"#, many.join(",")), InvalidField, "scopes"),
            (r#""tags":{}"#.to_owned(), InvalidField, "tags"),
            (r#""tags":["a","b","c",4]"#.to_owned(), InvalidField, "tags[3]"),
            (format!(r#""tags":["{}"]"#, long(NAME_MAX + 1)), InvalidField, "tags[0]"),
            (format!(r#""tags":[{}]"#, many.join(",")), InvalidField, "tags"),
            (r#""attributes":7"#.to_owned(), InvalidField, "attributes"),
            (r#""attributes":{"lang":[]}"#.to_owned(), InvalidField, "attributes.lang"),
            (r#""replaces":7"#.to_owned(), InvalidField, "replaces"),
            (r#""replaces":"""#.to_owned(), InvalidField, "replaces"),
            (r#""replaces":"fcm.googleapis.com/x""#.to_owned(), InvalidField, "replaces"),
            (format!(r#""replaces":"https://{}""#, long(ENDPOINT_MAX)), InvalidField, "replaces"),
            (r#""confirm":"hello""#.to_owned(), InvalidField, "confirm"),
            (r#""confirm":{"payload":7}"#.to_owned(), InvalidField, "confirm.payload"),
            (r#""confirm":{"payload":"a","payload_base64":"YQ"}"#.to_owned(), InvalidField, "confirm.payload_base64"),
            (r#""confirm":{"mutable":true}"#.to_owned(), InvalidField, "confirm.mutable"),
            (r#""confirm":{"notification":{"title":"t"}}"#.to_owned(), MissingField, "confirm.notification.navigate"),
            (r#""confirm":{"ttl":60}"#.to_owned(), UnknownField, "confirm.ttl"),
            (format!(r#""confirm":{{"payload":"{}"}}"#, long(4_000)), PayloadTooLarge, "confirm.payload"),
            (r#""enabled":true"#.to_owned(), UnknownField, "enabled"),
        ];
        let cases: Vec<_> = cases.iter().map(|(more, code, field)| (more.as_str(), *code, *field)).collect();
        bad_with("subscribe", &fixed, &cases);
        bad_with(
            "subscribe",
            "",
            &[
                ("", MissingField, "subscription"),
                (r#""subscription":null"#, MissingField, "subscription"),
                (r#""subscription":"x""#, InvalidField, "subscription"),
                (r#""subscription":{}"#, MissingField, "subscription.endpoint"),
                (&fixed.replace("https:", "http:"), EndpointRefused, "subscription.endpoint"),
                (&fixed.replace(AUTH, ""), InvalidField, "subscription.keys.auth"),
                (&format!(r#""subscription":{}"#, s(r#","attributes":{"a":[]}"#)), InvalidField, "subscription.attributes.a"),
                (
                    &format!(r#""subscription":{}"#, s(&format!(r#","applicationServerKey":"{OTHER_POINT}""#))),
                    InvalidField,
                    "subscription.applicationServerKey",
                ),
            ],
        );
        // A socket with several apps, none of them the default.
        let line = format!(r#"{{"op":"subscribe",{fixed}}}"#);
        let problem = parse(line.as_bytes(), &rules_of(&[("news", POINT), ("shop", POINT)]), NOW).1.expect_err("which?");
        assert_eq!((problem.code, problem.field.as_deref()), (MissingField, Some("app")));
    }

    #[test]
    fn updates() {
        let nothing =
            Update { subscription: ID, enabled: None, name: None, account: None, scopes: None, tags: None, attributes: None };
        assert_eq!(updated(r#""enabled":false"#), Update { enabled: Some(false), ..nothing.clone() });
        assert_eq!(updated(r#""account":null"#), Update { account: Some(None), ..nothing.clone() });
        assert_eq!(
            updated(r#""enabled":null,"name":null,"account":null,"scopes":null,"tags":null,"attributes":null"#),
            Update {
                subscription: ID,
                enabled: None,
                name: Some(None),
                account: Some(None),
                scopes: Some(None),
                tags: Some(Vec::new()),
                attributes: Some(attributes_of([])),
            }
        );
        assert_eq!(
            updated(r#""enabled":true,"name":"n","account":"a","scopes":["z","a","z"],"tags":["t"],"attributes":{"k":true}"#),
            Update {
                subscription: ID,
                enabled: Some(true),
                name: Some(Some("n".into())),
                account: Some(Some("a".into())),
                scopes: Some(Some(names_of(["a", "z"]))),
                tags: Some(names_of(["t"])),
                attributes: Some(attributes_of([("k", "true")])),
            }
        );
        assert_eq!(updated(r#""scopes":[]"#), Update { scopes: Some(Some(Vec::new())), ..nothing });
        use Code::{InvalidField, MissingField, UnknownField};
        bad_with(
            "update_subscription",
            SUBSCRIPTION_ID,
            &[
                ("", MissingField, "enabled"),
                (r#""enabled":null"#, MissingField, "enabled"),
                (r#""enabled":1"#, InvalidField, "enabled"),
                (r#""name":"""#, InvalidField, "name"),
                (r#""account":"""#, InvalidField, "account"),
                (r#""account":7"#, InvalidField, "account"),
                (r#""scopes":"news""#, InvalidField, "scopes"),
                (r#""scopes":[7]"#, InvalidField, "scopes[0]"),
                (r#""tags":["a",""]"#, InvalidField, "tags[1]"),
                (r#""attributes":{"a":{}}"#, InvalidField, "attributes.a"),
                (r#""enabled":true,"app":"shop""#, UnknownField, "app"),
                (r#""enabled":true,"endpoint":"x""#, UnknownField, "endpoint"),
                (r#""enabled":true,"user_agent":"x""#, UnknownField, "user_agent"),
            ],
        );
        bad_with(
            "update_subscription",
            r#""enabled":true"#,
            &[
                ("", MissingField, "subscription_id"),
                (r#""subscription_id":null"#, MissingField, "subscription_id"),
                (r#""subscription_id":"AAECAwQFBgcICQ""#, InvalidField, "subscription_id"),
                (r#""subscription_id":7"#, InvalidField, "subscription_id"),
            ],
        );
        // Where every app of the socket lists its scopes, another one is no app's.
        let scopes = [(Arc::from("shop"), [Arc::from("news")].into())].into();
        let rules = rules_of(&[("shop", POINT)]).with_scopes(scopes);
        let line = format!(r#"{{"op":"update_subscription",{SUBSCRIPTION_ID},"scopes":["news","sport"]}}"#);
        let problem = parse(line.as_bytes(), &rules, NOW).1.expect_err("no such scope");
        assert_eq!((problem.code, problem.field.as_deref()), (InvalidField, Some("scopes[1]")));
    }

    #[test]
    fn subscriptions_by_id_or_endpoint() {
        let removed = |more: &str| match good(&format!(r#"{{"op":"unsubscribe",{more}}}"#)) {
            Request::Unsubscribe { subscription } => subscription,
            other => panic!("{other:?}"),
        };
        assert_eq!(removed(SUBSCRIPTION_ID), ID);
        assert_eq!(removed(&format!(r#""endpoint":"{FCM}","subscription_id":null"#)), SubscriptionId::of(FCM));
        assert_eq!(removed(r#""endpoint":"x""#), SubscriptionId::of("x"));
        assert_eq!(
            removed(r#""endpoint":"https://FCM.googleapis.com:443/fcm/send/x""#),
            SubscriptionId::of(FCM),
            "the id is that of the form that is stored"
        );
        let longest = "x".repeat(ENDPOINT_MAX);
        assert_eq!(removed(&format!(r#""endpoint":"{longest}""#)), SubscriptionId::of(&longest));
        bad_with(
            "unsubscribe",
            "",
            &[
                ("", Code::MissingField, "subscription_id"),
                (r#""subscription_id":"x""#, Code::InvalidField, "subscription_id"),
                (r#""endpoint":"""#, Code::InvalidField, "endpoint"),
                (r#""endpoint":{}"#, Code::InvalidField, "endpoint"),
                (&format!(r#""endpoint":"{longest}x""#), Code::InvalidField, "endpoint"),
                (&format!(r#"{SUBSCRIPTION_ID},"endpoint":"x""#), Code::InvalidField, "endpoint"),
                (&format!(r#"{SUBSCRIPTION_ID},"app":"shop""#), Code::UnknownField, "app"),
            ],
        );
    }

    #[test]
    fn accounts() {
        assert_eq!(good(r#"{"op":"account","account":"a"}"#), Request::Account { who: whose("a", None), enabled: None });
        assert_eq!(
            good(r#"{"op":"account","account":"a","app":"shop","enabled":false}"#),
            Request::Account { who: whose("a", Some("shop")), enabled: Some(false) }
        );
        let presence = |more: &str| good(&format!(r#"{{"op":"presence","account":"a",{more}}}"#));
        assert_eq!(
            presence(r#""state":"offline""#),
            Request::Presence { who: whose("a", None), online: false, lease: None, session: None }
        );
        assert_eq!(
            presence(r#""state":"online","lease":86400,"session":"","app":"shop""#),
            Request::Presence { who: whose("a", Some("shop")), online: true, lease: Some(LEASE_MAX), session: Some("".into()) }
        );
        assert_eq!(
            presence(r#""state":"offline","session":"tab 1","lease":null"#),
            Request::Presence { who: whose("a", None), online: false, lease: None, session: Some("tab 1".into()) }
        );
        assert!(matches!(presence(r#""state":"online","lease":0.5"#), Request::Presence { lease: Some(0.5), .. }));
        let read = |more: &str| good(&format!(r#"{{"op":"mark_read","account":"a",{more}}}"#));
        assert_eq!(
            read(&format!(r#""message_id":"{ULID}""#)),
            Request::MarkRead { who: whose("a", None), what: Read::Message(ULID.parse().expect("a ULID")) }
        );
        assert_eq!(
            read(r#""topic":"chat_7","app":"shop""#),
            Request::MarkRead { who: whose("a", Some("shop")), what: Read::Topic("chat_7".into()) }
        );

        use Code::{InvalidField, MissingField, UnknownField};
        let long = format!(r#""account":"{}""#, "a".repeat(ACCOUNT_MAX + 1));
        for (op, rest) in [("account", ""), ("presence", r#""state":"online""#), ("mark_read", r#""topic":"t""#)] {
            bad_with(
                op,
                rest,
                &[
                    ("", MissingField, "account"),
                    (r#""account":null"#, MissingField, "account"),
                    (r#""account":"""#, InvalidField, "account"),
                    (r#""account":7"#, InvalidField, "account"),
                    (&long, InvalidField, "account"),
                    (r#""account":"a","app":"nobody""#, InvalidField, "app"),
                    (r#""account":"a","accounts":[]"#, UnknownField, "accounts"),
                ],
            );
        }
        bad_with("account", r#""account":"a""#, &[(r#""enabled":"no""#, InvalidField, "enabled")]);
        bad_with(
            "presence",
            r#""account":"a""#,
            &[
                ("", MissingField, "state"),
                (r#""state":"away""#, InvalidField, "state"),
                (r#""state":true"#, InvalidField, "state"),
                (r#""state":"online","lease":0"#, InvalidField, "lease"),
                (r#""state":"online","lease":-1"#, InvalidField, "lease"),
                (r#""state":"online","lease":86400.1"#, InvalidField, "lease"),
                (r#""state":"online","lease":"60""#, InvalidField, "lease"),
                (r#""state":"offline","lease":60"#, InvalidField, "lease"),
                (r#""state":"online","session":7"#, InvalidField, "session"),
                (&format!(r#""state":"online","session":"{}""#, "a".repeat(SESSION_MAX + 1)), InvalidField, "session"),
            ],
        );
        bad_with(
            "mark_read",
            r#""account":"a""#,
            &[
                ("", MissingField, "message_id"),
                (r#""message_id":"x""#, InvalidField, "message_id"),
                (r#""message_id":7"#, InvalidField, "message_id"),
                (r#""topic":"a b""#, InvalidField, "topic"),
                (r#""topic":"""#, InvalidField, "topic"),
                (&format!(r#""topic":"t","message_id":"{ULID}""#), InvalidField, "topic"),
            ],
        );
    }

    #[test]
    fn tests_of_one_browser() {
        let tested = |more: &str| match good(&format!(r#"{{"op":"test",{more}}}"#)) {
            Request::Test(test) => *test,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            tested(r#""subscription_ids":["AAECAwQFBgcICQoL","AAECAwQFBgcICQoL"]"#),
            Test { app: "default".into(), to: TestTo::Ids(vec![ID]), payload: Payload::opaque(bytes::Bytes::new()), wait: None }
        );
        assert_eq!(
            tested(r#""account":"a","app":"shop","payload":{"a": 1},"wait":60"#),
            Test {
                app: "shop".into(),
                to: TestTo::Account("a".into()),
                payload: Payload::opaque(br#"{"a":1}"#.as_slice().into()),
                wait: Some(TEST_WAIT_MAX)
            }
        );
        assert_eq!(tested(r#""account":"a","wait":0"#).wait, Some(0.0));
        use Code::{InvalidField, MissingField, UnknownField};
        let many = format!(r#""subscription_ids":[{}0]"#, "0,".repeat(SINGLE_RECIPIENTS_MAX));
        bad_with(
            "test",
            "",
            &[
                ("", MissingField, "subscription_ids"),
                (r#""subscription_ids":[]"#, InvalidField, "subscription_ids"),
                (r#""subscription_ids":["x"]"#, InvalidField, "subscription_ids[0]"),
                (r#""subscription_ids":7"#, InvalidField, "subscription_ids"),
                (&many, InvalidField, "subscription_ids"),
                (r#""account":"""#, InvalidField, "account"),
                (r#""subscription_ids":["AAECAwQFBgcICQoL"],"account":"a""#, InvalidField, "account"),
            ],
        );
        bad_with(
            "test",
            r#""account":"a""#,
            &[
                (r#""app":"nobody""#, InvalidField, "app"),
                (r#""wait":60.1"#, InvalidField, "wait"),
                (r#""wait":-1"#, InvalidField, "wait"),
                (r#""wait":true"#, InvalidField, "wait"),
                (r#""payload":7"#, InvalidField, "payload"),
                (r#""payload_base64":"Y""#, InvalidField, "payload_base64"),
                (r#""notification":[]"#, InvalidField, "notification"),
                (r#""app_badge":1"#, InvalidField, "app_badge"),
                (r#""mutable":true"#, InvalidField, "mutable"),
                (r#""ttl":60"#, UnknownField, "ttl"),
                (r#""receipts":true"#, UnknownField, "receipts"),
            ],
        );
    }

    #[test]
    fn what_readers_did() {
        let receipt: Vec<u8> = (0..44).collect();
        let text = URL_SAFE_NO_PAD.encode(&receipt);
        assert_eq!(text.len(), RECEIPT_CHARS);
        for (word, kind) in [("shown", EventType::Shown), ("clicked", EventType::Clicked), ("dismissed", EventType::Dismissed)] {
            assert_eq!(
                good(&format!(r#"{{"op":"feedback","receipt":"{text}","type":"{word}"}}"#)),
                Request::Feedback { receipt: receipt.as_slice().try_into().expect("44 bytes"), kind }
            );
        }
        use Code::{InvalidField, MissingField, UnknownField};
        bad_with(
            "feedback",
            r#""type":"shown""#,
            &[
                ("", MissingField, "receipt"),
                (r#""receipt":"""#, InvalidField, "receipt"),
                (r#""receipt":7"#, InvalidField, "receipt"),
                (&format!(r#""receipt":"{}""#, &text[1..]), InvalidField, "receipt"),
                (&format!(r#""receipt":"{text}A""#), InvalidField, "receipt"),
                (&format!(r#""receipt":"{}!""#, &text[1..]), InvalidField, "receipt"),
                (&format!(r#""receipt":"{text}","app":"shop""#), UnknownField, "app"),
            ],
        );
        bad_with(
            "feedback",
            &format!(r#""receipt":"{text}""#),
            &[
                ("", MissingField, "type"),
                (r#""type":"gone""#, InvalidField, "type"),
                (r#""type":["shown"]"#, InvalidField, "type"),
            ],
        );
    }

    #[test]
    fn erasing() {
        let erased = |more: &str| match good(&format!(r#"{{"op":"erase",{more}}}"#)) {
            Request::Erase(erase) => erase,
            other => panic!("{other:?}"),
        };
        assert_eq!(erased(r#""account":"a""#), Erase::Account(whose("a", None)));
        assert_eq!(erased(r#""account":"a","app":"shop""#), Erase::Account(whose("a", Some("shop"))));
        assert_eq!(erased(SUBSCRIPTION_ID), Erase::Subscription(ID));
        assert_eq!(erased(&format!(r#""endpoint":"{FCM}""#)), Erase::Subscription(SubscriptionId::of(FCM)));
        use Code::{InvalidField, MissingField, UnknownField};
        bad_with(
            "erase",
            "",
            &[
                ("", MissingField, "account"),
                (r#""account":"""#, InvalidField, "account"),
                (r#""account":"a","app":"nobody""#, InvalidField, "app"),
                (r#""subscription_id":"x""#, InvalidField, "subscription_id"),
                (r#""endpoint":"""#, InvalidField, "endpoint"),
                (r#""account":"a","endpoint":"x""#, InvalidField, "endpoint"),
                (&format!(r#""account":"a",{SUBSCRIPTION_ID}"#), InvalidField, "subscription_id"),
                (&format!(r#"{SUBSCRIPTION_ID},"endpoint":"x""#), InvalidField, "endpoint"),
                (&format!(r#"{SUBSCRIPTION_ID},"app":"shop""#), InvalidField, "app"),
                (r#""everything":true"#, UnknownField, "everything"),
            ],
        );
    }
}
