//! One HTTP/1.1 connection of the mock.

use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::answer::{self, AnswerBody};
use super::fault::GoAway;
use super::state::{Arrival, Reply, State};

const BODY_MAX: usize = 2 * 1024 * 1024;

/// Serves a connection until the peer or a fault ends it. `goaway` becomes `Connection: close` after that many requests.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    state: Arc<State>,
    origin: usize,
    connection: u64,
    io: S,
    goaway: Option<GoAway>,
) -> hyper::Result<()> {
    let requests = AtomicU64::new(0);
    let service = service_fn(|request| {
        let number = requests.fetch_add(1, Ordering::Relaxed) + 1;
        let last = goaway.is_some_and(|goaway| number >= goaway.requests);
        answer_one(state.clone(), origin, connection, request, last)
    });
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await
}

/// An error closes the connection.
async fn answer_one(
    state: Arc<State>,
    origin: usize,
    connection: u64,
    request: Request<Incoming>,
    last: bool,
) -> io::Result<Response<AnswerBody>> {
    let _in_flight = state.begin(origin);
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await.map_err(io::Error::other)?.to_bytes();
    let answer = match state.judge(Arrival::now(origin, connection, parts, body)).await {
        Reply::Answer(answer) => answer,
        Reply::CloseInAnswer => return Ok(answer::broken_response()),
        Reply::Stall => pending().await,
        Reply::Reset(_) | Reply::Close => return Err(io::ErrorKind::ConnectionAborted.into()),
    };
    tokio::time::sleep(answer.delay).await;
    let mut response = answer::response(&answer);
    if last {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}
