//! Checks every byte of a database that is not open for writing, and names what is damaged.
//!
//! It reads as recovery does, decides nothing, and goes on behind the first finding.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline_wal::batch::{Batch, BatchHeader, Damage, HEADER_LEN as BATCH_HEADER_LEN};
use strandline_wal::bug::planted;
use strandline_wal::io::{Access, Disk, Env, FileKind, read_exact_at};
use strandline_wal::marks::{self, Marks};
use strandline_wal::recover::{FoundSegment, Known, Plan, plan};
use strandline_wal::segment::SEGMENT_HEADER_LEN;
use strandline_wal::slots::SlotFile;
use strandline_wal::{DatasetId, Error as LogError, IoContext, LogId, ShardId};

use crate::error::{Error, Result};
use crate::files;
use crate::manifest::{FlushedLog, Manifest, Slots};
use crate::node::{self, NodeIdentity};
use crate::store::epoch::{self, EpochFile};
use crate::table::{
    BlockCache, Cursor, OpenOptions, PointerSource, Table, ValuePointer, ValueSource,
};

/// Something that is not as it was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// Byte offset in it, where there is one.
    pub at: Option<u64>,
    /// What is wrong: expected and found.
    pub what: String,
}

/// What a check read and found.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Files that were read.
    pub file_count: u64,
    /// Bytes that were read.
    pub len: u64,
    /// Batches in segments.
    pub batch_count: u64,
    /// Entries in tables.
    pub entry_count: u64,
    /// What is damaged or missing.
    pub problems: Vec<Problem>,
    /// What looks odd and harms nothing: a tail that recovery will cut, a leftover file.
    pub notes: Vec<String>,
}

/// What opening a dataset for writing would do to each of its logs, or why it would refuse. Writes
/// nothing. Cuts that make the ends of several shards agree are decided behind these plans.
///
/// # Errors
/// [`Error::NotFound`] where there is no manifest; the disk's; damage in the manifest.
pub fn recovery_plans(
    root: &Path,
    id: &DatasetId,
    env: &Env,
) -> Result<Vec<strandline_wal::Result<Plan>>> {
    let dir = files::dataset(root, id);
    let Some(manifest) = Manifest::load(env.disk.as_ref(), &files::manifest(&dir))? else {
        return Err(Error::NotFound {
            what: "dataset",
            name: id.to_string(),
            hint: "; it has no manifest",
        });
    };
    Ok(plans_of(env, id, &dir, &manifest)?)
}

/// Plans the recovery of every log. Nothing is taken for granted because it is in tables.
pub(crate) fn plans_of(
    env: &Env,
    id: &DatasetId,
    dir: &Path,
    manifest: &Manifest,
) -> strandline_wal::Result<Vec<strandline_wal::Result<Plan>>> {
    let disk = env.disk.as_ref();
    let epochs = EpochFile::read(disk, &files::epoch(dir));
    let led = epochs.map_or(Vec::new(), |file| file.epochs().led.clone());
    let region = files::region(dir, manifest.region);
    let marks = Marks::read(disk, &region)?;
    let plan_of = |(shard, flushed): (usize, &FlushedLog)| {
        let id_of = ShardId(u16::try_from(shard).expect("at most 256 shards"));
        let marked = marks.iter().find(|(shard, _)| *shard == id_of);
        let marked = marked.map_or(0, |(_, seq)| *seq);
        let known = Known {
            log: LogId {
                dataset: id.clone(),
                region: manifest.region,
                shard: id_of,
            },
            lineage: Some(manifest.lineage),
            durable_seq: marked.max(flushed.complete_seq).max(flushed.position.seq),
            flushed_seq: flushed.position.seq,
            led: &|epoch| led.contains(&epoch),
            fork_seq: None,
        };
        plan(disk, &region, &known)
    };
    Ok(manifest.logs.iter().enumerate().map(plan_of).collect())
}

/// Checks the database in a directory: every batch, every table, every pointer, every root record.
/// Writes nothing. Beside a live writer, its growing tail may show as a note.
///
/// # Errors
/// [`Error::NotFound`] where there is no database. Damage is no error: it is in the report.
pub fn verify(root: &Path, env: &Env) -> Result<VerifyReport> {
    verify_at_pace(root, env, &mut |_| {})
}

