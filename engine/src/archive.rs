//! The archive: a dataset's log and bases in an object store, and its recovery to a point in time.
//!
//! The leader of a dataset uploads what is committed, about every second while there is something new and
//! never while there is not (`upload`). A restore takes the newest base that is not behind the target and
//! the log from there on, checks every digest and the chain of every log, and leaves a database with a
//! lineage of its own ([`restore`]). What no point needs any more is removed ([`prune`]). Names and bytes are
//! those of [`strandline_replication::archive`].

pub(crate) mod floor;
mod prune;
mod restore;
mod segment;
mod upload;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use strandline_replication::Lineage;
pub use strandline_replication::archive::{
    ArchiveStore, Error as ArchiveError, Faults, MemoryArchive,
};
use strandline_replication::archive::{Index, Root, Run, retried};
#[cfg(feature = "object-store")]
pub use strandline_replication::archive::{ObjectArchive, ObjectArchiveOptions};
use strandline_wal::io::Env;
use strandline_wal::{DatasetId, Hlc, ShardId};

use crate::dataset::Dataset;
use crate::error::{Error, Result};

pub use restore::{CheckReport, RestoreReport, Target, check, restore};
pub use upload::Uploader;

/// How a dataset is archived.
#[derive(Clone, Debug)]
pub struct ArchiveOptions {
    /// Between two looks for something new, in milliseconds; at most so old is what the archive lacks.
    pub interval_ms: u64,
    /// A base is made after so many uploaded bytes.
    pub checkpoint_len: u64,
    /// A base is made after so many milliseconds in which something was uploaded.
    pub checkpoint_ms: u64,
    /// Every point of the last so many milliseconds can be restored.
    pub pitr_window_ms: u64,
    /// Bases so old, in milliseconds, are points to restore. No shorter than the window.
    pub retention_ms: u64,
    /// So many bytes of each shard's log, at most, wait for the archive. Where it is further behind, it
    /// has a gap, tells, and begins a new base.
    pub log_len_max: u64,
}

impl Default for ArchiveOptions {
    fn default() -> ArchiveOptions {
        const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
        ArchiveOptions {
            interval_ms: 1_000,
            checkpoint_len: 1 << 30,
            checkpoint_ms: DAY_MS,
            pitr_window_ms: 7 * DAY_MS,
            retention_ms: 30 * DAY_MS,
            log_len_max: 4 << 30,
        }
    }
}

/// How far an archive has come.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ArchiveStatus {
    /// Whether this node uploads.
    pub is_leading: bool,
    /// Under which epoch.
    pub epoch: u32,
    /// Per shard, the last archived record.
    pub seqs: Vec<u64>,
    /// Version of the newest batch that is archived.
    pub timestamp: Hlc,
    /// Requests that were sent.
    pub request_count: u64,
    /// Bytes that were uploaded.
    pub uploaded_len: u64,
    /// Bases that were made.
    pub base_count: u64,
    /// How often the log had outgrown its limit before it was archived: records are missing before that.
    pub break_count: u64,
    /// Why the last step failed.
    pub last_error: Option<String>,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PruneReport {
    /// Objects.
    pub removed_count: u64,
}

/// A dataset that is being archived, by a thread that ends with this value.
pub struct Archiving {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    is_stopped: Mutex<bool>,
    stopped: Condvar,
    status: Mutex<ArchiveStatus>,
}

/// Longest pause after failures, in intervals.
const PAUSE_MAX: u32 = 64;

