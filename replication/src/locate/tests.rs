//! Tests of where ends lie in logs: at batch ends, within batches, behind the end, and in what is gone.

use strandline_wal::batch::{Kind, Payload};
use strandline_wal::io::sim::SimEnv;
use strandline_wal::{Epoch, Hlc};

use super::*;
use crate::testing::{Setup, TestStore, writer};

const S0: ShardId = ShardId(0);

fn base(seq: u64) -> ShardEnd {
    ShardEnd {
        position: Position {
            epoch: Epoch(1),
            seq,
        },
        chain: 0xba5e,
        ..ShardEnd::empty(S0)
    }
}

fn gone(first_available: u64) -> Place {
    Place::Pruned { first_available }
}

#[test]
fn a_log_without_segments_is_at_its_base() {
    let env = SimEnv::new(1);
    let log = Arc::clone(writer(&env, &[], 0).log());
    let at_base = Place::End {
        segment: 8,
        at: 0,
        chain: 0xba5e,
    };
    assert_eq!(end_of(&log, &base(7), 7).unwrap(), at_base);
    assert_eq!(end_of(&log, &base(7), 6).unwrap(), gone(8));
    assert_eq!(end_of(&log, &base(7), 8).unwrap(), Place::Nowhere);
}

/// Batches of two records: 1 to 6 in one segment, 7 to 12 in the next.
#[test]
fn an_end_is_the_end_of_a_batch_and_nothing_else() {
    let env = SimEnv::new(1);
    let log = Arc::clone(writer(&env, &[1, 2], 2).log());
    let none = ShardEnd::empty(S0);
    for seq in 0..=14 {
        let place = end_of(&log, &none, seq).unwrap();
        let is_end = seq % 2 == 0 && seq <= 12;
        assert_eq!(
            matches!(place, Place::End { .. }),
            is_end,
            "{seq}: {place:?}"
        );
        assert!(is_end || place == Place::Nowhere, "{seq}");
        if let Place::End { segment, at, chain } = place {
            assert_eq!(segment, if seq <= 6 { 1 } else { 7 });
            let data_len = log.segment(segment).unwrap().data_len();
            assert_eq!(at == data_len, seq == 6 || seq == 12);
            assert_eq!(chain == 0, seq == 0);
        }
    }
}

#[test]
fn what_was_dropped_is_told_with_what_is_still_there() {
    let env = SimEnv::new(1);
    let log = Arc::clone(writer(&env, &[1, 2, 3, 4], 1).log());
    let none = ShardEnd::empty(S0);
    drop(log.detach(&[4]));
    assert_eq!(end_of(&log, &none, 5).unwrap(), gone(7), "in the hole");
    drop(log.detach(&[1]));
    assert_eq!(end_of(&log, &none, 0).unwrap(), gone(7));
    assert_eq!(
        end_of(&log, &none, 6).unwrap(),
        gone(7),
        "its footer went too"
    );
    assert_eq!(end_of(&log, &base(9), 8).unwrap(), gone(10));
    assert!(matches!(
        end_of(&log, &base(6), 9).unwrap(),
        Place::End { segment: 7, .. }
    ));
}

#[test]
fn behind_a_sealed_end_there_is_nothing() {
    let env = SimEnv::new(1);
    let mut writer = writer(&env, &[1], 1);
    writer.seal().unwrap();
    let log = Arc::clone(writer.log());
    assert_eq!(end_of(&log, &base(0), 4).unwrap(), Place::Nowhere);
    let footer = next(&log, 1, log.segment(1).unwrap().data_len(), 100).unwrap();
    assert!(matches!(footer, Next::Footer(_)));
    let beyond = log.segment(1).unwrap().data_len() + 8;
    assert!(matches!(next(&log, 1, beyond, 100).unwrap(), Next::AtTail));
    assert!(matches!(next(&log, 4, 0, 100).unwrap(), Next::AtTail));
    assert!(matches!(next(&log, 2, 0, 100).unwrap(), Next::Pruned));
    let Next::Bytes(bytes) = next(&log, 1, 512, 100).unwrap() else {
        panic!("it has bytes")
    };
    assert_eq!(bytes.len(), 100);
}

/// A store that leads epoch 5 with records 1 to 4, the first one the start batch.
fn leader() -> Arc<TestStore> {
    let env = SimEnv::new(1).env();
    let store = TestStore::lead(&env, "/data".as_ref(), Setup::new("a"), Epoch(5)).unwrap();
    (0..3).for_each(|_| assert!(store.write(S0, b"value").is_some()));
    store
}

