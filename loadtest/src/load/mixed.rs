//! Half of the messages to a push service that answers at once, half to one that takes its time: what the first loses by the second.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::mock::Fault;
use serde_json::json;

use super::bench::{Bench, SETTLE, Site};
use super::pump::{Lines, Pumped, Singles, pump};
use super::readers::ask;
use super::report::{Report, grouped};
use crate::{Mixed, Sending};

/// Connections, tokens and caches are made by these at each push service; they are not counted.
const WARM_UP: u64 = 1_000;
const SUBSCRIPTIONS: usize = 5_000;
/// The mock decrypts, and times, one body in this many unless told otherwise: it costs more than the daemon if it decrypts all.
const TIMED_EVERY: u64 = 20;
/// The push service's origins.
const FAST: usize = 0;
const SLOW: usize = 1;
const SENDING: Sending = Sending { connections: 4, window: 500, rate: 0.0 };
const EVERY: Duration = Duration::from_millis(20);
/// So that what waits for the slow one can be cancelled at the end.
const LABEL: &str = "\"label\":\"mixed\",";

/// Runs the measurement and prints its report.
pub fn run(flags: &Mixed) -> io::Result<()> {
    report(flags)?.print(flags.place.json)
}

/// Runs the measurement.
pub fn report(flags: &Mixed) -> io::Result<Report> {
    if flags.place.sink || flags.place.socket.is_some() {
        return Err(io::Error::other(
            "two push services are needed, one of them slow: neither a sink nor a daemon that runs already",
        ));
    }
    let every = if flags.place.verify_every > 1 { flags.place.verify_every } else { TIMED_EVERY };
    let site = Site { verify_every: every, listeners: 2, ..Site::default() };
    let bench = Bench::start_at(&flags.place, &site, |config| config)?;
    bench.mock.set_fault(SLOW, Fault::late(Duration::from_millis(flags.delay)))?;
    let singles = |origin| -> io::Result<Arc<Singles>> {
        Ok(Arc::new(Singles::with(&bench.mock.subscriptions_at(origin, SUBSCRIPTIONS)?, flags.body, LABEL)))
    };
    let (fast, slow) = (singles(FAST)?, singles(SLOW)?);
    // Of two numbers that follow each other one goes to each, so that both halves are sent alike.
    let both: Arc<dyn Lines> = {
        let fast = fast.clone();
        Arc::new(
            move |number: u64, into: &mut Vec<u8>| {
                if number.is_multiple_of(2) { fast.line(number / 2, into) } else { slow.line(number / 2, into) }
            },
        )
    };
    let before_all = bench.mock.counters()?.accepted;
    pump(&bench.socket, SENDING, 0..2 * WARM_UP, both.clone())?;
    bench.mock.wait("warm-up", before_all + 2 * WARM_UP, EVERY, |mock| Ok(mock.counters()?.accepted))?;
    bench.settle()?;

    let mut report = Report::default();
    report.count("messages", "messages to the fast push service", flags.messages);
    report.add("delay_ms", "the slow one answers after", flags.delay, format!("{} ms", flags.delay));
    let mut rates = Vec::new();
    for (prefix, heading, lines, services) in [
        ("alone_", "the fast one alone", fast as Arc<dyn Lines>, 1),
        ("mixed_", "as many to the slow one at the same time", both, 2),
    ] {
        report.section(prefix, heading);
        let throughput = throughput(&bench, flags, lines.clone(), services)?;
        rates.push(throughput.rate);
        report.add("messages_per_second", "messages a second, fast one", throughput.rate, grouped(throughput.rate as u64));
        report.must_be("refused_at_once", "answered with an error", throughput.pumped.refused, 0);
        latency(&bench, flags, lines, services, &mut report)?;
    }
    report.section("", "compared");
    report.add(
        "ratio",
        "throughput of the fast one, with the slow one / alone",
        rates[1] / rates[0],
        format!("{:.2}", rates[1] / rates[0]),
    );
    report.violations(&bench.mock.counters()?);
    // What waits for the slow one would be minutes of it.
    ask(&mut Client::connect(&bench.socket)?, &json!({"op": "cancel", "label": "mixed"}))?;
    bench.finish()?;
    Ok(report)
}

struct Throughput {
    pumped: Pumped,
    /// Messages a second that the fast push service took.
    rate: f64,
}

/// As fast as they are acknowledged, until the fast push service has all of its own.
fn throughput(bench: &Bench, flags: &Mixed, lines: Arc<dyn Lines>, services: u64) -> io::Result<Throughput> {
    let wanted = fast_taken(bench)? + flags.messages;
    let begin = Instant::now();
    let pumped = pump(&bench.socket, SENDING, 0..services * flags.messages, lines)?;
    bench.mock.wait("delivered", wanted, EVERY, |mock| Ok(mock.counters()?.origins[FAST].accepted))?;
    let rate = flags.messages as f64 / begin.elapsed().as_secs_f64();
    std::thread::sleep(SETTLE);
    Ok(Throughput { pumped, rate })
}

/// At a pace that the daemon can keep, so that what is timed is the way and not the queue.
fn latency(bench: &Bench, flags: &Mixed, lines: Arc<dyn Lines>, services: u64, report: &mut Report) -> io::Result<()> {
    bench.mock.reset_measured()?;
    let before = bench.reading()?;
    let messages = (flags.rate * flags.seconds) as u64;
    let wanted = fast_taken(bench)? + messages;
    let paced = Sending { rate: flags.rate * services as f64, ..SENDING };
    let pumped = pump(&bench.socket, paced, 0..services * messages, lines)?;
    bench.mock.wait("delivered", wanted, EVERY, |mock| Ok(mock.counters()?.origins[FAST].accepted))?;
    std::thread::sleep(SETTLE);
    let after = bench.reading()?;
    let measured = bench.mock.measured_at(FAST)?;
    report.pumped(&pumped, services * messages);
    let label = format!("fast one at {} a second: socket to push service", grouped(flags.rate as u64));
    report.measured("delivery", &label, &measured);
    report.readings(before, after, services * messages);
    Ok(())
}

fn fast_taken(bench: &Bench) -> io::Result<u64> {
    Ok(bench.mock.counters()?.origins[FAST].accepted)
}
