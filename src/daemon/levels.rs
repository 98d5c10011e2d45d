//! What the daemon tells of itself while it runs: the levels among the metrics, and what `origins` shows.
//!
//! Promise: it only looks, and changes nothing. While the store is being opened again, what would have to be read from it stays as it
//! was.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock;
use crate::deliver::{self, Pool};
use crate::message::{Service, UnixMillis};
use crate::metrics;
use crate::origin::table::Table;
use crate::protocol::time::{format_time, parse_time};
use crate::services::Origins;
use crate::store::commit::Apps;
use crate::store::key::{self as keys, DueKey};
use crate::store::live::{lanes_of, lock};
use crate::store::writer;
use crate::store::{Store, family, record};
use crate::vapid::token::{Expiry, Tokens};

/// What `origins` shows.
pub(super) struct Shown {
    pub(super) store: Arc<Store>,
    pub(super) origins: Arc<Table>,
    pub(super) pool: Pool,
    pub(super) tokens: Arc<Tokens>,
}

/// What of an origin tells how much is sent to it.
const VOLUME: [&str; 7] = ["window", "in_flight", "waiting", "connections", "capacity", "resends", "timeouts"];

impl Shown {
    /// Each origin that was met since the start. `apps`: only what these may know, which are those that they have a token for, as
    /// who has sent there has, and push services that are closed, as nobody else's messages get there either; and nothing that tells
    /// how much others send: numbers of what is in flight or waits, and the windows and connections that grow with them, are null.
    pub(super) fn origins_json(&self, apps: Option<&Apps>) -> String {
        let now = clock::now();
        let pool: HashMap<_, _> = self.pool.status().into_iter().map(|status| (status.origin.clone(), status)).collect();
        let expiries = self.tokens.expiries(now);
        let all: Vec<serde_json::Value> = self
            .origins
            .shown()
            .into_iter()
            .filter_map(|(service, origin, health)| {
                let status = pool.get(&origin);
                let own = |token: &&Expiry| token.origin == origin && apps.is_none_or(|apps| apps.contains(&token.app));
                let token = expiries.iter().filter(own).map(|token| token.seconds_left).min();
                let one = || matches!(self.store.services.origins(service), Some(Origins::One(_)));
                if apps.is_some() && token.is_none() && !(health.state != "open" && one()) {
                    return None;
                }
                let mut shown = serde_json::json!({
                    "service": &*self.store.services.name(service),
                    "origin": &*origin.0,
                    "state": health.state,
                    "window": health.window,
                    "in_flight": health.in_flight,
                    "probe_at": health.probe_at.map(format_time),
                    "last_error": health.last_error.map(|(word, _)| word),
                    "last_error_at": health.last_error.map(|(_, at)| format_time(at)),
                    "waiting": status.map_or(0, |status| status.queued),
                    "connections": status.map_or(0, |status| status.connections),
                    "protocol": status.and_then(|status| status.protocol).map(deliver::Protocol::as_str),
                    "capacity": status.map(|status| status.capacity),
                    "resends": status.map_or(0, |status| status.resends),
                    "timeouts": status.map_or(0, |status| status.timeouts),
                    "token_expires": token.map(|seconds| format_time(now.plus(seconds * 1_000))),
                });
                if apps.is_some() {
                    VOLUME.iter().for_each(|name| shown[name] = serde_json::Value::Null);
                }
                Some(shown)
            })
            .collect();
        serde_json::Value::from(all).to_string()
    }
}

/// The levels among the metrics.
pub(super) struct Levels {
    pub(super) store: Arc<Store>,
    pub(super) origins: Arc<Table>,
    pub(super) pool: Pool,
    pub(super) tokens: Arc<Tokens>,
}

impl Levels {
    /// The line that `systemctl status` shows: `rate` are the answers of push services in a second.
    pub(super) fn status(&self, rate: f64) -> String {
        let gates = &self.store.gates;
        let set = |gate: &AtomicBool| gate.load(Ordering::Relaxed);
        let state = match () {
            () if set(&gates.draining) => "draining, ",
            () if set(&gates.low_space) || set(&gates.full) => "no space, read only, ",
            () => "",
        };
        let closed = self.origins.shown().into_iter().filter(|(.., health)| health.state != "open");
        let closed: Vec<String> = closed.map(|(_, origin, _)| origin.host().to_owned()).collect();
        status_line(state, self.store.pending.load(Ordering::Relaxed), rate, &closed)
    }

