//! The health of every origin, shared: the scheduler asks how much it may hand out, workers ask for deliveries of services with
//! several origins, `outcome` tells what was heard. One lock, held for a few additions.
//!
//! Promise: whatever was counted as sent comes back exactly once, by [`Table::answered`] or [`Table::unsent`]; both are called where
//! a delivery leaves the pipeline.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::HashMap;

use crate::complaint::Complaint;
use crate::message::{Origin, Rank, Service, UnixMillis};
use crate::origin::health::{Health, Heard, Room, Shown};
use crate::store::live::lock;

// With `endpoints.policy` = "public" whoever makes endpoints says which hosts there are, and how they fare.
static OPENED: Complaint = Complaint::some();
static CLOSED: Complaint = Complaint::some();

/// Deliveries that a service with several origins has in the pipeline at most; a tenth is kept for urgent ones.
const SERVICE_WINDOW: usize = 1_024;
/// Sealed deliveries that may wait for a stream of their origin: as much as the workers make in 20 ms.
const QUEUED: usize = 192;

/// All origins that were met since the start.
pub struct Table {
    origins: Mutex<State>,
    /// Streams that the pool can carry to an origin at the moment.
    capacity: Box<dyn Fn(&Origin) -> usize + Send + Sync>,
    /// Deliveries that push services have answered since the start, whatever they said.
    answers: AtomicU64,
    /// Origins kept, at most: healthy ones without anything in flight are forgotten first.
    most: usize,
}

#[derive(Default)]
struct State {
    origins: HashMap<Origin, Entry>,
    /// In the pipeline, by service.
    services: HashMap<Service, usize>,
    /// Services that are closed whole until a time, and why: so are their origins that are met for the first time.
    closed: HashMap<Service, (UnixMillis, &'static str)>,
}

struct Entry {
    service: Service,
    health: Health,
}

/// What an origin says to one more delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// It is counted as sent.
    Go,
    /// It waits by itself until then.
    Wait(UnixMillis),
}

impl Table {
    /// `capacity` tells the streams of an origin at the moment.
    pub fn new(most: usize, capacity: impl Fn(&Origin) -> usize + Send + Sync + 'static) -> Table {
        Table { origins: Mutex::default(), capacity: Box::new(capacity), answers: AtomicU64::new(0), most }
    }

    /// How many more may be handed out to a service that has this one origin.
    pub fn room(&self, origin: &Origin, now: UnixMillis, rank: Rank) -> Room {
        let capacity = self.capacity(origin);
        let state = lock(&self.origins);
        match state.origins.get(origin) {
            Some(entry) => entry.health.room(now, capacity, rank),
            None => Health::new().room(now, capacity, rank),
        }
    }

    fn capacity(&self, origin: &Origin) -> usize {
        let streams = (self.capacity)(origin);
        streams + streams / 2 + QUEUED
    }

    /// Whether nothing condemned the origin.
    pub fn is_open(&self, origin: &Origin) -> bool {
        lock(&self.origins).origins.get(origin).is_none_or(|entry| entry.health.is_open())
    }

    /// When a closed origin may be probed.
    pub fn next_wake(&self, origin: &Origin) -> Option<UnixMillis> {
        lock(&self.origins).origins.get(origin).and_then(|entry| entry.health.next_wake())
    }

    /// When a delivery that waits by itself for this origin should come again.
    pub fn comes_again(&self, origin: &Origin, now: UnixMillis) -> UnixMillis {
        lock(&self.origins).origins.get(origin).map_or(now, |entry| entry.health.comes_again(now))
    }

    /// How many more may be handed out to a service with several origins.
    pub fn service_room(&self, service: Service, rank: Rank) -> Room {
        let sent = lock(&self.origins).services.get(&service).copied().unwrap_or(0);
        match rank {
            Rank::High => Room::of(SERVICE_WINDOW.saturating_sub(sent), 1),
            Rank::Normal => Room::of((SERVICE_WINDOW - SERVICE_WINDOW / 10).saturating_sub(sent), SERVICE_WINDOW),
        }
    }

    /// A run was handed out: `n` are in the pipeline; counted at its origin too, if the service has one.
    pub fn handed_out(&self, service: Service, origin: Option<&Origin>, now: UnixMillis, n: usize) {
        let mut state = lock(&self.origins);
        *state.services.entry(service).or_default() += n;
        if let Some(origin) = origin {
            self.entry(&mut state, origin, service, now).health.sent(now, n);
        }
    }

    /// `n` of a run left the pipeline without having met the origin.
    pub fn unsent(&self, service: Service, origin: Option<&Origin>, n: usize) {
        if n == 0 {
            return;
        }
        let mut state = lock(&self.origins);
        leave(&mut state, service, n);
        if let Some(origin) = origin
            && let Some(entry) = state.origins.get_mut(origin)
        {
            entry.health.returned_unsent(n);
        }
    }

    /// Asks for one delivery of a service with several origins; no origin takes more than half of what its service may have.
    pub fn admit(&self, service: Service, origin: &Origin, now: UnixMillis, rank: Rank) -> Admit {
        let capacity = self.capacity(origin).min(SERVICE_WINDOW / 2);
        let mut state = lock(&self.origins);
        let health = &mut self.entry(&mut state, origin, service, now).health;
        if health.may_send(now, capacity, rank) > 0 {
            health.sent(now, 1);
            return Admit::Go;
        }
        Admit::Wait(health.comes_again(now))
    }

