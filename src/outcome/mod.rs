//! Settles what came back: one thread that asks [`mod@verdict`] what each answer means, tells the origin's health, and hands what is
//! to be written to the writer, in slices.

pub mod backoff;
pub mod retry_after;
pub mod verdict;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock;
use crate::message::{Answer, Answered, Blame, Ending, UnixMillis, Verdict};
use crate::metrics;
use crate::origin::health::Heard;
use crate::origin::table::Table;
use crate::outcome::backoff::{Bounds, retry_at};
use crate::outcome::verdict::{Case, last_error, verdict};
use crate::protocol::reason::{self, concerns_the_operator};
use crate::queue::{Bell, Receiver, RecvTimeoutError, Sender};
use crate::services::Origins;
use crate::store::Store;
use crate::store::writer::{Settle, Settled, Settlement};
use crate::vapid::token::Tokens;

/// Answers that are settled in one slice.
const SLICE: usize = 256;
/// The pause after a slice that was not full: what comes meanwhile is settled together, where each answer by itself would wake
/// this thread, the writer and the scheduler. Nothing that is sent waits for it but the next of a service whose window is full.
const PAUSE: Duration = Duration::from_millis(1);

/// What the outcome thread works with.
pub struct Outcome {
    pub store: Arc<Store>,
    pub answers: Receiver<Answered>,
    pub settles: Sender<Settle>,
    pub origins: Arc<Table>,
    pub tokens: Arc<Tokens>,
    /// Rung when places have become free.
    pub wake: Bell,
    pub retry: Bounds,
    /// Whether padding is configured.
    pub padding: bool,
    /// Set when everything that was posted is answered.
    pub stop: Arc<AtomicBool>,
    pub complaints: Complaints,
    pub counted: metrics::Answers,
}

/// Keeps the log readable when a push service refuses thousands a second: one line a second for each reason, with the count.
#[derive(Default)]
pub struct Complaints {
    /// When the last line was written, and how many were left out since.
    told: HashMap<&'static str, (UnixMillis, u64)>,
}

impl Complaints {
    /// None: not now. Else how many were left out since the last line.
    fn tell(&mut self, reason: &'static str, now: UnixMillis) -> Option<u64> {
        const PAUSE_MILLIS: u64 = 1_000;
        match self.told.get_mut(reason) {
            Some((last, left_out)) if now.since(*last) < PAUSE_MILLIS && now >= *last => {
                *left_out += 1;
                None
            }
            told => {
                let left_out = told.map_or(0, |(_, left_out)| *left_out);
                self.told.insert(reason, (now, 0));
                Some(left_out)
            }
        }
    }
}

