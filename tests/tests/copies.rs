//! A checkpoint that was told of is there, whole and by its name, after a power loss.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use strandline::replica::Node;
use strandline::{Database, Durability, NodeConfig, NodeRole};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{Notifier, Now};
use strandline_tests::plan::small_options;
use strandline_wal::io::sim::{Damage, SimEnv};
use strandline_wal::io::{Access, DirEntry, Disk, File, Lock, LockMode, Stat};

const ROOT: &str = "/db";
const COPY: &str = "/copies/copy";
const KEY_COUNT: u8 = 12;

fn value(n: u8) -> Vec<u8> {
    vec![n; 500 + 900 * usize::from(n)]
}

fn fill(db: &Database, level: Durability) {
    let map = db.keyspace("map").unwrap();
    for n in 0..KEY_COUNT {
        map.put_with([n], value(n), level).unwrap();
        if n == 6 {
            db.flush().unwrap();
        }
    }
}

/// Opens the copy after a power loss, and reads everything that was in the database.
fn judge(machine: &SimEnv) {
    for damage in Damage::ALL {
        for seed in 0..4 {
            let after = machine.crash(seed, damage);
            let opened = small_options().open_with(COPY, after.env());
            let copy = opened.unwrap_or_else(|error| panic!("{damage:?} {seed}: {error}"));
            let map = copy.keyspace("map").unwrap();
            for n in 0..KEY_COUNT {
                let found = map.get([n]).unwrap();
                let found = found.unwrap_or_else(|| panic!("{damage:?} {seed}: no key {n}"));
                assert_eq!(found, value(n), "{damage:?} {seed}");
            }
        }
    }
}

/// The directory that copies go to, which is there.
fn prepare(machine: &SimEnv) {
    let disk = machine.env().disk;
    disk.create_dir_all(Path::new("/copies")).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
}

#[test]
fn a_checkpoint_is_durable_once_it_is_told_of() {
    for level in [Durability::Disk, Durability::Os] {
        let machine = SimEnv::new(1);
        prepare(&machine);
        let db = small_options().open_with(ROOT, machine.env()).unwrap();
        fill(&db, level);
        db.checkpoint(COPY).unwrap();
        judge(&machine);
    }
}

#[test]
fn a_followers_checkpoint_is_durable_once_it_is_told_of() {
    let network = LocalNetwork::new(1);
    let leader = small_options()
        .open_with(ROOT, SimEnv::new(1).env())
        .unwrap();
    let machine = SimEnv::new(2);
    prepare(&machine);
    let mut options = small_options();
    options.node = NodeConfig {
        role: NodeRole::Follower,
        ..NodeConfig::default()
    };
    let db = options.open_with(ROOT, machine.env()).unwrap();
    let node = |name| {
        Node::new(
            name,
            Box::new(network.attach(name)),
            Arc::new(Notifier::default()),
        )
    };
    let mut nodes = [node("leader"), node("follower")];
    let mut ms = 1_000_000;
    let now = |ms| Now {
        mono_ms: ms,
        wall_ms: ms,
    };
    let (from, to) = (leader.dataset("").unwrap(), db.dataset("").unwrap());
    nodes[0].lead(now(ms), &from).unwrap();
    nodes[1]
        .follow(now(ms), &to, &["leader".to_owned()])
        .unwrap();
    fill(&leader, Durability::Disk);
    let shown = |db: &Database| {
        let map = db.keyspace("map");
        map.is_ok_and(|map| map.get([KEY_COUNT - 1]).unwrap().is_some())
    };
    // A copy is made the moment that the last record is shown: it may not be synced yet.
    while !shown(&db) {
        ms += 1;
        nodes.iter_mut().for_each(|node| {
            node.step(now(ms));
        });
        assert!(ms < 1_100_000, "it does not follow");
    }
    db.checkpoint(COPY).unwrap();
    judge(&machine);
}

/// A disk that does something else first, once, when a directory of logs is made for a copy.
struct Interrupted {
    below: Arc<dyn Disk>,
    once: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Disk for Interrupted {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let once = match path.starts_with("/copies") && path.ends_with("r00000") {
            true => self.once.lock().unwrap().take(),
            false => None,
        };
        if let Some(once) = once {
            once();
        }
        self.below.create_dir_all(path)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.below.create(path)
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>> {
        self.below.open(path, access)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.link(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.below.remove(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.below.remove_dir_all(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.below.list(dir)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.below.stat(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.below.sync_dir(dir)
    }
    fn lock(&self, path: &Path, mode: LockMode) -> io::Result<Box<dyn Lock>> {
        self.below.lock(path, mode)
    }
    fn free_len(&self, dir: &Path) -> io::Result<Option<u64>> {
        self.below.free_len(dir)
    }
}

/// Such a segment cannot be linked, because its bytes are not durable: it is copied, and its footer
/// with it.
#[test]
fn a_segment_that_is_sealed_while_a_checkpoint_is_made_is_copied_whole() {
    let machine = SimEnv::new(1);
    prepare(&machine);
    let mut env = machine.env();
    let disk = Arc::new(Interrupted {
        below: env.disk.clone(),
        once: Mutex::default(),
    });
    env.disk = disk.clone();
    let db = small_options().open_with(ROOT, env).unwrap();
    fill(&db, Durability::Disk);
    let map = db.keyspace("map").unwrap();
    *disk.once.lock().unwrap() = Some(Box::new(move || {
        for n in 0..3 {
            map.put_with([200 + n], [n; 30_000], Durability::Os)
                .unwrap();
        }
    }));
    db.checkpoint(COPY).unwrap();
    assert!(disk.once.lock().unwrap().is_none(), "it was interrupted");
    judge(&machine);
}
