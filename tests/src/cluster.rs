//! A cluster of three nodes on one thread: real engines, simulated disks, a faulty network, and an
//! operator who promotes by the rule of a fixed list.
//!
//! | Part | File |
//! |------|------|
//! | what else goes wrong: wiped, paused, full, slow and rotten nodes, clocks that jump | `faults` |
//! | clients of a few keys, and whether what they saw has an order | `clients` |
//! | what must hold in the end | `compare` |
//! | clusters without an operator: a coordinator says who leads | `elected` |
//!
//! Every write is remembered with the levels that it was acknowledged at. At the end everything heals,
//! and then: all logs are the same bytes, all states are the same, what was acknowledged on one
//! follower is there, and what a deposed leader acknowledged alone and lost lies in a saved tail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use strandline::replica::{Campaign, Node, Promote};
use strandline::{
    Background, Database, Dataset, Durability, NodeConfig, NodeRole, Options, Role, ShardRouter,
};
use strandline_replication::transport::local::{Faults, LocalNetwork};
use strandline_replication::{Notifier, Now};
use strandline_wal::io::Random;
use strandline_wal::io::sim::{Damage, SimEnv, SimRandom};

use clients::Clients;
use faults::{Illness, Plague};

mod clients;
mod compare;
mod elected;
mod faults;

/// Nodes of the cluster.
pub const NODE_COUNT: usize = 3;
/// How long a healed cluster may take to agree, in simulated milliseconds.
const HEAL_MS_MAX: u64 = 120_000;
/// Steps of one node at one moment before the next one's turn.
const STEPS_MAX: usize = 64;

/// What happened in one or many runs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// By name.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Counters {
    fn add(&mut self, name: &'static str, n: u64) {
        *self.counts.entry(name).or_default() += n;
    }

    /// Adds another run's.
    pub fn merge(&mut self, other: &Counters) {
        for (name, n) in &other.counts {
            self.add(name, *n);
        }
    }

    /// Everything that a set of runs must have met.
    pub const REQUIRED: [&'static str; 31] = [
        "acked on a follower",
        "acked on the leader alone",
        "crashes",
        "leader crashes",
        "partitions",
        "restarts",
        "promotions by promises",
        "promotions refused",
        "promotions by force",
        "tails cut",
        "bundles",
        "frames lost or repeated",
        "flushes",
        "wiped nodes",
        "wiped nodes whole again",
        "rotten nodes",
        "pauses",
        "paused leaders",
        "paused leaders deposed",
        "full disks",
        "full disks of leaders",
        "writes refused by a full disk",
        "slow disks",
        "clock jumps",
        "registers written",
        "registers confirmed",
        "register writes unknown",
        "registers read",
        "register reads confirmed",
        "register reads dropped",
        "histories judged",
    ];
}

/// One run's result: what happened, and a hash of every frame and of the final state.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// What happened.
    pub counters: Counters,
    /// Equal for equal seeds.
    pub trace: String,
}

struct Machine {
    name: String,
    env: SimEnv,
    /// `None` while it is down.
    up: Option<Up>,
    /// Its clock's distance from the cluster's: nothing may depend on it.
    skew_ms: i64,
    illness: Illness,
    /// Long pieces that it took since its dataset was opened, as they were last counted.
    by_call: u64,
}

struct Up {
    db: Database,
    node: Node,
    /// Whether it takes part in elections.
    takes_part: bool,
}

impl Up {
    fn dataset(&self) -> Dataset {
        self.db.dataset("").expect("primary is open")
    }
}

/// A write that returned.
struct Write {
    /// The node that took it.
    at: usize,
    key: Vec<u8>,
    value: Vec<u8>,
    /// Per shard, the end of the leader's log right after it.
    ends: Vec<u64>,
    /// The leader's epoch.
    epoch: u32,
    on_follower: bool,
    /// The disk of its leader is gone, and nobody else had confirmed it.
    is_lost: bool,
}

