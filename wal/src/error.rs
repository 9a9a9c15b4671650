//! What can go wrong in a log, with the file, the place, and what was expected and found there.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ids::{LogId, Position};

/// A failure of the log. Cheap to clone, so that a poisoned log can repeat its cause.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk refused a call.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// The call, as `write`, `sync`, `rename`.
        op: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the disk said.
        source: Arc<io::Error>,
    },
    /// Stored bytes are not what was written.
    #[error("{} is damaged at byte {at}: {what}: expected {expected}, found {found}; restore it from a follower or a checkpoint, or salvage what is good", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Byte offset in the file.
        at: u64,
        /// The part that is wrong.
        what: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file is of a version this build does not read, or of another kind of thing.
    #[error("{} is {found}; this build reads {expected}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What this build reads.
        expected: String,
        /// What the file is.
        found: String,
    },
    /// An earlier write or sync failed: nothing more is accepted until the log is reopened.
    #[error("the log {log} takes no more writes since {cause}; reopen the database")]
    Poisoned {
        /// The log.
        log: Box<LogId>,
        /// The failure that did it.
        cause: Arc<Error>,
    },
    /// A thread that committed for others panicked: how far it came is unknown.
    #[error("a thread panicked while it committed for others; reopen the database")]
    Panicked,
    /// The log was closed before this was done.
    #[error("the log was closed; the next open tells what is in it")]
    Closed,
    /// Something is larger than a limit.
    #[error("{what} is {found}, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its limit.
        limit: u64,
        /// Its size.
        found: u64,
    },
    /// Bytes that were shipped do not continue this log.
    #[error("{log} cannot take shipped bytes at {at}: {what}: expected {expected}, found {found}")]
    Refused {
        /// The log.
        log: Box<LogId>,
        /// Where this log ends.
        at: Position,
        /// Which check failed.
        what: &'static str,
        /// What this log needs.
        expected: String,
        /// What came.
        found: String,
    },
}

/// The result of log calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Whether stored bytes are damaged.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Error::Corrupt { .. })
    }

    /// Whether the disk is full or a quota is reached.
    pub fn is_no_space(&self) -> bool {
        match self {
            Error::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            ),
            Error::Poisoned { cause, .. } => cause.is_no_space(),
            _ => false,
        }
    }

    /// Whether a file is absent.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// A damage report. `at` is the byte offset in `path`.
    pub fn corrupt(
        path: &Path,
        at: u64,
        what: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Error {
        Error::Corrupt {
            path: path.to_owned(),
            at,
            what,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// Adds the operation and the path to a disk error.
pub trait IoContext<T> {
    /// Wraps the error as [`Error::Io`].
    fn during(self, op: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn during(self, op: &'static str, path: &Path) -> Result<T> {
        self.map_err(|source| Error::Io {
            op,
            path: path.to_owned(),
            source: Arc::new(source),
        })
    }
}

#[cfg(test)]
mod tests;
