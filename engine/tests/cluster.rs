//! Nodes over the local transport and simulated disks, stepped by hand.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use strandline::replica::{Campaign, Node, Promote};
use strandline::{
    Arrival, Arrived, Background, Database, Dataset, Durability, Options, Role, ShardRouter,
    WriteToken,
};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{Notifier, Now};
use strandline_wal::io::sim::{Damage, SimEnv};

struct Machine {
    name: String,
    env: SimEnv,
    db: Database,
    node: Node,
}

struct Cluster {
    network: LocalNetwork,
    ms: u64,
    shards: u16,
}

impl Cluster {
    fn new(shards: u16) -> Cluster {
        Cluster {
            network: LocalNetwork::new(7),
            ms: 1_000_000,
            shards,
        }
    }

    fn options(&self) -> Options {
        Options {
            router: ShardRouter::hash(self.shards).unwrap(),
            background: Background::Manual,
            memtable_len_max: 64 << 10,
            segment_len_start: 64 << 10,
            segment_len_max: 128 << 10,
            durability: Durability::Disk,
            ..Options::default()
        }
    }

    fn machine(&self, name: &str, env: SimEnv) -> Machine {
        let db = self.options().open_with("/db", env.env()).unwrap();
        let transport = self.network.attach(name);
        let node = Node::new(name, Box::new(transport), Arc::new(Notifier::default()));
        Machine {
            name: name.to_owned(),
            env,
            db,
            node,
        }
    }

    fn now(&self) -> Now {
        Now {
            mono_ms: self.ms,
            wall_ms: self.ms,
        }
    }

    fn run(&mut self, machines: &mut [&mut Machine], ms: u64) {
        let end = self.ms + ms;
        while self.ms < end {
            self.ms += 1;
            let now = self.now();
            for machine in machines.iter_mut() {
                for _ in 0..100 {
                    if !machine.node.step(now) {
                        break;
                    }
                }
            }
        }
    }
}

fn primary(machine: &Machine) -> Dataset {
    machine.db.dataset("").unwrap()
}

/// Machine `a` leads, machine `b` begins to follow it.
fn leader_and_follower(shards: u16) -> (Cluster, Machine, Machine) {
    let cluster = Cluster::new(shards);
    let mut a = cluster.machine("a", SimEnv::new(1));
    let mut b = cluster.machine("b", SimEnv::new(2));
    let now = cluster.now();
    a.node.lead(now, &primary(&a)).unwrap();
    let follower = b.db.follower("").unwrap();
    b.node.follow(now, &follower, &["a".to_owned()]).unwrap();
    (cluster, a, b)
}

#[test]
fn a_follower_becomes_byte_identical_and_takes_over() {
    for shards in [1, 3] {
        let (mut cluster, mut a, mut b) = leader_and_follower(shards);
        let follower = primary(&b);
        let map = a.db.keyspace("map").unwrap();
        for n in 0..2_000u32 {
            map.put(n.to_be_bytes(), vec![n as u8; 200]).unwrap();
            if n % 100 == 0 {
                cluster.run(&mut [&mut a, &mut b], 5);
                a.db.run_background(10).unwrap();
                b.db.run_background(10).unwrap();
            }
        }
        cluster.run(&mut [&mut a, &mut b], 3_000);
        assert_eq!(primary(&a).positions(), primary(&b).positions());
        assert_eq!(primary(&b).role(), Role::Follower);
        let copy = b.db.keyspace("map").unwrap();
        assert_eq!(copy.iter().count(), 2_000);
        assert!(copy.put("x", "y").is_err());
        // The leader dies; the follower asks nobody but itself: two nodes, one of which every write
        // waited for.
        cluster.network.detach("a");
        let how = Promote {
            peers: vec![],
            node_count: 2,
            follower_count: 1,
            force: false,
        };
        b.node.campaign(cluster.now(), &follower, &how).unwrap();
        cluster.run(&mut [&mut b], 100);
        let Campaign::Won(promotion) = b.node.campaign_of(&follower) else {
            panic!("{:?}", b.node.campaign_of(&follower))
        };
        assert!(promotion.epoch > 1);
        let copy = b.db.keyspace("map").unwrap();
        copy.put("after", "failover").unwrap();
        // The old leader wrote on, unseen; it comes back and is cut.
        map.put("lost", "tail").unwrap();
        drop(map);
        let old = a.env.crash(1, Damage::KeepAll);
        drop(a);
        let mut a = cluster.machine("a", old);
        let again = a.db.follower("").unwrap();
        a.node
            .follow(cluster.now(), &again, &["b".to_owned()])
            .unwrap();
        cluster.run(&mut [&mut a, &mut b], 10_000);
        let status = a.node.follow_status(&again);
        assert_eq!(
            primary(&a).positions(),
            primary(&b).positions(),
            "{status:?}"
        );
        assert!(status.last_cut.is_some(), "{status:?}");
        let map = a.db.keyspace("map").unwrap();
        assert_eq!(map.get("after").unwrap().unwrap(), "failover");
        assert_eq!(map.get("lost").unwrap(), None);
        let saved = a
            .env
            .disk
            .files()
            .keys()
            .filter(|p| p.to_string_lossy().contains("divergent"))
            .count();
        assert!(saved >= 1, "the cut tail is kept");
    }
}

