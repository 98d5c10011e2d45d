//! The app beside the flood, and the operator: urgent messages and pings at a steady pace, whatever becomes of the ones before.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fanfare_loadtest::mock::{Measured, payload_head};
use hdrhistogram::Histogram;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, socket};
use serde_json::value::RawValue;

use super::super::bench::MockProcess;

const MESSAGE_EVERY: Duration = Duration::from_millis(20);
const PING_EVERY: Duration = Duration::from_millis(50);
/// New connections are made this often.
const KNOCK_EVERY: Duration = Duration::from_millis(100);
/// After the last question, until what has not come by then counts as never come.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Who is measured, and where.
pub struct Neighbour {
    /// Of its app.
    pub socket: PathBuf,
    pub operator: PathBuf,
    /// The browsers that its urgent messages go to.
    pub targets: Vec<Box<RawValue>>,
    /// Their push service, which nobody else's messages go to.
    pub service: MockProcess,
}

/// How the neighbour and the operator fared.
pub struct Fared {
    /// Line to reply.
    pub acks: Asked,
    /// Line to the push service.
    pub delivery: Measured,
    /// Acknowledged, and not come to the push service in time.
    pub lost: u64,
    /// On a connection that is open.
    pub pings: Asked,
    /// With a connection made for it: the operator and the neighbour in turn.
    pub knocks: Asked,
}

/// Questions at a steady pace; microseconds.
pub struct Asked {
    pub took: Histogram<u64>,
    /// Answered with a refusal.
    pub refused: u64,
    /// Never answered: the connection ended, or the time was over.
    pub unanswered: u64,
    /// The first of both kinds.
    pub example: Option<String>,
}

impl Asked {
    fn new() -> Asked {
        // An hour, to three digits.
        let took = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("good bounds");
        Asked { took, refused: 0, unanswered: 0, example: None }
    }

    pub fn failed(&self) -> u64 {
        self.refused + self.unanswered
    }

    fn note(&mut self, reply: io::Result<&[u8]>, took: Duration) {
        match reply {
            Ok(line) if line.starts_with(b"{\"ok\":true") => self.took.saturating_record((took.as_micros() as u64).max(1)),
            Ok(line) => {
                self.refused += 1;
                self.example.get_or_insert_with(|| String::from_utf8_lossy(line).trim_end().to_owned());
            }
            Err(problem) => {
                self.unanswered += 1;
                // The kernel's words for a time-out do not say that it was one.
                let late = problem.kind() == io::ErrorKind::WouldBlock;
                self.example.get_or_insert_with(|| if late { "no reply in time".to_owned() } else { problem.to_string() });
            }
        }
    }
}

/// Connections of the neighbour and of the operator.
pub struct Lines {
    own: UnixStream,
    operator: UnixStream,
}

impl Neighbour {
    /// Connects.
    pub fn lines(&self) -> io::Result<Lines> {
        Ok(Lines { own: connect(&self.socket)?, operator: connect(&self.operator)? })
    }

