//! Every metric: name, labels, meaning. Labels are bounded: service, status class, reason, code; never an endpoint.
//! Counting is done in the loops; what is a level is set by [`level`] and [`plain_level`], which the
//! daemon calls every second.

use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::Duration;

use foldhash::HashMap;
use metrics::{Counter, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

use crate::message::{Answer, Answered, Ending, Service};
use crate::protocol::request::Code;
use crate::scrape;
use crate::services::Services;

/// Buckets of all durations, in seconds: from a fifth of a millisecond to a minute.
const SECONDS: [f64; 16] = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0];

/// Starts the listener for Prometheus. Must be called within a tokio runtime; the error is a sentence.
pub fn listen(address: SocketAddr) -> Result<(), String> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .map_err(|error| error.to_string())?;
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
    let page = handle.clone();
    scrape::listen(address, move || page.render()).map_err(|error| format!("metrics.listen {address}: {error}"))?;
    tokio::spawn(async move {
        // Upkeep: histograms are bounded only if they are drained.
        let mut every = tokio::time::interval(Duration::from_secs(5));
        loop {
            every.tick().await;
            handle.run_upkeep();
        }
    });
    describe();
    Ok(())
}

fn describe() {
    describe_counter!("fanfare_lines_total", "Lines read from sockets.");
    describe_counter!("fanfare_accepted_total", "Writes that were taken and are on disk.");
    describe_counter!("fanfare_rejected_total", "Lines that were not taken, by error code; a rise is a client to mend.");
    describe_counter!(
        "fanfare_turned_away_total",
        "Clients or lines that a bound has turned away, by reason: connections (one too many), line_memory (none for a long line), \
         line_time (a line that did not end), replies (they were not taken)."
    );
    describe_gauge!("fanfare_clients_free", "Connections that a socket could still take, by socket; 0: they are refused.");
    describe_gauge!("fanfare_ingest_free_bytes", "What a socket could still take of ingest.memory_mb, by socket.");
    describe_counter!("fanfare_deliveries_total", "Deliveries that have ended, by service and outcome.");
    describe_counter!("fanfare_answers_total", "Answers of push services, by service and status class.");
    describe_counter!("fanfare_retries_total", "Deliveries that wait for another attempt, by service and reason.");
    describe_counter!(
        "fanfare_returned_total",
        "Deliveries that went back to their lane because the push service as a whole fails."
    );
    describe_histogram!("fanfare_ack_seconds", "From reading a line to its answer; high values mean a slow disk.");
    describe_histogram!("fanfare_delivery_seconds", "From acceptance (or `at`) to the push service's answer 2xx.");
    describe_histogram!("fanfare_request_seconds", "From the request's stream to its answer.");
    describe_histogram!("fanfare_wal_sync_seconds", "One synced write; high values mean a slow disk.");
    describe_histogram!("fanfare_checkpoint_interval_seconds", "Between two checkpoints while there is something to write.");
    describe_histogram!("fanfare_encrypt_seconds", "Sealing of one slice of up to eight.");
    describe_gauge!("fanfare_encrypt_warm_bytes", "Memory of what is made ahead of need; encrypt.warm_memory bounds it.");
    describe_gauge!(
        "fanfare_encrypt_warm_entries",
        "What is made ahead, by kind: secret (ECDH with a recipient of what is paused or scheduled) and key_pair (for anybody)."
    );
    describe_counter!("fanfare_encrypt_warm_hits_total", "Messages that used what was made ahead, by kind: secret, key_pair.");
    describe_gauge!("fanfare_pending", "Deliveries that have not ended.");
    describe_gauge!("fanfare_queue_depth", "By state: waiting (on disk) and in_flight.");
    describe_gauge!("fanfare_oldest_due_age_seconds", "How long the oldest delivery of an open lane waits: page on this.");
    describe_gauge!(
        "fanfare_checkpoint_age_seconds",
        "How long the oldest outcome that is not on disk waits; sending stops at twice store.checkpoint_interval."
    );
    describe_gauge!("fanfare_connections", "Open connections to push services, by service.");
    describe_counter!(
        "fanfare_connections_flooded_total",
        "Connections ended because the push service sent far more than answers to its requests: it is broken, or hostile."
    );
    describe_gauge!("fanfare_streams", "Requests without an answer, by service.");
    describe_gauge!("fanfare_lane_open", "1: the push service is sent to; 0: it is closed, what waits for it is kept.");
    describe_gauge!("fanfare_vapid_token_expiry_seconds", "What is left of the VAPID token that expires first.");
    describe_gauge!("fanfare_gate", "1: the gate (low_space, full, max_pending, draining, checkpoint_late) is closed.");
    describe_gauge!(
        "fanfare_share_used",
        "How much each app has of what is bounded in all, by what it is: pending (messages.max_pending), open_lists (messages.max_open), \
         rules (paused or cancelled messages, labels, erased browsers), presence (leases), disabled (accounts), tests."
    );
    describe_gauge!("fanfare_rocksdb", "RocksDB's own properties, by property, summed over column families.");
    describe_gauge!("fanfare_memory_bytes", "Memory by part: resident, block_cache, memtables, fresh.");
    describe_gauge!("fanfare_subscriptions", "Subscriptions that can be reached, by app.");
    describe_gauge!("fanfare_accounts_present", "Accounts that are online, or were within presence.grace.");
    describe_gauge!("fanfare_open_lists", "Lists, streams and campaigns that have not ended.");
    describe_gauge!("fanfare_batches", "Rows whose outcome bytes are in memory.");
    describe_gauge!("fanfare_event_log_age_seconds", "Age of the oldest event that is kept.");
    describe_gauge!(
        "fanfare_event_log_bytes",
        "Event log before compression, by app (empty: events of all apps, of a store of 0.1); events.max_mb bounds the sum, and \
         beyond it who has more than its share loses its oldest events."
    );
    describe_counter!("fanfare_corrupt_rows_total", "Rows that would not decode and were set aside: look at the disk.");
    describe_gauge!("fanfare_build_info", "1, with the version.");
    gauge!("fanfare_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// A line was read.
pub fn lines(n: u64) {
    static LINES: OnceLock<Counter> = OnceLock::new();
    LINES.get_or_init(|| counter!("fanfare_lines_total")).increment(n);
}

/// Writes were taken and are on disk, after `waited`.
pub fn acked(n: u64, waited: Duration) {
    counter!("fanfare_accepted_total").increment(n);
    histogram!("fanfare_ack_seconds").record_many(waited.as_secs_f64(), usize::try_from(n).unwrap_or(usize::MAX));
}

/// A connection to a push service was ended because too much came that answers nothing.
pub fn flooded() {
    counter!("fanfare_connections_flooded_total").increment(1);
}

/// A line was not taken.
pub fn rejected(code: Code) {
    counter!("fanfare_rejected_total", "code" => code.as_str()).increment(1);
}

/// A client, or its line, was turned away, by reason: `connections`, `line_memory`, `line_time`, `replies`.
pub fn turned_away(reason: &'static str) {
    counter!("fanfare_turned_away_total", "reason" => reason).increment(1);
}

/// What the outcome thread counts for each answer. A metric is looked up by name and labels once, not for each answer.
#[derive(Default)]
pub struct Answers {
    classes: HashMap<(Service, &'static str), Counter>,
    /// `fanfare_delivery_seconds` and `fanfare_request_seconds`.
    seconds: HashMap<Service, [Histogram; 2]>,
}

impl Answers {
    /// A push service answered, or did not.
    pub fn count(&mut self, services: &Services, answered: &Answered) {
        let service = answered.delivery.recipient.service;
        let class = match &answered.answer {
            Answer::Response { status, .. } => match status.as_u16() / 100 {
                2 => "2xx",
                3 => "3xx",
                4 => "4xx",
                5 => "5xx",
                _ => "other",
            },
            Answer::NotConnected(_) => "not_connected",
            Answer::Lost(_) => "lost",
            Answer::TooLate => "too_late",
            Answer::Stopped => "stopped",
        };
        let counter = self.classes.entry((service, class)).or_insert_with(
            || counter!("fanfare_answers_total", "service" => services.name(service).to_string(), "class" => class),
        );
        counter.increment(1);
        if class == "2xx" {
            let began = answered.delivery.message.id.created().max(answered.delivery.message.at);
            let waited = crate::clock::now().since(began) as f64 / 1_000.0;
            let [delivery, request] = self.seconds.entry(service).or_insert_with(|| {
                let name = services.name(service).to_string();
                [
                    histogram!("fanfare_delivery_seconds", "service" => name.clone()),
                    histogram!("fanfare_request_seconds", "service" => name),
                ]
            });
            delivery.record(waited);
            request.record(answered.latency_micros as f64 / 1e6);
        }
    }
}

/// What the writer counts for each delivery that ends; looked up once, as [`Answers`].
#[derive(Default)]
pub struct Endings(HashMap<(Service, Ending), Counter>);

impl Endings {
    /// Deliveries have ended.
    pub fn count(&mut self, services: &Services, service: Service, ending: Ending, n: u64) {
        let counter = self.0.entry((service, ending)).or_insert_with(|| {
            let name = services.name(service).to_string();
            counter!("fanfare_deliveries_total", "service" => name, "outcome" => ending.as_str())
        });
        counter.increment(n);
    }
}

/// A delivery waits for another attempt.
pub fn retried(service: &str, reason: &'static str) {
    counter!("fanfare_retries_total", "service" => service.to_owned(), "reason" => reason).increment(1);
}

/// A delivery went back to its lane.
pub fn returned(service: &str, reason: &'static str) {
    counter!("fanfare_returned_total", "service" => service.to_owned(), "reason" => reason).increment(1);
}

/// A synced write.
pub fn wal_sync(took: Duration) {
    histogram!("fanfare_wal_sync_seconds").record(took.as_secs_f64());
}

/// A checkpoint, so long after the one before.
pub fn checkpoint(since: Duration) {
    histogram!("fanfare_checkpoint_interval_seconds").record(since.as_secs_f64());
}

/// A slice was sealed.
pub fn sealed(took: Duration) {
    static SECONDS: OnceLock<Histogram> = OnceLock::new();
    SECONDS.get_or_init(|| histogram!("fanfare_encrypt_seconds")).record(took.as_secs_f64());
}

/// Sets a level with one label.
pub fn level(name: &'static str, label: &'static str, value_of: String, value: f64) {
    gauge!(name, label => value_of).set(value);
}

/// Sets a level without labels.
pub fn plain_level(name: &'static str, value: f64) {
    gauge!(name).set(value);
}

/// Memory and entries of what is made ahead of need, and how often it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarmUsage {
    pub bytes: usize,
    pub secrets: usize,
    pub pairs: usize,
    /// Since the start.
    pub secrets_used: u64,
    pub pairs_used: u64,
}

/// What is made ahead of need, and what of it was used.
pub fn warm(usage: &WarmUsage) {
    plain_level("fanfare_encrypt_warm_bytes", usage.bytes as f64);
    for (kind, entries, used) in [("secret", usage.secrets, usage.secrets_used), ("key_pair", usage.pairs, usage.pairs_used)] {
        level("fanfare_encrypt_warm_entries", "kind", kind.to_owned(), entries as f64);
        counter!("fanfare_encrypt_warm_hits_total", "kind" => kind).absolute(used);
    }
}

/// How much of something bounded each app has, and what is held by none that is known (`""`).
pub fn shares<'a>(of: &'static str, each: impl Iterator<Item = (&'a str, u64)>) {
    for (app, used) in each {
        gauge!("fanfare_share_used", "of" => of, "app" => app.to_owned()).set(used as f64);
    }
}

/// Rows that would not decode, as counted by the store.
pub fn corrupt_rows(total: u64) {
    counter!("fanfare_corrupt_rows_total").absolute(total);
}
