//! Mends a damaged database by an intact copy of it: the checkpoint of another node.
//!
//! | Damaged | Taken from the copy |
//! |---------|---------------------|
//! | a segment | the batches that are damaged; they are the same bytes at the same offsets |
//! | a table of a leader | what the copy says of the keys that the damaged blocks may have held |
//! | the manifest, or a table of a follower | all tables at the copy's position, and behind it this node's own log |
//! | the record of epochs, the identity | nothing: the node becomes another incarnation, whose old confirmations count no more |
//!
//! A table has no twin on another node, so its blocks cannot be copied: a range of keys is replaced
//! through all tables, by the copy's state of it at one position. New files stand beside the old ones
//! until they are whole, and take their place in one step that a crash cannot halve. The copy is only
//! read.

mod fetch;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline_wal::bug::planted;
use strandline_wal::io::{Disk, Env, FileKind, LockMode, read_file, replace_file, write_all_at};
use strandline_wal::marks::Marks;
use strandline_wal::repair::{Repaired, merge};
use strandline_wal::segment::{file_name, parse_file_name, path_of};
use strandline_wal::unless;
use strandline_wal::{DatasetId, Epoch, Error as LogError, IoContext, ShardId};

use crate::error::{Error, Result};
use crate::files;
use crate::manifest::{Manifest, Slots};
use crate::node::NodeIdentity;
use crate::replica::Links;
use crate::replica::bundle::{finish_install, finish_installs, install_dir, staging_dir};
use crate::store::epoch::EpochFile;
use crate::table::{BlockCache, OpenOptions, Table};
use crate::verify::{Problem, plans_of, recovery_plans, verify};

pub(crate) use fetch::Fetched;

/// A segment that got bytes from the copy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RepairedSegment {
    /// The file.
    pub path: PathBuf,
    /// Which bytes.
    pub ranges: Vec<Range<u64>>,
}

/// What was done to one dataset.
#[derive(Clone, Debug)]
pub struct RepairedDataset {
    /// Its name.
    pub id: DatasetId,
    /// Segments that were mended.
    pub segments: Vec<RepairedSegment>,
    /// Damaged or missing tables, by file, whose keys were replaced.
    pub tables: Vec<PathBuf>,
    /// Whether manifest and tables are those of the copy now.
    pub is_replaced: bool,
    /// What else was done.
    pub notes: Vec<String>,
}

/// What a repair did.
#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// The datasets, by name.
    pub datasets: Vec<RepairedDataset>,
    /// What is still damaged: the copy does not have it intact either.
    pub problems: Vec<Problem>,
}

impl RepairReport {
    /// Number of places that were mended.
    pub fn repair_count(&self) -> usize {
        let of = |dataset: &RepairedDataset| {
            let ranges: usize = dataset.segments.iter().map(|s| s.ranges.len()).sum();
            ranges + dataset.tables.len().max(usize::from(dataset.is_replaced))
        };
        self.datasets.iter().map(of).sum()
    }
}

/// Mends the database in `root`, which nobody may have open, by the one in `copy`: a checkpoint, or
/// any other closed database of the same history.
///
/// # Errors
/// [`Error::Locked`]; [`Error::NotFound`] where there is no database; [`Error::Mismatch`] where the
/// copy is of another history; `Corrupt` where the copy is damaged in what it is needed for; the
/// disk's. A dataset is left as it was then.
pub fn repair(root: &Path, copy: &Path, env: &Env) -> Result<RepairReport> {
    let absent = |path: &Path| Error::NotFound {
        what: "database",
        name: path.display().to_string(),
        hint: "",
    };
    for path in [copy, root] {
        if !is_there(env, path)? {
            return Err(absent(path));
        }
    }
    let _lock = match env.disk.lock(&files::lock(root), LockMode::Exclusive) {
        Ok(lock) => lock,
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
            return Err(Error::Locked {
                path: root.to_owned(),
                note: String::new(),
            });
        }
        Err(e) => return Err(e).during("lock", root).map_err(Error::from),
    };
    let mut report = RepairReport::default();
    // A repair before this one may have died on its last steps.
    finish_installs(env, root)?;
    let entries = env.disk.list(root).during("list", root)?;
    let mut is_stranger = mend_identity(env, root)?;
    for entry in entries.iter().filter(|entry| entry.kind == FileKind::Dir) {
        let Ok(id) = DatasetId::new(&entry.name) else {
            continue;
        };
        if !is_there(env, &files::dataset(copy, &id))? {
            continue;
        }
        let mut mending = Mending::begin(env, root, copy, id)?;
        mending.epochs(&mut is_stranger)?;
        report.datasets.push(mending.finish()?);
    }
    if is_stranger {
        NodeIdentity::renew(env, root)?;
    }
    report.problems = verify(root, env)?.problems;
    Ok(report)
}

