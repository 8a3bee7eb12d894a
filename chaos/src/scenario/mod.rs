//! Scenarios: what is done to a cluster while it works, and what is expected of it. TOML; every key that is not here is
//! refused with the one that may be meant. [`load()`] reads and checks them, [`write()`] writes them, [`crate::plan`] draws
//! from them.

pub mod kind;
pub mod load;
pub mod near;
pub mod shipped;
pub mod target;
pub mod value;
pub mod write;

use std::collections::BTreeMap;

use reveille_protocol::fail_point::{Action, Point};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Spanned;

pub use self::kind::{KINDS, Kind, KindInfo};
pub use self::load::{LoadError, load};
pub use self::target::{ROLES, Role, Target, Which};
pub use self::value::{At, Share, Size, Time, When};
pub use self::write::write;

/// A scenario.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name: that of its file.
    pub name: String,
    /// What it is about, in a sentence.
    pub about: String,
    /// Checkers that must pass, by id or name; `safety` stands for C1 to C8, `delivery` for C1 to C5. The others may be unable to tell, not fail. Empty: all must.
    #[serde(default)]
    pub claims: Vec<String>,
    /// The cluster.
    #[serde(default)]
    pub cluster: Cluster,
    /// Who publishes what to whom.
    #[serde(default)]
    pub workload: Workload,
    /// How long what goes on.
    pub phases: Phases,
    /// Faults. Their times count from the beginning of the chaos phase; all are taken back at its end.
    #[serde(default, rename = "fault")]
    #[schemars(with = "Vec<Fault>")]
    pub faults: Vec<Spanned<Fault>>,
    /// A random part of the faults for each seed.
    #[serde(default)]
    pub swarm: Option<Swarm>,
    /// Budgets and coverage.
    #[serde(default)]
    pub expect: Expected,
    /// How much may be broken at once.
    #[serde(default)]
    pub blast: Blast,
}

/// The cluster that a scenario wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// Nodes: 1 to 9.
    pub nodes: u64,
    /// Shard groups: 1 to 64.
    pub shards: u64,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster { nodes: 3, shards: 3 }
    }
}

/// What a workload does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Pushes to terminals, in turn.
    Push,
    /// The same, and each publish twice under one idempotency key.
    Retry,
    /// Each push to all terminals.
    Broadcast,
    /// Nothing is published; terminals register and sleep.
    Idle,
}

impl Work {
    /// All of them with a sentence each.
    pub const ALL: [(Work, &'static str, &'static str); 4] = [
        (Work::Push, "push", "pushes to the terminals in turn"),
        (Work::Retry, "retry", "each publish is repeated under its idempotency key"),
        (Work::Broadcast, "broadcast", "each push goes to all terminals"),
        (Work::Idle, "idle", "terminals register and sleep; nothing is published"),
    ];
}

/// Who publishes what to whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// What is done.
    pub kind: Work,
    /// Terminals: 1 to 10000.
    pub terminals: u64,
    /// The share of them that stay connected; the others leave after each push and are woken for the next.
    pub connected: Share,
    /// Publishers: 1 to 256.
    pub publishers: u64,
    /// Publishes a second, of all publishers: 1 to 100000.
    pub rate: u64,
    /// Bytes of a payload: 32 to 4096.
    pub payload: u64,
    /// A publish is given up, as unknown, after this.
    #[schemars(with = "String")]
    pub deadline: Time,
    /// How long a push is kept. Missing: longer than the run.
    #[schemars(with = "Option<String>")]
    pub ttl: Option<Time>,
}

impl Default for Workload {
    fn default() -> Workload {
        Workload {
            kind: Work::Push,
            terminals: 20,
            connected: Share(0.25),
            publishers: 4,
            rate: 50,
            payload: 128,
            deadline: Time(std::time::Duration::from_secs(15)),
            ttl: None,
        }
    }
}

/// How long what goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Phases {
    /// Load without faults.
    #[schemars(with = "String")]
    pub warmup: Time,
    /// Load and faults.
    #[schemars(with = "String")]
    pub chaos: Time,
    /// Load, faults taken back.
    #[schemars(with = "String")]
    pub heal: Time,
    /// No load: at most so long until everything has arrived.
    #[schemars(with = "String")]
    pub drain: Time,
}

/// A fault. Exactly one of `at`, `every`, `when` says its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Once, so long after the chaos phase began.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub at: Option<Time>,
    /// Again and again: the first after one period, each up to a quarter of it later by the seed.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub every: Option<Time>,
    /// When this happens in the chaos phase.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub when: Option<When>,
    /// At most so often. With `when`: once, if missing.
    #[serde(default)]
    pub times: Option<u64>,
    /// Which kind: see `chaos list`.
    #[schemars(with = "String")]
    pub kind: Kind,
    /// Whom it hits.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub target: Option<Target>,
    /// Of a link: from whom.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub from: Option<Target>,
    /// Of a link: to whom.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub to: Option<Target>,
    /// How long it lasts. Missing: until the chaos phase ends.
    #[serde(default, rename = "for")]
    #[schemars(with = "Option<String>")]
    pub lasts: Option<Time>,
    /// How much of it: 0 to 1.
    #[serde(default)]
    #[schemars(with = "Option<f64>")]
    pub share: Option<Share>,
    /// By how much time.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub by: Option<Time>,
    /// Of which files.
    #[serde(default)]
    pub file: Option<FileKind>,
    /// At which fail point: see `chaos list points`.
    #[serde(default)]
    pub point: Option<At>,
    /// What happens there.
    #[serde(default)]
    pub action: Option<Act>,
    /// How often it happens at most, at whomever it hits together. Missing: once.
    #[serde(default)]
    pub hits: Option<u64>,
    /// Whether it happens only while a node starts: until it has its incarnation. Missing: then and later.
    #[serde(default)]
    pub starting: Option<bool>,
}

