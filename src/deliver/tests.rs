//! The pool against peers that play every fault on command, over real TLS on loopback. Each test ends by checking the
//! contract that all accounting stands on: every post was answered exactly once.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use http::HeaderValue;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::*;
use crate::clock;
use crate::message::{
    BatchId, ContentType, Delivery, DeliveryId, Encoding, Endpoint, KeyId, Lane, Loss, Message, MessageId, Recipient, Service,
    Urgency,
};

/// A delivery with a minute left.
pub(super) fn sealed(origin: &str, path: &str, index: usize) -> Sealed {
    let urgency = Urgency::Normal;
    let message = Message {
        id: MessageId(1),
        app: "default".into(),
        urgency,
        at: UnixMillis(0),
        expires: clock::now().plus(60_000),
        ttl_zero: false,
        topic: None,
        label: None,
        reference: None,
        scope: None,
        when_offline: false,
        content_type: ContentType::Opaque,
        body: Bytes::new(),
        template: false,
        receipt_at: None,
    };
    let recipient = Recipient {
        service: Service::FCM,
        endpoint: Endpoint::from_checked(Bytes::from(format!("{origin}{path}")), u16::try_from(origin.len()).unwrap()),
        p256dh: [4; 65],
        auth: [0; 16],
        encoding: Encoding::Aes128gcm,
        key: None,
        expiration: None,
        reference: None,
        attributes: None,
        registered: None,
    };
    let batch = BatchId::Commit { commit: 1, lane: Lane { service: Service::FCM, urgency }, piece: 0 };
    let delivery = Delivery {
        id: DeliveryId { batch, index: u16::try_from(index).unwrap() },
        message: Arc::new(message),
        recipient,
        attempts: 0,
        tried_keys: 0,
        shrink: false,
        due: None,
        account: None,
        lost: None,
        unproven: false,
    };
    Sealed {
        delivery: Box::new(delivery),
        origin: Origin(origin.into()),
        authorization: HeaderValue::from_static("vapid t=a.b.c, k=d"),
        key: KeyId([7; 8]),
        topic: None,
        aesgcm: None,
        body: Bytes::from(vec![b'x'; 353]),
    }
}

/// Certificates of one test: a server for 127.0.0.1 and localhost, and the file of the CA that signed it.
struct Certificates {
    server: rcgen::CertifiedKey<rcgen::KeyPair>,
    roots: tempfile::NamedTempFile,
}

impl Certificates {
    fn new() -> Certificates {
        let server = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let roots = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(roots.path(), server.cert.pem()).unwrap();
        Certificates { server, roots }
    }

