//! Tokens: their bytes, and what a node answers.

use strandline_wal::io::sim::SimEnv;

use super::*;
use crate::options::{Background, Options};

fn sample() -> WriteToken {
    WriteToken {
        lineage: [1; 16],
        leader: [2; 16],
        epoch: Epoch(3),
        shard: ShardId(4),
        seq: 5,
        timestamp: Hlc(6),
    }
}

#[test]
fn a_token_comes_back_from_its_bytes_and_its_text() {
    let bytes = sample().to_bytes();
    assert_eq!(bytes[..8], *b"SDLT\x01\0\x04\0");
    assert_eq!(bytes[8..24], [1; 16]);
    assert_eq!(bytes[24..40], [2; 16]);
    assert_eq!(bytes[40..48], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[48..56], 5u64.to_le_bytes());
    assert_eq!(bytes[56..64], 6u64.to_le_bytes());
    assert_eq!(WriteToken::from_bytes(&bytes).unwrap(), sample());
    let text = sample().to_string();
    assert_eq!(text.len(), 2 * TOKEN_LEN);
    assert_eq!(text.parse::<WriteToken>().unwrap(), sample());
}

#[test]
fn what_is_no_token_is_refused_by_what_is_wrong() {
    let good = sample().to_bytes();
    for at in 0..TOKEN_LEN {
        let mut bytes = good;
        bytes[at] ^= 1;
        assert!(WriteToken::from_bytes(&bytes).is_err(), "byte {at}");
    }
    let resealed = |at: usize| {
        let mut bytes = good;
        bytes[at] ^= 2;
        let crc = crc32fast::hash(&bytes[..64]);
        bytes[64..].copy_from_slice(&crc.to_le_bytes());
        WriteToken::from_bytes(&bytes).unwrap_err().to_string()
    };
    assert!(resealed(4).contains("version 3"), "{}", resealed(4));
    assert!(resealed(44).contains("version 1"), "{}", resealed(44));
    for (text, word) in [("", "0 bytes"), ("0", "hexadecimal"), ("zz", "hexadecimal")] {
        let error = text.parse::<WriteToken>().unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_later_leadership_that_began_before_a_write_lost_it() {
    let entry = |epoch, leader: u8, first_seq| EpochEntry {
        epoch: Epoch(epoch),
        leader: [leader; 16],
        first_seq,
    };
    // The write is record 5 of epoch 3, led by 2.
    let lost = |common_seq| Standing::Lost { common_seq };
    for (epochs, wanted) in [
        (vec![entry(1, 9, 1), entry(3, 2, 4)], Standing::Here),
        (vec![entry(3, 2, 4), entry(4, 7, 6)], Standing::Here),
        (vec![entry(3, 2, 4), entry(4, 7, 5)], lost(4)),
        (vec![entry(1, 9, 1), entry(4, 7, 3)], lost(2)),
        (vec![entry(1, 9, 1), entry(3, 8, 4)], lost(3)),
        // The record of that number is of an earlier leadership, which has not heard of the later one.
        (vec![entry(1, 9, 1)], Standing::Elsewhere),
        (vec![entry(1, 9, 1), entry(3, 2, 6)], Standing::Elsewhere),
        (vec![], Standing::Elsewhere),
    ] {
        assert_eq!(standing(&epochs, &sample()), wanted, "{epochs:?}");
    }
}

#[test]
fn a_leader_has_its_own_writes_and_refuses_what_is_of_another_history() {
    let machine = SimEnv::new(1);
    let options = Options {
        background: Background::Manual,
        ..Options::default()
    };
    let db = options.open_with("/db", machine.env()).unwrap();
    let dataset = db.dataset("").unwrap();
    let map = db.keyspace("map").unwrap();
    let submit = || {
        let mut batch = dataset.batch();
        batch.put(&map, "key", "value").unwrap();
        batch.submit().unwrap().token()
    };
    let wait = |token: &WriteToken, arrival| dataset.wait_for(token, arrival, Duration::ZERO);
    for arrival in [Arrival::Received, Arrival::Durable, Arrival::Applied] {
        let token = submit();
        assert_eq!(wait(&token, arrival).unwrap(), Arrived::Yes);
    }
    assert_eq!(map.len().unwrap(), 1);
    let token = submit();
    let later = WriteToken {
        seq: token.seq + 1,
        timestamp: Hlc(u64::MAX - 1),
        ..token
    };
    let never = wait(&later, Arrival::Applied).unwrap();
    assert_eq!(never, Arrived::Timeout);
    assert_eq!(token.later(later), later);
    assert_eq!(later.later(token), later);
    let foreign = WriteToken {
        lineage: [9; 16],
        ..token
    };
    let error = wait(&foreign, Arrival::Applied).unwrap_err().to_string();
    assert!(error.contains("lineage 0909"), "{error}");
    let error = wait(
        &WriteToken {
            shard: ShardId(7),
            ..token
        },
        Arrival::Applied,
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("1 shards"), "{error}");
    let forked = WriteToken {
        leader: [9; 16],
        ..token
    };
    let lost = wait(&forked, Arrival::Received).unwrap();
    assert!(matches!(lost, Arrived::LostInFork { .. }), "{lost:?}");
}
