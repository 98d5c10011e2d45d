//! The answering half of a connection: replies in the order of the requests, and what only reads.
//!
//! This file keeps the order, waits, and answers what was written; `read` is what only reads, `events` the event log, `refusal` what is
//! said where that cannot be done, `turns` who reads when.

mod events;
mod read;
mod refusal;
pub mod turns;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;

use self::read::Reading;
use self::refusal::Refusal;
use crate::complaint::Complaint;
use crate::ids::VisibleId;
use crate::ingest::line::foreign_scope;
use crate::ingest::registry::write_results;
use crate::ingest::share::Shares;
use crate::ingest::{Door, LOOK, PATIENCE, Socket, stopped, stopping};
use crate::limits::ANSWER_KIB;
use crate::message::{Name, SubscriptionId};
use crate::metrics;
use crate::protocol::reply::{begin_ok, end, member, member_message_id, member_text, member_time, write_problem, write_rejected};
use crate::protocol::request::{Code, Of, Problem, Rejected, Request, RequestId, Whose};
use crate::store::commit::{Apps, Done};
use crate::store::concerned::Concerned;
use crate::store::erase::Swept;
use crate::store::registry::walk::Wanted;
use crate::store::{ReadError, watch};

/// Answers that are written in one turn.
const TURN_ANSWERS: usize = 128;
/// A client that takes nothing for so long is cut off.
const STUCK: Duration = Duration::from_secs(30);
static CUT_OFF: Complaint = Complaint::each_minute();

