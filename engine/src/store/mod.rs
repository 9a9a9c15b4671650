//! One dataset's state on one node: its logs, its memtables, its tables, and the paths between them.
//!
//! | Path | File |
//! |------|------|
//! | a write: reserve, fill, apply, publish, sync | `write` |
//! | a read | `read`, `view`, `iter` |
//! | after a crash | `recover` |
//! | a record becomes state | `apply` |
//! | shipped bytes become log and state | `follow` |
//! | memtable to table | `flush` |
//! | tables to fewer tables, dead values out of segments | `compact` |
//! | how far everything has come | `watermarks` |
//!
//! The shards of a dataset are partitions of its log, not of its state: one memtable, one set of
//! tables and one commit order serve all of them, so a snapshot is one number and a scan merges
//! nothing across shards.

pub(crate) mod apply;
pub(crate) mod batch;
pub(crate) mod catalog;
pub(crate) mod compact;
pub(crate) mod epoch;
pub(crate) mod flush;
pub(crate) mod follow;
pub(crate) mod iter;
pub(crate) mod memtable;
pub(crate) mod merge;
pub(crate) mod read;
pub(crate) mod recover;
pub(crate) mod rest;
pub(crate) mod view;
pub(crate) mod watermarks;
pub(crate) mod write;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};
use strandline_wal::bug::planted;
use strandline_wal::group::Group;
use strandline_wal::io::Env;
use strandline_wal::log::Log;
use strandline_wal::marks::Marks;
use strandline_wal::pool::Pool;
use strandline_wal::publish::Publisher;
use strandline_wal::reserve::Reserve;
use strandline_wal::unless;
use strandline_wal::writer::Writer;
use strandline_wal::{DatasetId, Epoch, Error as LogError, Hlc, ShardId};

use crate::error::{Error, Result};
use crate::event::{Events, What};
use crate::manifest::{EpochEntry, Manifest};
use crate::options::{Background, Options};
use crate::retention::Retention;
use crate::table::{BlockCache, OpenOptions};
use crate::verify::Problem;
use catalog::Catalog;
use epoch::EpochFile;
use memtable::Shape;
pub use recover::RecoveryReport;
pub use view::Value;
use view::{MemLevel, Newest, SealCut, SealedLevel, View};
use watermarks::Watermarks;

/// What a store may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Takes writes.
    Leader,
    /// Takes what a leader ships.
    Follower,
    /// Reads what another process writes.
    Reader,
}

/// What a store shares with its database.
#[derive(Clone)]
pub(crate) struct Shared {
    pub env: Env,
    pub options: Arc<Options>,
    pub pool: Arc<Pool>,
    pub cache: Arc<BlockCache>,
    pub reserve: Arc<Reserve>,
    /// Wakes background work.
    pub wake: Arc<dyn Fn() + Send + Sync>,
    pub node: crate::node::NodeIdentity,
    /// Called after anything new is in a log or committed.
    pub hook: Arc<Hook>,
    /// Told of what was shipped here.
    pub arrivals: Arc<Arrivals>,
    /// What an operator needs to hear.
    pub events: Arc<Events>,
}

impl Shared {
    /// Does what frees space or must not fail for lack of it: on a full disk once more, with the
    /// reserve given up.
    pub fn with_reserve<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        match work() {
            Err(error)
                if error.is_no_space() && !planted("reserve.retry") && self.reserve.release() =>
            {
                work()
            }
            done => done,
        }
    }

    /// Something came from a leader, or changed for whoever waits for that.
    pub fn arrived(&self) {
        self.hook.call();
        self.arrivals.notify();
    }

    /// How a memtable is laid out where nothing is known of what comes.
    pub fn memtable_shape(&self) -> Shape {
        Shape {
            name_count: 0,
            seed: self.env.random.next_u64(),
            is_ordered: false,
        }
    }

    /// Takes the reserve back after space was freed.
    pub fn refill_reserve(&self) {
        if self.reserve.is_released() && !planted("reserve.refill") {
            // Where there is too little space still, the next write is told so.
            let _ = self.reserve.restore();
        }
    }
}

/// Bytes of log that a name takes at least, in most memtables.
const LOG_PER_NAME: u64 = 64;

