//! The mock against a client of its own: over real TLS, HTTP/2 (`h2`) and HTTP/1.1.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Request, StatusCode};
use openssl::ec::EcKey;
use openssl::pkey::Private;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::decrypt::tests::{seal, seal_aesgcm};
use super::vapid::tests::{HEADER, sender, sign};
use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(Duration::from_secs(30), future).await.expect("the test ends in time") })
}

fn port(mock: &Mock) -> u16 {
    mock.origin(0).rsplit_once(':').unwrap().1.parse().unwrap()
}

async fn tls(mock: &Mock, tcp: TcpStream, name: &str, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(mock.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(name.to_owned()).unwrap(), tcp).await
}

/// An HTTP/2 connection; its driver's end is told by the handle.
async fn h2(mock: &Mock) -> (SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let tcp = TcpStream::connect(("127.0.0.1", port(mock))).await.unwrap();
    let stream = tls(mock, tcp, "127.0.0.1", &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    (send, tokio::spawn(connection))
}

struct Application {
    key: EcKey<Private>,
    k: String,
}

impl Application {
    fn new() -> Application {
        let (key, k) = sender();
        Application { key, k }
    }

    fn request(&self, to: &Subscription) -> http::request::Builder {
        let exp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3_600;
        let claims = serde_json::json!({"aud": &*to.origin, "exp": exp, "sub": "mailto:ops@example.com"});
        let token = sign(&self.key, HEADER, &claims);
        Request::post(&to.endpoint)
            .header("ttl", "60")
            .header("content-encoding", "aes128gcm")
            .header("authorization", format!("vapid t={token}, k={}", self.k))
    }
}

struct Answered {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

async fn post(send: &SendRequest<Bytes>, request: http::request::Builder, body: Vec<u8>) -> Result<Answered, h2::Error> {
    let mut send = send.clone().ready().await?;
    let (answer, mut stream) = send.send_request(request.body(()).unwrap(), false)?;
    stream.send_data(body.into(), true)?;
    let (head, mut incoming) = answer.await?.into_parts();
    let mut body = Vec::new();
    while let Some(chunk) = incoming.data().await {
        let chunk = chunk?;
        incoming.flow_control().release_capacity(chunk.len())?;
        body.extend_from_slice(&chunk);
    }
    Ok(Answered { status: head.status, headers: head.headers, body })
}

#[test]
fn a_crowd_is_recognised_decrypted_and_counted() {
    let mock = Mock::start(Options { keep: 10, ..Options::default() });
    let crowd = mock.crowd(Plan { members: 100_000, keys: 10, endpoint_bytes: 190, ..Plan::default() });
    let application = Application::new();
    let browser = |number: u32| Subscription {
        endpoint: crowd.members.endpoint(number),
        token: crowd.members.token(number),
        keys: crowd.members.keys(number),
        origin: mock.origin(0).into(),
        application_server_key: None,
        vendor: Vendor::Generic,
        aesgcm: false,
    };
    run(async {
        let (send, _driver) = h2(&mock).await;
        for (number, times) in [(0, 1), (99_999, 2)] {
            for _ in 0..times {
                let to = browser(number);
                let answered = post(&send, application.request(&to), seal(&to.keys, b"hello", 0, 2, 4096)).await.unwrap();
                assert_eq!(answered.status, 201);
            }
        }
        crowd.set_gone(7);
        let to = browser(7);
        let answered = post(&send, application.request(&to), seal(&to.keys, b"hello", 0, 2, 4096)).await.unwrap();
        assert_eq!(answered.status, 410);
        let stranger = Request::post(format!("{}/push/{}", mock.origin(0), "A".repeat(180))).header("ttl", "60");
        assert_eq!(post(&send, stranger, Vec::new()).await.unwrap().status, 404);
    });
    let counts = crowd.counts();
    assert_eq!((counts.members, counts.once, counts.more, counts.taken, counts.most), (100_000, 1, 1, 3, 2));
    assert_eq!((crowd.asked(7), crowd.taken(7)), (1, 0));
    assert_eq!(crowd.last(99_999), Some(payload_hash(b"hello")));
    let counters = mock.counters();
    assert_eq!((counters.violation_count, counters.verified, counters.repeats), (0, 4, 1));
}

#[test]
fn a_right_message_is_taken_and_told() {
    let mock = Mock::start(Options::default());
    let browser = mock.subscribe(0, 1).remove(0);
    let json = browser.json();
    assert!(json["endpoint"].as_str().unwrap().starts_with(&mock.origin(0)));
    assert_eq!((json["keys"]["p256dh"].as_str().unwrap().len(), json["keys"]["auth"].as_str().unwrap().len()), (87, 22));
    let application = Application::new();
    run(async {
        let (send, _driver) = h2(&mock).await;
        for _ in 0..2 {
            let request = application.request(&browser).header("urgency", "high").header("topic", "news");
            let answered = post(&send, request, seal(&browser.keys, b"hello", 5, 2, 4096)).await.unwrap();
            assert_eq!(answered.status, 201);
            assert!(answered.headers.contains_key("location"));
        }
    });
    assert!(mock.wait_received(2, PATIENCE));
    let received = mock.received();
    assert_eq!(received.iter().map(|one| one.repeat).collect::<Vec<_>>(), [0, 1]);
    let one = &received[0];
    assert_eq!((one.text().as_str(), one.padding, one.ttl, one.taken()), ("hello", 5, Some(60), true));
    assert_eq!((one.urgency.as_deref(), one.topic.as_deref(), one.version.as_str()), (Some("high"), Some("news"), "HTTP/2.0"));
    let vapid = one.vapid.as_ref().unwrap();
    assert_eq!((vapid.aud.as_str(), vapid.key.as_str()), (mock.origin(0).as_str(), application.k.as_str()));
    assert_eq!(mock.received_after(received[0].number).len(), 1);
    let counters = mock.counters();
    assert_eq!((counters.accepted, counters.distinct, counters.repeats, counters.verified), (2, 1, 1, 2));
    assert_eq!(counters.violations, Vec::<String>::new());
}

#[test]
fn every_breach_is_answered_and_counted() {
    let mock = Mock::start(Options::default());
    let application = Application::new();
    let plain = mock.subscribe(0, 1).remove(0);
    let with = |vendor| {
        let how = Subscribe { vendor: Some(vendor), application_server_key: Some(application.k.clone()), ..Subscribe::default() };
        mock.subscribe_with(0, 1, &how).remove(0)
    };
    let (mozilla, apple, wns) = (with(Vendor::Mozilla), with(Vendor::Apple), with(Vendor::Wns));
    let replace = |request: http::request::Builder, name: &'static str, value: &str| {
        let mut request = request;
        request.headers_mut().unwrap().remove(name);
        if value.is_empty() { request } else { request.header(name, value) }
    };
    let good = |to: &Subscription| seal(&to.keys, b"hello", 0, 2, 4096);
    run(async {
        let (send, _driver) = h2(&mock).await;
        let mut broken = 0;
        let ask = |to: &Subscription, name, value: &str| post(&send, replace(application.request(to), name, value), good(to));
        for (answered, status) in [
            (ask(&plain, "ttl", "").await, 400),
            (ask(&plain, "ttl", "1.5").await, 400),
            (ask(&plain, "urgency", "asap").await, 400),
            (ask(&plain, "topic", "a b").await, 400),
            (ask(&plain, "topic", "123456789012345678901234567890123").await, 400),
            (ask(&plain, "authorization", "").await, 401),
            (ask(&plain, "authorization", "vapid t=a.b.c, k=d").await, 403),
            (ask(&plain, "content-encoding", "").await, 400),
            (ask(&plain, "content-encoding", "aesgcm").await, 400),
            (ask(&plain, "content-length", "7").await, 0),
            (ask(&apple, "topic", "12345").await, 400),
            (ask(&apple, "ttl", "0").await, 400),
            (ask(&wns, "ttl", "0").await, 400),
            (post(&send, application.request(&plain), good(&apple)).await, 400),
            // An encrypted record of nothing: browsers tell the page nothing of it.
            (post(&send, application.request(&plain), seal(&plain.keys, b"", 0, 2, 4096)).await, 400),
            (post(&send, application.request(&plain), seal(&plain.keys, b"", 16, 2, 4096)).await, 400),
            (post(&send, application.request(&plain), Vec::new()).await, 400),
            (post(&send, application.request(&plain), vec![1; 4_097]).await, 413),
            (post(&send, Application::new().request(&mozilla), good(&mozilla)).await, 401),
            (post(&send, Application::new().request(&apple), good(&apple)).await, 400),
        ] {
            match answered {
                Ok(answered) => {
                    assert_eq!(answered.status, status, "{}", String::from_utf8_lossy(&answered.body));
                    broken += 1;
                }
                // h2 itself sees a wrong Content-Length.
                Err(_) => assert_eq!(status, 0),
            }
        }
        assert_eq!(mock.counters().violation_count, broken);
        let mismatch = post(&send, Application::new().request(&mozilla), good(&mozilla)).await.unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&mismatch.body).unwrap()["errno"], 109);
        assert_eq!(mock.counters().key_mismatches, 3);
        // What was right is not counted, also in dialects.
        assert_eq!(ask(&apple, "topic", "1234").await.unwrap().status, 201);
        let no_cache = replace(application.request(&wns), "ttl", "0").header("x-wns-cache-policy", "no-cache");
        assert_eq!(post(&send, no_cache, good(&wns)).await.unwrap().status, 201);
        assert_eq!(
            post(&send, replace(application.request(&plain), "content-encoding", ""), Vec::new()).await.unwrap().status,
            201
        );
        let gone = Request::post(format!("{}/push/nobody", mock.origin(0)));
        assert_eq!(post(&send, gone, Vec::new()).await.unwrap().status, 404);
        assert_eq!(mock.counters().violation_count, broken + 1);
        // The same sealed body may come again; its salt and key in another body may not.
        let mut body = good(&plain);
        assert_eq!(post(&send, application.request(&plain), body.clone()).await.unwrap().status, 201);
        assert_eq!(post(&send, application.request(&plain), body.clone()).await.unwrap().status, 201);
        body[18] ^= 1; // Only the record size differs: opens, and is another body.
        assert_eq!(post(&send, application.request(&plain), body).await.unwrap().status, 400);
        assert!(mock.counters().violations.last().unwrap().contains("was used for another body"));
    });
}