/// As [`verify`]; `pace` is told of the bytes of segments and tables as they are read, and may wait.
///
/// # Errors
/// As [`verify`].
pub fn verify_at_pace(root: &Path, env: &Env, pace: Pace<'_>) -> Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let entries = match env.disk.list(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let name = root.display().to_string();
            return Err(Error::NotFound {
                what: "database",
                name,
                hint: "",
            });
        }
        Err(e) => return Err(e).during("list", root).map_err(Error::from),
    };
    if let Err(error) = NodeIdentity::read(env, root) {
        report.problem(&files::node(root), &error);
    }
    let disk = env.disk.as_ref();
    report.slots(disk, &files::node(root), node::MAGIC, node::SLOT_LEN);
    let mut datasets = 0;
    for entry in entries.iter().filter(|entry| entry.kind == FileKind::Dir) {
        let Ok(id) = DatasetId::new(&entry.name) else {
            continue;
        };
        datasets += 1;
        let dir = files::dataset(root, &id);
        if let Err(error) = (Check {
            env,
            id,
            dir: &dir,
            report: &mut report,
            pace,
        })
        .run()
        {
            report.problem(&dir, &error);
        }
    }
    if datasets == 0 && env.disk.stat(&files::lock(root)).is_err() {
        let name = root.display().to_string();
        return Err(Error::NotFound {
            what: "database",
            name,
            hint: "",
        });
    }
    Ok(report)
}

impl VerifyReport {
    /// Notes the damaged one of two slots: a crash in the middle of its write leaves it, too, and the
    /// other one serves. Where both are damaged, whoever reads them says so.
    fn slots(&mut self, disk: &dyn Disk, path: &Path, magic: [u8; 4], slot_len: usize) {
        if let Ok(Some(loaded)) = SlotFile::read(disk, path, magic, slot_len)
            && let Some(at) = loaded.damaged_at
        {
            self.notes.push(format!(
                "{}: the slot at byte {at} is damaged, the other one is intact and serves",
                path.display()
            ));
        }
    }

    pub(crate) fn problem(&mut self, path: &Path, error: &LogError) {
        let problem = match error {
            LogError::Corrupt {
                path,
                at,
                what,
                expected,
                found,
            } => Problem {
                path: path.clone(),
                at: Some(*at),
                what: format!("{what}: expected {expected}, found {found}"),
            },
            LogError::Io { path, .. } | LogError::Unsupported { path, .. } => Problem {
                path: path.clone(),
                at: None,
                what: error.to_string(),
            },
            _ => Problem {
                path: path.to_owned(),
                at: None,
                what: error.to_string(),
            },
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

/// Told of bytes as they are read; it may wait.
pub type Pace<'a> = &'a mut dyn FnMut(usize);

/// Bytes of a segment that are read at once, at least.
const PIECE_LEN: u64 = 256 << 10;

/// A segment's file and what its bytes must be.
pub(crate) struct StoredSegment<'a> {
    pub path: &'a Path,
    pub nonce: u32,
    /// Bytes of its header and batches.
    pub data_len: u64,
    /// Of a sealed one.
    pub digest: Option<[u8; 32]>,
}

impl StoredSegment<'_> {
    /// Reads every batch, and a sealed one's digest. Returns the number of batches.
    pub fn check(&self, disk: &dyn Disk, pace: Pace<'_>) -> strandline_wal::Result<u64> {
        let path = self.path;
        let file = disk.open(path, Access::Read).during("open", path)?;
        let mut digest = blake3::Hasher::new();
        let mut read = |bytes: &mut Vec<u8>, from: u64, len: u64| {
            let len = len.min(self.data_len - from);
            let before = bytes.len();
            bytes.resize(
                before + usize::try_from(len).expect("a segment fits in memory"),
                0,
            );
            read_exact_at(file.as_ref(), &mut bytes[before..], from).during("read", path)?;
            digest.update(&bytes[before..]);
            pace(bytes.len() - before);
            Ok(())
        };
        let mut at = SEGMENT_HEADER_LEN as u64;
        let mut bytes = Vec::new();
        read(&mut bytes, 0, at)?;
        // Of the bytes at hand, those before are checked; `at` is where they end in the file.
        let mut done = bytes.len();
        let mut batch_count = 0;
        while at < self.data_len {
            let rest = &bytes[done..];
            let (end, needed) = (at + rest.len() as u64, batch_len(rest));
            if needed > rest.len() && end < self.data_len {
                let lacking = (needed - rest.len()) as u64;
                bytes.drain(..done);
                done = 0;
                read(&mut bytes, end, lacking.max(PIECE_LEN))?;
                continue;
            }
            let wrong =
                |damage: Damage| LogError::corrupt(path, at, "batch", "an intact batch", damage);
            let batch = Batch::decode(rest).map_err(wrong)?;
            if batch.header.nonce != self.nonce {
                let found = batch.header.nonce;
                return Err(LogError::corrupt(path, at, "nonce", self.nonce, found));
            }
            let mut records = batch.records();
            records
                .try_for_each(|record| record.map(|_| ()))
                .map_err(wrong)?;
            batch_count += 1;
            done += batch.header.batch_len();
            at += batch.header.batch_len() as u64;
        }
        let found = digest.finalize();
        match self.digest {
            Some(digest) if *found.as_bytes() != digest && !planted("verify.segment_digest") => {
                let expected = blake3::Hash::from_bytes(digest).to_hex();
                let found = found.to_hex();
                Err(LogError::corrupt(
                    path,
                    self.data_len,
                    "digest",
                    expected,
                    found,
                ))
            }
            _ => Ok(batch_count),
        }
    }
}

/// Bytes of the batch that begins here, as far as its header tells; where it is not here whole, those of
/// a header.
fn batch_len(bytes: &[u8]) -> usize {
    match BatchHeader::decode(bytes) {
        Ok((header, _)) => header.batch_len(),
        Err(_) => BATCH_HEADER_LEN,
    }
}

struct Check<'a> {
    env: &'a Env,
    id: DatasetId,
    dir: &'a Path,
    report: &'a mut VerifyReport,
    pace: Pace<'a>,
}

