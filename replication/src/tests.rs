//! Clusters of two and three nodes over the local network: what the protocol promises as a whole.

use strandline_wal::io::sim::Damage;
use strandline_wal::{DatasetId, Epoch, ShardId};

use crate::error::{Error, Reason};
use crate::ids::Lineage;
use crate::quorum::Level;
use crate::store::{FollowerStore, LogSource, Report};
use crate::testing::cluster::Cluster;
use crate::transport::local::Faults;

mod chaos;
mod promotion;
mod tcp;

const S0: ShardId = ShardId(0);

/// Writes `count` records of `len` bytes with a little time in between.
fn write_some(c: &mut Cluster, name: &str, count: u32, len: usize) {
    for n in 0..count {
        c.write(name, 0, &vec![n as u8; len]).expect("it leads");
        c.run(u64::from(n % 2));
    }
    c.store(name).sync(S0).unwrap();
}

fn same_logs(c: &Cluster, a: &str, b: &str) -> bool {
    let shards = c.store(a).shards();
    shards
        .into_iter()
        .all(|shard| c.store(a).image(shard) == c.store(b).image(shard))
}

/// The error that stopped a follower, if one did.
fn stopped(c: &Cluster, name: &str) -> Option<Error> {
    c.store(name)
        .reports
        .lock()
        .iter()
        .find_map(|report| match report {
            Report::Stopped { why } => Some(why.clone()),
            _ => None,
        })
}

#[test]
fn a_follower_has_the_leaders_bytes_footers_and_all() {
    let mut c = Cluster::new(1, &["a", "b"]);
    c.lead("a", 1);
    c.follow("b");
    for n in 0..400u32 {
        c.write("a", 0, &n.to_le_bytes().repeat(200)).unwrap();
        c.run(u64::from(n % 3));
    }
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    assert!(
        c.store("a").log(S0).segments().len() > 3,
        "segments were sealed on the way"
    );
    assert!(same_logs(&c, "a", "b"));
    c.run_until(1_000, |c| c.is_confirmed("a", 0, Level::Applied(1), 401));
}

#[test]
fn a_follower_that_comes_late_gets_sealed_segments_and_the_growing_tail() {
    let mut c = Cluster::new(2, &["a", "b"]).with(|setup| setup.shard_count = 3);
    c.lead("a", 1);
    for n in 0..300u32 {
        c.write("a", (n % 3) as u16, &n.to_le_bytes().repeat(250))
            .unwrap();
    }
    c.follow("b");
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    assert!(same_logs(&c, "a", "b"));
}

#[test]
fn a_batch_longer_than_a_frame_is_shipped_in_parts() {
    let mut c = Cluster::new(3, &["a", "b"]);
    c.lead("a", 1);
    c.follow("b");
    c.write("a", 0, &vec![5; 9 << 20]).unwrap();
    c.write("a", 0, b"after").unwrap();
    c.run_until(20_000, |c| c.is_caught_up("a", "b"));
    assert!(same_logs(&c, "a", "b"));
}

#[test]
fn lost_and_repeated_frames_change_nothing_in_the_end() {
    let mut c = Cluster::new(4, &["a", "b"]);
    c.network.set_faults(Faults {
        delay_ms: (1, 20),
        loss_permille: 30,
        repeat_permille: 100,
    });
    c.lead("a", 1);
    c.follow("b");
    write_some(&mut c, "a", 300, 500);
    c.run_until(120_000, |c| c.is_caught_up("a", "b"));
    assert!(same_logs(&c, "a", "b"));
    let lost = |r: &Report| {
        matches!(
            r,
            Report::Left {
                why: Error::Damaged {
                    what: "frame number",
                    ..
                },
                ..
            }
        )
    };
    assert!(c.store("b").said(lost), "at least one hole was found");
}

