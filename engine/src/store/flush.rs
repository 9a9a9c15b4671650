//! A sealed memtable becomes tables, and the log that it covers becomes droppable.
//!
//! Only committed and durable records are flushed: the logs are synced up to the cut before a table
//! that holds it is named by the manifest, so tables are never ahead of the log. Small values are
//! copied; large ones stay in their segment and the table points to them, unless they are so few
//! there that they would keep the whole segment alive.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use strandline_wal::bug::planted;
use strandline_wal::reader::{Reader, Step};
use strandline_wal::unless;
use strandline_wal::{Error, Hlc, IoContext, ShardId};

use super::merge::{CompactionIter, CompactionRules, Merge};
use super::view::{MemLevel, PINNED, Run, SealCut, SealedLevel, View};
use super::watermarks::Mark;
use super::{Counters, Role, Store};
use crate::error::Result;
use crate::files;
use crate::manifest::{EpochEntry, FlushedLog, Manifest};
use crate::table::{
    Cursor, Entry, EntryKind, Identity, LogPlace, PointerSource, Table, TableBuilder, TableMeta,
    TableOptions, ValuePointer, ValueSource,
};

/// A segment keeps its large values where they are at least half of it.
const LARGE_SHARE_MIN: f64 = 0.5;

impl Store {
    /// Flushes everything written so far.
    ///
    /// # Errors
    /// The disk's; what could not be flushed stays readable and in the log.
    pub fn flush(&self) -> Result<()> {
        {
            let mut commit = self.commit.lock();
            self.check()?;
            if commit.level.log_len() > 0 {
                self.seal_memtable(&mut commit);
            }
        }
        while self.flush_oldest()? {}
        self.drop_segments()
    }

    /// Flushes the oldest sealed memtable. Returns whether there was one that could be.
    ///
    /// # Errors
    /// As [`Store::flush`].
    pub fn flush_oldest(&self) -> Result<bool> {
        let flushing = self.flushing.lock();
        self.check()?;
        let Some(sealed) = self.view.look().sealed.last().cloned() else {
            return Ok(false);
        };
        let Some(complete) = self.make_durable(&sealed)? else {
            return Ok(false);
        };
        sealed.level.index.seal();
        // What it writes must find room on a full disk: as much as there is of the log, at most. That
        // is tried again at the next flush.
        let _ = self.shared.reserve.grow(sealed.level.log_len());
        let flushed = || self.flush_level(&sealed, &complete);
        let outcome = self.shared.with_reserve(flushed);
        *self.pressure.failed.lock() = outcome.as_ref().err().cloned();
        self.pressure.changed.notify_all();
        outcome?;
        Counters::add(&self.counters.flushes, 1);
        drop(flushing);
        // It pins segments, and only a file that nobody holds is used again.
        drop(sealed);
        self.drop_segments()?;
        self.shared.refill_reserve();
        (self.shared.wake)();
        Ok(true)
    }

    /// Makes everything in a sealed memtable durable, and returns a complete mark that covers it;
    /// `None` where a leader has not committed all of it yet.
    fn make_durable(&self, sealed: &SealedLevel) -> Result<Option<Mark>> {
        match self.role {
            Role::Leader => {
                // Batches reserved before the cut may still be filling.
                while self.watermarks.published_timestamp() < sealed.cut.timestamp {
                    self.check()?;
                    std::thread::yield_now();
                }
                unless!("flush.logs", self.sync())?;
                Ok(Some(self.watermarks.durable()))
            }
            Role::Follower => {
                let committed = self.watermarks.committed();
                if !sealed.cut.is_within(&committed) {
                    return Ok(None);
                }
                unless!("flush.shipped", self.sync_shipped())?;
                Ok(Some(committed))
            }
            Role::Reader => Ok(None),
        }
    }

