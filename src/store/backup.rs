//! A copy of the store while it is in use, and the way back.
//!
//! A backup is a checkpoint of RocksDB: hard links to files that never change, and copies of the few that do. It holds everything
//! that was on disk when it was asked for. [`ABOUT`] lies in it, written last, and names each file with its size: without it a
//! backup is not whole. The same file tells [`Store::open`] that this store comes from a backup, wherever somebody put it: it
//! starts with everything paused, and with a new identity, because cursors of events that were numbered after the backup must
//! not be taken for those that will get the same numbers.
//!
//! Root reads backups and takes them away in directories that are the daemon's user's. So a backup is read through [`Whole`], which
//! opens each file by its name in its own directory, follows no link, and takes none that somebody else may have linked to; and it
//! consists of nothing but the files that [`ABOUT`] names and RocksDB makes.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use nix::fcntl::{Flock, OFlag, openat};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{ColumnFamilyDescriptor, InfoLogger, LogLevel, Options};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::database::{Db, classify};
use super::family::FORMAT;
use super::open::{make_private, take_lock};
use super::{OpenError, Store, WriteError, family};
use crate::clock;
use crate::limits::BACKUP_NAME_MAX;
use crate::message::{Encoding, KeyId, Name, Reference, UnixMillis};
use crate::printable;
use crate::store::registry::row::{self, App, Detail, Subscription};

/// Backups lie in this directory of `data_dir`.
pub const DIRECTORY: &str = "backups";
/// The file that makes a checkpoint a backup.
pub const ABOUT: &str = "FROM_BACKUP";
/// Bytes of that file: some 70 a file of the store, and a store of a terabyte has 20,000.
pub const ABOUT_MAX: u64 = 16 * 1024 * 1024;

/// A backup that was made.
#[derive(Debug, PartialEq, Eq)]
pub struct Backup {
    pub name: String,
    pub path: PathBuf,
    /// Of all its files. Those that the store still uses take no space a second time.
    pub bytes: u64,
}

/// Why there is no backup.
#[derive(Debug)]
pub enum BackupError {
    /// It is no file name.
    Name,
    /// There is one of this name.
    Exists,
    /// The store is closed just now, the disk is full, or RocksDB cannot.
    Store(WriteError),
    /// The directory cannot be used.
    Directory { path: PathBuf, error: io::Error },
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackupError::Name => {
                write!(f, "must be 1 to {BACKUP_NAME_MAX} letters, digits, dots, hyphens and underscores, no dot first")
            }
            BackupError::Exists => f.write_str("there is a backup of this name"),
            BackupError::Store(WriteError::Full(_)) => f.write_str("there is no space for a backup"),
            BackupError::Store(WriteError::Descriptors(_)) => f.write_str("too many files are open just now"),
            BackupError::Store(WriteError::Closed) => f.write_str("the store is closed just now"),
            BackupError::Store(WriteError::Broken(text)) => write!(f, "the database cannot be copied: {text}"),
            BackupError::Directory { path, error } => write!(f, "cannot use {}: {error}", printable::path(path)),
        }
    }
}

impl std::error::Error for BackupError {}

/// What a backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The program that made it.
    pub version: String,
    pub name: String,
    /// Milliseconds since 1970.
    pub made: u64,
    pub files: Vec<Part>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub bytes: u64,
}

/// Whether a backup may be called so.
pub fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty() && name.len() <= BACKUP_NAME_MAX && !name.starts_with('.') && name.chars().all(good)
}

/// How a backup is called that nobody named: 20261122T034654123Z.
pub fn name_at(now: UnixMillis) -> String {
    let time = crate::protocol::time::format_time(now);
    // Milliseconds keep two of one second apart.
    time.chars().filter(char::is_ascii_alphanumeric).collect()
}

