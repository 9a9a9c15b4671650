//! Crashes that once lost or refused something, one test for each.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline::Durability::{Disk, Os};
use strandline::Options;
use strandline_tests::ops::{Crash, Op};
use strandline_tests::plan::{script, small_options};
use strandline_tests::run::{Run, machine, run};
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

/// The footer of a segment spans two sectors, and of an unsynced seal only the second one survived:
/// its trailer was intact, its sections were not. The whole segment was taken for damaged, durable
/// batches and all, and the log was refused.
#[test]
fn a_torn_footer_says_nothing_against_the_batches_before_it() {
    for seed in 0..64 {
        for pad in 0..8 {
            // Fills the segment up to where its footer crosses the end of a sector.
            let ops = vec![
                Op::Put(0, 1, 63_700 + 64 * pad, Disk),
                Op::Put(0, 2, 2_000, Os),
                crash(Damage::LoseOneSector, seed),
            ];
            let case = script(small_options(), ops);
            run(&case).unwrap_or_else(|error| panic!("seed {seed} pad {pad}: {error}"));
        }
    }
}

/// A process died between the rename of a manifest and the sync of its directory. The next one read
/// the new manifest, removed the tables that it no longer named, and the machine died: the old
/// manifest came back, its tables did not.
#[test]
fn nothing_is_removed_on_the_word_of_a_manifest_that_may_vanish() {
    let put = |key| Op::Put(0, key, 100, Os);
    for at in (0..60).step_by(2) {
        for nested in 0..60 {
            let death = Crash {
                damage: None,
                seed: nested,
                nested: vec![(nested, Some(Damage::Mixed))],
            };
            let ops = vec![
                put(1),
                Op::Flush,
                put(2),
                Op::CrashAfter(at, death),
                Op::Compact,
            ];
            let case = script(small_options(), ops);
            run(&case).unwrap_or_else(|error| panic!("{at} {nested}: {error}"));
        }
    }
}

/// Of a log with nothing durable in it the name of the first segment was lost and that of the second
/// one survived. The log was refused for its missing start, although nothing that was acknowledged as
/// durable stood there.
#[test]
fn a_lost_first_segment_without_durable_records_is_a_cut() {
    for seed in 0..64 {
        let put = |key| Op::Put(0, key, 30_000, Os);
        let options = Options {
            durability: Os,
            ..small_options()
        };
        let ops = vec![
            put(1),
            put(2),
            put(3),
            crash(Damage::LoseOneName, seed),
            put(4),
        ];
        let case = script(options, ops);
        run(&case).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// While a dataset was created, the machine died; its manifest survived and the directory of its logs
/// did not. The next open made that directory anew and never synced its name: the next power loss
/// took all logs.
#[test]
fn the_directory_of_the_logs_is_made_durable_wherever_it_is_made() {
    for at in 0..60 {
        for seed in 0..32 {
            let case = script(small_options(), vec![Op::Put(0, 1, 100, Disk)]);
            let mut run = Run::new(&case, machine(&case));
            run.machine.disk.crash_at(at);
            let started = run.start();
            if !run.machine.disk.is_dead() {
                started.unwrap();
            }
            let death = Crash {
                damage: Some(Damage::LoseOneName),
                seed,
                nested: Vec::new(),
            };
            run.crash(&death)
                .and_then(|()| run.step(&case.ops[0]))
                .and_then(|()| run.step(&crash(Damage::LoseAll, seed)))
                .unwrap_or_else(|error| panic!("call {at} seed {seed}: {error}"));
        }
    }
}

/// A compaction right after an open stored a manifest that named the new epoch, whose first batch was
/// not durable. A crash lost that batch, the next epoch began at the same sequence, and a second crash
/// left a log and a manifest that together told of two leaderships in one place: the next manifest
/// could not be read.
#[test]
fn a_manifest_names_no_epoch_whose_start_may_be_lost() {
    let put = |key| Op::Put(0, key, 100, Os);
    let options = Options {
        run_count_max: 1,
        ..small_options()
    };
    let ops = vec![
        put(1),
        Op::Flush,
        put(2),
        Op::Flush,
        Op::Reopen,
        // Stores a manifest, syncs no log.
        Op::Background(1),
        crash(Damage::LoseAll, 1),
        put(3),
        Op::Sync,
        crash(Damage::LoseAll, 1),
        Op::Flush,
        Op::Reopen,
    ];
    run(&script(options, ops)).unwrap();
}
