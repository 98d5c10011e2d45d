//! `fanfare check-config`: every problem at once, each app's public key, and the exit codes that keep systemd from trying again.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
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
fn what_others_can_change_is_warned_of_and_a_stranger_s_key_exits_77() {
    let directory = TempDir::new().expect("a temporary directory");
    let (file, _) = key(directory.path());
    let text = format!("[apps.default]\nvapid_keys = [\"{file}\"]\nsubject = \"mailto:ops@fanfare.dev\"\n");
    let (code, _, stderr) = check(directory.path(), &text);
    assert_eq!((code, &*stderr), (Some(0), ""));
    let configuration = directory.path().join("fanfare.toml");
    for (path, mode) in [(configuration.as_path(), 0o646), (directory.path(), 0o770)] {
        let before = path.metadata().expect("ours").permissions();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
        let (code, _, stderr) = check(directory.path(), &text);
        assert_eq!(code, Some(0), "{stderr}");
        assert_eq!(stderr.matches("can be changed by its group or by others").count(), 1, "{stderr}");
        assert!(stderr.contains(&format!("mode {mode:04o}")), "{stderr}");
        fs::set_permissions(path, before).expect("ours");
    }
    if directory.path().metadata().expect("ours").uid() != 0 {
        println!("SKIPPED: only root can give a file away");
        return;
    }
    std::os::unix::fs::chown(&file, Some(65_534), None).expect("root may");
    let (code, _, stderr) = check(directory.path(), &text);
    assert_eq!(code, Some(77), "{stderr}");
    assert!(stderr.contains("belongs to the user 65534"), "{stderr}");
    // Unless it is the user that will run the daemon.
    let data_dir = directory.path().join("data");
    fs::create_dir(&data_dir).expect("writable");
    std::os::unix::fs::chown(&data_dir, Some(65_534), None).expect("root may");
    let (code, _, stderr) = check(directory.path(), &format!("data_dir = \"{}\"\n{text}", data_dir.display()));
    assert_eq!(code, Some(0), "{stderr}");
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
