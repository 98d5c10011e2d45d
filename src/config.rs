//! Text -> checked [`Config`], once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::ingest::request::EventType;

/// Everything `fanfare.toml` and the environment say, checked (DESIGN 5).
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
}

/// `[messages]`.
#[derive(Clone, Debug)]
pub struct Messages {
    pub ttl_default: u32,
    pub ttl_max: u32,
    pub ttl0_patience: Duration,
    pub retention: Duration,
    pub at_max: Duration,
    pub max_pending: u64,
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

/// `[endpoints]` (DESIGN 7).
#[derive(Clone, Debug)]
pub struct Endpoints {
    pub policy: Policy,
    pub allow_hosts: Vec<AllowedHost>,
    pub allow_networks: Vec<IpNet>,
}

/// `endpoints.policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The known push services and `allow_hosts`.
    Known,
    /// Any public host.
    Public,
}

/// An entry of `endpoints.allow_hosts`: that host and its subdomains; with a port only that port, else any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost {
    /// Lower case, no trailing dot; an IPv6 address without brackets.
    pub host: String,
    pub port: Option<u16>,
}
