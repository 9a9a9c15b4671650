//! Reference workloads: short scripts that each reach a part of the engine where crashes hurt.

use strandline::Durability::{self, Disk, Os};
use strandline::{EntityRule, Options, ShardRouter};

use crate::ops::Op;
use crate::plan::{Case, ranges, script, small_options};
use crate::seed::Rng;

/// Every workload, by name.
pub fn all() -> Vec<(&'static str, Case)> {
    vec![
        ("roll, flush, compact", roll_flush_compact()),
        ("cross-shard batches", cross_shard_batches()),
        ("os window over two segments", os_window()),
        ("large values and their collection", large_values()),
        ("reopens and marks", reopens_and_marks()),
        ("four ranges", four_ranges()),
        ("os without images", os_without_images()),
        ("checkpoint", checkpoint()),
        ("snapshots over compactions", snapshots()),
        ("many small tables", small_tables()),
        ("deletes and empty values", deletes()),
        ("batches larger than a segment", large_batches()),
        ("numbers past 2^32", past_two_to_the_32()),
        ("left alone", left_alone()),
    ]
}

/// The workload of a name.
///
/// # Panics
/// Where there is none.
pub fn named(name: &str) -> Case {
    let found = all().into_iter().find(|(other, _)| *other == name);
    found.expect("a workload of this name").1
}

fn put(key: usize, len: usize, level: Durability) -> Op {
    Op::Put(key % 2, key % 10, len, level)
}

/// The log rolls, memtables become tables, tables become one, segments are dropped and used again.
fn roll_flush_compact() -> Case {
    let mut ops = Vec::new();
    for n in 0..14 {
        ops.push(put(n, 9_000, if n % 3 == 0 { Disk } else { Os }));
        if n % 5 == 4 {
            ops.push(Op::Flush);
        }
    }
    ops.push(Op::Delete(0, 2, Disk));
    ops.push(Op::Compact);
    for n in 0..9 {
        ops.push(put(n, 9_000, Os));
    }
    ops.extend([Op::Sync, Op::Flush, put(1, 10, Disk)]);
    let options = Options {
        large_value_len_min: 16 << 10,
        ..small_options()
    };
    script(options, ops)
}

/// The same, from a little below 2^32 to a little above it in every number.
fn past_two_to_the_32() -> Case {
    let mut case = roll_flush_compact();
    case.ops.insert(8, Op::Advance(2));
    Case {
        is_high: true,
        ..case
    }
}

/// Batches over four shards and both keyspaces, some durable, some not.
fn cross_shard_batches() -> Case {
    let mut ops = Vec::new();
    for n in 0..8 {
        let change = |k: usize| (k % 2, (n + k) % 10, (k % 4 != 3).then_some(100 * k + n));
        ops.push(Op::Batch(
            (0..6).map(change).collect(),
            [Os, Os, Disk][n % 3],
        ));
        ops.push(put(n + 3, 50, Os));
        if n == 4 {
            ops.push(Op::Flush);
        }
    }
    ops.push(Op::Batch(
        vec![(0, 1, Some(20_000)), (1, 2, Some(30_000))],
        Os,
    ));
    ops.push(Op::Batch(
        vec![(0, 3, Some(20_000)), (1, 4, Some(30_000))],
        Os,
    ));
    let options = Options {
        router: ShardRouter::hash(4).unwrap(),
        ..small_options()
    };
    script(options, ops)
}

/// A log that is only handed to the operating system: what is unsynced spans two segments.
fn os_window() -> Case {
    let mut ops: Vec<Op> = (0..5).map(|n| put(n, 15_000, Os)).collect();
    ops.push(Op::Sync);
    ops.extend((0..9).map(|n| put(n, 14_000, Os)));
    let options = Options {
        durability: Os,
        ..small_options()
    };
    script(options, ops)
}

fn os_without_images() -> Case {
    Case {
        maps: false,
        ..os_window()
    }
}

/// Values that stay in their segments, are overwritten, and are moved out of mostly dead ones.
fn large_values() -> Case {
    let mut ops: Vec<Op> = (0..5).map(|n| put(n, 12_000, Os)).collect();
    ops.push(Op::Flush);
    // Most of the first segment dies, and two compactions later its survivors move.
    ops.extend([0, 1, 2, 5, 6].map(|n| put(n, 12_500, Os)));
    ops.extend([Op::Flush, put(7, 12_000, Disk), Op::Compact]);
    ops.extend([put(8, 15_000, Os), Op::Compact]);
    ops.extend((0..9).map(|n| put(n, 15_000, Os)));
    ops.extend([
        Op::Flush,
        Op::Compact,
        put(3, 15_000, Os),
        put(4, 40_000, Disk),
    ]);
    script(small_options(), ops)
}

/// A checkpoint of tables, sealed segments and growing ones, while the database goes on to drop and
/// to use again what it was made of.
fn checkpoint() -> Case {
    let mut ops: Vec<Op> = (0..7).map(|n| put(n, 12_000, Os)).collect();
    ops.extend([Op::Flush, put(0, 9_000, Os), put(1, 70, Disk)]);
    ops.extend([put(2, 9_000, Os), Op::Checkpoint]);
    // Nothing in the checkpoint's segments stays alive; their files must not be used again.
    ops.extend((0..7).map(|n| put(n, 600, Os)));
    ops.push(Op::Compact);
    ops.extend((0..7).map(|n| put(n, 25_000, Os)));
    ops.push(put(4, 40_000, Disk));
    let options = Options { ..small_options() };
    script(options, ops)
}

