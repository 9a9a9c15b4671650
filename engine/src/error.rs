//! What can go wrong, sorted by who must act.

use std::path::PathBuf;
use std::sync::Arc;

use crate::options::Durability;

/// Who must act on an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller: the call itself is wrong.
    Caller,
    /// The operator: disk space, permissions, configuration, another process.
    Operator,
    /// Nobody yet: the same call may succeed later.
    Retry,
    /// Whoever keeps the copies: stored bytes are damaged.
    Restore,
    /// Nobody can tell whether the write survives: it is there or not after the next open.
    Unknown,
    /// Us.
    Bug,
}

/// A failure of the engine.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The log or the disk failed.
    #[error(transparent)]
    Log(#[from] strandline_wal::Error),
    /// Stored bytes are damaged, and no copy mended them.
    #[error("{damage}; it was not healed: {why}")]
    NotHealed {
        /// What is damaged.
        damage: Box<Error>,
        /// Why it still is.
        why: Box<Error>,
    },
    /// A key, value, batch or name is over its limit.
    #[error("{what} is {found} bytes, the limit is {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit, in bytes.
        limit: u64,
        /// Its size, in bytes.
        found: u64,
    },
    /// An argument or option has a value that means nothing here.
    #[error("{what}: {found} is not {expected}")]
    Argument {
        /// Which argument.
        what: &'static str,
        /// What it may be.
        expected: String,
        /// What it was.
        found: String,
    },
    /// The database was created with other settings than it is opened with.
    #[error("{} was created with {what} {stored}, it is opened with {given}; open it as it was created", path.display())]
    Mismatch {
        /// The database or dataset directory.
        path: PathBuf,
        /// Which setting.
        what: &'static str,
        /// As stored.
        stored: String,
        /// As given.
        given: String,
    },
    /// This node does not write: it follows another, or was opened for reading.
    #[error("{what} takes no writes: {why}")]
    ReadOnly {
        /// The database or dataset.
        what: String,
        /// Why not.
        why: &'static str,
    },
    /// Another process has the database open.
    #[error("{} is open in another process{note}; close it there, or open read-only", path.display())]
    Locked {
        /// The database directory.
        path: PathBuf,
        /// Who holds it, where that is known.
        note: String,
    },
    /// No such dataset, keyspace or database.
    #[error("no {what} named {name:?}{hint}")]
    NotFound {
        /// The kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// What to do.
        hint: &'static str,
    },
    /// The write is safe here; how far it came elsewhere is unknown.
    #[error(
        "not acknowledged at {wanted:?} within {waited_ms} ms: the write is durable here, its copies are unknown"
    )]
    Unacknowledged {
        /// The level asked for.
        wanted: Durability,
        /// How long the call waited.
        waited_ms: u64,
    },
    /// Another node leads now.
    #[error("this node no longer leads: epoch {found} was promised, this node wrote in {ours}")]
    Fenced {
        /// The epoch that this node wrote in.
        ours: u32,
        /// The higher one.
        found: u32,
    },
    /// Replication failed.
    #[error("replication: {0}")]
    Replication(String),
    /// The archive failed, or cannot do it.
    #[error(transparent)]
    Archive(#[from] strandline_replication::archive::Error),
    /// A background thread or callback failed; nothing more is written.
    #[error("stopped after a failure in {what}: {cause}; reopen the database")]
    Stopped {
        /// Which thread or callback.
        what: &'static str,
        /// What it said.
        cause: Arc<str>,
    },
    /// The database or dataset was closed.
    #[error("the {0} is closed")]
    Closed(&'static str),
}

/// The result of engine calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Who must act.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::Log(error) => log_kind(error),
            Error::NotHealed { damage, .. } => damage.kind(),
            Error::TooLarge { .. } | Error::Argument { .. } | Error::NotFound { .. } => {
                ErrorKind::Caller
            }
            Error::Mismatch { .. } | Error::Locked { .. } => ErrorKind::Operator,
            Error::ReadOnly { .. } | Error::Closed(_) => ErrorKind::Caller,
            Error::Unacknowledged { .. } => ErrorKind::Unknown,
            Error::Fenced { .. } | Error::Replication(_) => ErrorKind::Retry,
            Error::Stopped { .. } => ErrorKind::Operator,
            Error::Archive(error) => archive_kind(error),
        }
    }

    /// Whether stored bytes are damaged.
    pub fn is_corruption(&self) -> bool {
        self.kind() == ErrorKind::Restore
    }

    /// Whether the disk is full; the same call succeeds once there is room.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::Log(error) if error.is_no_space())
    }
}

fn archive_kind(error: &strandline_replication::archive::Error) -> ErrorKind {
    use strandline_replication::archive::Error as Archive;
    match error {
        Archive::Store { .. } => ErrorKind::Retry,
        Archive::Missing { .. } | Archive::Damaged { .. } | Archive::Gap(_) => ErrorKind::Restore,
        Archive::Refused(_) => ErrorKind::Caller,
        _ => ErrorKind::Operator,
    }
}

fn log_kind(error: &strandline_wal::Error) -> ErrorKind {
    use strandline_wal::Error as Log;
    match error {
        Log::Corrupt { .. } => ErrorKind::Restore,
        Log::TooLarge { .. } => ErrorKind::Caller,
        Log::Io { .. } | Log::Unsupported { .. } => ErrorKind::Operator,
        Log::Poisoned { .. } | Log::Panicked | Log::Closed => ErrorKind::Unknown,
        Log::Refused { .. } => ErrorKind::Retry,
        _ => ErrorKind::Bug,
    }
}

#[cfg(test)]
mod tests;