/// What may go wrong in a run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Profile {
    /// Crashes, partitions and promotions. Seeds that failed before there was more are run with it.
    Plain,
    /// Everything, and clients whose histories are judged.
    Full,
    /// As [`Profile::Full`], with so much written that whoever is away for a while is far behind, and is
    /// sent long pieces instead of a bundle.
    Behind,
    /// As [`Profile::Full`], with a coordinator in the place of the operator: the nodes elect.
    Elected,
}

/// One simulated cluster.
pub struct Cluster {
    seed: u64,
    random: SimRandom,
    network: LocalNetwork,
    machines: Vec<Machine>,
    shards: u16,
    ms: u64,
    leader: Option<usize>,
    /// The promotion under way.
    candidate: Option<(usize, u64)>,
    writes: Vec<Write>,
    next_key: u64,
    counters: Counters,
    /// Whether this run promotes by force.
    forces: bool,
    is_behind: bool,
    /// The faults beside crashes and partitions; none in a plain run.
    plague: Option<Plague>,
    clients: Clients,
    forced_epochs: BTreeSet<u32>,
    /// Who leads is a matter of this.
    elected: Option<elected::Coordination>,
}

impl Cluster {
    /// A cluster with node 0 leading and the others following.
    pub fn new(seed: u64, profile: Profile) -> Cluster {
        let random = SimRandom::new(seed);
        let network = LocalNetwork::new(seed ^ 0x5eed);
        let shards = 1 + (random.next_u64() % 3) as u16;
        let faulty = random.next_u64().is_multiple_of(3);
        network.set_faults(Faults {
            delay_ms: (1, 1 + random.next_u64() % 20),
            loss_permille: if faulty { 5 } else { 0 },
            repeat_permille: if faulty { 5 } else { 0 },
        });
        let machines = (0..NODE_COUNT)
            .map(|n| Machine {
                name: format!("n{n}"),
                env: SimEnv::new(seed.wrapping_mul(31).wrapping_add(n as u64)),
                up: None,
                skew_ms: (random.next_u64() % 20_000) as i64 - 10_000,
                illness: Illness::default(),
                by_call: 0,
            })
            .collect();
        let mut counters = Counters::default();
        counters.add("frames lost or repeated", u64::from(faulty));
        let mut cluster = Cluster {
            seed,
            network,
            machines,
            shards,
            ms: 1_000_000,
            leader: None,
            candidate: None,
            writes: Vec::new(),
            next_key: 0,
            counters,
            forces: seed % 5 == 4 && profile != Profile::Elected,
            is_behind: profile == Profile::Behind,
            plague: (profile != Profile::Plain).then(|| Plague::new(seed)),
            clients: Clients::new(seed),
            forced_epochs: BTreeSet::new(),
            elected: (profile == Profile::Elected).then(|| elected::Coordination::new(seed)),
            random,
        };
        if cluster.is_elected() {
            for n in 0..NODE_COUNT {
                cluster.start(n, NodeRole::Follower);
                cluster.follow(n);
            }
            return cluster;
        }
        cluster.start(0, NodeRole::Single);
        let now = cluster.now();
        let leader = cluster.machines[0].up.as_mut().expect("it was started");
        let dataset = leader.dataset();
        leader.node.lead(now, &dataset).expect("it leads");
        cluster.leader = Some(0);
        for n in 1..NODE_COUNT {
            cluster.start(n, NodeRole::Follower);
            cluster.follow(n);
        }
        cluster
    }

    fn now(&self) -> Now {
        Now {
            mono_ms: self.ms,
            wall_ms: self.ms,
        }
    }

    fn below(&self, n: u64) -> u64 {
        self.random.next_u64() % n
    }

    fn options(&self, role: NodeRole) -> Options {
        let slot_bytes_max = if self.is_behind { 8 << 20 } else { 128 << 10 };
        Options {
            router: ShardRouter::hash(self.shards).expect("1 to 3 shards"),
            background: Background::Manual,
            memtable_len_max: 64 << 10,
            segment_len_start: 64 << 10,
            segment_len_max: 64 << 10,
            table_len_max: 64 << 10,
            // Small, so that a follower that is away for a while needs a bundle.
            slot_bytes_max: Some(slot_bytes_max),
            node: NodeConfig {
                role,
                ..NodeConfig::default()
            },
            ..Options::default()
        }
    }

