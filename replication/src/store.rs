//! What replication needs of a store, and nothing more: the traits that the engine implements.
//!
//! A dataset that leads gives a [`LeaderStore`], one that follows a [`FollowerStore`]; both are a
//! [`LogSource`], because any node may have to hand its log to a candidate. The driver calls them
//! from its one thread. Whatever a call says it made durable must be durable when it returns.

use std::sync::Arc;

use strandline_wal::log::Log;
use strandline_wal::writer::Appended;
use strandline_wal::{Epoch, Hlc, ShardId};

use crate::bundle::{BundleSink, BundleSource};
use crate::epoch::EpochTable;
use crate::error::{Error, Result};
use crate::ids::{Identity, Leadership, Lineage, NodeId, Promise, ShardEnd};
use crate::slot::Heard;

/// A dataset's logs, to be read from.
pub trait LogSource: Send + Sync {
    /// Who this node is, in this dataset. Changes only by [`FollowerStore::adopt`].
    fn identity(&self) -> Identity;

    /// The shards, ascending. Does not change while the store is open.
    fn shards(&self) -> Vec<ShardId>;

    /// The log of a shard in `shards`. A cut or an installed bundle may replace it.
    fn log(&self, shard: ShardId) -> Arc<Log>;

    /// Who led which part of the log: `EpochTable::rebuild` of the log over the checkpoint's table.
    fn epochs(&self, shard: ShardId) -> EpochTable;

    /// Where the log ends.
    fn end(&self, shard: ShardId) -> ShardEnd;

    /// The end of what was pruned from the head of the log; [`ShardEnd::empty`] where nothing was.
    fn base(&self, shard: ShardId) -> ShardEnd;

    /// Where bundles come from; `None` where this store makes none.
    fn bundles(&self) -> Option<Arc<dyn BundleSource>>;

    /// The promise that was persisted last.
    fn promised(&self) -> Promise;

    /// The highest epoch that this node ever led, or has a record of. It votes for higher ones only: who
    /// gives up a leadership may follow another of that number, but not elect one.
    fn highest_epoch(&self) -> Epoch;

    /// Whether it has everything that its leader had when it came. Until then it promises nothing to a
    /// candidate: it may be a wiped node, whose promise would stand for records that it lost.
    fn votes(&self) -> bool;

    /// Makes a promise durable before it returns. Rises only; the caller checks.
    ///
    /// # Errors
    /// The disk's: then nothing was promised.
    fn promise(&self, promise: Promise) -> Result<()>;

    /// Makes everything written to a shard durable and returns the last sequence that it covers.
    ///
    /// # Errors
    /// The log's.
    fn sync(&self, shard: ShardId) -> Result<u64>;

    /// Something that an operator may want to know, or that the store must act on.
    fn report(&self, report: Report);
}

/// A dataset that this node leads. Nothing of a shard is confirmed before the epoch's start batch is
/// in [`LogSource::epochs`] and followers have it: the store writes one to every shard when it opens.
///
/// Whoever changes what [`LeaderStore::marks`] or [`LeaderStore::times`] return calls
/// [`crate::Notifier::notify`] afterwards.
pub trait LeaderStore: LogSource {
    /// The leadership that this node holds.
    fn leadership(&self) -> Leadership;

    /// How far a shard has come here.
    fn marks(&self, shard: ShardId) -> Marks;

    /// The timestamps of the dataset.
    fn times(&self) -> Times;

    /// What followers have confirmed of a shard; called whenever it rises. The store wakes the
    /// writers that wait for it and raises its committed mark by its own rule.
    fn confirmed(&self, confirmed: &Confirmed);

    /// A follower says where its logs end: from now on the log that it needs is kept, and that this is so
    /// is durable on return. Nothing is answered before. Called again whenever it says so.
    ///
    /// # Errors
    /// [`Error::Full`] where there is no place for it; the disk's.
    fn greeted(&self, peer: &Identity, ends: &[ShardEnd]) -> Result<()>;

    /// A bundle for a follower ends here: what lies behind is kept until it has caught up.
    fn pinned(&self, node: NodeId, ends: &[ShardEnd]);

    /// What the followers confirmed that are connected: all of them, now and then.
    fn heard(&self, heard: Vec<Heard>);

    /// Another leadership was seen: acknowledge nothing more, take no more writes. Called once.
    fn fenced(&self, epoch: Epoch);
}

/// A dataset that another node leads.
pub trait FollowerStore: LogSource {
    /// This dataset is new and empty, its lineage all zeros: from now on it is a copy of that
    /// history. Durable on return.
    ///
    /// # Errors
    /// The disk's.
    fn adopt(&self, lineage: Lineage) -> Result<()>;

    /// What may not be cut.
    fn floor(&self, shard: ShardId) -> Floor;

    /// Bytes of log that it can take now: bounded by its apply queue and its disk.
    fn room(&self) -> u64;

