//! A live line, on a terminal only.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

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
        let style = ProgressStyle::with_template("{msg:>12} {bar:40} {human_pos} of {human_len}, {per_sec}, {elapsed}");
        bar.set_style(style.expect("the template is good"));
        bar.set_message(what);
        Progress { bar }
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