    fn acceptor(&self, alpn: &[u8]) -> TlsAcceptor {
        let key = rustls::pki_types::PrivateKeyDer::try_from(self.server.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.server.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

/// A listening push service and a pool that trusts it.
struct Stage {
    pool: Pool,
    answers: Receiver<Answered>,
    origin: String,
    listener: Arc<TcpListener>,
    acceptor: TlsAcceptor,
    posted: usize,
    _certificates: Certificates,
}

fn settings(roots: &Path) -> Settings {
    Settings {
        connections_per_origin: 4,
        origins: 16,
        timeout: Duration::from_secs(30),
        proxy: None,
        roots: Roots::ExtraOnly,
        extra_roots: Some(roots.to_owned()),
        allow_networks: vec!["127.0.0.0/8".parse().unwrap()],
    }
}

impl Stage {
    async fn new() -> Stage {
        Stage::with(b"h2", |_, _| ()).await
    }

    async fn timing_out(after: Duration) -> Stage {
        Stage::with(b"h2", |_, limits| limits.request = after).await
    }

    async fn with(alpn: &[u8], change: impl FnOnce(&mut Settings, &mut Limits)) -> Stage {
        let certificates = Certificates::new();
        let mut settings = settings(certificates.roots.path());
        let mut limits = Limits::new(settings.timeout);
        change(&mut settings, &mut limits);
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let origin = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let (sender, answers) = crossbeam_channel::unbounded();
        let pool = Pool::start_with(settings, limits, Handle::current(), sender).unwrap();
        let acceptor = certificates.acceptor(alpn);
        Stage { pool, answers, origin, listener, acceptor, posted: 0, _certificates: certificates }
    }

    fn post(&mut self, count: usize) {
        self.post_as(count, |_| ());
    }

    fn post_as(&mut self, count: usize, change: impl Fn(&mut Sealed)) {
        let slice = (self.posted..self.posted + count)
            .map(|index| {
                let mut sealed = sealed(&self.origin, &format!("/send/{index}"), index);
                change(&mut sealed);
                sealed
            })
            .collect();
        self.posted += count;
        self.pool.post(slice);
    }

    async fn accept(&self) -> Peer {
        accept(&self.listener, &self.acceptor).await
    }

    /// Plays `play` with each connection, in a task of its own.
    fn serve<F: Future<Output = ()> + Send + 'static>(&self, play: impl Fn(Peer, usize) -> F + Send + 'static) {
        let (listener, acceptor) = (self.listener.clone(), self.acceptor.clone());
        tokio::spawn(async move {
            for number in 0.. {
                let peer = accept(&listener, &acceptor).await;
                tokio::spawn(play(peer, number));
            }
        });
    }

    /// The next `count` answers, by index.
    async fn answers(&self, count: usize) -> Vec<(usize, Answer)> {
        let answers = self.answers.clone();
        let read = move || {
            let deadline = Instant::now() + Duration::from_secs(20);
            (0..count).map_while(|_| answers.recv_deadline(deadline).ok()).collect::<Vec<Answered>>()
        };
        let answers = tokio::task::spawn_blocking(read).await.unwrap();
        assert_eq!(answers.len(), count, "each post is answered: {:?}", self.pool.status());
        answers
            .into_iter()
            .map(|answered| {
                assert_eq!(answered.key, KeyId([7; 8]));
                assert_eq!(&*answered.origin.0, self.origin);
                (usize::from(answered.delivery.id.index), answered.answer)
            })
            .collect()
    }

    /// All answers that are still to come, sorted; each post must have exactly one.
    async fn all(&self) -> Vec<Answer> {
        let mut answers = self.answers(self.posted).await;
        answers.sort_by_key(|(index, _)| *index);
        let indices: Vec<usize> = answers.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices, (0..self.posted).collect::<Vec<usize>>(), "each post is answered once");
        self.quiet().await;
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Nothing is answered twice, and nothing is left.
    async fn quiet(&self) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(self.answers.try_recv().is_err(), "nothing is answered twice");
        for status in self.pool.status() {
            assert_eq!((status.in_flight, status.queued), (0, 0), "{status:?}");
        }
    }

    fn status(&self) -> OriginStatus {
        self.pool.status().into_iter().find(|status| *status.origin.0 == *self.origin).unwrap()
    }

    /// Waits until `holds`.
    async fn until(&self, holds: impl Fn(&OriginStatus) -> bool) {
        for _ in 0..1_000 {
            if holds(&self.status()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}", self.status());
    }
}

fn is_status(answer: &Answer, expected: u16) -> bool {
    matches!(answer, Answer::Response { status, .. } if status.as_u16() == expected)
}

fn count(answers: &[Answer], holds: impl Fn(&Answer) -> bool) -> usize {
    answers.iter().filter(|answer| holds(answer)).count()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const REFUSED_STREAM: u32 = 7;
const INTERNAL_ERROR: u32 = 2;

/// The other side of a connection, frame by frame: what h2's server would not do can be done.
struct Peer {
    io: TlsStream<TcpStream>,
}

async fn accept(listener: &TcpListener, acceptor: &TlsAcceptor) -> Peer {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        // Else the kernel may keep a frame back, and throw it away when the test closes.
        stream.set_nodelay(true).unwrap();
        if let Ok(io) = acceptor.accept(stream).await {
            return Peer { io };
        }
    }
}

impl Peer {
    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        // The client may be gone already; what it made of that is what the test looks at.
        let _ = self.io.write_all(&frame).await;
        let _ = self.io.flush().await;
    }

    async fn settings(&mut self, streams: u32) {
        let mut setting = vec![0, 3];
        setting.extend(streams.to_be_bytes());
        self.write(SETTINGS, 0, 0, &setting).await;
    }

    /// Preface and SETTINGS.
    async fn greet(&mut self, streams: u32) {
        self.settings(streams).await;
        self.write(WINDOW_UPDATE, 0, 0, &(1u32 << 28).to_be_bytes()).await;
        let mut preface = [0; 24];
        let _ = self.io.read_exact(&mut preface).await;
    }

    /// The next frame; SETTINGS and PING are acknowledged on the way. None: the client has closed.
    async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        self.io.read_exact(&mut payload).await.ok()?;
        let (kind, flags, stream) = (head[3], head[4], u32::from_be_bytes(head[5..9].try_into().unwrap()));
        if flags & 1 == 0 && (kind == SETTINGS || kind == PING) {
            self.write(kind, 1, 0, if kind == PING { &payload } else { &[] }).await;
        }
        Some((kind, flags, stream, payload))
    }

    /// The stream of the next request that is there to its end. None: the client has closed.
    async fn request(&mut self) -> Option<u32> {
        loop {
            let (kind, flags, stream, _) = self.frame().await?;
            if kind <= HEADERS && flags & 1 == 1 {
                return Some(stream);
            }
        }
    }

