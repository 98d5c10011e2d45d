//! One campaign to every registered subscription, with urgent one-to-one messages meanwhile.

use std::io;
use std::time::{Duration, Instant};

use fanfare_loadtest::machine;
use fanfare_loadtest::mock::Measured;
use fanfare_loadtest::status::adds_up;
use serde_json::{Value, json};

use super::bench::SETTLE;
use super::readers::{Stage, all_accepted, ask, campaign, ended};
use super::report::{Report, grouped};
use super::urgent::Urgent;
use crate::{Campaign, Readers};

/// docs/design.md 12.
const CPU_BUDGET_US: f64 = 80.0;
/// Where the processor lets eight key agreements be made at once.
const CPU_BUDGET_BATCHED_US: f64 = 30.0;
const MEMORY_BUDGET_MB: f64 = 400.0;
const WRITTEN_BUDGET: f64 = 20.0;
const URGENT_BUDGET_MS: f64 = 50.0;
/// A message to 1 million costs at most so many times one to 100 thousand.
const FLAT_BUDGET: f64 = 1.1;
/// In a comparison the small campaign runs so often, so that both are of a like length.
const SMALL_TIMES: u32 = 5;
const SMALL_SHARE: u32 = 10;
/// The calm before the campaign, in which urgent messages have the machine for themselves.
const CALM: Duration = Duration::from_secs(3);

/// Runs the measurement and prints its report.
pub fn run(flags: &Campaign) -> io::Result<()> {
    report(flags)?.print(flags.place.json)
}

/// Runs the measurement.
pub fn report(flags: &Campaign) -> io::Result<Report> {
    let mut report = Report::default();
    if flags.compare {
        let small = Readers { subscriptions: flags.readers.subscriptions / SMALL_SHARE, ..flags.readers.clone() };
        report.section("small_", &format!("{} subscriptions", grouped(small.subscriptions.into())));
        let small = measure(flags, &small, SMALL_TIMES, &mut report)?;
        report.section("large_", &format!("{} subscriptions", grouped(flags.readers.subscriptions.into())));
        let large = measure(flags, &flags.readers, flags.times, &mut report)?;
        report.section("", "compared");
        report.budget("flat", "CPU of a message, large / small", large / small.max(1e-9), "", FLAT_BUDGET);
    } else {
        measure(flags, &flags.readers, flags.times, &mut report)?;
    }
    Ok(report)
}

