//! Counters by day, for `stats`.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;

use crate::limits::STATS_LABELS;
use crate::message::{KeyId, Service, UnixMillis};
use crate::store::record::{self, Counts, Put, Take};
use crate::store::{Rows, Store, family, key};

static NO_LABEL: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));

/// A line of `stats`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StatsKey {
    /// Days since 1970-01-01.
    pub day: u32,
    pub app: Arc<str>,
    /// Empty: no label.
    pub label: Arc<str>,
    pub service: Service,
    pub key: [u8; 8],
}

impl StatsKey {
    pub(super) fn new(
        now: UnixMillis,
        app: &Arc<str>,
        label: Option<&Arc<str>>,
        service: Service,
        key: Option<KeyId>,
    ) -> StatsKey {
        StatsKey {
            day: u32::try_from(now.0 / 86_400_000).unwrap_or(u32::MAX),
            app: app.clone(),
            label: label.unwrap_or(&NO_LABEL).clone(),
            service,
            key: key.map_or([0; 8], |key| key.0),
        }
    }

    pub(super) fn encode(&self, kind: u8) -> Vec<u8> {
        let mut put = Put::default();
        put.u32(self.day).short(self.app.as_bytes()).short(self.label.as_bytes()).u16(self.service.0).bytes(&self.key).u8(kind);
        put.0
    }

    /// Reads a key; the kind (0 taken, 1 ended) is told beside it.
    pub fn decode(key: &[u8]) -> Result<(StatsKey, u8), record::Corrupt> {
        let mut take = Take::new(Bytes::copy_from_slice(key));
        let key = StatsKey {
            day: take.u32()?,
            app: take.str()?,
            label: take.str()?,
            service: Service(take.u16()?),
            key: take.array()?,
        };
        Ok((key, take.u8()?))
    }
}

/// Counters of the current days: absolute values, in two rows each, for what is taken is written with commits and what has
/// ended with checkpoints.
#[derive(Default)]
pub(super) struct Stats {
    pub(super) lines: foldhash::HashMap<StatsKey, [Counts; 2]>,
    pub(super) dirty_taken: foldhash::HashMap<StatsKey, Counts>,
    pub(super) dirty_ended: foldhash::HashSet<StatsKey>,
    /// Labels of a day and an app: each app has its own share.
    pub(super) labels: HashMap<(u32, Arc<str>), HashSet<Arc<str>>>,
    /// What has ended last, all of one line, and is not in its line yet: most follow others of their kind.
    run: Option<(StatsKey, Counts)>,
}

impl Stats {
    pub(super) fn line(&mut self, store: &Store, key: StatsKey) -> (StatsKey, &mut [Counts; 2]) {
        let keeps = self.lines.contains_key(&key) || self.keeps_label(store, &key);
        let key = if keeps { key } else { StatsKey { label: Arc::from("other"), ..key } };
        let line = self.lines.entry(key.clone()).or_insert_with(|| [0, 1].map(|kind| stored_counts(store, &key, kind)));
        (key, line)
    }

    /// Whether the label is one of those that are kept apart.
    fn keeps_label(&mut self, store: &Store, key: &StatsKey) -> bool {
        if key.label.is_empty() {
            return true;
        }
        let labels = self.labels.entry((key.day, key.app.clone())).or_insert_with(|| stored_labels(store, key.day, &key.app));
        labels.contains(&key.label) || labels.len() < STATS_LABELS && labels.insert(key.label.clone())
    }

    pub(super) fn taken(&mut self, store: &Store, key: StatsKey, counts: &Counts) {
        let (key, line) = self.line(store, key);
        let before = line[0];
        line[0].add(counts);
        self.dirty_taken.entry(key).or_insert(before);
    }

    pub(super) fn ended(&mut self, store: &Store, key: StatsKey, counts: &Counts) {
        match &mut self.run {
            Some((of, run)) if *of == key => run.add(counts),
            _ => {
                self.end_run(store);
                self.run = Some((key, *counts));
            }
        }
    }

    fn end_run(&mut self, store: &Store) {
        if let Some((key, counts)) = self.run.take() {
            let (key, line) = self.line(store, key);
            line[1].add(&counts);
            self.dirty_ended.insert(key);
        }
    }

