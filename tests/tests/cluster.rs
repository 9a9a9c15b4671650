//! Seeds of a simulated cluster: partitions, crashes, loss, promotions, and what must hold after.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline_tests::cluster::{Cluster, Counters, Profile};
use strandline_tests::{rejoin, seed};

const ACTION_COUNT: usize = 250;

fn seeds() -> (u64, u64) {
    let first = std::env::var("STRANDLINE_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let count = std::env::var("STRANDLINE_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok());
    match (first, count) {
        (Some(first), None) => (first, 1),
        (first, count) => {
            let ordinary = if seed::is_long() { 2_000 } else { 500 };
            (first.unwrap_or(0), count.unwrap_or(ordinary))
        }
    }
}

/// A seed that failed once, and what it said then.
fn passes(seed: u64) {
    Cluster::new(seed, Profile::Plain).check(ACTION_COUNT);
}

/// As [`passes`], for seeds that failed since there are more faults than crashes.
fn passes_fully(seed: u64) {
    Cluster::new(seed, Profile::Full).check(ACTION_COUNT);
}

/// Two nodes were promoted by force out of sight of each other and both claimed epoch 1003. Candidates
/// took the longest log shard by shard, so one shard of one claim and two of the other: a history that
/// nobody had, and that nobody could fetch, because the ends of both lay in tables already.
#[test]
fn two_claims_to_one_epoch_do_not_leave_everyone_unelectable() {
    passes(1314);
}

/// A follower came back with its memtables full of records that it did not know to be committed, far
/// behind its leader. It showed nothing before it had everything, and took nothing before it had
/// flushed; nor did it take the bundle that would have replaced all of it.
#[test]
fn a_follower_with_full_memtables_still_catches_up() {
    passes(1571);
}

/// A node that was out of reach had promised the epoch to a candidate that gave up; another won that
/// epoch without it. Healed, it refused the winner until somebody was promoted once more.
#[test]
fn a_node_that_promised_the_epoch_to_a_loser_follows_the_winner() {
    passes(411);
    passes(448);
}

/// A node led for a moment, which ended its segment where the next leader's log went on in the same
/// one. Cut back to that place it agreed with the leader and refused its bytes, over and over.
#[test]
fn a_node_that_ended_a_segment_too_early_takes_a_bundle() {
    passes(2601);
}

/// A deposed leader cut its tail, and its disk was full, or its machine died, before the durable mark of
/// what it had cut was taken back: its log ended before the mark, and it was never opened again.
#[test]
fn a_deposed_leader_survives_its_death_at_every_call_of_the_cut() {
    passes_fully(4882);
    let base = seed::base(31);
    for n in 0..seed::count(1, 20) {
        let seed = base.wrapping_add(n);
        match rejoin::sweep(seed) {
            Ok(tally) => println!("deposed leader: seed {seed}, {}", tally.line()),
            Err(error) => panic!("{}\ndeposed leader: {error}", seed::replay(seed)),
        }
    }
}

/// A wiped node was on its way back: it had taken over the history of its leader, and few of its records.
/// It promised an epoch to a node that lacked what the wiped one had once confirmed; the two elected it,
/// and acknowledged records were cut from the leader that came back. A node that joins now promises
/// nothing before it has what its leader had when it came.
#[test]
fn a_node_that_joins_does_not_vote() {
    passes_fully(23_261);
}

/// A follower needed a bundle while its leader's disk was full. It was told that the log is pruned,
/// stopped, and stayed stopped when there was room again.
#[test]
fn a_follower_gets_its_bundle_once_its_leader_has_room() {
    passes_fully(660);
    passes_fully(2035);
}

/// A follower's disk was full while its dataset was reopened. The dataset stayed closed, and to follow
/// again did not open it.
#[test]
fn a_follower_whose_reopen_failed_follows_again() {
    passes_fully(11);
    passes_fully(110);
}

/// Nodes that were away take long pieces, which go to their logs by a call each and are synced beside
/// everything else, and crash, are wiped and promoted amid them.
#[test]
fn nodes_far_behind_lose_nothing() {
    let (first, count) = seeds();
    let count = count.div_ceil(8);
    let mut all = Counters::default();
    for seed in first..first + count {
        let outcome = Cluster::new(seed, Profile::Behind).check(ACTION_COUNT);
        all.merge(&outcome.counters);
        if seed % 50 == 0 {
            let again = Cluster::new(seed, Profile::Behind).check(ACTION_COUNT);
            assert_eq!(again, outcome, "seed {seed} is not deterministic");
        }
    }
    println!(
        "{count} seeds of nodes far behind from {first}: {:#?}",
        all.counts
    );
    if count >= 50 {
        for name in [
            "long pieces",
            "crashes after long pieces",
            "promotions by promises",
            "tails cut",
            "wiped nodes whole again",
        ] {
            let n = all.counts.get(name).copied().unwrap_or_default();
            assert!(n > 0, "{name} never happened in {count} seeds");
        }
    }
}

/// A coordinator's record says who leads, and nobody else does: leaders crash, are paused and cut off, and
/// others take over by themselves, while the coordinator fails and answers late.
#[test]
fn no_election_loses_what_was_acknowledged() {
    let (first, count) = seeds();
    let mut all = Counters::default();
    for seed in first..first + count {
        let outcome = Cluster::new(seed, Profile::Elected).check(ACTION_COUNT);
        all.merge(&outcome.counters);
        if seed % 50 == 0 {
            let again = Cluster::new(seed, Profile::Elected).check(ACTION_COUNT);
            assert_eq!(again, outcome, "seed {seed} is not deterministic");
        }
    }
    println!(
        "{count} seeds of elected leaders from {first}: {:#?}",
        all.counts
    );
    if count >= 100 {
        for name in [
            "acked on a follower",
            "elections",
            "leaders replaced",
            "members dropped",
            "members taken in",
            "nodes without a coordinator",
            "leader crashes",
            "paused leaders",
            "tails cut",
            "wiped nodes whole again",
            "full disks of leaders",
            "register reads confirmed",
            "histories judged",
        ] {
            let n = all.counts.get(name).copied().unwrap_or_default();
            assert!(n > 0, "{name} never happened in {count} seeds");
        }
    }
}

#[test]
fn no_seed_loses_what_was_acknowledged() {
    let (first, count) = seeds();
    let mut all = Counters::default();
    for seed in first..first + count {
        let outcome = Cluster::new(seed, Profile::Full).check(ACTION_COUNT);
        all.merge(&outcome.counters);
        if seed % 50 == 0 {
            let again = Cluster::new(seed, Profile::Full).check(ACTION_COUNT);
            assert_eq!(again, outcome, "seed {seed} is not deterministic");
        }
    }
    println!("{count} seeds of 3 nodes from {first}: {:#?}", all.counts);
    if count >= 100 {
        for name in Counters::REQUIRED {
            let n = all.counts.get(name).copied().unwrap_or_default();
            assert!(n > 0, "{name} never happened in {count} seeds");
        }
    }
}
