//! Tests of what a follower's writer refuses, with logs whose checksums are right and whose history
//! is not; the forgeries serve recovery's tests too.

use std::path::Path;
use std::sync::Arc;

use crate::batch::{Batch, BatchHeader, HEADER_LEN, Kind, Payload};
use crate::io::Env;
use crate::io::fault::{Call, Effect, FaultDisk, Rule};
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

pub(crate) const OPTIONS: WriterOptions = WriterOptions {
    face: Face::Written,
    capacity_start: 64 << 10,
    capacity_max: 64 << 10,
};

pub(crate) fn open_as(env: &SimEnv, role: Role) -> Writer {
    open_with(&env.env(), role, OPTIONS).unwrap()
}

pub(crate) fn open_with(env: &Env, role: Role, options: WriterOptions) -> Result<Writer> {
    let plan = plan(env.disk.as_ref(), Path::new(DIR), &known())?;
    let pool = Arc::new(Pool::new(env.clone(), || false));
    open(env, &plan, role, pool, options, LINEAGE)
}

/// A machine whose calls of the disk can be made to fail.
pub(crate) fn with_faults(env: &SimEnv) -> (Env, FaultDisk) {
    let faults = FaultDisk::new(env.env().disk);
    let disk = Arc::new(faults.clone());
    (Env { disk, ..env.env() }, faults)
}

pub(crate) fn append(writer: &mut Writer) {
    append_len(writer, 100);
}

/// Appends a batch of one record with a body so long.
pub(crate) fn append_len(writer: &mut Writer, len: usize) {
    try_append(writer, len).unwrap();
}

pub(crate) fn try_append(writer: &mut Writer, len: usize) -> Result<()> {
    let mut payload = Payload::new();
    payload
        .push(Kind::Put, ShardId(0), &[b"head"], &vec![5; len])
        .unwrap();
    let payload = payload.seal(0);
    let timestamp = Hlc(writer.tail().timestamp.0 + 1);
    let reservation = writer.reserve(&payload, timestamp, 0)?;
    reservation.fill(&payload).publish();
    Ok(())
}

/// A log of two segments: records 1 to 3 of epoch 2, sealed, and 4 to 6 of epoch 3.
pub(crate) fn two_epochs() -> SimEnv {
    let env = SimEnv::new(1);
    write_epochs(&env, &[2, 3]);
    env
}

