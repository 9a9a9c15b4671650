//! Tests of names, headers and footers.

use super::*;
use crate::batch::tests::table_offsets;
use proptest::prelude::*;

#[test]
fn the_byte_table_is_the_constants() {
    let rows = table_offsets(include_str!("../segment.rs"), "Field");
    let constants = [
        ("magic", at::MAGIC),
        ("version", at::VERSION),
        ("flags", at::FLAGS),
        ("header_len", at::HEADER_LEN),
        ("first_seq", at::FIRST_SEQ),
        ("created", at::CREATED),
        ("nonce", at::NONCE),
        ("epoch", at::EPOCH),
        ("lineage", at::LINEAGE),
        ("prev_crc", at::PREV_CRC),
        ("shard_id", at::SHARD_ID),
        ("region_id", at::REGION_ID),
        ("capacity", at::CAPACITY),
        ("prev_digest", at::PREV_DIGEST),
        ("dataset_len", at::DATASET_LEN),
        ("dataset", at::DATASET),
        ("reserved", at::RESERVED),
        ("header_crc", at::HEADER_CRC),
    ];
    let mut end = 0;
    assert_eq!(rows.len(), constants.len());
    for ((name, at, len), (constant, offset)) in rows.iter().zip(constants) {
        assert_eq!((name.as_str(), *at), (constant, offset));
        assert_eq!(*at, end, "{name} leaves a gap");
        end = at + len;
    }
    assert_eq!(end, SEGMENT_HEADER_LEN);
}

pub(crate) fn header() -> SegmentHeader {
    SegmentHeader {
        log: LogId {
            dataset: DatasetId::new("logs").unwrap(),
            region: RegionId(1),
            shard: ShardId(2),
        },
        first_seq: 42,
        created: Hlc(7),
        nonce: 0xabcd_ef01,
        epoch: Epoch(3),
        lineage: [9; 16],
        prev_crc: 0x1234,
        capacity: CAPACITY_START,
        prev_digest: [5; 32],
    }
}

fn footer() -> Footer {
    Footer {
        first_seq: 42,
        last_seq: 99,
        batch_count: 3,
        data_len: 4096,
        first_timestamp: Hlc(10),
        last_timestamp: Hlc(20),
        last_epoch: Epoch(3),
        chain: 0x77,
        digest: [8; 32],
        index: vec![(42, 512), (80, 2048)],
    }
}

#[test]
fn a_header_comes_back_and_every_flip_is_named() {
    let path = Path::new("seg");
    let bytes = header().encode();
    assert_eq!(SegmentHeader::decode(&bytes, path).unwrap(), header());
    for at in 0..bytes.len() {
        let mut bad = bytes;
        bad[at] ^= 0x10;
        let error = SegmentHeader::decode(&bad, path).unwrap_err();
        assert!(error.to_string().contains("seg"), "{error}");
    }
    for len in 0..bytes.len() {
        assert!(SegmentHeader::decode(&bytes[..len], path).is_err());
    }
}

/// Found by fuzzing: a header with an empty name was taken for one of the first dataset, whose name an
/// empty one stands for in calls; it was written again as other bytes.
#[test]
fn a_header_of_no_dataset_is_refused() {
    let mut bytes = header().encode();
    bytes[at::DATASET_LEN..at::RESERVED].fill(0);
    let crc = crc32fast::hash(&bytes[..at::HEADER_CRC]);
    put(&mut bytes, at::HEADER_CRC, &crc.to_le_bytes());
    let error = SegmentHeader::decode(&bytes, Path::new("seg")).unwrap_err();
    assert!(error.to_string().contains("dataset name"), "{error}");
}

#[test]
fn a_footer_comes_back_and_every_flip_is_refused() {
    let path = Path::new("seg");
    let bytes = footer().encode(5);
    let trailer = &bytes[bytes.len() - TRAILER_LEN..];
    let file_len = 4096 + bytes.len() as u64;
    assert_eq!(
        Footer::peek(trailer, 5, file_len),
        Some((4096, bytes.len() - TRAILER_LEN))
    );
    assert_eq!(
        Footer::peek(trailer, 6, file_len),
        None,
        "of another incarnation"
    );
    assert_eq!(
        Footer::peek(trailer, 5, file_len + 8),
        None,
        "the file has another length"
    );
    assert_eq!(Footer::decode(&bytes, 5, 4096, path).unwrap(), footer());
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        assert!(Footer::decode(&bad, 5, 4096, path).is_err(), "byte {at}");
    }
}

