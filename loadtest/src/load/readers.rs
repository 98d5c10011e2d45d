//! A daemon with many registered subscriptions, and the crowd at the mock that they are.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::ConfigBuilder;
use fanfare_loadtest::mock::{Members, Plan};
use fanfare_loadtest::population;
use fanfare_loadtest::status::adds_up;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bench::{Bench, SETTLE, Site};
use super::progress::Progress;
use super::pump::{Pumped, pump_as};
use super::report::Report;
use crate::{Place, Readers, Sending};

/// Beside a daemon that is kept: which subscriptions it has.
const KEPT: &str = "readers.json";
/// How long a campaign may stand still before it is given up.
const STALL: Duration = Duration::from_secs(60);

/// What is kept beside the daemon.
#[derive(Serialize, Deserialize, PartialEq)]
struct Kept {
    plan: Plan,
    /// The mock's: it is in every endpoint.
    port: u16,
}

/// The daemon, the mock, and who has subscribed.
pub struct Stage {
    pub bench: Bench,
    pub members: Arc<Members>,
    pub crowd: u64,
    /// The store had them already.
    pub known: bool,
    /// The mock looks at nothing: then the posts are counted, and this is how many there were before.
    sink: Option<Cell<u64>>,
    keep: Option<(std::path::PathBuf, Kept)>,
}

impl Stage {
    /// Starts both with a crowd that has subscribed only if an earlier run left it so.
    pub fn start(place: &Place, readers: &Readers, change: impl FnOnce(ConfigBuilder) -> ConfigBuilder) -> io::Result<Stage> {
        let plan = Plan {
            seed: 1,
            members: readers.subscriptions,
            keys: readers.keys,
            endpoint_bytes: readers.endpoint_bytes,
            verify_every: place.verify_every,
            origin: 0,
        };
        let earlier = readers.keep.as_deref().map(kept).transpose()?.flatten();
        if let Some(earlier) = &earlier
            && (Plan { verify_every: plan.verify_every, ..earlier.plan }) != plan
        {
            return Err(io::Error::other(format!(
                "the kept daemon has {} subscriptions of {} bytes: tell the same, or keep another directory",
                earlier.plan.members, earlier.plan.endpoint_bytes
            )));
        }
        let site = Site {
            listeners: 2,
            sink: place.sink,
            port: earlier.as_ref().map_or(0, |earlier| earlier.port),
            directory: readers.keep.as_deref(),
            ..Site::default()
        };
        let bench = Bench::start_at(place, &site, change)?;
        let (crowd, members) = bench.mock.crowd(plan)?;
        let port = bench.mock.hosts().first().and_then(|host| host.rsplit_once(':')?.1.parse().ok()).unwrap_or(0);
        let keep = readers.keep.clone().map(|directory| (directory, Kept { plan, port }));
        Ok(Stage { bench, members, crowd, known: earlier.is_some(), sink: place.sink.then(Cell::default), keep })
    }

    /// Registers everybody, over the socket; None if they were there.
    pub fn register(&self, sending: Sending) -> io::Result<Option<Pumped>> {
        if self.known {
            return Ok(None);
        }
        let members = self.members.clone();
        let line = move |number: u64, into: &mut Vec<u8>| population::write_subscribe(&members, number as u32, into);
        let pumped = pump_as("subscribed", &self.bench.socket, sending, 0..u64::from(self.members.count()), Arc::new(line))?;
        if pumped.refused > 0 {
            return Err(io::Error::other(format!("{} lines were refused: {}", pumped.refused, pumped.shown.join(" "))));
        }
        if let Some((directory, kept)) = &self.keep {
            fs::write(directory.join(KEPT), serde_json::to_string(kept)?)?;
        }
        Ok(Some(pumped))
    }

    /// A connection with patience.
    pub fn client(&self) -> io::Result<Client> {
        let mut client = Client::connect(&self.bench.socket)?;
        client.set_timeout(Some(Duration::from_secs(120)))?;
        Ok(client)
    }

