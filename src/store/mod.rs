//! The only module that knows RocksDB. It promises that what [`writer`] has answered is on disk (fsynced write-ahead log),
//! and that what an outcome changes is written in one synced batch (a checkpoint); see DESIGN 2.1.
//!
//! - [`writer`]: the one thread that writes: group commits and checkpoints.
//! - [`commit`]: what a connection prepares for the writer.
//! - [`load`]: what a worker reads before it seals.
//! - [`read`]: what `status`, `stats`, `list_messages` answer; [`log`]: the event log.
//! - [`shares`]: how much each app may have of a bounded thing.
//! - [`turns`]: the writer's queue, in which sockets take turns.
//! - [`sweep`]: deadlines, retention, space.
//! - [`registry`]: subscriptions, accounts, segments, and walking over them; [`presence`]: who is online.
//! - [`erase`]: erasures that the sweep finishes; [`watch`]: who waits for the results of a `test`.
//! - [`backup`]: a copy of it all, and the way back.
//! - [`live`]: what of all that is in memory.
//! - [`key`], [`record`]: bytes <-> types.

pub mod backup;
pub mod commit;
pub mod erase;
pub mod key;
pub mod live;
pub mod load;
pub mod log;
pub mod presence;
pub mod read;
pub mod record;
pub mod registry;
pub mod run;
pub mod shares;
pub mod sweep;
pub mod turns;
pub mod watch;
pub mod writer;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg, OFlag};
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache, ColumnFamilyDescriptor, CompactionDecision, DBCompressionType, DBRecoveryMode,
    DBWithThreadMode, MultiThreaded, Options, WriteBatch, WriteBufferManager, WriteOptions,
};

use crate::clock;
use crate::complaint::Complaint;
use crate::config;
use crate::ids::{Ids, Since};
use crate::message::{Origin, Service, UnixMillis};
use crate::printable;
use crate::services::Services;
use crate::store::erase::Erasures;
use crate::store::live::{Batches, Lists, Rules, lock};
use crate::store::presence::Presence;
use crate::store::record::{Put, Take};
use crate::store::registry::Registry;

type Db = DBWithThreadMode<MultiThreaded>;

/// So many small changes begin a new manifest for certain.
const MANIFEST_CHANGES: usize = 256;

/// Tables that RocksDB keeps open, where nobody says how many descriptors there are.
const FILES: usize = 512;
/// Descriptors that are held for nothing, and given up when RocksDB finds none: what it needs to be opened again is then there.
pub const SPARE_FILES: usize = 16;

static READ_FAILED: Complaint = Complaint::some();
static ROW_CORRUPT: Complaint = Complaint::some();

/// Version of the whole layout, in the row `format`. A store with a higher one is not opened.
const FORMAT: u8 = 1;

/// Column families, by access pattern. The reason for each option stands where it is set, in `family_options`.
pub mod family {
    /// Small rows about the store itself: rewritten, read at start.
    pub const META: &str = "meta";
    /// Rows of singles: written once, read in order, deleted from the front.
    pub const WORK: &str = "work";
    /// Rows of lists: written once, read in order within their list, deleted from the front of each.
    pub const LIST: &str = "list";
    /// What waits by itself, by time: written, read in order, deleted from the front. `expiry` and `held` are alike.
    pub const DUE: &str = "due";
    pub const EXPIRY: &str = "expiry";
    pub const HELD: &str = "held";
    /// What a status of a single needs: written once, read by point, dropped by range.
    pub const HEAD: &str = "head";
    /// Outcome bytes: rewritten a few times within a second, read by point, dropped by range.
    pub const OUTCOME: &str = "outcome";
    /// Messages of lists: their row, state and counters.
    pub const MESSAGE: &str = "message";
    /// Idempotency keys and topics: looked up by point, mostly in vain, dropped by a compaction filter.
    pub const IDEMPOTENCY: &str = "idempotency";
    pub const TOPIC: &str = "topic";
    /// The event log: appended, read in order, dropped by range.
    pub const EVENTS: &str = "events";
    /// Counters by day: rewritten.
    pub const STATS: &str = "stats";

    /// Subscriptions: what sending needs, read in order by walks and by point. `detail` is the rest, read seldom.
    pub const SUBSCRIPTION: &str = "subscription";
    pub const DETAIL: &str = "detail";
    /// Small rows about the registry, read by point or prefix.
    pub const INDEX: &str = "index";
    /// Who has a tag or accepts a scope: keys only, read in order.
    pub const POSTING: &str = "posting";
    /// Receipts that have come back: written and read by point, dropped by range.
    pub const FEEDBACK: &str = "feedback";

