//! Flushes and compactions, stepped by hand: which runs are merged, what they free, and what becomes of
//! them on a disk that is full or fails.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use strandline::stats::DatasetStats;
use strandline::verify::verify;
use strandline::{Background, Database, Durability, Error, Options};
use strandline_wal::Error as LogError;
use strandline_wal::io::Env;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::SimEnv;

fn options() -> Options {
    Options {
        memtable_len_max: 1 << 20,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        table_len_max: 64 << 10,
        run_count_max: 3,
        reserve_len_max: 0,
        durability: Durability::Os,
        background: Background::Manual,
        ..Options::default()
    }
}

/// Writes so many keys from `from` on and flushes them: a run of its own.
fn add_run(db: &Database, from: u32, count: u32) {
    let map = db.keyspace("map").unwrap();
    for n in from..from + count {
        map.put(n.to_be_bytes(), [n as u8; 200]).unwrap();
    }
    db.flush().unwrap();
}

fn stats(db: &Database) -> DatasetStats {
    db.dataset("").unwrap().stats()
}

fn count(db: &Database) -> usize {
    db.keyspace("map")
        .unwrap()
        .iter()
        .map(Result::unwrap)
        .count()
}

#[test]
fn small_runs_are_merged_among_themselves_and_the_bottom_is_left_alone() {
    let db = options().open_with("/db", SimEnv::new(1).env()).unwrap();
    // Nothing is there to be merged.
    db.dataset("").unwrap().compact().unwrap();
    add_run(&db, 0, 2_000);
    db.dataset("").unwrap().compact().unwrap();
    let bottom_len = stats(&db).table_len;
    // The oldest of the new runs outweighs the others together.
    for count in [200, 20, 20] {
        assert_eq!(db.run_background(9).unwrap(), 0, "there are too few yet");
        add_run(&db, 0, count);
    }
    let before = stats(&db);
    assert_eq!((before.run_count, before.compaction_count), (4, 1));
    assert_eq!(db.run_background(1).unwrap(), 1);
    let after = stats(&db);
    assert_eq!((after.run_count, after.compaction_count), (3, 2));
    let written = after.table_len_written - before.table_len_written;
    assert!(written < bottom_len / 20, "{written} of {bottom_len}");
    // Enough of them go into the bottom run.
    for _ in 0..2 {
        add_run(&db, 0, 600);
    }
    assert_eq!(db.run_background(1).unwrap(), 1);
    assert_eq!(stats(&db).run_count, 1);
    assert_eq!(count(&db), 2_000);
}

#[test]
fn living_values_are_moved_out_of_mostly_dead_segments() {
    let db = options().open_with("/db", SimEnv::new(1).env()).unwrap();
    let map = db.keyspace("map").unwrap();
    for n in 0..100u32 {
        map.put(n.to_be_bytes(), [n as u8; 9_000]).unwrap();
    }
    db.flush().unwrap();
    let full = stats(&db);
    assert!(full.live_value_len > 100 * 8_999);
    for n in (0..100u32).filter(|n| !n.is_multiple_of(9)) {
        map.delete(n.to_be_bytes()).unwrap();
    }
    // That they are dead shows once their removals have met them.
    db.dataset("").unwrap().compact().unwrap();
    assert_eq!(stats(&db).values_moved, 0);
    assert_eq!(db.run_background(9).unwrap(), 0, "one run is left alone");
    add_run(&db, 1_000, 10);
    assert_eq!(db.run_background(1).unwrap(), 1);
    let after = stats(&db);
    assert_eq!((after.values_moved, after.run_count), (12, 1));
    assert_eq!(after.live_value_len, 0);
    assert!(
        after.segment_len < full.segment_len / 4,
        "{}",
        after.segment_len
    );
    for n in 0..100u32 {
        let found = map.get(n.to_be_bytes()).unwrap().map(|v| v.to_vec());
        assert_eq!(found, n.is_multiple_of(9).then(|| vec![n as u8; 9_000]));
    }
}

#[test]
fn what_is_all_removed_leaves_no_table() {
    let db = options().open_with("/db", SimEnv::new(1).env()).unwrap();
    add_run(&db, 0, 50);
    let map = db.keyspace("map").unwrap();
    for n in 0..50u32 {
        map.delete(n.to_be_bytes()).unwrap();
    }
    db.dataset("").unwrap().compact().unwrap();
    assert_eq!((stats(&db).run_count, stats(&db).table_count), (0, 0));
    assert_eq!(count(&db), 0);
    // A keyspace is made in the log; a memtable of nothing else becomes no table.
    db.keyspace("other").unwrap();
    db.flush().unwrap();
    assert_eq!(stats(&db).table_count, 0);
}

struct Faulty {
    machine: SimEnv,
    faults: FaultDisk,
    db: Database,
}

