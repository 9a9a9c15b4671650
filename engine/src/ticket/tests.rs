//! Tickets: outcomes, many under way, closes and failures.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

use strandline_wal::io::Env;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::{Damage, SimEnv};

use super::*;
use crate::dataset::Reopen;
use crate::options::{AckPolicy, Options};
use crate::replica::ShardAcks;
use crate::store::Role;
use crate::{Database, Dataset};

/// Counts its calls.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Count>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn manual(options: Options) -> (SimEnv, Database, Dataset) {
    let machine = SimEnv::new(1);
    let options = Options {
        background: Background::Manual,
        ..options
    };
    let db = options.open_with("/db", machine.env()).unwrap();
    let dataset = db.dataset("").unwrap();
    (machine, db, dataset)
}

fn submit(dataset: &Dataset, key: &str, level: Durability) -> CommitTicket {
    let map = dataset.keyspace("map").unwrap();
    let mut batch = dataset.batch();
    batch.put(&map, key, "value").unwrap();
    batch.submit_with(level).unwrap()
}

fn poll(ticket: &mut CommitTicket, count: &Arc<Count>) -> Poll<Result<Acked>> {
    let waker = Waker::from(Arc::clone(count));
    Pin::new(ticket).poll(&mut Context::from_waker(&waker))
}

fn ready(ticket: &mut CommitTicket) -> Result<Acked> {
    match poll(ticket, &Arc::default()) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it is not over"),
    }
}

#[test]
fn one_sync_acknowledges_all_that_were_submitted_and_none_is_seen_before() {
    let (machine, db, dataset) = manual(Options::default());
    let map = dataset.keyspace("map").unwrap();
    let count = Arc::default();
    let mut tickets: Vec<_> = (0..100)
        .map(|n| submit(&dataset, &format!("{n:03}"), Durability::Disk))
        .collect();
    for ticket in &mut tickets {
        assert!(poll(ticket, &count).is_pending());
    }
    assert_eq!(map.len().unwrap(), 0, "what is not durable is not seen");
    let before = dataset.stats().sync_count;
    db.run_background(1).unwrap();
    assert_eq!(dataset.stats().sync_count - before, 1);
    assert_eq!(count.0.load(Ordering::SeqCst), 100, "each is woken once");
    for ticket in &mut tickets {
        assert!(ticket.is_done());
        assert_eq!(ready(ticket).unwrap().level, Durability::Disk);
    }
    assert_eq!(map.len().unwrap(), 100);
    // They are on the disk, not only seen.
    let env = Env {
        disk: Arc::new(machine.disk.crash(1, Damage::LoseAll)),
        ..machine.env()
    };
    let options = Options {
        background: Background::Manual,
        ..Options::default()
    };
    let after = options.open_with("/db", env).unwrap();
    assert_eq!(after.keyspace("map").unwrap().len().unwrap(), 100);
}

#[test]
fn a_wait_syncs_by_itself_and_the_levels_of_this_node_are_all_there() {
    let (_machine, _db, dataset) = manual(Options::default());
    for level in [Durability::Memory, Durability::Os, Durability::Disk] {
        let ticket = submit(&dataset, "key", level);
        let token = ticket.token();
        assert_eq!(ticket.wait().unwrap(), Acked { level, token });
    }
    let empty = dataset.batch().submit().unwrap_err();
    assert!(empty.to_string().contains("an empty one"), "{empty}");
}

