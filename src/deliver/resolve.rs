//! Names to addresses: /etc/hosts first, then the name servers of /etc/resolv.conf, asked for both families at once.
//!
//! Both files are read again when they change, so that a machine whose network comes up after the daemon needs no restart. A
//! missing /etc/resolv.conf is no error: the name server is then the one of this host, as in the C library.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

use crate::complaint::Complaint;
use crate::descriptors;
use crate::message::ConnectFailure;

/// When one family has answered, how long the other is waited for. Longer than the 50 ms of RFC 8305 section 3: nobody watches
/// a progress bar here, and the first family may be the broken one.
const OTHER_FAMILY: Duration = Duration::from_millis(500);
/// One question to one name server, and how often it is asked: together well below the time a connection may take.
const QUESTION: Duration = Duration::from_secs(2);
const QUESTIONS: usize = 2;
/// How long an answer is believed at most, whatever its TTL says.
const BELIEVED: Duration = Duration::from_secs(300);
/// The same for "there is no such name", which is what a probe of a closed lane waits to see changed.
const DISBELIEVED: Duration = Duration::from_secs(10);

static NO_SERVERS: Complaint = Complaint::each_minute();
static NO_RESOLVER: Complaint = Complaint::each_minute();

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Resolves names; shared by all connections.
pub(super) struct Resolver {
    current: Mutex<Option<Current>>,
    /// Instead of the system's configuration; for tests.
    fixed: Option<ResolverConfig>,
}

#[derive(Clone)]
struct Current {
    read: [Option<SystemTime>; 2],
    dns: Arc<TokioResolver>,
    hosts: Arc<Hosts>,
}

impl Resolver {
    /// Reads nothing yet.
    pub(super) fn new() -> Resolver {
        Resolver { current: Mutex::new(None), fixed: None }
    }

    #[cfg(test)]
    fn asking(server: std::net::SocketAddr) -> Resolver {
        let mut config = NameServerConfig::udp(server.ip());
        config.connections[0].port = server.port();
        Resolver { current: Mutex::new(None), fixed: Some(ResolverConfig::from_parts(None, Vec::new(), vec![config])) }
    }

    /// All addresses of `host` in no particular order, at least one. [`ConnectFailure::NoSuchHost`] only where a name server
    /// says so (NXDOMAIN); everything else that gives no address is [`ConnectFailure::Resolve`].
    pub(super) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, ConnectFailure> {
        let Current { dns, hosts, .. } = self.current()?;
        let mut name = Name::from_str(host).map_err(|_| ConnectFailure::NoSuchHost)?;
        let written: Vec<IpAddr> = [RecordType::A, RecordType::AAAA]
            .into_iter()
            .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
            .flat_map(|found| ips(&found))
            .collect();
        if !written.is_empty() {
            return Ok(written);
        }
        // A name with a dot is taken as it stands. The search list could turn a push service's name into another one.
        name.set_fqdn(host.contains('.'));

        let v4 = dns.ipv4_lookup(name.clone());
        let v6 = dns.ipv6_lookup(name);
        tokio::pin!(v4, v6);
        let (first, other) = tokio::select! {
            first = &mut v4 => {
                let wait = patience(&first);
                (first, tokio::time::timeout(wait, v6).await)
            }
            first = &mut v6 => {
                let wait = patience(&first);
                (first, tokio::time::timeout(wait, v4).await)
            }
        };
        let answers: Vec<Result<Lookup, NetError>> = [Some(first), other.ok()].into_iter().flatten().collect();
        let found: Vec<IpAddr> = answers.iter().flatten().flat_map(ips).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let lacking =
            |answer: &Result<Lookup, NetError>| matches!(answer, Err(NetError::Io(error)) if descriptors::lacking(error));
        if answers.iter().any(lacking) {
            return Err(ConnectFailure::NoDescriptor);
        }
        let unknown = answers.iter().any(|answer| answer.as_ref().is_err_and(NetError::is_nx_domain));
        Err(if unknown { ConnectFailure::NoSuchHost } else { ConnectFailure::Resolve })
    }

