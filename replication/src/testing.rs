//! A small but real store over logs on any disk, and a cluster of them on one thread: for tests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use strandline_wal::batch::{Kind, Payload};
use strandline_wal::control::EpochStart;
use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{self, Env};
use strandline_wal::log::Log;
use strandline_wal::open::{Role, open};
use strandline_wal::pool::Pool;
use strandline_wal::reader::{Reader, Step};
use strandline_wal::recover::{Known, plan};
use strandline_wal::writer::{Appended, Face, Writer, WriterOptions};
use strandline_wal::{DatasetId, Epoch, Hlc, IoContext, LogId, Position, RegionId, ShardId};

use crate::bundle::{BundleSink, BundleSource};
use crate::epoch::{EpochEntry, EpochTable};
use crate::error::{Error, Result};
use crate::ids::{
    BundleId, Identity, Incarnation, LeaderId, Leadership, Lineage, NodeId, Promise, ShardEnd,
};
use crate::locate;
use crate::notify::Notifier;
use crate::quorum::Level;
use crate::store::{
    CommitMark, Confirmed, Floor, FollowerStore, LeaderStore, LogSource, Marks, Report, Times,
};

mod bundles;
pub(crate) mod cluster;

use bundles::{Pin, TestBundles, TestSink};

pub(crate) const LINEAGE: Lineage = Lineage([7; 16]);
const SEGMENT_LEN: u64 = 64 << 10;

/// What of a store is on disk beside its logs.
#[derive(Clone, Debug, Default, PartialEq)]
struct Meta {
    lineage: Lineage,
    promise: Promise,
    shards: BTreeMap<ShardId, ShardMeta>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct ShardMeta {
    base: ShardEnd,
    committed: u64,
    table: Vec<EpochEntry>,
}

struct Shard {
    writer: Writer,
    table: EpochTable,
    committed: u64,
    applied: u64,
    confirmed: Confirmed,
}

struct Inner {
    meta: Meta,
    shards: BTreeMap<ShardId, Shard>,
    fenced: Option<Epoch>,
}

/// How a store is opened.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub name: String,
    pub incarnation: u8,
    pub lineage: Lineage,
    pub shard_count: u16,
    pub strict: bool,
    /// Whether it lacks what its leader had when it came, and so does not vote.
    pub joins: bool,
    /// What commits a record of a leader; `None`: being written.
    pub level: Option<Level>,
    pub dataset: DatasetId,
}

impl Setup {
    pub fn new(name: &str) -> Setup {
        Setup {
            name: name.to_owned(),
            incarnation: 1,
            lineage: LINEAGE,
            shard_count: 1,
            strict: false,
            joins: false,
            level: None,
            dataset: DatasetId::default(),
        }
    }

    pub fn node(&self) -> NodeId {
        node(&self.name)
    }
}

pub(crate) fn node(name: &str) -> NodeId {
    let mut id = [0; 16];
    id[..name.len()].copy_from_slice(name.as_bytes());
    NodeId(id)
}

/// A store that leads or follows.
pub(crate) struct TestStore {
    pub env: Env,
    pub dir: PathBuf,
    setup: Setup,
    leadership: Option<Leadership>,
    inner: Mutex<Inner>,
    pub reports: Mutex<Vec<Report>>,
    pub notifier: Arc<Notifier>,
    /// Bytes that it takes; lowered to test flow control.
    pub room: Mutex<u64>,
    /// Bytes that a read of a bundle gives, whatever is asked; `None`: what is asked.
    pub reads: Mutex<Option<usize>>,
    /// Files of a bundle that is pinned, by its identity.
    pub(self) pins: Mutex<BTreeMap<BundleId, Pin>>,
    me: Weak<TestStore>,
}

fn options() -> WriterOptions {
    WriterOptions {
        face: Face::Written,
        capacity_start: SEGMENT_LEN,
        capacity_max: SEGMENT_LEN,
    }
}

impl TestStore {
    pub fn follow(env: &Env, dir: &Path, setup: Setup) -> Result<Arc<TestStore>> {
        TestStore::open(env, dir, setup, None)
    }

