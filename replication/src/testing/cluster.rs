//! A cluster of test stores on one thread: simulated disks, a simulated network, one clock.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use strandline_wal::io::sim::{Damage, SimEnv};
use strandline_wal::{Epoch, ShardId};

use super::{Setup, TestStore};
use crate::candidate::CandidateOptions;
use crate::driver::{Command, Driver, Now};
use crate::follower::FollowerOptions;
use crate::leader::LeaderOptions;
use crate::message::Wants;
use crate::quorum::{Level, Policy};
use crate::store::{FollowerStore, LogSource, Report};
use crate::transport::local::LocalNetwork;

/// One node, alive.
pub(crate) struct Node {
    pub sim: SimEnv,
    pub driver: Driver,
    pub store: Arc<TestStore>,
}

pub(crate) struct Cluster {
    pub network: LocalNetwork,
    pub nodes: BTreeMap<String, Node>,
    /// Disks of nodes that are down.
    pub down: BTreeMap<String, SimEnv>,
    pub setups: BTreeMap<String, Setup>,
    pub now_ms: u64,
    pub policy: Policy,
    pub wants: Wants,
    seed: u64,
}

pub(crate) const DIR: &str = "/data";

impl Cluster {
    pub fn new(seed: u64, names: &[&str]) -> Cluster {
        let members = names.iter().map(|name| super::node(name)).collect();
        Cluster {
            network: LocalNetwork::new(seed),
            nodes: BTreeMap::new(),
            down: names
                .iter()
                .enumerate()
                .map(|(n, name)| ((*name).to_owned(), SimEnv::new(seed * 100 + n as u64)))
                .collect(),
            setups: names
                .iter()
                .map(|name| ((*name).to_owned(), Setup::new(name)))
                .collect(),
            now_ms: 1_000,
            policy: Policy::Fixed(members),
            wants: Wants {
                received: true,
                durable: true,
                applied: true,
            },
            seed,
        }
    }

    /// Changes how all nodes are opened from now on.
    pub fn with(mut self, change: impl Fn(&mut Setup)) -> Cluster {
        self.setups.values_mut().for_each(change);
        self
    }

    pub fn now(&self) -> Now {
        Now {
            mono_ms: self.now_ms,
            wall_ms: 1_700_000_000_000 + self.now_ms,
        }
    }

    fn attach(&mut self, name: &str, sim: SimEnv, store: Arc<TestStore>) {
        let transport = Box::new(self.network.attach(name));
        let driver = Driver::new(transport, Arc::clone(&store.notifier));
        self.nodes
            .insert(name.to_owned(), Node { sim, driver, store });
    }

    fn sim(&mut self, name: &str) -> SimEnv {
        self.down
            .remove(name)
            .unwrap_or_else(|| panic!("{name} is down"))
    }

    /// Opens a node as leader of an epoch.
    pub fn lead(&mut self, name: &str, epoch: u32) {
        let (sim, setup) = (self.sim(name), self.setups[name].clone());
        let dir = PathBuf::from(DIR);
        let store = TestStore::lead(&sim.env(), &dir, setup, Epoch(epoch)).unwrap();
        self.attach(name, sim, Arc::clone(&store));
        let options = LeaderOptions {
            policy: self.policy.clone(),
            wants: self.wants,
            ..LeaderOptions::default()
        };
        let now = self.now();
        let node = self.nodes.get_mut(name).unwrap();
        node.driver.command(now, Command::Lead(store, options));
    }

    /// Opens a node as follower of whichever of the others leads.
    pub fn follow(&mut self, name: &str) {
        let (sim, setup) = (self.sim(name), self.setups[name].clone());
        let store = TestStore::follow(&sim.env(), &PathBuf::from(DIR), setup).unwrap();
        self.attach(name, sim, Arc::clone(&store));
        let options = self.follower_options(name);
        let now = self.now();
        let node = self.nodes.get_mut(name).unwrap();
        node.driver.command(now, Command::Follow(store, options));
    }

    pub fn follower_options(&self, name: &str) -> FollowerOptions {
        FollowerOptions {
            peers: self.others(name),
            window: 256 << 10,
            ..FollowerOptions::default()
        }
    }

    pub fn others(&self, name: &str) -> Vec<String> {
        self.setups
            .keys()
            .filter(|other| *other != name)
            .cloned()
            .collect()
    }

