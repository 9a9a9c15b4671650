//! Calls of the disk that fail: each call of a workload and each way to fail.
//!
//! Asked of every run: no panic; each error names a file and is nobody's bug; after a write with an
//! unknown outcome none is acknowledged; once the fault is gone everything acknowledged can be read,
//! and again after the next open; and where only space was missing, writes go on without one.

use std::panic::{AssertUnwindSafe, catch_unwind};

use strandline::{Durability, ErrorKind};
use strandline_wal::io::fault::{Effect, FaultDisk, Rule};

use crate::marks;
use crate::model::End;
use crate::ops::Op;
use crate::plan::Case;
use crate::run::{Failure, Run, Tally, disk_of, machine};
use crate::seed::Rng;

/// A way to fail: its name, the effect, and whether it lasts.
pub type Mode = (&'static str, Effect, bool);

/// Every way. A call that is interrupted for ever is made for ever, so that one is not among them.
pub const MODES: [Mode; 20] = [
    ("EIO once", Effect::EIO, false),
    ("EIO for ever", Effect::EIO, true),
    ("ENOSPC once", Effect::ENOSPC, false),
    ("ENOSPC for ever", Effect::ENOSPC, true),
    ("EDQUOT once", Effect::EDQUOT, false),
    ("EDQUOT for ever", Effect::EDQUOT, true),
    ("EFBIG once", Effect::EFBIG, false),
    ("EFBIG for ever", Effect::EFBIG, true),
    ("EMFILE once", Effect::EMFILE, false),
    ("EMFILE for ever", Effect::EMFILE, true),
    ("ENFILE once", Effect::ENFILE, false),
    ("ENFILE for ever", Effect::ENFILE, true),
    ("EROFS once", Effect::EROFS, false),
    ("EROFS for ever", Effect::EROFS, true),
    ("EACCES once", Effect::EACCES, false),
    ("EACCES for ever", Effect::EACCES, true),
    (
        "EINTR once",
        Effect::Error(std::io::ErrorKind::Interrupted),
        false,
    ),
    (
        "EAGAIN once",
        Effect::Error(std::io::ErrorKind::WouldBlock),
        false,
    ),
    ("short once", Effect::Short(100), false),
    ("short for ever", Effect::Short(1_000), true),
];

/// A way to fail, and the call that does.
#[derive(Clone, Copy, Debug)]
pub struct Fault(Mode, u64);

impl Fault {
    /// For a disk.
    pub fn rule(self) -> Rule {
        let Fault((_, effect, is_sticky), at) = self;
        let rule = Rule::new(effect).at_call(at);
        if is_sticky { rule.sticky() } else { rule }
    }
}

/// Whether the promise of a full disk holds for it.
fn is_space(effect: Effect) -> bool {
    [Effect::ENOSPC, Effect::EDQUOT, Effect::EFBIG].contains(&effect)
}

/// A run on a disk that may fail.
fn faulty<'a>(case: &'a Case) -> (Run<'a>, FaultDisk) {
    let mut run = Run::new(case, machine(case));
    let faults = FaultDisk::new(disk_of(&run.machine));
    run.faults = Some(faults.clone());
    (run, faults)
}

/// The calls of a case on which nothing fails.
fn call_count(case: &Case, tally: &mut Tally) -> Result<u64, String> {
    let (mut run, faults) = faulty(case);
    faults.trace();
    run.start()?;
    run.all()?;
    run.note_life();
    tally.merge(&run.tally);
    marks::count_calls(&faults.take_trace(), tally);
    Ok(faults.call_count())
}

/// Fails every call of a case in every one of some ways.
///
/// # Errors
/// The first call and way at which something is wrong, and what.
pub fn sweep(case: &Case, modes: &[Mode]) -> Result<Tally, String> {
    let mut tally = Tally::default();
    each_call(modes, &mut tally, |rule, tally| match rule {
        None => call_count(case, tally),
        Some(fault) => fail_one(case, fault, tally).map(|()| 0),
    })?;
    Ok(tally)
}

/// Fails calls of a random case in random ways.
///
/// # Errors
/// The call and way at which something is wrong, and what.
pub fn random(seed: u64, op_count: usize) -> Result<Tally, String> {
    let mut case = crate::plan::case(seed, op_count);
    // A walk tells of a failed call by its text alone, and behind a failed sync a reader finds the disk.
    let is_left_out = |op: &Op| match op {
        Op::Get(..) | Op::MultiGet(..) => false,
        Op::Crash(_) | Op::CrashAfter(..) | Op::Reader => true,
        op => is_read(op),
    };
    case.ops.retain(|op| !is_left_out(op));
    let mut rng = Rng::new(!seed);
    let mut tally = Tally::default();
    let call_count = call_count(&case, &mut tally)?;
    for _ in 0..40 {
        let at = rng.next_u64() % call_count;
        let mode = *rng.pick(&MODES);
        one(mode, at, call_count, &mut tally, |fault, tally| {
            let fault = fault.expect("there is one");
            fail_one(&case, fault, tally).map(|()| 0)
        })?;
    }
    Ok(tally)
}