/// The names of what happened to a machine since the last call; the last one's words.
fn happened(machine: &Machine) -> (Vec<&'static str>, String) {
    let events = machine.db.events();
    let said = events.last().map(|event| event.what.to_string());
    let names = events.iter().map(|event| event.what.name()).collect();
    (names, said.unwrap_or_default())
}

#[test]
fn an_operator_hears_of_a_failover_on_every_node() {
    let (mut cluster, mut a, mut b) = leader_and_follower(1);
    let follower = primary(&b);
    a.db.keyspace("map").unwrap().put("key", "value").unwrap();
    cluster.run(&mut [&mut a, &mut b], 3_000);
    assert_eq!(happened(&a), (vec!["joined"], "b follows".to_owned()));
    assert_eq!(happened(&b), (vec!["following"], "following a".to_owned()));
    assert_eq!(happened(&a).0, [""; 0], "each is told once");
    // The leader is cut off and writes on; the other leads, and then tells it so.
    cluster.network.detach("a");
    a.db.keyspace("map").unwrap().put("lost", "tail").unwrap();
    cluster.run(&mut [&mut b], 100);
    let (names, said) = happened(&b);
    assert!(
        names.contains(&"left") && said.starts_with("not connected: "),
        "{names:?} {said}"
    );
    let how = Promote {
        node_count: 2,
        follower_count: 1,
        ..Promote::default()
    };
    b.node.campaign(cluster.now(), &follower, &how).unwrap();
    cluster.run(&mut [&mut b], 100);
    let (names, said) = happened(&b);
    assert_eq!(names.last(), Some(&"promoted"), "{names:?}");
    assert!(said.starts_with("leads epoch "), "{said}");
    let old = a.env.crash(1, Damage::KeepAll);
    drop(a);
    let mut a = cluster.machine("a", old);
    let again = a.db.follower("").unwrap();
    let now = cluster.now();
    a.node.follow(now, &again, &["b".to_owned()]).unwrap();
    b.db.keyspace("map").unwrap().put("new", "value").unwrap();
    cluster.run(&mut [&mut a, &mut b], 10_000);
    let (names, said) = happened(&a);
    assert!(names.contains(&"cut"), "{names:?}");
    assert_eq!(said, "following b");
    assert_eq!(happened(&b).0, ["joined"]);
}

/// A dataset of a node that leads others was led here before another node took over.
#[test]
fn a_dataset_that_is_to_follow_opens_as_a_follower_and_others_as_they_were() {
    let env = SimEnv::new(1);
    let open = |followed: &[&str]| {
        let id = |name: &&str| strandline::DatasetId::new(name).unwrap();
        let options = Options {
            followed: followed.iter().map(id).collect(),
            background: Background::Manual,
            ..Options::default()
        };
        options.open_with("/db", env.env()).unwrap()
    };
    let epoch = |db: &Database, name: &str| db.dataset(name).unwrap().stats().epoch;
    let db = open(&[]);
    let before = (epoch(&db, "x"), epoch(&db, "y"));
    db.close().unwrap();
    drop(db);
    let db = open(&["x"]);
    assert_eq!(db.dataset("x").unwrap().role(), Role::Follower);
    assert_eq!(db.dataset("y").unwrap().role(), Role::Leader);
    assert_eq!((epoch(&db, "x"), epoch(&db, "y")), (0, before.1 + 1));
    let ends = db.dataset("x").unwrap().positions();
    assert!(ends.iter().all(|end| end.epoch.0 <= before.0), "{ends:?}");
}

