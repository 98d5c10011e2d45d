//! `fanfare dev`: the daemon and a mock push service on loopback, in a directory that is gone afterwards, for whoever writes an
//! application against Fanfare.
//!
//! Nothing leaves the machine. Both processes end with this one: on Ctrl-C, on SIGTERM, or when either of them ends by itself. Where
//! this one is killed, the mock ends too, and the daemon stays behind in its directory.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::client::connection::Connection;
use crate::client::output::{note, say};
use crate::exit::{Exit, Failure};
use crate::printable;
use crate::vapid::key::SigningKey;

/// A daemon that has not opened its socket by then says why on standard error, or hangs.
const START: Duration = Duration::from_secs(60);
/// Longer than `deliver.drain`, after which the daemon ends by itself.
const STOP: Duration = Duration::from_secs(15);

/// Runs until it is interrupted. Exit 69 if `fanfare-mock` does not lie beside this program.
pub fn dev() -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|error| Failure::io("cannot find this program's own path", &error))?;
    let mock_program = program.with_file_name("fanfare-mock");
    if !mock_program.exists() {
        return Err(Failure::new(
            Exit::Unavailable,
            format!(
                "there is no {}: the mock push service is built with `cargo build --release --workspace`",
                printable::path(&mock_program)
            ),
        ));
    }

    let signals = signals()?;
    let directory = Directory::make()?;
    let roots = directory.file("ca.pem");
    let socket = directory.file("fanfare.sock");
    let mut mock = Process::start(
        "fanfare-mock",
        Command::new(&mock_program)
            .args(["--port", "0", "--admin-port", "0", "--with-parent", "--ca-out"])
            .arg(&roots)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped()),
    )?;
    let addresses = mock.first_line()?;
    let push = port(&addresses["origins"][0])?;
    let admin = port(&addresses["admin"])?;

    let key = SigningKey::generate();
    let key_file = directory.file("vapid.pem");
    key.write_new(&key_file).map_err(|error| Failure::io(format_args!("cannot write {}", printable::path(&key_file)), &error))?;
    let configuration = directory.file("fanfare.toml");
    let metrics = free_port()?;
    directory.write(&configuration, &settings(&directory, push, metrics))?;

    let mut daemon = Process::start(
        "fanfare serve",
        Command::new(&program).arg("--config").arg(&configuration).arg("serve").stdin(Stdio::null()).stdout(Stdio::null()),
    )?;
    daemon.wait_for(&socket, &signals)?;

    let wanted = json!({"count": 2, "application_server_key": key.public_key_base64url()});
    let subscriptions: Vec<Value> = serde_json::from_str(&post(admin, "/subscriptions", &wanted)?)
        .map_err(|_| Failure::new(Exit::Unavailable, "fanfare-mock is of another version: it makes no subscriptions"))?;
    let files = subscriptions.iter().enumerate().map(|(place, subscription)| {
        let file = directory.file(&format!("subscription-{}.json", place + 1));
        directory.write(&file, &format!("{subscription}\n")).map(|()| file)
    });
    let files = files.collect::<Result<Vec<_>, _>>()?;
    say(introduction(&program, &socket, &configuration, &key.public_key_base64url(), [admin, metrics], &subscriptions, &files))?;

    for signal in signals {
        if signal != Signal::SIGCHLD {
            break;
        }
        for process in [&mut daemon, &mut mock] {
            if let Some(failure) = process.has_ended() {
                return Err(failure);
            }
        }
    }
    // What is in flight to the mock is finished before the mock ends.
    note("ending");
    daemon.end();
    Ok(())
}

/// Interruptions and ends of children, as they come. They are blocked before the first child starts, so that none is missed. A child
/// inherits that: the daemon opens itself to signals at its start, and the mock ends with its standard input.
fn signals() -> Result<Receiver<Signal>, Failure> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().map_err(|error| Failure::io("cannot hold signals", &error.into()))?;
    let (told, signals_told) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            if told.send(signal).is_err() {
                break;
            }
        }
    });
    Ok(signals_told)
}

