use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded};

use crate::message::{BatchId, Lane, Origin, Service, UnixMillis, Urgency};
use crate::origin::health::Heard;
use crate::origin::table::Table;
use crate::schedule::step::HELD_MILLIS;
use crate::schedule::{Queues, Schedule};
use crate::store::key::{DueKey, WorkKey};
use crate::store::run::{Run, Source};
use crate::store::writer::{Latest, News};
use crate::store::{Rows, Store, family, testing};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const HOST: &str = "push.example.net";

struct Played {
    schedule: Schedule,
    service: Service,
    origin: Origin,
    table: Arc<Table>,
    high: Receiver<Run>,
    normal: Receiver<Run>,
    _directory: tempfile::TempDir,
}

/// A scheduler over a store with these rows of singles, whose one service has one origin.
fn played(rows: &[(Urgency, u64, u16)]) -> Played {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Store::open(directory.path(), &testing::settings(), &[HOST.to_owned()]).expect("it opens"));
    let service = store.service_of(HOST).expect("it is allowed");
    let origin = Origin(Arc::from(format!("https://{HOST}")));
    let mut put = Rows::new();
    {
        let reader = store.reader().expect("open");
        let mut name = b"origin/".to_vec();
        name.extend_from_slice(&service.0.to_be_bytes());
        name.extend_from_slice(origin.0.as_bytes());
        put.put(&reader, family::META, name, []);
        for (urgency, commit, count) in rows {
            let key = WorkKey { lane: Lane { service, urgency: *urgency }, commit: *commit, piece: 0, count: *count };
            put.put(&reader, family::WORK, key.encode(), []);
        }
    }
    store.write(put).expect("written");
    drop(store);
    let store = Arc::new(Store::open(directory.path(), &testing::settings(), &[HOST.to_owned()]).expect("it opens"));
    let (high_in, high) = bounded(64);
    let (normal_in, normal) = bounded(64);
    let (settles, _writer) = crate::queue::unbounded();
    let table = Arc::new(Table::new(16, |_| 1_000));
    let queues = Queues { high: high_in, normal: normal_in };
    let schedule = Schedule::new(store, Arc::new(News::new(crate::queue::Bell::default())), table.clone(), queues, settles)
        .expect("it reads");
    Played { schedule, service, origin, table, high, normal, _directory: directory }
}

impl Played {
    fn lane(&self, urgency: Urgency) -> Lane {
        Lane { service: self.service, urgency }
    }

    /// Commits of the runs that a step hands out, the high rank first, and how many deliveries each has.
    fn step(&mut self, now: UnixMillis) -> Vec<(u64, u16)> {
        self.schedule.step(now);
        let commit = |run: Run| match run.source {
            Source::Row(key) => (key.commit, run.most),
            _ => panic!("only rows of singles are here"),
        };
        self.high.try_iter().chain(self.normal.try_iter()).map(commit).collect()
    }

    fn answer(&self, now: UnixMillis, n: usize, heard: Heard) {
        (0..n).for_each(|_| self.table.answered(self.service, &self.origin, now, Some(heard), None));
    }

    fn back(&mut self, lane: Lane, commit: u64, count: u16) {
        let key = WorkKey { lane, commit, piece: 0, count };
        let latest = Latest { back_rows: HashMap::from([(lane, key)]), ..Latest::default() };
        self.schedule.learn(latest, NOW);
    }
}

#[test]
fn the_more_urgent_lane_goes_first_whatever_its_age() {
    let mut played = played(&[(Urgency::Low, 1, 4), (Urgency::VeryLow, 2, 4), (Urgency::Normal, 3, 4), (Urgency::High, 4, 4)]);
    assert_eq!(played.step(NOW), [(4, 4), (3, 4), (1, 4), (2, 4)]);
}

#[test]
fn a_window_bounds_what_is_handed_out() {
    let mut played = played(&[(Urgency::Normal, 1, 200)]);
    let all: u16 = played.step(NOW).iter().map(|(_, most)| most).sum();
    assert_eq!(all, 29, "the start window less the tenth for the high rank");
    assert!(played.step(NOW).is_empty());
    played.answer(NOW, 29, Heard::Answer);
    assert!(!played.step(NOW).is_empty());
}

#[test]
fn few_places_wait_a_moment_for_more() {
    let mut played = played(&[(Urgency::Normal, 1, 200)]);
    played.step(NOW);
    played.answer(NOW, 2, Heard::Answer);
    assert_eq!(played.schedule.step(NOW), Some(NOW.plus(HELD_MILLIS)), "it comes back by itself");
    assert!(played.step(NOW.plus(HELD_MILLIS - 1)).is_empty());
    // Nothing else is ever heard.
    assert_eq!(played.step(NOW.plus(HELD_MILLIS)), [(1, 2)]);
    played.answer(NOW, 2, Heard::Answer);
    let later = NOW.plus(60_000);
    assert!(played.step(later).is_empty(), "they wait anew");
    played.answer(NOW, 2, Heard::Answer);
    assert_eq!(played.step(later), [(1, 4)], "four are enough of a window of 32");
}

