//! Settles what came back.

pub mod retry_after;
pub mod verdict;
