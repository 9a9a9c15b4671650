//! Which records are asked for: all alike, or some far more often than others.

use strandline_benches::random::Random;

use super::work::Key;

/// Numbers from 0 on, of which small ones come up most: YCSB's zipfian distribution, after Gray et al.,
/// "Quickly generating billion-record synthetic databases".
pub struct Zipf {
    count: usize,
    alpha: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    pub fn new(count: usize) -> Zipf {
        let zeta: f64 = (1..=count).map(|n| (n as f64).powf(-THETA)).sum();
        let zeta_two = 1.0 + 0.5f64.powf(THETA);
        let spread = 1.0 - (2.0 / count as f64).powf(1.0 - THETA);
        Zipf {
            count,
            alpha: 1.0 / (1.0 - THETA),
            zeta,
            eta: spread / (1.0 - zeta_two / zeta),
        }
    }

    pub fn draw(&self, random: &mut Random) -> usize {
        let uniform = (random.next() >> 11) as f64 / (1u64 << 53) as f64;
        let at = uniform * self.zeta;
        if at < 1.0 {
            return 0;
        }
        if at < 1.0 + 0.5f64.powf(THETA) {
            return 1;
        }
        let part = (self.eta * uniform - self.eta + 1.0).powf(self.alpha);
        ((self.count as f64 * part) as usize).min(self.count - 1)
    }

    /// Keys to ask for. `keys` are in random order, so that the most wanted ones lie anywhere.
    pub fn keys(&self, keys: &[Key], count: usize, random: &mut Random) -> Vec<Key> {
        (0..count).map(|_| keys[self.draw(random)]).collect()
    }
}

/// As in YCSB.
const THETA: f64 = 0.99;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_up_as_often_as_their_ranks_say() {
        const COUNT: usize = 1_000;
        const DRAWS: usize = 400_000;
        let zipf = Zipf::new(COUNT);
        let mut random = Random::new(1);
        let mut found = [0usize; COUNT];
        for _ in 0..DRAWS {
            found[zipf.draw(&mut random)] += 1;
        }
        for (rank, tolerance) in [(0, 0.02), (1, 0.02), (9, 0.15), (99, 0.15)] {
            let expected = DRAWS as f64 / zipf.zeta / (rank as f64 + 1.0).powf(THETA);
            let off = (found[rank] as f64 - expected).abs() / expected;
            assert!(off < tolerance, "{rank}: {} for {expected}", found[rank]);
        }
        assert!(found[COUNT / 2..].iter().sum::<usize>() > 0);
    }
}
