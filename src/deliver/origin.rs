//! One origin: its queue of two ranks, its connections, and the rules by which the one goes to the other.
//!
//! Nothing here does I/O or reads a clock. Connections come to the desk ([`Destination::pull`]) with what has ended and go
//! away with what they shall send, under one short lock. What must be done beside (wake a connection, open one, answer what
//! cannot be sent) is told in a [`Plan`], which is acted on outside the lock.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use http::HeaderValue;
use http::uri::Authority;

use super::parcel::Parcel;
use super::{OriginStatus, Protocol};
use crate::clock;
use crate::complaint::Repeated;
use crate::message::{ConnectFailure, Origin, Rank, UnixMillis};

/// Streams of one connection at most, whatever the peer allows.
pub(super) const STREAMS_MAX: usize = 1_000;
/// What a connection is taken to carry before one was open.
pub(super) const STREAMS_ASSUMED: usize = 100;
/// Parcels that a connection takes at a time: another one gets its turn, and high rank is looked at again.
const SLICE: usize = 64;
/// When a further connection could not be opened, the open ones carry on alone for this long.
const FURTHER_PAUSE: Duration = Duration::from_secs(5);
/// Connections in a row that the peer ended before it had answered anything: then the origin counts as not connected.
const BARREN_MAX: u8 = 3;
/// How long an origin that has flooded a connection is not connected to. Its lane waits as long before it probes; this is for a peer
/// that answers first, floods then, and so would never be condemned by an answer.
const FLOOD_PAUSE: Duration = Duration::from_secs(1);
/// Retiring connections count against this multiple of `connections_per_origin`.
const RETIRING_FACTOR: usize = 4;

const _: () = assert!(STREAMS_ASSUMED <= STREAMS_MAX);

/// An origin and all that waits for it.
pub(super) struct Destination {
    pub(super) origin: Origin,
    /// For `:authority`.
    pub(super) authority: Authority,
    /// For `Host`.
    pub(super) host: HeaderValue,
    connections_max: usize,
    /// Why the last connection did not come about.
    pub(super) not_connected: Repeated<ConnectFailure>,
    state: Mutex<State>,
}

struct State {
    high: VecDeque<Parcel>,
    normal: VecDeque<Parcel>,
    places: Vec<Place>,
    next_place: u64,
    /// At most one connection is being opened at a time, and all that is queued waits for it.
    connecting: bool,
    further_not_before: Option<Instant>,
    /// Since when it is not connected to for [`FLOOD_PAUSE`].
    flooded: Option<Instant>,
    barren: u8,
    /// What the last connection carried.
    streams_known: Option<usize>,
    protocol: Option<Protocol>,
    phase: Phase,
    used: Instant,
    last_failure: Option<(ConnectFailure, UnixMillis)>,
    opened: u64,
    resends: u64,
    timeouts: u64,
}

/// A connection, as its origin sees it.
struct Place {
    id: u64,
    limit: usize,
    in_flight: usize,
    normal: usize,
    /// It was given something to send.
    used: bool,
    answered: bool,
    /// Takes nothing new.
    retiring: bool,
    waker: Option<Waker>,
}

impl Place {
    fn free(&self) -> usize {
        if self.retiring { 0 } else { self.limit.saturating_sub(self.in_flight) }
    }
}

/// `Open` -> `Draining` -> `Closed`, or `Open` -> `Evicted`: never back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// The pool stops: what is queued is answered, what is in flight is let finish.
    Draining,
    /// What is in flight is given up.
    Closed,
    /// Unused and removed from the pool's table: whoever still holds it must look it up again.
    Evicted,
}

/// What a connection tells when it comes for more. The counters start again at 0 after each telling.
#[derive(Default)]
pub(super) struct Report {
    /// Streams that the peer allows at the moment, at most [`STREAMS_MAX`].
    pub(super) limit: usize,
    /// Streams that are open.
    pub(super) in_flight: usize,
    /// Streams of high and normal rank that have ended, answered or put back, since the last telling.
    pub(super) ended: [usize; 2],
    /// The peer has answered something.
    pub(super) answered: bool,
    /// Not processed by the peer: they go to the front of the queue.
    pub(super) put_back: Vec<Parcel>,
    pub(super) resends: u64,
    pub(super) timeouts: u64,
}

impl Report {
    /// One stream of `rank` has ended.
    pub(super) fn end(&mut self, rank: Rank) {
        self.ended[rank as usize] += 1;
    }
}

