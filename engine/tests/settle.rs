//! Everything becomes one run where nothing is written for a while: once, and only where it is worth it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strandline::stats::DatasetStats;
use strandline::verify::verify;
use strandline::{Background, Database, Durability, Options};
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{Disk, Env, FileKind};

fn options() -> Options {
    Options {
        memtable_len_max: 1 << 20,
        segment_len_start: 64 << 10,
        segment_len_max: 256 << 10,
        table_len_max: 1 << 20,
        reserve_len_max: 0,
        durability: Durability::Os,
        background: Background::Manual,
        ..Options::default()
    }
}

fn stats(db: &Database) -> DatasetStats {
    db.dataset("").unwrap().stats()
}

/// Writes keys of 4 bytes with values of `len`.
fn put(db: &Database, keys: impl Iterator<Item = u32>, len: usize) {
    let map = db.keyspace("map").unwrap();
    for n in keys {
        map.put(n.to_be_bytes(), vec![n as u8; len]).unwrap();
    }
}

/// Lets so many milliseconds pass and does all work that there is then.
fn pass(db: &Database, machine: &SimEnv, ms: u64) -> usize {
    machine.clock.advance_ms(ms);
    db.run_background(100).unwrap()
}

fn is_settled(db: &Database) -> bool {
    let stats = stats(db);
    // The log may have begun anew, with a record that changes nothing.
    stats.run_count == 1 && stats.unflushed_len < 256
}

fn len(db: &Database) -> u64 {
    db.keyspace("map").unwrap().len().unwrap()
}

#[test]
fn a_burst_of_writes_is_merged_once_when_it_is_over() {
    let machine = SimEnv::new(1);
    let db = options().open_with("/db", machine.env()).unwrap();
    put(&db, 0..1_000, 100);
    db.flush().unwrap();
    put(&db, 0..500, 100);
    db.flush().unwrap();
    put(&db, 900..1_200, 100);
    let snapshot = db.dataset("").unwrap().snapshot();
    assert_eq!(pass(&db, &machine, 199), 0);
    assert_eq!(stats(&db).run_count, 2);
    assert_eq!(pass(&db, &machine, 1), 1);
    assert!(is_settled(&db));
    assert_eq!(stats(&db).table_entry_count, 1_200);
    assert_eq!(len(&db), 1_200);
    let map = db.keyspace("map").unwrap();
    assert_eq!(snapshot.len(&map).unwrap(), 1_200);
    let written = stats(&db).table_len_written;
    for ms in [1, 200, 10_000, 3_600_000] {
        assert_eq!(pass(&db, &machine, ms), 0);
    }
    // The next burst is another one; what does not change anything is none.
    put(&db, 0..100, 100);
    assert_eq!(pass(&db, &machine, 200), 1);
    assert!(is_settled(&db));
    assert!(stats(&db).table_len_written > written);
    drop(snapshot);
    drop(db);
    assert_eq!(
        verify(Path::new("/db"), &machine.env()).unwrap().problems,
        []
    );
}

#[test]
fn without_a_pause_it_never_happens() {
    let machine = SimEnv::new(1);
    let options = Options {
        settle_after: None,
        ..options()
    };
    let db = options.open_with("/db", machine.env()).unwrap();
    put(&db, 0..1_000, 100);
    assert_eq!(pass(&db, &machine, 3_600_000), 0);
    assert!(stats(&db).unflushed_len > 100_000);
}

/// An open counts as a write: what was left behind is merged, and then there is nothing to gain.
#[test]
fn what_an_earlier_process_left_is_merged_and_then_left_alone() {
    let machine = SimEnv::new(1);
    let db = options().open_with("/db", machine.env()).unwrap();
    put(&db, 0..1_000, 100);
    drop(db);
    for (is_first, step_count) in [(true, 1), (false, 0), (false, 0)] {
        let db = options().open_with("/db", machine.env()).unwrap();
        assert_eq!(stats(&db).run_count, usize::from(!is_first));
        assert_eq!(pass(&db, &machine, 0), 0);
        assert_eq!(pass(&db, &machine, 200), step_count);
        assert_eq!((stats(&db).run_count, len(&db)), (1, 1_000));
    }
}

/// A little that is new costs no rewrite of much that is old: the pause grows as the share falls, and
/// above 64 MiB nothing happens.
#[test]
fn a_trickle_waits_for_a_longer_pause() {
    let machine = SimEnv::new(1);
    let db = options().open_with("/db", machine.env()).unwrap();
    put(&db, 0..10_000, 1_000);
    pass(&db, &machine, 200);
    assert!(is_settled(&db));
    let (len, written) = (stats(&db).table_len, stats(&db).table_len_written);
    // A write a second, for ten minutes: each pause is as long as five.
    let mut settle_count = 0;
    for n in 0..600 {
        put(&db, n..n + 1, 1_000);
        settle_count += pass(&db, &machine, 1_000);
    }
    assert!((3..=5).contains(&settle_count), "{settle_count}");
    assert!(stats(&db).table_len_written - written < 6 * len);
    // One write, alone.
    db.dataset("").unwrap().compact().unwrap();
    put(&db, 0..1, 1_000);
    assert_eq!(pass(&db, &machine, 100_000), 0);
    assert_eq!(pass(&db, &machine, 100_000), 1);
}

