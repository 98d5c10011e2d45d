//! Promise 8 against everybody else on the host: as another user than the daemon's and root nothing of it can be read, and nothing of
//! it can be stopped.
//!
//! The daemon runs as a user that nobody is. The strangers are further such users: this very test program, started again under their
//! ids, which tries what is in [`a_stranger_tries`] and says what it got.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, write_vapid_key};
use fanfare_loadtest::mock::{Mock, Options, subscription_id};
use nix::sys::ptrace;
use nix::sys::signal::{self, Signal};
use nix::unistd::{Group, Pid, User, geteuid};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The daemon's user, and another one: numbers that no system gives to anybody.
const DAEMON: u32 = 3_061_234;
const STRANGER: u32 = 3_061_235;
/// Groups that every Debian has, each that of a socket.
const GROUPS: [&str; 2] = ["games", "users"];
/// Where a stranger reads what it is to try.
const TASK: &str = "FANFARE_TEST_STRANGER";
/// How long and with how many connections the metrics are attacked.
const ATTACK: Duration = Duration::from_secs(10);
const CONNECTIONS: usize = 500;
/// Descriptors that a stranger may make the daemon hold.
const DESCRIPTORS: usize = 256;
/// Bytes that a stranger may make it log.
const LOG_BYTES: usize = 100_000;
const ACK_P99: Duration = Duration::from_millis(100);

#[test]
fn to_another_user_nothing_is_readable_and_nothing_can_be_stopped() {
    if let Err(reason) = run() {
        println!("SKIPPED: {reason}");
    }
}

