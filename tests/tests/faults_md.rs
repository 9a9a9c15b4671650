//! `FAULTS.md` is whole, and each of its rows names tests that exist.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use strandline_tests::faults::{TEXT, passed_in, problems, rows, tests_in};

#[test]
fn every_fault_has_a_row_and_every_row_has_tests_that_exist() {
    let rows = rows(TEXT);
    let ids: Vec<&str> = rows.iter().map(|row| &*row.id).collect();
    let expected = (1..=37)
        .map(|n| format!("S{n}"))
        .chain((1..=17).map(|n| format!("N{n}")))
        .chain((1..=15).map(|n| format!("H{n}")));
    assert_eq!(ids, expected.collect::<Vec<String>>());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let tests = tests_in(root);
    assert!(tests.len() > 300, "{} tests", tests.len());
    let problems = problems(&rows, &tests);
    assert!(problems.is_empty(), "{problems:#?}");
}

#[test]
fn a_test_that_was_renamed_or_did_not_run_is_missed() {
    let text = TEXT.replace(
        "`a_clock_that_jumps_changes_nothing`",
        "`a_clock_that_was_renamed`",
    );
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let found = problems(&rows(&text), &tests_in(root));
    assert_eq!(found, ["S29: no test a_clock_that_was_renamed"]);
    let log = "test a::b ... ok\ntest c ... FAILED\nsomething\ntest d ... ignored\n";
    assert_eq!(passed_in(log).into_iter().collect::<Vec<_>>(), ["b"]);
    let none = passed_in(log);
    assert!(problems(&rows(TEXT), &none).len() > 50);
}
