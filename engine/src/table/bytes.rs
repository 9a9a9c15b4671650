//! Bytes of a table that outlive the call that found them, without a copy.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use strandline_wal::io::Map;

/// A part of a table's memory. Cheap to clone; the memory lives until the last clone is dropped.
#[derive(Clone)]
pub struct TableBytes {
    owner: Owner,
    // Invariant: lies within the owner, whose length never changes.
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Mapped(Map),
    Read(Arc<[u8]>),
}

impl TableBytes {
    /// Bytes of a map, or `None` where it is not that long.
    pub(super) fn mapped(map: &Map, range: Range<usize>) -> Option<TableBytes> {
        map.get(range.clone())?;
        Some(TableBytes {
            owner: Owner::Mapped(map.clone()),
            range,
        })
    }

    /// Bytes that were read, or `None` where they are not that long.
    pub(super) fn read(bytes: &Arc<[u8]>, range: Range<usize>) -> Option<TableBytes> {
        bytes.get(range.clone())?;
        Some(TableBytes {
            owner: Owner::Read(Arc::clone(bytes)),
            range,
        })
    }

    /// All of these bytes.
    pub(super) fn owned(bytes: Vec<u8>) -> TableBytes {
        let range = 0..bytes.len();
        TableBytes {
            owner: Owner::Read(bytes.into()),
            range,
        }
    }
}

impl Deref for TableBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.owner {
            Owner::Mapped(map) => &map[self.range.clone()],
            Owner::Read(bytes) => &bytes[self.range.clone()],
        }
    }
}

impl AsRef<[u8]> for TableBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for TableBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TableBytes({} bytes)", self.len())
    }
}
