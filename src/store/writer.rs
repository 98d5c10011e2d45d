//! The one thread that writes. It drains two channels, what was settled first and then what is to be committed, into one
//! synced batch; answers the clients only after that; and never waits for anybody.
//!
//! A *group commit* holds new messages; a *checkpoint* holds all that outcomes change: outcome bytes, rows of `due` made and
//! used up, counters, the events, rows that are done with. Both may lie in the same synced batch, but nothing that an outcome
//! changes is ever written outside a checkpoint, so after a crash the store is as it was at the last one, plus the commits.
//!
//! When a write finds no space, what was to be committed is answered `read_only`, what was settled stays in memory and is
//! written after the store has been reopened; any other error ends the process.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TryRecvError};

use crate::clock;
use crate::ingest::request::{Code, EventType, Problem, State, Step, Target};
use crate::limits::{CHECKPOINT_OUTCOMES, COMMIT_BYTES, IDEMPOTENCY_MILLIS, PIECE_BYTES, PIECE_RECIPIENTS_MAX, STATS_LABELS};
use crate::message::{
    BatchId, Delivery, DeliveryId, Ending, KeyId, Lane, MessageId, Reference, Service, SubscriptionId, UnixMillis,
};
use crate::metrics;
use crate::store::commit::{self, Apps, Chunk, Done, NewMessage, NewRecipients, Op, Writes, subscription_id};
use crate::store::key::{self, ChunkKey, DueKey, Waiting, WorkKey};
use crate::store::live::{Batch, Holder, List, ListKey, ListState, MOVED, Upto};
use crate::store::load::{MessageRow, message_key};
use crate::store::record::{self, Counts, Head, HeadRecipient, Put, Take, WorkRow};
use crate::store::{LastCommit, ReadError, Rows, Store, WriteError, family, list_state, number};

/// The piece number of singles that wait by themselves from the start (`at`, `paused`): they lie in no row of `work`.
const WAITING_PIECE: u16 = 0x8000;
/// Recipients of singles in one group commit, at most; well below the 65,536 that places allow.
const COMMIT_RECIPIENTS: usize = 16_384;
/// Rows that `resume` moves between two looks at the channels.
const RELEASE_SLICE: usize = 2_048;
/// A row of `due` may be made this long after the time in its key, in milliseconds: what was settled waits in channels.
const DUE_MARGIN_MILLIS: u64 = 60_000;
/// How often the first live row of each lane is looked up and kept.
const FIRST_ROWS_EVERY: Duration = Duration::from_secs(10);

/// What became of a delivery.
pub struct Settled {
    pub delivery: Box<Delivery>,
    pub what: Settlement,
}

