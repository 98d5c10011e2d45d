//! What of the store is in memory: the outcome bytes of batches that are being worked on, the open lists, and the rules of
//! `pause` and `cancel`. The writer alone changes outcomes; a worker *claims* a delivery here before it sends it, so that
//! nothing is sent twice and nothing that was cancelled is sent.
//!
//! An outcome byte: three low bits are the state (0 waiting in its row, 1 to 6 an [`Ending`], 7 waiting by itself in `due`),
//! five high bits count retries (31 means 31 or more). In a stretch of a campaign 31 retries of what waits ([`ABSENT`]) mean that
//! nobody of the segment is at this place.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, Weak};

use bytes::Bytes;

use crate::message::{
    AccountHash, BatchId, Ending, Lane, Message, MessageId, Recipient, Service, SubscriptionId, UnixMillis, Urgency,
};
use crate::store::record::Counts;
use crate::store::registry::walk::{Shape, Wanted};

/// State of an outcome byte: waits in its row.
pub const WAITING: u8 = 0;
/// State of an outcome byte: waits by itself, in a row of `due`.
pub const MOVED: u8 = 7;
/// An outcome byte of a stretch: nobody is at this place whom the campaign concerns.
pub const ABSENT: u8 = 31 * RETRY;
const STATE: u8 = 7;
const RETRY: u8 = 8;

/// The ending an outcome byte tells, if it has ended.
pub fn ending(byte: u8) -> Option<Ending> {
    match byte & STATE {
        WAITING | MOVED => None,
        state => Some(Ending::ALL[usize::from(state) - 1]),
    }
}

/// The retries an outcome byte tells.
pub fn retries(byte: u8) -> u64 {
    u64::from(byte / RETRY)
}

/// Locks a mutex. A thread that panicked while it held one has already brought the process down (`daemon` ends when a
/// thread ends), so what it guarded is only read to stop in order.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks the state of a list: see [`lock`].
pub fn list_state(list: &List) -> MutexGuard<'_, ListState> {
    lock(&list.state)
}

/// The outcome bytes of one row, with who is busy with which delivery.
pub struct Batch {
    pub id: BatchId,
    outcomes: Mutex<Outcomes>,
    row: OnceLock<Bytes>,
    fresh: Option<FreshShare>,
    /// Of a stretch: who is at its places.
    pub shape: Option<Arc<Shape>>,
}

struct Outcomes {
    bytes: Vec<u8>,
    /// Claimed and not yet settled, or settled in a way that the next checkpoint has to make durable first.
    busy: Vec<bool>,
    busy_count: usize,
}

impl Batch {
    fn new(id: BatchId, bytes: Vec<u8>, row: Option<Bytes>, fresh: Option<FreshShare>) -> Batch {
        let busy = vec![false; bytes.len()];
        let outcomes = Mutex::new(Outcomes { bytes, busy, busy_count: 0 });
        let batch = Batch { id, outcomes, row: OnceLock::new(), fresh, shape: None };
        if let Some(row) = row {
            let _first = batch.row.set(row);
        }
        batch
    }

    /// The row's value, if it is in memory.
    pub fn row(&self) -> Option<&Bytes> {
        self.row.get()
    }

    /// Keeps the row's value for the other runs of this batch.
    pub fn keep_row(&self, row: Bytes) -> &Bytes {
        self.row.get_or_init(|| row)
    }

    /// Number of recipients.
    pub fn size(&self) -> usize {
        lock(&self.outcomes).bytes.len()
    }

    /// Claims what waits in the row, from index `from` on, `most` places far. Gives the claimed indexes, ascending.
    pub fn claim(&self, from: u16, most: u16) -> Vec<u16> {
        let mut outcomes = lock(&self.outcomes);
        let end = outcomes.bytes.len().min(usize::from(from) + usize::from(most));
        let mut claimed = Vec::with_capacity(end.saturating_sub(usize::from(from)));
        for index in usize::from(from)..end {
            if outcomes.bytes[index] == WAITING && !outcomes.busy[index] {
                outcomes.busy[index] = true;
                claimed.push(u16::try_from(index).expect("a batch has at most 512 recipients"));
            }
        }
        outcomes.busy_count += claimed.len();
        claimed
    }

    /// Claims one delivery that waits in the row.
    pub fn claim_one(&self, index: u16) -> bool {
        self.claim(index, 1).len() == 1
    }

