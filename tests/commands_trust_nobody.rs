//! What root runs trusts nothing that the daemon's user, or a stranger, can make: links, archives, sockets, text. And what the daemon
//! writes is for nobody else.
//!
//! Most of it needs several users: without root those tests say SKIPPED.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fanfare::store::Store;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, write_vapid_key};
use fanfare_loadtest::output::{code, stderr};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Whom nothing belongs to on a machine.
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    let root = fs::metadata("/proc/self").expect("Linux").uid() == 0;
    if !root {
        println!("SKIPPED: only root can be somebody else");
    }
    root
}

fn give(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    if path.is_dir() {
        fs::read_dir(path).expect("readable").for_each(|entry| give(&entry.expect("there").path()));
    }
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("readable").map(|entry| entry.expect("there").path());
    entries.flat_map(|path| if path.is_dir() { [vec![path.clone()], below(&path)].concat() } else { vec![path] }).collect()
}

/// A data directory that is nobody's, a configuration and a key that are root's, a secret of root's, and the program where all can run
/// it.
struct Place {
    directory: TempDir,
    data_dir: PathBuf,
    configuration: PathBuf,
    secret: PathBuf,
    program: PathBuf,
}

impl Place {
    fn make() -> Place {
        let directory = TempDir::new().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("ours");
        let program = path("fanfare");
        fs::copy(env!("CARGO_BIN_EXE_fanfare"), &program).expect("there is room");
        let (data_dir, secret, configuration) = (path("data"), path("secret"), path("fanfare.toml"));
        fs::create_dir(&data_dir).expect("writable");
        give(&data_dir);
        fs::write(&secret, "precious").expect("writable");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("ours");
        write_vapid_key(&path("vapid.pem")).expect("writable");
        chown(path("vapid.pem"), Some(NOBODY), None).expect("root may");
        let text = format!(
            "data_dir = {}\n[ingest]\nsocket = {}\n[metrics]\nlisten = \"\"\n[store]\nmin_free_percent = 0.1\nreserve_mb = 1\n\
             [apps.default]\nvapid_keys = [{}]\nsubject = \"mailto:ops@fanfare.dev\"\n",
            json!(data_dir),
            json!(data_dir.with_file_name("run").join("fanfare.sock")),
            json!(path("vapid.pem"))
        );
        fs::write(&configuration, text).expect("writable");
        fs::create_dir(path("run")).expect("writable");
        give(&path("run"));
        Place { directory, data_dir, configuration, secret, program }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn fanfare(&self, arguments: &[&str], files: &[&Path]) -> Command {
        let mut command = Command::new(&self.program);
        command.env_clear().stdin(Stdio::null()).current_dir(self.directory.path());
        command.arg("--config").arg(&self.configuration).args(arguments).args(files);
        command
    }

    fn run(&self, arguments: &[&str], files: &[&Path]) -> Output {
        self.fanfare(arguments, files).output().expect("built")
    }

    /// A backup in a directory of root's.
    fn backup(&self) -> PathBuf {
        let settings = "[apps.default]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:ops@fanfare.dev\"\n[store]\nreserve_mb = 1\n";
        fs::write(self.path("other.toml"), settings).expect("writable");
        let config = fanfare::config::Config::load(Some(&self.path("other.toml")), std::iter::empty()).expect("it is good");
        let store = Store::open(&self.path("made"), &config.store, &[]).expect("it opens");
        store.backup("x").expect("a backup").path
    }

    fn secret_is_as_it_was(&self) {
        assert_eq!(fs::read_to_string(&self.secret).expect("there"), "precious");
        let found = self.secret.metadata().expect("there");
        assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o600));
    }

    /// The daemon, run by nobody.
    fn serve(&self) -> Serving {
        let log = File::create(self.path("log")).expect("writable");
        let child = self.fanfare(&["serve"], &[]).uid(NOBODY).gid(NOBODY).stderr(log).spawn().expect("built");
        let serving = Serving(child);
        let until = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(self.path("run/fanfare.sock")).is_err() {
            assert!(Instant::now() < until, "{}", fs::read_to_string(self.path("log")).unwrap_or_default());
            std::thread::sleep(Duration::from_millis(20));
        }
        serving
    }
}

struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[test]
fn a_restore_by_root_writes_as_the_directory_s_owner() {
    if !is_root() {
        return;
    }
    let place = Place::make();
    let backup = place.backup();
    fs::set_permissions(place.path("made"), fs::Permissions::from_mode(0o700)).expect("ours");
    let output = place.run(&["restore"], &[&backup]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let files = below(&place.data_dir);
    assert!(files.len() > 4, "{files:?}");
    for file in files {
        let found = file.symlink_metadata().expect("there");
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o077), (NOBODY, NOBODY, 0), "{file:?}");
    }
    // The daemon can use it.
    let _serving = place.serve();
}

