//! Lists and campaigns: when they begin and end, and the next run of one.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::message::{Ending, Lane, Service, UnixMillis};
use crate::schedule::pace::Pace;
use crate::schedule::step::{Picked, StepTurn, Wake};
use crate::schedule::{RUN_MAX, Schedule};
use crate::store::key::{self, ChunkKey};
use crate::store::live::{List, ListKey};
use crate::store::registry::walk::{Path, Shape};
use crate::store::run::{Run, Source};
use crate::store::writer::Settle;
use crate::store::{ReadError, Store, family, list_state};

/// Lists that are looked at in one turn of their lane: one that has nothing to send may cost a look at the disk.
const LISTS_LOOKED_AT: usize = 16;
/// How long a list's pace may keep it out of its lane before it is looked at again.
const PACED_MILLIS: u64 = 60_000;
/// How long a list is left alone whose rows could not be read.
const UNREAD_MILLIS: u64 = 100;

/// A list or a campaign that has not ended.
pub(super) struct ListRun {
    pub(super) list: Arc<List>,
    pub(super) cursors: HashMap<Service, Cursor>,
    /// Of a campaign: where its candidates come from, and what of its stretches is to be handed out.
    pub(super) path: Option<Path>,
    pub(super) stretches: HashMap<Service, VecDeque<(Arc<Shape>, u16)>>,
    /// The writer was asked to begin it.
    pub(super) asked: bool,
    pub(super) pace: Option<Pace>,
    pub(super) rate: Option<f64>,
    /// Recipients that had ended when this list was met.
    pub(super) ended_before: u64,
}

#[derive(Default)]
pub(super) struct Cursor {
    pub(super) ready: VecDeque<(ChunkKey, u16)>,
    /// Number of the chunk to read next.
    pub(super) next: u32,
}

impl Schedule {
    pub(super) fn end_lists(&mut self, now: UnixMillis, turn: StepTurn, wake: &mut Wake) {
        while let Some(&(time, key)) = self.deadlines.first() {
            if time > now || turn.is_over() {
                wake.at(time.max(now));
                return;
            }
            self.deadlines.pop_first();
            if self.store.lists.get(key).is_some() {
                // A writer that has ended takes nothing, and the process ends with it.
                let _ended = self.settles.send(Settle::Over(key, Ending::Expired));
            }
            self.forget_list(key);
        }
    }

    pub(super) fn begin_lists(&mut self, now: UnixMillis, turn: StepTurn, wake: &mut Wake) {
        while let Some(&(time, key)) = self.beginnings.first() {
            if time > now || turn.is_over() {
                wake.at(time.max(now));
                return;
            }
            self.beginnings.pop_first();
            self.offer_list(key, now);
        }
    }

    pub(super) fn let_paced_go_on(&mut self, now: UnixMillis, wake: &mut Wake) {
        while let Some(&(time, key, lane)) = self.paced.first() {
            // A clock that was put back is no reason to wait for the old time to come round again.
            if time > now && time <= now.plus(PACED_MILLIS) {
                wake.at(time);
                return;
            }
            self.paced.pop_first();
            // Whether something of it is left for this lane is found when its turn comes.
            if let (Some(run), Some(state)) = (self.lists.get(&key), self.lanes.get_mut(&lane)) {
                state.lists.push(&run.list.message.app, key);
            }
        }
    }

    /// Looks at a few lists in turn. Each that gives no run leaves the lane, so none is looked at again before there is a reason.
    pub(super) fn pick_list(&mut self, lane: Lane, most: u16, now: UnixMillis) -> Picked {
        for _ in 0..LISTS_LOOKED_AT {
            let Some(key) = self.lanes.get_mut(&lane).and_then(|state| state.lists.pop()) else { return Picked::Nothing };
            match self.pick_chunk(key, lane, most, now) {
                Turn::Took(run) => {
                    if let (Some(state), Some(of)) = (self.lanes.get_mut(&lane), self.lists.get(&key)) {
                        state.lists.push(&of.list.message.app, key);
                    }
                    return Picked::Run(run);
                }
                Turn::Later(time) => {
                    self.paced.insert((time, key, lane));
                }
                // It comes back with news.
                Turn::Leaves => {}
            }
        }
        Picked::More
    }

