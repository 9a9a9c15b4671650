//! strandline-benches.
