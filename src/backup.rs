//! `fanfare backup` and `fanfare restore`.
//!
//! The daemon makes the copy, in its own directory; `--to` moves it out as one tar archive, of which RocksDB's files are compressed
//! already. `restore` needs no daemon: it puts a backup into a data directory that nobody uses, and the daemon that starts on it has
//! everything paused. `restore --registry` needs one: it hands in the subscriptions, and no message.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, User, geteuid, setgroups, setresgid, setresuid};
use serde_json::{Map, Value, json};
use tar::{Archive, EntryType};

use crate::client::arguments::bulk::Format;
use crate::client::arguments::{Backup, Import, Restore};
use crate::client::connection::{Connection, Reply, user_name};
use crate::client::export::Target;
use crate::client::import;
use crate::client::output::{Output, note};
use crate::client::send::{is_dash, style};
use crate::exit::{Exit, Failure};
use crate::message::{KeyId, UnixMillis};
use crate::printable;
use crate::protocol::keys::{decode_point, key_id};
use crate::protocol::time::format_time;
use crate::store::OpenError;
use crate::store::backup::{self, ABOUT, RestoreError, Vacant, Whole};

/// Bytes of an extended header that is passed over in an archive.
const EXTENSION_MAX: u64 = 64 * 1024;

/// Has a backup made, and with `--to` takes it out: out of the backups of the configured `data_dir`, and of nowhere else.
pub fn backup(
    socket: &Path,
    data_dir: &dyn Fn() -> Result<PathBuf, Failure>,
    output: &mut Output,
    arguments: &Backup,
) -> Result<(), Failure> {
    let mut request = Map::new();
    request.insert("op".to_owned(), "backup".into());
    if let Some(name) = &arguments.name {
        request.insert("name".to_owned(), name.as_str().into());
    }
    // Opened first: where nothing can be written no backup need be made.
    let target = match arguments.to.as_deref() {
        Some(to) => Some((to, Target::open(to)?, data_dir()?)),
        None => None,
    };
    let mut connection = Connection::open(socket)?;
    if let Some((_, _, data_dir)) = &target {
        connection.served_by_owner_of(data_dir)?;
    }
    // A checkpoint writes out what is in memory, and that may take its time on a busy disk.
    connection.wait_for_ever()?;
    let reply = connection.call(&request.into())?;
    let Some((to, target, data_dir)) = target else { return output.reply(&reply, &["name", "path", "bytes"]) };
    let (from, name) = place(&reply, &data_dir.join(backup::DIRECTORY))?;
    let (backups, whole) = open_backup(&data_dir, name).map_err(|error| refused(error, &from))?;
    let bytes = archive(&whole, target)?;
    whole
        .remove(&backups, name)
        .map_err(|error| Failure::io(format_args!("cannot remove {}", printable::path(&from)), &error))?;
    if is_dash(to) {
        note(format_args!("{bytes} bytes"));
        return Ok(());
    }
    let summary = json!({"name": name, "file": to.display().to_string(), "bytes": bytes});
    output.reply(&Reply::parse(summary.to_string())?, &["name", "file", "bytes"])
}

/// Where a backup lies and how it is called, if that is among `backups`: what a reply names is taken away and removed.
fn place<'r>(reply: &'r Reply, backups: &Path) -> Result<(PathBuf, &'r str), Failure> {
    let told = reply.text("path").ok_or_else(|| Failure::new(Exit::Io, "the daemon's reply names no path"))?;
    let name = reply.text("name").filter(|name| backup::is_name(name) && backups.join(name) == Path::new(told));
    name.map(|name| (told.into(), name)).ok_or_else(|| {
        let message = format!(
            "the daemon has made the backup {}, which is none of those in {}: it stays there. With the daemon's own configuration \
             (`--config FILE`) it can be taken out",
            printable::line(told),
            printable::path(backups)
        );
        Failure::new(Exit::Configuration, message)
    })
}

