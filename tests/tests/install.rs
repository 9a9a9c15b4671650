//! A node that dies at every call of its disk while a bundle takes the place of its data, or while
//! the tail that only it has is cut.
//!
//! After each death, with every damage, it comes back, follows, and comes to the leader's state; and
//! what only it had is kept beside, on the disk and not in its caches alone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use strandline::replica::{Campaign, Node, Promote};
use strandline::{Background, Database, Dataset, NodeConfig, NodeRole, Options};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{Notifier, Now};
use strandline_wal::io::sim::{Damage, SimEnv};
use strandline_wal::io::write_all_at;

const ROOT: &str = "/db";
const STEP_COUNT_MAX: usize = 64;
const CATCH_UP_MS_MAX: u64 = 60_000;

/// What the node that dies had before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Before {
    /// Nothing: it gets a bundle.
    Nothing,
    /// Records of its own in its log: they are saved and cut.
    Tail,
    /// Records of its own in tables: a bundle takes their place, and all is kept.
    Tables,
}

impl Before {
    /// Who led before comes back as what it was.
    fn role(self) -> NodeRole {
        match self {
            Before::Nothing => NodeRole::Follower,
            Before::Tail | Before::Tables => NodeRole::Single,
        }
    }
}

struct Machine {
    env: SimEnv,
    db: Database,
    node: Node,
}

impl Machine {
    fn open(
        env: SimEnv,
        role: NodeRole,
        network: &LocalNetwork,
        name: &str,
    ) -> strandline::Result<Machine> {
        let options = Options {
            node: NodeConfig {
                role,
                ..NodeConfig::default()
            },
            background: Background::Manual,
            memtable_len_max: 64 << 10,
            segment_len_start: 64 << 10,
            segment_len_max: 64 << 10,
            ..Options::default()
        };
        let db = options.open_with(ROOT, env.env())?;
        let transport = Box::new(network.attach(name));
        let node = Node::new(name, transport, Arc::new(Notifier::default()));
        Ok(Machine { env, db, node })
    }

    fn dataset(&self) -> Dataset {
        self.db.dataset("").unwrap()
    }

    fn put(&self, key: &str, value: &[u8]) {
        let map = self.db.keyspace("map").unwrap();
        map.put(key, value).unwrap();
    }

    fn read(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let map = self.db.keyspace("map").unwrap();
        map.iter()
            .map(|entry| entry.unwrap())
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .collect()
    }

    fn step(&mut self, now: Now) {
        for _ in 0..STEP_COUNT_MAX {
            if !self.node.step(now) {
                break;
            }
        }
    }
}

fn now(ms: u64) -> Now {
    Now {
        mono_ms: ms,
        wall_ms: ms,
    }
}

/// As if the process had died: nothing is closed, nothing unsynced is kept.
fn synced(machine: &SimEnv) -> SimEnv {
    machine.crash(1, Damage::LoseAll)
}

/// Long enough for a tail of many sectors: a crash may leave any of them.
fn own(n: usize) -> String {
    format!("only here {n:02}.{}", "-".repeat(400))
}

/// The bytes of a tail that was saved before.
const SAVED: &str = "saved by an earlier cut";

const OWN_COUNT: usize = 12;

/// The disks of a leader and of a node whose data must be replaced.
fn parted(before: Before) -> (SimEnv, SimEnv) {
    let network = LocalNetwork::new(7);
    let mut leader = Machine::open(SimEnv::new(1), NodeRole::Single, &network, "leader").unwrap();
    let mut other = Machine::open(SimEnv::new(2), NodeRole::Single, &network, "other").unwrap();
    if before == Before::Nothing {
        fill(&leader);
        let fresh = SimEnv::new(3);
        drop(
            Machine::open(fresh.clone(), before.role(), &network, "fresh")
                .unwrap()
                .db
                .follower("")
                .unwrap(),
        );
        save_earlier(&fresh);
        return (synced(&leader.env), synced(&fresh));
    }
    // The other one leads first; then it is cut off, and the leader takes its place.
    let mut ms = 1_000_000;
    other.node.lead(now(ms), &other.dataset()).unwrap();
    for n in 0..8 {
        other.put(&format!("shared {n}"), &[n; 500]);
    }
    let follower = leader.db.follower("").unwrap();
    let peers = ["other".to_owned()];
    leader.node.follow(now(ms), &follower, &peers).unwrap();
    while leader.dataset().positions() != other.dataset().positions() {
        ms += 1;
        other.step(now(ms));
        leader.step(now(ms));
    }
    network.detach("other");
    let how = Promote {
        peers: vec![],
        node_count: 2,
        follower_count: 1,
        force: false,
    };
    leader.node.campaign(now(ms), &follower, &how).unwrap();
    for _ in 0..100 {
        ms += 1;
        leader.step(now(ms));
    }
    let campaign = leader.node.campaign_of(&follower);
    assert!(matches!(campaign, Campaign::Won(_)), "{campaign:?}");
    leader.put("after", b"failover");
    for n in 0..OWN_COUNT {
        other.put(&format!("own {n}"), own(n).as_bytes());
    }
    if before == Before::Tables {
        other.db.flush().unwrap();
        fill(&leader);
    }
    save_earlier(&other.env);
    (synced(&leader.env), synced(&other.env))
}

