//! Long pieces: the same bytes as any others, whatever dies or fails between.

use std::path::Path;
use std::sync::Arc;

use super::SHORT_COUNT_MAX;
use crate::batch::HEADER_LEN;
use crate::error::Error;
use crate::io::fault::{Call, Effect, FaultDisk, Rule};
use crate::io::sim::{Damage, SimDisk, SimEnv};
use crate::io::{Disk, Env};
use crate::open::Role;
use crate::segment::SEGMENT_HEADER_LEN;
use crate::writer::Writer;
use crate::writer::tests::{
    DIR, OPTIONS, append_len, as_it_is, open_as, open_with, segment, with_faults,
};
use crate::{Epoch, Result};

const BATCH_COUNT: u64 = 20;

/// A leader's sealed segment of 59 KB: its batches and its footer.
fn shipped() -> (Vec<u8>, Vec<u8>) {
    let env = SimEnv::new(1);
    let mut writer = open_as(&env, Role::Leader);
    writer.start_epoch(Epoch(1)).unwrap();
    (0..BATCH_COUNT).for_each(|_| append_len(&mut writer, 2_850));
    writer.seal().unwrap();
    writer.log().sync().unwrap();
    let bytes = segment(&env, 1);
    let data = as_it_is(&bytes);
    let footer = bytes[data.len()..].to_vec();
    (data, footer)
}

/// A machine whose directory for the log is durable.
fn machine(disk: SimDisk) -> SimEnv {
    let dir = Path::new(DIR);
    disk.create_dir_all(dir).unwrap();
    disk.sync_dir(dir.parent().unwrap()).unwrap();
    SimEnv {
        disk,
        ..SimEnv::new(2)
    }
}

/// Ships what a follower lacks: a long piece, a sync, the rest in short ones, the footer, a sync. Returns
/// what it last called synced.
fn follow(env: &Env, data: &[u8], footer: &[u8], synced: &mut u64) -> Result<()> {
    let mut writer = open_with(env, Role::Follower, OPTIONS)?;
    let batch_len = (data.len() - SEGMENT_HEADER_LEN) / BATCH_COUNT as usize;
    let ends = [12, 13, 14, 20].map(|count| SEGMENT_HEADER_LEN + count * batch_len);
    for end in ends {
        let at = writer.growing().map_or(0, |(_, at)| at);
        if writer.position().seq == BATCH_COUNT {
            break;
        }
        if let Some(piece) = data[..end].get(at as usize..) {
            writer.append_verbatim(1, at, piece)?;
        }
        if end == ends[0] {
            *synced = writer.log().sync()?;
        }
    }
    writer.seal_verbatim(1, footer)?;
    *synced = writer.log().sync()?;
    Ok(())
}

#[test]
fn long_pieces_give_the_same_bytes() {
    let (data, footer) = shipped();
    for (disk, is_by_call) in [(SimDisk::new(2), true), (SimDisk::pread(2), false)] {
        let env = machine(disk);
        let mut writer = open_as(&env, Role::Follower);
        let mut seen = Vec::new();
        let half = data.len() * 2 / 3;
        let appended = writer
            .append_each(1, 0, &data[..half], |shipped| {
                let (at, len) = (shipped.at, shipped.batch.header.batch_len());
                let stored = shipped.segment.read(at, len).unwrap();
                assert_eq!(stored[HEADER_LEN..], *shipped.batch.payload);
                seen.push(shipped.batch.header.first_seq);
            })
            .unwrap();
        assert_eq!(writer.is_by_call(), is_by_call);
        assert!(appended.end < half as u64, "the last batch is not whole");
        // What came before comes again.
        let rest = writer.append_each(1, 0, &data, |s| seen.push(s.batch.header.first_seq));
        assert_eq!(rest.unwrap().at, appended.end);
        assert_eq!(seen, (1..=BATCH_COUNT).collect::<Vec<_>>());
        writer.seal_verbatim(1, &footer).unwrap();
        assert_eq!(segment(&env, 1), [&data[..], &footer].concat());
        writer.log().sync().unwrap();
        let after = env.crash(1, Damage::LoseAll);
        assert_eq!(segment(&after, 1), [&data[..], &footer].concat());
    }
}

#[test]
fn what_is_behind_a_damaged_batch_of_a_long_piece_is_not_kept() {
    let (mut data, _) = shipped();
    let at = data.len() - 5_000;
    data[at] ^= 1;
    let env = SimEnv::new(2);
    let mut writer = open_as(&env, Role::Follower);
    let mut count = 0;
    let done = writer.append_each(1, 0, &data, |_| count += 1);
    assert!(matches!(done, Err(Error::Corrupt { .. })), "{done:?}");
    assert_eq!((count, writer.position().seq), (18, 18));
    assert_eq!(writer.log().last_seq(), 18);
}