#[test]
fn followers_end_a_ticket_by_their_confirmation_or_by_their_silence() {
    let (machine, db, dataset) = manual(Options::default());
    let (level, count) = (Durability::Durable(1), Arc::default());
    let [mut first, mut second] = ["a", "b"].map(|key| submit(&dataset, key, level));
    db.run_background(1).unwrap();
    assert!(poll(&mut first, &count).is_pending());
    assert!(poll(&mut second, &count).is_pending());
    let seq = dataset.positions()[0].seq;
    let confirm = |seq| {
        let durable = vec![seq];
        let acks = ShardAcks {
            durable,
            ..ShardAcks::default()
        };
        dataset.inner().acks.confirm(0, acks);
    };
    confirm(seq - 1);
    assert_eq!(ready(&mut first).unwrap().level, level);
    assert!(poll(&mut second, &count).is_pending());
    machine.clock.advance_ms(9_999);
    db.run_background(1).unwrap();
    assert!(poll(&mut second, &count).is_pending());
    machine.clock.advance_ms(1);
    db.run_background(1).unwrap();
    let silent = ready(&mut second).unwrap_err();
    assert!(matches!(silent, Error::Unacknowledged { .. }), "{silent}");
    confirm(seq);
    assert!(ready(&mut second).is_err(), "the first outcome counts");
    // Where many wait they end in their order, each by its own level.
    let mut tickets: Vec<_> = (0..100)
        .map(|n| {
            submit(
                &dataset,
                &format!("{n}"),
                [level, Durability::Received(1)][n % 2],
            )
        })
        .collect();
    db.run_background(1).unwrap();
    assert_eq!(dataset.inner().acks.ticket_count(), 100);
    confirm(seq + 50);
    let done = |tickets: &[CommitTicket]| tickets.iter().filter(|it| it.is_done()).count();
    assert_eq!(done(&tickets), 25);
    let last = dataset.positions()[0].seq;
    confirm(last);
    assert_eq!(done(&tickets), 50);
    dataset
        .inner()
        .acks
        .fence(Error::Fenced { ours: 1, found: 2 });
    assert_eq!(done(&tickets), 100);
    assert!(ready(&mut tickets[0]).is_ok() && ready(&mut tickets[1]).is_err());
}

#[test]
fn an_ack_is_degraded_only_where_that_is_asked_for_and_it_is_counted() {
    for (ack_policy, degraded) in [(AckPolicy::Refuse, 0), (AckPolicy::Degrade, 2)] {
        let options = Options {
            ack_policy,
            ack_timeout_ms: 1,
            ..Options::default()
        };
        let (machine, db, dataset) = manual(options);
        let map = dataset.keyspace("map").unwrap();
        let mut ticket = submit(&dataset, "key", Durability::Received(1));
        db.run_background(1).unwrap();
        machine.clock.advance_ms(1);
        db.run_background(1).unwrap();
        let outcome = ready(&mut ticket);
        let written = map.put_with("key", "value", Durability::Applied(1));
        assert_eq!(dataset.stats().degraded_acks, degraded);
        let told = db
            .events()
            .iter()
            .filter(|it| it.what.name() == "degraded")
            .count();
        assert_eq!(told as u64, degraded, "one of each level");
        match ack_policy {
            AckPolicy::Refuse => assert!(outcome.is_err() && written.is_err()),
            AckPolicy::Degrade => {
                written.unwrap();
                assert_eq!(outcome.unwrap().level, Durability::Disk);
            }
        }
    }
}

#[test]
fn a_ticket_of_a_leadership_that_ended_is_never_acknowledged() {
    let (_machine, db, dataset) = manual(Options::default());
    let mut ticket = submit(&dataset, "key", Durability::Received(1));
    db.run_background(1).unwrap();
    let inner = dataset.inner();
    inner.acks.fence(Error::Fenced { ours: 1, found: 2 });
    let fenced = ready(&mut ticket).unwrap_err();
    assert!(matches!(fenced, Error::Fenced { .. }), "{fenced}");

    // Its store was closed and opened again, by a change of roles.
    inner.acks.reset(1).tell();
    let mut ticket = submit(&dataset, "key", Durability::Received(1));
    db.run_background(1).unwrap();
    inner.closed(|| ()).unwrap();
    let closed = ready(&mut ticket).unwrap_err();
    assert!(matches!(closed, Error::Closed(_)), "{closed}");
}

