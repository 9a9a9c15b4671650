//! Makes a new database of everything that is provably good in a damaged one.
//!
//! Every intact chunk of every table and every intact batch of every log is read, whatever lies
//! between them. Of each key the newest version that was found is written, unless a newer one may
//! have stood in what is lost: an old value never passes for the present one because of a damaged
//! table. What is lost is listed by file, offset, and the range of keys or records. Records lost in
//! the middle of a log are the exception that nobody can work around: which keys they changed is not
//! known, so these show their value of before, and the report says which records they were.

mod log;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use strandline_wal::bug::planted;

use strandline_wal::io::{Access, Env, FileKind, LockMode, read_exact_at};
use strandline_wal::marks::Marks;
use strandline_wal::segment::path_of;
use strandline_wal::{DatasetId, Error as LogError, Hlc, IoContext, ShardId};

use crate::config::NodeConfig;
use crate::database::Database;
use crate::dataset::{Dataset, WriteBatch};
use crate::error::{Error, Result};
use crate::files;
use crate::keyspace::Keyspace;
use crate::manifest::{Manifest, Slots};
use crate::options::{Background, Durability, Options};
use crate::store::batch::KEYSPACE_LEN;
use crate::table::{
    BlockCache, Cursor, IntactCursor, LostChunk, OpenOptions, PointerSource, Table, TableCursor,
    ValuePointer, ValueSource,
};
use log::{LogScan, ValuePlace, segments_in};

/// Bytes of log that one batch of the new database takes, about.
const BATCH_LEN: usize = 1 << 20;

/// A key of a keyspace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyPlace {
    /// The keyspace, or its number where its name is lost.
    pub keyspace: String,
    /// The key.
    pub key: Vec<u8>,
}

/// What is lost at one place.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LostWhat {
    /// Records of a shard's log that are in no table.
    Records {
        /// The shard.
        shard: ShardId,
        /// The first one.
        first_seq: u64,
        /// The last one.
        last_seq: u64,
    },
    /// Keys of a range whose newest version may have stood there. Those that have a newer one
    /// elsewhere were kept.
    Keys {
        /// No lost key is below.
        from: Bound<KeyPlace>,
        /// No lost key is above.
        to: Bound<KeyPlace>,
    },
}

/// Something that could not be saved.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lost {
    /// The file.
    pub path: PathBuf,
    /// Byte offset in it, where there is one.
    pub at: Option<u64>,
    /// What is wrong there.
    pub why: String,
    /// What it held.
    pub what: LostWhat,
}

/// What became of one dataset.
#[derive(Clone, Debug)]
pub struct SalvagedDataset {
    /// Its name.
    pub id: DatasetId,
    /// Keys that were written.
    pub key_count: u64,
    /// Intact batches that were found in its logs.
    pub batch_count: u64,
    /// What is lost.
    pub lost: Vec<Lost>,
    /// What was damaged and could be done without.
    pub notes: Vec<String>,
}

/// What a salvage saved and what it did not.
#[derive(Clone, Debug, Default)]
pub struct SalvageReport {
    /// The datasets, by name.
    pub datasets: Vec<SalvagedDataset>,
}

impl SalvageReport {
    /// Whether nothing is lost.
    pub fn is_whole(&self) -> bool {
        self.datasets.iter().all(|dataset| dataset.lost.is_empty())
    }
}

