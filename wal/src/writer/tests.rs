//! Tests of what a follower's writer refuses, with logs whose checksums are right and whose history
//! is not; the forgeries serve recovery's tests too.

use std::path::Path;
use std::sync::Arc;

use crate::batch::{Batch, BatchHeader, HEADER_LEN, Kind, Payload};
use crate::io::sim::SimEnv;
use crate::open::{Role, open};
use crate::pool::Pool;
use crate::recover::{Known, plan};
use crate::segment::{Footer, SEGMENT_HEADER_LEN, SegmentHeader, file_name};
use crate::writer::{Appended, Face, Writer, WriterOptions};
use crate::{DatasetId, Epoch, Error, Hlc, LogId, RegionId, Result, ShardId};

pub(crate) const DIR: &str = "/log";
pub(crate) const LINEAGE: [u8; 16] = [7; 16];

pub(crate) fn log_id() -> LogId {
    LogId {
        dataset: DatasetId::default(),
        region: RegionId(0),
        shard: ShardId(0),
    }
}

/// What is known of the log where nothing is durable.
pub(crate) fn known() -> Known<'static> {
    Known {
        log: log_id(),
        lineage: Some(LINEAGE),
        durable_seq: 0,
        flushed_seq: 0,
        led: &|_| true,
        fork_seq: None,
    }
}

pub(crate) fn open_as(env: &SimEnv, role: Role) -> Writer {
    let env = env.env();
    let plan = plan(env.disk.as_ref(), Path::new(DIR), &known()).unwrap();
    let pool = Arc::new(Pool::new(env.clone(), || false));
    let options = WriterOptions {
        face: Face::Written,
        capacity_start: 64 << 10,
        capacity_max: 64 << 10,
    };
    open(&env, &plan, role, pool, options, LINEAGE).unwrap()
}

pub(crate) fn append(writer: &mut Writer) {
    append_len(writer, 100);
}

/// Appends a batch of one record with a body so long.
pub(crate) fn append_len(writer: &mut Writer, len: usize) {
    let mut payload = Payload::new();
    payload
        .push(Kind::Put, ShardId(0), &[b"head"], &vec![5; len])
        .unwrap();
    let payload = payload.seal(0);
    let timestamp = Hlc(writer.tail().timestamp.0 + 1);
    let reservation = writer.reserve(&payload, timestamp, 0).unwrap();
    reservation.fill(&payload).publish();
}

/// A log of two segments: records 1 to 3 of epoch 2, sealed, and 4 to 6 of epoch 3.
pub(crate) fn two_epochs() -> SimEnv {
    let env = SimEnv::new(1);
    let mut writer = open_as(&env, Role::Leader);
    for epoch in [2, 3] {
        writer.start_epoch(Epoch(epoch)).unwrap();
        (0..3).for_each(|_| append(&mut writer));
    }
    writer.log().sync().unwrap();
    env
}

/// The bytes of the segment that starts with a record.
pub(crate) fn segment(env: &SimEnv, first_seq: u64) -> Vec<u8> {
    let path = Path::new(DIR).join(file_name(ShardId(0), first_seq));
    env.disk.files()[&path].clone()
}

/// Changes the header of a segment and of its batches, each in a chain of its own that is whole.
pub(crate) fn forge(
    bytes: &[u8],
    segment: impl Fn(&mut SegmentHeader),
    batch: impl Fn(u64, &mut BatchHeader),
) -> Vec<u8> {
    let mut header = SegmentHeader::decode(bytes, Path::new("forged")).unwrap();
    let mut chain = header.prev_crc;
    segment(&mut header);
    let mut forged = header.encode().to_vec();
    let mut at = SEGMENT_HEADER_LEN;
    while let Ok(found) = Batch::decode(&bytes[at..]) {
        let mut header = found.header;
        header.prev_crc = chain;
        batch(header.first_seq, &mut header);
        let (encoded, crc) = header.encode();
        chain = crc;
        forged.extend_from_slice(&encoded);
        forged.extend_from_slice(found.payload);
        at += found.header.batch_len();
    }
    forged
}

pub(crate) fn as_it_is(bytes: &[u8]) -> Vec<u8> {
    forge(bytes, |_| {}, |_, _| {})
}

/// A follower that has the first segment, unsealed, and the footer that its leader wrote.
fn follower() -> (Writer, Vec<u8>, Footer) {
    let first = segment(&two_epochs(), 1);
    let data = as_it_is(&first);
    let mut writer = open_as(&SimEnv::new(2), Role::Follower);
    let appended = writer.append_verbatim(1, 0, &data).unwrap();
    assert_eq!(appended.end, data.len() as u64, "three batches");
    let nonce = SegmentHeader::decode(&first, Path::new("first"))
        .unwrap()
        .nonce;
    let footer = first[data.len()..].to_vec();
    let decoded = Footer::decode(&footer, nonce, data.len() as u64, Path::new("first")).unwrap();
    (writer, footer, decoded)
}

/// Ships a second segment to a follower that sealed the first.
fn ship(
    segment_header: impl Fn(&mut SegmentHeader),
    batch: impl Fn(u64, &mut BatchHeader),
) -> Result<Appended> {
    let (mut writer, footer, _) = follower();
    writer.seal_verbatim(1, &footer)?;
    let forged = forge(&segment(&two_epochs(), 4), segment_header, batch);
    writer.append_verbatim(4, 0, &forged)
}

#[track_caller]
fn refused(expected: &str, done: Result<Appended>) {
    match done {
        Err(Error::Refused { what, .. }) => assert_eq!(what, expected),
        other => panic!("not refused for its {expected}: {other:?}"),
    }
}

#[test]
fn what_continues_the_log_is_appended() {
    assert_eq!(ship(|_| {}, |_, _| {}).unwrap().position.seq, 6);
}

#[test]
fn a_shipped_segment_of_another_history_is_refused() {
    refused("chain value", ship(|s| s.prev_crc ^= 1, |_, _| {}));
    let digest = ship(|s| s.prev_digest[0] ^= 1, |_, _| {});
    refused("digest of the segment before", digest);
}

#[test]
fn a_shipped_segment_of_an_older_epoch_is_refused() {
    let older = ship(|s| s.epoch = Epoch(1), |_, b| b.epoch = Epoch(1));
    refused("epoch", older);
}

#[test]
fn a_shipped_batch_that_does_not_belong_is_refused() {
    let last = |change: fn(&mut BatchHeader)| {
        ship(
            |_| {},
            move |seq, batch| {
                if seq == 6 {
                    change(batch)
                }
            },
        )
    };
    refused("chain value", last(|batch| batch.prev_crc ^= 1));
    refused("epoch", last(|batch| batch.epoch = Epoch(4)));
    refused("nonce", last(|batch| batch.nonce ^= 1));
}

#[test]
fn a_footer_of_other_bytes_is_refused() {
    let (mut writer, footer, mut decoded) = follower();
    let nonce = SegmentHeader::decode(&segment(&two_epochs(), 1), Path::new("first"))
        .unwrap()
        .nonce;
    decoded.digest[0] ^= 1;
    let other = writer.seal_verbatim(1, &decoded.encode(nonce));
    assert!(
        matches!(other, Err(Error::Refused { what: "footer", .. })),
        "{other:?}"
    );
    writer.seal_verbatim(1, &footer).unwrap();
}

#[test]
fn batches_have_the_headers_that_they_are_made_with() {
    let bytes = segment(&two_epochs(), 4);
    assert_eq!(as_it_is(&bytes)[..HEADER_LEN], bytes[..HEADER_LEN]);
}
