//! `chaos report`: the page holds what the history says, whatever stands in it, and a real browser draws it. Where there is
//! no Chromium, the browser's part says so and skips.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    missing_docs,
    reason = "a test stops where it is surprised"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A browser that has not drawn a small page by then hangs.
const BROWSER: Duration = Duration::from_secs(60);

fn history(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/histories").join(name)
}

fn report(arguments: &[&Path]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("report.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_chaos"));
    let done = command.arg("report").args(arguments).arg("--out").arg(&out).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    (folder, out)
}

fn data(page: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(page).unwrap();
    let (_, data) = text.split_once("<script id=\"data\" type=\"application/json\">").unwrap();
    serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap()
}

/// The page after its script has run; `None` where there is no browser.
fn drawn(page: &Path) -> Option<String> {
    let profile = tempfile::tempdir().unwrap();
    let mut browser = Command::new("chromium");
    browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1200", "--dump-dom"]);
    browser.arg(format!("--user-data-dir={}", profile.path().display()));
    browser.arg(format!("file://{}", page.display())).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut browser = match browser.spawn() {
        Ok(browser) => browser,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no `chromium` here");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let mut out = browser.stdout.take().unwrap();
    let reading = std::thread::spawn(move || std::io::read_to_string(&mut out).unwrap());
    let until = Instant::now() + BROWSER;
    while browser.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            browser.kill().unwrap();
            panic!("the browser hangs");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Some(reading.join().unwrap())
}

#[test]
fn a_report_opens_at_the_first_violation_and_tells_the_life_of_the_push() {
    let (_folder, page) = report(&[&history("c7-two-devices.jsonl")]);
    let data = data(&page);
    assert_eq!((&data["verdict"], &data["figures"]["asked"]), (&"FAIL".into(), &24.into()));
    let fails =
        data["checkers"].as_array().unwrap().iter().find(|checker| checker["verdict"] == "FAIL").unwrap();
    assert_eq!(fails["id"], "C7");
    let lines = fails["findings"][0]["lines"].as_array().unwrap();
    assert!(
        lines.iter().all(|line| data["lines"][line.to_string()]["text"].is_string()),
        "the evidence is in it"
    );
    assert_eq!(data["first"], data["lines"][lines.last().unwrap().to_string()]["at"]);
    let named: Vec<_> =
        data["lives"].as_array().unwrap().iter().filter(|life| life["named"] == true).collect();
    assert_eq!(named.len(), 1, "{named:?}");
    let told: Vec<&str> =
        named[0]["steps"].as_array().unwrap().iter().map(|step| step["what"].as_str().unwrap()).collect();
    let order = ["asked for", "acknowledged: ", "given by node 1, seq 12, epoch 1"];
    let mut rest = told.iter();
    assert!(order.iter().all(|step| rest.any(|told| told.starts_with(step))), "{told:?}");
    if let Some(dom) = drawn(&page) {
        assert!(
            dom.contains("data-drawn=") && !dom.contains("data-drawn=\"0\""),
            "the script did not come to its end"
        );
        assert!(dom.contains("<title>FAIL"), "its head");
        assert!(dom.contains("node 1 leads") || dom.contains(">node 1<"), "a lane for each node");
    }
}

#[test]
fn a_hostile_name_is_text() {
    let hostile = "</script><script>document.title='taken'</script><!--";
    let folder = tempfile::tempdir().unwrap();
    let changed = folder.path().join("history.jsonl");
    let text = std::fs::read_to_string(history("good.jsonl")).unwrap();
    let hostile_json = serde_json::to_string(hostile).unwrap();
    std::fs::write(&changed, text.replace("\"t1.3\"", &hostile_json)).unwrap();
    let (_folder, page) = report(&[&changed]);
    let data = data(&page);
    assert!(
        data["lives"].as_array().unwrap().iter().any(|life| life["payload"] == hostile),
        "it is told as it is"
    );
    if let Some(dom) = drawn(&page) {
        assert!(dom.contains("<title>PASS") && dom.contains("data-drawn="), "{dom}");
    }
}

#[test]
fn a_run_is_compared_with_an_earlier_one() {
    let (_folder, page) =
        report(&[&history("c9-publish-gap.jsonl"), Path::new("--baseline"), &history("good.jsonl")]);
    let data = data(&page);
    let before = &data["baseline"];
    assert_eq!((&before["verdict"], &before["checkers"]["C9"]), (&"PASS".into(), &"PASS".into()));
    assert!(data["figures"]["worst_gap"].as_u64() > before["figures"]["worst_gap"].as_u64());
}
