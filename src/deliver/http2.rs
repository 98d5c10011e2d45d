//! HTTP/2 on one connection (RFC 9113): one task drives h2, opens streams and reads answers.
//!
//! It promises that never more streams are open than the peer's SETTINGS allow at the moment (nothing queues inside h2
//! where it could be neither seen nor taken back), and that what happens to a stream is told by what the peer said of it:
//!
//! | the peer, or the wire | becomes |
//! |---|---|
//! | answers, the body whole, cut off by us or broken off | [`Answer::Response`]: the status says it all |
//! | REFUSED_STREAM, or GOAWAY with a lower last stream | back to the front of the queue: it was not processed (section 8.7) |
//! | any other RST_STREAM, an answer h2 finds malformed | [`Loss::Reset`] |
//! | the connection ends, the stream at or below GOAWAY's last | [`Loss::Closed`] |
//! | more than is allowed ([`super::allowance`]), the connection ended by us | [`Loss::Flood`]; the origin is condemned |
//! | nothing for `deliver.timeout` | [`Loss::Timeout`]; the connection takes nothing new and ends when its others have |

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::{HeaderMap, StatusCode};
use tokio::time::Sleep;

use super::connection::{Io, Seat, Traffic};
use super::origin::{Phase, Report, STREAMS_MAX};
use super::parcel::Parcel;
use super::request;
use super::streams::Streams;
use crate::clock;
use crate::complaint::Complaint;
use crate::limits::ANSWER_BODY_MAX;
use crate::message::{Answer, ConnectFailure, Loss};

static LATE: Complaint = Complaint::some();

/// How often one delivery is sent again because the peer did not process it; then the origin counts as not connected.
const RESENDS_MAX: u8 = 5;
/// Bytes of an answer's header fields.
const HEADERS_MAX: u32 = 16 * 1024;
/// Window of one stream: a body is read up to 4 KiB.
const STREAM_WINDOW: u32 = 16 * 1024;
/// Window of the connection: what the peer can make us hold.
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How long h2 remembers streams that we reset, so that what was under way for them does not count as an error.
const RESETS_REMEMBERED: Duration = Duration::from_secs(30);
/// How long a connection without streams may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);
/// Turns of reading and opening before other tasks get theirs.
const TURNS: usize = 16;
/// No peer can send this value, so it tells that SETTINGS have not arrived.
const NO_SETTINGS: usize = usize::MAX - 1;

/// A connection whose SETTINGS have arrived.
pub(super) struct Start {
    h2: Connection<Io, Bytes>,
    send: SendRequest<Bytes>,
    ping: Option<PingPong>,
    traffic: Traffic,
}

impl Start {
    /// Sends the preface and waits for the peer's SETTINGS: before them nobody knows how many streams it takes, and those
    /// beyond would be refused.
    pub(super) async fn new(io: Io) -> Result<Start, ConnectFailure> {
        let traffic = io.traffic();
        let (send, mut h2) = h2::client::Builder::new()
            .initial_max_send_streams(NO_SETTINGS)
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(HEADERS_MAX)
            .max_concurrent_reset_streams(STREAMS_MAX)
            .reset_stream_duration(RESETS_REMEMBERED)
            .handshake::<_, Bytes>(io)
            .await
            .map_err(|_| ConnectFailure::Protocol)?;
        let ping = h2.ping_pong();
        poll_fn(|cx| {
            let ended = Pin::new(&mut h2).poll(cx).is_ready();
            match (ended, send.current_max_send_streams()) {
                (true, _) => Poll::Ready(Err(ConnectFailure::Protocol)),
                (false, NO_SETTINGS) => Poll::Pending,
                (false, _) => Poll::Ready(Ok(())),
            }
        })
        .await?;
        Ok(Start { h2, send, ping, traffic })
    }

    /// Streams that the peer allows.
    pub(super) fn limit(&self) -> usize {
        self.send.current_max_send_streams().min(STREAMS_MAX)
    }
}

/// Serves the connection until it ends.
pub(super) async fn serve(start: Start, seat: Seat) {
    let now = Instant::now();
    let tick = tick_length(seat.shared.limits.request);
    let age = seat.shared.limits.age_of_one();
    let limit = start.limit();
    let mut connection = Http2 {
        h2: start.h2,
        send: Some(start.send),
        ping: start.ping,
        streams: Streams::new(),
        incoming: Vec::new(),
        report: Report::default(),
        retiring: false,
        limit,
        tick,
        quiet_since: now,
        ages_at: now + age,
        shut_since: None,
        read: Read { traffic: start.traffic, count: 0, last: now, pinged: None },
        seat,
    };
    let mut sleep = pin!(tokio::time::sleep(tick));
    poll_fn(|cx| connection.poll(cx, sleep.as_mut())).await;
}

