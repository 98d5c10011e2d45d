//! What fails, or is forbidden, before anything is posted; proxies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::stage::*;
use crate::deliver::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_connection_answers_everything_queued() {
    let mut stage = Stage::new().await;
    stage.origin = "https://127.0.0.1:1".to_owned();
    stage.post(300);
    assert_eq!(not_connected(&stage.all().await, ConnectFailure::Refused), 300);
    assert_eq!(stage.status().last_failure.map(|(failure, _)| failure), Some(ConnectFailure::Refused));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_ca_is_a_tls_failure_until_the_roots_are_read_again() {
    let others = Certificates::new();
    let roots = others.roots.path().to_owned();
    let mut stage = Stage::with(b"h2", |settings, _| settings.extra_roots = Some(roots.clone())).await;
    stage.serve(|peer, _| peer.answer_all(100));
    assert!(matches!(stage.post_one().await, Answer::NotConnected(ConnectFailure::Tls)));
    std::fs::copy(stage.certificates.roots.path(), &roots).unwrap();
    stage.pool.reload_roots().unwrap();
    assert!(is_status(&stage.post_one().await, 201));
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
    assert_eq!(not_connected(&stage.all().await, ConnectFailure::Timeout), 3);
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
    assert_eq!(not_connected(&stage.all().await, ConnectFailure::Protocol), 500);
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
    assert_eq!(accepted(&stage.all().await), 20);
    // A literal address is checked here too.
    stage.origin = literal;
    assert!(matches!(stage.post_one().await, Answer::NotConnected(ConnectFailure::Forbidden)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_refuses_has_its_own_failure() {
    for address in [proxy(false).await, "127.0.0.1:1".parse().unwrap()] {
        let mut stage = Stage::with(b"h2", |settings, _| settings.proxy = Some(format!("http://{address}"))).await;
        stage.post(5);
        assert_eq!(not_connected(&stage.all().await, ConnectFailure::Proxy), 5);
    }
}
