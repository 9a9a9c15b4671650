//! What a leader keeps for followers: nodes over the local transport and simulated disks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use strandline::replica::Node;
use strandline::retention::SlotState;
use strandline::{Background, Database, Dataset, Durability, ErrorKind, Options};
use strandline_replication::transport::local::{Faults, LocalNetwork, LocalTransport};
use strandline_replication::transport::{ConnId, Transport, TransportEvent};
use strandline_replication::{Notifier, Now};
use strandline_wal::io::sim::{Damage, SimEnv};

const HOUR_MS: u64 = 3_600_000;

/// Counts what it sends.
struct Counting {
    below: LocalTransport,
    sent: Arc<AtomicU64>,
}

impl Transport for Counting {
    fn connect(&mut self, now: u64, to: &str) -> strandline_replication::Result<ConnId> {
        self.below.connect(now, to)
    }

    fn send(
        &mut self,
        now: u64,
        conn: ConnId,
        frame: Vec<u8>,
    ) -> strandline_replication::Result<()> {
        self.sent.fetch_add(frame.len() as u64, Ordering::Relaxed);
        self.below.send(now, conn, frame)
    }

    fn room(&self, conn: ConnId) -> usize {
        self.below.room(conn)
    }

    fn poll(&mut self, now: u64) -> Option<TransportEvent> {
        self.below.poll(now)
    }

    fn close(&mut self, now: u64, conn: ConnId) {
        self.below.close(now, conn);
    }

    fn due_ms(&self) -> Option<u64> {
        self.below.due_ms()
    }
}

struct Machine {
    name: String,
    env: SimEnv,
    db: Database,
    node: Node,
    sent: Arc<AtomicU64>,
}

impl Machine {
    fn dataset(&self) -> Dataset {
        self.db.dataset("").unwrap()
    }

    fn work(&self) {
        self.db.run_background(10).unwrap();
    }

    /// Writes about 512 KiB over and over the same keys, has them flushed, and lets go of what it may.
    fn write(&self, round: u32) {
        let map = self.db.keyspace("map").unwrap();
        for n in 0..1_000u32 {
            let value = [round as u8; 500];
            map.put_with(n.to_be_bytes(), value, Durability::Os)
                .unwrap();
        }
        self.dataset().sync().unwrap();
        self.db.flush().unwrap();
        self.dataset().compact().unwrap();
    }

    fn first_segment(&self) -> u64 {
        let names = self.env.disk.files().into_keys();
        let dir = Path::new("/db/primary/r00000");
        let segments = names.filter(|path| path.parent() == Some(dir));
        let firsts = segments.filter_map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            strandline_wal::segment::parse_file_name(name).map(|(_, first_seq)| first_seq)
        });
        firsts.min().unwrap()
    }
}

struct World {
    network: LocalNetwork,
    ms: u64,
    options: Options,
}

impl World {
    fn new() -> World {
        World {
            network: LocalNetwork::new(7),
            ms: 1_000_000,
            options: Options {
                background: Background::Manual,
                memtable_len_max: 64 << 10,
                segment_len_start: 64 << 10,
                segment_len_max: 128 << 10,
                large_value_len_min: 4 << 10,
                reserve_len_max: 0,
                settle_after: None,
                ..Options::default()
            },
        }
    }

    fn limited(bytes_max: u64) -> World {
        let mut world = World::new();
        world.options.slot_bytes_max = Some(bytes_max);
        world
    }

    fn machine(&self, name: &str, env: SimEnv) -> Machine {
        let db = self.options.clone().open_with("/db", env.env()).unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        let transport = Counting {
            below: self.network.attach(name),
            sent: Arc::clone(&sent),
        };
        let node = Node::new(name, Box::new(transport), Arc::new(Notifier::default()));
        Machine {
            name: name.to_owned(),
            env,
            db,
            node,
            sent,
        }
    }

    fn now(&self) -> Now {
        Now {
            mono_ms: self.ms,
            wall_ms: self.ms,
        }
    }

    /// A machine that leads, again or for the first time.
    fn leader(&self, env: SimEnv) -> Machine {
        let mut machine = self.machine("a", env);
        let dataset = machine.dataset();
        machine.node.lead(self.now(), &dataset).unwrap();
        machine
    }

