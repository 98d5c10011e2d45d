//! One thread that looks after time and space: deadlines of what waits unread, cancellations of labels and apps, retention,
//! free space. It reads; what is to be written goes to the writer.
//!
//! A delivery that is sent in time never meets it. What has waited in its row for 20 s (its lane is closed, or far behind)
//! gets a row in `expiry` at its earliest deadline; when that time has come the row is looked at, so an expiry is told within
//! 60 s of the deadline without anything being scanned whole, and the happy path writes nothing for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};

use crate::clock;
use crate::message::{BatchId, Delivery, DeliveryId, Ending, Lane, Service, UnixMillis};
use crate::store::erase::{COMPACTION_ROW, Erasure, Whom};
use crate::store::key::{self, DueKey, Waiting, WorkKey};
use crate::store::live::{Holder, List, ListKey, lanes_of, subscription_hash};
use crate::store::load::DueClaim;
use crate::store::record::{self, Take};
use crate::store::registry::account_hash;
use crate::store::registry::row::{self, Fallback};
use crate::store::registry::walk::Shape;
use crate::store::writer::{Decided, Settle, Settled, Settlement, StoredRule, read_list, read_rule, rule_key};
use crate::store::{ReadError, Store, family, list_state};

/// What waits unread is aged after this long, in milliseconds.
const AGED: u64 = 20_000;
/// How often ages and deadlines are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// What the sweep goes on with as soon as a checkpoint is written is looked at this often.
const SOON: Duration = Duration::from_millis(50);
/// Rows looked at in one step: few in tests, so that there is always a next one.
const SLICE: usize = if cfg!(test) { 4 } else { 1_024 };
/// Rows of the logs that are blanked in one checkpoint, and their bytes: it must not keep the writer for long.
const BLANKED_ROWS: usize = if cfg!(test) { 2 } else { 512 };
const BLANKED_BYTES: usize = 1 << 20;
/// Bytes of the logs that are read in one step: meanwhile nothing else is swept.
const SCANNED_BYTES: usize = 64 << 20;
/// Cancellations are kept as long as what they cancelled can be in flight or be tried again.
const RULE_MILLIS: u64 = 36 * 86_400_000;

/// What the sweep needs from the configuration.
pub struct Settings {
    pub retention: Duration,
    pub events_retention: Duration,
    pub events_max_mb: u64,
    pub stats_keep_days: u32,
    pub min_free_percent: f64,
}

/// The sweep's state.
pub struct Sweep {
    store: Arc<Store>,
    settings: Settings,
    settles: Sender<Settle>,
    cancelled: Receiver<()>,
    stop: Arc<AtomicBool>,
    aged: HashMap<(&'static str, Lane), Vec<u8>>,
    /// Logs that are being blanked.
    blanking: Option<Blanking>,
    /// More subscriptions are to be looked at when those that the writer has are.
    looking: Option<Receiver<()>>,
}

/// Logs that are being blanked, slice by slice, of all who were ready when it began: one go at a time, for each slice is read when
/// what was blanked before it is on disk.
struct Blanking {
    erasures: Vec<Erasure>,
    whom: Whom,
    /// Events so far, erasure by erasure.
    blanked: Vec<u64>,
    /// Of [`LOGS`], and where in it; behind the last one all is sent.
    log: usize,
    from: Vec<u8>,
    /// What was sent is on its way to the disk.
    sent: Option<Receiver<()>>,
}

/// Where names lie, and the bounds of it.
const LOGS: [(&str, &[u8], &[u8]); 4] = [
    (family::EVENTS, &[], &[255; 9]),
    (family::HEAD, &[], &[255; 11]),
    (family::FEEDBACK, &[], &[255; 23]),
    (family::INDEX, &[7], &[8]),
];

/// A part of the logs that was read: what is to be written, and where the next one begins.
struct Blanked {
    put: Puts,
    ranges: Ranges,
    events: Vec<u64>,
    log: usize,
    from: Vec<u8>,
}

impl Sweep {
    /// Nothing is read before [`Sweep::run`].
    pub fn new(
        store: Arc<Store>,
        settings: Settings,
        settles: Sender<Settle>,
        cancelled: Receiver<()>,
        stop: Arc<AtomicBool>,
    ) -> Sweep {
        Sweep { store, settings, settles, cancelled, stop, aged: HashMap::new(), blanking: None, looking: None }
    }

