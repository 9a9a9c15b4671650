//! The memtable: an ordered index of records that are in the log and in no table yet.
//!
//! It holds names and places, not values: the bytes are in the log already. Any number of threads
//! insert and read at once. What a reader may see is decided by the version that it asks for, so
//! entries of a batch may appear one by one: their version is not yet asked for by anyone.

mod cursor;

#[cfg(test)]
mod tests;

use std::borrow::{Borrow, Cow};
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crossbeam_skiplist::SkipMap;
use strandline_wal::Hlc;

pub use cursor::MemtableCursor;

use crate::table::{
    EntryKind, Found, FoundValue, InternalKey, LogPlace, NAME_LEN_MAX, ValueSource,
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
}

impl Memtable {
    /// An empty one.
    pub fn new() -> Memtable {
        Memtable {
            entries: SkipMap::new(),
            len: AtomicUsize::new(0),
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
    #[cfg(test)]
    pub fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is in it.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory that it takes, about.
    pub fn approximate_len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// A cursor over all entries. What is inserted meanwhile it may see or not.
    pub fn cursor(self: &Arc<Memtable>) -> MemtableCursor {
        MemtableCursor::new(Arc::clone(self))
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

/// What an entry takes beside its name: key, place, and the links of the index on average.
const ENTRY_LEN: usize = size_of::<Stored>() + size_of::<MemEntry>() + 48;
