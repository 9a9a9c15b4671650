//! Tests of the batch codec: golden files, the byte table, and damage of every kind.

use super::*;
use proptest::prelude::*;

/// Holds the byte tables of a module's head against its constants.
pub(crate) fn table_offsets(source: &str, field_column: &str) -> Vec<(String, usize, usize)> {
    let mut rows = Vec::new();
    let mut inside = false;
    for line in source.lines().take_while(|line| line.starts_with("//!")) {
        let cells: Vec<&str> = line
            .trim_start_matches("//!")
            .split('|')
            .map(str::trim)
            .collect();
        if cells.len() < 5 {
            inside = false;
            continue;
        }
        if cells[1] == "Offset" {
            inside = cells[3] == field_column;
            continue;
        }
        if let (true, Ok(at), Ok(len)) = (inside, cells[1].parse(), cells[2].parse()) {
            rows.push((cells[3].to_owned(), at, len));
        }
    }
    rows
}

#[test]
fn the_byte_table_is_the_constants() {
    let rows = table_offsets(include_str!("../batch.rs"), "Field");
    let constants = [
        ("magic", at::MAGIC),
        ("version", at::VERSION),
        ("flags", at::FLAGS),
        ("header_len", at::HEADER_LEN),
        ("first_seq", at::FIRST_SEQ),
        ("record_count", at::RECORD_COUNT),
        ("payload_len", at::PAYLOAD_LEN),
        ("unsynced", at::UNSYNCED),
        ("epoch", at::EPOCH),
        ("timestamp", at::TIMESTAMP),
        ("nonce", at::NONCE),
        ("prev_crc", at::PREV_CRC),
        ("payload_crc", at::PAYLOAD_CRC),
        ("header_crc", at::HEADER_CRC),
        ("ordinal", at::ORDINAL),
        ("shard_id", at::SHARD_ID),
        ("region_id", at::REGION_ID),
        ("tail", at::TAIL),
    ];
    assert_eq!(rows.len(), constants.len());
    let mut end = 0;
    for ((name, at, len), (constant, offset)) in rows.iter().zip(constants) {
        assert_eq!((name.as_str(), *at), (constant, offset));
        assert_eq!(*at, end, "{name} leaves a gap");
        end = at + len;
    }
    assert_eq!(end, HEADER_LEN);
    assert_eq!(
        (at::SHARD_ID, at::REGION_ID),
        (58, 60),
        "given by the mission"
    );
}

fn sample() -> (BatchHeader, Vec<u8>) {
    let mut payload = Payload::new();
    payload
        .push(
            Kind::Put,
            ShardId(3),
            &[&7u32.to_be_bytes(), b"key"],
            b"value",
        )
        .unwrap();
    payload
        .push(
            Kind::Delete,
            ShardId(4),
            &[&7u32.to_be_bytes(), b"gone"],
            b"",
        )
        .unwrap();
    let payload = payload.seal(flags::CROSS_SHARD);
    let header = BatchHeader {
        version: 2,
        flags: payload.flags(),
        first_seq: 42,
        record_count: 2,
        payload_len: payload.bytes().len() as u32,
        unsynced: 5,
        epoch: Epoch(9),
        timestamp: Hlc(0x0123_4567_89ab_cdef),
        nonce: 0xdead_beef,
        prev_crc: 0x1234_5678,
        payload_crc: payload.crc(),
        ordinal: 0x0102,
        shard: ShardId(3),
        region: RegionId(2),
    };
    let mut bytes = header.encode().0.to_vec();
    bytes.extend_from_slice(payload.bytes());
    (header, bytes)
}

/// Bytes of a hex file: two digits a byte, `#` to the end of the line is a remark.
fn hex(text: &str) -> Vec<u8> {
    let digits: String = text
        .lines()
        .map(|line| line.split('#').next().unwrap())
        .collect::<String>()
        .split_whitespace()
        .collect();
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap())
        .collect()
}

#[test]
fn the_golden_batch_of_version_2_is_what_we_write() {
    let golden = hex(include_str!("../../tests/data/batch-v2.hex"));
    let (header, bytes) = sample();
    assert_eq!(bytes, golden);
    assert_eq!(Batch::decode(&golden).unwrap().header, header);
}

#[test]
fn the_golden_batch_of_version_1_is_shard_0_of_region_0() {
    let golden = hex(include_str!("../../tests/data/batch-v1.hex"));
    let batch = Batch::decode(&golden).unwrap();
    assert_eq!(batch.header.version, 1);
    assert_eq!(
        (batch.header.shard, batch.header.region),
        (ShardId(0), RegionId(0))
    );
    assert_eq!((batch.header.epoch, batch.header.first_seq), (Epoch(0), 7));
    let records: Vec<_> = batch.records().map(Result::unwrap).collect();
    assert_eq!(records.len(), 1);
    assert_eq!(
        (records[0].head, records[0].body),
        (&b"\0\0\0\x01hello"[..], &b"world"[..])
    );
}

