//! Verification, repair and salvage where there is little to go by: what is absent, foreign, crafted or
//! cannot be read, and a disk that fails any one of their calls.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline::manifest::Manifest;
use strandline::repair::{repair, repair_from};
use strandline::salvage::{LostWhat, salvage};
use strandline::verify::verify;
use strandline::{
    Background, Database, Durability, Error, ErrorKind, Options, Result, ShardRouter,
};
use strandline_wal::Error as LogError;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::{SimDisk, SimEnv};
use strandline_wal::io::{Access, Disk, Env, LockMode, read_file, write_all_at};
use strandline_wal::segment::TRAILER_LEN;

const ROOT: &str = "/db";
const COPY: &str = "/copy";
const COUNT: usize = 400;

fn options() -> Options {
    Options {
        router: ShardRouter::hash(2).unwrap(),
        memtable_len_max: 1 << 20,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        table_len_max: 64 << 10,
        reserve_len_max: 0,
        durability: Durability::Os,
        background: Background::Manual,
        ..Options::default()
    }
}

fn write(db: &Database, from: u32, to: u32) {
    let map = db.keyspace("map").unwrap();
    for n in from..to {
        let len = if n.is_multiple_of(20) { 5_000 } else { 300 };
        map.put(n.to_be_bytes(), vec![n as u8; len]).unwrap();
    }
}

/// A closed database with tables and a log behind them, and a checkpoint of it.
fn twins() -> SimEnv {
    let machine = SimEnv {
        disk: SimDisk::pread(1),
        ..SimEnv::new(1)
    };
    let db = options().open_with(ROOT, machine.env()).unwrap();
    write(&db, 0, 200);
    db.flush().unwrap();
    write(&db, 200, COUNT as u32);
    db.checkpoint(COPY).unwrap();
    db.close().unwrap();
    machine
}

fn files(machine: &SimEnv, root: &str, part: &str) -> Vec<PathBuf> {
    let files = machine.disk.files().into_keys();
    let is_asked = |path: &PathBuf| path.starts_with(root) && path.to_string_lossy().contains(part);
    files.filter(is_asked).collect()
}

fn count(db: &Database) -> usize {
    db.keyspace("map")
        .unwrap()
        .iter()
        .map(Result::unwrap)
        .count()
}

