//! What a reader holds: memtables, runs of tables and the segments that they point into, at one
//! moment. Whoever holds a view can read all of it, whatever is dropped meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use parking_lot::Mutex;
use strandline_wal::bug::planted;
use strandline_wal::log::{Segment, SegmentBytes};
use strandline_wal::{Error, Hlc, Position, Result, ShardId};

use super::Counters;
use super::memtable::{Holder, Memtable, Shape};
use super::watermarks::{Mark, Watermarks};
use crate::table::{
    Found, FoundValue, Hit, LogPlace, PointerSource, Table, TableBytes, ValuePointer, ValueSource,
    head_of,
};

/// The bytes of a value, without a copy: valid as long as this lives, whatever becomes of the key.
///
/// It pins the segment or table that it stands in; `to_vec` makes a copy that pins nothing.
#[derive(Clone)]
pub struct Value(Bytes);

#[derive(Clone)]
enum Bytes {
    Segment(SegmentBytes),
    Table(TableBytes),
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Segment(bytes) => bytes,
            Bytes::Table(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Value({} bytes)", self.len())
    }
}

impl<T: AsRef<[u8]> + ?Sized> PartialEq<T> for Value {
    fn eq(&self, other: &T) -> bool {
        **self == *other.as_ref()
    }
}

/// A segment, by its shard and first sequence.
type Pinned = ((ShardId, u64), Arc<Segment>);

/// A memtable and the segments that its values stand in.
pub(crate) struct MemLevel {
    pub index: Arc<Memtable>,
    /// By shard and first sequence, ascending. A look at them takes no lock.
    segments: ArcSwap<Vec<Pinned>>,
    /// Address of the segment that was pinned last: most batches go where the one before went.
    last: AtomicUsize,
    /// Bytes of log that it covers.
    log_len: AtomicU64,
    /// The oldest version in it, [`Hlc::MAX`] before the first.
    version_min: AtomicU64,
}

impl MemLevel {
    /// An empty one.
    pub fn new(shape: Shape) -> MemLevel {
        MemLevel {
            index: Arc::new(Memtable::new(shape)),
            segments: ArcSwap::default(),
            last: AtomicUsize::new(0),
            log_len: AtomicU64::new(0),
            version_min: AtomicU64::new(Hlc::MAX.0),
        }
    }

    /// Keeps a segment readable as long as this memtable lives, for a batch of it. Whoever fills a memtable
    /// takes turns: recovery, or who holds the commit lock.
    pub fn pin(&self, segment: &Arc<Segment>, log_len: usize, version: Hlc) {
        Counters::add_alone(&self.log_len, log_len as u64);
        if version.0 < self.version_min.load(Ordering::Relaxed) {
            self.version_min.store(version.0, Ordering::Relaxed);
        }
        // The last one is in the list and lives, so no other segment has its address.
        let address = Arc::as_ptr(segment).addr();
        if self.last.load(Ordering::Acquire) != address {
            let place = (segment.header().log.shard, segment.first_seq());
            let known = self.segments.load();
            let at = known.binary_search_by_key(&place, |(place, _)| *place);
            if !at.is_ok_and(|at| Arc::ptr_eq(&known[at].1, segment)) {
                let mut segments = Vec::clone(&known);
                let pinned = (place, Arc::clone(segment));
                match at {
                    Ok(at) => segments[at] = pinned,
                    Err(at) => segments.insert(at, pinned),
                }
                self.segments.store(Arc::new(segments));
            }
            self.last.store(address, Ordering::Release);
        }
    }

    pub fn log_len(&self) -> u64 {
        self.log_len.load(Ordering::Relaxed)
    }

    /// The oldest version of its batches, [`Hlc::MAX`] where there is none.
    pub fn version_min(&self) -> Hlc {
        Hlc(self.version_min.load(Ordering::Relaxed))
    }

    /// Looks at the segment of a place that this memtable points to.
    fn with_segment<R>(&self, place: &LogPlace, look: impl FnOnce(&Segment) -> R) -> Option<R> {
        let segments = self.segments.load();
        let wanted = (place.shard, place.first_seq);
        let at = segments.binary_search_by_key(&wanted, |(place, _)| *place);
        at.ok().map(|at| look(&segments[at].1))
    }

