//! A lane: the rows of singles, and the rows that wait by themselves, that are in memory of it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::message::{Lane, UnixMillis};
use crate::schedule::Schedule;
use crate::schedule::ring::Ring;
use crate::schedule::step::Wake;
use crate::store::key::{self, DueKey, WorkKey};
use crate::store::live::Batch;
use crate::store::run::{Run, Source};
use crate::store::{ReadError, Store, family};

/// Rows of a lane, or rows of `due`, that are kept in memory at most.
pub(super) const ROWS: usize = 256;

/// What of a lane is in memory.
pub(super) struct LaneState {
    pub(super) singles: Singles,
    pub(super) due: Due,
    /// Lists with something left for this lane.
    pub(super) lists: Ring,
    pub(super) turn: usize,
}

/// Rows of singles, first in, first out.
pub(super) struct Singles {
    pub(super) ready: VecDeque<(WorkKey, u16, Option<Arc<Batch>>)>,
    /// Where reading goes on.
    pub(super) next: Vec<u8>,
    pub(super) last_seen: Option<WorkKey>,
    /// The newest row that is known to be on disk.
    pub(super) newest: Option<WorkKey>,
    /// Everything on disk up to `last_seen` was read.
    pub(super) exhausted: bool,
}

/// Rows of `due`.
pub(super) struct Due {
    pub(super) ready: VecDeque<DueKey>,
    pub(super) next: Vec<u8>,
    /// The time of the first row behind those that were read; None: there is none, as far as is known.
    pub(super) first: Option<UnixMillis>,
}

impl LaneState {
    /// Nothing is read yet: rows of singles begin at one key, rows of `due` at the other.
    pub(super) fn new(singles: Vec<u8>, due: Vec<u8>) -> LaneState {
        let singles = Singles { ready: VecDeque::new(), next: singles, last_seen: None, newest: None, exhausted: false };
        let due = Due { ready: VecDeque::new(), next: due, first: Some(UnixMillis(0)) };
        LaneState { singles, due, lists: Ring::default(), turn: 0 }
    }
}

impl Schedule {
    pub(super) fn pick_singles(&mut self, lane: Lane, most: u16) -> Option<Run> {
        let singles = &mut self.lanes.get_mut(&lane)?.singles;
        if singles.ready.is_empty() && !singles.exhausted && singles.read(&self.store, lane).is_err() {
            return None;
        }
        let (key, from, batch) = singles.ready.front_mut()?;
        let run = Run {
            lane,
            source: Source::Row(*key),
            from: *from,
            most: most.min(key.count - *from),
            origin: None,
            batch: batch.clone(),
        };
        *from += run.most;
        if *from == key.count {
            singles.ready.pop_front();
        }
        Some(run)
    }

    pub(super) fn pick_due(&mut self, lane: Lane, most: u16, now: UnixMillis, wake: &mut Wake) -> Option<Run> {
        let due = &mut self.lanes.get_mut(&lane)?.due;
        if due.ready.is_empty() {
            match due.first {
                Some(time) if time <= now => {}
                Some(time) => {
                    wake.at(time);
                    return None;
                }
                None => return None,
            }
            if due.read(&self.store, lane, now).is_err() {
                return None;
            }
        }
        let take = due.ready.len().min(usize::from(most));
        if take == 0 {
            wake.maybe(due.first);
            return None;
        }
        let keys: Vec<DueKey> = due.ready.drain(..take).collect();
        let most = u16::try_from(keys.len()).expect("at most a run");
        Some(Run { lane, source: Source::Due(keys), from: 0, most, origin: None, batch: None })
    }
}

impl Singles {
    fn read(&mut self, store: &Store, lane: Lane) -> Result<(), ReadError> {
        let end = key::after_prefix(&key::lane_prefix(lane));
        let mut rows = 0;
        store.reader()?.scan(family::WORK, &self.next.clone(), &end, |row, _| {
            match WorkKey::decode(row) {
                Ok(key) => {
                    self.ready.push_back((key, 0, None));
                    self.last_seen = Some(key);
                }
                Err(_) => store.corrupt(family::WORK),
            }
            self.next = key::just_behind(row);
            rows += 1;
            rows < ROWS
        })?;
        self.exhausted = rows < ROWS;
        if self.exhausted && self.last_seen < self.newest {
            // Rows up to the newest were there to be read; the last of them are done with already.
            self.last_seen = self.newest;
            self.next = self.next.clone().max(self.newest.map_or_else(Vec::new, |newest| key::just_behind(&newest.encode())));
        }
        Ok(())
    }
}

impl Due {
    pub(super) fn read(&mut self, store: &Store, lane: Lane, now: UnixMillis) -> Result<(), ReadError> {
        let end = key::after_prefix(&key::lane_prefix(lane));
        self.first = None;
        store.reader()?.scan(family::DUE, &self.next.clone(), &end, |row, _| {
            match DueKey::decode(row) {
                Ok(key) if key.time > now || self.ready.len() == ROWS => {
                    self.first = Some(key.time);
                    return false;
                }
                Ok(key) => self.ready.push_back(key),
                Err(_) => store.corrupt(family::DUE),
            }
            self.next = key::just_behind(row);
            true
        })
    }
}
