//! Processes that are killed while four threads write, on the real disk: nothing that they
//! acknowledged is lost, and no batch is torn.
//!
//! The kill falls among writes, during an open, a close, a compaction or a checkpoint, in turns. Each
//! round goes on until its kill fell where it was meant to. `ROUNDS` says how many there are: 20 in the
//! ordinary suite, 1,000 where `STRANDLINE_LONG=1`.

#![allow(clippy::unwrap_used, reason = "a failure here is a failing test")]

use std::path::Path;
use std::time::Duration;

use strandline_tests::oracle::Oracle;
use strandline_tests::seed::{self, Rng};
use strandline_tests::writer::{self, Life, Phase, Start, database, options};

/// Most lives until a kill falls where it was meant to.
const LIFE_COUNT_MAX: usize = 100;

/// Not a test of its own: the process that is killed. Without its variables it does nothing.
#[test]
fn writer() {
    writer::run();
}

struct Killer<'a> {
    dir: &'a Path,
    rng: Rng,
    oracle: Oracle,
    /// By phase, within how many microseconds after its begin a kill falls. It follows the machine:
    /// longer after each hit, shorter after each miss.
    reach_us: [usize; Phase::EACH.len()],
    kill_count: u64,
    cut_count: usize,
    checkpoint_count: usize,
    collected: [u64; 2],
}

impl Killer<'_> {
    /// A life that ends within a phase, if all goes well; returns whether it did.
    fn kill_in(&mut self, phase: Phase, seed: u64) -> (Life, bool) {
        // Now and then at once, while the open is young; now and then after many writes.
        let count = match self.rng.below(5) {
            0 => self.rng.within(0, 8),
            1 => self.rng.within(500, 2_000),
            _ => self.rng.within(8, 500),
        };
        let start = Start {
            dir: self.dir,
            seed,
            phase,
            count: count as u64,
            by: &[],
        };
        // A later compaction finds more to collect.
        let entry_count = match phase {
            Phase::Compact => self.rng.within(1, 6),
            _ => 1,
        };
        let mut life = start.spawn(&self.oracle);
        let acked = self.oracle.acked_count;
        let is_begun = |life: &Life, oracle: &Oracle| match phase {
            Phase::Write => oracle.acked_count - acked >= count as u64,
            _ => life.met.iter().filter(|met| **met == phase).count() >= entry_count,
        };
        while !is_begun(&life, &self.oracle) {
            let is_alive = life.hear(&mut self.oracle);
            let (failures, strange) = (&life.failures, &life.strange);
            assert!(
                is_alive,
                "{phase}, STRANDLINE_SEED={seed}: {failures:?} {strange:?}"
            );
        }
        let reach_us = &mut self.reach_us[phase as usize];
        if phase != Phase::Write {
            let wait_us = self.rng.below(*reach_us);
            std::thread::sleep(Duration::from_micros(wait_us as u64));
        }
        let ended = life.kill(&mut self.oracle);
        assert!(!ended.success(), "it was killed");
        assert_eq!(life.failures, [""; 0]);
        assert_eq!(life.strange, [""; 0]);
        self.kill_count += 1;
        for (sum, count) in self.collected.iter_mut().zip(life.collected) {
            *sum += count;
        }
        let is_hit = phase == Phase::Write || life.within.contains(&phase);
        *reach_us = match is_hit {
            true => (*reach_us * 3 / 2).min(100_000),
            false => (*reach_us / 2).max(20),
        };
        (life, is_hit)
    }

    fn judge(&mut self, life: &Life) -> Result<(), String> {
        let text = |error: strandline::Error| error.to_string();
        // The checkpoint first: opening it must do no harm to the files that both have.
        let is_there = life.judge_checkpoint(self.dir, &self.oracle)?;
        self.checkpoint_count += usize::from(is_there);
        let db = options().open(database(self.dir)).map_err(text)?;
        self.cut_count += db.dataset("").map_err(text)?.recovery().cuts.len();
        self.oracle.judge(&db)?;
        db.close().map_err(text)
    }

    /// Lives until one ends within the phase.
    fn round(&mut self, phase: Phase, seed: u64) -> Result<(), String> {
        for _ in 0..LIFE_COUNT_MAX {
            let (mut life, mut is_hit) = match phase {
                // The open is of what a killed writer left, and may be killed again and again.
                Phase::Open => self.kill_in(Phase::Write, seed),
                _ => self.kill_in(phase, seed),
            };
            if phase == Phase::Open {
                (life, is_hit) = self.kill_in(phase, seed);
                while is_hit && self.rng.percent(50) {
                    self.kill_in(phase, seed);
                }
            }
            self.judge(&life)?;
            if is_hit {
                return Ok(());
            }
        }
        Err(format!("no kill of {LIFE_COUNT_MAX} fell within {phase}"))
    }
}

#[test]
fn no_acknowledged_write_is_lost_to_a_kill() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok());
    let rounds: usize = rounds.unwrap_or(if seed::is_long() { 1_000 } else { 20 });
    let base = seed::base(11);
    // Kept where the test fails.
    let mut dir = tempfile::tempdir().unwrap();
    dir.disable_cleanup(true);
    let path = dir.path().to_owned();
    println!("the database is in {}", path.display());
    let mut killer = Killer {
        dir: &path,
        rng: Rng::new(base),
        oracle: Oracle::new(base),
        reach_us: [2_000; Phase::EACH.len()],
        kill_count: 0,
        cut_count: 0,
        checkpoint_count: 0,
        collected: [0; 2],
    };
    let mut hits = [0; Phase::EACH.len()];
    for round in 0..rounds {
        let phase = Phase::EACH[round % Phase::EACH.len()];
        killer.round(phase, base).unwrap_or_else(|error| {
            panic!("STRANDLINE_SEED={base}: round {round}, {phase}: {error}")
        });
        hits[phase as usize] += 1;
    }
    let oracle = &killer.oracle;
    dir.disable_cleanup(false);
    println!(
        "kill -9: seed {base}, {rounds} rounds, {} kills, {} writes acknowledged, 0 lost, 0 torn \
         batches; {} were under way, {} of them there afterwards; {} cuts; {} checkpoints whole; \
         [values moved, segments dropped] {:?}; kills within {:?}: {hits:?}; reach in us {:?}",
        killer.kill_count,
        oracle.acked_count,
        oracle.open_count,
        oracle.found_count,
        killer.cut_count,
        killer.checkpoint_count,
        killer.collected,
        Phase::EACH,
        killer.reach_us,
    );
    assert!(oracle.acked_count > rounds as u64, "the writer writes");
    assert!(
        killer.collected.iter().all(|count| *count > 0),
        "compactions collect"
    );
    for (phase, hits) in Phase::EACH.iter().zip(hits) {
        assert!(hits >= rounds / Phase::EACH.len(), "{phase}: {hits} kills");
    }
}
