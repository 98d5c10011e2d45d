//! The client's end of the socket: one JSON object a line, both ways (docs/protocol.md).
//!
//! Whatever goes wrong here becomes a [`Failure`] that says what to do: who may use the socket, whether the daemon runs, whether
//! the same command can succeed later. A reply that carries `"ok":false` is no failure of the connection: it is a [`Refusal`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Group, Uid, User, geteuid};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::exit::{Exit, Failure};
use crate::printable::{self, line};

/// A daemon that has not answered for this long is not going to: an acknowledgement takes milliseconds, and a busy daemon says
/// `overloaded` within a second.
const PATIENCE: Duration = Duration::from_secs(120);

/// Bytes of a reply. The longest honest one is `stats` by day and label over all its days: 400,000 elements of some 300 bytes.
const REPLY_MAX: u64 = 256 * 1024 * 1024;

/// A connection to the daemon.
pub struct Connection {
    stream: BufReader<UnixStream>,
}

impl Connection {
    /// Connects to the socket at `path`. Exit 69 if nobody listens there, 77 if the socket is not for this user.
    pub fn open(path: &Path) -> Result<Connection, Failure> {
        let stream = UnixStream::connect(path).map_err(|error| not_connected(path, &error))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| Failure::io("cannot set the socket's time limit", &error))?;
        Ok(Connection { stream: BufReader::with_capacity(64 * 1024, stream) })
    }

    /// Waits for lines without end from now on: for `events` that follow.
    pub fn wait_for_ever(&mut self) -> Result<(), Failure> {
        self.stream.get_ref().set_read_timeout(None).map_err(|error| Failure::io("cannot lift the socket's time limit", &error))
    }

    /// Both halves: for who writes ahead of the replies. Neither waits for ever.
    pub fn split(self) -> Result<(BufReader<UnixStream>, UnixStream), Failure> {
        let failed = |error: io::Error| Failure::io("cannot share the socket", &error);
        let writer = self.stream.get_ref().try_clone().map_err(failed)?;
        writer.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        Ok((self.stream, writer))
    }

    /// Writes one request, without waiting for its reply.
    pub fn send(&mut self, request: &str) -> Result<(), Failure> {
        debug_assert!(!request.contains('\n'), "one request is one line");
        let mut line = Vec::with_capacity(request.len() + 1);
        line.extend_from_slice(request.as_bytes());
        line.push(b'\n');
        self.stream.get_mut().write_all(&line).map_err(lost)
    }

    /// Reads one line. Exit 75 if the connection ends before it: the request may or may not have been taken.
    pub fn receive(&mut self) -> Result<Reply, Failure> {
        let mut line = Vec::new();
        read_line(&mut self.stream, &mut line, REPLY_MAX)?;
        let mut line = String::from_utf8(line).map_err(|_| not_ours())?;
        line.truncate(line.trim_end().len());
        Reply::parse(line)
    }

    /// Looks who listens at the other end, before something is done to files because of what it says. Exit 77 unless that is root, this
    /// user, or whom `data_dir` belongs to: anybody can make a socket.
    pub fn served_by_owner_of(&self, data_dir: &Path) -> Result<(), Failure> {
        let peer = getsockopt(self.stream.get_ref(), sockopt::PeerCredentials)
            .map_err(|error| Failure::io("cannot find out who serves the socket", &error.into()))?
            .uid();
        let owner = data_dir.metadata().ok().map(|directory| directory.uid());
        if peer == 0 || peer == geteuid().as_raw() || Some(peer) == owner {
            return Ok(());
        }
        let message = format!(
            "the socket is served by the user `{}`, who is neither root nor the owner of {}: nothing was asked for. If that is the \
             daemon, name its configuration with `--config FILE`",
            user_name(peer),
            printable::path(data_dir)
        );
        Err(Failure::new(Exit::Permission, message))
    }

    /// Sends `request` and waits for its reply, which is a failure unless it says `"ok":true`.
    pub fn call(&mut self, request: &Value) -> Result<Reply, Failure> {
        self.send(&request.to_string())?;
        Ok(self.receive()?.good()?)
    }
}

/// Reads a line with its newline behind what is in `line`. Exit 74 if it has more than `max` bytes, 75 if the connection ends before
/// its end.
pub fn read_line(from: &mut impl BufRead, line: &mut Vec<u8>, max: u64) -> Result<(), Failure> {
    let read = from.take(max).read_until(b'\n', line).map_err(lost)?;
    match line.last() {
        Some(b'\n') if read > 0 => Ok(()),
        _ if read as u64 == max => Err(Failure::new(
            Exit::Io,
            format!("a line from the other side of the socket has more than {max} bytes: no reply is as long"),
        )),
        _ => Err(lost(io::ErrorKind::UnexpectedEof.into())),
    }
}

