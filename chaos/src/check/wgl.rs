//! Whether a few concurrent operations on one object can be put into an order that the object's rules allow and that
//! real time does not contradict: the search of Wing and Gong with the cache of Lowe. One object at a time, so that the
//! search stays small; bounded in steps, not in seconds, so that the same history always comes to the same verdict.

use std::collections::HashSet;
use std::hash::Hash;

/// An object.
pub(super) trait Model {
    /// What it is in.
    type State: Clone + Eq + Hash;
    /// What can be done to it.
    type Op;

    /// What it may be in after `op` was done with the result that it had; none, if that cannot be.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Vec<Self::State>;
}

/// An operation with its time, in lines of the history.
#[derive(Debug, Clone)]
pub(super) struct Timed<O> {
    /// It was not done before this.
    pub(super) from: u32,
    /// It was done by then; `None`: perhaps never.
    pub(super) to: Option<u32>,
    pub(super) op: O,
}

/// What the search came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// There is such an order.
    Found,
    /// There is none: the longest beginning that there is, and the operations (by index) of which one had to come next.
    None { longest: Vec<usize>, stuck: Vec<usize> },
    /// The steps were used up.
    TooMany,
}

/// A way that the search went: the operation that it took, and what is left to try there.
struct Choice<S> {
    /// Operations still to be tried here, with the states that they lead to.
    left: Vec<(usize, S)>,
    taken: Option<usize>,
}

/// Searches, in at most so many steps.
pub(super) fn order<M: Model>(model: &M, start: M::State, ops: &[Timed<M::Op>], steps: usize) -> Order {
    let must = ops.iter().filter(|op| op.to.is_some()).count();
    let mut done = Bits::new(ops.len());
    let mut seen: HashSet<(Bits, M::State)> = HashSet::new();
    let mut longest: (Vec<usize>, Vec<usize>) = Default::default();
    let first = Choice { left: choices(model, &start, ops, &done), taken: None };
    let mut path = vec![first];
    let (mut finished, mut used) = (0, 0);
    if must == 0 {
        return Order::Found;
    }
    while let Some(choice) = path.last_mut() {
        let Some((next, state)) = choice.left.pop() else {
            if let Some(taken) = choice.taken {
                done.unset(taken);
                finished -= usize::from(ops[taken].to.is_some());
            }
            path.pop();
            continue;
        };
        used += 1;
        if used > steps {
            return Order::TooMany;
        }
        done.set(next);
        if !seen.insert((done.clone(), state.clone())) {
            done.unset(next);
            continue;
        }
        finished += usize::from(ops[next].to.is_some());
        if finished == must {
            return Order::Found;
        }
        let left = choices(model, &state, ops, &done);
        path.push(Choice { left, taken: Some(next) });
        if path.len() > longest.0.len() + 1 {
            longest.0 = path.iter().filter_map(|choice| choice.taken).collect();
            longest.1 = candidates(ops, &done).collect();
        }
    }
    if longest.0.is_empty() {
        longest.1 = candidates(ops, &Bits::new(ops.len())).collect();
    }
    Order::None { longest: longest.0, stuck: longest.1 }
}

/// What may come next by time: what began before the first of the rest had to be done.
fn candidates<'a, O>(ops: &'a [Timed<O>], done: &'a Bits) -> impl Iterator<Item = usize> + 'a {
    // Sorted by their beginning: nothing from the first that begins too late on can come next.
    let open = done.first_unset();
    let mut until = u32::MAX;
    for op in ops.iter().enumerate().skip(open).filter(|(at, _)| !done.is_set(*at)).map(|(_, op)| op) {
        if op.from > until {
            break;
        }
        until = until.min(op.to.unwrap_or(u32::MAX));
    }
    (open..ops.len()).take_while(move |at| ops[*at].from <= until).filter(|at| !done.is_set(*at))
}

fn choices<M: Model>(
    model: &M,
    state: &M::State,
    ops: &[Timed<M::Op>],
    done: &Bits,
) -> Vec<(usize, M::State)> {
    let next = |at: usize| model.step(state, &ops[at].op).into_iter().map(move |state| (at, state));
    let mut all: Vec<_> = candidates(ops, done).flat_map(next).collect();
    // Taken from the end: what was done first comes first, which mostly is right.
    all.sort_by_key(|(at, _)| std::cmp::Reverse(ops[*at].to.unwrap_or(u32::MAX)));
    all
}

