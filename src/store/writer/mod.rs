//! The one thread that writes. It drains two channels, what was settled first and then what is to be committed, into one
//! synced batch; answers the clients only after that; and never waits for anybody.
//!
//! A *group commit* holds new messages; a *checkpoint* holds all that outcomes change: outcome bytes, rows of `due` made and
//! used up, counters, the events, rows that are done with. Both may lie in the same synced batch, but nothing that an outcome
//! changes is ever written outside a checkpoint, so after a crash the store is as it was at the last one, plus the commits.
//!
//! When a write finds no space, what was to be committed is answered `read_only`, what was settled stays in memory and is
//! written after the store has been reopened; any other error ends the process.
//!
//! - `accept`: taking lines into a group; `command`: `cancel`, `pause`, `resume`, topics.
//! - `registry`: subscriptions and accounts, over an `overlay` of the group's own changes; `campaign`: beginning and walking;
//!   `presence`: presence, `mark_read`, fallbacks.
//! - `settle`: settling; `write`: the synced batch, and a disk without space.
//! - `news`: what the scheduler is told.
//! - `rows`, `stats`, `event`: what is written, as bytes.

mod accept;
mod campaign;
mod command;
mod crowd;
mod event;
mod news;
mod overlay;
mod presence;
mod registry;
mod rows;
mod settle;
mod stats;
mod write;

pub use self::command::Lifted;
pub use self::news::{Fresh, Latest, News};
pub use self::registry::feedback_counts;
pub use self::rows::{StoredRule, first_row_key, read_list, read_rule, rule_key};
pub use self::stats::StatsKey;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;

use crate::clock;
use crate::limits::{CHECKPOINT_OUTCOMES, RULES_MAX, WATCHES_MAX};
use crate::message::{
    AccountHash, BatchId, Delivery, DeliveryId, Ending, KeyId, MessageId, Service, SubscriptionId, SubscriptionKey, UnixMillis,
};
use crate::metrics;
use crate::protocol::request::EventType;
use crate::queue::{self, Receiver};
use crate::store::commit::Apps;
use crate::store::key::{DueKey, Waiting};
use crate::store::live::{Batch, Holder, List, ListKey, Upto, lock};
use crate::store::open::LastCommit;
use crate::store::record::{self, Take};
use crate::store::registry::row::Fallback;
use crate::store::shares::Shares;
use crate::store::turns::Commits;
use crate::store::watch::Watch;
use crate::store::writer::campaign::know_apps;
use crate::store::writer::command::Pursuit;
use crate::store::writer::crowd::Tally;
use crate::store::writer::event::Events;
use crate::store::writer::presence::load_presence;
use crate::store::writer::registry::Verdict;
use crate::store::writer::rows::{holder_from, load_erasures, load_lists, load_rules};
use crate::store::writer::settle::over_reason;
use crate::store::writer::stats::Stats;
use crate::store::{ReadError, Store, WriteError, family, list_state};

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
    /// Places of a stretch where nobody is whom its campaign concerns.
    Absent {
        batch: Arc<Batch>,
        list: ListKey,
        places: Vec<u16>,
    },
    /// From `sweep`: recipients of a campaign that is over, claimed and not sent; and places where nobody is.
    Rest {
        batch: Arc<Batch>,
        list: ListKey,
        matched: Vec<u16>,
        absent: Vec<u16>,
    },
    /// A walk of a campaign has come to its end.
    Walked(ListKey),
    /// A campaign's time has come: its walks begin.
    Begin(ListKey),
    /// From `sweep`: subscriptions whose time has come.
    Look(Vec<(UnixMillis, SubscriptionKey)>),
    /// From `sweep`: a fallback whose time has come, and has to be told, or looked at again then.
    Fallback(Vec<u8>, Box<Fallback>, Decided),
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
    /// From `sweep`: deliveries of a cancelled label or app, or of somebody who is erased, read but not claimed; and why. Those in
    /// flight are let finish.
    Cancelled(Vec<Box<Delivery>>, &'static str),
    /// From `sweep`: all singles that the cancellation concerns, up to this message, have been looked at.
    Swept(Holder, Upto),
    /// From `sweep`: rules that nothing can meet any more.
    Lift(Vec<Lifted>),
    /// From `sweep`: told when all that was sent before this is on disk.
    Written(Sender<()>),
    /// Ends the writer after a last checkpoint.
    Stop,
}

/// What is to become of a fallback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decided {
    /// Nobody was reached.
    Unreachable,
    /// Somebody was, or it does not matter any more.
    Reached,
    /// It still waits for the account to go offline.
    Again(UnixMillis),
}

/// What the writer needs from the configuration.
pub struct Settings {
    pub checkpoint_interval: Duration,
    pub max_pending: u64,
    /// `messages.max_open`.
    pub max_open: u64,
    /// Which types of events are kept.
    pub log: HashSet<EventType>,
    /// The key that pages of each app get: deliveries that end without an attempt are counted under it.
    pub first_keys: HashMap<Arc<str>, KeyId>,
    /// All apps.
    pub apps: Apps,
    /// `registry.browsers_per_account`.
    pub browsers_per_account: usize,
    /// `registry.undo`, in milliseconds.
    pub undo: u64,
    /// `presence.grace`, in milliseconds.
    pub grace: u64,
}