fn not_ours() -> Failure {
    Failure::new(Exit::Io, "the other side of the socket does not speak Fanfare's protocol: is it the right socket?")
}

/// A line from the daemon, as it came and taken apart.
#[derive(Debug)]
pub struct Reply {
    /// The line without its newline: what `--json` shows.
    pub line: String,
    /// Its members.
    pub members: Map<String, Value>,
}

impl Reply {
    /// Takes a line apart.
    pub fn parse(line: String) -> Result<Reply, Failure> {
        match serde_json::from_str(&line) {
            Ok(Value::Object(members)) => Ok(Reply { line, members }),
            _ => Err(not_ours()),
        }
    }

    /// The reply itself if it says `"ok":true`.
    pub fn good(self) -> Result<Reply, Refusal> {
        if self.members.get("ok") == Some(&Value::Bool(true)) {
            return Ok(self);
        }
        let error = self.members.get("error").unwrap_or(&Value::Null);
        let text = |name: &str| error.get(name).and_then(Value::as_str).map(str::to_owned);
        Err(Refusal {
            code: text("code").unwrap_or_else(|| "internal".to_owned()),
            field: text("field"),
            message: text("message").unwrap_or_else(|| "no reason was given".to_owned()),
            retry_after: error.get("retry_after").and_then(Value::as_f64).map(|seconds| seconds.clamp(0.0, 60.0)),
            position: error.get("position").cloned(),
        })
    }

    /// A member that is text, or nothing.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.members.get(name).and_then(Value::as_str)
    }

    /// A member that is a count, 0 if it is absent.
    pub fn count(&self, name: &str) -> u64 {
        self.members.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// A member that is true.
    pub fn says(&self, name: &str) -> bool {
        self.members.get(name) == Some(&Value::Bool(true))
    }

    /// The elements of the array `name`, each as the daemon wrote it; none if it is absent.
    pub fn elements(&self, name: &str) -> Vec<Box<RawValue>> {
        // Parsed a second time rather than kept as `Value`: the members of an element keep the order they came in.
        let members: std::collections::HashMap<&str, &RawValue> = serde_json::from_str(&self.line).unwrap_or_default();
        members.get(name).and_then(|array| serde_json::from_str(array.get()).ok()).unwrap_or_default()
    }
}

/// `"ok":false`: what the daemon would not do, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub code: String,
    pub field: Option<String>,
    pub message: String,
    /// Seconds.
    pub retry_after: Option<f64>,
    /// The message's kept position, where the code is `conflict`.
    pub position: Option<Value>,
}

impl Refusal {
    /// Whether the same request can succeed later (docs/protocol.md).
    pub fn try_again(&self) -> bool {
        matches!(self.code.as_str(), "overloaded" | "read_only" | "shutting_down" | "internal")
    }

    /// Whether it only says that the message's position has reached `position` already.
    pub fn is_behind(&self, position: u64) -> bool {
        self.code == "conflict" && self.position.as_ref().and_then(Value::as_u64).is_some_and(|kept| kept >= position)
    }

    fn exit(&self) -> Exit {
        match self.code.as_str() {
            _ if self.try_again() => Exit::Temporary,
            "not_found" => Exit::Unavailable,
            "not_allowed" => Exit::Permission,
            _ => Exit::Usage,
        }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        // Code, field and message repeat what somebody else made up: the name of an attribute, a label.
        let field = refusal.field.as_deref().map(|field| format!(" ({})", line(field))).unwrap_or_default();
        let later = match refusal.retry_after {
            Some(seconds) => format!("; try again after {seconds} s"),
            None => String::new(),
        };
        Failure::new(refusal.exit(), format!("{}{field}: {}{later}", line(&refusal.code), line(&refusal.message)))
    }
}

fn lost(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::new(
            Exit::Temporary,
            format!("no answer for {} s. What was asked for may still happen: look before asking again", PATIENCE.as_secs()),
        ),
        _ => Failure::new(
            Exit::Temporary,
            "the daemon ended the connection before it answered (is it being restarted?). What was asked for may have happened: \
             look before asking again, or ask again with the same --idempotency-key",
        ),
    }
}

