//! Readers that were there before a hundred segments came and went still read right, while files are
//! used again under other names. On the real disk, where a map shows what becomes of a file.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use strandline::{Background, Database, Durability, Options, Value};
use strandline_tests::run::bytes;

const KEY_COUNT: u32 = 40;

fn options(durability: Durability) -> Options {
    Options {
        durability,
        memtable_len_max: 64 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        table_len_max: 64 << 10,
        large_value_len_min: 1 << 10,
        run_count_max: 2,
        background: Background::Manual,
        ..Options::default()
    }
}

fn key(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

/// Value `round` of a key: every third is large enough to stay in its segment.
fn value(n: u32, round: u32) -> std::sync::Arc<[u8]> {
    let len = if n.is_multiple_of(3) { 5_000 } else { 300 };
    bytes(u64::from(n) << 32 | u64::from(round), len)
}

fn write_round(db: &Database, round: u32, level: Durability) {
    let map = db.keyspace("map").unwrap();
    for n in 0..KEY_COUNT {
        map.put_with(key(n), value(n, round), level).unwrap();
        db.run_background(1).unwrap();
    }
}

fn judge(durability: Durability) {
    let dir = tempfile::tempdir().unwrap();
    let db = options(durability).open(dir.path()).unwrap();
    let map = db.keyspace("map").unwrap();
    let dataset = db.dataset("").unwrap();
    // Part of it in tables, part of it in memory.
    write_round(&db, 0, Durability::Os);
    db.flush().unwrap();
    for n in 0..KEY_COUNT / 2 {
        map.put_with(key(n), value(n, 1), Durability::Os).unwrap();
    }
    let round_of = |n: u32| u32::from(n < KEY_COUNT / 2);
    let snapshot = dataset.snapshot();
    let held: BTreeMap<u32, Value> = (0..KEY_COUNT)
        .map(|n| (n, map.get(key(n)).unwrap().unwrap()))
        .collect();
    let mut half_way = snapshot.iter(&map);
    for n in 0..KEY_COUNT / 4 {
        assert_eq!(half_way.next().unwrap().unwrap().1, value(n, round_of(n)));
    }
    let first = dataset.stats();
    let mut round = 2;
    while dataset.stats().segments_recycled + dataset.stats().segments_removed < 100 {
        write_round(&db, round, Durability::Os);
        if round % 4 == 0 {
            dataset.compact().unwrap();
        }
        round += 1;
        assert!(round < 1_000, "segments come and go");
    }
    let stats = dataset.stats();
    assert!(
        stats.segments_recycled > 20,
        "only {} segments were used again",
        stats.segments_recycled
    );
    for n in 0..KEY_COUNT {
        let expected = value(n, round_of(n));
        assert_eq!(held[&n], expected, "held value of key {n}");
        let found = snapshot.get(&map, key(n)).unwrap().unwrap();
        assert_eq!(found, expected, "key {n} of the snapshot");
        assert_eq!(map.get(key(n)).unwrap().unwrap(), value(n, round - 1));
    }
    for n in KEY_COUNT / 4..KEY_COUNT {
        let (found_key, found) = half_way.next().unwrap().unwrap();
        assert_eq!(found_key, key(n));
        assert_eq!(found, value(n, round_of(n)), "key {n} of the iterator");
    }
    assert!(half_way.next().is_none());
    let backward: Vec<_> = snapshot.iter(&map).rev().map(|e| e.unwrap()).collect();
    assert_eq!(backward.len(), KEY_COUNT as usize);
    println!(
        "readers, {durability:?}: {} segments came and went, {} were used again",
        stats.segments_removed + stats.segments_recycled - first.segments_removed,
        stats.segments_recycled
    );
}

#[test]
fn a_snapshot_outlives_a_hundred_segments_of_a_disk_log() {
    judge(Durability::Disk);
}

#[test]
fn a_snapshot_outlives_a_hundred_segments_of_an_os_log() {
    judge(Durability::Os);
}

/// While another process reads, no file is used again: it may hold any of them.
#[test]
fn a_reading_process_outlives_a_hundred_segments() {
    let dir = tempfile::tempdir().unwrap();
    let db = options(Durability::Os).open(dir.path()).unwrap();
    write_round(&db, 0, Durability::Os);
    db.flush().unwrap();
    write_round(&db, 1, Durability::Os);
    let reader = options(Durability::Os).open_read_only(dir.path()).unwrap();
    let seen = reader.keyspace("map").unwrap();
    let dataset = db.dataset("").unwrap();
    let before = dataset.stats().segments_recycled;
    let mut round = 2;
    while dataset.stats().segments_removed < 100 {
        write_round(&db, round, Durability::Os);
        if round % 4 == 0 {
            dataset.compact().unwrap();
        }
        round += 1;
        assert!(round < 1_000, "segments come and go");
    }
    assert_eq!(dataset.stats().segments_recycled, before);
    for n in 0..KEY_COUNT {
        assert_eq!(seen.get(key(n)).unwrap().unwrap(), value(n, 1), "key {n}");
    }
    assert_eq!(seen.iter().count(), KEY_COUNT as usize);
    // It lets go, and files are used again.
    drop((seen, reader));
    let mut recycled = false;
    for _ in 0..20 {
        write_round(&db, round, Durability::Os);
        dataset.compact().unwrap();
        round += 1;
        recycled |= dataset.stats().segments_recycled > before;
    }
    assert!(recycled);
}
