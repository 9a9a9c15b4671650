//! Clients of a few keys, and whether what they saw has an order that explains it.
//!
//! What is judged, and no more than that, because the engine promises no more without a lease or a
//! read that asks a quorum:
//!
//! - A *write* goes to any node that believes it leads, a deposed one included. It is acknowledged
//!   once one follower has it on its disk ([`Durability::Durable`] of 1), of that leadership and while
//!   the leader is not fenced. Whatever else becomes of it, an error, a crash, another leader, makes it
//!   unknown: it may show up at any later time, or never.
//! - A *read* asks one node that believes it leads. Alone it may be stale: that node may be deposed and
//!   not know it. It counts once a write that the same node began after it, in the same epoch, is
//!   acknowledged, and ends then; all other reads are dropped. The write proves it: a follower that took
//!   it had promised no later epoch, so nobody else led when the read was made, and what the read saw
//!   stands before that write in the same logs.
//! - In the end, when all nodes agree, every node is read once.
//!
//! Runs with promotions by force are not judged: force loses what was acknowledged, and says so.

use strandline::{Database, Durability, Role};
use strandline_wal::io::Random;
use strandline_wal::io::sim::SimRandom;

use super::{Cluster, NODE_COUNT};
use crate::linear::{Call, Content, check};

/// Keys that clients use: few, so that calls meet.
const REGISTER_COUNT: usize = 3;
/// Most writes under way, where leaders are elected.
const OPEN_CALL_COUNT_MAX: usize = 12;
/// Most removals whose outcome is not known, where leaders are elected.
const OPEN_REMOVAL_COUNT_MAX: usize = 8;
/// Most clients that name themselves; for messages only.
const CLIENT_COUNT: usize = 8;

/// Everything that clients did.
pub(super) struct Clients {
    random: SimRandom,
    /// Counts up with every begin and end.
    time: u64,
    next_value: u64,
    calls: Vec<Call>,
    writing: Vec<Writing>,
    reading: Vec<Reading>,
}

/// A write that its leader has on its disk.
struct Writing {
    /// Which of the calls.
    call: usize,
    at: usize,
    epoch: u32,
    /// Per shard, the end of the leader's log right after it.
    ends: Vec<u64>,
}

/// A read that returned and is not confirmed.
struct Reading {
    call: Call,
    at: usize,
    epoch: u32,
}

impl Clients {
    pub fn new(seed: u64) -> Clients {
        Clients {
            random: SimRandom::new(seed ^ 0x00c1_1e57),
            time: 0,
            next_value: 1,
            calls: Vec::new(),
            writing: Vec::new(),
            reading: Vec::new(),
        }
    }

    fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    fn below(&self, n: usize) -> usize {
        (self.random.next_u64() % n as u64) as usize
    }
}

impl Cluster {
    /// A node that believes that it leads, the newest leader or another.
    pub(super) fn some_leader(&self) -> Option<usize> {
        let first = self.clients.below(NODE_COUNT);
        let any = (0..NODE_COUNT).map(|n| (first + n) % NODE_COUNT);
        self.leader
            .into_iter()
            .filter(|_| first != 0)
            .chain(any)
            .find(|n| {
                let machine = &self.machines[*n];
                let leads = |up: &super::Up| up.dataset().role() == Role::Leader;
                machine.illness.lets_step(self.ms) && machine.up.as_ref().is_some_and(leads)
            })
    }

    /// Whether so many calls are under way that their orders are too many to be tried: an elected leader
    /// takes writes while it waits for somebody to confirm them.
    fn is_tangled(&self) -> bool {
        self.is_elected() && self.clients.writing.len() >= OPEN_CALL_COUNT_MAX
    }

    /// Every removal of unknown outcome doubles the orders that are to be tried, and elected leaders are
    /// deposed often.
    fn may_remove(&self) -> bool {
        let is_open = |call: &&Call| call.ended.is_none() && call.removes();
        !self.is_elected()
            || self.clients.calls.iter().filter(is_open).count() < OPEN_REMOVAL_COUNT_MAX
    }