    pub const ALL: [&str; 18] = [
        META,
        WORK,
        LIST,
        DUE,
        EXPIRY,
        HELD,
        HEAD,
        OUTCOME,
        MESSAGE,
        IDEMPOTENCY,
        TOPIC,
        EVENTS,
        STATS,
        SUBSCRIPTION,
        DETAIL,
        INDEX,
        POSTING,
        FEEDBACK,
    ];
}

/// Why the store cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Another instance holds it; its pid if it could be read.
    Locked { pid: Option<u32> },
    /// It was written by a newer Fanfare.
    Newer { found: u8 },
    /// The directory cannot be used.
    Directory { path: PathBuf, error: std::io::Error },
    /// RocksDB says no.
    Database(String),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Locked { pid: Some(pid) } => write!(f, "the store is in use by the process {pid}"),
            OpenError::Locked { pid: None } => f.write_str("the store is in use by another process"),
            OpenError::Newer { found } => {
                write!(f, "the store has format {found}, this program knows formats up to {FORMAT}: start a newer fanfare")
            }
            OpenError::Directory { path, error } => write!(f, "cannot use the directory {}: {error}", printable::path(path)),
            OpenError::Database(text) => write!(f, "cannot open the database: {text}"),
        }
    }
}

/// Why a write failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// No space: the store is closed and opened again until a probe succeeds.
    Full(String),
    /// The process, or the machine, has no descriptor for a file that RocksDB wants to open: closed and opened again likewise. What was
    /// synced before is there; nothing of this write was answered.
    Descriptors(String),
    /// The store is closed just now.
    Closed,
    /// Anything else: what the kernel dropped cannot be known, so the process ends with 74.
    Broken(String),
}

/// A read that failed: the store is closed just now, or RocksDB cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError;

/// Why lines are not taken, or nothing is sent, just now (promises 2 and 7).
#[derive(Debug)]
pub struct Gates {
    /// Free space is below `store.min_free_percent`.
    pub low_space: AtomicBool,
    /// A write failed for lack of space; the store is being reopened.
    pub full: AtomicBool,
    /// The last line of an app was refused for `messages.max_pending`.
    pub max_pending: AtomicBool,
    /// Those apps.
    full_of: Mutex<BTreeSet<Arc<str>>>,
    /// `drain` or SIGTERM: nothing new is taken.
    pub draining: AtomicBool,
    /// Outcomes that are not on disk are more than promise 2 allows.
    pub too_many_unsynced: AtomicBool,
    started: Instant,
    /// When the oldest outcome that is not on disk came, in milliseconds since `started`, plus one; 0: all are.
    unsynced_since: AtomicU64,
    /// A checkpoint that takes longer is late, in milliseconds.
    unsynced_max: u64,
}

impl Gates {
    /// All open; a checkpoint is late when it is overdue by its whole interval.
    pub fn new(checkpoint_interval: Duration) -> Gates {
        Gates {
            low_space: AtomicBool::new(false),
            full: AtomicBool::new(false),
            max_pending: AtomicBool::new(false),
            full_of: Mutex::default(),
            draining: AtomicBool::new(false),
            too_many_unsynced: AtomicBool::new(false),
            started: Instant::now(),
            unsynced_since: AtomicU64::new(0),
            unsynced_max: u64::try_from(checkpoint_interval.as_millis()).unwrap_or(u64::MAX).saturating_mul(2),
        }
    }

    /// Whether the last line of this app was refused for `messages.max_pending`. Set by the writer alone.
    pub(crate) fn set_full_of(&self, app: &Arc<str>, full: bool) {
        // The rule: no app is refused, and no lock is taken for a line.
        if !full && !self.max_pending.load(Ordering::Relaxed) {
            return;
        }
        let mut apps = lock(&self.full_of);
        if full {
            apps.insert(app.clone());
        } else {
            apps.remove(app);
        }
        self.max_pending.store(!apps.is_empty(), Ordering::Relaxed);
    }

