//! `make demo`: real encrypted messages through a real daemon to a push service that checks every one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::machine::{self, Cpu};
use fanfare_loadtest::mock::{Fault, Mock, Options, Scope};
use serde_json::value::{RawValue, to_raw_value};

use super::bench::{SETTLE, beside};
use super::progress::Progress;
use super::pump::{Singles, pump};
use super::report::{Report, grouped};
use crate::{Demo, Sending};

const SUBSCRIPTIONS: usize = 2_000;
/// The push service says "not now" to one request in this many, so that retrying is seen.
const TROUBLE_EVERY: u64 = 1_000;
const STALL: Duration = Duration::from_secs(30);

/// Runs the demonstration; an error if anything did not add up.
pub fn run(flags: &Demo) -> io::Result<()> {
    let messages = flags.messages;
    let mock = Mock::try_start(Options { keep: 0, ..Options::default() })?;
    let browsers = mock.subscribe(0, SUBSCRIPTIONS);
    let subscriptions: Vec<Box<RawValue>> =
        browsers.iter().map(|browser| to_raw_value(&browser.json())).collect::<Result<_, _>>()?;
    let binary = flags.daemon.clone().map_or_else(|| beside("fanfare"), Ok)?;
    let mut daemon = Daemon::start(&binary, ConfigBuilder::new().mock(&mock))?;
    println!(
        "A daemon (process {}) and a push service that decrypts and verifies every message, over TLS and HTTP/2.",
        daemon.pid()
    );
    println!("{} messages go in, each safe on disk before it is acknowledged ...\n", grouped(messages));
    mock.set_fault_every(Scope::Origin(0), Fault::status(503).retry_after(1), TROUBLE_EVERY);

    let before = Cpu::of(daemon.pid())?;
    let begin = Instant::now();
    let lines = Arc::new(Singles::new(&subscriptions, 250));
    let pumped = pump(&daemon.socket(), Sending { connections: 4, window: 500, rate: 0.0 }, 0..messages, lines)?;
    wait(&mock, messages);
    let elapsed = begin.elapsed();
    std::thread::sleep(SETTLE);
    let cpu = Cpu::of(daemon.pid())?.since(before);
    let memory = machine::status_bytes(daemon.pid(), "VmHWM")?;
    let counters = mock.counters();
    let measured = mock.measured();

    let mut report = Report::default();
    report.must_be("acked", "accepted, safe on disk", pumped.acked, messages);
    for line in &pumped.shown {
        report.problem(format!("a line was answered {line}"));
    }
    report.must_be("delivered", "delivered, decrypted and verified", measured.distinct, messages);
    let told_later: u64 = counters.answers.iter().filter(|(status, _)| **status >= 300).map(|(_, count)| count).sum();
    report.count("retried", "told to come later, and retried", told_later);
    report.must_be("repeats", "repeated", counters.repeats, 0);
    report.must_be("violations", "broken rules of the protocol", counters.violation_count, 0);
    for text in counters.violations.iter().take(3) {
        report.problem(text.clone());
    }
    let rate = messages as f64 / elapsed.as_secs_f64();
    report.add("rate", "messages a second, the last retry included", rate, grouped(rate as u64));
    report.latency("ack", "acknowledgement", super::report::quantiles(&pumped.ack));
    let latency = [measured.latency_p50, measured.latency_p99, measured.latency_max];
    report.latency("delivery", "socket to push service", latency);
    let each = cpu.micros_each(messages);
    report.add("cpu", "daemon CPU a message", each, format!("{each:.1} us"));
    report.add("memory", "daemon peak memory", memory, format!("{} MB", memory / 1_000_000));
    match daemon.terminate() {
        Ok(0) => {}
        Ok(code) => report.problem(format!("the daemon ended with {code}")),
        Err(problem) => report.problem(problem.to_string()),
    }
    println!("{}\n", report.table());
    report.verdict()?;
    let own = beside("fanfare-load")?;
    println!("Everything adds up. Next:");
    println!("  {} dev              a daemon and a push service to develop against", binary.display());
    println!("  {} one-to-one   what a message costs, 200,000 times", own.display());
    println!("  {} restart      kill -9 with a million messages pending", own.display());
    println!("  {} --help           every command", binary.display());
    Ok(())
}

/// Until all have come, or nothing more comes; what is missing then shows in the report.
fn wait(mock: &Mock, messages: u64) {
    let progress = Progress::new("delivered", messages);
    let mut last = 0;
    let mut moved = Instant::now();
    while last < messages && moved.elapsed() < STALL {
        std::thread::sleep(Duration::from_millis(20));
        let now = mock.measured().distinct;
        progress.at(now);
        if now != last {
            (last, moved) = (now, Instant::now());
        }
    }
}
