//! A cursor over a memtable that borrows nothing.

use std::ops::Bound;
use std::sync::Arc;

use strandline_wal::{Hlc, Result};

use super::{MemEntry, Memtable, Seat};
use crate::table::{Cursor, Found, InternalKey, ValueSource};

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
    pub(super) fn new(memtable: Arc<Memtable>) -> MemtableCursor {
        MemtableCursor {
            memtable,
            rows: Vec::new(),
            names: Vec::new(),
            at: 0,
            is_backward: false,
            batch_count: BATCH_COUNT_MIN,
        }
    }

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

/// Rows of the first batch of a cursor.
const BATCH_COUNT_MIN: usize = 4;

/// Rows of any batch of a cursor.
const BATCH_COUNT_MAX: usize = 64;
