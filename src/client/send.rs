//! `fanfare send`: one subscription, a few, or a file of any length; accounts; a segment of the registry.
//!
//! What fits one line goes in one `send`. More goes as a stream: `send` with `{"stream":true}`, then `add` after `add`, each with
//! its position, which is the number of subscriptions handed in so far. So a daemon that restarts in between, or a command that is
//! repeated with the same `--idempotency-key` and the same file, goes on where it stopped, and nobody gets the message twice.
//! What was handed in is sent although the rest of the file fails: sending starts with the first `add`.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::client::arguments::{Body, Devices, Send};
use crate::client::connection::{Connection, Refusal, Reply};
use crate::client::output::{Output, note};
use crate::client::recipients::{self, on_one_line};
use crate::client::table::cell;
use crate::exit::{Exit, Failure};
use crate::printable;

/// More subscriptions than this go as a stream.
const LINE_SUBSCRIPTIONS: usize = 500;
/// More bytes than this too: far below every sensible `ingest.line_limit`.
const LINE_BYTES: usize = 128 * 1024;
/// Lines on their way at most. The daemon commits them together; more would only grow buffers.
const UNANSWERED: usize = 4;
/// How long a daemon that went away, or has no room, is waited for.
const OUTAGE: Duration = Duration::from_secs(120);
/// Rejected subscriptions that are shown one by one.
const REJECTED_SHOWN: u64 = 20;

