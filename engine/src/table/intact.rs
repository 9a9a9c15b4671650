//! Reads what is left of a damaged table: every intact chunk, and which names the others may hold.

use std::ops::Bound;
use std::sync::Arc;

use strandline_wal::{Error, Hlc, Result};

use super::cursor::Cursor;
use super::entry::InternalKey;
use super::reader::Table;
use super::scan::TableCursor;
use super::source::Keep;

/// A chunk that cannot be read.
#[derive(Clone, Debug)]
pub struct LostChunk {
    /// Which one it is.
    pub chunk: u32,
    /// No name in it is below.
    pub from: Vec<u8>,
    /// No name in it is above.
    pub to: Bound<Vec<u8>>,
    /// What is wrong with it.
    pub error: Error,
}

impl Table {
    /// The chunks that cannot be read. Reads all of them.
    pub fn lost_chunks(&self) -> Vec<LostChunk> {
        let lost = |chunk| {
            let error = self.place(chunk, 0, Keep::Once).err()?;
            let to = match self.chunk_start(chunk + 1) {
                None => Bound::Unbounded,
                // Its name may have newer versions in the chunk before.
                Some(next) if next.version != Hlc::MAX => Bound::Included(next.name.to_vec()),
                Some(next) => Bound::Excluded(next.name.to_vec()),
            };
            let from = self.chunk_start(chunk).expect("the chunk exists");
            Some(LostChunk {
                chunk,
                from: from.name.to_vec(),
                to,
                error,
            })
        };
        (0..self.chunks.count()).filter_map(lost).collect()
    }

    /// The fence before a chunk; `None` behind the last one.
    fn chunk_start(&self, chunk: u32) -> Option<InternalKey<'_>> {
        let is_there = chunk < self.chunks.count();
        is_there.then(|| self.fences.key(self.fences.of_chunk(chunk).start))
    }
}

/// Walks the entries of the intact chunks, from the first to the last.
///
/// Which chunks are lost is known before: what can be read at one time and not at another is an error, and
/// not another loss that nobody was told of.
pub struct IntactCursor {
    table: Arc<Table>,
    lost: Vec<u32>,
    cursor: TableCursor,
    /// The next chunk that was not begun.
    next_chunk: u32,
}

impl IntactCursor {
    /// Stands on the first entry of the first chunk that is not among the lost ones.
    pub fn new(table: &Arc<Table>, lost: &[LostChunk]) -> IntactCursor {
        let mut cursor = IntactCursor {
            table: Arc::clone(table),
            lost: lost.iter().map(|lost| lost.chunk).collect(),
            cursor: table.cursor_once(),
            next_chunk: 0,
        };
        cursor.begin();
        cursor
    }

    /// Moves to the first intact chunk from `next_chunk` on.
    fn begin(&mut self) {
        while self.next_chunk < self.table.chunks.count() {
            let chunk = self.next_chunk;
            self.next_chunk += 1;
            if !self.lost.contains(&chunk) {
                self.cursor.begin_chunk(chunk);
                return;
            }
        }
    }

    /// The entry that it stands on; `None` behind the last, and where a chunk cannot be read.
    pub fn entry(&self) -> Option<&TableCursor> {
        self.cursor.is_valid().then_some(&self.cursor)
    }

    /// Moves on.
    pub fn advance(&mut self) {
        if !self.cursor.next_in_chunk() && self.status().is_ok() {
            self.begin();
        }
    }

    /// What stopped it, where that was not the end.
    ///
    /// # Errors
    /// That of a chunk that could be read before.
    pub fn status(&self) -> Result<()> {
        self.cursor.status()
    }
}