    /// The indexes that wait in the row and that nobody is busy with.
    pub fn waiting(&self) -> Vec<u16> {
        let outcomes = lock(&self.outcomes);
        let waits = |index: &usize| outcomes.bytes[*index] == WAITING && !outcomes.busy[*index];
        (0..outcomes.bytes.len()).filter(waits).map(|index| index as u16).collect()
    }

    /// Claims one delivery that waits by itself.
    pub fn claim_moved(&self, index: u16) -> bool {
        let mut outcomes = lock(&self.outcomes);
        let at = usize::from(index);
        let free = outcomes.bytes.get(at).is_some_and(|byte| byte & STATE == MOVED) && !outcomes.busy[at];
        if free {
            outcomes.busy[at] = true;
            outcomes.busy_count += 1;
        }
        free
    }

    /// Whether the delivery has ended.
    pub fn has_ended(&self, index: u16) -> bool {
        lock(&self.outcomes).bytes.get(usize::from(index)).is_some_and(|byte| ending(*byte).is_some())
    }

    /// How a delivery has ended, and whether somebody is busy with it, as of now: on disk the ending may come later.
    pub fn now(&self, index: u16) -> (Option<Ending>, bool) {
        let outcomes = lock(&self.outcomes);
        let at = usize::from(index);
        (outcomes.bytes.get(at).and_then(|byte| ending(*byte)), outcomes.busy.get(at).is_some_and(|busy| *busy))
    }

    /// Whether the delivery waits in its row, claimed or not.
    pub fn is_waiting(&self, index: u16) -> bool {
        lock(&self.outcomes).bytes.get(usize::from(index)) == Some(&WAITING)
    }

    /// Nobody is at this place of a stretch; the claim is gone with it.
    pub fn set_absent(&self, index: u16) {
        let mut outcomes = lock(&self.outcomes);
        let at = usize::from(index);
        if outcomes.bytes[at] == WAITING {
            outcomes.bytes[at] = ABSENT;
        }
        if outcomes.busy[at] {
            outcomes.busy[at] = false;
            outcomes.busy_count -= 1;
        }
    }

    /// Gives a claim back.
    pub fn release(&self, index: u16) {
        let mut outcomes = lock(&self.outcomes);
        let at = usize::from(index);
        if outcomes.busy[at] {
            outcomes.busy[at] = false;
            outcomes.busy_count -= 1;
        }
    }

    /// Ends a delivery; false if it had ended before. The claim, if there was one, is gone with it.
    pub fn end(&self, index: u16, ending: Ending) -> bool {
        let mut outcomes = lock(&self.outcomes);
        let at = usize::from(index);
        if !matches!(outcomes.bytes[at] & STATE, WAITING | MOVED) {
            return false;
        }
        outcomes.bytes[at] = outcomes.bytes[at] & !STATE | ending as u8;
        if outcomes.busy[at] {
            outcomes.busy[at] = false;
            outcomes.busy_count -= 1;
        }
        true
    }

    /// Ends a delivery that nobody is busy with; false if somebody is, or if it has ended.
    pub fn end_if_free(&self, index: u16, ending: Ending) -> bool {
        let mut outcomes = lock(&self.outcomes);
        let at = usize::from(index);
        // A damaged row may be shorter than it was.
        let waits = outcomes.bytes.get(at).is_some_and(|byte| matches!(byte & STATE, WAITING | MOVED));
        if !waits || outcomes.busy[at] {
            return false;
        }
        outcomes.bytes[at] = outcomes.bytes[at] & !STATE | ending as u8;
        true
    }

    /// From now on it waits by itself. It stays busy until [`Batch::release`], which the writer calls once the row of `due`
    /// is on disk. False if it has ended.
    pub fn wait(&self, index: u16, counts_retry: bool) -> bool {
        let mut outcomes = lock(&self.outcomes);
        let at = usize::from(index);
        if !matches!(outcomes.bytes[at] & STATE, WAITING | MOVED) {
            return false;
        }
        outcomes.bytes[at] |= MOVED;
        if counts_retry && retries(outcomes.bytes[at]) < 31 {
            outcomes.bytes[at] += RETRY;
        }
        if !outcomes.busy[at] {
            outcomes.busy[at] = true;
            outcomes.busy_count += 1;
        }
        true
    }

