//! The memtable: an ordered index of records that are in the log and in no table yet.
//!
//! It holds names and places, not values: the bytes are in the log already. Any number of threads
//! insert and read at once. What a reader may see is decided by the version that it asks for, so
//! entries of a batch may appear one by one: their version is not yet asked for by anyone.

use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::mem::size_of;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use crossbeam_skiplist::SkipMap;
use strandline_wal::{Hlc, Result};

use crate::table::{
    Cursor, EntryKind, Found, FoundValue, InternalKey, LogPlace, NAME_LEN_MAX, ValueSource,
};

/// What the memtable knows of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemEntry {
    /// A value or a tombstone. Whether a value becomes a pointer is decided when it is flushed.
    pub kind: EntryKind,
    /// Where the value stands in the log. Of a tombstone: where the record does, without a length.
    pub place: LogPlace,
}

impl MemEntry {
    fn source(&self) -> ValueSource<'static> {
        match self.kind {
            EntryKind::Tombstone => ValueSource::Absent,
            EntryKind::Value | EntryKind::Pointer => ValueSource::Log(self.place),
        }
    }

    fn found(&self, version: Hlc) -> Found {
        let value = match self.kind {
            EntryKind::Tombstone => FoundValue::Absent,
            EntryKind::Value | EntryKind::Pointer => FoundValue::Log(self.place),
        };
        Found { version, value }
    }
}

/// An ordered index of pointers into the log.
pub struct Memtable {
    entries: SkipMap<Stored, MemEntry>,
    len: AtomicUsize,
    version_min: AtomicU64,
    version_max: AtomicU64,
}

impl Memtable {
    /// An empty one.
    pub fn new() -> Memtable {
        Memtable {
            entries: SkipMap::new(),
            len: AtomicUsize::new(0),
            version_min: AtomicU64::new(u64::MAX),
            version_max: AtomicU64::new(0),
        }
    }

    /// Adds a record. `sub` is its index in its batch: of several records of one batch with one name
    /// the last one counts. Adding a record that is there already changes nothing.
    ///
    /// # Panics
    /// Where the name is longer than [`NAME_LEN_MAX`] or the kind is a pointer.
    pub fn insert(&self, name: &[u8], version: Hlc, sub: u32, entry: MemEntry) {
        assert!(
            name.len() <= NAME_LEN_MAX,
            "a name that no table could take"
        );
        assert!(
            entry.kind != EntryKind::Pointer,
            "a record of the log is no pointer"
        );
        let key = Seat {
            head: head_of(name),
            name: Cow::Owned(name.to_vec()),
            version,
            sub,
        };
        let mut is_new = false;
        self.entries.get_or_insert_with(Stored(key), || {
            is_new = true;
            entry
        });
        if is_new {
            self.len.fetch_add(name.len() + ENTRY_LEN, Relaxed);
        }
        self.version_min.fetch_min(version.0, Relaxed);
        self.version_max.fetch_max(version.0, Relaxed);
    }

    /// The newest version of `name` that is not newer than `at`, tombstones included.
    pub fn get(&self, name: &[u8], at: Hlc) -> Option<Found> {
        let seat = Seat::first_of(InternalKey { name, version: at });
        let entry = self
            .entries
            .lower_bound::<Seat<'_>>(Bound::Included(&seat))?;
        let found = &entry.key().0;
        (*found.name == *name).then(|| entry.value().found(found.version))
    }

    /// Records in it, those that another of their batch overrode included.
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory that it takes, about.
    pub fn approximate_len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// Oldest and newest version, where there is any entry.
    pub fn versions(&self) -> Option<(Hlc, Hlc)> {
        let (min, max) = (
            self.version_min.load(Relaxed),
            self.version_max.load(Relaxed),
        );
        (min <= max).then_some((Hlc(min), Hlc(max)))
    }

    /// A cursor over all entries. What is inserted meanwhile it may see or not.
    pub fn cursor(self: &Arc<Memtable>) -> MemtableCursor {
        MemtableCursor {
            memtable: Arc::clone(self),
            rows: Vec::new(),
            names: Vec::new(),
            at: 0,
            is_backward: false,
            batch_count: BATCH_COUNT_MIN,
        }
    }
}

impl Default for Memtable {
    fn default() -> Memtable {
        Memtable::new()
    }
}

impl std::fmt::Debug for Memtable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memtable({} bytes)", self.approximate_len())
    }
}

/// Where an entry sits: names ascending, then versions descending, then the later of a batch first.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Seat<'a> {
    /// The first 16 bytes of the name as a big-endian number: most comparisons end here, without
    /// a look at memory that is elsewhere.
    head: u128,
    name: Cow<'a, [u8]>,
    version: Hlc,
    sub: u32,
}

