//! `bench notify`: what one notification costs the processor of the node that sends it, with a full handshake and with the
//! first packet (0-RTT). The dialler has a thread of its own, whose time is counted; the terminals are other threads.

use std::fs;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use futures::StreamExt;
use reveille_protocol::id::{Epoch, KeyFingerprint, TerminalId};
use reveille_protocol::service_list::row::Urgency;
use reveille_protocol::wire::notification::Notification;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;

use super::super::certs::{Ca, write_public};
use super::super::dev::Temporary;
use super::light::World;
use super::{Report, histogram, quantiles, record, runtime};
use crate::notify::dial::{Dialler, Identity};
use crate::random::random;
use crate::telemetry;

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
        let metrics = telemetry::init_metrics()?;
        let (world, _received) = World::new(Vec::new(), &file, self.terminals)?;
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
                Ok((first, dial_all(&dialler, key, &listening, at_once, times).await?))
            })
        };
        let measured = std::thread::spawn(measure).join();
        let (first, then) = measured.map_err(|_| anyhow::anyhow!("the dialler's thread has panicked"))??;
        let counted = |kind: &str| {
            let name = format!("reveille_notification_handshakes_total{{kind=\"{kind}\"}} ");
            let text = metrics.render();
            text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or(0u64)
        };
        for (what, took) in
            [("notify: full handshake", first), ("notify: again, with the ticket of the time before", then)]
        {
            report.figures(
                what,
                &[
                    ("notifications", json!(took.count)),
                    ("cpu_us_each", json!(took.cpu_us / took.count as f64)),
                    ("per_second", json!((took.count as f64 / took.seconds).round() as u64)),
                    ("answered_ms", took.answered),
                ],
            )?;
        }
        report.figures(
            "notify: handshakes",
            &[("full", json!(counted("full"))), ("early", json!(counted("early")))],
        )
    }
}

struct Took {
    count: usize,
    cpu_us: f64,
    seconds: f64,
    answered: serde_json::Value,
}

/// Notifies each so many times, one round after the other.
async fn dial_all(
    dialler: &Dialler,
    key: KeyFingerprint,
    to: &[(TerminalId, SocketAddr)],
    at_once: usize,
    times: usize,
) -> anyhow::Result<Took> {
    let (mut answered, mut count) = (histogram()?, 0);
    let (cpu, began) = (thread_us()?, Instant::now());
    for _ in 0..times {
        let dials = to.iter().map(|(terminal, address)| async move {
            let notification = Notification {
                id: u64::from_le_bytes(random()),
                epoch: Epoch(1),
                pending: 1,
                urgency: Urgency::Normal,
                hints: vec!["push.example.org:8443".to_owned()],
            };
            let began = Instant::now();
            let dialled = dialler.dial(*terminal, *address, key, &[7; 32], &notification).await;
            let took = began.elapsed();
            match dialled {
                Ok(answered) => {
                    answered.close().await;
                    Ok(took)
                }
                Err(outcome) => Err(outcome),
            }
        });
        let mut dials = futures::stream::iter(dials).buffer_unordered(at_once);
        while let Some(dialled) = dials.next().await {
            match dialled {
                Ok(took) => record(&mut answered, took),
                Err(outcome) => ensure!(count > 0, "a terminal does not answer: {}", outcome.label()),
            }
            count += 1;
        }
    }
    let cpu_us = thread_us()? - cpu;
    Ok(Took { count, cpu_us, seconds: began.elapsed().as_secs_f64(), answered: quantiles(&answered) })
}

/// Microseconds of processor that the calling thread has used.
fn thread_us() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = text.split(' ').next().context("/proc/thread-self/schedstat")?.parse()?;
    Ok(nanoseconds / 1000.0)
}