/// Replies are collected up to this many bytes before they are written.
const OUT_BYTES: usize = 256 * 1024;

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
        message_id: VisibleId,
        rejected: Vec<Rejected>,
    },
    Plain {
        id: RequestId,
    },
    /// `cancel`, `pause`, `resume`, with the singles of a label or an app that it concerns.
    Changed {
        id: RequestId,
        singles: Concerned,
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
            | Told::Changed { id, .. }
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
    /// Memory for what is read, until it is on the socket.
    pub room: Option<OwnedSemaphorePermit>,
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

    /// Takes memory for what is going to be read for an answer. It waits while others on this socket hold it all.
    async fn make_room(&mut self) -> Result<(), Gone> {
        if self.room.is_none() {
            self.room = tokio::select! {
                biased;
                room = self.socket.shares.answers.take(ANSWER_KIB) => Some(room),
                () = gone(&self.out) => return Err(Gone),
            };
        }
        Ok(())
    }

    async fn flush(&mut self, out: &mut Vec<u8>, places: &mut Vec<OwnedSemaphorePermit>) -> Result<(), Gone> {
        if !out.is_empty() {
            tokio::select! {
                biased;
                written = self.out.write_all(out) => written.map_err(|_| Gone)?,
                () = stuck(&self.socket.shares) => {
                    metrics::turned_away("replies");
                    if let Some(left_out) = CUT_OFF.tell() {
                        tracing::warn!(socket = self.socket.name, left_out, "a client does not take its replies and is cut off");
                    }
                    return Err(Gone);
                }
            }
            out.clear();
            if out.capacity() > 4 * OUT_BYTES {
                *out = Vec::with_capacity(4096);
            }
        }
        places.clear();
        self.room = None;
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
                let mut turn = None;
                for (number, (told, done)) in told.into_iter().zip(answers).enumerate() {
                    taken += u64::from(!matches!(done, Done::Failed { .. }));
                    if number.is_multiple_of(TURN_ANSWERS) {
                        drop(turn.take());
                        turn = Some(self.socket.shares.turn().await);
                    }
                    if waits(&told) {
                        drop(turn.take());
                    }
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
                if let Request::Reload = request {
                    return self.reload(&id, out).await;
                }
                self.read(id, request, out).await?;
            }
        }
        Ok(())
    }

    /// Has the daemon read its configuration again, and waits until it has.
    async fn reload(&mut self, id: &RequestId, out: &mut Vec<u8>) -> Result<(), Gone> {
        self.flush(out, &mut Vec::new()).await?;
        let mut stop = self.door.stop.clone();
        let (reply, heard) = oneshot::channel();
        let reloaded = async {
            // Where the daemon has ended, nobody answers.
            let _ended = self.door.reloads.send(reply).await;
            heard.await
        };
        match one_of(reloaded, &self.out, &mut stop).await? {
            Some(Ok(Ok(restart))) => {
                begin_ok(out, id);
                member(out, "restart", serde_json::json!(restart));
                end(out);
            }
            // The caller mends the file, and asks again.
            Some(Ok(Err(message))) => Refusal::of(Problem { code: Code::InvalidField, field: None, message }).write(id, out),
            Some(Err(_)) | None => Refusal::stopping().write(id, out),
        }
        Ok(())
    }

    async fn read(&mut self, id: RequestId, request: Request, out: &mut Vec<u8>) -> Result<(), Gone> {
        let walks = walks(&request);
        let mut stop = self.door.stop.clone();
        let mut place = None;
        if walks || out.len() >= OUT_BYTES {
            // What is ready does not wait for the walk, nor for its turns.
            self.flush(out, &mut Vec::new()).await?;
        }
        // Before the turn: who has one must not wait for those who do not take their answers.
        self.make_room().await?;
        if walks {
            // Until all is found.
            place = one_of(self.door.collecting.take(&self.socket.name), &self.out, &mut stop).await?;
        }
        let mut reading = Reading::of(request);
        loop {
            let turns = if walks { &self.door.walks } else { &self.door.reads };
            let Some(turn) = one_of(turns.take(&self.socket.name), &self.out, &mut stop).await? else {
                Refusal::stopping().write(&id, out);
                return Ok(());
            };
            let (door, socket, repeated) = (self.door.clone(), self.socket.clone(), id.clone());
            let read = tokio::task::spawn_blocking(move || {
                // Until the thread is free again, also if nobody wants to know any more.
                let _turn = turn;
                let mut line = Vec::new();
                let read = reading.go_on(&door, &socket, &repeated, &mut line);
                (read, reading, line)
            });
            let Ok((read, back, line)) = read.await else { return Err(Gone) };
            match read {
                Ok(true) => out.extend_from_slice(&line),
                Ok(false) if *stop.borrow() => Refusal::stopping().write(&id, out),
                Ok(false) => {
                    reading = back;
                    continue;
                }
                Err(refusal) => refusal.write(&id, out),
            }
            // What was found is in the answer now, whose memory is counted: a client that does not take it keeps no place from others.
            drop(place);
            if walks {
                self.flush(out, &mut Vec::new()).await?;
            }
            return Ok(());
        }
    }

    /// Why a subscription was not found that is there: it belongs to an app that lacks one of the scopes it was to get.
    async fn foreign_scope(&self, subscription: SubscriptionId, refusing: BTreeMap<Arc<str>, Name>) -> Option<Refusal> {
        let store = self.door.store.clone();
        let turn = self.door.reads.take(&self.socket.name).await;
        let found = tokio::task::spawn_blocking(move || {
            let _turn = turn;
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
        member_message_id(out, self.door.store.ids.show(message_id));
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
                member_message_id(out, self.door.store.ids.show(message_id));
                write_rejected(out, &rejected, out.len() + self.door.line_limit / 2);
                end(out);
            }
            (Told::Subscribe { id }, Done::Subscribed { id: subscription, created }) => {
                begin_ok(out, id);
                member_text(out, "subscription_id", &subscription.name());
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
                member_message_id(out, self.door.store.ids.show(message_id));
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
                member_message_id(out, *message_id);
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
            (Told::Changed { id, singles }, Done::Changed { messages, recipients }) => {
                begin_ok(out, id);
                member(out, "messages", messages + singles.messages);
                member(out, "recipients", recipients + singles.recipients);
                if singles.more {
                    member(out, "more", true);
                }
                end(out);
            }
            (Told::Ping { id }, Done::Pending(pending)) => self.write_ping(id, pending, out),
            (told, _) => {
                begin_ok(out, told.id());
                end(out);
            }
        }
    }

    fn write_ping(&self, id: &RequestId, pending: u64, out: &mut Vec<u8>) {
        let gates = &self.door.store.gates;
        let closed = |gate: &std::sync::atomic::AtomicBool| gate.load(Ordering::Relaxed);
        // What other apps have waiting is not told.
        let max_pending = gates.is_full_of(&self.socket.apps());
        let mut reasons = Vec::new();
        for (is_closed, reason) in [
            (closed(&gates.low_space), "low_space"),
            (closed(&gates.full), "full"),
            (max_pending, "max_pending"),
            (closed(&gates.draining), "draining"),
        ] {
            if is_closed {
                reasons.push(reason);
            }
        }
        if gates.checkpoint_late() {
            reasons.push("checkpoint_late");
        }
        let state = match () {
            () if closed(&gates.draining) => "draining",
            () if closed(&gates.low_space) || closed(&gates.full) => "read_only",
            () if max_pending || gates.checkpoint_late() => "overloaded",
            () => "ok",
        };
        begin_ok(out, id);
        member_text(out, "version", env!("CARGO_PKG_VERSION"));
        member(out, "protocol", 1);
        member_text(out, "state", state);
        member(out, "reasons", serde_json::Value::from(reasons));
        member(out, "pending", pending);
        if self.socket.operator {
            member(out, "uptime", self.door.started.elapsed().as_secs());
        }
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
}

/// Ends when a client that does not take its replies has had its time; that is short while others wait for the memory that it holds.
async fn stuck(shares: &Shares) {
    let began = Instant::now();
    loop {
        tokio::time::sleep(LOOK).await;
        let since = began.elapsed();
        if since >= STUCK || since >= PATIENCE && (shares.answers.waited_for() || shares.unanswered.waited_for()) {
            return;
        }
    }
}

/// Whether more than writing may be needed for this answer.
fn waits(told: &Told) -> bool {
    matches!(told, Told::Update { .. } | Told::Account { .. } | Told::Test { .. } | Told::Erase { .. })
}

/// Whether a request may have much to look at: one of a hundred million subscriptions takes a minute.
fn walks(request: &Request) -> bool {
    match request {
        Request::Count { segment, scope, .. } => {
            // In every app the same counts are kept.
            let wanted = Wanted { app: 0, scope: scope.clone(), segment: segment.clone().unwrap_or_default() };
            wanted.kept_counts().is_none()
        }
        // A page is short, but what lies between those that are wanted may be long.
        Request::ListSubscriptions { of, .. } => !matches!(of, Of::Account(_)),
        Request::ListMessages { .. } | Request::Stats { .. } => true,
        _ => false,
    }
}

/// Waits for a turn or a place, on no thread. None: the daemon stops.
async fn one_of<T>(
    turn: impl Future<Output = T>,
    out: &OwnedWriteHalf,
    stop: &mut tokio::sync::watch::Receiver<bool>,
) -> Result<Option<T>, Gone> {
    tokio::select! {
        biased;
        // Nothing is read for a client that has gone.
        () = gone(out) => Err(Gone),
        turn = turn => Ok(Some(turn)),
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

#[cfg(test)]
mod tests {
    use super::turns::{Turn, Turns};
    use tokio::net::UnixStream;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::message::Segment;

    type Waits = JoinHandle<Result<Option<Turn>, Gone>>;

    /// Somebody who waits for a turn, and the client's end of the connection.
    fn waiter(places: &Arc<Turns>, stop: &tokio::sync::watch::Receiver<bool>) -> (Waits, UnixStream) {
        let (client, ours) = UnixStream::pair().expect("sockets");
        let (places, mut stop) = (places.clone(), stop.clone());
        let turn = tokio::spawn(async move { one_of(places.take("one"), &ours.into_split().1, &mut stop).await });
        (turn, client)
    }

    async fn ended(turn: Waits) -> Result<Option<Turn>, Gone> {
        timeout(Duration::from_secs(20), turn).await.expect("it ends").expect("no panic")
    }

    #[tokio::test]
    async fn turns_come_in_order_and_end_with_their_connection() {
        let places = Turns::new(1);
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
