//! What the benchmarks share: keys and values that every run sees alike.

#[path = "spike/random.rs"]
pub mod random;

use random::Random;

/// Bytes that values are cut from, so that making one costs nothing while a clock runs.
pub struct Values {
    source: Vec<u8>,
}

impl Values {
    /// Values of up to `len_max` bytes.
    pub fn new(len_max: usize) -> Values {
        let mut source = vec![0; len_max + SPREAD];
        Random::new(2).fill(&mut source);
        Values { source }
    }

    /// The value of entry `n`.
    pub fn value(&self, n: usize, len: usize) -> &[u8] {
        &self.source[n % SPREAD..][..len]
    }
}

/// The first `count` keys of a seed: 16 random bytes each.
pub fn keys(seed: u64, count: usize) -> Vec<[u8; 16]> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.key()).collect()
}

const SPREAD: usize = 4099;