    fn follower(&self, name: &str, env: SimEnv) -> Machine {
        let mut machine = self.machine(name, env);
        let dataset = machine.db.follower("").unwrap();
        machine
            .node
            .follow(self.now(), &dataset, &["a".to_owned()])
            .unwrap();
        machine
    }

    fn run(&mut self, machines: &mut [&mut Machine], ms: u64) {
        let end = self.ms + ms;
        while self.ms < end {
            self.ms += 1;
            let now = self.now();
            for machine in machines.iter_mut() {
                machine.env.clock.advance_ms(1);
                for _ in 0..100 {
                    if !machine.node.step(now) {
                        break;
                    }
                }
            }
        }
    }

    /// Runs until the follower has everything, with its background work done.
    fn catch_up(&mut self, a: &mut Machine, b: &mut Machine) {
        for _ in 0..200 {
            self.run(&mut [a, b], 100);
            b.work();
            if a.dataset().positions() == b.dataset().positions() {
                // What it has on its disk is told with the next sync.
                return self.run(&mut [a, b], 3_000);
            }
        }
        let status = b.node.follow_status(&b.dataset());
        panic!("{} did not catch up: {status:?}", b.name);
    }
}

fn bundles(machine: &Machine) -> u64 {
    let status = machine.node.follow_status(&machine.dataset());
    status.bundle_count
}

/// The state of the only slot.
fn state(leader: &Machine) -> SlotState {
    let slots = leader.dataset().slots();
    assert_eq!(slots.len(), 1, "{slots:?}");
    slots[0].state
}

#[test]
fn a_restart_of_the_leader_keeps_its_slots() {
    let mut world = World::new();
    let mut a = world.leader(SimEnv::new(1));
    let mut b = world.follower("b", SimEnv::new(2));
    a.write(1);
    world.catch_up(&mut a, &mut b);
    assert_eq!(state(&a), SlotState::Active);
    let confirmed = a.dataset().slots()[0].durable.clone();
    assert_eq!(confirmed[0], a.dataset().positions()[0].seq);
    // The follower is away while the leader writes, dies and writes on.
    world.network.detach("b");
    for round in 2..6 {
        a.write(round);
        let crashed = a.env.crash(1, Damage::KeepAll);
        drop(a);
        a = world.leader(crashed);
        let slots = a.dataset().slots();
        assert_eq!((slots.len(), &*slots[0].name), (1, "b"));
        assert!(
            slots[0].durable <= confirmed,
            "never more than it confirmed"
        );
    }
    let blocks = a.dataset().who_blocks();
    assert_eq!(
        (blocks[0].what, &*blocks[0].name),
        ("slot", "b"),
        "{blocks:?}"
    );
    assert!(blocks[0].bytes > 1_500_000, "{blocks:?}");
    let mut b = {
        let env = b.env.clone();
        drop(b);
        world.follower(
            "b",
            SimEnv {
                disk: env.disk.fork(),
                ..env
            },
        )
    };
    world.catch_up(&mut a, &mut b);
    assert_eq!(bundles(&b), 0, "the log had everything");
    assert_eq!(state(&a), SlotState::Active);
    a.write(7);
    world.catch_up(&mut a, &mut b);
    a.write(8);
    assert!(
        a.first_segment() > confirmed[0],
        "nothing holds it any more"
    );
}

#[test]
fn a_dead_follower_does_not_stop_the_leader_s_writes() {
    let mut world = World::new();
    let mut a = world.leader(SimEnv::new(1));
    let mut b = world.follower("b", SimEnv::new(2));
    a.write(1);
    world.catch_up(&mut a, &mut b);
    world.network.detach("b");
    let used_len = a.env.disk.used_len();
    a.env.disk.limit(Some(used_len + (6 << 20)));
    let mut lost_at = None;
    // Five times as much as the disk has.
    for round in 0..60 {
        a.write(round);
        world.run(&mut [&mut a], 10);
        if matches!(state(&a), SlotState::Lost { .. }) {
            lost_at = lost_at.or(Some(round));
        }
    }
    let lost_at = lost_at.unwrap();
    assert!((1..12).contains(&lost_at), "in round {lost_at}");
    assert_eq!(a.dataset().slots()[0].bytes, 0);
    let blocks = a.dataset().who_blocks();
    assert!(
        blocks.iter().all(|holder| holder.what != "slot"),
        "{blocks:?}"
    );
    // The same with a limit of one's own that is more than there is.
    drop(a);
}

