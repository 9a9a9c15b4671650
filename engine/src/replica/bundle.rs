//! Bundles: a dataset's checkpoint on its way to a follower that the log no longer reaches.
//!
//! The sender makes a checkpoint under `staging/` and lists its files by kind and number. The receiver
//! puts them into a directory beside the dataset, checks every digest, and takes it over in one step:
//! the finished directory gets the name `INSTALL-{dataset}`, and whoever finds that name replaces the
//! dataset by it, after a crash too.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use strandline_replication::bundle::{
    Bundle, BundleFile, BundlePlace, BundlePlan, BundleSink, BundleSource,
};
use strandline_replication::{BundleId, Error as ReplicationError, LeaderId, ShardEnd};
use strandline_wal::Error as LogError;
use strandline_wal::bug::planted;
use strandline_wal::io::{Access, Disk, Env, File, FileKind, read_exact_at, write_all_at};
use strandline_wal::recover::{Known, plan};
use strandline_wal::segment::{file_name, parse_file_name};
use strandline_wal::unless;
use strandline_wal::{DatasetId, IoContext, LogId, RegionId, ShardId};

use crate::checkpoint::{CheckpointReport, copy_dataset};
use crate::dataset::{DatasetInner, Reopen};
use crate::error::{Error, Result};
use crate::files;
use crate::manifest::{EpochEntry, Manifest};
use crate::store::{Role, Store};

const KIND_MANIFEST: u8 = 1;
const KIND_TABLE: u8 = 2;
/// Number: shard in the upper 16 bits, first sequence below.
const KIND_SEGMENT: u8 = 3;
const KIND_MARKS: u8 = 4;
const SEQ_BITS: u32 = 48;
/// Name of the directory that tells [`finish_install`] to keep what is replaced.
const KEEP: &str = "KEEP-";

/// The bundles that one dataset gives out. The last one stays pinned for a follower that comes back.
pub(super) struct Bundles {
    dataset: Arc<DatasetInner>,
    last: Mutex<Option<Arc<Pinned>>>,
}

struct Pinned {
    env: Env,
    dir: PathBuf,
    plan: BundlePlan,
    paths: Vec<PathBuf>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the dataset is opened next.
        let _ = self.env.disk.remove_dir_all(&self.dir);
    }
}

struct Reading {
    pinned: Arc<Pinned>,
}

fn failed(error: Error) -> ReplicationError {
    match error {
        Error::Log(error) => ReplicationError::Log(error),
        error => ReplicationError::Store {
            what: error.to_string(),
        },
    }
}

impl Bundles {
    pub fn new(dataset: Arc<DatasetInner>) -> Bundles {
        Bundles {
            dataset,
            last: Mutex::default(),
        }
    }

    /// Whether the log goes on where a bundle ends: else who has it would need another at once.
    fn reaches(&self, plan: &BundlePlan) -> bool {
        let store = self.dataset.store();
        let goes_on = |end: &ShardEnd| {
            let (base, _) = store.base_of(end.shard);
            end.position.seq > base || base == 0
        };
        plan.ends.iter().all(goes_on)
    }

    fn pin(&self) -> Result<Pinned> {
        let store = self.dataset.store();
        let env = store.env().clone();
        let id = BundleId(env.random.next_id());
        let dir = files::staging(store.dir()).join(format!("out-{id}"));
        env.disk
            .create_dir_all(&dir)
            .during("create directory", &dir)?;
        copy_dataset(&store, &dir, &mut CheckpointReport::default())?;
        let disk = env.disk.as_ref();
        let path = files::manifest(&dir);
        let manifest = Manifest::load(disk, &path)?.expect("the checkpoint has just stored it");
        let mut plan = BundlePlan {
            id,
            ends: ends_of(disk, &dir, &manifest)?,
            files: Vec::new(),
        };
        let mut paths = Vec::new();
        for (kind, number, path) in files_of(disk, &dir, &manifest)? {
            let (len, digest) = digest_of(disk, &path)?;
            plan.files.push(BundleFile {
                kind,
                number,
                len,
                digest,
            });
            paths.push(path);
        }
        Ok(Pinned {
            env,
            dir,
            plan,
            paths,
        })
    }
}

