//! A database out of an archive, as it was at some point; and the same without writing, as a check.
//!
//! The plan comes first: which base, which pieces of which log. Then everything is written into a directory
//! beside the target, opened once as a database, which cuts the logs of several shards to one consistent end
//! and begins an epoch, and renamed. So the target is there whole or not at all.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use strandline_replication::archive::{
    ArchiveStore, Base, BaseName, Error as ArchiveError, FileKind, Gap, Index, Piece, PieceKind,
    Root, Run, Tail, read,
};
use strandline_wal::bug::planted;
use strandline_wal::io::{Env, write_all_at};
use strandline_wal::segment::path_of;
use strandline_wal::{DatasetId, Hlc, IoContext, ShardId, unless};

use super::root_of;
use super::segment::{Cut, Walk, rewritten, walk};
use super::upload::usable_base;
use crate::config::NodeConfig;
use crate::error::{Error, Result};
use crate::files;
use crate::manifest::Manifest;
use crate::options::{Background, Options};
use crate::table::{OpenOptions, Table, relineage};

/// What to restore.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target {
    /// Everything that is archived.
    Latest,
    /// Per shard, the records up to this one; of a batch all or none.
    Position(Vec<u64>),
    /// What was written up to this time, in milliseconds since 1970.
    Time(u64),
}

/// What was restored.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RestoreReport {
    /// Per shard, the last record.
    pub seqs: Vec<u64>,
    /// Version of the newest batch.
    pub timestamp: Hlc,
    /// Version up to which it came out of a base.
    pub base: Hlc,
    /// The history that begins.
    pub lineage: [u8; 16],
    /// Bytes that were read.
    pub len: u64,
}

/// What a check has read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CheckReport {
    /// Bases that can be restored.
    pub base_count: u64,
    /// Pieces of logs.
    pub piece_count: u64,
    /// Bytes.
    pub len: u64,
    /// Known places where records are missing, because the log was dropped before it was archived.
    pub break_count: u64,
    /// Objects that are none of an archive's.
    pub unknown_count: u64,
}

const ALL: Cut = Cut {
    seq: u64::MAX,
    timestamp: Hlc::MAX,
    end: u64::MAX,
};

impl Target {
    fn cut(&self, shard: usize) -> Cut {
        let (mut seq, mut timestamp) = (u64::MAX, Hlc::MAX);
        match self {
            Target::Latest => {}
            Target::Position(seqs) => seq = seqs.get(shard).copied().unwrap_or(u64::MAX),
            Target::Time(ms) if *ms < Hlc::MAX.millis() => {
                timestamp = Hlc(Hlc::from_millis(ms + 1).0 - 1);
            }
            Target::Time(_) => {}
        }
        Cut {
            seq,
            timestamp,
            end: u64::MAX,
        }
    }

    /// Whether what is in a base's tables belongs to it.
    fn has(&self, base: &Base) -> bool {
        let mut ends = base.ends.iter().enumerate();
        base.timestamp <= self.cut(0).timestamp
            && ends.all(|(n, end)| end.complete_seq <= self.cut(n).seq)
    }
}

fn refused(text: String) -> Error {
    ArchiveError::Refused(text).into()
}