#[test]
fn the_older_encoding_is_opened_for_old_browsers() {
    let mock = Mock::start(Options::default());
    let browser = mock.subscribe_with(0, 1, &Subscribe { aesgcm: true, ..Subscribe::default() }).remove(0);
    assert_eq!(browser.json()["contentEncoding"], "aesgcm");
    let application = Application::new();
    let (salt, public, body) = seal_aesgcm(&browser.keys, b"old");
    let encode = |bytes: &[u8]| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, bytes);
    run(async {
        let (send, _driver) = h2(&mock).await;
        let mut request = application.request(&browser);
        let headers = request.headers_mut().unwrap();
        let authorization = headers["authorization"].to_str().unwrap().to_owned();
        let token = authorization.strip_prefix("vapid t=").unwrap().split_once(',').unwrap().0.to_owned();
        headers.insert("authorization", format!("WebPush {token}").parse().unwrap());
        headers.insert("content-encoding", "aesgcm".parse().unwrap());
        headers.insert("encryption", format!("salt={}", encode(&salt)).parse().unwrap());
        headers.insert("crypto-key", format!("dh={};p256ecdsa={}", encode(&public), application.k).parse().unwrap());
        assert_eq!(post(&send, request, body).await.unwrap().status, 201);
    });
    assert_eq!(mock.received()[0].text(), "old");
    assert_eq!(mock.counters().violations, Vec::<String>::new());
}

