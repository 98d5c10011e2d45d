//! Who waits for the results of a `test`: told by the writer as its recipients end, whether or not events are kept of that.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use crate::message::{Ending, SubscriptionId};

/// How a recipient of a watched message has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Result {
    pub subscription: SubscriptionId,
    pub ending: Ending,
    /// The status of the push service's answer, if there was one.
    pub status: Option<u16>,
    pub reason: &'static str,
}

/// A watched message; it is bounded by the recipients of a single, and dropped when all have ended or nobody listens.
pub struct Watch {
    pub app: Arc<str>,
    pub results: UnboundedSender<Result>,
    pub left: usize,
}
