//! The answering half of a connection: replies in the order of the requests, and what only reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::clock;
use crate::ingest::line::foreign_scope;
use crate::ingest::registry::{
    ListError, Listing, bad_cursor, write_account, write_disabled, write_list, write_results, write_subscription,
};
use crate::ingest::reply::{begin_ok, end, member, member_text, member_time, write_problem, write_rejected};
use crate::ingest::request::{After, By, Code, EventType, Events, Of, Problem, Rejected, Request, RequestId, State, Whose};
use crate::ingest::{Door, Socket, stopped, stopping, subscription_name};
use crate::message::{Ending, MessageId, Name, SubscriptionId, UnixMillis};
use crate::metrics;
use crate::store::backup::{self, BackupError};
use crate::store::commit::{Apps, Done};
use crate::store::erase::Swept;
use crate::store::read::{Status, StoredEvent};
use crate::store::record::Counts;
use crate::store::registry::walk::Wanted;
use crate::store::{ReadError, Store, WriteError, watch};

/// A client that takes nothing for so long is cut off.
const STUCK: Duration = Duration::from_secs(30);
/// Replies are collected up to this many bytes before they are written.
const OUT_BYTES: usize = 256 * 1024;
/// Lines of `events`, `stats`, `list_messages` unless told.
const LIMIT: u32 = 1_000;
/// Events that are read at once.
const PAGE: usize = 1_000;

/// What is to be answered, in order. The places are given back when the answer is on the socket.
pub enum Item {
    Writes { told: Vec<Told>, answers: oneshot::Receiver<Vec<Done>>, began: Instant, places: Vec<OwnedSemaphorePermit> },
    Now { line: Vec<u8>, places: Vec<OwnedSemaphorePermit> },
    Read { id: RequestId, request: Request, places: Vec<OwnedSemaphorePermit> },
}

/// What an answer repeats of its request.
pub enum Told {
    Send {
        id: RequestId,
        rejected: Vec<Rejected>,
    },
    Add {
        id: RequestId,
        message_id: MessageId,
        rejected: Vec<Rejected>,
    },
    Plain {
        id: RequestId,
    },
    Ping {
        id: RequestId,
    },
    Subscribe {
        id: RequestId,
    },
    Update {
        id: RequestId,
        subscription: SubscriptionId,
        /// Apps that have not all the scopes that it is to get, and one that they lack.
        refusing: BTreeMap<Arc<str>, Name>,
    },
    Remove {
        id: RequestId,
    },
    Account {
        id: RequestId,
        who: Whose,
    },
    Presence {
        id: RequestId,
    },
    MarkRead {
        id: RequestId,
    },
    /// With who tells the results, and how long they are waited for.
    Test {
        id: RequestId,
        watched: Option<(mpsc::UnboundedReceiver<watch::Result>, Duration)>,
    },
    Erase {
        id: RequestId,
        swept: oneshot::Receiver<Swept>,
    },
}

impl Told {
    /// The request's id.
    pub fn id(&self) -> &RequestId {
        match self {
            Told::Send { id, .. }
            | Told::Add { id, .. }
            | Told::Plain { id }
            | Told::Ping { id }
            | Told::Subscribe { id }
            | Told::Update { id, .. }
            | Told::Remove { id }
            | Told::Account { id, .. }
            | Told::Presence { id }
            | Told::MarkRead { id }
            | Told::Test { id, .. }
            | Told::Erase { id, .. } => id,
        }
    }
}

/// The answering half.
pub struct Answerer {
    pub door: Arc<Door>,
    pub socket: Arc<Socket>,
    pub items: mpsc::UnboundedReceiver<Item>,
    pub out: OwnedWriteHalf,
}

/// The client has gone, or takes nothing.
struct Gone;

impl Answerer {
    /// Answers until the reading half has ended and all is answered, or the client has gone.
    pub async fn run(mut self) {
        // What cannot be answered any more was taken or not all the same: that is what idempotency keys are for.
        let _gone = self.answer_all().await;
    }

