//! Writing: one synced batch for a group and, when it is due, the checkpoint; and what follows when there is no space.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::clock;
use crate::complaint::Complaint;
use crate::message::{BatchId, UnixMillis};
use crate::metrics;
use crate::store::commit::{Done, Op, Writes};
use crate::store::key::{self, ChunkKey, WorkKey};
use crate::store::live::{Batch, Holder, ListKey, MOVED, lock};
use crate::store::load::{MessageRow, message_key};
use crate::store::open::LastCommit;
use crate::store::record::{self, Put};
use crate::store::rows::number;
use crate::store::shares::Shares;
use crate::store::writer::accept::{Group, WAITING_PIECE, read_only};
use crate::store::writer::news::{FRESH_ROWS, Fresh, earliest};
use crate::store::writer::rows::{first_row_key, list_counts_row, load_erasures};
use crate::store::writer::{Writer, campaign};
use crate::store::{ReadError, WriteError, family, list_state, log};

static NOT_WRITTEN: Complaint = Complaint::some();
static WRITABLE: Complaint = Complaint::some();

impl Writer {
    pub(super) fn write(&mut self, writes: Vec<Writes>, mut group: Group, with_checkpoint: bool) -> Result<(), WriteError> {
        let with_checkpoint = (with_checkpoint || self.checkpoint.forced) && self.checkpoint.dirty();
        if writes.is_empty() && !with_checkpoint {
            return Ok(());
        }
        if group.is_empty() && !with_checkpoint {
            // Nothing to make durable: a `ping`, or a browser that is as it was.
            self.answer(writes);
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
            Ok(mut built) => {
                self.next_commit += 1;
                self.store.written.store(group.commit, Ordering::Release);
                if let Some(pending) = built.pending.take() {
                    self.pending_synced = pending;
                }
                if with_checkpoint {
                    group.lists.append(&mut self.checkpoint.begun);
                    self.checkpoint_done(&mut built);
                }
                self.stats.dirty_taken.clear();
                self.begin_erasures(&mut group);
                let cancels = group.cancels;
                self.supersede(&mut group);
                self.pursue(group.now);
                self.publish(group, built);
                self.answer(writes);
                if cancels {
                    let _full_means_it_looks_anyway = self.cancelled.try_send(());
                }
                Ok(())
            }
            Err(error @ (WriteError::Full(_) | WriteError::Descriptors(_) | WriteError::Closed)) => {
                // The store gives up its spare descriptors when it is opened again: that is worth a try at once.
                let at_once = matches!(error, WriteError::Descriptors(_));
                let what = if at_once { "no descriptor for a file" } else { "no space to write" };
                if let Some(left_out) = NOT_WRITTEN.tell() {
                    tracing::error!(%error, left_out, "{what}: new lines are refused, sending stops until there is");
                }
                self.undo(group);
                self.refuse(writes);
                let now = Instant::now();
                self.full = now.checked_sub(REOPEN_EVERY).filter(|_| at_once).or(Some(now));
                self.store.gates.full.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(broken) => Err(broken),
        }
    }

    /// Puts all rows of the group, and of the checkpoint if it is written with it.
    pub(super) fn build(&mut self, group: &mut Group, with_checkpoint: bool) -> Result<Built, ReadError> {
        if with_checkpoint {
            // Over what this very group has changed of the registry.
            self.put_verdicts(group)?;
        }
        let store = self.store.clone();
        let reader = store.reader()?;
        group.registry.write(&reader, &mut group.rows);
        let mut walks: HashMap<ListKey, Vec<Arc<Batch>>> = HashMap::new();
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
        let mut pending = self.pending_synced.clone();
        group.added.iter().for_each(|(app, n)| pending.add(app, *n));
        if with_checkpoint {
            pending = self.pending.clone();
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
                    BatchId::Stretch { commit, place, .. } => {
                        walks.entry(ListKey { commit, place }).or_default().push(batch.clone());
                    }
                    BatchId::Chunk { commit, place, lane, chunk } => {
                        let list = store.lists.get(ListKey { commit, place });
                        if all_ended && !list.is_some_and(|list| list.keeps_outcomes) {
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
                if list.wanted.is_some() {
                    let changed = walks.remove(key).unwrap_or_default();
                    campaign::put_walk(list, &changed, rows, &reader);
                    let state = list_state(list);
                    if state.over.is_some() && state.closed && state.unreported > 0 && state.counts.pending() == 0 {
                        built.walked_out.push(*key);
                    }
                }
                let mut state = list_state(list);
                if state.done() && state.in_flight == 0 && state.ended_at.is_none() {
                    state.ended_at = Some(group.now);
                }
                rows.put(&reader, family::MESSAGE, message_key(*key, MessageRow::Counts), list_counts_row(&state));
                if state.ended_at.is_some() {
                    // Rows of one that was cancelled, or ran out of time: some were never read. Else each went when all of it had
                    // ended, and a range that deletes nothing would cost every read after it.
                    if state.over.is_some() && list.wanted.is_none() {
                        let prefix = key::list_prefix(key.commit, key.place);
                        rows.delete_range(&reader, family::LIST, &prefix, &key::after_prefix(&prefix));
                    }
                    if state.over.is_some() && !list.keeps_outcomes {
                        let prefix = match list.wanted {
                            None => key::outcome_list_prefix(key.commit, key.place),
                            Some(_) => key::outcome_campaign_prefix(key.commit, key.place),
                        };
                        rows.delete_range(&reader, family::OUTCOME, &prefix, &key::after_prefix(&prefix));
                    }
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
            let events = checkpoint.events.rows_with(&group.events);
            if !events.is_empty() {
                let first = *self.store.events_end.borrow();
                built.events = self.store.log.put(first, events, &reader, rows);
                let count: u64 = built.events.iter().map(|row| u64::from(row.count)).sum();
                rows.put(&reader, family::META, "events_end", number(first + count));
            }
            self.stats.put_ended(&self.store, &reader, rows);
        }
        let apps = pending.each().filter(|(_, n)| *n > 0).cloned().collect();
        let last = LastCommit { commit: group.commit, written: group.now, pending: pending.total(), apps };
        rows.put(&reader, family::META, "last", last.encode());
        built.pending = Some(pending);
        Ok(built)
    }

    pub(super) fn checkpoint_done(&mut self, built: &mut Built) {
        let checkpoint = std::mem::take(&mut self.checkpoint);
        if checkpoint.rows.iter().any(|(family, ..)| *family == family::EVENTS) {
            // Somebody was blanked: before that is told.
            self.store.log.forget_tail(*self.store.events_end.borrow());
        }
        for told in &checkpoint.told {
            // The sweep may be ending.
            let _gone = told.try_send(());
        }
        for (batch, index) in &checkpoint.release {
            batch.release(*index);
        }
        drop(checkpoint);
        self.store.batches.evict();
        for key in &built.ended_lists {
            self.close_list(*key);
        }
        self.walked_out.extend(&built.walked_out);
        if !built.events.is_empty() {
            let count: u64 = built.events.iter().map(|row| u64::from(row.count)).sum();
            self.store.log.append(std::mem::take(&mut built.events));
            self.store.events_end.send_modify(|end| *end += count);
        }
        self.stats.forget_old(clock::now());
        self.show_shares();
        metrics::checkpoint(self.last_checkpoint.elapsed());
        self.last_checkpoint = Instant::now();
    }

    /// Tells the metrics what each app has, once a second at most.
    fn show_shares(&mut self) {
        if self.shown.is_some_and(|shown| shown.elapsed() < Duration::from_secs(1)) {
            return;
        }
        self.shown = Some(Instant::now());
        for (of, shares) in
            [("pending", &self.pending), ("open_lists", &self.open_lists), ("rules", &self.rules), ("tests", &self.watched)]
        {
            metrics::shares(of, shares.each().map(|(app, used)| (&**app, *used)));
        }
        let registry = &self.store.registry;
        let presence = lock(&self.store.presence).shares();
        for (of, shares) in [("presence", presence), ("disabled", registry.disabled_shares())] {
            for (app, used) in shares {
                metrics::shares(of, std::iter::once((&*registry.app_name(app), used)));
            }
        }
    }

    /// A list is open no more.
    fn close_list(&mut self, key: ListKey) {
        if let Some(list) = self.store.lists.remove(key) {
            self.open_lists.sub(&list.message.app, 1);
        }
    }

    /// What erases somebody is on disk.
    fn begin_erasures(&mut self, group: &mut Group) {
        // First, for the sweep looks only at rules that it finds in memory.
        group.erasures.drain(..).for_each(|erasure| self.store.erasures.add(erasure));
        for (holder, upto) in group.erased.drain(..) {
            if let Holder::Account(who) = &holder {
                lock(&self.store.presence).forget(*who);
            }
            if !self.store.rules.change(|rules| rules.erase(holder.clone(), upto)) {
                let app = holder.app().or_else(|| self.whose.get(&holder)).cloned().unwrap_or_else(|| Arc::from(""));
                self.count_rule(&holder, &app);
            }
        }
    }

    /// Tells the scheduler what is new.
    pub(super) fn publish(&mut self, group: Group, built: Built) {
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
    pub(super) fn tell_back(&self, id: BatchId, count: u16, due: Option<UnixMillis>) {
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
            (None, BatchId::Stretch { .. }) => {
                latest.back_stretches.insert(id);
            }
        });
    }

    /// The group could not be written: memory is as if its lines had never come. (Cancellations stay: they protect. Erasures do not:
    /// they are only in memory once they are on disk.)
    pub(super) fn undo(&mut self, group: Group) {
        for (key, before) in group.undo_lists {
            match before {
                None => self.close_list(key),
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
        for (app, who, enabled) in group.switched.into_iter().rev() {
            self.store.registry.set_disabled(app, who, enabled);
        }
        // Counted anew.
        self.crowds.clear();
        self.tallies.clear();
        if !group.origins.is_empty() {
            // They stay known in memory, so no later group would write them.
            self.checkpoint.touch();
            self.checkpoint.forced = true;
            self.checkpoint.rows.extend(group.origins.into_iter().map(|row| (family::META, row, Some(Vec::new()))));
        }
        for (app, n) in &group.added {
            self.pending.sub(app, *n);
            self.store.pending.fetch_sub(*n, Ordering::Relaxed);
        }
        self.stats.undo_taken();
        self.next_commit += 1;
    }

    pub(super) fn refuse_commits(&mut self) {
        self.commits.hear();
        while let Some(mut writes) = self.commits.next() {
            let gates = &self.store.gates;
            writes.done.extend(writes.ops.drain(..).map(|op| match op {
                Op::Drain { on } => {
                    gates.draining.store(on, Ordering::Relaxed);
                    Done::Passed
                }
                Op::Pass { apps } => self.pending_of(apps.as_ref()),
                _ => read_only(),
            }));
            self.answer(vec![writes]);
        }
    }

    /// Answers slices whose lines are all on disk; the rest of one waits for its next turn. A client that has gone does not hear its
    /// answer.
    fn answer(&self, writes: Vec<Writes>) {
        for mut writes in writes {
            if writes.ops.is_empty() {
                let _gone = writes.reply.send(writes.done);
            } else {
                writes.synced = writes.done.len();
                self.commits.put_back(writes);
            }
        }
    }

    /// Nothing was written. A line that needs nothing to be written is answered all the same.
    fn refuse(&self, mut writes: Vec<Writes>) {
        for Writes { done, synced, .. } in &mut writes {
            done[*synced..]
                .iter_mut()
                .filter(|done| !matches!(done, Done::Passed | Done::Pending(_)))
                .for_each(|done| *done = read_only());
        }
        self.answer(writes);
    }

    /// Every 5 s the store is closed and opened again, until a synced probe succeeds (promise 7).
    pub(super) fn try_reopen(&mut self) -> Result<(), WriteError> {
        let Some(since) = self.full else { return Ok(()) };
        if since.elapsed() < REOPEN_EVERY && !self.stopping {
            return Ok(());
        }
        match self.store.reopen() {
            Ok(()) => {
                if let Some(left_out) = WRITABLE.tell() {
                    tracing::info!(left_out, "the store is writable again");
                }
                self.full = None;
                self.store.gates.full.store(false, Ordering::Relaxed);
                // A batch whose sync failed may be there after all; numbers go on behind it.
                if let Ok(reader) = self.store.reader()
                    && let Ok(Some(row)) = reader.value(family::META, "last")
                    && let Ok(last) = LastCommit::decode(row)
                {
                    self.next_commit = self.next_commit.max(last.commit + 1);
                }
                if load_erasures(&self.store).is_ok() {
                    let _rung_already = self.cancelled.try_send(());
                }
                Ok(())
            }
            Err(WriteError::Full(_) | WriteError::Descriptors(_) | WriteError::Closed) => {
                self.full = Some(Instant::now());
                Ok(())
            }
            Err(broken) => Err(broken),
        }
    }

    /// Keeps, for the next start, the first row of each lane that is still there: a scan from the front of a lane would walk
    /// over all that was deleted since the last compaction.
    pub(super) fn keep_first_rows(&mut self) {
        if self.last_first_rows.elapsed() < FIRST_ROWS_EVERY || !self.checkpoint.dirty() {
            return;
        }
        self.last_first_rows = Instant::now();
        let Ok(reader) = self.store.reader() else { return };
        for (service, _) in self.store.services.all() {
            for lane in crate::store::live::lanes_of(service) {
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

/// How often a store that cannot be written is closed and opened again (promise 7).
const REOPEN_EVERY: Duration = Duration::from_secs(5);

/// A row of `due` may be made this long after the time in its key, in milliseconds: what was settled waits in channels.
pub(super) const DUE_MARGIN_MILLIS: u64 = 60_000;

/// How often the first live row of each lane is looked up and kept.
pub(super) const FIRST_ROWS_EVERY: Duration = Duration::from_secs(10);

/// What a written batch held.
#[derive(Default)]
pub(super) struct Built {
    pub(super) work: Vec<(WorkKey, Bytes)>,
    pub(super) ended_lists: Vec<ListKey>,
    /// Campaigns that are over and have met everybody.
    pub(super) walked_out: Vec<ListKey>,
    pub(super) events: Vec<log::Row>,
    /// What is pending when it is on disk.
    pub(super) pending: Option<Shares<Arc<str>>>,
}
