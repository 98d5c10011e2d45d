//! Text -> checked [`Config`], once.
//!
//! Promises: what is in a [`Config`] lies within its limits and fits together; where something is wrong, all problems are told
//! at once, each with its key; a key that nobody reads is an error. Whether files, groups and directories exist is found out
//! by those who open them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::config::{ConfigError, File, FileFormat, Map, Source, Value, ValueKind};
use ipnet::IpNet;
use url::Url;

use crate::endpoint::is_public_name;
use crate::ingest::request::EventType;
use crate::limits::{CONNECTION_BYTES, NAME_MAX, PAYLOAD_MAX};
use crate::message::Ending;

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
    /// Reads `file`, if there is to be one, and over it the variables of `env` whose names start with `FANFARE__`
    /// (`FANFARE__DELIVER__TIMEOUT` is `deliver.timeout`; lists are separated by commas). `CREDENTIALS_DIRECTORY` of `env`
    /// replaces itself at the start of a path in `vapid_keys`.
    pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Config, Problems> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path).map_err(|error| Problems::Unreadable { path: path.to_owned(), error })?,
            None => String::new(),
        };
        let name = file.map_or_else(|| "the configuration".to_owned(), |path| path.display().to_string());
        let not_toml = |error: ConfigError| {
            let text = error.to_string();
            Problems::Wrong(vec![Problem { key: name.clone(), message: text.trim_end().to_owned() }])
        };
        let file = File::from_str(&text, FileFormat::Toml);
        let environment = Environment::new(env, &file.collect().map_err(not_toml)?);
        let credentials = environment.credentials.clone();
        let tree = ::config::Config::builder().add_source(file).add_source(environment).build().map_err(not_toml)?;
        let mut read = Read { credentials, ..Read::default() };
        let config = read.config(tree.cache.into_table().map_err(not_toml)?);
        if read.problems.is_empty() {
            Ok(config)
        } else {
            read.problems.sort_by(|one, other| one.key.cmp(&other.key));
            Err(Problems::Wrong(read.problems))
        }
    }

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

/// The origin that values of the environment carry.
const ENVIRONMENT: &str = "the environment";

/// The variables of the environment that are keys. Of our own because `config`'s turns all names to lower case: an app
/// called `Shop` or `my-shop` in the file could not be reached. Here `FANFARE__APPS__MY_SHOP__SUBJECT` means it.
#[derive(Clone, Debug)]
struct Environment {
    /// Path with dots, and value.
    values: Vec<(String, String)>,
    /// `CREDENTIALS_DIRECTORY`, where systemd puts what `LoadCredential=` names.
    credentials: Option<String>,
}

impl Environment {
    fn new(env: impl Iterator<Item = (String, String)>, file: &Map<String, Value>) -> Environment {
        let mut found = Environment { values: Vec::new(), credentials: None };
        for (name, value) in env {
            if name == "CREDENTIALS_DIRECTORY" {
                found.credentials = Some(value);
            } else if let Some(path) = name.strip_prefix("FANFARE__") {
                let path = path.to_lowercase();
                let mut parts: Vec<&str> = path.split("__").collect();
                if let [table @ ("apps" | "sockets"), name, ..] = parts[..]
                    && let Some(ValueKind::Table(named)) = file.get(table).map(|value| &value.kind)
                    && let Some(spelled) = named.keys().find(|key| key.to_lowercase().replace('-', "_") == name)
                {
                    parts[1] = spelled;
                }
                found.values.push((parts.join("."), value));
            }
        }
        // A table's name before its members, should somebody set both; else the order would be the environment's.
        found.values.sort();
        found
    }
}

impl Source for Environment {
    fn clone_into_box(&self) -> Box<dyn Source + std::marker::Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        let origin = ENVIRONMENT.to_owned();
        Ok(self.values.iter().map(|(path, value)| (path.clone(), Value::new(Some(&origin), value.clone()))).collect())
    }
}

/// The reading of a whole configuration: what was wrong so far.
#[derive(Default)]
struct Read {
    credentials: Option<String>,
    problems: Vec<Problem>,
    /// Every key that was asked for, whether it is there or not.
    known: BTreeSet<String>,
}

impl Read {
    fn config(&mut self, tree: Map<String, Value>) -> Config {
        let mut root = Section { read: self, place: String::new(), values: tree };
        let data_dir = root.path("data_dir", Some("/var/lib/fanfare"));
        let apps = root.apps();
        let config = Config {
            data_dir,
            ingest: root.ingest(),
            sockets: root.sockets(&apps),
            metrics: root.metrics(),
            messages: root.messages(),
            events: root.events(),
            store: root.store(),
            encrypt: root.encrypt(),
            deliver: root.deliver(),
            retry: root.retry(),
            registry: root.registry(),
            presence: root.presence(),
            endpoints: root.endpoints(),
            apps,
        };
        root.end();
        self.socket_paths(&config);
        config
    }

    /// Two sockets cannot have one path.
    fn socket_paths(&mut self, config: &Config) {
        let mut taken = BTreeMap::from([(&config.ingest.socket, "ingest.socket".to_owned())]);
        for (name, socket) in config.sockets.iter().filter(|(_, socket)| !socket.path.as_os_str().is_empty()) {
            let key = format!("sockets.{name}.path");
            if let Some(other) = taken.get(&socket.path) {
                self.problem(key, format!("is the same as {other}; every socket needs a path of its own"));
            } else {
                taken.insert(&socket.path, key);
            }
        }
    }

    fn problem(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { key: key.into(), message: message.into() });
    }
}

/// A table that is being read: each key is taken out, and what is left in the end is unknown. A wrong value is noted and
/// replaced by a harmless one, so that reading goes on to the next problem.
struct Section<'r> {
    read: &'r mut Read,
    /// Path of the table, empty for the root.
    place: String,
    values: Map<String, Value>,
}

