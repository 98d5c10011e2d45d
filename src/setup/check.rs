//! `fanfare check-config`, after the configuration itself was found good: whether the daemon's user may use all that it names.
//!
//! Promise: what passes here stops no start for want of a right. Root becomes the daemon's user first (`Identity`), so the answers
//! are those that the daemon will get. Everything that is wrong is told at once, each with the command that mends it.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};
use serde_json::json;

use super::identity::{Identity, group};
use super::key_failure;
use super::unit::Unit;
use crate::client::output::{Output, note, say};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::printable;
use crate::vapid::key::SigningKey;

/// `fanfare check-config`.
#[derive(Debug, Args)]
pub struct CheckConfig {
    /// Check as this user [default: for root User= of the installed unit, or the owner of `data_dir`; for others themselves]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
}

impl CheckConfig {
    /// Finds the daemon's user, and becomes that user if root asks. `data_dir`: where the configuration has it, if that is known.
    pub fn become_daemon(&self, data_dir: Option<&Path>) -> Result<Daemon, Failure> {
        let root = Path::new("/");
        let user = Identity::of_daemon(self.user.as_deref(), root, data_dir.unwrap_or(Path::new("/var/lib/fanfare")))?;
        user.become_it()?;
        let runs_as = Unit::find(root, "fanfare.service").and_then(|unit| unit.value("Service", "User").map(str::to_owned));
        let foreign = self.user.is_none() && runs_as.is_some_and(|name| name != user.name());
        Ok(Daemon { user, foreign, systemds: sockets_of_systemd(root) })
    }
}

/// The daemon as it will run.
pub struct Daemon {
    user: Identity,
    /// The installed unit names another user: files need not be this one's.
    foreign: bool,
    /// Sockets that systemd makes.
    systemds: Vec<PathBuf>,
}

impl Daemon {
    /// Adds to a failure of reading the configuration who could not read it.
    pub fn explain(&self, failure: Failure) -> Failure {
        match failure.exit {
            Exit::Permission => Failure::new(failure.exit, format!("{failure}\n{}", self.judge())),
            _ => failure,
        }
    }

    fn judge(&self) -> String {
        let better = if self.foreign { ": `sudo fanfare check-config` checks as the daemon's" } else { "" };
        format!("(checked as {}{better})", self.user)
    }

    /// The command behind a problem. None of them is right for a user who only looks.
    fn remedy(&self, command: impl fmt::Display) -> String {
        if self.foreign { String::new() } else { format!(": {command}") }
    }

    /// Shows each app's public keys, and says as whom it has checked. Exit 77 if a right is missing, 78 if something else is wrong.
    /// `doubts` are those about the configuration's file.
    pub fn check(&self, config: &Config, doubts: &[String], output: &mut Output, json: bool) -> Result<(), Failure> {
        let of_others = config.doubts(None).into_iter().filter(|doubt| !doubts.contains(doubt));
        let warnings = config.warnings().into_iter().chain(doubts.iter().cloned()).chain(of_others);
        warnings.for_each(|warning| note(format_args!("fanfare: {}", printable::line(&warning))));
        let mut problems: Vec<Failure> = Vec::new();
        // Who reads `check-config | head` still gets the exit code of what is wrong.
        let mut told = Ok(());
        for (name, app) in &config.apps {
            for (place, file) in app.vapid_keys.iter().enumerate() {
                match SigningKey::read(file) {
                    Ok(key) if json => {
                        let key = key.public_key_base64url();
                        let line = json!({"app": name, "public_key": key, "file": file, "subject": app.subject,
                            "given_to_pages": place == 0});
                        told = told.and_then(|()| output.line(&line.to_string()));
                    }
                    Ok(key) => {
                        let given = if place == 0 { ", given to pages" } else { ", still signs" };
                        let (key, file) = (key.public_key_base64url(), printable::path(file));
                        told = told.and_then(|()| say(format_args!("app {name}: public key {key} ({file}{given})")));
                    }
                    Err(error) => problems.push(key_failure(file, &error, (!self.foreign).then(|| self.user.name()).as_deref())),
                }
            }
        }
        problems.extend(self.data_dir_problem(&config.data_dir));
        problems.extend(config.deliver.extra_roots.iter().filter_map(|file| self.file_problem("deliver.extra_roots", file)));
        let operators = ("ingest.socket_group".to_owned(), &config.ingest.socket, &config.ingest.socket_group);
        let named = config.sockets.iter().map(|(name, socket)| (format!("sockets.{name}.group"), &socket.path, &socket.group));
        for (key, path, group) in std::iter::once(operators).chain(named) {
            if !self.systemds.contains(path) {
                problems.extend(self.group_problem(&key, group.as_deref()));
                problems.extend(self.directory_problem(path));
            }
        }
        if problems.is_empty() {
            let well = format!("all is well {}", self.judge());
            told?;
            if !json {
                return say(well);
            }
            note(format_args!("fanfare: {well}"));
            return Ok(());
        }
        let permission = problems.iter().any(|problem| problem.exit == Exit::Permission);
        let exit = if permission { Exit::Permission } else { Exit::Configuration };
        let problems: Vec<String> = problems.iter().map(Failure::to_string).collect();
        Err(Failure::new(exit, format!("{}\n{}", problems.join("\nfanfare: "), self.judge())))
    }

