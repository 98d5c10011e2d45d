//! What a client was told, with what is new in each world (ids, cursors, times) made alike.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::pool::Pool;

/// A request, and the lines that answered it as they are compared.
pub struct Told {
    /// The operation and the member that is varied.
    pub form: String,
    pub request: Value,
    pub lines: Vec<String>,
}

/// The states in which a recipient ends.
const ENDED: [&str; 6] = ["accepted", "gone", "refused", "expired", "cancelled", "skipped"];

/// The new ids of one world by the order in which they were told, so that a missing or further one is seen.
pub struct Mask<'p> {
    pool: &'p Pool,
    known: BTreeMap<String, usize>,
    /// Those that look like ids of messages.
    pub ids: Vec<String>,
}

impl<'p> Mask<'p> {
    pub fn new(pool: &'p Pool) -> Mask<'p> {
        Mask { pool, known: BTreeMap::new(), ids: Vec::new() }
    }

    /// The lines of one answer. Events come in the order in which deliveries ended, which is nobody's doing.
    pub fn lines(&mut self, lines: Vec<Value>) -> Vec<String> {
        let mut lines: Vec<Value> = lines.into_iter().map(|line| self.value("", line)).collect();
        let end = lines.pop();
        // A page of many: which of them are on it is not said.
        let cut = end.as_ref().is_some_and(|end| end["more"] == true);
        // Whether an older one of its topic has left already is a matter of time.
        lines.retain(|line| line["reason"] != "superseded");
        let mut lines: Vec<String> = lines.iter().map(Value::to_string).filter(|_| !cut).collect();
        lines.sort();
        lines.extend(end.map(|end| end.to_string()));
        lines
    }

    fn value(&mut self, name: &str, value: Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(name, text)),
            Value::Array(items) => Value::Array(items.into_iter().map(|item| self.value(name, item)).collect()),
            Value::Object(members) => Value::Object(self.members(members)),
            other => other,
        }
    }

    fn members(&mut self, members: Map<String, Value>) -> Map<String, Value> {
        let mut told = Map::new();
        let is_event = members.contains_key("cursor") && !members.contains_key("ok");
        // How a recipient ended depends on which came first, the push service's answer or a `cancel`; that it ended does not.
        let counts = ENDED.iter().all(|name| members.contains_key(*name));
        let mut ended = 0;
        for (name, value) in members {
            match &*name {
                "cursor" if is_event => {}
                name if counts && ENDED.contains(&name) => ended += value.as_u64().unwrap_or_default(),
                "retries" | "in_flight" if counts => {}
                // How far a `test` is at once.
                "results" | "pending" if !counts => {}
                // The health of a push service, which all apps share.
                "window" | "connections" | "capacity" | "protocol" => {}
                _ => {
                    let value = self.value(&name, value);
                    told.insert(name, value);
                }
            }
        }
        if counts {
            told.insert("ended".to_owned(), ended.into());
        }
        told
    }

    fn text(&mut self, name: &str, text: String) -> String {
        if is_time(&text) {
            return "a time".to_owned();
        }
        if is_message_id(&text) {
            // One of the shop's is told as it is.
            if self.pool.has_text(&text) {
                return text;
            }
            let next = self.known.len();
            let number = *self.known.entry(text.clone()).or_insert(next);
            if number == next {
                self.ids.push(text);
            }
            return format!("message {number}");
        }
        // Where a log or a list goes on is a word of the daemon's own; what can be read in it is looked at in `numbers`.
        if matches!(name, "cursor" | "oldest" | "newest" | "after") { "a cursor".to_owned() } else { text }
    }
}

pub fn is_time(text: &str) -> bool {
    time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).is_ok()
}

fn is_message_id(text: &str) -> bool {
    text.len() == 26 && text.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
}
