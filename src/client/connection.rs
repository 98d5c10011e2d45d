//! The client's end of the socket: one JSON object a line, both ways (DESIGN 3).
//!
//! Whatever goes wrong here becomes a [`Failure`] that says what to do: who may use the socket, whether the daemon runs, whether
//! the same command can succeed later. A reply that carries `"ok":false` is no failure of the connection: it is a [`Refusal`].

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::exit::{Exit, Failure};

/// A daemon that has not answered for this long is not going to: an acknowledgement takes milliseconds, and a busy daemon says
/// `overloaded` within a second.
const PATIENCE: Duration = Duration::from_secs(120);

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
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).map_err(lost)?;
        if read == 0 || !line.ends_with('\n') {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
        line.truncate(line.trim_end().len());
        Reply::parse(line)
    }

    /// Sends `request` and waits for its reply, which is a failure unless it says `"ok":true`.
    pub fn call(&mut self, request: &Value) -> Result<Reply, Failure> {
        self.send(&request.to_string())?;
        Ok(self.receive()?.good()?)
    }
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
            _ => Err(Failure::new(
                Exit::Io,
                "the other side of the socket does not speak Fanfare's protocol: is it the right socket?",
            )),
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
    /// Whether the same request can succeed later (DESIGN 3, the table's right column).
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
        let field = refusal.field.as_deref().map(|field| format!(" ({field})")).unwrap_or_default();
        let later = match refusal.retry_after {
            Some(seconds) => format!("; try again after {seconds} s"),
            None => String::new(),
        };
        Failure::new(refusal.exit(), format!("{}{field}: {}{later}", refusal.code, refusal.message))
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
    let shown = path.display();
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
    let user = User::from_uid(Uid::from_raw(socket.uid())).ok().flatten().map_or(socket.uid().to_string(), |user| user.name);
    let group = Group::from_gid(Gid::from_raw(socket.gid())).ok().flatten().map_or(socket.gid().to_string(), |group| group.name);
    format!(
        "It is for the user `{user}` and the group `{group}`: join the group with `sudo usermod -aG {group} $USER` and log in again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
