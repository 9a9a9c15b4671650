//! Fuzzes [`strandline_fuzz::batch`].
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| strandline_fuzz::batch(bytes));