/// Writes a new database into `to`, which must not exist, out of what is good in `from`, which is
/// only read. It has a history of its own: followers of the old one do not continue it. Memory: one
/// segment, and an entry for each key that the logs change.
///
/// # Errors
/// [`Error::NotFound`] where there is no database, [`Error::Locked`] where a process has it open for
/// writing, [`Error::Argument`] where `to` exists; the disk's where writing fails, or where a table
/// cannot be read that could be a moment before: what was written until then is left there. Damage is no
/// error: it is in the report.
pub fn salvage(from: &Path, to: &Path, env: &Env) -> Result<SalvageReport> {
    let found = match env.disk.list(from) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::NotFound {
                what: "database",
                name: from.display().to_string(),
                hint: "",
            });
        }
        Err(e) => return Err(e).during("list", from).map_err(Error::from),
    };
    if env.disk.stat(to).is_ok() {
        return Err(Error::Argument {
            what: "directory of the new database",
            expected: "a directory that does not exist".to_owned(),
            found: to.display().to_string(),
        });
    }
    // A directory that cannot be written has no lock, and no writer either.
    let _lock = match env.disk.lock(&files::lock(from), LockMode::Exclusive) {
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            return Err(Error::Locked {
                path: from.to_owned(),
                note: String::new(),
            });
        }
        lock => lock.ok(),
    };
    let mut report = SalvageReport::default();
    let dirs = found.iter().filter(|entry| entry.kind == FileKind::Dir);
    for id in dirs.filter_map(|entry| DatasetId::new(&entry.name).ok()) {
        if is_dataset(env, &files::dataset(from, &id))? {
            report
                .datasets
                .push(Remains::read(env, from, &id)?.save(to)?);
        }
    }
    if report.datasets.is_empty() {
        return Err(Error::NotFound {
            what: "dataset",
            name: from.display().to_string(),
            hint: "; no directory in it has files of one",
        });
    }
    Ok(report)
}

/// A range of names that lost versions up to `version_max`.
#[derive(Clone, Debug)]
pub(crate) struct Hole {
    pub from: Vec<u8>,
    pub to: Bound<Vec<u8>>,
    pub version_max: Hlc,
}

impl Hole {
    /// Whether a name lies in the range.
    pub fn has(&self, name: &[u8]) -> bool {
        let is_below = match &self.to {
            Bound::Unbounded => true,
            Bound::Included(to) => name <= &to[..],
            Bound::Excluded(to) => name < &to[..],
        };
        *self.from <= *name && is_below
    }

    /// Whether a version of a name may have been followed by one that is lost here.
    fn hides(&self, name: &[u8], version: Hlc) -> bool {
        version <= self.version_max && self.has(name)
    }

    /// Whether two ranges have a name in common.
    pub fn meets(&self, other: &Hole) -> bool {
        let starts_before_end = |a: &Hole, b: &Hole| match &b.to {
            Bound::Unbounded => true,
            Bound::Included(to) => a.from <= *to,
            Bound::Excluded(to) => a.from < *to,
        };
        starts_before_end(self, other) && starts_before_end(other, self)
    }
}

/// Takes a name, its version and its value.
type Give<'f> = dyn FnMut(&[u8], Hlc, &[u8]) -> Result<()> + 'f;

/// What a log says of a name.
struct Logged {
    version: Hlc,
    value: Option<ValuePlace>,
    /// Whether everything that came after it was found.
    is_last: bool,
}

/// What is left of a dataset: everything that its intact chunks and batches say.
pub(crate) struct Remains<'a> {
    env: &'a Env,
    id: DatasetId,
    /// Where the values are that tables point to.
    region: PathBuf,
    /// Where the logs are.
    logs: PathBuf,
    manifest: Option<Manifest>,
    keyspaces: BTreeMap<u32, String>,
    tables: Vec<(Arc<Table>, Vec<LostChunk>)>,
    holes: Vec<Hole>,
    logged: BTreeMap<Vec<u8>, Logged>,
    segments: Vec<PathBuf>,
    batch_count: u64,
    lost: Vec<Lost>,
    notes: Vec<String>,
}

