//! `make demo`: a site's readers subscribe, a campaign goes to all of them, urgent messages overtake it; all really encrypted, through
//! a real daemon, to a push service that checks every one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon};
use fanfare_loadtest::machine::{self, Cpu};
use fanfare_loadtest::mock::{Fault, Mock, Options, Plan, Scope};
use fanfare_loadtest::population;
use fanfare_loadtest::say;
use fanfare_loadtest::status::adds_up;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::bench::{SETTLE, beside};
use super::progress::Progress;
use super::pump::{Pumped, Singles, pump, pump_as};
use super::readers::{ask, campaign, ended};
use super::report::{Report, grouped, megabytes, millis, quantiles};
use super::urgent::Urgent;
use crate::{Demo, Sending};

/// Browsers that messages of their own go to, and urgent ones.
const OTHERS: usize = 2_000;
/// The push service says "not now" to one request in this many, so that retrying is seen. It says so with 429, which of a push
/// service without rules of its own concerns that one message (docs/push-services.md 3.6); 503 would close the whole service
/// for its second.
const TROUBLE_EVERY: u64 = 500;
/// The calm part: far below what the daemon can do, so that latency is that of a message, not of the queue before it.
const CALM_MESSAGES: u64 = 3_000;
const CALM_RATE: f64 = 1_000.0;
const BODY: usize = 250;
const STALL: Duration = Duration::from_secs(30);
const FAST: Sending = Sending { connections: 4, window: 500, rate: 0.0 };

/// The daemon, the push service, and what is found out.
struct Show {
    mock: Mock,
    daemon: Daemon,
    report: Report,
    /// Messages that the push service must have had.
    messages: u64,
}

/// Runs the demonstration; an error if anything did not add up.
pub fn run(flags: &Demo) -> io::Result<()> {
    let mock = Mock::try_start(Options { keep: 0, ..Options::default() })?;
    let binary = flags.daemon.clone().map_or_else(|| beside("fanfare"), Ok)?;
    let daemon = Daemon::start(&binary, ConfigBuilder::new().mock(&mock))?;
    say::line(format_args!(
        "A daemon (process {}) and a push service that decrypts and verifies every message, over TLS and HTTP/2.\n",
        daemon.pid()
    ))?;
    let mut show = Show { mock, daemon, report: Report::default(), messages: 0 };
    let others: Vec<Box<RawValue>> =
        show.mock.subscribe(0, OTHERS).iter().map(|browser| to_raw_value(&browser.json())).collect::<Result<_, _>>()?;
    show.campaign(flags.browsers, &others)?;
    show.own_messages(flags.messages, &others)?;
    let report = show.finish()?;
    say::line(format_args!("\n{}\n", report.table().trim_fmt()))?;
    report.verdict()?;
    let (own, fanfare) = (beside("fanfare-load")?.display().to_string(), binary.display().to_string());
    say::line("Everything adds up. Next:")?;
    for (command, what) in [
        (format!("{fanfare} dev"), "a daemon and a push service to develop against"),
        (format!("{own} campaign"), "the same with a million browsers, measured"),
        (format!("{own} one-to-one"), "what a message costs, 200,000 times"),
        (format!("{own} restart"), "kill -9 with a million messages pending"),
        (format!("{fanfare} --help"), "every command"),
    ] {
        say::line(format_args!("  {command:width$}  {what}", width = own.len() + 11))?;
    }
    Ok(())
}

