//! The app that floods: connections that ask as fast as they can, for so long. They keep nothing of what they get.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{sleep, timeout};

use super::operations::{Kind, Known, Line, Operation};

/// Lines are written in pieces of about so many bytes.
const PIECE: usize = 32 * 1024;
/// What who leaves has written before: more than the socket holds.
const BURST: usize = 512 * 1024;
/// Who leaves waits no longer for the socket to take it.
const HURRY: Duration = Duration::from_millis(100);
/// A connection whose one request has been silent for so long begins anew.
const SILENCE: Duration = Duration::from_millis(300);
/// Between two attempts to connect of which the first was refused.
const AGAIN: Duration = Duration::from_millis(10);
/// A stretch of a reply in which a refusal is looked for.
const READ: usize = 64 * 1024;

/// How the flooding app behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Manner {
    /// Reads its replies and goes on.
    Stay,
    /// Never reads a reply.
    Silent,
    /// Writes a burst, closes, and comes again.
    Leave,
}

impl Manner {
    pub fn name(self) -> &'static str {
        match self {
            Manner::Stay => "stay",
            Manner::Silent => "silent",
            Manner::Leave => "leave",
        }
    }
}

/// What the flooding app has done.
#[derive(Default)]
pub struct Counts {
    /// Lines written; also the number of the next.
    pub lines: AtomicU64,
    /// Lines read.
    pub replies: AtomicU64,
    /// Of those the ones that say `"ok":false`; where a reply is cut in two by reading, one may be missed.
    pub refused: AtomicU64,
    pub connected: AtomicU64,
    /// The first refusal.
    pub example: Mutex<Option<String>>,
}

/// A flood that runs.
pub struct Flood {
    pub counts: Arc<Counts>,
    thread: JoinHandle<io::Result<()>>,
}

impl Flood {
    /// Starts it, in a thread of its own. After so long it ends by itself.
    pub fn start(
        socket: &Path,
        operation: Arc<Operation>,
        known: Arc<Known>,
        connections: usize,
        manner: Manner,
        lasts: Duration,
    ) -> io::Result<Flood> {
        let counts = Arc::new(Counts::default());
        let once = matches!(operation.kind, Kind::Once(_));
        let flooder = Flooder { socket: socket.to_owned(), operation, known, manner, once, counts: counts.clone() };
        let thread = std::thread::Builder::new().name("flood".to_owned()).spawn(move || flooder.run(connections, lasts))?;
        Ok(Flood { counts, thread })
    }

    /// Waits for its end; all its connections are closed then.
    pub fn finish(self) -> io::Result<Arc<Counts>> {
        self.thread.join().map_err(|_| io::Error::other("the flood's thread panicked"))??;
        Ok(self.counts)
    }
}

#[derive(Clone)]
struct Flooder {
    socket: PathBuf,
    operation: Arc<Operation>,
    known: Arc<Known>,
    manner: Manner,
    /// Its first line is a connection's last.
    once: bool,
    counts: Arc<Counts>,
}