#[test]
fn a_partition_is_survived_and_the_rest_comes_afterwards() {
    let mut c = Cluster::new(5, &["a", "b"]);
    c.lead("a", 1);
    c.follow("b");
    write_some(&mut c, "a", 50, 100);
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    for way in 0..3 {
        match way {
            0 => c.network.part("a", "b"),
            1 => c.network.cut("a", "b"),
            _ => c.network.cut("b", "a"),
        }
        write_some(&mut c, "a", 50, 100);
        c.run(12_000);
        assert!(!c.is_confirmed("a", 0, Level::Received(1), c.store("a").log(S0).last_seq()));
        c.network.heal();
        c.run_until(10_000, |c| c.is_caught_up("a", "b"));
    }
    assert!(same_logs(&c, "a", "b"));
}

#[test]
fn durable_is_acked_only_after_a_sync() {
    let mut c = Cluster::new(6, &["a", "b"]);
    c.wants.durable = false;
    c.lead("a", 1);
    c.follow("b");
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    let seq = c.write("a", 0, b"x").unwrap();
    c.run_until(50, |c| c.is_confirmed("a", 0, Level::Received(1), seq));
    assert!(
        !c.is_confirmed("a", 0, Level::Durable(1), seq),
        "nobody waits for the disk"
    );
    assert!(c.store("b").log(S0).synced_seq() < seq);
    c.run_until(2_000, |c| c.is_confirmed("a", 0, Level::Durable(1), seq));
    assert!(c.store("b").log(S0).synced_seq() >= seq);
}

#[test]
fn a_follower_shows_only_what_is_committed() {
    let mut c = Cluster::new(7, &["a", "b", "c"]).with(|s| s.level = Some(Level::Durable(2)));
    c.lead("a", 1);
    c.follow("b");
    let seq = c.write("a", 0, b"x").unwrap();
    c.store("a").sync(S0).unwrap();
    c.run(2_000);
    assert_eq!(c.store("b").log(S0).last_seq(), seq, "it logs everything");
    assert_eq!(
        c.store("b").applied(S0),
        0,
        "two followers must have it first"
    );
    c.follow("c");
    c.run_until(5_000, |c| {
        c.store("b").applied(S0) == seq && c.store("c").applied(S0) == seq
    });
}

#[test]
fn a_crashed_follower_goes_on_where_its_disk_ends() {
    for (n, damage) in [
        Damage::LoseAll,
        Damage::KeepAll,
        Damage::Sectors,
        Damage::TornLast,
    ]
    .into_iter()
    .enumerate()
    {
        let mut c = Cluster::new(80 + n as u64, &["a", "b"]);
        c.wants.durable = n % 2 == 0;
        c.lead("a", 1);
        c.follow("b");
        for _ in 0..5 {
            write_some(&mut c, "a", 60, 700);
            c.crash("b", damage);
            c.follow("b");
        }
        c.run_until(10_000, |c| c.is_caught_up("a", "b"));
        assert!(same_logs(&c, "a", "b"), "{damage:?}");
    }
}

#[test]
fn a_segment_without_a_batch_is_not_shipped() {
    let mut c = Cluster::new(21, &["a", "b"]);
    c.lead("a", 1);
    c.follow("b");
    // Fill the first segment, so that the next record opens the second one.
    while c.store("a").log(S0).segments().len() == 1 {
        c.run_until(5_000, |c| c.is_caught_up("a", "b"));
        let room = 64 * 1024 - c.store("a").log(S0).segments()[0].data_len();
        if room < 200 {
            break;
        }
        c.write("a", 0, &vec![1; (room as usize - 150).min(4000)])
            .unwrap();
        c.store("a").sync(S0).unwrap();
    }
    let publish = c.store("a").reserve(S0);
    assert_eq!(c.store("a").log(S0).segments().len(), 2);
    c.run(50);
    assert_eq!(
        c.store("b").log(S0).segments().len(),
        1,
        "a header alone says nothing yet"
    );
    publish();
    c.store("a").sync(S0).unwrap();
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    assert!(same_logs(&c, "a", "b"));
}