#[test]
fn faults_of_requests_are_played_in_order() {
    let mock = Mock::start(Options::default());
    let browsers = mock.subscribe(0, 2);
    let application = Application::new();
    let body = |to: &Subscription| seal(&to.keys, b"hello", 0, 2, 4096);
    let own = Scope::Subscription(browsers[0].token.clone());
    mock.set_fault_times(own.clone(), Fault::status(503).retry_after(2), 1);
    mock.set_fault_times(own.clone(), vendor::mozilla_gone(), 1);
    mock.set_fault_times(own.clone(), Fault::Reset(7), 1);
    mock.set_fault_times(own.clone(), Fault::status(200).body(Body::Huge(3_000_000)), 1);
    mock.set_fault_times(own, Fault::status(500).body(Body::Drip { bytes: 3, interval: Duration::from_millis(10) }), 1);
    run(async {
        let (send, driver) = h2(&mock).await;
        let ask = |index: usize| post(&send, application.request(&browsers[index]), body(&browsers[index]));
        let first = ask(0).await.unwrap();
        assert_eq!((first.status.as_u16(), first.headers["retry-after"].to_str().unwrap()), (503, "2"));
        assert_eq!(ask(1).await.unwrap().status, 201);
        let gone = ask(0).await.unwrap();
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&gone.body).unwrap()["errno"], 106);
        let reset = ask(0).await.err().unwrap();
        assert_eq!((reset.is_remote(), reset.reason()), (true, Some(h2::Reason::REFUSED_STREAM)));
        assert_eq!(ask(0).await.unwrap().body.len(), 3_000_000);
        assert_eq!(ask(0).await.unwrap().body, b"xxx");
        assert_eq!(ask(0).await.unwrap().status, 201);
        // A lasting one for every second request; a stalled request ends with the client's patience.
        mock.set_fault_every(Scope::Origin(0), Fault::Stall, 2);
        assert_eq!(ask(1).await.unwrap().status, 201);
        assert!(tokio::time::timeout(Duration::from_millis(100), ask(1)).await.is_err());
        mock.clear_faults(&Scope::Origin(0));
        mock.set_fault(Scope::Everything, Fault::CloseInAnswer);
        assert!(ask(1).await.is_err());
        assert!(driver.await.unwrap().is_err() || send.clone().ready().await.is_err());
    });
    let counters = mock.counters();
    assert_eq!((counters.faulted, counters.answers[&503], counters.violation_count), (7, 1, 0));
    let attempts = mock.received_by(&browsers[0]);
    assert_eq!(attempts.iter().map(|one| one.status).collect::<Vec<_>>()[..3], [Some(503), Some(410), None]);
    assert!(mock.wait(PATIENCE, |counters| counters.origins[0].in_flight == 0 && counters.origins[0].connections_open == 0));
}

