//! A configuration's text and the variables of the environment -> values, one key after another; what is wrong is noted, and reading
//! goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::config::{ConfigError, File, FileFormat, Map, Source, Value, ValueKind};

use super::{Config, Problem, Problems};

impl Config {
    /// Reads `file`, if there is to be one, and over it the variables of `env` whose names start with `FANFARE__`
    /// (`FANFARE__DELIVER__TIMEOUT` is `deliver.timeout`; lists are separated by commas). `CREDENTIALS_DIRECTORY` of `env`
    /// replaces itself at the start of a path in `vapid_keys`.
    pub fn load(file: Option<&Path>, env: impl Iterator<Item = (String, String)>) -> Result<Config, Problems> {
        let text = match file {
            Some(path) => std::fs::read_to_string(path).map_err(|error| Problems::Unreadable { path: path.to_owned(), error })?,
            None => String::new(),
        };
        let name = file.map_or_else(|| "the configuration".to_owned(), |path| path.display().to_string());
        let not_toml = |error: ConfigError| {
            let text = error.to_string();
            Problems::Wrong(vec![Problem { key: name.clone(), message: text.trim_end().to_owned() }])
        };
        let file = File::from_str(&text, FileFormat::Toml);
        let environment = Environment::new(env, &file.collect().map_err(not_toml)?);
        let credentials = environment.credentials.clone();
        let tree = ::config::Config::builder().add_source(file).add_source(environment).build().map_err(not_toml)?;
        let mut read = Read { credentials, ..Read::default() };
        let config = read.config(tree.cache.into_table().map_err(not_toml)?);
        if read.problems.is_empty() {
            Ok(config)
        } else {
            read.problems.sort_by(|one, other| one.key.cmp(&other.key));
            Err(Problems::Wrong(read.problems))
        }
    }
}

/// The origin that values of the environment carry.
const ENVIRONMENT: &str = "the environment";

/// The variables of the environment that are keys. Of our own because `config`'s turns all names to lower case: an app
/// called `Shop` or `my-shop` in the file could not be reached. Here `FANFARE__APPS__MY_SHOP__SUBJECT` means it.
#[derive(Clone, Debug)]
struct Environment {
    /// Path with dots, and value.
    values: Vec<(String, String)>,
    /// `CREDENTIALS_DIRECTORY`, where systemd puts what `LoadCredential=` names.
    credentials: Option<String>,
}

impl Environment {
    fn new(env: impl Iterator<Item = (String, String)>, file: &Map<String, Value>) -> Environment {
        let mut found = Environment { values: Vec::new(), credentials: None };
        for (name, value) in env {
            if name == "CREDENTIALS_DIRECTORY" {
                found.credentials = Some(value);
            } else if let Some(path) = name.strip_prefix("FANFARE__") {
                let path = path.to_lowercase();
                let mut parts: Vec<&str> = path.split("__").collect();
                if let [table @ ("apps" | "sockets"), name, ..] = parts[..]
                    && let Some(ValueKind::Table(named)) = file.get(table).map(|value| &value.kind)
                    && let Some(spelled) = named.keys().find(|key| key.to_lowercase().replace('-', "_") == name)
                {
                    parts[1] = spelled;
                }
                found.values.push((parts.join("."), value));
            }
        }
        // A table's name before its members, should somebody set both; else the order would be the environment's.
        found.values.sort();
        found
    }
}

impl Source for Environment {
    fn clone_into_box(&self) -> Box<dyn Source + std::marker::Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        let origin = ENVIRONMENT.to_owned();
        Ok(self.values.iter().map(|(path, value)| (path.clone(), Value::new(Some(&origin), value.clone()))).collect())
    }
}

/// The reading of a whole configuration: what was wrong so far.
#[derive(Default)]
pub(super) struct Read {
    credentials: Option<String>,
    pub(super) problems: Vec<Problem>,
    /// Every key that was asked for, whether it is there or not.
    pub(super) known: BTreeSet<String>,
}

impl Read {
    pub(super) fn problem(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { key: key.into(), message: message.into() });
    }
}

/// A table that is being read: each key is taken out, and what is left in the end is unknown. A wrong value is noted and
/// replaced by a harmless one, so that reading goes on to the next problem.
pub(super) struct Section<'r> {
    pub(super) read: &'r mut Read,
    /// Path of the table, empty for the root.
    pub(super) place: String,
    pub(super) values: Map<String, Value>,
}

