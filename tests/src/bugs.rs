//! The bug bank: the planted bugs, what each one does, and the test that notices it.
//!
//! `tests/bugs.txt` is the list; `tests/tests/bugs.rs` holds it beside the switches in the sources,
//! and every sync, checksum check and epoch check beside a switch. The command
//! `cargo run --profile checked -p strandline-tests --bin bugs` plants one after the other.

use crate::sources::{Source, root};

/// One planted bug.
#[derive(Clone, Debug)]
pub struct Bug {
    /// What [`strandline_wal::bug::planted`] is asked for.
    pub name: String,
    /// The tests that notice it, the quickest first.
    pub tests: Vec<Test>,
    /// What it does, in one line.
    pub story: String,
}

/// A test, or all of a suite.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Test {
    /// `wal` for the unit tests of a crate, `tests/crash` for a file of tests.
    pub suite: String,
    /// The full name of the test; empty for all of them.
    pub name: String,
}

impl std::fmt::Display for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.suite, self.name)
    }
}

/// The list.
///
/// # Panics
/// Where it cannot be read, or a line is not `name | suite test, suite test | story`.
pub fn bank() -> Vec<Bug> {
    let text = std::fs::read_to_string(root().join("tests/bugs.txt")).unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(bug).collect()
}

fn bug(line: &str) -> Bug {
    let parts: Vec<&str> = line.split('|').map(str::trim).collect();
    let [name, tests, story] = parts[..] else {
        panic!("not `name | tests | story`: {line}");
    };
    let test = |text: &str| {
        let (suite, name) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        Test {
            suite: suite.to_owned(),
            name: name.trim().to_owned(),
        }
    };
    Bug {
        name: name.to_owned(),
        tests: tests
            .split(',')
            .filter(|text| !text.trim().is_empty())
            .map(test)
            .collect(),
        story: story.to_owned(),
    }
}

/// The switches in a source: line, counted from 0, and name.
pub fn switches(source: &Source) -> Vec<(usize, String)> {
    let mut switches = Vec::new();
    let code = &source.code;
    for start in ["unless!(", "planted("] {
        for (at, _) in code.match_indices(start) {
            let rest = code[at + start.len()..].trim_start();
            let Some(name) = rest
                .strip_prefix('"')
                .and_then(|rest| rest.split('"').next())
            else {
                continue;
            };
            switches.push((code[..at].matches('\n').count(), name.to_owned()));
        }
    }
    switches.sort();
    switches
}
