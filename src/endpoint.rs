//! The endpoints that the daemon takes (docs/design.md 6.1): text -> checked [`Endpoint`] and the service it belongs to.
//!
//! Promises: an endpoint that leaves this module is https, without userinfo and fragment, at most 2 KiB, in one canonical
//! form, and its host is let in by the policy, compared label by label. Where a name leads is not known here: addresses are
//! checked when a connection is made. Text that the URL standard would quietly mend (tabs, backslashes, percent signs in a
//! host, a missing slash) is refused: what an application stored in that form came from no browser.

use std::fmt;
use std::net::IpAddr;

use bytes::Bytes;
use url::{Host, Url};

use crate::limits::ENDPOINT_MAX;
use crate::message::{Endpoint, Service};

/// The push services that everybody may use: they and their subdomains on port 443 (docs/push-services.md 3.1 to 3.4).
const KNOWN: [(&str, Service); 5] = [
    ("fcm.googleapis.com", Service::FCM),
    ("jmt17.google.com", Service::FCM),
    ("push.services.mozilla.com", Service::MOZILLA),
    ("push.apple.com", Service::APPLE),
    ("notify.windows.com", Service::WNS),
];

/// The host of the endpoint that Chrome gives to a subscription that will never work again (docs/push-services.md 3.5).
const REMOVED: &str = "permanently-removed.invalid";

/// Names that lead to no public host: special-use (RFC 6761, 6762, 7686, 8375, 9476), reserved for private use by ICANN
/// (`internal`), or never delegated because private networks use them.
const NOT_PUBLIC: [&str; 17] = [
    "localhost",
    "local",
    "localdomain",
    "invalid",
    "test",
    "example",
    "onion",
    "alt",
    "arpa",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "host",
    "workgroup",
];

/// `endpoints.policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// The known push services and `allow_hosts`.
    Known,
    /// Any public host.
    Public,
}

/// An entry of `endpoints.allow_hosts`: that host and its subdomains; with a port only that port, else any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost {
    /// Lower case, no trailing dot; an IPv6 address without brackets.
    pub host: String,
    pub port: Option<u16>,
}

/// `endpoints.policy` and `endpoints.allow_hosts`, made ready for comparing.
#[derive(Clone, Debug)]
pub struct EndpointPolicy {
    policy: Policy,
    /// The most particular entry first: more labels before fewer, with a port before without.
    allowed: Vec<Allowed>,
}

#[derive(Clone, Debug)]
struct Allowed {
    name: String,
    /// Set if the entry is an address.
    address: Option<IpAddr>,
    port: Option<u16>,
    service: Service,
    text: String,
}

impl EndpointPolicy {
    /// `allowed` names the entries of `allow_hosts`, each with the number that the store keeps for it.
    pub fn new(policy: Policy, allowed: Vec<(AllowedHost, Service)>) -> EndpointPolicy {
        let mut allowed: Vec<Allowed> = allowed
            .into_iter()
            .map(|(entry, service)| Allowed {
                address: entry.host.parse().ok(),
                port: entry.port,
                service,
                text: entry.to_string(),
                name: entry.host,
            })
            .collect();
        allowed.sort_by_key(|entry| std::cmp::Reverse((entry.name.split('.').count(), entry.port.is_some())));
        EndpointPolicy { policy, allowed }
    }

    /// Checks an endpoint as a browser gave it. The result is in canonical form: host in lower case, port 443 left out.
    pub fn check(&self, text: &str) -> Result<(Endpoint, Service), EndpointProblem> {
        match read_plain(text) {
            Some(plain) => {
                let service = self.judge(Host::Domain(plain.host), plain.port)?;
                Ok((Endpoint::from_checked(Bytes::copy_from_slice(text.as_bytes()), plain.origin_len), service))
            }
            None => self.check_any(text),
        }
    }

    /// The service's name for events, metrics and `origins`: an entry of `allow_hosts` is named by its text. None if no entry
    /// has the number any more.
    pub fn service_name(&self, service: Service) -> Option<&str> {
        known_service_name(service)
            .or_else(|| self.allowed.iter().find(|entry| entry.service == service).map(|entry| entry.text.as_str()))
    }

