//! Walking names in order: one cursor over a run's tables, and the merge of all that a view holds.

use std::ops::{ControlFlow, Deref};
use std::sync::Arc;

use strandline_wal::{Hlc, Result};

use super::batch::NameBounds;
use super::memtable::NewestCursor;
use super::merge::{Merge, See, VisibleIter};
use super::view::{MemLevel, Run, Value, View};
use crate::table::{
    BackStep, Cursor, EntryKind, Found, FoundValue, InternalKey, Step, TableCursor, ValueSource,
};

/// A cursor over the tables of a run, opened one at a time.
pub(crate) struct RunCursor {
    run: Arc<Run>,
    /// The table that the cursor is in.
    at: usize,
    cursor: Option<TableCursor>,
    /// Whether blocks are kept in the cache.
    once: bool,
}

impl RunCursor {
    pub fn new(run: Arc<Run>, once: bool) -> RunCursor {
        RunCursor {
            run,
            at: 0,
            cursor: None,
            once,
        }
    }

    /// Enters a table; beyond either end the cursor stands nowhere.
    fn enter(&mut self, at: usize) -> Option<&mut TableCursor> {
        let table = self.run.tables.get(at)?;
        if self.at != at || self.cursor.is_none() {
            self.cursor = Some(if self.once {
                table.cursor_once()
            } else {
                table.cursor()
            });
            self.at = at;
        }
        self.cursor.as_mut()
    }

    fn leave(&mut self) {
        self.cursor = None;
    }

    /// Whether the cursor is in a table and at its clean end: the next table goes on.
    #[inline]
    fn is_at_end(&self) -> bool {
        self.cursor
            .as_ref()
            .is_some_and(|cursor| !cursor.is_valid() && cursor.status().is_ok())
    }

    #[inline]
    fn skip_ahead(&mut self) {
        while self.is_at_end() {
            match self.enter(self.at + 1) {
                Some(cursor) => cursor.first(),
                None => self.leave(),
            }
        }
    }

    fn skip_back(&mut self) {
        while self.is_at_end() {
            match self.at.checked_sub(1).and_then(|at| self.enter(at)) {
                Some(cursor) => cursor.last(),
                None => self.leave(),
            }
        }
    }

    #[inline]
    fn standing(&self) -> &TableCursor {
        self.cursor.as_ref().expect("the cursor stands on an entry")
    }
}

impl Cursor for RunCursor {
    fn seek(&mut self, key: InternalKey<'_>) {
        let at = self
            .run
            .tables
            .partition_point(|table| *table.meta().name_max < *key.name);
        match self.enter(at) {
            Some(cursor) => cursor.seek(key),
            None => self.leave(),
        }
        self.skip_ahead();
    }

    fn seek_for_prev(&mut self, key: InternalKey<'_>) {
        let after = self
            .run
            .tables
            .partition_point(|table| *table.meta().name_min <= *key.name);
        match after.checked_sub(1).and_then(|at| self.enter(at)) {
            Some(cursor) => cursor.seek_for_prev(key),
            None => self.leave(),
        }
        self.skip_back();
    }

    fn first(&mut self) {
        match self.enter(0) {
            Some(cursor) => cursor.first(),
            None => self.leave(),
        }
        self.skip_ahead();
    }

    fn last(&mut self) {
        match self
            .run
            .tables
            .len()
            .checked_sub(1)
            .and_then(|at| self.enter(at))
        {
            Some(cursor) => cursor.last(),
            None => self.leave(),
        }
        self.skip_back();
    }

    #[inline]
    fn next(&mut self) {
        if let Some(cursor) = &mut self.cursor {
            cursor.next();
            self.skip_ahead();
        }
    }

    fn prev(&mut self) {
        if let Some(cursor) = &mut self.cursor {
            cursor.prev();
            self.skip_back();
        }
    }

    #[inline]
    fn is_valid(&self) -> bool {
        self.cursor.as_ref().is_some_and(Cursor::is_valid)
    }

    #[inline]
    fn key(&self) -> InternalKey<'_> {
        self.standing().key()
    }

    #[inline]
    fn value(&self) -> ValueSource<'_> {
        self.standing().value()
    }

    #[inline]
    fn kind(&self) -> EntryKind {
        self.standing().kind()
    }

    #[inline]
    fn found(&self) -> Found {
        self.standing().found()
    }

    fn status(&self) -> Result<()> {
        self.cursor.as_ref().map_or(Ok(()), Cursor::status)
    }

    fn visit(&mut self, see: &mut impl FnMut(Step<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        while let Some(cursor) = &mut self.cursor
            && cursor.is_valid()
        {
            cursor.visit(see)?;
            self.skip_ahead();
        }
        ControlFlow::Continue(())
    }

    fn visit_back(
        &mut self,
        see: &mut impl FnMut(BackStep<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some(cursor) = &mut self.cursor else {
            return ControlFlow::Continue(());
        };
        cursor.visit_back(see)
    }
}

/// A cursor over one level of a view.
#[allow(
    clippy::large_enum_variant,
    reason = "most are runs, and a scan of tables alone is to allocate little"
)]
pub(crate) enum LevelCursor {
    Memtable(Box<NewestCursor<Arc<MemLevel>>>),
    Run(RunCursor),
}

