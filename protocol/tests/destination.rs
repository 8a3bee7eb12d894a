//! Where notifications never go, form by form, and that they go everywhere else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::net::{IpAddr, SocketAddr};

use reveille_protocol::destination::{BadNetwork, Forbidden, Learned, Network, check, reflector};

/// Each as an attacker may write it, with a word of the reason.
const FORBIDDEN: &[(&str, &str)] = &[
    ("0.0.0.0:5000", "this network"),
    ("0.1.2.3:5000", "this network"),
    ("0.255.255.255:5000", "this network"),
    ("127.0.0.1:5000", "loopback"),
    ("127.255.255.254:5000", "loopback"),
    ("169.254.0.1:5000", "link-local"),
    ("169.254.169.254:5000", "metadata"),
    ("169.254.170.2:5000", "metadata"),
    ("100.100.100.200:5000", "Alibaba"),
    ("168.63.129.16:5000", "Azure"),
    ("192.0.0.1:5000", "assignments"),
    ("192.0.0.192:5000", "assignments"),
    ("192.0.2.1:5000", "documentation"),
    ("198.51.100.255:5000", "documentation"),
    ("203.0.113.1:5000", "documentation"),
    ("192.31.196.1:5000", "AS112"),
    ("192.175.48.1:5000", "AS112"),
    ("192.52.193.1:5000", "multicast relays"),
    ("192.88.99.1:5000", "6to4 relays"),
    ("198.18.0.1:5000", "benchmarks"),
    ("198.19.255.255:5000", "benchmarks"),
    ("224.0.0.1:5000", "multicast"),
    ("239.255.255.250:5000", "multicast"),
    ("240.0.0.1:5000", "reserved"),
    ("255.255.255.254:5000", "reserved"),
    ("255.255.255.255:5000", "broadcast"),
    ("[::]:5000", "no address"),
    ("[::1]:5000", "loopback"),
    ("[::8.8.8.8]:5000", "IPv4-compatible"),
    ("[::127.0.0.1]:5000", "IPv4-compatible"),
    ("[::ffff:127.0.0.1]:5000", "loopback"),
    ("[::ffff:169.254.169.254]:5000", "metadata"),
    ("[::ffff:0.0.0.0]:5000", "this network"),
    ("[::ffff:224.0.0.1]:5000", "multicast"),
    ("[::ffff:0:127.0.0.1]:5000", "IPv4-translated"),
    ("[::ffff:0:8.8.8.8]:5000", "IPv4-translated"),
    ("[64:ff9b::127.0.0.1]:5000", "loopback"),
    ("[64:ff9b::169.254.169.254]:5000", "metadata"),
    ("[64:ff9b::10.1.2.3]:5000", "10.1.0.0/16"),
    ("[64:ff9b:1::8.8.8.8]:5000", "NAT64 of one network"),
    ("[64:ff9b:1:7f00:0:100::]:5000", "NAT64 of one network"),
    ("[64:ff9b::1:8.8.8.8]:5000", "not given"),
    ("[2002:7f00:1::1]:5000", "loopback"),
    ("[2002:a9fe:a9fe::1]:5000", "metadata"),
    ("[2002:a01:203::1]:5000", "10.1.0.0/16"),
    ("[2001:0:7f00:1::5601:101]:5000", "loopback"),
    ("[2001:0:5858:5858::80ff:fffe]:5000", "loopback"),
    ("[2001:0:5858:5858:8000:63bf:5601:5601]:5000", "metadata"),
    ("[2a00:1450::5efe:127.0.0.1]:5000", "loopback"),
    ("[2a00:1450::200:5efe:169.254.169.254]:5000", "metadata"),
    ("[fd12:3456::5efe:224.0.0.1]:5000", "multicast"),
    ("[100::1]:5000", "discarded"),
    ("[100:0:0:1::1]:5000", "dummy"),
    ("[2001:2::1]:5000", "assignments"),
    ("[2001:10::1]:5000", "assignments"),
    ("[2001:1ff:ffff::1]:5000", "assignments"),
    ("[2001:db8::1]:5000", "documentation"),
    ("[2620:4f:8000::1]:5000", "AS112"),
    ("[3ffe::1]:5000", "6bone"),
    ("[3fff:fff::1]:5000", "documentation"),
    ("[5f00::1]:5000", "segment routing"),
    ("[fd00:ec2::254]:5000", "AWS"),
    ("[fd00:ec2::23]:5000", "AWS"),
    ("[fd20:ce::254]:5000", "Google"),
    ("[fd00:42::42]:5000", "Scaleway"),
    ("[fe80::1]:5000", "link-local"),
    ("[febf::1]:5000", "link-local"),
    ("[fec0::1]:5000", "site-local"),
    ("[ff02::1]:5000", "multicast"),
    ("[ff0e::1]:5000", "multicast"),
    ("[4000::1]:5000", "not given"),
    ("[200::1]:5000", "not given"),
    ("[e000::1]:5000", "not given"),
    ("[fe80::1%2]:5000", "scoped"),
    ("[2a00:1450::1%2]:5000", "scoped"),
    ("[::ffff:8.8.8.8%2]:5000", "scoped"),
    ("8.8.8.8:0", "below 1024"),
    ("8.8.8.8:53", "below 1024"),
    ("8.8.8.8:443", "below 1024"),
    ("8.8.8.8:1023", "below 1024"),
    ("[2a00:1450::1]:123", "below 1024"),
    ("8.8.8.8:1434", "SQL"),
    ("8.8.8.8:1900", "SSDP"),
    ("8.8.8.8:3283", "Remote Desktop"),
    ("8.8.8.8:3478", "STUN"),
    ("8.8.8.8:3702", "WS-Discovery"),
    ("8.8.8.8:5060", "SIP"),
    ("8.8.8.8:5353", "mDNS"),
    ("8.8.8.8:5683", "CoAP"),
    ("8.8.8.8:10001", "Ubiquiti"),
    ("[2a00:1450::1]:11211", "memcached"),
    ("8.8.8.8:17185", "VxWorks"),
    ("8.8.8.8:27960", "Quake"),
    ("8.8.8.8:37810", "video recorders"),
    ("10.1.2.3:5000", "10.1.0.0/16"),
    ("[::ffff:10.1.2.3]:5000", "10.1.0.0/16"),
    ("[fd77::1]:5000", "fd77::/16"),
];

