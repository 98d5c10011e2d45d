//! One line, one recipient, one body of its own: what a message costs from the socket to the push service.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::bench::{Bench, SETTLE};
use super::pump::{Singles, pump};
use super::report::Report;
use crate::OneToOne;

/// Connections, tokens and caches are made by these; they are not counted.
const WARM_UP: u64 = 1_000;

/// Runs the measurement and prints its report.
pub fn run(flags: &OneToOne) -> io::Result<()> {
    report(flags)?.print(flags.place.json)
}

/// Runs the measurement.
pub fn report(flags: &OneToOne) -> io::Result<Report> {
    let messages = flags.messages;
    let bench = Bench::start(&flags.place, |config| config)?;
    let subscriptions = bench.mock.subscriptions(flags.singles.subscriptions, None)?;
    let lines = Arc::new(Singles::new(&subscriptions, flags.singles.body));
    // What is asked seldom is told too late: a sink has a thousand messages in 20 ms.
    let every = Duration::from_millis(if flags.place.sink { 10 } else { 50 });

    let begin = bench.mock.counters()?.accepted;
    pump(&bench.socket, flags.sending, 0..WARM_UP, lines.clone())?;
    bench.mock.wait("warm-up", begin + WARM_UP, every, |mock| Ok(mock.counters()?.accepted))?;
    std::thread::sleep(SETTLE);
    bench.mock.reset_measured()?;
    let counters_before = bench.mock.counters()?;
    let told_before = bench.told_accepted()?;
    let before = bench.reading()?;

    let started = std::time::Instant::now();
    let pumped = pump(&bench.socket, flags.sending, 0..messages, lines)?;
    let wanted = counters_before.accepted + messages;
    bench.mock.wait("delivered", wanted, every, |mock| Ok(mock.counters()?.accepted))?;
    // As exact as the mock is asked.
    let elapsed = started.elapsed();
    std::thread::sleep(SETTLE);
    let after = bench.reading()?;
    let counters = bench.mock.counters()?;
    let measured = bench.mock.measured()?;

    let mut report = Report::default();
    report.count("messages", "messages", messages);
    report.pumped(&pumped, messages);
    report.must_be("accepted", "accepted by the push service", counters.accepted - counters_before.accepted, messages);
    // The only other witness where the mock looks at nothing.
    report.must_be("told_accepted", "accepted, says the daemon", bench.told_accepted()? - told_before, messages);
    let verified = counters.verified - counters_before.verified;
    if flags.place.verifies_all() {
        report.must_be("verified", "decrypted and verified", verified, messages);
        // An empty payload has no number.
        if flags.singles.body > 0 {
            report.must_be("distinct", "different messages", measured.distinct, messages);
        }
    } else if !flags.place.sink {
        report.count("verified", "decrypted and verified (a sample)", verified);
    }
    report.violations(&counters);
    report.must_be("repeats", "repeated", counters.repeats - counters_before.repeats, 0);
    report.rate("messages_per_second", "messages a second, delivered", messages, elapsed);
    // As fast as they are acknowledged is faster than they are delivered: then most of it is the queue, which is said.
    let label =
        if flags.sending.rate > 0.0 { "socket to push service" } else { "socket to push service, mostly queue (no --rate)" };
    if measured.distinct > 0 {
        report.measured("delivery", label, &measured);
    }
    report.readings(before, after, messages);
    bench.finish()?;
    Ok(report)
}
