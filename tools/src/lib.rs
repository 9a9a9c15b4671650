//! strandline-tools.
