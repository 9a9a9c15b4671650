//! A follower that dies at every call of its disk while it takes what a leader ships.
//!
//! After each death, with every damage: the follower opens; its logs hold everything that the leader
//! was told to be durable there; its readers see a prefix of the leader's commits; and once it is
//! connected again it comes to the leader's state.

use std::sync::Arc;

use strandline::replica::Node;
use strandline::{
    Background, Database, Dataset, Durability, NodeConfig, NodeRole, Options, ShardRouter,
};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{Notifier, Now};
use strandline_wal::io::sim::{Damage, SimEnv};

use crate::model::{Change, Kept, Model, State};
use crate::plan::small_options;
use crate::run::{ROOT, Tally, bytes, name, read_dataset};

const STEP_COUNT_MAX: usize = 64;
const CATCH_UP_MS_MAX: u64 = 60_000;

/// What the follower takes when it dies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scene {
    /// Records, from the first one on.
    Records,
    /// A bundle, because its leader has dropped the first ones, and records behind it.
    Bundle,
    /// Long pieces, because its leader wrote much before it came.
    Behind,
}

struct Place {
    env: SimEnv,
    up: Option<(Database, Node)>,
    label: &'static str,
}

impl Place {
    fn open(
        env: SimEnv,
        role: NodeRole,
        network: &LocalNetwork,
        label: &'static str,
        scene: Scene,
    ) -> strandline::Result<Place> {
        let small = small_options();
        let options = Options {
            router: ShardRouter::hash(2)?,
            background: Background::Manual,
            // Whoever is not there gets a bundle.
            slot_bytes_max: Some(0),
            node: NodeConfig {
                role,
                ..NodeConfig::default()
            },
            memtable_len_max: match scene {
                // Nothing is flushed, and so nothing dropped.
                Scene::Behind => 4 << 20,
                Scene::Records | Scene::Bundle => small.memtable_len_max,
            },
            ..small
        };
        let db = options.open_with(ROOT, env.env())?;
        db.dataset("")?;
        let transport = Box::new(network.attach(label));
        let node = Node::new(label, transport, Arc::new(Notifier::default()));
        Ok(Place {
            env,
            up: Some((db, node)),
            label,
        })
    }

    fn dataset(&self) -> Dataset {
        let (db, _) = self.up.as_ref().expect("it is up");
        db.dataset("").expect("primary is open")
    }

    fn node(&mut self) -> &mut Node {
        &mut self.up.as_mut().expect("it is up").1
    }

    fn step(&mut self, now: Now) {
        self.env.clock.advance_ms(1);
        for _ in 0..STEP_COUNT_MAX {
            if !self.node().step(now) {
                break;
            }
        }
    }
}

/// A leader and one follower.
struct Pair {
    scene: Scene,
    network: LocalNetwork,
    leader: Place,
    follower: Option<Place>,
    model: Model,
    ms: u64,
    /// Per shard, what the leader knows to be durable on the follower.
    confirmed: Vec<u64>,
}

impl Pair {
    fn new(scene: Scene, seed: u64, die_at: u64) -> Result<Pair, String> {
        let network = LocalNetwork::new(seed);
        let leader = Place::open(
            SimEnv::new(seed),
            NodeRole::Single,
            &network,
            "leader",
            scene,
        );
        let mut pair = Pair {
            scene,
            leader: leader.map_err(|e| format!("the leader: {e}"))?,
            network,
            follower: None,
            model: Model::new(2),
            ms: 1_000_000,
            confirmed: vec![0; 2],
        };
        pair.lead()?;
        match scene {
            Scene::Records => {}
            Scene::Bundle => pair.write_before()?,
            Scene::Behind => (100..112).try_for_each(|number| pair.write(number, 6, 9_000))?,
        }
        let env = SimEnv::new(seed ^ 1);
        env.disk.crash_at(die_at);
        match Place::open(
            env.clone(),
            NodeRole::Follower,
            &pair.network,
            "follower",
            scene,
        ) {
            Ok(follower) => {
                pair.follower = Some(follower);
                pair.follow()?;
            }
            Err(_) if env.disk.is_dead() => {
                let (up, label) = (None, "follower");
                pair.follower = Some(Place { env, up, label });
            }
            Err(error) => return Err(format!("the follower: {error}")),
        }
        Ok(pair)
    }

    fn now(&self) -> Now {
        Now {
            mono_ms: self.ms,
            wall_ms: self.ms,
        }
    }

    fn lead(&mut self) -> Result<(), String> {
        let (now, dataset) = (self.now(), self.leader.dataset());
        let led = self.leader.node().lead(now, &dataset);
        led.map_err(|e| format!("leading: {e}"))
    }

