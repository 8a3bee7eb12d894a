//! What the kinds of faults do to nodes, terminals and publishers: as they strike, while they last, and as they are taken back.

use std::time::Duration;

use anyhow::{Context, bail};
use reveille_chaos::scenario::{Fault, FileKind, Kind};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::nodes::{Due, Nodes, State};
use super::strike::Striker;
use super::victims::Victims;
use super::{files, membership, shim, starve};
use crate::backend::terminals::Order;

/// A node has started, and mostly is ready, after this.
const STARTED: Duration = Duration::from_secs(2);

/// What lasts as long as its fault, beside the state of processes.
pub(super) enum Held {
    /// A node's processor.
    Slowed(starve::Slowed),
    /// How many open files a process was allowed before.
    Files(u32, String),
}

impl Striker {
    /// Does what a fault does; what is to be given back, and a word for who reads the history.
    pub(super) async fn break_it(
        &mut self,
        nodes: &mut Nodes,
        fault: &Fault,
        victims: &Victims,
        draw: u64,
        door: &watch::Receiver<bool>,
    ) -> anyhow::Result<(Vec<Held>, String)> {
        let (mut held, mut detail) = (Vec::new(), String::new());
        match victims {
            Victims::Nodes(ids) if fault.kind.name() == "power" => nodes.power(ids).await?,
            Victims::Nodes(ids) => {
                for id in ids {
                    match fault.kind.name() {
                        "kill" | "out-of-memory" => nodes.kill(*id).await?,
                        "stop" => nodes.terminate(*id).await?,
                        "pause" => nodes.pause(*id).await?,
                        "restart" | "crash-loop" => {
                            nodes.kill(*id).await?;
                            nodes.start_node(*id)?;
                        }
                        "upgrade" => {
                            nodes.terminate(*id).await?;
                            nodes.ended(*id).await?;
                            let node = nodes.node(*id)?;
                            node.other = !node.other;
                            nodes.start_node(*id)?;
                        }
                        "cpu" => {
                            let share = fault.share.map_or(0.0, |share| share.0);
                            held.push(Held::Slowed(starve::slow(self.run.clone(), *id, share)));
                        }
                        "few-files" => {
                            let pid = nodes.pid(*id).with_context(|| format!("node {id} does not run"))?;
                            held.push(Held::Files(pid, starve::no_more_files(pid).await?));
                            nodes.node(*id)?.due.starved = true;
                        }
                        "move-leaders" => {
                            self.run.order(*id, &format!("/cluster/nodes/{id}/move-leaders")).await
                        }
                        "snapshot" => self.run.order(*id, "/cluster/snapshot").await,
                        "sync-error" => nodes.shim()?.fail_sync(*id)?,
                        // Ordered before it was told.
                        "fail-point" => {}
                        _ if shim::does(fault.kind) => {}
                        _ if fault.kind.is_of_folders() => {
                            nodes.kill(*id).await?;
                            detail = self.change(nodes, fault, *id, draw).await?;
                            nodes.start_node(*id)?;
                        }
                        // Done before it was told: the cluster may have refused it.
                        _ if fault.kind.is_membership() => {}
                        other => bail!("{other} is none of this backend's faults"),
                    }
                }
            }
            // Struck on the way, or done before it was told.
            Victims::Ways(_) | Victims::Cluster => {}
            Victims::Publishers => self.run.known().hurried = true,
            Victims::Terminals(numbers) => {
                for number in numbers {
                    let Some(order) = Order::of(fault.kind, door) else {
                        bail!("{} is none of this backend's faults", fault.kind.name())
                    };
                    // One that has orders enough needs no other.
                    let _ = self.orders[*number].try_send(order);
                }
            }
        }
        Ok((held, detail))
    }

