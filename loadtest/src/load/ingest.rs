//! Durable acknowledgements a second, while nothing can be delivered: the push service's port refuses.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::closed_port;
use serde_json::json;

use super::bench::Bench;
use super::pump::{Singles, pump};
use super::report::Report;
use crate::{Ingest, Sending};

/// Enough to find the service down.
const WARM_UP: u64 = 1_000;
/// Until the first refusals have closed the lane.
const CLOSING: Duration = Duration::from_secs(2);

/// Runs the measurement and prints its report.
pub fn run(flags: &Ingest) -> io::Result<()> {
    report(flags)?.print(flags.place.json)
}

/// Runs the measurement.
pub fn report(flags: &Ingest) -> io::Result<Report> {
    let messages = flags.messages;
    let (address, _held) = closed_port()?;
    let host = address.to_string();
    let bench = Bench::start(&flags.place, |config| config.allow_host(&host))?;
    let subscriptions = bench.mock.subscriptions(flags.singles.subscriptions, Some(&host))?;
    let lines = Arc::new(Singles::new(&subscriptions, flags.singles.body));
    let warm_up = Sending { rate: 0.0, ..flags.sending };
    pump(&bench.socket, warm_up, 0..WARM_UP, lines.clone())?;
    std::thread::sleep(CLOSING);
    let before = bench.reading()?;
    let pumped = pump(&bench.socket, flags.sending, WARM_UP..WARM_UP + messages, lines)?;
    let after = bench.reading()?;

    let mut report = Report::default();
    report.count("messages", "messages", messages);
    report.pumped(&pumped, messages);
    report.readings(before, after, messages);
    let origins = Client::connect(&bench.socket)?.try_request(&json!({"op": "origins"}))?;
    report.origins(&origins["origins"]);
    bench.finish()?;
    Ok(report)
}
