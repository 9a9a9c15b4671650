//! The command-line tools of Strandline, as a library, so that tests and other programs can use what
//! the two binaries print.
//!
//! | Binary | For | Starts in |
//! |--------|-----|-----------|
//! | `strandline` | using a database: keys, files, nodes, the demonstration | [`cli`] |
//! | `walinspect` | looking at its files without opening it | [`inspect`] |
//!
//! The rest is what they share:
//!
//! | To learn | read |
//! |----------|------|
//! | how bytes become text and come back | [`text`] |
//! | what an exit code means | [`failure`] |
//! | how a database is found and opened | [`open`] |
//! | how many records get in at once | [`load`] |
//! | one JSON object per key and value | [`ndjson`] |
//! | a directory tree as keys and values | [`tree`] |
//! | three nodes, a crash and a failover | [`demo`] |
//!
//! Every verb takes the database directory first. Verbs that only read open it read-only, so they
//! work beside a process that writes. Results go to standard output, everything else to standard
//! error, and progress bars appear only on a terminal.

pub mod cli;
pub mod demo;
pub mod failure;
mod http;
pub mod inspect;
pub mod load;
mod log;
pub mod ndjson;
mod notify;
pub mod open;
pub mod progress;
mod signal;
pub mod text;
pub mod tree;

/// The code example of the project's first page, compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
