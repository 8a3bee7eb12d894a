//! `bench notify`: what one notification costs the processor of the node that sends it, with a full handshake and with the
//! first packet (0-RTT). The dialler has a thread of its own, whose time is the node's; all other threads are the terminals.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use futures::StreamExt;
use hdrhistogram::Histogram;
use reveille_protocol::id::{Epoch, KeyFingerprint, TerminalId};
use reveille_protocol::service_list::row::Urgency;
use reveille_protocol::wire::notification::{Notification, NotificationAck};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use super::super::certs::{Ca, write_public};
use super::super::dev::Temporary;
use super::light::World;
use super::{Report, histogram, pure, quantiles, record, runtime, usage};
use crate::notify::dial::{Dialler, Handshake, Identity};
use crate::random::random;

/// Notify terminals that only listen.
#[derive(Debug, Args)]
pub(super) struct Notify {
    /// Terminals.
    #[arg(long, default_value_t = 1000)]
    terminals: usize,
    /// Notifications under way at once.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
    /// Times that each is notified after the first, with its ticket.
    #[arg(long, default_value_t = 4)]
    times: usize,
}

impl Notify {
    pub(super) fn run(&self, report: &Report) -> anyhow::Result<()> {
        for (what, took) in self.measure()? {
            let notifications: usize = took.handshakes.values().sum();
            let count = notifications as f64;
            let mut figures = vec![("notifications", json!(notifications))];
            figures.extend(took.handshakes.iter().map(|(kind, count)| (*kind, json!(count))));
            figures.extend([
                ("node_cpu_us_each", json!(took.node_us / count)),
                ("terminal_cpu_us_each", json!(took.terminals_us / count)),
                ("per_second", json!((count / took.seconds).round() as u64)),
                ("answered_ms", quantiles(&took.answered)),
            ]);
            report.figures(what, &figures)?;
        }
        Ok(())
    }

