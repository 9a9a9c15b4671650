//! What a node of the demonstration does with its database: writes files, reads them back, proves
//! what it holds.
//!
//! Every batch puts some files and, in the same batch, a *mark*: under writer and number, the names
//! of these files and the digests of their contents. Whoever finds a mark must find the files, on
//! every node and at every moment.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use strandline::{Dataset, Durability, Error, Keyspace, Snapshot};

use super::WRITER_COUNT;
use super::node::say;
use crate::failure::{Failure, Result};
use crate::{open, text};

/// The keyspace of contents.
const FILES: &str = "files";
/// The keyspace of marks.
const MARKS: &str = "marks";
/// Most files of one batch.
const BATCH_FILE_COUNT_MAX: usize = 32;
/// A batch takes no further file once it holds this many bytes.
const BATCH_LEN_MAX: usize = 256 << 10;
/// Longer files are left out: the demonstration is about many writes.
const FILE_LEN_MAX: u64 = 4 << 20;
/// Once the bytes of a phase are used up, only files up to this length are written.
const SMALL_LEN_MAX: u64 = 2 << 10;
/// What a reader waits between two reads: three nodes share this machine with the writers.
const READ_PAUSE: Duration = Duration::from_micros(500);

/// The writer of a phase that is acknowledged by its leader's disk alone.
pub(super) const DISK_WRITER: u32 = WRITER_COUNT;

/// Names that are never part of the tree.
pub(super) const EXCLUDED: [&str; 2] = ["target", ".git"];

/// What a writer waits before it tries again what failed.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Writers that write until they are stopped.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

struct Source {
    path: PathBuf,
    name: String,
    len: u64,
}

impl Load {
    /// `PHASE BYTES DIRECTORY`. A stubborn load tries what failed again until it is stopped, and one more
    /// writer of it is acknowledged by the disk of this node alone.
    pub fn start(dataset: &Dataset, arguments: &str, is_stubborn: bool) -> Result<Load> {
        let usage = || Failure::usage("load PHASE BYTES DIRECTORY");
        let (phase, rest) = arguments.split_once(' ').ok_or_else(usage)?;
        let (len_max, root) = rest.split_once(' ').ok_or_else(usage)?;
        let phase: u32 = phase.parse().map_err(|_| usage())?;
        let budget = Arc::new(AtomicU64::new(len_max.parse().map_err(|_| usage())?));
        let sources: Arc<Vec<Source>> = Arc::new(sources(Path::new(root)));
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for n in 0..WRITER_COUNT + u32::from(is_stubborn) {
            let writer = Writer {
                level: match n {
                    DISK_WRITER => Durability::Disk,
                    _ => Durability::Durable(1),
                },
                is_stubborn,
                dataset: dataset.clone(),
                files: dataset.keyspace(FILES)?,
                marks: dataset.keyspace(MARKS)?,
                id: phase * 100 + n,
                at: n as usize * 7,
                sources: Arc::clone(&sources),
                budget: Arc::clone(&budget),
                stop: Arc::clone(&stop),
            };
            let thread = std::thread::Builder::new().name(format!("writer-{n}"));
            threads.push(spawn(thread, move || writer.run())?);
        }
        Ok(Load { stop, threads })
    }

    /// Lets every writer end its batch.
    pub fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread
                .join()
                .map_err(|_| Failure::problems("a writer panicked"))??;
        }
        Ok(())
    }
}

fn spawn<T: Send + 'static>(
    builder: std::thread::Builder,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>> {
    builder
        .spawn(run)
        .map_err(|error| Failure::io(format!("no thread: {error}")))
}

/// The regular files of a tree that are not too long, in the order of their paths.
fn sources(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        // A tree that changes while it is read has what it has.
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_excluded = EXCLUDED.iter().any(|name| entry.file_name() == *name);
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() && !is_excluded {
                dirs.push(path);
            } else if metadata.is_file() && metadata.len() <= FILE_LEN_MAX {
                let name = path.strip_prefix(root).unwrap_or(&path);
                sources.push(Source {
                    name: name.to_string_lossy().into_owned(),
                    len: metadata.len(),
                    path,
                });
            }
        }
    }
    sources.sort_by(|a, b| a.name.cmp(&b.name));
    sources
}

/// Files and bytes that a load would find below a directory.
pub(super) fn measure(root: &Path) -> (u64, u64) {
    let sources = sources(root);
    let len = sources.iter().map(|source| source.len).sum();
    (sources.len() as u64, len)
}

