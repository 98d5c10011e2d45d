//! The units in `systemd/` are well-formed, and the daemon's sandbox stays as tight as it was made.
//!
//! systemd-analyze does the judging. Where it is missing (a container without systemd) the tests say SKIPPED and why.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

/// None where the tool is not installed.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).env("SYSTEMD_PAGER", "").output() {
        Ok(output) => Some(output),
        Err(error) => {
            println!("SKIPPED: {program} cannot be run: {error}");
            None
        }
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_sandbox_is_tight() {
    let service = units().join("fanfare.service");
    let service = service.to_str().expect("the path is text");
    let Some(output) = run("systemd-analyze", &["security", "--offline=true", "--threshold=15", "--no-pager", service]) else {
        return;
    };
    let told = text(&output);
    if told.contains("unrecognized option") || told.contains("nknown operation") {
        println!("SKIPPED: this systemd-analyze is older than 250 and cannot judge a file");
        return;
    }
    assert!(output.status.success(), "exposure above 1.5:\n{told}");
}

#[test]
fn the_units_are_well_formed() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let copy = |name: &str| {
        // The program is not installed where the tests run, and systemd-analyze wants to see one.
        let unit = fs::read_to_string(units().join(name)).expect("the unit is there");
        let path = directory.path().join(name);
        fs::write(&path, unit.replace("/usr/local/bin/fanfare", "/bin/true")).expect("the directory is writable");
        path.to_str().expect("the path is text").to_owned()
    };
    let paths = [copy("fanfare.service"), copy("fanfare.socket")];
    let Some(output) = run("systemd-analyze", &["verify", "--man=no", &paths[0], &paths[1]]) else { return };
    // Units of the machine itself may be reported too: only what concerns ours counts.
    let told = text(&output);
    let ours: Vec<&str> = told.lines().filter(|line| line.contains("fanfare")).collect();
    assert!(ours.is_empty(), "{told}");
}

#[test]
fn the_unit_fits_the_program() {
    let unit = fs::read_to_string(units().join("fanfare.service")).expect("the unit is there");
    let value = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} is missing"));
    assert_eq!(value("Type="), "notify");
    assert_eq!(value("ExecStart="), "/usr/local/bin/fanfare serve");
    // It waits for the answer: a signal would succeed whatever came of it.
    assert_eq!(value("ExecReload="), "/usr/local/bin/fanfare reload");
    assert_eq!(value("RestartPreventExitStatus="), "64 77 78 216 217");
    // A start that a condition leaves out succeeds without a word.
    assert!(!unit.lines().any(|line| line.starts_with("Condition")), "{unit}");
    // deliver.drain is 10 s unless it is set, and stopping takes a checkpoint more.
    assert!(value("TimeoutStopSec=").parse::<u64>().expect("seconds") > 20);
    assert!(!value("WatchdogSec=").is_empty());
}

#[test]
fn user_and_directories_are_made() {
    let root = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(root.path().join("etc")).expect("the directory is writable");
    let flag = format!("--root={}", root.path().display());
    let file = |directory: &str| units().join(directory).join("fanfare.conf").to_str().expect("the path is text").to_owned();
    let Some(made) = run("systemd-sysusers", &[&flag, &file("sysusers.d")]) else { return };
    if !made.status.success() && text(&made).contains("ermission") {
        println!("SKIPPED: making users, even below a directory, is for root");
        return;
    }
    assert!(made.status.success(), "{}", text(&made));
    let users = fs::read_to_string(root.path().join("etc/passwd")).expect("systemd-sysusers wrote it");
    assert!(users.starts_with("fanfare:"), "{users}");
    let groups = fs::read_to_string(root.path().join("etc/group")).expect("systemd-sysusers wrote it");
    assert!(groups.starts_with("fanfare:"), "{groups}");

    let Some(made) = run("systemd-tmpfiles", &[&flag, "--create", &file("tmpfiles.d")]) else { return };
    assert!(made.status.success() || text(&made).contains("ermission"), "{}", text(&made));
    if made.status.success() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &str| root.path().join(path).metadata().expect(path).permissions().mode() & 0o777;
        assert_eq!((mode("var/lib/fanfare"), mode("run/fanfare"), mode("etc/fanfare")), (0o700, 0o755, 0o755));
    }
}

/// A daemon that systemd would start: standard error is the journal's stream, and it tells how it is at a socket.
struct Started {
    directory: tempfile::TempDir,
    notified: UnixDatagram,
    child: Child,
}

impl Started {
    /// `more` is added to a good configuration.
    fn serve(more: &str) -> Started {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        fanfare_loadtest::daemon::write_vapid_key(&path("vapid.pem")).expect("writable");
        let text = format!(
            "data_dir = {}\n[ingest]\nsocket = {}\n[metrics]\nlisten = \"\"\n[apps.default]\nvapid_keys = [{}]\n\
             subject = \"mailto:ops@example.com\"\n{more}",
            json!(path("data")),
            json!(path("fanfare.sock")),
            json!(path("vapid.pem"))
        );
        fs::write(path("fanfare.toml"), text).expect("writable");
        let journal = File::create(path("journal")).expect("writable");
        let stream = journal.metadata().expect("it is open");
        let notified = UnixDatagram::bind(path("notify")).expect("writable");
        notified.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
        let child = Command::new(env!("CARGO_BIN_EXE_fanfare"))
            .args(["serve", "--config"])
            .arg(path("fanfare.toml"))
            .env("JOURNAL_STREAM", format!("{}:{}", stream.dev(), stream.ino()))
            .env("NOTIFY_SOCKET", path("notify"))
            .env_remove("FANFARE_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(journal)
            .spawn()
            .expect("it was built");
        Started { directory, notified, child }
    }

    fn journal(&self) -> String {
        fs::read_to_string(self.directory.path().join("journal")).expect("it was made")
    }

    /// Waits for a message of systemd's protocol that says this.
    fn told(&self, what: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut message = [0; 4_096];
        while Instant::now() < deadline {
            if let Ok(length) = self.notified.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..length]).into_owned();
                if text.contains(what) {
                    return text;
                }
            }
        }
        panic!("{what} is never told:\n{}", self.journal());
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[test]
fn entries_of_the_journal_have_priorities_and_systemd_is_told_how_it_goes() {
    let daemon = Started::serve("[store]\nmin_free_percent = 0.1\n");
    daemon.told("READY=1");
    let status = daemon.told("STATUS=");
    assert!(status.contains("STATUS=0 pending, 0 answers a second"), "{status}");
    let journal = daemon.journal();
    let entries: Vec<&str> = journal.lines().collect();
    assert!(entries.iter().all(|entry| ["<3>", "<4>", "<6>"].iter().any(|priority| entry.starts_with(priority))), "{journal}");
    let of = |text: &str| *entries.iter().find(|entry| entry.contains(text)).unwrap_or_else(|| panic!("{text} in {journal}"));
    assert!(of("nobody's address").starts_with("<4>"), "{journal}");
    assert!(of("ready: lines are taken").starts_with("<6>"), "{journal}");
}

#[test]
fn one_error_is_one_entry_of_the_journal() {
    let mut daemon = Started::serve("[retry]\nno_such_key = 1\nnor_this_one = 2\n");
    let ended = daemon.child.wait().expect("it ends");
    assert_eq!(ended.code(), Some(78));
    let journal = daemon.journal();
    assert_eq!(journal.lines().count(), 1, "{journal}");
    assert!(
        journal.starts_with("<3>fanfare: ") && journal.contains("no_such_key") && journal.contains("nor_this_one"),
        "{journal}"
    );
}
