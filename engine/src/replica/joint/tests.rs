//! Tests of what a store tells the driver: nothing that a power loss takes back.

use strandline_replication::store::LogSource;
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{NodeId, Notifier, Now};
use strandline_wal::Epoch;
use strandline_wal::io::sim::{Damage, SimEnv};

use super::*;
use crate::options::{Background, Durability, Options};
use crate::replica::Node;
use crate::retention::Hold;

fn open(machine: &SimEnv) -> crate::Database {
    let options = Options {
        background: Background::Manual,
        ..Options::default()
    };
    options.open_with("/db", machine.env()).unwrap()
}

#[test]
fn what_a_leader_calls_synced_is() {
    let machine = SimEnv::new(1);
    let db = open(&machine);
    let map = db.keyspace("map").unwrap();
    map.put_with("key", "value", Durability::Os).unwrap();
    let dataset = db.dataset("").unwrap();
    let joint = Joint::new(
        Arc::clone(dataset.inner()),
        "a".to_owned(),
        Box::new(|_| {}),
    );
    let last_seq = dataset.positions()[0].seq;
    assert_eq!(joint.sync(ShardId(0)).unwrap(), last_seq);
}

#[test]
fn a_promise_is_durable_once_it_is_made() {
    let machine = SimEnv::new(1);
    let db = open(&machine);
    let dataset = db.dataset("").unwrap();
    let joint = Joint::new(
        Arc::clone(dataset.inner()),
        "a".to_owned(),
        Box::new(|_| {}),
    );
    let promise = Promise {
        epoch: Epoch(9),
        to: NodeId([3; 16]),
    };
    joint.promise(promise).unwrap();
    let bound = dataset.inner().store().epoch_file().lock().binding([1; 16]);
    assert_eq!(bound, (promise.epoch, promise.to.0));
    let after = open(&machine.crash(1, Damage::LoseAll));
    let dataset = after.dataset("").unwrap();
    let joint = Joint::new(
        Arc::clone(dataset.inner()),
        "a".to_owned(),
        Box::new(|_| {}),
    );
    assert!(
        joint.highest_epoch() > promise.epoch,
        "it reopened above it"
    );
}

#[test]
fn the_start_of_an_epoch_is_durable_before_it_is_shipped() {
    let machine = SimEnv::new(1);
    let db = open(&machine);
    let dataset = db.dataset("").unwrap();
    let transport = Box::new(LocalNetwork::new(1).attach("a"));
    let mut node = Node::new("a", transport, Arc::new(Notifier::default()));
    node.lead(Now::default(), &dataset).unwrap();
    let stats = dataset.stats();
    assert_eq!(stats.synced_seqs, [dataset.positions()[0].seq]);
}

/// A leader of two shards and a follower of it, with nothing between them but their stores.
struct Stores {
    leader: crate::Database,
    machine: SimEnv,
    follower: crate::Database,
}

impl Stores {
    fn options() -> Options {
        Options {
            background: Background::Manual,
            router: crate::ShardRouter::hash(2).unwrap(),
            segment_len_start: 64 << 10,
            segment_len_max: 64 << 10,
            run_count_max: 1,
            ..Options::default()
        }
    }

    fn new() -> Stores {
        let leader = Stores::options()
            .open_with("/db", SimEnv::new(1).env())
            .unwrap();
        let machine = SimEnv::new(2);
        let follower = Stores::options().open_with("/db", machine.env()).unwrap();
        follower.follower("").unwrap();
        let lineage = Lineage(leader.dataset("").unwrap().inner().store().lineage());
        let stores = Stores {
            leader,
            machine,
            follower,
        };
        stores.joint().adopt(lineage).unwrap();
        stores
    }

    fn joint(&self) -> Joint {
        Stores::joint_of(&self.follower)
    }

    fn joint_of(db: &crate::Database) -> Joint {
        let dataset = db.dataset("").unwrap();
        let inner = Arc::clone(dataset.inner());
        Joint::new(inner, "b".to_owned(), Box::new(|_| {}))
    }

    /// Ships everything that a shard has and the follower lacks: written there, and not synced.
    fn ship(&self, shard: ShardId) {
        let store = self.leader.dataset("").unwrap().inner().store();
        let segment = store.log(shard).segments().pop().unwrap();
        let bytes = segment.read(0, segment.data_len() as usize).unwrap();
        let appended = self.joint().append(shard, segment.first_seq(), 0, &bytes);
        assert_eq!(appended.unwrap().end, bytes.len() as u64);
    }