/// How long what was settled may wait for more of it, so that answers that come one by one do not wake the writer one by one. It is
/// short beside the checkpoint that makes it count.
const SETTLE_PAUSE: Duration = Duration::from_millis(2);
/// Unless so many wait already.
const SETTLES_WAITING: usize = 64;

/// The writer's state.
pub struct Writer {
    store: Arc<Store>,
    settings: Settings,
    commits: Commits,
    settles: Receiver<Settle>,
    news: Arc<News>,
    /// Tells the sweep of a cancellation.
    cancelled: Sender<()>,
    next_commit: u64,
    checkpoint: Checkpoint,
    stats: Stats,
    endings: metrics::Endings,
    releasing: VecDeque<Holder>,
    /// The next subscription of each service gets this number.
    next_serial: HashMap<Service, u64>,
    /// Accounts with many browsers, and how many: as of the group under construction.
    crowds: HashMap<AccountHash, usize>,
    /// Accounts that are being switched: one for each such line that waits for its next turn.
    tallies: HashMap<AccountHash, Tally>,
    /// Campaigns that are over and have met everybody: what ended with them is to be told.
    walked_out: Vec<ListKey>,
    /// `test`s that wait for their results.
    watches: HashMap<MessageId, Watch>,
    /// The rules of `pause`, `cancel` and `erase` that each app has.
    rules: Shares<Arc<str>>,
    /// Of those that do not say it: whose they are.
    whose: HashMap<Holder, Arc<str>>,
    /// How many of them each app has.
    watched: Shares<Arc<str>>,
    /// What is to end as soon as nobody is busy with it.
    pursued: HashMap<DeliveryId, Pursuit>,
    /// When it last began to do what there was to do.
    last_turn: Instant,
    last_checkpoint: Instant,
    last_first_rows: Instant,
    /// Deliveries that have not ended, and whose they are.
    pending: Shares<Arc<str>>,
    /// The same as of the last checkpoint, plus commits since.
    pending_synced: Shares<Arc<str>>,
    /// Lists, streams and campaigns that have not ended.
    open_lists: Shares<Arc<str>>,
    /// When the metrics were last told of shares.
    shown: Option<Instant>,
    /// When the store was found full, and when to try next.
    full: Option<Instant>,
    stopping: bool,
}

/// Other rows than outcomes with which a checkpoint is written before its time: lines wait for it.
const CHECKPOINT_ROWS: usize = 2_048;