    fn flush_level(&self, sealed: &SealedLevel, complete: &Mark) -> Result<()> {
        let horizon = self.watermarks.visible();
        let mut outputs = Outputs::new(self, self.options().table_len_max);
        let copied = self.copy_level(&sealed.level, horizon, &mut outputs);
        if let Err(error) = copied.and_then(|()| self.compare_logs(&sealed.cut)) {
            outputs.discard();
            return Err(error);
        }
        let metas = outputs.finish()?;
        let tables = self.open_tables(&metas)?;
        self.install(
            |manifest| {
                for (shard, (position, chain)) in sealed.cut.ends.iter().enumerate() {
                    manifest.logs[shard] = FlushedLog {
                        position: *position,
                        chain: *chain,
                        complete_seq: complete.seqs[shard],
                    };
                }
                manifest.complete_timestamp = complete.timestamp;
                manifest.complete_ordinal = complete.ordinal;
                if !metas.is_empty() {
                    manifest.runs.insert(0, metas);
                }
            },
            |view| {
                if !tables.is_empty() {
                    view.runs.insert(0, Arc::new(Run::new(tables)));
                }
                view.sealed
                    .retain(|other| !Arc::ptr_eq(&other.level, &sealed.level));
            },
        )
    }

    /// Copies every version that somebody may read into tables.
    fn copy_level(&self, level: &Arc<MemLevel>, horizon: Hlc, outputs: &mut Outputs) -> Result<()> {
        let stays = self.segments_that_keep(level);
        let rules = CompactionRules {
            snapshots: Vec::new(),
            horizon,
            is_bottom: false,
        };
        let merge = Merge::new(vec![level.index.cursor()]);
        let mut entries = CompactionIter::new(merge, rules, |_| {});
        entries.first();
        while entries.is_valid() {
            let key = entries.key();
            match entries.value() {
                ValueSource::Absent => {
                    outputs.add(key.name, key.version, EntryKind::Tombstone, &[])?;
                }
                ValueSource::Log(place) => {
                    self.copy_value(level, key.name, key.version, &place, &stays, outputs)?;
                }
                ValueSource::Bytes(_) | ValueSource::Pointer(_) => {
                    unreachable!("a memtable points into the log alone")
                }
            }
            entries.next();
            self.check()?;
        }
        entries.status()?;
        Ok(())
    }

    /// Holds the batches that a memtable was filled from against their checksums, once its values are
    /// copied: what had rotted by then is still rotten, and must not get checksums of its own.
    fn compare_logs(&self, cut: &SealCut) -> Result<()> {
        if planted("flush.compare") {
            return Ok(());
        }
        let flushed = self.manifest.lock().logs.clone();
        for ((log, (end, _)), flushed) in self.logs.iter().zip(&cut.ends).zip(flushed) {
            let mut batches = Reader::new(Arc::clone(log), flushed.position.seq + 1);
            while batches.next_seq() <= end.seq {
                if !matches!(batches.next()?, Step::Batch(_)) {
                    let expected = format!("record {}", end.seq);
                    let found = format!("an end before record {}", batches.next_seq());
                    return Err(Error::corrupt(log.dir(), 0, "log", expected, found).into());
                }
            }
        }
        Ok(())
    }

    fn copy_value(
        &self,
        level: &Arc<MemLevel>,
        name: &[u8],
        version: Hlc,
        place: &LogPlace,
        stays: &HashMap<(ShardId, u64), bool>,
        outputs: &mut Outputs,
    ) -> Result<()> {
        let is_large = place.len as usize >= self.options().large_value_len_min;
        if !is_large
            || !stays
                .get(&(place.shard, place.first_seq))
                .copied()
                .unwrap_or(false)
        {
            let bytes = level.read(place)?.expect(PINNED);
            return outputs.add(name, version, EntryKind::Value, &bytes);
        }
        let pointer = ValuePointer {
            source: PointerSource::Segment,
            shard: place.shard,
            file: place.first_seq,
            offset: place.offset,
            len: place.len,
            crc: level.crc_of(place)?.expect(PINNED),
        };
        outputs.add(name, version, EntryKind::Pointer, &pointer.encode())
    }

    /// Of each segment that the memtable points into, whether its large values stay there.
    fn segments_that_keep(&self, level: &Arc<MemLevel>) -> HashMap<(ShardId, u64), bool> {
        let mut large: HashMap<(ShardId, u64), u64> = HashMap::new();
        let mut cursor = level.index.cursor();
        cursor.first();
        while cursor.is_valid() {
            if let ValueSource::Log(place) = cursor.value()
                && place.len as usize >= self.options().large_value_len_min
            {
                *large.entry((place.shard, place.first_seq)).or_default() += u64::from(place.len);
            }
            cursor.next();
        }
        let lens = level.segment_lens();
        let keeps = |place: &(ShardId, u64), len: u64| {
            lens.get(place)
                .is_some_and(|all| len as f64 >= *all as f64 * LARGE_SHARE_MIN)
        };
        large
            .into_iter()
            .map(|(place, len)| (place, keeps(&place, len)))
            .collect()
    }

