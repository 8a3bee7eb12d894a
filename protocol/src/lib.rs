//! The pure core of Reveille: no IO, no clock, no randomness, no threads. Everything here is a value or a rule.
//!
//! In the order of a push's way:
//!
//! - [`id`], [`time`], [`limits`], [`stage`]: the names of things, instants as arguments, every bound, the life
//!   of a push.
//! - [`wire`]: every format that is sent or stored.
//! - [`service_list`]: the replicated state machine of terminals and pushes. [`directory`] is the meta group's.
//! - [`dispatch`]: what the shard leader does about a pending push: hand it off, or notify.
//! - [`anchor`]: how a terminal behind NAT stays within reach of one node.
//! - [`destination`]: where no notification goes.
//! - [`session`]: the rules of both ends of a session.

pub mod anchor;
pub mod canary;
pub mod destination;
pub mod directory;
pub mod dispatch;
pub mod fail_point;
pub mod hash;
pub mod id;
pub mod limits;
pub mod service_list;
pub mod session;
pub mod stage;
pub mod time;
pub mod wire;
