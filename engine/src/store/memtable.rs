//! The memtable: an ordered index of records that are in the log and in no table yet.
//!
//! It holds names and places, not values: the bytes are in the log already. Any number of threads
//! insert and read at once. What a reader may see is decided by the version that it asks for, so
//! entries of a batch may appear one by one: their version is not yet asked for by anyone.

mod arena;
mod cursor;
mod names;
mod newest;

#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::cmp::Ordering as Order;
use std::ops::{Bound, ControlFlow};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, OnceLock};

use artmap::{ArtMap, AsBytes, EntryRef};
use strandline_wal::Hlc;

pub use cursor::MemtableCursor;
use names::{NameAt, NameBuf, Names};
pub use newest::{Holder, NewestCursor};

use crate::table::{EntryKind, Found, FoundValue, LogPlace, NAME_LEN_MAX, ValueSource};

/// What the memtable knows of a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MemEntry {
    /// A value or a tombstone. Whether a value becomes a pointer is decided when it is flushed.
    pub kind: EntryKind,
    /// Where the value stands in the log. Of a tombstone: where the record does, without a length.
    pub place: LogPlace,
}

impl MemEntry {
    fn source(&self) -> ValueSource<'static> {
        match self.kind {
            EntryKind::Tombstone => ValueSource::Absent,
            EntryKind::Value | EntryKind::Pointer => ValueSource::Log(self.place),
        }
    }

    fn found(&self, version: Hlc) -> Found {
        let value = match self.kind {
            EntryKind::Tombstone => FoundValue::Absent,
            EntryKind::Value | EntryKind::Pointer => FoundValue::Log(self.place),
        };
        Found { version, value }
    }
}

/// How a memtable is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Names that it is made for. It grows with more of them.
    pub name_count: usize,
    /// Of the hash of names: anything that nobody can foresee.
    pub seed: u64,
    /// Whether it is kept in order from the start, for those who walk it soon.
    pub is_ordered: bool,
}

/// An index of pointers into the log.
///
/// A write and a lookup go by the hash of the name. The order is made when somebody walks it first, and
/// kept up from then on.
pub struct Memtable {
    names: Names,
    /// The names that were there when somebody walked it first.
    first: OnceLock<Sorted>,
    /// The names that came later, an adaptive radix tree. One may be in both.
    later: ArtMap<Name, NameAt>,
    /// Whoever inserts a name, or a version, sees to it that the name is in the order, too.
    is_ordered: AtomicBool,
    /// Whether somebody walked it before the seal.
    is_walked: AtomicBool,
    /// All names, once nothing is inserted any more.
    sealed: OnceLock<Sorted>,
}

/// Names in their order.
#[derive(Default)]
struct Sorted {
    places: Vec<Place>,
    /// The first words of every [`FENCE_EVERY`]th: a search looks at few lines of memory.
    fences: Vec<[u64; 2]>,
}

/// Names between two fences.
const FENCE_EVERY: usize = 32;

impl Sorted {
    fn new(places: Vec<Place>) -> Sorted {
        let fences = places.iter().step_by(FENCE_EVERY).map(|(head, _)| *head);
        Sorted {
            fences: fences.collect(),
            places,
        }
    }

    /// How many names come before `name`, itself included where `is_with` says so.
    fn count(&self, names: &Names, name: &[u8], is_with: bool) -> usize {
        let head = names::head_of(name);
        let fence = self.fences.partition_point(|other| is_before(other, &head));
        // What stands before the last fence that is before it is before it, too.
        let from = fence.saturating_sub(1) * FENCE_EVERY;
        let to = self.places.len().min(fence * FENCE_EVERY);
        let before = self.places[from..to].partition_point(|(other, _)| is_before(other, &head));
        let from = from + before;
        if self
            .places
            .get(from)
            .is_none_or(|(other, _)| *other != head)
        {
            return from;
        }
        // Few names share their first words with it, as a rule.
        let is_such = |(other, at): &Place| {
            let order = other.cmp(&head);
            let order = order.then_with(|| names.compare_to(*at, name));
            order.is_lt() || is_with && order.is_eq()
        };
        let mut to = from;
        let mut step = 1;
        while self.places.get(to).is_some_and(is_such) {
            to += step;
            step *= 2;
        }
        let to = self.places.len().min(to);
        from + self.places[from..to].partition_point(is_such)
    }
}

