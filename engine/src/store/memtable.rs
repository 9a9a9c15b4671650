//! The memtable: an ordered index of records that are in the log and in no table yet.
//!
//! It holds names and places, not values: the bytes are in the log already. Any number of threads
//! insert and read at once. What a reader may see is decided by the version that it asks for, so
//! entries of a batch may appear one by one: their version is not yet asked for by anyone.

mod cursor;

#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use artmap::{AsBytes, VersionedArtMap};
use strandline_wal::Hlc;

pub use cursor::MemtableCursor;

use crate::table::{EntryKind, Found, FoundValue, LogPlace, NAME_LEN_MAX, ValueSource};

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
    /// An adaptive radix tree of names, each with its versions, newest first.
    entries: VersionedArtMap<Name, MemEntry>,
    len: AtomicUsize,
}

impl Memtable {
    /// An empty one.
    pub fn new() -> Memtable {
        Memtable {
            entries: VersionedArtMap::new(),
            len: AtomicUsize::new(0),
        }
    }

    /// Adds a record. Of several records of one batch with one name the last one counts, so they are
    /// added in their order. Adding a batch again changes nothing.
    ///
    /// # Panics
    /// Where the name is longer than [`NAME_LEN_MAX`] or the kind is a pointer.
    pub fn insert(&self, name: &[u8], version: Hlc, entry: MemEntry) {
        assert!(
            name.len() <= NAME_LEN_MAX,
            "a name that no table could take"
        );
        assert!(
            entry.kind != EntryKind::Pointer,
            "a record of the log is no pointer"
        );
        self.entries.insert(Name::new(name), version.0, entry);
        self.len.fetch_add(name.len() + ENTRY_LEN, Relaxed);
    }

    /// The newest version of `name` that is not newer than `at`, tombstones included.
    pub fn get(&self, name: &[u8], at: Hlc) -> Option<Found> {
        let (version, entry) = self.entries.get_version_le(name, at.0)?;
        Some(entry.found(Hlc(version)))
    }

    /// Versions of all names.
    #[cfg(test)]
    pub fn entry_count(&self) -> usize {
        let names = self.entries.iter();
        names
            .map(|entry| self.entries.version_count(entry.key()))
            .sum()
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
        MemtableCursor::new(Arc::clone(self), None)
    }

    /// A cursor over what is visible at a time: of each name the newest version that is not newer.
    pub fn cursor_at(self: &Arc<Memtable>, at: Hlc) -> MemtableCursor {
        MemtableCursor::new(Arc::clone(self), Some(at))
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

/// A name, without memory of its own where it is short.
enum Name {
    Short(u8, [u8; SHORT_LEN_MAX]),
    Long(Box<[u8]>),
}

/// Longest name that needs no memory of its own: a keyspace and a key of 18 bytes.
const SHORT_LEN_MAX: usize = 22;

impl Name {
    fn new(name: &[u8]) -> Name {
        match u8::try_from(name.len()) {
            Ok(len) if name.len() <= SHORT_LEN_MAX => {
                let mut bytes = [0; SHORT_LEN_MAX];
                bytes[..name.len()].copy_from_slice(name);
                Name::Short(len, bytes)
            }
            _ => Name::Long(name.into()),
        }
    }
}

impl AsBytes for Name {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Name::Short(len, bytes) => &bytes[..usize::from(*len)],
            Name::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// What an entry takes beside its name: its leaf, its place in the tree, and the tree's own on average.
const ENTRY_LEN: usize = size_of::<Name>() + size_of::<MemEntry>() + 64;