    /// Opens the epoch: its start batch is durable in every shard on return.
    pub fn lead(env: &Env, dir: &Path, setup: Setup, epoch: Epoch) -> Result<Arc<TestStore>> {
        let leader = LeaderId(env.random.next_id());
        let store = TestStore::open(env, dir, setup, Some(Leadership { epoch, leader }))?;
        {
            let mut inner = store.inner.lock();
            let node = store.setup.node();
            if (Promise { epoch, to: node }) != inner.meta.promise {
                assert!(epoch > inner.meta.promise.epoch, "epochs rise");
                inner.meta.promise = Promise { epoch, to: node };
                store.write_meta(&inner.meta)?;
            }
            for (id, shard) in &mut inner.shards {
                shard.writer.start_epoch(epoch)?;
                let start = EpochStart {
                    node: node.0,
                    incarnation: [1; 16],
                    leader: leader.0,
                };
                let first_seq = append(&mut shard.writer, &start.payload(*id))?;
                shard.writer.log().sync()?;
                shard.table.push(EpochEntry {
                    epoch,
                    leader,
                    first_seq,
                });
            }
        }
        Ok(store)
    }

    fn open(
        env: &Env,
        dir: &Path,
        setup: Setup,
        leadership: Option<Leadership>,
    ) -> Result<Arc<TestStore>> {
        env.disk.create_dir_all(dir).during("create", dir)?;
        if let Some(parent) = dir.parent() {
            env.disk.sync_dir(parent).during("sync", parent)?;
        }
        bundles::roll_forward(env, dir)?;
        let mut meta = read_meta(env, dir)?.unwrap_or_else(|| Meta {
            lineage: setup.lineage,
            ..Meta::default()
        });
        for shard in (0..setup.shard_count).map(ShardId) {
            let empty = ShardMeta {
                base: ShardEnd::empty(shard),
                ..ShardMeta::default()
            };
            meta.shards.entry(shard).or_insert(empty);
        }
        let role = if leadership.is_some() {
            Role::Leader
        } else {
            Role::Follower
        };
        let mut shards = BTreeMap::new();
        for (id, shard_meta) in &meta.shards {
            let shard = open_shard(env, dir, &setup, meta.lineage, *id, shard_meta, role, None)?;
            shards.insert(*id, shard);
        }
        let store = Arc::new_cyclic(|me| TestStore {
            env: env.clone(),
            dir: dir.to_owned(),
            setup,
            leadership,
            inner: Mutex::new(Inner {
                meta,
                shards,
                fenced: None,
            }),
            reports: Mutex::default(),
            notifier: Arc::default(),
            room: Mutex::new(u64::MAX),
            reads: Mutex::default(),
            pins: Mutex::default(),
            me: me.clone(),
        });
        store.write_meta(&store.inner.lock().meta)?;
        Ok(store)
    }

    fn write_meta(&self, meta: &Meta) -> Result<()> {
        let path = self.dir.join("meta");
        let bytes = encode_meta(meta);
        io::replace_file(self.env.disk.as_ref(), &path, &bytes).during("replace", &path)?;
        Ok(())
    }

    /// Writes one record; returns its sequence. `None` once it is fenced.
    pub fn write(&self, shard: ShardId, body: &[u8]) -> Option<u64> {
        self.write_batch(shard, &[body])
    }

    /// Writes a record with each of these bodies as one batch; returns the sequence of the first.
    pub fn write_batch(&self, shard: ShardId, bodies: &[&[u8]]) -> Option<u64> {
        let mut inner = self.inner.lock();
        if inner.fenced.is_some() {
            return None;
        }
        let shard_log = inner.shards.get_mut(&shard).expect("it has the shard");
        let mut payload = Payload::new();
        for body in bodies {
            payload
                .push(Kind::Put, shard, &[b"key"], body)
                .expect("it fits");
        }
        let seq = append(&mut shard_log.writer, &payload.seal(0)).ok()?;
        drop(inner);
        self.notifier.notify();
        Some(seq)
    }

    /// Gives a record its place without its bytes: its segment may have nothing but a header then.
    pub fn reserve(&self, shard: ShardId) -> impl FnOnce() + use<> {
        let mut payload = Payload::new();
        payload
            .push(Kind::Put, shard, &[b"key"], b"late")
            .expect("it fits");
        let payload = payload.seal(0);
        let mut inner = self.inner.lock();
        let writer = &mut inner
            .shards
            .get_mut(&shard)
            .expect("it has the shard")
            .writer;
        let timestamp = Hlc(writer.tail().timestamp.0 + 1);
        let reserved = writer
            .reserve(&payload, timestamp, 0)
            .expect("there is room");
        move || reserved.fill(&payload).publish()
    }

