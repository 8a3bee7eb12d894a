//! Scenarios and their plans: those that come with the program, and what is said about wrong ones.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use reveille_chaos::plan::plan;
use reveille_chaos::scenario::{self, KINDS, Kind, Scenario, load, shipped};

fn wrong(text: &str) -> String {
    load("x.toml", text).unwrap_err().to_string()
}

const HEAD: &str = "name = \"x\"\nabout = \"a test\"\n[phases]\nwarmup = \"1s\"\nchaos = \"60s\"\nheal = \"1s\"\n\
                    drain = \"10s\"\n";

fn with(fault: &str) -> String {
    format!("{HEAD}[[fault]]\n{fault}\n")
}

fn scenario(fault: &str) -> Scenario {
    load("x.toml", &with(fault)).unwrap()
}

#[test]
fn every_shipped_scenario_is_read_and_planned() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let names: Vec<&str> = shipped::SHIPPED.iter().map(|(name, _)| *name).collect();
    assert_eq!(files, names, "each file is built in");
    assert!(names.len() >= 30, "{}", names.len());
    for (name, text) in shipped::SHIPPED {
        let scenario = load(&format!("{name}.toml"), text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(scenario.name, *name);
        let whole = scenario.swarm.is_none();
        for seed in 0..20 {
            let plan = plan(&scenario, seed);
            assert_eq!(plan, reveille_chaos::plan::plan(&scenario, seed), "{name}: one seed, one plan");
            let end = (scenario.phases.warmup.0 + scenario.phases.chaos.0).as_micros() as u64;
            for strike in &plan.strikes {
                assert!(
                    strike.at_us >= scenario.phases.warmup.0.as_micros() as u64 && strike.at_us < end,
                    "{name}"
                );
                assert!(strike.until_us.is_none_or(|until| until > strike.at_us && until <= end), "{name}");
            }
            assert!(plan.strikes.is_sorted_by_key(|strike| strike.at_us), "{name}");
            // What must have happened can happen, as far as times say.
            for (point, least) in scenario.expect.cover.iter().filter(|_| whole) {
                let Some(kind) = point.strip_prefix("fault.").and_then(Kind::find) else { continue };
                let timed = plan.strikes.iter().filter(|strike| strike.kind == kind).count() as u64;
                let armed: u64 =
                    plan.armed.iter().filter(|armed| armed.kind == kind).map(|armed| armed.times).sum();
                assert!(timed + armed >= *least, "{name}: {point} {timed} + {armed} of {least}");
            }
        }
    }
}

/// Scenarios of bugs that were mended.
fn bugs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bugs");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut bugs: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|kind| kind == "toml")).collect();
    bugs.sort();
    bugs
}

