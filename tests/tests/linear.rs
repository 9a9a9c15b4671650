//! What threads see of one database has an order that explains it, and so has what a crash leaves.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline_tests::linear::threads;
use strandline_tests::run::Tally;
use strandline_tests::seed;

#[test]
fn what_threads_see_has_an_order() {
    let base = seed::base(51);
    let count = seed::count(1_500, 20_000);
    let mut tally = Tally::default();
    for n in 0..count {
        let seed = base.wrapping_add(n);
        match threads::history(seed) {
            Ok(one) => tally.merge(&one),
            // The threads of another run may meet in another order: the message has all calls.
            Err(error) => panic!("{}\nhistory of threads: {error}", seed::replay(seed)),
        }
    }
    println!("histories of threads: base seed {base}, {}", tally.line());
    if count >= 1_000 {
        for what in [
            "gets",
            "snapshots",
            "single writes",
            "batches",
            "unknown writes",
            "overlaps",
            "losses of power",
        ] {
            assert!(tally.count(what) > 0, "no {what}");
        }
    }
}
