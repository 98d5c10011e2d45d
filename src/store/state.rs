//! The open store: the database, and all that is kept in memory beside it.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

use nix::fcntl::Flock;

use crate::complaint::Complaint;
use crate::config;
use crate::ids::Ids;
use crate::message::{Service, UnixMillis};
use crate::services::Services;
use crate::store::database::Db;
use crate::store::erase::Erasures;
use crate::store::gates::Gates;
use crate::store::live::{Batches, Lists, Rules};
use crate::store::log;
use crate::store::presence::Presence;
use crate::store::registry::Registry;
#[cfg(test)]
use crate::store::testing;

static ROW_CORRUPT: Complaint = Complaint::some();

/// The open store, shared by all who read it.
pub struct Store {
    pub(super) db: RwLock<Option<Db>>,
    pub(super) settings: config::Store,
    pub(super) path: PathBuf,
    /// Tables that RocksDB keeps open.
    pub(super) files: usize,
    pub(super) reserve: PathBuf,
    /// See [`SPARE_FILES`](super::SPARE_FILES).
    pub(super) spare: Mutex<Vec<fs::File>>,
    pub(super) _lock: Flock<fs::File>,
    pub batches: Batches,
    pub lists: Lists,
    pub rules: Rules,
    pub registry: Registry,
    /// Changed by the writer, asked by the workers.
    pub presence: Mutex<Presence>,
    /// Erasures that the sweep has still to finish.
    pub erasures: Erasures,
    pub gates: Gates,
    /// Which push services this store knows, and by which number.
    pub services: Services,
    /// Names this store in cursors; random, made with it.
    pub id: [u8; 8],
    /// Shows and reads message ids and cursors.
    pub ids: Ids,
    /// Keys the hash that goes out as `Topic`, and the hash that logs show.
    pub secret: [u8; 32],
    /// Deliveries that have not ended.
    pub pending: AtomicU64,
    /// The number of the last commit that is on disk.
    pub written: AtomicU64,
    /// The next event's number, as far as checkpoints are synced.
    pub events_end: tokio::sync::watch::Sender<u64>,
    /// What is known of the event log without reading it.
    pub log: log::Log,
    /// When this store was last written before this start, if ever.
    pub last_written: Option<UnixMillis>,
    /// Rows that would not decode.
    pub corrupt_rows: AtomicU64,
    /// Makes the next writes fail.
    #[cfg(test)]
    pub(super) failing: Mutex<Option<testing::Failing>>,
    /// Keys that the writer has walked over to know what belongs together.
    #[cfg(test)]
    pub(super) walked: std::sync::atomic::AtomicUsize,
}

impl Store {
    /// The service number of an entry of `endpoints.allow_hosts`.
    pub fn service_of(&self, allowed: &str) -> Option<Service> {
        self.services.of_allowed(allowed)
    }

    /// Counts a row that would not decode.
    pub fn corrupt(&self, family: &str) {
        self.corrupt_rows.fetch_add(1, Ordering::Relaxed);
        if let Some(left_out) = ROW_CORRUPT.tell() {
            tracing::error!(family, left_out, "a row will not decode; it is set aside");
        }
    }

    /// A short keyed hash of what must not be shown.
    pub fn keyed_hash(&self, what: &[u8]) -> [u8; 32] {
        use hmac::{KeyInit, Mac};
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        mac.update(what);
        mac.finalize().into_bytes().into()
    }
}
