//! How much an origin is given at once: the health of one origin, or of one service that has a single origin.
//!
//! Promises. An origin is never given more than its window, its capacity, or one probe. It opens slowly and closes fast: the window
//! grows with good answers to what filled it, halves on trouble, and what condemns the origin closes it at once. And it is never
//! wedged: whatever happens to a probe, another one is due within [`PROBE_DELAY_MAX_MILLIS`], unless the service named a later time.
//! If whoever calls loses count of deliveries (each one sent must come back, by [`Health::answered`] or
//! [`Health::returned_unsent`]), the window shrinks by what was lost; nothing else depends on it.
//!
//! It holds no clock and no queue: time is passed in, and the answer is a number.

use crate::message::{Answer, Blame, Rank, UnixMillis};

/// The window of an origin that nothing is known of.
pub const WINDOW_START: usize = 32;
/// What a window of good answers adds once there has been trouble.
pub const WINDOW_STEP: usize = 8;
/// Places that are handed out together where the window is large enough, unless they had to wait too long for each other: deliveries
/// that are read and sealed together cost less, and answers come one by one.
const TOGETHER: usize = 64;
/// ... and the share of the window that this is at most.
const TOGETHER_SHARE: usize = 8;
/// The wait before the first probe (docs/design.md 4.3).
pub const PROBE_DELAY_MIN_MILLIS: u64 = 1_000;
/// The end of its doubling; also the time that a probe may stay unanswered before another one is sent (docs/design.md 4.3).
pub const PROBE_DELAY_MAX_MILLIS: u64 = 30_000;
/// How many answers are remembered for "mostly 5xx".
const REMEMBERED: u32 = 16;
/// Fewer bad ones among them condemn nobody.
const BAD_MIN: u32 = 4;

const _: () = assert!(REMEMBERED <= u16::BITS && BAD_MIN <= REMEMBERED);
const _: () = assert!(PROBE_DELAY_MIN_MILLIS <= PROBE_DELAY_MAX_MILLIS);

/// What one delivery's return says about its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It answered, whatever it said about the delivery, the subscription or the key.
    Answer,
    /// It answered 5xx: bad when most answers are.
    Trouble,
    /// The request left and nothing came back: counts like a 5xx, but is no sign of life.
    Silence,
    /// It is condemned by this alone: no connection, or a 429 or 503 that speaks for it; `not_before` if it named a time.
    Condemned { not_before: Option<UnixMillis> },
}

impl Heard {
    /// What an answer and its verdict's blame say of the origin. None: nothing, the delivery never met it (it was too late, the
    /// daemon stops, its address is forbidden), which is [`Health::returned_unsent`].
    ///
    /// [`Blame::Service`] condemns the service's other origins too: they are told by [`Health::close`].
    pub fn of(answer: &Answer, blame: Blame) -> Option<Heard> {
        match (answer, blame) {
            (_, Blame::Origin { not_before } | Blame::Service { not_before }) => Some(Heard::Condemned { not_before }),
            (Answer::TooLate | Answer::Stopped | Answer::NotConnected(_), _) => None,
            (Answer::Lost(_), _) => Some(Heard::Silence),
            (Answer::Response { .. }, Blame::Trouble) => Some(Heard::Trouble),
            (Answer::Response { .. }, Blame::Delivery | Blame::Sender) => Some(Heard::Answer),
        }
    }
}

/// The health of one origin.
///
/// ```text
///              condemned, or trouble               sent: one, once
///              for most of the last 16             probe_at is reached
///     +------+ ---------------------> +--------+ ------------------> +---------+
///     | Open |                        | Closed |                     | Probing |
///     +------+ <--------------------- +--------+ <------------------ +---------+
///         ^     an answer (of what                condemned, or silence:   |
///         |     left before) that                 delay doubles;           |
///         |     does not condemn                  nothing left in flight   |
///         |                                       and unheard: same delay  |
///         +----------------------------------------------------------------+
///                         an answer that does not condemn
/// ```
///
/// Open closes when condemned; Closed becomes Probing when one delivery is sent, and Open by an answer that does not condemn, but not
/// before a time that the service named; Probing becomes Open by such an answer, and Closed by anything else; nothing else moves.
#[derive(Clone, Debug)]
pub struct Health {
    state: State,
    /// Handed out, and neither answered nor returned.
    in_flight: usize,
    /// Below it the window doubles, from it on it grows by steps: half of what was in flight when there was trouble.
    calm: usize,
    last: LastAnswers,
    last_error: Option<(&'static str, UnixMillis)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `good` answers since the window last changed; `recovering` answers still to come to what left before it was halved, which
    /// must not halve it again.
    Open { window: usize, good: usize, recovering: usize },
    /// Since `since`; the next probe is due at `probe_at`, the service named `not_before` (or 0).
    Closed { since: UnixMillis, probe_at: UnixMillis, not_before: UnixMillis, delay: u64 },
    /// A probe was handed out at `since`; `delay` was waited before it.
    Probing { since: UnixMillis, delay: u64 },
}

/// What may be handed out now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// So many at most.
    pub free: usize,
    /// That is enough to be handed out at once. Fewer should wait a moment for more.
    pub enough: bool,
}