    fn follow(&mut self) -> Result<(), String> {
        let now = self.now();
        let follower = self.follower.as_mut().expect("there is one");
        let dataset = follower.dataset();
        let followed = follower
            .node()
            .follow(now, &dataset, &["leader".to_owned()]);
        match followed {
            Err(error) if !follower.env.disk.is_dead() => Err(format!("following: {error}")),
            _ => Ok(()),
        }
    }

    fn follower(&self) -> &Place {
        self.follower.as_ref().expect("there is one")
    }

    fn is_dead(&self) -> bool {
        self.follower().env.disk.is_dead()
    }

    /// Lets time pass at both.
    fn pass(&mut self, ms: u64) {
        for _ in 0..ms {
            self.ms += 1;
            let now = self.now();
            self.leader.step(now);
            let follower = self.follower.as_mut().expect("there is one");
            if follower.up.is_some() && !follower.env.disk.is_dead() {
                follower.step(now);
            }
            let confirmed = self.leader.dataset().confirmed(Durability::Durable(1));
            for (known, seq) in self.confirmed.iter_mut().zip(confirmed) {
                *known = (*known).max(seq);
            }
        }
    }

    /// One batch of the leader, durable there.
    fn write(&mut self, number: u64, count: usize, len: usize) -> Result<(), String> {
        let dataset = self.leader.dataset();
        let mut batch = dataset.batch();
        let mut changes = Vec::new();
        for n in 0..count {
            let keyspace = n % 2;
            let key = format!("k{}", (number as usize * 3 + n) % 12).into_bytes();
            let value = (n % 5 != 4).then(|| bytes(number << 8 | n as u64, len));
            let map = dataset.keyspace(&name(keyspace));
            let map = map.map_err(|e| format!("a keyspace: {e}"))?;
            let put = match &value {
                Some(value) => batch.put(&map, &key, value).map(|_| ()),
                None => batch.delete(&map, &key).map(|_| ()),
            };
            put.map_err(|e| e.to_string())?;
            changes.push(Change {
                keyspace,
                key,
                value,
            });
        }
        batch.commit().map_err(|e| format!("a write: {e}"))?;
        self.model.commit(changes, Kept::Power);
        Ok(())
    }

    /// What the leader writes and drops from its log before there is a follower.
    fn write_before(&mut self) -> Result<(), String> {
        for number in 100..160 {
            self.write(number, 6, 1_000)?;
        }
        let (db, _) = self.leader.up.as_ref().expect("it is up");
        let dropped = db.flush().and_then(|()| db.dataset("")?.compact());
        dropped.map_err(|e| format!("the leader's own work: {e}"))?;
        self.write(160, 3, 200)
    }

    /// The workload: batches over both shards, rolls, and the follower's own flushes and compaction.
    fn work(&mut self) -> Result<(), String> {
        for number in 0..14 {
            if self.is_dead() {
                break;
            }
            let len = if number % 3 == 2 { 9_000 } else { 200 };
            self.write(number, 1 + number as usize % 6, len)?;
            self.pass(12);
            if self.is_dead() || number % 4 != 3 {
                continue;
            }
            let (db, _) = self.follower().up.as_ref().expect("it is up");
            let worked = db.flush().and_then(|()| db.run_background(4));
            if let Err(error) = worked
                && !self.is_dead()
            {
                return Err(format!("the follower's own work: {error}"));
            }
        }
        Ok(())
    }

    /// The leader's process dies and comes back, the follower's machine dies and comes back.
    fn after(&self, damage: Option<Damage>, seed: u64) -> Result<Pair, String> {
        let machine = &self.follower().env;
        let follower = match damage {
            Some(damage) => machine.crash(seed, damage),
            None => SimEnv {
                disk: machine.disk.fork(),
                ..machine.clone()
            },
        };
        let leader = SimEnv {
            disk: self.leader.env.disk.fork(),
            ..self.leader.env.clone()
        };
        let network = LocalNetwork::new(seed);
        let leader = Place::open(leader, NodeRole::Single, &network, "leader", self.scene);
        let mut pair = Pair {
            scene: self.scene,
            leader: leader.map_err(|e| format!("the leader comes back: {e}"))?,
            network,
            follower: None,
            model: self.model.clone(),
            ms: self.ms + 1_000,
            confirmed: self.confirmed.clone(),
        };
        pair.lead()?;
        let place = Place::open(
            follower,
            NodeRole::Follower,
            &pair.network,
            "follower",
            self.scene,
        );
        pair.follower = Some(place.map_err(|e| format!("the follower comes back: {e}"))?);
        Ok(pair)
    }

