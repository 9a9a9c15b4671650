//! Opens a dataset: reads the manifest, recovers each log, cuts all of them to one consistent end,
//! and replays what is not in tables.
//!
//! A torn tail is a matter of one log ([`strandline_wal::recover`]). Between logs one more question
//! stands: unsynced batches of different shards survive independently, and a batch may only stay if
//! everything before it in the dataset's order stays. Every batch carries the low bits of the
//! dataset's commit count, its ordinal; merged by timestamp, the ordinals must run without a gap from
//! the manifest's complete mark on. At the first gap all logs are cut.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use strandline_wal::batch::Batch;
use strandline_wal::bug::planted;
use strandline_wal::group::Group;
use strandline_wal::io::Env;
use strandline_wal::log::{Log, Segment};
use strandline_wal::marks::Marks;
use strandline_wal::open::{open, open_read_only};
use strandline_wal::reader::{Reader, Step, StoredBatch};
use strandline_wal::recover::{Cut, Known, Plan, plan};
use strandline_wal::unless;
use strandline_wal::writer::{Face, Writer, WriterOptions};
use strandline_wal::{DatasetId, Epoch, Error as LogError, IoContext, LogId, ShardId};

use super::apply::{PayloadPlace, apply};
use super::catalog::Catalog;
use super::epoch::EpochFile;
use super::follow::Pending;
use super::view::{MemLevel, Newest, Outdated, Run, View};
use super::watermarks::{Mark, Watermarks};
use super::{Commit, Counters, MarksFile, Pressure, Role, Shared, Store};
use crate::error::{Error, Result};
use crate::files;
use crate::manifest::{EpochEntry, Manifest, Slots};
use crate::options::Durability;
use crate::retention::Retention;
use crate::table::{OpenOptions, PointerSource, Table};

/// What opening a dataset found and did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Tails that were cut, at most one for each shard.
    pub cuts: Vec<Cut>,
    /// Batches that were replayed from the logs.
    pub batch_count: u64,
    /// What was damaged and could be done without.
    pub warnings: Vec<String>,
}

/// The lineage of a follower that has not met its leader yet.
pub(crate) const NO_LINEAGE: [u8; 16] = [0; 16];

/// How often an open for reading begins anew where the manifest has changed meanwhile.
const READ_TRIES_MAX: u32 = 100;

/// How to open a dataset.
#[derive(Clone)]
pub(crate) struct Opening<'a> {
    pub shared: Shared,
    pub id: DatasetId,
    pub dir: &'a Path,
    pub role: Role,
    /// Per shard, where the history forks and everything behind is to be cut.
    pub forks: Option<Vec<u64>>,
    /// The epoch that this node was elected for.
    pub elected: Option<Epoch>,
}

