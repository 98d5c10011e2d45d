//! One app floods, with each operation in turn; another one's urgent messages to another push service, and the operator's pings, must
//! hardly notice (promise 5), and memory stays within what is configured (promise 6).
//!
//! Every case begins with a daemon of its own on a copy of the same store: 20,000 subscribers and 30,000 events of the app that
//! floods. First the neighbour is measured alone, then beside the flood; what is judged is the difference. Two cases flood nothing
//! (`nothing`, and `spin`, which only keeps a core busy): what they differ by is the machine's.

mod flood;
mod neighbour;
mod operations;
mod town;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use comfy_table::{Table, presets};
use fanfare_loadtest::machine::{self, Cpu, Machine};
use fanfare_loadtest::say;
use serde_json::{Value, json};

use super::report::grouped;
use crate::Fair;
use flood::Flood;
pub use flood::Manner;
use neighbour::Fared;
use operations::{Kind, Operation};
use town::Town;

/// Connections, tokens and caches of the neighbour are made in this time.
const WARM_UP: Duration = Duration::from_millis(500);
/// The flood has begun before the neighbour asks.
const AHEAD: Duration = Duration::from_millis(300);
/// After a new start, for what it does then.
const STARTED: Duration = Duration::from_millis(500);
/// More than the daemon takes by default (`ingest.connections`).
const IDLE: usize = 5_000;

/// Runs the measurement and prints its table; an error if a case was over its bounds.
pub fn run(flags: &Fair) -> io::Result<()> {
    if flags.place.sink || flags.place.socket.is_some() {
        return Err(io::Error::other(
            "the daemon and two push services are started here: neither --sink nor --socket is possible",
        ));
    }
    let chosen = chosen(&flags.operations)?;
    // The connections that stay idle, and those that come and go.
    machine::raise_descriptors()?;
    let mut town = Town::build(flags)?;
    let mut cases = Vec::new();
    for operation in chosen {
        for (connections, manner) in variants(&operation, flags) {
            let case = play(&mut town, flags, &operation, connections, manner)?;
            say::note(case.line());
            cases.push(case);
        }
    }
    let over: Vec<String> = cases.iter().filter(|case| !case.over.is_empty()).map(Case::line).collect();
    let parts: Vec<String> = town.memory.iter().map(|(key, megabytes)| format!("{key} {megabytes} MB")).collect();
    let bound = format!("memory: what the daemon has at its start, and {}, and {} %", parts.join(", "), flags.memory_slack);
    if flags.place.json {
        let cases: Vec<Value> = cases.iter().map(Case::json).collect();
        let machine = serde_json::to_value(Machine::here())?;
        say::line(json!({"cases": cases, "bound": bound, "over": over.len(), "machine": machine}))?;
    } else {
        say::line(format_args!("{}\n\n{bound}\nmachine: {}", table(&cases), Machine::here()))?;
    }
    if over.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!("{} of {} cases over their bounds:\n{}", over.len(), cases.len(), over.join("\n"))))
}

/// The operations of these names, in the order in which they are always played; all if none is named.
fn chosen(names: &[String]) -> io::Result<Vec<Arc<Operation>>> {
    let all = operations::all();
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|operation| operation.name != **name)) {
        let known: Vec<&str> = all.iter().map(|operation| operation.name).collect();
        return Err(io::Error::other(format!("there is no operation {unknown}; there are {}", known.join(", "))));
    }
    let wanted = |operation: &Operation| names.is_empty() || names.iter().any(|name| name == operation.name);
    Ok(all.into_iter().filter(wanted).map(Arc::new).collect())
}

/// From how many connections, and how they behave, as far as that makes a difference.
fn variants(operation: &Operation, flags: &Fair) -> Vec<(usize, Manner)> {
    let manners: &[Manner] = match operation.kind {
        Kind::Nothing | Kind::Spin => return vec![(1, Manner::Stay)],
        Kind::Idle => return vec![(IDLE, Manner::Silent)],
        Kind::Churn => &[Manner::Leave],
        Kind::HalfLine(_) => &[Manner::Silent, Manner::Leave],
        Kind::Endless => &[Manner::Stay],
        Kind::Lines(_) | Kind::Once(_) | Kind::Both(..) => &[Manner::Stay, Manner::Silent, Manner::Leave],
    };
    let mut variants = Vec::new();
    // Half of one connection is none.
    let least = if matches!(operation.kind, Kind::Both(..)) { 2 } else { 1 };
    for connections in flags.connections.iter().filter(|connections| **connections >= least) {
        let wanted = manners.iter().filter(|manner| flags.manners.contains(manner) || matches!(operation.kind, Kind::Churn));
        variants.extend(wanted.map(|manner| (*connections, *manner)));
    }
    variants
}