/// One dataset's state.
pub(crate) struct Store {
    shared: Shared,
    id: DatasetId,
    dir: PathBuf,
    role: Role,
    epoch: Epoch,
    lineage: [u8; 16],
    commit: Mutex<Commit>,
    publisher: Publisher<write::Done>,
    /// Group of writers that wait for the operating system to have their bytes.
    written: Group,
    /// Group of writers that wait for the disk.
    synced: Group,
    logs: Vec<Arc<Log>>,
    marks: Mutex<MarksFile>,
    watermarks: Arc<Watermarks>,
    view: Newest,
    catalog: Catalog,
    manifest: Mutex<Manifest>,
    /// Tables of manifests that could not be stored: one of those may be what the disk has.
    orphans: Mutex<Vec<u64>>,
    flushing: Mutex<()>,
    /// Held by whoever compacts; the merge that was given up last, if it can be taken up again.
    compacting: Mutex<Option<compact::Begun>>,
    pressure: Pressure,
    stopped: OnceLock<Error>,
    /// Whether it was told that a log takes nothing more.
    told_log: AtomicBool,
    /// It takes no more writes: it is about to be closed.
    closing: AtomicBool,
    closed: AtomicBool,
    epoch_file: Mutex<EpochFile>,
    /// Per shard, the first sequence that some follower lacks; `u64::MAX` where there is none.
    floors: Vec<AtomicU64>,
    /// Who keeps which part of the logs.
    retention: OnceLock<Retention>,
    /// Whether it is a node's, which may have followers that were not heard yet.
    is_shipped: AtomicBool,
    counters: Counters,
    /// What the last scrub found.
    damage: Mutex<Vec<Problem>>,
    report: RecoveryReport,
    /// Per shard, who led which part of the log, oldest first.
    epochs: Mutex<Vec<Vec<EpochEntry>>>,
    /// What a follower asked to be synced in the background.
    asked: Mutex<follow::Asked>,
    /// Held during such a sync.
    syncing: Mutex<()>,
    /// A follower's batches that are not known to be committed.
    pending: Mutex<follow::Pending>,
}

/// Everything that changes inside the reserve section.
struct Commit {
    writers: Vec<Writer>,
    timestamp: Hlc,
    ordinal: u16,
    level: Arc<MemLevel>,
}

struct MarksFile {
    file: Option<Marks>,
    written_ns: u64,
}

/// Writers wait here while flushes are behind.
#[derive(Default)]
struct Pressure {
    /// The failure of the last flush, until one succeeds.
    failed: Mutex<Option<Error>>,
    changed: Condvar,
}

/// Tells whoever wants to know that something is new, in any dataset: the shipping driver.
#[derive(Default)]
pub(crate) struct Hook(RwLock<Option<Arc<dyn Fn() + Send + Sync>>>);

impl Hook {
    pub fn set(&self, hook: Option<Arc<dyn Fn() + Send + Sync>>) {
        *self.0.write() = hook;
    }

    pub fn call(&self) {
        if let Some(hook) = &*self.0.read() {
            hook();
        }
    }
}

/// Wakes those who wait for what a leader ships to arrive, or to be seen, in any dataset.
#[derive(Default)]
pub(crate) struct Arrivals {
    count: Mutex<u64>,
    changed: Condvar,
    waiting: AtomicUsize,
}

/// Longest wait for an arrival without a look, for those that end by time.
const ARRIVAL_PATIENCE: Duration = Duration::from_millis(10);

impl Arrivals {
    /// Looks until something is found, after every arrival.
    pub fn wait_until<T>(&self, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let found = loop {
            let seen = *self.count.lock();
            if let Some(found) = look().transpose() {
                break found;
            }
            let mut count = self.count.lock();
            if *count == seen {
                self.changed.wait_for(&mut count, ARRIVAL_PATIENCE);
            }
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        found
    }

    fn notify(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            *self.count.lock() += 1;
            self.changed.notify_all();
        }
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub batches: AtomicU64,
    pub records: AtomicU64,
    pub payload_len: AtomicU64,
    pub syncs: AtomicU64,
    pub flushes: AtomicU64,
    pub compactions: AtomicU64,
    pub merge_pieces: AtomicU64,
    pub table_len_written: AtomicU64,
    pub values_moved: AtomicU64,
    pub segments_recycled: AtomicU64,
    pub segments_removed: AtomicU64,
    pub pieces_by_call: AtomicU64,
    pub scrubbed_len: AtomicU64,
    pub scrub_passes: AtomicU64,
    pub degraded_acks: AtomicU64,
    pub last_write_ns: AtomicU64,
    /// The last write after which it was settled.
    pub settled_write_ns: AtomicU64,
    /// No compaction by itself before.
    pub compact_after_ns: AtomicU64,
}

impl Counters {
    /// Those of a store that is opened now, which counts as a write.
    fn begin(now_ns: u64) -> Counters {
        Counters {
            last_write_ns: AtomicU64::new(now_ns),
            settled_write_ns: AtomicU64::new(u64::MAX),
            ..Counters::default()
        }
    }

    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    /// As [`Counters::add`], for those who take turns: under the commit lock.
    pub fn add_alone(counter: &AtomicU64, n: u64) {
        counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }
}

impl Store {
    /// The dataset's name.
    pub fn id(&self) -> &DatasetId {
        &self.id
    }

