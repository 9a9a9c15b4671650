//! An open table: what it is, and how a name is found in it.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline_wal::io::{Disk, File};
use strandline_wal::{Hlc, Result};

use super::cache::BlockCache;
use super::chunk::{self, Shape};
use super::chunks::Chunks;
use super::damage::Damage;
use super::directory::Directory;
use super::entry::{EntryKind, InternalKey};
use super::fences::Fences;
use super::footer::Footer;
use super::header::Identity;
use super::meta::TableMeta;
use super::open;
use super::point_index::{PointIndex, hash_of};
use super::pointer::ValuePointer;
use super::properties::KeyspaceCount;
use super::record::Record;
use super::scan::TableCursor;
use super::source::{Hold, Keep, Source};
use super::value::{Found, FoundValue, ValueSource};

/// How a table is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Where chunks are kept that are read without a map. Shared by all tables.
    pub cache: Arc<BlockCache>,
    /// Whether to map the file where the disk has maps. On by default.
    pub map: bool,
    /// Whether to use the point index where the table has one. On by default.
    pub point_index: bool,
}

impl OpenOptions {
    /// Maps and point indexes where there are any, and this cache where there is no map.
    pub fn new(cache: Arc<BlockCache>) -> OpenOptions {
        OpenOptions {
            cache,
            map: true,
            point_index: true,
        }
    }
}

/// An open table. Any number of threads may read it at once.
///
/// What opening looks at: header, footer, directory and every section with its checksum, and that
/// nothing lies between them. What it leaves to the first use: the chunks, each of which is checked
/// before a record of it is used. What only [`Self::verify`] looks at: the digest of the file.
pub struct Table {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) footer: Footer,
    pub(super) directory: Directory,
    pub(super) chunks: Chunks,
    pub(super) fences: Fences,
    pub(super) point_index: Option<PointIndex>,
    pub(super) source: Source,
    pub(super) meta: TableMeta,
    pub(super) keyspaces: Vec<KeyspaceCount>,
    pub(super) warnings: Vec<Damage>,
}