/// Restores a dataset into a directory that must not exist, which becomes a database of its own: another
/// lineage, so that nobody who followed the old one goes on with it.
///
/// # Errors
/// [`Error::Archive`] where the target cannot be reached, with the points that can; the disk's. Nothing is
/// at the target then.
pub fn restore(
    env: &Env,
    store: &dyn ArchiveStore,
    dataset: &DatasetId,
    lineage: Option<[u8; 16]>,
    target: &Target,
    dir: &Path,
) -> Result<RestoreReport> {
    let disk = env.disk.as_ref();
    if disk.stat(dir).is_ok() {
        return Err(Error::Argument {
            what: "directory to restore into",
            expected: "one that does not exist".to_owned(),
            found: dir.display().to_string(),
        });
    }
    let (root, _) = root_of(store, dataset, lineage)?;
    let staging = staging_of(dir)?;
    let mut excluded: Vec<BaseName> = Vec::new();
    let mut is_again = false;
    let outcome = loop {
        disk.remove_dir_all(&staging).during("remove", &staging)?;
        let index = Index::read(store, &root)?;
        let (name, base) = choose(store, &root, &index, target, &excluded)?;
        let mut restoring = Restoring {
            env,
            store,
            root: &root,
            index: &index,
            target,
            staging: Some(&staging),
            lineage: env.random.next_id(),
            report: RestoreReport::default(),
        };
        match restoring.run(dataset, &base) {
            Ok(()) => break Ok(restoring.report),
            // The retention of a leader was faster.
            Err(Error::Archive(ArchiveError::Missing { .. })) if !is_again => is_again = true,
            // A base of a leader whose log was cut below it.
            Err(Error::Archive(ArchiveError::Gap(gap))) if gap.object == root.base(&name) => {
                excluded.push(name);
            }
            Err(error) => break Err(error),
        }
    };
    match outcome {
        Ok(report) => {
            disk.rename(&staging, dir).during("rename", &staging)?;
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            unless!("archive.target", disk.sync_dir(parent)).during("sync directory", parent)?;
            Ok(report)
        }
        Err(error) => {
            // The first failure is the one to report; the next restore removes the rest.
            let _ = disk.remove_dir_all(&staging);
            Err(error)
        }
    }
}

/// Where a restore into a directory writes first: beside it, never inside.
fn staging_of(dir: &Path) -> Result<PathBuf> {
    let name = dir.file_name().ok_or_else(|| Error::Argument {
        what: "directory to restore into",
        expected: "one with a name".to_owned(),
        found: dir.display().to_string(),
    })?;
    let mut name = name.to_owned();
    name.push(".restoring");
    Ok(dir.with_file_name(name))
}

/// Reads all that a restore of any point would, and writes nothing.
///
/// # Errors
/// [`ArchiveError::Gap`], [`ArchiveError::Damaged`] or [`ArchiveError::Missing`] for the first thing that is
/// wrong; the store's.
pub fn check(
    env: &Env,
    store: &dyn ArchiveStore,
    dataset: &DatasetId,
    lineage: Option<[u8; 16]>,
) -> Result<CheckReport> {
    let (root, _) = root_of(store, dataset, lineage)?;
    let index = Index::read(store, &root)?;
    let mut report = CheckReport {
        unknown_count: index.unknown.len() as u64,
        ..CheckReport::default()
    };
    let mut restoring = Restoring {
        env,
        store,
        root: &root,
        index: &index,
        target: &Target::Latest,
        staging: None,
        lineage: [0; 16],
        report: RestoreReport::default(),
    };
    let mut bases: Vec<Base> = Vec::new();
    for name in &index.bases {
        let Some(base) = usable_base(store, &root, &index, name)? else {
            continue;
        };
        for file in &base.files {
            restoring.file(&file.object, file.len, &file.digest)?;
        }
        bases.push(base);
    }
    report.base_count = bases.len() as u64;
    let Some(first) = bases.first() else {
        return Err(refused(
            "the archive has no base yet: nothing can be restored".to_owned(),
        ));
    };
    for (n, end) in first.ends.iter().enumerate() {
        let shard = ShardId(u16::try_from(n).expect("counted in 16 bits"));
        let mut from = end.position.seq;
        let point = |base: &Base| Point::of(base, n, &root);
        let points: Vec<Point> = bases.iter().map(point).collect();
        loop {
            let (runs, gap) = restoring.span(shard, from);
            report.piece_count += runs.iter().map(|run| run.pieces.len() as u64).sum::<u64>();
            restoring.log(&runs, from, &points, None, shard, Target::Latest.cut(n))?;
            let Some(gap) = gap else { break };
            let is_known = |it: &&_| is_break(it, &gap) && index.is_on_path(it.epoch);
            if index.breaks.iter().find(is_known).is_none() {
                return Err(ArchiveError::Gap(gap).into());
            }
            report.break_count += 1;
            // As a base at the end of what is missing.
            from = gap.to;
        }
    }
    report.len = restoring.report.len;
    Ok(report)
}

fn is_break(it: &strandline_replication::archive::Break, gap: &Gap) -> bool {
    it.shard == gap.shard && it.first_seq == gap.to + 1
}

