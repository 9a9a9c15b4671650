//! One dataset as replication sees it: its logs, its marks, and what is done to them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use strandline_replication::bundle::{BundleSink, BundleSource};
use strandline_replication::epoch::{EpochEntry, EpochTable};
use strandline_replication::slot::{Event, Heard};
use strandline_replication::{
    CommitMark, Confirmed, Error as ReplicationError, Floor, FollowerStore, Identity, Incarnation,
    LeaderId, LeaderStore, Leadership, Lineage, LogSource, Marks, NodeId, Promise, Report,
    ShardEnd, Times,
};
use strandline_wal::bug::planted;
use strandline_wal::io::write_all_at;
use strandline_wal::log::Log;
use strandline_wal::segment::SEGMENT_HEADER_LEN;
use strandline_wal::unless;
use strandline_wal::writer::Appended;
use strandline_wal::{Epoch, IoContext, Position, ShardId};

use super::acks::ShardAcks;
use super::bundle::{Bundles, Sink};
use crate::dataset::{DatasetInner, Reopen};
use crate::error::Error;
use crate::files;
use crate::store::watermarks::Mark;
use crate::store::{Role, Store};

/// Most bytes of cut tails that are kept for one dataset.
const DIVERGENT_LEN_MAX: u64 = 1 << 30;

/// A dataset, joined to the driver.
pub(super) struct Joint {
    dataset: Arc<DatasetInner>,
    /// What other nodes connect to.
    name: String,
    /// The cut that the marks of one round are taken from.
    mark: Mutex<Mark>,
    bundles: Arc<Bundles>,
    /// Whether what the leader committed last is not all here.
    behind: AtomicBool,
    reports: Box<dyn Fn(Report) + Send + Sync>,
}

impl Joint {
    pub fn new(
        dataset: Arc<DatasetInner>,
        name: String,
        reports: impl Fn(Report) + Send + Sync + 'static,
    ) -> Joint {
        let mark = Mutex::new(dataset.store().watermarks().committed());
        let bundles = Arc::new(Bundles::new(Arc::clone(&dataset)));
        Joint {
            dataset,
            name,
            mark,
            bundles,
            behind: AtomicBool::new(false),
            reports: Box::new(reports),
        }
    }

    fn store(&self) -> Arc<Store> {
        self.dataset.store()
    }
}

/// Where a shard's log ends, with who led there.
pub(super) fn end_of(store: &Store, shard: ShardId, position: Position, chain: u32) -> ShardEnd {
    let epochs = store.epochs_of(shard);
    let after = epochs.partition_point(|entry| entry.first_seq <= position.seq);
    let leader = after
        .checked_sub(1)
        .map(|n| epochs[n].leader)
        .unwrap_or_default();
    ShardEnd {
        shard,
        position,
        leader: LeaderId(leader),
        chain,
    }
}

fn refused(error: Error) -> ReplicationError {
    match error {
        Error::Log(error) => ReplicationError::Log(error),
        error => ReplicationError::Store {
            what: error.to_string(),
        },
    }
}

impl LogSource for Joint {
    fn identity(&self) -> Identity {
        let store = self.store();
        Identity {
            node: NodeId(store.node().node),
            incarnation: Incarnation(store.node().incarnation),
            name: self.name.clone(),
            dataset: store.id().clone(),
            lineage: Lineage(store.lineage()),
        }
    }

    fn shards(&self) -> Vec<ShardId> {
        self.store()
            .logs()
            .iter()
            .map(|log| log.id().shard)
            .collect()
    }

    fn log(&self, shard: ShardId) -> Arc<Log> {
        Arc::clone(self.store().log(shard))
    }

    fn epochs(&self, shard: ShardId) -> EpochTable {
        let entries = self.store().epochs_of(shard);
        let entry = |e: &crate::manifest::EpochEntry| EpochEntry {
            epoch: e.epoch,
            leader: LeaderId(e.leader),
            first_seq: e.first_seq,
        };
        EpochTable::of(entries.iter().map(entry).collect()).expect("epochs rise in every log")
    }

