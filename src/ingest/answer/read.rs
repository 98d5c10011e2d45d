//! Requests that only read the store: each becomes one line. It runs on a thread that may block; what may have much to look at has
//! it for some milliseconds at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::clock;
use crate::ids::{Ids, Position};
use crate::ingest::answer::refusal::Refusal;
use crate::ingest::registry::{
    Behind, Listing, behind, list_some, write_account, write_disabled, write_list, write_subscription,
};
use crate::ingest::{Door, Socket, TURN};
use crate::message::{Ending, SubscriptionKey, UnixMillis};
use crate::protocol::reply::{begin_ok, end, member, member_message_id, member_text, member_time};
use crate::protocol::request::{By, Code, Problem, Request, RequestId, State};
use crate::protocol::time::format_time;
use crate::store::backup::{self, BackupError};
use crate::store::commit::Apps;
use crate::store::live::ListKey;
use crate::store::read::Status;
use crate::store::record::Counts;
use crate::store::registry::Known;
use crate::store::registry::row::App;
use crate::store::writer::StatsKey;
use crate::store::{Store, WriteError};

/// Lists that one turn of `list_messages` looks at.
const LISTS_A_TURN: usize = if cfg!(test) { 2 } else { 256 };
/// Lists that one `list_messages` looks at; where there are more it says where to go on.
const LISTS_SEEN: usize = 10_000;
/// Lines that `stats` answers at most: they are one reply.
const STATS_LINES: usize = 50_000;

/// A request that only reads, and how far it has come.
pub(super) struct Reading {
    request: Request,
    so_far: SoFar,
}

/// What the turns that it had have found, and where the next one begins.
enum SoFar {
    /// Nothing, or it needs no more than one.
    Begun,
    Messages {
        found: Vec<Status>,
        seen: usize,
        after: Option<ListKey>,
    },
    Subscriptions {
        found: Vec<Known>,
        after: Option<Behind>,
    },
    Counted {
        count: u64,
        from: (App, Option<SubscriptionKey>),
    },
    Stats {
        sums: BTreeMap<StatsKey, Counts>,
        from: Vec<u8>,
    },
}

impl Reading {
    pub(super) fn of(request: Request) -> Reading {
        Reading { request, so_far: SoFar::Begun }
    }

    /// Has one turn. True: the line is the answer; false: there is more to look at.
    pub(super) fn go_on(&mut self, door: &Door, socket: &Socket, id: &RequestId, out: &mut Vec<u8>) -> Result<bool, Refusal> {
        let store = &door.store;
        let apps = socket.apps();
        let until = Instant::now() + TURN;
        let so_far = std::mem::replace(&mut self.so_far, SoFar::Begun);
        self.so_far = match &self.request {
            Request::ListMessages { state, label, limit, after } => {
                list_messages(store, id, (*state, label.as_deref(), *limit as usize, after.as_deref()), &apps, so_far, out)?
            }
            Request::Stats { from, to, by } => stats(store, id, (*from, *to, by), &apps, so_far, until, out)?,
            Request::Count { segment, scope, app } => {
                let named = app.clone().map(|app| vec![app]);
                let (before, from) = match so_far {
                    SoFar::Counted { count, from } => (count, from),
                    _ => (0, (0, None)),
                };
                let apps = named.as_deref().unwrap_or(&apps);
                let (count, more) = store.count(apps, segment.as_ref(), scope.as_ref(), from, until)?;
                let count = before + count;
                match more {
                    Some((app, key)) => SoFar::Counted { count, from: (app, Some(key)) },
                    None => {
                        begin_ok(out, id);
                        member(out, "count", count);
                        end(out);
                        SoFar::Begun
                    }
                }
            }
            Request::ListSubscriptions { of, app, limit, after, reveal } => {
                let listing = Listing { of, app: app.as_deref(), limit: *limit as usize };
                let (mut found, from) = match so_far {
                    SoFar::Subscriptions { found, after } => (found, after),
                    _ => (Vec::new(), behind(store, after.as_deref(), &apps)?),
                };
                let next = list_some(store, &listing, &apps, from, until, &mut found)?;
                if next.is_some() && found.len() < listing.limit {
                    SoFar::Subscriptions { found, after: next }
                } else {
                    write_list(store, id, &found, next, reveal.then_some(&*door.tokens), out);
                    SoFar::Begun
                }
            }
            _ => {
                read_request(door, socket, &apps, id, self.request.clone(), out)?;
                SoFar::Begun
            }
        };
        Ok(matches!(self.so_far, SoFar::Begun))
    }
}

