//! `bench keepalive`: what terminals behind NAT cost their anchor while they are idle. The anchor's port stands alone in a
//! process of its own, so that memory and processor time are its only; the terminals are one process with as many handles.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use reveille_protocol::directory::{Directory, Secret};
use reveille_protocol::wire::stun::{self, Handle, Message, Pin, PinSlot, Proof, Transaction};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use std::io::{BufRead, BufReader, Read};

use super::super::certs::Ca;
use super::{Report, usage};
use crate::guard::Guard;
use crate::notify::anchor::AnchorPort;
use crate::notify::dial::Identity;
use crate::notify::pace::{Pace, Rates};
use crate::telemetry;

/// Idle terminals behind NAT.
#[derive(Debug, Args)]
pub(super) struct Keepalive {
    /// How many.
    #[arg(long, default_value_t = 1_000_000)]
    terminals: u32,
    /// Between two keepalives of each.
    #[arg(long, default_value = "25s", value_parser = humantime::parse_duration)]
    period: Duration,
    /// One in so many asks for an answer; terminals' every one does.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    asks: u64,
    /// How long to measure.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Be the anchor.
    #[arg(long, hide = true)]
    anchor: bool,
}

/// Both processes know it.
const SECRET: [u8; 32] = [7; 32];
/// Registrations whose challenge is not answered yet.
const WINDOW: usize = 256;
/// A registration that got no answer within this is begun again.
const PATIENCE: Duration = Duration::from_millis(300);
/// Keepalives are sent so many at a time, evenly.
const TICK: Duration = Duration::from_millis(2);

fn secret() -> Secret {
    Secret { generation: 1, key: SECRET }
}

