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
fn version_1_has_zeros_in_every_later_field() {
    let golden = hex(include_str!("../../tests/data/batch-v1.hex"));
    let later = [
        at::EPOCH,
        at::NONCE,
        at::PREV_CRC,
        at::ORDINAL,
        at::SHARD_ID,
        at::REGION_ID,
    ];
    for (first, second) in later.iter().flat_map(|a| later.map(|b| (*a, b))) {
        let mut bytes = golden.clone();
        (bytes[first], bytes[second]) = (5, 5);
        let crc = header_crc(bytes.first_chunk().unwrap());
        put(&mut bytes, at::HEADER_CRC, &crc.to_le_bytes());
        let damage = Batch::decode(&bytes).unwrap_err();
        let field = "zeros of version 1";
        assert!(
            matches!(damage, Damage::Field { field: found, .. } if found == field),
            "{damage}"
        );
    }
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

/// What a checksum cannot hold: whoever forges a header can forge its checksum too.
#[test]
fn a_header_that_no_writer_makes_is_refused_by_field() {
    let mut payload = Payload::new();
    payload.push(Kind::Put, ShardId(0), &[b"k"], b"v").unwrap();
    let payload = payload.seal(0);
    let header = BatchHeader {
        version: VERSION,
        flags: 0,
        first_seq: 1,
        record_count: 1,
        payload_len: payload.bytes().len() as u32,
        unsynced: 0,
        epoch: Epoch(1),
        timestamp: Hlc(1),
        nonce: 1,
        prev_crc: 0,
        payload_crc: payload.crc(),
        ordinal: 0,
        shard: ShardId(0),
        region: RegionId(0),
    };
    let longest = (PAYLOAD_LEN_MAX + ALIGN) as u32;
    let cases: [(usize, &[u8], &str, u64); 9] = [
        (at::TAIL, &[1, 0], "tail", 1),
        (at::HEADER_LEN, &[63, 0], "header_len", 63),
        (at::FLAGS, &[4], "flags", 4),
        (at::FIRST_SEQ, &[0; 8], "first_seq", 0),
        (at::FIRST_SEQ, &[255; 8], "first_seq", u64::MAX),
        (at::RECORD_COUNT, &[0; 4], "record_count", 0),
        (
            at::PAYLOAD_LEN,
            &longest.to_le_bytes(),
            "payload_len",
            longest.into(),
        ),
        (at::PAYLOAD_LEN, &[17, 0, 0, 0], "payload_len", 17),
        (at::EPOCH, &[0; 4], "epoch", 0),
    ];
    for (place, patch, field, found) in cases {
        let mut bytes = header.encode().0;
        put(&mut bytes, place, patch);
        let crc = header_crc(&bytes);
        put(&mut bytes, at::HEADER_CRC, &crc.to_le_bytes());
        let damage = BatchHeader::decode(&bytes).unwrap_err();
        assert_eq!(damage, Damage::Field { field, found });
        assert_eq!(
            damage.to_string(),
            format!("header field {field} is {found}")
        );
    }
}

#[test]
fn a_payload_takes_no_more_than_its_limit_and_stays_as_it_was() {
    let mut payload = Payload::new();
    assert!(payload.is_empty());
    let body_at = payload.push(Kind::Put, ShardId(0), &[b"k", b"ey"], b"v");
    assert_eq!(body_at, Some(RECORD_HEADER_LEN + 3));
    let too_long = vec![0; PAYLOAD_LEN_MAX - 2 * RECORD_HEADER_LEN - 3 - 1];
    assert_eq!(payload.push(Kind::Put, ShardId(0), &[], &too_long), None);
    assert_eq!(
        (payload.len(), payload.record_count()),
        (RECORD_HEADER_LEN + 4, 1)
    );
    assert!(!payload.is_empty());
}

#[test]
fn a_record_that_does_not_parse_ends_the_walk_with_its_place() {
    let mut payload = Payload::new();
    for kind in [Kind::Put, Kind::Delete, Kind::Control] {
        payload.push(kind, ShardId(0), &[b"key"], b"value").unwrap();
    }
    let payload = payload.seal(0);
    let kinds: Vec<_> = payload
        .records()
        .map(|record| record.unwrap().kind)
        .collect();
    assert_eq!(kinds, [Kind::Put, Kind::Delete, Kind::Control]);
    let len = RECORD_HEADER_LEN + 8;
    for (at, byte, what, found) in [
        (0, 4, "kind", 4),
        (1, 1, "flags", 1),
        (6, 16, "head_len", (16 << 16) + 3),
        (9, 16, "length", 3 + (16 << 8) + 5),
    ] {
        let mut changed = payload.clone();
        changed.bytes[len + at] = byte;
        let mut records = changed.records();
        assert!(records.next().unwrap().is_ok());
        let expected = Damage::Record {
            at: len,
            what,
            found,
        };
        assert_eq!(records.next().unwrap().unwrap_err(), expected);
        assert!(records.next().is_none(), "the walk is over");
    }
    let mut short = payload.clone();
    short.bytes.truncate(2 * len + 5);
    let left = Damage::Record {
        at: 2 * len,
        what: "bytes left",
        found: 5,
    };
    assert_eq!(short.records().last().unwrap().unwrap_err(), left);
    for rest in [&[1][..], &[0; ALIGN]] {
        let mut padded = payload.clone();
        padded.bytes.truncate(3 * len);
        padded.bytes.extend_from_slice(rest);
        let wrong = Damage::Record {
            at: 3 * len,
            what: "padding",
            found: rest.len() as u64,
        };
        assert_eq!(padded.records().last().unwrap().unwrap_err(), wrong);
    }
}
