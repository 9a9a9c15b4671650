//! strandline-replication.
