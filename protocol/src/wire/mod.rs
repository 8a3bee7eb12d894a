//! Every format that is sent or stored: one family a file, golden bytes beside it.

pub mod backup;
pub mod codec;
pub mod entry;
pub mod notification;
pub mod peer;
pub mod session;
pub mod stun;
