//! A cursor over a memtable that borrows nothing.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use artmap::{AsBytes, VersionedEntryRef};
use strandline_wal::{Hlc, Result};

use super::{MemEntry, Memtable, Name};
use crate::table::{Cursor, EntryKind, Found, InternalKey, Step, ValueSource, visit_each};

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
    /// Of each name only the newest version that is not newer than this is shown; all without it.
    limit: Option<Hlc>,
}

/// An entry that was taken out.
struct Row {
    name_at: usize,
    name_len: usize,
    version: Hlc,
    entry: MemEntry,
}

impl MemtableCursor {
    pub(super) fn new(memtable: Arc<Memtable>, limit: Option<Hlc>) -> MemtableCursor {
        MemtableCursor {
            memtable,
            limit,
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
        for entry in memtable.entries.range::<_, [u8]>((start, Bound::Unbounded)) {
            let newest = match from {
                Some((name, newest)) if entry.key().as_bytes() == name => newest,
                _ => Some(Hlc(u64::MAX)),
            };
            if let Some(newest) = newest
                && !self.take(&entry, Hlc(0), newest)
            {
                break;
            }
        }
        self.end();
    }

    /// Takes the batch that goes down from `from`: of its name the versions from its version on, none
    /// where that is `None`, and then of the names before all.
    fn fill_backward(&mut self, from: Option<(&[u8], Option<Hlc>)>) {
        self.begin(true);
        let memtable = Arc::clone(&self.memtable);
        let end = from.map_or(Bound::Unbounded, |(name, _)| Bound::Included(name));
        let names = memtable.entries.range::<_, [u8]>((Bound::Unbounded, end));
        for entry in names.rev() {
            let oldest = match from {
                Some((name, oldest)) if entry.key().as_bytes() == name => oldest,
                _ => Some(Hlc(0)),
            };
            if let Some(oldest) = oldest
                && !self.take(&entry, oldest, Hlc(u64::MAX))
            {
                break;
            }
        }
        self.end();
    }

    /// Takes the versions of a name between two, both included, in the direction of the cursor; `false`
    /// where the batch is full.
    fn take(
        &mut self,
        entry: &VersionedEntryRef<'_, Name, MemEntry>,
        oldest: Hlc,
        newest: Hlc,
    ) -> bool {
        if self.rows.len() >= self.batch_count {
            return false;
        }
        let is_within = |version: u64| (oldest.0..=newest.0).contains(&version);
        let name = entry.key().as_bytes();
        let (head, found) = (entry.version(), *entry.value());
        let has_older =
            self.limit.is_none() && head > 0 && entry.get_version_le(head - 1).is_some();
        let name_at = self.names.len();
        self.names.extend_from_slice(name);
        let name_len = name.len();
        let row = |version: u64, entry: MemEntry| Row {
            name_at,
            name_len,
            version: Hlc(version),
            entry,
        };
        if !has_older {
            let seen = self
                .limit
                .map_or(Some((head, found)), |at| seen_of(entry, at));
            let seen = seen.filter(|(version, _)| is_within(*version));
            self.rows
                .extend(seen.map(|(version, entry)| row(version, entry)));
            return true;
        }
        let mut versions = self.memtable.entries.get_all_versions(name);
        if self.is_backward {
            versions.reverse();
        }
        let versions = versions
            .into_iter()
            .filter(|(version, _)| is_within(*version))
            .filter_map(|(version, entry)| Some(row(version, entry?)));
        // A list of versions is walked from its end each time, so many of one name are taken at once.
        let before = self.rows.len();
        self.rows.extend(versions.take(VERSION_COUNT_MAX));
        self.rows.len() - before < VERSION_COUNT_MAX
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

    /// Takes nothing out of the index: where each name has one entry to show, it is shown where it stands.
    fn visit(&mut self, see: &mut impl FnMut(Step<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        let Some(at) = self.limit else {
            return visit_each(self, see);
        };
        let memtable = Arc::clone(&self.memtable);
        let mut from = self
            .is_valid()
            .then(|| Bound::Included(self.key().name.to_vec()));
        while let Some(start) = from.take() {
            let start = start.as_ref().map(Vec::as_slice);
            let entries = memtable.entries.range::<_, [u8]>((start, Bound::Unbounded));
            // Nothing that the index gives up is freed while it is walked, by anyone.
            for (count, entry) in (1..).zip(entries) {
                let name = entry.key().as_bytes();
                if let Some((version, entry)) = seen_of(&entry, at) {
                    let key = InternalKey {
                        name,
                        version: Hlc(version),
                    };
                    see(Step {
                        key,
                        value: entry.source(),
                        repeats: false,
                    })?;
                }
                if count == VISIT_COUNT_MAX {
                    from = Some(Bound::Excluded(name.to_vec()));
                    break;
                }
            }
        }
        ControlFlow::Continue(())
    }
}

/// The newest version that is not newer than `at`.
fn seen_of(entry: &VersionedEntryRef<'_, Name, MemEntry>, at: Hlc) -> Option<(u64, MemEntry)> {
    match entry.version() <= at.0 {
        true => Some((entry.version(), *entry.value())),
        false => entry
            .get_version_le(at.0)
            .map(|(version, entry)| (version, *entry)),
    }
}

/// Entries that are shown before the index is entered anew.
const VISIT_COUNT_MAX: usize = 1 << 10;

/// Rows of the first batch of a cursor.
const BATCH_COUNT_MIN: usize = 4;

/// Rows of any batch of a cursor.
const BATCH_COUNT_MAX: usize = 64;

/// Versions of one name that a batch takes, at most, beyond its rows.
const VERSION_COUNT_MAX: usize = 64 << 10;
