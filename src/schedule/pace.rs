//! The speed that a list or a campaign asked for: `rate` and `spread` of a `send`.
//!
//! Promises. Over any stretch of time, no more go out than the rate times that stretch, and one slice. A spread is even, and ends
//! within its time: what could not go out when it should (the lane was closed, the message paused) is spread over what is left
//! of it, not caught up with in one burst, and a stream is spread over the recipients known so far. It moves no deadline.
//!
//! It holds no clock: time is passed in.

use crate::message::UnixMillis;

/// What goes out at once at most, as a stretch of time: coarse enough that a run has some length, fine enough that a push service
/// sees a stream.
pub const SLICE_MILLIS: u64 = 100;
/// How late a caller may come without the rate falling behind; for slow rates, whose slice is a single delivery.
const LATE_MILLIS: u64 = 50;
/// A spread is done this long before its end, or a tenth of it if that is less: as it may be as long as the TTL, its last delivery
/// must leave while there is still a second to live (promise 3).
const SPARE_MILLIS: u64 = 2_000;
/// Stands in for a rate that is no number above 0, which ingest lets nobody ask for: one a month.
const RATE_MIN: f64 = 4e-7;
/// Sums of fractions may fall short of a whole by this much.
const EPSILON: f64 = 1e-6;

/// The pace of one message.
#[derive(Clone, Debug)]
pub struct Pace {
    /// When the allowances were last brought up to date.
    at: Option<UnixMillis>,
    rate: Option<Rate>,
    spread: Option<Spread>,
}

/// `rate`: an allowance that fills steadily up to a slice.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_milli: f64,
    allowance: f64,
}

/// `spread`: an allowance that fills as what is left needs it.
#[derive(Clone, Copy, Debug)]
struct Spread {
    start: UnixMillis,
    end: UnixMillis,
    /// Recipients known so far, and how many of them were taken.
    known: u64,
    taken: u64,
    allowance: f64,
}

impl Pace {
    /// `rate` in deliveries a second, above 0. `spread`: when it starts, how many seconds it lasts, and how many recipients are known
    /// so far (for a stream 0, then [`Pace::known`]). With both the slower counts, so a rate can make a spread late.
    pub fn new(rate: Option<f64>, spread: Option<(UnixMillis, f64, u64)>) -> Pace {
        let spread = spread.map(|(start, seconds, known)| {
            // A float cast saturates, and takes what is no number for 0.
            let millis = (seconds * 1_000.0) as u64;
            let end = start.plus(millis - SPARE_MILLIS.min(millis / 10));
            // The first goes at the start: a spread over one recipient is no wait.
            Spread { start, end, known, taken: 0, allowance: 1.0 }
        });
        Pace { at: None, rate: rate.map(Rate::new), spread }
    }

    /// How many may go out now.
    pub fn allowed(&mut self, now: UnixMillis) -> usize {
        self.fill(now);
        let rate = self.rate.map_or(f64::INFINITY, |rate| rate.allowance);
        let spread = self.spread.map_or(f64::INFINITY, |spread| spread.allowed(now));
        // A float cast saturates: without rate and spread that is everything.
        (rate.min(spread) + EPSILON).max(0.0) as usize
    }

    /// `n` went out, at most what [`Pace::allowed`] said.
    pub fn took(&mut self, n: usize) {
        if let Some(rate) = &mut self.rate {
            rate.allowance -= n as f64;
        }
        if let Some(spread) = &mut self.spread {
            spread.allowance -= n as f64;
            spread.taken += n as u64;
        }
    }

    /// When to ask again: now if something may go out, else when a part of a slice may that is worth the while.
    /// [`UnixMillis::NEVER`]: all that is known was taken.
    pub fn next(&mut self, now: UnixMillis) -> UnixMillis {
        if self.allowed(now) > 0 {
            return now;
        }
        let rate = self.rate.map_or(0.0, |rate| rate.wait());
        let spread = self.spread.map_or(0.0, |spread| spread.wait(now));
        let wait = rate.max(spread);
        if wait.is_infinite() { UnixMillis::NEVER } else { now.plus((wait.ceil() as u64).max(1)) }
    }

