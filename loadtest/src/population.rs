//! The readers of an imaginary site: who owns which browser, with which tags and scopes. All follows from a member's number, so
//! that any measurement knows how many a segment has.

use std::io;
use std::ops::Range;
use std::path::Path;

use crate::client::Client;
use crate::mock::Members;

/// Tags `t0`, `t1`, ...: member n has `t<n mod TAGS>`, so of a million each has 500.
pub const TAGS: u32 = 2_000;
/// The tag that every member has.
pub const EVERYBODY: &str = "all-of-them";
/// The tag of those with one of the first half of [`TAGS`]: as many as `t0` to `t999` have together, and the very same.
pub const HALF: &str = "half";
/// The scope that every second member names; the others accept all.
pub const SCOPE: &str = "news";

/// Lines that are unanswered at once: what the socket takes without a reader at its other end.
const BURST: usize = 500;

/// Appends the members of `subscribe` (and of a line of `fanfare import`), without braces.
pub fn write_fields(members: &Members, number: u32, into: &mut Vec<u8>) {
    into.extend_from_slice(b"\"subscription\":");
    members.write_json(number, into);
    let tag = number % TAGS;
    let half = if tag < TAGS / 2 { format!(",\"{HALF}\"") } else { String::new() };
    let scopes = if number.is_multiple_of(2) { format!(",\"scopes\":[\"{SCOPE}\"]") } else { String::new() };
    let account = account(number);
    into.extend_from_slice(format!(",\"account\":\"{account}\",\"tags\":[\"t{tag}\",\"{EVERYBODY}\"{half}]{scopes}").as_bytes());
}

/// The account of a member: every reader has two browsers.
pub fn account(number: u32) -> String {
    format!("reader-{}", number / 2)
}

/// Appends a `subscribe` line.
pub fn write_subscribe(members: &Members, number: u32, into: &mut Vec<u8>) {
    into.extend_from_slice(b"{\"op\":\"subscribe\",");
    write_fields(members, number, into);
    into.extend_from_slice(b"}\n");
}

/// Appends a line for `fanfare import`.
pub fn write_import(members: &Members, number: u32, into: &mut Vec<u8>) {
    into.push(b'{');
    write_fields(members, number, into);
    into.extend_from_slice(b"}\n");
}

/// Subscribes these members over one pipelined connection, a test's way; an error is also a reply that is not `"ok":true`.
pub fn subscribe_all(socket: &Path, members: &Members, numbers: Range<u32>) -> io::Result<()> {
    let mut client = Client::connect(socket)?;
    let mut lines = Vec::new();
    for first in numbers.clone().step_by(BURST) {
        let burst = first..numbers.end.min(first + BURST as u32);
        lines.clear();
        burst.clone().for_each(|number| write_subscribe(members, number, &mut lines));
        client.send_raw(&lines)?;
        for _ in burst {
            let reply = client.recv()?;
            if reply["ok"] != true {
                return Err(io::Error::other(format!("subscribe was answered {reply}")));
            }
        }
    }
    Ok(())
}

/// How many of the first `members` have the tag `t<tag>`.
pub fn of_tag(members: u32, tag: u32) -> u32 {
    members / TAGS + u32::from(members % TAGS > tag)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock::Plan;
    use serde_json::{Value, json};

    #[test]
    fn lines_are_json_and_segments_have_their_size() {
        let members = Members::new(Plan { members: 5_001, keys: 1, ..Plan::default() }, "https://127.0.0.1:1");
        let mut lines = Vec::new();
        (0..5_001).for_each(|number| write_subscribe(&members, number, &mut lines));
        let lines: Vec<Value> = lines.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        assert_eq!(lines.len(), 5_001);
        let having = |tag: &str| lines.iter().filter(|line| line["tags"].as_array().unwrap().contains(&json!(tag))).count();
        for tag in [0, 1_000, 1_001, 1_999] {
            assert_eq!(having(&format!("t{tag}")) as u32, of_tag(5_001, tag));
        }
        assert_eq!(having(EVERYBODY), 5_001);
        assert_eq!(having(HALF) as u32, (0..TAGS / 2).map(|tag| of_tag(5_001, tag)).sum::<u32>());
        assert_eq!((&lines[4]["scopes"], &lines[5]["scopes"]), (&json!([SCOPE]), &Value::Null));
        assert_eq!((&lines[4]["account"], &lines[5]["account"]), (&json!("reader-2"), &json!("reader-2")));
        let mut line = Vec::new();
        write_import(&members, 7, &mut line);
        assert_eq!(serde_json::from_slice::<Value>(&line).unwrap()["subscription"], members.json(7));
    }
}
