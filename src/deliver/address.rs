//! The addresses that the daemon may connect to (docs/design.md 6.1). Pure.
//!
//! A subscription is text from a stranger's browser, so its host may resolve to anything: the check is made on the very
//! address that is connected to, after resolution, or a name could point to a neighbour of the daemon.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// True if `address` lies in none of the IANA special-purpose registries and is a unicast address, or if one of `allow`
/// contains it. An IPv4 network of `allow` says nothing about IPv4-mapped IPv6 addresses, nor about those of NAT64 or 6to4
/// that carry the same IPv4 address: they have networks of their own, which the operator may name.
pub fn permitted(address: IpAddr, allow: &[IpNet]) -> bool {
    if allow.iter().any(|network| network.contains(&address)) {
        return true;
    }
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|network| network.contains(&address)),
        // All of the registry's rows outside 2000::/3 (loopback, mapped, NAT64, ULA, link-local, multicast) and everything that
        // IANA has not given out for global unicast at all.
        IpAddr::V6(address) => {
            GLOBAL_UNICAST_V6.contains(&address) && !SPECIAL_V6.iter().any(|network| network.contains(&address))
        }
    }
}

/// IANA IPv4 Special-Purpose Address Registry (RFC 6890 and later), and what is no unicast address.
const SPECIAL_V4: [Ipv4Net; 17] = [
    v4([0, 0, 0, 0], 8),       // "this network", RFC 791
    v4([10, 0, 0, 0], 8),      // private, RFC 1918
    v4([100, 64, 0, 0], 10),   // shared address space of carriers, RFC 6598
    v4([127, 0, 0, 0], 8),     // loopback, RFC 1122
    v4([169, 254, 0, 0], 16),  // link-local, and the metadata services of clouds, RFC 3927
    v4([172, 16, 0, 0], 12),   // private, RFC 1918
    v4([192, 0, 0, 0], 24),    // IETF protocol assignments, RFC 6890
    v4([192, 0, 2, 0], 24),    // documentation, RFC 5737
    v4([192, 31, 196, 0], 24), // AS112, RFC 7535
    v4([192, 52, 193, 0], 24), // AMT, RFC 7450
    v4([192, 88, 99, 0], 24),  // 6to4 relays, RFC 7526
    v4([192, 168, 0, 0], 16),  // private, RFC 1918
    v4([192, 175, 48, 0], 24), // AS112, RFC 7534
    v4([198, 18, 0, 0], 15),   // benchmarking, RFC 2544
    v4([198, 51, 100, 0], 24), // documentation, RFC 5737
    v4([203, 0, 113, 0], 24),  // documentation, RFC 5737
    v4([224, 0, 0, 0], 3),     // multicast (224/4), reserved (240/4) and limited broadcast, RFC 1112, 8190
];

const GLOBAL_UNICAST_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// IANA IPv6 Special-Purpose Address Registry, the rows inside 2000::/3.
const SPECIAL_V6: [Ipv6Net; 5] = [
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // IETF protocol assignments: Teredo, benchmarking, ORCHID, …, RFC 2928
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), // documentation, RFC 3849
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), // 6to4: any IPv4 address inside, RFC 3056
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48), // AS112, RFC 7534
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), // documentation, RFC 9637
];

const fn v4(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]), prefix)
}

const fn v6(s: [u16; 8], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, allow: &[&str]) -> bool {
        let allow: Vec<IpNet> = allow.iter().map(|network| network.parse().unwrap()).collect();
        permitted(text.parse().unwrap(), &allow)
    }

    #[test]
    fn every_special_network_is_refused_from_its_first_to_its_last_address() {
        // (first, last, the address after it if that one is public)
        for (first, last, after) in [
            ("0.0.0.0", "0.255.255.255", Some("1.0.0.0")),
            ("10.0.0.0", "10.255.255.255", Some("11.0.0.0")),
            ("100.64.0.0", "100.127.255.255", Some("100.128.0.0")),
            ("127.0.0.0", "127.255.255.255", Some("128.0.0.0")),
            ("169.254.0.0", "169.254.255.255", Some("169.255.0.0")),
            ("172.16.0.0", "172.31.255.255", Some("172.32.0.0")),
            ("192.0.0.0", "192.0.0.255", Some("192.0.1.0")),
            ("192.0.2.0", "192.0.2.255", Some("192.0.3.0")),
            ("192.31.196.0", "192.31.196.255", Some("192.31.197.0")),
            ("192.52.193.0", "192.52.193.255", Some("192.52.194.0")),
            ("192.88.99.0", "192.88.99.255", Some("192.88.100.0")),
            ("192.168.0.0", "192.168.255.255", Some("192.169.0.0")),
            ("192.175.48.0", "192.175.48.255", Some("192.175.49.0")),
            ("198.18.0.0", "198.19.255.255", Some("198.20.0.0")),
            ("198.51.100.0", "198.51.100.255", Some("198.51.101.0")),
            ("203.0.113.0", "203.0.113.255", Some("203.0.114.0")),
            ("224.0.0.0", "239.255.255.255", None),
            ("240.0.0.0", "255.255.255.255", None),
            ("::", "::1", None),
            ("::7f00:1", "::ffff:ffff", None),
            ("::ffff:0.0.0.0", "::ffff:255.255.255.255", None),
            ("::ffff:127.0.0.1", "::ffff:8.8.8.8", None),
            ("64:ff9b::", "64:ff9b::ffff:ffff", None),
            ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", None),
            ("100::", "100::ffff:ffff:ffff:ffff", None),
            ("100:0:0:1::", "100:0:0:1:ffff:ffff:ffff:ffff", None),
            ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", Some("2001:200::")),
            ("2001:2::", "2001:3f:ffff:ffff:ffff:ffff:ffff:ffff", None),
            ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", Some("2001:db9::")),
            ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", Some("2003::")),
            ("2620:4f:8000::", "2620:4f:8000:ffff:ffff:ffff:ffff:ffff", Some("2620:4f:8001::")),
            ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff", Some("3fff:1000::")),
            ("5f00::", "5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
            ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
            ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
            ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
            ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", None),
        ] {
            assert!(!check(first, &[]), "{first}");
            assert!(!check(last, &[]), "{last}");
            if let Some(after) = after {
                assert!(check(after, &[]), "{after}");
            }
        }
    }

    #[test]
    fn public_addresses_are_permitted() {
        for public in ["8.8.8.8", "142.250.1.95", "17.253.144.10", "2a00:1450:4001::5f", "2620:149::1", "2001:4860:4860::8888"] {
            assert!(check(public, &[]), "{public}");
        }
    }

    #[test]
    fn a_named_network_is_permitted_and_nothing_beside_it() {
        assert!(check("10.1.2.3", &["10.1.0.0/16"]));
        assert!(!check("10.2.0.0", &["10.1.0.0/16"]));
        assert!(check("127.0.0.1", &["192.168.0.0/16", "127.0.0.1/32"]));
        assert!(check("::1", &["::1/128"]));
        assert!(check("64:ff9b::808:808", &["64:ff9b::/96"]));
    }

    #[test]
    fn a_named_ipv4_network_opens_no_way_round_through_ipv6() {
        for way in ["::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1"] {
            assert!(!check(way, &["127.0.0.0/8"]), "{way}");
        }
    }
}
