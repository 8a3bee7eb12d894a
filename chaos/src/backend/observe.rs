//! What is seen of nodes from outside: whether they are ready, who leads, what they take, what their logs say.

use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use reveille_chaos::history::{Observation, Problem};
use reveille_chaos::scenario::When;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::http::{Request, Server};
use super::live::Run;

/// How often nodes of this machine are looked at.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// A node that does not say so within this is not ready.
const READY: Duration = Duration::from_millis(500);
/// Memory and files are looked at each so many looks.
const TAKEN: u64 = 20;
/// The most of a log's line that is kept.
pub(super) const LINE: usize = 300;

/// What to say of a machine that has other things to do, if it has.
pub(super) fn busy() -> Option<String> {
    let load: f64 = fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (load > processors as f64).then(|| {
        format!("this machine is busy (load {load} on {processors} processors): budgets of time may be missed for that")
    })
}

/// This program is late by more than this only on a machine that stands still: then times say nothing of a cluster on it.
const STILL: Duration = Duration::from_secs(1);
/// So often it is said; more say nothing more.
const SAID: usize = 20;

/// Notices, until it is aborted, that the machine stood still, or that its clock jumped.
pub(super) async fn machine(run: Arc<Run>) {
    let mut said = 0;
    while said < SAID {
        let (began, wall) = (Instant::now(), SystemTime::now());
        sleep(LOOK).await;
        let took = began.elapsed();
        // A clock that was put back by so much that the difference has no sign.
        let wall = wall.elapsed().unwrap_or_default();
        if took > LOOK + STILL {
            run.trouble(format!("the machine stood still for {:.1} s", (took - LOOK).as_secs_f64()));
        } else if took.abs_diff(wall) > STILL {
            run.trouble(format!(
                "the machine's clock went {:.1} s in {:.1} s",
                wall.as_secs_f64(),
                took.as_secs_f64()
            ));
        } else {
            continue;
        }
        said += 1;
    }
    std::future::pending().await
}

/// Looks so often until it is aborted. Of a node whose process is not this machine's, the folder says nothing.
pub(super) async fn nodes(run: Arc<Run>, every: Duration) {
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for count in 0u64.. {
        tick.tick().await;
        let nodes = run.nodes();
        let looks = nodes.iter().map(|node| ready(&run, &node.admin));
        for (node, ready) in nodes.iter().zip(futures::future::join_all(looks).await) {
            // It may have been told to go meanwhile; then nothing is expected of it.
            if !run.ids().contains(&node.id) {
                continue;
            }
            let before = run.known().ready.insert(node.id, ready);
            if before != Some(ready) {
                run.see(Observation::Ready { node: node.id, ready });
                if ready && before.is_some() {
                    run.happened(When::NodeReady);
                }
            }
        }
        leaders(&run, count).await;
        if count % TAKEN == 0 {
            for node in nodes.iter() {
                node.data.iter().for_each(|folder| taken(&run, node.id, folder));
            }
        }
    }
}

async fn ready(run: &Run, server: &Server) -> bool {
    let answer = Request::get("/readyz", &run.admin_token).send(server, READY).await;
    answer.is_ok_and(|answer| answer.status == 200)
}

/// Who leads, as the next node that is ready sees it; the highest term counts.
async fn leaders(run: &Run, count: u64) {
    let ready: Vec<u64> = {
        let known = run.known();
        known.ready.iter().filter(|(_, ready)| **ready).map(|(id, _)| *id).collect()
    };
    let Some(id) = ready.get(count as usize % ready.len().max(1)) else { return };
    let Some(server) = run.admin_of(*id) else { return };
    let Ok(answer) = Request::get("/status", &run.admin_token).send(&server, READY).await else { return };
    let Some(json) = answer.json() else { return };
    for group in json["cluster"]["groups"].as_array().into_iter().flatten() {
        let number = |key: &str| group[key].as_u64();
        let (Some(group), Some(leader), Some(term)) = (number("group"), number("leader"), number("term"))
        else {
            continue;
        };
        let before = run.known().leaders.get(&group).copied();
        if before.is_some_and(|(_, known)| known >= term) {
            continue;
        }
        run.known().leaders.insert(group, (leader, term));
        run.see(Observation::Leader { group, node: leader, term });
        if before.is_some_and(|(known, _)| known != leader) {
            run.happened(When::LeaderChanged);
        }
    }
}

/// Of a process that is gone nothing is said.
fn taken(run: &Run, id: u64, folder: &Path) {
    let Some(pid) = run.pid(id) else { return };
    let process = PathBuf::from(format!("/proc/{pid}"));
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    let (Some(rss), Ok(files)) =
        (rss.and_then(|rss| rss.trim().parse::<u64>().ok()), fs::read_dir(process.join("fd")))
    else {
        return;
    };
    let (rss_bytes, fds, disk_bytes) = (rss * 1024, files.count() as u64, Some(size(folder)));
    run.see(Observation::Resources { node: id, rss_bytes, fds, disk_bytes });
}

/// A folder's files, two levels deep as a node's are.
fn size(folder: &Path) -> u64 {
    let entries = |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten();
    let mut all = 0;
    for entry in entries(folder) {
        all += match entry.metadata() {
            Ok(data) if data.is_dir() => {
                entries(&entry.path()).filter_map(|entry| entry.metadata().ok()).map(|data| data.len()).sum()
            }
            Ok(data) => data.len(),
            Err(_) => 0,
        };
    }
    all
}

/// Reads a log, of this name, to its end: panics, and the tokens, which are in no log.
pub(super) fn log(run: &Run, node: u64, name: &str, log: impl BufRead) {
    let mut lines = 0;
    for line in log.split(b'\n').map_while(Result::ok) {
        lines += 1;
        let text = String::from_utf8_lossy(&line);
        let found = |problem, line: String| Observation::LogFound { node, problem, line };
        if text.contains("panicked at") {
            run.see(found(Problem::Panic, text.chars().take(LINE).collect()));
        }
        if [&run.token, &run.admin_token].into_iter().any(|token| text.contains(token.as_str())) {
            run.see(found(Problem::Secret, format!("line {lines} of {name}")));
        }
    }
    run.see(Observation::LogRead { node, lines });
}