/// The largest number of megabytes or items where nothing else bounds it.
pub(super) const MANY: u64 = 1 << 40;
/// Ten years: the longest duration, in seconds.
pub(super) const LONG: f64 = 10.0 * 365.0 * 86_400.0;

impl Section<'_> {
    /// The table called `name`; an empty one where there is none.
    pub(super) fn section(&mut self, name: &str) -> Section<'_> {
        let values = self.table(name);
        self.inner(self.key(name), values)
    }

    pub(super) fn inner(&mut self, place: String, values: Map<String, Value>) -> Section<'_> {
        Section { read: &mut *self.read, place, values }
    }

    /// The tables in the table called `name`, by their names.
    pub(super) fn named(&mut self, name: &str) -> BTreeMap<String, Map<String, Value>> {
        let mut outer = self.section(name);
        let names: BTreeSet<String> = outer.values.keys().cloned().collect();
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        let mut tables = BTreeMap::new();
        for name in names {
            if name.is_empty() || name.len() > 64 || !name.bytes().all(good) {
                outer.wrong(&name, "a name consists of 1 to 64 letters, digits, hyphens and underscores");
            }
            let is_table = matches!(outer.values.get(&name).map(|value| &value.kind), Some(ValueKind::Table(_)));
            let values = outer.table(&name);
            if is_table {
                tables.insert(name, values);
            }
        }
        tables
    }

    fn table(&mut self, name: &str) -> Map<String, Value> {
        match self.values.remove(name).map(|value| value.kind) {
            None => Map::new(),
            Some(ValueKind::Table(table)) => table,
            Some(_) => {
                self.wrong(name, format!("must be a table, [{}]", self.key(name)));
                Map::new()
            }
        }
    }

    /// A number; outside `range` it is wrong.
    pub(super) fn number(&mut self, name: &str, default: f64, range: RangeInclusive<f64>) -> f64 {
        let Some(value) = self.take(name) else { return default };
        let number = match &value.kind {
            ValueKind::I64(number) => Some(*number as f64),
            ValueKind::Float(number) => Some(*number),
            ValueKind::String(text) if is_environment(&value) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => number,
            _ => {
                let (min, max) = (range.start(), range.end());
                let message = if *max == LONG {
                    format!("must be a number of at least {min}")
                } else {
                    format!("must be a number from {min} to {max}")
                };
                self.wrong(name, format!("{message}, is {}", shown(&value)));
                default
            }
        }
    }

    pub(super) fn seconds(&mut self, name: &str, default: f64, range: RangeInclusive<f64>) -> Duration {
        Duration::from_secs_f64(self.number(name, default, range))
    }

    pub(super) fn integer(&mut self, name: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(value) = self.take(name) else { return default };
        let number = match &value.kind {
            ValueKind::I64(number) => u64::try_from(*number).ok(),
            ValueKind::String(text) if is_environment(&value) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => number,
            _ => {
                let (min, max) = (range.start(), range.end());
                let message = if *max == MANY {
                    format!("must be an integer of at least {min}")
                } else {
                    format!("must be an integer from {min} to {max}")
                };
                self.wrong(name, format!("{message}, is {}", shown(&value)));
                default
            }
        }
    }

    /// The mode of a socket: `0o660` in TOML, or octal digits in a string.
    pub(super) fn mode(&mut self, name: &str) -> u32 {
        const DEFAULT: u32 = 0o660;
        let Some(value) = self.take(name) else { return DEFAULT };
        let mode = match &value.kind {
            ValueKind::I64(number) => u32::try_from(*number).ok(),
            ValueKind::String(text) => u32::from_str_radix(text.trim().trim_start_matches("0o"), 8).ok(),
            _ => None,
        };
        match mode {
            Some(mode) if mode <= 0o777 => mode,
            _ => {
                self.wrong(name, format!("must be a mode in octal from 0o000 to 0o777, such as 0o660, is {}", shown(&value)));
                DEFAULT
            }
        }
    }

    /// Without a default the key must be there.
    pub(super) fn text(&mut self, name: &str, default: Option<&str>) -> String {
        match (self.take(name), default) {
            (Some(Value { kind: ValueKind::String(text), .. }), _) => text,
            (Some(value), _) => {
                self.wrong(name, format!("must be a string, is {}", shown(&value)));
                String::new()
            }
            (None, Some(default)) => default.to_owned(),
            (None, None) => {
                self.wrong(name, "is missing, and there is no default");
                String::new()
            }
        }
    }

    /// None where it is empty or not there.
    pub(super) fn optional_text(&mut self, name: &str) -> Option<String> {
        Some(self.text(name, Some(""))).filter(|text| !text.is_empty())
    }

    pub(super) fn path(&mut self, name: &str, default: Option<&str>) -> PathBuf {
        let text = self.text(name, default);
        if text.is_empty() && !self.has_problem(name) {
            self.wrong(name, "must be a path, is empty");
        }
        PathBuf::from(text)
    }

    pub(super) fn socket_path(&mut self, name: &str, default: Option<&str>) -> PathBuf {
        /// `sun_path` has 108 bytes, of which one ends the text (unix(7)).
        const SOCKET_PATH_MAX: usize = 107;
        let path = self.path(name, default);
        let length = path.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            self.wrong(name, format!("the path of a socket has at most {SOCKET_PATH_MAX} bytes, this one has {length}"));
        }
        path
    }

    /// Texts, of which `check` says what is wrong with each.
    pub(super) fn list(&mut self, name: &str, default: &[&str], check: impl Fn(&str) -> Result<(), &'static str>) -> Vec<String> {
        let Some(value) = self.take(name) else { return default.iter().map(|text| (*text).to_owned()).collect() };
        let items = match &value.kind {
            ValueKind::Array(items) => items
                .iter()
                .map(|item| match &item.kind {
                    ValueKind::String(text) => Some(text.clone()),
                    _ => None,
                })
                .collect(),
            ValueKind::String(text) if is_environment(&value) => {
                Some(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect())
            }
            _ => None,
        };
        let Some(items): Option<Vec<String>> = items else {
            self.wrong(name, format!("must be a list of strings, [\"…\", \"…\"], is {}", shown(&value)));
            return Vec::new();
        };
        for item in &items {
            if let Err(wrong) = check(item) {
                self.wrong(name, format!("\"{item}\" {wrong}"));
            }
        }
        items
    }

    pub(super) fn parsed<T: std::str::FromStr>(&mut self, name: &str, text: &str, right: &str) -> Option<T> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.wrong(name, format!("must be {right}, is \"{text}\""));
        }
        parsed
    }

    /// A path that may start with `$CREDENTIALS_DIRECTORY/` (systemd.exec(5)).
    pub(super) fn credential(&mut self, name: &str, path: String) -> PathBuf {
        match (path.strip_prefix("$CREDENTIALS_DIRECTORY/"), &self.read.credentials) {
            (Some(rest), Some(directory)) => Path::new(directory).join(rest),
            (Some(_), None) => {
                self.wrong(
                    name,
                    format!("\"{path}\" needs the variable CREDENTIALS_DIRECTORY, which systemd sets for LoadCredential="),
                );
                PathBuf::from(path)
            }
            (None, _) => PathBuf::from(path),
        }
    }

    fn take(&mut self, name: &str) -> Option<Value> {
        let key = self.key(name);
        self.read.known.insert(key);
        self.values.remove(name).filter(|value| value.kind != ValueKind::Nil)
    }

    pub(super) fn wrong(&mut self, name: &str, message: impl Into<String>) {
        let key = self.key(name);
        self.read.problem(key, message);
    }

    pub(super) fn has_problem(&self, name: &str) -> bool {
        let key = self.key(name);
        self.read.problems.iter().any(|problem| problem.key == key)
    }

    fn key(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }

    /// Whatever is left was asked for by nobody.
    pub(super) fn end(mut self) {
        let place = if self.place.is_empty() { String::new() } else { format!("{}.", self.place) };
        let known: Vec<&str> =
            self.read.known.iter().filter_map(|key| key.strip_prefix(&place)).filter(|name| !name.contains('.')).collect();
        let known = known.join(", ");
        let left: Vec<String> = self.values.keys().cloned().collect();
        for name in left {
            let message = if place.is_empty() {
                "is unknown; data_dir and the tables ingest, sockets, metrics, apps, messages, events, store, encrypt, deliver, retry, \
                 registry, presence, endpoints are known"
                    .to_owned()
            } else {
                format!("is unknown; known here are {known}")
            };
            self.wrong(&name, message);
        }
    }
}

fn is_environment(value: &Value) -> bool {
    value.origin() == Some(ENVIRONMENT)
}

fn shown(value: &Value) -> String {
    match &value.kind {
        ValueKind::String(text) => format!("\"{text}\""),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        other => other.to_string(),
    }
}