fn faulty(options: Options) -> Faulty {
    let machine = SimEnv::new(1);
    let faults = FaultDisk::new(machine.env().disk);
    let env = Env {
        disk: Arc::new(faults.clone()),
        ..machine.env()
    };
    let db = options.open_with("/db", env).unwrap();
    Faulty {
        machine,
        faults,
        db,
    }
}

/// Whatever call fails for want of space, nothing is lost, what was begun is removed, and the next try
/// succeeds without a reopen.
#[test]
fn a_flush_and_a_compaction_without_space_are_made_again() {
    type Work = fn(&Database) -> strandline::Result<()>;
    let works: [(Work, usize); 2] = [
        (|db| db.dataset("")?.flush(), 2),
        (|db| db.dataset("")?.compact(), 1),
    ];
    for (work, run_count) in works {
        let mut at = 0;
        loop {
            let Faulty {
                machine,
                faults,
                db,
            } = faulty(options());
            add_run(&db, 0, 600);
            let map = db.keyspace("map").unwrap();
            for n in 500..1_000u32 {
                map.put(n.to_be_bytes(), [9; 200]).unwrap();
            }
            let effect = Rule::new(Effect::ENOSPC).path("/primary");
            let rule = faults.add(effect.at_call(faults.call_count() + at).sticky());
            let failed = work(&db);
            let is_done = faults.fired_count(rule) == 0;
            assert_eq!(count(&db), 1_000, "call {at}");
            faults.heal();
            if let Err(error) = &failed {
                assert!(
                    error.is_no_space() || !error.to_string().is_empty(),
                    "{error}"
                );
            }
            let is_poisoned =
                db.dataset("").unwrap().health().is_err() || map.put("more", "value").is_err();
            if !is_poisoned {
                map.delete("more").unwrap();
                work(&db).unwrap();
                assert!(stats(&db).run_count <= run_count + 1, "call {at}");
            }
            db.close().unwrap();
            drop((map, db));
            let db = options().open_with("/db", machine.env()).unwrap();
            // A sync that failed may have lost what was not synced; tables never go back.
            let left = if is_poisoned { 600 } else { 1_000 };
            assert!(count(&db) >= left, "call {at}");
            let found = verify("/db".as_ref(), &machine.env()).unwrap().problems;
            assert_eq!(found, [], "call {at}");
            if is_done {
                break;
            }
            at += 1;
        }
        assert!(at > 20, "{at} calls");
    }
}

/// A manifest that could not be stored may be there or not: nothing more is written before a reopen.
#[test]
fn a_manifest_whose_store_failed_stops_the_dataset() {
    let Faulty {
        machine,
        faults,
        db,
    } = faulty(options());
    add_run(&db, 0, 10);
    let map = db.keyspace("map").unwrap();
    map.put("key", "value").unwrap();
    let rule = faults.add(Rule::new(Effect::EIO).on(Call::Rename).path("manifest"));
    for failed in [db.flush(), map.put("key", "other"), db.flush()] {
        let error = failed.unwrap_err();
        let is_ours =
            matches!(&error, Error::Log(LogError::Io { path, .. }) if path.ends_with("manifest"));
        assert!(is_ours, "{error}");
    }
    assert_eq!(faults.fired_count(rule), 1);
    assert_eq!(map.get("key").unwrap().unwrap(), "value");
    db.close().unwrap();
    let db = options().open_with("/db", machine.env()).unwrap();
    assert_eq!(count(&db), 11);
}

/// A compaction by itself that meets a full disk waits for a while; one that is asked for does not.
#[test]
fn a_compaction_that_met_a_full_disk_is_not_tried_again_at_once() {
    let Faulty {
        machine,
        faults,
        db,
    } = faulty(options());
    for _ in 0..4 {
        add_run(&db, 0, 100);
    }
    let rule = faults.add(Rule::new(Effect::ENOSPC).on(Call::Create).path(".tbl"));
    let error = db.run_background(1).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    assert_eq!(faults.fired_count(rule), 1);
    assert_eq!(db.run_background(1).unwrap(), 0, "the disk is well again");
    machine.clock.advance_ms(5_001);
    assert_eq!(db.run_background(1).unwrap(), 1);
    assert_eq!(stats(&db).run_count, 1);
}

