//! strandline-fuzz.
