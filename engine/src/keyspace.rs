//! A keyspace: a named, ordered map inside a dataset.

use std::ops::{Bound, ControlFlow, RangeBounds};
use std::sync::Arc;

use strandline_wal::Hlc;

use crate::dataset::Dataset;
use crate::error::Result;
use crate::iter::{Cursor, Iter};
use crate::options::Durability;
use crate::store::Value;
use crate::store::batch::{
    Changes, KEYSPACE_LEN, NAME_ROOM_LEN, Name, NameBounds, name_in, name_of,
};
use crate::store::iter::Scan;
use crate::store::view::View;

/// An ordered map of keys to values, both byte strings. Clones are the same keyspace.
#[derive(Clone, Debug)]
pub struct Keyspace {
    dataset: Dataset,
    number: u32,
    name: Arc<str>,
}

impl Keyspace {
    pub(crate) fn new(dataset: Dataset, number: u32, name: &str) -> Keyspace {
        Keyspace {
            dataset,
            number,
            name: name.into(),
        }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The dataset that it belongs to.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The committed value of a key, without a copy.
    ///
    /// # Errors
    /// The disk's, and damage in the place where the key must be looked for: other keys stay
    /// readable.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>> {
        let mut room = [0; NAME_ROOM_LEN];
        let name = name_in(&mut room, self.number, key.as_ref());
        let inner = self.dataset.inner();
        Ok(inner.with_view(|view| view.get(&name, view.now()))?)
    }

    /// Shows the committed value of a key to `see` where it stands, and returns what that does: the
    /// quickest way to look at one.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn show<R>(
        &self,
        key: impl AsRef<[u8]>,
        see: impl FnOnce(&[u8]) -> R,
    ) -> Result<Option<R>> {
        let mut room = [0; NAME_ROOM_LEN];
        let name = name_in(&mut room, self.number, key.as_ref());
        let inner = self.dataset.inner();
        Ok(inner.with_view(|view| view.show(&name, view.now(), see))?)
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn contains(&self, key: impl AsRef<[u8]>) -> Result<bool> {
        Ok(self.show(key, |_| ())?.is_some())
    }

    /// The number of keys.
    ///
    /// It is known of settled tables: without newer writes in memory or in tables above the bottom run
    /// no key is read, however many there are. With some, those keys are looked up, not all.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn len(&self) -> Result<u64> {
        self.dataset.inner().now().len(self.number)
    }

    /// Whether there are no keys. Looks for the first one.
    ///
    /// # Errors
    /// As [`Keyspace::get`].
    pub fn is_empty(&self) -> Result<bool> {
        let now = self.dataset.inner().now();
        now.is_empty(prefix_bounds(self.number, &[]))
    }

    /// The values of many keys, all of one moment.
    ///
    /// # Errors
    /// As [`Keyspace::get`], of the first key that fails.
    pub fn multi_get<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Value>>> {
        let now = self.dataset.inner().now();
        let mut room = [0; NAME_ROOM_LEN];
        keys.into_iter()
            .map(|key| now.get(&name_in(&mut room, self.number, key.as_ref())))
            .collect()
    }

    /// Sets the value of a key at the database's level.
    ///
    /// # Errors
    /// As [`crate::WriteBatch::put`] and [`crate::WriteBatch::commit_with`].
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<()> {
        self.put_with(key, value, self.dataset.database().options().durability)
    }

    /// Sets the value of a key and returns once it has reached `level`.
    ///
    /// # Errors
    /// As [`Keyspace::put`].
    pub fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        level: Durability,
    ) -> Result<()> {
        let options = self.dataset.database().options();
        let mut changes = Changes::default();
        let route = (&options.router, options.entity_rule);
        changes.put(route, self.number, key.as_ref(), value.as_ref())?;
        self.dataset.inner().write(changes, level).map(|_| ())
    }

    /// Removes a key, whether it is there or not.
    ///
    /// # Errors
    /// As [`Keyspace::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<()> {
        self.delete_with(key, self.dataset.database().options().durability)
    }

    /// Removes a key and returns once that has reached `level`.
    ///
    /// # Errors
    /// As [`Keyspace::put`].
    pub fn delete_with(&self, key: impl AsRef<[u8]>, level: Durability) -> Result<()> {
        let options = self.dataset.database().options();
        let mut changes = Changes::default();
        let route = (&options.router, options.entity_rule);
        changes.delete(route, self.number, key.as_ref())?;
        self.dataset.inner().write(changes, level).map(|_| ())
    }

    /// All keys and values, ascending, as they are now.
    pub fn iter(&self) -> Iter {
        self.range::<&[u8], _>(..)
    }

    /// The keys of a range and their values, ascending, as they are now; from the other end with
    /// [`Iterator::rev`].
    pub fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(&self, range: R) -> Iter {
        let now = self.dataset.inner().now();
        Iter::new(now, bounds_of(self.number, &range))
    }

    /// Shows the keys of a range and their values to `see`, ascending, where they stand, until it breaks:
    /// the quickest way to look at many. Both are as of the call.
    ///
    /// # Errors
    /// As [`Keyspace::get`], of the first key that fails; those before it were shown.
    pub fn visit<K: AsRef<[u8]>, R: RangeBounds<K>>(
        &self,
        range: R,
        see: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let bounds = bounds_of(self.number, &range);
        let inner = self.dataset.inner();
        inner.with_moment(|view, at| visit(view, at, bounds, see))
    }

    /// As [`Keyspace::visit`], descending.
    ///
    /// # Errors
    /// As [`Keyspace::visit`].
    pub fn visit_rev<K: AsRef<[u8]>, R: RangeBounds<K>>(
        &self,
        range: R,
        see: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<()> {
        let bounds = bounds_of(self.number, &range);
        let inner = self.dataset.inner();
        inner.with_moment(|view, at| visit_rev(view, at, bounds, see))
    }

    /// The keys that start with `prefix`, and no others, with their values.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Iter {
        let now = self.dataset.inner().now();
        Iter::new(now, prefix_bounds(self.number, prefix.as_ref()))
    }

    /// A cursor over the keyspace as it is now.
    pub fn cursor(&self) -> Cursor {
        let now = self.dataset.inner().now();
        Cursor::new(now, self.number, bounds_of::<&[u8], _>(self.number, &(..)))
    }
}

