//! A peer that sends more than answers; `tests/delivery/hostile_services.rs` tries every kind of flood.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::stage::*;
use crate::deliver::connection::CALM;
use crate::deliver::*;
use crate::message::Loss;

/// `:status 103`, which enters no table.
const EARLY_HINTS: &[u8] = b"\x08\x03103";

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Pours `piece` until the other side has had enough; gives what that one said meanwhile.
async fn flood(peer: Peer, piece: &[u8]) -> Vec<u8> {
    let (mut incoming, mut outgoing) = tokio::io::split(peer.io);
    let batch = piece.repeat(64 * 1024 / piece.len());
    let pour = async { while outgoing.write_all(&batch).await.is_ok() {} };
    let mut said = Vec::new();
    let listen = async {
        let _ = incoming.read_to_end(&mut said).await;
    };
    tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(pour, listen) }).await.expect("the connection ends");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flooded_connection_ends_and_the_peer_hears_why() {
    let mut stage = Stage::with_one_connection().await;
    stage.post(3);
    let mut peer = stage.greeted(100).await;
    let streams = peer.requests(3).await;
    peer.answer(streams[1]).await;
    let began = Instant::now();
    let said = flood(peer, &frame(HEADERS, 4, streams[0], EARLY_HINTS)).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(said.ends_with(CALM), "the last that it says is GOAWAY: {said:?}");
    assert_eq!(usize::from(CALM[2]), CALM.len() - 9, "its length");
    let answers = stage.all().await;
    assert_eq!((lost(&answers, Loss::Flood), accepted(&answers)), (2, 1), "what was answered before is heard");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_queued_at_an_origin_that_floods_goes_back_and_nothing_connects_for_a_moment() {
    let mut stage = Stage::with_one_connection().await;
    stage.post(50);
    let mut peer = stage.greeted(10).await;
    let streams = peer.requests(9).await;
    flood(peer, &frame(WINDOW_UPDATE, 0, streams[0], &[0, 0, 0, 1])).await;
    let answers = stage.all().await;
    assert_eq!((lost(&answers, Loss::Flood), not_connected(&answers, ConnectFailure::Protocol)), (9, 41));
    // At once: not even tried.
    stage.post(1);
    assert_eq!(not_connected(&[stage.answers(1).await.remove(0).1], ConnectFailure::Protocol), 1);
    assert_eq!(stage.status().connections_opened, 1);
    // A probe a second later is.
    tokio::time::sleep(Duration::from_secs(1)).await;
    stage.post(1);
    let mut second = stage.greeted(10).await;
    second.answer_next(1).await;
    assert!(is_status(&stage.answers(1).await[0].1, 201));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_answers_first_and_floods_then_is_not_connected_to_again_and_again() {
    let mut stage = Stage::with_one_connection().await;
    stage.post(1);
    let mut peer = stage.greeted(10).await;
    peer.answer_next(1).await;
    assert!(is_status(&stage.answers(1).await[0].1, 201));
    flood(peer, &frame(PING, 1, 0, &[0; 8])).await;
    stage.until(|status| status.connections == 0).await;
    stage.post(10);
    assert!(stage.answers(10).await.iter().all(|(_, answer)| matches!(answer, Answer::NotConnected(ConnectFailure::Protocol))));
    assert_eq!(stage.status().connections_opened, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_before_the_first_settings_is_a_failure_to_connect() {
    let mut stage = Stage::with_one_connection().await;
    stage.post(1);
    let peer = stage.accept().await;
    let said = flood(peer, &frame(0xfa, 0, 0, &[])).await;
    assert!(said.ends_with(CALM), "{said:?}");
    assert_eq!(not_connected(&stage.all().await, ConnectFailure::Protocol), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_talkative_peer_is_borne_as_long_as_it_answers() {
    let mut stage = Stage::with_one_connection().await;
    // Ten frames beside each answer and its body: more than any push service was seen to send.
    stage.serve(|mut peer, _| async move {
        peer.greet(100).await;
        while let Some(stream) = peer.request().await {
            let mut all = Vec::new();
            for _ in 0..3 {
                all.extend(frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]));
                all.extend(frame(WINDOW_UPDATE, 0, stream, &[0, 0, 0, 1]));
            }
            all.extend(frame(PING, 0, 0, &[7; 8]));
            all.extend(frame(SETTINGS, 0, 0, &[]));
            all.extend(frame(HEADERS, 4, stream, EARLY_HINTS));
            all.extend(frame(0xfa, 0, 0, b"grease"));
            all.extend(frame(HEADERS, 4, stream, b"\x08\x03201"));
            all.extend(frame(0, 1, stream, &[b'x'; 3_000]));
            if peer.io.write_all(&all).await.is_err() || peer.io.flush().await.is_err() {
                return;
            }
        }
    });
    for _ in 0..20 {
        stage.post(250);
        assert!(stage.answers(250).await.iter().all(|(_, answer)| is_status(answer, 201)));
    }
    assert_eq!(stage.status().connections_opened, 1);
    stage.quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_peer_that_sends_1xx_without_end_loses_the_connection() {
    let mut stage = Stage::with(b"http/1.1", |_, _| ()).await;
    stage.post(1);
    let mut peer = stage.accept().await;
    let mut some = [0; 4096];
    let _ = peer.io.read(&mut some).await;
    let began = Instant::now();
    flood(peer, b"HTTP/1.1 103 Early Hints\r\n\r\n").await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!(lost(&stage.all().await, Loss::Flood), 1);
}
