//! Urgent messages one at a time to a daemon that has nothing else to do: what the way from the socket to the push service takes, fsync
//! included, when nobody stands in it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::bench::{Bench, SETTLE};
use super::pump::{Singles, pump};
use super::report::Report;
use crate::{Lone, Sending};

/// Connections and tokens are made by these; they are not counted.
const WARM_UP: u64 = 50;
const SUBSCRIPTIONS: usize = 100;
const P99_BUDGET_MS: f64 = 5.0;

/// Runs the measurement and prints its report.
pub fn run(flags: &Lone) -> io::Result<()> {
    report(flags)?.print(flags.place.json)
}

/// Runs the measurement.
pub fn report(flags: &Lone) -> io::Result<Report> {
    if flags.place.sink {
        return Err(io::Error::other("messages are timed by what is in them, which a sink does not read"));
    }
    let messages = ((flags.rate * flags.seconds).round() as u64).max(1);
    let bench = Bench::start(&flags.place, |config| config)?;
    let subscriptions = bench.mock.subscriptions(SUBSCRIPTIONS, None)?;
    let lines = Arc::new(Singles::with(&subscriptions, flags.body, "\"urgency\":\"high\","));
    // Open loop: the next leaves when it is due, whether or not the one before has been answered.
    let paced = Sending { connections: 1, window: 1_000, rate: flags.rate };
    let taken = |mock: &super::bench::MockProcess| Ok(mock.counters()?.accepted);
    let before_all = bench.mock.counters()?.accepted;
    pump(&bench.socket, Sending { rate: 1_000.0, ..paced }, 0..WARM_UP, lines.clone())?;
    bench.mock.wait("warm-up", before_all + WARM_UP, Duration::from_millis(50), taken)?;
    bench.settle()?;
    bench.mock.reset_measured()?;
    let before = bench.reading()?;
    let pumped = pump(&bench.socket, paced, 0..messages, lines)?;
    bench.mock.wait("delivered", before_all + WARM_UP + messages, Duration::from_millis(50), taken)?;
    std::thread::sleep(SETTLE);
    let after = bench.reading()?;
    let measured = bench.mock.measured()?;

    let mut report = Report::default();
    report.count("messages", "messages, one at a time", messages);
    report.add("rate", "a second", flags.rate, format!("{}", flags.rate));
    report.pumped(&pumped, messages);
    report.must_be("distinct", "received", measured.distinct, messages);
    report.violations(&bench.mock.counters()?);
    report.measured("delivery", "socket to push service", &measured);
    report.budget("p99_ms", "p99", measured.latency_p99 as f64 / 1_000.0, "ms", P99_BUDGET_MS);
    report.readings(before, after, messages);
    bench.finish()?;
    Ok(report)
}
