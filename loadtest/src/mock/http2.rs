//! One HTTP/2 connection of the mock.

use std::collections::BTreeSet;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::Request;
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::answer::{self, AnswerBody};
use super::fault::GoAway;
use super::frames::FrameIo;
use super::state::{Arrival, InFlight, Reply, State};

/// More than any push message: what is beyond is not kept.
const BODY_MAX: usize = 2 * 1024 * 1024;
/// How long the rest of the unprocessed requests is waited for.
const UNPROCESSED_PATIENCE: Duration = Duration::from_millis(50);
/// How long a connection that has said goodbye and answered everything stays open: nginx lingers too.
const LINGER: Duration = Duration::from_millis(50);

/// How a request ended.
struct Done {
    stream: u32,
    end: End,
}

enum End {
    /// Answered, or given up by the peer. `good` is None without an answer.
    Over { good: Option<bool> },
    /// The connection is to be closed.
    Close,
}

/// Serves a connection until the peer or a fault ends it.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    state: Arc<State>,
    origin: usize,
    connection: u64,
    io: S,
    goaway: Option<GoAway>,
) -> Result<(), h2::Error> {
    let own = &state.origins[origin];
    let mut limit = own.max_streams.subscribe();
    let mut normal = *limit.borrow_and_update();
    let mut told = normal;
    let (io, frames) = FrameIo::new(io, normal);
    let mut h2 = h2::server::Builder::new()
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24)
        .max_header_list_size(32 * 1024)
        .handshake::<_, Bytes>(io)
        .await?;
    let mut tasks = JoinSet::<Done>::new();
    let mut requests = 0;
    let mut processed = 0;
    let mut in_work = BTreeSet::new();
    let mut said_goodbye = false;
    let mut goodbye_at: Option<Instant> = None;
    let mut close_at: Option<Instant> = None;
    // Streams that a GOAWAY declared unprocessed: nothing is ever said on them, so they are kept, not dropped.
    let mut ignored = Vec::new();
    let begun = state.clone();
    loop {
        tokio::select! {
            accepted = h2.accept() => {
                let Some(accepted) = accepted else { return Ok(()) };
                let (request, mut respond): (Request<RecvStream>, SendResponse<Bytes>) = accepted?;
                let stream = respond.stream_id().as_u32();
                requests += 1;
                if let Some(goaway) = goaway
                    && (said_goodbye || requests > goaway.requests.saturating_sub(goaway.unprocessed) && goaway.unprocessed > 0)
                {
                    state.unprocessed();
                    ignored.push((request, respond));
                    if requests >= goaway.requests && !said_goodbye {
                        frames.goaway(processed, goaway.code);
                        said_goodbye = true;
                    } else if !said_goodbye && goodbye_at.is_none() {
                        goodbye_at = Some(Instant::now() + UNPROCESSED_PATIENCE);
                    }
                } else if in_work.len() >= frames.acknowledged_streams() as usize {
                    state.refused_stream();
                    respond.send_reset(Reason::REFUSED_STREAM);
                } else {
                    processed = stream;
                    in_work.insert(stream);
                    tasks.spawn(answer_one(state.clone(), origin, connection, request, respond, begun.begin(origin)));
                    if let Some(goaway) = goaway && requests >= goaway.requests && !said_goodbye {
                        frames.goaway(processed, goaway.code);
                        said_goodbye = true;
                    }
                }
            }
            Some(done) = tasks.join_next() => {
                let Ok(done) = done else { continue };
                in_work.remove(&done.stream);
                let good = match done.end {
                    End::Over { good } => good,
                    End::Close => return Ok(()),
                };
                if own.narrow.load(Ordering::Relaxed) && let Some(good) = good {
                    let wanted = if good { normal } else { 1 };
                    if wanted != told {
                        frames.max_streams(wanted);
                        told = wanted;
                    }
                }
            }
            changed = limit.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                normal = *limit.borrow_and_update();
                if normal != told {
                    frames.max_streams(normal);
                    told = normal;
                }
            }
            () = until(goodbye_at), if !said_goodbye => {
                frames.goaway(processed, goaway.map_or(0, |goaway| goaway.code));
                said_goodbye = true;
            }
            () = until(close_at) => return Ok(()),
        }
        if said_goodbye && in_work.is_empty() && close_at.is_none() {
            close_at = Some(Instant::now() + LINGER);
        }
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => pending().await,
    }
}

async fn answer_one(
    state: Arc<State>,
    origin: usize,
    connection: u64,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    _in_flight: InFlight,
) -> Done {
    let stream = respond.stream_id().as_u32();
    let end = match reply(&state, origin, connection, request, &mut respond).await {
        Ok(end) => end,
        // The peer gave it up, or the connection broke, which the connection's own loop notices.
        Err(_) => End::Over { good: None },
    };
    Done { stream, end }
}

async fn reply(
    state: &Arc<State>,
    origin: usize,
    connection: u64,
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
) -> Result<End, h2::Error> {
    let (parts, mut incoming) = request.into_parts();
    let body = collect(&mut incoming).await?;
    let answer = match state.judge(Arrival::now(origin, connection, parts, body)).await {
        Reply::Answer(answer) => answer,
        Reply::CloseInAnswer => return say(answer::broken_response(), respond).await,
        Reply::Stall => {
            poll_fn(|cx| respond.poll_reset(cx)).await?;
            return Ok(End::Over { good: None });
        }
        Reply::Reset(code) => {
            respond.send_reset(Reason::from(code));
            return Ok(End::Over { good: Some(false) });
        }
        Reply::Close => return Ok(End::Close),
    };
    if !answer.delay.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(answer.delay) => {}
            reset = poll_fn(|cx| respond.poll_reset(cx)) => {
                reset?;
                return Ok(End::Over { good: None });
            }
        }
    }
    say(answer::response(&answer), respond).await
}

/// Sends an answer; a body that ends in an error ends the connection.
async fn say(response: http::Response<AnswerBody>, respond: &mut SendResponse<Bytes>) -> Result<End, h2::Error> {
    let good = response.status().is_success();
    let (head, mut body) = response.into_parts();
    let empty = hyper::body::Body::is_end_stream(&body);
    let mut send = respond.send_response(http::Response::from_parts(head, ()), empty)?;
    if empty {
        return Ok(End::Over { good: Some(good) });
    }
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Ok(End::Close) };
        let Ok(mut data) = frame.into_data() else { continue };
        while !data.is_empty() {
            send.reserve_capacity(data.len());
            let Some(capacity) = poll_fn(|cx| send.poll_capacity(cx)).await else {
                return Ok(End::Over { good: None });
            };
            let piece = data.split_to(capacity?.min(data.len()));
            send.send_data(piece, false)?;
        }
    }
    send.send_data(Bytes::new(), true)?;
    Ok(End::Over { good: Some(good) })
}

async fn collect(incoming: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut body = BytesMut::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        incoming.flow_control().release_capacity(chunk.len())?;
        if incoming.is_end_stream() && body.is_empty() {
            return Ok(chunk);
        }
        if body.len() < BODY_MAX {
            body.extend_from_slice(&chunk);
        }
    }
    Ok(body.freeze())
}
