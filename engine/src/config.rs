//! What a node is among others: its role, its region, its shards.

use serde::{Deserialize, Serialize};
use strandline_wal::{RegionId, ShardId};

use crate::error::{Error, Result};

/// What a node does with a dataset.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum NodeRole {
    /// Writes, alone.
    #[default]
    Single,
    /// Writes, and ships to followers.
    Leader,
    /// Takes what a leader ships.
    Follower,
}

/// A node's place. The default is a single node: shard 0 of region 0.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct NodeConfig {
    /// What it does.
    pub role: NodeRole,
    /// The shard that it answers for where a dataset has several nodes.
    pub shard: ShardId,
    /// Where it is.
    pub region: RegionId,
    /// The other shards of its dataset, and where they are.
    pub peers: Vec<(RegionId, ShardId)>,
}

impl NodeConfig {
    /// Checks that the node is not its own peer and that no peer stands twice.
    ///
    /// # Errors
    /// Names the peer.
    pub fn check(&self) -> Result<()> {
        let mut seen = vec![(self.region, self.shard)];
        for (region, shard) in &self.peers {
            if seen.contains(&(*region, *shard)) {
                return Err(Error::Argument {
                    what: "peers",
                    expected: "other shards, each once".to_owned(),
                    found: format!("region {region} shard {shard} again"),
                });
            }
            seen.push((*region, *shard));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_a_single_node() {
        let node = NodeConfig::default();
        assert_eq!(
            (node.role, node.shard, node.region),
            (NodeRole::Single, ShardId(0), RegionId(0))
        );
        assert!(node.peers.is_empty());
    }

    #[test]
    fn three_regions_of_five_shards_can_be_described() {
        let all: Vec<_> = (0..3)
            .flat_map(|r| (0..5).map(move |s| (RegionId(r), ShardId(s))))
            .collect();
        for (region, shard) in &all {
            let peers = all
                .iter()
                .copied()
                .filter(|p| *p != (*region, *shard))
                .collect();
            let node = NodeConfig {
                role: NodeRole::Leader,
                shard: *shard,
                region: *region,
                peers,
            };
            node.check().unwrap();
            assert_eq!(node.peers.len(), 14);
        }
    }

    #[test]
    fn a_node_is_not_its_own_peer() {
        let node = NodeConfig {
            peers: vec![(RegionId(0), ShardId(0))],
            ..NodeConfig::default()
        };
        assert!(node.check().is_err());
    }
}
