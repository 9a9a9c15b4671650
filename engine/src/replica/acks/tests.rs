//! Tests of the wait for followers.

use strandline_wal::io::sim::SimEnv;

use super::*;
use crate::options::{Background, Options};

#[test]
fn a_write_that_no_follower_confirms_is_not_acknowledged() {
    let options = Options {
        background: Background::Manual,
        ack_timeout_ms: 1,
        ..Options::default()
    };
    let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
    let map = db.keyspace("map").unwrap();
    let written = map.put_with("key", "value", Durability::Durable(1));
    assert!(
        matches!(written, Err(Error::Unacknowledged { .. })),
        "{written:?}"
    );
    map.put_with("key", "value", Durability::Disk).unwrap();
}

#[test]
fn each_level_asks_the_confirmations_of_its_own() {
    let acks = Acks::new(2);
    let first = ShardAcks {
        received: vec![9, 5],
        durable: vec![8, 4],
        applied: vec![7],
    };
    acks.confirm(0, first);
    for (level, wanted) in [
        (Durability::Received(1), [9, 0]),
        (Durability::Received(2), [5, 0]),
        (Durability::Received(3), [0, 0]),
        (Durability::Durable(1), [8, 0]),
        (Durability::Durable(0), [8, 0]),
        (Durability::Applied(1), [7, 0]),
        (Durability::Applied(2), [0, 0]),
        (Durability::Disk, [u64::MAX; 2]),
        (Durability::Os, [u64::MAX; 2]),
        (Durability::Memory, [u64::MAX; 2]),
    ] {
        assert_eq!(acks.confirmed(level), wanted, "{level:?}");
    }
    acks.reset(1).tell();
    assert_eq!(acks.confirmed(Durability::Received(1)), [0]);
}

#[test]
fn a_wait_ends_with_the_confirmation_or_with_the_leadership() {
    let options = Options {
        background: Background::Manual,
        ..Options::default()
    };
    let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("key", "value").unwrap();
    let dataset = db.dataset("").unwrap();
    let (store, acks) = (dataset.inner().store(), &dataset.inner().acks);
    let wait = || acks.wait(&Pending::all(&store, Durability::Received(1)));
    let seq = dataset.positions()[0].seq;
    std::thread::scope(|threads| {
        let waiting = threads.spawn(wait);
        for seq in [seq - 1, seq] {
            let received = vec![seq];
            acks.confirm(
                0,
                ShardAcks {
                    received,
                    ..ShardAcks::default()
                },
            );
        }
        waiting.join().unwrap().unwrap();
    });
    acks.fence(Error::Fenced { ours: 1, found: 2 });
    let ended = wait();
    assert!(matches!(ended, Err(Error::Fenced { .. })), "{ended:?}");
    acks.reset(1).tell();
    db.close().unwrap();
    let ended = wait();
    assert!(matches!(ended, Err(Error::Closed(_))), "{ended:?}");
}
