//! Tests of what errors say to people and of whom they tell to act.

use super::*;

use Actor::*;

fn position(epoch: u32, seq: u64) -> Position {
    Position {
        epoch: Epoch(epoch),
        seq,
    }
}

/// The error says each of these words, and names who must act.
#[track_caller]
fn check(error: Error, actor: Actor, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    assert_eq!(error.actor(), actor, "{text}");
    assert_eq!(error.is_transient(), actor == Retry, "{text}");
}

#[test]
fn every_error_names_its_peer_place_and_values_and_who_must_act() {
    check(
        Error::protocol("node-b", "Data while greeting"),
        Bug,
        &["node-b broke the protocol: Data while greeting", "bug"],
    );
    check(
        Error::Damaged {
            what: "frame checksum",
            expected: "0x1".to_owned(),
            found: "0x2".to_owned(),
        },
        Retry,
        &["frame checksum is damaged: expected 0x1, found 0x2", "anew"],
    );
    check(
        Error::Diverged {
            shard: ShardId(3),
            at: position(2, 17),
            ours: 0xab,
            theirs: 0xcd,
        },
        Restore,
        &["shard 3", "17", "0x000000ab", "0x000000cd", "verify both"],
    );
    check(
        Error::Outlived {
            won: Epoch(4),
            leader: "node-a".to_owned(),
        },
        Operator,
        &["promoted to epoch 4", "node-a leads", "yield epoch 4"],
    );
    check(
        Error::BelowCommitted {
            shard: ShardId(3),
            committed: 20,
            to: 15,
        },
        Operator,
        &["shard 3", "cut to 15", "committed record 20", "promote"],
    );
    check(
        Error::Fenced {
            epoch: Epoch(8),
            ours: Epoch(7),
        },
        Operator,
        &["epoch 8 is known", "epoch 7 is over", "reopen as follower"],
    );
    check(
        Error::OtherLineage {
            ours: Lineage([0x11; 16]),
            theirs: Lineage([0x22; 16]),
        },
        Operator,
        &["lineage 1111", "there of 2222", "clone"],
    );
    check(
        Error::TooFewPromises {
            needed: 3,
            found: 2,
        },
        Operator,
        &["2 of 3 promises", "start more"],
    );
    check(
        Error::Coordinator {
            name: "etcd://127.0.0.1:1".to_owned(),
            what: "connection refused".to_owned(),
        },
        Retry,
        &["etcd://127.0.0.1:1", "connection refused", "again"],
    );
    check(
        Error::CoordinatorUnsafe {
            name: "s3://bucket".to_owned(),
            what: "it took one object twice".to_owned(),
        },
        Operator,
        &["s3://bucket is unsafe", "took one object twice", "etcd"],
    );
    check(
        Error::BadRecord {
            what: "its leader is no member".to_owned(),
        },
        Operator,
        &["record is wrong: its leader is no member", "restore"],
    );
    check(
        Error::Pruned {
            shard: ShardId(1),
            needed: 5,
            first_available: 9,
        },
        Operator,
        &["shard 1", "from 5 on", "starts with 9", "checkpoint"],
    );
    check(
        Error::unreachable("node-c", "it closed the connection"),
        Retry,
        &["node-c is not reachable: it closed the connection", "again"],
    );
    check(
        Error::Full {
            what: "command queue",
            limit: 1024,
        },
        Retry,
        &["command queue is full at 1024"],
    );
    check(
        Error::Certificate {
            file: "node.pem".to_owned(),
            what: "no certificate in PEM stands in it".to_owned(),
        },
        Operator,
        &["node.pem", "no certificate in PEM"],
    );
    check(
        Error::NotLoopback {
            address: "192.0.2.1:7".parse().unwrap(),
        },
        Operator,
        &["192.0.2.1:7", "loopback", "tls or a tunnel"],
    );
    check(
        Error::UnknownPeer {
            name: "node-d".to_owned(),
        },
        Caller,
        &["\"node-d\"", "list it among the peers"],
    );
    check(
        Error::Io {
            op: "listen on",
            what: "127.0.0.1:7".to_owned(),
            source: Arc::new(std::io::ErrorKind::AddrInUse.into()),
        },
        Operator,
        &["listen on 127.0.0.1:7: address in use"],
    );
    check(
        Error::Store {
            what: "no bundle is open".to_owned(),
        },
        Operator,
        &["the store failed: no bundle is open"],
    );
}

#[test]
fn a_failure_of_the_log_is_told_in_its_own_words() {
    let path = std::path::Path::new("/log/a.seg");
    let rot = strandline_wal::Error::corrupt(path, 512, "batch", "record 7", "zeros");
    check(rot.into(), Restore, &["/log/a.seg", "byte 512", "record 7"]);
    let newer = strandline_wal::Error::Unsupported {
        path: path.to_owned(),
        expected: "segment version 2".to_owned(),
        found: "segment version 3".to_owned(),
    };
    check(newer.into(), Operator, &["/log/a.seg is segment version 3"]);
}

#[test]
fn every_reason_has_its_byte_its_words_and_someone_to_act() {
    let table = [
        (Reason::Version, Operator, "no common protocol version"),
        (Reason::UnknownDataset, Retry, "unknown dataset"),
        (Reason::Lineage, Operator, "another lineage"),
        (Reason::StaleEpoch, Retry, "stale epoch"),
        (Reason::NotLeader, Retry, "not the leader"),
        (Reason::Shards, Operator, "other shards"),
        (Reason::Diverged, Restore, "diverged"),
        (Reason::Pruned, Operator, "pruned"),
        (Reason::Busy, Retry, "busy"),
        (Reason::Protocol, Bug, "protocol error"),
        (Reason::Loop, Operator, "a node cannot follow itself"),
        (Reason::Name, Operator, "another node's name"),
    ];
    for (byte, (reason, actor, words)) in (1..).zip(table) {
        assert_eq!(Reason::of(byte), Some(reason));
        let refused = Error::Refused {
            reason,
            text: "why".to_owned(),
            have: "this".to_owned(),
            want: "that".to_owned(),
        };
        let sides = "why (this side has this, the other has that)";
        check(refused, actor, &[&format!("refused, {words}:"), sides]);
    }
    for byte in [0, table.len() as u8 + 1, u8::MAX] {
        assert_eq!(Reason::of(byte), None, "{byte}");
    }
}
