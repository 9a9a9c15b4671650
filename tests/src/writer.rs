//! A process that writes until it is killed, and what is heard of it.
//!
//! The process is the test binary itself, started again with variables that tell it what to be: each
//! binary that uses this has a test `writer` that calls [`run`], which does nothing without them. It
//! tells over a pipe, which outlives it: `i` and `a` before and after each write
//! ([`Oracle::hear`]), `+` and `-` as it enters and leaves a [`Phase`], `m` for what its compactions
//! collected, `!` for a call that failed. Each is one line and one write, so that it is told whole or not
//! at all.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};

use strandline::{Background, Database, Error, Options, ShardRouter};

use crate::oracle::{Oracle, intent};

const DIR: &str = "STRANDLINE_WRITER_DIR";
const SEED: &str = "STRANDLINE_WRITER_SEED";
const NEXT: &str = "STRANDLINE_WRITER_NEXT";
const COUNT: &str = "STRANDLINE_WRITER_COUNT";
const PHASE: &str = "STRANDLINE_WRITER_PHASE";

/// What a writer is to do beside writing, and what it may be in the middle of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Phase {
    /// Nothing else.
    Write,
    /// Opens, and writes nothing.
    Open,
    /// Closes while its threads write.
    Close,
    /// Compacts over and over, which moves values out of segments and drops those.
    Compact,
    /// Makes a checkpoint.
    Checkpoint,
    /// One compaction, one checkpoint, and a close once all is written.
    All,
}

impl Phase {
    /// Those that can be met one by one.
    pub const EACH: [Phase; 5] = [
        Phase::Write,
        Phase::Open,
        Phase::Close,
        Phase::Compact,
        Phase::Checkpoint,
    ];

    fn named(name: &str) -> Option<Phase> {
        Self::EACH
            .into_iter()
            .chain([Phase::All])
            .find(|phase| phase.to_string() == name)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Small lengths: a few hundred writes fill memtables, segments and tables.
pub fn options() -> Options {
    Options {
        router: ShardRouter::hash(3).unwrap(),
        memtable_len_max: 256 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 512 << 10,
        table_len_max: 256 << 10,
        large_value_len_min: 2 << 10,
        run_count_max: 2,
        background: Background::Thread,
        ..Options::default()
    }
}

/// Where the database of a writer is.
pub fn database(dir: &Path) -> PathBuf {
    dir.join("db")
}

/// Where its checkpoint is.
pub fn checkpoint(dir: &Path) -> PathBuf {
    dir.join("copy")
}

/// The process of its own; returns at once in any other.
pub fn run() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let Ok(dir) = std::env::var(DIR) else { return };
    let own = Own {
        dir: PathBuf::from(dir),
        seed: variable(SEED).parse().unwrap(),
        phase: Phase::named(&variable(PHASE)).unwrap(),
        count: variable(COUNT).parse().unwrap(),
        pipe: Mutex::new(std::io::stderr()),
        acked: AtomicU64::new(0),
    };
    let next = variable(NEXT);
    let next = next.split_whitespace().map(|n| n.parse().unwrap());
    own.run(&next.collect::<Vec<u64>>());
}

/// What the process of its own knows.
struct Own {
    dir: PathBuf,
    seed: u64,
    phase: Phase,
    /// Writes of all threads after which the phase begins; in [`Phase::All`], twice that is the end.
    count: u64,
    pipe: Mutex<std::io::Stderr>,
    acked: AtomicU64,
}

impl Own {
    fn run(&self, next: &[u64]) {
        let Some(db) = self.during(Phase::Open, || options().open(database(&self.dir))) else {
            return;
        };
        if self.phase == Phase::Open {
            wait_for_the_kill();
        }
        let (begin, begun) = mpsc::channel();
        std::thread::scope(|scope| {
            for (thread, first) in next.iter().enumerate() {
                let (db, begin) = (&db, begin.clone());
                scope.spawn(move || {
                    if let Err(error) = self.write(db, thread as u64, *first, &begin) {
                        self.fail("write", &error);
                    }
                });
            }
            drop(begin);
            // An error where the writers failed before.
            if begun.recv().is_ok() {
                self.work(&db);
            }
        });
        match self.phase {
            Phase::Close => wait_for_the_kill(),
            Phase::All => drop(self.during(Phase::Close, || db.close())),
            _ => {}
        }
    }

    /// Beside the writers.
    fn work(&self, db: &Database) {
        let compact = || self.during(Phase::Compact, || db.dataset("")?.compact());
        match self.phase {
            Phase::Write | Phase::Open => {}
            Phase::Close => drop(self.during(Phase::Close, || db.close())),
            Phase::Compact => {
                while compact().is_some() {
                    for stats in db.stats().datasets {
                        let dropped = stats.segments_recycled + stats.segments_removed;
                        self.tell(&format!("m {} {dropped}", stats.values_moved));
                    }
                }
            }
            Phase::Checkpoint | Phase::All => {
                if self.phase == Phase::All {
                    compact();
                }
                let target = checkpoint(&self.dir);
                self.during(Phase::Checkpoint, || db.checkpoint(&target));
            }
        }
    }

    fn write(
        &self,
        db: &Database,
        thread: u64,
        first: u64,
        begin: &mpsc::Sender<()>,
    ) -> Result<(), Error> {
        let (dataset, map) = (db.dataset("")?, db.keyspace("map")?);
        for number in first.. {
            let acked = self.acked.load(Ordering::Relaxed);
            if self.phase == Phase::All && acked >= 2 * self.count {
                break;
            }
            let intent = intent(self.seed, thread, number);
            let mut batch = dataset.batch();
            for (key, value) in &intent.changes {
                match value {
                    Some(value) => batch.put(&map, key, value)?,
                    None => batch.delete(&map, key)?,
                };
            }
            self.tell(&format!("i {thread} {number}"));
            batch.commit_with(intent.level)?;
            self.tell(&format!("a {thread} {number}"));
            if self.acked.fetch_add(1, Ordering::Relaxed) == self.count {
                begin.send(()).expect("the phase is waited for");
            }
        }
        Ok(())
    }