/// Damage in an input of a compaction is told and never given a new checksum.
#[test]
fn a_compaction_of_a_damaged_table_changes_nothing() {
    let machine = SimEnv::new(1);
    let db = options().open_with("/db", machine.env()).unwrap();
    add_run(&db, 0, 300);
    add_run(&db, 300, 300);
    db.close().unwrap();
    drop(db);
    let files = machine.disk.files();
    let tables = || {
        files
            .keys()
            .filter(|path| path.extension().is_some_and(|e| e == "tbl"))
    };
    let path = tables().next().unwrap();
    machine.disk.rot(path, 1_000, 1).unwrap();
    let db = options().open_with("/db", machine.env()).unwrap();
    let error = db.dataset("").unwrap().compact().unwrap_err();
    assert!(error.is_corruption(), "{error}");
    assert!(
        error.to_string().contains(&path.display().to_string()),
        "{error}"
    );
    assert_eq!(stats(&db).table_count, tables().count());
    let after = machine.disk.files();
    assert!(tables().all(|path| after.contains_key(path)));
    let map = db.keyspace("map").unwrap();
    assert!(map.get(0u32.to_be_bytes()).unwrap_err().is_corruption());
    assert_eq!(map.get(599u32.to_be_bytes()).unwrap().unwrap(), [87; 200]);
}

/// On a full disk the reserve lets removals, flushes and compactions go on; everything else is refused
/// until it is back, and goes on by itself then.
#[test]
fn on_a_full_disk_removals_go_on_until_there_is_room() {
    let machine = SimEnv::new(1);
    let options = Options {
        reserve_len_max: 4 << 20,
        ..options()
    };
    let db = options.open_with("/db", machine.env()).unwrap();
    add_run(&db, 0, 3_000);
    let map = db.keyspace("map").unwrap();
    machine.disk.limit(Some(machine.disk.used_len()));
    let refused = (0..2_000u32).find_map(|n| map.put(n.to_be_bytes(), [3; 900]).err());
    assert!(refused.unwrap().is_no_space());
    for n in 1_000..3_000u32 {
        map.delete(n.to_be_bytes()).unwrap();
    }
    for refused in [map.put("new", "value"), db.keyspace("new").map(|_| ())] {
        assert!(refused.unwrap_err().is_no_space());
    }
    db.dataset("").unwrap().compact().unwrap();
    machine.disk.limit(None);
    map.put("new", "value").unwrap();
    db.keyspace("new").unwrap();
    db.dataset("").unwrap().health().unwrap();
    assert_eq!(count(&db), 1_001);
}

/// The directory may be given without a parent, and one that is there may stand below a directory that we
/// may not sync.
#[test]
fn a_root_without_a_parent_of_ours_is_opened() {
    let machine = SimEnv::new(1);
    let db = options().open_with("db", machine.env()).unwrap();
    add_run(&db, 0, 1);
    db.close().unwrap();
    let machine = SimEnv::new(1);
    for (is_there, is_opened) in [(false, false), (true, true)] {
        let root = format!("/parent/{is_there}");
        machine
            .env()
            .disk
            .create_dir_all("/parent".as_ref())
            .unwrap();
        if is_there {
            machine.env().disk.create_dir_all(root.as_ref()).unwrap();
        }
        let faults = FaultDisk::new(machine.env().disk);
        faults.add(Rule::new(Effect::EACCES).on(Call::SyncDir));
        let env = Env {
            disk: Arc::new(faults),
            ..machine.env()
        };
        let opened = options().open_with(&root, env);
        assert_eq!(opened.is_ok(), is_opened, "{opened:?}");
    }
}

/// Only a database with threads and for writing scrubs by itself; any may be asked to.
#[test]
fn a_scrub_needs_no_thread_of_its_own() {
    let machine = SimEnv::new(1);
    let options = Options {
        scrub_rate: 1 << 20,
        ..options()
    };
    let db = options.clone().open_with("/db", machine.env()).unwrap();
    add_run(&db, 0, 300);
    let report = db.dataset("").unwrap().scrub();
    assert_eq!(report.problems, []);
    assert_eq!(db.dataset("").unwrap().damage(), []);
    assert_eq!(stats(&db).scrub_pass_count, 1);
    assert_eq!(stats(&db).scrubbed_len, report.len);
    let reader = Options {
        background: Background::Thread,
        ..options
    };
    let reader = reader.open_read_only_with("/db", machine.env()).unwrap();
    assert_eq!(stats(&reader).scrub_pass_count, 0);
    assert!(reader.dataset("").unwrap().scrub().file_count > 3);
}

#[test]
fn a_directory_that_holds_no_dataset_is_left_alone() {
    let machine = SimEnv::new(1);
    let db = options().open_with("/db", machine.env()).unwrap();
    add_run(&db, 0, 1);
    db.close().unwrap();
    for dir in ["/db/notes", "/db/Not a name"] {
        machine.env().disk.create_dir_all(dir.as_ref()).unwrap();
    }
    let db = options().open_with("/db", machine.env()).unwrap();
    assert_eq!(db.datasets().len(), 1);
    assert_eq!(db.stats().datasets.len(), 1);
    assert_eq!(db.run_background(0).unwrap(), 0);
}