impl<'a> Remains<'a> {
    pub fn read(env: &'a Env, root: &Path, id: &DatasetId) -> Result<Remains<'a>> {
        Remains::read_with_logs(env, root, id, None)
    }

    /// As [`Remains::read`], with the logs of another directory, which go on where these tables end.
    pub fn read_with_logs(
        env: &'a Env,
        root: &Path,
        id: &DatasetId,
        logs: Option<&Path>,
    ) -> Result<Remains<'a>> {
        let dir = files::dataset(root, id);
        let mut notes = Vec::new();
        let manifest = match Slots::load(env.disk.as_ref(), &files::manifest(&dir)) {
            Ok(slots) => slots.map(|slots| {
                notes.extend(slots.other.map(|error| error.to_string()));
                slots.manifest
            }),
            Err(error) => {
                notes.push(error.to_string());
                None
            }
        };
        let region = match &manifest {
            Some(manifest) => files::region(&dir, manifest.region),
            None => region_in(env, &dir)?,
        };
        let keyspaces = manifest.iter().flat_map(|m| m.keyspaces.iter().cloned());
        let mut old = Remains {
            env,
            id: id.clone(),
            logs: logs.unwrap_or(&region).to_owned(),
            region,
            keyspaces: keyspaces.collect(),
            manifest,
            tables: Vec::new(),
            holes: Vec::new(),
            logged: BTreeMap::new(),
            segments: Vec::new(),
            batch_count: 0,
            lost: Vec::new(),
            notes,
        };
        // The logs first: they may name keyspaces that the report of the tables speaks of.
        old.read_logs()?;
        old.read_tables(&dir)?;
        Ok(old)
    }

    fn read_logs(&mut self) -> Result<()> {
        let found = segments_in(self.env, &self.logs)?;
        let marks = Marks::inspect(self.env.disk.as_ref(), &self.logs);
        let (marks, is_unsure) = marks.unwrap_or((Vec::new(), true));
        if is_unsure {
            let path = self.logs.join(strandline_wal::marks::FILE_NAME);
            self.notes.push(format!(
                "{}: damaged or absent; whether the logs had later records is not known",
                path.display()
            ));
        }
        let known = self.manifest.as_ref().map_or(0, |m| m.logs.len() as u16);
        let in_files = found.iter().map(|(shard, ..)| *shard);
        let in_marks = marks.iter().map(|(shard, _)| *shard);
        let count = in_files.chain(in_marks).map(|shard| shard.0 + 1).max();
        for shard in (0..known.max(count.unwrap_or(0))).map(ShardId) {
            let logs = self.manifest.as_ref().map(|m| &m.logs);
            let flushed = logs.and_then(|logs| logs.get(usize::from(shard.0)));
            let marked = marks.iter().find(|(of, _)| *of == shard);
            let own = found.iter().filter(|(of, ..)| *of == shard);
            let scan = LogScan {
                env: self.env,
                dataset: &self.id,
                shard,
                flushed_seq: flushed.map_or(0, |log| log.position.seq),
                durable_seq: marked.map_or(0, |(_, seq)| *seq),
                segments: own.map(|(_, first, path)| (*first, path.clone())).collect(),
                base: self.segments.len(),
            };
            let flushed_seq = scan.flushed_seq;
            let whole_from = scan.walk(|_, _| {}).whole_from;
            let logged = &mut self.logged;
            let walked = scan.walk(|seq, change| {
                let is_last = seq >= whole_from;
                if seq <= flushed_seq && !is_last {
                    // It is in tables, and what replaced it may be there alone.
                    return;
                }
                let before = logged.get(change.name).map(|before| before.version);
                if before.is_none_or(|before| before <= change.version) {
                    let now = Logged {
                        version: change.version,
                        value: change.value,
                        is_last,
                    };
                    logged.insert(change.name.to_vec(), now);
                }
            });
            self.segments
                .extend(scan.segments.into_iter().map(|(_, path)| path));
            self.keyspaces.extend(walked.keyspaces);
            self.lost.extend(walked.lost);
            self.batch_count += walked.batch_count;
        }
        Ok(())
    }

