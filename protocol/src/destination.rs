//! Where no terminal can be: addresses and ports that a notification never goes to, whoever claims them. A table with the
//! reason for each. How many notifications may go to an address, and which ones are the cluster's own, is not here.
//!
//! Networks are those of the IANA special-purpose registries (RFC 6890 and what has been entered since), the metadata
//! services of clouds, and everything of IPv6 that nobody has been given. Private networks are allowed (RFC 1918, the
//! unique-local ones of RFC 4193, a carrier's of RFC 6598): companies run on them, and a terminal can name no address,
//! only a port at the one that its session comes from. Operators who know better forbid more.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network by its first address and the length of its prefix: `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    first: IpAddr,
    bits: u8,
}

/// What is wrong with a network that was written down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadNetwork {
    /// Not an address, a slash and a number.
    #[error("{0:?} is no network; write it like 10.0.0.0/8 or 2001:db8::/32")]
    Form(String),
    /// More bits than the address has.
    #[error("{0:?}: a prefix has at most {1} bits there")]
    Bits(String, u8),
    /// It is meant as one address, or the prefix is too short: which, only its writer knows.
    #[error("{0:?} has bits set behind its prefix; the network is {1}")]
    Host(String, Network),
    /// An IPv4 network in the form of an IPv6 one.
    #[error("{0:?}: write the IPv4 network itself; it covers its addresses in IPv6 form")]
    Mapped(String),
}

/// Why nothing is sent to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// No terminal is in such a network.
    #[error("{0}")]
    Network(&'static str),
    /// The operator says so.
    #[error("in {0}, which is forbidden by notify.forbid")]
    Configured(Network),
    /// An address with a scope has a meaning on one link only.
    #[error("scoped to a link")]
    Scoped,
    /// Ports below 1024 are the system's.
    #[error("a port below 1024")]
    Privileged,
    /// What listens there by custom answers anyone, often with more than it got.
    #[error("the port of {0}")]
    Reflector(&'static str),
}

/// How a destination came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// Address of a session, port as the terminal says: whatever is at that port may be another's.
    Claimed,
    /// A keepalive came from there and a nonce came back. A router may give a terminal any port: of 64,000 terminals behind
    /// routers that choose at random some would sit on each port of [`reflector`].
    Echoed,
}

/// May a notification go there? `forbid`: networks that the operator forbids besides.
pub fn check(address: SocketAddr, learned: Learned, forbid: &[Network]) -> Result<(), Forbidden> {
    if let SocketAddr::V6(v6) = address
        && v6.scope_id() != 0
    {
        return Err(Forbidden::Scoped);
    }
    let ip = address.ip().to_canonical();
    check_ip(ip, forbid)?;
    if let IpAddr::V6(v6) = ip {
        for v4 in embedded(v6).into_iter().flatten() {
            check_ip(v4.into(), forbid)?;
        }
    }
    if address.port() < 1024 {
        return Err(Forbidden::Privileged);
    }
    match reflector(address.port()) {
        Some(what) if learned == Learned::Claimed => Err(Forbidden::Reflector(what)),
        _ => Ok(()),
    }
}

fn check_ip(ip: IpAddr, forbid: &[Network]) -> Result<(), Forbidden> {
    if let Some(network) = forbid.iter().find(|network| network.contains(ip)) {
        return Err(Forbidden::Configured(*network));
    }
    let (table, otherwise) = match ip {
        IpAddr::V4(_) => (V4, None),
        IpAddr::V6(_) => (V6, Some("not given to anybody by IANA")),
    };
    match table.iter().find(|(network, _)| network.contains(ip)).map_or(otherwise, |(_, why)| *why) {
        Some(why) => Err(Forbidden::Network(why)),
        None => Ok(()),
    }
}

/// The first network of the table that has an address decides; `None` allows it.
type Table = &'static [(Network, Option<&'static str>)];

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8, why: &'static str) -> (Network, Option<&'static str>) {
    (Network { first: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), bits }, Some(why))
}

