//! The messages that have more to say than fits a line. Their tables stand in [`super`].

use strandline_wal::{DatasetId, Epoch, Position, ShardId};

use crate::error::Reason;
use crate::ids::{Incarnation, LeaderId, Lineage, NodeId, Promise, ShardEnd};
use crate::store::Times;

/// What a connection is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Purpose {
    /// Follow the leader.
    Follow = 1,
    /// Fetch the tail of a log before leading: the one who serves promised the epoch to this node.
    Fetch = 2,
    /// Ask for promises and status.
    Control = 3,
}

/// See the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// Lowest and highest protocol version.
    pub versions: (u16, u16),
    /// What for.
    pub purpose: Purpose,
    /// Messages below are refused.
    pub promised_epoch: Epoch,
    /// Who.
    pub node: NodeId,
    /// Which life of its store.
    pub incarnation: Incarnation,
    /// Its history; zeros for none yet.
    pub lineage: Lineage,
    /// What people call it.
    pub name: String,
    /// Which dataset.
    pub dataset: DatasetId,
    /// Where its logs end.
    pub ends: Vec<ShardEnd>,
}

/// See the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Welcome {
    /// The protocol version from now on.
    pub version: u16,
    /// Which acks are waited for.
    pub wants: Wants,
    /// Of everything on this connection.
    pub epoch: Epoch,
    /// Who serves.
    pub node: NodeId,
    /// Which life of its store.
    pub incarnation: Incarnation,
    /// Its claim to the epoch.
    pub leader: LeaderId,
    /// Its history.
    pub lineage: Lineage,
    /// What people call it.
    pub name: String,
    /// On the ends of the hello.
    pub verdicts: Vec<Verdict>,
    /// More than half of a fixed list promised the epoch to it, so that nobody else can win it.
    pub sole: bool,
}

/// Acks that someone waits for; the others come when it is convenient.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Wants {
    /// As soon as it is appended.
    pub received: bool,
    /// As soon as it can be synced.
    pub durable: bool,
    /// As soon as it is applied.
    pub applied: bool,
}

/// See the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Why, for programs.
    pub reason: Reason,
    /// Why, for people.
    pub text: String,
    /// What the one who refuses has.
    pub have: String,
    /// What was asked of it.
    pub want: String,
    /// The highest epoch that it knows.
    pub epoch: Epoch,
}

/// Where two logs part.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Both have the same bytes up to there; the next ones come from `segment` at `at`.
    Agreed {
        /// Which log.
        shard: ShardId,
        /// The last common record.
        position: Position,
        /// First sequence of the segment.
        segment: u64,
        /// Offset in it.
        at: u64,
    },
    /// The largest leadership that may be shared ends there.
    Ends {
        /// Which log.
        shard: ShardId,
        /// Its last record at the serving side.
        position: Position,
        /// Who led.
        leader: LeaderId,
    },
    /// The log does not reach back.
    Pruned {
        /// Which log.
        shard: ShardId,
        /// The first sequence there is.
        first_available: u64,
    },
}

impl Verdict {
    /// Which log.
    pub fn shard(&self) -> ShardId {
        match *self {
            Verdict::Agreed { shard, .. }
            | Verdict::Ends { shard, .. }
            | Verdict::Pruned { shard, .. } => shard,
        }
    }
}

/// What stands before the bytes of Data.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DataHead {
    /// Of the connection.
    pub epoch: Epoch,
    /// Which log.
    pub shard: ShardId,
    /// First sequence of the segment.
    pub segment: u64,
    /// Offset of the bytes in it.
    pub at: u64,
    /// Last sequence of this shard's log.
    pub written: u64,
    /// Last committed sequence of this shard.
    pub committed: u64,
    /// The times of the dataset.
    pub times: Times,
    /// The sender's wall clock.
    pub wall_ms: u64,
}

/// See the table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Data {
    /// The fixed part.
    pub head: DataHead,
    /// Stored bytes.
    pub bytes: Piece,
}

/// The end of a buffer, mostly of the frame that it came in: to take it out would be to copy it.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    buffer: Vec<u8>,
    // Invariant: `at <= buffer.len()`.
    at: usize,
}

impl Piece {
    /// What stands at `at` and behind it.
    ///
    /// # Panics
    /// Where the buffer ends before.
    pub fn behind(buffer: Vec<u8>, at: usize) -> Piece {
        assert!(at <= buffer.len(), "a piece lies within its buffer");
        Piece { buffer, at }
    }

    /// Takes `len` bytes off its head.
    ///
    /// # Panics
    /// Where it has fewer.
    pub fn advance(&mut self, len: usize) {
        assert!(len <= self.len(), "a piece lies within its buffer");
        self.at += len;
    }

    /// Drops everything behind its first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.buffer.truncate(self.at + len);
    }

    /// The whole buffer, to be used again.
    pub fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }
}

impl std::ops::Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.at..]
    }
}

impl From<Vec<u8>> for Piece {
    fn from(bytes: Vec<u8>) -> Piece {
        Piece::behind(bytes, 0)
    }
}

impl PartialEq for Piece {
    fn eq(&self, other: &Piece) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Piece {}

/// See the table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Seal {
    /// Of the connection.
    pub epoch: Epoch,
    /// Which log.
    pub shard: ShardId,
    /// First sequence of the segment.
    pub segment: u64,
    /// Offset of the footer.
    pub at: u64,
    /// Stored bytes.
    pub footer: Vec<u8>,
}

/// See the table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tick {
    /// Of the connection.
    pub epoch: Epoch,
    /// The sender's wall clock.
    pub wall_ms: u64,
    /// The times of the dataset.
    pub times: Times,
    /// Of all shards.
    pub marks: Vec<TickMark>,
}

/// One shard's marks in a tick.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TickMark {
    /// Which log.
    pub shard: ShardId,
    /// Last sequence of the log.
    pub written: u64,
    /// Last committed sequence.
    pub committed: u64,
}

/// See the table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Ack {
    /// Of the connection.
    pub epoch: Epoch,
    /// Newest wall clock of the serving side whose marks are all applied here.
    pub wall_ms: u64,
    /// Bytes that came since the connection began.
    pub taken: u64,
    /// Of shards that changed.
    pub acks: Vec<AckEntry>,
}

/// What a follower has of one shard. Invariant: `durable <= received`, `applied <= received`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct AckEntry {
    /// Which log.
    pub shard: ShardId,
    /// Appended to the follower's log.
    pub received: u64,
    /// Synced there.
    pub durable: u64,
    /// Readable there.
    pub applied: u64,
}

/// What a node does with a dataset.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Role {
    /// It leads.
    Leader = 1,
    /// It follows.
    Follower = 2,
    /// It wants to lead.
    Candidate = 3,
}

/// See the table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// What the node does.
    pub role: Role,
    /// Its promise.
    pub promise: Promise,
    /// The leadership it holds or follows.
    pub epoch: Epoch,
    /// That leadership's identity.
    pub leader: LeaderId,
    /// The leader's name; empty where none is known.
    pub leader_name: String,
    /// Ends and marks; the ack of a leader speaks of its own disk and readers.
    pub shards: Vec<(ShardEnd, AckEntry)>,
}
