//! One flipped bit in every byte of every file, every length, missing files and misplaced sectors:
//! the right values or an error that names the file, never a wrong read, a panic, or endless work.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use strandline::Durability::{Disk as Durable, Os};
use strandline::{Database, Error, ErrorKind, Options};
use strandline_tests::model::State;
use strandline_tests::ops::Op;
use strandline_tests::plan::{Case, script, small_options};
use strandline_tests::run::{ROOT, Run, Tally, machine, name};
use strandline_tests::seed::{self, Rng};
use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{Access, Disk};

/// More calls than any open of this small database and reading all of it takes.
const CALL_COUNT_MAX: u64 = 1_000;

/// A closed database with every kind of file, and what it holds.
struct Subject {
    case: Case,
    machine: SimEnv,
    files: BTreeMap<PathBuf, Vec<u8>>,
    state: State,
}

impl Subject {
    /// Tables with values and with pointers, sealed segments that are flushed and that are not, a
    /// growing one, and the small files.
    fn new(maps: bool) -> Subject {
        let put = |n: usize, len| Op::Put(n % 2, n % 10, len, Os);
        let mut ops = Vec::new();
        ops.extend((0..10).map(|n| put(n, 30 * n)));
        ops.extend((0..10).map(|n| Op::Put(1, n, 300 + n, Os)));
        ops.extend([Op::Flush, Op::Delete(0, 4, Os), put(3, 700), put(2, 20)]);
        ops.extend([Op::Flush, Op::Reopen, put(5, 400), put(7, 30), Op::Reopen]);
        ops.extend([
            put(9, 90),
            Op::Batch(vec![(0, 0, Some(50)), (1, 1, None)], Durable),
        ]);
        let options = Options {
            large_value_len_min: 64,
            run_count_max: 4,
            ..small_options()
        };
        let case = Case {
            maps,
            ..script(options, ops)
        };
        let mut run = Run::new(&case, machine(&case));
        run.start().unwrap();
        run.all().unwrap();
        let stats = run.opened().dataset.stats();
        assert!(stats.run_count == 2 && stats.live_value_len > 0 && stats.segment_count >= 3);
        let state = run.model.now().clone();
        run.close_quietly();
        let machine = run.machine.clone();
        machine.disk.settle();
        let files = machine.disk.files();
        let kinds = ["NODE", "manifest", "epoch", "durable", ".tbl", ".seg"];
        for kind in kinds {
            let is = |path: &PathBuf| path.to_string_lossy().ends_with(kind);
            assert!(files.keys().any(is), "no file of kind {kind}");
        }
        drop(run);
        Subject {
            case,
            machine,
            files,
            state,
        }
    }

    fn copy(&self) -> SimEnv {
        SimEnv {
            disk: self.machine.disk.fork(),
            ..self.machine.clone()
        }
    }

    /// Opens a damaged copy, reads everything, and writes on where that is asked for.
    fn judge(
        &self,
        machine: &SimEnv,
        path: &Path,
        writable: bool,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let judged = catch_unwind(AssertUnwindSafe(|| {
            let options = self.case.options.clone();
            let opened = match writable {
                true => options.open_with(ROOT, machine.env()),
                false => options.open_read_only_with(ROOT, machine.env()),
            };
            let outcome = match opened.and_then(|db| db.dataset("").map(|_| db)) {
                Err(error) => {
                    clear(&error, path)?;
                    "refused"
                }
                Ok(db) => match self.read(&db, path)? {
                    0 => "harmless",
                    _ => "errors where it was read",
                },
            };
            let call_count = machine.disk.io_count();
            if call_count > CALL_COUNT_MAX {
                return Err(format!("{call_count} calls of the disk"));
            }
            Ok(outcome)
        }));
        tally.add(
            judged.unwrap_or_else(|_| Err("a panic, told above".to_owned()))?,
            1,
        );
        Ok(())
    }

