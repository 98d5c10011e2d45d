//! A thousand small campaigns against one to the same recipients: they must cost what they deliver, not a walk each.

use std::io;
use std::time::Instant;

use fanfare_loadtest::population::{HALF, TAGS, of_tag};
use serde_json::{Value, json};

use super::bench::{Reading, SETTLE};
use super::readers::{Stage, campaign, ended};
use super::report::{Report, grouped};
use crate::SmallCampaigns;

/// One for each tag that a member with [`HALF`] can have.
const CAMPAIGNS: u32 = TAGS / 2;
const BUDGET: f64 = 1.5;
/// Requests that are unanswered at once.
const BURST: usize = 100;

/// Runs the measurement and prints its report.
pub fn run(flags: &SmallCampaigns) -> io::Result<()> {
    let stage = Stage::start(&flags.place, &flags.readers, |config| config)?;
    stage.register(flags.sending)?;
    let members = flags.readers.subscriptions;
    let recipients: u64 = (0..CAMPAIGNS).map(|tag| u64::from(of_tag(members, tag))).sum();
    let mut client = stage.client()?;
    stage.warm_up(&mut client)?;
    stage.bench.settle()?;
    let mut report = Report::default();
    report.count("subscriptions", "subscriptions", members.into());

    let many: Vec<Value> =
        (0..CAMPAIGNS).map(|tag| campaign(json!({"tags": {"any": [format!("t{tag}")]}}), flags.body)).collect();
    report.section("many_", &format!("{} campaigns to {} each", grouped(CAMPAIGNS.into()), of_tag(members, 0)));
    let many = measure(&stage, &many, recipients, &mut report)?;
    stage.bench.settle()?;
    let one = [campaign(json!({"tags": {"any": [HALF]}}), flags.body)];
    report.section("one_", &format!("one campaign to the same {}", grouped(recipients)));
    let one = measure(&stage, &one, recipients, &mut report)?;
    report.section("", "compared");
    report.budget("ratio", "CPU, many / one", many / one.max(1e-9), "", BUDGET);
    report.violations(&stage.bench.mock.counters()?);
    stage.bench.finish()?;
    report.print(flags.place.json)
}

/// Sends these campaigns; the CPU time of a message, in microseconds.
fn measure(stage: &Stage, campaigns: &[Value], recipients: u64, report: &mut Report) -> io::Result<f64> {
    let mut client = stage.client()?;
    stage.reset()?;
    let before: Reading = stage.bench.reading()?;
    let begin = Instant::now();
    let mut ids = Vec::new();
    for burst in campaigns.chunks(BURST) {
        for request in burst {
            client.send(request)?;
        }
        for _ in burst {
            let reply = client.recv()?;
            if reply["ok"] != true {
                return Err(io::Error::other(format!("a campaign was answered {reply}")));
            }
            ids.push(reply["message_id"].clone());
        }
    }
    stage.wait("delivered", recipients, |_| Ok(()))?;
    let elapsed = begin.elapsed();
    std::thread::sleep(SETTLE);
    let after = stage.bench.reading()?;
    let mut accepted = 0;
    for id in &ids {
        accepted += ended(&mut client, id)?["accepted"].as_u64().unwrap_or(0);
    }
    report.must_be("accepted", "accepted, says the daemon", accepted, recipients);
    stage.check_once(report, recipients)?;
    report.rate("messages_per_second", "messages a second, delivered", recipients, elapsed);
    Ok(report.readings(before, after, recipients))
}

/// So that a change of one is a change of the other: what `t0` to `t999` have together is what `half` has.
const _: () = assert!(CAMPAIGNS * 2 == TAGS);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_have_the_same_recipients() {
        let recipients: u64 = (0..CAMPAIGNS).map(|tag| u64::from(of_tag(1_000_000, tag))).sum();
        assert_eq!((recipients, of_tag(1_000_000, 0)), (500_000, 500));
    }
}
