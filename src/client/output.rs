//! What a person or a program reads: a table on a terminal, JSON lines otherwise.
//!
//! JSON is handed to a program as the daemon wrote it. Text comes from applications and from their visitors (labels, references, names
//! of attributes): whatever reaches a terminal goes through [`printable`] in [`Output::line`] or [`note`].

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use serde_json::Value;
use serde_json::value::RawValue;

use crate::client::connection::Reply;
use crate::client::table::{self, Columns};
use crate::clock;
use crate::exit::Failure;
use crate::printable;

/// Standard output.
pub struct Output {
    json: bool,
    terminal: bool,
    /// Characters of a line.
    width: usize,
    has_named_left_out: bool,
    /// Why a line of [`Output::meanwhile`] was not written.
    unwritten: Option<Failure>,
    to: Box<dyn Write>,
}

/// Says something beside the output, on standard error. Nobody is told that standard error takes no more.
pub fn note(text: impl Display) {
    let _unread = writeln!(io::stderr(), "{}", printable::lines(&text.to_string()));
}

/// Writes a text of ours and a newline to standard output, whoever reads it. Exit 0 if the reader has gone, 74 if writing fails
/// otherwise.
pub fn say(text: impl Display) -> Result<(), Failure> {
    let mut to = io::stdout().lock();
    writeln!(to, "{}", printable::lines(&text.to_string())).and_then(|()| to.flush()).map_err(|error| Failure::output(&error))
}

impl Output {
    /// JSON if the user asked for it or standard output is no terminal.
    pub fn new(json: bool) -> Output {
        let terminal = io::stdout().is_terminal();
        Output {
            json: json || !terminal,
            terminal,
            width: terminal_width(),
            has_named_left_out: false,
            unwritten: None,
            to: Box::new(io::stdout().lock()),
        }
    }

    /// How many characters of a line there are.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether a program reads.
    pub fn json(&self) -> bool {
        self.json
    }

    /// As [`Output::line`], in the middle of work that must come to its end although nobody reads: the next [`Output::line`] fails.
    pub fn meanwhile(&mut self, text: &str) {
        if self.unwritten.is_none() {
            self.unwritten = self.line(text).err();
        }
    }

