//! Reads a scenario and says everything that is wrong with it, each with its line, before anything starts.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use serde::de::DeserializeOwned;
use toml::Spanned;

use super::kind::{Lasts, On, Takes};
use super::near;
use super::*;
use crate::check;

/// The most bytes of a file.
const BYTES: usize = 256 << 10;
/// The most faults in a file; periodic ones come more often.
const FAULTS: usize = 200;
/// How often a fault may come.
const TIMES: u64 = 10_000;

/// Something wrong with a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The line, from 1; 0 if it is about the whole file.
    pub line: usize,
    /// What.
    pub what: String,
}

/// A scenario that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct LoadError {
    /// The file's name as it was given.
    pub file: String,
    /// Everything that is wrong, in the order of the lines.
    pub wrong: Vec<Wrong>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self
            .wrong
            .iter()
            .map(|wrong| match wrong.line {
                0 => format!("{}: {}", self.file, wrong.what),
                line => format!("{}:{line}: {}", self.file, wrong.what),
            })
            .collect();
        f.write_str(&lines.join("\n"))
    }
}

/// Reads a scenario; `file` is only its name, for what is said.
///
/// # Errors
/// Everything that is wrong with it; of a text that is no scenario at all, the first thing.
pub fn load(file: &str, text: &str) -> Result<Scenario, LoadError> {
    let failed = |wrong: Vec<Wrong>| LoadError { file: file.to_owned(), wrong };
    let scenario: Scenario = parse(file, text)?;
    let mut checks = Checks { text, scenario: &scenario, wrong: Vec::new() };
    checks.all();
    let mut wrong = checks.wrong;
    if !wrong.is_empty() {
        wrong.sort_by_key(|wrong| wrong.line);
        return Err(failed(wrong));
    }
    Ok(scenario)
}

/// Reads any TOML whose type refuses unknown keys, and says of one which may be meant.
///
/// # Errors
/// The first thing that is wrong with it, with its line.
pub fn parse<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, LoadError> {
    let failed = |line, what| LoadError { file: file.to_owned(), wrong: vec![Wrong { line, what }] };
    if text.len() > BYTES {
        return Err(failed(0, format!("longer than {BYTES} bytes")));
    }
    toml::from_str(text)
        .map_err(|error| failed(error.span().map_or(0, |span| line_of(text, &span)), meant(error.message())))
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count()
}

/// Serde's words about an unknown key or variant, with the one that may be meant: the names stand in backticks, the
/// wrong one first.
fn meant(message: &str) -> String {
    let mut names = message.split('`').skip(1).step_by(2);
    let what = match message {
        _ if message.starts_with("unknown field") => "key",
        _ if message.starts_with("unknown variant") => "value",
        _ => return message.to_owned(),
    };
    match names.next() {
        Some(name) => near::unknown(what, name, &names.collect::<Vec<_>>()),
        None => message.to_owned(),
    }
}

struct Checks<'a> {
    text: &'a str,
    scenario: &'a Scenario,
    wrong: Vec<Wrong>,
}

