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

#[cfg(test)]
mod tests {
    use super::*;

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
