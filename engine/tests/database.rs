//! A database from the outside: what a user does, on a real disk.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline::{Background, Database, Durability, Error, Options, ShardRouter};

fn small() -> Options {
    Options {
        memtable_len_max: 64 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 256 << 10,
        table_len_max: 64 << 10,
        background: Background::Manual,
        ..Options::default()
    }
}

fn sharded(shards: u16) -> Options {
    Options {
        router: ShardRouter::hash(shards).unwrap(),
        ..small()
    }
}

#[test]
fn what_is_put_is_read_back_and_survives_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    for options in [
        Options::default(),
        Options {
            durability: Durability::Os,
            ..Options::default()
        },
    ] {
        let path = dir.path().join(format!("{:?}", options.durability));
        let db = options.clone().open(&path).unwrap();
        let users = db.keyspace("users").unwrap();
        users.put("ada", "1815").unwrap();
        users.put("grace", "1906").unwrap();
        users.delete("ada").unwrap();
        assert_eq!(users.get("ada").unwrap(), None);
        assert_eq!(users.get("grace").unwrap().unwrap(), "1906");
        drop((users, db));
        let db = options.open(&path).unwrap();
        let users = db.keyspace("users").unwrap();
        assert_eq!(users.get("ada").unwrap(), None);
        assert_eq!(users.get("grace").unwrap().unwrap(), "1906");
        assert_eq!(db.keyspace("users").unwrap().iter().count(), 1);
        assert_eq!(db.dataset("primary").unwrap().recovery().cuts, []);
    }
}

#[test]
fn many_writes_flush_compact_and_stay_readable_in_every_shard_count() {
    for shards in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        let db = sharded(shards).open(dir.path()).unwrap();
        let map = db.keyspace("map").unwrap();
        let value = |n: u32, round: u32| {
            let len = if n.is_multiple_of(50) { 8_000 } else { 100 };
            vec![(n ^ round) as u8; len]
        };
        for round in 0..5u32 {
            for n in 0..1_000u32 {
                map.put_with(n.to_be_bytes(), value(n, round), Durability::Os)
                    .unwrap();
            }
            db.run_background(100).unwrap();
        }
        for n in (0..1_000u32).step_by(3) {
            map.delete_with(n.to_be_bytes(), Durability::Os).unwrap();
        }
        let check = |db: &Database| {
            let map = db.keyspace("map").unwrap();
            let mut seen = 0;
            for entry in map.iter() {
                let (key, found) = entry.unwrap();
                let n = u32::from_be_bytes(key.try_into().unwrap());
                assert_ne!(n % 3, 0);
                assert_eq!(found, value(n, 4), "key {n}");
                seen += 1;
            }
            assert_eq!(seen, 666);
            let forward: Vec<_> = map
                .range(100u32.to_be_bytes()..200u32.to_be_bytes())
                .map(|e| e.unwrap().0)
                .collect();
            let mut backward: Vec<_> = map
                .range(100u32.to_be_bytes()..200u32.to_be_bytes())
                .rev()
                .map(|e| e.unwrap().0)
                .collect();
            backward.reverse();
            assert_eq!(forward, backward);
            assert_eq!(forward.len(), 67);
        };
        check(&db);
        db.flush().unwrap();
        check(&db);
        db.dataset("").unwrap().compact().unwrap();
        check(&db);
        let stats = db.dataset("").unwrap().stats();
        assert!(
            stats.flush_count > 1 && stats.compaction_count >= 1,
            "{stats:?}"
        );
        assert_eq!(stats.run_count, 1);
        drop(map);
        db.close().unwrap();
        drop(db);
        let db = sharded(shards).open(dir.path()).unwrap();
        check(&db);
        assert_eq!(
            db.dataset("").unwrap().recovery().warnings,
            Vec::<String>::new()
        );
    }
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let db = sharded(3).open(dir.path()).unwrap();
    let map = db.keyspace("map").unwrap();
    for n in 0..500u32 {
        map.put_with(n.to_be_bytes(), "old", Durability::Os)
            .unwrap();
    }
    let snapshot = db.dataset("").unwrap().snapshot();
    for n in 0..500u32 {
        map.put_with(n.to_be_bytes(), "new", Durability::Os)
            .unwrap();
    }
    db.flush().unwrap();
    db.dataset("").unwrap().compact().unwrap();
    assert!(snapshot.iter(&map).all(|entry| entry.unwrap().1 == "old"));
    assert_eq!(snapshot.iter(&map).count(), 500);
    assert!(map.iter().all(|entry| entry.unwrap().1 == "new"));
}