/// The directory of backups in `data_dir`, and one of them. Whom the data directory belongs to can put links in it.
fn open_backup(data_dir: &Path, name: &str) -> Result<(File, Whole), RestoreError> {
    let failed = |path: PathBuf| move |error: Errno| RestoreError::Io { path, error: error.into() };
    let backups = data_dir.join(backup::DIRECTORY);
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let data = nix::fcntl::open(data_dir, flags, Mode::empty()).map_err(failed(data_dir.to_owned()))?;
    let flags = flags | OFlag::O_NOFOLLOW;
    let inner = openat(&data, backup::DIRECTORY, flags, Mode::empty()).map_err(failed(backups.clone()))?;
    let own = openat(&inner, name, flags, Mode::empty()).map_err(failed(backups.join(name)))?;
    Ok((inner.into(), Whole::open(own.into())?))
}

fn refused(error: RestoreError, from: &Path) -> Failure {
    let failure = failure(error);
    match failure.exit {
        Exit::Permission => Failure::new(
            Exit::Permission,
            format!(
                "{failure}. The backup lies in {}, where only the daemon's user may read it: run this as that user",
                printable::path(from)
            ),
        ),
        _ => failure,
    }
}

/// Writes a backup as an archive; how many bytes its files have.
fn archive(whole: &Whole, mut target: Target) -> Result<u64, Failure> {
    let files = |error: io::Error| Failure::io("cannot read the backup", &error);
    let expected = whole.files().map_err(files)?.map(|(_, bytes, _)| bytes).sum();
    let bar = ProgressBar::new(expected).with_style(style("{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left"));
    let written = write_archive(whole, target.writer(), &bar);
    bar.finish_and_clear();
    written.map_err(|error| target.failed(&error))?;
    target.finish()?;
    Ok(expected)
}

/// The files one by one, `FROM_BACKUP` last.
fn write_archive(whole: &Whole, to: &mut dyn Write, bar: &ProgressBar) -> io::Result<()> {
    let mut archive = tar::Builder::new(to);
    for (name, bytes, mut file) in whole.files()? {
        // The note was read before.
        file.rewind()?;
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mtime(u64::try_from(file.metadata()?.mtime()).unwrap_or(0));
        // The daemon's user is nobody's business elsewhere: its name and number stay out.
        header.set_mode(0o600);
        archive.append_data(&mut header, name, bar.wrap_read(file.take(bytes)))?;
    }
    archive.into_inner()?.flush()
}

/// Puts a backup into `data_dir`. Root opens it and becomes the owner of `data_dir` then, for good: what happens there happens with the
/// rights of whoever may write there anyway.
pub fn restore(data_dir: &Path, output: &mut Output, arguments: &Restore) -> Result<(), Failure> {
    let mut from = Source::open(&arguments.from).map_err(failure)?;
    become_owner_of(data_dir)?;
    let vacant = Vacant::take(data_dir).map_err(failure)?;
    let restored = vacant.restore(arguments.replace, |to| from.copy(to)).map_err(failure)?;
    let summary = json!({
        "name": restored.about.name,
        "made": format_time(UnixMillis(restored.about.made)),
        "path": restored.path.display().to_string(),
        "put_aside": restored.put_aside.map(|path| path.display().to_string()),
    });
    output.reply(&Reply::parse(summary.to_string())?, &["name", "made", "path"])?;
    note("The daemon will start with every app paused; `fanfare resume --app NAME` lets it go");
    Ok(())
}

/// Root becomes the user that a directory belongs to, if there is one; others stay who they are.
fn become_owner_of(directory: &Path) -> Result<(), Failure> {
    let owner = match directory.metadata() {
        Ok(found) if geteuid().is_root() && found.uid() != 0 => found,
        _ => return Ok(()),
    };
    let uid = Uid::from_raw(owner.uid());
    let gid = User::from_uid(uid).ok().flatten().map_or(Gid::from_raw(owner.gid()), |user| user.gid);
    // In this order: what comes first needs root's rights.
    setgroups(&[gid]).and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid)).map_err(|error| {
        let what = format_args!("cannot become `{}`, whom {} belongs to", user_name(owner.uid()), printable::path(directory))
            .to_string();
        Failure::io(what, &error.into())
    })
}