impl Opening<'_> {
    /// Opens the dataset, creating it where it is absent and the role may.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where it was created with other settings; the log's where files are
    /// damaged or missing. A refused open has changed nothing but leftovers.
    pub fn run(self) -> Result<Store> {
        let mut tries = 0;
        loop {
            let before = self.stored_generation();
            let opened = self.clone().run_once();
            // A merge of the process that writes may have removed what the manifest named then.
            tries += 1;
            let is_outdated = self.role == Role::Reader
                && opened.is_err()
                && tries < READ_TRIES_MAX
                && self.stored_generation() != before;
            if !is_outdated {
                return opened;
            }
        }
    }

    /// The generation of the manifest, for whoever reads beside a writer; `None` where none can be read.
    fn stored_generation(&self) -> Option<u64> {
        if self.role != Role::Reader {
            return None;
        }
        let disk = self.shared.env.disk.as_ref();
        let slots = Slots::load(disk, &files::manifest(self.dir)).ok()??;
        Some(slots.manifest.generation)
    }

    fn run_once(self) -> Result<Store> {
        let mut report = RecoveryReport::default();
        let manifest = self.manifest(&mut report)?;
        self.check_layout(&manifest)?;
        let epoch_path = files::epoch(self.dir);
        let disk = self.shared.env.disk.as_ref();
        let epoch_file = match self.role {
            Role::Reader => EpochFile::read(disk, &epoch_path)?,
            _ => EpochFile::open(disk, &epoch_path)?,
        };
        let (plans, end) = self.plans(&manifest, &epoch_file, &mut report)?;
        report.cuts = plans.iter().filter_map(|plan| plan.cut.clone()).collect();
        let runs = self.tables(&manifest, &mut report)?;
        let (writers, logs) = self.logs(&manifest, &plans)?;
        let values = pointed_segments(&manifest, &logs)?;
        let catalog = Catalog::new(manifest.next_keyspace, &manifest.keyspaces);
        let level = Arc::new(MemLevel::new(self.shared.memtable_shape()));
        let mut pending = Pending::new(end.clone());
        for (log, flushed) in logs.iter().zip(&manifest.logs) {
            let flushed_seq = flushed.position.seq;
            report.batch_count += replay(log, flushed_seq, &level, &catalog, &mut pending)?;
        }
        let marks = self.marks_file(&mut report)?;
        let epochs: Vec<Vec<EpochEntry>> = logs
            .iter()
            .zip(&manifest.epochs)
            .map(|(log, known)| epochs_of(log, known))
            .collect::<Result<_>>()?;
        let timestamp = plans.iter().map(Plan::timestamp).max().unwrap_or_default();
        let timestamp = timestamp
            .max(manifest.complete_timestamp)
            .max(end.timestamp);
        let view = View {
            active: Arc::clone(&level),
            sealed: Vec::new(),
            runs,
            values,
            watermarks: Arc::new(Watermarks::new(end.clone())),
            outdated: Outdated::default(),
        };
        let lineage = manifest.lineage;
        let floors = logs.iter().map(|_| AtomicU64::new(u64::MAX)).collect();
        let mut store = Store {
            id: self.id.clone(),
            dir: self.dir.to_owned(),
            role: self.role,
            epoch: Epoch(0),
            lineage,
            commit: Mutex::new(Commit {
                writers,
                timestamp,
                ordinal: end.ordinal,
                level,
            }),
            publisher: Default::default(),
            written: Group::new(end.timestamp.0),
            synced: Group::new(end.timestamp.0),
            logs,
            marks: Mutex::new(MarksFile {
                file: marks,
                written_ns: 0,
            }),
            watermarks: Arc::clone(&view.watermarks),
            view: Newest::new(view),
            catalog,
            manifest: Mutex::new(manifest),
            orphans: Mutex::default(),
            flushing: Mutex::default(),
            compacting: Mutex::default(),
            pressure: Pressure::default(),
            stopped: Default::default(),
            told_log: Default::default(),
            closing: false.into(),
            closed: Default::default(),
            epoch_file: Mutex::new(epoch_file),
            floors,
            retention: Default::default(),
            is_shipped: Default::default(),
            counters: Counters::begin(self.shared.env.clock.mono_ns()),
            damage: Mutex::default(),
            report,
            asked: Mutex::default(),
            syncing: Mutex::default(),
            pending: Mutex::new(pending),
            epochs: Mutex::new(epochs),
            shared: self.shared.clone(),
        };
        let mut warnings = Vec::new();
        let retention = Retention::open(&store, &mut warnings)?;
        store.report.warnings.append(&mut warnings);
        assert!(store.retention.set(retention).is_ok(), "it is set once");
        self.lead(store)
    }

    /// The stored manifest, or that of a new dataset, stored.
    fn manifest(&self, report: &mut RecoveryReport) -> Result<Manifest> {
        let disk = self.shared.env.disk.as_ref();
        let path = files::manifest(self.dir);
        if let Some(slots) = Slots::load(disk, &path)? {
            let (mut manifest, other) = (slots.manifest, slots.other);
            let is_writer = self.role != Role::Reader;
            if let Some(error) = other.as_ref().filter(|_| !slots.is_behind) {
                report
                    .warnings
                    .push(format!("{error}; its other slot was read"));
            }
            if is_writer {
                // A crash may have left the manifest without the directory of the logs, or the names
                // of what is read here unsynced; what is removed on its word must not outlive it.
                let region = files::region(self.dir, manifest.region);
                disk.create_dir_all(&region)
                    .during("create directory", &region)?;
                unless!("recover.names", self.sync_names())?;
            }
            let begins = self.role == Role::Leader && manifest.lineage == NO_LINEAGE;
            if begins {
                // It was to follow and never did: its history begins here.
                manifest.lineage = self.shared.env.random.next_id();
                manifest.generation += 1;
            }
            if begins || is_writer && other.is_some() {
                manifest.store(disk, &path)?;
            }
            return Ok(manifest);
        }
        let options = &self.shared.options;
        let region = files::region(self.dir, options.node.region);
        // Segments without a manifest are a dataset that lost it, not a new one.
        if let Ok(entries) = disk.list(&region)
            && let Some(entry) = entries.iter().find(|e| e.name.starts_with("wal-"))
        {
            let found = format!("{} and no manifest", entry.name);
            return Err(LogError::corrupt(&path, 0, "manifest", "a manifest", found).into());
        }
        if self.role == Role::Reader || !self.shared.options.create {
            let hint = "; it is created by opening for writing";
            return Err(Error::NotFound {
                what: "dataset",
                name: self.id.to_string(),
                hint,
            });
        }
        disk.create_dir_all(&region)
            .during("create directory", &region)?;
        let manifest = Manifest::new(
            self.id.clone(),
            options.node.region,
            match self.role {
                // A copy of a history that it will learn from its leader.
                Role::Follower => NO_LINEAGE,
                _ => self.shared.env.random.next_id(),
            },
            options.router.clone(),
            options.entity_rule,
        );
        manifest.store(disk, &path)?;
        unless!("create.names", self.sync_names())?;
        Ok(manifest)
    }

    /// Makes the names of the dataset and of its files durable.
    fn sync_names(&self) -> Result<()> {
        let disk = self.shared.env.disk.as_ref();
        for dir in [self.dir, self.dir.parent().unwrap_or(self.dir)] {
            unless!("dataset.names", disk.sync_dir(dir)).during("sync directory", dir)?;
        }
        Ok(())
    }

    fn check_layout(&self, manifest: &Manifest) -> Result<()> {
        let options = &self.shared.options;
        let mismatch = |what, stored: String, given: String| {
            Err(Error::Mismatch {
                path: self.dir.to_owned(),
                what,
                stored,
                given,
            })
        };
        if manifest.dataset != self.id {
            return mismatch(
                "dataset name",
                manifest.dataset.to_string(),
                self.id.to_string(),
            );
        }
        if self.role == Role::Reader {
            return Ok(());
        }
        if manifest.region != options.node.region {
            let given = options.node.region.to_string();
            return mismatch("region", manifest.region.to_string(), given);
        }
        if manifest.router.shard_count() != options.router.shard_count() {
            let stored = manifest.router.shard_count().to_string();
            return mismatch(
                "shard count",
                stored,
                options.router.shard_count().to_string(),
            );
        }
        if manifest.router != options.router {
            return mismatch(
                "router",
                manifest.router.to_string(),
                options.router.to_string(),
            );
        }
        if manifest.entity_rule != options.entity_rule {
            let stored = manifest.entity_rule.to_string();
            return mismatch("entity rule", stored, options.entity_rule.to_string());
        }
        Ok(())
    }

    /// One plan for each shard, cut to one consistent end, and that end.
    fn plans(
        &self,
        manifest: &Manifest,
        epochs: &EpochFile,
        report: &mut RecoveryReport,
    ) -> Result<(Vec<Plan>, Mark)> {
        let region = files::region(self.dir, manifest.region);
        let marks = Marks::read(self.shared.env.disk.as_ref(), &region)?;
        let led = epochs.epochs().led.clone();
        let plan_of = |shard: usize, fork_seq: Option<u64>| {
            let id = ShardId(shard as u16);
            let flushed = &manifest.logs[shard];
            let marked = marks
                .iter()
                .find(|(shard, _)| *shard == id)
                .map_or(0, |(_, seq)| *seq);
            let durable_seq = marked.max(flushed.complete_seq).max(flushed.position.seq);
            let known = Known {
                log: LogId {
                    dataset: self.id.clone(),
                    region: manifest.region,
                    shard: id,
                },
                lineage: Some(manifest.lineage),
                durable_seq: fork_seq.map_or(durable_seq, |fork| durable_seq.min(fork)),
                flushed_seq: flushed.position.seq,
                led: &|epoch| led.contains(&epoch),
                fork_seq,
            };
            plan(self.shared.env.disk.as_ref(), &region, &known)
        };
        let fork = |shard: usize| self.forks.as_ref().map(|forks| forks[shard]);
        let shard_count = manifest.logs.len();
        let mut plans: Vec<Plan> = (0..shard_count)
            .map(|n| plan_of(n, fork(n)))
            .collect::<Result<_, _>>()?;
        if self.role == Role::Follower {
            // Shards are shipped side by side: one may be ahead, and what was acknowledged stays.
            return Ok((plans, complete_mark(manifest)));
        }
        let env = &self.shared.env;
        let end = consistent_end(env, manifest, &plans)?;
        for (shard, end_seq) in end.seqs.iter().enumerate() {
            let reach = plans[shard].position().seq;
            if *end_seq < reach {
                report.warnings.push(format!(
                    "shard {shard}: records {} to {reach} are cut, a batch before them is lost",
                    end_seq + 1
                ));
                plans[shard] = plan_of(shard, Some(*end_seq))?;
            }
        }
        Ok((plans, end))
    }

    fn tables(&self, manifest: &Manifest, report: &mut RecoveryReport) -> Result<Vec<Arc<Run>>> {
        let options = OpenOptions::new(Arc::clone(&self.shared.cache));
        let disk = self.shared.env.disk.as_ref();
        let mut runs = Vec::new();
        for metas in &manifest.runs {
            let mut tables = Vec::new();
            for meta in metas {
                let path = files::table(self.dir, meta.identity.number);
                let table = Table::open(disk, &path, Some(meta), &options)?;
                let warnings = table.warnings().iter();
                report
                    .warnings
                    .extend(warnings.map(|w| format!("{}: {w:?}", path.display())));
                tables.push(table);
            }
            runs.push(Arc::new(Run::new(tables)));
        }
        if self.role != Role::Reader {
            self.remove_leftovers(manifest)?;
        }
        Ok(runs)
    }

    /// Removes tables and spares that no manifest names: a crash left them.
    fn remove_leftovers(&self, manifest: &Manifest) -> Result<()> {
        let disk = self.shared.env.disk.as_ref();
        let live: Vec<u64> = manifest
            .tables()
            .map(|table| table.identity.number)
            .collect();
        for entry in disk.list(self.dir).during("list", self.dir)? {
            if files::parse_table(&entry.name).is_some_and(|number| !live.contains(&number)) {
                let path = self.dir.join(&entry.name);
                disk.remove(&path).during("remove", &path)?;
            }
        }
        let staging = files::staging(self.dir);
        disk.remove_dir_all(&staging).during("remove", &staging)?;
        let region = files::region(self.dir, manifest.region);
        self.shared.pool.forget(&region);
        for entry in disk.list(&region).during("list", &region)? {
            if strandline_wal::pool::is_spare_name(&entry.name) {
                let path = region.join(&entry.name);
                disk.remove(&path).during("remove", &path)?;
            }
        }
        Ok(())
    }

    /// Takes back the marks of records that are about to be cut. Once they are cut it is too late: a
    /// crash in between would leave a log that ends before its mark, which is damage and is refused.
    fn lower_marks(&self, manifest: &Manifest, plans: &[Plan]) -> Result<()> {
        let region = files::region(self.dir, manifest.region);
        let disk = self.shared.env.disk.as_ref();
        let mut marks = Marks::read(disk, &region)?;
        let mut is_lower = false;
        for (shard, seq) in &mut marks {
            let end = plans
                .get(usize::from(shard.0))
                .map(|plan| plan.position().seq);
            if let Some(end) = end.filter(|end| end < seq) {
                *seq = end;
                is_lower = true;
            }
        }
        if is_lower {
            Marks::open(disk, &region)?.0.write(&marks, true)?;
        }
        Ok(())
    }

    fn logs(&self, manifest: &Manifest, plans: &[Plan]) -> Result<(Vec<Writer>, Vec<Arc<Log>>)> {
        let options = &self.shared.options;
        let face = match options.durability.local() {
            Durability::Memory | Durability::Os => Face::Mapped,
            _ => Face::Written,
        };
        let writer_options = WriterOptions {
            face,
            capacity_start: options.segment_len_start,
            capacity_max: options.segment_len_max,
        };
        let role = match self.role {
            Role::Leader => strandline_wal::open::Role::Leader,
            Role::Follower => strandline_wal::open::Role::Follower,
            Role::Reader => {
                let logs = plans
                    .iter()
                    .map(|plan| open_read_only(&self.shared.env, plan));
                return Ok((Vec::new(), logs.collect::<Result<_, _>>()?));
            }
        };
        unless!("recover.marks", self.lower_marks(manifest, plans))?;
        let mut writers = Vec::new();
        for plan in plans {
            let pool = Arc::clone(&self.shared.pool);
            let env = &self.shared.env;
            writers.push(open(
                env,
                plan,
                role,
                pool,
                writer_options,
                manifest.lineage,
            )?);
        }
        let logs = writers
            .iter()
            .map(|writer| Arc::clone(writer.log()))
            .collect();
        Ok((writers, logs))
    }

    fn marks_file(&self, report: &mut RecoveryReport) -> Result<Option<Marks>> {
        if self.role == Role::Reader {
            return Ok(None);
        }
        let region = files::region(self.dir, self.shared.options.node.region);
        let (file, _, damaged) = Marks::open(self.shared.env.disk.as_ref(), &region)?;
        if damaged {
            let path = region.join(strandline_wal::marks::FILE_NAME);
            report
                .warnings
                .push(format!("{}: both slots were damaged", path.display()));
        }
        Ok(Some(file))
    }

    /// Notes that what was opened is durable, and opens an epoch where this node leads.
    fn lead(&self, mut store: Store) -> Result<Store> {
        match self.role {
            Role::Reader => return Ok(store),
            Role::Follower => {
                store.write_marks(true)?;
                store.epoch_file.lock().follow()?;
                unless!("recover.led", store.forget_cut_epochs())?;
                return Ok(store);
            }
            Role::Leader => {}
        }
        store.write_marks(true)?;
        let mut commit = store.commit.lock();
        let seen = commit
            .writers
            .iter()
            .map(|w| w.tail().epoch)
            .max()
            .unwrap_or_default();
        let epoch = store.epoch_file.lock().open_next(seen, self.elected)?;
        let start = strandline_wal::control::EpochStart {
            node: store.shared.node.node,
            incarnation: store.shared.node.incarnation,
            leader: store.shared.env.random.next_id(),
        };
        for shard in 0..commit.writers.len() {
            commit.writers[shard].start_epoch(epoch)?;
            let home = ShardId(shard as u16);
            let first_seq = commit.writers[shard].tail().next_seq;
            store.write_locked(&mut commit, home, &start.payload(home))?;
            store.note_epoch(
                home,
                EpochEntry {
                    epoch,
                    leader: start.leader,
                    first_seq,
                },
            );
        }
        drop(commit);
        store.epoch = epoch;
        store.watermarks.commit_published();
        Ok(store)
    }
}