/// Mends the database in `root`, which nobody may have open, by what the first of `peers` that leads has:
/// it is fetched into `{root}.copy`, which is removed afterwards.
///
/// # Errors
/// [`Error::Replication`] where no peer leads; as [`repair`].
pub fn repair_from(root: &Path, peers: &[String], env: &Env) -> Result<RepairReport> {
    repair_from_by(root, peers, &Links::default(), env)
}

/// As [`repair_from`], over connections of one's own choice.
///
/// # Errors
/// Those of [`repair_from`].
pub fn repair_from_by(
    root: &Path,
    peers: &[String],
    links: &Links,
    env: &Env,
) -> Result<RepairReport> {
    let mut ids = Vec::new();
    for entry in env.disk.list(root).during("list", root)? {
        let Ok(id) = DatasetId::new(&entry.name) else {
            continue;
        };
        if is_there(env, &files::epoch(&files::dataset(root, &id)))? {
            ids.push(id);
        }
    }
    if ids.is_empty() {
        return Err(Error::NotFound {
            what: "dataset",
            name: root.display().to_string(),
            hint: "; there is nothing to repair",
        });
    }
    let copy = Fetched::new(env, root, peers, links, &ids, &|| true)?;
    repair(root, copy.dir(), env)
}

/// Mends one dataset that this process has closed, in a database that it has open.
pub(crate) fn mend(root: &Path, copy: &Path, id: &DatasetId, env: &Env) -> Result<RepairReport> {
    let mended = Mending::begin(env, root, copy, id.clone())?.finish()?;
    let dir = files::dataset(root, id);
    let mut problems = verify(root, env)?.problems;
    problems.retain(|problem| problem.path.starts_with(&dir));
    Ok(RepairReport {
        datasets: vec![mended],
        problems,
    })
}

fn is_there(env: &Env, path: &Path) -> Result<bool> {
    match env.disk.stat(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).during("stat", path).map_err(Error::from),
    }
}

