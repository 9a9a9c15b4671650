//! How far followers are behind: on the way to them, and in applying.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use strandline_wal::{DatasetId, ShardId};

use crate::ids::NodeId;

/// One shard at one follower.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ShardLag {
    /// Records written at the leader that the follower did not confirm as received.
    pub transport_seqs: u64,
    /// Records that it received and did not apply.
    pub apply_seqs: u64,
    /// Last sequence that it confirmed as received.
    pub received: u64,
    /// Last sequence that it confirmed as durable.
    pub durable: u64,
    /// Last sequence that it confirmed as applied.
    pub applied: u64,
}

/// One follower of one dataset.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FollowerLag {
    /// What people call it.
    pub name: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Bytes of log that it does not have: not sent yet, or under way.
    pub transport_bytes: u64,
    /// Age of the newest moment of the leader whose records it has all applied; 0 where it has
    /// everything. By the leader's clock alone.
    pub apply_ms: u64,
    /// Its shards.
    pub shards: BTreeMap<ShardId, ShardLag>,
}

/// The gauges of a driver, written by it and read by anyone. A follower stays in the list after it
/// left, as it was, until the dataset is retired.
#[derive(Debug, Default)]
pub struct LagGauges {
    followers: Mutex<BTreeMap<(DatasetId, NodeId), FollowerLag>>,
}

impl LagGauges {
    /// All followers of a dataset.
    pub fn dataset(&self, dataset: &DatasetId) -> Vec<(NodeId, FollowerLag)> {
        let followers = self.followers.lock();
        let own = followers.iter().filter(|((of, _), _)| of == dataset);
        own.map(|((_, node), lag)| (*node, lag.clone())).collect()
    }

    pub(crate) fn set(&self, dataset: &DatasetId, node: NodeId, lag: FollowerLag) {
        self.followers.lock().insert((dataset.clone(), node), lag);
    }

    pub(crate) fn mark_left(&self, dataset: &DatasetId, here: &[NodeId]) {
        for ((of, node), lag) in self.followers.lock().iter_mut() {
            if of == dataset && !here.contains(node) {
                lag.connected = false;
            }
        }
    }

    pub(crate) fn forget(&self, dataset: &DatasetId) {
        self.followers.lock().retain(|(of, _), _| of != dataset);
    }
}
