//! Where the randomness of tests comes from, and how a failing case is run again.
//!
//! Every random test draws from a base seed: the case `n` has the seed `base + n`. The base is fixed,
//! so that the ordinary run is the same everywhere; `STRANDLINE_SEED` sets another one, or draws one
//! with `random`; `STRANDLINE_COUNT` sets how many cases there are, and `STRANDLINE_LONG=1` asks for
//! the long version of a test. A failure prints the two variables that run its case alone.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Pseudo-random numbers: splitmix64.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Rng {
        // Neighbouring seeds must not give shifted copies of one sequence.
        Rng(mix(seed.wrapping_add(0x5851_f42d_4c95_7f2d)))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `limit`; 0 where that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next_u64() % limit.max(1) as u64) as usize
    }

    /// A number of a range, both ends included.
    pub fn within(&mut self, min: usize, max: usize) -> usize {
        min + self.below(max - min + 1)
    }

    /// True in `percent` of 100 cases.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The base seed of this run: `default`, or what `STRANDLINE_SEED` says.
///
/// # Panics
/// Where the variable is neither a number nor `random`.
pub fn base(default: u64) -> u64 {
    match std::env::var("STRANDLINE_SEED").as_deref() {
        Err(_) | Ok("") => default,
        Ok("random") => RandomState::new().build_hasher().finish() >> 16,
        Ok(text) => text
            .parse()
            .expect("STRANDLINE_SEED is a number or `random`"),
    }
}

/// How many cases to run: what `STRANDLINE_COUNT` says, or `long` in a long run, or `ordinary`.
///
/// # Panics
/// Where the variable is not a number.
pub fn count(ordinary: u64, long: u64) -> u64 {
    match std::env::var("STRANDLINE_COUNT").as_deref() {
        Ok(text) if !text.is_empty() => text.parse().expect("STRANDLINE_COUNT is a number"),
        _ if is_long() => long,
        _ => ordinary,
    }
}

/// Whether the long versions are asked for.
pub fn is_long() -> bool {
    std::env::var("STRANDLINE_LONG").is_ok_and(|value| !value.is_empty() && value != "0")
}

/// What to set to run one case again.
pub fn replay(seed: u64) -> String {
    format!("STRANDLINE_SEED={seed} STRANDLINE_COUNT=1")
}
