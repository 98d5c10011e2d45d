//! Bodies that differ by recipient (docs/design.md 8.4): `{{name}}` and `{{name|default}}` inside the JSON string values of a
//! body are filled from the recipient's attributes, and the recipient's receipt takes its place.
//!
//! Promises. What [`check`] let in fills for every recipient: the result is the same JSON but for the texts that were filled, and
//! no longer than `PAYLOAD_MAX`, because a recipient whose own values make it longer gets the defaults, which the door has
//! measured. Values are inserted as JSON, so none ends its string. Names of members are not filled, nor is the text that holds
//! the receipt.
//!
//! A string's attribute is inserted as its text, a number or a boolean as it is written; where the recipient has no such
//! attribute, or null, the default is, and where there is no default, nothing. Spaces around the name and the default do not
//! count.

use std::ops::Range;

use serde::de::IgnoredAny;
use text_placeholder::Template;

use crate::limits::{PAYLOAD_MAX, RECEIPT_CHARS};
use crate::message::{Attributes, Name};

const OPEN: &str = "{{";
const CLOSE: &str = "}}";

/// Why a body cannot be a template: a clause for the person who writes the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TemplateError {
    Malformed(&'static str),
    /// Filled with the defaults it has so many bytes.
    TooLong {
        bytes: usize,
    },
}

impl std::fmt::Display for TemplateError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TemplateError::Malformed(what) => f.write_str(what),
            TemplateError::TooLong { bytes } => {
                write!(f, "has {bytes} bytes when it is filled with the defaults, at most {PAYLOAD_MAX} can be sent")
            }
        }
    }
}

/// At the door: whether the body can be filled, and is not too long with the defaults. `receipt_at` as in a message.
pub fn check(body: &[u8], receipt_at: Option<u16>) -> Result<(), TemplateError> {
    let mut filled = Vec::with_capacity(body.len());
    Form::compile(body, receipt_at)?.write(None, None, &mut filled);
    if filled.len() > PAYLOAD_MAX { Err(TemplateError::TooLong { bytes: filled.len() }) } else { Ok(()) }
}

/// A body that is made ready for filling: once a message, then used for each recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// All text that does not depend on the recipient, the defaults among it: the pieces name parts of it.
    text: Vec<u8>,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Range<usize>),
    Receipt,
    Attribute { name: Name, default: Range<usize> },
}

impl Form {
    /// Of a message's `body`, `template` and `receipt_at`. What the door would not have let in (a damaged row) is not filled.
    pub fn new(body: &[u8], template: bool, receipt_at: Option<u16>) -> Form {
        let compiled = if template { Form::compile(body, receipt_at).ok() } else { None };
        compiled.unwrap_or_else(|| {
            let mut form = Form::empty(body.len());
            form.push_raw(body, 0..body.len(), receipt_place(body, receipt_at).as_ref());
            form
        })
    }

    /// Appends the body of one recipient. Without a receipt the zeros that stand there stay.
    pub fn fill(&self, attributes: Option<&Attributes>, receipt: Option<&[u8; RECEIPT_CHARS]>, out: &mut Vec<u8>) {
        let start = out.len();
        if !self.write(attributes, receipt, out) {
            out.truncate(start);
            self.write(None, receipt, out);
        }
    }

