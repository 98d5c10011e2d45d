//! Lines on their way to the daemon: written ahead, answered in order.
//!
//! Promises: never more unanswered than the daemon takes (10,000 lines, 4 MiB); a line that the daemon could not take just now is
//! written again after the time it named; after a connection that was lost all that was not answered is written once more. So a
//! line may be taken twice, which `subscribe` allows. Who waits for nothing but failures for two minutes gives up.

use std::collections::VecDeque;
use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client::connection::{Connection, Refusal, Reply, read_line as read_answer};
use crate::client::import::record::{Kind, Requests, Switch};
use crate::client::import::source::Place;
use crate::exit::{Exit, Failure};
use crate::limits::{CONNECTION_BYTES, CONNECTION_LINES};
use crate::protocol::json::{Value, read_line};

/// Unanswered at most: a fifth below what the daemon allows.
const LINES: usize = CONNECTION_LINES / 5 * 4;
const BYTES: usize = CONNECTION_BYTES / 5 * 4;
/// Written at once.
const WRITE_BYTES: usize = 64 * 1024;
/// Bytes of an answer to one line: an id, or what is wrong with it.
const ANSWER_MAX: u64 = 1024 * 1024;
/// How long a daemon that went away, or has no room, is waited for.
const OUTAGE: Duration = Duration::from_secs(120);
/// A line that the daemon answers `internal` so often is the line's fault.
const INTERNAL_MAX: u8 = 5;

/// What came of the lines so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub created: u64,
    pub updated: u64,
    pub accounts: u64,
}

/// A line that the daemon would not take.
#[derive(Debug)]
pub struct Refused {
    pub place: Place,
    pub refusal: Refusal,
}

/// A connection with lines on their way.
pub struct Window {
    socket: PathBuf,
    shared: Arc<Shared>,
    stream: UnixStream,
    answers: Option<JoinHandle<()>>,
    /// To be written.
    out: Vec<u8>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// In the order in which they were written.
    unanswered: VecDeque<Item>,
    /// To be written again, from that time on.
    again: Vec<Item>,
    again_at: Option<Instant>,
    bytes: usize,
    counts: Counts,
    refused: Vec<Refused>,
    /// The connection has ended.
    lost: bool,
    /// What no repetition mends.
    fatal: Option<Refusal>,
    /// Since when nothing was settled although it was tried, and why.
    trouble: Option<(Instant, Failure)>,
}

struct Item {
    place: Place,
    kind: Kind,
    line: Vec<u8>,
    then: Option<Switch>,
    internal: u8,
}

