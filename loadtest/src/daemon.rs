//! A `fanfare serve` of one's own: in a temporary directory, with a generated configuration and a fresh VAPID key.
//!
//! The directory outlives the process, so that a daemon can be killed and started again on the same store. Whatever happens, no
//! process is left behind: dropping a [`Daemon`] kills it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use openssl::ec::EcKey;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Client;
use crate::mock::Mock;
use crate::say;

/// How long a start may take.
pub const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long an end may take: `deliver.drain` is 10 s.
pub const STOP_PATIENCE: Duration = Duration::from_secs(60);
/// Lines of the log that a failure shows.
const LOG_TAIL: usize = 40;

/// The configuration of a daemon under test: every key can be set, and the keys that it needs to run are set already.
#[derive(Clone, Debug, Default)]
pub struct ConfigBuilder {
    /// By dotted name; the values become TOML.
    keys: BTreeMap<String, Value>,
    allow_hosts: Vec<String>,
    roots: Vec<String>,
    environment: Vec<(OsString, OsString)>,
    /// A program and its arguments that start the daemon.
    starter: Vec<OsString>,
}

impl ConfigBuilder {
    /// Only what is needed: a directory, a socket, a metrics port, the app `default`, and loopback as an allowed network.
    pub fn new() -> ConfigBuilder {
        ConfigBuilder::default()
    }

    /// The endpoints of this mock are allowed, and its authority trusted.
    pub fn mock(self, mock: &Mock) -> ConfigBuilder {
        mock.hosts().into_iter().fold(self, |config, host| config.allow_host(&host)).root(mock.ca_pem())
    }

    /// One more entry of `endpoints.allow_hosts`.
    pub fn allow_host(mut self, host: &str) -> ConfigBuilder {
        self.allow_hosts.push(host.to_owned());
        self
    }

    /// One more trusted authority, PEM.
    pub fn root(mut self, pem: &str) -> ConfigBuilder {
        self.roots.push(pem.to_owned());
        self
    }

    /// Sets a key by its dotted name, such as `deliver.timeout` or `apps.shop.subject`. An object is written as an inline table.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> ConfigBuilder {
        self.keys.insert(key.to_owned(), value.into());
        self
    }

    /// A variable of the daemon's environment.
    pub fn env(mut self, name: &str, value: &str) -> ConfigBuilder {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The process may have so many open files, and cannot raise that. Needs prlimit (util-linux).
    pub fn open_files(self, limit: u32) -> ConfigBuilder {
        self.started_by(&["prlimit", &format!("--nofile={limit}:{limit}"), "--"])
    }

    /// A program, with its first arguments, that becomes the daemon: `setpriv` gives it another user.
    pub fn started_by(mut self, starter: &[&str]) -> ConfigBuilder {
        self.starter = starter.iter().map(Into::into).collect();
        self
    }

    /// The TOML, for a daemon that lives in `directory`.
    fn toml(&self, directory: &Path, metrics: SocketAddr) -> String {
        let place = |name: &str| Value::from(directory.join(name).to_string_lossy().into_owned());
        let mut keys: BTreeMap<String, Value> = BTreeMap::new();
        keys.insert("data_dir".to_owned(), place("data"));
        keys.insert("ingest.socket".to_owned(), place("fanfare.sock"));
        keys.insert("metrics.listen".to_owned(), metrics.to_string().into());
        keys.insert("apps.default.vapid_keys".to_owned(), json!([place("vapid.pem")]));
        keys.insert("apps.default.subject".to_owned(), "mailto:ops@example.com".into());
        keys.insert("endpoints.allow_hosts".to_owned(), self.allow_hosts.clone().into());
        // A machine whose disk is nearly full can be tested on, too.
        keys.insert("store.min_free_percent".to_owned(), json!(0.1));
        keys.insert("endpoints.allow_networks".to_owned(), json!(["127.0.0.0/8"]));
        if !self.roots.is_empty() {
            keys.insert("deliver.extra_roots".to_owned(), place("roots.pem"));
        }
        keys.extend(self.keys.clone());
        let mut tables: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (key, value) in &keys {
            let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
            tables.entry(table).or_default().push(format!("{name} = {}", toml_value(value)));
        }
        let mut text = String::new();
        for (table, lines) in tables {
            // The keys outside all tables sort first, where TOML wants them.
            if !table.is_empty() {
                text.push_str(&format!("\n[{table}]\n"));
            }
            for line in lines {
                text.push_str(&line);
                text.push('\n');
            }
        }
        text
    }
}

