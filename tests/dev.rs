//! `fanfare dev` as an application developer meets it: what it prints can be pasted, and nothing is left behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn received(port: u16) -> String {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).expect("the mock's control port");
    stream.write_all(b"GET /received HTTP/1.0\r\n\r\n").expect("it takes requests");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers text");
    answer
}

#[test]
fn a_message_goes_from_the_printed_command_to_the_mock() {
    let program = Path::new(env!("CARGO_BIN_EXE_fanfare"));
    if !program.with_file_name("fanfare-mock").exists() {
        println!("SKIPPED: there is no fanfare-mock beside {}: cargo build --release --workspace", program.display());
        return;
    }
    let mut dev = Command::new(program).arg("dev").stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it was built");
    let mut text = String::new();
    for line in BufReader::new(dev.stdout.take().expect("it is piped")).lines() {
        let line = line.expect("it prints text");
        text.push_str(&line);
        text.push('\n');
        if line.starts_with("Ctrl-C") {
            break;
        }
    }
    let value = |name: &str| {
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} is missing in:\n{text}"));
        line.trim().to_owned()
    };
    let directory = Path::new(&value("socket")).parent().expect("a directory").to_owned();
    assert!(directory.exists());

    let command = text.lines().find(|line| line.contains(" send --to ")).expect("a command to paste").trim();
    let pasted = Command::new("sh").args(["-c", command]).output().expect("there is a shell");
    assert!(pasted.status.success(), "{command}: {}", String::from_utf8_lossy(&pasted.stderr));

    let port = value("mock's control").rsplit(':').next().expect("a port").parse().expect("a number");
    let until = Instant::now() + Duration::from_secs(20);
    // "hello" as text or in base64: how the mock shows a body is its own affair.
    while !["hello", "aGVsbG8"].iter().any(|body| received(port).contains(body)) {
        assert!(Instant::now() < until, "nothing arrived: {}", received(port));
        std::thread::sleep(Duration::from_millis(50));
    }

    // It ends in order: a daemon that has to be killed takes 15 s.
    let asked = Instant::now();
    kill(Pid::from_raw(dev.id().cast_signed()), Signal::SIGINT).expect("it runs");
    let status = dev.wait().expect("it ends");
    assert!(status.success(), "{status}");
    assert!(asked.elapsed() < Duration::from_secs(12), "it took {:?}: was the daemon killed?", asked.elapsed());
    assert!(!directory.exists(), "{} was left behind", directory.display());
}
