//! What a reader sees: of every name the newest version that is not newer than its snapshot.

use std::ops::{Bound, ControlFlow};

use strandline_wal::{Hlc, Result};

use super::Merge;
use crate::store::batch::{Name, NameBounds};
use crate::table::{BackStep, Cursor, EntryKind, Found, InternalKey, Step, ValueSource, head_of};

/// Who is shown names with their values, until it breaks. Not a closure: a call of it is to be inlined
/// wherever it stands.
pub trait See {
    fn see(&mut self, name: &[u8], value: ValueSource<'_>) -> ControlFlow<()>;
}

/// Walks the names of a range as they were at one version, in both directions.
///
/// Forward it stands on the entry itself. Backward the versions of a name come oldest first, so it
/// has to see all that it may see before it knows the one to show; it keeps that one, and the merge
/// stands before the name already.
pub struct VisibleIter<C> {
    merge: Merge<C>,
    at: Hlc,
    lower: Bound<Name>,
    upper: Bound<Name>,
    standing: Standing,
    /// Backward the name that is shown; else room for a name.
    name: Vec<u8>,
}

enum Standing {
    Nowhere,
    /// On the entry that the merge stands on.
    Forward,
    /// On the kept entry of `name`. The merge stands on an entry before that name, or nowhere.
    Backward(Found),
}

impl<C: Cursor> VisibleIter<C> {
    /// The names within the bounds as they were at `at`. It stands nowhere yet.
    pub fn new(merge: Merge<C>, at: Hlc, (lower, upper): NameBounds) -> VisibleIter<C> {
        VisibleIter {
            merge,
            at,
            lower,
            upper,
            standing: Standing::Nowhere,
            name: Vec::new(),
        }
    }

    /// Moves to the first name at or behind `name`.
    pub fn seek(&mut self, name: &[u8]) {
        if self.is_below(name) {
            return self.first();
        }
        self.merge.seek(InternalKey {
            name,
            version: self.at,
        });
        self.settle_forward();
    }

    /// Moves to the last name at or before `name`.
    pub fn seek_for_prev(&mut self, name: &[u8]) {
        if self.is_above(name) {
            return self.last();
        }
        self.merge.seek_for_prev(InternalKey::last_of(name));
        self.settle_backward();
    }

    /// Moves to the first name.
    pub fn first(&mut self) {
        self.go_to_lower();
        self.settle_forward();
    }

    /// Moves the merge to the first entry within the lower bound.
    fn go_to_lower(&mut self) {
        match &self.lower {
            Bound::Unbounded => self.merge.first(),
            Bound::Included(name) => {
                self.merge.seek(InternalKey {
                    name,
                    version: self.at,
                });
            }
            Bound::Excluded(name) => {
                self.merge.seek(InternalKey::last_of(name));
                while self.merge.is_valid() && *self.merge.key().name == **name {
                    self.merge.next();
                }
            }
        }
    }

    /// Moves to the last name.
    pub fn last(&mut self) {
        match &self.upper {
            Bound::Unbounded => self.merge.last(),
            Bound::Included(name) => self.merge.seek_for_prev(InternalKey::last_of(name)),
            Bound::Excluded(name) => {
                self.merge.seek_for_prev(InternalKey::first_of(name));
                while self.merge.is_valid() && *self.merge.key().name == **name {
                    self.merge.prev();
                }
            }
        }
        self.settle_backward();
    }

    /// Moves to the next name. Does nothing where the iterator stands nowhere.
    #[inline]
    pub fn next(&mut self) {
        match self.standing {
            Standing::Nowhere => return,
            Standing::Forward => {
                self.keep_name();
                self.merge.next();
                if self.is_on_shown() {
                    return;
                }
                if self.is_on_name() {
                    self.leave_forward();
                }
            }
            Standing::Backward(_) => {
                self.merge.seek(InternalKey::last_of(&self.name));
                if self.is_on_name() {
                    self.leave_forward();
                }
            }
        }
        self.settle_forward();
    }

    /// Moves to the name before. Does nothing where the iterator stands nowhere.
    pub fn prev(&mut self) {
        match self.standing {
            Standing::Nowhere => return,
            Standing::Forward => {
                self.keep_name();
                self.leave_backward();
            }
            Standing::Backward(_) => {}
        }
        self.settle_backward();
    }

