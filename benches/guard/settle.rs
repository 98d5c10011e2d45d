//! Settling: what an answer means, what the push service's health makes of it, the outcome in memory, and its share of a checkpoint.
//! All of it in this thread, one loop after the other, so that nothing depends on who comes first.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use fanfare::clock;
use fanfare::message::{Answer, Answered, Delivery, Origin, Service};
use fanfare::metrics;
use fanfare::origin::table::Table;
use fanfare::outcome::Outcome;
use fanfare::outcome::backoff::Bounds;
use fanfare::queue::{Bell, Receiver, Sender, unbounded};
use fanfare::store::commit::{Done, Writes};
use fanfare::store::key::WorkKey;
use fanfare::store::turns::{Turns, turns};
use fanfare::store::writer::{Settle, Writer};
use fanfare::store::{Store, family};
use fanfare::vapid::key::SigningKey;
use fanfare::vapid::token::{AppKeys, Tokens};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::sync::oneshot;

use crate::counted;
use crate::fixture::{self, APP, ORIGIN};

/// Lines of a group commit.
const LINES: u64 = 256;

pub fn play(answers: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    // The daemon counts and times, which is part of the cost.
    runtime.block_on(async { metrics::listen(([127, 0, 0, 1], 0).into()) }).expect("a port");
    let directory = tempfile::tempdir().expect("a directory");
    let store = fixture::store(directory.path(), 32);
    commit(&store, answers);
    let deliveries = claim(&store);
    assert_eq!(deliveries.len() as u64, answers);

    let (answered_in, answered) = unbounded();
    let (settles_in, settles) = unbounded();
    let outcome = outcome(&store, answered, settles_in.clone());
    let origin = Origin(Arc::from(ORIGIN));
    outcome.origins.handed_out(Service::FCM, Some(&origin), clock::now(), deliveries.len());
    let key = outcome.tokens.keys(APP)[0];
    for delivery in deliveries {
        let answered = Answered { delivery, origin: origin.clone(), key, answer: created(), latency_micros: 40_000 };
        answered_in.send(answered).expect("it is received");
    }
    // With nobody left to send, the outcome's loop ends when it has taken all.
    drop(answered_in);
    let (_commits, writer) = writer(&store, settles);
    let mut work = Some((outcome, writer));
    counted(&mut || {
        let Some((outcome, writer)) = work.take() else { return };
        outcome.run(|| {});
        settles_in.send(Settle::Stop).expect("the writer takes it");
        writer.run(|| {}).expect("it writes");
    });
    assert_eq!(store.pending.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// Commits so many singles.
fn commit(store: &Arc<Store>, lines: u64) {
    let (settles_in, settles) = unbounded();
    let (commits, writer) = writer(store, settles);
    let mut replies = Vec::new();
    for group in 0..lines / LINES {
        let (reply, answers) = oneshot::channel();
        let ops = (0..LINES).map(|n| fixture::send(store, group * LINES + n)).collect();
        assert!(commits.send(Writes::new(ops, reply)).is_ok(), "the writer takes it");
        replies.push(answers);
    }
    settles_in.send(Settle::Stop).expect("the writer takes it");
    writer.run(|| {}).expect("it writes");
    for answers in replies {
        let answers = answers.blocking_recv().expect("it answers");
        assert!(answers.iter().all(|done| matches!(done, Done::Taken { .. })));
    }
}

fn writer(store: &Arc<Store>, settles: Receiver<Settle>) -> (Turns, Writer) {
    let (commits, commits_out) = turns();
    (commits, fixture::writer(store, commits_out, settles))
}

/// Claims all that was committed, as workers do.
#[allow(clippy::vec_box, reason = "each is moved on as a box")]
fn claim(store: &Store) -> Vec<Box<Delivery>> {
    let mut keys = Vec::new();
    let reader = store.reader().expect("it is open");
    reader
        .scan(family::WORK, &[], &[0xff; 16], |key, _| {
            keys.push(WorkKey::decode(key).expect("the writer's own"));
            true
        })
        .expect("it is read");
    drop(reader);
    let mut deliveries = Vec::new();
    for key in &keys {
        let batch = store.batch(key.batch(), key.count).expect("it is read");
        let row = store.work_row(&batch, key).expect("it is read").expect("it was committed");
        let claimed = batch.claim(0, key.count);
        deliveries.extend(store.work_row_deliveries(key, &claimed, &row));
    }
    deliveries
}

fn outcome(store: &Arc<Store>, answers: Receiver<Answered>, settles: Sender<Settle>) -> Outcome {
    let app = AppKeys { app: Arc::from(APP), subject: Arc::from("mailto:a@example.com"), keys: vec![SigningKey::generate()] };
    Outcome {
        store: store.clone(),
        answers,
        settles,
        origins: Arc::new(Table::new(16, |_| 1_000)),
        tokens: Arc::new(Tokens::new(vec![app], 16)),
        wake: Bell::default(),
        retry: Bounds::new(1_000, 3_600_000).expect("good bounds"),
        padding: false,
        stop: Arc::new(AtomicBool::new(false)),
        complaints: Default::default(),
        counted: Default::default(),
    }
}

/// What FCM answers.
fn created() -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert("location", HeaderValue::from_static("https://fcm.googleapis.com/m/0:1795343400000000%abcdefabcdefabcd"));
    headers.insert("ttl", HeaderValue::from_static("86400"));
    Answer::Response { status: StatusCode::CREATED, headers, body: Bytes::new() }
}
