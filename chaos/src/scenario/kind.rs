//! The kinds of faults that a scenario may name: what each takes, and which backends of this build can do it. A kind that
//! no backend can do yet can be written and planned; running it is refused before anything starts.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::near;

/// What a kind is done to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// Nodes: `target`.
    Nodes,
    /// Terminals or publishers: `target`.
    Clients,
    /// What goes from some nodes to others: `from` and `to`.
    Link,
    /// The whole cluster: neither.
    Cluster,
}

/// What else may be written beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Nothing.
    Nothing,
    /// `share`: of the packets, datagrams or writes.
    Share,
    /// `by`: a time.
    By,
    /// `file`: which of a node's files: `log`, `tables`.
    File,
    /// `point` and `action`, and if they are wanted `share`, `hits` and `starting`.
    Point,
}

/// How long it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// Over at once; `for` says nothing.
    No,
    /// For as long as `for` says; without it until the chaos phase ends.
    Yes,
}

/// A kind.
#[derive(Debug)]
pub struct KindInfo {
    /// As it is written.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// To what.
    pub on: On,
    /// What it takes.
    pub takes: Takes,
    /// Whether it lasts.
    pub lasts: Lasts,
    /// It keeps its target from serving, as blast limits count.
    pub disables: bool,
    /// The process backend of this build does it.
    pub proc: bool,
}

impl KindInfo {
    /// It is done to what goes between nodes, or terminals and nodes, and not to those themselves.
    pub fn is_on_the_way(&self) -> bool {
        let of_terminals =
            ["rebind", "nat-timeout", "notification-loss", "notification-replay", "notification-forged"];
        self.on == On::Link || of_terminals.contains(&self.name)
    }
}

const fn kind(name: &'static str, about: &'static str, on: On, takes: Takes, lasts: Lasts) -> KindInfo {
    KindInfo { name, about, on, takes, lasts, disables: false, proc: false }
}

const fn disables(kind: KindInfo) -> KindInfo {
    KindInfo { disables: true, ..kind }
}

const fn proc(kind: KindInfo) -> KindInfo {
    KindInfo { proc: true, ..kind }
}

use self::Lasts::{No, Yes};
use self::On::{Clients, Cluster, Link, Nodes};
use self::Takes::{By, File, Nothing, Point, Share};

