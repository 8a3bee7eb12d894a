//! The floor of the tests: real nodes and real terminals, with actors, TLS, QUIC, HTTP and raft, in one thread on turmoil's
//! network and on virtual time; schedules, ways and faults by seed. TLS and QUIC draw from the system, so a seed tells what
//! was done to the cluster and not each packet. What happened is judged by the checkers of `chaos`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test stops where it is surprised, and says what it found"
)]

mod faults;
mod publish;
mod record;
mod world;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::{Duration, Instant};

use reveille_chaos::check::{Verdict, judge_events};
use reveille_chaos::history::{self, Begin, Event, Expect, Observation, Phase, What};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use self::publish::Asker;
use self::record::Record;
use self::world::World;

/// What must hold: all promises about pushes.
const CLAIMS: &[&str] = &["safety"];
/// The seeds of the test; another one by the environment: `SEED`.
const SEEDS: std::ops::Range<u64> = 1..7;
const TERMINALS: usize = 12;
const PUBLISHERS_OF_A_RUN: u64 = 3;
/// The host of publishers and of the observer.
const PUBLISHERS: &str = "publishers";
/// What a message takes at most where there is no delay.
const QUICK: Duration = Duration::from_millis(10);

/// A cluster of three has formed within this, and every terminal has had its session.
const FIRST: Duration = Duration::from_secs(60);
const CHAOS: Duration = Duration::from_secs(40);
/// After all faults a push waits for the next step of its terminal's ladder.
const DRAIN: Duration = Duration::from_secs(240);
/// For what comes twice.
const QUIET: Duration = Duration::from_secs(2);

/// Lines of logs are dated by virtual time.
struct Virtual;

impl FormatTime for Virtual {
    fn format_time(&self, line: &mut Writer<'_>) -> std::fmt::Result {
        write!(line, "{:.6}", turmoil::sim_elapsed().unwrap_or_default().as_secs_f64())
    }
}

/// What `RUST_LOG` asks for; with `turmoil::sim=info` each line names its host.
fn logs() {
    let logs = tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).with_timer(Virtual);
    // Another test of the process has set them up already.
    let _ = logs.with_writer(std::io::stderr).try_init();
}

fn phase(world: &World, phase: Phase) {
    world.record.tell(world.sim.elapsed(), What::Observe(Observation::Phase { phase }));
}

/// A run by a seed; its history.
fn run(seed: u64, nodes: u64, terminals: usize, chaos: Duration) -> Vec<Event> {
    let folder = tempfile::tempdir().unwrap();
    let claims = CLAIMS.iter().map(|id| (*id).to_owned()).collect();
    let record = Rc::new(Record::new(Begin {
        run: format!("floor-{seed}"),
        seed,
        backend: "floor".to_owned(),
        expect: Expect { claims, ..Expect::default() },
        ..Begin::default()
    }));
    let mut world = World::new(seed, nodes, folder.path(), record.clone());
    world.enlist(terminals);
    assert!(world.until(FIRST, |world| world.record.met().len() == terminals), "not all terminals came");
    let (load, publishing) = (Rc::new(Cell::new(true)), Rc::new(Cell::new(true)));
    let asker = Asker { record: record.clone(), nodes: world.publishing.clone() };
    let (going, goes, asking) = (load.clone(), publishing.clone(), asker.clone());
    world.sim.client(PUBLISHERS, async move {
        let mut asked = vec![tokio::task::spawn_local(asking.clone().observe(seed, going.clone()))];
        for number in 0..PUBLISHERS_OF_A_RUN {
            asked.push(tokio::task::spawn_local(asking.clone().publish_on(number, seed, going.clone())));
        }
        for task in asked {
            task.await?;
        }
        goes.set(false);
        Ok(())
    });
    phase(&world, Phase::Chaos);
    faults::strike(&mut world, seed, chaos);
    phase(&world, Phase::Heal);
    world.pass(QUIET);
    load.set(false);
    assert!(world.until(Duration::from_secs(60), |_| !publishing.get()), "publishers do not come to an end");
    phase(&world, Phase::Drain);
    // What waits even then is the checkers' to judge.
    let _all_given = world.until(DRAIN, |world| world.record.waiting().is_empty());
    world.pass(QUIET);
    // What the cluster says at the end.
    let asked = Rc::new(Cell::new(false));
    let (done, asking) = (asked.clone(), asker);
    world.sim.client("observer", async move {
        for (turn, (payload, message)) in (0..).zip(asking.record.waiting()) {
            asking.look(&payload, &message, turn).await;
        }
        for (turn, terminal) in (0..).zip(asking.record.met()) {
            asking.status(&terminal, turn).await;
        }
        done.set(true);
        Ok(())
    });
    assert!(world.until(Duration::from_secs(60), |_| asked.get()), "the cluster does not answer at the end");
    let at = world.sim.elapsed();
    record.end(at)
}

