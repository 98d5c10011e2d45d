//! The writer's news: rows that are new or came back, and lists that began, changed or ended.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::message::{BatchId, Service, UnixMillis};
use crate::schedule::Schedule;
use crate::schedule::lane::{LaneState, ROWS};
use crate::schedule::list::ListRun;
use crate::schedule::pace::Pace;
use crate::schedule::step::{StepTurn, Wake};
use crate::store::key::{self, just_behind};
use crate::store::list_state;
use crate::store::live::{List, ListKey};
use crate::store::registry::walk::Shape;
use crate::store::writer::{Fresh, Latest, Settle};

impl Schedule {
    pub(super) fn learn(&mut self, latest: Latest, now: UnixMillis) {
        let Latest { fresh, newest, back_rows, back_chunks, back_stretches, due, lists } = latest;
        for fresh in fresh {
            self.learn_fresh(fresh);
        }
        for (lane, newest) in newest {
            let Some(state) = self.lanes.get_mut(&lane) else { continue };
            // A row that never came by as fresh is found on disk.
            state.singles.newest = Some(newest);
            if state.singles.exhausted && state.singles.last_seen.is_none_or(|seen| seen < newest) {
                state.singles.exhausted = false;
            }
        }
        for (lane, row) in back_rows {
            let Some(LaneState { singles, .. }) = self.lanes.get_mut(&lane) else { continue };
            // Rows behind it that are in memory are read again: what of them is in flight or has ended is not claimed twice.
            let back = row.encode();
            if back < singles.next {
                // Reading goes on from whichever comes first: what came back before may wait in memory ahead of this one.
                let first_ready = singles.ready.front().map(|(first, _, _)| first.encode());
                singles.next = first_ready.map_or(back.clone(), |first| first.min(back));
                singles.ready.clear();
                singles.exhausted = false;
                singles.last_seen = None;
            }
        }
        for (lane, time) in due {
            let Some(LaneState { due, .. }) = self.lanes.get_mut(&lane) else { continue };
            let back = key::due_prefix(lane, time);
            let mut first = due.first.map_or(time, |first| first.min(time));
            if back < due.next {
                // As with singles: nothing that is in memory ahead of it may be passed over.
                due.next = back;
                if let Some(ready) = due.ready.front() {
                    due.next = due.next.clone().min(ready.encode());
                    first = first.min(ready.time);
                }
                due.ready.clear();
            }
            due.first = Some(first);
        }
        self.unlearned.extend(lists);
        for ((key, service), chunk) in back_chunks {
            if let Some(run) = self.lists.get_mut(&key) {
                let cursor = run.cursors.entry(service).or_default();
                if chunk < cursor.next {
                    // As with singles.
                    cursor.next = cursor.ready.front().map_or(chunk, |(first, _)| chunk.min(first.chunk));
                    cursor.ready.clear();
                }
                self.offer_list(key, now);
            }
        }
        self.learn_stretches(back_stretches, now);
    }

    /// Lists that came, grew or changed otherwise, as many as a step has time for.
    pub(super) fn learn_lists(&mut self, now: UnixMillis, turn: StepTurn, wake: &mut Wake) {
        while let Some(key) = self.unlearned.pop_first() {
            match (self.lists.get_mut(&key), self.store.lists.get(key)) {
                (Some(_), None) => self.forget_list(key),
                (None, None) => {}
                (None, Some(list)) => self.know_list(key, list),
                (Some(_), Some(_)) => self.offer_list(key, now),
            }
            if turn.is_over() {
                wake.at(now);
                return;
            }
        }
    }

    /// Stretches that deliveries came back to: those that are still open are handed out again, and what of them is in flight or
    /// has ended is not claimed twice.
    fn learn_stretches(&mut self, stretches: HashSet<BatchId>, now: UnixMillis) {
        for batch in stretches {
            let BatchId::Stretch { lane, first, .. } = batch else { continue };
            let Some(key) = ListKey::of_batch(&batch) else { continue };
            let Some(run) = self.lists.get_mut(&key) else { continue };
            let shape = {
                let state = list_state(&run.list);
                let walk = state.walks.as_ref().and_then(|walks| walks.get(&lane.service));
                walk.and_then(|walk| walk.open.get(&first)).map(|open| open.shape.clone())
            };
            if let Some(shape) = shape {
                let ready = run.stretches.entry(lane.service).or_default();
                match ready.iter_mut().find(|(known, _)| known.first == first) {
                    Some((_, from)) => *from = 0,
                    None => ready.push_front((shape, 0)),
                }
                self.offer_list(key, now);
            }
        }
    }