    fn during<T>(&self, phase: Phase, call: impl FnOnce() -> Result<T, Error>) -> Option<T> {
        self.tell(&format!("+ {phase}"));
        let done = call();
        self.tell(&format!("- {phase}"));
        done.map_err(|error| self.fail(&phase.to_string(), &error))
            .ok()
    }

    fn fail(&self, what: &str, error: &Error) {
        let is_close = self.phase == Phase::Close && matches!(error, Error::Closed(_));
        if !is_close {
            self.tell(&format!("! {what}: {error}"));
        }
    }

    fn tell(&self, line: &str) {
        let mut pipe = self.pipe.lock().unwrap();
        // One call: `writeln!` would make one for each part.
        pipe.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

fn wait_for_the_kill() -> ! {
    loop {
        std::thread::park();
    }
}

/// How to start a writer.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// Of its database and its checkpoint.
    pub dir: &'a Path,
    /// The seed of its writes.
    pub seed: u64,
    /// What it does beside writing.
    pub phase: Phase,
    /// Writes after which that begins.
    pub count: u64,
    /// What it is started by, with arguments: nothing, or a tracer.
    pub by: &'a [String],
}

impl Start<'_> {
    /// Starts the test `writer` of this binary.
    pub fn spawn(&self, oracle: &Oracle) -> Life {
        let this = std::env::current_exe().unwrap().display().to_string();
        let mut words = self.by.to_vec();
        words.push(this);
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
            .env(DIR, self.dir)
            .env(SEED, self.seed.to_string())
            .env(NEXT, oracle.next_numbers())
            .env(PHASE, self.phase.to_string())
            .env(COUNT, self.count.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Life {
            lines: BufReader::new(child.stderr.take().unwrap()),
            child,
            within: Vec::new(),
            met: Vec::new(),
            failures: Vec::new(),
            strange: Vec::new(),
            collected: [0; 2],
            at_checkpoint: None,
        }
    }
}

/// One life of a writer, as it is heard.
pub struct Life {
    child: Child,
    lines: BufReader<ChildStderr>,
    /// The phases that it is in the middle of.
    pub within: Vec<Phase>,
    /// The phases that it began.
    pub met: Vec<Phase>,
    /// Calls that failed.
    pub failures: Vec<String>,
    /// Lines that are none of a writer's: a panic.
    pub strange: Vec<String>,
    /// Values that its compactions moved, and segments that they dropped.
    pub collected: [u64; 2],
    /// What was known when it began its checkpoint.
    at_checkpoint: Option<Oracle>,
}

impl Life {
    /// Hears one line; `false` at the end.
    pub fn hear(&mut self, oracle: &mut Oracle) -> bool {
        let mut line = String::new();
        if self.lines.read_line(&mut line).unwrap() == 0 {
            return false;
        }
        let line = line.trim_end();
        let phase = line.get(2..).and_then(Phase::named);
        match (line.as_bytes().first(), phase) {
            (Some(b'i' | b'a'), _) if oracle.hear(line).is_ok() => {}
            (Some(b'+'), Some(phase)) => {
                self.within.push(phase);
                self.met.push(phase);
                if phase == Phase::Checkpoint {
                    self.at_checkpoint = Some(oracle.clone());
                }
            }
            (Some(b'-'), Some(phase)) => self.within.retain(|within| *within != phase),
            (Some(b'm'), _) => {
                let counts = line.split(' ').skip(1).map(|count| count.parse().unwrap());
                for (collected, count) in self.collected.iter_mut().zip(counts) {
                    *collected = count;
                }
            }
            (Some(b'!'), _) => self.failures.push(line.to_owned()),
            _ => self.strange.push(line.to_owned()),
        }
        true
    }

    /// Kills it with SIGKILL and hears the rest: the kill falls wherever it is by now.
    pub fn kill(&mut self, oracle: &mut Oracle) -> ExitStatus {
        self.child.kill().unwrap();
        self.end(oracle)
    }

    /// Hears the rest.
    pub fn end(&mut self, oracle: &mut Oracle) -> ExitStatus {
        while self.hear(oracle) {}
        self.child.wait().unwrap()
    }

    /// Judges the checkpoint that it may have made: it is absent, or a whole database that holds what
    /// was acknowledged before it began. Removes it, and tells whether it was there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge_checkpoint(&self, dir: &Path, oracle: &Oracle) -> Result<bool, String> {
        let target = checkpoint(dir);
        let is_there = target.try_exists().map_err(|e| e.to_string())?;
        let is_whole = self.at_checkpoint.is_some() && !self.within.contains(&Phase::Checkpoint);
        if !is_there {
            return match is_whole && self.failures.is_empty() {
                true => Err(format!("{}: a finished checkpoint", target.display())),
                false => Ok(false),
            };
        }
        let begun = self.at_checkpoint.as_ref();
        let begun = begun.ok_or("a checkpoint that was never begun")?;
        let opened = options().open(&target).map_err(|e| e.to_string())?;
        oracle.as_of(begun).judge(&opened)?;
        opened.close().map_err(|e| e.to_string())?;
        std::fs::remove_dir_all(&target).map_err(|e| e.to_string())?;
        Ok(true)
    }
}