#[test]
fn a_slow_store_holds_the_leader_back_and_nothing_is_lost() {
    let mut c = Cluster::new(9, &["a", "b"]);
    c.lead("a", 1);
    c.follow("b");
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    *c.store("b").room.lock() = 0;
    for n in 0..200u32 {
        c.write("a", 0, &vec![n as u8; 4000]).unwrap();
    }
    c.run(3_000);
    let stuck_at = c.store("b").log(S0).last_seq();
    assert!(stuck_at < 201, "only what was granted before came");
    *c.store("b").room.lock() = 1000;
    c.run(3_000);
    assert!(
        c.store("b").log(S0).last_seq() > stuck_at,
        "little room is room"
    );
    *c.store("b").room.lock() = u64::MAX;
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
}

#[test]
fn a_pruned_position_is_answered_with_a_bundle() {
    let mut c = Cluster::new(10, &["a", "b"]).with(|setup| setup.shard_count = 2);
    c.lead("a", 1);
    c.follow("b");
    write_some(&mut c, "a", 20, 100);
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    c.stop("b");
    write_some(&mut c, "a", 300, 1000);
    c.write("a", 1, b"the other shard");
    c.store("a").prune(S0, 1);
    c.follow("b");
    c.run_until(10_000, |c| c.is_caught_up("a", "b"));
    assert!(
        c.store("b")
            .said(|r| matches!(r, Report::BundleInstalled { .. }))
    );
    assert!(same_logs(&c, "a", "b"));
    write_some(&mut c, "a", 20, 100);
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    c.crash("b", Damage::LoseAll);
    c.follow("b");
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    assert!(same_logs(&c, "a", "b"));
}

#[test]
fn a_cut_bundle_goes_on_where_it_was_cut() {
    let mut c = Cluster::new(11, &["a", "b"]);
    c.lead("a", 1);
    write_some(&mut c, "a", 600, 4000);
    c.store("a").prune(S0, 30);
    c.network.set_faults(Faults {
        delay_ms: (5, 5),
        ..Faults::default()
    });
    c.follow("b");
    for _ in 0..3 {
        c.run(150);
        c.crash("b", Damage::KeepAll);
        c.follow("b");
    }
    c.run_until(60_000, |c| c.is_caught_up("a", "b"));
    assert!(same_logs(&c, "a", "b"));
}

#[test]
fn other_bytes_at_one_position_stop_the_follower_and_cut_nothing() {
    let mut c = Cluster::new(12, &["a", "b"]);
    c.lead("a", 1);
    c.follow("b");
    write_some(&mut c, "a", 20, 100);
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    c.stop("b");
    // The follower's last batch is written anew with other bytes, checksums and all.
    let end = c.store("a").end(S0);
    c.follow("b");
    let forged = crate::ids::ShardEnd {
        chain: end.chain ^ 1,
        ..end
    };
    let source = c.store("a").clone();
    let verdict = crate::locate::verdict(source.as_ref(), None, &forged);
    assert!(
        matches!(verdict, Err(Error::Diverged { .. })),
        "{verdict:?}"
    );
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
}

#[test]
fn a_follower_of_another_history_is_refused() {
    let mut c = Cluster::new(13, &["a", "b"]);
    c.setups.get_mut("b").unwrap().lineage = Lineage([9; 16]);
    c.lead("a", 1);
    c.follow("b");
    c.run_until(1_000, |c| stopped(c, "b").is_some());
    let why = stopped(&c, "b").unwrap();
    assert!(
        matches!(
            why,
            Error::Refused {
                reason: Reason::Lineage,
                ..
            }
        ),
        "{why}"
    );
}

#[test]
fn a_new_follower_takes_over_the_lineage() {
    let mut c = Cluster::new(14, &["a", "b"]);
    c.setups.get_mut("b").unwrap().lineage = Lineage::default();
    c.lead("a", 1);
    c.follow("b");
    write_some(&mut c, "a", 20, 100);
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    assert_eq!(c.store("b").identity().lineage, crate::testing::LINEAGE);
    c.crash("b", Damage::LoseAll);
    c.follow("b");
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
}