    /// Its directory.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// The epoch that it writes in; 0 where it does not write.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn lineage(&self) -> [u8; 16] {
        self.lineage
    }

    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    pub fn env(&self) -> &Env {
        &self.shared.env
    }

    /// The log of a shard.
    pub fn log(&self, shard: ShardId) -> &Arc<Log> {
        &self.logs[usize::from(shard.0)]
    }

    pub fn logs(&self) -> &[Arc<Log>] {
        &self.logs
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub fn watermarks(&self) -> &Watermarks {
        &self.watermarks
    }

    /// What the last scrub found.
    pub fn damage(&self) -> &Mutex<Vec<Problem>> {
        &self.damage
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Who this node is.
    pub fn node(&self) -> crate::node::NodeIdentity {
        self.shared.node
    }

    /// The last record before the part of a shard's log that reaches to its end without a gap, and
    /// the chain value there.
    pub fn base_of(&self, shard: ShardId) -> (u64, u32) {
        let segments = self.log(shard).segments();
        let mut base = (0, 0);
        let mut next = None;
        for segment in segments.iter().rev() {
            if next.is_some_and(|next| segment.last_seq() + 1 != next) {
                break;
            }
            next = Some(segment.first_seq());
            base = (segment.first_seq() - 1, segment.header().prev_crc);
        }
        base
    }

    /// What recovery found and did.
    pub fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// Where its newest view comes from.
    pub fn newest(&self) -> &Newest {
        &self.view
    }

    pub fn view(&self) -> Arc<View> {
        self.view.take()
    }

    pub fn epoch_file(&self) -> &Mutex<EpochFile> {
        &self.epoch_file
    }

    /// Who led which part of a shard's log, oldest first.
    pub fn epochs_of(&self, shard: ShardId) -> Vec<EpochEntry> {
        self.epochs.lock()[usize::from(shard.0)].clone()
    }

    /// Who leads a shard's log now, or led it last.
    pub fn last_epoch_of(&self, shard: ShardId) -> Option<EpochEntry> {
        self.epochs.lock()[usize::from(shard.0)].last().copied()
    }

    /// A leadership begins in a shard's log.
    fn note_epoch(&self, shard: ShardId, entry: EpochEntry) {
        let mut epochs = self.epochs.lock();
        let epochs = &mut epochs[usize::from(shard.0)];
        if epochs.last().is_none_or(|last| last.epoch < entry.epoch) {
            epochs.push(entry);
        }
    }

    /// The manifest as it was last stored.
    pub fn manifest(&self) -> Manifest {
        self.manifest.lock().clone()
    }

    /// Runs `f` while the manifest is not being stored.
    pub fn with_manifest<T>(&self, f: impl FnOnce() -> T) -> T {
        let _manifest = self.manifest.lock();
        f()
    }

    /// Holds flushes and compactions back and runs `f` on the manifest: no file that it names is
    /// removed meanwhile.
    pub fn with_files<T>(&self, f: impl FnOnce(&Manifest) -> T) -> T {
        let _compacting = self.compacting.lock();
        let _flushing = self.flushing.lock();
        let manifest = self.manifest.lock();
        f(&manifest)
    }

    fn table_options(&self) -> OpenOptions {
        OpenOptions::new(Arc::clone(&self.shared.cache))
    }

    /// Makes a file for a segment to come, or hashes what was appended. Returns whether there was
    /// something to do.
    pub fn log_step(&self) -> bool {
        // A spare is a favour: who needs the space meets the same disk, and reports it.
        let made = self.shared.pool.work().unwrap_or(false);
        made || self.logs.iter().any(|log| log.hash_step())
    }

    fn is_manual(&self) -> bool {
        self.shared.options.background == Background::Manual
    }

    /// Keeps something for an operator to hear.
    pub fn tell(&self, what: What) {
        let at_ms = self.shared.env.clock.wall_ms();
        self.shared.events.push(at_ms, self.id().as_str(), what);
    }

    /// Ends all writing after a failure that leaves no other way.
    pub fn stop(&self, error: Error) {
        let what = match &error {
            Error::Fenced { ours, found } => What::Fenced {
                ours: *ours,
                found: *found,
            },
            error => What::Stopped {
                why: error.to_string(),
            },
        };
        // The first failure is the one that counts.
        if self.stopped.set(error).is_ok() {
            self.tell(what);
        }
        self.pressure.changed.notify_all();
        self.shared.arrived();
    }

    /// Fails where the store was stopped or closed.
    pub fn check(&self) -> Result<()> {
        if let Some(error) = self.stopped.get() {
            return Err(error.clone());
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed("dataset"));
        }
        Ok(())
    }

    /// As [`Store::check`], and fails where it is about to be closed.
    pub fn check_writes(&self) -> Result<()> {
        match self.closing.load(Ordering::Acquire) {
            true => Err(Error::Closed("dataset")),
            false => self.check(),
        }
    }

    /// Takes no more writes, and lets those that wait know; what works on the files goes on.
    pub fn refuse_writes(&self) {
        self.closing.store(true, Ordering::Release);
        self.pressure.changed.notify_all();
        self.shared.hook.call();
    }

    /// As [`Shared::with_reserve`].
    pub fn with_reserve<T>(&self, work: impl FnMut() -> Result<T>) -> Result<T> {
        self.shared.with_reserve(work)
    }

    /// Fails where it was stopped, or its log takes nothing more.
    pub fn check_health(&self) -> Result<()> {
        self.check()?;
        Ok(self.logs.iter().try_for_each(|log| log.check())?)
    }

    /// Tells that a log takes nothing more, once. Whoever meets the failure has it as an error; this is for
    /// an operator, who looks now and then.
    pub fn tell_log(&self) {
        if let Some(error) = self.logs.iter().find_map(|log| log.check().err())
            && !self.told_log.swap(true, Ordering::AcqRel)
        {
            self.tell(What::Stopped {
                why: error.to_string(),
            });
        }
    }

    /// Ends all writing: syncs the logs and notes how far they are durable. Where `is_last`, a leader seals
    /// them, too: nobody opens them again but as what comes after it. Idempotent.
    ///
    /// # Errors
    /// The disk's.
    pub fn close(&self, is_last: bool) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) || self.role == Role::Reader {
            return Ok(());
        }
        self.pressure.changed.notify_all();
        self.shared.arrived();
        // Nobody writes what this one has in memory into files that the next one has open.
        if !planted("store.close_drains") {
            self.written.stop(LogError::Closed);
            self.synced.stop(LogError::Closed);
        }
        // Who works on the files gives up soon, and has done so before anybody else opens them.
        if !planted("store.close_waits") {
            drop(self.compacting.lock());
            drop(self.flushing.lock());
            drop(self.syncing.lock());
        }
        if self.stopped.get().is_some() || self.logs.iter().any(|log| log.check().is_err()) {
            return Ok(());
        }
        let mut commit = self.commit.lock();
        let to_disk = || {
            let mut logs = self.logs.iter();
            logs.try_for_each(|log| unless!("store.close", log.sync().map(drop)))
        };
        to_disk()?;
        // The next epoch starts a new segment anyway; with the footer that ends this one, the next open
        // need not read what is in tables. A batch that nobody completes any more would keep it waiting.
        if is_last && self.role == Role::Leader && self.publisher.open_count() == 0 {
            commit.writers.iter_mut().try_for_each(Writer::seal)?;
            to_disk()?;
        }
        self.write_marks(true)
    }

    /// Notes how far the logs are durable.
    fn write_marks(&self, sync: bool) -> Result<()> {
        let mut marks = self.marks.lock();
        marks.written_ns = self.shared.env.clock.mono_ns();
        let seqs: Vec<(ShardId, u64)> = self
            .logs
            .iter()
            .map(|log| (log.id().shard, log.synced_seq()))
            .collect();
        if let Some(file) = &mut marks.file {
            file.write(&seqs, sync)?;
        }
        Ok(())
    }

    /// What some follower lacks of a shard's log; `u64::MAX` while there is no follower.
    pub fn set_floor(&self, shard: ShardId, first_seq: u64) {
        self.floors[usize::from(shard.0)].store(first_seq, Ordering::Release);
        self.set_shipped();
    }

    /// It is a node's, which may have followers that were not heard yet.
    pub fn set_shipped(&self) {
        self.is_shipped.store(true, Ordering::Release);
    }

    /// Who keeps which part of the logs.
    pub fn retention(&self) -> &Retention {
        self.retention
            .get()
            .expect("it is set before the store is used")
    }

    /// Swaps the memtable for an empty one and queues it for its flush. Requires: the commit lock.
    fn seal_memtable(&self, commit: &mut Commit) {
        // What comes is taken to be like what came.
        let sealed = &commit.level.index;
        let name_count_max = self.options().memtable_len_max / LOG_PER_NAME;
        let level = Arc::new(MemLevel::new(Shape {
            name_count: sealed.name_count().min(name_count_max as usize),
            is_ordered: sealed.is_walked(),
            ..self.shared.memtable_shape()
        }));
        let ends = commit
            .writers
            .iter()
            .map(|w| (w.position(), w.tail().chain))
            .collect();
        let cut = SealCut {
            timestamp: commit.timestamp,
            ends,
        };
        self.view.change(|next| {
            let sealed = std::mem::replace(&mut next.active, Arc::clone(&level));
            next.sealed.insert(0, SealedLevel { level: sealed, cut });
        });
        commit.level = level;
    }
}