    /// Shows all names of the range and their values, ascending, until `see` breaks. Where the iterator
    /// stands afterwards is not said; [`Self::status`] is.
    pub fn visit(&mut self, see: &mut impl See) {
        self.go_to_lower();
        self.standing = Standing::Nowhere;
        let (at, upper) = (self.at, Limit::new(&self.upper, u64::MAX));
        let mut is_seen = false;
        // Most readers have one source: nothing stands between that and them.
        if let Some(source) = self.merge.alone() {
            let flow = source.visit(&mut |step| show(step, at, &upper, &mut is_seen, see));
            if flow.is_continue() {
                self.merge.end_alone();
            }
            return;
        }
        self.merge
            .visit(&mut |step| show(step, at, &upper, &mut is_seen, see));
    }

    /// As [`Self::visit`], descending.
    pub fn visit_back(&mut self, mut see: impl FnMut(&[u8], ValueSource<'_>) -> ControlFlow<()>) {
        self.last();
        while let Standing::Backward(found) = &self.standing {
            if see(&self.name, found.value.source()).is_break() {
                return;
            }
            if let Some(source) = self.merge.alone() {
                let (at, lower) = (self.at, Limit::new(&self.lower, 0));
                let mut is_done = false;
                let flow = source.visit_back(&mut |BackStep { key, value, before }| {
                    if lower.is_above(key.name) {
                        return ControlFlow::Break(());
                    }
                    // The newest that may be seen comes last.
                    let is_shown =
                        key.version <= at && !(before.version <= at && before.name == key.name);
                    if !is_shown || matches!(value, ValueSource::Absent) {
                        return ControlFlow::Continue(());
                    }
                    let flow = see(key.name, value);
                    is_done = flow.is_break();
                    flow
                });
                if is_done {
                    return;
                }
                if flow.is_continue() {
                    self.merge.end_alone();
                }
            }
            self.settle_backward();
        }
    }

    /// Whether the iterator stands on a name.
    #[inline]
    pub fn is_valid(&self) -> bool {
        !matches!(self.standing, Standing::Nowhere)
    }

    /// The name.
    ///
    /// # Panics
    /// This and the methods below, where the iterator stands nowhere.
    #[inline]
    pub fn name(&self) -> &[u8] {
        match &self.standing {
            Standing::Forward => self.merge.key().name,
            Standing::Backward(_) => &self.name,
            Standing::Nowhere => panic!("{NOWHERE}"),
        }
    }

    /// The version that is visible.
    #[cfg(test)]
    pub fn version(&self) -> Hlc {
        match &self.standing {
            Standing::Forward => self.merge.key().version,
            Standing::Backward(found) => found.version,
            Standing::Nowhere => panic!("{NOWHERE}"),
        }
    }

    /// Its value, never [`ValueSource::Absent`].
    #[cfg(test)]
    pub fn value(&self) -> ValueSource<'_> {
        match &self.standing {
            Standing::Forward => self.merge.value(),
            Standing::Backward(found) => found.value.source(),
            Standing::Nowhere => panic!("{NOWHERE}"),
        }
    }

    /// Version and value, to keep.
    #[inline]
    pub fn found(&self) -> Found {
        match &self.standing {
            Standing::Forward => self.merge.found(),
            Standing::Backward(found) => found.clone(),
            Standing::Nowhere => panic!("{NOWHERE}"),
        }
    }

    /// What stopped the iterator, where that was not an end.
    ///
    /// # Errors
    /// That of the source that failed.
    pub fn status(&self) -> Result<()> {
        self.merge.status()
    }

    /// From where the merge stands, goes up to the first entry to show.
    fn settle_forward(&mut self) {
        self.standing = Standing::Nowhere;
        while self.merge.is_valid() {
            let key = self.merge.key();
            if self.is_above(key.name) {
                return;
            }
            if key.version > self.at {
                self.skip_newer();
            } else if self.merge.kind() == EntryKind::Tombstone {
                self.keep_name();
                self.leave_forward();
            } else {
                self.standing = Standing::Forward;
                return;
            }
        }
    }

    /// From where the merge stands, goes down to the first name with an entry to show, and keeps it.
    fn settle_backward(&mut self) {
        self.standing = Standing::Nowhere;
        while self.merge.is_valid() && !self.is_below(self.merge.key().name) {
            self.keep_name();
            let mut newest = None;
            while self.is_on_name() && self.merge.key().version <= self.at {
                newest = Some(self.merge.found());
                self.merge.prev();
            }
            if self.is_on_name() {
                self.leave_backward();
            }
            // A source that failed may have had a newer version than the one kept.
            if self.merge.status().is_err() {
                return;
            }
            let shown = newest.filter(|found| !matches!(found.value.source(), ValueSource::Absent));
            if let Some(found) = shown {
                self.standing = Standing::Backward(found);
                return;
            }
        }
    }

