//! The values that the shop has written or read, each with the names of the members that it stood under.

use std::collections::{BTreeMap, BTreeSet};

use fanfare_loadtest::client::Client;
use serde_json::{Value, json};

use crate::told::is_time;

/// Values of one name and shape: more of the same kind teach nothing. Messages are of many kinds.
const PLAIN_OF_A_NAME: usize = 10;
const NESTED_OF_A_NAME: usize = 3;
/// Of these so many are tried where other names belong.
const ELSEWHERE_OF_A_NAME: usize = 3;

pub struct Named {
    pub value: Value,
    pub names: BTreeSet<String>,
    /// Whether it is tried where none of its names belongs.
    elsewhere: bool,
}

#[derive(Default)]
pub struct Pool {
    pub values: Vec<Named>,
    places: BTreeMap<String, usize>,
    counts: BTreeMap<String, usize>,
    elsewhere: BTreeMap<String, usize>,
}

/// A request and the lines that answered it.
pub type Exchange = (Value, Vec<Value>);

impl Pool {
    pub fn of(told: &[Exchange]) -> Pool {
        let words = words_of_the_parser();
        let mut pool = Pool::default();
        for (request, _) in told {
            for (name, value) in request.as_object().expect("a request").iter().filter(|(name, _)| *name != "op") {
                pool.take(name, value, &|_| true);
            }
        }
        for line in told.iter().flat_map(|(_, lines)| lines) {
            for (name, value) in line.as_object().expect("a reply") {
                // What is the shop's own: no words of the protocol, no times, no numbers that stand for nothing.
                pool.take(name, value, &|value| matches!(value, Value::String(text) if !is_time(text) && !words.contains(text)));
            }
        }
        pool
    }

    /// A value and everything in it.
    fn take(&mut self, name: &str, value: &Value, wanted: &impl Fn(&Value) -> bool) {
        if name == "message" || value.is_null() {
            return;
        }
        if wanted(value) && (self.places.contains_key(&value.to_string()) || self.is_of_use(name, value)) {
            self.add(name, value);
        }
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.take(name, item, wanted)),
            Value::Object(members) => members.iter().for_each(|(name, value)| self.take(name, value, wanted)),
            _ => {}
        }
    }

    /// Whether there are not enough like this.
    fn is_of_use(&mut self, name: &str, value: &Value) -> bool {
        let nested = value.is_object() || value.is_array();
        let most = if nested { NESTED_OF_A_NAME } else { PLAIN_OF_A_NAME };
        let count = self.counts.entry(format!("{name} {}", shape(value))).or_default();
        *count += 1;
        *count <= most || name == "message_id"
    }

    pub fn add(&mut self, name: &str, value: &Value) {
        let next = self.values.len();
        let place = *self.places.entry(value.to_string()).or_insert(next);
        if place == next {
            let like = self.elsewhere.entry(format!("{name} {}", shape(value))).or_default();
            *like += 1;
            self.values.push(Named { value: value.clone(), names: BTreeSet::new(), elsewhere: *like <= ELSEWHERE_OF_A_NAME });
        }
        self.values[place].names.insert(name.to_owned());
    }

    /// The values that stood under this name.
    pub fn named<'p>(&'p self, name: &str) -> impl Iterator<Item = &'p Value> {
        self.values.iter().filter(move |value| value.names.contains(name)).map(|value| &value.value)
    }

    /// All values, those of this name first.
    pub fn all<'p>(&'p self, name: &str) -> impl Iterator<Item = &'p Value> {
        let others =
            self.values.iter().filter(move |value| value.elsewhere && !value.names.contains(name)).map(|value| &value.value);
        self.named(name).chain(others)
    }

    pub fn has_text(&self, text: &str) -> bool {
        self.places.contains_key(&Value::from(text).to_string())
    }
}

/// The kind of a value; of objects and lists those of what is in them.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(members) => members.iter().map(|(name, value)| format!("{name}:{},", shape(value))).collect(),
        Value::Array(items) => format!("[{}]", items.first().map(shape).unwrap_or_default()),
        Value::String(_) => "text".to_owned(),
        Value::Number(_) => "number".to_owned(),
        _ => "word".to_owned(),
    }
}

/// The words that stand between quotes in the parser's source, its tests left out: the names of all members are among them.
pub fn words_of_the_parser() -> BTreeSet<String> {
    /// Longer than any member's name; of a longer one an error does not tell the whole.
    const LONGEST_NAME: usize = 40;
    let mut words = BTreeSet::new();
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ingest/line");
    for file in std::fs::read_dir(directory).expect("the parser's source") {
        let source = std::fs::read_to_string(file.expect("a file").path()).expect("a readable file");
        let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let wordlike = |text: &&str| {
            (1..=LONGEST_NAME).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        words.extend(source.split('"').filter(wordlike).map(str::to_owned));
    }
    assert!(words.len() > 100, "the parser's source lies elsewhere: {words:?}");
    words
}

/// The operations, as the daemon tells them to who names none of them.
pub fn operations(client: &mut Client) -> Vec<String> {
    let error = client.error(&json!({"op": "no-operation"}));
    assert_eq!(error["code"], "unknown_op", "{error}");
    let message = error["message"].as_str().expect("text");
    let list = message.strip_prefix("must be one of ").unwrap_or_else(|| panic!("a list of operations, not {message}"));
    list.split(", ").map(str::to_owned).collect()
}
