//! The small checkers: members of an object, and single values, each named in the problem by its path.

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;

use super::Rules;
use crate::ids::VisibleId;
use crate::limits::{ACCOUNT_MAX, ENDPOINT_MAX, NAME_MAX, NAMES_MAX};
use crate::message::{Account, Name, SubscriptionId};
use crate::protocol::json::{Members, Value};
use crate::protocol::keys::decode_exactly;
use crate::protocol::request::{Code, Problem, Whose};

/// The members called `names` of a request; null equals absent, another one is an error.
pub(super) fn arguments<'v, 'a, const N: usize>(
    members: &'v Members<'a>,
    names: [&str; N],
) -> Result<[Option<&'v Value<'a>>; N], Problem> {
    only(own(members), names)
}

/// The same for an object that is no request.
pub(super) fn fields<'v, 'a, const N: usize>(
    members: &'v Members<'a>,
    names: [&str; N],
) -> Result<[Option<&'v Value<'a>>; N], Problem> {
    only(present(members), names)
}

fn only<'v, 'a: 'v, const N: usize>(
    members: impl Iterator<Item = (&'v str, &'v Value<'a>)>,
    names: [&str; N],
) -> Result<[Option<&'v Value<'a>>; N], Problem> {
    let mut found = [None; N];
    for (name, value) in members {
        let n = names.iter().position(|known| *known == name).ok_or_else(|| unknown(name))?;
        found[n] = Some(value);
    }
    Ok(found)
}

/// The members of a request that are not every request's.
pub(super) fn own<'v, 'a>(members: &'v Members<'a>) -> impl Iterator<Item = (&'v str, &'v Value<'a>)> {
    present(members).filter(|(name, _)| !matches!(*name, "op" | "id"))
}

/// Null equals absent.
fn present<'v, 'a>(members: &'v Members<'a>) -> impl Iterator<Item = (&'v str, &'v Value<'a>)> {
    members.iter().map(|(name, value)| (name.as_ref(), value)).filter(|(_, value)| **value != Value::Null)
}

pub(super) fn unknown(name: &str) -> Problem {
    Problem { code: Code::UnknownField, field: Some(shown(name)), message: "is not known here".to_owned() }
}

/// The members called `names` of a request that tells null from absent: there a null is a value.
pub(super) fn arguments_with_nulls<'v, 'a, const N: usize>(
    members: &'v Members<'a>,
    names: [&str; N],
) -> Result<[Option<&'v Value<'a>>; N], Problem> {
    arguments(members, names)?;
    Ok(names.map(|wanted| members.iter().find(|(name, _)| *name == wanted).map(|(_, value)| value)))
}

/// The members called `names`, whatever else there is.
pub(super) fn pick<'v, 'a, const N: usize>(members: &'v Members<'a>, names: [&str; N]) -> [Option<&'v Value<'a>>; N] {
    let mut found = [None; N];
    for (name, value) in present(members) {
        if let Some(n) = names.iter().position(|known| *known == name) {
            found[n] = Some(value);
        }
    }
    found
}

/// A member's name as it may stand in an error: not longer than anybody reads.
pub(super) fn shown(name: &str) -> String {
    const SHOWN_MAX: usize = 64;
    match name.char_indices().nth(SHOWN_MAX) {
        Some((cut, _)) => format!("{}…", &name[..cut]),
        None => name.to_owned(),
    }
}

/// Longest cursor that is looked at.
pub(super) const CURSOR_MAX: usize = 128;

pub(super) fn text<'v>(value: &'v Value<'_>, field: &str) -> Result<&'v str, Problem> {
    match value {
        Value::Text(text) => Ok(text),
        _ => Err(invalid(field, "must be a string")),
    }
}

pub(super) fn bounded<'v>(value: &'v Value<'_>, field: &str, min: usize, max: usize) -> Result<&'v str, Problem> {
    let text = text(value, field)?;
    if (min..=max).contains(&text.len()) { Ok(text) } else { Err(invalid(field, format!("must be {min} to {max} bytes long"))) }
}

pub(super) fn boolean(value: &Value<'_>, field: &str) -> Result<bool, Problem> {
    match value {
        Value::Bool(on) => Ok(*on),
        _ => Err(invalid(field, "must be true or false")),
    }
}