impl Outcome {
    /// Works until `stop` is set and nothing is left.
    pub fn run(mut self, progress: impl Fn()) {
        loop {
            progress();
            let first = match self.answers.recv_timeout(Duration::from_millis(200)) {
                Ok(answered) => answered,
                Err(RecvTimeoutError::Timeout) if !self.stop.load(Ordering::Relaxed) => continue,
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let now = clock::now();
            let mut settled = vec![self.settle(first, now)];
            while settled.len() < SLICE
                && let Ok(answered) = self.answers.try_recv()
            {
                settled.push(self.settle(answered, now));
            }
            let full = settled.len() == SLICE;
            // The writer ends after this thread.
            let _ended = self.settles.send(Settle::Slice(settled));
            self.wake.ring();
            if !full {
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// What becomes of one delivery.
    fn settle(&mut self, answered: Answered, now: UnixMillis) -> Settled {
        let service = answered.delivery.recipient.service;
        let keys = self.tokens.keys(&answered.delivery.message.app);
        let signed = keys.iter().position(|key| *key == answered.key);
        let tried = answered.delivery.tried_keys | signed.map_or(0, |index| 1u8.checked_shl(index as u32).unwrap_or(0));
        let other_key = (0..keys.len().min(8)).any(|index| tried >> index & 1 == 0);
        let (verdict, blame) = verdict(&Case::of(&answered, self.padding, other_key, now));
        let error = last_error(&answered.answer);
        self.counted.count(&self.store.services, &answered);
        let heard = Heard::of(&answered.answer, blame);
        self.origins.answered(service, &answered.origin, now, heard, error);
        match blame {
            Blame::Service { not_before } => self.origins.close_service(service, now, not_before, error.unwrap_or("throttled")),
            Blame::Sender => {
                let remade = self.tokens.remake(&answered.delivery.message.app, answered.key, &answered.origin, now);
                if let Some(left_out) = self.complaints.tell("token", now) {
                    tracing::error!(
                        host = answered.origin.host(),
                        app = %answered.delivery.message.app,
                        remade,
                        left_out,
                        "the push service refuses our VAPID token: check the clock and the subject"
                    );
                }
            }
            Blame::Delivery | Blame::Origin { .. } | Blame::Trouble => {}
        }
        let Answered { mut delivery, origin, key, answer, .. } = answered;
        let status = match &answer {
            Answer::Response { status, .. } => Some(status.as_u16()),
            _ => None,
        };
        let deadline = delivery.message.expires;
        let what = match verdict {
            Verdict::Ended { ending, reason } => {
                if concerns_the_operator(reason)
                    && let Some(left_out) = self.complaints.tell(reason, now)
                {
                    tracing::warn!(
                        host = origin.host(),
                        status,
                        reason,
                        left_out,
                        "a delivery ended in a way that concerns the operator"
                    );
                }
                Settlement::Ended { ending, reason, status, key: Some(key) }
            }
            Verdict::Retry { not_before, reason } => {
                delivery.attempts = delivery.attempts.saturating_add(1);
                metrics::retried(&self.store.services.name(service), reason);
                match retry_at(now, delivery.attempts, self.retry, not_before, deadline, random()) {
                    Some(until) => Settlement::Wait { until, counts_retry: true },
                    None => expired(status, key),
                }
            }
            Verdict::OtherKey => {
                delivery.tried_keys = tried;
                Settlement::Wait { until: now, counts_retry: true }
            }
            Verdict::Shrink => {
                delivery.shrink = true;
                Settlement::Wait { until: now, counts_retry: true }
            }
            // It goes back to its lane, which is closed. In a service of several origins the lane is not: it waits by itself.
            Verdict::Return { reason } => {
                metrics::returned(&self.store.services.name(service), reason);
                let alone = matches!(self.store.services.origins(service), Some(Origins::One(_)));
                match (alone, &answer) {
                    (true, _) | (_, Answer::Stopped) => Settlement::Back,
                    (false, _) => {
                        let until = self.origins.comes_again(&origin, now).min(deadline);
                        Settlement::Wait { until, counts_retry: false }
                    }
                }
            }
        };
        Settled { delivery, what }
    }
}

fn expired(status: Option<u16>, key: crate::message::KeyId) -> Settlement {
    Settlement::Ended { ending: Ending::Expired, reason: reason::DEADLINE, status, key: Some(key) }
}

/// Spreads retries; the library's generator costs no system call.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without random numbers the shortest wait is taken.
    let _spread = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_complained_of_once_a_second_with_a_count() {
        let mut complaints = Complaints::default();
        assert_eq!(complaints.tell("bad_ttl", UnixMillis(5_000)), Some(0));
        assert_eq!(complaints.tell("bad_ttl", UnixMillis(5_000)), None);
        assert_eq!(complaints.tell("bad_ttl", UnixMillis(5_999)), None);
        assert_eq!(complaints.tell("bad_topic", UnixMillis(5_999)), Some(0), "each reason by itself");
        assert_eq!(complaints.tell("bad_ttl", UnixMillis(6_000)), Some(2));
        assert_eq!(complaints.tell("bad_ttl", UnixMillis(7_500)), Some(0));
        assert_eq!(complaints.tell("bad_ttl", UnixMillis(1_000)), Some(0), "a clock that was set back silences nothing");
    }
}
