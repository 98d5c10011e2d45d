//! Picks what is due, lane by lane, and hands out *runs*: a row, from where, how many at most. It sees keys, never a body.
//!
//! Promises. A run is handed out only if its origin has places for it. In a service the more urgent lane goes first; in a lane
//! singles, what waited by itself, and each list take turns, so none of them waits for more than one turn of the others. A closed
//! origin costs nothing but its probes. Memory holds a bounded number of rows per lane; what is behind them is on disk.
//!
//! [`Schedule::step`] does all that is to be done at one moment and says when to call it again. Time is passed in.
//!
//! `step.rs` is one such moment, `learn.rs` takes the writer's news, `lane.rs` has the rows of a lane, `list.rs` lists and campaigns;
//! [`pace`] is the rate of a list, [`ring`] the turns of lists in a lane.

mod lane;
mod learn;
mod list;
pub mod pace;
pub mod ring;
mod step;
#[cfg(test)]
mod tests;

pub use self::step::{Queues, RUN_MAX, Schedule};