impl Checks<'_> {
    /// About the line that begins so, or the whole file if none does.
    fn at(&mut self, start: &str, what: impl Into<String>) {
        let line = self.text.lines().position(|line| line.trim_start().starts_with(start));
        self.wrong.push(Wrong { line: line.map_or(0, |line| line + 1), what: what.into() });
    }

    fn all(&mut self) {
        let scenario = self.scenario;
        let name = &scenario.name;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            self.at("name", format!("name = {name:?}: small letters, digits and dashes"));
        }
        for claim in scenario.claims.iter().filter(|claim| check::claim(claim).is_none()) {
            let mut names: Vec<&str> = check::CHECKERS.iter().map(|checker| checker.name).collect();
            names.extend(["safety", "delivery"]);
            self.at("claims", near::unknown("checker", claim, &names));
        }
        self.numbers();
        self.phases();
        if scenario.faults.len() > FAULTS {
            self.at("[[fault]]", format!("more than {FAULTS} faults"));
        }
        for fault in &scenario.faults {
            self.fault(fault);
        }
        self.first_last();
        self.swarm();
        self.cover();
    }

    fn numbers(&mut self) {
        let Scenario { cluster, workload, .. } = self.scenario;
        let within = [
            ("nodes", cluster.nodes, 1, 9),
            ("shards", cluster.shards, 1, 64),
            ("terminals", workload.terminals, 1, 10_000),
            ("publishers", workload.publishers, 1, 256),
            ("rate", workload.rate, 1, 100_000),
            ("payload", workload.payload, 32, 4096),
        ];
        for (key, value, least, most) in within {
            if !(least..=most).contains(&value) {
                self.at(key, format!("{key} = {value}: from {least} to {most}"));
            }
        }
    }

    fn phases(&mut self) {
        let Phases { chaos, drain, .. } = &self.scenario.phases;
        if chaos.0.is_zero() && !self.scenario.faults.is_empty() {
            self.at("chaos", "faults need a chaos phase that takes some time");
        }
        if drain.0 < Duration::from_secs(1) {
            self.at("drain", "drain: at least 1s, in which what is on its way arrives");
        }
    }

    fn fault(&mut self, spanned: &Spanned<Fault>) {
        let line = line_of(self.text, &spanned.span());
        let fault = spanned.get_ref();
        let kind = fault.kind.info();
        let mut wrong = Vec::new();
        let mut say = |what: String| wrong.push(Wrong { line, what: format!("{}: {what}", kind.name) });
        let times = [fault.at.is_some(), fault.every.is_some(), fault.when.is_some()];
        if times.iter().filter(|some| **some).count() != 1 {
            say("exactly one of at, every, when says its time".to_owned());
        }
        if fault.at.is_some() && fault.times.is_some() {
            say("`at` is once; `times` goes with `every` or `when`".to_owned());
        }
        if fault.times.is_some_and(|times| times == 0 || times > TIMES) {
            say(format!("times: from 1 to {TIMES}"));
        }
        if let Some(late) = fault.at.or(fault.every).filter(|time| time.0 >= self.scenario.phases.chaos.0) {
            say(format!("at {late} the chaos phase is over"));
        }
        if fault.every.is_some_and(|every| every.0 < Duration::from_millis(50)) {
            say("every: at least 50ms".to_owned());
        }
        if kind.lasts == Lasts::No && fault.lasts.is_some() {
            say("it is over at once: no `for`".to_owned());
        }
        takes(kind, fault, &mut say);
        places(self.scenario, kind, fault, &mut say);
        self.wrong.append(&mut wrong);
    }

    fn first_last(&mut self) {
        let uses = |fault: &Fault| fault.target.as_ref().is_some_and(|target| target.0.contains(&Role::Last));
        if let Some(first) = self.scenario.faults.first().filter(|fault| uses(fault.get_ref())) {
            let line = line_of(self.text, &first.span());
            self.wrong.push(Wrong { line, what: "last: there is no fault before it".to_owned() });
        }
    }

    fn swarm(&mut self) {
        let Some(swarm) = &self.scenario.swarm else { return };
        if swarm.subset_of.is_empty() {
            self.at("subset_of", "subset_of: at least one kind");
        }
        for kind in &swarm.subset_of {
            if !self.scenario.faults().any(|fault| fault.kind == *kind) {
                self.at("subset_of", format!("{}: no fault of the scenario is of this kind", kind.name()));
            }
        }
    }

    fn cover(&mut self) {
        let kinds: Vec<&str> = self.scenario.faults().map(|fault| fault.kind.name()).collect();
        for point in self.scenario.expect.cover.keys() {
            let Some(kind) = point.strip_prefix("fault.") else { continue };
            if !kinds.contains(&kind) {
                self.at("cover", format!("{point}: no fault of the scenario is of this kind"));
            }
        }
    }
}