/// What an operator is shown of an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// `open`, `closed` or `probing`.
    pub state: &'static str,
    /// Deliveries that may be in flight at once; 0 closed, 1 probing.
    pub window: usize,
    pub in_flight: usize,
    /// When the next probe is due, if closed.
    pub probe_at: Option<UnixMillis>,
    /// The last error's word, and when it was.
    pub last_error: Option<(&'static str, UnixMillis)>,
}

impl Default for Health {
    fn default() -> Health {
        Health::new()
    }
}

impl Health {
    /// Of an origin that nothing is known of: open, with [`WINDOW_START`].
    pub fn new() -> Health {
        Health {
            state: State::Open { window: WINDOW_START, good: 0, recovering: 0 },
            in_flight: 0,
            calm: usize::MAX,
            last: LastAnswers::default(),
            last_error: None,
        }
    }

    /// How many more deliveries of this rank may be handed out now.
    ///
    /// `capacity` is what the pool could have in flight to the origin, all in all: the streams of its connections, and of those
    /// that it may still open. A tenth of it, at least one where there is more than one, is kept for [`Rank::High`]
    /// (docs/design.md 4.3). A probe asks for no capacity: a closed origin may have no connection left.
    pub fn may_send(&self, now: UnixMillis, capacity: usize, rank: Rank) -> usize {
        match self.state {
            State::Open { window, .. } => {
                let limit = window.min(capacity);
                let kept = if rank == Rank::High || limit <= 1 { 0 } else { (limit / 10).max(1) };
                (limit - kept).saturating_sub(self.in_flight)
            }
            // A clock that was put back is no reason to wait for the old time to come round again.
            State::Closed { since, probe_at, .. } => usize::from(now >= probe_at || now < since),
            State::Probing { since, .. } => usize::from(now >= since.plus(PROBE_DELAY_MAX_MILLIS) || now < since),
        }
    }

    /// [`Health::may_send`], and whether it is enough: of normal rank for a batch.
    pub fn room(&self, now: UnixMillis, capacity: usize, rank: Rank) -> Room {
        let free = self.may_send(now, capacity, rank);
        match self.state {
            State::Open { window, .. } if rank == Rank::Normal => Room::of(free, window.min(capacity)),
            _ => Room { free, enough: free > 0 },
        }
    }

    /// `n` deliveries were handed out, at most what [`Health::may_send`] allowed.
    pub fn sent(&mut self, now: UnixMillis, n: usize) {
        if n == 0 {
            return;
        }
        self.in_flight += n;
        if let State::Closed { delay, .. } | State::Probing { delay, .. } = self.state {
            self.state = State::Probing { since: now, delay };
        }
    }

    /// `n` of them came back without having met the origin: ended, cancelled or superseded before they left.
    pub fn returned_unsent(&mut self, n: usize) {
        self.in_flight = self.in_flight.saturating_sub(n);
        match &mut self.state {
            State::Open { recovering, .. } => *recovering = (*recovering).min(self.in_flight),
            // Nothing is left that could be heard of: the probe was among them, and another one is due at once. While something
            // is in flight, its answer (or its silence) says as much as the probe's.
            State::Probing { since, delay } if self.in_flight == 0 => {
                self.state = State::Closed { since: *since, probe_at: *since, not_before: UnixMillis(0), delay: *delay };
            }
            State::Probing { .. } | State::Closed { .. } => {}
        }
    }

