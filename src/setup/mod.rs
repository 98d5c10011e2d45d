//! `fanfare setup`, `keygen` and `check-config`: what an operator needs before the first start.
//!
//! Nothing that exists is ever overwritten: a VAPID key that is lost loses every subscription made with it. What is there already is
//! left as it is and named, so `setup` may be run again at any time. Private keys are written 0600, for the daemon's user, and never
//! shown.

pub mod check;
mod identity;
mod unit;

use std::fmt::Display;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use nix::fcntl::OFlag;
use nix::unistd::{Gid, Group, Uid, User, fchown, geteuid};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use self::unit::UNIT_DIRS;
use crate::client::connection::user_name;
use crate::client::output::{note, say};
use crate::exit::{Exit, Failure};
use crate::printable;
use crate::vapid::key::{ImportError, KeyFileError, SigningKey};

/// Where keys and configuration live.
const CONFIGURATION_DIR: &str = "etc/fanfare";
/// The store, as `data_dir` of the shipped configuration has it.
const DATA_DIR: &str = "var/lib/fanfare";
/// The user and the group of the daemon.
const USER: &str = "fanfare";
/// The configuration that `setup` starts from.
const SHIPPED: &str = include_str!("../../config/fanfare.toml");
const SYSUSERS: &str = include_str!("../../systemd/sysusers.d/fanfare.conf");
const SERVICE: &str = include_str!("../../systemd/fanfare.service");

/// `fanfare setup`.
#[derive(Debug, Args)]
pub struct Setup {
    /// Whom a push service may ask about this sender: mailto:ops@example.com, or an https: page (RFC 8292 section 2.1)
    #[arg(long, value_name = "MAILTO|URL", value_parser = subject)]
    pub subject: String,
    /// Put everything below this directory instead, and make no user: for packages and for looking around
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Take over a key pair from standard input or the environment, as `keygen --import` does, instead of making one
    #[arg(long)]
    pub import: bool,
}

/// Makes user, directories, key, configuration and unit where they are missing, and says what to do next.
pub fn setup(arguments: &Setup) -> Result<(), Failure> {
    let root = &arguments.root;
    let real = root == Path::new("/");
    let owner = if real && geteuid().is_root() { daemon_user()? } else { None };
    let under = |path: &str| root.join(path);
    let told = &mut Told::default();

    directory(&under(CONFIGURATION_DIR), 0o755, None, told)?;
    directory(&under(DATA_DIR), 0o700, owner, told)?;

    let key_file = under(CONFIGURATION_DIR).join("vapid.pem");
    let key = if key_file.exists() {
        if arguments.import {
            return Err(exists(&key_file));
        }
        told.kept(&key_file);
        let daemon = owner.map(|(user, _)| user.as_raw());
        SigningKey::read_for(&key_file, daemon).map_err(|error| key_failure(&key_file, &error, Some(USER)))?
    } else {
        let key = if arguments.import { imported(None)? } else { SigningKey::generate() };
        own(&write_key(&key, &key_file)?, &key_file, owner)?;
        told.made(&key_file);
        key
    };

    new_file(&under(CONFIGURATION_DIR).join("fanfare.toml"), 0o644, &configuration(SHIPPED, &arguments.subject), told)?;
    let unit_installed = UNIT_DIRS.iter().any(|directory| under(directory).join("fanfare.service").exists());
    let systemd = under(UNIT_DIRS[0]);
    if !unit_installed && real && systemd.is_dir() {
        let program = std::env::current_exe().map_err(|error| Failure::io("cannot find this program's own path", &error))?;
        let unit = SERVICE.replace("/usr/local/bin/fanfare", &program.display().to_string());
        new_file(&systemd.join("fanfare.service"), 0o644, &unit, told)?;
    }

    let of_root = key_file.metadata().is_ok_and(|found| found.uid() == 0);
    if owner.is_some_and(|(user, _)| !user.is_root()) && of_root {
        let file = printable::path(&key_file);
        told.say(format_args!("\nThe daemon cannot read the key, which belongs to root:\n  chown {USER} {file}"));
    }
    next_steps(&key.public_key_base64url(), real && owner.is_none(), told);
    told.end()
}

/// Tells what is made while it is made. Where nobody can read that, the work goes on: half a setup helps nobody.
#[derive(Default)]
struct Told {
    failed: Option<Failure>,
}

impl Told {
    fn say(&mut self, text: impl Display) {
        if self.failed.is_none() {
            self.failed = say(text).err();
        }
    }

    fn made(&mut self, path: &Path) {
        self.say(format_args!("made {}", printable::path(path)));
    }

