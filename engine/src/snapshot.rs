//! A dataset at one moment.

use std::ops::{ControlFlow, RangeBounds};

use crate::dataset::Dataset;
use crate::error::Result;
use crate::iter::{Cursor, Iter};
use crate::keyspace::{Keyspace, bounds_of, prefix_bounds, visit, visit_rev};
use crate::store::Value;
use crate::store::batch::{NAME_ROOM_LEN, name_in};
use crate::store::read::Moment;

/// One committed state of a dataset, across its keyspaces and shards.
///
/// It holds the memory and files of that state until it is dropped, whatever is written, flushed,
/// compacted or removed meanwhile.
#[derive(Clone)]
pub struct Snapshot {
    dataset: Dataset,
    moment: Moment,
}

impl Snapshot {
    pub(crate) fn new(dataset: Dataset, moment: Moment) -> Snapshot {
        Snapshot { dataset, moment }
    }

    /// The dataset that it is of.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The hybrid logical time of the state.
    pub fn timestamp(&self) -> strandline_wal::Hlc {
        self.moment.at
    }

    /// The value of a key then.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn get(&self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        let mut room = [0; NAME_ROOM_LEN];
        let name = name_in(&mut room, keyspace.number(), key.as_ref());
        self.moment.get(&name)
    }

    /// Shows the value of a key then, as [`Keyspace::show`] does.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn show<R>(
        &self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        see: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        let mut room = [0; NAME_ROOM_LEN];
        let name = name_in(&mut room, keyspace.number(), key.as_ref());
        self.moment.show(&name, see)
    }

    /// The number of keys then. It costs what [`Keyspace::len`] did then, and a step over each of the
    /// writes that came into the same memory since.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn len(&self, keyspace: &Keyspace) -> Result<u64> {
        self.moment.len(keyspace.number())
    }

    /// Whether there were no keys then.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn is_empty(&self, keyspace: &Keyspace) -> Result<bool> {
        let bounds = prefix_bounds(keyspace.number(), &[]);
        self.moment.is_empty(bounds)
    }

    /// Shows the keys of a range then, with their values, as [`Keyspace::visit`] does.
    ///
    /// # Errors
    /// As [`Keyspace::visit`].
    pub fn visit<K: AsRef<[u8]>, R: RangeBounds<K>>(
        &self,
        keyspace: &Keyspace,
        range: R,
        see: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let Moment { view, at } = &self.moment;
        visit(view, *at, bounds_of(keyspace.number(), &range), see)
    }

    /// As [`Snapshot::visit`], descending.
    ///
    /// # Errors
    /// As [`Keyspace::visit`].
    pub fn visit_rev<K: AsRef<[u8]>, R: RangeBounds<K>>(
        &self,
        keyspace: &Keyspace,
        range: R,
        see: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let Moment { view, at } = &self.moment;
        visit_rev(view, *at, bounds_of(keyspace.number(), &range), see)
    }

    /// The keys of a range then, with their values.
    pub fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(&self, keyspace: &Keyspace, range: R) -> Iter {
        Iter::new(self.moment.clone(), bounds_of(keyspace.number(), &range))
    }

    /// All keys then, with their values.
    pub fn iter(&self, keyspace: &Keyspace) -> Iter {
        self.range::<&[u8], _>(keyspace, ..)
    }

    /// The keys that started with `prefix` then, with their values.
    pub fn prefix(&self, keyspace: &Keyspace, prefix: impl AsRef<[u8]>) -> Iter {
        Iter::new(
            self.moment.clone(),
            prefix_bounds(keyspace.number(), prefix.as_ref()),
        )
    }

    /// A cursor over a keyspace as it was then.
    pub fn cursor(&self, keyspace: &Keyspace) -> Cursor {
        let bounds = bounds_of::<&[u8], _>(keyspace.number(), &(..));
        Cursor::new(self.moment.clone(), keyspace.number(), bounds)
    }
}