/// Hands the subscriptions and accounts of a backup to the daemon at `socket`.
pub fn restore_registry(socket: &Path, output: &mut Output, arguments: &Restore) -> Result<(), Failure> {
    let scratch = Scratch::make()?;
    let mut source = Source::open(&arguments.from).map_err(failure)?;
    let from = &scratch.0.join("backup");
    DirBuilder::new().mode(0o700).create(from).map_err(|error| Failure::io("cannot unpack the backup", &error))?;
    // Nothing is copied that lies on a disk already.
    match &mut source {
        Source::Directory(whole) => whole.link(from),
        archive => archive.copy(from),
    }
    .map_err(failure)?;
    backup::check(from).map_err(failure)?;
    let file = scratch.0.join("registry");
    let failed = |error: io::Error| RestoreError::Io { path: file.clone(), error };
    let written = File::options().write(true).create_new(true).mode(0o600).open(&file).map_err(failed);
    let mut lines = BufWriter::new(written.map_err(failure)?);
    let mut keys = Keys::new(Connection::open(socket)?);
    let rows =
        backup::registry_rows(from, &mut |app, key| keys.named(app, key), &mut |line| writeln!(lines, "{line}").map_err(failed));
    rows.map_err(failure)?;
    lines.flush().map_err(failed).map_err(failure)?;
    keys.trouble.map_or(Ok(()), Err)?;
    let arguments = Import {
        file: file.clone(),
        app: None,
        dry_run: false,
        rejects: Some("restore.rejects".into()),
        format: Format::Ndjson,
        resume: false,
    };
    import::import(socket, output, &arguments)?;
    for ((app, key), count) in keys.lost {
        note(format_args!(
            "{count} subscriptions of {} were made with a key that is not among its vapid_keys any more (key {key}): they are \
             kept as made with its first one, with which their push services will hardly take anything",
            printable::line(&app)
        ));
    }
    Ok(())
}

/// The VAPID keys of the daemon's apps, asked for as they are met.
struct Keys {
    connection: Connection,
    apps: HashMap<String, HashMap<KeyId, String>>,
    /// How many subscriptions of an app were made with a key that it does not have, by the key's hash.
    lost: BTreeMap<(String, String), u64>,
    /// Why an app could not be asked about.
    trouble: Option<Failure>,
}

impl Keys {
    fn new(connection: Connection) -> Keys {
        Keys { connection, apps: HashMap::new(), lost: BTreeMap::new(), trouble: None }
    }

    /// The app's public key of this hash.
    fn named(&mut self, app: &str, key: KeyId) -> Option<String> {
        if !self.apps.contains_key(app) {
            let known = self.ask(app).unwrap_or_else(|failure| {
                self.trouble = Some(failure);
                None
            });
            self.apps.insert(app.to_owned(), known.unwrap_or_default());
        }
        let known = &self.apps[app];
        // An app that the daemon does not have: it says so to each of its lines.
        if !known.is_empty() && !known.contains_key(&key) {
            let hash = key.0.iter().map(|byte| format!("{byte:02x}")).collect();
            *self.lost.entry((app.to_owned(), hash)).or_default() += 1;
        }
        known.get(&key).cloned()
    }

    /// None: the daemon has no such app.
    fn ask(&mut self, app: &str) -> Result<Option<HashMap<KeyId, String>>, Failure> {
        self.connection.send(&json!({"op": "vapid_public_key", "app": app}).to_string())?;
        let reply = match self.connection.receive()?.good() {
            Ok(reply) => reply,
            Err(refusal) if refusal.code == "invalid_field" => return Ok(None),
            Err(refusal) => return Err(refusal.into()),
        };
        let others = reply.members.get("other_keys").and_then(Value::as_array).into_iter().flatten();
        let all = others.filter_map(Value::as_str).chain(reply.text("public_key"));
        Ok(Some(all.filter_map(|key| Some((key_id(&decode_point(key).ok()?), key.to_owned()))).collect()))
    }
}

