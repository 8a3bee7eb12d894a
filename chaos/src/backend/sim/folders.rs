//! What is done to data folders: emptied, put back to an earlier copy, a bit turned, a file cut. The node is killed for it and
//! started on what is left; what it makes of that is the product's.

use reveille_chaos::plan::Strike;
use reveille_chaos::scenario::FileKind;
use reveille_protocol::id::NodeId;
use reveille_simulation::folder::{File, FolderCopy};
use reveille_simulation::node::End;
use reveille_simulation::world::now;

use super::run::micros;
use super::strike::{Striker, There};
use super::whom::{self, Victims};

/// A copy that a folder will be put back to: for the strike with this draw, and of which node.
pub(super) struct Kept {
    pub(super) draw: u64,
    pub(super) node: u64,
    copy: FolderCopy,
}

impl Striker {
    /// Changes a node's folder, and starts it.
    pub(super) async fn change_folder(&mut self, there: &There, id: NodeId) {
        let world = self.run.world.clone();
        let node = world.node(id);
        world.stop(id, End::Kill).await;
        node.set_damaged();
        let draw = there.draw;
        let file = match there.fault.file {
            Some(FileKind::Log) => File::Log,
            Some(FileKind::Tables) => File::Tables,
            Some(FileKind::Any) | None if draw.is_multiple_of(2) => File::Log,
            Some(FileKind::Any) | None => File::Tables,
        };
        match there.fault.kind.name() {
            "wipe" => node.empty_folder(world.number()),
            "bit-flip" => self.damaged(id, node.flip_bit(file, draw)),
            "truncate" => self.damaged(id, node.truncate(file, draw)),
            _ => {
                let of = self.copies.iter().position(|kept| kept.draw == draw && kept.node == id.0);
                if let Some(kept) = of.map(|at| self.copies.swap_remove(at)) {
                    node.put_back(&kept.copy);
                }
            }
        }
        self.start(id.0).await;
    }

    fn damaged(&self, id: NodeId, where_to: Option<String>) {
        match where_to {
            Some(place) => self.run.world.say(format!("n{id} has a damaged file: {place}")),
            None => self.run.cover("folder.empty"),
        }
    }

    /// Copies folders that are to be put back later, each while its node is down for a moment: a copy from before a node's last
    /// start is one that the cluster can tell.
    pub(super) async fn copy_folders(&mut self, start: u64) {
        let due = |strike: &&Strike| {
            let by = self.run.scenario.faults[strike.fault].get_ref().by.map_or(0, |by| micros(by.0));
            let kept = self.copies.iter().any(|kept| kept.draw == strike.draw);
            strike.kind.name() == "roll-back" && !kept && (start + strike.at_us).saturating_sub(by) <= now()
        };
        let due: Vec<Strike> = self.strikes.iter().filter(due).cloned().collect();
        for strike in due {
            let fault = self.run.scenario.faults[strike.fault].get_ref().clone();
            let victims =
                fault.target.as_ref().and_then(|target| whom::whom(&self.run, &[], target, strike.draw));
            let Some(Victims::Nodes(ids)) = victims else { continue };
            if !self.may(strike.kind, &ids) {
                continue;
            }
            for id in ids {
                let world = self.run.world.clone();
                world.stop(NodeId(id), End::Kill).await;
                let copy = world.node(NodeId(id)).copy_folder();
                self.copies.push(Kept { draw: strike.draw, node: id, copy });
                self.start(id).await;
                self.run.cover("roll-back.copied");
            }
        }
    }

    /// Whose folder was copied for a strike.
    pub(super) fn copied(&self, draw: u64) -> Option<Victims> {
        let ids: Vec<u64> =
            self.copies.iter().filter(|kept| kept.draw == draw).map(|kept| kept.node).collect();
        (!ids.is_empty()).then_some(Victims::Nodes(ids))
    }
}