    /// Tells the follower that everything is committed.
    fn commit(&self) {
        let store = self.leader.dataset("").unwrap().inner().store();
        let mark = store.watermarks().committed();
        let marks: Vec<CommitMark> = (0u16..)
            .zip(&mark.seqs)
            .map(|(shard, seq)| CommitMark {
                shard: ShardId(shard),
                seq: *seq,
            })
            .collect();
        let times = Times {
            closed: mark.timestamp,
            committed: mark.timestamp,
        };
        self.joint().commit(&marks, times).unwrap();
    }

    /// Keys of both shards, so many.
    fn put(&self, count: u32) {
        let map = self.leader.keyspace("map").unwrap();
        for n in 0..count {
            map.put(n.to_be_bytes(), [7; 100]).unwrap();
        }
    }

    fn shown(&self) -> usize {
        match self.follower.keyspace("map") {
            Ok(map) => map.iter().count(),
            Err(_) => 0,
        }
    }
}

#[test]
fn a_follower_flushes_only_what_is_durable_in_its_log() {
    let stores = Stores::new();
    for count in [20, 40] {
        stores.put(count);
        stores.ship(ShardId(0));
        stores.ship(ShardId(1));
        stores.commit();
        assert_eq!(stores.shown(), count as usize);
    }
    let log = stores.joint().store().log(ShardId(0)).clone();
    assert!(log.synced_seq() < log.last_seq(), "nobody asked for it");
    stores.follower.flush().unwrap();
    let manifest = stores.joint().store().manifest();
    assert!(manifest.tables().count() > 0, "it was flushed");
    for damage in Damage::ALL {
        let after = stores.machine.crash(1, damage);
        let db = Stores::options().open_with("/db", after.env()).unwrap();
        assert_eq!(db.keyspace("map").unwrap().iter().count(), 40, "{damage:?}");
    }
}

#[test]
fn a_node_votes_once_the_history_that_it_copied_is_durable() {
    let stores = Stores::new();
    stores
        .joint()
        .store()
        .epoch_file()
        .lock()
        .join(true)
        .unwrap();
    stores.put(20);
    for shard in [ShardId(0), ShardId(1)] {
        assert!(!stores.joint().votes(), "it lacks shard {shard}");
        stores.ship(shard);
    }
    stores.commit();
    assert!(stores.joint().votes());
    for shard in [ShardId(0), ShardId(1)] {
        let store = stores.joint().store();
        let log = store.log(shard);
        assert_eq!(log.synced_seq(), log.last_seq(), "shard {shard}");
    }
}

#[test]
fn a_follower_shows_no_cut_that_lacks_a_record() {
    let stores = Stores::new();
    stores.put(40);
    stores.ship(ShardId(1));
    stores.commit();
    assert_eq!(stores.shown(), 0, "shard 0 lacks all, the keyspace too");
    stores.ship(ShardId(0));
    stores.commit();
    assert_eq!(stores.shown(), 40);
    stores.put(80);
    stores.ship(ShardId(1));
    stores.commit();
    assert_eq!(stores.shown(), 40, "shard 0 lacks what was written since");
    stores.ship(ShardId(0));
    stores.commit();
    assert_eq!(stores.shown(), 80);
}

#[test]
fn what_a_follower_calls_synced_is() {
    let stores = Stores::new();
    stores.put(10);
    stores.ship(ShardId(0));
    let joint = stores.joint();
    let last_seq = joint.store().log(ShardId(0)).last_seq();
    assert!(joint.store().log(ShardId(0)).synced_seq() < last_seq);
    assert_eq!(joint.sync(ShardId(0)).unwrap(), last_seq);
}

#[test]
fn what_a_follower_syncs_beside_everything_else_is_durable() {
    let stores = Stores::new();
    stores.put(10);
    stores.ship(ShardId(0));
    let joint = stores.joint();
    let (store, log) = (joint.store(), Arc::clone(joint.store().log(ShardId(0))));
    assert!(joint.poll_persist().unwrap().is_ok(), "none was begun");
    assert!(log.synced_seq() < log.last_seq() && !store.persist_step());
    joint.begin_persist();
    assert!(joint.poll_persist().unwrap().is_ok());
    assert_eq!(log.synced_seq(), log.last_seq());
    store.stop(crate::Error::Closed("dataset"));
    joint.begin_persist();
    assert!(joint.poll_persist().unwrap().is_err(), "nobody would do it");
}

