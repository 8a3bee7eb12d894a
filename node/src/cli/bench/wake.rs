//! `bench wake`: pushes to terminals that are asleep, from the publish to the acknowledgement; with `--rtt` through links
//! of that round trip between terminals and nodes.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use reveille_terminal::{Builder, Event, Terminal};
use serde_json::json;

use super::super::client::Client;
use super::super::dev::cluster::DevCluster;
use super::super::dev::demo;
use super::far::Far;
use super::{Report, connect, histogram, look_at, quantiles, record, register, usage};

/// Wake sleeping terminals.
#[derive(Debug, Args)]
pub(super) struct Wake {
    /// Pushes, over all terminals.
    #[arg(long, default_value_t = 300)]
    count: usize,
    /// Terminals, each woken again as soon as it sleeps: so many wakes are under way at once.
    #[arg(long, default_value_t = 1)]
    terminals: usize,
    /// Wake them one after the other: as many as there are terminals lie between two wakes of one.
    #[arg(long)]
    in_turn: bool,
    /// Others, registered and idle. Some of them are looked at before the measurement, so that caches hold them.
    #[arg(long, default_value_t = 0)]
    beside: usize,
    /// Bytes of a payload.
    #[arg(long, default_value_t = 512)]
    size: usize,
    /// The terminals keep no TLS ticket: every session is a full handshake.
    #[arg(long)]
    no_resumption: bool,
    /// Round trip between terminals and nodes, sessions and notifications alike: by links in this process. 0: links
    /// that add nothing. Default: no links.
    #[arg(long, value_parser = humantime::parse_duration)]
    rtt: Option<Duration>,
}

/// Wakes of each terminal before it counts: tickets, caches, addresses.
const WARM_UP: usize = 10;
/// Idle terminals that are looked at before the measurement: more rows than a node keeps in memory.
const LOOK_AT: usize = 100_000;

/// When each stage of a wake was reached, from the publish on.
struct Took {
    stored: Histogram<u64>,
    notified: Histogram<u64>,
    connected: Histogram<u64>,
    delivered: Histogram<u64>,
    acked: Histogram<u64>,
    asleep: Histogram<u64>,
}

impl Took {
    fn new() -> anyhow::Result<Took> {
        Ok(Took {
            stored: histogram()?,
            notified: histogram()?,
            connected: histogram()?,
            delivered: histogram()?,
            acked: histogram()?,
            asleep: histogram()?,
        })
    }

    fn add(&mut self, other: &Took) -> anyhow::Result<()> {
        self.stored.add(&other.stored)?;
        self.notified.add(&other.notified)?;
        self.connected.add(&other.connected)?;
        self.delivered.add(&other.delivered)?;
        self.acked.add(&other.acked)?;
        self.asleep.add(&other.asleep)?;
        Ok(())
    }
}

/// One terminal, and connections to publish to it: for each node one that publishes and one that waits.
struct Subject {
    terminal: Terminal,
    clients: Vec<(Client, Client)>,
    token: String,
    body: Bytes,
}

impl Wake {
    pub(super) async fn run(&self, cluster: &DevCluster, report: &Report) -> anyhow::Result<()> {
        let mut far = match self.rtt {
            Some(rtt) => Some(Far::new(cluster, rtt).await?),
            None => None,
        };
        let beside = register(cluster, self.beside).await?;
        let mut subjects = Vec::new();
        for number in 0..self.terminals.max(1) {
            subjects.push(self.subject(cluster, number, far.as_mut()).await?);
        }
        for subject in &mut subjects {
            subject.wake(WARM_UP, &mut Took::new()?).await?;
        }
        look_at(cluster, &beside, LOOK_AT.min(beside.len())).await?;
        // A node closes connections that nothing comes by for some seconds.
        for subject in &mut subjects {
            subject.clients = clients(cluster).await?;
        }
        let round_trip = match &far {
            Some(far) => Some(far.round_trip().await?.as_secs_f64() * 1000.0),
            None => None,
        };
        let me = std::process::id();
        let each = self.count.div_ceil(subjects.len());
        let count = each * subjects.len();
        let (cpu, began) = ((usage::nodes_cpu(cluster)?, usage::cpu_seconds(me)?), Instant::now());
        let (mut took, mut terminals) = (Took::new()?, Vec::new());
        let mut running = Vec::new();
        if self.in_turn {
            for _ in 0..each {
                for subject in &mut subjects {
                    subject.wake(1, &mut took).await?;
                }
            }
            terminals.extend(subjects.into_iter().map(|subject| subject.terminal));
        } else {
            for mut subject in subjects {
                running.push(tokio::spawn(async move {
                    let mut took = Took::new()?;
                    subject.wake(each, &mut took).await?;
                    anyhow::Ok((subject.terminal, took))
                }));
            }
        }
        for task in running {
            let (terminal, some) = task.await??;
            took.add(&some)?;
            terminals.push(terminal);
        }
        let (rate, nodes) =
            (count as f64 / began.elapsed().as_secs_f64(), usage::nodes_cpu(cluster)? - cpu.0);
        let clients = usage::cpu_seconds(me)? - cpu.1;
        let cpu_each = |seconds: f64| json!(seconds * 1000.0 / count as f64);
        report.figures(
            "wake",
            &[
                ("pushes", json!(count)),
                ("terminals", json!(terminals.len())),
                ("in_turn", json!(self.in_turn)),
                ("beside", json!(self.beside)),
                ("resumption", json!(!self.no_resumption)),
                ("rtt_ms", json!(self.rtt.map(|rtt| rtt.as_millis() as u64))),
                ("rtt_measured_ms", json!(round_trip)),
                ("per_second", json!(rate.round() as u64)),
                ("stored_ms", quantiles(&took.stored)),
                ("notified_ms", quantiles(&took.notified)),
                ("connected_ms", quantiles(&took.connected)),
                ("delivered_ms", quantiles(&took.delivered)),
                ("acked_ms", quantiles(&took.acked)),
                ("asleep_ms", quantiles(&took.asleep)),
                ("nodes_cpu_ms_each", cpu_each(nodes)),
                ("terminal_and_publisher_cpu_ms_each", cpu_each(clients)),
            ],
        )?;
        for terminal in terminals {
            terminal.shutdown().await;
        }
        Ok(())
    }