    /// `seldom`: also those that cost some reads.
    pub(super) fn set(&self, seldom: bool) {
        let store = &self.store;
        let pending = store.pending.load(Ordering::Relaxed);
        metrics::plain_level("fanfare_pending", pending as f64);
        let gates = &store.gates;
        for (name, gate) in [
            ("low_space", &gates.low_space),
            ("full", &gates.full),
            ("max_pending", &gates.max_pending),
            ("draining", &gates.draining),
        ] {
            metrics::level("fanfare_gate", "gate", name.to_owned(), f64::from(u8::from(gate.load(Ordering::Relaxed))));
        }
        let unsynced = gates.unsynced_for();
        metrics::level("fanfare_gate", "gate", "checkpoint_late".to_owned(), f64::from(u8::from(gates.checkpoint_late())));
        metrics::plain_level("fanfare_checkpoint_age_seconds", unsynced.as_secs_f64());
        let (mut connections, mut streams): (BTreeMap<Arc<str>, usize>, BTreeMap<Arc<str>, usize>) = Default::default();
        let mut open: BTreeMap<Arc<str>, bool> = BTreeMap::new();
        let by_origin: HashMap<_, _> = self.pool.status().into_iter().map(|status| (status.origin.clone(), status)).collect();
        let mut in_flight = 0;
        for (service, origin, health) in self.origins.shown() {
            let name = store.services.name(service);
            if let Some(status) = by_origin.get(&origin) {
                *connections.entry(name.clone()).or_default() += status.connections;
                *streams.entry(name.clone()).or_default() += status.in_flight;
            }
            in_flight += health.in_flight;
            *open.entry(name).or_insert(true) &= health.state == "open";
        }
        for (name, n) in connections {
            metrics::level("fanfare_connections", "service", name.to_string(), n as f64);
        }
        for (name, n) in streams {
            metrics::level("fanfare_streams", "service", name.to_string(), n as f64);
        }
        for (name, open) in open {
            metrics::level("fanfare_lane_open", "service", name.to_string(), f64::from(u8::from(open)));
        }
        metrics::level("fanfare_queue_depth", "state", "in_flight".to_owned(), in_flight as f64);
        metrics::level("fanfare_queue_depth", "state", "waiting".to_owned(), pending.saturating_sub(in_flight as u64) as f64);
        metrics::corrupt_rows(store.corrupt_rows.load(Ordering::Relaxed));
        let (fresh, batches) = store.batches.usage();
        metrics::level("fanfare_memory_bytes", "part", "fresh".to_owned(), fresh as f64);
        metrics::plain_level("fanfare_batches", batches as f64);
        if seldom {
            self.set_seldom();
        }
    }

    fn set_seldom(&self) {
        let store = &self.store;
        let now = clock::now();
        if let Some(seconds) = self.tokens.expiries(now).iter().map(|token| token.seconds_left).min() {
            metrics::plain_level("fanfare_vapid_token_expiry_seconds", seconds as f64);
        }
        // While the store is being reopened these stay as they were.
        let Ok(reader) = store.reader() else { return };
        for (property, name) in [
            ("num-running-flushes", "rocksdb.num-running-flushes"),
            ("num-running-compactions", "rocksdb.num-running-compactions"),
            ("estimate-pending-compaction-bytes", "rocksdb.estimate-pending-compaction-bytes"),
            ("is-write-stopped", "rocksdb.is-write-stopped"),
            ("background-errors", "rocksdb.background-errors"),
            ("live-sst-files-size", "rocksdb.live-sst-files-size"),
            ("num-files-at-level0", "rocksdb.num-files-at-level0"),
        ] {
            let sum: u64 = family::ALL.iter().map(|family| reader.property(family, name)).sum();
            metrics::level("fanfare_rocksdb", "property", property.to_owned(), sum as f64);
        }
        let cache = reader.property(family::META, "rocksdb.block-cache-usage");
        metrics::level("fanfare_memory_bytes", "part", "block_cache".to_owned(), cache as f64);
        let memtables: u64 = family::ALL.iter().map(|family| reader.property(family, "rocksdb.cur-size-all-mem-tables")).sum();
        metrics::level("fanfare_memory_bytes", "part", "memtables".to_owned(), memtables as f64);
        drop(reader);
        if let Some(resident) = resident_bytes() {
            metrics::level("fanfare_memory_bytes", "part", "resident".to_owned(), resident as f64);
        }
        for app in self.tokens.apps() {
            if let Some(number) = store.registry.app(&app)
                && let Ok(count) = store.kept_count(&Store::app_posting(number))
            {
                metrics::level("fanfare_subscriptions", "app", app.to_string(), count as f64);
            }
        }
        metrics::plain_level("fanfare_open_lists", store.lists.len() as f64);
        metrics::plain_level("fanfare_accounts_present", lock(&store.presence).len() as f64);
        if let Some(age) = self.oldest_due_age(now) {
            metrics::plain_level("fanfare_oldest_due_age_seconds", age as f64 / 1_000.0);
        }
        for (app, bytes) in store.log.bytes() {
            metrics::level("fanfare_event_log_bytes", "app", app.to_string(), bytes as f64);
        }
        if let Some(oldest) = oldest_event(store) {
            metrics::plain_level("fanfare_event_log_age_seconds", now.since(oldest) as f64 / 1_000.0);
        }
    }

