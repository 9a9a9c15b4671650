//! What a serving side is told and what it asks for: its events, its actions, its settings.

use strandline_wal::{Epoch, ShardId};

use crate::bundle::BundlePlan;
use crate::error::{Error, Result};
use crate::ids::{BundleId, NodeId, ShardEnd};
use crate::message::{Message, Verdict, Wants};
use crate::quorum::Policy;
use crate::store::{Confirmed, Marks, Times};
use crate::transport::ConnId;

/// Settings of a serving side.
#[derive(Clone, Debug)]
pub struct LeaderOptions {
    /// Whose confirmations count.
    pub policy: Policy,
    /// Which acks writers wait for.
    pub wants: Wants,
    /// Whether nobody else can have won the epoch: more than half of a fixed list promised it to this
    /// node.
    pub sole: bool,
    /// A tick goes out at least this often, in milliseconds.
    pub heartbeat_ms: u64,
    /// A follower that is silent for longer is dropped, in milliseconds.
    pub silence_ms: u64,
    /// The same while it installs a bundle or cuts its log, in milliseconds.
    pub install_ms: u64,
    /// Most bytes in one Data.
    pub chunk_len: usize,
    /// Most followers at a time.
    pub follower_count_max: usize,
}

impl Default for LeaderOptions {
    fn default() -> LeaderOptions {
        LeaderOptions {
            policy: Policy::default(),
            wants: Wants::default(),
            sole: false,
            heartbeat_ms: 1_000,
            silence_ms: 10_000,
            install_ms: 600_000,
            chunk_len: 256 << 10,
            follower_count_max: 64,
        }
    }
}

/// What happened. The driver turns sockets, logs and clocks into these.
#[derive(Debug)]
pub enum Event {
    /// A frame came; the first one of a connection is its Hello.
    Frame(ConnId, Message),
    /// A connection ended.
    Closed(ConnId, Error),
    /// The marks of the logs as they are now: before frames and shipping are handled.
    Marks(Vec<(ShardId, Marks)>, Times),
    /// The epoch of this leadership begins with that record. Until it is known nothing of the shard
    /// is confirmed.
    Started(ShardId, u64),
    /// The answer to [`Action::Judge`].
    Judged(ConnId, Result<Vec<Verdict>>),
    /// Send what there is: at most one piece per follower.
    Ship,
    /// The answer to [`Action::Ship`]: bytes were queued.
    Shipped(ConnId, ShardId, u64),
    /// The answer to [`Action::Ship`]: the footer was queued; the next segment starts there.
    Sealed(ConnId, ShardId, u64),
    /// The answer to [`Action::Ship`]: everything was shipped.
    AtTail(ConnId, ShardId),
    /// The answer to [`Action::Ship`] or [`Action::ShipPiece`]: it did not work.
    Failed(ConnId, Error),
    /// The answer to [`Action::Pin`].
    Pinned(ConnId, Result<BundlePlan>),
    /// The answer to [`Action::ShipPiece`]: it was queued.
    PieceShipped(ConnId, u64),
    /// A later epoch was promised here.
    Outdated(Epoch),
    /// The policy changed.
    Policy(Policy),
    /// Time passed. Time enters only through `now`.
    Tick,
}

/// What to do. The driver performs these in order.
#[derive(Debug)]
pub enum Action {
    /// Queue a frame.
    Send(ConnId, Message),
    /// End a connection once what is queued is sent.
    Close(ConnId, Error),
    /// Say where these ends lie in our logs: [`crate::locate::verdict`].
    Judge(ConnId, Vec<ShardEnd>),
    /// Queue up to `len_max` bytes of the log from that place.
    Ship {
        /// To whom.
        conn: ConnId,
        /// Which log.
        shard: ShardId,
        /// First sequence of the segment.
        segment: u64,
        /// Offset in it.
        at: u64,
        /// Bounded by the chunk and by the credit left.
        len_max: usize,
        /// Marks that ride on it.
        marks: Marks,
        /// Times that ride on it.
        times: Times,
    },
    /// Pin a bundle.
    Pin(ConnId, BundleId),
    /// Queue a piece of the pinned bundle.
    ShipPiece {
        /// To whom.
        conn: ConnId,
        /// Index of the file.
        file: u32,
        /// Offset in it.
        at: u64,
        /// How much.
        len: usize,
    },
    /// The follower is done with its bundle.
    Unpin(ConnId),
    /// Tell the store what is confirmed.
    Confirm(Confirmed),
    /// This leadership is over.
    Fenced(Epoch),
    /// A follower agrees with this log.
    Joined(NodeId, String),
    /// A follower is gone.
    Left(String, Error),
}