    /// One of them was heard of. `error` is the operator's word for it, if it was one.
    pub fn answered(&mut self, now: UnixMillis, heard: Heard, error: Option<&'static str>) {
        let in_flight_before = self.in_flight;
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(word) = error {
            self.last_error = Some((word, now));
        }
        match heard {
            Heard::Condemned { not_before } => return self.shut(now, not_before),
            Heard::Answer => self.last.push(false),
            Heard::Trouble | Heard::Silence => {
                self.last.push(true);
                if self.last.mostly_bad() {
                    return self.shut(now, None);
                }
            }
        }
        match &mut self.state {
            State::Open { window, good, recovering } => {
                let stale = *recovering > 0;
                *recovering = recovering.saturating_sub(1).min(self.in_flight);
                if heard == Heard::Answer {
                    // Answers to a trickle say nothing about a flood: only a window that is in use grows.
                    *good += usize::from(in_flight_before.saturating_mul(2) >= *window);
                    if *good >= *window {
                        *good = 0;
                        let grown = if *window < self.calm { (*window * 2).min(self.calm) } else { *window + WINDOW_STEP };
                        *window = grown;
                    }
                } else if !stale {
                    self.calm = halved(*window, in_flight_before);
                    *window = self.calm;
                    *good = 0;
                    *recovering = self.in_flight;
                }
            }
            State::Closed { .. } | State::Probing { .. } if heard == Heard::Silence => {
                if matches!(self.state, State::Probing { .. }) {
                    self.shut(now, None);
                }
            }
            // Nothing left since the service named that time: this is an answer to what left before.
            State::Closed { not_before, .. } if now < *not_before => {}
            State::Closed { .. } => self.open(),
            State::Probing { .. } => {
                // The probe speaks for the origin as it is now: the answers that closed it are about another time.
                self.last = LastAnswers::default();
                if heard == Heard::Trouble {
                    self.last.push(true);
                }
                self.open();
            }
        }
    }

    /// Condemned from elsewhere: another origin of a service that throttles all of its hosts ([`Blame::Service`]), or a time that
    /// was kept over a restart.
    pub fn close(&mut self, now: UnixMillis, not_before: Option<UnixMillis>, error: &'static str) {
        self.last_error = Some((error, now));
        self.shut(now, not_before);
    }

    /// When [`Health::may_send`] may rise without anything being heard: the next probe's time. None while open.
    pub fn next_wake(&self) -> Option<UnixMillis> {
        match self.state {
            State::Open { .. } => None,
            State::Closed { probe_at, .. } => Some(probe_at),
            State::Probing { since, .. } => Some(since.plus(PROBE_DELAY_MAX_MILLIS)),
        }
    }

    /// When a delivery that waits by itself, because the origin has no place for it now, should come again. While a probe is out
    /// that is a quarter of the delay before it: soon if the origin has just been closed, and seldom enough (each time writes a
    /// row) if it has been for long. The probe's own limit would keep what waits for half a minute after the origin is back.
    pub fn comes_again(&self, now: UnixMillis) -> UnixMillis {
        let soon = now.plus(PROBE_DELAY_MIN_MILLIS);
        match self.state {
            State::Open { .. } => soon,
            State::Closed { probe_at, .. } => probe_at.max(soon),
            State::Probing { delay, .. } => now.plus(delay / 4).max(soon),
        }
    }

    /// Closed lanes stop their cursors: nothing is read for them but a probe.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// What an operator is shown.
    pub fn shown(&self) -> Shown {
        let (state, window, probe_at) = match self.state {
            State::Open { window, .. } => ("open", window, None),
            State::Closed { probe_at, .. } => ("closed", 0, Some(probe_at)),
            State::Probing { .. } => ("probing", 1, None),
        };
        Shown { state, window, in_flight: self.in_flight, probe_at, last_error: self.last_error }
    }

    fn shut(&mut self, now: UnixMillis, named: Option<UnixMillis>) {
        let named = named.unwrap_or_default();
        self.state = match self.state {
            State::Open { window, .. } => {
                self.calm = halved(window, self.in_flight);
                let probe_at = now.plus(PROBE_DELAY_MIN_MILLIS).max(named);
                State::Closed { since: now, probe_at, not_before: named, delay: PROBE_DELAY_MIN_MILLIS }
            }
            // Thirty requests that left before and fail alike are one failure: only a probe's doubles the delay.
            State::Closed { since, probe_at, not_before, delay } => {
                State::Closed { since, probe_at: probe_at.max(named), not_before: not_before.max(named), delay }
            }
            State::Probing { since, delay } => {
                let delay = (delay * 2).min(PROBE_DELAY_MAX_MILLIS);
                // Counted from the last probe, so that one that took long to fail does not stretch the distance; a breath is taken
                // after its failure all the same.
                let breath = now.plus(PROBE_DELAY_MIN_MILLIS).min(since.plus(PROBE_DELAY_MAX_MILLIS));
                let probe_at = since.plus(delay).max(breath).max(named);
                State::Closed { since: now, probe_at, not_before: named, delay }
            }
        };
    }

    fn open(&mut self) {
        self.state = State::Open { window: WINDOW_START.min(self.calm), good: 0, recovering: self.in_flight };
    }
}

impl Room {
    /// So many free ones in a window of `limit`.
    pub(super) fn of(free: usize, limit: usize) -> Room {
        Room { free, enough: free >= (limit / TOGETHER_SHARE).clamp(1, TOGETHER) }
    }
}

