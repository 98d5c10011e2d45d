//! Requests that only read the store: each becomes one line. It runs on a thread that may block.

use std::sync::Arc;

use crate::clock;
use crate::ids::{Ids, Position};
use crate::ingest::answer::refusal::Refusal;
use crate::ingest::registry::{Listing, write_account, write_disabled, write_list, write_subscription};
use crate::ingest::reply::{begin_ok, end, format_time, member, member_message_id, member_text, member_time};
use crate::ingest::request::{By, Code, Problem, Request, RequestId, State};
use crate::ingest::{Door, Socket};
use crate::message::{Ending, UnixMillis};
use crate::store::WriteError;
use crate::store::backup::{self, BackupError};
use crate::store::live::ListKey;
use crate::store::read::Status;
use crate::store::record::Counts;

pub(super) fn read_request(
    door: &Door,
    socket: &Socket,
    id: &RequestId,
    request: Request,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let store = &door.store;
    let apps = socket.apps();
    let now = clock::now();
    match request {
        Request::Status { message_id } => {
            let status = store.status(store.ids.read(message_id), &apps, now)?.ok_or_else(Refusal::not_found)?;
            begin_ok(out, id);
            write_status(&store.ids, &status, now, out);
            end(out);
        }
        Request::ListMessages { state, label, limit, after } => {
            let after = match after.as_deref().map(|text| store.ids.open(text)) {
                None => None,
                Some(Some(Position::Message { commit, place })) => Some(ListKey { commit, place }),
                Some(_) => {
                    let problem = Problem {
                        code: Code::InvalidField,
                        field: Some("after".to_owned()),
                        message: "after is what an earlier list_messages gave".to_owned(),
                    };
                    return Err(Refusal { problem, retry_after: None, extra: Vec::new() });
                }
            };
            let wanted = |status: &Status| {
                state.is_none_or(|state| status.state == state)
                    && label.as_ref().is_none_or(|label| status.label.as_deref() == Some(label))
            };
            let (messages, after) = store.list_messages(wanted, limit as usize, after, &apps, now)?;
            begin_ok(out, id);
            out.extend_from_slice(b",\"messages\":[");
            for (index, status) in messages.iter().enumerate() {
                let start = out.len();
                write_status(&store.ids, status, now, out);
                out[start] = b'{';
                out.push(b'}');
                if index > 0 {
                    out.insert(start, b',');
                }
            }
            out.push(b']');
            match after {
                Some(ListKey { commit, place }) => {
                    member_text(out, "after", &store.ids.seal(Position::Message { commit, place }));
                }
                None => member(out, "after", "null"),
            }
            end(out);
        }
        Request::Stats { from, to, by } => {
            let lines = store.stats(from.unwrap_or(0), to.unwrap_or(u32::MAX), &by, &apps)?;
            begin_ok(out, id);
            out.extend_from_slice(b",\"stats\":[");
            for (index, (key, counts)) in lines.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                let start = out.len();
                for dimension in &by {
                    match dimension {
                        By::Day => member_text(out, "day", &format_time(UnixMillis(u64::from(key.day) * 86_400_000))[..10]),
                        By::Label if key.label.is_empty() => member(out, "label", "null"),
                        By::Label => member_text(out, "label", &key.label),
                        By::App => member_text(out, "app", &key.app),
                        By::Service => member_text(out, "service", &store.services.name(key.service)),
                        By::Key => member_text(out, "key", &key.key.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
                    }
                }
                write_counts(counts, out);
                out[start] = b'{';
                out.push(b'}');
            }
            out.push(b']');
            end(out);
        }
        Request::Origins => {
            begin_ok(out, id);
            member(out, "origins", (door.origins)((!socket.operator).then_some(&apps)));
            end(out);
        }
        Request::VapidPublicKey { app } => {
            let key = door.tokens.public_key(&app).ok_or_else(|| Refusal {
                problem: Problem {
                    code: Code::InvalidField,
                    field: Some("app".to_owned()),
                    message: "there is no such app".to_owned(),
                },
                retry_after: None,
                extra: Vec::new(),
            })?;
            begin_ok(out, id);
            member_text(out, "app", &app);
            member_text(out, "public_key", &key);
            let keys = door.tokens.keys(&app);
            let others: Vec<_> = keys.iter().skip(1).filter_map(|key| door.tokens.public_key_of(&app, *key)).collect();
            if !others.is_empty() {
                // They still sign for who subscribed with them.
                member(out, "other_keys", serde_json::Value::from_iter(others.iter().map(|key| &**key)));
            }
            end(out);
        }
        Request::Subscription { subscription, reveal } => {
            let known = store.subscription(subscription, &apps)?.ok_or_else(Refusal::no_subscription)?;
            write_subscription(store, id, &known, reveal.then_some(&*door.tokens), out);
        }
        Request::Account { who, .. } => write_account(store, id, &who, &apps, now, out)?,
        Request::ListSubscriptions { of, app, limit, after, reveal } => {
            let listing = Listing {
                of: &of,
                app: app.as_deref(),
                limit: limit as usize,
                after: after.as_deref(),
                reveal: reveal.then_some(&*door.tokens),
            };
            write_list(store, id, &listing, &apps, out)?;
        }
        Request::DisabledAccounts { app, limit, after } => {
            let named = app.map(|app| Arc::new(vec![app]));
            write_disabled(store, id, named.as_ref().unwrap_or(&apps), limit as usize, after.as_deref(), out)?;
        }
        Request::Count { segment, scope, app } => {
            let named = app.map(|app| vec![app]);
            let count = store.count(named.as_deref().unwrap_or(&apps), segment.as_ref(), scope.as_ref())?;
            begin_ok(out, id);
            member(out, "count", count);
            end(out);
        }
        Request::Backup { name } => {
            let name = name.unwrap_or_else(|| backup::name_at(now));
            let made = store.backup(&name).map_err(|error| {
                let (code, field, retry_after) = match error {
                    BackupError::Name => (Code::InvalidField, Some("name"), None),
                    BackupError::Exists => (Code::Conflict, Some("name"), None),
                    BackupError::Store(WriteError::Full(_)) => (Code::ReadOnly, None, Some(5.0)),
                    BackupError::Store(_) | BackupError::Directory { .. } => (Code::Internal, None, Some(5.0)),
                };
                let problem = Problem { code, field: field.map(str::to_owned), message: error.to_string() };
                Refusal { problem, retry_after, extra: Vec::new() }
            })?;
            begin_ok(out, id);
            member_text(out, "name", &made.name);
            member_text(out, "path", &made.path.display().to_string());
            member(out, "bytes", made.bytes);
            end(out);
        }
        // These are written, or answered elsewhere.
        Request::Send(_)
        | Request::Add(_)
        | Request::Close { .. }
        | Request::Cancel(_)
        | Request::Pause(_)
        | Request::Resume { .. }
        | Request::Events(_)
        | Request::Ping
        | Request::Subscribe(_)
        | Request::UpdateSubscription(_)
        | Request::Unsubscribe { .. }
        | Request::Presence { .. }
        | Request::MarkRead { .. }
        | Request::Test(_)
        | Request::Feedback { .. }
        | Request::Erase(_)
        | Request::Drain { .. } => unreachable!("prepare() sends only what reads here"),
    }
    Ok(())
}