    /// Reads everything in every way; returns how many reads failed.
    fn read(&self, db: &Database, path: &Path) -> Result<u64, String> {
        let mut failed = 0;
        let dataset = db.dataset("").map_err(|e| e.to_string())?;
        for (n, map) in self.state.maps.iter().enumerate() {
            let keyspace = dataset.keyspace(&name(n)).map_err(|e| e.to_string())?;
            for key in &self.case.keys {
                match keyspace.get(key) {
                    Err(error) => {
                        failed += 1;
                        clear(&error, path)?;
                    }
                    Ok(found) if found.as_deref() == map.get(key).map(|v| &v[..]) => {}
                    Ok(found) => {
                        let found = found.map(|v| v.len());
                        return Err(format!("keyspace {n} key {key:?}: a wrong read, {found:?}"));
                    }
                }
            }
            let mut expected = map.iter();
            for entry in keyspace.iter() {
                let expected = expected.next();
                match entry {
                    Err(error) => {
                        failed += 1;
                        clear(&error, path)?;
                        // It ends here, and never steps over what it cannot read.
                        expected.ok_or("an error behind the end")?;
                        break;
                    }
                    Ok((key, value))
                        if expected.is_some_and(|(k, v)| *k == key && **v == value[..]) => {}
                    Ok((key, _)) => return Err(format!("keyspace {n}: a wrong entry {key:?}")),
                }
            }
            if failed == 0 && expected.next().is_some() {
                return Err(format!("keyspace {n}: it ends early without an error"));
            }
        }
        Ok(failed)
    }
}

/// The error names the damaged file, and says that it is damaged or not for this release.
fn clear(error: &Error, path: &Path) -> Result<(), String> {
    let text = error.to_string();
    let file = path.file_name().unwrap().to_string_lossy();
    let names = text.contains(&*file);
    match error.kind() {
        ErrorKind::Restore | ErrorKind::Operator if names => Ok(()),
        kind => Err(format!("an unclear error, {kind:?}: {text}")),
    }
}

fn is_lock(path: &Path) -> bool {
    path.ends_with("LOCK") || path.ends_with("READERS")
}

fn flip(maps: bool, step: usize, writable: impl Fn(usize) -> bool) -> Tally {
    let subject = Subject::new(maps);
    let mut tally = Tally::default();
    for (path, bytes) in subject.files.iter().filter(|(path, _)| !is_lock(path)) {
        for at in (0..bytes.len()).step_by(step) {
            let mask = 1 << (at % 8);
            let machine = subject.copy();
            machine.disk.rot(path, at as u64, mask).unwrap();
            subject
                .judge(&machine, path, writable(at), &mut tally)
                .unwrap_or_else(|error| {
                    panic!(
                        "maps {maps}: {} byte {at} bit {mask:#x}: {error}",
                        path.display()
                    )
                });
            tally.add("flips", 1);
        }
    }
    tally
}

#[test]
fn a_flipped_bit_in_any_byte_is_told_or_harmless_to_readers() {
    let tally = flip(true, 1, |_| false);
    println!("flips, maps, readers: {}", tally.line());
    assert!(tally.count("refused") > 1_000 && tally.count("errors where it was read") > 1_000);
}

#[test]
fn a_flipped_bit_is_told_or_harmless_to_writers() {
    let step = if seed::is_long() { 1 } else { 5 };
    let tally = flip(true, step, |_| true);
    println!("flips, maps, writers: {}", tally.line());
}

#[test]
fn a_flipped_bit_is_told_or_harmless_without_maps() {
    let step = if seed::is_long() { 1 } else { 7 };
    let tally = flip(false, step, |at| at % 2 == 0);
    println!("flips, no maps: {}", tally.line());
}

/// Lengths to cut a file to: all of a small one, of a large one those around sectors and others.
fn lengths(len: usize, rng: &mut Rng) -> Vec<usize> {
    let is_small = len <= 4_096 || seed::is_long();
    let keep = |at: &usize| is_small || at % 512 < 2 || at % 512 == 511 || rng.below(40) == 0;
    (0..len).filter(keep).collect()
}

