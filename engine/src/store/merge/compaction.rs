//! What a compaction keeps: every version that some reader may still ask for.

use strandline_wal::{Hlc, Result};

use super::Merge;
use crate::table::{Cursor, InternalKey, ValueSource};

/// Which readers there are and may be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CompactionRules {
    /// The versions at which somebody reads now, ascending.
    pub snapshots: Vec<Hlc>,
    /// Every snapshot to come is at this version or above. [`Hlc::MAX`] where none is to come below
    /// what is being compacted.
    pub horizon: Hlc,
    /// Whether no older table has versions of these names, so that a tombstone that everybody sees
    /// hides nothing any more.
    pub is_bottom: bool,
}

impl CompactionRules {
    /// Nobody, now or later, reads below this.
    fn floor(&self) -> Hlc {
        self.snapshots
            .first()
            .map_or(self.horizon, |oldest| self.horizon.min(*oldest))
    }

    /// Whether a reader may ask for `version` although there is the next one, `newer`.
    fn is_wanted(&self, version: Hlc, newer: Hlc) -> bool {
        let next = self
            .snapshots
            .partition_point(|snapshot| *snapshot < version);
        let is_read = self
            .snapshots
            .get(next)
            .is_some_and(|snapshot| *snapshot < newer);
        is_read || newer > self.horizon
    }
}

/// An entry that is not kept. The live bytes of what it points to become fewer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dropped<'a> {
    /// Where it stood.
    pub key: InternalKey<'a>,
    /// Its value.
    pub value: ValueSource<'a>,
}

/// Walks the entries that a compaction keeps, and tells `on_drop` of each that it does not.
///
/// Of a name, a version is dropped where a newer one hides it from every reader; a copy of a record
/// that came before is dropped; and at the bottom a tombstone is dropped that all readers see. Each
/// entry is told of once, when the iterator passes it.
pub struct CompactionIter<C, F> {
    merge: Merge<C>,
    rules: CompactionRules,
    on_drop: F,
    /// The name that the merge stands on or has left last, and its oldest version so far.
    name: Vec<u8>,
    newer: Option<Hlc>,
}

impl<C: Cursor, F: FnMut(Dropped<'_>)> CompactionIter<C, F> {
    /// The entries of `merge` that the rules keep. It stands nowhere yet.
    ///
    /// # Panics
    /// Where the snapshots do not ascend.
    pub fn new(merge: Merge<C>, rules: CompactionRules, on_drop: F) -> CompactionIter<C, F> {
        assert!(rules.snapshots.is_sorted(), "snapshots ascend");
        CompactionIter {
            merge,
            rules,
            on_drop,
            name: Vec::new(),
            newer: None,
        }
    }

    /// Moves to the first entry that is kept.
    pub fn first(&mut self) {
        self.newer = None;
        self.merge.first();
        self.settle();
    }

    /// Moves to the first entry that is kept behind all of `name`.
    pub fn seek_behind(&mut self, name: &[u8]) {
        self.newer = None;
        self.merge.seek(InternalKey::last_of(name));
        // No writer gives a version of 0, and a table may be forged.
        while self.merge.is_valid() && self.merge.key().name == name {
            self.merge.next();
        }
        self.settle();
    }

    /// Moves to the next entry that is kept. Does nothing where the iterator stands nowhere.
    pub fn next(&mut self) {
        if self.merge.is_valid() {
            self.pass();
            self.settle();
        }
    }

    /// Whether the iterator stands on an entry.
    pub fn is_valid(&self) -> bool {
        self.merge.is_valid()
    }

    /// Where the entry stands.
    ///
    /// # Panics
    /// This and the methods below, where the iterator stands nowhere.
    pub fn key(&self) -> InternalKey<'_> {
        self.merge.key()
    }

    /// The entry's value.
    pub fn value(&self) -> ValueSource<'_> {
        self.merge.value()
    }

    /// What stopped the iterator, where that was not the end. What was kept until then is not all.
    ///
    /// # Errors
    /// That of the source that failed.
    pub fn status(&self) -> Result<()> {
        self.merge.status()
    }

    /// Drops entries until the merge stands on one to keep.
    fn settle(&mut self) {
        while self.merge.is_valid() && !self.is_kept() {
            let dropped = Dropped {
                key: self.merge.key(),
                value: self.merge.value(),
            };
            (self.on_drop)(dropped);
            self.pass();
        }
    }

    /// Moves the merge on, and remembers what it stood on.
    fn pass(&mut self) {
        let key = self.merge.key();
        if self.newer.is_none() || self.name != key.name {
            self.name.clear();
            self.name.extend_from_slice(key.name);
        }
        self.newer = Some(key.version);
        self.merge.next();
    }

    fn is_kept(&self) -> bool {
        let key = self.merge.key();
        let newer = self.newer.filter(|_| self.name == key.name);
        match newer {
            // A copy.
            Some(newer) if newer == key.version => false,
            Some(newer) if !self.rules.is_wanted(key.version, newer) => false,
            _ => !self.is_spent_tombstone(key.version),
        }
    }

    /// A tombstone at the bottom that all readers see: what it hides is dropped behind it, because
    /// no reader is below it.
    fn is_spent_tombstone(&self, version: Hlc) -> bool {
        self.rules.is_bottom
            && version <= self.rules.floor()
            && matches!(self.merge.value(), ValueSource::Absent)
    }
}