impl BundleSource for Bundles {
    fn open(&self, again: Option<BundleId>) -> Result<Box<dyn Bundle>, ReplicationError> {
        let mut last = self.last.lock();
        let pinned = match &*last {
            Some(pinned) if again == Some(pinned.plan.id) && self.reaches(&pinned.plan) => {
                Arc::clone(pinned)
            }
            _ => {
                let pinned = Arc::new(self.pin().map_err(failed)?);
                *last = Some(Arc::clone(&pinned));
                pinned
            }
        };
        Ok(Box::new(Reading { pinned }))
    }
}

impl Bundle for Reading {
    fn plan(&self) -> &BundlePlan {
        &self.pinned.plan
    }

    fn read(&mut self, file: u32, at: u64, len_max: usize) -> Result<Vec<u8>, ReplicationError> {
        let path = &self.pinned.paths[file as usize];
        let len = self.pinned.plan.files[file as usize].len.saturating_sub(at);
        let mut bytes = vec![0; len_max.min(usize::try_from(len).unwrap_or(usize::MAX))];
        let file = self
            .pinned
            .env
            .disk
            .open(path, Access::Read)
            .during("open", path)?;
        read_exact_at(file.as_ref(), &mut bytes, at).during("read", path)?;
        Ok(bytes)
    }
}

/// The files of a copied dataset, with their names on the wire.
fn files_of(disk: &dyn Disk, dir: &Path, manifest: &Manifest) -> Result<Vec<(u8, u64, PathBuf)>> {
    let mut list = Vec::new();
    for table in manifest.tables() {
        let number = table.identity.number;
        list.push((KIND_TABLE, number, files::table(dir, number)));
    }
    let region = files::region(dir, manifest.region);
    for entry in disk.list(&region).during("list", &region)? {
        let path = region.join(&entry.name);
        if let Some((shard, first_seq)) = parse_file_name(&entry.name) {
            if first_seq >= 1 << SEQ_BITS {
                return Err(Error::from(LogError::TooLarge {
                    what: "first record of a segment in a bundle",
                    limit: (1 << SEQ_BITS) - 1,
                    found: first_seq,
                }));
            }
            let number = u64::from(shard.0) << SEQ_BITS | first_seq;
            list.push((KIND_SEGMENT, number, path));
        } else if entry.name == strandline_wal::marks::FILE_NAME {
            list.push((KIND_MARKS, 0, path));
        }
    }
    list.push((
        KIND_MANIFEST,
        manifest.region.0.into(),
        files::manifest(dir),
    ));
    Ok(list)
}

/// The local path of a file of a bundle; `None` for names that none of ours has.
fn path_of(dir: &Path, region: RegionId, kind: u8, number: u64) -> Option<PathBuf> {
    match kind {
        KIND_MANIFEST => Some(files::manifest(dir)),
        KIND_TABLE => Some(files::table(dir, number)),
        KIND_SEGMENT => {
            let shard = ShardId((number >> SEQ_BITS) as u16);
            let first_seq = number & ((1 << SEQ_BITS) - 1);
            Some(files::region(dir, region).join(file_name(shard, first_seq)))
        }
        KIND_MARKS => Some(files::region(dir, region).join(strandline_wal::marks::FILE_NAME)),
        _ => None,
    }
}

fn digest_of(disk: &dyn Disk, path: &Path) -> Result<(u64, [u8; 32])> {
    const STEP: usize = 1 << 20;
    let file = disk.open(path, Access::Read).during("open", path)?;
    let len = file.len().during("stat", path)?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = vec![0; STEP];
    let mut at = 0;
    while at < len {
        let step = STEP.min(usize::try_from(len - at).unwrap_or(STEP));
        read_exact_at(file.as_ref(), &mut bytes[..step], at).during("read", path)?;
        hasher.update(&bytes[..step]);
        at += step as u64;
    }
    Ok((len, *hasher.finalize().as_bytes()))
}