    async fn answer_all(&mut self) -> Result<(), Gone> {
        let mut out = Vec::with_capacity(4096);
        let mut places = Vec::new();
        while let Some(item) = self.items.recv().await {
            self.answer(item, &mut out, &mut places).await?;
            while out.len() < OUT_BYTES
                && let Ok(item) = self.items.try_recv()
            {
                // What waits for the disk must not hold back what is ready.
                if let Item::Writes { .. } = item {
                    self.flush(&mut out, &mut places).await?;
                }
                self.answer(item, &mut out, &mut places).await?;
            }
            self.flush(&mut out, &mut places).await?;
        }
        Ok(())
    }

    async fn flush(&mut self, out: &mut Vec<u8>, places: &mut Vec<OwnedSemaphorePermit>) -> Result<(), Gone> {
        if !out.is_empty() {
            match timeout(STUCK, self.out.write_all(out)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Gone),
                Err(_) => {
                    tracing::warn!(socket = self.socket.name, "a client does not take its replies and is cut off");
                    return Err(Gone);
                }
            }
            out.clear();
            if out.capacity() > 4 * OUT_BYTES {
                *out = Vec::with_capacity(4096);
            }
        }
        places.clear();
        Ok(())
    }

    async fn answer(&mut self, item: Item, out: &mut Vec<u8>, places: &mut Vec<OwnedSemaphorePermit>) -> Result<(), Gone> {
        match item {
            Item::Now { line, places: held } => {
                out.extend_from_slice(&line);
                places.extend(held);
            }
            Item::Writes { told, answers, began, places: held } => {
                places.extend(held);
                let answers = answers.await.unwrap_or_else(|_| told.iter().map(|_| stopped()).collect());
                let mut taken = 0;
                for (told, done) in told.into_iter().zip(answers) {
                    taken += u64::from(!matches!(done, Done::Failed { .. }));
                    match (told, done) {
                        (Told::Update { id, subscription, refusing }, Done::Failed { problem, .. })
                            if problem.code == Code::NotFound && !refusing.is_empty() =>
                        {
                            let refusal = self.foreign_scope(subscription, refusing).await;
                            refusal.unwrap_or_else(|| Refusal::of(problem)).write(&id, out);
                        }
                        (Told::Update { id, subscription, .. }, Done::Updated) => {
                            self.read(id, Request::Subscription { subscription, reveal: false }, out).await?;
                        }
                        (Told::Account { id, who }, Done::Updated) => {
                            self.read(id, Request::Account { who, enabled: None }, out).await?;
                        }
                        (Told::Test { id, watched: Some(watched) }, done @ Done::Taken { .. }) => {
                            self.flush(out, &mut Vec::new()).await?;
                            self.test(id, watched, done, out).await;
                        }
                        (Told::Erase { id, swept }, Done::Erased { removed }) => {
                            self.flush(out, &mut Vec::new()).await?;
                            let Swept { cancelled, blanked } = swept.await.unwrap_or_default();
                            begin_ok(out, &id);
                            member(out, "removed", removed);
                            member(out, "cancelled", cancelled);
                            member(out, "blanked", blanked);
                            end(out);
                        }
                        (told, done) => self.write_done(&told, done, out),
                    }
                }
                if taken > 0 {
                    metrics::acked(taken, began.elapsed());
                }
            }
            Item::Read { id, request, places: held } => {
                places.extend(held);
                if let Request::Events(events) = request {
                    return self.events(id, events, out).await;
                }
                self.read(id, request, out).await?;
            }
        }
        Ok(())
    }

    async fn read(&mut self, id: RequestId, request: Request, out: &mut Vec<u8>) -> Result<(), Gone> {
        let (door, socket) = (self.door.clone(), self.socket.clone());
        let mut turn = None;
        if walks(&request) {
            // What is ready does not wait for the walk, nor for its turn.
            self.flush(out, &mut Vec::new()).await?;
            turn = turn_to_walk(&door.walks, &self.out, &mut door.stop.clone()).await?;
            if turn.is_none() {
                Refusal::stopping().write(&id, out);
                return Ok(());
            }
        }
        let read = tokio::task::spawn_blocking(move || {
            // Until the walk has ended, also if nobody wants to know any more.
            let _turn = turn;
            let mut line = Vec::new();
            let told = read_request(&door, &socket, &id, request, &mut line);
            (id, told, line)
        });
        let Ok((id, told, line)) = read.await else { return Err(Gone) };
        match told {
            Ok(()) => out.extend_from_slice(&line),
            Err(refusal) => refusal.write(&id, out),
        }
        Ok(())
    }

    /// Why a subscription was not found that is there: it belongs to an app that lacks one of the scopes it was to get.
    async fn foreign_scope(&self, subscription: SubscriptionId, refusing: BTreeMap<Arc<str>, Name>) -> Option<Refusal> {
        let store = self.door.store.clone();
        let found = tokio::task::spawn_blocking(move || {
            let apps: Apps = Arc::new(refusing.keys().cloned().collect());
            let known = store.subscription(subscription, &apps)?;
            Ok::<_, ReadError>(known.and_then(|known| refusing.get(&known.app).map(|scope| Refusal::of(foreign_scope(scope)))))
        });
        match found.await {
            Ok(Ok(refusal)) => refusal,
            Ok(Err(unreadable)) => Some(Refusal::from(unreadable)),
            Err(_) => None,
        }
    }

    /// Waits until every recipient of a `test` has ended, or the time is over.
    async fn test(
        &self,
        id: RequestId,
        watched: (mpsc::UnboundedReceiver<watch::Result>, Duration),
        done: Done,
        out: &mut Vec<u8>,
    ) {
        let Done::Taken { message_id, recipients, rejected, .. } = done else { return };
        let (mut heard, wait) = watched;
        let mut results = Vec::new();
        let all = async {
            while (results.len() as u64) < recipients
                && let Some(result) = heard.recv().await
            {
                results.push(result);
            }
        };
        // What has not ended by then is told as pending.
        let _in_time = timeout(wait, all).await;
        begin_ok(out, &id);
        member_text(out, "message_id", &message_id.to_string());
        write_results(&results, recipients - results.len() as u64, out);
        write_rejected(out, &rejected, out.len() + self.door.line_limit / 2);
        end(out);
    }

    fn write_done(&self, told: &Told, done: Done, out: &mut Vec<u8>) {
        match (told, done) {
            (told, Done::Failed { problem, retry_after, position }) => {
                metrics::rejected(problem.code);
                let position = position.as_deref().map(|position| ("position", position));
                write_problem(out, told.id(), &problem, retry_after, position.as_slice());
            }
            (Told::Test { id, .. }, Done::Taken { message_id, rejected, .. }) => {
                begin_ok(out, id);
                member_text(out, "message_id", &message_id.to_string());
                write_rejected(out, &rejected, out.len() + self.door.line_limit / 2);
                end(out);
            }
            (Told::Subscribe { id }, Done::Subscribed { id: subscription, created }) => {
                begin_ok(out, id);
                member_text(out, "subscription_id", &subscription_name(&subscription));
                member(out, "created", created);
                end(out);
            }
            (Told::Remove { id }, Done::Removed(removed)) => {
                begin_ok(out, id);
                member(out, "removed", removed);
                end(out);
            }
            (Told::Presence { id }, Done::Presence { online, until }) => {
                begin_ok(out, id);
                member_text(out, "state", if online { "online" } else { "offline" });
                match until {
                    Some(until) => member_time(out, "until", until),
                    None => member(out, "until", "null"),
                }
                member(out, "durable", false);
                end(out);
            }
            (Told::MarkRead { id }, Done::Withdrawn(withdrawn)) => {
                begin_ok(out, id);
                member(out, "withdrawn", withdrawn);
                end(out);
            }
            (
                Told::Send { id, rejected },
                Done::Taken { message_id, state, expires, recipients, duplicate, position, rejected: unsent },
            ) => {
                begin_ok(out, id);
                member_text(out, "message_id", &message_id.to_string());
                member_text(out, "state", state.as_str());
                member_time(out, "expires", expires);
                member(out, "recipients", recipients);
                if duplicate {
                    member(out, "duplicate", true);
                }
                if let Some(position) = position {
                    member(out, "position", position);
                }
                let rejected = if unsent.is_empty() { rejected } else { &unsent };
                write_rejected(out, rejected, out.len() + self.door.line_limit / 2);
                end(out);
            }
            (Told::Add { id, message_id, rejected }, Done::Added { recipients, duplicate, position }) => {
                begin_ok(out, id);
                member_text(out, "message_id", &message_id.to_string());
                member(out, "recipients", recipients);
                if duplicate {
                    member(out, "duplicate", true);
                }
                if let Some(position) = position {
                    member(out, "position", position);
                }
                write_rejected(out, rejected, out.len() + self.door.line_limit / 2);
                end(out);
            }
            (Told::Ping { id }, _) => self.write_ping(id, out),
            (told, _) => {
                begin_ok(out, told.id());
                end(out);
            }
        }
    }

    fn write_ping(&self, id: &RequestId, out: &mut Vec<u8>) {
        let gates = &self.door.store.gates;
        let closed = |gate: &std::sync::atomic::AtomicBool| gate.load(Ordering::Relaxed);
        let mut reasons = Vec::new();
        for (gate, reason) in [
            (&gates.low_space, "low_space"),
            (&gates.full, "full"),
            (&gates.max_pending, "max_pending"),
            (&gates.draining, "draining"),
        ] {
            if closed(gate) {
                reasons.push(reason);
            }
        }
        if gates.checkpoint_late() {
            reasons.push("checkpoint_late");
        }
        let state = match () {
            () if closed(&gates.draining) => "draining",
            () if closed(&gates.low_space) || closed(&gates.full) => "read_only",
            () if closed(&gates.max_pending) || gates.checkpoint_late() => "overloaded",
            () => "ok",
        };
        begin_ok(out, id);
        member_text(out, "version", env!("CARGO_PKG_VERSION"));
        member(out, "protocol", 1);
        member_text(out, "state", state);
        member(out, "reasons", serde_json::Value::from(reasons));
        let rules = self.socket.rules.load();
        let limits = serde_json::json!({
            "line_limit": self.door.line_limit,
            "payload": crate::limits::PAYLOAD_MAX,
            "lines_unanswered": crate::limits::CONNECTION_LINES,
            "bytes_unanswered": crate::limits::CONNECTION_BYTES,
            "ttl_max": rules.messages.ttl_max,
            "max_pending": rules.messages.max_pending,
        });
        member(out, "limits", limits);
        end(out);
    }

    // ---- events ----

    async fn events(&mut self, id: RequestId, events: Events, out: &mut Vec<u8>) -> Result<(), Gone> {
        let store = self.door.store.clone();
        let apps = self.socket.apps();
        let mut told = store.events_end.subscribe();
        let mut after = match first_number(&store, &events.after) {
            Ok(after) => after,
            Err(refusal) => {
                refusal.write(&id, out);
                return Ok(());
            }
        };
        let mut left = match (events.limit, events.follow) {
            (Some(limit), _) => u64::from(limit),
            (None, false) => u64::from(LIMIT),
            (None, true) => u64::MAX,
        };
        let filter = Filter { apps, events: &events, message_id: events.message_id.map(|id| id.to_string()) };
        let mut stop = self.door.stop.clone();
        loop {
            told.mark_unchanged();
            let (reading, from) = (store.clone(), after);
            let read = tokio::task::spawn_blocking(move || reading.events_after(from, PAGE)).await;
            let page = match read {
                Ok(Ok(page)) => page,
                _ => {
                    Refusal::from(ReadError).write(&id, out);
                    return Ok(());
                }
            };
            let ended = page.is_empty();
            for event in page {
                if left == 0 {
                    break;
                }
                after = event.number;
                if filter.takes(&event) {
                    write_event(&store, &event, out);
                    left -= 1;
                }
                if out.len() >= OUT_BYTES {
                    self.flush(out, &mut Vec::new()).await?;
                }
            }
            if left == 0 || !events.follow && ended {
                break;
            }
            if ended {
                self.flush(out, &mut Vec::new()).await?;
                tokio::select! {
                    changed = told.changed() => if changed.is_err() { return Ok(()) },
                    () = stopping(&mut stop) => return Ok(()),
                    // The client has gone.
                    () = gone(&self.out) => return Err(Gone),
                }
            }
        }
        let more = store.event_range().is_ok_and(|range| after < range.newest);
        begin_ok(out, &id);
        member_text(out, "cursor", &cursor(&store, after));
        member(out, "more", more);
        end(out);
        Ok(())
    }
}

