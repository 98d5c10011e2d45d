//! The place of all cases: two apps with a socket each, their two push services, and a store that every case begins with anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, write_vapid_key};
use fanfare_loadtest::machine;
use fanfare_loadtest::mock::{Members, Plan};
use fanfare_loadtest::population;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::bench::{MockProcess, Site};
use super::super::pump::pump_as;
use super::super::readers::ask;
use super::neighbour::Neighbour;
use super::operations::Known;
use crate::{Fair, Sending};

/// Who may subscribe; those beyond the ones who have are new.
const MEMBERS: u32 = 4_000_000;
const KEYS: u32 = 64;
const ENDPOINT_BYTES: usize = 190;
/// Recipients of each message whose cancelling fills the log.
const EACH: usize = 60;
/// Messages that are open for more recipients.
const STREAMS: usize = 64;
/// Messages that are paused, and their campaigns.
const PAUSED: usize = 1_000;
const CAMPAIGNS: usize = 200;
/// Browsers of the neighbour.
const TARGETS: usize = 50;
/// Requests that are unanswered at once.
const BURST: usize = 100;
const SENDING: Sending = Sending { connections: 4, window: 500, rate: 0.0 };
/// How long the store may take until everything is cancelled.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the daemon is given of memory, in megabytes: less than the defaults, so that a few seconds are enough to exceed it.
const MEMORY: [(&str, u64); 4] =
    [("ingest.memory_mb", 16), ("store.cache_mb", 64), ("store.fresh_mb", 16), ("encrypt.warm_memory", 16)];

