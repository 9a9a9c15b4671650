//! The number of keys: exact at every moment, and known of settled tables without reading them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use strandline::{Background, Database, Durability, Keyspace, Options, Snapshot};
use strandline_wal::io::Env;
use strandline_wal::io::fault::{Call, FaultDisk};
use strandline_wal::io::sim::{SimDisk, SimEnv};

fn options() -> Options {
    Options {
        memtable_len_max: 64 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        table_len_max: 64 << 10,
        large_value_len_min: 256,
        run_count_max: 3,
        reserve_len_max: 0,
        durability: Durability::Os,
        background: Background::Manual,
        ..Options::default()
    }
}

/// Keyspaces whose names lie side by side in the tables, one that is never written among them.
const NAMES: [&str; 4] = ["a", "b", "empty", "c"];

type Maps = [BTreeMap<Vec<u8>, ()>; NAMES.len()];

fn keyspaces(db: &Database) -> [Keyspace; NAMES.len()] {
    NAMES.map(|name| db.keyspace(name).unwrap())
}

fn check(keyspaces: &[Keyspace], maps: &Maps) {
    for (keyspace, map) in keyspaces.iter().zip(maps) {
        assert_eq!(keyspace.len().unwrap(), map.len() as u64);
        assert_eq!(keyspace.is_empty().unwrap(), map.is_empty());
    }
}

fn check_snapshot(snapshot: &Snapshot, keyspaces: &[Keyspace], maps: &Maps) {
    for (keyspace, map) in keyspaces.iter().zip(maps) {
        assert_eq!(snapshot.len(keyspace).unwrap(), map.len() as u64);
        assert_eq!(snapshot.is_empty(keyspace).unwrap(), map.is_empty());
    }
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn it_is_that_of_a_map_of_the_same_keys_through_everything() {
    for seed in 0..20 {
        let machine = SimEnv::new(seed);
        let mut random = Random(seed);
        let mut db = options().open_with("/db", machine.env()).unwrap();
        let mut open = keyspaces(&db);
        let mut maps = Maps::default();
        let mut snapshots: Vec<(Snapshot, Maps)> = Vec::new();
        let mut settled_count = 0;
        for _ in 0..400 {
            let dataset = db.dataset("").unwrap();
            match random.below(40) {
                0 => db.flush().unwrap(),
                1 => {
                    dataset.compact().unwrap();
                    settled_count += 1;
                }
                2 => drop(db.run_background(2).unwrap()),
                3 => snapshots.push((dataset.snapshot(), maps.clone())),
                4 if snapshots.len() > 2 => drop(snapshots.remove(0)),
                5 => {
                    snapshots.clear();
                    drop(dataset);
                    db.close().unwrap();
                    drop((open, db));
                    db = options().open_with("/db", machine.env()).unwrap();
                    open = keyspaces(&db);
                }
                _ => {
                    let at = [0, 1, 3][random.below(3) as usize];
                    // The empty key and one that begins like a keyspace's number are keys as others.
                    let number = random.below(60) as u32;
                    let key = number.to_be_bytes()[4 - random.below(5) as usize..].to_vec();
                    if random.below(3) == 0 {
                        open[at].delete(&key).unwrap();
                        maps[at].remove(&key);
                    } else {
                        open[at]
                            .put(&key, vec![1; random.below(600) as usize])
                            .unwrap();
                        maps[at].insert(key, ());
                    }
                }
            }
            check(&open, &maps);
        }
        for (snapshot, maps) in &snapshots {
            check_snapshot(snapshot, &open, maps);
        }
        assert!(settled_count > 0);
    }
}

/// A database of one run of many tables, on a disk without maps whose calls are counted.
fn settled() -> (Database, Arc<FaultDisk>, SimEnv) {
    let machine = SimEnv {
        disk: SimDisk::pread(1),
        ..SimEnv::new(1)
    };
    let faults = Arc::new(FaultDisk::new(machine.env().disk));
    let env = Env {
        disk: Arc::clone(&faults) as _,
        ..machine.env()
    };
    let options = Options {
        cache_len_max: 0,
        ..options()
    };
    let db = options.open_with("/db", env).unwrap();
    let map = db.keyspace("a").unwrap();
    for n in 0..3_000u32 {
        map.put(n.to_be_bytes(), [1; 100]).unwrap();
    }
    db.flush().unwrap();
    db.dataset("").unwrap().compact().unwrap();
    let stats = db.dataset("").unwrap().stats();
    assert!(stats.run_count == 1 && stats.table_count > 3);
    (db, faults, machine)
}

#[test]
fn of_settled_tables_it_is_known_and_else_only_what_is_newer_is_looked_up() {
    let (db, faults, _machine) = settled();
    let (map, other) = (db.keyspace("a").unwrap(), db.keyspace("b").unwrap());
    let read_count = |len: u64| {
        let before = faults.count(Call::Read);
        assert_eq!(map.len().unwrap(), len);
        faults.count(Call::Read) - before
    };
    assert_eq!(read_count(3_000), 0);
    // What other keyspaces have in memory makes no difference.
    other.put("key", "value").unwrap();
    assert_eq!(read_count(3_000), 0);
    let snapshot = db.dataset("").unwrap().snapshot();
    map.put(7u32.to_be_bytes(), "instead").unwrap();
    map.put("new", "value").unwrap();
    map.delete(8u32.to_be_bytes()).unwrap();
    map.delete("never there").unwrap();
    assert!((1..=4).contains(&read_count(3_000)));
    map.delete("new").unwrap();
    assert!((1..=4).contains(&read_count(2_999)));
    let before = faults.count(Call::Read);
    assert_eq!(snapshot.len(&map).unwrap(), 3_000);
    assert_eq!(faults.count(Call::Read), before);
    db.flush().unwrap();
    db.dataset("").unwrap().compact().unwrap();
    assert_eq!(read_count(2_999), 0);
    assert_eq!(other.len().unwrap(), 1);
    assert_eq!(snapshot.len(&map).unwrap(), 3_000);
}

#[test]
fn damage_where_it_must_look_is_an_error_that_names_the_place() {
    let (db, _faults, machine) = settled();
    let map = db.keyspace("a").unwrap();
    let disk = machine.env().disk;
    let tables = disk.list(Path::new("/db/primary")).unwrap();
    let tables = tables.iter().filter(|entry| entry.name.ends_with(".tbl"));
    for table in tables {
        let path = Path::new("/db/primary").join(&table.name);
        machine.disk.rot(&path, 200, 1).unwrap();
    }
    // No chunk is needed.
    assert_eq!(map.len().unwrap(), 3_000);
    map.put(0u32.to_be_bytes(), "instead").unwrap();
    let wanted = map.get(1u32.to_be_bytes()).unwrap_err();
    let error = map.len().unwrap_err();
    assert_eq!(error.to_string(), wanted.to_string());
    assert!(error.is_corruption(), "{error}");
}
