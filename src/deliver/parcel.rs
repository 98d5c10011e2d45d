//! A delivery in the pool, together with the duty to answer it exactly once.

use std::time::Instant;

use crate::message::{Answer, Answered, Loss, Rank, Sealed};
use crate::queue::Sender;

/// The duty cannot be lost: a parcel that is dropped unanswered (a task that panics, a runtime that shuts down) answers
/// [`Answer::Stopped`] if it never left, else [`Loss::Closed`].
pub(super) struct Parcel {
    /// None once it is answered.
    sealed: Option<Sealed>,
    answers: Sender<Answered>,
    /// When it was handed to the connection that has it.
    left: Option<Instant>,
    /// How often a peer has refused to process it (REFUSED_STREAM, beyond GOAWAY's last stream).
    pub(super) resends: u8,
}

impl Parcel {
    pub(super) fn new(sealed: Sealed, answers: Sender<Answered>) -> Parcel {
        Parcel { sealed: Some(sealed), answers, left: None, resends: 0 }
    }

    pub(super) fn sealed(&self) -> &Sealed {
        self.sealed.as_ref().expect("only `answer` takes it, and that consumes the parcel")
    }

    pub(super) fn rank(&self) -> Rank {
        self.sealed().delivery.message.urgency.rank()
    }

    /// It goes to a connection now.
    pub(super) fn leave(&mut self, now: Instant) {
        self.left = Some(now);
    }

    /// The peer has not processed it: it is as if it had never left.
    pub(super) fn come_back(&mut self) {
        self.left = None;
    }

    pub(super) fn answer(mut self, answer: Answer) {
        self.send(answer);
    }

    fn send(&mut self, answer: Answer) {
        let Some(Sealed { delivery, origin, key, .. }) = self.sealed.take() else { return };
        let latency_micros = self.left.map_or(0, |left| u64::try_from(left.elapsed().as_micros()).unwrap_or(u64::MAX));
        // Nobody listens any more only when the process ends: the delivery is due again at the next start.
        let _ = self.answers.send(Answered { delivery, origin, key, answer, latency_micros });
    }
}

impl Drop for Parcel {
    fn drop(&mut self) {
        self.send(if self.left.is_some() { Answer::Lost(Loss::Closed) } else { Answer::Stopped });
    }
}