    /// What followers confirmed, as of the last report.
    pub fn confirmed_at(&self, shard: ShardId, level: Level) -> u64 {
        self.inner.lock().shards[&shard].confirmed.at(level)
    }

    pub fn fenced_by(&self) -> Option<Epoch> {
        self.inner.lock().fenced
    }

    /// The stored bytes of every segment, footers too: what two equal logs have in common.
    pub fn image(&self, shard: ShardId) -> Vec<u8> {
        let log = self.log(shard);
        let mut bytes = Vec::new();
        for segment in log.segments() {
            let len = usize::try_from(segment.data_len()).unwrap();
            bytes.extend_from_slice(&segment.read(0, len).unwrap());
            if let Some(sealed) = segment.sealed() {
                bytes.extend_from_slice(&sealed.bytes);
            }
        }
        bytes
    }

    /// All records' bodies with their sequences, checked on the way.
    pub fn records(&self, shard: ShardId) -> Vec<(u64, Vec<u8>)> {
        let log = self.log(shard);
        let mut reader = Reader::new(Arc::clone(&log), log.first_seq());
        let mut records = Vec::new();
        while let Step::Batch(stored) = reader.next().unwrap() {
            for (n, record) in stored.batch().records().enumerate() {
                let body = record.unwrap().body.to_vec();
                records.push((stored.header.first_seq + n as u64, body));
            }
        }
        records
    }

    /// Drops all sealed segments but the last `keep` ones.
    pub fn prune(&self, shard: ShardId, keep: usize) {
        let mut inner = self.inner.lock();
        let shard_log = &inner.shards[&shard];
        let log = Arc::clone(shard_log.writer.log());
        let segments = log.segments();
        let drop_count = segments.len().saturating_sub(keep + 1);
        let Some(last) = drop_count.checked_sub(1).map(|n| &segments[n]) else {
            return;
        };
        let sealed = last.sealed().expect("only sealed segments are pruned");
        let table = shard_log.table.clone();
        let (seq, chain) = (sealed.footer.last_seq, sealed.footer.chain);
        let base = crate::epoch::end_of_log(shard, &table, seq, chain);
        let mut kept = table;
        kept.truncate(seq + 1);
        let meta = inner.meta.shards.get_mut(&shard).expect("it has the shard");
        meta.base = base;
        meta.table = kept.entries().to_vec();
        self.write_meta(&inner.meta).unwrap();
        let names: Vec<_> = segments[..drop_count]
            .iter()
            .map(|s| s.first_seq())
            .collect();
        for segment in log.detach(&names) {
            self.env.disk.remove(segment.path()).unwrap();
        }
    }

    pub fn said(&self, what: impl Fn(&Report) -> bool) -> bool {
        self.reports.lock().iter().any(what)
    }
}

fn append(
    writer: &mut Writer,
    payload: &strandline_wal::batch::SealedPayload,
) -> strandline_wal::Result<u64> {
    let timestamp = Hlc(writer.tail().timestamp.0 + 1);
    let reserved = writer.reserve(payload, timestamp, 0)?;
    let seq = reserved.first_seq();
    reserved.fill(payload).publish();
    Ok(seq)
}

/// The writer of a log of its own: in each of these epochs three batches of so many records, and no
/// start batch.
pub(crate) fn writer(env: &SimEnv, epochs: &[u32], record_count: usize) -> Writer {
    let env = env.env();
    let (setup, shard) = (Setup::new("a"), ShardId(0));
    let meta = ShardMeta {
        base: ShardEnd::empty(shard),
        ..ShardMeta::default()
    };
    let dir = Path::new("/log");
    let opened = open_shard(&env, dir, &setup, LINEAGE, shard, &meta, Role::Leader, None);
    let mut writer = opened.expect("it is a log").writer;
    for epoch in epochs {
        writer.start_epoch(Epoch(*epoch)).expect("epochs rise");
        for _ in 0..3 {
            let mut payload = Payload::new();
            for _ in 0..record_count {
                payload
                    .push(Kind::Put, shard, &[b"key"], b"value")
                    .expect("it fits");
            }
            append(&mut writer, &payload.seal(0)).expect("the disk takes it");
        }
    }
    writer
}

