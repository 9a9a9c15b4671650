//! Dies at every call of a workload, with every kind of damage, and judges each recovery.
//!
//! Of each image: a reader opens it and changes nothing; a writer opens it and shows the same state,
//! which the model allows; a second open shows it again; now and then the machine also dies at calls
//! of the recovery and the next recovery must show the same, or the database is written on and must
//! keep what it acknowledges.

use std::panic::{AssertUnwindSafe, catch_unwind};

use strandline::Durability;
use strandline_wal::io::sim::{Damage, SimEnv};

use crate::model::{End, Model, State};
use crate::ops::{Crash, Op};
use crate::plan::Case;
use crate::run::{Run, Tally, machine, read_only, unchanged};
use crate::seed::Rng;

/// How thorough a sweep is.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Seeds for each damage.
    pub seed_count: u64,
    /// One image in so many is recovered with further deaths.
    pub nested_one_in: usize,
    /// Calls of its recovery at which it dies, at most.
    pub nested_count: usize,
}

/// Sweeps a workload.
///
/// # Errors
/// The first call, damage and seed at which something is wrong, and what.
pub fn sweep(case: &Case, seed: u64, depth: Depth) -> Result<Tally, String> {
    let mut whole = Run::new(case, machine(case));
    whole.start()?;
    whole.all()?;
    let io_count = whole.machine.disk.io_count();
    whole.note_life();
    let mut tally = whole.tally.clone();
    tally.add("calls", io_count);
    drop(whole);
    for at in 0..=io_count {
        let mut run = Run::new(case, machine(case));
        run.machine.disk.crash_at(at);
        until_death(&mut run)?;
        for (n, damage) in damages().into_iter().enumerate() {
            for s in 0..depth.seed_count {
                let seed = seed ^ (at << 20) ^ ((n as u64) << 8) ^ s;
                let judged = catch_unwind(AssertUnwindSafe(|| {
                    Judge {
                        case,
                        run: &run,
                        damage,
                        seed,
                        depth,
                    }
                    .judge(&mut tally)
                }));
                let judged = judged.unwrap_or_else(|_| Err("a panic, told above".to_owned()));
                judged.map_err(|error| {
                    format!("death at call {at} of {io_count}, {damage:?}, seed {seed}: {error}")
                })?;
            }
        }
        run.abandon();
    }
    Ok(tally)
}

/// Every damage, and the death of the process alone.
fn damages() -> Vec<Option<Damage>> {
    let all = Damage::ALL.into_iter().map(Some);
    all.chain([None]).collect()
}

/// Runs a workload until its machine dies.
fn until_death(run: &mut Run<'_>) -> Result<(), String> {
    let died = |run: &Run<'_>, error: String| match run.machine.disk.is_dead() {
        true => Ok(()),
        false => Err(error),
    };
    if let Err(error) = run.start() {
        return died(run, error);
    }
    let case = run.case.clone();
    for (n, op) in case.ops.iter().enumerate() {
        if let Err(error) = run.step(op) {
            return died(run, format!("operation {n} {op:?}: {error}"));
        }
    }
    Ok(())
}

struct Judge<'a> {
    case: &'a Case,
    /// It ended in a death, or was through.
    run: &'a Run<'a>,
    damage: Option<Damage>,
    seed: u64,
    depth: Depth,
}

impl Judge<'_> {
    fn judge(&self, tally: &mut Tally) -> Result<(), String> {
        let mut rng = Rng::new(self.seed);
        let (image, end) = self.image();
        tally.add("recoveries", 1);
        let shown = self.read(&image, end)?;
        let before = SimEnv {
            disk: image.disk.fork(),
            ..image.clone()
        };
        let mut opened = Run::resume(self.run, image);
        opened.open_and_check(end).map_err(|e| e.to_string())?;
        let calls = opened.machine.disk.io_count();
        same(
            &shown,
            opened.model.now(),
            "a writer shows another state than a reader",
        )?;
        if rng.below(4) == 0 {
            let put = Op::Put(0, 0, 300, Durability::Disk);
            opened.step(&put).map_err(|e| format!("writing on: {e}"))?;
            let crash = Crash {
                damage: Some(Damage::LoseAll),
                seed: self.seed,
                nested: Vec::new(),
            };
            opened
                .crash(&crash)
                .map_err(|e| format!("writing on: {e}"))?;
            tally.add("written on", 1);
        }
        // A second open shows what the first one did.
        opened
            .step(&Op::Reopen)
            .map_err(|e| format!("second open: {e}"))?;
        opened.abandon();
        for what in ["cuts", "unsynced commits kept", "unsynced commits lost"] {
            tally.add(what, opened.tally.count(what));
        }
        if rng.below(self.depth.nested_one_in) == 0 {
            for _ in 0..self.depth.nested_count.min(calls as usize) {
                let at = rng.below(calls as usize) as u64;
                self.nested(&before, end, at, &shown, rng.next_u64())
                    .map_err(|e| format!("and again at call {at} of the recovery: {e}"))?;
                tally.add("nested recoveries", 1);
            }
        }
        Ok(())
    }

    fn image(&self) -> (SimEnv, End) {
        let machine = &self.run.machine;
        match self.damage {
            Some(damage) => (machine.crash(self.seed, damage), End::Power),
            None => {
                let disk = machine.disk.fork();
                (
                    SimEnv {
                        disk,
                        ..machine.clone()
                    },
                    End::Kill,
                )
            }
        }
    }

    /// What a reader sees; it changes nothing.
    fn read(&self, image: &SimEnv, end: End) -> Result<State, String> {
        let before = image.disk.files();
        let found = read_only(&self.case.options, image.env(), self.case.keyspace_count);
        let found = found.map_err(|e| format!("a reader: {e}"))?;
        let mut model: Model = self.run.model.clone();
        model
            .recover(&found, end)
            .map_err(|e| format!("a reader: {e}"))?;
        unchanged(&before, &image.disk)?;
        Ok(found)
    }

    /// Dies again in the recovery; the next one ends in the same state.
    fn nested(
        &self,
        image: &SimEnv,
        end: End,
        at: u64,
        shown: &State,
        seed: u64,
    ) -> Result<(), String> {
        let mut rng = Rng::new(seed);
        let machine = SimEnv {
            disk: image.disk.fork(),
            ..image.clone()
        };
        machine.disk.crash_at(at);
        let mut run = Run::resume(self.run, machine);
        let first = run.open_and_check(end);
        if !run.machine.disk.is_dead() {
            return first.map_err(|e| e.to_string());
        }
        let mut again = match rng.percent(25) {
            true => SimEnv {
                disk: run.machine.disk.fork(),
                ..run.machine.clone()
            },
            false => run.machine.crash(seed, *rng.pick(&Damage::ALL)),
        };
        // Only what the disk had for certain must come again.
        let end = match self.damage {
            Some(_) => end,
            None => End::Power,
        };
        std::mem::swap(&mut run.machine, &mut again);
        let mut second = Run::resume(self.run, run.machine.clone());
        second.open_and_check(end).map_err(|e| e.to_string())?;
        if self.damage.is_some() {
            same(
                shown,
                second.model.now(),
                "another state than the first recovery's",
            )?;
        }
        second
            .step(&Op::Reopen)
            .map_err(|e| format!("second open: {e}"))?;
        Ok(())
    }
}

fn same(expected: &State, found: &State, what: &str) -> Result<(), String> {
    match expected == found {
        true => Ok(()),
        false => Err(format!(
            "{what} (expected / found):\n{}",
            expected.difference(found)
        )),
    }
}
