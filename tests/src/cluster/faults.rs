//! What goes wrong with single nodes beside crashes: wiped, rotten, full and slow disks, processes
//! that stand still for a while, and clocks that jump.
//!
//! A wiped node loses its disk for good and comes back empty under its old name, as another node. The
//! operator knows: at most one node is without its data at a time, it comes back once somebody leads,
//! it is told to follow that leader alone, and nobody calls on it to lead, until it has everything that
//! its leader had when it came. What it must not do meanwhile is the cluster's own affair, whatever
//! happens to the others.
//!
//! A node that is slow or paused is not stepped. A rule that makes calls slow would change nothing
//! here: on one thread, time passes between steps only.
//!
//! Clones are left out: nothing tells an older copy of a node's disk from the node itself yet.

use strandline::{NodeRole, Role};
use strandline_wal::io::Random;
use strandline_wal::io::sim::{SimEnv, SimRandom};

use super::{Cluster, NODE_COUNT};

/// What a node suffers from.
#[derive(Clone, Debug, Default)]
pub(super) struct Illness {
    /// It stands still until then.
    paused_until_ms: u64,
    /// It takes a step only so often, until then.
    slow: Option<(u64, u64)>,
    /// Its disk takes no more bytes, until then.
    full_until_ms: Option<u64>,
    loss: Loss,
}

/// What became of a node's data.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
enum Loss {
    #[default]
    None,
    /// Some of its bytes are wrong. At that time the operator wipes it.
    Rotten { until_ms: u64 },
    /// The disk is empty. The operator brings it back after that time.
    Wiped { until_ms: u64 },
    /// It is back. It is whole once it has what its leader had when it came.
    Joining { ends: Vec<u64> },
}

impl Illness {
    pub fn lets_step(&self, ms: u64) -> bool {
        !self.is_paused(ms)
            && self
                .slow
                .is_none_or(|(every_ms, _)| ms.is_multiple_of(every_ms))
    }

    pub fn is_paused(&self, ms: u64) -> bool {
        ms < self.paused_until_ms
    }

    pub fn is_full(&self) -> bool {
        self.full_until_ms.is_some()
    }

    /// Whether all its calls should work.
    pub fn is_well(&self) -> bool {
        !self.is_full() && !matches!(self.loss, Loss::Rotten { .. })
    }
}

/// The faults of a run. They are drawn apart from everything else, so that a run without them does
/// what it did before there were any.
pub(super) struct Plague {
    random: SimRandom,
}

impl Plague {
    pub fn new(seed: u64) -> Plague {
        Plague {
            random: SimRandom::new(seed ^ 0x0070_1a60),
        }
    }
}

impl Cluster {
    /// A number for a fault.
    fn ill(&self, below: u64) -> u64 {
        let plague = self.plague.as_ref().expect("asked only in a full run");
        plague.random.next_u64() % below
    }

    /// One random thing of a full run; `false` where an ordinary one is to be done.
    pub(super) fn act_fully(&mut self) -> bool {
        if self.plague.is_none() {
            return false;
        }
        let n = self.ill(NODE_COUNT as u64) as usize;
        match self.ill(200) {
            0..=39 => self.client_writes(),
            40..=69 => self.client_reads(),
            70..=71 => self.wipe_some_day(n),
            72 => self.rot(n),
            73..=75 => self.pause(n),
            76..=77 => self.fill(n),
            78..=79 => self.slow_down(n),
            80..=81 => self.jump_clock(n),
            82..=84 => self.cut_off(n),
            _ => return false,
        }
        true
    }

    fn pause(&mut self, n: usize) {
        let machine = &self.machines[n];
        // A campaign of a node that stands still is one that the operator would give up.
        if machine.up.is_none() || self.candidate.is_some_and(|(candidate, _)| candidate == n) {
            return;
        }
        self.counters.add("pauses", 1);
        self.counters
            .add("paused leaders", u64::from(self.leader == Some(n)));
        self.machines[n].illness.paused_until_ms = self.ms + 100 + self.ill(15_000);
    }

    /// Another node was promoted: was the old leader asleep?
    pub(super) fn note_deposed(&mut self, winner: usize) {
        let asleep = |n: usize| n != winner && self.machines[n].illness.is_paused(self.ms);
        let deposed = u64::from(self.leader.is_some_and(asleep));
        self.counters.add("paused leaders deposed", deposed);
    }