#[test]
fn a_service_down_for_three_hours_gets_its_first_post_within_thirty_seconds_of_its_return() {
    let mut played = played(&[(Urgency::High, 1, 40), (Urgency::Normal, 2, 40)]);
    let handed: u16 = played.step(NOW).iter().map(|(_, most)| most).sum();
    played.answer(NOW, usize::from(handed), Heard::Condemned { not_before: None });
    played.back(played.lane(Urgency::High), 1, 40);
    let (mut now, returns) = (NOW, NOW.plus(3 * 3_600_000 + 12_345));
    let mut probes = 0;
    loop {
        // The loop of the thread: it sleeps as long as it is told, half a second at most.
        let wake = played.schedule.step(now);
        let runs: Vec<Run> = played.high.try_iter().chain(played.normal.try_iter()).collect();
        if let [run] = &runs[..] {
            assert_eq!((run.most, run.lane.urgency), (1, Urgency::High), "one probe, of the most urgent");
            if now >= returns {
                break;
            }
            probes += 1;
            played.answer(now, 1, Heard::Condemned { not_before: None });
            played.back(played.lane(Urgency::High), 1, 40);
            continue;
        }
        assert!(runs.is_empty(), "a closed lane is sent probes only");
        let sleep = wake.map_or(500, |wake| wake.since(now).clamp(1, 500));
        now = now.plus(sleep);
        assert!(now.since(returns) <= 31_000, "nothing was sent {} ms after its return", now.since(returns));
    }
    assert!(now.since(returns) <= 30_000, "{}", now.since(returns));
    assert!((360..=370).contains(&probes), "{probes} probes: a closed lane costs one each 30 s");
    played.answer(now, 1, Heard::Answer);
    assert!(!played.step(now).is_empty(), "it is open");
}

#[test]
fn what_came_back_is_not_passed_over_when_more_comes_back() {
    let rows: Vec<_> = (1..=8).map(|commit| (Urgency::Normal, commit, 1)).collect();
    let mut played = played(&rows);
    assert_eq!(played.step(NOW).len(), 8);
    played.answer(NOW, 3, Heard::Condemned { not_before: None });
    let lane = played.lane(Urgency::Normal);
    for commit in [2, 3, 4] {
        played.back(lane, commit, 1);
    }
    let probe = NOW.plus(1_000);
    assert_eq!(played.step(probe), [(2, 1)], "the probe is the oldest that waits");
    // The answers to what left before come late, and one of them to a row behind.
    played.answer(probe, 1, Heard::Condemned { not_before: None });
    played.back(lane, 6, 1);
    played.answer(probe, 4, Heard::Answer);
    let commits: Vec<u64> = played.step(probe.plus(60_000)).iter().map(|(commit, _)| *commit).collect();
    assert!(commits.starts_with(&[3, 4]), "{commits:?}");
    assert!(commits.contains(&6), "{commits:?}");
}

#[test]
fn due_rows_that_came_back_are_not_passed_over_either() {
    let mut played = played(&[]);
    let lane = played.lane(Urgency::Normal);
    let key = |time: u64| {
        let batch = BatchId::Commit { commit: time, lane, piece: 0 };
        DueKey { lane, time: NOW.plus(time), delivery: crate::message::DeliveryId { batch, index: 0 } }
    };
    let mut rows = Rows::new();
    {
        let reader = played.schedule.store.reader().expect("open");
        (1..=5).for_each(|time| rows.put(&reader, family::DUE, key(time).encode(), Bytes::new()));
    }
    played.schedule.store.write(rows).expect("written");
    let due = &mut played.schedule.lanes.get_mut(&lane).expect("it is known").due;
    due.read(&played.schedule.store, lane, NOW.plus(10)).expect("read");
    assert_eq!(due.ready.pop_front(), Some(key(1)));
    assert_eq!(due.ready.front(), Some(&key(2)));
    let latest = Latest { due: HashMap::from([(lane, NOW.plus(4))]), ..Latest::default() };
    played.schedule.learn(latest, NOW.plus(10));
    let due = &mut played.schedule.lanes.get_mut(&lane).expect("it is known").due;
    assert_eq!(due.first, Some(NOW.plus(2)));
    due.read(&played.schedule.store, lane, NOW.plus(10)).expect("read");
    assert_eq!(due.ready.iter().copied().collect::<Vec<_>>(), (2..=5).map(key).collect::<Vec<_>>());
}