/// Puts a tail beside the data.
fn save_earlier(machine: &SimEnv) {
    let disk = machine.env().disk;
    let dir = Path::new(ROOT).join("primary/divergent/s00000");
    disk.create_dir_all(&dir).unwrap();
    let file = disk
        .create(&dir.join("1-00000000000000000001.seg"))
        .unwrap();
    write_all_at(file.as_ref(), SAVED.as_bytes(), 0).unwrap();
    file.sync().unwrap();
    for dir in dir.ancestors().take_while(|dir| *dir != Path::new("/")) {
        disk.sync_dir(dir).unwrap();
    }
}

/// Writes until the log no longer reaches back to its start.
fn fill(leader: &Machine) {
    for n in 0..60u8 {
        leader.put(&format!("filler {}", n % 5), &vec![n; 3_000]);
    }
    leader.db.flush().unwrap();
    leader.dataset().compact().unwrap();
}

/// The two, the leader leading and the other one following.
struct Pair {
    leader: Machine,
    other: Machine,
    ms: u64,
}

impl Pair {
    fn meet(leader: SimEnv, other: SimEnv, role: NodeRole, ms: u64) -> strandline::Result<Pair> {
        let network = LocalNetwork::new(ms);
        let mut leader = Machine::open(leader, NodeRole::Single, &network, "leader").unwrap();
        leader.node.lead(now(ms), &leader.dataset()).unwrap();
        let mut other = Machine::open(other, role, &network, "other")?;
        let follower = other.db.follower("")?;
        let peers = ["leader".to_owned()];
        other.node.follow(now(ms), &follower, &peers)?;
        Ok(Pair { leader, other, ms })
    }

    /// Runs until the other one has what the leader has, or its machine died.
    fn catch_up(&mut self) {
        let end = self.ms + CATCH_UP_MS_MAX;
        let is_dead = |pair: &Pair| pair.other.env.disk.is_dead();
        while !is_dead(self)
            && self.other.dataset().positions() != self.leader.dataset().positions()
        {
            let status = self.other.node.follow_status(&self.other.dataset());
            assert!(self.ms < end, "it does not catch up: {status:?}");
            self.pass(1);
        }
        // Until it has told so.
        self.pass(200);
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            self.ms += 1;
            self.leader.step(now(self.ms));
            if !self.other.env.disk.is_dead() {
                self.other.step(now(self.ms));
            }
        }
    }

    /// The other one has everything, and kept what only it had.
    fn judge(&mut self, before: Before) {
        self.catch_up();
        assert!(self.other.read() == self.leader.read(), "other records");
        kept(&self.other.env, before);
        // What it keeps and what it shows is on its disk.
        let durable = synced(&self.other.env);
        kept(&durable, before);
        let mut pair = Pair::meet(
            synced(&self.leader.env),
            durable,
            before.role(),
            self.ms + 1_000,
        )
        .unwrap();
        pair.catch_up();
        assert!(pair.other.read() == self.leader.read(), "other records");
    }
}

/// Every record that only this machine had is in a file beside its data.
#[track_caller]
fn kept(machine: &SimEnv, before: Before) {
    let files = machine.disk.files();
    let beside: Vec<&Vec<u8>> = files
        .iter()
        .filter(|(path, _)| path.to_string_lossy().contains("divergent"))
        .map(|(_, bytes)| bytes)
        .collect();
    let own_count = if before == Before::Nothing {
        0
    } else {
        OWN_COUNT
    };
    for own in (0..own_count).map(own).chain([SAVED.to_owned()]) {
        let has = |bytes: &&Vec<u8>| bytes.windows(own.len()).any(|part| part == own.as_bytes());
        assert!(beside.iter().any(has), "{own} is lost: {:?}", files.keys());
    }
}

fn fork(machine: &SimEnv) -> SimEnv {
    SimEnv {
        disk: machine.disk.fork(),
        ..machine.clone()
    }
}

fn sweep(before: Before) {
    let (leader, other) = parted(before);
    let whole = fork(&other);
    let mut pair = Pair::meet(fork(&leader), whole.clone(), before.role(), 2_000_000).unwrap();
    pair.judge(before);
    let io_count = whole.disk.io_count();
    drop(pair);
    for at in 0..=io_count {
        let machine = fork(&other);
        machine.disk.crash_at(at);
        // A machine that dies while it opens has no pair.
        if let Ok(mut pair) = Pair::meet(fork(&leader), machine.clone(), before.role(), 2_000_000) {
            pair.catch_up();
        }
        machine.disk.crash_at(0);
        for (n, damage) in Damage::ALL.into_iter().enumerate() {
            let image = machine.crash(at << 8 | n as u64, damage);
            println!("death at call {at} of {io_count}, {damage:?}");
            let mut pair = Pair::meet(fork(&leader), image, before.role(), 3_000_000).unwrap();
            pair.judge(before);
        }
    }
    println!("{before:?}: died at each of {io_count} calls");
}

#[test]
fn a_bundle_is_installed_whole_or_not_at_all() {
    sweep(Before::Nothing);
}

#[test]
fn a_tail_is_saved_before_it_is_cut() {
    sweep(Before::Tail);
}

#[test]
fn data_that_a_bundle_replaces_is_kept() {
    sweep(Before::Tables);
}