/// The largest number of megabytes or items where nothing else bounds it.
const MANY: u64 = 1 << 40;
/// Ten years: the longest duration, in seconds.
const LONG: f64 = 10.0 * 365.0 * 86_400.0;
/// The shortest duration where 0 would be no duration.
const SHORT: f64 = 0.001;

impl Section<'_> {
    fn ingest(&mut self) -> Ingest {
        let mut section = self.section("ingest");
        let ingest = Ingest {
            socket: section.socket_path("socket", Some("/run/fanfare/fanfare.sock")),
            socket_mode: section.mode("socket_mode"),
            socket_group: section.optional_text("socket_group"),
            line_limit: section.integer("line_limit", 1_048_576, 4_096..=CONNECTION_BYTES as u64) as usize,
            connections: section.integer("connections", 4_096, 1..=1_000_000) as usize,
            memory_mb: section.integer("memory_mb", 64, 4..=MANY) as usize,
        };
        section.end();
        ingest
    }

    fn sockets(&mut self, apps: &BTreeMap<String, App>) -> BTreeMap<String, Socket> {
        let mut sockets = BTreeMap::new();
        for (name, values) in self.named("sockets") {
            let mut section = self.inner(format!("sockets.{name}"), values);
            let socket = Socket {
                path: section.socket_path("path", None),
                mode: section.mode("mode"),
                group: section.optional_text("group"),
                apps: section.list("apps", &[], |_| Ok(())),
            };
            if socket.apps.is_empty() {
                section.wrong("apps", "must name at least one app");
            }
            for app in &socket.apps {
                if !apps.contains_key(app) {
                    section.wrong("apps", format!("\"{app}\" is not in [apps]"));
                }
            }
            section.end();
            sockets.insert(name, socket);
        }
        sockets
    }

    fn metrics(&mut self) -> Metrics {
        let mut section = self.section("metrics");
        let listen = section.text("listen", Some("127.0.0.1:9464"));
        let metrics = Metrics {
            listen: match listen.as_str() {
                "" => None,
                text => section.parsed("listen", text, "an address with a port, 127.0.0.1:9464, or \"\" for none"),
            },
        };
        section.end();
        metrics
    }

    fn apps(&mut self) -> BTreeMap<String, App> {
        let mut apps = BTreeMap::new();
        for (name, values) in self.named("apps") {
            let mut section = self.inner(format!("apps.{name}"), values);
            let paths: Vec<String> =
                section.list("vapid_keys", &[], |path| if path.is_empty() { Err("is empty; a path is needed") } else { Ok(()) });
            if paths.is_empty() && !section.has_problem("vapid_keys") {
                section.wrong("vapid_keys", "must name at least one key file; `fanfare keygen` makes one");
            }
            let app = App {
                vapid_keys: paths.into_iter().map(|path| section.credential("vapid_keys", path)).collect(),
                subject: section.text("subject", None),
                scopes: section.list("scopes", &[], |name| match name.len() {
                    1..=NAME_MAX => Ok(()),
                    _ => Err("is no scope; a scope has 1 to 64 bytes"),
                }),
            };
            if !section.has_problem("subject")
                && let Err(wrong) = check_subject(&app.subject)
            {
                section.wrong("subject", wrong);
            }
            section.end();
            apps.insert(name, app);
        }
        if apps.is_empty() && !self.read.problems.iter().any(|problem| problem.key.starts_with("apps")) {
            self.wrong("apps", "at least one app is needed, [apps.default] with vapid_keys and subject");
        }
        apps
    }

    fn messages(&mut self) -> Messages {
        /// Longer ones are cut by Mozilla and refused by FCM (PUSH-SERVICES 3.1 and 3.2).
        const FOUR_WEEKS: u64 = 2_419_200;
        let mut section = self.section("messages");
        let ttl_max = section.integer("ttl_max", FOUR_WEEKS, 0..=FOUR_WEEKS);
        let messages = Messages {
            ttl_default: section.integer("ttl_default", FOUR_WEEKS, 0..=FOUR_WEEKS) as u32,
            ttl_max: ttl_max as u32,
            ttl0_patience: section.seconds("ttl0_patience", 5.0, SHORT..=3_600.0),
            retention: section.seconds("retention", 604_800.0, SHORT..=LONG),
            at_max: section.seconds("at_max", 7_776_000.0, 0.0..=LONG),
            max_pending: section.integer("max_pending", 20_000_000, 1..=MANY),
        };
        if messages.ttl_default > messages.ttl_max {
            section.wrong("ttl_default", format!("{} is more than messages.ttl_max, {ttl_max}", messages.ttl_default));
        }
        section.end();
        messages
    }

    fn events(&mut self) -> Events {
        let mut section = self.section("events");
        let all: Vec<&str> = EventType::ALL
            .into_iter()
            .filter(|kind| *kind != EventType::Ended(Ending::Accepted))
            .map(EventType::as_str)
            .collect();
        let words = section.list("log", &all, |word| match EventType::parse(word) {
            Some(_) => Ok(()),
            None => {
                Err("is no type of event; they are gone, refused, expired, cancelled, skipped, accepted, unreachable, shown, \
                         clicked, dismissed")
            }
        });
        let events = Events {
            log: words.iter().filter_map(|word| EventType::parse(word)).collect(),
            retention: section.seconds("retention", 604_800.0, SHORT..=LONG),
            max_mb: section.integer("max_mb", 2_048, 1..=MANY),
        };
        section.end();
        events
    }

    fn store(&mut self) -> Store {
        let mut section = self.section("store");
        let store = Store {
            checkpoint_interval: section.seconds("checkpoint_interval", 0.25, SHORT..=60.0),
            cache_mb: section.integer("cache_mb", 256, 16..=MANY) as usize,
            min_free_percent: section.number("min_free_percent", 5.0, 0.0..=90.0),
            reserve_mb: section.integer("reserve_mb", 64, 0..=MANY),
            fresh_mb: section.integer("fresh_mb", 32, 0..=MANY) as usize,
        };
        section.end();
        store
    }

    fn encrypt(&mut self) -> Encrypt {
        let mut section = self.section("encrypt");
        let encrypt = Encrypt {
            threads: section.integer("threads", 0, 0..=1_024) as usize,
            padding: section.integer("padding", 0, 0..=PAYLOAD_MAX as u64) as usize,
            warm_memory: section.integer("warm_memory", 64, 0..=MANY) as usize,
        };
        section.end();
        encrypt
    }

    fn deliver(&mut self) -> Deliver {
        let mut section = self.section("deliver");
        let deliver = Deliver {
            connections_per_origin: section.integer("connections_per_origin", 4, 1..=256) as usize,
            origins: section.integer("origins", 1_024, 1..=1_000_000) as usize,
            timeout: section.seconds("timeout", 30.0, SHORT..=600.0),
            drain: section.seconds("drain", 10.0, 0.0..=3_600.0),
            proxy: section.optional_text("proxy"),
            extra_roots: section.optional_text("extra_roots").map(PathBuf::from),
        };
        if let Some(proxy) = &deliver.proxy
            && let Err(wrong) = check_proxy(proxy)
        {
            section.wrong("proxy", wrong);
        }
        section.end();
        deliver
    }

    fn retry(&mut self) -> Retry {
        let mut section = self.section("retry");
        let retry =
            Retry { min: section.seconds("min", 1.0, SHORT..=86_400.0), max: section.seconds("max", 3_600.0, SHORT..=LONG) };
        if retry.min > retry.max {
            section.wrong("min", "is more than retry.max");
        }
        section.end();
        retry
    }

    fn registry(&mut self) -> Registry {
        let mut section = self.section("registry");
        let registry = Registry {
            browsers_per_account: section.integer("browsers_per_account", 10_000, 1..=u64::from(u32::MAX)) as u32,
            undo: section.seconds("undo", 604_800.0, 0.0..=LONG),
        };
        section.end();
        registry
    }

    fn presence(&mut self) -> Presence {
        let mut section = self.section("presence");
        let presence = Presence { grace: section.seconds("grace", 120.0, 0.0..=86_400.0) };
        section.end();
        presence
    }

    fn endpoints(&mut self) -> Endpoints {
        let mut section = self.section("endpoints");
        let policy = match section.text("policy", Some("known")).as_str() {
            "known" => Policy::Known,
            "public" => Policy::Public,
            _ => {
                if !section.has_problem("policy") {
                    section.wrong("policy", "must be \"known\" or \"public\"");
                }
                Policy::Known
            }
        };
        let hosts = section.list("allow_hosts", &[], |text| parse_host(text).map(drop));
        let networks = section.list("allow_networks", &[], |text| match parse_network(text) {
            Some(_) => Ok(()),
            None => Err("is no network; write an address with a prefix length, 10.1.0.0/16 or fd00::/8"),
        });
        let endpoints = Endpoints {
            policy,
            allow_hosts: hosts.iter().filter_map(|text| parse_host(text).ok()).collect(),
            allow_networks: networks.iter().filter_map(|text| parse_network(text)).collect(),
        };
        for (n, host) in endpoints.allow_hosts.iter().enumerate() {
            if endpoints.allow_hosts[..n].contains(host) {
                section.wrong("allow_hosts", format!("{host} is given twice"));
            }
        }
        section.end();
        endpoints
    }

    /// The table called `name`; an empty one where there is none.
    fn section(&mut self, name: &str) -> Section<'_> {
        let values = self.table(name);
        self.inner(self.key(name), values)
    }

    fn inner(&mut self, place: String, values: Map<String, Value>) -> Section<'_> {
        Section { read: &mut *self.read, place, values }
    }

    /// The tables in the table called `name`, by their names.
    fn named(&mut self, name: &str) -> BTreeMap<String, Map<String, Value>> {
        let mut outer = self.section(name);
        let names: BTreeSet<String> = outer.values.keys().cloned().collect();
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let mut tables = BTreeMap::new();
        for name in names {
            if name.is_empty() || name.len() > 64 || !name.bytes().all(good) {
                outer.wrong(&name, "a name consists of 1 to 64 letters, digits, hyphens and underscores");
            }
            let is_table = matches!(outer.values.get(&name).map(|value| &value.kind), Some(ValueKind::Table(_)));
            let values = outer.table(&name);
            if is_table {
                tables.insert(name, values);
            }
        }
        tables
    }

    fn table(&mut self, name: &str) -> Map<String, Value> {
        match self.values.remove(name).map(|value| value.kind) {
            None => Map::new(),
            Some(ValueKind::Table(table)) => table,
            Some(_) => {
                self.wrong(name, format!("must be a table, [{}]", self.key(name)));
                Map::new()
            }
        }
    }

    /// A number; outside `range` it is wrong.
    fn number(&mut self, name: &str, default: f64, range: RangeInclusive<f64>) -> f64 {
        let Some(value) = self.take(name) else { return default };
        let number = match &value.kind {
            ValueKind::I64(number) => Some(*number as f64),
            ValueKind::Float(number) => Some(*number),
            ValueKind::String(text) if is_environment(&value) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => number,
            _ => {
                let (min, max) = (range.start(), range.end());
                let message = if *max == LONG {
                    format!("must be a number of at least {min}")
                } else {
                    format!("must be a number from {min} to {max}")
                };
                self.wrong(name, format!("{message}, is {}", shown(&value)));
                default
            }
        }
    }

    fn seconds(&mut self, name: &str, default: f64, range: RangeInclusive<f64>) -> Duration {
        Duration::from_secs_f64(self.number(name, default, range))
    }

    fn integer(&mut self, name: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(value) = self.take(name) else { return default };
        let number = match &value.kind {
            ValueKind::I64(number) => u64::try_from(*number).ok(),
            ValueKind::String(text) if is_environment(&value) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => number,
            _ => {
                let (min, max) = (range.start(), range.end());
                let message = if *max == MANY {
                    format!("must be an integer of at least {min}")
                } else {
                    format!("must be an integer from {min} to {max}")
                };
                self.wrong(name, format!("{message}, is {}", shown(&value)));
                default
            }
        }
    }

    /// The mode of a socket: `0o660` in TOML, or octal digits in a string.
    fn mode(&mut self, name: &str) -> u32 {
        const DEFAULT: u32 = 0o660;
        let Some(value) = self.take(name) else { return DEFAULT };
        let mode = match &value.kind {
            ValueKind::I64(number) => u32::try_from(*number).ok(),
            ValueKind::String(text) => u32::from_str_radix(text.trim().trim_start_matches("0o"), 8).ok(),
            _ => None,
        };
        match mode {
            Some(mode) if mode <= 0o777 => mode,
            _ => {
                self.wrong(name, format!("must be a mode in octal from 0o000 to 0o777, such as 0o660, is {}", shown(&value)));
                DEFAULT
            }
        }
    }

    /// Without a default the key must be there.
    fn text(&mut self, name: &str, default: Option<&str>) -> String {
        match (self.take(name), default) {
            (Some(Value { kind: ValueKind::String(text), .. }), _) => text,
            (Some(value), _) => {
                self.wrong(name, format!("must be a string, is {}", shown(&value)));
                String::new()
            }
            (None, Some(default)) => default.to_owned(),
            (None, None) => {
                self.wrong(name, "is missing, and there is no default");
                String::new()
            }
        }
    }

    /// None where it is empty or not there.
    fn optional_text(&mut self, name: &str) -> Option<String> {
        Some(self.text(name, Some(""))).filter(|text| !text.is_empty())
    }

    fn path(&mut self, name: &str, default: Option<&str>) -> PathBuf {
        let text = self.text(name, default);
        if text.is_empty() && !self.has_problem(name) {
            self.wrong(name, "must be a path, is empty");
        }
        PathBuf::from(text)
    }

    fn socket_path(&mut self, name: &str, default: Option<&str>) -> PathBuf {
        /// `sun_path` has 108 bytes, of which one ends the text (unix(7)).
        const SOCKET_PATH_MAX: usize = 107;
        let path = self.path(name, default);
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            self.wrong(name, format!("the path of a socket has at most {SOCKET_PATH_MAX} bytes, this one has {length}"));
        }
        path
    }

    /// Texts, of which `check` says what is wrong with each.
    fn list(&mut self, name: &str, default: &[&str], check: impl Fn(&str) -> Result<(), &'static str>) -> Vec<String> {
        let Some(value) = self.take(name) else { return default.iter().map(|text| (*text).to_owned()).collect() };
        let items = match &value.kind {
            ValueKind::Array(items) => items
                .iter()
                .map(|item| match &item.kind {
                    ValueKind::String(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            ValueKind::String(text) if is_environment(&value) => {
                Some(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
            }
            _ => None,
        };
        let Some(items): Option<Vec<String>> = items else {
            self.wrong(name, format!("must be a list of strings, [\"…\", \"…\"], is {}", shown(&value)));
            return Vec::new();
        };
        for item in &items {
            if let Err(wrong) = check(item) {
                self.wrong(name, format!("\"{item}\" {wrong}"));
            }
        }
        items
    }

    fn parsed<T: std::str::FromStr>(&mut self, name: &str, text: &str, right: &str) -> Option<T> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.wrong(name, format!("must be {right}, is \"{text}\""));
        }
        parsed
    }

    /// A path that may start with `$CREDENTIALS_DIRECTORY/` (systemd.exec(5)).
    fn credential(&mut self, name: &str, path: String) -> PathBuf {
        match (path.strip_prefix("$CREDENTIALS_DIRECTORY/"), &self.read.credentials) {
            (Some(rest), Some(directory)) => Path::new(directory).join(rest),
            (Some(_), None) => {
                self.wrong(
                    name,
                    format!("\"{path}\" needs the variable CREDENTIALS_DIRECTORY, which systemd sets for LoadCredential="),
                );
                PathBuf::from(path)
            }
            (None, _) => PathBuf::from(path),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let key = self.key(name);
        self.read.known.insert(key);
        self.values.remove(name).filter(|value| value.kind != ValueKind::Nil)
    }

    fn wrong(&mut self, name: &str, message: impl Into<String>) {
        let key = self.key(name);
        self.read.problem(key, message);
    }

    fn has_problem(&self, name: &str) -> bool {
        let key = self.key(name);
        self.read.problems.iter().any(|problem| problem.key == key)
    }

    fn key(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }

    /// Whatever is left was asked for by nobody.
    fn end(mut self) {
        let place = if self.place.is_empty() { String::new() } else { format!("{}.", self.place) };
        let known: Vec<&str> =
            self.read.known.iter().filter_map(|key| key.strip_prefix(&place)).filter(|name| !name.contains('.')).collect();
        let known = known.join(", ");
        let left: Vec<String> = self.values.keys().cloned().collect();
        for name in left {
            let message = if place.is_empty() {
                "is unknown; data_dir and the tables ingest, sockets, metrics, apps, messages, events, store, encrypt, deliver, retry, \
                 registry, presence, endpoints are known"
                    .to_owned()
            } else {
                format!("is unknown; known here are {known}")
            };
            self.wrong(&name, message);
        }
    }
}

fn is_environment(value: &Value) -> bool {
    value.origin() == Some(ENVIRONMENT)
}

fn shown(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => format!("\"{text}\""),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        other => other.to_string(),
    }
}

/// RFC 8292 section 2.1, and what Apple makes of it: spaces, angle brackets, a bare address, localhost and names that cannot
/// be resolved are all answered with BadJwtToken (PUSH-SERVICES 3.3).
fn check_subject(subject: &str) -> Result<(), &'static str> {
    const FORM: &str = "must be \"mailto:\" with an address or an \"https:\" URL, by which push services reach you";
    if !subject.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'<' | b'>' | b'"' | b'\\')) {
        return Err("must not hold spaces, angle brackets, quotes, backslashes or letters beyond ASCII");
    }
    let host = if let Some(address) = subject.strip_prefix("mailto:") {
        let address = address.split('?').next().unwrap_or_default();
        let (name, host) = address.rsplit_once('@').ok_or(FORM)?;
        if name.is_empty() || name.contains('@') {
            return Err(FORM);
        }
        host.to_lowercase()
    } else if subject.starts_with("https://") {
        match Url::parse(subject).map_err(|_| FORM)?.host() {
            Some(url::Host::Domain(host)) => host.to_owned(),
            _ => return Err("must name a host, not an address of numbers"),
        }
    } else {
        return Err(FORM);
    };
    let label = |label: &str| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !host.split('.').all(label) {
        return Err(FORM);
    }
    if !is_public_name(&host) {
        return Err("must name a public host: Apple refuses tokens with localhost and the like");
    }
    Ok(())
}