    /// Connections, tokens and caches are made by a campaign to the tags `t0` and `t1`, which is not counted.
    pub fn warm_up(&self, client: &mut Client) -> io::Result<()> {
        let wanted = (0..2).map(|tag| u64::from(population::of_tag(self.members.count(), tag))).sum();
        self.reset()?;
        ask(client, &campaign(json!({"tags": {"any": ["t0", "t1"]}}), 64))?;
        self.wait("warm-up", wanted, |_| Ok(()))?;
        std::thread::sleep(SETTLE);
        self.reset()
    }

    /// Counts anew what the crowd takes.
    pub fn reset(&self) -> io::Result<()> {
        if let Some(before) = &self.sink {
            before.set(self.bench.mock.counters()?.accepted);
        }
        self.bench.mock.reset_crowd(self.crowd)
    }

    /// Messages that the crowd has taken since; of a sink, all that it has taken.
    pub fn taken(&self) -> io::Result<u64> {
        match &self.sink {
            Some(before) => Ok(self.bench.mock.counters()?.accepted - before.get()),
            None => Ok(self.bench.mock.crowd_counts(self.crowd)?.taken),
        }
    }

    /// Waits until the crowd has taken so many messages, and looks now and then.
    pub fn wait(&self, what: &'static str, wanted: u64, mut look: impl FnMut(u64) -> io::Result<()>) -> io::Result<()> {
        let progress = Progress::new(what, wanted);
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            let taken = self.taken()?;
            progress.at(taken);
            look(taken)?;
            if taken >= wanted {
                return Ok(());
            }
            if taken != last {
                (last, moved) = (taken, Instant::now());
            }
            if moved.elapsed() > STALL {
                return Err(io::Error::other(format!("{taken} of {wanted} {what}, and nothing more for {} s", STALL.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(if self.sink.is_some() { 10 } else { 50 }));
        }
    }

    /// So many members must have taken exactly one message, and the others none; a sink must have taken so many.
    pub fn check_once(&self, report: &mut Report, wanted: u64) -> io::Result<()> {
        if self.sink.is_some() {
            report.must_be("posts", "posts that the push service took", self.taken()?, wanted);
            return Ok(());
        }
        let counts = self.bench.mock.crowd_counts(self.crowd)?;
        report.must_be("once", "recipients who had it exactly once", counts.once, wanted);
        report.must_be("repeats", "who had it more than once", counts.more, 0);
        Ok(())
    }
}

fn kept(directory: &Path) -> io::Result<Option<Kept>> {
    match fs::read(directory.join(KEPT)) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(problem) if problem.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// A request that must be answered `"ok":true`.
pub fn ask(client: &mut Client, request: &Value) -> io::Result<Value> {
    let reply = client.try_request(request)?;
    if reply["ok"] == true { Ok(reply) } else { Err(io::Error::other(format!("{} was answered {reply}", request["op"]))) }
}

/// A `send` to a segment.
pub fn campaign(segment: Value, body: usize) -> Value {
    let payload = json!({"text": "x".repeat(body.saturating_sub(11))});
    json!({"op": "send", "to": {"segment": segment}, "payload": payload, "ttl": 86_400, "label": "load"})
}

/// The status of a campaign that has ended must say that everybody has it.
pub fn all_accepted(status: &Value, all: u64, report: &mut Report) {
    for (name, wanted) in [("recipients", all), ("accepted", all), ("pending", 0)] {
        if status[name] != wanted {
            report.problem(format!("{name} is not {wanted}: {status}"));
        }
    }
    if status["walked"].as_f64() != Some(1.0) || status["open"] != false || !adds_up(status) {
        report.problem(format!("the campaign has ended, and its status is {status}"));
    }
}

/// Asks for the status until the message has ended; that comes with a checkpoint.
pub fn ended(client: &mut Client, id: &Value) -> io::Result<Value> {
    let begin = Instant::now();
    loop {
        let status = ask(client, &json!({"op": "status", "message_id": id}))?;
        if status["pending"] == 0 && status["open"] == false || begin.elapsed() > STALL {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
