//! Tests of what recovery takes for the log: files whose checksums are right and whose history is
//! not, and logs that end before what is durable.

use std::path::Path;

use crate::batch::BatchHeader;
use crate::error::Result;
use crate::io::sim::SimEnv;
use crate::io::{Access, write_all_at};
use crate::recover::{Known, Plan, plan};
use crate::segment::{SEGMENT_HEADER_LEN, SEGMENT_LEN_MAX, SegmentHeader, file_name};
use crate::writer::tests::{DIR, as_it_is, forge, known, segment, two_epochs};
use crate::{Epoch, Error, ShardId};

fn planned(env: &SimEnv, known: &Known<'_>) -> Result<Plan> {
    plan(env.env().disk.as_ref(), Path::new(DIR), known)
}

/// The last record of a log whose second segment was forged.
fn end_of(
    segment_header: impl Fn(&mut SegmentHeader),
    batch: impl Fn(u64, &mut BatchHeader),
) -> u64 {
    let env = two_epochs();
    let forged = forge(&segment(&env, 4), segment_header, batch);
    let path = Path::new(DIR).join(file_name(ShardId(0), 4));
    let file = env.env().disk.open(&path, Access::Write).unwrap();
    write_all_at(file.as_ref(), &forged, 0).unwrap();
    planned(&env, &known()).unwrap().position().seq
}

#[test]
fn a_whole_log_ends_where_it_was_written() {
    assert_eq!(end_of(|_| {}, |_, _| {}), 6);
}

#[test]
fn a_batch_that_does_not_continue_the_log_ends_it() {
    let last = |change: fn(&mut BatchHeader)| {
        end_of(
            |_| {},
            move |seq, batch| {
                if seq == 6 {
                    change(batch)
                }
            },
        )
    };
    assert_eq!(last(|batch| batch.prev_crc ^= 1), 5, "chain");
    assert_eq!(last(|batch| batch.nonce ^= 1), 5, "nonce");
    assert_eq!(last(|batch| batch.epoch = Epoch(4)), 5, "epoch");
}

#[test]
fn a_segment_that_does_not_continue_the_log_ends_it() {
    assert_eq!(end_of(|s| s.prev_crc ^= 1, |_, _| {}), 3, "chain");
    assert_eq!(end_of(|s| s.prev_digest[0] ^= 1, |_, _| {}), 3, "digest");
    let older = end_of(|s| s.epoch = Epoch(1), |_, b| b.epoch = Epoch(1));
    assert_eq!(older, 3, "an epoch before the last one");
}

#[test]
fn a_log_that_ends_before_what_is_durable_is_refused() {
    let durable = |durable_seq| Known {
        durable_seq,
        ..known()
    };
    let nothing = SimEnv::new(1);
    assert_eq!(planned(&nothing, &durable(0)).unwrap().position().seq, 0);
    let refused = planned(&nothing, &durable(3));
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
    let env = two_epochs();
    assert_eq!(planned(&env, &durable(6)).unwrap().position().seq, 6);
    let refused = planned(&env, &durable(7));
    assert!(matches!(refused, Err(Error::Corrupt { .. })), "{refused:?}");
}

/// Offsets into a segment have 32 bits. A file that has more is refused by its length, which nobody reads.
#[test]
fn a_segment_of_four_gib_is_refused_by_its_length() {
    let env = two_epochs();
    let path = Path::new(DIR).join(file_name(ShardId(0), 4));
    let file = env.env().disk.open(&path, Access::Write).unwrap();
    let durable = Known {
        durable_seq: 6,
        ..known()
    };
    let len = SEGMENT_LEN_MAX + 1;
    for (len, is_refused) in [(len, true), (1 << 40, true), (1 << 20, false)] {
        file.set_len(len).unwrap();
        match planned(&env, &durable) {
            Ok(plan) => assert!(!is_refused && plan.position().seq == 6, "{len}"),
            Err(error) => {
                assert!(is_refused, "{len}: {error}");
                assert!(
                    error.to_string().contains(&format!("{len} bytes")),
                    "{error}"
                );
            }
        }
    }
}

/// Damage in what is not known to be durable is a torn tail; the same damage below the mark is rot.
#[test]
fn damage_is_cut_off_above_the_durable_mark_alone() {
    let env = two_epochs();
    let path = Path::new(DIR).join(file_name(ShardId(0), 4));
    let last_at = as_it_is(&segment(&env, 4)).len() as u64 - 8;
    env.disk.rot(&path, last_at, 1).unwrap();
    let damaged = planned(&env, &known()).unwrap();
    assert_eq!(damaged.position().seq, 5);
    assert!(damaged.cut.is_some());
    let durable = Known {
        durable_seq: 6,
        ..known()
    };
    match planned(&env, &durable) {
        Err(Error::Corrupt { path: found, .. }) => assert_eq!(found, path, "the file is named"),
        other => panic!("{other:?}"),
    }
}

/// A fork within a growing segment was left to the open that goes on there: it cut the file and
/// extended it again with one sync for both. A crash between kept some sectors of what was cut, whose
/// batches proved that what stood before them was lost, and the log was refused.
#[test]
fn what_stands_behind_a_fork_is_cut_by_itself() {
    let env = two_epochs();
    let fork = Known {
        fork_seq: Some(5),
        ..known()
    };
    let forked = planned(&env, &fork).unwrap();
    assert_eq!(forked.position().seq, 5);
    assert_eq!(forked.actions.len(), 1, "{forked}");
    let whole = Known {
        fork_seq: Some(6),
        ..known()
    };
    let whole = planned(&env, &whole).unwrap();
    assert_eq!(
        (whole.position().seq, whole.actions.len()),
        (6, 0),
        "{whole}"
    );
    assert!(whole.segments[1].data_len > SEGMENT_HEADER_LEN as u64);
}
