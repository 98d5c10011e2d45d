//! Sends numbered lines over several pipelined connections and times their replies.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fanfare_loadtest::mock::payload_head;
use hdrhistogram::Histogram;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, TryAcquireError, mpsc};

use super::progress::Progress;
use crate::Sending;

/// Bytes that are gathered before they are written, unless the window closes first.
const GATHER: usize = 16 * 1024;
/// Replies that are shown when they are no good.
const SHOWN: usize = 3;

/// What makes the line of a number; appended to the buffer, newline included.
pub trait Lines: Send + Sync + 'static {
    fn line(&self, seq: u64, into: &mut Vec<u8>);
}

impl<F: Fn(u64, &mut Vec<u8>) + Send + Sync + 'static> Lines for F {
    fn line(&self, seq: u64, into: &mut Vec<u8>) {
        self(seq, into);
    }
}

/// `send` of a numbered and timed payload to one of these, in turn.
pub struct Singles {
    /// Everything before the payload.
    heads: Vec<Vec<u8>>,
    /// 0: no payload, and so no number.
    body: usize,
}

impl Singles {
    /// `body`: bytes of each payload; what the numbers need at least, or 0: none at all.
    pub fn new(subscriptions: &[Box<RawValue>], body: usize) -> Singles {
        Singles::with(subscriptions, body, "")
    }

    /// With these members of the line too, such as `"urgency":"high",`.
    pub fn with(subscriptions: &[Box<RawValue>], body: usize, members: &str) -> Singles {
        let head = |subscription: &RawValue| {
            let subscription = subscription.get();
            format!("{{\"op\":\"send\",\"ttl\":86400,{members}\"to\":{{\"subscription\":{subscription}}}").into_bytes()
        };
        Singles { heads: subscriptions.iter().map(|subscription| head(subscription)).collect(), body }
    }
}

impl Lines for Singles {
    fn line(&self, seq: u64, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.heads[(seq % self.heads.len() as u64) as usize]);
        if self.body == 0 {
            return into.extend_from_slice(b"}\n");
        }
        into.extend_from_slice(b",\"payload\":");
        let sent = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
        let begin = into.len();
        into.extend_from_slice(payload_head(seq, sent).as_bytes());
        into.extend_from_slice(b"\"pad\":\"");
        let pad = self.body.saturating_sub(into.len() - begin + 2);
        into.resize(into.len() + pad, b'x');
        into.extend_from_slice(b"\"}}\n");
    }
}

/// What came of the lines.
pub struct Pumped {
    pub acked: u64,
    /// Answered with `"ok":false`.
    pub refused: u64,
    /// The first few of those.
    pub shown: Vec<String>,
    /// Line made to reply read, microseconds.
    pub ack: Histogram<u64>,
    pub elapsed: Duration,
}

/// Sends a line for each number and waits for all replies; an error is a connection that failed.
pub fn pump(socket: &Path, sending: Sending, numbers: Range<u64>, lines: Arc<dyn Lines>) -> io::Result<Pumped> {
    pump_as("accepted", socket, sending, numbers, lines)
}

/// As [`pump`], under another word where progress is shown.
pub fn pump_as(
    what: &'static str,
    socket: &Path,
    sending: Sending,
    numbers: Range<u64>,
    lines: Arc<dyn Lines>,
) -> io::Result<Pumped> {
    // One thread: it shares the cores with what it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let total = numbers.end - numbers.start;
    let shared = Arc::new(Shared {
        next: AtomicU64::new(numbers.start),
        end: numbers.end,
        begin: Instant::now(),
        first: numbers.start,
        rate: sending.rate,
        done: AtomicU64::new(0),
    });
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..sending.connections.max(1) {
            let stream = UnixStream::connect(socket).await?;
            tasks.spawn(connection(stream, shared.clone(), sending.window.max(1), lines.clone()));
        }
        let progress = Progress::new(what, total);
        let mut whole = Tally::new();
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        loop {
            tokio::select! {
                joined = tasks.join_next() => match joined {
                    Some(joined) => whole.join(joined.map_err(io::Error::other)??),
                    None => break,
                },
                _ = tick.tick() => progress.at(shared.done.load(Ordering::Relaxed)),
            }
        }
        let Tally { acked, refused, shown, ack } = whole;
        Ok(Pumped { acked, refused, shown, ack, elapsed: shared.begin.elapsed() })
    })
}

