//! Values of a scenario as they are written: times, sizes, shares, triggers. Each refuses what it cannot mean, so that
//! the reader of a scenario names the line.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use reveille_protocol::fail_point::Point;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::near;

/// The longest time in a scenario: a soak of a week is many runs.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A time: `500ms`, `5s`, `2m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time(pub Duration);

impl Time {
    /// In milliseconds.
    pub fn ms(self) -> u64 {
        self.0.as_millis() as u64
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Time, D::Error> {
        let text = String::deserialize(input)?;
        let time = humantime::parse_duration(&text)
            .map_err(|error| de::Error::custom(format!("{text:?} is no time ({error}); as 500ms, 5s, 2m")))?;
        if time > LONGEST {
            return Err(de::Error::custom(format!("{text:?} is longer than {}", Time(LONGEST))));
        }
        Ok(Time(time))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

/// A number of bytes: `512`, `64KiB`, `1GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Size, D::Error> {
        let text = String::deserialize(input)?;
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let unit = match text[end..].trim() {
            "" | "B" => Some(0),
            "KiB" => Some(10),
            "MiB" => Some(20),
            "GiB" => Some(30),
            _ => None,
        };
        let number: Option<u64> = text[..end].parse().ok();
        let size = number.zip(unit).and_then(|(number, unit)| number.checked_mul(1 << unit));
        size.map(Size).ok_or_else(|| {
            de::Error::custom(format!("{text:?} is no number of bytes; as \"512\", \"64KiB\", \"1GiB\""))
        })
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(&self.0)
    }
}

/// A probability or share: 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct Share(pub f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Share, D::Error> {
        let share = f64::deserialize(input)?;
        if !(0.0..=1.0).contains(&share) {
            return Err(de::Error::custom(format!("{share} is no share: it is from 0 to 1")));
        }
        Ok(Share(share))
    }
}

/// Something in a run that faults can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum When {
    /// A group got a leader that it did not have before.
    LeaderChanged,
    /// A node turned ready.
    NodeReady,
    /// A session opened.
    Attached,
    /// A push was handed to the node of a session, and is not confirmed.
    HandoffStarted,
    /// A node sends a snapshot to another.
    SnapshotStarted,
    /// A change of a group's replicas began.
    MembershipStarted,
}

impl When {
    /// All of them.
    pub const ALL: [When; 6] = [
        When::LeaderChanged,
        When::NodeReady,
        When::Attached,
        When::HandoffStarted,
        When::SnapshotStarted,
        When::MembershipStarted,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            When::LeaderChanged => "leader.changed",
            When::NodeReady => "node.ready",
            When::Attached => "session.attached",
            When::HandoffStarted => "handoff.started",
            When::SnapshotStarted => "snapshot.started",
            When::MembershipStarted => "membership.started",
        }
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<When, D::Error> {
        let text = String::deserialize(input)?;
        let names = When::ALL.map(When::name);
        let found = When::ALL.into_iter().find(|when| when.name() == text);
        found.ok_or_else(|| de::Error::custom(near::unknown("event", &text, &names)))
    }
}

impl Serialize for When {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(self.name())
    }
}

/// A fail point, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At(pub Point);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

fn points() -> Vec<&'static str> {
    Point::ALL.iter().map(|point| point.name()).collect()
}

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<At, D::Error> {
        let text = String::deserialize(input)?;
        let found = Point::find(&text).map(At);
        found.ok_or_else(|| de::Error::custom(near::unknown("fail point", &text, &points())))
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(self.0.name())
    }
}

impl JsonSchema for At {
    fn schema_name() -> Cow<'static, str> {
        "FailPoint".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "enum": points() })
    }
}
