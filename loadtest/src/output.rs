//! What a program that has ended leaves behind, for tests of the command line.

use std::process::Output;

/// Its exit code.
///
/// # Panics
///
/// If it was killed.
pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("it was killed: {}", stderr(output)))
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