/// Runs a seed, and has it judged; the kinds of faults that it had.
fn judged(seed: u64, nodes: u64, terminals: usize, chaos: Duration) -> BTreeSet<String> {
    logs();
    let began = Instant::now();
    let events = run(seed, nodes, terminals, chaos);
    let judgement = judge_events(&events, &[]);
    let last = events.last().map_or(0, |event| event.at / 1_000_000);
    let count = |wanted: fn(&What) -> bool| events.iter().filter(|event| wanted(&event.what)).count();
    let given = count(|what| matches!(what, What::Observe(Observation::Delivered { .. })));
    let notified = count(|what| matches!(what, What::Observe(Observation::Notified { .. })));
    let faults = count(|what| matches!(what, What::Fault(_))) / 2;
    println!(
        "seed {seed}: {:?}, {given} pushes given, {notified} notifications, {faults} faults, {last} s in {:.1} s",
        judgement.verdict,
        began.elapsed().as_secs_f64()
    );
    let passes = judgement.verdict == Verdict::Pass;
    if !passes || std::env::var_os("SEED").is_some() {
        let path = std::env::temp_dir().join(format!("floor-{seed}.jsonl"));
        let mut history = history::Writer::new(std::fs::File::create(&path).unwrap());
        events.iter().for_each(|event| history.write(event).unwrap());
        println!("its history: {}", path.display());
    }
    // One that is not claimed may be unable to tell, and may not fail.
    let speaks = |verdict, claimed| verdict == Verdict::Fail || (claimed && verdict != Verdict::Pass);
    for judged in judgement.judged.iter().filter(|judged| speaks(judged.outcome.verdict, judged.claimed)) {
        println!("{} {:?}", judged.checker.id, judged.outcome);
    }
    assert!(passes, "seed {seed}; again, as far as it can be: SEED={seed}");
    assert!(given > 0 && notified > 0, "seed {seed}: nothing happened");
    let kinds = events.into_iter().filter_map(|event| match event.what {
        What::Fault(fault) => Some(fault.kind),
        _ => None,
    });
    kinds.collect()
}

#[test]
fn a_push_wakes_a_terminal_of_one_node() {
    judged(1, 1, 1, Duration::from_secs(5));
}

#[test]
fn what_was_promised_is_kept_under_faults() {
    let one = std::env::var("SEED").ok().map(|seed| seed.parse().unwrap());
    let seeds: Vec<u64> = one.map_or_else(|| SEEDS.collect(), |seed: u64| vec![seed]);
    // Each seed has a world and a thread of its own.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut struck = BTreeSet::new();
    for together in seeds.chunks(threads) {
        std::thread::scope(|scope| {
            let begin = |seed: &u64| {
                let seed = *seed;
                scope.spawn(move || judged(seed, 3, TERMINALS, CHAOS))
            };
            let runs: Vec<_> = together.iter().map(begin).collect();
            runs.into_iter().for_each(|run| struck.extend(run.join().unwrap()));
        });
    }
    if one.is_none() {
        let all = faults::KINDS.iter().map(|kind| kind.name().to_owned());
        assert_eq!(struck, all.collect(), "kinds of faults that struck in some seed");
    }
}