/// All kinds, by what they attack.
pub static KINDS: &[KindInfo] = &[
    // Processes.
    proc(disables(kind("kill", "kill -9; started again after `for`", Nodes, Nothing, Yes))),
    proc(disables(kind(
        "stop",
        "SIGTERM, as an operator does; started again after `for`",
        Nodes,
        Nothing,
        Yes,
    ))),
    proc(disables(kind("pause", "SIGSTOP; SIGCONT after `for`", Nodes, Nothing, Yes))),
    proc(disables(kind("restart", "kill -9, and started again at once", Nodes, Nothing, No))),
    proc(disables(kind(
        "power",
        "the power fails: what was not synced is lost; on again after `for`",
        Nodes,
        Nothing,
        Yes,
    ))),
    proc(disables(kind("crash-loop", "killed again each time that it has started", Nodes, Nothing, Yes))),
    proc(kind("cpu", "gets only `share` of a processor", Nodes, Share, Yes)),
    proc(kind("few-files", "gets no more open files", Nodes, Nothing, Yes)),
    proc(disables(kind("out-of-memory", "killed for its memory", Nodes, Nothing, Yes))),
    proc(disables(kind("upgrade", "stopped, and started as the other version", Nodes, Nothing, No))),
    // Links.
    proc(kind("cut", "nothing goes either way", Link, Nothing, Yes)),
    proc(kind("cut-one-way", "nothing goes from `from` to `to`", Link, Nothing, Yes)),
    proc(kind("jam", "held up, and let go all at once", Link, Nothing, Yes)),
    proc(kind("delay", "later by `by`", Link, By, Yes)),
    proc(kind("loss", "`share` of the packets is lost", Link, Share, Yes)),
    proc(kind("duplicate", "`share` of the packets comes twice", Link, Share, Yes)),
    proc(kind("reorder", "`share` of the packets comes late", Link, Share, Yes)),
    proc(kind("corrupt", "`share` of the packets is changed", Link, Share, Yes)),
    proc(kind("bandwidth", "only `share` of what it carries otherwise", Link, Share, Yes)),
    proc(kind("reset", "connections are broken", Link, Nothing, No)),
    proc(kind("half-open", "one end's connections are gone, and the other does not know", Link, Nothing, No)),
    // Between terminals and nodes.
    proc(kind("rebind", "the NAT gives the terminal another address", Clients, Nothing, No)),
    proc(kind("notification-loss", "`share` of the notifications is lost", Clients, Share, Yes)),
    proc(kind("nat-timeout", "the NAT forgets a terminal that is silent for `by`", Clients, By, Yes)),
    proc(kind("notification-replay", "notifications come again after `by`", Clients, By, Yes)),
    proc(kind("notification-forged", "notifications that no node has sent", Clients, Nothing, Yes)),
    // Disks.
    proc(kind("lose-unsynced", "what was not synced is lost at the next kill", Nodes, Nothing, Yes)),
    proc(kind("torn-write", "the last write before a kill is there in part", Nodes, File, Yes)),
    proc(disables(kind("io-error", "`share` of reads and writes fails", Nodes, Share, Yes))),
    proc(disables(kind("sync-error", "the next sync fails, once", Nodes, Nothing, No))),
    proc(disables(kind("disk-full", "there is no room", Nodes, Nothing, Yes))),
    proc(kind("slow-disk", "each sync takes `by` longer", Nodes, By, Yes)),
    proc(disables(kind(
        "bit-flip",
        "a bit of a file of this kind is turned, while the node is down",
        Nodes,
        File,
        No,
    ))),
    proc(disables(kind(
        "truncate",
        "a file of this kind loses its end, while the node is down",
        Nodes,
        File,
        No,
    ))),
    proc(disables(kind("roll-back", "the data folder of `by` ago is put back", Nodes, By, No))),
    proc(disables(kind("wipe", "the data folder is emptied, and the node started", Nodes, Nothing, No))),
    // Clocks.
    proc(kind("clock-step", "the wall clock jumps by `by`", Nodes, By, Yes)),
    proc(kind("clock-strobe", "the wall clock jumps there and back by `by`", Nodes, By, Yes)),
    proc(kind("clock-drift", "the clock runs by `share` faster", Nodes, Share, Yes)),
    // Raft and membership.
    proc(kind("move-leaders", "leads no group any more", Nodes, Nothing, No)),
    proc(kind("snapshot", "flushes its tables and cuts its log", Nodes, Nothing, No)),
    proc(kind("add-node", "a new node joins", Cluster, Nothing, No)),
    proc(kind("drain", "its replicas go elsewhere; taken back after `for`", Nodes, Nothing, Yes)),
    proc(disables(kind("remove", "it belongs no more", Nodes, Nothing, No))),
    proc(disables(kind("replace", "a new node takes its place", Nodes, Nothing, No))),
    // Terminals and publishers.
    proc(kind(
        "terminal-kill",
        "its process ends where it stands, and starts again on its state",
        Clients,
        Nothing,
        Yes,
    )),
    proc(kind("slow-reader", "it does not read", Clients, Nothing, Yes)),
    proc(kind("ack-withheld", "its application confirms nothing", Clients, Nothing, Yes)),
    proc(kind("twin", "a second device with the same identity", Clients, Nothing, Yes)),
    proc(kind("reconnect", "all sessions end, and all terminals come at once", Clients, Nothing, No)),
    proc(kind("retry-storm", "publishers ask again at once, without a pause", Clients, Nothing, Yes)),
    // Code.
    proc(disables(kind(
        "fail-point",
        "at `point` it ends, panics, fails or waits: `action`; in builds with the feature canary",
        Nodes,
        Point,
        Yes,
    ))),
];

/// A kind, by its place in [`KINDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(usize);

impl Kind {
    /// The one of this name.
    pub fn find(name: &str) -> Option<Kind> {
        KINDS.iter().position(|kind| kind.name == name).map(Kind)
    }

    /// What it is.
    pub fn info(self) -> &'static KindInfo {
        &KINDS[self.0]
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// It is one of the deeds by which an operator changes who belongs to the cluster.
    pub fn is_membership(self) -> bool {
        matches!(self.name(), "add-node" | "drain" | "remove" | "replace")
    }

    /// It is done to the data folder of a node that is down.
    pub fn is_of_folders(self) -> bool {
        matches!(self.name(), "wipe" | "bit-flip" | "truncate" | "roll-back")
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Kind, D::Error> {
        let text = String::deserialize(input)?;
        Kind::find(&text).ok_or_else(|| {
            let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
            de::Error::custom(near::unknown("kind of fault", &text, &names))
        })
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(self.name())
    }
}