    /// How long the oldest delivery of any open lane waits, in milliseconds.
    fn oldest_due_age(&self, now: UnixMillis) -> Option<u64> {
        let mut oldest = 0;
        for (service, _) in self.store.services.all() {
            let open = match self.store.services.origins(service) {
                None => continue,
                Some(Origins::One(origin)) => self.origins.is_open(&origin),
                Some(Origins::Several) => true,
            };
            if open {
                oldest = oldest.max(self.oldest_of(service, now)?);
            }
        }
        Some(oldest)
    }

    fn oldest_of(&self, service: Service, now: UnixMillis) -> Option<u64> {
        let mut oldest = 0;
        let reader = self.store.reader().ok()?;
        for lane in lanes_of(service) {
            for family in [family::WORK, family::DUE] {
                let prefix = keys::lane_prefix(lane);
                let kept = reader.value(family::META, writer::first_row_key(family, lane)).ok()?;
                let start = kept.as_ref().map_or(prefix.as_slice(), |kept| kept.as_ref());
                reader
                    .scan(family, start, &keys::after_prefix(&prefix), |row, value| {
                        let since = match family {
                            family::WORK => record::work_row_created(value).ok(),
                            _ => DueKey::decode(row).ok().map(|due| due.time),
                        };
                        oldest = oldest.max(since.map_or(0, |since| now.since(since)));
                        false
                    })
                    .ok()?;
            }
        }
        Some(oldest)
    }
}

fn oldest_event(store: &Store) -> Option<UnixMillis> {
    let first = store.events_after(0, 1).ok()?.into_iter().next()?;
    let event: serde_json::Value = serde_json::from_slice(&first.json).ok()?;
    parse_time(event.get("time")?.as_str()?)
}

/// VmRSS of this process.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

/// Hosts of closed push services that the status line names.
const CLOSED_NAMED: usize = 3;

fn status_line(state: &str, pending: u64, rate: f64, closed: &[String]) -> String {
    let mut text = format!("{state}{pending} pending, {rate:.0} answers a second");
    if !closed.is_empty() {
        let named = closed.iter().take(CLOSED_NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        text.push_str(&format!(", closed: {named}"));
        if closed.len() > CLOSED_NAMED {
            text.push_str(&format!(" and {} more", closed.len() - CLOSED_NAMED));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_line_names_some_of_what_is_closed() {
        let hosts: Vec<String> = ["a", "b", "c", "d", "e"].map(|name| format!("{name}.example")).into();
        assert_eq!(status_line("", 12, 3.4, &[]), "12 pending, 3 answers a second");
        assert_eq!(status_line("draining, ", 0, 0.0, &hosts[..1]), "draining, 0 pending, 0 answers a second, closed: a.example");
        assert_eq!(
            status_line("", 7, 99.6, &hosts),
            "7 pending, 100 answers a second, closed: a.example, b.example, c.example and 2 more"
        );
    }
}