/// A backup that was made at some time.
enum Source {
    Directory(Whole),
    /// With its name.
    Archive(Box<dyn Read>, PathBuf),
}

impl Source {
    /// Opens a directory, or an archive. Root follows no link: the daemon's user can put one among the backups.
    fn open(path: &Path) -> Result<Source, RestoreError> {
        let failed = |error: io::Error| RestoreError::Io { path: path.to_owned(), error };
        if is_dash(path) {
            return Ok(Source::Archive(Box::new(io::stdin().lock()), path.to_owned()));
        }
        let follow = if geteuid().is_root() { OFlag::O_NOFOLLOW } else { OFlag::empty() };
        let opened = File::options().read(true).custom_flags(follow.bits()).open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => failed(io::Error::new(error.kind(), "there is no such file")),
            _ if error.raw_os_error() == Some(Errno::ELOOP as i32) => failed(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is a link, which root does not follow: name the file itself",
            )),
            _ => failed(error),
        })?;
        if opened.metadata().map_err(failed)?.is_dir() {
            return Ok(Source::Directory(Whole::open(opened)?));
        }
        Ok(Source::Archive(Box::new(opened), path.to_owned()))
    }

    /// Writes its files into `to`.
    fn copy(&mut self, to: &Path) -> Result<(), RestoreError> {
        match self {
            Source::Directory(whole) => whole.copy(to),
            Source::Archive(input, path) => unpack(input, path, to),
        }
    }
}

/// Unpacks an archive, which `from` names in errors.
fn unpack(input: &mut dyn Read, from: &Path, to: &Path) -> Result<(), RestoreError> {
    let failed = |error: io::Error| RestoreError::Io { path: from.to_owned(), error };
    let mut archive = Archive::new(BufReader::with_capacity(256 * 1024, input));
    // Raw: else the reader takes a long name into memory, which says by itself how long it is. No file of a backup has one.
    for entry in archive.entries().map_err(failed)?.raw(true) {
        let mut entry = entry.map_err(failed)?;
        let kind = entry.header().entry_type();
        // Other writers note times in them.
        if matches!(kind, EntryType::XHeader | EntryType::XGlobalHeader) && entry.size() <= EXTENSION_MAX {
            continue;
        }
        let name = entry.path().map_err(failed)?.into_owned();
        let Some(name) = name.to_str().filter(|name| backup::is_part(name) && kind == EntryType::Regular) else {
            return Err(RestoreError::NotABackup("the archive holds something else than the files of one".to_owned()));
        };
        if name == ABOUT && entry.size() > backup::ABOUT_MAX {
            return Err(RestoreError::NotABackup(format!("its {ABOUT} is too long")));
        }
        let path = to.join(name);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let copied = file.and_then(|mut file| io::copy(&mut entry, &mut file));
        copied.map_err(|error| RestoreError::Io { path, error })?;
    }
    Ok(())
}

fn failure(error: RestoreError) -> Failure {
    let text = error.to_string();
    match error {
        RestoreError::Open(OpenError::Locked { .. }) => Failure::new(Exit::Temporary, format!("{text}: stop it first")),
        RestoreError::Open(OpenError::Newer { .. }) => Failure::new(Exit::Configuration, text),
        RestoreError::Open(OpenError::Directory { error, .. }) | RestoreError::Io { error, .. }
            if error.kind() == io::ErrorKind::PermissionDenied =>
        {
            Failure::new(Exit::Permission, text)
        }
        RestoreError::Open(_) | RestoreError::Io { .. } => Failure::new(Exit::Io, text),
        RestoreError::Exists(_) | RestoreError::NotABackup(_) => Failure::new(Exit::Usage, text),
    }
}

/// A directory that only this user may enter and that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Scratch, Failure> {
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| Failure::new(Exit::Io, "no random numbers"))?;
        // A name that nobody has taken before, to be in the way.
        let path = std::env::temp_dir().join(format!("fanfare-restore-{:016x}", u64::from_ne_bytes(random)));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Failure::io(format_args!("cannot make {}", printable::path(&path)), &error))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _removed = fs::remove_dir_all(&self.0);
    }
}