    /// The bytes at a place that this memtable points to.
    pub fn read(&self, place: &LogPlace) -> Result<Option<SegmentBytes>> {
        let (at, len) = (place.offset.into(), place.len as usize);
        self.with_segment(place, |segment| segment.read(at, len))
            .transpose()
    }

    /// The CRC-32 of the bytes at a place that this memtable points to.
    pub fn crc_of(&self, place: &LogPlace) -> Result<Option<u32>> {
        let (at, len) = (place.offset.into(), place.len as usize);
        let hashed = |segment: &Segment| segment.read_hashed(at, len).map(|(_, crc)| crc);
        self.with_segment(place, hashed).transpose()
    }

    /// Bytes of each pinned segment that hold data so far.
    pub fn segment_lens(&self) -> HashMap<(ShardId, u64), u64> {
        let segments = self.segments.load();
        segments
            .iter()
            .map(|(place, s)| (*place, s.data_len()))
            .collect()
    }
}

impl Holder for Arc<MemLevel> {
    fn memtable(&self) -> &Memtable {
        &self.index
    }

    fn whole(&self, place: &LogPlace) -> Option<SegmentBytes> {
        self.with_segment(place, Segment::whole)?
    }
}

/// A memtable that takes no more, and where the logs stood when it was sealed.
#[derive(Clone)]
pub(crate) struct SealedLevel {
    pub level: Arc<MemLevel>,
    pub cut: SealCut,
}

/// Where the logs stood when a memtable was sealed.
#[derive(Clone, Debug)]
pub(crate) struct SealCut {
    /// Version of the newest batch in it or before it.
    pub timestamp: Hlc,
    /// Per shard, the last record in it or before it, and the chain value there.
    pub ends: Vec<(Position, u32)>,
}

impl SealCut {
    /// Whether a mark holds everything that was in the logs at the cut.
    pub fn is_within(&self, mark: &Mark) -> bool {
        self.ends
            .iter()
            .zip(&mark.seqs)
            .all(|((end, _), seq)| end.seq <= *seq)
    }
}

/// Tables that do not overlap, ascending.
pub(crate) struct Run {
    pub tables: Vec<Arc<Table>>,
    /// The heads of each table's first and last name, which tell most names from those.
    heads: Vec<(u64, u64)>,
    version_min: Hlc,
    version_max: Hlc,
}

impl Run {
    pub fn new(tables: Vec<Arc<Table>>) -> Run {
        let metas = || tables.iter().map(|table| table.meta());
        let heads = metas().map(|meta| (head_of(&meta.name_min), head_of(&meta.name_max)));
        Run {
            heads: heads.collect(),
            version_min: metas().map(|m| m.version_min).min().unwrap_or(Hlc::MAX),
            version_max: metas().map(|m| m.version_max).max().unwrap_or_default(),
            tables,
        }
    }

    /// The oldest version in it.
    pub fn version_min(&self) -> Hlc {
        self.version_min
    }

    pub fn len(&self) -> u64 {
        self.tables.iter().map(|table| table.meta().len).sum()
    }

    /// The table that may hold a name.
    pub fn table_of(&self, name: &[u8]) -> Option<&Arc<Table>> {
        let head = head_of(name);
        let mut at = self.heads.partition_point(|(_, max)| *max < head);
        if self.heads.get(at)?.1 == head {
            let rest = &self.tables[at..];
            at += rest.partition_point(|table| *table.meta().name_max < *name);
        }
        let (min, _) = *self.heads.get(at)?;
        let table = &self.tables[at];
        (min < head || *table.meta().name_min <= *name).then_some(table)
    }

    /// How many names of a keyspace have a value as their newest entry: no name is in two tables.
    pub fn value_count(&self, keyspace: u32) -> u64 {
        let counts = self.tables.iter().map(|table| table.value_count(keyspace));
        counts.fold(0, u64::saturating_add)
    }

    /// Whether no entry is newer than `at`.
    pub fn is_within(&self, at: Hlc) -> bool {
        self.version_max <= at
    }

    /// The newest version of a name that is not newer than `at`, and whether that is a value.
    pub fn newest(&self, name: &[u8], at: Hlc) -> Result<Option<(Hlc, bool)>> {
        let Some(table) = self.table_of(name) else {
            return Ok(None);
        };
        let hit = table.lookup(name, at)?;
        Ok(hit.map(|hit| (hit.version(), !matches!(hit.value(), ValueSource::Absent))))
    }
}

