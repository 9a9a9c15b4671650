//! A cursor over what is visible at a time: one version of each name, read where it stands.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use artmap::AsBytes;
use smallvec::SmallVec;
use strandline_wal::{Hlc, Result};

use super::names::{NameAt, Names, head_of};
use super::{MemEntry, Memtable, Place, Sorted};
use crate::table::{Cursor, EntryKind, Found, InternalKey, Step, ValueSource};

/// Walks a memtable in both directions, for as long as it likes. Of each name it shows the newest version
/// that is not newer than its time; where all are newer, the newest: who asks must see that there was a
/// name, to know when to stop.
///
/// Names that are some steps ahead are fetched, then their versions, so that the walk does not wait for
/// each in turn.
pub struct NewestCursor {
    memtable: Arc<Memtable>,
    limit: Hlc,
    is_backward: bool,
    /// Whether it walks the order of all names, and not that of the first ones and those that came later.
    is_sealed: bool,
    /// Names of the order that lie before the cursor.
    at: usize,
    /// The next names of those that came later, in the direction of the cursor.
    later: SmallVec<[Place; LATER_COUNT_MIN]>,
    /// Those of them that lie behind the cursor.
    later_at: usize,
    /// Whether there are no more than those.
    is_later_whole: bool,
    /// What the cursor stands on.
    row: Option<(Hlc, MemEntry)>,
    /// Its name; else room for a name.
    name: Vec<u8>,
}

impl NewestCursor {
    pub(super) fn new(memtable: Arc<Memtable>, limit: Hlc) -> NewestCursor {
        NewestCursor {
            memtable,
            limit,
            is_backward: false,
            is_sealed: false,
            at: 0,
            later: SmallVec::new(),
            later_at: 0,
            is_later_whole: true,
            row: None,
            name: Vec::new(),
        }
    }

    /// The order that it walks.
    #[inline]
    fn sorted(&self) -> &Sorted {
        let order = match self.is_sealed {
            true => &self.memtable.sealed,
            false => &self.memtable.first,
        };
        order.get().expect("whoever walks had them put in order")
    }

    /// The name of the order that comes so many steps later.
    #[inline]
    fn ahead(&self, count: usize) -> Option<NameAt> {
        let at = match self.is_backward {
            true => self.at.checked_sub(1 + count)?,
            false => self.at + count,
        };
        self.sorted().places.get(at).map(|(_, at)| *at)
    }

    /// Goes between two names: those that come then are within the bound.
    fn enter(&mut self, is_backward: bool, bound: Bound<&[u8]>) {
        self.is_backward = is_backward;
        self.is_sealed = self.memtable.sealed.get().is_some();
        let (names, sorted) = (&self.memtable.names, self.sorted());
        self.at = match bound {
            Bound::Unbounded if is_backward => sorted.places.len(),
            Bound::Unbounded => 0,
            Bound::Included(name) => sorted.count(names, name, is_backward),
            Bound::Excluded(name) => sorted.count(names, name, !is_backward),
        };
        for count in 0..FETCH_AHEAD {
            if let Some(name) = self.ahead(count) {
                self.memtable.names.prefetch_name(name);
            }
        }
        self.later.clear();
        self.later_at = 0;
        self.is_later_whole = self.is_sealed;
        self.take_later(bound);
    }

    /// Takes the next names of those that came later, more each time.
    fn take_later(&mut self, bound: Bound<&[u8]>) {
        if self.is_later_whole {
            return;
        }
        let count = (2 * self.later.len()).clamp(LATER_COUNT_MIN, LATER_COUNT_MAX);
        self.later.clear();
        self.later_at = 0;
        let tree = &self.memtable.later;
        let place = |(name, at): (&[u8], NameAt)| (head_of(name), at);
        if self.is_backward {
            let range = tree.range::<_, [u8]>((Bound::Unbounded, bound));
            let places = range.rev().take(count);
            let places = places.map(|entry| place((entry.key().as_bytes(), *entry.value())));
            self.later.extend(places);
        } else {
            let range = tree.range::<_, [u8]>((bound, Bound::Unbounded));
            let places = range.take(count);
            let places = places.map(|entry| place((entry.key().as_bytes(), *entry.value())));
            self.later.extend(places);
        }
        self.is_later_whole = self.later.len() < count;
    }

