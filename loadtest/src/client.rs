//! A small blocking client of the daemon's socket (docs/protocol.md): JSON, one object a line.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// How long a reply is waited for unless told.
const PATIENCE: Duration = Duration::from_secs(30);

/// One connection.
pub struct Client {
    input: BufReader<UnixStream>,
    output: UnixStream,
}

impl Client {
    /// Connects. A reply that takes more than 30 s is an error; see [`Client::set_timeout`].
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Client> {
        let output = UnixStream::connect(path)?;
        output.set_read_timeout(Some(PATIENCE))?;
        output.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { input: BufReader::new(output.try_clone()?), output })
    }

    /// Waits at most this long for a reply, and for the daemon to take a line; None is forever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.output.set_read_timeout(timeout)?;
        self.output.set_write_timeout(timeout)
    }

    /// Sends a request and returns its reply.
    ///
    /// # Panics
    ///
    /// If the connection fails: in a test that is the end. Where it is expected use [`Client::try_request`].
    pub fn request(&mut self, request: &Value) -> Value {
        self.try_request(request).unwrap_or_else(|problem| panic!("no reply to {}: {problem}", request["op"]))
    }

    /// [`Client::request`] that must succeed.
    ///
    /// # Panics
    ///
    /// If the connection fails or the reply is not `"ok":true`.
    pub fn ok(&mut self, request: &Value) -> Value {
        let reply = self.request(request);
        assert_eq!(reply["ok"], true, "{} was answered {reply}", request["op"]);
        reply
    }

    /// [`Client::request`] that must fail: its `error`.
    ///
    /// # Panics
    ///
    /// If the connection fails or the reply is `"ok":true`.
    pub fn error(&mut self, request: &Value) -> Value {
        let mut reply = self.request(request);
        assert_eq!(reply["ok"], false, "{} was answered {reply}", request["op"]);
        reply["error"].take()
    }

    /// Sends a request and returns its reply; a connection that ended before it is `UnexpectedEof`.
    pub fn try_request(&mut self, request: &Value) -> io::Result<Value> {
        self.send(request)?;
        self.recv()
    }

    /// Sends a request without waiting for the reply.
    pub fn send(&mut self, request: &Value) -> io::Result<()> {
        let mut line = request.to_string();
        line.push('\n');
        self.send_raw(line.as_bytes())
    }

    /// Sends these very bytes; a newline must be among them.
    pub fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)
    }

    /// The next reply; an end of the connection is `UnexpectedEof`, a line that is no JSON `InvalidData`.
    pub fn recv(&mut self) -> io::Result<Value> {
        let line = self.recv_raw()?;
        serde_json::from_slice(&line).map_err(|problem| io::Error::new(io::ErrorKind::InvalidData, problem))
    }

    /// The next line without its newline.
    pub fn recv_raw(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        self.input.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line)
    }

    /// Replies until one that has `ok`, which is the last: the lines of `events` and it.
    pub fn events(&mut self, request: &Value) -> io::Result<(Vec<Value>, Value)> {
        self.send(request)?;
        let mut events = Vec::new();
        loop {
            let line = self.recv()?;
            if line.get("ok").is_some() {
                return Ok((events, line));
            }
            events.push(line);
        }
    }

    /// Says that nothing more will be sent; replies can still be read.
    pub fn finish(&mut self) -> io::Result<()> {
        self.output.shutdown(std::net::Shutdown::Write)
    }

    /// Whether the daemon has closed the connection; waits for it as long as for a reply.
    pub fn at_end(&mut self) -> io::Result<bool> {
        Ok(self.input.read(&mut [0])? == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::net::UnixListener;

    /// A daemon that knows `ping`, errors, `events`, and `leave`.
    fn serve(listener: &UnixListener) {
        let (stream, _) = listener.accept().unwrap();
        let mut output = stream.try_clone().unwrap();
        for line in BufReader::new(stream).lines() {
            let request: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let replies = match request["op"].as_str().unwrap() {
                "ping" => vec![json!({"id": request["id"], "ok": true})],
                "events" => vec![json!({"cursor": "a"}), json!({"cursor": "b"}), json!({"ok": true, "more": false})],
                "leave" => return,
                _ => vec![json!({"ok": false, "error": {"code": "unknown_op"}})],
            };
            for reply in replies {
                output.write_all(format!("{reply}\n").as_bytes()).unwrap();
            }
        }
    }

    #[test]
    fn requests_are_answered_pipelined_and_ended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || serve(&listener));
        let mut client = Client::connect(&path).unwrap();
        assert_eq!(client.ok(&json!({"op": "ping", "id": 7}))["id"], 7);
        assert_eq!(client.error(&json!({"op": "nonsense"}))["code"], "unknown_op");
        client.send_raw(b"{\"op\":\"ping\",\"id\":1}\n{\"op\":\"ping\",\"id\":2}\n").unwrap();
        assert_eq!(client.recv().unwrap()["id"], 1);
        assert_eq!(client.recv().unwrap()["id"], 2);
        let (events, end) = client.events(&json!({"op": "events"})).unwrap();
        assert_eq!((events.len(), &end["more"]), (2, &json!(false)));
        let problem = client.try_request(&json!({"op": "leave"})).unwrap_err();
        assert_eq!(problem.kind(), io::ErrorKind::UnexpectedEof);
        server.join().unwrap();
    }
}