/// What one case has shown.
struct Case {
    operation: &'static str,
    connections: usize,
    manner: Manner,
    alone: Fared,
    beside: Fared,
    /// Of the flood, a second.
    lines: f64,
    replies: f64,
    connects: f64,
    /// Of the replies, those that were refusals; and the first of them.
    refused: f64,
    example: Option<String>,
    /// Seconds from the flood's end until the neighbour and the operator had all their answers.
    after: f64,
    /// Bytes, when nobody had asked anything yet, and at most since the flood began.
    memory_first: u64,
    memory_peak: u64,
    memory_bound: u64,
    /// Bytes at most when it was killed then and started again; None if it did not start.
    memory_again: Option<u64>,
    /// Cores that the daemon used while the flood lasted.
    cores: f64,
    /// Each bound that was broken.
    over: Vec<String>,
}

/// One daemon, measured alone and beside a flood.
fn play(town: &mut Town, flags: &Fair, operation: &Arc<Operation>, connections: usize, manner: Manner) -> io::Result<Case> {
    let memory_first = town.begin()?;
    let allowed: u64 = town.memory.iter().map(|(_, megabytes)| megabytes << 20).sum();
    let memory_bound = (memory_first + allowed) * (100 + u64::from(flags.memory_slack)) / 100;
    let (neighbour, pid) = (&town.neighbour, town.daemon.pid());
    neighbour.measure(neighbour.lines()?, WARM_UP)?;
    let alone = neighbour.measure(neighbour.lines()?, Duration::from_secs_f64(flags.alone))?;
    machine::reset_peak(pid)?;
    // What is measured keeps its connections: an application that is known already.
    let lines = neighbour.lines()?;
    let during = Duration::from_secs_f64(flags.seconds);
    let before = Cpu::of(pid)?;
    let begin = Instant::now();
    let flood = Flood::start(&town.socket, operation.clone(), town.known.clone(), connections, manner, AHEAD + during)?;
    std::thread::sleep(AHEAD);
    let beside = neighbour.measure(lines, during)?;
    let after = begin.elapsed().saturating_sub(AHEAD + during).as_secs_f64();
    let counts = flood.finish()?;
    let mut over = Vec::new();
    let (memory_peak, used) = match (town.daemon.running(), machine::status_bytes(pid, "VmHWM"), Cpu::of(pid)) {
        (true, Ok(peak), Ok(cpu)) => (peak, cpu.since(before)),
        _ => {
            over.push(format!("THE DAEMON HAS ENDED: {}", town.daemon.log().lines().last().unwrap_or_default()));
            (0, Cpu::default())
        }
    };
    // What makes it too large must not do so again at its next start: it would never come up.
    let memory_again = match town.daemon.restart() {
        Ok(()) => {
            std::thread::sleep(STARTED);
            Some(machine::status_bytes(town.daemon.pid(), "VmHWM")?)
        }
        Err(problem) => {
            over.push(format!("IT DOES NOT START AGAIN: {problem}"));
            None
        }
    };
    let a_second =
        |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed) as f64 / (AHEAD + during).as_secs_f64();
    let (replies, refused) = (counts.replies.load(Ordering::Relaxed), counts.refused.load(Ordering::Relaxed));
    let mut case = Case {
        operation: operation.name,
        connections,
        manner,
        lines: a_second(&counts.lines),
        replies: a_second(&counts.replies),
        connects: a_second(&counts.connected),
        refused: refused as f64 / replies.max(1) as f64,
        example: counts.example.lock().expect("its holders have ended").clone(),
        after,
        memory_first,
        memory_peak,
        memory_bound,
        memory_again,
        cores: (used.user + used.system).as_secs_f64() / (begin.elapsed().as_secs_f64()),
        alone,
        beside,
        over,
    };
    case.judge(flags);
    Ok(case)
}

impl Case {
    fn judge(&mut self, flags: &Fair) {
        let mut over = std::mem::take(&mut self.over);
        let more = |beside: u64, alone: u64| (beside as f64 - alone as f64) / 1_000.0;
        let delivery = more(self.beside.delivery.latency_p99, self.alone.delivery.latency_p99);
        if self.beside.lost == 0 && delivery > flags.message_ms {
            over.push(format!("messages {delivery:.0} ms later"));
        }
        for (what, beside, alone) in
            [("pings", &self.beside.pings, &self.alone.pings), ("new connections", &self.beside.knocks, &self.alone.knocks)]
        {
            let later = more(beside.took.value_at_quantile(0.99), alone.took.value_at_quantile(0.99));
            if later > flags.ping_ms {
                over.push(format!("{what} {later:.0} ms later"));
            }
        }
        for (what, asked) in
            [("messages", &self.beside.acks), ("pings", &self.beside.pings), ("new connections", &self.beside.knocks)]
        {
            if asked.failed() > 0 {
                let example = reason(asked.example.as_deref().unwrap_or_default());
                over.push(format!("{} {what} refused, {} unanswered: {example}", asked.refused, asked.unanswered));
            }
        }
        if self.beside.lost > 0 {
            over.push(format!("{} messages did not come", self.beside.lost));
        }
        for (when, peak) in [("", Some(self.memory_peak)), (" at the next start", self.memory_again)] {
            let above = peak.unwrap_or(0).saturating_sub(self.memory_bound) / 1_000_000;
            if above > 0 {
                over.push(format!("memory{when} {above} MB above its bound"));
            }
        }
        self.over = over;
    }

