//! Picks what is due, lane by lane, and hands out *runs*: a row, from where, how many at most. It sees keys, never a body.
//!
//! Promises. A run is handed out only if its origin has places for it. In a service the more urgent lane goes first; in a lane
//! singles, what waited by itself, and each list take turns, so none of them waits for more than one turn of the others. A closed
//! origin costs nothing but its probes. Memory holds a bounded number of rows per lane; what is behind them is on disk.
//!
//! [`Schedule::step`] does all that is to be done at one moment and says when to call it again. Time is passed in.

pub mod pace;
pub mod ring;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crossbeam_channel::Sender;

use crate::message::{BatchId, Ending, Lane, Rank, Service, UnixMillis, Urgency};
use crate::origin::health::Room;
use crate::origin::table::Table;
use crate::schedule::pace::Pace;
use crate::schedule::ring::Ring;
use crate::services::Origins;
use crate::store::key::{self, ChunkKey, DueKey, WorkKey};
use crate::store::live::{Batch, List, ListKey, lanes_of};
use crate::store::registry::walk::{Path, Shape};
use crate::store::run::{Run, Source};
use crate::store::writer::{Fresh, Latest, News, Settle, first_row_key};
use crate::store::{ReadError, Store, family, list_state};

/// Deliveries of one run at most.
pub const RUN_MAX: u16 = 64;
/// Rows of a lane, or rows of `due`, that are kept in memory at most.
const ROWS: usize = 256;
/// How long free places wait for others, so that deliveries are read and sealed together. It is what a message waits longer for a push
/// service that answers slowly, and short beside what such an answer takes.
const HELD_MILLIS: u64 = 10;

/// Lists that are looked at in one turn of their lane: one that has nothing to send may cost a look at the disk.
const LISTS_LOOKED_AT: usize = 16;
/// How long a list's pace may keep it out of its lane before it is looked at again.
const PACED_MILLIS: u64 = 60_000;
/// How long a list is left alone whose rows could not be read.
const UNREAD_MILLIS: u64 = 100;

/// The places where runs go: two ranks, bounded.
pub struct Queues {
    pub high: Sender<Run>,
    pub normal: Sender<Run>,
}

impl Queues {
    fn of(&self, rank: Rank) -> &Sender<Run> {
        match rank {
            Rank::High => &self.high,
            Rank::Normal => &self.normal,
        }
    }
}

/// The scheduler's state.
pub struct Schedule {
    store: Arc<Store>,
    news: Arc<News>,
    origins: Arc<Table>,
    queues: Queues,
    settles: Sender<Settle>,
    services: Vec<Service>,
    lanes: HashMap<Lane, LaneState>,
    lists: HashMap<ListKey, ListRun>,
    /// Deadlines of lists, and the times of those that are not to begin yet.
    deadlines: BTreeSet<(UnixMillis, ListKey)>,
    beginnings: BTreeSet<(UnixMillis, ListKey)>,
    /// Lists that their pace, or the disk, keeps out of a lane until then.
    paced: BTreeSet<(UnixMillis, ListKey, Lane)>,
    first_service: usize,
    /// Until when a service's few free places wait for more.
    held: HashMap<Service, UnixMillis>,
}

/// What of a lane is in memory.
struct LaneState {
    singles: Singles,
    due: Due,
    /// Lists with something left for this lane.
    lists: Ring,
    turn: usize,
}

/// Rows of singles, first in, first out.
struct Singles {
    ready: VecDeque<(WorkKey, u16, Option<Arc<Batch>>)>,
    /// Where reading goes on.
    next: Vec<u8>,
    last_seen: Option<WorkKey>,
    /// The newest row that is known to be on disk.
    newest: Option<WorkKey>,
    /// Everything on disk up to `last_seen` was read.
    exhausted: bool,
}

/// Rows of `due`.
struct Due {
    ready: VecDeque<DueKey>,
    next: Vec<u8>,
    /// The time of the first row behind those that were read; None: there is none, as far as is known.
    first: Option<UnixMillis>,
}

