//! Fuzzes the target `table`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| strandline_fuzz::run("table", bytes));
