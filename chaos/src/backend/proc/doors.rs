//! Where terminals find a cluster whose nodes come and go: addresses that stay, as those that a service name stands for, and
//! that lead to the nodes that belong to it now.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use reveille_chaos::scenario::Scenario;
use reveille_links::{Link, Route};

use super::membership;

/// A terminal tries so many addresses of a name.
const MOST: usize = 16;

/// See the module.
#[derive(Default)]
pub(super) struct Doors(Vec<Link>);

impl Doors {
    /// As many as the cluster will have nodes, where it does not keep those that it began with; else none.
    ///
    /// # Errors
    /// If there is no port for one.
    pub(super) async fn open(
        scenario: &Scenario,
        seed: u64,
        sessions: &[SocketAddr],
    ) -> anyhow::Result<Doors> {
        let mut doors = Vec::new();
        if scenario.faults().any(|fault| membership::may_change(fault.kind)) {
            let joins = scenario.faults().filter(|fault| fault.kind.name() == "add-node").count();
            // No node may want a door's port again.
            let taken: BTreeSet<u16> = sessions.iter().map(SocketAddr::port).collect();
            while doors.len() < (sessions.len() + joins).min(MOST) {
                let to = sessions[doors.len() % sessions.len()];
                let name = format!("door {}", doors.len() + 1);
                let listen = SocketAddr::from(([127, 0, 0, 1], 0));
                let link = Link::tcp(Route { name, seed, listen, to, from: None }).await?;
                if !taken.contains(&link.address().port()) {
                    doors.push(link);
                }
            }
        }
        Ok(Doors(doors))
    }

    /// Where they are, if there are any.
    pub(super) fn addresses(&self) -> Option<Vec<String>> {
        (!self.0.is_empty()).then(|| self.0.iter().map(|door| door.address().to_string()).collect())
    }

    /// They lead to these nodes from now on, the first to the first.
    pub(super) fn lead(&self, sessions: &[SocketAddr]) {
        for (door, to) in self.0.iter().zip(sessions.iter().cycle()) {
            door.lead(*to);
        }
    }
}
