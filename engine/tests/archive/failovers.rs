//! Archives of several leaders.

use std::sync::Arc;
use strandline::Error;
use strandline::archive::{
    ArchiveError, ArchiveOptions, ArchiveStore, Faults, MemoryArchive, Target, Uploader, check,
    prune,
};
use strandline_replication::transport::local::LocalNetwork;
use strandline_wal::io::sim::SimEnv;

use crate::kit::*;

/// Continuous load, two failovers, a store that fails, deposed leaders that go on uploading logs and bases:
/// 20 random positions and 5 times.
#[test]
fn any_point_is_restored_as_it_was() {
    let count = std::env::var("STRANDLINE_ARCHIVE_SEEDS").ok();
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(12);
    for seed in 1..=count {
        any_point_of(seed, 1 + (seed % 3) as u16);
    }
}

fn any_point_of(seed: u64, shards: u16) {
    let faults = Faults {
        unavailable: 40,
        lost_answer: 40,
        late: 20,
    };
    let archive = MemoryArchive::new(seed, faults);
    let store: Arc<dyn ArchiveStore> = Arc::new(archive.clone());
    let mut dice = Dice(seed);
    let mut model = Model::default();
    let mut cluster = Cluster {
        network: LocalNetwork::new(seed),
        ms: START_MS,
        shards,
    };
    let mut leader = cluster.machine("n0", SimEnv::new(seed));
    leader.node.lead(cluster.now(), &primary(&leader)).unwrap();
    for failover in 0..3 {
        let name = format!("n{}", failover + 1);
        let mut follower = cluster.machine(&name, SimEnv::new(seed + 10 + failover));
        let dataset = follower.db.follower("").unwrap();
        let peers = [leader.name.clone()];
        follower
            .node
            .follow(cluster.now(), &dataset, &peers)
            .unwrap();
        let mut uploader = Uploader::new(&primary(&leader), Arc::clone(&store), often());
        // Towards the end the follower hears nothing, and the archive goes on for a while.
        let (heard, flushed) = (600 + dice.roll(99), 650 + dice.roll(49));
        for n in 0..700 {
            cluster.ms += 1 + dice.roll(3);
            for machine in [&leader, &follower] {
                machine.env.clock.jump_to_ms(cluster.ms);
            }
            write(&leader.db, &mut dice, &mut model, cluster.ms);
            if n < heard && n % 7 == 0 {
                cluster.run(&mut [&mut leader, &mut follower], 3);
            }
            if n % 20 == 0 {
                leader.db.run_background(10).unwrap();
                follower.db.run_background(10).unwrap();
            }
            if n == flushed {
                primary(&leader).flush().unwrap();
            }
            if n % 11 == 0 || n == flushed + 1 {
                // A store that does not answer is asked again.
                let _ = uploader.step();
            }
        }
        if failover == 2 {
            settle(&mut uploader);
            break;
        }
        // The deposed leader goes on for a while, before its successor has begun and after.
        cluster.network.detach(&leader.name);
        promote(&mut cluster, &mut follower);
        let end: Vec<u64> = seqs(&primary(&follower))
            .iter()
            .map(|seq| seq - 1)
            .collect();
        let mut next = Uploader::new(&primary(&follower), Arc::clone(&store), often());
        for turn in 0..4 + dice.roll(8) {
            let map = leader.db.keyspace("map").unwrap();
            let len = 1_000 + dice.roll(90_000) as usize;
            map.put("lost", vec![turn as u8; len]).unwrap();
            match dice.roll(4) {
                0 => primary(&leader).flush().unwrap(),
                1 => {
                    let _ = next.step();
                }
                _ => {
                    let _ = uploader.step();
                }
            }
        }
        settle(&mut next);
        primary(&leader).flush().unwrap();
        for _ in 0..3 {
            let _ = uploader.step();
        }
        drop((uploader, next));
        model.cut(&end);
        leader = follower;
    }
    archive.set_faults(Faults::default());
    let report = check(&leader.env.env(), &archive, &id(), None)
        .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    assert!(
        report.base_count > 2 && report.break_count == 0,
        "seed {seed}: {report:?}"
    );
    let first = restored(&archive, shards, &Target::Position(vec![0; shards.into()]));
    let oldest = match first {
        // A base came first that has some records in tables.
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("the oldest point"), "seed {seed}: {text}");
            100
        }
        Ok(_) => 1,
    };
    for n in 0..25 {
        let count = oldest + dice.roll((model.ops.len() - oldest) as u64 + 1) as usize;
        let last = &model.ops[count - 1];
        let target = match n < 20 {
            true => Target::Position(last.seqs.clone()),
            false => Target::Time(last.ms),
        };
        let (found, report) = restored(&archive, shards, &target)
            .unwrap_or_else(|error| panic!("seed {seed}, {target:?}: {error}"));
        assert!(
            found == model.at(count),
            "seed {seed}, {target:?}, {report:?}"
        );
    }
    for target in [Target::Latest, Target::Time(u64::MAX)] {
        let (found, report) = restored(&archive, shards, &target).unwrap();
        assert!(
            found == model.at(model.ops.len()),
            "seed {seed}: {report:?}"
        );
        assert_eq!(report.seqs, seqs(&primary(&leader)));
    }
    let mut beyond = seqs(&primary(&leader));
    beyond.iter_mut().for_each(|seq| *seq += 1);
    let error = restored(&archive, shards, &Target::Position(beyond)).unwrap_err();
    assert!(
        error.to_string().contains("the archive ends at record"),
        "{error}"
    );
    // A record lost where nothing else has it is found.
    let names = archive.objects().into_keys();
    let segments: Vec<String> = names.filter(|name| name.ends_with(".seg")).collect();
    let (mut gaps, mut n) = (0, dice.roll(segments.len() as u64) as usize);
    for _ in 0..segments.len() {
        n = (n + 1) % segments.len();
        let bytes = archive.objects()[&segments[n]].clone();
        archive.lose(&segments[n]);
        match check(&leader.env.env(), &archive, &id(), None) {
            Err(Error::Archive(ArchiveError::Gap(_) | ArchiveError::Missing { .. })) => gaps += 1,
            Err(error) => panic!("seed {seed}, {}: {error}", segments[n]),
            // Of a deposed leader, of before the oldest base, or of two leaders.
            Ok(_) => {}
        }
        archive.put(&segments[n], &bytes).unwrap();
        if gaps == 2 {
            break;
        }
    }
    assert!(gaps > 0, "seed {seed}");
}