/// Where the logs of a copied dataset end.
fn ends_of(disk: &dyn Disk, dir: &Path, manifest: &Manifest) -> Result<Vec<ShardEnd>> {
    let region = files::region(dir, manifest.region);
    let mut ends = Vec::new();
    for (shard, flushed) in manifest.logs.iter().enumerate() {
        let shard = ShardId(u16::try_from(shard).expect("at most 256 shards"));
        let known = Known {
            log: LogId {
                dataset: manifest.dataset.clone(),
                region: manifest.region,
                shard,
            },
            lineage: Some(manifest.lineage),
            durable_seq: flushed.position.seq,
            flushed_seq: flushed.position.seq,
            led: &|_| false,
            fork_seq: None,
        };
        let plan = plan(disk, &region, &known)?;
        let position = plan.position();
        let epochs = &manifest.epochs[usize::from(shard.0)];
        let mut leader = epochs
            .iter()
            .rev()
            .find(|entry| entry.first_seq <= position.seq && entry.epoch == position.epoch)
            .map(|entry| entry.leader);
        if leader.is_none() {
            leader = leader_in(disk, &plan)?;
        }
        let leader = LeaderId(leader.unwrap_or_default());
        ends.push(ShardEnd {
            shard,
            position,
            leader,
            chain: plan.chain(),
        });
    }
    Ok(ends)
}

/// Who led at the end of a log, out of the segment that started the epoch.
fn leader_in(disk: &dyn Disk, plan: &strandline_wal::recover::Plan) -> Result<Option<[u8; 16]>> {
    let epoch = plan.position().epoch;
    let Some(found) = plan
        .segments
        .iter()
        .find(|found| found.header.epoch == epoch)
    else {
        return Ok(None);
    };
    let bytes =
        strandline_wal::io::read_file(disk, &found.path, u64::MAX).during("read", &found.path)?;
    let start = strandline_wal::segment::SEGMENT_HEADER_LEN;
    let batch = bytes.get(start..).map(strandline_wal::batch::Batch::decode);
    let Some(Ok(batch)) = batch else {
        return Ok(None);
    };
    let first = batch.records().next().and_then(|record| record.ok());
    Ok(first
        .and_then(|r| strandline_wal::control::EpochStart::of(&r))
        .map(|s| s.leader))
}

/// Puts a bundle beside a dataset and then in its place.
pub(super) struct Sink {
    dataset: Arc<DatasetInner>,
    root: PathBuf,
    id: DatasetId,
    env: Env,
    receiving: Option<Receiving>,
}

struct Receiving {
    plan: BundlePlan,
    region: RegionId,
    place: BundlePlace,
    file: Option<(Arc<dyn File>, PathBuf, blake3::Hasher)>,
}

impl Sink {
    pub fn new(dataset: Arc<DatasetInner>) -> Sink {
        let store = dataset.store();
        let root = store
            .dir()
            .parent()
            .expect("a dataset lies in a database")
            .to_owned();
        let (id, env) = (store.id().clone(), store.env().clone());
        Sink {
            dataset,
            root,
            id,
            env,
            receiving: None,
        }
    }

    fn staging(&self) -> PathBuf {
        staging_dir(&self.root, &self.id)
    }

    fn write_bytes(&mut self, file: u32, at: u64, bytes: &[u8]) -> Result<bool> {
        let staging = self.staging();
        let disk = self.env.disk.as_ref();
        let wrong =
            |what: &str| Error::Replication(format!("a bundle's bytes came out of order: {what}"));
        let receiving = self
            .receiving
            .as_mut()
            .ok_or_else(|| wrong("before its plan"))?;
        let (plan, place) = (&receiving.plan, &mut receiving.place);
        let Some(entry) = plan.files.get(file as usize).copied() else {
            return Err(wrong("a file that is not in the plan"));
        };
        if place.file != file || place.at != at || bytes.len() as u64 > entry.len - at {
            return Err(wrong("another place than the next"));
        }
        if receiving.file.is_none() {
            let path = path_of(&staging, receiving.region, entry.kind, entry.number)
                .ok_or_else(|| wrong("a kind of file that is not ours"))?;
            let file = disk.create(&path).during("create", &path)?;
            receiving.file = Some((file, path, blake3::Hasher::new()));
        }
        let (open, path, hasher) = receiving.file.as_mut().expect("opened above");
        write_all_at(open.as_ref(), bytes, at).during("write", path)?;
        hasher.update(bytes);
        place.at += bytes.len() as u64;
        if place.at < entry.len {
            return Ok(true);
        }
        let intact = *hasher.finalize().as_bytes() == entry.digest || planted("bundle.digest");
        if intact {
            unless!("bundle.file", open.sync()).during("sync", path)?;
            (place.file, place.at) = (file + 1, 0);
        } else {
            disk.remove(path).during("remove", path)?;
            place.at = 0;
        }
        receiving.file = None;
        Ok(intact)
    }

