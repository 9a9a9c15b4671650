//! What can go wrong between nodes, sorted by who must act.

use std::net::SocketAddr;
use std::sync::Arc;

use strandline_wal::{Epoch, Position, ShardId};

use crate::ids::Lineage;

/// A failure of replication. Cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer sent what it may not send in this state, or counted wrongly.
    #[error(
        "{peer} broke the protocol: {what}; both ends need a look, it is a bug or a foreign program"
    )]
    Protocol {
        /// The peer's name.
        peer: String,
        /// Which rule.
        what: String,
    },
    /// Bytes arrived other than they were sent. The connection is dropped and made again.
    #[error("{what} is damaged: expected {expected}, found {found}; the connection is made anew")]
    Damaged {
        /// The part that is wrong.
        what: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The peer does not talk to this node, or this node not to it.
    #[error("refused, {reason}: {text} (this side has {have}, the other has {want})")]
    Refused {
        /// Why, for programs.
        reason: Reason,
        /// Why, for people.
        text: String,
        /// What the one who refuses has.
        have: String,
        /// What was asked of it.
        want: String,
    },
    /// Two logs have other bytes at one position of one leadership. Nothing was cut.
    #[error(
        "shard {shard} has chain value {ours:#010x} at {at} here and {theirs:#010x} at the leader; one of them is damaged: verify both, then restore the bad one"
    )]
    Diverged {
        /// Which shard.
        shard: ShardId,
        /// Where.
        at: Position,
        /// This node's chain value.
        ours: u32,
        /// The peer's.
        theirs: u32,
    },
    /// The leader's log ends before what is committed here.
    #[error(
        "shard {shard} would be cut to {to} below the committed record {committed}; the leader must not lead: promote a node that has it"
    )]
    BelowCommitted {
        /// Which shard.
        shard: ShardId,
        /// Last committed sequence here.
        committed: u64,
        /// Last sequence that would stay.
        to: u64,
    },
    /// Another leadership is known: this one is over.
    #[error("epoch {epoch} is known, epoch {ours} is over; reopen as follower")]
    Fenced {
        /// The later epoch.
        epoch: Epoch,
        /// The one that is over.
        ours: Epoch,
    },
    /// The leader's epoch is over: this node was promoted to a later one.
    #[error(
        "this node was promoted to epoch {won}, and others may have confirmed what it wrote there; {leader} leads that or an earlier one and has none of it: follow a leader of a later epoch, or promote a node; only to cut what it wrote, yield epoch {won}"
    )]
    Outlived {
        /// What this node was promoted to.
        won: Epoch,
        /// The leader's name.
        leader: String,
    },
    /// The other node's dataset is of another history.
    #[error(
        "the dataset here is of lineage {ours}, there of {theirs}; clone it from there or name another leader"
    )]
    OtherLineage {
        /// This node's.
        ours: Lineage,
        /// The peer's.
        theirs: Lineage,
    },
    /// Too few nodes promised.
    #[error(
        "{found} of {needed} promises came in; start more of the listed nodes, or force the promotion and lose what they alone hold"
    )]
    TooFewPromises {
        /// Promises needed, this node's own included.
        needed: usize,
        /// Promises that came in.
        found: usize,
    },
    /// The coordinator could not be asked, or did not answer.
    #[error("coordinator {name} cannot be asked: {what}; it is tried again")]
    Coordinator {
        /// Which one, as its configuration names it.
        name: String,
        /// What happened.
        what: String,
    },
    /// The coordinator does not do what makes it safe: two writers could win one change.
    #[error("coordinator {name} is unsafe: {what}; name a store with conditional writes, or etcd")]
    CoordinatorUnsafe {
        /// Which one, as its configuration names it.
        name: String,
        /// What it did.
        what: String,
    },
    /// A record of the coordinator that cannot be.
    #[error("the coordinator's record is wrong: {what}; restore it, or find who else writes there")]
    BadRecord {
        /// Which rule it breaks.
        what: String,
    },
    /// The log no longer reaches back to this follower, and there is no bundle.
    #[error(
        "shard {shard} is needed from {needed} on and starts with {first_available}; copy a checkpoint over"
    )]
    Pruned {
        /// Which shard.
        shard: ShardId,
        /// The first sequence the follower lacks.
        needed: u64,
        /// The first sequence there is.
        first_available: u64,
    },
    /// The connection ended, or nothing moved on it for too long. It is made again.
    #[error("{peer} is not reachable: {what}; it is tried again")]
    Unreachable {
        /// The peer's name.
        peer: String,
        /// What happened.
        what: String,
    },
    /// A queue or a connection limit is full. Try again.
    #[error("{what} is full at {limit}; it is tried again")]
    Full {
        /// Which queue.
        what: &'static str,
        /// Its limit.
        limit: usize,
    },
    /// Plain TCP goes over loopback only.
    #[error(
        "{address} is not a loopback address: plain tcp has no authentication; use tls or a tunnel"
    )]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// A certificate, a key or a list of whom to trust is of no use.
    #[error("{file}: {what}")]
    Certificate {
        /// Which file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// No address is known for a node.
    #[error("no address is known for node {name:?}; list it among the peers")]
    UnknownPeer {
        /// The node's name.
        name: String,
    },
    /// A socket call failed for good.
    #[error("{op} {what}: {source}")]
    Io {
        /// The call, as `listen`.
        op: &'static str,
        /// On what.
        what: String,
        /// What the system said.
        source: Arc<std::io::Error>,
    },
    /// The log failed.
    #[error(transparent)]
    Log(#[from] strandline_wal::Error),
    /// The store failed.
    #[error("the store failed: {what}")]
    Store {
        /// What it said.
        what: String,
    },
}

/// The result of calls in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who must act on an error.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Actor {
    /// The caller asked for something that is not there.
    Caller,
    /// The operator: configuration, disk, which node leads.
    Operator,
    /// Nobody: it is tried again by itself.
    Retry,
    /// Whoever has a good copy: bytes are damaged.
    Restore,
    /// Us: an invariant is broken.
    Bug,
}

