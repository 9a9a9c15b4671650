//! The one way to walk entries in order, whatever holds them.

use std::ops::ControlFlow;

use strandline_wal::Result;

use super::entry::{EntryKind, InternalKey};
use super::value::{Found, ValueSource};

/// An entry on the way on.
pub struct Step<'a> {
    /// Where it stands.
    pub key: InternalKey<'a>,
    /// Its value.
    pub value: ValueSource<'a>,
    /// Whether the entry that was shown before it is an other version of the same name.
    pub repeats: bool,
}

/// An entry on the way back.
pub struct BackStep<'a> {
    /// Where it stands.
    pub key: InternalKey<'a>,
    /// Its value.
    pub value: ValueSource<'a>,
    /// Where the entry before it stands, which is shown next.
    pub before: InternalKey<'a>,
}

/// A place in a sequence of entries that ascends by [`InternalKey`] without repeats.
///
/// A new cursor stands nowhere. Moving beyond either end, or into damage, makes it stand nowhere
/// again; then [`Self::status`] tells the end from an error, and only a positioning call
/// (`seek`, `seek_for_prev`, `first`, `last`) moves it on. It never steps over what it cannot read.
pub trait Cursor {
    /// Moves to the first entry at or behind `key`.
    fn seek(&mut self, key: InternalKey<'_>);

    /// Moves to the last entry at or before `key`.
    fn seek_for_prev(&mut self, key: InternalKey<'_>);

    /// Moves to the first entry.
    fn first(&mut self);

    /// Moves to the last entry.
    fn last(&mut self);

    /// Moves to the next entry. Does nothing where the cursor stands nowhere.
    fn next(&mut self);

    /// Moves to the entry before. Does nothing where the cursor stands nowhere.
    fn prev(&mut self);

    /// Whether the cursor stands on an entry.
    fn is_valid(&self) -> bool;

    /// Where the entry stands.
    ///
    /// # Panics
    /// This and the methods below, where the cursor stands nowhere.
    fn key(&self) -> InternalKey<'_>;

    /// The entry's value.
    fn value(&self) -> ValueSource<'_>;

    /// What the entry says.
    fn kind(&self) -> EntryKind {
        self.value().kind()
    }

    /// The entry's version and value, to keep while the cursor moves on.
    fn found(&self) -> Found;

    /// What stopped the cursor, where that was not an end.
    fn status(&self) -> Result<()>;

    /// Shows the entries from where the cursor stands to `see`, ascending, until that breaks, which is the
    /// answer, or there is none. Then the cursor stands on the one that was shown last, or at its end.
    fn visit(&mut self, see: &mut impl FnMut(Step<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        visit_each(self, see)
    }

    /// Shows some entries from where the cursor stands to `see`, descending, each with the key of the one
    /// before it, until that breaks, which is the answer. Then the cursor stands on the first one that was
    /// not shown, which may be where it stood.
    fn visit_back(
        &mut self,
        see: &mut impl FnMut(BackStep<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let _ = see;
        ControlFlow::Continue(())
    }
}

/// [`Cursor::visit`], step by step.
pub fn visit_each<C: Cursor + ?Sized>(
    cursor: &mut C,
    see: &mut impl FnMut(Step<'_>) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let mut last: Option<Vec<u8>> = None;
    while cursor.is_valid() {
        let (key, value) = (cursor.key(), cursor.value());
        let repeats = last.as_deref() == Some(key.name);
        see(Step {
            key,
            value,
            repeats,
        })?;
        if !repeats {
            let last = last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key.name);
        }
        cursor.next();
    }
    ControlFlow::Continue(())
}
