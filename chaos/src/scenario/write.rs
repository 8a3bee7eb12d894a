//! Writes a scenario as a person would: what is as it is without being said is not said. What it writes, [`super::load()`]
//! reads as the same scenario.

use serde::Serialize;
use toml::{Table, Value};

use super::{Blast, Cluster, Expected, Scenario, Workload};

/// In which order a fault's keys stand: when, what, to whom, how long, how much.
const FAULT: [&str; 16] = [
    "at", "every", "when", "times", "kind", "target", "from", "to", "for", "point", "action", "hits",
    "starting", "share", "by", "file",
];

/// The text of a scenario, TOML.
pub fn write(scenario: &Scenario) -> String {
    let Scenario { name, about, claims, cluster, workload, phases, faults, swarm, expect, blast } = scenario;
    let mut out = String::new();
    let claims: Vec<Value> = claims.iter().map(|claim| Value::from(claim.as_str())).collect();
    line(&mut out, "name", &Value::from(name.as_str()));
    line(&mut out, "about", &Value::from(about.as_str()));
    if !claims.is_empty() {
        line(&mut out, "claims", &Value::from(claims));
    }
    section(&mut out, "[cluster]", &said(cluster, &Cluster::default()), &["nodes", "shards"]);
    let order = ["kind", "terminals", "connected", "publishers", "rate", "payload", "deadline", "ttl"];
    section(&mut out, "[workload]", &said(workload, &Workload::default()), &order);
    section(&mut out, "[phases]", &table(phases), &["warmup", "chaos", "heal", "drain"]);
    for fault in faults {
        section(&mut out, "[[fault]]", &table(fault.get_ref()), &FAULT);
    }
    if let Some(swarm) = swarm {
        section(&mut out, "[swarm]", &table(swarm), &["none", "subset_of"]);
    }
    let order = ["publish_gap", "deliver", "ready", "notify", "memory", "files", "disk", "cover"];
    section(&mut out, "[expect]", &said(expect, &Expected::default()), &order);
    section(&mut out, "[blast]", &said(blast, &Blast::default()), &["max_dead"]);
    out
}

fn line(out: &mut String, key: &str, value: &Value) {
    out.push_str(&format!("{key} = {value}\n"));
}

/// A table of a file, if anything is to be said in it.
fn section(out: &mut String, head: &str, said: &Table, order: &[&str]) {
    if said.is_empty() {
        return;
    }
    out.push_str(&format!("{head}\n"));
    for key in order {
        if let Some(value) = said.get(*key) {
            line(out, key, value);
        }
    }
}

/// What these come to as TOML. Their types are tables of this crate's own, with nothing that TOML has no word for; one
/// that had would leave a file that cannot be read, and a test writes all of them.
fn table(value: &impl Serialize) -> Table {
    Table::try_from(value).unwrap_or_default()
}

/// The same without what need not be said.
fn said<T: Serialize>(value: &T, unsaid: &T) -> Table {
    let unsaid = table(unsaid);
    let differs = |key: &String, value: &Value| unsaid.get(key) != Some(value);
    table(value).into_iter().filter(|(key, value)| differs(key, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{load, shipped};
    use super::*;

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for (name, text) in shipped::SHIPPED {
            let scenario = load(name, text).unwrap();
            let again = load(name, &write(&scenario)).unwrap_or_else(|error| panic!("{error}"));
            assert!(again.faults().eq(scenario.faults()), "{name}");
            let faults = scenario.faults.clone();
            assert_eq!(Scenario { faults, ..again }, scenario, "{name}");
        }
    }

    #[test]
    fn what_need_not_be_said_is_not() {
        let text = "name = \"x\"\nabout = \"a test\"\nclaims = [\"no-acked-loss\"]\n[workload]\nterminals = 1\n\
                    [phases]\nwarmup = \"1s\"\nchaos = \"5s\"\nheal = \"1s\"\ndrain = \"20s\"\n\
                    [[fault]]\nat = \"2s\"\nkind = \"kill\"\ntarget = \"n1+n2\"\nfor = \"500ms\"\n\
                    [blast]\nmax_dead = \"all\"\n";
        assert_eq!(write(&load("x.toml", text).unwrap()), text);
    }
}