#[test]
fn a_segment_that_a_follower_needs_outlives_its_flush() {
    let stores = Stores::new();
    let dataset = stores.leader.dataset("").unwrap();
    let store = dataset.inner().store();
    let first = |shard| store.log(ShardId(shard)).segments()[0].first_seq();
    let retention = store.retention();
    let hold = Hold {
        from_seqs: vec![1, u64::MAX],
        len_max: u64::MAX,
    };
    retention.hold("test", "", Some(hold));
    for _ in 0..3 {
        stores.put(900);
        stores.leader.flush().unwrap();
    }
    assert!(first(1) > 1, "nobody needs it");
    assert_eq!(first(0), 1, "a follower does");
    retention.hold("test", "", None);
    stores.leader.flush().unwrap();
    assert!(first(0) > 1);
}

#[test]
fn a_tail_that_was_saved_is_durable() {
    let stores = Stores::new();
    stores.put(20);
    stores.ship(ShardId(0));
    let store = stores.joint().store();
    save_tail(&store, ShardId(0), 5).unwrap();
    let segment = store.log(ShardId(0)).segments().pop().unwrap();
    let from = Position {
        epoch: segment.header().epoch,
        seq: 6,
    };
    let path = files::divergent_tail(store.dir(), ShardId(0), from);
    let start = offset_of(store.log(ShardId(0)), &segment, from.seq).unwrap();
    let head = segment.read(0, SEGMENT_HEADER_LEN).unwrap();
    let tail = segment.read(start, (segment.data_len() - start) as usize);
    let saved = [&head[..], &tail.unwrap()[..]].concat();
    for damage in Damage::ALL {
        let files = stores.machine.crash(1, damage).disk.files();
        assert!(files.get(&path) == Some(&saved), "{damage:?}");
    }
}

/// A follower told its leader where it stands, flushed more than that, and was then told to cut it: its
/// tables pointed into a segment that was gone.
#[test]
fn what_was_flushed_meanwhile_is_not_cut() {
    let stores = Stores::new();
    stores.put(20);
    stores.ship(ShardId(0));
    stores.ship(ShardId(1));
    stores.commit();
    stores.follower.flush().unwrap();
    let joint = stores.joint();
    let to = ShardEnd {
        position: Position {
            seq: 5,
            ..joint.end(ShardId(0)).position
        },
        ..joint.end(ShardId(0))
    };
    let refused = joint.cut(ShardId(0), to).unwrap_err();
    assert!(
        matches!(refused, ReplicationError::Pruned { needed: 6, .. }),
        "{refused}"
    );
    assert_eq!(stores.shown(), 20, "it is open, and as it was");
    stores.follower.dataset("").unwrap().health().unwrap();
}

#[test]
fn a_leader_takes_nothing_that_is_for_followers() {
    let stores = Stores::new();
    let joint = Stores::joint_of(&stores.leader);
    let store = joint.store();
    for refused in [
        joint.append(ShardId(0), 1, 0, &[]).err(),
        joint.seal(ShardId(0), 1, &[]).err(),
        store.sync_shipped().map_err(refused).err(),
    ] {
        let text = refused.unwrap().to_string();
        let why = "it does not follow; shipped bytes are for followers";
        assert!(text.contains(why) && text.contains("primary"), "{text}");
    }
}

#[test]
fn bytes_and_footers_that_do_not_continue_a_log_are_refused_and_change_nothing() {
    let stores = Stores::new();
    stores.put(10);
    stores.ship(ShardId(0));
    let joint = stores.joint();
    let before = joint.end(ShardId(0));
    let refused = joint.append(ShardId(0), 99, 0, &[7; 500]).unwrap_err();
    assert!(matches!(refused, ReplicationError::Log(_)), "{refused}");
    let refused = joint.seal(ShardId(0), 1, &[7; 500]).unwrap_err();
    assert!(matches!(refused, ReplicationError::Log(_)), "{refused}");
    assert_eq!(joint.end(ShardId(0)), before);
}