#[test]
fn goaway_as_nginx_answers_the_last_and_no_more() {
    let mock = Mock::start(Options::default());
    let browser = mock.subscribe(0, 1).remove(0);
    let application = Application::new();
    mock.set_fault_times(Scope::Origin(0), Fault::GoAwayAfter(GoAway { requests: 2, unprocessed: 0, code: 0 }), 1);
    mock.set_fault(Scope::Everything, Fault::late(Duration::from_millis(30)));
    run(async {
        let (send, driver) = h2(&mock).await;
        let ask = || post(&send, application.request(&browser), seal(&browser.keys, b"hello", 0, 2, 4096));
        let (first, second, third) = tokio::join!(ask(), ask(), ask());
        assert_eq!((first.unwrap().status.as_u16(), second.unwrap().status.as_u16()), (201, 201));
        assert!(third.is_err());
        assert!(tokio::time::timeout(PATIENCE, driver).await.is_ok(), "the connection ends");
    });
    assert_eq!(mock.counters().accepted, 2);
    assert_eq!(mock.received().len(), 2);
}

#[test]
fn goaway_leaves_the_last_streams_unprocessed() {
    let mock = Mock::start(Options::default());
    let browser = mock.subscribe(0, 1).remove(0);
    let application = Application::new();
    mock.set_fault(Scope::Origin(0), Fault::GoAwayAfter(GoAway { requests: 5, unprocessed: 3, code: 0 }));
    run(async {
        for requests in [5, 3] {
            let before = mock.counters();
            let (send, driver) = h2(&mock).await;
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..requests {
                let (send, request, body) =
                    (send.clone(), application.request(&browser), seal(&browser.keys, b"hello", 0, 2, 4096));
                tasks.spawn(async move { post(&send, request, body).await.is_ok() });
            }
            let answered = tasks.join_all().await.into_iter().filter(|good| *good).count();
            assert_eq!(answered, 2);
            let _ = driver.await.unwrap();
            let after = mock.counters();
            assert_eq!((after.accepted - before.accepted, after.unprocessed - before.unprocessed), (2, requests - 2));
        }
    });
}

