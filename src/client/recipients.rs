//! Reads subscriptions from a file or a pipe: a JSON array of them, or one after the other, as one line each.
//!
//! They are handed on one by one and never kept, so a file of ten million takes no memory. Whether a subscription is any good is
//! for the daemon to judge; here it only has to be JSON.

use std::fmt;
use std::io::{self, BufRead, Read};

use serde::de::{DeserializeSeed, Deserializer as _, SeqAccess, Visitor};
use serde_json::Deserializer;
use serde_json::value::RawValue;

use crate::exit::{Exit, Failure};

/// Calls `take` for each subscription in `input`, on one line and otherwise as it was written. Ends with the first failure:
/// exit 64 where the input is no JSON, with its line; whatever `take` fails with.
pub fn each(mut input: impl BufRead, take: &mut dyn FnMut(String) -> Result<(), Failure>) -> Result<(), Failure> {
    let blank = skip_blanks(&mut input).map_err(|error| Failure::io("cannot read the subscriptions", &error))?;
    match blank {
        None => Ok(()),
        Some(b'[') => each_of_array(input, take),
        Some(_) => Deserializer::from_reader(input).into_iter::<Box<RawValue>>().try_for_each(|item| match item {
            Ok(raw) => take(on_one_line(&raw)),
            Err(error) => Err(unreadable(&error)),
        }),
    }
}

/// JSON allows a bare newline only between tokens, so nothing inside a string changes.
pub fn on_one_line(raw: &RawValue) -> String {
    raw.get().replace(['\n', '\r'], " ")
}

fn unreadable(error: &serde_json::Error) -> Failure {
    match error.io_error_kind() {
        Some(kind) => Failure::io("cannot read the subscriptions", &io::Error::from(kind)),
        // Its own text ends with "at line 3 column 7".
        None => Failure::new(Exit::Usage, format!("the subscriptions are no JSON: {error}")),
    }
}

/// Skips white space and a byte order mark; the byte that follows stays.
fn skip_blanks(input: &mut impl BufRead) -> io::Result<Option<u8>> {
    if input.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        input.consume(3);
    }
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Ok(None);
        }
        match bytes.iter().position(|byte| !byte.is_ascii_whitespace()) {
            Some(at) => {
                let byte = bytes[at];
                input.consume(at);
                return Ok(Some(byte));
            }
            None => {
                let all = bytes.len();
                input.consume(all);
            }
        }
    }
}

fn each_of_array(input: impl Read, take: &mut dyn FnMut(String) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut failure = None;
    let mut reader = Deserializer::from_reader(input);
    let read = reader.deserialize_seq(Elements { take, failure: &mut failure }).and_then(|()| reader.end());
    match (failure, read) {
        (Some(failure), _) => Err(failure),
        (None, Err(error)) => Err(unreadable(&error)),
        (None, Ok(())) => Ok(()),
    }
}

/// Hands on the elements of an array while it is parsed. `failure` carries what serde's error cannot.
struct Elements<'a> {
    take: &'a mut dyn FnMut(String) -> Result<(), Failure>,
    failure: &'a mut Option<Failure>,
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of subscriptions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while let Some(raw) = elements.next_element_seed(Element)? {
            if let Err(failure) = (self.take)(on_one_line(&raw)) {
                *self.failure = Some(failure);
                return Err(serde::de::Error::custom("not taken"));
            }
        }
        Ok(())
    }
}

struct Element;

impl<'de> DeserializeSeed<'de> for Element {
    type Value = Box<RawValue>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Box<RawValue>, D::Error> {
        serde::Deserialize::deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Result<(), Failure>) {
        let mut found = Vec::new();
        let result = each(text.as_bytes(), &mut |subscription| {
            found.push(subscription);
            Ok(())
        });
        (found, result)
    }

    #[test]
    fn lines_arrays_and_pretty_printing_give_the_same() {
        for text in [
            "{\"endpoint\":\"a\"}\n{\"endpoint\":\"b\"}\n",
            "\u{feff}\n [{\"endpoint\":\"a\"},{\"endpoint\":\"b\"}]\n",
            "{\"endpoint\":\"a\"}{\"endpoint\":\"b\"}",
        ] {
            let (found, result) = read(text);
            assert!(result.is_ok(), "{text:?}");
            assert_eq!(found, [r#"{"endpoint":"a"}"#, r#"{"endpoint":"b"}"#], "{text:?}");
        }
        let (found, result) = read("[\n  {\n    \"endpoint\": \"a\\nb\"\r\n  }\n]");
        assert!(result.is_ok());
        assert!(!found[0].contains('\n') && found[0].contains("a\\nb"), "{found:?}");
    }

    #[test]
    fn nothing_is_no_failure() {
        for text in ["", "\n\n", "[]", " [ ] "] {
            let (found, result) = read(text);
            assert!(found.is_empty() && result.is_ok(), "{text:?}");
        }
    }

    #[test]
    fn a_broken_line_is_named() {
        let (found, result) = read("{\"endpoint\":\"a\"}\n{\"endpoint\":\n");
        assert_eq!(found.len(), 1);
        let failure = result.expect_err("the second is cut");
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("line 3") || failure.message.contains("line 2"), "{failure}");
        for text in ["[{}", "[{}] x", "[{},,]"] {
            assert_eq!(read(text).1.expect_err(text).exit, Exit::Usage, "{text}");
        }
    }

    #[test]
    fn a_failure_of_the_taker_ends_the_reading() {
        for text in ["[{},{},{}]", "{}\n{}\n{}"] {
            let mut taken = 0;
            let failure = each(text.as_bytes(), &mut |_| {
                taken += 1;
                if taken == 2 { Err(Failure::new(Exit::Temporary, "full")) } else { Ok(()) }
            })
            .expect_err("the taker failed");
            assert_eq!((taken, failure.exit), (2, Exit::Temporary));
        }
    }
}