#[test]
fn a_store_that_was_closed_writes_nothing_more_for_its_tickets() {
    let (machine, db, dataset) = manual(Options::default());
    let inner = dataset.inner();
    let mut queued = submit(&dataset, "queued", Durability::Disk);
    let waited = submit(&dataset, "waited", Durability::Disk);
    // Another node leads: this one follows it, in the same files.
    inner.store().stop(Error::Fenced { ours: 1, found: 2 });
    let role = Reopen::role(Role::Follower);
    inner.reopen(role, || Ok(())).unwrap();
    let before = machine.disk.files();
    db.run_background(0).unwrap();
    for outcome in [ready(&mut queued), waited.wait()] {
        let fenced = outcome.unwrap_err();
        assert!(matches!(fenced, Error::Fenced { .. }), "{fenced}");
    }
    assert!(machine.disk.files() == before, "the files are another's");
}

#[test]
fn a_failed_sync_ends_all_tickets_and_a_close_those_that_are_left() {
    let machine = SimEnv::new(1);
    let faults = FaultDisk::new(Arc::new(machine.disk.clone()));
    let env = Env {
        disk: Arc::new(faults.clone()),
        ..machine.env()
    };
    let options = Options {
        background: Background::Manual,
        ..Options::default()
    };
    let db = options.open_with("/db", env).unwrap();
    let dataset = db.dataset("").unwrap();
    let mut tickets = ["a", "b"].map(|key| submit(&dataset, key, Durability::Disk));
    faults.add(Rule::new(Effect::EIO).on(Call::Sync));
    let _ = db.run_background(1);
    for ticket in &mut tickets {
        let failed = ready(ticket).unwrap_err();
        assert!(failed.to_string().contains("sync"), "{failed}");
    }

    let (_machine, db, dataset) = manual(Options::default());
    let mut synced = submit(&dataset, "key", Durability::Received(1));
    db.run_background(1).unwrap();
    let mut queued = submit(&dataset, "key", Durability::Disk);
    db.close().unwrap();
    for ticket in [&mut synced, &mut queued] {
        let closed = ready(ticket).unwrap_err();
        assert!(matches!(closed, Error::Closed(_)), "{closed}");
    }
}

#[test]
fn a_waker_that_panics_or_drops_the_database_harms_nobody() {
    struct Drops(Mutex<Option<Database>>);
    impl Wake for Drops {
        fn wake(self: Arc<Drops>) {
            drop(self.0.lock().take());
            panic!("a waker's own");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let db = Options::default().open(dir.path()).unwrap();
    let dataset = db.dataset("").unwrap();
    let mut ticket = submit(&dataset, "key", Durability::Disk);
    drop(dataset);
    let waker = Waker::from(Arc::new(Drops(Mutex::new(Some(db)))));
    let _ = Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker));
    drop(waker);
    while !ticket.is_done() {
        std::thread::yield_now();
    }
    ready(&mut ticket).unwrap();
    drop(ticket);
    // The directory is free, as soon as that thread has let go of it.
    let opened = (0..500).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        Options::default().open(dir.path()).ok()
    });
    assert_eq!(opened.unwrap().keyspace("map").unwrap().len().unwrap(), 1);
}

#[test]
fn a_waker_that_is_replaced_may_be_the_last_that_holds_the_database() {
    struct Holds(#[allow(dead_code, reason = "it is to be dropped")] Database);
    impl Wake for Holds {
        fn wake(self: Arc<Holds>) {}
    }
    let (_machine, db, dataset) = manual(Options::default());
    let mut ticket = submit(&dataset, "key", Durability::Disk);
    drop(dataset);
    let waker = Waker::from(Arc::new(Holds(db)));
    let polled = Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    drop(waker);
    let polled = Pin::new(&mut ticket).poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "as it was when it was asked");
    let closed = ready(&mut ticket).unwrap_err();
    assert!(matches!(closed, Error::Closed(_)), "{closed}");
}

#[test]
fn one_thread_has_thousands_of_durable_writes_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let db = Options::default().open(dir.path()).unwrap();
    let dataset = db.dataset("").unwrap();
    let tickets: Vec<_> = (0..5_000)
        .map(|n| submit(&dataset, &format!("{n}"), Durability::Disk))
        .collect();
    let syncs = dataset.stats().sync_count;
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    assert_eq!(db.keyspace("map").unwrap().len().unwrap(), 5_000);
    assert!(syncs < 2_500, "{syncs} syncs are no groups");
}
