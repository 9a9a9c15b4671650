//! Bundles: a consistent set of files at one position, for a follower that the log no longer reaches.
//!
//! To this crate a bundle is an opaque list: no paths, only a kind and a number that the store gave
//! each file, its length and its BLAKE3. The sink stages what it gets, checks every digest, and makes
//! all of it the dataset in one step or none of it.

use crate::error::Result;
use crate::ids::{BundleId, ShardEnd};

/// Most files that one bundle may have.
pub const FILE_COUNT_MAX: u32 = 1 << 20;

/// One file of a bundle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BundleFile {
    /// What kind of file, in the store's own numbering.
    pub kind: u8,
    /// Its number within the kind. The sink makes the local name out of both; none comes from a peer.
    pub number: u64,
    /// Its length in bytes.
    pub len: u64,
    /// BLAKE3 of its bytes.
    pub digest: [u8; 32],
}

/// What a bundle holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BundlePlan {
    /// Which bundle.
    pub id: BundleId,
    /// Where each shard stands once the bundle is installed.
    pub ends: Vec<ShardEnd>,
    /// Its files, in the order in which they are sent.
    pub files: Vec<BundleFile>,
}

/// A pinned bundle at the sender: it does not change while it lives.
pub trait Bundle: Send {
    /// What it holds.
    fn plan(&self) -> &BundlePlan;

    /// Up to `len_max` bytes of file number `file` in the plan's order, from `at` on.
    ///
    /// # Errors
    /// The disk's.
    fn read(&mut self, file: u32, at: u64, len_max: usize) -> Result<Vec<u8>>;
}

/// Where bundles come from: the checkpoint of the engine.
pub trait BundleSource: Send + Sync {
    /// Pins a bundle. `again` names the one that the follower has a part of: the same files are
    /// given where they are still pinned, a new bundle otherwise. `None` while it is made, which may take as
    /// long as reading all files does: to be asked again.
    ///
    /// # Errors
    /// The disk's, or a limit on how many are pinned.
    fn open(&self, again: Option<BundleId>) -> Result<Option<Box<dyn Bundle>>>;
}

/// How far a sink has come: everything before is staged and checked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BundlePlace {
    /// The bundle; zeros before the first.
    pub id: BundleId,
    /// The file that comes next, in the plan's order.
    pub file: u32,
    /// The byte of it that comes next.
    pub at: u64,
}

/// Where a follower puts a bundle. Old data is served until [`BundleSink::install`].
pub trait BundleSink: Send {
    /// What an earlier, cut transfer left staged.
    fn staged(&self) -> Option<BundlePlace>;

    /// A bundle begins; returns where to start. Anything staged of another bundle is dropped.
    ///
    /// # Errors
    /// The disk's, no room among them.
    fn begin(&mut self, plan: &BundlePlan) -> Result<BundlePlace>;

    /// The next bytes, in order.
    ///
    /// # Errors
    /// The disk's; [`crate::Error::Damaged`] where a whole file does not have its digest: the file
    /// is dropped and asked for again.
    fn write(&mut self, file: u32, at: u64, bytes: &[u8]) -> Result<()>;

    /// All files are here: makes them durable and the dataset, in one step. Returns where the logs
    /// now end.
    ///
    /// # Errors
    /// The disk's; the old data stays as it was.
    fn install(&mut self) -> Result<Vec<ShardEnd>>;
}
