//! `make bench`: many measurements one after another, each as its command would make it, and a page of what they say.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use fanfare_loadtest::machine::{self, Machine};
use fanfare_loadtest::say;

use super::report::{Report, grouped};
use super::results::{Group, Results, Run};
use super::{burst, campaign, ingest, lone, mixed, one_to_one, page, stream};
use crate::{Drawn, Flags, Suite, What};

/// So long it is watched whether others use the machine.
const LOOK: Duration = Duration::from_secs(2);
/// More cores in use than this are more than what any machine does by itself.
pub const IDLE: f64 = 0.1;

/// What is measured: a command line without the program, but split where it is run.
struct Step {
    group: Group,
    title: String,
    x: f64,
    command: String,
}

/// Measures everything, writes it down after each measurement, and draws it. An error tells every number that did not add up; what
/// could be measured is drawn all the same.
pub fn run(flags: &Suite) -> io::Result<()> {
    std::fs::create_dir_all(&flags.out)?;
    let machine = Machine::here();
    let steps = steps(flags.quick, machine.cores);
    say::line(format_args!("{} measurements on {machine}\n", steps.len()))?;
    let mut results = Results {
        date: httpdate::fmt_http_date(SystemTime::now()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: flags.commit.clone().filter(|name| !name.is_empty()),
        quick: flags.quick,
        machine,
        busy_cores: machine::busy_cores(LOOK)?,
        runs: Vec::new(),
    };
    let mut problems = Vec::new();
    let begin = Instant::now();
    for (number, step) in steps.iter().enumerate() {
        // On a terminal the measurement's own progress comes below, so the line is whole before it.
        let head = format!("{:2} of {}  {:40}", number + 1, steps.len(), step.title);
        if io::stdout().is_terminal() {
            say::line(head)?;
        } else {
            say::part(head)?;
        }
        let begun = Instant::now();
        match measure(step, flags.daemon.as_ref()) {
            Ok(report) => {
                if let Err(problem) = report.verdict() {
                    problems.push(format!("{}: {problem}", step.title));
                }
                let run = Run {
                    group: step.group,
                    title: step.title.clone(),
                    x: step.x,
                    command: format!("fanfare-load {}", step.command),
                    numbers: report.numbers(),
                    rows: report.rows().to_vec(),
                };
                say::line(format_args!("  {}, {:.0} s", summary(&run), begun.elapsed().as_secs_f64()))?;
                results.runs.push(run);
                results.write(&flags.out)?;
            }
            Err(problem) => {
                say::line(format_args!("  failed: {problem}"))?;
                problems.push(format!("{}: {problem}", step.title));
            }
        }
    }
    let page = page::write(&results, &flags.out)?;
    if results.busy_cores > IDLE {
        say::line(format_args!(
            "\nOthers used the machine ({:.1} cores of it at the beginning): rates and latencies are not its own.",
            results.busy_cores
        ))?;
    }
    say::line(format_args!("\n{:.1} minutes. The page: {}", begin.elapsed().as_secs_f64() / 60.0, page.display()))?;
    if problems.is_empty() { Ok(()) } else { Err(io::Error::other(problems.join("\n"))) }
}

/// Draws what an earlier run has written.
pub fn draw(flags: &Drawn) -> io::Result<()> {
    let page = page::write(&Results::read(&flags.out)?, &flags.out)?;
    say::line(page.display())
}

fn summary(run: &Run) -> String {
    let mut text = Vec::new();
    if let Some(rate) = run.rate() {
        text.push(format!("{} a second", grouped(rate as u64)));
    }
    if let Some(each) = run.inner("daemon_cpu", "us_per_message") {
        text.push(format!("{each:.1} us a message"));
    }
    for name in ["delivery", "alone_delivery", "mixed_delivery"] {
        if let (Some(p50), Some(p99)) = (run.inner(name, "p50_us"), run.inner(name, "p99_us")) {
            text.push(format!("p50 {:.1} ms, p99 {:.1} ms", p50 / 1e3, p99 / 1e3));
        }
    }
    text.join(", ")
}

fn measure(step: &Step, daemon: Option<&PathBuf>) -> io::Result<Report> {
    let mut line = vec!["fanfare-load".into()];
    line.extend(step.command.split_ascii_whitespace().map(Into::into));
    if let Some(path) = daemon {
        line.extend(["--daemon".into(), path.clone().into_os_string()]);
    }
    match Flags::try_parse_from(line).map_err(io::Error::other)?.what {
        What::OneToOne(flags) => one_to_one::report(&flags),
        What::Ingest(flags) => ingest::report(&flags),
        What::Stream(flags) => stream::report(&flags),
        What::Campaign(flags) => campaign::report(&flags),
        What::Burst(flags) => burst::report(&flags),
        What::Lone(flags) => lone::report(&flags),
        What::Mixed(flags) => mixed::report(&flags),
        _ => Err(io::Error::other("this is no measurement of the suite")),
    }
}

/// What `make bench` measures. Most of it with the sink, where the daemon has the machine; what the checking mock says of the same work
/// stands beside it.
fn steps(quick: bool, cores: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut step = |group, title: String, x: f64, command: String| steps.push(Step { group, title, x, command });
    // `whole` in five minutes, `short` in two or three; on a machine that others use as well in twice the time.
    let size = |whole: u32, short: u32| if quick { short } else { whole };

    let (lines, many) = (size(400_000, 80_000), size(200_000, 40_000));
    let work: [(&str, String); 7] = [
        ("one-to-one", format!("one-to-one --sink --messages {lines}")),
        ("one-to-one, every one checked", format!("one-to-one --messages {many}")),
        ("stream", format!("stream --sink --recipients {many}")),
        ("campaign", format!("campaign --sink --subscriptions {many}")),
        ("campaign, keys made ahead", format!("burst --sink --subscriptions {many}")),
        ("campaign, every one checked", format!("campaign --subscriptions {many}")),
        ("ingest only", format!("ingest --messages {}", size(500_000, 200_000))),
    ];
    for (title, command) in work {
        step(Group::Work, title.to_owned(), 0.0, command);
    }

    let seconds = size(20, 6);
    step(Group::Latency, "lone urgent messages".to_owned(), 0.0, format!("lone --seconds {seconds}"));
    let calm = size(10_000, 4_000);
    step(Group::Latency, "1,000 a second".to_owned(), 0.0, format!("one-to-one --rate 1000 --messages {calm}"));
    let mixed = format!("mixed --messages {} --seconds {}", size(50_000, 10_000), size(10, 4));
    step(Group::Latency, "mixed with a slow push service".to_owned(), 0.0, mixed);

    // The small ones are repeated, or nothing would be measured but ticks.
    let recipients: &[(u32, u32)] = if quick {
        &[(1_000, 10), (10_000, 3), (100_000, 1)]
    } else {
        &[(1_000, 50), (10_000, 10), (100_000, 5), (1_000_000, 1)]
    };
    for (recipients, times) in recipients {
        let title = format!("campaign to {}", grouped((*recipients).into()));
        let command = format!("campaign --sink --subscriptions {recipients} --times {times}");
        step(Group::Recipients, title, (*recipients).into(), command);
    }

    let many = size(200_000, 50_000);
    let mut one_to_one = |group, title: String, x: u32, more: String| {
        step(group, title, x.into(), format!("one-to-one --sink --messages {many} {more}"));
    };
    let mut threads = 1;
    while threads <= cores.max(2) as u32 {
        let title = if threads == 1 { "1 thread seals".to_owned() } else { format!("{threads} threads seal") };
        one_to_one(Group::Threads, title, threads, format!("--set encrypt.threads={threads}"));
        threads *= 2;
    }
    for connections in [1, 2, 4, 8, 16, 32] {
        let title = format!("{connections} connection{} an origin", if connections == 1 { "" } else { "s" });
        one_to_one(Group::Connections, title, connections, format!("--set deliver.connections_per_origin={connections}"));
    }
    for body in [0, 250, 1_000, 2_000, 3_993] {
        one_to_one(Group::Body, format!("payload of {} bytes", grouped(body.into())), body, format!("--body {body}"));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command that is misspelt would be found out only after minutes.
    #[test]
    fn every_step_is_a_command() {
        for quick in [false, true] {
            for step in steps(quick, 8) {
                let line = format!("fanfare-load {}", step.command);
                let flags = Flags::try_parse_from(line.split_ascii_whitespace()).unwrap_or_else(|problem| panic!("{problem}"));
                let measured = matches!(
                    flags.what,
                    What::OneToOne(_)
                        | What::Ingest(_)
                        | What::Stream(_)
                        | What::Campaign(_)
                        | What::Burst(_)
                        | What::Lone(_)
                        | What::Mixed(_)
                );
                assert!(measured, "{}", step.command);
            }
        }
        let threads = |cores| steps(true, cores).iter().filter(|step| step.group == Group::Threads).count();
        assert_eq!((threads(1), threads(2), threads(8)), (2, 2, 4));
    }
}