impl Store {
    /// Before anything is shipped here.
    fn forget_cut_epochs(&self) -> Result<()> {
        let epochs = self.epochs.lock();
        let is_here = |epoch| epochs.iter().flatten().any(|entry| entry.epoch == epoch);
        Ok(self.epoch_file.lock().forget_cut(is_here)?)
    }
}

/// A log's reader and the batch it stands on.
struct Head {
    shard: usize,
    reader: Reader,
    batch: StoredBatch,
}

fn step(shard: usize, mut reader: Reader) -> Result<Option<Head>> {
    match reader.next()? {
        Step::Batch(batch) => Ok(Some(Head {
            shard,
            reader,
            batch,
        })),
        Step::AtTail => Ok(None),
        Step::Truncated { first_available } => {
            let expected = format!("record {}", reader.next_seq());
            let found = format!("the first one is {first_available}");
            Err(LogError::corrupt(Path::new("log"), 0, "log", expected, found).into())
        }
        Step::Forked { at } => {
            let expected = format!("record {}", reader.next_seq());
            Err(LogError::corrupt(
                Path::new("log"),
                0,
                "log",
                expected,
                format!("the end at {at}"),
            )
            .into())
        }
    }
}

/// The cut up to which the manifest knows the logs to be complete.
fn complete_mark(manifest: &Manifest) -> Mark {
    Mark {
        timestamp: manifest.complete_timestamp,
        ordinal: manifest.complete_ordinal,
        seqs: manifest.logs.iter().map(|log| log.complete_seq).collect(),
    }
}