#[test]
fn a_commit_of_another_number_of_shards_shows_nothing() {
    let stores = Stores::new();
    stores.put(10);
    stores.ship(ShardId(0));
    stores.ship(ShardId(1));
    let store = stores.joint().store();
    assert!(!store.commit_shipped(strandline_wal::Hlc::MAX, &[1]));
    assert_eq!(stores.shown(), 0);
    stores.commit();
    assert_eq!(stores.shown(), 10);
    // The same again moves nothing.
    let before = store.watermarks().committed();
    stores.commit();
    assert_eq!(store.watermarks().committed(), before);
}

/// A follower whose leader commits nothing can flush nothing: it takes a bounded part of the log and, where
/// that is what the commit waits for, one memtable more.
#[test]
fn a_follower_has_room_for_so_many_memtables_and_one_that_a_commit_waits_for() {
    let mut stores = Stores::new();
    let small = || Options {
        memtable_len_max: 64 << 10,
        segment_len_max: 4 << 20,
        segment_len_start: 4 << 20,
        ..Stores::options()
    };
    stores.leader = small().open_with("/db", SimEnv::new(1).env()).unwrap();
    stores.machine = SimEnv::new(2);
    stores.follower = small().open_with("/db", stores.machine.env()).unwrap();
    stores.follower.follower("").unwrap();
    let lineage = stores.leader.dataset("").unwrap().lineage();
    let joint = stores.joint();
    joint.adopt(Lineage(lineage)).unwrap();
    assert_eq!(joint.room(), 3 * (64 << 10));
    let sealed = || joint.store().view().sealed.len();
    for n in 0..3 {
        // More than a memtable takes of each shard.
        stores.put(2_000);
        stores.ship(ShardId(0));
        assert_eq!(sealed(), n);
    }
    assert_eq!(joint.room(), 64 << 10);
    stores.put(2_000);
    stores.ship(ShardId(0));
    assert!(joint.store().flush_waits_for_commit());
    assert_eq!(joint.room(), 0);
    let mark = stores.leader.dataset("").unwrap().inner().store();
    let mark = mark.watermarks().committed();
    let marks = [0u16, 1].map(|shard| CommitMark {
        shard: ShardId(shard),
        seq: mark.seqs[usize::from(shard)],
    });
    let times = Times {
        closed: mark.timestamp,
        committed: mark.timestamp,
    };
    joint.commit(&marks, times).unwrap();
    assert_eq!(
        joint.room(),
        64 << 10,
        "shard 1 is what the commit waits for"
    );
    stores.ship(ShardId(1));
    joint.commit(&marks, times).unwrap();
    assert!(!joint.store().flush_waits_for_commit());
    assert_eq!(stores.shown(), 2_000);
    // What is committed is flushed to take more.
    let flush_count = || stores.follower.dataset("").unwrap().stats().flush_count;
    assert_eq!(flush_count(), 0);
    stores.put(2_000);
    stores.ship(ShardId(0));
    assert_eq!(flush_count(), 1);
}

#[test]
fn a_follower_notes_now_and_then_how_far_it_is_durable() {
    let stores = Stores::new();
    stores.put(20);
    stores.ship(ShardId(0));
    let store = stores.joint().store();
    let marked = || {
        let region = files::region(store.dir(), strandline_wal::RegionId(0));
        let marks = strandline_wal::marks::Marks::read(store.env().disk.as_ref(), &region);
        marks.unwrap()[0].1
    };
    let before = marked();
    store.sync_shipped().unwrap();
    assert_eq!(marked(), before, "it was written a moment ago");
    stores.machine.clock.advance_ms(1_000);
    store.sync_shipped().unwrap();
    assert_eq!(marked(), store.log(ShardId(0)).synced_seq());
    assert!(marked() > before);
}

