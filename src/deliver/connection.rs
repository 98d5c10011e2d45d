//! The life of one connection's task: connect, take a seat at the origin's desk, speak HTTP until it ends, leave.
//!
//! Whatever ends it (also a panic, or the runtime's end) takes the seat away, so that the origin never waits for a
//! connection that is no more; the parcels answer for themselves.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::client::TlsStream;

use super::origin::{Destination, Phase, Report};
use super::parcel::Parcel;
use super::{Protocol, Running, Shared, http1, http2};
use crate::complaint::Complaint;
use crate::message::ConnectFailure;

static NOT_CONNECTED: Complaint = Complaint::some();

/// Without a descriptor connecting is tried again after this, within the time that it may take.
const DESCRIPTOR_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection without streams is kept.
const IDLE: Duration = Duration::from_secs(300);
/// How old a connection gets, give or take a tenth: name changes and new certificates are noticed, load spreads anew.
const AGE: Duration = Duration::from_secs(3_600);

/// Opens a connection for what is queued at `destination` and serves it. To be called once for each plan that asks for a
/// connection.
pub(super) fn spawn(shared: &Arc<Shared>, destination: &Arc<Destination>) {
    let attempt = Attempt {
        running: shared.running(),
        shared: shared.clone(),
        destination: destination.clone(),
        failure: Some(ConnectFailure::Protocol),
        open: true,
    };
    shared.runtime.spawn(run(attempt));
}

async fn run(mut attempt: Attempt) {
    match start(&attempt.shared, &attempt.destination).await {
        Ok((Started::Http2(start), place)) => {
            let seat = attempt.seat(Protocol::Http2, start.limit(), place);
            http2::serve(*start, seat).await;
        }
        Ok((Started::Http1(start), place)) => {
            let seat = attempt.seat(Protocol::Http1, 1, place);
            http1::serve(*start, seat).await;
        }
        Err(failure) => {
            if let Some(failure) = failure
                && let Some(left_out) = NOT_CONNECTED.tell()
            {
                tracing::warn!(host = attempt.destination.origin.host(), ?failure, left_out, "no connection");
            }
            attempt.failure = failure;
        }
    }
}

enum Started {
    Http2(Box<http2::Start>),
    Http1(Box<http1::Start>),
}

/// The error is None if the pool stops.
async fn start(
    shared: &Arc<Shared>,
    destination: &Destination,
) -> Result<(Started, OwnedSemaphorePermit), Option<ConnectFailure>> {
    // Until there is a descriptor it is nobody's fault but ours that nothing is connected.
    let lacking = AtomicBool::new(true);
    let whole = async {
        let place = shared.place(destination).await.ok_or(ConnectFailure::NoDescriptor)?;
        let stream = loop {
            lacking.store(false, Ordering::Relaxed);
            match shared.connector.connect(&destination.origin).await {
                Err(ConnectFailure::NoDescriptor) => {
                    lacking.store(true, Ordering::Relaxed);
                    tokio::time::sleep(DESCRIPTOR_PAUSE).await;
                }
                connected => break connected?,
            }
        };
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = Io::new(stream);
        let started = if http2 {
            Started::Http2(Box::new(http2::Start::new(io).await?))
        } else {
            Started::Http1(Box::new(http1::Start::new(io).await?))
        };
        Ok((started, place))
    };
    let late = || if lacking.load(Ordering::Relaxed) { ConnectFailure::NoDescriptor } else { ConnectFailure::Timeout };
    let mut phase = shared.phase.subscribe();
    tokio::select! {
        ended = tokio::time::timeout(shared.limits.connect, whole) => {
            ended.unwrap_or_else(|_| Err(late())).map_err(Some)
        }
        _ = phase.wait_for(|&phase| phase != Phase::Open) => Err(None),
    }
}

/// A connection that is being opened. Dropped without a seat it has failed.
struct Attempt {
    shared: Arc<Shared>,
    destination: Arc<Destination>,
    /// None if the pool stops.
    failure: Option<ConnectFailure>,
    open: bool,
    running: Running,
}