/// Segments that tables point into, by shard and first sequence.
pub(crate) type PointedSegments = Arc<BTreeMap<(ShardId, u64), Arc<Segment>>>;

/// Everything readable at one moment.
#[derive(Clone)]
pub(crate) struct View {
    pub active: Arc<MemLevel>,
    /// Newest first.
    pub sealed: Vec<SealedLevel>,
    /// Newest first.
    pub runs: Vec<Arc<Run>>,
    /// Segments that tables point into.
    pub values: PointedSegments,
    /// How far the dataset has come: now, not when the view was made.
    pub watermarks: Arc<Watermarks>,
    pub outdated: Outdated,
}

/// Whether a newer view is on its way. A new one has none.
#[derive(Default)]
pub(crate) struct Outdated(AtomicBool);

impl Clone for Outdated {
    fn clone(&self) -> Outdated {
        Outdated::default()
    }
}

/// Where readers of a dataset find its newest view; none while it is being opened again.
pub(crate) type Published = ArcSwapOption<View>;

/// The newest view. A look at it takes no lock and writes to no memory that other readers look at.
pub(crate) struct Newest {
    view: ArcSwap<View>,
    /// Memtables in it that wait for their flush.
    sealed_count: AtomicUsize,
    /// Locked by whoever changes the view, which goes there, too.
    published: Mutex<Option<Arc<Published>>>,
}

impl Newest {
    pub fn new(view: View) -> Newest {
        Newest {
            sealed_count: AtomicUsize::new(view.sealed.len()),
            view: ArcSwap::from_pointee(view),
            published: Mutex::default(),
        }
    }

    /// From now on readers find every new view there.
    pub fn publish(&self, published: &Arc<Published>) {
        let mut current = self.published.lock();
        published.store(Some(self.take()));
        *current = Some(Arc::clone(published));
    }

    /// From now on readers find none.
    pub fn retract(&self) {
        let mut current = self.published.lock();
        if let Some(published) = current.take() {
            published.store(None);
        }
    }

    /// The view, for a short while.
    pub fn look(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// How many memtables wait for their flush.
    pub fn sealed_count(&self) -> usize {
        self.sealed_count.load(Ordering::Acquire)
    }

    /// The view, to keep.
    pub fn take(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Puts a changed view in the place of the one there is.
    pub fn change(&self, change: impl FnOnce(&mut View)) {
        let published = self.published.lock();
        let mut next = View::clone(&self.view.load());
        change(&mut next);
        let next = Arc::new(next);
        self.sealed_count
            .store(next.sealed.len(), Ordering::Release);
        // First: whoever sees what comes into the new one must see that the old one is old.
        self.view.load().outdated.0.store(true, Ordering::Release);
        if let Some(published) = &*published {
            published.store(Some(Arc::clone(&next)));
        }
        self.view.store(next);
    }
}

/// The newest version of a name, where it stands.
enum Newer<'v> {
    Memtable(&'v MemLevel, Found),
    Table(Hit<'v>),
}

impl Newer<'_> {
    fn version(&self) -> Hlc {
        match self {
            Newer::Memtable(_, found) => found.version,
            Newer::Table(hit) => hit.version(),
        }
    }
}

impl View {
    /// The time of the newest committed state, to be asked for after the view was taken. A view holds
    /// everything up to a memtable's seal, so reading it at a later time shows a prefix; the other way
    /// round a compaction might have dropped what the earlier time still needs.
    pub fn now(&self) -> Hlc {
        match planted("read.uncommitted") {
            true => self.watermarks.published_timestamp(),
            false => self.watermarks.visible(),
        }
    }

    /// Whether something may have come, before the last look at [`View::now`], that is not in this view.
    pub fn is_outdated(&self) -> bool {
        self.outdated.0.load(Ordering::Acquire)
    }

    /// The memtables, newest first.
    pub fn memtables(&self) -> impl Iterator<Item = &Arc<MemLevel>> {
        std::iter::once(&self.active).chain(self.sealed.iter().map(|s| &s.level))
    }

    /// The newest version of a name that is not newer than `at`; `None` where it has none or is
    /// deleted.
    pub fn get(&self, name: &[u8], at: Hlc) -> Result<Option<Value>> {
        let newest = self.newest(name, at)?;
        self.value_of(newest)
    }

    /// As [`Self::get`], shown where it stands.
    pub fn show<R>(&self, name: &[u8], at: Hlc, see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        let newest = self.newest(name, at)?;
        if let Some(Newer::Table(hit)) = &newest
            && let ValueSource::Bytes(bytes) = hit.value()
        {
            return Ok(Some(see(bytes)));
        }
        Ok(self.value_of(newest)?.map(|value| see(&value)))
    }

    fn value_of(&self, newest: Option<Newer<'_>>) -> Result<Option<Value>> {
        match newest {
            None => Ok(None),
            Some(Newer::Memtable(level, found)) => match found.value {
                FoundValue::Log(place) => {
                    let bytes = level.read(&place)?.expect(PINNED);
                    Ok(Some(Value(Bytes::Segment(bytes))))
                }
                other => self.value(other),
            },
            Some(Newer::Table(hit)) => self.value(hit.found().value),
        }
    }

    /// The newest version of a name that is not newer than `at`, deletions included.
    ///
    /// The first level that has the name has its newest version, but for followers of several shards: what
    /// came later may be older. So a level that has something newer than what was found is asked too.
    fn newest(&self, name: &[u8], at: Hlc) -> Result<Option<Newer<'_>>> {
        let mut newest: Option<Newer<'_>> = None;
        let is_newer = |than: &Option<Newer<'_>>, version: Hlc| match than {
            None => true,
            Some(than) => than.version() < version && !planted("view.first_level"),
        };
        let sealed = self.sealed.iter().map(|s| (&s.level, s.cut.timestamp));
        for (level, version_max) in std::iter::once((&self.active, Hlc::MAX)).chain(sealed) {
            if level.version_min() <= at
                && is_newer(&newest, version_max)
                && let Some(found) = level.index.get(name, at)
                && is_newer(&newest, found.version)
            {
                newest = Some(Newer::Memtable(level, found));
            }
        }
        for run in &self.runs {
            if is_newer(&newest, run.version_max)
                && let Some(table) = run.table_of(name)
                && let Some(hit) = table.lookup(name, at)?
                && is_newer(&newest, hit.version())
            {
                newest = Some(Newer::Table(hit));
            }
        }
        Ok(newest)
    }

