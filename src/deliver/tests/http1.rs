//! Where ALPN gives no HTTP/2.

use std::time::Duration;

use http::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stage::*;
use crate::deliver::*;
use crate::message::Loss;

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
    let good = accepted(&answers);
    assert_eq!(good + lost(&answers, Loss::Closed), 60);
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
    assert!(matches!(stage.post_one().await, Answer::Lost(Loss::Timeout)));
    let Answer::Response { status, body, .. } = stage.post_one().await else { panic!() };
    assert_eq!((status.as_u16(), body.len()), (500, 4096));
    stage.quiet().await;
}