/// The last mark up to which no log misses a batch of the dataset's order. A log by itself misses none,
/// the plan checked its chain: of it the last batch alone is looked at.
fn consistent_end(env: &Env, manifest: &Manifest, plans: &[Plan]) -> Result<Mark> {
    let is_alone = plans.len() == 1;
    let mut end = complete_mark(manifest);
    let mut heads = Vec::new();
    for (shard, plan) in plans.iter().enumerate() {
        let log = open_read_only(env, plan)?;
        let mut from = end.seqs[shard] + 1;
        if is_alone {
            from = from.max(plan.position().seq);
        }
        heads.extend(step(shard, Reader::new(log, from))?);
    }
    while let Some(at) = (0..heads.len()).min_by_key(|n| heads[*n].batch.header.timestamp) {
        let Head {
            shard,
            reader,
            batch,
        } = heads.swap_remove(at);
        let header = batch.header;
        let continues = header.version == 1 || header.ordinal == end.ordinal.wrapping_add(1);
        if !is_alone && !continues {
            break;
        }
        end.timestamp = header.timestamp;
        end.ordinal = header.ordinal;
        end.seqs[shard] = header.last_seq();
        heads.extend(step(shard, reader)?);
    }
    Ok(end)
}

/// Who led which part of a log: what the manifest knows, as far as the log reaches, and what its
/// segments tell beyond.
fn epochs_of(log: &Arc<Log>, known: &[EpochEntry]) -> Result<Vec<EpochEntry>> {
    let end = log.last_seq();
    let mut epochs: Vec<EpochEntry> = known
        .iter()
        .copied()
        .filter(|entry| entry.first_seq <= end)
        .collect();
    for segment in log.segments() {
        let (epoch, first_seq) = (segment.header().epoch, segment.first_seq());
        let is_new =
            epochs.last().is_none_or(|last| last.epoch < epoch) && !planted("recover.epochs");
        if is_new
            && segment.last_seq() >= first_seq
            && let Step::Batch(batch) = Reader::new(Arc::clone(log), first_seq).next()?
        {
            epochs.extend(epoch_start(&batch.batch()));
        }
    }
    Ok(epochs)
}

