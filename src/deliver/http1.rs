//! HTTP/1.1 on one connection, where ALPN gives no h2 (docs/push-services.md 3.4): one request at a time, never pipelined, always
//! with Content-Length.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use http::uri::PathAndQuery;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::rt::ReadBufCursor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep, sleep_until};

use super::connection::{Io, Seat, Traffic};
use super::origin::{Phase, Report};
use super::parcel::Parcel;
use super::request;
use crate::clock;
use crate::complaint::Complaint;
use crate::limits::ANSWER_BODY_MAX;
use crate::message::{Answer, ConnectFailure, Loss};

static LATE: Complaint = Complaint::some();

/// An open connection.
pub(super) struct Start {
    send: SendRequest<Full<Bytes>>,
    connection: Connection<HyperIo, Full<Bytes>>,
    traffic: Traffic,
}

impl Start {
    pub(super) async fn new(io: Io) -> Result<Start, ConnectFailure> {
        let traffic = io.traffic();
        let (send, connection) =
            Builder::new().max_buf_size(32 * 1024).handshake(HyperIo(io)).await.map_err(|_| ConnectFailure::Protocol)?;
        Ok(Start { send, connection, traffic })
    }
}

/// What the next thing to do on an idle connection is.
enum Next {
    Send(Box<Parcel>),
    /// Nothing more: it is too old, idle for too long, or the pool stops.
    Leave,
    /// The pool has waited long enough.
    GiveUp,
}

/// Serves the connection until it ends.
pub(super) async fn serve(start: Start, seat: Seat) {
    let Start { mut send, connection, traffic } = start;
    let limits = seat.shared.limits.clone();
    let ages_at = tokio::time::Instant::now() + limits.age_of_one();
    let mut connection = Wire { connection: Some(connection) };
    let mut report = Report::default();
    let mut keep = true;
    let mut by_peer = true;

    while keep {
        // The peer may close an idle connection at any time; only then is it not ready.
        if connection.drive(send.ready()).await.is_err() {
            break;
        }
        let next = {
            let mut idle = pin!(sleep(limits.idle));
            let mut aged = pin!(sleep_until(ages_at));
            poll_fn(|cx| {
                if connection.poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                let next = next(&seat, &mut report, cx);
                if next.is_ready() {
                    return next.map(Some);
                }
                if idle.as_mut().poll(cx).is_ready() || aged.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Some(Next::Leave));
                }
                Poll::Pending
            })
            .await
        };
        let mut parcel = match next {
            None => break,
            Some(Next::Leave | Next::GiveUp) => {
                by_peer = false;
                break;
            }
            Some(Next::Send(parcel)) => *parcel,
        };

        let Some(request) = request_of(&parcel, &seat) else {
            report.end(parcel.rank());
            parcel.answer(Answer::TooLate);
            continue;
        };
        parcel.leave(Instant::now());
        traffic.request();
        let mut exchange = Exchange::default();
        let ended = {
            let whole = connection.drive(exchange.run(&mut send, request));
            let stop = closed(&seat);
            tokio::select! {
                ended = whole => Some(ended),
                () = sleep(limits.request) => None,
                () = stop => break,
            }
        };
        report.end(parcel.rank());
        match ended {
            Some(Ended::NotSent) => {
                // It never left the buffer; no resend is counted, for the connection ends here.
                parcel.come_back();
                report.put_back.push(parcel);
                break;
            }
            Some(Ended::Whole) => {}
            Some(Ended::Cut) => keep = false,
            None => {
                report.timeouts += 1;
                if let Some(left_out) = LATE.tell() {
                    tracing::warn!(host = seat.destination.origin.host(), left_out, "no answer in time; the connection ends");
                }
                keep = false;
            }
        }
        by_peer = keep;
        let lost = match ended {
            None => Loss::Timeout,
            Some(_) if traffic.flooded() => Loss::Flood,
            Some(_) => Loss::Closed,
        };
        let answer = exchange.answer().unwrap_or(Answer::Lost(lost));
        report.answered = matches!(answer, Answer::Response { .. });
        keep &= report.answered;
        parcel.answer(answer);
    }
    if traffic.flooded() {
        seat.flooded();
    }
    report.limit = 0;
    report.in_flight = 0;
    let mut nothing = Vec::new();
    seat.pull(&mut report, None, &mut nothing, Instant::now());
    seat.retire(by_peer);
}