#[test]
fn an_end_with_other_bytes_is_divergence_and_names_both_chains() {
    let store = leader();
    let end = store.end(S0);
    let agreed = verdict(store.as_ref(), None, &end).unwrap();
    assert!(matches!(agreed, Verdict::Agreed { position, .. } if position == end.position));
    let ask = |seq, chain| ShardEnd {
        position: Position {
            seq,
            ..end.position
        },
        chain,
        ..end
    };
    let diverged = |ask: ShardEnd, live| match verdict(store.as_ref(), live, &ask) {
        Err(Error::Diverged {
            at, ours, theirs, ..
        }) => {
            assert_eq!((at, theirs), (ask.position, ask.chain));
            ours
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(diverged(ask(4, end.chain ^ 1), None), end.chain);
    assert_eq!(
        diverged(ask(9, 7), Some(end.leader)),
        0,
        "more than it wrote"
    );
    let ends = verdict(store.as_ref(), None, &ask(9, 7)).unwrap();
    assert!(matches!(ends, Verdict::Ends { position, .. } if position == end.position));
}

#[test]
fn a_fall_back_ends_where_both_may_agree() {
    let store = leader();
    let end = store.end(S0);
    let told = |epoch, seq| Position {
        epoch: Epoch(epoch),
        seq,
    };
    let back = |told| fall_back(store.as_ref(), S0, told, end.leader).unwrap();
    assert_eq!(back(told(5, 4)), end);
    assert_eq!(back(told(5, 9)), end, "no further than it has");
    assert_eq!(back(told(4, 9)), ShardEnd::empty(S0));
    assert_eq!(back(told(5, 2)).position.seq, 2);
}

#[test]
fn a_log_that_was_pruned_answers_by_its_base() {
    let store = leader();
    for n in 0..100u8 {
        store.write(S0, &[n; 2_000]).unwrap();
    }
    let end = store.end(S0);
    store.prune(S0, 1);
    let first = store.log(S0).first_seq();
    assert!(first > 1);
    let ask = ShardEnd {
        position: Position {
            seq: 1,
            ..end.position
        },
        ..end
    };
    let pruned = verdict(store.as_ref(), None, &ask).unwrap();
    let expected = Verdict::Pruned {
        shard: S0,
        first_available: first,
    };
    assert_eq!(pruned, expected);
    let Err(Error::Pruned {
        needed,
        first_available,
        ..
    }) = fall_back(store.as_ref(), S0, ask.position, end.leader)
    else {
        panic!("it does not reach back")
    };
    assert_eq!((needed, first_available), (1, first));
    let (log, table, base) = (store.log(S0), store.epochs(S0), store.base(S0));
    let found = super::end(S0, &log, &table, &base).unwrap();
    assert_eq!(found, end);
    let ahead = ShardEnd {
        position: Position {
            seq: end.position.seq + 9,
            ..end.position
        },
        ..base
    };
    assert_eq!(super::end(S0, &log, &table, &ahead).unwrap(), ahead);
}

/// Two leaders that count alike and batch otherwise: no prefix of each other, and nothing to cut.
#[test]
fn an_end_within_a_batch_is_divergence() {
    let store = leader();
    store.write_batch(S0, &[b"one", b"two"]).unwrap();
    let end = store.end(S0);
    assert_eq!(end.position.seq, 6);
    let inside = Position {
        seq: 5,
        ..end.position
    };
    let ask = ShardEnd {
        position: inside,
        ..end
    };
    let asked = verdict(store.as_ref(), None, &ask).unwrap_err();
    let told = fall_back(store.as_ref(), S0, inside, end.leader).unwrap_err();
    for error in [asked, told] {
        let Error::Diverged { at, ours, .. } = error else {
            panic!("{error}")
        };
        assert_eq!((at, ours), (inside, 0));
    }
}

#[test]
fn a_header_travels_with_its_first_batch() {
    let env = SimEnv::new(1);
    let mut writer = writer(&env, &[1], 1);
    writer.start_epoch(Epoch(2)).unwrap();
    let mut payload = Payload::new();
    payload.push(Kind::Put, S0, &[b"key"], b"late").unwrap();
    let payload = payload.seal(0);
    let timestamp = Hlc(writer.tail().timestamp.0 + 1);
    let reserved = writer.reserve(&payload, timestamp, 0).unwrap();
    let log = Arc::clone(writer.log());
    assert!(matches!(next(&log, 4, 0, 9_000).unwrap(), Next::AtTail));
    reserved.fill(&payload).publish();
    let Next::Bytes(bytes) = next(&log, 4, 0, 9_000).unwrap() else {
        panic!("it is published")
    };
    assert_eq!(bytes.len() as u64, log.segment(4).unwrap().data_len());
}
