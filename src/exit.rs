//! The end of a command: exit codes, which are those of `sysexits.h`, and the sentence that goes with each.
//!
//! systemd decides by these numbers whether a restart can help (`RestartPreventExitStatus=64 77 78` in `fanfare.service`), so a
//! failure that needs a person must never end with a number that says "try again".

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::journal;
use crate::printable;

/// What the caller can do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Not a failure of ours: whoever read the output has gone (`fanfare events | head`).
    Done = 0,
    /// The command or the request is wrong: whoever wrote it mends it.
    Usage = 64,
    /// The daemon, or what was asked for, is not there.
    Unavailable = 69,
    /// Reading or writing failed.
    Io = 74,
    /// The same command can succeed later.
    Temporary = 75,
    /// Somebody has no right to something, or everybody has a right to a private key.
    Permission = 77,
    /// The configuration is wrong.
    Configuration = 78,
}

/// Why a command ends without success. The message is for the person at the terminal and says what to do next.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
}

impl Failure {
    /// A failure with what the person at the terminal reads.
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into() }
    }

    /// An I/O error met while doing `what` ("cannot write /etc/fanfare/vapid.pem").
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Failure {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Io,
        };
        Failure::new(exit, format!("{what}: {error}"))
    }

    /// Standard output took no more. Exit 0 if its reader has gone (`fanfare setup | head`), which is no failure, else 74.
    pub fn output(error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(Exit::Done, ""),
            _ => Failure::new(Exit::Io, format!("cannot write to standard output: {error}")),
        }
    }

    /// Tells the person, and gives the process its exit code. The message may have several lines. Where standard error takes no
    /// more, the exit code alone tells.
    pub fn report(&self) -> ExitCode {
        if self.exit != Exit::Done {
            let _unread = writeln!(io::stderr(), "{}", self.told(journal::is_stderr()));
        }
        ExitCode::from(self.exit as u8)
    }
}

impl Failure {
    /// In the journal it is one entry, with its priority.
    fn told(&self, in_journal: bool) -> String {
        match in_journal {
            true => format!("{}fanfare: {}", journal::ERROR, printable::joined(&self.message)),
            false => format!("fanfare: {}", printable::lines(&self.message)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_the_journal_a_failure_is_one_entry_with_its_priority() {
        let failure = Failure::new(Exit::Configuration, "the configuration cannot be used:\na: wrong\nb: wrong too");
        assert_eq!(failure.told(true), "<3>fanfare: the configuration cannot be used: a: wrong; b: wrong too");
        assert_eq!(failure.told(false), "fanfare: the configuration cannot be used:\na: wrong\nb: wrong too");
    }
}