/// Its files are all sent again: a bundle has no way yet to take what is there.
#[test]
fn a_lost_slot_heals_by_one_bundle_and_is_active_again() {
    let mut world = World::limited(256 << 10);
    let mut a = world.leader(SimEnv::new(1));
    let mut b = world.follower("b", SimEnv::new(2));
    a.write(1);
    world.catch_up(&mut a, &mut b);
    assert_eq!(state(&a), SlotState::Active);
    let before = bundles(&b);
    world.network.part("a", "b");
    world.run(&mut [&mut a, &mut b], 1_000);
    for round in 2..6 {
        a.write(round);
    }
    world.run(&mut [&mut a, &mut b], 15_000);
    let SlotState::Lost { first_available } = state(&a) else {
        panic!("{:?}", a.dataset().slots());
    };
    assert!(first_available > a.dataset().slots()[0].durable[0]);
    world.network.heal();
    a.sent.store(0, Ordering::Relaxed);
    world.catch_up(&mut a, &mut b);
    assert_eq!(bundles(&b), before + 1);
    assert_eq!(state(&a), SlotState::Active);
    let sent = a.sent.load(Ordering::Relaxed);
    let len = a.db.stats().datasets[0].table_len + a.db.stats().datasets[0].segment_len;
    println!("healed with {sent} bytes of a dataset of {len}");
    assert!(sent < len + (256 << 10), "{sent} bytes for {len}");
    // And it stays so.
    let map = a.db.keyspace("map").unwrap();
    for n in 0..100u32 {
        map.put(n.to_be_bytes(), [9; 500]).unwrap();
    }
    world.catch_up(&mut a, &mut b);
    assert_eq!(bundles(&b), before + 1);
}

/// The log behind a bundle is not purged before its follower has it, however much is written meanwhile.
#[test]
fn a_slow_follower_takes_exactly_one_bundle_however_much_is_written() {
    let mut world = World::limited(1 << 20);
    let mut a = world.leader(SimEnv::new(1));
    for round in 0..4 {
        a.write(round);
    }
    assert!(a.first_segment() > 1, "a new follower finds no log");
    let mut b = world.follower("b", SimEnv::new(2));
    let mut most = 0;
    for round in 0..40 {
        a.write(round);
        world.run(&mut [&mut a, &mut b], 3);
        let slots = a.dataset().slots();
        most = most.max(slots.first().map_or(0, |slot| slot.bytes));
    }
    assert!(most > 2 << 20, "the tail was past the limit: {most}");
    world.catch_up(&mut a, &mut b);
    assert_eq!(bundles(&b), 1);
    assert_eq!(state(&a), SlotState::Active);
    let copy = b.db.keyspace("map").unwrap();
    assert_eq!(copy.iter().count(), 1_000);
}

/// It is connected and reads, and what it reads next is gone.
#[test]
fn a_slot_that_is_lost_while_its_follower_reads_heals_by_itself() {
    let mut world = World::limited(256 << 10);
    let mut a = world.leader(SimEnv::new(1));
    let mut b = world.follower("b", SimEnv::new(2));
    a.write(1);
    world.catch_up(&mut a, &mut b);
    let before = bundles(&b);
    for round in 2..8 {
        a.write(round);
    }
    assert!(matches!(state(&a), SlotState::Lost { .. }));
    world.catch_up(&mut a, &mut b);
    assert_eq!(bundles(&b), before + 1);
    assert_eq!(state(&a), SlotState::Active);
}