    /// False as soon as an attribute makes it too long.
    fn write(&self, attributes: Option<&Attributes>, receipt: Option<&[u8; RECEIPT_CHARS]>, out: &mut Vec<u8>) -> bool {
        let most = out.len() + PAYLOAD_MAX;
        out.reserve(self.text.len() + RECEIPT_CHARS);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(&self.text[text.clone()]),
                Piece::Receipt => out.extend_from_slice(receipt.unwrap_or(&[b'0'; RECEIPT_CHARS])),
                Piece::Attribute { name, default } => {
                    match attributes.and_then(|all| all.get(name)).and_then(|json| inside(json)) {
                        Some(value) => out.extend_from_slice(value.as_bytes()),
                        None => out.extend_from_slice(&self.text[default.clone()]),
                    }
                }
            }
            if attributes.is_some() && out.len() > most {
                return false;
            }
        }
        true
    }

    fn empty(length: usize) -> Form {
        Form { text: Vec::with_capacity(length), pieces: Vec::new() }
    }

    fn compile(body: &[u8], receipt_at: Option<u16>) -> Result<Form, TemplateError> {
        let receipt = receipt_place(body, receipt_at);
        let json = std::str::from_utf8(body).ok().filter(|json| json.trim_start().starts_with('{'));
        let json = json.filter(|json| serde_json::from_str::<IgnoredAny>(json).is_ok());
        let json = json.ok_or(TemplateError::Malformed("must be a notification or an object to be a template"))?;
        let mut form = Form::empty(body.len());
        let mut done = 0;
        for value in values(json) {
            let holds_receipt = receipt.as_ref().is_some_and(|place| place.start < value.end && value.start < place.end);
            if holds_receipt || !json[value.clone()].contains(OPEN) {
                continue;
            }
            // What skips through the JSON above does not look into escapes.
            if serde_json::from_str::<String>(&json[value.start - 1..=value.end]).is_err() {
                return Err(HALF);
            }
            form.push_raw(body, done..value.start, receipt.as_ref());
            form.push_filled(&json[value.clone()])?;
            done = value.end;
        }
        form.push_raw(body, done..body.len(), receipt.as_ref());
        Ok(form)
    }

    /// A stretch of the body that stays, but for the receipt if that lies in it.
    fn push_raw(&mut self, body: &[u8], stretch: Range<usize>, receipt: Option<&Range<usize>>) {
        match receipt.filter(|place| stretch.start <= place.start && place.end <= stretch.end) {
            Some(place) => {
                self.push_text(&body[stretch.start..place.start]);
                self.pieces.push(Piece::Receipt);
                self.push_text(&body[place.end..stretch.end]);
            }
            None => self.push_text(&body[stretch]),
        }
    }

    /// What stands between the quotes of a string. It is filled as it is written, escapes and all: none of the characters that
    /// matter here is ever part of an escape, but for the quote of a placeholder's name, which is read as JSON.
    fn push_filled(&mut self, written: &str) -> Result<(), TemplateError> {
        /// Cannot stand in a JSON string, so it marks the places of the placeholders among the rest.
        const PLACE: &str = "\0";
        let mut placeholders = Vec::new();
        let rest = Template::new_with_placeholder(written, OPEN, CLOSE).fill_with_function(|placeholder| {
            placeholders.push(placeholder);
            Some(PLACE.into())
        });
        let rest = rest.expect("every placeholder was answered");
        let mut placeholders = placeholders.into_iter();
        for text in rest.split(PLACE) {
            if text.contains(OPEN) {
                return Err(UNCLOSED);
            }
            self.push_text(text.as_bytes());
            // One more text than placeholders.
            if let Some(placeholder) = placeholders.next() {
                self.push_placeholder(placeholder)?;
            }
        }
        Ok(())
    }

    fn push_placeholder(&mut self, written: &str) -> Result<(), TemplateError> {
        if written.contains(OPEN) {
            return Err(UNCLOSED);
        }
        let (name, default) = written.split_once('|').unwrap_or((written, ""));
        let (name, default) = (name.trim_matches(' '), default.trim_matches(' '));
        if name.is_empty() {
            return Err(TemplateError::Malformed("a placeholder, {{…}}, has no name"));
        }
        if name.contains(['{', '}']) {
            return Err(TemplateError::Malformed(
                "a placeholder's name has a brace: a placeholder is {{name}} or {{name|default}}",
            ));
        }
        let name: String = serde_json::from_str(&format!("\"{name}\"")).map_err(|_| HALF)?;
        let from = self.text.len();
        self.text.extend_from_slice(default.as_bytes());
        self.pieces.push(Piece::Attribute { name: name.into(), default: from..self.text.len() });
        Ok(())
    }

    fn push_text(&mut self, text: &[u8]) {
        let from = self.text.len();
        self.text.extend_from_slice(text);
        let to = self.text.len();
        match self.pieces.last_mut() {
            // Two stretches of text are one, unless a default lies between them.
            Some(Piece::Text(last)) if last.end == from => last.end = to,
            _ if from < to => self.pieces.push(Piece::Text(from..to)),
            _ => {}
        }
    }
}

