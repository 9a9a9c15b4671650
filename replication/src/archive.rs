//! The archive of a dataset in an object store: its names, its bytes, and which of them a restore takes.
//!
//! Leaderships upload, one after the other, each under its own epoch; every object is created once and
//! never changed. A leadership begins with a [`Term`], which says from which record on it uploads and
//! which earlier term it goes on from. So the newest term and what it names, and so on, is the one path
//! ([`Index::runs`]); what a deposed leader uploads beside it, or behind the record with which a later epoch
//! began, is never part of a restore.
//!
//! ```text
//! {dataset}/{lineage}/term/{epoch}                                  who uploads, and from where on
//! .../log/{epoch}/{shard}/{first}-{last}-{prev}-{chain}.seg         a sealed segment, verbatim
//! .../log/{epoch}/{shard}/{first}-{last}-{prev}-{chain}-{seg}.tail  a part of a growing segment
//! .../break/{epoch}/{shard}/{first}                                 records before this one are missing
//! .../file/{epoch}/{digest}                                         a file of a base, by its BLAKE3
//! .../base/{epoch}/{timestamp}                                      a checkpoint: which files it has
//! ```
//!
//! A base is created after all of its files, so it is whole or not there. The names tell first and last
//! record and the chain values around them, so that one list shows a gap. What is uploaded is committed.

mod codec;
mod index;
mod memory;
mod name;
#[cfg(feature = "object-store")]
mod object_store;

use std::fmt;

pub use codec::{Base, BaseEnd, BaseFile, FileKind, Start, Tail, Term};
pub use index::{Gap, Index, Run};
pub use memory::{Faults, MemoryArchive};
pub use name::{BaseName, Break, Piece, PieceKind, Root};
#[cfg(feature = "object-store")]
pub use object_store::{ObjectArchive, ObjectArchiveOptions};
use strandline_wal::bug::planted;

/// Longest object, in bytes: it is made and read in memory.
pub const OBJECT_LEN_MAX: u64 = 1 << 30;
/// Most times that one request is sent before it has failed.
pub const SEND_COUNT_MAX: u32 = 4;

/// What is wrong with an archive.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store did not answer, or refused. A put may have been done all the same.
    #[error("the archive cannot be asked for {object}: {what}; it is tried again")]
    Store {
        /// Which object or prefix.
        object: String,
        /// What happened.
        what: String,
    },
    /// An object is not there.
    #[error("{object} is missing in the archive")]
    Missing {
        /// Which.
        object: String,
    },
    /// An object has other bytes than were written.
    #[error("{object} is damaged: {what}")]
    Damaged {
        /// Which.
        object: String,
        /// What is wrong, and where.
        what: String,
    },
    /// Records are missing.
    #[error("the archive has a gap: {0}")]
    Gap(Gap),
    /// An object of that name has other bytes: two leaders claim one epoch.
    #[error("{object} was written by another leader; this node's leadership is over")]
    Taken {
        /// Which.
        object: String,
    },
    /// It cannot be done with what is there.
    #[error("{0}")]
    Refused(String),
}

/// The result of calls to an archive.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How a put ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Put {
    /// The object was created.
    Created,
    /// One of that name is there, perhaps this one.
    Exists,
}

/// An object in a list.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub len: u64,
}

/// A store of objects. Calls block, up to a deadline of the store's own; each is one request, or as many
/// as the store splits it into. Not to be called by a thread of an async runtime.
pub trait ArchiveStore: Send + Sync {
    /// Creates an object; one that is there is never replaced.
    ///
    /// # Errors
    /// Nobody can tell whether it was created.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<Put>;

    /// Reads an object; `None` where there is none.
    ///
    /// # Errors
    /// The store's.
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>>;

    /// All objects whose names begin with `prefix`, which ends with a slash, in the order of their names.
    ///
    /// # Errors
    /// The store's.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>>;

    /// Removes an object; one that is absent is none the less removed.
    ///
    /// # Errors
    /// The store's.
    fn delete(&self, name: &str) -> Result<()>;

    /// Requests that were sent so far.
    fn request_count(&self) -> u64;
}

/// Creates an object, whatever becomes of the answers: where one of that name is there, it must have these
/// bytes.
///
/// # Errors
/// [`Error::Taken`] where it has others; the store's, after some tries.
pub fn create(store: &dyn ArchiveStore, name: &str, bytes: &[u8]) -> Result<()> {
    match retried(|| store.put(name, bytes))? {
        Put::Created => Ok(()),
        Put::Exists if planted("archive.exists") => Ok(()),
        Put::Exists => match retried(|| store.get(name))? {
            Some(found) if found == bytes => Ok(()),
            Some(_) => Err(Error::Taken {
                object: name.to_owned(),
            }),
            None => Err(Error::Missing {
                object: name.to_owned(),
            }),
        },
    }
}

/// Reads an object that must be there.
///
/// # Errors
/// [`Error::Missing`]; the store's, after some tries.
pub fn read(store: &dyn ArchiveStore, name: &str) -> Result<Vec<u8>> {
    retried(|| store.get(name))?.ok_or_else(|| Error::Missing {
        object: name.to_owned(),
    })
}

/// Sends a request again that failed. Waiting between is the store's: it knows its engine.
///
/// # Errors
/// The last one's.
pub fn retried<T>(mut send: impl FnMut() -> Result<T>) -> Result<T> {
    let mut n = 1;
    loop {
        match send() {
            Err(Error::Store { .. }) if n < SEND_COUNT_MAX => n += 1,
            done => return done,
        }
    }
}

pub(crate) fn damaged(object: &str, what: impl fmt::Display) -> Error {
    Error::Damaged {
        object: object.to_owned(),
        what: what.to_string(),
    }
}

#[cfg(test)]
mod tests;
