//! Promises of `FAULTS.md` that no sweep reaches, one test for each.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use strandline::{Background, Database, Durability, Error, ErrorKind, Options};
use strandline_tests::plan::small_options;
use strandline_tests::run::disk_of;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{Access, Disk, Env};

type State = BTreeMap<Vec<u8>, Vec<u8>>;

fn key(n: u32) -> Vec<u8> {
    format!("key-{n:04}").into_bytes()
}

/// Puts keys `from` to `to`, each with a value that tells `round`.
fn fill(db: &Database, from: u32, to: u32, round: u8) {
    let map = db.keyspace("map").unwrap();
    for n in from..to {
        let value = vec![round; 60 + (n as usize % 7) * 40];
        map.put_with(key(n), value, Durability::Os).unwrap();
    }
}

fn state(db: &Database) -> Result<State, Error> {
    let entries = db.keyspace("map")?;
    entries
        .iter()
        .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())))
        .collect()
}

fn tables(machine: &SimEnv) -> Vec<PathBuf> {
    let files = machine.disk.files();
    let is_table = |path: &&PathBuf| path.extension().is_some_and(|e| e == "tbl");
    files.keys().filter(is_table).cloned().collect()
}

fn write_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) {
    let _ = disk.remove(path);
    let file = disk.create(path).unwrap();
    file.write_at(bytes, 0).unwrap();
}

/// A damaged block fails the compaction that meets it: its bytes never get a checksum of their own,
/// keys elsewhere stay readable, and a check names the place before and after.
#[test]
fn a_compaction_refuses_a_damaged_block_and_harms_nothing() {
    let machine = SimEnv::new(1);
    let db = small_options().open_with("/db", machine.env()).unwrap();
    fill(&db, 0, 400, 1);
    db.flush().unwrap();
    fill(&db, 200, 600, 2);
    db.flush().unwrap();
    db.close().unwrap();
    drop(db);
    let damaged = tables(&machine)[0].clone();
    machine.disk.rot(&damaged, 5_000, 1).unwrap();
    machine.disk.settle();
    let db = small_options().open_with("/db", machine.env()).unwrap();
    let before = tables(&machine);
    for _ in 0..2 {
        let error = db.dataset("").unwrap().compact().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Restore, "{error}");
        let name = damaged.file_name().unwrap().to_string_lossy();
        assert!(error.to_string().contains(&*name), "{error}");
        assert_eq!(tables(&machine), before);
        let map = db.keyspace("map").unwrap();
        assert_eq!(map.get(key(599)).unwrap().unwrap()[0], 2);
    }
    fill(&db, 600, 650, 3);
    db.close().unwrap();
    drop(db);
    let report = strandline::verify::verify(Path::new("/db"), &machine.env()).unwrap();
    assert!(
        report.problems.iter().all(|p| p.path == damaged),
        "{report:?}"
    );
    assert!(!report.problems.is_empty());
}

/// Which epoch was promised, and who a node is, are never begun anew: with both slots damaged the
/// database does not open.
#[test]
fn a_lost_promise_or_identity_is_refused_and_never_reset() {
    let machine = SimEnv::new(1);
    let db = small_options().open_with("/db", machine.env()).unwrap();
    fill(&db, 0, 10, 1);
    db.close().unwrap();
    drop(db);
    for name in ["primary/epoch", "NODE"] {
        let path = Path::new("/db").join(name);
        let hurt = SimEnv {
            disk: machine.disk.fork(),
            ..machine.clone()
        };
        let len = hurt.disk.files()[&path].len();
        for at in (0..len).step_by(512) {
            hurt.disk.rot(&path, at as u64 + 9, 16).unwrap();
        }
        hurt.disk.settle();
        let files = hurt.disk.files();
        let opened = small_options()
            .open_with("/db", hurt.env())
            .and_then(|db| db.dataset("").map(|_| ()));
        let error = opened.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Restore, "{error}");
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
        assert_eq!(hurt.disk.files().get(&path), files.get(&path));
    }
}