const fn v6(first: u128, bits: u8, why: Option<&'static str>) -> (Network, Option<&'static str>) {
    (Network { first: IpAddr::V6(Ipv6Addr::from_bits(first)), bits }, why)
}

/// What is not here is allowed.
const V4: Table = &[
    v4(0, 0, 0, 0, 8, "this network (RFC 791)"),
    v4(127, 0, 0, 0, 8, "loopback (RFC 1122)"),
    v4(169, 254, 0, 0, 16, "link-local, and metadata services of clouds (RFC 3927)"),
    v4(100, 100, 100, 200, 32, "metadata service of a cloud (Alibaba)"),
    v4(168, 63, 129, 16, 32, "metadata service of a cloud (Azure)"),
    v4(192, 0, 0, 0, 24, "protocol assignments (RFC 6890)"),
    v4(192, 0, 2, 0, 24, "documentation (RFC 5737)"),
    v4(198, 51, 100, 0, 24, "documentation (RFC 5737)"),
    v4(203, 0, 113, 0, 24, "documentation (RFC 5737)"),
    v4(192, 31, 196, 0, 24, "AS112 name servers (RFC 7535)"),
    v4(192, 175, 48, 0, 24, "AS112 name servers (RFC 7534)"),
    v4(192, 52, 193, 0, 24, "multicast relays (RFC 7450)"),
    v4(192, 88, 99, 0, 24, "6to4 relays (RFC 7526)"),
    v4(198, 18, 0, 0, 15, "benchmarks (RFC 2544)"),
    v4(224, 0, 0, 0, 4, "multicast (RFC 5771)"),
    v4(255, 255, 255, 255, 32, "broadcast (RFC 919)"),
    v4(240, 0, 0, 0, 4, "reserved (RFC 1112)"),
];

/// What is not here is forbidden. The address that an allowed one carries inside is looked up as well.
const V6: Table = &[
    v6(0, 128, Some("no address (RFC 4291)")),
    v6(1, 128, Some("loopback (RFC 4291)")),
    v6(0, 96, Some("IPv4-compatible (RFC 4291)")),
    v6(0xffff << 48, 96, Some("IPv4-translated (RFC 2765)")),
    v6(0x64_ff9b << 96, 96, None), // NAT64 (RFC 6052).
    v6(0x64_ff9b_0001 << 80, 48, Some("NAT64 of one network (RFC 8215)")),
    v6(0x100 << 112, 64, Some("discarded (RFC 6666)")),
    v6(0x100_0000_0000_0001 << 64, 64, Some("dummy prefix (RFC 9780)")),
    v6(0x2001_0000 << 96, 32, None), // Teredo (RFC 4380).
    v6(0x2001_0000 << 96, 23, Some("protocol assignments (RFC 2928)")),
    v6(0x2001_0db8 << 96, 32, Some("documentation (RFC 3849)")),
    v6(0x2620_004f_8000 << 80, 48, Some("AS112 name servers (RFC 7534)")),
    v6(0x3ffe << 112, 16, Some("6bone, given back (RFC 3701)")),
    v6(0x3fff << 112, 20, Some("documentation (RFC 9637)")),
    v6(0x2000 << 112, 3, None), // Global unicast (RFC 4291), 6to4 (RFC 3056) among it.
    v6(0x5f00 << 112, 16, Some("segment routing (RFC 9602)")),
    v6(0xfd00_0ec2 << 96, 32, Some("metadata service of a cloud (AWS)")),
    v6((0xfd20_00ce << 96) | 0x254, 128, Some("metadata service of a cloud (Google)")),
    v6((0xfd00_0042 << 96) | 0x42, 128, Some("metadata service of a cloud (Scaleway)")),
    v6(0xfc00 << 112, 7, None), // Unique-local (RFC 4193).
    v6(0xfe80 << 112, 10, Some("link-local (RFC 4291)")),
    v6(0xfec0 << 112, 10, Some("site-local, given up (RFC 3879)")),
    v6(0xff00 << 112, 8, Some("multicast (RFC 4291)")),
];

