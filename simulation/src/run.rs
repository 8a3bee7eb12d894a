//! Runs seeds, each twice, on as many threads as there are processors; tells of each that fails how to replay it.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime;
use openraft_rt_sim::SimRuntime;
use reveille_protocol::canary::Canary;
#[cfg(feature = "canary")]
use reveille_protocol::canary::canary;

use crate::world::{Setting, World};

/// Lines of its story that are told of a seed that failed.
const LAST: usize = 60;

type Seen = BTreeMap<&'static str, u64>;

struct Told {
    story: Vec<String>,
    course: u64,
    /// Every poll and timer; empty if it was not kept.
    trace: Vec<String>,
    seen: Seen,
}

/// A panic, also one that became the end of a task.
#[derive(Debug, Clone)]
pub struct Panic {
    pub what: String,
    /// The source file where it was.
    pub file: String,
}

thread_local! {
    /// Panics of this thread.
    static PANICS: RefCell<Vec<Panic>> = const { RefCell::new(Vec::new()) };
    /// They are told by whoever runs the world, not as they happen.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            let file = info.location().map_or(String::new(), |location| location.file().to_owned());
            let quiet = QUIET.try_with(Cell::get).unwrap_or(false);
            // A thread that ends has no place for them any more.
            let _ =
                PANICS.try_with(|panics| panics.borrow_mut().push(Panic { what: info.to_string(), file }));
            if !quiet {
                before(info);
            }
        }));
    });
}

fn told_by(panic: &dyn Any) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

/// One run; `Err` has why it failed and its story until then.
fn run<F: Future<Output = ()>>(
    seed: u64,
    loud: bool,
    traced: bool,
    scenario: impl Fn(Arc<World>) -> F,
) -> Result<Told, (String, Vec<String>)> {
    let world = World::new(seed, Setting { loud, ..Setting::default() });
    note_panics();
    PANICS.take();
    let mut runtime = SimRuntime::with_seed(seed);
    runtime.record_trace(traced);
    let both = async {
        let (scenario, turn) = (Box::pin(scenario(world.clone())), Box::pin(world.turn()));
        futures::future::select(scenario, turn).await;
    };
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(both)));
    let panics = PANICS.take();
    let failed = ended.err().map(|panic| told_by(&*panic));
    match panics.into_iter().next().map(|panic| panic.what).or(failed) {
        None => Ok(Told {
            story: world.story(),
            course: world.course(),
            trace: runtime.take_trace(),
            seen: world.seen(),
        }),
        Some(why) => {
            let story = world.story();
            // What it left behind may be in any state: it is not taken down.
            std::mem::forget((runtime, world));
            Err((why, story))
        }
    }
}

/// Plants a bug in everything that runs on this thread from now on. Whether that can be done: only with the feature `canary`.
pub fn plant(which: Option<Canary>) -> bool {
    #[cfg(feature = "canary")]
    reveille_protocol::canary::plant(which, |time| {
        // Each node's own clock is a little off, where clocks are what is wrong.
        let wrong = canary(Canary::ApplyTheClock);
        let off = crate::process::running().filter(|_| wrong).map_or(0, |process| process.node.0);
        reveille_protocol::time::GroupTime(time.0 + off)
    });
    which.is_none() || reveille_protocol::canary::PLANTABLE
}

/// Runs a world to the end of `life`, or of the first panic; what panicked, in order. Whoever made the world watches it.
pub fn live<F: Future<Output = ()>>(seed: u64, world: &Arc<World>, life: F) -> Vec<Panic> {
    note_panics();
    PANICS.take();
    QUIET.set(true);
    let mut runtime = SimRuntime::with_seed(seed);
    let both = async {
        let stop = world.clone();
        // What a task of a node panicked with ends the run: nothing after it is worth looking at.
        let panicked = async {
            while PANICS.with_borrow(Vec::is_empty) {
                SimRuntime::sleep(Duration::from_millis(100)).await;
            }
        };
        let life = futures::future::select(Box::pin(life), Box::pin(panicked));
        futures::future::select(life, Box::pin(stop.turn())).await;
    };
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(both)));
    QUIET.set(false);
    let mut panics = PANICS.take();
    if let Err(panic) = &ended
        && panics.is_empty()
    {
        panics.push(Panic { what: told_by(&**panic), file: String::new() });
    }
    if !panics.is_empty() {
        // What it left behind may be in any state: it is not taken down.
        std::mem::forget((runtime, world.clone()));
    }
    panics
}