#[allow(clippy::too_many_arguments, reason = "a test store")]
fn open_shard(
    env: &Env,
    dir: &Path,
    setup: &Setup,
    lineage: Lineage,
    id: ShardId,
    meta: &ShardMeta,
    role: Role,
    fork_seq: Option<u64>,
) -> Result<Shard> {
    let log = LogId {
        dataset: setup.dataset.clone(),
        region: RegionId(0),
        shard: id,
    };
    let known = Known {
        log,
        lineage: Some(lineage.0),
        durable_seq: 0,
        flushed_seq: meta.base.position.seq,
        led: &|_| false,
        fork_seq,
    };
    let found = plan(env.disk.as_ref(), dir, &known)?;
    let pool = Arc::new(Pool::new(env.clone(), || false));
    let writer = open(env, &found, role, pool, options(), lineage.0)?;
    let base = EpochTable::of(meta.table.clone()).expect("it was one");
    let table = EpochTable::rebuild(&base, writer.log())?;
    Ok(Shard {
        writer,
        table,
        committed: meta.committed,
        applied: 0,
        confirmed: Confirmed::default(),
    })
}

impl LogSource for TestStore {
    fn identity(&self) -> Identity {
        Identity {
            node: self.setup.node(),
            incarnation: Incarnation([self.setup.incarnation; 16]),
            name: self.setup.name.clone(),
            dataset: self.setup.dataset.clone(),
            lineage: self.inner.lock().meta.lineage,
        }
    }

    fn shards(&self) -> Vec<ShardId> {
        self.inner.lock().shards.keys().copied().collect()
    }

    fn log(&self, shard: ShardId) -> Arc<Log> {
        Arc::clone(self.inner.lock().shards[&shard].writer.log())
    }

    fn epochs(&self, shard: ShardId) -> EpochTable {
        let mut inner = self.inner.lock();
        let base = EpochTable::of(inner.meta.shards[&shard].table.clone()).expect("it was one");
        let shard = inner.shards.get_mut(&shard).expect("it has the shard");
        if self.leadership.is_none() {
            shard.table = EpochTable::rebuild(&base, shard.writer.log()).unwrap();
        }
        shard.table.clone()
    }

    fn end(&self, shard: ShardId) -> ShardEnd {
        let table = self.epochs(shard);
        locate::end(shard, &self.log(shard), &table, &self.base(shard)).unwrap()
    }

    fn base(&self, shard: ShardId) -> ShardEnd {
        self.inner.lock().meta.shards[&shard].base
    }

    fn bundles(&self) -> Option<Arc<dyn BundleSource>> {
        self.leadership?;
        Some(Arc::new(TestBundles::new(
            self.me.upgrade().expect("whoever calls holds it"),
        )))
    }

    fn promised(&self) -> Promise {
        self.inner.lock().meta.promise
    }

    fn highest_epoch(&self) -> Epoch {
        self.promised().epoch
    }

    fn votes(&self) -> bool {
        !self.setup.joins
    }

    fn promise(&self, promise: Promise) -> Result<()> {
        let mut inner = self.inner.lock();
        assert!(promise.epoch > inner.meta.promise.epoch, "promises rise");
        let meta = Meta {
            promise,
            ..inner.meta.clone()
        };
        self.write_meta(&meta)?;
        inner.meta = meta;
        Ok(())
    }

    fn sync(&self, shard: ShardId) -> Result<u64> {
        Ok(self.log(shard).sync()?)
    }

    fn report(&self, report: Report) {
        self.reports.lock().push(report);
    }
}

impl LeaderStore for TestStore {
    fn greeted(&self, _peer: &Identity, _ends: &[ShardEnd]) -> Result<()> {
        Ok(())
    }

    fn pinned(&self, _node: NodeId, _ends: &[ShardEnd]) {}

    fn heard(&self, _heard: Vec<crate::slot::Heard>) {}