impl Show {
    /// Everybody subscribes; one campaign to all, and urgent messages that do not wait for it.
    fn campaign(&mut self, browsers: u32, others: &[Box<RawValue>]) -> io::Result<()> {
        let all = u64::from(browsers);
        let crowd = self.mock.crowd(Plan { members: browsers, keys: OTHERS as u32, endpoint_bytes: 190, ..Plan::default() });
        step(&format!("{} browsers subscribe, each with its account and tags", grouped(all)))?;
        let line = {
            let crowd = crowd.clone();
            move |number: u64, into: &mut Vec<u8>| population::write_subscribe(&crowd.members, number as u32, into)
        };
        let subscribed = pump_as("subscribed", &self.daemon.socket(), FAST, 0..all, Arc::new(line))?;
        self.refused(&subscribed);
        self.report.must_be("subscribed", "browsers subscribed", subscribed.acked, all);
        let mut client = self.daemon.client();
        let asked = Instant::now();
        let count = ask(&mut client, &json!({"op": "count"}))?["count"].as_u64().unwrap_or(0);
        let counted = asked.elapsed();
        self.report.must_be("counted", "browsers that the daemon counts", count, all);
        let rate = all as f64 / subscribed.elapsed.as_secs_f64();
        done(&format!(
            "{} a second, each safe on disk before it was acknowledged; all are counted in {}.",
            grouped(rate as u64),
            millis(counted.as_micros() as u64)
        ))?;

        step("One campaign to all of them, as one line; ten urgent messages a second to others do not wait for it")?;
        let before = Cpu::of(self.daemon.pid())?;
        let begin = Instant::now();
        let id = ask(&mut client, &campaign(json!({"all": true}), BODY))?["message_id"].clone();
        let urgent = Urgent::start(&self.daemon.socket(), vec![others[0].clone()], 0)?;
        self.watch(&mut client, &id, all, || crowd.whole())?;
        let elapsed = begin.elapsed();
        let sent = urgent.finish()?;
        let status = ended(&mut client, &id)?;
        std::thread::sleep(SETTLE);
        let cpu = Cpu::of(self.daemon.pid())?.since(before);
        let counts = crowd.counts();
        self.report.must_be("once", "browsers that had the campaign, exactly once", counts.once, all);
        self.report.must_be("told", "accepted, says the campaign's status", status["accepted"].as_u64().unwrap_or(0), all);
        let urgently = self.mock.measured();
        self.report.must_be("urgent", "urgent messages meanwhile", urgently.distinct, sent);
        self.messages += all + sent;
        let rate = all as f64 / elapsed.as_secs_f64();
        done(&format!(
            "{} a second. Urgent messages took {} from socket to push service (99 of 100 at most {}).",
            grouped(rate as u64),
            millis(urgently.latency_p50),
            millis(urgently.latency_p99)
        ))?;
        self.report.add("campaign_per_second", "campaign: delivered a second", rate, grouped(rate as u64));
        self.report.cpu("campaign_cpu", "campaign: daemon CPU", cpu, all);
        let latency = [urgently.latency_p50, urgently.latency_p99, urgently.latency_max];
        self.report.latency("urgent_latency", "urgent meanwhile: socket to push service", latency);
        Ok(())
    }