/// Whatever the leader's disk had done when it died: a follower that was answered has its slot.
#[test]
fn no_death_between_the_slot_and_the_answer_loses_the_slot() {
    let mut answered = 0;
    for at in 0..400 {
        let mut world = World::new();
        let mut a = world.leader(SimEnv::new(1));
        world.run(&mut [&mut a], 5);
        let mut b = world.follower("b", SimEnv::new(2));
        a.env.disk.crash_at(a.env.disk.io_count() + at);
        world.run(&mut [&mut a, &mut b], 30);
        if !a.env.disk.is_dead() {
            assert!(at > 5, "a slot is several calls");
            break;
        }
        let was_answered = b.node.follow_status(&b.dataset()).connected;
        for damage in [Damage::LoseAll, Damage::KeepAll] {
            let again = world.machine("c", a.env.crash(at, damage));
            let has_slot = again.dataset().slots().iter().any(|slot| slot.name == "b");
            assert!(has_slot || !was_answered, "call {at}, {damage:?}");
            answered += u32::from(was_answered);
        }
    }
    assert!(answered > 0, "it was answered, and then the machine died");
}

#[test]
fn a_wiped_follower_comes_into_the_place_of_its_old_slot() {
    let mut world = World::new();
    let mut a = world.leader(SimEnv::new(1));
    let mut b = world.follower("b", SimEnv::new(2));
    a.write(1);
    world.catch_up(&mut a, &mut b);
    let old = a.dataset().slots()[0].clone();
    drop(b);
    // The name stays, the node is another: the machine was replaced.
    let mut b = world.follower("b", SimEnv::new(3));
    a.write(2);
    world.catch_up(&mut a, &mut b);
    let slots = a.dataset().slots();
    assert_eq!(slots.len(), 2, "two nodes of one name: {slots:?}");
    let error = a.dataset().drop_slot("b").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Caller);
    let digits = format!("{:032x}", u128::from_be_bytes(old.node));
    assert!(error.to_string().contains(&digits), "{error}");
    a.dataset().drop_slot(&digits).unwrap();
    let slots = a.dataset().slots();
    assert_eq!((slots.len(), slots[0].state), (1, SlotState::Active));
    assert_ne!(slots[0].node, old.node);
    assert!(a.dataset().drop_slot(&digits).is_err());
    // The choice is durable.
    let again = world.machine("c", a.env.crash(1, Damage::LoseAll));
    assert_eq!(again.dataset().slots().len(), 1);
}

#[test]
fn a_damaged_file_of_slots_keeps_the_log_for_whoever_it_may_be() {
    let mut world = World::new();
    let mut a = world.leader(SimEnv::new(1));
    let mut b = world.follower("b", SimEnv::new(2));
    a.write(1);
    world.catch_up(&mut a, &mut b);
    world.network.detach("b");
    a.write(2);
    let crashed = a.env.crash(1, Damage::KeepAll);
    drop(a);
    crashed
        .disk
        .rot(Path::new("/db/primary/slots"), 30, 1)
        .unwrap();
    let mut a = world.leader(crashed);
    let warnings = a.dataset().recovery().warnings;
    assert!(
        warnings.iter().any(|w| w.contains("/db/primary/slots")),
        "{warnings:?}"
    );
    let first = a.first_segment();
    for round in 3..6 {
        a.write(round);
    }
    assert_eq!(a.first_segment(), first, "nothing was let go");
    let slots = a.dataset().slots();
    assert_eq!((slots.len(), &*slots[0].name), (1, "unknown"));
    // It is a slot like any: it is there after the next restart, and it can be dropped.
    let crashed = a.env.crash(2, Damage::KeepAll);
    drop(a);
    a = world.leader(crashed);
    assert!(a.dataset().recovery().warnings.is_empty());
    a.dataset().drop_slot("unknown").unwrap();
    a.write(6);
    assert!(a.first_segment() > first);
}