    fn end(&self, shard: ShardId) -> ShardEnd {
        let store = self.store();
        let (position, chain) = store.tails()[usize::from(shard.0)];
        end_of(&store, shard, position, chain)
    }

    fn base(&self, shard: ShardId) -> ShardEnd {
        let store = self.store();
        let (seq, chain) = store.base_of(shard);
        let epochs = store.epochs_of(shard);
        let after = epochs.partition_point(|entry| entry.first_seq <= seq);
        let epoch = after.checked_sub(1).map_or(Epoch(0), |n| epochs[n].epoch);
        end_of(&store, shard, Position { epoch, seq }, chain)
    }

    fn bundles(&self) -> Option<Arc<dyn BundleSource>> {
        Some(Arc::clone(&self.bundles) as Arc<dyn BundleSource>)
    }

    fn promised(&self) -> Promise {
        let store = self.store();
        if store.role() == Role::Leader {
            return Promise {
                epoch: store.epoch(),
                to: NodeId(store.node().node),
            };
        }
        let node = store.node().node;
        let (epoch, to) = store.epoch_file().lock().binding(node);
        Promise {
            epoch,
            to: NodeId(to),
        }
    }

    fn highest_epoch(&self) -> Epoch {
        super::node::highest_epoch(&self.store())
    }

    fn votes(&self) -> bool {
        !self.store().epoch_file().lock().epochs().joins
    }

    fn promise(&self, promise: Promise) -> Result<(), ReplicationError> {
        let store = self.store();
        let mut file = store.epoch_file().lock();
        Ok(unless!(
            "joint.promise",
            file.promise(promise.epoch, promise.to.0, store.node().node)
        )?)
    }

    fn sync(&self, shard: ShardId) -> Result<u64, ReplicationError> {
        let store = self.store();
        match store.role() {
            Role::Leader => unless!("joint.leader", store.sync()).map_err(refused)?,
            Role::Follower | Role::Reader => {
                unless!("joint.follower", store.sync_shipped()).map_err(refused)?;
            }
        }
        Ok(store.log(shard).synced_seq())
    }

    fn report(&self, report: Report) {
        (self.reports)(report);
    }
}

impl LeaderStore for Joint {
    fn leadership(&self) -> Leadership {
        let store = self.store();
        let leader = store.epochs_of(ShardId(0)).last().map(|entry| entry.leader);
        Leadership {
            epoch: store.epoch(),
            leader: LeaderId(leader.unwrap_or_default()),
        }
    }

    fn marks(&self, shard: ShardId) -> Marks {
        let store = self.store();
        let mut mark = self.mark.lock();
        // All marks of a round are of one cut, so that they and its time belong together.
        if shard == ShardId(0) {
            *mark = store.watermarks().committed();
        }
        let log = store.log(shard);
        let (durable, written) = (log.synced_seq(), log.last_seq());
        Marks {
            written,
            durable: durable.min(written),
            committed: mark.seqs[usize::from(shard.0)],
        }
    }

    fn times(&self) -> Times {
        let closed = self.store().watermarks().published_timestamp();
        Times {
            closed,
            committed: self.mark.lock().timestamp,
        }
    }

    fn confirmed(&self, confirmed: &Confirmed) {
        let acks = ShardAcks {
            received: confirmed.received.clone(),
            durable: confirmed.durable.clone(),
            applied: confirmed.applied.clone(),
        };
        self.dataset
            .acks
            .confirm(usize::from(confirmed.shard.0), acks);
    }

    fn greeted(&self, peer: &Identity, ends: &[ShardEnd]) -> Result<(), ReplicationError> {
        let store = self.store();
        let ends: Vec<u64> = ends.iter().map(|end| (end.shard, end.position.seq)).fold(
            vec![u64::MAX; store.logs().len()],
            |mut all, (shard, seq)| {
                all[usize::from(shard.0)] = seq;
                all
            },
        );
        store.retention().greeted(&store, peer.clone(), &ends)
    }

    fn pinned(&self, node: NodeId, ends: &[ShardEnd]) {
        let ends = ends.iter().map(|end| end.position.seq).collect();
        let store = self.store();
        store.retention().take(&store, Event::Pinned(node, ends));
    }

