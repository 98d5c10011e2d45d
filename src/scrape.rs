//! The page that Prometheus reads: `GET /metrics` (or `/`), and nothing else.
//!
//! Promise: whoever can connect to it, any local user by default, takes no descriptor, memory or line of the log from the rest of the
//! daemon beyond what stands here. It has at most `CONNECTIONS` connections, each for one request and `PATIENCE`; a further one
//! ends the oldest, so that those who connect and say nothing do not keep a scraper out. One page is made at a time. When no
//! connection can be accepted it waits instead of trying on.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::timeout;

use crate::complaint::Complaint;

/// Connections at the same time.
pub const CONNECTIONS: usize = 16;
/// From the connection to the last byte of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a request's head at most: hyper takes no less.
const HEAD_BYTES: usize = 8 * 1024;
/// When no connection could be accepted, the next is tried after this.
const PAUSE: Duration = Duration::from_millis(500);

static NOT_ACCEPTED: Complaint = Complaint::each_minute();
static TOO_MANY: Complaint = Complaint::each_minute();
static TOO_SLOW: Complaint = Complaint::each_minute();

/// Makes the page.
type Render = dyn Fn() -> String + Send + Sync;

/// Listens from now on. Must be called within a tokio runtime.
pub fn listen(address: SocketAddr, render: impl Fn() -> String + Send + Sync + 'static) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    tokio::spawn(serve(listener, Page { render: Arc::new(render), one_at_a_time: Arc::default() }));
    Ok(())
}

#[derive(Clone)]
struct Page {
    render: Arc<Render>,
    one_at_a_time: Arc<Mutex<()>>,
}

async fn serve(listener: TcpListener, page: Page) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut open: VecDeque<tokio::task::AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(left_out) = NOT_ACCEPTED.tell() {
                    tracing::warn!(%error, left_out, "a connection for metrics cannot be accepted");
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
            if let Some(left_out) = TOO_MANY.tell() {
                tracing::warn!(left_out, "more than {CONNECTIONS} connections for metrics: the oldest ends");
            }
        }
        // Free as soon as the one that was told to end has ended. It is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let page = page.clone();
        let connection = tokio::spawn(async move {
            let _place = place;
            answer(stream, page).await;
        });
        open.push_back(connection.abort_handle());
    }
}

/// One request and its answer.
async fn answer(stream: TcpStream, page: Page) {
    let answer = service_fn(move |request| {
        let page = page.clone();
        async move { Ok::<_, Infallible>(respond(&request, page).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    let http =
        http.keep_alive(false).header_read_timeout(None).max_buf_size(HEAD_BYTES).serve_connection(TokioIo::new(stream), answer);
    // What the peer sends that is no HTTP, or when it goes, is its own business.
    if timeout(PATIENCE, http).await.is_err()
        && let Some(left_out) = TOO_SLOW.tell()
    {
        tracing::warn!(left_out, "a connection for metrics took longer than {} s and ends", PATIENCE.as_secs());
    }
}

async fn respond<T>(request: &Request<T>, page: Page) -> Response<Full<Bytes>> {
    let plain = |status, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
        response
    };
    if !matches!(request.uri().path(), "/" | "/metrics") {
        return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n".to_owned());
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let turn = page.one_at_a_time.lock_owned().await;
    let made = tokio::task::spawn_blocking(move || {
        // Kept until it is made, also if the connection has ended.
        let _turn = turn;
        (page.render)()
    });
    match made.await {
        Ok(text) => plain(StatusCode::OK, text),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn start() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it has one");
        let page = Page { render: Arc::new(|| "fanfare_pending 1\n".to_owned()), one_at_a_time: Arc::default() };
        tokio::spawn(serve(listener, page));
        address
    }

    async fn ask(address: SocketAddr, head: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(format!("{head}\r\nHost: x\r\n\r\n").as_bytes()).await.expect("it reads");
        let mut text = String::new();
        timeout(Duration::from_secs(10), stream.read_to_string(&mut text)).await.expect("it answers").expect("text");
        text
    }

    #[tokio::test]
    async fn the_page_is_at_two_paths_and_nothing_else_is_anywhere() {
        let address = start().await;
        for head in ["GET /metrics HTTP/1.1", "GET / HTTP/1.0", "GET /metrics?x=1 HTTP/1.1"] {
            let text = ask(address, head).await;
            assert!(text.contains(" 200 OK\r\n") && text.ends_with("\r\n\r\nfanfare_pending 1\n"), "{text}");
        }
        let head = ask(address, "HEAD /metrics HTTP/1.1").await;
        assert!(head.contains(" 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
        assert!(ask(address, "POST /metrics HTTP/1.1").await.contains(" 405 "));
        assert!(ask(address, "GET /else HTTP/1.1").await.contains(" 404 "));
    }

    #[tokio::test]
    async fn those_who_connect_and_say_nothing_do_not_keep_a_scraper_out() {
        let address = start().await;
        let mut silent = Vec::new();
        for _ in 0..20 * CONNECTIONS {
            silent.push(TcpStream::connect(address).await.expect("it listens"));
        }
        assert!(ask(address, "GET /metrics HTTP/1.1").await.contains(" 200 OK\r\n"));
        let mut ended = 0;
        for stream in &mut silent {
            let end = timeout(Duration::from_millis(20), stream.read(&mut [0])).await;
            ended += usize::from(end.is_ok());
        }
        assert!(ended >= silent.len() - CONNECTIONS, "{ended} of {} have ended", silent.len());
    }
}
