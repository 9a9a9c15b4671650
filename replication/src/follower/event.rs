//! What a follower is told and what it asks for: its events, its actions, its settings.

use strandline_wal::writer::Appended;
use strandline_wal::{Epoch, Position, ShardId};

use crate::assemble::Whole;
use crate::bundle::{BundlePlace, BundlePlan};
use crate::credit::WINDOW_DEFAULT;
use crate::error::{Error, Result};
use crate::ids::{Identity, LeaderId, Lineage, NodeId, Promise, ShardEnd};
use crate::message::{Message, Purpose};
use crate::store::{CommitMark, Floor, Times};
use crate::transport::ConnId;

/// Settings of a follower.
#[derive(Clone, Debug)]
pub struct FollowerOptions {
    /// Names of nodes that may lead; tried in turn.
    pub peers: Vec<String>,
    /// Follow the leader, or fetch logs from one who promised.
    pub purpose: Purpose,
    /// A leader of an earlier epoch is refused, as by a promise: a coordinator's record named a later one, or
    /// this node led it.
    pub least_epoch: Epoch,
    /// Only these shards; all where it is empty. For fetching.
    pub only: Vec<ShardId>,
    /// Bytes that may be under way.
    pub window: u64,
    /// A sign of life goes out at least this often, in milliseconds.
    pub heartbeat_ms: u64,
    /// A leader that is silent for longer is given up, in milliseconds.
    pub silence_ms: u64,
    /// Least and most time between two tries to connect, in milliseconds.
    pub retry_ms: (u64, u64),
    /// Where nobody waits for `durable`, records are synced at least this often, in milliseconds.
    pub sync_ms: u64,
    /// Where nobody waits for an ack, one goes out at least this often, in milliseconds.
    pub ack_ms: u64,
}

impl Default for FollowerOptions {
    fn default() -> FollowerOptions {
        FollowerOptions {
            peers: Vec::new(),
            purpose: Purpose::Follow,
            least_epoch: Epoch(0),
            only: Vec::new(),
            window: WINDOW_DEFAULT,
            heartbeat_ms: 1_000,
            silence_ms: 10_000,
            retry_ms: (50, 1_000),
            sync_ms: 100,
            ack_ms: 50,
        }
    }
}

/// How the store stands; the driver looks it up.
#[derive(Clone, Debug)]
pub struct Here {
    /// Who this node is.
    pub identity: Identity,
    /// Its promise.
    pub promise: Promise,
    /// Where its logs end, and what may not be cut.
    pub shards: Vec<(ShardEnd, Floor)>,
}

/// What happened. The driver turns sockets, disks and clocks into these.
#[derive(Debug)]
pub enum Event {
    /// The answer to [`Action::Connect`]: it is under way.
    Connecting(ConnId),
    /// The answer to [`Action::Connect`]: it cannot even be tried.
    NoWay(Error),
    /// The connection is up.
    Opened(ConnId, Here),
    /// A frame came.
    Frame(ConnId, Message),
    /// The connection ended.
    Closed(ConnId, Error),
    /// The answer to [`Action::Promise`].
    Promised(Result<()>),
    /// The answer to [`Action::Adopt`].
    Adopted(Result<()>),
    /// The answer to [`Action::FallBack`], shard by shard.
    FellBack(Vec<Result<ShardEnd>>),
    /// The answer to [`Action::Cut`].
    Cut(ShardId, Result<()>),
    /// The answer to [`Action::Append`].
    Appended(ShardId, Result<Appended>),
    /// The answer to [`Action::Seal`].
    Sealed(ShardId, Result<()>),
    /// The answer to [`Action::Sync`]: everything up to there survives a crash.
    Synced(ShardId, Result<u64>),
    /// The sync of [`Action::Persist`] ended: everything up to there survives a crash.
    SyncEnded(Result<Vec<(ShardId, u64)>>),
    /// The answer to [`Action::Commit`].
    Committed(Result<()>),
    /// How far the store has applied.
    Applied(Vec<(ShardId, u64)>),
    /// The answer to [`Action::OpenSink`].
    SinkOpened(Option<Option<BundlePlace>>),
    /// The answer to [`Action::BeginBundle`].
    BundleBegun(Result<BundlePlace>),
    /// The answer to [`Action::WriteBundle`].
    BundleWritten(Result<()>),
    /// The answer to [`Action::Install`]: how the store stands now.
    Installed(Result<Here>),
    /// All frames at hand are handled; the store takes this many bytes more.
    Flush(u64),
    /// A candidate was promised an epoch here.
    PromisedElsewhere(Promise),
    /// Someone acted: try again after [`Action::Stopped`].
    Retry,
    /// Time passed. Time enters only through `now`.
    Tick,
}

/// What to do. The driver performs these in order.
#[derive(Debug)]
pub enum Action {
    /// Connect to a node.
    Connect(String),
    /// Queue a frame.
    Send(ConnId, Message),
    /// End the connection once what is queued is sent.
    Close(ConnId, Error),
    /// Make a promise durable.
    Promise(Promise),
    /// Take over the leader's lineage.
    Adopt(Lineage),
    /// Say where this log falls back to, per shard: [`crate::locate::fall_back`].
    FallBack(Vec<(ShardId, Position, LeaderId)>),
    /// Save and cut what lies behind `to`.
    Cut(ShardEnd, ShardEnd),
    /// Append whole batches.
    Append(ShardId, Whole),
    /// Seal a segment.
    Seal(ShardId, u64, Vec<u8>),
    /// Make a shard's log durable.
    Sync(ShardId),
    /// Begin to make the logs of all shards durable, beside everything else.
    Persist,
    /// Apply up to the committed marks.
    Commit(Vec<CommitMark>, Times),
    /// Make ready for a bundle.
    OpenSink,
    /// A bundle begins.
    BeginBundle(BundlePlan),
    /// Stage bytes of a bundle.
    WriteBundle(u32, u64, Vec<u8>),
    /// Make the bundle the dataset.
    Install,
    /// This node agrees with that leader.
    Joined(NodeId, String),
    /// The connection ended.
    Left(String, Error),
    /// Nothing more happens until someone acts.
    Stopped(Error),
}