#[test]
fn the_limit_of_streams_changes_while_the_connection_is_open() {
    let mock = Mock::start(Options::default());
    let browser = mock.subscribe(0, 1).remove(0);
    let application = Application::new();
    mock.set_fault(Scope::Origin(0), Fault::MaxStreams(200));
    run(async {
        let (send, _driver) = h2(&mock).await;
        let ask = || post(&send, application.request(&browser), seal(&browser.keys, b"hello", 0, 2, 4096));
        let settled = |streams: usize| {
            let send = send.clone();
            async move {
                while send.current_max_send_streams() != streams {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        ask().await.unwrap();
        assert_eq!(send.current_max_send_streams(), 200);
        mock.set_fault(Scope::Origin(0), Fault::MaxStreams(1));
        settled(1).await;
        mock.set_fault(Scope::Everything, Fault::late(Duration::from_millis(10)));
        let (first, second, third) = tokio::join!(ask(), ask(), ask());
        assert!(first.is_ok() && second.is_ok() && third.is_ok());
        assert_eq!(mock.counters().origins[0].in_flight_peak, 1, "the client keeps to it");
        mock.set_fault(Scope::Origin(0), Fault::MaxStreams(5));
        settled(5).await;
        mock.set_fault(Scope::Origin(0), Fault::NarrowAfterRejection);
        mock.set_fault_times(Scope::Everything, vendor::apple(400, "BadTtl"), 1);
        assert_eq!(ask().await.unwrap().status, 400);
        settled(1).await;
        assert_eq!(ask().await.unwrap().status, 201);
        settled(5).await;
        mock.clear_all_faults();
        settled(128).await;
    });
    assert_eq!(mock.counters().refused_streams, 0);
}

/// The `h2` crate is the judge: it knows what a server may say.
#[test]
fn a_sink_satisfies_a_real_client() {
    const REQUESTS: usize = 5_000;
    const LARGEST: usize = 300_000;
    let mock = Mock::start(Options { sink: true, ..Options::default() });
    let bytes = run(async {
        let (send, driver) = h2(&mock).await;
        let ask = |body: usize| {
            let request = Request::post(format!("{}/push/anybody", mock.origin(0))).header("authorization", "x".repeat(300));
            post(&send, request, vec![b'x'; body])
        };
        let first = ask(0).await.unwrap();
        assert_eq!((first.status, first.body.len()), (StatusCode::CREATED, 0));
        for name in ["location", "date", "ttl"] {
            assert!(first.headers.contains_key(name), "{name}");
        }
        assert_eq!(first.headers["content-length"], "0");
        assert_eq!(send.current_max_send_streams(), 128);
        // More than the first windows of stream and connection.
        assert_eq!(ask(LARGEST).await.unwrap().status, StatusCode::CREATED);
        let mut bytes = LARGEST;
        for turn in 0..REQUESTS / 100 {
            let mut all = tokio::task::JoinSet::new();
            for index in 0..100 {
                let body = turn * index;
                bytes += body;
                let (send, to) = (send.clone(), mock.origin(0));
                all.spawn(async move { post(&send, Request::post(format!("{to}/push/{index}")), vec![b'x'; body]).await });
            }
            while let Some(answered) = all.join_next().await {
                assert_eq!(answered.unwrap().unwrap().status, StatusCode::CREATED);
            }
        }
        mock.set_fault(Scope::Everything, Fault::MaxStreams(7));
        while send.current_max_send_streams() != 7 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(send);
        driver.await.unwrap().unwrap();
        bytes
    });
    let counters = mock.counters();
    let requests = REQUESTS as u64 + 2;
    assert_eq!((counters.requests, counters.accepted, counters.origins[0].accepted), (requests, requests, requests));
    assert_eq!((counters.body_bytes, counters.answers[&201]), (bytes as u64, requests));
    assert_eq!((counters.verified, counters.violation_count), (0, 0), "it looks at nothing");
}

#[test]
fn faults_of_connections() {
    let mock = Mock::start(Options::default());
    let connect = || async { TcpStream::connect(("127.0.0.1", port(&mock))).await.unwrap() };
    let both: &[&[u8]] = &[b"h2", b"http/1.1"];
    run(async {
        mock.set_fault_times(Scope::Origin(0), Fault::TlsStall, 1);
        assert!(
            tokio::time::timeout(Duration::from_millis(100), tls(&mock, connect().await, "127.0.0.1", both)).await.is_err(),
            "TLS is never answered"
        );
        mock.set_fault_times(Scope::Origin(0), Fault::Untrusted, 1);
        assert!(tls(&mock, connect().await, "127.0.0.1", both).await.is_err());
        mock.set_fault_times(Scope::Origin(0), Fault::Http1Only, 1);
        let stream = tls(&mock, connect().await, "127.0.0.1", both).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        mock.set_fault_times(Scope::Origin(0), Fault::Garbage, 1);
        let mut stream = tls(&mock, connect().await, "127.0.0.1", both).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut garbage = [0; 9];
        stream.read_exact(&mut garbage).await.unwrap();
        assert_eq!(garbage, [b'?'; 9]);
        let slow = Slow { bandwidth: 0, latency: Duration::from_millis(40) };
        mock.set_fault_times(Scope::Origin(0), Fault::Slow(slow), 1);
        let begin = std::time::Instant::now();
        tls(&mock, connect().await, "127.0.0.1", both).await.unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(80), "one round trip");
        assert!(tls(&mock, connect().await, "fcm.googleapis.com", both).await.is_ok());
        assert!(tls(&mock, connect().await, "example.com", both).await.is_err());
    });
}

#[test]
fn http1_is_served_and_its_lengths_checked() {
    let mock = Mock::start(Options::default());
    let browser = mock.subscribe(0, 1).remove(0);
    let application = Application::new();
    let text = |length: &str, body: &[u8]| {
        let request = application.request(&browser).body(()).unwrap();
        let path = request.uri().path();
        let mut head = format!("POST {path} HTTP/1.1\r\nhost: {}\r\n{length}\r\n", mock.host(0));
        for (name, value) in request.headers() {
            head.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap()));
        }
        [head.as_bytes(), b"\r\n", body].concat()
    };
    let body = seal(&browser.keys, b"hello", 0, 2, 4096);
    run(async {
        let tcp = TcpStream::connect(("127.0.0.1", port(&mock))).await.unwrap();
        let mut stream = tls(&mock, tcp, "127.0.0.1", &[b"http/1.1"]).await.unwrap();
        let length = format!("content-length: {}", body.len());
        let chunked = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        for (request, status) in
            [(text(&length, &body), "HTTP/1.1 201"), (text("transfer-encoding: chunked", &chunked), "HTTP/1.1 411")]
        {
            stream.write_all(&request).await.unwrap();
            let mut answer = vec![0; 1_000];
            let read = stream.read(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
            assert!(answer.starts_with(status), "{answer}");
        }
        mock.set_fault(Scope::Everything, Fault::CloseInAnswer);
        stream.write_all(&text(&length, &body)).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.contains("content-length: 1000") && answer.ends_with('x'), "{answer}");
    });
    assert_eq!(mock.received()[0].version, "HTTP/1.1");
    assert_eq!(mock.counters().violation_count, 1);
}

