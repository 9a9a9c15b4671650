//! Fails where a test that `FAULTS.md` names did not pass in a run of the suite.
#![allow(clippy::unwrap_used, reason = "it fails by panicking")]

use std::collections::BTreeSet;
use std::process::ExitCode;

use strandline_tests::faults::{TEXT, passed_in, problems, rows};

fn main() -> ExitCode {
    let logs: Vec<String> = std::env::args().skip(1).collect();
    if logs.is_empty() {
        eprintln!("usage: faults LOG [LOG ...]: the output of the tests");
        return ExitCode::from(2);
    }
    let mut passed = BTreeSet::new();
    for log in &logs {
        match std::fs::read(log) {
            Ok(bytes) => passed.extend(passed_in(&String::from_utf8_lossy(&bytes))),
            Err(error) => {
                eprintln!("faults: {log}: {error}");
                return ExitCode::from(3);
            }
        }
    }
    let rows = rows(TEXT);
    let problems = problems(&rows, &passed);
    for problem in &problems {
        println!("{problem} passed in this run");
    }
    let tests: BTreeSet<&String> = rows.iter().flat_map(|row| &row.tests).collect();
    println!(
        "FAULTS.md: {} rows, {} tests, {} of them did not pass here",
        rows.len(),
        tests.len(),
        problems.len()
    );
    match problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