impl Window {
    /// Connects.
    pub fn open(socket: &Path) -> Result<Window, Failure> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let (answers, stream) = listen(socket, &shared)?;
        Ok(Window { socket: socket.to_owned(), shared, stream, answers: Some(answers), out: Vec::with_capacity(WRITE_BYTES * 2) })
    }

    /// Sends the requests of the record at `place`, as soon as there is room.
    pub fn send(&mut self, place: Place, requests: Requests) -> Result<(), Failure> {
        let Requests { kind, mut line, then } = requests;
        line.push(b'\n');
        let item = Item { place, kind, line, then, internal: 0 };
        loop {
            let mut state = self.shared.lock();
            // What the daemon could not take comes first: it has no room for more.
            if !state.needs_care() && state.again.is_empty() && state.has_room_for(item.line.len()) {
                self.out.extend_from_slice(&item.line);
                state.write(item);
                drop(state);
                return if self.out.len() >= WRITE_BYTES { self.flush() } else { Ok(()) };
            }
            drop(state);
            self.care()?;
        }
    }

    /// Waits until everything is answered.
    pub fn finish(&mut self) -> Result<(), Failure> {
        loop {
            let state = self.shared.lock();
            if state.fatal.is_none() && state.unanswered.is_empty() && state.again.is_empty() {
                return Ok(());
            }
            drop(state);
            self.care()?;
        }
    }

    /// The place up to which everything is settled if the next record is at `next`; what came of it; what was refused since
    /// this was last asked.
    pub fn settled(&self, next: Place) -> (Place, Counts, Vec<Refused>) {
        let mut state = self.shared.lock();
        let first = state.unanswered.iter().chain(&state.again).map(|item| item.place).min_by_key(|place| place.line);
        (first.unwrap_or(next), state.counts, std::mem::take(&mut state.refused))
    }

    /// Does what has to be done before more can be written, or waits for it.
    fn care(&mut self) -> Result<(), Failure> {
        self.flush()?;
        let mut state = self.shared.lock();
        if let Some(refusal) = state.fatal.take() {
            return Err(refusal.into());
        }
        if state.trouble.as_ref().is_some_and(|(since, _)| since.elapsed() > OUTAGE)
            && let Some((_, failure)) = state.trouble.take()
        {
            return Err(failure);
        }
        if state.lost {
            drop(state);
            return self.reconnect();
        }
        let now = Instant::now();
        if !state.again.is_empty() && state.again_at.is_none_or(|at| at <= now) {
            state.again_at = None;
            let again = std::mem::take(&mut state.again);
            for item in again {
                self.out.extend_from_slice(&item.line);
                state.unanswered.push_back(item);
            }
            drop(state);
            return self.flush();
        }
        let patience = state.again_at.map_or(Duration::from_millis(500), |at| at.duration_since(now));
        let _woken = self.shared.changed.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if !self.out.is_empty() && self.stream.write_all(&self.out).is_err() {
            // Whoever listens finds out too; what was not answered is written again.
            let _ended = self.stream.shutdown(std::net::Shutdown::Both);
            self.shared.lock().lost = true;
        }
        self.out.clear();
        Ok(())
    }

    /// Connects anew and writes all that has no answer.
    fn reconnect(&mut self) -> Result<(), Failure> {
        let _ended = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(answers) = self.answers.take() {
            // It has ended, or does so now that the connection is closed; it does not panic.
            let _joined = answers.join();
        }
        let (answers, stream) = match listen(&self.socket, &self.shared) {
            Ok(connected) => connected,
            Err(failure) if failure.exit == Exit::Permission => return Err(failure),
            Err(failure) => {
                self.shared.lock().trouble(failure);
                std::thread::sleep(Duration::from_millis(500));
                return Ok(());
            }
        };
        (self.answers, self.stream) = (Some(answers), stream);
        let mut state = self.shared.lock();
        state.lost = false;
        let again = std::mem::take(&mut state.again);
        state.unanswered.extend(again);
        state.unanswered.make_contiguous().sort_by_key(|item| item.place.line);
        state.again_at = None;
        self.out.clear();
        for item in &state.unanswered {
            self.out.extend_from_slice(&item.line);
        }
        drop(state);
        self.flush()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ended = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(answers) = self.answers.take() {
            let _joined = answers.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn needs_care(&self) -> bool {
        self.lost || self.fatal.is_some()
    }

    fn has_room_for(&self, bytes: usize) -> bool {
        self.unanswered.is_empty() || self.unanswered.len() < LINES && self.bytes + bytes <= BYTES
    }

    fn write(&mut self, item: Item) {
        self.bytes += item.line.len();
        self.unanswered.push_back(item);
    }

    /// The oldest line was answered.
    fn answer(&mut self, answer: Answer) {
        let Some(mut item) = self.unanswered.pop_front() else { return };
        match answer {
            Answer::Taken { created } => {
                match item.kind {
                    Kind::Subscribe if created => self.counts.created += 1,
                    Kind::Subscribe => self.counts.updated += 1,
                    Kind::Account => self.counts.accounts += 1,
                    Kind::Switch => {}
                }
                self.settle(item.line.len());
                if let Some(Switch { on, mut line }) = item.then
                    && !(on && created)
                {
                    line.push(b'\n');
                    self.bytes += line.len();
                    self.again.push(Item { kind: Kind::Switch, line, then: None, ..item });
                }
            }
            // This daemon does not know the operation: no line will do better, but with another daemon this one may.
            Answer::Refused(refusal) if refusal.code == "unknown_op" => {
                self.again.push(item);
                self.fatal = Some(refusal);
            }
            Answer::Refused(refusal) if refusal.try_again() && item.internal < INTERNAL_MAX => {
                item.internal += u8::from(refusal.code == "internal");
                let pause = Duration::from_secs_f64(refusal.retry_after.unwrap_or(1.0));
                let at = Instant::now() + pause;
                self.again_at = Some(self.again_at.map_or(at, |other| other.max(at)));
                self.again.push(item);
                self.trouble(refusal.into());
            }
            Answer::Refused(refusal) => {
                self.settle(item.line.len());
                self.refused.push(Refused { place: item.place, refusal });
            }
        }
    }

    fn settle(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.trouble = None;
    }

    fn trouble(&mut self, failure: Failure) {
        let since = self.trouble.take().map_or_else(Instant::now, |(since, _)| since);
        self.trouble = Some((since, failure));
    }
}

enum Answer {
    Taken { created: bool },
    Refused(Refusal),
}

/// Connects, and starts a thread that reads what is answered until the connection ends.
fn listen(socket: &Path, shared: &Arc<Shared>) -> Result<(JoinHandle<()>, UnixStream), Failure> {
    let (reader, writer) = Connection::open(socket)?.split()?;
    let shared = shared.clone();
    let answers = std::thread::spawn(move || {
        let trouble = read_answers(reader, &shared);
        let mut state = shared.lock();
        state.lost = true;
        state.trouble(trouble);
        shared.changed.notify_all();
    });
    Ok((answers, writer))
}

fn read_answers(mut reader: BufReader<UnixStream>, shared: &Shared) -> Failure {
    let mut line = Vec::new();
    let mut answers = Vec::new();
    loop {
        line.clear();
        if let Err(failure) = read_answer(&mut reader, &mut line, ANSWER_MAX) {
            return failure;
        }
        match answer(&line) {
            Ok(answer) => answers.push(answer),
            Err(failure) => return failure,
        }
        // Answers that have come together are taken together.
        if !reader.buffer().contains(&b'\n') {
            let mut state = shared.lock();
            answers.drain(..).for_each(|answer| state.answer(answer));
            drop(state);
            shared.changed.notify_all();
        }
    }
}

fn answer(line: &[u8]) -> Result<Answer, Failure> {
    let text = std::str::from_utf8(line).unwrap_or_default();
    if let Ok(members) = read_line(text).members {
        let says = |name: &str| members.iter().any(|(own, value)| own == name && *value == Value::Bool(true));
        if says("ok") {
            return Ok(Answer::Taken { created: says("created") });
        }
    }
    Ok(match Reply::parse(text.trim_end().to_owned())?.good() {
        Ok(_) => Answer::Taken { created: false },
        Err(refusal) => Answer::Refused(refusal),
    })
}