/// What is to be done outside the lock.
#[derive(Default)]
#[must_use]
pub(super) struct Plan {
    pub(super) wake: Vec<Waker>,
    /// Open a connection; whoever takes the plan must end it with `connected` or `connect_failed`.
    pub(super) connect: bool,
    pub(super) fail: Option<(ConnectFailure, Vec<Parcel>)>,
    /// The pool stops: to be answered so.
    pub(super) stop: Vec<Parcel>,
}

/// Why parcels were not taken.
pub(super) enum NotTaken {
    Evicted(Vec<Parcel>),
    Stopped(Vec<Parcel>),
}

impl Destination {
    /// None if the origin has no proper authority, which `endpoint` does not let happen.
    pub(super) fn new(origin: Origin, connections_max: usize, now: Instant) -> Option<Destination> {
        let authority: Authority = origin.authority().parse().ok()?;
        let host = HeaderValue::from_str(origin.authority()).ok()?;
        let state = State {
            high: VecDeque::new(),
            normal: VecDeque::new(),
            places: Vec::new(),
            next_place: 0,
            connecting: false,
            further_not_before: None,
            flooded: None,
            barren: 0,
            streams_known: None,
            protocol: None,
            phase: Phase::Open,
            used: now,
            last_failure: None,
            opened: 0,
            resends: 0,
            timeouts: 0,
        };
        Some(Destination {
            origin,
            authority,
            host,
            connections_max: connections_max.max(1),
            not_connected: Repeated::new(),
            state: Mutex::new(state),
        })
    }

    /// Queues parcels behind those of their rank.
    pub(super) fn post(&self, parcels: Vec<Parcel>, now: Instant) -> Result<Plan, NotTaken> {
        let mut state = self.lock();
        match state.phase {
            Phase::Open => {}
            Phase::Evicted => return Err(NotTaken::Evicted(parcels)),
            Phase::Draining | Phase::Closed => return Err(NotTaken::Stopped(parcels)),
        }
        state.used = now;
        for parcel in parcels {
            state.queue(parcel.rank()).push_back(parcel);
        }
        Ok(state.plan_or_fail(self.connections_max, now))
    }

    /// A connection is open: it gets a place.
    pub(super) fn connected(&self, protocol: Protocol, limit: usize) -> u64 {
        let mut state = self.lock();
        state.connecting = false;
        state.further_not_before = None;
        state.protocol = Some(protocol);
        state.streams_known = Some(limit);
        state.opened += 1;
        let id = state.next_place;
        state.next_place += 1;
        state.places.push(Place {
            id,
            limit,
            in_flight: 0,
            normal: 0,
            used: false,
            answered: false,
            retiring: false,
            waker: None,
        });
        id
    }

    /// No connection came about. If none is open either, all that is queued has failed; else the open ones carry on.
    pub(super) fn connect_failed(&self, failure: ConnectFailure, now: Instant) -> Plan {
        let mut state = self.lock();
        state.connecting = false;
        state.last_failure = Some((failure, clock::now()));
        state.further_not_before = Some(now + FURTHER_PAUSE);
        if state.live() == 0 { state.fail(failure) } else { state.plan(self.connections_max, now) }
    }

    /// The pool stops, and nobody will connect any more.
    pub(super) fn connect_given_up(&self) -> Plan {
        let mut state = self.lock();
        state.connecting = false;
        Plan { stop: state.empty(), ..Plan::default() }
    }