/// The error says why this machine cannot run it.
fn run() -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("only root can start programs as other users".to_owned());
    }
    for id in [DAEMON, STRANGER] {
        if User::from_uid(id.into()).is_ok_and(|user| user.is_some()) {
            return Err(format!("there is a user {id}"));
        }
    }
    let mut gids = Vec::new();
    for name in GROUPS {
        let group = Group::from_name(name).ok().flatten().ok_or_else(|| format!("there is no group {name}"))?;
        gids.push(group.gid.as_raw());
    }
    if Command::new("setpriv").arg("--version").output().is_err() {
        return Err("there is no setpriv (util-linux)".to_owned());
    }
    let [ours, others] = [gids[0], gids[1]];
    let place = Place::make();
    let mock = Mock::start(Options::default());
    let mut daemon = place.daemon(&mock, &gids);
    let private = used(&daemon, &mock);

    let mut wrong = Vec::new();
    // What lies there is a secret whoever owns it; that the strangers try in earnest is seen by what is everybody's.
    let files: Vec<PathBuf> = below(&daemon.data_dir()).into_iter().chain([place.key.clone()]).collect();
    assert!(files.len() > 10 && files.iter().any(|file| file.ends_with("CURRENT")), "{files:?}");
    let backups = files.iter().filter(|file| file.to_string_lossy().contains("kept")).count();
    assert!(backups > 5, "the backup is among them: {files:?}");
    let sockets = [daemon.socket(), place.shop.clone()];
    let everybodys = [daemon.config_path(), place.directory.path().to_owned()];
    let secrets = json!({"files": files, "sockets": sockets, "pid": daemon.pid()});
    for got in place.stranger(&[], &secrets) {
        wrong.push(format!("a stranger {got}"));
    }
    let got = place.stranger(&[], &json!({"files": everybodys}));
    assert!(got.iter().any(|got| got.contains("read")), "a stranger reads what is everybody's: {got:?}");
    // A socket of one group is none of the other's.
    let both = json!({"sockets": sockets, "files": files, "pid": daemon.pid()});
    for (group, own) in [(ours, 0), (others, 1)] {
        let got = place.stranger(&[group], &both);
        let connected = format!("connected to {}", sockets[own].display());
        assert!(got.contains(&connected), "its own group connects: {got:?}");
        wrong.extend(got.iter().filter(|got| **got != connected).map(|got| format!("a member of group {group} {got}")));
    }
    assert!(daemon.running(), "{}", daemon.log());

    wrong.extend(attacked(&place, &mut daemon, &mock));

    let metrics = daemon.metrics().expect("metrics");
    for value in private {
        if metrics.contains(&value) {
            wrong.push(format!("the metrics tell {value}"));
        }
    }
    assert_eq!(daemon.terminate().expect("it stops when its own user says so"), 0);
    assert!(wrong.is_empty(), "{} borders do not hold:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// Directories that strangers may enter, with programs that they may start.
struct Place {
    directory: TempDir,
    key: PathBuf,
    shop: PathBuf,
    itself: PathBuf,
}

impl Place {
    fn make() -> Place {
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path().to_owned();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its own");
        let itself = path.join("strangers");
        fs::copy(std::env::current_exe().expect("this program"), &itself).expect("a copy");
        fs::copy(env!("CARGO_BIN_EXE_fanfare"), path.join("fanfare")).expect("a copy");
        for program in ["strangers", "fanfare"] {
            fs::set_permissions(path.join(program), fs::Permissions::from_mode(0o755)).expect("its own");
        }
        Place { key: path.join("home/vapid.pem"), shop: path.join("home/shop.sock"), itself, directory }
    }

    /// Runs as its own user, who may give its sockets to these groups.
    fn daemon(&self, mock: &Mock, gids: &[u32]) -> Daemon {
        let home = self.directory.path().join("home");
        fs::create_dir(&home).expect("writable");
        write_vapid_key(&self.key).expect("writable");
        let groups: Vec<String> = gids.iter().map(u32::to_string).collect();
        let starter =
            ["setpriv", &format!("--reuid={DAEMON}"), &format!("--regid={DAEMON}"), &format!("--groups={}", groups.join(","))];
        let config = ConfigBuilder::new()
            .mock(mock)
            .started_by(&starter)
            .set("ingest.socket_mode", 0o660)
            .set("ingest.socket_group", GROUPS[0])
            .set("sockets.shop.path", self.shop.to_string_lossy().into_owned())
            .set("sockets.shop.mode", 0o660)
            .set("sockets.shop.group", GROUPS[1])
            .set("sockets.shop.apps", json!(["default"]));
        let mut daemon = Daemon::prepare_at(self.directory.path().join("fanfare"), config, &home).expect("prepared");
        for path in [&home, &self.key] {
            chown(path, Some(DAEMON), Some(DAEMON)).expect("root may");
        }
        fs::set_permissions(&home, fs::Permissions::from_mode(0o755)).expect("its own");
        daemon.restart().expect("the daemon starts");
        daemon
    }

    fn command(&self, groups: &[u32], task: &Value) -> Command {
        let mut command = Command::new("setpriv");
        command.args([format!("--reuid={STRANGER}"), format!("--regid={STRANGER}")]);
        match groups {
            [] => command.arg("--clear-groups"),
            groups => command.arg(format!("--groups={}", groups.iter().map(u32::to_string).collect::<Vec<_>>().join(","))),
        };
        command.arg(&self.itself).args(["a_stranger_tries", "--exact", "--ignored", "--nocapture"]);
        command.env(TASK, task.to_string());
        command
    }

    /// What a stranger got.
    fn stranger(&self, groups: &[u32], task: &Value) -> Vec<String> {
        let output = self.command(groups, task).output().expect("setpriv runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("TRIED ALL"), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
        text.lines().filter_map(|line| line.strip_prefix("GOT ")).map(str::to_owned).collect()
    }
}

/// Some of everything is in the store, and a backup of it: the values that are nobody else's.
fn used(daemon: &Daemon, mock: &Mock) -> Vec<String> {
    let mut operator = daemon.client();
    let browsers = mock.subscribe(0, 3);
    operator.ok(&json!({
        "op": "subscribe", "subscription": browsers[0].json(), "account": "private-account", "name": "private-name",
        "scopes": ["private-scope"], "tags": ["private-tag"], "attributes": {"private-attribute": "private-value"},
    }));
    operator.ok(&json!({"op": "presence", "account": "private-account", "state": "online", "session": "private-session"}));
    let mut ids = Vec::new();
    for to in
        [json!({"subscription": browsers[1].json()}), json!({"accounts": ["private-account"]}), json!({"segment": {"all": true}})]
    {
        let reply = operator.ok(&json!({
            "op": "send", "to": to, "label": "private-label", "ref": "private-ref", "topic": "private-topic",
            "idempotency_key": format!("private-key-{}", ids.len()), "payload": "private-payload",
        }));
        ids.push(reply["message_id"].as_str().expect("an id").to_owned());
    }
    operator.ok(&json!({"op": "backup", "name": "kept"}));
    // The metrics are set once a second or so.
    std::thread::sleep(Duration::from_millis(1_500));
    let mut private = ids;
    private.push("private".to_owned());
    for browser in &browsers {
        private.extend([browser.token.clone(), subscription_id(&browser.endpoint)]);
    }
    private
}

/// A directory and everything in it.
fn below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    for entry in fs::read_dir(directory).expect("root reads everything") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(below(&path)) } else { found.push(path) }
    }
    found
}

