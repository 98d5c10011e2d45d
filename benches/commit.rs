//! What an accepted line costs the store: one group commit by the number of its lines, on a disk that is synced and in memory, where
//! syncing costs nothing. From handing over to the answer; preparing is the connections' and not counted.

mod fixture;

use std::path::Path;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use fanfare::queue::{Sender, bounded};
use fanfare::store::Store;
use fanfare::store::commit::{Op, Writes};
use fanfare::store::turns::{Turns, turns};
use fanfare::store::writer::Settle;
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
    let store = fixture::store(directory.path(), 0);
    let (commits, settles, writer) = start(&store);
    bencher
        .counter(ItemsCount::new(lines))
        .with_inputs(|| (0..lines as u64).map(|n| fixture::send(&store, n)).collect::<Vec<Op>>())
        .bench_local_values(|ops| {
            let (reply, answers) = oneshot::channel();
            assert!(commits.send(Writes::new(ops, reply)).is_ok(), "the writer takes it");
            answers.blocking_recv().expect("it answers")
        });
    settles.send(Settle::Stop).expect("the writer takes it");
    writer.join().expect("the writer does not panic");
}

fn start(store: &Arc<Store>) -> (Turns, Sender<Settle>, std::thread::JoinHandle<()>) {
    let (commits, commits_out) = turns();
    let (settles, settles_out) = bounded(16);
    let writer = fixture::writer(store, commits_out, settles_out);
    let thread = std::thread::spawn(move || writer.run(|| {}).expect("it writes"));
    (commits, settles, thread)
}