#[track_caller]
fn refusal<T>(result: Result<T>, kind: ErrorKind, words: &[&str]) {
    let error = result.err().unwrap();
    let text = error.to_string();
    assert_eq!(error.kind(), kind, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_repair_says_what_it_cannot_mend_by() {
    let machine = twins();
    let env = machine.env();
    let (root, copy, none) = (Path::new(ROOT), Path::new(COPY), Path::new("/none"));
    refusal(
        repair(none, copy, &env),
        ErrorKind::Caller,
        &["database", "/none"],
    );
    refusal(
        repair(root, none, &env),
        ErrorKind::Caller,
        &["database", "/none"],
    );
    let lock = env
        .disk
        .lock(Path::new("/db/LOCK"), LockMode::Exclusive)
        .unwrap();
    refusal(
        repair(root, copy, &env),
        ErrorKind::Operator,
        &[ROOT, "another process"],
    );
    drop(lock);
    let fork = || SimEnv {
        disk: machine.disk.fork(),
        ..machine.clone()
    };
    // What the copy does not have of, or under a name that is none, is left alone.
    let foreign = fork();
    for dir in ["/db/Not a dataset", "/db/other", "/copy/Not a dataset"] {
        foreign.disk.create_dir_all(Path::new(dir)).unwrap();
    }
    let report = repair(root, copy, &foreign.env()).unwrap();
    assert_eq!((report.datasets.len(), report.repair_count()), (1, 0));
    let crafted = |change: &dyn Fn(&mut Manifest)| {
        let machine = fork();
        let path = copy.join("primary/manifest");
        let mut manifest = Manifest::load(&machine.disk, &path).unwrap().unwrap();
        change(&mut manifest);
        manifest.store(&machine.disk, &path).unwrap();
        repair(root, copy, &machine.env())
    };
    let other_layout = crafted(&|m| {
        m.router = ShardRouter::Single;
        m.logs.truncate(1);
        m.epochs.truncate(1);
    });
    refusal(
        other_layout,
        ErrorKind::Operator,
        &["layout", "hash(2)", "single"],
    );
    let other_history = crafted(&|m| m.lineage = [0xab; 16]);
    refusal(
        other_history,
        ErrorKind::Operator,
        &["history", &"ab".repeat(16)],
    );
    let bare = fork();
    for path in files(&bare, COPY, "manifest") {
        bare.disk.remove(&path).unwrap();
    }
    let refused = repair(root, copy, &bare.env());
    refusal(
        refused,
        ErrorKind::Restore,
        &["/copy/primary/manifest", "no such file"],
    );
    let nobody = repair_from(root, &["127.0.0.1:1".to_owned()], &env);
    refusal(
        nobody,
        ErrorKind::Retry,
        &["nobody who leads", "primary", "127.0.0.1:1"],
    );
    foreign
        .disk
        .create_dir_all(Path::new("/empty/Not a dataset"))
        .unwrap();
    foreign
        .disk
        .create_dir_all(Path::new("/empty/without"))
        .unwrap();
    let nothing = repair_from(Path::new("/empty"), &[], &foreign.env());
    refusal(
        nothing,
        ErrorKind::Caller,
        &["dataset", "/empty", "nothing to repair"],
    );
}

/// Both have the same table damaged: the tables stay, and the report says what is still bad.
#[test]
fn what_is_damaged_on_both_sides_stays_and_is_told() {
    let machine = twins();
    let table = files(&machine, ROOT, ".tbl").remove(0);
    // The copy's is a second name of the same file.
    machine.disk.rot(&table, 2_000, 1).unwrap();
    let before = files(&machine, ROOT, "");
    let report = repair(Path::new(ROOT), Path::new(COPY), &machine.env()).unwrap();
    assert!(
        report.problems.iter().any(|p| p.path == table),
        "{report:?}"
    );
    let notes = report.datasets[0].notes.join("\n");
    assert!(notes.contains("the copy cannot take this place"), "{notes}");
    assert_eq!(files(&machine, ROOT, ""), before);
}

#[test]
fn a_salvage_takes_many_batches_and_refuses_what_holds_nothing() {
    let machine = twins();
    let env = machine.env();
    let (root, to) = (Path::new(ROOT), Path::new("/new"));
    env.disk
        .create_dir_all(Path::new("/empty/Not a dataset"))
        .unwrap();
    env.disk
        .create_dir_all(Path::new("/empty/without"))
        .unwrap();
    let nothing = salvage(Path::new("/empty"), to, &env);
    refusal(
        nothing,
        ErrorKind::Caller,
        &["/empty", "no directory in it"],
    );
    let db = options().open_with(ROOT, env.clone()).unwrap();
    let map = db.keyspace("map").unwrap();
    for n in 0..300u32 {
        map.put([&n.to_be_bytes()[..], b"large"].concat(), vec![1; 9_000])
            .unwrap();
    }
    db.close().unwrap();
    let report = salvage(root, to, &env).unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert_eq!(report.datasets[0].key_count as usize, COUNT + 300);
    let new = options().open_with(to, env).unwrap();
    assert_eq!(count(&new), COUNT + 300);
}

/// A sector that the disk cannot read is lost, and what stands around it is not. Of a file that cannot be
/// read at all the report named the footer of the intact segment before it.
#[test]
fn a_salvage_reads_around_a_sector_and_gives_up_a_file_that_cannot_be_read() {
    let machine = twins();
    let segments = files(&machine, ROOT, "/wal-");
    let name = segments
        .last()
        .unwrap()
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let with = |rule: Rule, to: &str| {
        let faults = FaultDisk::new(machine.env().disk);
        faults.add(
            rule.on(Call::Read)
                .path(&format!("db/primary/r00000/{name}")),
        );
        let env = Env {
            disk: Arc::new(faults),
            ..machine.env()
        };
        salvage(Path::new(ROOT), Path::new(to), &env).unwrap()
    };
    // A read that failed once is made again, sector by sector.
    let report = with(Rule::new(Effect::EIO), "/once");
    assert!(report.is_whole(), "{report:?}");
    let report = with(Rule::new(Effect::EIO).sticky(), "/never");
    let lost = &report.datasets[0].lost;
    assert!(!lost.is_empty());
    for lost in lost {
        assert!(lost.path.ends_with(&name), "{lost:?}");
        assert!(lost.why.contains("os error 5"), "{lost:?}");
        assert!(matches!(lost.what, LostWhat::Records { .. }), "{lost:?}");
    }
}

/// The first batch of a segment says what its damaged header would; a segment of another dataset says
/// nothing.
#[test]
fn a_salvage_looks_behind_a_damaged_header_and_at_whose_a_segment_is() {
    let machine = twins();
    let segments = files(&machine, ROOT, "/wal-");
    machine.disk.rot(segments.last().unwrap(), 20, 1).unwrap();
    let report = salvage(Path::new(ROOT), Path::new("/new"), &machine.env()).unwrap();
    assert_eq!(report.datasets[0].key_count as usize, COUNT, "{report:?}");
    let machine = twins();
    let db = options().open_with("/foreign", machine.env()).unwrap();
    let map = db.dataset("foreign").unwrap().keyspace("map").unwrap();
    map.put("key", "not ours").unwrap();
    db.close().unwrap();
    let first = files(&machine, "/foreign", "/wal-").remove(0);
    let bytes = read_file(&machine.disk, &first, u64::MAX).unwrap();
    let file = machine.disk.open(&segments[0], Access::Write).unwrap();
    file.set_len(0).unwrap();
    write_all_at(file.as_ref(), &bytes, 0).unwrap();
    let report = salvage(Path::new(ROOT), Path::new("/new"), &machine.env()).unwrap();
    let new = options().open_with("/new", machine.env()).unwrap();
    assert_eq!(
        new.keyspace("map").unwrap().get("key").unwrap(),
        None,
        "{report:?}"
    );
    assert!(count(&new) >= 200, "tables are not harmed: {report:?}");
}

#[test]
fn verify_tells_absence_from_emptiness_and_notes_what_a_crash_leaves() {
    let machine = twins();
    let check = |machine: &SimEnv, root: &str| verify(Path::new(root), &machine.env());
    let fork = || SimEnv {
        disk: machine.disk.fork(),
        ..machine.clone()
    };
    machine.disk.create_dir_all(Path::new("/empty")).unwrap();
    refusal(
        check(&machine, "/empty"),
        ErrorKind::Caller,
        &["database", "/empty"],
    );
    options()
        .open_with("/fresh", machine.env())
        .unwrap()
        .close()
        .unwrap();
    machine
        .disk
        .create_dir_all(Path::new("/fresh/Not a dataset"))
        .unwrap();
    assert_eq!(check(&machine, "/fresh").unwrap().problems, []);
    // A manifest that is one generation behind the other, as a crash between the two leaves it.
    let behind = fork();
    let path = Path::new("/db/primary/manifest");
    let old = read_file(&behind.disk, path, u64::MAX).unwrap();
    let mut manifest = Manifest::load(&behind.disk, path).unwrap().unwrap();
    manifest.generation += 1;
    manifest.store(&behind.disk, path).unwrap();
    let file = behind.disk.open(path, Access::Write).unwrap();
    write_all_at(file.as_ref(), &old, 0).unwrap();
    let report = check(&behind, ROOT).unwrap();
    assert_eq!(report.problems, []);
    assert!(
        report.notes.iter().any(|n| n.contains("generation")),
        "{report:?}"
    );
    let bare = fork();
    for path in files(&bare, ROOT, "manifest") {
        bare.disk.remove(&path).unwrap();
    }
    let report = check(&bare, ROOT).unwrap();
    assert_eq!(report.problems.len(), 1, "{report:?}");
    assert_eq!(report.problems[0].path, path);
    assert!(
        report.problems[0].what.contains("no such file"),
        "{report:?}"
    );
    // It is no new dataset either.
    let refused = options().open_with(ROOT, bare.env());
    refusal(
        refused,
        ErrorKind::Restore,
        &["/db/primary/manifest", "wal-", "and no manifest"],
    );
    // A tail that was never marked durable.
    let torn = fork();
    torn.disk
        .remove(Path::new("/db/primary/r00000/durable"))
        .unwrap();
    let last = files(&torn, ROOT, "/wal-").pop().unwrap();
    // Without the footer that the close gave it.
    let bytes = &machine.disk.files()[&last];
    let trailer = bytes.last_chunk::<TRAILER_LEN>().unwrap();
    let data_len = u64::from_le_bytes(*trailer.first_chunk().unwrap());
    let file = torn.disk.open(&last, Access::Write).unwrap();
    file.set_len(data_len).unwrap();
    let batches = &bytes[..data_len as usize];
    let len = batches.iter().rposition(|byte| *byte != 0).unwrap();
    torn.disk.rot(&last, len as u64, 1).unwrap();
    let report = check(&torn, ROOT).unwrap();
    let mut notes = report.notes.iter();
    let is_told = notes.any(|note| note.contains("will be cut at byte"));
    assert!(is_told || !report.problems.is_empty(), "{report:?}");
}

#[test]
fn a_log_that_lacks_its_first_segments_is_not_opened() {
    let machine = twins();
    let first = files(&machine, ROOT, "/wal-").remove(0);
    machine.disk.remove(&first).unwrap();
    let refused = options().open_with(ROOT, machine.env());
    refusal(
        refused,
        ErrorKind::Restore,
        &["start of the log", "expected a segment"],
    );
}

/// Each call that the disk gets in a repair and in a salvage fails once: it is named, and doing it again
/// succeeds. A read of an intact chunk that failed once, after the damage was listed, was taken for one more
/// damaged chunk: the repair succeeded without its keys, and so did the salvage.
#[test]
fn a_mending_whose_disk_fails_is_made_again() {
    let ready = twins();
    let table = files(&ready, ROOT, ".tbl").remove(0);
    // A file of its own, damaged; the copy keeps its.
    let mut bytes = read_file(&ready.disk, &table, u64::MAX).unwrap();
    bytes[2_000] ^= 1;
    ready.disk.remove(&table).unwrap();
    write_all_at(ready.disk.create(&table).unwrap().as_ref(), &bytes, 0).unwrap();
    type Work = fn(&Env) -> Result<()>;
    let works: [(&str, &str, Work); 2] = [
        ("repair", "", |env| {
            let report = repair(Path::new(ROOT), Path::new(COPY), env)?;
            assert!(report.repair_count() > 0, "{report:?}");
            Ok(())
        }),
        // What it reads: what it writes is a database like any other.
        ("salvage", COPY, |env| {
            let report = salvage(Path::new(COPY), Path::new("/new"), env)?;
            match report.is_whole() {
                true => Ok(()),
                false => Err(Error::Closed("salvage: it tells what it lost")),
            }
        }),
    ];
    for (name, part, work) in works {
        let (mut at, mut refused) = (0, 0);
        loop {
            let machine = SimEnv {
                disk: ready.disk.fork(),
                ..ready.clone()
            };
            let faults = FaultDisk::new(machine.env().disk);
            let rule = faults.add(Rule::new(Effect::EIO).path(part).after(at));
            let env = Env {
                disk: Arc::new(faults.clone()),
                ..machine.env()
            };
            let done = work(&env);
            if name == "salvage" && done.is_ok() {
                let new = options().open_read_only_with("/new", machine.env());
                assert_eq!(count(&new.unwrap()), COUNT, "call {at}");
            }
            if let Err(error) = done {
                let is_io = matches!(
                    error,
                    Error::Log(LogError::Io { .. } | LogError::Poisoned { .. })
                );
                let is_told = matches!(error, Error::Closed(_));
                assert!(is_io || is_told, "{name}: call {at}: {error}");
                refused += 1;
            }
            if faults.fired_count(rule) == 0 {
                break;
            }
            if name == "repair" {
                let report = repair(Path::new(ROOT), Path::new(COPY), &machine.env())
                    .unwrap_or_else(|error| panic!("call {at}: {error}"));
                assert_eq!(report.problems, [], "call {at}");
                let db = options().open_with(ROOT, machine.env()).unwrap();
                assert_eq!(count(&db), COUNT, "call {at}");
            }
            at += 1;
        }
        assert!(refused > 20, "{name}: {refused} of {at}");
    }
}
