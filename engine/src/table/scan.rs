//! A cursor over one table.

use std::ops::ControlFlow;
use std::sync::Arc;

use strandline_wal::{Error, Result};

use super::chunk::Shape;
use super::cursor::{BackStep, Cursor, Step};
use super::damage::Damage;
use super::entry::{EntryKind, InternalKey};
use super::reader::{Place, STEP_COUNT_MAX, Stand, Table};
use super::source::{Keep, Source};
use super::value::{Found, ValueSource};

/// Walks a table in both directions. Stops at damage.
pub struct TableCursor {
    table: Arc<Table>,
    keep: Keep,
    at: Option<Standing>,
    error: Option<Error>,
}

impl TableCursor {
    pub(super) fn new(table: Arc<Table>, keep: Keep) -> TableCursor {
        TableCursor {
            table,
            keep,
            at: None,
            error: None,
        }
    }

    /// Stands where the answer says, or nowhere.
    fn settle(&mut self, found: Result<Option<Standing>>) {
        (self.at, self.error) = match found {
            Ok(at) => (at, None),
            Err(error) => (None, Some(error)),
        };
    }

    /// Stands on the newest version of a name where the point index leads there, which fetches fewer lines of
    /// memory than a search; `false` where that has to be done.
    fn jump(&mut self, name: &[u8]) -> bool {
        let Some((chunk, hold, record)) = (self.keep == Keep::Cached)
            .then(|| self.table.jump(name))
            .flatten()
        else {
            return false;
        };
        let source = &self.table.source;
        let shape = Shape::decode(source.bytes(&hold));
        let standing = shape.and_then(|shape| {
            Ok(Standing {
                chunk,
                ordinal: None,
                shape,
                stand: Stand::on(source, hold, record)?,
            })
        });
        let is_there = standing.is_ok();
        self.settle(Ok(standing.ok()));
        is_there
    }

    /// Stands on the first entry of a chunk.
    pub(super) fn begin_chunk(&mut self, chunk: u32) {
        let found = self.table.place(chunk, 0, self.keep);
        let found = found.and_then(|place| Standing::on(&self.table, place));
        self.settle(found.map(Some));
    }

    /// Moves to the next entry of the chunk; `false`, and nowhere, where there is none.
    pub(super) fn next_in_chunk(&mut self) -> bool {
        let Some(at) = &mut self.at else { return false };
        let chunk = at.chunk;
        match at.step(&self.table.source) {
            Ok(true) => true,
            Ok(false) => {
                self.at = None;
                false
            }
            Err(damage) => {
                self.settle(Err(self.table.error_in(chunk, damage)));
                false
            }
        }
    }

    #[inline]
    fn standing(&self) -> &Standing {
        self.at.as_ref().expect("the cursor stands on an entry")
    }
}

