//! What a table holds: entries, their kinds, and the order they stand in.

use std::cmp::Ordering;

use strandline_wal::Hlc;

/// Longest name: a keyspace number of 4 bytes and a key of at most 65,535.
pub const NAME_LEN_MAX: usize = 4 + 65_535;

/// Longest value that stands in a table itself. It is the largest segment of a log, so that no value
/// that was ever logged is refused here.
pub const VALUE_LEN_MAX: usize = 64 << 20;

/// Where an entry stands: names ascending, and of one name the newest version first.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct InternalKey<'a> {
    /// Keyspace and key, opaque here.
    pub name: &'a [u8],
    /// The commit timestamp of its batch.
    pub version: Hlc,
}

impl<'a> InternalKey<'a> {
    /// Where the entries of `name` begin.
    pub fn first_of(name: &'a [u8]) -> InternalKey<'a> {
        InternalKey {
            name,
            version: Hlc::MAX,
        }
    }

    /// Where the entries of `name` end.
    pub fn last_of(name: &'a [u8]) -> InternalKey<'a> {
        InternalKey {
            name,
            version: Hlc(0),
        }
    }
}

impl Ord for InternalKey<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.name
            .cmp(other.name)
            .then_with(|| other.version.cmp(&self.version))
    }
}

impl PartialOrd for InternalKey<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What an entry says about its name. The numbers are part of the table format.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum EntryKind {
    /// The value stands in the entry.
    Value = 1,
    /// The value stands elsewhere; the entry holds a [`ValuePointer`](super::ValuePointer).
    Pointer = 2,
    /// The name was deleted.
    Tombstone = 3,
}

/// Reserved for a deletion of a range of names.
const RANGE_TOMBSTONE: u8 = 4;

/// Reserved for an operand that is merged with the versions below it.
const MERGE_OPERAND: u8 = 5;

impl EntryKind {
    /// The kind of that number.
    pub fn from_number(number: u8) -> Option<EntryKind> {
        match number {
            1 => Some(EntryKind::Value),
            2 => Some(EntryKind::Pointer),
            3 => Some(EntryKind::Tombstone),
            _ => None,
        }
    }

    /// Whether the number is none of ours yet, but known to be given to a later version.
    pub(super) fn is_reserved(number: u8) -> bool {
        matches!(number, RANGE_TOMBSTONE | MERGE_OPERAND)
    }
}

/// One version of one name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry<'a> {
    /// Keyspace and key, opaque here.
    pub name: &'a [u8],
    /// The commit timestamp of its batch.
    pub version: Hlc,
    /// What the entry says.
    pub kind: EntryKind,
    /// The value, the encoded pointer to it, or nothing, by kind.
    pub value: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Where the entry stands.
    pub fn key(&self) -> InternalKey<'a> {
        InternalKey {
            name: self.name,
            version: self.version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_ascend_and_versions_descend() {
        let key = |name: &'static str, version| InternalKey {
            name: name.as_bytes(),
            version: Hlc(version),
        };
        assert!(key("a", 1) < key("b", 9));
        assert!(key("a", 9) < key("a", 1));
        assert!(key("a", 1) < key("aa", 9));
        assert!(InternalKey::first_of(b"a") <= key("a", u64::MAX));
        assert!(InternalKey::last_of(b"a") >= key("a", 0));
    }

    #[test]
    fn every_kind_is_the_kind_of_its_number() {
        for number in 0..=u8::MAX {
            if let Some(kind) = EntryKind::from_number(number) {
                assert_eq!(kind as u8, number);
                assert!(!EntryKind::is_reserved(number));
            }
        }
    }
}