    /// Appends shipped bytes: `wal::writer::Writer::append_verbatim`.
    ///
    /// # Errors
    /// The log's.
    fn append(&self, shard: ShardId, segment: u64, at: u64, bytes: &[u8]) -> Result<Appended>;

    /// Seals with the shipped footer: `wal::writer::Writer::seal_verbatim`.
    ///
    /// # Errors
    /// The log's.
    fn seal(&self, shard: ShardId, segment: u64, footer: &[u8]) -> Result<()>;

    /// Begins to make everything that was appended to any shard durable, beside everything else. One that
    /// goes on takes the place of one that went on before.
    fn begin_persist(&self);

    /// How the sync that was begun last ended; `None` while it goes on. Whoever works in the background
    /// notifies the driver.
    fn poll_persist(&self) -> Option<Result<()>>;

    /// The group's marks rose: everything up to them may be applied and shown. Called after appends
    /// too, so that applying goes on. `seq` may lie beyond this log's end.
    ///
    /// # Errors
    /// The store's.
    fn commit(&self, marks: &[CommitMark], times: Times) -> Result<()>;

    /// The last sequence that is applied without a gap. Asked after `commit` and at every step;
    /// whoever applies in the background notifies the driver.
    fn applied(&self, shard: ShardId) -> u64;

    /// Saves what lies behind `to` under `divergent/`, then cuts it off and reopens the log. Never
    /// called below what [`FollowerStore::floor`] told as flushed, nor below [`Floor::committed`] on a
    /// strict dataset.
    ///
    /// # Errors
    /// [`Error::Pruned`] where more was flushed meanwhile: nothing was cut, and a bundle is needed. The log's;
    /// a limit on saved tails.
    fn cut(&self, shard: ShardId, to: ShardEnd) -> Result<()>;

    /// Where a bundle goes; `None` where this store takes none.
    fn sink(&self) -> Option<Box<dyn BundleSink>>;
}

/// How far one shard has come at its leader. Invariant: `committed <= written`, `durable <= written`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Marks {
    /// Last published sequence.
    pub written: u64,
    /// Last sequence that survives a crash here.
    pub durable: u64,
    /// Last sequence that readers may see.
    pub committed: u64,
}

/// The times that rise with a dataset.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Times {
    /// Nothing more will be written at or below it.
    pub closed: Hlc,
    /// Everything at or below it is committed, in every shard.
    pub committed: Hlc,
}

/// The committed mark of one shard.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CommitMark {
    /// Which shard.
    pub shard: ShardId,
    /// Last committed sequence.
    pub seq: u64,
}

/// What followers hold of one shard, by level: entry `n - 1` of each list is the last sequence that
/// at least `n` of them confirm. All three lists have one entry per member of the policy's set.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Confirmed {
    /// Which shard.
    pub shard: ShardId,
    /// In the log of n followers.
    pub received: Vec<u64>,
    /// On the disk of n followers.
    pub durable: Vec<u64>,
    /// Readable at n followers.
    pub applied: Vec<u64>,
}

/// What of a follower's log may not be cut off.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Floor {
    /// Last sequence that this node knows to be committed.
    pub committed: u64,
    /// Last sequence that is in tables: a cut below needs a bundle.
    pub flushed: u64,
    /// Whether committed records may never be cut: the dataset has an in-sync set.
    pub strict: bool,
}

/// What happened. The store logs it, counts it, or acts on it.
#[derive(Clone, Debug)]
pub enum Report {
    /// A follower is up and agrees with this log.
    Joined {
        /// Who.
        node: NodeId,
        /// What people call it.
        name: String,
    },
    /// A connection ended.
    Left {
        /// The peer's name, as far as it is known.
        name: String,
        /// Why.
        why: Error,
    },
    /// This node's log parted from the leader's and was cut; the tail was saved.
    Cut {
        /// Where it ended.
        from: ShardEnd,
        /// Where it ends now.
        to: ShardEnd,
    },
    /// A bundle begins to replace this node's data.
    BundleBegun {
        /// Bytes of all its files.
        len: u64,
    },
    /// A bundle is installed.
    BundleInstalled {
        /// Where the logs now end.
        ends: Vec<ShardEnd>,
    },
    /// Replication of this dataset has stopped for good: someone must act, as the error says.
    Stopped {
        /// Why.
        why: Error,
    },
    /// This node may lead: it holds the longest logs among enough promises. The store is taken back
    /// from the driver, reopened as leader, and starts this epoch.
    Elected {
        /// The epoch to start.
        epoch: Epoch,
    },
    /// This node leads no more: a later epoch is known. [`LeaderStore::fenced`] was called.
    Fenced {
        /// That epoch.
        epoch: Epoch,
    },
    /// This node may not lead.
    NotElected {
        /// Why.
        why: Error,
    },
}