/// The window after trouble: half of what was in use. Little use halves the start window instead, so that a 5xx on a quiet day
/// does not leave an origin with a window of one.
fn halved(window: usize, in_flight: usize) -> usize {
    (window.min(in_flight.max(WINDOW_START)) / 2).max(1)
}

/// Which of the last answers were bad: the newest in the lowest bit.
#[derive(Clone, Copy, Debug, Default)]
struct LastAnswers {
    bad: u16,
    known: u32,
}

impl LastAnswers {
    fn push(&mut self, bad: bool) {
        self.bad = self.bad << 1 | u16::from(bad);
        self.known = (self.known + 1).min(REMEMBERED);
    }

    /// More than half of the last 16 answers are bad, and at least 4 of them (docs/design.md 4.3).
    fn mostly_bad(self) -> bool {
        let bad = self.bad.count_ones();
        bad >= BAD_MIN && bad * 2 > self.known
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderMap, StatusCode};
    use proptest::prelude::*;

    use super::*;
    use crate::message::{ConnectFailure, Loss};

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const PLENTY: usize = 10_000;
    const CONDEMNED: Heard = Heard::Condemned { not_before: None };

    fn until(millis: u64) -> Heard {
        Heard::Condemned { not_before: Some(NOW.plus(millis)) }
    }

    /// Sends all it may, and gives how many that were.
    fn fill(health: &mut Health, now: UnixMillis, capacity: usize) -> usize {
        let n = health.may_send(now, capacity, Rank::High);
        health.sent(now, n);
        n
    }

    fn answer(health: &mut Health, n: usize, heard: Heard) {
        (0..n).for_each(|_| health.answered(NOW, heard, None));
    }

    /// Closed at NOW, nothing in flight.
    fn closed() -> Health {
        let mut health = Health::new();
        health.sent(NOW, 1);
        health.answered(NOW, CONDEMNED, Some("connect_refused"));
        health
    }

    /// When the next one may be sent, found by asking every millisecond from `from` on.
    fn first_chance(health: &Health, from: UnixMillis) -> UnixMillis {
        (0..100_000).map(|wait| from.plus(wait)).find(|&now| health.may_send(now, 1, Rank::High) > 0).expect("wedged")
    }

    #[test]
    fn answers_and_blame_say_what_was_heard() {
        let response = |status| Answer::Response {
            status: StatusCode::from_u16(status).expect("a legal status"),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        };
        let time = Some(NOW);
        for (answer, blame, heard) in [
            (response(201), Blame::Delivery, Some(Heard::Answer)),
            (response(410), Blame::Delivery, Some(Heard::Answer)),
            (response(401), Blame::Sender, Some(Heard::Answer)),
            (response(500), Blame::Trouble, Some(Heard::Trouble)),
            (response(429), Blame::Origin { not_before: time }, Some(Heard::Condemned { not_before: time })),
            (response(406), Blame::Service { not_before: time }, Some(Heard::Condemned { not_before: time })),
            (Answer::Lost(Loss::Timeout), Blame::Trouble, Some(Heard::Silence)),
            (Answer::NotConnected(ConnectFailure::Tls), Blame::Origin { not_before: None }, Some(CONDEMNED)),
            (Answer::NotConnected(ConnectFailure::Forbidden), Blame::Delivery, None),
            (Answer::TooLate, Blame::Delivery, None),
            (Answer::Stopped, Blame::Delivery, None),
        ] {
            assert_eq!(Heard::of(&answer, blame), heard, "{answer:?} {blame:?}");
        }
    }

    #[test]
    fn it_opens_slowly() {
        let mut health = Health::new();
        for window in [32, 64, 128, 256, 512] {
            assert_eq!(fill(&mut health, NOW, PLENTY), window);
            // A window of good answers, each place filled again at once.
            for _ in 0..window {
                health.answered(NOW, Heard::Answer, None);
                health.sent(NOW, 1);
            }
            assert_eq!(health.shown().window, window * 2);
            // Drained, and counted anew from here.
            answer(&mut health, window, Heard::Answer);
            health.state = State::Open { window: window * 2, good: 0, recovering: 0 };
        }
    }

    #[test]
    fn a_trickle_does_not_open_it_further() {
        let mut health = Health::new();
        for _ in 0..1_000 {
            health.sent(NOW, 1);
            health.answered(NOW, Heard::Answer, None);
        }
        assert_eq!(health.shown().window, WINDOW_START);
    }

