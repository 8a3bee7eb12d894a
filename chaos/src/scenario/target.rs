//! Whom a fault hits, by role: who that is, is found out when it strikes. `leader`, `owner(t3)`, `n1+n2`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::near;

/// A terminal by its number in the workload, or one that is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Which {
    /// Drawn, from those that it fits.
    Any,
    /// This one, from 1.
    Number(u64),
}

/// A role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The leader of a shard group, drawn among the groups.
    Leader,
    /// The leader of the meta group.
    MetaLeader,
    /// A node that follows where the drawn group's leader leads.
    Follower,
    /// The node that has this terminal's session.
    Owner(Which),
    /// The node that keeps this terminal's binding.
    Anchor(Which),
    /// The node that hands off, and the one that it hands off to: of the event that the fault waited for.
    HandoffSource,
    /// See [`Role::HandoffSource`].
    HandoffTarget,
    /// One node, drawn.
    Any,
    /// As many nodes as may be lost, drawn.
    Minority,
    /// One more than may be lost, drawn.
    Majority,
    /// All nodes.
    All,
    /// This node, from 1.
    Node(u64),
    /// What the fault before this one in the file hit last.
    Last,
    /// A terminal.
    Terminal(Which),
    /// All terminals.
    Terminals,
    /// All publishers.
    Publishers,
}

const NAMES: &[&str] = &[
    "leader",
    "meta.leader",
    "follower",
    "owner(t)",
    "anchor(t)",
    "handoff.source",
    "handoff.target",
    "any",
    "minority",
    "majority",
    "all",
    "n1",
    "last",
    "t1",
    "t",
    "terminals",
    "publishers",
];

/// Each with a sentence, for `chaos list`.
pub const ROLES: &[(&str, &str)] = &[
    ("leader", "the leader of a shard group that is drawn"),
    ("meta.leader", "the leader of the meta group"),
    ("follower", "a node that follows in a shard group that is drawn"),
    ("owner(t), owner(t3)", "the node with the session of a terminal: one that is drawn, or the third"),
    ("anchor(t), anchor(t3)", "the node that keeps a terminal's UDP binding"),
    ("handoff.source, handoff.target", "with when = \"handoff.started\": who hands off, and to whom"),
    ("any", "one node that is drawn"),
    ("minority, majority, all", "as many nodes as may be lost, one more, every one"),
    ("n1, n2, …", "this node"),
    ("last", "what the fault before in the file hit"),
    ("t, t3, terminals", "a terminal that is drawn, the third, all of them"),
    ("publishers", "all publishers"),
];

impl Role {
    fn parse(text: &str) -> Option<Role> {
        let of = |name: &str| {
            let inside = text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')')?;
            which(inside)
        };
        Some(match text {
            "leader" => Role::Leader,
            "meta.leader" => Role::MetaLeader,
            "follower" => Role::Follower,
            "handoff.source" => Role::HandoffSource,
            "handoff.target" => Role::HandoffTarget,
            "any" => Role::Any,
            "minority" => Role::Minority,
            "majority" => Role::Majority,
            "all" => Role::All,
            "last" => Role::Last,
            "terminals" => Role::Terminals,
            "publishers" => Role::Publishers,
            text => {
                if let Some(which) = of("owner") {
                    Role::Owner(which)
                } else if let Some(which) = of("anchor") {
                    Role::Anchor(which)
                } else if let Some(number) = text.strip_prefix('n').and_then(number) {
                    Role::Node(number)
                } else {
                    Role::Terminal(which(text)?)
                }
            }
        })
    }

    /// It is a terminal or a publisher, not a node.
    pub fn is_client(self) -> bool {
        matches!(self, Role::Terminal(_) | Role::Terminals | Role::Publishers)
    }
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number| *number > 0 && text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn which(text: &str) -> Option<Which> {
    match text.strip_prefix('t')? {
        "" => Some(Which::Any),
        rest => number(rest).map(Which::Number),
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Any => f.write_str("t"),
            Which::Number(number) => write!(f, "t{number}"),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Role::Leader => f.write_str("leader"),
            Role::MetaLeader => f.write_str("meta.leader"),
            Role::Follower => f.write_str("follower"),
            Role::Owner(which) => write!(f, "owner({which})"),
            Role::Anchor(which) => write!(f, "anchor({which})"),
            Role::HandoffSource => f.write_str("handoff.source"),
            Role::HandoffTarget => f.write_str("handoff.target"),
            Role::Any => f.write_str("any"),
            Role::Minority => f.write_str("minority"),
            Role::Majority => f.write_str("majority"),
            Role::All => f.write_str("all"),
            Role::Node(number) => write!(f, "n{number}"),
            Role::Last => f.write_str("last"),
            Role::Terminal(which) => which.fmt(f),
            Role::Terminals => f.write_str("terminals"),
            Role::Publishers => f.write_str("publishers"),
        }
    }
}

/// One role or several, joined by `+`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target(pub Vec<Role>);

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles: Vec<String> = self.0.iter().map(Role::to_string).collect();
        f.write_str(&roles.join("+"))
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Target, D::Error> {
        let text = String::deserialize(input)?;
        let role = |part: &str| {
            let part = part.trim();
            Role::parse(part).ok_or_else(|| de::Error::custom(near::unknown("target", part, NAMES)))
        };
        text.split('+').map(role).collect::<Result<_, _>>().map(Target)
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}
