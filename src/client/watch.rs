//! `fanfare status --watch` and `fanfare events`: what is looked at for as long as it changes.

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::client::arguments::{Events, Status};
use crate::client::connection::{Connection, Reply};
use crate::client::output::{Output, note};
use crate::client::pages::{self, Page};
use crate::client::table::{cell, relative};
use crate::clock;
use crate::exit::{Exit, Failure};
use crate::printable::line;

/// The members of a `status`, in the order in which a message lives.
const STATUS_MEMBERS: &[&str] = &[
    "message_id",
    "state",
    "paused_by",
    "open",
    "label",
    "ref",
    "created",
    "at",
    "expires",
    "position",
    "recipients",
    "rejected",
    "pending",
    "in_flight",
    "accepted",
    "gone",
    "refused",
    "expired",
    "cancelled",
    "skipped",
    "retries",
    "shown",
    "clicked",
    "dismissed",
    "walked",
    "rate",
    "eta",
];

/// Each line is cut at the end of the terminal, so the most important stands first, and the bar takes the room that is left over.
const BAR: &str = "{human_pos}/{human_len} ended, {prefix} {wide_bar}\n{wide_msg}";

/// How often `--watch` looks. The numbers themselves change with each checkpoint, four times a second.
const LOOK: Duration = Duration::from_secs(1);

/// Shows where a message stands; with `--watch` until nothing can change any more.
pub fn status(socket: &Path, output: &mut Output, arguments: &Status) -> Result<(), Failure> {
    let mut connection = Connection::open(socket)?;
    let request = json!({"op": "status", "message_id": arguments.message_id});
    let mut status = connection.call(&request)?;
    if !arguments.watch {
        return output.reply(&status, STATUS_MEMBERS);
    }
    let style = ProgressStyle::with_template(BAR).expect("a constant template");
    let bar = ProgressBar::new(0).with_style(style.progress_chars("=> "));
    let mut shown = String::new();
    while !has_ended(&status) {
        let recipients = status.count("recipients");
        bar.set_length(expected(&status));
        bar.set_position(recipients.saturating_sub(status.count("pending")));
        bar.set_prefix(line(&state(&status)).into_owned());
        bar.set_message(line(&counters(&status)).into_owned());
        if output.json() && status.line != shown {
            output.line(&status.line)?;
            shown.clone_from(&status.line);
        }
        std::thread::sleep(LOOK);
        status = connection.call(&request)?;
    }
    bar.finish_and_clear();
    output.reply(&status, STATUS_MEMBERS)
}

fn has_ended(status: &Reply) -> bool {
    matches!(status.text("state"), Some("done" | "cancelled")) && status.count("pending") == 0 && !status.says("open")
}

/// A campaign knows its recipients as far as it has walked: the whole is estimated from that part.
fn expected(status: &Reply) -> u64 {
    let recipients = status.count("recipients");
    match status.members.get("walked").and_then(Value::as_f64) {
        Some(walked) if walked > 0.0 && walked < 1.0 => ((recipients as f64 / walked) as u64).max(recipients),
        _ => recipients,
    }
}

/// What it does, and for how long still.
fn state(status: &Reply) -> String {
    let state = status.text("state").unwrap_or_default().to_owned();
    let eta = status.members.get("eta").and_then(|eta| relative(eta, clock::now()));
    eta.map_or(state.clone(), |eta| format!("{state}, done {eta}"))
}

fn counters(status: &Reply) -> String {
    let ended = ["accepted", "gone", "refused", "expired", "cancelled", "skipped", "shown", "clicked", "dismissed"]
        .iter()
        .filter(|name| status.count(name) > 0)
        .map(|name| format!("{name} {}", status.count(name)));
    let walked = status.members.get("walked").and_then(Value::as_f64).filter(|_| status.says("open"));
    let walked = walked.map(|part| format!("walked {:.0} %", part * 100.0));
    walked.into_iter().chain(ended).collect::<Vec<_>>().join(", ")
}

/// Shows the outcome log: all there is, or as much as the flags say; with `--follow` also what comes.
pub fn events(socket: &Path, output: &mut Output, arguments: &Events) -> Result<(), Failure> {
    let layout = Layout::of(output.width());
    let mut log = Log { connection: Connection::open(socket)?, cursor: None, shown: 0, layout };
    if arguments.follow {
        log.connection.wait_for_ever()?;
        return log.follow(output, arguments);
    }
    let read = pages::each(None, arguments.limit, |_, limit| log.page(output, arguments, limit))?;
    if !output.json() {
        let more = if read.more { ", and there are more" } else { "" };
        let behind = log.cursor.as_deref().map(|cursor| format!(". To see what comes behind them: --after {}", line(cursor)));
        note(format_args!("{} events{more}{}", log.shown, behind.unwrap_or_default()));
    }
    Ok(())
}

/// The outcome log as far as it has been shown.
struct Log {
    connection: Connection,
    /// None: nothing was shown yet.
    cursor: Option<String>,
    shown: u64,
    layout: Layout,
}

impl Log {
    /// Shows at most `limit` events behind the cursor.
    fn page(&mut self, output: &mut Output, arguments: &Events, limit: u64) -> Result<Page, Failure> {
        let before = self.shown;
        self.connection.send(&arguments.request(self.cursor.as_deref(), Some(limit)).to_string())?;
        loop {
            let reply = self.connection.receive()?;
            if !reply.members.contains_key("ok") {
                self.show(output, &reply)?;
                continue;
            }
            let end = reply.good()?;
            if let Some(cursor) = end.text("cursor") {
                self.cursor = Some(cursor.to_owned());
            }
            return Ok(Page { count: self.shown - before, after: self.cursor.clone(), more: end.says("more") });
        }
    }

