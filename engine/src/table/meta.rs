//! What the manifest keeps of a table: enough to choose it, to check it and to count what it holds.

use strandline_wal::Hlc;

use super::header::Identity;
use super::properties::{PointerFile, Properties};

/// A table as its builder left it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableMeta {
    /// Which table of which database.
    pub identity: Identity,
    /// Length of the file in bytes.
    pub len: u64,
    /// BLAKE3 of the file up to its footer; the footer repeats it.
    pub digest: [u8; 32],
    /// The first name.
    pub name_min: Vec<u8>,
    /// The last name.
    pub name_max: Vec<u8>,
    /// Entries.
    pub entry_count: u64,
    /// Of them tombstones.
    pub tombstone_count: u64,
    /// Distinct names.
    pub name_count: u64,
    /// Oldest version.
    pub version_min: Hlc,
    /// Newest version.
    pub version_max: Hlc,
    /// Bytes of the names, per entry.
    pub names_len: u64,
    /// Bytes of the values, those behind pointers included.
    pub values_len: u64,
    /// The files that pointers lead to, ascending by source, shard and file.
    pub files: Vec<PointerFile>,
}

impl TableMeta {
    pub(super) fn of(
        identity: Identity,
        len: u64,
        digest: [u8; 32],
        properties: Properties,
    ) -> TableMeta {
        TableMeta {
            identity,
            len,
            digest,
            name_min: properties.name_min,
            name_max: properties.name_max,
            entry_count: properties.entry_count,
            tombstone_count: properties.tombstone_count,
            name_count: properties.name_count,
            version_min: properties.version_min,
            version_max: properties.version_max,
            names_len: properties.names_len,
            values_len: properties.values_len,
            files: properties.files,
        }
    }

    /// Whether a name may be in the table.
    pub fn spans(&self, name: &[u8]) -> bool {
        *self.name_min <= *name && *name <= *self.name_max
    }
}
