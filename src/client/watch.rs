//! `fanfare status --watch` and `fanfare events`: what is looked at for as long as it changes.

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::client::arguments::{Events, Status};
use crate::client::connection::{Connection, Reply};
use crate::client::output::{Output, cell, note};
use crate::client::pages::{self, Page};
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
    let style = ProgressStyle::with_template("{bar:30} {human_pos}/{human_len} ended, {wide_msg}").expect("a constant template");
    let bar = ProgressBar::new(0).with_style(style.progress_chars("=> "));
    let mut shown = String::new();
    while !has_ended(&status) {
        let recipients = status.count("recipients");
        bar.set_length(expected(&status));
        bar.set_position(recipients.saturating_sub(status.count("pending")));
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

fn counters(status: &Reply) -> String {
    let ended = ["accepted", "gone", "refused", "expired", "cancelled", "skipped", "shown", "clicked", "dismissed"]
        .iter()
        .filter(|name| status.count(name) > 0)
        .map(|name| format!("{name} {}", status.count(name)));
    let state = status.text("state").unwrap_or_default().to_owned();
    let walked = status.members.get("walked").and_then(Value::as_f64).filter(|_| status.says("open"));
    let walked = walked.map(|part| format!("walked {:.0} %", part * 100.0));
    let eta = status.text("eta").map(|eta| format!("done about {eta}"));
    std::iter::once(state).chain(walked).chain(ended).chain(eta).collect::<Vec<_>>().join(", ")
}

/// Shows the outcome log: all there is, or as much as `--limit` says; with `--follow` also what comes.
pub fn events(socket: &Path, output: &mut Output, arguments: &Events) -> Result<(), Failure> {
    let mut log = Log { connection: Connection::open(socket)?, cursor: arguments.after.clone(), shown: 0 };
    if arguments.follow {
        log.connection.wait_for_ever()?;
        return log.follow(output, arguments);
    }
    let read = pages::each(Some(arguments.after.clone()), arguments.limit, |_, limit| log.page(output, arguments, limit))?;
    if !output.json() {
        let more = if read.more { ", and there are more" } else { "" };
        note(format_args!("{} events{more}. To see what comes behind them: --after {}", log.shown, line(&log.cursor)));
    }
    Ok(())
}

/// The outcome log as far as it has been shown.
struct Log {
    connection: Connection,
    cursor: String,
    shown: u64,
}

impl Log {
    /// Shows at most `limit` events behind the cursor.
    fn page(&mut self, output: &mut Output, arguments: &Events, limit: u64) -> Result<Page, Failure> {
        let before = self.shown;
        self.connection.send(&arguments.request(&self.cursor, Some(limit)).to_string())?;
        loop {
            let reply = self.connection.receive()?;
            if !reply.members.contains_key("ok") {
                self.show(output, &reply)?;
                continue;
            }
            let end = reply.good()?;
            if let Some(cursor) = end.text("cursor") {
                cursor.clone_into(&mut self.cursor);
            }
            return Ok(Page { count: self.shown - before, after: Some(self.cursor.clone()), more: end.says("more") });
        }
    }

    fn follow(&mut self, output: &mut Output, arguments: &Events) -> Result<(), Failure> {
        self.connection.send(&arguments.request(&self.cursor, arguments.limit).to_string())?;
        while arguments.limit != Some(self.shown) {
            let reply = self.connection.receive().map_err(|failure| match failure.exit {
                Exit::Temporary => {
                    let message = format!("the daemon ended the connection. Go on with `--after {}`", line(&self.cursor));
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
                output.line(&columns(|name| name.replace('_', " ")))?;
            }
            output.line(&event_line(event))?;
        }
        self.shown += 1;
        if let Some(cursor) = event.text("cursor") {
            cursor.clone_into(&mut self.cursor);
        }
        Ok(())
    }
}

/// Columns of fixed width: a log that grows has no last row by which a table could be measured.
fn columns(part: impl Fn(&str) -> String) -> String {
    let line = format!(
        "{:<24} {:<11} {:<26} {:<10} {:<6} {:<16}",
        part("time"),
        part("type"),
        part("message_id"),
        part("service"),
        part("status"),
        part("reason")
    );
    line.trim_end().to_owned()
}

fn event_line(event: &Reply) -> String {
    let mut line = columns(|name| event.members.get(name).map(cell).unwrap_or_default());
    for name in ["label", "ref", "message_ref", "account", "count"] {
        match event.members.get(name) {
            None | Some(Value::Null) => {}
            Some(value) => line.push_str(&format!(" {name}={}", cell(value))),
        }
    }
    line
}