/// Whether the first words of one name are before those of another.
#[inline]
fn is_before([a, b]: &[u64; 2], [c, d]: &[u64; 2]) -> bool {
    // As one number: no branch.
    let number = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    number(*a, *b) < number(*c, *d)
}

/// Where a name stands, and its first words.
type Place = ([u64; 2], NameAt);

impl Memtable {
    /// An empty one.
    pub fn new(shape: Shape) -> Memtable {
        Memtable {
            names: Names::new(shape.name_count, shape.seed),
            first: match shape.is_ordered {
                true => Sorted::default().into(),
                false => OnceLock::new(),
            },
            later: ArtMap::new(),
            is_ordered: AtomicBool::new(shape.is_ordered),
            is_walked: AtomicBool::new(false),
            sealed: OnceLock::new(),
        }
    }

    /// Adds a record. Of several records of one batch with one name the last one counts, so they are
    /// added in their order. Adding a batch again changes nothing.
    ///
    /// # Panics
    /// Where the name is longer than [`NAME_LEN_MAX`] or the kind is a pointer.
    pub fn insert(&self, name: &[u8], version: Hlc, entry: MemEntry) {
        assert!(
            name.len() <= NAME_LEN_MAX,
            "a name that no table could take"
        );
        assert!(
            entry.kind != EntryKind::Pointer,
            "a record of the log is no pointer"
        );
        let hash = self.names.hash(name);
        let at = self.names.insert(hash, name, version, entry);
        // Either this sees that the order is being made, or who makes it sees the name.
        if self.is_ordered.load(SeqCst) && !self.names.is_ordered(at) {
            self.later.insert(Name::new(name), at);
            self.names.set_ordered(at);
        }
    }

    /// Tells that a name will be inserted or looked up soon.
    #[inline]
    pub fn prefetch(&self, name: &[u8]) {
        self.names.prefetch(self.names.hash(name));
    }

    /// Sees to it that all names with a visible version are in the order.
    fn put_in_order(&self) {
        self.first.get_or_init(|| {
            self.is_ordered.store(true, SeqCst);
            let names = self.sorted();
            for (_, at) in &names.places {
                self.names.set_ordered(*at);
            }
            names
        });
    }

    /// Puts the names in order for those who come now, at less cost than the order that can grow.
    /// Requires: nothing is inserted any more.
    pub fn seal(&self) {
        self.sealed.get_or_init(|| self.sorted());
    }

    fn sorted(&self) -> Sorted {
        let names: Vec<NameAt> = self.names.all().collect();
        let mut places = Vec::with_capacity(names.len());
        for (n, at) in names.iter().enumerate() {
            if let Some(ahead) = names.get(n + FETCH_AHEAD) {
                self.names.prefetch_name(*ahead);
            }
            places.push((self.names.head(*at), *at));
        }
        places.sort_unstable_by(|one, other| self.names.order(one, other));
        Sorted::new(places)
    }

    /// The newest version of `name` that is not newer than `at`, tombstones included.
    pub fn get(&self, name: &[u8], at: Hlc) -> Option<Found> {
        let name = self.names.find(name)?;
        let (version, entry) = self.names.newest(name, at)?;
        Some(entry.found(version))
    }

    /// Shows the names from a bound on in their order, until `see` breaks.
    fn walk(&self, from: Bound<&[u8]>, see: impl FnMut(&[u8], NameAt) -> ControlFlow<()>) {
        let (names, later) = self.in_order();
        let at = match from {
            Bound::Unbounded => 0,
            Bound::Included(from) => names.count(&self.names, from, false),
            Bound::Excluded(from) => names.count(&self.names, from, true),
        };
        let later = later.map(|later| later.range::<_, [u8]>((from, Bound::Unbounded)));
        let later = later.into_iter().flatten();
        let _ = self.show_each(names.places[at..].iter(), later, <[u8]>::cmp, see);
    }