    /// Goes to the next name in the direction of the cursor.
    fn step(&mut self) {
        if self.later_at == self.later.len()
            && !self.is_later_whole
            && let Some((_, last)) = self.later.last()
        {
            let mut name = Vec::new();
            self.memtable.names.copy_name(*last, &mut name);
            self.take_later(Bound::Excluded(&name));
        }
        let places = &self.sorted().places;
        let first = match self.is_backward {
            true => self.at.checked_sub(1).map(|at| places[at]),
            false => places.get(self.at).copied(),
        };
        let later = self.later.get(self.later_at).copied();
        let names = &self.memtable.names;
        let (place, is_first, is_later) = match (first, later) {
            (None, None) => {
                self.row = None;
                return;
            }
            (Some(first), None) => (first, true, false),
            (None, Some(later)) => (later, false, true),
            (Some(first), Some(later)) => {
                let order = names.order(&first, &later);
                let order = if self.is_backward {
                    order.reverse()
                } else {
                    order
                };
                let place = if order.is_le() { first } else { later };
                (place, order.is_le(), order.is_ge())
            }
        };
        if is_first {
            if let Some(name) = self.ahead(FETCH_AHEAD) {
                names.prefetch_name(name);
            }
            if let Some(name) = self.ahead(FETCH_AHEAD / 2) {
                names.prefetch_newest(name);
            }
        }
        self.row = Some(shown_of(names, place.1, self.limit));
        self.name.clear();
        names.copy_name(place.1, &mut self.name);
        match (is_first, self.is_backward) {
            (true, true) => self.at -= 1,
            (true, false) => self.at += 1,
            (false, _) => {}
        }
        self.later_at += usize::from(is_later);
    }

    /// One step from the name that the cursor stands on, against its direction.
    fn turn(&mut self, is_backward: bool) {
        let name = std::mem::take(&mut self.name);
        self.enter(is_backward, Bound::Excluded(&name));
        self.name = name;
        self.step();
    }

    #[inline]
    fn row(&self) -> &(Hlc, MemEntry) {
        self.row.as_ref().expect("the cursor stands on an entry")
    }
}

impl Cursor for NewestCursor {
    fn seek(&mut self, key: InternalKey<'_>) {
        self.enter(false, Bound::Included(key.name));
        self.step();
        if self.is_valid() && self.key() < key {
            self.step();
        }
    }

    fn seek_for_prev(&mut self, key: InternalKey<'_>) {
        self.enter(true, Bound::Included(key.name));
        self.step();
        if self.is_valid() && self.key() > key {
            self.step();
        }
    }

    fn first(&mut self) {
        self.enter(false, Bound::Unbounded);
        self.step();
    }

    fn last(&mut self) {
        self.enter(true, Bound::Unbounded);
        self.step();
    }

    #[inline]
    fn next(&mut self) {
        match (self.is_valid(), self.is_backward) {
            (false, _) => {}
            (true, false) => self.step(),
            (true, true) => self.turn(false),
        }
    }

    #[inline]
    fn prev(&mut self) {
        match (self.is_valid(), self.is_backward) {
            (false, _) => {}
            (true, true) => self.step(),
            (true, false) => self.turn(true),
        }
    }

    #[inline]
    fn is_valid(&self) -> bool {
        self.row.is_some()
    }

    #[inline]
    fn key(&self) -> InternalKey<'_> {
        InternalKey {
            name: &self.name,
            version: self.row().0,
        }
    }

    #[inline]
    fn value(&self) -> ValueSource<'_> {
        self.row().1.source()
    }

    #[inline]
    fn kind(&self) -> EntryKind {
        self.row().1.kind
    }

    fn found(&self) -> Found {
        let (version, entry) = self.row();
        entry.found(*version)
    }

    fn status(&self) -> Result<()> {
        Ok(())
    }

    /// No name is shown twice.
    fn visit(&mut self, see: &mut impl FnMut(Step<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        while self.is_valid() {
            see(Step {
                key: self.key(),
                value: self.value(),
                repeats: false,
            })?;
            self.next();
        }
        ControlFlow::Continue(())
    }
}

/// Of a name's versions the newest that is not newer than `at`; where all are newer, the newest.
#[inline]
fn shown_of(names: &Names, name: NameAt, at: Hlc) -> (Hlc, MemEntry) {
    let seen = names.newest(name, at);
    let shown = seen.or_else(|| names.newest(name, Hlc::MAX));
    shown.expect("every name has a version")
}

/// How many steps before it is shown a name is fetched.
const FETCH_AHEAD: usize = 6;

/// Names that are taken at first of those that came later, and at most.
const LATER_COUNT_MIN: usize = 4;
const LATER_COUNT_MAX: usize = 64;
