//! Strandline: an embedded, log-structured key-value engine with built-in replication.

pub mod table;
