//! What an accepted line costs the store: one group commit by the number of its lines, on a disk that is synced and in memory, where
//! syncing costs nothing. From handing over to the answer; preparing is the connections' and not counted.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};
use divan::Bencher;
use divan::counter::ItemsCount;
use fanfare::clock;
use fanfare::config;
use fanfare::ingest::request::{Payload, Send, Subscriptions, To};
use fanfare::message::{Encoding, Endpoint, KeyId, Recipient, Service};
use fanfare::store::Store;
use fanfare::store::commit::{Op, Preparing, Writes, prepare_send};
use fanfare::store::writer::{News, Settings, Settle, Writer};
use tokio::sync::oneshot;

const LINES: [usize; 5] = [1, 16, 64, 256, 1_024];

fn main() {
    divan::main();
}

#[divan::bench(args = LINES)]
fn synced_to_disk(bencher: Bencher, lines: usize) {
    commit(bencher, lines, &std::env::temp_dir());
}

#[divan::bench(args = LINES)]
fn in_memory(bencher: Bencher, lines: usize) {
    commit(bencher, lines, Path::new("/dev/shm"));
}

fn commit(bencher: Bencher, lines: usize, parent: &Path) {
    let directory = tempfile::tempdir_in(parent).expect("a directory");
    let settings = config::Store {
        checkpoint_interval: Duration::from_millis(250),
        cache_mb: 64,
        min_free_percent: 0.0,
        reserve_mb: 1,
        fresh_mb: 0,
    };
    let store = Arc::new(Store::open(directory.path(), &settings, &[]).expect("it opens"));
    let (commits, settles, writer) = start(&store);
    bencher
        .counter(ItemsCount::new(lines))
        .with_inputs(|| (0..lines).map(|n| send(&store, n)).collect::<Vec<Op>>())
        .bench_local_values(|ops| {
            let (reply, answers) = oneshot::channel();
            commits.send(Writes { ops, reply, places: Vec::new() }).expect("the writer takes it");
            answers.blocking_recv().expect("it answers")
        });
    settles.send(Settle::Stop).expect("the writer takes it");
    writer.join().expect("the writer does not panic");
}

fn start(store: &Arc<Store>) -> (Sender<Writes>, Sender<Settle>, std::thread::JoinHandle<()>) {
    let (wake, _rung) = bounded(1);
    let (commits, commits_out) = bounded(16);
    let (settles, settles_out) = bounded(16);
    let (cancelled, _sweep) = bounded(1);
    let settings = Settings {
        checkpoint_interval: Duration::from_millis(250),
        max_pending: u64::MAX,
        log: Default::default(),
        first_keys: Default::default(),
        apps: Arc::new(vec![Arc::from("shop")]),
        browsers_per_account: 10_000,
        undo: 604_800_000,
        grace: 120_000,
    };
    let news = Arc::new(News::new(wake));
    let writer = Writer::open(store.clone(), settings, commits_out, settles_out, news, cancelled).expect("it opens");
    let thread = std::thread::spawn(move || writer.run(|| {}).expect("it writes"));
    (commits, settles, thread)
}

/// One recipient and a body of 250 bytes.
fn send(store: &Store, n: usize) -> Op {
    let origin = "https://fcm.googleapis.com";
    let recipient = Recipient {
        service: Service::FCM,
        endpoint: Endpoint::from_checked(Bytes::from(format!("{origin}/fcm/send/{n:0>160}")), origin.len() as u16),
        p256dh: [4; 65],
        auth: [1; 16],
        encoding: Encoding::Aes128gcm,
        key: None,
        expiration: None,
        reference: None,
        attributes: None,
        registered: None,
    };
    let to = To::Subscriptions(Subscriptions { good: vec![recipient], rejected: Vec::new() });
    let send = Send::new(Arc::from("shop"), to, Payload::opaque(Bytes::from_static(&[b'x'; 250])), 3_600);
    let preparing = Preparing {
        now: clock::now(),
        ttl0_patience: Duration::from_secs(5),
        first_key: KeyId([0; 8]),
        services: &store.services,
    };
    Op::Send(Box::new(prepare_send(send, &preparing)))
}
