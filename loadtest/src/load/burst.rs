//! A campaign that was paused while the daemon had nothing else to do: what its messages cost once it is let go.

use std::io;
use std::time::{Duration, Instant};

use fanfare_loadtest::machine::Cpu;
use serde_json::json;

use super::bench::SETTLE;
use super::progress::Progress;
use super::readers::{Stage, all_accepted, ask, campaign, ended};
use super::report::{Report, grouped, megabytes};
use crate::{Burst, Readers};

/// Of a message whose key agreement was made ahead.
const CPU_BUDGET_US: f64 = 18.0;
/// Of one core, while there is nothing left to be made.
const IDLE_BUDGET_PERCENT: f64 = 1.0;
/// As in `campaign`: key pairs that the subscriptions share, and the length of an endpoint.
const KEYS: u32 = 20_000;
const ENDPOINT_BYTES: usize = 190;
/// So long is waited for another secret: metrics are set every second.
const STALL: Duration = Duration::from_secs(5);
const CALM: Duration = Duration::from_secs(5);

/// Runs the measurement and prints its report.
pub fn run(flags: &Burst) -> io::Result<()> {
    report(flags)?.print(flags.place.json)
}

/// Runs the measurement.
pub fn report(flags: &Burst) -> io::Result<Report> {
    let mut report = Report::default();
    let readers = Readers { subscriptions: flags.subscriptions, keys: KEYS, endpoint_bytes: ENDPOINT_BYTES, keep: None };
    let stage = Stage::start(&flags.place, &readers, |config| config)?;
    let (bench, mock) = (&stage.bench, &stage.bench.mock);
    let Some(daemon) = &bench.daemon else { return Err(io::Error::other("burst reads metrics: it starts its own daemon")) };
    let all = u64::from(flags.subscriptions);
    report.count("recipients", "recipients", all);
    stage.register(flags.sending)?;
    let mut client = stage.client()?;
    stage.warm_up(&mut client)?;
    bench.settle()?;

    let entries = |kind: &str| daemon.metric(&format!("fanfare_encrypt_warm_entries{{kind=\"{kind}\"}}"));
    let hits = || daemon.metric("fanfare_encrypt_warm_hits_total{kind=\"secret\"}");
    let used_before = hits()?;
    let cold = bench.reading()?;
    let mut request = campaign(json!({"all": true}), flags.body);
    request["paused"] = true.into();
    let id = ask(&mut client, &request)?["message_id"].clone();
    let begin = Instant::now();
    let progress = Progress::new("made ahead", all);
    let (mut secrets, mut moved) = (0, Instant::now());
    while secrets < all && moved.elapsed() < STALL {
        std::thread::sleep(Duration::from_millis(100));
        let now = entries("secret")? as u64;
        progress.at(now);
        if now > secrets {
            (secrets, moved) = (now, Instant::now());
        }
    }
    drop(progress);
    let warm = bench.reading()?;
    let bytes = daemon.metric("fanfare_encrypt_warm_bytes")?;
    report.count("secrets", "agreements made ahead", secrets);
    let seconds = (moved - begin).as_secs_f64();
    report.add("warm_seconds", "which took", seconds, format!("{seconds:.1} s"));
    report.cpu("warm_cpu", "daemon CPU for them", warm.daemon.since(cold.daemon), secrets);
    let text = format!("{}, with {} key pairs", megabytes(bytes as u64), grouped(entries("key_pair")? as u64));
    report.add("warm_bytes", "memory as the daemon counts it", bytes, text);
    let grown = warm.memory.saturating_sub(cold.memory);
    report.add("warm_grown_bytes", "memory grown meanwhile", grown, megabytes(grown));

    let before = Cpu::of(bench.pid()?)?;
    std::thread::sleep(CALM);
    let idle = Cpu::of(bench.pid()?)?.since(before);
    let percent = (idle.user + idle.system).as_secs_f64() / CALM.as_secs_f64() * 100.0;
    report.budget("idle_percent", "then, with nothing to do, of a core", percent, "%", IDLE_BUDGET_PERCENT);

    stage.reset()?;
    let counters_before = mock.counters()?;
    let before = bench.reading()?;
    let begin = Instant::now();
    ask(&mut client, &json!({"op": "resume", "message_id": id}))?;
    stage.wait("delivered", all, |_| Ok(()))?;
    let elapsed = begin.elapsed();
    all_accepted(&ended(&mut client, &id)?, all, &mut report);
    std::thread::sleep(SETTLE);
    let after = bench.reading()?;
    let counters = mock.counters()?;
    stage.check_once(&mut report, all)?;
    if flags.place.verifies_all() {
        report.must_be("verified", "decrypted and verified", counters.verified - counters_before.verified, all);
    }
    report.violations(&counters);
    // The metrics are up to a second old.
    std::thread::sleep(Duration::from_millis(1_500));
    report.must_be("hits", "messages that used an agreement made ahead", (hits()? - used_before) as u64, secrets);
    report.must_be("left", "agreements left in memory", entries("secret")? as u64, 0);
    report.rate("messages_per_second", "messages a second, delivered", all, elapsed);
    let each = report.readings(before, after, all);
    report.budget("cpu_us", "daemon CPU a message, from the first send on", each, "us", CPU_BUDGET_US);
    stage.bench.finish()?;
    Ok(report)
}
