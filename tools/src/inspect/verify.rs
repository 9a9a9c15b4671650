//! `walinspect verify`: the engine's check, and behind its first finding the rest of each log.

use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use strandline::ShardId;
use strandline::verify::{Pace, Problem, VerifyReport, verify_at_pace};
use strandline_wal::batch::Damage;
use strandline_wal::io::Env;
use strandline_wal::{Epoch, Error, Hlc};

use super::store::{self, DatasetFiles, SegmentFile};
use super::walk::Found;
use crate::failure::{Exit, Result};
use crate::{open, text};

/// Checks the database in a directory and prints what it found. `pace` is told of the bytes that are read,
/// and may wait.
///
/// # Errors
/// I/O, where there is no database.
pub fn run(env: &Env, root: &Path, deep: bool, as_json: bool, pace: Pace<'_>) -> Result<Exit> {
    let mut report = check(env, root, pace)?;
    if deep {
        let key_count = read_all(root, &mut report);
        report.notes.push(format!("read {key_count} keys"));
    }
    let mut out = std::io::stdout().lock();
    match as_json {
        true => writeln!(out, "{:#}", document(&report))?,
        false => print(&mut out, &report)?,
    }
    match report.problems.is_empty() {
        true => Ok(Exit::Ok),
        false => Ok(Exit::Problems),
    }
}

/// Checks everything. Where the engine stops at the first damage of a log, the rest of it is read
/// here, so that every damaged segment is named.
///
/// # Errors
/// I/O, where there is no database.
pub fn check(env: &Env, root: &Path, pace: Pace<'_>) -> Result<VerifyReport> {
    let datasets = store::datasets(env, root, None)?;
    let mut report = verify_at_pace(root, env, pace)?;
    for dataset in &datasets {
        for shard in dataset.shards() {
            let mut log = LogCheck {
                env,
                dataset,
                shard,
                report: &mut report,
            };
            log.run()?;
        }
    }
    report
        .problems
        .sort_by(|a, b| (&a.path, a.at).cmp(&(&b.path, b.at)));
    Ok(report)
}

struct LogCheck<'a> {
    env: &'a Env,
    dataset: &'a DatasetFiles,
    shard: ShardId,
    report: &'a mut VerifyReport,
}

/// Where a log stands behind a batch.
struct Tail {
    next_seq: u64,
    chain: u32,
    epoch: Epoch,
    timestamp: Hlc,
}

impl LogCheck<'_> {
    /// Reads every segment and checks that each batch continues the one before.
    fn run(&mut self) -> Result<()> {
        let segments: Vec<_> = self.dataset.segments_of(self.shard).cloned().collect();
        let mut before: Option<[u8; 32]> = None;
        for (n, name) in segments.iter().enumerate() {
            let is_last = n + 1 == segments.len();
            let segment = match SegmentFile::open(self.env.disk.as_ref(), name) {
                Ok(segment) => segment,
                // Recycled or removed since the directory was read.
                Err(error) if error.is_not_found() => continue,
                Err(error) => {
                    self.error(&name.path, &error);
                    before = None;
                    continue;
                }
            };
            let header = &segment.header;
            let is_next = n > 0 && before.is_some_and(|digest| digest != header.prev_digest);
            if is_next && self.is_contiguous(&segments[n - 1], name.first_seq) {
                let (expected, found) = (before.unwrap_or_default(), header.prev_digest);
                let (expected, found) = (text::hex(&expected), text::hex(&found));
                self.add(
                    &name.path,
                    64,
                    format!("digest of the segment before: expected {expected}, found {found}"),
                );
            }
            if let Some(Err(error)) = &segment.footer {
                self.error(&name.path, error);
            }
            self.batches(&segment, is_last)?;
            before = match &segment.footer {
                Some(Ok(footer)) => Some(footer.digest),
                Some(Err(_)) | None => None,
            };
        }
        Ok(())
    }

    fn is_contiguous(&self, before: &store::SegmentName, first_seq: u64) -> bool {
        let open = SegmentFile::open(self.env.disk.as_ref(), before);
        matches!(open.map(|open| open.footer), Ok(Some(Ok(footer))) if footer.last_seq + 1 == first_seq)
    }

    fn batches(&mut self, segment: &SegmentFile, is_last: bool) -> Result<()> {
        let path = segment.name.path.clone();
        let header = &segment.header;
        let mut tail = Tail {
            next_seq: header.first_seq,
            chain: header.prev_crc,
            epoch: header.epoch,
            timestamp: Hlc(0),
        };
        let mut walk = segment.walk();
        loop {
            match walk.step()? {
                Found::Batch(stored) => {
                    if let Some(what) = tail.discontinuity(&stored.header) {
                        self.add(&path, stored.at, what);
                    }
                    if let Some(Err(damage)) = stored.batch().records().find(Result::is_err) {
                        self.damage(&path, stored.at, &damage);
                    }
                    tail = Tail {
                        next_seq: stored.header.last_seq() + 1,
                        chain: stored.header_crc,
                        epoch: stored.header.epoch,
                        timestamp: stored.header.timestamp,
                    };
                }
                Found::End if segment.is_sealed() || is_last => return Ok(()),
                Found::End => {
                    let what = "the segment ends without a footer and is not the last".to_owned();
                    self.add(&path, walk.at(), what);
                    return Ok(());
                }
                // A torn tail is recovery's to judge; the engine's check has told of it.
                Found::Damage(_) if is_last && !segment.is_sealed() => return Ok(()),
                Found::Damage(damage) => {
                    self.damage(&path, walk.at(), &damage);
                    return Ok(());
                }
            }
        }
    }

    fn damage(&mut self, path: &Path, at: u64, damage: &Damage) {
        self.add(
            path,
            at,
            format!("batch: expected an intact batch, found {damage}"),
        );
    }

    fn error(&mut self, path: &Path, error: &Error) {
        match error {
            Error::Corrupt {
                at,
                what,
                expected,
                found,
                ..
            } => self.add(
                path,
                *at,
                format!("{what}: expected {expected}, found {found}"),
            ),
            error => {
                let (path, what) = (path.to_owned(), error.to_string());
                if self.report.problems.iter().all(|known| known.path != path) {
                    let at = None;
                    self.report.problems.push(Problem { path, at, what });
                }
            }
        }
    }

    /// Notes a problem, unless one at that place is known.
    fn add(&mut self, path: &Path, at: u64, what: String) {
        let mut known = self.report.problems.iter();
        if known.any(|known| known.path == path && known.at == Some(at)) {
            return;
        }
        self.report.problems.push(Problem {
            path: path.to_owned(),
            at: Some(at),
            what,
        });
    }
}