impl Attempt {
    fn seat(mut self, protocol: Protocol, limit: usize, place: OwnedSemaphorePermit) -> Seat {
        self.open = false;
        let id = self.destination.connected(protocol, limit);
        Seat {
            shared: self.shared.clone(),
            destination: self.destination.clone(),
            id,
            _place: place,
            _running: self.running.clone(),
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.open {
            let plan = match self.failure {
                Some(failure) => self.destination.connect_failed(failure, Instant::now()),
                None => self.destination.connect_given_up(),
            };
            self.shared.act(&self.destination, plan);
        }
    }
}

/// A connection's place at its origin's desk.
pub(super) struct Seat {
    pub(super) shared: Arc<Shared>,
    pub(super) destination: Arc<Destination>,
    id: u64,
    /// Among the connections of all origins.
    _place: OwnedSemaphorePermit,
    _running: Running,
}

impl Seat {
    /// See [`Destination::pull`].
    pub(super) fn pull(&self, report: &mut Report, waker: Option<&Waker>, into: &mut Vec<Parcel>, now: Instant) -> Phase {
        let (phase, plan) = self.destination.pull(self.id, report, waker, into, now);
        self.shared.act(&self.destination, plan);
        phase
    }

    /// See [`Destination::retire`].
    pub(super) fn retire(&self, by_peer: bool) {
        let plan = self.destination.retire(self.id, by_peer, Instant::now());
        self.shared.act(&self.destination, plan);
    }

    /// See [`Destination::unusable`].
    pub(super) fn unusable(&self) {
        let plan = self.destination.unusable(self.id, Instant::now());
        self.shared.act(&self.destination, plan);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let plan = self.destination.leave(self.id, Instant::now());
        self.shared.act(&self.destination, plan);
    }
}

/// Bounds of time, apart so that tests can shrink them.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// Name, TCP, TLS and the start of HTTP together.
    pub(super) connect: Duration,
    /// `deliver.timeout`.
    pub(super) request: Duration,
    pub(super) idle: Duration,
    pub(super) age: Duration,
    /// Streams are open and nothing was read for this long: a PING.
    pub(super) silence: Duration,
    /// How long its answer is waited for.
    pub(super) pong: Duration,
}

impl Limits {
    pub(super) fn new(request: Duration) -> Limits {
        Limits {
            connect: Duration::from_secs(10),
            request,
            idle: IDLE,
            age: AGE,
            silence: Duration::from_secs(30),
            pong: Duration::from_secs(20),
        }
    }

    /// The age of one connection, spread by a tenth either way: those of one start must not all end together.
    pub(super) fn age_of_one(&self) -> Duration {
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish() % 1_000;
        self.age.mul_f64(0.9 + random as f64 / 5_000.0)
    }
}

/// The encrypted stream as h2 and hyper see it. Three things are added:
///
/// - It counts what is read.
/// - It hides that it could write vectors: h2 would then flush after each body of 256 bytes and more, a TLS record and a
///   system call apiece, where it now gathers 16 KiB (bodies up to 1 KiB).
/// - Once a write has failed, writes are swallowed, so that what the peer said before it went is still read to its end:
///   GOAWAY tells which requests it has not processed, and answers may lie in the socket. Reading then ends the connection.
pub(super) struct Io {
    stream: TlsStream<TcpStream>,
    reads: Reads,
    deaf: bool,
}

/// How many times something was read from a connection.
#[derive(Clone, Default)]
pub(super) struct Reads(Arc<AtomicU64>);

impl Reads {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Io {
    fn new(stream: TlsStream<TcpStream>) -> Io {
        Io { stream, reads: Reads::default(), deaf: false }
    }

    pub(super) fn reads(&self) -> Reads {
        self.reads.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_ready() {
            this.reads.0.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl Io {
    /// The result of a write, or what is said instead of an error.
    fn heard<T>(&mut self, written: Poll<io::Result<T>>, instead: T) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(_)) => {
                self.deaf = true;
                Poll::Ready(Ok(instead))
            }
            written => written,
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.heard(written, buf.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.heard(flushed, ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
