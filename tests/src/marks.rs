//! What a long run must have met at least once: `tests/sometimes.txt`, one name a line.
//!
//! A simulator misses what it never reaches. A name is a count that some part of the harness keeps: a
//! fault that fired, a path of the engine that was taken, a call of the disk on a kind of file, made or
//! failed. A run that is long enough fails where one of them is still 0.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::run::Tally;

/// The names.
pub const LIST: &str = include_str!("../sometimes.txt");

/// Names that are not written in the code; as many as there are calls and kinds of files.
static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// Kinds of files by a part of their path; the first one that fits is it.
const KINDS: [(&str, &str); 8] = [
    ("spare-", "a spare segment"),
    (".seg", "a segment"),
    (".tbl", "a table"),
    ("manifest", "a manifest"),
    ("/epoch", "the record of epochs"),
    ("/durable", "the durable marks"),
    ("/NODE", "the identity"),
    ("/LOCK", "the lock"),
];

/// Counts the calls of a trace by what they do, to which kind of file, and whether they failed.
pub fn count_calls(trace: &[String], tally: &mut Tally) {
    for line in trace {
        let (call, rest) = line.split_once(' ').unwrap_or((line, ""));
        let kind = KINDS.iter().find(|(part, _)| rest.contains(part));
        let kind = kind.map_or("a directory", |(_, kind)| kind);
        let failed = if line.ends_with("failed") {
            " fails"
        } else {
            ""
        };
        tally.add(name(format!("{call} of {kind}{failed}")), 1);
    }
}

fn name(text: String) -> &'static str {
    let mut names = NAMES.lock().unwrap();
    match names.get(text.as_str()) {
        Some(name) => name,
        None => {
            let name: &'static str = text.leak();
            names.insert(name);
            name
        }
    }
}

/// The names of the list that no tally has.
pub fn never<'a>(tallies: impl Iterator<Item = &'a Tally> + Clone) -> Vec<&'static str> {
    let met = |name: &&str| tallies.clone().any(|tally| tally.count(name) > 0);
    LIST.lines().filter(|name| !met(name)).collect()
}
