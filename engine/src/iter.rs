//! Walking a keyspace: an iterator from both ends, and a cursor that goes where it is told.

use crate::error::{Error, Result};
use crate::store::Value;
use crate::store::batch::{KEYSPACE_LEN, NameBounds, name_of};
use crate::store::iter::Scan;
use crate::store::read::Moment;

/// A key and its value.
pub type Item = (Vec<u8>, Value);

/// Keys and values of one moment, ascending; from the other end with [`Iterator::rev`].
///
/// The first error ends it: it never steps over what it cannot read.
pub struct Iter {
    moment: Moment,
    bounds: NameBounds,
    front: Option<Scan>,
    back: Option<Scan>,
    /// The last names that were given out at each end: the ends stop where they meet.
    front_name: Option<Vec<u8>>,
    back_name: Option<Vec<u8>>,
    done: bool,
}

impl Iter {
    pub(crate) fn new(moment: Moment, bounds: NameBounds) -> Iter {
        let (front, back, front_name, back_name) = (None, None, None, None);
        Iter {
            moment,
            bounds,
            front,
            back,
            front_name,
            back_name,
            done: false,
        }
    }

    fn end(&mut self, status: strandline_wal::Result<()>) -> Option<Result<Item>> {
        self.done = true;
        (self.front, self.back) = (None, None);
        status.err().map(|error| Err(Error::from(error)))
    }
}

fn item(scan: &Scan) -> strandline_wal::Result<Item> {
    Ok((scan.name()[KEYSPACE_LEN..].to_vec(), scan.value()?))
}

fn keep(name: &mut Option<Vec<u8>>, scan: &Scan) {
    let name = name.get_or_insert_default();
    name.clear();
    name.extend_from_slice(scan.name());
}

impl Iterator for Iter {
    type Item = Result<Item>;

    fn next(&mut self) -> Option<Result<Item>> {
        if self.done {
            return None;
        }
        let scan = match &mut self.front {
            Some(scan) => {
                scan.names().next();
                scan
            }
            front => {
                let scan = front.insert(self.moment.scan(self.bounds.clone()));
                scan.names().first();
                scan
            }
        };
        let back = self.back_name.as_deref();
        if !scan.is_valid() || back.is_some_and(|back| scan.name() >= back) {
            let status = scan.status();
            return self.end(status);
        }
        if self.back.is_some() {
            keep(&mut self.front_name, scan);
        }
        match item(scan) {
            Ok(item) => Some(Ok(item)),
            Err(error) => self.end(Err(error)),
        }
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Result<Item>> {
        if self.done {
            return None;
        }
        if self.front_name.is_none()
            && let Some(front) = &self.front
        {
            keep(&mut self.front_name, front);
        }
        let scan = match &mut self.back {
            Some(scan) => {
                scan.names().prev();
                scan
            }
            back => {
                let scan = back.insert(self.moment.scan(self.bounds.clone()));
                scan.names().last();
                scan
            }
        };
        let front = self.front_name.as_deref();
        if !scan.is_valid() || front.is_some_and(|front| scan.name() <= front) {
            let status = scan.status();
            return self.end(status);
        }
        keep(&mut self.back_name, scan);
        match item(scan) {
            Ok(item) => Some(Ok(item)),
            Err(error) => self.end(Err(error)),
        }
    }
}

/// A place in a keyspace at one moment, moved by hand.
pub struct Cursor {
    scan: Scan,
    keyspace: u32,
}

impl Cursor {
    pub(crate) fn new(moment: Moment, keyspace: u32, bounds: NameBounds) -> Cursor {
        Cursor {
            scan: moment.scan(bounds),
            keyspace,
        }
    }

    /// Moves to the first key at or behind `key`. Returns whether there is one, as all moves do.
    ///
    /// # Errors
    /// The disk's, and damage in the place where the next key must be looked for, as all moves.
    pub fn seek(&mut self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.scan
            .names()
            .seek(&name_of(self.keyspace, key.as_ref()));
        self.moved()
    }

    /// Moves to the last key at or before `key`.
    ///
    /// # Errors
    /// As [`Cursor::seek`].
    pub fn seek_back(&mut self, key: impl AsRef<[u8]>) -> Result<bool> {
        self.scan
            .names()
            .seek_for_prev(&name_of(self.keyspace, key.as_ref()));
        self.moved()
    }

    /// Moves to the first key.
    ///
    /// # Errors
    /// As [`Cursor::seek`].
    pub fn first(&mut self) -> Result<bool> {
        self.scan.names().first();
        self.moved()
    }

    /// Moves to the last key.
    ///
    /// # Errors
    /// As [`Cursor::seek`].
    pub fn last(&mut self) -> Result<bool> {
        self.scan.names().last();
        self.moved()
    }

    /// Moves to the next key. Does nothing where the cursor stands nowhere.
    ///
    /// # Errors
    /// As [`Cursor::seek`].
    #[allow(
        clippy::should_implement_trait,
        reason = "it moves; the key and value are asked for"
    )]
    pub fn next(&mut self) -> Result<bool> {
        self.scan.names().next();
        self.moved()
    }

    /// Moves to the key before. Does nothing where the cursor stands nowhere.
    ///
    /// # Errors
    /// As [`Cursor::seek`].
    pub fn prev(&mut self) -> Result<bool> {
        self.scan.names().prev();
        self.moved()
    }

    fn moved(&self) -> Result<bool> {
        self.scan.status()?;
        Ok(self.scan.is_valid())
    }

    /// The key that the cursor stands on.
    pub fn key(&self) -> Option<&[u8]> {
        self.scan
            .is_valid()
            .then(|| &self.scan.name()[KEYSPACE_LEN..])
    }

    /// The value of that key.
    ///
    /// # Errors
    /// The disk's, and damage in the value.
    pub fn value(&self) -> Result<Option<Value>> {
        if !self.scan.is_valid() {
            return Ok(None);
        }
        Ok(Some(self.scan.value()?))
    }
}
