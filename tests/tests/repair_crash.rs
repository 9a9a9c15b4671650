//! A machine that dies at every call of a repair, or right after it: the next repair ends it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use strandline::repair::repair;
use strandline::salvage::salvage;
use strandline::verify::verify;
use strandline::{Database, Durability, Options};
use strandline_tests::plan::small_options;
use strandline_wal::batch::Batch;
use strandline_wal::io::sim::{Damage, SimEnv};
use strandline_wal::io::{Access, Disk, write_all_at};
use strandline_wal::segment::{SEGMENT_HEADER_LEN, SegmentHeader};

const ROOT: &str = "/db";
const COPY: &str = "/copy";
/// Keys that the copy has, and all.
const KEY_COUNT: u8 = 21;
const ALL_COUNT: u8 = 24;

fn open(machine: &SimEnv, root: &str) -> Database {
    let options = Options {
        large_value_len_min: 2_000,
        ..small_options()
    };
    options.open_with(root, machine.env()).unwrap()
}

fn value(n: u8) -> Vec<u8> {
    let len = if n.is_multiple_of(7) { 5_000 } else { 400 };
    vec![n; len]
}

/// A closed database, and beside it a copy of its files that lacks the last records.
fn pair() -> SimEnv {
    let machine = SimEnv::new(1);
    let db = open(&machine, ROOT);
    let map = db.keyspace("map").unwrap();
    for n in 0..KEY_COUNT {
        map.put_with([n], value(n), Durability::Os).unwrap();
        if n % 8 == 7 {
            db.flush().unwrap();
        }
    }
    db.close().unwrap();
    copy(&machine);
    let db = open(&machine, ROOT);
    let map = db.keyspace("map").unwrap();
    for n in KEY_COUNT..ALL_COUNT {
        map.put([n], value(n)).unwrap();
    }
    db.close().unwrap();
    machine.disk.settle();
    machine
}

fn copy(machine: &SimEnv) {
    for (path, bytes) in machine.disk.files() {
        let path = Path::new(COPY).join(path.strip_prefix(ROOT).unwrap());
        machine.disk.create_dir_all(path.parent().unwrap()).unwrap();
        let file = machine.disk.create(&path).unwrap();
        write_all_at(file.as_ref(), &bytes, 0).unwrap();
    }
    machine.disk.settle();
}

fn fork(machine: &SimEnv) -> SimEnv {
    SimEnv {
        disk: machine.disk.fork(),
        ..machine.clone()
    }
}

/// The files of the database whose names end so.
fn files(machine: &SimEnv, end: &str) -> Vec<PathBuf> {
    let files = machine.disk.files().into_keys();
    files
        .filter(|path| path.starts_with(ROOT) && path.to_string_lossy().ends_with(end))
        .collect()
}

/// Every key has its value, and no promise is forgotten.
fn judge(machine: &SimEnv, root: &str) {
    if root == ROOT {
        let epoch = Path::new(ROOT).join("primary/epoch");
        let files = machine.disk.files();
        let names = files.keys().map(|path| path.display().to_string());
        assert!(
            files.contains_key(&epoch),
            "no {epoch:?}: {:?}",
            names.collect::<Vec<_>>()
        );
    }
    let db = open(machine, root);
    let map = db.keyspace("map").unwrap();
    for n in 0..ALL_COUNT {
        assert_eq!(map.get([n]).unwrap().unwrap(), value(n), "key {n}");
    }
}

fn mend(machine: &SimEnv) {
    let report = repair(Path::new(ROOT), Path::new(COPY), &machine.env()).unwrap();
    assert!(report.problems.is_empty(), "{report:#?}");
}

/// Dies at every call of the repair of what `damage` did.
fn sweep(damage: impl Fn(&SimEnv)) {
    let damaged = pair();
    damage(&damaged);
    damaged.disk.settle();
    let whole = fork(&damaged);
    let before = whole.disk.io_count();
    mend(&whole);
    let io_count = whole.disk.io_count() - before;
    assert!(io_count > 20, "{io_count} calls");
    for damage in Damage::ALL {
        let after = whole.crash(1, damage);
        judge(&after, ROOT);
    }
    for at in 0..io_count {
        let machine = fork(&damaged);
        machine.disk.crash_at(before + at);
        // It may be the last check of all that the death falls on, which tells of it.
        let _ = repair(Path::new(ROOT), Path::new(COPY), &machine.env());
        assert!(machine.disk.is_dead());
        for (n, damage) in Damage::ALL.into_iter().enumerate() {
            println!("death at call {at} of {io_count}, {damage:?}");
            let after = machine.crash(at << 8 | n as u64, damage);
            mend(&after);
            judge(&after, ROOT);
        }
    }
}

