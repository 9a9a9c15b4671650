//! Tests of what recovery takes for the log: files whose checksums are right and whose history is
//! not, and logs that end before what is durable.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::batch::BatchHeader;
use crate::error::Result;
use crate::io::sim::{SimDisk, SimEnv};
use crate::io::{Access, read_exact_at, write_all_at};
use crate::open::{Role, open};
use crate::pool::Pool;
use crate::recover::{Action, Known, Plan, execute, plan};
use crate::segment::{Footer, SEGMENT_HEADER_LEN, SEGMENT_LEN_MAX, SegmentHeader, file_name};
use crate::writer::tests::{
    DIR, LINEAGE, OPTIONS, append, as_it_is, forge, known, open_as, segment, two_epochs,
    write_epochs,
};
use crate::{DatasetId, Epoch, Error, Hlc, ShardId};

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
    let plan = planned(&two_epochs(), &known()).unwrap();
    assert!(plan.timestamp() > crate::Hlc(0));
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
    let cut = damaged.cut.unwrap();
    assert!(cut.reason.contains("payload checksum"), "{}", cut.reason);
    assert_eq!(cut.last_seq, None, "what stands before it is not behind it");
    let durable = Known {
        durable_seq: 6,
        ..known()
    };
    match planned(&env, &durable) {
        Err(Error::Corrupt { path: found, .. }) => assert_eq!(found, path, "the file is named"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_in_tables_is_not_read_before_a_fork_either() {
    let env = two_epochs();
    let path = Path::new(DIR).join(file_name(ShardId(0), 1));
    env.disk.rot(&path, SEGMENT_HEADER_LEN as u64, 1).unwrap();
    for fork_seq in [None, Some(3), Some(5)] {
        let flushed = Known {
            flushed_seq: 3,
            fork_seq,
            ..known()
        };
        let end = planned(&env, &flushed).unwrap().position().seq;
        assert_eq!(end, fork_seq.unwrap_or(6), "{fork_seq:?}");
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

fn path_of(first_seq: u64) -> PathBuf {
    Path::new(DIR).join(file_name(ShardId(0), first_seq))
}

/// A log of three segments of three records each: 1 to 3, 4 to 6 and 7 to 9.
fn three_epochs() -> SimEnv {
    let env = SimEnv::new(1);
    write_epochs(&env, &[2, 3, 4]);
    env
}

/// Puts other bytes in the place of a segment's file.
fn replace(env: &SimEnv, first_seq: u64, bytes: &[u8]) {
    let (disk, path) = (env.env().disk, path_of(first_seq));
    disk.remove(&path).unwrap();
    write_all_at(disk.create(&path).unwrap().as_ref(), bytes, 0).unwrap();
}

/// Where all records are durable, and those up to `flushed_seq` in tables.
fn all_durable(flushed_seq: u64) -> Known<'static> {
    Known {
        durable_seq: 6,
        flushed_seq,
        ..known()
    }
}

/// The log is refused for that part of the file of the segment that starts with `first_seq`.
#[track_caller]
fn corrupt(env: &SimEnv, known: &Known<'_>, first_seq: u64, what: &str) -> (String, String) {
    match planned(env, known) {
        Err(Error::Corrupt {
            path,
            what: found_what,
            expected,
            found,
            ..
        }) => {
            assert_eq!((path, found_what), (path_of(first_seq), what));
            (expected, found)
        }
        other => panic!("not refused for its {what}: {other:?}"),
    }
}

/// Records up to `seq` are kept, and the cut behind them is told with this reason.
#[track_caller]
fn cut_behind(env: &SimEnv, known: &Known<'_>, seq: u64, reason: &str) -> Plan {
    let plan = planned(env, known).unwrap();
    let cut = plan.cut.as_ref().unwrap();
    assert_eq!(
        (plan.position().seq, cut.first_seq),
        (seq, seq + 1),
        "{plan}"
    );
    assert!(cut.reason.contains(reason), "{plan}");
    plan
}

#[test]
fn a_plan_tells_its_segments_its_actions_and_what_it_cuts() {
    let env = three_epochs();
    env.disk.rot(&path_of(4), 600, 1).unwrap();
    let plan = planned(&env, &known()).unwrap();
    let text = plan.to_string();
    for line in [
        "log ",
        "  wal-00000000000000000001.seg sealed 1..=3 ",
        "  remove /log/wal-00000000000000000007.seg",
        "  remove /log/wal-00000000000000000004.seg",
        "  cut from 4 at /log/wal-00000000000000000004.seg byte 512: payload checksum",
    ] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
    assert_eq!(plan.cut.as_ref().unwrap().last_seq, Some(9));
    let whole = planned(&two_epochs(), &known()).unwrap().to_string();
    assert!(whole.contains("04.seg growing 4..=6 "), "{whole}");
    assert!(!whole.contains("cut"), "{whole}");
}

#[test]
fn a_plan_ends_in_the_chain_and_the_time_of_the_last_batch() {
    let env = SimEnv::new(1);
    let mut writer = open_as(&env, Role::Leader);
    writer.start_epoch(Epoch(1)).unwrap();
    append(&mut writer);
    writer.log().sync().unwrap();
    let plan = planned(&env, &known()).unwrap();
    let tail = writer.tail();
    assert_eq!(
        (plan.chain(), plan.timestamp()),
        (tail.chain, tail.timestamp)
    );
}

#[test]
fn what_is_no_ordinary_file_is_no_segment() {
    let env = two_epochs();
    let disk = env.env().disk;
    disk.create_dir_all(&path_of(7)).unwrap();
    let (_, found) = corrupt(&env, &known(), 7, "kind of file");
    assert_eq!(found, "Dir");
}

#[test]
fn files_of_other_shards_and_other_names_are_left_alone() {
    let env = two_epochs();
    for name in [file_name(ShardId(1), 4), "durable".to_owned()] {
        env.env().disk.create(&Path::new(DIR).join(name)).unwrap();
    }
    let plan = planned(&env, &known()).unwrap();
    assert_eq!((plan.position().seq, plan.actions), (6, Vec::new()));
}

#[test]
fn a_file_that_is_longer_than_a_segment_is_refused_unread() {
    let env = two_epochs();
    let file = env.env().disk.open(&path_of(4), Access::Write).unwrap();
    file.set_len(SEGMENT_LEN_MAX + 1).unwrap();
    let (_, found) = corrupt(&env, &all_durable(0), 4, "length");
    assert_eq!(found, "4294967296 bytes");
}

#[test]
fn a_segment_of_another_log_is_refused_below_the_mark_and_cut_above() {
    type Change = fn(&mut SegmentHeader);
    let cases: [(Change, &str); 3] = [
        (
            |s| s.log.dataset = DatasetId::new("other").unwrap(),
            "segment identity",
        ),
        (|s| s.first_seq = 5, "segment identity"),
        (|s| s.lineage[0] ^= 1, "lineage"),
    ];
    for (change, what) in cases {
        let env = two_epochs();
        replace(&env, 4, &forge(&segment(&env, 4), change, |_, _| {}));
        corrupt(&env, &all_durable(0), 4, what);
        let plan = cut_behind(&env, &known(), 3, what);
        assert_eq!(plan.actions, [Action::Remove(path_of(4))]);
    }
}

#[test]
fn any_lineage_is_taken_where_none_is_known() {
    let any = Known {
        lineage: None,
        ..known()
    };
    assert_eq!(planned(&two_epochs(), &any).unwrap().position().seq, 6);
}

/// A newer release wrote it: nothing of it is cut, whatever the marks say.
#[test]
fn files_of_a_newer_version_are_refused_and_never_cut() {
    let env = two_epochs();
    let whole = segment(&env, 4);
    let mut newer = whole.clone();
    newer[4] = 3;
    let crc = crc32fast::hash(&newer[..508]);
    newer[508..512].copy_from_slice(&crc.to_le_bytes());
    replace(&env, 4, &newer);
    let error = planned(&env, &known()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("segment version 3"), "{error}");
    let mut newer = whole;
    newer[SEGMENT_HEADER_LEN + 4] = 3;
    replace(&env, 4, &newer);
    let error = planned(&env, &known()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("batch version 3 at byte 512"), "{text}");
}

#[test]
fn a_log_without_its_head_is_refused_below_the_mark_and_cut_above() {
    let env = two_epochs();
    env.env().disk.remove(&path_of(1)).unwrap();
    let (expected, found) = corrupt(&env, &all_durable(0), 4, "start of the log");
    assert_eq!(expected, "a segment with record 1");
    assert_eq!(found, "the first one starts with 4");
    cut_behind(&env, &known(), 0, "start of the log");
    let flushed = planned(&env, &all_durable(3)).unwrap();
    assert_eq!(flushed.position().seq, 6, "records 1 to 3 are in tables");
}

#[test]
fn a_segment_that_is_missing_is_named() {
    let env = three_epochs();
    env.env().disk.remove(&path_of(4)).unwrap();
    let (expected, found) = corrupt(&env, &all_durable(0), 4, "file");
    assert_eq!(expected, "a segment from record 4");
    assert_eq!(found, "no such file");
    let plan = cut_behind(&env, &known(), 3, "record 4 is missing");
    assert_eq!(plan.actions, [Action::Remove(path_of(7))]);
}

/// What is in tables needs no log; a gap that reaches beyond them is a loss, durable or not.
#[test]
fn a_gap_between_segments_may_hold_nothing_that_is_not_flushed() {
    let flushed = |flushed_seq| Known {
        flushed_seq,
        ..known()
    };
    let env = three_epochs();
    env.env().disk.remove(&path_of(4)).unwrap();
    let plan = planned(&env, &flushed(6)).unwrap();
    assert_eq!(plan.position().seq, 9, "{plan}");
    assert_eq!(plan.segments.len(), 2);
    corrupt(&env, &flushed(5), 7, "start of the log");
}

#[test]
fn a_flushed_segment_is_kept_by_its_footer_unless_the_history_forks_in_it() {
    let env = two_epochs();
    env.disk.rot(&path_of(1), 600, 1).unwrap();
    let flushed = |fork_seq| Known {
        flushed_seq: 3,
        fork_seq,
        ..known()
    };
    let plan = planned(&env, &flushed(None)).unwrap();
    assert_eq!((plan.position().seq, plan.segments.len()), (6, 2), "{plan}");
    let plan = planned(&env, &flushed(Some(3))).unwrap();
    assert_eq!(plan.position().seq, 3, "{plan}");
    let whole = planned(&two_epochs(), &flushed(Some(2))).unwrap();
    assert_eq!(whole.position().seq, 2, "its batches are read: {whole}");
}

/// A shard that did not fork is told to end where it does.
#[test]
fn a_sealed_segment_that_ends_at_the_fork_keeps_its_footer() {
    let env = two_epochs();
    env.env().disk.remove(&path_of(4)).unwrap();
    let fork = Known {
        fork_seq: Some(3),
        ..known()
    };
    let plan = planned(&env, &fork).unwrap();
    assert_eq!((plan.position().seq, plan.actions.len()), (3, 0), "{plan}");
    assert!(plan.cut.is_none() && plan.segments[0].footer.is_some());
}

/// Readers of a sealed segment have maps of its file, and may outlive the cut.
#[test]
fn a_sealed_segment_is_cut_in_another_file() {
    let env = two_epochs();
    let disk = env.env().disk;
    let before = as_it_is(&segment(&env, 1));
    let held = disk.open(&path_of(1), Access::Read).unwrap();
    let fork = Known {
        fork_seq: Some(2),
        ..known()
    };
    let plan = planned(&env, &fork).unwrap();
    execute(&disk, &plan).unwrap();
    assert!(held.len().unwrap() > plan.segments[0].data_len);
    let mut bytes = vec![0; before.len()];
    read_exact_at(held.as_ref(), &mut bytes, 0).unwrap();
    assert_eq!(bytes, before);
    assert_eq!(planned(&env, &known()).unwrap().position().seq, 2);
}

#[test]
fn a_torn_footer_ends_the_log_above_the_durable_mark_alone() {
    let env = two_epochs();
    let data_len = as_it_is(&segment(&env, 1)).len() as u64;
    env.disk.rot(&path_of(1), data_len + 12, 1).unwrap();
    corrupt(&env, &all_durable(0), 1, "footer checksum");
    let plan = cut_behind(&env, &known(), 3, "the segment ends without a footer");
    let truncated = Action::Truncate {
        path: path_of(1),
        len: data_len,
    };
    assert_eq!(plan.actions, [Action::Remove(path_of(4)), truncated]);
    let text = plan.to_string();
    assert!(text.contains(&format!("01.seg to {data_len}\n")), "{text}");
}

/// A footer with a checksum that held made the log end where it said: a log of three records called the
/// last sequence there is durable, and never synced again.
#[test]
fn a_footer_that_ends_elsewhere_than_its_batches_seals_nothing() {
    let changes: [fn(&mut Footer); 4] = [
        |footer| footer.last_seq = 9,
        |footer| footer.last_seq = u64::MAX,
        |footer| footer.last_timestamp = Hlc(99),
        |footer| footer.chain ^= 1,
    ];
    for change in changes {
        let env = two_epochs();
        let whole = segment(&env, 1);
        let data_len = as_it_is(&whole).len();
        let nonce = SegmentHeader::decode(&whole, Path::new(DIR)).unwrap().nonce;
        let footer = &whole[data_len..];
        let decoded = Footer::decode(footer, nonce, data_len as u64, Path::new(DIR));
        let mut footer = decoded.unwrap();
        change(&mut footer);
        let forged = [&whole[..data_len], &footer.encode(nonce)].concat();
        replace(&env, 1, &forged);
        let (expected, found) = corrupt(&env, &all_durable(0), 1, "footer summary");
        assert_eq!(expected, "the end of record 3");
        assert_eq!(found, format!("another, of record {}", footer.last_seq));
        cut_behind(&env, &known(), 3, "the segment ends without a footer");
        // Behind the last batch of all it is cut off, and the segment is sealed anew.
        env.env().disk.remove(&path_of(4)).unwrap();
        let plan = planned(&env, &known()).unwrap();
        assert!(
            plan.segments[0].footer.is_none() && plan.cut.is_none(),
            "{plan}"
        );
        let log = Arc::clone(open_as(&env, Role::Leader).log());
        assert_eq!((log.last_seq(), log.synced_seq()), (3, 3));
        assert_eq!(segment(&env, 1), whole);
    }
}

#[test]
fn a_segment_whose_footer_was_never_written_ends_the_log() {
    let env = two_epochs();
    let mut data = as_it_is(&segment(&env, 1));
    data.resize(data.len() + 4096, 0);
    replace(&env, 1, &data);
    let reason = "unwritten space before later batches";
    let plan = cut_behind(&env, &known(), 3, reason);
    assert_eq!(plan.cut.unwrap().last_seq, Some(6));
    let last = segment(&env, 4);
    replace(&env, 4, &last[..SEGMENT_HEADER_LEN]);
    let plan = cut_behind(&env, &known(), 3, reason);
    assert_eq!(plan.cut.unwrap().last_seq, None, "the header has no batch");
}

#[test]
fn less_than_a_header_behind_the_last_batch_is_nothing_and_half_a_batch_is_torn() {
    let env = two_epochs();
    let data = as_it_is(&segment(&env, 4));
    for rest in [0, 8, 63] {
        let with_rest = [&data[..], &vec![7; rest]].concat();
        replace(&env, 4, &with_rest);
        let plan = planned(&env, &all_durable(0)).unwrap();
        assert_eq!((plan.position().seq, plan.cut), (6, None), "{rest}");
    }
    replace(&env, 4, &data[..data.len() - 8]);
    cut_behind(&env, &known(), 5, "bytes where");
}

#[test]
fn a_segment_without_a_batch_is_removed_with_its_cut() {
    let env = two_epochs();
    let bytes = segment(&env, 4);
    replace(&env, 4, &bytes[..SEGMENT_HEADER_LEN]);
    let plan = planned(&env, &known()).unwrap();
    assert_eq!(plan.actions, [Action::Remove(path_of(4))]);
    let mut noise = bytes[..SEGMENT_HEADER_LEN].to_vec();
    noise.resize(4096, 7);
    replace(&env, 4, &noise);
    let plan = planned(&env, &known()).unwrap();
    assert_eq!(plan.actions, [Action::Remove(path_of(4))], "{plan}");
    assert_eq!((plan.position().seq, plan.segments.len()), (3, 1));
}

/// A batch that a leader elsewhere wrote carries the mark of that leader's disk, not of this one.
#[test]
fn only_batches_that_this_node_led_prove_a_loss() {
    let env = SimEnv::new(1);
    let mut writer = open_as(&env, Role::Leader);
    writer.start_epoch(Epoch(1)).unwrap();
    for _ in 0..3 {
        append(&mut writer);
        writer.log().sync().unwrap();
    }
    env.disk
        .rot(&path_of(1), SEGMENT_HEADER_LEN as u64 + 70, 1)
        .unwrap();
    let (expected, _) = corrupt(&env, &known(), 1, "log");
    assert_eq!(expected, "record 1, which is durable (mark 2)");
    let followed = Known {
        led: &|_| false,
        ..known()
    };
    cut_behind(&env, &followed, 0, "payload checksum");
}

#[test]
fn a_log_is_read_by_calls_where_the_disk_has_no_maps() {
    let env = SimEnv {
        disk: SimDisk::pread(1),
        ..SimEnv::new(1)
    };
    write_epochs(&env, &[2, 3]);
    let plan = planned(&env, &all_durable(0)).unwrap();
    assert_eq!(plan.position().seq, 6);
}

/// A checkpoint is made of links: what is cut from the log stays in it.
#[test]
fn a_cut_leaves_other_names_of_the_file_as_they_are() {
    let env = two_epochs();
    let (disk, kept) = (env.env().disk, Path::new("/checkpoint"));
    disk.link(&path_of(4), kept).unwrap();
    let before = env.disk.files()[kept].clone();
    let fork = Known {
        fork_seq: Some(5),
        ..known()
    };
    let forked = planned(&env, &fork).unwrap();
    execute(&disk, &forked).unwrap();
    assert_eq!(env.disk.files()[kept], before);
    let data_len = forked.segments[1].data_len as usize;
    assert_eq!(env.disk.files()[&path_of(4)], before[..data_len]);
    assert_eq!(planned(&env, &known()).unwrap().position().seq, 5);
}

/// Found by fuzzing: the segment was removed, name and all, and the next open missed what it said.
#[test]
fn the_segment_that_alone_tells_where_the_log_goes_on_keeps_its_place() {
    let env = two_epochs();
    env.env().disk.remove(&path_of(1)).unwrap();
    let fork = Known {
        fork_seq: Some(3),
        ..all_durable(3)
    };
    let forked = planned(&env, &fork).unwrap();
    assert_eq!(
        (forked.position().seq, forked.segments.len()),
        (3, 0),
        "{forked}"
    );
    let whole_chain = forked.chain();
    execute(&env.env().disk, &forked).unwrap();
    let flushed = Known {
        flushed_seq: 3,
        ..known()
    };
    let again = planned(&env, &flushed).unwrap();
    assert_eq!((again.position().seq, again.actions.len()), (3, 0));
    assert_eq!(again.chain(), whole_chain);

    // It is opened, gets an epoch's segment that stays empty, and then one with a batch.
    let opened = |env: &SimEnv| {
        let plan = planned(env, &flushed).unwrap();
        let pool = Arc::new(Pool::new(env.env(), || false));
        open(&env.env(), &plan, Role::Leader, pool, OPTIONS, LINEAGE).unwrap()
    };
    let mut writer = opened(&env);
    writer.start_epoch(Epoch(4)).unwrap();
    writer.seal().unwrap();
    drop(writer);
    assert_eq!(planned(&env, &flushed).unwrap().chain(), whole_chain);
    let mut writer = opened(&env);
    writer.start_epoch(Epoch(5)).unwrap();
    append(&mut writer);
    writer.log().sync().unwrap();
    drop(writer);
    let plan = planned(&env, &flushed).unwrap();
    assert_eq!((plan.position().seq, plan.segments.len()), (4, 1), "{plan}");
}

#[test]
fn a_log_that_does_not_reach_back_to_its_fork_is_refused() {
    let env = two_epochs();
    let fork = |fork_seq| Known {
        fork_seq: Some(fork_seq),
        ..all_durable(3)
    };
    env.env().disk.remove(&path_of(1)).unwrap();
    assert_eq!(planned(&env, &fork(5)).unwrap().position().seq, 5);
    let refused = planned(&env, &fork(2)).unwrap_err().to_string();
    assert!(
        refused.contains("a batch that ends with record 2"),
        "{refused}"
    );
}
