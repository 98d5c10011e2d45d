//! How push services fare, by origin: how much each may be given at once, and when one that is closed is tried again.
//!
//! [`health`] is the state of one origin, [`table`] has the health of all of them behind one lock.

pub mod health;
pub mod table;