    fn leadership(&self) -> Leadership {
        self.leadership.expect("it leads")
    }

    fn marks(&self, shard: ShardId) -> Marks {
        let mut inner = self.inner.lock();
        let level = self.setup.level;
        let shard = inner.shards.get_mut(&shard).expect("it has the shard");
        let (written, durable) = (
            shard.writer.log().last_seq(),
            shard.writer.log().synced_seq(),
        );
        let committed = match level {
            None => written,
            Some(level) => shard.confirmed.at(level).min(durable),
        };
        shard.committed = shard.committed.max(committed);
        Marks {
            written,
            durable,
            committed: shard.committed,
        }
    }

    fn times(&self) -> Times {
        Times::default()
    }

    fn confirmed(&self, confirmed: &Confirmed) {
        let mut inner = self.inner.lock();
        if let Some(shard) = inner.shards.get_mut(&confirmed.shard) {
            shard.confirmed = confirmed.clone();
        }
    }

    fn fenced(&self, epoch: Epoch) {
        let before = self.inner.lock().fenced.replace(epoch);
        assert_eq!(before, None, "a leader is fenced once");
    }
}

impl FollowerStore for TestStore {
    fn adopt(&self, lineage: Lineage) -> Result<()> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        assert_eq!(inner.meta.lineage, Lineage::default());
        let meta = Meta {
            lineage,
            ..inner.meta.clone()
        };
        self.write_meta(&meta)?;
        inner.meta = meta;
        inner.shards = self.reopen(&inner.meta)?;
        Ok(())
    }

    fn floor(&self, shard: ShardId) -> Floor {
        let inner = self.inner.lock();
        let flushed = inner.meta.shards[&shard].base.position.seq;
        let committed = inner.shards[&shard].committed;
        Floor {
            committed,
            flushed,
            strict: self.setup.strict,
        }
    }

    fn room(&self) -> u64 {
        *self.room.lock()
    }

    fn append(&self, shard: ShardId, segment: u64, at: u64, bytes: &[u8]) -> Result<Appended> {
        let mut inner = self.inner.lock();
        let shard = inner.shards.get_mut(&shard).expect("it has the shard");
        Ok(shard.writer.append_verbatim(segment, at, bytes)?)
    }

    fn seal(&self, shard: ShardId, segment: u64, footer: &[u8]) -> Result<()> {
        let mut inner = self.inner.lock();
        let shard = inner.shards.get_mut(&shard).expect("it has the shard");
        Ok(shard.writer.seal_verbatim(segment, footer)?)
    }

    fn begin_persist(&self) {}

    fn poll_persist(&self) -> Option<Result<()>> {
        let mut shards = LogSource::shards(self).into_iter();
        Some(shards.try_for_each(|shard| self.sync(shard).map(drop)))
    }

    fn commit(&self, marks: &[CommitMark], _: Times) -> Result<()> {
        let mut inner = self.inner.lock();
        let mut rose = false;
        for mark in marks {
            let shard = inner.shards.get_mut(&mark.shard).expect("it has the shard");
            let last_seq = shard.writer.log().last_seq();
            let committed = shard.committed.max(mark.seq.min(last_seq));
            rose |= committed > shard.committed;
            shard.committed = committed;
            shard.applied = shard.applied.max(committed);
            inner
                .meta
                .shards
                .get_mut(&mark.shard)
                .expect("as above")
                .committed = committed;
        }
        if rose && self.setup.strict {
            self.write_meta(&inner.meta)?;
        }
        Ok(())
    }

    fn applied(&self, shard: ShardId) -> u64 {
        self.inner.lock().shards[&shard].applied
    }

    fn cut(&self, shard: ShardId, to: ShardEnd) -> Result<()> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let log = Arc::clone(inner.shards[&shard].writer.log());
        let saved = self.dir.join("divergent");
        self.env
            .disk
            .create_dir_all(&saved)
            .during("create", &saved)?;
        for segment in log
            .segments()
            .iter()
            .filter(|s| s.last_seq() > to.position.seq)
        {
            let len = usize::try_from(segment.data_len()).unwrap();
            let bytes = segment.read(0, len)?;
            let path = saved.join(format!(
                "{shard}-{}-{}",
                segment.header().epoch,
                segment.first_seq()
            ));
            io::replace_file(self.env.disk.as_ref(), &path, &bytes).during("save", &path)?;
        }
        let meta = inner.meta.shards.get_mut(&shard).expect("it has the shard");
        meta.committed = meta.committed.min(to.position.seq);
        let (meta, lineage) = (meta.clone(), inner.meta.lineage);
        inner.shards.remove(&shard);
        let fork_seq = Some(to.position.seq);
        let role = Role::Follower;
        let opened = open_shard(
            &self.env,
            &self.dir,
            &self.setup,
            lineage,
            shard,
            &meta,
            role,
            fork_seq,
        )?;
        inner.shards.insert(shard, opened);
        Ok(())
    }

    fn sink(&self) -> Option<Box<dyn BundleSink>> {
        Some(Box::new(TestSink::new(
            self.me.upgrade().expect("whoever calls holds it"),
        )))
    }
}

