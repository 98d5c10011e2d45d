//! The pool as a whole: stopping, ranks, time, bounds, and all faults at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;

use super::stage::*;
use crate::clock;
use crate::deliver::*;
use crate::message::{Loss, Urgency};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_finish_what_is_in_flight_and_answers_the_rest() {
    let mut stage = Stage::with_one_connection().await;
    stage.post(20);
    let mut peer = stage.greeted(10).await;
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
    let late: Vec<Answered> = std::iter::from_fn(|| stage.answers.try_recv().ok()).collect();
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
        assert_eq!(lost(&answers, Loss::Closed), 1);
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
        let mut peer = stage.greeted(10).await;
        peer.requests(9).await;
        stage.until(|status| status.in_flight == 9).await;
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    let Stage { pool, answers, .. } = stage;
    drop(pool);
    let mut indices: Vec<u16> = std::iter::from_fn(|| answers.recv_timeout(Duration::from_secs(20)).ok())
        .map(|answered| answered.delivery.id.index)
        .collect();
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
    assert_eq!(accepted(&answers), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn high_rank_overtakes_a_full_origin() {
    let mut stage = Stage::with_one_connection().await;
    stage.post(100);
    let mut peer = stage.greeted(10).await;
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
    assert!(is_status(&stage.post_one().await, 201));
    stage.until(|status| status.connections + status.connections_retiring == 0).await;
    assert!(is_status(&stage.post_one().await, 201));

    let mut stage = Stage::with(b"h2", |_, limits| limits.age = Duration::from_millis(100)).await;
    stage.serve(|peer, _| peer.answer_all(100));
    assert!(is_status(&stage.post_one().await, 201));
    stage.until(|status| status.connections + status.connections_retiring == 0).await;

    let quick = |_: &mut Settings, limits: &mut Limits| {
        limits.silence = Duration::from_millis(100);
        limits.pong = Duration::from_millis(300);
    };
    let mut stage = Stage::with(b"h2", quick).await;
    stage.post(1);
    let mut peer = stage.greeted(100).await;
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
async fn where_all_connections_are_open_one_without_work_is_closed_for_another_origin() {
    let one = |settings: &mut Settings, limits: &mut Limits| {
        settings.connections = 1;
        limits.connect = Duration::from_secs(1);
    };
    let mut stage = Stage::with(b"h2", one).await;
    stage.serve(|peer, _| peer.answer_all(100));
    let port = stage.listener.local_addr().unwrap().port();
    for host in ["127.0.0.1", "localhost", "127.0.0.1"] {
        stage.origin = format!("https://{host}:{port}");
        assert!(is_status(&stage.post_one().await, 201), "{host}");
    }

    // One that is busy is left alone; who waits for it in vain was not failed by its push service.
    let mut stage = Stage::with(b"h2", one).await;
    stage.post(1);
    let mut peer = stage.greeted(10).await;
    peer.requests(1).await;
    stage.origin = stage.origin.replace("127.0.0.1", "localhost");
    assert!(matches!(stage.post_one().await, Answer::NotConnected(ConnectFailure::NoDescriptor)));
    assert_eq!(stage.pool.status().iter().map(|status| status.connections).sum::<usize>(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_table_of_origins_is_bounded() {
    let mut stage = Stage::with(b"h2", |settings, _| settings.origins = 3).await;
    stage.serve(|peer, _| peer.answer_all(100));
    let port = stage.listener.local_addr().unwrap().port();
    assert!(is_status(&stage.post_one().await, 201));
    for host in 2..20 {
        stage.origin = format!("https://127.0.0.{host}:{port}");
        assert!(matches!(stage.post_one().await, Answer::NotConnected(_)));
        stage.until(|status| !status.connecting).await;
        assert!(stage.pool.status().len() <= 3);
    }
    stage.origin = format!("https://127.0.0.1:{port}");
    assert!(is_status(&stage.post_one().await, 201));
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
    assert!(accepted(&answers) > 1_500);
}
