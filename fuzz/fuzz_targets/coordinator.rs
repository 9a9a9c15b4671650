//! Fuzzes the target `coordinator`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| strandline_fuzz::run("coordinator", bytes));
