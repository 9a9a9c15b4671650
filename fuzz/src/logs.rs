//! Targets of the log: batches, records, segments, their footers, recovery's plan, and the repair of a
//! segment out of two copies.

use std::path::Path;
use std::sync::Arc;

use strandline_wal::batch::{Batch, Damage, Kind, Payload, Records};
use strandline_wal::io::Disk;
use strandline_wal::open::open_read_only;
use strandline_wal::reader::{Reader, Step};
use strandline_wal::recover::{Known, Plan, execute, plan as plan_of};
use strandline_wal::repair::merge as merge_of;
use strandline_wal::segment::{Footer, SEGMENT_HEADER_LEN, SegmentHeader, path_of};
use strandline_wal::{Epoch, LogId, ShardId};

use crate::{CHAIN, MEND, mend, parts, samples};

const DIR: &str = "/db";

/// A batch: what decodes is written again as the same bytes, and so are its records.
pub fn batch(input: &[u8]) {
    let Some((control, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if control & MEND != 0 {
        mend::batch(&mut bytes, 0);
    }
    let Ok(batch) = Batch::decode(&bytes) else {
        return;
    };
    assert_eq!(
        crc32fast::hash(batch.payload),
        batch.header.payload_crc,
        "a payload that fails its checksum is shown"
    );
    // Version 1 is read and never written.
    if batch.header.version == 2 {
        let (again, crc) = batch.header.encode();
        assert_eq!(again[..], bytes[..64], "a header is written as it was read");
        assert_eq!(crc, batch.header_crc);
    }
    assert!(batch.header.batch_len() <= bytes.len());
    assert!(batch.header.last_seq() >= batch.header.first_seq);
    walk(batch.records(), batch.header.record_count, batch.payload);
}

/// The records of a payload without the header that says how many there are.
pub fn record(input: &[u8]) {
    let Some((count, payload)) = input.split_first() else {
        return;
    };
    let mut bytes = vec![0; 64];
    bytes[4] = 2;
    bytes[6] = 64;
    bytes[8] = 1;
    bytes[16] = (*count).max(1);
    bytes[28] = 1;
    let stored_len = payload.len().next_multiple_of(8);
    bytes[20..24].copy_from_slice(&(stored_len as u32).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(64 + stored_len, 0);
    mend::batch(&mut bytes, 0);
    match Batch::decode(&bytes) {
        Ok(batch) => walk(batch.records(), batch.header.record_count, batch.payload),
        Err(Damage::Field { field, .. }) => assert_eq!(field, "payload_len", "too many records"),
        Err(damage) => panic!("a crafted header is refused: {damage}"),
    }
}

/// Walks records; where all of them are good, packing them again gives the payload.
fn walk(records: Records<'_>, count: u32, payload: &[u8]) {
    let mut again = Payload::new();
    let mut is_whole = true;
    for record in records {
        let Ok(record) = record else {
            is_whole = false;
            break;
        };
        let body = payload.get(record.body_at..record.body_at + record.body.len());
        assert_eq!(body, Some(record.body), "a body lies where it is said to");
        let at = again.push(record.kind, record.shard, &[record.head], record.body);
        assert_eq!(at, Some(record.body_at));
    }
    assert!(again.record_count() <= count);
    if is_whole {
        assert_eq!(again.record_count(), count, "no record is passed over");
        assert_eq!(again.seal(0).bytes(), payload, "records are written alike");
    }
}

/// A segment file: header, footer, recovery's plan, and a read of everything that it keeps.
pub fn segment(input: &[u8]) {
    let Some((control, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if control & MEND != 0 {
        mend::segment(&mut bytes, control & CHAIN != 0);
    }
    let path = Path::new(DIR);
    let Ok(header) = SegmentHeader::decode(&bytes, path) else {
        return;
    };
    assert_eq!(header.encode()[..], bytes[..SEGMENT_HEADER_LEN]);
    let (env, disk) = samples::memory();
    let file = path_of(path, header.log.shard, header.first_seq);
    samples::put(disk.as_ref(), &file, &bytes);
    let known = known(&header, 0, 0, &|_| true);
    let Ok(plan) = plan_of(disk.as_ref(), path, &known) else {
        return;
    };
    read(&env, &plan, header.first_seq);
}

/// Reads a planned log; every batch that is shown has its checksums.
fn read(env: &strandline_wal::io::Env, plan: &Plan, from: u64) -> u64 {
    let Ok(log) = open_read_only(env, plan) else {
        return 0;
    };
    let mut reader = Reader::new(log, from);
    let mut next = from;
    let mut count = 0;
    while let Ok(Step::Batch(stored)) = reader.next() {
        assert!(stored.header.last_seq() >= next, "the reader goes on");
        next = stored.header.last_seq() + 1;
        let again = Batch::decode(stored.bytes()).expect("a batch that is shown is intact");
        assert_eq!(again.header, stored.header);
        count += 1;
    }
    count
}

fn known<'a>(
    header: &SegmentHeader,
    durable_seq: u64,
    flushed_seq: u64,
    led: &'a dyn Fn(Epoch) -> bool,
) -> Known<'a> {
    Known {
        log: header.log.clone(),
        lineage: None,
        durable_seq,
        flushed_seq: flushed_seq.max(header.first_seq - 1),
        led,
        fork_seq: None,
    }
}

/// The footer of a segment: what decodes, encodes to what decodes to the same.
pub fn footer(input: &[u8]) {
    let Some((control, bytes)) = input.split_first() else {
        return;
    };
    let (nonce, mut bytes) = (7u32, bytes.to_vec());
    if control & MEND != 0 {
        mend::segment_footer(&mut bytes, nonce.to_le_bytes(), [9; 32], None);
    }
    let path = Path::new(DIR);
    let stated = bytes.len().checked_sub(32).and_then(|at| {
        let data_len = bytes[at..].first_chunk().map(|c| u64::from_le_bytes(*c))?;
        let file_len = data_len.checked_add(bytes.len() as u64)?;
        Footer::peek(&bytes[at..], nonce, file_len)
    });
    for data_len in [stated.map_or(512, |(data_len, _)| data_len), 512] {
        let Ok(footer) = Footer::decode(&bytes, nonce, data_len, path) else {
            continue;
        };
        assert!(footer.index.len() * 16 <= bytes.len());
        let stored = footer.encode(nonce);
        let again = Footer::decode(&stored, nonce, footer.data_len, path);
        assert_eq!(again.ok().as_ref(), Some(&footer));
    }
}

/// Up to four segments of one log, with marks that say what was durable: the same bytes give the same
/// plan, the plan writes nothing, and a log that was cut by its plan needs no second cut.
pub fn plan(input: &[u8]) {
    let Some((control, rest)) = input.split_first() else {
        return;
    };
    let Some((marks, rest)) = rest.split_first_chunk::<4>() else {
        return;
    };
    let (env, disk) = samples::memory();
    let path = Path::new(DIR);
    let mut log = None;
    for (n, part) in parts(rest).take(4).enumerate() {
        let mut bytes = part.to_vec();
        if control & MEND != 0 {
            mend::segment(&mut bytes, control & CHAIN != 0);
        }
        let header = SegmentHeader::decode(&bytes, path).ok();
        let (shard, first_seq) = match &header {
            Some(header) => (header.log.shard, header.first_seq),
            None => (ShardId(0), n as u64 + 1),
        };
        samples::put(disk.as_ref(), &path_of(path, shard, first_seq), &bytes);
        log = log.or(header);
    }
    let Some(header) = log else { return };
    let led = |epoch: Epoch| epoch.0 % 2 == u32::from(marks[2] & 1) || marks[2] > 127;
    let known = Known {
        flushed_seq: marks[1].into(),
        fork_seq: (marks[3] > 0).then_some(marks[3].into()),
        lineage: (control & 4 != 0).then_some(header.lineage),
        ..known(&header, marks[0].into(), 0, &led)
    };
    let before = disk.files();
    let Ok(plan) = plan_of(disk.as_ref(), path, &known) else {
        return;
    };
    let again = plan_of(disk.as_ref(), path, &known).expect("the same bytes are planned again");
    assert_eq!(plan.to_string(), again.to_string(), "one plan for one log");
    assert!(disk.files() == before, "a plan writes nothing");
    let first_seq = plan.segments.first().map_or(1, |s| s.header.first_seq);
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as Arc<dyn Disk>;
    execute(&shared, &plan).expect("memory");
    read(&env, &plan, first_seq);
    let settled = plan_of(disk.as_ref(), path, &known).expect("what was cut can be planned");
    assert_eq!(settled.position(), plan.position(), "a cut is made once");
    assert_eq!(settled.actions, [], "nothing is left to do: {plan}");
}

/// A segment out of two copies: what comes out starts with intact batches, has everything that either
/// copy has, and is what comes out of itself.
pub fn merge(input: &[u8]) {
    let Some((control, rest)) = input.split_first() else {
        return;
    };
    let path = Path::new(DIR);
    let mut copies = parts(rest).map(<[u8]>::to_vec);
    let (mut ours, mut theirs) = (
        copies.next().unwrap_or_default(),
        copies.next().unwrap_or_default(),
    );
    if control & MEND != 0 {
        mend::segment(&mut ours, control & CHAIN != 0);
    }
    if control & 4 != 0 {
        mend::segment(&mut theirs, control & CHAIN != 0);
    }
    let Ok(merged) = merge_of(&ours, &theirs, path) else {
        return;
    };
    let data_len = merged.data_len as usize;
    assert!(data_len <= merged.bytes.len());
    assert_eq!(
        merged.bytes[..SEGMENT_HEADER_LEN],
        merged.header.encode()[..]
    );
    let mut at = SEGMENT_HEADER_LEN;
    let mut last_seq = merged.header.first_seq - 1;
    while at < data_len {
        let batch = Batch::decode(&merged.bytes[at..]).expect("only intact batches are taken");
        assert_eq!(batch.header.first_seq, last_seq + 1, "without a gap");
        last_seq = batch.header.last_seq();
        at += batch.header.batch_len();
    }
    assert_eq!((at, last_seq), (data_len, merged.last_seq));
    for taken in &merged.taken {
        let range = taken.start as usize..taken.end as usize;
        assert_eq!(merged.bytes.get(range.clone()), theirs.get(range), "taken");
    }
    let again = merge_of(&merged.bytes, &[], path).expect("it has a header");
    assert_eq!(again.bytes, merged.bytes, "repaired once is repaired");
    assert_eq!(again.taken, [], "nothing is missing in it");
    assert_eq!(
        (again.last_seq, again.is_sealed),
        (merged.last_seq, merged.is_sealed)
    );
    let other = merge_of(&theirs, &ours, path).expect("the other way round too");
    assert_eq!(other.header, merged.header);
}

/// A batch with every kind of record.
pub fn sample_batch() -> Vec<u8> {
    let mut payload = Payload::new();
    let records: [(Kind, &[u8], &[u8]); 3] = [
        (Kind::Put, b"\0\0\0\x01key", b"value"),
        (Kind::Delete, b"\0\0\0\x01gone", b""),
        (Kind::Control, b"\x01", b"says something"),
    ];
    for (kind, head, body) in records {
        payload
            .push(kind, ShardId(0), &[head], body)
            .expect("it is small");
    }
    let sealed = payload.seal(0);
    let mut bytes = vec![0; 64];
    bytes[4] = 2;
    bytes[6] = 64;
    bytes[8] = 1;
    bytes[16] = 3;
    bytes[20..24].copy_from_slice(&(sealed.bytes().len() as u32).to_le_bytes());
    bytes[28] = 1;
    bytes.extend_from_slice(sealed.bytes());
    mend::batch(&mut bytes, 0);
    bytes
}

/// The log that a segment belongs to.
pub fn log_of(bytes: &[u8]) -> Option<LogId> {
    let header = SegmentHeader::decode(bytes, Path::new(DIR)).ok()?;
    Some(header.log)
}