struct Writer {
    dataset: Dataset,
    level: Durability,
    /// Tries again what failed.
    is_stubborn: bool,
    files: Keyspace,
    marks: Keyspace,
    id: u32,
    /// The next file; all writers walk the same list from different places.
    at: usize,
    sources: Arc<Vec<Source>>,
    /// Bytes that are left to write in this phase.
    budget: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    fn run(mut self) -> Result<()> {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            let at = self.at;
            let (file_count, len) = match self.batch(number + 1) {
                Ok(written) => written,
                Err(_) if self.is_stubborn => {
                    // Some of it may be there already: the same again, by the same names.
                    self.at = at;
                    std::thread::sleep(RETRY_PAUSE);
                    let files = open::keyspace(&self.dataset, FILES);
                    let marks = open::keyspace(&self.dataset, MARKS);
                    if let (Some(files), Some(marks)) = (files, marks) {
                        (self.files, self.marks) = (files, marks);
                    }
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            number += 1;
            let id = self.id;
            // Said only now: the batch is on the disks that it waits for.
            match self.level {
                Durability::Disk => say(&format!("disk {id} {number}"))?,
                _ => say(&format!("ack {id} {number} {file_count} {len}"))?,
            }
        }
        Ok(())
    }

    fn batch(&mut self, number: u32) -> Result<(usize, usize)> {
        let mut batch = self.dataset.batch();
        let (mut mark, mut file_count, mut len) = (String::new(), 0, 0);
        let left = self.budget.load(Ordering::Relaxed);
        for _ in 0..BATCH_FILE_COUNT_MAX {
            if len >= BATCH_LEN_MAX {
                break;
            }
            let source = &self.sources[self.at % self.sources.len()];
            self.at += 1;
            if left == 0 && source.len > SMALL_LEN_MAX {
                continue;
            }
            let Ok(content) = std::fs::read(&source.path) else {
                continue;
            };
            let name = format!("{}/{number}.{}/{}", self.id, self.at, source.name);
            let digest = blake3::hash(&content).to_hex();
            mark.push_str(&format!("{digest} {name}\n"));
            batch.put(&self.files, &name, &content)?;
            (file_count, len) = (file_count + 1, len + content.len());
        }
        batch.put(&self.marks, mark_key(self.id, number), &mark)?;
        batch.commit_with(self.level)?;
        let spend = |left: u64| Some(left.saturating_sub(len as u64));
        // Never fails: it always has a new value.
        let _ = self
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend);
        Ok((file_count, len))
    }
}

fn mark_key(writer: u32, number: u32) -> String {
    format!("{writer:06}/{number:08}")
}

/// A thread that reads marks and what they speak of, until it is stopped.
pub(super) struct Readers {
    shared: Arc<Reading>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Reading {
    stop: AtomicBool,
    read_count: AtomicU64,
    wrong_count: AtomicU64,
    wrong: std::sync::Mutex<Option<String>>,
}

impl Readers {
    pub fn start(dataset: &Dataset) -> Result<Readers> {
        let shared = Arc::new(Reading::default());
        let (reading, dataset) = (Arc::clone(&shared), dataset.clone());
        let thread = std::thread::Builder::new().name("reader".to_owned());
        let thread = spawn(thread, move || reading.run(&dataset))?;
        let thread = Some(thread);
        Ok(Readers { shared, thread })
    }

    /// Reads, wrong reads, and the first of these.
    pub fn counts(&self) -> (u64, u64, Option<String>) {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let wrong = self
            .shared
            .wrong
            .lock()
            .ok()
            .and_then(|wrong| wrong.clone());
        (
            get(&self.shared.read_count),
            get(&self.shared.wrong_count),
            wrong,
        )
    }

    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A reader that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Reading {
    fn run(&self, dataset: &Dataset) {
        let mut random = u64::from(std::process::id()) | 1;
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(READ_PAUSE);
            let keyspaces = (
                open::keyspace(dataset, FILES),
                open::keyspace(dataset, MARKS),
            );
            let (Some(files), Some(marks)) = keyspaces else {
                continue;
            };
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let snapshot = dataset.snapshot();
            match read_one(&snapshot, &files, &marks, random) {
                Ok(None) => {}
                Ok(Some(None)) => {
                    self.read_count.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Some(Some(what))) => self.note(what),
                // The node is changing its role.
                Err(Error::Closed(_)) => {}
                Err(error) => self.note(error.to_string()),
            }
        }
    }

    fn note(&self, what: String) {
        self.wrong_count.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut wrong) = self.wrong.lock() {
            wrong.get_or_insert(what);
        }
    }
}