    fn read_tables(&mut self, dir: &Path) -> Result<()> {
        let options = OpenOptions::new(Arc::new(BlockCache::new(1 << 20)));
        let disk = self.env.disk.as_ref();
        let manifest = self.manifest.clone();
        if let Some(manifest) = manifest {
            for meta in manifest.tables() {
                let path = files::table(dir, meta.identity.number);
                match Table::open(disk, &path, Some(meta), &options) {
                    Ok(table) => self.add_table(table),
                    Err(error) => {
                        let (from, to) = (meta.name_min.clone(), meta.name_max.clone());
                        self.lose(&path, &error, from, Bound::Included(to), meta.version_max);
                    }
                }
            }
            return Ok(());
        }
        for entry in disk.list(dir).during("list", dir)? {
            if files::parse_table(&entry.name).is_none() {
                continue;
            }
            let path = dir.join(&entry.name);
            match Table::open(disk, &path, None, &options) {
                Ok(table) => self.add_table(table),
                Err(error) => self.lose(&path, &error, Vec::new(), Bound::Unbounded, Hlc::MAX),
            }
        }
        Ok(())
    }

    fn add_table(&mut self, table: Arc<Table>) {
        let version_max = table.meta().version_max;
        let lost = table.lost_chunks();
        for chunk in lost.iter().cloned() {
            self.lose(
                table.path(),
                &chunk.error,
                chunk.from,
                chunk.to,
                version_max,
            );
        }
        let path = table.path().display();
        self.notes.extend(
            table
                .warnings()
                .iter()
                .map(|damage| format!("{path}: {damage}")),
        );
        self.tables.push((table, lost));
    }

    /// Notes a range of names that lost versions up to `version_max`.
    fn lose(
        &mut self,
        path: &Path,
        error: &LogError,
        from: Vec<u8>,
        to: Bound<Vec<u8>>,
        version_max: Hlc,
    ) {
        let place = |name: &[u8]| self.place(name);
        let what = LostWhat::Keys {
            from: match from.is_empty() {
                true => Bound::Unbounded,
                false => Bound::Included(place(&from)),
            },
            to: match &to {
                Bound::Included(name) => Bound::Included(place(name)),
                Bound::Excluded(name) => Bound::Excluded(place(name)),
                Bound::Unbounded => Bound::Unbounded,
            },
        };
        let at = match error {
            LogError::Corrupt { at, .. } => Some(*at),
            _ => None,
        };
        self.lost.push(Lost {
            path: path.to_owned(),
            at,
            why: error.to_string(),
            what,
        });
        self.holes.push(Hole {
            from,
            to,
            version_max,
        });
    }

    /// A name as keyspace and key. A shortened one stands for the first name that it begins.
    fn place(&self, name: &[u8]) -> KeyPlace {
        let mut padded = name.to_vec();
        padded.resize(name.len().max(KEYSPACE_LEN), 0);
        let (number, key) = padded.split_first_chunk().expect("it was padded");
        let number = u32::from_be_bytes(*number);
        KeyPlace {
            keyspace: self
                .keyspaces
                .get(&number)
                .cloned()
                .unwrap_or_else(|| unnamed(number)),
            key: key.to_vec(),
        }
    }

    /// Writes what is good into the new database.
    fn save(mut self, to: &Path) -> Result<SalvagedDataset> {
        let mut options = Options {
            background: Background::Thread,
            durability: Durability::Os,
            ..Options::default()
        };
        if let Some(manifest) = &self.manifest {
            options.router = manifest.router.clone();
            options.entity_rule = manifest.entity_rule;
            options.node = NodeConfig {
                region: manifest.region,
                ..options.node
            };
        }
        let db = options.open_with(to, self.env.clone())?;
        let mut new = Target::new(&db, self.id.as_str(), &self.keyspaces)?;
        self.for_each(&mut |name, _, value| new.put(name, value))?;
        let key_count = new.finish()?;
        db.flush()?;
        db.close()?;
        Ok(SalvagedDataset {
            id: self.id,
            key_count,
            batch_count: self.batch_count,
            lost: self.lost,
            notes: self.notes,
        })
    }