/// The newest base that the target does not lie behind.
fn choose(
    store: &dyn ArchiveStore,
    root: &Root,
    index: &Index,
    target: &Target,
    excluded: &[BaseName],
) -> Result<(BaseName, Base)> {
    let mut oldest = None;
    let newest_first = index.bases.iter().rev();
    for name in newest_first.filter(|base| !excluded.contains(base)) {
        let Some(base) = usable_base(store, root, index, name)? else {
            continue;
        };
        let count = base.ends.len();
        if let Target::Position(seqs) = target
            && seqs.len() != count
        {
            let text = format!("a position has {count} records, one of each shard");
            return Err(refused(text));
        }
        if target.has(&base) {
            return Ok((*name, base));
        }
        oldest = Some(base);
    }
    let text = match oldest {
        None => "the archive has no base that can be restored".to_owned(),
        Some(base) => {
            let seqs: Vec<u64> = base.ends.iter().map(|end| end.complete_seq).collect();
            let ms = base.timestamp.millis();
            format!("the oldest point in the archive is at {ms} ms since 1970, records {seqs:?}")
        }
    };
    Err(refused(text))
}

struct Restoring<'a> {
    env: &'a Env,
    store: &'a dyn ArchiveStore,
    root: &'a Root,
    index: &'a Index,
    target: &'a Target,
    staging: Option<&'a Path>,
    lineage: [u8; 16],
    report: RestoreReport,
}

/// Where a base ends in one log.
struct Point {
    seq: u64,
    chain: u32,
    object: String,
}

impl Point {
    fn of(base: &Base, shard: usize, root: &Root) -> Point {
        let end = &base.ends[shard];
        Point {
            seq: end.position.seq,
            chain: end.chain,
            object: root.base(&base.name()),
        }
    }
}

/// The segment that was written last, in the old history and in the new one.
type Before = Option<(u64, [u8; 32], [u8; 32])>;