    fn pick_chunk(&mut self, key: ListKey, lane: Lane, most: u16, now: UnixMillis) -> Turn {
        let Some(run) = self.lists.get_mut(&key) else { return Turn::Leaves };
        let message = &run.list.message;
        let (over, paused, chunks) = {
            let state = list_state(&run.list);
            (state.over.is_some(), state.paused, state.written.get(&lane.service).copied().unwrap_or(0))
        };
        if over || paused || self.store.rules.load().pauses(message.id, &message.app, message.label.as_ref()) {
            return Turn::Leaves;
        }
        let allowed = match &mut run.pace {
            None => usize::from(most),
            Some(pace) => {
                let allowed = pace.allowed(now);
                if allowed == 0 {
                    return Turn::Later(pace.next(now).clamp(now.plus(1), now.plus(PACED_MILLIS)));
                }
                allowed.min(usize::from(most))
            }
        };
        if run.list.wanted.is_some() {
            return match run.pick_stretch(&self.store, lane, allowed) {
                Ok(Some(picked)) => {
                    if let Some(pace) = &mut run.pace {
                        pace.took(usize::from(picked.most));
                    }
                    Turn::Took(picked)
                }
                Ok(None) => {
                    // Whether all of it is done is for the writer to see.
                    let _ended = self.settles.send(Settle::Walked(key));
                    Turn::Leaves
                }
                Err(ReadError) => Turn::Later(now.plus(UNREAD_MILLIS)),
            };
        }
        let cursor = run.cursors.entry(lane.service).or_default();
        if cursor.ready.is_empty() && cursor.next < chunks && cursor.read(&self.store, key, lane.service, chunks).is_err() {
            return Turn::Later(now.plus(UNREAD_MILLIS));
        }
        let Some((chunk, from)) = cursor.ready.front_mut() else { return Turn::Leaves };
        let most = u16::try_from(allowed).unwrap_or(RUN_MAX).min(chunk.count - *from);
        let source = Source::Chunk(*chunk, run.list.clone());
        let picked = Run { lane, source, from: *from, most, origin: None, batch: None };
        *from += most;
        if *from == chunk.count {
            cursor.ready.pop_front();
        }
        if let Some(pace) = &mut run.pace {
            pace.took(usize::from(most));
        }
        Turn::Took(picked)
    }
}

impl ListRun {
    /// The next run of a campaign in a lane. None: its walk has come to its end.
    fn pick_stretch(&mut self, store: &Store, lane: Lane, allowed: usize) -> Result<Option<Run>, ReadError> {
        let ready = self.stretches.entry(lane.service).or_default();
        if ready.is_empty() {
            let path = match &mut self.path {
                Some(path) => path,
                None => {
                    let Some(wanted) = &self.list.wanted else { return Ok(None) };
                    self.path.insert(store.path(wanted)?)
                }
            };
            match store.open_stretch(&self.list, path, lane.service)? {
                Some(shape) => ready.push_back((shape, 0)),
                None => return Ok(None),
            }
        }
        let Some((shape, from)) = ready.front_mut() else { return Ok(None) };
        let batch = self.list.stretch(lane.service, shape.first);
        let places = u16::try_from(shape.len()).expect("a stretch has at most 512 places");
        let most = u16::try_from(allowed).unwrap_or(RUN_MAX).min(RUN_MAX).min(places - *from);
        let source = Source::Stretch(batch, shape.clone(), self.list.clone());
        let run = Run { lane, source, from: *from, most, origin: None, batch: None };
        *from += most;
        if *from == places {
            ready.pop_front();
        }
        Ok(Some(run))
    }
}

enum Turn {
    Took(Run),
    /// Its pace, or the disk, says not before then.
    Later(UnixMillis),
    /// Nothing left, paused, or over: it is offered again when something changes.
    Leaves,
}

impl Cursor {
    fn read(&mut self, store: &Store, list: ListKey, service: Service, chunks: u32) -> Result<(), ReadError> {
        let start = ChunkKey { commit: list.commit, place: list.place, service, chunk: self.next, count: 0 }.encode();
        let end = key::after_prefix(&key::list_service_prefix(list.commit, list.place, service));
        store.reader()?.scan(family::LIST, &start, &end, |row, _| {
            match ChunkKey::decode(row) {
                Ok(key) => {
                    self.ready.push_back((key, 0));
                    self.next = key.chunk + 1;
                }
                Err(_) => store.corrupt(family::LIST),
            }
            self.ready.len() < 16
        })?;
        if self.ready.is_empty() {
            // All that is left has no row any more.
            self.next = chunks;
        }
        Ok(())
    }
}