#[test]
fn a_restore_by_root_follows_no_link_of_the_daemon_s_user() {
    if !is_root() {
        return;
    }
    let place = Place::make();
    let backup = place.backup();
    // Where it writes.
    for name in ["lock", "db.restoring", "db"] {
        let link = place.data_dir.join(name);
        symlink(&place.secret, &link).expect("writable");
        let output = place.run(&["restore", "--replace"], &[&backup]);
        place.secret_is_as_it_was();
        assert!(name != "lock" || code(&output) == 74, "{}", stderr(&output));
        for entry in fs::read_dir(&place.data_dir).expect("readable") {
            let path = entry.expect("there").path();
            let removed = if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.expect("root may");
        }
    }
}

#[test]
fn a_restore_by_root_gives_no_file_of_root_s_away() {
    if !is_root() {
        return;
    }
    let place = Place::make();
    let made = place.backup();
    let backups = place.data_dir.join("backups");
    fs::create_dir(&backups).expect("writable");
    let backup = backups.join("x");
    fs::rename(&made, &backup).expect("one file system");
    let about: Value = serde_json::from_slice(&fs::read(backup.join("FROM_BACKUP")).expect("there")).expect("JSON");
    let part = about["files"].as_array().expect("files").iter().find(|part| part["name"] == "CURRENT").expect("there");
    fs::write(&place.secret, vec![b'x'; part["bytes"].as_u64().expect("a size") as usize]).expect("ours");
    give(&backups);
    for hard in [false, true] {
        fs::remove_file(backup.join("CURRENT")).expect("there");
        if hard {
            fs::hard_link(&place.secret, backup.join("CURRENT")).expect("root may");
        } else {
            symlink(&place.secret, backup.join("CURRENT")).expect("root may");
        }
        for arguments in [&["restore"][..], &["restore", "--registry"]] {
            let output = place.run(arguments, &[&backup]);
            assert_eq!(code(&output), 64, "{hard}: {}", stderr(&output));
            assert!(stderr(&output).contains("CURRENT"), "{}", stderr(&output));
            assert!(!place.data_dir.join("db").exists() && !place.data_dir.join("db.restoring").exists());
        }
    }
    // The whole of it a link, to where only root can read.
    fs::set_permissions(place.path("made"), fs::Permissions::from_mode(0o700)).expect("ours");
    symlink(place.path("made"), backups.join("link")).expect("root may");
    let output = place.run(&["restore"], &[&backups.join("link")]);
    assert!(stderr(&output).contains("root does not follow"), "{}", stderr(&output));
}

#[test]
fn a_header_of_an_archive_takes_no_memory() {
    let directory = TempDir::new().expect("a temporary directory");
    let path = |name: &str| directory.path().join(name);
    let key = path("vapid.pem");
    write_vapid_key(&key).expect("writable");
    let text = format!(
        "data_dir = {}\n[apps.default]\nvapid_keys = [{}]\nsubject = \"mailto:ops@fanfare.dev\"\n",
        json!(path("data")),
        json!(key)
    );
    fs::write(path("fanfare.toml"), text).expect("writable");
    // GNU's long names and links, and the extended headers of POSIX: each says that it has a gigabyte, which the file has, too: zeros.
    for kind in [b'L', b'K', b'x', b'g'] {
        let size: u64 = 1 << 30;
        let mut header = [0u8; 512];
        header[..13].copy_from_slice(b"././@LongLink");
        header[100..108].copy_from_slice(b"0000600\0");
        header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar  \0");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut file = File::create(path("archive.tar")).expect("writable");
        file.write_all(&header).and_then(|()| file.set_len(512 + size + 1_024)).expect("it is sparse");
        let mut child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .env_clear()
            .arg("--config")
            .arg(path("fanfare.toml"))
            .arg("restore")
            .arg(path("archive.tar"))
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("built");
        let status = format!("/proc/{}/status", child.id());
        let mut most = 0;
        while child.try_wait().expect("ours").is_none() {
            let text = fs::read_to_string(&status).unwrap_or_default();
            let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            most = most.max(peak.unwrap_or(0));
            std::thread::sleep(Duration::from_millis(1));
        }
        let output = child.wait_with_output().expect("ended");
        assert_eq!(code(&output), 64, "{}: {}", char::from(kind), stderr(&output));
        assert!(most < 200_000, "{}: {most} kB", char::from(kind));
    }
}

