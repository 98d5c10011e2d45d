//! Many subscriptions over the socket: what one costs to take and to keep, and how fast they are counted.

use std::io;
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::START_PATIENCE;
use fanfare_loadtest::machine;
use fanfare_loadtest::population::{EVERYBODY, HALF, SCOPE, of_tag};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::readers::{Stage, ask};
use super::report::{Report, grouped, megabytes, quantiles};
use crate::Registry;

/// Counts measured, one by one and pipelined.
const COUNTS: u64 = 1_000;

/// Runs the measurement and prints its report.
pub fn run(flags: &Registry) -> io::Result<()> {
    let mut stage = Stage::start(&flags.place, &flags.readers, |config| config)?;
    let all = u64::from(flags.readers.subscriptions);
    let data = stage.bench.daemon.as_ref().map(fanfare_loadtest::daemon::Daemon::data_dir);
    let taken = |data: &Option<std::path::PathBuf>| match data {
        Some(data) => machine::disk_bytes(data, ".sst"),
        None => Ok((0, 0)),
    };
    let mut report = Report::default();
    report.unit("subscription");
    report.count("subscriptions", "subscriptions", all);

    let (empty, _) = taken(&data)?;
    let before = stage.bench.reading()?;
    if let Some(pumped) = stage.register(flags.sending)? {
        let after = stage.bench.reading()?;
        report.pumped(&pumped, all);
        report.readings(before, after, all);
        stage.bench.settle()?;
        space(&mut report, "settled", "on disk, settled", taken(&data)?, empty, all);
    }
    let settled = stage.bench.reading()?;
    report.add("settled_rss_bytes", "daemon memory, settled", settled.memory, megabytes(settled.memory));
    counts(&mut report, &mut stage.client()?, flags.readers.subscriptions)?;

    if let Some(daemon) = &mut stage.bench.daemon {
        let code = daemon.terminate()?;
        report.must_be("exit_code", "exit code of a stop", code.unsigned_abs().into(), 0);
        let begin = Instant::now();
        daemon.spawn()?;
        daemon.wait_ready(START_PATIENCE)?;
        let ready = begin.elapsed();
        report.add("ready_ms", "start to ping answered", ready.as_millis() as u64, format!("{} ms", ready.as_millis()));
        stage.bench.settle()?;
        if !stage.known {
            space(&mut report, "restarted", "on disk after a start", taken(&data)?, empty, all);
        }
        let restarted = stage.bench.reading()?;
        report.add("restarted_rss_bytes", "daemon memory after a start", restarted.memory, megabytes(restarted.memory));
        let count = ask(&mut stage.client()?, &json!({"op": "count"}))?["count"].as_u64().unwrap_or(0);
        report.must_be("counted_after_start", "counted after a start", count, all);
    }
    stage.bench.finish()?;
    report.print(flags.place.json)
}

/// What the store takes beyond what it took empty.
fn space(report: &mut Report, name: &str, label: &str, (whole, tables): (u64, u64), empty: u64, subscriptions: u64) {
    let added = whole.saturating_sub(empty);
    let each = |bytes: u64| bytes as f64 / subscriptions.max(1) as f64;
    let text = format!(
        "{}, {:.0} bytes a subscription ({:.0} in tables, the rest write-ahead log)",
        megabytes(added),
        each(added),
        each(tables)
    );
    let value = json!({"bytes": added, "table_bytes": tables, "bytes_each": each(added), "table_bytes_each": each(tables)});
    report.add(name, label, value, text);
}

/// How long a count takes: one by one, and pipelined.
fn counts(report: &mut Report, client: &mut Client, members: u32) -> io::Result<()> {
    let all = u64::from(members);
    let half = (0..fanfare_loadtest::population::TAGS / 2).map(|tag| u64::from(of_tag(members, tag))).sum();
    for (name, label, more, wanted) in [
        ("count_all", "count of all", json!({}), all),
        ("count_tag", "count of a tag that all have", json!({"segment": {"tags": {"any": [EVERYBODY]}}}), all),
        ("count_half", "count of a tag that half have", json!({"segment": {"tags": {"any": [HALF]}}}), half),
        ("count_small", "count of a tag of 500", json!({"segment": {"tags": {"any": ["t0"]}}}), of_tag(members, 0).into()),
        ("count_scope", "count of a scope", json!({"scope": SCOPE}), all),
    ] {
        let mut request: Value = more;
        request["op"] = "count".into();
        let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("good bounds");
        for _ in 0..COUNTS {
            let begin = Instant::now();
            let count = ask(client, &request)?["count"].as_u64();
            times.saturating_record(begin.elapsed().as_micros() as u64);
            if count != Some(wanted) {
                report.problem(format!("{label}: {count:?}, not {wanted}"));
                break;
            }
        }
        report.latency(name, label, quantiles(&times));
        let line = format!("{request}\n");
        let begin = Instant::now();
        client.send_raw(line.repeat(COUNTS as usize).as_bytes())?;
        for _ in 0..COUNTS {
            client.recv_raw()?;
        }
        let each = begin.elapsed().as_micros() as f64 / COUNTS as f64;
        report.budget(&format!("{name}_pipelined_us"), &format!("{} pipelined, each", grouped(COUNTS)), each, "us", BUDGET_US);
    }
    Ok(())
}

/// A million counted in less than a millisecond (docs/design.md 12).
const BUDGET_US: f64 = Duration::from_millis(1).as_micros() as f64;