fn not_connected(path: &Path, error: &io::Error) -> Failure {
    let shown = printable::path(path);
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(
            Exit::Unavailable,
            format!(
                "there is no socket at {shown}. Is the daemon running (`systemctl status fanfare`)? Another socket is named with \
                 `--socket PATH`"
            ),
        ),
        io::ErrorKind::ConnectionRefused => Failure::new(
            Exit::Unavailable,
            format!(
                "nobody listens at {shown}: the daemon that made it has ended. Start it (`systemctl start fanfare`) and see why it \
                 ended (`journalctl -u fanfare`)"
            ),
        ),
        io::ErrorKind::PermissionDenied => {
            Failure::new(Exit::Permission, format!("no permission to use {shown}. {}", who_may_use(path)))
        }
        _ => Failure::new(Exit::Unavailable, format!("cannot connect to {shown}: {error}")),
    }
}

/// Names the users that a socket is for, as far as this user may see it.
fn who_may_use(path: &Path) -> String {
    let Ok(socket) = path.metadata() else {
        return "Its directory is not open to this user".to_owned();
    };
    let user = user_name(socket.uid());
    let group = Group::from_gid(Gid::from_raw(socket.gid())).ok().flatten().map_or(socket.gid().to_string(), |group| group.name);
    format!(
        "It is for the user `{user}` and the group `{group}`: join the group with `sudo usermod -aG {group} $USER` and log in again"
    )
}

/// The user's name, or his number where he has none.
pub fn user_name(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map_or(uid.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_end_is_not_read_to_its_end() {
        let read = |text: &'static str| {
            let mut line = Vec::new();
            read_line(&mut text.as_bytes(), &mut line, 8).map(|()| line).map_err(|failure| failure.exit)
        };
        assert_eq!(read("{\"a\":12}\n{}"), Err(Exit::Io));
        assert_eq!(read("{\"a\":1}\n{}"), Ok(b"{\"a\":1}\n".to_vec()));
        assert_eq!(read("{\"a\":"), Err(Exit::Temporary));
        assert_eq!(read(""), Err(Exit::Temporary));
    }

    #[test]
    fn a_refusal_repeats_what_a_stranger_wrote_as_text_only() {
        let hostile = "attributes.\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}\nfanfare: done";
        let line = serde_json::json!({"ok": false, "error": {"code": hostile, "field": hostile, "message": hostile}}).to_string();
        let failure = Failure::from(Reply::parse(line).expect("an object").good().expect_err("it says no"));
        assert!(!failure.message.contains(|c: char| c.is_control() || c == '\u{202e}'), "{:?}", failure.message);
        assert_eq!(failure.message.matches("attributes.\\u001b]0;owned").count(), 3, "{}", failure.message);
    }

    fn refusal(code: &str) -> Refusal {
        let line = format!(r#"{{"id":1,"ok":false,"error":{{"code":"{code}","field":"to","message":"why","retry_after":2}}}}"#);
        Reply::parse(line).expect("an object").good().expect_err("it says no")
    }

    #[test]
    fn exit_codes_follow_who_can_mend_it() {
        for (code, exit) in [
            ("bad_json", Exit::Usage),
            ("endpoint_refused", Exit::Usage),
            ("conflict", Exit::Usage),
            ("cursor_expired", Exit::Usage),
            ("not_found", Exit::Unavailable),
            ("not_allowed", Exit::Permission),
            ("overloaded", Exit::Temporary),
            ("read_only", Exit::Temporary),
            ("shutting_down", Exit::Temporary),
            ("internal", Exit::Temporary),
        ] {
            assert_eq!(Failure::from(refusal(code)).exit, exit, "{code}");
        }
    }

    #[test]
    fn a_refusal_names_field_reason_and_delay() {
        assert_eq!(Failure::from(refusal("overloaded")).message, "overloaded (to): why; try again after 2 s");
    }

    #[test]
    fn elements_keep_the_order_of_their_members() {
        let reply = Reply::parse(r#"{"ok":true,"messages":[{"z":1,"a":{"y":2,"b":3}}]}"#.to_owned()).expect("an object");
        assert_eq!(reply.elements("messages")[0].get(), r#"{"z":1,"a":{"y":2,"b":3}}"#);
        assert!(reply.elements("stats").is_empty());
    }

    #[test]
    fn what_is_no_object_is_another_protocol() {
        assert_eq!(Reply::parse("HTTP/1.1 400 Bad Request".to_owned()).expect_err("no JSON").exit, Exit::Io);
    }
}
