//! Each fail point with each action that is possible there, as a scenario of its own: load, leaders that change, nodes that
//! are away for long or start again and again, and on top that one thing once, from a time on that is drawn. Runs nothing.

use std::time::Duration;

use reveille_chaos::scenario::{Act, LoadError, Scenario, load};
use reveille_links::draw::Draws;
use reveille_protocol::fail_point::Point;

use crate::backend::ENDED;

/// What goes on besides, and where nodes are struck while they start.
const BESIDE: &str = include_str!("../../../fail-points/beside.toml");
const STARTING: &str = include_str!("../../../fail-points/starting.toml");
/// It happens at the first time that a node comes there after one of these milliseconds of the chaos phase, which is longer.
const WITHIN: u64 = 5000;
/// How long a step takes longer: more than a lease, an election, a peer's patience with a stream.
const SLEEP: Duration = Duration::from_millis(1500);

/// A point, and what happens there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) point: Point,
    pub(crate) act: Act,
    /// While a node starts.
    pub(crate) starting: bool,
}

impl Case {
    /// All that are possible.
    pub(crate) fn all() -> Vec<Case> {
        let mut all = Vec::new();
        for point in Point::ALL.iter().copied() {
            let runs = point.is_of_running().then_some(false);
            for starting in runs.into_iter().chain(point.is_of_starting().then_some(true)) {
                let acts = Act::ALL.into_iter().filter(|act| act.fits(point));
                all.extend(acts.map(|act| Case { point, act, starting }));
            }
        }
        all
    }

    /// What it is called.
    pub(crate) fn name(self) -> String {
        let starting = if self.starting { "-starting" } else { "" };
        format!("{}-{}{starting}", self.point.name().replace('.', "-"), self.act.name())
    }

    /// What is run for it by this seed, as a file.
    pub(crate) fn text(self, seed: u64) -> String {
        let Case { point, act, starting } = self;
        let name = self.name();
        let when = if starting { " while a node starts" } else { "" };
        let about = format!("{} at {}{when}: {}", act.name(), point.name(), point.about());
        let at = Draws::new(seed, &name).below(WITHIN);
        let by = if act == Act::Sleep { format!("by = '{}ms'\n", SLEEP.as_millis()) } else { String::new() };
        let beside = if starting || point.is_of_helping() { STARTING } else { BESIDE };
        let only = if starting { "starting = true\n" } else { "" };
        // A node that must end by it says so, unless it is killed there.
        let says = act != Act::Kill && point.ends(act.action(SLEEP));
        let ended = if says { format!(", '{ENDED}' = 1") } else { String::new() };
        format!(
            "name = '{name}'\nabout = {about:?}\n{beside}[[fault]]\nat = '{at}ms'\nkind = 'fail-point'\n\
             target = 'all'\npoint = '{}'\naction = '{}'\n{by}{only}[expect]\ncover = {{ '{}' = 1{ended} }}\n",
            point.name(),
            act.name(),
            act.cover(point),
        )
    }

    /// What is run for it by this seed.
    ///
    /// # Errors
    /// If what goes on besides is no scenario; a test makes all of them.
    pub(crate) fn scenario(self, seed: u64) -> Result<Scenario, LoadError> {
        load(self.point.name(), &self.text(seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_point_with_each_action_is_a_scenario() {
        assert!(Point::ALL.len() >= 60);
        for case in Case::all() {
            case.scenario(1).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
