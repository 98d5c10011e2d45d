//! What is said where nothing can be read for a request, or nothing is there; an error of the store is one to try again.

use crate::ingest::registry::{ListError, bad_cursor};
use crate::metrics;
use crate::protocol::reply::write_problem;
use crate::protocol::request::{Code, Problem, RequestId};
use crate::store::ReadError;

/// A refusal of what only reads.
pub(super) struct Refusal {
    pub(super) problem: Problem,
    pub(super) retry_after: Option<f64>,
    pub(super) extra: Vec<(&'static str, String)>,
}

impl Refusal {
    /// One that the same line would meet again.
    pub(super) fn of(problem: Problem) -> Refusal {
        Refusal { problem, retry_after: None, extra: Vec::new() }
    }

    pub(super) fn not_found() -> Refusal {
        let message = "no such message".to_owned();
        Refusal::of(Problem { code: Code::NotFound, field: Some("message_id".to_owned()), message })
    }

    pub(super) fn no_subscription() -> Refusal {
        let message = "no such subscription".to_owned();
        Refusal::of(Problem { code: Code::NotFound, field: Some("subscription_id".to_owned()), message })
    }

    pub(super) fn stopping() -> Refusal {
        let problem = Problem { code: Code::ShuttingDown, field: None, message: "the daemon is stopping".to_owned() };
        Refusal { problem, retry_after: Some(5.0), extra: Vec::new() }
    }

    pub(super) fn write(&self, id: &RequestId, out: &mut Vec<u8>) {
        metrics::rejected(self.problem.code);
        let extra: Vec<(&str, &str)> = self.extra.iter().map(|(name, value)| (*name, value.as_str())).collect();
        write_problem(out, id, &self.problem, self.retry_after, &extra);
    }
}

impl From<ListError> for Refusal {
    fn from(error: ListError) -> Refusal {
        match error {
            ListError::Cursor => Refusal::of(bad_cursor()),
            ListError::Read => Refusal::from(ReadError),
        }
    }
}

impl From<ReadError> for Refusal {
    fn from(_: ReadError) -> Refusal {
        let problem = Problem { code: Code::Internal, field: None, message: "the store cannot be read just now".to_owned() };
        Refusal { problem, retry_after: Some(5.0), extra: Vec::new() }
    }
}