impl Store {
    /// Copies the store as it is on disk now. Takes as long as writing out what is in memory: not for a thread that must not wait.
    pub fn backup(&self, name: &str) -> Result<Backup, BackupError> {
        if !is_name(name) {
            return Err(BackupError::Name);
        }
        let backups = self.path.with_file_name(DIRECTORY);
        let path = backups.join(name);
        let unfinished = backups.join(format!(".{name}.unfinished"));
        let directory = |error| BackupError::Directory { path: path.clone(), error };
        DirBuilder::new().recursive(true).mode(0o700).create(&backups).map_err(directory)?;
        if path.symlink_metadata().is_ok() {
            return Err(BackupError::Exists);
        }
        remove(&unfinished).map_err(directory)?;
        {
            let guard = self.db.read().unwrap_or_else(PoisonError::into_inner);
            let db = guard.as_ref().ok_or(BackupError::Store(WriteError::Closed))?;
            let copied = Checkpoint::new(db).and_then(|checkpoint| checkpoint.create_checkpoint(&unfinished));
            if let Err(error) = copied {
                let _removed = remove(&unfinished);
                return Err(BackupError::Store(classify(&error.into_string())));
            }
        }
        let bytes = complete(&unfinished, name).and_then(|bytes| {
            fs::rename(&unfinished, &path)?;
            sync(&backups)?;
            Ok(bytes)
        });
        match bytes {
            Ok(bytes) => Ok(Backup { name: name.to_owned(), path, bytes }),
            Err(error) => {
                let _removed = remove(&unfinished);
                Err(match classify(&error.to_string()) {
                    again @ (WriteError::Full(_) | WriteError::Descriptors(_)) => BackupError::Store(again),
                    _ => directory(error),
                })
            }
        }
    }

    /// What the backup that this store was opened from says about itself, until [`Store::forget_backup`].
    pub fn from_backup(&self) -> Option<About> {
        about(&self.path).ok()
    }

    /// It has been seen to that nothing goes out twice: from now on it is a store like any other.
    pub fn forget_backup(&self) -> io::Result<()> {
        fs::remove_file(self.path.join(ABOUT))?;
        sync(&self.path)
    }
}

/// Writes [`ABOUT`] and syncs everything; the bytes of all files.
fn complete(directory: &Path, name: &str) -> io::Result<u64> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // What is linked is synced already, which costs nothing a second time.
        sync(&entry.path())?;
        files.push(Part { name: entry.file_name().to_string_lossy().into_owned(), bytes: entry.metadata()?.len() });
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    let bytes = files.iter().map(|file| file.bytes).sum();
    let about = About { version: env!("CARGO_PKG_VERSION").to_owned(), name: name.to_owned(), made: clock::now().0, files };
    let path = directory.join(ABOUT);
    fs::write(&path, serde_json::to_vec_pretty(&about)?)?;
    sync(&path)?;
    sync(directory)?;
    Ok(bytes)
}

fn about(directory: &Path) -> io::Result<About> {
    about_in(&File::open(directory.join(ABOUT))?)
}

fn about_in(file: &File) -> io::Result<About> {
    let mut text = Vec::new();
    file.take(ABOUT_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Why a store is not restored.
#[derive(Debug)]
pub enum RestoreError {
    /// A daemon holds the directory, or it cannot be used.
    Open(OpenError),
    /// There is a store, and nobody said that it may be put aside.
    Exists(PathBuf),
    /// What was given is no whole backup.
    NotABackup(String),
    /// Reading or writing failed.
    Io { path: PathBuf, error: io::Error },
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestoreError::Open(error) => error.fmt(f),
            RestoreError::Exists(path) => write!(f, "there is a store at {}: --replace puts it aside", printable::path(path)),
            // It repeats names that stand in the backup.
            RestoreError::NotABackup(why) => write!(f, "this is no whole backup: {}", printable::line(why)),
            RestoreError::Io { path, error } => write!(f, "{}: {error}", printable::path(path)),
        }
    }
}

impl std::error::Error for RestoreError {}

/// A data directory that no daemon uses, and none can while this lives.
pub struct Vacant {
    data_dir: PathBuf,
    _lock: Flock<File>,
}

/// A store that was put in place.
#[derive(Debug)]
pub struct Restored {
    pub about: About,
    pub path: PathBuf,
    /// Where the old one lies now.
    pub put_aside: Option<PathBuf>,
}

impl Vacant {
    /// Takes the lock of `data_dir`, which is made if it is missing. What is written there is this process's user's: root becomes the
    /// directory's owner first.
    pub fn take(data_dir: &Path) -> Result<Vacant, RestoreError> {
        let failed = |error| RestoreError::Io { path: data_dir.to_owned(), error };
        make_private(data_dir).map_err(failed)?;
        let lock = take_lock(data_dir).map_err(RestoreError::Open)?;
        Ok(Vacant { data_dir: data_dir.to_owned(), _lock: lock })
    }

