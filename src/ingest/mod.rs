//! The sockets. Two tasks a connection: one reads lines, checks them and hands the writes over in slices; the other answers, in
//! the order of the requests, and does what only reads. A line is answered `"ok":true` after its commit is on disk (promise 1).
//!
//! Bounds: a connection has at most 4 MiB and 10,000 lines unanswered, all together `ingest.memory_mb`; beyond that it is not read.
//! Half a line counts too, and has its time. A client that does not take its replies is cut off. Of connections and memory each socket
//! has a part that no other can take. What only reads takes turns, socket by socket: a few at a time, and of those that may have much to
//! look at two, which are interrupted after some milliseconds.

pub mod answer;
pub mod line;
mod registry;
pub mod share;
mod unread;

pub use self::unread::CHUNK_BYTES;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::net::unix::OwnedReadHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::clock;
use crate::complaint::Complaint;
use crate::descriptors;
use crate::ingest::answer::turns::{Places, Turns};
use crate::ingest::answer::{Answerer, Item, Told};
use crate::ingest::line::{Rules, parse};
use crate::ingest::share::{Shares, Turn};
use crate::ingest::unread::{More, Unread};
use crate::limits::{CONNECTION_BYTES, CONNECTION_LINES, LINE_SECONDS};
use crate::message::{MessageId, Name, Urgency};
use crate::metrics;
use crate::protocol::reply::write_problem;
use crate::protocol::request::{Code, Devices, Problem, Request, RequestId, Send as NewSend, Target, Test, TestTo, To};
use crate::receipt::Receipts;
use crate::store::commit::{Apps, Done, Erasing, Op, Preparing, Writes, prepare_add, prepare_send, prepare_subscribe};
use crate::store::concerned::{Command, Concerned, Counted, Counting, words};
use crate::store::live::{Holder, ListKey};
use crate::store::turns;
use crate::store::{ReadError, Store};
use crate::vapid::token::Tokens;

/// How long a line may wait for a place in the writer's queue before it is answered `overloaded`.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often one who waits looks whether it should still.
const LOOK: Duration = Duration::from_millis(250);
/// Memory of an answer that waits for its turn, beside its bytes.
const LINE_OVERHEAD: usize = 512;
/// When no connection could be accepted, the next is tried after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Lines that the writer's queue holds, of all sockets together.
pub const QUEUE_LINES: usize = 65_536;
/// Lines and bytes that are handed over together.
const SLICE_LINES: usize = 1_024;
const SLICE_BYTES: usize = 512 * 1024;
/// Lines and bytes that a connection reads before others have their turn: about a tenth of a millisecond.
const TURN_LINES: usize = 16;
const TURN_BYTES: usize = 16 * 1024;
/// Memory of a line that waits, beside its bytes: what it was parsed to, laid out for the store, and its answer's place.
const LINE_BYTES: usize = 1_536;
/// Memory that is reserved at once for lines to come.
const RESERVED: usize = 64 * 1024;
/// Users whose first connection is logged.
const KNOWN_PEERS: usize = 1_024;
/// How long one turn of what has much to look at lasts, about.
const TURN: Duration = Duration::from_millis(10);
/// Requests that may walk over the registry, the event log and the like at the same time. Each takes a thread and a core while its
/// turn lasts; more wait.
pub const WALKS: usize = 2;
/// Requests of one socket that collect an answer over several turns: each holds what it has found.
pub const COLLECTING: usize = 4;
/// Requests that may read a few rows at the same time, each on a thread. More would take the processor from the threads that messages
/// go through, which are as many as there are cores.
pub const READS: usize = 2;

const _: () = assert!(SLICE_LINES <= CONNECTION_LINES && SLICE_LINES <= QUEUE_LINES);
const _: () = assert!(SLICE_BYTES * 2 <= CONNECTION_BYTES);

/// What `origins` answers to these apps, or (None) to the operator: an array, as JSON.
pub type Origins = Box<dyn Fn(Option<&Apps>) -> String + Send + Sync>;