const UNCLOSED: TemplateError = TemplateError::Malformed("a {{ has no }} that closes it");
const HALF: TemplateError = TemplateError::Malformed("half of a surrogate pair stands alone beside a placeholder");

/// Where the receipt goes; None also where it would not lie within the body, which only a damaged row can say.
fn receipt_place(body: &[u8], receipt_at: Option<u16>) -> Option<Range<usize>> {
    let place = usize::from(receipt_at?);
    Some(place..place + RECEIPT_CHARS).filter(|place| place.end <= body.len())
}

/// An attribute's JSON as it stands between quotes; None: it has none that could.
fn inside(json: &str) -> Option<&str> {
    match json.as_bytes() {
        [b'"', .., b'"'] => Some(&json[1..json.len() - 1]),
        [b'-' | b'0'..=b'9', ..] | b"true" | b"false" => Some(json),
        _ => None,
    }
}

/// What stands between the quotes of each string of a valid JSON text that is a value, not the name of a member.
fn values(json: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = json.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let start = at + bytes[at..].iter().position(|byte| *byte == b'"')? + 1;
            let mut end = start;
            while *bytes.get(end)? != b'"' {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            at = end + 1;
            let is_name = bytes[at..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
            if !is_name {
                return Some(start..end);
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn attributes(all: &Value) -> Attributes {
        let all = all.as_object().expect("an object");
        all.iter().map(|(name, value)| (Name::from(name.as_str()), value.to_string().into())).collect()
    }

    fn filled(body: &str, values: &Value) -> String {
        assert_eq!(check(body.as_bytes(), None), Ok(()), "{body}");
        let mut out = b"before".to_vec();
        Form::new(body.as_bytes(), true, None).fill(Some(&attributes(values)), None, &mut out);
        String::from_utf8(out).expect("UTF-8").strip_prefix("before").expect("it appends").to_owned()
    }

    fn refused(body: &str) -> TemplateError {
        let error = check(body.as_bytes(), None).expect_err(body);
        // A damaged row is sent as it is.
        let mut out = Vec::new();
        Form::new(body.as_bytes(), true, None).fill(Some(&attributes(&json!({"a": "A"}))), None, &mut out);
        assert!(out == body.as_bytes() || matches!(error, TemplateError::TooLong { .. }));
        error
    }

    #[test]
    fn values_of_every_kind() {
        let body = r#"{"title":"Hello {{name}}","n":["{{n}} of {{m}}"],"deep":{"{{name}}":"{{on}}{{off}}"},"rest":5}"#;
        let values = json!({"name": "Anna", "n": 5, "m": -1.5e300, "on": true, "off": false, "other": "?"});
        assert_eq!(
            filled(body, &values),
            r#"{"title":"Hello Anna","n":["5 of -1.5e+300"],"deep":{"{{name}}":"truefalse"},"rest":5}"#
        );
    }

    #[test]
    fn defaults() {
        let body = r#"{"a":"{{name|dear friend}}, {{ name | dear friend }}; {{none}}{{none|}}{{none|a|b}}{{none|}x{}}."}"#;
        assert_eq!(filled(body, &json!({})), r#"{"a":"dear friend, dear friend; a|b}x{."}"#);
        assert_eq!(filled(body, &json!({"name": "Bo"})), r#"{"a":"Bo, Bo; a|b}x{."}"#);
        // Empty is a value; null is none.
        assert_eq!(filled(body, &json!({"name": ""})), r#"{"a":", ; a|b}x{."}"#);
        assert_eq!(filled(body, &json!({"name": null})), r#"{"a":"dear friend, dear friend; a|b}x{."}"#);
    }

    #[test]
    fn only_braces_in_pairs_are_placeholders() {
        for body in [r#"{"a":"{b} }} }{ {"}"#, r#"{"{{a":1}"#, r#"{"a":{"b":{"c":"}}"}}}"#, r#"{"a":"\"{","b":"{\\"}"#, "{}"] {
            assert_eq!(filled(body, &json!({"b": "no"})), body);
        }
        assert_eq!(filled(r#"{"a":"{{b}}}{ {{b}}"}"#, &json!({"b": 1})), r#"{"a":"1}{ 1"}"#);
    }

    #[test]
    fn everything_is_escaped_where_it_is_inserted() {
        let values = json!({"v": "\"quoted\" \\ \n\t\u{0}\u{1f} ż 😀", "a\"\\b": "odd"});
        let result = filled(r#"{"a":"<{{v}}>","b":"{{a\"\\b}}","c":"\\{{v}}\\"}"#, &values);
        let result: Value = serde_json::from_str(&result).expect("JSON");
        let v = values["v"].as_str().expect("text");
        assert_eq!(result, json!({"a": format!("<{v}>"), "b": "odd", "c": format!("\\{v}\\")}));
    }

    #[test]
    fn escapes_of_the_template_stay() {
        let body = r#"{"a":"\ud83d\ude00\u0000\"{{v|\ud83d\ude00\"}}\\","b":"\/\b\f\n\r\t{{\u017c}}"}"#;
        assert_eq!(filled(body, &json!({})), r#"{"a":"\ud83d\ude00\u0000\"\ud83d\ude00\"\\","b":"\/\b\f\n\r\t"}"#);
        assert_eq!(filled(body, &json!({"v": "😀", "ż": 1})), r#"{"a":"\ud83d\ude00\u0000\"😀\\","b":"\/\b\f\n\r\t1"}"#);
    }

    #[test]
    fn values_are_not_filled_again() {
        assert_eq!(filled(r#"{"a":"{{a}}{{b}}"}"#, &json!({"a": "{{b}}", "b": "{{"})), r#"{"a":"{{b}}{{"}"#);
    }

    #[test]
    fn what_is_no_template() {
        for body in ["", "x", "[]", r#"["{{a}}"]"#, r#""{{a}}""#, "5", "{", r#"{"a":1}x"#, "{\"a\":\"\n\"}"] {
            assert!(refused(body).to_string().contains("object"), "{body}");
        }
        assert!(check(b"{\"a\":\"\xff\"}", None).is_err());
        for body in [
            r#"{"a":"{{"}"#,
            r#"{"a":"{{a}"}"#,
            r#"{"a":"{{a}} {{b"}"#,
            r#"{"a":"{{a","b":"}}"}"#,
            r#"{"a":"{{a {{b}}"}"#,
            r#"{"a":"{{a|{{b}}}}"}"#,
        ] {
            assert_eq!(refused(body), UNCLOSED, "{body}");
        }
        for body in [r#"{"a":"{{}}"}"#, r#"{"a":"{{  }}"}"#, r#"{"a":"{{|b}}"}"#, r#"{"a":"{{ | b }}"}"#] {
            assert!(refused(body).to_string().contains("no name"), "{body}");
        }
        for body in [r#"{"a":"\ud800{{a}}"}"#, r#"{"a":"{{\udc00}}"}"#, r#"{"a":"\ud83d{{a|\ude00}}"}"#] {
            assert_eq!(refused(body), HALF, "{body}");
        }
        for body in [r#"{"a":"{{{a}}}"}"#, r#"{"a":"{{a}b}}"}"#] {
            assert!(refused(body).to_string().contains("brace"), "{body}");
        }
    }

    #[test]
    fn too_long_with_the_defaults_is_refused() {
        let body = |n: usize| format!(r#"{{"a":"{{{{a|{}}}}}"}}"#, "d".repeat(n));
        let most = PAYLOAD_MAX - r#"{"a":""}"#.len();
        assert_eq!(check(body(most).as_bytes(), None), Ok(()));
        assert_eq!(refused(&body(most + 1)), TemplateError::TooLong { bytes: PAYLOAD_MAX + 1 });
        assert!(refused(&body(most + 1)).to_string().contains("3994"));
    }

    #[test]
    fn too_long_with_own_values_gets_the_defaults() {
        let body = r#"{"a":"{{name|friend}}","b":"{{text|nothing}}"}"#;
        let most = PAYLOAD_MAX - r#"{"a":"Anna","b":""}"#.len();
        let of = |n| filled(body, &json!({"name": "Anna", "text": "x".repeat(n)}));
        assert_eq!(of(most), format!(r#"{{"a":"Anna","b":"{}"}}"#, "x".repeat(most)));
        assert_eq!(of(most + 1), r#"{"a":"friend","b":"nothing"}"#);
        // However often it is inserted, little more than a body is written.
        let many = format!(r#"{{"a":"{}"}}"#, "{{t}}".repeat(700));
        let mut out = Vec::new();
        Form::new(many.as_bytes(), true, None).fill(Some(&attributes(&json!({"t": "x".repeat(4_000)}))), None, &mut out);
        assert_eq!(out, br#"{"a":""}"#);
        assert!(out.capacity() < 4 * PAYLOAD_MAX, "{}", out.capacity());
    }

    #[test]
    fn the_receipt_takes_its_place() {
        let zeros = "0".repeat(RECEIPT_CHARS);
        let body = format!(r#"{{"a":"{{{{a|x}}}}","receipt":"{zeros}","b":"{{{{a}}}}"}}"#);
        let at = u16::try_from(body.find(&zeros).expect("it is there")).expect("short");
        assert_eq!(check(body.as_bytes(), Some(at)), Ok(()));
        let receipt = [b'r'; RECEIPT_CHARS];
        let of = |template, place, values: &Value, receipt| {
            let mut out = Vec::new();
            Form::new(body.as_bytes(), template, place).fill(Some(&attributes(values)), receipt, &mut out);
            String::from_utf8(out).expect("UTF-8")
        };
        let long = "r".repeat(RECEIPT_CHARS);
        let values = json!({"a": "a longer value"});
        assert_eq!(
            of(true, Some(at), &values, Some(&receipt)),
            format!(r#"{{"a":"a longer value","receipt":"{long}","b":"a longer value"}}"#)
        );
        assert_eq!(
            of(true, Some(at), &json!({"a": "x".repeat(4_000)}), Some(&receipt)),
            format!(r#"{{"a":"x","receipt":"{long}","b":""}}"#)
        );
        assert_eq!(of(false, Some(at), &values, Some(&receipt)), body.replace(&zeros, &long));
        assert_eq!(of(true, Some(at), &json!({}), None), format!(r#"{{"a":"x","receipt":"{zeros}","b":""}}"#));
        assert_eq!(of(false, None, &values, Some(&receipt)), body);
        // Beyond the end, in a damaged row.
        for place in [body.len() - RECEIPT_CHARS + 1, body.len(), 65_535] {
            assert_eq!(of(false, Some(place as u16), &values, Some(&receipt)), body);
        }
    }

    #[test]
    fn attributes_that_are_none_are_not_inserted() {
        for json in ["null", "", "\"", "{\"a\":1}", "[1]", "x"] {
            let all: Attributes = [(Name::from("a"), Box::from(json))].into();
            let mut out = Vec::new();
            Form::new(br#"{"a":"{{a|d}}"}"#, true, None).fill(Some(&all), None, &mut out);
            assert_eq!(out, br#"{"a":"d"}"#, "{json}");
        }
    }

    /// Fills a tree of values, the plain way.
    fn model(value: &Value, values: &Value) -> Value {
        match value {
            Value::String(text) => {
                let mut parts = text.split("{{");
                let mut result = parts.next().unwrap_or_default().to_owned();
                for part in parts {
                    let (placeholder, rest) = part.split_once("}}").expect("closed");
                    let (name, default) = placeholder.split_once('|').unwrap_or((placeholder, ""));
                    match values.get(name.trim_matches(' ')) {
                        None | Some(Value::Null) => result += default.trim_matches(' '),
                        Some(Value::String(text)) => result += text,
                        Some(other) => result += &other.to_string(),
                    }
                    result += rest;
                }
                Value::String(result)
            }
            Value::Array(items) => items.iter().map(|item| model(item, values)).collect(),
            Value::Object(members) => members.iter().map(|(name, member)| (name.clone(), model(member, values))).collect(),
            other => other.clone(),
        }
    }

    /// Text with anything in it but two braces in a row.
    fn plain() -> impl Strategy<Value = String> {
        prop_oneof![any::<String>(), "[ a-c\"\\\\{}|\n\u{1}ż😀]{0,8}"].prop_map(|text| text.replace(['{', '}'], "{ "))
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![4 => "[a-d]", 1 => "[a-cż😀\"\\\\\n:.]{1,4}"]
    }

    fn template() -> impl Strategy<Value = String> {
        let placeholder = (name(), proptest::option::of(plain()), any::<bool>()).prop_map(|(name, default, spaced)| {
            let default = default.map_or(String::new(), |default| format!("|{default}"));
            if spaced { format!("{{{{  {name} {default} }}}}") } else { format!("{{{{{name}{default}}}}}") }
        });
        proptest::collection::vec(prop_oneof![plain(), placeholder], 0..5).prop_map(|parts| parts.concat())
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            template().prop_map(Value::from),
            template().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::vec((template(), inner), 0..6).prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    fn own_values() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            // Long ones, so that the defaults are met.
            (1_000usize..4_000).prop_map(|length| Value::from("x".repeat(length))),
        ];
        proptest::collection::vec((name(), scalar), 0..6).prop_map(|all| Value::Object(all.into_iter().collect()))
    }

    /// The same JSON with everything that is not ASCII escaped: surrogate pairs too.
    fn in_ascii(json: &str) -> String {
        json.encode_utf16().fold(String::new(), |text, unit| match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => text + char::from(byte).encode_utf8(&mut [0; 4]),
            _ => text + &format!("\\u{unit:04x}"),
        })
    }

    proptest! {
        #[test]
        fn agrees_with_filling_a_tree(tree in tree(), values in own_values(), escaped in any::<bool>()) {
            let zeros = "0".repeat(RECEIPT_CHARS);
            let tree = json!({"a": tree, "receipt": zeros, "{{z": "{{a}}"});
            let body = if escaped { in_ascii(&tree.to_string()) } else { tree.to_string() };
            let at = body.find(&zeros).expect("it is there") as u16;
            let with = |values: &Value| {
                let mut all = model(&tree, values);
                all["receipt"] = "r".repeat(RECEIPT_CHARS).into();
                all
            };
            let mut out = Vec::new();
            let form = Form::new(body.as_bytes(), true, Some(at));
            let receipt = [b'r'; RECEIPT_CHARS];
            form.fill(None, Some(&receipt), &mut out);
            prop_assert_eq!(serde_json::from_slice::<Value>(&out).ok(), Some(with(&json!({}))));
            let fits = out.len() <= PAYLOAD_MAX;
            prop_assert_eq!(check(body.as_bytes(), Some(at)).is_ok(), fits);
            out.clear();
            form.fill(Some(&attributes(&values)), Some(&receipt), &mut out);
            let result = serde_json::from_slice::<Value>(&out).expect("JSON");
            if fits {
                prop_assert!(out.len() <= PAYLOAD_MAX);
                // With the escapes that were used it may have been too long.
                let own = with(&values);
                let (defaults, long) = (with(&json!({})), own.to_string().len());
                prop_assert!(result == own || result == defaults && long > PAYLOAD_MAX / 6, "{} bytes", long);
                if !escaped {
                    prop_assert_eq!(result == own, long <= PAYLOAD_MAX || own == defaults);
                }
            }
        }

        #[test]
        fn any_bytes_are_survived(body in any::<Vec<u8>>(), at in proptest::option::of(any::<u16>()), values in own_values()) {
            let checked = check(&body, at);
            let mut out = Vec::new();
            Form::new(&body, true, at).fill(Some(&attributes(&values)), None, &mut out);
            prop_assert!(checked.is_ok() || out.len() == body.len());
        }

        /// Noise made of a template's own letters gets far.
        #[test]
        fn what_the_door_lets_in_is_always_json(noise in r#"[ {}{}{}|ab\\"u0n]{0,30}"#, values in own_values()) {
            let body = format!("{{\"a\":\"{noise}\",\"b\":\"{{{{a}}}}\"}}");
            let mut out = Vec::new();
            Form::new(body.as_bytes(), true, None).fill(Some(&attributes(&values)), None, &mut out);
            if check(body.as_bytes(), None).is_ok() {
                prop_assert!(serde_json::from_slice::<Value>(&out).is_ok());
            } else {
                prop_assert_eq!(out, body.into_bytes());
            }
        }
    }
}