    /// Puts a backup in place: `fill` writes its files into a directory. Nothing that is there is touched before the new store is
    /// whole and on disk; with `replace` the old one is put aside.
    pub fn restore(&self, replace: bool, fill: impl FnOnce(&Path) -> Result<(), RestoreError>) -> Result<Restored, RestoreError> {
        let path = self.data_dir.join("db");
        let exists = path.symlink_metadata().is_ok();
        if exists && !replace {
            return Err(RestoreError::Exists(path));
        }
        let coming = self.data_dir.join("db.restoring");
        let failed = |error| RestoreError::Io { path: coming.clone(), error };
        remove(&coming).map_err(failed)?;
        DirBuilder::new().mode(0o700).create(&coming).map_err(failed)?;
        let about = fill(&coming).and_then(|()| check(&coming)).inspect_err(|_| {
            let _removed = remove(&coming);
        })?;
        for entry in fs::read_dir(&coming).map_err(failed)? {
            sync(&entry.map_err(failed)?.path()).map_err(failed)?;
        }
        sync(&coming).map_err(failed)?;
        let mut put_aside = None;
        if exists {
            let aside = self.data_dir.join(format!("db.before-restore-{}", name_at(clock::now())));
            fs::rename(&path, &aside).map_err(failed)?;
            put_aside = Some(aside);
        }
        fs::rename(&coming, &path).and_then(|()| sync(&self.data_dir)).map_err(failed)?;
        Ok(Restored { about, path, put_aside })
    }
}

/// The files of a backup's directory, all of them open.
pub struct Whole {
    directory: File,
    about: File,
    parts: Vec<(Part, File)>,
}

impl Whole {
    /// Opens the backup that lies in `directory`. None of its files is larger or smaller than it says, and none is more than it: what
    /// is no backup is refused.
    pub fn open(directory: File) -> Result<Whole, RestoreError> {
        raise_descriptors();
        let not = |why: String| RestoreError::NotABackup(why);
        let about = open_in(&directory, ABOUT)?;
        let files = about_in(&about).map_err(|error| not(format!("{ABOUT}: {error}")))?.files;
        let mut parts = Vec::with_capacity(files.len());
        for part in files {
            if !is_part(&part.name) {
                return Err(not(format!("it names {}, which no backup has", part.name)));
            }
            let file = open_in(&directory, &part.name)?;
            let bytes = file.metadata().map_err(|error| not(format!("{}: {error}", part.name)))?.len();
            if bytes != part.bytes {
                return Err(not(format!("{} has {bytes} bytes instead of {}", part.name, part.bytes)));
            }
            parts.push((part, file));
        }
        Ok(Whole { directory, about, parts })
    }

    /// Name, size and descriptor of each file, [`ABOUT`] last.
    pub fn files(&self) -> io::Result<impl Iterator<Item = (&str, u64, &File)>> {
        let about = (ABOUT, self.about.metadata()?.len(), &self.about);
        Ok(self.parts.iter().map(|(part, file)| (part.name.as_str(), part.bytes, file)).chain([about]))
    }

    /// Copies it into the directory `to`.
    pub fn copy(&self, to: &Path) -> Result<(), RestoreError> {
        let failed = |path: PathBuf| move |error| RestoreError::Io { path, error };
        for (name, bytes, mut from) in self.files().map_err(failed(to.to_owned()))? {
            let path = to.join(name);
            let new = File::options().write(true).create_new(true).mode(0o600).open(&path);
            let copied = new.and_then(|mut new| {
                // The note was read before.
                from.rewind()?;
                io::copy(&mut from.take(bytes), &mut new)
            });
            copied.map_err(failed(path))?;
        }
        Ok(())
    }