    /// A follower wants to lead; the outcome is in its reports.
    pub fn campaign(&mut self, name: &str, needed: usize) {
        let options = CandidateOptions {
            peers: self.others(name),
            needed,
            ..CandidateOptions::default()
        };
        let now = self.now();
        let node = self.nodes.get_mut(name).unwrap();
        node.store.reports.lock().clear();
        let store = Arc::clone(&node.store);
        node.driver.command(now, Command::Campaign(store, options));
    }

    /// The epoch that a candidate was elected for, or why it was not.
    pub fn outcome(&self, name: &str) -> Option<Result<Epoch, crate::Error>> {
        let reports = self.nodes[name].store.reports.lock();
        reports.iter().find_map(|report| match report {
            Report::Elected { epoch } => Some(Ok(*epoch)),
            Report::NotElected { why } => Some(Err(why.clone())),
            _ => None,
        })
    }

    /// Campaigns to the end and opens the epoch where it was elected.
    pub fn promote(&mut self, name: &str, needed: usize) -> Result<Epoch, crate::Error> {
        self.campaign(name, needed);
        self.run_until(20_000, |c| c.outcome(name).is_some());
        let epoch = self.outcome(name).expect("a campaign ends")?;
        self.stop(name);
        self.lead(name, epoch.0);
        Ok(epoch)
    }

    /// The process ends; the machine and what it has not synced live on.
    pub fn stop(&mut self, name: &str) {
        let node = self
            .nodes
            .remove(name)
            .unwrap_or_else(|| panic!("{name} is up"));
        self.network.detach(name);
        let Node { sim, driver, store } = node;
        drop((driver, store));
        self.down.insert(name.to_owned(), sim);
    }

    /// The machine crashes: what was not synced may be lost.
    pub fn crash(&mut self, name: &str, damage: Damage) {
        self.stop(name);
        self.seed += 1;
        let sim = self.down.remove(name).expect("it was stopped");
        self.down
            .insert(name.to_owned(), sim.crash(self.seed, damage));
    }

    /// Lets `ms` milliseconds pass.
    pub fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            let now = self.now();
            for node in self.nodes.values_mut() {
                let mut rounds = 0;
                while node.driver.step(now) {
                    rounds += 1;
                    assert!(rounds < 100_000, "a step that never ends");
                }
            }
            self.now_ms += 1;
        }
    }

    /// Lets time pass until something holds; fails after `ms` milliseconds.
    pub fn run_until(&mut self, ms: u64, holds: impl Fn(&Cluster) -> bool) {
        let end = self.now_ms + ms;
        while !holds(self) {
            if self.now_ms >= end {
                for (name, node) in &self.nodes {
                    let reports = node.store.reports.lock();
                    let last = reports.len().saturating_sub(8);
                    reports[last..]
                        .iter()
                        .for_each(|report| println!("{name}: {report:?}"));
                    let store = &node.store;
                    for shard in store.shards() {
                        println!(
                            "{name}: ends {:?}, promise {:?}",
                            store.end(shard),
                            store.promised()
                        );
                    }
                }
                panic!("it did not happen within {ms} ms (seed {})", self.seed);
            }
            self.run(1);
        }
    }

    pub fn store(&self, name: &str) -> &Arc<TestStore> {
        &self.nodes[name].store
    }

    pub fn write(&self, name: &str, shard: u16, body: &[u8]) -> Option<u64> {
        self.store(name).write(ShardId(shard), body)
    }

    /// Whether `name` has everything of `leader`, byte for byte, durable and applied.
    pub fn is_caught_up(&self, leader: &str, name: &str) -> bool {
        let (theirs, mine) = (self.store(leader), self.store(name));
        theirs.shards().into_iter().all(|shard| {
            let last_seq = theirs.log(shard).last_seq();
            mine.log(shard).synced_seq() == last_seq
                && mine.log(shard).last_seq() == last_seq
                && mine.applied(shard) == last_seq
        })
    }

    /// Holds where the confirmed mark of a leader's shard has reached `seq`.
    pub fn is_confirmed(&self, leader: &str, shard: u16, level: Level, seq: u64) -> bool {
        self.store(leader).confirmed_at(ShardId(shard), level) >= seq
    }
}
