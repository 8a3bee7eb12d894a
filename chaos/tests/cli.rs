//! The program as its user sees it: exit codes, and what it prints.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test stops where it is surprised")]

use std::process::Command;

fn chaos(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn a_verdict_is_an_exit_code() {
    let (code, out, _) = chaos(&["check", "tests/histories/good.jsonl"]);
    assert!(code == 0 && out.ends_with("PASS\n"), "{code}: {out}");
    let (code, out, _) = chaos(&["check", "--evidence", "tests/histories/c7-two-devices.jsonl"]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("FAIL    C7  single-owner") && out.contains("after epoch 2"), "{out}");
    assert!(out.contains("evidence:") && out.contains("\"delivered\""), "{out}");
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.jsonl");
    let good = std::fs::read_to_string("tests/histories/good.jsonl").unwrap();
    std::fs::write(&cut, &good[..good.len() - 40]).unwrap();
    let (code, out, _) = chaos(&["check", cut.to_str().unwrap()]);
    assert!(code == 2 && out.ends_with("UNKNOWN\n"), "{code}: {out}");
    let (code, _, error) = chaos(&["check", "Cargo.toml"]);
    assert!(code == 3 && error.contains("does not begin"), "{code}: {error}");
}

#[test]
fn a_run_is_judged_by_its_folder_and_says_what_was_planted() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().to_str().unwrap();
    let good = std::fs::read_to_string("tests/histories/good.jsonl").unwrap();
    let history = folder.path().join("history.jsonl");
    std::fs::write(&history, &good).unwrap();
    let (code, out, _) = chaos(&["check", run]);
    assert!(code == 0 && out.ends_with("PASS\n") && !out.contains("planted"), "{code}: {out}");
    let planted = good.replacen("\"seed\":", "\"planted\":\"a-bug\",\"seed\":", 1);
    std::fs::write(&history, planted).unwrap();
    let (code, out, _) = chaos(&["check", run]);
    assert!(code == 0 && out.starts_with("planted: a-bug\n"), "{code}: {out}");
    let (code, _, said) = chaos(&["report", run]);
    assert_eq!(code, 0, "{said}");
    let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("\"planted\":\"a-bug\""), "{page}");
}

#[test]
fn what_cannot_be_begun_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let (code, _, said) = chaos(&["run", "baseline", "--backend", "sim", "--out", out]);
    assert!(code == 3 && said.contains("is there already") && said.contains("another folder"), "{said}");
    assert!(!said.contains("os error"), "{said}");
    let by = |more: &[&str]| {
        let (code, _, said) = chaos(&[&["run", "power-all"], more].concat());
        assert_eq!(code, 3, "{said}");
        said
    };
    for backend in ["proc", "compose"] {
        let said = by(&["--canary", "ack-before-sync", "--backend", backend]);
        assert!(said.contains("in the simulation and nowhere else: say --backend sim"), "{said}");
    }
    let said = by(&["--canary", "lying-disk", "--backend", "sim"]);
    assert!(said.contains("say --backend proc"), "{said}");
    let said = by(&["--canary", "ack-before-sink"]);
    assert!(said.contains("did you mean \"ack-before-sync\"?"), "{said}");
}

#[test]
fn json_says_the_same() {
    let (code, out, _) = chaos(&["check", "--json", "tests/histories/c1-lost-middle.jsonl"]);
    let judged: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, judged["verdict"].as_str()), (1, Some("FAIL")));
    let lost = &judged["checkers"][0];
    assert_eq!((lost["id"].as_str(), lost["verdict"].as_str()), (Some("C1"), Some("FAIL")));
    assert!(lost["findings"][0]["what"].as_str().unwrap().contains("lost middle"), "{lost}");
}

#[test]
fn scenarios_are_found_by_file_and_by_name() {
    let (code, out, _) = chaos(&["plan", "pause-kill"]);
    assert!(code == 0 && out.contains("pause n1"), "{out}");
    assert_eq!(chaos(&["plan", "scenarios/pause-kill.toml"]).1, out);
    let (code, _, error) = chaos(&["plan", "pause-kil"]);
    assert!(code == 3 && error.contains("did you mean \"pause-kill\"?"), "{error}");
    // Those in which planted bugs show, too.
    let (code, out, _) = chaos(&["plan", "canary-load"]);
    assert!(code == 0 && out.starts_with("canary-load: "), "{out}");
}

#[test]
fn containers_are_refused_where_there_is_no_docker() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["run", "leader-kill", "--backend", "compose", "--out"])
        .arg(&out)
        .env("DOCKER_HOST", "unix:///nothing/is/here")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("no Docker Engine answers here"), "{said}");
    assert!(!out.exists());
    let (code, _, said) = chaos(&["run", "power-all", "--backend", "compose"]);
    assert!(code == 3 && said.contains("power of all: this is none of its kinds"), "{said}");
}

#[test]
fn everything_is_listed_and_examined() {
    let (code, out, _) = chaos(&["list"]);
    assert_eq!(code, 0);
    for name in [
        "baseline",
        "notification-loss",
        "handoff.source",
        "leader.changed",
        "broadcast",
        "C16 logs",
        "[compose]",
    ] {
        assert!(out.contains(name), "{name}: {out}");
    }
    let (code, out, _) = chaos(&["list", "canaries"]);
    assert!(code == 0 && out.lines().count() == 21, "{out}");
    assert!(out.lines().all(|line| line.contains(": found by C")), "{out}");
    let (code, out, _) = chaos(&["doctor", "--json"]);
    let looks: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(code == 0 && looks.as_array().unwrap().len() >= 8, "{out}");
    let (code, out, _) = chaos(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(code == 0 && schema["properties"]["fault"].is_object(), "{out}");
}
