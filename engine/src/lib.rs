//! Strandline: an embedded, log-structured key-value engine with built-in replication.

pub mod table;

/// One shard's state.
pub mod store {
    pub mod memtable;
    pub mod merge;
}