impl Tail {
    fn discontinuity(&self, header: &strandline_wal::batch::BatchHeader) -> Option<String> {
        let wrong = |what: &str, expected: u64, found: u64| {
            Some(format!("{what}: expected {expected}, found {found}"))
        };
        if header.first_seq != self.next_seq {
            return wrong("first record of a batch", self.next_seq, header.first_seq);
        }
        if header.prev_crc != self.chain {
            return wrong("chain value", self.chain.into(), header.prev_crc.into());
        }
        if header.epoch != self.epoch {
            return wrong("epoch", self.epoch.0.into(), header.epoch.0.into());
        }
        if header.timestamp <= self.timestamp {
            return wrong("timestamp above", self.timestamp.0, header.timestamp.0);
        }
        None
    }
}

/// Opens the database for reading and reads every key; what fails is a problem.
fn read_all(root: &Path, report: &mut VerifyReport) -> u64 {
    let mut count = 0;
    let mut problem = |what: String| {
        report.problems.push(Problem {
            path: root.to_owned(),
            at: None,
            what,
        });
    };
    let database = match open::reader(root) {
        Ok(database) => database,
        Err(failure) => {
            problem(format!("it does not open: {failure}"));
            return 0;
        }
    };
    for dataset in database.datasets() {
        for keyspace in dataset.keyspaces() {
            for entry in keyspace.iter() {
                match entry {
                    Ok(_) => count += 1,
                    Err(error) => problem(error.to_string()),
                }
            }
        }
    }
    count
}

fn print(out: &mut dyn Write, report: &VerifyReport) -> Result<()> {
    for problem in &report.problems {
        let path = problem.path.display();
        match problem.at {
            Some(at) => writeln!(out, "{path} @{at}: {}", problem.what)?,
            None => writeln!(out, "{path}: {}", problem.what)?,
        }
    }
    for note in &report.notes {
        writeln!(out, "note: {note}")?;
    }
    let read = format!(
        "{}, {}, {} batches, {} table entries",
        text::plural(report.file_count, "file"),
        text::len(report.len),
        text::count(report.batch_count),
        text::count(report.entry_count)
    );
    match report.problems.len() as u64 {
        0 => writeln!(out, "clean: {read}")?,
        n => writeln!(out, "{}: {read}", text::plural(n, "problem"))?,
    }
    Ok(())
}

fn document(report: &VerifyReport) -> Value {
    let problems: Vec<Value> = report
        .problems
        .iter()
        .map(|problem| json!({ "path": problem.path, "at": problem.at, "what": problem.what }))
        .collect();
    json!({
        "clean": report.problems.is_empty(),
        "file_count": report.file_count,
        "len": report.len,
        "batch_count": report.batch_count,
        "entry_count": report.entry_count,
        "problems": problems,
        "notes": report.notes,
    })
}
