//! Log lines that somebody outside can cause (a client, a push service, a name server, whoever asks for metrics): of each kind a few
//! in a while, the next with the number of those that were left out. A log that grows at an outsider's will fills the disk that the
//! store needs, and hides what matters.
//!
//! Memory: a few words a kind; the kinds are statics beside the lines they limit.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One kind of line.
pub struct Complaint {
    /// Lines in a pause.
    lines: u32,
    pause: Duration,
    state: Mutex<State>,
}

struct State {
    /// When the pause began, and the lines that were written since.
    began: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl Complaint {
    /// A kind of which one line a minute says enough.
    pub const fn each_minute() -> Complaint {
        Complaint::new(1, Duration::from_secs(60))
    }

    /// A kind whose lines differ (each names a host), so that some of them are wanted: ten in ten seconds.
    pub const fn some() -> Complaint {
        Complaint::new(10, Duration::from_secs(10))
    }

    const fn new(lines: u32, pause: Duration) -> Complaint {
        Complaint { lines, pause, state: Mutex::new(State { began: None, written: 0, left_out: 0 }) }
    }

    /// None: not now. Else the line may be written, and so many were left out since the last one.
    pub fn tell(&self) -> Option<u64> {
        self.tell_at(Instant::now())
    }

    fn tell_at(&self, now: Instant) -> Option<u64> {
        // Nothing that holds it can panic.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.began.is_none_or(|began| now.saturating_duration_since(began) >= self.pause) {
            (state.began, state.written) = (Some(now), 0);
        }
        if state.written < self.lines {
            state.written += 1;
            Some(std::mem::take(&mut state.left_out))
        } else {
            state.left_out += 1;
            None
        }
    }
}

/// What is wrong with one peer, which is met again at each try: told when it is something else than before, and then once in ten
/// minutes.
pub struct Repeated<What> {
    told: Mutex<Option<(What, Instant, u64)>>,
}

/// How long the same is not told again.
const AGAIN: Duration = Duration::from_secs(600);

impl<What: PartialEq> Repeated<What> {
    /// Nothing is wrong.
    pub const fn new() -> Repeated<What> {
        Repeated { told: Mutex::new(None) }
    }

    /// None: it was told, not long ago. Else it may be told, and was met so often since it was told last.
    pub fn tell(&self, what: What) -> Option<u64> {
        self.tell_at(what, Instant::now())
    }

    /// Nothing is wrong any more: the next failure is told, whatever it is.
    pub fn over(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn tell_at(&self, what: What, now: Instant) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let left_out = match &mut *told {
            Some((before, at, left_out)) if *before == what => {
                if now.saturating_duration_since(*at) < AGAIN {
                    *left_out += 1;
                    return None;
                }
                *left_out
            }
            _ => 0,
        };
        *told = Some((what, now, 0));
        Some(left_out)
    }
}

impl<What: PartialEq> Default for Repeated<What> {
    fn default() -> Repeated<What> {
        Repeated::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_not_told_at_each_try() {
        let repeated = Repeated::new();
        let start = Instant::now();
        let tell = |seconds, what| repeated.tell_at(what, start + Duration::from_secs(seconds));
        assert_eq!([(0, "refused"), (1, "refused"), (599, "refused")].map(|(at, what)| tell(at, what)), [Some(0), None, None]);
        assert_eq!(
            [(600, "refused"), (601, "refused"), (602, "late"), (603, "refused")].map(|(at, what)| tell(at, what)),
            [Some(2), None, Some(0), Some(0)]
        );
        repeated.over();
        assert_eq!(tell(604, "refused"), Some(0));
    }

    #[test]
    fn a_kind_is_told_so_often_in_a_pause_and_then_with_the_number_that_was_left_out() {
        let complaint = Complaint::new(2, Duration::from_secs(10));
        let start = Instant::now();
        let tell = |seconds| complaint.tell_at(start + Duration::from_secs(seconds));
        assert_eq!([0, 0, 1, 9].map(tell), [Some(0), Some(0), None, None]);
        assert_eq!([10, 10, 19].map(tell), [Some(2), Some(0), None]);
        assert_eq!([40, 40].map(tell), [Some(1), Some(0)]);
    }
}
