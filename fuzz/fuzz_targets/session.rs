//! Fuzzes the target `session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| strandline_fuzz::run("session", bytes));