/// What an application suffers while a stranger attacks the metrics.
fn attacked(place: &Place, daemon: &mut Daemon, mock: &Mock) -> Vec<String> {
    let log = daemon.log().len();
    let descriptors = descriptors(daemon);
    let alone = acks(daemon, mock, Duration::from_secs(2), || {}).expect("an application is answered");
    let task = json!({"metrics": daemon.metrics_address(), "seconds": ATTACK.as_secs()});
    let mut attack = place.command(&[], &task).stdout(std::process::Stdio::null()).spawn().expect("setpriv runs");
    std::thread::sleep(Duration::from_secs(1));
    let mut most = 0;
    let attacked = acks(daemon, mock, ATTACK - Duration::from_secs(2), || most = most.max(self::descriptors(daemon)));
    let ended = attack.wait().expect("it ends");
    assert!(ended.success());
    println!("acks: {alone:?} alone, {attacked:?} attacked; descriptors: {descriptors} alone, {most} attacked");

    let mut wrong = Vec::new();
    let mut not = |holds: bool, text: String| {
        if !holds {
            wrong.push(text)
        }
    };
    not(daemon.running(), "the attacked daemon ended".to_owned());
    match attacked {
        Ok((acks, p99)) => {
            not(acks > 50 && p99 <= ACK_P99, format!("while the metrics are attacked {acks} acks take {p99:?} (p99)"))
        }
        Err(problem) => not(false, format!("while the metrics are attacked an application gets no answer: {problem}")),
    }
    not(
        most <= descriptors + DESCRIPTORS,
        format!("the attack made the daemon hold {} descriptors more", most.saturating_sub(descriptors)),
    );
    let grown = daemon.log().len() - log;
    not(grown <= LOG_BYTES, format!("the attack made the log grow by {grown} bytes"));
    let again = fanfare_loadtest::wait(Duration::from_secs(10), || {
        daemon.metrics().is_ok_and(|page| page.contains("fanfare_build_info"))
    });
    not(again, "the metrics are not served after the attack".to_owned());
    wrong
}

fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).map_or(0, Iterator::count)
}

/// How many acks an application got, and the 99th percentile of what each took; `look` is called after each. Every tenth is a `ping`
/// on a new connection.
fn acks(daemon: &Daemon, mock: &Mock, time: Duration, mut look: impl FnMut()) -> Result<(usize, Duration), String> {
    let browser = mock.subscribe(0, 1).remove(0);
    let mut client = daemon.client();
    let mut took = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time {
        let asked = Instant::now();
        let reply = if took.len() % 10 == 9 {
            fanfare_loadtest::client::Client::connect(daemon.socket())
                .and_then(|mut fresh| fresh.try_request(&json!({"op": "ping"})))
        } else {
            client.try_request(&json!({"op": "send", "to": {"subscription": browser.json()}, "payload": "x", "urgency": "high"}))
        };
        let reply = reply.map_err(|problem| problem.to_string())?;
        if reply["ok"] != true {
            return Err(reply.to_string());
        }
        took.push(asked.elapsed());
        look();
        std::thread::sleep(Duration::from_millis(5));
    }
    took.sort();
    Ok((took.len(), took[took.len() * 99 / 100]))
}