/// A disk that said it had stored something and kept what was there before: every file in turn is
/// its own older self. What is read is right, or the open refuses.
#[test]
fn an_older_generation_of_any_file_is_told_or_harmless() {
    for maps in [true, false] {
        let mut machine = SimEnv::new(1);
        if !maps {
            machine.disk = strandline_wal::io::sim::SimDisk::pread(1);
        }
        let options = Options {
            large_value_len_min: 256,
            ..small_options()
        };
        let mut older: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        let mut refused = 0;
        for round in 1..6 {
            let db = options.clone().open_with("/db", machine.env()).unwrap();
            fill(&db, 0, 120 * u32::from(round), round);
            if round % 2 == 0 {
                db.flush().unwrap();
            }
            if round == 4 {
                db.dataset("").unwrap().compact().unwrap();
            }
            db.dataset("").unwrap().sync().unwrap();
            // A log changes until it is closed.
            let growing = machine.disk.files();
            fill(&db, 0, 120, 100 + round);
            db.dataset("").unwrap().sync().unwrap();
            let now = state(&db).unwrap();
            db.close().unwrap();
            drop(db);
            machine.disk.settle();
            let files = machine.disk.files();
            for (path, bytes) in older.iter().chain(&growing) {
                if files.get(path).is_none_or(|current| current == bytes) {
                    continue;
                }
                let stale = SimEnv {
                    disk: machine.disk.fork(),
                    ..machine.clone()
                };
                write_file(&stale.disk, path, bytes);
                stale.disk.settle();
                let opened = options.clone().open_with("/db", stale.env());
                match opened.and_then(|db| state(&db)) {
                    Ok(found) => {
                        assert!(found == now, "round {round}: {} is older", path.display())
                    }
                    Err(error) => {
                        refused += 1;
                        assert_eq!(error.kind(), ErrorKind::Restore, "{error}");
                    }
                }
            }
            older = files;
        }
        assert!(refused > 0);
    }
}

/// A panic in background work ends writing with a message that tells of it; reads go on.
#[test]
fn a_panic_in_background_work_stops_the_dataset_loudly() {
    let machine = SimEnv::new(1);
    let faults = FaultDisk::new(disk_of(&machine));
    let env = Env {
        disk: std::sync::Arc::new(faults.clone()),
        ..machine.env()
    };
    let options = Options {
        background: Background::Thread,
        ..small_options()
    };
    let db = options.open_with("/db", env).unwrap();
    faults.add(Rule::new(Effect::Panic).on(Call::Create).path(".tbl"));
    let map = db.keyspace("map").unwrap();
    let error = (0..100_000u32)
        .find_map(|n| map.put_with(key(n), [1; 500], Durability::Os).err())
        .expect("a flush was due long ago");
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert!(
        error.to_string().contains("a panic that a rule asked for"),
        "{error}"
    );
    assert_eq!(map.get(key(0)).unwrap().unwrap(), &[1; 500][..]);
    assert!(db.dataset("").unwrap().health().is_err());
    assert!(db.close().is_err() || db.dataset("").is_err());
}

/// Order, durability and what is read do not depend on the wall clock.
#[test]
fn a_clock_that_jumps_changes_nothing() {
    const DAY_MS: u64 = 86_400_000;
    let machine = SimEnv::new(1);
    let noon = 20_000 * DAY_MS;
    let mut expected = State::new();
    let jumps = [0, 3 * DAY_MS, 1, 400 * DAY_MS, 2, 0];
    for (round, jump) in jumps.iter().enumerate() {
        machine.clock.jump_to_ms(noon + jump);
        let db = small_options().open_with("/db", machine.env()).unwrap();
        let map = db.keyspace("map").unwrap();
        let before = db.dataset("").unwrap().snapshot();
        for (n, back) in (0..40u32).zip([0, DAY_MS, 5].into_iter().cycle()) {
            machine.clock.jump_to_ms(noon + jump - back);
            let value = format!("{round} {n}").into_bytes();
            map.put_with(key(n), &value, Durability::Os).unwrap();
            expected.insert(key(n), value);
        }
        if round % 2 == 1 {
            db.flush().unwrap();
        }
        let seen = before.iter(&map).count();
        assert_eq!(seen, if round == 0 { 0 } else { 40 });
        assert!(state(&db).unwrap() == expected, "round {round}");
        if round % 3 == 0 {
            db.close().unwrap();
        }
    }
    let db = small_options().open_with("/db", machine.env()).unwrap();
    assert!(state(&db).unwrap() == expected);
}