/// Writes and syncs three records in each of these epochs, each a segment.
pub(crate) fn write_epochs(env: &SimEnv, epochs: &[u32]) {
    let mut writer = open_as(env, Role::Leader);
    for epoch in epochs {
        writer.start_epoch(Epoch(*epoch)).unwrap();
        (0..3).for_each(|_| append(&mut writer));
    }
    writer.log().sync().unwrap();
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

#[test]
fn shipped_bytes_that_have_no_place_here_are_refused() {
    let bytes = segment(&two_epochs(), 4);
    let (mut writer, footer, _) = follower();
    refused("segment", writer.append_verbatim(4, 0, &bytes));
    let place = writer.append_verbatim(1, footer.len() as u64 + 60_000, &bytes);
    refused("place", place);
    refused("place", writer.append_verbatim(4, 512, &bytes));
    let unknown = writer.seal_verbatim(4, &footer).unwrap_err();
    let text = unknown.to_string();
    assert!(text.contains("found the footer of segment 4"), "{text}");
    let (segment, at) = writer.growing().unwrap();
    assert_eq!((segment, writer.position().seq), (1, 3));
    writer.seal_verbatim(1, &footer).unwrap();
    writer.seal_verbatim(1, &footer).unwrap();
    assert_eq!(writer.growing(), None);
    refused("segment", writer.append_verbatim(1, at, &bytes));
    refused(
        "segment header",
        writer.append_verbatim(4, 0, &bytes[..511]),
    );
    refused("first sequence", writer.append_verbatim(5, 0, &bytes));
    let appended = writer.append_verbatim(4, 0, &as_it_is(&bytes)).unwrap();
    assert_eq!(appended.position.seq, 6);
}

#[test]
fn a_shipped_segment_of_another_log_or_lineage_is_refused() {
    refused("log", ship(|s| s.log.region = RegionId(7), |_, _| {}));
    refused("lineage", ship(|s| s.lineage[0] ^= 1, |_, _| {}));
    refused("first sequence", ship(|s| s.first_seq = 5, |_, _| {}));
}

#[test]
fn a_shipped_batch_of_another_place_or_time_is_refused() {
    let last = |change: fn(&mut BatchHeader)| {
        let batch = move |seq, batch: &mut BatchHeader| {
            if seq == 6 {
                change(batch)
            }
        };
        ship(|_| {}, batch)
    };
    refused("sequence", last(|batch| batch.first_seq = 7));
    refused("shard", last(|batch| batch.shard = ShardId(3)));
    refused("shard", last(|batch| batch.region = RegionId(3)));
    refused("timestamp", last(|batch| batch.timestamp = Hlc(1)));
    let full = ship(|s| s.capacity = 1024, |_, _| {});
    refused("length", full);
}

/// A leader that shipped the last time there is made its follower panic at the next batch, over what it
/// was to expect.
#[test]
fn nothing_comes_behind_the_last_time_there_is() {
    let shipped = ship(
        |_| {},
        |seq, batch| {
            if seq == 5 {
                batch.timestamp = Hlc::MAX
            }
        },
    );
    refused("timestamp", shipped);
}

/// Frames end anywhere: what is no whole batch is left for the next one, and what is damaged is named.
#[test]
fn half_a_shipped_batch_waits_and_a_damaged_one_is_named() {
    let bytes = segment(&two_epochs(), 1);
    let data = as_it_is(&bytes);
    let mut writer = open_as(&SimEnv::new(2), Role::Follower);
    let appended = writer
        .append_verbatim(1, 0, &data[..data.len() - 1])
        .unwrap();
    assert_eq!((appended.at, appended.position.seq), (512, 2));
    let mut rest = data[appended.end as usize..].to_vec();
    *rest.last_mut().unwrap() ^= 1;
    let corrupt = |done: Result<Appended>, expected: u64| match done {
        Err(Error::Corrupt { path, at, what, .. }) => {
            assert_eq!(path, Path::new(DIR).join(file_name(ShardId(0), 1)));
            assert_eq!((at, what), (expected, "shipped batch"));
        }
        other => panic!("{other:?}"),
    };
    corrupt(writer.append_verbatim(1, appended.end, &rest), appended.end);
    rest[40] ^= 1;
    corrupt(writer.append_verbatim(1, appended.end, &rest), appended.end);
    let again = writer.append_verbatim(1, 0, &data).unwrap();
    assert_eq!((again.at, again.position.seq), (appended.end, 3));
}

/// A leader that died between a segment's header and its first batch leaves no trace of it.
#[test]
fn a_segment_that_never_had_a_batch_is_removed_by_its_seal() {
    let bytes = segment(&two_epochs(), 1);
    let env = SimEnv::new(2);
    let mut writer = open_as(&env, Role::Follower);
    writer
        .append_verbatim(1, 0, &bytes[..SEGMENT_HEADER_LEN])
        .unwrap();
    assert_eq!(writer.log().segments().len(), 1);
    writer.seal().unwrap();
    assert!(writer.log().segments().is_empty());
    assert!(env.disk.files().is_empty(), "{:?}", env.disk.files().keys());
    assert_eq!(
        writer
            .append_verbatim(1, 0, &as_it_is(&bytes))
            .unwrap()
            .position
            .seq,
        3
    );
}

#[test]
fn a_log_in_pages_of_its_file_is_the_log_that_is_written() {
    let mapped = WriterOptions {
        face: Face::Mapped,
        ..OPTIONS
    };
    let env = SimEnv::new(1);
    let mut writer = open_with(&env.env(), Role::Leader, mapped).unwrap();
    writer.start_epoch(Epoch(2)).unwrap();
    (0..3).for_each(|_| append(&mut writer));
    let published = segment(&env, 1);
    writer.log().write_out().unwrap();
    assert_eq!(segment(&env, 1), published, "it was in the file already");
    writer.seal().unwrap();
    assert_eq!(
        as_it_is(&segment(&env, 1)).len() as u64,
        writer.log().segments()[0].data_len()
    );
    assert_eq!(writer.log().sync().unwrap(), 3);
}

#[test]
fn segments_double_while_they_fill_fast_and_stay_as_they_are_otherwise() {
    let env = SimEnv::new(1);
    let options = WriterOptions {
        capacity_max: 256 << 10,
        ..OPTIONS
    };
    let mut writer = open_with(&env.env(), Role::Leader, options).unwrap();
    writer.start_epoch(Epoch(2)).unwrap();
    let mut capacities = Vec::new();
    for slow in [true, true, false, false, false] {
        let last = writer.log().segments().len();
        if slow {
            env.clock.advance_ms(2_000);
        }
        while writer.log().segments().len() == last {
            append_len(&mut writer, 8 << 10);
        }
        let segments = writer.log().segments();
        capacities.push(segments[last].header().capacity >> 10);
    }
    assert_eq!(capacities, [64, 64, 128, 256, 256]);
}

/// A nearly full disk gets a shorter segment, and a full one an error that leaves the log as it was.
#[test]
fn a_full_disk_is_an_error_that_space_ends() {
    let env = SimEnv::new(1);
    let options = WriterOptions {
        capacity_start: 256 << 10,
        capacity_max: 256 << 10,
        ..OPTIONS
    };
    let mut writer = open_with(&env.env(), Role::Leader, options).unwrap();
    writer.start_epoch(Epoch(2)).unwrap();
    env.disk.limit(Some(100 << 10));
    append(&mut writer);
    assert_eq!(writer.log().segments()[0].header().capacity, 64 << 10);
    let error = try_append(&mut writer, 80 << 10).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    append(&mut writer);
    env.disk.limit(None);
    append_len(&mut writer, 80 << 10);
    assert_eq!(
        (writer.position().seq, writer.log().sync().unwrap()),
        (3, 3)
    );
}

/// Every call of the disk fails once: the error names the call and the file, the log takes no more
/// writes where one may be half done, and the next open finds a prefix with all that was synced.
#[test]
fn every_call_that_fails_is_told_and_costs_no_synced_record() {
    let run = |env: &Env, synced: &mut u64| -> Result<()> {
        let mut writer = open_with(env, Role::Leader, OPTIONS)?;
        let epoch = Epoch(writer.tail().epoch.0 + 1);
        writer.start_epoch(epoch)?;
        for len in [100, 40 << 10, 40 << 10] {
            try_append(&mut writer, len)?;
            *synced = writer.log().sync()?;
        }
        writer.seal()?;
        writer.log().sync().map(drop)
    };
    let (env, faults) = with_faults(&two_epochs());
    run(&env, &mut 0).unwrap();
    let (call_count, mut ops) = (faults.call_count(), std::collections::BTreeSet::new());
    for effect in [Effect::EIO, Effect::ENOSPC] {
        for at in 0..call_count {
            let machine = two_epochs();
            let (env, faults) = with_faults(&machine);
            let rule = faults.add(Rule::new(effect).at_call(at));
            let mut synced = 6;
            let done = run(&env, &mut synced);
            assert_eq!(faults.fired_count(rule), 1, "call {at}");
            // What a failed map or removal costs is speed or space.
            if let Err(error) = done {
                let mut cause = &error;
                while let Error::Poisoned { cause: inner, .. } = cause {
                    cause = inner;
                }
                let Error::Io { op, path, .. } = cause else {
                    panic!("call {at}: {error}");
                };
                assert!(path.starts_with(DIR), "call {at}: {error}");
                ops.insert(*op);
            }
            let found = open_as(&machine, Role::Leader).position().seq;
            assert!(
                (synced..=9).contains(&found),
                "call {at}: {found} of {synced}"
            );
        }
    }
    let expected = [
        "allocate",
        "create",
        "create directory",
        "list",
        "map",
        "open",
        "read",
        "rename",
        "set length of",
        "stat",
        "sync",
        "sync directory",
        "write",
    ];
    assert!(expected.iter().all(|op| ops.contains(op)), "{ops:?}");
}

#[test]
fn after_a_failed_sync_the_log_repeats_its_cause_and_never_syncs_again() {
    let (env, faults) = with_faults(&SimEnv::new(1));
    let mut writer = open_with(&env, Role::Leader, OPTIONS).unwrap();
    writer.start_epoch(Epoch(1)).unwrap();
    append(&mut writer);
    assert!(writer.log().is_dirty());
    faults.add(Rule::new(Effect::EIO).on(Call::Sync));
    let log = Arc::clone(writer.log());
    let first = log.sync().unwrap_err().to_string();
    assert!(
        first.contains("takes no more writes since sync /log/wal-"),
        "{first}"
    );
    let syncs = faults.count(Call::Sync);
    let header = segment(&two_epochs(), 1);
    let refused = [
        log.sync().map(drop),
        log.write_out(),
        try_append(&mut writer, 1),
        writer.start_epoch(Epoch(2)),
        writer.append_verbatim(1, 0, &header).map(drop),
        writer.seal_verbatim(1, &header),
    ];
    for done in refused {
        assert_eq!(done.unwrap_err().to_string(), first);
    }
    assert_eq!(faults.count(Call::Sync), syncs, "no second sync");
    assert!(log.is_dirty());
}
