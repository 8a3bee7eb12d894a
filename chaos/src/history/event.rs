//! The schema of a history's lines. Data only.
//!
//! A line is `{"n": N, "at": MICROSECONDS, KIND: {…}}`. `n` is the logical time: 0 for the first line, one more for each
//! line after it, in the order in which the one recorder of the run wrote them. `at` is microseconds since the run began:
//! by a monotonic clock where time is real, by the virtual clock in simulation; the first line says when that was by the
//! wall clock. KIND is one of `begin`, `invoke`, `ok`, `fail`, `unknown`, `fault`, `observe`, `end`. Fields that are not in
//! the schema are refused: a history says what it means, or is of another version.
//!
//! An operation that got no answer is `unknown`, never `fail`: it may have happened, and may yet.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::observation::Observation;

/// The version of the format; the first line of a history carries it. Version 1 had no operations, only deliveries.
pub const VERSION: u32 = 2;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// Logical time: the number of the line, from 0.
    pub n: u64,
    /// Microseconds since the run began.
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened. On the line its name is the key, in small letters.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The first line, and only that.
    Begin(Begin),
    /// Somebody asks the cluster for something.
    Invoke(Invoke),
    /// It was done.
    Ok {
        /// Which operation.
        op: u64,
        /// What came of it.
        got: Result,
    },
    /// It was certainly not done.
    Fail {
        /// Which operation.
        op: u64,
        /// Why.
        why: String,
    },
    /// Whether it was done, or will be, is not known.
    Unknown {
        /// Which operation.
        op: u64,
        /// Why.
        why: String,
    },
    /// A fault began or ended.
    Fault(Fault),
    /// Something was seen that nobody asked for.
    Observe(Observation),
    /// The last line of a run that came to its end. Without it a history is taken for cut off.
    End(End),
}

const KINDS: &[&str] = &["begin", "invoke", "ok", "fail", "unknown", "fault", "observe", "end"];

/// What the run was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Begin {
    /// See [`VERSION`].
    pub version: u32,
    /// The name of the run.
    pub run: String,
    /// What all its draws came from.
    pub seed: u64,
    /// What it ran on: `sim`, `proc`, `compose`, `attach`, or the name of another harness.
    pub backend: String,
    /// The scenario's name; empty if there was none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub scenario: String,
    /// The bug that was planted on purpose: what is found is no surprise then. Empty if none was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub planted: String,
    /// When it began: milliseconds since the Unix epoch. 0 in simulation.
    #[serde(default)]
    pub unix_ms: u64,
    /// What is asked of the run.
    #[serde(default)]
    pub expect: Expect,
}

/// What is asked of a run. A limit that is missing is not judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Expect {
    /// Checkers that must pass, by id. One that is not among them may be unable to tell; it may not fail. Empty: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<String>,
    /// How long somebody who wants to publish to a terminal may be without success, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish_gap_ms: Option<u64>,
    /// From the acknowledgement to a publisher until the terminal's application has the push, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deliver_ms: Option<u64>,
    /// From the end of a fault until every node is ready, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<u64>,
    /// From the acknowledgement until an offline terminal is notified, with no fault about, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify_ms: Option<u64>,
    /// Resident memory of a node, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// Open files of a node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fds: Option<u64>,
    /// A node's data folder, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// What must have happened for the run to mean anything: points of coverage, or `fault.KIND`, and how often.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cover: BTreeMap<String, u64>,
}

