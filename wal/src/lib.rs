//! strandline-wal.
