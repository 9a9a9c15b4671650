//! Datasets that take part in automatic failover.

use std::path::Path;

use strandline::Database;
use strandline::replica::coordinator::Coordinator;
use strandline::replica::coordinator::directory::DirectoryCoordinator;
use strandline::replica::{ClusterMember, Coordination, Failover};
use strandline_wal::io::Env;

use super::config::ElectedConfig;
use crate::failure::{Failure, Result};

/// Takes part with a dataset, until what is returned is dropped.
///
/// # Errors
/// A coordinator that this build does not have, or that cannot be opened; the engine's.
pub(super) fn elected(
    database: &Database,
    dataset: &str,
    how: &ElectedConfig,
) -> Result<ClusterMember> {
    let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let failover = Failover {
        peers: how.peers.clone(),
        min_in_sync: u32::from(how.min_in_sync),
        first: how.first,
        lease_ms: millis(how.lease),
        in_sync_ms: millis(how.in_sync),
    };
    let coordination = Coordination::new(coordinator(&how.coordinator)?)?;
    Ok(database.join_cluster(dataset, &failover, &coordination)?)
}

fn coordinator(url: &str) -> Result<Box<dyn Coordinator>> {
    match url.strip_prefix("file://") {
        Some(dir) => {
            let opened = DirectoryCoordinator::open(&Env::real_pread(), Path::new(dir));
            let opened = opened.map_err(|error| Failure::usage(format!("{url}: {error}")))?;
            Ok(Box::new(opened))
        }
        None => Err(Failure::usage(format!(
            "{url}: this build has coordinators at file:///DIRECTORY alone"
        ))),
    }
}