type MessagesAsked<'a> = (Option<State>, Option<&'a str>, usize, Option<&'a str>);

fn list_messages(
    store: &Store,
    id: &RequestId,
    (state, label, limit, after): MessagesAsked<'_>,
    apps: &Apps,
    so_far: SoFar,
    out: &mut Vec<u8>,
) -> Result<SoFar, Refusal> {
    let now = clock::now();
    let (mut found, mut seen, after) = match (so_far, after.map(|text| store.ids.open(text))) {
        (SoFar::Messages { found, seen, after }, _) => (found, seen, after),
        (_, None) => (Vec::new(), 0, None),
        (_, Some(Some(Position::Message { app, commit, place }))) if store.registry.is_of(app, apps) => {
            (Vec::new(), 0, Some(ListKey { commit, place }))
        }
        (_, Some(_)) => {
            let problem = Problem {
                code: Code::InvalidField,
                field: Some("after".to_owned()),
                message: "after is what an earlier list_messages gave".to_owned(),
            };
            return Err(Refusal::of(problem));
        }
    };
    let wanted = |status: &Status| {
        state.is_none_or(|state| status.state == state) && label.is_none_or(|label| status.label.as_deref() == Some(label))
    };
    let (more_found, after) = store.list_messages(wanted, limit - found.len(), after, LISTS_A_TURN, apps, now)?;
    found.extend(more_found);
    seen += LISTS_A_TURN;
    if after.is_some() && found.len() < limit && seen < LISTS_SEEN {
        return Ok(SoFar::Messages { found, seen, after });
    }
    begin_ok(out, id);
    out.extend_from_slice(b",\"messages\":[");
    for (index, status) in found.iter().enumerate() {
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
            let app = store.registry.seals_for(apps);
            member_text(out, "after", &store.ids.seal(Position::Message { app, commit, place }));
        }
        None => member(out, "after", "null"),
    }
    end(out);
    Ok(SoFar::Begun)
}

fn stats(
    store: &Store,
    id: &RequestId,
    (from, to, by): (Option<u32>, Option<u32>, &[By]),
    apps: &Apps,
    so_far: SoFar,
    until: Instant,
    out: &mut Vec<u8>,
) -> Result<SoFar, Refusal> {
    let (mut sums, from) = match so_far {
        SoFar::Stats { sums, from } => (sums, from),
        _ => (BTreeMap::new(), from.unwrap_or(0).to_be_bytes().to_vec()),
    };
    let more = store.stats(&from, to.unwrap_or(u32::MAX), by, apps, until, &mut sums)?;
    if sums.len() > STATS_LINES {
        let message = format!("these are more than {STATS_LINES} lines: ask for fewer days (from, to), or by less");
        return Err(Refusal::of(Problem { code: Code::InvalidField, field: Some("by".to_owned()), message }));
    }
    if let Some(from) = more {
        return Ok(SoFar::Stats { sums, from });
    }
    begin_ok(out, id);
    out.extend_from_slice(b",\"stats\":[");
    for (index, (key, counts)) in sums.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let start = out.len();
        for dimension in by {
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
    Ok(SoFar::Begun)
}

/// What reads a few rows.
fn read_request(
    door: &Door,
    socket: &Socket,
    apps: &Apps,
    id: &RequestId,
    request: Request,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let store = &door.store;
    let now = clock::now();
    match request {
        Request::Status { message_id } => {
            let status = store.status(store.ids.read(message_id), apps, now)?.ok_or_else(Refusal::not_found)?;
            begin_ok(out, id);
            write_status(&store.ids, &status, now, out);
            end(out);
        }
        Request::Origins => {
            begin_ok(out, id);
            member(out, "origins", (door.origins)((!socket.operator).then_some(apps)));
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
            let known = store.subscription(subscription, apps)?.ok_or_else(Refusal::no_subscription)?;
            write_subscription(store, id, &known, reveal.then_some(&*door.tokens), out);
        }
        Request::Account { who, .. } => write_account(store, id, &who, apps, now, out)?,
        Request::DisabledAccounts { app, limit, after } => {
            let named = app.map(|app| Arc::new(vec![app]));
            write_disabled(store, id, named.as_ref().unwrap_or(apps), limit as usize, after.as_deref(), out)?;
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
        // These are read in turns, written, or answered elsewhere.
        Request::ListMessages { .. } | Request::Stats { .. } | Request::Count { .. } | Request::ListSubscriptions { .. } => {
            unreachable!("go_on() has them")
        }
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
        | Request::Reload
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
    member(out, "paused_by", serde_json::json!(status.paused_by));
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