/// A row to write or (None) to drop: family, key, value.
type Change = (&'static str, Vec<u8>, Option<Vec<u8>>);

/// What the next checkpoint writes.
#[derive(Default)]
struct Checkpoint {
    batches: foldhash::HashMap<BatchId, Arc<Batch>>,
    lists: foldhash::HashMap<ListKey, Arc<List>>,
    due: BTreeMap<DueKey, Option<Vec<u8>>>,
    held: BTreeMap<Vec<u8>, bool>,
    expiry: BTreeMap<Vec<u8>, bool>,
    events: Events,
    /// Other rows: family, key, and the value, or None where it goes.
    rows: Vec<Change>,
    ranges: Vec<(&'static str, Vec<u8>, Vec<u8>)>,
    /// What outcomes say of subscriptions, with the id of the endpoint that it is about.
    verdicts: BTreeMap<SubscriptionKey, (SubscriptionId, Verdict)>,
    /// Subscriptions whose time has come.
    looked: BTreeSet<(UnixMillis, SubscriptionKey)>,
    /// Those of them whose `expirationTime` has been told.
    expired: BTreeSet<SubscriptionKey>,
    /// Campaigns that begin with this checkpoint.
    begun: Vec<ListKey>,
    /// Who waits for it to be on disk.
    told: Vec<Sender<()>>,
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

impl Writer {
    /// Reads what the writer must know: the last commit, lists that are open, rules, pending.
    pub fn open(
        store: Arc<Store>,
        settings: Settings,
        commits: Commits,
        settles: Receiver<Settle>,
        news: Arc<News>,
        cancelled: Sender<()>,
    ) -> Result<Writer, ReadError> {
        let reader = store.reader()?;
        let last = reader.value(family::META, "last")?.map(|row| LastCommit::decode(row).map_err(|record::Corrupt| ReadError));
        let last = last.transpose()?;
        let next_commit = last.as_ref().map_or(1, |last| last.commit + 1);
        let pending = pending_from(last, &settings);
        let events_end = reader.value(family::META, "events_end")?.map(|row| Take::new(row).u64().map_err(|_| ReadError));
        let events_end = events_end.transpose()?.unwrap_or(1);
        let mut releasing = VecDeque::new();
        reader.scan(family::META, b"release/", b"release0", |_, value| {
            releasing.extend(holder_from(Bytes::copy_from_slice(value)));
            true
        })?;
        drop(reader);
        store.pending.store(pending.total(), Ordering::Relaxed);
        store.written.store(next_commit - 1, Ordering::Release);
        store.events_end.send_replace(events_end);
        store.load_log(events_end)?;
        let next_serial = store.last_serials()?.into_iter().map(|(service, last)| (service, last + 1)).collect();
        load_rules(&store)?;
        load_erasures(&store)?;
        load_lists(&store)?;
        load_presence(&store, settings.grace)?;
        know_apps(&store, &settings.apps)?;
        let mut open_lists = Shares::new(settings.max_open, settings.apps.iter().cloned());
        store.lists.all().iter().for_each(|(_, list)| open_lists.add(&list.message.app, 1));
        let mut rules = Shares::new(RULES_MAX, settings.apps.iter().cloned());
        {
            let known = store.rules.load();
            for holder in known.paused.iter().chain(known.cancelled.keys()) {
                match holder.app() {
                    Some(app) => rules.add(app, 1),
                    None => rules.add_unknown(1),
                }
            }
        }
        let watched = Shares::new(WATCHES_MAX, settings.apps.iter().cloned());
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
            endings: metrics::Endings::default(),
            releasing,
            next_serial,
            crowds: HashMap::new(),
            tallies: HashMap::new(),
            walked_out: Vec::new(),
            rules,
            whose: HashMap::new(),
            watches: HashMap::new(),
            watched,
            pursued: HashMap::new(),
            last_turn: Instant::now(),
            last_checkpoint: Instant::now(),
            last_first_rows: Instant::now(),
            pending_synced: pending.clone(),
            pending,
            open_lists,
            shown: None,
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
                self.end_list(key, &list, ending, over_reason(ending));
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
            self.last_turn = Instant::now();
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
        self.release_present();
        self.release_some();
        self.report_campaigns();
        self.keep_first_rows();
        let (writes, group) = self.collect();
        let checkpoint_due = self.checkpoint.forced || self.checkpoint_due() || self.stopping;
        self.write(writes, group, checkpoint_due)?;
        self.watch_lateness();
        Ok(self.stopping && !self.checkpoint.dirty() && self.commits.is_empty())
    }

    /// Waits for work, at most until the next checkpoint is due.
    fn wait(&mut self) {
        let more = !self.releasing.is_empty() || !self.walked_out.is_empty();
        if self.stopping || !self.commits.is_empty() || more && self.full.is_none() {
            return;
        }
        let patience = match self.checkpoint.since {
            // Nothing is written before the next try.
            _ if self.full.is_some() => Duration::from_millis(500),
            Some(since) => self.settings.checkpoint_interval.saturating_sub(since.elapsed()),
            None => Duration::from_millis(500),
        };
        let freed = lock(&self.store.presence).next().map(|time| Duration::from_millis(time.since(clock::now()).max(1)));
        let patience = freed.map_or(patience, |freed| patience.min(freed));
        let pause = SETTLE_PAUSE.saturating_sub(self.last_turn.elapsed());
        if !pause.is_zero()
            && self.full.is_none()
            && self.settles.len() < SETTLES_WAITING
            && queue::listen(&[self.commits.bell()], pause.min(patience))
        {
            return;
        }
        if !self.settles.is_empty() {
            return;
        }
        // Woken or not, the next turn finds out what there is to do.
        let patience = patience.min(Duration::from_millis(500));
        let _rung = match self.full {
            None => queue::listen(&[self.settles.bell(), self.commits.bell()], patience),
            Some(_) => queue::listen(&[self.settles.bell()], patience),
        };
    }

    fn checkpoint_due(&self) -> bool {
        match self.checkpoint.since {
            None => false,
            Some(since) => {
                // Half of what promise 2 allows: the other half arrives while this one is being synced.
                self.checkpoint.outcomes >= CHECKPOINT_OUTCOMES / 2
                    || self.checkpoint.rows.len() >= CHECKPOINT_ROWS
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
}

/// What is pending as the row `last` says. Of a row that does not say whose it is, nobody is known to have it.
fn pending_from(last: Option<LastCommit>, settings: &Settings) -> Shares<Arc<str>> {
    let mut pending = Shares::new(settings.max_pending, settings.apps.iter().cloned());
    if let Some(last) = last {
        let known: u64 = last.apps.iter().map(|(_, pending)| pending).sum();
        last.apps.iter().for_each(|(app, n)| pending.add(app, *n));
        pending.add_unknown(last.pending.saturating_sub(known));
    }
    pending
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

    /// So many deliveries more are pending, of no app.
    pub(super) fn fill(&mut self, n: u64) {
        self.pending.add_unknown(n);
    }

    /// The opposite.
    pub(super) fn unfill(&mut self, n: u64) {
        self.pending.sub(&Arc::from(""), n);
    }

    /// A disk that was found full is tried now.
    pub(super) fn try_again(&mut self) {
        self.full = self.full.and_then(|since| since.checked_sub(Duration::from_secs(5)));
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
