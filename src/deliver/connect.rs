//! One connection: name, addresses, TCP (RFC 8305), perhaps a proxy, TLS. It promises that no packet goes to an address that
//! is not permitted (docs/design.md 6.1), and that every way to fail has a name.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::permitted;
use super::proxy::{self, Proxy};
use super::resolve::Resolver;
use super::tls::{self, Roots};
use super::{Settings, StartError};
use crate::complaint::Complaint;
use crate::descriptors;
use crate::message::{ConnectFailure, Origin};

/// RFC 8305 section 5: the next address is tried when the last one has not answered for this long.
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one host that are tried at most.
const ADDRESSES_MAX: usize = 16;

static LEFT_OUT: Complaint = Complaint::some();

/// Makes connections; shared by all origins.
pub(super) struct Connector {
    tls: ArcSwap<ClientConfig>,
    roots: Roots,
    extra_roots: Option<PathBuf>,
    resolver: Resolver,
    proxy: Option<Proxy>,
    allow: Vec<IpNet>,
}

impl Connector {
    pub(super) fn new(settings: &Settings) -> Result<Connector, StartError> {
        let proxy = match &settings.proxy {
            Some(text) => Some(Proxy::parse(text).map_err(|_| StartError::Proxy)?),
            None => None,
        };
        Ok(Connector {
            tls: ArcSwap::new(tls::client_config(settings.roots, settings.extra_roots.as_deref())?),
            roots: settings.roots,
            extra_roots: settings.extra_roots.clone(),
            resolver: Resolver::new(),
            proxy,
            allow: settings.allow_networks.clone(),
        })
    }

    /// Reads the trusted certificates again. If that fails, the old ones stay.
    pub(super) fn reload_roots(&self) -> Result<(), StartError> {
        self.tls.store(tls::client_config(self.roots, self.extra_roots.as_deref())?);
        Ok(())
    }

    /// Connects to `origin`. It sets no time limit: the caller's covers the start of HTTP too.
    pub(super) async fn connect(&self, origin: &Origin) -> Result<TlsStream<Socket>, ConnectFailure> {
        let (host, port) = (origin.host(), origin.port());
        let stream = match &self.proxy {
            None => race(self.addresses(host).await?, port).await?,
            Some(proxy) => {
                // A literal address needs no resolution, so it can be checked even here.
                if host.parse().is_ok_and(|address| !permitted(address, &self.allow)) {
                    return Err(ConnectFailure::Forbidden);
                }
                self.through(proxy, host, port).await?
            }
        };
        let name = ServerName::try_from(host.trim_end_matches('.').to_owned()).map_err(|_| ConnectFailure::Tls)?;
        TlsConnector::from(self.tls.load_full()).connect(name, Socket::new(stream)).await.map_err(|error| {
            tracing::debug!(host, %error, "TLS failed");
            ConnectFailure::Tls
        })
    }

    /// The permitted addresses of `host`, at least one.
    async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, ConnectFailure> {
        let found = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => self.resolver.addresses(host).await?,
        };
        let count = found.len();
        let permitted: Vec<IpAddr> = found.into_iter().filter(|&address| permitted(address, &self.allow)).collect();
        // Whoever makes endpoints and names (`endpoints.policy` = "public") can cause it.
        if permitted.len() < count
            && let Some(left_out) = LEFT_OUT.tell()
        {
            tracing::warn!(
                host,
                refused = count - permitted.len(),
                left_out,
                "addresses where the daemon may not connect are left out"
            );
        }
        if permitted.is_empty() { Err(ConnectFailure::Forbidden) } else { Ok(permitted) }
    }

    async fn through(&self, proxy: &Proxy, host: &str, port: u16) -> Result<TcpStream, ConnectFailure> {
        let open = async {
            let addresses = match proxy.host.parse() {
                Ok(address) => vec![address],
                Err(_) => self.resolver.addresses(&proxy.host).await.ok()?,
            };
            let mut stream = match race(addresses, proxy.port).await {
                Err(ConnectFailure::NoDescriptor) => return Some(Err(ConnectFailure::NoDescriptor)),
                reached => reached.ok()?,
            };
            proxy::tunnel(&mut stream, host, port).await.ok()?;
            Some(Ok(stream))
        };
        open.await.unwrap_or(Err(ConnectFailure::Proxy))
    }
}

