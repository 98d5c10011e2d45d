//! The operations that only read.

use super::Rules;
use super::fields::{
    self, CURSOR_MAX, app_or_default, arguments, boolean, bounded, checked_message_id, checked_subscription_id, integer, invalid,
    named_app, one_subscription, required_message_id, text,
};
use super::segment::segment;
use crate::ids::POSITION_CHARS;
use crate::limits::{ACCOUNT_MAX, LABEL_MAX};
use crate::protocol::json::{Members, Value};
use crate::protocol::request::{After, By, EventType, Events, Of, Problem, Request, State};
use crate::protocol::time::parse_time;

/// Items of a list's page.
const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 1_000;

/// `status`.
pub(super) fn status(members: &Members<'_>) -> Result<Request, Problem> {
    let [message_id] = arguments(members, ["message_id"])?;
    Ok(Request::Status { message_id: required_message_id(message_id)? })
}

/// `list_messages`.
pub(super) fn list_messages(members: &Members<'_>) -> Result<Request, Problem> {
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
        limit: limit.map_or(Ok(LIMIT_DEFAULT), |value| integer(value, "limit", LIMIT_MAX))?,
        after: after.map(|value| bounded(value, "after", 1, CURSOR_MAX)).transpose()?.map(str::to_owned),
    })
}

/// `events`.
pub(super) fn events(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [after, last, limit, follow, types, app, label, message_id, account, subscription_id] = arguments(
        members,
        ["after", "last", "limit", "follow", "types", "app", "label", "message_id", "account", "subscription_id"],
    )?;
    Ok(Request::Events(Events {
        after: match (after, last) {
            (Some(value), None) => match bounded(value, "after", 1, CURSOR_MAX)? {
                "oldest" => After::Oldest,
                "newest" => After::Newest,
                cursor => After::Cursor(cursor.to_owned()),
            },
            (None, Some(value)) => After::Last(integer(value, "last", LIMIT_MAX)?),
            (None, None) => After::Oldest,
            (Some(_), Some(_)) => return Err(invalid("last", "at most one of after and last can be given")),
        },
        limit: limit.map(|value| integer(value, "limit", u32::MAX)).transpose()?,
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
        subscription_id: subscription_id.map(|value| checked_subscription_id(value, "subscription_id")).transpose()?,
    }))
}

