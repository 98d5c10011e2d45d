//! Operations that stop and start messages and the daemon: `cancel`, `pause`, `resume`, `drain`, `reload` and `backup`.

use std::sync::Arc;

use super::Rules;
use super::fields::{above_zero, arguments, boolean, bounded, checked_message_id, invalid, missing, named_app, text};
use crate::ids::VisibleId;
use crate::limits::{BACKUP_NAME_MAX, LABEL_MAX};
use crate::protocol::json::{Members, Value};
use crate::protocol::request::{Problem, Request, Target};

/// `cancel`.
pub(super) fn cancel(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    Ok(Request::Cancel(target(arguments(members, ["message_id", "label", "app"])?, rules)?))
}

/// `pause`.
pub(super) fn pause(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    Ok(Request::Pause(target(arguments(members, ["message_id", "label", "app"])?, rules)?))
}

/// `resume`.
pub(super) fn resume(members: &Members<'_>, rules: &Rules) -> Result<Request, Problem> {
    let [message_id, label, app, rate] = arguments(members, ["message_id", "label", "app", "rate"])?;
    let target = target([message_id, label, app], rules)?;
    Ok(Request::Resume { target, rate: rate.map(|value| above_zero(value, "rate")).transpose()? })
}

/// `drain`.
pub(super) fn drain(members: &Members<'_>) -> Result<Request, Problem> {
    let [on] = arguments(members, ["on"])?;
    Ok(Request::Drain { on: on.map_or(Ok(true), |value| boolean(value, "on"))? })
}

/// `reload`.
pub(super) fn reload(members: &Members<'_>) -> Result<Request, Problem> {
    arguments(members, []).map(|[]| Request::Reload)
}

/// `backup`.
pub(super) fn backup(members: &Members<'_>) -> Result<Request, Problem> {
    let [name] = arguments(members, ["name"])?;
    Ok(Request::Backup { name: name.map(file_name).transpose()? })
}

/// A name that leads nowhere else and is not hidden.
fn file_name(value: &Value<'_>) -> Result<String, Problem> {
    let name = text(value, "name")?;
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if name.is_empty() || name.len() > BACKUP_NAME_MAX || name.starts_with('.') || !name.bytes().all(good) {
        let message = format!("must be 1 to {BACKUP_NAME_MAX} letters, digits, dots, hyphens and underscores, no dot first");
        return Err(invalid("name", message));
    }
    Ok(name.to_owned())
}

fn target([message_id, label, app]: [Option<&Value<'_>>; 3], rules: &Rules) -> Result<Target<VisibleId>, Problem> {
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

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

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
    fn the_daemon() {
        assert_eq!(good(r#"{"op":"drain"}"#), Request::Drain { on: true });
        assert_eq!(good(r#"{"op":"drain","on":false}"#), Request::Drain { on: false });
        assert_eq!(good(r#"{"op":"reload"}"#), Request::Reload);
        assert_eq!(bad(r#"{"op":"reload","file":"a"}"#), (Code::UnknownField, "file".to_owned()));
        assert_eq!(good(r#"{"op":"backup"}"#), Request::Backup { name: None });
        for name in ["a", "2026-11-22_10.30", "-", &"a".repeat(BACKUP_NAME_MAX)] {
            assert_eq!(good(&format!(r#"{{"op":"backup","name":"{name}"}}"#)), Request::Backup { name: Some(name.to_owned()) });
        }
        for name in ["", ".", "..", ".a", "a/b", "../a", "a b", "ż", "a\\u0000", &"a".repeat(BACKUP_NAME_MAX + 1)] {
            assert_eq!(bad(&format!(r#"{{"op":"backup","name":"{name}"}}"#)), (Code::InvalidField, "name".to_owned()), "{name}");
        }
        bad_with("backup", "", &[(r#""name":7"#, Code::InvalidField, "name"), (r#""path":"a""#, Code::UnknownField, "path")]);
    }
}