    /// Gives every name with its newest version, in order, where nothing newer can be lost. Merges
    /// tables and logs.
    ///
    /// # Errors
    /// Those of `give`, and of a table that could be read when the holes were looked for.
    pub fn for_each(&mut self, give: &mut Give<'_>) -> Result<()> {
        let tables = self.tables.iter();
        let mut cursors: Vec<IntactCursor> = tables
            .map(|(table, lost)| IntactCursor::new(table, lost))
            .collect();
        cursors.iter().try_for_each(IntactCursor::status)?;
        let head = |cursor: &IntactCursor, n: usize| {
            let key = cursor.entry()?.key();
            Some((Reverse(key.name.to_vec()), key.version, n))
        };
        let mut heads: BinaryHeap<(Reverse<Vec<u8>>, Hlc, usize)> = cursors
            .iter()
            .enumerate()
            .filter_map(|(n, cursor)| head(cursor, n))
            .collect();
        let mut logged = std::mem::take(&mut self.logged).into_iter().peekable();
        let mut done: Option<Vec<u8>> = None;
        loop {
            let in_tables = heads.peek().map(|(Reverse(name), ..)| name);
            // A log's version of a name is met no later than the tables'.
            let is_logged = logged
                .peek()
                .is_some_and(|(name, _)| in_tables.is_none_or(|other| name <= other));
            if is_logged {
                let (name, entry) = logged.next().expect("it was peeked at");
                let newest = heads.peek().filter(|(Reverse(other), ..)| *other == name);
                if newest.is_some_and(|(_, version, _)| *version > entry.version) {
                    continue;
                }
                self.give_logged(give, &name, &entry)?;
                done = Some(name);
                continue;
            }
            let Some((Reverse(name), version, n)) = heads.pop() else {
                return Ok(());
            };
            if done.as_ref() != Some(&name) {
                let cursor = cursors[n].entry().expect("its head was taken");
                self.give_entry(give, &name, version, cursor)?;
                done = Some(name);
            }
            cursors[n].advance();
            cursors[n].status()?;
            heads.extend(head(&cursors[n], n));
        }
    }

    /// Whether records are lost that no table has.
    pub fn is_log_damaged(&self) -> bool {
        let is_records = |lost: &Lost| matches!(lost.what, LostWhat::Records { .. });
        self.lost.iter().any(is_records)
    }

    /// The ranges of names that are lost.
    pub fn holes(&self) -> &[Hole] {
        &self.holes
    }

    fn is_hidden(&self, name: &[u8], version: Hlc) -> bool {
        self.holes.iter().any(|hole| hole.hides(name, version))
    }

    fn give_logged(&mut self, give: &mut Give<'_>, name: &[u8], entry: &Logged) -> Result<()> {
        if !entry.is_last && self.is_hidden(name, entry.version) {
            return Ok(());
        }
        let Some(place) = &entry.value else {
            return Ok(());
        };
        let path = self.segments[place.segment].clone();
        match self.value(&path, place.at, place.len, place.crc) {
            Ok(value) => give(name, entry.version, &value),
            Err(error) => {
                self.lose_name(&path, &error, name, entry.version);
                Ok(())
            }
        }
    }

    fn give_entry(
        &mut self,
        give: &mut Give<'_>,
        name: &[u8],
        version: Hlc,
        cursor: &TableCursor,
    ) -> Result<()> {
        if self.is_hidden(name, version) {
            return Ok(());
        }
        match cursor.value() {
            ValueSource::Absent => Ok(()),
            ValueSource::Bytes(bytes) => give(name, version, bytes),
            ValueSource::Pointer(pointer) => {
                let path = path_of(&self.region, pointer.shard, pointer.file);
                match self.pointed(&path, &pointer) {
                    Ok(value) => give(name, version, &value),
                    Err(error) => {
                        self.lose_name(&path, &error, name, version);
                        Ok(())
                    }
                }
            }
            ValueSource::Log(_) => unreachable!("a table does not point into a memtable's log"),
        }
    }

    fn lose_name(&mut self, path: &Path, error: &LogError, name: &[u8], version: Hlc) {
        let to = Bound::Included(name.to_vec());
        self.lose(path, error, name.to_vec(), to, version);
    }

