//! The sockets that lines come in by: those that systemd holds for us, and those that we make.
//!
//! Promise: nobody connects to a socket of ours before its group and mode are set, and one that another process listens on is never
//! taken away from it.

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use listenfd::ListenFd;
use tokio::net::UnixListener;

use super::{Daemon, ServeError, rules};
use crate::config::{self, Config};
use crate::ingest::share::Shares;
use crate::ingest::{self, Socket};
use crate::printable;

impl Daemon {
    /// `connections`: how many there may be on all sockets together.
    pub(super) fn open_sockets(&mut self, config: &Config, connections: usize) -> Result<(), ServeError> {
        let mut inherited = inherited_sockets();
        let operator = config::Socket {
            path: config.ingest.socket.clone(),
            mode: config.ingest.socket_mode,
            group: config.ingest.socket_group.clone(),
            apps: config.apps.keys().cloned().collect(),
        };
        let named = config.sockets.iter().map(|(name, socket)| (name.as_str(), socket, false));
        let shares = Shares::divide(connections, &config.ingest, 1 + config.sockets.len());
        let sockets = std::iter::once(("operator", &operator, true)).chain(named).zip(shares);
        let mut listeners = Vec::new();
        for (number, ((name, socket, is_operator), shares)) in (0..).zip(sockets) {
            let listener = match inherited.remove(&socket.path) {
                Some(listener) => listener,
                None => {
                    let listener = bind(socket)?;
                    self.socket_paths.push(socket.path.clone());
                    listener
                }
            };
            let rules = rules(config, &socket.apps, &self.tokens, &self.store);
            let socket = Arc::new(Socket {
                name: name.to_owned(),
                rules: ArcSwap::from_pointee(rules),
                operator: is_operator,
                number,
                shares,
            });
            self.sockets.push(socket);
            listeners.push(listener);
        }
        // When one answers all are there.
        for (listener, socket) in listeners.into_iter().zip(&self.sockets) {
            tokio::spawn(ingest::serve(listener, socket.clone(), self.door.clone()));
        }
        Ok(())
    }
}

/// The sockets that systemd holds for us, by path.
fn inherited_sockets() -> HashMap<PathBuf, UnixListener> {
    let mut inherited = HashMap::new();
    let mut fds = ListenFd::from_env();
    for index in 0..fds.len() {
        let Ok(Some(listener)) = fds.take_unix_listener(index) else { continue };
        let path = listener.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
        let usable = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        match (path, usable) {
            (Some(path), Ok(listener)) => {
                inherited.insert(path, listener);
            }
            (path, _) => {
                let path = path.map_or_else(|| "without a name".to_owned(), |path| printable::path(&path));
                tracing::warn!(path, "a socket from systemd cannot be used");
            }
        }
    }
    inherited
}

/// Makes a socket with its mode and group. A leftover that nobody listens on is replaced.
fn bind(socket: &config::Socket) -> Result<UnixListener, ServeError> {
    let path = &socket.path;
    let failed = |what: &str, error: std::io::Error| {
        let text = format!("the socket {}: {what}: {error}", path.display());
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => ServeError::Permission(text),
            _ => ServeError::Io(text),
        }
    };
    if std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ServeError::Temporary(format!("the socket {} is in use by another process", path.display())));
        }
        std::fs::remove_file(path).map_err(|error| failed("the old one cannot be removed", error))?;
    }
    // Made closed for everyone: nobody connects before its group and mode are set.
    let old = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o777));
    let bound = UnixListener::bind(path);
    nix::sys::stat::umask(old);
    let listener = bound.map_err(|error| failed("cannot be made", error))?;
    if let Some(name) = &socket.group {
        let group = nix::unistd::Group::from_name(name)
            .ok()
            .flatten()
            .ok_or_else(|| ServeError::Config(format!("the socket {}: there is no group {name}", path.display())))?;
        std::os::unix::fs::chown(path, None, Some(group.gid.as_raw())).map_err(|error| {
            let what = format!(
                "it cannot be given to the group {name}, which the daemon is not in (`systemctl edit fanfare`, and below [Service] \
                 SupplementaryGroups={name})"
            );
            failed(&what, error)
        })?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(socket.mode))
        .map_err(|error| failed("its mode cannot be set", error))?;
    Ok(listener)
}
