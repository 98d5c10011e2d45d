//! What it costs to pick what is due: 10,000 rows of singles in one lane, by the recipients of a row, read from the store and handed out
//! to an origin that answers everything at once.

mod fixture;

use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};
use divan::Bencher;
use divan::counter::ItemsCount;
use fanfare::message::{Lane, Origin, Service, UnixMillis, Urgency};
use fanfare::origin::health::Heard;
use fanfare::origin::table::Table;
use fanfare::queue::{self, Bell};
use fanfare::schedule::{Queues, Schedule};
use fanfare::store::key::WorkKey;
use fanfare::store::run::Run;
use fanfare::store::writer::{News, Settle};
use fanfare::store::{Rows, Store, family};

use self::fixture::ORIGIN;

const ROWS: u64 = 10_000;
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn main() {
    divan::main();
}

#[divan::bench(args = [1, 16, 256], sample_count = 10)]
fn hand_out(bencher: Bencher, recipients: u16) {
    let directory = tempfile::tempdir().expect("a directory");
    fill(&fixture::store(directory.path(), 1), recipients);
    let store = fixture::store(directory.path(), 1);
    bencher
        .counter(ItemsCount::new(ROWS * u64::from(recipients)))
        .with_inputs(|| Played::new(&store))
        .bench_local_values(|mut played| played.all(ROWS * u64::from(recipients)));
}

fn fill(store: &Store, recipients: u16) {
    let mut rows = Rows::new();
    let reader = store.reader().expect("it is open");
    let mut name = b"origin/".to_vec();
    name.extend_from_slice(&Service::FCM.0.to_be_bytes());
    name.extend_from_slice(ORIGIN.as_bytes());
    rows.put(&reader, family::META, name, []);
    let lane = Lane { service: Service::FCM, urgency: Urgency::Normal };
    for commit in 1..=ROWS {
        let key = WorkKey { lane, commit, piece: 0, count: recipients };
        rows.put(&reader, family::WORK, key.encode(), [0; 512]);
    }
    drop(reader);
    store.write(rows).expect("it is written");
}

struct Played {
    schedule: Schedule,
    table: Arc<Table>,
    high: Receiver<Run>,
    normal: Receiver<Run>,
    _writer: queue::Receiver<Settle>,
}

impl Played {
    fn new(store: &Arc<Store>) -> Played {
        let (high_in, high) = bounded(4);
        let (normal_in, normal) = bounded(4);
        let (settles, _writer) = queue::bounded(16);
        let table = Arc::new(Table::new(16, |_| 1_000));
        let queues = Queues { high: high_in, normal: normal_in };
        let schedule =
            Schedule::new(store.clone(), Arc::new(News::new(Bell::default())), table.clone(), queues, settles).expect("it reads");
        Played { schedule, table, high, normal, _writer }
    }

    fn all(&mut self, deliveries: u64) {
        let origin = Origin(Arc::from(ORIGIN));
        let mut handed = 0;
        while handed < deliveries {
            self.schedule.step(NOW);
            for run in self.high.try_iter().chain(self.normal.try_iter()) {
                handed += u64::from(run.most);
                for _ in 0..run.most {
                    self.table.answered(Service::FCM, &origin, NOW, Some(Heard::Answer), None);
                }
            }
        }
    }
}