impl Cursor for TableCursor {
    fn seek(&mut self, key: InternalKey<'_>) {
        let may_be_newest = key != InternalKey::last_of(key.name);
        if may_be_newest
            && self.jump(key.name)
            && self.standing().stand.record.version <= key.version
        {
            return;
        }
        let found = match self.table.seek_place(key, self.keep) {
            Ok(Some(place)) => Standing::on(&self.table, place).map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        self.settle(found);
    }

    fn seek_for_prev(&mut self, key: InternalKey<'_>) {
        if key == InternalKey::last_of(key.name) && self.jump(key.name) {
            for _ in 0..STEP_COUNT_MAX {
                match self
                    .at
                    .as_mut()
                    .map(|at| at.step_in_name(&self.table.source))
                {
                    Some(Ok(InName::Older)) => {}
                    Some(Ok(InName::Oldest)) => return,
                    _ => break,
                }
            }
        }
        self.seek(key);
        if self.error.is_some() {
            return;
        }
        match &self.at {
            None => self.last(),
            Some(at) if at.stand.key(&self.table.source) > key => self.prev(),
            Some(_) => {}
        }
    }

    fn first(&mut self) {
        self.begin_chunk(0);
    }

    fn last(&mut self) {
        let found = Standing::on_last(&self.table, self.table.chunks.count() - 1, self.keep);
        self.settle(found.map(Some));
    }

    #[inline]
    fn next(&mut self) {
        let Some(at) = &mut self.at else { return };
        let chunk = at.chunk;
        match at.step(&self.table.source) {
            Ok(true) => {}
            Ok(false) if chunk + 1 == self.table.chunks.count() => self.at = None,
            Ok(false) => self.begin_chunk(chunk + 1),
            Err(damage) => self.settle(Err(self.table.error_in(chunk, damage))),
        }
    }

    fn prev(&mut self) {
        let Some(at) = &mut self.at else { return };
        let chunk = at.chunk;
        match at.step_back(&self.table.source) {
            Ok(true) => {}
            Ok(false) if chunk == 0 => self.at = None,
            Ok(false) => {
                let found = Standing::on_last(&self.table, chunk - 1, self.keep);
                self.settle(found.map(Some));
            }
            Err(damage) => self.settle(Err(self.table.error_in(chunk, damage))),
        }
    }

    #[inline]
    fn is_valid(&self) -> bool {
        self.at.is_some()
    }

    #[inline]
    fn key(&self) -> InternalKey<'_> {
        self.standing().stand.key(&self.table.source)
    }

