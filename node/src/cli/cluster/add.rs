//! `reveille cluster add` and `replace`: everything that a new machine needs, in one folder: certificate, key, CA and a
//! configuration with its join token. The cluster gives the id; nothing is sent to the machine.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use reveille_cluster::overview::Overview;
use serde_json::json;

use super::super::certs::{Ca, write_secret};
use super::super::output;
use super::{Operator, authority};
use crate::config::{Admin, Cluster, Config, FirstTenant, Http, Port, Session, Tls};
use crate::join::{JoinToken, ca_fingerprint};
use crate::random::random;

/// What the new node is. Where it listens follows from where it is reached, unless a configuration says otherwise.
#[derive(Debug, Args)]
pub(super) struct Add {
    /// Where other nodes will reach it, HOST:PORT.
    #[arg(long)]
    peer: String,
    /// Where terminals will reach it, HOST:PORT.
    #[arg(long)]
    session: String,
    /// Where publishers will reach it, HOST:PORT.
    #[arg(long)]
    http: String,
    /// Where its operator's listener will be.
    #[arg(long, default_value = "127.0.0.1:9100")]
    admin: SocketAddr,
    /// The address that it listens on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    listen: IpAddr,
    /// Names and addresses in its certificate beside those above, separated by commas: the service name, above all.
    #[arg(long, value_delimiter = ',')]
    names: Vec<String>,
    /// Folder with ca.pem and ca.key.
    #[arg(long)]
    ca: PathBuf,
    /// A configuration of another node, to take everything else from.
    #[arg(long)]
    like: Option<PathBuf>,
    /// How long it may wait to join.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    valid: Duration,
    /// Days that its certificate is valid.
    #[arg(long, default_value_t = 30)]
    days: u32,
    /// Folder to write to. A repeated command needs another one, or this one emptied.
    #[arg(long)]
    out: PathBuf,
    /// Then wait until it has joined and replicates, as 10m.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

fn split(what: &str, address: &str) -> anyhow::Result<(String, u16)> {
    let (host, port) = address.rsplit_once(':').with_context(|| format!("--{what} must be HOST:PORT"))?;
    let port = port.parse().with_context(|| format!("--{what} must be HOST:PORT"))?;
    Ok((host.trim_matches(['[', ']']).to_owned(), port))
}

/// Was this node invited before, and has not joined?
fn is_invited(overview: &Overview, node: u64) -> bool {
    overview.nodes.iter().any(|known| known.node.0 == node && known.standing == "invited")
}

impl Add {
    pub(super) async fn run(&self, operator: &Operator, replaces: Option<u64>) -> anyhow::Result<()> {
        // All that can be wrong here is looked at before the cluster is asked for an id.
        let hosts = [("peer", &self.peer), ("session", &self.session), ("http", &self.http)];
        let hosts = hosts.map(|(what, address)| split(what, address));
        let [peer, session, http] = hosts;
        let (peer, session, http) = (peer?, session?, http?);
        let ca = Ca::read(&self.ca)?;
        let like = self.like.as_deref().map(Config::load).transpose()?;
        ensure!(
            !self.out.exists() || fs::read_dir(&self.out)?.next().is_none(),
            "{} is not empty; give --out another folder",
            self.out.display()
        );
        let tls = like.as_ref().is_none_or(|like| like.http.tls);
        ensure!(
            tls || self.listen.is_loopback(),
            "--like has http.tls = false, which is for loopback only: give --listen 127.0.0.1, or another --like"
        );
        let overview = operator.overview().await?;
        authority::belongs(&self.ca, &ca.pem, like.as_ref(), &overview).await?;
        let secret: [u8; 16] = random();
        let mut token = JoinToken::new(0, ca_fingerprint(&ca.der()?), secret);
        let asked = json!({
            "peer": self.peer,
            "token_sha256": token.hash().to_string(),
            "valid": self.valid.as_secs(),
            "replaces": replaces,
        });
        let node = operator.post("/cluster/nodes", Some(asked)).await?["node"]
            .as_u64()
            .context("the cluster gave no id")?;
        token.node = node;
        let renewed = is_invited(&overview, node);
        let mut names: Vec<String> = self.names.clone();
        names.extend([&peer.0, &session.0, &http.0].map(Clone::clone));
        names.sort();
        names.dedup();
        let cluster = u64::from_str_radix(&overview.cluster, 16).context("the cluster's id")?;
        let (certificate, key) = ca.node(node, cluster, names, self.days)?;
        fs::create_dir_all(&self.out).with_context(|| format!("{}", self.out.display()))?;
        let file = |name: String| self.out.join(name);
        write_secret(&file(format!("node-{node}.key")), &key)?;
        fs::write(file(format!("node-{node}.pem")), certificate)?;
        fs::write(file("ca.pem".to_owned()), &ca.pem)?;
        let config = self.config(node, &overview, token, like, [peer.1, session.1, http.1]);
        let path = file(format!("node-{node}.toml"));
        // It holds the token.
        write_secret(&path, &toml::to_string(&config)?)?;
        self.tell(operator, node, replaces, &path, renewed)?;
        if !self.wait.is_zero() {
            let there = |overview: &Overview| {
                let joined = overview.nodes.iter().any(|known| known.node.0 == node && known.up);
                joined && overview.settled
            };
            operator.wait(self.wait, &format!("add node {node}"), false, there).await?;
        }
        Ok(())
    }

