//! Tests of what a reader finds: every batch once, the tail, what was dropped, what was cut, and rot.

use std::path::Path;

use super::*;
use crate::io::sim::SimEnv;
use crate::open::Role;
use crate::pool::Pool;
use crate::recover::{Known, plan};
use crate::segment::{INDEX_STEP, file_name};
use crate::writer::tests::{
    DIR, LINEAGE, OPTIONS, append, append_len, known, open_as, open_with, write_epochs,
};
use crate::writer::{Writer, WriterOptions};
use crate::{Epoch, ShardId};

/// The first and last sequence of the batches that a reader gives, and how it ends.
fn walk(reader: &mut Reader) -> (Vec<u64>, Step) {
    let mut seqs = Vec::new();
    loop {
        match reader.next().unwrap() {
            Step::Batch(stored) => {
                assert_eq!(stored.bytes().len(), stored.header.batch_len());
                assert_eq!(stored.batch().records().count(), 1);
                seqs.push(stored.header.first_seq);
                assert_eq!(reader.next_seq(), stored.header.last_seq() + 1);
            }
            end => return (seqs, end),
        }
    }
}

fn log_of(env: &SimEnv, epochs: &[u32]) -> Writer {
    write_epochs(env, epochs);
    open_as(env, Role::Leader)
}

#[test]
fn a_reader_gives_every_batch_once_from_any_record_on() {
    let writer = log_of(&SimEnv::new(1), &[1, 2, 3]);
    for from in 0..=10u64 {
        let mut reader = Reader::new(Arc::clone(writer.log()), from);
        let (seqs, end) = walk(&mut reader);
        assert_eq!(seqs, (from.max(1)..=9).collect::<Vec<_>>(), "from {from}");
        assert!(matches!(end, Step::AtTail));
    }
}

#[test]
fn a_reader_at_the_tail_goes_on_where_the_log_does() {
    let env = SimEnv::new(1);
    let mut writer = open_as(&env, Role::Leader);
    let mut reader = Reader::new(Arc::clone(writer.log()), 1);
    assert!(walk(&mut reader).0.is_empty());
    for epoch in [1, 2] {
        writer.start_epoch(Epoch(epoch)).unwrap();
        append(&mut writer);
        assert_eq!(walk(&mut reader).0, [u64::from(epoch)]);
    }
}

#[test]
fn a_reader_is_told_what_was_dropped() {
    let writer = log_of(&SimEnv::new(1), &[1, 2, 3]);
    let mut inside = Reader::new(Arc::clone(writer.log()), 1);
    assert!(matches!(inside.next().unwrap(), Step::Batch(_)));
    drop(writer.log().detach(&[4]));
    let (seqs, end) = walk(&mut inside);
    let first_of = |step| match step {
        Step::Truncated { first_available } => first_available,
        _ => panic!("nothing was dropped"),
    };
    assert_eq!(
        (seqs, first_of(end)),
        (vec![2, 3], 7),
        "it held on to 1 to 3"
    );
    let mut new = Reader::new(Arc::clone(writer.log()), 5);
    assert_eq!(first_of(new.next().unwrap()), 7);
    drop(writer.log().detach(&[1]));
    let mut new = Reader::new(Arc::clone(writer.log()), 2);
    assert_eq!(first_of(new.next().unwrap()), 7);
}

/// The log was cut behind a reader that had read further.
#[test]
fn a_reader_beyond_the_end_is_told_where_the_log_was_cut() {
    let env = SimEnv::new(1);
    let writer = log_of(&env, &[1, 2]);
    let at = |reader: &mut Reader| match reader.next().unwrap() {
        Step::Forked { at } => (at.epoch.0, at.seq),
        _ => panic!("it did not fork"),
    };
    assert_eq!(at(&mut Reader::new(Arc::clone(writer.log()), 8)), (0, 6));
    let mut ahead = Reader::new(Arc::clone(writer.log()), 1);
    assert_eq!(walk(&mut ahead).0.len(), 6);
    let machine = env.env();
    let fork = Known {
        fork_seq: Some(2),
        ..known()
    };
    let plan = plan(machine.disk.as_ref(), Path::new(DIR), &fork).unwrap();
    let pool = Arc::new(Pool::new(machine.clone(), || false));
    let cut = crate::open::open(&machine, &plan, Role::Follower, pool, OPTIONS, LINEAGE).unwrap();
    ahead.log = Arc::clone(cut.log());
    ahead.place = None;
    assert_eq!(at(&mut ahead), (2, 2));
}

/// A sealed segment of three index steps, opened anew, and its bytes.
fn long_segment(env: &SimEnv) -> Writer {
    let options = WriterOptions {
        capacity_start: 4 * INDEX_STEP,
        capacity_max: 4 * INDEX_STEP,
        ..OPTIONS
    };
    let mut writer = open_with(&env.env(), Role::Leader, options).unwrap();
    writer.start_epoch(Epoch(1)).unwrap();
    for _ in 0..60 {
        append_len(&mut writer, 4 << 10);
    }
    writer.seal().unwrap();
    writer.log().sync().unwrap();
    open_as(env, Role::Leader)
}