impl Error {
    /// Who must act.
    pub fn actor(&self) -> Actor {
        match self {
            Error::UnknownPeer { .. } => Actor::Caller,
            Error::Refused { reason, .. } => reason.actor(),
            Error::OtherLineage { .. }
            | Error::TooFewPromises { .. }
            | Error::CoordinatorUnsafe { .. }
            | Error::BadRecord { .. }
            | Error::Pruned { .. }
            | Error::Certificate { .. }
            | Error::NotLoopback { .. }
            | Error::BelowCommitted { .. }
            | Error::Outlived { .. }
            | Error::Fenced { .. }
            | Error::Io { .. }
            | Error::Store { .. } => Actor::Operator,
            Error::Damaged { .. }
            | Error::Unreachable { .. }
            | Error::Full { .. }
            | Error::Coordinator { .. } => Actor::Retry,
            Error::Diverged { .. } => Actor::Restore,
            Error::Log(error) if error.is_corruption() => Actor::Restore,
            Error::Log(_) => Actor::Operator,
            Error::Protocol { .. } => Actor::Bug,
        }
    }

    /// Whether the same peer is worth another try without anyone acting.
    pub fn is_transient(&self) -> bool {
        self.actor() == Actor::Retry
    }

    pub(crate) fn protocol(peer: &str, what: impl Into<String>) -> Error {
        Error::Protocol {
            peer: peer.to_owned(),
            what: what.into(),
        }
    }

    pub(crate) fn unreachable(peer: &str, what: impl Into<String>) -> Error {
        Error::Unreachable {
            peer: peer.to_owned(),
            what: what.into(),
        }
    }
}

/// Why a node refuses another, as it goes over the wire.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Reason {
    /// No protocol version that both speak.
    Version = 1,
    /// The dataset is not here.
    UnknownDataset = 2,
    /// The dataset is of another history.
    Lineage = 3,
    /// The message is of an epoch below the promise.
    StaleEpoch = 4,
    /// This node does not lead the dataset.
    NotLeader = 5,
    /// The peer's shards are others.
    Shards = 6,
    /// Same leadership, same position, other bytes; or more of a living leader's epoch than it wrote.
    Diverged = 7,
    /// The log does not reach back and there is no bundle.
    Pruned = 8,
    /// Too many connections.
    Busy = 9,
    /// A frame that may not come in this state.
    Protocol = 10,
    /// The node is the one that asks.
    Loop = 11,
    /// The peer's certificate names another node.
    Name = 12,
}

impl Reason {
    /// The reason of a byte.
    pub fn of(byte: u8) -> Option<Reason> {
        use Reason::*;
        [
            Version,
            UnknownDataset,
            Lineage,
            StaleEpoch,
            NotLeader,
            Shards,
            Diverged,
            Pruned,
            Busy,
            Protocol,
            Loop,
            Name,
        ]
        .into_iter()
        .find(|reason| *reason as u8 == byte)
    }

    fn actor(self) -> Actor {
        match self {
            Reason::Version
            | Reason::Lineage
            | Reason::Shards
            | Reason::Pruned
            | Reason::Loop
            | Reason::Name => Actor::Operator,
            // They pass when the cluster settles: a dataset is opened, a leader found, a place freed.
            Reason::UnknownDataset | Reason::NotLeader | Reason::Busy | Reason::StaleEpoch => {
                Actor::Retry
            }
            Reason::Diverged => Actor::Restore,
            Reason::Protocol => Actor::Bug,
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Reason::Version => "no common protocol version",
            Reason::UnknownDataset => "unknown dataset",
            Reason::Lineage => "another lineage",
            Reason::StaleEpoch => "stale epoch",
            Reason::NotLeader => "not the leader",
            Reason::Shards => "other shards",
            Reason::Diverged => "diverged",
            Reason::Pruned => "pruned",
            Reason::Busy => "busy",
            Reason::Protocol => "protocol error",
            Reason::Loop => "a node cannot follow itself",
            Reason::Name => "another node's name",
        })
    }
}

#[cfg(test)]
mod tests;
