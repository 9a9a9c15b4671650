//! A cursor over what is visible at a time: one version of each name, read where it stands.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use artmap::AsBytes;
use smallvec::SmallVec;
use strandline_wal::io::words::prefetch_bytes;
use strandline_wal::log::SegmentBytes;
use strandline_wal::{Hlc, Result, ShardId};

use super::names::{NameAt, NameBuf, Names, head_of};
use super::{MemEntry, Memtable, Place, Sorted};
use crate::table::{Cursor, EntryKind, Found, InternalKey, LogPlace, Step, ValueSource};

/// Walks a memtable in both directions, for as long as it likes. Of each name it shows the newest version
/// that is not newer than its time; where all are newer, the newest: who asks must see that there was a
/// name, to know when to stop.
///
/// Names that are some steps ahead are fetched, then their versions, then the value of the next one, so
/// that the walk does not wait for each in turn.
pub struct NewestCursor<H = Arc<Memtable>> {
    held: H,
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
    row: Option<Row>,
    /// What the next name shows, where that was looked at already.
    next: Option<Row>,
    /// Its name; else room for a name.
    name: NameBuf,
    /// The segments that values stood in so far. There are few segments and many values.
    segments: SmallVec<[Whole; 4]>,
}

/// What a name shows.
#[derive(Clone, Copy)]
struct Row {
    version: Hlc,
    entry: MemEntry,
    /// The one of the known segments that has its value, if that is in memory.
    segment: Option<usize>,
}

/// A segment, by its shard and first sequence, and what was published of it when it was asked for.
type Whole = ((ShardId, u64), SegmentBytes);

/// A memtable, and where its values are.
pub trait Holder {
    fn memtable(&self) -> &Memtable;

    /// All of the segment that a place is in, where that takes no copy.
    fn whole(&self, place: &LogPlace) -> Option<SegmentBytes>;
}

/// Of its values it knows the places.
impl Holder for Arc<Memtable> {
    fn memtable(&self) -> &Memtable {
        self
    }

    fn whole(&self, _: &LogPlace) -> Option<SegmentBytes> {
        None
    }
}

impl<H: Holder> NewestCursor<H> {
    /// A cursor that stands nowhere yet.
    pub fn new(held: H, limit: Hlc) -> NewestCursor<H> {
        held.memtable().expect_walk();
        NewestCursor {
            held,
            limit,
            is_backward: false,
            is_sealed: false,
            at: 0,
            later: SmallVec::new(),
            later_at: 0,
            is_later_whole: true,
            row: None,
            next: None,
            name: NameBuf::new(),
            segments: SmallVec::new(),
        }
    }

    /// What a name shows; its value is fetched.
    #[inline]
    fn look(&mut self, name: NameAt) -> Row {
        let (version, entry) = shown_of(&self.held.memtable().names, name, self.limit);
        let segment = match entry.source() {
            ValueSource::Log(place) => self.segment_of(&place),
            _ => None,
        };
        let row = Row {
            version,
            entry,
            segment,
        };
        if let ValueSource::Bytes(bytes) = self.value_of(&row) {
            prefetch_bytes(bytes);
        }
        row
    }

    /// The known segment that has a value.
    #[inline]
    fn segment_of(&mut self, place: &LogPlace) -> Option<usize> {
        let of = (place.shard, place.first_seq);
        let end = place.offset as usize + place.len as usize;
        let known = self.segments.iter().position(|(other, _)| *other == of);
        match known {
            Some(at) if self.segments[at].1.len() >= end => return Some(at),
            Some(at) => self.segments[at].1 = self.held.whole(place)?,
            None => self.segments.push((of, self.held.whole(place)?)),
        }
        let at = known.unwrap_or(self.segments.len() - 1);
        (self.segments[at].1.len() >= end).then_some(at)
    }

    #[inline]
    fn value_of(&self, row: &Row) -> ValueSource<'_> {
        match (row.entry.source(), row.segment) {
            (ValueSource::Log(place), Some(at)) => {
                let (start, len) = (place.offset as usize, place.len as usize);
                ValueSource::Bytes(&self.segments[at].1[start..start + len])
            }
            (source, _) => source,
        }
    }

    /// The order that it walks.
    #[inline]
    fn sorted(&self) -> &Sorted {
        let order = match self.is_sealed {
            true => &self.held.memtable().sealed,
            false => &self.held.memtable().first,
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
        self.is_sealed = self.held.memtable().sealed.get().is_some();
        let (names, sorted) = (&self.held.memtable().names, self.sorted());
        self.at = match bound {
            Bound::Unbounded if is_backward => sorted.places.len(),
            Bound::Unbounded => 0,
            Bound::Included(name) => sorted.count(names, name, is_backward),
            Bound::Excluded(name) => sorted.count(names, name, !is_backward),
        };
        for count in 0..FETCH_AHEAD {
            if let Some(name) = self.ahead(count) {
                self.held.memtable().names.prefetch_name(name);
            }
        }
        self.next = None;
        self.later.clear();
        self.later_at = 0;
        self.is_later_whole = self.is_sealed;
        self.take_later(bound);
        for count in 0..FETCH_AHEAD / 2 {
            if let Some(name) = self.ahead(count) {
                self.held.memtable().names.prefetch_newest(name);
            }
        }
    }

    /// Takes the next names of those that came later, more each time.
    fn take_later(&mut self, bound: Bound<&[u8]>) {
        if self.is_later_whole {
            return;
        }
        // Few names come late, as a rule, unless all do.
        let least = match self.sorted().places.is_empty() {
            true => LATER_COUNT_MIN,
            false => 1,
        };
        let count = (2 * self.later.len()).clamp(least, LATER_COUNT_MAX);
        self.later.clear();
        self.later_at = 0;
        let tree = &self.held.memtable().later;
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
            let mut name = NameBuf::new();
            self.held.memtable().names.copy_name(*last, &mut name);
            self.take_later(Bound::Excluded(&name));
        }
        let places = &self.sorted().places;
        let first = match self.is_backward {
            true => self.at.checked_sub(1).map(|at| places[at]),
            false => places.get(self.at).copied(),
        };
        let later = self.later.get(self.later_at).copied();
        let names = &self.held.memtable().names;
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
        names.copy_name(place.1, &mut self.name);
        match (is_first, self.is_backward) {
            (true, true) => self.at -= 1,
            (true, false) => self.at += 1,
            (false, _) => {}
        }
        self.later_at += usize::from(is_later);
        if !is_first {
            // What comes next of the order is what came next before.
            self.row = Some(self.look(place.1));
            return;
        }
        let next = self.next.take();
        self.row = Some(next.unwrap_or_else(|| self.look(place.1)));
        self.next = self.ahead(0).map(|next| self.look(next));
    }

    /// One step from the name that the cursor stands on, against its direction.
    fn turn(&mut self, is_backward: bool) {
        let name = std::mem::take(&mut self.name);
        self.enter(is_backward, Bound::Excluded(&name));
        self.name = name;
        self.step();
    }

    #[inline]
    fn row(&self) -> &Row {
        self.row.as_ref().expect("the cursor stands on an entry")
    }
}

impl<H: Holder> Cursor for NewestCursor<H> {
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
            version: self.row().version,
        }
    }

    #[inline]
    fn value(&self) -> ValueSource<'_> {
        self.value_of(self.row())
    }

    #[inline]
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

/// Names that are taken at first of those that came later, where these are all, and at most.
const LATER_COUNT_MIN: usize = 4;
const LATER_COUNT_MAX: usize = 64;