/// A list or a campaign that has not ended.
struct ListRun {
    list: Arc<List>,
    cursors: HashMap<Service, Cursor>,
    /// Of a campaign: where its candidates come from, and what of its stretches is to be handed out.
    path: Option<Path>,
    stretches: HashMap<Service, VecDeque<(Arc<Shape>, u16)>>,
    /// The writer was asked to begin it.
    asked: bool,
    pace: Option<Pace>,
    rate: Option<f64>,
    /// Recipients that had ended when this list was met.
    ended_before: u64,
}

#[derive(Default)]
struct Cursor {
    ready: VecDeque<(ChunkKey, u16)>,
    /// Number of the chunk to read next.
    next: u32,
}

impl Schedule {
    /// Everything on disk is still to be read. Reads where each lane begins.
    pub fn new(
        store: Arc<Store>,
        news: Arc<News>,
        origins: Arc<Table>,
        queues: Queues,
        settles: Sender<Settle>,
    ) -> Result<Schedule, ReadError> {
        let services: Vec<Service> = store.services.all().into_iter().map(|(service, _)| service).collect();
        let mut lanes = HashMap::new();
        for lane in services.iter().flat_map(|service| lanes_of(*service)) {
            let begin = |family| -> Result<Vec<u8>, ReadError> {
                let kept = store.reader()?.value(family::META, first_row_key(family, lane))?;
                Ok(kept.map_or_else(|| key::lane_prefix(lane), |kept| kept.to_vec()))
            };
            let singles =
                Singles { ready: VecDeque::new(), next: begin(family::WORK)?, last_seen: None, newest: None, exhausted: false };
            let due = Due { ready: VecDeque::new(), next: begin(family::DUE)?, first: Some(UnixMillis(0)) };
            lanes.insert(lane, LaneState { singles, due, lists: Ring::default(), turn: 0 });
        }
        let mut schedule = Schedule {
            store: store.clone(),
            news,
            origins,
            queues,
            settles,
            services,
            lanes,
            lists: HashMap::new(),
            deadlines: BTreeSet::new(),
            beginnings: BTreeSet::new(),
            paced: BTreeSet::new(),
            first_service: 0,
            held: HashMap::new(),
        };
        for (key, list) in store.lists.all() {
            schedule.know_list(key, list);
        }
        Ok(schedule)
    }

    /// Hands out all that may be handed out now. Gives the time at which more may be, without any news; None: only news will
    /// tell.
    pub fn step(&mut self, now: UnixMillis) -> Option<UnixMillis> {
        let latest = self.news.take();
        self.learn(latest, now);
        let mut wake = Wake::default();
        self.end_lists(now, &mut wake);
        self.begin_lists(now, &mut wake);
        self.let_paced_go_on(now, &mut wake);
        // One run a service in turn, until none may have one.
        let mut busy: Vec<Service> = self.services.clone();
        let first = self.first_service % busy.len();
        busy.rotate_left(first);
        self.first_service = self.first_service.wrapping_add(1);
        while !busy.is_empty() {
            busy.retain(|service| self.serve(*service, now, &mut wake));
        }
        wake.maybe(self.paced.first().map(|(time, ..)| *time));
        wake.0
    }

    // ---- what is new ----