/// Whether the node's identity is damaged. A new one is made then, with a name of its own.
fn mend_identity(env: &Env, root: &Path) -> Result<bool> {
    match NodeIdentity::read(env, root) {
        Ok(_) => Ok(false),
        Err(LogError::Corrupt { path, .. }) => {
            env.disk.remove(&path).during("remove", &path)?;
            NodeIdentity::open(env, root)?;
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// The segment files of a directory by shard and first sequence.
type Segments = BTreeMap<(ShardId, u64), PathBuf>;

struct Mending<'a> {
    env: &'a Env,
    root: &'a Path,
    dir: PathBuf,
    region: PathBuf,
    /// `None` where both slots are damaged.
    manifest: Option<Manifest>,
    /// Whether one slot is.
    is_slot_damaged: bool,
    ours: Segments,
    copy_root: PathBuf,
    copy_dir: PathBuf,
    copy_region: PathBuf,
    copy: Manifest,
    theirs: Segments,
    done: RepairedDataset,
}

impl<'a> Mending<'a> {
    fn begin(env: &'a Env, root: &'a Path, copy: &Path, id: DatasetId) -> Result<Mending<'a>> {
        let disk = env.disk.as_ref();
        let (dir, copy_dir) = (files::dataset(root, &id), files::dataset(copy, &id));
        let path = files::manifest(&copy_dir);
        let Some(theirs) = Manifest::load(disk, &path)? else {
            let found = "no such file";
            return Err(LogError::corrupt(&path, 0, "manifest", "a manifest", found).into());
        };
        let mut done = RepairedDataset {
            id,
            segments: Vec::new(),
            tables: Vec::new(),
            is_replaced: false,
            notes: Vec::new(),
        };
        let mut is_slot_damaged = false;
        let manifest = match Slots::load(disk, &files::manifest(&dir)) {
            Ok(slots) => slots.map(|slots| {
                is_slot_damaged = slots.other.is_some();
                done.notes
                    .extend(slots.other.map(|error| error.to_string()));
                slots.manifest
            }),
            Err(error @ LogError::Corrupt { .. }) => {
                done.notes.push(error.to_string());
                None
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(ours) = &manifest {
            let mismatch = |what, stored: String, given: String| Error::Mismatch {
                path: dir.clone(),
                what,
                stored,
                given,
            };
            if ours.lineage != theirs.lineage {
                let (stored, given) = (hex(&ours.lineage), hex(&theirs.lineage));
                return Err(mismatch("history", stored, given));
            }
            if (ours.region, &ours.router) != (theirs.region, &theirs.router) {
                let text = |m: &Manifest| format!("region {} router {}", m.region, m.router);
                return Err(mismatch("layout", text(ours), text(&theirs)));
            }
        }
        let region = files::region(&dir, theirs.region);
        let copy_region = files::region(&copy_dir, theirs.region);
        Ok(Mending {
            ours: segments_in(disk, &region)?,
            theirs: segments_in(disk, &copy_region)?,
            env,
            root,
            dir,
            region,
            manifest,
            is_slot_damaged,
            copy_root: copy.to_owned(),
            copy_dir,
            copy_region,
            copy: theirs,
            done,
        })
    }

    fn disk(&self) -> &dyn Disk {
        self.env.disk.as_ref()
    }

    /// A record of epochs that is gone is begun above everything that was seen, by a node that counts
    /// as another one.
    fn epochs(&mut self, is_stranger: &mut bool) -> Result<()> {
        let path = files::epoch(&self.dir);
        match EpochFile::read(self.disk(), &path) {
            Ok(_) => return Ok(()),
            Err(LogError::Corrupt { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let theirs = EpochFile::read(self.disk(), &files::epoch(&self.copy_dir))?;
        let in_logs = self.copy.epochs.iter().flatten().map(|entry| entry.epoch);
        let known = [theirs.epochs().opened, theirs.epochs().promised];
        let seen = in_logs.chain(known).max().unwrap_or_default();
        self.disk().remove(&path).during("remove", &path)?;
        EpochFile::renew(self.disk(), &path, Epoch(seen.0))?;
        *is_stranger = true;
        let note = "the record of epochs was damaged: this node follows, and counts as a new one";
        self.done.notes.push(note.to_owned());
        Ok(())
    }

    /// Mends everything and says what was done.
    fn finish(mut self) -> Result<RepairedDataset> {
        self.run()?;
        if !self.done.is_replaced && self.lacks_something()? {
            // What this log lacks is in the copy's tables alone.
            self.try_replace()?;
        }
        Ok(self.done)
    }

    fn run(&mut self) -> Result<()> {
        if self.manifest.is_none() {
            return self.try_replace();
        }
        for (place, path) in self.ours.clone() {
            self.mend_segment(place, &path)?;
        }
        for place in self.missing_segments()? {
            let path = path_of(&self.region, place.0, place.1);
            self.mend_segment(place, &path)?;
        }
        self.damaged_tables()?;
        let is_unsure = Marks::inspect(self.disk(), &self.region)?.1;
        if is_unsure || !self.done.tables.is_empty() {
            self.adopt_ends()?;
        }
        if !self.done.tables.is_empty() {
            if self.follows()? {
                // It shows less than its log has: older versions, which the copy need not have.
                return self.try_replace();
            }
            match self.mend_tables() {
                Err(error) if error.is_corruption() => {
                    self.done.notes.push(format!("not by key range: {error}"));
                    return self.try_replace();
                }
                done => return done,
            }
        }
        if let Some(manifest) = self.manifest.as_ref().filter(|_| self.is_slot_damaged) {
            manifest.store(self.disk(), &files::manifest(&self.dir))?;
        }
        Ok(())
    }

    fn follows(&self) -> Result<bool> {
        let epochs = EpochFile::read(self.disk(), &files::epoch(&self.dir))?;
        Ok(epochs.epochs().follows)
    }

    /// Whether a check still finds damage, or recovery would cut a log: what it takes for a torn tail
    /// may be what the copy has.
    fn lacks_something(&self) -> Result<bool> {
        let report = verify(self.root, self.env)?;
        if report
            .problems
            .iter()
            .any(|p| p.path.starts_with(&self.dir))
        {
            return Ok(true);
        }
        let plans = recovery_plans(self.root, &self.done.id, self.env)?;
        Ok(plans.iter().flatten().any(|plan| plan.cut.is_some()))
    }

    /// Replaces the dataset's files unless the copy is damaged too where it is needed: everything
    /// stays then as it is.
    fn try_replace(&mut self) -> Result<()> {
        let (segments, notes) = (self.done.segments.len(), self.done.notes.len());
        let Err(error) = self.replace() else {
            return Ok(());
        };
        if !error.is_corruption() {
            return Err(error);
        }
        self.done.segments.truncate(segments);
        self.done.notes.truncate(notes);
        self.done
            .notes
            .push(format!("the copy cannot take this place: {error}"));
        let staging = staging_dir(self.root, &self.done.id);
        Ok(self
            .disk()
            .remove_dir_all(&staging)
            .during("remove", &staging)?)
    }

    fn damaged_tables(&mut self) -> Result<()> {
        let options = table_options();
        let Some(manifest) = &self.manifest else {
            return Ok(());
        };
        for meta in manifest.tables() {
            let path = files::table(&self.dir, meta.identity.number);
            let is_damaged = match Table::open(self.disk(), &path, Some(meta), &options) {
                Ok(table) => !table.verify().is_empty(),
                Err(error @ LogError::Unsupported { .. }) => return Err(error.into()),
                Err(_) => true,
            };
            if is_damaged {
                self.done.tables.push(path);
            }
        }
        Ok(())
    }

    /// Segments that this node should have and has not: those that its tables point into, and those
    /// before one that it has or before its durable mark.
    fn missing_segments(&self) -> Result<BTreeSet<(ShardId, u64)>> {
        let manifest = self.manifest.as_ref().expect("it was read");
        let pointed = manifest.tables().flat_map(|table| &table.files);
        let mut missing: BTreeSet<(ShardId, u64)> =
            pointed.map(|file| (file.shard, file.file)).collect();
        let marks = Marks::read(self.disk(), &self.region)?;
        for (shard, first_seq) in self.theirs.keys() {
            let own = self.ours.keys().filter(|(of, _)| of == shard);
            let last = own.map(|(_, first_seq)| *first_seq).max().unwrap_or(0);
            let marked = marks.iter().find(|(of, _)| of == shard);
            let known = marked.map_or(0, |(_, seq)| *seq).max(last);
            let flushed = &manifest.logs[usize::from(shard.0)];
            // Whatever ends below is in tables; where it ends tells the next one.
            let next = self.theirs.range((*shard, first_seq + 1)..).next();
            let end = next.filter(|((of, _), _)| of == shard);
            let end = end.map_or(u64::MAX, |((_, next), _)| next - 1);
            if *first_seq <= known && end > flushed.position.seq {
                missing.insert((*shard, *first_seq));
            }
        }
        missing.retain(|place| !self.ours.contains_key(place) && self.theirs.contains_key(place));
        Ok(missing)
    }

    /// Where nobody knows any more how far this node's logs were durable, and where they must reach as
    /// far as the copy's, they go on as those do.
    fn adopt_ends(&mut self) -> Result<()> {
        loop {
            let plans = recovery_plans(self.root, &self.done.id, self.env)?;
            let mut next = None;
            for plan in plans.iter().flatten().filter(|plan| plan.cut.is_none()) {
                let place = (plan.log.shard, plan.position().seq + 1);
                let Some(path) = self.theirs.get(&place) else {
                    continue;
                };
                let path = path.clone();
                let repaired = self.merged(place, &path)?;
                let is_next = repaired.header.prev_crc == plan.chain() || planted("repair.chain");
                if is_next && repaired.last_seq >= place.1 {
                    next = Some((place, repaired));
                }
            }
            let Some((place, repaired)) = next else {
                return Ok(());
            };
            let path = path_of(&self.region, place.0, place.1);
            replace_file(self.disk(), &path, &repaired.bytes).during("replace", &path)?;
            self.done.segments.push(RepairedSegment {
                path,
                ranges: repaired.taken,
            });
        }
    }

    fn merged(&self, place: (ShardId, u64), path: &Path) -> Result<Repaired> {
        let read = |segments: &Segments| match segments.get(&place) {
            Some(path) => read_file(self.disk(), path, u64::MAX).during("read", path),
            None => Ok(Vec::new()),
        };
        Ok(merge(&read(&self.ours)?, &read(&self.theirs)?, path)?)
    }

    fn mend_segment(&mut self, place: (ShardId, u64), path: &Path) -> Result<()> {
        let repaired = match self.merged(place, path) {
            Ok(repaired) => repaired,
            // Nobody has it intact, or it is a spare: the check that follows tells.
            Err(Error::Log(LogError::Corrupt { .. })) => return Ok(()),
            Err(error) => return Err(error),
        };
        if repaired.taken.is_empty() {
            return Ok(());
        }
        replace_file(self.disk(), path, &repaired.bytes).during("replace", path)?;
        self.done.segments.push(RepairedSegment {
            path: path.to_owned(),
            ranges: repaired.taken,
        });
        Ok(())
    }

    /// Puts the copy's tables and manifest, and both logs joined, in the dataset's place.
    fn replace(&mut self) -> Result<()> {
        let staging = staging_dir(self.root, &self.done.id);
        let region = files::region(&staging, self.copy.region);
        let disk = self.disk();
        disk.remove_dir_all(&staging).during("remove", &staging)?;
        disk.create_dir_all(&region)
            .during("create directory", &region)?;
        for table in self.copy.tables() {
            let number = table.identity.number;
            let from = files::table(&self.copy_dir, number);
            let bytes = read_file(disk, &from, u64::MAX).during("read", &from)?;
            let to = files::table(&staging, number);
            write(disk, &to, &bytes)?;
            let opened = Table::open(disk, &to, Some(table), &table_options())?;
            if let Some(damage) = opened.verify().into_iter().next() {
                return Err(damage.into_error(&from).into());
            }
        }
        self.join_logs(&region)?;
        let mut manifest = self.copy.clone();
        if let Some(ours) = &self.manifest {
            manifest.generation = manifest.generation.max(ours.generation);
            manifest.next_file = manifest.next_file.max(ours.next_file);
            for (theirs, ours) in manifest.epochs.iter_mut().zip(&ours.epochs) {
                if ours.starts_with(theirs) {
                    theirs.clone_from(ours);
                }
            }
        }
        manifest.generation += 1;
        let disk = self.disk();
        manifest.store(disk, &files::manifest(&staging))?;
        // Two logs of different histories do not join, whatever each is worth alone.
        for plan in plans_of(self.env, &self.done.id, &staging, &manifest)? {
            plan?;
        }
        let from = files::epoch(&self.dir);
        let bytes = read_file(disk, &from, 1 << 20).during("read", &from)?;
        write(disk, &files::epoch(&staging), &bytes)?;
        for dir in [&region, &staging] {
            unless!("repair.names", disk.sync_dir(dir)).during("sync directory", dir)?;
        }
        let install = install_dir(self.root, &self.done.id);
        disk.rename(&staging, &install).during("rename", &staging)?;
        unless!("repair.install", disk.sync_dir(self.root)).during("sync directory", self.root)?;
        finish_install(self.env, self.root, &self.done.id)?;
        self.done.is_replaced = true;
        Ok(())
    }

    /// Writes every segment of the copy, mended and prolonged by this node's, and this node's own
    /// behind them.
    fn join_logs(&mut self, region: &Path) -> Result<()> {
        let mut marks = BTreeMap::new();
        for (shard, seq) in Marks::read(self.disk(), &self.region)? {
            marks.insert(shard, seq);
        }
        let mut places: BTreeSet<(ShardId, u64)> = self.theirs.keys().copied().collect();
        for place in self.ours.keys() {
            let theirs = self.theirs.keys().filter(|(shard, _)| *shard == place.0);
            if theirs.max().is_none_or(|last| place.1 > last.1) {
                places.insert(*place);
            }
        }
        let mut next: BTreeMap<ShardId, u64> = BTreeMap::new();
        for place in places {
            let (shard, first_seq) = place;
            let path = path_of(region, shard, first_seq);
            let repaired = match self.merged(place, &path) {
                Ok(repaired) => repaired,
                Err(Error::Log(LogError::Corrupt { .. })) if !self.theirs.contains_key(&place) => {
                    // A spare of ours, or a segment whose header nobody has.
                    continue;
                }
                Err(error) => return Err(error),
            };
            // What the copy has in tables may be missing here.
            let in_tables = self.copy.logs[usize::from(shard.0)].position.seq;
            let reached = next.get(&shard).map_or(0, |next| *next).max(in_tables + 1);
            if first_seq > reached {
                let name = file_name(shard, first_seq);
                let expected = format!("record {reached}");
                let path = self.copy_region.join(name);
                let found = format!("{first_seq}, where the log goes on");
                return Err(LogError::corrupt(&path, 0, "copy", expected, found).into());
            }
            next.insert(shard, repaired.last_seq + 1);
            write(self.disk(), &path, &repaired.bytes)?;
            if !repaired.taken.is_empty() && self.ours.contains_key(&place) {
                self.done.segments.push(RepairedSegment {
                    path: path_of(&self.region, shard, first_seq),
                    ranges: repaired.taken,
                });
            }
        }
        let (mut file, _, _) = Marks::open(self.disk(), region)?;
        let marks: Vec<(ShardId, u64)> = marks.into_iter().collect();
        Ok(file.write(&marks, true)?)
    }
}

fn table_options() -> OpenOptions {
    OpenOptions::new(Arc::new(BlockCache::new(1 << 20)))
}

fn segments_in(disk: &dyn Disk, region: &Path) -> Result<Segments> {
    let entries = match disk.list(region) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Segments::new()),
        Err(e) => return Err(e).during("list", region).map_err(Error::from),
    };
    let place = |name: &str| Some((parse_file_name(name)?, region.join(name)));
    Ok(entries
        .iter()
        .filter_map(|entry| place(&entry.name))
        .collect())
}

fn write(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let file = disk.create(path).during("create", path)?;
    write_all_at(file.as_ref(), bytes, 0).during("write", path)?;
    Ok(unless!("repair.sync", file.sync()).during("sync", path)?)
}

fn hex(bytes: &[u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