/// The TCP connection below TLS. It counts what comes in, for TLS itself can be talkative (tickets, records of next to nothing).
pub(super) struct Socket {
    stream: TcpStream,
    reads: u64,
    bytes: u64,
}

impl Socket {
    fn new(stream: TcpStream) -> Socket {
        Socket { stream, reads: 0, bytes: 0 }
    }

    /// Reads that brought something, and their bytes, since this was last asked.
    pub(super) fn taken(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.reads), std::mem::take(&mut self.bytes))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let new = buf.filled().len() - before;
        self.reads += u64::from(new > 0);
        self.bytes += new as u64;
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Happy Eyeballs (RFC 8305 section 5): the families in turn, the next address after [`STAGGER`] or as soon as one has
/// failed, the first that answers wins and the others are dropped.
async fn race(addresses: Vec<IpAddr>, port: u16) -> Result<TcpStream, ConnectFailure> {
    let mut waiting = interleave(addresses);
    let mut trying = JoinSet::new();
    let mut failure = ConnectFailure::Timeout;
    loop {
        if let Some(address) = waiting.pop_front() {
            trying.spawn(TcpStream::connect(SocketAddr::new(address, port)));
        }
        let more = !waiting.is_empty();
        let ended = tokio::select! {
            ended = trying.join_next() => ended,
            () = tokio::time::sleep(STAGGER), if more => continue,
        };
        match ended {
            Some(Ok(Ok(stream))) => {
                // Small requests must not wait for one another's acknowledgement; if it cannot be set it is only slower.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Some(Ok(Err(error))) => failure = name(&error),
            Some(Err(_)) => {}
            None if !more => return Err(failure),
            None => {}
        }
    }
}

/// IPv6 first, then the families in turn (RFC 8305 section 4).
fn interleave(addresses: Vec<IpAddr>) -> VecDeque<IpAddr> {
    let (v6, v4): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut order = VecDeque::new();
    loop {
        let before = order.len();
        order.extend(v6.next());
        order.extend(v4.next());
        if order.len() == before {
            order.truncate(ADDRESSES_MAX);
            return order;
        }
    }
}

/// Unreachable counts as refused: somebody on the way said no.
fn name(error: &io::Error) -> ConnectFailure {
    match error.kind() {
        _ if descriptors::lacking(error) => ConnectFailure::NoDescriptor,
        io::ErrorKind::TimedOut => ConnectFailure::Timeout,
        _ => ConnectFailure::Refused,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let order = interleave(parse(&["1.1.1.1", "2.2.2.2", "3.3.3.3", "::1", "::2"]));
        assert_eq!(Vec::from(order), parse(&["::1", "1.1.1.1", "::2", "2.2.2.2", "3.3.3.3"]));
    }

    #[test]
    fn a_lack_of_descriptors_is_no_fault_of_the_other_end() {
        let named = |errno: nix::errno::Errno| name(&io::Error::from_raw_os_error(errno as i32));
        assert_eq!(named(nix::errno::Errno::EMFILE), ConnectFailure::NoDescriptor);
        assert_eq!(named(nix::errno::Errno::ENFILE), ConnectFailure::NoDescriptor);
        assert_eq!(named(nix::errno::Errno::ECONNREFUSED), ConnectFailure::Refused);
    }

    #[tokio::test]
    async fn a_refusing_address_does_not_hide_a_good_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.1"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(race(addresses, port).await.unwrap().peer_addr().unwrap().ip().to_string(), "127.0.0.1");
        let addresses = ["127.0.0.2", "127.0.0.3"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(race(addresses, port).await.unwrap_err(), ConnectFailure::Refused);
    }
}