#[test]
fn a_follower_survives_its_death_at_every_call_of_a_long_piece() {
    let (data, footer) = shipped();
    let whole = machine(SimDisk::new(2));
    let first = whole.disk.io_count();
    follow(&whole.env(), &data, &footer, &mut 0).unwrap();
    for at in first..=whole.disk.io_count() {
        let machine = machine(SimDisk::new(2));
        machine.disk.crash_at(at);
        let mut synced = 0;
        let _ = follow(&machine.env(), &data, &footer, &mut synced);
        machine.disk.crash_at(0);
        for damage in Damage::ALL {
            let after = machine.crash(at, damage);
            let found = open_as(&after, Role::Follower).position().seq;
            assert!(
                (synced..=BATCH_COUNT).contains(&found),
                "call {at}, {damage:?}: {found} of {synced}"
            );
            follow(&after.env(), &data, &footer, &mut 0).unwrap();
            assert_eq!(segment(&after, 1), [&data[..], &footer].concat());
        }
    }
}

/// A long piece that found no room is shipped again; after any other failure the log takes nothing more
/// until it is opened.
#[test]
fn a_failing_call_of_a_long_piece_loses_nothing() {
    let (data, footer) = shipped();
    let (env, faults) = with_faults(&SimEnv::new(2));
    follow(&env, &data, &footer, &mut 0).unwrap();
    for effect in [Effect::EIO, Effect::ENOSPC] {
        for at in 0..faults.call_count() {
            let machine = SimEnv::new(2);
            let (env, faults) = with_faults(&machine);
            faults.add(Rule::new(effect).at_call(at));
            let mut synced = 0;
            let _ = follow(&env, &data, &footer, &mut synced);
            let found = open_as(&machine, Role::Follower).position().seq;
            assert!(found >= synced, "call {at}: {found} of {synced}");
            follow(&machine.env(), &data, &footer, &mut 0).unwrap();
            assert_eq!(segment(&machine, 1), [&data[..], &footer].concat());
        }
    }
}

/// A follower with a long piece in its log, and where the next one goes.
fn behind(faulty: &(Env, FaultDisk), data: &[u8]) -> (Writer, u64) {
    let mut writer = open_with(&faulty.0, Role::Follower, OPTIONS).unwrap();
    let appended = writer.append_verbatim(1, 0, &data[..40_000]).unwrap();
    assert!(writer.is_by_call());
    (writer, appended.end)
}

#[test]
fn a_long_piece_that_found_no_room_is_taken_once_there_is_some() {
    let (data, footer) = shipped();
    let machine = SimEnv::new(2);
    let faulty = with_faults(&machine);
    let (mut writer, at) = behind(&faulty, &data);
    let before = writer.tail().clone();
    faulty.1.add(Rule::new(Effect::ENOSPC).on(Call::Write));
    let full = writer.append_verbatim(1, at, &data[at as usize..]);
    assert!(full.unwrap_err().is_no_space());
    assert_eq!(*writer.tail(), before);
    let appended = writer.append_verbatim(1, at, &data[at as usize..]).unwrap();
    assert_eq!(appended.position.seq, BATCH_COUNT);
    writer.seal_verbatim(1, &footer).unwrap();
    assert_eq!(segment(&machine, 1), [&data[..], &footer].concat());
}

/// A follower that has caught up writes the blocks that are left once, and then only what it takes.
#[test]
fn the_rest_of_a_segment_is_written_once_pieces_are_short() {
    let env = SimEnv::new(1);
    let mut writer = open_as(&env, Role::Leader);
    writer.start_epoch(Epoch(1)).unwrap();
    append_len(&mut writer, 40_000);
    let short = SHORT_COUNT_MAX + 2;
    (0..short).for_each(|_| append_len(&mut writer, 10));
    writer.log().sync().unwrap();
    let data = as_it_is(&segment(&env, 1));
    let faulty = with_faults(&SimEnv::new(2));
    let (mut writer, at) = {
        let mut writer = open_with(&faulty.0, Role::Follower, OPTIONS).unwrap();
        let end = writer.append_verbatim(1, 0, &data[..40_600]).unwrap().end;
        (writer, end as usize)
    };
    let batch_len = (data.len() - at) / short as usize;
    let mut counts = Vec::new();
    for piece in data[at..].chunks(batch_len) {
        let (_, at) = writer.growing().unwrap();
        let before = faulty.1.count(Call::Write);
        writer.append_verbatim(1, at, piece).unwrap();
        counts.push(faulty.1.count(Call::Write) - before);
    }
    let filled = counts.iter().position(|count| *count > 1);
    assert_eq!(filled, Some(SHORT_COUNT_MAX as usize - 1), "{counts:?}");
    assert!(counts[SHORT_COUNT_MAX as usize..].iter().all(|n| *n == 1));
    let stored = Arc::clone(&writer.log().segments()[0]);
    assert_eq!(stored.read(0, data.len()).unwrap()[..], data);
}
