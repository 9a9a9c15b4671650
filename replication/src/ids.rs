//! The names of those who take part: nodes, their incarnations, leaderships, and where logs end.

use std::fmt;

use strandline_wal::bug::planted;
use strandline_wal::{DatasetId, Epoch, Position, ShardId};

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

id16! {
    /// A node, for life.
    NodeId
}
id16! {
    /// One life of a node's store: a wiped node comes back as another incarnation.
    Incarnation
}
id16! {
    /// Random identity of one claim to an epoch: tells two claims to one epoch number apart.
    LeaderId
}
id16! {
    /// One history: new at create, clone and restore to the past.
    Lineage
}
id16! {
    /// One bundle: files that were pinned together. A cut transfer goes on only with the same one.
    BundleId
}

/// Longest node name on the wire, in bytes.
pub const NODE_NAME_LEN_MAX: usize = 64;

/// Who a node is, in one dataset.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    /// The node.
    pub node: NodeId,
    /// Which life of its store.
    pub incarnation: Incarnation,
    /// What people call it, and what transports connect to; at most [`NODE_NAME_LEN_MAX`] bytes.
    pub name: String,
    /// The dataset.
    pub dataset: DatasetId,
    /// The history that the dataset belongs to.
    pub lineage: Lineage,
}

/// One leadership of a dataset.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Leadership {
    /// Its number.
    pub epoch: Epoch,
    /// Its random identity.
    pub leader: LeaderId,
}

/// The promise of a node to take nothing from leaderships before this one.
///
/// Two candidates may ask for one epoch number; the node tells whose claim was promised.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Promise {
    /// Messages below this epoch are refused.
    pub epoch: Epoch,
    /// Messages of this epoch are refused unless they come from this node.
    pub to: NodeId,
}

impl Promise {
    /// Whether a message that `from` sends as leader of `epoch` may be taken.
    pub fn admits(&self, epoch: Epoch, from: NodeId) -> bool {
        let is_kept = epoch > self.epoch || (epoch == self.epoch && from == self.to);
        is_kept || planted("promise.admits")
    }
}

/// Where one shard's log ends, with what is needed to compare it with another's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ShardEnd {
    /// Which log.
    pub shard: ShardId,
    /// Epoch and sequence of the last record; zeros for an empty log.
    pub position: Position,
    /// Who led that epoch.
    pub leader: LeaderId,
    /// `header_crc` of the last batch.
    pub chain: u32,
}

impl ShardEnd {
    /// The end of a log that never had a record.
    pub fn empty(shard: ShardId) -> ShardEnd {
        ShardEnd {
            shard,
            ..ShardEnd::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_admits_its_own_leader_and_later_epochs_only() {
        let (mine, other) = (NodeId([1; 16]), NodeId([2; 16]));
        let promise = Promise {
            epoch: Epoch(5),
            to: mine,
        };
        assert!(promise.admits(Epoch(5), mine));
        assert!(!promise.admits(Epoch(5), other), "one number, two claims");
        assert!(!promise.admits(Epoch(4), mine));
        assert!(promise.admits(Epoch(6), other));
    }
}