    /// Works until `stop` is set.
    pub fn run(mut self, progress: impl Fn()) {
        let mut looked: Option<Instant> = None;
        let mut forgot: Option<Instant> = None;
        let forget_every = (self.settings.retention / 10).clamp(Duration::from_secs(1), Duration::from_secs(3_600));
        let mut cancellations = true;
        while !self.stop.load(Ordering::Relaxed) {
            progress();
            self.watch_space();
            let now = clock::now();
            // A failed read means that the store is being reopened: the next round finds it again.
            if std::mem::take(&mut cancellations) && self.sweep_cancelled().is_err() {
                cancellations = true;
            }
            let _retried = self.blank_erased();
            self.compact_erased();
            let _retried = self.count_rest().and_then(|()| self.look_at_fallbacks(now));
            if looked.is_none_or(|at| at.elapsed() >= EVERY) {
                looked = Some(Instant::now());
                let _retried = self.age(now).and_then(|()| self.expire(now));
                if self.looking.is_none() {
                    let _retried = self.look(now);
                }
            }
            let _retried = self.look_on(now);
            // What it drops would be put again by a slice of the logs that was read before.
            if forgot.is_none_or(|at| at.elapsed() >= forget_every) && self.blanking.is_none() {
                forgot = Some(Instant::now());
                let _retried = self.forget(now);
            }
            let goes_on = self.blanking.is_some() || self.looking.is_some();
            let patience = if goes_on { SOON } else { Duration::from_millis(500) };
            cancellations |= self.cancelled.recv_timeout(patience).is_ok();
        }
    }

    /// Opens and closes the gate of promise 7, with one percent between the two.
    fn watch_space(&self) {
        let Some(free) = self.store.free_percent() else { return };
        let gate = &self.store.gates.low_space;
        let low = gate.load(Ordering::Relaxed);
        let limit = self.settings.min_free_percent;
        if !low && free < limit {
            tracing::error!(free_percent = free, "the disk is almost full: new messages are refused, accepted ones go on");
            gate.store(true, Ordering::Relaxed);
        } else if low && free >= limit + (limit * 0.2).min(1.0) {
            tracing::info!(free_percent = free, "there is space again: new messages are taken");
            gate.store(false, Ordering::Relaxed);
        }
    }

    fn send(&self, settle: Settle) {
        // The writer has ended: so does the process.
        let _ended = self.settles.send(settle);
    }

    /// Tells when all that was sent so far is on disk.
    fn written(&self) -> Receiver<()> {
        let (told, written) = crossbeam_channel::bounded(1);
        self.send(Settle::Written(told));
        written
    }

    fn lanes(&self) -> Vec<Lane> {
        self.store.services.all().into_iter().flat_map(|(service, _)| lanes_of(service)).collect()
    }