/// Whether a request may have to look at the whole registry: one of a hundred million subscriptions takes a minute.
fn walks(request: &Request) -> bool {
    match request {
        Request::Count { segment, scope, .. } => {
            // In every app the same counts are kept.
            let wanted = Wanted { app: 0, scope: scope.clone(), segment: segment.clone().unwrap_or_default() };
            wanted.kept_counts().is_none()
        }
        // A page is short, but what lies between those that are wanted may be long.
        Request::ListSubscriptions { of, .. } => !matches!(of, Of::Account(_)),
        _ => false,
    }
}

/// Waits for one of the places of those that walk, in the order in which they came, and on no thread. None: the daemon stops.
async fn turn_to_walk(
    places: &Arc<Semaphore>,
    out: &OwnedWriteHalf,
    stop: &mut tokio::sync::watch::Receiver<bool>,
) -> Result<Option<OwnedSemaphorePermit>, Gone> {
    tokio::select! {
        biased;
        () = gone(out) => Err(Gone),
        // It is never closed.
        turn = places.clone().acquire_owned() => Ok(turn.ok()),
        () = stopping(stop) => Ok(None),
    }
}

/// Ends when the peer has closed the connection. One that has only said that it sends nothing more still reads.
async fn gone(out: &OwnedWriteHalf) {
    loop {
        match out.ready(tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE).await {
            Ok(ready) if ready.is_write_closed() => return,
            Ok(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(_) => return,
        }
    }
}

fn cursor(store: &Store, number: u64) -> String {
    let id: String = store.id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{id}-{number}")
}

fn write_event(store: &Store, event: &StoredEvent, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"cursor\":\"");
    out.extend_from_slice(cursor(store, event.number).as_bytes());
    out.extend_from_slice(b"\",");
    // The stored text is an object: its opening brace is replaced.
    out.extend_from_slice(event.json.get(1..).unwrap_or_default());
    out.push(b'\n');
}

