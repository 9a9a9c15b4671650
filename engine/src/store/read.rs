//! Reads: of the newest committed state, or of one moment.
//!
//! The view is taken first and the time second. A view holds everything up to a memtable's seal, so
//! reading it at a later time shows a prefix; the other way round a compaction might have dropped
//! what the earlier time still needs.

use std::ops::Bound;
use std::sync::Arc;

use strandline_wal::Hlc;
use strandline_wal::bug::planted;

use super::Store;
use super::iter::Scan;
use super::view::{Value, View};
use crate::error::Result;

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

    pub fn scan(&self, bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>)) -> Scan {
        Scan::new(Arc::clone(&self.view), self.at, bounds)
    }
}

impl Store {
    /// What is committed now.
    pub fn now(&self) -> Moment {
        let view = self.view();
        let at = match planted("read.uncommitted") {
            true => self.watermarks.published_timestamp(),
            false => self.watermarks.visible(),
        };
        Moment { view, at }
    }

    /// The newest committed value of a name.
    ///
    /// # Errors
    /// The disk's, and damage in the place where the name must be looked for.
    pub fn get(&self, name: &[u8]) -> Result<Option<Value>> {
        let view = self.view.read();
        let at = self.watermarks.visible();
        Ok(view.get(name, at)?)
    }
}
