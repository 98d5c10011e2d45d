//! Text from outside, made fit for a terminal and for a log.
//!
//! Promise: text that went through here moves no cursor, sets no title, changes neither colour nor direction of what stands around
//! it, and begins no line of its own: each character that could is shown as the escape `\uXXXX`, which is also how JSON writes it.
//! Whatever is printed goes through one of these functions: [`line()`] for a part of a line (a label, a file's name), [`lines`] for a
//! whole text of ours, [`json`] for JSON, [`LogLines`] for the log.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

/// Whether a terminal may take it for more than a character: control characters (C0, DEL, C1), separators of lines and paragraphs,
/// and the marks that change the direction in which text is written (UAX 9).
fn is_active(c: char) -> bool {
    c.is_control() || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// `text` as a part of one line.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

/// A text of several lines; tabs stay too. What comes from outside must have gone through [`line()`] before it became a part of it.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// A text of ours of several lines as one line: what stands in a log is one entry.
pub fn joined(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    for part in text.lines().map(str::trim).filter(|part| !part.is_empty()) {
        match joined.as_bytes().last() {
            None => {}
            Some(b':' | b';' | b',') => joined.push(' '),
            Some(_) => joined.push_str("; "),
        }
        joined.push_str(&line(part));
    }
    joined
}

/// A line of JSON, which says the same as before: such characters stand only in its strings, and blanks between its tokens.
pub fn json(text: &str) -> Cow<'_, str> {
    let blank = |c: char| matches!(c, '\n' | '\r' | '\t');
    match escaped(text, blank) {
        text if text.contains(blank) => Cow::Owned(text.replace(blank, " ")),
        text => text,
    }
}

/// A file's name.
pub fn path(path: &Path) -> String {
    line(&path.to_string_lossy()).into_owned()
}

fn escaped(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let active = |c: char| is_active(c) && !stays(c);
    if !text.contains(active) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if active(c) {
            // All of them lie in the basic plane: four digits are enough. Writing to a text cannot fail.
            let _written = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// What `tracing` writes the log to, without colours: it hands over each event at once, with its newline. By itself it writes out only
/// some of these characters, and none of them in an error that is a field.
pub struct LogLines<W> {
    pub to: W,
    /// Stands before each event: its priority, where the log is the journal.
    pub prefix: &'static str,
}

impl<W: io::Write> io::Write for LogLines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        let (event, end) = text.strip_suffix('\n').map_or((&*text, ""), |event| (event, "\n"));
        let event = escaped(event, |c| c == '\t');
        // In one piece, so that lines of several threads do not mix.
        self.to.write_all(format!("{}{event}{end}", self.prefix).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Title, cursor, colour; the same with one C1 character; DEL; a new line; back to its begin; each mark of direction.
    const HOSTILE: &str = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{9b}31m\u{90}\u{7f}\nroot# \r\u{85}\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";

    #[test]
    fn text_from_outside_is_only_text() {
        let shown = line(HOSTILE);
        assert!(!shown.contains(is_active), "{shown:?}");
        assert!(
            shown.starts_with(r"\u001b]0;owned\u0007\u001b[2J\u009b31m\u0090\u007f\u000aroot# \u000d\u0085\u061c\u200e"),
            "{shown}"
        );
        assert!(shown.ends_with(r"\u202e\u2066\u2067\u2068\u2069"), "{shown}");
        for harmless in ["", "anna", "zażółć gęślą jaźń", "مرحبا שלום", "👩‍👩‍👧 e\u{301}", "a\\b \"c\""]
        {
            assert!(matches!(line(harmless), Cow::Borrowed(same) if same == harmless), "{harmless}");
        }
        assert_eq!(lines("one\n\ttwo\u{1b}\r"), "one\n\ttwo\\u001b\\u000d");
        assert_eq!(path(Path::new("/tmp/\u{1b}[2J\n")), r"/tmp/\u001b[2J\u000a");
    }

    #[test]
    fn several_lines_become_one_entry() {
        assert_eq!(joined("wrong:\na: too small\n  b: \u{1b}x\n\n"), r"wrong: a: too small; b: \u001bx");
        assert_eq!(joined("one"), "one");
    }

    #[test]
    fn json_says_the_same_as_before() {
        let told = serde_json::json!({"label": HOSTILE, HOSTILE: 1});
        // serde_json escapes C0 only.
        let raw = format!("{told}\r\t");
        assert!(raw.contains('\u{9b}') && raw.contains('\u{202e}') && raw.contains('\u{7f}'));
        let shown = json(&raw);
        assert!(!shown.contains(is_active), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("still JSON"), told);
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no other thread").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_of_the_log_is_one_line_of_text() {
        let log = Shared::default();
        let to = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || LogLines { to: to.clone(), prefix: "<4>" }).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(field = HOSTILE, error = %HOSTILE, debug = ?HOSTILE, "{HOSTILE}");
        });
        let text = String::from_utf8(log.0.lock().expect("no other thread").clone()).expect("text");
        let event = text.strip_prefix("<4>").and_then(|text| text.strip_suffix('\n')).expect("a line with its priority");
        assert!(!event.contains(is_active), "{event:?}");
        assert_eq!(event.matches("owned").count(), 4, "{event}");
    }
}
