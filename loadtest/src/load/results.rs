//! What the suite has measured, as it is kept: one file, from which everything is drawn.

use std::fs;
use std::io;
use std::path::Path;

use fanfare_loadtest::machine::Machine;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::bench::STAGES;

const FILE: &str = "results.json";

/// Everything that one suite has measured.
#[derive(Serialize, Deserialize)]
pub struct Results {
    /// When it began, as HTTP writes dates.
    pub date: String,
    pub version: String,
    /// What the measured source is called, if that was told.
    pub commit: Option<String>,
    pub quick: bool,
    pub machine: Machine,
    /// Cores that others used just before it began.
    pub busy_cores: f64,
    pub runs: Vec<Run>,
}

/// One measurement.
#[derive(Serialize, Deserialize)]
pub struct Run {
    pub group: Group,
    pub title: String,
    /// Of a sweep: what was varied.
    pub x: f64,
    /// The command that measures this again.
    pub command: String,
    /// As `--json` prints them.
    pub numbers: Map<String, Value>,
    /// As they are printed: label and text.
    pub rows: Vec<(String, String)>,
}

/// What a measurement is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// A kind of work of its own.
    Work,
    /// How long a message takes where the daemon is not at its limit.
    Latency,
    /// Sweeps, named by what is varied.
    Recipients,
    Threads,
    Connections,
    Body,
}

impl Results {
    pub fn read(directory: &Path) -> io::Result<Results> {
        Ok(serde_json::from_slice(&fs::read(directory.join(FILE))?)?)
    }

    pub fn write(&self, directory: &Path) -> io::Result<()> {
        fs::write(directory.join(FILE), serde_json::to_vec_pretty(self)?)
    }

    pub fn of(&self, group: Group) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.group == group)
    }
}

impl Run {
    /// A number; None where the measurement has none of the name.
    pub fn number(&self, name: &str) -> Option<f64> {
        self.numbers.get(name)?.as_f64()
    }

    /// A number within another, such as `daemon_cpu` and `us_per_message`.
    pub fn inner(&self, name: &str, part: &str) -> Option<f64> {
        self.numbers.get(name)?.get(part)?.as_f64()
    }

    /// Messages a second that the push service took; where none does, that were acknowledged.
    pub fn rate(&self) -> Option<f64> {
        self.number("messages_per_second").or_else(|| self.number("acks_per_second"))
    }

    /// CPU time of a message in microseconds by stage, and what is left; empty where none was measured.
    pub fn stages(&self) -> Vec<f64> {
        let Some(stages) = self.numbers.get("daemon_stages_us") else { return Vec::new() };
        let names = STAGES.iter().map(|(name, _)| *name).chain(["rest"]);
        names.map(|name| stages[name].as_f64().unwrap_or(0.0)).collect()
    }

    /// A latency's quantiles and microseconds.
    pub fn curve(&self, name: &str) -> Vec<(f64, f64)> {
        let points = self.numbers.get(&format!("{name}_curve")).and_then(Value::as_array);
        points.into_iter().flatten().filter_map(|point| Some((point["at"].as_f64()?, point["us"].as_f64()?))).collect()
    }
}
