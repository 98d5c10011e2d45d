//! Text -> checked [`Config`], once.
//!
//! Promises: what is in a [`Config`] lies within its limits and fits together; where something is wrong, all problems are told
//! at once, each with its key; a key that nobody reads is an error. Whether files, groups and directories exist is found out
//! by those who open them; who else could change them is told by `file`.
//!
//! This file says what there is. `keys` knows every key with its default and its limits, `read` how a key is found in the file and
//! the environment, and what is said where it is wrong. `changes` says which keys a reload does not apply.

mod changes;
mod file;
mod keys;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use self::file::doubts;
use crate::endpoint::{AllowedHost, Policy};
use crate::protocol::request::EventType;

/// The settings of `fanfare.toml` and the environment, checked.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub ingest: Ingest,
    /// Sockets on which only some apps exist, by name.
    pub sockets: BTreeMap<String, Socket>,
    pub metrics: Metrics,
    /// At least one.
    pub apps: BTreeMap<String, App>,
    pub messages: Messages,
    pub events: Events,
    pub store: Store,
    pub encrypt: Encrypt,
    pub deliver: Deliver,
    pub retry: Retry,
    pub registry: Registry,
    pub presence: Presence,
    pub endpoints: Endpoints,
}

/// `[ingest]`: the operator's socket and the bounds of all sockets.
#[derive(Clone, Debug)]
pub struct Ingest {
    pub socket: PathBuf,
    pub socket_mode: u32,
    /// None: the process's own group.
    pub socket_group: Option<String>,
    pub line_limit: usize,
    pub connections: usize,
    pub memory_mb: usize,
}

/// `[sockets.NAME]`.
#[derive(Clone, Debug)]
pub struct Socket {
    pub path: PathBuf,
    pub mode: u32,
    pub group: Option<String>,
    /// Names in `[apps]`.
    pub apps: Vec<String>,
}

/// `[metrics]`.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// None: `""`, no listener.
    pub listen: Option<SocketAddr>,
}

/// `[apps.NAME]`.
#[derive(Clone, Debug)]
pub struct App {
    /// Files of private keys; the first is given to pages.
    pub vapid_keys: Vec<PathBuf>,
    /// `mailto:` or `https:` (RFC 8292 section 2.1), checked.
    pub subject: String,
    /// The valid scopes; empty: every name is one.
    pub scopes: Vec<String>,
}

/// `[messages]`.
#[derive(Clone, Debug)]
pub struct Messages {
    pub ttl_default: u32,
    pub ttl_max: u32,
    pub ttl0_patience: Duration,
    pub retention: Duration,
    pub at_max: Duration,
    /// Deliveries that may wait at the same time.
    pub max_pending: u64,
    /// Lists, streams and campaigns that may be open at the same time.
    pub max_open: u64,
}

/// `[events]`.
#[derive(Clone, Debug)]
pub struct Events {
    pub log: Vec<EventType>,
    pub retention: Duration,
    pub max_mb: u64,
}

/// `[store]`.
#[derive(Clone, Debug)]
pub struct Store {
    pub checkpoint_interval: Duration,
    pub cache_mb: usize,
    pub min_free_percent: f64,
    pub reserve_mb: u64,
    pub fresh_mb: usize,
}

/// `[encrypt]`.
#[derive(Clone, Debug)]
pub struct Encrypt {
    /// 0: one a core.
    pub threads: usize,
    /// Plaintexts are padded to a multiple of this many bytes; 0: not at all.
    pub padding: usize,
    /// Megabytes of key agreements that are made ahead of need; 0: none are.
    pub warm_memory: usize,
}

/// `[deliver]`.
#[derive(Clone, Debug)]
pub struct Deliver {
    pub connections_per_origin: usize,
    pub origins: usize,
    pub timeout: Duration,
    pub drain: Duration,
    /// `http://host:port` of an HTTP CONNECT proxy.
    pub proxy: Option<String>,
    /// A PEM file of further trusted CAs.
    pub extra_roots: Option<PathBuf>,
}

/// `[retry]`.
#[derive(Clone, Debug)]
pub struct Retry {
    pub min: Duration,
    pub max: Duration,
}

/// `[registry]`: read, and used by the operations of the registry.
#[derive(Clone, Debug)]
pub struct Registry {
    pub browsers_per_account: u32,
    pub undo: Duration,
}

/// `[presence]`: read, and used by the operations of the registry.
#[derive(Clone, Debug)]
pub struct Presence {
    pub grace: Duration,
}

/// `[endpoints]` (docs/design.md 6.1).
#[derive(Clone, Debug)]
pub struct Endpoints {
    pub policy: Policy,
    pub allow_hosts: Vec<AllowedHost>,
    pub allow_networks: Vec<IpNet>,
}

/// Why there is no [`Config`].
#[derive(Debug)]
pub enum Problems {
    /// The file is not there, or may not be read, or is not UTF-8.
    Unreadable { path: PathBuf, error: io::Error },
    /// What it says, or the environment, is wrong; at least one.
    Wrong(Vec<Problem>),
}

/// One thing that is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key with its tables, `deliver.timeout`; for text that is no TOML, the file.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

/// One line a problem.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problems::Unreadable { path, error } => write!(f, "{}: cannot be read: {error}", path.display()),
            Problems::Wrong(problems) => {
                for (n, problem) in problems.iter().enumerate() {
                    if n > 0 {
                        writeln!(f)?;
                    }
                    write!(f, "{problem}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Problems {}

impl Config {
    /// What is legal and yet probably not meant, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (name, app) in &self.apps {
            if ["example.com", "example.net", "example.org"].iter().any(|domain| app.subject.contains(domain)) {
                warnings.push(format!(
                    "apps.{name}.subject: {} is nobody's address; push services use it to reach you, and Apple may refuse it",
                    app.subject
                ));
            }
        }
        if self.apps.len() > 1 && !self.apps.contains_key("default") {
            warnings.push("apps: there are several and none is called default, so every send must name its app".to_owned());
        }
        let modes = self.sockets.iter().map(|(name, socket)| (format!("sockets.{name}.mode"), socket.mode));
        for (key, mode) in modes.chain([("ingest.socket_mode".to_owned(), self.ingest.socket_mode)]) {
            if mode & 0o002 != 0 {
                warnings.push(format!("{key}: {mode:#o} lets every local user send"));
            }
        }
        if let Some(listen) = self.metrics.listen
            && !listen.ip().is_loopback()
        {
            warnings.push(format!("metrics.listen: {listen} can be reached from outside, and metrics ask for no password"));
        }
        for network in &self.endpoints.allow_networks {
            if network.prefix_len() == 0 {
                warnings.push(format!("endpoints.allow_networks: {network} lets endpoints reach your internal hosts"));
            }
        }
        for host in &self.endpoints.allow_hosts {
            if !host.host.contains(['.', ':']) && host.host != "localhost" {
                warnings.push(format!("endpoints.allow_hosts: {host} lets in every host whose name ends in .{}", host.host));
            }
        }
        if self.store.min_free_percent == 0.0 {
            warnings.push("store.min_free_percent: 0 takes lines until the disk is full".to_owned());
        }
        if !self.data_dir.is_absolute() {
            warnings.push(format!("data_dir: {} depends on the directory of the start", self.data_dir.display()));
        }
        warnings
    }
}
