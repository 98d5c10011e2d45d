//! A measurement's numbers, as a table or as JSON.

use std::io;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use fanfare_loadtest::machine::{Cpu, Machine};
use fanfare_loadtest::mock::{CURVE, Counters, Measured, curve};
use fanfare_loadtest::say;
use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::bench::{Reading, STAGES};
use super::pump::Pumped;

/// Below this a CPU time is mostly the error of its ticks.
const TRUSTED: Duration = Duration::from_secs(1);

/// Numbers in the order told.
#[derive(Default)]
pub struct Report {
    rows: Vec<(String, String)>,
    json: Map<String, Value>,
    problems: Vec<String>,
    /// Before the JSON names of what follows.
    prefix: String,
    /// What is counted, if it is not messages.
    unit: Option<&'static str>,
    over_budget: Vec<String>,
}

impl Report {
    /// One number: its JSON name, its row's name, and how it is written in the table.
    pub fn add(&mut self, name: &str, label: &str, value: impl Into<Value>, text: impl Into<String>) {
        self.json.insert(format!("{}{name}", self.prefix), value.into());
        self.rows.push((label.to_owned(), text.into()));
    }

    /// What follows is of this kind: a row of its own, and before the JSON names `prefix`.
    pub fn section(&mut self, prefix: &str, heading: &str) {
        self.prefix = prefix.to_owned();
        self.rows.push((String::new(), String::new()));
        self.rows.push((heading.to_owned(), String::new()));
    }

    /// Costs are each of these: "subscription".
    pub fn unit(&mut self, unit: &'static str) {
        self.unit = Some(unit);
    }

    /// A number with a budget, `limit` (docs/design.md 12). A higher one is said, and is no failure: it depends on the machine.
    pub fn budget(&mut self, name: &str, label: &str, value: f64, unit: &str, limit: f64) {
        let over = value > limit;
        let text = format!("{value:.1} {unit}, {} {limit}", if over { "OVER THE BUDGET OF" } else { "budget" });
        self.add(name, label, value, text.replace("  ", " "));
        if over {
            self.over_budget.push(format!("{}{name}", self.prefix));
        }
    }

    /// How many a second.
    pub fn rate(&mut self, name: &str, label: &str, count: u64, elapsed: Duration) {
        let rate = count as f64 / elapsed.as_secs_f64();
        self.add(name, label, rate, grouped(rate as u64));
    }

    pub fn count(&mut self, name: &str, label: &str, value: u64) {
        self.add(name, label, value, grouped(value));
    }

    /// Must be `wanted`, or the measurement failed.
    pub fn must_be(&mut self, name: &str, label: &str, value: u64, wanted: u64) {
        self.count(name, label, value);
        if value != wanted {
            self.problems.push(format!("{label}: {}, not {}", grouped(value), grouped(wanted)));
        }
    }

    /// The push service must have nothing to complain of.
    pub fn violations(&mut self, counters: &Counters) {
        self.must_be("violations", "broken rules", counters.violation_count, 0);
        self.problems.extend(counters.violations.iter().take(3).cloned());
    }

    /// What makes the measurement a failure.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// p50, p99 and maximum, given in microseconds.
    pub fn latency(&mut self, name: &str, label: &str, [p50, p99, max]: [u64; 3]) {
        let text = [p50, p99, max].map(millis).join(" / ");
        self.add(name, &format!("{label}, p50 / p99 / max"), json!({"p50_us": p50, "p99_us": p99, "max_us": max}), text);
    }

    /// A latency that the push service has measured.
    pub fn measured(&mut self, name: &str, label: &str, measured: &Measured) {
        self.latency(name, label, [measured.latency_p50, measured.latency_p99, measured.latency_max]);
        self.curve(name, &measured.latency_curve, measured.distinct);
    }

    /// All of a latency's histogram that is drawn: only in JSON.
    pub fn curve(&mut self, name: &str, micros: &[u64], samples: u64) {
        // Where less than one sample lies beyond, it would be the maximum once more.
        let known = CURVE.iter().zip(micros).filter(|(at, _)| (1.0 - **at) * samples as f64 >= 1.0);
        let points: Vec<Value> = known.map(|(at, us)| json!({"at": at, "us": us})).collect();
        self.json.insert(format!("{}{name}_curve", self.prefix), points.into());
    }

    /// How lines were answered.
    pub fn pumped(&mut self, pumped: &Pumped, messages: u64) {
        self.must_be("acked", "acknowledged", pumped.acked, messages);
        self.must_be("refused", "answered with an error", pumped.refused, 0);
        for line in &pumped.shown {
            self.problem(format!("a line was answered {line}"));
        }
        self.rate("acks_per_second", "acknowledgements a second", messages, pumped.elapsed);
        self.latency("ack", "acknowledgement latency", quantiles(&pumped.ack));
        self.curve("ack", &curve(&pumped.ack), pumped.ack.len());
    }