    /// The rate from now on (`resume` may carry a new one); None: as fast as it goes.
    pub fn set_rate(&mut self, now: UnixMillis, rate: Option<f64>) {
        self.fill(now);
        self.rate = rate.map(|per_second| {
            let fresh = Rate::new(per_second);
            // What is owed stays owed: a new rate is no new burst.
            Rate { allowance: self.rate.map_or(fresh.allowance, |old| old.allowance.min(fresh.allowance)), ..fresh }
        });
    }

    /// So many recipients are known by now, all in all (`add` to a stream); spread from now on over what is left of the time.
    pub fn known(&mut self, now: UnixMillis, total: u64) {
        self.fill(now);
        if let Some(spread) = &mut self.spread {
            spread.known = total;
        }
    }

    fn fill(&mut self, now: UnixMillis) {
        let from = self.at.replace(now).unwrap_or(now);
        if let Some(rate) = &mut self.rate {
            rate.allowance = (rate.allowance + now.since(from) as f64 * rate.per_milli).min(rate.most());
        }
        if let Some(spread) = &mut self.spread {
            spread.fill(from, now);
        }
    }
}

impl Rate {
    fn new(per_second: f64) -> Rate {
        // `max` takes the other one for what is no number.
        let fresh = Rate { per_milli: per_second.max(RATE_MIN) / 1_000.0, allowance: 0.0 };
        Rate { allowance: fresh.most(), ..fresh }
    }

    fn most(self) -> f64 {
        most(self.per_milli)
    }

    /// Milliseconds until half a slice may go out: the other half is for callers that come late.
    fn wait(self) -> f64 {
        ((worth(self.per_milli) - self.allowance) / self.per_milli).max(0.0)
    }
}

impl Spread {
    /// Recipients that were not taken yet.
    fn left(self) -> f64 {
        self.known.saturating_sub(self.taken) as f64
    }

    fn allowed(self, now: UnixMillis) -> f64 {
        if now < self.start { 0.0 } else { self.allowance.min(self.left()) }
    }

    /// What is left, over the time that is left.
    fn per_milli(self, now: UnixMillis) -> f64 {
        self.left() / (self.end.since(now.max(self.start)) as f64)
    }

    fn fill(&mut self, from: UnixMillis, now: UnixMillis) {
        if now < self.start {
            return;
        }
        if now >= self.end {
            self.allowance = self.left();
            return;
        }
        let from = from.clamp(self.start, now);
        // What may already go out needs no more time; the rest is due evenly until the end.
        let rest = (self.left() - self.allowance).max(0.0);
        self.allowance += rest * now.since(from) as f64 / self.end.since(from) as f64;
        self.allowance = self.allowance.min(most(self.per_milli(now)));
    }

    fn wait(self, now: UnixMillis) -> f64 {
        if self.left() == 0.0 {
            return f64::INFINITY;
        }
        let until_start = self.start.since(now) as f64;
        let room = self.end.since(now.max(self.start)) as f64;
        let rest = self.left() - self.allowance;
        let wanted = worth(self.per_milli(now)).min(self.left()) - self.allowance;
        until_start + if rest > 0.0 { (wanted / rest * room).clamp(0.0, room) } else { 0.0 }
    }
}

/// The most that an allowance holds: a slice, and at least one delivery with room for a caller that comes late.
fn most(per_milli: f64) -> f64 {
    (per_milli * SLICE_MILLIS as f64).max(1.0 + per_milli * LATE_MILLIS as f64)
}