    /// As [`Self::walk`], the names down from `from`, which is among them, or all.
    fn walk_back(&self, from: Option<&[u8]>, see: impl FnMut(&[u8], NameAt) -> ControlFlow<()>) {
        let (names, later) = self.in_order();
        let count = from.map_or(names.places.len(), |from| {
            names.count(&self.names, from, true)
        });
        let end = from.map_or(Bound::Unbounded, Bound::Included);
        let later = later.map(|later| later.range::<_, [u8]>((Bound::Unbounded, end)).rev());
        let later = later.into_iter().flatten();
        let back = |name: &[u8], other: &[u8]| other.cmp(name);
        let _ = self.show_each(names.places[..count].iter().rev(), later, back, see);
    }

    /// The names in order, and where there are more.
    fn in_order(&self) -> (&Sorted, Option<&ArtMap<Name, NameAt>>) {
        if let Some(names) = self.sealed.get() {
            return (names, None);
        }
        let first = self.first.get();
        let first = first.expect("whoever walks had them put in order");
        (first, Some(&self.later))
    }

    /// Shows names of two kinds that both come in the given order.
    fn show_each<'n>(
        &self,
        names: impl Iterator<Item = &'n Place>,
        later: impl Iterator<Item = EntryRef<'n, Name, NameAt>>,
        order: impl Fn(&[u8], &[u8]) -> Order,
        mut see: impl FnMut(&[u8], NameAt) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        // Nothing that the tree gives up is freed while it is walked, by anyone.
        let mut later = later.peekable();
        let mut name = NameBuf::new();
        for (_, at) in names {
            self.names.copy_name(*at, &mut name);
            while let Some(entry) = later.peek() {
                match order(entry.key().as_bytes(), &name) {
                    Order::Less => see(entry.key().as_bytes(), *entry.value())?,
                    Order::Equal => {}
                    Order::Greater => break,
                }
                later.next();
            }
            see(&name, *at)?;
        }
        later.try_for_each(|entry| see(entry.key().as_bytes(), *entry.value()))
    }

    /// Versions of all names.
    #[cfg(test)]
    pub fn entry_count(&self) -> usize {
        let names = self.names.all();
        names.map(|name| self.names.versions(name).count()).sum()
    }

    /// Names in it.
    pub fn name_count(&self) -> usize {
        self.names.count()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.names.len() == 0
    }

    /// Whether somebody walked it before the seal.
    pub fn is_walked(&self) -> bool {
        self.is_walked.load(Relaxed)
    }

    /// A cursor over all entries. What is inserted meanwhile it may see or not.
    pub fn cursor(self: &Arc<Memtable>) -> MemtableCursor {
        self.expect_walk();
        MemtableCursor::new(Arc::clone(self))
    }

    /// A cursor over what is visible at a time.
    #[cfg(test)]
    pub fn cursor_at(self: &Arc<Memtable>, at: Hlc) -> NewestCursor {
        NewestCursor::new(Arc::clone(self), at)
    }

    /// Sees to it that there is an order to walk.
    fn expect_walk(&self) {
        if self.sealed.get().is_none() {
            if !self.is_walked.load(Relaxed) {
                self.is_walked.store(true, Relaxed);
            }
            self.put_in_order();
        }
    }
}

/// How many names ahead one is fetched while all are looked at.
const FETCH_AHEAD: usize = 16;

#[cfg(test)]
impl Default for Memtable {
    fn default() -> Memtable {
        Memtable::new(Shape {
            name_count: 0,
            seed: 0,
            is_ordered: false,
        })
    }
}

impl std::fmt::Debug for Memtable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memtable({} bytes)", self.names.len())
    }
}

/// A name, without memory of its own where it is short.
enum Name {
    Short(u8, [u8; SHORT_LEN_MAX]),
    Long(Box<[u8]>),
}

/// Longest name that needs no memory of its own: a keyspace and a key of 18 bytes.
const SHORT_LEN_MAX: usize = 22;

impl Name {
    fn new(name: &[u8]) -> Name {
        match u8::try_from(name.len()) {
            Ok(len) if name.len() <= SHORT_LEN_MAX => {
                let mut bytes = [0; SHORT_LEN_MAX];
                bytes[..name.len()].copy_from_slice(name);
                Name::Short(len, bytes)
            }
            _ => Name::Long(name.into()),
        }
    }
}

impl AsBytes for Name {
    #[inline]
    fn as_bytes(&self) -> &[u8] {
        match self {
            Name::Short(len, bytes) => &bytes[..usize::from(*len)],
            Name::Long(bytes) => bytes,
        }
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}