    fn config(
        &self,
        node: u64,
        overview: &Overview,
        token: JoinToken,
        like: Option<Config>,
        [peer, session, http]: [u16; 3],
    ) -> Config {
        let at = |port| SocketAddr::new(self.listen, port);
        let advertise = |address: &String| Some(address.clone());
        let seeds = overview.nodes.iter().filter(|known| known.up && !known.peer.is_empty());
        let nodes: BTreeMap<String, String> =
            seeds.map(|known| (known.node.to_string(), known.peer.clone())).collect();
        let tls = like.as_ref().is_none_or(|like| like.http.tls);
        let scheme = if tls { "https" } else { "http" };
        let workers = like.as_ref().map_or(1, |like| like.http.workers);
        Config {
            file: PathBuf::new(),
            node,
            // Beside the configuration: where that is will be its machine's business.
            data: PathBuf::from("data"),
            cluster: Cluster {
                id: overview.cluster.clone(),
                groups: overview.shards,
                nodes,
                join: Some(token.to_string()),
                tenant: FirstTenant::default(),
            },
            tls: Tls {
                ca: PathBuf::from("ca.pem"),
                certificate: PathBuf::from(format!("node-{node}.pem")),
                key: PathBuf::from(format!("node-{node}.key")),
            },
            peer: Port { listen: at(peer), advertise: advertise(&self.peer) },
            session: Session {
                listen: at(session),
                advertise: advertise(&self.session),
                linger_max: like.as_ref().and_then(|like| like.session.linger_max),
            },
            http: Http {
                listen: at(http),
                advertise: Some(format!("{scheme}://{}", self.http)),
                tls,
                workers,
            },
            admin: Admin { listen: self.admin },
            admission: like.as_ref().map(|like| like.admission.clone()).unwrap_or_default(),
            notify: like.as_ref().map(|like| like.notify.clone()).unwrap_or_default(),
            storage: like.as_ref().map(|like| like.storage.clone()).unwrap_or_default(),
            log: like.map(|like| like.log).unwrap_or_default(),
        }
    }

    fn tell(
        &self,
        operator: &Operator,
        node: u64,
        replaces: Option<u64>,
        config: &Path,
        renewed: bool,
    ) -> anyhow::Result<()> {
        if operator.json {
            return output::json(
                &json!({ "node": node, "replaces": replaces, "config": config, "renewed": renewed }),
            );
        }
        let instead = replaces.map(|other| format!(" in the place of node {other}")).unwrap_or_default();
        output::line(format!(
            "node {node} may join{instead} within {}",
            humantime::format_duration(self.valid)
        ));
        if renewed {
            output::line("it was invited already: the token given out for it before is void");
        }
        output::line(format!(
            "take {} to its machine (node-{node}.key and the join token in node-{node}.toml are secrets) and start it there:",
            self.out.display()
        ));
        output::line(format!("  reveille node --create --config node-{node}.toml"));
        Ok(())
    }
}