impl Dataset {
    /// Archives the dataset while this node leads it, from where the archive ends. What is not archived
    /// stays in the log, up to [`ArchiveOptions::log_len_max`], also when the database is opened again: until
    /// [`Dataset::forget_archive`].
    ///
    /// # Errors
    /// Where no thread can be started. A store that does not answer is none: it is asked again, and
    /// [`Archiving::status`] tells.
    pub fn archive(
        &self,
        store: Arc<dyn ArchiveStore>,
        options: ArchiveOptions,
    ) -> Result<Archiving> {
        let interval = Duration::from_millis(options.interval_ms.max(1));
        let mut uploader = Uploader::new(self, store, options);
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        let run = move || {
            let mut pause = 1;
            loop {
                pause = match uploader.step() {
                    Ok(_) => 1,
                    Err(_) => (pause * 2).min(PAUSE_MAX),
                };
                its.status.lock().clone_from(uploader.status());
                let mut is_stopped = its.is_stopped.lock();
                if !*is_stopped {
                    its.stopped.wait_for(&mut is_stopped, interval * pause);
                }
                if *is_stopped {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("strandline-archive".to_owned());
        let thread = thread.spawn(run).map_err(|error| Error::Stopped {
            what: "the archive",
            cause: error.to_string().into(),
        })?;
        Ok(Archiving {
            shared,
            thread: Some(thread),
        })
    }
}

impl Dataset {
    /// Keeps no log for an archive any more. To be called when nobody archives the dataset.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget_archive(&self) -> Result<()> {
        let store = self.inner().store();
        upload::let_go(&store)
    }
}

impl Archiving {
    /// How far it has come, as of the last step.
    pub fn status(&self) -> ArchiveStatus {
        self.shared.status.lock().clone()
    }

    /// Ends the thread and joins it; a request that is under way is waited for.
    pub fn stop(&mut self) {
        *self.shared.is_stopped.lock() = true;
        self.shared.stopped.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic was printed by the thread.
            let _ = thread.join();
        }
    }
}

impl Drop for Archiving {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The histories of a dataset that an archive has.
///
/// # Errors
/// The store's.
pub fn lineages(store: &dyn ArchiveStore, dataset: &DatasetId) -> Result<Vec<[u8; 16]>> {
    let listed = retried(|| store.list(&Root::of_dataset(dataset)))?;
    let mut found: Vec<[u8; 16]> = listed
        .iter()
        .filter_map(|it| Root::parse_lineage(dataset, &it.name))
        .map(|lineage| lineage.0)
        .collect();
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The one history of a dataset, or the one that was asked for.
fn root_of(
    store: &dyn ArchiveStore,
    dataset: &DatasetId,
    lineage: Option<[u8; 16]>,
) -> Result<(Root, [u8; 16])> {
    let found = lineages(store, dataset)?;
    let lineage = match (lineage, &found[..]) {
        (Some(lineage), _) if found.contains(&lineage) => lineage,
        (None, [lineage]) => *lineage,
        (_, found) => {
            let list: Vec<String> = found.iter().map(|it| Lineage(*it).to_string()).collect();
            let text = format!("name one of the histories of {dataset} in the archive: {list:?}");
            return Err(ArchiveError::Refused(text).into());
        }
    };
    Ok((Root::new(dataset, Lineage(lineage)), lineage))
}

/// What an archive has of one history.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StoredReport {
    /// The history.
    pub lineage: [u8; 16],
    /// The epoch that uploads, or did so last.
    pub epoch: u32,
    /// Versions of the bases, oldest first.
    pub bases: Vec<Hlc>,
    /// Per shard, the last record.
    pub seqs: Vec<u64>,
    /// Objects, by names that are known.
    pub object_count: u64,
    /// Bytes of all objects.
    pub len: u64,
}

/// What an archive has of one history, by the names of its objects.
///
/// # Errors
/// The store's; a damaged term.
pub fn stored(
    store: &dyn ArchiveStore,
    dataset: &DatasetId,
    lineage: Option<[u8; 16]>,
) -> Result<StoredReport> {
    let (root, lineage) = root_of(store, dataset, lineage)?;
    let index = Index::read(store, &root)?;
    let shard_count = index.last().map_or(0, |last| last.from.len());
    let shards = (0..shard_count).map(|n| ShardId(n as u16));
    let end = |shard| index.runs(shard).last().map_or(0, Run::last_seq);
    let lens = [
        index.terms.len(),
        index.pieces.len(),
        index.files.len(),
        index.bases.len(),
        index.breaks.len(),
    ];
    Ok(StoredReport {
        lineage,
        epoch: index.last().map_or(0, |last| last.epoch.0),
        bases: index.bases.iter().map(|base| base.timestamp).collect(),
        seqs: shards.map(end).collect(),
        object_count: lens.iter().sum::<usize>() as u64,
        len: index.len,
    })
}

/// Removes what no point needs that is to be restored: inside the window any, before it the bases that
/// are young enough. The newest base before the window, and what follows it, stay.
///
/// # Errors
/// The store's; whatever was not removed is, next time.
pub fn prune(
    env: &Env,
    store: &dyn ArchiveStore,
    dataset: &DatasetId,
    lineage: Option<[u8; 16]>,
    options: &ArchiveOptions,
) -> Result<PruneReport> {
    let (root, _) = root_of(store, dataset, lineage)?;
    prune::prune(store, &root, options, env.clock.wall_ms(), None)
}
