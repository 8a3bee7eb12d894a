//! What goes wrong with datagrams, networks, and where terminals are in them: drawn from the seed.

use reveille_protocol::wire::session::Cause;

use crate::device::Doing;
use crate::world::{Happening, NODES, World};

impl World {
    /// Something happens to the networks.
    pub fn weather(&mut self) {
        let device = self.dice.below(self.devices.len() as u64) as usize;
        match self.dice.below(8) {
            0 | 1 => {
                let nat = self.networks.draw_nat(&mut self.dice);
                self.forget_bindings(nat);
            }
            2 | 3 => self.moves(device),
            4 => {
                let one = self.dice.between(1, NODES + 1);
                let nodes = if self.dice.permille(400) { 1..=NODES } else { one..=one };
                let network = self.devices[device].network;
                let wait = self.dice.pick(&[2000, 10_000, 40_000, 40_000]);
                self.say(|| format!("no datagram passes between network {network} and nodes {nodes:?}"));
                self.saw("ways cut");
                for node in nodes {
                    self.ledger.cut.insert((node, network));
                    self.after(wait, Happening::Mended(node, network));
                }
            }
            _ => self.attack(),
        }
    }

    pub fn forget_bindings(&mut self, nat: usize) {
        let ip = self.networks.address(nat);
        let under_way = self.nodes.values().any(|node| node.notifier.dials(ip));
        if self.networks.forget(nat) > 0 {
            self.say(|| format!("network {nat} forgets its bindings"));
            self.saw("bindings forgotten");
            if under_way {
                self.saw("bindings forgotten with a notification under way");
            }
        }
    }

    pub fn mended(&mut self, node: u64, network: usize) {
        self.ledger.cut.remove(&(node, network));
    }

    /// Everything passes, from now on.
    pub fn mend_all(&mut self) {
        self.ledger.cut.clear();
    }

    /// The terminal is in another network: its connections break, and its application says so, or does not know.
    fn moves(&mut self, device: usize) {
        if self.devices[device].speaks < 2 {
            return;
        }
        let network = self.networks.draw(device, &mut self.dice);
        self.moves_to(device, network);
        if self.dice.permille(400) {
            self.devices[device].moved = true;
            if self.devices[device].doing == Doing::Listening {
                self.look_moved(device);
            }
        }
    }

    /// Long after the faults, when nothing waits.
    pub fn moves_at_rest(&mut self, device: usize) {
        if self.is_woken(device) {
            let network = self.networks.draw_nat(&mut self.dice);
            self.moves_to(device, network);
        }
    }

    fn moves_to(&mut self, device: usize, network: usize) {
        let known = &mut self.devices[device];
        if known.speaks < 2 || known.network == network {
            return;
        }
        known.network = network;
        self.say(|| format!("t{device} is in network {network}"));
        self.saw("terminals that moved");
        let open: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.device == device).map(|(n, _)| *n).collect();
        for number in open {
            self.break_connection(number);
        }
    }

    /// The application has said that the network is another.
    pub fn look_moved(&mut self, device: usize) {
        let known = &mut self.devices[device];
        if std::mem::take(&mut known.moved) {
            known.reach.forget();
            self.come(device, Cause::Moved);
        }
    }

    fn attack(&mut self) {
        if let Some(packet) = self.ledger.forge(&mut self.dice) {
            self.saw("keepalives from elsewhere");
            self.after(1, Happening::Arrives(Box::new(packet)));
        }
    }
}