impl Table {
    /// Opens a table file. `expected` is what the manifest has of it; without it the file is taken
    /// for what it says that it is.
    ///
    /// # Errors
    /// The disk's; `Corrupt` with the offset where the file is damaged, cut, or not the expected
    /// one; `Unsupported` where it is of another version.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        expected: Option<&TableMeta>,
        options: &OpenOptions,
    ) -> Result<Arc<Table>> {
        open::open(disk, path, expected, options).map(Arc::new)
    }

    /// What is in the table.
    pub fn meta(&self) -> &TableMeta {
        &self.meta
    }

    /// How many names of a keyspace have a value as their newest entry. Reads no chunk.
    pub fn value_count(&self, keyspace: u32) -> u64 {
        self.keyspaces
            .binary_search_by_key(&keyspace, |row| row.keyspace)
            .map_or(0, |row| self.keyspaces[row].value_count)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which table of which database.
    pub fn identity(&self) -> &Identity {
        &self.meta.identity
    }

    /// Damage that the table can be read without: a point index that is not used.
    pub fn warnings(&self) -> &[Damage] {
        &self.warnings
    }

    /// The newest version of `name` that is not newer than `at`, tombstones included.
    ///
    /// # Errors
    /// The disk's, and `Corrupt` where the chunk that has to be looked at is damaged.
    pub fn get(&self, name: &[u8], at: Hlc) -> Result<Option<Found>> {
        Ok(self.lookup(name, at)?.map(|hit| hit.found()))
    }

    /// As [`Self::get`], borrowed from the table: touches no reference count in a mapped table.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn lookup(&self, name: &[u8], at: Hlc) -> Result<Option<Hit<'_>>> {
        match &self.point_index {
            Some(index) => self.lookup_hashed(index, name, at),
            None => self.lookup_ordered(name, at),
        }
    }

    fn lookup_hashed(&self, index: &PointIndex, name: &[u8], at: Hlc) -> Result<Option<Hit<'_>>> {
        let newest = match self.newest(index, name) {
            Ok(newest) => newest,
            // The damage may be another name's, whose tag is the same.
            Err(_) => return self.lookup_ordered(name, at),
        };
        let Some((chunk, hold, mut record)) = newest else {
            return Ok(None);
        };
        for _ in 0..STEP_COUNT_MAX {
            if record.version <= at {
                return self.hit(chunk, hold, record).map(Some);
            }
            let bytes = self.source.bytes(&hold);
            let next = Shape::decode(bytes).and_then(|shape| {
                let is_in_chunk = record.end() < shape.records_end();
                is_in_chunk
                    .then(|| shape.record_at(bytes, record.end()))
                    .transpose()
            });
            record = match next.map_err(|damage| self.error_in(chunk, damage))? {
                Some(next) if next.name(bytes) == name => next,
                Some(_) => return Ok(None),
                // The chunk ends here; the name may go on in the next.
                None => break,
            };
        }
        self.lookup_ordered(name, at)
    }

    /// The newest record of a name, where the point index leads; `None` where there is none.
    fn newest(&self, index: &PointIndex, name: &[u8]) -> Result<Option<(u32, Hold, Record)>> {
        let flow = index.probe(hash_of(name), |place| match self.newest_at(name, place) {
            Ok(None) => ControlFlow::Continue(()),
            newest => ControlFlow::Break(newest),
        });
        match flow {
            ControlFlow::Continue(()) => Ok(None),
            ControlFlow::Break(newest) => newest,
        }
    }

    /// As [`Self::newest`]; `None`, too, where there is no index or it leads into damage.
    pub(super) fn jump(&self, name: &[u8]) -> Option<(u32, Hold, Record)> {
        let found = self.newest(self.point_index.as_ref()?, name);
        found.ok().flatten()
    }

    /// The record that begins at `start` of the file, where it is one of `name`.
    ///
    /// It is read without the chunk's header: where the index leads, a record of a checked chunk
    /// begins, and another line of memory would be fetched for nothing.
    fn newest_at(&self, name: &[u8], start: u64) -> Result<Option<(u32, Hold, Record)>> {
        let Some((chunk, offset, versions)) = self.chunks.locate(start) else {
            let expected = format!("below {}", self.chunks.data_end());
            let damage = Damage::new(start, "place in the point index", expected, start);
            return Err(damage.into_error(&self.path));
        };
        let hold = self.chunk(chunk, Keep::Cached)?;
        let bytes = self.source.bytes(&hold);
        let record = Record::decode(bytes, offset, versions)
            .map_err(|damage| self.error_in(chunk, damage))?;
        let is_it = record.name(bytes) == name;
        Ok(is_it.then_some((chunk, hold, record)))
    }

    fn lookup_ordered(&self, name: &[u8], at: Hlc) -> Result<Option<Hit<'_>>> {
        let key = InternalKey { name, version: at };
        let Some(place) = self.seek_place(key, Keep::Cached)? else {
            return Ok(None);
        };
        let bytes = self.source.bytes(&place.hold);
        let record = place
            .shape
            .record(bytes, place.ordinal)
            .map_err(|damage| self.error_in(place.chunk, damage))?;
        if record.name(bytes) != name {
            return Ok(None);
        }
        self.hit(place.chunk, place.hold, record).map(Some)
    }

    fn hit(&self, chunk: u32, hold: Hold, record: Record) -> Result<Hit<'_>> {
        let stand =
            Stand::on(&self.source, hold, record).map_err(|damage| self.error_in(chunk, damage))?;
        Ok(Hit { table: self, stand })
    }

    /// The first record at or behind `key`.
    pub(super) fn seek_place(&self, key: InternalKey<'_>, keep: Keep) -> Result<Option<Place>> {
        let index = self.fences.find(key);
        let fence = self.fences.fence(index);
        let place = self.place(fence.chunk, fence.ordinal, keep)?;
        let bytes = self.source.bytes(&place.hold);
        let in_chunk = self.fences.of_chunk(fence.chunk);
        let end = if index + 1 < in_chunk.end {
            self.fences.fence(index + 1).ordinal
        } else {
            place.shape.record_count
        };
        let ordinal = place
            .shape
            .search(bytes, key, fence.ordinal, end)
            .map_err(|damage| self.error_in(fence.chunk, damage))?;
        if ordinal < place.shape.record_count {
            return Ok(Some(Place { ordinal, ..place }));
        }
        // All records of this chunk are below; the fence of the next one says that none of its is.
        if fence.chunk + 1 == self.chunks.count() {
            return Ok(None);
        }
        self.place(fence.chunk + 1, 0, keep).map(Some)
    }

    /// A place in a checked chunk.
    pub(super) fn place(&self, chunk: u32, ordinal: u32, keep: Keep) -> Result<Place> {
        let hold = self.chunk(chunk, keep)?;
        let shape = Shape::decode(self.source.bytes(&hold))
            .map_err(|damage| self.error_in(chunk, damage))?;
        Ok(Place {
            chunk,
            ordinal,
            hold,
            shape,
        })
    }

    fn chunk(&self, chunk: u32, keep: Keep) -> Result<Hold> {
        let range = self.chunks.range(chunk).unwrap_or_default();
        let check = |bytes: &[u8]| self.check_chunk(chunk, bytes).map(|_| ());
        self.source.chunk(&self.path, chunk, range, keep, check)
    }

    /// Checks a chunk by itself, and that the fences around and within it tell the truth.
    pub(super) fn check_chunk(&self, chunk: u32, bytes: &[u8]) -> Result<Shape, Damage> {
        let at = self.chunks.range(chunk).unwrap_or_default().start;
        let shape = chunk::check(bytes, at, self.identity())?;
        if self.chunks.versions(chunk) != Some(&shape.versions) {
            let expected = "those of its header";
            return Err(Damage::new(
                at,
                "versions in the chunk section",
                expected,
                "others",
            ));
        }
        let wrong = || Damage::new(at, "fences of a chunk", "around its records", "elsewhere");
        let fences = self.fences.of_chunk(chunk);
        for index in fences.clone() {
            let ordinal = self.fences.fence(index).ordinal;
            let key = self.fences.key(index);
            let is_above_before = match ordinal.checked_sub(1) {
                Some(before) => shape.record(bytes, before)?.key(bytes) < key,
                None => true,
            };
            let is_behind =
                ordinal < shape.record_count && key <= shape.record(bytes, ordinal)?.key(bytes);
            if !is_above_before || !is_behind {
                return Err(wrong());
            }
        }
        if fences.end < self.fences.count() {
            let last = shape.record(bytes, shape.record_count - 1)?;
            if last.key(bytes) >= self.fences.key(fences.end) {
                return Err(wrong());
            }
        }
        Ok(shape)
    }

    /// An error about bytes of a chunk that had passed its check: the map has changed under us.
    pub(super) fn error_in(&self, chunk: u32, damage: Damage) -> strandline_wal::Error {
        let start = self.chunks.range(chunk).unwrap_or_default().start;
        damage.behind(start).into_error(&self.path)
    }

    /// A cursor over all entries. What it reads is kept in the cache.
    pub fn cursor(self: &Arc<Table>) -> TableCursor {
        TableCursor::new(Arc::clone(self), Keep::Cached)
    }

    /// A cursor that leaves the cache alone, for whoever reads every entry once.
    pub fn cursor_once(self: &Arc<Table>) -> TableCursor {
        TableCursor::new(Arc::clone(self), Keep::Once)
    }

    /// Bytes of records between two names, to within about 4 KiB at each end. Reads no chunk.
    pub fn approximate_len(&self, from: &[u8], to: &[u8]) -> u64 {
        let fence = |name| self.fences.find(InternalKey::first_of(name)) as u64;
        let between = fence(to).saturating_sub(fence(from));
        let records_len = self.chunks.data_end() - super::header::HEADER_LEN as u64;
        (u128::from(records_len) * u128::from(between) / self.fences.count() as u128) as u64
    }

    /// Reads the whole file again and reports everything that is not as it was written.
    pub fn verify(&self) -> Vec<Damage> {
        self.verify_at_pace(&mut |_| {})
    }

    /// From now on every chunk is checked again before it is read from.
    pub fn distrust(&self) {
        self.source.distrust();
    }

    /// As [`Table::verify`]; `pace` is told of the bytes that were read, and may wait.
    pub fn verify_at_pace(&self, pace: &mut dyn FnMut(usize)) -> Vec<Damage> {
        super::verify::verify(self, pace)
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Table({} at {})",
            self.identity().number,
            self.path.display()
        )
    }
}