#[test]
fn a_port_falls_silent_and_comes_back() {
    let mock = Mock::start(Options { listeners: 2, ..Options::default() });
    run(async {
        let (send, driver) = h2(&mock).await;
        mock_stop(&mock);
        assert!(tokio::time::timeout(PATIENCE, driver).await.is_ok(), "its connections end");
        drop(send);
        for _ in 0..3 {
            let refused = TcpStream::connect(("127.0.0.1", port(&mock))).await.unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        }
        std::thread::scope(|scope| scope.spawn(|| mock.resume_listening(0)).join().unwrap());
        let _ = h2(&mock).await;
    });
    assert_ne!(mock.origin(0), mock.origin(1));
    mock.stop_listening(1);
    mock.stop_listening(1);
    mock.resume_listening(1);
}

/// From inside a runtime it takes another thread.
fn mock_stop(mock: &Mock) {
    std::thread::scope(|scope| scope.spawn(|| mock.stop_listening(0)).join().unwrap());
}

#[test]
fn the_proxy_leads_real_names_to_the_mock() {
    let mock = Mock::start(Options::default());
    let how = Subscribe { host: Some("fcm.googleapis.com".to_owned()), ..Subscribe::default() };
    let browser = mock.subscribe_with(0, 1, &how).remove(0);
    assert!(browser.endpoint.starts_with("https://fcm.googleapis.com/fcm/send/"));
    let application = Application::new();
    let proxy = mock.proxy_url();
    run(async {
        let mut tcp = TcpStream::connect(proxy.strip_prefix("http://").unwrap()).await.unwrap();
        tcp.write_all(b"CONNECT fcm.googleapis.com:443 HTTP/1.1\r\nHost: fcm.googleapis.com:443\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200 "));
        let stream = tls(&mock, tcp, "fcm.googleapis.com", &[b"h2"]).await.unwrap();
        let (send, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let answered = post(&send, application.request(&browser), seal(&browser.keys, b"hello", 0, 2, 4096)).await.unwrap();
        assert_eq!(answered.status, 201);
    });
    assert_eq!(mock.proxy_connects(), ["fcm.googleapis.com:443"]);
    assert_eq!(mock.received()[0].vapid.as_ref().unwrap().aud, "https://fcm.googleapis.com");
    assert_eq!(mock.counters().violations, Vec::<String>::new());
}

