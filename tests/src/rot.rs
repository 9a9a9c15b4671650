//! Damage at rest to a closed database with every kind of file: flipped bits, other lengths, misplaced
//! sectors. Readers and writers see the right values or an error that names the file, and an offline
//! check names every flip.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use strandline::Durability::{Disk as Durable, Os};
use strandline::verify::{Problem, verify};
use strandline::{Database, Error, ErrorKind, Options, ShardRouter};
use strandline_wal::ShardId;
use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{Access, Disk};
use strandline_wal::segment::{SegmentHeader, TRAILER_LEN, parse_file_name};

use crate::model::State;
use crate::ops::Op;
use crate::plan::{Case, script, small_options};
use crate::run::{ROOT, Run, Tally, machine, name};
use crate::seed::Rng;

/// More calls than any open of this small database and reading all of it takes.
const CALL_COUNT_MAX: u64 = 1_000;

/// A closed database with every kind of file, and what it holds.
pub struct Subject {
    case: Case,
    machine: SimEnv,
    /// Its files.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    state: State,
}

/// Makes of the last segment of shard 0 what it is where nobody closes it: without a footer, with unwritten
/// space behind its batches.
fn grow_again(machine: &SimEnv) {
    let files = machine.disk.files();
    let number = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        parse_file_name(name).filter(|(shard, _)| *shard == ShardId(0))
    };
    let segments = files.iter().filter(|(path, _)| number(path).is_some());
    let (path, bytes) = segments.max_by_key(|(path, _)| number(path)).unwrap();
    let header = SegmentHeader::decode(bytes, path).unwrap();
    let trailer = bytes.last_chunk::<TRAILER_LEN>().unwrap();
    let data_len = u64::from_le_bytes(*trailer.first_chunk().unwrap());
    let file = machine.disk.open(path, Access::Write).unwrap();
    file.set_len(data_len).unwrap();
    file.set_len(header.capacity).unwrap();
}

impl Subject {
    /// Tables with values and with pointers, sealed segments that are flushed and that are not, a
    /// growing one, and the small files.
    pub fn new(maps: bool) -> Subject {
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
            router: ShardRouter::hash(2).unwrap(),
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
        grow_again(&machine);
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

    /// A machine with the same files, to be damaged.
    pub fn copy(&self) -> SimEnv {
        SimEnv {
            disk: self.machine.disk.fork(),
            ..self.machine.clone()
        }
    }

    /// Opens a damaged copy, reads everything, and writes on where that is asked for.
    ///
    /// # Errors
    /// What is wrong.
    pub fn judge(
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

    /// An offline check names the file and an offset, or the byte is one that holds nothing.
    fn check(
        &self,
        machine: &SimEnv,
        path: &Path,
        at: usize,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let report = verify(Path::new(ROOT), &machine.env()).map_err(|e| e.to_string())?;
        let file = path.file_name().unwrap().to_string_lossy();
        let has_place = |p: &Problem| p.at.is_some() || p.what.contains("byte");
        let is_named = |p: &Problem| p.path == path && has_place(p);
        // Space of a growing segment that no batch was written to yet: what is there is never read.
        let is_padding = || {
            let is_segment = path.extension().is_some_and(|e| e == "seg");
            is_segment && self.files[path][at..].iter().all(|byte| *byte == 0)
        };
        let is_noted = |note: &String| note.contains(&*file) && note.contains("byte");
        let outcome = if report.problems.iter().any(is_named) {
            "named"
        } else if report.notes.iter().any(is_noted) {
            "noted"
        } else if is_padding() {
            "padding"
        } else {
            let (problems, notes) = (report.problems, report.notes);
            return Err(format!("it is not told: {problems:?} {notes:?}"));
        };
        tally.add(outcome, 1);
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

/// Whether a file holds nothing that is ever read.
pub fn is_lock(path: &Path) -> bool {
    ["LOCK", "READERS", "RESERVE"]
        .iter()
        .any(|name| path.ends_with(name))
}

/// What is done to a damaged database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Look {
    /// It is opened for reading.
    Read,
    /// It is opened for writing.
    Write,
    /// It is checked without being opened.
    Verify,
}

/// Flips one bit in every so manyth byte of every file, from a first one on.
///
/// # Errors
/// The first byte at which something is wrong, and what.
pub fn flips(maps: bool, look: Look, first: usize, step: usize) -> Result<Tally, String> {
    let subject = Subject::new(maps);
    let mut tally = Tally::default();
    for (path, bytes) in subject.files.iter().filter(|(path, _)| !is_lock(path)) {
        for at in (first..bytes.len()).step_by(step) {
            let mask = 1 << (at % 8);
            let machine = subject.copy();
            machine.disk.rot(path, at as u64, mask).unwrap();
            let judged = match look {
                Look::Verify => subject.check(&machine, path, at, &mut tally),
                _ => subject.judge(&machine, path, look == Look::Write, &mut tally),
            };
            judged.map_err(|error| {
                let path = path.display();
                format!("{look:?}, maps {maps}: {path} byte {at} bit {mask:#x}: {error}")
            })?;
            tally.add("flips", 1);
        }
    }
    Ok(tally)
}

/// Damages random places in random ways.
///
/// # Errors
/// The place at which something is wrong, and what.
pub fn random(seed: u64) -> Result<Tally, String> {
    let mut rng = Rng::new(seed);
    let maps = rng.percent(50);
    let subject = Subject::new(maps);
    let files: Vec<_> = subject
        .files
        .iter()
        .filter(|(p, b)| !is_lock(p) && !b.is_empty())
        .collect();
    let mut tally = Tally::default();
    for _ in 0..400 {
        let (path, bytes) = *rng.pick(&files);
        let (at, mask) = (rng.below(bytes.len()), 1 << rng.below(8));
        let writable = rng.percent(50);
        let machine = subject.copy();
        machine.disk.rot(path, at as u64, mask).unwrap();
        let judged = subject.judge(&machine, path, writable, &mut tally);
        judged.map_err(|error| {
            format!(
                "maps {maps}: {} byte {at} bit {mask:#x}: {error}",
                path.display()
            )
        })?;
        tally.add("flips", 1);
    }
    Ok(tally)
}