/// Reads one mark and one of its files. `None` where there is no mark yet; `Some(Some(..))` where
/// something is wrong.
fn read_one(
    snapshot: &Snapshot,
    files: &Keyspace,
    marks: &Keyspace,
    random: u64,
) -> strandline::Result<Option<Option<String>>> {
    let mut cursor = snapshot.cursor(marks);
    if !cursor.last()? {
        return Ok(None);
    }
    let last = String::from_utf8_lossy(cursor.key().unwrap_or_default()).into_owned();
    let writers = WRITER_COUNT;
    let phase = last[..6].parse::<u32>().unwrap_or(0) / 100;
    let writer = phase * 100 + u32::try_from(random % u64::from(writers)).unwrap_or(0);
    let newest: u64 = last[7..].parse().unwrap_or(1);
    let number = u32::try_from(random / 64 % newest.max(1)).unwrap_or(0) + 1;
    if !cursor.seek_back(mark_key(writer, number))? {
        return Ok(None);
    }
    let Some(mark) = cursor.value()? else {
        return Ok(None);
    };
    let mark = String::from_utf8_lossy(&mark).into_owned();
    let lines: Vec<&str> = mark.lines().collect();
    let Some(line) = lines.get(usize::try_from(random / 4096).unwrap_or(0) % lines.len().max(1))
    else {
        return Ok(None);
    };
    Ok(Some(wrong_in(line, snapshot, files)?))
}

/// What is wrong with the file that a line of a mark speaks of.
fn wrong_in(
    line: &str,
    snapshot: &Snapshot,
    files: &Keyspace,
) -> strandline::Result<Option<String>> {
    let Some((digest, name)) = line.split_once(' ') else {
        return Ok(Some(format!("a broken mark: {line:?}")));
    };
    Ok(match snapshot.get(files, name)? {
        None => Some(format!("{name} has a mark and no content")),
        Some(content) if blake3::hash(&content).to_hex().as_str() != digest => {
            Some(format!("{name} has another content than its mark says"))
        }
        Some(_) => None,
    })
}

/// The keys of the marks that a node lacks of `WRITER:NUMBER`, the number and all below it.
pub(super) fn missing(dataset: &Dataset, written: &str) -> Result<Vec<String>> {
    let usage = || Failure::usage("missing WRITER:NUMBER");
    let (writer, newest) = written.split_once(':').ok_or_else(usage)?;
    let writer: u32 = writer.parse().map_err(|_| usage())?;
    let newest: u32 = newest.parse().map_err(|_| usage())?;
    let (snapshot, marks) = open::read_keyspace(dataset, MARKS)?;
    let mut missing = Vec::new();
    for number in 1..=newest {
        let key = mark_key(writer, number);
        if snapshot.get(&marks, &key)?.is_none() {
            missing.push(key);
        }
    }
    Ok(missing)
}

/// What of everything acknowledged a node holds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Checked {
    /// Batches that were looked for.
    pub batch_count: u64,
    /// Of them those that are not there, or not as they were written.
    pub lost_count: u64,
    /// The first of these.
    pub lost: Option<String>,
}

/// Looks for every batch of `WRITER:NUMBER,..`, each number and all below it.
pub(super) fn check(dataset: &Dataset, acknowledged: &str) -> Result<Checked> {
    let mut checked = Checked::default();
    if acknowledged.is_empty() {
        return Ok(checked);
    }
    let (snapshot, files) = open::read_keyspace(dataset, FILES)?;
    let (_, marks) = open::read_keyspace(dataset, MARKS)?;
    for part in acknowledged.split(',') {
        let pair = part.split_once(':');
        let pair = pair.and_then(|(w, n)| Some((w.parse::<u32>().ok()?, n.parse::<u32>().ok()?)));
        let (writer, newest) =
            pair.ok_or_else(|| Failure::usage("check WRITER:NUMBER,WRITER:NUMBER"))?;
        for number in 1..=newest {
            checked.batch_count += 1;
            let key = mark_key(writer, number);
            let wrong = match snapshot.get(&marks, &key)? {
                None => Some(format!("batch {key} is not there")),
                Some(mark) => {
                    let mark = String::from_utf8_lossy(&mark).into_owned();
                    let mut wrong = None;
                    for line in mark.lines() {
                        wrong = wrong.or(wrong_in(line, &snapshot, &files)?);
                    }
                    wrong
                }
            };
            if let Some(wrong) = wrong {
                checked.lost_count += 1;
                checked.lost.get_or_insert(wrong);
            }
        }
    }
    Ok(checked)
}

/// A digest of everything that readers see.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct State {
    /// BLAKE3 over keyspaces, keys and values, each with its length.
    pub digest: String,
    /// Keys.
    pub key_count: u64,
}

/// Reads everything.
pub(super) fn digest(dataset: &Dataset) -> Result<State> {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    let snapshot = dataset.snapshot();
    let mut key_count = 0;
    for keyspace in dataset.keyspaces() {
        add(keyspace.name().as_bytes());
        for entry in snapshot.iter(&keyspace) {
            let (key, value) = entry?;
            add(&key);
            add(&value);
            key_count += 1;
        }
    }
    let digest = text::hex(hasher.finalize().as_bytes());
    Ok(State { digest, key_count })
}
