//! A close behind a load, which flushes for the next open: what it met, and who goes on writing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use strandline::{Background, Database, Durability, Error, Options};
use strandline_wal::io::Env;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::{Damage, SimEnv};
use strandline_wal::recover::{Known, plan};
use strandline_wal::segment::parse_file_name;
use strandline_wal::{DatasetId, LogId, RegionId, ShardId};

const COUNT: u32 = 1_500;

fn options() -> Options {
    Options {
        durability: Durability::Os,
        background: Background::Thread,
        settle_after: None,
        reserve_len_max: 0,
        ..Options::default()
    }
}

/// A database with a load that is only with the operating system, on a disk that may fail.
fn loaded(machine: &SimEnv) -> (Database, FaultDisk) {
    let faults = FaultDisk::new(machine.env().disk);
    let env = Env {
        disk: Arc::new(faults.clone()),
        ..machine.env()
    };
    let db = options().open_with("/db", env).unwrap();
    let map = db.keyspace("map").unwrap();
    for n in 0..COUNT {
        map.put(n.to_be_bytes(), [n as u8; 1_000]).unwrap();
    }
    (db, faults)
}

fn count_after_power_loss(machine: &SimEnv) -> strandline::Result<usize> {
    let after = machine.crash(1, Damage::LoseAll);
    let db = options().open_with("/db", after.env())?;
    Ok(db.keyspace("map")?.iter().map(Result::unwrap).count())
}

/// A close that says it went well leaves everything on the disk, whichever call failed below it.
#[test]
fn a_close_that_went_well_left_everything_on_the_disk() {
    for effect in [Effect::EIO, Effect::ENOSPC] {
        let mut told = 0;
        for at in 0.. {
            let machine = SimEnv::new(1);
            let (db, faults) = loaded(&machine);
            let rule = faults.add(Rule::new(effect).at_call(faults.call_count() + at));
            let closed = db.close();
            drop(db);
            let is_done = faults.fired_count(rule) == 0;
            match closed {
                Ok(()) => {
                    let left = count_after_power_loss(&machine).unwrap();
                    assert_eq!(left, COUNT as usize, "{effect:?} at call {at}");
                }
                Err(_) => told += 1,
            }
            if is_done {
                break;
            }
        }
        assert!(told > 0, "{effect:?}: no failure was told");
    }
}

/// Others that write when it is closed are refused, at once: the close ends.
#[test]
fn a_close_takes_no_more_writes() {
    let machine = SimEnv::new(1);
    let options = Options {
        memtable_len_max: 64 << 10,
        memtable_count_max: 16,
        ..options()
    };
    let db = options.open_with("/db", machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    let written = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for writer in 0..2u32 {
            let (map, written) = (map.clone(), &written);
            scope.spawn(move || {
                let failed = (0..u32::MAX).find_map(|n| {
                    let name = [writer.to_be_bytes(), n.to_be_bytes()].concat();
                    let failed = map.put(name, [7; 1_000]).err();
                    written.fetch_add(u32::from(failed.is_none()), Ordering::Relaxed);
                    failed
                });
                assert!(matches!(failed, Some(Error::Closed(_))), "{failed:?}");
            });
        }
        while written.load(Ordering::Relaxed) < 2_000 {
            std::thread::yield_now();
        }
        db.close().unwrap();
    });
    let left = count_after_power_loss(&machine).unwrap();
    assert_eq!(left, written.load(Ordering::Relaxed) as usize);
}

/// A panic while one dataset is flushed for the next open is told, and the others are closed.
#[test]
fn a_panic_in_the_flush_of_a_close_leaves_the_rest_to_be_closed() {
    let machine = SimEnv::new(1);
    let (db, faults) = loaded(&machine);
    faults.add(Rule::new(Effect::Panic).on(Call::Create).path(".tbl"));
    let error = db.close().unwrap_err();
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    drop(db);
    let db = options().open_with("/db", machine.env()).unwrap();
    assert_eq!(db.keyspace("map").unwrap().len().unwrap(), COUNT.into());
}

/// A close after everything ended is told so: what was acknowledged above may not be on the disk.
#[test]
fn a_close_of_what_was_stopped_tells_of_it() {
    let machine = SimEnv::new(1);
    let (db, faults) = loaded(&machine);
    faults.add(Rule::new(Effect::EIO).on(Call::Sync));
    let map = db.keyspace("map").unwrap();
    let dataset = db.dataset("").unwrap();
    dataset.health().unwrap();
    assert!(map.put_with("key", "value", Durability::Disk).is_err());
    assert!(dataset.health().is_err());
    let told = || -> Vec<_> { db.events().iter().map(|it| it.what.name()).collect() };
    assert_eq!(told(), ["stopped"]);
    assert_eq!(told(), [""; 0], "once");
    assert!(db.close().is_err());
    db.close().unwrap();
}

/// A close ends its last segment, so that the next open takes from a footer what is in tables, and the log
/// goes on behind it.
#[test]
fn a_close_seals_what_the_next_open_would_read() {
    let machine = SimEnv::new(1);
    for _ in 0..3 {
        let (db, _) = loaded(&machine);
        db.close().unwrap();
        drop(db);
        let (env, dir) = (machine.env(), Path::new("/db/primary/r00000"));
        let names = env.disk.list(dir).unwrap();
        let segments = names
            .iter()
            .filter_map(|entry| parse_file_name(&entry.name));
        let (_, first_seq) = segments.min().unwrap();
        let log = LogId {
            dataset: DatasetId::new(DatasetId::PRIMARY).unwrap(),
            region: RegionId(0),
            shard: ShardId(0),
        };
        let known = Known {
            log,
            lineage: None,
            durable_seq: 0,
            // Those before it are gone.
            flushed_seq: first_seq - 1,
            led: &|_| true,
            fork_seq: None,
        };
        let plan = plan(env.disk.as_ref(), dir, &known).unwrap();
        assert!(!plan.segments.is_empty());
        assert!(plan.segments.iter().all(|s| s.footer.is_some()), "{plan}");
        assert_eq!(count_after_power_loss(&machine).unwrap(), COUNT as usize);
    }
}