    fn slow_down(&mut self, n: usize) {
        let spell = (5 + self.ill(100), self.ms + 100 + self.ill(5_000));
        self.machines[n].illness.slow = Some(spell);
        self.counters.add("slow disks", 1);
    }

    fn fill(&mut self, n: usize) {
        let (room, until_ms) = (self.ill(100_000), self.ms + 20 + self.ill(3_000));
        let machine = &mut self.machines[n];
        if machine.up.is_none() || machine.illness.loss != Loss::None {
            return;
        }
        let used_len = machine.env.disk.used_len();
        machine.env.disk.limit(Some(used_len + room));
        machine.illness.full_until_ms = Some(until_ms);
        self.counters.add("full disks", 1);
        let leads = u64::from(self.leader == Some(n));
        self.counters.add("full disks of leaders", leads);
    }

    /// There is room again. A leader must go on by itself; a follower that stopped is told to go on.
    pub(super) fn empty(&mut self, n: usize) {
        let machine = &mut self.machines[n];
        machine.illness.full_until_ms = None;
        machine.env.disk.limit(None);
        let follows = |up: &super::Up| up.dataset().role() == Role::Follower;
        let is_candidate = self.candidate.is_some_and(|(candidate, _)| candidate == n);
        if machine.up.as_ref().is_some_and(follows) && !is_candidate {
            self.follow(n);
        }
    }

    /// A node whose disk is full may fail at anything, and then the operator starts it anew.
    pub(super) fn give_up(&mut self, n: usize, error: &str) {
        let machine = &mut self.machines[n];
        assert!(
            !machine.illness.is_well(),
            "seed {}: {}: {error}",
            self.seed,
            machine.name
        );
        // Its process ends; what it wrote stays in the machine's memory.
        let after = SimEnv {
            disk: machine.env.disk.fork(),
            ..machine.env.clone()
        };
        machine.env.disk.crash_at(0);
        self.network.detach(&machine.name);
        machine.up = None;
        machine.env = after;
        self.counters.add("processes given up", 1);
    }

    fn jump_clock(&mut self, n: usize) {
        let far = self.ill(2 * 3_600_000) as i64 - 3_600_000;
        let machine = &mut self.machines[n];
        machine.skew_ms = far;
        machine
            .env
            .clock
            .jump_to_ms((self.ms as i64 + far).max(1) as u64);
        self.counters.add("clock jumps", 1);
    }

    /// Whether a node may lose its data: it is no leader, all others have theirs, and nobody is
    /// promoted by force, which may lose what it alone held.
    fn may_lose_data(&self, n: usize) -> bool {
        // What a leader acknowledged alone is gone with its disk.
        !self.forces && self.leader.is_some_and(|leader| leader != n) && self.are_whole()
    }

    fn wipe_some_day(&mut self, n: usize) {
        if self.may_lose_data(n) {
            self.wipe(n);
        }
    }

    fn wipe(&mut self, n: usize) {
        let until_ms = self.ms + self.ill(2_000);
        let seed = self.seed ^ self.ill(1 << 40);
        let machine = &mut self.machines[n];
        self.network.detach(&machine.name);
        machine.env.disk.crash_at(0);
        machine.up = None;
        machine.env = SimEnv::new(seed);
        machine.illness = Illness {
            loss: Loss::Wiped { until_ms },
            ..Illness::default()
        };
        if self.candidate.is_some_and(|(candidate, _)| candidate == n) {
            self.candidate = None;
        }
        for write in &mut self.writes {
            write.is_lost |= write.at == n && !write.on_follower;
        }
        self.counters.add("wiped nodes", 1);
    }

    /// A bit of one of its files rots.
    fn rot(&mut self, n: usize) {
        let is_leading = |up: &super::Up| up.dataset().role() == Role::Leader;
        let up = self.machines[n].up.as_ref();
        if !self.may_lose_data(n) || up.is_none_or(is_leading) {
            return;
        }
        let files = self.machines[n].env.disk.files();
        let files: Vec<_> = files
            .iter()
            .filter(|(_, bytes)| !bytes.is_empty())
            .collect();
        let (path, bytes) = files[self.ill(files.len() as u64) as usize];
        let (at, mask) = (self.ill(bytes.len() as u64), 1 << self.ill(8));
        let disk = &self.machines[n].env.disk;
        disk.rot(path, at, mask).expect("the file is there");
        let until_ms = self.ms + self.ill(1_500);
        self.machines[n].illness.loss = Loss::Rotten { until_ms };
        self.counters.add("rotten nodes", 1);
    }

