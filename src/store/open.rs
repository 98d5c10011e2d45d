//! Opening the store: the data directory, its lock, and the rows that say what the store is.

use std::fs::{self, DirBuilder};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::config;
use crate::ids::{Ids, Since};
use crate::message::{Origin, Service, UnixMillis};
use crate::services::Services;
use crate::store::database::open_database;
use crate::store::erase::Erasures;
use crate::store::family::FORMAT;
use crate::store::live::{Batches, Lists, Rules};
use crate::store::presence::Presence;
use crate::store::record::{self, Put, Take};
use crate::store::registry::Registry;
use crate::store::{Gates, OpenError, ReadError, Rows, Store, family, log};

/// Tables that RocksDB keeps open, where nobody says how many descriptors there are.
const FILES: usize = 512;

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
        self.write(rows).map_err(|error| failed(&error.to_string()))?;
        (self.id, self.secret, self.last_written) = (id, secret, last_written);
        self.ids = Ids::new(&self.keyed_hash(b"ids"), since);
        Ok(())
    }
}

fn numbered((number, name): (usize, Arc<str>)) -> (Service, Arc<str>) {
    (Service(u16::try_from(number).expect("five services")), name)
}

/// Makes the data directory, or closes it to everybody else: what lies in it tells endpoints and keys of browsers.
pub(super) fn make_private(data_dir: &Path) -> std::io::Result<()> {
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
pub(super) fn take_lock(data_dir: &Path) -> Result<Flock<fs::File>, OpenError> {
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

/// The row `last`, written with every batch: so that one small row a commit is enough.
pub(super) struct LastCommit {
    /// The number of the last commit.
    pub(super) commit: u64,
    /// When it was made.
    pub(super) written: UnixMillis,
    /// Deliveries that have not ended, as of the outcomes that are on disk.
    pub(super) pending: u64,
    /// How many of them are each app's. Rows of 0.1 end before it.
    pub(super) apps: Vec<(Arc<str>, u64)>,
}

impl LastCommit {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut put = Put::versioned();
        put.u64(self.commit).u64(self.written.0).u64(self.pending);
        for (app, pending) in &self.apps {
            put.short(app.as_bytes()).u64(*pending);
        }
        put.0
    }

    pub(super) fn decode(row: Bytes) -> Result<LastCommit, record::Corrupt> {
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
pub(super) fn encode_since(since: Since) -> Vec<u8> {
    let mut put = Put::versioned();
    put.u64(since.commit).u64(since.event);
    put.0
}

fn decode_since(row: Bytes) -> Result<Since, record::Corrupt> {
    let mut take = Take::versioned(row)?;
    Ok(Since { commit: take.u64()?, event: take.u64()? })
}