#[test]
fn a_clock_that_jumps_loses_no_slot_and_a_week_does() {
    let mut world = World::new();
    let mut a = world.leader(SimEnv::new(1));
    let mut b = world.follower("b", SimEnv::new(2));
    a.write(1);
    world.catch_up(&mut a, &mut b);
    world.network.detach("b");
    world.run(&mut [&mut a], 15_000);
    let wall_ms = 1_767_225_600_000;
    for jumped_ms in [wall_ms + HOUR_MS, wall_ms - HOUR_MS, wall_ms * 2] {
        a.env.clock.jump_to_ms(jumped_ms);
        a.write(2);
        let idle_ms = a.dataset().slots()[0].idle_ms;
        assert!(idle_ms < 2 * 24 * HOUR_MS, "{idle_ms}");
        assert!(!matches!(state(&a), SlotState::Lost { .. }), "{jumped_ms}");
        let crashed = a.env.crash(1, Damage::KeepAll);
        drop(a);
        a = world.leader(crashed);
        let opened = state(&a);
        assert!(!matches!(opened, SlotState::Lost { .. }), "at {jumped_ms}");
    }
    for _ in 0..8 {
        a.env.clock.advance_ms(24 * HOUR_MS);
        a.write(3);
    }
    assert!(matches!(state(&a), SlotState::Lost { .. }));
}

/// A follower may have on its disk what its leader lost with a crash, and other records take those numbers.
#[test]
fn a_slot_does_not_stand_behind_a_tail_that_was_cut() {
    let mut world = World::new();
    let mut a = world.leader(SimEnv::new(1));
    let mut b = world.follower("b", SimEnv::new(2));
    a.write(1);
    world.catch_up(&mut a, &mut b);
    let map = a.db.keyspace("map").unwrap();
    for n in 0..50u32 {
        map.put_with(n.to_be_bytes(), "tail", Durability::Os)
            .unwrap();
    }
    drop(map);
    // Long enough to be confirmed and noted.
    world.run(&mut [&mut a, &mut b], 25_000);
    let confirmed = a.dataset().slots()[0].durable[0];
    assert_eq!(confirmed, a.dataset().positions()[0].seq);
    let crashed = a.env.crash(1, Damage::LoseAll);
    drop(a);
    let a = world.leader(crashed);
    // Its own epoch begins with one record.
    let recovered = a.dataset().positions()[0].seq - 1;
    assert!(recovered < confirmed, "the tail was lost");
    assert!(a.dataset().slots()[0].durable[0] <= recovered);
}

/// A follower that was cut off comes back for the rest of its bundle, and the log behind that one is gone.
#[test]
fn a_bundle_whose_tail_is_purged_is_not_gone_on_with() {
    let mut world = World::limited(256 << 10);
    let mut a = world.leader(SimEnv::new(1));
    for round in 0..4 {
        a.write(round);
    }
    // Frames come one by one, so that a part of the bundle comes.
    let delay_ms = (10, 40);
    world.network.set_faults(Faults {
        delay_ms,
        ..Faults::default()
    });
    let mut b = world.follower("b", SimEnv::new(2));
    let is_begun = |b: &Machine| {
        let files = b.env.disk.files().into_keys();
        let mut staged = files.map(|path| path.display().to_string());
        staged.any(|path| path.contains("STAGING-"))
    };
    for _ in 0..1_000 {
        world.run(&mut [&mut a, &mut b], 1);
        if is_begun(&b) {
            break;
        }
    }
    assert!(is_begun(&b) && bundles(&b) == 0);
    world.network.part("a", "b");
    world.network.set_faults(Faults::default());
    world.run(&mut [&mut a, &mut b], 90_000);
    for round in 4..8 {
        a.write(round);
    }
    assert!(matches!(state(&a), SlotState::Lost { .. }));
    world.network.heal();
    world.catch_up(&mut a, &mut b);
    assert_eq!(bundles(&b), 1);
}

#[test]
fn metrics_tell_of_slots_and_of_who_keeps_the_log() {
    let mut world = World::new();
    let mut a = world.leader(SimEnv::new(1));
    let mut b = world.follower("b", SimEnv::new(2));
    a.write(1);
    world.catch_up(&mut a, &mut b);
    world.network.detach("b");
    a.write(2);
    let text = a.db.metrics();
    for line in [
        "strandline_slot_state{dataset=\"primary\",slot=\"b\"",
        "strandline_slot_held_bytes{dataset=\"primary\",slot=\"b\"",
        "strandline_slot_idle_seconds{dataset=\"primary\",slot=\"b\"",
        "strandline_log_held_bytes{dataset=\"primary\",holder=\"slot\",name=\"b\",shard=\"0\"}",
    ] {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}