/// The leadership that a batch starts, if it does.
pub(super) fn epoch_start(batch: &Batch<'_>) -> Option<EpochEntry> {
    if batch.header.flags & strandline_wal::batch::flags::CONTROL == 0 {
        return None;
    }
    let record = batch.records().next()?.ok()?;
    let start = strandline_wal::control::EpochStart::of(&record)?;
    let (epoch, first_seq) = (batch.header.epoch, batch.header.first_seq);
    Some(EpochEntry {
        epoch,
        leader: start.leader,
        first_seq,
    })
}

/// Replays a log behind what is in tables.
fn replay(
    log: &Arc<Log>,
    flushed_seq: u64,
    level: &MemLevel,
    catalog: &Catalog,
    pending: &mut Pending,
) -> Result<u64> {
    let mut reader = Reader::new(Arc::clone(log), flushed_seq + 1);
    let mut count = 0;
    loop {
        match reader.next()? {
            Step::Batch(batch) => {
                apply_stored(&batch.segment, batch.at, &batch.batch(), level, catalog)?;
                pending.note(log.id().shard, &batch.header);
                count += 1;
            }
            Step::AtTail => return Ok(count),
            Step::Truncated { first_available } => {
                let expected = format!("record {}", flushed_seq + 1);
                let found = format!("the first one is {first_available}");
                return Err(LogError::corrupt(log.dir(), 0, "log", expected, found).into());
            }
            // A log that ends below what is in tables: the plan checked that it may.
            Step::Forked { .. } => return Ok(count),
        }
    }
}

