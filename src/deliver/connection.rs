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
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::client::TlsStream;

use super::allowance::{Allowance, Frames};
use super::connect::Socket;
use super::origin::{Destination, Phase, Report};
use super::parcel::Parcel;
use super::{Protocol, Running, Shared, http1, http2};
use crate::complaint::Complaint;
use crate::message::ConnectFailure;
use crate::metrics;

static NOT_CONNECTED: Complaint = Complaint::some();
static FLOODED: Complaint = Complaint::some();

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
            attempt.destination.not_connected.over();
            let seat = attempt.seat(Protocol::Http2, start.limit(), place);
            http2::serve(*start, seat).await;
        }
        Ok((Started::Http1(start), place)) => {
            attempt.destination.not_connected.over();
            let seat = attempt.seat(Protocol::Http1, 1, place);
            http1::serve(*start, seat).await;
        }
        Err(failure) => {
            // Of one push service the same is told seldom, and of all of them together not more than the log can bear.
            if let Some(failure) = failure
                && let Some(left_out) = attempt.destination.not_connected.tell(failure)
                && NOT_CONNECTED.tell().is_some()
            {
                tracing::warn!(host = attempt.destination.origin.host(), left_out, "no connection: {failure}");
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
        let io = Io::new(stream, if http2 { Protocol::Http2 } else { Protocol::Http1 });
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

    /// See [`Destination::flooded`].
    pub(super) fn flooded(&self) {
        if let Some(left_out) = FLOODED.tell() {
            let host = self.destination.origin.host();
            tracing::warn!(host, left_out, "a connection brought too much that answers nothing; it is ended");
        }
        let plan = self.destination.flooded(self.id, Instant::now());
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

/// The encrypted stream as h2 and hyper see it. Five things are added:
///
/// - It counts what is read, and ends the connection when that is more than is allowed ([`Allowance`]).
/// - It says now and then that there is nothing more for the moment ([`AT_A_TIME`]).
/// - It hides that it could write vectors: h2 would then flush after each body of 256 bytes and more, a TLS record and a
///   system call apiece, where it now gathers 16 KiB (bodies up to 1 KiB).
/// - Once a write has failed, writes are swallowed, so that what the peer said before it went is still read to its end:
///   GOAWAY tells which requests it has not processed, and answers may lie in the socket. Reading then ends the connection.
/// - It says goodbye for h2, which has no way to be told to, when it ends the connection itself.
pub(super) struct Io {
    stream: TlsStream<Socket>,
    traffic: Traffic,
    allowance: Allowance,
    /// None: HTTP/1.1, which has no frames.
    frames: Option<Frames>,
    /// Bytes read since it last said that there is nothing.
    at_a_time: usize,
    /// A write was not taken whole: the last frame may have left in part.
    in_write: bool,
    deaf: bool,
}

/// Bytes that are read without a pause. h2 and hyper read on as long as there is something, and h2 keeps what it has read until its
/// caller looks: each 1xx of 10 bytes as a response of 200 and more, each header field of one byte as one of 70. So the caller looks
/// after so many bytes, which is some hundred answers, and a peer that talks without a break cannot make h2 hold more.
const AT_A_TIME: usize = 16 * 1024;

/// GOAWAY of ENHANCE_YOUR_CALM, which says why to the people at the other end (RFC 9113 section 6.8).
pub(super) const CALM: &[u8] =
    b"\x00\x00\x32\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x0btoo much that answers none of the requests";

/// What [`Io`] and the connection's own code tell each other. Both run in one task, so nothing is added up at the same time.
#[derive(Clone, Default)]
pub(super) struct Traffic(Arc<Counts>);

#[derive(Default)]
struct Counts {
    reads: AtomicU64,
    requests: AtomicU64,
    flooded: AtomicBool,
}

impl Traffic {
    /// How many times something was read.
    pub(super) fn reads(&self) -> u64 {
        self.0.reads.load(Ordering::Relaxed)
    }

    /// A request leaves: the peer may send an answer.
    pub(super) fn request(&self) {
        add_one(&self.0.requests);
    }

    /// The connection has ended because the peer sent more than is allowed.
    pub(super) fn flooded(&self) -> bool {
        self.0.flooded.load(Ordering::Relaxed)
    }
}

/// Cheaper than `fetch_add`, and enough within one task.
fn add_one(count: &AtomicU64) {
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

impl Io {
    fn new(stream: TlsStream<Socket>, protocol: Protocol) -> Io {
        Io {
            stream,
            traffic: Traffic::default(),
            allowance: Allowance::new(Instant::now()),
            frames: (protocol == Protocol::Http2).then(Frames::default),
            at_a_time: 0,
            in_write: false,
            deaf: false,
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// Counts what a read has brought; what is not yet decrypted too. False if it is too much.
    fn take(&mut self, read: &[u8]) -> bool {
        let frames = self.frames.as_mut().map_or(0, |frames| frames.follow(read));
        let (reads, bytes) = self.stream.get_mut().0.taken();
        let traffic = &self.traffic.0;
        self.allowance.take(frames.max(reads), bytes, Instant::now, || traffic.requests.load(Ordering::Relaxed))
    }

    /// Ends the connection; HTTP/2 says why, if the peer takes it at once.
    fn flooded(&mut self, cx: &mut Context<'_>) -> io::Error {
        if !self.traffic.0.flooded.swap(true, Ordering::Relaxed) {
            metrics::flooded();
            if self.frames.is_some() && !self.in_write && !self.deaf {
                let _ = Pin::new(&mut self.stream).poll_write(cx, CALM);
                let _ = Pin::new(&mut self.stream).poll_flush(cx);
            }
        }
        io::Error::new(io::ErrorKind::InvalidData, "the peer sent too much that answers nothing")
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.at_a_time >= AT_A_TIME {
            this.at_a_time = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let new = &buf.filled()[before..];
        if read.is_ready() {
            add_one(&this.traffic.0.reads);
            this.at_a_time += new.len();
        } else {
            this.at_a_time = 0;
        }
        if this.take(new) { read } else { Poll::Ready(Err(this.flooded(cx))) }
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
        self.in_write = !matches!(written, Poll::Ready(Ok(written)) if written == buf.len());
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