/// Files that are none of ours stay as they are, whatever the database does around them.
#[test]
fn foreign_files_are_left_alone() {
    let machine = SimEnv::new(1);
    let db = small_options().open_with("/db", machine.env()).unwrap();
    fill(&db, 0, 100, 1);
    db.close().unwrap();
    drop(db);
    let names = [
        "notes.txt",
        "primary/notes.txt",
        "primary/r00000/notes.txt",
        "primary/7.tbl",
    ];
    for name in names {
        write_file(&machine.disk, &Path::new("/db").join(name), b"mine");
    }
    let db = small_options().open_with("/db", machine.env()).unwrap();
    fill(&db, 0, 400, 2);
    db.flush().unwrap();
    db.dataset("").unwrap().compact().unwrap();
    db.close().unwrap();
    drop(db);
    let files = machine.disk.files();
    for name in names {
        assert_eq!(files[&Path::new("/db").join(name)], b"mine", "{name}");
    }
}

/// What a later release wrote is refused as that, before anything is changed.
#[test]
fn a_newer_format_is_refused_by_its_version() {
    let machine = SimEnv::new(1);
    let db = small_options().open_with("/db", machine.env()).unwrap();
    fill(&db, 0, 200, 1);
    db.flush().unwrap();
    fill(&db, 200, 220, 1);
    db.close().unwrap();
    drop(db);
    machine.disk.settle();
    // Where the version stands, and where the checksum of which bytes.
    let crc = |bytes: &[u8]| crc32fast::hash(bytes).to_le_bytes();
    let newer = |path: &Path, at: usize, sum_at: usize| {
        let hurt = SimEnv {
            disk: machine.disk.fork(),
            ..machine.clone()
        };
        let mut bytes = hurt.disk.files()[path].clone();
        bytes[at] += 7;
        let sum = crc(&bytes[..sum_at]);
        bytes[sum_at..sum_at + 4].copy_from_slice(&sum);
        let file = hurt.disk.open(path, Access::Write).unwrap();
        file.write_at(&bytes[..sum_at + 4], 0).unwrap();
        hurt.disk.settle();
        hurt
    };
    let files = machine.disk.files();
    let last = |end: &str| {
        let is = |path: &&PathBuf| path.to_string_lossy().ends_with(end);
        files.keys().rfind(is).unwrap().clone()
    };
    for (path, at, sum_at) in [
        (last(".seg"), 4, 508),
        (last("manifest"), 4, 60),
        (last(".tbl"), 8, 60),
    ] {
        let hurt = newer(&path, at, sum_at);
        let before = hurt.disk.files();
        let opened = small_options().open_with("/db", hurt.env());
        let error = opened
            .and_then(|db| db.dataset("").map(|_| ()))
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Operator, "{error}");
        let text = error.to_string();
        assert!(text.contains("version"), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        let after = hurt.disk.files();
        let is_changed = |(name, bytes): &(&PathBuf, &Vec<u8>)| after.get(*name) != Some(*bytes);
        let changed: Vec<_> = before
            .iter()
            .filter(is_changed)
            .map(|(name, _)| name)
            .collect();
        assert!(changed.is_empty(), "{changed:?}");
    }
}