    /// Any text, by way of the URL standard. [`read_plain`] is a shorter way to the same end for the common form.
    fn check_any(&self, text: &str) -> Result<(Endpoint, Service), EndpointProblem> {
        if text.len() > ENDPOINT_MAX {
            return Err(EndpointProblem::TooLong);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\') {
            return Err(EndpointProblem::Character);
        }
        let rest = match text.split_at_checked("https://".len()) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https://") && !rest.starts_with('/') => rest,
            _ => return Err(EndpointProblem::NotHttps),
        };
        if text.contains('#') {
            return Err(EndpointProblem::Fragment);
        }
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(EndpointProblem::UserInfo);
        }
        if authority.contains('%') {
            return Err(EndpointProblem::NotAUrl);
        }
        let url = Url::parse(text).map_err(|_| EndpointProblem::NotAUrl)?;
        let port = url.port().unwrap_or(443);
        let service = self.judge(url.host().ok_or(EndpointProblem::NotAUrl)?, port)?;
        let origin_len = url[..url::Position::AfterPort].len();
        let text = String::from(url);
        if text.len() > ENDPOINT_MAX {
            return Err(EndpointProblem::TooLong);
        }
        let origin_len = u16::try_from(origin_len).map_err(|_| EndpointProblem::TooLong)?;
        Ok((Endpoint::from_checked(Bytes::from(text), origin_len), service))
    }

    /// Which service a host and port belong to, if they are let in.
    fn judge(&self, host: Host<&str>, port: u16) -> Result<Service, EndpointProblem> {
        if port == 0 {
            return Err(EndpointProblem::NotAUrl);
        }
        match host {
            Host::Domain(name) => self.judge_name(name, port),
            Host::Ipv4(address) => self.judge_address(address.into(), port),
            Host::Ipv6(address) => self.judge_address(address.into(), port),
        }
    }

    fn judge_name(&self, name: &str, port: u16) -> Result<Service, EndpointProblem> {
        if name == REMOVED {
            return Err(EndpointProblem::Removed);
        }
        // RFC 1035 section 2.3.4. An empty label is a dot too many: at the end it would make another origin of the same host.
        if name.len() > 253 || name.split('.').any(|label| label.is_empty() || label.len() > 63) {
            return Err(EndpointProblem::NotAUrl);
        }
        let known = KNOWN.iter().find(|(known, _)| is_or_is_below(name, known));
        if let Some((_, service)) = known
            && port == 443
        {
            return Ok(*service);
        }
        let mut named = known.is_some();
        for entry in self.allowed.iter().filter(|entry| entry.address.is_none() && is_or_is_below(name, &entry.name)) {
            if entry.port.is_none_or(|allowed| allowed == port) {
                return Ok(entry.service);
            }
            named = true;
        }
        match self.policy {
            Policy::Known if named => Err(EndpointProblem::Port),
            Policy::Known => Err(EndpointProblem::Host),
            Policy::Public if is_public_name(name) => Ok(Service::OTHER),
            Policy::Public => Err(EndpointProblem::NotPublic),
        }
    }

    fn judge_address(&self, address: IpAddr, port: u16) -> Result<Service, EndpointProblem> {
        let mut named = false;
        for entry in self.allowed.iter().filter(|entry| entry.address == Some(address)) {
            if entry.port.is_none_or(|allowed| allowed == port) {
                return Ok(entry.service);
            }
            named = true;
        }
        match self.policy {
            Policy::Known if named => Err(EndpointProblem::Port),
            Policy::Known => Err(EndpointProblem::Host),
            // Special ranges are refused when the connection is made, where `allow_networks` is known.
            Policy::Public => Ok(Service::OTHER),
        }
    }
}

/// The name of a service whose number is fixed.
pub fn known_service_name(service: Service) -> Option<&'static str> {
    match service {
        Service::OTHER => Some("other"),
        Service::FCM => Some("fcm"),
        Service::MOZILLA => Some("mozilla"),
        Service::APPLE => Some("apple"),
        Service::WNS => Some("wns"),
        _ => None,
    }
}

/// Whether a name (lower case) can be one of the public DNS at all: it has at least two labels and lies in no zone reserved for
/// other uses.
pub fn is_public_name(name: &str) -> bool {
    name.contains('.') && !NOT_PUBLIC.iter().any(|private| is_or_is_below(name, private))
}

/// What is wrong with an endpoint. Its `Display` is one sentence for the person who writes the client, and shows nothing of the
/// endpoint, which is a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointProblem {
    TooLong,
    Character,
    NotHttps,
    Fragment,
    UserInfo,
    NotAUrl,
    Removed,
    Host,
    Port,
    NotPublic,
}

