//! The journal of systemd, where standard error is connected to it.
//!
//! Each line that is written to it is an entry, and `<3>` at its begin is the entry's priority (sd-daemon(3)): without one all entries
//! have the same, and `journalctl -p warning` shows none of ours.

use std::os::fd::AsFd;
use std::sync::OnceLock;

use nix::sys::stat::fstat;

/// Whether standard error is the journal: `JOURNAL_STREAM` names its device and inode (systemd.exec(5)). A process inherits the
/// variable, so the numbers decide.
pub fn is_stderr() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| {
        let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
        fstat(std::io::stderr().as_fd()).is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
    })
}

/// The prefix of an error's entry.
pub const ERROR: &str = "<3>";

/// The prefix of an entry of this level.
pub fn prefix(level: tracing::Level) -> &'static str {
    match level {
        tracing::Level::ERROR => ERROR,
        tracing::Level::WARN => "<4>",
        tracing::Level::INFO => "<6>",
        _ => "<7>",
    }
}
