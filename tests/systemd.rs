//! The units in `systemd/` are well-formed, and the daemon's sandbox stays as tight as it was made.
//!
//! systemd-analyze does the judging. Where it is missing (a container without systemd) the tests say SKIPPED and why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
        fs::write(&path, unit.replace("/usr/local/bin/fanfare serve", "/bin/true")).expect("the directory is writable");
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
    assert_eq!(value("RestartPreventExitStatus="), "64 77 78");
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
