//! What the whole-system tests share: a model, operations on an engine beside it, and crashes.
//!
//! | To learn | read |
//! |----------|------|
//! | what a database must show | [`model`] |
//! | what is done to it | [`ops`], [`plan`], [`workload`] |
//! | how the two are held side by side | [`run`], [`reads`] |
//! | what is asked after a crash | [`sweep`], of a follower [`follow`], of a deposed leader [`rejoin`] |
//! | what is asked of rot, repair and salvage | [`rot`], [`repairs`], [`salvages`] |
//! | what is asked when a call of the disk fails | [`errors`] |
//! | what short work takes past 2^32 | [`high`] |
//! | how many random cases are run, and failing ones made smaller | [`check`] |
//! | what long runs are made of, and what they must have met | [`parts`], [`marks`] |
//! | what a killed process had promised | [`oracle`], and how it is started and heard [`writer`] |
//! | how real file systems are made and filled | [`mounts`] |
//! | what clients of a cluster or of threads may have seen | [`linear`], [`cluster`] |
//! | what `FAULTS.md` promises, and by which tests | [`faults`] |
//! | where randomness comes from, and how a failure is replayed | [`seed`] |
//! | which planted bugs the tests must notice | [`bugs`], run by `src/bin/bugs.rs` |
//! | how rules about the sources are held | [`sources`] |
//!
//! The tests themselves are in `tests/tests`, one file for each kind of fault.

// A harness fails by panicking: its callers are tests.
#![allow(clippy::unwrap_used, reason = "every caller is a test")]

pub mod bugs;
pub mod check;
pub mod cluster;
pub mod errors;
pub mod faults;
pub mod follow;
pub mod high;
pub mod linear;
pub mod marks;
pub mod model;
pub mod mounts;
pub mod ops;
pub mod oracle;
pub mod parts;
pub mod plan;
pub mod reads;
pub mod rejoin;
pub mod repairs;
pub mod rot;
pub mod run;
pub mod salvages;
pub mod seed;
pub mod sources;
pub mod sweep;
pub mod workload;
pub mod writer;