fn first_number(store: &Store, after: &After) -> Result<u64, Refusal> {
    let range = store.event_range()?;
    let number = match after {
        After::Oldest => return Ok(range.oldest),
        After::Newest => return Ok(range.newest),
        After::Cursor(text) => text
            .strip_prefix(cursor(store, 0).trim_end_matches('0'))
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok()),
    };
    match number {
        Some(number) if (range.oldest..=range.newest).contains(&number) => Ok(number),
        _ => Err(Refusal {
            problem: Problem {
                code: Code::CursorExpired,
                field: Some("after".to_owned()),
                message: "this cursor is too old, of another store, or beyond the end".to_owned(),
            },
            retry_after: None,
            extra: vec![
                ("oldest", format!("\"{}\"", cursor(store, range.oldest))),
                ("newest", format!("\"{}\"", cursor(store, range.newest))),
            ],
        }),
    }
}

struct Filter<'a> {
    apps: Apps,
    events: &'a Events,
    message_id: Option<String>,
}

impl Filter<'_> {
    fn takes(&self, event: &StoredEvent) -> bool {
        let Ok(object) = serde_json::from_slice::<serde_json::Value>(&event.json) else { return false };
        let text = |name: &str| object.get(name).and_then(serde_json::Value::as_str);
        let is = |wanted: Option<&str>, name: &str| wanted.is_none_or(|wanted| text(name) == Some(wanted));
        let events = self.events;
        self.apps.iter().any(|app| text("app") == Some(app))
            && is(events.app.as_deref(), "app")
            && is(events.label.as_deref(), "label")
            && is(self.message_id.as_deref(), "message_id")
            && is(events.account.as_deref(), "account")
            && is(events.subscription_id.as_ref().map(subscription_name).as_deref(), "subscription_id")
            && events
                .types
                .as_ref()
                .is_none_or(|types| text("type").and_then(EventType::parse).is_some_and(|kind| types.contains(&kind)))
    }
}

