//! Clusters without an operator: a coordinator's record says who leads, and the nodes change it.
//!
//! The coordinator fails, answers late or never, makes changes long after they were given up, and is out of
//! reach for single nodes. What clients were told must hold all the same, and two nodes never acknowledge
//! in one epoch.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use strandline::Role;
use strandline::replica::{Desk, Failover};
use strandline_replication::Now;
use strandline_replication::coordinator::memory::{Faults, Memory, MemoryCoordinator};
use strandline_replication::coordinator::{Coordinator, Record};
use strandline_replication::failover::{Answer, Ask};
use strandline_wal::io::Random;
use strandline_wal::io::sim::SimRandom;

use super::{Cluster, NODE_COUNT};

/// Short, so that many leaders follow each other in a run.
const LEASE_MS: u64 = 400;
const IN_SYNC_MS: u64 = 1_500;
/// The name that the record has.
const DATASET: &str = "primary";
/// Longest time that a call of the coordinator takes each way, in milliseconds.
const WAY_MS_MAX: u64 = 60;

/// The coordinator of a cluster, and who has acknowledged in which epoch.
pub(super) struct Coordination {
    memory: Memory,
    /// Whether a node is out of the coordinator's reach.
    cut_off: [Arc<AtomicBool>; NODE_COUNT],
    ms: Arc<AtomicU64>,
    /// Who acknowledged writes, by epoch.
    acked_by: BTreeMap<u32, usize>,
}

/// A node's calls, each on its way for a while.
struct SimDesk {
    coordinator: MemoryCoordinator,
    cut_off: Arc<AtomicBool>,
    ms: Arc<AtomicU64>,
    random: SimRandom,
    /// What was asked, and when it gets there.
    asked: VecDeque<(u64, u64, Ask)>,
    /// What was answered, and when that is here.
    answers: VecDeque<(u64, u64, Answer)>,
}

impl SimDesk {
    fn way_ms(&self) -> u64 {
        1 + self.random.next_u64() % WAY_MS_MAX
    }
}

impl Desk for SimDesk {
    fn ask(&mut self, number: u64, ask: Ask) {
        let at_ms = self.ms.load(Ordering::Relaxed) + self.way_ms();
        self.asked.push_back((at_ms, number, ask));
    }

    fn answered(&mut self) -> Option<(u64, Answer)> {
        let now = self.ms.load(Ordering::Relaxed);
        while self.asked.front().is_some_and(|(at_ms, ..)| now >= *at_ms) {
            let (_, number, ask) = self.asked.pop_front().expect("it is there");
            let is_cut_off = self.cut_off.load(Ordering::Relaxed);
            self.coordinator.cut_off(is_cut_off);
            let answer = match ask {
                Ask::Read => Answer::Read(self.coordinator.read(DATASET)),
                Ask::Replace(version, record) => {
                    Answer::Replaced(self.coordinator.replace(DATASET, version, &record))
                }
            };
            let at_ms = now + self.way_ms();
            self.answers.push_back((at_ms, number, answer));
        }
        let (at_ms, ..) = self.answers.front()?;
        if now < *at_ms {
            return None;
        }
        self.answers
            .pop_front()
            .map(|(_, number, answer)| (number, answer))
    }
}

impl Coordination {
    pub fn new(seed: u64) -> Coordination {
        let random = SimRandom::new(seed ^ 0x0c00_4d00);
        let faults = match random.next_u64() % 3 {
            0 => Faults::default(),
            1 => Faults::all(30),
            _ => Faults::all(200),
        };
        Coordination {
            memory: Memory::faulty(seed ^ 0x0c00_4d01, faults),
            cut_off: std::array::from_fn(|_| Arc::default()),
            ms: Arc::default(),
            acked_by: BTreeMap::new(),
        }
    }

    pub fn set_ms(&self, ms: u64) {
        self.ms.store(ms, Ordering::Relaxed);
    }

    /// From now on it works.
    pub fn cure(&self) {
        self.memory.set_faults(Faults::default());
        for cut_off in &self.cut_off {
            cut_off.store(false, Ordering::Relaxed);
        }
    }

    fn record(&self) -> Option<Record> {
        self.memory.history(DATASET).pop()
    }
}

impl Cluster {
    pub(super) fn is_elected(&self) -> bool {
        self.elected.is_some()
    }