/// Addresses that what is sent there may end at: routers on the way unpack them.
fn embedded(ip: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let of = |high: u16, low: u16| Some(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low)));
    match ip.segments() {
        // NAT64 (RFC 6052 section 2.1).
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] => [of(a, b), None],
        // 6to4 (RFC 3056 section 2).
        [0x2002, a, b, ..] => [of(a, b), None],
        // Teredo: the server, and the client with its bits turned (RFC 4380 section 4).
        [0x2001, 0, a, b, _, _, c, d] => [of(a, b), of(!c, !d)],
        // ISATAP, in anyone's network (RFC 5214 section 6.1).
        [_, _, _, _, 0 | 0x200, 0x5efe, a, b] => [of(a, b), None],
        _ => [None, None],
    }
}

/// What listens at a port above 1023 by custom, and answers anyone who sends it a datagram.
pub fn reflector(port: u16) -> Option<&'static str> {
    Some(match port {
        1434 => "Microsoft SQL Server's browser",
        1604 => "Citrix' browser",
        1701 => "L2TP",
        1718 | 1719 => "H.323",
        1900 => "SSDP",
        2049 => "NFS",
        3283 => "Apple Remote Desktop",
        3389 => "RDP",
        3478 | 3479 | 5349 => "STUN and TURN",
        3702 => "WS-Discovery",
        4500 => "IPsec",
        5060 | 5061 => "SIP",
        5093 => "Sentinel licences",
        5351 => "NAT-PMP and PCP",
        5353 => "mDNS",
        5355 => "LLMNR",
        5632 => "pcAnywhere",
        5683 | 5684 => "CoAP",
        6881 => "BitTorrent",
        9987 => "TeamSpeak",
        10001 => "Ubiquiti's discovery",
        10074 => "Mitel's test driver",
        11211 => "memcached",
        17185 => "VxWorks' debugger",
        19132 => "Minecraft",
        20800 => "Call of Duty",
        26000 | 27910 | 27960 => "Quake",
        27015 => "Source game servers",
        30718 => "Lantronix' configuration",
        32410 | 32412..=32414 => "Plex' discovery",
        33848 => "Jenkins' discovery",
        37810 => "video recorders' discovery",
        41794 => "Crestron's discovery",
        44818 => "EtherNet/IP",
        47808 => "BACnet",
        _ => return None,
    })
}

impl Network {
    /// Whether an address is in it; an IPv4 address in IPv6 form is the IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.first, ip.to_canonical()) {
            (IpAddr::V4(first), IpAddr::V4(ip)) => masked_v4(ip, self.bits) == first,
            (IpAddr::V6(first), IpAddr::V6(ip)) => masked_v6(ip, self.bits) == first,
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

fn masked_v4(ip: Ipv4Addr, bits: u8) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
    Ipv4Addr::from_bits(ip.to_bits() & mask)
}

fn masked_v6(ip: Ipv6Addr, bits: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    Ipv6Addr::from_bits(ip.to_bits() & mask)
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Network, BadNetwork> {
        let form = || BadNetwork::Form(text.to_owned());
        let (ip, bits) = text.split_once('/').ok_or_else(form)?;
        let ip: IpAddr = ip.parse().map_err(|_| form())?;
        if bits.is_empty() || !bits.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(form());
        }
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.parse().ok().filter(|bits| *bits <= most);
        let bits = bits.ok_or_else(|| BadNetwork::Bits(text.to_owned(), most))?;
        if ip != ip.to_canonical() {
            return Err(BadNetwork::Mapped(text.to_owned()));
        }
        let first = match ip {
            IpAddr::V4(ip) => masked_v4(ip, bits).into(),
            IpAddr::V6(ip) => masked_v6(ip, bits).into(),
        };
        let network = Network { first, bits };
        if ip == first { Ok(network) } else { Err(BadNetwork::Host(text.to_owned(), network)) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

impl TryFrom<String> for Network {
    type Error = BadNetwork;

    fn try_from(text: String) -> Result<Network, BadNetwork> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.to_string()
    }
}