    #[inline]
    fn value(&self) -> ValueSource<'_> {
        self.standing().stand.value(&self.table.source)
    }

    #[inline]
    fn kind(&self) -> EntryKind {
        self.standing().stand.record.kind
    }

    #[inline]
    fn found(&self) -> Found {
        self.standing().stand.found(&self.table.source)
    }

    fn status(&self) -> Result<()> {
        self.error.clone().map_or(Ok(()), Err)
    }

    fn visit(&mut self, see: &mut impl FnMut(Step<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut last: Option<Vec<u8>> = None;
        while let Some(at) = &mut self.at {
            let chunk = at.chunk;
            let source = &self.table.source;
            let repeats = last.as_deref() == Some(at.stand.key(source).name);
            match at.visit(source, repeats, see) {
                Ok(flow) => {
                    flow?;
                    // The last one of the chunk was shown.
                    last = Some(at.stand.key(source).name.to_vec());
                    self.next();
                }
                Err(damage) => self.settle(Err(self.table.error_in(chunk, damage))),
            }
        }
        ControlFlow::Continue(())
    }

    fn visit_back(
        &mut self,
        see: &mut impl FnMut(BackStep<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some(at) = &mut self.at else {
            return ControlFlow::Continue(());
        };
        let chunk = at.chunk;
        at.visit_back(&self.table.source, see)
            .unwrap_or_else(|damage| {
                self.settle(Err(self.table.error_in(chunk, damage)));
                ControlFlow::Continue(())
            })
    }
}

/// Where a cursor stands. Invariant: `stand` is the record `ordinal` of `chunk`.
struct Standing {
    chunk: u32,
    /// Found out when it is needed: steps forward go from record to record.
    ordinal: Option<u32>,
    shape: Shape,
    stand: Stand,
}

/// What follows a record.
enum InName {
    /// An older version of its name, and that was stepped to.
    Older,
    /// Another name.
    Oldest,
    /// That is in another chunk.
    Elsewhere,
}

impl Standing {
    fn on(table: &Table, place: Place) -> Result<Standing> {
        let Place {
            chunk,
            ordinal,
            hold,
            shape,
        } = place;
        shape
            .record(table.source.bytes(&hold), ordinal)
            .and_then(|record| Stand::on(&table.source, hold, record))
            .map(|stand| Standing {
                chunk,
                ordinal: Some(ordinal),
                shape,
                stand,
            })
            .map_err(|damage| table.error_in(chunk, damage))
    }

    fn on_last(table: &Table, chunk: u32, keep: Keep) -> Result<Standing> {
        let mut place = table.place(chunk, 0, keep)?;
        place.ordinal = place.shape.record_count - 1;
        Standing::on(table, place)
    }

    /// Moves to the next record of the chunk; `false` where this is the last.
    #[inline]
    fn step(&mut self, source: &Source) -> Result<bool, Damage> {
        let end = self.stand.record.end();
        if end >= self.shape.records_end() {
            return Ok(false);
        }
        let next = self.shape.record_at(source.bytes(&self.stand.hold), end)?;
        self.stand.move_to(source, next)?;
        self.ordinal = self.ordinal.map(|ordinal| ordinal + 1);
        Ok(true)
    }

    /// Moves to the next record of the chunk where that is of the same name.
    fn step_in_name(&mut self, source: &Source) -> Result<InName, Damage> {
        let (bytes, record) = (source.bytes(&self.stand.hold), self.stand.record);
        if record.end() >= self.shape.records_end() {
            return Ok(InName::Elsewhere);
        }
        let next = self.shape.record_at(bytes, record.end())?;
        if next.name(bytes) != record.name(bytes) {
            return Ok(InName::Oldest);
        }
        self.stand.move_to(source, next)?;
        Ok(InName::Older)
    }

    /// The ordinal of the record in the chunk.
    fn ordinal(&self, source: &Source) -> Result<u32, Damage> {
        match self.ordinal {
            Some(ordinal) => Ok(ordinal),
            None => {
                let bytes = source.bytes(&self.stand.hold);
                self.shape.ordinal_of(bytes, self.stand.record.at())
            }
        }
    }

    /// Moves to the record before in the chunk; `false` where this is the first.
    fn step_back(&mut self, source: &Source) -> Result<bool, Damage> {
        let Some(ordinal) = self.ordinal(source)?.checked_sub(1) else {
            return Ok(false);
        };
        let bytes = source.bytes(&self.stand.hold);
        let before = self.shape.record(bytes, ordinal)?;
        self.stand.move_to(source, before)?;
        self.ordinal = Some(ordinal);
        Ok(true)
    }

    /// Shows this record and those behind it in the chunk, and stands on the last one shown. `repeats`
    /// tells whether this one has the name of the one that was shown before.
    fn visit(
        &mut self,
        source: &Source,
        mut repeats: bool,
        see: &mut impl FnMut(Step<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Damage> {
        let bytes = source.bytes(&self.stand.hold);
        let shape = self.shape;
        let mut record = self.stand.record;
        let flow = loop {
            let key = record.key(bytes);
            let value = record.value_source(bytes)?;
            let flow = see(Step {
                key,
                value,
                repeats,
            });
            if flow.is_break() || record.end() >= shape.records_end() {
                break flow;
            }
            record = shape.record_at(bytes, record.end())?;
            repeats = is_same(record.name(bytes), key.name);
        };
        self.ordinal = None;
        self.stand.move_to(source, record)?;
        Ok(flow)
    }

    /// Shows this record and those before it in the chunk, but for the first, on which it ends.
    fn visit_back(
        &mut self,
        source: &Source,
        see: &mut impl FnMut(BackStep<'_>) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Damage> {
        let bytes = source.bytes(&self.stand.hold);
        let mut record = self.stand.record;
        let mut flow = ControlFlow::Continue(());
        let mut at = self.ordinal(source)?;
        while let Some(ordinal) = at.checked_sub(1) {
            let before = self.shape.record(bytes, ordinal)?;
            flow = see(BackStep {
                key: record.key(bytes),
                value: record.value_source(bytes)?,
                before: before.key(bytes),
            });
            if flow.is_break() {
                break;
            }
            record = before;
            at = ordinal;
        }
        self.ordinal = Some(at);
        self.stand.move_to(source, record)?;
        Ok(flow)
    }
}

/// Whether two names are the same. Neighbours differ at their ends, as a rule.
#[inline]
fn is_same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.last_chunk::<8>() == other.last_chunk() && one == other
}