fn toml_value(value: &Value) -> String {
    match value {
        // A JSON string is a TOML basic string but for `/`, which serde_json does not escape, and DEL, which nobody has.
        Value::Array(items) => format!("[{}]", items.iter().map(toml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(members) => {
            let members: Vec<String> =
                members.iter().map(|(key, value)| format!("{} = {}", Value::from(key.as_str()), toml_value(value))).collect();
            format!("{{ {} }}", members.join(", "))
        }
        other => other.to_string(),
    }
}

/// Where a daemon lives.
enum Directory {
    /// Removed with it.
    Passing(TempDir),
    Kept(PathBuf),
}

impl Directory {
    fn path(&self) -> &Path {
        match self {
            Directory::Passing(directory) => directory.path(),
            Directory::Kept(directory) => directory,
        }
    }
}

/// A daemon in its directory; running or not.
pub struct Daemon {
    binary: PathBuf,
    config: ConfigBuilder,
    directory: Directory,
    metrics: SocketAddr,
    child: Option<Child>,
    /// When the process was last started.
    started: Instant,
}

impl Daemon {
    /// Starts `binary serve --config FILE` in a fresh directory and waits until it answers `ping`. An error carries the end of the log.
    pub fn start(binary: impl AsRef<Path>, config: ConfigBuilder) -> io::Result<Daemon> {
        let mut daemon = Daemon::prepare(binary, config)?;
        daemon.restart()?;
        Ok(daemon)
    }

    /// Everything but starting it.
    pub fn prepare(binary: impl AsRef<Path>, config: ConfigBuilder) -> io::Result<Daemon> {
        let directory = tempfile::Builder::new().prefix("fanfare-").tempdir()?;
        Daemon::prepare_in(binary, config, Directory::Passing(directory))
    }

    /// As [`Daemon::prepare`], in a directory that stays; what an earlier daemon left there is used.
    pub fn prepare_at(binary: impl AsRef<Path>, config: ConfigBuilder, directory: &Path) -> io::Result<Daemon> {
        fs::create_dir_all(directory)?;
        // The configuration names it.
        Daemon::prepare_in(binary, config, Directory::Kept(directory.canonicalize()?))
    }

    fn prepare_in(binary: impl AsRef<Path>, config: ConfigBuilder, directory: Directory) -> io::Result<Daemon> {
        let key = directory.path().join("vapid.pem");
        if !key.exists() {
            write_vapid_key(&key)?;
        }
        Ok(Daemon {
            binary: binary.as_ref().to_owned(),
            config,
            metrics: free_address()?,
            directory,
            child: None,
            started: Instant::now(),
        })
    }

    /// Starts it again on the same directory, after [`Daemon::kill9`] or [`Daemon::terminate`], and waits until it answers.
    pub fn restart(&mut self) -> io::Result<()> {
        self.spawn()?;
        self.wait_ready(START_PATIENCE)
    }

    /// Starts the process without waiting for it.
    pub fn spawn(&mut self) -> io::Result<()> {
        self.kill9();
        let path = self.directory.path();
        if !self.config.roots.is_empty() {
            fs::write(path.join("roots.pem"), self.config.roots.concat())?;
        }
        fs::write(self.config_path(), self.config.toml(path, self.metrics))?;
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut words = self.config.starter.iter().map(OsString::as_os_str).chain([self.binary.as_os_str()]);
        let child = Command::new(words.next().expect("at least the daemon"))
            .args(words)
            .arg("serve")
            .arg("--config")
            .arg(self.config_path())
            .envs(self.config.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|problem| io::Error::new(problem.kind(), format!("{}: {problem}", self.binary.display())))?;
        self.started = Instant::now();
        self.child = Some(child);
        Ok(())
    }

    /// Waits until `ping` is answered; an error if the process ended or the time is over.
    pub fn wait_ready(&mut self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
                self.child = None;
                return Err(self.failure(&format!("the daemon ended at its start ({status})")));
            }
            if let Ok(mut client) = Client::connect(self.socket())
                && client.try_request(&json!({"op": "ping"})).is_ok_and(|reply| reply["ok"] == true)
            {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.failure("the daemon does not answer"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Changes the configuration; it counts from the next start.
    pub fn reconfigure(&mut self, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) {
        self.config = change(std::mem::take(&mut self.config));
    }

    /// kill -9, and waits for its end. Nothing if it does not run.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for its end: the exit code. After a minute it is killed, which is an error; so is an end by a signal.
    pub fn terminate(&mut self) -> io::Result<i32> {
        self.signal(Signal::SIGTERM)?;
        let status = self.wait_exit(STOP_PATIENCE)?;
        status.code().ok_or_else(|| self.failure(&format!("the daemon ended by signal {:?}", status.signal())))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let child = self.child.as_ref().ok_or_else(|| io::Error::other("the daemon does not run"))?;
        signal::kill(Pid::from_raw(child.id().cast_signed()), signal).map_err(io::Error::from)
    }

    /// Waits until it ends by itself.
    pub fn wait_exit(&mut self, patience: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            let child = self.child.as_mut().ok_or_else(|| io::Error::other("the daemon does not run"))?;
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status);
            }
            if Instant::now() >= deadline {
                self.kill9();
                return Err(self.failure("the daemon did not end in time"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the process runs.
    pub fn running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// A new connection to it.
    ///
    /// # Panics
    ///
    /// If it cannot be had.
    pub fn client(&self) -> Client {
        Client::connect(self.socket()).unwrap_or_else(|problem| panic!("{}", self.failure(&format!("no connection: {problem}"))))
    }

    /// Process id.
    ///
    /// # Panics
    ///
    /// If it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// When the process was last started.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The operator's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("fanfare.sock")
    }

    /// Its directory; `data` in it is the store.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The store.
    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// The configuration file, once it was started.
    pub fn config_path(&self) -> PathBuf {
        self.directory.path().join("fanfare.toml")
    }

    /// The file of its standard output and error, of all starts.
    pub fn log_path(&self) -> PathBuf {
        self.directory.path().join("fanfare.log")
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Where it serves metrics.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// The metrics page.
    pub fn metrics(&self) -> io::Result<String> {
        http_request(self.metrics, "GET", "/metrics", None)
    }

    /// The sum of all series of a metric (`fanfare_retries_total`), whatever their labels; 0 if there is none.
    pub fn metric(&self, name: &str) -> io::Result<f64> {
        let page = self.metrics()?;
        let series = page.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            if !rest.starts_with(['{', ' ']) {
                return None;
            }
            rest.rsplit_once(' ')?.1.parse::<f64>().ok()
        });
        Ok(series.sum())
    }

    fn failure(&self, what: &str) -> io::Error {
        io::Error::other(format!("{what}; the end of its log:\n{}", self.log_tail()))
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            say::note(format_args!("the end of the daemon's log:\n{}", self.log_tail()));
            return;
        }
        // The logs of all daemons of all tests are looked at.
        let log = self.log();
        for secret in SECRETS {
            assert!(!log.contains(secret), "the daemon's log shows {secret:?}, and with it an endpoint, a token or a key");
        }
    }
}

/// What stands before an endpoint's capability in the URLs of the mock and of the vendors, before a token, and before a key.
const SECRETS: [&str; 7] = ["/push/", "/fcm/send/", "/wpush/", "/w/?token=", "vapid t=", "WebPush ey", "BEGIN PRIVATE KEY"];

/// A fresh VAPID key as PKCS#8 PEM that only its owner can read.
pub fn write_vapid_key(path: &Path) -> io::Result<()> {
    let key = openssl::ec::EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)
        .and_then(|group| EcKey::generate(&group))
        .and_then(PKey::from_ec_key)
        .and_then(|key| key.private_key_to_pem_pkcs8())
        .map_err(io::Error::other)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(&key)
}

/// A port of loopback that was free a moment ago.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// A port of loopback that refuses connections as long as the socket lives: it is bound, and nobody listens.
pub fn closed_port() -> io::Result<(SocketAddr, impl Sized)> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    Ok((socket.local_addr()?, socket))
}

/// One request over plain HTTP/1.1 and the body of its answer; another status than 200 is an error.
pub fn http_request(address: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> io::Result<String> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(300)))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let strange = || io::Error::new(io::ErrorKind::InvalidData, "an answer that is no HTTP");
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(strange)?;
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let mut rest = answer[end + 4..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        rest = unchunk(&rest).ok_or_else(strange)?;
    }
    let text = String::from_utf8(rest).map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))?;
    match head.split_ascii_whitespace().nth(1) {
        Some("200") => Ok(text),
        status => Err(io::Error::other(format!("{method} {path} was answered {status:?}: {text}"))),
    }
}