/// Somebody asks the cluster for something.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invoke {
    /// The operation's number, of this run alone. Repetitions by a careful client belong to the same operation.
    pub op: u64,
    /// Who asks. One does one thing at a time.
    pub by: String,
    /// The node that is asked first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<u64>,
    /// Within how many milliseconds there must be an answer, of whatever kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// For what.
    pub call: Call,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Call {
    /// A push.
    Publish {
        /// To whom.
        terminal: String,
        /// The name of its bytes, unique in the run. Bytes that come out changed must get another name.
        payload: String,
        /// How long it is to be kept, in milliseconds. Missing: longer than the run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl_ms: Option<u64>,
    },
    /// A terminal's entry in the service list.
    Status {
        /// Whose.
        terminal: String,
    },
    /// What became of a push.
    Look {
        /// The push's payload name.
        payload: String,
    },
    /// Take a push back.
    Cancel {
        /// The push's payload name.
        payload: String,
    },
    /// A try of another operation that its asker gave up: its node ends it all the same, in the time that it gives a request.
    GivenUp,
}

/// What an operation came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Result {
    /// The push is stored.
    Published {
        /// Its name, as the cluster gave it.
        message: String,
        /// Its place in the terminal's stream.
        seq: u64,
        /// The group and index of the log entry that stored it, where the backend sees them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        position: Option<(u64, u64)>,
    },
    /// The entry in the service list.
    Status {
        /// Whether it has a session.
        online: bool,
        /// With which node.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        node: Option<u64>,
        /// Its latest epoch.
        epoch: u64,
        /// Confirmed up to here.
        acked: u64,
        /// The seq that the next push will get.
        next_seq: u64,
    },
    /// What became of the push: `pending`, `acked`, `expired`, `cancelled`, `replaced`, `refused`, `gone`.
    Looked {
        /// That.
        state: String,
    },
    /// How the push ended, by this or before.
    Cancelled {
        /// As in `looked`.
        state: String,
    },
}

/// A fault began or ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Its number in the run: the two lines of a fault have the same.
    pub id: u64,
    /// Which step of it.
    pub step: FaultStep,
    /// Its kind, as scenarios name it.
    pub kind: String,
    /// What it was done to, resolved: `node 2`, `link 1 -> 3`.
    pub target: String,
    /// Everything else that a reader of the report wants to know.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A step of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultStep {
    /// From now on it is there.
    Began,
    /// From now on it is not there any more. A fault that has this step alone was over at once.
    Ended,
}

/// A run came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct End {}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Event, D::Error> {
        input.deserialize_map(Line)
    }
}

/// Reads a line in one pass. Derived code for a flattened enum would hold each line a second time, and name the wrong
/// thing when a kind is unknown.
struct Line;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Done {
    op: u64,
    got: Result,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NotDone {
    op: u64,
    why: String,
}

impl<'de> Visitor<'de> for Line {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line of a history")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Event, M::Error> {
        let (mut n, mut at, mut what) = (None, None, None);
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            let before = match &*key {
                "n" => n.replace(map.next_value()?).is_some(),
                "at" => at.replace(map.next_value()?).is_some(),
                kind => what.replace(value(kind, &mut map)?).is_some(),
            };
            if before {
                return Err(M::Error::custom(format!("{key:?} is a second one on the same line")));
            }
        }
        let missing = |name: &'static str| move || M::Error::missing_field(name);
        Ok(Event {
            n: n.ok_or_else(missing("n"))?,
            at: at.ok_or_else(missing("at"))?,
            what: what.ok_or_else(|| M::Error::custom("no kind of event on the line"))?,
        })
    }
}

fn value<'de, M: MapAccess<'de>>(kind: &str, map: &mut M) -> std::result::Result<What, M::Error> {
    Ok(match kind {
        "begin" => What::Begin(map.next_value()?),
        "invoke" => What::Invoke(map.next_value()?),
        "ok" => {
            let Done { op, got } = map.next_value()?;
            What::Ok { op, got }
        }
        "fail" => {
            let NotDone { op, why } = map.next_value()?;
            What::Fail { op, why }
        }
        "unknown" => {
            let NotDone { op, why } = map.next_value()?;
            What::Unknown { op, why }
        }
        "fault" => What::Fault(map.next_value()?),
        "observe" => What::Observe(map.next_value()?),
        "end" => What::End(map.next_value()?),
        other => return Err(M::Error::unknown_variant(other, KINDS)),
    })
}