impl<'a> Seat<'a> {
    /// Before all entries with this key.
    fn first_of(key: InternalKey<'a>) -> Seat<'a> {
        let name = Cow::Borrowed(key.name);
        Seat {
            head: head_of(key.name),
            name,
            version: key.version,
            sub: u32::MAX,
        }
    }

    /// Behind all entries with this key.
    fn last_of(key: InternalKey<'a>) -> Seat<'a> {
        Seat {
            sub: 0,
            ..Seat::first_of(key)
        }
    }

    fn key(&self) -> InternalKey<'_> {
        InternalKey {
            name: &self.name,
            version: self.version,
        }
    }
}

impl Ord for Seat<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.head
            .cmp(&other.head)
            .then_with(|| self.key().cmp(&other.key()))
            .then_with(|| other.sub.cmp(&self.sub))
    }
}

impl PartialOrd for Seat<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A seat that owns its name. A type of its own, so that it can be looked up by a borrowed one.
#[derive(Eq, Ord, PartialEq, PartialOrd)]
struct Stored(Seat<'static>);

impl<'a> Borrow<Seat<'a>> for Stored {
    fn borrow(&self) -> &Seat<'a> {
        &self.0
    }
}

/// The first 16 bytes as a big-endian number, zeros where there are none.
fn head_of(name: &[u8]) -> u128 {
    match name.first_chunk::<16>() {
        Some(head) => u128::from_be_bytes(*head),
        None => {
            let mut head = [0; 16];
            head[..name.len()].copy_from_slice(name);
            u128::from_be_bytes(head)
        }
    }
}

/// Walks a memtable in both directions, for as long as it likes.
///
/// It takes entries in batches out of the index, so that it borrows nothing and pays for a search
/// once per batch. Batches begin small, for those who look at one entry, and grow.
pub struct MemtableCursor {
    memtable: Arc<Memtable>,
    /// Entries in the direction of the cursor, each key once.
    rows: Vec<Row>,
    names: Vec<u8>,
    /// The row that the cursor stands on; beyond the rows it stands nowhere.
    at: usize,
    is_backward: bool,
    /// How many rows the next batch may have.
    batch_count: usize,
}

/// An entry that was taken out.
struct Row {
    name_at: usize,
    name_len: usize,
    version: Hlc,
    entry: MemEntry,
}

impl MemtableCursor {
    fn row_key(&self, row: usize) -> Option<InternalKey<'_>> {
        let row = self.rows.get(row)?;
        let name = &self.names[row.name_at..row.name_at + row.name_len];
        Some(InternalKey {
            name,
            version: row.version,
        })
    }

    fn row(&self) -> &Row {
        self.rows
            .get(self.at)
            .expect("the cursor stands on an entry")
    }

    /// Takes the batch that begins at `from` and goes up.
    fn fill_forward(&mut self, from: Bound<&Seat<'_>>) {
        self.begin(false);
        let memtable = Arc::clone(&self.memtable);
        for entry in memtable
            .entries
            .range::<Seat<'_>, _>((from, Bound::Unbounded))
        {
            let seat = &entry.key().0;
            // Of one key the record that counts comes first.
            let is_overridden = self.last_key() == Some(seat.key());
            if !is_overridden && !self.push(seat, *entry.value()) {
                break;
            }
        }
        self.end();
    }

    /// Takes the batch that begins at `from` and goes down.
    fn fill_backward(&mut self, from: Bound<&Seat<'_>>) {
        self.begin(true);
        let memtable = Arc::clone(&self.memtable);
        for entry in memtable
            .entries
            .range::<Seat<'_>, _>((Bound::Unbounded, from))
            .rev()
        {
            let seat = &entry.key().0;
            // Of one key the record that counts comes last.
            if self.last_key() == Some(seat.key()) {
                if let Some(last) = self.rows.last_mut() {
                    last.entry = *entry.value();
                }
            } else if !self.push(seat, *entry.value()) {
                break;
            }
        }
        self.end();
    }

    fn begin(&mut self, is_backward: bool) {
        self.rows.clear();
        self.names.clear();
        self.at = 0;
        self.is_backward = is_backward;
    }

    fn end(&mut self) {
        self.batch_count = (self.batch_count * 2).min(BATCH_COUNT_MAX);
    }

    fn last_key(&self) -> Option<InternalKey<'_>> {
        self.row_key(self.rows.len().checked_sub(1)?)
    }

    /// Adds a row; `false` where the batch is full.
    fn push(&mut self, seat: &Seat<'_>, entry: MemEntry) -> bool {
        if self.rows.len() >= self.batch_count {
            return false;
        }
        let (name_at, name_len) = (self.names.len(), seat.name.len());
        self.names.extend_from_slice(&seat.name);
        self.rows.push(Row {
            name_at,
            name_len,
            version: seat.version,
            entry,
        });
        true
    }

    /// One step against the key order where `is_back`, else along it.
    fn step(&mut self, is_back: bool) {
        if !self.is_valid() {
            return;
        }
        let has_row = if self.is_backward == is_back {
            self.at + 1 < self.rows.len()
        } else {
            self.at > 0
        };
        if has_row {
            self.at = if self.is_backward == is_back {
                self.at + 1
            } else {
                self.at - 1
            };
            return;
        }
        let name = self.key().name.to_vec();
        let key = InternalKey {
            name: &name,
            version: self.key().version,
        };
        if is_back {
            self.fill_backward(Bound::Excluded(&Seat::first_of(key)));
        } else {
            self.fill_forward(Bound::Excluded(&Seat::last_of(key)));
        }
    }
}