    fn prepare(&mut self, plan: &BundlePlan) -> Result<BundlePlace> {
        let region = plan
            .files
            .iter()
            .find(|file| file.kind == KIND_MANIFEST)
            .and_then(|file| u16::try_from(file.number).ok())
            .ok_or_else(|| Error::Replication("a bundle without a manifest".to_owned()))?;
        let region = RegionId(region);
        let staging = self.staging();
        let disk = self.env.disk.as_ref();
        disk.remove_dir_all(&staging).during("remove", &staging)?;
        let logs = files::region(&staging, region);
        disk.create_dir_all(&logs)
            .during("create directory", &logs)?;
        let place = BundlePlace {
            id: plan.id,
            file: 0,
            at: 0,
        };
        self.receiving = Some(Receiving {
            plan: plan.clone(),
            region,
            place,
            file: None,
        });
        Ok(place)
    }

    fn take_over(&mut self) -> Result<Vec<ShardEnd>> {
        let is_complete = |r: &Receiving| r.place.file as usize == r.plan.files.len();
        let Some(receiving) = self.receiving.take().filter(is_complete) else {
            return Err(Error::Replication(
                "a bundle that is not complete".to_owned(),
            ));
        };
        let staging = self.staging();
        let disk = self.env.disk.as_ref();
        let manifest = Manifest::load(disk, &files::manifest(&staging))?
            .filter(|manifest| manifest.dataset == self.id)
            .ok_or_else(|| Error::Replication("a bundle of another dataset".to_owned()))?;
        for dir in [files::region(&staging, manifest.region), staging.clone()] {
            unless!("bundle.names", disk.sync_dir(&dir)).during("sync directory", &dir)?;
        }
        let (root, id, env) = (self.root.clone(), self.id.clone(), self.env.clone());
        let is_forked = forked(&self.dataset.store(), &manifest, &receiving.plan.ends);
        if is_forked {
            // What only this node has is kept, whole: see `finish_install`. The name is durable with
            // that of the epochs, which are copied below.
            let keep = staging.join(format!("{KEEP}{}", receiving.plan.id));
            disk.create_dir_all(&keep)
                .during("create directory", &keep)?;
        }
        let swap = || {
            // Promises outlive the data that they were made over.
            let disk = env.disk.as_ref();
            let (from, to) = (
                files::epoch(&files::dataset(&root, &id)),
                files::epoch(&staging),
            );
            let bytes =
                strandline_wal::io::read_file(disk, &from, 1 << 20).during("read", &from)?;
            strandline_wal::io::replace_file(disk, &to, &bytes).during("copy", &to)?;
            let install = install_dir(&root, &id);
            disk.rename(&staging, &install).during("rename", &staging)?;
            unless!("bundle.install", disk.sync_dir(&root)).during("sync directory", &root)?;
            finish_install(&env, &root, &id)
        };
        self.dataset.reopen(Reopen::role(Role::Follower), swap)?;
        let store = self.dataset.store();
        let tails = store.tails();
        let end = |(shard, (position, chain)): (usize, &(_, u32))| {
            super::joint::end_of(&store, ShardId(shard as u16), *position, *chain)
        };
        Ok(tails.iter().enumerate().map(end).collect())
    }
}

/// Where the files of a dataset are put together; removed by the next open.
pub(crate) fn staging_dir(root: &Path, id: &DatasetId) -> PathBuf {
    root.join(format!("STAGING-{id}"))
}

/// Where they stand once they are whole.
pub(crate) fn install_dir(root: &Path, id: &DatasetId) -> PathBuf {
    root.join(format!("INSTALL-{id}"))
}