pub struct Town {
    pub daemon: Daemon,
    pub neighbour: Neighbour,
    pub known: Arc<Known>,
    /// Of the app that floods.
    pub socket: PathBuf,
    /// Megabytes that the configuration allows the parts of the daemon, each by its key.
    pub memory: Vec<(&'static str, u64)>,
    /// The store that cases begin with.
    first: PathBuf,
    /// The flooding app's push service: it takes everything.
    _service: MockProcess,
    _directory: TempDir,
}

impl Town {
    /// Starts all, and fills the store.
    pub fn build(flags: &Fair) -> io::Result<Town> {
        let place = &flags.place;
        let directory = tempfile::Builder::new().prefix("fanfare-fair-").tempdir()?;
        let path = |name: &str| directory.path().join(name);
        let text = |name: &str| path(name).to_string_lossy().into_owned();
        let service = MockProcess::start(&Site { sink: true, ..Site::default() })?;
        let other = MockProcess::start(&Site::default())?;
        let mut config = ConfigBuilder::new().root(&service.root()?).root(&other.root()?);
        for host in service.hosts().iter().chain(other.hosts()) {
            config = config.allow_host(host);
        }
        for app in ["a", "b"] {
            write_vapid_key(&path(&format!("{app}.pem")))?;
            config = config
                .set(&format!("apps.{app}.vapid_keys"), json!([text(&format!("{app}.pem"))]))
                .set(&format!("apps.{app}.subject"), "mailto:ops@example.com")
                .set(&format!("sockets.{app}.path"), text(&format!("{app}.sock")))
                .set(&format!("sockets.{app}.apps"), json!([app]));
        }
        for (key, megabytes) in MEMORY {
            config = config.set(key, megabytes);
        }
        let config = place.set(config)?;
        let told = |key: &str, default: u64| {
            let said = place.settings.iter().rev().find_map(|setting| setting.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
            said.unwrap_or(default)
        };
        let memory = MEMORY.into_iter().map(|(key, default)| (key, told(key, default))).collect();
        let origin = service.hosts().first().map(|host| format!("https://{host}")).unwrap_or_default();
        let plan = Plan { members: MEMBERS, keys: KEYS, endpoint_bytes: ENDPOINT_BYTES, ..Plan::default() };
        let members = Arc::new(Members::new(plan, &origin));
        let targets = other.subscriptions(TARGETS, None)?;
        let mut daemon = Daemon::start(place.binary()?, config)?;
        let known = fill(&path("a.sock"), members, flags)?;
        if daemon.terminate()? != 0 {
            return Err(io::Error::other("the daemon did not end well after its store was filled"));
        }
        let first = path("first");
        fs::rename(daemon.data_dir(), &first)?;
        let neighbour = Neighbour { socket: path("b.sock"), operator: daemon.socket(), targets, service: other };
        let known = Arc::new(known);
        Ok(Town { daemon, neighbour, known, socket: path("a.sock"), memory, first, _service: service, _directory: directory })
    }

    /// Starts the daemon on a fresh copy of the store; its resident memory, in bytes, before anybody has asked it anything.
    pub fn begin(&mut self) -> io::Result<u64> {
        self.daemon.kill9();
        let data = self.daemon.data_dir();
        if data.exists() {
            fs::remove_dir_all(&data)?;
        }
        copy(&self.first, &data)?;
        self.daemon.restart()?;
        machine::status_bytes(self.daemon.pid(), "VmRSS")
    }
}

/// Copies a directory with those in it.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &place)?;
        } else {
            fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}

/// Gives the flooding app subscribers, a log of events, and messages of every kind.
fn fill(socket: &Path, members: Arc<Members>, flags: &Fair) -> io::Result<Known> {
    let count = flags.subscriptions.max(1);
    let registered = members.clone();
    let line = move |number: u64, into: &mut Vec<u8>| population::write_subscribe(&registered, number as u32, into);
    let pumped = pump_as("subscribed", socket, SENDING, 0..u64::from(count), Arc::new(line))?;
    if pumped.refused > 0 {
        return Err(io::Error::other(format!("{} lines were refused: {}", pumped.refused, pumped.shown.join(" "))));
    }
    let bodies: Vec<String> = (0..count)
        .map(|number| {
            let mut body = Vec::new();
            members.write_json(number, &mut body);
            String::from_utf8(body).map_err(io::Error::other)
        })
        .collect::<io::Result<_>>()?;
    let ids = (0..count).map(|number| members.id(number)).collect();

    let mut client = Client::connect(socket)?;
    let to = |number: usize| format!("{{\"subscription\":{}}}", bodies[number % bodies.len()]);
    let fill = |number: usize| {
        let some: Vec<&str> = (0..EACH).map(|place| &*bodies[(number * EACH + place) % bodies.len()]).collect();
        format!(r#"{{"op":"send","label":"fill","paused":true,"to":{{"subscriptions":[{}]}},"payload":"fill"}}"#, some.join(","))
    };
    let filled = send_all(&mut client, (0..(flags.events as usize).div_ceil(EACH)).map(fill))?;
    let campaign = |_| r#"{"op":"send","label":"fill","paused":true,"to":{"segment":{"all":true}},"payload":"fill"}"#.to_owned();
    send_all(&mut client, (0..CAMPAIGNS).map(campaign))?;
    ask(&mut client, &json!({"op": "cancel", "label": "fill"}))?;
    if let Some(last) = filled.last() {
        let begin = Instant::now();
        while ask(&mut client, &json!({"op": "status", "message_id": last["message_id"]}))?["pending"] != 0 {
            if begin.elapsed() > PATIENCE {
                return Err(io::Error::other("what fills the log is not cancelled after a minute"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let paused = |number| format!(r#"{{"op":"send","label":"kept","paused":true,"to":{},"payload":"kept"}}"#, to(number));
    let paused = send_all(&mut client, (0..PAUSED).map(paused))?;
    let stream = |_| r#"{"op":"send","label":"open","to":{"stream":true},"payload":"open"}"#.to_owned();
    let streams = send_all(&mut client, (0..STREAMS).map(stream))?;
    // Its deadline is the time that is hours ahead.
    let timed = format!(r#"{{"op":"send","label":"kept","paused":true,"ttl":86400,"to":{},"payload":"kept"}}"#, to(0));
    let later = send_all(&mut client, [timed].into_iter())?[0]["expires"].as_str().unwrap_or_default().to_owned();
    let texts = |replies: Vec<Value>| {
        replies.into_iter().map(|reply| reply["message_id"].as_str().unwrap_or_default().to_owned()).collect()
    };
    Ok(Known { members, ids, streams: texts(streams), paused: texts(paused), later, bodies })
}

/// Sends lines, some at a time; every reply must be `"ok":true`.
fn send_all(client: &mut Client, mut lines: impl Iterator<Item = String>) -> io::Result<Vec<Value>> {
    let mut replies = Vec::new();
    loop {
        let some: Vec<String> = lines.by_ref().take(BURST).collect();
        if some.is_empty() {
            return Ok(replies);
        }
        for line in &some {
            client.send_raw(line.as_bytes())?;
            client.send_raw(b"\n")?;
        }
        for _ in &some {
            let reply = client.recv()?;
            if reply["ok"] != true {
                return Err(io::Error::other(format!("what the store is filled with was answered {reply}")));
            }
            replies.push(reply);
        }
    }
}