#[test]
fn an_unknown_section_is_skipped_unless_it_must_be_known() {
    let path = Path::new("seg");
    let with = |flags: u16| {
        let plain = footer().encode(5);
        let mut sections = plain[..plain.len() - TRAILER_LEN].to_vec();
        sections.extend_from_slice(&9u16.to_le_bytes());
        sections.extend_from_slice(&flags.to_le_bytes());
        sections.extend_from_slice(&8u32.to_le_bytes());
        sections.extend_from_slice(&[1; 8]);
        let mut trailer: [u8; TRAILER_LEN] = array_at(&plain, plain.len() - TRAILER_LEN);
        put(&mut trailer, 8, &(sections.len() as u32).to_le_bytes());
        put(&mut trailer, 12, &crc32fast::hash(&sections).to_le_bytes());
        let crc = crc32fast::hash(&trailer[..28]);
        put(&mut trailer, 28, &crc.to_le_bytes());
        sections.extend_from_slice(&trailer);
        sections
    };
    assert_eq!(Footer::decode(&with(0), 5, 4096, path).unwrap(), footer());
    assert!(matches!(
        Footer::decode(&with(1), 5, 4096, path),
        Err(Error::Unsupported { .. })
    ));
}

#[test]
fn names_are_the_missions() {
    assert_eq!(file_name(ShardId(0), 42), "wal-00000000000000000042.seg");
    assert_eq!(
        file_name(ShardId(7), 42),
        "wal-s00007-00000000000000000042.seg"
    );
    for foreign in [
        "wal-42.seg",
        "wal-s00000-00000000000000000042.seg",
        "wal-s7-00000000000000000042.seg",
        "wal-s99999-00000000000000000042.seg",
        "wal-00000000000000000042.seg.tmp",
        "wal-99999999999999999999.seg",
        "spare-1.seg",
        "",
    ] {
        assert_eq!(parse_file_name(foreign), None, "{foreign}");
    }
}

proptest! {
    #[test]
    fn names_parse_back_and_sort_by_sequence(shard: u16, a: u64, b: u64) {
        let (shard, name) = (ShardId(shard), |seq| file_name(ShardId(shard), seq));
        prop_assert_eq!(parse_file_name(&name(a)), Some((shard, a)));
        prop_assert_eq!(name(a).cmp(&name(b)), a.cmp(&b));
    }

    #[test]
    fn foreign_footers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Footer::decode(&bytes, 1, 512, Path::new("seg")).is_ok();
    }
}

#[test]
fn a_segment_is_named_by_its_region_its_shard_and_its_first_record() {
    let id = WalSegmentId {
        region: RegionId(1),
        shard: ShardId(2),
        seqno: 42,
    };
    assert_eq!(header().id(), id);
}

/// What a checksum cannot hold: whoever forges a header can forge its checksum too.
#[test]
fn a_header_that_no_writer_makes_is_refused_by_field() {
    let patches: [(usize, &[u8], &str, &str); 7] = [
        (at::VERSION, &[3], "segment version 2", "segment version 3"),
        (at::HEADER_LEN, &[1, 2], "header_len: expected 512", "513"),
        (at::FLAGS, &[4], "reserved bytes: expected 0", "4"),
        (at::RESERVED + 9, &[1], "reserved bytes: expected 0", "0"),
        (at::FIRST_SEQ, &[0; 8], "first_seq: expected 1 or more", "0"),
        (at::NONCE, &[0; 4], "nonce: expected not 0", "0"),
        (
            at::CAPACITY,
            &[0; 8],
            "capacity: expected 512 to 4294967295",
            "0",
        ),
    ];
    for (place, patch, expected, found) in patches {
        let mut bytes = header().encode();
        put(&mut bytes, place, patch);
        let crc = crc32fast::hash(&bytes[..at::HEADER_CRC]);
        put(&mut bytes, at::HEADER_CRC, &crc.to_le_bytes());
        let error = SegmentHeader::decode(&bytes, Path::new("seg")).unwrap_err();
        assert_eq!(error.is_corruption(), place != at::VERSION, "{error}");
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains(found), "{text}");
    }
}