fn write_counts(counts: &Counts, out: &mut Vec<u8>) {
    member(out, "recipients", counts.recipients);
    member(out, "rejected", counts.rejected);
    for ending in Ending::ALL {
        member(out, ending.as_str(), counts.ended[ending as usize - 1]);
    }
    member(out, "retries", counts.retries);
}

/// The members of a status, each with a leading comma.
fn write_status(ids: &Ids, status: &Status, now: UnixMillis, out: &mut Vec<u8>) {
    let text_or_null = |out: &mut Vec<u8>, name: &str, text: Option<&str>| match text {
        Some(text) => member_text(out, name, text),
        None => member(out, name, "null"),
    };
    member_message_id(out, ids.show(status.id));
    member_text(out, "state", status.state.as_str());
    member(out, "open", status.open);
    text_or_null(out, "label", status.label.as_deref());
    text_or_null(out, "ref", status.reference.as_deref());
    member_time(out, "created", status.id.created());
    member_time(out, "at", status.at);
    member_time(out, "expires", status.expires);
    member(out, "position", status.position.as_deref().unwrap_or("null"));
    let counts = &status.counts;
    member(out, "pending", counts.pending());
    write_counts(counts, out);
    member(out, "in_flight", status.in_flight);
    for (name, count) in ["shown", "clicked", "dismissed"].into_iter().zip(status.feedback) {
        member(out, name, count);
    }
    member(out, "walked", walked(status));
    match status.rate {
        Some(rate) => member(out, "rate", rate),
        None => member(out, "rate", "null"),
    }
    match eta(status, now) {
        Some(eta) => member_time(out, "eta", eta),
        None => member(out, "eta", "null"),
    }
}

/// How much of a message has been gone through: of a campaign the subscriptions that it has passed, of others what has ended.
fn walked(status: &Status) -> f64 {
    let counts = &status.counts;
    let ended = counts.recipients - counts.pending();
    match status.walked {
        // In thousandths: the exact part would tell how many subscriptions all apps have, which the walk passes.
        Some(walked) => (walked * 1_000.0).floor() / 1_000.0,
        None if counts.recipients == 0 => f64::from(u8::from(!status.open)),
        None => ended as f64 / counts.recipients as f64,
    }
}

/// When the last delivery will have been tried, if it goes on as it did since the start; None where nothing can be said.
fn eta(status: &Status, now: UnixMillis) -> Option<UnixMillis> {
    let walked = walked(status);
    let began = status.at.max(status.id.created());
    let elapsed = now.since(began);
    let over = matches!(status.state, State::Done | State::Cancelled);
    if over || status.counts.pending() == 0 && !status.open || walked <= 0.0 || elapsed == 0 {
        return None;
    }
    let left = elapsed as f64 / walked * (1.0 - walked);
    Some(now.plus(left as u64).min(status.expires))
}
