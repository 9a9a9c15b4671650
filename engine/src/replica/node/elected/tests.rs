//! A node alone with a record that names it.

use std::collections::VecDeque;

use strandline_replication::Notifier;
use strandline_replication::coordinator::memory::{Memory, MemoryCoordinator};
use strandline_replication::coordinator::{Coordinator, Record, Version};
use strandline_replication::failover::Ask;
use strandline_replication::transport::local::LocalNetwork;
use strandline_wal::io::Disk;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::SimEnv;

use super::*;
use crate::database::Database;
use crate::options::{Background, Options};

/// Answers at once.
struct Direct {
    coordinator: MemoryCoordinator,
    answers: VecDeque<(u64, Answer)>,
}

impl Desk for Direct {
    fn ask(&mut self, number: u64, ask: Ask) {
        let answer = match ask {
            Ask::Read => Answer::Read(self.coordinator.read("primary")),
            Ask::Replace(version, record) => {
                Answer::Replaced(self.coordinator.replace("primary", version, &record))
            }
        };
        self.answers.push_back((number, answer));
    }

    fn answered(&mut self) -> Option<(u64, Answer)> {
        self.answers.pop_front()
    }
}

struct Alone {
    faults: Arc<FaultDisk>,
    db: Database,
    dataset: Dataset,
    node: Node,
    memory: Memory,
    ms: u64,
}

impl Alone {
    /// A node with a history, and a record of it that names it as the leader.
    fn new() -> Alone {
        let mut env = SimEnv::new(1).env();
        let faults = Arc::new(FaultDisk::new(env.disk));
        env.disk = Arc::clone(&faults) as Arc<dyn Disk>;
        let options = Options {
            background: Background::Manual,
            ..Options::default()
        };
        let db = options.open_with("/db", env).unwrap();
        let dataset = db.dataset("").unwrap();
        let store = dataset.inner().store();
        let me = (
            NodeId(store.node().node),
            Incarnation(store.node().incarnation),
        );
        let record = Record {
            lineage: Lineage(store.lineage()),
            epoch: Epoch(7),
            leader: me,
            members: vec![me],
            min_in_sync: 0,
        };
        drop(store);
        let memory = Memory::new();
        let mut other = memory.handle("other");
        other.replace("primary", Version(0), &record).unwrap();
        let transport = Box::new(LocalNetwork::new(1).attach("a"));
        Alone {
            faults,
            db,
            dataset,
            node: Node::new("a", transport, Arc::new(Notifier::default())),
            memory,
            ms: 1_000,
        }
    }

    fn take_part(&mut self) {
        let how = How {
            min_in_sync: 0,
            ..How::default()
        };
        let desk = Box::new(Direct {
            coordinator: self.memory.handle("a"),
            answers: VecDeque::new(),
        });
        let now = self.now();
        self.node.take_part(now, &self.dataset, &how, desk).unwrap();
    }

    fn now(&self) -> Now {
        Now {
            mono_ms: self.ms,
            wall_ms: self.ms,
        }
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.ms += 10;
            let now = self.now();
            while self.node.step(now) {}
        }
    }

    fn status(&self) -> FailoverStatus {
        self.node.failover_status(&self.dataset)
    }
}

#[test]
fn the_leader_that_the_record_names_opens_the_next_epoch() {
    let mut alone = Alone::new();
    alone.take_part();
    alone.run(2_000);
    let status = alone.status();
    assert_eq!((status.role, status.epoch), ("leader", 8));
    assert_eq!(alone.dataset.stats().epoch, 8);
    alone
        .db
        .keyspace("map")
        .unwrap()
        .put("key", "value")
        .unwrap();
}

#[test]
fn a_node_that_joins_is_not_elected_whatever_the_record_says() {
    let mut alone = Alone::new();
    alone.db.follower("").unwrap();
    let store = alone.dataset.inner().store();
    store.epoch_file().lock().join(true).unwrap();
    drop(store);
    alone.take_part();
    alone.run(20_000);
    assert_eq!(alone.dataset.role(), Role::Follower);
    let error = alone.status().last_error.unwrap_or_default();
    assert!(error.contains("joins"), "{error}");
    assert_eq!(alone.memory.history("primary").len(), 1);
}

#[test]
fn a_leader_whose_disk_failed_gives_way_and_opens_its_store_anew() {
    let mut alone = Alone::new();
    alone.take_part();
    alone.run(2_000);
    let map = alone.db.keyspace("map").unwrap();
    alone
        .faults
        .add(Rule::new(Effect::EIO).on(Call::Sync).path(".seg"));
    assert!(map.put("key", "value").is_err());
    alone.run(500);
    assert_eq!(alone.status().role, "follower");
    // Nobody else is there, and the disk works again.
    alone.faults.heal();
    alone.run(20_000);
    let status = alone.status();
    assert_eq!(status.role, "leader", "{status:?}");
    assert!(status.epoch > 8);
    map.put("key", "value").unwrap();
}

#[test]
fn what_a_coordinator_decides_is_not_decided_by_hand() {
    let mut alone = Alone::new();
    alone.take_part();
    let how = crate::replica::Promote {
        force: true,
        ..crate::replica::Promote::default()
    };
    let now = alone.now();
    let refused = alone.node.campaign(now, &alone.dataset, &how).unwrap_err();
    assert!(refused.to_string().contains("coordinator"), "{refused}");
    alone.run(2_000);
    let now = alone.now();
    let closed = alone.node.closed(now, &alone.dataset, || ());
    assert!(closed.is_err(), "it leads");
}
