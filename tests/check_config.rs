//! `fanfare check-config`: every problem at once, each app's public key, and the exit codes that keep systemd from trying again.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

fn fanfare(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fanfare")).args(arguments).env_clear().output().expect("the program was built")
}

fn check(directory: &Path, configuration: &str) -> (Option<i32>, String, String) {
    let file = directory.join("fanfare.toml");
    fs::write(&file, configuration).expect("the directory is writable");
    let output = fanfare(&["--config", file.to_str().expect("text"), "check-config"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn key(directory: &Path) -> (String, String) {
    let file = directory.join("vapid.pem").to_str().expect("text").to_owned();
    let made = fanfare(&["keygen", "--out", &file]);
    (file, String::from_utf8_lossy(&made.stdout).trim().to_owned())
}

#[test]
fn a_good_configuration_shows_its_public_keys() {
    let directory = TempDir::new().expect("a temporary directory");
    let (file, public_key) = key(directory.path());
    let text = format!("[apps.default]\nvapid_keys = [\"{file}\"]\nsubject = \"mailto:ops@example.com\"\n");
    let (code, stdout, stderr) = check(directory.path(), &text);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains(&public_key), "{stdout}");
}

#[test]
fn problems_are_named_all_at_once_and_exit_78() {
    let directory = TempDir::new().expect("a temporary directory");
    let (code, _, stderr) = check(directory.path(), "no_such_key = 1\n[messages]\nttl_max = \"long\"\n[retry]\nalso_wrong = 2\n");
    assert_eq!(code, Some(78), "{stderr}");
    for name in ["no_such_key", "ttl_max", "also_wrong"] {
        assert!(stderr.contains(name), "{name} is not named:\n{stderr}");
    }
    let missing = fanfare(&["--config", "/no/such/fanfare.toml", "check-config"]);
    assert_eq!(missing.status.code(), Some(78));
}

#[test]
fn a_key_that_others_can_read_exits_77_and_a_missing_one_78() {
    let directory = TempDir::new().expect("a temporary directory");
    let (file, _) = key(directory.path());
    let text = format!("[apps.default]\nvapid_keys = [\"{file}\"]\nsubject = \"mailto:ops@example.com\"\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("it is ours");
    let (code, _, stderr) = check(directory.path(), &text);
    assert_eq!(code, Some(77), "{stderr}");
    fs::remove_file(&file).expect("it is ours");
    let (code, _, stderr) = check(directory.path(), &text);
    assert_eq!(code, Some(78), "{stderr}");
    assert!(stderr.contains("keygen"), "it says how to make one: {stderr}");
}

#[test]
fn what_setup_writes_is_good_but_for_the_place_of_the_key() {
    let root = TempDir::new().expect("a temporary directory");
    let name = root.path().to_str().expect("text");
    let made = fanfare(&["setup", "--root", name, "--subject", "mailto:push@fanfare.dev"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = fs::read_to_string(root.path().join("etc/fanfare/fanfare.toml")).expect("it was made");
    let (code, stdout, stderr) =
        check(root.path(), &text.replace("/etc/fanfare/vapid.pem", &format!("{name}/etc/fanfare/vapid.pem")));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("app default: public key B"), "{stdout}");
    assert!(stderr.is_empty(), "no warning: {stderr}");
}
