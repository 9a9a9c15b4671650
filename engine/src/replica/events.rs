//! What the driver reports, as events for operators.

use strandline_replication::Report;
use strandline_wal::Position;

use crate::event::What;
use crate::store::{Role, Store};

/// Tells what a report means to whoever runs the node.
pub(super) fn tell(store: &Store, report: &Report) {
    let what = match report {
        Report::Joined { name: peer, .. } => {
            let peer = peer.clone();
            match store.role() {
                Role::Leader => What::Joined { peer },
                Role::Follower | Role::Reader => What::Following { peer },
            }
        }
        Report::Left { name, why } => What::Left {
            peer: name.clone(),
            why: why.to_string(),
        },
        Report::Cut { from, to } => What::Cut {
            what: cut(from.shard.0, from.position, to.position),
        },
        Report::BundleBegun { len } => What::CheckpointBegun { len: *len },
        Report::BundleInstalled { .. } => What::CheckpointInstalled,
        Report::Stopped { why } => What::ReplicationStopped {
            why: why.to_string(),
        },
        Report::NotElected { why } => What::NotPromoted {
            why: why.to_string(),
        },
        // Told once the dataset is open as the leader's, and by the store that is stopped.
        Report::Elected { .. } | Report::Fenced { .. } => return,
    };
    store.tell(what);
}

/// What was cut, and where it is.
pub(super) fn cut(shard: u16, from: Position, to: Position) -> String {
    let (first, last) = (to.seq + 1, from.seq);
    format!(
        "shard {shard}: records {first} to {last} forked from the leader's and were saved under divergent/"
    )
}
