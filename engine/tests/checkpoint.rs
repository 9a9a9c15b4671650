//! A checkpoint shares files with the database that it was made of: neither may harm the other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use strandline::{Background, Database, EntityRule, Options, ShardId, ShardRange, ShardRouter};

/// Keys below `m` are in the first shard.
fn options() -> Options {
    let middle = u64::from(b'm') << 56;
    let range = |first, last, shard| ShardRange {
        first,
        last,
        shard: ShardId(shard),
    };
    let ranges = vec![range(0, middle - 1, 0), range(middle, u64::MAX, 1)];
    Options {
        router: ShardRouter::ranges(ranges).unwrap(),
        entity_rule: EntityRule::FirstEight,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        background: Background::Manual,
        ..Options::default()
    }
}

fn segments(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let region = root.join("primary/r00000");
    let paths = std::fs::read_dir(region)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.to_string_lossy().ends_with(".seg"))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

fn write(db: &Database, prefix: &str, count: usize) {
    let map = db.keyspace("map").unwrap();
    for n in 0..count {
        map.put(format!("{prefix}{n:03}"), [7; 1_000]).unwrap();
    }
}

/// The logs of a checkpoint are copied one after another while writers go on, so one may hold batches
/// whose predecessors in another are missing; opening the checkpoint cuts them. It cut them in the
/// linked file, which is the database's too: that lost acknowledged writes and refused its next open.
#[test]
fn opening_a_checkpoint_cuts_nothing_of_the_database_it_was_made_of() {
    let dir = tempfile::tempdir().unwrap();
    let (root, copy) = (dir.path().join("db"), dir.path().join("copy"));
    let db = options().open(&root).unwrap();
    write(&db, "a", 100);
    write(&db, "z", 100);
    db.checkpoint(&copy).unwrap();
    let before = segments(&root);
    // As if the log of the first shard had been copied before its last segment began.
    let last_of_first = |path: &&PathBuf| path.to_string_lossy().contains("wal-0");
    let copied = segments(&copy);
    std::fs::remove_file(copied.keys().rfind(last_of_first).unwrap()).unwrap();
    std::fs::remove_file(copy.join("primary/r00000/durable")).unwrap();

    let opened = options().open(&copy).unwrap();
    let report = opened.dataset("").unwrap().recovery();
    assert_eq!(report.cuts.len(), 1, "{report:?}");
    assert!(report.cuts[0].at > 0 && copied.contains_key(&report.cuts[0].path));
    let found = opened.keyspace("map").unwrap().iter().count();
    assert!((50..200).contains(&found), "{found} keys");
    opened.close().unwrap();
    assert!(
        segments(&root) == before,
        "the database's files are as they were"
    );

    // Both go on by themselves.
    db.close().unwrap();
    for (root, count) in [(&root, 200), (&copy, found)] {
        let db = options().open(root).unwrap();
        assert_eq!(db.dataset("").unwrap().recovery().cuts, []);
        assert_eq!(db.keyspace("map").unwrap().iter().count(), count);
        db.close().unwrap();
    }
}

/// A crash while a shared file is replaced leaves its copy in the making behind.
#[test]
fn what_a_crash_left_of_a_replaced_segment_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let db = options().open(dir.path()).unwrap();
    write(&db, "a", 10);
    db.close().unwrap();
    let region = dir.path().join("primary/r00000");
    let left = region.join("wal-00000000000000000001.seg.tmp");
    let foreign = region.join("notes.seg.tmp");
    std::fs::write(&left, "half").unwrap();
    std::fs::write(&foreign, "mine").unwrap();
    let db = options().open(dir.path()).unwrap();
    assert!(!left.exists() && foreign.exists());
    assert_eq!(db.keyspace("map").unwrap().iter().count(), 10);
    db.close().unwrap();
}
