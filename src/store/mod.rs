//! The only module that knows RocksDB. It promises that what [`writer`] has answered is on disk (fsynced write-ahead log),
//! and that all changes by an outcome are written in one synced batch (a checkpoint); see docs/design.md 3.5.
//!
//! - [`writer`]: the one thread that writes: group commits and checkpoints.
//! - [`commit`]: what a connection prepares for the writer.
//! - [`run`]: the deliveries that a worker takes together; [`load`]: what it reads before it seals.
//! - [`read`]: what `status`, `stats`, `list_messages` answer; [`log`]: the event log.
//! - [`shares`]: how much each app may have of a bounded thing.
//! - [`turns`]: the writer's queue, in which sockets take turns.
//! - [`sweep`]: deadlines, retention, space.
//! - [`registry`]: subscriptions, accounts, segments, and walking over them; [`presence`]: who is online.
//! - [`erase`]: erasures that the sweep finishes; [`watch`]: who waits for the results of a `test`.
//! - [`backup`]: a copy of it all, and the way back.
//! - [`live`]: what of all that is in memory.
//! - [`key`], [`record`]: bytes <-> types.
//!
//! Underneath: `state.rs` is the open [`Store`], `open.rs` opens it, `database.rs` is RocksDB with its options, `reopen.rs` gives it up
//! and takes it back, `rows.rs` reads and writes rows, [`family`] names the column families, `gates.rs` keeps lines out or deliveries
//! in for a while, `error.rs` names what can fail.

pub mod backup;
#[cfg(test)]
mod bounds;
pub mod commit;
pub mod concerned;
mod database;
pub mod erase;
mod error;
pub mod family;
mod gates;
#[cfg(test)]
mod harness;
pub mod key;
pub mod live;
pub mod load;
pub mod log;
#[cfg(test)]
mod model;
mod open;
pub mod presence;
pub mod read;
pub mod record;
pub mod registry;
mod reopen;
mod rows;
pub mod run;
pub mod shares;
mod state;
pub mod sweep;
#[cfg(test)]
pub mod testing;
pub mod turns;
pub mod watch;
pub mod writer;

pub use self::error::{OpenError, ReadError, WriteError};
pub use self::gates::Gates;
pub use self::live::list_state;
pub use self::reopen::SPARE_FILES;
pub use self::rows::{Reader, Rows};
pub use self::state::Store;