impl Cursor for MemtableCursor {
    fn seek(&mut self, key: InternalKey<'_>) {
        self.batch_count = BATCH_COUNT_MIN;
        self.fill_forward(Bound::Included(&Seat::first_of(key)));
    }

    fn seek_for_prev(&mut self, key: InternalKey<'_>) {
        self.batch_count = BATCH_COUNT_MIN;
        self.fill_backward(Bound::Included(&Seat::last_of(key)));
    }

    fn first(&mut self) {
        self.batch_count = BATCH_COUNT_MIN;
        self.fill_forward(Bound::Unbounded);
    }

    fn last(&mut self) {
        self.batch_count = BATCH_COUNT_MIN;
        self.fill_backward(Bound::Unbounded);
    }

    fn next(&mut self) {
        self.step(false);
    }

    fn prev(&mut self) {
        self.step(true);
    }

    fn is_valid(&self) -> bool {
        self.at < self.rows.len()
    }

    fn key(&self) -> InternalKey<'_> {
        self.row_key(self.at)
            .expect("the cursor stands on an entry")
    }

    fn value(&self) -> ValueSource<'_> {
        self.row().entry.source()
    }

    fn found(&self) -> Found {
        let row = self.row();
        row.entry.found(row.version)
    }

    fn status(&self) -> Result<()> {
        Ok(())
    }
}

/// What an entry takes beside its name: key, place, and the links of the index on average.
const ENTRY_LEN: usize = size_of::<Stored>() + size_of::<MemEntry>() + 48;

/// Rows of the first batch of a cursor.
const BATCH_COUNT_MIN: usize = 4;

