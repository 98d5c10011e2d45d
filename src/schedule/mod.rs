//! Picks what is due, lane by lane.

pub mod backoff;
pub mod lane;
pub mod pace;
