//! System calls that fail, and processes that die at one: strace makes the kernel say so, on the real
//! disk. Each writer opens what the ones before left, writes, compacts, makes a checkpoint and closes.
//! Afterwards everything acknowledged must be there, and no batch torn; no failure may be a panic.
//!
//! Needs strace and leave to trace; elsewhere it says so and passes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use strandline_tests::oracle::Oracle;
use strandline_tests::seed::{self, Rng};
use strandline_tests::writer::{self, Phase, Start, database, options};

/// What the engine calls. A name that a machine does not have is left out by the `?`.
const CALLS: [&str; 12] = [
    "pwrite64",
    "fdatasync",
    "fsync",
    "ftruncate",
    "?rename",
    "?unlink",
    "openat",
    "mmap",
    "pread64",
    "?link",
    "?mkdir",
    "flock",
];

/// Most lives until one meets its fault.
const LIFE_COUNT_MAX: usize = 4;

/// By call, its numbers within a thread.
type Places = BTreeMap<&'static str, Vec<usize>>;

/// Writes of a life: enough for flushes, segments and tables.
const WRITE_COUNT: u64 = 60;

/// Not a test of its own: the process that is traced. Without its variables it does nothing.
#[test]
fn writer() {
    writer::run();
}

fn words(call: &str, fault: &str, log: &Path) -> Vec<String> {
    let log = log.display().to_string();
    let inject = format!("inject={call}:{fault}");
    let trace = format!("trace={}", CALLS.join(","));
    let words = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-o",
        &log,
        "-e",
        &trace,
        "-e",
        "signal=none",
    ];
    let mut words: Vec<String> = words.map(str::to_owned).to_vec();
    if !fault.is_empty() {
        words.extend(["-e".to_owned(), inject]);
    }
    words
}

/// For each call, which ones of a thread were on the files of a database: strace counts by thread, and
/// the loader and the allocator call too.
fn places(log: &Path, dir: &Path) -> Places {
    let text = std::fs::read_to_string(log).unwrap();
    let dir = database(dir).display().to_string();
    let mut made: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut places: Places = BTreeMap::new();
    // In the thread that begins, what the loader made: any thread's later ones are none of its.
    let mut loaded: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let name = rest.trim_start().split('(').next().unwrap_or_default();
        let Some(call) = CALLS
            .iter()
            .find(|call| call.trim_start_matches('?') == name)
        else {
            continue;
        };
        let count = made.entry((thread, name)).or_default();
        *count += 1;
        if line.contains(&dir) {
            places.entry(*call).or_default().push(*count);
        } else if places.is_empty() {
            loaded.insert(call, *count);
        }
    }
    for (call, places) in &mut places {
        places.retain(|at| *at > loaded.get(call).copied().unwrap_or_default());
    }
    places.retain(|_, places| !places.is_empty());
    places
}

struct Tracer<'a> {
    dir: &'a Path,
    seed: u64,
    oracle: Oracle,
    /// Lives that told of a failed call, and that died at once.
    failed_count: usize,
    dead_count: usize,
}

impl Tracer<'_> {
    /// One life, and what was traced of it.
    fn live(&mut self, call: &str, fault: &str) -> Result<(Places, bool), String> {
        let log = self.dir.join("calls");
        let by = words(call, fault, &log);
        let start = Start {
            dir: self.dir,
            seed: self.seed,
            phase: Phase::All,
            count: WRITE_COUNT,
            by: &by,
        };
        let mut life = start.spawn(&self.oracle);
        let ended = life.end(&mut self.oracle);
        let is_kill = fault.contains("SIGKILL");
        if !life.strange.is_empty() {
            return Err(format!("{ended}: {:?}", life.strange));
        }
        let text = std::fs::read_to_string(&log).unwrap();
        let is_dead = is_kill && ended.signal() == Some(9);
        let is_hit = is_dead || text.contains("(INJECTED)");
        self.dead_count += usize::from(is_dead);
        if !ended.success() && !is_dead || !is_hit && !life.failures.is_empty() {
            return Err(format!("{ended}: {:?}", life.failures));
        }
        self.failed_count += usize::from(!life.failures.is_empty());
        // Where a checkpoint failed, there may be none.
        life.judge_checkpoint(self.dir, &self.oracle)?;
        let db = options()
            .open(database(self.dir))
            .map_err(|e| e.to_string())?;
        self.oracle.judge(&db)?;
        db.close().map_err(|e| e.to_string())?;
        Ok((places(&log, self.dir), is_hit))
    }
}

#[test]
fn no_failing_or_fatal_system_call_loses_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=flock", "true"])
        .output();
    if !traced.is_ok_and(|output| output.status.success()) {
        println!("SKIPPED: no strace, or no leave to trace");
        return;
    }
    let seed = seed::base(17);
    let mut rng = Rng::new(seed);
    let mut tracer = Tracer {
        dir: dir.path(),
        seed,
        oracle: Oracle::new(seed),
        failed_count: 0,
        dead_count: 0,
    };
    // The first life makes the database, the second one tells how many calls there are in one.
    tracer.live("", "").unwrap();
    let (places, _) = tracer.live("", "").unwrap();
    let counts: BTreeMap<_, _> = places.iter().map(|(call, at)| (call, at.len())).collect();
    println!("calls of one life: {counts:?}");
    let sample_count = seed::count(2, 40);
    let (mut lives, mut met) = (0, 0);
    for (call, places) in places {
        for fault in ["error=EIO", "signal=SIGKILL"] {
            // The allocator calls mmap as well, and a failure there is the end of any process.
            if call == "mmap" && fault.starts_with("error") {
                continue;
            }
            for _ in 0..sample_count {
                // A thread of this life may make fewer such calls than the one that was counted.
                for _ in 0..LIFE_COUNT_MAX {
                    let fault = format!("{fault}:when={}", rng.pick(&places));
                    let lived = tracer.live(call, &fault);
                    let (_, is_met) = lived.unwrap_or_else(|error| {
                        panic!("STRANDLINE_SEED={seed}: inject={call}:{fault}: {error}")
                    });
                    lives += 1;
                    met += u64::from(is_met);
                    if is_met {
                        break;
                    }
                }
            }
        }
    }
    let (failed, dead) = (tracer.failed_count, tracer.dead_count);
    println!(
        "system calls: seed {seed}, {lives} lives, {met} met their fault, {failed} told of it, {dead} \
         died at it; {} writes acknowledged, 0 lost, 0 torn batches",
        tracer.oracle.acked_count
    );
    assert!(failed > 0 && dead > 0, "faults are met");
    assert!(met >= 12 * sample_count, "{met} faults were met");
}