/// What is worth waking for.
fn worth(per_milli: f64) -> f64 {
    (per_milli * SLICE_MILLIS as f64 / 2.0).max(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: UnixMillis = UnixMillis(1_800_000_000_000);

    /// Plays a caller that takes all it may, each time `late` milliseconds after it was told to come: when how many went out.
    fn play(pace: &mut Pace, from: UnixMillis, millis: u64, late: u64) -> Vec<(u64, usize)> {
        let mut now = from;
        let mut sent = Vec::new();
        while now.since(from) < millis {
            let n = pace.allowed(now);
            if n > 0 {
                pace.took(n);
                sent.push((now.since(START), n));
            }
            let next = pace.next(now);
            assert!(next > now, "all was taken, and there is something at once");
            if next == UnixMillis::NEVER {
                break;
            }
            now = next.plus(late);
        }
        sent
    }

    fn total(sent: &[(u64, usize)]) -> usize {
        sent.iter().map(|(_, n)| n).sum()
    }

    /// The most that went out within any `millis`.
    fn densest(sent: &[(u64, usize)], millis: u64) -> usize {
        (0..sent.len())
            .map(|first| sent[first..].iter().take_while(|(at, _)| at - sent[first].0 < millis).map(|(_, n)| n).sum())
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn without_wishes_everything_may_go() {
        let mut pace = Pace::new(None, None);
        assert_eq!(pace.allowed(START), usize::MAX);
        pace.took(1_000_000);
        assert_eq!((pace.allowed(START), pace.next(START)), (usize::MAX, START));
    }

    #[test]
    fn a_rate_is_kept_over_any_second() {
        for rate in [0.5, 1.0, 3.0, 10.0, 37.0, 1_000.0, 25_000.0] {
            for late in [0, 1, 7, 20, 40] {
                let mut pace = Pace::new(Some(rate), None);
                let sent = play(&mut pace, START, 60_000, late);
                let burst = most(rate / 1_000.0);
                assert!(densest(&sent, 1_000) as f64 <= rate + burst + EPSILON, "{rate} {late}");
                // And it is reached.
                let total = total(&sent) as f64;
                assert!(total >= rate * 60.0 * 0.99 - 1.0 && total <= rate * 60.0 + burst, "{rate} {late}: {total}");
            }
        }
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let mut pace = Pace::new(Some(1_000.0), None);
        assert_eq!(pace.allowed(START), 100);
        pace.took(100);
        assert_eq!(pace.allowed(START.plus(3_600_000)), 100);
    }

    #[test]
    fn a_new_rate_counts_from_now_on() {
        let mut pace = Pace::new(Some(1_000.0), None);
        let before = total(&play(&mut pace, START, 10_000, 0));
        assert!((10_000..=10_100).contains(&before), "{before}");
        let middle = START.plus(10_000);
        pace.set_rate(middle, Some(100.0));
        let after = total(&play(&mut pace, middle, 10_000, 0));
        assert!((985..=1_010).contains(&after), "{after}");
        // Asking again and again gives no burst again and again.
        for _ in 0..100 {
            pace.took(pace.clone().allowed(START.plus(20_000)));
            pace.set_rate(START.plus(20_000), Some(100.0));
        }
        assert_eq!(pace.allowed(START.plus(20_000)), 0);
        pace.set_rate(START.plus(20_000), None);
        assert_eq!(pace.allowed(START.plus(20_000)), usize::MAX);
    }

    #[test]
    fn a_senseless_rate_stops_nothing_for_good() {
        for rate in [0.0, -1.0, f64::NAN] {
            let mut pace = Pace::new(Some(rate), None);
            assert_eq!(pace.allowed(START), 1);
            pace.took(1);
            let next = pace.next(START);
            assert!(next > START && next < UnixMillis::NEVER);
            assert_eq!(pace.allowed(next.plus(1)), 1);
        }
    }

    #[test]
    fn a_spread_is_even_and_ends_in_time() {
        for (known, seconds) in [(1u64, 10.0), (2, 10.0), (10, 3_600.0), (1_000, 60.0), (1_000_000, 60.0), (777, 0.5)] {
            for late in [0, 3, 20] {
                let mut pace = Pace::new(None, Some((START, seconds, known)));
                let millis = (seconds * 1_000.0) as u64;
                let sent = play(&mut pace, START, millis, late);
                assert_eq!(total(&sent) as u64, known, "{known} {seconds} {late}");
                assert!(sent.iter().all(|(at, _)| *at < millis), "{known} {seconds} {late}");
                let quarter: usize = sent.iter().filter(|(at, _)| *at < millis / 4).map(|(_, n)| n).sum();
                let even = known as f64 / 4.0;
                // A tenth for the time that is kept at the end; then what goes at once, and the first.
                let grain = known as f64 * (SLICE_MILLIS / 2 + late) as f64 / millis as f64 + 1.0;
                assert!((quarter as f64 - even).abs() <= even * 0.12 + grain, "{known} {seconds} {late}: {quarter}");
            }
        }
    }

    #[test]
    fn a_spread_leaves_time_for_the_last_attempt() {
        let mut pace = Pace::new(None, Some((START, 60.0, 1_000)));
        let sent = play(&mut pace, START, 60_000, 0);
        assert_eq!(sent.last().map(|(at, _)| *at), Some(58_000));
    }

    #[test]
    fn nothing_goes_before_the_start() {
        let mut pace = Pace::new(None, Some((START, 60.0, 100)));
        let early = UnixMillis(START.0 - 5_000);
        assert_eq!(pace.allowed(early), 0);
        assert_eq!((pace.next(early), pace.allowed(START)), (START, 1));
    }

    #[test]
    fn a_pause_is_spread_over_what_is_left() {
        let mut pace = Pace::new(None, Some((START, 62.0, 6_000)));
        let before = total(&play(&mut pace, START, 20_000, 0));
        assert!((1_980..=2_010).contains(&before), "{before}");
        // Nothing asks for 20 s; then the remaining 4,000 have 20 s instead of 40.
        let again = START.plus(40_000);
        assert!(pace.allowed(again) <= 21, "{}", pace.allowed(again));
        let sent = play(&mut pace, again, 22_000, 0);
        assert_eq!(before + total(&sent), 6_000);
        assert!(densest(&sent, 1_000) <= 230, "{}", densest(&sent, 1_000));
    }

    #[test]
    fn a_stream_is_spread_over_what_is_known() {
        let mut pace = Pace::new(None, Some((START, 62.0, 0)));
        assert_eq!((pace.allowed(START), pace.next(START)), (0, UnixMillis::NEVER));
        let mut sent = Vec::new();
        // A thousand more each second for half of the time: told every millisecond, so that fractions must be kept.
        for millis in 0..30_000 {
            let now = START.plus(millis);
            pace.known(now, millis + 1);
            let n = pace.allowed(now);
            pace.took(n);
            sent.push((millis, n));
        }
        let early = total(&sent);
        assert!((5_000..20_000).contains(&early), "{early}");
        sent.extend(play(&mut pace, START.plus(30_000), 32_000, 0));
        assert_eq!(total(&sent), 30_000);
        assert!(densest(&sent, 1_000) <= 900, "{}", densest(&sent, 1_000));
        // What is added after the end goes at once.
        pace.known(START.plus(100_000), 30_005);
        assert_eq!(pace.allowed(START.plus(100_000)), 5);
    }

    #[test]
    fn the_slower_of_both_counts() {
        let mut pace = Pace::new(Some(10.0), Some((START, 10.0, 1_000)));
        assert!(total(&play(&mut pace, START, 10_000, 0)) <= 102);
        let mut pace = Pace::new(Some(1_000.0), Some((START, 10.0, 100)));
        let sent = play(&mut pace, START, 10_000, 0);
        assert_eq!(total(&sent), 100);
        assert!(densest(&sent, 1_000) <= 13);
    }

    #[test]
    fn a_clock_put_back_stops_nothing() {
        let mut pace = Pace::new(Some(10.0), None);
        pace.took(pace.clone().allowed(START));
        let past = UnixMillis(START.0 - 3_600_000);
        assert_eq!(pace.allowed(past), 0);
        assert!(pace.next(past).since(past) <= 200);
        assert_eq!(pace.allowed(past.plus(200)), 1);
    }

    proptest! {
        #[test]
        fn any_caller_is_held_to_the_rate_and_the_total(
            rate in proptest::option::of(0.1f64..5_000.0), seconds in 0.0f64..100.0, known in 0u64..50_000,
            waits in proptest::collection::vec((0u64..500, 0usize..200), 1..300),
        ) {
            let mut pace = Pace::new(rate, Some((START, seconds, known)));
            let (mut now, mut taken) = (START, 0);
            for (wait, wish) in waits {
                now = now.plus(wait);
                let n = wish.min(pace.allowed(now));
                pace.took(n);
                taken += n as u64;
                prop_assert!(taken <= known);
                if let Some(rate) = rate {
                    let most = rate * now.since(START) as f64 / 1_000.0 + most(rate / 1_000.0);
                    prop_assert!(taken as f64 <= most + 0.001);
                }
                let next = pace.next(now);
                prop_assert!(next >= now);
                // Whoever comes when told finds something.
                if next != UnixMillis::NEVER {
                    prop_assert!(pace.clone().allowed(next) > 0, "{:?} {:?}", pace, next.since(now));
                } else {
                    prop_assert_eq!(taken, known);
                }
            }
        }
    }
}