#[test]
fn a_file_of_any_other_length_is_told_or_harmless() {
    let mut tally = Tally::default();
    let mut rng = Rng::new(seed::base(5));
    for maps in [true, false] {
        let subject = Subject::new(maps);
        for (path, bytes) in subject.files.iter().filter(|(path, _)| !is_lock(path)) {
            let set_len = |machine: &SimEnv, len: usize, junk: &[u8]| {
                let file = machine.disk.open(path, Access::Write).unwrap();
                file.set_len(len as u64).unwrap();
                if !junk.is_empty() {
                    file.write_at(junk, len as u64).unwrap();
                }
                machine.disk.settle();
            };
            for len in lengths(bytes.len(), &mut rng) {
                let machine = subject.copy();
                set_len(&machine, len, &[]);
                subject
                    .judge(&machine, path, len % 3 == 0, &mut tally)
                    .unwrap_or_else(|e| panic!("{} cut to {len}: {e}", path.display()));
                tally.add("cuts", 1);
            }
            for n in 0..24 {
                let machine = subject.copy();
                let len = bytes.len() + if n % 2 == 0 { 0 } else { rng.below(9_000) };
                let junk: Vec<u8> = (0..rng.below(600)).map(|_| rng.next_u64() as u8).collect();
                set_len(&machine, len, &junk);
                subject
                    .judge(&machine, path, n % 3 == 0, &mut tally)
                    .unwrap_or_else(|e| panic!("{} extended: {e}", path.display()));
                tally.add("extensions", 1);
            }
        }
    }
    println!("lengths: {}", tally.line());
}

#[test]
fn a_sector_in_the_wrong_place_is_told_or_harmless() {
    let mut tally = Tally::default();
    let base = seed::base(6);
    let mut rng = Rng::new(base);
    let subject = Subject::new(true);
    let files: Vec<(&PathBuf, &Vec<u8>)> = subject
        .files
        .iter()
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    for _ in 0..seed::count(5_000, 200_000) {
        let (path, bytes) = *rng.pick(&files);
        let (from_path, from_bytes) = *rng.pick(&files);
        // Mostly the places where something stands.
        let within =
            |bytes: &[u8], rng: &mut Rng| rng.below(bytes.len().div_ceil(512).min(24)) * 512;
        let (at, from) = (within(bytes, &mut rng), within(from_bytes, &mut rng));
        let len = 512.min(bytes.len() - at).min(from_bytes.len() - from);
        let sector = &from_bytes[from..from + len];
        if sector == &bytes[at..at + len] {
            continue;
        }
        let machine = subject.copy();
        let file = machine.disk.open(path, Access::Write).unwrap();
        file.write_at(sector, at as u64).unwrap();
        drop(file);
        machine.disk.settle();
        subject
            .judge(&machine, path, rng.below(3) == 0, &mut tally)
            .unwrap_or_else(|e| {
                panic!(
                    "STRANDLINE_SEED={base}: sector {from} of {} at {at} of {}: {e}",
                    from_path.display(),
                    path.display()
                )
            });
        tally.add("misplaced sectors", 1);
    }
    println!("sectors: seed {base}, {}", tally.line());
}

#[test]
fn a_missing_file_is_told_or_harmless() {
    let mut tally = Tally::default();
    let subject = Subject::new(true);
    for path in subject.files.keys() {
        for writable in [false, true] {
            let machine = subject.copy();
            machine.disk.remove(path).unwrap();
            machine.disk.settle();
            // Of a log that lost its end nobody knows how the file was called.
            let is_segment = path.extension().is_some_and(|e| e == "seg");
            let named = path.parent().filter(|_| is_segment).unwrap_or(path);
            subject
                .judge(&machine, named, writable, &mut tally)
                .unwrap_or_else(|e| panic!("{} is missing: {e}", path.display()));
        }
    }
    println!("missing files: {}", tally.line());
}