/// Two machines and an archive; the second one stops to hear the first.
struct Pair {
    cluster: Cluster,
    leader: Machine,
    follower: Machine,
    archive: MemoryArchive,
    model: Model,
    dice: Dice,
}

impl Pair {
    fn new() -> Pair {
        let mut cluster = Cluster {
            network: LocalNetwork::new(1),
            ms: START_MS,
            shards: 1,
        };
        let mut leader = cluster.machine("n0", SimEnv::new(1));
        leader.node.lead(cluster.now(), &primary(&leader)).unwrap();
        let mut follower = cluster.machine("n1", SimEnv::new(2));
        let dataset = follower.db.follower("").unwrap();
        let peers = [leader.name.clone()];
        follower
            .node
            .follow(cluster.now(), &dataset, &peers)
            .unwrap();
        cluster.run(&mut [&mut leader, &mut follower], 50);
        Pair {
            cluster,
            leader,
            follower,
            archive: MemoryArchive::default(),
            model: Model::default(),
            dice: Dice(5),
        }
    }

    fn uploader(&self, machine: &Machine) -> Uploader {
        let store = Arc::new(self.archive.clone());
        Uploader::new(&primary(machine), store, ArchiveOptions::default())
    }

    /// Writes to the leader; its follower hears it, or not.
    fn write(&mut self, count: u64, is_heard: bool) {
        for _ in 0..count {
            self.cluster.ms += 1;
            for machine in [&self.leader, &self.follower] {
                machine.env.clock.jump_to_ms(self.cluster.ms);
            }
            let ms = self.cluster.ms;
            write(&self.leader.db, &mut self.dice, &mut self.model, ms);
        }
        if is_heard {
            let machines = &mut [&mut self.leader, &mut self.follower];
            self.cluster.run(machines, 50);
        }
    }

    fn fail_over(&mut self) {
        self.cluster.network.detach(&self.leader.name);
        promote(&mut self.cluster, &mut self.follower);
        let end: Vec<u64> = seqs(&primary(&self.follower));
        self.model
            .cut(&end.iter().map(|seq| seq - 1).collect::<Vec<_>>());
    }

    fn is_restored(&self) {
        let (found, report) = restored(&self.archive, 1, &Target::Latest).unwrap();
        assert!(found == self.model.at(self.model.ops.len()), "{report:?}");
    }
}

#[test]
fn a_base_that_a_failover_cut_off_is_made_good() {
    for has_other in [false, true] {
        let mut pair = Pair::new();
        let mut old = pair.uploader(&pair.leader);
        if has_other {
            pair.write(50, true);
            settle(&mut old);
        }
        drop(old);
        pair.write(100, true);
        pair.write(30, false);
        primary(&pair.leader).flush().unwrap();
        // Another of the same leadership; where it is the first, its base is the only one.
        let mut old = Uploader::new(
            &primary(&pair.leader),
            Arc::new(pair.archive.clone()),
            ArchiveOptions {
                checkpoint_len: 1,
                ..ArchiveOptions::default()
            },
        );
        settle(&mut old);
        pair.fail_over();
        let mut next = pair.uploader(&pair.follower);
        settle(&mut next);
        pair.is_restored();
        let env = pair.follower.env.env();
        let report = check(&env, &pair.archive, &id(), None).unwrap();
        assert_eq!(report.base_count, 1, "{report:?}");
        // Retention does not rely on it either.
        let options = ArchiveOptions {
            pitr_window_ms: 1,
            retention_ms: 1,
            ..ArchiveOptions::default()
        };
        pair.follower.env.clock.advance_ms(10_000);
        prune(&env, &pair.archive, &id(), None, &options).unwrap();
        pair.is_restored();
        check(&env, &pair.archive, &id(), None).unwrap();
    }
}

#[test]
fn a_takeover_hides_nothing_that_is_archived() {
    let mut pair = Pair::new();
    pair.write(60, true);
    let mut old = pair.uploader(&pair.leader);
    settle(&mut old);
    pair.fail_over();
    let archived = pair.archive.request_count();
    // The list, the terms that are read, the new one; and then the store is gone.
    let mut next = pair.uploader(&pair.follower);
    for n in 1..12 {
        pair.archive.dies_at(Some(archived + n));
        let _ = next.step();
        pair.archive.dies_at(None);
        pair.is_restored();
        pair.archive.dies_at(Some(0));
    }
    pair.archive.dies_at(None);
    settle(&mut next);
    pair.is_restored();
}