    /// In a line.
    fn line(&self) -> String {
        let verdict = if self.over.is_empty() { "ok".to_owned() } else { self.over.join("; ") };
        format!("{} from {}, {}: {verdict}", self.operation, self.connections, self.manner.name())
    }

    fn json(&self) -> Value {
        let fared = |fared: &Fared| {
            let quantiles = |asked: &neighbour::Asked| {
                json!({
                    "p50_us": asked.took.value_at_quantile(0.5), "p99_us": asked.took.value_at_quantile(0.99),
                    "max_us": asked.took.max(), "refused": asked.refused, "unanswered": asked.unanswered,
                })
            };
            let delivery = &fared.delivery;
            json!({
                "ack": quantiles(&fared.acks), "ping": quantiles(&fared.pings), "new_connection": quantiles(&fared.knocks),
                "delivery": {
                    "p50_us": delivery.latency_p50, "p99_us": delivery.latency_p99, "max_us": delivery.latency_max,
                    "came": delivery.distinct, "lost": fared.lost,
                },
            })
        };
        json!({
            "operation": self.operation, "connections": self.connections, "manner": self.manner.name(),
            "lines_per_second": self.lines, "replies_per_second": self.replies, "connections_per_second": self.connects,
            "refused_share": self.refused, "refusal": self.example, "alone": fared(&self.alone), "beside": fared(&self.beside),
            "answers_after_s": self.after, "memory_first_bytes": self.memory_first, "memory_peak_bytes": self.memory_peak,
            "memory_bound_bytes": self.memory_bound, "memory_next_start_bytes": self.memory_again,
            "daemon_cores": self.cores, "over": self.over,
        })
    }
}

/// The code of a refusal; of what is none, all of it.
fn reason(reply: &str) -> String {
    let code = serde_json::from_str::<Value>(reply).ok().and_then(|reply| Some(reply["error"]["code"].as_str()?.to_owned()));
    code.unwrap_or_else(|| reply.to_owned())
}

/// A row for each case, in Markdown.
fn table(cases: &[Case]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header([
        "operation",
        "from",
        "manner",
        "lines/s",
        "replies/s",
        "refused",
        "ack p99 ms",
        "message p99 ms",
        "more",
        "max",
        "ping p99 ms",
        "more",
        "new connection p99 ms",
        "memory MB (of)",
        "next start",
        "cores",
        "after s",
        "over",
    ]);
    let millis = |micros: u64| format!("{:.1}", micros as f64 / 1_000.0);
    let more = |beside: u64, alone: u64| format!("{:+.1}", (beside as f64 - alone as f64) / 1_000.0);
    // Where some never came, a quantile of those that did says little.
    let came = |fared: &Fared, text: String| if fared.lost == 0 { text } else { "never".to_owned() };
    for case in cases {
        let (alone, beside) = (&case.alone, &case.beside);
        let p99 = |asked: &neighbour::Asked| asked.took.value_at_quantile(0.99);
        table.add_row([
            case.operation.to_owned(),
            case.connections.to_string(),
            case.manner.name().to_owned(),
            grouped(case.lines as u64),
            grouped(case.replies as u64),
            match &case.example {
                Some(example) => format!("{:.0} % {}", case.refused * 100.0, reason(example)),
                None => String::new(),
            },
            millis(p99(&beside.acks)),
            came(beside, millis(beside.delivery.latency_p99)),
            came(beside, more(beside.delivery.latency_p99, alone.delivery.latency_p99)),
            came(beside, millis(beside.delivery.latency_max)),
            millis(p99(&beside.pings)),
            more(p99(&beside.pings), p99(&alone.pings)),
            millis(p99(&beside.knocks)),
            format!("{} ({})", case.memory_peak / 1_000_000, case.memory_bound / 1_000_000),
            case.memory_again.map_or_else(|| "-".to_owned(), |bytes| (bytes / 1_000_000).to_string()),
            format!("{:.2}", case.cores),
            format!("{:.1}", case.after),
            if case.over.is_empty() { String::new() } else { format!("OVER: {}", case.over.join("; ")) },
        ]);
    }
    table
}