pub(super) fn number(value: &Value<'_>, field: &str) -> Result<f64, Problem> {
    let number = match value {
        Value::Number(digits) => digits.parse().ok().filter(|number: &f64| number.is_finite()),
        _ => None,
    };
    number.ok_or_else(|| invalid(field, "must be a number"))
}

pub(super) fn above_zero(value: &Value<'_>, field: &str) -> Result<f64, Problem> {
    let number = number(value, field)?;
    if number > 0.0 { Ok(number) } else { Err(invalid(field, "must be above 0")) }
}

pub(super) fn integer(value: &Value<'_>, field: &str, max: u32) -> Result<u32, Problem> {
    let number = match value {
        Value::Number(digits) => digits.parse().ok().filter(|number| (1..=max).contains(number)),
        _ => None,
    };
    number.ok_or_else(|| invalid(field, format!("must be an integer from 1 to {max}")))
}

/// A number from 0 (which is one of them only if `zero`) to `max`.
pub(super) fn at_most(value: &Value<'_>, field: &str, zero: bool, max: f64) -> Result<f64, Problem> {
    let number = number(value, field)?;
    if number > max || number < 0.0 || (number == 0.0 && !zero) {
        let from = if zero { "0 to" } else { "above 0 and at most" };
        return Err(invalid(field, format!("must be {from} {max}")));
    }
    Ok(number.abs())
}

/// The items of an array that is not empty, in their order, each once.
pub(super) fn each_once<T: Clone + Eq + Hash>(
    value: &Value<'_>,
    field: &str,
    max: usize,
    check: impl Fn(&Value<'_>, &str) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    match value {
        Value::Array(items) if items.is_empty() => return Err(invalid(field, "must not be empty")),
        Value::Array(items) if items.len() > max => return Err(invalid(field, format!("must hold at most {max}"))),
        _ => {}
    }
    let mut checked = each(value, field, check)?;
    if checked.len() > 1 {
        let mut met = HashSet::with_capacity(checked.len());
        checked.retain(|item| met.insert(item.clone()));
    }
    Ok(checked)
}

/// A tag, a scope, or the name of an attribute.
pub(super) fn name(value: &Value<'_>, field: &str) -> Result<Name, Problem> {
    bounded(value, field, 1, NAME_MAX).map(Arc::from)
}

/// Tags or scopes, sorted, each once.
pub(super) fn names(value: &Value<'_>, field: &str) -> Result<Vec<Name>, Problem> {
    let mut names = each(value, field, name)?;
    names.sort_unstable();
    names.dedup();
    if names.len() > NAMES_MAX {
        return Err(invalid(field, format!("must hold at most {NAMES_MAX} different ones")));
    }
    Ok(names)
}