impl TestStore {
    /// Opens the logs again as they now are on the disk.
    fn reopen(&self, meta: &Meta) -> Result<BTreeMap<ShardId, Shard>> {
        let mut shards = BTreeMap::new();
        for (id, shard_meta) in &meta.shards {
            let role = Role::Follower;
            let shard = open_shard(
                &self.env,
                &self.dir,
                &self.setup,
                meta.lineage,
                *id,
                shard_meta,
                role,
                None,
            )?;
            shards.insert(*id, shard);
        }
        Ok(shards)
    }
}

fn encode_meta(meta: &Meta) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend_from_slice(&meta.lineage.0);
    out.extend_from_slice(&meta.promise.epoch.0.to_le_bytes());
    out.extend_from_slice(&meta.promise.to.0);
    for (id, shard) in &meta.shards {
        let base = &shard.base;
        out.extend_from_slice(&id.0.to_le_bytes());
        out.extend_from_slice(&base.position.epoch.0.to_le_bytes());
        out.extend_from_slice(&base.position.seq.to_le_bytes());
        out.extend_from_slice(&base.leader.0);
        out.extend_from_slice(&base.chain.to_le_bytes());
        out.extend_from_slice(&shard.committed.to_le_bytes());
        out.extend_from_slice(&(shard.table.len() as u32).to_le_bytes());
        for entry in &shard.table {
            out.extend_from_slice(&entry.epoch.0.to_le_bytes());
            out.extend_from_slice(&entry.leader.0);
            out.extend_from_slice(&entry.first_seq.to_le_bytes());
        }
    }
    out
}

fn decode_meta(mut bytes: &[u8]) -> Meta {
    fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
        let (taken, rest) = bytes.split_at(N);
        *bytes = rest;
        taken.try_into().unwrap()
    }
    let b = &mut bytes;
    let lineage = Lineage(take(b));
    let promise = Promise {
        epoch: Epoch(u32::from_le_bytes(take(b))),
        to: NodeId(take(b)),
    };
    let mut shards = BTreeMap::new();
    while !b.is_empty() {
        let shard = ShardId(u16::from_le_bytes(take(b)));
        let epoch = Epoch(u32::from_le_bytes(take(b)));
        let position = Position {
            epoch,
            seq: u64::from_le_bytes(take(b)),
        };
        let (leader, chain) = (LeaderId(take(b)), u32::from_le_bytes(take(b)));
        let base = ShardEnd {
            shard,
            position,
            leader,
            chain,
        };
        let committed = u64::from_le_bytes(take(b));
        let count = u32::from_le_bytes(take(b));
        let entry = |_| EpochEntry {
            epoch: Epoch(u32::from_le_bytes(take(b))),
            leader: LeaderId(take(b)),
            first_seq: u64::from_le_bytes(take(b)),
        };
        let table = (0..count).map(entry).collect();
        shards.insert(
            shard,
            ShardMeta {
                base,
                committed,
                table,
            },
        );
    }
    Meta {
        lineage,
        promise,
        shards,
    }
}

fn read_meta(env: &Env, dir: &Path) -> Result<Option<Meta>> {
    let path = dir.join("meta");
    match io::read_file(env.disk.as_ref(), &path, 1 << 20) {
        Ok(bytes) => Ok(Some(decode_meta(&bytes))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).during("read", &path).map_err(Error::from),
    }
}