    fn measure(&self) -> anyhow::Result<[(&'static str, Took); 4]> {
        let terminals = runtime(1)?;
        let folder = Temporary::new()?;
        let (ca, _) = Ca::new()?;
        let file = folder.0.join("ca.pem");
        write_public(&file, &ca.pem)?;
        let (certificate, key) = ca.node(1, 1, Vec::new(), 1)?;
        let identity = Identity {
            chain: vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
            key: PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        };
        let _running = terminals.enter();
        let (world, _received) = World::new(Vec::new(), &file)?;
        let key = world.listening();
        let mut listening = Vec::new();
        for number in 0..self.terminals {
            listening.push((TerminalId(random()), world.clone().listener(number)?));
        }
        let at_once = self.at_once.max(1);
        let times = self.times;
        let measure = move || -> anyhow::Result<_> {
            let own = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            own.block_on(async {
                let dialler = Dialler::new(([127, 0, 0, 1], 0).into(), identity)?;
                let first = dial_all(&dialler, key, &listening, at_once, 1).await?;
                let again = dial_all(&dialler, key, &listening, at_once, times).await?;
                let [pure, pure_again] = pure_all(&dialler, &world, listening.len(), times)?;
                Ok([
                    ("notify: the first", first),
                    ("notify: again, with the ticket of the time before", again),
                    ("quinn-proto alone, from memory to memory: the first", pure),
                    ("quinn-proto alone, from memory to memory: again", pure_again),
                ])
            })
        };
        let measured = std::thread::spawn(measure).join();
        measured.map_err(|_| anyhow::anyhow!("the dialler's thread has panicked"))?
    }
}

struct Took {
    /// How many went out how, and how many were not answered.
    handshakes: BTreeMap<&'static str, usize>,
    /// Processor time of the dialler's thread.
    node_us: f64,
    /// Of all others.
    terminals_us: f64,
    seconds: f64,
    answered: Histogram<u64>,
}

/// Notifies each so many times, one round after the other.
async fn dial_all(
    dialler: &Dialler,
    key: KeyFingerprint,
    to: &[(TerminalId, SocketAddr)],
    at_once: usize,
    times: usize,
) -> anyhow::Result<Took> {
    let (mut answered, mut handshakes) = (histogram()?, BTreeMap::new());
    let (node, all, began) = (thread_us()?, usage::cpu_seconds(std::process::id())?, Instant::now());
    for _ in 0..times {
        let dials = to.iter().map(|(terminal, address)| async move {
            let notification = notification(u64::from_le_bytes(random()));
            let began = Instant::now();
            let dialled = dialler.dial(*terminal, *address, key, &[7; 32], &notification).await;
            let took = began.elapsed();
            match dialled {
                Ok(answered) => Ok((took, answered.close().await)),
                Err(outcome) => Err(outcome),
            }
        });
        let mut dials = futures::stream::iter(dials).buffer_unordered(at_once);
        while let Some(dialled) = dials.next().await {
            let what = match dialled {
                Ok((took, handshake)) => {
                    record(&mut answered, took);
                    handshake.label()
                }
                Err(outcome) => {
                    ensure!(!handshakes.is_empty(), "a terminal does not answer: {}", outcome.label());
                    outcome.label()
                }
            };
            *handshakes.entry(what).or_insert(0) += 1;
        }
    }
    let node_us = thread_us()? - node;
    let terminals_us = (usage::cpu_seconds(std::process::id())? - all) * 1e6 - node_us;
    Ok(Took { handshakes, node_us, terminals_us, seconds: began.elapsed().as_secs_f64(), answered })
}

/// The yardstick: a first time and again, as [`dial_all`], one after the other.
fn pure_all(dialler: &Dialler, world: &World, terminals: usize, times: usize) -> anyhow::Result<[Took; 2]> {
    let mut all = Vec::new();
    for _ in 0..terminals {
        all.push((TerminalId(random()), Arc::new(world.quic()?)));
    }
    let round = |times: usize| -> anyhow::Result<Took> {
        let (mut answered, mut handshakes) = (histogram()?, BTreeMap::new());
        let (mut node, mut both) = (Duration::ZERO, Duration::ZERO);
        let (cpu, began) = (thread_us()?, Instant::now());
        for (terminal, quic) in all.iter().cycle().take(all.len() * times) {
            let began = Instant::now();
            let (settings, _) = dialler.settings(*terminal, world.listening(), &[7; 32])?;
            let dialler = began.elapsed();
            let id = u64::from_le_bytes(random());
            let ack = NotificationAck { id }.encode().into();
            let exchanged = pure::exchange(settings, quic.clone(), notification(id).encode().into(), ack)?;
            node += dialler + exchanged.node;
            both += began.elapsed();
            record(&mut answered, began.elapsed());
            let handshake = if exchanged.early { Handshake::Early } else { Handshake::Full };
            *handshakes.entry(handshake.label()).or_insert(0) += 1;
        }
        let cpu_us = thread_us()? - cpu;
        // Who else used the processor did so at both ends alike.
        let node_us = cpu_us * node.as_secs_f64() / both.as_secs_f64();
        let terminals_us = cpu_us - node_us;
        Ok(Took { handshakes, node_us, terminals_us, seconds: began.elapsed().as_secs_f64(), answered })
    };
    Ok([round(1)?, round(times)?])
}

fn notification(id: u64) -> Notification {
    let hints = vec!["push.example.org:8443".to_owned()];
    Notification { id, epoch: Epoch(1), pending: 1, urgency: Urgency::Normal, hints }
}

/// Microseconds of processor that the calling thread has used.
fn thread_us() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = text.split(' ').next().context("/proc/thread-self/schedstat")?.parse()?;
    Ok(nanoseconds / 1000.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What is called the figure of a first packet is one, for every terminal.
    #[test]
    fn what_comes_again_comes_with_the_first_packet() {
        let bench = Notify { terminals: 20, at_once: 4, times: 2 };
        let [(_, first), (_, again), (_, pure), (_, pure_again)] = bench.measure().unwrap();
        for (first, again) in [(first, again), (pure, pure_again)] {
            assert_eq!(first.handshakes, BTreeMap::from([("full", 20)]));
            assert_eq!(again.handshakes, BTreeMap::from([("early", 40)]));
        }
    }
}