    pub(super) fn open_tables(&self, metas: &[TableMeta]) -> Result<Vec<Arc<Table>>> {
        let disk = self.shared.env.disk.as_ref();
        let options = self.table_options();
        let open = |meta: &TableMeta| {
            let path = files::table(&self.dir, meta.identity.number);
            Table::open(disk, &path, Some(meta), &options)
        };
        Ok(metas
            .iter()
            .map(open)
            .collect::<strandline_wal::Result<_>>()?)
    }

    /// Changes manifest and view together: the manifest is stored first, and where that fails
    /// neither changes. Memtables that were sealed meanwhile stay.
    pub(super) fn install(
        &self,
        change_manifest: impl FnOnce(&mut Manifest),
        change_view: impl FnOnce(&mut View),
    ) -> Result<()> {
        let disk = self.shared.env.disk.as_ref();
        unless!("flush.names", disk.sync_dir(&self.dir)).during("sync directory", &self.dir)?;
        let mut stored = self.manifest.lock();
        let mut manifest = stored.clone();
        change_manifest(&mut manifest);
        manifest.generation += 1;
        manifest.keyspaces = self.catalog.list();
        manifest.next_keyspace = self.catalog.next();
        manifest.epochs = self.durable_epochs();
        let values = self.pointed(&manifest)?;
        if let Err(error) = manifest.store(disk, &files::manifest(&self.dir)) {
            // Old or new: nobody can tell which one the disk has now. Everything that either names is
            // still there; the next one must not pass for the one that failed.
            stored.generation = manifest.generation;
            let known: Vec<u64> = stored.tables().map(|t| t.identity.number).collect();
            let new = manifest.tables().map(|table| table.identity.number);
            let mut orphans = self.orphans.lock();
            orphans.extend(new.filter(|number| !known.contains(number)));
            let error = crate::error::Error::from(error);
            if !error.is_no_space() {
                self.stop(error.clone());
            }
            return Err(error);
        }
        *stored = manifest;
        for number in std::mem::take(&mut *self.orphans.lock()) {
            // No stored manifest can name it any more. What cannot be removed goes at the next open.
            let _ = disk.remove(&files::table(&self.dir, number));
        }
        self.view.change(|next| {
            change_view(next);
            next.values = values;
        });
        Ok(())
    }

    /// Who led which part of the logs, as far as they are durable: a leadership whose start is lost
    /// must not stand beside the one that begins in its place.
    fn durable_epochs(&self) -> Vec<Vec<EpochEntry>> {
        let mut epochs = self.epochs.lock().clone();
        for (entries, log) in epochs.iter_mut().zip(&self.logs) {
            entries.retain(|e| e.first_seq <= log.synced_seq() || planted("flush.epochs"));
        }
        epochs
    }

    /// The segments that a manifest's tables point into.
    fn pointed(&self, manifest: &Manifest) -> Result<super::view::PointedSegments> {
        super::recover::pointed_segments(manifest, &self.logs)
    }

    /// Takes segments that nobody needs out of the logs, and recycles or removes their files.
    ///
    /// # Errors
    /// The disk's.
    pub fn drop_segments(&self) -> Result<()> {
        // A checkpoint that is being made holds this lock: nothing that it lists may go.
        match self.flushing.try_lock() {
            Some(_flushing) => self.drop_unneeded(),
            None => Ok(()),
        }
    }

