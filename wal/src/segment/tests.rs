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