    /// The bytes as they are now, whether none waits in the row any more, and whether all have ended.
    pub fn image(&self) -> (Vec<u8>, bool, bool) {
        let outcomes = lock(&self.outcomes);
        let row_done = outcomes.bytes.iter().all(|byte| *byte != WAITING);
        let all_ended = row_done && outcomes.bytes.iter().all(|byte| byte & STATE != MOVED);
        (outcomes.bytes.clone(), row_done, all_ended)
    }

    /// How many of `count` places from `from` on are claimed.
    pub fn busy_in(&self, from: u16, count: u16) -> u64 {
        let outcomes = lock(&self.outcomes);
        let range = usize::from(from)..usize::from(from) + usize::from(count);
        outcomes.busy.get(range).map_or(0, |busy| busy.iter().filter(|busy| **busy).count() as u64)
    }

    fn idle(&self) -> bool {
        lock(&self.outcomes).busy_count == 0
    }
}

/// A share of `store.fresh_mb`, given back when the batch leaves memory.
struct FreshShare {
    used: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for FreshShare {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The batches in memory. A batch is there while anybody holds it, is busy in it, or has changed it since the last
/// checkpoint; otherwise [`Batches::evict`] forgets it, for its row on disk says the same.
pub struct Batches {
    /// Numbers of our own are the keys here and in the maps of the hot path: a quick hash is enough.
    map: Mutex<foldhash::HashMap<BatchId, Arc<Batch>>>,
    /// Counts calls of `evict`: bytes that were read before one and are inserted after it may be out of date.
    evictions: AtomicUsize,
    fresh_used: Arc<AtomicUsize>,
    fresh_limit: usize,
    #[cfg(test)]
    asked: AtomicUsize,
}

impl Batches {
    /// At most `fresh_limit` bytes of rows travel with fresh commits.
    pub fn new(fresh_limit: usize) -> Batches {
        Batches {
            map: Mutex::default(),
            evictions: AtomicUsize::new(0),
            fresh_used: Arc::default(),
            fresh_limit,
            #[cfg(test)]
            asked: AtomicUsize::new(0),
        }
    }

    /// The batch, if it is in memory.
    pub fn get(&self, id: &BatchId) -> Option<Arc<Batch>> {
        lock(&self.map).get(id).cloned()
    }

    /// The batch from memory, or as `load` reads it, without keeping it: only for looking, as others may have or get another one.
    pub fn peek<E>(&self, id: BatchId, load: impl FnOnce() -> Result<Loaded, E>) -> Result<Arc<Batch>, E> {
        if let Some(batch) = self.get(&id) {
            return Ok(batch);
        }
        let (bytes, shape) = load()?;
        Ok(Arc::new(Batch { shape, ..Batch::new(id, bytes, None, None) }))
    }

    /// The batch, from memory or with the bytes (and, of a stretch, the shape) that `load` reads. Two that load at once get the same.
    pub fn get_or_load<E>(&self, id: BatchId, load: impl Fn() -> Result<Loaded, E>) -> Result<Arc<Batch>, E> {
        #[cfg(test)]
        self.asked.fetch_add(1, Ordering::Relaxed);
        // Read outside the lock. Meanwhile another may have loaded it, changed it, and seen it evicted: then what was read here
        // is out of date, so it is read again.
        loop {
            let evictions = self.evictions.load(Ordering::Acquire);
            if let Some(batch) = self.get(&id) {
                return Ok(batch);
            }
            let (bytes, shape) = load()?;
            let mut map = lock(&self.map);
            if let Some(batch) = map.get(&id) {
                return Ok(batch.clone());
            }
            if self.evictions.load(Ordering::Acquire) == evictions {
                let batch = Arc::new(Batch { shape, ..Batch::new(id, bytes, None, None) });
                map.insert(id, batch.clone());
                return Ok(batch);
            }
        }
    }

    /// A batch that a commit has just made, with its row while `store.fresh_mb` has room. None as well if it was loaded already: its
    /// row is on disk before it is told, so somebody may have claimed in it.
    pub fn insert_fresh(&self, id: BatchId, count: u16, row: Bytes) -> Option<Arc<Batch>> {
        let bytes = row.len();
        if self.fresh_used.fetch_add(bytes, Ordering::Relaxed) + bytes > self.fresh_limit {
            self.fresh_used.fetch_sub(bytes, Ordering::Relaxed);
            return None;
        }
        let share = FreshShare { used: self.fresh_used.clone(), bytes };
        let mut map = lock(&self.map);
        if map.contains_key(&id) {
            // It was read and changed already, for example by a newer message of the same topic.
            return None;
        }
        let batch = Arc::new(Batch::new(id, vec![WAITING; usize::from(count)], Some(row), Some(share)));
        debug_assert!(batch.fresh.is_some());
        map.insert(id, batch.clone());
        Some(batch)
    }

    /// How often a batch was asked for.
    #[cfg(test)]
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Forgets what nobody holds or is busy with. Called by the writer alone, which holds what the next checkpoint writes.
    pub fn evict(&self) {
        let mut map = lock(&self.map);
        map.retain(|_, batch| Arc::strong_count(batch) > 1 || !batch.idle());
        self.evictions.fetch_add(1, Ordering::Release);
    }

    /// Bytes of rows that travel with fresh commits, and batches in memory.
    pub fn usage(&self) -> (usize, usize) {
        (self.fresh_used.load(Ordering::Relaxed), lock(&self.map).len())
    }
}

/// Outcome bytes, and the shape of a stretch.
pub type Loaded = (Vec<u8>, Option<Arc<Shape>>);

/// Names a list: the commit and place of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListKey {
    pub commit: u64,
    pub place: u16,
}

impl ListKey {
    /// The key of a list's message.
    pub fn of(id: MessageId) -> ListKey {
        ListKey { commit: id.commit(), place: id.place() }
    }