    fn heard(&self, heard: Vec<Heard>) {
        let store = self.store();
        store.retention().take(&store, Event::Heard(heard));
    }

    fn fenced(&self, epoch: Epoch) {
        let store = self.store();
        let error = Error::Fenced {
            ours: store.epoch().0,
            found: epoch.0,
        };
        store.stop(error.clone());
        self.dataset.acks.fence(error);
    }
}

impl FollowerStore for Joint {
    fn adopt(&self, lineage: Lineage) -> Result<(), ReplicationError> {
        let store = self.store();
        let (env, path) = (store.env().clone(), files::manifest(store.dir()));
        let mut manifest = store.manifest();
        // Before it has a history it does not vote either; with one, this is what keeps it from it.
        store
            .epoch_file()
            .lock()
            .join(true)
            .map_err(ReplicationError::Log)?;
        let adopt = || {
            manifest.lineage = lineage.0;
            manifest.generation += 1;
            manifest.store(env.disk.as_ref(), &path)?;
            Ok(())
        };
        self.dataset
            .reopen(Reopen::role(Role::Follower), adopt)
            .map_err(refused)
    }

    fn floor(&self, shard: ShardId) -> Floor {
        let store = self.store();
        let shard = usize::from(shard.0);
        let flushed = store.manifest().logs[shard];
        Floor {
            committed: store.watermarks().committed().seqs[shard],
            flushed: flushed.position.seq.max(flushed.complete_seq),
            strict: false,
        }
    }

    fn room(&self) -> u64 {
        let store = self.store();
        let options = store.options();
        let waiting = store.view().sealed.len() as u64;
        let mut free = (options.memtable_count_max as u64 + 1).saturating_sub(waiting);
        // What waits for a commit that waits for bytes cannot be flushed before they are here: shards
        // do not arrive in the order of time. To refuse them would be to wait for ever.
        if free == 0 && self.behind.load(Ordering::Relaxed) && store.flush_waits_for_commit() {
            free = 1;
        }
        free * options.memtable_len_max
    }

    fn append(
        &self,
        shard: ShardId,
        segment: u64,
        at: u64,
        bytes: &[u8],
    ) -> Result<Appended, ReplicationError> {
        self.store()
            .append_shipped(shard, segment, at, bytes)
            .map_err(refused)
    }

    fn seal(&self, shard: ShardId, segment: u64, footer: &[u8]) -> Result<(), ReplicationError> {
        self.store()
            .seal_shipped(shard, segment, footer)
            .map_err(refused)
    }

    fn begin_persist(&self) {
        self.store().ask_persist();
    }

    fn poll_persist(&self) -> Option<Result<(), ReplicationError>> {
        self.store()
            .asked_persist()
            .map(|done| done.map_err(refused))
    }

    fn commit(&self, marks: &[CommitMark], times: Times) -> Result<(), ReplicationError> {
        let seqs: Vec<u64> = marks.iter().map(|mark| mark.seq).collect();
        let here = self.store().commit_shipped(times.committed, &seqs);
        self.behind.store(!here, Ordering::Relaxed);
        // Every shard has a start of an epoch: a mark of zero is one that was not told yet.
        let is_told = seqs.iter().all(|seq| *seq > 0);
        if here && is_told && !self.votes() {
            let store = self.store();
            unless!("joint.joined", store.sync_shipped()).map_err(refused)?;
            store
                .epoch_file()
                .lock()
                .join(false)
                .map_err(ReplicationError::Log)?;
        }
        Ok(())
    }

    fn applied(&self, shard: ShardId) -> u64 {
        self.store().watermarks().committed().seqs[usize::from(shard.0)]
    }

