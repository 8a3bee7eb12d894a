//! How real nodes are told what is to happen at a point: orders in a file, which `chaos` writes and a `reveille` with the
//! feature `canary` reads. Reads and writes nothing itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{Action, Point};
use crate::id::NodeId;

/// The environment variable that names the file: a JSON array of orders.
pub const FILE: &str = "REVEILLE_FAIL_POINTS";

/// What is to happen at a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Its number, that no other one has.
    pub id: u64,
    /// At these nodes.
    pub nodes: BTreeSet<NodeId>,
    /// Where.
    pub point: Point,
    /// What.
    pub action: Action,
    /// How likely, each time that a node comes there.
    pub share: f64,
    /// How often, at all of its nodes together: before each time its node makes the next file that [`Order::taken`] names.
    pub hits: u64,
    /// Only while a node starts.
    pub starting: bool,
}

impl Order {
    /// The file, beside that of the orders, that whoever it happens to as the `n`-th makes before, counted from 0, with its own
    /// number in it. Who finds it there comes too late.
    pub fn taken(&self, orders: &Path, n: u64) -> PathBuf {
        let mut name = orders.as_os_str().to_owned();
        name.push(format!(".{}.{n}", self.id));
        name.into()
    }
}

impl Serialize for Point {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Point {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Point, D::Error> {
        let name = String::deserialize(input)?;
        Point::find(&name).ok_or_else(|| de::Error::custom(format!("there is no fail point {name:?}")))
    }
}
