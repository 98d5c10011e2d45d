//! The only caller of the system's wall clock. Everything that decides takes the time as an argument, so tests play it.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::message::UnixMillis;

/// The wall clock now.
pub fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