/// Counts the calls of something without any fault, and runs it once more for each of them and each of
/// some ways to fail. It returns how many calls there were.
///
/// # Errors
/// The first call and way at which something is wrong, and what.
pub fn each_call(
    modes: &[Mode],
    tally: &mut Tally,
    mut run: impl FnMut(Option<Fault>, &mut Tally) -> Result<u64, String>,
) -> Result<(), String> {
    let call_count = run(None, tally)?;
    tally.add("calls", call_count);
    for at in 0..call_count {
        for mode in modes {
            one(*mode, at, call_count, tally, &mut run)?;
        }
    }
    Ok(())
}

fn is_read(op: &Op) -> bool {
    matches!(
        op,
        Op::Get(..)
            | Op::MultiGet(..)
            | Op::Range(..)
            | Op::Prefix(..)
            | Op::Cursor(..)
            | Op::SnapshotGet(..)
            | Op::SnapshotRange(..)
    )
}

fn one(
    mode: Mode,
    at: u64,
    call_count: u64,
    tally: &mut Tally,
    mut run: impl FnMut(Option<Fault>, &mut Tally) -> Result<u64, String>,
) -> Result<(), String> {
    let judged = catch_unwind(AssertUnwindSafe(|| run(Some(Fault(mode, at)), tally)));
    let judged = judged.unwrap_or_else(|_| Err("a panic, told above".to_owned()));
    judged.map_err(|error| format!("{} at call {at} of {call_count}: {error}", mode.0))?;
    tally.add("runs", 1);
    tally.add(mode.0, 1);
    Ok(())
}

fn fail_one(case: &Case, fault: Fault, tally: &mut Tally) -> Result<(), String> {
    let Fault((_, effect, _), _) = fault;
    let is_masked = matches!(effect, Effect::Short(_));
    let (mut run, faults) = faulty(case);
    let id = faults.add(fault.rule());
    faults.trace();
    let mut is_unknown = false;
    if let Err(error) = run.start() {
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
            if is_unknown
                && (is_read(op) || matches!(op, Op::Reopen | Op::Snapshot | Op::Checkpoint))
            {
                // What readers see now is not what the next open shows.
                continue;
            }
            let before = run.model.commit_count();
            let Err(failure) = run.step(op) else {
                if is_unknown && run.model.commit_count() > before {
                    return Err(format!("{op:?} is acknowledged after an unknown write"));
                }
                continue;
            };
            tally.add("errors", 1);
            is_unknown |= clear(&failure)? == ErrorKind::Unknown;
            if is_masked {
                return Err(format!("a short read or write is no error: {failure}"));
            }
            if !run.is_open() {
                tally.add("failed reopens", 1);
                faults.heal();
                run.open_and_check(End::Power)
                    .map_err(|e| format!("open after {failure}: {e}"))?;
                is_unknown = false;
            }
        }
        if faults.fired_count(id) == 0 {
            return Err("the fault did not happen".to_owned());
        }
        faults.heal();
    }
    let mut failed = faults.take_trace();
    failed.retain(|line| line.ends_with("failed"));
    marks::count_calls(&failed, tally);
    let lost_sync = failed.iter().any(|line| line.starts_with("sync"));
    tally.add("failed syncs", lost_sync.into());
    tally.add("unknown writes", is_unknown.into());
    // What was acknowledged is readable without a restart.
    let found = run.read_all().map_err(|e| format!("reading on: {e}"))?;
    run.model
        .clone()
        .recover(&found, End::Kill)
        .map_err(|e| format!("reading on: {e}"))?;
    let put = Op::Put(0, 0, 500, Durability::Disk);
    match run.step(&put) {
        Ok(()) if is_unknown => {
            return Err("a write is acknowledged after an unknown one".to_owned());
        }
        Ok(()) => tally.add("writes resumed", 1),
        Err(failure) => {
            clear(&failure)?;
            tally.add("writes refused until the next open", 1);
            if is_space(effect) && !is_unknown {
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
    run.step(&Op::Put(0, 1, 500, Durability::Disk))
        .map_err(|e| format!("writing after the next open: {e}"))?;
    run.step(&Op::Reopen)
        .map_err(|e| format!("second open: {e}"))
}

/// The kind of an error that somebody can act on: it names a file of the database.
///
/// # Errors
/// Why it is not such an error.
pub fn clear(failure: &Failure) -> Result<ErrorKind, String> {
    let Some(error) = failure.engine() else {
        return Err(failure.to_string());
    };
    let text = error.to_string();
    let kind = error.kind();
    let is_named = text.contains('/');
    if kind == ErrorKind::Bug || kind == ErrorKind::Restore || !is_named {
        return Err(format!("an unclear error, {kind:?}: {text}"));
    }
    Ok(kind)
}
