//! strandline-tests.
