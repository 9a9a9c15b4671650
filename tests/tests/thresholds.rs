//! What passes 2^32 on its way to another node, and the last of those numbers that have one.
//!
//! Deaths on the way past 2^32 are a workload of the sweeps, files longer than 4 GiB are tests of tables
//! and of recovery.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use strandline::replica::{Campaign, Node, Promote};
use strandline::verify::verify;
use strandline::{Background, Database, Durability, Options};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{Notifier, Now};
use strandline_tests::high::{self, WRAP};
use strandline_tests::plan::small_options;
use strandline_tests::run::ROOT;
use strandline_wal::io::sim::{Damage, SimEnv};

struct Machine {
    env: SimEnv,
    db: Database,
    node: Node,
}

fn machine(network: &LocalNetwork, name: &str, env: SimEnv) -> Machine {
    let db = small_options().open_with(ROOT, env.env()).unwrap();
    let transport = Box::new(network.attach(name));
    let node = Node::new(name, transport, Arc::new(Notifier::default()));
    Machine { env, db, node }
}

/// Runs the nodes for so many milliseconds; returns the time then.
fn run(now: Now, machines: &mut [&mut Machine], ms: u64) -> Now {
    let at = |ms| Now {
        mono_ms: now.mono_ms + ms,
        wall_ms: now.wall_ms + ms,
    };
    for ms in 0..ms {
        for machine in machines.iter_mut() {
            while machine.node.step(at(ms)) {}
        }
    }
    at(ms)
}

fn put(machine: &Machine, from: u32, to: u32) {
    let map = machine.db.keyspace("map").unwrap();
    for n in from..to {
        map.put(n.to_be_bytes(), vec![n as u8; 9_000]).unwrap();
    }
}

fn count(machine: &Machine) -> usize {
    machine.db.keyspace("map").unwrap().iter().count()
}

/// A follower takes a bundle just below 2^32 and the log from there, dies, goes on, and leads.
#[test]
fn a_follower_takes_what_passes_two_to_the_32_and_leads() {
    let network = LocalNetwork::new(7);
    let high = high::machine(SimEnv::new(1), &small_options());
    let mut a = machine(&network, "a", high);
    let mut b = machine(&network, "b", SimEnv::new(2));
    let mut now = Now {
        mono_ms: 1_000,
        wall_ms: WRAP - 1,
    };
    let leader = a.db.dataset("").unwrap();
    let follower = b.db.follower("").unwrap();
    a.node.lead(now, &leader).unwrap();
    b.node.follow(now, &follower, &["a".to_owned()]).unwrap();
    now = run(now, &mut [&mut a, &mut b], 3_000);
    let status = b.node.follow_status(&follower);
    assert!(status.bundle_count > 0, "{status:?}");
    let begun = leader.positions()[0].seq;
    assert!(begun < WRAP && follower.positions() == leader.positions());

    put(&a, 0, 30);
    now = run(now, &mut [&mut a, &mut b], 3_000);
    assert!(leader.positions()[0].seq > WRAP);
    assert_eq!(follower.positions(), leader.positions());
    b.db.flush().unwrap();
    network.detach("b");
    drop((b.node, follower));
    let mut b = machine(&network, "b", b.env.crash(3, Damage::LoseAll));
    let follower = b.db.follower("").unwrap();
    b.node.follow(now, &follower, &["a".to_owned()]).unwrap();
    put(&a, 30, 60);
    now = run(now, &mut [&mut a, &mut b], 10_000);
    assert_eq!(follower.positions(), leader.positions());
    assert_eq!((count(&a), count(&b)), (60, 60));

    network.detach("a");
    let how = Promote {
        peers: Vec::new(),
        node_count: 2,
        follower_count: 1,
        force: false,
    };
    b.node.campaign(now, &follower, &how).unwrap();
    run(now, &mut [&mut b], 100);
    let state = b.node.campaign_of(&follower);
    assert!(matches!(state, Campaign::Won(_)), "{state:?}");
    put(&b, 60, 70);
    b.db.flush().unwrap();
    follower.compact().unwrap();
    assert_eq!(count(&b), 70);
    drop((b.node, follower));
    b.db.close().unwrap();
    let found = verify(Path::new(ROOT), &b.env.env()).unwrap();
    assert_eq!(found.problems, []);
}

/// A clock that stands still is outrun by the counter beside it, 65,536 batches a millisecond.
#[test]
fn more_batches_than_the_counter_holds_in_one_millisecond_stay_in_order() {
    let machine = SimEnv::new(1);
    let db = small_options().open_with(ROOT, machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    let dataset = db.dataset("").unwrap();
    let mut last = dataset.snapshot().timestamp();
    let first_ms = last.millis();
    for n in 0..70_000u32 {
        map.put_with("key", n.to_be_bytes(), Durability::Memory)
            .unwrap();
        let now = dataset.snapshot().timestamp();
        assert!(now > last, "{n}: {now} behind {last}");
        last = now;
    }
    assert_eq!(last.millis(), first_ms + 1);
    db.close().unwrap();
    let db = small_options().open_with(ROOT, machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    assert_eq!(map.get("key").unwrap().unwrap(), 69_999u32.to_be_bytes());
    map.put("key", "later").unwrap();
    assert!(db.dataset("").unwrap().snapshot().timestamp() > last);
    assert_eq!(map.get("key").unwrap().unwrap(), "later");
}

/// A version has 48 bits of milliseconds. Behind the last one a write is refused: the next number would be
/// 0, and what it wrote hidden by everything older.
#[test]
fn behind_the_last_version_writes_are_refused() {
    let machine = SimEnv::new(1);
    let options = Options {
        background: Background::Manual,
        ..Options::default()
    };
    let db = options.clone().open_with(ROOT, machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    machine.clock.jump_to_ms((1 << 48) - 1);
    let mut count = 0u32;
    let error = loop {
        match map.put_with("key", count.to_be_bytes(), Durability::Memory) {
            Ok(()) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 70_000, "the version wraps");
    };
    assert_eq!(count, 65_535);
    assert!(error.to_string().contains("version of a batch"), "{error}");
    let shown = |db: &Database| db.keyspace("map").unwrap().get("key").unwrap().unwrap();
    assert_eq!(shown(&db), (count - 1).to_be_bytes());
    db.close().unwrap();
    let reader = options.open_read_only_with(ROOT, machine.env()).unwrap();
    assert_eq!(shown(&reader), (count - 1).to_be_bytes());
}