#[test]
fn bugs_that_were_mended_stay_mended() {
    let bugs = bugs();
    println!("{} scenarios in chaos/bugs", bugs.len());
    let folder = tempfile::tempdir().unwrap();
    for (number, path) in bugs.iter().enumerate() {
        let text = std::fs::read_to_string(path).unwrap();
        let file = path.file_name().unwrap().to_str().unwrap();
        let scenario = load(file, &text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(format!("{}.toml", scenario.name), file);
        // The first line runs it: `# chaos run NAME.toml --backend sim --seed 7`.
        let words: Vec<&str> = text.lines().next().unwrap().split_whitespace().collect();
        let after = |key: &str| words.iter().skip_while(|word| **word != key).nth(1).copied();
        assert!(words.starts_with(&["#", "chaos", "run"]), "{file}: its first line is no command");
        assert!(!words.contains(&"--canary"), "{file}: a planted bug is none that was mended");
        let seed = after("--seed").unwrap();
        let plan = plan(&scenario, seed.parse().unwrap());
        assert!(plan.strikes.len() + plan.armed.len() >= scenario.faults.len(), "{file}: {plan:?}");
        if after("--backend") != Some("sim") {
            continue;
        }
        let ran = Command::new(env!("CARGO_BIN_EXE_chaos"))
            .args(["run", "--quiet", "--backend", "sim", "--seed", seed])
            .arg("--out")
            .arg(folder.path().join(number.to_string()))
            .arg(path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(ran.status.code(), Some(0), "{file}: {said}{}", String::from_utf8_lossy(&ran.stderr));
    }
}

#[test]
fn every_kind_is_in_some_shipped_scenario() {
    let texts: Vec<&str> = shipped::SHIPPED.iter().map(|(_, text)| *text).collect();
    let unused: Vec<&str> = KINDS
        .iter()
        .map(|kind| kind.name)
        .filter(|name| !texts.iter().any(|text| text.contains(&format!("kind = \"{name}\""))))
        .collect();
    // These wait for a scenario until a backend does them.
    assert_eq!(unused, ["lose-unsynced", "io-error", "fail-point"]);
}

#[test]
fn what_is_wrong_is_said_with_its_line_and_what_may_be_meant() {
    let cases: &[(&str, &str)] = &[
        (
            "at = \"1s\"\nkind = \"kil\"\ntarget = \"any\"",
            "x.toml:10: there is no kind of fault \"kil\"; did you mean \"kill\"?",
        ),
        (
            "at = \"1s\"\nkind = \"kill\"\ntarget = \"leadr\"",
            "x.toml:11: there is no target \"leadr\"; did you mean \"leader\"?",
        ),
        (
            "att = \"1s\"\nkind = \"kill\"\ntarget = \"any\"",
            "x.toml:9: there is no key \"att\"; did you mean \"at\"?",
        ),
        (
            "when = \"leader.change\"\nkind = \"kill\"\ntarget = \"any\"",
            "x.toml:9: there is no event \"leader.change\"; did you mean \"leader.changed\"?",
        ),
        ("at = \"soon\"\nkind = \"kill\"\ntarget = \"any\"", "x.toml:9: \"soon\" is no time"),
        ("at = \"60s\"\nkind = \"kill\"\ntarget = \"any\"", "x.toml:8: kill: at 1m the chaos phase is over"),
        (
            "at = \"1s\"\nevery = \"2s\"\nkind = \"kill\"\ntarget = \"any\"",
            "x.toml:8: kill: exactly one of at, every, when",
        ),
        ("kind = \"kill\"\ntarget = \"any\"", "x.toml:8: kill: exactly one of at, every, when"),
        ("at = \"1s\"\nkind = \"kill\"", "x.toml:8: kill: it needs a `target`"),
        ("at = \"1s\"\nkind = \"kill\"\ntarget = \"n4\"", "x.toml:8: kill: n4: the cluster has 3 nodes"),
        (
            "at = \"1s\"\nkind = \"kill\"\ntarget = \"owner(t21)\"",
            "x.toml:8: kill: owner(t21): the workload has 20 terminals",
        ),
        (
            "at = \"1s\"\nkind = \"kill\"\ntarget = \"majority\"",
            "x.toml:8: kill: majority: more than [blast] max_dead",
        ),
        (
            "at = \"1s\"\nkind = \"kill\"\ntarget = \"handoff.source\"",
            "is somebody only with when = \"handoff.started\"",
        ),
        ("at = \"1s\"\nkind = \"kill\"\ntarget = \"t3\"", "kill: it hits nodes, and t3 is none"),
        (
            "at = \"1s\"\nkind = \"twin\"\ntarget = \"n3\"",
            "twin: it hits terminals or publishers, and n3 is none",
        ),
        ("at = \"1s\"\nkind = \"kill\"\ntarget = \"last\"", "x.toml:8: last: there is no fault before it"),
        ("at = \"1s\"\nkind = \"loss\"\nfrom = \"n1\"\nto = \"n2\"", "x.toml:8: loss: it needs `share`"),
        (
            "at = \"1s\"\nkind = \"cut\"\nfrom = \"n1\"\nto = \"n2\"\nshare = 0.1",
            "x.toml:8: cut: it takes no `share`",
        ),
        ("at = \"1s\"\nkind = \"cut\"\ntarget = \"n1\"", "x.toml:8: cut: a link has `from` and `to`"),
        (
            "at = \"1s\"\nkind = \"loss\"\nfrom = \"n1\"\nto = \"n2\"\nshare = 1.5",
            "x.toml:13: 1.5 is no share",
        ),
        (
            "at = \"1s\"\nkind = \"restart\"\ntarget = \"n1\"\nfor = \"1s\"",
            "x.toml:8: restart: it is over at once",
        ),
        ("every = \"1ms\"\nkind = \"restart\"\ntarget = \"n1\"", "x.toml:8: restart: every: at least 50ms"),
        ("at = \"1s\"\ntimes = 3\nkind = \"restart\"\ntarget = \"n1\"", "x.toml:8: restart: `at` is once"),
    ];
    for (fault, says) in cases {
        let said = wrong(&with(fault));
        assert!(said.contains(says), "{fault}\nsaid: {said}\nnot: {says}");
    }
    let cases = [
        (
            "point = \"apply.befor\"\naction = \"kill\"",
            "no fail point \"apply.befor\"; did you mean \"apply.before\"?",
        ),
        ("action = \"kill\"", "fail-point: it needs `point`"),
        ("point = \"apply.before\"", "fail-point: it needs `action`"),
        ("point = \"apply.before\"\naction = \"panick\"", "no value \"panick\"; did you mean \"panic\"?"),
        (
            "point = \"lead.before\"\naction = \"error\"",
            "lead.before: no `error` there, only kill, panic, sleep",
        ),
        ("point = \"apply.before\"\naction = \"sleep\"", "fail-point: a sleep needs `by`"),
        ("point = \"apply.before\"\naction = \"kill\"\nby = \"1s\"", "fail-point: only a sleep takes `by`"),
        ("point = \"apply.before\"\naction = \"kill\"\nhits = 0", "fail-point: hits: from 1 to"),
        (
            "point = \"apply.before\"\naction = \"kill\"\nshare = 0.0",
            "fail-point: share: at 0 it never happens",
        ),
    ];
    for (fault, says) in cases {
        let said = wrong(&with(&format!("at = \"1s\"\nkind = \"fail-point\"\ntarget = \"leader\"\n{fault}")));
        assert!(said.contains(says), "{fault}\nsaid: {said}\nnot: {says}");
    }
    let cases = [
        ("at = \"1s\"\nkind = \"kill\"\ntarget = \"n1\"\nhits = 2", "x.toml:8: kill: it takes no `hits`"),
        (
            "at = \"1s\"\nkind = \"kill\"\ntarget = \"n1\"\nstarting = true",
            "x.toml:8: kill: it takes no `starting`",
        ),
    ];
    for (fault, says) in cases {
        let said = wrong(&with(fault));
        assert!(said.contains(says), "{fault}\nsaid: {said}\nnot: {says}");
    }
    let said = wrong(&HEAD.replace("[phases]", "[pahses]"));
    assert!(said.contains("x.toml:3: there is no key \"pahses\"; did you mean \"phases\"?"), "{said}");
    let said = wrong(&HEAD.replace("[phases]", "claims = [\"no-acked-los\"]\n[phases]"));
    assert!(
        said.contains("x.toml:3: there is no checker \"no-acked-los\"; did you mean \"no-acked-loss\"?"),
        "{said}"
    );
    let said = wrong(&format!("{HEAD}[workload]\nkind = \"pusch\"\n"));
    assert!(said.contains("x.toml:9: there is no value \"pusch\"; did you mean \"push\"?"), "{said}");
    let said = wrong(&format!("{HEAD}[cluster]\nnodes = 12\n[workload]\nrate = 0\n"));
    assert_eq!(
        said, "x.toml:9: nodes = 12: from 1 to 9\nx.toml:11: rate = 0: from 1 to 100000",
        "everything is said"
    );
    let said = wrong("name = ");
    assert!(said.starts_with("x.toml:1: "), "{said}");
}

#[test]
fn a_target_is_written_as_it_is_read() {
    for target in ["leader", "meta.leader", "owner(t)", "owner(t3)", "n1+n2", "minority", "any"] {
        let scenario = scenario(&format!("at = \"1s\"\nkind = \"kill\"\ntarget = \"{target}\""));
        assert_eq!(plan(&scenario, 1).strikes[0].target, target);
    }
}

#[test]
fn a_plan_follows_its_scenario() {
    // Periodic, each up to a quarter later; taken back after its time, or at the end of the chaos phase.
    let every = plan(&scenario("every = \"10s\"\nkind = \"kill\"\ntarget = \"any\"\nfor = \"3s\""), 7);
    assert_eq!(every.strikes.len(), 5);
    for (number, strike) in (1..).zip(&every.strikes) {
        let late = strike.at_us - 1_000_000 - number * 10_000_000;
        assert!(late <= 2_500_000, "{strike:?}");
        assert_eq!(strike.until_us, Some((strike.at_us + 3_000_000).min(61_000_000)));
    }
    let other = plan(&scenario("every = \"10s\"\nkind = \"kill\"\ntarget = \"any\"\nfor = \"3s\""), 8);
    assert_ne!(every.strikes, other.strikes, "another seed, another plan");
    let open = plan(&scenario("at = \"10s\"\nkind = \"pause\"\ntarget = \"any\""), 1);
    assert_eq!(open.strikes[0].until_us, Some(61_000_000));
    let armed =
        plan(&scenario("when = \"leader.changed\"\ntimes = 4\nkind = \"kill\"\ntarget = \"leader\""), 1);
    assert_eq!((armed.strikes.len(), armed.armed[0].times), (0, 4));
    // A second fault changes nothing of the first one's draws.
    let fault = "every = \"10s\"\nkind = \"kill\"\ntarget = \"any\"\nfor = \"3s\"";
    let two =
        load("x.toml", &(with(fault) + "[[fault]]\nevery = \"7s\"\nkind = \"restart\"\ntarget = \"n1\"\n"))
            .unwrap();
    let of_first: Vec<_> = plan(&two, 7).strikes.into_iter().filter(|strike| strike.fault == 0).collect();
    assert_eq!(of_first, every.strikes);
}

#[test]
fn a_swarm_has_seeds_with_none_some_and_never_by_chance_all_left_out() {
    let text = shipped::find("swarm").unwrap();
    let scenario = load("swarm.toml", text).unwrap();
    let kinds = scenario.swarm.as_ref().unwrap().subset_of.len();
    let left: Vec<usize> = (0..200).map(|seed| plan(&scenario, seed).left_out.len()).collect();
    let none = left.iter().filter(|left| **left == kinds).count();
    assert!((25..80).contains(&none), "a quarter of 200 seeds has no fault: {none}");
    for some in 0..kinds {
        assert!(left.contains(&some), "{some} left out in no seed of 200");
    }
}

#[test]
fn the_schema_names_every_key() {
    let schema = serde_json::to_value(scenario::schema()).unwrap();
    let keys =
        |at: &serde_json::Value| at["properties"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    for key in
        ["name", "about", "claims", "cluster", "workload", "phases", "fault", "swarm", "expect", "blast"]
    {
        assert!(keys(&schema).contains(&key.to_owned()), "{key}");
    }
    let fault = &schema["$defs"]["Fault"];
    for key in [
        "at", "every", "when", "kind", "target", "for", "share", "by", "file", "point", "action", "hits",
        "from", "to", "times",
    ] {
        assert!(keys(fault).contains(&key.to_owned()), "{key}");
    }
    assert_eq!(fault["additionalProperties"], false);
}