impl Keepalive {
    pub(super) fn run(&self, report: &Report) -> anyhow::Result<()> {
        if self.anchor {
            return super::runtime(2)?.block_on(stand_alone());
        }
        let mut anchor = Command::new(std::env::current_exe()?)
            .args(["bench", "keepalive", "--anchor"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let measured = self.measure(&mut anchor, report);
        // It ends with its input; killed, it leaves nothing either.
        anchor.kill()?;
        anchor.wait()?;
        measured
    }

    fn measure(&self, anchor: &mut std::process::Child, report: &Report) -> anyhow::Result<()> {
        let mut line = String::new();
        BufReader::new(anchor.stdout.take().context("no output")?).read_line(&mut line)?;
        let at: SocketAddr = line.trim().parse().context("the anchor did not say where it is")?;
        let pid = anchor.id();
        let empty = usage::anonymous_bytes(pid)?;
        let began = Instant::now();
        let cpu = usage::cpu_seconds(pid)?;
        // One for both: from another address every keepalive would have to prove itself anew.
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(at)?;
        self.register(&socket)?;
        let registered = (usage::cpu_seconds(pid)? - cpu) / f64::from(self.terminals) * 1e6;
        let took = began.elapsed();
        let full = usage::anonymous_bytes(pid)?;
        let (sent, answered, cpu) = self.keep(&socket, pid)?;
        let each = full.saturating_sub(empty) as f64 / f64::from(self.terminals);
        report.figures(
            "keepalive",
            &[
                ("terminals", json!(self.terminals)),
                ("bytes_each", json!(each)),
                ("registered_per_second", json!(f64::from(self.terminals) / took.as_secs_f64())),
                ("register_cpu_us", json!(registered)),
                ("keepalives_per_second", json!(sent as f64 / self.time.as_secs_f64())),
                ("requests_answered", json!(answered as f64 / (sent.div_ceil(self.asks) as f64))),
                ("core_percent", json!(cpu / self.time.as_secs_f64() * 100.0)),
                ("cpu_us_each", json!(cpu / sent as f64 * 1e6)),
            ],
        )
    }

    /// Makes every terminal known: a keepalive, its challenge, the keepalive with the proof.
    fn register(&self, socket: &UdpSocket) -> anyhow::Result<()> {
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut buffer = [0; 256];
        let mut numbers = vec![0u64; WINDOW];
        for first in (0..self.terminals).step_by(WINDOW) {
            let last = first.saturating_add(WINDOW as u32).min(self.terminals);
            let mut proofs: Vec<Option<Proof>> = vec![None; WINDOW];
            let mut open: Vec<u32> = (first..last).collect();
            numbers.fill(0);
            let until = Instant::now() + Duration::from_secs(30);
            while !open.is_empty() {
                ensure!(Instant::now() < until, "terminals {first} to {last} are not taken");
                for terminal in &open {
                    let slot = (terminal - first) as usize;
                    numbers[slot] += 1;
                    let packet = self.keepalive(*terminal, numbers[slot], true, proofs[slot]);
                    socket.send(&packet)?;
                }
                let mut waited = open.len();
                while waited > 0 {
                    let Ok(read) = socket.recv(&mut buffer) else { break };
                    waited -= 1;
                    let answer = stun::decode(&buffer[..read]).ok();
                    // Whose it is, its transaction says.
                    let Some(terminal) =
                        transaction(&buffer).filter(|terminal| (first..last).contains(terminal))
                    else {
                        continue;
                    };
                    let key = stun::pin_key(&secret(), &handle(terminal));
                    match answer.and_then(|sealed| sealed.open(&key)) {
                        Some((Message::Challenge(proof), _)) => {
                            proofs[(terminal - first) as usize] = Some(proof)
                        }
                        Some((Message::Mapped { .. }, _)) => open.retain(|known| *known != terminal),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Keepalives of everyone, evenly; how many were sent and answered, and the anchor's processor seconds.
    fn keep(&self, socket: &UdpSocket, pid: u32) -> anyhow::Result<(u64, u64, f64)> {
        let answered = Arc::new(AtomicU64::new(0));
        let counting = {
            let (socket, answered) = (socket.try_clone()?, answered.clone());
            // It never waits in the socket: to wake it for each answer would be work of the anchor's thread, which terminals
            // on other machines do not make.
            socket.set_nonblocking(true)?;
            let until = Instant::now() + self.time + Duration::from_secs(1);
            std::thread::spawn(move || {
                let mut buffer = [0; 256];
                while Instant::now() < until {
                    while socket.recv(&mut buffer).is_ok() {
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(TICK);
                }
            })
        };
        let (began, cpu) = (Instant::now(), usage::cpu_seconds(pid)?);
        let rate = f64::from(self.terminals) / self.period.as_secs_f64();
        let mut sent = 0u64;
        while began.elapsed() < self.time {
            let due = (began.elapsed().as_secs_f64() * rate) as u64;
            while sent < due {
                let terminal = (sent % u64::from(self.terminals)) as u32;
                // Above every number of its registration.
                let number = 1000 + sent / u64::from(self.terminals);
                let packet = self.keepalive(terminal, number, sent.is_multiple_of(self.asks), None);
                // A full buffer loses it, as a network does.
                match socket.send(&packet) {
                    Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error.into()),
                    _ => {}
                }
                sent += 1;
            }
            std::thread::sleep(TICK);
        }
        let used = usage::cpu_seconds(pid)? - cpu;
        // It ends when nothing more comes.
        let _ = counting.join();
        Ok((sent, answered.load(Ordering::Relaxed), used))
    }

    fn keepalive(
        &self,
        terminal: u32,
        number: u64,
        wants_answer: bool,
        proof: Option<Proof>,
    ) -> stun::Packet {
        let handle = handle(terminal);
        let period = self.period.as_secs() as u16;
        let pin = Pin { handle, generation: 1, period, slot: PinSlot::Primary, ring: false };
        let transaction = Transaction { number, tail: terminal.to_be_bytes() };
        stun::encode(
            &Message::Keepalive { pin, wants_answer, proof },
            transaction,
            &stun::pin_key(&secret(), &handle),
        )
    }
}

/// The last four bytes of the transaction id.
fn transaction(datagram: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*datagram.get(16..)?.first_chunk()?))
}

/// Spread, as real ones are.
fn handle(terminal: u32) -> Handle {
    let hash = reveille_protocol::hash::sha256(&terminal.to_be_bytes());
    let mut handle = Handle([0; 16]);
    handle.0.copy_from_slice(&hash[..16]);
    handle
}

/// The anchor's port, until standard input ends.
async fn stand_alone() -> anyhow::Result<()> {
    telemetry::init_metrics()?;
    let (ca, _) = Ca::new()?;
    let (certificate, key) = ca.node(1, 1, Vec::new(), 1)?;
    let identity = Identity {
        chain: vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
        key: PrivateKeyDer::from_pem_slice(key.as_bytes())?,
    };
    let directory = Directory { secrets: vec![secret()], ..Directory::default() };
    let directory = Arc::new(RwLock::new(Arc::new(directory)));
    let any = std::num::NonZeroU32::MAX;
    let rates = Rates { per_second: any, per_prefix: any };
    let pace = Arc::new(Pace::new(rates, Vec::new(), true));
    let (due, _nobody) = tokio::sync::mpsc::channel(1);
    // Nobody waits for its word: a bench that panics says so itself.
    let guard = Guard::new(tokio::sync::mpsc::channel(1).0);
    let anchor = AnchorPort::new(
        ([127, 0, 0, 1], 0).into(),
        identity,
        pace,
        directory,
        Box::new(|| true),
        due,
        &guard,
    )?;
    super::super::output::line(format!("127.0.0.1:{}", anchor.port()));
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    Ok(())
}