/// Where terminals are. The operator has forbidden 10.1.0.0/16 and fd77::/16.
const ALLOWED: &[&str] = &[
    "8.8.8.8:1024",
    "8.8.8.8:5000",
    "8.8.8.8:65535",
    "1.1.1.1:40000",
    "10.0.0.1:5000",
    "10.2.0.1:5000",
    "100.64.0.1:5000",
    "100.100.100.201:5000",
    "128.0.0.1:5000",
    "168.63.129.17:5000",
    "169.253.255.255:5000",
    "169.255.0.1:5000",
    "172.16.0.1:5000",
    "192.0.1.1:5000",
    "192.168.1.1:5000",
    "198.17.255.255:5000",
    "198.20.0.1:5000",
    "223.255.255.255:5000",
    "[::ffff:8.8.8.8]:5000",
    "[64:ff9b::8.8.8.8]:5000",
    "[2001:200::1]:5000",
    "[2001:0:5858:5858:8000:63bf:f7f7:f7f7]:5000",
    "[2002:808:808::1]:5000",
    "[2a00:1450::1]:5000",
    "[2a00:1450::5efe:8.8.8.8]:5000",
    "[2a00:1450::300:5efe:127.0.0.1]:5000",
    "[3fff:1000::1]:5000",
    "[fc00::1]:5000",
    "[fd00:ec3::254]:5000",
    "[fd12:3456::1]:5000",
];

fn forbid() -> Vec<Network> {
    ["10.1.0.0/16", "fd77::/16"].map(|text| text.parse().unwrap()).to_vec()
}

#[test]
fn forbidden_forms_are_refused_and_the_reason_is_told() {
    assert!(FORBIDDEN.len() >= 60);
    for (text, reason) in FORBIDDEN {
        let address: SocketAddr = text.parse().unwrap_or_else(|_| panic!("{text} is no address"));
        let said = check(address, Learned::Claimed, &forbid()).expect_err(text).to_string();
        assert!(said.contains(reason), "{text}: {said}");
    }
}

#[test]
fn what_terminals_have_is_allowed() {
    for text in ALLOWED {
        let address: SocketAddr = text.parse().unwrap();
        assert_eq!(check(address, Learned::Claimed, &forbid()), Ok(()), "{text}");
    }
}

#[test]
fn a_port_that_a_router_gave_is_allowed_and_its_address_looked_at_all_the_same() {
    let ports: Vec<u16> = (1024..=u16::MAX).filter(|port| reflector(*port).is_some()).collect();
    assert!(ports.len() > 40);
    for port in ports {
        let address = SocketAddr::new(IpAddr::from([8, 8, 8, 8]), port);
        assert_eq!(check(address, Learned::Echoed, &[]), Ok(()), "{address}");
        assert!(matches!(check(address, Learned::Claimed, &[]), Err(Forbidden::Reflector(_))), "{address}");
    }
    for (text, reason) in FORBIDDEN {
        let address: SocketAddr = text.parse().unwrap();
        let said = check(address, Learned::Echoed, &forbid());
        let by_port = reflector(address.port()).is_some();
        assert_eq!(said.is_ok(), by_port, "{text}: {reason}, {said:?}");
    }
}

#[test]
fn networks_are_read_as_they_are_written() {
    for text in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "::/0", "fd00::/8", "2001:db8::1/128"] {
        assert_eq!(text.parse::<Network>().unwrap().to_string(), text);
    }
    for text in [
        "",
        "10.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/+8",
        "10.0.0/8",
        "/8",
        "10.0.0.0/8/8",
        "host/8",
        " 10.0.0.0/8",
    ] {
        assert!(matches!(text.parse::<Network>(), Err(BadNetwork::Form(_))), "{text}");
    }
    for (text, most) in [("10.0.0.0/33", 32), ("10.0.0.0/999", 32), ("fd00::/129", 128)] {
        assert_eq!(text.parse::<Network>(), Err(BadNetwork::Bits(text.to_owned(), most)));
    }
    let meant = "10.0.0.0/8".parse().unwrap();
    assert_eq!("10.1.0.0/8".parse::<Network>(), Err(BadNetwork::Host("10.1.0.0/8".to_owned(), meant)));
    assert!(matches!("::ffff:10.0.0.0/104".parse::<Network>(), Err(BadNetwork::Mapped(_))));
    let everything: Network = "0.0.0.0/0".parse().unwrap();
    assert!(everything.contains("::ffff:8.8.8.8".parse().unwrap()));
    assert!(!everything.contains("2a00::1".parse().unwrap()));
}