    /// The desk: takes the report of the connection at `place` and puts what it shall send into `into` (high rank first, at
    /// most [`SLICE`], nothing if it is retiring or the pool stops). `waker` is called when there is more; without one that
    /// of the last time is.
    pub(super) fn pull(
        &self,
        place: u64,
        report: &mut Report,
        waker: Option<&Waker>,
        into: &mut Vec<Parcel>,
        now: Instant,
    ) -> (Phase, Plan) {
        let mut state = self.lock();
        let state = &mut *state;
        let mut stop = Vec::new();
        if state.phase == Phase::Open {
            for parcel in report.put_back.drain(..).rev() {
                state.queue(parcel.rank()).push_front(parcel);
            }
        } else {
            stop = std::mem::take(&mut report.put_back);
        }
        let [high, normal] = std::mem::take(&mut report.ended);
        state.resends += std::mem::take(&mut report.resends);
        state.timeouts += std::mem::take(&mut report.timeouts);
        if high + normal > 0 {
            state.used = now;
        }
        let Some(at) = state.places.iter().position(|candidate| candidate.id == place) else {
            debug_assert!(false, "a connection has its place until it leaves");
            return (state.phase, Plan { stop, ..Plan::default() });
        };
        let seat = &mut state.places[at];
        seat.limit = report.limit;
        seat.in_flight = report.in_flight;
        seat.normal -= normal;
        if report.answered {
            seat.answered = true;
            state.barren = 0;
        }
        if !seat.retiring {
            state.streams_known = Some(report.limit);
        }
        if let Some(waker) = waker
            && !seat.waker.as_ref().is_some_and(|known| known.will_wake(waker))
        {
            seat.waker = Some(waker.clone());
        }
        let free = if state.phase == Phase::Open { seat.free().min(SLICE) } else { 0 };
        let high = free.min(state.high.len());
        let normal = (free - high).min(state.normal.len()).min(state.normal_allowed());
        into.extend(state.high.drain(..high));
        into.extend(state.normal.drain(..normal));
        let seat = &mut state.places[at];
        seat.in_flight += high + normal;
        seat.normal += normal;
        seat.used |= high + normal > 0;
        let plan = state.plan(self.connections_max, now);
        (state.phase, Plan { stop, ..plan })
    }

    /// The connection at `place` takes nothing new from now on. `by_peer`: it did not choose so itself.
    pub(super) fn retire(&self, place: u64, by_peer: bool, now: Instant) -> Plan {
        let mut state = self.lock();
        state.retire(place, by_peer);
        state.after_loss(self.connections_max, now)
    }

    /// The peer has sent more than is allowed at `place`, which takes nothing new. All that is queued has failed, whatever other
    /// connections there are: the origin is condemned, and a few more answers are not worth a few more floods.
    pub(super) fn flooded(&self, place: u64, now: Instant) -> Plan {
        let mut state = self.lock();
        state.retire(place, true);
        state.flooded = Some(now);
        state.last_failure = Some((ConnectFailure::Protocol, clock::now()));
        state.fail(ConnectFailure::Protocol)
    }

    /// The connection at `place` carries no stream at all: without one that does, all that is queued has failed.
    pub(super) fn unusable(&self, place: u64, now: Instant) -> Plan {
        let mut state = self.lock();
        state.retire(place, false);
        state.last_failure = Some((ConnectFailure::Protocol, clock::now()));
        let usable = state.places.iter().any(|place| !place.retiring && place.limit > 0);
        if !usable { state.fail(ConnectFailure::Protocol) } else { state.plan(self.connections_max, now) }
    }

    /// The connection has ended; what it had in flight is answered or put back.
    pub(super) fn leave(&self, place: u64, now: Instant) -> Plan {
        let mut state = self.lock();
        state.retire(place, true);
        state.places.retain(|candidate| candidate.id != place);
        state.after_loss(self.connections_max, now)
    }

    /// True if something waits in the queue.
    pub(super) fn waits(&self) -> bool {
        let state = self.lock();
        !state.high.is_empty() || !state.normal.is_empty()
    }

    /// Goes to `phase` and wakes the connections. With any phase but `Open` the queue is handed out to be answered.
    pub(super) fn enter(&self, phase: Phase) -> Plan {
        let mut state = self.lock();
        state.phase = phase;
        let stop = state.empty();
        let wake = state.places.iter_mut().filter_map(|place| place.waker.take()).collect();
        Plan { wake, stop, ..Plan::default() }
    }

    /// Evicts it if nothing is queued, in flight or being opened. None: it is in use.
    pub(super) fn evict(&self) -> Option<Plan> {
        let mut state = self.lock();
        if state.busy() {
            return None;
        }
        state.phase = Phase::Evicted;
        let wake = state.places.iter_mut().filter_map(|place| place.waker.take()).collect();
        Some(Plan { wake, ..Plan::default() })
    }