    /// One line of JSON, or what is shown instead. Exit 0 if the reader has gone, 74 if writing fails otherwise.
    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        if let Some(failure) = self.unwritten.take() {
            return Err(failure);
        }
        let text = match (self.json, self.terminal) {
            (true, false) => text.into(),
            (true, true) => printable::json(text),
            (false, _) => printable::lines(text),
        };
        writeln!(self.to, "{text}").and_then(|()| self.to.flush()).map_err(|error| Failure::output(&error))
    }

    /// One reply: its members below each other, those named in `first` at the top and the others by their names; then a table for
    /// each of its lists.
    pub fn reply(&mut self, reply: &Reply, first: &[&'static str]) -> Result<(), Failure> {
        if self.json {
            return self.line(&reply.line);
        }
        let (mut own, mut lists) = (Vec::new(), Vec::new());
        for (name, value) in &reply.members {
            match value {
                Value::Array(values) if values.iter().any(Value::is_object) => lists.push(name.as_str()),
                // What is asked for by name is shown as if it were the reply: `subscription` answers `subscription`.
                Value::Object(_) => flatten(String::new(), value.clone(), &mut own, &mut Vec::new()),
                value if name != "ok" => own.push((name.clone(), value.clone())),
                _ => {}
            }
        }
        own.retain(|(name, value)| !value.is_null() || name == "scopes");
        own.sort_by_key(|(name, _)| (rank(name, first), name.clone()));
        match own.is_empty() {
            false => self.line(&table::members(&own, self.width, clock::now()))?,
            // Nothing at all would leave open whether anything was done.
            true if lists.is_empty() => self.line("done")?,
            true => {}
        }
        // Of a list inside a reply the first member is needed, and the others as far as there is room.
        let columns: Vec<(&'static str, u8)> = first.iter().zip(0..).map(|(name, place)| (*name, u8::from(place > 0))).collect();
        for name in lists {
            self.line("")?;
            self.rows(&reply.elements(name), &columns, "")?;
        }
        Ok(())
    }

    /// Many things of one kind: a row each, as many columns as there is room for; those that are left out are named beside the
    /// output, once. `none` is said instead of an empty table.
    pub fn rows(&mut self, elements: &[Box<RawValue>], columns: &Columns, none: &str) -> Result<(), Failure> {
        if self.json {
            return elements.iter().try_for_each(|element| self.line(element.get()));
        }
        if elements.is_empty() {
            return self.line(none);
        }
        let rows: Vec<Vec<(String, Value)>> =
            elements.iter().flat_map(|element| spread_out(serde_json::from_str(element.get()).unwrap_or(Value::Null))).collect();
        let shown = table::list(&rows, columns, self.width, clock::now());
        self.line(&shown.text)?;
        if !shown.left_out.is_empty() && !std::mem::replace(&mut self.has_named_left_out, true) {
            let names = shown.left_out.join(", ");
            note(format_args!("There is no room for: {names}. A wider terminal or --json shows them"));
        }
        Ok(())
    }
}

fn rank(name: &str, first: &[&str]) -> usize {
    first.iter().position(|other| *other == name).unwrap_or(first.len())
}

/// How many characters a line of the terminal has: COLUMNS, else the terminal itself tells.
fn terminal_width() -> usize {
    let told = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    told.or_else(|| comfy_table::Table::new().width().map(usize::from)).unwrap_or(80).max(20)
}

/// The rows of one element: members of an object inside it become columns of their own, and where one member is a list of objects
/// (the lanes of a push service), each of them is a row and what they share stands in the first.
fn spread_out(element: Value) -> Vec<Vec<(String, Value)>> {
    let mut own = Vec::new();
    let mut parts = Vec::new();
    flatten(String::new(), element, &mut own, &mut parts);
    if parts.is_empty() {
        return vec![own];
    }
    let mut rows: Vec<Vec<(String, Value)>> = Vec::new();
    for (name, part) in parts {
        let mut row = if rows.is_empty() { std::mem::take(&mut own) } else { Vec::new() };
        flatten(name, part, &mut row, &mut Vec::new());
        rows.push(row);
    }
    rows
}

fn flatten(name: String, value: Value, columns: &mut Vec<(String, Value)>, parts: &mut Vec<(String, Value)>) {
    let below = |inner: &str| if name.is_empty() { inner.to_owned() } else { format!("{name} {inner}") };
    match value {
        Value::Object(members) => {
            members.into_iter().for_each(|(inner, value)| flatten(below(&inner), value, columns, parts));
        }
        Value::Array(values) if !values.is_empty() && values.iter().all(Value::is_object) => {
            parts.extend(values.into_iter().map(|value| (name.clone(), value)));
        }
        value => columns.push((name, value)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::json;

    use super::*;
    use crate::exit::Exit;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no other thread").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn told(json: bool, terminal: bool, what: impl FnOnce(&mut Output) -> Result<(), Failure>) -> String {
        let to = Shared::default();
        what(&mut Output { json, terminal, width: 80, has_named_left_out: false, unwritten: None, to: Box::new(to.clone()) })
            .expect("memory takes everything");
        let bytes = to.0.lock().expect("no other thread").clone();
        String::from_utf8(bytes).expect("text")
    }

    fn shown(json: bool, element: &str, columns: &Columns) -> String {
        let raw = RawValue::from_string(element.to_owned()).expect("JSON");
        told(json, false, |output| output.rows(&[raw], columns, "nothing"))
    }

    #[test]
    fn a_list_inside_an_element_becomes_rows() {
        let text = shown(
            false,
            r#"{"service":"apple","lanes":[{"urgency":"high","waiting":1},{"urgency":"low","waiting":20}]}"#,
            &[("service", 0)],
        );
        let header = text.lines().find(|line| line.contains("service")).expect("a header");
        assert!(header.find("service") < header.find("lanes urgency"), "{text}");
        assert_eq!(text.matches("apple").count(), 1, "{text}");
        assert!(text.contains("high") && text.contains("20"), "{text}");
    }

    #[test]
    fn no_scopes_and_all_scopes_differ() {
        let both = r#"{"ok":true,"subscription":{"scopes":null,"name":null}}"#;
        let reply = Reply::parse(both.to_owned()).expect("an object");
        assert_eq!(told(false, true, |output| output.reply(&reply, &[])), "scopes  all\n");
        assert!(shown(false, r#"{"scopes":[]}"#, &[("scopes", 0)]).contains("none"));
    }

    /// What no terminal may get: a title's begin, C1, DEL, a mark that turns the direction.
    const HOSTILE: [char; 5] = ['\u{1b}', '\u{9b}', '\u{7f}', '\u{202e}', '\u{2066}'];

    #[test]
    fn text_from_outside_reaches_a_terminal_as_text_only() {
        let text: String = HOSTILE.iter().collect();
        // In a value, as the name of a member and of an attribute, in lists and below them.
        let element =
            json!({"label": text, &text: 1, "attributes": {&text: &text}, "tags": [&text], "lanes": [{&text: {"a": [[&text]]}}]});
        let reply =
            json!({"ok": true, "label": text, &text: 1, "subscription": {"attributes": {&text: &text}}, "results": [element]});
        let reply = Reply::parse(reply.to_string()).expect("an object");
        let raw = || RawValue::from_string(element.to_string()).expect("JSON");
        for (json, shown) in [
            (false, told(false, true, |output| output.rows(&[raw()], &[], "nothing"))),
            (false, told(false, true, |output| output.reply(&reply, &[]))),
            (true, told(true, true, |output| output.rows(&[raw()], &[], "nothing"))),
            (true, told(true, true, |output| output.reply(&reply, &[]))),
        ] {
            assert!(!shown.contains(HOSTILE), "{shown:?}");
            assert!(shown.contains("\\u009b") && shown.contains("\\u202e"), "{shown}");
            if json {
                assert!(serde_json::from_str::<Value>(&shown).is_ok(), "{shown}");
            }
        }
    }

    #[test]
    fn json_is_passed_on_as_it_came() {
        assert_eq!(shown(true, "{\"z\":1,\"a\":\"\u{9b}\"}", &[("a", 0)]), "{\"z\":1,\"a\":\"\u{9b}\"}\n");
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let failure =
            Output { json: true, terminal: false, width: 80, has_named_left_out: false, unwritten: None, to: Box::new(Gone) }
                .line("x")
                .expect_err("nobody reads");
        assert_eq!(failure.exit, Exit::Done);
    }
}
