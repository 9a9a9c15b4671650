//! Small losses that no sweep would tell from what may be: each test is one promise.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use strandline::verify::verify;
use strandline::{Database, Dataset, Durability, Options};
use strandline_tests::plan::small_options;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::{Damage, SimEnv};
use strandline_wal::io::{Access, write_all_at};
use strandline_wal::segment::{Footer, SegmentHeader, TRAILER_LEN};

const ROOT: &str = "/db";

fn open(machine: &SimEnv) -> Database {
    let options = Options {
        segment_len_max: 64 << 10,
        ..small_options()
    };
    options.open_with(ROOT, machine.env()).unwrap()
}

fn primary(db: &Database) -> Dataset {
    db.dataset("").unwrap()
}

fn power_loss(machine: &SimEnv) -> SimEnv {
    machine.crash(1, Damage::LoseAll)
}

fn get(db: &Database, key: &str) -> Option<Vec<u8>> {
    let map = db.keyspace("map").unwrap();
    map.get(key).unwrap().map(|value| value.to_vec())
}

#[test]
fn what_was_written_at_any_level_is_durable_once_the_database_is_closed() {
    let machine = SimEnv::new(1);
    let db = open(&machine);
    let map = db.keyspace("map").unwrap();
    map.put_with("key", "value", Durability::Os).unwrap();
    db.close().unwrap();
    assert_eq!(get(&open(&power_loss(&machine)), "key").unwrap(), b"value");
}

#[test]
fn what_was_written_at_any_level_is_durable_once_it_is_synced() {
    let machine = SimEnv::new(1);
    let db = open(&machine);
    let map = db.keyspace("map").unwrap();
    map.put_with("key", "value", Durability::Os).unwrap();
    primary(&db).sync().unwrap();
    assert_eq!(get(&open(&power_loss(&machine)), "key").unwrap(), b"value");
}

/// A reader who saw it could act on what a power loss takes back.
#[test]
fn a_write_whose_sync_failed_is_shown_to_nobody() {
    let machine = SimEnv::new(1);
    let mut env = machine.env();
    let faults = FaultDisk::new(env.disk.clone());
    env.disk = std::sync::Arc::new(faults.clone());
    let db = small_options().open_with(ROOT, env).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("key", "before").unwrap();
    faults.add(Rule::new(Effect::EIO).on(Call::Sync).path(".seg").sticky());
    map.put("key", "after").unwrap_err();
    assert_eq!(get(&db, "key").unwrap(), b"before");
    let snapshot = primary(&db).snapshot();
    assert_eq!(snapshot.get(&map, "key").unwrap().unwrap(), "before");
}

/// Tables on top of one that is left out of a compaction still hide what is in it.
#[test]
fn a_deleted_key_stays_deleted_through_partial_compactions() {
    let machine = SimEnv::new(1);
    let db = open(&machine);
    let map = db.keyspace("map").unwrap();
    for n in 0..200 {
        map.put(format!("key {n:03}"), [1; 900]).unwrap();
    }
    db.flush().unwrap();
    primary(&db).compact().unwrap();
    for round in 0..12 {
        map.delete(format!("key {round:03}")).unwrap();
        map.put(format!("other {round}"), "value").unwrap();
        db.flush().unwrap();
        db.run_background(8).unwrap();
        for n in 0..=round {
            assert_eq!(get(&db, &format!("key {n:03}")), None, "round {round}");
        }
    }
    assert!(primary(&db).stats().compaction_count > 1);
}

#[test]
fn a_compaction_that_meets_damage_fails_and_leaves_everything_as_it_was() {
    let machine = SimEnv::new(1);
    let db = open(&machine);
    let map = db.keyspace("map").unwrap();
    for n in 0..100u8 {
        map.put([n], [n; 500]).unwrap();
        if n % 50 == 49 {
            db.flush().unwrap();
        }
    }
    drop(map);
    db.close().unwrap();
    let files = machine.disk.files();
    let table = files
        .keys()
        .find(|path| path.extension().is_some_and(|e| e == "tbl"))
        .unwrap();
    machine.disk.rot(table, 3_000, 1).unwrap();
    let db = open(&machine);
    let tables = || {
        let mut files = machine.disk.files();
        files.retain(|path, _| path.extension().is_some_and(|e| e == "tbl"));
        files
    };
    let before = tables();
    let error = primary(&db).compact().unwrap_err();
    assert!(error.is_corruption(), "{error}");
    assert!(tables() == before, "other tables");
}

/// A database whose tables point to large values in sealed segments, and those segments.
fn large_values(machine: &SimEnv) -> Vec<(PathBuf, Vec<u8>)> {
    let db = open(machine);
    let map = db.keyspace("map").unwrap();
    for n in 0..12u8 {
        map.put([n], vec![n; 12_000]).unwrap();
    }
    db.flush().unwrap();
    map.put("last", "value").unwrap();
    db.close().unwrap();
    let mut files = machine.disk.files();
    files.retain(|path, _| path.extension().is_some_and(|e| e == "seg"));
    assert!(files.len() > 2, "{:?}", files.keys());
    files.into_iter().collect()
}

/// The problems that a check of everything tells of.
fn problems(machine: &SimEnv) -> String {
    let report = verify(Path::new(ROOT), &machine.env()).unwrap();
    let what = report.problems.iter().map(|problem| problem.what.as_str());
    what.collect::<Vec<_>>().join("; ")
}

#[test]
fn a_damaged_value_is_told_by_whatever_points_to_it() {
    let machine = SimEnv::new(1);
    let (path, bytes) = &large_values(&machine)[0];
    assert_eq!(problems(&machine), "");
    let at = bytes.windows(9).position(|part| part == [3; 9]).unwrap();
    machine.disk.rot(path, at as u64 + 100, 1).unwrap();
    let found = problems(&machine);
    assert!(found.contains("value checksum"), "{found}");
    // Whoever reads it is told, and gets no other value.
    let db = open(&machine);
    let map = db.keyspace("map").unwrap();
    let error = map.get([3]).unwrap_err();
    assert!(error.is_corruption(), "{error}");
}

/// Each of its batches is right by itself: only the digest tells that they are not those of then.
#[test]
fn verify_compares_the_digest_of_a_sealed_segment() {
    let machine = SimEnv::new(1);
    let (path, bytes) = &large_values(&machine)[0];
    let nonce = SegmentHeader::decode(bytes, path).unwrap().nonce;
    let trailer = &bytes[bytes.len() - TRAILER_LEN..];
    let (data_len, _) = Footer::peek(trailer, nonce, bytes.len() as u64).unwrap();
    let footer = &bytes[data_len as usize..];
    let mut footer = Footer::decode(footer, nonce, data_len, path).unwrap();
    footer.digest[0] ^= 1;
    let file = machine.env().disk.open(path, Access::Write).unwrap();
    write_all_at(file.as_ref(), &footer.encode(nonce), data_len).unwrap();
    let found = problems(&machine);
    assert!(found.contains("digest"), "{found}");
}