/// What all connections share.
pub struct Door {
    pub store: Arc<Store>,
    pub tokens: Arc<Tokens>,
    pub commits: turns::Turns,
    /// Turns of those that may have much to look at.
    pub walks: Arc<Turns>,
    /// Places of requests that keep what they have found for some turns.
    pub collecting: Places,
    /// Turns of those that read a few rows.
    pub reads: Arc<Turns>,
    pub line_limit: usize,
    pub ttl0_patience: Duration,
    pub receipts: Receipts,
    /// The array that `origins` answers, as JSON: on an app's socket for its apps, on the operator's (None) with all there is.
    pub origins: Origins,
    /// Where `reload` is asked for.
    pub reloads: mpsc::Sender<Reload>,
    /// When the daemon began to take lines.
    pub started: Instant,
    /// Open connections.
    pub open: AtomicUsize,
    /// Connections since the start.
    pub connected: AtomicU64,
    /// True: no line is read any more.
    pub stop: watch::Receiver<bool>,
}

/// Where a `reload` is answered: with the keys that were changed and are used only after a restart, or with what is wrong.
pub type Reload = oneshot::Sender<Result<Vec<String>, String>>;

/// One socket: which apps exist on it, and what its lines are judged by. Replaced at reload.
pub struct Socket {
    pub name: String,
    pub rules: ArcSwap<Rules>,
    /// `drain` and the like are allowed here.
    pub operator: bool,
    /// Its number among all: in the writer's queue sockets take turns.
    pub number: u16,
    pub shares: Shares,
}

impl Socket {
    /// The apps of this socket.
    pub fn apps(&self) -> Apps {
        Arc::new(self.rules.load().apps.keys().cloned().collect())
    }

    /// Tells the metrics what it could still take.
    pub fn show(&self) {
        let Shares { connections, chunks, lines, unanswered, answers, .. } = &self.shares;
        metrics::level("fanfare_clients_free", "socket", self.name.clone(), connections.free() as f64);
        let kib = [chunks, lines, unanswered, answers].map(|share| share.free()).iter().sum::<usize>();
        metrics::level("fanfare_ingest_free_bytes", "socket", self.name.clone(), kib as f64 * 1024.0);
    }

    /// Those of them that lack one of these scopes, and which.
    fn refusing(&self, scopes: &[Name]) -> BTreeMap<Arc<str>, Name> {
        let rules = self.rules.load();
        let lacks = |app: &Arc<str>| Some((app.clone(), scopes.iter().find(|scope| !rules.has_scope(app, scope))?.clone()));
        rules.apps.keys().filter_map(lacks).collect()
    }
}