impl Flooder {
    fn run(self, connections: usize, lasts: Duration) -> io::Result<()> {
        let begin = Instant::now();
        match self.operation.kind {
            Kind::Nothing => return Ok(()),
            Kind::Spin => {
                while begin.elapsed() < lasts {
                    std::hint::spin_loop();
                }
                return Ok(());
            }
            _ => {}
        }
        // One thread: the daemon and those who are measured have the rest.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            for number in 0..connections {
                let both = matches!(self.operation.kind, Kind::Both(..));
                let once = if both { !number.is_multiple_of(2) } else { self.once };
                tokio::spawn(Flooder { once, ..self.clone() }.connections());
            }
            sleep(lasts).await;
        });
        // Closes whatever is open.
        drop(runtime);
        Ok(())
    }

    /// One connection after another.
    async fn connections(self) {
        loop {
            let Ok(stream) = UnixStream::connect(&self.socket).await else {
                sleep(AGAIN).await;
                continue;
            };
            self.counts.connected.fetch_add(1, Ordering::Relaxed);
            // An error is a connection that the daemon has ended: the next one comes.
            let ended = self.converse(stream).await;
            if ended.is_err() {
                sleep(AGAIN).await;
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let (input, output) = stream.into_split();
        match (&self.operation.kind, self.manner) {
            (Kind::Nothing | Kind::Spin | Kind::Churn, _) => Ok(()),
            (Kind::Idle, _) => self.read(input, None).await,
            (_, Manner::Leave) => {
                // What was taken by then was taken.
                let _hurried = timeout(HURRY, self.write(output, BURST)).await;
                Ok(())
            }
            (_, Manner::Silent) => {
                let _open = self.write(output, usize::MAX).await?;
                std::future::pending().await
            }
            (kind, Manner::Stay) => {
                // Who has read the whole log reads it again.
                let silence = matches!(kind, Kind::Once(_)).then_some(SILENCE);
                let (_open, ()) = tokio::try_join!(self.write(output, usize::MAX), self.read(input, silence))?;
                Ok(())
            }
        }
    }

    /// What makes this connection's lines; None if it has none.
    fn line(&self) -> Option<&Line> {
        match &self.operation.kind {
            Kind::Lines(line) | Kind::Once(line) => Some(line),
            Kind::Both(last, line) => Some(if self.once { last } else { line }),
            _ => None,
        }
    }

    /// Writes lines until about so many bytes have been taken; gives the half back, which closes the connection when it goes.
    async fn write(&self, mut output: OwnedWriteHalf, bytes: usize) -> io::Result<OwnedWriteHalf> {
        let mut piece = Vec::with_capacity(2 * PIECE);
        let mut written = 0;
        while written < bytes {
            piece.clear();
            let mut lines = 0;
            match (self.line(), &self.operation.kind) {
                (Some(line), _) if self.once => {
                    line(&self.known, self.counts.lines.fetch_add(1, Ordering::Relaxed), &mut piece);
                    output.write_all(&piece).await?;
                    return Ok(output);
                }
                (Some(line), _) => {
                    while piece.len() < PIECE.min(bytes) {
                        // One by one: whoever is slow holds no numbers back.
                        let number = self.counts.lines.load(Ordering::Relaxed) + lines;
                        line(&self.known, number, &mut piece);
                        lines += 1;
                    }
                    self.counts.lines.fetch_add(lines, Ordering::Relaxed);
                }
                (None, Kind::HalfLine(size)) => {
                    piece.resize((*size - written).min(PIECE), b' ');
                    if piece.is_empty() {
                        return Ok(output);
                    }
                }
                (None, Kind::Endless) => piece.resize(PIECE, b' '),
                (None, _) => return Ok(output),
            }
            output.write_all(&piece).await?;
            written += piece.len();
        }
        Ok(output)
    }

    /// Reads and forgets, until the end or until nothing has come for so long.
    async fn read(&self, mut input: OwnedReadHalf, silence: Option<Duration>) -> io::Result<()> {
        let mut buffer = vec![0; READ];
        loop {
            let read = match silence {
                None => input.read(&mut buffer).await?,
                Some(silence) => match timeout(silence, input.read(&mut buffer)).await {
                    Ok(read) => read?,
                    Err(_) => return Ok(()),
                },
            };
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let read = &buffer[..read];
            let replies = read.iter().filter(|byte| **byte == b'\n').count();
            self.counts.replies.fetch_add(replies as u64, Ordering::Relaxed);
            let mut refused = 0;
            for line in read.split(|byte| *byte == b'\n').filter(|line| says_no(line)) {
                refused += 1;
                let mut example = self.counts.example.lock().expect("no holder panics");
                if example.is_none() {
                    *example = Some(String::from_utf8_lossy(line).into_owned());
                }
            }
            self.counts.refused.fetch_add(refused, Ordering::Relaxed);
        }
    }
}

/// Whether a reply is a refusal; it says so within its first bytes, and behind a long `id` of which there are none here.
fn says_no(line: &[u8]) -> bool {
    line.get(..11) == Some(b"{\"ok\":false")
}