    fn learn_fresh(&mut self, fresh: Fresh) {
        let Fresh { key, previous, batch } = fresh;
        let Some(LaneState { singles, .. }) = self.lanes.get_mut(&key.lane) else { return };
        if singles.last_seen.is_some_and(|seen| key <= seen) {
            return;
        }
        let follows = previous.is_none_or(|previous| singles.last_seen.is_some_and(|seen| previous <= seen));
        if singles.exhausted && follows && singles.ready.len() < ROWS {
            singles.next = just_behind(&key.encode());
            singles.ready.push_back((key, 0, batch));
            singles.last_seen = Some(key);
        } else {
            singles.exhausted = false;
        }
    }

    pub(super) fn know_list(&mut self, key: ListKey, list: Arc<List>) {
        let state = list_state(&list).clone();
        let message = &list.message;
        self.deadlines.insert((message.expires, key));
        self.beginnings.insert((message.at, key));
        // After a start some have ended already: only the others are still to be spread.
        let ended_before = state.counts.recipients - state.counts.pending();
        let spread = list.spread.map(|seconds| (message.at, seconds, state.counts.pending()));
        let pace = (state.rate.is_some() || spread.is_some()).then(|| Pace::new(state.rate, spread));
        let mut stretches: HashMap<Service, VecDeque<(Arc<Shape>, u16)>> = HashMap::new();
        for (service, walk) in state.walks.iter().flatten() {
            let opened = walk.open.values().filter(|open| !open.done).map(|open| (open.shape.clone(), 0));
            stretches.insert(*service, opened.collect());
        }
        let (path, asked, rate) = (None, false, state.rate);
        let run = ListRun { list, cursors: HashMap::new(), path, stretches, asked, pace, rate, ended_before };
        self.lists.insert(key, run);
    }

    pub(super) fn forget_list(&mut self, key: ListKey) {
        if let Some(run) = self.lists.remove(&key) {
            self.deadlines.remove(&(run.list.message.expires, key));
            self.beginnings.remove(&(run.list.message.at, key));
        }
    }

    /// Gives a list that has begun its turn in each lane where something of it is left.
    pub(super) fn offer_list(&mut self, key: ListKey, now: UnixMillis) {
        let Some(run) = self.lists.get_mut(&key) else { return };
        if run.list.message.at > now {
            return;
        }
        let state = list_state(&run.list);
        if state.over.is_some() {
            return;
        }
        if run.rate != state.rate {
            run.rate = state.rate;
            run.pace.get_or_insert_with(|| Pace::new(None, None)).set_rate(now, state.rate);
        }
        if run.list.wanted.is_some() {
            drop(state);
            return self.offer_campaign(key, now);
        }
        if let Some(pace) = &mut run.pace {
            pace.known(now, state.counts.recipients.saturating_sub(run.ended_before));
        }
        for (service, chunks) in &state.written {
            let cursor = run.cursors.entry(*service).or_default();
            if (!cursor.ready.is_empty() || cursor.next < *chunks)
                && let Some(lane) = self.lanes.get_mut(&run.list.lane(*service))
            {
                lane.lists.push(&run.list.message.app, key);
            }
        }
    }

    /// Gives a campaign its turn in each lane that it has still to walk; the writer begins it when its time has come.
    fn offer_campaign(&mut self, key: ListKey, now: UnixMillis) {
        let Some(run) = self.lists.get_mut(&key) else { return };
        let state = list_state(&run.list);
        let Some(walks) = &state.walks else {
            if !state.paused && !std::mem::replace(&mut run.asked, true) {
                drop(state);
                let _ended = self.settles.send(Settle::Begin(key));
            }
            return;
        };
        if let Some(pace) = &mut run.pace {
            // Serials, or places in lists, not those who belong: in either case evenly.
            pace.known(now, walks.values().map(|walk| walk.last + 1 - walk.cursor().min(walk.last + 1)).sum());
        }
        for (service, walk) in walks {
            let opened = run.stretches.get(service).is_some_and(|ready| !ready.is_empty());
            if (opened || walk.next <= walk.last)
                && let Some(lane) = self.lanes.get_mut(&run.list.lane(*service))
            {
                lane.lists.push(&run.list.message.app, key);
            }
        }
    }
}