    #[test]
    fn for_the_normal_rank_a_batch_is_enough() {
        let mut health = Health::new();
        health.state = State::Open { window: 1_024, good: 0, recovering: 0 };
        let room = |health: &Health, rank| health.room(NOW, PLENTY, rank);
        let all = health.may_send(NOW, PLENTY, Rank::Normal);
        assert_eq!(room(&health, Rank::Normal), Room { free: all, enough: true });
        health.sent(NOW, all - TOGETHER + 1);
        assert_eq!(room(&health, Rank::Normal), Room { free: TOGETHER - 1, enough: false });
        assert!(room(&health, Rank::High).enough, "an urgent one does not wait for company");
        health.answered(NOW, Heard::Answer, None);
        assert_eq!(room(&health, Rank::Normal), Room { free: TOGETHER, enough: true });
    }

    proptest! {
        #[test]
        fn nothing_waits_for_what_cannot_come(window in 1usize..2_000, capacity in 1usize..2_000, in_flight in 0usize..2_000) {
            let mut health = Health::new();
            health.state = State::Open { window, good: 0, recovering: 0 };
            health.in_flight = in_flight;
            let room = health.room(NOW, capacity, Rank::Normal);
            prop_assert!(room.enough || room.free == 0 || in_flight > 0, "{room:?}, {in_flight} in flight");
        }
    }

    #[test]
    fn the_capacity_bounds_it() {
        let mut health = Health::new();
        for _ in 0..10_000 {
            fill(&mut health, NOW, 100);
            assert!(health.in_flight <= 100);
            health.answered(NOW, Heard::Answer, None);
        }
        // Nor does the window run away from what is used of it.
        assert!(health.shown().window <= 256, "{:?}", health.shown());
        assert_eq!(health.may_send(NOW, 0, Rank::High), 0);
    }

    #[test]
    fn a_tenth_is_kept_for_the_high_rank() {
        let health = Health::new();
        for (capacity, normal) in [(0, 0), (1, 1), (2, 1), (9, 8), (10, 9), (20, 18), (32, 29), (PLENTY, 29)] {
            assert_eq!(health.may_send(NOW, capacity, Rank::Normal), normal, "{capacity}");
            assert_eq!(health.may_send(NOW, capacity, Rank::High), capacity.min(32), "{capacity}");
        }
        let mut health = Health::new();
        health.sent(NOW, 29);
        assert_eq!((health.may_send(NOW, 32, Rank::Normal), health.may_send(NOW, 32, Rank::High)), (0, 3));
        health.sent(NOW, 3);
        assert_eq!((health.may_send(NOW, 32, Rank::Normal), health.may_send(NOW, 32, Rank::High)), (0, 0));
    }

    #[test]
    fn trouble_halves_once_a_window_then_it_grows_by_steps() {
        let mut health = Health::new();
        health.state = State::Open { window: 400, good: 0, recovering: 0 };
        fill(&mut health, NOW, PLENTY);
        answer(&mut health, 100, Heard::Answer);
        // Three errors among what left before are one event.
        answer(&mut health, 3, Heard::Trouble);
        assert_eq!(health.shown().window, 150);
        assert_eq!(health.in_flight, 297);
        answer(&mut health, 297, Heard::Answer);
        let settled = health.shown().window;
        assert!((150..=150 + 2 * WINDOW_STEP).contains(&settled), "{settled}");
        fill(&mut health, NOW, PLENTY);
        health.answered(NOW, Heard::Trouble, Some("500"));
        assert_eq!(health.shown().window, settled / 2);
        // From here on a window of good answers adds a step.
        let window = settled / 2;
        answer(&mut health, settled - 1, Heard::Answer);
        health.state = State::Open { window, good: 0, recovering: 0 };
        fill(&mut health, NOW, PLENTY);
        for _ in 0..window {
            health.answered(NOW, Heard::Answer, None);
            health.sent(NOW, 1);
        }
        assert_eq!(health.shown().window, window + WINDOW_STEP);
        assert_eq!(health.shown().last_error, Some(("500", NOW)));
    }

    #[test]
    fn a_5xx_on_a_quiet_day_leaves_half_of_the_start() {
        let mut health = Health::new();
        health.sent(NOW, 1);
        health.answered(NOW, Heard::Trouble, None);
        assert_eq!(health.shown().window, WINDOW_START / 2);
        assert!(health.is_open());
    }

    /// docs/design.md 4.3: mostly 5xx is more than half of the last 16 answers, at least 4.
    #[test]
    fn mostly_5xx_closes_it() {
        let after = |answers: &str| {
            let mut health = Health::new();
            for letter in answers.chars() {
                health.sent(NOW, 1);
                health.answered(NOW, if letter == 'x' { Heard::Trouble } else { Heard::Answer }, None);
                if !health.is_open() {
                    return false;
                }
            }
            true
        };
        for open in ["x", "xxx", "xxx.", ".xx.x", "..xx.x.x", "........xxxxxxxx", "................xxxxxxxx", "xxx.....x..x"] {
            assert!(after(open), "{open}");
        }
        for closed in ["xxxx", "xxx.x", ".xxxx", ".......xxxxxxxx", "................xxxxxxxxx", "x.x.x.x"] {
            assert!(!after(closed), "{closed}");
        }
    }

