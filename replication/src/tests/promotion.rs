//! Who leads after whom, and what becomes of the one before.

use strandline_wal::io::sim::Damage;
use strandline_wal::{Epoch, ShardId};

use super::{S0, same_logs, stopped, write_some};
use crate::error::Error;
use crate::ids::Promise;
use crate::quorum::{Level, promises_needed};
use crate::store::{FollowerStore, LeaderStore, LogSource, Report};
use crate::testing::cluster::Cluster;
use crate::testing::node;

/// Three nodes, a leading, everything on all of them.
fn three(seed: u64) -> Cluster {
    let mut c = Cluster::new(seed, &["a", "b", "c"]).with(|s| s.level = Some(Level::Durable(1)));
    c.lead("a", 1);
    c.follow("b");
    c.follow("c");
    write_some(&mut c, "a", 30, 100);
    c.store("a").sync(S0).unwrap();
    c.run_until(5_000, |c| {
        c.is_caught_up("a", "b") && c.is_caught_up("a", "c")
    });
    c
}

#[test]
fn the_next_leader_fetches_the_longest_log_before_it_opens_its_epoch() {
    let mut c = three(30);
    c.network.part("a", "c");
    for n in 0..20u8 {
        c.write("a", 0, &[n; 400]).unwrap();
    }
    let seq = c.store("a").log(S0).last_seq();
    c.run_until(5_000, |c| c.is_confirmed("a", 0, Level::Durable(1), seq));
    c.stop("a");
    c.network.heal();
    assert!(
        c.store("c").log(S0).last_seq() < seq,
        "c is behind and wants to lead"
    );
    let epoch = c.promote("c", promises_needed(3, 1)).unwrap();
    assert_eq!(epoch, Epoch(2));
    assert!(
        c.store("c").log(S0).last_seq() > seq,
        "everything confirmed and the epoch's start"
    );
    c.run_until(20_000, |c| c.is_caught_up("c", "b"));
    assert!(same_logs(&c, "c", "b"));
}

#[test]
fn a_deposed_leader_returns_and_is_cut_and_its_tail_is_saved() {
    let mut c = three(31);
    c.network.part("a", "b");
    c.network.part("a", "c");
    for n in 0..20u8 {
        c.write("a", 0, &[n; 400]).unwrap();
    }
    let seq = c.store("a").sync(S0).unwrap();
    c.run(100);
    c.promote("b", 2).unwrap();
    write_some(&mut c, "b", 5, 50);
    c.run_until(20_000, |c| c.is_caught_up("b", "c"));
    assert_eq!(c.store("a").fenced_by(), None, "it cannot know yet");
    assert!(
        !c.is_confirmed("a", 0, Level::Received(1), seq),
        "and it acknowledges nothing"
    );
    c.stop("a");
    c.network.heal();
    c.follow("a");
    c.run_until(20_000, |c| c.is_caught_up("b", "a"));
    assert!(same_logs(&c, "b", "a"));
    assert!(c.store("a").said(|r| matches!(r, Report::Cut { from, to }
        if from.position.seq == seq && to.position.seq == 31)));
    let files = c.nodes["a"].sim.disk.files();
    assert!(
        files
            .keys()
            .any(|path| path.to_string_lossy().contains("divergent"))
    );
}

#[test]
fn a_leader_that_meets_a_later_promise_steps_down_at_once() {
    let mut c = three(32);
    c.network.part("a", "b");
    c.network.part("a", "c");
    c.run(20_000);
    c.promote("b", 2).unwrap();
    c.run_until(20_000, |c| c.is_caught_up("b", "c"));
    // The old leader is still up. A follower of the new one loses it and asks the old one again.
    c.network.heal();
    c.network.part("b", "c");
    c.run_until(60_000, |c| c.store("a").fenced_by().is_some());
    assert_eq!(c.store("a").fenced_by(), Some(Epoch(2)));
    assert_eq!(c.write("a", 0, b"too late"), None);
}

#[test]
fn a_candidate_that_asks_a_leader_deposes_it() {
    let mut c = three(33);
    c.campaign("b", 3);
    c.run_until(20_000, |c| c.outcome("b").is_some());
    assert_eq!(c.outcome("b").unwrap().unwrap(), Epoch(2));
    assert_eq!(c.store("a").fenced_by(), Some(Epoch(2)));
    assert_eq!(
        c.store("a").promised(),
        Promise {
            epoch: Epoch(2),
            to: node("b")
        }
    );
}

#[test]
fn a_promise_fences_a_leader_without_followers_too() {
    let mut c = Cluster::new(38, &["a", "b"]);
    c.lead("a", 1);
    c.follow("b");
    c.campaign("b", 2);
    c.run_until(20_000, |c| c.outcome("b").is_some());
    assert_eq!(c.store("a").fenced_by(), Some(Epoch(2)));
    assert_eq!(c.write("a", 0, b"too late"), None);
}

#[test]
fn what_a_promise_tells_is_durable() {
    let mut c = Cluster::new(39, &["a", "b", "c"]);
    c.wants.durable = false;
    c.lead("a", 1);
    c.follow("b");
    c.follow("c");
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    c.network.part("a", "c");
    let seq = c.write("a", 0, b"not synced anywhere").unwrap();
    c.run(3);
    assert!(
        c.store("b").log(S0).synced_seq() < seq,
        "nobody asked for a sync"
    );
    c.campaign("c", 2);
    c.run_until(90, |c| c.store("b").promised().epoch == Epoch(2));
    assert!(c.store("b").log(S0).last_seq() >= seq);
    c.crash("b", Damage::LoseAll);
    c.follow("b");
    assert!(
        c.store("b").log(S0).last_seq() >= seq,
        "it told the candidate of it"
    );
}