    /// Makes the directory `to` a backup of the same files, for reading while this lives: a link there leads to a file that is open
    /// here, whatever its name stands for by now.
    pub fn link(&self, to: &Path) -> Result<(), RestoreError> {
        let failed = |error| RestoreError::Io { path: to.to_owned(), error };
        for (name, _, file) in self.files().map_err(failed)? {
            symlink(format!("/proc/self/fd/{}", file.as_raw_fd()), to.join(name)).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes it from the directory `from`, where it is called `name`: its files, and its directory if nothing else is in it.
    pub fn remove(self, from: &File, name: &str) -> io::Result<()> {
        // Its note first: what is left, should this end here, is no backup.
        for file in [ABOUT].into_iter().chain(self.parts.iter().map(|(part, _)| part.name.as_str())) {
            unlinkat(&self.directory, file, UnlinkatFlags::NoRemoveDir)?;
        }
        unlinkat(from, name, UnlinkatFlags::RemoveDir)?;
        from.sync_all()
    }
}

/// Opens a file by its name in a directory. Not a link; and in a directory of another user's only a file of that user's, because he may
/// have made a hard link to one that he cannot read.
fn open_in(directory: &File, name: &str) -> Result<File, RestoreError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => RestoreError::Io { path: name.into(), error },
        io::ErrorKind::NotFound => RestoreError::NotABackup(format!("{name} is missing")),
        _ => RestoreError::NotABackup(format!("{name}: {error}")),
    };
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(directory, name, flags, Mode::empty()).map(File::from).map_err(|error| failed(error.into()))?;
    let (found, around) = (file.metadata().map_err(failed)?, directory.metadata().map_err(failed)?);
    if !found.is_file() {
        return Err(RestoreError::NotABackup(format!("{name} is no file")));
    }
    let trusted = (around.uid() == 0 || around.uid() == geteuid().as_raw()) && around.mode() & 0o022 == 0;
    if !trusted && found.uid() != around.uid() {
        return Err(RestoreError::NotABackup(format!("{name} does not belong to whom its directory belongs to")));
    }
    Ok(file)
}

/// Every file of a backup is open at once. If the limit cannot be raised, opening them tells.
fn raise_descriptors() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _raised = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Whether a file of a backup may be called so: the names that RocksDB gives, but for its log and its lock.
pub fn is_part(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_digit());
    match name {
        "CURRENT" | "IDENTITY" | ABOUT => true,
        _ => match name.split_once('-') {
            Some(("MANIFEST" | "OPTIONS", rest)) => number(rest),
            _ => matches!(name.split_once('.'), Some((rest, "sst" | "log" | "blob")) if number(rest)),
        },
    }
}

/// Looks whether a backup is whole, and whether this program can open it.
pub fn check(directory: &Path) -> Result<About, RestoreError> {
    let not = |why: String| RestoreError::NotABackup(why);
    let about = about(directory).map_err(|error| not(format!("{ABOUT}: {error}")))?;
    for file in &about.files {
        let found = is_part(&file.name).then(|| directory.join(&file.name).metadata().ok()).flatten();
        match found {
            None => return Err(not(format!("{} is missing", file.name))),
            Some(found) if found.len() != file.bytes => {
                return Err(not(format!("{} has {} bytes instead of {}", file.name, found.len(), file.bytes)));
            }
            Some(_) => {}
        }
    }
    let db = open(directory)?;
    let meta = db.cf_handle(family::META).ok_or_else(|| not("it has no rows about itself".to_owned()))?;
    match db.get_cf(&meta, "format").map_err(|error| not(error.into_string()))? {
        Some(format) if format.first() > Some(&FORMAT) => Err(RestoreError::Open(OpenError::Newer { found: format[0] })),
        Some(_) => Ok(about),
        None => Err(not("it has no format".to_owned())),
    }
}

/// A backup for reading only: nothing in its directory is changed.
fn open(directory: &Path) -> Result<Db, RestoreError> {
    let not = |error: rocksdb::Error| RestoreError::NotABackup(error.into_string());
    let mut options = Options::default();
    // Else it writes a log of its own beside the files.
    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, |_, text| tracing::debug!(text, "RocksDB")));
    options.set_max_open_files(64);
    let families = Db::list_cf(&options, directory).map_err(not)?;
    let families = families.into_iter().map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
    Db::open_cf_descriptors_read_only(&options, directory, families, false).map_err(not)
}

/// The subscriptions and accounts of a backup, each as a line of `export`, to `each`; how many. Of the key that a subscription was
/// made with only a hash lies in a backup: `key_of` tells the key of an app that has it, as base64url.
pub fn registry_rows(
    directory: &Path,
    key_of: &mut dyn FnMut(&str, KeyId) -> Option<String>,
    each: &mut dyn FnMut(&str) -> Result<(), RestoreError>,
) -> Result<u64, RestoreError> {
    let db = open(directory)?;
    rows_of(&db, key_of, each)
}