impl fmt::Display for EndpointProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EndpointProblem::TooLong => "an endpoint has at most 2,048 bytes",
            EndpointProblem::Character => "an endpoint consists of visible ASCII characters without backslashes",
            EndpointProblem::NotHttps => "an endpoint starts with https:// and a host",
            EndpointProblem::Fragment => "an endpoint has no fragment (#)",
            EndpointProblem::UserInfo => "an endpoint has no user name or password",
            EndpointProblem::NotAUrl => "the endpoint has no valid host and port",
            EndpointProblem::Removed => "the browser's subscription was removed for good and has to be made anew",
            EndpointProblem::Host => "the host is no known push service and not in endpoints.allow_hosts",
            EndpointProblem::Port => "the port is not allowed for this host",
            EndpointProblem::NotPublic => "the host is not a public one and not in endpoints.allow_hosts",
        })
    }
}

impl std::error::Error for EndpointProblem {}

/// `host`, `host:port`, `[address]` or `[address]:port`, as in `endpoints.allow_hosts`.
impl fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.contains(':'), self.port) {
            (false, None) => write!(f, "{}", self.host),
            (false, Some(port)) => write!(f, "{}:{port}", self.host),
            (true, None) => write!(f, "[{}]", self.host),
            (true, Some(port)) => write!(f, "[{}]:{port}", self.host),
        }
    }
}

/// Whether `name` is `zone` or a subdomain of it: whole labels are compared, so `evilpush.apple.com` is no `push.apple.com`.
fn is_or_is_below(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

/// An endpoint that is canonical as it stands.
struct Plain<'a> {
    host: &'a str,
    port: u16,
    origin_len: u16,
}

/// Reads the form in which every push service gives its endpoints. None means "not so plain", never "wrong". It takes only
/// what the URL standard leaves as it is:
/// - in the host lower-case letters, digits, dots and single hyphens, with a last label that starts with a letter, so that it
///   is no IPv4 address in disguise and no punycode to be validated;
/// - in the path characters that are not encoded, no percent sign and no segment that starts with a dot, so that it holds no
///   `..` in any spelling;
/// - in the query characters that are not encoded.
fn read_plain(text: &str) -> Option<Plain<'_>> {
    if text.len() > ENDPOINT_MAX {
        return None;
    }
    let rest = text.strip_prefix("https://")?;
    let bytes = rest.as_bytes();

    let host_len = bytes.iter().position(|byte| matches!(byte, b'/' | b':'))?;
    let host = &bytes[..host_len];
    let mut previous = b'.';
    let mut label_starts_with = 0;
    for &byte in host {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => {
                if previous == b'.' {
                    label_starts_with = byte;
                }
            }
            b'-' if previous != b'.' && previous != b'-' => {}
            b'.' if previous != b'.' && previous != b'-' => {}
            _ => return None,
        }
        previous = byte;
    }
    if previous == b'.' || previous == b'-' || !label_starts_with.is_ascii_lowercase() {
        return None;
    }

    let mut path_at = host_len;
    let mut port = 443;
    if bytes[host_len] == b':' {
        let digits = bytes[host_len + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        let text = &rest[host_len + 1..host_len + 1 + digits];
        port = text.parse().ok()?;
        path_at += 1 + digits;
        if text.starts_with('0') || port == 443 || bytes.get(path_at) != Some(&b'/') {
            return None;
        }
    }

    let behind = &bytes[path_at..];
    // Most are: looked at without an early end, because that takes a third of the time.
    let all_plain = behind.iter().fold(0, |met, byte| met | PLAIN[usize::from(*byte)] as u8) == Class::Plain as u8;
    if !all_plain {
        let mut previous = 0;
        let mut in_query = false;
        for &byte in behind {
            match PLAIN[usize::from(byte)] {
                Class::Plain => {}
                Class::Dot if previous != b'/' || in_query => {}
                Class::Percent if in_query => {}
                Class::Question => in_query = true,
                _ => return None,
            }
            previous = byte;
        }
    }
    let origin_len = u16::try_from("https://".len() + path_at).ok()?;
    Some(Plain { host: &rest[..host_len], port, origin_len })
}

#[derive(Clone, Copy)]
enum Class {
    /// Left as it is in path and query.
    Plain = 0,
    Dot,
    Percent,
    Question,
    /// Everything that needs the URL standard.
    Other,
}

