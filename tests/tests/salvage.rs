//! Random damage to a database, and what a salvage makes of it: every key has its last value, or the
//! report covers it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use strandline::Error;
use strandline::salvage::salvage;
use strandline_tests::plan::small_options;
use strandline_tests::run::Tally;
use strandline_tests::salvages::{round, sweep};
use strandline_tests::seed;
use strandline_wal::io::sim::SimEnv;

#[test]
fn every_key_has_its_last_value_or_is_told_as_lost() {
    let base = seed::base(11);
    let mut tally = Tally::default();
    for n in 0..seed::count(60, 2_000) {
        let seed = base + n;
        let one = round(seed).unwrap_or_else(|e| panic!("STRANDLINE_SEED={seed}: {e}"));
        tally.merge(&one);
    }
    println!("salvage: base seed {base}, {}", tally.line());
    for what in [
        "keys kept",
        "keys lost and told",
        "keys of before, told as lost records",
    ] {
        assert!(tally.count(what) > 0, "no {what} in all of the run");
    }
}

/// A salvage may die at any call: what it read is untouched, and it is made again.
#[test]
fn a_salvage_that_dies_leaves_its_source_untouched() {
    let base = seed::base(61);
    for n in 0..seed::count(1, 50) {
        let seed = base + n;
        let tally = sweep(seed).unwrap_or_else(|e| panic!("STRANDLINE_SEED={seed}: {e}"));
        println!("deaths of a salvage: seed {seed}, {}", tally.line());
    }
}

#[test]
fn what_cannot_be_salvaged_is_named_and_nothing_is_overwritten() {
    let machine = SimEnv::new(1);
    let env = machine.env();
    let run = |from: &str, to: &str| salvage(Path::new(from), Path::new(to), &env).unwrap_err();
    assert!(matches!(run("/none", "/new"), Error::NotFound { .. }));
    let db = small_options().open_with("/db", machine.env()).unwrap();
    db.keyspace("map").unwrap().put("k", "v").unwrap();
    assert!(matches!(run("/db", "/new"), Error::Locked { .. }));
    db.close().unwrap();
    drop(db);
    assert!(matches!(run("/db", "/db"), Error::Argument { .. }));
    let report = salvage(Path::new("/db"), Path::new("/new"), &env).unwrap();
    assert!(
        report.is_whole() && report.datasets[0].key_count == 1,
        "{report:?}"
    );
}