/// Tries what its environment says and prints what it got. No test by itself.
#[test]
#[ignore = "another test starts it as another user"]
fn a_stranger_tries() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task: Value = serde_json::from_str(&task).expect("a task");
    assert_eq!(geteuid().as_raw(), STRANGER);
    let paths = |name: &str| -> Vec<PathBuf> {
        task[name].as_array().into_iter().flatten().map(|path| path.as_str().expect("a path").into()).collect()
    };
    // The harness has begun a line.
    println!();
    for path in paths("files") {
        let show = path.display();
        if fs::read(&path).is_ok() || fs::read_dir(&path).is_ok() {
            println!("GOT read {show}");
        }
        if fs::OpenOptions::new().append(true).open(&path).is_ok() || fs::File::create(path.join("stranger")).is_ok() {
            println!("GOT write {show}");
        }
        if fs::rename(&path, path.with_extension("moved")).is_ok() || fs::remove_file(&path).is_ok() {
            println!("GOT removed {show}");
        }
        // The names and sizes of what lies in a directory are its business too.
        if path.parent().is_some_and(|parent| fs::read_dir(parent).is_err()) && fs::symlink_metadata(&path).is_ok() {
            println!("GOT look at {show}");
        }
    }
    for socket in paths("sockets") {
        match UnixStream::connect(&socket) {
            Ok(_) => println!("GOT connected to {}", socket.display()),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            Err(error) => println!("GOT {error} of {}", socket.display()),
        }
    }
    if let Some(pid) = task["pid"].as_i64() {
        try_process(Pid::from_raw(pid as i32));
    }
    if let Some(address) = task["metrics"].as_str() {
        attack(address.parse().expect("an address"), Duration::from_secs(task["seconds"].as_u64().expect("seconds")));
    }
    println!("TRIED ALL");
}

fn try_process(pid: Pid) {
    for file in ["environ", "mem", "maps", "smaps", "auxv", "pagemap", "io", "stack", "syscall", "numa_maps", "personality"] {
        let read = fs::File::open(format!("/proc/{pid}/{file}")).and_then(|mut file| file.read(&mut [0; 64]));
        // Of a process that is nobody else's some may be opened, and say nothing.
        if read.is_ok_and(|bytes| bytes > 0) {
            println!("GOT read /proc/PID/{file}");
        }
    }
    for directory in ["fd", "fdinfo", "map_files", "cwd", "root"] {
        if fs::read_dir(format!("/proc/{pid}/{directory}")).is_ok() {
            println!("GOT read /proc/PID/{directory}");
        }
    }
    if fs::write(format!("/proc/{pid}/oom_score_adj"), "1000").is_ok() {
        println!("GOT write /proc/PID/oom_score_adj");
    }
    if ptrace::attach(pid).is_ok() || ptrace::seize(pid, ptrace::Options::empty()).is_ok() {
        println!("GOT traced it");
    }
    for to in
        [None, Some(Signal::SIGTERM), Some(Signal::SIGKILL), Some(Signal::SIGHUP), Some(Signal::SIGSTOP), Some(Signal::SIGUSR1)]
    {
        if signal::kill(pid, to).is_ok() {
            println!("GOT sent it {to:?}");
        }
    }
}

/// Connections that say nothing, half of something, something slowly, nonsense, or ask and do not listen; each made anew as soon as
/// it ends.
fn attack(address: SocketAddr, time: Duration) {
    const THREADS: usize = 25;
    const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let over = &over;
            scope.spawn(move || {
                let mut connections: Vec<Option<TcpStream>> = (0..CONNECTIONS / THREADS).map(|_| None).collect();
                let mut turn = 0_usize;
                while !over.load(Ordering::Relaxed) {
                    for (number, slot) in connections.iter_mut().enumerate() {
                        let Some(stream) = slot else {
                            *slot = TcpStream::connect_timeout(&address, Duration::from_millis(300))
                                .ok()
                                .filter(|stream| stream.set_nonblocking(true).is_ok());
                            continue;
                        };
                        let sent = match (number + thread) % 6 {
                            0 => Ok(()),
                            1 => stream.write_all(if turn.is_multiple_of(50) { b"GET /metrics HTTP/1.1\r\nHost:" } else { b"" }),
                            2 => stream.write_all(&REQUEST[turn % REQUEST.len()..][..1]),
                            3 => stream.write_all(&[turn as u8; 700]),
                            4 => stream.write_all(PREFACE),
                            _ => stream.write_all(REQUEST),
                        };
                        // Full is no end; the daemon's end is.
                        let ended = sent.is_err_and(|error| error.kind() != ErrorKind::WouldBlock)
                            || matches!(stream.peek(&mut [0]), Ok(0));
                        if ended {
                            *slot = None;
                        }
                    }
                    turn += 1;
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
        }
        std::thread::sleep(time);
        over.store(true, Ordering::Relaxed);
    });
}