/// What stands where a file should and is none is refused by name.
#[test]
fn a_special_file_in_the_place_of_a_file_is_refused() {
    let machine = SimEnv::new(1);
    let db = small_options().open_with("/db", machine.env()).unwrap();
    fill(&db, 0, 200, 1);
    db.flush().unwrap();
    db.close().unwrap();
    drop(db);
    machine.disk.settle();
    for path in machine.disk.files().into_keys() {
        let hurt = SimEnv {
            disk: machine.disk.fork(),
            ..machine.clone()
        };
        hurt.disk.remove(&path).unwrap();
        hurt.disk.place_special(&path).unwrap();
        let opened = small_options().open_with("/db", hurt.env());
        let Err(error) = opened.and_then(|db| state(&db)) else {
            panic!("{} is no file", path.display());
        };
        let kinds = [ErrorKind::Operator, ErrorKind::Restore];
        assert!(kinds.contains(&error.kind()), "{}: {error}", path.display());
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}

/// A full disk refuses what takes space and takes removals, which free it, without a reopen and with
/// one.
#[test]
fn a_full_disk_takes_removals_until_it_has_room_again() {
    for is_reopened in [false, true] {
        let machine = SimEnv::new(1);
        let options = Options {
            reserve_len_max: 512 << 10,
            ..small_options()
        };
        let open = || options.clone().open_with("/db", machine.env()).unwrap();
        let mut db = open();
        let full = machine.disk.used_len() + (1 << 20);
        machine.disk.limit(Some(full));
        for round in 0..5 {
            let map = db.keyspace("map").unwrap();
            let put = |n: u32| map.put_with(key(n), [round; 400], Durability::Os);
            let mut count = 0;
            let error = loop {
                match put(count) {
                    Ok(()) => count += 1,
                    Err(error) => break error,
                }
            };
            assert!(error.is_no_space(), "{error}");
            assert!(count > 700, "round {round}: full after {count} values");
            assert_eq!(state(&db).unwrap().len(), count as usize);
            if is_reopened {
                db.close().unwrap();
                db = open();
            }
            let map = db.keyspace("map").unwrap();
            for n in 0..count {
                map.delete_with(key(n), Durability::Disk).unwrap();
            }
            // What is removed is removed, before its space is free.
            assert!(state(&db).unwrap().is_empty());
            db.dataset("").unwrap().compact().unwrap();
            assert!(
                machine.disk.used_len() < full - (512 << 10),
                "round {round}"
            );
        }
        let mut batch = db.dataset("").unwrap().batch();
        batch.put(&db.keyspace("map").unwrap(), "a", "b").unwrap();
        batch.commit().unwrap();
        db.close().unwrap();
    }
}

/// What is kept aside is for removals alone, until a flush or a compaction takes it back.
#[test]
fn without_its_reserve_a_full_disk_takes_nothing_but_removals() {
    let machine = SimEnv::new(1);
    let options = Options {
        memtable_len_max: 1 << 20,
        reserve_len_max: 512 << 10,
        ..small_options()
    };
    let db = options.open_with("/db", machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    machine
        .disk
        .limit(Some(machine.disk.used_len() + (256 << 10)));
    let put = |n: u32| map.put_with(key(n), [7; 400], Durability::Os);
    let count = (0..).find(|n| put(*n).is_err()).unwrap();
    // More than what is left of the log's last file.
    for n in 0..count {
        map.delete_with(key(n), Durability::Os).unwrap();
    }
    let reserve = strandline::files::reserve(Path::new("/db"));
    let is_there = || machine.disk.files().contains_key(&reserve);
    assert!(count > 300 && !is_there(), "{count}");
    for refused in [put(0), db.keyspace("other").map(|_| ())] {
        assert!(refused.unwrap_err().is_no_space());
    }
    machine.disk.limit(None);
    db.dataset("").unwrap().flush().unwrap();
    assert!(is_there());
    put(0).unwrap();
    db.keyspace("other").unwrap();
    assert_eq!(state(&db).unwrap().len(), 1);
    db.close().unwrap();
}
