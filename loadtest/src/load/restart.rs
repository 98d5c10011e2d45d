//! Many pending messages, kill -9, and the time from start to the first post.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fanfare_loadtest::daemon::START_PATIENCE;

use super::bench::Bench;
use super::pump::{Singles, pump};
use super::report::{Report, grouped};
use crate::Restart;

/// Runs the measurement and prints its report.
pub fn run(flags: &Restart) -> io::Result<()> {
    if flags.place.sink {
        return Err(io::Error::other("restart times the first post by what is in it, which a sink does not read"));
    }
    let messages = flags.messages;
    let mut bench = Bench::start(&flags.place, |config| config)?;
    let subscriptions = bench.mock.subscriptions(flags.singles.subscriptions, None)?;
    let lines = Arc::new(Singles::new(&subscriptions, flags.singles.body));
    bench.mock.listen(false)?;
    let pumped = pump(&bench.socket, flags.sending, 0..messages, lines)?;
    let pending = bench.reading()?;
    let Some(daemon) = &mut bench.daemon else {
        return Err(io::Error::other("restart kills its daemon, so it takes none that runs already"));
    };
    daemon.kill9();
    bench.mock.listen(true)?;
    bench.mock.reset_measured()?;

    let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64;
    let started = Instant::now();
    daemon.spawn()?;
    daemon.wait_ready(START_PATIENCE)?;
    let ready = started.elapsed();
    bench.mock.wait("first post", 1, Duration::from_millis(5), |mock| Ok(u64::from(mock.measured()?.first > 0)))?;
    let first = bench.mock.measured()?.first.saturating_sub(begin);

    let mut report = Report::default();
    report.count("messages", "pending when killed", messages);
    report.pumped(&pumped, messages);
    report.add("pending_rss_bytes", "memory with all pending", pending.memory, format!("{} MB", pending.memory / 1_000_000));
    report.add("ready_ms", "start to ping answered", ready.as_millis() as u64, format!("{} ms", ready.as_millis()));
    report.add("first_post_us", "start to first post received", first, format!("{:.1} ms", first as f64 / 1_000.0));
    if flags.drain {
        bench.mock.wait("delivered", messages, Duration::from_millis(200), |mock| Ok(mock.measured()?.distinct))?;
        let measured = bench.mock.measured()?;
        report.must_be("distinct", "delivered", measured.distinct, messages);
        report.count("repeats", "repeated", measured.repeats);
        let rate = messages as f64 * 1e6 / measured.last.saturating_sub(measured.first).max(1) as f64;
        report.add("messages_per_second", "messages a second, delivered", rate, grouped(rate as u64));
        let after = bench.reading()?;
        report.add(
            "daemon_peak_rss_bytes",
            "daemon peak memory",
            after.peak_memory,
            format!("{} MB", after.peak_memory / 1_000_000),
        );
    }
    report.must_be("violations", "broken rules", bench.mock.counters()?.violation_count, 0);
    bench.finish()?;
    report.print(flags.place.json)
}
