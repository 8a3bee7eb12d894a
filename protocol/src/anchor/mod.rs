//! Pinned reachability: how a terminal behind NAT can be dialled without a connection. It keeps a UDP binding to one
//! node, its *anchor*, with sealed keepalives ([`crate::wire::stun`]); the anchor remembers where they come from and
//! dials from that very socket. Sockets and dials are not here.
//!
//! - [`table`]: the anchor's side, soft state for all its terminals.
//! - [`keeper`]: the terminal's side. `talk.rs` is what it shares with [`life`].
//! - [`life`]: how long the terminal's NAT keeps a binding, found by trying.
//!
//! What holds against whom: a keepalive is answered only if its seal is good and its number is new. An address is
//! dialled only after a proof that was sent *there* came back, so neither a spoofed source nor a malicious terminal
//! can aim dials at a third party. An unproven address gets at most a challenge, never longer than what asked for
//! it. Who suppresses packets on the path can make a terminal unreachable, as it could anyway.

pub mod keeper;
pub mod life;
mod orders;
pub mod table;
mod talk;
