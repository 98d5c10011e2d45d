//! Daemon and mock as processes, and readings of both.

use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, http_request};
use fanfare_loadtest::machine::{self, Cpu};
use fanfare_loadtest::mock::{Counters, CrowdCounts, Fault, Measured, Members, Plan, Scope};
use nix::sys::socket::{getsockopt, sockopt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;
use serde_json::value::RawValue;

use super::progress::Progress;
use crate::Place;

/// How long nothing may happen before a measurement is given up.
const STALL: Duration = Duration::from_secs(60);
/// So long a daemon writes nothing before it is taken to be done.
const QUIET: Duration = Duration::from_secs(2);
/// Subscriptions asked for at once.
const BATCH: usize = 10_000;
/// After the last delivery, until its outcome is on disk: a checkpoint comes every 250 ms (docs/design.md 1.2).
pub const SETTLE: Duration = Duration::from_millis(600);

/// A binary that lies beside this one.
pub fn beside(name: &str) -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// The mock as a process.
pub struct MockProcess {
    admin: SocketAddr,
    child: Option<Child>,
    hosts: Vec<String>,
}

impl MockProcess {
    /// Starts one.
    pub fn start(site: &Site<'_>) -> io::Result<MockProcess> {
        let mut command = Command::new(beside("fanfare-mock")?);
        // What is kept for GET /received costs memory and is not asked for here.
        command.args(["--with-parent", "--keep", "0"]);
        command.args(["--listeners", &site.listeners.to_string(), "--port", &site.port.to_string()]);
        if site.sink {
            command.arg("--sink");
        } else {
            command.args(["--verify-every", &site.verify_every.to_string()]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|problem| io::Error::new(problem.kind(), format!("fanfare-mock: {problem}")))?;
        let mut line = String::new();
        let output = child.stdout.take().expect("its output is a pipe");
        BufReader::new(output).read_line(&mut line)?;
        let ready: Value = serde_json::from_str(&line)?;
        let admin = ready["admin"].as_str().and_then(|url| url.strip_prefix("http://")?.parse().ok());
        let admin = admin.ok_or_else(|| io::Error::other("fanfare-mock does not tell its address"))?;
        let hosts = ready["hosts"].as_array().into_iter().flatten().filter_map(|host| Some(host.as_str()?.to_owned())).collect();
        Ok(MockProcess { admin, child: Some(child), hosts })
    }

    /// The authority that has signed its certificates, PEM.
    pub fn root(&self) -> io::Result<String> {
        http_request(self.admin, "GET", "/ca.pem", None)
    }

    fn ask<T: DeserializeOwned>(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<T> {
        Ok(serde_json::from_str(&http_request(self.admin, method, path, body)?)?)
    }

    /// Fresh subscriptions as JSON; under another `host:port` if told.
    pub fn subscriptions(&self, count: usize, host: Option<&str>) -> io::Result<Vec<Box<RawValue>>> {
        let mut made = Vec::with_capacity(count);
        while made.len() < count {
            let wanted = json!({"count": BATCH.min(count - made.len()), "host": host});
            made.extend(self.ask::<Vec<Box<RawValue>>>("POST", "/subscriptions", Some(&wanted))?);
        }
        Ok(made)
    }

    /// One fresh subscription at this origin.
    pub fn subscription(&self, origin: usize) -> io::Result<Box<RawValue>> {
        let made = self.subscriptions_at(origin, 1)?;
        made.into_iter().next().ok_or_else(|| io::Error::other("fanfare-mock made no subscription"))
    }

    /// Fresh subscriptions at this origin, at most some ten thousand.
    pub fn subscriptions_at(&self, origin: usize, count: usize) -> io::Result<Vec<Box<RawValue>>> {
        self.ask("POST", "/subscriptions", Some(&json!({"count": count, "origin": origin})))
    }

    /// A fault of all requests of an origin.
    pub fn set_fault(&self, origin: usize, fault: Fault) -> io::Result<()> {
        self.ask::<Value>("POST", "/faults", Some(&json!({"scope": Scope::Origin(origin), "fault": fault}))).map(drop)
    }

    /// A crowd: its number, and its members as anybody can derive them.
    pub fn crowd(&self, plan: Plan) -> io::Result<(u64, Arc<Members>)> {
        let made: Value = self.ask("POST", "/crowds", Some(&serde_json::to_value(plan)?))?;
        let (Some(crowd), Some(origin)) = (made["crowd"].as_u64(), made["origin"].as_str()) else {
            return Err(io::Error::other(format!("a crowd was answered {made}")));
        };
        Ok((crowd, Arc::new(Members::new(plan, origin))))
    }

    pub fn crowd_counts(&self, crowd: u64) -> io::Result<CrowdCounts> {
        self.ask("GET", &format!("/crowds/{crowd}"), None)
    }

    pub fn reset_crowd(&self, crowd: u64) -> io::Result<()> {
        self.ask::<Value>("DELETE", &format!("/crowds/{crowd}"), None).map(drop)
    }

    /// `host:port` of each of its origins, if it was started here.
    pub fn hosts(&self) -> &[String] {
        &self.hosts
    }

    pub fn measured_at(&self, origin: usize) -> io::Result<Measured> {
        self.ask("GET", &format!("/measured?origin={origin}"), None)
    }

    pub fn counters(&self) -> io::Result<Counters> {
        self.ask("GET", "/counters", None)
    }

    pub fn measured(&self) -> io::Result<Measured> {
        self.ask("GET", "/measured", None)
    }

    pub fn reset_measured(&self) -> io::Result<()> {
        self.ask::<Value>("DELETE", "/measured", None).map(drop)
    }

    pub fn listen(&self, listening: bool) -> io::Result<()> {
        self.ask::<Value>("POST", "/listeners", Some(&json!({"listening": listening}))).map(drop)
    }

    /// Waits until `count` says that `wanted` is reached; an error if nothing moves for a minute.
    pub fn wait(
        &self,
        what: &'static str,
        wanted: u64,
        every: Duration,
        mut count: impl FnMut(&MockProcess) -> io::Result<u64>,
    ) -> io::Result<()> {
        let progress = Progress::new(what, wanted);
        let mut last = 0;
        let mut moved = Instant::now();
        loop {
            let now = count(self)?;
            progress.at(now);
            if now >= wanted {
                return Ok(());
            }
            if now != last {
                (last, moved) = (now, Instant::now());
            }
            if moved.elapsed() > STALL {
                return Err(io::Error::other(format!("{now} of {wanted} {what}, and nothing more for {} s", STALL.as_secs())));
            }
            std::thread::sleep(every);
        }
    }

    fn cpu(&self) -> Cpu {
        self.child.as_ref().and_then(|child| Cpu::of(child.id()).ok()).unwrap_or_default()
    }
}

impl Drop for MockProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a mock and a daemon are started with.
pub struct Site<'a> {
    /// Of the mock: decrypt one body in this many, but for crowds, which have a number of their own.
    pub verify_every: u64,
    /// Of the mock: it takes everything and looks at nothing.
    pub sink: bool,
    /// Of the mock: its origins, each a push service.
    pub listeners: usize,
    /// Of the mock: the port of the first origin; 0 is any.
    pub port: u16,
    /// Of the daemon: a directory that stays. None: one that goes.
    pub directory: Option<&'a Path>,
}

impl Default for Site<'_> {
    fn default() -> Self {
        Site { verify_every: 1, sink: false, listeners: 1, port: 0, directory: None }
    }
}

impl Place {
    /// A configuration with what `--set` says.
    pub fn set(&self, mut config: ConfigBuilder) -> io::Result<ConfigBuilder> {
        for setting in &self.settings {
            let (key, value) = setting.split_once('=').ok_or_else(|| io::Error::other(format!("--set {setting}: no =")))?;
            // What is no JSON is a string.
            config = config.set(key, serde_json::from_str(value).unwrap_or_else(|_| Value::from(value)));
        }
        Ok(config)
    }

    /// The daemon's binary.
    pub fn binary(&self) -> io::Result<PathBuf> {
        self.daemon.clone().map_or_else(|| beside("fanfare"), Ok)
    }
}

/// Where a measurement is made.
pub struct Bench {
    pub mock: MockProcess,
    /// None: it was there before.
    pub daemon: Option<Daemon>,
    pub socket: PathBuf,
}

impl Bench {
    /// Starts both, or takes those that were told. `change` adds to the daemon's configuration.
    pub fn start(place: &Place, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> io::Result<Bench> {
        Bench::start_at(place, &Site { verify_every: place.verify_every, sink: place.sink, ..Site::default() }, change)
    }

    /// As [`Bench::start`], at a site of one's own.
    pub fn start_at(place: &Place, site: &Site<'_>, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> io::Result<Bench> {
        if let (Some(socket), Some(admin)) = (&place.socket, place.mock) {
            let mock = MockProcess { admin, child: None, hosts: Vec::new() };
            return Ok(Bench { mock, daemon: None, socket: socket.clone() });
        }
        let mock = MockProcess::start(site)?;
        let root = mock.root()?;
        let config = mock.hosts.iter().fold(ConfigBuilder::new(), |config, host| config.allow_host(host));
        let config = place.set(change(config.root(&root)))?;
        let binary = place.binary()?;
        let daemon = match site.directory {
            None => Daemon::start(binary, config)?,
            Some(directory) => {
                let mut daemon = Daemon::prepare_at(binary, config, directory)?;
                daemon.restart()?;
                daemon
            }
        };
        Ok(Bench { mock, socket: daemon.socket(), daemon: Some(daemon) })
    }

    /// The daemon's process id.
    pub fn pid(&self) -> io::Result<u32> {
        if let Some(daemon) = &self.daemon {
            return Ok(daemon.pid());
        }
        let stream = UnixStream::connect(&self.socket)?;
        Ok(getsockopt(&stream, sockopt::PeerCredentials)?.pid().cast_unsigned())
    }

    /// Messages that push services have accepted, all there ever were, says the daemon.
    pub fn told_accepted(&self) -> io::Result<u64> {
        let stats = Client::connect(&self.socket)?.try_request(&json!({"op": "stats"}))?;
        let rows = stats["stats"].as_array().ok_or_else(|| io::Error::other(format!("stats was answered {stats}")))?;
        Ok(rows.iter().filter_map(|row| row["accepted"].as_u64()).sum())
    }

    pub fn reading(&self) -> io::Result<Reading> {
        let pid = self.pid()?;
        Ok(Reading {
            daemon: Cpu::of(pid)?,
            stages: stages(pid)?,
            mock: self.mock.cpu(),
            generator: Cpu::own()?,
            written: machine::written_bytes(pid),
            peak_memory: machine::status_bytes(pid, "VmHWM")?,
            memory: machine::status_bytes(pid, "VmRSS")?,
        })
    }

    /// Waits until the daemon has written nothing for a while: compactions go on after what caused them.
    pub fn settle(&self) -> io::Result<()> {
        let pid = self.pid()?;
        let (mut written, mut since) = (machine::written_bytes(pid), Instant::now());
        let begin = since;
        while since.elapsed() < QUIET && begin.elapsed() < STALL {
            std::thread::sleep(Duration::from_millis(100));
            let now = machine::written_bytes(pid);
            // A little is a checkpoint's; a compaction writes megabytes.
            if now.unwrap_or(0) > written.unwrap_or(0) + (1 << 18) {
                (written, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// Ends the daemon as an operator would; its exit code must be 0.
    pub fn finish(mut self) -> io::Result<()> {
        match self.daemon.as_mut().map(Daemon::terminate).transpose()? {
            Some(0) | None => Ok(()),
            Some(code) => Err(io::Error::other(format!("the daemon ended with {code}"))),
        }
    }
}

/// CPU, memory and writing at one moment.
#[derive(Clone, Copy)]
pub struct Reading {
    pub daemon: Cpu,
    /// Of the daemon's threads, as [`STAGES`] sorts them.
    pub stages: [Duration; STAGES.len()],
    pub mock: Cpu,
    pub generator: Cpu,
    pub written: Option<u64>,
    pub peak_memory: u64,
    pub memory: u64,
}

/// What the daemon's threads do, by the beginnings of their names. Reading lines and posting messages share the threads of the
/// sockets.
pub const STAGES: [(&str, &str); 8] = [
    ("sockets", "fanfare-sockets"),
    ("write", "fanfare-writer"),
    // Names end at 15 bytes.
    ("schedule", "fanfare-schedul"),
    ("encrypt", "fanfare-worker"),
    ("outcome", "fanfare-outcome"),
    ("sweep", "fanfare-sweep"),
    ("tokens", "fanfare-tokens"),
    ("rocksdb", "rocksdb"),
];

/// CPU time of each stage. A thread that has ended is missing: of those that have a stage only tokio's for blocking work do, seldom
/// and after little.
fn stages(pid: u32) -> io::Result<[Duration; STAGES.len()]> {
    let mut stages = [Duration::ZERO; STAGES.len()];
    for (name, used) in machine::threads(pid)? {
        let begins = |(_, beginning): &(&str, &str)| name.starts_with(beginning.get(..15).unwrap_or(beginning));
        if let Some(stage) = STAGES.iter().position(begins) {
            stages[stage] += used;
        }
    }
    Ok(stages)
}