/// A record of a checked chunk.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub chunk: u32,
    pub ordinal: u32,
    pub hold: Hold,
    pub shape: Shape,
}

/// A record that a lookup found, where it stands.
pub struct Hit<'t> {
    table: &'t Table,
    stand: Stand,
}

impl Hit<'_> {
    /// Its version.
    pub fn version(&self) -> Hlc {
        self.stand.record.version
    }

    /// Its value.
    pub fn value(&self) -> ValueSource<'_> {
        self.stand.value(&self.table.source)
    }

    /// Version and value, to keep.
    pub fn found(&self) -> Found {
        self.stand.found(&self.table.source)
    }
}

/// A record and the chunk that it is in, with its pointer decoded: what can fail has not failed.
#[derive(Clone, Debug)]
pub(super) struct Stand {
    pub hold: Hold,
    pub record: Record,
    pointer: Option<ValuePointer>,
}

impl Stand {
    /// Stands on a record of a chunk that came from `source`.
    pub fn on(source: &Source, hold: Hold, record: Record) -> Result<Stand, Damage> {
        let mut stand = Stand {
            hold,
            record,
            pointer: None,
        };
        stand.move_to(source, record)?;
        Ok(stand)
    }

    /// Moves to another record of the same chunk.
    #[inline]
    pub fn move_to(&mut self, source: &Source, record: Record) -> Result<(), Damage> {
        self.pointer = match record.kind {
            EntryKind::Pointer => {
                let value = record.value(source.bytes(&self.hold));
                Some(ValuePointer::decode_at(
                    value,
                    record.value_range().start as u64,
                )?)
            }
            EntryKind::Value | EntryKind::Tombstone => None,
        };
        self.record = record;
        Ok(())
    }

    /// Where the record stands among others.
    #[inline]
    pub fn key<'a>(&'a self, source: &'a Source) -> InternalKey<'a> {
        self.record.key(source.bytes(&self.hold))
    }

    /// Its value.
    #[inline]
    pub fn value<'a>(&'a self, source: &'a Source) -> ValueSource<'a> {
        match self.pointer {
            Some(pointer) => ValueSource::Pointer(pointer),
            None if self.record.kind == EntryKind::Tombstone => ValueSource::Absent,
            None => ValueSource::Bytes(self.record.value(source.bytes(&self.hold))),
        }
    }

    /// Version and value, to keep.
    #[inline]
    pub fn found(&self, source: &Source) -> Found {
        let value = match self.pointer {
            Some(pointer) => FoundValue::Pointer(pointer),
            None if self.record.kind == EntryKind::Tombstone => FoundValue::Absent,
            None => FoundValue::Bytes(source.part(&self.hold, self.record.value_range())),
        };
        Found {
            version: self.record.version,
            value,
        }
    }
}

/// Versions of a name that a lookup steps over before it searches.
pub(super) const STEP_COUNT_MAX: usize = 8;