/// Which operations were done. Everything before `base` was, so that a long history costs no long set at each step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bits {
    base: usize,
    words: Vec<u64>,
    len: usize,
}

impl Bits {
    fn new(len: usize) -> Bits {
        Bits { base: 0, words: Vec::new(), len }
    }

    fn is_set(&self, at: usize) -> bool {
        at < self.base
            || self
                .words
                .get((at - self.base) / 64)
                .is_some_and(|word| word >> ((at - self.base) % 64) & 1 == 1)
    }

    fn set(&mut self, at: usize) {
        let word = (at - self.base) / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << ((at - self.base) % 64);
        while self.words.first() == Some(&u64::MAX) {
            self.words.remove(0);
            self.base += 64;
        }
    }

    fn unset(&mut self, at: usize) {
        while at < self.base {
            self.words.insert(0, u64::MAX);
            self.base -= 64;
        }
        let word = (at - self.base) / 64;
        self.words[word] &= !(1 << ((at - self.base) % 64));
        // One form for one set: it is compared and hashed.
        while self.words.last() == Some(&0) {
            self.words.pop();
        }
    }

    fn first_unset(&self) -> usize {
        let inside = self.words.iter().position(|word| *word != u64::MAX);
        let at = match inside {
            Some(word) => word * 64 + self.words[word].trailing_ones() as usize,
            None => self.words.len() * 64,
        };
        (self.base + at).min(self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Register;

    enum Op {
        Write(u8),
        Read(u8),
    }

    impl Model for Register {
        type State = u8;
        type Op = Op;

        fn step(&self, state: &u8, op: &Op) -> Vec<u8> {
            match op {
                Op::Write(value) => vec![*value],
                Op::Read(value) => (value == state).then_some(*state).into_iter().collect(),
            }
        }
    }

    fn timed(from: u32, to: impl Into<Option<u32>>, op: Op) -> Timed<Op> {
        Timed { from, to: to.into(), op }
    }

    #[test]
    fn an_order_is_found_where_there_is_one_and_only_there() {
        let run = |ops: &[Timed<Op>]| order(&Register, 0, ops, 1000);
        // Two writes at the same time, read in one order.
        let together = [
            timed(1, 9, Op::Write(1)),
            timed(2, 8, Op::Write(2)),
            timed(10, 11, Op::Read(1)),
            timed(12, 13, Op::Read(1)),
        ];
        assert_eq!(run(&together), Order::Found);
        // And then in the other: no register does that.
        let back = [
            timed(1, 9, Op::Write(1)),
            timed(2, 8, Op::Write(2)),
            timed(10, 11, Op::Read(1)),
            timed(12, 13, Op::Read(2)),
        ];
        let Order::None { longest, stuck } = run(&back) else { panic!("found") };
        assert_eq!((longest.len(), stuck), (3, vec![3]));
        // A write without an answer may come late, and once only.
        let late = [timed(1, None, Op::Write(1)), timed(2, 3, Op::Read(0)), timed(4, 5, Op::Read(1))];
        assert_eq!(run(&late), Order::Found);
        let twice = [
            timed(1, None, Op::Write(1)),
            timed(2, 3, Op::Read(1)),
            timed(4, 5, Op::Write(2)),
            timed(6, 7, Op::Read(1)),
        ];
        assert!(matches!(run(&twice), Order::None { .. }));
        assert_eq!(order(&Register, 0, &together, 2), Order::TooMany);
    }

    #[test]
    fn a_long_history_of_one_after_the_other_takes_a_step_each() {
        let ops: Vec<_> = (0..2000u32)
            .map(|n| {
                let op = if n % 2 == 0 { Op::Write((n / 2) as u8) } else { Op::Read((n / 2) as u8) };
                timed(2 * n, 2 * n + 1, op)
            })
            .collect();
        assert_eq!(order(&Register, 0, &ops, 2000), Order::Found);
    }

    #[test]
    fn a_set_has_one_form() {
        let mut bits = Bits::new(300);
        let empty = bits.clone();
        (0..300).for_each(|at| bits.set(at));
        assert_eq!((bits.base, bits.first_unset()), (256, 300));
        bits.unset(5);
        assert!(!bits.is_set(5) && bits.is_set(4) && bits.is_set(299));
        assert_eq!(bits.first_unset(), 5);
        bits.set(5);
        (0..300).rev().for_each(|at| bits.unset(at));
        assert_eq!(bits, empty);
    }
}