    /// The key of a chunk's list.
    pub fn of_batch(batch: &BatchId) -> Option<ListKey> {
        match *batch {
            BatchId::Chunk { commit, place, .. } | BatchId::Stretch { commit, place, .. } => Some(ListKey { commit, place }),
            BatchId::Commit { .. } => None,
        }
    }
}

/// A list or a campaign that has not ended: its message, and what changes.
pub struct List {
    /// Without its body, which stays on disk: scheduled and paused ones may be many. [`List::whole`] has it.
    pub message: Arc<Message>,
    /// The message with its body, while deliveries of it are on their way.
    whole: Mutex<Weak<Message>>,
    pub spread: Option<f64>,
    /// Of a campaign: whom it is for.
    pub wanted: Option<Wanted>,
    /// It has fallbacks: they look at how its recipients have ended, so that is kept as long as the message.
    pub keeps_outcomes: bool,
    pub state: Mutex<ListState>,
}

/// What of a list changes. Written by the writer; `in_flight` also by the workers that claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListState {
    /// Chunks so far, by service: numbered when they are taken.
    pub chunks: BTreeMap<Service, u32>,
    /// Those of them that are on disk: what may be read.
    pub written: BTreeMap<Service, u32>,
    /// No recipients will be added.
    pub closed: bool,
    pub paused: bool,
    pub rate: Option<f64>,
    /// The application's position, as compact JSON.
    pub position: Option<Box<str>>,
    pub counts: Counts,
    /// All that was not in flight ended so.
    pub over: Option<Ending>,
    /// When the last recipient ended.
    pub ended_at: Option<UnixMillis>,
    /// Claimed and not settled.
    pub in_flight: u64,
    /// Of a campaign that has begun: how far it has walked, by service.
    pub walks: Option<BTreeMap<Service, Walk>>,
    /// Of a campaign: recipients that have ended or wait by themselves. The others that are known are in flight, and are met anew
    /// after a crash.
    pub settled: u64,
    /// Of a campaign that is over: those that ended with it and that no event has told of yet.
    pub unreported: u64,
}

/// A campaign's walk over the subscriptions of a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Walk {
    /// The last serial when the campaign began: later ones are not in it.
    pub last: u64,
    /// Everything below it was opened.
    pub next: u64,
    /// As of the last checkpoint: serials that it has passed, those of stretches in work in proportion.
    pub passed: u64,
    /// Stretches of which something is still to be claimed or settled, by their first serial, and those behind them.
    pub open: BTreeMap<u64, Open>,
}

/// A stretch of a walk.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    pub shape: Arc<Shape>,
    /// Nothing of it waits in place any more.
    pub done: bool,
    /// All of it has ended.
    pub ended: bool,
    /// Places that do not wait any more.
    pub settled: usize,
}