/// Rows of any batch of a cursor.
const BATCH_COUNT_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use strandline_wal::ShardId;

    use super::*;

    fn entry(kind: EntryKind, offset: u32) -> MemEntry {
        let place = LogPlace {
            shard: ShardId(0),
            first_seq: 1,
            offset,
            len: 10,
        };
        MemEntry { kind, place }
    }

    type Model = BTreeMap<(Vec<u8>, Reverse<u64>), MemEntry>;

    fn name() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(b'a'), Just(0xff)];
        let name = proptest::collection::vec(byte, 0..4);
        prop_oneof![
            name.clone(),
            name.prop_map(|name| [b"sixteen bytes of", &name[..]].concat())
        ]
    }

    fn filled(records: &[(Vec<u8>, u64, bool)]) -> (Arc<Memtable>, Model) {
        let (memtable, mut model) = (Arc::new(Memtable::new()), Model::new());
        for (sub, (name, version, is_tombstone)) in records.iter().enumerate() {
            let kind = if *is_tombstone {
                EntryKind::Tombstone
            } else {
                EntryKind::Value
            };
            let entry = entry(kind, sub as u32);
            memtable.insert(name, Hlc(*version), sub as u32, entry);
            model.insert((name.clone(), Reverse(*version)), entry);
        }
        (memtable, model)
    }

    fn standing(cursor: &MemtableCursor) -> Option<(Vec<u8>, u64, ValueSource<'_>)> {
        cursor.is_valid().then(|| {
            let key = cursor.key();
            (key.name.to_vec(), key.version.0, cursor.value())
        })
    }

    proptest! {
        #[test]
        fn lookups_find_the_newest_version_not_above_the_one_asked_for(
            records in proptest::collection::vec((name(), 1u64..8, any::<bool>()), 0..200),
            names in proptest::collection::vec(name(), 0..20),
        ) {
            let (memtable, model) = filled(&records);
            for name in names.iter().chain(records.iter().map(|record| &record.0)) {
                for at in 0..9 {
                    let expected = model
                        .range((name.clone(), Reverse(at))..)
                        .next()
                        .filter(|(key, _)| key.0 == *name)
                        .map(|(key, entry)| (key.1.0, entry.source()));
                    let found = memtable.get(name, Hlc(at));
                    let found = found.as_ref().map(|f| (f.version.0, f.value.source()));
                    prop_assert_eq!(found, expected);
                }
            }
        }

        #[test]
        fn cursors_walk_every_key_once_in_both_directions(
            records in proptest::collection::vec((name(), 1u64..8, any::<bool>()), 0..200),
            moves in proptest::collection::vec((0u8..16, name(), 0u64..9), 0..80),
        ) {
            let (memtable, model) = filled(&records);
            let rows: Vec<_> = model
                .iter()
                .map(|((name, version), entry)| (name.clone(), version.0, entry.source()))
                .collect();
            let mut cursor = memtable.cursor();
            let mut at: Option<usize> = None;
            for (kind, name, version) in &moves {
                let key = InternalKey { name, version: Hlc(*version) };
                let keys = rows.iter().map(|row| InternalKey { name: &row.0, version: Hlc(row.1) });
                match kind {
                    0 => {
                        cursor.seek(key);
                        at = keys.clone().position(|other| other >= key);
                    }
                    1 => {
                        cursor.seek_for_prev(key);
                        at = keys.clone().rposition(|other| other <= key);
                    }
                    2 => {
                        cursor.first();
                        at = (!rows.is_empty()).then_some(0);
                    }
                    3 => {
                        cursor.last();
                        at = rows.len().checked_sub(1);
                    }
                    4..10 => {
                        cursor.next();
                        at = at.and_then(|at| (at + 1 < rows.len()).then_some(at + 1));
                    }
                    _ => {
                        cursor.prev();
                        at = at.and_then(|at| at.checked_sub(1));
                    }
                }
                prop_assert_eq!(standing(&cursor), at.map(|at| rows[at].clone()));
            }
        }
    }

    #[test]
    fn the_last_record_of_a_batch_wins_whatever_the_order_of_insertion() {
        let memtable = Arc::new(Memtable::new());
        memtable.insert(b"name", Hlc(5), 2, entry(EntryKind::Tombstone, 2));
        memtable.insert(b"name", Hlc(5), 9, entry(EntryKind::Value, 9));
        memtable.insert(b"name", Hlc(5), 0, entry(EntryKind::Value, 0));
        let found = memtable.get(b"name", Hlc(5)).unwrap();
        assert_eq!(found.value.source(), entry(EntryKind::Value, 9).source());
        let mut cursor = memtable.cursor();
        for is_back in [false, true] {
            if is_back {
                cursor.last()
            } else {
                cursor.first()
            }
            assert_eq!(cursor.value(), entry(EntryKind::Value, 9).source());
            if is_back {
                cursor.prev()
            } else {
                cursor.next()
            }
            assert!(!cursor.is_valid());
        }
    }

    #[test]
    fn a_record_that_is_replayed_changes_nothing() {
        let memtable = Memtable::new();
        assert!(memtable.is_empty());
        assert_eq!(memtable.versions(), None);
        memtable.insert(b"name", Hlc(5), 0, entry(EntryKind::Value, 7));
        let len = memtable.approximate_len();
        memtable.insert(b"name", Hlc(5), 0, entry(EntryKind::Value, 7));
        assert_eq!(
            (memtable.approximate_len(), memtable.entry_count()),
            (len, 1)
        );
        assert_eq!(memtable.versions(), Some((Hlc(5), Hlc(5))));
    }

    #[test]
    fn writers_and_readers_go_at_once() {
        let memtable = Arc::new(Memtable::new());
        std::thread::scope(|scope| {
            for writer in 0..2u32 {
                let memtable = &memtable;
                scope.spawn(move || {
                    for n in 0..2_000u32 {
                        let name = format!("{:05}", n * 2 + writer);
                        let version = Hlc(u64::from(n + 1));
                        memtable.insert(name.as_bytes(), version, 0, entry(EntryKind::Value, n));
                    }
                });
            }
            let memtable = &memtable;
            scope.spawn(move || {
                for _ in 0..20 {
                    let mut cursor = memtable.cursor();
                    let mut before = Vec::new();
                    cursor.first();
                    while cursor.is_valid() {
                        assert!(before.is_empty() || *before < *cursor.key().name);
                        before = cursor.key().name.to_vec();
                        cursor.next();
                    }
                }
            });
        });
        assert_eq!(memtable.entry_count(), 4_000);
        assert_eq!(memtable.versions(), Some((Hlc(1), Hlc(2_000))));
    }
}