/// A follower cannot refuse what a leader wrote: on a full disk it takes the room that is kept aside.
#[test]
fn a_follower_with_a_full_disk_takes_what_its_reserve_holds() {
    let (mut cluster, mut a, mut b) = leader_and_follower(1);
    let follower = primary(&b);
    cluster.run(&mut [&mut a, &mut b], 3_000);
    let full = b.env.disk.used_len();
    b.env.disk.limit(Some(full));
    let map = a.db.keyspace("map").unwrap();
    for n in 0..2_000u32 {
        map.put(n.to_be_bytes(), [7; 500]).unwrap();
    }
    for _ in 0..100 {
        cluster.run(&mut [&mut a, &mut b], 30);
        b.db.run_background(10).unwrap();
    }
    let status = b.node.follow_status(&follower);
    assert_eq!(
        primary(&a).positions(),
        primary(&b).positions(),
        "{status:?}"
    );
    assert_eq!(b.db.keyspace("map").unwrap().iter().count(), 2_000);
    assert!(b.env.disk.used_len() <= full);
}

#[test]
fn a_follower_lets_as_many_memtables_wait_as_it_may() {
    let (mut cluster, mut a, mut b) = leader_and_follower(1);
    let follower = primary(&b);
    let map = a.db.keyspace("map").unwrap();
    let mut most = 0;
    for n in 0..2_000u32 {
        map.put(n.to_be_bytes(), [7; 200]).unwrap();
        if n % 50 == 0 {
            cluster.run(&mut [&mut a, &mut b], 5);
            most = most.max(follower.stats().sealed_memtable_count);
        }
    }
    assert_eq!(most, cluster.options().memtable_count_max + 1);
}

/// What is behind by more than its memtables hold must show, and so flush, what it has on the way: it
/// used to wait for the whole of the leader's newest cut, and to take nothing more meanwhile.
#[test]
fn a_follower_that_is_behind_by_more_than_its_memtables_catches_up_from_the_log() {
    for shards in [1, 3] {
        let mut cluster = Cluster::new(shards);
        let mut a = cluster.machine("a", SimEnv::new(1));
        let mut b = cluster.machine("b", SimEnv::new(2));
        let now = cluster.now();
        a.node.lead(now, &primary(&a)).unwrap();
        let follower = b.db.follower("").unwrap();
        b.node.follow(now, &follower, &["a".to_owned()]).unwrap();
        cluster.run(&mut [&mut a, &mut b], 500);
        // The leader keeps its log for a follower that it knows.
        let map = a.db.keyspace("map").unwrap();
        for n in 0..6_000u32 {
            map.put_with(n.to_be_bytes(), vec![n as u8; 300], Durability::Os)
                .unwrap();
        }
        primary(&a).sync().unwrap();
        let mut seen = follower.snapshot().timestamp();
        for _ in 0..400 {
            cluster.run(&mut [&mut a, &mut b], 5);
            let shown = follower.snapshot().timestamp();
            assert!(shown >= seen, "what readers see never goes back");
            seen = shown;
            b.db.run_background(10).unwrap();
        }
        let status = b.node.follow_status(&follower);
        assert_eq!(
            primary(&a).positions(),
            primary(&b).positions(),
            "{status:?}"
        );
        assert_eq!(status.bundle_count, 0, "the log had everything");
        let copy = b.db.keyspace("map").unwrap();
        assert_eq!(copy.iter().count(), 6_000);
    }
}

