//! The live view: what goes on, below the lines of a run, where standard error is a terminal. Anywhere else there is none,
//! and nothing is printed but the lines.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use reveille_chaos::check::Verdict;
use reveille_chaos::history::{Watch, What};
use reveille_chaos::scenario::Scenario;

use super::view::View;

/// How often it is drawn.
const DRAWN: Duration = Duration::from_millis(200);

/// What is on the screen: one run, or one series of runs.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Nobody panics while holding these, and what they hold is only looked at.
fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints above the view, if there is one.
pub(super) fn above(print: impl FnOnce()) {
    let shown = lock(&SHOWN).clone();
    match shown {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// A view that is on the screen until this is dropped.
struct Shown(ProgressBar);

impl Shown {
    /// `None` where nobody would see it. What is to be seen is asked for each time that it is drawn.
    fn new(
        length: u64,
        see: impl Fn(&ProgressState) -> String + Clone + Send + Sync + 'static,
    ) -> Option<Shown> {
        if !std::io::stderr().is_terminal() {
            return None;
        }
        let key = move |state: &ProgressState, out: &mut dyn Write| {
            // A line that cannot be drawn is missed by nobody.
            let _ = out.write_str(&see(state));
        };
        // The template is a constant with nothing in it that could be wrong.
        let style = ProgressStyle::with_template("{view}").ok()?.with_key("view", key);
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr()).with_style(style);
        bar.enable_steady_tick(DRAWN);
        *lock(&SHOWN) = Some(bar.clone());
        Some(Shown(bar))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        lock(&SHOWN).take();
        self.0.finish_and_clear();
    }
}

/// Whose time a run's is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// The machine's: it goes on while nothing happens.
    Real,
    /// A world's own: it is as late as what happened last.
    Virtual,
}

/// What a run's recorder is to tell, so that it is seen; `None` where nobody looks.
pub(crate) fn watch(scenario: &Scenario, quiet: bool, clock: Clock) -> Option<Watch> {
    if quiet {
        return None;
    }
    let view = Arc::new(Mutex::new(View::new(scenario.phases.clone())));
    let (seen, began) = (view.clone(), Instant::now());
    let shown = Shown::new(0, move |_| {
        let mut view = lock(&seen);
        let now = match clock {
            Clock::Real => began.elapsed().as_micros() as u64,
            Clock::Virtual => view.last,
        };
        view.lines(now)
    })?;
    let shown = Mutex::new(Some(shown));
    Some(Box::new(move |at, what| {
        lock(&view).see(at, what);
        if matches!(what, What::End(_)) {
            lock(&shown).take();
        }
    }))
}

/// A series of runs.
pub(super) struct Runs {
    shown: Option<Shown>,
    bad: Arc<AtomicU64>,
    /// Virtual milliseconds.
    world: Arc<AtomicU64>,
}

impl Runs {
    /// So many, of this.
    pub(super) fn new(count: u64, what: &'static str) -> Runs {
        let (bad, world) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (failed, virtual_ms) = (bad.clone(), world.clone());
        let shown = Shown::new(count, move |state| {
            let world = virtual_ms.load(Ordering::Relaxed) as f64 / 1000.0;
            let speed = world / state.elapsed().as_secs_f64().max(0.001);
            let speed =
                if world > 0.0 { format!(" · {speed:.0} virtual s a second") } else { String::new() };
            let (at, failed) = (state.pos(), failed.load(Ordering::Relaxed));
            format!("{what}: {at} of {count} done · {failed} did not pass{speed}")
        });
        Runs { shown, bad, world }
    }

    /// One is done.
    pub(super) fn done(&self, verdict: Verdict, virtual_seconds: f64) {
        self.bad.fetch_add(u64::from(verdict != Verdict::Pass), Ordering::Relaxed);
        self.world.fetch_add((virtual_seconds * 1000.0) as u64, Ordering::Relaxed);
        if let Some(Shown(bar)) = &self.shown {
            bar.inc(1);
        }
    }
}