#[test]
fn a_repair_that_replaces_everything_survives_its_death() {
    sweep(|machine| {
        for manifest in files(machine, "manifest")
            .iter()
            .chain(&files(machine, "manifest.copy"))
        {
            machine.disk.remove(manifest).unwrap();
        }
        let slots = machine.disk.files().into_keys();
        assert!(
            !slots
                .into_iter()
                .any(|p| p.starts_with(ROOT) && p.to_string_lossy().contains("manifest"))
        );
    });
}

#[test]
fn a_repair_of_tables_survives_its_death() {
    sweep(|machine| {
        let tables = files(machine, ".tbl");
        machine.disk.rot(&tables[0], 2_000, 1).unwrap();
    });
}

#[test]
fn a_repair_of_segments_survives_its_death() {
    sweep(|machine| {
        let segments = files(machine, ".seg");
        let segments = segments.iter().filter(|path| {
            let theirs = Path::new(COPY).join(path.strip_prefix(ROOT).unwrap());
            machine.disk.files().contains_key(&theirs)
        });
        for segment in segments {
            machine.disk.rot(segment, 700, 1).unwrap();
        }
    });
}

/// A power loss right after a salvage takes nothing of it.
#[test]
fn what_was_salvaged_is_durable() {
    let machine = pair();
    let report = salvage(Path::new(ROOT), Path::new("/new"), &machine.env()).unwrap();
    assert!(report.is_whole(), "{report:?}");
    judge(&machine.crash(1, Damage::LoseAll), "/new");
}

/// The copy went on after this node's log ended, in a segment that says to continue another one.
#[test]
fn a_segment_of_another_history_is_not_adopted() {
    let machine = pair();
    machine.disk.remove_dir_all(Path::new(COPY)).unwrap();
    let before = fork(&machine);
    // A database that is opened goes on in a segment of its own.
    let db = open(&machine, ROOT);
    db.keyspace("map")
        .unwrap()
        .put([ALL_COUNT], "more")
        .unwrap();
    db.close().unwrap();
    let last = files(&machine, ".seg")
        .into_iter()
        .rfind(|path| path.to_string_lossy().contains("wal-"))
        .unwrap();
    let joined = fork(&before);
    for (path, bytes) in machine.disk.files() {
        let bytes = if path == last { forged(&bytes) } else { bytes };
        let path = Path::new(COPY).join(path.strip_prefix(ROOT).unwrap());
        joined.disk.create_dir_all(path.parent().unwrap()).unwrap();
        let file = joined.disk.create(&path).unwrap();
        write_all_at(file.as_ref(), &bytes, 0).unwrap();
    }
    // Nobody knows any more how far the log was durable.
    for marks in files(&joined, "durable") {
        let file = joined.disk.open(&marks, Access::Write).unwrap();
        let len = file.len().unwrap();
        write_all_at(file.as_ref(), &vec![0; len as usize], 0).unwrap();
    }
    joined.disk.settle();
    let _ = repair(Path::new(ROOT), Path::new(COPY), &joined.env());
    let adopted = files(&joined, last.file_name().unwrap().to_str().unwrap());
    assert_eq!(adopted, Vec::<PathBuf>::new());
    assert_eq!(verify(Path::new(ROOT), &joined.env()).unwrap().problems, []);
    judge(&joined, ROOT);
}

/// The segment behind another chain value, with batches that follow that one.
fn forged(bytes: &[u8]) -> Vec<u8> {
    let mut header = SegmentHeader::decode(bytes, Path::new("forged")).unwrap();
    header.prev_crc ^= 1;
    let mut chain = header.prev_crc;
    let mut forged = header.encode().to_vec();
    let mut at = SEGMENT_HEADER_LEN;
    while let Ok(batch) = Batch::decode(&bytes[at..]) {
        let mut header = batch.header;
        header.prev_crc = chain;
        let (encoded, crc) = header.encode();
        chain = crc;
        forged.extend_from_slice(&encoded);
        forged.extend_from_slice(batch.payload);
        at += batch.header.batch_len();
    }
    forged
}