    /// Shows how far a campaign is, as its status tells it: a bar on a terminal, else a line at each quarter.
    fn watch(&mut self, client: &mut Client, id: &Value, all: u64, delivered: impl Fn() -> u64) -> io::Result<()> {
        let progress = Progress::noted("delivered", all);
        let (mut last, mut moved, mut quarter) = (0, Instant::now(), 1);
        while last < all && moved.elapsed() < STALL {
            let status = ask(client, &json!({"op": "status", "message_id": id}))?;
            if !adds_up(&status) {
                self.report.problem(format!("a status does not add up: {status}"));
            }
            let walked = 100.0 * status["walked"].as_f64().unwrap_or(0.0);
            let eta =
                status["eta"].as_str().and_then(|eta| eta.get(11..19)).map_or(String::new(), |eta| format!(", done at {eta}"));
            let urgent = self.mock.measured();
            let note = format!("{walked:.0} % walked{eta}; urgent: {}", millis(urgent.latency_p50));
            if !progress.live() && last * 4 >= all * quarter {
                say::line(format_args!("   {} delivered, {note}", grouped(last)))?;
                quarter += 1;
            }
            progress.note(note);
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(20));
                let now = delivered();
                progress.at(now);
                if now != last {
                    (last, moved) = (now, Instant::now());
                }
            }
        }
        Ok(())
    }

    /// A line each, all at once and then calmly.
    fn own_messages(&mut self, messages: u64, others: &[Box<RawValue>]) -> io::Result<()> {
        let lines = Arc::new(Singles::new(others, BODY));
        step(&format!("{} messages, each a line and a body of its own, all at once", grouped(messages)))?;
        self.mock.reset_measured();
        // Told no more once half have come: the last retry then ends before the last message, and the rate is that of the whole.
        self.mock.set_fault_every(Scope::Origin(0), Fault::status(429).retry_after(1), TROUBLE_EVERY);
        let begin = Instant::now();
        let pumped = pump(&self.daemon.socket(), FAST, 0..messages, lines.clone())?;
        let distinct = self.wait(messages, |now| {
            if now > messages / 2 {
                self.mock.clear_all_faults();
            }
        });
        let elapsed = begin.elapsed();
        self.mock.clear_all_faults();
        let acks = messages as f64 / pumped.elapsed.as_secs_f64();
        let rate = messages as f64 / elapsed.as_secs_f64();
        let later = self.mock.counters().answers.get(&429).copied().unwrap_or(0);
        done(&format!(
            "{} acknowledged a second, {} delivered a second; {later} were told \"not now\" (429), and sent again.",
            grouped(acks as u64),
            grouped(rate as u64)
        ))?;

        step(&format!("{} more at {} a second, to see how long one takes", grouped(CALM_MESSAGES), grouped(CALM_RATE as u64)))?;
        self.mock.reset_measured();
        let calm = Sending { connections: 4, window: 500, rate: CALM_RATE };
        let calmly = pump(&self.daemon.socket(), calm, messages..messages + CALM_MESSAGES, lines)?;
        let calm_distinct = self.wait(CALM_MESSAGES, |_| {});
        let measured = self.mock.measured();
        done(&format!(
            "{} to the acknowledgement, {} to the push service (99 of 100 at most {}).",
            millis(quantiles(&calmly.ack)[0]),
            millis(measured.latency_p50),
            millis(measured.latency_p99)
        ))?;
        self.refused(&pumped);
        self.refused(&calmly);
        let all = messages + CALM_MESSAGES;
        self.messages += all;
        self.report.must_be("acked", "messages of their own, acknowledged", pumped.acked + calmly.acked, all);
        self.report.must_be("delivered", "and received", distinct + calm_distinct, all);
        self.report.add("acks_per_second", "all at once: acknowledged a second", acks, grouped(acks as u64));
        self.report.add("messages_per_second", "all at once: delivered a second", rate, grouped(rate as u64));
        self.report.latency("ack", "calm: acknowledgement", quantiles(&calmly.ack));
        let latency = [measured.latency_p50, measured.latency_p99, measured.latency_max];
        self.report.latency("delivery", "calm: socket to push service", latency);
        Ok(())
    }

    /// What daemon and push service say of the whole, and the end of the daemon.
    fn finish(mut self) -> io::Result<Report> {
        std::thread::sleep(SETTLE);
        let memory = machine::status_bytes(self.daemon.pid(), "VmHWM")?;
        let counters = self.mock.counters();
        let stats = self.daemon.client().try_request(&json!({"op": "stats"}))?;
        let accepted: u64 = stats["stats"].as_array().into_iter().flatten().filter_map(|row| row["accepted"].as_u64()).sum();
        let told_later = counters.answers.get(&429).copied().unwrap_or(0);
        let report = &mut self.report;
        report.must_be("accepted", "accepted in all, says the push service", counters.accepted, self.messages);
        report.must_be("told_accepted", "accepted in all, says the daemon", accepted, self.messages);
        report.must_be("verified", "requests decrypted and verified", counters.verified, self.messages + told_later);
        report.must_be("repeats", "received twice", counters.repeats, 0);
        report.must_be("violations", "broken rules of the protocol", counters.violation_count, 0);
        for text in counters.violations.iter().take(3) {
            report.problem(text.clone());
        }
        report.add("memory", "daemon peak memory", memory, megabytes(memory));
        match self.daemon.terminate() {
            Ok(0) => {}
            Ok(code) => self.report.problem(format!("the daemon ended with {code}")),
            Err(problem) => self.report.problem(problem.to_string()),
        }
        Ok(self.report)
    }

    fn refused(&mut self, pumped: &Pumped) {
        for line in &pumped.shown {
            self.report.problem(format!("a line was answered {line}"));
        }
    }

    /// Until all numbered messages have come, or nothing more comes; what is missing then shows in the report. How many came.
    fn wait(&self, messages: u64, tell: impl Fn(u64)) -> u64 {
        let progress = Progress::new("delivered", messages);
        let mut last = 0;
        let mut moved = Instant::now();
        while last < messages && moved.elapsed() < STALL {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.mock.measured().distinct;
            progress.at(now);
            tell(now);
            if now != last {
                (last, moved) = (now, Instant::now());
            }
        }
        last
    }
}

fn step(what: &str) -> io::Result<()> {
    say::line(format_args!("{what} ..."))
}

fn done(what: &str) -> io::Result<()> {
    say::line(format_args!("   {what}"))
}
