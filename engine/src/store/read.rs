//! Reads of one moment.

use std::sync::Arc;

use strandline_wal::Hlc;

use super::batch::{NameBounds, name_of};
use super::iter::{Scan, cursors};
use super::merge::Merge;
use super::view::{Value, View};
use crate::error::Result;
use crate::table::{EntryKind, InternalKey};

/// A dataset at one moment: all reads through it see the same state.
#[derive(Clone)]
pub(crate) struct Moment {
    pub view: Arc<View>,
    pub at: Hlc,
}

impl Moment {
    pub fn get(&self, name: &[u8]) -> Result<Option<Value>> {
        Ok(self.view.get(name, self.at)?)
    }

    pub fn show<R>(&self, name: &[u8], see: impl FnOnce(&[u8]) -> R) -> Result<Option<R>> {
        Ok(self.view.show(name, self.at, see)?)
    }

    /// How many names of a keyspace have a value.
    ///
    /// What the tables of the bottom run tell of themselves is taken from there; names that are in
    /// memory or in a newer run as well are looked up one by one. Without any, no entry is read.
    pub fn len(&self, keyspace: u32) -> Result<u64> {
        let (newer, bottom) = match self.view.runs.split_last() {
            Some((bottom, newer)) if bottom.is_within(self.at) => (newer, Some(bottom)),
            _ => (&self.view.runs[..], None),
        };
        let mut len = bottom.map_or(0, |run| run.value_count(keyspace));
        let mut merge = Merge::new(cursors(&self.view, newer, self.at));
        let first = name_of(keyspace, &[]);
        merge.seek(InternalKey::first_of(&first));
        let mut counted: Option<Vec<u8>> = None;
        while merge.is_valid() && merge.key().name.starts_with(&first) {
            let InternalKey { name, version } = merge.key();
            if version <= self.at && counted.as_deref() != Some(name) {
                let is_value = merge.kind() != EntryKind::Tombstone;
                let below = match bottom {
                    Some(run) => run.newest(name, self.at)?,
                    None => None,
                };
                let (is_newer, was_value) = match below {
                    Some((below, was_value)) => (below < version, was_value),
                    None => (true, false),
                };
                if is_newer {
                    // Only of a forged table is the count too small.
                    len = (len + u64::from(is_value)).saturating_sub(was_value.into());
                }
                let counted = counted.get_or_insert_default();
                counted.clear();
                counted.extend_from_slice(name);
            }
            merge.next();
        }
        merge.status()?;
        Ok(len)
    }

    /// Whether no name within the bounds has a value.
    pub fn is_empty(&self, bounds: NameBounds) -> Result<bool> {
        let mut scan = self.scan(bounds);
        scan.names().first();
        scan.status()?;
        Ok(!scan.is_valid())
    }

    pub fn scan(&self, bounds: NameBounds) -> Scan {
        Scan::new(Arc::clone(&self.view), self.at, bounds)
    }
}