    async fn subject(
        &self,
        cluster: &DevCluster,
        number: usize,
        far: Option<&mut Far>,
    ) -> anyhow::Result<Subject> {
        let state = cluster.folder.join(format!("bench-terminal-{number}"));
        let builder = match far {
            Some(far) => {
                let listen = far.terminal().await?;
                Builder::new(far.servers(), &cluster.ca, state).listen(listen)
            }
            None => {
                let servers = cluster.nodes.iter().map(|node| node.session.clone());
                Builder::new(servers, &cluster.ca, state)
            }
        };
        let mut terminal = builder.resumption(!self.no_resumption).start().await?;
        demo::asleep(&mut terminal).await?;
        let clients = clients(cluster).await?;
        let body = Bytes::from(vec![b'x'; self.size]);
        Ok(Subject { terminal, clients, token: cluster.token.clone(), body })
    }
}

/// For each node one that publishes and one that waits.
async fn clients(cluster: &DevCluster) -> anyhow::Result<Vec<(Client, Client)>> {
    let mut clients = Vec::new();
    for node in &cluster.nodes {
        clients.push((connect(&node.http).await?, connect(&node.http).await?));
    }
    Ok(clients)
}

impl Subject {
    /// Wakes the terminal so many times, each time through another node.
    async fn wake(&mut self, count: usize, took: &mut Took) -> anyhow::Result<()> {
        for number in 0..count {
            let path = format!("/v1/terminals/{}/messages", self.terminal.id());
            let turn = number % self.clients.len();
            let (publisher, waiter) = &mut self.clients[turn];
            let (terminal, token, body) = (&mut self.terminal, &self.token, self.body.clone());
            let began = Instant::now();
            let publish = async {
                let published = publisher.send("POST", &path, token, &[], body).await?.json()?;
                let stored = began.elapsed();
                let message = published["message"].as_str().context("no message id")?.to_owned();
                let path = format!("/v1/messages/{message}?wait=acked&timeout=30s");
                let status = waiter.send("GET", &path, token, &[], Bytes::new()).await?.json()?;
                anyhow::ensure!(status["state"] == "acked", "{status}");
                Ok((stored, began.elapsed()))
            };
            let receive = async {
                let (mut notified, mut connected) = (None, None);
                let mut at = Duration::ZERO;
                loop {
                    match terminal.next().await.context("the terminal has ended")? {
                        Event::Notified { .. } => drop(notified.get_or_insert(began.elapsed())),
                        Event::Connected { .. } => drop(connected.get_or_insert(began.elapsed())),
                        Event::Received(push) => {
                            at = began.elapsed();
                            push.confirm();
                        }
                        Event::Disconnected { .. } if at > Duration::ZERO => break,
                        _ => {}
                    }
                }
                Ok((notified, connected, at, began.elapsed()))
            };
            let ((stored, acked), (notified, connected, delivered, asleep)) =
                tokio::try_join!(publish, receive)?;
            record(&mut took.stored, stored);
            // One that the node's repetition reached is notified by that; none is delivered without a session.
            notified.into_iter().for_each(|at| record(&mut took.notified, at));
            connected.into_iter().for_each(|at| record(&mut took.connected, at));
            record(&mut took.delivered, delivered);
            record(&mut took.acked, acked);
            record(&mut took.asleep, asleep);
        }
        Ok(())
    }
}