#[test]
fn the_version_byte_alone_gates_decoding() {
    let (_, mut bytes) = sample();
    // A version 2 batch of shard 0, region 0 is still version 2.
    for zero in [
        at::SHARD_ID,
        at::SHARD_ID + 1,
        at::REGION_ID,
        at::REGION_ID + 1,
    ] {
        bytes[zero] = 0;
    }
    let fix = |bytes: &mut Vec<u8>| {
        let crc = header_crc(bytes.first_chunk().unwrap());
        put(bytes, at::HEADER_CRC, &crc.to_le_bytes());
    };
    fix(&mut bytes);
    assert_eq!(Batch::decode(&bytes).unwrap().header.version, 2);
    // And a version 1 batch with an epoch is refused, not taken for version 2.
    bytes[at::VERSION] = 1;
    fix(&mut bytes);
    assert!(matches!(
        Batch::decode(&bytes),
        Err(Damage::Field {
            field: "zeros of version 1",
            ..
        })
    ));
    bytes[at::VERSION] = 3;
    fix(&mut bytes);
    assert_eq!(Batch::decode(&bytes).unwrap_err(), Damage::Version(3));
}

#[test]
fn every_flipped_bit_is_detected() {
    let (_, good) = sample();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            assert!(Batch::decode(&bytes).is_err(), "byte {at} bit {bit}");
        }
    }
}

#[test]
fn every_short_prefix_is_short() {
    let (_, good) = sample();
    for len in 0..good.len() {
        assert!(
            matches!(Batch::decode(&good[..len]), Err(Damage::Short { .. })),
            "{len} bytes"
        );
    }
}

#[test]
fn unwritten_space_is_told_from_damage() {
    assert_eq!(Batch::decode(&[0; 100]).unwrap_err(), Damage::Unwritten);
}

#[test]
fn records_that_no_writer_makes_are_refused() {
    fn check(payload: &[u8], record_count: u32, what: &str) {
        let records = Records {
            payload,
            at: 0,
            left: record_count,
            failed: false,
        };
        match records
            .map(|r| r.map(|_| ()))
            .collect::<Result<Vec<()>, _>>()
        {
            Err(Damage::Record { what: found, .. }) => assert_eq!(found, what),
            other => panic!("{other:?} instead of {what}"),
        }
    }
    let record = |kind: u8, flags: u8, head_len: u32, body_len: u32| {
        let mut bytes = vec![kind, flags, 0, 0];
        bytes.extend_from_slice(&head_len.to_le_bytes());
        bytes.extend_from_slice(&body_len.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(8) + 8, 0);
        bytes
    };
    check(&record(0, 0, 0, 0), 1, "kind");
    for reserved in KINDS_RESERVED {
        check(&record(reserved, 0, 0, 0), 1, "kind");
    }
    check(&record(1, 1, 0, 0), 1, "flags");
    check(&record(1, 0, u32::MAX, 0), 1, "head_len");
    check(&record(1, 0, 0, u32::MAX), 1, "length");
    check(&record(1, 0, 0, 0), 1, "padding");
    check(&[1; 4], 1, "bytes left");
}

proptest! {
    #[test]
    fn records_come_back_as_they_went(
        records in proptest::collection::vec(
            (0u8..2, any::<u16>(), proptest::collection::vec(any::<u8>(), 0..40),
             proptest::collection::vec(any::<u8>(), 0..200)), 1..20),
    ) {
        let mut payload = Payload::new();
        for (kind, shard, head, body) in &records {
            let kind = if *kind == 0 { Kind::Put } else { Kind::Delete };
            payload.push(kind, ShardId(*shard), &[head], body).unwrap();
        }
        let sealed = payload.seal(0);
        prop_assert!(sealed.bytes().len().is_multiple_of(ALIGN));
        let back: Vec<_> = sealed.records().map(Result::unwrap).collect();
        prop_assert_eq!(back.len(), records.len());
        for (record, (_, shard, head, body)) in back.iter().zip(&records) {
            prop_assert_eq!(record.shard, ShardId(*shard));
            prop_assert_eq!(record.head, &head[..]);
            prop_assert_eq!(record.body, &body[..]);
            prop_assert_eq!(&sealed.bytes()[record.body_at..record.body_at + body.len()], &body[..]);
        }
    }

    #[test]
    fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(batch) = Batch::decode(&bytes) {
            for record in batch.records() {
                let _ = record.is_ok();
            }
        }
    }
}

#[test]
fn a_batch_without_an_epoch_is_none() {
    let (mut header, _) = sample();
    header.epoch = Epoch(0);
    let damage = BatchHeader::decode(&header.encode().0).unwrap_err();
    assert!(
        matches!(damage, Damage::Field { field: "epoch", .. }),
        "{damage}"
    );
}