/// Whether this node has records that are not in the history that a bundle belongs to.
fn forked(store: &Store, manifest: &Manifest, ends: &[ShardEnd]) -> bool {
    store.positions().iter().enumerate().any(|(n, own)| {
        let shard = ShardId(n as u16);
        let (ours, theirs) = (store.epochs_of(shard), &manifest.epochs[n]);
        let Some(at) = ours.iter().rposition(|entry| theirs.contains(entry)) else {
            return own.seq > 0;
        };
        let their_at = theirs
            .iter()
            .position(|entry| *entry == ours[at])
            .expect("it is in both");
        let end = |list: &[EpochEntry], at: usize, end: u64| {
            list.get(at + 1).map_or(end, |next| next.first_seq - 1)
        };
        let their_end = ends
            .iter()
            .find(|end| end.shard == shard)
            .map_or(0, |e| e.position.seq);
        let common = end(&ours, at, own.seq).min(end(theirs, their_at, their_end));
        own.seq > common
    })
}

/// Puts a complete bundle in its dataset's place. Doing it again does no harm.
///
/// Where the old data had records of its own, a directory `KEEP-{bundle}` says so: all of it moves to
/// `divergent/replaced-{bundle}` of the new. It is a dataset like any other, to be looked into.
pub(crate) fn finish_install(env: &Env, root: &Path, id: &DatasetId) -> Result<()> {
    let disk = env.disk.as_ref();
    let (from, to) = (install_dir(root, id), files::dataset(root, id));
    let tails = (files::divergent(&to), files::divergent(&from));
    if disk.stat(&tails.0).is_ok() && disk.stat(&tails.1).is_err() {
        disk.rename(&tails.0, &tails.1).during("rename", &tails.0)?;
        unless!("install.tails", disk.sync_dir(&from)).during("sync directory", &from)?;
    }
    let entries = disk.list(&from).during("list", &from)?;
    if let Some(bundle) = entries
        .iter()
        .find_map(|entry| entry.name.strip_prefix(KEEP))
    {
        disk.create_dir_all(&tails.1)
            .during("create directory", &tails.1)?;
        // A directory whose name a crash takes away takes with it what was moved there.
        unless!("install.beside", disk.sync_dir(&from)).during("sync directory", &from)?;
        if disk.stat(&to).is_ok() {
            let kept = tails.1.join(format!("replaced-{bundle}"));
            disk.rename(&to, &kept).during("rename", &to)?;
            for dir in [&tails.1, &from, &root.to_owned()] {
                unless!("install.kept", disk.sync_dir(dir)).during("sync directory", dir)?;
            }
        }
        let keep = from.join(format!("{KEEP}{bundle}"));
        disk.remove_dir_all(&keep).during("remove", &keep)?;
    }
    disk.remove_dir_all(&to).during("remove", &to)?;
    disk.sync_dir(root).during("sync directory", root)?;
    disk.rename(&from, &to).during("rename", &from)?;
    disk.sync_dir(root).during("sync directory", root)?;
    Ok(())
}

/// Finishes what a crash interrupted: installs complete bundles, removes incomplete ones.
pub(crate) fn finish_installs(env: &Env, root: &Path) -> Result<()> {
    for entry in env.disk.list(root).during("list", root)? {
        if entry.kind != FileKind::Dir {
            continue;
        }
        if let Some(name) = entry.name.strip_prefix("INSTALL-") {
            if let Ok(id) = DatasetId::new(name) {
                finish_install(env, root, &id)?;
            }
        } else if entry.name.starts_with("STAGING-") {
            let path = root.join(&entry.name);
            env.disk.remove_dir_all(&path).during("remove", &path)?;
        }
    }
    Ok(())
}

impl BundleSink for Sink {
    fn staged(&self) -> Option<BundlePlace> {
        self.receiving.as_ref().map(|receiving| receiving.place)
    }

    fn begin(&mut self, plan: &BundlePlan) -> Result<BundlePlace, ReplicationError> {
        match &self.receiving {
            Some(receiving) if receiving.plan == *plan => Ok(receiving.place),
            _ => self.prepare(plan).map_err(failed),
        }
    }

    fn write(&mut self, file: u32, at: u64, bytes: &[u8]) -> Result<(), ReplicationError> {
        match self.write_bytes(file, at, bytes).map_err(failed)? {
            true => Ok(()),
            false => Err(ReplicationError::Damaged {
                what: "bundle file",
                expected: "its digest".to_owned(),
                found: format!("another for file {file}"),
            }),
        }
    }

    fn install(&mut self) -> Result<Vec<ShardEnd>, ReplicationError> {
        self.take_over().map_err(failed)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