/// Shows what was visible within the bounds at a time.
pub(crate) fn visit(
    view: &View,
    at: Hlc,
    bounds: NameBounds,
    mut see: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<()> {
    let scan = Scan::new(view, at, bounds);
    Ok(scan.visit(|name, value| see(&name[KEYSPACE_LEN..], value))?)
}

/// As [`visit`], descending.
pub(crate) fn visit_rev(
    view: &View,
    at: Hlc,
    bounds: NameBounds,
    mut see: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<()> {
    let scan = Scan::new(view, at, bounds);
    Ok(scan.visit_back(|name, value| see(&name[KEYSPACE_LEN..], value))?)
}

/// The names of a keyspace within a range of keys.
pub(crate) fn bounds_of<K: AsRef<[u8]>, R: RangeBounds<K>>(keyspace: u32, range: &R) -> NameBounds {
    let lower = match range.start_bound() {
        Bound::Included(key) => Bound::Included(name_of(keyspace, key.as_ref())),
        Bound::Excluded(key) => Bound::Excluded(name_of(keyspace, key.as_ref())),
        Bound::Unbounded => Bound::Included(name_of(keyspace, &[])),
    };
    let upper = match range.end_bound() {
        Bound::Included(key) => Bound::Included(name_of(keyspace, key.as_ref())),
        Bound::Excluded(key) => Bound::Excluded(name_of(keyspace, key.as_ref())),
        Bound::Unbounded => after(name_of(keyspace, &[])),
    };
    (lower, upper)
}

/// The names of a keyspace whose keys start with a prefix.
pub(crate) fn prefix_bounds(keyspace: u32, prefix: &[u8]) -> NameBounds {
    let name = name_of(keyspace, prefix);
    (Bound::Included(name.clone()), after(name))
}

/// The end of everything that starts with `prefix`.
fn after(mut prefix: Name) -> Bound<Name> {
    let Some(last) = prefix.iter().rposition(|byte| *byte < u8::MAX) else {
        return Bound::Unbounded;
    };
    prefix.truncate(last + 1);
    prefix[last] += 1;
    Bound::Excluded(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one_of_its_length_or_shorter() {
        let after = |prefix: &[u8]| super::after(prefix.into());
        assert_eq!(after(&[1, 2, 3]), Bound::Excluded([1, 2, 4][..].into()));
        assert_eq!(after(&[1, 2, 255, 255]), Bound::Excluded([1, 3][..].into()));
        assert_eq!(after(&[255; 5]), Bound::Unbounded);
    }
}