    /// Measures for so long, and then waits for what is not answered yet.
    pub fn measure(&self, lines: Lines, during: Duration) -> io::Result<Fared> {
        self.service.reset_measured()?;
        let end = Instant::now() + during;
        let message = |number: u64, late: Duration, into: &mut Vec<u8>| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let head = payload_head(number, now.saturating_sub(late).as_micros() as u64);
            let target = self.targets[number as usize % self.targets.len()].get();
            let line = format!(
                "{{\"op\":\"send\",\"urgency\":\"high\",\"ttl\":3600,\"to\":{{\"subscription\":{target}}},\"payload\":{head}\"text\":\"now\"}}}}\n"
            );
            into.extend_from_slice(line.as_bytes());
        };
        let ping = |_, _, into: &mut Vec<u8>| into.extend_from_slice(b"{\"op\":\"ping\"}\n");
        let (acks, pings, knocks) = thread::scope(|scope| {
            let acks = scope.spawn(|| paced(lines.own, MESSAGE_EVERY, end, message));
            let pings = scope.spawn(|| paced(lines.operator, PING_EVERY, end, ping));
            let knocks = scope.spawn(|| self.knock(end));
            (join(acks), join(pings), join(knocks))
        });
        let (acks, pings, knocks) = (acks??, pings??, knocks?);
        let acked = acks.took.len();
        let begin = Instant::now();
        let delivery = loop {
            let measured = self.service.measured()?;
            if measured.distinct >= acked || begin.elapsed() >= PATIENCE {
                break measured;
            }
            thread::sleep(Duration::from_millis(5));
        };
        Ok(Fared { acks, lost: acked.saturating_sub(delivery.distinct), delivery, pings, knocks })
    }

    /// A connection and one ping on it, again and again.
    fn knock(&self, end: Instant) -> Asked {
        let mut asked = Asked::new();
        let mut due = Instant::now();
        for place in [&self.operator, &self.socket].into_iter().cycle() {
            if due >= end {
                return asked;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // Those that should have come while the last one waited wait as long as is left of it.
            let began = Instant::now();
            let reply = ping_anew(place);
            let took = began.elapsed();
            asked.note(reply.as_deref().map_err(|problem| io::Error::new(problem.kind(), problem.to_string())), took);
            due += KNOCK_EVERY;
            let answered = reply.is_ok();
            while due < Instant::now() && due < end {
                if answered {
                    asked.note(Ok(b"{\"ok\":true"), due.elapsed());
                }
                due += KNOCK_EVERY;
            }
        }
        asked
    }
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> io::Result<T> {
    thread.join().map_err(|_| io::Error::other("a measuring thread panicked"))
}

/// Connects; where the socket's queue is full it is waited for, but not for ever, as the standard library would.
fn connect(place: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::from(socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?);
    stream.set_read_timeout(Some(PATIENCE))?;
    // Of connecting too (`man 7 socket`, SO_SNDTIMEO).
    stream.set_write_timeout(Some(PATIENCE))?;
    socket::connect(stream.as_raw_fd(), &UnixAddr::new(place)?)?;
    Ok(stream)
}

fn ping_anew(place: &Path) -> io::Result<Vec<u8>> {
    let mut stream = connect(place)?;
    // One that is refused may be closed already; then its line says why.
    let written = stream.write_all(b"{\"op\":\"ping\"}\n");
    let mut line = Vec::new();
    BufReader::new(stream).read_until(b'\n', &mut line)?;
    if line.is_empty() { written.and(Err(io::ErrorKind::UnexpectedEof.into())) } else { Ok(line) }
}

/// Writes a line whenever one is due, whether those before are answered or not; a line that could not be written in time counts from
/// when it was due. `line` makes one: its number, how late it is, and where it goes.
fn paced(
    mut output: UnixStream,
    every: Duration,
    end: Instant,
    line: impl Fn(u64, Duration, &mut Vec<u8>) + Sync,
) -> io::Result<Asked> {
    let input = BufReader::new(output.try_clone()?);
    let (sent, written) = mpsc::channel::<Instant>();
    thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut input = input;
            let mut asked = Asked::new();
            let mut reply = Vec::new();
            let mut ended = false;
            for began in written {
                reply.clear();
                let read = if ended { Ok(0) } else { input.read_until(b'\n', &mut reply) };
                ended |= !matches!(read, Ok(bytes) if bytes > 0);
                let reply = match read {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => Ok(&*reply),
                    Err(problem) => Err(problem),
                };
                asked.note(reply, began.elapsed());
            }
            asked
        });
        let mut due = Instant::now();
        let mut buffer = Vec::new();
        let mut held_up = false;
        for number in 0.. {
            if due >= end {
                break;
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // The time that this thread overslept is not the daemon's.
            let began = if held_up { due } else { Instant::now() };
            buffer.clear();
            line(number, began.elapsed(), &mut buffer);
            let writing = Instant::now();
            // The reading half says what became of it.
            let broken = output.write_all(&buffer).is_err();
            held_up = writing.elapsed() > every || held_up && due + every < Instant::now();
            let _ended = sent.send(began);
            if broken {
                break;
            }
            due += every;
        }
        drop(sent);
        reading.join().map_err(|_| io::Error::other("a reading thread panicked"))
    })
}