    fn follow(&mut self, output: &mut Output, arguments: &Events) -> Result<(), Failure> {
        self.connection.send(&arguments.request(None, arguments.limit).to_string())?;
        while arguments.limit != Some(self.shown) {
            let reply = self.connection.receive().map_err(|failure| match (failure.exit, &self.cursor) {
                (Exit::Temporary, Some(cursor)) => {
                    let message = format!("the daemon ended the connection. Go on with `--after {}`", line(cursor));
                    Failure::new(Exit::Temporary, message)
                }
                _ => failure,
            })?;
            if reply.members.contains_key("ok") {
                reply.good()?;
                continue;
            }
            self.show(output, &reply)?;
        }
        Ok(())
    }

    fn show(&mut self, output: &mut Output, event: &Reply) -> Result<(), Failure> {
        if output.json() {
            output.line(&event.line)?;
        } else {
            if self.shown == 0 {
                output.line(&self.layout.line(|name| name.replace('_', " ")))?;
            }
            output.line(&self.layout.event(event))?;
        }
        self.shown += 1;
        if let Some(cursor) = event.text("cursor") {
            self.cursor = Some(cursor.to_owned());
        }
        Ok(())
    }
}

/// Members of an event in columns of fixed width: a log that grows has no last row by which a table could be measured.
struct Layout {
    columns: &'static [(&'static str, usize)],
    /// The time without its year and its fractions.
    short_time: bool,
}

impl Layout {
    /// As much as fits a line of `width` characters. Members without a column follow with their names.
    fn of(width: usize) -> Layout {
        const WIDE: &[(&str, usize)] =
            &[("time", 24), ("type", 11), ("message_id", 26), ("service", 10), ("status", 6), ("reason", 16)];
        const MIDDLE: &[(&str, usize)] = &[("time", 14), ("type", 11), ("message_id", 26), ("service", 8), ("status", 6)];
        const NARROW: &[(&str, usize)] = &[("time", 14), ("type", 11), ("message_id", 26)];
        match width {
            100.. => Layout { columns: WIDE, short_time: false },
            72.. => Layout { columns: MIDDLE, short_time: true },
            _ => Layout { columns: NARROW, short_time: true },
        }
    }

    fn line(&self, part: impl Fn(&str) -> String) -> String {
        let cells: Vec<String> = self.columns.iter().map(|(name, width)| format!("{:<width$}", part(name))).collect();
        cells.join(" ").trim_end().to_owned()
    }

    fn event(&self, event: &Reply) -> String {
        let mut line = self.line(|name| {
            let text = event.members.get(name).map(cell).unwrap_or_default();
            match (name, self.short_time, text.get(5..10), text.get(11..19)) {
                ("time", true, Some(day), Some(time)) => format!("{day} {time}"),
                _ => text,
            }
        });
        for name in ["service", "status", "reason", "label", "ref", "message_ref", "account", "count"] {
            match event.members.get(name) {
                None | Some(Value::Null) => {}
                Some(_) if self.columns.iter().any(|(column, _)| *column == name) => {}
                Some(value) => line.push_str(&format!(" {name}={}", cell(value))),
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_s_columns_fit_the_terminal() {
        let event = json!({"time": "2027-01-31T18:00:05.123Z", "type": "unreachable", "message_id": "01J8X3V9K2M4N6P8Q0R2S4T6V8",
            "service": "mozilla", "status": 410, "reason": "gone"});
        let event = Reply::parse(event.to_string()).expect("an object");
        for (width, time) in [(120, "2027-01-31T18:00:05.123Z"), (80, "01-31 18:00:05"), (60, "01-31 18:00:05")] {
            let layout = Layout::of(width);
            let header = layout.line(|name| name.replace('_', " "));
            let columns = layout.columns.iter().map(|(_, width)| width + 1).sum::<usize>() - 1;
            assert!(columns <= width && header.len() <= width, "{width}: {header}");
            let line = layout.event(&event);
            assert!(line.starts_with(time), "{line}");
            for part in ["unreachable", "01J8X3V9K2M4N6P8Q0R2S4T6V8", "mozilla", "410", "gone"] {
                assert!(line.contains(part), "{width}: {line}");
            }
        }
    }

    #[test]
    fn a_narrow_terminal_still_shows_when_a_message_is_done() {
        let eta = crate::protocol::time::format_time(crate::message::UnixMillis(crate::clock::now().0 + 600_500));
        let status = json!({"ok": true, "state": "sending", "recipients": 1_000_000, "pending": 400_000, "open": true, "walked": 0.5,
            "eta": eta, "accepted": 590_000, "gone": 10_000});
        let status = Reply::parse(status.to_string()).expect("an object");
        assert_eq!(state(&status), "sending, done in 10 min");
        assert_eq!(counters(&status), "walked 50 %, accepted 590000, gone 10000");
        // Numbers, state and time come before the bar, which takes the rest of the line.
        let before_the_bar = format!("1,000,000/2,000,000 ended, {}", state(&status));
        assert!(before_the_bar.len() <= 60 && BAR.find("{prefix}") < BAR.find("{wide_bar}"), "{before_the_bar}");
    }
}