/// Registers and sends; the CPU time of a message, in microseconds.
fn measure(flags: &Campaign, readers: &Readers, times: u32, report: &mut Report) -> io::Result<f64> {
    let stage = Stage::start(&flags.place, readers, |config| config)?;
    let (bench, mock) = (&stage.bench, &stage.bench.mock);
    let all = u64::from(readers.subscriptions);
    let messages = all * u64::from(times.max(1));
    report.count("recipients", "recipients", all);
    report.count("campaigns", "campaigns", times.max(1).into());
    if let Some(pumped) = stage.register(flags.sending)? {
        report.rate("subscriptions_per_second", "subscriptions a second", all, pumped.elapsed);
    }
    let mut client = stage.client()?;
    stage.warm_up(&mut client)?;
    bench.settle()?;

    // The urgent ones are timed by what is in them, which a sink does not read.
    let urgently = !flags.place.sink;
    let targets = || Ok::<_, io::Error>(vec![mock.subscription(0)?, mock.subscription(1)?]);
    let mut calm = 0;
    if urgently {
        mock.reset_measured()?;
        let urgent = Urgent::start(&bench.socket, targets()?, 0)?;
        std::thread::sleep(CALM);
        calm = urgent.finish()?;
        std::thread::sleep(SETTLE);
    }
    let calmly = [mock.measured_at(0)?, mock.measured_at(1)?];

    mock.reset_measured()?;
    // Where it cannot be reset the peak is that of the whole life, which is not less.
    let _whole_life = machine::reset_peak(bench.pid()?);
    let counters_before = mock.counters()?;
    let before = bench.reading()?;
    let urgent = if urgently { Some(Urgent::start(&bench.socket, targets()?, calm)?) } else { None };
    let mut elapsed = Duration::ZERO;
    let (mut polls, mut once, mut more, mut posts) = (0, 0, 0, 0);
    for _ in 0..times.max(1) {
        stage.reset()?;
        let begin = Instant::now();
        let id = ask(&mut client, &campaign(json!({"all": true}), flags.body))?["message_id"].clone();
        let mut asked = Instant::now();
        let mut looks = stage.client()?;
        stage.wait("delivered", all, |_| {
            if asked.elapsed() >= Duration::from_secs(1) {
                asked = Instant::now();
                polls += 1;
                let status = ask(&mut looks, &json!({"op": "status", "message_id": id}))?;
                if !adds_up(&status) {
                    report.problem(format!("a status does not add up: {status}"));
                }
            }
            Ok(())
        })?;
        // Until its end is on disk a checkpoint passes, which many small campaigns would count as often.
        elapsed += begin.elapsed();
        all_accepted(&ended(&mut client, &id)?, all, report);
        let counts = mock.crowd_counts(stage.crowd)?;
        once += counts.once;
        more += counts.more;
        posts += stage.taken()?;
    }
    let sent = urgent.map_or(Ok(0), Urgent::finish)?;
    std::thread::sleep(SETTLE);
    let after = bench.reading()?;
    let counters = mock.counters()?;
    let measured = [mock.measured_at(0)?, mock.measured_at(1)?];

    // A sink knows nobody; who accepted what is told by the daemon, above, and by the number of posts.
    report.must_be("posts", "posts that the push service took", posts, messages);
    if !flags.place.sink {
        report.must_be("once", "recipients who had it exactly once", once, messages);
        report.must_be("repeats", "who had it more than once", more, 0);
    }
    report.count("polls", "statuses asked meanwhile, all adding up", polls);
    if flags.place.verifies_all() {
        report.must_be("verified", "decrypted and verified", counters.verified - counters_before.verified, messages + sent);
    }
    report.violations(&counters);
    report.rate("messages_per_second", "messages a second, delivered", messages, elapsed);
    let each = report.readings(before, after, messages);
    let budget = if machine::multiplies_in_lanes() { CPU_BUDGET_BATCHED_US } else { CPU_BUDGET_US };
    report.budget("cpu_us", "daemon CPU a message", each, "us", budget);
    report.budget("peak_mb", "daemon peak memory meanwhile", after.peak_memory as f64 / 1e6, "MB", MEMORY_BUDGET_MB);
    if let (Some(before), Some(after)) = (before.written, after.written) {
        let written = after.saturating_sub(before) as f64 / messages as f64;
        report.budget("written_each", "written a recipient", written, "bytes", WRITTEN_BUDGET);
    }
    if urgently {
        urgent_latencies(report, &calmly, &measured, sent);
    }
    if let Some(unexpected) = after_the_end(&mut client)? {
        report.problem(unexpected);
    }
    stage.bench.finish()?;
    Ok(each)
}

/// What urgent messages took, before the campaign and meanwhile, to the campaign's push service and to another.
fn urgent_latencies(report: &mut Report, calmly: &[Measured; 2], meanwhile: &[Measured; 2], sent: u64) {
    report.must_be("urgent", "urgent messages meanwhile, all received", meanwhile.iter().map(|one| one.distinct).sum(), sent);
    for (origin, which) in [(0, "same"), (1, "other")] {
        let label = format!("urgent to {} service", if origin == 0 { "the same" } else { "another" });
        report.measured(&format!("urgent_{which}_calm"), &format!("{label}, calm"), &calmly[origin]);
        report.measured(&format!("urgent_{which}"), &label, &meanwhile[origin]);
        let p99 = meanwhile[origin].latency_p99 as f64 / 1_000.0;
        report.budget(&format!("urgent_{which}_p99_ms"), &format!("{label}, p99"), p99, "ms", URGENT_BUDGET_MS);
    }
}

/// Nothing may be left in any state.
fn after_the_end(client: &mut fanfare_loadtest::client::Client) -> io::Result<Option<String>> {
    let ping: Value = ask(client, &json!({"op": "ping"}))?;
    Ok((ping["state"] != "ok").then(|| format!("afterwards the daemon says {ping}")))
}