impl Open {
    fn progress(&self) -> u64 {
        let serials = self.shape.end - self.shape.first;
        (serials as f64 * self.settled as f64 / self.shape.len().max(1) as f64) as u64
    }
}

impl Walk {
    /// A walk that has not begun.
    pub fn new(last: u64) -> Walk {
        Walk { last, next: 1, passed: 0, open: BTreeMap::new() }
    }

    /// Everything below it is done with: where a start goes on.
    pub fn cursor(&self) -> u64 {
        self.open.first_key_value().map_or(self.next, |(first, _)| (*first).min(self.next))
    }

    /// How many serials it has passed.
    pub fn progress(&self) -> u64 {
        let settled: u64 = self.open.values().map(Open::progress).sum();
        self.cursor() - 1 + settled
    }

    /// Whether nothing is left.
    pub fn finished(&self) -> bool {
        self.next > self.last && self.open.is_empty()
    }

    /// Takes away the first stretches, as far as they are done, and gives where those begin of which all has ended.
    ///
    /// One that lies behind `next` stays: after a start, what is before it is still to be opened, and what is forgotten would be
    /// opened anew. For the same reason `next` is moved behind each.
    pub fn pass(&mut self) -> Vec<u64> {
        let mut ended = Vec::new();
        while let Some(entry) = self.open.first_entry().filter(|entry| entry.get().done && *entry.key() <= self.next) {
            let (first, open) = entry.remove_entry();
            self.next = self.next.max(open.shape.end);
            if open.ended {
                ended.push(first);
            }
        }
        ended
    }

    /// Where the stretch that begins at `next` must end at the latest, and `next` moved behind what was opened before the start.
    pub fn gap(&mut self) -> u64 {
        while let Some((_, open)) = self.open.range(..=self.next).next_back().filter(|(_, open)| open.shape.end > self.next) {
            self.next = open.shape.end;
        }
        self.open.range(self.next..).next().map_or(u64::MAX, |(first, _)| *first)
    }
}

impl ListState {
    /// Whether every recipient has ended and none will come.
    pub fn done(&self) -> bool {
        self.closed && self.counts.pending() == 0 && self.unreported == 0
    }

    /// Whether a campaign has met everyone.
    pub fn walked(&self) -> bool {
        self.walks.as_ref().is_some_and(|walks| walks.values().all(Walk::finished))
    }
}

impl List {
    /// A list as it begins.
    pub fn new(message: Message, spread: Option<f64>, wanted: Option<Wanted>, keeps_outcomes: bool, state: ListState) -> List {
        let message = Arc::new(Message { body: Bytes::new(), ..message });
        List { message, whole: Mutex::default(), spread, wanted, keeps_outcomes, state: Mutex::new(state) }
    }

    /// The message with its body: as deliveries on their way share it, or as `read` gives it.
    pub fn whole<E>(&self, read: impl FnOnce() -> Result<Arc<Message>, E>) -> Result<Arc<Message>, E> {
        if let Some(message) = lock(&self.whole).upgrade() {
            return Ok(message);
        }
        // Read outside the lock: two that read at once both get it.
        let message = read()?;
        *lock(&self.whole) = Arc::downgrade(&message);
        Ok(message)
    }

    /// The lane of its recipients at a service.
    pub fn lane(&self, service: Service) -> Lane {
        Lane { service, urgency: self.message.urgency }
    }

    /// The batch of a campaign's stretch over a service that begins with this serial.
    pub fn stretch(&self, service: Service, first: u64) -> BatchId {
        let id = self.message.id;
        BatchId::Stretch { commit: id.commit(), place: id.place(), lane: self.lane(service), first }
    }

    /// Claims of a chunk what waits. None: the list was paused after the run had been handed out, so its lane must come back to it.
    pub fn claim(&self, batch: &Batch, from: u16, most: u16) -> Option<Vec<u16>> {
        let mut state = lock(&self.state);
        if state.over.is_some() {
            return Some(Vec::new());
        }
        if state.paused {
            return None;
        }
        let claimed = batch.claim(from, most);
        state.in_flight += claimed.len() as u64;
        Some(claimed)
    }

    /// Claims one that waits by itself, unless the list is over.
    pub fn claim_moved(&self, batch: &Batch, index: u16) -> bool {
        let mut state = lock(&self.state);
        let claimed = state.over.is_none() && batch.claim_moved(index);
        state.in_flight += u64::from(claimed);
        claimed
    }

