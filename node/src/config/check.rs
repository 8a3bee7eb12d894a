//! What is wrong with a configuration that can be seen without opening a port: all that a node refuses of it before it looks
//! at its certificates. Nothing is read here but whether the data folder holds a log.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};

use reveille_protocol::limits;

use super::Config;
use crate::join::JoinToken;

/// Smallest segment: a largest log entry must fit twice.
const MIN_SEGMENT: usize = 10 << 20;
/// Shortest time between two check-ins, in seconds.
const MIN_CHECK_IN: u32 = 60;
/// Shortest and longest time between two keepalives, in seconds: below it terminals' batteries and the node's processor pay
/// for nothing, above it most NATs have forgotten the binding.
const MIN_KEEPALIVE: u16 = 5;
const MAX_KEEPALIVE: u16 = 600;
/// Networks in `notify.forbid`: each is looked at before each notification.
const MAX_FORBIDDEN: usize = 256;
/// Groups on a node: each costs timers and messages even when idle.
const MAX_GROUPS: u16 = 64;

impl Config {
    /// Does this node begin a cluster with others? Whoever has a log has begun; whoever has a token joins.
    fn founds(&self) -> bool {
        self.cluster.join.is_none() && !self.data.join("log").exists()
    }

    /// What the cluster that this node begins, if it begins one, will have to do without; most want neither.
    pub fn remarks(&self) -> Vec<&'static str> {
        let tenant = &self.cluster.tenant;
        let token = "nobody may publish or make tokens: there is no cluster.tenant.admin_token_sha256";
        let key = "no terminal can enrol: there is no cluster.tenant.enrolment_key, only registered keys are let in";
        let said = [
            (tenant.admin_token_sha256.is_empty(), token),
            (!tenant.open && tenant.enrolment_key.is_empty(), key),
        ];
        said.into_iter().filter(|(so, _)| *so && self.founds()).map(|(_, remark)| remark).collect()
    }

    /// What is wrong with it that can be seen without opening anything: all that `node` refuses of it before it looks at its
    /// certificates.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(self.cluster_id()? != 0, "cluster.id must not be zero");
        let nodes = self.nodes()?;
        ensure!(self.node != 0, "node must be a number above zero");
        match &self.cluster.join {
            Some(token) => {
                let token: JoinToken = token.parse().context("cluster.join")?;
                ensure!(
                    token.node == self.node,
                    "cluster.join is the token of node {}, and this is node {}",
                    token.node,
                    self.node
                );
            }
            None => {
                ensure!(nodes.contains_key(&self.node), "node {} is not among cluster.nodes", self.node);
            }
        }
        self.check_addresses(&nodes)?;
        self.cluster.tenant.admin_token()?;
        self.cluster.tenant.enrolment()?;
        ensure!((1..=MAX_GROUPS).contains(&self.cluster.groups), "cluster.groups must be 1 to {MAX_GROUPS}");
        ensure!(
            self.storage.segment_bytes >= MIN_SEGMENT,
            "storage.segment_bytes must be at least {MIN_SEGMENT}"
        );
        ensure!(
            self.notify.check_in >= MIN_CHECK_IN,
            "notify.check_in must be at least {MIN_CHECK_IN} s: it is what terminals do when nothing else happens"
        );
        ensure!(
            (MIN_KEEPALIVE..=MAX_KEEPALIVE).contains(&self.notify.keepalive),
            "notify.keepalive may be {MIN_KEEPALIVE} to {MAX_KEEPALIVE} s"
        );
        ensure!(
            self.notify.forbid.len() <= MAX_FORBIDDEN,
            "notify.forbid may have {MAX_FORBIDDEN} networks, and has {}",
            self.notify.forbid.len()
        );
        ensure!(
            self.session.linger_max().is_none_or(|most| most <= limits::MAX_LINGER),
            "session.linger_max may be {} s at most; a terminal that is wanted longer comes again",
            limits::MAX_LINGER.as_secs()
        );
        let ports = [
            ("peer", &self.peer.listen, self.peer.advertise.is_some()),
            ("session", &self.session.listen, self.session.advertise.is_some()),
            ("http", &self.http.listen, self.http.advertise.is_some()),
        ];
        for (port, listen, advertised) in ports {
            ensure!(
                advertised || !listen.ip().is_unspecified(),
                "{port}.advertise is needed where {port}.listen is {listen}: others cannot connect to that"
            );
        }
        ensure!(self.http.workers >= 1, "http.workers must be at least 1");
        if !self.http.tls && !self.http.listen.ip().is_loopback() {
            bail!("http.tls = false is allowed only where http.listen is on loopback");
        }
        if self.cluster.tenant.open && !self.only_loopback() {
            bail!("cluster.tenant.open is allowed only where every port is on loopback");
        }
        Ok(())
    }

    /// No two of all addresses are the same, and the cluster knows this node by the one that it tells.
    fn check_addresses(&self, nodes: &BTreeMap<u64, String>) -> anyhow::Result<()> {
        let mut known = BTreeMap::new();
        for (id, address) in nodes {
            let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            ensure!(
                port.is_some_and(|(_, port)| port.parse::<u16>().is_ok()),
                "cluster.nodes: the address of node {id} is {address:?}, and must be HOST:PORT"
            );
            if let Some(other) = known.insert(address, id) {
                bail!("cluster.nodes: nodes {other} and {id} have one address, {address}");
            }
        }
        let tcp = [
            ("peer.listen", self.peer.listen),
            ("session.listen", self.session.listen),
            ("http.listen", self.http.listen),
            ("admin.listen", self.admin.listen),
        ];
        let udp = [
            ("notify.bind", self.notify.bind),
            ("notify.anchor", self.notify.anchor.unwrap_or(self.session.listen)),
        ];
        for ports in [&tcp[..], &udp] {
            for (at, (one, first)) in ports.iter().enumerate() {
                let same = ports[at + 1..].iter().find(|(_, second)| overlap(*first, *second));
                if let Some((other, second)) = same {
                    bail!("{one} is {first} and {other} is {second}: one port cannot be both");
                }
            }
        }
        if let Some(entry) = nodes.get(&self.node) {
            let told = self.peer.advertise.clone().unwrap_or_else(|| self.peer.listen.to_string());
            ensure!(
                may_be_one(entry, &told),
                "cluster.nodes has node {} at {entry}, and peer.advertise, or else peer.listen, tells others {told}",
                self.node
            );
        }
        Ok(())
    }

    /// Can the cluster begin so, if this node begins one?
    pub fn may_begin(&self) -> anyhow::Result<()> {
        if !self.founds() {
            return Ok(());
        }
        let (nodes, data) = (self.cluster.nodes.len(), self.data.display());
        ensure!(
            nodes % 2 == 1,
            "cluster.nodes has {nodes} nodes, and {data} holds no data yet: a cluster begins with an odd number of nodes, so that \
             a majority is one; if this node's data was lost, replace it: reveille cluster replace"
        );
        Ok(())
    }
}