    /// Whether a node has lost its data and is down.
    pub(super) fn is_wiped(&self, n: usize) -> bool {
        let machine = &self.machines[n];
        let is_lost = matches!(
            machine.illness.loss,
            Loss::Wiped { .. } | Loss::Joining { .. }
        );
        is_lost && machine.up.is_none()
    }

    /// Whether all nodes have their data.
    pub(super) fn are_whole(&self) -> bool {
        let whole = |n: usize| {
            let is_known = !self.is_elected() || self.is_in_sync(n);
            self.machines[n].illness.loss == Loss::None && is_known
        };
        (0..NODE_COUNT).all(whole)
    }

    /// Whom a node is told to follow.
    pub(super) fn peers_of(&self, n: usize) -> Vec<String> {
        match (&self.machines[n].illness.loss, self.leader) {
            (Loss::Joining { .. }, Some(leader)) if leader != n => {
                vec![self.machines[leader].name.clone()]
            }
            _ => self.others(n),
        }
    }

    /// Whether the operator calls on a node to lead.
    pub(super) fn may_lead(&self, n: usize) -> bool {
        let illness = &self.machines[n].illness;
        illness.loss == Loss::None && !illness.is_paused(self.ms)
    }

    /// Whether the operator starts a node again: one without its data needs somebody who has it.
    pub(super) fn may_restart(&self, n: usize) -> bool {
        match self.machines[n].illness.loss {
            Loss::None => true,
            Loss::Rotten { .. } | Loss::Wiped { .. } => false,
            Loss::Joining { .. } => self.somebody_leads(),
        }
    }

    fn somebody_leads(&self) -> bool {
        self.candidate.is_none() && self.leader_is_up()
    }

    /// What is over by now is over, and the operator does what is to be done.
    pub(super) fn recover_nodes(&mut self) {
        if self.plague.is_none() {
            return;
        }
        for n in 0..NODE_COUNT {
            let illness = &mut self.machines[n].illness;
            if illness
                .slow
                .is_some_and(|(_, until_ms)| self.ms >= until_ms)
            {
                illness.slow = None;
            }
            if illness
                .full_until_ms
                .is_some_and(|until_ms| self.ms >= until_ms)
            {
                self.empty(n);
            }
            match &self.machines[n].illness.loss {
                Loss::Rotten { until_ms } if self.ms >= *until_ms => self.wipe(n),
                Loss::Wiped { until_ms } if self.ms >= *until_ms && self.somebody_leads() => {
                    self.join(n);
                }
                Loss::Joining { .. } => self.note_whole(n),
                _ => {}
            }
        }
    }

    /// Where the logs of the leader end.
    fn leader_ends(&self) -> Vec<u64> {
        let leader = self.leader.and_then(|n| self.machines[n].up.as_ref());
        let positions = leader.expect("somebody leads").dataset().positions();
        positions.iter().map(|end| end.seq).collect()
    }

    /// What a node that joins lacks is what the newest leader has: it was elected with everything that
    /// counts, and the one before it may have had more that does not.
    pub(super) fn note_winner(&mut self) {
        for n in 0..NODE_COUNT {
            if matches!(self.machines[n].illness.loss, Loss::Joining { .. }) {
                let ends = self.leader_ends();
                self.machines[n].illness.loss = Loss::Joining { ends };
            }
        }
    }

    fn join(&mut self, n: usize) {
        let ends = self.leader_ends();
        self.machines[n].illness.loss = Loss::Joining { ends };
        self.start(n, NodeRole::Follower);
        self.follow(n);
    }

    fn note_whole(&mut self, n: usize) {
        let machine = &self.machines[n];
        let (Loss::Joining { ends }, Some(up)) = (&machine.illness.loss, &machine.up) else {
            return;
        };
        let positions = up.dataset().positions();
        if self.is_elected() && !self.is_in_sync(n) {
            return;
        }
        if !self.somebody_leads() || positions.iter().zip(ends).any(|(end, seq)| end.seq < *seq) {
            return;
        }
        self.machines[n].illness.loss = Loss::None;
        self.counters.add("wiped nodes whole again", 1);
        self.follow(n);
    }

    /// Everything that can end by itself ends.
    pub(super) fn cure(&mut self) {
        if let Some(coordination) = &self.elected {
            coordination.cure();
        }
        for n in 0..NODE_COUNT {
            let illness = &mut self.machines[n].illness;
            illness.paused_until_ms = 0;
            illness.slow = None;
            if illness.is_full() {
                self.empty(n);
            }
        }
    }
}