    /// Claims of a stretch what waits: whom the campaign concerns is still to be judged. None as above.
    pub fn claim_stretch(&self, batch: &Batch, from: u16, most: u16) -> Option<Vec<u16>> {
        let state = lock(&self.state);
        match state.over {
            Some(_) => Some(Vec::new()),
            None if state.paused => None,
            None => Some(batch.claim(from, most)),
        }
    }

    /// So many that were claimed in a stretch are recipients.
    pub fn judged(&self, recipients: usize) {
        let mut state = lock(&self.state);
        state.counts.recipients += recipients as u64;
        state.in_flight += recipients as u64;
    }

    /// Gives claims back; those in a stretch have been judged.
    pub fn release(&self, batch: &Batch, indexes: &[u16]) {
        let mut state = lock(&self.state);
        for index in indexes {
            if self.wanted.is_some() && batch.is_waiting(*index) {
                state.counts.recipients -= 1;
            }
            batch.release(*index);
        }
        state.in_flight -= indexes.len() as u64;
    }
}

/// The open lists.
#[derive(Default)]
pub struct Lists(Mutex<foldhash::HashMap<ListKey, Arc<List>>>);

impl Lists {
    pub fn get(&self, key: ListKey) -> Option<Arc<List>> {
        lock(&self.0).get(&key).cloned()
    }

    pub fn insert(&self, key: ListKey, list: Arc<List>) {
        lock(&self.0).insert(key, list);
    }

    /// Takes a list away, if it is there.
    pub fn remove(&self, key: ListKey) -> Option<Arc<List>> {
        lock(&self.0).remove(&key)
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        lock(&self.0).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those that a rule concerns, oldest first.
    pub fn of(&self, concerns: impl Fn(&Message) -> bool) -> Vec<(ListKey, Arc<List>)> {
        let all = lock(&self.0);
        let found = all.iter().filter(|(_, list)| concerns(&list.message)).map(|(key, list)| (*key, list.clone()));
        let mut found: Vec<_> = found.collect();
        drop(all);
        found.sort_unstable_by_key(|(key, _)| *key);
        found
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<(ListKey, Arc<List>)> {
        let mut all: Vec<_> = lock(&self.0).iter().map(|(key, list)| (*key, list.clone())).collect();
        all.sort_by_key(|(key, _)| *key);
        all
    }
}

/// On whose word a delivery is held back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Holder {
    Message(MessageId),
    /// A label of an app.
    Label(Arc<str>, Arc<str>),
    App(Arc<str>),
    /// An account that is online: what has `when: offline`. As a cancellation: an account that is erased.
    Account(AccountHash),
    /// Only as a cancellation: a subscription that is erased in an app, by a hash of its id, for the rule stays longer than anything
    /// else. None: in every app, on the operator's word, or on one that came before rules named the app.
    Subscription(Option<Arc<str>>, SubscriptionHash),
}

impl Holder {
    /// The app that it is of, if it says so.
    pub fn app(&self) -> Option<&Arc<str>> {
        match self {
            Holder::Label(app, _) | Holder::App(app) | Holder::Subscription(Some(app), _) => Some(app),
            Holder::Message(_) | Holder::Account(_) | Holder::Subscription(None, _) => None,
        }
    }

    /// Whether a message of this id, app and label is one of those that it names.
    pub fn concerns(&self, id: MessageId, app: &Arc<str>, label: Option<&Arc<str>>) -> bool {
        match self {
            Holder::Message(of) => *of == id,
            Holder::Label(of, named) => of == app && label == Some(named),
            Holder::App(of) => of == app,
            Holder::Account(_) | Holder::Subscription(..) => false,
        }
    }

    /// Whether it ends, as a cancellation, what belongs to somebody who is erased.
    pub fn erases(&self) -> bool {
        matches!(self, Holder::Account(_) | Holder::Subscription(..))
    }
}

/// Names a subscription without telling its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionHash(pub [u8; 8]);

/// The hash that rules name a subscription by.
pub fn subscription_hash(id: SubscriptionId) -> SubscriptionHash {
    use sha2::{Digest, Sha256};
    SubscriptionHash(Sha256::digest(id.0)[..8].try_into().expect("eight of 32 bytes"))
}

/// Commit and place of the first message that a cancellation does not concern any more.
pub type Upto = (u64, u16);

/// What `pause` and `cancel` have said and `resume` has not taken back.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    pub paused: HashSet<Holder>,
    /// Cancelled are messages before this one.
    pub cancelled: HashMap<Holder, Upto>,
    /// Somebody among them is erased.
    pub erasing: bool,
}