/// Can one process not have both? Port 0 is any free one.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() != 0 && one.port() == other.port() && (any || one.ip() == other.ip())
}

/// Can both be ways to the same port? Names may be two for one address; ports, and addresses, are what they are.
fn may_be_one(entry: &str, told: &str) -> bool {
    let (Some((host, port)), Some((other, told))) = (entry.rsplit_once(':'), told.rsplit_once(':')) else {
        return false;
    };
    let ip = |host: &str| host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().ok();
    port == told && ip(host).zip(ip(other)).is_none_or(|(one, other)| one == other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use super::*;
    use crate::config::FirstTenant;

    fn complete() -> Config {
        let text = include_str!("../../../docs/configuration.md");
        let (_, rest) = text.split_once("```toml\n").unwrap();
        let (documented, _) = rest.split_once("```").unwrap();
        let hash = "ab".repeat(32);
        let mut config: Config = toml::from_str(&documented.replace("\"…\"", &format!("{hash:?}"))).unwrap();
        config.data = PathBuf::from("/no/such/folder");
        config
    }

    #[test]
    fn what_cannot_be_started_is_said() {
        complete().check().unwrap();
        complete().may_begin().unwrap();
        let refused = |change: fn(&mut Config), why: &str| {
            let mut config = complete();
            change(&mut config);
            let said = config.check().and_then(|()| config.may_begin()).unwrap_err().to_string();
            assert!(said.contains(why), "{why} is not in {said}");
        };
        refused(
            |config| config.cluster.tenant.admin_token_sha256 = "abc".to_owned(),
            "admin_token_sha256 must be",
        );
        refused(|config| config.cluster.tenant.enrolment_key = "g".repeat(64), "enrolment_key must be 64");
        refused(|config| drop(config.cluster.nodes.remove("3")), "an odd number of nodes");
        let one_address = |config: &mut Config| {
            config.cluster.nodes.insert("3".to_owned(), "n2.example.org:7100".to_owned());
        };
        refused(one_address, "nodes 2 and 3 have one address");
        let no_port = |config: &mut Config| {
            config.cluster.nodes.insert("3".to_owned(), "n3.example.org".to_owned());
        };
        refused(no_port, "must be HOST:PORT");
        refused(|config| config.http.listen = config.session.listen, "one port cannot be both");
        refused(|config| config.admin.listen.set_port(7100), "peer.listen is 0.0.0.0:7100 and admin.listen");
        refused(|config| config.notify.bind.set_port(8443), "notify.bind is 0.0.0.0:8443");
        refused(|config| config.peer.advertise = Some("n1.example.org:7101".to_owned()), "has node 1 at");
        refused(|config| config.cluster.groups = 65, "1 to 64");
    }

    #[test]
    fn a_name_and_an_address_may_be_one_port() {
        assert!(may_be_one("n1.example.org:7100", "10.0.0.1:7100"));
        assert!(may_be_one("[::1]:7100", "[0:0::1]:7100"));
        assert!(!may_be_one("10.0.0.1:7100", "10.0.0.2:7100"));
        assert!(!may_be_one("n1:7100", "n1:7101"));
    }

    /// A cluster that is there may have any number of nodes, and whoever is removed is taken out of the list.
    #[test]
    fn who_has_data_does_not_found() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("log")).unwrap();
        let mut config = complete();
        config.data = folder.path().to_owned();
        config.cluster.nodes.remove("3");
        config.cluster.tenant = FirstTenant::default();
        config.check().unwrap();
        config.may_begin().unwrap();
    }
}