macro_rules! each {
    ($cursor:expr, $($call:tt)*) => {
        match $cursor {
            LevelCursor::Memtable(cursor) => cursor.$($call)*,
            LevelCursor::Run(cursor) => cursor.$($call)*,
        }
    };
}

impl Cursor for LevelCursor {
    #[inline]
    fn seek(&mut self, key: InternalKey<'_>) {
        each!(self, seek(key))
    }

    #[inline]
    fn seek_for_prev(&mut self, key: InternalKey<'_>) {
        each!(self, seek_for_prev(key))
    }

    #[inline]
    fn first(&mut self) {
        each!(self, first())
    }

    #[inline]
    fn last(&mut self) {
        each!(self, last())
    }

    #[inline]
    fn next(&mut self) {
        each!(self, next())
    }

    #[inline]
    fn prev(&mut self) {
        each!(self, prev())
    }

    #[inline]
    fn is_valid(&self) -> bool {
        each!(self, is_valid())
    }

    #[inline]
    fn key(&self) -> InternalKey<'_> {
        each!(self, key())
    }

    #[inline]
    fn value(&self) -> ValueSource<'_> {
        each!(self, value())
    }

    #[inline]
    fn kind(&self) -> EntryKind {
        each!(self, kind())
    }

    #[inline]
    fn found(&self) -> Found {
        each!(self, found())
    }

    #[inline]
    fn status(&self) -> Result<()> {
        each!(self, status())
    }

    fn visit(&mut self, see: &mut impl FnMut(Step<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        each!(self, visit(see))
    }

    fn visit_back(
        &mut self,
        see: &mut impl FnMut(BackStep<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        each!(self, visit_back(see))
    }
}

/// Cursors over some runs of a view, and over its memtables, newest first: over those that hold anything
/// that is visible at `at`.
pub(crate) fn cursors(view: &View, runs: &[Arc<Run>], at: Hlc) -> Vec<LevelCursor> {
    let memtables = view.memtables().filter(|level| level.version_min() <= at);
    let memtables = memtables.map(|level| NewestCursor::new(Arc::clone(level), at));
    let memtables = memtables.map(|cursor| LevelCursor::Memtable(Box::new(cursor)));
    let runs = runs.iter().filter(|run| run.version_min() <= at);
    let runs = runs.map(|run| LevelCursor::Run(RunCursor::new(Arc::clone(run), false)));
    memtables.chain(runs).collect()
}

/// What is visible of a range of names at one time.
pub(crate) struct Scan<V = Arc<View>> {
    view: V,
    names: VisibleIter<LevelCursor>,
}

impl<V: Deref<Target = View>> Scan<V> {
    pub fn new(view: V, at: Hlc, bounds: NameBounds) -> Scan<V> {
        let sources = Merge::new(cursors(&view, &view.runs, at));
        Scan {
            names: VisibleIter::new(sources, at, bounds),
            view,
        }
    }

    pub fn names(&mut self) -> &mut VisibleIter<LevelCursor> {
        &mut self.names
    }

    pub fn is_valid(&self) -> bool {
        self.names.is_valid()
    }

    pub fn name(&self) -> &[u8] {
        self.names.name()
    }

    /// The value that the scan stands on.
    pub fn value(&self) -> Result<Value> {
        let found = self.names.found();
        Ok(self
            .view
            .value(found.value)?
            .expect("a scan shows no deleted names"))
    }

    /// Shows all names of the range and their values, ascending, until `see` breaks.
    pub fn visit(mut self, see: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> Result<()> {
        let mut values = Values::new(&self.view, see);
        self.names.visit(&mut values);
        values.failed.and_then(|()| self.names.status())
    }

    /// As [`Scan::visit`], descending.
    pub fn visit_back(mut self, see: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> Result<()> {
        let mut values = Values::new(&self.view, see);
        self.names
            .visit_back(|name, source| values.see(name, source));
        values.failed.and_then(|()| self.names.status())
    }

    /// What stopped the scan, where that was not the end.
    pub fn status(&self) -> Result<()> {
        self.names.status()
    }
}

/// Shows names with their values, wherever those stand.
struct Values<'v, F> {
    view: &'v View,
    failed: Result<()>,
    see: F,
}

impl<F: FnMut(&[u8], &[u8]) -> ControlFlow<()>> Values<'_, F> {
    fn new(view: &View, see: F) -> Values<'_, F> {
        Values {
            view,
            failed: Ok(()),
            see,
        }
    }

    /// A value that does not stand beside its name.
    fn see_elsewhere(&mut self, name: &[u8], source: ValueSource<'_>) -> ControlFlow<()> {
        let found = match source {
            ValueSource::Bytes(_) | ValueSource::Absent => unreachable!("it has a place"),
            ValueSource::Log(place) => FoundValue::Log(place),
            ValueSource::Pointer(pointer) => FoundValue::Pointer(pointer),
        };
        match self.view.value(found) {
            Ok(value) => (self.see)(name, &value.expect("a scan shows no deleted names")),
            Err(error) => {
                self.failed = Err(error);
                ControlFlow::Break(())
            }
        }
    }
}

impl<F: FnMut(&[u8], &[u8]) -> ControlFlow<()>> See for Values<'_, F> {
    #[inline(always)]
    fn see(&mut self, name: &[u8], source: ValueSource<'_>) -> ControlFlow<()> {
        match source {
            ValueSource::Bytes(bytes) => (self.see)(name, bytes),
            source => self.see_elsewhere(name, source),
        }
    }
}