    fn start(&mut self, n: usize, role: NodeRole) {
        let options = self.options(role);
        let machine = &mut self.machines[n];
        machine
            .env
            .clock
            .jump_to_ms((self.ms as i64 + machine.skew_ms) as u64);
        let db = options
            .open_with("/db", machine.env.env())
            .unwrap_or_else(|error| {
                panic!(
                    "seed {}: {} does not open: {error}\n{}",
                    self.seed,
                    machine.name,
                    machine.env.disk.dump()
                )
            });
        db.dataset("").expect("primary opens");
        let transport = self.network.attach(&machine.name);
        let node = Node::new(
            &machine.name,
            Box::new(transport),
            Arc::new(Notifier::default()),
        );
        let takes_part = false;
        machine.up = Some(Up {
            db,
            node,
            takes_part,
        });
    }

    fn others(&self, n: usize) -> Vec<String> {
        (0..NODE_COUNT)
            .filter(|m| *m != n)
            .map(|m| self.machines[m].name.clone())
            .collect()
    }

    fn follow(&mut self, n: usize) {
        let (now, peers) = (self.now(), self.peers_of(n));
        let Some(up) = &mut self.machines[n].up else {
            return;
        };
        if self.elected.is_some() {
            // From then on it finds its leaders by itself.
            if !std::mem::replace(&mut up.takes_part, true) {
                self.take_part(n);
            }
            return;
        }
        let dataset = up.dataset();
        let followed = up.node.follow(now, &dataset, &peers);
        drop(dataset);
        if let Err(error) = followed {
            self.give_up(n, &error.to_string());
        }
    }

