//! Archives and their restores: clusters over simulated disks and a store in memory that fails as told,
//! held against a model of what was written.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use strandline::archive::{
    ArchiveError, ArchiveOptions, ArchiveStore, Faults, MemoryArchive, RestoreReport, Target,
    Uploader, check, prune, restore,
};
use strandline::replica::{Campaign, Node, Promote};
use strandline::{
    Background, Database, Dataset, DatasetId, Durability, Error, Options, Result, ShardRouter,
};
use strandline_replication::archive::{Base, Listed, Put, Root, Start, Term};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{LeaderId, Lineage, Notifier, Now};
use strandline_wal::Epoch;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::{Damage, SimEnv};

const START_MS: u64 = 1_700_000_000_000;

fn options(shards: u16) -> Options {
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

fn often() -> ArchiveOptions {
    ArchiveOptions {
        checkpoint_len: 64 << 10,
        ..ArchiveOptions::default()
    }
}

fn id() -> DatasetId {
    DatasetId::new("").unwrap()
}

/// What was written, one change at a time.
#[derive(Default)]
struct Model {
    ops: Vec<Op>,
}

struct Op {
    /// Per shard, where the log ended behind it.
    seqs: Vec<u64>,
    ms: u64,
    key: u64,
    value: Option<Vec<u8>>,
}

impl Model {
    fn at(&self, count: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
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
    fn cut(&mut self, seqs: &[u64]) {
        let stays = |op: &Op| op.seqs.iter().zip(seqs).all(|(seq, end)| seq <= end);
        self.ops.retain(stays);
    }
}

/// A seeded run of numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

struct Machine {
    name: String,
    env: SimEnv,
    db: Database,
    node: Node,
}

struct Cluster {
    network: LocalNetwork,
    ms: u64,
    shards: u16,
}

impl Cluster {
    fn machine(&self, name: &str, env: SimEnv) -> Machine {
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

    fn now(&self) -> Now {
        let ms = self.ms;
        Now {
            mono_ms: ms,
            wall_ms: ms,
        }
    }

    fn run(&mut self, machines: &mut [&mut Machine], ms: u64) {
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

fn primary(machine: &Machine) -> Dataset {
    machine.db.dataset("").unwrap()
}

fn seqs(dataset: &Dataset) -> Vec<u64> {
    dataset.positions().iter().map(|end| end.seq).collect()
}

/// One change of a random key: small and large values, some removals.
fn write(db: &Database, dice: &mut Dice, model: &mut Model, ms: u64) {
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

/// Restores, opens what was restored, and returns what is in it.
fn restored(
    store: &dyn ArchiveStore,
    shards: u16,
    target: &Target,
) -> Result<(BTreeMap<Vec<u8>, Vec<u8>>, RestoreReport)> {
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
fn settle(uploader: &mut Uploader) {
    for _ in 0..1_000 {
        match uploader.step() {
            Ok(false) => return,
            Ok(true) | Err(Error::Archive(ArchiveError::Store { .. })) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the archive does not settle: {:?}", uploader.status());
}

fn promote(cluster: &mut Cluster, machine: &mut Machine) {
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

/// Continuous load, two failovers, a store that fails, deposed leaders that go on uploading logs and bases:
/// 20 random positions and 5 times.
#[test]
fn any_point_is_restored_as_it_was() {
    let count = std::env::var("STRANDLINE_ARCHIVE_SEEDS").ok();
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(12);
    for seed in 1..=count {
        any_point_of(seed, 1 + (seed % 3) as u16);
    }
}

fn any_point_of(seed: u64, shards: u16) {
    let faults = Faults {
        unavailable: 40,
        lost_answer: 40,
        late: 20,
    };
    let archive = MemoryArchive::new(seed, faults);
    let store: Arc<dyn ArchiveStore> = Arc::new(archive.clone());
    let mut dice = Dice(seed);
    let mut model = Model::default();
    let mut cluster = Cluster {
        network: LocalNetwork::new(seed),
        ms: START_MS,
        shards,
    };
    let mut leader = cluster.machine("n0", SimEnv::new(seed));
    leader.node.lead(cluster.now(), &primary(&leader)).unwrap();
    for failover in 0..3 {
        let name = format!("n{}", failover + 1);
        let mut follower = cluster.machine(&name, SimEnv::new(seed + 10 + failover));
        let dataset = follower.db.follower("").unwrap();
        let peers = [leader.name.clone()];
        follower
            .node
            .follow(cluster.now(), &dataset, &peers)
            .unwrap();
        let mut uploader = Uploader::new(&primary(&leader), Arc::clone(&store), often());
        // Towards the end the follower hears nothing, and the archive goes on for a while.
        let (heard, flushed) = (600 + dice.roll(99), 650 + dice.roll(49));
        for n in 0..700 {
            cluster.ms += 1 + dice.roll(3);
            for machine in [&leader, &follower] {
                machine.env.clock.jump_to_ms(cluster.ms);
            }
            write(&leader.db, &mut dice, &mut model, cluster.ms);
            if n < heard && n % 7 == 0 {
                cluster.run(&mut [&mut leader, &mut follower], 3);
            }
            if n % 20 == 0 {
                leader.db.run_background(10).unwrap();
                follower.db.run_background(10).unwrap();
            }
            if n == flushed {
                primary(&leader).flush().unwrap();
            }
            if n % 11 == 0 || n == flushed + 1 {
                // A store that does not answer is asked again.
                let _ = uploader.step();
            }
        }
        if failover == 2 {
            settle(&mut uploader);
            break;
        }
        // The deposed leader goes on for a while, before its successor has begun and after.
        cluster.network.detach(&leader.name);
        promote(&mut cluster, &mut follower);
        let end: Vec<u64> = seqs(&primary(&follower))
            .iter()
            .map(|seq| seq - 1)
            .collect();
        let mut next = Uploader::new(&primary(&follower), Arc::clone(&store), often());
        for turn in 0..4 + dice.roll(8) {
            let map = leader.db.keyspace("map").unwrap();
            let len = 1_000 + dice.roll(90_000) as usize;
            map.put("lost", vec![turn as u8; len]).unwrap();
            match dice.roll(4) {
                0 => primary(&leader).flush().unwrap(),
                1 => {
                    let _ = next.step();
                }
                _ => {
                    let _ = uploader.step();
                }
            }
        }
        settle(&mut next);
        primary(&leader).flush().unwrap();
        for _ in 0..3 {
            let _ = uploader.step();
        }
        drop((uploader, next));
        model.cut(&end);
        leader = follower;
    }
    archive.set_faults(Faults::default());
    let report = check(&leader.env.env(), &archive, &id(), None)
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert!(
        report.base_count > 2 && report.break_count == 0,
        "seed {seed}: {report:?}"
    );
    let first = restored(&archive, shards, &Target::Position(vec![0; shards.into()]));
    let oldest = match first {
        // A base came first that has some records in tables.
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("the oldest point"), "seed {seed}: {text}");
            100
        }
        Ok(_) => 1,
    };
    for n in 0..25 {
        let count = oldest + dice.roll((model.ops.len() - oldest) as u64 + 1) as usize;
        let last = &model.ops[count - 1];
        let target = match n < 20 {
            true => Target::Position(last.seqs.clone()),
            false => Target::Time(last.ms),
        };
        let (found, report) = restored(&archive, shards, &target)
            .unwrap_or_else(|error| panic!("seed {seed}, {target:?}: {error}"));
        assert!(
            found == model.at(count),
            "seed {seed}, {target:?}, {report:?}"
        );
    }
    for target in [Target::Latest, Target::Time(u64::MAX)] {
        let (found, report) = restored(&archive, shards, &target).unwrap();
        assert!(
            found == model.at(model.ops.len()),
            "seed {seed}: {report:?}"
        );
        assert_eq!(report.seqs, seqs(&primary(&leader)));
    }
    let mut beyond = seqs(&primary(&leader));
    beyond.iter_mut().for_each(|seq| *seq += 1);
    let error = restored(&archive, shards, &Target::Position(beyond)).unwrap_err();
    assert!(
        error.to_string().contains("the archive ends at record"),
        "{error}"
    );
    // A record lost where nothing else has it is found.
    let names = archive.objects().into_keys();
    let segments: Vec<String> = names.filter(|name| name.ends_with(".seg")).collect();
    let (mut gaps, mut n) = (0, dice.roll(segments.len() as u64) as usize);
    for _ in 0..segments.len() {
        n = (n + 1) % segments.len();
        let bytes = archive.objects()[&segments[n]].clone();
        archive.lose(&segments[n]);
        match check(&leader.env.env(), &archive, &id(), None) {
            Err(Error::Archive(ArchiveError::Gap(_) | ArchiveError::Missing { .. })) => gaps += 1,
            Err(error) => panic!("seed {seed}, {}: {error}", segments[n]),
            // Of a deposed leader, of before the oldest base, or of two leaders.
            Ok(_) => {}
        }
        archive.put(&segments[n], &bytes).unwrap();
        if gaps == 2 {
            break;
        }
    }
    assert!(gaps > 0, "seed {seed}");
}

/// Two machines and an archive; the second one stops to hear the first.
struct Pair {
    cluster: Cluster,
    leader: Machine,
    follower: Machine,
    archive: MemoryArchive,
    model: Model,
    dice: Dice,
}

impl Pair {
    fn new() -> Pair {
        let mut cluster = Cluster {
            network: LocalNetwork::new(1),
            ms: START_MS,
            shards: 1,
        };
        let mut leader = cluster.machine("n0", SimEnv::new(1));
        leader.node.lead(cluster.now(), &primary(&leader)).unwrap();
        let mut follower = cluster.machine("n1", SimEnv::new(2));
        let dataset = follower.db.follower("").unwrap();
        let peers = [leader.name.clone()];
        follower
            .node
            .follow(cluster.now(), &dataset, &peers)
            .unwrap();
        cluster.run(&mut [&mut leader, &mut follower], 50);
        Pair {
            cluster,
            leader,
            follower,
            archive: MemoryArchive::default(),
            model: Model::default(),
            dice: Dice(5),
        }
    }

    fn uploader(&self, machine: &Machine) -> Uploader {
        let store = Arc::new(self.archive.clone());
        Uploader::new(&primary(machine), store, ArchiveOptions::default())
    }

    /// Writes to the leader; its follower hears it, or not.
    fn write(&mut self, count: u64, is_heard: bool) {
        for _ in 0..count {
            self.cluster.ms += 1;
            for machine in [&self.leader, &self.follower] {
                machine.env.clock.jump_to_ms(self.cluster.ms);
            }
            let ms = self.cluster.ms;
            write(&self.leader.db, &mut self.dice, &mut self.model, ms);
        }
        if is_heard {
            let machines = &mut [&mut self.leader, &mut self.follower];
            self.cluster.run(machines, 50);
        }
    }

    fn fail_over(&mut self) {
        self.cluster.network.detach(&self.leader.name);
        promote(&mut self.cluster, &mut self.follower);
        let end: Vec<u64> = seqs(&primary(&self.follower));
        self.model
            .cut(&end.iter().map(|seq| seq - 1).collect::<Vec<_>>());
    }

    fn is_restored(&self) {
        let (found, report) = restored(&self.archive, 1, &Target::Latest).unwrap();
        assert!(found == self.model.at(self.model.ops.len()), "{report:?}");
    }
}

#[test]
fn a_base_that_a_failover_cut_off_is_made_good() {
    for has_other in [false, true] {
        let mut pair = Pair::new();
        let mut old = pair.uploader(&pair.leader);
        if has_other {
            pair.write(50, true);
            settle(&mut old);
        }
        drop(old);
        pair.write(100, true);
        pair.write(30, false);
        primary(&pair.leader).flush().unwrap();
        // Another of the same leadership; where it is the first, its base is the only one.
        let mut old = Uploader::new(
            &primary(&pair.leader),
            Arc::new(pair.archive.clone()),
            ArchiveOptions {
                checkpoint_len: 1,
                ..ArchiveOptions::default()
            },
        );
        settle(&mut old);
        pair.fail_over();
        let mut next = pair.uploader(&pair.follower);
        settle(&mut next);
        pair.is_restored();
        let env = pair.follower.env.env();
        let report = check(&env, &pair.archive, &id(), None).unwrap();
        assert_eq!(report.base_count, 1, "{report:?}");
        // Retention does not rely on it either.
        let options = ArchiveOptions {
            pitr_window_ms: 1,
            retention_ms: 1,
            ..ArchiveOptions::default()
        };
        pair.follower.env.clock.advance_ms(10_000);
        prune(&env, &pair.archive, &id(), None, &options).unwrap();
        pair.is_restored();
        check(&env, &pair.archive, &id(), None).unwrap();
    }
}

#[test]
fn a_takeover_hides_nothing_that_is_archived() {
    let mut pair = Pair::new();
    pair.write(60, true);
    let mut old = pair.uploader(&pair.leader);
    settle(&mut old);
    pair.fail_over();
    let archived = pair.archive.request_count();
    // The list, the terms that are read, the new one; and then the store is gone.
    let mut next = pair.uploader(&pair.follower);
    for n in 1..12 {
        pair.archive.dies_at(Some(archived + n));
        let _ = next.step();
        pair.archive.dies_at(None);
        pair.is_restored();
        pair.archive.dies_at(Some(0));
    }
    pair.archive.dies_at(None);
    settle(&mut next);
    pair.is_restored();
}

#[test]
fn a_base_beside_the_log_is_refused() {
    let store = MemoryArchive::default();
    let (env, db, model, mut uploader) = archived(&store, 1, 600);
    settle(&mut uploader);
    let objects = store.objects();
    let bases: Vec<&String> = objects.keys().filter(|n| n.contains("/base/")).collect();
    let newest = bases.last().unwrap();
    let mut base = Base::decode(&objects[*newest], newest).unwrap();
    assert!(bases.len() > 1 && base.ends[0].position.seq > 0);
    base.ends[0].chain ^= 1;
    store.lose(newest);
    store.put(newest, &base.encode()).unwrap();
    let error = check(&env.env(), &store, &id(), None).unwrap_err();
    let is_it = |error: &Error| matches!(error, Error::Archive(ArchiveError::Gap(gap)) if gap.object == **newest);
    assert!(is_it(&error), "{error}");
    let (found, report) = restored(&store, 1, &Target::Latest).unwrap();
    assert!(found == model.at(model.ops.len()) && report.base < base.timestamp);
    // One under another's name.
    store.lose(newest);
    store.put(newest, &objects[bases[0]]).unwrap();
    let error = check(&env.env(), &store, &id(), None).unwrap_err();
    assert!(error.to_string().contains("another place"), "{error}");
    drop(db);
}

#[test]
fn a_segment_of_another_log_is_found() {
    let made = |seed: u64| {
        let env = SimEnv::new(seed);
        env.clock.jump_to_ms(START_MS);
        let db = options(1).open_with("/db", env.env()).unwrap();
        let store = MemoryArchive::default();
        let shared = Arc::new(store.clone());
        let options = ArchiveOptions::default();
        let mut uploader = Uploader::new(&db.dataset("").unwrap(), shared, options);
        settle(&mut uploader);
        for n in 0..600u64 {
            let map = db.keyspace("map").unwrap();
            map.put(n.to_be_bytes(), vec![seed as u8; 500]).unwrap();
        }
        settle(&mut uploader);
        let names = store.objects().into_keys();
        let segments: Vec<String> = names.filter(|name| name.ends_with(".seg")).collect();
        (env, store, segments)
    };
    let ((env, store, ours), (_, other, theirs)) = (made(1), made(2));
    assert!(ours.len() > 2, "{ours:?}");
    store.lose(&ours[1]);
    store.put(&ours[1], &other.objects()[&theirs[1]]).unwrap();
    let error = check(&env.env(), &store, &id(), None).unwrap_err();
    assert!(error.to_string().contains("does not continue"), "{error}");
}

/// A store that does something before a put.
struct Hooked {
    store: MemoryArchive,
    hook: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

impl ArchiveStore for Hooked {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<Put, ArchiveError> {
        match (self.hook)(name) {
            true => self.store.put(name, bytes),
            false => Err(ArchiveError::Store {
                object: name.to_owned(),
                what: "503".to_owned(),
            }),
        }
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        self.store.get(name)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, ArchiveError> {
        self.store.list(prefix)
    }

    fn delete(&self, name: &str) -> Result<(), ArchiveError> {
        self.store.delete(name)
    }

    fn request_count(&self) -> u64 {
        self.store.request_count()
    }
}

#[test]
fn a_log_that_is_dropped_under_the_uploader_is_a_break_and_a_new_base() {
    let env = SimEnv::new(7);
    env.clock.jump_to_ms(START_MS);
    let db = Arc::new(options(1).open_with("/db", env.env()).unwrap());
    let store = MemoryArchive::default();
    let put = |db: &Database, count: u64| {
        let map = db.keyspace("map").unwrap();
        for n in 0..count {
            map.put((n % 300).to_be_bytes(), vec![n as u8; 500])
                .unwrap();
        }
    };
    let (its, is_done) = (Arc::clone(&db), std::sync::atomic::AtomicBool::new(false));
    let hook = move |name: &str| {
        let order = std::sync::atomic::Ordering::Relaxed;
        if name.contains("/log/") && !is_done.swap(true, order) {
            put(&its, 900);
            its.dataset("").unwrap().flush().unwrap();
            its.run_background(100).unwrap();
        }
        true
    };
    let hooked = Hooked {
        store: store.clone(),
        hook: Box::new(hook),
    };
    let limited = ArchiveOptions {
        log_len_max: 1,
        ..often()
    };
    put(&db, 900);
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), Arc::new(hooked), limited);
    settle(&mut uploader);
    assert_eq!(uploader.status().break_count, 1);
    let map = db.keyspace("map").unwrap();
    let (found, _) = restored(&store, 1, &Target::Latest).unwrap();
    assert_eq!(found.len(), map.iter().count());
    check(&env.env(), &store, &id(), None).unwrap();
}

#[test]
fn a_base_names_only_what_is_there() {
    let store = MemoryArchive::default();
    let (env, db, _, mut uploader) = archived(&store, 1, 300);
    db.dataset("").unwrap().flush().unwrap();
    settle(&mut uploader);
    let newest = || {
        let objects = store.objects();
        let (name, bytes) = objects.iter().rfind(|(n, _)| n.contains("/base/")).unwrap();
        Base::decode(bytes, name).unwrap()
    };
    let before = newest();
    // As retention does once no base that is kept names them.
    for file in &before.files {
        store.lose(&file.object);
    }
    store.lose(&Root::new(&id(), before.lineage).base(&before.name()));
    let map = db.keyspace("map").unwrap();
    for n in 0..200u64 {
        map.put(n.to_be_bytes(), vec![1; 500]).unwrap();
    }
    settle(&mut uploader);
    let (objects, base) = (store.objects(), newest());
    assert!(base.timestamp > before.timestamp);
    let shared = base.files.iter().filter(|it| before.files.contains(it));
    assert!(shared.count() > 0);
    for file in &base.files {
        assert!(objects.contains_key(&file.object), "{file:?}");
    }
    drop(env);
}

#[test]
fn a_base_that_fails_is_tried_less_and_less() {
    let env = SimEnv::new(7);
    env.clock.jump_to_ms(START_MS);
    let db = options(1).open_with("/db", env.env()).unwrap();
    let store = MemoryArchive::default();
    let hooked = Hooked {
        store: store.clone(),
        hook: Box::new(|name| !name.contains("/file/")),
    };
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), Arc::new(hooked), often());
    let (mut failed, mut dice, mut model) = (0, Dice(1), Model::default());
    for n in 0..600 {
        env.clock.advance_ms(1_000);
        write(&db, &mut dice, &mut model, START_MS + n * 1_000);
        failed += u64::from(uploader.step().is_err());
        assert_eq!(uploader.status().seqs, seqs(&db.dataset("").unwrap()));
    }
    assert!((4..12).contains(&failed), "{failed}");
}

#[test]
fn what_a_restore_is_told_is_looked_at() {
    let store = MemoryArchive::default();
    let (_, _db, model, mut uploader) = archived(&store, 2, 100);
    settle(&mut uploader);
    let some = Target::Position(vec![model.ops[50].seqs[0]]);
    let error = restored(&store, 2, &some).unwrap_err().to_string();
    assert!(error.contains("2 records, one of each shard"), "{error}");
    let env = SimEnv::new(1);
    let into = |dir: &str| {
        let target = Target::Latest;
        restore(&env.env(), &store, &id(), None, &target, Path::new(dir))
    };
    let error = into("/").unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
    into("/out/").unwrap();
    let files = env.disk.files();
    assert!(files.keys().all(|path| path.starts_with("/out")));
    let is_staged = |path: &Path| path.to_string_lossy().contains("restoring");
    assert!(!files.keys().any(|path| is_staged(path)));
}

/// A node by itself, some of it flushed, archived as it goes.
fn archived(store: &MemoryArchive, shards: u16, count: u64) -> (SimEnv, Database, Model, Uploader) {
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

#[test]
fn an_idle_hour_sends_no_request() {
    let store = MemoryArchive::default();
    let (env, db, _, mut uploader) = archived(&store, 2, 300);
    settle(&mut uploader);
    db.run_background(100).unwrap();
    settle(&mut uploader);
    let before = store.request_count();
    for _ in 0..3_600 {
        env.clock.advance_ms(1_000);
        assert!(!uploader.step().unwrap());
    }
    assert_eq!(store.request_count(), before);
    db.keyspace("map").unwrap().put("one", "more").unwrap();
    assert!(uploader.step().unwrap());
    assert_eq!(store.request_count(), before + 1);
}

#[test]
fn a_planted_gap_is_found_and_named() {
    let store = MemoryArchive::default();
    let (env, _db, _, mut uploader) = archived(&store, 2, 900);
    settle(&mut uploader);
    check(&env.env(), &store, &id(), None).unwrap();
    let names: Vec<String> = store.objects().into_keys().collect();
    let pieces = |end: &str| {
        names
            .iter()
            .filter(|n| n.ends_with(end))
            .cloned()
            .collect::<Vec<_>>()
    };
    let segments = pieces(".seg");
    let files: Vec<_> = names.iter().filter(|n| n.contains("/file/")).collect();
    assert!(segments.len() > 4 && files.len() > 2, "{names:?}");
    let objects = store.objects();
    let again = || {
        let copy = MemoryArchive::default();
        for (name, bytes) in &objects {
            copy.put(name, bytes).unwrap();
        }
        copy
    };
    // A base of the same state as the one before is not made twice; what was uploaded for it stays behind.
    let is_named = |name: &str| {
        let bases = objects.iter().filter(|(name, _)| name.contains("/base/"));
        let mut bases = bases.map(|(name, bytes)| Base::decode(bytes, name).unwrap());
        !name.contains("/file/") || bases.any(|base| base.files.iter().any(|f| f.object == name))
    };
    let mut gaps = 0;
    for name in &names {
        let lost = again();
        lost.lose(name);
        let outcome = check(&env.env(), &lost, &id(), None);
        match outcome {
            Err(Error::Archive(ArchiveError::Gap(gap))) => {
                assert!(gap.from <= gap.to, "{gap}");
                gaps += 1;
            }
            Err(Error::Archive(ArchiveError::Missing { object })) => assert_eq!(object, *name),
            Err(Error::Archive(ArchiveError::Refused(text))) => {
                assert!(
                    name.contains("/term/") && text.contains("base"),
                    "{name}: {text}"
                );
            }
            Err(error) => panic!("{name}: {error}"),
            // The newest of a log, a part that a segment covers, one before the oldest base, a base itself.
            Ok(_) => assert!(
                name.contains("/base/") || name.contains("/log/") || !is_named(name),
                "{name} is not missed"
            ),
        }
        let flipped = again();
        flipped.flip(name, objects[name].len() / 2);
        let is_read = check(&env.env(), &flipped, &id(), None);
        match is_read {
            Err(Error::Archive(ArchiveError::Damaged { object, .. })) => assert_eq!(object, *name),
            Ok(_) => assert!(name.contains("/log/") || !is_named(name), "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
    assert!(gaps >= 3, "{gaps} of {}", segments.len());
}

/// The process dies at every request, as the store sees it, and another one goes on.
#[test]
fn an_uploader_that_dies_at_any_request_is_gone_on_from() {
    let whole = MemoryArchive::default();
    let (_, _db, _, mut uploader) = archived(&whole, 2, 250);
    settle(&mut uploader);
    let count = whole.request_count();
    assert!(count > 40, "{count}");
    for n in (1..=count).step_by(3) {
        let store = MemoryArchive::new(n, Faults::default());
        store.dies_at(Some(n));
        let (env, db, model, uploader) = archived(&store, 2, 250);
        drop(uploader);
        drop(db);
        let env = env.crash(n, Damage::LoseAll);
        let db = options(2).open_with("/db", env.env()).unwrap();
        store.dies_at(None);
        let shared: Arc<dyn ArchiveStore> = Arc::new(store.clone());
        let mut uploader = Uploader::new(&db.dataset("").unwrap(), shared, often());
        settle(&mut uploader);
        check(&env.env(), &store, &id(), None)
            .unwrap_or_else(|error| panic!("request {n}: {error}"));
        let (found, _) = restored(&store, 2, &Target::Latest).unwrap();
        assert!(found == model.at(model.ops.len()), "request {n}");
    }
}

/// A restore dies at every call of the disk, or meets a full one: nothing stands at the target, or all.
#[test]
fn a_restore_is_there_whole_or_not_at_all() {
    let store = MemoryArchive::default();
    let (_, _db, model, mut uploader) = archived(&store, 2, 300);
    settle(&mut uploader);
    let into = |env: &SimEnv| {
        restore(
            &env.env(),
            &store,
            &id(),
            None,
            &Target::Latest,
            Path::new("/restored"),
        )
    };
    let whole = SimEnv::new(1);
    into(&whole).unwrap();
    let (count, used) = (whole.disk.io_count(), whole.disk.used_len());
    let expected = model.at(model.ops.len());
    let see = |env: &SimEnv| {
        let is_there = env
            .disk
            .files()
            .keys()
            .any(|path| path.starts_with("/restored"));
        if is_there {
            let db = options(2).open_with("/restored", env.env()).unwrap();
            let map = db.keyspace("map").unwrap();
            assert_eq!(map.iter().count(), expected.len());
        }
        is_there
    };
    let (mut there, mut absent) = (0, 0);
    for n in 1..=count + 1 {
        let env = SimEnv::new(1);
        env.disk.crash_at(n);
        let outcome = into(&env);
        let after = env.crash(n, Damage::ALL[n as usize % Damage::ALL.len()]);
        let is_there = see(&after);
        assert!(is_there || outcome.is_err(), "call {n}: {outcome:?}");
        *(if is_there { &mut there } else { &mut absent }) += 1;
        if !is_there {
            into(&after).unwrap_or_else(|error| panic!("again after call {n}: {error}"));
            assert!(see(&after));
        }
    }
    assert!(absent > 10 && there >= 1, "{absent} {there}");
    for share in 1..10 {
        let env = SimEnv::new(1);
        env.disk.limit(Some(used * share / 10));
        let error = into(&env).unwrap_err();
        assert!(error.is_no_space(), "{error}");
        assert!(!see(&env));
        assert_eq!(env.disk.used_len(), 0, "what was staged is removed");
    }
}

#[test]
fn what_the_archive_lacks_stays_in_the_log() {
    let store = MemoryArchive::default();
    store.dies_at(Some(30));
    let (env, db, model, mut uploader) = archived(&store, 2, 1_000);
    let dataset = db.dataset("").unwrap();
    dataset.flush().unwrap();
    db.run_background(100).unwrap();
    store.dies_at(None);
    settle(&mut uploader);
    assert_eq!(uploader.status().break_count, 0);
    check(&env.env(), &store, &id(), None).unwrap();
    let (found, _) = restored(&store, 2, &Target::Position(model.ops[700].seqs.clone())).unwrap();
    assert!(found == model.at(701));
    // Then it may go.
    let first = |db: &Database| db.dataset("").unwrap().stats().segment_count;
    let before = first(&db);
    dataset.flush().unwrap();
    db.run_background(100).unwrap();
    assert!(first(&db) <= before);
}

#[test]
fn what_is_not_committed_is_not_uploaded() {
    let machine = SimEnv::new(1);
    let mut env = machine.env();
    let faults = FaultDisk::new(env.disk.clone());
    env.disk = Arc::new(faults.clone());
    let db = options(1).open_with("/db", env).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("key", "before").unwrap();
    let store = MemoryArchive::default();
    let shared: Arc<dyn ArchiveStore> = Arc::new(store.clone());
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), shared, often());
    settle(&mut uploader);
    let (before, seqs) = (store.request_count(), uploader.status().seqs.clone());
    faults.add(Rule::new(Effect::EIO).on(Call::Sync).path(".seg").sticky());
    map.put("key", "after").unwrap_err();
    let _ = uploader.step();
    assert_eq!(
        (store.request_count(), &uploader.status().seqs),
        (before, &seqs)
    );
}

#[test]
fn two_leaders_of_one_epoch_do_not_mix() {
    let store = MemoryArchive::default();
    let (env, db, _, uploader) = archived(&store, 1, 50);
    drop(uploader);
    let other = MemoryArchive::default();
    let ours = db.dataset("").unwrap().lineage();
    let root = Root::new(&id(), Lineage(ours));
    let term = Term {
        epoch: Epoch(1),
        previous: Epoch(0),
        lineage: Lineage(ours),
        leader: LeaderId([1; 16]),
        from: vec![Start {
            seq: 1,
            chain: 0,
            end: 1,
        }],
    };
    other.put(&root.term(Epoch(1)), &term.encode()).unwrap();
    let shared: Arc<dyn ArchiveStore> = Arc::new(other.clone());
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), Arc::clone(&shared), often());
    let error = uploader.step().unwrap_err();
    assert!(
        matches!(error, Error::Archive(ArchiveError::Taken { .. })),
        "{error}"
    );
    assert_eq!(other.objects().len(), 1);
    // A later one is a failover.
    let term = Term {
        epoch: Epoch(2),
        previous: Epoch(1),
        ..term
    };
    other.put(&root.term(Epoch(2)), &term.encode()).unwrap();
    let error = uploader.step().unwrap_err();
    assert!(
        matches!(error, Error::Fenced { ours: 1, found: 2 }),
        "{error}"
    );
    drop((uploader, env));
}

#[test]
fn retention_keeps_what_points_need() {
    let store = MemoryArchive::default();
    let (env, db, model, mut uploader) = archived(&store, 2, 1_500);
    settle(&mut uploader);
    let before = store.objects().len();
    let now_ms = START_MS + 15_000;
    let options = ArchiveOptions {
        pitr_window_ms: 4_000,
        retention_ms: 9_000,
        ..often()
    };
    env.clock.jump_to_ms(now_ms);
    drop(uploader);
    let removed = prune(&env.env(), &store, &id(), None, &options).unwrap();
    assert_eq!(
        store.objects().len() as u64,
        before as u64 - removed.removed_count
    );
    assert!(removed.removed_count > 5, "{removed:?}");
    drop(db);
    let mut dice = Dice(9);
    for _ in 0..10 {
        let ms = now_ms - dice.roll(4_000);
        let count = model.ops.iter().filter(|op| op.ms <= ms).count();
        let (found, _) = restored(&store, 2, &Target::Time(ms)).unwrap();
        assert!(found == model.at(count), "{ms}");
    }
    // Beyond the window the ends of buckets, which are bases, and nothing between.
    let mut ends = 0;
    for op in &model.ops {
        if now_ms - op.ms <= 4_000 {
            break;
        }
        if let Ok((found, report)) = restored(&store, 2, &Target::Position(op.seqs.clone())) {
            let count = model
                .ops
                .iter()
                .filter(|it| it.seqs.iter().zip(&report.seqs).all(|(a, b)| a <= b))
                .count();
            assert!(found == model.at(count), "{report:?}");
            ends += 1;
        }
    }
    assert!(ends >= 1, "{ends}");
    let error = restored(&store, 2, &Target::Time(START_MS)).unwrap_err();
    assert!(error.to_string().contains("the oldest point"), "{error}");
    let again = prune(&env.env(), &store, &id(), None, &options).unwrap();
    assert_eq!(again.removed_count, 0);
}

#[test]
fn a_log_that_outgrew_its_limit_breaks_the_archive_and_a_new_base_begins() {
    let store = MemoryArchive::default();
    let env = SimEnv::new(7);
    env.clock.jump_to_ms(START_MS);
    let db = options(1).open_with("/db", env.env()).unwrap();
    let shared: Arc<dyn ArchiveStore> = Arc::new(store.clone());
    let limited = ArchiveOptions {
        log_len_max: 1 << 20,
        ..often()
    };
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), shared, limited);
    let (mut dice, mut model) = (Dice(3), Model::default());
    for n in 0..3_000 {
        env.clock.advance_ms(10);
        // Small values stay in tables, so no table keeps a segment.
        let _ = dice.roll(2);
        let map = db.keyspace("map").unwrap();
        map.put((n % 300u64).to_be_bytes(), vec![n as u8; 500])
            .unwrap();
        let seqs = seqs(&db.dataset("").unwrap());
        let value = Some(vec![n as u8; 500]);
        model.ops.push(Op {
            seqs,
            ms: 0,
            key: n % 300,
            value,
        });
        let is_away = (500..2_900).contains(&n);
        store.dies_at(is_away.then_some(0));
        if n % 10 == 0 {
            db.run_background(10).unwrap();
            assert_eq!(uploader.step().is_err(), is_away, "{n}");
        }
    }
    settle(&mut uploader);
    assert_eq!(uploader.status().break_count, 1);
    let report = check(&env.env(), &store, &id(), None).unwrap();
    assert_eq!(report.break_count, 1);
    for count in [400, 3_000] {
        let target = Target::Position(model.ops[count - 1].seqs.clone());
        assert!(
            restored(&store, 1, &target).unwrap().0 == model.at(count),
            "{count}"
        );
    }
    let lost = Target::Position(model.ops[1_000].seqs.clone());
    let error = restored(&store, 1, &lost).unwrap_err();
    assert!(
        matches!(error, Error::Archive(ArchiveError::Gap(_))),
        "{error}"
    );
}
