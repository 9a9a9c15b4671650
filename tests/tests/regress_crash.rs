//! Crashes that once lost or refused something, one test for each.

use strandline::Durability::{Disk, Os};
use strandline::Options;
use strandline_tests::ops::{Crash, Op};
use strandline_tests::plan::{script, small_options};
use strandline_tests::run::run;
use strandline_wal::io::sim::Damage;

const KILL: Op = Op::Crash(Crash {
    damage: None,
    seed: 0,
    nested: Vec::new(),
});

fn crash(damage: Damage, seed: u64) -> Op {
    Op::Crash(Crash {
        damage: Some(damage),
        seed,
        nested: Vec::new(),
    })
}

/// The directory of a new database was created and never synced into the one above: a power loss
/// after acknowledged writes took the whole database.
#[test]
fn a_new_database_keeps_its_own_name() {
    for damage in Damage::ALL {
        for seed in 0..8 {
            let ops = vec![Op::Put(0, 0, 100, Disk), crash(damage, seed)];
            let case = script(small_options(), ops);
            run(&case).unwrap_or_else(|error| panic!("{damage:?} {seed}: {error}"));
        }
    }
}

/// A segment was sealed when the log rolled and not synced, because its batches were acknowledged at
/// `Os`; the process died, and the next one took everything that it had read for durable without
/// syncing that segment. A power loss then tore what two opens had shown, and the log was refused.
#[test]
fn a_segment_sealed_by_a_dead_process_is_made_durable() {
    for damage in Damage::ALL {
        for seed in 0..8 {
            let put = |key| Op::Put(0, key, 40_000, Os);
            let options = Options {
                durability: Os,
                ..small_options()
            };
            let ops = vec![put(1), put(2), put(3), KILL, crash(damage, seed)];
            let case = script(options, ops);
            run(&case).unwrap_or_else(|error| panic!("{damage:?} {seed}: {error}"));
        }
    }
}

/// Compaction dropped the last flushed segment of a log while the one behind it, which an open had
/// begun with its epoch, was only in memory. A crash then left a log without any segment, which was
/// refused, and so was a reader beside the writer.
#[test]
fn a_log_keeps_a_segment_until_the_next_one_is_durable() {
    for damage in Damage::ALL {
        let put = |key| Op::Put(0, key, 1_000, Disk);
        let ops = vec![
            put(1),
            Op::Flush,
            put(2),
            Op::Flush,
            Op::Reopen,
            Op::Background(3),
            Op::Reader,
            crash(damage, 1),
        ];
        let options = Options {
            run_count_max: 1,
            ..small_options()
        };
        let case = script(options, ops);
        run(&case).unwrap_or_else(|error| panic!("{damage:?}: {error}"));
    }
}