/// Hands in a message, and shows its id.
pub fn send(socket: &Path, output: &mut Output, arguments: &Send) -> Result<(), Failure> {
    if arguments.kinds() != 1 {
        let message =
            "a message goes to one kind of recipients: --to, --subscription, --to-account, --to-id, a segment, or --all";
        return Err(Failure::new(Exit::Usage, message));
    }
    let mut options = members(&arguments.options());
    add_body(&mut options, &arguments.content, arguments.to.as_deref().is_some_and(is_dash))?;
    if let Some(file) = &arguments.to {
        return send_file(socket, output, file, options);
    }
    let to = if let Some(subscription) = &arguments.subscription {
        format!(r#"{{"subscription":{}}}"#, one_subscription(subscription.as_bytes(), "--subscription")?)
    } else if !arguments.to_account.is_empty() {
        let mut to = json!({"accounts": arguments.to_account});
        if let Some(devices) = arguments.devices {
            to["devices"] = if devices == Devices::All { "all" } else { "latest" }.into();
        }
        to.to_string()
    } else if !arguments.to_id.is_empty() {
        json!({"subscription_ids": arguments.to_id}).to_string()
    } else {
        json!({"segment": arguments.segment.json()?.unwrap_or_else(|| json!({"all": true}))}).to_string()
    };
    let mut connection = Connection::open(socket)?;
    connection.send(&line("send", &options, &format!(r#""to":{to}"#)))?;
    let reply = connection.receive()?.good()?;
    output.reply(&reply, SEND_MEMBERS)?;
    if let Some(id) = reply.text("message_id").filter(|_| to.starts_with("{\"segment\"") && !output.json()) {
        note(format_args!("a campaign's recipients are counted as it walks: fanfare status --watch {}", printable::line(id)));
    }
    Ok(())
}

const SEND_MEMBERS: &[&str] = &["message_id", "state", "expires", "recipients", "rejected", "duplicate"];

/// The only subscription in `input`, on one line and otherwise as it is written; exit 64 if there is none, or more.
pub fn one_subscription(input: impl BufRead, named: &str) -> Result<String, Failure> {
    let mut found = Vec::new();
    recipients::each(input, &mut |subscription| {
        found.push(subscription);
        if found.len() > 1 { Err(Failure::new(Exit::Usage, format!("{named} takes exactly one subscription"))) } else { Ok(()) }
    })?;
    found.pop().ok_or_else(|| Failure::new(Exit::Usage, format!("{named} takes exactly one subscription")))
}

/// Adds what a message says to its options. `input_taken`: the recipients come from standard input.
pub fn add_body(options: &mut String, body: &Body, input_taken: bool) -> Result<(), Failure> {
    let mut add = |name: &str, json: &str| options.push_str(&format!(",\"{name}\":{json}"));
    if let Some(title) = &body.title {
        let mut notification = json!({"title": title, "navigate": body.navigate});
        if let Some(text) = &body.body {
            notification["body"] = text.as_str().into();
        }
        add("notification", &notification.to_string());
    } else if let Some(text) = &body.payload {
        add("payload", &Value::from(text.as_str()).to_string());
    } else if let Some(text) = &body.payload_json {
        // Not by way of `Value`: the members keep the order they were given in.
        let payload: Box<RawValue> = serde_json::from_str(text)
            .map_err(|error| Failure::new(Exit::Usage, format!("--payload-json takes a JSON object or array: {error}")))?;
        add("payload", &on_one_line(&payload));
    } else if let Some(file) = &body.payload_file {
        if is_dash(file) && input_taken {
            return Err(Failure::new(Exit::Usage, "standard input is one thing: either the payload or the subscriptions"));
        }
        // The daemon's limit is far smaller; one byte more than a line may have is enough for it to say so.
        let mut bytes = Vec::new();
        open(file)?
            .take(1 << 20)
            .read_to_end(&mut bytes)
            .map_err(|error| Failure::io(format_args!("cannot read {}", printable::path(file)), &error))?;
        match String::from_utf8(bytes) {
            Ok(text) => add("payload", &Value::from(text).to_string()),
            Err(error) => add("payload_base64", &Value::from(BASE64_STANDARD.encode(error.as_bytes())).to_string()),
        }
    }
    Ok(())
}

/// Members as they stand in a line, each with a comma before it.
pub fn members(members: &Map<String, Value>) -> String {
    members.iter().map(|(name, value)| format!(",{}:{value}", Value::from(name.as_str()))).collect()
}

/// Whether a file's name stands for standard input or output.
pub fn is_dash(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// Opens a file, or standard input.
pub fn open(file: &Path) -> Result<Box<dyn Read>, Failure> {
    if is_dash(file) {
        return Ok(Box::new(io::stdin().lock()));
    }
    match File::open(file) {
        Ok(opened) => Ok(Box::new(opened)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Failure::new(Exit::Usage, format!("there is no file {}", printable::path(file))))
        }
        Err(error) => Err(Failure::io(format_args!("cannot read {}", printable::path(file)), &error)),
    }
}

/// A request of `op` with `options` ([`members`]) and the member `rest`; both are written as they are: subscriptions are passed on
/// untouched.
pub fn line(op: &str, options: &str, rest: &str) -> String {
    format!(r#"{{"op":"{op}"{options},{rest}}}"#)
}

fn send_file(socket: &Path, output: &mut Output, file: &Path, options: String) -> Result<(), Failure> {
    let bar = ProgressBar::no_length().with_style(style("{spinner} {human_pos} subscriptions read"));
    // A file is read twice: it is known to be whole before the first message leaves, and how long the rest will take.
    let mut total = None;
    if std::fs::metadata(file).is_ok_and(|metadata| metadata.is_file()) {
        let mut count = 0u64;
        recipients::each(BufReader::new(open(file)?), &mut |_| {
            count += 1;
            bar.set_position(count);
            Ok(())
        })?;
        total = Some(count);
    }
    bar.finish_and_clear();

    let mut sending = Sending { socket: socket.to_owned(), options, total, batch: Batch::default(), stream: None };
    let result = recipients::each(BufReader::with_capacity(256 * 1024, open(file)?), &mut |found| sending.take(found, output));
    match (result, sending.stream.as_ref()) {
        (Ok(()), _) => sending.finish(output),
        (Err(failure), Some(stream)) => Err(stream.broken_off(failure)),
        (Err(failure), None) => Err(failure),
    }
}

/// How progress is drawn.
pub fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file: one that does not parse is seen by the first run.
    let style = ProgressStyle::with_template(template).expect("a constant template").progress_chars("=> ");
    // `per_sec` has four decimals, whatever the template says.
    style.with_key("speed", |state: &ProgressState, to: &mut dyn fmt::Write| {
        // What is drawn is a text: writing it cannot fail.
        let _written = write!(to, "{:.0}/s", state.per_sec());
    })
}

/// Subscriptions that will share a line.
#[derive(Default)]
struct Batch {
    subscriptions: Vec<String>,
    bytes: usize,
}

impl Batch {
    fn is_full_for(&self, next: &str) -> bool {
        !self.subscriptions.is_empty() && (self.subscriptions.len() == LINE_SUBSCRIPTIONS || self.bytes + next.len() > LINE_BYTES)
    }

    fn push(&mut self, subscription: String) {
        self.bytes += subscription.len() + 1;
        self.subscriptions.push(subscription);
    }
}

/// Collects subscriptions until they fit no single line any more, then streams them.
struct Sending {
    socket: PathBuf,
    options: String,
    total: Option<u64>,
    batch: Batch,
    stream: Option<Stream>,
}

impl Sending {
    fn take(&mut self, subscription: String, output: &mut Output) -> Result<(), Failure> {
        if self.batch.is_full_for(&subscription) {
            if self.stream.is_none() {
                self.stream = Some(Stream::begin(&self.socket, &self.options, self.total)?);
            }
            self.hand_in(output)?;
        }
        self.batch.push(subscription);
        Ok(())
    }

    fn hand_in(&mut self, output: &mut Output) -> Result<(), Failure> {
        let batch = std::mem::take(&mut self.batch);
        match &mut self.stream {
            Some(stream) => stream.add(batch.subscriptions, output),
            None => Ok(()),
        }
    }

    fn finish(mut self, output: &mut Output) -> Result<(), Failure> {
        if self.stream.is_some() {
            let handed_in = self.hand_in(output);
            let stream = self.stream.take().expect("looked at above");
            return match handed_in {
                Ok(()) => stream.finish(output),
                Err(failure) => Err(stream.broken_off(failure)),
            };
        }
        if self.batch.subscriptions.is_empty() {
            return Err(Failure::new(Exit::Usage, "there is no subscription in the input"));
        }
        let to = format!(r#""to":{{"subscriptions":[{}]}}"#, self.batch.subscriptions.join(","));
        let mut connection = Connection::open(&self.socket)?;
        connection.send(&line("send", &self.options, &to))?;
        let reply = connection.receive()?.good()?;
        let mut rejected = Rejected::default();
        rejected.show(&reply, 0, output);
        rejected.conclude();
        output.reply(&summary(&reply, None, rejected.count), SEND_MEMBERS)
    }
}

/// What `send` told, with the rejected counted instead of listed.
fn summary(sent: &Reply, status: Option<&Reply>, rejected: u64) -> Reply {
    let mut members = sent.members.clone();
    members.insert("rejected".to_owned(), rejected.into());
    if let Some(status) = status {
        for name in ["state", "recipients", "rejected", "expires"] {
            if let Some(value) = status.members.get(name) {
                members.insert(name.to_owned(), value.clone());
            }
        }
        members.remove("position");
    }
    Reply { line: Value::Object(members.clone()).to_string(), members }
}

/// Tells of the subscriptions that the daemon would not take.
#[derive(Default)]
struct Rejected {
    count: u64,
}

impl Rejected {
    /// `first` is the place in the input of the line's first subscription.
    fn show(&mut self, reply: &Reply, first: u64, output: &mut Output) {
        let Some(Value::Array(rejected)) = reply.members.get("rejected") else { return };
        for one in rejected {
            self.count += 1;
            let place = first + one.get("index").and_then(Value::as_u64).unwrap_or(0);
            if output.json() {
                let mut one = one.clone();
                one["index"] = place.into();
                output.meanwhile(&json!({ "rejected": one }).to_string());
            } else if self.count <= REJECTED_SHOWN {
                let part = |name: &str| one.get(name).map(cell).unwrap_or_default();
                let (code, field, message) = (part("code"), part("field"), part("message"));
                note(format_args!("subscription {} rejected: {code} ({field}): {message}", place + 1));
            }
        }
    }

    fn conclude(&self) {
        if self.count > REJECTED_SHOWN {
            note(format_args!("… and {} more were rejected; --json lists them all", self.count - REJECTED_SHOWN));
        }
    }
}

/// An open message and what is on its way to it.
struct Stream {
    socket: PathBuf,
    connection: Connection,
    message_id: String,
    sent: Reply,
    /// Subscriptions that an earlier run has handed in: they are read past.
    skip: u64,
    /// Subscriptions seen so far, which is the position.
    position: u64,
    unanswered: VecDeque<Add>,
    rejected: Rejected,
    bar: ProgressBar,
}

/// One `add`: its line, the position it starts from and the one it reaches.
struct Add {
    line: String,
    from: u64,
    to: u64,
}

impl Stream {
    fn begin(socket: &Path, options: &str, total: Option<u64>) -> Result<Stream, Failure> {
        let mut connection = Connection::open(socket)?;
        connection.send(&line("send", options, r#""to":{"stream":true}"#))?;
        let sent = connection.receive()?.good()?;
        let message_id =
            sent.text("message_id").ok_or_else(|| Failure::new(Exit::Io, "the daemon's reply names no message_id"))?.to_owned();
        let skip = match sent.members.get("position") {
            None | Some(Value::Null) => 0,
            Some(position) => position.as_u64().ok_or_else(|| {
                Failure::new(Exit::Usage, "this idempotency key belongs to a message that another program hands in")
            })?,
        };
        let bar = match total {
            Some(total) => {
                ProgressBar::new(total).with_style(style("{bar:30} {human_pos}/{human_len} handed in, {speed}, {eta} left"))
            }
            None => ProgressBar::no_length().with_style(style("{spinner} {human_pos} handed in, {speed}")),
        };
        bar.set_position(skip);
        bar.reset_eta();
        if skip > 0 {
            bar.suspend(|| note(format_args!("going on behind the {skip} subscriptions that were handed in before")));
        }
        Ok(Stream {
            socket: socket.to_owned(),
            connection,
            message_id,
            sent,
            skip,
            position: 0,
            unanswered: VecDeque::new(),
            rejected: Rejected::default(),
            bar,
        })
    }

    fn add(&mut self, mut subscriptions: Vec<String>, output: &mut Output) -> Result<(), Failure> {
        let from = self.position.max(self.skip);
        self.position += subscriptions.len() as u64;
        if self.position <= self.skip {
            return Ok(());
        }
        // The kept position may lie inside this batch if the lines were cut otherwise then.
        let fresh = usize::try_from(self.position - from).expect("at most the batch");
        let subscriptions = subscriptions.split_off(subscriptions.len() - fresh);
        let line = format!(
            r#"{{"op":"add","message_id":"{}","previous":{},"position":{},"subscriptions":[{}]}}"#,
            self.message_id,
            if from == 0 { Value::Null } else { from.into() },
            self.position,
            subscriptions.join(",")
        );
        if self.unanswered.len() == UNANSWERED {
            self.settle_one(output)?;
        }
        let sent = self.connection.send(&line);
        self.unanswered.push_back(Add { line, from, to: self.position });
        match sent {
            Ok(()) => Ok(()),
            Err(_) => self.again(Duration::ZERO, Instant::now() + OUTAGE),
        }
    }

    /// Waits until the oldest `add` on its way is taken.
    fn settle_one(&mut self, output: &mut Output) -> Result<(), Failure> {
        let until = Instant::now() + OUTAGE;
        loop {
            match self.connection.receive().map(Reply::good) {
                Ok(Ok(reply)) => {
                    let add = self.unanswered.pop_front().expect("one reply for each line on its way");
                    self.bar.set_position(add.to);
                    let rejected = &mut self.rejected;
                    self.bar.suspend(|| rejected.show(&reply, add.from, output));
                    return Ok(());
                }
                // Written a second time after the connection was lost, and taken with one behind it the first time.
                Ok(Err(refusal)) if self.unanswered.front().is_some_and(|add| refusal.is_behind(add.to)) => {
                    self.unanswered.pop_front();
                    return Ok(());
                }
                Ok(Err(refusal)) if refusal.try_again() && Instant::now() < until => {
                    // Those behind it were refused too, for they name this one's position as the previous.
                    for _ in 1..self.unanswered.len() {
                        if self.connection.receive().is_err() {
                            break;
                        }
                    }
                    self.again(pause_after(&refusal), until)?;
                }
                Ok(Err(refusal)) => return Err(refusal.into()),
                Err(failure) if Instant::now() >= until => return Err(failure),
                Err(_) => self.again(Duration::ZERO, until)?,
            }
        }
    }

    /// Connects anew after `pause` and writes all that has no answer; positions keep it from being taken twice.
    fn again(&mut self, pause: Duration, until: Instant) -> Result<(), Failure> {
        self.bar.set_message("waiting for the daemon");
        std::thread::sleep(pause);
        loop {
            let written = Connection::open(&self.socket).and_then(|connection| {
                self.connection = connection;
                self.unanswered.iter().try_for_each(|add| self.connection.send(&add.line))
            });
            match written {
                Ok(()) => return Ok(()),
                Err(failure) if failure.exit == Exit::Permission || Instant::now() >= until => return Err(failure),
                Err(_) => std::thread::sleep(Duration::from_millis(500)),
            }
        }
    }

    fn finish(mut self, output: &mut Output) -> Result<(), Failure> {
        match self.close(output) {
            Ok(status) => {
                self.bar.finish_and_clear();
                self.rejected.conclude();
                output.reply(&summary(&self.sent, Some(&status), self.rejected.count), SEND_MEMBERS)
            }
            Err(failure) => Err(self.broken_off(failure)),
        }
    }

    /// Says that no more will come, and asks where the message stands.
    fn close(&mut self, output: &mut Output) -> Result<Reply, Failure> {
        while !self.unanswered.is_empty() {
            self.settle_one(output)?;
        }
        if self.position < self.skip {
            return Err(Failure::new(
                Exit::Usage,
                format!(
                    "the input has {} subscriptions, but {} were handed in before under this idempotency key: it is not the same file",
                    self.position, self.skip
                ),
            ));
        }
        let until = Instant::now() + OUTAGE;
        let status = json!({"op": "status", "message_id": self.message_id});
        loop {
            let failure = match self.connection.call(&status) {
                Ok(status) if !status.says("open") => return Ok(status),
                Ok(_) => match self.connection.call(&json!({"op": "close", "message_id": self.message_id})) {
                    Ok(_) => return self.connection.call(&status),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            if failure.exit != Exit::Temporary || Instant::now() >= until {
                return Err(failure);
            }
            self.again(Duration::from_secs(1), until)?;
        }
    }

    /// What to do about a message that has some of its recipients.
    fn broken_off(&self, failure: Failure) -> Failure {
        self.bar.finish_and_clear();
        let id = &self.message_id;
        let repeat = match self.sent.members.get("duplicate") {
            _ if failure.exit == Exit::Done => return failure,
            Some(Value::Bool(true)) => "repeat the command",
            _ => "repeat the command, if it had an --idempotency-key, with the same key and file",
        };
        Failure::new(
            failure.exit,
            format!(
                "{failure}\nThe message {id} has taken {} subscriptions, which it sends, and stays open. To go on, {repeat}; to end it, \
                 `fanfare cancel {id}`",
                self.unanswered.front().map_or(self.position, |add| add.from).max(self.skip)
            ),
        )
    }
}

fn pause_after(refusal: &Refusal) -> Duration {
    Duration::from_secs_f64(refusal.retry_after.unwrap_or(1.0))
}
