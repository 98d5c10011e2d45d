//! A tunnel through an HTTP proxy (RFC 9110 section 9.3.6), where `deliver.proxy` names one. Never one of the environment.
//!
//! The proxy resolves the name, so for names the address check (docs/design.md 6.1) is impossible here: a proxy must keep the
//! daemon out of where it may not go. The proxy's own address is the operator's word and is not checked.

use std::fmt;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes of the proxy's answer that are read at most.
const ANSWER_MAX: usize = 8 * 1024;

/// `http://host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proxy {
    /// A name, or an address without brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

/// The text is not `http://host:port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotAProxy;

impl Proxy {
    /// Reads the configuration's `http://host:port`; port 80 where none is written.
    pub(super) fn parse(text: &str) -> Result<Proxy, NotAProxy> {
        let url = url::Url::parse(text).map_err(|_| NotAProxy)?;
        let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
        if url.scheme() != "http" || !bare || !matches!(url.path(), "" | "/") {
            return Err(NotAProxy);
        }
        let host = url.host_str().ok_or(NotAProxy)?.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Proxy { host, port: url.port_or_known_default().ok_or(NotAProxy)? })
    }
}

/// The proxy did not open the tunnel, or did not speak HTTP.
#[derive(Debug)]
pub(super) struct Refused;

/// Asks the proxy at the other end of `io` for a tunnel to `host` (an IPv6 address without brackets) and `port`. After that
/// the tunnel's bytes follow.
pub(super) async fn tunnel<T>(io: &mut T, host: &str, port: u16) -> Result<(), Refused>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let target = Target { host, port };
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    io.write_all(request.as_bytes()).await.map_err(|_| Refused)?;
    io.flush().await.map_err(|_| Refused)?;
    let mut answer = Vec::with_capacity(256);
    while !answer.ends_with(b"\r\n\r\n") {
        // Byte by byte, once a connection: not one byte of the tunnel may be taken away with the answer.
        answer.push(io.read_u8().await.map_err(|_| Refused)?);
        if answer.len() > ANSWER_MAX {
            return Err(Refused);
        }
    }
    // Status line: HTTP-version SP 3DIGIT SP …; any 2xx opens the tunnel.
    let opened = answer.starts_with(b"HTTP/1.")
        && matches!(answer.get(8..12), Some([b' ', b'2', a, b]) if a.is_ascii_digit() && b.is_ascii_digit());
    if opened { Ok(()) } else { Err(Refused) }
}

struct Target<'a> {
    host: &'a str,
    port: u16,
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Target { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_address_of_a_proxy_is_taken() {
        assert_eq!(Proxy::parse("http://proxy.lan:3128"), Ok(Proxy { host: "proxy.lan".into(), port: 3128 }));
        assert_eq!(Proxy::parse("http://[::1]:3128/"), Ok(Proxy { host: "::1".into(), port: 3128 }));
        assert_eq!(Proxy::parse("http://proxy.lan").map(|proxy| proxy.port), Ok(80));
        for wrong in [
            "proxy.lan:3128",
            "https://proxy.lan:3128",
            "http://user@proxy.lan",
            "http://proxy.lan/x",
            "http://",
            "socks5://a:1",
            "",
        ] {
            assert_eq!(Proxy::parse(wrong), Err(NotAProxy), "{wrong}");
        }
    }

    async fn ask(answer: &'static [u8], host: &str) -> (bool, String, Vec<u8>) {
        let (mut ours, mut theirs) = tokio::io::duplex(64 * 1024);
        theirs.write_all(answer).await.unwrap();
        let opened = tunnel(&mut ours, host, 443).await.is_ok();
        let mut rest = Vec::new();
        let mut asked = vec![0; 1024];
        let read = theirs.read(&mut asked).await.unwrap();
        asked.truncate(read);
        drop(theirs);
        ours.read_to_end(&mut rest).await.unwrap();
        (opened, String::from_utf8(asked).unwrap(), rest)
    }

    #[tokio::test]
    async fn a_tunnel_opens_with_2xx_and_loses_no_byte() {
        let (opened, asked, rest) = ask(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\nREST", "push.example").await;
        assert!(opened);
        assert_eq!(asked, "CONNECT push.example:443 HTTP/1.1\r\nHost: push.example:443\r\n\r\n");
        assert_eq!(rest, b"REST");
        assert!(ask(b"HTTP/1.0 200\r\n\r\n", "::1").await.1.starts_with("CONNECT [::1]:443 "));
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        for answer in [b"HTTP/1.1 403 Forbidden\r\n\r\n".as_slice(), b"HTTP/1.1 2\r\n\r\n", b"SSH-2.0-x\r\n\r\n"] {
            assert!(!ask(answer, "push.example").await.0);
        }
        let endless = vec![b'x'; ANSWER_MAX + 1].leak();
        assert!(!ask(endless, "push.example").await.0);
    }
}