    fn kept(&mut self, path: &Path) {
        self.say(format_args!("kept {}, which was there", printable::path(path)));
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.failed.take().map_or(Ok(()), Err)
    }
}

fn next_steps(public_key: &str, user_missing: bool, told: &mut Told) {
    if user_missing {
        told.say(format_args!(
            "\nThe user `{USER}` is missing. Make it, and give it its files:\n  \
             useradd --system --home-dir /{DATA_DIR} --shell /usr/sbin/nologin {USER}\n  \
             chown {USER}:{USER} /{DATA_DIR} /{CONFIGURATION_DIR}/vapid.pem"
        ));
    }
    told.say(format_args!(
        "\nNext:\n  \
         fanfare check-config                         # names every problem at once\n  \
         systemctl daemon-reload\n  \
         systemctl enable --now fanfare\n  \
         usermod -aG {USER} YOUR_APPLICATIONS_USER    # who may send; takes effect at its next login or start\n  \
         fanfare ping\n\n\
         The public key, for the page that asks for permission:\n\n  \
         const registration = await navigator.serviceWorker.ready;\n  \
         const subscription = await registration.pushManager.subscribe({{\n    \
         userVisibleOnly: true,\n    \
         applicationServerKey: \"{public_key}\",\n  \
         }});\n  \
         await fetch(\"/subscriptions\", {{ method: \"POST\", body: JSON.stringify(subscription) }});"
    ));
}

/// The uid and gid of the daemon's user, which is made if systemd-sysusers is there to make it.
fn daemon_user() -> Result<Option<(Uid, Gid)>, Failure> {
    if user().is_none() {
        make_user();
    }
    Ok(user())
}

fn user() -> Option<(Uid, Gid)> {
    let user = User::from_name(USER).ok().flatten()?;
    let group = Group::from_name(USER).ok().flatten().map_or(user.gid, |group| group.gid);
    Some((user.uid, group))
}

/// Without success nothing is lost: the caller looks whether the user exists, and says how to make it.
fn make_user() {
    let Ok(mut child) = Command::new("systemd-sysusers").arg("-").stdin(Stdio::piped()).spawn() else { return };
    if let Some(mut stdin) = child.stdin.take() {
        let _ = stdin.write_all(SYSUSERS.as_bytes());
    }
    let _ = child.wait();
}

fn directory(path: &Path, mode: u32, owner: Option<(Uid, Gid)>, told: &mut Told) -> Result<(), Failure> {
    if path.is_dir() {
        told.kept(path);
        return Ok(());
    }
    let cannot = |error: &io::Error| as_root(Failure::io(format_args!("cannot make {}", printable::path(path)), error));
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(|error| cannot(&error))?;
    }
    DirBuilder::new().mode(mode).create(path).map_err(|error| cannot(&error))?;
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let directory = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path).map_err(|error| cannot(&error))?;
    // The umask may have taken bits away.
    directory.set_permissions(fs::Permissions::from_mode(mode)).map_err(|error| cannot(&error))?;
    own(&directory, path, owner)?;
    told.made(path);
    Ok(())
}

fn new_file(path: &Path, mode: u32, text: &str, told: &mut Told) -> Result<(), Failure> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = opened.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    });
    match written {
        Ok(()) => told.made(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => told.kept(path),
        Err(error) => return Err(as_root(Failure::io(format_args!("cannot write {}", printable::path(path)), &error))),
    }
    Ok(())
}

/// By the open file: the name may be another's by now.
fn own(file: &File, path: &Path, owner: Option<(Uid, Gid)>) -> Result<(), Failure> {
    let Some((user, group)) = owner else { return Ok(()) };
    fchown(file, Some(user), Some(group)).map_err(|error| {
        let what = format_args!("cannot give {} to {}", printable::path(path), user_name(user.as_raw())).to_string();
        Failure::io(what, &error.into())
    })
}

fn as_root(mut failure: Failure) -> Failure {
    if failure.exit == Exit::Permission && !geteuid().is_root() {
        failure.message.push_str(". Run it as root, or look first with --root DIR");
    }
    failure
}

