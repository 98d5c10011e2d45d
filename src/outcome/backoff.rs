//! When a delivery that was condemned by its answer is tried again.
//!
//! Promise: the waits grow, no two deliveries are made to wait in step, a time that the push service named is kept, and no
//! attempt is planned for a moment at which it could not be made any more.

use crate::message::UnixMillis;

/// How long before its deadline an attempt has to be due, in milliseconds: less than 1 s left of a TTL is `expired` (promise 3),
/// and the way from the due row to the socket takes a few queues of at most 20 ms each (docs/design.md 2.3).
pub const LAST_CALL_MILLIS: u64 = 1_100;

/// Lower and upper end of a wait, in milliseconds: `retry.min` and `retry.max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    min: u64,
    max: u64,
}

impl Bounds {
    /// None if `min` is 0 (a retry without any wait is a loop) or above `max`.
    pub fn new(min_millis: u64, max_millis: u64) -> Option<Bounds> {
        (min_millis > 0 && min_millis <= max_millis).then_some(Bounds { min: min_millis, max: max_millis })
    }
}

/// When the attempt after the `attempt`-th failed one (counted from 1, the one just answered included) is made.
///
/// The wait is uniform between `min` and `min(max, min * 2^attempt)`. The attempt is neither before `not_before`, the time
/// that the service named, nor past `deadline`. `random` is any number, uniform over its whole range.
///
/// "Never past the deadline" cuts the range from which the wait is drawn, not the wait: a delivery whose next wait would reach
/// past its deadline gets one more attempt before it, and a list whose service was down until the end does not come back as
/// one wave in its last second. None when even the shortest wait, or `not_before`, leaves less than [`LAST_CALL_MILLIS`]: no
/// attempt can follow, so the delivery ends as `expired` without being kept any longer.
pub fn retry_at(
    now: UnixMillis,
    attempt: u8,
    bounds: Bounds,
    not_before: Option<UnixMillis>,
    deadline: UnixMillis,
    random: u64,
) -> Option<UnixMillis> {
    let room = deadline.since(now).checked_sub(LAST_CALL_MILLIS)?;
    let asked = not_before.map_or(0, |time| time.since(now));
    if bounds.min > room || asked > room {
        return None;
    }
    let grown = if u32::from(attempt) < bounds.min.leading_zeros() { bounds.min << attempt } else { u64::MAX };
    let longest = grown.min(bounds.max).min(room);
    Some(now.plus(between(bounds.min, longest, random).max(asked)))
}

/// A number from `low` to `high`, both included.
fn between(low: u64, high: u64, random: u64) -> u64 {
    let values = u128::from(high - low) + 1;
    low + ((u128::from(random) * values) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const FAR: UnixMillis = UnixMillis(NOW.0 + 28 * 24 * 3_600_000);

    fn defaults() -> Bounds {
        Bounds::new(1_000, 3_600_000).expect("min below max")
    }

    fn wait(attempt: u8, random: u64) -> u64 {
        retry_at(NOW, attempt, defaults(), None, FAR, random).expect("far from the deadline").since(NOW)
    }

    #[test]
    fn bounds_refuse_bad_pairs() {
        assert_eq!(Bounds::new(0, 5), None);
        assert_eq!(Bounds::new(6, 5), None);
        assert!(Bounds::new(5, 5).is_some());
    }

    #[test]
    fn the_range_doubles_with_each_attempt_up_to_the_maximum() {
        for (attempt, longest) in [(1, 2_000), (2, 4_000), (5, 32_000), (11, 2_048_000), (12, 3_600_000), (255, 3_600_000)] {
            assert_eq!(wait(attempt, 0), 1_000, "attempt {attempt}");
            assert_eq!(wait(attempt, u64::MAX), longest, "attempt {attempt}");
        }
        assert_eq!(wait(1, u64::MAX / 2), 1_500);
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let mut tenths = [0u32; 10];
        let mut random = 1u64;
        for _ in 0..10_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            tenths[((wait(4, random) - 1_000) * 10 / 15_001) as usize] += 1;
        }
        assert!(tenths.iter().all(|&count| (800..1_200).contains(&count)), "{tenths:?}");
    }

    #[test]
    fn a_named_time_is_kept_and_a_longer_wait_too() {
        let at = |not_before: u64, random| retry_at(NOW, 3, defaults(), Some(NOW.plus(not_before)), FAR, random);
        assert_eq!(at(120_000, u64::MAX), Some(NOW.plus(120_000)));
        assert_eq!(at(2_000, u64::MAX), Some(NOW.plus(8_000)));
        // A time in the past is no reason to hurry.
        assert_eq!(retry_at(NOW, 3, defaults(), Some(UnixMillis(5)), FAR, 0), Some(NOW.plus(1_000)));
    }

    #[test]
    fn the_deadline_cuts_the_range() {
        let deadline = NOW.plus(10_000 + LAST_CALL_MILLIS);
        assert_eq!(retry_at(NOW, 12, defaults(), None, deadline, u64::MAX), Some(NOW.plus(10_000)));
        assert_eq!(retry_at(NOW, 12, defaults(), None, deadline, 0), Some(NOW.plus(1_000)));
        assert_eq!(retry_at(NOW, 12, defaults(), None, deadline, u64::MAX / 2), Some(NOW.plus(5_500)));
    }

    #[test]
    fn no_attempt_fits_any_more() {
        let none = |left: u64, not_before: Option<u64>| {
            retry_at(NOW, 1, defaults(), not_before.map(|wait| NOW.plus(wait)), NOW.plus(left), 0).is_none()
        };
        assert!(none(0, None) && none(1_000, None) && none(999 + LAST_CALL_MILLIS, None));
        assert!(!none(1_000 + LAST_CALL_MILLIS, None));
        assert!(none(60_000, Some(60_000)) && none(60_000, Some(60_001 - LAST_CALL_MILLIS)));
        assert!(!none(60_000, Some(60_000 - LAST_CALL_MILLIS)));
        // The deadline has passed.
        assert_eq!(retry_at(NOW, 1, defaults(), None, UnixMillis(NOW.0 - 1), 0), None);
    }

    proptest! {
        #[test]
        fn always_inside_its_limits(
            attempt in any::<u8>(), min in 1u64..=u64::MAX, more in any::<u64>(), named in proptest::option::of(any::<u64>()),
            now in 0u64..=1 << 45, deadline in any::<u64>(), random in any::<u64>(),
        ) {
            let bounds = Bounds::new(min, min.saturating_add(more)).expect("min below max");
            let (now, deadline, named) = (UnixMillis(now), UnixMillis(deadline), named.map(UnixMillis));
            if let Some(time) = retry_at(now, attempt, bounds, named, deadline, random) {
                prop_assert!(time.since(now) >= min);
                prop_assert!(time.plus(LAST_CALL_MILLIS) <= deadline);
                prop_assert!(named.is_none_or(|named| time >= named));
                prop_assert!(time.since(now) <= bounds.max || Some(time) == named);
            }
        }
    }
}
