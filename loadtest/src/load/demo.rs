//! `make demo`: real encrypted messages through a real daemon to a push service that checks every one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::machine::{self, Cpu};
use fanfare_loadtest::mock::{Fault, Mock, Options, Scope};
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::bench::{SETTLE, beside};
use super::progress::Progress;
use super::pump::{Singles, pump};
use super::report::{Report, grouped, quantiles};
use crate::{Demo, Sending};

const SUBSCRIPTIONS: usize = 2_000;
/// The push service says "not now" to one request in this many, so that retrying is seen. It says so with 429, which of a push
/// service without rules of its own concerns that one message (DESIGN 2.2); 503 would close the whole service for its second.
const TROUBLE_EVERY: u64 = 500;
/// The calm part: far below what the daemon can do, so that latency is that of a message, not of the queue before it.
const CALM_MESSAGES: u64 = 3_000;
const CALM_RATE: f64 = 1_000.0;
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
    println!("{} messages go in at once, each safe on disk before it is acknowledged;", grouped(messages));
    println!("then {} more at {CALM_RATE:.0} a second, to see how long one takes ...\n", grouped(CALM_MESSAGES));
    let lines = Arc::new(Singles::new(&subscriptions, 250));

    // Told no more once half have come: the last retry then ends before the last message, and the rate is that of the whole.
    mock.set_fault_every(Scope::Origin(0), Fault::status(429).retry_after(1), TROUBLE_EVERY);
    let before = Cpu::of(daemon.pid())?;
    let begin = Instant::now();
    let pumped = pump(&daemon.socket(), Sending { connections: 4, window: 500, rate: 0.0 }, 0..messages, lines.clone())?;
    let distinct = wait(&mock, messages, |now| {
        if now > messages / 2 {
            mock.clear_all_faults();
        }
    });
    let elapsed = begin.elapsed();
    mock.clear_all_faults();
    std::thread::sleep(SETTLE);
    let cpu = Cpu::of(daemon.pid())?.since(before);

    mock.reset_measured();
    let calm = Sending { connections: 4, window: 500, rate: CALM_RATE };
    let calmly = pump(&daemon.socket(), calm, messages..messages + CALM_MESSAGES, lines)?;
    let calm_distinct = wait(&mock, CALM_MESSAGES, |_| {});
    std::thread::sleep(SETTLE);
    let memory = machine::status_bytes(daemon.pid(), "VmHWM")?;
    let counters = mock.counters();
    let measured = mock.measured();
    let stats = daemon.client().try_request(&json!({"op": "stats"}))?;
    let told = |name: &str| stats["stats"].as_array().into_iter().flatten().filter_map(|row| row[name].as_u64()).sum::<u64>();

    let all = messages + CALM_MESSAGES;
    let mut report = Report::default();
    report.must_be("acked", "accepted by the daemon, safe on disk", pumped.acked + calmly.acked, all);
    for line in pumped.shown.iter().chain(&calmly.shown) {
        report.problem(format!("a line was answered {line}"));
    }
    report.must_be("delivered", "received, decrypted and verified by the push service", distinct + calm_distinct, all);
    report.must_be("told_accepted", "accepted by the push service, says the daemon", told("accepted"), all);
    let told_later = counters.answers.get(&429).copied().unwrap_or(0);
    report.count("retried", "told \"not now\" (429), and sent again", told_later);
    report.must_be("requests", "requests in all", counters.requests, all + told_later);
    report.must_be("repeats", "received twice", counters.repeats, 0);
    report.must_be("violations", "broken rules of the protocol", counters.violation_count, 0);
    for text in counters.violations.iter().take(3) {
        report.problem(text.clone());
    }
    let acks = messages as f64 / pumped.elapsed.as_secs_f64();
    report.add("acks_per_second", "all at once: acknowledged a second", acks, grouped(acks as u64));
    let rate = messages as f64 / elapsed.as_secs_f64();
    report.add("messages_per_second", "delivered a second", rate, grouped(rate as u64));
    report.cpu("cpu", "daemon CPU", cpu, messages);
    let label = format!("at {CALM_RATE:.0} a second: acknowledgement");
    report.latency("ack", &label, quantiles(&calmly.ack));
    let latency = [measured.latency_p50, measured.latency_p99, measured.latency_max];
    report.latency("delivery", "socket to push service", latency);
    report.add("memory", "daemon peak memory", memory, format!("{} MB", memory / 1_000_000));
    match daemon.terminate() {
        Ok(0) => {}
        Ok(code) => report.problem(format!("the daemon ended with {code}")),
        Err(problem) => report.problem(problem.to_string()),
    }
    println!("{}\n", report.table());
    report.verdict()?;
    let (own, fanfare) = (beside("fanfare-load")?.display().to_string(), binary.display().to_string());
    println!("Everything adds up. Next:");
    for (command, what) in [
        (format!("{fanfare} dev"), "a daemon and a push service to develop against"),
        (format!("{own} one-to-one"), "what a message costs, 200,000 times"),
        (format!("{own} stream"), "one message to 200,000"),
        (format!("{own} restart"), "kill -9 with a million messages pending"),
        (format!("{fanfare} --help"), "every command"),
    ] {
        println!("  {command:width$}  {what}", width = own.len() + 11);
    }
    Ok(())
}

/// Until all have come, or nothing more comes; what is missing then shows in the report. How many came.
fn wait(mock: &Mock, messages: u64, tell: impl Fn(u64)) -> u64 {
    let progress = Progress::new("delivered", messages);
    let mut last = 0;
    let mut moved = Instant::now();
    while last < messages && moved.elapsed() < STALL {
        std::thread::sleep(Duration::from_millis(20));
        let now = mock.measured().distinct;
        progress.at(now);
        tell(now);
        if now != last {
            (last, moved) = (now, Instant::now());
        }
    }
    last
}