    /// Whether the last line of one of these apps was refused for `messages.max_pending`.
    pub fn is_full_of(&self, apps: &[Arc<str>]) -> bool {
        self.max_pending.load(Ordering::Relaxed) && {
            let full = lock(&self.full_of);
            apps.iter().any(|app| full.contains(app))
        }
    }

    /// Whether a worker may start something new.
    pub fn may_send(&self) -> bool {
        !self.full.load(Ordering::Relaxed) && !self.checkpoint_late()
    }

    /// Whether outcomes that are not on disk are more, or older, than they may be. Told by the clock, so that it holds while
    /// the writer is waiting for the disk.
    pub fn checkpoint_late(&self) -> bool {
        self.too_many_unsynced.load(Ordering::Relaxed) || self.unsynced_for().as_millis() > u128::from(self.unsynced_max)
    }

    /// How long the oldest outcome that is not on disk has been waiting.
    pub fn unsynced_for(&self) -> Duration {
        match self.unsynced_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.started.elapsed().saturating_sub(Duration::from_millis(since - 1)),
        }
    }

    /// The oldest outcome that is not on disk came then; None: all are.
    pub(crate) fn set_unsynced(&self, since: Option<Instant>) {
        let millis = |since: Instant| u64::try_from(since.duration_since(self.started).as_millis()).unwrap_or(u64::MAX - 1) + 1;
        self.unsynced_since.store(since.map_or(0, millis), Ordering::Relaxed);
    }
}

/// The open store, shared by all who read it.
pub struct Store {
    db: RwLock<Option<Db>>,
    settings: config::Store,
    path: PathBuf,
    /// Tables that RocksDB keeps open.
    files: usize,
    reserve: PathBuf,
    /// See [`SPARE_FILES`].
    spare: Mutex<Vec<fs::File>>,
    _lock: Flock<fs::File>,
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
    failing: Mutex<Option<testing::Failing>>,
    /// Keys that the writer has walked over to know what belongs together.
    #[cfg(test)]
    walked: std::sync::atomic::AtomicUsize,
}

/// The database for the time of some reads. Dropped before anything that waits.
pub struct Reader<'a>(RwLockReadGuard<'a, Option<Db>>);

