//! Every key: its default, its limits, and how it must fit the others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ::config::{Map, Value};
use ipnet::IpNet;
use url::Url;

use super::read::{LONG, MANY, Read, Section};
use super::{
    App, Config, Deliver, Encrypt, Endpoints, Events, Ingest, Messages, Metrics, Presence, Registry, Retry, Socket, Store,
};
use crate::endpoint::{AllowedHost, Policy, is_public_name};
use crate::limits::{CONNECTION_BYTES, NAME_MAX, PAYLOAD_MAX};
use crate::message::Ending;
use crate::protocol::request::EventType;

/// The shortest duration where 0 would be no duration.
const SHORT: f64 = 0.001;

impl Read {
    pub(super) fn config(&mut self, tree: Map<String, Value>) -> Config {
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
}

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
        /// FCM refuses a longer one, and Mozilla cuts it (docs/push-services.md 3.1 and 3.2).
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
            max_open: section.integer("max_open", 20_000, 1..=MANY),
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
}

/// RFC 8292 section 2.1, and what Apple makes of it: spaces, angle brackets, a bare address, localhost and names that cannot
/// be resolved are all answered with BadJwtToken (docs/push-services.md 3.3).
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
}
