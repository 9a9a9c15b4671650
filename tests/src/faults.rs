//! Reads `FAULTS.md`: which rows there are, and which tests each of them names.

use std::collections::BTreeSet;
use std::path::Path;

/// The promises, as they stand beside this package.
pub const TEXT: &str = include_str!("../FAULTS.md");

/// One promise.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Row {
    /// `S1` to `S34`, `N1` to `N14`, `H1` to `H15`.
    pub id: String,
    /// The tests that hold us to it.
    pub tests: Vec<String>,
}

/// The rows of all tables.
pub fn rows(text: &str) -> Vec<Row> {
    let row = |line: &str| {
        let cells: Vec<&str> = line.strip_prefix('|')?.split('|').map(str::trim).collect();
        let id = *cells.first()?;
        let (kind, number) = id.split_at_checked(1)?;
        if !["S", "N", "H"].contains(&kind) || number.parse::<u8>().is_err() {
            return None;
        }
        // Names stand in backquotes, in the cell before the last one.
        let names = cells.iter().rev().nth(2)?;
        let tests = names.split('`').skip(1).step_by(2);
        Some(Row {
            id: id.to_owned(),
            tests: tests.map(str::to_owned).collect(),
        })
    };
    text.lines().filter_map(row).collect()
}

/// What is wrong with the rows, where `known` are the tests that exist, or that ran.
pub fn problems(rows: &[Row], known: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for row in rows {
        if row.tests.is_empty() {
            found.push(format!("{}: no test is named", row.id));
        }
        let missing = row.tests.iter().filter(|test| !known.contains(*test));
        found.extend(missing.map(|test| format!("{}: no test {test}", row.id)));
    }
    found
}

/// The names of all test functions in the sources below a directory.
pub fn tests_in(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let entries = std::fs::read_dir(dir).unwrap();
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(tests_in(&path));
        } else if name.ends_with(".rs") {
            found.extend(test_names(&std::fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

/// The test functions of a source.
fn test_names(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line == "#[test]" {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            if is_test {
                names.push(name.to_owned());
            }
            is_test = false;
        }
    }
    names
}

/// The tests that passed in the output of `cargo test`.
pub fn passed_in(log: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let rest = line.trim().strip_prefix("test ")?;
        let (path, outcome) = rest.split_once(" ... ")?;
        let is_ok = outcome.ends_with("ok");
        is_ok.then(|| path.rsplit("::").next().unwrap_or(path).to_owned())
    };
    log.lines().filter_map(name).collect()
}