/// Fine enough for the time-out, coarse enough to cost nothing.
fn tick_length(timeout: Duration) -> Duration {
    (timeout / 16).clamp(Duration::from_millis(5), Duration::from_millis(250))
}

struct Http2 {
    h2: Connection<Io, Bytes>,
    /// None when it takes nothing new: h2 then ends by itself with the last stream.
    send: Option<SendRequest<Bytes>>,
    ping: Option<PingPong>,
    streams: Streams<Exchange>,
    incoming: Vec<Parcel>,
    report: Report,
    retiring: bool,
    /// Streams that the peer allows at the moment.
    limit: usize,
    tick: Duration,
    /// Since when no stream has been open; meaningless while one is.
    quiet_since: Instant,
    ages_at: Instant,
    /// Since when the peer has allowed no stream while something waited.
    shut_since: Option<Instant>,
    read: Read,
    // Last, so that the seat is left when everything else is gone.
    seat: Seat,
}

/// What was heard of the peer, for keep-alive.
struct Read {
    traffic: Traffic,
    count: u64,
    last: Instant,
    pinged: Option<Instant>,
}

/// One request on its stream.
struct Exchange {
    parcel: Parcel,
    opened: Instant,
    stage: Stage,
    end: End,
}

enum Stage {
    Waiting(ResponseFuture),
    Reading { status: StatusCode, headers: HeaderMap, stream: RecvStream, body: BytesMut },
    Over,
}

/// What became of an exchange; `Open` until something did.
enum End {
    Open,
    Answer(Answer),
    /// The peer has not processed it.
    Refused,
}

