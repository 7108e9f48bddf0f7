//! Which addresses may be asked: those of the public internet, and what the operator adds.
//!
//! Source: IANA's special-purpose address registries for IPv4 and IPv6. An IPv6 address that stands for an IPv4 one is judged as
//! that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Networks that may be asked.
#[derive(Clone, Debug)]
pub struct Networks {
    private: bool,
    added: Vec<IpNet>,
}

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of the public internet.
    Public,
    /// Of this machine or a local network.
    Private,
    /// Never asked unless it is added by name: link-local ones, where clouds keep their secrets, and what is no single machine.
    Special,
}

impl Networks {
    /// `private`: whether this machine and local networks may be asked. `added`: networks that may be in any case.
    pub fn new(private: bool, added: &[IpNet]) -> Self {
        Self { private, added: added.to_vec() }
    }

    /// Whether an address may be asked.
    pub fn allow(&self, ip: IpAddr) -> bool {
        let ip = plain(ip);
        if self.added.iter().any(|network| network.contains(&ip)) {
            return true;
        }
        match kind(ip) {
            Kind::Public => true,
            Kind::Private => self.private,
            Kind::Special => false,
        }
    }
}

/// The IPv4 address that an IPv6 one stands for: mapped, compatible, NAT64, 6to4.
fn plain(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = ip else { return ip };
    let part = six.segments();
    let four = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match part {
        _ if six == Ipv6Addr::UNSPECIFIED || six == Ipv6Addr::LOCALHOST => ip,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => four(high, low),
        _ => ip,
    }
}

fn kind(ip: IpAddr) -> Kind {
    match ip {
        IpAddr::V4(ip) => kind_of_four(ip),
        IpAddr::V6(ip) => kind_of_six(ip),
    }
}

fn kind_of_four(ip: Ipv4Addr) -> Kind {
    let within = |networks: &[(Ipv4Addr, u32)]| {
        networks.iter().any(|(network, bits)| (ip.to_bits() ^ network.to_bits()).leading_zeros() >= *bits)
    };
    if within(&SPECIAL) {
        Kind::Special
    } else if within(&LOCAL) {
        Kind::Private
    } else {
        Kind::Public
    }
}

/// Never asked: with how many bits they begin.
const SPECIAL: [(Ipv4Addr, u32); 11] = [
    // This network's hosts: the local machine on many systems.
    (Ipv4Addr::UNSPECIFIED, 8),
    // Link-local, with the metadata services of clouds; one such service among the carriers' addresses.
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(100, 100, 100, 200), 32),
    // Protocol assignments, documentation, 6to4 relays, benchmarks.
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, reserved, broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// This machine and local networks, carriers' among them.
const LOCAL: [(Ipv4Addr, u32); 5] = [
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
];

fn kind_of_six(ip: Ipv6Addr) -> Kind {
    match ip.segments() {
        _ if ip == Ipv6Addr::LOCALHOST => Kind::Private,
        // Amazon's metadata among the unique local ones; Teredo, benchmarks, ORCHID, documentation.
        [0xfd00, 0x0ec2, ..] | [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Kind::Special,
        [0xfc00..=0xfdff, ..] => Kind::Private,
        [0x2000..=0x3fff, ..] => Kind::Public,
        _ => Kind::Special,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_asked() {
        let (shut, open) = (Networks::new(false, &[]), Networks::new(true, &[]));
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "64:ff9b::8.8.8.8",
            "::ffff:8.8.8.8",
        ] {
            assert!(shut.allow(public.parse().unwrap()), "{public}");
        }
        for private in [
            "127.0.0.1",
            "127.255.255.254",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "100.64.0.1",
            "::1",
            "fc00::1",
            "fd12:3456::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::ffff:0:127.0.0.1",
        ] {
            let ip = private.parse().unwrap();
            assert!(!shut.allow(ip) && open.allow(ip), "{private}");
        }
        for special in [
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "::",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "::ffff:169.254.169.254",
            "2002:a9fe:a9fe::",
            "64:ff9b::a9fe:a9fe",
            "2001:db8::1",
            "2001::1",
            "100::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "64:ff9b:1::1",
        ] {
            let ip = special.parse().unwrap();
            assert!(!shut.allow(ip) && !open.allow(ip), "{special}");
        }
        let added = Networks::new(false, &["192.168.7.0/24".parse().unwrap(), "169.254.169.254/32".parse().unwrap()]);
        assert!(added.allow("192.168.7.9".parse().unwrap()) && added.allow("::ffff:192.168.7.9".parse().unwrap()));
        assert!(added.allow("169.254.169.254".parse().unwrap()) && !added.allow("192.168.8.9".parse().unwrap()));
    }
}
