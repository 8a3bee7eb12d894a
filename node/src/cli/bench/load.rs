//! A steady load of publishes, and the longest time that it stood still.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use reveille_protocol::directory::group_of_slot;
use reveille_protocol::id::TerminalId;
use tokio::sync::watch;

use super::super::dev::cluster::DevCluster;
use super::connect;

/// Publishers that share the rate. Each waits for its answer, so a gap stops them all.
const PUBLISHERS: usize = 16;

/// A terminal, and the group that keeps it.
pub(super) type Addressee = (String, u16);

/// Terminals with their groups.
pub(super) fn addressees(terminals: &[String], groups: usize) -> anyhow::Result<Vec<Addressee>> {
    let addressee = |id: &String| -> anyhow::Result<Addressee> {
        let terminal: TerminalId = id.parse().context("a terminal's id")?;
        Ok((id.clone(), group_of_slot(terminal.slot(), groups as u16).0))
    };
    terminals.iter().map(addressee).collect()
}

/// Each shard group with its leader and its term, as a node sees them.
pub(super) async fn shards(cluster: &DevCluster, node: u64) -> anyhow::Result<Vec<(u16, u64, u64)>> {
    let node = cluster.nodes.iter().find(|known| known.id == node).context("no such node")?;
    let status = connect(&node.admin).await?.send("GET", "/status", "", &[], Bytes::new()).await?.json()?;
    let groups = status["cluster"]["groups"].as_array().context("no groups in /status")?;
    let shards = groups.iter().filter_map(|group| {
        let number = group["group"].as_u64().filter(|number| *number > 0)?;
        Some((number as u16, group["leader"].as_u64()?, group["term"].as_u64()?))
    });
    Ok(shards.collect())
}

/// What a load came to.
#[derive(Default)]
pub(super) struct Done {
    /// When a publish was acknowledged, and to which group it went.
    acks: Vec<(Instant, u16)>,
    /// Publishes that were answered with something else.
    pub(super) refused: usize,
}

impl Done {
    pub(super) fn acknowledged(&self) -> usize {
        self.acks.len()
    }

    /// The longest time without an acknowledgement that ended between these two, of any group.
    pub(super) fn longest_gap(&self, from: Instant, to: Instant) -> anyhow::Result<Duration> {
        let mut groups: Vec<u16> = self.acks.iter().map(|(_, group)| *group).collect();
        groups.sort_unstable();
        groups.dedup();
        let gaps = groups.into_iter().map(|group| {
            let of_group = self.acks.iter().filter(|(_, of)| *of == group).map(|(at, _)| *at);
            let mut all: Vec<Instant> = of_group.filter(|at| *at < to).collect();
            // If there was none at the end, the silence lasted at least to there.
            all.push(to);
            all.sort_unstable();
            let ended = all.windows(2).filter(|pair| pair[1] > from).map(|pair| pair[1] - pair[0]);
            ended.max().unwrap_or_default()
        });
        gaps.max().context("nothing was published")
    }
}

/// A load that goes on.
pub(super) struct Load {
    stop: watch::Sender<bool>,
    done: Arc<Mutex<Done>>,
    tasks: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

impl Load {
    /// Publishes so many a second to these through these nodes.
    pub(super) fn start(rate: usize, urls: Vec<String>, token: String, to: Vec<Addressee>) -> Load {
        let (stop, stopped) = watch::channel(false);
        let (done, to) = (Arc::<Mutex<Done>>::default(), Arc::new(to));
        let pause = Duration::from_secs_f64(PUBLISHERS as f64 / rate.max(1) as f64);
        let began = Instant::now();
        let publisher = |number: usize| {
            let (url, token, to) = (urls[number % urls.len()].clone(), token.clone(), to.clone());
            let (done, stopped) = (done.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut client = connect(&url).await?;
                // One after the other: all at once, a gap would be measured in whole pauses.
                let first = began + pause.mul_f64(number as f64 / PUBLISHERS as f64);
                let mut tick = tokio::time::interval_at(first.into(), pause);
                // After a gap they go on where they would be: else all would publish at the same moment from then on.
                tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
                for at in (number..).step_by(PUBLISHERS) {
                    tick.tick().await;
                    if *stopped.borrow() {
                        break;
                    }
                    let (terminal, group) = &to[at % to.len()];
                    let path = format!("/v1/terminals/{terminal}/messages");
                    let body = Bytes::from(vec![b'x'; 512]);
                    let answer = client.send("POST", &path, &token, &[], body).await?;
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    match answer.status.as_u16() {
                        201 => done.acks.push((Instant::now(), *group)),
                        _ => done.refused += 1,
                    }
                }
                Ok(())
            })
        };
        let tasks = (0..PUBLISHERS).map(publisher).collect();
        Load { stop, done, tasks }
    }

    /// Ends it, and waits for the answers that are still on their way.
    pub(super) async fn stop(self) -> anyhow::Result<Done> {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.await??;
        }
        Ok(std::mem::take(&mut *self.done.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}