#[test]
fn another_layout_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(sharded(2).open(dir.path()).unwrap().keyspace("x").unwrap());
    let error = sharded(3)
        .open(dir.path())
        .and_then(|db| db.keyspace("x"))
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Mismatch {
                what: "shard count",
                ..
            }
        ),
        "{error}"
    );
    let rule = strandline::EntityRule::FirstEight;
    let options = Options {
        entity_rule: rule,
        ..sharded(2)
    };
    let error = options
        .open(dir.path())
        .and_then(|db| db.keyspace("x"))
        .unwrap_err();
    assert!(error.to_string().contains("key hash") && error.to_string().contains("first eight"));
}

#[test]
fn one_process_at_a_time_writes_and_others_read() {
    let dir = tempfile::tempdir().unwrap();
    let db = Database::open(dir.path()).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("k", "v").unwrap();
    assert!(matches!(
        Database::open(dir.path()),
        Err(Error::Locked { .. })
    ));
    let reader = Database::open_read_only(dir.path()).unwrap();
    let seen = reader.keyspace("map").unwrap();
    assert_eq!(seen.get("k").unwrap().unwrap(), "v");
    assert!(matches!(seen.put("k", "w"), Err(Error::ReadOnly { .. })));
    map.put("k", "w").unwrap();
    assert_eq!(
        seen.get("k").unwrap().unwrap(),
        "v",
        "it shows what was there when it was opened"
    );
}

#[test]
fn a_database_in_memory_works_like_any_other() {
    let db = Database::in_memory(small()).unwrap();
    let map = db.keyspace("map").unwrap();
    for n in 0..2_000u32 {
        map.put(n.to_be_bytes(), vec![7; 100]).unwrap();
    }
    assert_eq!(map.iter().count(), 2_000);
}

#[test]
fn a_checkpoint_is_a_database_of_its_own_and_both_verify() {
    let dir = tempfile::tempdir().unwrap();
    let (root, copy) = (dir.path().join("db"), dir.path().join("copy"));
    let db = sharded(2).open(&root).unwrap();
    let map = db.keyspace("map").unwrap();
    for n in 0..3_000u32 {
        map.put_with(
            n.to_be_bytes(),
            vec![n as u8; 300 + (n as usize % 7) * 1_000],
            Durability::Os,
        )
        .unwrap();
    }
    let report = db.checkpoint(&copy).unwrap();
    assert!(
        report.linked_count > 0 && report.copied_count > 0,
        "{report:?}"
    );
    assert!(matches!(db.checkpoint(&copy), Err(Error::Argument { .. })));
    // The database goes on: everything is written anew a few times, and segments are reused.
    for round in 0..4u32 {
        for n in 0..3_000u32 {
            map.put_with(n.to_be_bytes(), vec![round as u8; 1_500], Durability::Os)
                .unwrap();
        }
        db.flush().unwrap();
        db.dataset("").unwrap().compact().unwrap();
    }
    db.close().unwrap();
    let env = strandline_wal::io::Env::real();
    for root in [&root, &copy] {
        let report = strandline::verify::verify(root, &env).unwrap();
        assert_eq!(report.problems, []);
        assert!(report.file_count > 3 && report.entry_count > 0);
    }
    let copied = sharded(2).open(&copy).unwrap();
    let map = copied.keyspace("map").unwrap();
    for n in 0..3_000u32 {
        let value = map.get(n.to_be_bytes()).unwrap().unwrap();
        assert_eq!(value, vec![n as u8; 300 + (n as usize % 7) * 1_000]);
    }
    map.put("new", "value").unwrap();
}

/// A close behind a load leaves nothing that the next open would have to apply again; one behind a few
/// writes, or of a database whose owner does the background work, leaves the log to it.
#[test]
fn a_close_leaves_little_for_the_next_open_to_apply() {
    for (background, count, replayed) in [
        (Background::Thread, 2_000, false),
        (Background::Thread, 20, true),
        (Background::Manual, 2_000, true),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            background,
            durability: Durability::Os,
            settle_after: None,
            ..Options::default()
        };
        let db = options.clone().open(dir.path()).unwrap();
        let map = db.keyspace("map").unwrap();
        for n in 0..count {
            map.put(u32::to_be_bytes(n), [n as u8; 1_000]).unwrap();
        }
        db.close().unwrap();
        let db = options.open(dir.path()).unwrap();
        let batch_count = db.dataset("").unwrap().recovery().batch_count;
        assert_eq!(batch_count > 0, replayed, "{background:?} {count}");
        let map = db.keyspace("map").unwrap();
        assert_eq!(map.len().unwrap(), u64::from(count));
        assert_eq!(map.get(u32::to_be_bytes(7)).unwrap().unwrap(), [7; 1_000]);
    }
}
