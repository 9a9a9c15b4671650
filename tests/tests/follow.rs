//! A follower that dies at every call of its disk keeps what it acknowledged and catches up.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline_tests::run::Tally;
use strandline_tests::{follow, rejoin, seed};

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

/// Its leader's log begins behind what it has, so it takes a bundle: the old state or the new one.
#[test]
fn a_follower_survives_its_death_at_every_call_of_a_bundle() {
    let base = seed::base(41);
    let mut tally = Tally::default();
    for n in 0..seed::count(1, 100) {
        let seed = base.wrapping_add(n);
        match follow::bundle_sweep(seed) {
            Ok(one) => tally.merge(&one),
            Err(error) => panic!("{}\nfollower sweep, bundle: {error}", seed::replay(seed)),
        }
    }
    println!("follower sweep, bundle: base seed {base}, {}", tally.line());
    assert!(tally.count("bundles") > 0, "no bundles");
}

/// Its leader wrote much before it came, so it takes long pieces, each by one call to blocks that are not
/// written yet, and they are synced beside everything else.
#[test]
fn a_follower_survives_its_death_at_every_call_of_long_pieces() {
    let base = seed::base(61);
    let mut tally = Tally::default();
    for n in 0..seed::count(1, 100) {
        let seed = base.wrapping_add(n);
        match follow::behind_sweep(seed) {
            Ok(one) => tally.merge(&one),
            Err(error) => panic!("{}\nfollower sweep, behind: {error}", seed::replay(seed)),
        }
    }
    println!("follower sweep, behind: base seed {base}, {}", tally.line());
    for what in ["long pieces", "records confirmed before"] {
        assert!(tally.count(what) > 0, "no {what}");
    }
}

/// Promoted over a leader that is cut off, with a tail of its own or without one.
#[test]
fn a_candidate_survives_its_death_at_every_call_of_its_promotion() {
    let base = seed::base(50);
    for n in 0..seed::count(2, 40) {
        let seed = base.wrapping_add(n);
        match rejoin::promotions(seed) {
            Ok(tally) => println!("promotion: seed {seed}, {}", tally.line()),
            Err(error) => panic!("{}\npromotion: {error}", seed::replay(seed)),
        }
    }
}
