//! Random histories of three nodes: what was confirmed on disks is never lost, and logs that say they
//! are the same are the same.

use std::collections::BTreeMap;

use strandline_wal::ShardId;
use strandline_wal::io::sim::Damage;

use super::{S0, same_logs, stopped};
use crate::ids::Lineage;
use crate::message::tests::Seed;
use crate::quorum::{Level, promises_needed};
use crate::store::{FollowerStore, LeaderStore, LogSource};
use crate::testing::cluster::Cluster;
use crate::transport::local::Faults;

const NAMES: [&str; 3] = ["a", "b", "c"];
const CONFIRMED: Level = Level::Durable(1);

struct Run {
    c: Cluster,
    seed: Seed,
    leader: Option<&'static str>,
    /// Records that were confirmed to a client: sequence and body.
    confirmed: BTreeMap<u64, Vec<u8>>,
    /// Records that the present leader wrote and that are not confirmed.
    open: BTreeMap<u64, Vec<u8>>,
    /// Records that any node ever showed to readers, as committed.
    shown: BTreeMap<u64, Vec<u8>>,
    promotions: u32,
    crashes: u32,
}

impl Run {
    fn new(number: u64) -> Run {
        let mut c = Cluster::new(number, &NAMES).with(|setup| setup.level = Some(CONFIRMED));
        for follower in ["b", "c"] {
            c.setups.get_mut(follower).unwrap().lineage = Lineage::default();
        }
        c.lead("a", 1);
        c.follow("b");
        c.follow("c");
        // The first epoch is nobody's vote: whoever may vote later has promised it by following.
        c.store("a").sync(S0).unwrap();
        c.run_until(5_000, |c| {
            c.is_caught_up("a", "b") && c.is_caught_up("a", "c")
        });
        let (seed, leader) = (Seed(number ^ 0xc4a0), Some("a"));
        let (confirmed, open, shown) = Default::default();
        Run {
            c,
            seed,
            leader,
            confirmed,
            open,
            shown,
            promotions: 0,
            crashes: 0,
        }
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.seed.next() % of.len() as u64) as usize]
    }

    /// What the client was told: on the leader's disk and on a follower's.
    fn observe(&mut self) {
        let Some(leader) = self.leader else { return };
        let store = self.c.store(leader);
        let seq = store
            .confirmed_at(S0, CONFIRMED)
            .min(store.log(S0).synced_seq());
        if store.fenced_by().is_none() {
            let rest = self.open.split_off(&(seq + 1));
            self.confirmed.append(&mut self.open);
            self.open = rest;
        }
    }

    /// What readers saw somewhere must stay what it is everywhere.
    fn observe_shown(&mut self) {
        for (name, node) in &self.c.nodes {
            let committed = match Some(name.as_str()) == self.leader {
                true => node.store.marks(S0).committed,
                false => node.store.applied(S0),
            };
            for (seq, body) in node.store.records(S0).into_iter().take(committed as usize) {
                let known = self.shown.entry(seq).or_insert_with(|| body.clone());
                assert!(
                    *known == body,
                    "record {seq} was shown and is another on {name}"
                );
            }
        }
    }

    fn act(&mut self) {
        match self.seed.next() % 20 {
            0..=9 => {
                if let Some(leader) = self.leader {
                    for _ in 0..self.seed.next() % 8 {
                        let len = 1 + self.seed.next() % 3000;
                        let body = vec![self.seed.next() as u8; len as usize];
                        if let Some(seq) = self.c.write(leader, 0, &body) {
                            self.open.insert(seq, body);
                        }
                    }
                }
            }
            10..=11 => {
                if let Some(leader) = self.leader {
                    self.c.store(leader).sync(S0).unwrap();
                }
            }
            12..=13 => {
                let (a, b) = (self.pick(&NAMES), self.pick(&NAMES));
                self.c.network.cut(a, b);
            }
            14..=15 => self.c.network.heal(),
            16..=17 => {
                let name = self.pick(&NAMES);
                if Some(name) != self.leader {
                    self.crash(name);
                    self.c.follow(name);
                }
            }
            18 => self.fail_over(),
            _ => {
                let faults = Faults {
                    delay_ms: (1, 1 + self.seed.next() % 30),
                    loss_permille: self.pick(&[0, 0, 5, 30]),
                    repeat_permille: self.pick(&[0, 50]),
                };
                self.c.network.set_faults(faults);
            }
        }
        let ms = self.seed.next() % 40;
        self.c.run(ms);
        self.observe();
        self.observe_shown();
    }

    fn crash(&mut self, name: &str) {
        let damage = self.pick(&[
            Damage::LoseAll,
            Damage::Sectors,
            Damage::TornLast,
            Damage::KeepAll,
        ]);
        self.c.crash(name, damage);
        self.crashes += 1;
    }

    /// The leader dies and another node takes over, as the fixed list allows.
    fn fail_over(&mut self) {
        let Some(old) = self.leader.take() else {
            return;
        };
        // A part of the time it lives on, cut off, and must not confirm anything any more.
        let lives = self.seed.next().is_multiple_of(2);
        if lives {
            for name in NAMES.iter().filter(|name| **name != old) {
                self.c.network.part(old, name);
            }
        } else {
            self.crash(old);
        }
        self.open.clear();
        let others: Vec<_> = NAMES.into_iter().filter(|name| *name != old).collect();
        let new = self.pick(&others);
        if self.c.promote(new, promises_needed(3, 1)).is_err() {
            // Cut off or unlucky: heal and try once more, from another one's point of view.
            self.c.stop(new);
            self.c.follow(new);
            self.c.network.heal();
            if lives {
                self.c.network.part(old, others[0]);
                self.c.network.part(old, others[1]);
            }
            self.c.network.set_faults(Faults::default());
            self.c
                .promote(new, promises_needed(3, 1))
                .expect("two nodes see each other");
        }
        if lives {
            let confirmed = self.c.store(old).confirmed_at(S0, CONFIRMED);
            self.c.run(50);
            assert_eq!(self.c.store(old).confirmed_at(S0, CONFIRMED), confirmed);
            self.c.stop(old);
        }
        self.c.follow(old);
        self.leader = Some(new);
        self.promotions += 1;
    }

    /// Everything heals; all must agree and hold what was confirmed.
    fn settle(&mut self) {
        self.c.network.heal();
        self.c.network.set_faults(Faults::default());
        let leader = self.leader.expect("there is one between actions");
        self.c.store(leader).sync(S0).unwrap();
        let others: Vec<_> = NAMES.into_iter().filter(|name| *name != leader).collect();
        self.c.run_until(60_000, |c| {
            others.iter().all(|name| c.is_caught_up(leader, name))
        });
        self.observe();
        for name in others {
            assert!(same_logs(&self.c, leader, name));
            assert!(stopped(&self.c, name).is_none());
        }
        let records: BTreeMap<_, _> = self
            .c
            .store(leader)
            .records(ShardId(0))
            .into_iter()
            .collect();
        for (seq, body) in &self.shown {
            assert!(
                records.get(seq) == Some(body),
                "record {seq} was shown and is not there"
            );
        }
        for (seq, body) in &self.confirmed {
            assert!(
                records.get(seq) == Some(body),
                "record {seq} was confirmed and is not there"
            );
        }
    }
}

fn check(number: u64) -> (u32, u32, usize) {
    let mut run = Run::new(number);
    for _ in 0..120 {
        run.act();
    }
    run.settle();
    (run.promotions, run.crashes, run.confirmed.len())
}

#[test]
fn nothing_confirmed_is_lost_over_many_seeds() {
    let (mut promotions, mut crashes, mut confirmed) = (0, 0, 0);
    let only = std::env::var("SEED")
        .ok()
        .map(|seed| seed.parse::<u64>().unwrap());
    let count = std::env::var("SEEDS")
        .ok()
        .map_or(10, |count| count.parse().unwrap());
    for number in only.map_or(0..count, |seed| seed..seed + 1) {
        println!("SEED={number}");
        let (p, c, n) = check(number);
        promotions += p;
        crashes += c;
        confirmed += n;
    }
    println!("{promotions} promotions, {crashes} crashes, {confirmed} confirmed records");
    assert!(only.is_some() || promotions > 20 && crashes > 50 && confirmed > 500);
}