/// What the desk has for this connection.
fn next(seat: &Seat, report: &mut Report, cx: &mut Context<'_>) -> Poll<Next> {
    let mut into = Vec::new();
    report.limit = 1;
    report.in_flight = 0;
    let phase = seat.pull(report, Some(cx.waker()), &mut into, Instant::now());
    report.answered = false;
    debug_assert!(into.len() <= 1, "it has one stream");
    match (into.pop(), phase) {
        (Some(parcel), _) => Poll::Ready(Next::Send(Box::new(parcel))),
        (None, Phase::Open) => Poll::Pending,
        (None, Phase::Draining | Phase::Evicted) => Poll::Ready(Next::Leave),
        (None, Phase::Closed) => Poll::Ready(Next::GiveUp),
    }
}

/// Ends when the pool gives up what is in flight.
async fn closed(seat: &Seat) {
    let mut phase = seat.shared.phase.subscribe();
    // The sender lives as long as `shared`.
    let _ = phase.wait_for(|&phase| phase == Phase::Closed).await;
}

/// None: too late.
fn request_of(parcel: &Parcel, seat: &Seat) -> Option<http::Request<Full<Bytes>>> {
    let head = request::head(parcel.sealed(), &seat.destination.authority, clock::now()).ok()?;
    let (mut parts, ()) = head.into_parts();
    let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    parts.uri = path.into();
    parts.version = http::Version::HTTP_11;
    parts.headers.insert(HOST, seat.destination.host.clone());
    Some(http::Request::from_parts(parts, Full::new(parcel.sealed().body.clone())))
}

enum Ended {
    /// The connection can be used again.
    Whole,
    /// The answer is not read to its end, or there is none.
    Cut,
    /// No byte of the request left.
    NotSent,
}

/// One request and what has come of its answer so far.
#[derive(Default)]
struct Exchange {
    head: Option<http::response::Parts>,
    body: BytesMut,
}

impl Exchange {
    async fn run(&mut self, send: &mut SendRequest<Full<Bytes>>, request: http::Request<Full<Bytes>>) -> Ended {
        let (head, mut body) = match send.try_send_request(request).await {
            Ok(response) => response.into_parts(),
            Err(mut error) => return if error.take_message().is_some() { Ended::NotSent } else { Ended::Cut },
        };
        self.head = Some(head);
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return Ended::Cut };
            if let Some(data) = frame.data_ref() {
                let room = ANSWER_BODY_MAX - self.body.len();
                self.body.extend_from_slice(&data[..data.len().min(room)]);
                if data.len() > room {
                    return Ended::Cut;
                }
            }
        }
        Ended::Whole
    }

    fn answer(self) -> Option<Answer> {
        let head = self.head?;
        Some(Answer::Response { status: head.status, headers: head.headers, body: self.body.freeze() })
    }
}

/// hyper's connection, which must be driven while anything is waited for.
struct Wire {
    connection: Option<Connection<HyperIo, Full<Bytes>>>,
}

impl Wire {
    /// Ready when it has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(connection) = &mut self.connection {
            if Pin::new(connection).poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.connection = None;
        }
        Poll::Ready(())
    }

    async fn drive<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = pin!(work);
        poll_fn(|cx| {
            let _ = self.poll(cx);
            work.as_mut().poll(cx)
        })
        .await
    }
}

/// tokio's traits for hyper's.
struct HyperIo(Io);

impl hyper::rt::Read for HyperIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        // Copied once, which spares `unsafe`; answers are small.
        let mut space = [0; 4096];
        let size = space.len().min(into.remaining());
        let mut buffer = ReadBuf::new(&mut space[..size]);
        match Pin::new(&mut self.0).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                into.put_slice(buffer.filled());
                Poll::Ready(Ok(()))
            }
            other => other,
        }
    }
}

impl hyper::rt::Write for HyperIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
