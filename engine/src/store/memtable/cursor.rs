//! A cursor over all versions in a memtable that borrows nothing.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use strandline_wal::{Hlc, Result};

use super::names::NameAt;
use super::{MemEntry, Memtable};
use crate::table::{Cursor, EntryKind, Found, InternalKey, ValueSource};

/// Walks a memtable in both directions, for as long as it likes.
///
/// It takes entries in batches out of the index, so that it borrows nothing and pays for a search
/// once per batch. Batches begin small, for those who look at one entry, and grow.
pub struct MemtableCursor {
    memtable: Arc<Memtable>,
    /// Entries in the direction of the cursor.
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

    #[inline]
    fn row_key(&self, row: usize) -> Option<InternalKey<'_>> {
        let row = self.rows.get(row)?;
        let name = &self.names[row.name_at..row.name_at + row.name_len];
        Some(InternalKey {
            name,
            version: row.version,
        })
    }

    #[inline]
    fn row(&self) -> &Row {
        self.rows
            .get(self.at)
            .expect("the cursor stands on an entry")
    }

    /// Takes the batch that goes up from `from`: of its name the versions up to its version, none where
    /// that is `None`, and then of the names behind all.
    fn fill_forward(&mut self, from: Option<(&[u8], Option<Hlc>)>) {
        self.begin(false);
        let memtable = Arc::clone(&self.memtable);
        let start = from.map_or(Bound::Unbounded, |(name, _)| Bound::Included(name));
        memtable.walk(start, |name, at| {
            let newest = match from {
                Some((first, newest)) if first == name => newest,
                _ => Some(Hlc(u64::MAX)),
            };
            newest.map_or(ControlFlow::Continue(()), |newest| {
                self.take(name, at, Hlc(0), newest)
            })
        });
        self.end();
    }

    /// Takes the batch that goes down from `from`: of its name the versions from its version on, none
    /// where that is `None`, and then of the names before all.
    fn fill_backward(&mut self, from: Option<(&[u8], Option<Hlc>)>) {
        self.begin(true);
        let memtable = Arc::clone(&self.memtable);
        memtable.walk_back(from.map(|(name, _)| name), |name, at| {
            let oldest = match from {
                Some((first, oldest)) if first == name => oldest,
                _ => Some(Hlc(0)),
            };
            oldest.map_or(ControlFlow::Continue(()), |oldest| {
                self.take(name, at, oldest, Hlc(u64::MAX))
            })
        });
        self.end();
    }

    /// Takes the versions of a name between two, both included, in the direction of the cursor; breaks
    /// where the batch is full.
    fn take(&mut self, name: &[u8], at: NameAt, oldest: Hlc, newest: Hlc) -> ControlFlow<()> {
        if self.rows.len() >= self.batch_count {
            return ControlFlow::Break(());
        }
        let name_at = self.names.len();
        self.names.extend_from_slice(name);
        let row = |(version, entry)| Row {
            name_at,
            name_len: name.len(),
            version,
            entry,
        };
        let names = &self.memtable.names;
        let is_within = |(version, _): &(Hlc, MemEntry)| (oldest..=newest).contains(version);
        let before = self.rows.len();
        let versions = names.versions(at).filter(is_within).map(row);
        // A list of versions is walked from its end each time, so many of one name are taken at once.
        if self.is_backward {
            let mut versions: Vec<Row> = versions.collect();
            versions.reverse();
            self.rows
                .extend(versions.into_iter().take(VERSION_COUNT_MAX));
        } else {
            self.rows.extend(versions.take(VERSION_COUNT_MAX));
        }
        match self.rows.len() - before < VERSION_COUNT_MAX {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
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
        let (name, version) = (self.key().name.to_vec(), self.key().version.0);
        if is_back {
            let newer = version.checked_add(1).map(Hlc);
            self.fill_backward(Some((&name, newer)));
        } else {
            let older = version.checked_sub(1).map(Hlc);
            self.fill_forward(Some((&name, older)));
        }
    }
}

impl Cursor for MemtableCursor {
    fn seek(&mut self, key: InternalKey<'_>) {
        self.batch_count = BATCH_COUNT_MIN;
        self.fill_forward(Some((key.name, Some(key.version))));
    }

    fn seek_for_prev(&mut self, key: InternalKey<'_>) {
        self.batch_count = BATCH_COUNT_MIN;
        self.fill_backward(Some((key.name, Some(key.version))));
    }

    fn first(&mut self) {
        self.batch_count = BATCH_COUNT_MIN;
        self.fill_forward(None);
    }

    fn last(&mut self) {
        self.batch_count = BATCH_COUNT_MIN;
        self.fill_backward(None);
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

    fn kind(&self) -> EntryKind {
        self.row().entry.kind
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

/// Versions of one name that a batch takes, at most, beyond its rows.
const VERSION_COUNT_MAX: usize = 64 << 10;