/// What the writer does with it.
#[derive(Clone, Debug, PartialEq)]
pub enum Settlement {
    /// It has ended.
    Ended { ending: Ending, reason: &'static str, status: Option<u16>, key: Option<KeyId> },
    /// It waits by itself until then.
    Wait { until: UnixMillis, counts_retry: bool },
    /// It waits for `resume`, or its deadline.
    Hold(Holder),
    /// It goes back to where it was: nothing is written.
    Back,
}

/// What reaches the writer beside commits.
pub enum Settle {
    Slice(Vec<Settled>),
    /// A run that was not worked on, because the store was being reopened or its list was paused: its lane reads it again.
    Unread {
        batch: BatchId,
        count: u16,
        due: Option<UnixMillis>,
    },
    /// Rows of `due` whose deliveries have ended.
    Stale(Vec<DueKey>),
    /// A list's deadline passed.
    Over(ListKey, Ending),
    /// From `sweep`: rows of `expiry` to make and to drop.
    Expiry {
        put: Vec<(UnixMillis, Waiting)>,
        drop: Vec<Vec<u8>>,
    },
    /// From `sweep`: ranges whose time has passed, and rows to write and drop.
    Forget {
        ranges: Vec<(&'static str, Vec<u8>, Vec<u8>)>,
        put: Vec<(&'static str, Vec<u8>, Vec<u8>)>,
    },
    /// From `sweep`: deliveries of a cancelled label or app, read but not claimed. Those in flight are let finish.
    Cancelled(Vec<Box<Delivery>>),
    /// From `sweep`: all singles that the cancellation concerns, up to this message, have been looked at.
    Swept(Holder, Upto),
    /// Ends the writer after a last checkpoint.
    Stop,
}

/// What the writer tells the scheduler: one place that holds what is new until the scheduler takes it, so that the writer never
/// waits and nothing is lost. It is bounded: per lane a few fresh rows (the others are on disk, and `newest` says so), else one
/// entry a lane or list.
pub struct News {
    state: std::sync::Mutex<Latest>,
    wake: Sender<()>,
}

/// All that is new since the scheduler looked last.
#[derive(Default)]
pub struct Latest {
    /// Rows of singles that were just committed.
    pub fresh: Vec<Fresh>,
    /// The newest row of each lane since the start; never taken away.
    pub newest: HashMap<Lane, WorkKey>,
    /// Rows that deliveries came back to: the first of each lane.
    pub back_rows: HashMap<Lane, WorkKey>,
    /// Chunks that deliveries came back to: the first of each list and service.
    pub back_chunks: HashMap<(ListKey, Service), u32>,
    /// Rows of `due` that were made, or that deliveries came back to: the earliest of each lane.
    pub due: HashMap<Lane, UnixMillis>,
    /// Lists that came, grew or changed otherwise.
    pub lists: HashSet<ListKey>,
}

/// A row of singles that was just committed.
pub struct Fresh {
    pub key: WorkKey,
    /// The lane's last row before it, if one was committed since the start.
    pub previous: Option<WorkKey>,
    /// Present while `store.fresh_mb` allows: then it need not be read.
    pub batch: Option<Arc<Batch>>,
}

/// Fresh rows that wait for the scheduler, at most; more are read from disk.
const FRESH_ROWS: usize = 1_024;

impl News {
    /// Nothing is new. `wake` is rung when something is.
    pub fn new(wake: Sender<()>) -> News {
        News { state: std::sync::Mutex::default(), wake }
    }

    /// Takes what is new.
    pub fn take(&self) -> Latest {
        let mut state = super::live::lock(&self.state);
        let newest = state.newest.clone();
        std::mem::replace(&mut *state, Latest { newest, ..Latest::default() })
    }

    fn tell(&self, change: impl FnOnce(&mut Latest)) {
        change(&mut super::live::lock(&self.state));
        // A full bell has rung already.
        let _rung = self.wake.try_send(());
    }
}

fn earliest(due: &mut HashMap<Lane, UnixMillis>, lane: Lane, time: UnixMillis) {
    let known = due.entry(lane).or_insert(time);
    *known = (*known).min(time);
}

/// What the writer needs from the configuration.
pub struct Settings {
    pub checkpoint_interval: Duration,
    pub max_pending: u64,
    /// Which types of events are kept.
    pub log: HashSet<EventType>,
    /// The key that pages of each app get: deliveries that end without an attempt are counted under it.
    pub first_keys: HashMap<Arc<str>, KeyId>,
    /// All apps.
    pub apps: Apps,
}

/// The writer's state.
pub struct Writer {
    store: Arc<Store>,
    settings: Settings,
    commits: Receiver<Writes>,
    settles: Receiver<Settle>,
    news: Arc<News>,
    /// Tells the sweep of a cancellation.
    cancelled: Sender<()>,
    next_commit: u64,
    checkpoint: Checkpoint,
    stats: Stats,
    releasing: VecDeque<Holder>,
    /// What is to end as soon as nobody is busy with it.
    pursued: HashMap<DeliveryId, Pursuit>,
    last_checkpoint: Instant,
    last_first_rows: Instant,
    /// Pending deliveries as of the last checkpoint, plus commits since.
    pending_synced: u64,
    /// When the store was found full, and when to try next.
    full: Option<Instant>,
    stopping: bool,
}

/// A row to write or (None) to drop: family, key, value.
type Change = (&'static str, Vec<u8>, Option<Vec<u8>>);

/// What the next checkpoint writes.
#[derive(Default)]
struct Checkpoint {
    batches: HashMap<BatchId, Arc<Batch>>,
    lists: HashMap<ListKey, Arc<List>>,
    due: BTreeMap<DueKey, Option<Vec<u8>>>,
    held: BTreeMap<Vec<u8>, bool>,
    expiry: BTreeMap<Vec<u8>, bool>,
    events: Vec<u8>,
    event_count: u32,
    /// Other rows: family, key, and the value, or None where it goes.
    rows: Vec<Change>,
    ranges: Vec<(&'static str, Vec<u8>, Vec<u8>)>,
    /// Claims that end when it is on disk.
    release: Vec<(Arc<Batch>, u16)>,
    outcomes: usize,
    since: Option<Instant>,
    /// Is written with the next batch, whatever the time.
    forced: bool,
}

impl Checkpoint {
    fn dirty(&self) -> bool {
        self.since.is_some()
    }

    fn touch(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    fn change(&mut self, batch: &Arc<Batch>) {
        self.touch();
        self.batches.entry(batch.id).or_insert_with(|| batch.clone());
    }
}

/// A group commit under construction.
struct Group {
    commit: u64,
    now: UnixMillis,
    rows: Rows,
    work: BTreeMap<Lane, Vec<WorkRow>>,
    waiting: BTreeMap<Lane, u16>,
    heads: Vec<Head>,
    places: usize,
    added: u64,
    /// A label or an app was cancelled: the sweep is told when that is on disk.
    cancels: bool,
    idempotency: HashMap<Vec<u8>, ([u8; 16], Done)>,
    topics: HashMap<[u8; 16], (DeliveryId, MessageId)>,
    superseded: Vec<(DeliveryId, MessageId)>,
    lists: Vec<ListKey>,
    due: BTreeMap<Lane, UnixMillis>,
    /// Rows of origins that were met for the first time.
    origins: Vec<Vec<u8>>,
    /// What to restore if the batch cannot be written.
    undo_lists: HashMap<ListKey, Option<ListState>>,
    random: [u8; 256],
    random_next: usize,
}

impl Writer {
    /// Reads what the writer must know: the last commit, lists that are open, rules, pending.
    pub fn open(
        store: Arc<Store>,
        settings: Settings,
        commits: Receiver<Writes>,
        settles: Receiver<Settle>,
        news: Arc<News>,
        cancelled: Sender<()>,
    ) -> Result<Writer, ReadError> {
        let reader = store.reader()?;
        let last = reader.value(family::META, "last")?.map(|row| LastCommit::decode(row).map_err(|record::Corrupt| ReadError));
        let (next_commit, pending) = last.transpose()?.map_or((1, 0), |last| (last.commit + 1, last.pending));
        let events_end = reader.value(family::META, "events_end")?.map(|row| Take::new(row).u64().map_err(|_| ReadError));
        let events_end = events_end.transpose()?.unwrap_or(1);
        let mut releasing = VecDeque::new();
        reader.scan(family::META, b"release/", b"release0", |_, value| {
            releasing.extend(holder_from(Bytes::copy_from_slice(value)));
            true
        })?;
        drop(reader);
        store.pending.store(pending, Ordering::Relaxed);
        store.events_end.send_replace(events_end);
        load_rules(&store)?;
        load_lists(&store)?;
        let mut writer = Writer {
            store,
            settings,
            commits,
            settles,
            news,
            cancelled,
            next_commit,
            checkpoint: Checkpoint::default(),
            stats: Stats::default(),
            releasing,
            pursued: HashMap::new(),
            last_checkpoint: Instant::now(),
            last_first_rows: Instant::now(),
            pending_synced: pending,
            full: None,
            stopping: false,
        };
        writer.end_what_is_over();
        Ok(writer)
    }

    /// Lists that were over, or done, when the last run ended, and whose last recipients or whose end did not reach the disk: what
    /// was in flight then is not sent again, so it ends now.
    fn end_what_is_over(&mut self) {
        for (key, list) in self.store.lists.all() {
            let (over, done) = {
                let mut state = list_state(&list);
                (state.over.take(), state.done())
            };
            if let Some(ending) = over {
                self.end_list(key, &list, ending, if ending == Ending::Expired { "deadline" } else { "cancelled" });
            } else if done {
                self.checkpoint.touch();
                self.checkpoint.lists.insert(key, list);
            }
        }
    }

    /// Works until [`Settle::Stop`]. An error means that the process must end with exit code 74.
    pub fn run(mut self, progress: impl Fn()) -> Result<(), WriteError> {
        loop {
            progress();
            self.wait();
            if self.turn()? {
                return Ok(());
            }
        }
    }

    /// Does what there is to do; true if that was the last of it.
    fn turn(&mut self) -> Result<bool, WriteError> {
        self.settle_all();
        self.watch_lateness();
        if self.full.is_some() {
            self.refuse_commits();
            self.try_reopen()?;
            return Ok(self.stopping && self.full.is_some());
        }
        self.release_some();
        self.keep_first_rows();
        let (writes, group) = self.collect();
        let checkpoint_due = self.checkpoint.forced || self.checkpoint_due() || self.stopping;
        self.write(writes, group, checkpoint_due)?;
        self.watch_lateness();
        Ok(self.stopping && !self.checkpoint.dirty() && self.commits.is_empty())
    }

    /// Waits for work, at most until the next checkpoint is due.
    fn wait(&mut self) {
        if self.stopping || !self.commits.is_empty() || !self.releasing.is_empty() && self.full.is_none() {
            return;
        }
        let patience = match self.checkpoint.since {
            // Nothing is written before the next try.
            _ if self.full.is_some() => Duration::from_millis(500),
            Some(since) => self.settings.checkpoint_interval.saturating_sub(since.elapsed()),
            None => Duration::from_millis(500),
        };
        // Only readiness is waited for: `settle_all` and `collect` take what is there.
        let mut select = crossbeam_channel::Select::new();
        select.recv(&self.settles);
        if self.full.is_none() {
            select.recv(&self.commits);
        }
        let _timeout = select.ready_timeout(patience.min(Duration::from_millis(500)));
    }

    fn checkpoint_due(&self) -> bool {
        match self.checkpoint.since {
            None => false,
            Some(since) => {
                // Half of what promise 2 allows: the other half arrives while this one is being synced.
                self.checkpoint.outcomes >= CHECKPOINT_OUTCOMES / 2
                    || since.elapsed() >= self.settings.checkpoint_interval.mul_f64(0.8)
            }
        }
    }

    /// Closes the gate of promise 2 while outcomes that are not on disk are more, or much older, than they may be.
    fn watch_lateness(&self) {
        let gates = &self.store.gates;
        gates.too_many_unsynced.store(self.checkpoint.outcomes >= CHECKPOINT_OUTCOMES, Ordering::Relaxed);
        // A row of `expiry` or a swept rule that waits makes nobody repeat anything.
        gates.set_unsynced(self.checkpoint.since.filter(|_| self.checkpoint.outcomes > 0));
    }

    // ---- settling ----

    fn settle_all(&mut self) {
        let mut slices = 0;
        loop {
            match self.settles.try_recv() {
                Ok(settle) => self.settle(settle),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
            slices += 1;
            if slices >= 256 || self.checkpoint.outcomes >= CHECKPOINT_OUTCOMES {
                break;
            }
        }
    }

    fn settle(&mut self, settle: Settle) {
        match settle {
            Settle::Slice(slice) => {
                let now = clock::now();
                for settled in slice {
                    self.settle_one(settled, now);
                }
            }
            Settle::Unread { batch, count, due } => self.tell_back(batch, count, due),
            Settle::Stale(rows) => {
                self.checkpoint.touch();
                for due in rows {
                    self.drop_due(due);
                }
            }
            Settle::Over(key, ending) => {
                if let Some(list) = self.store.lists.get(key) {
                    self.end_list(key, &list, ending, if ending == Ending::Expired { "deadline" } else { "cancelled" });
                }
            }
            Settle::Expiry { put, drop } => {
                self.checkpoint.touch();
                for (time, waiting) in put {
                    self.checkpoint.expiry.insert(key::expiry_key(time, &waiting), true);
                }
                for row in drop {
                    self.checkpoint.expiry.entry(row).or_insert(false);
                }
            }
            Settle::Forget { ranges, put } => {
                self.checkpoint.touch();
                self.checkpoint.ranges.extend(ranges);
                self.checkpoint.rows.extend(put.into_iter().map(|(family, key, value)| (family, key, Some(value))));
            }
            Settle::Cancelled(deliveries) => {
                let now = clock::now();
                for delivery in deliveries {
                    self.cancel_waiting(delivery, now);
                }
            }
            Settle::Swept(holder, upto) => {
                // A newer cancellation of the same holder is still to be swept.
                if self.store.rules.load().cancelled.get(&holder) == Some(&upto) {
                    self.checkpoint.touch();
                    let row = (family::META, rule_key("cancel", &holder), Some(rule_row(&holder, upto, clock::now(), true)));
                    self.checkpoint.rows.push(row);
                }
            }
            Settle::Stop => self.stopping = true,
        }
    }

    fn settle_one(&mut self, settled: Settled, now: UnixMillis) {
        let Settled { delivery, what } = settled;
        let Some(batch) = self.store.batches.get(&delivery.id.batch) else {
            // A claim keeps its batch in memory, so this cannot be.
            debug_assert!(false, "a settled delivery was claimed");
            return;
        };
        let list = ListKey::of_batch(&delivery.id.batch).and_then(|key| Some((key, self.store.lists.get(key)?)));
        let what = match what {
            Settlement::Wait { .. } | Settlement::Back | Settlement::Hold(_) => {
                self.overruled(&delivery, list.as_ref()).unwrap_or(what)
            }
            ended => ended,
        };
        match what {
            Settlement::Ended { ending, reason, status, key } => {
                self.pursued.remove(&delivery.id);
                if !batch.end(delivery.id.index, ending) {
                    return;
                }
                self.checkpoint.change(&batch);
                if let Some(time) = delivery.due {
                    self.drop_due(DueKey { lane: delivery.id.batch.lane(), time, delivery: delivery.id });
                }
                if let Some((key, list)) = &list {
                    let mut state = list_state(list);
                    state.in_flight -= 1;
                    state.counts.ended[ending as usize - 1] += 1;
                    self.checkpoint.lists.insert(*key, list.clone());
                }
                let key = key.or(delivery.recipient.key).or_else(|| self.settings.first_keys.get(&delivery.message.app).copied());
                let service = delivery.recipient.service;
                self.ended(1, ending, &delivery.message.app, delivery.message.label.as_ref(), service, key, now);
                let subscription = || subscription_id(delivery.recipient.endpoint.as_str());
                self.event(&Event {
                    time: now,
                    ending,
                    id: delivery.message.id,
                    message_ref: delivery.message.reference.as_deref(),
                    label: delivery.message.label.as_deref(),
                    subscription: Some(&subscription),
                    reference: delivery.recipient.reference.as_ref(),
                    app: &delivery.message.app,
                    service: Some(service),
                    status,
                    reason,
                    count: None,
                });
            }
            Settlement::Wait { until, counts_retry } => {
                self.move_to_due(&delivery, &batch, until, counts_retry);
                if let Some((key, list)) = &list {
                    let mut state = list_state(list);
                    state.in_flight -= 1;
                    state.counts.retries += u64::from(counts_retry);
                    self.checkpoint.lists.insert(*key, list.clone());
                }
                if counts_retry {
                    let key = delivery.recipient.key.or_else(|| self.settings.first_keys.get(&delivery.message.app).copied());
                    let counts = Counts { retries: 1, ..Counts::default() };
                    let of = StatsKey::new(
                        now,
                        &delivery.message.app,
                        delivery.message.label.as_ref(),
                        delivery.recipient.service,
                        key,
                    );
                    self.stats.ended(&self.store, of, &counts);
                }
            }
            Settlement::Hold(holder) => {
                let until = delivery.message.expires;
                self.move_to_due(&delivery, &batch, until, false);
                let due = DueKey { lane: delivery.id.batch.lane(), time: until, delivery: delivery.id };
                self.checkpoint.held.insert(held_key(&holder, &due), true);
                // `resume` may have come while this delivery was on its way: then nobody else would let it go.
                if !self.store.rules.load().paused.contains(&holder) && !self.releasing.contains(&holder) {
                    let row = (family::META, rule_key("release", &holder), Some(holder_row(&holder)));
                    self.checkpoint.rows.push(row);
                    self.releasing.push_back(holder);
                }
                if let Some((_, list)) = &list {
                    list_state(list).in_flight -= 1;
                }
            }
            Settlement::Back => {
                match &list {
                    None => batch.release(delivery.id.index),
                    Some((_, list)) => list.release(&batch, &[delivery.id.index]),
                }
                let count = u16::try_from(batch.size()).expect("a batch has at most 65,536 recipients");
                self.tell_back(delivery.id.batch, count, delivery.due);
            }
        }
    }

    /// Ends what a cancelled label or app has waiting.
    fn cancel_waiting(&mut self, delivery: Box<Delivery>, now: UnixMillis) {
        let Ok(Some(batch)) = self.store.find_batch(delivery.id.batch) else { return };
        // A worker that claims it from here on finds the rule and does not send it.
        if batch.busy_in(delivery.id.index, 1) == 0 {
            let what = Settlement::Ended { ending: Ending::Cancelled, reason: "cancelled", status: None, key: None };
            self.settle_one(Settled { delivery, what }, now);
        }
    }

    /// A delivery that is not at its end may find that its message is: cancelled, or a list that is over.
    fn overruled(&self, delivery: &Delivery, list: Option<&(ListKey, Arc<List>)>) -> Option<Settlement> {
        let over = match list {
            Some((_, list)) => list_state(list).over,
            None => None,
        };
        let message = &delivery.message;
        let cancelled = || self.store.rules.load().cancels(message.id, &message.app, message.label.as_ref());
        if let Some(Pursuit { ending, reason, .. }) = self.pursued.get(&delivery.id) {
            return Some(Settlement::Ended { ending: *ending, reason, status: None, key: None });
        }
        let ending = over.or_else(|| cancelled().then_some(Ending::Cancelled))?;
        let reason = if ending == Ending::Expired { "deadline" } else { "cancelled" };
        Some(Settlement::Ended { ending, reason, status: None, key: None })
    }

    fn move_to_due(&mut self, delivery: &Delivery, batch: &Arc<Batch>, until: UnixMillis, counts_retry: bool) {
        if !batch.wait(delivery.id.index, counts_retry) {
            return;
        }
        self.checkpoint.change(batch);
        self.checkpoint.outcomes += 1;
        let lane = delivery.id.batch.lane();
        if let Some(time) = delivery.due {
            self.drop_due(DueKey { lane, time, delivery: delivery.id });
        }
        let due = DueKey { lane, time: until, delivery: delivery.id };
        self.checkpoint.due.insert(due, Some(record::due_row(delivery)));
        self.checkpoint.release.push((batch.clone(), delivery.id.index));
    }

    fn drop_due(&mut self, due: DueKey) {
        self.checkpoint.due.insert(due, None);
    }

    /// Counts endings everywhere but in the list's own counters.
    #[allow(clippy::too_many_arguments, reason = "the dimensions of `stats`")]
    fn ended(
        &mut self,
        count: u64,
        ending: Ending,
        app: &Arc<str>,
        label: Option<&Arc<str>>,
        service: Service,
        key: Option<KeyId>,
        now: UnixMillis,
    ) {
        self.checkpoint.touch();
        self.checkpoint.outcomes += usize::try_from(count).unwrap_or(usize::MAX).min(1);
        self.store.pending.fetch_sub(count, Ordering::Relaxed);
        metrics::ended(&self.store.services.name(service), ending, count);
        let mut counts = Counts::default();
        counts.ended[ending as usize - 1] = count;
        self.stats.ended(&self.store, StatsKey::new(now, app, label, service, key), &counts);
    }

    /// Ends all of a list that is not in flight.
    fn end_list(&mut self, key: ListKey, list: &Arc<List>, ending: Ending, reason: &'static str) {
        let now = clock::now();
        let (rest, chunks) = {
            let mut state = list_state(list);
            if state.over.is_some() {
                return;
            }
            state.over = Some(ending);
            state.closed = true;
            let rest = state.counts.pending() - state.in_flight;
            state.counts.ended[ending as usize - 1] += rest;
            (rest, state.chunks.clone())
        };
        self.checkpoint.touch();
        self.checkpoint.forced = true;
        self.checkpoint.lists.insert(key, list.clone());
        if rest > 0 {
            let message = &list.message;
            // Which of its services the rest was for is not known without reading it.
            let service = if chunks.len() == 1 { *chunks.keys().next().expect("one") } else { Service::OTHER };
            let first_key = self.settings.first_keys.get(&message.app).copied();
            self.ended(rest, ending, &message.app, message.label.as_ref(), service, first_key, now);
            self.event(&Event {
                time: now,
                ending,
                id: message.id,
                message_ref: message.reference.as_deref(),
                label: message.label.as_deref(),
                subscription: None,
                reference: None,
                app: &message.app,
                service: None,
                status: None,
                reason,
                count: Some(rest),
            });
        }
    }

    fn event(&mut self, event: &Event<'_>) {
        if !self.settings.log.contains(&EventType::Ended(event.ending)) {
            return;
        }
        self.checkpoint.touch();
        if self.checkpoint.event_count > 0 {
            self.checkpoint.events.push(b'\n');
        }
        event.write(&mut self.checkpoint.events, &self.store);
        self.checkpoint.event_count += 1;
    }

    // ---- committing ----

    /// Takes lines into a group, up to the bounds of a commit.
    fn collect(&mut self) -> (Vec<(Writes, Vec<Done>)>, Group) {
        let mut group = Group::new(self.next_commit, clock::now());
        let mut writes = Vec::new();
        let (mut bytes, mut recipients) = (0, 0);
        while bytes < COMMIT_BYTES && recipients < COMMIT_RECIPIENTS {
            let Ok(mut incoming) = self.commits.try_recv() else { break };
            let ops = std::mem::take(&mut incoming.ops);
            let mut answers = Vec::with_capacity(ops.len());
            for op in ops {
                bytes += commit::weight(&op);
                recipients += commit::recipients(&op);
                answers.push(self.take(op, &mut group));
            }
            writes.push((incoming, answers));
        }
        (writes, group)
    }

    fn take(&mut self, op: Op, group: &mut Group) -> Done {
        let done = match op {
            Op::Send(new) => self.take_send(*new, group),
            Op::Add { message_id, chunks, rejected, step, apps } => {
                self.take_add(message_id, chunks, rejected, step, &apps, group)
            }
            Op::Close { message_id, step, apps } => self.take_close(message_id, step, &apps, group),
            Op::Cancel { target, apps } => self.take_cancel(target, &apps, group),
            Op::Pause { target, apps } => self.take_pause(target, &apps, group),
            Op::Resume { target, rate, apps } => self.take_resume(target, rate, &apps, group),
            Op::Drain { on } => {
                self.store.gates.draining.store(on, Ordering::Relaxed);
                Ok(Done::Passed)
            }
            Op::Pass => Ok(Done::Passed),
        };
        done.unwrap_or_else(|failure| failure.into_done())
    }

    /// Why new lines are not taken just now, if they are not.
    fn closed_door(&self, recipients: u64) -> Option<Failure> {
        let gates = &self.store.gates;
        if gates.draining.load(Ordering::Relaxed) {
            return Some(Failure::later(Code::ShuttingDown, "the daemon takes no new messages: it is draining", 5.0));
        }
        if gates.low_space.load(Ordering::Relaxed) {
            return Some(Failure::later(Code::ReadOnly, "the disk is almost full: no new messages are taken", 5.0));
        }
        let full = self.store.pending.load(Ordering::Relaxed) + recipients > self.settings.max_pending;
        gates.max_pending.store(full, Ordering::Relaxed);
        full.then(|| Failure::later(Code::Overloaded, "messages.max_pending deliveries are waiting already", 5.0))
    }

    fn take_send(&mut self, new: NewMessage, group: &mut Group) -> Result<Done, Failure> {
        if let Some((key, fingerprint)) = &new.idempotency
            && let Some(first) = self.first_answer(key, fingerprint, group)?
        {
            return Ok(first);
        }
        let NewMessage { mut message, encoded, recipients, rejected, idempotency, paused, rate, spread, keys, new_origins } = new;
        let count = match &recipients {
            NewRecipients::Single(parts) => parts.iter().map(|part| part.recipients.len() as u64).sum::<u64>(),
            NewRecipients::List { chunks, .. } => chunks.iter().map(|chunk| u64::from(chunk.count)).sum(),
        };
        if let Some(failure) = self.closed_door(count) {
            return Err(failure);
        }
        let place = u16::try_from(group.places).expect("a group is closed long before its places are used up");
        message.id = MessageId::new(group.now, group.commit, place, group.random());
        let id = message.id;
        let rules = self.store.rules.load();
        let held = paused || rules.pauses(id, &message.app, message.label.as_ref());
        drop(rules);
        let state = match () {
            () if held => State::Paused,
            () if message.at > group.now => State::Scheduled,
            () => State::Sending,
        };
        let (expires, app, label) = (message.expires, message.app.clone(), message.label.clone());
        self.learn_origins(new_origins, group)?;
        for (service, key, count) in keys {
            let counts = Counts { recipients: count, ..Counts::default() };
            self.stats.taken(&self.store, StatsKey::new(group.now, &app, label.as_ref(), service, Some(key)), &counts);
        }
        if rejected > 0 {
            let counts = Counts { rejected: u64::from(rejected), ..Counts::default() };
            let first_key = self.settings.first_keys.get(&app).copied();
            self.stats.taken(&self.store, StatsKey::new(group.now, &app, label.as_ref(), Service::OTHER, first_key), &counts);
        }
        match recipients {
            NewRecipients::Single(parts) => {
                let waits = paused || message.at > group.now;
                let mut head = Head {
                    id,
                    app: app.clone(),
                    label: label.clone(),
                    reference: message.reference.clone(),
                    at: message.at,
                    expires,
                    rejected,
                    recipients: Vec::with_capacity(1),
                };
                group.places += parts.iter().map(|part| part.recipients.len()).sum::<usize>();
                let holder = Holder::Message(id);
                if paused {
                    self.set_rule_paused(&holder, group, true)?;
                }
                let encoded = commit::with_id(encoded, id);
                let message = Arc::new(message);
                for part in parts {
                    let lane = commit::lane(part.service, message.urgency);
                    let n = u16::try_from(part.recipients.len()).expect("a single has at most 64 recipients");
                    let first = if waits {
                        let time = if paused { expires } else { message.at };
                        self.put_waiting(&part, lane, &message, time, paused.then_some(&holder), group)?
                    } else {
                        let first = group.push_work(lane, &encoded, &part.encoded, n, expires);
                        DeliveryId { batch: BatchId::Commit { commit: group.commit, lane, piece: first.0 }, index: first.1 }
                    };
                    let mut topics = part.topics.into_iter();
                    for (offset, (recipient, subscription)) in (0..).zip(part.recipients.into_iter().zip(part.subscriptions)) {
                        let delivery = DeliveryId { index: first.index + offset, ..first };
                        if let Some(topic) = topics.next() {
                            self.put_topic(topic, delivery, id, expires, group)?;
                        }
                        head.recipients.push(HeadRecipient { id: delivery, subscription, reference: recipient.reference });
                    }
                }
                group.heads.push(head);
            }
            NewRecipients::List { chunks, closed } => {
                group.places += 1;
                let key = ListKey::of(id);
                let list = Arc::new(List { message: Arc::new(message), spread, state: std::sync::Mutex::default() });
                {
                    let mut state = list_state(&list);
                    (state.closed, state.paused, state.rate) = (closed, paused, rate);
                    state.counts.rejected = u64::from(rejected);
                }
                let mut row = Put::versioned();
                row.bytes(&commit::with_id(encoded, id));
                put_maybe_f64(&mut row, spread);
                let reader = self.store.reader()?;
                group.rows.put(&reader, family::MESSAGE, message_key(key, MessageRow::Message), &row.0);
                drop(reader);
                group.undo_lists.insert(key, None);
                self.store.lists.insert(key, list.clone());
                self.put_chunks(key, &list, chunks, group)?;
            }
        }
        group.added += count;
        self.store.pending.fetch_add(count, Ordering::Relaxed);
        let done = Done::Taken { message_id: id, state, expires, recipients: count, duplicate: false, position: None };
        if let Some((key, fingerprint)) = idempotency {
            let mut row = Put::default();
            row.u64(group.now.plus(IDEMPOTENCY_MILLIS).0).bytes(&fingerprint).u128(id.0).u64(expires.0).u64(count);
            row.u8(state as u8);
            let reader = self.store.reader()?;
            group.rows.put(&reader, family::IDEMPOTENCY, &key, &row.0);
            group.idempotency.insert(key, (fingerprint, done.clone()));
        }
        Ok(done)
    }

    /// The answer that this idempotency key had before, or the conflict.
    fn first_answer(&self, key: &[u8], fingerprint: &[u8; 16], group: &Group) -> Result<Option<Done>, Failure> {
        let first = match group.idempotency.get(key) {
            Some((known, done)) => Some((*known, done.clone())),
            None => match self.store.reader()?.value(family::IDEMPOTENCY, key)? {
                None => None,
                Some(row) => match read_idempotency(row, group.now) {
                    Ok(found) => found,
                    Err(record::Corrupt) => {
                        self.store.corrupt(family::IDEMPOTENCY);
                        None
                    }
                },
            },
        };
        let Some((known, done)) = first else { return Ok(None) };
        if known != *fingerprint {
            return Err(Failure::of(
                Code::Conflict,
                Some("idempotency_key"),
                "this idempotency_key was used with another request",
            ));
        }
        let Done::Taken { message_id, state, expires, recipients, .. } = done else { return Ok(None) };
        let key = ListKey::of(message_id);
        let position = match self.store.lists.get(key) {
            Some(list) => list_state(&list).position.clone(),
            None => self.store.stored_list(key)?.and_then(|list| list_state(&list).position.clone()),
        };
        Ok(Some(Done::Taken { message_id, state, expires, recipients, duplicate: true, position }))
    }

    fn learn_origins(&self, new: Vec<(Service, crate::message::Origin)>, group: &mut Group) -> Result<(), Failure> {
        for (service, origin) in new {
            if !self.store.services.knows(service, &origin.0) {
                // Two are enough: from then on the service's origins close one by one.
                let mut row = b"origin/".to_vec();
                row.extend_from_slice(&service.0.to_be_bytes());
                row.extend_from_slice(origin.0.as_bytes());
                let reader = self.store.reader()?;
                group.rows.put(&reader, family::META, &row, []);
                drop(reader);
                group.origins.push(row);
                self.store.services.learn(service, origin);
            }
        }
        Ok(())
    }

    /// Rows of `due` for a part that waits from the start.
    fn put_waiting(
        &mut self,
        part: &commit::Part,
        lane: Lane,
        message: &Arc<crate::message::Message>,
        time: UnixMillis,
        holder: Option<&Holder>,
        group: &mut Group,
    ) -> Result<DeliveryId, Failure> {
        let n = u16::try_from(part.recipients.len()).expect("a single has at most 64 recipients");
        let next = group.waiting.entry(lane).or_default();
        let first = *next;
        *next += n;
        let batch = BatchId::Commit { commit: group.commit, lane, piece: WAITING_PIECE };
        let reader = self.store.reader()?;
        for (index, recipient) in (first..).zip(&part.recipients) {
            let delivery = Delivery {
                id: DeliveryId { batch, index },
                message: message.clone(),
                recipient: recipient.clone(),
                attempts: 0,
                tried_keys: 0,
                shrink: false,
                due: None,
            };
            let due = DueKey { lane, time, delivery: delivery.id };
            group.rows.put(&reader, family::DUE, due.encode(), record::due_row(&delivery));
            if let Some(holder) = holder {
                group.rows.put(&reader, family::HELD, held_key(holder, &due), []);
            }
        }
        let earliest = group.due.entry(lane).or_insert(time);
        *earliest = (*earliest).min(time);
        Ok(DeliveryId { batch, index: first })
    }

    fn put_chunks(&mut self, key: ListKey, list: &Arc<List>, chunks: Vec<Chunk>, group: &mut Group) -> Result<(), Failure> {
        for chunk in chunks {
            self.learn_origins(chunk.new_origins, group)?;
            for (service, app_key, count) in chunk.keys {
                let counts = Counts { recipients: count, ..Counts::default() };
                let of = StatsKey::new(group.now, &list.message.app, list.message.label.as_ref(), service, Some(app_key));
                self.stats.taken(&self.store, of, &counts);
            }
            let number = {
                let mut state = list_state(list);
                state.counts.recipients += u64::from(chunk.count);
                let next = state.chunks.entry(chunk.service).or_insert(0);
                *next += 1;
                *next - 1
            };
            let row =
                ChunkKey { commit: key.commit, place: key.place, service: chunk.service, chunk: number, count: chunk.count };
            let reader = self.store.reader()?;
            group.rows.put(&reader, family::LIST, row.encode(), &chunk.row);
            drop(reader);
            let batch = row.batch(list.message.urgency);
            for (index, topic) in (0..).zip(chunk.topics) {
                self.put_topic(topic, DeliveryId { batch, index }, list.message.id, list.message.expires, group)?;
            }
        }
        self.put_list_state(key, list, group)
    }

    fn put_list_state(&self, key: ListKey, list: &List, group: &mut Group) -> Result<(), Failure> {
        let state = list_state(list);
        let row = list_state_row(&state);
        let reader = self.store.reader()?;
        group.rows.put(&reader, family::MESSAGE, message_key(key, MessageRow::State), row);
        group.lists.push(key);
        Ok(())
    }

    /// What this topic has waiting for the recipient is superseded.
    fn put_topic(
        &mut self,
        topic: [u8; 16],
        delivery: DeliveryId,
        id: MessageId,
        expires: UnixMillis,
        group: &mut Group,
    ) -> Result<(), Failure> {
        let older = match group.topics.insert(topic, (delivery, id)) {
            some @ Some(_) => some,
            None => match self.store.reader()?.value(family::TOPIC, topic)? {
                None => None,
                Some(row) => read_topic(row).ok(),
            },
        };
        group.superseded.extend(older);
        let mut row = Put::default();
        // Wherever the older one waits, it has ended when its time is over.
        row.u64(expires.0).bytes(&key::batch_key(&delivery.batch)).u16(delivery.index).u128(id.0);
        let reader = self.store.reader()?;
        group.rows.put(&reader, family::TOPIC, topic, &row.0);
        Ok(())
    }

    /// Ends what newer messages of the same topic have replaced, in the batch that brings the newer ones. What is in flight, or
    /// came in this very batch, is pursued.
    fn supersede(&mut self, group: &mut Group) {
        for (delivery, id) in std::mem::take(&mut group.superseded) {
            let pursuit = Pursuit { id, ending: Ending::Skipped, reason: "superseded" };
            if self.catch(delivery, &pursuit, group.now) != Caught::Done {
                self.pursued.insert(delivery, pursuit);
            }
        }
    }

    /// Looks again at what could not be ended at once. Called when a batch is on disk, before the scheduler hears of it.
    fn pursue(&mut self, now: UnixMillis) {
        for (delivery, pursuit) in std::mem::take(&mut self.pursued) {
            if self.catch(delivery, &pursuit, now) == Caught::Busy {
                self.pursued.insert(delivery, pursuit);
            }
        }
    }

    /// Ends a delivery that nobody is busy with.
    fn catch(&mut self, delivery: DeliveryId, pursuit: &Pursuit, now: UnixMillis) -> Caught {
        let batch = match self.store.find_batch(delivery.batch) {
            Ok(Some(batch)) => batch,
            Ok(None) => return Caught::Nowhere,
            Err(ReadError) => return Caught::Busy,
        };
        if batch.has_ended(delivery.index) {
            return Caught::Done;
        }
        let list = match ListKey::of_batch(&delivery.batch) {
            None => None,
            Some(key) => match self.store.lists.get(key) {
                Some(list) if list_state(&list).over.is_none() => Some((key, list)),
                _ => return Caught::Done,
            },
        };
        let freed = match &list {
            None => batch.end_if_free(delivery.index, pursuit.ending),
            Some((key, list)) => {
                let mut state = list_state(list);
                let freed = batch.end_if_free(delivery.index, pursuit.ending);
                if freed {
                    state.counts.ended[pursuit.ending as usize - 1] += 1;
                    drop(state);
                    self.checkpoint.lists.insert(*key, list.clone());
                }
                freed
            }
        };
        if !freed {
            return Caught::Busy;
        }
        self.checkpoint.change(&batch);
        self.checkpoint.forced = true;
        let list = list.map(|(_, list)| list);
        let head = if list.is_some() { None } else { self.store.head(pursuit.id).ok().flatten() };
        let waiting = list.as_ref().and_then(|list| self.store.waiting_delivery(delivery, Some(list)).ok().flatten());
        self.ended_by_command(delivery, pursuit, head.as_ref(), list.as_ref(), waiting.as_deref(), now);
        Caught::Done
    }

    /// Counters and event of a delivery that was ended without having been loaded.
    fn ended_by_command(
        &mut self,
        delivery: DeliveryId,
        pursuit: &Pursuit,
        head: Option<&Head>,
        list: Option<&Arc<List>>,
        loaded: Option<&Delivery>,
        now: UnixMillis,
    ) {
        let Pursuit { id, ending, reason } = *pursuit;
        let entry = head.and_then(|head| head.recipients.iter().find(|recipient| recipient.id == delivery));
        let (app, label, message_ref) = match (head, list) {
            (Some(head), _) => (head.app.clone(), head.label.clone(), head.reference.clone()),
            (None, Some(list)) => (list.message.app.clone(), list.message.label.clone(), list.message.reference.clone()),
            (None, None) => return,
        };
        let service = delivery.batch.lane().service;
        let key = self.settings.first_keys.get(&app).copied();
        self.ended(1, ending, &app, label.as_ref(), service, key, now);
        let known = entry
            .map(|entry| entry.subscription)
            .or_else(|| loaded.map(|delivery| subscription_id(delivery.recipient.endpoint.as_str())));
        let told: Option<&dyn Fn() -> SubscriptionId> = None;
        let subscription = move || known.expect("only called if it is known");
        self.event(&Event {
            time: now,
            ending,
            id,
            message_ref: message_ref.as_deref(),
            label: label.as_deref(),
            subscription: if known.is_some() { Some(&subscription) } else { told },
            reference: entry
                .and_then(|entry| entry.reference.as_ref())
                .or_else(|| loaded.and_then(|delivery| delivery.recipient.reference.as_ref())),
            app: &app,
            service: Some(service),
            status: None,
            reason,
            count: None,
        });
    }

    fn open_list(&self, id: MessageId, apps: &Apps) -> Result<(ListKey, Arc<List>), Failure> {
        let key = ListKey::of(id);
        match self.store.lists.get(key) {
            Some(list) if list.message.id == id && apps.contains(&list.message.app) => Ok((key, list)),
            _ => match self.store.list_message(key)? {
                Some(message) if message.id == id && apps.contains(&message.app) => {
                    Err(Failure::of(Code::Conflict, Some("message_id"), "this message has ended"))
                }
                _ => Err(Failure::of(Code::NotFound, Some("message_id"), "no such message")),
            },
        }
    }

    fn take_add(
        &mut self,
        id: MessageId,
        chunks: Vec<Chunk>,
        rejected: u32,
        step: Option<Step>,
        apps: &Apps,
        group: &mut Group,
    ) -> Result<Done, Failure> {
        let (key, list) = self.open_list(id, apps)?;
        if let Some(done) = self.repeated(&list, step.as_ref())? {
            return Ok(done);
        }
        if list_state(&list).closed {
            return Err(Failure::of(Code::Conflict, Some("message_id"), "this stream is closed"));
        }
        let count: u64 = chunks.iter().map(|chunk| u64::from(chunk.count)).sum();
        if let Some(failure) = self.closed_door(count) {
            return Err(failure);
        }
        group.remember(key, &list);
        {
            let mut state = list_state(&list);
            state.counts.rejected += u64::from(rejected);
            if let Some(step) = step {
                state.position = Some(step.position);
            }
        }
        self.put_chunks(key, &list, chunks, group)?;
        group.added += count;
        self.store.pending.fetch_add(count, Ordering::Relaxed);
        let state = list_state(&list);
        Ok(Done::Added { recipients: state.counts.recipients, duplicate: false, position: state.position.clone() })
    }

    fn take_close(&mut self, id: MessageId, step: Option<Step>, apps: &Apps, group: &mut Group) -> Result<Done, Failure> {
        let (key, list) = match self.open_list(id, apps) {
            Ok(found) => found,
            // A repeated `close` of a stream that has ended meanwhile.
            Err(failure) if failure.problem.code == Code::Conflict => {
                return Ok(Done::Added { recipients: 0, duplicate: true, position: step.map(|step| step.position) });
            }
            Err(failure) => return Err(failure),
        };
        if let Some(done) = self.repeated(&list, step.as_ref())? {
            // The add that brought this position is not the close.
            if list_state(&list).closed {
                return Ok(done);
            }
        }
        group.remember(key, &list);
        let (duplicate, done) = {
            let mut state = list_state(&list);
            let duplicate = state.closed;
            state.closed = true;
            if let Some(step) = step {
                state.position = Some(step.position);
            }
            (duplicate, state.done())
        };
        if done {
            // Its last recipient has ended already: nothing else would bring it to the checkpoint that ends it.
            self.checkpoint.touch();
            self.checkpoint.lists.insert(key, list.clone());
        }
        self.put_list_state(key, &list, group)?;
        let state = list_state(&list);
        Ok(Done::Added { recipients: state.counts.recipients, duplicate, position: state.position.clone() })
    }

    /// A step whose position is the kept one was taken before; one that does not follow the kept one is refused.
    fn repeated(&self, list: &List, step: Option<&Step>) -> Result<Option<Done>, Failure> {
        let Some(step) = step else { return Ok(None) };
        let state = list_state(list);
        if state.position.as_ref() == Some(&step.position) {
            let position = state.position.clone();
            return Ok(Some(Done::Added { recipients: state.counts.recipients, duplicate: true, position }));
        }
        if step.previous != state.position {
            let mut failure =
                Failure::of(Code::Conflict, Some("previous"), "previous is not the position that this message has reached");
            failure.position = Some(state.position.clone().unwrap_or_else(|| "null".into()));
            return Err(failure);
        }
        Ok(None)
    }

    /// The targets of `cancel`, `pause` and `resume` as rules: a label is one of each app of the socket.
    fn holders(&self, target: &Target, apps: &Apps) -> Vec<Holder> {
        match target {
            Target::Message(id) => vec![Holder::Message(*id)],
            Target::Label(label) => apps.iter().map(|app| Holder::Label(app.clone(), label.clone())).collect(),
            Target::App(app) => vec![Holder::App(app.clone())],
        }
    }

    /// The lists that a rule concerns.
    fn lists_of(&self, holder: &Holder) -> Vec<(ListKey, Arc<List>)> {
        let mut lists = self.store.lists.all();
        lists.retain(|(_, list)| match holder {
            Holder::Message(id) => list.message.id == *id,
            Holder::Label(app, label) => list.message.app == *app && list.message.label.as_ref() == Some(label),
            Holder::App(app) => list.message.app == *app,
        });
        lists
    }

    /// What a message id names: an open list, or the head of a single; None: a list that has ended.
    fn find_message(&self, id: MessageId, apps: &Apps) -> Result<Found, Failure> {
        match self.open_list(id, apps) {
            Ok((key, list)) => return Ok(Found::List(key, list)),
            Err(failure) if failure.problem.code == Code::Conflict => return Ok(Found::Ended),
            Err(failure) if failure.problem.code == Code::NotFound => {}
            Err(failure) => return Err(failure),
        }
        // One of this very group has not been answered yet: nobody can know its id.
        match self.store.head(id)? {
            Some(head) if apps.contains(&head.app) => Ok(Found::Single(head)),
            _ => Err(Failure::of(Code::NotFound, Some("message_id"), "no such message")),
        }
    }

    fn take_cancel(&mut self, target: Target, apps: &Apps, group: &mut Group) -> Result<Done, Failure> {
        if let Target::Message(id) = target {
            match self.find_message(id, apps)? {
                Found::Ended => {}
                Found::List(key, list) => self.end_list(key, &list, Ending::Cancelled, "cancelled"),
                Found::Single(head) => self.cancel_single(&head, group)?,
            }
            // What was held for it is let go, and found to have ended.
            self.set_rule_paused(&Holder::Message(id), group, false)?;
            return Ok(Done::Done);
        }
        for holder in self.holders(&target, apps) {
            for (key, list) in self.lists_of(&holder) {
                self.end_list(key, &list, Ending::Cancelled, "cancelled");
            }
            let reader = self.store.reader()?;
            let upto = group.next_message();
            let row = rule_row(&holder, upto, group.now, false);
            group.rows.put(&reader, family::META, rule_key("cancel", &holder), row);
            drop(reader);
            let mut rules = (**self.store.rules.load()).clone();
            rules.cancelled.insert(holder, upto);
            self.store.rules.store(Arc::new(rules));
        }
        // The sweep begins when the rule, and all that waits by itself by now, is on disk.
        self.checkpoint.touch();
        self.checkpoint.forced = true;
        group.cancels = true;
        Ok(Done::Done)
    }

    fn cancel_single(&mut self, head: &Head, group: &mut Group) -> Result<(), Failure> {
        let mut busy = false;
        for recipient in &head.recipients {
            let pursuit = Pursuit { id: head.id, ending: Ending::Cancelled, reason: "cancelled" };
            let Some(batch) = self.store.find_batch(recipient.id.batch)? else { continue };
            if batch.end_if_free(recipient.id.index, Ending::Cancelled) {
                self.checkpoint.change(&batch);
                self.ended_by_command(recipient.id, &pursuit, Some(head), None, None, group.now);
            } else if !batch.has_ended(recipient.id.index) {
                busy = true;
                self.pursued.insert(recipient.id, pursuit);
            }
        }
        self.checkpoint.forced |= self.checkpoint.dirty();
        if busy {
            // What is in flight is let finish; if it would be tried again, it ends instead.
            let holder = Holder::Message(head.id);
            let reader = self.store.reader()?;
            let upto = group.next_message();
            let row = rule_row(&holder, upto, group.now, true);
            group.rows.put(&reader, family::META, rule_key("cancel", &holder), row);
            drop(reader);
            let mut rules = (**self.store.rules.load()).clone();
            rules.cancelled.insert(holder, upto);
            self.store.rules.store(Arc::new(rules));
        }
        Ok(())
    }

    fn take_pause(&mut self, target: Target, apps: &Apps, group: &mut Group) -> Result<Done, Failure> {
        if let Target::Message(id) = target {
            match self.find_message(id, apps)? {
                Found::Ended => {}
                Found::List(key, list) => {
                    // The rule holds back what of it waits by itself.
                    self.set_list_paused(key, &list, true, None, group)?;
                    self.set_rule_paused(&Holder::Message(id), group, true)?;
                }
                Found::Single(_) => self.set_rule_paused(&Holder::Message(id), group, true)?,
            }
            return Ok(Done::Done);
        }
        for holder in self.holders(&target, apps) {
            self.set_rule_paused(&holder, group, true)?;
            for (key, _) in self.lists_of(&holder) {
                group.lists.push(key);
            }
        }
        Ok(Done::Done)
    }

    fn take_resume(&mut self, target: Target, rate: Option<f64>, apps: &Apps, group: &mut Group) -> Result<Done, Failure> {
        if let Target::Message(id) = target {
            match self.find_message(id, apps)? {
                Found::Ended => return Ok(Done::Done),
                Found::List(key, list) => self.set_list_paused(key, &list, false, rate, group)?,
                Found::Single(_) => {}
            }
        }
        for holder in self.holders(&target, apps) {
            self.set_rule_paused(&holder, group, false)?;
            for (key, list) in self.lists_of(&holder) {
                if rate.is_some() {
                    // Bound first: a guard inside the call would still be held in it.
                    let paused = list_state(&list).paused;
                    self.set_list_paused(key, &list, paused, rate, group)?;
                }
                group.lists.push(key);
            }
        }
        Ok(Done::Done)
    }

    fn set_list_paused(
        &self,
        key: ListKey,
        list: &Arc<List>,
        paused: bool,
        rate: Option<f64>,
        group: &mut Group,
    ) -> Result<(), Failure> {
        group.remember(key, list);
        {
            let mut state = list_state(list);
            state.paused = paused;
            if rate.is_some() {
                state.rate = rate;
            }
        }
        self.put_list_state(key, list, group)
    }

    fn set_rule_paused(&mut self, holder: &Holder, group: &mut Group, paused: bool) -> Result<(), Failure> {
        let mut rules = (**self.store.rules.load()).clone();
        let changed = if paused { rules.paused.insert(holder.clone()) } else { rules.paused.remove(holder) };
        if !changed {
            return Ok(());
        }
        let reader = self.store.reader()?;
        if paused {
            let row = rule_row(holder, group.next_message(), group.now, false);
            group.rows.put(&reader, family::META, rule_key("pause", holder), row);
            group.rows.delete(&reader, family::META, rule_key("release", holder));
        } else {
            group.rows.delete(&reader, family::META, rule_key("pause", holder));
            // Until all that was held is due again, a start goes on with it.
            group.rows.put(&reader, family::META, rule_key("release", holder), holder_row(holder));
        }
        drop(reader);
        if paused {
            self.releasing.retain(|releasing| releasing != holder);
        } else {
            self.releasing.push_back(holder.clone());
        }
        self.store.rules.store(Arc::new(rules));
        Ok(())
    }

    /// Makes some of what `resume` has freed due again.
    fn release_some(&mut self) {
        let Some(holder) = self.releasing.front().cloned() else { return };
        let prefix = holder_prefix(&holder);
        let now = clock::now();
        let mut held = Vec::new();
        let mut freed = Vec::new();
        {
            let Ok(reader) = self.store.reader() else { return };
            let scanned = reader.scan(family::HELD, &prefix, &key::after_prefix(&prefix), |row, _| {
                held.push(row.to_vec());
                held.len() < RELEASE_SLICE
            });
            if scanned.is_err() {
                return;
            }
            for row in &held {
                let Ok(due) = DueKey::decode(&row[prefix.len()..]) else {
                    self.store.corrupt(family::HELD);
                    continue;
                };
                match reader.value(family::DUE, due.encode()) {
                    Ok(Some(value)) => freed.push((due, value)),
                    Ok(None) => {}
                    Err(_) => return,
                }
            }
        }
        self.checkpoint.touch();
        // Rows that the next checkpoint would make are not there yet: it is written, then looked at again.
        let unwritten = self.checkpoint.held.iter().any(|(row, made)| *made && row.starts_with(&prefix));
        for row in &held {
            self.checkpoint.held.insert(row.clone(), false);
        }
        for (due, value) in freed {
            let list = ListKey::of_batch(&due.delivery.batch).and_then(|key| self.store.lists.get(key));
            let Ok(Some(delivery)) =
                record::read_due_row(value.clone(), due.delivery, due.time, || list.as_ref().map(|list| list.message.clone()))
            else {
                continue;
            };
            let again = DueKey { time: delivery.message.at.max(now), ..due };
            self.checkpoint.due.entry(due).or_insert(None);
            self.checkpoint.due.insert(again, Some(value.to_vec()));
        }
        if held.len() < RELEASE_SLICE && !unwritten {
            self.releasing.pop_front();
            self.checkpoint.rows.push((family::META, rule_key("release", &holder), None));
        }
        self.checkpoint.forced = true;
    }

    // ---- writing ----

    fn write(&mut self, writes: Vec<(Writes, Vec<Done>)>, mut group: Group, with_checkpoint: bool) -> Result<(), WriteError> {
        let with_checkpoint = (with_checkpoint || self.checkpoint.forced) && self.checkpoint.dirty();
        if writes.is_empty() && !with_checkpoint {
            return Ok(());
        }
        let started = Instant::now();
        let built = self.build(&mut group, with_checkpoint);
        let result = match built {
            Ok(built) => {
                let rows = std::mem::take(&mut group.rows);
                let written = if rows.is_empty() { Ok(()) } else { self.store.write(rows) };
                written.map(|()| built)
            }
            Err(ReadError) => Err(WriteError::Closed),
        };
        metrics::wal_sync(started.elapsed());
        match result {
            Ok(built) => {
                self.next_commit += 1;
                if with_checkpoint {
                    self.checkpoint_done(&built);
                } else {
                    self.pending_synced += group.added;
                }
                self.stats.dirty_taken.clear();
                let cancels = group.cancels;
                self.supersede(&mut group);
                self.pursue(group.now);
                self.publish(group, built);
                answer(writes);
                if cancels {
                    let _full_means_it_looks_anyway = self.cancelled.try_send(());
                }
                Ok(())
            }
            Err(error @ (WriteError::Full(_) | WriteError::Closed)) => {
                tracing::error!(?error, "no space to write: new lines are refused, sending stops until there is");
                self.undo(group);
                refuse(writes);
                self.full = Some(Instant::now());
                self.store.gates.full.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(broken) => Err(broken),
        }
    }

    /// Puts all rows of the group, and of the checkpoint if it is written with it.
    fn build(&mut self, group: &mut Group, with_checkpoint: bool) -> Result<Built, ReadError> {
        let reader = self.store.reader()?;
        let rows = &mut group.rows;
        let mut built = Built::default();
        for (lane, pieces) in std::mem::take(&mut group.work) {
            for (piece, row) in (0..).zip(pieces) {
                let key = WorkKey { lane, commit: group.commit, piece, count: row.count() };
                let value = row.finish();
                rows.put(&reader, family::WORK, key.encode(), &value);
                built.work.push((key, value));
            }
        }
        for (lane, count) in &group.waiting {
            let batch = BatchId::Commit { commit: group.commit, lane: *lane, piece: WAITING_PIECE };
            rows.put(&reader, family::OUTCOME, key::batch_key(&batch), vec![MOVED; usize::from(*count)]);
        }
        for heads in group.heads.chunks(64) {
            let mut put = Put::versioned();
            for head in heads {
                record::put_head(&mut put, head);
            }
            rows.put(&reader, family::HEAD, key::head_key(group.commit, heads[0].id.place()), &put.0);
        }
        self.stats.put_taken(&reader, rows);
        let mut pending = self.pending_synced + group.added;
        if with_checkpoint {
            pending = self.store.pending.load(Ordering::Relaxed);
            let checkpoint = &mut self.checkpoint;
            for (id, batch) in &checkpoint.batches {
                let (bytes, row_done, all_ended) = batch.image();
                let count = u16::try_from(bytes.len()).expect("a batch has at most 65,536 recipients");
                match *id {
                    BatchId::Commit { commit, lane, piece } => {
                        rows.put(&reader, family::OUTCOME, key::batch_key(id), bytes);
                        if row_done && piece != WAITING_PIECE {
                            rows.delete(&reader, family::WORK, WorkKey { lane, commit, piece, count }.encode());
                        }
                    }
                    BatchId::Chunk { commit, place, lane, chunk } => {
                        if all_ended {
                            rows.delete(&reader, family::OUTCOME, key::batch_key(id));
                        } else {
                            rows.put(&reader, family::OUTCOME, key::batch_key(id), bytes);
                        }
                        if row_done {
                            let row = ChunkKey { commit, place, service: lane.service, chunk, count };
                            rows.delete(&reader, family::LIST, row.encode());
                        }
                    }
                }
            }
            for (due, value) in &checkpoint.due {
                match value {
                    None => rows.delete(&reader, family::DUE, due.encode()),
                    Some(value) => {
                        rows.put(&reader, family::DUE, due.encode(), value);
                        let earliest = group.due.entry(due.lane).or_insert(due.time);
                        *earliest = (*earliest).min(due.time);
                    }
                }
            }
            for (family, changes) in [(family::HELD, &checkpoint.held), (family::EXPIRY, &checkpoint.expiry)] {
                for (row, made) in changes {
                    if *made { rows.put(&reader, family, row, []) } else { rows.delete(&reader, family, row) }
                }
            }
            for (key, list) in &checkpoint.lists {
                let mut state = list_state(list);
                if state.done() && state.in_flight == 0 && state.ended_at.is_none() {
                    state.ended_at = Some(group.now);
                }
                rows.put(&reader, family::MESSAGE, message_key(*key, MessageRow::Counts), list_counts_row(&state));
                if state.ended_at.is_some() {
                    // Its rows that were never read: it was cancelled, or out of time.
                    let prefix = key::list_prefix(key.commit, key.place);
                    rows.delete_range(&reader, family::LIST, &prefix, &key::after_prefix(&prefix));
                    let prefix = key::outcome_list_prefix(key.commit, key.place);
                    rows.delete_range(&reader, family::OUTCOME, &prefix, &key::after_prefix(&prefix));
                    built.ended_lists.push(*key);
                }
            }
            for (family, key, value) in &checkpoint.rows {
                match value {
                    Some(value) => rows.put(&reader, family, key, value),
                    None => rows.delete(&reader, family, key),
                }
            }
            for (family, from, to) in &checkpoint.ranges {
                rows.delete_range(&reader, family, from, to);
            }
            if checkpoint.event_count > 0 {
                let first = *self.store.events_end.borrow();
                let mut row = Put::versioned();
                row.u32(checkpoint.event_count).bytes(&checkpoint.events);
                rows.put(&reader, family::EVENTS, number(first), &row.0);
                rows.put(&reader, family::META, "events_end", number(first + u64::from(checkpoint.event_count)));
                built.events = checkpoint.event_count;
            }
            self.stats.put_ended(&reader, rows);
        }
        let last = LastCommit { commit: group.commit, written: group.now, pending };
        rows.put(&reader, family::META, "last", last.encode());
        built.pending = pending;
        Ok(built)
    }

    fn checkpoint_done(&mut self, built: &Built) {
        let checkpoint = std::mem::take(&mut self.checkpoint);
        for (batch, index) in &checkpoint.release {
            batch.release(*index);
        }
        drop(checkpoint);
        self.store.batches.evict();
        for key in &built.ended_lists {
            self.store.lists.remove(*key);
        }
        if built.events > 0 {
            self.store.events_end.send_modify(|end| *end += u64::from(built.events));
        }
        self.pending_synced = built.pending;
        self.stats.forget_old(clock::now());
        metrics::checkpoint(self.last_checkpoint.elapsed());
        self.last_checkpoint = Instant::now();
    }

    /// Tells the scheduler what is new.
    fn publish(&mut self, group: Group, built: Built) {
        if built.work.is_empty() && group.due.is_empty() && group.lists.is_empty() && built.ended_lists.is_empty() {
            return;
        }
        for key in &group.lists {
            if let Some(list) = self.store.lists.get(*key) {
                let mut state = list_state(&list);
                state.written = state.chunks.clone();
            }
        }
        self.news.tell(|latest| {
            for (key, row) in built.work {
                let previous = latest.newest.insert(key.lane, key);
                if latest.fresh.len() < FRESH_ROWS {
                    let batch = self.store.batches.insert_fresh(key.batch(), key.count, row);
                    latest.fresh.push(Fresh { key, previous, batch });
                }
            }
            for (lane, time) in group.due {
                earliest(&mut latest.due, lane, time);
            }
            latest.lists.extend(group.lists);
            latest.lists.extend(built.ended_lists);
        });
    }

    /// Tells the scheduler that a delivery is where it was.
    fn tell_back(&self, id: BatchId, count: u16, due: Option<UnixMillis>) {
        self.news.tell(|latest| match (due, id) {
            (Some(time), _) => earliest(&mut latest.due, id.lane(), time),
            (None, BatchId::Commit { commit, lane, piece }) => {
                let key = WorkKey { lane, commit, piece, count };
                let first = latest.back_rows.entry(lane).or_insert(key);
                *first = (*first).min(key);
            }
            (None, BatchId::Chunk { commit, place, lane, chunk }) => {
                let first = latest.back_chunks.entry((ListKey { commit, place }, lane.service)).or_insert(chunk);
                *first = (*first).min(chunk);
            }
        });
    }

    /// The group could not be written: memory is as if its lines had never come. (Cancellations stay: they protect.)
    fn undo(&mut self, group: Group) {
        for (key, before) in group.undo_lists {
            match before {
                None => self.store.lists.remove(key),
                Some(before) => {
                    if let Some(list) = self.store.lists.get(key) {
                        let mut state = list_state(&list);
                        state.counts.recipients = before.counts.recipients;
                        state.counts.rejected = before.counts.rejected;
                        state.chunks = before.chunks;
                        state.closed = before.closed || state.over.is_some();
                        (state.paused, state.rate, state.position) = (before.paused, before.rate, before.position);
                    }
                }
            }
        }
        if !group.origins.is_empty() {
            // They stay known in memory, so no later group would write them.
            self.checkpoint.touch();
            self.checkpoint.forced = true;
            self.checkpoint.rows.extend(group.origins.into_iter().map(|row| (family::META, row, Some(Vec::new()))));
        }
        self.store.pending.fetch_sub(group.added, Ordering::Relaxed);
        self.stats.undo_taken();
        self.next_commit += 1;
    }

    fn refuse_commits(&mut self) {
        while let Ok(mut writes) = self.commits.try_recv() {
            let ops = std::mem::take(&mut writes.ops).into_iter();
            let answers = ops.map(|op| match op {
                Op::Drain { on } => {
                    self.store.gates.draining.store(on, Ordering::Relaxed);
                    Done::Passed
                }
                Op::Pass => Done::Passed,
                _ => read_only(),
            });
            let answers = answers.collect();
            answer(vec![(writes, answers)]);
        }
    }

    /// Every 5 s the store is closed and opened again, until a synced probe succeeds (promise 7).
    fn try_reopen(&mut self) -> Result<(), WriteError> {
        let Some(since) = self.full else { return Ok(()) };
        if since.elapsed() < Duration::from_secs(5) && !self.stopping {
            return Ok(());
        }
        match self.store.reopen() {
            Ok(()) => {
                tracing::info!("the store is writable again");
                self.full = None;
                self.store.gates.full.store(false, Ordering::Relaxed);
                // A batch whose sync failed may be there after all; numbers go on behind it.
                if let Ok(reader) = self.store.reader()
                    && let Ok(Some(row)) = reader.value(family::META, "last")
                    && let Ok(last) = LastCommit::decode(row)
                {
                    self.next_commit = self.next_commit.max(last.commit + 1);
                }
                Ok(())
            }
            Err(WriteError::Full(_) | WriteError::Closed) => {
                self.full = Some(Instant::now());
                Ok(())
            }
            Err(broken) => Err(broken),
        }
    }

    /// Keeps, for the next start, the first row of each lane that is still there: a scan from the front of a lane would walk
    /// over all that was deleted since the last compaction.
    fn keep_first_rows(&mut self) {
        if self.last_first_rows.elapsed() < FIRST_ROWS_EVERY || !self.checkpoint.dirty() {
            return;
        }
        self.last_first_rows = Instant::now();
        let Ok(reader) = self.store.reader() else { return };
        for (service, _) in self.store.services.all() {
            for lane in super::live::lanes_of(service) {
                for family in [family::WORK, family::DUE] {
                    let prefix = key::lane_prefix(lane);
                    let name = first_row_key(family, lane);
                    let kept = reader.value(family::META, &name).ok().flatten();
                    let start = kept.as_ref().map_or(prefix.as_slice(), |kept| kept.as_ref());
                    let mut first = None;
                    let found = reader.scan(family, start, &key::after_prefix(&prefix), |row, _| {
                        first = Some(row.to_vec());
                        false
                    });
                    // In `work` new rows come behind all others. In `due` they come behind the moment at which they were thought
                    // of, somewhere in the pipeline: that is as far as it may go.
                    let now = key::due_prefix(lane, UnixMillis(clock::now().0.saturating_sub(DUE_MARGIN_MILLIS)));
                    let first = match family {
                        family::DUE => first.unwrap_or_else(|| now.clone()).min(now),
                        _ => match first {
                            Some(first) => first,
                            None => continue,
                        },
                    };
                    if found.is_ok() && (kept.is_some() || first > prefix) && kept.as_deref() != Some(&first) {
                        self.checkpoint.rows.push((family::META, name, Some(first)));
                    }
                }
            }
        }
    }
}

/// A delivery that a command, or a newer message, has ended.
#[derive(Clone, Copy)]
struct Pursuit {
    id: MessageId,
    ending: Ending,
    reason: &'static str,
}

/// What came of ending it.
#[derive(PartialEq)]
enum Caught {
    /// It has ended, now or before.
    Done,
    /// Somebody is busy with it.
    Busy,
    /// There is no such row: it came in the batch that is being made, or is long gone.
    Nowhere,
}

/// What a message id names.
enum Found {
    List(ListKey, Arc<List>),
    Single(Head),
    Ended,
}

/// What a written batch held.
#[derive(Default)]
struct Built {
    work: Vec<(WorkKey, Bytes)>,
    ended_lists: Vec<ListKey>,
    events: u32,
    pending: u64,
}

impl Group {
    fn new(commit: u64, now: UnixMillis) -> Group {
        Group {
            commit,
            now,
            rows: Rows::new(),
            work: BTreeMap::new(),
            waiting: BTreeMap::new(),
            heads: Vec::new(),
            places: 0,
            added: 0,
            cancels: false,
            idempotency: HashMap::new(),
            topics: HashMap::new(),
            superseded: Vec::new(),
            lists: Vec::new(),
            due: BTreeMap::new(),
            origins: Vec::new(),
            undo_lists: HashMap::new(),
            random: [0; 256],
            random_next: 256,
        }
    }

    /// Where the next message of this group will be: a rule concerns those before it.
    fn next_message(&self) -> Upto {
        (self.commit, u16::try_from(self.places).expect("a group is closed long before its places are used up"))
    }

    /// Eight bits that make ids unguessable from their neighbours' a little.
    fn random(&mut self) -> u8 {
        if self.random_next == self.random.len() {
            // Without random numbers ids are still unique.
            let _unguessable = aws_lc_rs::rand::fill(&mut self.random);
            self.random_next = 0;
        }
        self.random_next += 1;
        self.random[self.random_next - 1]
    }

    /// Appends recipients of a single to the lane's last row, or to a new one; gives its piece and the first index.
    fn push_work(&mut self, lane: Lane, message: &[u8], recipients: &[u8], count: u16, expires: UnixMillis) -> (u16, u16) {
        let rows = self.work.entry(lane).or_default();
        let full = rows
            .last()
            .is_none_or(|row| usize::from(row.count()) + usize::from(count) > PIECE_RECIPIENTS_MAX || row.len() > PIECE_BYTES);
        if full {
            rows.push(WorkRow::default());
        }
        let piece = u16::try_from(rows.len() - 1).expect("a commit has at most 65,536 recipients");
        let row = rows.last_mut().expect("one was pushed");
        (piece, row.push(message, recipients, count, expires))
    }

    /// Keeps the list's state as it is, in case the group cannot be written.
    fn remember(&mut self, key: ListKey, list: &List) {
        self.undo_lists.entry(key).or_insert_with(|| Some(list_state(list).clone()));
    }
}

/// An error of one line.
struct Failure {
    problem: Problem,
    retry_after: Option<f64>,
    position: Option<Box<str>>,
}

impl Failure {
    fn of(code: Code, field: Option<&str>, message: &str) -> Failure {
        let problem = Problem { code, field: field.map(str::to_owned), message: message.to_owned() };
        Failure { problem, retry_after: None, position: None }
    }

    fn later(code: Code, message: &str, retry_after: f64) -> Failure {
        Failure { retry_after: Some(retry_after), ..Failure::of(code, None, message) }
    }

    fn into_done(self) -> Done {
        Done::Failed { problem: self.problem, retry_after: self.retry_after, position: self.position }
    }
}

impl From<ReadError> for Failure {
    fn from(_: ReadError) -> Failure {
        Failure::later(Code::Internal, "the store cannot be read just now", 5.0)
    }
}

fn read_only() -> Done {
    Failure::later(Code::ReadOnly, "there is no space on the disk: nothing can be written", 5.0).into_done()
}

/// A client that has gone does not hear its answer.
fn answer(writes: Vec<(Writes, Vec<Done>)>) {
    for (writes, answers) in writes {
        let _gone = writes.reply.send(answers);
    }
}

/// Nothing was written. What needs nothing to be written is answered all the same.
fn refuse(writes: Vec<(Writes, Vec<Done>)>) {
    let refused = |done| match done {
        Done::Passed => done,
        _ => read_only(),
    };
    answer(writes.into_iter().map(|(writes, answers)| (writes, answers.into_iter().map(refused).collect())).collect());
}

/// What an event tells.
struct Event<'a> {
    time: UnixMillis,
    ending: Ending,
    id: MessageId,
    message_ref: Option<&'a str>,
    label: Option<&'a str>,
    /// Hashing the endpoint costs: only done for events that are kept.
    subscription: Option<&'a dyn Fn() -> SubscriptionId>,
    reference: Option<&'a Reference>,
    app: &'a str,
    service: Option<Service>,
    status: Option<u16>,
    reason: &'a str,
    count: Option<u64>,
}

impl Event<'_> {
    /// The event as JSON without its cursor, which the reader knows.
    fn write(&self, out: &mut Vec<u8>, store: &Store) {
        use base64::Engine;
        let mut object = serde_json::Map::new();
        let mut put = |name: &str, value: serde_json::Value| object.insert(name.to_owned(), value);
        put("time", crate::ingest::reply::format_time(self.time).into());
        put("type", self.ending.as_str().into());
        put("message_id", self.id.to_string().into());
        if let Some(text) = self.message_ref {
            put("message_ref", text.into());
        }
        if let Some(label) = self.label {
            put("label", label.into());
        }
        if let Some(subscription) = self.subscription {
            let id = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(subscription().0);
            put("subscription_id", id.into());
        }
        match self.reference {
            None => {}
            Some(Reference::Text(text)) => {
                put("ref", text.as_str().into());
            }
            Some(Reference::Integer(number)) => {
                put("ref", (*number).into());
            }
        }
        put("app", self.app.into());
        if let Some(service) = self.service {
            put("service", (*store.services.name(service)).into());
        }
        if let Some(status) = self.status {
            put("status", status.into());
        }
        put("reason", self.reason.into());
        if let Some(count) = self.count {
            put("count", count.into());
        }
        serde_json::to_writer(out, &object).expect("a map of strings and numbers is JSON, and memory takes it");
    }
}

// ---- rows of lists, rules, idempotency ----

fn put_maybe_f64(put: &mut Put, value: Option<f64>) {
    match value {
        None => put.u8(0),
        Some(value) => put.u8(1).u64(value.to_bits()),
    };
}

fn take_maybe_f64(take: &mut Take) -> Result<Option<f64>, record::Corrupt> {
    Ok(if take.u8()? == 0 { None } else { Some(f64::from_bits(take.u64()?)) })
}

fn list_state_row(state: &ListState) -> Vec<u8> {
    let mut put = Put::versioned();
    put.u8(u8::from(state.closed) | u8::from(state.paused) << 1);
    put_maybe_f64(&mut put, state.rate);
    put.maybe(state.position.as_deref()).u64(state.counts.recipients).u64(state.counts.rejected);
    put.u16(u16::try_from(state.chunks.len()).expect("services have 16 bits"));
    for (service, chunks) in &state.chunks {
        put.u16(service.0).u32(*chunks);
    }
    put.0
}

fn list_counts_row(state: &ListState) -> Vec<u8> {
    let mut put = Put::versioned();
    put.u8(state.over.map_or(0, |over| over as u8)).u64(state.ended_at.map_or(0, |time| time.0));
    put.u64(state.counts.retries);
    for ended in state.counts.ended {
        put.u64(ended);
    }
    put.0
}

/// A list's message, spread and state from its three rows.
pub fn read_list(message: Bytes, state: Option<Bytes>, counts: Option<Bytes>) -> Result<List, record::Corrupt> {
    let mut take = Take::versioned(message)?;
    let message = Arc::new(record::take_message(&mut take)?);
    let spread = take_maybe_f64(&mut take)?;
    let mut read = ListState::default();
    if let Some(row) = state {
        let mut take = Take::versioned(row)?;
        let flags = take.u8()?;
        (read.closed, read.paused) = (flags & 1 != 0, flags & 2 != 0);
        read.rate = take_maybe_f64(&mut take)?;
        read.position = take.maybe()?.map(|position| (*position).into());
        (read.counts.recipients, read.counts.rejected) = (take.u64()?, take.u64()?);
        for _ in 0..take.u16()? {
            read.chunks.insert(Service(take.u16()?), take.u32()?);
        }
        read.written = read.chunks.clone();
    }
    if let Some(row) = counts {
        let mut take = Take::versioned(row)?;
        let over = take.u8()?;
        read.over = if over == 0 { None } else { Some(*Ending::ALL.get(usize::from(over) - 1).ok_or(record::Corrupt)?) };
        let ended = take.u64()?;
        read.ended_at = (ended != 0).then_some(UnixMillis(ended));
        read.counts.retries = take.u64()?;
        for ended in &mut read.counts.ended {
            *ended = take.u64()?;
        }
        read.closed |= read.over.is_some();
    }
    Ok(List { message, spread, state: std::sync::Mutex::new(read) })
}

fn load_lists(store: &Store) -> Result<(), ReadError> {
    let mut rows: BTreeMap<Vec<u8>, [Option<Bytes>; 3]> = BTreeMap::new();
    let mut open = Vec::new();
    let reader = store.reader()?;
    reader.scan(family::MESSAGE, &[], &[255; 16], |key, value| {
        if let Some((row, prefix)) = key.split_last()
            && usize::from(*row) < 3
        {
            rows.entry(prefix.to_vec()).or_default()[usize::from(*row)] = Some(Bytes::copy_from_slice(value));
            if *row == 2
                && let Some(entry) = rows.remove(prefix)
            {
                open.push(entry);
            }
        }
        true
    })?;
    open.extend(rows.into_values());
    for [message, state, counts] in open {
        let Some(message) = message else { continue };
        match read_list(message, state, counts) {
            Ok(list) => {
                let ended = list_state(&list).ended_at.is_some();
                if !ended {
                    store.lists.insert(ListKey::of(list.message.id), Arc::new(list));
                }
            }
            Err(record::Corrupt) => store.corrupt(family::MESSAGE),
        }
    }
    Ok(())
}

fn read_idempotency(row: Bytes, now: UnixMillis) -> Result<Option<([u8; 16], Done)>, record::Corrupt> {
    let mut take = Take::new(row);
    if UnixMillis(take.u64()?) < now {
        return Ok(None);
    }
    let fingerprint = take.array()?;
    let (message_id, expires, recipients) = (MessageId(take.u128()?), UnixMillis(take.u64()?), take.u64()?);
    let state = match take.u8()? {
        0 => State::Scheduled,
        1 => State::Sending,
        2 => State::Paused,
        _ => return Err(record::Corrupt),
    };
    let done = Done::Taken { message_id, state, expires, recipients, duplicate: false, position: None };
    Ok(Some((fingerprint, done)))
}

fn read_topic(row: Bytes) -> Result<(DeliveryId, MessageId), record::Corrupt> {
    // A batch's key tells its kind and length itself; the due key's decoder reads both with an index behind.
    let mut due = Put::default();
    due.bytes(&[0; 3]).u64(0);
    let body = row.get(8..row.len().saturating_sub(16)).ok_or(record::Corrupt)?;
    due.bytes(body);
    let delivery = DueKey::decode(&due.0)?.delivery;
    let id = row.last_chunk::<16>().ok_or(record::Corrupt)?;
    Ok((delivery, MessageId(u128::from_be_bytes(*id))))
}

fn holder_row(holder: &Holder) -> Vec<u8> {
    let mut put = Put::versioned();
    match holder {
        Holder::Message(id) => put.u8(0).u128(id.0),
        Holder::Label(app, label) => put.u8(1).short(app.as_bytes()).short(label.as_bytes()),
        Holder::App(app) => put.u8(2).short(app.as_bytes()),
    };
    put.0
}

fn take_holder(take: &mut Take) -> Result<Holder, record::Corrupt> {
    Ok(match take.u8()? {
        0 => Holder::Message(MessageId(take.u128()?)),
        1 => Holder::Label(take.str()?, take.str()?),
        2 => Holder::App(take.str()?),
        _ => return Err(record::Corrupt),
    })
}

fn holder_from(row: Bytes) -> Option<Holder> {
    Take::versioned(row).and_then(|mut take| take_holder(&mut take)).ok()
}

/// A rule's row: whom it concerns, up to which message, since when, and whether the sweep has seen all that it ends.
fn rule_row(holder: &Holder, upto: Upto, now: UnixMillis, swept: bool) -> Vec<u8> {
    let mut put = Put(holder_row(holder));
    put.u64(upto.0).u16(upto.1).u64(now.0).u8(u8::from(swept));
    put.0
}

/// A rule as it is on disk.
pub struct StoredRule {
    pub holder: Holder,
    pub upto: Upto,
    pub since: UnixMillis,
    pub swept: bool,
}

/// Reads a rule's row.
pub fn read_rule(row: Bytes) -> Result<StoredRule, record::Corrupt> {
    let mut take = Take::versioned(row)?;
    let holder = take_holder(&mut take)?;
    Ok(StoredRule { holder, upto: (take.u64()?, take.u16()?), since: UnixMillis(take.u64()?), swept: take.u8()? != 0 })
}

fn holder_prefix(holder: &Holder) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    Sha256::digest(holder_row(holder))[..16].to_vec()
}

/// Key of a rule in `meta`.
pub fn rule_key(kind: &str, holder: &Holder) -> Vec<u8> {
    let mut key = kind.as_bytes().to_vec();
    key.push(b'/');
    key.extend(holder_prefix(holder));
    key
}

fn held_key(holder: &Holder, due: &DueKey) -> Vec<u8> {
    let mut key = holder_prefix(holder);
    key.extend(due.encode());
    key
}

/// Key in `meta` of the first live row of a lane.
pub fn first_row_key(family: &str, lane: Lane) -> Vec<u8> {
    let mut key = format!("first/{family}/").into_bytes();
    key.extend(key::lane_prefix(lane));
    key
}

fn load_rules(store: &Store) -> Result<(), ReadError> {
    let mut rules = super::live::RuleSet::default();
    let reader = store.reader()?;
    reader.scan(family::META, b"pause/", b"pause0", |_, value| {
        match read_rule(Bytes::copy_from_slice(value)) {
            Ok(rule) => {
                rules.paused.insert(rule.holder);
            }
            Err(record::Corrupt) => store.corrupt(family::META),
        }
        true
    })?;
    reader.scan(family::META, b"cancel/", b"cancel0", |_, value| {
        match read_rule(Bytes::copy_from_slice(value)) {
            Ok(rule) => {
                rules.cancelled.insert(rule.holder, rule.upto);
            }
            Err(record::Corrupt) => store.corrupt(family::META),
        }
        true
    })?;
    drop(reader);
    store.rules.store(Arc::new(rules));
    Ok(())
}

// ---- stats ----

/// A line of `stats`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatsKey {
    /// Days since 1970-01-01.
    pub day: u32,
    pub app: Arc<str>,
    /// Empty: no label.
    pub label: Arc<str>,
    pub service: Service,
    pub key: [u8; 8],
}

impl StatsKey {
    fn new(now: UnixMillis, app: &Arc<str>, label: Option<&Arc<str>>, service: Service, key: Option<KeyId>) -> StatsKey {
        StatsKey {
            day: u32::try_from(now.0 / 86_400_000).unwrap_or(u32::MAX),
            app: app.clone(),
            label: label.cloned().unwrap_or_else(|| Arc::from("")),
            service,
            key: key.map_or([0; 8], |key| key.0),
        }
    }

    fn encode(&self, kind: u8) -> Vec<u8> {
        let mut put = Put::default();
        put.u32(self.day).short(self.app.as_bytes()).short(self.label.as_bytes()).u16(self.service.0).bytes(&self.key).u8(kind);
        put.0
    }

    /// Reads a key; the kind (0 taken, 1 ended) is told beside it.
    pub fn decode(key: &[u8]) -> Result<(StatsKey, u8), record::Corrupt> {
        let mut take = Take::new(Bytes::copy_from_slice(key));
        let key = StatsKey {
            day: take.u32()?,
            app: take.str()?,
            label: take.str()?,
            service: Service(take.u16()?),
            key: take.array()?,
        };
        Ok((key, take.u8()?))
    }
}

/// Counters of the current days: absolute values, in two rows each, for what is taken is written with commits and what has
/// ended with checkpoints.
#[derive(Default)]
struct Stats {
    lines: HashMap<StatsKey, [Counts; 2]>,
    dirty_taken: HashMap<StatsKey, Counts>,
    dirty_ended: HashSet<StatsKey>,
    labels: HashMap<u32, HashSet<Arc<str>>>,
}

impl Stats {
    fn line(&mut self, store: &Store, key: StatsKey) -> (StatsKey, &mut [Counts; 2]) {
        let labels = self.labels.entry(key.day).or_default();
        let key = if labels.contains(&key.label) || labels.len() < STATS_LABELS {
            labels.insert(key.label.clone());
            key
        } else {
            StatsKey { label: Arc::from("other"), ..key }
        };
        let line = self.lines.entry(key.clone()).or_insert_with(|| [0, 1].map(|kind| stored_counts(store, &key, kind)));
        (key, line)
    }

    fn taken(&mut self, store: &Store, key: StatsKey, counts: &Counts) {
        let (key, line) = self.line(store, key);
        let before = line[0];
        line[0].add(counts);
        self.dirty_taken.entry(key).or_insert(before);
    }

    fn ended(&mut self, store: &Store, key: StatsKey, counts: &Counts) {
        let (key, line) = self.line(store, key);
        line[1].add(counts);
        self.dirty_ended.insert(key);
    }

    fn put_taken(&self, reader: &super::Reader<'_>, rows: &mut Rows) {
        for key in self.dirty_taken.keys() {
            put_counts(reader, rows, key, 0, &self.lines[key][0]);
        }
    }

    fn put_ended(&self, reader: &super::Reader<'_>, rows: &mut Rows) {
        for key in &self.dirty_ended {
            put_counts(reader, rows, key, 1, &self.lines[key][1]);
        }
    }

    /// What has ended is on disk; days that are over leave memory.
    fn forget_old(&mut self, now: UnixMillis) {
        self.dirty_ended.clear();
        let today = u32::try_from(now.0 / 86_400_000).unwrap_or(u32::MAX);
        self.lines.retain(|key, _| key.day >= today);
        self.labels.retain(|day, _| *day >= today);
    }

    fn undo_taken(&mut self) {
        for (key, before) in self.dirty_taken.drain() {
            if let Some(line) = self.lines.get_mut(&key) {
                line[0] = before;
            }
        }
    }
}

fn put_counts(reader: &super::Reader<'_>, rows: &mut Rows, key: &StatsKey, kind: u8, counts: &Counts) {
    let mut put = Put::versioned();
    record::put_counts(&mut put, counts);
    rows.put(reader, family::STATS, key.encode(kind), &put.0);
}

fn stored_counts(store: &Store, key: &StatsKey, kind: u8) -> Counts {
    let row = store.reader().and_then(|reader| reader.value(family::STATS, key.encode(kind)));
    row.ok()
        .flatten()
        .and_then(|row| Take::versioned(row).and_then(|mut take| record::take_counts(&mut take)).ok())
        .unwrap_or_default()
}

/// For tests that play the writer's thread themselves.
#[cfg(test)]
impl Writer {
    /// One turn of its loop, which waits for nothing. Gives whether it wrote a checkpoint.
    pub(super) fn play(&mut self) -> bool {
        let before = self.last_checkpoint;
        self.turn().expect("the store is written");
        self.last_checkpoint != before
    }

    /// The next turn writes a checkpoint.
    pub(super) fn force(&mut self) {
        self.checkpoint.touch();
        self.checkpoint.forced = true;
    }

    /// Nothing is left but what waits for the next checkpoint.
    pub(super) fn idle(&self) -> bool {
        self.settles.is_empty() && self.commits.is_empty() && self.releasing.is_empty() && !self.checkpoint.forced
    }
}