    /// When it was used last; None while it is in use.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        let state = self.lock();
        (!state.busy()).then_some(state.used)
    }

    /// As [`Destination::unused_since`], if it has connections.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let state = self.lock();
        (!state.busy() && !state.places.is_empty()).then_some(state.used)
    }

    /// Whether a connection is open that takes something.
    pub(super) fn connected_already(&self) -> bool {
        self.lock().live() > 0
    }

    /// See [`super::Pool::capacity`].
    pub(super) fn capacity(&self, now: Instant) -> usize {
        let state = self.lock();
        let open: usize = state.places.iter().filter(|place| !place.retiring).map(|place| place.limit).sum();
        let further = self.connections_max.saturating_sub(state.live());
        let paused = state.live() > 0 && state.further_not_before.is_some_and(|time| now < time);
        let each = if paused { 0 } else { state.streams_known.unwrap_or(STREAMS_ASSUMED) };
        (open + further * each).max(1)
    }

    pub(super) fn status(&self, now: Instant) -> OriginStatus {
        let capacity = self.capacity(now);
        let state = self.lock();
        OriginStatus {
            origin: self.origin.clone(),
            protocol: state.protocol,
            connections: state.live(),
            connections_retiring: state.places.len() - state.live(),
            connecting: state.connecting,
            in_flight: state.places.iter().map(|place| place.in_flight).sum(),
            queued: state.high.len() + state.normal.len(),
            capacity,
            last_failure: state.last_failure,
            connections_opened: state.opened,
            resends: state.resends,
            timeouts: state.timeouts,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds it can panic half way through a change that matters: counters at worst.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn queue(&mut self, rank: Rank) -> &mut VecDeque<Parcel> {
        match rank {
            Rank::High => &mut self.high,
            Rank::Normal => &mut self.normal,
        }
    }

    fn live(&self) -> usize {
        self.places.iter().filter(|place| !place.retiring).count()
    }

    fn busy(&self) -> bool {
        self.connecting || !self.high.is_empty() || !self.normal.is_empty() || self.places.iter().any(|place| place.in_flight > 0)
    }

    /// How many more of normal rank may be in flight: a tenth of the origin's streams, at least one where there is more than
    /// one, is kept for high rank (docs/design.md 4.3). Retiring connections count on neither side.
    fn normal_allowed(&self) -> usize {
        let (mut total, mut normal) = (0, 0);
        for place in self.places.iter().filter(|place| !place.retiring) {
            total += place.limit;
            normal += place.normal;
        }
        let kept = if total > 1 { (total / 10).max(1) } else { 0 };
        (total - kept).saturating_sub(normal)
    }

    /// Wakes as many connections as what is queued can use, and asks for a further one when those that are open are full.
    fn plan(&mut self, connections_max: usize, now: Instant) -> Plan {
        let mut plan = Plan::default();
        let queued = self.high.len() + self.normal.len();
        if queued == 0 || self.phase != Phase::Open {
            return plan;
        }
        let mut high = self.high.len();
        let mut normal = self.normal.len().min(self.normal_allowed());
        for place in &mut self.places {
            let takes = place.free().min(high + normal);
            if takes > 0 {
                plan.wake.extend(place.waker.take());
                let of_high = takes.min(high);
                high -= of_high;
                normal -= takes - of_high;
            }
        }
        let served = queued - high - normal - (self.normal.len() - self.normal.len().min(self.normal_allowed()));
        let live = self.live();
        let room = live < connections_max && self.places.len() < connections_max * RETIRING_FACTOR;
        let paused = live > 0 && self.further_not_before.is_some_and(|time| now < time) || self.shunned(now);
        if served < queued && room && !paused && !self.connecting {
            self.connecting = true;
            plan.connect = true;
        }
        plan
    }

    fn retire(&mut self, id: u64, by_peer: bool) {
        let waits = !self.high.is_empty() || !self.normal.is_empty();
        if let Some(place) = self.places.iter_mut().find(|place| place.id == id && !place.retiring) {
            place.retiring = true;
            // A peer that closes what has not been used for a while does nothing wrong.
            if by_peer && !place.answered && (place.used || waits) {
                self.barren = self.barren.saturating_add(1);
            }
        }
    }

    /// A peer that takes connections only to end them must not be hammered.
    fn after_loss(&mut self, connections_max: usize, now: Instant) -> Plan {
        if self.barren >= BARREN_MAX && self.live() == 0 && !self.connecting {
            self.barren = 0;
            self.last_failure = Some((ConnectFailure::Protocol, clock::now()));
            return self.fail(ConnectFailure::Protocol);
        }
        self.plan_or_fail(connections_max, now)
    }

    /// What is queued has failed if no connection is there for it and none is opened for now.
    fn plan_or_fail(&mut self, connections_max: usize, now: Instant) -> Plan {
        let nowhere = self.shunned(now) && self.live() == 0 && !self.connecting;
        if nowhere { self.fail(ConnectFailure::Protocol) } else { self.plan(connections_max, now) }
    }

    /// It has flooded a connection a moment ago.
    fn shunned(&self, now: Instant) -> bool {
        self.flooded.is_some_and(|time| now.saturating_duration_since(time) < FLOOD_PAUSE)
    }

    fn fail(&mut self, failure: ConnectFailure) -> Plan {
        Plan { fail: Some((failure, self.empty())), ..Plan::default() }
    }

    fn empty(&mut self) -> Vec<Parcel> {
        let mut all = Vec::from(std::mem::take(&mut self.high));
        all.extend(std::mem::take(&mut self.normal));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::deliver::streams::tests::Count;
    use crate::deliver::tests::sealed;
    use crate::message::{Answered, Urgency};

    struct Desk {
        destination: Destination,
        answers: crate::queue::Sender<Answered>,
        now: Instant,
        next: usize,
    }

    impl Desk {
        fn new(connections_max: usize) -> Desk {
            let now = Instant::now();
            let destination = Destination::new(Origin("https://push.example".into()), connections_max, now).unwrap();
            Desk { destination, answers: crate::queue::unbounded().0, now, next: 0 }
        }

        fn post(&mut self, urgency: Urgency, count: usize) -> Plan {
            let parcels = (0..count)
                .map(|_| {
                    let mut sealed = sealed("https://push.example", "/x", self.next);
                    self.next += 1;
                    let mut message = (*sealed.delivery.message).clone();
                    message.urgency = urgency;
                    sealed.delivery.message = Arc::new(message);
                    Parcel::new(sealed, self.answers.clone())
                })
                .collect();
            self.destination.post(parcels, self.now).unwrap_or_else(|_| panic!("it is open"))
        }

        fn pull(&self, place: u64, report: &mut Report, waker: &Waker) -> (Vec<usize>, Vec<Parcel>, Plan) {
            let mut into = Vec::new();
            let (_, plan) = self.destination.pull(place, report, Some(waker), &mut into, self.now);
            (into.iter().map(|parcel| usize::from(parcel.sealed().delivery.id.index)).collect(), into, plan)
        }
    }

    fn report(limit: usize, in_flight: usize) -> Report {
        Report { limit, in_flight, ..Report::default() }
    }

    #[test]
    fn one_connection_is_opened_for_all_that_is_queued() {
        let mut desk = Desk::new(4);
        assert!(desk.post(Urgency::Normal, 500).connect);
        assert!(!desk.post(Urgency::Normal, 500).connect);
        let plan = desk.destination.connect_failed(ConnectFailure::Refused, desk.now);
        let (failure, parcels) = plan.fail.unwrap();
        assert_eq!((failure, parcels.len()), (ConnectFailure::Refused, 1000));
        assert!(!plan.connect);
        assert!(desk.post(Urgency::Normal, 1).connect, "the next post is the probe");
    }

    #[test]
    fn a_tenth_of_the_streams_is_kept_for_high() {
        for (limit, normal) in [(1, 1), (2, 1), (10, 9), (20, 18), (64, 58)] {
            let mut desk = Desk::new(1);
            let _ = desk.post(Urgency::Low, 100);
            let place = desk.destination.connected(Protocol::Http2, limit);
            let (taken, _held, _) = desk.pull(place, &mut report(limit, 0), Waker::noop());
            assert_eq!(taken.len(), normal, "{limit}");
            let _ = desk.post(Urgency::High, 100);
            let (more, _held, _) = desk.pull(place, &mut report(limit, normal), Waker::noop());
            assert_eq!(more.len(), limit - normal, "{limit}");
            assert!(more.iter().all(|&index| index >= 100));
        }
    }

    #[test]
    fn high_goes_first_and_what_is_put_back_before_everything_of_its_rank() {
        let mut desk = Desk::new(1);
        let _ = desk.post(Urgency::Normal, 2);
        let _ = desk.post(Urgency::High, 2);
        let place = desk.destination.connected(Protocol::Http2, 3);
        let (taken, held, _) = desk.pull(place, &mut report(3, 0), Waker::noop());
        assert_eq!(taken, [2, 3, 0]);
        let mut back = report(3, 0);
        back.put_back = held;
        back.ended = [2, 1];
        assert_eq!(desk.pull(place, &mut back, Waker::noop()).0, [2, 3, 0]);
    }

    #[test]
    fn a_further_connection_is_opened_only_when_the_open_ones_are_full() {
        let mut desk = Desk::new(2);
        assert!(desk.post(Urgency::Normal, 5).connect);
        let first = desk.destination.connected(Protocol::Http2, 10);
        let (taken, _held, plan) = desk.pull(first, &mut report(10, 0), Waker::noop());
        assert_eq!(taken.len(), 5);
        assert!(!plan.connect);
        assert!(!desk.post(Urgency::Normal, 4).connect, "four more fit");
        assert!(desk.post(Urgency::Normal, 1).connect, "the tenth stream is kept for high rank");
        desk.destination.connected(Protocol::Http2, 10);
        assert!(!desk.post(Urgency::Normal, 100).connect, "two is the limit");
    }

    #[test]
    fn a_failed_further_connection_does_not_harm_the_open_one() {
        let mut desk = Desk::new(2);
        let _ = desk.post(Urgency::High, 1);
        let first = desk.destination.connected(Protocol::Http2, 1);
        let (_, _held, _) = desk.pull(first, &mut report(1, 0), Waker::noop());
        assert!(desk.post(Urgency::High, 1).connect);
        let plan = desk.destination.connect_failed(ConnectFailure::Timeout, desk.now);
        assert!(plan.fail.is_none() && !plan.connect);
        assert!(!desk.post(Urgency::High, 1).connect, "not again at once");
        desk.now += FURTHER_PAUSE;
        assert!(desk.post(Urgency::High, 1).connect);
    }

    #[test]
    fn a_connection_with_room_is_woken_once() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(count.clone());
        let mut desk = Desk::new(1);
        let place = desk.destination.connected(Protocol::Http2, 100);
        let _ = desk.pull(place, &mut report(100, 0), &waker);
        for _ in 0..3 {
            desk.post(Urgency::Normal, 1).wake.into_iter().for_each(Waker::wake);
        }
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(desk.pull(place, &mut report(100, 0), &waker).0.len(), 3);
    }

    #[test]
    fn a_peer_that_ends_every_connection_is_not_hammered() {
        let mut desk = Desk::new(4);
        assert!(desk.post(Urgency::Normal, 1).connect);
        for _ in 1..BARREN_MAX {
            let place = desk.destination.connected(Protocol::Http2, 100);
            assert!(desk.destination.leave(place, desk.now).connect);
        }
        let place = desk.destination.connected(Protocol::Http2, 100);
        let plan = desk.destination.leave(place, desk.now);
        assert!(!plan.connect);
        assert_eq!(plan.fail.map(|(failure, parcels)| (failure, parcels.len())), Some((ConnectFailure::Protocol, 1)));
    }

    #[test]
    fn a_connection_that_vanishes_gives_its_streams_back() {
        let mut desk = Desk::new(1);
        let _ = desk.post(Urgency::Normal, 20);
        let first = desk.destination.connected(Protocol::Http2, 10);
        let (taken, _held, _) = desk.pull(first, &mut report(10, 0), Waker::noop());
        assert_eq!(taken.len(), 9);
        assert!(desk.destination.leave(first, desk.now).connect);
        let second = desk.destination.connected(Protocol::Http2, 10);
        assert_eq!(desk.pull(second, &mut report(10, 0), Waker::noop()).0.len(), 9);
    }

    #[test]
    fn what_hangs_on_a_retiring_connection_takes_no_stream_of_another() {
        let mut desk = Desk::new(1);
        let _ = desk.post(Urgency::Normal, 20);
        let first = desk.destination.connected(Protocol::Http2, 10);
        let (_, _held, _) = desk.pull(first, &mut report(10, 0), Waker::noop());
        assert!(desk.destination.retire(first, false, desk.now).connect);
        let second = desk.destination.connected(Protocol::Http2, 10);
        assert_eq!(desk.pull(second, &mut report(10, 0), Waker::noop()).0.len(), 9);
    }

    #[test]
    fn capacity_counts_connections_that_could_be_opened() {
        let mut desk = Desk::new(4);
        assert_eq!(desk.destination.capacity(desk.now), 4 * STREAMS_ASSUMED);
        let _ = desk.post(Urgency::Normal, 1);
        let place = desk.destination.connected(Protocol::Http2, 250);
        assert_eq!(desk.destination.capacity(desk.now), 1000);
        let _ = desk.pull(place, &mut report(1, 0), Waker::noop());
        assert_eq!(desk.destination.capacity(desk.now), 4);
        let _ = desk.destination.connect_failed(ConnectFailure::Timeout, desk.now);
        assert_eq!(desk.destination.capacity(desk.now), 1);
    }
}