/// Several lives, with time passing, so that durable marks are written between syncs.
fn reopens_and_marks() -> Case {
    let mut ops = Vec::new();
    for n in 0..4 {
        ops.extend([
            put(n, 500, Disk),
            Op::Advance(150),
            put(n + 1, 700, Disk),
            put(n + 2, 300, Os),
            Op::Reopen,
            put(n + 3, 200, Os),
        ]);
    }
    let options = Options {
        router: ShardRouter::hash(2).unwrap(),
        ..small_options()
    };
    script(options, ops)
}

/// Four shards by ranges, random sizes and levels, flushes by the way.
fn four_ranges() -> Case {
    let mut rng = Rng::new(4);
    let mut ops = Vec::new();
    for n in 0..30 {
        let level = *rng.pick(&[Disk, Os, Os]);
        ops.push(match rng.below(6) {
            0 => Op::Delete(n % 2, rng.below(10), level),
            1 => Op::Background(2),
            _ => Op::Put(n % 2, rng.below(10), rng.within(0, 9_000), level),
        });
    }
    ops.extend([Op::Flush, put(1, 3_000, Os), Op::Compact, put(2, 10, Os)]);
    let options = Options {
        router: ranges(4),
        entity_rule: EntityRule::KeyHash,
        run_count_max: 1,
        ..small_options()
    };
    script(options, ops)
}

/// Snapshots that hold what flushes and compactions would drop, and let it go.
fn snapshots() -> Case {
    let mut ops: Vec<Op> = (0..8).map(|n| put(n, 2_000, Os)).collect();
    ops.extend([Op::Snapshot, put(0, 3_000, Disk), Op::Delete(1, 1, Os)]);
    ops.extend([Op::Flush, Op::Snapshot, put(2, 9_000, Os), Op::Flush]);
    ops.extend([Op::Compact, Op::SnapshotGet(0, 0, 0), Op::Release(0)]);
    ops.extend((0..8).map(|n| put(n, 1_500, Os)));
    ops.extend([Op::Flush, Op::Compact, Op::Release(0), put(5, 40, Disk)]);
    ops.extend([Op::Reopen, Op::Compact, put(6, 40, Os)]);
    script(small_options(), ops)
}

/// Values within their tables, so that a compaction writes several, and background work in pieces.
fn small_tables() -> Case {
    let mut ops = Vec::new();
    for n in 0..24 {
        ops.push(put(n, 11_000, if n % 8 == 0 { Disk } else { Os }));
        match n % 6 {
            3 => ops.push(Op::Background(1)),
            5 => ops.push(Op::Flush),
            _ => {}
        }
    }
    ops.extend([Op::Compact, put(3, 12_000, Os), Op::Background(3)]);
    // The bottom has several tables: what is new goes there by pieces, deletions too.
    ops.extend([
        put(16, 11_500, Os),
        Op::Delete(1, 5, Os),
        put(19, 9_000, Disk),
    ]);
    ops.extend([Op::Flush, Op::Compact, put(2, 40, Disk)]);
    let options = Options {
        large_value_len_min: 64 << 10,
        run_count_max: 1,
        ..small_options()
    };
    script(options, ops)
}

/// A log that has grown, left alone: what is in memory becomes tables, the log begins small again, and goes
/// on from there, now and in another life.
fn left_alone() -> Case {
    let mut ops = Vec::new();
    for round in 0..3 {
        ops.extend((0..12).map(|n| put(n + round, 17_000, if n == 7 { Disk } else { Os })));
        ops.extend([Op::Advance(200), Op::Background(3)]);
        ops.push(put(round, 300, [Os, Disk, Os][round]));
        if round == 1 {
            ops.push(Op::Reopen);
        }
    }
    let options = Options {
        segment_len_max: 256 << 10,
        memtable_len_max: 1 << 20,
        large_value_len_min: 64 << 10,
        router: ShardRouter::hash(2).unwrap(),
        ..small_options()
    };
    script(options, ops)
}

/// Little but deletions, whose last traces a compaction drops, and values of no length.
fn deletes() -> Case {
    let mut ops = Vec::new();
    for round in 0..3 {
        ops.extend((0..10).map(|n| put(n, if n % 3 == 0 { 0 } else { 900 }, Os)));
        ops.push(Op::Flush);
        let gone = (0..10).map(|n| (n % 2, n, (n == round).then_some(0)));
        ops.push(Op::Batch(gone.collect(), [Os, Disk, Os][round]));
        ops.push(Op::Delete(round % 2, round + 5, Os));
        ops.push([Op::Flush, Op::Compact, Op::Advance(200)][round].clone());
    }
    // It was left alone: what is in memory and all runs become one.
    ops.push(Op::Background(2));
    ops.extend([Op::Compact, Op::Reopen, Op::Delete(0, 2, Disk)]);
    script(small_options(), ops)
}

/// Batches that no segment of the usual length takes, on a disk without maps.
fn large_batches() -> Case {
    let batch = |from: usize, len: usize, level| {
        let change = |n: usize| (n % 2, (from + n) % 10, Some(len + n));
        Op::Batch((0..6).map(change).collect(), level)
    };
    let mut ops = vec![put(0, 500, Os), batch(0, 16_000, Os)];
    ops.extend([put(1, 500, Disk), batch(3, 20_000, Os), Op::Flush]);
    ops.extend([batch(1, 15_000, Disk), put(2, 60, Os), batch(4, 18_000, Os)]);
    ops.extend([
        Op::Compact,
        batch(2, 12_000, Os),
        Op::Reopen,
        put(3, 70, Os),
    ]);
    let options = Options {
        router: ShardRouter::hash(2).unwrap(),
        ..small_options()
    };
    Case {
        maps: false,
        ..script(options, ops)
    }
}
