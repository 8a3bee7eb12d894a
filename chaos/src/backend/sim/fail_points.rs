//! Each fail point with each action that is possible there, as a scenario of its own: load, leaders that change, a node that
//! is away for long, and on top that one thing once. Runs nothing.

use reveille_chaos::scenario::{Act, LoadError, Scenario, load};
use reveille_protocol::fail_point::Point;

/// What goes on besides.
const BESIDE: &str = include_str!("../../../fail-points/beside.toml");
/// How long a step takes longer: more than a lease, an election, a peer's patience with a stream.
const SLEEP: &str = "1500ms";

/// The point of coverage for a node that said that it ends, after a task of it panicked at a fail point.
pub(crate) const ENDED: &str = "fail-point.node-ended";

/// The point of coverage for what happened at a fail point.
pub(crate) fn fired(point: Point, act: Act) -> String {
    format!("fail-point.{}.{}", point.name(), act.name())
}

/// A point, and what happens there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) point: Point,
    pub(crate) act: Act,
}

impl Case {
    /// All that are possible.
    pub(crate) fn all() -> Vec<Case> {
        let of = |point: &Point| Act::ALL.map(|act| Case { point: *point, act });
        let all = Point::ALL.iter().flat_map(of);
        all.filter(|case| case.act.fits(case.point)).collect()
    }

    /// What is run for it, as a file.
    pub(crate) fn text(self) -> String {
        let Case { point, act } = self;
        let name = format!("{}-{}", point.name().replace('.', "-"), act.name());
        let about = format!("{} at {}: {}", act.name(), point.name(), point.about());
        let by = if act == Act::Sleep { format!("by = '{SLEEP}'\n") } else { String::new() };
        // A panic that its node does not notice leaves one that looks well. But who asks for a transfer is an operator, on a
        // task of its own: there is nothing that would be left undone.
        let ended = if act == Act::Panic && point != Point::Transfer {
            format!(", '{ENDED}' = 1")
        } else {
            String::new()
        };
        format!(
            "name = '{name}'\nabout = {about:?}\n{BESIDE}[[fault]]\nat = '1s'\nkind = 'fail-point'\n\
             target = 'all'\npoint = '{}'\naction = '{}'\n{by}[expect]\ncover = {{ '{}' = 1{ended} }}\n",
            point.name(),
            act.name(),
            fired(point, act),
        )
    }

    /// What is run for it.
    ///
    /// # Errors
    /// If what goes on besides is no scenario; a test makes all of them.
    pub(crate) fn scenario(self) -> Result<Scenario, LoadError> {
        load(self.point.name(), &self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_point_with_each_action_is_a_scenario() {
        assert!(Point::ALL.len() >= 30);
        for case in Case::all() {
            case.scenario().unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
