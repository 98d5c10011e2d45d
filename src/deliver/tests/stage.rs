//! A push service that plays its part frame by frame, and a pool that trusts it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderValue;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::clock;
use crate::deliver::*;
use crate::message::{
    BatchId, ContentType, Delivery, DeliveryId, Encoding, Endpoint, KeyId, Lane, Loss, Message, MessageId, Recipient, Service,
    Urgency,
};

/// A delivery with a minute left.
pub(in crate::deliver) fn sealed(origin: &str, path: &str, index: usize) -> Sealed {
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
        encryption: None,
        crypto_key: None,
        body: Bytes::from(vec![b'x'; 353]),
    }
}

/// Certificates of one test: a server for 127.0.0.1 and localhost, and the file of the CA that signed it.
pub(super) struct Certificates {
    server: rcgen::CertifiedKey<rcgen::KeyPair>,
    pub(super) roots: tempfile::NamedTempFile,
}

impl Certificates {
    pub(super) fn new() -> Certificates {
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
pub(super) struct Stage {
    pub(super) pool: Pool,
    pub(super) answers: Arc<crate::queue::Receiver<Answered>>,
    pub(super) origin: String,
    pub(super) listener: Arc<TcpListener>,
    acceptor: TlsAcceptor,
    pub(super) posted: usize,
    pub(super) certificates: Certificates,
}

fn settings(roots: &Path) -> Settings {
    Settings {
        connections_per_origin: 4,
        origins: 16,
        connections: 64,
        timeout: Duration::from_secs(30),
        proxy: None,
        roots: Roots::ExtraOnly,
        extra_roots: Some(roots.to_owned()),
        allow_networks: vec!["127.0.0.0/8".parse().unwrap()],
    }
}

impl Stage {
    pub(super) async fn new() -> Stage {
        Stage::with(b"h2", |_, _| ()).await
    }

    pub(super) async fn timing_out(after: Duration) -> Stage {
        Stage::with(b"h2", |_, limits| limits.request = after).await
    }

    /// With one connection an origin.
    pub(super) async fn with_one_connection() -> Stage {
        Stage::with(b"h2", |settings, _| settings.connections_per_origin = 1).await
    }

    pub(super) async fn with(alpn: &[u8], change: impl FnOnce(&mut Settings, &mut Limits)) -> Stage {
        let certificates = Certificates::new();
        let mut settings = settings(certificates.roots.path());
        let mut limits = Limits::new(settings.timeout);
        change(&mut settings, &mut limits);
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let origin = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        let (sender, answers) = crate::queue::unbounded();
        let pool = Pool::start_with(settings, limits, Handle::current(), sender).unwrap();
        let acceptor = certificates.acceptor(alpn);
        Stage { pool, answers: Arc::new(answers), origin, listener, acceptor, posted: 0, certificates }
    }

    pub(super) fn post(&mut self, count: usize) {
        self.post_as(count, |_| ());
    }

    pub(super) fn post_as(&mut self, count: usize, change: impl Fn(&mut Sealed)) {
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

    /// Posts one; the next answer is its own.
    pub(super) async fn post_one(&mut self) -> Answer {
        self.post(1);
        self.answers(1).await.remove(0).1
    }

    pub(super) async fn accept(&self) -> Peer {
        accept(&self.listener, &self.acceptor).await
    }

    /// The next connection, greeted.
    pub(super) async fn greeted(&self, streams: u32) -> Peer {
        let mut peer = self.accept().await;
        peer.greet(streams).await;
        peer
    }

    /// Plays `play` with each connection, in a task of its own.
    pub(super) fn serve<F: Future<Output = ()> + Send + 'static>(&self, play: impl Fn(Peer, usize) -> F + Send + 'static) {
        let (listener, acceptor) = (self.listener.clone(), self.acceptor.clone());
        tokio::spawn(async move {
            for number in 0.. {
                let peer = accept(&listener, &acceptor).await;
                tokio::spawn(play(peer, number));
            }
        });
    }

    /// The next `count` answers, by index.
    pub(super) async fn answers(&self, count: usize) -> Vec<(usize, Answer)> {
        let answers = self.answers.clone();
        let read = move || {
            let deadline = Instant::now() + Duration::from_secs(20);
            (0..count)
                .map_while(|_| answers.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok())
                .collect::<Vec<Answered>>()
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
    pub(super) async fn all(&self) -> Vec<Answer> {
        let mut answers = self.answers(self.posted).await;
        answers.sort_by_key(|(index, _)| *index);
        let indices: Vec<usize> = answers.iter().map(|(index, _)| *index).collect();
        assert_eq!(indices, (0..self.posted).collect::<Vec<usize>>(), "each post is answered once");
        self.quiet().await;
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Nothing is answered twice, and nothing is left.
    pub(super) async fn quiet(&self) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(self.answers.try_recv().is_err(), "nothing is answered twice");
        for status in self.pool.status() {
            assert_eq!((status.in_flight, status.queued), (0, 0), "{status:?}");
        }
    }

    pub(super) fn status(&self) -> OriginStatus {
        self.pool.status().into_iter().find(|status| *status.origin.0 == *self.origin).unwrap()
    }

    /// Waits until `holds`.
    pub(super) async fn until(&self, holds: impl Fn(&OriginStatus) -> bool) {
        for _ in 0..1_000 {
            if holds(&self.status()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}", self.status());
    }
}

pub(super) fn is_status(answer: &Answer, expected: u16) -> bool {
    matches!(answer, Answer::Response { status, .. } if status.as_u16() == expected)
}

pub(super) fn count(answers: &[Answer], holds: impl Fn(&Answer) -> bool) -> usize {
    answers.iter().filter(|answer| holds(answer)).count()
}

/// Those with status 201.
pub(super) fn accepted(answers: &[Answer]) -> usize {
    count(answers, |answer| is_status(answer, 201))
}

pub(super) fn lost(answers: &[Answer], how: Loss) -> usize {
    count(answers, |answer| matches!(answer, Answer::Lost(loss) if *loss == how))
}

pub(super) fn not_connected(answers: &[Answer], how: ConnectFailure) -> usize {
    count(answers, |answer| matches!(answer, Answer::NotConnected(failure) if *failure == how))
}

pub(super) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const REFUSED_STREAM: u32 = 7;
pub(super) const INTERNAL_ERROR: u32 = 2;

/// The other side of a connection, frame by frame: what h2's server would not do can be done.
pub(super) struct Peer {
    pub(super) io: TlsStream<TcpStream>,
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
    pub(super) async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        // The client may be gone already; what it made of that is what the test looks at.
        let _ = self.io.write_all(&frame).await;
        let _ = self.io.flush().await;
    }

    pub(super) async fn settings(&mut self, streams: u32) {
        let mut setting = vec![0, 3];
        setting.extend(streams.to_be_bytes());
        self.write(SETTINGS, 0, 0, &setting).await;
    }

    /// Preface and SETTINGS.
    pub(super) async fn greet(&mut self, streams: u32) {
        self.settings(streams).await;
        self.write(WINDOW_UPDATE, 0, 0, &(1u32 << 28).to_be_bytes()).await;
        let mut preface = [0; 24];
        let _ = self.io.read_exact(&mut preface).await;
    }

    /// The next frame; SETTINGS and PING are acknowledged on the way. None: the client has closed.
    pub(super) async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
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
    pub(super) async fn request(&mut self) -> Option<u32> {
        loop {
            let (kind, flags, stream, _) = self.frame().await?;
            if kind <= HEADERS && flags & 1 == 1 {
                return Some(stream);
            }
        }
    }

    pub(super) async fn requests(&mut self, count: usize) -> Vec<u32> {
        let mut streams = Vec::new();
        for _ in 0..count {
            streams.push(self.request().await.unwrap());
        }
        streams
    }

    /// Accepts the next requests.
    pub(super) async fn answer_next(&mut self, count: usize) {
        for _ in 0..count {
            let stream = self.request().await.unwrap();
            self.answer(stream).await;
        }
    }

    /// Status 201 without a body.
    pub(super) async fn answer(&mut self, stream: u32) {
        self.write(HEADERS, 5, stream, b"\x08\x03201").await;
    }

    pub(super) async fn reset(&mut self, stream: u32, code: u32) {
        self.write(RST_STREAM, 0, stream, &code.to_be_bytes()).await;
    }

    pub(super) async fn goaway(&mut self, last: u32) {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend([0; 4]);
        self.write(GOAWAY, 0, 0, &payload).await;
    }

    /// Answers everything until the client closes.
    pub(super) async fn answer_all(mut self, streams: u32) {
        self.greet(streams).await;
        while let Some(stream) = self.request().await {
            self.answer(stream).await;
        }
    }
}
