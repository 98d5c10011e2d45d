//! Checked results -> lines of the protocol (docs/protocol.md).

use std::fmt::Display;
use std::io::Write;

use crate::ids::VisibleId;
use crate::message::{Reference, UnixMillis};
use crate::protocol::json::write_string;
use crate::protocol::request::{Problem, Rejected, RequestId};
use crate::protocol::time::write_time;

/// Begins a reply of success, `{"id":…,"ok":true`. The caller appends members, each with a leading comma, and ends it with
/// [`end`].
pub fn begin_ok(out: &mut Vec<u8>, id: &RequestId) {
    begin(out, id);
    out.extend_from_slice(b"\"ok\":true");
}

/// Ends a reply: the object and its line.
pub fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"}\n");
}

/// Appends `,"name":value` where `value` shows itself as JSON: a number, a boolean, or text that already is JSON.
pub fn member(out: &mut Vec<u8>, name: &str, value: impl Display) {
    member_name(out, name);
    write!(out, "{value}").expect("writing to memory does not fail");
}

/// Appends `,"name":"text"`.
pub fn member_text(out: &mut Vec<u8>, name: &str, text: &str) {
    member_name(out, name);
    write_string(text, out);
}

/// Appends `,"message_id":"…"`.
pub fn member_message_id(out: &mut Vec<u8>, id: VisibleId) {
    member_name(out, "message_id");
    out.push(b'"');
    out.extend_from_slice(id.text(&mut [0; ulid::ULID_LEN]).as_bytes());
    out.push(b'"');
}

/// Appends `,"name":"2026-11-22T10:30:00.000Z"`.
pub fn member_time(out: &mut Vec<u8>, name: &str, time: UnixMillis) {
    member_name(out, name);
    out.push(b'"');
    write_time(out, time);
    out.push(b'"');
}

/// Appends a whole reply of failure with its newline. `retry_after` is in seconds. `extra` are further members of `error`, such
/// as `position` or `oldest`: a name, and a value that already is JSON.
pub fn write_problem(out: &mut Vec<u8>, id: &RequestId, problem: &Problem, retry_after: Option<f64>, extra: &[(&str, &str)]) {
    begin(out, id);
    out.extend_from_slice(b"\"ok\":false,\"error\":{");
    problem_members(out, problem);
    if let Some(seconds) = retry_after {
        member(out, "retry_after", seconds);
    }
    for (name, value) in extra {
        member(out, name, value);
    }
    out.extend_from_slice(b"}}\n");
}

/// Appends `,"rejected":[…]`, nothing if there is none. It stops when `out` has grown beyond `limit` bytes, because a reply is
/// bounded like a line, and returns how many entries were left out; the status counts those too.
pub fn write_rejected(out: &mut Vec<u8>, rejected: &[Rejected], limit: usize) -> usize {
    if rejected.is_empty() {
        return 0;
    }
    member_name(out, "rejected");
    out.push(b'[');
    let mut written = 0;
    for Rejected { index, reference, problem } in rejected {
        let whole = out.len();
        if written > 0 {
            out.push(b',');
        }
        write!(out, "{{\"index\":{index}").expect("writing to memory does not fail");
        match reference {
            Some(Reference::Text(text)) => member_text(out, "ref", text),
            Some(Reference::Integer(number)) => member(out, "ref", number),
            None => {}
        }
        out.push(b',');
        problem_members(out, problem);
        out.push(b'}');
        if out.len() > limit {
            out.truncate(whole);
            break;
        }
        written += 1;
    }
    out.push(b']');
    rejected.len() - written
}

fn begin(out: &mut Vec<u8>, id: &RequestId) {
    out.push(b'{');
    if let Some(id) = id {
        out.extend_from_slice(b"\"id\":");
        out.extend_from_slice(id.as_bytes());
        out.push(b',');
    }
}

fn member_name(out: &mut Vec<u8>, name: &str) {
    out.push(b',');
    write_string(name, out);
    out.push(b':');
}

/// `"code":…,"field":…,"message":…`
fn problem_members(out: &mut Vec<u8>, problem: &Problem) {
    out.extend_from_slice(b"\"code\":");
    write_string(problem.code.as_str(), out);
    if let Some(field) = &problem.field {
        member_text(out, "field", field);
    }
    member_text(out, "message", &problem.message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::request::Code;

    fn problem() -> Problem {
        Problem { code: Code::InvalidField, field: Some("to.x".to_owned()), message: "a \"quoted\" sentence".to_owned() }
    }

    fn text(out: Vec<u8>) -> String {
        String::from_utf8(out).expect("replies are UTF-8")
    }

    #[test]
    fn replies() {
        let mut out = Vec::new();
        write_problem(&mut out, &Some("\"a\"".into()), &problem(), Some(1.5), &[("position", "17")]);
        assert_eq!(
            text(out),
            "{\"id\":\"a\",\"ok\":false,\"error\":{\"code\":\"invalid_field\",\"field\":\"to.x\",\"message\":\"a \\\"quoted\\\" sentence\",\
             \"retry_after\":1.5,\"position\":17}}\n"
        );
        let mut out = Vec::new();
        begin_ok(&mut out, &None);
        member(&mut out, "recipients", 3);
        member_text(&mut out, "state", "sending");
        member_time(&mut out, "expires", UnixMillis(0));
        end(&mut out);
        assert_eq!(text(out), "{\"ok\":true,\"recipients\":3,\"state\":\"sending\",\"expires\":\"1970-01-01T00:00:00.000Z\"}\n");
    }

    #[test]
    fn rejected_entries_are_bounded() {
        let rejected = [
            Rejected { index: 0, reference: Some(Reference::Text("r".to_owned())), problem: problem() },
            Rejected { index: 7, reference: Some(Reference::Integer(-1)), problem: problem() },
            Rejected { index: 8, reference: None, problem: Problem { field: None, ..problem() } },
        ];
        let written = |limit| {
            let mut out = b"{".to_vec();
            let left = write_rejected(&mut out, &rejected, limit);
            (text(out), left)
        };
        let what = "\"code\":\"invalid_field\",\"field\":\"to.x\",\"message\":\"a \\\"quoted\\\" sentence\"}";
        let first = format!("{{,\"rejected\":[{{\"index\":0,\"ref\":\"r\",{what}");
        let second = format!("{first},{{\"index\":7,\"ref\":-1,{what}");
        let third = format!("{second},{{\"index\":8,\"code\":\"invalid_field\",\"message\":\"a \\\"quoted\\\" sentence\"}}]");
        assert_eq!(written(1_000), (third, 0));
        assert_eq!(written(second.len()), (format!("{second}]"), 1));
        assert_eq!(written(second.len() - 1), (format!("{first}]"), 2));
        assert_eq!(written(10), ("{,\"rejected\":[]".to_owned(), 3));
        let mut out = Vec::new();
        assert_eq!((write_rejected(&mut out, &[], 10), out.len()), (0, 0));
    }
}
