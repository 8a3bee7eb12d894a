//! Fail points of real nodes that are built with them: what is ordered to happen, and what did. How orders are told and
//! counted is `reveille_protocol::fail_point::Order`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use reveille_chaos::scenario::{At, Fault, Scenario};
use reveille_protocol::fail_point::Order;
use reveille_protocol::id::NodeId;

/// What the `--version` of a `reveille` says that has them.
const HAS: &str = "with fail points";

/// Has this scenario something happen at one?
pub(super) fn needed(scenario: &Scenario) -> bool {
    scenario.faults().any(|fault| fault.kind.name() == "fail-point")
}

/// Why nothing can happen at a fail point of this binary's nodes.
pub(crate) fn missing(bin: &Path) -> Option<String> {
    let asked = Command::new(bin).arg("--version").stdin(Stdio::null()).output();
    let said = match &asked {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => error.to_string(),
    };
    (!said.contains(HAS)).then(|| {
        format!(
            "{} has no fail points; one that has, a debug build, is made by cargo build -p reveille --features canary \
             --target-dir target/canary, and named by --bin target/canary/debug/reveille",
            bin.display()
        )
    })
}

/// The same, if the scenario needs them.
pub(crate) fn lacks(scenario: &Scenario, bin: &Path) -> Option<String> {
    if needed(scenario) { missing(bin) } else { None }
}

/// What is ordered in a run.
pub(super) struct Points {
    /// What nodes look at.
    pub(super) file: PathBuf,
    orders: Vec<Ordered>,
}

struct Ordered {
    order: Order,
    /// How often it has happened, as far as that is known.
    happened: u64,
}

impl Points {
    /// Nothing is ordered.
    pub(super) fn make(file: PathBuf) -> anyhow::Result<Points> {
        let points = Points { file, orders: Vec::new() };
        points.write()?;
        Ok(points)
    }

    /// Whole in the place of what was there before: nodes look at any time.
    fn write(&self) -> anyhow::Result<()> {
        let orders: Vec<&Order> = self.orders.iter().map(|ordered| &ordered.order).collect();
        let new = self.file.with_extension("new");
        let text = serde_json::to_vec(&orders)?;
        let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &self.file));
        written.with_context(|| self.file.display().to_string())
    }

    /// From now on this fault happens at these nodes.
    pub(super) fn order(&mut self, id: u64, fault: &Fault, nodes: &[u64]) -> anyhow::Result<()> {
        // Both are there: a scenario without them is refused.
        let (Some(At(point)), Some(act)) = (fault.point, fault.action) else { return Ok(()) };
        let order = Order {
            id,
            nodes: nodes.iter().copied().map(NodeId).collect(),
            point,
            action: act.action(fault.by.map_or(Duration::ZERO, |by| by.0)),
            share: fault.share.map_or(1.0, |share| share.0),
            hits: fault.hits.unwrap_or(1),
            starting: fault.starting == Some(true),
        };
        self.orders.push(Ordered { order, happened: 0 });
        self.write()
    }

    /// It happens no more, also to who has not looked yet: what is left of it is taken.
    pub(super) fn take_back(&mut self, id: u64) -> anyhow::Result<()> {
        let Some(at) = self.orders.iter().position(|ordered| ordered.order.id == id) else { return Ok(()) };
        let order = &self.orders[at].order;
        for n in 0..order.hits {
            match File::create_new(order.taken(&self.file, n)) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error)?,
                Ok(_) | Err(_) => {}
            }
        }
        self.orders[at].order.nodes.clear();
        self.write()
    }

    /// What has happened since this was asked last, and to whom.
    pub(super) fn happened(&mut self) -> Vec<(Order, u64)> {
        let mut all = Vec::new();
        for Ordered { order, happened } in &mut self.orders {
            // Made, and not written yet: the next look finds it whole. Taken by nobody: it never will be.
            while *happened < order.hits
                && let Ok(text) = fs::read_to_string(order.taken(&self.file, *happened))
                && let Ok(node) = text.parse()
            {
                *happened += 1;
                all.push((order.clone(), node));
            }
        }
        all
    }
}
