//! Where the value of an entry is: here, elsewhere in the log, or nowhere.

use strandline_wal::{Hlc, ShardId};

use super::bytes::TableBytes;
use super::entry::EntryKind;
use super::pointer::ValuePointer;

/// Where the bytes of a record's value stand in the log. The log's own checksums cover them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct LogPlace {
    /// The shard whose log it is: a cross-shard batch stands in the log of its lowest shard.
    pub shard: ShardId,
    /// First sequence of the segment.
    pub first_seq: u64,
    /// Where it begins in the segment.
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// The value of an entry that a cursor stands on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ValueSource<'a> {
    /// The value itself.
    Bytes(&'a [u8]),
    /// The value is behind this pointer.
    Pointer(ValuePointer),
    /// The value is in the log.
    Log(LogPlace),
    /// There is none: the name is deleted.
    Absent,
}

impl ValueSource<'_> {
    /// The kind of the entry that has this value.
    pub fn kind(&self) -> EntryKind {
        match self {
            ValueSource::Bytes(_) | ValueSource::Log(_) => EntryKind::Value,
            ValueSource::Pointer(_) => EntryKind::Pointer,
            ValueSource::Absent => EntryKind::Tombstone,
        }
    }
}

/// As [`ValueSource`], on its own feet.
#[derive(Clone, Debug)]
pub enum FoundValue {
    /// The value itself, still in the table's memory.
    Bytes(TableBytes),
    /// The value is behind this pointer.
    Pointer(ValuePointer),
    /// The value is in the log.
    Log(LogPlace),
    /// There is none: the name is deleted.
    Absent,
}

impl FoundValue {
    /// The same, borrowed.
    pub fn source(&self) -> ValueSource<'_> {
        match self {
            FoundValue::Bytes(bytes) => ValueSource::Bytes(bytes),
            FoundValue::Pointer(pointer) => ValueSource::Pointer(*pointer),
            FoundValue::Log(place) => ValueSource::Log(*place),
            FoundValue::Absent => ValueSource::Absent,
        }
    }
}

/// The newest version of a name that a lookup may see. A deleted name is found, with no value: only
/// so does the lookup stop here instead of asking the older tables.
#[derive(Clone, Debug)]
pub struct Found {
    /// The version.
    pub version: Hlc,
    /// Its value.
    pub value: FoundValue,
}