    async fn requests(&mut self, count: usize) -> Vec<u32> {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(self.request().await.unwrap());
        }
        streams
    }

    /// Status 201 without a body.
    async fn answer(&mut self, stream: u32) {
        self.write(HEADERS, 5, stream, b"\x08\x03201").await;
    }

    async fn reset(&mut self, stream: u32, code: u32) {
        self.write(RST_STREAM, 0, stream, &code.to_be_bytes()).await;
    }

    async fn goaway(&mut self, last: u32) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend([0; 4]);
        self.write(GOAWAY, 0, 0, &payload).await;
    }

    /// Answers everything until the client closes.
    async fn answer_all(mut self, streams: u32) {
        self.greet(streams).await;
        while let Some(stream) = self.request().await {
            self.answer(stream).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_answers_arrive_whole() {
    let mut stage = Stage::new().await;
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    stage.serve(move |peer, _| {
        let seen = counter.clone();
        async move {
            let mut server = h2::server::handshake(peer.io).await.unwrap();
            while let Some(Ok((request, mut respond))) = server.accept().await {
                let seen = seen.clone();
                tokio::spawn(async move {
                    let (head, mut body) = request.into_parts();
                    assert_eq!(head.method, http::Method::POST);
                    assert_eq!(head.uri.scheme_str(), Some("https"));
                    assert!(head.headers["ttl"].to_str().unwrap().parse::<u64>().unwrap() >= 58);
                    let mut length = 0;
                    while let Some(data) = body.data().await {
                        let data = data.unwrap();
                        length += data.len();
                        body.flow_control().release_capacity(data.len()).unwrap();
                    }
                    assert_eq!(head.headers["content-length"], length.to_string().as_str());
                    seen.fetch_add(1, Ordering::Relaxed);
                    respond.send_informational(http::Response::builder().status(103).body(()).unwrap()).unwrap();
                    let answer = http::Response::builder().status(404).header("x-path", head.uri.path()).body(()).unwrap();
                    respond.send_response(answer, false).unwrap().send_data(Bytes::from_static(b"no"), true).unwrap();
                });
            }
        }
    });
    // Bodies of every size up to the largest: several h2 buffers and more than the peer's first window.
    stage.post_as(400, |sealed| {
        sealed.body = Bytes::from(vec![b'x'; usize::from(sealed.delivery.id.index) * 10]);
    });
    for (index, answer) in stage.all().await.into_iter().enumerate() {
        let Answer::Response { status, headers, body } = answer else { panic!("{answer:?}") };
        assert_eq!(
            (status.as_u16(), &headers["x-path"], &*body),
            (404, &HeaderValue::try_from(format!("/send/{index}")).unwrap(), &b"no"[..])
        );
    }
    assert_eq!(seen.load(Ordering::Relaxed), 400);
    assert_eq!(stage.status().protocol, Some(Protocol::Http2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_of_one_stream_never_sees_two() {
    let mut stage = Stage::new().await;
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    stage.serve(move |mut peer, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move {
            peer.greet(1).await;
            while let Some(stream) = peer.request().await {
                // A second one would have come in the meantime.
                assert!(tokio::time::timeout(Duration::from_millis(5), peer.request()).await.is_err());
                peer.answer(stream).await;
            }
        }
    });
    stage.post(40);
    assert_eq!(count(&stage.all().await, |answer| is_status(answer, 201)), 40);
    assert_eq!(connections.load(Ordering::Relaxed), 4);
    assert_eq!(stage.status().resends, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_obeyed_at_the_moment() {
    let mut stage = Stage::with(b"h2", |settings, _| settings.connections_per_origin = 1).await;
    stage.post(30);
    let mut peer = stage.accept().await;
    peer.greet(10).await;
    let first = peer.requests(9).await; // one of ten is kept for high rank
    peer.settings(0).await;
    for stream in first {
        peer.answer(stream).await;
    }
    assert!(tokio::time::timeout(Duration::from_millis(200), peer.request()).await.is_err());
    peer.settings(1).await;
    for _ in 0..5 {
        let stream = peer.request().await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), peer.request()).await.is_err());
        peer.answer(stream).await;
    }
    peer.settings(1_000_000).await;
    for _ in 0..16 {
        let stream = peer.request().await.unwrap();
        peer.answer(stream).await;
    }
    assert_eq!(count(&stage.all().await, |answer| is_status(answer, 201)), 30);
    assert_eq!(stage.pool.capacity(&Origin(stage.origin.as_str().into())), origin::STREAMS_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_allows_no_stream_counts_as_not_connected() {
    let mut stage = Stage::timing_out(Duration::from_millis(200)).await;
    stage.serve(|peer, _| peer.answer_all(0));
    stage.post(10);
    assert_eq!(count(&stage.all().await, |answer| matches!(answer, Answer::NotConnected(ConnectFailure::Protocol))), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_stream_is_sent_again() {
    let mut stage = Stage::new().await;
    stage.serve(|mut peer, _| async move {
        peer.greet(100).await;
        for number in 0.. {
            let Some(stream) = peer.request().await else { break };
            if number % 3 == 0 { peer.reset(stream, REFUSED_STREAM).await } else { peer.answer(stream).await }
        }
    });
    stage.post(20);
    assert_eq!(count(&stage.all().await, |answer| is_status(answer, 201)), 20);
    assert!(stage.status().resends >= 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_refuses_everything_counts_as_not_connected() {
    let mut stage = Stage::new().await;
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    stage.serve(move |mut peer, _| {
        let seen = counter.clone();
        async move {
            peer.greet(100).await;
            while let Some(stream) = peer.request().await {
                seen.fetch_add(1, Ordering::Relaxed);
                peer.reset(stream, REFUSED_STREAM).await;
            }
        }
    });
    stage.post(20);
    assert_eq!(count(&stage.all().await, |answer| matches!(answer, Answer::NotConnected(ConnectFailure::Protocol))), 20);
    assert_eq!(seen.load(Ordering::Relaxed), 20 * 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_goaways_last_stream_is_sent_again_and_the_rest_read_to_its_end() {
    let mut stage = Stage::new().await;
    stage.post(5);
    let mut peer = stage.accept().await;
    peer.greet(100).await;
    assert_eq!(peer.requests(5).await, [1, 3, 5, 7, 9]);
    peer.goaway(5).await;
    let mut second = stage.accept().await;
    second.greet(100).await;
    for stream in second.requests(2).await {
        second.answer(stream).await;
    }
    // Only now those that the first one still has.
    for stream in [1, 3, 5] {
        peer.answer(stream).await;
    }
    assert_eq!(count(&stage.all().await, |answer| is_status(answer, 201)), 5);
    assert_eq!(stage.status().resends, 2);
    assert!(peer.request().await.is_none(), "the first connection is closed");
    stage.post(1);
    let stream = second.request().await.unwrap();
    second.answer(stream).await;
    assert_eq!(stage.answers(1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_or_below_goaways_last_stream_is_lost_when_the_connection_ends() {
    let mut stage = Stage::new().await;
    stage.post(5);
    let mut peer = stage.accept().await;
    peer.greet(100).await;
    peer.requests(5).await;
    peer.goaway(5).await;
    drop(peer);
    let mut second = stage.accept().await;
    second.greet(100).await;
    for stream in second.requests(2).await {
        second.answer(stream).await;
    }
    let answers = stage.all().await;
    assert_eq!(count(&answers, |answer| matches!(answer, Answer::Lost(Loss::Closed))), 3);
    assert_eq!(count(&answers, |answer| is_status(answer, 201)), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graceful_goaway_in_two_steps_loses_nothing() {
    let mut stage = Stage::new().await;
    // As nginx does with `keepalive_requests`: GOAWAY together with the last answers.
    stage.serve(|mut peer, _| async move {
        peer.greet(10).await;
        let mut last = 0;
        for _ in 0..7 {
            let Some(stream) = peer.request().await else { return };
            last = stream;
            peer.answer(stream).await;
        }
        peer.goaway(0x7fff_ffff).await;
        let _ = tokio::time::timeout(Duration::from_millis(20), peer.request()).await;
        peer.goaway(last).await;
        while peer.frame().await.is_some() {}
    });
    stage.post(200);
    assert_eq!(count(&stage.all().await, |answer| is_status(answer, 201)), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_loses_what_was_in_flight_and_no_more() {
    let mut stage = Stage::new().await;
    stage.serve(|mut peer, number| async move {
        if number > 0 {
            return peer.answer_all(10).await;
        }
        peer.greet(10).await;
        peer.requests(9).await;
    });
    stage.post(50);
    let answers = stage.all().await;
    assert_eq!(count(&answers, |answer| matches!(answer, Answer::Lost(Loss::Closed))), 9);
    assert_eq!(count(&answers, |answer| is_status(answer, 201)), 41);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_peer_said_before_it_went_is_heard() {
    let mut stage = Stage::new().await;
    // Closed with unread data, so that our writes fail while GOAWAY and an answer still lie in the socket.
    stage.serve(|mut peer, number| async move {
        if number > 0 {
            return peer.answer_all(100).await;
        }
        peer.greet(1_000).await;
        let stream = peer.request().await.unwrap();
        peer.goaway(stream).await;
        peer.answer(stream).await;
    });
    stage.post_as(500, |sealed| sealed.body = Bytes::from(vec![b'x'; 4096]));
    assert_eq!(count(&stage.all().await, |answer| is_status(answer, 201)), 500);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_stream_is_lost_alone() {
    let mut stage = Stage::new().await;
    stage.serve(|mut peer, _| async move {
        peer.greet(100).await;
        while let Some(stream) = peer.request().await {
            if stream == 3 { peer.reset(stream, INTERNAL_ERROR).await } else { peer.answer(stream).await }
        }
    });
    stage.post(10);
    let answers = stage.all().await;
    assert_eq!(count(&answers, |answer| matches!(answer, Answer::Lost(Loss::Reset))), 1);
    assert_eq!(count(&answers, |answer| is_status(answer, 201)), 9);
    assert_eq!(stage.status().connections_opened, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_time_out_a_connection_takes_nothing_new_and_ends_with_its_last_stream() {
    let mut stage = Stage::timing_out(Duration::from_millis(400)).await;
    stage.post(1);
    let mut peer = stage.accept().await;
    peer.greet(100).await;
    assert_eq!(peer.request().await, Some(1));
    tokio::time::sleep(Duration::from_millis(250)).await;
    stage.post(1);
    assert_eq!(peer.request().await, Some(3));
    let (index, answer) = stage.answers(1).await.pop().unwrap();
    assert!(index == 0 && matches!(answer, Answer::Lost(Loss::Timeout)), "{answer:?}");
    // A new one goes elsewhere,
    stage.post(1);
    let mut second = stage.accept().await;
    second.greet(100).await;
    let stream = second.request().await.unwrap();
    second.answer(stream).await;
    assert!(is_status(&stage.answers(1).await[0].1, 201));
    // while the old one is still read, and closed after that.
    peer.answer(1).await;
    peer.answer(3).await;
    let (index, answer) = stage.answers(1).await.pop().unwrap();
    assert!(index == 1 && is_status(&answer, 201), "{answer:?}");
    assert!(peer.request().await.is_none());
    assert_eq!(stage.status().timeouts, 1);
    stage.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_body_is_cut_and_the_connection_goes_on() {
    let mut stage = Stage::new().await;
    stage.serve(|mut peer, _| async move {
        peer.greet(100).await;
        while let Some(stream) = peer.request().await {
            if stream == 1 {
                peer.write(HEADERS, 4, stream, b"\x08\x03500").await;
                for _ in 0..8 {
                    peer.write(0, 0, stream, &[b'y'; 1500]).await;
                }
            } else {
                peer.answer(stream).await;
            }
        }
    });
    stage.post(1);
    let Some((_, Answer::Response { status, body, .. })) = stage.answers(1).await.pop() else { panic!() };
    assert_eq!((status.as_u16(), body.len()), (500, 4096));
    stage.post(20);
    assert!(stage.answers(20).await.iter().all(|(_, answer)| is_status(answer, 201)));
    assert_eq!(stage.status().connections_opened, 1);
    stage.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_off_or_stalls_still_tells_its_status() {
    let mut stage = Stage::timing_out(Duration::from_millis(300)).await;
    stage.post(2);
    let mut peer = stage.accept().await;
    peer.greet(100).await;
    for stream in peer.requests(2).await {
        peer.write(HEADERS, 4, stream, b"\x08\x03201").await;
        peer.write(0, 0, stream, b"abc").await;
    }
    peer.reset(1, INTERNAL_ERROR).await;
    for answer in stage.all().await {
        assert!(
            matches!(&answer, Answer::Response { status, body, .. } if status.as_u16() == 201 && &**body == b"abc"),
            "{answer:?}"
        );
    }
}

async fn http1(mut peer: Peer, close_after: usize) {
    for _ in 0..close_after {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = peer.io.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("post /send/") && head.contains("\r\nhost: 127.0.0.1:") && !head.contains("expect"), "{head}");
        let length = head.split("\r\ncontent-length: ").nth(1).unwrap().split('\r').next().unwrap().parse().unwrap();
        peer.io.read_exact(&mut vec![0; length]).await.unwrap();
        peer.io.write_all(b"HTTP/1.1 201 Created\r\nX-WNS-Status: received\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        peer.io.flush().await.unwrap();
    }
    let _ = peer.io.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_is_spoken_where_alpn_gives_no_h2() {
    let mut stage = Stage::with(b"http/1.1", |_, _| ()).await;
    stage.serve(|peer, _| http1(peer, 1_000));
    stage.post(100);
    for answer in stage.all().await {
        let Answer::Response { status, headers, body } = answer else { panic!("{answer:?}") };
        assert_eq!((status.as_u16(), &headers["x-wns-status"], &*body), (201, &HeaderValue::from_static("received"), &b"ok"[..]));
    }
    let status = stage.status();
    assert_eq!(status.protocol, Some(Protocol::Http1));
    assert!(status.connections_opened <= 4 && status.capacity == 4, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_connections_that_close_between_requests_lose_nothing_unheard() {
    let mut stage = Stage::with(b"http/1.1", |_, _| ()).await;
    stage.serve(|peer, _| http1(peer, 3));
    stage.post(60);
    // A close that crosses a request on its way cannot be told from a lost answer; everything else is answered.
    let answers = stage.all().await;
    let good = count(&answers, |answer| is_status(answer, 201));
    assert_eq!(good + count(&answers, |answer| matches!(answer, Answer::Lost(Loss::Closed))), 60);
    assert!(good >= 30, "{good}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_time_out_and_endless_body() {
    let mut stage = Stage::with(b"http/1.1", |_, limits| limits.request = Duration::from_millis(300)).await;
    stage.serve(|mut peer, number| async move {
        let mut some = [0; 1024];
        let _ = peer.io.read(&mut some).await;
        if number == 0 {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let _ = peer.io.write_all(b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while peer.io.write_all(b"400\r\n").await.is_ok() && peer.io.write_all(&[b'z'; 1024]).await.is_ok() {
            let _ = peer.io.write_all(b"\r\n").await;
        }
    });
    stage.post(1);
    assert!(matches!(stage.answers(1).await[0].1, Answer::Lost(Loss::Timeout)));
    stage.post(1);
    let Some((_, Answer::Response { status, body, .. })) = stage.answers(1).await.pop() else { panic!() };
    assert_eq!((status.as_u16(), body.len()), (500, 4096));
    stage.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connection_answers_everything_queued() {
    let mut stage = Stage::new().await;
    stage.origin = "https://127.0.0.1:1".to_owned();
    stage.post(300);
    assert_eq!(count(&stage.all().await, |answer| matches!(answer, Answer::NotConnected(ConnectFailure::Refused))), 300);
    assert_eq!(stage.status().last_failure.map(|(failure, _)| failure), Some(ConnectFailure::Refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_ca_is_a_tls_failure_until_the_roots_are_read_again() {
    let others = Certificates::new();
    let roots = others.roots.path().to_owned();
    let mut stage = Stage::with(b"h2", |settings, _| settings.extra_roots = Some(roots.clone())).await;
    stage.serve(|peer, _| peer.answer_all(100));
    stage.post(1);
    assert!(matches!(stage.answers(1).await[0].1, Answer::NotConnected(ConnectFailure::Tls)));
    std::fs::copy(stage._certificates.roots.path(), &roots).unwrap();
    stage.pool.reload_roots().unwrap();
    stage.post(1);
    assert!(is_status(&stage.answers(1).await[0].1, 201));
    std::fs::write(&roots, "").unwrap();
    assert!(matches!(stage.pool.reload_roots(), Err(StartError::ExtraRoots { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forbidden_address_is_never_connected_to() {
    let mut stage = Stage::with(b"h2", |settings, _| settings.allow_networks.clear()).await;
    let port = stage.listener.local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        stage.origin = format!("https://{host}:{port}");
        stage.post(2);
        for (_, answer) in stage.answers(2).await {
            assert!(matches!(answer, Answer::NotConnected(ConnectFailure::Forbidden)), "{host}: {answer:?}");
        }
    }
    assert!(tokio::time::timeout(Duration::from_millis(100), stage.listener.accept()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_never_speaks_is_a_time_out() {
    let mut stage = Stage::with(b"h2", |_, limits| limits.connect = Duration::from_millis(200)).await;
    stage.post(3);
    let (_held, _) = stage.listener.accept().await.unwrap();
    assert_eq!(count(&stage.all().await, |answer| matches!(answer, Answer::NotConnected(ConnectFailure::Timeout))), 3);
    stage.posted = 0;
    stage.post(1);
    let _without_settings = stage.accept().await;
    assert!(matches!(stage.answers(1).await[0].1, Answer::NotConnected(ConnectFailure::Timeout)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_ends_every_connection_is_not_hammered() {
    let mut stage = Stage::new().await;
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    stage.serve(move |mut peer, _| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move {
            peer.greet(100).await;
            peer.goaway(0).await;
            while peer.frame().await.is_some() {}
        }
    });
    stage.post(500);
    assert_eq!(count(&stage.all().await, |answer| matches!(answer, Answer::NotConnected(ConnectFailure::Protocol))), 500);
    assert!(connections.load(Ordering::Relaxed) <= 8, "{connections:?}");
}

/// A proxy that opens tunnels to 127.0.0.1 whatever the name, or refuses them.
async fn proxy(opens: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                if !opens {
                    return client.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
                }
                let head = String::from_utf8(head).unwrap();
                let port = head.split_whitespace().nth(1).unwrap().rsplit(':').next().unwrap();
                let mut server = TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_used_where_it_is_configured() {
    let address = proxy(true).await;
    let mut stage = Stage::with(b"h2", |settings, _| {
        settings.proxy = Some(format!("http://{address}"));
        settings.allow_networks.clear();
    })
    .await;
    let literal =
        std::mem::replace(&mut stage.origin, format!("https://localhost:{}", stage.listener.local_addr().unwrap().port()));
    stage.serve(|peer, _| peer.answer_all(100));
    stage.post(20);
    assert_eq!(count(&stage.all().await, |answer| is_status(answer, 201)), 20);
    // A literal address is checked here too.
    stage.origin = literal;
    stage.post(1);
    assert!(matches!(stage.answers(1).await[0].1, Answer::NotConnected(ConnectFailure::Forbidden)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_refuses_has_its_own_failure() {
    for address in [proxy(false).await, "127.0.0.1:1".parse().unwrap()] {
        let mut stage = Stage::with(b"h2", |settings, _| settings.proxy = Some(format!("http://{address}"))).await;
        stage.post(5);
        assert_eq!(count(&stage.all().await, |answer| matches!(answer, Answer::NotConnected(ConnectFailure::Proxy))), 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_finish_what_is_in_flight_and_answers_the_rest() {
    let mut stage = Stage::with(b"h2", |settings, _| settings.connections_per_origin = 1).await;
    stage.post(20);
    let mut peer = stage.accept().await;
    peer.greet(10).await;
    let streams = peer.requests(9).await;
    let pool = stage.pool.clone();
    let stop = tokio::spawn(async move { pool.stop(Duration::from_secs(10)).await });
    let stopped = stage.answers(11).await;
    assert!(stopped.iter().all(|(_, answer)| matches!(answer, Answer::Stopped)));
    for stream in streams {
        peer.answer(stream).await;
    }
    assert!(stage.answers(9).await.iter().all(|(_, answer)| is_status(answer, 201)));
    stop.await.unwrap();
    stage.pool.post(vec![sealed(&stage.origin, "/x", 99), sealed("https://127.0.0.1:2", "/x", 99)]);
    let late: Vec<Answered> = stage.answers.try_iter().collect();
    assert!(late.len() == 2 && late.iter().all(|answered| matches!(answered.answer, Answer::Stopped)));
    stage.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_gives_up_what_takes_too_long() {
    for alpn in [b"h2".as_slice(), b"http/1.1"] {
        let mut stage = Stage::with(alpn, |settings, _| settings.connections_per_origin = 1).await;
        stage.serve(move |mut peer, _| async move {
            if alpn == b"h2" {
                peer.greet(2).await;
            }
            while peer.io.read_u8().await.is_ok() {}
        });
        stage.post(4);
        stage.until(|status| status.in_flight == 1).await;
        let start = Instant::now();
        stage.pool.stop(Duration::from_millis(100)).await;
        assert!(start.elapsed() < Duration::from_secs(1));
        let answers = stage.all().await;
        assert_eq!(count(&answers, |answer| matches!(answer, Answer::Lost(Loss::Closed))), 1);
        assert_eq!(count(&answers, |answer| matches!(answer, Answer::Stopped)), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_a_connection_that_is_being_opened() {
    let mut stage = Stage::new().await;
    stage.post(4);
    let (_held, _) = stage.listener.accept().await.unwrap();
    stage.pool.stop(Duration::from_secs(5)).await;
    assert_eq!(count(&stage.all().await, |answer| matches!(answer, Answer::Stopped)), 4);
}

#[test]
fn the_end_of_the_runtime_leaves_no_post_unanswered() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut stage = runtime.block_on(Stage::new());
    stage.post(50);
    runtime.block_on(async {
        let mut peer = stage.accept().await;
        peer.greet(10).await;
        peer.requests(9).await;
        stage.until(|status| status.in_flight == 9).await;
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    let Stage { pool, answers, .. } = stage;
    drop(pool);
    let mut indices: Vec<u16> = answers.iter().map(|answered| answered.delivery.id.index).collect();
    indices.sort_unstable();
    assert_eq!(indices, (0..50).collect::<Vec<u16>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_late_does_not_leave() {
    let mut stage = Stage::new().await;
    stage.serve(|peer, _| peer.answer_all(100));
    stage.post_as(10, |sealed| {
        if sealed.delivery.id.index % 2 == 0 {
            Arc::make_mut(&mut sealed.delivery.message).expires = clock::now().plus(500);
        }
    });
    let answers = stage.all().await;
    assert_eq!(count(&answers, |answer| matches!(answer, Answer::TooLate)), 5);
    assert_eq!(count(&answers, |answer| is_status(answer, 201)), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn high_rank_overtakes_a_full_origin() {
    let mut stage = Stage::with(b"h2", |settings, _| settings.connections_per_origin = 1).await;
    stage.post(100);
    let mut peer = stage.accept().await;
    peer.greet(10).await;
    peer.requests(9).await;
    let high = |sealed: &mut Sealed| Arc::make_mut(&mut sealed.delivery.message).urgency = Urgency::High;
    stage.post_as(1, high);
    let stream = tokio::time::timeout(Duration::from_secs(2), peer.request()).await.unwrap().unwrap();
    peer.answer(stream).await;
    assert_eq!(stage.answers(1).await[0].0, 100);
    stage.pool.stop(Duration::ZERO).await;
    assert_eq!(stage.answers(100).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_and_old_connections_are_closed_and_silent_ones_asked() {
    let mut stage = Stage::with(b"h2", |_, limits| limits.idle = Duration::from_millis(100)).await;
    stage.serve(|peer, _| peer.answer_all(100));
    stage.post(1);
    assert!(is_status(&stage.answers(1).await[0].1, 201));
    stage.until(|status| status.connections + status.connections_retiring == 0).await;
    stage.post(1);
    assert!(is_status(&stage.answers(1).await[0].1, 201));

    let mut stage = Stage::with(b"h2", |_, limits| limits.age = Duration::from_millis(100)).await;
    stage.serve(|peer, _| peer.answer_all(100));
    stage.post(1);
    assert!(is_status(&stage.answers(1).await[0].1, 201));
    stage.until(|status| status.connections + status.connections_retiring == 0).await;

    let quick = |_: &mut Settings, limits: &mut Limits| {
        limits.silence = Duration::from_millis(100);
        limits.pong = Duration::from_millis(300);
    };
    let mut stage = Stage::with(b"h2", quick).await;
    stage.post(1);
    let mut peer = stage.accept().await;
    peer.greet(100).await;
    let stream = peer.request().await.unwrap();
    // Answers pings for longer than either limit, then the request.
    let mut pings = 0;
    while pings < 6 {
        pings += usize::from(matches!(peer.frame().await.unwrap(), (PING, 0, _, _)));
    }
    peer.answer(stream).await;
    assert!(is_status(&stage.answers(1).await[0].1, 201));
    // Not answering them is the end.
    stage.post(1);
    peer.request().await.unwrap();
    assert!(matches!(stage.answers(1).await[0].1, Answer::Lost(Loss::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_of_origins_is_bounded() {
    let mut stage = Stage::with(b"h2", |settings, _| settings.origins = 3).await;
    stage.serve(|peer, _| peer.answer_all(100));
    let port = stage.listener.local_addr().unwrap().port();
    stage.post(1);
    assert!(is_status(&stage.answers(1).await[0].1, 201));
    for host in 2..20 {
        stage.origin = format!("https://127.0.0.{host}:{port}");
        stage.post(1);
        assert!(matches!(stage.answers(1).await[0].1, Answer::NotConnected(_)));
        stage.until(|status| !status.connecting).await;
        assert!(stage.pool.status().len() <= 3);
    }
    stage.origin = format!("https://127.0.0.1:{port}");
    stage.post(1);
    assert!(is_status(&stage.answers(1).await[0].1, 201));
}

/// Everything at once, for a while: what is answered how depends on chance, that it is answered once does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_faults_answers_each_post_once() {
    let mut stage = Stage::timing_out(Duration::from_millis(150)).await;
    stage.serve(|mut peer, number| async move {
        let mut random = number as u64 * 7_919 + 17;
        let mut next = move || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % 100
        };
        peer.greet(1 + u32::try_from(next()).unwrap()).await;
        while let Some(stream) = peer.request().await {
            match next() {
                0..80 => peer.answer(stream).await,
                80..85 => peer.reset(stream, REFUSED_STREAM).await,
                85..88 => peer.reset(stream, INTERNAL_ERROR).await,
                88..92 => peer.settings(1 + u32::try_from(next()).unwrap() / 10).await,
                92..94 => {} // never answered
                94..96 => {
                    peer.goaway(stream).await;
                    peer.answer(stream).await;
                }
                96..98 => peer.goaway(stream.saturating_sub(4) | 1).await,
                98 => peer.write(HEADERS, 4, stream, b"\x08\x03201").await,
                _ => return,
            }
        }
    });
    for _ in 0..30 {
        stage.post(100);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let answers = stage.all().await;
    assert!(count(&answers, |answer| is_status(answer, 201)) > 1_500);
}