#[test]
fn a_leader_tells_where_it_stands_and_stops_once_another_one_leads() {
    let stores = Stores::new();
    stores.put(20);
    let joint = Stores::joint_of(&stores.leader);
    let store = joint.store();
    let leadership = joint.leadership();
    assert_eq!(leadership.epoch, store.epoch());
    assert_eq!(joint.promised().epoch, store.epoch());
    assert_eq!(joint.promised().to, NodeId(store.node().node));
    assert_eq!(joint.shards(), [ShardId(0), ShardId(1)]);
    for shard in joint.shards() {
        let (end, base) = (joint.end(shard), joint.base(shard));
        assert_eq!(
            end.position,
            stores.leader.dataset("").unwrap().positions()[usize::from(shard.0)]
        );
        assert_eq!((base.position.seq, base.position.epoch), (0, Epoch(0)));
        assert_eq!(joint.epochs(shard).entries().len(), 1);
        let marks = joint.marks(shard);
        assert_eq!(
            (marks.written, marks.durable),
            (end.position.seq, end.position.seq)
        );
        assert_eq!(marks.committed, end.position.seq);
    }
    let times = joint.times();
    assert_eq!(times.closed, times.committed);
    joint.fenced(Epoch(9));
    let events = stores.leader.events();
    assert_eq!(events.last().map(|it| it.what.name()), Some("fenced"));
    let map = stores.leader.keyspace("map").unwrap();
    let error = map.put("key", "value").unwrap_err();
    assert!(matches!(error, Error::Fenced { found: 9, .. }), "{error}");
    let error = stores
        .leader
        .dataset("")
        .unwrap()
        .inner()
        .acks
        .wait(&crate::ticket::Pending::all(&store, Durability::Durable(1)));
    assert!(
        matches!(error, Err(Error::Fenced { found: 9, .. })),
        "{error:?}"
    );
}

/// A cut that a crash undid has saved the tail already: it is saved again in its place.
#[test]
fn a_tail_is_saved_again_over_what_is_left_of_it() {
    let stores = Stores::new();
    stores.put(20);
    stores.ship(ShardId(0));
    let store = stores.joint().store();
    let seq = store.log(ShardId(0)).last_seq();
    save_tail(&store, ShardId(0), seq).unwrap();
    save_tail(&store, ShardId(0), 5).unwrap();
    let saved = || -> Vec<Vec<u8>> {
        let files = stores.machine.disk.files().into_iter();
        let tails = files.filter(|(path, _)| path.to_string_lossy().contains("divergent"));
        tails.map(|(_, bytes)| bytes).collect()
    };
    let first = saved();
    assert_eq!(first.len(), 1, "nothing stands behind the last record");
    save_tail(&store, ShardId(0), 5).unwrap();
    assert!(saved() == first);
}

/// A node over nothing, with a database of its own.
fn lonely() -> (crate::Database, Node) {
    let db = open(&SimEnv::new(1));
    let transport = Box::new(LocalNetwork::new(1).attach("a"));
    (db, Node::new("a", transport, Arc::new(Notifier::default())))
}

#[test]
fn who_follows_does_not_lead_and_who_never_met_its_leader_has_nothing_to_lead_with() {
    let (db, mut node) = lonely();
    let dataset = db.follower("").unwrap();
    let refused = node.lead(Now::default(), &dataset).unwrap_err();
    assert!(matches!(refused, Error::ReadOnly { .. }), "{refused}");
    assert!(
        refused.to_string().contains("promote it to lead"),
        "{refused}"
    );
    let mut how = crate::replica::Promote::default();
    for force in [false, true] {
        how.force = force;
        let refused = node.campaign(Now::default(), &dataset, &how).unwrap_err();
        assert!(
            refused.to_string().contains("never met its leader"),
            "{refused}"
        );
    }
    let led = db.dataset("led").unwrap();
    led.inner()
        .reopen(Reopen::role(Role::Follower), || Ok(()))
        .unwrap();
    let store = led.inner().store();
    store.epoch_file().lock().join(true).unwrap();
    how.force = false;
    let refused = node.campaign(Now::default(), &led, &how).unwrap_err();
    assert!(refused.to_string().contains("let it catch up"), "{refused}");
    how.force = true;
    node.campaign(Now::default(), &led, &how).unwrap();
    assert_eq!(led.role(), crate::Role::Leader);
    let crate::replica::Campaign::Won(promotion) = node.campaign_of(&led) else {
        panic!("it asked nobody");
    };
    assert_eq!(promotion.epoch, led.stats().epoch);
    assert!(
        promotion
            .may_be_lost
            .unwrap()
            .contains("none of them was asked")
    );
}