fn unchunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).ok()?.split(';').next()?.trim(), 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(whole);
        }
        whole.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_configuration_is_toml() {
        let config = ConfigBuilder::new()
            .allow_host("127.0.0.1:4443")
            .set("deliver.timeout", 2.5)
            .set("messages.ttl_default", 60)
            .set("apps.shop.subject", "mailto:\"x\"@example.com")
            .set("apps.default.subject", "https://example.com");
        let toml = config.toml(Path::new("/d"), "127.0.0.1:9".parse().unwrap());
        assert_eq!(
            toml,
            "data_dir = \"/d/data\"\n\n\
             [apps.default]\nsubject = \"https://example.com\"\nvapid_keys = [\"/d/vapid.pem\"]\n\n\
             [apps.shop]\nsubject = \"mailto:\\\"x\\\"@example.com\"\n\n\
             [deliver]\ntimeout = 2.5\n\n\
             [endpoints]\nallow_hosts = [\"127.0.0.1:4443\"]\nallow_networks = [\"127.0.0.0/8\"]\n\n\
             [ingest]\nsocket = \"/d/fanfare.sock\"\n\n\
             [messages]\nttl_default = 60\n\n\
             [metrics]\nlisten = \"127.0.0.1:9\"\n\n\
             [store]\nmin_free_percent = 0.1\n"
        );
    }

    #[test]
    fn a_key_is_private_and_a_closed_port_refuses() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vapid.pem");
        write_vapid_key(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&path).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert!(write_vapid_key(&path).is_err(), "an existing key is never overwritten");
        let (address, _socket) = closed_port().unwrap();
        assert_eq!(TcpStream::connect(address).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_daemon_that_cannot_start_is_told_with_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("fanfare");
        fs::write(&script, "#!/bin/sh\necho the store is broken\nexit 74\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o700)).unwrap();
        let problem = Daemon::start(&script, ConfigBuilder::new()).err().expect("it ended").to_string();
        assert!(problem.contains("74") && problem.contains("the store is broken"), "{problem}");
        assert!(Daemon::start("/nonexistent/fanfare", ConfigBuilder::new()).is_err());
    }

    #[test]
    fn chunks_are_joined() {
        assert_eq!(unchunk(b"3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n").unwrap(), b"abcde");
        assert_eq!(unchunk(b"5\r\nabc"), None);
    }
}
