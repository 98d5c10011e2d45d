//! Posting: from [`Pool::post`] to the answer, through TLS and HTTP/2, against a push service in the same thread, so that who runs
//! when is always the same. What the push service does is not counted; sockets are the kernel's, whose instructions nobody counts.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fanfare::clock;
use fanfare::deliver::{Pool, Roots, Settings};
use fanfare::message::{
    Answer, Answered, BatchId, ContentType, Delivery, DeliveryId, KeyId, Lane, Message, MessageId, Origin, Sealed, Service,
    UnixMillis, Urgency,
};
use fanfare::queue;
use h2::server::SendResponse;
use http::{HeaderValue, Response, StatusCode};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::fixture::{self, BODY};
use crate::{counted, uncounted};

/// Messages that are on their way together: less than a push service lets into one connection.
const TOGETHER: u64 = 96;

/// A worker posts what it has sealed together.
const SLICE: u64 = 8;

pub fn play(messages: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let counting = Arc::new(AtomicBool::new(false));
    let (origin, certificate) = runtime.block_on(listen(&counting));
    let roots = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(roots.path(), certificate).expect("it is written");
    let settings = Settings {
        connections_per_origin: 1,
        origins: 16,
        connections: 64,
        timeout: Duration::from_secs(600),
        proxy: None,
        roots: Roots::ExtraOnly,
        extra_roots: Some(roots.path().to_owned()),
        allow_networks: vec!["127.0.0.0/8".parse().expect("a network")],
    };
    let (answers_in, answers) = queue::unbounded();
    let pool = Pool::start(settings, runtime.handle().clone(), answers_in).expect("it starts");
    let round = || {
        let mut all: Vec<Sealed> = (0..TOGETHER).map(|index| sealed(&origin, index)).collect();
        while !all.is_empty() {
            pool.post(all.drain(..SLICE as usize).collect());
        }
        runtime.block_on(answered(&answers));
    };
    // The first opens the connection.
    round();
    counting.store(true, Ordering::Relaxed);
    counted(&mut || {
        for _ in 0..messages / TOGETHER {
            round();
        }
    });
    counting.store(false, Ordering::Relaxed);
}

/// Takes all answers of a round. Asks seldom, so that asking costs nothing.
async fn answered(answers: &queue::Receiver<Answered>) {
    let mut left = TOGETHER;
    while left > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        for answered in std::iter::from_fn(|| answers.try_recv().ok()) {
            assert!(matches!(answered.answer, Answer::Response { status: StatusCode::CREATED, .. }), "{:?}", answered.answer);
            left -= 1;
        }
    }
}

/// A delivery as a worker gives it to the pool.
fn sealed(origin: &Origin, index: u64) -> Sealed {
    let urgency = Urgency::Normal;
    let message = Message {
        id: MessageId(1),
        app: "default".into(),
        urgency,
        at: UnixMillis(0),
        expires: clock::now().plus(3_600_000),
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
    let batch = BatchId::Commit { commit: 1, lane: Lane { service: Service::FCM, urgency }, piece: 0 };
    let delivery = Delivery {
        id: DeliveryId { batch, index: u16::try_from(index).expect("a round is short") },
        message: Arc::new(message),
        recipient: fixture::recipient(&origin.0, index),
        attempts: 0,
        tried_keys: 0,
        shrink: false,
        due: None,
        account: None,
        lost: None,
        unproven: false,
    };
    // As long as they are: a token of ES256 with its public key.
    let authorization = format!("vapid t={}, k={}", "t".repeat(260), "k".repeat(87));
    Sealed {
        delivery: Box::new(delivery),
        origin: origin.clone(),
        authorization: HeaderValue::try_from(authorization).expect("visible ASCII"),
        key: KeyId([7; 8]),
        topic: None,
        encryption: None,
        crypto_key: None,
        body: Bytes::from(vec![b'x'; BODY + 103]),
    }
}

/// Starts a push service that takes everything. Gives its origin, and its certificate as PEM.
async fn listen(counting: &Arc<AtomicBool>) -> (Origin, String) {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites")
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .expect("key and certificate belong together");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let origin = Origin(format!("https://{}", listener.local_addr().expect("it is bound")).into());
    tokio::spawn(Uncounted::new(counting.clone(), serve(listener, acceptor, counting.clone())));
    (origin, own.cert.pem())
}

/// One connection: there is one client.
async fn serve(listener: TcpListener, acceptor: TlsAcceptor, counting: Arc<AtomicBool>) {
    let (stream, _) = listener.accept().await.expect("a client comes");
    stream.set_nodelay(true).expect("a TCP socket");
    let stream = acceptor.accept(stream).await.expect("it speaks TLS");
    let mut connection =
        h2::server::Builder::new().max_concurrent_streams(100).handshake(stream).await.expect("it speaks HTTP/2");
    while let Some(Ok((request, respond))) = connection.accept().await {
        tokio::spawn(Uncounted::new(counting.clone(), take(request.into_body(), respond)));
    }
}

/// Reads a body and answers as FCM does.
async fn take(mut body: h2::RecvStream, mut respond: SendResponse<Bytes>) {
    while let Some(Ok(data)) = body.data().await {
        body.flow_control().release_capacity(data.len()).expect("it came");
    }
    let response = Response::builder()
        .status(StatusCode::CREATED)
        .header("location", "https://fcm.googleapis.com/m/0:1795343400000000%abcdefabcdefabcd")
        .header("content-type", "text/plain; charset=utf-8")
        .header("date", "Sun, 22 Nov 2026 10:30:00 GMT");
    respond.send_response(response.body(()).expect("legal headers"), true).expect("the stream is open");
}

/// A future of the push service.
struct Uncounted {
    counting: Arc<AtomicBool>,
    inner: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Uncounted {
    fn new(counting: Arc<AtomicBool>, inner: impl Future<Output = ()> + Send + 'static) -> Uncounted {
        Uncounted { counting, inner: Box::pin(inner) }
    }
}

impl Future for Uncounted {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.counting.load(Ordering::Relaxed) {
            return self.inner.as_mut().poll(cx);
        }
        let mut polled = Poll::Pending;
        uncounted(&mut || polled = self.inner.as_mut().poll(cx));
        polled
    }
}