/// What a kind takes is there, and nothing else is.
fn takes(kind: &KindInfo, fault: &Fault, say: &mut impl FnMut(String)) {
    if kind.takes == Takes::Point {
        return at_a_point(fault, say);
    }
    let all = [
        (Takes::Share, "share", fault.share.is_some()),
        (Takes::By, "by", fault.by.is_some()),
        (Takes::File, "file", fault.file.is_some()),
        (Takes::Point, "point", fault.point.is_some()),
        (Takes::Point, "action", fault.action.is_some()),
        (Takes::Point, "hits", fault.hits.is_some()),
        (Takes::Point, "starting", fault.starting.is_some()),
    ];
    for (takes, key, there) in all {
        match (kind.takes == takes, there) {
            (true, false) => say(format!("it needs `{key}`")),
            (false, true) => say(format!("it takes no `{key}`")),
            _ => {}
        }
    }
}

/// What is to happen at a fail point can happen there.
fn at_a_point(fault: &Fault, say: &mut impl FnMut(String)) {
    let missing = [("point", fault.point.is_none()), ("action", fault.action.is_none())];
    missing.iter().filter(|(_, missing)| *missing).for_each(|(key, _)| say(format!("it needs `{key}`")));
    if let (Some(At(point)), Some(act)) = (fault.point, fault.action)
        && !act.fits(point)
    {
        let fit: Vec<&str> = Act::ALL.iter().filter(|act| act.fits(point)).map(|act| act.name()).collect();
        say(format!("{}: no `{}` there, only {}", point.name(), act.name(), fit.join(", ")));
    }
    match (fault.action == Some(Act::Sleep), fault.by) {
        (true, None) => say("a sleep needs `by`".to_owned()),
        (false, Some(_)) => say("only a sleep takes `by`".to_owned()),
        _ => {}
    }
    if fault.hits.is_some_and(|hits| hits == 0 || hits > TIMES) {
        say(format!("hits: from 1 to {TIMES}"));
    }
    if fault.share.is_some_and(|share| share.0 == 0.0) {
        say("share: at 0 it never happens".to_owned());
    }
    if fault.file.is_some() {
        say("it takes no `file`".to_owned());
    }
}

/// Whom it hits can be hit, in this cluster, by this kind.
fn places(scenario: &Scenario, kind: &KindInfo, fault: &Fault, say: &mut impl FnMut(String)) {
    let link = kind.on == On::Link;
    match (link, &fault.from, &fault.to, &fault.target) {
        (true, Some(_), Some(_), None) | (false, None, None, _) => {}
        (true, ..) => say("a link has `from` and `to`, and no `target`".to_owned()),
        (false, ..) => say("it has a `target`, not `from` and `to`".to_owned()),
    }
    match (kind.on, &fault.target) {
        (On::Nodes | On::Clients, None) => say("it needs a `target`".to_owned()),
        (On::Cluster, Some(_)) => say("it is about the whole cluster: no `target`".to_owned()),
        _ => {}
    }
    let targets = [&fault.target, &fault.from, &fault.to];
    for role in targets.into_iter().flatten().flat_map(|target| &target.0) {
        match role {
            Role::Node(number) if *number > scenario.cluster.nodes => {
                say(format!("{role}: the cluster has {} nodes", scenario.cluster.nodes));
            }
            Role::Owner(Which::Number(number))
            | Role::Anchor(Which::Number(number))
            | Role::Terminal(Which::Number(number))
                if *number > scenario.workload.terminals =>
            {
                say(format!("{role}: the workload has {} terminals", scenario.workload.terminals));
            }
            Role::HandoffSource | Role::HandoffTarget if fault.when != Some(When::HandoffStarted) => {
                say(format!("{role} is somebody only with when = \"handoff.started\""));
            }
            Role::Follower | Role::Minority if scenario.cluster.nodes < 3 => {
                say(format!("{role}: in a cluster of {} nobody is that", scenario.cluster.nodes));
            }
            Role::Majority | Role::All if kind.disables && scenario.blast.max_dead == MaxDead::Minority => {
                say(format!("{role}: more than [blast] max_dead = \"minority\" allows; \"all\" does"));
            }
            role if kind.on == On::Nodes && role.is_client() => {
                say(format!("it hits nodes, and {role} is none"));
            }
            role if kind.on == On::Clients && !role.is_client() => {
                say(format!("it hits terminals or publishers, and {role} is none"));
            }
            _ => {}
        }
    }
}