#[test]
fn a_dataset_that_a_failed_reopen_left_closed_follows_again() {
    let (db, mut node) = lonely();
    let dataset = db.follower("").unwrap();
    dataset.inner().close().unwrap();
    assert!(dataset.health().is_err());
    node.follow(Now::default(), &dataset, &["b".to_owned()])
        .unwrap();
    dataset.health().unwrap();
    let status = node.follow_status(&dataset);
    assert_eq!((status.leader.as_str(), status.connected), ("b", false));
    // Work behind its back, and it goes on following; one that does not follow is only opened again.
    assert_eq!(node.closed(Now::default(), &dataset, || 7).unwrap(), 7);
    assert_eq!(node.follow_status(&dataset).leader, "b");
    let other = db.follower("other").unwrap();
    assert_eq!(node.closed(Now::default(), &other, || 8).unwrap(), 8);
    assert_eq!(node.follow_status(&other).leader, "");
    node.retire(Now::default(), &dataset);
    assert!(matches!(
        node.campaign_of(&dataset),
        crate::replica::Campaign::Open
    ));
}

/// The logs of two shards come side by side: an older version of a key may come behind a newer one, which
/// a sealed memtable or a table has already.
#[test]
fn an_older_version_that_comes_later_hides_no_newer_one() {
    for (is_removed, is_flushed) in [(false, false), (false, true), (true, false), (true, true)] {
        let stores = Stores::new();
        let options = Stores::options();
        let route = |key: &[u8]| options.router.route(options.entity_rule.entity_of(key));
        let key_of = |shard| {
            let mut keys = (0u32..).map(u32::to_be_bytes);
            keys.find(|key| route(key) == ShardId(shard)).unwrap()
        };
        let (key, other) = (key_of(1), key_of(0));
        let map = stores.leader.keyspace("map").unwrap();
        map.put(key, "first").unwrap();
        stores.ship(ShardId(0));
        stores.ship(ShardId(1));
        stores.commit();
        stores.follower.flush().unwrap();
        map.put(key, "older").unwrap();
        let mut batch = stores.leader.dataset("").unwrap().batch();
        batch.put(&map, other, "other").unwrap();
        match is_removed {
            true => batch.delete(&map, key).unwrap(),
            false => batch.put(&map, key, "newer").unwrap(),
        };
        batch.commit().unwrap();
        stores.ship(ShardId(0));
        // It cannot be flushed yet, and takes no more.
        stores.follower.flush().unwrap();
        stores.ship(ShardId(1));
        stores.commit();

        let wanted: Vec<_> = map.iter().map(|entry| entry.unwrap().1.to_vec()).collect();
        let check = |what: &str| {
            let map = stores.follower.keyspace("map").unwrap();
            let what = format!("removed {is_removed}, flushed {is_flushed}, {what}");
            let newer = (!is_removed).then_some(&b"newer"[..]);
            assert_eq!(map.get(key).unwrap().as_deref(), newer, "{what}");
            let found: Vec<_> = map.iter().map(|entry| entry.unwrap().1.to_vec()).collect();
            assert_eq!(found, wanted, "{what}");
            assert_eq!(map.len().unwrap(), wanted.len() as u64, "{what}");
        };
        check("in memory");
        let store = stores.joint().store();
        assert!(store.flush_oldest().unwrap());
        if is_flushed {
            stores.follower.flush().unwrap();
        }
        check("in a table below");
        assert!(store.compact_step(&|| true).unwrap());
        check("merged");
        stores.follower.dataset("").unwrap().compact().unwrap();
        check("all in one");
    }
}

/// What a follower lacks must not be in tables, and one that was not heard yet may lack anything.
#[test]
fn a_leader_settles_once_its_followers_were_heard() {
    let machine = SimEnv::new(1);
    let db = open(&machine);
    let map = db.keyspace("map").unwrap();
    map.put("key", "value").unwrap();
    let dataset = db.dataset("").unwrap();
    let store = dataset.inner().store();
    machine.clock.advance_ms(200);
    let last_seq = dataset.positions()[0].seq;
    for (floor, step_count) in [(u64::MAX, 0), (last_seq, 0), (last_seq + 1, 1)] {
        store.set_floor(ShardId(0), floor);
        assert_eq!(db.run_background(8).unwrap(), step_count, "{floor}");
    }
    assert_eq!(dataset.stats().run_count, 1);
}