/// A footer with these sections (kind, length as stated, body) and a trailer that fits them.
fn footer_of(sections: &[(u16, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, len, body) in sections {
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&SECTION_MUST.to_le_bytes());
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(body);
    }
    let plain = footer().encode(5);
    let mut trailer: [u8; TRAILER_LEN] = array_at(&plain, plain.len() - TRAILER_LEN);
    put(&mut trailer, 8, &(bytes.len() as u32).to_le_bytes());
    put(&mut trailer, 12, &crc32fast::hash(&bytes).to_le_bytes());
    let crc = crc32fast::hash(&trailer[..28]);
    put(&mut trailer, 28, &crc.to_le_bytes());
    bytes.extend_from_slice(&trailer);
    bytes
}

#[test]
fn a_footer_whose_sections_do_not_fit_is_refused_by_part_and_place() {
    let plain = footer().encode(5);
    let summary = &plain[SECTION_HEADER_LEN..SECTION_HEADER_LEN + SUMMARY_LEN];
    let digest = (2, 32, &[8; 32][..]);
    let whole = (1, SUMMARY_LEN as u32, summary);
    let with_field = |at: usize, value: u64| {
        let mut changed = summary.to_vec();
        put(&mut changed, at, &value.to_le_bytes());
        footer_of(&[(1, SUMMARY_LEN as u32, &changed), digest])
    };
    let decode = |bytes: &[u8]| Footer::decode(bytes, 5, 4096, Path::new("seg"));
    let plain = Footer {
        index: Vec::new(),
        ..footer()
    };
    assert_eq!(decode(&footer_of(&[whole, digest])).unwrap(), plain);
    let cases = [
        (
            footer_of(&[whole, (2, 40, &[8; 32])]),
            4160,
            "section length",
            "40 bytes",
        ),
        (
            footer_of(&[whole, (2, 7, &[8; 7])]),
            4160,
            "section length",
            "7 bytes",
        ),
        (
            footer_of(&[whole, (2, 24, &[8; 24])]),
            4160,
            "section length",
            "24 bytes for kind 2",
        ),
        (
            footer_of(&[(1, 48, &[0; 48])]),
            4096,
            "section length",
            "48 bytes for kind 1",
        ),
        (
            footer_of(&[whole, digest, (3, 8, &[0; 8])]),
            4200,
            "section length",
            "kind 3",
        ),
        (
            footer_of(&[whole]),
            4096,
            "footer sections",
            "summary and digest",
        ),
        (
            footer_of(&[digest]),
            4096,
            "footer sections",
            "summary and digest",
        ),
        (with_field(24, 4104), 4096, "footer summary", "4104"),
        (with_field(8, 41), 4096, "footer summary", "4096"),
    ];
    for (bytes, place, part, words) in cases {
        let error = decode(&bytes).unwrap_err();
        let text = error.to_string();
        let at = format!("seg is damaged at byte {place}: {part}:");
        assert!(
            text.contains(&at) && text.contains(words),
            "{at} {words}: {text}"
        );
    }
}

#[test]
fn less_than_a_section_header_and_less_than_a_trailer_are_no_footer() {
    let mut bytes = footer_of(&[]);
    bytes.splice(0..0, [0; 4]);
    let at = bytes.len() - TRAILER_LEN;
    put(&mut bytes, at + 8, &4u32.to_le_bytes());
    put(&mut bytes, at + 12, &crc32fast::hash(&[0; 4]).to_le_bytes());
    let crc = crc32fast::hash(&bytes[at..at + 28]);
    put(&mut bytes, at + 28, &crc.to_le_bytes());
    let error = Footer::decode(&bytes, 5, 4096, Path::new("seg")).unwrap_err();
    assert!(error.to_string().contains("section length"), "{error}");
    let error = Footer::decode(&[0; TRAILER_LEN - 1], 5, 4096, Path::new("seg")).unwrap_err();
    assert!(error.to_string().contains("found 31 bytes"), "{error}");
    assert_eq!(Footer::peek(&[0; TRAILER_LEN - 1], 5, 4127), None);
}

#[test]
fn a_trailer_that_points_into_the_header_seals_nothing() {
    let data_len = SEGMENT_HEADER_LEN as u64 - 8;
    let bytes = Footer {
        data_len,
        ..footer()
    }
    .encode(5);
    let trailer = &bytes[bytes.len() - TRAILER_LEN..];
    assert_eq!(
        Footer::peek(trailer, 5, data_len + bytes.len() as u64),
        None
    );
}