    fn cut(&self, shard: ShardId, to: ShardEnd) -> Result<(), ReplicationError> {
        let store = self.store();
        let mut forks: Vec<u64> = store.tails().iter().map(|(end, _)| end.seq).collect();
        forks[usize::from(shard.0)] = to.position.seq;
        let how = Reopen {
            role: Role::Follower,
            forks: Some(forks),
            elected: None,
        };
        // Nothing is flushed any more once it is closed: what was, since the leader was asked, tells.
        let flushed = || {
            let flushed = store.manifest().logs[usize::from(shard.0)];
            flushed.position.seq.max(flushed.complete_seq)
        };
        let mut is_late = false;
        let cut = self.dataset.reopen(how, || {
            is_late = flushed() > to.position.seq && !planted("joint.flushed");
            if is_late {
                let text = "what is to be cut was flushed meanwhile";
                return Err(Error::Replication(text.to_owned()));
            }
            unless!("divergent.save", save_tail(&store, shard, to.position.seq))
        });
        if is_late {
            let as_it_is = Reopen::role(Role::Follower);
            self.dataset.reopen(as_it_is, || Ok(())).map_err(refused)?;
            return Err(ReplicationError::Pruned {
                shard,
                needed: to.position.seq + 1,
                first_available: flushed() + 1,
            });
        }
        cut.map_err(refused)
    }

    fn sink(&self) -> Option<Box<dyn BundleSink>> {
        Some(Box::new(Sink::new(Arc::clone(&self.dataset))))
    }
}

/// Copies what stands behind a record under `divergent/`, segment by segment: each with its header
/// and the batches that will be cut.
fn save_tail(store: &Store, shard: ShardId, fork_seq: u64) -> Result<(), Error> {
    let disk = store.env().disk.as_ref();
    let log = store.log(shard);
    let dir = files::divergent(store.dir()).join(format!("s{:05}", shard.0));
    disk.create_dir_all(&dir).during("create directory", &dir)?;
    let mut kept: u64 = 0;
    for entry in disk.list(&dir).during("list", &dir)? {
        kept += entry.len;
    }
    for segment in log.segments() {
        if segment.last_seq() <= fork_seq {
            continue;
        }
        let from_seq = segment.first_seq().max(fork_seq + 1);
        let start = offset_of(log, &segment, from_seq)?;
        let head = segment.read(0, SEGMENT_HEADER_LEN)?;
        let len = usize::try_from(segment.data_len() - start).expect("a segment fits in memory");
        kept += (SEGMENT_HEADER_LEN + len) as u64;
        if kept > DIVERGENT_LEN_MAX {
            return Err(Error::TooLarge {
                what: "the saved tails under divergent/, move them away first",
                limit: DIVERGENT_LEN_MAX,
                found: kept,
            });
        }
        let from = Position {
            epoch: segment.header().epoch,
            seq: from_seq,
        };
        let path = files::divergent_tail(store.dir(), shard, from);
        let tail = segment.read(start, len)?;
        save(disk, &path, &head, &tail)?;
    }
    unless!("divergent.tail", disk.sync_dir(&dir)).during("sync directory", &dir)?;
    let parent = files::divergent(store.dir());
    unless!("divergent.shard", disk.sync_dir(&parent)).during("sync directory", &parent)?;
    unless!("divergent.dir", disk.sync_dir(store.dir())).during("sync directory", store.dir())?;
    Ok(())
}

fn save(
    disk: &dyn strandline_wal::io::Disk,
    path: &Path,
    head: &[u8],
    tail: &[u8],
) -> Result<(), Error> {
    match disk.create(path) {
        Ok(file) => {
            write_all_at(file.as_ref(), head, 0).during("write", path)?;
            write_all_at(file.as_ref(), tail, head.len() as u64).during("write", path)?;
            Ok(unless!("divergent.sync", file.sync()).during("sync", path)?)
        }
        // Saved by a cut that a crash undid: the same bytes.
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            disk.remove(path).during("remove", path)?;
            save(disk, path, head, tail)
        }
        Err(e) => Err(e).during("create", path).map_err(Error::from),
    }
}

/// The offset of the batch that starts with a record.
fn offset_of(
    log: &Arc<Log>,
    segment: &strandline_wal::log::Segment,
    seq: u64,
) -> Result<u64, Error> {
    use strandline_wal::reader::{Reader, Step};
    if seq == segment.first_seq() {
        return Ok(SEGMENT_HEADER_LEN as u64);
    }
    match Reader::new(Arc::clone(log), seq).next()? {
        Step::Batch(batch) => Ok(batch.at),
        Step::AtTail | Step::Truncated { .. } | Step::Forked { .. } => Ok(segment.data_len()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