/// Accounts that are switched off are lines `{"account":…,"app":…,"enabled":false}`, behind the subscriptions: a disabled
/// account takes no new ones.
fn rows_of(
    db: &Db,
    key_of: &mut dyn FnMut(&str, KeyId) -> Option<String>,
    each: &mut dyn FnMut(&str) -> Result<(), RestoreError>,
) -> Result<u64, RestoreError> {
    let not = |error: rocksdb::Error| RestoreError::NotABackup(error.into_string());
    // A backup of a version that had no registry has no subscriptions.
    let rows = |name: &str| db.cf_handle(name).map(|family| db.iterator_cf(&family, rocksdb::IteratorMode::Start));
    let mut apps: HashMap<App, String> = HashMap::new();
    for entry in rows(family::META).into_iter().flatten() {
        let (key, value) = entry.map_err(not)?;
        if let (Some(name), Ok(number)) = (key.strip_prefix(b"app/"), (*value).try_into()) {
            apps.insert(App::from_be_bytes(number), String::from_utf8_lossy(name).into_owned());
        }
    }
    let mut told = 0;
    for entry in rows(family::SUBSCRIPTION).into_iter().flatten() {
        let (key, value) = entry.map_err(not)?;
        let subscription = Subscription::decode(Bytes::from(value.into_vec()));
        let detail = match db.cf_handle(family::DETAIL) {
            Some(details) => db.get_cf(&details, &key).map_err(not)?,
            None => None,
        };
        let detail = detail.map_or_else(|| Ok(Detail::default()), |row| Detail::decode(Bytes::from(row)));
        let (Ok(subscription), Ok(detail)) = (subscription, detail) else {
            tracing::warn!("a subscription of the backup cannot be read and is left out");
            continue;
        };
        if !subscription.gone {
            let app = apps.get(&subscription.app);
            let key = subscription.recipient.key.zip(app).and_then(|(key, app)| key_of(app, key));
            each(&line(&subscription, &detail, app, key).to_string())?;
            told += 1;
        }
    }
    for entry in rows(family::INDEX).into_iter().flatten() {
        let (key, _) = entry.map_err(not)?;
        if key.first() == Some(&2)
            && let Ok((app, account)) = row::disabled_from(&key)
        {
            each(&json!({"account": &*account, "app": apps.get(&app), "enabled": false}).to_string())?;
        }
    }
    Ok(told)
}