#[test]
fn a_follower_that_the_log_no_longer_reaches_gets_a_bundle() {
    let mut cluster = Cluster::new(2);
    let mut a = cluster.machine("a", SimEnv::new(1));
    let map = a.db.keyspace("map").unwrap();
    for n in 0..4_000u32 {
        let len = if n % 20 == 0 { 6_000 } else { 150 };
        map.put_with((n % 900).to_be_bytes(), vec![n as u8; len], Durability::Os)
            .unwrap();
    }
    a.db.flush().unwrap();
    primary(&a).compact().unwrap();
    for n in 0..50u32 {
        map.put((5_000 + n).to_be_bytes(), "later").unwrap();
    }
    let mut b = cluster.machine("b", SimEnv::new(2));
    let now = cluster.now();
    a.node.lead(now, &primary(&a)).unwrap();
    let follower = b.db.follower("").unwrap();
    b.node.follow(now, &follower, &["a".to_owned()]).unwrap();
    cluster.run(&mut [&mut a, &mut b], 5_000);
    for n in 0..50u32 {
        map.put((6_000 + n).to_be_bytes(), "even later").unwrap();
    }
    cluster.run(&mut [&mut a, &mut b], 3_000);
    assert_eq!(
        primary(&a).positions(),
        primary(&b).positions(),
        "{}",
        b.name
    );
    let copy = b.db.keyspace("map").unwrap();
    let (ours, theirs): (Vec<_>, Vec<_>) = (
        map.iter()
            .map(|e| e.unwrap())
            .map(|(k, v)| (k, v.to_vec()))
            .collect(),
        copy.iter()
            .map(|e| e.unwrap())
            .map(|(k, v)| (k, v.to_vec()))
            .collect(),
    );
    assert_eq!(ours.len(), 1_000);
    assert!(ours == theirs);
}

#[test]
fn three_nodes_over_real_sockets_fail_over_without_losing_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| Options::default().open(dir.path().join(name)).unwrap();
    let (a, b, c) = (open("a"), open("b"), open("c"));
    let server = {
        a.dataset("").unwrap();
        a.serve("127.0.0.1:0").unwrap()
    };
    assert!(a.serve("127.0.0.1:0").is_err(), "it serves already");
    assert!(b.serve("0.0.0.0:0").is_err(), "only loopback");
    let leader = server.address().to_string();
    let following = [
        b.follow(&leader, "").unwrap(),
        c.follow(&leader, "").unwrap(),
    ];
    let map = a.keyspace("map").unwrap();
    for n in 0..200u32 {
        map.put_with(n.to_be_bytes(), "value", Durability::Durable(1))
            .unwrap();
    }
    // One follower is enough for the writes; the other may still be on its way.
    let primary = a.dataset("").unwrap();
    let started = Instant::now();
    while primary.followers().len() < 2 {
        assert!(started.elapsed() < Duration::from_secs(30), "c never came");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(primary);
    drop((server, map));
    a.close().unwrap();
    drop(a);
    drop(following);
    let how = Promote {
        peers: vec![c.serve("127.0.0.1:0").unwrap().address().to_string()],
        node_count: 3,
        follower_count: 1,
        force: true,
    };
    let promoted = b.dataset("").unwrap();
    promoted.promote(&how).unwrap();
    assert_eq!(promoted.role(), Role::Leader);
    let map = b.keyspace("map").unwrap();
    map.put("after", "failover").unwrap();
}

/// What a follower lacks stays out of the leader's tables, so that it can be cut off its log should the
/// follower lead; then both settle, each by itself.
#[test]
fn a_leader_settles_when_its_followers_have_everything() {
    let (mut cluster, mut a, mut b) = leader_and_follower(1);
    let put = |a: &Machine, from: u32| {
        let map = a.db.keyspace("map").unwrap();
        for n in from..from + 300 {
            map.put(n.to_be_bytes(), [7; 100]).unwrap();
        }
    };
    let settles = |machine: &Machine| {
        machine.env.clock.advance_ms(1_000);
        machine.db.run_background(10).unwrap() > 0
    };
    put(&a, 0);
    cluster.run(&mut [&mut a, &mut b], 1_000);
    assert!(settles(&a) && settles(&b));
    for n in 1..3 {
        put(&a, n * 300);
        cluster.run(&mut [&mut a], 100);
        assert!(!settles(&a) && !settles(&b));
        cluster.run(&mut [&mut a, &mut b], 1_000);
        assert!(settles(&a) && settles(&b));
        assert!(!settles(&a) && !settles(&b));
        for machine in [&a, &b] {
            let stats = primary(machine).stats();
            assert_eq!((stats.run_count, stats.unflushed_len), (1, 0));
            let map = machine.db.keyspace("map").unwrap();
            assert_eq!(map.len().unwrap(), u64::from((n + 1) * 300));
        }
    }
    assert_eq!(primary(&a).positions(), primary(&b).positions());
}

/// Writes at a level, and does not wait.
fn submit(machine: &Machine, key: &str, level: Durability) -> WriteToken {
    let map = machine.db.keyspace("map").unwrap();
    let mut batch = primary(machine).batch();
    batch.put(&map, key, key).unwrap();
    batch.submit_with(level).unwrap().token()
}