/// The items of an array, each checked and named by its place in it.
pub(super) fn each<T>(
    value: &Value<'_>,
    field: &str,
    check: impl Fn(&Value<'_>, &str) -> Result<T, Problem>,
) -> Result<Vec<T>, Problem> {
    let Value::Array(items) = value else { return Err(invalid(field, "must be an array")) };
    let mut checked = Vec::with_capacity(items.len().min(4_096));
    for (index, item) in items.iter().enumerate() {
        checked.push(check(item, field).map_err(|problem| Problem { field: Some(format!("{field}[{index}]")), ..problem })?);
    }
    Ok(checked)
}

pub(super) fn app_or_default(value: Option<&Value<'_>>, rules: &Rules) -> Result<Arc<str>, Problem> {
    match value {
        Some(value) => named_app(value, rules),
        None => rules.default_app.clone().ok_or_else(|| Problem {
            message: "is needed, because this socket has several apps and none is called default".to_owned(),
            ..missing("app")
        }),
    }
}

pub(super) fn named_app(value: &Value<'_>, rules: &Rules) -> Result<Arc<str>, Problem> {
    match rules.apps.get_key_value(text(value, "app")?) {
        Some((name, _)) => Ok(name.clone()),
        None => Err(invalid("app", "is no app of this socket")),
    }
}

pub(super) fn required_message_id(value: Option<&Value<'_>>) -> Result<VisibleId, Problem> {
    checked_message_id(value.ok_or_else(|| missing("message_id"))?)
}

pub(super) fn checked_message_id(value: &Value<'_>) -> Result<VisibleId, Problem> {
    text(value, "message_id")?.parse().map_err(|_| invalid("message_id", "must be a message id, a ULID of 26 characters"))
}

/// Scopes that a request may name: those of `app`, or (None) of any app of the socket.
pub(super) fn is_valid_scope(scope: &str, app: Option<&Arc<str>>, rules: &Rules) -> bool {
    match app {
        Some(app) => rules.has_scope(app, scope),
        None => rules.apps.keys().any(|app| rules.has_scope(app, scope)),
    }
}

/// A scope, one of the valid ones of `app`.
pub(super) fn scope(value: &Value<'_>, app: Option<&Arc<str>>, rules: &Rules) -> Result<Name, Problem> {
    let scope = name(value, "scope")?;
    if is_valid_scope(&scope, app, rules) { Ok(scope) } else { Err(invalid("scope", NO_SCOPE)) }
}

/// Scopes, each one of the valid ones of `app`.
pub(super) fn scopes(value: &Value<'_>, app: Option<&Arc<str>>, rules: &Rules) -> Result<Vec<Name>, Problem> {
    each(value, "scopes", |item, field| {
        let scope = name(item, field)?;
        if is_valid_scope(&scope, app, rules) { Ok(()) } else { Err(invalid(field, NO_SCOPE)) }
    })?;
    names(value, "scopes")
}

pub(super) const NO_SCOPE: &str = "is none of the app's scopes";

pub(super) fn account(value: &Value<'_>, field: &str) -> Result<Account, Problem> {
    bounded(value, field, 1, ACCOUNT_MAX).map(Arc::from)
}

/// `account` of a request, and the app it means.
pub(super) fn whose(value: Option<&Value<'_>>, app: Option<&Value<'_>>, rules: &Rules) -> Result<Whose, Problem> {
    let account = account(value.ok_or_else(|| missing("account"))?, "account")?;
    Ok(Whose { account, app: app.map(|value| named_app(value, rules)).transpose()? })
}

/// The id of a subscription.
pub(super) fn checked_subscription_id(value: &Value<'_>, field: &str) -> Result<SubscriptionId, Problem> {
    read_subscription_id(text(value, field)?, field)
}

/// The subscription that has this endpoint, or had it. It is only looked up: whether it may be contacted does not matter.
pub(super) fn id_of_endpoint(value: &Value<'_>, field: &str, rules: &Rules) -> Result<SubscriptionId, Problem> {
    let endpoint = bounded(value, field, 1, ENDPOINT_MAX)?;
    Ok(match rules.policy.check(endpoint) {
        // The id is that of the form it was stored in.
        Ok((checked, _)) => SubscriptionId::of(checked.as_str()),
        Err(_) => SubscriptionId::of(endpoint),
    })
}

/// A subscription by its id, or by its endpoint.
pub(super) fn id_or_endpoint(value: &Value<'_>, field: &str, rules: &Rules) -> Result<SubscriptionId, Problem> {
    match text(value, field)? {
        endpoint if endpoint.contains("://") => id_of_endpoint(value, field, rules),
        id => read_subscription_id(id, field),
    }
}

/// `subscription_id` or `endpoint`, exactly one.
pub(super) fn one_subscription([id, endpoint]: [Option<&Value<'_>>; 2], rules: &Rules) -> Result<SubscriptionId, Problem> {
    const ONE: &str = "exactly one of subscription_id and endpoint must be given";
    match (id, endpoint) {
        (Some(value), None) => checked_subscription_id(value, "subscription_id"),
        (None, Some(value)) => id_of_endpoint(value, "endpoint", rules),
        (None, None) => Err(Problem { message: ONE.to_owned(), ..missing("subscription_id") }),
        (Some(_), Some(_)) => Err(invalid("endpoint", ONE)),
    }
}

fn read_subscription_id(text: &str, field: &str) -> Result<SubscriptionId, Problem> {
    decode_exactly(text).map(SubscriptionId).ok_or_else(|| invalid(field, "must be 16 characters of base64url"))
}

pub(super) fn bad_json(message: String) -> Problem {
    Problem { code: Code::BadJson, field: None, message }
}

pub(super) fn missing(field: &str) -> Problem {
    Problem { code: Code::MissingField, field: Some(field.to_owned()), message: "is missing".to_owned() }
}

pub(super) fn invalid(field: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem { code: Code::InvalidField, field: Some(field.into()), message: message.into() }
}

/// The same problem, its field named from one level further out.
pub(super) fn within(problem: Problem, place: impl Display) -> Problem {
    let field = match problem.field {
        Some(field) => format!("{place}.{field}"),
        None => place.to_string(),
    };
    Problem { field: Some(field), ..problem }
}