#[test]
fn a_reader_jumps_to_where_the_index_says() {
    let env = SimEnv::new(1);
    // The batches before the last indexed one are not looked at: they may be rotten.
    let first = Path::new(DIR).join(file_name(ShardId(0), 1));
    let writer = long_segment(&env);
    env.disk.rot(&first, 600, 1).unwrap();
    let writer = {
        drop(writer);
        let flushed = Known {
            flushed_seq: 60,
            ..known()
        };
        let machine = env.env();
        let plan = plan(machine.disk.as_ref(), Path::new(DIR), &flushed).unwrap();
        let pool = Arc::new(Pool::new(machine.clone(), || false));
        crate::open::open(&machine, &plan, Role::Leader, pool, OPTIONS, LINEAGE).unwrap()
    };
    let log = writer.log();
    let index = &log.segments()[0].sealed().unwrap().footer.index.clone();
    assert_eq!(index.len(), 4, "{index:?}");
    for (seq, _) in &index[1..] {
        for from in [*seq, seq + 1] {
            let (seqs, _) = walk(&mut Reader::new(Arc::clone(log), from));
            assert_eq!(seqs, (from..=60).collect::<Vec<_>>());
        }
    }
    let Err(error) = Reader::new(Arc::clone(log), index[1].0 - 1).next() else {
        panic!("rot was read")
    };
    let text = error.to_string();
    assert!(
        text.contains("01.seg is damaged at byte 512: batch"),
        "{text}"
    );
    assert!(
        text.contains("expected record 1, found payload checksum"),
        "{text}"
    );
}

/// An index entry that leads nowhere is passed over: the walk from the start finds the damage, if any.
#[test]
fn an_index_that_leads_to_no_batch_is_passed_over() {
    let env = SimEnv::new(1);
    let log = Arc::clone(long_segment(&env).log());
    let segment = log.segments().remove(0);
    let sealed = segment.sealed().unwrap();
    let index = sealed.footer.index.clone();
    let place = |at, seq| {
        let mut footer = sealed.footer.clone();
        footer.index = vec![(seq, at)];
        let sealed = crate::log::Sealed {
            footer,
            bytes: sealed.bytes.clone(),
        };
        let file = env
            .env()
            .disk
            .open(segment.path(), crate::io::Access::Read)
            .unwrap();
        let path = segment.path().to_owned();
        let header = segment.header().clone();
        let mut place = start_of(Arc::new(Segment::found(header, path, file, sealed)));
        place.skip_to(60);
        (place.at, place.tail.next_seq)
    };
    let (seq, at) = index[2];
    let start = (SEGMENT_HEADER_LEN as u64, 1);
    assert_eq!(place(at, seq), (at, seq));
    assert_eq!(place(at, seq + 1), start, "another record stands there");
    assert_eq!(place(at + 8, seq), start, "no batch starts there");
    assert_eq!(place(segment.file_len(), seq), start, "behind the end");
    assert_eq!(place(at, 61), start, "of a later record");
    assert_eq!(place(at, 1), start, "no farther than the start");
}

#[test]
fn a_batch_that_reaches_beyond_the_data_is_damage() {
    let env = SimEnv::new(1);
    let mut writer = open_as(&env, Role::Leader);
    writer.start_epoch(Epoch(1)).unwrap();
    append(&mut writer);
    let segment = writer.log().segments().remove(0);
    let whole = segment.read(SEGMENT_HEADER_LEN as u64, 64).unwrap();
    let (header, _) = BatchHeader::decode(&whole).unwrap();
    let image = segment.image().unwrap();
    let mut slot = image.reserve(HEADER_LEN).unwrap();
    let longer = BatchHeader {
        first_seq: 2,
        ..header
    };
    slot.bytes_mut().copy_from_slice(&longer.encode().0);
    let end = slot.end();
    drop(slot);
    segment.publish(end, 2);
    let mut reader = Reader::new(Arc::clone(writer.log()), 1);
    assert!(matches!(reader.next().unwrap(), Step::Batch(_)));
    let Err(error) = reader.next() else {
        panic!("half a batch was read")
    };
    let text = error.to_string();
    let expected = format!(
        "expected record 2, found a batch of {} bytes",
        header.batch_len()
    );
    assert!(text.contains(&expected), "{text}");
}

/// A forged batch of no time, where the index leads, made its reader panic over what came before it.
#[test]
fn an_indexed_batch_of_no_time_is_damage() {
    let env = SimEnv::new(1);
    drop(long_segment(&env));
    let machine = env.env();
    let flushed = Known {
        flushed_seq: 60,
        ..known()
    };
    let found = plan(machine.disk.as_ref(), Path::new(DIR), &flushed).unwrap();
    let (path, (seq, at)) = {
        let segment = &found.segments[0];
        (
            segment.path.clone(),
            segment.footer.as_ref().unwrap().index[1],
        )
    };
    let file = machine.disk.open(&path, crate::io::Access::Write).unwrap();
    let mut bytes = [0; HEADER_LEN];
    crate::io::read_exact_at(file.as_ref(), &mut bytes, at).unwrap();
    let (mut header, _) = BatchHeader::decode(&bytes).unwrap();
    header.timestamp = Hlc(0);
    crate::io::write_all_at(file.as_ref(), &header.encode().0, at).unwrap();
    let pool = Arc::new(Pool::new(machine.clone(), || false));
    let opened = crate::open::open(&machine, &found, Role::Leader, pool, OPTIONS, LINEAGE);
    let Err(error) = Reader::new(Arc::clone(opened.unwrap().log()), seq).next() else {
        panic!("it has no time")
    };
    let expected = format!("is damaged at byte {at}: batch: expected record {seq}");
    let text = error.to_string();
    assert!(text.contains(&expected), "{text}");
    assert!(text.contains("header field timestamp is 0"), "{text}");
}