    pub(super) fn put_taken(&self, reader: &crate::store::Reader<'_>, rows: &mut Rows) {
        for key in self.dirty_taken.keys() {
            put_counts(reader, rows, key, 0, &self.lines[key][0]);
        }
    }

    pub(super) fn put_ended(&mut self, store: &Store, reader: &crate::store::Reader<'_>, rows: &mut Rows) {
        self.end_run(store);
        for key in &self.dirty_ended {
            put_counts(reader, rows, key, 1, &self.lines[key][1]);
        }
    }

    /// What has ended is on disk; days that are over leave memory.
    pub(super) fn forget_old(&mut self, now: UnixMillis) {
        self.dirty_ended.clear();
        let today = u32::try_from(now.0 / 86_400_000).unwrap_or(u32::MAX);
        self.lines.retain(|key, _| key.day >= today);
        self.labels.retain(|(day, _), _| *day >= today);
    }

    pub(super) fn undo_taken(&mut self) {
        for (key, before) in self.dirty_taken.drain() {
            if let Some(line) = self.lines.get_mut(&key) {
                line[0] = before;
            }
        }
    }
}

pub(super) fn put_counts(reader: &crate::store::Reader<'_>, rows: &mut Rows, key: &StatsKey, kind: u8, counts: &Counts) {
    let mut put = Put::versioned();
    record::put_counts(&mut put, counts);
    rows.put(reader, family::STATS, key.encode(kind), &put.0);
}

pub(super) fn stored_counts(store: &Store, key: &StatsKey, kind: u8) -> Counts {
    let row = store.reader().and_then(|reader| reader.value(family::STATS, key.encode(kind)));
    row.ok()
        .flatten()
        .and_then(|row| Take::versioned(row).and_then(|mut take| record::take_counts(&mut take)).ok())
        .unwrap_or_default()
}

/// The labels that an app has had this day before the start.
fn stored_labels(store: &Store, day: u32, app: &str) -> HashSet<Arc<str>> {
    let mut prefix = Put::default();
    prefix.u32(day).short(app.as_bytes());
    let mut labels = HashSet::new();
    let read = store.reader().and_then(|reader| {
        reader.scan(family::STATS, &prefix.0, &key::after_prefix(&prefix.0), |key, _| {
            labels.extend(StatsKey::decode(key).ok().map(|(key, _)| key.label).filter(|label| !label.is_empty()));
            true
        })
    });
    // While the store is being opened again nothing is taken.
    read.map_or_else(|_| HashSet::new(), |()| labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    #[test]
    fn each_app_has_labels_of_its_own_and_a_start_gives_no_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), &testing::settings(), &[]).expect("it opens");
        let now = UnixMillis(86_400_000 * 20_000);
        let [shop, news]: [Arc<str>; 2] = ["shop", "news"].map(Arc::from);
        let taken = |stats: &mut Stats, app: &Arc<str>, label: Option<&str>| {
            let label = label.map(Arc::from);
            let key = StatsKey::new(now, app, label.as_ref(), Service::OTHER, None);
            let (kept, _) = stats.line(&store, key.clone());
            stats.taken(&store, key, &Counts { recipients: 1, ..Counts::default() });
            kept.label.to_string()
        };
        let mut stats = Stats::default();
        for n in 0..STATS_LABELS {
            assert_eq!(taken(&mut stats, &shop, Some(&n.to_string())), n.to_string());
        }
        assert_eq!(taken(&mut stats, &news, Some("first")), "first", "what another app has is none of its share");
        let full = |stats: &mut Stats, when: &str| {
            assert_eq!(taken(stats, &shop, Some("one more")), "other", "{when}");
            assert_eq!(taken(stats, &shop, Some("7")), "7", "{when}");
            assert_eq!(taken(stats, &shop, None), "", "{when}");
            assert_eq!(taken(stats, &news, Some("second")), "second", "{when}");
        };
        full(&mut stats, "at once");
        let mut rows = Rows::new();
        stats.put_taken(&store.reader().expect("open"), &mut rows);
        store.write(rows).expect("there is space");
        let mut stats = Stats::default();
        full(&mut stats, "after a start");
        let counts = stats.line(&store, StatsKey::new(now, &shop, Some(&Arc::from("7")), Service::OTHER, None)).1[0];
        assert_eq!(counts.recipients, 3, "counted on");
    }
}
