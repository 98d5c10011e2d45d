//! What Fanfare is tested and measured with: a strict [mock push service](mock), a [daemon](daemon::Daemon) in a temporary
//! directory, a [client](client::Client) of its socket, a [disk](disk::Disk) that fails, and readings of the [machine], and a [population] that subscribes.
//! For tests also: what a [status](mod@status) must say, the [output] of a program, and [chance](random).
//!
//! The programs print through [say].
//!
//! Nothing here shares code with the daemon: all cryptography is OpenSSL's, and the protocol is written down a second time.

// They panic where the output takes no more: `say` does not.
#![cfg_attr(not(test), warn(clippy::print_stdout, clippy::print_stderr))]

pub mod client;
pub mod daemon;
pub mod disk;
pub mod machine;
pub mod mock;
pub mod output;
pub mod population;
pub mod random;
pub mod say;
pub mod status;

use std::time::{Duration, Instant};

/// Whether a condition comes true in time.
pub fn wait(patience: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