/// The shipped configuration with its one app switched on and the subject set. Everything else stays a comment or the default.
fn configuration(shipped: &str, subject: &str) -> String {
    let subject = format!("subject = {}", json!(subject));
    let mut in_app = false;
    let mut found = false;
    let mut text = String::new();
    for line in shipped.lines() {
        let bare = line.trim_start_matches(['#', ' ']);
        let is_header = bare.starts_with('[') && bare.contains(']') && (line.starts_with('[') || bare.starts_with("[apps."));
        if is_header {
            in_app = bare.starts_with("[apps.default]");
        }
        let key = bare.split_once('=').map(|(key, _)| key.trim());
        match key {
            _ if in_app && is_header => text.push_str(bare),
            Some("subject") if in_app && !found => {
                found = true;
                text.push_str(&subject);
            }
            Some("vapid_keys") if in_app => text.push_str(bare),
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    if !found {
        text.push_str(&format!("\n[apps.default]\nvapid_keys = [\"/{CONFIGURATION_DIR}/vapid.pem\"]\n{subject}\n"));
    }
    text
}

/// RFC 8292 section 2.1, as strictly as the strictest service takes it: no spaces, no brackets
/// (docs/push-services.md 3.3). A bare address
/// gets its `mailto:`.
fn subject(text: &str) -> Result<String, String> {
    let wrong = "it must be mailto:NAME@DOMAIN or https://…, without spaces or brackets";
    if text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '<' | '>')) {
        return Err(wrong.to_owned());
    }
    if text.starts_with("https://") {
        return match url::Url::parse(text) {
            Ok(url) if url.has_host() => Ok(text.to_owned()),
            _ => Err(wrong.to_owned()),
        };
    }
    match text.strip_prefix("mailto:").unwrap_or(text).split_once('@') {
        Some((name, domain))
            if !name.is_empty() && !name.contains([':', '/']) && domain.contains('.') && !domain.contains('@') =>
        {
            Ok(format!("mailto:{name}@{domain}"))
        }
        _ => Err(wrong.to_owned()),
    }
}

/// `fanfare keygen`.
#[derive(Debug, Args)]
pub struct Keygen {
    /// The file to make: PEM, mode 0600
    #[arg(long, value_name = "FILE", default_value = "/etc/fanfare/vapid.pem")]
    pub out: PathBuf,
    /// Take over a pair of the web-push tool: {"publicKey":…,"privateKey":…} (or the private key alone, as PEM or base64url) from
    /// standard input, or VAPID_PUBLIC_KEY and VAPID_PRIVATE_KEY from the environment, or both keys as arguments
    #[arg(long)]
    pub import: bool,
    /// Public and private key in base64url. Arguments can be seen by every user of the machine: prefer standard input
    #[arg(value_names = ["PUBLIC", "PRIVATE"], num_args = 2, requires = "import")]
    pub pair: Option<Vec<String>>,
}

/// Writes a new or imported key pair, and prints the public key. Where root does it, the file is given to the user who will read it:
/// `owner_beside`.
pub fn keygen(arguments: &Keygen) -> Result<(), Failure> {
    let key = if arguments.import { imported(arguments.pair.as_deref())? } else { SigningKey::generate() };
    let owner = if geteuid().is_root() { owner_beside(&arguments.out) } else { None };
    own(&write_key(&key, &arguments.out)?, &arguments.out, owner)?;
    let file = printable::path(&arguments.out);
    let whose = owner.map(|(user, _)| format!(", which belongs to {}", user_name(user.as_raw()))).unwrap_or_default();
    note(format_args!("made {file}{whose}: keep a copy where it is safe, for without it every subscription is lost"));
    say(key.public_key_base64url())
}

/// The user who needs a new key at `path`: the owner of the other private keys beside it, or of the directory, or in the
/// configuration's own directory the daemon's user. None: root, or nobody is known.
fn owner_beside(path: &Path) -> Option<(Uid, Gid)> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut names: Vec<PathBuf> = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path()).collect();
    names.sort();
    let of = |found: &Metadata| (found.uid() != 0).then(|| (Uid::from_raw(found.uid()), Gid::from_raw(found.gid())));
    let of_key = |file: &PathBuf| {
        let owner = of(&fs::symlink_metadata(file).ok().filter(Metadata::is_file)?)?;
        SigningKey::read_for(file, Some(owner.0.as_raw())).ok().map(|_| owner)
    };
    let in_configuration = || directory.canonicalize().is_ok_and(|directory| directory == Path::new("/").join(CONFIGURATION_DIR));
    names
        .iter()
        .find_map(of_key)
        .or_else(|| of(&directory.metadata().ok()?))
        .or_else(|| if in_configuration() { user() } else { None })
}

/// As `web-push generate-vapid-keys --json` prints it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WebPushPair {
    public_key: String,
    private_key: String,
}

