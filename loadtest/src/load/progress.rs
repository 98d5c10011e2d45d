//! A live line, on a terminal only.

use std::fmt::Write;
use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::report::grouped;

/// Removed from the terminal when dropped.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub fn new(what: &'static str, total: u64) -> Progress {
        if !std::io::stderr().is_terminal() {
            return Progress { bar: ProgressBar::hidden() };
        }
        let bar = ProgressBar::new(total);
        let style =
            ProgressStyle::with_template("{msg:>12} {bar:40} {human_pos} of {human_len}, {whole_per_sec} a second, {elapsed}");
        let whole = |state: &ProgressState, text: &mut dyn Write| {
            // Where it cannot be written there is nobody to miss it.
            let _written = text.write_str(&grouped(state.per_sec() as u64));
        };
        bar.set_style(style.expect("the template is good").with_key("whole_per_sec", whole));
        bar.set_message(what);
        Progress { bar }
    }

    /// With a note of its own instead of a rate.
    pub fn noted(what: &'static str, total: u64) -> Progress {
        let progress = Progress::new(what, total);
        let style = ProgressStyle::with_template("{msg:>12} {bar:40} {human_pos}  {prefix}");
        progress.bar.set_style(style.expect("the template is good"));
        progress
    }

    /// Whether anybody sees it.
    pub fn live(&self) -> bool {
        !self.bar.is_hidden()
    }

    pub fn note(&self, note: String) {
        self.bar.set_prefix(note);
    }

    pub fn at(&self, done: u64) {
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
