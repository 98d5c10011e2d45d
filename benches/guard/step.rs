//! Counting without callgrind: the instructions of a child process between two stops of its own, stepped through one by one, some
//! microseconds each. It takes any instruction that the processor knows, and a system that lets a process trace its child. All between
//! the stops counts, also what is `uncounted`.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::parts::{Part, with_batch};
use crate::{Count, own_path};

/// More than any part has, in case that the second stop never comes.
const MOST: u64 = 100_000_000;

/// How a child ends that may not be traced.
const REFUSED: i32 = 77;

static OFFERED: AtomicBool = AtomicBool::new(false);

/// In the child: lets the parent process step through what two [`mark`]s enclose.
pub fn offer() {
    if let Err(error) = ptrace::traceme() {
        eprintln!("ptrace: {error}");
        std::process::exit(REFUSED);
    }
    OFFERED.store(true, Ordering::Relaxed);
}

/// In the child: stops, if somebody steps.
pub fn mark() {
    if OFFERED.load(Ordering::Relaxed) {
        raise(Signal::SIGSTOP).expect("a process may stop itself");
    }
}

/// Plays the part in a child and counts. The thread that started the child is the one that may trace it.
pub fn count(part: &Part) -> Result<Count, String> {
    if with_batch().is_none() {
        return Ok(Count::Skipped("this processor has no AVX-512 IFMA".to_owned()));
    }
    let mut child = Command::new(own_path()?)
        .args(["--play-stepped", part.name])
        .spawn()
        .map_err(|error| format!("{}: {error}", part.name))?;
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    let steps = steps(pid);
    // What it would still do is of no interest.
    if let Ok(None) = child.try_wait() {
        let _ = child.kill();
        let _ = child.wait();
    }
    match steps.map_err(|why| format!("{}: {why}", part.name))? {
        Some(steps) => Ok(Count::Instructions(steps / part.operations)),
        None => Ok(Count::Skipped("this system does not let a process trace its child".to_owned())),
    }
}

/// Waits for the first stop and steps to the second. `None` if the child may not be traced.
fn steps(child: Pid) -> Result<Option<u64>, String> {
    let wait = || waitpid(child, None).map_err(|error| format!("waiting: {error}"));
    loop {
        match wait()? {
            WaitStatus::Stopped(_, Signal::SIGSTOP) => break,
            // A terminal that was resized, for one.
            WaitStatus::Stopped(_, signal) => ptrace::cont(child, signal).map_err(|error| format!("going on: {error}"))?,
            WaitStatus::Exited(_, REFUSED) => return Ok(None),
            other => return Err(format!("no first stop, but {other:?}")),
        }
    }
    let (mut steps, mut signal) = (0, None);
    while steps < MOST {
        ptrace::step(child, signal.take()).map_err(|error| format!("stepping: {error}"))?;
        match wait()? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => steps += 1,
            WaitStatus::Stopped(_, Signal::SIGSTOP) => return Ok(Some(steps)),
            WaitStatus::Stopped(_, other) => signal = Some(other),
            other => return Err(format!("no second stop, but {other:?}")),
        }
    }
    Err(format!("no second stop within {MOST} instructions"))
}