impl Restoring<'_> {
    fn run(&mut self, dataset: &DatasetId, base: &Base) -> Result<()> {
        let staging = self.staging.expect("a restore writes");
        let disk = self.env.disk.as_ref();
        let dir = files::dataset(staging, dataset);
        let manifest = base
            .files
            .iter()
            .find(|file| file.kind == FileKind::Manifest);
        let manifest = manifest.ok_or_else(|| refused("a base without a manifest".to_owned()))?;
        let bytes = self.file(&manifest.object, manifest.len, &manifest.digest)?;
        disk.create_dir_all(&dir).during("create directory", &dir)?;
        let path = dir.join("manifest.old");
        self.write(&path, &bytes)?;
        let loaded = Manifest::load(disk, &path)?;
        disk.remove(&path).during("remove", &path)?;
        let mut manifest = loaded.ok_or_else(|| refused("a base without a manifest".to_owned()))?;
        let region = files::region(&dir, manifest.region);
        disk.create_dir_all(&region)
            .during("create directory", &region)?;
        self.tables(base, &mut manifest, &dir)?;
        for (n, end) in base.ends.iter().enumerate() {
            let shard = ShardId(u16::try_from(n).expect("counted in 16 bits"));
            let (runs, gap) = self.span(shard, end.position.seq);
            let mut before = self.values(base, shard, &runs, &region)?;
            let (points, cut) = ([Point::of(base, n, self.root)], self.target.cut(n));
            let to = Some((&*region, &mut before));
            let (last, is_cut) = self.log(&runs, end.position.seq, &points, to, shard, cut)?;
            match gap {
                Some(gap) if !is_cut && last < cut.seq => return Err(ArchiveError::Gap(gap).into()),
                _ => {}
            }
            if matches!(self.target, Target::Position(_)) && !is_cut && last < cut.seq {
                let text = format!("the archive ends at record {last} of shard {shard}");
                return Err(refused(text));
            }
            manifest.epochs[n].retain(|entry| entry.first_seq <= end.position.seq);
        }
        manifest.lineage = self.lineage;
        manifest.generation += 1;
        manifest.store(disk, &files::manifest(&dir))?;
        for dir in [&region, &dir, staging] {
            disk.sync_dir(dir).during("sync directory", dir)?;
        }
        self.report.base = base.timestamp;
        self.report.lineage = self.lineage;
        self.open(staging, dataset, &manifest)
    }

    /// Opens what was written: whatever cannot be opened is no restored database.
    fn open(&mut self, staging: &Path, dataset: &DatasetId, manifest: &Manifest) -> Result<()> {
        let options = Options {
            router: manifest.router.clone(),
            entity_rule: manifest.entity_rule,
            background: Background::Manual,
            // Whoever opens it next sets space aside.
            reserve_len_max: 0,
            node: NodeConfig {
                region: manifest.region,
                ..NodeConfig::default()
            },
            ..Options::default()
        };
        let database = options.open_with(staging, self.env.clone())?;
        let store = database.dataset(dataset.as_str())?.inner().store();
        // The open begins an epoch with one record in every log.
        self.report.seqs = store.positions().iter().map(|end| end.seq - 1).collect();
        drop(store);
        database.close()?;
        let disk = self.env.disk.as_ref();
        disk.sync_dir(staging).during("sync directory", staging)?;
        Ok(())
    }

    /// Reads an object and compares its digest.
    fn file(&mut self, object: &str, len: u64, digest: &[u8; 32]) -> Result<Vec<u8>> {
        let bytes = self.read(object)?;
        let is_it = bytes.len() as u64 == len && blake3::hash(&bytes).as_bytes() == digest;
        match is_it || planted("archive.file_digest") {
            true => Ok(bytes),
            false => Err(ArchiveError::Damaged {
                object: object.to_owned(),
                what: "its bytes have another digest than the base names".to_owned(),
            }
            .into()),
        }
    }

    fn read(&mut self, object: &str) -> Result<Vec<u8>> {
        let bytes = read(self.store, object)?;
        self.report.len += bytes.len() as u64;
        Ok(bytes)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let disk = self.env.disk.as_ref();
        let file = disk.create(path).during("create", path)?;
        write_all_at(file.as_ref(), bytes, 0).during("write", path)?;
        unless!("archive.file_sync", file.sync()).during("sync", path)?;
        Ok(())
    }

    fn tables(&mut self, base: &Base, manifest: &mut Manifest, dir: &Path) -> Result<()> {
        let disk = self.env.disk.as_ref();
        let options = OpenOptions::new(std::sync::Arc::new(crate::table::BlockCache::new(0)));
        for meta in manifest.runs.iter_mut().flatten() {
            let number = meta.identity.number;
            let is_it = |file: &&_| is_table(file, number);
            let file = base.files.iter().find(is_it).ok_or_else(|| {
                refused(format!(
                    "the base lacks table {number}, which its manifest names"
                ))
            })?;
            let bytes = self.file(&file.object, file.len, &file.digest)?;
            let old = dir.join(format!("{number}.old"));
            self.write(&old, &bytes)?;
            let table = Table::open(disk, &old, Some(meta), &options)?;
            *meta = relineage(&table, disk, &files::table(dir, number), self.lineage)?;
            drop(table);
            disk.remove(&old).during("remove", &old)?;
        }
        Ok(())
    }

    /// Writes the segments before the log that tables point into.
    fn values(
        &mut self,
        base: &Base,
        shard: ShardId,
        runs: &[Run],
        region: &Path,
    ) -> Result<Before> {
        let start = runs.first().map_or(u64::MAX, Run::first_seq);
        let mut before = None;
        let mut files: Vec<_> = base
            .files
            .iter()
            .filter(|f| f.kind == FileKind::Segment)
            .collect();
        files.sort_by_key(|file| file.number);
        for file in files {
            let (its, first_seq) = (file.number >> 48, file.number & ((1 << 48) - 1));
            if its != u64::from(shard.0) || first_seq >= start {
                continue;
            }
            let bytes = self.file(&file.object, file.len, &file.digest)?;
            let walked = walk(&bytes, true, &file.object, ALL, &BTreeSet::new())?;
            self.segment(&bytes, &walked, shard, true, (region, &mut before))?;
        }
        Ok(before)
    }

    fn segment(
        &self,
        bytes: &[u8],
        walked: &Walk,
        shard: ShardId,
        is_sealed: bool,
        (region, before): (&Path, &mut Before),
    ) -> Result<()> {
        let prev = before.filter(|(last, old, _)| {
            last + 1 == walked.header.first_seq && *old == walked.header.prev_digest
        });
        let prev = prev.map(|(_, _, new)| new);
        let (out, digest) = rewritten(bytes, walked, self.lineage, prev, is_sealed);
        self.write(&path_of(region, shard, walked.header.first_seq), &out)?;
        *before = Some((walked.footer.last_seq, walked.footer.digest, digest));
        Ok(())
    }

    fn span(&self, shard: ShardId, flushed: u64) -> (Vec<Run>, Option<Gap>) {
        // The log may begin with the first record that is in no table.
        let holds = |run: &Run| run.first_seq() <= flushed && flushed <= run.last_seq();
        let is_there = self.index.runs(shard).iter().any(holds);
        let from = if is_there { flushed } else { flushed + 1 };
        self.index.span(self.root, shard, from)
    }

    /// Reads the log behind record `flushed`, and writes it where `to` is given, up to the cut. Where a base
    /// ends in it, the chain value must be the base's. Returns the last record and whether something was cut.
    fn log(
        &mut self,
        runs: &[Run],
        flushed: u64,
        points: &[Point],
        mut to: Option<(&Path, &mut Before)>,
        shard: ShardId,
        cut: Cut,
    ) -> Result<(u64, bool)> {
        let mut last = flushed;
        let mut known = None;
        let at: BTreeSet<u64> = points.iter().map(|point| point.seq).collect();
        for (n, run) in runs.iter().enumerate() {
            let (bytes, name) = self.assemble(&run.pieces)?;
            let cut = Cut {
                end: run.end,
                ..cut
            };
            let walked = walk(&bytes, run.is_whole(), &name, cut, &at)?;
            let continues = known.is_none_or(|chain| chain == walked.header.prev_crc);
            if !continues && !planted("archive.continues") {
                let what = "it does not continue the segment before it".to_owned();
                return Err(ArchiveError::Damaged { object: name, what }.into());
            }
            // A base of another fork: what is in its tables is not what the log says.
            let (first_seq, end) = (walked.header.first_seq, walked.footer.last_seq);
            let is_told = |it: &&Point| it.seq > 0 && first_seq <= it.seq + 1 && it.seq <= end;
            for point in points.iter().filter(is_told) {
                let is_it = walked.chains.get(&point.seq) == Some(&point.chain);
                if !is_it && !planted("archive.base_chain") {
                    let gap = Gap {
                        shard,
                        from: point.seq + 1,
                        to: point.seq,
                        object: point.object.clone(),
                    };
                    return Err(ArchiveError::Gap(gap).into());
                }
            }
            known = Some(walked.footer.chain);
            if walked.footer.batch_count == 0 {
                return Ok((last, true));
            }
            last = walked.footer.last_seq;
            self.report.timestamp = self.report.timestamp.max(walked.timestamp);
            // Where the next one is cut before its first batch, this one is the last: it may be sealed.
            let is_sealed = !walked.is_cut && (run.is_whole() || n + 1 < runs.len());
            if let Some((region, before)) = &mut to {
                self.segment(&bytes, &walked, shard, is_sealed, (region, before))?;
            }
            if walked.is_cut {
                return Ok((last, true));
            }
        }
        Ok((last, false))
    }

    /// A segment's bytes, out of the file or of its parts.
    fn assemble(&mut self, group: &[Piece]) -> Result<(Vec<u8>, String)> {
        let name = self.root.piece(&group[0]);
        if group[0].kind == PieceKind::Segment {
            return Ok((self.read(&name)?, name));
        }
        let mut bytes = Vec::new();
        for piece in group {
            let name = self.root.piece(piece);
            let stored = self.read(&name)?;
            let tail = Tail::decode(&stored, &name)?;
            if bytes.is_empty() {
                bytes.extend_from_slice(tail.header);
            }
            let at = usize::try_from(tail.offset).unwrap_or(usize::MAX);
            let is_same = bytes.starts_with(tail.header) && tail.shard == piece.shard;
            // Parts of one segment may overlap: the same bytes.
            let skip = bytes.len().checked_sub(at).filter(|_| is_same);
            let skip = skip.ok_or_else(|| ArchiveError::Damaged {
                object: name,
                what: format!("it does not continue the {} bytes before it", bytes.len()),
            })?;
            bytes.extend_from_slice(tail.batches.get(skip..).unwrap_or_default());
        }
        Ok((bytes, name))
    }
}

fn is_table(file: &strandline_replication::archive::BaseFile, number: u64) -> bool {
    file.kind == FileKind::Table && file.number == number
}