/// How [`read_plain`] takes each byte behind the origin.
const PLAIN: [Class; 256] = {
    let mut table = [Class::Other; 256];
    let plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~:/=+,@&;!$*()";
    let mut n = 0;
    while n < plain.len() {
        table[plain[n] as usize] = Class::Plain;
        n += 1;
    }
    table[b'.' as usize] = Class::Dot;
    table[b'%' as usize] = Class::Percent;
    table[b'?' as usize] = Class::Question;
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(text: &str, port: Option<u16>) -> AllowedHost {
        AllowedHost { host: text.to_owned(), port }
    }

    fn policy(policy: Policy) -> EndpointPolicy {
        EndpointPolicy::new(
            policy,
            vec![
                (host("push.example.net", None), Service(16)),
                (host("special.push.example.net", Some(8443)), Service(17)),
                (host("127.0.0.1", Some(4430)), Service(18)),
                (host("::1", None), Service(19)),
                (host("localhost", None), Service(20)),
                (host("permanently-removed.invalid", None), Service(21)),
            ],
        )
    }

    fn known(text: &str) -> Result<(String, Service), EndpointProblem> {
        policy(Policy::Known).check(text).map(|(endpoint, service)| (endpoint.as_str().to_owned(), service))
    }

    #[test]
    fn known_services_and_their_subdomains() {
        for (text, service, origin) in [
            ("https://fcm.googleapis.com/fcm/send/dQw4:APA91b-_x", Service::FCM, "https://fcm.googleapis.com"),
            ("https://jmt17.google.com/fcm/send/abc:APA91b", Service::FCM, "https://jmt17.google.com"),
            (
                "https://updates.push.services.mozilla.com/wpush/v2/gAAA=",
                Service::MOZILLA,
                "https://updates.push.services.mozilla.com",
            ),
            ("https://web.push.apple.com/QGuQyavXutnMH", Service::APPLE, "https://web.push.apple.com"),
            ("https://push.apple.com/x", Service::APPLE, "https://push.apple.com"),
            (
                "https://wns2-par02p.notify.windows.com/w/?token=BQYAAAB%2fz%2b",
                Service::WNS,
                "https://wns2-par02p.notify.windows.com",
            ),
        ] {
            let (endpoint, found) = policy(Policy::Known).check(text).expect(text);
            assert_eq!((endpoint.as_str(), found, endpoint.origin_str()), (text, service, origin));
            assert!(read_plain(text).is_some(), "{text} takes the short way");
        }
    }

    #[test]
    fn canonical_form() {
        let fcm = |text: &str| Ok((text.to_owned(), Service::FCM));
        assert_eq!(known("HTTPS://FCM.GoogleAPIs.com:443/fcm/send/AbC"), fcm("https://fcm.googleapis.com/fcm/send/AbC"));
        assert_eq!(known("https://fcm.googleapis.com:0443/x"), fcm("https://fcm.googleapis.com/x"));
        assert_eq!(known("https://fcm.googleapis.com"), fcm("https://fcm.googleapis.com/"));
        assert_eq!(known("https://fcm.googleapis.com?a"), fcm("https://fcm.googleapis.com/?a"));
        assert_eq!(known("https://fcm.googleapis.com/a/../b/%2e%2E/c"), fcm("https://fcm.googleapis.com/c"));
        assert_eq!(known("https://fcm.googleapis.com/%7Bx%7d{}"), fcm("https://fcm.googleapis.com/%7Bx%7d%7B%7D"));
        assert_eq!(known("https://127.1:4430/x"), Ok(("https://127.0.0.1:4430/x".to_owned(), Service(18))));
        let (endpoint, _) = policy(Policy::Known).check("https://[0:0::1]:8443/x").expect("named in allow_hosts");
        assert_eq!((endpoint.as_str(), endpoint.origin_str()), ("https://[::1]:8443/x", "https://[::1]:8443"));
    }

    #[test]
    fn labels_are_compared_not_text() {
        for text in [
            "https://evilpush.apple.com/x",
            "https://push.apple.com.evil.net/x",
            "https://apple.com/x",
            "https://xfcm.googleapis.com/x",
            "https://googleapis.com/x",
            "https://notify.windows.com.evil.net/w/",
            "https://fcm.googleapis.com.evil/x",
            "https://fcm-googleapis.com/x",
            "https://notpush.example.net/x",
            "https://example.net/x",
            "https://127.0.0.2:4430/x",
            "https://10.0.0.1/x",
            "https://2130706434/x",
            "https://[::2]/x",
            "https://127.0.0.1.evil.net/x",
        ] {
            assert_eq!(known(text), Err(EndpointProblem::Host), "{text}");
        }
    }

    #[test]
    fn ports() {
        assert_eq!(known("https://fcm.googleapis.com:8443/x"), Err(EndpointProblem::Port));
        assert_eq!(known("https://127.0.0.1/x"), Err(EndpointProblem::Port));
        assert_eq!(known("https://fcm.googleapis.com:0/x"), Err(EndpointProblem::NotAUrl));
        assert_eq!(known("https://localhost:0/x"), Err(EndpointProblem::NotAUrl));
        assert_eq!(known("https://fcm.googleapis.com:65536/x"), Err(EndpointProblem::NotAUrl));
        assert_eq!(known("https://fcm.googleapis.com:44a/x"), Err(EndpointProblem::NotAUrl));
        assert_eq!(known("https://push.example.net:1/x").map(|found| found.1), Ok(Service(16)));
        assert_eq!(known("https://push.example.net/x").map(|found| found.1), Ok(Service(16)));
        assert_eq!(known("https://a.special.push.example.net:8443/x").map(|found| found.1), Ok(Service(17)));
        assert_eq!(known("https://special.push.example.net:8444/x").map(|found| found.1), Ok(Service(16)));
        assert_eq!(known("https://localhost:4430/x").map(|found| found.1), Ok(Service(20)));
    }

    #[test]
    fn what_a_url_parser_would_mend_is_refused() {
        use EndpointProblem::*;
        for (text, problem) in [
            ("", NotHttps),
            ("https", NotHttps),
            ("https://", NotAUrl),
            ("https:///fcm.googleapis.com/x", NotHttps),
            ("https:fcm.googleapis.com/x", NotHttps),
            ("https:/fcm.googleapis.com/x", NotHttps),
            ("https:\\\\fcm.googleapis.com/x", Character),
            ("https://fcm.googleapis.com\\x", Character),
            ("https://fcm.googleapis.com/\\x", Character),
            ("http://fcm.googleapis.com/x", NotHttps),
            ("//fcm.googleapis.com/x", NotHttps),
            ("ftp://fcm.googleapis.com/x", NotHttps),
            (" https://fcm.googleapis.com/x", Character),
            ("https://fcm.googleapis.com/x\n", Character),
            ("https://fcm.goo\tgleapis.com/x", Character),
            ("ht\ntps://fcm.googleapis.com/x", Character),
            ("https://fcm.googleapis.com/a b", Character),
            ("https://fcm.googleapis.com/ż", Character),
            ("https://ｆcm.googleapis.com/x", Character),
            ("https://fcm.googleapis.com/\u{7f}", Character),
            ("https://fcm.googleapis.com/\0", Character),
            ("https://fcm.googleapis.com/x#y", Fragment),
            ("https://fcm.googleapis.com/x#", Fragment),
            ("https://user@fcm.googleapis.com/x", UserInfo),
            ("https://user:pass@fcm.googleapis.com/x", UserInfo),
            ("https://@fcm.googleapis.com/x", UserInfo),
            ("https://fcm.googleapis.com:443@evil.net/x", UserInfo),
            ("https://%66cm.googleapis.com/x", NotAUrl),
            ("https://fcm.googleapis.com%2fevil.net/x", NotAUrl),
            ("https://fcm.googleapis.com./x", NotAUrl),
            ("https://fcm..googleapis.com/x", NotAUrl),
            ("https://.fcm.googleapis.com/x", NotAUrl),
            ("https://xn--a.fcm.googleapis.com/x", NotAUrl),
            ("https://[::1/x", NotAUrl),
            ("https://[::1%25eth0]/x", NotAUrl),
            ("https://a<b.fcm.googleapis.com/x", NotAUrl),
            ("https://1.2.3.4.5/x", NotAUrl),
            ("https://permanently-removed.invalid/fcm/send/x", Removed),
            ("https://PERMANENTLY-removed.invalid/fcm/send/x", Removed),
        ] {
            assert_eq!(known(text), Err(problem), "{text:?}");
            assert!(policy(Policy::Public).check(text).is_err(), "{text:?}");
        }
        assert_eq!(known(&format!("https://{}.push.apple.com/x", "a".repeat(64))), Err(NotAUrl));
        assert_eq!(known(&format!("https://{}push.apple.com/x", "a.".repeat(120))), Err(NotAUrl));
    }

    #[test]
    fn length() {
        let start = "https://fcm.googleapis.com/";
        let of = |length: usize| format!("{start}{}", "a".repeat(length - start.len()));
        assert!(known(&of(2_048)).is_ok());
        assert_eq!(known(&of(2_049)), Err(EndpointProblem::TooLong));
        assert_eq!(known(&of(1 << 20)), Err(EndpointProblem::TooLong));
        let grows = format!("{start}{}", "{".repeat(1_000));
        assert_eq!(known(&grows), Err(EndpointProblem::TooLong), "each brace becomes three bytes");
    }

    #[test]
    fn the_policy_public_takes_public_hosts() {
        let public = policy(Policy::Public);
        for text in ["https://push.example.com/x", "https://93.184.215.14/x", "https://ntfy.sh:8443/up?x=1", "https://10.0.0.1/x"]
        {
            assert_eq!(public.check(text).map(|found| found.1), Ok(Service::OTHER), "{text}");
        }
        assert_eq!(public.check("https://fcm.googleapis.com/x").map(|found| found.1), Ok(Service::FCM));
        assert_eq!(public.check("https://fcm.googleapis.com:8443/x").map(|found| found.1), Ok(Service::OTHER));
        assert_eq!(public.check("https://localhost/x").map(|found| found.1), Ok(Service(20)), "named in allow_hosts");
        let bare = EndpointPolicy::new(Policy::Public, Vec::new());
        for text in [
            "https://localhost/x",
            "https://a.localhost/x",
            "https://printer/x",
            "https://printer.local/x",
            "https://a.invalid/x",
            "https://db.internal/x",
            "https://a.home.arpa/x",
            "https://a.lan/x",
        ] {
            assert_eq!(bare.check(text).map(|found| found.1), Err(EndpointProblem::NotPublic), "{text}");
        }
    }

    #[test]
    fn names_of_services() {
        let policy = policy(Policy::Known);
        let names: Vec<_> = [0, 1, 2, 3, 4, 5, 16, 17, 18, 19, 22].map(|n| policy.service_name(Service(n))).into();
        let expected = [
            "other",
            "fcm",
            "mozilla",
            "apple",
            "wns",
            "",
            "push.example.net",
            "special.push.example.net:8443",
            "127.0.0.1:4430",
            "[::1]",
            "",
        ];
        assert_eq!(names, expected.map(|name| Some(name).filter(|name| !name.is_empty())));
    }

    proptest! {
        /// The short way and the URL standard agree on every text that the short way takes.
        #[test]
        fn both_ways_agree(
            host in r"([a-z0-9-]{1,6}\.){0,3}(fcm\.googleapis\.com|push\.apple\.com|[a-z0-9-]{1,4}|xn--[a-z0-9]{1,4}|0x[0-9a-f]{1,3})",
            port in r"(:[0-9]{0,5})?",
            path in r"(/[A-Za-z0-9._~:=+,@%&;!$*()'{}^|?/-]{0,12}){0,4}",
        ) {
            let text = format!("https://{host}{port}{path}");
            for policy in [policy(Policy::Known), policy(Policy::Public)] {
                let show = |found: Result<(Endpoint, Service), EndpointProblem>| {
                    found.map(|(endpoint, service)| (endpoint.as_str().to_owned(), endpoint.origin_len(), service))
                };
                prop_assert_eq!(show(policy.check(&text)), show(policy.check_any(&text)), "{}", text);
            }
        }

        #[test]
        fn what_is_taken_stays_as_it_is(text in r"(https://)?[ -~]{0,40}") {
            if let Ok((endpoint, service)) = policy(Policy::Public).check(&text) {
                let (again, same) = policy(Policy::Public).check(endpoint.as_str()).expect("canonical form is taken again");
                prop_assert_eq!((again.as_str(), again.origin_len(), same), (endpoint.as_str(), endpoint.origin_len(), service));
                prop_assert!(endpoint.path_and_query().starts_with(b"/"));
            }
        }

        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            let _ = policy(Policy::Public).check(&text);
        }
    }
}