/// A subscription as a line of `export`.
fn line(subscription: &Subscription, detail: &Detail, app: Option<&String>, key: Option<String>) -> Value {
    let Subscription { app: _, enabled, gone: _, proven: _, account, scopes, tags, attributes, recipient } = subscription;
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let names = |names: &[Name]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
    let attributes: serde_json::Map<String, Value> =
        attributes.iter().filter_map(|(name, value)| Some((name.to_string(), serde_json::from_str(value).ok()?))).collect();
    let mut own = json!({
        "endpoint": recipient.endpoint.as_str(),
        "expirationTime": recipient.expiration.map(|time| time.0),
        "keys": {"p256dh": encode(&recipient.p256dh), "auth": encode(&recipient.auth)},
    });
    if recipient.encoding == Encoding::Aesgcm {
        own["contentEncoding"] = "aesgcm".into();
    }
    if let Some(key) = key {
        own["applicationServerKey"] = key.into();
    }
    match &recipient.reference {
        None => {}
        Some(Reference::Text(text)) => own["ref"] = text.as_str().into(),
        Some(Reference::Integer(number)) => own["ref"] = (*number).into(),
    }
    json!({
        "subscription": own,
        "app": app,
        "account": account.as_deref(),
        "name": detail.name,
        "user_agent": detail.user_agent,
        "scopes": scopes.as_deref().map(names),
        "tags": names(tags),
        "attributes": attributes,
        "enabled": enabled,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Rows, testing};
    use super::*;
    use crate::message::MessageId;

    fn open_store(data_dir: &Path) -> Store {
        Store::open(data_dir, &testing::settings(), &[]).expect("the directory is writable")
    }

    fn put(store: &Store, value: &str) {
        let mut rows = Rows::new();
        rows.put(&store.reader().expect("open"), family::META, "test", value);
        store.write(rows).expect("written");
    }

    fn value(store: &Store) -> Option<bytes::Bytes> {
        store.reader().expect("open").value(family::META, "test").expect("readable")
    }

    fn whole(backup: &Path) -> Result<Whole, RestoreError> {
        Whole::open(File::open(backup).expect("it is there"))
    }

    fn restore(backup: &Path, data_dir: &Path, replace: bool) -> Result<Restored, RestoreError> {
        Vacant::take(data_dir)?.restore(replace, |to| whole(backup)?.copy(to))
    }

    #[test]
    fn a_backup_holds_what_was_written_and_says_where_it_comes_from() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let (here, there) = (directory.path().join("here"), directory.path().join("there"));
        let store = open_store(&here);
        assert_eq!(store.from_backup(), None);
        put(&store, "before");
        let backup = store.backup("one").expect("a backup");
        put(&store, "after");
        assert!(backup.bytes > 0 && backup.path == here.join("backups/one"));
        assert!(matches!(store.backup("one"), Err(BackupError::Exists)));
        let longest = "x".repeat(BACKUP_NAME_MAX);
        for name in ["", ".", "..", ".hidden", "a/b", "../x", "a b", &format!("{longest}x")] {
            assert!(matches!(store.backup(name), Err(BackupError::Name)), "{name:?}");
        }
        remove(&store.backup(&longest).expect("the longest name is one").path).expect("it is there");
        let left: Vec<_> = fs::read_dir(here.join("backups")).expect("readable").collect();
        assert_eq!(left.len(), 1, "nothing unfinished is left");
        assert!(matches!(restore(&backup.path, &here, true), Err(RestoreError::Open(OpenError::Locked { pid: Some(_) }))));

        restore(&backup.path, &there, false).expect("nothing is there");
        let restored = open_store(&there);
        assert_eq!(value(&restored).as_deref(), Some(&b"before"[..]));
        assert_eq!(restored.from_backup().expect("it comes from one").name, "one");
        assert_ne!(restored.id, store.id, "cursors of the old one are not taken");
        assert_eq!(restored.secret, store.secret);
        let id = MessageId::new(clock::now(), 7, 0, 0);
        assert_eq!(restored.ids.show(id), store.ids.show(id), "an application knows its messages again");
        drop(restored);
        let restored = open_store(&there);
        assert!(restored.from_backup().is_some(), "until it is told");
        let id = restored.id;
        restored.forget_backup().expect("writable");
        put(&restored, "new");
        drop(restored);
        let restored = open_store(&there);
        assert_eq!((restored.from_backup(), restored.id), (None, id));
        assert_eq!(value(&restored).as_deref(), Some(&b"new"[..]));
        assert_eq!(value(&store).as_deref(), Some(&b"after"[..]));
        check(&backup.path).expect("reading it changed nothing");
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_that_is_not_whole_is_put_in_place() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let here = directory.path().join("here");
        let store = open_store(&here);
        put(&store, "old");
        let backup = store.backup("x").expect("a backup").path;
        put(&store, "new");
        drop(store);
        assert!(matches!(restore(&backup, &here, false), Err(RestoreError::Exists(_))));

        let copied = directory.path().join("whole");
        fs::create_dir(&copied).expect("writable");
        whole(&backup).expect("whole").copy(&copied).expect("readable");
        fs::write(backup.join("CURRENT"), "").expect("writable");
        assert!(matches!(restore(&backup, &here, true), Err(RestoreError::NotABackup(_))));
        fs::remove_file(copied.join(ABOUT)).expect("writable");
        assert!(matches!(restore(&copied, &here, true), Err(RestoreError::NotABackup(_))));
        assert_eq!(value(&open_store(&here)).as_deref(), Some(&b"new"[..]), "it is as it was");

        let good = open_store(&here).backup("y").expect("a backup").path;
        let restored = restore(&good, &here, true).expect("nobody holds it");
        let aside = restored.put_aside.expect("there was one");
        assert!(aside.join("CURRENT").exists());
        assert!(aside.file_name().expect("a name").to_string_lossy().starts_with("db.before-restore-2"));
    }

    #[test]
    fn a_backup_is_its_own_files_and_nothing_that_a_link_leads_to() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let secret = directory.path().join("secret");
        let backups = directory.path().join("here/backups");
        let store = open_store(&directory.path().join("here"));
        let made = |name: &str| {
            let path = store.backup(name).expect("a backup").path;
            let about = about(&path).expect("readable");
            assert!(about.files.iter().all(|part| is_part(&part.name)), "{about:?}");
            let part = about.files.iter().find(|part| part.name.starts_with("OPTIONS")).expect("there is one").clone();
            (path, about, part)
        };
        let refused = |path: &Path, why: &str| match whole(path) {
            Err(RestoreError::NotABackup(text)) => assert!(text.contains(why), "{text}"),
            other => panic!("{why}: {:?}", other.err()),
        };
        // A link of the size that is told.
        let (path, _, part) = made("link");
        fs::write(&secret, vec![b'x'; part.bytes as usize]).expect("writable");
        fs::remove_file(path.join(&part.name)).expect("ours");
        symlink(&secret, path.join(&part.name)).expect("writable");
        refused(&path, &part.name);
        // The note itself, which would be quoted where it is no JSON.
        let (path, ..) = made("about");
        fs::remove_file(path.join(ABOUT)).expect("ours");
        symlink(&secret, path.join(ABOUT)).expect("writable");
        refused(&path, ABOUT);
        // A directory, and names of other files.
        let (path, mut about, part) = made("names");
        for name in ["../secret", "/etc/shadow", "a/b", "..", "", "passwd", "1.sst.x", "sst", "LOG", "MANIFEST-x"] {
            about.files[0].name = name.to_owned();
            fs::write(path.join(ABOUT), serde_json::to_vec(&about).expect("JSON")).expect("ours");
            refused(&path, "which no backup has");
        }
        about.files[0] = Part { name: "1.sst".to_owned(), bytes: 4_096 };
        fs::write(path.join(ABOUT), serde_json::to_vec(&about).expect("JSON")).expect("ours");
        fs::create_dir(path.join("1.sst")).expect("writable");
        refused(&path, "is no file");
        // What is opened once stays what it is.
        let (path, ..) = made("good");
        let (whole, linked) = (whole(&path).expect("whole"), directory.path().join("linked"));
        fs::rename(path.join(&part.name), path.join("away")).expect("ours");
        symlink(&secret, path.join(&part.name)).expect("writable");
        fs::create_dir(&linked).expect("writable");
        whole.link(&linked).expect("writable");
        assert_eq!(fs::read(linked.join(&part.name)).expect("readable"), fs::read(path.join("away")).expect("readable"));
        check(&linked).expect("it can be opened");
        // Only its own files go.
        let open = File::open(&backups).expect("ours");
        assert!(whole.remove(&open, "good").is_err(), "there is something else in it");
        let left: Vec<_> = fs::read_dir(&path).expect("there").map(|entry| entry.expect("there").file_name()).collect();
        assert_eq!(left, ["away"]);
        assert!(secret.exists());
    }

    #[test]
    fn a_hard_link_to_another_s_file_is_no_part_of_a_backup() {
        if !geteuid().is_root() {
            println!("SKIPPED: only root has files of several users");
            return;
        }
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let path = open_store(&directory.path().join("here")).backup("x").expect("a backup").path;
        let give = |path: &Path| std::os::unix::fs::chown(path, Some(65_534), None).expect("root may");
        give(&path);
        let Err(RestoreError::NotABackup(why)) = whole(&path) else { panic!("its files are root's") };
        assert!(why.contains("does not belong"), "{why}");
        fs::read_dir(&path).expect("there").for_each(|entry| give(&entry.expect("there").path()));
        whole(&path).expect("all of it is one user's");
    }

    #[test]
    fn the_lock_is_no_link_and_a_data_directory_is_closed_to_others() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let (here, victim) = (directory.path().join("here"), directory.path().join("victim"));
        fs::write(&victim, "precious").expect("writable");
        fs::create_dir(&here).expect("writable");
        fs::set_permissions(&here, std::os::unix::fs::PermissionsExt::from_mode(0o775)).expect("ours");
        symlink(&victim, here.join("lock")).expect("writable");
        assert!(matches!(Vacant::take(&here), Err(RestoreError::Open(OpenError::Directory { .. }))));
        assert_eq!(fs::read_to_string(&victim).expect("there"), "precious");
        assert_eq!(here.metadata().expect("there").mode() & 0o7777, 0o700);
        fs::remove_file(here.join("lock")).expect("ours");
        drop(Vacant::take(&here).expect("ours"));
        assert_eq!(here.join("lock").metadata().expect("there").mode() & 0o7777, 0o600);
    }

    #[test]
    fn names_of_times_sort() {
        assert_eq!(name_at(UnixMillis(1_795_343_400_007)), "20261122T103000007Z");
    }
}
