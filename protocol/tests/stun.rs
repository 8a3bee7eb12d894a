//! The bytes of the STUN messages, pinned; the seal against the test vector of RFC 8489; and everything that must be
//! refused. What anchor and terminal do with them is in `anchor.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::net::SocketAddr;

use reveille_protocol::directory::Secret;
use reveille_protocol::hash;
use reveille_protocol::id::*;
use reveille_protocol::limits;
use reveille_protocol::wire::stun::*;

type Attributes<'a> = &'a [(u16, &'a [u8])];

const KEY: [u8; 32] = [0x4b; 32];
const TRANSACTION: Transaction = Transaction { number: 0x0102_0304_0506_0708, tail: [9, 10, 11, 12] };
const PROOF: Proof = *b"12345678";

fn keepalive(wants_answer: bool, slot: PinSlot, proof: Option<Proof>) -> Message {
    let ring = !wants_answer;
    let pin = Pin { handle: Handle([0xaa; 16]), generation: 7, period: 28, slot, ring };
    Message::Keepalive { pin, wants_answer, proof }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn messages() -> Vec<Message> {
    vec![
        keepalive(true, PinSlot::Primary, None),
        keepalive(false, PinSlot::Second, Some(PROOF)),
        Message::Mapped { address: address("192.0.2.1:32853"), waiting: false },
        Message::Mapped { address: address("[2001:db8:1234:5678:11:2233:4455:6677]:32853"), waiting: true },
        Message::Challenge(PROOF),
        Message::Ring { waiting: false },
        Message::Ring { waiting: true },
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Seals what is given as attributes, as an encoder that knows no rules would.
fn sealed(kind: u16, attributes: Attributes<'_>) -> Vec<u8> {
    let mut out = [&kind.to_be_bytes()[..], &[0, 0, 0x21, 0x12, 0xa4, 0x42], &[1; 12]].concat();
    for (name, value) in attributes {
        out.extend([&name.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat());
        out.resize(out.len().next_multiple_of(4), 0);
    }
    let length = (out.len() - 20 + 20) as u16;
    out[2..4].copy_from_slice(&length.to_be_bytes());
    let mac = hash::hmac_sha256(&KEY, &[&out]);
    out.extend([&[0, 0x1c, 0, 16], &mac[..16]].concat());
    out
}

#[test]
fn every_message_comes_back_as_it_was() {
    for message in messages() {
        let packet = encode(&message, TRANSACTION, &KEY);
        assert!(is_stun(&packet) && packet.len() <= limits::MAX_STUN_SENT);
        let sealed = decode(&packet).unwrap();
        assert_eq!(sealed.open(&KEY), Some((message, TRANSACTION)));
        assert_eq!(sealed.open(&[0; 32]), None);
        assert_eq!(sealed.claim().is_some(), matches!(message, Message::Keepalive { .. }));
    }
}

#[test]
fn the_bytes_are_pinned() {
    let pinned = [
        "000100302112a4420102030405060708090a0b0c \
         c0e10018aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa00000007001c0000001c0010bac34a19ce28ef3833be1670a879ca15",
        "0011003c2112a4420102030405060708090a0b0c \
         c0e10018aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa00000007001c0101001500083132333435363738001c0010ab511bb8c2bd3974f55ec6b99cfb00fb",
        "010100202112a4420102030405060708090a0b0c \
         002000080001a147e112a643001c001051108df0a94b09f4a1e6d8980ddba4d1",
        "010100342112a4420102030405060708090a0b0c \
         002000140002a1470113a9fa1336557c0517253b4d5f6d7bc0e2000400000001001c00104dcd6be90ddb920676d5e92441f6a8ba",
        "011100282112a4420102030405060708090a0b0c \
         0009000400000426001500083132333435363738001c00107896cd8c7360e98b5a1f72337ef6c6e0",
        "0011001c2112a4420102030405060708090a0b0c \
         c0e2000400000000001c001012e43a064cc52e4a8b27ef6618ef33ee",
        "0011001c2112a4420102030405060708090a0b0c \
         c0e2000400000001001c0010ede1e53e503058fa2d20d79d5c1262fe",
    ];
    for (message, pinned) in messages().iter().zip(pinned) {
        assert_eq!(hex(&encode(message, TRANSACTION, &KEY)), pinned.replace(' ', ""), "{message:?}");
    }
    let secret = Secret { generation: 7, key: [3; 32] };
    let name = handle(&secret, &TerminalId([1; 16]), Stream(5), Epoch(7));
    assert_eq!(hex(&name.0), "cc319f235b23ffcb2fb1e12ce6cf6bf6");
    assert_eq!(
        hex(&pin_key(&secret, &name)),
        "3dd3368942b7b5fce8cdb3736eb53bfd43de7540c97084a9a11fe13afb70ea22"
    );
    assert_ne!(name, handle(&secret, &TerminalId([1; 16]), Stream(5), Epoch(8)));
}

/// RFC 8489 appendix B.1 as erratum 6268 corrects it. Long-term, so not a message of ours; but the same seal.
#[test]
fn the_seal_is_that_of_rfc_8489() {
    let nonce = hex(b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA");
    let vector = unhex(&format!(
        "00010090 2112a442 78ad3433c6ad72c029da412e \
         001e0020 4a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704 \
         00150029 {nonce}000000 0014000b {realm}00 001d0004 00020000 \
         001c0020 b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278cc6518e65",
        realm = hex(b"example.org"),
    ));
    let key = hash::sha256("マトリックス:example.org:TheMatrIX".as_bytes());
    let (covered, seal) = vector.split_at(vector.len() - 36);
    assert_eq!(vector.len(), 20 + 0x90);
    assert_eq!(hash::hmac_sha256(&key, &[covered]), seal[4..]);
    assert_eq!(decode(&vector).unwrap_err(), StunError::NotStun, "longer than any of ours");
}

#[test]
fn a_challenge_is_never_longer_than_what_it_answers() {
    let shortest = encode(&keepalive(false, PinSlot::Primary, None), TRANSACTION, &KEY);
    assert!(encode(&Message::Challenge(PROOF), TRANSACTION, &KEY).len() <= shortest.len());
    assert!(encode(&Message::Ring { waiting: true }, TRANSACTION, &KEY).len() <= shortest.len());
}

#[test]
fn addresses_are_canonical() {
    let mapped = |text| Message::Mapped { address: address(text), waiting: false };
    let packet = encode(&mapped("[::ffff:192.0.2.1]:9"), TRANSACTION, &KEY);
    assert_eq!(decode(&packet).unwrap().open(&KEY).unwrap().0, mapped("192.0.2.1:9"));
}

#[test]
fn optional_attributes_are_skipped_and_required_ones_refused() {
    let pin: &[u8] = &[[0xaa; 16].as_slice(), &[0, 0, 0, 7, 0, 28, 0, 0]].concat();
    let good = sealed(0x0001, &[(0xc0e1, pin), (0x8022, b"abcde")]);
    assert!(matches!(decode(&good).unwrap().open(&KEY), Some((Message::Keepalive { .. }, _))));
    let of_slot_2: &[u8] = &[[0xaa; 16].as_slice(), &[0, 0, 0, 7, 0, 28, 2, 0]].concat();
    let refused: [(u16, Attributes<'_>); 12] = [
        (0x0001, &[(0xc0e1, pin), (0x0006, b"user")]),
        (0x0001, &[(0xc0e1, pin), (0xc0e1, pin)]),
        (0x0001, &[(0xc0e1, &pin[..23])]),
        (0x0001, &[(0xc0e1, of_slot_2)]),
        (0x0001, &[(0xc0e1, pin), (0x0015, b"1234567")]),
        (0x0001, &[(0xc0e1, pin), (0x001c, &[0; 16])]),
        (0x0001, &[]),
        (0x0011, &[(0xc0e1, pin), (0xc0e2, &[0, 0, 0, 1])]),
        (0x0101, &[(0x0020, &[0, 3, 0, 0, 0, 0, 0, 0])]),
        (0x0101, &[(0x0020, &[0, 1, 0, 0, 0, 0, 0, 0]), (0xc0e1, pin)]),
        (0x0111, &[(0x0009, &[0, 0, 4, 1]), (0x0015, &PROOF)]),
        (0x0003, &[(0xc0e1, pin)]),
    ];
    for (kind, attributes) in refused {
        assert_eq!(decode(&sealed(kind, attributes)).unwrap_err(), StunError::Malformed, "{attributes:x?}");
    }
}

#[test]
fn what_is_cut_stretched_or_not_stun_is_refused() {
    let packet = encode(&keepalive(true, PinSlot::Primary, Some(PROOF)), TRANSACTION, &KEY);
    for len in 0..packet.len() {
        assert_eq!(decode(&packet[..len]).unwrap_err(), StunError::NotStun);
    }
    assert_eq!(decode(&[&packet[..], &[0; 4]].concat()).unwrap_err(), StunError::NotStun);
    assert!(is_stun(&[3]) && !is_stun(&[4]) && !is_stun(&[0x40]) && !is_stun(&[0xc3]) && !is_stun(&[]));
}

/// A million bent messages: none panics, none that differs where the seal covers it is opened.
#[test]
fn bent_messages_are_never_opened_and_never_panic() {
    let good: Vec<Vec<u8>> = messages().iter().map(|m| encode(m, TRANSACTION, &KEY).to_vec()).collect();
    let mut state = 1u64;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    for _ in 0..1_000_000 {
        let whole = &good[below(good.len())];
        let mut bent = whole.clone();
        for _ in 0..=below(3) {
            let at = below(bent.len());
            bent[at] = below(256) as u8;
        }
        if below(4) == 0 {
            bent.truncate(below(bent.len() + 1));
            if let Some(length) = bent.len().checked_sub(20).filter(|length| length % 4 == 0) {
                bent[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            }
        }
        let opened = decode(&bent).ok().and_then(|sealed| sealed.open(&KEY));
        assert!(opened.is_none() || bent == *whole, "{}", hex(&bent));
    }
}