/// `stats`.
pub(super) fn stats(members: &Members<'_>) -> Result<Request, Problem> {
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

/// `origins`.
pub(super) fn origins(members: &Members<'_>) -> Result<Request, Problem> {
    arguments(members, []).map(|[]| Request::Origins)
}

/// `ping`.
pub(super) fn ping(members: &Members<'_>) -> Result<Request, Problem> {
    arguments(members, []).map(|[]| Request::Ping)
}

/// `vapid_public_key`.
pub(super) fn vapid_public_key(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [app] = arguments(members, ["app"])?;
    Ok(Request::VapidPublicKey { app: app_or_default(app, rules)? })
}

/// `subscription`.
pub(super) fn subscription(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [id, endpoint, reveal] = arguments(members, ["subscription_id", "endpoint", "reveal"])?;
    Ok(Request::Subscription {
        subscription: one_subscription([id, endpoint], rules)?,
        reveal: reveal.map_or(Ok(false), |value| boolean(value, "reveal"))?,
    })
}

/// `list_subscriptions`.
pub(super) fn list_subscriptions(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [account, of_segment, app, limit, after, reveal] =
        arguments(members, ["account", "segment", "app", "limit", "after", "reveal"])?;
    let of = match (account, of_segment) {
        (Some(value), None) => Of::Account(fields::account(value, "account")?),
        (None, Some(value)) => Of::Segment(segment(value, "segment")?),
        (None, None) => Of::All,
        (Some(_), Some(_)) => return Err(invalid("segment", "at most one of account and segment can be given")),
    };
    Ok(Request::ListSubscriptions {
        of,
        app: app.map(|value| named_app(value, rules)).transpose()?,
        limit: limit.map_or(Ok(LIMIT_DEFAULT), |value| integer(value, "limit", LIMIT_MAX))?,
        after: after.map(|value| bounded(value, "after", 1, CURSOR_MAX)).transpose()?.map(str::to_owned),
        reveal: reveal.map_or(Ok(false), |value| boolean(value, "reveal"))?,
    })
}

/// `disabled_accounts`.
pub(super) fn disabled_accounts(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [app, limit, after] = arguments(members, ["app", "limit", "after"])?;
    Ok(Request::DisabledAccounts {
        app: app.map(|value| named_app(value, rules)).transpose()?,
        limit: limit.map_or(Ok(LIMIT_DEFAULT), |value| integer(value, "limit", LIMIT_MAX))?,
        // An app, a dot and an account.
        after: after.map(|value| bounded(value, "after", 1, POSITION_CHARS + 1 + ACCOUNT_MAX)).transpose()?.map(str::to_owned),
    })
}

/// `count`.
pub(super) fn count(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [of_segment, scope, app] = arguments(members, ["segment", "scope", "app"])?;
    let app = app.map(|value| named_app(value, rules)).transpose()?;
    Ok(Request::Count {
        segment: of_segment.map(|value| segment(value, "segment")).transpose()?,
        scope: scope.map(|value| fields::scope(value, app.as_ref(), rules)).transpose()?,
        app,
    })
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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::message::Segment;

    #[test]
    fn questions() {
        assert_eq!(good(r#"{"op":"ping"}"#), Request::Ping);
        assert_eq!(good(r#"{"op":"origins"}"#), Request::Origins);
        assert_eq!(good(r#"{"op":"vapid_public_key"}"#), Request::VapidPublicKey { app: "default".into() });
        assert_eq!(good(r#"{"op":"vapid_public_key","app":"shop"}"#), Request::VapidPublicKey { app: "shop".into() });
        assert_eq!(good(r#"{"op":"disabled_accounts"}"#), Request::DisabledAccounts { app: None, limit: 100, after: None });
        let longest = format!("{}.{}", "a".repeat(POSITION_CHARS), "a".repeat(ACCOUNT_MAX));
        assert_eq!(
            good(&format!(r#"{{"op":"disabled_accounts","app":"shop","limit":1000,"after":"{longest}"}}"#)),
            Request::DisabledAccounts { app: Some("shop".into()), limit: 1_000, after: Some(longest) }
        );
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
        assert_eq!(good(r#"{"op":"events","last":10}"#), Request::Events(Events { after: After::Last(10), ..all.clone() }));
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
            (r#"{"op":"events","last":0}"#, Code::InvalidField, "last"),
            (r#"{"op":"events","last":1001}"#, Code::InvalidField, "last"),
            (r#"{"op":"events","last":1,"after":"oldest"}"#, Code::InvalidField, "last"),
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
    fn the_registry_is_asked() {
        let of_fcm = SubscriptionId::of(FCM);
        assert_eq!(
            good(r#"{"op":"subscription","subscription_id":"AAECAwQFBgcICQoL"}"#),
            Request::Subscription { subscription: ID, reveal: false }
        );
        assert_eq!(
            good(&format!(r#"{{"op":"subscription","endpoint":"{FCM}","reveal":true}}"#)),
            Request::Subscription { subscription: of_fcm, reveal: true }
        );
        bad_with(
            "subscription",
            "",
            &[
                ("", Code::MissingField, "subscription_id"),
                (r#""subscription_id":"x""#, Code::InvalidField, "subscription_id"),
                (r#""subscription_id":7"#, Code::InvalidField, "subscription_id"),
                (r#""endpoint":7"#, Code::InvalidField, "endpoint"),
                (r#""subscription_id":"AAECAwQFBgcICQoL","endpoint":"x""#, Code::InvalidField, "endpoint"),
                (r#""endpoint":"x","reveal":1"#, Code::InvalidField, "reveal"),
                (r#""endpoint":"x","app":"shop""#, Code::UnknownField, "app"),
            ],
        );

        let all = |of: Of| Request::ListSubscriptions { of, app: None, limit: 100, after: None, reveal: false };
        assert_eq!(good(r#"{"op":"list_subscriptions"}"#), all(Of::All));
        assert_eq!(good(r#"{"op":"list_subscriptions","account":"a","segment":null}"#), all(Of::Account("a".into())));
        assert_eq!(
            good(r#"{"op":"list_subscriptions","segment":{"all":true},"app":"shop","limit":1000,"after":"c","reveal":true}"#),
            Request::ListSubscriptions {
                of: Of::Segment(Segment::default()),
                app: Some("shop".into()),
                limit: 1_000,
                after: Some("c".to_owned()),
                reveal: true
            }
        );
        bad_with(
            "list_subscriptions",
            "",
            &[
                (r#""account":"""#, Code::InvalidField, "account"),
                (r#""account":7"#, Code::InvalidField, "account"),
                (r#""account":"a","segment":{"all":true}"#, Code::InvalidField, "segment"),
                (r#""segment":{}"#, Code::InvalidField, "segment"),
                (r#""app":"nobody""#, Code::InvalidField, "app"),
                (r#""limit":0"#, Code::InvalidField, "limit"),
                (r#""limit":1001"#, Code::InvalidField, "limit"),
                (r#""limit":1.5"#, Code::InvalidField, "limit"),
                (r#""after":"""#, Code::InvalidField, "after"),
                (r#""after":7"#, Code::InvalidField, "after"),
                (r#""reveal":"yes""#, Code::InvalidField, "reveal"),
                (r#""scope":"news""#, Code::UnknownField, "scope"),
            ],
        );

        assert_eq!(good(r#"{"op":"count"}"#), Request::Count { segment: None, scope: None, app: None });
        assert_eq!(
            good(r#"{"op":"count","segment":{"all":true},"scope":"news","app":"shop"}"#),
            Request::Count { segment: Some(Segment::default()), scope: Some("news".into()), app: Some("shop".into()) }
        );
        assert_eq!(
            good(r#"{"op":"count","scope":"sport"}"#),
            Request::Count { segment: None, scope: Some("sport".into()), app: None },
            "another app takes every scope"
        );
        bad_with(
            "count",
            "",
            &[
                (r#""segment":{}"#, Code::InvalidField, "segment"),
                (r#""scope":"""#, Code::InvalidField, "scope"),
                (r#""scope":["news"]"#, Code::InvalidField, "scope"),
                (r#""scope":"sport","app":"shop""#, Code::InvalidField, "scope"),
                (r#""app":"nobody""#, Code::InvalidField, "app"),
                (r#""limit":1"#, Code::UnknownField, "limit"),
            ],
        );
    }
}