#[test]
fn a_follower_tells_how_far_a_write_has_come_and_when_it_is_lost() {
    for shards in [1, 3] {
        let (mut cluster, mut a, mut b) = leader_and_follower(shards);
        let follower = primary(&b);
        let now = |token: &WriteToken, arrival| {
            follower.wait_for(token, arrival, Duration::ZERO).unwrap()
        };
        let arrivals = [Arrival::Received, Arrival::Durable, Arrival::Applied];
        let token = submit(&a, "first", Durability::Os);
        for arrival in arrivals {
            assert_eq!(
                now(&token, arrival),
                Arrived::Timeout,
                "it has no history yet"
            );
        }
        cluster.run(&mut [&mut a, &mut b], 3_000);
        for arrival in arrivals {
            assert_eq!(now(&token, arrival), Arrived::Yes, "{arrival:?}");
        }
        let copy = b.db.keyspace("map").unwrap();
        assert_eq!(copy.get("first").unwrap().unwrap(), "first");

        // Received and not committed: a sync that nobody waits for is not made.
        let token = submit(&a, "second", Durability::Disk);
        cluster.run(&mut [&mut a, &mut b], 50);
        assert_eq!(now(&token, Arrival::Received), Arrived::Yes);
        assert_eq!(now(&token, Arrival::Applied), Arrived::Timeout);
        a.db.run_background(1).unwrap();
        cluster.run(&mut [&mut a, &mut b], 2_000);
        assert_eq!(now(&token, Arrival::Applied), Arrived::Yes);
        assert_eq!(copy.get("second").unwrap().unwrap(), "second");

        // The leader writes on alone, and another node leads on without that.
        cluster.network.detach("a");
        let lost = submit(&a, "lost", Durability::Os);
        assert_eq!(now(&lost, Arrival::Received), Arrived::Timeout);
        let how = Promote {
            node_count: 2,
            follower_count: 1,
            ..Promote::default()
        };
        b.node.campaign(cluster.now(), &follower, &how).unwrap();
        cluster.run(&mut [&mut b], 100);
        for n in 0..10 {
            submit(&b, &format!("{n}"), Durability::Os);
        }
        let end = now(&lost, Arrival::Received);
        assert!(matches!(end, Arrived::LostInFork { .. }), "{end:?}");
        assert_eq!(now(&token, Arrival::Applied), Arrived::Yes);

        // The old leader has records of those numbers, and they are others.
        let new = submit(&b, "new", Durability::Os);
        for n in 0..50 {
            submit(&a, &format!("{n}"), Durability::Os);
        }
        for arrival in arrivals {
            let asked = primary(&a).wait_for(&new, arrival, Duration::ZERO).unwrap();
            assert_eq!(asked, Arrived::Timeout, "{arrival:?}");
        }
    }
}

#[test]
fn over_real_sockets_who_waits_for_a_write_at_a_follower_reads_it_there() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [leader, other] = [0, 1].map(|n| Options::default().open(dirs[n].path()).unwrap());
    let (map, dataset) = (leader.keyspace("map").unwrap(), leader.dataset("").unwrap());
    let server = leader.serve("127.0.0.1:0").unwrap();
    let address = server.address().to_string();
    let following = other.follow(&address, "primary").unwrap();
    let follower = other.dataset("").unwrap();
    let mut lags = Vec::new();
    for n in 0..200u32 {
        let mut batch = dataset.batch();
        batch.put(&map, "key", n.to_be_bytes()).unwrap();
        let ticket = batch.submit_with(Durability::Durable(1)).unwrap();
        let token: WriteToken = ticket.token().to_string().parse().unwrap();
        let start = Instant::now();
        let timeout = Duration::from_secs(30);
        let arrived = follower
            .wait_for(&token, Arrival::Applied, timeout)
            .unwrap();
        lags.push(start.elapsed());
        assert_eq!(arrived, Arrived::Yes, "{:?}", following.status());
        let copy = other.keyspace("map").unwrap();
        assert_eq!(copy.get("key").unwrap().unwrap(), n.to_be_bytes());
        assert_eq!(ticket.wait().unwrap().level, Durability::Durable(1));
    }
    lags.sort();
    println!(
        "a write is seen at the follower after {:?} (median), {:?} (most)",
        lags[100], lags[199]
    );
}
