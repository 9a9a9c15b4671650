//! Tables: immutable sorted files of (name, version) entries, found by hash or by order.
//!
//! A table file is a header, then data chunks of records in order, then typed sections (indexes and
//! properties), then the directory of the sections, then a footer:
//!
//! | Part      | Home of its layout | Found through                    |
//! |-----------|--------------------|----------------------------------|
//! | header    | `header`           | offset 0                         |
//! | chunk     | `chunk`, `record`  | the chunk section                |
//! | sections  | see `directory`    | the directory                    |
//! | directory | `directory`        | the footer                       |
//! | footer    | `footer`           | the end of the file              |
//!
//! Every byte of the file belongs to exactly one of these or to zeros between them, and each is
//! covered by a checksum or checked to be zero. Checksums bind the place: a chunk that is intact but
//! stands at another offset, in another table or in another database is refused. Nothing read from a
//! file causes a panic; what is wrong comes back as an error that names the file and the offset.
//!
//! A chunk is checked before its first record is used: checksum, record bounds, order, and its
//! agreement with the fences around it. What has passed is sorted and complete, so cursors and
//! binary searches need no checks of their own for that.

mod builder;
mod bytes;
mod cache;
mod chunk;
mod chunks;
mod cursor;
mod damage;
mod directory;
mod entry;
mod fences;
mod footer;
mod header;
mod intact;
mod layout;
mod meta;
mod open;
mod point_index;
mod pointer;
mod properties;
mod reader;
mod record;
mod relineage;
mod scan;
mod source;
mod value;
mod verify;

#[cfg(test)]
mod tests;

pub use builder::{TableBuilder, TableOptions};
pub use bytes::TableBytes;
pub use cache::BlockCache;
pub use cursor::{BackStep, Cursor, Step, visit_each};
pub use damage::Damage;
pub use entry::{Entry, EntryKind, InternalKey, NAME_LEN_MAX, VALUE_LEN_MAX};
pub use fences::head_of;
pub use header::Identity;
pub use intact::{IntactCursor, LostChunk};
pub use meta::TableMeta;
pub use pointer::{POINTER_LEN, PointerSource, ValuePointer};
pub use properties::PointerFile;
pub use reader::{Hit, OpenOptions, Table};
pub use relineage::relineage;
pub use scan::TableCursor;
pub use value::{Found, FoundValue, LogPlace, ValueSource};
