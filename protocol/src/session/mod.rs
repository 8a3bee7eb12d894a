//! The rules of both ends of a session, as sans-IO machines: `handle(now, event) -> commands`, `poll_timeout()`.
//! No sockets, clocks or actors: the shells in node/ and terminal/ carry the commands out.

pub mod linger;
pub mod pointless;
pub mod reach;
pub mod server;
pub mod terminal;