impl RuleSet {
    /// Who holds the message back.
    pub fn holder(&self, message: &Message) -> Option<Holder> {
        if self.paused.is_empty() {
            return None;
        }
        holders(message.id, &message.app, message.label.as_ref()).into_iter().flatten().find(|who| self.paused.contains(who))
    }

    /// Who pauses the message, in the words of the protocol: `message`, `label`, `app`.
    pub fn paused_by(&self, id: MessageId, app: &Arc<str>, label: Option<&Arc<str>>) -> impl Iterator<Item = &'static str> {
        let words = holders(id, app, label).into_iter().zip(["message", "label", "app"]);
        words.filter(move |(who, _)| who.as_ref().is_some_and(|who| self.paused.contains(who))).map(|(_, word)| word)
    }

    /// Whether the message is held back now, and no more when these words and what was said of it alone are taken back. `itself`
    /// says that it is a list that was paused by itself.
    pub fn lets_go(&self, id: MessageId, app: &Arc<str>, label: Option<&Arc<str>>, itself: bool, words: &[Holder]) -> bool {
        let mut holders = holders(id, app, label).into_iter().flatten().filter(|who| self.paused.contains(who)).peekable();
        (itself || holders.peek().is_some()) && holders.all(|who| matches!(who, Holder::Message(_)) || words.contains(&who))
    }

    /// Whether the message was cancelled.
    pub fn cancels(&self, id: MessageId, app: &Arc<str>, label: Option<&Arc<str>>) -> bool {
        !self.cancelled.is_empty()
            && holders(id, app, label)
                .into_iter()
                .flatten()
                .any(|who| self.cancelled.get(&who).is_some_and(|upto| (id.commit(), id.place()) < *upto))
    }

    /// Whether the message was cancelled by a commit that is on disk: `written` is the last one.
    pub fn has_cancelled(&self, id: MessageId, app: &Arc<str>, label: Option<&Arc<str>>, written: u64) -> bool {
        let by = |upto: &Upto| (id.commit(), id.place()) < *upto && upto.0 <= written;
        !self.cancelled.is_empty()
            && holders(id, app, label).into_iter().flatten().any(|who| self.cancelled.get(&who).is_some_and(by))
    }

    /// From now on nothing from before `upto` goes to somebody who is erased. Whether that was a rule before.
    pub fn erase(&mut self, holder: Holder, upto: Upto) -> bool {
        self.erasing = true;
        self.cancelled.insert(holder, upto).is_some()
    }

    /// The word on which this recipient was erased after the message of the app had come.
    pub fn erased_by(&self, id: MessageId, app: &Arc<str>, recipient: &Recipient) -> Option<Holder> {
        if !self.erasing {
            return None;
        }
        let account = recipient.registered.and_then(|registered| registered.account);
        self.erased_named_by(id, app, recipient.subscription_id(), account)
    }

    /// The same of a recipient that is known by name only.
    pub fn erased_named_by(
        &self,
        id: MessageId,
        app: &Arc<str>,
        subscription: SubscriptionId,
        account: Option<AccountHash>,
    ) -> Option<Holder> {
        if !self.erasing {
            return None;
        }
        let before = |who: &Holder| self.cancelled.get(who).is_some_and(|upto| (id.commit(), id.place()) < *upto);
        let hash = subscription_hash(subscription);
        let in_app = Holder::Subscription(Some(app.clone()), hash);
        [Some(in_app), Some(Holder::Subscription(None, hash)), account.map(Holder::Account)].into_iter().flatten().find(before)
    }

    /// Whether the message is held back.
    pub fn pauses(&self, id: MessageId, app: &Arc<str>, label: Option<&Arc<str>>) -> bool {
        !self.paused.is_empty() && holders(id, app, label).into_iter().flatten().any(|who| self.paused.contains(&who))
    }
}

fn holders(id: MessageId, app: &Arc<str>, label: Option<&Arc<str>>) -> [Option<Holder>; 3] {
    [Some(Holder::Message(id)), label.map(|label| Holder::Label(app.clone(), label.clone())), Some(Holder::App(app.clone()))]
}

