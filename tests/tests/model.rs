//! Random operations on an engine over a simulated disk, held against the model, with crashes.
//!
//! An own driver and not `proptest-state-machine`: a million operations take minutes here, a case is
//! a plain list of operations that is made smaller by leaving out, and its seed is one number.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline_tests::run::Tally;
use strandline_tests::{check, plan, seed};

const OP_COUNT: usize = 200;

fn judge(name: &str, base: u64, count: u64) {
    let base = seed::base(base);
    let tally = check::cases(base, count, |seed| plan::case(seed, OP_COUNT));
    println!("{name}: base seed {base}, {}", tally.line());
    if count >= 500 {
        covers(&tally);
    }
}

/// A run that never reached these proves little.
fn covers(tally: &Tally) {
    for what in [
        "checkpoints",
        "crashes",
        "deaths within operations",
        "deaths within recoveries",
        "compactions",
        "cuts",
        "flushes",
        "kills",
        "readers",
        "reopens",
        "segments recycled",
        "segments removed",
        "snapshot reads",
        "unknown writes",
        "unsynced commits kept",
        "unsynced commits lost",
        "values moved",
    ] {
        assert!(tally.count(what) > 0, "no {what} in all of the run");
    }
}

#[test]
fn the_engine_shows_what_the_model_shows_first_half() {
    judge("model, first half", 0, seed::count(2_500, 100_000));
}

#[test]
fn the_engine_shows_what_the_model_shows_second_half() {
    if std::env::var_os("STRANDLINE_SEED").is_none() {
        judge("model, second half", 1 << 32, seed::count(2_500, 100_000));
    }
}