/// What happens at a fail point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Act {
    /// The node ends there, as by kill -9.
    Kill,
    /// The task panics there; its node must end by it.
    Panic,
    /// The step fails.
    Error,
    /// The step takes so much longer: `by`.
    Sleep,
}

impl Act {
    /// All of them.
    pub const ALL: [Act; 4] = [Act::Kill, Act::Panic, Act::Error, Act::Sleep];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Act::Kill => "kill",
            Act::Panic => "panic",
            Act::Error => "error",
            Act::Sleep => "sleep",
        }
    }

    /// Can this happen there?
    pub fn fits(self, point: Point) -> bool {
        match self {
            Act::Kill | Act::Panic => true,
            Act::Error => point.fails(),
            Act::Sleep => point.waits(),
        }
    }

    /// What a node is told; `by`: how much longer the step takes.
    pub fn action(self, by: std::time::Duration) -> Action {
        match self {
            Act::Kill => Action::Kill,
            Act::Panic => Action::Panic,
            Act::Error => Action::Error,
            Act::Sleep => Action::Sleep(by),
        }
    }

    /// What happened.
    pub fn of(action: Action) -> Act {
        match action {
            Action::Kill => Act::Kill,
            Action::Panic => Act::Panic,
            Action::Error => Act::Error,
            Action::Sleep(_) => Act::Sleep,
        }
    }

    /// The point of coverage for it, at this fail point.
    pub fn cover(self, point: Point) -> String {
        format!("fail-point.{}.{}", point.name(), self.name())
    }
}

/// A kind of a node's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// The log's segments.
    Log,
    /// The tables.
    Tables,
    /// Any of its files.
    Any,
}

/// A random part of the faults for each seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Swarm {
    /// The share of seeds with none of these at all: invariants must hold then, too.
    #[serde(default = "quarter")]
    #[schemars(with = "f64")]
    pub none: Share,
    /// Kinds of which a seed has some; the others always are there.
    #[schemars(with = "Vec<String>")]
    pub subset_of: Vec<Kind>,
}

fn quarter() -> Share {
    Share(0.25)
}

/// Budgets and coverage. What is missing is not judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Expected {
    /// How long somebody who wants to publish to a terminal may be without success.
    #[schemars(with = "Option<String>")]
    pub publish_gap: Option<Time>,
    /// From the acknowledgement to the application.
    #[schemars(with = "Option<String>")]
    pub deliver: Option<Time>,
    /// From the end of a fault until every node is ready.
    #[schemars(with = "Option<String>")]
    pub ready: Option<Time>,
    /// From the acknowledgement until an offline terminal is notified, with no fault about.
    #[schemars(with = "Option<String>")]
    pub notify: Option<Time>,
    /// Resident memory of a node.
    #[schemars(with = "Option<String>")]
    pub memory: Option<Size>,
    /// Open files of a node.
    pub files: Option<u64>,
    /// A node's data folder.
    #[schemars(with = "Option<String>")]
    pub disk: Option<Size>,
    /// What must have happened, and how often at least: `"fault.kill" = 3`, or a point of coverage.
    pub cover: BTreeMap<String, u64>,
}

/// How many nodes may be disabled at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum MaxDead {
    /// As many as may be lost without a stop.
    #[default]
    Minority,
    /// All of them: the scenario is about that.
    All,
}

/// How much may be broken at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Blast {
    /// How many nodes may be disabled at once; a fault that would disable more is left out, and counted.
    pub max_dead: MaxDead,
}

impl Scenario {
    /// Its faults, without their places in the file.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter().map(Spanned::get_ref)
    }

    /// From the first moment to the last of the longest run.
    pub fn length(&self) -> std::time::Duration {
        let Phases { warmup, chaos, heal, drain } = &self.phases;
        warmup.0 + chaos.0 + heal.0 + drain.0
    }

    /// What the history of a run says is expected.
    pub fn expect(&self) -> crate::history::Expect {
        let Expected { publish_gap, deliver, ready, notify, memory, files, disk, cover } = &self.expect;
        let ids = |name: &String| crate::check::claim(name).unwrap_or_default();
        crate::history::Expect {
            claims: self.claims.iter().flat_map(ids).map(str::to_owned).collect(),
            publish_gap_ms: publish_gap.map(Time::ms),
            deliver_ms: deliver.map(Time::ms),
            ready_ms: ready.map(Time::ms),
            notify_ms: notify.map(Time::ms),
            rss_bytes: memory.map(|size| size.0),
            fds: *files,
            disk_bytes: disk.map(|size| size.0),
            cover: cover.clone(),
        }
    }
}

/// The JSON schema of a scenario.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Scenario)
}