    /// A delivery came back. `heard` is None if it did not meet its origin.
    pub fn answered(
        &self,
        service: Service,
        origin: &Origin,
        now: UnixMillis,
        heard: Option<Heard>,
        error: Option<&'static str>,
    ) {
        if let Some(Heard::Answer | Heard::Trouble) = heard {
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        let mut state = lock(&self.origins);
        leave(&mut state, service, 1);
        let entry = self.entry(&mut state, origin, service, now);
        let was_open = entry.health.is_open();
        match heard {
            Some(heard) => entry.health.answered(now, heard, error),
            None => entry.health.returned_unsent(1),
        }
        let is_open = entry.health.is_open();
        if was_open != is_open {
            let host = origin.host();
            if is_open {
                if let Some(left_out) = OPENED.tell() {
                    tracing::info!(host, left_out, "the push service answers again");
                }
            } else if let Some(left_out) = CLOSED.tell() {
                tracing::warn!(host, error, left_out, "the push service is closed: what waits for it is kept");
            }
        }
    }

    /// The whole service is condemned: its other origins close too.
    pub fn close_service(&self, service: Service, now: UnixMillis, not_before: Option<UnixMillis>, error: &'static str) {
        let mut state = lock(&self.origins);
        for entry in state.origins.values_mut().filter(|entry| entry.service == service) {
            entry.health.close(now, not_before, error);
        }
        if let Some(until) = not_before {
            state.closed.insert(service, (until, error));
        }
    }

    /// Deliveries that push services have answered since the start, whatever became of them.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// What an operator is shown.
    pub fn shown(&self) -> Vec<(Service, Origin, Shown)> {
        let state = lock(&self.origins);
        let mut all: Vec<_> =
            state.origins.iter().map(|(origin, entry)| (entry.service, origin.clone(), entry.health.shown())).collect();
        all.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        all
    }

    fn entry<'a>(&self, state: &'a mut State, origin: &Origin, service: Service, now: UnixMillis) -> &'a mut Entry {
        if !state.origins.contains_key(origin) && state.origins.len() >= self.most {
            state.origins.retain(|_, entry| !entry.health.is_open() || entry.health.shown().in_flight > 0);
            if state.origins.len() >= self.most {
                // So many are closed: what is forgotten is found out again by one more attempt.
                state.origins.retain(|_, entry| entry.health.shown().in_flight > 0);
            }
        }
        let closed = state.closed.get(&service).copied();
        state.origins.entry(origin.clone()).or_insert_with(|| {
            let mut health = Health::new();
            if let Some((until, error)) = closed.filter(|(until, _)| *until > now) {
                health.close(now, Some(until), error);
            }
            Entry { service, health }
        })
    }
}

fn leave(state: &mut State, service: Service, n: usize) {
    if let Some(in_flight) = state.services.get_mut(&service) {
        *in_flight = in_flight.saturating_sub(n);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    #[test]
    fn a_slow_origin_leaves_room_for_its_service() {
        let table = Table::new(16, |_| 10_000);
        let service = Service::OTHER;
        let slow = Origin(Arc::from("https://slow.example.net"));
        let mut gone = 0;
        while table.admit(service, &slow, NOW, Rank::Normal) == Admit::Go {
            table.handed_out(service, None, NOW, 1);
            gone += 1;
            // Every second one is answered, so its window grows.
            if gone % 2 == 0 {
                table.answered(service, &slow, NOW, Some(Heard::Answer), None);
            }
            assert!(gone < 100_000);
        }
        let fast = Origin(Arc::from("https://fast.example.net"));
        assert!(table.service_room(service, Rank::Normal).free > SERVICE_WINDOW / 4);
        assert_eq!(table.admit(service, &fast, NOW, Rank::Normal), Admit::Go);
    }

    #[test]
    fn what_waits_comes_soon_after_a_probe() {
        let table = Table::new(16, |_| 100);
        let origin = Origin(Arc::from("https://one.example.net"));
        table.handed_out(Service::WNS, Some(&origin), NOW, 1);
        table.answered(Service::WNS, &origin, NOW, Some(Heard::Condemned { not_before: None }), None);
        let probe = NOW.plus(1_000);
        assert_eq!(table.admit(Service::WNS, &origin, probe, Rank::Normal), Admit::Go);
        assert_eq!(table.admit(Service::WNS, &origin, probe, Rank::Normal), Admit::Wait(probe.plus(1_000)));
    }

    #[test]
    fn a_service_that_is_closed_whole_has_no_open_origin() {
        let table = Table::new(16, |_| 100);
        let [known, new, other] =
            ["https://a.example.net", "https://b.example.net", "https://c.example.net"].map(|origin| Origin(Arc::from(origin)));
        assert_eq!(table.admit(Service::WNS, &known, NOW, Rank::Normal), Admit::Go);
        let until = NOW.plus(60_000);
        table.close_service(Service::WNS, NOW, Some(until), "throttled");
        for origin in [&known, &new] {
            assert_eq!(table.admit(Service::WNS, origin, NOW, Rank::Normal), Admit::Wait(until));
        }
        assert_eq!(table.admit(Service::OTHER, &other, NOW, Rank::Normal), Admit::Go);
        assert_eq!(table.admit(Service::WNS, &new, until, Rank::Normal), Admit::Go, "the probe");
    }

    #[test]
    fn a_closed_origin_tells_when_to_come_again() {
        let table = Table::new(16, |_| 100);
        let origin = Origin(Arc::from("https://one.example.net"));
        table.handed_out(Service::WNS, Some(&origin), NOW, 1);
        table.answered(Service::WNS, &origin, NOW, Some(Heard::Condemned { not_before: Some(NOW.plus(60_000)) }), None);
        assert!(!table.is_open(&origin));
        assert_eq!(table.admit(Service::WNS, &origin, NOW, Rank::High), Admit::Wait(NOW.plus(60_000)));
        assert_eq!(table.room(&origin, NOW.plus(60_000), Rank::Normal).free, 1);
    }
}
