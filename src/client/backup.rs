//! `fanfare backup` and `fanfare restore`.
//!
//! The daemon makes the copy, in its own directory; `--to` moves it out as one tar archive, of which RocksDB's files are compressed
//! already. `restore` needs no daemon: it puts a backup into a data directory that nobody uses, and the daemon that starts on it has
//! everything paused. `restore --registry` needs one: it hands in the subscriptions, and no message.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use tar::{Archive, EntryType};

use crate::client::arguments::bulk::Format;
use crate::client::arguments::{Backup, Import, Restore};
use crate::client::connection::{Connection, Reply};
use crate::client::export::Target;
use crate::client::import;
use crate::client::output::Output;
use crate::client::send::{is_dash, open, style};
use crate::exit::{Exit, Failure};
use crate::ingest::keys::{decode_point, key_id};
use crate::ingest::reply::format_time;
use crate::message::{KeyId, UnixMillis};
use crate::store::OpenError;
use crate::store::backup::{self, ABOUT, RestoreError, Vacant};

/// Has a backup made, and with `--to` takes it out.
pub fn backup(socket: &Path, output: &mut Output, arguments: &Backup) -> Result<(), Failure> {
    let mut request = Map::new();
    request.insert("op".to_owned(), "backup".into());
    if let Some(name) = &arguments.name {
        request.insert("name".to_owned(), name.as_str().into());
    }
    // Opened first: where nothing can be written no backup need be made.
    let target = arguments.to.as_deref().map(Target::open).transpose()?;
    let mut connection = Connection::open(socket)?;
    // A checkpoint writes out what is in memory, and that may take its time on a busy disk.
    connection.wait_for_ever()?;
    let reply = connection.call(&request.into())?;
    let (Some(target), Some(to)) = (target, &arguments.to) else { return output.reply(&reply, &["name", "path", "bytes"]) };
    let from = PathBuf::from(reply.text("path").ok_or_else(|| Failure::new(Exit::Io, "the daemon's reply names no path"))?);
    let bytes = archive(&from, target, reply.count("bytes")).map_err(|failure| match failure.exit {
        Exit::Permission => Failure::new(
            Exit::Permission,
            format!(
                "{failure}. The backup lies in {}, where only the daemon's user may read it: run this as that user",
                from.display()
            ),
        ),
        _ => failure,
    })?;
    fs::remove_dir_all(&from).map_err(|error| Failure::io(format_args!("cannot remove {}", from.display()), &error))?;
    if is_dash(to) {
        eprintln!("{bytes} bytes");
        return Ok(());
    }
    let summary = json!({"name": reply.text("name"), "file": to.display().to_string(), "bytes": bytes});
    output.reply(&Reply::parse(summary.to_string())?, &["name", "file", "bytes"])
}

/// Writes a backup as an archive; how many bytes its files have.
fn archive(from: &Path, mut target: Target, expected: u64) -> Result<u64, Failure> {
    // Looked at by itself, so that what cannot be read is not told as what cannot be written.
    fs::read_dir(from).map_err(|error| Failure::io(format_args!("cannot read {}", from.display()), &error))?;
    let bar = ProgressBar::new(expected).with_style(style("{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left"));
    let written = write_archive(from, target.writer(), &bar);
    bar.finish_and_clear();
    let bytes = written.map_err(|error| target.failed(&error))?;
    target.finish()?;
    Ok(bytes)
}

/// The files one by one, `FROM_BACKUP` last.
fn write_archive(from: &Path, to: &mut dyn Write, bar: &ProgressBar) -> io::Result<u64> {
    let mut names = fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort_by_key(|name| (name == ABOUT, name.clone()));
    let mut archive = tar::Builder::new(to);
    let mut bytes = 0;
    for name in names {
        let file = File::open(from.join(&name))?;
        let metadata = file.metadata()?;
        let mut header = tar::Header::new_gnu();
        header.set_size(metadata.len());
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        // The daemon's user is nobody's business elsewhere: its name and number stay out.
        header.set_mode(0o600);
        archive.append_data(&mut header, &name, bar.wrap_read(file))?;
        bytes += metadata.len();
    }
    archive.into_inner()?.flush()?;
    Ok(bytes)
}

/// Puts a backup into `data_dir`.
pub fn restore(data_dir: &Path, output: &mut Output, arguments: &Restore) -> Result<(), Failure> {
    let vacant = Vacant::take(data_dir).map_err(failure)?;
    let restored = vacant.restore(arguments.replace, |to| fill(&arguments.from, to)).map_err(failure)?;
    let summary = json!({
        "name": restored.about.name,
        "made": format_time(UnixMillis(restored.about.made)),
        "path": restored.path.display().to_string(),
        "put_aside": restored.put_aside.map(|path| path.display().to_string()),
    });
    output.reply(&Reply::parse(summary.to_string())?, &["name", "made", "path"])?;
    eprintln!("The daemon will start with every app paused; `fanfare resume --app NAME` lets it go");
    Ok(())
}

/// Hands the subscriptions and accounts of a backup to the daemon at `socket`.
pub fn restore_registry(socket: &Path, output: &mut Output, arguments: &Restore) -> Result<(), Failure> {
    let scratch = Scratch::make()?;
    let unpacked;
    let from = if arguments.from.is_dir() {
        &arguments.from
    } else {
        unpacked = scratch.0.join("backup");
        DirBuilder::new().mode(0o700).create(&unpacked).map_err(|error| Failure::io("cannot unpack the backup", &error))?;
        fill(&arguments.from, &unpacked).map_err(failure)?;
        &unpacked
    };
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
        eprintln!(
            "{count} subscriptions of {app} were made with a key that is not among its vapid_keys any more (key {key}): they are \
             kept as made with its first one, with which their push services will hardly take anything"
        );
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

/// Writes the files of a backup, which is a directory or an archive, into `to`.
fn fill(from: &Path, to: &Path) -> Result<(), RestoreError> {
    if from.is_dir() {
        return backup::copy(from, to);
    }
    let failed = |error: io::Error| RestoreError::Io { path: from.to_owned(), error };
    let input: Box<dyn Read> = open(from).map_err(|failure| failed(io::Error::other(failure.message)))?;
    let mut archive = Archive::new(BufReader::with_capacity(256 * 1024, input));
    for entry in archive.entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        let name = entry.path().map_err(failed)?.into_owned();
        let name = name.to_str().filter(|name| backup::is_plain(name) && entry.header().entry_type() == EntryType::Regular);
        let Some(name) = name else {
            return Err(RestoreError::NotABackup("the archive holds something else than plain files".to_owned()));
        };
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
        let path = std::env::temp_dir().join(format!("fanfare-restore-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Failure::io(format_args!("cannot make {}", path.display()), &error))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _removed = fs::remove_dir_all(&self.0);
    }
}
