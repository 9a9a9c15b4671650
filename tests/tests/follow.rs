//! A follower that dies at every call of its disk keeps what it acknowledged and catches up.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline_tests::run::Tally;
use strandline_tests::{follow, seed};

#[test]
fn a_follower_survives_its_death_at_every_call() {
    let base = seed::base(21);
    let mut tally = Tally::default();
    for n in 0..seed::count(4, 100) {
        let seed = base.wrapping_add(n);
        match follow::sweep(seed) {
            Ok(one) => tally.merge(&one),
            Err(error) => panic!("{}\nfollower sweep: {error}", seed::replay(seed)),
        }
    }
    println!("follower sweep: base seed {base}, {}", tally.line());
    for what in ["follower's flushes", "records confirmed before"] {
        assert!(tally.count(what) > 0, "no {what}");
    }
}
