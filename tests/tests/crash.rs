//! Deaths at every call of reference workloads, with every damage that the crash model knows.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline_tests::sweep::{Depth, sweep};
use strandline_tests::{seed, workload};

/// Sweeps a workload, which must do the named things, or its sweep proves little.
fn judge(name: &str, reaches: &[&str]) {
    let depth = match seed::is_long() {
        true => Depth {
            seed_count: 16,
            nested_one_in: 4,
            nested_count: 8,
        },
        false => Depth {
            seed_count: 1,
            nested_one_in: 12,
            nested_count: 3,
        },
    };
    let base = seed::base(7);
    match sweep(&workload::named(name), base, depth) {
        Ok(tally) => {
            println!("crash sweep, {name}: seed {base}, {}", tally.line());
            for what in reaches {
                assert!(tally.count(what) > 0, "{name}: no {what}");
            }
            for what in [
                "unsynced commits kept",
                "unsynced commits lost",
                "nested recoveries",
            ] {
                assert!(tally.count(what) > 0, "{name}: no {what}");
            }
        }
        Err(error) => panic!("STRANDLINE_SEED={base}\ncrash sweep, {name}: {error}"),
    }
}

#[test]
fn rolls_flushes_and_compactions_survive() {
    judge(
        "roll, flush, compact",
        &["flushes", "compactions", "segments recycled", "cuts"],
    );
}

#[test]
fn batches_across_shards_survive_whole() {
    judge("cross-shard batches", &["flushes", "cuts"]);
}

#[test]
fn an_unsynced_window_over_two_segments_survives_as_a_prefix() {
    judge("os window over two segments", &["cuts"]);
    judge("os without images", &["cuts"]);
}

#[test]
fn large_values_survive_their_collection() {
    judge(
        "large values and their collection",
        &[
            "flushes",
            "compactions",
            "values moved",
            "segments recycled",
        ],
    );
}

#[test]
fn several_lives_with_marks_survive() {
    judge("reopens and marks", &["reopens"]);
}

#[test]
fn four_shards_by_ranges_survive() {
    judge("four ranges", &["flushes", "compactions"]);
}

#[test]
fn a_checkpoint_is_there_whole_or_not_at_all() {
    judge(
        "checkpoint",
        &["checkpoints", "compactions", "flushes", "segments removed"],
    );
}

#[test]
fn snapshots_and_many_small_tables_survive() {
    judge(
        "snapshots over compactions",
        &["flushes", "compactions", "reopens"],
    );
    judge(
        "many small tables",
        &["flushes", "compactions", "merges by pieces", "cuts"],
    );
}

#[test]
fn a_log_that_begins_small_again_survives() {
    judge(
        "left alone",
        &["flushes", "segments removed", "reopens", "cuts"],
    );
}

#[test]
fn deletions_stay_deletions() {
    judge("deletes and empty values", &["flushes", "compactions"]);
}

#[test]
fn a_batch_larger_than_a_segment_survives_whole() {
    judge("batches larger than a segment", &["flushes", "cuts"]);
}

#[test]
fn numbers_past_two_to_the_32_survive() {
    judge(
        "numbers past 2^32",
        &[
            "segments past 2^32",
            "flushed sequences past 2^32",
            "tables past 2^32",
            "manifests past 2^32",
            "times past 2^32",
            "compactions",
            "segments recycled",
        ],
    );
}