fn check_proxy(proxy: &str) -> Result<(), &'static str> {
    const FORM: &str = "must be http://host:port of an HTTP proxy that understands CONNECT";
    let url = Url::parse(proxy).map_err(|_| FORM)?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password");
    }
    if url.scheme() != "http"
        || url.host_str().is_none()
        || url.path() != "/"
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(FORM);
    }
    Ok(())
}

/// `host`, `host:port`, `address`, `[address]:port`.
fn parse_host(text: &str) -> Result<AllowedHost, &'static str> {
    const FORM: &str = "is no host; write push.example.com, push.example.com:8443, 192.0.2.1 or [2001:db8::1]:8443";
    if text.contains("://") || text.contains('/') {
        return Err("must be a host without https:// and path");
    }
    if text.contains('*') {
        return Err("must not hold an asterisk: subdomains are always included");
    }
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(AllowedHost { host: address.to_string(), port: None });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(FORM)?)),
        None => (text, None),
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    let host = match url::Host::parse(host).map_err(|_| FORM)? {
        url::Host::Domain(name) if !name.is_empty() && !name.split('.').any(str::is_empty) => name,
        url::Host::Domain(_) => return Err(FORM),
        url::Host::Ipv4(address) => address.to_string(),
        url::Host::Ipv6(address) => address.to_string(),
    };
    Ok(AllowedHost { host, port })
}

fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SHIPPED: &str = include_str!("../config/fanfare.toml");
    const APP: &str = "[apps.default]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:push@fanfare.dev\"\n";

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, Problems> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(text.as_bytes()).expect("written");
        Config::load(Some(file.path()), env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    fn good(text: &str, env: &[(&str, &str)]) -> Config {
        load(&format!("{text}\n{APP}"), env).unwrap_or_else(|problems| panic!("{text}: {problems}"))
    }

    fn problems(text: &str, env: &[(&str, &str)]) -> Vec<Problem> {
        match load(text, env) {
            Err(Problems::Wrong(problems)) => problems,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn keys(text: &str, env: &[(&str, &str)]) -> Vec<String> {
        problems(text, env).into_iter().map(|problem| problem.key).collect()
    }

    /// The shipped file with every default uncommented.
    fn uncommented() -> String {
        let uncomment = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') && !rest.is_empty() => format!("{rest}\n"),
            _ => format!("{line}\n"),
        };
        SHIPPED.lines().map(uncomment).collect()
    }

    #[test]
    fn the_shipped_file_tells_the_defaults() {
        let shipped = load(SHIPPED, &[]).unwrap_or_else(|problems| panic!("{problems}"));
        let spelled_out = load(&uncommented(), &[]).unwrap_or_else(|problems| panic!("{problems}"));
        let app = "[apps.default]\nvapid_keys = [\"/etc/fanfare/vapid.pem\"]\nsubject = \"mailto:webmaster@example.com\"\n";
        let built_in = load(app, &[]).unwrap_or_else(|problems| panic!("{problems}"));
        assert_eq!(format!("{shipped:?}"), format!("{built_in:?}"));
        assert_eq!(format!("{spelled_out:?}"), format!("{built_in:?}"));
        assert_eq!(shipped.warnings().len(), 1, "only the example's address: {:?}", shipped.warnings());
    }

    #[test]
    fn the_shipped_file_names_every_key() {
        let tree = |text: &str| File::from_str(text, FileFormat::Toml).collect().expect("TOML");
        let mut read = Read::default();
        read.config(tree(&format!("{SHIPPED}\n[sockets.shop]\n")));
        let known: BTreeSet<String> = read.known.into_iter().filter(|key| !key.starts_with("sockets.shop.")).collect();
        let mut named = BTreeSet::new();
        for (name, value) in tree(&uncommented()) {
            match value.kind {
                ValueKind::Table(table) if name == "apps" => {
                    let app = table["default"].clone().into_table().expect("a table");
                    named.extend(app.into_keys().map(|key| format!("apps.default.{key}")));
                }
                ValueKind::Table(table) => named.extend(table.into_keys().map(|key| format!("{name}.{key}"))),
                _ => {
                    named.insert(name);
                }
            }
        }
        assert_eq!(named, known);
        for key in ["path", "mode", "group", "apps"] {
            assert!(SHIPPED.contains(&format!("#   {key} = ")), "sockets.shop.{key}");
        }
    }

    #[test]
    fn the_defaults_of_the_design() {
        let config = good("", &[]);
        let Config {
            data_dir,
            ingest,
            sockets,
            metrics,
            apps,
            messages,
            events,
            store,
            encrypt,
            deliver,
            retry,
            registry,
            presence,
            endpoints,
        } = config;
        assert_eq!(data_dir, Path::new("/var/lib/fanfare"));
        assert_eq!(
            (ingest.socket.to_str(), ingest.socket_mode, ingest.socket_group),
            (Some("/run/fanfare/fanfare.sock"), 0o660, None)
        );
        assert_eq!((ingest.line_limit, ingest.connections, ingest.memory_mb), (1_048_576, 4_096, 64));
        assert!(sockets.is_empty());
        assert_eq!(metrics.listen, Some("127.0.0.1:9464".parse().expect("an address")));
        assert_eq!((apps.len(), apps["default"].subject.as_str()), (1, "mailto:push@fanfare.dev"));
        assert_eq!((messages.ttl_default, messages.ttl_max, messages.max_pending), (2_419_200, 2_419_200, 20_000_000));
        let seconds = |seconds: f64| Duration::from_secs_f64(seconds);
        assert_eq!(
            (messages.ttl0_patience, messages.retention, messages.at_max),
            (seconds(5.0), seconds(604_800.0), seconds(7_776_000.0))
        );
        assert_eq!((events.log.len(), events.retention, events.max_mb), (9, seconds(604_800.0), 2_048));
        assert!(!events.log.contains(&EventType::Ended(Ending::Accepted)));
        assert_eq!((store.checkpoint_interval, store.cache_mb, store.min_free_percent), (seconds(0.25), 256, 5.0));
        assert_eq!((store.reserve_mb, store.fresh_mb), (64, 32));
        assert_eq!((encrypt.threads, encrypt.padding, encrypt.warm_memory), (0, 0, 64));
        assert_eq!(
            (deliver.connections_per_origin, deliver.origins, deliver.timeout, deliver.drain),
            (4, 1_024, seconds(30.0), seconds(10.0))
        );
        assert_eq!((deliver.proxy, deliver.extra_roots), (None, None));
        assert_eq!((retry.min, retry.max), (seconds(1.0), seconds(3_600.0)));
        assert_eq!((registry.browsers_per_account, registry.undo), (10_000, seconds(604_800.0)));
        assert_eq!(presence.grace, seconds(120.0));
        assert_eq!((endpoints.policy, endpoints.allow_hosts.len(), endpoints.allow_networks.len()), (Policy::Known, 0, 0));
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let config = good(
            "[deliver]\ntimeout = 5\n[apps.My-Shop]\nvapid_keys = [\"/a\"]\nsubject = \"https://shop.dev/contact\"",
            &[
                ("FANFARE__DELIVER__TIMEOUT", "7.5"),
                ("FANFARE__INGEST__SOCKET_MODE", "0600"),
                ("FANFARE__INGEST__CONNECTIONS", "12"),
                ("FANFARE__ENDPOINTS__ALLOW_HOSTS", "push.example.com:8443, [::1]"),
                ("FANFARE__ENDPOINTS__ALLOW_NETWORKS", ""),
                ("FANFARE__EVENTS__LOG", "gone,accepted"),
                ("FANFARE__METRICS__LISTEN", ""),
                ("FANFARE__APPS__MY_SHOP__VAPID_KEYS", "/b,$CREDENTIALS_DIRECTORY/vapid"),
                ("FANFARE__APPS__OTHER__VAPID_KEYS", "/c"),
                ("FANFARE__APPS__OTHER__SUBJECT", "mailto:a@b.dev"),
                ("CREDENTIALS_DIRECTORY", "/run/credentials/fanfare"),
                ("FANFARE_LOG", "debug"),
                ("DELIVER__TIMEOUT", "9"),
                ("PATH", "/bin"),
            ],
        );
        assert_eq!(
            (config.deliver.timeout, config.ingest.socket_mode, config.ingest.connections),
            (Duration::from_millis(7_500), 0o600, 12)
        );
        let hosts: Vec<String> = config.endpoints.allow_hosts.iter().map(ToString::to_string).collect();
        assert_eq!(hosts, ["push.example.com:8443", "[::1]"]);
        assert!(config.endpoints.allow_networks.is_empty() && config.metrics.listen.is_none());
        assert_eq!(config.events.log.len(), 2);
        assert_eq!(config.apps.keys().collect::<Vec<_>>(), ["My-Shop", "default", "other"]);
        assert_eq!(config.apps["My-Shop"].vapid_keys, [Path::new("/b"), Path::new("/run/credentials/fanfare/vapid")]);
        let mode = good("", &[("FANFARE__INGEST__SOCKET_MODE", "0o640")]).ingest.socket_mode;
        assert_eq!(mode, 0o640);
    }

    #[test]
    fn the_environment_alone_is_enough() {
        let env = [("FANFARE__APPS__DEFAULT__VAPID_KEYS", "/k"), ("FANFARE__APPS__DEFAULT__SUBJECT", "mailto:a@b.dev")];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert!(Config::load(None, env).is_ok());
    }

    #[test]
    fn all_problems_at_once() {
        let text = "colour = 1\n[deliver]\ntimeout = 0\ntime_out = 3\n[retry]\nmin = 10\nmax = 5\n[nonsense]\nx = 1\n[endpoints]\npolicy = \"any\"\n";
        let found = keys(text, &[("FANFARE__DELIVER__DRIAN", "3")]);
        assert_eq!(
            found,
            [
                "apps",
                "colour",
                "deliver.drian",
                "deliver.time_out",
                "deliver.timeout",
                "endpoints.policy",
                "nonsense",
                "retry.min"
            ]
        );
        let text = load(text, &[]).expect_err("wrong").to_string();
        assert!(text.contains("deliver.timeout: must be a number from 0.001 to 600, is 0"), "{text}");
        assert!(text.contains("deliver.time_out: is unknown; known here are connections_per_origin, drain"), "{text}");
    }

    #[test]
    fn what_is_wrong_with_each_key() {
        for (text, key) in [
            ("data_dir = \"\"", "data_dir"),
            ("data_dir = 7", "data_dir"),
            ("deliver = 5", "deliver"),
            ("[ingest]\nsocket = \"\"", "ingest.socket"),
            ("[ingest]\nsocket_mode = 0o1777", "ingest.socket_mode"),
            ("[ingest]\nsocket_mode = 660", "ingest.socket_mode"),
            ("[ingest]\nsocket_mode = -1", "ingest.socket_mode"),
            ("[ingest]\nsocket_mode = \"rw\"", "ingest.socket_mode"),
            ("[ingest]\nsocket_mode = true", "ingest.socket_mode"),
            ("[ingest]\nsocket_group = 5", "ingest.socket_group"),
            ("[ingest]\nline_limit = 100", "ingest.line_limit"),
            ("[ingest]\nline_limit = 4194305", "ingest.line_limit"),
            ("[ingest]\nline_limit = \"1048576\"", "ingest.line_limit"),
            ("[ingest]\nconnections = 0", "ingest.connections"),
            ("[ingest]\nmemory_mb = 1.5", "ingest.memory_mb"),
            ("[metrics]\nlisten = \"localhost:9464\"", "metrics.listen"),
            ("[metrics]\nlisten = 9464", "metrics.listen"),
            ("[messages]\nttl_max = 2419201", "messages.ttl_max"),
            ("[messages]\nttl_max = 60", "messages.ttl_default"),
            ("[messages]\nttl0_patience = 0", "messages.ttl0_patience"),
            ("[messages]\nretention = -1", "messages.retention"),
            ("[messages]\nretention = nan", "messages.retention"),
            ("[messages]\nat_max = inf", "messages.at_max"),
            ("[messages]\nmax_pending = 0", "messages.max_pending"),
            ("[events]\nlog = \"gone\"", "events.log"),
            ("[events]\nlog = [\"delivered\"]", "events.log"),
            ("[events]\nlog = [1]", "events.log"),
            ("[events]\nmax_mb = 0", "events.max_mb"),
            ("[store]\ncheckpoint_interval = 0", "store.checkpoint_interval"),
            ("[store]\ncache_mb = 1", "store.cache_mb"),
            ("[store]\nmin_free_percent = 100", "store.min_free_percent"),
            ("[store]\nmin_free_percent = -0.1", "store.min_free_percent"),
            ("[store]\nreserve_mb = -1", "store.reserve_mb"),
            ("[encrypt]\nthreads = -1", "encrypt.threads"),
            ("[encrypt]\npadding = 3994", "encrypt.padding"),
            ("[encrypt]\nwarm_memory = -1", "encrypt.warm_memory"),
            ("[deliver]\nconnections_per_origin = 0", "deliver.connections_per_origin"),
            ("[deliver]\norigins = 0", "deliver.origins"),
            ("[deliver]\ntimeout = \"30\"", "deliver.timeout"),
            ("[deliver]\ndrain = -1", "deliver.drain"),
            ("[deliver]\nproxy = \"proxy:3128\"", "deliver.proxy"),
            ("[deliver]\nproxy = \"https://proxy:3128\"", "deliver.proxy"),
            ("[deliver]\nproxy = \"http://u:p@proxy:3128\"", "deliver.proxy"),
            ("[deliver]\nproxy = \"http://proxy:3128/x\"", "deliver.proxy"),
            ("[deliver]\nextra_roots = []", "deliver.extra_roots"),
            ("[retry]\nmin = 0", "retry.min"),
            ("[registry]\nbrowsers_per_account = 0", "registry.browsers_per_account"),
            ("[presence]\ngrace = true", "presence.grace"),
            ("[endpoints]\npolicy = \"Known\"", "endpoints.policy"),
            ("[endpoints]\npolicy = 1", "endpoints.policy"),
            ("[endpoints]\nallow_hosts = [\"https://push.example.com\"]", "endpoints.allow_hosts"),
            ("[endpoints]\nallow_hosts = [\"*.example.com\"]", "endpoints.allow_hosts"),
            ("[endpoints]\nallow_hosts = [\"push.example.com:0\"]", "endpoints.allow_hosts"),
            ("[endpoints]\nallow_hosts = [\"push.example.com:https\"]", "endpoints.allow_hosts"),
            ("[endpoints]\nallow_hosts = [\"\"]", "endpoints.allow_hosts"),
            ("[endpoints]\nallow_hosts = [\"a b\"]", "endpoints.allow_hosts"),
            ("[endpoints]\nallow_hosts = [\"a..b\"]", "endpoints.allow_hosts"),
            ("[endpoints]\nallow_hosts = [\"A.b\", \"a.b.\"]", "endpoints.allow_hosts"),
            ("[endpoints]\nallow_networks = [\"10.0.0.0/33\"]", "endpoints.allow_networks"),
            ("[endpoints]\nallow_networks = [\"internal\"]", "endpoints.allow_networks"),
            ("[apps.\"a b\"]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:a@b.dev\"", "apps.a b"),
            ("[apps.x]\nvapid_keys = []\nsubject = \"mailto:a@b.dev\"", "apps.x.vapid_keys"),
            ("[apps.x]\nvapid_keys = \"/k\"\nsubject = \"mailto:a@b.dev\"", "apps.x.vapid_keys"),
            ("[apps.x]\nvapid_keys = [\"\"]\nsubject = \"mailto:a@b.dev\"", "apps.x.vapid_keys"),
            ("[apps.x]\nvapid_keys = [\"$CREDENTIALS_DIRECTORY/k\"]\nsubject = \"mailto:a@b.dev\"", "apps.x.vapid_keys"),
            ("[apps.x]\nvapid_keys = [\"/k\"]", "apps.x.subject"),
            ("[apps.x]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:a@b.dev\"\nscopes = \"news\"", "apps.x.scopes"),
            ("[apps.x]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:a@b.dev\"\nscopes = [\"\"]", "apps.x.scopes"),
            ("[apps.x]\nvapid_keys = [\"/k\"]\nsubject = \"a@b.dev\"", "apps.x.subject"),
            ("[apps]\nx = 1", "apps.x"),
            ("[sockets.s]\napps = [\"default\"]", "sockets.s.path"),
            ("[sockets.s]\npath = \"/s\"", "sockets.s.apps"),
            ("[sockets.s]\npath = \"/s\"\napps = [\"nobody\"]", "sockets.s.apps"),
            ("[sockets.s]\npath = \"/run/fanfare/fanfare.sock\"\napps = [\"default\"]", "sockets.s.path"),
            ("[sockets.s]\npath = \"/s\"\napps = [\"default\"]\nsocket_mode = 0o600", "sockets.s.socket_mode"),
            (
                "[sockets.s]\npath = \"/s\"\napps = [\"default\"]\n[sockets.t]\npath = \"/s\"\napps = [\"default\"]",
                "sockets.t.path",
            ),
        ] {
            assert_eq!(keys(&format!("{text}\n{APP}"), &[]), [key], "{text}");
        }
        let long = format!("[ingest]\nsocket = \"/{}\"\n{APP}", "a".repeat(107));
        assert_eq!(keys(&long, &[]), ["ingest.socket"]);
        for (name, value) in
            [("FANFARE__DELIVER__TIMEOUT", "soon"), ("FANFARE__DELIVER__TIMEOUT", "NaN"), ("FANFARE__DELIVER__TIMEOUT", "")]
        {
            assert_eq!(keys(APP, &[(name, value)]), ["deliver.timeout"]);
        }
        assert_eq!(keys(APP, &[("FANFARE__DELIVER", "5")]), ["deliver"]);
    }

    #[test]
    fn hosts_and_networks() {
        let config = good(
            "[endpoints]\nallow_hosts = [\"Push.Example.COM.\", \"localhost:8443\", \"127.0.0.1:1\", \"::1\", \"[2001:DB8::1]:8443\", \"żółw.pl\"]\n\
             allow_networks = [\"127.0.0.0/8\", \"::1\"]",
            &[],
        );
        let hosts: Vec<(&str, Option<u16>)> =
            config.endpoints.allow_hosts.iter().map(|entry| (entry.host.as_str(), entry.port)).collect();
        assert_eq!(
            hosts,
            [
                ("push.example.com", None),
                ("localhost", Some(8443)),
                ("127.0.0.1", Some(1)),
                ("::1", None),
                ("2001:db8::1", Some(8443)),
                ("xn--w-uga1v8h.pl", None)
            ]
        );
        let networks: Vec<String> = config.endpoints.allow_networks.iter().map(ToString::to_string).collect();
        assert_eq!(networks, ["127.0.0.0/8", "::1/128"]);
    }

    #[test]
    fn subjects() {
        for subject in [
            "mailto:push@fanfare.dev",
            "mailto:a.b+c@sub.fanfare.dev?subject=x",
            "https://fanfare.dev/contact",
            "https://fanfare.dev",
        ] {
            assert_eq!(check_subject(subject), Ok(()), "{subject}");
        }
        for subject in [
            "",
            "mailto:",
            "mailto:push",
            "mailto:@fanfare.dev",
            "mailto:a@b@fanfare.dev",
            "mailto:push@",
            "mailto: push@fanfare.dev",
            "mailto:<push@fanfare.dev>",
            "mailto:push@localhost",
            "mailto:push@host.local",
            "mailto:push@fanfare..dev",
            "mailto:push@fanfare.dev.",
            "mailto:żółw@fanfare.dev",
            "push@fanfare.dev",
            "https:",
            "https://",
            "https://localhost/contact",
            "https://127.0.0.1/",
            "https://[::1]/",
            "http://fanfare.dev/",
            "tel:+48123456789",
        ] {
            assert!(check_subject(subject).is_err(), "{subject}");
        }
    }

    #[test]
    fn files_that_cannot_be_used() {
        let nowhere = Config::load(Some(Path::new("/nowhere/fanfare.toml")), std::iter::empty());
        assert!(matches!(nowhere, Err(Problems::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound));
        let directory = Config::load(Some(Path::new("/")), std::iter::empty());
        assert!(matches!(directory, Err(Problems::Unreadable { .. })));
        for text in ["[deliver", "deliver.timeout = ", "a = 1\na = 2", "[store]\n[store]", "x = 99999999999999999999"] {
            let found = problems(text, &[]);
            assert_eq!(found.len(), 1, "{text}: {found:?}");
            assert!(found[0].key.starts_with('/'), "names the file: {found:?}");
        }
    }

    #[test]
    fn warnings_for_what_is_legal() {
        let config = good(
            "data_dir = \"here\"\n[ingest]\nsocket_mode = 0o666\n[metrics]\nlisten = \"0.0.0.0:9464\"\n[store]\nmin_free_percent = 0\n\
             [endpoints]\nallow_hosts = [\"com\", \"localhost\"]\nallow_networks = [\"0.0.0.0/0\"]",
            &[],
        );
        let warnings = config.warnings();
        assert_eq!(warnings.len(), 6, "{warnings:?}");
        let several = "[apps.a]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:a@b.dev\"\n[apps.b]\nvapid_keys = [\"/k\"]\nsubject = \"mailto:a@b.dev\"\n";
        assert_eq!(load(several, &[]).expect("good").warnings().len(), 1);
    }
}
