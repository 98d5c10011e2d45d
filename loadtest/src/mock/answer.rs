//! An answer on its way: status, headers, and a body that may be huge, slow or endless.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use hyper::body::{Frame, SizeHint};
use tokio::time::Sleep;

use super::fault::{Answer, Body, Fault};

const CHUNK: usize = 16 * 1024;
const BREAK_AFTER: Duration = Duration::from_millis(20);
static FILL: [u8; CHUNK] = [b'x'; CHUNK];

/// The head and body of an answer. A header that HTTP does not allow is left out: the mock's user ordered nonsense.
pub(super) fn response(answer: &Answer) -> Response<AnswerBody> {
    let mut response = Response::new(AnswerBody::new(&answer.body));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in &answer.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// The beginning of an answer that promises more than comes: its body ends in an error.
pub(super) fn broken_response() -> Response<AnswerBody> {
    let mut response = response(&Fault::status(201).header("content-length", "1000").body(Body::Huge(100)));
    response.body_mut().broken = true;
    response
}

/// A body in the making.
pub(super) struct AnswerBody {
    text: Option<Bytes>,
    /// Bytes of filling still to come; None: without end.
    fill: Option<u64>,
    interval: Option<Duration>,
    sleep: Option<Pin<Box<Sleep>>>,
    broken: bool,
}

impl AnswerBody {
    fn new(body: &Body) -> AnswerBody {
        let body_of = |text, fill, interval| AnswerBody { text, fill, interval, sleep: None, broken: false };
        match body {
            Body::Empty => body_of(None, Some(0), None),
            Body::Text(text) => body_of(Some(Bytes::from(text.clone())).filter(|text| !text.is_empty()), Some(0), None),
            Body::Huge(bytes) => body_of(None, Some(*bytes), None),
            Body::Endless => body_of(None, None, None),
            Body::Drip { bytes, interval } => body_of(None, Some(*bytes), Some(*interval)),
        }
    }
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if let Some(text) = this.text.take() {
            return Poll::Ready(Some(Ok(Frame::data(text))));
        }
        if this.fill == Some(0) {
            if !this.broken {
                return Poll::Ready(None);
            }
            // What has been said leaves first.
            let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(BREAK_AFTER)));
            ready!(sleep.as_mut().poll(cx));
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
        }
        let mut size = CHUNK as u64;
        if let Some(interval) = this.interval {
            let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(interval)));
            ready!(sleep.as_mut().poll(cx));
            this.sleep = None;
            size = 1;
        }
        if let Some(fill) = &mut this.fill {
            size = size.min(*fill);
            *fill -= size;
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&FILL[..size as usize])))))
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_none() && self.fill == Some(0) && !self.broken
    }

    fn size_hint(&self) -> SizeHint {
        if self.broken {
            return SizeHint::default();
        }
        match (&self.text, self.fill) {
            (Some(text), _) => SizeHint::with_exact(text.len() as u64),
            (None, Some(fill)) => SizeHint::with_exact(fill),
            (None, None) => SizeHint::default(),
        }
    }
}
