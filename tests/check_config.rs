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
    let own = directory.metadata().expect("ours").uid().to_string();
    check_as(directory, configuration, &["--user", &own])
}

/// The machine may have a daemon of its own: its data and its socket are not looked at.
fn check_as(directory: &Path, configuration: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let file = directory.join("fanfare.toml");
    let data_dir = format!("data_dir = \"{}\"\n", directory.join("data").display());
    let configuration = if configuration.contains("data_dir =") { configuration.to_owned() } else { data_dir + configuration };
    fs::write(&file, configuration).expect("the directory is writable");
    let socket = directory.join("fanfare.sock");
    let own = ["--config", file.to_str().expect("text"), "--socket", socket.to_str().expect("text"), "check-config"];
    let output = fanfare(&[&own, arguments].concat());
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
    assert!(stdout.contains(&public_key) && stdout.contains("all is well (checked as user "), "{stdout}");
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
    // Unless that user will run the daemon.
    let (code, _, stderr) = check_as(directory.path(), &text, &["--user", "65534"]);
    assert_eq!(code, Some(77), "the directory of the key is closed to that user: {stderr}");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let (code, _, stderr) = check_as(directory.path(), &text, &["--user", "65534"]);
    assert_eq!(code, Some(77), "and it may make no socket there: {stderr}");
    std::os::unix::fs::chown(directory.path(), Some(65_534), None).expect("root may");
    let (code, stdout, stderr) = check_as(directory.path(), &text, &["--user", "65534"]);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
}

/// A directory of the user 65534 (nobody), with a key of root's that the user cannot read. None: only root can make that.
fn of_nobody() -> Option<(TempDir, String, String)> {
    let directory = TempDir::new().expect("a temporary directory");
    if directory.path().metadata().expect("ours").uid() != 0 {
        println!("SKIPPED: only root can give a file away");
        return None;
    }
    if ["/etc", "/usr/local/lib", "/usr/lib"].iter().any(|place| Path::new(place).join("systemd/system/fanfare.service").exists())
    {
        println!("SKIPPED: this machine's own unit would be asked for the user");
        return None;
    }
    let (file, _) = key(directory.path());
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let data_dir = directory.path().join("data");
    fs::create_dir(&data_dir).expect("writable");
    std::os::unix::fs::chown(&data_dir, Some(65_534), Some(65_534)).expect("root may");
    let data = data_dir.display();
    let text = format!(
        "data_dir = \"{data}\"\ningest.socket = \"{data}/fanfare.sock\"\n[apps.default]\nvapid_keys = [\"{file}\"]\nsubject = \"mailto:ops@fanfare.dev\"\n"
    );
    Some((directory, file, text))
}

/// As root types it, with nothing but the file; without a unit the owner of data_dir counts.
fn check_as_root(directory: &Path, text: &str) -> (Option<i32>, String, String) {
    let file = directory.join("fanfare.toml");
    fs::write(&file, text).expect("writable");
    let output = fanfare(&["--config", file.to_str().expect("text"), "check-config"]);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn root_is_told_what_the_daemon_s_user_cannot_read_and_the_command_that_mends_it() {
    let Some((directory, file, text)) = of_nobody() else { return };
    let (code, stdout, stderr) = check_as_root(directory.path(), &text);
    assert_eq!(code, Some(77), "{stdout}{stderr}");
    assert!(stderr.contains(&format!("chown nobody {file}")), "{stderr}");
    assert!(stderr.contains("(checked as user nobody with the group"), "{stderr}");
    assert!(!stdout.contains("all is well"), "{stdout}");

    std::os::unix::fs::chown(&file, Some(65_534), None).expect("root may");
    let (code, stdout, stderr) = check_as_root(directory.path(), &text);
    assert_eq!((code, &*stderr), (Some(0), ""), "{stdout}");
    assert!(stdout.contains("all is well (checked as user nobody with the group"), "{stdout}");

    let closed = directory.path().join("closed");
    fs::create_dir(&closed).expect("ours");
    fs::rename(&file, closed.join("vapid.pem")).expect("ours");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("ours");
    let inside = closed.join("vapid.pem").display().to_string();
    let (code, _, stderr) = check_as_root(directory.path(), &text.replace(&file, &inside));
    assert_eq!(code, Some(77), "{stderr}");
    assert!(stderr.contains(&format!("chmod o+x {}", closed.display())), "the file itself is in order: {stderr}");
}

#[test]
fn a_socket_s_group_without_the_daemon_s_user_is_told_before_the_start() {
    let Some((directory, file, text)) = of_nobody() else { return };
    std::os::unix::fs::chown(&file, Some(65_534), None).expect("root may");
    let socket = directory.path().join("data/shop.sock").display().to_string();
    let shop = |group: &str| format!("{text}[sockets.shop]\npath = \"{socket}\"\ngroup = \"{group}\"\napps = [\"default\"]\n");
    let (code, _, stderr) = check_as_root(directory.path(), &shop("daemon"));
    assert_eq!(code, Some(77), "{stderr}");
    assert!(stderr.contains("sockets.shop.group") && stderr.contains("usermod -aG daemon nobody"), "{stderr}");
    let (code, _, stderr) = check_as_root(directory.path(), &shop("no-such-group"));
    assert_eq!(code, Some(78), "{stderr}");
    assert!(stderr.contains("groupadd --system no-such-group"), "{stderr}");
    let (code, _, stderr) = check_as_root(directory.path(), &shop("nogroup"));
    assert_eq!(code, Some(0), "its own group: {stderr}");
}

#[test]
fn data_that_the_daemon_may_not_write_is_told() {
    let Some((directory, file, text)) = of_nobody() else { return };
    std::os::unix::fs::chown(&file, Some(65_534), None).expect("root may");
    std::os::unix::fs::chown(directory.path().join("data"), Some(0), Some(0)).expect("root may");
    let file = directory.path().join("fanfare.toml");
    fs::write(&file, text).expect("writable");
    let output = fanfare(&["--config", file.to_str().expect("text"), "check-config", "--user", "nobody"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{stderr}");
    assert!(stderr.contains(&format!("chown -R nobody: {}", directory.path().join("data").display())), "{stderr}");
}

#[test]
fn what_setup_writes_is_good_but_for_the_place_of_the_key() {
    let root = TempDir::new().expect("a temporary directory");
    let name = root.path().to_str().expect("text");
    let made = fanfare(&["setup", "--root", name, "--subject", "mailto:push@fanfare.dev"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = fs::read_to_string(root.path().join("etc/fanfare/fanfare.toml")).expect("it was made");
    let text = text.replace("/etc/fanfare/vapid.pem", &format!("{name}/etc/fanfare/vapid.pem"));
    let (code, stdout, stderr) = check(root.path(), &text.replace("#data_dir = \"", &format!("data_dir = \"{name}")));
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("app default: public key B"), "{stdout}");
    assert!(stderr.is_empty(), "no warning: {stderr}");
}
