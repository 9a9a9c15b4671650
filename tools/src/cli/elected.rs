//! Datasets that take part in automatic failover.

use strandline::Database;

use super::config::ElectedConfig;
use crate::failure::{Failure, Result};

/// A dataset's part in automatic failover, until it is dropped.
pub(super) struct Elected;

/// Takes part with a dataset.
///
/// # Errors
/// Usage: it is not in this build.
pub(super) fn elected(database: &Database, dataset: &str, _: &ElectedConfig) -> Result<Elected> {
    let root = database.path().display();
    Err(Failure::usage(format!(
        "{root}: dataset {dataset}: role = \"elected\" is not in this build"
    )))
}