/// A refusal of what only reads.
struct Refusal {
    problem: Problem,
    retry_after: Option<f64>,
    extra: Vec<(&'static str, String)>,
}

impl Refusal {
    /// One that the same line would meet again.
    fn of(problem: Problem) -> Refusal {
        Refusal { problem, retry_after: None, extra: Vec::new() }
    }

    fn not_found() -> Refusal {
        let message = "no such message".to_owned();
        Refusal::of(Problem { code: Code::NotFound, field: Some("message_id".to_owned()), message })
    }

    fn no_subscription() -> Refusal {
        let message = "no such subscription".to_owned();
        Refusal::of(Problem { code: Code::NotFound, field: Some("subscription_id".to_owned()), message })
    }

    fn stopping() -> Refusal {
        let problem = Problem { code: Code::ShuttingDown, field: None, message: "the daemon is stopping".to_owned() };
        Refusal { problem, retry_after: Some(5.0), extra: Vec::new() }
    }

    fn write(&self, id: &RequestId, out: &mut Vec<u8>) {
        metrics::rejected(self.problem.code);
        let extra: Vec<(&str, &str)> = self.extra.iter().map(|(name, value)| (*name, value.as_str())).collect();
        write_problem(out, id, &self.problem, self.retry_after, &extra);
    }
}

impl From<ListError> for Refusal {
    fn from(error: ListError) -> Refusal {
        match error {
            ListError::Cursor => Refusal::of(bad_cursor()),
            ListError::Read => Refusal::from(ReadError),
        }
    }
}

impl From<ReadError> for Refusal {
    fn from(_: ReadError) -> Refusal {
        let problem = Problem { code: Code::Internal, field: None, message: "the store cannot be read just now".to_owned() };
        Refusal { problem, retry_after: Some(5.0), extra: Vec::new() }
    }
}

fn read_request(door: &Door, socket: &Socket, id: &RequestId, request: Request, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let store = &door.store;
    let apps = socket.apps();
    let now = clock::now();
    match request {
        Request::Status { message_id } => {
            let status = store.status(message_id, &apps, now)?.ok_or_else(Refusal::not_found)?;
            begin_ok(out, id);
            write_status(&status, now, out);
            end(out);
        }
        Request::ListMessages { state, label, limit, after } => {
            let after = match after.as_deref().map(str::parse::<MessageId>) {
                None => None,
                Some(Ok(id)) => Some(id),
                Some(Err(_)) => {
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
                write_status(status, now, out);
                out[start] = b'{';
                out.push(b'}');
                if index > 0 {
                    out.insert(start, b',');
                }
            }
            out.push(b']');
            match after {
                Some(after) => member_text(out, "after", &after.to_string()),
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
                        By::Day => member_text(
                            out,
                            "day",
                            &crate::ingest::reply::format_time(UnixMillis(u64::from(key.day) * 86_400_000))[..10],
                        ),
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
            member(out, "origins", (door.origins)());
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
fn write_status(status: &Status, now: UnixMillis, out: &mut Vec<u8>) {
    let text_or_null = |out: &mut Vec<u8>, name: &str, text: Option<&str>| match text {
        Some(text) => member_text(out, name, text),
        None => member(out, name, "null"),
    };
    member_text(out, "message_id", &status.id.to_string());
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
        Some(walked) => walked,
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

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::message::Segment;

    type Turn = JoinHandle<Result<Option<OwnedSemaphorePermit>, Gone>>;

    /// Somebody who waits for a turn, and the client's end of the connection.
    fn waiter(places: &Arc<Semaphore>, stop: &tokio::sync::watch::Receiver<bool>) -> (Turn, UnixStream) {
        let (client, ours) = UnixStream::pair().expect("sockets");
        let (places, mut stop) = (places.clone(), stop.clone());
        let turn = tokio::spawn(async move { turn_to_walk(&places, &ours.into_split().1, &mut stop).await });
        (turn, client)
    }

    async fn ended(turn: Turn) -> Result<Option<OwnedSemaphorePermit>, Gone> {
        timeout(Duration::from_secs(20), turn).await.expect("it ends").expect("no panic")
    }

    #[tokio::test]
    async fn turns_come_in_order_and_end_with_their_connection() {
        let places = Arc::new(Semaphore::new(1));
        let (tell_stop, stop) = tokio::sync::watch::channel(false);
        let (first, _first_client) = waiter(&places, &stop);
        let held = ended(first).await.ok().flatten().expect("a place is free");
        let mut waiting = Vec::new();
        for _ in 0..4 {
            waiting.push(waiter(&places, &stop));
            // So that each has begun to wait before the next comes.
            tokio::task::yield_now().await;
        }
        let (last, last_client) = waiting.pop().expect("four");
        let (third, third_client) = waiting.pop().expect("four");
        let (second, _second_client) = waiting.pop().expect("four");
        let (leaves, client) = waiting.pop().expect("four");
        drop(client);
        assert!(ended(leaves).await.is_err(), "its connection has ended");
        assert!(!second.is_finished() && !third.is_finished());
        drop(held);
        let held = ended(second).await.ok().flatten().expect("its turn");
        assert!(!third.is_finished() && !last.is_finished(), "one at a time");
        drop(held);
        let held = ended(third).await.ok().flatten().expect("its turn");
        tell_stop.send(true).expect("they listen");
        assert!(ended(last).await.is_ok_and(|turn| turn.is_none()), "nobody is kept waiting when the daemon stops");
        drop((held, third_client, last_client));
    }

    #[test]
    fn what_walks() {
        let names = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect::<Vec<_>>();
        let counted = |segment| Request::Count { segment, scope: None, app: None };
        let listed = |of| Request::ListSubscriptions { of, app: None, limit: 1, after: None, reveal: false };
        let any = |tags: &[&str]| Segment { tags_any: names(tags), ..Segment::default() };
        let none = Segment { tags_none: names(&["a"]), ..Segment::default() };
        let attributes = Segment { attributes: [(Arc::from("lang"), Box::from("\"pl\""))].into(), ..Segment::default() };
        for kept in [None, Some(Segment::default()), Some(any(&["a"]))] {
            assert!(!walks(&counted(kept.clone())), "{kept:?}");
        }
        for segment in [any(&["a", "b"]), none, attributes] {
            assert!(walks(&counted(Some(segment.clone()))), "{segment:?}");
            assert!(walks(&listed(Of::Segment(segment))));
        }
        assert!(walks(&listed(Of::All)));
        assert!(!walks(&listed(Of::Account(Arc::from("anna")))));
        assert!(!walks(&Request::Ping));
    }
}