#[test]
fn other_shards_and_other_datasets_are_refused() {
    let mut c = Cluster::new(15, &["a", "b"]);
    c.setups.get_mut("b").unwrap().shard_count = 2;
    c.lead("a", 1);
    c.follow("b");
    c.run_until(1_000, |c| stopped(c, "b").is_some());
    assert!(matches!(
        stopped(&c, "b"),
        Some(Error::Refused {
            reason: Reason::Shards,
            ..
        })
    ));
    c.stop("b");
    let mut c = Cluster::new(16, &["a", "b"]);
    c.setups.get_mut("b").unwrap().dataset = DatasetId::new("logs").unwrap();
    c.lead("a", 1);
    c.follow("b");
    let unknown = |r: &Report| {
        matches!(
            r,
            Report::Left {
                why: Error::Refused {
                    reason: Reason::UnknownDataset,
                    ..
                },
                ..
            }
        )
    };
    c.run_until(1_000, |c| c.store("b").said(unknown));
    assert!(
        stopped(&c, "b").is_none(),
        "the dataset may be opened later"
    );
}

#[test]
fn lag_is_measured_on_the_way_and_in_applying() {
    let mut c = Cluster::new(17, &["a", "b"]);
    c.lead("a", 1);
    c.follow("b");
    write_some(&mut c, "a", 20, 100);
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    c.run(300);
    let gauges = c.nodes["a"].driver.gauges();
    let lag = gauges.dataset(&DatasetId::default());
    assert_eq!(lag.len(), 1);
    assert_eq!((lag[0].1.transport_bytes, lag[0].1.apply_ms), (0, 0));
    assert_eq!(lag[0].1.shards[&S0].transport_seqs, 0);
    c.network.part("a", "b");
    write_some(&mut c, "a", 10, 100);
    c.run(1_000);
    let lag = gauges.dataset(&DatasetId::default());
    assert_eq!(lag[0].1.shards[&S0].transport_seqs, 10);
    assert!(lag[0].1.transport_bytes >= 10 * 164, "{lag:?}");
    assert!(lag[0].1.apply_ms >= 900, "{lag:?}");
    c.run(12_000);
    let lag = gauges.dataset(&DatasetId::default());
    assert!(!lag[0].1.connected);
    assert_eq!(lag[0].1.shards[&S0].durable, 21);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut c = Cluster::new(seed, &["a", "b", "c"]);
        c.network.set_faults(Faults {
            delay_ms: (1, 9),
            loss_permille: 10,
            repeat_permille: 10,
        });
        c.lead("a", 1);
        c.follow("b");
        c.follow("c");
        write_some(&mut c, "a", 200, 300);
        c.crash("b", Damage::Sectors);
        c.follow("b");
        c.network.part("a", "c");
        c.run(500);
        c.network.heal();
        c.run_until(60_000, |c| {
            c.is_caught_up("a", "b") && c.is_caught_up("a", "c")
        });
        (c.network.trace(), c.network.delivered(), c.now_ms)
    };
    assert_eq!(trace(18), trace(18));
    assert_ne!(trace(18), trace(19));
}

#[test]
fn a_strict_follower_is_never_cut_below_what_is_committed() {
    let mut c = Cluster::new(20, &["a", "b", "c"]).with(|setup| setup.strict = true);
    c.lead("a", 1);
    c.follow("b");
    write_some(&mut c, "a", 30, 100);
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    c.stop("a");
    // Someone promotes an empty node by force.
    c.lead("c", 2);
    c.run_until(20_000, |c| stopped(c, "b").is_some());
    assert!(matches!(
        stopped(&c, "b"),
        Some(Error::BelowCommitted { committed: 31, .. })
    ));
    assert_eq!(c.store("b").log(S0).last_seq(), 31, "nothing was cut");
    assert_eq!(c.store("b").promised().epoch, Epoch(2));
}
