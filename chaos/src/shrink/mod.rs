//! The least of a scenario with which the same checker still fails: which scenarios are tried, in which order, and which of
//! them is taken. Runs nothing: whoever calls runs what is to be tried, and says which failed.

mod candidates;
mod seen;
mod story;

pub use self::seen::Seen;
pub use self::story::{LINES, Told, story};
use crate::check::{Checker, Judged, Judgement, Verdict};
use crate::scenario::{Expected, Scenario, load, write};

/// How often the search begins anew with what it has. Nearly everything is found in the first round.
const ROUNDS: usize = 3;
/// How often one number or phase is made smaller in a round.
const STEPS: usize = 6;
/// Faults with a time each, of which there may be more than there were periodic ones: more are harder to read than those.
const TIMED: usize = 8;

/// A scenario to try.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// As it would be written and read again.
    pub scenario: Scenario,
    /// What makes it smaller, in words.
    pub by: String,
}

/// The checker that a run is about: of those that fail a claimed one, a broken promise before a missed budget.
pub fn blamed(judgement: &Judgement) -> Option<&'static Checker> {
    let first = judgement
        .judged
        .iter()
        .filter(|judged| failed(judged))
        .min_by_key(|judged| (!judged.checker.safety, !judged.claimed));
    first.filter(|_| judgement.verdict == Verdict::Fail).map(|judged| judged.checker)
}

/// Whether a run fails as it must: by this checker, and by no trouble of the harness.
pub fn fails(judgement: &Judgement, checker: &Checker) -> bool {
    let by = |judged: &Judged| judged.checker.id == checker.id && failed(judged);
    judgement.verdict == Verdict::Fail && judgement.trouble.is_empty() && judgement.judged.iter().any(by)
}

fn failed(judged: &Judged) -> bool {
    judged.outcome.verdict == Verdict::Fail
}

/// What a scenario comes to that is about this checker alone: it claims that one, and its faults need not all happen.
pub fn about(scenario: &Scenario, checker: &Checker) -> Scenario {
    let mut about = scenario.clone();
    about.name = format!("{}-small", scenario.name.trim_end_matches("-small"));
    about.about = format!("{} fails: the least that was found of {}", checker.name, scenario.name);
    about.claims = vec![checker.name.to_owned()];
    match checker.safety {
        // Budgets are another matter than promises.
        true => about.expect = Expected::default(),
        false => about.expect.cover.clear(),
    }
    about
}

/// Runs candidates: the first of them that fails, in their order, and what was seen of it. `None` if none does, or if there
/// is no more time, and then for good.
pub type First<'a, E> = dyn FnMut(&[Candidate]) -> Result<Option<(usize, Seen)>, E> + 'a;

/// Searches the least of a scenario that fails, from one that was seen to: what was found, and what made it smaller, step by
/// step.
///
/// # Errors
/// That of `first`.
pub fn shrink<E>(
    scenario: Scenario,
    seen: Seen,
    first: &mut First<'_, E>,
) -> Result<(Scenario, Vec<String>), E> {
    let mut search = Search { now: scenario, seen, first, taken: Vec::new(), timed: false };
    for _ in 0..ROUNDS {
        let before = search.now.clone();
        search.fewer()?;
        search.shorter()?;
        search.at_their_times()?;
        search.smaller()?;
        search.any(candidates::rounded(&search.now))?;
        if search.now == before {
            break;
        }
    }
    Ok((search.now, search.taken))
}

struct Search<'a, E> {
    /// The least so far.
    now: Scenario,
    /// What was seen in its run.
    seen: Seen,
    first: &'a mut First<'a, E>,
    taken: Vec<String>,
    /// Its faults were tried at the times at which they struck.
    timed: bool,
}

impl<E> Search<'_, E> {
    /// Takes the first of these that fails: which. What cannot be read as a scenario is not tried.
    fn which(&mut self, candidates: Vec<Candidate>) -> Result<Option<usize>, E> {
        let (mut places, mut tried) = (Vec::new(), Vec::new());
        for (place, candidate) in candidates.into_iter().enumerate() {
            let Ok(scenario) = load(&candidate.by, &write(&candidate.scenario)) else { continue };
            if !same(&scenario, &self.now) {
                places.push(place);
                tried.push(Candidate { scenario, by: candidate.by });
            }
        }
        if tried.is_empty() {
            return Ok(None);
        }
        let Some((which, seen)) = (self.first)(&tried)? else { return Ok(None) };
        let Candidate { scenario, by } = tried.swap_remove(which);
        (self.now, self.seen) = (scenario, seen);
        self.taken.push(by);
        Ok(Some(places[which]))
    }

    fn any(&mut self, candidates: Vec<Candidate>) -> Result<bool, E> {
        Ok(self.which(candidates)?.is_some())
    }

    /// Fewer faults: none; then delta debugging (Zeller, Hildebrandt 2002): parts of them alone, and all but a part, the
    /// parts ever smaller.
    fn fewer(&mut self) -> Result<(), E> {
        if self.any(candidates::no_fault(&self.now))? {
            return Ok(());
        }
        let mut parts = 2;
        while self.now.faults.len() >= 2 {
            let all = self.now.faults.len();
            parts = parts.min(all);
            parts = match self.which(candidates::parts(&self.now, parts))? {
                // A part alone is all that there is now.
                Some(which) if which < parts => 2,
                Some(_) => (parts - 1).max(2),
                None if parts == all => break,
                None => parts * 2,
            };
        }
        Ok(())
    }

    /// Shorter phases, but for the drain: after a shorter one what is only late would look lost.
    fn shorter(&mut self) -> Result<(), E> {
        for _ in 0..STEPS {
            if !self.any(candidates::shorter_chaos(&self.now, &self.seen))? {
                break;
            }
        }
        self.any(candidates::shorter_warmup(&self.now))?;
        self.any(candidates::shorter_heal(&self.now))?;
        Ok(())
    }

    /// Faults that come again and again, or that wait for something, become those that struck, each at its time and on
    /// whom it hit. No draw is left in them then, and each can be left out without changing the others.
    fn at_their_times(&mut self) -> Result<(), E> {
        if self.timed || !candidates::is_drawn(&self.now) {
            return Ok(());
        }
        self.timed = true;
        let before = self.now.clone();
        if self.any(candidates::timed(&self.now, &self.seen))? {
            self.fewer()?;
            self.shorter()?;
            let (was, is) = (before.faults.len(), self.now.faults.len());
            let by = format!("rather {was} that come again than {is}");
            // Run once more, as everything that is taken was the last that ran.
            if is <= TIMED.max(was) || !self.any(vec![Candidate { scenario: before, by }])? {
                return Ok(());
            }
        }
        for _ in 0..STEPS {
            if !self.any(candidates::seldom(&self.now, &self.seen))? {
                break;
            }
        }
        Ok(())
    }

    /// Fewer nodes, groups, terminals, publishers, pushes.
    fn smaller(&mut self) -> Result<(), E> {
        for number in candidates::NUMBERS {
            for _ in 0..STEPS {
                if !self.any(candidates::smaller(&self.now, number))? {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Whether these say the same, wherever it stands in their files.
fn same(one: &Scenario, two: &Scenario) -> bool {
    write(one) == write(two)
}
