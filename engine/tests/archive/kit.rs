//! What the tests of archives are made of.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use strandline::archive::{
    ArchiveError, ArchiveOptions, ArchiveStore, MemoryArchive, RestoreReport, Target, Uploader,
    restore,
};
use strandline::replica::{Campaign, Node, Promote};
use strandline::{
    Background, Database, Dataset, DatasetId, Durability, Error, Options, Result, ShardRouter,
};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{Notifier, Now};
use strandline_wal::io::sim::{Damage, SimEnv};

pub const START_MS: u64 = 1_700_000_000_000;

pub fn options(shards: u16) -> Options {
    Options {
        router: ShardRouter::hash(shards).unwrap(),
        background: Background::Manual,
        memtable_len_max: 64 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 128 << 10,
        durability: Durability::Disk,
        reserve_len_max: 0,
        ..Options::default()
    }
}

pub fn often() -> ArchiveOptions {
    ArchiveOptions {
        checkpoint_len: 64 << 10,
        ..ArchiveOptions::default()
    }
}

pub fn id() -> DatasetId {
    DatasetId::new("").unwrap()
}

/// What was written, one change at a time.
#[derive(Default)]
pub struct Model {
    pub ops: Vec<Op>,
}

pub struct Op {
    /// Per shard, where the log ended behind it.
    pub seqs: Vec<u64>,
    pub ms: u64,
    pub key: u64,
    pub value: Option<Vec<u8>>,
}

impl Model {
    pub fn at(&self, count: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut map = BTreeMap::new();
        for op in &self.ops[..count] {
            let key = op.key.to_be_bytes().to_vec();
            match &op.value {
                Some(value) => map.insert(key, value.clone()),
                None => map.remove(&key),
            };
        }
        map
    }

    /// A failover: what lies behind these records is gone.
    pub fn cut(&mut self, seqs: &[u64]) {
        let stays = |op: &Op| op.seqs.iter().zip(seqs).all(|(seq, end)| seq <= end);
        self.ops.retain(stays);
    }
}

/// A seeded run of numbers.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

pub struct Machine {
    pub name: String,
    pub env: SimEnv,
    pub db: Database,
    pub node: Node,
}

pub struct Cluster {
    pub network: LocalNetwork,
    pub ms: u64,
    pub shards: u16,
}

impl Cluster {
    pub fn machine(&self, name: &str, env: SimEnv) -> Machine {
        env.clock.jump_to_ms(self.ms);
        let db = options(self.shards).open_with("/db", env.env()).unwrap();
        let transport = self.network.attach(name);
        let node = Node::new(name, Box::new(transport), Arc::new(Notifier::default()));
        let name = name.to_owned();
        Machine {
            name,
            env,
            db,
            node,
        }
    }

    pub fn now(&self) -> Now {
        let ms = self.ms;
        Now {
            mono_ms: ms,
            wall_ms: ms,
        }
    }

    pub fn run(&mut self, machines: &mut [&mut Machine], ms: u64) {
        for _ in 0..ms {
            self.ms += 1;
            let now = self.now();
            for machine in machines.iter_mut() {
                machine.env.clock.advance_ms(1);
                for _ in 0..100 {
                    if !machine.node.step(now) {
                        break;
                    }
                }
            }
        }
    }
}

pub fn primary(machine: &Machine) -> Dataset {
    machine.db.dataset("").unwrap()
}

pub fn seqs(dataset: &Dataset) -> Vec<u64> {
    dataset.positions().iter().map(|end| end.seq).collect()
}

/// One change of a random key: small and large values, some removals.
pub fn write(db: &Database, dice: &mut Dice, model: &mut Model, ms: u64) {
    let map = db.keyspace("map").unwrap();
    let key = dice.roll(200);
    let value = match dice.roll(10) {
        0 => None,
        1 => Some(vec![key as u8; 6_000 + dice.roll(3_000) as usize]),
        n => Some(vec![n as u8; dice.roll(400) as usize]),
    };
    match &value {
        Some(value) => map.put(key.to_be_bytes(), value).unwrap(),
        None => map.delete(key.to_be_bytes()).unwrap(),
    }
    let seqs = seqs(&db.dataset("").unwrap());
    model.ops.push(Op {
        seqs,
        ms,
        key,
        value,
    });
}

/// Keys and values.
pub type Found = BTreeMap<Vec<u8>, Vec<u8>>;

/// Restores, opens what was restored, and returns what is in it.
pub fn restored(
    store: &dyn ArchiveStore,
    shards: u16,
    target: &Target,
) -> Result<(Found, RestoreReport)> {
    let env = SimEnv::new(99);
    let report = restore(
        &env.env(),
        store,
        &id(),
        None,
        target,
        Path::new("/restored"),
    )?;
    // Nothing that a crash could take is left to be written.
    let env = env.crash(1, Damage::LoseAll);
    let db = options(shards).open_with("/restored", env.env())?;
    assert_eq!(db.dataset("").unwrap().lineage(), report.lineage);
    let map = db.keyspace("map").unwrap();
    let all = map.iter().map(|entry| {
        let (key, value) = entry.unwrap();
        (key.to_vec(), value.to_vec())
    });
    let all = all.collect();
    map.put("written", "after").unwrap();
    assert!(db.dataset("").unwrap().scrub().problems.is_empty());
    Ok((all, report))
}

/// Steps until the store took everything.
pub fn settle(uploader: &mut Uploader) {
    for _ in 0..1_000 {
        match uploader.step() {
            Ok(false) => return,
            Ok(true) | Err(Error::Archive(ArchiveError::Store { .. })) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the archive does not settle: {:?}", uploader.status());
}

pub fn promote(cluster: &mut Cluster, machine: &mut Machine) {
    let how = Promote {
        peers: vec![],
        node_count: 2,
        follower_count: 1,
        force: false,
    };
    let dataset = primary(machine);
    machine
        .node
        .campaign(cluster.now(), &dataset, &how)
        .unwrap();
    cluster.run(&mut [machine], 100);
    let campaign = machine.node.campaign_of(&dataset);
    assert!(
        matches!(campaign, Campaign::Won(_)),
        "{}: {campaign:?}",
        machine.name
    );
}

/// A node by itself, some of it flushed, archived as it goes.
pub fn archived(
    store: &MemoryArchive,
    shards: u16,
    count: u64,
) -> (SimEnv, Database, Model, Uploader) {
    let env = SimEnv::new(7);
    env.clock.jump_to_ms(START_MS);
    let db = options(shards).open_with("/db", env.env()).unwrap();
    let shared: Arc<dyn ArchiveStore> = Arc::new(store.clone());
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), shared, often());
    let (mut dice, mut model) = (Dice(3), Model::default());
    for n in 0..count {
        env.clock.advance_ms(10);
        write(&db, &mut dice, &mut model, START_MS + 10 * (n + 1));
        if n % 10 == 0 {
            db.run_background(10).unwrap();
            let _ = uploader.step();
        }
    }
    (env, db, model, uploader)
}