/// Applies a batch of the log, which stands at `at` in its segment.
pub(super) fn apply_stored(
    segment: &Arc<Segment>,
    at: u64,
    batch: &Batch<'_>,
    level: &MemLevel,
    catalog: &Catalog,
) -> Result<()> {
    let version = batch.header.timestamp;
    level.pin(segment, batch.payload.len(), version);
    let place = PayloadPlace {
        shard: batch.header.shard,
        segment: segment.first_seq(),
        at: u32::try_from(at).expect("a segment is shorter than 4 GiB")
            + strandline_wal::batch::HEADER_LEN as u32,
    };
    let records = batch.records();
    apply(records, false, version, place, &level.index, catalog).map_err(|damage| {
        LogError::corrupt(segment.path(), at, "records", "records", damage).into()
    })
}

/// The segments that tables point into; every one must be there.
pub(super) fn pointed_segments(
    manifest: &Manifest,
    logs: &[Arc<Log>],
) -> Result<super::view::PointedSegments> {
    let mut segments = BTreeMap::new();
    for file in manifest.tables().flat_map(|table| &table.files) {
        let segment = (file.source == PointerSource::Segment)
            .then(|| logs.get(usize::from(file.shard.0)))
            .flatten()
            .and_then(|log| log.segment(file.file));
        let Some(segment) = segment else {
            let name = strandline_wal::segment::file_name(file.shard, file.file);
            let dir = logs.first().map_or(Path::new(""), |log| log.dir());
            let found = "no such file".to_owned();
            return Err(LogError::corrupt(&dir.join(name), 0, "file", "values", found).into());
        };
        segments.insert((file.shard, file.file), segment);
    }
    Ok(Arc::new(segments))
}
