//! What the programs print, and how they end: a reader that has gone is no failure, a full disk is one clear error.
//!
//! `println!` and its kin panic where the output takes no more, so they are not used.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

/// Standard output takes no more. It goes up as an [`io::Error`] like everything else, and [`ended`] knows it again: a connection that
/// breaks is of the same kind, and no reader that has gone.
#[derive(Debug)]
struct Unwritten(io::Error);

impl Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot write to standard output: {}", self.0)
    }
}

impl std::error::Error for Unwritten {}

/// Writes a line to standard output.
pub fn line(text: impl Display) -> io::Result<()> {
    part(format_args!("{text}\n"))
}

/// Writes a part of a line to standard output.
pub fn part(text: impl Display) -> io::Result<()> {
    let mut to = io::stdout().lock();
    write!(to, "{text}").and_then(|()| to.flush()).map_err(|error| io::Error::other(Unwritten(error)))
}

/// Says something beside the output, on standard error. Nobody is told that standard error takes no more.
pub fn note(text: impl Display) {
    let _unread = writeln!(io::stderr(), "{text}");
}

/// The flags of a program. Else its exit code: 0 after help and version, 2 for a wrong flag, 74 if help cannot be written.
pub fn flags<P: Parser>() -> Result<P, ExitCode> {
    P::try_parse().map_err(|error| match (error.use_stderr(), error.print()) {
        (true, _) => ExitCode::from(2),
        (false, Ok(())) => ExitCode::SUCCESS,
        (false, Err(error)) => ended("", Err(io::Error::other(Unwritten(error)))),
    })
}

/// The exit code of `program`, which tells why it failed: 0 also if the reader of its output has gone, 74 if the output takes no more
/// otherwise, else 1.
pub fn ended(program: &str, result: io::Result<()>) -> ExitCode {
    let Err(problem) = result else { return ExitCode::SUCCESS };
    let unwritten = problem.get_ref().and_then(|inner| inner.downcast_ref::<Unwritten>());
    if unwritten.is_some_and(|unwritten| unwritten.0.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let who = if program.is_empty() { String::new() } else { format!("{program}: ") };
    note(format_args!("{who}{problem}"));
    if unwritten.is_some() { ExitCode::from(74) } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_breaks_is_no_reader_that_has_gone() {
        let shown = |result| format!("{:?}", ended("test", result));
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(shown(Err(broken())), code(1));
        assert_eq!(shown(Err(io::Error::other(Unwritten(broken())))), code(0));
        assert_eq!(shown(Err(io::Error::other(Unwritten(io::ErrorKind::StorageFull.into())))), code(74));
        assert_eq!(shown(Ok(())), code(0));
    }
}
