//! How a node ends that cannot go on: whether starting it again may help, and what its operator can do. The exit codes.

use std::fmt;

use reveille_cluster::StartError;
use reveille_protocol::id::NodeId;

use crate::certificates;
use crate::config::Config;

/// Starting again may help: a port, a disk, a peer.
pub const FAILED: u8 = 1;
/// Starting again does not help; service managers can tell it by this. `EX_CONFIG` of sysexits.h.
pub const NO_RESTART_HELPS: u8 = 78;

/// An end that stays the same however often the node is started.
#[derive(Debug)]
pub struct Final(anyhow::Error);

impl Final {
    /// Says of an error that it is one.
    pub fn of(error: anyhow::Error) -> anyhow::Error {
        anyhow::Error::new(Final(error))
    }
}

impl fmt::Display for Final {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Final {}

/// The process's exit code after this error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<Final>() { NO_RESTART_HELPS } else { FAILED }
}

/// What a node has to say that could not start; where it lost its data, with the command that puts another in its place.
pub fn of_start(error: StartError, config: &Config) -> anyhow::Error {
    let (is_final, is_loss) = (error.is_final(), error.is_loss(NodeId(config.node)));
    let mut error = anyhow::Error::new(error);
    if is_loss {
        let command = replacement(config, &certificates::names_in(&config.tls.certificate));
        error = anyhow::anyhow!(
            "{error:#}. The whole command, where the CA's key is in ca/, a copy of a node's configuration is at hand for \
             --like (of any, this one's too), and --url or REVEILLE_ADMIN_URL leads to a node that runs: {command}"
        );
    }
    if is_final { Final::of(error) } else { error }
}

/// The command that puts a new node in this one's place, at the same addresses.
fn replacement(config: &Config, names: &[String]) -> String {
    let http = config.http.advertise.clone().unwrap_or_else(|| config.http.listen.to_string());
    let http = http.split_once("://").map_or(&*http, |(_, rest)| rest).trim_end_matches('/');
    let names = if names.is_empty() { String::new() } else { format!(" --names {}", names.join(",")) };
    let node = config.node;
    format!(
        "reveille cluster replace {node} --ca ca --peer {} --session {} --http {http} --admin {} --listen {}{names} --like \
         CONFIG-OF-ANY-NODE --out node-{node}-replaced",
        config.peer.told(),
        config.session.told(),
        config.admin.listen,
        config.peer.listen.ip(),
    )
}