    fn judge(&mut self) -> Result<(), String> {
        let dataset = self.follower().dataset();
        let ends: Vec<u64> = dataset.positions().iter().map(|end| end.seq).collect();
        if ends.iter().zip(&self.confirmed).any(|(end, seq)| end < seq) {
            let confirmed = &self.confirmed;
            return Err(format!(
                "it has {ends:?}, the leader was told that {confirmed:?} is durable"
            ));
        }
        let shown = read_dataset(&dataset, 2).map_err(|e| e.to_string())?;
        let is_prefix = |n: usize| self.model.state_at(n) == shown;
        if !(0..=self.model.commit_count()).any(is_prefix) {
            return Err("its readers see no prefix of the leader's commits".to_owned());
        }
        self.follow()?;
        let until = self.ms + CATCH_UP_MS_MAX;
        while self.read()? != *self.model.now() {
            if self.ms > until {
                let found = self.read()?;
                let difference = self.model.now().difference(&found);
                return Err(format!(
                    "it does not catch up (leader / follower):\n{difference}"
                ));
            }
            self.pass(20);
        }
        self.durable()
    }

    /// What it has told since it came back is durable, whatever an earlier life left unsynced.
    fn durable(&self) -> Result<(), String> {
        let image = self.follower().env.crash(1, Damage::LoseAll);
        let network = LocalNetwork::new(1);
        let again = Place::open(image, NodeRole::Follower, &network, "follower", self.scene);
        let again = again.map_err(|e| format!("it comes back once more: {e}"))?;
        let ends = again.dataset().positions();
        let is_kept = |(end, seq): (&strandline::Position, &u64)| end.seq >= *seq;
        match ends.iter().zip(&self.confirmed).all(is_kept) {
            true => Ok(()),
            false => Err(format!(
                "it has {ends:?} once more, the leader was told that {:?} is durable",
                self.confirmed
            )),
        }
    }

    fn read(&self) -> Result<State, String> {
        read_dataset(&self.follower().dataset(), 2).map_err(|e| e.to_string())
    }
}

/// Sweeps the follower's calls.
///
/// # Errors
/// The first call and damage at which something is wrong, and what.
pub fn sweep(seed: u64) -> Result<Tally, String> {
    sweep_of(Scene::Records, seed)
}

/// Sweeps the calls of a follower that begins with a bundle.
///
/// # Errors
/// As [`sweep`].
pub fn bundle_sweep(seed: u64) -> Result<Tally, String> {
    sweep_of(Scene::Bundle, seed)
}

/// Sweeps the calls of a follower that is far behind.
///
/// # Errors
/// As [`sweep`].
pub fn behind_sweep(seed: u64) -> Result<Tally, String> {
    sweep_of(Scene::Behind, seed)
}

fn sweep_of(scene: Scene, seed: u64) -> Result<Tally, String> {
    let mut whole = Pair::new(scene, seed, u64::MAX)?;
    whole.work()?;
    whole.pass(200);
    if whole.read()? != *whole.model.now() {
        return Err("without any death it does not follow".to_owned());
    }
    let stats = whole.follower().dataset().stats();
    let call_count = whole.follower().env.disk.io_count();
    let mut tally = Tally::default();
    tally.add("calls", call_count);
    tally.add("follower's flushes", stats.flush_count);
    tally.add("follower's segments", stats.segment_count as u64);
    tally.add("long pieces", stats.pieces_by_call);
    let follower = whole.follower();
    let (_, node) = follower.up.as_ref().expect("it is up");
    let status = node.follow_status(&follower.dataset());
    tally.add("bundles", status.bundle_count);
    drop(whole);
    for at in 0..=call_count {
        let mut pair = Pair::new(scene, seed, at)?;
        pair.work()?;
        pair.follower
            .as_mut()
            .expect("there is one")
            .env
            .disk
            .crash_at(0);
        for (n, damage) in Damage::ALL.into_iter().map(Some).chain([None]).enumerate() {
            let seed = seed ^ (at << 16) ^ n as u64;
            let judged = pair.after(damage, seed).and_then(|mut after| after.judge());
            judged.map_err(|error| {
                format!("death at call {at} of {call_count}, {damage:?}, seed {seed}: {error}")
            })?;
            tally.add("recoveries", 1);
        }
        tally.add("records confirmed before", pair.confirmed.iter().sum());
    }
    Ok(tally)
}

impl Drop for Pair {
    fn drop(&mut self) {
        for place in std::iter::once(&mut self.leader).chain(&mut self.follower) {
            self.network.detach(place.label);
            place.env.disk.crash_at(0);
            place.up = None;
        }
    }
}
