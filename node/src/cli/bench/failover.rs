//! `bench failover`: a leader fails under load, again and again: how long nobody could publish to its shards, and how
//! long when it comes back.

use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::super::dev::cluster::DevCluster;
use super::super::dev::network::Cut;
use super::load::{Load, addressees, shards};
use super::{Report, histogram, quantiles, record, register};

/// Make leaders fail.
#[derive(Debug, Args)]
pub(super) struct Failover {
    /// In which way.
    #[arg(long, value_enum, default_value_t = How::Kill)]
    pub(super) how: How,
    /// Leaders to fail, one after the other.
    #[arg(long, alias = "kills", default_value_t = 20)]
    times: usize,
    /// How long a leader that is not killed stays away; longer than 3 s it is marked down and its links break.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    away: Duration,
    /// Publishes a second, to terminals of the shards that the victim leads, through the nodes that survive.
    #[arg(long, default_value_t = 400)]
    rate: usize,
    /// Terminals, over all shards.
    #[arg(long, default_value_t = 1000)]
    terminals: usize,
}

/// How a leader fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum How {
    /// kill -9; it is started again.
    Kill,
    /// SIGSTOP, later SIGCONT.
    Stop,
    /// All its packets are lost, as if it had no power or no network. Needs root.
    Cut,
    /// Packets to it are lost.
    CutIn,
    /// Packets from it are lost.
    CutOut,
}

impl How {
    /// Which packets of the victim are lost.
    pub(super) fn cut(self) -> Option<Cut> {
        match self {
            How::Kill | How::Stop => None,
            How::Cut => Some(Cut::Both),
            How::CutIn => Some(Cut::In),
            How::CutOut => Some(Cut::Out),
        }
    }
}

/// Load before each failure, after a kill, and after a return.
const AROUND: Duration = Duration::from_secs(1);
const AFTER: Duration = Duration::from_secs(2);

impl Failover {
    pub(super) async fn run(&self, cluster: &mut DevCluster, report: &Report) -> anyhow::Result<()> {
        let terminals = register(cluster, self.terminals).await?;
        let (mut gaps, mut returns) = (histogram()?, histogram()?);
        let (mut acknowledged, mut refused) = (0, 0);
        for number in 0..self.times {
            let first = cluster.nodes.first().context("a cluster without nodes")?.id;
            let groups = shards(cluster, first).await?;
            let victim = groups[number % groups.len()].1;
            let led =
                |group: u16| groups.iter().any(|(known, leader, _)| *known == group && *leader == victim);
            let mut mine = addressees(&terminals, groups.len())?;
            mine.retain(|(_, group)| led(*group));
            anyhow::ensure!(!mine.is_empty(), "no terminal belongs to a shard of node {victim}");
            let survivors: Vec<String> =
                cluster.nodes.iter().filter(|node| node.id != victim).map(|node| node.http.clone()).collect();
            let load = Load::start(self.rate, survivors, cluster.token.clone(), mine);
            tokio::time::sleep(AROUND).await;
            let failed = Instant::now();
            match (self.how, self.how.cut()) {
                (How::Kill, _) => cluster.kill(victim)?,
                (How::Stop, _) => cluster.signal(victim, "STOP")?,
                (_, Some(cut)) => cluster.network.cut(victim, cut)?,
                (_, None) => unreachable!("the others cut"),
            }
            let back = match self.how {
                How::Kill => None,
                _ => {
                    tokio::time::sleep(self.away).await;
                    let back = Instant::now();
                    match self.how {
                        How::Stop => cluster.signal(victim, "CONT")?,
                        _ => cluster.network.heal()?,
                    }
                    Some(back)
                }
            };
            tokio::time::sleep(AFTER).await;
            let until = Instant::now();
            let done = load.stop().await?;
            let gap = done.longest_gap(failed, back.unwrap_or(until))?;
            record(&mut gaps, gap);
            acknowledged += done.acknowledged();
            refused += done.refused;
            if let Some(back) = back {
                record(&mut returns, done.longest_gap(back, until)?);
            }
            tracing::info!(number, victim, ?gap, "a leader failed");
            if self.how == How::Kill {
                cluster.start_again(victim)?;
            }
            cluster.ready().await?;
        }
        let how = self.how.to_possible_value().map(|how| how.get_name().to_owned());
        let mut figures = vec![
            ("how", json!(how)),
            ("times", json!(self.times)),
            ("write_gap_ms", quantiles(&gaps)),
            ("acknowledged", json!(acknowledged)),
            ("refused", json!(refused)),
        ];
        if self.how != How::Kill {
            figures.insert(3, ("return_gap_ms", quantiles(&returns)));
        }
        report.figures("failover", &figures)
    }
}
