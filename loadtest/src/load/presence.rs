//! Accounts that come and go, and messages that wait for them to leave.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanfare_loadtest::population::account;
use serde_json::json;

use super::bench::SETTLE;
use super::pump::{Lines, pump, pump_as};
use super::readers::{Stage, ask};
use super::report::{Report, grouped, megabytes};
use crate::{Presence, Readers};

/// Seconds that an account must be offline.
const GRACE: u64 = 1;
const BODY: usize = 250;

/// Runs the measurement and prints its report.
pub fn run(flags: &Presence) -> io::Result<()> {
    let accounts = u64::from(flags.accounts);
    let recipients = 2 * accounts;
    let readers = Readers { subscriptions: 2 * flags.accounts, keys: 20_000, endpoint_bytes: 190, keep: None };
    let stage = Stage::start(&flags.place, &readers, |config| config.set("presence.grace", GRACE))?;
    let (bench, socket) = (&stage.bench, &stage.bench.socket);
    stage.register(flags.sending)?;
    bench.settle()?;
    // Accounts have two members each, whose numbers follow each other.
    let presence = |state: &'static str, more: &'static str| -> Arc<dyn Lines> {
        Arc::new(move |number: u64, into: &mut Vec<u8>| {
            let account = account((number % accounts) as u32 * 2);
            let line = format!("{{\"op\":\"presence\",\"account\":\"{account}\",\"state\":\"{state}\"{more}}}\n");
            into.extend_from_slice(line.as_bytes());
        })
    };
    let mut report = Report::default();
    report.count("accounts", "accounts", accounts);

    report.section("renewed_", "leases renewed");
    report.unit("renewal");
    let before = bench.reading()?;
    let renewals = flags.renewals.max(accounts);
    let renewed = pump_as("renewed", socket, flags.sending, 0..renewals, presence("online", ",\"lease\":600"))?;
    std::thread::sleep(SETTLE);
    let after = bench.reading()?;
    report.pumped(&renewed, renewals);
    report.readings(before, after, renewals);

    report.section("parked_", "messages for who is online");
    report.unit("message");
    let before = bench.reading()?;
    let parked: Arc<dyn Lines> = Arc::new(|number: u64, into: &mut Vec<u8>| {
        let account = account(number as u32 * 2);
        let text = "x".repeat(BODY);
        let to = format!("{{\"accounts\":[\"{account}\"]}}");
        let line = format!("{{\"op\":\"send\",\"to\":{to},\"when\":\"offline\",\"topic\":\"chat\",\"payload\":\"{text}\"}}\n");
        into.extend_from_slice(line.as_bytes());
    });
    let sent = pump(socket, flags.sending, 0..accounts, parked)?;
    std::thread::sleep(Duration::from_secs(2 * GRACE));
    let waiting = bench.reading()?;
    report.pumped(&sent, accounts);
    report.must_be("early", "sent while they are online", stage.taken()?, 0);
    report.add("rss_bytes", "daemon memory with all waiting", waiting.memory, megabytes(waiting.memory));
    report.readings(before, waiting, accounts);

    report.section("left_", "and now all leave");
    let before = bench.reading()?;
    let begin = Instant::now();
    let left = pump_as("left", socket, flags.sending, 0..accounts, presence("offline", ""))?;
    stage.wait("delivered", recipients, |_| Ok(()))?;
    let elapsed = begin.elapsed();
    std::thread::sleep(SETTLE);
    report.must_be("acked", "acknowledged", left.acked, accounts);
    stage.check_once(&mut report, recipients)?;
    let text = format!("{:.2} s, the grace of {GRACE} s among it", elapsed.as_secs_f64());
    report.add("elapsed_s", "until all had it", elapsed.as_secs_f64(), text);
    let rate = recipients as f64 / (elapsed.as_secs_f64() - GRACE as f64).max(0.001);
    report.add("messages_per_second", "messages a second after the grace", rate, grouped(rate as u64));
    report.readings(before, bench.reading()?, recipients);
    report.violations(&bench.mock.counters()?);
    ask(&mut stage.client()?, &json!({"op": "ping"}))?;
    stage.bench.finish()?;
    report.print(flags.place.json)
}
