//! One moment of the scheduler: all that may be handed out now, service by service and lane by lane.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::message::{Lane, Rank, Service, UnixMillis, Urgency};
use crate::origin::health::Room;
use crate::origin::table::Table;
use crate::queue;
use crate::schedule::lane::LaneState;
use crate::schedule::list::ListRun;
use crate::services::Origins;
use crate::store::live::{ListKey, lanes_of};
use crate::store::run::Run;
use crate::store::writer::{News, Settle, first_row_key};
use crate::store::{ReadError, Store, family, key};

/// Deliveries of one run at most.
pub const RUN_MAX: u16 = 64;
/// How long free places wait for others, so that deliveries are read and sealed together. It is what a message waits longer for a push
/// service that answers slowly, and short beside what such an answer takes.
pub(super) const HELD_MILLIS: u64 = 10;

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
    pub(super) store: Arc<Store>,
    news: Arc<News>,
    origins: Arc<Table>,
    queues: Queues,
    pub(super) settles: queue::Sender<Settle>,
    services: Vec<Service>,
    pub(super) lanes: HashMap<Lane, LaneState>,
    pub(super) lists: HashMap<ListKey, ListRun>,
    /// Deadlines of lists, and the times of those that are not to begin yet.
    pub(super) deadlines: BTreeSet<(UnixMillis, ListKey)>,
    pub(super) beginnings: BTreeSet<(UnixMillis, ListKey)>,
    /// Lists that their pace, or the disk, keeps out of a lane until then.
    pub(super) paced: BTreeSet<(UnixMillis, ListKey, Lane)>,
    /// Lists of which there is news that no step has had time for.
    pub(super) unlearned: BTreeSet<ListKey>,
    first_service: usize,
    /// Until when a service's few free places wait for more.
    held: HashMap<Service, UnixMillis>,
}

/// How long a step lasts, about: news of something urgent waits for it.
const STEP_TIME: Duration = if cfg!(test) { Duration::from_secs(60) } else { Duration::from_millis(5) };

/// When a step began.
#[derive(Clone, Copy)]
pub(super) struct StepTurn(Instant);

impl StepTurn {
    /// Whether the rest is for the next step, which hears the news first.
    pub(super) fn is_over(self) -> bool {
        self.0.elapsed() >= STEP_TIME
    }
}

impl Schedule {
    /// Everything on disk is still to be read. Reads where each lane begins.
    pub fn new(
        store: Arc<Store>,
        news: Arc<News>,
        origins: Arc<Table>,
        queues: Queues,
        settles: queue::Sender<Settle>,
    ) -> Result<Schedule, ReadError> {
        let services: Vec<Service> = store.services.all().into_iter().map(|(service, _)| service).collect();
        let mut lanes = HashMap::new();
        for lane in services.iter().flat_map(|service| lanes_of(*service)) {
            let begin = |family| -> Result<Vec<u8>, ReadError> {
                let kept = store.reader()?.value(family::META, first_row_key(family, lane))?;
                Ok(kept.map_or_else(|| key::lane_prefix(lane), |kept| kept.to_vec()))
            };
            lanes.insert(lane, LaneState::new(begin(family::WORK)?, begin(family::DUE)?));
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
            unlearned: BTreeSet::new(),
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
        let turn = StepTurn(Instant::now());
        let latest = self.news.take();
        self.learn(latest, now);
        let mut wake = Wake::default();
        self.learn_lists(now, turn, &mut wake);
        self.end_lists(now, turn, &mut wake);
        self.begin_lists(now, turn, &mut wake);
        self.let_paced_go_on(now, &mut wake);
        // One run a service in turn, until none may have one.
        let mut busy: Vec<Service> = self.services.clone();
        let first = self.first_service % busy.len();
        busy.rotate_left(first);
        self.first_service = self.first_service.wrapping_add(1);
        while !busy.is_empty() {
            if turn.is_over() {
                wake.at(now);
                break;
            }
            busy.retain(|service| self.serve(*service, now, &mut wake));
        }
        wake.maybe(self.paced.first().map(|(time, ..)| *time));
        wake.0
    }

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
}

/// What a lane has to hand out.
pub(super) enum Picked {
    Run(Run),
    /// Nothing yet, and there is more to look at: others have their turns first.
    More,
    Nothing,
}

/// The earliest time at which something may be done without news.
#[derive(Default)]
pub(super) struct Wake(Option<UnixMillis>);

impl Wake {
    pub(super) fn at(&mut self, time: UnixMillis) {
        self.0 = Some(self.0.map_or(time, |known| known.min(time)));
    }

    pub(super) fn maybe(&mut self, time: Option<UnixMillis>) {
        if let Some(time) = time {
            self.at(time);
        }
    }
}