    /// Gives what has waited unread for a while its row in `expiry`.
    fn age(&mut self, now: UnixMillis) -> Result<(), ReadError> {
        let until = UnixMillis(now.0.saturating_sub(AGED));
        for lane in self.lanes() {
            for family in [family::WORK, family::DUE] {
                loop {
                    let (hints, more) = self.age_some(family, lane, until)?;
                    if !hints.is_empty() {
                        self.send(Settle::Expiry { put: hints, drop: Vec::new() });
                    }
                    if !more || self.stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn age_some(
        &mut self,
        family: &'static str,
        lane: Lane,
        until: UnixMillis,
    ) -> Result<(Vec<(UnixMillis, Waiting)>, bool), ReadError> {
        let prefix = key::lane_prefix(lane);
        let mut start = match self.aged.get(&(family, lane)) {
            Some(start) => start.clone(),
            None => {
                let kept = self.store.reader()?.value(family::META, super::writer::first_row_key(family, lane))?;
                kept.map_or_else(|| prefix.clone(), |kept| kept.to_vec())
            }
        };
        let mut hints = Vec::new();
        let (mut seen, mut more) = (0, false);
        let store = &self.store;
        store.reader()?.scan(family, &start.clone(), &key::after_prefix(&prefix), |row, value| {
            let hint = match family {
                family::WORK => work_hint(row, value, until),
                _ => due_hint(row, value, until),
            };
            match hint {
                Ok(Hint::Later) => return false,
                Ok(Hint::At(time, waiting)) => hints.push((time, waiting)),
                Ok(Hint::None) => {}
                Err(record::Corrupt) => store.corrupt(family),
            }
            start = row.to_vec();
            start.push(0);
            seen += 1;
            more = seen == SLICE;
            !more
        })?;
        // Rows of `due` may still be made at any time after now: behind `until` nothing new comes.
        self.aged.insert((family, lane), start);
        Ok((hints, more))
    }

    /// Ends what has passed its deadline, of all that has a row in `expiry`.
    fn expire(&self, now: UnixMillis) -> Result<(), ReadError> {
        let mut start = Vec::new();
        loop {
            let mut rows = Vec::new();
            let end = now.plus(1).0.to_be_bytes();
            self.store.reader()?.scan(family::EXPIRY, &start, &end, |row, _| {
                rows.push(row.to_vec());
                rows.len() < SLICE
            })?;
            let Some(last) = rows.last() else { return Ok(()) };
            start = last.clone();
            start.push(0);
            let mut put = Vec::new();
            let mut settled = Vec::new();
            let looked = rows.iter().try_for_each(|row| self.expire_hint(row, now, &mut put, &mut settled));
            // What is claimed is settled, also if the store was closed in the middle.
            self.send(Settle::Slice(settled));
            looked?;
            self.send(Settle::Expiry { put, drop: rows });
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    /// Looks at one row of `expiry`.
    fn expire_hint(
        &self,
        row: &[u8],
        now: UnixMillis,
        put: &mut Vec<(UnixMillis, Waiting)>,
        settled: &mut Vec<Settled>,
    ) -> Result<(), ReadError> {
        let soon = now.plus(EVERY.as_millis() as u64);
        match key::expiry_decode(row) {
            Ok((_, Waiting::Work(key))) => {
                if let Some(next) = self.expire_row(&key, now, settled)? {
                    // Deadlines that lie close together are met in one look.
                    put.push((next.max(soon), Waiting::Work(key)));
                }
            }
            Ok((_, Waiting::Due(due))) => match self.store.claim_due(&due)? {
                DueClaim::Claimed(delivery) if delivery.message.expires <= now => settled.push(expired(delivery)),
                DueClaim::Claimed(delivery) => {
                    put.push((delivery.message.expires, Waiting::Due(due)));
                    settled.push(Settled { delivery, what: Settlement::Back });
                }
                // In flight, it may yet come back to this row.
                DueClaim::Elsewhere if self.store.due_exists(&due)? => put.push((soon, Waiting::Due(due))),
                DueClaim::Elsewhere | DueClaim::Stale => {}
            },
            Err(record::Corrupt) => self.store.corrupt(family::EXPIRY),
        }
        Ok(())
    }

    /// Ends what of a row of singles has passed its deadline; gives the time of the next look at it.
    fn expire_row(&self, key: &WorkKey, now: UnixMillis, settled: &mut Vec<Settled>) -> Result<Option<UnixMillis>, ReadError> {
        let Some(row) = self.store.reader()?.value(family::WORK, key.encode())? else { return Ok(None) };
        let mut next: Option<UnixMillis> = None;
        let before = settled.len();
        for delivery in self.waiting(key, &row)? {
            if delivery.message.expires > now {
                next = Some(next.map_or(delivery.message.expires, |next| next.min(delivery.message.expires)));
            } else if self.store.batch(key.batch(), key.count)?.claim_one(delivery.id.index) {
                settled.push(expired(delivery));
            }
        }
        // What is in flight may come back to this row.
        let ours = (settled.len() - before) as u64;
        let busy = self.store.batch(key.batch(), key.count)?.busy_in(0, key.count) > ours;
        Ok(if busy { Some(now) } else { next })
    }

    #[allow(clippy::vec_box, reason = "each is moved on as a box")]
    fn waiting(&self, key: &WorkKey, row: &Bytes) -> Result<Vec<Box<Delivery>>, ReadError> {
        let batch = self.store.batch(key.batch(), key.count)?;
        Ok(self.store.work_row_deliveries(key, &batch.waiting(), row))
    }

    /// Ends what `cancel` of a label or an app has left to be found.
    fn sweep_cancelled(&self) -> Result<(), ReadError> {
        let mut rules: Vec<StoredRule> = Vec::new();
        self.store.reader()?.scan(family::META, b"cancel/", b"cancel0", |_, value| {
            // Who is erased twice with no message between the two has one rule, which the first sweep may have marked.
            let due = |rule: &StoredRule| !rule.swept || self.store.erasures.wait_for(&rule.holder);
            rules.extend(read_rule(Bytes::copy_from_slice(value)).ok().filter(due));
            true
        })?;
        {
            // An erasure that memory does not know yet is being committed: the bell rings when it is.
            let known = self.store.rules.load();
            rules.retain(|rule| !rule.holder.erases() || known.cancelled.get(&rule.holder) >= Some(&rule.upto));
        }
        // One that is erased with its account is met on both words, and counted once.
        let mut met = HashSet::new();
        for rule in rules {
            let mut cancelled = 0;
            for lane in self.lanes() {
                cancelled += self.sweep_lane(lane, &rule, &mut met)?;
            }
            self.store.erasures.swept(&rule.holder, rule.upto, cancelled);
            self.send(Settle::Swept(rule.holder, rule.upto));
        }
        Ok(())
    }

    /// Gives how many it has found for an erasure that were not met before.
    fn sweep_lane(&self, lane: Lane, rule: &StoredRule, met: &mut HashSet<DeliveryId>) -> Result<u64, ReadError> {
        let mut cancelled = 0;
        let concerns = |delivery: &Delivery| {
            let message = &delivery.message;
            (message.id.commit(), message.id.place()) < rule.upto
                && match &rule.holder {
                    Holder::Message(id) => message.id == *id,
                    Holder::Label(app, label) => message.app == *app && message.label.as_ref() == Some(label),
                    Holder::App(app) => message.app == *app,
                    Holder::Account(who) => delivery.recipient.registered.and_then(|one| one.account) == Some(*who),
                    Holder::Subscription(hash) => subscription_hash(delivery.recipient.subscription_id()) == *hash,
                }
        };
        let prefix = key::lane_prefix(lane);
        for family in [family::WORK, family::DUE] {
            let mut start = prefix.clone();
            loop {
                let mut rows: Vec<(Vec<u8>, Bytes)> = Vec::new();
                let mut bytes = 0;
                self.store.reader()?.scan(family, &start, &key::after_prefix(&prefix), |row, value| {
                    bytes += value.len();
                    rows.push((row.to_vec(), Bytes::copy_from_slice(value)));
                    rows.len() < SLICE && bytes < 4 << 20
                })?;
                let Some((last, _)) = rows.last() else { break };
                start = last.clone();
                start.push(0);
                // Nothing is claimed: what the cancellation does not concern is not touched, and what it does concern is not
                // shown as in flight in between.
                let mut found = Vec::new();
                for (row, value) in rows {
                    if family == family::WORK {
                        let Ok(key) = WorkKey::decode(&row) else { continue };
                        found.extend(self.waiting(&key, &value)?.into_iter().filter(|delivery| concerns(delivery)));
                    } else if let Ok(due) = DueKey::decode(&row)
                        && let BatchId::Commit { .. } = due.delivery.batch
                        && let Ok(Some(delivery)) = record::read_due_row(value, due.delivery, due.time, || None)
                        && concerns(&delivery)
                    {
                        found.push(delivery);
                    }
                }
                if rule.holder.erases() {
                    cancelled += found.iter().filter(|delivery| met.insert(delivery.id)).count() as u64;
                }
                self.send(Settle::Cancelled(found, if rule.holder.erases() { "erased" } else { "cancelled" }));
                if self.stop.load(Ordering::Relaxed) {
                    return Err(ReadError);
                }
            }
        }
        Ok(cancelled)
    }

    /// Walks campaigns that are over to their end without sending, so that the rest is counted.
    fn count_rest(&self) -> Result<(), ReadError> {
        for (key, list) in self.store.lists.all() {
            let Some(wanted) = &list.wanted else { continue };
            let services: Vec<Service> = {
                let state = list_state(&list);
                match &state.walks {
                    Some(walks) if state.over.is_some() && !state.closed => walks.keys().copied().collect(),
                    _ => continue,
                }
            };
            let path = self.store.path(wanted)?;
            for service in services {
                // Those that were opened before, then each new one: a stretch is looked at once in a round.
                for shape in open_shapes(&list, service) {
                    self.count_stretch(key, &list, service, &shape)?;
                }
                while let Some(shape) = self.store.open_stretch(&list, &path, service)? {
                    if self.stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    self.count_stretch(key, &list, service, &shape)?;
                }
            }
            self.send(Settle::Walked(key));
        }
        Ok(())
    }

    /// Ends what of an open stretch of a walk nobody is busy with.
    fn count_stretch(&self, key: ListKey, list: &List, service: Service, shape: &Arc<Shape>) -> Result<(), ReadError> {
        let batch = self.store.stretch(list.stretch(service, shape.first), shape)?;
        let claimed = batch.claim(0, u16::MAX);
        if claimed.is_empty() {
            return Ok(());
        }
        match self.store.judge(&batch, list, &claimed) {
            Ok((matched, absent)) => {
                let matched = matched.iter().map(|delivery| delivery.id.index).collect();
                self.send(Settle::Rest { batch, list: key, matched, absent });
                Ok(())
            }
            Err(error) => {
                claimed.iter().for_each(|place| batch.release(*place));
                Err(error)
            }
        }
    }

    /// Subscriptions whose `expirationTime` has passed, and gone ones that cannot be undone any more: so many in one checkpoint, and
    /// more when it is written.
    fn look(&mut self, now: UnixMillis) -> Result<(), ReadError> {
        let mut keys = Vec::new();
        let mut end = vec![4];
        end.extend(now.plus(1).0.to_be_bytes());
        self.store.reader()?.scan(family::INDEX, &[4], &end, |row, _| {
            if let (Some(time), Ok(key)) = (row.get(1..).and_then(|row| row.first_chunk()), row::take_key(row)) {
                keys.push((UnixMillis(u64::from_be_bytes(*time)), key));
            }
            keys.len() < SLICE
        })?;
        let more = keys.len() == SLICE;
        if !keys.is_empty() {
            self.send(Settle::Look(keys));
        }
        self.looking = more.then(|| self.written());
        Ok(())
    }

    /// Looks at more of them, if those before are done with.
    fn look_on(&mut self, now: UnixMillis) -> Result<(), ReadError> {
        match &self.looking {
            Some(written) if written.try_recv().is_ok() => {
                // Should the store be closed just now, the next round begins anew.
                self.looking = None;
                self.look(now)
            }
            _ => Ok(()),
        }
    }

    /// Decides fallbacks whose time has come.
    fn look_at_fallbacks(&self, now: UnixMillis) -> Result<(), ReadError> {
        let mut due: Vec<(Vec<u8>, Bytes)> = Vec::new();
        let mut end = vec![7];
        end.extend(now.plus(1).0.to_be_bytes());
        self.store.reader()?.scan(family::INDEX, &[7], &end, |row, value| {
            due.push((row.to_vec(), Bytes::copy_from_slice(value)));
            due.len() < SLICE
        })?;
        for (key, value) in due {
            let Ok(fallback) = Fallback::decode(value) else {
                self.store.corrupt(family::INDEX);
                continue;
            };
            let decided = self.decide(&fallback, now)?;
            self.send(Settle::Fallback(key, Box::new(fallback), decided));
        }
        Ok(())
    }

    fn decide(&self, fallback: &Fallback, now: UnixMillis) -> Result<Decided, ReadError> {
        let forgotten = self.store.head(fallback.id)?.is_none() && self.store.list_message(ListKey::of(fallback.id))?.is_none();
        if forgotten {
            // `messages.retention` is over before the fallback's time: whether somebody was reached is not known any more.
            return Ok(Decided::Reached);
        }
        if self.is_erased(fallback) {
            return Ok(Decided::Reached);
        }
        let reader = self.store.reader()?;
        let mut waits = false;
        for (delivery, subscription) in &fallback.deliveries {
            let row = reader.value(family::OUTCOME, key::batch_key(&delivery.batch))?;
            let byte = row.as_ref().and_then(|bytes| bytes.get(usize::from(delivery.index))).copied().unwrap_or(0);
            let ending = match super::live::ending(byte) {
                None => self.list_over(&delivery.batch)?,
                ending => ending,
            };
            let reached = match ending {
                Some(Ending::Accepted) if !fallback.shown => true,
                // Withdrawn, or replaced by something newer.
                Some(Ending::Cancelled) => true,
                Some(Ending::Skipped) if fallback.when_offline => true,
                None => {
                    waits = true;
                    false
                }
                Some(_) => false,
            };
            let shown = || -> Result<bool, ReadError> {
                let row = reader.value(family::FEEDBACK, row::feedback_key(fallback.id, *subscription))?;
                Ok(row.is_some_and(|row| row.first().is_some_and(|bits| *bits > 0)))
            };
            if reached || fallback.shown && shown()? {
                return Ok(Decided::Reached);
            }
        }
        // It is on the page: what waits for the account to go offline is not unreachable yet.
        let online = fallback.when_offline && waits && {
            let hash = self.store.registry.app(&fallback.app).map(|app| account_hash(app, &fallback.account));
            hash.is_some_and(|who| super::live::lock(&self.store.presence).holds_back(who, now))
        };
        if online && now < fallback.expires {
            return Ok(Decided::Again(now.plus(fallback.after.max(1_000))));
        }
        Ok(Decided::Unreachable)
    }

    /// How all that was not in flight of a batch's list ended: that is not in the bytes.
    fn list_over(&self, batch: &BatchId) -> Result<Option<Ending>, ReadError> {
        let Some(key) = ListKey::of_batch(batch) else { return Ok(None) };
        let list = match self.store.lists.get(key) {
            None => self.store.stored_list(key)?,
            Some(list) => return Ok(list_state(&list).over),
        };
        Ok(list.and_then(|list| list_state(&list).over))
    }

    /// Goes on blanking what the logs say of those who were erased, once nothing waits for them any more: the next slice, if the
    /// last one is on disk.
    fn blank_erased(&mut self) -> Result<(), ReadError> {
        let Some(mut blanking) = self.blanking.take().or_else(|| self.begin_blanking()) else { return Ok(()) };
        if blanking.sent.as_ref().is_some_and(|written| written.try_recv().is_err()) {
            self.blanking = Some(blanking);
            return Ok(());
        }
        blanking.sent = None;
        if blanking.log == LOGS.len() {
            blanking.erasures.into_iter().zip(blanking.blanked).for_each(|(erasure, blanked)| erasure.done(blanked));
            self.store.erasures.want_compaction();
            return Ok(());
        }
        let read = self.blank_some(&blanking).map(|blanked| self.send_blanked(&mut blanking, blanked));
        self.blanking = Some(blanking);
        read
    }

    fn send_blanked(&self, blanking: &mut Blanking, blanked: Blanked) {
        let Blanked { mut put, mut ranges, events, log, from } = blanked;
        (blanking.log, blanking.from) = (log, from);
        blanking.blanked.iter_mut().zip(events).for_each(|(all, some)| *all += some);
        if log == LOGS.len() {
            // With the last of it, so that a start has nothing left to do.
            let rows = blanking.erasures.iter().map(|erasure| (family::META, erasure.row.clone(), just_behind(&erasure.row)));
            ranges.extend(rows);
            put.push((family::META, COMPACTION_ROW.to_vec(), Vec::new()));
        }
        if !put.is_empty() || !ranges.is_empty() {
            self.send(Settle::Forget { ranges, put });
            blanking.sent = Some(self.written());
        }
    }

    fn begin_blanking(&self) -> Option<Blanking> {
        let erasures = self.store.erasures.ready();
        if erasures.is_empty() {
            return None;
        }
        let (whom, blanked) = (Whom::of(&erasures), vec![0; erasures.len()]);
        // What was sent before, ranges of these logs among it, is on disk when they are read.
        Some(Blanking { erasures, whom, blanked, log: 0, from: LOGS[0].1.to_vec(), sent: Some(self.written()) })
    }

    /// Reads the logs on until there is enough to write.
    fn blank_some(&self, blanking: &Blanking) -> Result<Blanked, ReadError> {
        let Blanking { whom, log, from, .. } = blanking;
        let (family, _, end) = LOGS[*log];
        let mut blanked = Blanked {
            put: Vec::new(),
            ranges: Vec::new(),
            events: vec![0; blanking.blanked.len()],
            log: log + 1,
            from: LOGS.get(log + 1).map_or_else(Vec::new, |(_, start, _)| start.to_vec()),
        };
        let (mut scanned, mut bytes) = (0, 0);
        self.store.reader()?.scan(family, from, end, |row, value| {
            scanned += row.len() + value.len();
            let put = match family {
                family::EVENTS => whom.blank_events(value, |app| self.store.registry.app(app), &mut blanked.events),
                family::HEAD => whom.blank_heads(row, value),
                _ => None,
            };
            let drops = match family {
                family::FEEDBACK => whom.names(row),
                family::INDEX => Fallback::decode(Bytes::copy_from_slice(value)).is_ok_and(|fallback| self.is_erased(&fallback)),
                _ => false,
            };
            if let Some(value) = put {
                bytes += value.len();
                blanked.put.push((family, row.to_vec(), value));
            }
            if drops {
                blanked.ranges.push((family, row.to_vec(), just_behind(row)));
            }
            let rows = blanked.put.len() + blanked.ranges.len();
            let enough = rows >= BLANKED_ROWS || bytes >= BLANKED_BYTES || scanned >= SCANNED_BYTES;
            if enough {
                (blanked.log, blanked.from) = (*log, just_behind(row));
            }
            !enough
        })?;
        Ok(blanked)
    }

    /// Whether its account was erased after its message had come.
    fn is_erased(&self, fallback: &Fallback) -> bool {
        let Some(app) = self.store.registry.app(&fallback.app) else { return false };
        let who = Holder::Account(account_hash(app, &fallback.account));
        let before = (fallback.id.commit(), fallback.id.place());
        self.store.rules.load().cancelled.get(&who).is_some_and(|upto| before < *upto)
    }

    /// What was erased leaves the files as well: some seconds after it, and once an hour at most, for it costs as much as copying
    /// the store.
    fn compact_erased(&self) {
        if self.blanking.is_none() && self.store.erasures.clean() {
            let ranges = vec![(family::META, COMPACTION_ROW.to_vec(), just_behind(COMPACTION_ROW))];
            self.send(Settle::Forget { ranges, put: Vec::new() });
        }
        if !self.store.erasures.compaction_due() {
            return;
        }
        let store = self.store.clone();
        std::thread::spawn(move || match store.compact() {
            Ok(()) => store.erasures.compacted(),
            Err(ReadError) => store.erasures.want_compaction(),
        });
    }

    /// Drops what is kept no longer.
    fn forget(&self, now: UnixMillis) -> Result<(), ReadError> {
        let mut ranges = Vec::new();
        let mut put = Vec::new();
        self.forget_singles(now, &mut ranges, &mut put)?;
        self.forget_lists(now, &mut ranges)?;
        self.forget_events(now, &mut ranges, &mut put)?;
        let today = u32::try_from(now.0 / 86_400_000).unwrap_or(u32::MAX);
        let kept_from = today.saturating_sub(self.settings.stats_keep_days);
        if kept_from > 0 {
            ranges.push((family::STATS, vec![0; 4], kept_from.to_be_bytes().to_vec()));
        }
        for (kind, start, end) in [("cancel", b"cancel/", b"cancel0"), ("pause", b"pause/\0", b"pause/\xff")] {
            self.store.reader()?.scan(family::META, start, end, |_, value| {
                if let Ok(rule) = read_rule(Bytes::copy_from_slice(value))
                    && now.since(rule.since) > RULE_MILLIS
                    // A paused label or app stays paused until it is resumed; a message has ended by now.
                    && (kind == "cancel" || matches!(rule.holder, Holder::Message(_)))
                {
                    let row = rule_key(kind, &rule.holder);
                    let mut end = row.clone();
                    end.push(0);
                    ranges.push((family::META, row, end));
                }
                true
            })?;
        }
        if !ranges.is_empty() || !put.is_empty() {
            self.send(Settle::Forget { ranges, put });
        }
        Ok(())
    }

    /// Heads and outcomes of commits that are old enough, but for those of which something is still open: these are noted, and
    /// looked at again.
    fn forget_singles(&self, now: UnixMillis, ranges: &mut Ranges, put: &mut Puts) -> Result<(), ReadError> {
        let retention = u64::try_from(self.settings.retention.as_millis()).unwrap_or(u64::MAX);
        let cutoff = UnixMillis(now.0.saturating_sub(retention));
        let reader = self.store.reader()?;
        let floor_key = b"retention/floor".to_vec();
        let floor = reader.value(family::META, &floor_key)?.and_then(|row| Take::new(row).u64().ok()).unwrap_or(0);
        let mut next = floor;
        let mut open = Vec::new();
        let mut seen = 0;
        let mut error = None;
        reader.scan(family::HEAD, &floor.to_be_bytes(), &[255; 10], |row, value| {
            let Some(commit) = row.first_chunk::<8>().map(|commit| u64::from_be_bytes(*commit)) else { return true };
            // A commit is judged by all of its heads.
            if seen >= 100_000 && commit >= next {
                return false;
            }
            match heads(value, commit) {
                Ok(heads) => {
                    if heads.first().is_some_and(|head| head.id.created() >= cutoff) {
                        return false;
                    }
                    match self.all_ended(&reader, &heads) {
                        Ok(true) => {}
                        Ok(false) if open.last() == Some(&commit) => {}
                        Ok(false) => open.push(commit),
                        Err(failed) => error = Some(failed),
                    }
                }
                Err(record::Corrupt) => self.store.corrupt(family::HEAD),
            }
            next = commit + 1;
            seen += 1;
            true
        })?;
        if let Some(error) = error {
            return Err(error);
        }
        let mut from = floor;
        for commit in open.iter().copied().chain([next]) {
            if commit > from {
                forget_commits(from, commit, ranges);
            }
            from = commit + 1;
        }
        for commit in open {
            put.push((family::META, linger_key(commit), super::number(0)));
        }
        if next > floor {
            put.push((family::META, floor_key, super::number(next)));
        }
        reader.scan(family::META, b"linger/", b"linger0", |row, value| {
            let (Some(commit), Some(drop_at)) = (row.last_chunk::<8>(), value.first_chunk::<8>()) else { return true };
            let (commit, drop_at) = (u64::from_be_bytes(*commit), UnixMillis(u64::from_be_bytes(*drop_at)));
            if drop_at.0 == 0 {
                let ended = self.commit_ended(&reader, commit);
                if ended == Ok(true) {
                    put.push((family::META, linger_key(commit), super::number(now.plus(retention).0)));
                }
            } else if drop_at <= now {
                forget_commits(commit, commit + 1, ranges);
                let mut end = row.to_vec();
                end.push(0);
                ranges.push((family::META, row.to_vec(), end));
            }
            true
        })
    }

    fn commit_ended(&self, reader: &super::Reader<'_>, commit: u64) -> Result<bool, ReadError> {
        let mut all = true;
        reader.scan(family::HEAD, &key::head_key(commit, 0), &key::head_key(commit + 1, 0), |_, value| {
            all &= heads(value, commit).is_ok_and(|heads| self.all_ended(reader, &heads) == Ok(true));
            all
        })?;
        Ok(all)
    }

    fn all_ended(&self, reader: &super::Reader<'_>, heads: &[record::Head]) -> Result<bool, ReadError> {
        let mut rows: HashMap<BatchId, Option<Bytes>> = HashMap::new();
        for recipient in heads.iter().flat_map(|head| &head.recipients) {
            let batch = recipient.id.batch;
            if let std::collections::hash_map::Entry::Vacant(entry) = rows.entry(batch) {
                entry.insert(reader.value(family::OUTCOME, key::batch_key(&batch))?);
            }
            let byte = rows[&batch].as_ref().and_then(|row| row.get(usize::from(recipient.id.index))).copied().unwrap_or(0);
            if super::live::ending(byte).is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn forget_lists(&self, now: UnixMillis, ranges: &mut Ranges) -> Result<(), ReadError> {
        let retention = u64::try_from(self.settings.retention.as_millis()).unwrap_or(u64::MAX);
        let mut message: Option<(Vec<u8>, Bytes)> = None;
        self.store.reader()?.scan(family::MESSAGE, &[], &[255; 16], |row, value| {
            match row.last() {
                Some(0) => message = Some((row[..row.len() - 1].to_vec(), Bytes::copy_from_slice(value))),
                Some(2) => {
                    if let Some((prefix, message)) = message.take()
                        && row.starts_with(&prefix)
                        && let Ok(list) = read_list(message, None, Some(Bytes::copy_from_slice(value)))
                        && list_state(&list).ended_at.is_some_and(|ended| ended.plus(retention) <= now)
                    {
                        ranges.push((family::MESSAGE, prefix.clone(), key::after_prefix(&prefix)));
                        if list.keeps_outcomes {
                            let outcomes = key::outcome_list_prefix(list.message.id.commit(), list.message.id.place());
                            ranges.push((family::OUTCOME, outcomes.clone(), key::after_prefix(&outcomes)));
                        }
                    }
                }
                _ => {}
            }
            true
        })
    }

    fn forget_events(&self, now: UnixMillis, ranges: &mut Ranges, put: &mut Puts) -> Result<(), ReadError> {
        let retention = u64::try_from(self.settings.events_retention.as_millis()).unwrap_or(u64::MAX);
        let cutoff = UnixMillis(now.0.saturating_sub(retention));
        let reader = self.store.reader()?;
        let bytes = reader.property(family::EVENTS, "rocksdb.estimate-live-data-size");
        let too_large = bytes > self.settings.events_max_mb << 20;
        let start = reader.value(family::META, "events_first")?.unwrap_or_default();
        let mut keep_from: Option<Vec<u8>> = None;
        let mut seen = 0u64;
        reader.scan(family::EVENTS, &start, &[255; 9], |row, value| {
            let old = first_event_time(value).is_some_and(|time| time < cutoff);
            // Where the log is too large its oldest tenth goes, row by row, and the next round looks again.
            let oldest = too_large && seen < 1 + bytes / (10 * (value.len() as u64 + 1));
            if old || oldest {
                seen += 1;
                // Behind it: it may be the last one.
                let mut behind = row.to_vec();
                behind.push(0);
                keep_from = Some(behind);
            }
            old || oldest
        })?;
        if let Some(keep_from) = keep_from {
            ranges.push((family::EVENTS, vec![0; 8], keep_from.clone()));
            put.push((family::META, b"events_first".to_vec(), keep_from));
        }
        Ok(())
    }
}

/// For tests that play the sweep's thread themselves.
#[cfg(test)]
impl Sweep {
    /// What it does all the time. Gives whether it goes on when a checkpoint is written.
    pub(super) fn play(&mut self, now: UnixMillis) -> bool {
        let swept = self.sweep_cancelled().and_then(|()| self.blank_erased()).and_then(|()| self.count_rest());
        self.compact_erased();
        let looked = if self.looking.is_none() { self.look(now) } else { self.look_on(now) };
        swept.and(looked).and_then(|()| self.look_at_fallbacks(now)).expect("the store is open");
        self.blanking.is_some() || self.looking.is_some()
    }
}

/// The stretches of a walk of which something is still to be settled.
fn open_shapes(list: &List, service: Service) -> Vec<Arc<Shape>> {
    let state = list_state(list);
    let walk = state.walks.as_ref().and_then(|walks| walks.get(&service));
    walk.map_or_else(Vec::new, |walk| walk.open.values().filter(|open| !open.done).map(|open| open.shape.clone()).collect())
}

type Ranges = Vec<(&'static str, Vec<u8>, Vec<u8>)>;
type Puts = Vec<(&'static str, Vec<u8>, Vec<u8>)>;

fn forget_commits(from: u64, to: u64, ranges: &mut Ranges) {
    ranges.push((family::HEAD, key::head_key(from, 0), key::head_key(to, 0)));
    ranges.push((family::FEEDBACK, key::head_key(from, 0), key::head_key(to, 0)));
    ranges.push((family::OUTCOME, key::outcome_commit_prefix(from), key::outcome_commit_prefix(to)));
}

fn just_behind(row: &[u8]) -> Vec<u8> {
    let mut behind = row.to_vec();
    behind.push(0);
    behind
}

fn linger_key(commit: u64) -> Vec<u8> {
    let mut key = b"linger/".to_vec();
    key.extend(commit.to_be_bytes());
    key
}

fn heads(value: &[u8], commit: u64) -> Result<Vec<record::Head>, record::Corrupt> {
    let mut take = Take::versioned(Bytes::copy_from_slice(value))?;
    let mut heads = Vec::new();
    while !take.at_end() {
        heads.push(record::take_head(&mut take, commit)?);
    }
    Ok(heads)
}

fn first_event_time(row: &[u8]) -> Option<UnixMillis> {
    let line = row.get(5..)?.split(|byte| *byte == b'\n').next()?;
    let event: serde_json::Value = serde_json::from_slice(line).ok()?;
    crate::ingest::reply::parse_time(event.get("time")?.as_str()?)
}

enum Hint {
    /// This row and all behind it are too young.
    Later,
    /// To be looked at then.
    At(UnixMillis, Waiting),
    None,
}

fn work_hint(row: &[u8], value: &[u8], until: UnixMillis) -> Result<Hint, record::Corrupt> {
    let key = WorkKey::decode(row)?;
    let earliest = record::work_row_earliest(value)?;
    if record::work_row_created(value)? > until {
        return Ok(Hint::Later);
    }
    Ok(Hint::At(earliest, Waiting::Work(key)))
}

fn due_hint(row: &[u8], value: &[u8], until: UnixMillis) -> Result<Hint, record::Corrupt> {
    let due = DueKey::decode(row)?;
    if due.time > until {
        return Ok(Hint::Later);
    }
    // A list ends as a whole at its deadline.
    let BatchId::Commit { .. } = due.delivery.batch else { return Ok(Hint::None) };
    let delivery = record::read_due_row(Bytes::copy_from_slice(value), due.delivery, due.time, || None)?;
    Ok(delivery.map_or(Hint::None, |delivery| Hint::At(delivery.message.expires, Waiting::Due(due))))
}

fn expired(delivery: Box<Delivery>) -> Settled {
    let reason = if delivery.message.ttl_zero { "ttl_zero_patience" } else { "deadline" };
    Settled { delivery, what: Settlement::Ended { ending: Ending::Expired, reason, status: None, key: None } }
}