    pub(super) fn client_writes(&mut self) {
        let Some(at) = self.some_leader().filter(|_| !self.is_tangled()) else {
            return;
        };
        let key = self.clients.below(REGISTER_COUNT);
        let removes = self.clients.below(6) == 0 && self.may_remove();
        let value = self.clients.next_value;
        self.clients.next_value += 1;
        let to = (!removes).then_some(value);
        let began = self.clients.tick();
        let client = self.clients.below(CLIENT_COUNT);
        let up = self.machines[at].up.as_ref().expect("it leads");
        let dataset = up.dataset();
        let written = dataset.keyspace("registers").and_then(|map| match to {
            Some(value) => map.put(name(key), value.to_be_bytes()),
            None => map.delete(name(key)),
        });
        let call = Call::write(client, began, None, key, to);
        self.clients.calls.push(call);
        match written {
            Ok(()) => self.clients.writing.push(Writing {
                call: self.clients.calls.len() - 1,
                at,
                epoch: dataset.stats().epoch,
                ends: dataset.positions().iter().map(|end| end.seq).collect(),
            }),
            Err(_) => self.counters.add("register writes unknown", 1),
        }
        self.counters.add("registers written", 1);
    }

    pub(super) fn client_reads(&mut self) {
        let Some(at) = self.some_leader().filter(|_| !self.is_tangled()) else {
            return;
        };
        let key = self.clients.below(REGISTER_COUNT);
        let client = self.clients.below(CLIENT_COUNT);
        let began = self.clients.tick();
        let up = self.machines[at].up.as_ref().expect("it leads");
        let found = self.register(&up.db, key);
        let epoch = up.dataset().stats().epoch;
        let call = Call::read(client, (began, began), key, found);
        self.clients.reading.push(Reading { call, at, epoch });
        self.counters.add("registers read", 1);
    }

    fn register(&self, db: &Database, key: usize) -> Content {
        let map = db
            .dataset("")
            .expect("primary is open")
            .keyspace("registers")
            .ok()?;
        let found = map.get(name(key));
        let found = found.unwrap_or_else(|error| panic!("seed {}: a read: {error}", self.seed));
        let value = found?;
        let value = value.first_chunk().expect("a register has eight bytes");
        Some(u64::from_be_bytes(*value))
    }

    /// Looks which writes are acknowledged by now, and which reads they confirm.
    pub(super) fn note_clients(&mut self) {
        let writing = std::mem::take(&mut self.clients.writing);
        for write in writing {
            match self.acked(&write) {
                None => self.counters.add("register writes unknown", 1),
                Some(false) => self.clients.writing.push(write),
                Some(true) => self.confirm(&write),
            }
        }
    }

    /// Whether a write is acknowledged; `None` once it can be no more.
    fn acked(&self, write: &Writing) -> Option<bool> {
        let dataset = self.machines[write.at].up.as_ref()?.dataset();
        if dataset.stats().epoch != write.epoch || dataset.health().is_err() {
            return None;
        }
        let confirmed = dataset.confirmed(Durability::Durable(1));
        Some(
            write
                .ends
                .iter()
                .zip(&confirmed)
                .all(|(end, seq)| seq >= end),
        )
    }

    fn confirm(&mut self, write: &Writing) {
        let ended = self.clients.tick();
        let began = self.clients.calls[write.call].began;
        self.clients.calls[write.call].ended = Some(ended);
        self.counters.add("registers confirmed", 1);
        let reading = std::mem::take(&mut self.clients.reading);
        for mut read in reading {
            let same = (read.at, read.epoch) == (write.at, write.epoch);
            if same && read.call.began < began {
                read.call.ended = Some(ended);
                self.clients.calls.push(read.call);
                self.counters.add("register reads confirmed", 1);
            } else {
                self.clients.reading.push(read);
            }
        }
    }

    /// Reads every node of the healed cluster, and judges the whole history.
    pub(super) fn judge_clients(&mut self) {
        let dropped = self.clients.reading.len() as u64;
        self.counters.add("register reads dropped", dropped);
        if self.plague.is_none() || self.forced_epochs.iter().next().is_some() {
            return;
        }
        for n in 0..NODE_COUNT {
            for key in 0..REGISTER_COUNT {
                let now = self.clients.tick();
                let up = self.machines[n].up.as_ref().expect("all are up");
                let found = self.register(&up.db, key);
                self.clients
                    .calls
                    .push(Call::read(n, (now, now), key, found));
            }
        }
        match check(&self.clients.calls) {
            Ok(states) => {
                self.counters.add("histories judged", 1);
                self.counters.add("states of histories", states as u64);
            }
            Err(violation) => panic!("seed {}: {violation}", self.seed),
        }
    }
}

fn name(key: usize) -> Vec<u8> {
    format!("register{key}").into_bytes()
}