/// Raft, figure 8: a record of an old epoch is on enough disks, and a log with a later epoch that
/// lacks it can still win. So it is not confirmed until a record of the present epoch is.
#[test]
fn an_old_record_is_not_confirmed_before_the_new_epoch_is() {
    let mut c = three(40);
    c.network.part("a", "b");
    c.network.part("a", "c");
    let old = c.write("a", 0, b"on one disk").unwrap();
    c.store("a").sync(S0).unwrap();
    c.stop("a");
    // b wins an epoch and starts it on its own disk alone.
    c.campaign("b", 2);
    c.run_until(20_000, |c| c.outcome("b").is_some());
    c.stop("b");
    c.lead("b", 2);
    c.stop("b");
    // a wins the next one and brings the old record to c, but not yet the start of its epoch.
    c.network.heal();
    c.follow("a");
    c.stop("c");
    c.follow("c");
    c.campaign("a", 2);
    c.run_until(20_000, |c| c.outcome("a").is_some());
    let epoch = c.outcome("a").unwrap().unwrap();
    c.stop("a");
    c.lead("a", epoch.0);
    // Little room, so that the bytes come in small pieces.
    *c.store("c").room.lock() = 96;
    c.run_until(5_000, |c| c.store("c").log(S0).last_seq() >= old);
    assert_eq!(c.store("c").log(S0).last_seq(), old, "the two come apart");
    c.network.cut("a", "c");
    c.run(300);
    assert_eq!(
        c.store("c").log(S0).synced_seq(),
        old,
        "it is on two disks of three"
    );
    assert!(!c.is_confirmed("a", 0, Level::Durable(1), 1));
    assert_eq!(c.store("a").marks(S0).committed, 0);
    c.network.heal();
    c.run_until(20_000, |c| {
        c.is_confirmed("a", 0, Level::Durable(1), old + 1)
    });
}

#[test]
fn too_few_promises_promote_nobody() {
    let mut c = three(34);
    c.stop("a");
    c.stop("c");
    let refused = c.promote("b", 2).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::TooFewPromises {
                needed: 2,
                found: 1
            }
        ),
        "{refused}"
    );
    c.stop("b");
    c.follow("b");
    c.follow("c");
    assert!(c.promote("b", 2).is_ok(), "with one more it works");
}

#[test]
fn two_candidates_for_one_epoch_do_not_both_win() {
    let mut c = three(35);
    c.stop("a");
    c.campaign("b", 2);
    c.campaign("c", 2);
    c.run_until(30_000, |c| {
        c.outcome("b").is_some() && c.outcome("c").is_some()
    });
    let won: Vec<_> = ["b", "c"]
        .iter()
        .filter_map(|n| c.outcome(n).unwrap().ok())
        .collect();
    assert!(
        won.len() < 2 || won[0] != won[1],
        "one epoch, one leader: {won:?}"
    );
}

#[test]
fn a_promise_survives_a_crash() {
    let mut c = three(36);
    c.campaign("b", 3);
    c.run_until(20_000, |c| c.outcome("b").is_some());
    c.crash("c", Damage::LoseAll);
    c.follow("c");
    assert_eq!(
        c.store("c").promised(),
        Promise {
            epoch: Epoch(2),
            to: node("b")
        }
    );
    // The old leader, if it did not know better, would be refused by it.
    c.stop("b");
    c.stop("a");
    let before = c.store("c").log(S0).last_seq();
    c.lead("a", 3);
    c.run_until(20_000, |c| c.store("c").promised().epoch == Epoch(3));
    assert!(c.store("c").log(S0).last_seq() >= before);
}

#[test]
fn several_histories_in_a_row_are_cut_to_what_is_common() {
    let mut c = Cluster::new(37, &["a", "b", "c"]).with(|setup| setup.shard_count = 2);
    c.lead("a", 1);
    c.follow("b");
    c.follow("c");
    write_some(&mut c, "a", 10, 100);
    c.write("a", 1, b"x");
    c.run_until(5_000, |c| {
        c.is_caught_up("a", "b") && c.is_caught_up("a", "c")
    });
    // Each leads alone for a while, in turn, without the others knowing of it.
    c.stop("a");
    c.stop("b");
    c.stop("c");
    for (name, epochs) in [("a", [2, 6]), ("b", [3, 7]), ("c", [4, 8])] {
        for epoch in epochs {
            c.lead(name, epoch);
            for n in 0..epoch {
                c.write(name, (n % 2) as u16, &[epoch as u8; 99]).unwrap();
            }
            c.store(name).sync(S0).unwrap();
            c.store(name).sync(ShardId(1)).unwrap();
            c.stop(name);
        }
    }
    c.lead("b", 9);
    c.follow("a");
    c.follow("c");
    // Both promised later epochs to nobody else, so they follow; their own leaderships are cut away.
    c.run_until(30_000, |c| {
        c.is_caught_up("b", "a") && c.is_caught_up("b", "c")
    });
    assert!(same_logs(&c, "b", "a") && same_logs(&c, "b", "c"));
    assert!(stopped(&c, "a").is_none() && stopped(&c, "c").is_none());
    assert!(c.store("a").said(|r| matches!(r, Report::Cut { .. })));
    assert_eq!(c.store("a").applied(S0), c.store("b").log(S0).last_seq());
}