/// Accepts connections until `stop`.
pub async fn serve(listener: UnixListener, socket: Arc<Socket>, door: Arc<Door>) {
    let mut stop = door.stop.clone();
    // Who has connected before. An application that connects for each message would fill the journal; uids are few.
    let mut known = HashSet::new();
    let (not_accepted, full) = (Complaint::each_minute(), Complaint::each_minute());
    // Given up when there is no descriptor for a connection, so that it can be told so instead of waiting in vain.
    let mut spare = spare_descriptor();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if let Some(left_out) = not_accepted.tell() {
                        tracing::error!(socket = socket.name, %error, left_out, "accepting failed");
                    }
                    if descriptors::lacking(&error) && spare.take().is_some()
                        && let Ok(Ok((stream, _))) = timeout(ACCEPT_PAUSE, listener.accept()).await
                    {
                        refuse(stream, "there is no descriptor for another connection");
                    } else {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    spare = spare_descriptor();
                    continue;
                }
            },
            () = stopping(&mut stop) => return,
        };
        let Some(place) = socket.shares.connections.try_take(1) else {
            if let Some(left_out) = full.tell() {
                tracing::warn!(
                    socket = socket.name,
                    left_out,
                    "a connection is refused: this socket has all it may have (ingest.connections)"
                );
            }
            refuse(stream, "there are as many connections on this socket as ingest.connections allows");
            continue;
        };
        door.open.fetch_add(1, Ordering::Relaxed);
        let peer = stream.peer_cred().ok();
        let (uid, gid) = (peer.as_ref().map(|peer| peer.uid()), peer.as_ref().map(|peer| peer.gid()));
        let pid = peer.and_then(|peer| peer.pid());
        if known.len() < KNOWN_PEERS && known.insert((uid, gid)) {
            tracing::info!(socket = socket.name, uid, gid, pid, "connected, the first of this user since the start");
        } else {
            tracing::debug!(socket = socket.name, uid, gid, pid, "connected");
        }
        let (socket, door) = (socket.clone(), door.clone());
        tokio::spawn(async move {
            let _place = place;
            converse(stream, socket, door.clone()).await;
            door.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Ends when no line is to be read any more.
pub(crate) async fn stopping(stop: &mut watch::Receiver<bool>) {
    // Without its sender the daemon has ended.
    let _ended = stop.wait_for(|stop| *stop).await;
}

fn spare_descriptor() -> Option<std::fs::File> {
    std::fs::File::open("/dev/null").ok()
}

/// One connection too many gets one line, at once: it takes nothing of ours that could be held.
fn refuse(stream: UnixStream, message: &str) {
    use std::io::Write;
    metrics::rejected(Code::Overloaded);
    metrics::turned_away("connections");
    let mut line = Vec::new();
    write_problem(&mut line, &None, &problem(Code::Overloaded, None, message), Some(1.0), &[]);
    if let Ok(mut stream) = stream.into_std() {
        // There is always room for one line in a new socket; its client may have gone.
        let _gone = stream.write_all(&line);
    }
}

fn problem(code: Code, field: Option<&str>, message: &str) -> Problem {
    Problem { code, field: field.map(str::to_owned), message: message.to_owned() }
}

async fn converse(stream: UnixStream, socket: Arc<Socket>, door: Arc<Door>) {
    let (read, write) = stream.into_split();
    let (items, waiting) = mpsc::unbounded_channel();
    let answerer = Answerer { door: door.clone(), socket: socket.clone(), items: waiting, out: write, room: None };
    let answering = tokio::spawn(answerer.run());
    let connection = door.connected.fetch_add(1, Ordering::Relaxed);
    let mut reader = Reader {
        from: turns::From { socket: socket.number, connection },
        share: Share {
            lines: Arc::new(Semaphore::new(CONNECTION_LINES)),
            bytes: Arc::new(Semaphore::new(CONNECTION_BYTES.max(door.line_limit * 2))),
        },
        socket,
        door,
        items,
        slice: Slice::default(),
        follows: false,
        turn: None,
    };
    let mut stop = reader.door.stop.clone();
    let items = reader.items.clone();
    tokio::select! {
        () = reader.run(read) => {}
        () = stopping(&mut stop) => {}
        // The client does not take its answers, or has gone.
        () = items.closed() => {}
    }
    drop(items);
    drop(reader);
    // What was handed over is still answered.
    let _ended = answering.await;
}

/// What this connection may have unanswered.
struct Share {
    lines: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

struct Reader {
    share: Share,
    socket: Arc<Socket>,
    door: Arc<Door>,
    items: mpsc::UnboundedSender<Item>,
    slice: Slice,
    /// A following `events` is the last request of its connection.
    follows: bool,
    from: turns::From,
    /// Held while lines are read, and given back before anything is waited for.
    turn: Option<Turn>,
}

/// Writes that are handed over together.
#[derive(Default)]
struct Slice {
    ops: Vec<Op>,
    told: Vec<Told>,
    bytes: usize,
    /// What they hold of `ingest.memory_mb`, and so many bytes of it that no line has used yet.
    memory: Vec<OwnedSemaphorePermit>,
    room: usize,
}

impl Reader {
    async fn run(&mut self, mut read: OwnedReadHalf) {
        let (socket, line_limit) = (self.socket.clone(), self.door.line_limit);
        let mut unread = Unread::new(&socket.shares, line_limit);
        // Of a line that is too long, or has no memory, the rest is skipped.
        let mut skipping = false;
        let (mut lines, mut bytes) = (0, 0);
        loop {
            match unread.more(&mut read).await {
                More::Bytes => {}
                // A client that went away without an end is one that went away.
                More::End => break,
                More::Short => {
                    unread.drop_begun();
                    skipping = true;
                    self.turn_away("line_memory", "there is no memory for this line: try again").await;
                    continue;
                }
                // What follows cannot be told from its rest. It is one to try again: nothing is wrong with what was sent.
                More::Late => {
                    let message = format!("a line must be finished within {LINE_SECONDS} s: the connection ends");
                    self.turn_away("line_time", &message).await;
                    break;
                }
            }
            while let Some(line) = unread.next_line() {
                if self.turn.is_none() {
                    self.turn = Some(socket.shares.turn().await);
                }
                (lines, bytes) = (lines + 1, bytes + line.len());
                if std::mem::take(&mut skipping) {
                    continue;
                }
                if line.len() > line_limit {
                    self.too_long().await;
                } else if !self.line(&unread.bytes()[line]).await {
                    return;
                }
                if self.slice.ops.len() >= SLICE_LINES || self.slice.bytes >= SLICE_BYTES {
                    self.hand_over().await;
                }
                if lines >= TURN_LINES || bytes >= TURN_BYTES {
                    (lines, bytes) = (0, 0);
                    self.turn = None;
                    // The other sockets' tasks, too.
                    tokio::task::yield_now().await;
                }
            }
            if skipping {
                unread.drop_begun();
            } else if unread.begun() > line_limit {
                unread.drop_begun();
                skipping = true;
                self.too_long().await;
            } else {
                unread.forget_taken();
            }
            self.hand_over().await;
            self.turn = None;
        }
        self.hand_over().await;
    }

    /// A line is not taken although nothing is wrong with it.
    async fn turn_away(&mut self, reason: &'static str, message: &str) {
        metrics::turned_away(reason);
        self.refuse(None, problem(Code::Overloaded, None, message)).await;
    }

    async fn too_long(&mut self) {
        let message = format!("a line may have {} bytes at most (ingest.line_limit)", self.door.line_limit);
        self.refuse(None, problem(Code::LineTooLong, None, &message)).await;
    }

    /// Reads one line; false if nothing behind it is read.
    async fn line(&mut self, line: &[u8]) -> bool {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return true;
        }
        metrics::lines(1);
        self.reserve(line.len() + LINE_BYTES).await;
        let now = clock::now();
        let (id, request) = {
            let rules = self.socket.rules.load();
            parse(line, &rules, now)
        };
        let request = match request {
            Ok(request) => request,
            Err(problem) => {
                self.refuse(id, problem).await;
                return true;
            }
        };
        match self.prepare(request, &id, now) {
            Prepared::Write(op, mut told) => {
                if let Told::Changed { singles, .. } = &mut told {
                    *singles = self.concerned_singles(&op).await;
                }
                self.slice.bytes += line.len();
                self.slice.room = self.slice.room.saturating_sub(line.len() + LINE_BYTES);
                self.slice.ops.push(op);
                self.slice.told.push(told);
            }
            Prepared::Read(request) => {
                self.hand_over().await;
                self.follows = matches!(&request, Request::Events(events) if events.follow);
                let places = self.all_shares(line.len()).await;
                // The answering half has ended: so does this one, at its next read.
                let _ended = self.items.send(Item::Read { id, request, places });
            }
            Prepared::Refused(problem) => self.refuse(id, problem).await,
        }
        !self.follows
    }

    fn prepare(&self, request: Request, id: &RequestId, now: crate::message::UnixMillis) -> Prepared {
        let apps = || self.socket.apps();
        let ids = &self.door.store.ids;
        let preparing = |app: &str| self.preparing(app, now);
        let id = id.clone();
        let changed = |id| Told::Changed { id, singles: Concerned::default() };
        match request {
            Request::Send(send) => {
                let rejected = match &send.to {
                    // Only their number is stored.
                    To::Subscriptions(subscriptions) => subscriptions.rejected.clone(),
                    // What of these cannot be sent to, the writer says.
                    To::Stream | To::Ids(_) | To::Accounts { .. } | To::Segment(_) => Vec::new(),
                };
                let app = send.app.clone();
                Prepared::Write(Op::Send(Box::new(prepare_send(*send, &preparing(&app)))), Told::Send { id, rejected })
            }
            Request::Add(add) => {
                let message_id = ids.read(add.message_id);
                let list = self.door.store.lists.get(ListKey::of(message_id)).filter(|list| list.message.id == message_id);
                // Another app's is not even prepared for: it must not take longer than one that does not exist.
                let list = list.filter(|list| self.socket.rules.load().apps.contains_key(&list.message.app));
                let rejected = add.subscriptions.rejected.clone();
                let told = Told::Add { id, message_id: add.message_id, rejected };
                let op = match list {
                    Some(list) => prepare_add(add, &list.message, apps(), &preparing(&list.message.app)),
                    // The writer says what is wrong with it.
                    None => Op::Add { message_id, chunks: Vec::new(), rejected: 0, step: add.step, apps: apps() },
                };
                Prepared::Write(op, told)
            }
            Request::Close { message_id, step } => {
                let op = Op::Close { message_id: ids.read(message_id), step, apps: apps() };
                Prepared::Write(op, Told::Add { id, message_id, rejected: Vec::new() })
            }
            Request::Cancel(target) => Prepared::Write(Op::Cancel { target: target.read(ids), apps: apps() }, changed(id)),
            Request::Pause(target) => Prepared::Write(Op::Pause { target: target.read(ids), apps: apps() }, changed(id)),
            Request::Resume { target, rate } => {
                Prepared::Write(Op::Resume { target: target.read(ids), rate, apps: apps() }, changed(id))
            }
            Request::Drain { on } if self.socket.operator => Prepared::Write(Op::Drain { on }, Told::Plain { id }),
            Request::Drain { .. } | Request::Reload | Request::Backup { .. } if !self.socket.operator => {
                Prepared::Refused(problem(Code::NotAllowed, Some("op"), "this is for the operator's socket"))
            }
            Request::Ping => {
                // What other apps have waiting is not told.
                let apps = (!self.socket.operator).then(apps);
                Prepared::Write(Op::Pass { apps }, Told::Ping { id })
            }
            registry => self.prepare_registry(registry, id, now),
        }
    }

    /// The operations of the registry that write; what is left reads.
    fn prepare_registry(&self, request: Request, id: RequestId, now: crate::message::UnixMillis) -> Prepared {
        let apps = || self.socket.apps();
        match request {
            Request::Subscribe(mut subscribe) => {
                let app = subscribe.app.clone();
                let subscription = subscribe.subscription.subscription_id();
                let own = |payload| NewSend::new(app.clone(), To::Ids(vec![subscription]), payload, CONFIRM_TTL);
                let confirm = subscribe.confirm.take().map(own);
                let op = prepare_subscribe(*subscribe, confirm, &self.preparing(&app, now));
                Prepared::Write(op, Told::Subscribe { id })
            }
            Request::UpdateSubscription(update) => {
                let named = update.scopes.iter().flatten().flatten();
                let refusing = self.socket.refusing(&named.cloned().collect::<Vec<_>>());
                // Whose it is, only the store knows. To an app that has not all these scopes it is not handed.
                let apps = apps().iter().filter(|app| !refusing.contains_key(*app)).cloned().collect();
                let told = Told::Update { id, subscription: update.subscription, refusing };
                Prepared::Write(Op::Update { update, apps: Arc::new(apps) }, told)
            }
            Request::Unsubscribe { subscription } => {
                Prepared::Write(Op::Unsubscribe { subscription, apps: apps() }, Told::Remove { id })
            }
            Request::Account { who, enabled: Some(enabled) } => {
                Prepared::Write(Op::Switch { who: who.clone(), enabled, apps: apps() }, Told::Account { id, who })
            }
            Request::Presence { who, online, lease, session } => {
                Prepared::Write(Op::Presence { who, online, lease, session, apps: apps() }, Told::Presence { id })
            }
            Request::MarkRead { who, what } => {
                let what = what.read(&self.door.store.ids);
                Prepared::Write(Op::MarkRead { who, what, apps: apps() }, Told::MarkRead { id })
            }
            Request::Feedback { receipt, kind } => match self.door.receipts.open(&receipt) {
                Some((message, subscription)) => {
                    let message = self.door.store.ids.read(message);
                    Prepared::Write(Op::Feedback { id: message, subscription, kind, apps: apps() }, Told::Plain { id })
                }
                None => {
                    Prepared::Refused(problem(Code::InvalidField, Some("receipt"), "is no receipt of this daemon, or too old"))
                }
            },
            Request::Test(test) => {
                let Test { app, to, payload, wait } = *test;
                let to = match to {
                    TestTo::Ids(ids) => To::Ids(ids),
                    TestTo::Account(account) => To::Accounts { accounts: vec![account], devices: Devices::All },
                };
                let send = NewSend { urgency: Urgency::High, ..NewSend::new(app.clone(), to, payload, TEST_TTL) };
                let mut new = prepare_send(send, &self.preparing(&app, now));
                let watched = wait.map(|seconds| {
                    let (results, heard) = mpsc::unbounded_channel();
                    new.watch = Some(results);
                    (heard, Duration::from_secs_f64(seconds))
                });
                Prepared::Write(Op::Send(Box::new(new)), Told::Test { id, watched })
            }
            Request::Erase(erase) => {
                let (reply, swept) = oneshot::channel();
                let everywhere = self.socket.operator;
                Prepared::Write(
                    Op::Erase { erase, everywhere, apps: apps(), so_far: Erasing::new(reply) },
                    Told::Erase { id, swept },
                )
            }
            read => Prepared::Read(read),
        }
    }

    fn preparing(&self, app: &str, now: crate::message::UnixMillis) -> Preparing<'_> {
        Preparing {
            now,
            ttl0_patience: self.door.ttl0_patience,
            first_key: self.door.tokens.keys(app).first().copied().unwrap_or(crate::message::KeyId([0; 8])),
            services: &self.door.store.services,
            operators: self.socket.operator,
        }
    }

    async fn refuse(&mut self, id: RequestId, problem: Problem) {
        self.hand_over().await;
        metrics::rejected(problem.code);
        let mut line = Vec::with_capacity(160);
        let retry_after = (problem.code == Code::Overloaded).then_some(1.0);
        write_problem(&mut line, &id, &problem, retry_after, &[]);
        let places = self.all_shares(line.len()).await;
        let _ended = self.items.send(Item::Now { line, places });
    }

    /// The singles that a `cancel`, `pause` or `resume` of a label or an app concerns. Those that are paused by themselves are
    /// resumed here, one by one: the writer knows of each by its id only.
    async fn concerned_singles(&mut self, op: &Op) -> Concerned {
        let (command, target, apps) = match op {
            Op::Cancel { target, apps } => (Command::Cancel, target, apps),
            Op::Pause { target, apps } => (Command::Pause, target, apps),
            Op::Resume { target, apps, .. } => (Command::Resume, target, apps),
            _ => return Concerned::default(),
        };
        let words = words(target, apps);
        if let [Holder::Message(_)] = words[..] {
            return Concerned::default();
        }
        // What this connection sent before is counted too.
        self.hand_over().await;
        self.turn = None;
        if !self.written(vec![Op::Pass { apps: None }]).await {
            return Concerned::default();
        }
        let mut counting = Counting::of(&self.door.store, command, words);
        let Counted { concerned, paused } = loop {
            let (store, turn) = (self.door.store.clone(), self.door.walks.take(&self.socket.name).await);
            let looked = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                (counting.go_on(&store, Instant::now() + TURN), counting)
            });
            match looked.await {
                Ok((Ok(true), counted)) => break counted.end(),
                Ok((Ok(false), begun)) => counting = begun,
                // While the store is being opened again nothing can be counted; the writer says what becomes of the command.
                Ok((Err(ReadError), _)) | Err(_) => return Concerned { more: true, ..Concerned::default() },
            }
        };
        for some in paused.chunks(SLICE_LINES) {
            let resume = |id: &MessageId| Op::Resume { target: Target::Message(*id), rate: None, apps: apps.clone() };
            if !self.written(some.iter().map(resume).collect()).await {
                break;
            }
        }
        concerned
    }

    /// Has the writer take lines of the daemon's own, in their turn among those of this connection. Whether it has answered.
    async fn written(&self, ops: Vec<Op>) -> bool {
        let (reply, answers) = oneshot::channel();
        // Where the writer has ended there is no answer.
        let _ended = self.door.commits.send(Writes { from: self.from, ..Writes::new(ops, reply) });
        answers.await.is_ok()
    }

    /// Hands the collected writes to the writer.
    async fn hand_over(&mut self) {
        if self.slice.ops.is_empty() {
            // What was reserved for lines that were no writes.
            self.slice = Slice::default();
            return;
        }
        let Slice { ops, told, bytes, mut memory, room } = std::mem::take(&mut self.slice);
        // What was reserved for lines that did not come is free again.
        drop(memory.last_mut().and_then(|last| last.split((room / 1024).min(last.num_permits()))));
        let mut own = self.own_share(ops.len(), bytes).await;
        let places = &self.socket.shares.places;
        let place = timeout(PATIENCE, or_wait(places.try_take(ops.len()), &mut self.turn, places.take(ops.len())));
        let Ok(place) = place.await else {
            drop(ops);
            drop(memory);
            return self.overloaded(told, own).await;
        };
        // Until it is answered: the client may not take its answers.
        own.extend(memory);
        let (reply, answers) = oneshot::channel();
        let writes = Writes { from: self.from, places: vec![place], ..Writes::new(ops, reply) };
        let began = Instant::now();
        // There is a place, so this does not wait; where the writer has ended, the answers say so.
        let _ended = self.door.commits.send(writes);
        let _ended = self.items.send(Item::Writes { told, answers, began, places: own });
    }

    async fn overloaded(&mut self, told: Vec<Told>, mut places: Vec<OwnedSemaphorePermit>) {
        // The answers need some, too; it is less, and until it is there nothing more is read.
        places.push(self.socket.shares.unanswered.take(told.len() * LINE_OVERHEAD / 1024 + 1).await);
        let mut line = Vec::new();
        for told in &told {
            metrics::rejected(Code::Overloaded);
            let problem = problem(Code::Overloaded, None, "the writer is behind: try again");
            write_problem(&mut line, told.id(), &problem, Some(1.0), &[]);
        }
        let _ended = self.items.send(Item::Now { line, places });
    }

    /// Sees to it that the slice has memory for a line before it is parsed: a connection for whose lines there is none is not read.
    async fn reserve(&mut self, bytes: usize) {
        if self.slice.room >= bytes {
            return;
        }
        let kib = bytes.max(RESERVED) / 1024 + 1;
        let more = match self.socket.shares.unanswered.try_take(kib) {
            Some(more) => more,
            None => {
                // Who waits holds nothing, so that all of it comes back.
                self.hand_over().await;
                self.turn = None;
                self.socket.shares.unanswered.take(kib).await
            }
        };
        self.slice.room += kib * 1024;
        self.slice.memory.push(more);
    }

    /// The share of one line, or answer, of so many bytes: of what the connection and what the socket may have.
    async fn all_shares(&mut self, bytes: usize) -> Vec<OwnedSemaphorePermit> {
        let mut places = self.own_share(1, bytes).await;
        let kib = (bytes + LINE_OVERHEAD) / 1024 + 1;
        let unanswered = &self.socket.shares.unanswered;
        places.push(or_wait(unanswered.try_take(kib), &mut self.turn, unanswered.take(kib)).await);
        places
    }

    async fn own_share(&mut self, lines: usize, bytes: usize) -> Vec<OwnedSemaphorePermit> {
        let lines = u32::try_from(lines.min(CONNECTION_LINES)).expect("bounded");
        let bytes = u32::try_from(bytes.min(CONNECTION_BYTES)).expect("bounded");
        let mut places = Vec::with_capacity(2);
        // These semaphores are never closed.
        for (share, most) in [(&self.share.lines, lines), (&self.share.bytes, bytes)] {
            let free = share.clone().try_acquire_many_owned(most).ok().map(Ok);
            places.extend(or_wait(free, &mut self.turn, share.clone().acquire_many_owned(most)).await);
        }
        places
    }
}

/// Takes the free one; where there is none, gives the turn back and waits.
async fn or_wait<T>(free: Option<T>, turn: &mut Option<Turn>, later: impl Future<Output = T>) -> T {
    match free {
        Some(free) => free,
        None => {
            *turn = None;
            later.await
        }
    }
}

/// Seconds that a `test` is worth delivering.
const TEST_TTL: u32 = 300;

/// Seconds that a `confirm` is worth delivering.
const CONFIRM_TTL: u32 = 24 * 60 * 60;

enum Prepared {
    Write(Op, Told),
    Read(Request),
    Refused(Problem),
}

/// The answers of a writer that has ended.
pub(crate) fn stopped() -> Done {
    Done::Failed {
        problem: problem(Code::ShuttingDown, None, "the daemon is stopping: whether this line was taken is not known"),
        retry_after: Some(5.0),
        position: None,
    }
}
