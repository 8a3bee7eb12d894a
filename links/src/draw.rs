//! Draws by seed, the same on every machine and in every version: SplitMix64 (Steele, Lea, Flood 2014). Not for secrets.

/// A stream of draws.
#[derive(Debug, Clone)]
pub struct Draws(u64);

impl Draws {
    /// By this seed, and a name that keeps several streams of one seed apart.
    pub fn new(seed: u64, stream: &str) -> Draws {
        let mut draws = Draws(seed);
        for byte in stream.bytes() {
            draws.0 ^= u64::from(byte);
            // What comes out, not the counter below it: names that are nearly the same must not lead to the same.
            draws.0 = draws.draw();
        }
        draws
    }

    /// The stream of the `n`-th of very many things that have this one in common: packets of a link.
    pub fn of(&self, n: u64) -> Draws {
        let mut salted = Draws(self.clone().draw().wrapping_add(n));
        Draws(salted.draw())
    }

    /// The next one.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below this; 0 of nothing. The bias is below 2^-32 for anything that is drawn here.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(limit)) >> 64) as u64
    }

    /// True in this share of cases.
    pub fn chance(&mut self, share: f64) -> bool {
        ((self.draw() >> 11) as f64 / (1u64 << 53) as f64) < share
    }

    /// So many of these, drawn without order.
    pub fn some<T: Copy>(&mut self, from: &[T], count: usize) -> Vec<T> {
        let mut left = from.to_vec();
        (0..count.min(from.len())).map(|_| left.swap_remove(self.below(left.len() as u64) as usize)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_those_of_the_algorithm_and_stay_in_their_limits() {
        // The first values of the published generator from state 1234567.
        let mut draws = Draws(1_234_567);
        assert_eq!([draws.draw(), draws.draw()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        let mut draws = Draws::new(7, "test");
        assert!((0..1000).all(|_| draws.below(3) < 3));
        assert_eq!(draws.below(0), 0);
        let hits = (0..10_000).filter(|_| draws.chance(0.25)).count();
        assert!((2200..2800).contains(&hits), "{hits}");
        let mut some = draws.some(&[1, 2, 3, 4], 3);
        some.sort_unstable();
        some.dedup();
        assert_eq!(some.len(), 3);
        assert_ne!(Draws::new(7, "a").draw(), Draws::new(7, "b").draw());
    }

    #[test]
    fn streams_of_like_names_and_numbers_are_strangers() {
        let mut first = std::collections::BTreeSet::new();
        for name in (0..100).flat_map(|n| [format!("n{} n{}", n / 10, n % 10), format!("t{n}")]) {
            let stream = Draws::new(7, &name);
            first.extend((0..100).map(|n| stream.of(n).draw()));
        }
        assert_eq!(first.len(), 20_000);
        let stream = Draws::new(7, "link");
        let hits = (0..10_000).filter(|n| stream.of(*n).chance(0.25)).count();
        assert!((2350..2650).contains(&hits), "{hits}");
    }
}