/// The rules, read by everyone, changed in place by the writer: a hundred thousand paused messages are as many entries, which
/// nobody wants copied for each change.
#[derive(Debug, Default)]
pub struct Rules(RwLock<RuleSet>);

impl Rules {
    /// The rules as they are. Held for a few comparisons: the writer waits.
    pub fn load(&self) -> RwLockReadGuard<'_, RuleSet> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes them.
    pub fn change<T>(&self, change: impl FnOnce(&mut RuleSet) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The lane of a service for an urgency, for all four.
pub fn lanes_of(service: Service) -> impl Iterator<Item = Lane> {
    Urgency::ALL.into_iter().map(move |urgency| Lane { service, urgency })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(count: usize) -> Batch {
        let lane = Lane { service: Service(1), urgency: Urgency::High };
        Batch::new(BatchId::Commit { commit: 1, lane, piece: 0 }, vec![0; count], None, None)
    }

    #[test]
    fn a_walk_passes_no_stretch_that_lies_behind_what_is_still_to_be_opened() {
        let open = |first, done, ended| {
            let shape = Arc::new(Shape { first, end: first + 10, members: None });
            (first, Open { shape, done, ended, settled: 0 })
        };
        // As after a start: of 1 to 10 nothing was settled, so it has no row and is not known.
        let mut walk = Walk { open: [open(11, true, true), open(21, false, false)].into(), ..Walk::new(40) };
        assert_eq!(walk.pass(), [0; 0]);
        assert_eq!(walk.gap(), 11, "1 to 10 are opened first");
        walk.open.extend([open(1, true, false)]);
        walk.next = 11;
        assert_eq!(walk.pass(), [11], "of the first some wait by themselves");
        assert_eq!((walk.next, walk.open.len()), (21, 1));
        // Done with before the walk went on.
        walk.open.extend([open(21, true, true)]);
        assert_eq!(walk.pass(), [21]);
        assert_eq!((walk.next, walk.finished()), (31, false));
    }

    #[test]
    fn a_delivery_is_claimed_once() {
        let batch = batch(4);
        assert_eq!(batch.claim(1, 2), [1, 2]);
        assert_eq!(batch.claim(0, 9), [0, 3]);
        batch.release(2);
        assert_eq!(batch.claim(0, 9), [2]);
    }

    #[test]
    fn cancel_takes_what_is_free_and_leaves_what_is_in_flight() {
        let batch = batch(2);
        batch.claim(0, 1);
        assert!(!batch.end_if_free(0, Ending::Cancelled));
        assert!(batch.end_if_free(1, Ending::Cancelled));
        assert!(!batch.end(1, Ending::Accepted));
        assert!(batch.end(0, Ending::Accepted));
        let (bytes, row_done, all_ended) = batch.image();
        assert_eq!(bytes, [Ending::Accepted as u8, Ending::Cancelled as u8]);
        assert!(row_done && all_ended);
    }

    #[test]
    fn what_waits_by_itself_stays_claimed_until_it_is_on_disk() {
        let batch = batch(1);
        batch.claim(0, 1);
        assert!(batch.wait(0, true));
        assert!(!batch.claim_moved(0));
        batch.release(0);
        assert!(batch.claim(0, 1).is_empty());
        assert!(batch.claim_moved(0));
        let (bytes, row_done, all_ended) = batch.image();
        assert_eq!(retries(bytes[0]), 1);
        assert!(row_done && !all_ended);
    }

    #[test]
    fn fresh_rows_are_bounded() {
        let batches = Batches::new(10);
        let lane = Lane { service: Service(1), urgency: Urgency::High };
        let id = |commit| BatchId::Commit { commit, lane, piece: 0 };
        let held = batches.insert_fresh(id(1), 1, Bytes::from_static(b"123456"));
        assert!(held.is_some());
        assert!(batches.insert_fresh(id(2), 1, Bytes::from_static(b"123456")).is_none());
        batches.evict();
        assert_eq!(batches.usage(), (6, 1));
        assert!(batches.insert_fresh(id(1), 1, Bytes::from_static(b"1")).is_none(), "it is in memory already");
        assert_eq!(batches.usage(), (6, 1));
        drop(held);
        batches.evict();
        assert_eq!(batches.usage(), (0, 0));
    }
}