    /// Whether the merge stands on an entry to show, of another name than the kept one: most names have
    /// one version.
    #[inline]
    fn is_on_shown(&self) -> bool {
        if !self.merge.is_valid() {
            return false;
        }
        let key = self.merge.key();
        key.version <= self.at
            && key.name != self.name
            && !self.is_above(key.name)
            && self.merge.kind() != EntryKind::Tombstone
    }

    #[inline]
    fn keep_name(&mut self) {
        self.name.clear();
        self.name.extend_from_slice(self.merge.key().name);
    }

    fn is_on_name(&self) -> bool {
        self.merge.is_valid() && self.merge.key().name == self.name
    }

    /// Goes up past all versions of the kept name, which the merge stands on.
    fn leave_forward(&mut self) {
        for step in 1.. {
            self.merge.next();
            if !self.is_on_name() {
                return;
            }
            if step == STEP_COUNT_MAX {
                self.merge.seek(InternalKey::last_of(&self.name));
                if !self.is_on_name() {
                    return;
                }
            }
        }
    }

    /// Goes down past all versions of the kept name, which the merge stands on.
    fn leave_backward(&mut self) {
        for step in 1.. {
            self.merge.prev();
            if !self.is_on_name() {
                return;
            }
            if step == STEP_COUNT_MAX {
                self.merge.seek_for_prev(InternalKey::first_of(&self.name));
                if !self.is_on_name() {
                    return;
                }
            }
        }
    }

    /// Goes up past the versions of a name that are too new, the first of which the merge stands on.
    fn skip_newer(&mut self) {
        self.keep_name();
        for step in 1.. {
            self.merge.next();
            if !self.is_on_name() || self.merge.key().version <= self.at {
                return;
            }
            if step == STEP_COUNT_MAX {
                self.merge.seek(InternalKey {
                    name: &self.name,
                    version: self.at,
                });
                return;
            }
        }
    }

    fn is_below(&self, name: &[u8]) -> bool {
        is_below(&self.lower, name)
    }

    #[inline]
    fn is_above(&self, name: &[u8]) -> bool {
        is_above(&self.upper, name)
    }
}

fn is_below(lower: &Bound<Name>, name: &[u8]) -> bool {
    match lower {
        Bound::Unbounded => false,
        Bound::Included(lower) => name < &lower[..],
        Bound::Excluded(lower) => name <= &lower[..],
    }
}

#[inline]
fn is_above(upper: &Bound<Name>, name: &[u8]) -> bool {
    match upper {
        Bound::Unbounded => false,
        Bound::Included(upper) => name > &upper[..],
        Bound::Excluded(upper) => name >= &upper[..],
    }
}

/// Shows an entry if it is what a reader sees of its name. `is_seen` tells whether a version of the name, or
/// that it is deleted, was seen already.
#[inline(always)]
fn show(
    step: Step<'_>,
    at: Hlc,
    upper: &Limit<'_>,
    is_seen: &mut bool,
    see: &mut impl See,
) -> ControlFlow<()> {
    let Step {
        key,
        value,
        repeats,
    } = step;
    if upper.is_below(key.name) {
        return ControlFlow::Break(());
    }
    *is_seen &= repeats;
    if *is_seen || key.version > at {
        return ControlFlow::Continue(());
    }
    *is_seen = true;
    match value {
        ValueSource::Absent => ControlFlow::Continue(()),
        value => see.see(key.name, value),
    }
}

/// A bound that most names are told from by their first bytes.
struct Limit<'a> {
    bound: &'a Bound<Name>,
    head: u64,
}

impl Limit<'_> {
    /// `end` is the head of whatever lies behind the last name, or before the first.
    fn new(bound: &Bound<Name>, end: u64) -> Limit<'_> {
        let head = match bound {
            Bound::Unbounded => end,
            Bound::Included(name) | Bound::Excluded(name) => head_of(name),
        };
        Limit { bound, head }
    }

    /// As an upper bound.
    #[inline]
    fn is_below(&self, name: &[u8]) -> bool {
        head_of(name) >= self.head && is_above(self.bound, name)
    }

    /// As a lower bound.
    #[inline]
    fn is_above(&self, name: &[u8]) -> bool {
        head_of(name) <= self.head && is_below(self.bound, name)
    }
}

const NOWHERE: &str = "the iterator stands on a name";

/// Entries that are stepped over before a search takes their place.
const STEP_COUNT_MAX: usize = 8;