impl Http2 {
    fn poll(&mut self, cx: &mut Context<'_>, mut sleep: Pin<&mut Sleep>) -> Poll<()> {
        self.streams.run(cx.waker());
        let was_quiet = self.streams.len() == 0;
        for _ in 0..TURNS {
            while sleep.as_mut().poll(cx).is_ready() {
                if self.tick() {
                    return Poll::Ready(());
                }
                let next = if self.streams.len() > 0 { self.tick } else { GOODBYE };
                sleep.as_mut().reset((Instant::now() + next).into());
            }
            let polled = Pin::new(&mut self.h2).poll(cx);
            if let Poll::Ready(Err(error)) = &polled {
                tracing::debug!(host = self.seat.destination.origin.host(), %error, "a connection has broken");
            }
            let ended = polled.is_ready();
            self.read(ended);
            if ended {
                self.finish();
                return Poll::Ready(());
            }
            match self.open(cx) {
                Opened::Some => {
                    if was_quiet {
                        sleep.as_mut().reset((Instant::now() + self.tick).into());
                    }
                }
                Opened::None => {
                    if self.streams.sleep() {
                        cx.waker().wake_by_ref();
                    }
                    return Poll::Pending;
                }
                Opened::GivenUp => return Poll::Ready(()),
            }
        }
        self.streams.sleep();
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Looks at the streams that have news; at all of them if the connection has ended.
    fn read(&mut self, ended: bool) {
        let news = self.streams.news();
        for &index in &news {
            self.advance(index);
        }
        self.streams.recycle(news);
        if ended {
            for index in 0..self.streams.end() {
                self.advance(index);
                self.end(index, || Answer::Lost(Loss::Closed));
            }
        }
    }

    fn advance(&mut self, index: usize) {
        if let Some(exchange) = self.streams.poll(index, |exchange, cx| exchange.poll(cx)) {
            self.settle(exchange);
        }
    }

    /// Ends the exchange in a slot, if there is one: with its answer if its head has come, else with `answer`.
    fn end(&mut self, index: usize, answer: impl FnOnce() -> Answer) {
        let ended = self.streams.poll(index, |exchange, _| {
            exchange.end = End::Answer(exchange.so_far().unwrap_or_else(answer));
            true
        });
        if let Some(exchange) = ended {
            self.settle(exchange);
        }
    }

    fn settle(&mut self, exchange: Exchange) {
        let Exchange { mut parcel, end, .. } = exchange;
        self.report.end(parcel.rank());
        match end {
            End::Answer(Answer::Lost(Loss::Closed)) if self.read.traffic.flooded() => parcel.answer(Answer::Lost(Loss::Flood)),
            End::Answer(answer) => {
                self.report.answered |= matches!(answer, Answer::Response { .. });
                parcel.answer(answer);
            }
            End::Refused if parcel.resends >= RESENDS_MAX => {
                parcel.come_back();
                parcel.answer(Answer::NotConnected(ConnectFailure::Protocol));
            }
            End::Refused | End::Open => {
                parcel.resends += 1;
                parcel.come_back();
                self.report.resends += 1;
                self.report.put_back.push(parcel);
            }
        }
        if self.streams.len() == 0 {
            self.quiet_since = Instant::now();
        }
    }

    /// Goes to the desk and opens what it gets there.
    fn open(&mut self, cx: &mut Context<'_>) -> Opened {
        let now = Instant::now();
        let ready = match self.send.as_mut().map(|send| (send.poll_ready(cx), send.current_max_send_streams())) {
            // A stream that was ended early still counts inside h2 until its RST_STREAM has gone out.
            Some((Poll::Pending, _)) => false,
            Some((Poll::Ready(Ok(())), limit)) => {
                self.limit = limit.min(STREAMS_MAX);
                true
            }
            // GOAWAY has come, or the stream ids are used up.
            Some((Poll::Ready(Err(_)), _)) => {
                self.retire(true);
                false
            }
            None => false,
        };
        self.count(ready);
        let mut incoming = std::mem::take(&mut self.incoming);
        let phase = self.seat.pull(&mut self.report, Some(cx.waker()), &mut incoming, now);
        self.report.answered = false;
        let some = !incoming.is_empty();
        for parcel in incoming.drain(..) {
            self.send(parcel, now);
        }
        self.incoming = incoming;
        match phase {
            Phase::Open => {}
            Phase::Draining | Phase::Evicted => self.retire(false),
            // The parcels in flight answer for themselves.
            Phase::Closed => return Opened::GivenUp,
        }
        if some { Opened::Some } else { Opened::None }
    }

    fn send(&mut self, mut parcel: Parcel, now: Instant) {
        let Ok(head) = request::head(parcel.sealed(), &self.seat.destination.authority, clock::now()) else {
            self.report.end(parcel.rank());
            return parcel.answer(Answer::TooLate);
        };
        let body = parcel.sealed().body.clone();
        // Without a body the head is the whole request.
        let whole = body.is_empty();
        let opened = self.send.as_mut().map(|send| send.send_request(head, whole));
        let Some(Ok((response, mut stream))) = opened else {
            // GOAWAY has come in between. It did not leave, so it is no resend either.
            self.retire(true);
            self.report.end(parcel.rank());
            self.report.put_back.push(parcel);
            return;
        };
        parcel.leave(now);
        self.read.traffic.request();
        if !whole {
            // h2 keeps what the windows do not let out yet: one body of at most 5 KB a stream, and streams are bounded. An error
            // here shows at the response too.
            let _ = stream.send_data(body, true);
        }
        let index = self.streams.insert(Exchange { parcel, opened: now, stage: Stage::Waiting(response), end: End::Open });
        self.advance(index);
    }

    /// True if the connection is to be given up.
    fn tick(&mut self) -> bool {
        let now = Instant::now();
        let limits = self.seat.shared.limits.clone();
        let open = self.streams.len();

        let mut late = 0;
        for index in 0..self.streams.end() {
            if self.streams.at(index).is_some_and(|exchange| now.duration_since(exchange.opened) >= limits.request) {
                late += 1;
                // Dropping the exchange resets its stream.
                self.end(index, || Answer::Lost(Loss::Timeout));
            }
        }
        if late > 0 {
            self.report.timeouts += late;
            if let Some(left_out) = LATE.tell() {
                tracing::warn!(
                    host = self.seat.destination.origin.host(),
                    late,
                    left_out,
                    "no answer in time; the connection takes nothing new"
                );
            }
            // h2 counts late answers to forgotten streams and ends in GOAWAY (docs/design.md 6.2).
            self.retire(false);
        }

        if self.limit == 0 && !self.retiring && self.seat.destination.waits() {
            if now.duration_since(*self.shut_since.get_or_insert(now)) >= limits.request {
                self.retiring = true;
                self.send = None;
                self.seat.unusable();
            }
        } else {
            self.shut_since = None;
        }

        if open == 0 {
            if self.retiring {
                return now.duration_since(self.quiet_since) >= GOODBYE;
            }
            if now.duration_since(self.quiet_since) >= limits.idle {
                self.retire(false);
            }
            self.read.pinged = None;
            self.read.last = now;
        }
        if now >= self.ages_at {
            self.retire(false);
        }
        open > 0 && self.silent(now, limits.silence, limits.pong)
    }

    /// Keep-alive while streams are open. True if the peer is gone.
    fn silent(&mut self, now: Instant, silence: Duration, patience: Duration) -> bool {
        let count = self.read.traffic.reads();
        if count != self.read.count {
            self.read.count = count;
            self.read.last = now;
            if self.read.pinged.take().is_some()
                && let Some(ping) = &mut self.ping
            {
                // Takes the pong, so that another ping can be sent later.
                let _ = ping.poll_pong(&mut Context::from_waker(std::task::Waker::noop()));
            }
            return false;
        }
        if let Some(pinged) = self.read.pinged {
            return now.duration_since(pinged) >= patience;
        }
        if now.duration_since(self.read.last) >= silence
            && let Some(ping) = &mut self.ping
            && ping.send_ping(Ping::opaque()).is_ok()
        {
            self.read.pinged = Some(now);
        }
        false
    }

    /// Takes nothing new; ends with its last stream.
    fn retire(&mut self, by_peer: bool) {
        if self.retiring {
            return;
        }
        self.retiring = true;
        self.send = None;
        // What the peer has answered or refused so far must be known before the desk judges the connection.
        self.tell();
        self.seat.retire(by_peer);
    }

    /// A report without taking anything: what is put back gets to the queue.
    fn tell(&mut self) {
        self.count(false);
        let mut nothing = Vec::new();
        self.seat.pull(&mut self.report, None, &mut nothing, Instant::now());
        self.report.answered = false;
        debug_assert!(nothing.is_empty(), "a connection that is full by its own report gets nothing");
    }

    /// Fills in what is open and allowed; one that takes nothing at the moment counts as full.
    fn count(&mut self, takes: bool) {
        let open = self.streams.len();
        self.report.limit = self.limit;
        self.report.in_flight = if takes { open } else { open.max(self.limit) };
    }

    /// The connection is no more, and all its exchanges are settled.
    fn finish(&mut self) {
        if self.read.traffic.flooded() {
            self.seat.flooded();
        }
        self.retire(true);
        self.tell();
    }
}

enum Opened {
    Some,
    None,
    /// The pool has waited long enough.
    GivenUp,
}

impl Exchange {
    /// Reads what has come. True if the exchange is over and `end` says how.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match &mut self.stage {
                Stage::Waiting(response) => match Pin::new(response).poll(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(response)) => {
                        let (parts, stream) = response.into_parts();
                        let body = BytesMut::new();
                        self.stage = Stage::Reading { status: parts.status, headers: parts.headers, stream, body };
                    }
                    Poll::Ready(Err(error)) => {
                        self.end = fate(&error);
                        return true;
                    }
                },
                Stage::Reading { stream, body, .. } => match stream.poll_data(cx) {
                    Poll::Pending => return false,
                    Poll::Ready(Some(Ok(data))) => {
                        let _ = stream.flow_control().release_capacity(data.len());
                        let room = ANSWER_BODY_MAX - body.len();
                        body.extend_from_slice(&data[..data.len().min(room)]);
                        if body.len() < ANSWER_BODY_MAX {
                            continue;
                        }
                        return self.complete();
                    }
                    // The whole body; or it broke off, and the status still says what became of the message.
                    Poll::Ready(None | Some(Err(_))) => return self.complete(),
                },
                Stage::Over => return true,
            }
        }
    }

    fn complete(&mut self) -> bool {
        if let Some(answer) = self.so_far() {
            self.end = End::Answer(answer);
        }
        true
    }

    /// The answer with as much of its body as was read, if its head has come.
    fn so_far(&mut self) -> Option<Answer> {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            // The stream is dropped here: where it has not ended, h2 resets it.
            Stage::Reading { status, headers, body, stream: _ } => {
                Some(Answer::Response { status, headers, body: body.freeze() })
            }
            Stage::Waiting(_) | Stage::Over => None,
        }
    }
}

/// What an error of a stream says about the request. h2 gives the remote GOAWAY as a stream's error only to those beyond its
/// last stream; those at or below go on, and get an I/O error if the connection ends before their answer.
fn fate(error: &h2::Error) -> End {
    let not_processed = error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM));
    if not_processed {
        End::Refused
    } else if error.is_reset() {
        End::Answer(Answer::Lost(Loss::Reset))
    } else {
        End::Answer(Answer::Lost(Loss::Closed))
    }
}
