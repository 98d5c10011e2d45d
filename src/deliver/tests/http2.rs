//! What a peer that speaks HTTP/2 may say and do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

use super::stage::*;
use crate::deliver::*;
use crate::message::Loss;

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
    assert_eq!(accepted(&stage.all().await), 40);
    assert_eq!(connections.load(Ordering::Relaxed), 4);
    assert_eq!(stage.status().resends, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_obeyed_at_the_moment() {
    let mut stage = Stage::with_one_connection().await;
    stage.post(30);
    let mut peer = stage.greeted(10).await;
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
    peer.answer_next(16).await;
    assert_eq!(accepted(&stage.all().await), 30);
    assert_eq!(stage.pool.capacity(&Origin(stage.origin.as_str().into())), origin::STREAMS_MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_allows_no_stream_counts_as_not_connected() {
    let mut stage = Stage::timing_out(Duration::from_millis(200)).await;
    stage.serve(|peer, _| peer.answer_all(0));
    stage.post(10);
    assert_eq!(not_connected(&stage.all().await, ConnectFailure::Protocol), 10);
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
    assert_eq!(accepted(&stage.all().await), 20);
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
    assert_eq!(not_connected(&stage.all().await, ConnectFailure::Protocol), 20);
    assert_eq!(seen.load(Ordering::Relaxed), 20 * 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_goaways_last_stream_is_sent_again_and_the_rest_read_to_its_end() {
    let mut stage = Stage::new().await;
    stage.post(5);
    let mut peer = stage.greeted(100).await;
    assert_eq!(peer.requests(5).await, [1, 3, 5, 7, 9]);
    peer.goaway(5).await;
    let mut second = stage.greeted(100).await;
    second.answer_next(2).await;
    // Only now those that the first one still has.
    for stream in [1, 3, 5] {
        peer.answer(stream).await;
    }
    assert_eq!(accepted(&stage.all().await), 5);
    assert_eq!(stage.status().resends, 2);
    assert!(peer.request().await.is_none(), "the first connection is closed");
    stage.post(1);
    second.answer_next(1).await;
    assert_eq!(stage.answers(1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_or_below_goaways_last_stream_is_lost_when_the_connection_ends() {
    let mut stage = Stage::new().await;
    stage.post(5);
    let mut peer = stage.greeted(100).await;
    peer.requests(5).await;
    peer.goaway(5).await;
    drop(peer);
    let mut second = stage.greeted(100).await;
    second.answer_next(2).await;
    let answers = stage.all().await;
    assert_eq!(lost(&answers, Loss::Closed), 3);
    assert_eq!(accepted(&answers), 2);
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
    assert_eq!(accepted(&stage.all().await), 200);
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
    assert_eq!(lost(&answers, Loss::Closed), 9);
    assert_eq!(accepted(&answers), 41);
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
    assert_eq!(accepted(&stage.all().await), 500);
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
    assert_eq!(lost(&answers, Loss::Reset), 1);
    assert_eq!(accepted(&answers), 9);
    assert_eq!(stage.status().connections_opened, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_time_out_a_connection_takes_nothing_new_and_ends_with_its_last_stream() {
    let mut stage = Stage::timing_out(Duration::from_millis(400)).await;
    stage.post(1);
    let mut peer = stage.greeted(100).await;
    assert_eq!(peer.request().await, Some(1));
    tokio::time::sleep(Duration::from_millis(250)).await;
    stage.post(1);
    assert_eq!(peer.request().await, Some(3));
    let (index, answer) = stage.answers(1).await.pop().unwrap();
    assert!(index == 0 && matches!(answer, Answer::Lost(Loss::Timeout)), "{answer:?}");
    // A new one goes elsewhere,
    stage.post(1);
    let mut second = stage.greeted(100).await;
    second.answer_next(1).await;
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
    let Answer::Response { status, body, .. } = stage.post_one().await else { panic!() };
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
    let mut peer = stage.greeted(100).await;
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