#[test]
fn a_trickle_beside_very_much_is_left_to_compaction() {
    let machine = SimEnv::new(1);
    let options = Options {
        memtable_len_max: 8 << 20,
        segment_len_max: 8 << 20,
        large_value_len_min: 64 << 20,
        table_len_max: 16 << 20,
        ..options()
    };
    let db = options.open_with("/db", machine.env()).unwrap();
    put(&db, 0..700, 100_000);
    db.dataset("").unwrap().compact().unwrap();
    assert!(stats(&db).table_len > 64 << 20);
    put(&db, 0..40, 100_000);
    assert_eq!(pass(&db, &machine, 3_600_000), 0);
    assert!(stats(&db).unflushed_len > 4_000_000);
    // A sixteenth.
    put(&db, 40..45, 100_000);
    assert_eq!(pass(&db, &machine, 200), 1);
    assert!(is_settled(&db));
}

/// Bytes of all files of a database.
fn files_len(disk: &dyn Disk, dir: &Path) -> u64 {
    let entries = disk.list(dir).unwrap();
    let len = |entry: &strandline_wal::io::DirEntry| {
        let path = dir.join(&entry.name);
        match entry.kind {
            FileKind::Dir => files_len(disk, &path),
            _ => disk.stat(&path).unwrap().len,
        }
    };
    entries.iter().map(len).sum()
}

/// An overwrite of everything takes no more room than what is live, once it is over: of small values, and of
/// values that stay in the log.
#[test]
fn what_was_overwritten_is_gone_after_a_pause() {
    for (count, value_len) in [(20_000, 400), (1_000, 8_000)] {
        let machine = SimEnv::new(1);
        let options = Options {
            memtable_len_max: 64 << 20,
            ..options()
        };
        let db = options.open_with("/db", machine.env()).unwrap();
        let live = u64::from(count) * value_len as u64;
        let len = || files_len(machine.env().disk.as_ref(), Path::new("/db"));
        for round in 0..3 {
            put(&db, 0..count, value_len);
            assert!(
                round == 0 || len() > live * 3 / 2,
                "{} bytes for {live}",
                len()
            );
            assert_eq!(pass(&db, &machine, 200), 1);
            assert_eq!(stats(&db).run_count, 1);
            assert!(len() < live * 5 / 4, "{} bytes for {live}", len());
        }
    }
}

/// What was held for writes to come is given back: the growing segment and spares.
#[test]
fn what_is_left_alone_takes_little_beside_what_is_live() {
    let machine = SimEnv::new(1);
    let options = Options {
        segment_len_max: 64 << 20,
        table_len_max: 64 << 20,
        memtable_len_max: 64 << 20,
        reserve_len_max: 0,
        router: strandline::ShardRouter::hash(2).unwrap(),
        ..options()
    };
    let db = options.clone().open_with("/db", machine.env()).unwrap();
    let len = || files_len(machine.env().disk.as_ref(), Path::new("/db"));
    for round in 0..3 {
        put(&db, 0..20_000, 1_000);
        assert!(len() > 30_000_000, "{}", len());
        assert!(pass(&db, &machine, 200) <= 2);
        assert!(is_settled(&db));
        let beside = len() - stats(&db).table_len;
        assert!(beside < 5 << 18, "round {round}: {beside} bytes");
        assert_eq!(stats(&db).segment_count, 2);
        assert_eq!(pass(&db, &machine, 10_000), 0);
    }
    // It goes on from there.
    put(&db, 20_000..20_100, 1_000);
    db.close().unwrap();
    let db = options.open_with("/db", machine.env()).unwrap();
    assert_eq!(crate::len(&db), 20_100);
    db.close().unwrap();
    assert_eq!(
        verify(Path::new("/db"), &machine.env()).unwrap().problems,
        []
    );
}

#[test]
fn a_failure_is_told_and_tried_again_after_the_next_write_alone() {
    let machine = SimEnv::new(1);
    let faults = Arc::new(FaultDisk::new(machine.env().disk));
    let env = Env {
        disk: Arc::clone(&faults) as _,
        ..machine.env()
    };
    let db = options().open_with("/db", env).unwrap();
    for _ in 0..2 {
        put(&db, 0..100, 100);
        db.flush().unwrap();
    }
    let rule = faults.add(Rule::new(Effect::EIO).on(Call::Create).path(".tbl"));
    machine.clock.advance_ms(200);
    assert!(db.run_background(100).is_err());
    assert_eq!(faults.fired_count(rule), 1);
    assert_eq!(pass(&db, &machine, 10_000), 0);
    assert_eq!(len(&db), 100);
    put(&db, 0..1, 100);
    assert_eq!(pass(&db, &machine, 200), 1);
    assert!(is_settled(&db));
}

/// With threads it comes by itself, while writes go on elsewhere, and a close does not wait for it.
#[test]
fn threads_settle_what_is_left_alone() {
    let machine = SimEnv::new(1);
    let env = Env {
        clock: Env::real().clock,
        ..machine.env()
    };
    let options = Options {
        background: Background::Thread,
        settle_after: Some(Duration::from_millis(20)),
        ..options()
    };
    let db = options.open_with("/db", env).unwrap();
    put(&db, 0..2_000, 100);
    db.flush().unwrap();
    put(&db, 0..2_000, 100);
    let patience = Instant::now();
    while !is_settled(&db) {
        assert!(
            patience.elapsed() < Duration::from_secs(60),
            "{:?}",
            stats(&db)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!((len(&db), stats(&db).run_count), (2_000, 1));
    db.close().unwrap();
}

/// It needs room for everything a second time, and leaves the last space to those who write.
#[test]
fn a_disk_that_is_nearly_full_is_left_alone() {
    let machine = SimEnv::new(1);
    let db = options().open_with("/db", machine.env()).unwrap();
    put(&db, 0..1_000, 1_000);
    let used = files_len(machine.env().disk.as_ref(), Path::new("/db"));
    machine.disk.limit(Some(used + 500_000));
    assert_eq!(pass(&db, &machine, 200), 0);
    machine.disk.limit(None);
    assert_eq!(pass(&db, &machine, 0), 1);
    assert!(is_settled(&db));
}
