//! The simulated world around the disk: a clock that stands still until it is moved, and
//! randomness that comes from a seed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Damage, SimDisk};
use crate::io::{Clock, Env, Random};

/// The step of splitmix64. Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators" (2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The output function of splitmix64: spreads every bit of `state` over the result.
pub(super) const fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Pseudo-random numbers for one thread.
#[derive(Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) const fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    /// Numbers of their own for one part of a seed's decisions, so that parts do not depend on how
    /// many numbers others drew.
    pub(super) const fn part(seed: u64, part: u64) -> Rng {
        Rng(mix(seed ^ mix(part.wrapping_add(STEP))))
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        // The bias of the remainder is far below anything that a test could notice.
        self.next() % limit
    }

    /// True `of_256` times in 256.
    pub(super) fn chance(&mut self, of_256: u64) -> bool {
        self.below(256) < of_256
    }
}

/// A clock that only tests move.
#[derive(Debug)]
pub struct SimClock {
    wall_ms: AtomicU64,
    mono_ns: AtomicU64,
}

impl SimClock {
    /// A clock that shows `wall_ms` milliseconds since 1970.
    pub fn at(wall_ms: u64) -> SimClock {
        SimClock {
            wall_ms: AtomicU64::new(wall_ms),
            mono_ns: AtomicU64::new(0),
        }
    }

    /// Lets time pass.
    pub fn advance_ms(&self, ms: u64) {
        self.wall_ms.fetch_add(ms, Ordering::AcqRel);
        self.mono_ns.fetch_add(ms * 1_000_000, Ordering::AcqRel);
    }

    /// Sets the wall clock, forward or back, while no time passes.
    pub fn jump_to_ms(&self, wall_ms: u64) {
        self.wall_ms.store(wall_ms, Ordering::Release);
    }
}

impl Default for SimClock {
    /// 2026-01-01.
    fn default() -> SimClock {
        SimClock::at(1_767_225_600_000)
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::Acquire)
    }

    fn mono_ns(&self) -> u64 {
        self.mono_ns.load(Ordering::Acquire)
    }
}

/// Randomness from a seed.
#[derive(Debug)]
pub struct SimRandom(AtomicU64);

impl SimRandom {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> SimRandom {
        SimRandom(AtomicU64::new(seed))
    }
}

impl Random for SimRandom {
    fn next_u64(&self) -> u64 {
        mix(self.0.fetch_add(STEP, Ordering::AcqRel).wrapping_add(STEP))
    }
}

/// A simulated machine: the parts of an [`Env`] with the handles that tests steer them by.
#[derive(Clone)]
pub struct SimEnv {
    /// Files.
    pub disk: SimDisk,
    /// Time.
    pub clock: Arc<SimClock>,
    /// Randomness.
    pub random: Arc<SimRandom>,
}

impl SimEnv {
    /// An empty disk, the default time, and the randomness of `seed`.
    pub fn new(seed: u64) -> SimEnv {
        SimEnv {
            disk: SimDisk::new(seed),
            clock: Arc::default(),
            random: Arc::new(SimRandom::new(seed)),
        }
    }

    /// What an engine is given.
    pub fn env(&self) -> Env {
        Env {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            random: Arc::clone(&self.random) as Arc<dyn Random>,
        }
    }

    /// The machine after a crash: the disk as [`SimDisk::crash`] leaves it, the time of now, and
    /// randomness that does not repeat itself.
    #[must_use]
    pub fn crash(&self, seed: u64, damage: Damage) -> SimEnv {
        SimEnv {
            disk: self.disk.crash(seed, damage),
            clock: Arc::new(SimClock {
                wall_ms: AtomicU64::new(self.clock.wall_ms()),
                mono_ns: AtomicU64::new(self.clock.mono_ns()),
            }),
            random: Arc::new(SimRandom::new(
                mix(seed) ^ self.random.0.load(Ordering::Acquire),
            )),
        }
    }
}
