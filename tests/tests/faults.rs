//! Calls of the disk that fail, each call of two workloads and each way to fail, and disks that fill.
//!
//! Asked of every run: no panic; each error names a file and is nobody's bug; after a write with an
//! unknown outcome none is acknowledged; once the fault is gone everything acknowledged can be read,
//! and again after the next open.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use strandline::{Durability, ErrorKind};
use strandline_tests::model::End;
use strandline_tests::ops::Op;
use strandline_tests::plan::Case;
use strandline_tests::run::{Failure, Run, Tally, disk_of, machine};
use strandline_tests::workload;
use strandline_wal::io::fault::{Effect, FaultDisk, Rule};

const EFFECTS: [(&str, Effect, bool); 9] = [
    ("EIO once", Effect::EIO, false),
    ("EIO for ever", Effect::EIO, true),
    ("ENOSPC once", Effect::ENOSPC, false),
    ("ENOSPC for ever", Effect::ENOSPC, true),
    ("EMFILE once", Effect::EMFILE, false),
    ("EROFS for ever", Effect::EROFS, true),
    (
        "EINTR once",
        Effect::Error(std::io::ErrorKind::Interrupted),
        false,
    ),
    ("short once", Effect::Short(100), false),
    ("short for ever", Effect::Short(1_000), true),
];

fn faulty<'a>(case: &'a Case) -> (Run<'a>, FaultDisk) {
    let mut run = Run::new(case, machine(case));
    let faults = FaultDisk::new(disk_of(&run.machine));
    run.faults = Some(faults.clone());
    (run, faults)
}

/// Fails every call of a workload in every way.
fn judge(name: &str) {
    let case = workload::named(name);
    let (mut run, faults) = faulty(&case);
    run.start().unwrap();
    run.all().unwrap();
    let call_count = faults.call_count();
    drop(run);
    let mut tally = Tally::default();
    for at in 0..call_count {
        for (what, effect, sticky) in EFFECTS {
            let judged = catch_unwind(AssertUnwindSafe(|| {
                let rule = Rule::new(effect).at_call(at);
                let rule = if sticky { rule.sticky() } else { rule };
                fail_one(&case, rule, effect, &mut tally)
            }));
            match judged {
                Ok(Ok(())) => tally.add("runs", 1),
                Ok(Err(error)) => panic!("{name}: {what} at call {at} of {call_count}: {error}"),
                Err(_) => panic!("{name}: {what} at call {at} of {call_count}: a panic"),
            }
        }
    }
    println!("faults, {name}: {call_count} calls, {}", tally.line());
    for what in ["errors", "unknown writes", "writes resumed", "failed syncs"] {
        assert!(tally.count(what) > 0, "{name}: no {what}");
    }
}

fn fail_one(case: &Case, rule: Rule, effect: Effect, tally: &mut Tally) -> Result<(), String> {
    let is_masked = matches!(effect, Effect::Short(_));
    let (mut run, faults) = faulty(case);
    let id = faults.add(rule);
    faults.trace();
    let mut is_unknown = false;
    let started = run.start();
    if let Err(error) = &started {
        tally.add("failed opens", 1);
        if is_masked {
            return Err(format!("a short read or write is no error: {error}"));
        }
        // Nothing is open; the fault goes and the next open is as if this one had not been.
        faults.heal();
        run.start()
            .map_err(|e| format!("open after {error}: {e}"))?;
    } else {
        for op in &case.ops {
            let before = run.model.commit_count();
            match run.step(op) {
                Ok(()) if is_unknown && run.model.commit_count() > before => {
                    return Err(format!("{op:?} is acknowledged after an unknown write"));
                }
                Ok(()) => {}
                Err(failure) => {
                    tally.add("errors", 1);
                    is_unknown |= clear(&failure)? == ErrorKind::Unknown;
                    if is_masked {
                        return Err(format!("a short read or write is no error: {failure}"));
                    }
                }
            }
        }
        if faults.fired_count(id) == 0 {
            return Err("the fault did not happen".to_owned());
        }
        faults.heal();
    }
    let lost_sync = faults
        .take_trace()
        .iter()
        .any(|line| line.starts_with("sync") && line.ends_with("failed"));
    tally.add("failed syncs", lost_sync.into());
    tally.add("unknown writes", is_unknown.into());
    // What was acknowledged is readable without a restart.
    let found = run.read_all().map_err(|e| format!("reading on: {e}"))?;
    run.model
        .clone()
        .recover(&found, End::Kill)
        .map_err(|e| format!("reading on: {e}"))?;
    let put = Op::Put(0, 9, 500, Durability::Disk);
    match run.step(&put) {
        Ok(()) if is_unknown => {
            return Err("a write is acknowledged after an unknown one".to_owned());
        }
        Ok(()) => tally.add("writes resumed", 1),
        Err(failure) => {
            clear(&failure)?;
            tally.add("writes refused until the next open", 1);
            if effect == Effect::ENOSPC && !is_unknown {
                return Err(format!("there is space again: {failure}"));
            }
        }
    }
    reopen(&mut run, lost_sync)
}

/// Opens again without faults; a failed sync may have lost what was not durable.
fn reopen(run: &mut Run<'_>, lost_sync: bool) -> Result<(), String> {
    run.close_quietly();
    run.faults = None;
    let end = if lost_sync { End::Power } else { End::Kill };
    run.open_and_check(end)
        .map_err(|e| format!("the next open: {e}"))?;
    run.step(&Op::Put(0, 8, 500, Durability::Disk))
        .map_err(|e| format!("writing after the next open: {e}"))?;
    run.step(&Op::Reopen)
        .map_err(|e| format!("second open: {e}"))
}

/// An error that somebody can act on: it names a file of the database.
fn clear(failure: &Failure) -> Result<ErrorKind, String> {
    let Some(error) = failure.engine() else {
        return Err(failure.to_string());
    };
    let text = error.to_string();
    let kind = error.kind();
    if kind == ErrorKind::Bug || kind == ErrorKind::Restore || !text.contains("/db") {
        return Err(format!("an unclear error, {kind:?}: {text}"));
    }
    Ok(kind)
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