    fn pointed(&self, path: &Path, pointer: &ValuePointer) -> strandline_wal::Result<Vec<u8>> {
        if pointer.source != PointerSource::Segment {
            let found = "a value file";
            return Err(LogError::corrupt(
                path,
                0,
                "pointer source",
                "a segment",
                found,
            ));
        }
        self.value(
            path,
            pointer.offset.into(),
            pointer.len as usize,
            pointer.crc,
        )
    }

    fn value(&self, path: &Path, at: u64, len: usize, crc: u32) -> strandline_wal::Result<Vec<u8>> {
        let file = self
            .env
            .disk
            .open(path, Access::Read)
            .during("open", path)?;
        let mut bytes = vec![0; len];
        read_exact_at(file.as_ref(), &mut bytes, at).during("read", path)?;
        let found = crc32fast::hash(&bytes);
        if found != crc && !planted("salvage.crc") {
            let (expected, found) = (format!("{crc:#010x}"), format!("{found:#010x}"));
            return Err(LogError::corrupt(
                path,
                at,
                "value checksum",
                expected,
                found,
            ));
        }
        Ok(bytes)
    }
}

/// Whether a directory has files of a dataset, in whatever state.
fn is_dataset(env: &Env, dir: &Path) -> Result<bool> {
    let entries = env.disk.list(dir).during("list", dir)?;
    Ok(entries.iter().any(|entry| {
        let names = ["manifest", "manifest.copy", "epoch", "r00000"];
        names.contains(&&*entry.name) || files::parse_table(&entry.name).is_some()
    }))
}

/// The region of a dataset that lost its manifest: the one whose directory is there.
fn region_in(env: &Env, dir: &Path) -> Result<PathBuf> {
    let entries = env.disk.list(dir).during("list", dir)?;
    let region = entries.iter().find(|entry| {
        let digits = entry.name.strip_prefix('r');
        let is_number =
            digits.is_some_and(|d| d.len() == 5 && d.bytes().all(|b| b.is_ascii_digit()));
        entry.kind == FileKind::Dir && is_number
    });
    Ok(region.map_or_else(|| dir.join("r00000"), |entry| dir.join(&entry.name)))
}

/// What a keyspace is called whose name is lost.
fn unnamed(number: u32) -> String {
    format!("keyspace-{number}")
}

/// The new database, filled in batches.
struct Target {
    dataset: Dataset,
    names: BTreeMap<u32, String>,
    keyspaces: BTreeMap<u32, Keyspace>,
    batch: WriteBatch,
    key_count: u64,
}

impl Target {
    fn new(db: &Database, id: &str, names: &BTreeMap<u32, String>) -> Result<Target> {
        let dataset = db.dataset(id)?;
        let mut new = Target {
            batch: dataset.batch(),
            dataset,
            names: names.clone(),
            keyspaces: BTreeMap::new(),
            key_count: 0,
        };
        // Empty ones are part of the database too.
        names
            .keys()
            .try_for_each(|number| new.keyspace(*number).map(|_| ()))?;
        Ok(new)
    }

    fn keyspace(&mut self, number: u32) -> Result<Keyspace> {
        if let Some(keyspace) = self.keyspaces.get(&number) {
            return Ok(keyspace.clone());
        }
        let name = self
            .names
            .get(&number)
            .cloned()
            .unwrap_or_else(|| unnamed(number));
        let keyspace = self.dataset.keyspace(&name)?;
        self.keyspaces.insert(number, keyspace.clone());
        Ok(keyspace)
    }

    fn put(&mut self, name: &[u8], value: &[u8]) -> Result<()> {
        let Some((number, key)) = name.split_first_chunk::<KEYSPACE_LEN>() else {
            // No writer makes such a name.
            return Ok(());
        };
        let keyspace = self.keyspace(u32::from_be_bytes(*number))?;
        self.batch.put(&keyspace, key, value)?;
        self.key_count += 1;
        if self.batch.log_len() >= BATCH_LEN {
            self.commit()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        std::mem::replace(&mut self.batch, self.dataset.batch()).commit_with(Durability::Os)
    }

    fn finish(mut self) -> Result<u64> {
        self.commit()?;
        Ok(self.key_count)
    }
}