    fn current(&self) -> Result<Current, ConnectFailure> {
        let changed = |path| Path::new(path).metadata().and_then(|metadata| metadata.modified()).ok();
        let read = [changed(HOSTS), changed(RESOLV_CONF)];
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = current.as_ref().filter(|current| current.read == read) {
            return Ok(current.clone());
        }
        let (config, mut options) = match &self.fixed {
            Some(config) => (config.clone(), ResolverOpts::default()),
            None => hickory_resolver::system_conf::read_system_conf().or_else(|error| {
                if matches!(&error, NetError::Io(error) if descriptors::lacking(error)) {
                    return Err(ConnectFailure::NoDescriptor);
                }
                if let Some(left_out) = NO_SERVERS.tell() {
                    tracing::info!(%error, left_out, "no name servers in {RESOLV_CONF}: asking this host");
                }
                let this_host = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
                Ok((ResolverConfig::from_parts(None, Vec::new(), vec![this_host]), ResolverOpts::default()))
            })?,
        };
        options.use_hosts_file = ResolveHosts::Never; // looked up above, both families together
        options.timeout = options.timeout.min(QUESTION);
        options.attempts = options.attempts.min(QUESTIONS);
        options.positive_max_ttl = Some(BELIEVED);
        options.negative_max_ttl = Some(DISBELIEVED);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options;
        let dns = builder.build().map_err(|error| {
            if let Some(left_out) = NO_RESOLVER.tell() {
                tracing::warn!(%error, left_out, "the resolver cannot be set up");
            }
            ConnectFailure::Resolve
        })?;
        let hosts = match Hosts::from_system() {
            // What is read now is believed until the file changes.
            Err(error) if descriptors::lacking(&error) => return Err(ConnectFailure::NoDescriptor),
            read => read.unwrap_or_default(),
        };
        Ok(current.insert(Current { read, dns: Arc::new(dns), hosts: Arc::new(hosts) }).clone())
    }
}

fn ips(found: &Lookup) -> Vec<IpAddr> {
    found.answers().iter().filter_map(|record| record.data.ip_addr()).collect()
}

/// How long to wait for the other family: a little after an answer, as long as it takes after none.
fn patience(first: &Result<Lookup, NetError>) -> Duration {
    if first.as_ref().is_ok_and(|found| !ips(found).is_empty()) { OTHER_FAMILY } else { QUESTION * 2 * QUESTIONS as u32 }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::net::UdpSocket;

    use super::*;

    /// A name server that answers A with `a` (or with that response code), and AAAA with nothing, or not at all.
    async fn name_server(code: u8, a: Option<[u8; 4]>, answers_aaaa: bool) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((read, from)) = socket.recv_from(&mut buffer).await {
                let question_end = 12 + buffer[12..read].iter().position(|&byte| byte == 0).unwrap() + 5;
                let aaaa = buffer[question_end - 3] == 28;
                if aaaa && !answers_aaaa {
                    continue;
                }
                let mut answer = buffer[..question_end].to_vec();
                answer[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, 0, 0, 0, 0, 0]);
                if let (Some(a), false) = (a, aaaa) {
                    answer[7] = 1;
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                    answer.extend(a);
                }
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        address
    }

    async fn resolve(server: SocketAddr, host: &str) -> Result<Vec<IpAddr>, ConnectFailure> {
        Resolver::asking(server).addresses(host).await
    }

    #[tokio::test]
    async fn an_address_is_found() {
        let server = name_server(0, Some([192, 0, 2, 7]), true).await;
        assert_eq!(resolve(server, "push.example").await, Ok(vec!["192.0.2.7".parse().unwrap()]));
    }

    #[tokio::test]
    async fn one_family_does_not_wait_for_a_silent_other_one() {
        let server = name_server(0, Some([192, 0, 2, 7]), false).await;
        let start = std::time::Instant::now();
        assert_eq!(resolve(server, "push.example").await, Ok(vec!["192.0.2.7".parse().unwrap()]));
        assert!(start.elapsed() < OTHER_FAMILY + Duration::from_millis(500));
    }

    #[tokio::test]
    async fn a_name_that_does_not_exist_is_told_from_a_failure() {
        assert_eq!(resolve(name_server(3, None, true).await, "push.example").await, Err(ConnectFailure::NoSuchHost));
        assert_eq!(resolve(name_server(2, None, true).await, "push.example").await, Err(ConnectFailure::Resolve));
        assert_eq!(resolve(name_server(0, None, true).await, "push.example").await, Err(ConnectFailure::Resolve));
    }

    #[tokio::test]
    async fn the_hosts_file_counts() {
        // Every Linux host has this line; the name server would say that there is no such name.
        if std::fs::read_to_string(HOSTS).is_ok_and(|text| text.contains("localhost")) {
            let found = resolve(name_server(3, None, true).await, "localhost").await.unwrap();
            assert!(found.iter().all(IpAddr::is_loopback));
        }
    }
}
