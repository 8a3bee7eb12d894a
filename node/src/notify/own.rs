//! The cluster's own addresses: what its nodes' names in configuration and directory stand for. Followed, for nodes come
//! and names change. That nothing is sent there is `pace`'s, and so is what they share, for which their number is followed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use hyper::Uri;
use reveille_protocol::directory::Directory;
use tokio::sync::Notify;

use super::pace::Pace;

/// Names are looked up again after this: what they stand for changes now and then, and whoever runs them sees to it that
/// the old address is a node's for as long.
const AGAIN: Duration = Duration::from_secs(60);
/// A resolver that does not answer is waited for so long; what the name stood for goes on being refused.
const PATIENCE: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug, Default)]
pub struct Own {
    /// From the configuration, `host:port`.
    configured: BTreeSet<String>,
    /// What each name stood for when it was last known.
    known: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Own {
    /// `configured`: the nodes' `host:port` as the configuration has them.
    pub fn new<'a>(configured: impl Iterator<Item = &'a String>) -> Own {
        Own { configured: configured.cloned().collect(), known: BTreeMap::new() }
    }

    /// All of them now: names that stand for an address at once, the others by the resolver, one after the other.
    pub async fn look(&mut self, directory: &Directory) -> BTreeSet<IpAddr> {
        let names = names(&self.configured, directory);
        self.known.retain(|name, _| names.contains(name));
        for name in names {
            let found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host(name.as_str())).await;
            if let Ok(Ok(addresses)) = found {
                let ips = addresses.map(|address| address.ip().to_canonical()).collect();
                self.known.insert(name.clone(), ips);
            }
        }
        self.known.values().flatten().copied().collect()
    }

    /// Keeps `pace` told, until it is gone.
    pub async fn follow(
        mut self,
        directory: Arc<RwLock<Arc<Directory>>>,
        changed: Arc<Notify>,
        pace: Weak<Pace>,
    ) {
        let mut seen = None;
        loop {
            let latest = directory.read().unwrap_or_else(PoisonError::into_inner).clone();
            let names = names(&self.configured, &latest);
            // The directory changes with each node that starts or stops; most of that names nobody new.
            if seen.as_ref() != Some(&names) {
                let own = self.look(&latest).await;
                let Some(pace) = pace.upgrade() else { return };
                pace.set_own(own);
                pace.set_nodes(latest.nodes.len());
                seen = Some(names);
            }
            if tokio::time::timeout(AGAIN, changed.notified()).await.is_err() {
                seen = None;
            }
        }
    }
}

/// Everything that a node is reached by, `host:port`.
fn names(configured: &BTreeSet<String>, directory: &Directory) -> BTreeSet<String> {
    let mut names = configured.clone();
    for node in directory.nodes.values() {
        names.extend([&node.peer, &node.session].into_iter().filter(|name| !name.is_empty()).cloned());
        // Of its URL the host; any port names it.
        let host = node.http.parse::<Uri>().ok().and_then(|url| url.host().map(|host| format!("{host}:443")));
        names.extend(host);
    }
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::num::NonZeroU32;

    use reveille_protocol::destination::Learned;
    use reveille_protocol::directory::Node;
    use reveille_protocol::id::{KeyFingerprint, NodeId};

    use super::*;
    use crate::notify::pace::{Place, Rates, Verdict};

    fn directory(nodes: &[(&str, &str, &str)]) -> Directory {
        let nodes = nodes.iter().enumerate().map(|(id, (peer, session, http))| {
            let [peer, session, http] = [peer, session, http].map(|name| (*name).to_owned());
            (NodeId(id as u64 + 1), Node { peer, session, http, ..Node::default() })
        });
        Directory { nodes: nodes.collect(), ..Directory::default() }
    }

    #[tokio::test]
    async fn every_name_of_every_node_counts_while_it_has_it() {
        let configured = ["10.0.0.1:7100".to_owned()];
        let mut own = Own::new(configured.iter());
        let two = directory(&[
            ("10.0.0.1:7100", "8.8.8.1:8443", "https://8.8.8.2:8080"),
            ("[fd00::2]:7100", "[::ffff:10.0.0.2]:8443", "https://[2a00::2]/push"),
            ("", "", ""),
        ]);
        let found = own.look(&two).await;
        let expected = ["10.0.0.1", "8.8.8.1", "8.8.8.2", "fd00::2", "10.0.0.2", "2a00::2"];
        assert_eq!(found, expected.map(|ip| ip.parse().unwrap()).into());
        let found = own.look(&directory(&[])).await;
        assert_eq!(found, ["10.0.0.1".parse().unwrap()].into(), "the others are gone");
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_looked_up_now_stands_for_what_it_stood_for() {
        // Never a name (RFC 6761 section 6.4).
        let name = "n1.invalid:7100".to_owned();
        let mut own = Own::new([name.clone()].iter());
        own.known.insert(name, ["10.0.0.9".parse().unwrap()].into());
        assert_eq!(own.look(&Directory::default()).await, ["10.0.0.9".parse().unwrap()].into());
    }

    #[tokio::test]
    async fn a_node_that_joins_is_refused_as_a_destination() {
        let rate = NonZeroU32::new(1000).unwrap();
        let rates = Rates { per_second: rate, per_prefix: rate };
        let pace = Arc::new(Pace::new(rates, Vec::new(), false));
        let latest = Arc::new(RwLock::new(Arc::new(directory(&[]))));
        let changed = Arc::new(Notify::new());
        let following =
            tokio::spawn(Own::default().follow(latest.clone(), changed.clone(), Arc::downgrade(&pace)));
        let address = "8.8.8.8:5000".parse().unwrap();
        assert!(pace.may_challenge(address));
        *latest.write().unwrap() = Arc::new(directory(&[("8.8.8.8:7100", "", "")]));
        changed.notify_one();
        let refused = async {
            while pace.may_challenge(address) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), refused).await.expect("refused in time");
        let place = Place { address, learned: Learned::Claimed, key: KeyFingerprint([1; 32]) };
        assert_eq!(pace.turn(&place).await, Verdict::Forbidden);
        following.abort();
    }
}