    /// As [`Store::drop_segments`]. Requires: the lock of flushes.
    pub(super) fn drop_unneeded(&self) -> Result<()> {
        if self.closed.load(std::sync::atomic::Ordering::Acquire) {
            return Ok(());
        }
        let manifest = self.manifest.lock().clone();
        let pointed: Vec<(ShardId, u64)> = manifest
            .tables()
            .flat_map(|table| &table.files)
            .filter(|file| file.source == PointerSource::Segment)
            .map(|file| (file.shard, file.file))
            .collect();
        // Nobody says hello meanwhile and is told that what goes here is there.
        let mut holders = self.retention().lock();
        let floors = holders.floors(self);
        let mut detached = Vec::new();
        for (log, flushed) in self.logs.iter().zip(&manifest.logs) {
            let shard = log.id().shard;
            let done = flushed.position.seq.min(flushed.complete_seq);
            let floor = floors[usize::from(shard.0)];
            let droppable: Vec<u64> = log
                .segments()
                .iter()
                .filter(|segment| segment.sealed().is_some())
                .filter(|segment| segment.last_seq() <= done || planted("prune.unflushed"))
                .filter(|segment| segment.last_seq() < floor || planted("prune.unconfirmed"))
                // The segment behind it must be durable: it alone tells then where the log goes on.
                .filter(|segment| {
                    segment.last_seq() < log.synced_seq() || planted("prune.undurable")
                })
                .map(|segment| segment.first_seq())
                .filter(|first_seq| {
                    !pointed.contains(&(shard, *first_seq)) || planted("prune.pointed")
                })
                .collect();
            if !droppable.is_empty() {
                holders.pruning();
            }
            detached.extend(log.detach(&droppable));
        }
        // No log knows them any more; files are removed while followers are heard.
        drop(holders);
        for segment in detached {
            let counter = match self.shared.pool.retire(segment)? {
                true => &self.counters.segments_recycled,
                false => &self.counters.segments_removed,
            };
            Counters::add(counter, 1);
        }
        Ok(())
    }
}

/// Tables on their way out, split by length between names.
pub(super) struct Outputs<'a> {
    store: &'a Store,
    len_max: u64,
    builder: Option<(TableBuilder, PathBuf)>,
    last_name: Vec<u8>,
    metas: Vec<TableMeta>,
}

impl<'a> Outputs<'a> {
    /// A table of `len_max` bytes is full.
    pub fn new(store: &'a Store, len_max: u64) -> Outputs<'a> {
        Outputs {
            store,
            len_max,
            builder: None,
            last_name: Vec::new(),
            metas: Vec::new(),
        }
    }

    pub fn add(&mut self, name: &[u8], version: Hlc, kind: EntryKind, value: &[u8]) -> Result<()> {
        let is_full = self
            .builder
            .as_ref()
            .is_some_and(|(builder, _)| builder.len() >= self.len_max);
        if is_full && self.last_name != name {
            self.close()?;
        }
        if self.builder.is_none() {
            self.builder = Some(self.create()?);
        }
        let (builder, _) = self.builder.as_mut().expect("made above");
        builder.add(Entry {
            name,
            version,
            kind,
            value,
        })?;
        self.last_name.clear();
        self.last_name.extend_from_slice(name);
        Ok(())
    }

    fn create(&self) -> Result<(TableBuilder, PathBuf)> {
        let number = {
            let mut manifest = self.store.manifest.lock();
            let number = manifest.next_file;
            manifest.next_file += 1;
            number
        };
        let path = files::table(&self.store.dir, number);
        let identity = Identity {
            number,
            lineage: self.store.lineage,
        };
        let disk = Arc::clone(&self.store.shared.env.disk);
        let builder = TableBuilder::create(disk, &path, identity, TableOptions::default())?;
        Ok((builder, path))
    }

    fn close(&mut self) -> Result<()> {
        if let Some((builder, path)) = self.builder.take() {
            match builder.finish() {
                Ok(meta) => {
                    Counters::add(&self.store.counters.table_len_written, meta.len);
                    self.metas.push(meta);
                }
                Err(error) => {
                    self.remove(&path);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// All tables, synced; their names are not yet.
    pub fn finish(mut self) -> Result<Vec<TableMeta>> {
        match self.close() {
            Ok(()) => Ok(std::mem::take(&mut self.metas)),
            Err(error) => {
                self.discard();
                Err(error)
            }
        }
    }

    /// Removes what was written. What cannot be removed is a leftover that the next open removes.
    pub fn discard(mut self) {
        if let Some((builder, path)) = self.builder.take() {
            drop(builder);
            self.remove(&path);
        }
        for meta in std::mem::take(&mut self.metas) {
            self.remove(&files::table(&self.store.dir, meta.identity.number));
        }
    }

    fn remove(&self, path: &std::path::Path) {
        let _ = self.store.shared.env.disk.remove(path);
    }
}
