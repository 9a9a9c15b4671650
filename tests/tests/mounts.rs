//! Real file systems in images: ext4, XFS and btrfs. Each is filled and freed, meets processes that are
//! killed, is taken away from an open database, and is unmounted and mounted again.
//!
//! Needs root and the tools of each; elsewhere it says so and passes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline::{Database, Error, ErrorKind};
use strandline_tests::mounts::{Mount, fill_and_free};
use strandline_tests::oracle::Oracle;
use strandline_tests::seed::{self, Rng};
use strandline_tests::writer::{self, Phase, Start, database, options};

/// Not a test of its own: the process that is killed. Without its variables it does nothing.
#[test]
fn writer() {
    writer::run();
}

/// Kills a writer in each of its phases, and finds everything after a new mount too.
fn kill(mount: &mut Mount, seed: u64) {
    let root = mount.root().to_owned();
    let mut oracle = Oracle::new(seed);
    for phase in Phase::EACH {
        let start = Start {
            dir: &root,
            seed,
            phase,
            count: 200,
            by: &[],
        };
        let mut life = start.spawn(&oracle);
        let acked = oracle.acked_count;
        while !(life.met.contains(&phase) || oracle.acked_count - acked > 300) {
            assert!(
                life.hear(&mut oracle),
                "{:?} {:?}",
                life.failures,
                life.strange
            );
        }
        life.kill(&mut oracle);
        let (failures, strange) = (&life.failures, &life.strange);
        assert!(
            failures.is_empty() && strange.is_empty(),
            "{failures:?} {strange:?}"
        );
        life.judge_checkpoint(&root, &oracle).unwrap();
        let db = options().open(database(&root)).unwrap();
        oracle
            .judge(&db)
            .unwrap_or_else(|error| panic!("{phase}: {error}"));
        db.close().unwrap();
    }
    println!(
        "kill -9: {} writes acknowledged, 0 lost",
        oracle.acked_count
    );
    mount.unmount();
    mount.mount("rw").unwrap();
    let db = options().open(database(&root)).unwrap();
    oracle.judge(&db).unwrap();
    db.close().unwrap();
}

/// Writes `count` keys and returns the first error.
fn put(db: &Database, from: u32, count: u32) -> Result<(), Error> {
    let map = db.keyspace("map")?;
    (from..from + count).try_for_each(|n| map.put(n.to_be_bytes(), vec![n as u8; 3_000]))
}

fn count(db: &Database) -> usize {
    let map = db.keyspace("map").unwrap();
    let entries = map.iter().inspect(|entry| {
        let (key, value) = entry.as_ref().unwrap();
        assert!(value.len() == 3_000 && value.iter().all(|byte| *byte == key[3]));
    });
    entries.count()
}

/// ext4 can be told that its device failed: it takes no write from then on, and is read as before.
fn abort(mount: &mut Mount) {
    let path = mount.root().join("aborted");
    let db = options().open(&path).unwrap();
    put(&db, 0, 300).unwrap();
    assert!(mount.remount("abort"));
    let refused = put(&db, 300, 100).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(put(&db, 300, 1).is_err() && db.flush().is_err());
    assert!(db.dataset("").unwrap().compact().is_err());
    assert!((300..400).contains(&count(&db)), "reading goes on");
    assert!(
        db.close().is_err(),
        "there is nothing left that a close could save"
    );
    drop(db);
    mount.unmount();
    mount.mount("rw").unwrap();
    let db = options().open(&path).unwrap();
    let found = count(&db);
    assert!((300..400).contains(&found), "{found} keys");
    put(&db, 300, 100).unwrap();
    db.close().unwrap();
}

/// Read-only while a database is open, which the kernel refuses, and before it is opened.
fn make_read_only(mount: &mut Mount) {
    let path = mount.root().join("read-only");
    let db = options().open(&path).unwrap();
    put(&db, 0, 300).unwrap();
    assert!(!mount.remount("ro"), "files are open for writing");
    put(&db, 300, 100).unwrap();
    db.close().unwrap();
    drop(db);
    mount.unmount();
    mount.mount("ro").unwrap();
    let refused = options().open(&path).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::Operator, "{refused}");
    let text = refused.to_string();
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(text.contains(&path.display().to_string()), "{text}");
    let db = options().open_read_only(&path).unwrap();
    assert_eq!(count(&db), 400);
    db.close().unwrap();
    drop(db);
    mount.unmount();
    mount.mount("rw").unwrap();
    let db = options().open(&path).unwrap();
    assert_eq!(count(&db), 400);
    put(&db, 400, 1).unwrap();
    db.close().unwrap();
}

fn check(kind: &str, len: u64) {
    let Some(mut mount) = Mount::image(kind, len) else {
        return;
    };
    let seed = seed::base(5);
    kill(&mut mount, seed);
    make_read_only(&mut mount);
    if kind == "ext4" {
        abort(&mut mount);
    }
    mount.leave(28 << 20);
    fill_and_free(mount.root(), seed::count(2, 20), &mut Rng::new(seed));
    println!("{kind}: all checks");
}

#[test]
fn ext4_is_filled_killed_on_made_read_only_and_mounted_again() {
    check("ext4", 128 << 20);
}

#[test]
fn xfs_is_filled_killed_on_made_read_only_and_mounted_again() {
    check("xfs", 320 << 20);
}

#[test]
fn btrfs_is_filled_killed_on_made_read_only_and_mounted_again() {
    check("btrfs", 192 << 20);
}