impl Reader<'_> {
    fn db(&self) -> &Db {
        self.0.as_ref().expect("a Reader is only made of an open database")
    }

    fn family(&self, name: &str) -> Arc<BoundColumnFamily<'_>> {
        self.db().cf_handle(name).expect("every family is opened with the database")
    }

    /// A row's value.
    pub fn value(&self, family: &str, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, ReadError> {
        match self.db().get_cf(&self.family(family), key) {
            Ok(value) => Ok(value.map(Bytes::from)),
            Err(error) => {
                if let Some(left_out) = READ_FAILED.tell() {
                    tracing::error!(family, %error, left_out, "read failed");
                }
                Err(ReadError)
            }
        }
    }

    /// Rows from `start` (included) to `end` (not included), in order, to `each` until it says false.
    pub fn scan(&self, family: &str, start: &[u8], end: &[u8], each: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), ReadError> {
        self.scan_with(rocksdb::ReadOptions::default(), family, start, end, each)
    }

    /// As [`Reader::scan`], of rows that nobody is going to read again soon: they do not push others out of the cache.
    pub fn pass_over(
        &self,
        family: &str,
        start: &[u8],
        end: &[u8],
        each: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        let mut options = rocksdb::ReadOptions::default();
        options.fill_cache(false);
        self.scan_with(options, family, start, end, each)
    }

    fn scan_with(
        &self,
        mut options: rocksdb::ReadOptions,
        family: &str,
        start: &[u8],
        end: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
        let mut rows = self.db().raw_iterator_cf_opt(&self.family(family), options);
        rows.seek_to_first();
        while let (Some(key), Some(value)) = (rows.key(), rows.value()) {
            if !each(key, value) {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| {
            if let Some(left_out) = READ_FAILED.tell() {
                tracing::error!(family, %error, left_out, "scan failed");
            }
            ReadError
        })
    }

    /// The last row whose key is at most `key` and not below `floor`.
    pub fn last_at_most(&self, family: &str, key: &[u8], floor: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, ReadError> {
        let mut options = rocksdb::ReadOptions::default();
        options.set_iterate_lower_bound(floor);
        let mut rows = self.db().raw_iterator_cf_opt(&self.family(family), options);
        rows.seek_for_prev(key);
        let found = match (rows.key(), rows.value()) {
            (Some(key), Some(value)) => Some((key.to_vec(), Bytes::copy_from_slice(value))),
            _ => None,
        };
        rows.status().map_err(|_| ReadError)?;
        Ok(found)
    }

    /// Rows of a family from `end` downwards to `floor`, newest first, to `each` until it says false.
    pub fn scan_back(
        &self,
        family: &str,
        floor: &[u8],
        end: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        let mut options = rocksdb::ReadOptions::default();
        options.set_iterate_lower_bound(floor);
        options.set_iterate_upper_bound(end);
        let mut rows = self.db().raw_iterator_cf_opt(&self.family(family), options);
        rows.seek_to_last();
        while let (Some(key), Some(value)) = (rows.key(), rows.value()) {
            if !each(key, value) {
                return Ok(());
            }
            rows.prev();
        }
        rows.status().map_err(|_| ReadError)
    }

    /// An integer property of a family, 0 where RocksDB has none.
    pub fn property(&self, family: &str, name: &str) -> u64 {
        self.db().property_int_value_cf(&self.family(family), name).ok().flatten().unwrap_or(0)
    }
}

/// Rows to be written together.
pub struct Rows {
    batch: WriteBatch,
}

impl Rows {
    /// None yet.
    pub fn new() -> Rows {
        Rows { batch: WriteBatch::default() }
    }

    pub fn put(&mut self, reader: &Reader<'_>, family: &str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.batch.put_cf(&reader.family(family), key, value);
    }

    pub fn delete(&mut self, reader: &Reader<'_>, family: &str, key: impl AsRef<[u8]>) {
        self.batch.delete_cf(&reader.family(family), key);
    }

    pub fn delete_range(&mut self, reader: &Reader<'_>, family: &str, from: &[u8], to: &[u8]) {
        self.batch.delete_range_cf(&reader.family(family), from, to);
    }

    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Bytes so far.
    pub fn size(&self) -> usize {
        self.batch.size_in_bytes()
    }
}

impl Default for Rows {
    fn default() -> Rows {
        Rows::new()
    }
}

impl Store {
    /// Opens the store in `data_dir`, or makes it. `allowed` are the entries of `endpoints.allow_hosts` as text: each gets a
    /// service number that it keeps.
    pub fn open(data_dir: &Path, settings: &config::Store, allowed: &[String]) -> Result<Store, OpenError> {
        Store::open_with(data_dir, settings, allowed, FILES)
    }

    /// As [`Store::open`]; RocksDB keeps at most so many of its tables open.
    pub fn open_with(data_dir: &Path, settings: &config::Store, allowed: &[String], files: usize) -> Result<Store, OpenError> {
        let directory = |error| OpenError::Directory { path: data_dir.to_owned(), error };
        make_private(data_dir).map_err(directory)?;
        let lock_file = take_lock(data_dir)?;
        let path = data_dir.join("db");
        let reserve = data_dir.join("reserve");
        let db = open_database(&path, settings, files).map_err(OpenError::Database)?;
        let mut store = Store {
            db: RwLock::new(Some(db)),
            settings: settings.clone(),
            path,
            files,
            reserve,
            spare: Mutex::default(),
            _lock: lock_file,
            batches: Batches::new(settings.fresh_mb << 20),
            lists: Lists::default(),
            rules: Rules::default(),
            registry: Registry::default(),
            presence: Mutex::new(Presence::new(0)),
            erasures: Erasures::default(),
            gates: Gates::new(settings.checkpoint_interval),
            services: Services::default(),
            id: [0; 8],
            ids: Ids::new(&[0; 32], Since::default()),
            secret: [0; 32],
            pending: AtomicU64::new(0),
            written: AtomicU64::new(0),
            events_end: tokio::sync::watch::Sender::new(0),
            log: log::Log::default(),
            last_written: None,
            corrupt_rows: AtomicU64::new(0),
            #[cfg(test)]
            failing: Mutex::default(),
            #[cfg(test)]
            walked: Default::default(),
        };
        store.read_meta(allowed)?;
        store.read_registry().map_err(|ReadError| OpenError::Database("the registry cannot be read".to_owned()))?;
        store.restore_reserve();
        store.restore_spare();
        Ok(store)
    }

    fn read_meta(&mut self, allowed: &[String]) -> Result<(), OpenError> {
        let failed = |error: &str| OpenError::Database(error.to_owned());
        let mut rows = Rows::new();
        let (mut id, mut secret) = (self.id, self.secret);
        let (last_written, since);
        {
            let reader = self.reader().map_err(|_| failed("closed"))?;
            let meta = |key: &str| reader.value(family::META, key).map_err(|_| failed("the meta rows cannot be read"));
            match meta("format")? {
                Some(format) if format.first() > Some(&FORMAT) => return Err(OpenError::Newer { found: format[0] }),
                Some(_) => {}
                None => rows.put(&reader, family::META, "format", [FORMAT]),
            }
            match meta("identity")? {
                Some(bytes) if bytes.len() == 40 => {
                    id.copy_from_slice(&bytes[..8]);
                    secret.copy_from_slice(&bytes[8..]);
                    if self.from_backup().is_some() {
                        // Events will get numbers that cursors name already: such a cursor is now one of another store.
                        aws_lc_rs::rand::fill(&mut id).map_err(|_| failed("no random numbers"))?;
                        rows.put(&reader, family::META, "identity", [&id[..], &secret[..]].concat());
                    }
                }
                Some(_) => return Err(failed("the row `identity` is damaged")),
                None => {
                    let mut fresh = [0; 40];
                    aws_lc_rs::rand::fill(&mut fresh).map_err(|_| failed("no random numbers"))?;
                    id.copy_from_slice(&fresh[..8]);
                    secret.copy_from_slice(&fresh[8..]);
                    rows.put(&reader, family::META, "identity", fresh);
                }
            }
            let last = meta("last")?.map(|row| LastCommit::decode(row).map_err(|_| failed("the row `last` is damaged")));
            let last = last.transpose()?;
            since = match meta("opaque_since")? {
                Some(row) => decode_since(row).map_err(|_| failed("the row `opaque_since` is damaged"))?,
                None => {
                    let event = meta("events_end")?.map_or(Ok(0), |row| Take::new(row).u64());
                    let event = event.map_err(|_| failed("the row `events_end` is damaged"))?;
                    let since = Since { commit: last.as_ref().map_or(0, |last| last.commit + 1), event };
                    rows.put(&reader, family::META, "opaque_since", encode_since(since));
                    since
                }
            };
            last_written = last.map(|last| last.written);
            let mut names: Vec<(Service, Arc<str>)> =
                ["other", "fcm", "mozilla", "apple", "wns"].into_iter().map(Arc::from).enumerate().map(numbered).collect();
            reader
                .scan(family::META, b"service/", b"service0", |key, value| {
                    if let (Ok(number), Ok(name)) = (value.try_into(), std::str::from_utf8(&key[8..])) {
                        names.push((Service(u16::from_be_bytes(number)), Arc::from(name)));
                    }
                    true
                })
                .map_err(|_| failed("the services cannot be read"))?;
            for name in allowed {
                if !names.iter().any(|(service, known)| **known == **name && *service >= Service::FIRST_ALLOWED) {
                    let last = names.iter().map(|(service, _)| service.0).max().unwrap_or(0);
                    let next = Service(last.max(Service::FIRST_ALLOWED.0 - 1) + 1);
                    rows.put(&reader, family::META, format!("service/{name}"), next.0.to_be_bytes());
                    names.push((next, Arc::from(name.as_str())));
                }
            }
            self.services.name_all(names);
            reader
                .scan(family::META, b"origin/", b"origin0", |key, _| {
                    if let (Some(number), Some(Ok(origin))) = (key.get(7..9), key.get(9..).map(std::str::from_utf8)) {
                        let service = Service(u16::from_be_bytes(number.try_into().expect("two bytes")));
                        self.services.learn(service, Origin(Arc::from(origin)));
                    }
                    true
                })
                .map_err(|_| failed("the origins cannot be read"))?;
        }
        self.write(rows).map_err(|error| failed(&format!("{error:?}")))?;
        (self.id, self.secret, self.last_written) = (id, secret, last_written);
        self.ids = Ids::new(&self.keyed_hash(b"ids"), since);
        Ok(())
    }

    /// The service number of an entry of `endpoints.allow_hosts`.
    pub fn service_of(&self, allowed: &str) -> Option<Service> {
        self.services.of_allowed(allowed)
    }

    /// The database, for the time of some reads.
    pub fn reader(&self) -> Result<Reader<'_>, ReadError> {
        let guard = self.db.read().unwrap_or_else(PoisonError::into_inner);
        if guard.is_some() { Ok(Reader(guard)) } else { Err(ReadError) }
    }

    /// Writes rows and returns when the write-ahead log that holds them is synced.
    pub fn write(&self, rows: Rows) -> Result<(), WriteError> {
        let guard = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = guard.as_ref() else { return Err(WriteError::Closed) };
        #[cfg(test)]
        if let Some(failing) = *lock(&self.failing) {
            if failing == testing::Failing::Written {
                db.write(rows.batch).expect("there is space");
            }
            return Err(WriteError::Full("as the test says".to_owned()));
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        db.write_opt(rows.batch, &options).map_err(|error| classify(&error.into_string()))
    }

    /// Closes the database and opens it again; Ok when a synced probe succeeded. Gives up the reserve file and the spare descriptors
    /// first, so that RocksDB can write what recovery needs.
    pub fn reopen(&self) -> Result<(), WriteError> {
        if let Err(error) = fs::remove_file(&self.reserve)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the reserve file cannot be given up");
        }
        lock(&self.spare).clear();
        let mut guard = self.db.write().unwrap_or_else(PoisonError::into_inner);
        *guard = None;
        let db = open_database(&self.path, &self.settings, self.files).map_err(|text| classify(&text))?;
        *guard = Some(db);
        drop(guard);
        let mut rows = Rows::new();
        {
            let reader = self.reader().map_err(|_| WriteError::Closed)?;
            rows.put(&reader, family::META, "probe", clock::now().0.to_be_bytes());
        }
        self.write(rows)?;
        self.restore_reserve();
        self.restore_spare();
        Ok(())
    }

    /// Takes spare descriptors again, as many as there are.
    fn restore_spare(&self) {
        let mut spare = lock(&self.spare);
        while spare.len() < SPARE_FILES
            && let Ok(file) = fs::File::open("/dev/null")
        {
            spare.push(file);
        }
    }

    /// Writes everything out and compacts it: what was deleted is not in any file after this. Takes as long as copying the store.
    pub fn compact(&self) -> Result<(), ReadError> {
        let reader = self.reader()?;
        for name in family::ALL {
            let family = reader.family(name);
            reader.db().flush_cf(&family).map_err(|_| ReadError)?;
            let mut options = rocksdb::CompactOptions::default();
            options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
            reader.db().compact_range_cf_opt(&family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        // The manifest still names the keys that the old files began and ended with, until a new one is begun.
        let manifest = || fs::read(self.path.join("CURRENT")).unwrap_or_default();
        let before = manifest();
        let meta = reader.family(family::META);
        for _ in 0..MANIFEST_CHANGES {
            let changed = reader.db().put_cf(&meta, "probe", clock::now().0.to_be_bytes());
            changed.and_then(|()| reader.db().flush_cf(&meta)).map_err(|_| ReadError)?;
            if manifest() != before {
                break;
            }
        }
        Ok(())
    }

    /// Closes the database in order, at the end.
    pub fn close(&self) {
        let mut guard = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = guard.take() {
            db.cancel_all_background_work(true);
        }
    }

    /// Makes the reserve file where there is room for it; it is given up when a checkpoint finds no space.
    fn restore_reserve(&self) {
        let bytes = self.settings.reserve_mb << 20;
        if fs::metadata(&self.reserve).is_ok_and(|file| file.len() == bytes) {
            return;
        }
        let made = fs::File::create(&self.reserve).and_then(|file| {
            let len = i64::try_from(bytes).unwrap_or(i64::MAX);
            nix::fcntl::posix_fallocate(&file, 0, len).map_err(std::io::Error::from)
        });
        if let Err(error) = made {
            tracing::warn!(%error, "no room for the reserve file");
            let _gone = fs::remove_file(&self.reserve);
        }
    }

    /// Share of the file system that is free, in percent.
    pub fn free_percent(&self) -> Option<f64> {
        let stat = nix::sys::statvfs::statvfs(&self.path).ok()?;
        Some(stat.blocks_available() as f64 * 100.0 / (stat.blocks().max(1)) as f64)
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

fn numbered((number, name): (usize, Arc<str>)) -> (Service, Arc<str>) {
    (Service(u16::try_from(number).expect("five services")), name)
}

/// Makes the data directory, or closes it to everybody else: what lies in it tells endpoints and keys of browsers.
fn make_private(data_dir: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(data_dir)?;
    let directory = fs::File::open(data_dir)?;
    let mode = directory.metadata()?.mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    match directory.set_permissions(fs::Permissions::from_mode(0o700)) {
        Ok(()) => tracing::warn!("the data directory was open to others (mode {mode:04o}): its mode is 0700 now"),
        // It belongs to another user, who has let our group in.
        Err(_) if mode & 0o007 == 0 => {}
        Err(error) => {
            let text = format!("it is open to others (mode {mode:04o}), and its mode cannot be made 0700: {error}");
            return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, text));
        }
    }
    Ok(())
}

/// Takes the lock on the directory and writes our pid into it, so that a second instance can name us. A link of that name is not
/// followed: root takes it, too, in a directory that is another's.
fn take_lock(data_dir: &Path) -> Result<Flock<fs::File>, OpenError> {
    let path = data_dir.join("lock");
    let directory = |error| OpenError::Directory { path: path.clone(), error };
    let mut options = fs::File::options();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
    let mut file = options.open(&path).map_err(directory)?;
    if !file.metadata().map_err(directory)?.is_file() {
        return Err(directory(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is no file")));
    }
    let mut text = String::new();
    let _unreadable = (&mut file).take(64).read_to_string(&mut text);
    let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(OpenError::Locked { pid: text.trim().parse().ok() }),
        Err((_, errno)) => return Err(directory(errno.into())),
    };
    let write = |lock: &mut Flock<fs::File>| {
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())
    };
    write(&mut lock).map_err(directory)?;
    Ok(lock)
}

/// Sorts RocksDB's words: the binding keeps no more of a status than its text. `strerror` of ENOSPC, EDQUOT, EMFILE and ENFILE stands
/// in it.
fn classify(text: &str) -> WriteError {
    if text.contains("No space left on device") || text.contains("Disk quota exceeded") || text.contains("Max allowed space") {
        WriteError::Full(text.to_owned())
    } else if text.contains("Too many open files") {
        WriteError::Descriptors(text.to_owned())
    } else {
        WriteError::Broken(text.to_owned())
    }
}

fn open_database(path: &Path, settings: &config::Store, files: usize) -> Result<Db, String> {
    let memory = settings.cache_mb << 20;
    let cache = Cache::new_lru_cache(memory);
    // cache_mb includes the write buffers: they are charged to the block cache, at most half of it.
    let buffers = WriteBufferManager::new_write_buffer_manager_with_cache(memory / 2, false, cache.clone());
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_write_buffer_manager(&buffers);
    // Bounds what a start has to replay. With the 128 MiB of DESIGN 2.1 and singles committed one by one that alone took more
    // than the second that a start may take (`fanfare-load restart --connections 1 --window 1`).
    options.set_max_total_wal_size(64 << 20);
    // What was answered was synced, so it lies before the first torn record: reading ends there. (Refusing to start because of
    // blocks that reached the disk out of order behind it would help nobody.)
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_background_jobs(2);
    options.set_max_open_files(i32::try_from(files).unwrap_or(i32::MAX));
    // A start opens no file that it does not need.
    options.set_skip_stats_update_on_db_open(true);
    options.set_bytes_per_sync(1 << 20);
    // The manifest names the first and last key of every file that there was since it was begun: a new one is begun with each
    // change, so that what was erased is not named for longer than its file lives.
    options.set_max_manifest_file_size(1_024);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options.set_stats_dump_period_sec(0);
    // One writer thread: the parallel memtable insertion and its spinning are for many.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_write_thread_adaptive_yield(false);
    let families = family::ALL.map(|name| ColumnFamilyDescriptor::new(name, family_options(name, &cache)));
    Db::open_cf_descriptors(&options, path, families).map_err(rocksdb::Error::into_string)
}

fn family_options(name: &str, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // Index and filter blocks count as memory too (promise 6).
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    match name {
        // Read in order and deleted from the front: without this a scan walks over what is long gone.
        family::WORK | family::LIST | family::DUE | family::EXPIRY | family::HELD => {
            options.set_write_buffer_size(32 << 20);
            options.add_compact_on_deletion_collector_factory(4_096, 2_048, 0.5);
            table.set_block_size(16 << 10);
        }
        // Looked up by point, mostly in vain: ten bits a key answer that from memory.
        family::IDEMPOTENCY | family::TOPIC => {
            options.set_write_buffer_size(16 << 20);
            table.set_bloom_filter(10.0, false);
            options.set_memtable_whole_key_filtering(true);
            options.set_memtable_prefix_bloom_ratio(0.1);
            // Their values begin with the time after which they mean nothing.
            options.set_compaction_filter(c"past_its_time", |_level, _key, value| {
                match value.get(..8).map(|field| u64::from_be_bytes(field.try_into().expect("eight bytes"))) {
                    Some(until) if UnixMillis(until) < clock::now() => CompactionDecision::Remove,
                    _ => CompactionDecision::Keep,
                }
            });
            options.set_periodic_compaction_seconds(24 * 60 * 60);
        }
        // A walk reads them in order; endpoints and keys do not compress, what they have in common does.
        family::SUBSCRIPTION => {
            options.set_write_buffer_size(32 << 20);
            table.set_block_size(16 << 10);
            table.set_bloom_filter(10.0, false);
        }
        // Looked up for each `subscribe`, in vain if it is new.
        family::INDEX | family::DETAIL | family::POSTING => {
            options.set_write_buffer_size(16 << 20);
            table.set_bloom_filter(10.0, false);
        }
        family::HEAD | family::OUTCOME => {
            options.set_write_buffer_size(16 << 20);
            table.set_bloom_filter(10.0, false);
        }
        // Text that repeats itself, read seldom: the better compression pays.
        family::EVENTS => {
            options.set_write_buffer_size(8 << 20);
            options.set_compression_type(DBCompressionType::Zstd);
        }
        _ => options.set_write_buffer_size(4 << 20),
    }
    options.set_block_based_table_factory(&table);
    options
}

/// The row `last`, written with every batch: so that one small row a commit is enough.
struct LastCommit {
    /// The number of the last commit.
    commit: u64,
    /// When it was made.
    written: UnixMillis,
    /// Deliveries that have not ended, as of the outcomes that are on disk.
    pending: u64,
    /// How many of them are each app's. Rows of 0.1 end before it.
    apps: Vec<(Arc<str>, u64)>,
}

impl LastCommit {
    fn encode(&self) -> Vec<u8> {
        let mut put = Put::versioned();
        put.u64(self.commit).u64(self.written.0).u64(self.pending);
        for (app, pending) in &self.apps {
            put.short(app.as_bytes()).u64(*pending);
        }
        put.0
    }

    fn decode(row: Bytes) -> Result<LastCommit, record::Corrupt> {
        let mut take = Take::versioned(row)?;
        let (commit, written, pending) = (take.u64()?, UnixMillis(take.u64()?), take.u64()?);
        let mut apps = Vec::new();
        while !take.at_end() {
            apps.push((take.str()?, take.u64()?));
        }
        Ok(LastCommit { commit, written, pending, apps })
    }
}

/// The row `opaque_since`, written once: by the first start with opaque ids. A store that is made by it has nothing that is older.
fn encode_since(since: Since) -> Vec<u8> {
    let mut put = Put::versioned();
    put.u64(since.commit).u64(since.event);
    put.0
}

fn decode_since(row: Bytes) -> Result<Since, record::Corrupt> {
    let mut take = Take::versioned(row)?;
    Ok(Since { commit: take.u64()?, event: take.u64()? })
}

/// A value of one number.
fn number(value: u64) -> Vec<u8> {
    let mut put = Put::default();
    put.u64(value);
    put.0
}

/// Locks the state of a list: see [`live::lock`].
pub fn list_state(list: &live::List) -> std::sync::MutexGuard<'_, live::ListState> {
    lock(&list.state)
}

#[cfg(test)]
mod bounds;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod model;

/// Serves tests that need a store of their own.
#[cfg(test)]
pub mod testing {
    use super::*;

    /// A disk without space.
    #[derive(Clone, Copy, PartialEq)]
    pub enum Failing {
        /// Nothing is written.
        Unwritten,
        /// Only the sync fails: it is there after all.
        Written,
    }

    impl Store {
        /// How writes fail from now on.
        pub fn fail(&self, how: Option<Failing>) {
            *lock(&self.failing) = how;
        }
    }

    /// Small and with short checkpoints.
    pub fn settings() -> config::Store {
        config::Store {
            checkpoint_interval: std::time::Duration::from_millis(250),
            cache_mb: 16,
            min_free_percent: 0.0,
            reserve_mb: 1,
            fresh_mb: 1,
        }
    }
}