/// Runs a seed twice: the same must happen at the same times, and every poll of a task, if that is `traced`.
fn judge<F: Future<Output = ()>>(
    seed: u64,
    loud: bool,
    traced: bool,
    scenario: impl Fn(Arc<World>) -> F,
) -> Result<Seen, (String, Vec<String>)> {
    let told = run(seed, loud, traced, &scenario)?;
    let again = run(seed, false, traced, &scenario)?;
    if loud {
        let mut hash = DefaultHasher::new();
        (&told.story, told.course, &again.trace).hash(&mut hash);
        println!("trace of seed {seed}: {:016x}", hash.finish());
    }
    let first = told.story.iter().zip(&again.story).position(|(one, other)| one != other);
    if told.story != again.story || told.course != again.course || told.trace != again.trace {
        return Err((format!("it ran differently the second time, from line {first:?}"), told.story));
    }
    Ok(told.seen)
}

/// Runs one seed of a small scenario, told as it goes if the environment has a `SEED`.
pub fn one<F: Future<Output = ()>>(seed: u64, scenario: impl Fn(Arc<World>) -> F) {
    let loud = std::env::var_os("SEED").is_some();
    if let Err((why, story)) = judge(seed, loud, true, scenario) {
        panic!("seed {seed} fails: {why}\n{}", story.join("\n"));
    }
}

/// Runs seeds from 1, each twice, or what the environment asks for: `SEED` is one, `SEEDS` another number of them. Of every
/// `traced`-th the traces of all polls are compared as well. How often each thing was seen, if all ran. Those in `open` run
/// only by themselves.
pub fn seeds<F: Future<Output = ()>>(
    count: u64,
    traced: u64,
    open: &[u64],
    scenario: impl Fn(Arc<World>) -> F + Sync,
) -> Option<Seen> {
    let of = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let only = of("SEED");
    let last = only.unwrap_or_else(|| of("SEEDS").unwrap_or(count));
    let next = AtomicU64::new(only.unwrap_or(1));
    let (seen, failed) = (Mutex::new(Seen::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > last {
                return;
            }
            if only.is_none() && open.contains(&seed) {
                println!("seed {seed} is left out: it fails, and nobody knows why yet\n{}", replay(seed));
                continue;
            }
            let traced = only.is_some() || seed.is_multiple_of(traced);
            match judge(seed, only.is_some(), traced, &scenario) {
                Ok(some) => {
                    let mut seen = seen.lock().unwrap();
                    some.into_iter().for_each(|(what, count)| *seen.entry(what).or_default() += count);
                }
                Err((why, story)) => {
                    let last = story.len().saturating_sub(LAST);
                    let lines = if only.is_some() { String::new() } else { story[last..].join("\n") };
                    println!("{lines}\nseed {seed} fails: {why}\n{}", replay(seed));
                    failed.lock().unwrap().push(seed);
                }
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failed = failed.into_inner().unwrap();
    let replays: Vec<String> = failed.iter().map(|seed| replay(*seed)).collect();
    assert!(failed.is_empty(), "{} seeds fail:\n{}", failed.len(), replays.join("\n"));
    let seen = seen.into_inner().unwrap();
    println!("{seen:?}");
    (only.is_none() && last >= count).then_some(seen)
}

fn replay(seed: u64) -> String {
    format!("SEED={seed} cargo test -p reveille-cluster --test simulation -- --nocapture")
}