    /// The bytes of a found value; `None` for a deletion.
    pub fn value(&self, found: FoundValue) -> Result<Option<Value>> {
        match found {
            FoundValue::Absent => Ok(None),
            FoundValue::Bytes(bytes) => Ok(Some(Value(Bytes::Table(bytes)))),
            FoundValue::Pointer(pointer) => self.pointed(&pointer).map(Some),
            FoundValue::Log(place) => self.logged(&place).map(Some),
        }
    }

    fn logged(&self, place: &LogPlace) -> Result<Value> {
        for level in self.memtables() {
            if let Some(bytes) = level.read(place)? {
                return Ok(Value(Bytes::Segment(bytes)));
            }
        }
        unreachable!("{PINNED}");
    }

    /// The bytes behind a table's pointer, checked when they are read first.
    fn pointed(&self, pointer: &ValuePointer) -> Result<Value> {
        self.read_pointed(pointer, Segment::read_checked)
    }

    /// The bytes behind a table's pointer, checked now: they are to be copied.
    pub fn moved(&self, pointer: &ValuePointer) -> Result<Value> {
        if planted("view.moved") {
            return self.pointed(pointer);
        }
        self.read_pointed(pointer, Segment::read_compared)
    }

    fn read_pointed(
        &self,
        pointer: &ValuePointer,
        read: impl FnOnce(&Segment, u64, usize, u32) -> Result<SegmentBytes>,
    ) -> Result<Value> {
        let segment = (pointer.source == PointerSource::Segment)
            .then(|| self.values.get(&(pointer.shard, pointer.file)))
            .flatten();
        let Some(segment) = segment else {
            let path = std::path::Path::new("value file");
            let found = format!("no file {} of shard {}", pointer.file, pointer.shard);
            return Err(Error::corrupt(
                path,
                pointer.offset.into(),
                "value pointer",
                "a file",
                found,
            ));
        };
        let (at, len) = (pointer.offset.into(), pointer.len as usize);
        let bytes = read(segment, at, len, pointer.crc)?;
        Ok(Value(Bytes::Segment(bytes)))
    }
}

pub(super) const PINNED: &str = "a memtable pins every segment that it points into";