impl Check<'_> {
    fn disk(&self) -> &dyn Disk {
        self.env.disk.as_ref()
    }

    fn run(mut self) -> strandline_wal::Result<()> {
        let path = files::manifest(self.dir);
        let Some(slots) = Slots::load(self.disk(), &path)? else {
            let found = "no such file";
            return Err(LogError::corrupt(&path, 0, "manifest", "a manifest", found));
        };
        let Slots {
            manifest,
            other,
            is_behind,
        } = slots;
        match other {
            Some(error) if is_behind => self.report.notes.push(error.to_string()),
            Some(error) => self.report.problem(&path, &error),
            None => {}
        }
        self.report.file_count += 2;
        if let Err(error) = EpochFile::read(self.disk(), &files::epoch(self.dir)) {
            self.report.problem(self.dir, &error);
        }
        let (disk, path) = (self.env.disk.as_ref(), files::epoch(self.dir));
        let report = &mut self.report;
        report.slots(disk, &path, epoch::MAGIC, epoch::SLOT_LEN);
        let region = files::region(self.dir, manifest.region);
        let path = region.join(marks::FILE_NAME);
        report.slots(disk, &path, marks::MAGIC, marks::SLOT_LEN);
        for plan in plans_of(self.env, &self.id, self.dir, &manifest)? {
            match plan {
                Ok(plan) => self.log(&plan),
                Err(error) => self.report.problem(&region, &error),
            }
        }
        self.tables(&manifest, &region)
    }

    fn log(&mut self, plan: &Plan) {
        for segment in &plan.segments {
            self.report.file_count += 1;
            self.report.len += segment.file_len;
            if let Err(error) = self.segment(segment) {
                self.report.problem(&segment.path, &error);
            }
        }
        if let Some(last) = plan.segments.last() {
            match self.is_footer_lost(last) {
                Ok(false) => {}
                Ok(true) => self.report.notes.push(format!(
                    "{}: what stands from byte {} on is no footer, though a footer stood there; all before \
                     it is whole, and the next open goes on behind record {}",
                    last.path.display(),
                    last.data_len,
                    last.last_seq
                )),
                Err(error) => self.report.problem(&last.path, &error),
            }
        }
        if let Some(cut) = &plan.cut {
            self.report.notes.push(format!(
                "{}: the tail from record {} on will be cut at byte {}: {}",
                cut.path.display(),
                cut.first_seq,
                cut.at,
                cut.reason
            ));
        }
    }

    /// Whether a segment was sealed, as its length tells, and has no footer any more.
    fn is_footer_lost(&self, found: &FoundSegment) -> strandline_wal::Result<bool> {
        let is_short = (found.data_len + 1..found.header.capacity).contains(&found.file_len);
        if found.footer.is_some() || !is_short {
            return Ok(false);
        }
        let (disk, path) = (self.env.disk.as_ref(), &found.path);
        let file = disk.open(path, Access::Read).during("open", path)?;
        let len =
            usize::try_from(found.file_len - found.data_len).expect("a segment fits in memory");
        let mut bytes = vec![0; len];
        read_exact_at(file.as_ref(), &mut bytes, found.data_len).during("read", path)?;
        Ok(bytes.iter().any(|byte| *byte != 0))
    }

    fn segment(&mut self, found: &FoundSegment) -> strandline_wal::Result<()> {
        let stored = StoredSegment {
            path: &found.path,
            nonce: found.header.nonce,
            data_len: found.data_len,
            digest: found.footer.as_ref().map(|footer| footer.digest),
        };
        self.report.batch_count += stored.check(self.env.disk.as_ref(), self.pace)?;
        Ok(())
    }

    fn tables(&mut self, manifest: &Manifest, region: &Path) -> strandline_wal::Result<()> {
        let options = OpenOptions::new(Arc::new(BlockCache::new(1 << 20)));
        let mut segments = Pointed {
            region,
            open: BTreeMap::new(),
        };
        for meta in manifest.tables() {
            let path = files::table(self.dir, meta.identity.number);
            let table = match Table::open(self.env.disk.as_ref(), &path, Some(meta), &options) {
                Ok(table) => table,
                Err(error) => {
                    self.report.problem(&path, &error);
                    continue;
                }
            };
            self.report.file_count += 1;
            self.report.len += meta.len;
            for damage in table
                .verify_at_pace(self.pace)
                .into_iter()
                .chain(table.warnings().iter().cloned())
            {
                let error = damage.into_error(&path);
                self.report.problem(&path, &error);
            }
            self.pointers(&table, &mut segments);
        }
        Ok(())
    }

    /// Follows every pointer of a table and checks the value's own checksum.
    fn pointers(&mut self, table: &Arc<Table>, segments: &mut Pointed<'_>) {
        let mut cursor = table.cursor_once();
        cursor.first();
        while cursor.is_valid() {
            self.report.entry_count += 1;
            if let ValueSource::Pointer(pointer) = cursor.value()
                && let Err(error) = segments.check(self.env.disk.as_ref(), &pointer)
            {
                self.report.problem(table.path(), &error);
            }
            cursor.next();
        }
        if let Err(error) = cursor.status() {
            self.report.problem(table.path(), &error);
        }
    }
}

