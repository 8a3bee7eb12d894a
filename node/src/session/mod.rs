//! Sessions of terminals: the source's "message sending". One actor per open session, none for an idle terminal.
//!
//! [`admission`] says who may begin now, [`listener`] accepts and does TLS, [`tls`] says who may, [`actor`] runs the
//! session's rules, [`registry`] finds the actor that a hand-off is for.

pub mod actor;
pub mod admission;
pub mod listener;
pub mod registry;
pub mod tls;