    /// Lets time pass, every node in turn at every moment.
    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.ms += 1;
            let now = self.now();
            for machine in &mut self.machines {
                machine.env.clock.advance_ms(1);
                if !machine.illness.lets_step(now.mono_ms) {
                    continue;
                }
                let Some(up) = &mut machine.up else { continue };
                for _ in 0..STEPS_MAX {
                    if !up.node.step(now) {
                        break;
                    }
                }
            }
            self.note_elected(now);
            self.note_acks();
            self.note_clients();
            self.end_campaign();
            self.recover_nodes();
        }
    }

    fn note_acks(&mut self) {
        let leaders = match self.is_elected() {
            true => (0..NODE_COUNT).collect(),
            false => Vec::from_iter(self.leader),
        };
        for leader in leaders {
            self.note_acks_of(leader);
        }
    }

    fn note_acks_of(&mut self, leader: usize) {
        let Some(up) = &self.machines[leader].up else {
            return;
        };
        let dataset = up.dataset();
        let confirmed = dataset.confirmed(Durability::Durable(1));
        let epoch = dataset.stats().epoch;
        let mut newly = 0;
        for write in self.writes.iter_mut().rev().take(64) {
            let covered = write
                .ends
                .iter()
                .zip(&confirmed)
                .all(|(end, seq)| seq >= end);
            if write.epoch == epoch && write.at == leader && !write.on_follower && covered {
                write.on_follower = true;
                newly += 1;
            }
        }
        if newly > 0 {
            self.note_acked(leader, epoch);
        }
        self.counters.add("acked on a follower", newly);
    }

    fn end_campaign(&mut self) {
        let Some((candidate, began)) = self.candidate else {
            return;
        };
        let Some(up) = &self.machines[candidate].up else {
            self.candidate = None;
            return;
        };
        match up.node.campaign_of(&up.dataset()) {
            Campaign::Open if self.ms - began < 30_000 => {}
            Campaign::Open => {
                self.candidate = None;
                // An operator who gives up says so: nobody wins unseen.
                if self.plague.is_some() {
                    self.follow(candidate);
                }
            }
            Campaign::Won(promotion) => {
                self.candidate = None;
                let name = match promotion.may_be_lost {
                    None => "promotions by promises",
                    Some(_) => {
                        self.forced_epochs.insert(promotion.epoch);
                        "promotions by force"
                    }
                };
                self.counters.add(name, 1);
                self.note_deposed(candidate);
                self.leader = Some(candidate);
                self.note_winner();
                for n in (0..NODE_COUNT).filter(|n| *n != candidate) {
                    self.follow(n);
                }
            }
            Campaign::Lost(_) => {
                self.candidate = None;
                self.counters.add("promotions refused", 1);
                self.follow(candidate);
            }
        }
    }

    /// One write at the leader, acknowledged by its own disk.
    fn write(&mut self) {
        let leader = match self.is_elected() {
            true => self.some_leader(),
            false => self.leader,
        };
        let Some(leader) = leader else { return };
        if !self.machines[leader].illness.lets_step(self.ms) {
            return;
        }
        let large = self.below(12) == 0 || self.is_behind;
        let len = if large {
            4_000 + self.below(6_000)
        } else {
            20 + self.below(300)
        };
        let fill = self.below(256) as u8;
        let count = if self.below(4) == 0 {
            1 + self.below(5)
        } else {
            1
        };
        let Some(up) = &self.machines[leader].up else {
            return;
        };
        let dataset = up.dataset();
        if dataset.role() != Role::Leader {
            return;
        }
        let Ok(map) = dataset.keyspace("map") else {
            return;
        };
        let mut batch = dataset.batch();
        let mut keys = Vec::new();
        for _ in 0..count {
            let key = self.next_key.to_be_bytes().to_vec();
            let value = [&self.next_key.to_be_bytes()[..], &vec![fill; len as usize]].concat();
            self.next_key += 1;
            batch
                .put(&map, &key, &value)
                .expect("it is within the limits");
            keys.push((key, value));
        }
        // A fenced leader's writes fail; what became of them is unknown and not counted.
        if let Err(error) = batch.commit() {
            let refused = u64::from(error.is_no_space());
            self.counters.add("writes refused by a full disk", refused);
            return;
        }
        let ends: Vec<u64> = dataset.positions().iter().map(|end| end.seq).collect();
        let epoch = dataset.stats().epoch;
        for (key, value) in keys {
            self.writes.push(Write {
                at: leader,
                key,
                value,
                ends: ends.clone(),
                epoch,
                on_follower: false,
                is_lost: false,
            });
        }
        self.counters.add("acked on the leader alone", count);
    }

    fn crash(&mut self, n: usize) {
        let damage = Damage::ALL[self.below(Damage::ALL.len() as u64) as usize];
        let seed = self.random.next_u64();
        self.count_pieces(n);
        let machine = &mut self.machines[n];
        if machine.up.is_none() {
            return;
        }
        let by_call = u64::from(machine.by_call > 0);
        self.counters.add("crashes after long pieces", by_call);
        let after = machine.env.crash(seed, damage);
        self.network.detach(&machine.name);
        machine.up = None;
        machine.env = after;
        self.counters.add("crashes", 1);
        if self.leader == Some(n) {
            self.counters.add("leader crashes", 1);
        }
    }

    /// Counts the long pieces that a node took.
    fn count_pieces(&mut self, n: usize) {
        let machine = &mut self.machines[n];
        let Some(up) = &machine.up else { return };
        let count = up.dataset().stats().pieces_by_call;
        let before = std::mem::replace(&mut machine.by_call, count);
        // A dataset that was opened anew counts from zero.
        let more = count.checked_sub(before).unwrap_or(count);
        self.counters.add("long pieces", more);
    }

    fn restart(&mut self, n: usize) {
        if self.machines[n].up.is_some() || !self.may_restart(n) {
            return;
        }
        // Nobody starts a process on a full disk before there is room.
        self.empty(n);
        self.start(n, NodeRole::Follower);
        self.counters.add("restarts", 1);
        if self.leader == Some(n) {
            // Coming back as leader is an election: nobody leads until one is won.
            self.leader = None;
        }
        self.follow(n);
    }

    fn promote(&mut self) {
        if self.candidate.is_some() || self.is_elected() {
            return;
        }
        let up: Vec<usize> = (0..NODE_COUNT)
            .filter(|n| self.machines[*n].up.is_some() && self.may_lead(*n))
            .collect();
        let candidate = up.get(self.below(up.len().max(1) as u64) as usize).copied();
        let leads = |n: &usize| self.leader == Some(*n) && self.leader_is_up();
        if let Some(candidate) = candidate.filter(|n| !leads(n)) {
            self.campaign(candidate);
        }
    }

    fn campaign(&mut self, candidate: usize) {
        let up: Vec<usize> = (0..NODE_COUNT)
            .filter(|n| self.machines[*n].up.is_some())
            .collect();
        // A node that alone has ever led or followed: nothing was confirmed elsewhere.
        let only = self.has_history(candidate)
            && (0..NODE_COUNT).all(|n| {
                let is_new = self.is_wiped(n) || (up.contains(&n) && !self.has_history(n));
                n == candidate || is_new
            });
        let how = Promote {
            peers: self.others(candidate),
            node_count: NODE_COUNT,
            follower_count: 1,
            force: only || self.forces && self.below(3) == 0,
        };
        let now = self.now();
        let up = self.machines[candidate].up.as_mut().expect("it is up");
        let dataset = up.dataset();
        if let Err(error) = up.node.campaign(now, &dataset, &how) {
            let is_whole = !up.node.follow_status(&dataset).joins;
            if self.machines[candidate].illness.is_full() {
                drop(dataset);
                return self.give_up(candidate, &error.to_string());
            }
            assert!(
                dataset.lineage() == [0; 16] || !is_whole,
                "only a node without a history may not try: {error}"
            );
            self.counters.add("promotions refused", 1);
            self.follow(candidate);
            return;
        }
        if self.leader == Some(candidate) {
            self.leader = None;
        }
        self.candidate = Some((candidate, self.ms));
    }

    fn has_history(&self, n: usize) -> bool {
        let up = self.machines[n].up.as_ref();
        let has = |up: &Up| {
            let dataset = up.dataset();
            dataset.lineage() != [0; 16] && !up.node.follow_status(&dataset).joins
        };
        up.is_some_and(has)
    }

    fn leader_is_up(&self) -> bool {
        let up = self.leader.and_then(|n| self.machines[n].up.as_ref());
        // A leader that was fenced leads no more, and one that says nothing is as good as none.
        up.is_some_and(|up| up.dataset().health().is_ok())
            && self
                .leader
                .is_none_or(|n| !self.machines[n].illness.is_paused(self.ms))
    }

    /// One random thing.
    fn act(&mut self) {
        match self.below(100) {
            0..=69 => self.write(),
            70..=72 => {
                let n = self.below(NODE_COUNT as u64) as usize;
                self.crash(n);
            }
            73..=79 => {
                let n = self.below(NODE_COUNT as u64) as usize;
                self.restart(n);
            }
            80..=83 => {
                let (a, b) = (self.below(3), self.below(3));
                if a != b {
                    let name = |n: u64| self.machines[n as usize].name.clone();
                    match self.below(2) {
                        0 => self.network.part(&name(a), &name(b)),
                        _ => self.network.cut(&name(a), &name(b)),
                    }
                    self.counters.add("partitions", 1);
                }
            }
            84..=86 => self.network.heal(),
            87..=89 if !self.leader_is_up() => self.promote(),
            90 => self.promote(),
            _ => {
                let n = self.below(NODE_COUNT as u64) as usize;
                self.work(n);
            }
        }
    }

    /// Background work of a node, and now and then a flush.
    fn work(&mut self, n: usize) {
        let flushes = self.below(6) == 0;
        self.count_pieces(n);
        if !self.machines[n].illness.lets_step(self.ms) {
            return;
        }
        let Some(up) = &self.machines[n].up else {
            return;
        };
        let dataset = up.dataset();
        let worked = up.db.run_background(4).map(|_| ());
        let flushed = match flushes && dataset.role() == Role::Leader {
            true => worked.and_then(|()| dataset.flush()).map(|()| 1),
            false => worked.map(|()| 0),
        };
        match flushed {
            Ok(count) => self.counters.add("flushes", count),
            // A fenced leader does no work any more.
            Err(error) => assert!(
                dataset.health().is_err() || !self.machines[n].illness.is_well(),
                "seed {}: {error}",
                self.seed
            ),
        }
    }

    /// Runs the cluster through `action_count` random things, heals it, and checks it.
    ///
    /// # Panics
    /// Where a promise is broken; the message names the seed.
    pub fn check(mut self, action_count: usize) -> Outcome {
        for _ in 0..action_count {
            if !self.act_fully() {
                self.act();
            }
            let ms = 1 + self.below(30);
            self.run(ms);
        }
        self.heal();
        self.count_elections();
        self.compare();
        self.judge_clients();
        let state = self.digest(self.leader.expect("a healed cluster has a leader"));
        let trace = format!("{}-{state}", hex(&self.network.trace()));
        Outcome {
            counters: self.counters,
            trace,
        }
    }

    fn heal(&mut self) {
        self.network.heal();
        self.network.set_faults(Faults::default());
        self.cure();
        for n in 0..NODE_COUNT {
            self.restart(n);
        }
        let end = self.ms + HEAL_MS_MAX;
        let mut promoted_ms = self.ms;
        loop {
            self.run(50);
            assert!(
                self.ms < end,
                "seed {}: no agreement: {}",
                self.seed,
                self.describe()
            );
            if self.candidate.is_some() {
                continue;
            }
            if !self.leader_is_up() {
                self.forces = false;
                self.promote();
                continue;
            }
            for n in 0..NODE_COUNT {
                self.restart(n);
                self.work(n);
            }
            if self.agrees() && (!self.is_elected() || self.is_settled()) {
                break;
            }
            // Force asks nobody: a node may be bound by its promise of this very epoch to another. It
            // refuses the leader until there is a later epoch, and says so. The operator runs again.
            if !self.forced_epochs.is_empty() && self.ms - promoted_ms > 20_000 {
                promoted_ms = self.ms;
                self.forces = false;
                self.campaign(self.leader.expect("it is up"));
            }
        }
        for machine in &self.machines {
            let up = machine.up.as_ref().expect("all are up");
            let status = up.node.follow_status(&up.dataset());
            self.counters.add("bundles", status.bundle_count);
        }
    }

    fn agrees(&self) -> bool {
        let leader = self.leader.expect("asked only with a leader");
        // A wiped node waits for a leader before it comes back.
        if self.machines.iter().any(|machine| machine.up.is_none()) || !self.are_whole() {
            return false;
        }
        let up = |n: usize| self.machines[n].up.as_ref().expect("all are up");
        let positions = up(leader).dataset().positions();
        let seen = up(leader).dataset().snapshot().timestamp();
        let leads = up(leader).dataset().role() == Role::Leader;
        leads
            && (0..NODE_COUNT).all(|n| {
                let dataset = up(n).dataset();
                dataset.positions() == positions && dataset.snapshot().timestamp() == seen
            })
    }

    fn describe(&self) -> String {
        let node = |machine: &Machine| match &machine.up {
            None => format!("{} is down", machine.name),
            Some(up) => {
                let dataset = up.dataset();
                let status = up.node.follow_status(&dataset);
                format!(
                    "{} {:?} {:?} sees {} {status:?}",
                    machine.name,
                    dataset.role(),
                    dataset.positions(),
                    dataset.snapshot().timestamp()
                )
            }
        };
        let nodes: Vec<String> = self.machines.iter().map(node).collect();
        format!(
            "leader {:?} candidate {:?}\n{}\n{}",
            self.leader,
            self.candidate,
            nodes.join("\n"),
            self.describe_elected()
        )
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