    /// CPU time that was used for so many messages.
    pub fn cpu(&mut self, name: &str, label: &str, cpu: Cpu, messages: u64) {
        let each = cpu.micros_each(messages);
        let value = json!({
            "user_s": cpu.user.as_secs_f64(), "system_s": cpu.system.as_secs_f64(), "us_per_message": each,
            "messages": messages,
        });
        // Seen: a run of 31 ms told a quarter of what was used, as the kernel counts in ticks of 10 ms.
        let unit = self.unit.unwrap_or("message");
        let short = if cpu.user + cpu.system < TRUSTED { ", too short to trust" } else { "" };
        let text = format!(
            "{each:.1} us a {unit} ({:.2} s user + {:.2} s system{short})",
            cpu.user.as_secs_f64(),
            cpu.system.as_secs_f64()
        );
        self.add(name, label, value, text);
    }

    /// What the daemon says of each push service: all of it as JSON, a row each in the table.
    pub fn origins(&mut self, origins: &Value) {
        self.json.insert("origins".to_owned(), origins.clone());
        for origin in origins.as_array().into_iter().flatten() {
            let word = |name: &str| origin[name].as_str().unwrap_or("-").to_owned();
            let text = format!("{} is {}, last error: {}", word("origin"), word("state"), word("last_error"));
            self.rows.push(("the daemon says".to_owned(), text));
        }
    }

    /// The daemon's CPU time by what its threads do.
    fn stages(&mut self, before: Reading, after: Reading, messages: u64) {
        let each = |time: Duration| time.as_secs_f64() * 1e6 / messages.max(1) as f64;
        let whole = after.daemon.since(before.daemon).micros_each(messages);
        let mut left = whole;
        let mut parts = Vec::new();
        for ((name, _), (before, after)) in STAGES.iter().zip(before.stages.iter().zip(after.stages)) {
            let part = each(after.saturating_sub(*before));
            left -= part;
            parts.push((*name, part));
        }
        // The whole is told in ticks and the parts are not: what is left may be a little below nothing.
        parts.push(("rest", left.max(0.0)));
        let told = parts.iter().filter(|(_, part)| *part >= 0.05);
        let text = told.map(|(name, part)| format!("{name} {part:.1}")).collect::<Vec<_>>().join(", ");
        let value: Map<String, Value> = parts.iter().map(|(name, part)| ((*name).to_owned(), (*part).into())).collect();
        self.add("daemon_stages_us", "by stage, us", value, text);
    }

    /// CPU, memory and writing between two readings. Gives the daemon's CPU time of a message, in microseconds.
    pub fn readings(&mut self, before: Reading, after: Reading, messages: u64) -> f64 {
        for (name, label, cpu) in [
            ("daemon", "daemon CPU", after.daemon.since(before.daemon)),
            ("mock", "mock CPU", after.mock.since(before.mock)),
            ("generator", "generator CPU", after.generator.since(before.generator)),
        ] {
            self.cpu(&format!("{name}_cpu"), label, cpu, messages);
            if name == "daemon" {
                self.stages(before, after, messages);
            }
        }
        self.add("daemon_peak_rss_bytes", "daemon peak memory", after.peak_memory, megabytes(after.peak_memory));
        if let (Some(before), Some(after)) = (before.written, after.written) {
            let written = after.saturating_sub(before);
            let unit = self.unit.unwrap_or("message");
            let text = format!("{} ({:.0} bytes a {unit})", megabytes(written), written as f64 / messages.max(1) as f64);
            self.add("daemon_written_bytes", "daemon wrote", written, text);
        }
        after.daemon.since(before.daemon).micros_each(messages)
    }

    /// Prints it; an error if something did not add up.
    pub fn print(mut self, json: bool) -> io::Result<()> {
        let machine = Machine::here();
        self.prefix.clear();
        self.add("machine", "machine", serde_json::to_value(&machine)?, machine.to_string());
        if json {
            say::line(Value::Object(self.numbers()))?;
        } else {
            say::line(self.table().trim_fmt())?;
        }
        self.verdict()
    }

    /// Every number by its JSON name, and whether all add up.
    pub fn numbers(&self) -> Map<String, Value> {
        let mut numbers = self.json.clone();
        numbers.insert("over_budget".to_owned(), self.over_budget.clone().into());
        numbers.insert("ok".to_owned(), self.problems.is_empty().into());
        numbers.insert("problems".to_owned(), self.problems.clone().into());
        numbers
    }

    /// Label and text of each row; a row without either parts sections.
    pub fn rows(&self) -> &[(String, String)] {
        &self.rows
    }

    /// The rows.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        for (label, text) in &self.rows {
            table.add_row([label, text]);
        }
        if let Some(column) = table.column_mut(0) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    /// An error if something did not add up.
    pub fn verdict(&self) -> io::Result<()> {
        if self.problems.is_empty() { Ok(()) } else { Err(io::Error::other(self.problems.join("\n"))) }
    }
}

/// p50, p99 and maximum.
pub fn quantiles(histogram: &Histogram<u64>) -> [u64; 3] {
    [histogram.value_at_quantile(0.5), histogram.value_at_quantile(0.99), histogram.max()]
}

/// 1234567 as 1,234,567.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub fn millis(micros: u64) -> String {
    format!("{:.2} ms", micros as f64 / 1_000.0)
}

pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn what_does_not_add_up_is_an_error() {
        let mut report = Report::default();
        report.must_be("a", "acknowledged", 5, 5);
        assert!(report.verdict().is_ok());
        report.must_be("b", "delivered", 4, 5);
        assert_eq!(report.verdict().unwrap_err().to_string(), "delivered: 4, not 5");
        assert!(report.table().to_string().contains("delivered"));
    }
}