    /// Lets a node that was just started take part.
    pub(super) fn take_part(&mut self, n: usize) {
        let peers = self.others(n);
        let now = self.now();
        let seed = self.random.next_u64();
        let coordination = self.elected.as_ref().expect("asked only with one");
        let desk = SimDesk {
            coordinator: coordination.memory.handle(&self.machines[n].name),
            cut_off: Arc::clone(&coordination.cut_off[n]),
            ms: Arc::clone(&coordination.ms),
            random: SimRandom::new(seed),
            asked: VecDeque::new(),
            answers: VecDeque::new(),
        };
        let how = Failover {
            peers,
            min_in_sync: 1,
            first: n == 0,
            lease_ms: LEASE_MS,
            in_sync_ms: IN_SYNC_MS,
        };
        let up = self.machines[n].up.as_mut().expect("it was started");
        let dataset = up.dataset();
        let joined = up.node.take_part(now, &dataset, &how, Box::new(desk));
        drop(dataset);
        if let Err(error) = joined {
            self.give_up(n, &error.to_string());
        }
    }

    /// Who leads by the record and by itself; two nodes never acknowledge in one epoch.
    pub(super) fn note_elected(&mut self, now: Now) {
        let Some(coordination) = &self.elected else {
            return;
        };
        coordination.set_ms(now.mono_ms);
        let leads = |n: &usize| {
            let up = self.machines[*n].up.as_ref()?;
            let dataset = up.dataset();
            let is_leader = dataset.role() == Role::Leader && dataset.health().is_ok();
            is_leader.then(|| (dataset.stats().epoch, *n))
        };
        let newest = (0..NODE_COUNT).filter_map(|n| leads(&n)).max();
        let leader = newest.map(|(_, n)| n);
        if leader != self.leader && leader.is_some() {
            self.leader = leader;
            self.note_winner();
        }
        self.leader = leader;
    }

    /// A node acknowledged a write on a follower.
    pub(super) fn note_acked(&mut self, n: usize, epoch: u32) {
        let Some(coordination) = &mut self.elected else {
            return;
        };
        let first = *coordination.acked_by.entry(epoch).or_insert(n);
        assert_eq!(
            first, n,
            "seed {}: two nodes acknowledged in epoch {epoch}",
            self.seed
        );
    }

    /// A node and the coordinator lose each other, or find each other again.
    pub(super) fn cut_off(&mut self, n: usize) {
        let Some(coordination) = &self.elected else {
            return;
        };
        let was = coordination.cut_off[n].fetch_not(Ordering::Relaxed);
        self.counters
            .add("nodes without a coordinator", u64::from(!was));
    }

    /// Whether the record names what a node is now.
    pub(super) fn is_in_sync(&self, n: usize) -> bool {
        let record = self.elected.as_ref().and_then(Coordination::record);
        let Some((record, up)) = record.zip(self.machines[n].up.as_ref()) else {
            return false;
        };
        let node = up.db.node();
        record.members.iter().any(|member| member.0.0 == node)
    }

    /// Whether the record's leader is the one that leads, with everybody in sync.
    pub(super) fn is_settled(&self) -> bool {
        let record = self.elected.as_ref().and_then(Coordination::record);
        let leader = self.leader.and_then(|n| self.machines[n].up.as_ref());
        let Some((record, up)) = record.zip(leader) else {
            return false;
        };
        let is_its =
            record.leader.0.0 == up.db.node() && record.epoch.0 == up.dataset().stats().epoch;
        is_its && record.members.len() == NODE_COUNT && (0..NODE_COUNT).all(|n| self.is_in_sync(n))
    }

    /// Counts what became of the record.
    pub(super) fn count_elections(&mut self) {
        let Some(coordination) = &self.elected else {
            return;
        };
        let history = coordination.memory.history(DATASET);
        let mut changes = (0, 0, 0, 0);
        for pair in history.windows(2) {
            let (old, new) = (&pair[0], &pair[1]);
            changes.0 += u64::from(new.epoch > old.epoch);
            changes.1 += u64::from(new.leader.0 != old.leader.0);
            changes.2 += u64::from(new.members.len() < old.members.len());
            changes.3 += u64::from(new.members.len() > old.members.len());
            assert!(new.epoch >= old.epoch, "epochs rise");
        }
        self.counters.add("elections", changes.0);
        self.counters.add("leaders replaced", changes.1);
        self.counters.add("members dropped", changes.2);
        self.counters.add("members taken in", changes.3);
        let (_, under_way) = coordination.memory.counts();
        self.counters.add("changes never made", under_way as u64);
    }

    /// For messages.
    pub(super) fn describe_elected(&self) -> String {
        let record = self.elected.as_ref().and_then(Coordination::record);
        let nodes = self.machines.iter().filter_map(|machine| {
            let up = machine.up.as_ref()?;
            let status = up.node.failover_status(&up.dataset());
            Some(format!(
                "{} {:02x?} {status:?}",
                machine.name,
                &up.db.node()[..4]
            ))
        });
        let nodes: Vec<String> = nodes.collect();
        format!("{record:?}\n{}", nodes.join("\n"))
    }
}
