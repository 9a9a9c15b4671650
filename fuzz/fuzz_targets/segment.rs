//! Fuzzes the target `segment`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| strandline_fuzz::run("segment", bytes));