/// Segments that pointers lead to, opened once.
struct Pointed<'a> {
    region: &'a Path,
    open: BTreeMap<(ShardId, u64), Arc<dyn strandline_wal::io::File>>,
}

impl Pointed<'_> {
    fn check(&mut self, disk: &dyn Disk, pointer: &ValuePointer) -> strandline_wal::Result<()> {
        let path = strandline_wal::segment::path_of(self.region, pointer.shard, pointer.file);
        if pointer.source != PointerSource::Segment {
            return Err(LogError::corrupt(
                &path,
                0,
                "pointer source",
                "a segment",
                "a value file",
            ));
        }
        let place = (pointer.shard, pointer.file);
        let file = match self.open.get(&place) {
            Some(file) => Arc::clone(file),
            None => {
                let file = disk.open(&path, Access::Read).during("open", &path)?;
                self.open.insert(place, Arc::clone(&file));
                file
            }
        };
        let mut bytes = vec![0; pointer.len as usize];
        read_exact_at(file.as_ref(), &mut bytes, pointer.offset.into()).during("read", &path)?;
        let crc = crc32fast::hash(&bytes);
        if crc != pointer.crc && !planted("verify.value_crc") {
            let (expected, found) = (format!("{:#010x}", pointer.crc), format!("{crc:#010x}"));
            let at = pointer.offset.into();
            return Err(LogError::corrupt(
                &path,
                at,
                "value checksum",
                expected,
                found,
            ));
        }
        Ok(())
    }
}