/// `pair`: public and private key, where they were given as arguments.
fn imported(pair: Option<&[String]>) -> Result<SigningKey, Failure> {
    let not_taken = |error: ImportError| Failure::new(Exit::Usage, error.to_string());
    if let Some([public, private]) = pair {
        return SigningKey::import(Some(public), private).map_err(not_taken);
    }
    if let (Ok(public), Ok(private)) = (std::env::var("VAPID_PUBLIC_KEY"), std::env::var("VAPID_PRIVATE_KEY").map(Zeroizing::new))
    {
        return SigningKey::import(Some(&public), &private).map_err(not_taken);
    }
    if io::stdin().is_terminal() {
        note("Paste the output of `web-push generate-vapid-keys --json`, then Ctrl-D:");
    }
    let mut text = Zeroizing::new(String::with_capacity(16 * 1024));
    io::stdin().take(16 * 1024).read_to_string(&mut text).map_err(|error| Failure::io("cannot read the keys", &error))?;
    if !text.trim_start().starts_with('{') {
        return SigningKey::import(None, &text).map_err(not_taken);
    }
    // The error is not shown: it could quote the key.
    let pair: WebPushPair = serde_json::from_str(&text)
        .map_err(|_| Failure::new(Exit::Usage, r#"the keys must come as {"publicKey":"…","privateKey":"…"}"#))?;
    SigningKey::import(Some(&pair.public_key), &Zeroizing::new(pair.private_key)).map_err(not_taken)
}

fn write_key(key: &SigningKey, path: &Path) -> Result<File, Failure> {
    key.write_new(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(path),
        _ => as_root(Failure::io(format_args!("cannot write {}", printable::path(path)), &error)),
    })
}

fn exists(path: &Path) -> Failure {
    Failure::new(
        Exit::Usage,
        format!(
            "{} exists, and a key is never overwritten: without it its subscriptions are lost. `fanfare keygen --out FILE` makes \
             another, which `vapid_keys` can name beside it",
            printable::path(path)
        ),
    )
}

/// Why a key file was not taken, with the command that mends it for the user `daemon`, if there is one. Exit 77 where rights are the reason, else 78.
fn key_failure(path: &Path, error: &KeyFileError, daemon: Option<&str>) -> Failure {
    let exit = if error.is_about_rights() { Exit::Permission } else { Exit::Configuration };
    let remedy = daemon.and_then(|daemon| error.remedy(path, daemon)).map(|command| format!(": {command}")).unwrap_or_default();
    Failure::new(exit, format!("the key file {} {error}{remedy}", printable::path(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_that_apple_refuses_are_refused() {
        assert_eq!(subject("ops@example.com").as_deref(), Ok("mailto:ops@example.com"));
        assert_eq!(subject("mailto:ops@example.com").as_deref(), Ok("mailto:ops@example.com"));
        assert_eq!(subject("https://example.com/push").as_deref(), Ok("https://example.com/push"));
        for text in [
            "",
            "mailto: <ops@example.com>",
            "mailto:ops",
            "http://example.com",
            "https://",
            "mailto:@example.com",
            "ops@localhost",
        ] {
            assert!(subject(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_shipped_configuration_becomes_a_working_one() {
        let shipped = "data_dir = \"/x\"\n[ingest]\n# socket = \"s\"\n\n# [apps.default]\n# The subject = the sender.\n# vapid_keys = [\"/etc/fanfare/vapid.pem\"]\n# subject = \"\"\n# [apps.shop]\n# subject = \"\"\n[messages]\n# subject = 1\n";
        let expected = "data_dir = \"/x\"\n[ingest]\n# socket = \"s\"\n\n[apps.default]\n# The subject = the sender.\nvapid_keys = [\"/etc/fanfare/vapid.pem\"]\nsubject = \"mailto:a@b.c\"\n# [apps.shop]\n# subject = \"\"\n[messages]\n# subject = 1\n";
        assert_eq!(configuration(shipped, "mailto:a@b.c"), expected);
        assert!(configuration("", "mailto:a@b.c").ends_with("subject = \"mailto:a@b.c\"\n"));
    }

    #[test]
    fn the_configuration_that_is_written_names_the_app_once() {
        let text = configuration(SHIPPED, "mailto:ops@example.com");
        let settings = config::Config::builder()
            .add_source(config::File::from_str(&text, config::FileFormat::Toml))
            .build()
            .expect("it is TOML");
        assert_eq!(settings.get_string("apps.default.subject").expect("it is set"), "mailto:ops@example.com");
        let keys = settings.get_array("apps.default.vapid_keys").expect("it is set");
        assert_eq!(keys.len(), 1);
        assert_eq!(keys[0].to_string(), "/etc/fanfare/vapid.pem");
    }
}