    /// A socket's group must be one that the daemon is in: nobody else may give a file to it.
    fn group_problem(&self, key: &str, name: Option<&str>) -> Option<Failure> {
        let name = name?;
        let shown = printable::line(name);
        let Some(group) = group(name) else {
            let message = format!("{key}: there is no group {shown}{}", self.remedy(format_args!("groupadd --system {shown}")));
            return Some(Failure::new(Exit::Configuration, message));
        };
        if self.user.is_in(group) {
            return None;
        }
        let user = self.user.name();
        let remedy = match self.user.unit() {
            Some(_) => format!("systemctl edit fanfare, and write below [Service]: SupplementaryGroups={shown}"),
            None => format!("usermod -aG {shown} {user}"),
        };
        let message =
            format!("{key}: the user {user} is not in the group {shown}, and cannot give it the socket{}", self.remedy(remedy));
        Some(Failure::new(Exit::Permission, message))
    }

    /// The directory of a socket; one that is not there may be made by the unit (`RuntimeDirectory=`).
    fn directory_problem(&self, socket: &Path) -> Option<Failure> {
        let directory = socket.parent()?;
        denied(directory, AccessFlags::W_OK | AccessFlags::X_OK).then(|| {
            let (user, shown) = (self.user.name(), printable::path(directory));
            let (socket, remedy) = (printable::path(socket), self.remedy(format_args!("chown {user} {shown}")));
            Failure::new(Exit::Permission, format!("the socket {socket}: the user {user} may not make it in {shown}{remedy}"))
        })
    }

    fn data_dir_problem(&self, directory: &Path) -> Option<Failure> {
        denied(directory, AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK).then(|| {
            let (user, shown) = (self.user.name(), printable::path(directory));
            let remedy = self.remedy(format_args!("chown -R {user}: {shown}"));
            Failure::new(Exit::Permission, format!("data_dir: the user {user} may not write to {shown}{remedy}"))
        })
    }

    fn file_problem(&self, key: &str, file: &Path) -> Option<Failure> {
        let error = File::open(file).err()?;
        let (exit, remedy) = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                (Exit::Permission, self.remedy(format_args!("chmod o+r {}", printable::path(file))))
            }
            _ => (Exit::Configuration, String::new()),
        };
        Some(Failure::new(exit, format!("{key}: {} cannot be read: {error}{remedy}", printable::path(file))))
    }
}

/// Whether `path` is there and this process has no such rights to it.
fn denied(path: &Path, rights: AccessFlags) -> bool {
    access(path, rights) == Err(Errno::EACCES)
}

/// The sockets that `fanfare.socket` makes, if it is switched on: it has its own group.
fn sockets_of_systemd(root: &Path) -> Vec<PathBuf> {
    let wanted = root.join("etc/systemd/system/sockets.target.wants/fanfare.socket");
    if fs::symlink_metadata(wanted).is_err() {
        return Vec::new();
    }
    let unit = Unit::find(root, "fanfare.socket");
    unit.iter().flat_map(|unit| unit.words("Socket", "ListenStream")).map(PathBuf::from).collect()
}
