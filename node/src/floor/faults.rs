//! What goes wrong in a run, drawn from its seed: one thing at a time, each over before the next one.

use std::time::Duration;

use reveille_chaos::history::{Fault, FaultStep, Observation, What};
use reveille_links::draw::Draws;
use reveille_terminal::ground::set_loss;

use super::QUICK;
use super::world::World;

/// Between two faults, the least and what is drawn on top.
const BETWEEN: (u64, u64) = (500, 3000);
/// How long one is there, in milliseconds, the same way. Others have led for a while when a long one is over.
const LASTS: (u64, u64) = (500, 6000);
/// What a message takes at most while there is a delay.
const SLOW: Duration = Duration::from_millis(400);

/// A kind of fault.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A node's process is killed: its connections close.
    Kill,
    /// A node is told to end: it gives away what it leads, and tells its terminals to go elsewhere.
    Stop,
    /// A node's machine is gone: nobody hears of its end.
    Vanish,
    /// Nothing passes between a node and all others, each way, until it is over; then all of it at once, as after TCP's
    /// repetitions.
    Cut,
    /// Datagrams are lost.
    Loss,
    /// Every message takes long, each as it is drawn.
    Delay,
    /// A terminal's process is killed.
    TerminalKill,
}

/// In the order of their turns.
pub const KINDS: [Kind; 8] =
    [Kind::Kill, Kind::Vanish, Kind::Cut, Kind::Loss, Kind::Stop, Kind::Cut, Kind::Delay, Kind::TerminalKill];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Kill => "kill",
            Kind::Stop => "stop",
            Kind::Vanish => "vanish",
            Kind::Cut => "cut",
            Kind::Loss => "loss",
            Kind::Delay => "delay",
            Kind::TerminalKill => "terminal-kill",
        }
    }
}

/// Strikes by the seed for so long; each kind at its turn, from a drawn one on, so that a run has most of them, and a few seeds all.
pub fn strike(world: &mut World, seed: u64, time: Duration) {
    let mut draws = Draws::new(seed, "faults");
    let between =
        |draws: &mut Draws, (least, more): (u64, u64)| Duration::from_millis(least + draws.below(more));
    let end = world.sim.elapsed() + time;
    let first = draws.below(KINDS.len() as u64) as usize;
    for (id, kind) in (1u64..).zip(KINDS.iter().cycle().skip(first)) {
        world.pass(between(&mut draws, BETWEEN));
        let lasts = between(&mut draws, LASTS);
        if world.sim.elapsed() + lasts > end {
            return;
        }
        let among = if matches!(kind, Kind::TerminalKill) { &world.terminals } else { &world.nodes };
        let whom = among[draws.below(among.len() as u64) as usize].clone();
        let target = if matches!(kind, Kind::Loss | Kind::Delay) { "all".to_owned() } else { whom.clone() };
        let fault = |step| Fault {
            id,
            step,
            kind: kind.name().to_owned(),
            target: target.clone(),
            detail: String::new(),
        };
        let at = world.sim.elapsed();
        world.record.tell(at, What::Fault(fault(FaultStep::Began)));
        begin(world, *kind, &whom, draws.draw());
        world.pass(lasts);
        over(world, *kind, &whom);
        let at = world.sim.elapsed();
        world.record.tell(at, What::Fault(fault(FaultStep::Ended)));
    }
}

/// Every other host, but for the driver of the run, which has none.
fn others(world: &World, whom: &str) -> Vec<String> {
    let hosts = world.nodes.iter().chain(&world.terminals).map(String::as_str).chain([super::PUBLISHERS]);
    hosts.filter(|host| *host != whom).map(str::to_owned).collect()
}

fn begin(world: &mut World, kind: Kind, whom: &str, draw: u64) {
    match kind {
        Kind::Kill => world.sim.crash(whom),
        Kind::Stop => world.stop(whom),
        Kind::Vanish => {
            for other in others(world, whom) {
                world.sim.partition(whom, other.as_str());
            }
            world.sim.crash(whom);
        }
        Kind::Cut => {
            for other in others(world, whom) {
                world.sim.hold(whom, other.as_str());
            }
        }
        Kind::Loss => set_loss(0.3 + (draw % 50) as f64 / 100.0, draw),
        Kind::Delay => world.sim.set_max_message_latency(SLOW),
        Kind::TerminalKill => {
            world.sim.crash(whom);
            if let Some(terminal) = world.record.who(whom) {
                let at = world.sim.elapsed();
                world.record.tell(at, What::Observe(Observation::Stopped { terminal, copy: 0 }));
            }
        }
    }
}

fn over(world: &mut World, kind: Kind, whom: &str) {
    match kind {
        Kind::Kill | Kind::Stop | Kind::TerminalKill => world.sim.bounce(whom),
        Kind::Vanish => {
            for other in others(world, whom) {
                world.sim.repair(whom, other.as_str());
            }
            world.sim.bounce(whom);
        }
        Kind::Cut => {
            for other in others(world, whom) {
                world.sim.release(whom, other.as_str());
            }
        }
        Kind::Loss => set_loss(0.0, 0),
        Kind::Delay => world.sim.set_max_message_latency(QUICK),
    }
}