#[test]
fn a_backup_is_taken_out_by_root_only_if_the_store_s_owner_serves_the_socket() {
    if !is_root() {
        return;
    }
    let place = Place::make();
    let serving = place.serve();
    let (archive, backups) = (place.path("x.tar"), place.data_dir.join("backups"));
    let output = place.run(&["backup", "one", "--to"], &[&archive]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let found = archive.metadata().expect("there");
    assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o600));
    assert_eq!(fs::read_dir(&backups).expect("there").count(), 0);
    // Another store's configuration: whoever serves this socket is nobody that root should believe.
    let output = place
        .fanfare(&["backup", "two", "--to"], &[&place.path("y.tar")])
        .env("FANFARE__DATA_DIR", place.path("made"))
        .output()
        .expect("built");
    assert_eq!(code(&output), 77, "{}", stderr(&output));
    assert!(stderr(&output).contains("neither root nor the owner"), "{}", stderr(&output));
    assert_eq!(fs::read_dir(&backups).expect("there").count(), 0, "it was not even asked");
    assert!(!place.path("y.tar").exists());
    drop(serving);
    // And back again.
    fs::remove_file(place.path("run/fanfare.sock")).expect("it was killed");
    let output = place.run(&["restore", "--replace"], &[&archive]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    for file in below(&place.data_dir).iter().filter(|file| file.starts_with(place.data_dir.join("db"))) {
        assert_eq!(file.metadata().expect("there").uid(), NOBODY, "{file:?}");
    }
}

#[test]
fn what_the_daemon_writes_is_for_nobody_else() {
    let mut daemon = Daemon::prepare(env!("CARGO_BIN_EXE_fanfare"), ConfigBuilder::new()).expect("prepared");
    let data_dir = daemon.data_dir();
    // As an earlier version made it, or an operator.
    fs::create_dir_all(&data_dir).expect("writable");
    fs::set_permissions(&data_dir, fs::Permissions::from_mode(0o755)).expect("ours");
    daemon.restart().expect("it starts");
    assert!(daemon.log().contains("mode 0755"), "{}", daemon.log());
    daemon.client().ok(&json!({"op": "backup", "name": "x"}));
    let open: Vec<PathBuf> = [vec![data_dir.clone()], below(&data_dir)]
        .concat()
        .into_iter()
        .filter(|path| path.symlink_metadata().expect("there").mode() & 0o077 != 0)
        .collect();
    assert!(open.is_empty(), "{open:?}");
    assert!(below(&data_dir).len() > 10);
    // Its socket is for others all the same.
    let socket = data_dir.with_file_name("fanfare.sock");
    assert_eq!(socket.metadata().expect("there").mode() & 0o777, 0o660);
    assert_eq!(daemon.terminate().expect("it ends"), 0);
    daemon.restart().expect("it starts");
    assert_eq!(daemon.log().matches("open to others").count(), 1, "{}", daemon.log());
}

#[test]
fn a_data_directory_that_others_can_enter_and_that_is_not_ours_is_refused() {
    if !is_root() {
        return;
    }
    let place = Place::make();
    chown(&place.data_dir, Some(0), Some(0)).expect("root may");
    fs::set_permissions(&place.data_dir, fs::Permissions::from_mode(0o777)).expect("ours");
    let output = place.fanfare(&["serve"], &[]).uid(NOBODY).gid(NOBODY).output().expect("built");
    assert_eq!(code(&output), 77, "{}", stderr(&output));
    assert!(stderr(&output).contains("open to others (mode 0777)"), "{}", stderr(&output));
}

#[test]
fn a_stranger_s_name_of_an_attribute_is_text_in_an_error() {
    let daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), ConfigBuilder::new()).expect("it starts");
    let hostile = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}\nfanfare: done";
    let subscription = json!({
        "endpoint": "https://fcm.googleapis.com/fcm/send/x",
        "keys": {"p256dh": "x", "auth": "x"},
    });
    let attributes = json!({hostile: [1]}).to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_fanfare"))
        .env_clear()
        .arg("--config")
        .arg(daemon.config_path())
        .args(["subscribe", "--subscription", &subscription.to_string(), "--attributes", &attributes])
        .output()
        .expect("built");
    assert_eq!(code(&output), 64, "{}", stderr(&output));
    let said = stderr(&output);
    assert!(!said.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{said:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(r"\u001b]0;owned"), "{said}");
    // A file's name.
    let output =
        Command::new(env!("CARGO_BIN_EXE_fanfare")).env_clear().args(["import", hostile, "--dry-run"]).output().expect("built");
    assert_eq!(BufReader::new(&*output.stderr).lines().count(), 1, "{}", stderr(&output));
    assert!(stderr(&output).contains(r"\u001b]0;owned"), "{}", stderr(&output));
}
