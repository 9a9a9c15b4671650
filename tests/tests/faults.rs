//! Calls of the disk that fail, each call of two workloads and each way to fail, and disks that fill.
//! The sweeps do the same with every workload.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline::{Durability, ErrorKind};
use strandline_tests::errors::{MODES, clear, sweep};
use strandline_tests::ops::Op;
use strandline_tests::plan::Case;
use strandline_tests::run::{Run, Tally, machine};
use strandline_tests::workload;

fn judge(name: &str) {
    let tally = sweep(&workload::named(name), &MODES).unwrap_or_else(|e| panic!("{name}: {e}"));
    println!("faults, {name}: {}", tally.line());
    for what in ["errors", "unknown writes", "writes resumed", "failed syncs"] {
        assert!(tally.count(what) > 0, "{name}: no {what}");
    }
}

#[test]
fn every_failing_call_of_rolls_flushes_and_compactions_is_told() {
    judge("roll, flush, compact");
}

#[test]
fn every_failing_call_of_large_values_is_told() {
    judge("large values and their collection");
}

/// A disk that is full at every size: each write is there or told as absent, everything is readable,
/// and writes go on without a restart as soon as there is space.
#[test]
fn writes_resume_when_a_full_disk_has_space_again() {
    let mut tally = Tally::default();
    for name in [
        "roll, flush, compact",
        "os window over two segments",
        "four ranges",
    ] {
        let case = workload::named(name);
        let mut whole = Run::new(&case, machine(&case));
        whole.start().unwrap();
        let first_len = whole.machine.disk.used_len();
        whole.all().unwrap();
        drop(whole);
        for n in 0..160 {
            fill(&case, first_len + n * 2_500, &mut tally).unwrap_or_else(|error| {
                panic!("{name}: full at {first_len} + {n} * 2500: {error}")
            });
        }
    }
    println!("full disks: {}", tally.line());
    assert!(tally.count("runs that met the end") > 100);
}

fn fill(case: &Case, limit: u64, tally: &mut Tally) -> Result<(), String> {
    let mut run = Run::new(case, machine(case));
    run.start()?;
    run.machine.disk.limit(Some(limit));
    let mut met = false;
    for op in &case.ops {
        let Err(failure) = run.step(op) else { continue };
        met = true;
        tally.add("refused operations", 1);
        let kind = clear(&failure)?;
        let error = failure.engine().expect("it is clear");
        if !error.is_no_space() || kind == ErrorKind::Unknown {
            return Err(format!("{op:?}: not a full disk, {kind:?}: {error}"));
        }
        let found = run.read_all().map_err(|e| e.to_string())?;
        if found != *run.model.now() {
            let difference = run.model.now().difference(&found);
            return Err(format!("{op:?} (expected / found):\n{difference}"));
        }
    }
    run.machine.disk.limit(None);
    tally.add("runs that met the end", met.into());
    run.step(&Op::Put(0, 9, 5_000, Durability::Disk))
        .map_err(|e| format!("writing on: {e}"))?;
    for op in &case.ops {
        run.step(op)
            .map_err(|e| format!("writing on, {op:?}: {e}"))?;
    }
    run.step(&Op::Reopen).map_err(|e| e.to_string())
}
