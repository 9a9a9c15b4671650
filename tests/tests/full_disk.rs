//! A real file system of 24 MiB that is filled and freed, over and over, under one open database.
//!
//! Nothing but removals of keys frees it: what they and compaction write comes from the reserve.
//!
//! Needs root for the mount; elsewhere it says so and passes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline_tests::mounts::{Mount, fill_and_free};
use strandline_tests::seed::{self, Rng};

#[test]
fn a_full_file_system_is_freed_and_filled_again() {
    let Some(mount) = Mount::memory("24m") else {
        return;
    };
    fill_and_free(
        mount.root(),
        seed::count(10, 50),
        &mut Rng::new(seed::base(3)),
    );
}