    /// Changes the files of a node that is down; what it may do about that, and in words what was done.
    async fn change(
        &mut self,
        nodes: &mut Nodes,
        fault: &Fault,
        id: u64,
        draw: u64,
    ) -> anyhow::Result<String> {
        let (kind, file) = (fault.kind.name(), fault.file.unwrap_or(FileKind::Any));
        let copy = self.copies.remove(&(draw, id));
        let node = nodes.node(id)?;
        let tables = kind != "wipe" && kind != "roll-back" && file != FileKind::Log;
        let log = file != FileKind::Tables;
        let Due { replaced, rebuilt, .. } = node.due;
        node.due = Due { replaced: replaced || log, rebuilt: rebuilt || tables, ..node.due };
        let data = node.data.clone();
        let done = spawn_blocking(move || match (kind, copy) {
            ("wipe", _) => files::wipe(&data).map(|()| String::new()),
            ("bit-flip", _) => files::flip(&data, file, draw),
            ("truncate", _) => files::truncate(&data, file, draw),
            ("roll-back", Some(copy)) => files::put_back(&data, &copy).map(|()| String::new()),
            _ => bail!("there is no copy of its folder"),
        });
        done.await.context("files")?.with_context(|| format!("the files of node {id}"))
    }

    /// Copies the folder of whoever will have it back later. What a copy lacks is told only if its node has started since, so
    /// it is started after it. Whether it was done.
    pub(super) async fn copy(
        &mut self,
        nodes: &mut Nodes,
        victims: &[u64],
        draw: u64,
    ) -> anyhow::Result<bool> {
        for id in victims {
            let node = nodes.node(*id)?;
            // A new cluster asks for an account of starts a while after it began; without one no copy is told.
            let starts = std::fs::read_to_string(node.data.join("starts")).unwrap_or_default();
            if starts.is_empty() || starts.starts_with("entered 0000000000000000") {
                return Ok(false);
            }
        }
        for id in victims {
            let data = nodes.node(*id)?.data.clone();
            let to = data.with_extension("earlier");
            nodes.kill(*id).await?;
            let copied = to.clone();
            spawn_blocking(move || files::copy(&data, &to)).await.context("files")??;
            nodes.start_node(*id)?;
            self.copies.insert((draw, *id), copied);
        }
        nodes.noted(&self.run);
        Ok(true)
    }

    /// Nodes in a crash loop are killed again when they have started; forgers send one each time that is looked.
    pub(super) async fn loops(&mut self, nodes: &mut Nodes) -> anyhow::Result<()> {
        if let Some(shim) = &mut nodes.shim {
            shim.tell()?;
        }
        for at in 0..self.there.len() {
            let there = &self.there[at];
            if there.kind.name() == "notification-forged"
                && let Victims::Terminals(numbers) = &there.victims
            {
                let links = self.run.links();
                for number in numbers {
                    links.forge(*number, &mut self.forger);
                }
                continue;
            }
            let Victims::Nodes(ids) = &there.victims else { continue };
            if there.kind.name() != "crash-loop" || there.last.elapsed() < STARTED {
                continue;
            }
            for id in ids.clone() {
                nodes.kill(id).await?;
                nodes.start_node(id)?;
            }
            self.there[at].last = Instant::now();
            self.run.cover("crash-loop.killed-again");
            nodes.noted(&self.run);
        }
        Ok(())
    }

    /// All is as it was, as far as this fault is concerned.
    pub(super) async fn undo(
        &mut self,
        nodes: &mut Nodes,
        kind: Kind,
        victims: &Victims,
        held: Vec<Held>,
    ) -> anyhow::Result<()> {
        for held in held {
            match held {
                Held::Slowed(slowed) => slowed.end().await,
                // One that is gone has no limits.
                Held::Files(pid, limit) => drop(starve::limit_files(pid, &limit).await),
            }
        }
        let ids = match victims {
            Victims::Nodes(ids) => ids,
            Victims::Publishers => {
                self.run.known().hurried = false;
                return Ok(());
            }
            Victims::Ways(_) | Victims::Terminals(_) | Victims::Cluster => return Ok(()),
        };
        for id in ids {
            match (kind.name(), nodes.state(*id)) {
                ("drain", _) => membership::resume(&self.run, *id).await,
                ("cpu", _) => {}
                ("pause", State::Stopped) => nodes.resume(*id).await?,
                (_, State::Gone) if !self.is_kept_down(*id) => {
                    nodes.ended(*id).await?;
                    self.start(nodes, *id)?;
                }
                // It was interrupted before it could strike, is not away by this one, or only an operator helps it.
                (_, State::Runs | State::Stopped | State::Gone | State::Refused(_)) => {}
            }
            if kind.name() == "few-files" {
                nodes.node(*id)?.due.starved = false;
            }
        }
        Ok(())
    }
}