struct Shared {
    next: AtomicU64,
    end: u64,
    begin: Instant,
    first: u64,
    rate: f64,
    done: AtomicU64,
}

struct Tally {
    acked: u64,
    refused: u64,
    shown: Vec<String>,
    ack: Histogram<u64>,
}

impl Tally {
    fn new() -> Tally {
        // An hour, to three digits.
        let ack = Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("good bounds");
        Tally { acked: 0, refused: 0, shown: Vec::new(), ack }
    }

    fn join(&mut self, other: Tally) {
        self.acked += other.acked;
        self.refused += other.refused;
        self.shown.extend(other.shown);
        self.shown.truncate(SHOWN);
        self.ack.add(&other.ack).expect("equal bounds");
    }
}

async fn connection(stream: UnixStream, shared: Arc<Shared>, window: usize, lines: Arc<dyn Lines>) -> io::Result<Tally> {
    let (input, mut output) = stream.into_split();
    // A place is given back when the reply has been read, not when its wait begins: a bounded channel of times would let one line
    // more than the window out, which doubles the latency told for a window of one.
    let places = Semaphore::new(window);
    let (sent, mut waiting) = mpsc::unbounded_channel::<Instant>();
    let write = async {
        let mut buffer = Vec::with_capacity(2 * GATHER);
        loop {
            // A place first, then the line: nothing is made, and timed, that cannot be sent.
            let place = match places.try_acquire() {
                Ok(place) => place,
                Err(TryAcquireError::NoPermits) => {
                    output.write_all(&buffer).await?;
                    buffer.clear();
                    places.acquire().await.expect("nobody closes it")
                }
                Err(TryAcquireError::Closed) => unreachable!("nobody closes it"),
            };
            let seq = shared.next.fetch_add(1, Ordering::Relaxed);
            if seq >= shared.end {
                break;
            }
            if shared.rate > 0.0 {
                let due = shared.begin + Duration::from_secs_f64((seq - shared.first) as f64 / shared.rate);
                if due > Instant::now() {
                    output.write_all(&buffer).await?;
                    buffer.clear();
                    tokio::time::sleep_until(due.into()).await;
                }
            }
            lines.line(seq, &mut buffer);
            place.forget();
            if sent.send(Instant::now()).is_err() {
                break;
            }
            if buffer.len() >= GATHER {
                output.write_all(&buffer).await?;
                buffer.clear();
            }
        }
        output.write_all(&buffer).await?;
        drop(sent);
        Ok::<_, io::Error>(output)
    };
    let read = async {
        let mut tally = Tally::new();
        let mut input = BufReader::with_capacity(64 * 1024, input);
        let mut line = Vec::new();
        while let Some(made) = waiting.recv().await {
            line.clear();
            input.read_until(b'\n', &mut line).await?;
            if line.last() != Some(&b'\n') {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed a connection with lines unanswered"));
            }
            tally.ack.saturating_record(made.elapsed().as_micros() as u64);
            if good(&line) {
                tally.acked += 1;
            } else {
                tally.refused += 1;
                if tally.shown.len() < SHOWN {
                    tally.shown.push(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
                }
            }
            places.add_permits(1);
            shared.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(tally)
    };
    // `output` lives until all replies are read: closing it first would be the end of the connection.
    let (_output, tally) = tokio::try_join!(write, read)?;
    Ok(tally)
}

/// Whether a reply says `"ok":true`. Parsing it whole would cost the generator more than making the line.
fn good(reply: &[u8]) -> bool {
    const OK: &[u8] = b"\"ok\":true";
    reply.windows(OK.len()).any(|bytes| bytes == OK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, Write};
    use std::os::unix::net::UnixListener;

    fn subscription_of(endpoint: &str) -> Box<RawValue> {
        RawValue::from_string(format!("{{\"endpoint\":\"{endpoint}\"}}")).unwrap()
    }

    #[test]
    fn a_payload_has_the_size_told() {
        let lines = Singles::new(&[subscription_of("x")], 250);
        for seq in [0, 12_345] {
            let mut line = Vec::new();
            lines.line(seq, &mut line);
            assert_eq!(line.pop(), Some(b'\n'));
            let request: serde_json::Value = serde_json::from_slice(&line).unwrap();
            assert_eq!(request["payload"]["seq"], seq);
            assert_eq!(request["to"]["subscription"]["endpoint"], "x");
            let text = std::str::from_utf8(&line).unwrap();
            let payload = text.split_once("\"payload\":").unwrap().1;
            assert_eq!(payload.len() - 1, 250);
        }
        let mut line = Vec::new();
        Singles::with(&[subscription_of("x")], 0, "\"urgency\":\"high\",").line(1, &mut line);
        let request: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!((&request["urgency"], &request["payload"]), (&"high".into(), &serde_json::Value::Null));
    }

    #[test]
    fn every_line_is_sent_once_and_every_reply_counted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (seen, all) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, seen) = (stream.unwrap(), seen.clone());
                std::thread::spawn(move || {
                    let mut output = stream.try_clone().unwrap();
                    for line in std::io::BufReader::new(stream).lines() {
                        let request: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
                        let seq = request["payload"]["seq"].as_u64().unwrap();
                        seen.send(seq).unwrap();
                        let reply = if seq == 7 { "{\"ok\":false,\"error\":{}}\n" } else { "{\"ok\":true}\n" };
                        output.write_all(reply.as_bytes()).unwrap();
                    }
                });
            }
        });
        let subscription = RawValue::from_string("{}".to_owned()).unwrap();
        let lines = Arc::new(Singles::new(&[subscription], 100));
        for (connections, window) in [(3, 10), (1, 1), (20, 1)] {
            let pumped = pump(&path, Sending { connections, window, rate: 0.0 }, 5..1_005, lines.clone()).unwrap();
            assert_eq!((pumped.acked, pumped.refused, pumped.ack.len()), (999, 1, 1_000));
            assert_eq!(pumped.shown.len(), 1);
            let mut numbers: Vec<u64> = all.try_iter().collect();
            numbers.sort_unstable();
            assert!(numbers.iter().copied().eq(5..1_005));
        }
        let begin = Instant::now();
        pump(&path, Sending { connections: 2, window: 10, rate: 1_000.0 }, 5..105, lines).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(95), "a hundred at a thousand a second");
    }

    /// A window that is one too wide doubles the latency told for `--window 1`, and is no longer "one by one".
    #[test]
    fn no_more_lines_are_unanswered_than_the_window_allows() {
        use std::io::Read;
        for window in [1, 2, 7] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let listener = UnixListener::bind(&path).unwrap();
            // Answers only when nothing has come for a while, and tells how many lines had gathered.
            let server = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                let (mut most, mut unanswered, mut bytes) = (0, 0, [0; 64 * 1024]);
                loop {
                    match stream.read(&mut bytes) {
                        Ok(0) => return most,
                        Ok(read) => unanswered += bytes[..read].iter().filter(|byte| **byte == b'\n').count(),
                        Err(_) => {
                            most = most.max(unanswered);
                            stream.write_all("{\"ok\":true}\n".repeat(unanswered).as_bytes()).unwrap();
                            unanswered = 0;
                        }
                    }
                }
            });
            let subscription = RawValue::from_string("{}".to_owned()).unwrap();
            let lines = Arc::new(Singles::new(&[subscription], 100));
            let pumped = pump(&path, Sending { connections: 1, window, rate: 0.0 }, 0..21, lines).unwrap();
            assert_eq!(pumped.acked, 21);
            assert_eq!(server.join().unwrap(), window);
        }
    }
}