#[test]
fn commands_are_taken_over_http() {
    let mock = Mock::start(Options { admin_port: Some(0), ..Options::default() });
    let address = mock.admin_address().unwrap();
    let ask = |method: &str, path: &str, body: Option<serde_json::Value>| {
        let text = crate::daemon::http_request(address, method, path, body.as_ref()).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let made = ask("POST", "/subscriptions", Some(serde_json::json!({"count": 3, "vendor": "apple"})));
    assert_eq!(made.as_array().unwrap().len(), 3);
    let fault = serde_json::json!({"scope": {"origin": 0}, "fault": {"answer": {"status": 503, "delay": 0.5}}, "times": 2});
    ask("POST", "/faults", Some(fault));
    ask("POST", "/faults", Some(serde_json::json!({"fault": "stall", "every": 10})));
    ask("DELETE", "/faults", None);
    ask("POST", "/listeners", Some(serde_json::json!({"listening": false})));
    assert!(std::net::TcpStream::connect(("127.0.0.1", port(&mock))).is_err());
    ask("POST", "/listeners", Some(serde_json::json!({"listening": true})));
    assert!(std::net::TcpStream::connect(("127.0.0.1", port(&mock))).is_ok());
    assert_eq!(ask("GET", "/counters", None)["accepted"], 0);
    assert_eq!(ask("GET", "/received?after=0", None), serde_json::json!([]));
    assert_eq!(ask("GET", "/measured", None)["distinct"], 0);
    assert!(crate::daemon::http_request(address, "GET", "/ca.pem", None).unwrap().contains("BEGIN CERTIFICATE"));
    for (method, path, body) in [("GET", "/nonsense", None), ("POST", "/faults", Some(serde_json::json!({"fault": "nonsense"})))]
    {
        assert!(crate::daemon::http_request(address, method, path, body.as_ref()).is_err());
    }
}
