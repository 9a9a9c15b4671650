//! Tests of opening: what it calls durable is, and a death in it leaves a log that opens again.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::Epoch;
use crate::io::fault::Call;
use crate::io::sim::{Damage, SimEnv};
use crate::reader::{Reader, Step};
use crate::recover::{Known, plan};
use crate::writer::Face;
use crate::writer::tests::{
    DIR, LINEAGE, OPTIONS, append, append_len, known, open_as, two_epochs, with_faults,
};

/// A machine with a durable directory for the log.
fn machine() -> SimEnv {
    let env = SimEnv::new(1);
    let disk = env.env().disk;
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    env
}

fn end_of(env: &SimEnv) -> u64 {
    let disk = env.env().disk;
    let plan = plan(disk.as_ref(), Path::new(DIR), &known()).unwrap();
    plan.position().seq
}

/// A process that died had handed its batches to the operating system alone, and the next one calls
/// them durable without writing any.
#[test]
fn what_an_open_found_is_durable() {
    for role in [Role::Leader, Role::Follower] {
        let env = machine();
        let mut writer = open_as(&env, Role::Leader);
        for epoch in [1, 2] {
            writer.start_epoch(Epoch(epoch)).unwrap();
            (0..3).for_each(|_| append(&mut writer));
        }
        writer.log().write_out().unwrap();
        let after = SimEnv {
            disk: env.disk.fork(),
            ..env.clone()
        };
        let opened = open_as(&after, role);
        assert_eq!(opened.log().synced_seq(), 6, "{role:?}");
        for damage in Damage::ALL {
            assert_eq!(end_of(&after.crash(1, damage)), 6, "{role:?} {damage:?}");
        }
    }
}

/// Each of the batches behind a fork proves that those before it were synced. A crash that left some
/// of them, behind others that the cut had turned to zeros, made a log that was refused; the
/// segments behind that of the fork must be gone before it is cut, too.
#[test]
fn a_death_while_a_tail_is_cut_leaves_a_log_that_opens() {
    for epoch_count in [1, 2] {
        dies_while_a_tail_is_cut(epoch_count);
    }
}

fn dies_while_a_tail_is_cut(epoch_count: u32) {
    const FORK_SEQ: u64 = 3;
    let env = machine();
    let mut writer = open_as(&env, Role::Leader);
    for epoch in 1..=epoch_count {
        writer.start_epoch(Epoch(epoch)).unwrap();
        for _ in 0..12 / epoch_count {
            append_len(&mut writer, 400);
            writer.log().sync().unwrap();
        }
    }
    drop(writer);
    let cut = |machine: &SimEnv| {
        let env = machine.env();
        let known = Known {
            fork_seq: Some(FORK_SEQ),
            ..known()
        };
        let plan = plan(env.disk.as_ref(), Path::new(DIR), &known)?;
        let options = WriterOptions {
            face: Face::Written,
            capacity_start: 64 << 10,
            capacity_max: 64 << 10,
        };
        let pool = Arc::new(Pool::new(env.clone(), || false));
        open(&env, &plan, Role::Follower, pool, options, LINEAGE)
    };
    let fork = || SimEnv {
        disk: env.disk.fork(),
        ..env.clone()
    };
    let whole = fork();
    assert_eq!(cut(&whole).unwrap().position().seq, FORK_SEQ);
    let io_count = whole.disk.io_count();
    for at in 0..=io_count {
        let machine = fork();
        machine.disk.crash_at(at);
        assert_eq!(cut(&machine).is_err(), at < io_count, "call {at}");
        for damage in Damage::ALL {
            for seed in 0..8 {
                let after = machine.crash(seed, damage);
                let end = end_of(&after);
                assert!(end >= FORK_SEQ, "call {at}, {damage:?}, {seed}: {end}");
                assert_eq!(cut(&after).unwrap().position().seq, FORK_SEQ);
            }
        }
    }
}

/// Who only reads sees what the plan saw, sealed and growing, and writes nothing.
#[test]
fn a_log_that_is_opened_for_reading_is_the_log_that_was_found() {
    let env = two_epochs();
    let disk = env.env().disk;
    let found = plan(disk.as_ref(), Path::new(DIR), &known()).unwrap();
    let files = env.disk.files();
    let log = open_read_only(&env.env(), &found).unwrap();
    assert_eq!((log.last_seq(), log.synced_seq()), (6, 6));
    let segments = log.segments();
    assert_eq!(segments.len(), 2);
    for (segment, found) in segments.iter().zip(&found.segments) {
        let len = found.data_len as usize;
        assert_eq!(segment.sealed().is_some(), found.footer.is_some());
        assert_eq!(*segment.read(0, len).unwrap(), files[segment.path()][..len]);
        assert!(segment.read(found.data_len, 1).is_err());
    }
    let mut reader = Reader::new(log, 1);
    for seq in 1..=6 {
        match reader.next().unwrap() {
            Step::Batch(stored) => assert_eq!(stored.header.first_seq, seq),
            _ => panic!("record {seq} is there"),
        }
    }
    assert!(matches!(reader.next().unwrap(), Step::AtTail));
    assert_eq!(env.disk.files(), files);
}

/// What is in tables needs no sync of its segments: every flush synced them.
#[test]
fn only_segments_that_are_not_flushed_are_synced_again() {
    let syncs = |flushed_seq| {
        let (env, faults) = with_faults(&two_epochs());
        let known = Known {
            flushed_seq,
            ..known()
        };
        let found = plan(env.disk.as_ref(), Path::new(DIR), &known).unwrap();
        let pool = Arc::new(Pool::new(env.clone(), || false));
        open(&env, &found, Role::Follower, pool, OPTIONS, LINEAGE).unwrap();
        faults.count(Call::Sync)
    };
    assert_eq!([syncs(0), syncs(3), syncs(4)], [2, 2, 1]);
}