    fn learn(&mut self, latest: Latest, now: UnixMillis) {
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
        for key in lists {
            match (self.lists.get_mut(&key), self.store.lists.get(key)) {
                (Some(_), None) => self.forget_list(key),
                (None, None) => {}
                (None, Some(list)) => self.know_list(key, list),
                (Some(_), Some(_)) => self.offer_list(key, now),
            }
        }
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

    fn know_list(&mut self, key: ListKey, list: Arc<List>) {
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

    fn forget_list(&mut self, key: ListKey) {
        if let Some(run) = self.lists.remove(&key) {
            self.deadlines.remove(&(run.list.message.expires, key));
            self.beginnings.remove(&(run.list.message.at, key));
        }
    }

    /// Gives a list that has begun its turn in each lane where something of it is left.
    fn offer_list(&mut self, key: ListKey, now: UnixMillis) {
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

    fn end_lists(&mut self, now: UnixMillis, wake: &mut Wake) {
        while let Some(&(time, key)) = self.deadlines.first() {
            if time > now {
                wake.at(time);
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

    fn begin_lists(&mut self, now: UnixMillis, wake: &mut Wake) {
        while let Some(&(time, key)) = self.beginnings.first() {
            if time > now {
                wake.at(time);
                return;
            }
            self.beginnings.pop_first();
            self.offer_list(key, now);
        }
    }

    fn let_paced_go_on(&mut self, now: UnixMillis, wake: &mut Wake) {
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

    // ---- handing out ----

    /// Hands out one run of a service; false if it may have none now.
    fn serve(&mut self, service: Service, now: UnixMillis, wake: &mut Wake) -> bool {
        let origin = match self.store.services.origins(service) {
            None => return false,
            Some(Origins::One(origin)) => Some(origin),
            Some(Origins::Several) => None,
        };
        let closed = origin.as_ref().is_some_and(|origin| !self.origins.is_open(origin));
        for urgency in Urgency::ALL {
            let lane = Lane { service, urgency };
            let rank = urgency.rank();
            if self.queues.of(rank).is_full() {
                // A worker that takes a run rings.
                continue;
            }
            let Room { free, enough } = match &origin {
                Some(origin) => self.origins.room(origin, now, rank),
                None => self.origins.service_room(service, rank),
            };
            if free == 0 {
                if closed && self.has_work(lane, now) {
                    wake.maybe(origin.as_ref().and_then(|origin| self.origins.next_wake(origin)));
                }
                continue;
            }
            if !enough && self.holds(lane, now, wake) {
                continue;
            }
            let most = if closed { 1 } else { u16::try_from(free).unwrap_or(RUN_MAX).min(RUN_MAX) };
            let picked = match self.pick(lane, most, now, wake) {
                Picked::Run(run) => Some(run),
                Picked::More => return true,
                Picked::Nothing => None,
            };
            if let Some(mut run) = picked {
                self.held.remove(&service);
                run.origin = origin.clone();
                self.origins.handed_out(service, origin.as_ref(), now, usize::from(run.most));
                if let Err(refused) = self.queues.of(rank).try_send(run) {
                    // Only this thread sends, and there was a place: the workers have ended.
                    let run = refused.into_inner();
                    self.origins.unsent(service, run.origin.as_ref(), usize::from(run.most));
                    return false;
                }
                return true;
            }
        }
        false
    }

    /// Whether a lane with something to send leaves few free places to wait for more: [`HELD_MILLIS`] from when it first could.
    fn holds(&mut self, lane: Lane, now: UnixMillis, wake: &mut Wake) -> bool {
        if !self.has_work(lane, now) {
            return false;
        }
        let until = *self.held.entry(lane.service).or_insert(now.plus(HELD_MILLIS));
        // A clock that was put back is no reason to wait for the old time to come round again.
        let holds = now < until && until <= now.plus(HELD_MILLIS);
        if holds {
            wake.at(until);
        }
        holds
    }

    /// Whether a lane has anything that could be sent. What is not known to be empty counts as work.
    fn has_work(&self, lane: Lane, now: UnixMillis) -> bool {
        self.lanes.get(&lane).is_some_and(|state| {
            !state.singles.ready.is_empty()
                || !state.singles.exhausted
                || !state.due.ready.is_empty()
                || state.due.first.is_some_and(|time| time <= now)
                || !state.lists.is_empty()
        })
    }

    /// The next run of a lane: singles, due rows and lists take turns.
    fn pick(&mut self, lane: Lane, most: u16, now: UnixMillis, wake: &mut Wake) -> Picked {
        const TURNS: usize = 3;
        let Some(turn) = self.lanes.get(&lane).map(|state| state.turn) else { return Picked::Nothing };
        let mut more = false;
        for offset in 0..TURNS {
            let kind = (turn + offset) % TURNS;
            let run = match kind {
                0 => self.pick_singles(lane, most),
                1 => self.pick_due(lane, most, now, wake),
                _ => match self.pick_list(lane, most, now) {
                    Picked::Run(run) => Some(run),
                    Picked::More => {
                        more = true;
                        None
                    }
                    Picked::Nothing => None,
                },
            };
            if let Some(run) = run {
                if let Some(state) = self.lanes.get_mut(&lane) {
                    state.turn = kind + 1;
                }
                return Picked::Run(run);
            }
        }
        if more { Picked::More } else { Picked::Nothing }
    }

    fn pick_singles(&mut self, lane: Lane, most: u16) -> Option<Run> {
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

    fn pick_due(&mut self, lane: Lane, most: u16, now: UnixMillis, wake: &mut Wake) -> Option<Run> {
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

    /// Looks at a few lists in turn. Each that gives no run leaves the lane, so none is looked at again before there is a reason.
    fn pick_list(&mut self, lane: Lane, most: u16, now: UnixMillis) -> Picked {
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

/// What a lane has to hand out.
enum Picked {
    Run(Run),
    /// Nothing yet, and there is more to look at: others have their turns first.
    More,
    Nothing,
}

enum Turn {
    Took(Run),
    /// Its pace, or the disk, says not before then.
    Later(UnixMillis),
    /// Nothing left, paused, or over: it is offered again when something changes.
    Leaves,
}

/// The earliest time at which something may be done without news.
#[derive(Default)]
struct Wake(Option<UnixMillis>);

impl Wake {
    fn at(&mut self, time: UnixMillis) {
        self.0 = Some(self.0.map_or(time, |known| known.min(time)));
    }

    fn maybe(&mut self, time: Option<UnixMillis>) {
        if let Some(time) = time {
            self.at(time);
        }
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
            self.next = just_behind(row);
            rows += 1;
            rows < ROWS
        })?;
        self.exhausted = rows < ROWS;
        if self.exhausted && self.last_seen < self.newest {
            // Rows up to the newest were there to be read; the last of them are done with already.
            self.last_seen = self.newest;
            self.next = self.next.clone().max(self.newest.map_or_else(Vec::new, |newest| just_behind(&newest.encode())));
        }
        Ok(())
    }
}

impl Due {
    fn read(&mut self, store: &Store, lane: Lane, now: UnixMillis) -> Result<(), ReadError> {
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
            self.next = just_behind(row);
            true
        })
    }
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

/// The first key behind `key`.
fn just_behind(key: &[u8]) -> Vec<u8> {
    let mut behind = key.to_vec();
    behind.push(0);
    behind
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use crossbeam_channel::{Receiver, bounded, unbounded};

    use super::*;
    use crate::message::Origin;
    use crate::origin::health::Heard;
    use crate::store::{Rows, testing};

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const HOST: &str = "push.example.net";

    struct Played {
        schedule: Schedule,
        service: Service,
        origin: Origin,
        table: Arc<Table>,
        high: Receiver<Run>,
        normal: Receiver<Run>,
        _directory: tempfile::TempDir,
    }

    /// A scheduler over a store with these rows of singles, whose one service has one origin.
    fn played(rows: &[(Urgency, u64, u16)]) -> Played {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Arc::new(Store::open(directory.path(), &testing::settings(), &[HOST.to_owned()]).expect("it opens"));
        let service = store.service_of(HOST).expect("it is allowed");
        let origin = Origin(Arc::from(format!("https://{HOST}")));
        let mut put = Rows::new();
        {
            let reader = store.reader().expect("open");
            let mut name = b"origin/".to_vec();
            name.extend_from_slice(&service.0.to_be_bytes());
            name.extend_from_slice(origin.0.as_bytes());
            put.put(&reader, family::META, name, []);
            for (urgency, commit, count) in rows {
                let key = WorkKey { lane: Lane { service, urgency: *urgency }, commit: *commit, piece: 0, count: *count };
                put.put(&reader, family::WORK, key.encode(), []);
            }
        }
        store.write(put).expect("written");
        drop(store);
        let store = Arc::new(Store::open(directory.path(), &testing::settings(), &[HOST.to_owned()]).expect("it opens"));
        let (wake, _rung) = bounded(1);
        let (high_in, high) = bounded(64);
        let (normal_in, normal) = bounded(64);
        let (settles, _writer) = unbounded();
        let table = Arc::new(Table::new(16, |_| 1_000));
        let queues = Queues { high: high_in, normal: normal_in };
        let schedule = Schedule::new(store, Arc::new(News::new(wake)), table.clone(), queues, settles).expect("it reads");
        Played { schedule, service, origin, table, high, normal, _directory: directory }
    }

    impl Played {
        fn lane(&self, urgency: Urgency) -> Lane {
            Lane { service: self.service, urgency }
        }

        /// Commits of the runs that a step hands out, the high rank first, and how many deliveries each has.
        fn step(&mut self, now: UnixMillis) -> Vec<(u64, u16)> {
            self.schedule.step(now);
            let commit = |run: Run| match run.source {
                Source::Row(key) => (key.commit, run.most),
                _ => panic!("only rows of singles are here"),
            };
            self.high.try_iter().chain(self.normal.try_iter()).map(commit).collect()
        }

        fn answer(&self, now: UnixMillis, n: usize, heard: Heard) {
            (0..n).for_each(|_| self.table.answered(self.service, &self.origin, now, Some(heard), None));
        }

        fn back(&mut self, lane: Lane, commit: u64, count: u16) {
            let key = WorkKey { lane, commit, piece: 0, count };
            let latest = Latest { back_rows: HashMap::from([(lane, key)]), ..Latest::default() };
            self.schedule.learn(latest, NOW);
        }
    }

    #[test]
    fn the_more_urgent_lane_goes_first_whatever_its_age() {
        let mut played =
            played(&[(Urgency::Low, 1, 4), (Urgency::VeryLow, 2, 4), (Urgency::Normal, 3, 4), (Urgency::High, 4, 4)]);
        assert_eq!(played.step(NOW), [(4, 4), (3, 4), (1, 4), (2, 4)]);
    }

    #[test]
    fn a_window_bounds_what_is_handed_out() {
        let mut played = played(&[(Urgency::Normal, 1, 200)]);
        let all: u16 = played.step(NOW).iter().map(|(_, most)| most).sum();
        assert_eq!(all, 29, "the start window less the tenth for the high rank");
        assert!(played.step(NOW).is_empty());
        played.answer(NOW, 29, Heard::Answer);
        assert!(!played.step(NOW).is_empty());
    }

    #[test]
    fn few_places_wait_a_moment_for_more() {
        let mut played = played(&[(Urgency::Normal, 1, 200)]);
        played.step(NOW);
        played.answer(NOW, 2, Heard::Answer);
        assert_eq!(played.schedule.step(NOW), Some(NOW.plus(HELD_MILLIS)), "it comes back by itself");
        assert!(played.step(NOW.plus(HELD_MILLIS - 1)).is_empty());
        // Nothing else is ever heard.
        assert_eq!(played.step(NOW.plus(HELD_MILLIS)), [(1, 2)]);
        played.answer(NOW, 2, Heard::Answer);
        let later = NOW.plus(60_000);
        assert!(played.step(later).is_empty(), "they wait anew");
        played.answer(NOW, 2, Heard::Answer);
        assert_eq!(played.step(later), [(1, 4)], "four are enough of a window of 32");
    }

    #[test]
    fn a_service_down_for_three_hours_gets_its_first_post_within_thirty_seconds_of_its_return() {
        let mut played = played(&[(Urgency::High, 1, 40), (Urgency::Normal, 2, 40)]);
        let handed: u16 = played.step(NOW).iter().map(|(_, most)| most).sum();
        played.answer(NOW, usize::from(handed), Heard::Condemned { not_before: None });
        played.back(played.lane(Urgency::High), 1, 40);
        let (mut now, returns) = (NOW, NOW.plus(3 * 3_600_000 + 12_345));
        let mut probes = 0;
        loop {
            // The loop of the thread: it sleeps as long as it is told, half a second at most.
            let wake = played.schedule.step(now);
            let runs: Vec<Run> = played.high.try_iter().chain(played.normal.try_iter()).collect();
            if let [run] = &runs[..] {
                assert_eq!((run.most, run.lane.urgency), (1, Urgency::High), "one probe, of the most urgent");
                if now >= returns {
                    break;
                }
                probes += 1;
                played.answer(now, 1, Heard::Condemned { not_before: None });
                played.back(played.lane(Urgency::High), 1, 40);
                continue;
            }
            assert!(runs.is_empty(), "a closed lane is sent probes only");
            let sleep = wake.map_or(500, |wake| wake.since(now).clamp(1, 500));
            now = now.plus(sleep);
            assert!(now.since(returns) <= 31_000, "nothing was sent {} ms after its return", now.since(returns));
        }
        assert!(now.since(returns) <= 30_000, "{}", now.since(returns));
        assert!((360..=370).contains(&probes), "{probes} probes: a closed lane costs one each 30 s");
        played.answer(now, 1, Heard::Answer);
        assert!(!played.step(now).is_empty(), "it is open");
    }

    #[test]
    fn what_came_back_is_not_passed_over_when_more_comes_back() {
        let rows: Vec<_> = (1..=8).map(|commit| (Urgency::Normal, commit, 1)).collect();
        let mut played = played(&rows);
        assert_eq!(played.step(NOW).len(), 8);
        played.answer(NOW, 3, Heard::Condemned { not_before: None });
        let lane = played.lane(Urgency::Normal);
        for commit in [2, 3, 4] {
            played.back(lane, commit, 1);
        }
        let probe = NOW.plus(1_000);
        assert_eq!(played.step(probe), [(2, 1)], "the probe is the oldest that waits");
        // The answers to what left before come late, and one of them to a row behind.
        played.answer(probe, 1, Heard::Condemned { not_before: None });
        played.back(lane, 6, 1);
        played.answer(probe, 4, Heard::Answer);
        let commits: Vec<u64> = played.step(probe.plus(60_000)).iter().map(|(commit, _)| *commit).collect();
        assert!(commits.starts_with(&[3, 4]), "{commits:?}");
        assert!(commits.contains(&6), "{commits:?}");
    }

    #[test]
    fn due_rows_that_came_back_are_not_passed_over_either() {
        let mut played = played(&[]);
        let lane = played.lane(Urgency::Normal);
        let key = |time: u64| {
            let batch = BatchId::Commit { commit: time, lane, piece: 0 };
            DueKey { lane, time: NOW.plus(time), delivery: crate::message::DeliveryId { batch, index: 0 } }
        };
        let mut rows = Rows::new();
        {
            let reader = played.schedule.store.reader().expect("open");
            (1..=5).for_each(|time| rows.put(&reader, family::DUE, key(time).encode(), Bytes::new()));
        }
        played.schedule.store.write(rows).expect("written");
        let due = &mut played.schedule.lanes.get_mut(&lane).expect("it is known").due;
        due.read(&played.schedule.store, lane, NOW.plus(10)).expect("read");
        assert_eq!(due.ready.pop_front(), Some(key(1)));
        assert_eq!(due.ready.front(), Some(&key(2)));
        let latest = Latest { due: HashMap::from([(lane, NOW.plus(4))]), ..Latest::default() };
        played.schedule.learn(latest, NOW.plus(10));
        let due = &mut played.schedule.lanes.get_mut(&lane).expect("it is known").due;
        assert_eq!(due.first, Some(NOW.plus(2)));
        due.read(&played.schedule.store, lane, NOW.plus(10)).expect("read");
        assert_eq!(due.ready.iter().copied().collect::<Vec<_>>(), (2..=5).map(key).collect::<Vec<_>>());
    }
}