    #[test]
    fn silence_counts_like_a_5xx() {
        let mut health = Health::new();
        health.sent(NOW, 32);
        answer(&mut health, 3, Heard::Silence);
        assert!(health.is_open());
        answer(&mut health, 1, Heard::Silence);
        assert!(!health.is_open());
    }

    #[test]
    fn one_connect_failure_closes_it() {
        let health = closed();
        assert_eq!(health.may_send(NOW, PLENTY, Rank::High), 0);
        let shown = health.shown();
        assert_eq!((shown.state, shown.window, shown.in_flight), ("closed", 0, 0));
        assert_eq!(shown.probe_at, Some(NOW.plus(1_000)));
        assert_eq!(shown.last_error, Some(("connect_refused", NOW)));
        assert_eq!(health.next_wake(), Some(NOW.plus(1_000)));
    }

    /// docs/design.md 4.3: one delivery after 1 s, doubling to at most 30 s.
    #[test]
    fn probes_double_to_thirty_seconds() {
        let mut health = closed();
        let mut last = NOW;
        for distance in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000] {
            let now = first_chance(&health, last);
            assert_eq!(now.since(last), distance);
            assert_eq!(health.next_wake(), Some(now));
            assert_eq!(health.may_send(now, PLENTY, Rank::Normal), 1);
            health.sent(now, 1);
            assert_eq!((health.may_send(now, PLENTY, Rank::High), health.shown().state), (0, "probing"));
            health.answered(now, CONDEMNED, None);
            last = now;
        }
    }

    #[test]
    fn a_probe_goes_out_without_any_capacity() {
        assert_eq!(closed().may_send(NOW.plus(1_000), 0, Rank::Normal), 1);
    }

    #[test]
    fn a_slow_probe_does_not_stretch_the_distance() {
        // 10 s until the failure is known: the next probe goes a breath later, as the delay of 2 s has passed.
        let mut health = closed();
        let sent = NOW.plus(1_000);
        health.sent(sent, 1);
        health.answered(sent.plus(10_000), Heard::Silence, None);
        assert_eq!(health.next_wake(), Some(sent.plus(11_000)));
        // 30 s: at once.
        let mut health = closed();
        health.sent(sent, 1);
        health.answered(sent.plus(30_000), Heard::Silence, None);
        assert_eq!(health.next_wake(), Some(sent.plus(30_000)));
    }

    #[test]
    fn retry_after_is_kept() {
        let mut health = Health::new();
        health.sent(NOW, 2);
        health.answered(NOW, until(120_000), None);
        assert_eq!(health.may_send(NOW.plus(119_999), PLENTY, Rank::High), 0);
        // The answer to what left before does not open it before that time ...
        health.answered(NOW.plus(50), Heard::Answer, None);
        assert_eq!(health.may_send(NOW.plus(60_000), PLENTY, Rank::High), 0);
        assert_eq!(health.may_send(NOW.plus(120_000), PLENTY, Rank::High), 1);
        // ... and a probe that hears a new time keeps that.
        health.sent(NOW.plus(120_000), 1);
        health.answered(NOW.plus(120_050), until(900_000), None);
        assert_eq!(first_chance(&health, NOW.plus(880_000)), NOW.plus(900_000));
        // A short one does not hurry the probe.
        let mut health = Health::new();
        health.sent(NOW, 1);
        health.answered(NOW, until(0), None);
        assert_eq!(health.next_wake(), Some(NOW.plus(1_000)));
    }

    #[test]
    fn a_later_time_of_a_late_answer_counts_too() {
        let mut health = Health::new();
        health.sent(NOW, 3);
        health.answered(NOW, CONDEMNED, None);
        health.answered(NOW, until(60_000), None);
        health.answered(NOW, until(30_000), None);
        assert_eq!(health.next_wake(), Some(NOW.plus(60_000)));
    }

    #[test]
    fn many_failures_of_one_moment_double_nothing() {
        let mut health = Health::new();
        health.sent(NOW, 32);
        answer(&mut health, 32, CONDEMNED);
        assert_eq!(health.next_wake(), Some(NOW.plus(1_000)));
        let now = NOW.plus(1_000);
        health.sent(now, 1);
        health.answered(now, CONDEMNED, None);
        assert_eq!(health.next_wake(), Some(now.plus(2_000)));
    }

    /// docs/design.md 4.3: any answer that does not condemn the origin opens it.
    #[test]
    fn any_answer_opens_it() {
        for heard in [Heard::Answer, Heard::Trouble] {
            // The probe's.
            let mut health = closed();
            health.sent(NOW.plus(1_000), 1);
            health.answered(NOW.plus(1_100), heard, None);
            assert_eq!(health.shown().state, "open");
            assert_eq!(health.may_send(NOW.plus(1_100), PLENTY, Rank::High), WINDOW_START / 2);
            assert_eq!(health.next_wake(), None);
            // That of something which left before it closed.
            let mut health = Health::new();
            health.sent(NOW, 2);
            health.answered(NOW, CONDEMNED, None);
            health.answered(NOW.plus(10), heard, None);
            assert_eq!(health.shown().state, "open");
        }
    }

    #[test]
    fn silence_is_no_sign_of_life() {
        let mut health = Health::new();
        health.sent(NOW, 2);
        health.answered(NOW, CONDEMNED, None);
        health.answered(NOW.plus(10), Heard::Silence, None);
        assert_eq!((health.shown().state, health.next_wake()), ("closed", Some(NOW.plus(1_000))));
        health.sent(NOW.plus(1_000), 1);
        health.answered(NOW.plus(1_500), Heard::Silence, None);
        assert_eq!((health.shown().state, health.next_wake()), ("closed", Some(NOW.plus(3_000))));
    }

    #[test]
    fn while_most_answers_are_5xx_a_5xx_does_not_open_it() {
        let mut health = Health::new();
        health.sent(NOW, 10);
        answer(&mut health, 10, Heard::Trouble);
        assert_eq!(health.shown().state, "closed");
        health.sent(NOW.plus(1_000), 1);
        health.answered(NOW.plus(1_000), Heard::Trouble, None);
        assert_eq!(health.next_wake(), Some(NOW.plus(3_000)));
        // A good probe is about today: the bad answers before it do not close the origin again.
        health.sent(NOW.plus(3_000), 1);
        health.answered(NOW.plus(3_000), Heard::Answer, None);
        health.sent(NOW.plus(3_000), 4);
        answer(&mut health, 3, Heard::Trouble);
        assert!(health.is_open());
        answer(&mut health, 1, Heard::Trouble);
        assert!(!health.is_open());
    }

    #[test]
    fn a_probe_that_never_left_wedges_nothing() {
        let mut health = closed();
        let now = NOW.plus(1_000);
        for _ in 0..5 {
            assert_eq!(health.may_send(now, PLENTY, Rank::High), 1);
            health.sent(now, 1);
            assert_eq!(health.may_send(now, PLENTY, Rank::High), 0);
            health.returned_unsent(1);
        }
        // No failure was seen: the delay is still the first.
        health.sent(now, 1);
        health.answered(now, CONDEMNED, None);
        assert_eq!(health.next_wake(), Some(now.plus(2_000)));
    }

    #[test]
    fn what_left_before_stands_in_for_a_probe_that_never_left() {
        let mut health = Health::new();
        health.sent(NOW, 3);
        health.answered(NOW, CONDEMNED, None);
        let now = NOW.plus(1_000);
        health.sent(now, 1);
        health.returned_unsent(1);
        // Whether that was the probe is not known; the two others will tell.
        assert_eq!(health.may_send(now, PLENTY, Rank::High), 0);
        health.answered(now, CONDEMNED, None);
        assert_eq!(health.next_wake(), Some(now.plus(2_000)));
        health.answered(now, Heard::Answer, None);
        assert!(health.is_open());
    }

    #[test]
    fn a_probe_that_is_never_heard_of_is_followed_by_another() {
        let mut health = closed();
        let mut now = NOW.plus(1_000);
        for _ in 0..3 {
            health.sent(now, 1);
            assert_eq!(health.next_wake(), Some(now.plus(30_000)));
            assert_eq!(first_chance(&health, now), now.plus(30_000));
            now = now.plus(30_000);
        }
        // The late answer of the first of them opens it all the same.
        health.answered(now, Heard::Answer, None);
        assert!(health.is_open());
    }

    #[test]
    fn it_is_condemned_from_elsewhere() {
        let mut health = Health::new();
        health.sent(NOW, 5);
        health.close(NOW, Some(NOW.plus(900_000)), "throttled");
        let shown = health.shown();
        assert_eq!((shown.state, shown.in_flight, shown.probe_at), ("closed", 5, Some(NOW.plus(900_000))));
        assert_eq!(shown.last_error, Some(("throttled", NOW)));
    }

    #[test]
    fn a_clock_put_back_wedges_nothing() {
        let health = closed();
        let past = UnixMillis(NOW.0 - 3_600_000);
        assert_eq!(health.may_send(past, PLENTY, Rank::High), 1);
        let mut health = closed();
        health.sent(NOW.plus(1_000), 1);
        assert_eq!(health.may_send(past, PLENTY, Rank::High), 1);
    }

    #[test]
    fn flapping_makes_it_careful() {
        let mut health = Health::new();
        let mut now = NOW;
        let mut windows = Vec::new();
        for _ in 0..7 {
            windows.push(health.shown().window);
            fill(&mut health, now, PLENTY);
            let n = health.in_flight;
            (0..n).for_each(|_| health.answered(now, CONDEMNED, None));
            now = now.plus(1_000);
            health.sent(now, 1);
            health.answered(now, Heard::Answer, None);
        }
        assert_eq!(windows, [32, 16, 8, 4, 2, 1, 1]);
    }

    #[derive(Clone, Copy, Debug)]
    enum Move {
        Send(usize),
        Hear(Heard),
        Lose(usize),
        Wait(u64),
        Close(Option<u64>),
    }

    fn any_move() -> impl Strategy<Value = Move> {
        let named = || proptest::option::of(0u64..200_000);
        prop_oneof![
            6 => (1usize..80).prop_map(Move::Send),
            6 => Just(Move::Hear(Heard::Answer)),
            3 => Just(Move::Hear(Heard::Trouble)),
            2 => Just(Move::Hear(Heard::Silence)),
            1 => named().prop_map(|millis| Move::Hear(Heard::Condemned { not_before: millis.map(|millis| NOW.plus(millis)) })),
            2 => (1usize..5).prop_map(Move::Lose),
            4 => (0u64..40_000).prop_map(Move::Wait),
            1 => named().prop_map(Move::Close),
        ]
    }

    proptest! {
        /// Never more than allowed in flight, never wedged, and closed no longer than docs/design.md 4.3 says.
        #[test]
        fn any_moves_keep_the_promises(moves in proptest::collection::vec(any_move(), 0..300), capacity in 1usize..300) {
            let mut health = Health::new();
            let mut now = NOW;
            let mut in_flight = 0usize;
            let mut named = NOW;
            for step in moves {
                match step {
                    Move::Send(n) => {
                        let allowed = health.may_send(now, capacity, Rank::High);
                        prop_assert!(allowed <= capacity);
                        prop_assert!(health.may_send(now, capacity, Rank::Normal) <= allowed);
                        if health.is_open() {
                            prop_assert!(allowed == 0 || in_flight + allowed <= health.shown().window.min(capacity));
                        } else {
                            prop_assert!(allowed <= 1);
                            prop_assert!(allowed == 0 || now >= named || health.shown().state == "probing", "before the named time");
                        }
                        let n = n.min(allowed);
                        health.sent(now, n);
                        in_flight += n;
                    }
                    Move::Hear(heard) if in_flight > 0 => {
                        let was_open = health.is_open();
                        health.answered(now, heard, None);
                        in_flight -= 1;
                        if let Heard::Condemned { not_before } = heard {
                            prop_assert!(!health.is_open());
                            named = if was_open { not_before.unwrap_or(now) } else { named.max(not_before.unwrap_or(now)) };
                        }
                    }
                    Move::Hear(_) => {}
                    Move::Lose(n) => {
                        let n = n.min(in_flight);
                        health.returned_unsent(n);
                        in_flight -= n;
                    }
                    Move::Wait(millis) => now = now.plus(millis),
                    Move::Close(millis) => {
                        let not_before = millis.map(|millis| NOW.plus(millis));
                        health.close(now, not_before, "throttled");
                        named = named.max(not_before.unwrap_or(now));
                    }
                }
                let shown = health.shown();
                prop_assert_eq!(shown.in_flight, in_flight);
                match health.next_wake() {
                    None => prop_assert!(health.is_open() && shown.window >= 1),
                    Some(wake) => {
                        prop_assert!(!health.is_open());
                        prop_assert!(wake <= now.plus(PROBE_DELAY_MAX_MILLIS).max(named), "{:?}", shown);
                        prop_assert!(health.may_send(wake.max(now), 0, Rank::Normal) == 1, "awake, and nothing to do");
                    }
                }
            }
            // Never wedged: with nothing but good answers it is open as soon as what it waits for has passed.
            for _ in 0..in_flight {
                health.answered(now, Heard::Answer, None);
            }
            if let Some(wake) = health.next_wake() {
                now = now.max(wake);
                prop_assert_eq!(health.may_send(now, capacity, Rank::Normal), 1);
                health.sent(now, 1);
                health.answered(now, Heard::Answer, None);
            }
            prop_assert!(health.is_open());
            prop_assert!(health.may_send(now, capacity, Rank::Normal) >= 1);
        }
    }
}