fn settings(directory: &Directory, push: u16, metrics: u16) -> String {
    let file = |name: &str| json!(directory.file(name)).to_string();
    format!(
        "data_dir = {}\n\n[ingest]\nsocket = {}\nsocket_mode = 0o600\n\n[metrics]\nlisten = \"127.0.0.1:{metrics}\"\n\n\
         [apps.default]\nvapid_keys = [{}]\nsubject = \"mailto:developer@fanfare.dev\"\n\n[deliver]\nextra_roots = {}\n\n\
         [store]\nmin_free_percent = 0.1\n\n\
         [endpoints]\nallow_hosts = [\"127.0.0.1:{push}\"]\nallow_networks = [\"127.0.0.0/8\"]\n\n\
         [events]\nlog = [\"accepted\", \"gone\", \"refused\", \"expired\", \"cancelled\", \"skipped\", \
         \"unreachable\", \"shown\", \"clicked\", \"dismissed\"]\n",
        file("data"),
        file("fanfare.sock"),
        file("vapid.pem"),
        file("ca.pem"),
    )
}

/// Where everything is, and commands to paste.
fn introduction(
    program: &Path,
    socket: &Path,
    configuration: &Path,
    public_key: &str,
    [admin, metrics]: [u16; 2],
    subscriptions: &[Value],
    files: &[PathBuf],
) -> String {
    let program = printable::path(program);
    let socket = printable::path(socket);
    let mut lines = Vec::new();
    let mut add = |line: fmt::Arguments<'_>| lines.push(line.to_string());
    add(format_args!("socket          {socket}"));
    add(format_args!("configuration   {}", printable::path(configuration)));
    add(format_args!("public key      {public_key}"));
    add(format_args!("mock's control  http://127.0.0.1:{admin}"));
    add(format_args!("metrics         http://127.0.0.1:{metrics}/metrics"));
    add(format_args!("\nTwo subscriptions, as a browser would hand them out:"));
    subscriptions.iter().for_each(|subscription| add(format_args!("{subscription}")));
    if let Some(file) = files.first() {
        add(format_args!("\nTo try it, in another terminal:"));
        add(format_args!("  {program} --socket {socket} send --to {} --payload hello", printable::path(file)));
        add(format_args!("  {program} --socket {socket} events --follow"));
    }
    if let Some(subscription) = subscriptions.first() {
        let line = json!({"op": "send", "to": {"subscription": subscription}, "payload": "hello"});
        add(format_args!("  echo '{line}' | socat - UNIX-CONNECT:{socket}"));
    }
    add(format_args!("\nWhat arrived, decrypted:"));
    add(format_args!("  curl http://127.0.0.1:{admin}/received"));
    add(format_args!("\nMore subscriptions:"));
    add(format_args!(r#"  curl -d '{{"count":10}}' http://127.0.0.1:{admin}/subscriptions"#));
    add(format_args!("\nCtrl-C ends both and removes everything."));
    lines.join("\n")
}

/// A directory that only this user may enter and that is removed in the end.
struct Directory(PathBuf);

impl Directory {
    fn make() -> Result<Directory, Failure> {
        let path = std::env::temp_dir().join(format!("fanfare-dev-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Failure::io(format_args!("cannot make {}", printable::path(&path)), &error))?;
        Ok(Directory(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), Failure> {
        fs::write(path, text).map_err(|error| Failure::io(format_args!("cannot write {}", printable::path(path)), &error))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            note(format_args!("fanfare: cannot remove {}: {error}", printable::path(&self.0)));
        }
    }
}

/// A child that ends when it is dropped.
struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// In a process group of its own: Ctrl-C reaches this program only, which then ends its children in order.
    fn start(name: &'static str, command: &mut Command) -> Result<Process, Failure> {
        let child = command.process_group(0).spawn().map_err(|error| Failure::io(format_args!("cannot start {name}"), &error))?;
        Ok(Process { name, child })
    }

    fn first_line(&mut self) -> Result<Value, Failure> {
        let mut line = String::new();
        if let Some(output) = self.child.stdout.take() {
            // No more is read, so no more is expected: what the mock does is asked of its control port.
            BufReader::new(output)
                .read_line(&mut line)
                .map_err(|error| Failure::io(format_args!("cannot hear {}", self.name), &error))?;
        }
        serde_json::from_str(&line).map_err(|_| Failure::new(Exit::Unavailable, format!("{} did not start", self.name)))
    }

    fn wait_for(&mut self, socket: &Path, signals: &Receiver<Signal>) -> Result<(), Failure> {
        let until = Instant::now() + START;
        loop {
            let failure = match Connection::open(socket) {
                Ok(_) => return Ok(()),
                Err(failure) => failure,
            };
            if let Some(ended) = self.has_ended() {
                return Err(ended);
            }
            if Instant::now() >= until {
                return Err(failure);
            }
            if signals.recv_timeout(Duration::from_millis(50)).is_ok_and(|signal| signal != Signal::SIGCHLD) {
                return Err(Failure::new(Exit::Done, ""));
            }
        }
    }

    fn has_ended(&mut self) -> Option<Failure> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(Failure::new(Exit::Unavailable, format!("{} ended by itself ({status}): see what it says above", self.name)))
    }

    /// The end of its standard input and SIGTERM; SIGKILL if that was not enough.
    fn end(&mut self) {
        // A child that was waited for has no id any more: another process may have it.
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        drop(self.child.stdin.take());
        let id = Pid::from_raw(self.child.id().cast_signed());
        let asked = Instant::now();
        if kill(id, Signal::SIGTERM).is_ok() {
            while asked.elapsed() < STOP {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// A port that was free a moment ago. Should somebody else take it, the daemon does not start and says why.
fn free_port() -> Result<u16, Failure> {
    let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    bound.map(|address| address.port()).map_err(|error| Failure::io("no port on loopback", &error))
}

/// The port at the end of an origin or a URL.
fn port(address: &Value) -> Result<u16, Failure> {
    let port = address.as_str().and_then(|text| text.rsplit(':').next()?.parse().ok());
    port.ok_or_else(|| Failure::new(Exit::Unavailable, "fanfare-mock is of another version: it does not tell its addresses"))
}

/// HTTP/1.0, so that the answer ends with the connection and nothing has to be counted.
fn post(port: u16, path: &str, body: &Value) -> Result<String, Failure> {
    let cannot = |error: &io::Error| Failure::io("cannot speak with fanfare-mock", error);
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).map_err(|error| cannot(&error))?;
    stream.set_read_timeout(Some(START)).map_err(|error| cannot(&error))?;
    let body = body.to_string();
    let head = format!("POST {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).map_err(|error| cannot(&error))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| cannot(&error))?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) => Ok(body.to_owned()),
        _ => Err(Failure::new(Exit::Unavailable, "fanfare-mock would not make subscriptions")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_the_end_of_an_address() {
        assert_eq!(port(&json!("https://127.0.0.1:4433")).expect("an origin"), 4433);
        for other in [json!(null), json!("https://127.0.0.1"), json!("https://127.0.0.1:99999"), json!(4433)] {
            assert!(port(&other).is_err(), "{other}");
        }
    }

    #[test]
    fn the_directory_is_private_and_goes() {
        use std::os::unix::fs::PermissionsExt;
        let directory = Directory::make().expect("the temporary directory is writable");
        let path = directory.0.clone();
        assert_eq!(path.metadata().expect("made").permissions().mode() & 0o777, 0o700);
        directory.write(&directory.file("x"), "y").expect("writable");
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn the_configuration_is_toml() {
        // Not made: the other test of this process has the name.
        let text = settings(&Directory("/nonexistent/fanfare-dev".into()), 4433, 9464);
        let settings = config::Config::builder()
            .add_source(config::File::from_str(&text, config::FileFormat::Toml))
            .build()
            .expect("it is TOML");
        assert_eq!(settings.get_array("endpoints.allow_hosts").expect("set")[0].to_string(), "127.0.0.1:4433");
    }
}
