//! What is wrong with the bytes of a table, and where.

use std::fmt;
use std::ops::Deref;
use std::path::Path;

use strandline_wal::Error;

/// One place of a file that is not what was written. No longer than a pointer: results with it are
/// returned for every record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Damage(Box<Parts>);

/// What a [`Damage`] says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Parts {
    /// Byte offset in the file.
    pub at: u64,
    /// The part that is wrong.
    pub what: &'static str,
    /// What should be there.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// The bytes are intact but of a version that this build does not read.
    pub is_unsupported: bool,
}

impl Deref for Damage {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Damage {
    #[cold]
    pub(super) fn new(
        at: u64,
        what: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Damage {
        Damage(Box::new(Parts {
            at,
            what,
            expected: expected.to_string(),
            found: found.to_string(),
            is_unsupported: false,
        }))
    }

    /// Something intact that only another version reads.
    pub(super) fn unsupported(
        at: u64,
        what: &'static str,
        expected: impl fmt::Display,
        found: impl fmt::Display,
    ) -> Damage {
        let mut damage = Damage::new(at, what, expected, found);
        damage.0.is_unsupported = true;
        damage
    }

    /// The same where the part that was looked at begins at `start`.
    pub(super) fn behind(mut self, start: u64) -> Damage {
        self.0.at += start;
        self
    }

    /// The error that names the file as well.
    pub fn into_error(self, path: &Path) -> Error {
        if self.is_unsupported {
            return Error::Unsupported {
                path: path.to_owned(),
                expected: format!("{} {}", self.what, self.expected),
                found: format!(
                    "a table with {} {} at byte {}, which needs another version",
                    self.what, self.found, self.at
                ),
            };
        }
        Error::Corrupt {
            path: path.to_owned(),
            at: self.at,
            what: self.what,
            expected: self.0.expected,
            found: self.0.found,
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts {
            at,
            what,
            expected,
            found,
            ..
        } = &**self;
        write!(f, "byte {at}: {what}: expected {expected}, found {found}")
    }
}
