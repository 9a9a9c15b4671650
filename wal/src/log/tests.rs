//! Tests of reading ranges of segments, whatever holds their bytes.

use super::*;
use crate::Epoch;
use crate::io::sim::{SimDisk, SimEnv};
use crate::open::Role;
use crate::writer::WriterOptions;
use crate::writer::tests::{OPTIONS, append, append_len, open_as, open_with, write_epochs};

/// The first segment reads these bytes, and nothing beyond them.
fn reads(segment: &Segment, bytes: &[u8]) {
    let len = bytes.len();
    let whole = segment.read(0, len).unwrap();
    assert_eq!(*whole, *bytes);
    assert_eq!(*segment.read(512, 64).unwrap(), bytes[512..576]);
    let part = whole.slice(512, 64).unwrap();
    assert_eq!(*part, bytes[512..576]);
    assert_eq!(*part.slice(60, 4).unwrap(), bytes[572..576]);
    assert!(part.slice(60, 5).is_none());
    assert!(part.slice(usize::MAX, 2).is_none());
    for (at, more) in [
        (0, len + 1),
        (len as u64, 1),
        (u64::MAX, 1),
        (8, usize::MAX),
    ] {
        let Err(Error::Corrupt {
            path,
            at: found_at,
            what,
            expected,
            found,
        }) = segment.read(at, more)
        else {
            panic!("{more} bytes at {at}")
        };
        assert_eq!((path.as_path(), found_at), (segment.path(), at));
        assert_eq!(
            (what, expected),
            ("range in segment", format!("{more} bytes"))
        );
        assert_eq!(found, format!("{len} in all"));
    }
}

#[test]
fn a_growing_segment_reads_what_is_published() {
    let env = SimEnv::new(1);
    let mut writer = open_as(&env, Role::Leader);
    writer.start_epoch(Epoch(1)).unwrap();
    append(&mut writer);
    writer.log().write_out().unwrap();
    let segment = writer.log().segments().remove(0);
    let len = segment.data_len() as usize;
    reads(&segment, &env.disk.files()[segment.path()][..len]);
    assert_eq!(segment.file_len(), segment.header().capacity);
    segment.leave_image();
    assert!(segment.image().is_some(), "only a sealed segment leaves it");
}

#[test]
fn a_sealed_segment_reads_the_same_mapped_and_by_calls() {
    for disk in [SimDisk::new(1), SimDisk::pread(1)] {
        let env = SimEnv {
            disk,
            ..SimEnv::new(1)
        };
        write_epochs(&env, &[1, 2]);
        let log = Arc::clone(open_as(&env, Role::Leader).log());
        let segment = log.segments().remove(0);
        let len = segment.data_len() as usize;
        reads(&segment, &env.disk.files()[segment.path()][..len]);
        let taken = log.detach(&[1, 4]);
        assert_eq!(taken.len(), 1, "the last one stays");
        drop((taken, log));
        assert!(segment.into_unpinned());
    }
}

#[test]
fn a_file_that_was_cut_behind_our_back_is_an_error_of_the_read() {
    let env = SimEnv {
        disk: SimDisk::pread(1),
        ..SimEnv::new(1)
    };
    write_epochs(&env, &[1]);
    let segment = open_as(&env, Role::Leader).log().segments().remove(0);
    let file = env
        .env()
        .disk
        .open(segment.path(), crate::io::Access::Write)
        .unwrap();
    file.set_len(600).unwrap();
    let error = segment.read(512, 200).err().unwrap().to_string();
    assert!(
        error.starts_with("read /log/wal-00000000000000000001.seg: "),
        "{error}"
    );
}

#[test]
fn a_segment_whose_bytes_are_held_is_pinned() {
    let env = SimEnv::new(1);
    let mut writer = open_as(&env, Role::Leader);
    for epoch in [1, 2] {
        writer.start_epoch(Epoch(epoch)).unwrap();
        append(&mut writer);
    }
    let log = Arc::clone(writer.log());
    log.sync().unwrap();
    let segment = log.detach(&[1]).remove(0);
    let held = segment.read(0, 512).unwrap();
    assert!(!segment.into_unpinned());
    drop(held);
    drop(writer);
    let last = log.segments().remove(0);
    drop(log);
    assert!(last.into_unpinned(), "an image that nobody reads");
}

#[test]
fn a_sync_settles_sealed_segments_and_an_empty_log_has_no_end() {
    let env = SimEnv::new(1);
    let mut writer = open_as(&env, Role::Leader);
    let log = Arc::clone(writer.log());
    assert_eq!(
        (log.first_seq(), log.last_seq(), log.sync().unwrap()),
        (1, 0, 0)
    );
    writer.start_epoch(Epoch(1)).unwrap();
    append(&mut writer);
    assert!(log.is_dirty());
    log.sync().unwrap();
    writer.seal().unwrap();
    let segment = log.segment_of(7).unwrap();
    assert!(!segment.is_settled() && !log.is_dirty(), "its footer waits");
    log.sync().unwrap();
    assert!(segment.is_settled());
    assert!(log.segment_after(1).is_none() && log.segment(2).is_none());
    assert_eq!(log.file_len(), segment.file_len());
}

/// The digest does not depend on who hashed how much, and when.
#[test]
fn what_is_hashed_behind_the_appends_is_the_digest_of_the_whole() {
    let options = WriterOptions {
        capacity_start: 16 << 20,
        capacity_max: 16 << 20,
        ..OPTIONS
    };
    for stepped in [false, true] {
        let env = SimEnv::new(1);
        let mut writer = open_with(&env.env(), Role::Leader, options).unwrap();
        writer.start_epoch(Epoch(1)).unwrap();
        append(&mut writer);
        let log = Arc::clone(writer.log());
        assert!(!log.hash_step(), "it is too little for a call");
        let segment = log.segment(1).unwrap();
        for _ in 0..130 {
            append_len(&mut writer, 60_000);
            let mut published = segment.data_len() as usize;
            while stepped && log.hash_step() {
                assert!(published >= HASH_STEP);
                published -= HASH_STEP;
            }
        }
        let left = segment.data_len() as usize - segment.hashed_len();
        match stepped {
            true => assert!(left < HASH_STEP, "{left}"),
            // Nobody helps: the writer does it itself before too much waits.
            false => assert!((1..6 << 20).contains(&left), "{left}"),
        }
        writer.start_epoch(Epoch(2)).unwrap();
        assert!(!log.hash_step(), "nothing grows");
        let footer = &segment.sealed().unwrap().footer;
        let data = segment.read(0, footer.data_len as usize).unwrap();
        assert_eq!(footer.digest, *blake3::hash(&data).as_bytes());
    }
}

/// What a table points to is checked once where it stays in memory, and at every read where it is read
/// again: the disk may have changed it.
#[test]
fn a_value_is_checked_once_in_memory_and_always_on_the_disk() {
    for (disk, is_mapped) in [(SimDisk::new(1), true), (SimDisk::pread(1), false)] {
        let env = SimEnv {
            disk,
            ..SimEnv::new(1)
        };
        let mut writer = open_as(&env, Role::Leader);
        writer.start_epoch(Epoch(1)).unwrap();
        append_len(&mut writer, 2_000);
        let segment = writer.log().segment(1).unwrap();
        let crc = |at: u64, len| crc32fast::hash(&segment.read(at, len).unwrap());
        let (long, short) = ((1024, 512), (1024, 511));
        let check = |(at, len), crc| {
            segment
                .read_checked(at, len, crc)
                .map(|bytes| bytes.to_vec())
        };
        let passes_again = |is_kept: bool| {
            for place in [long, short] {
                let crc = crc(place.0, place.1);
                let error = check(place, crc ^ 1).unwrap_err();
                assert!(error.to_string().contains("value checksum"), "{error}");
                assert_eq!(
                    check(place, crc).unwrap(),
                    *segment.read(place.0, place.1).unwrap()
                );
                let again = check(place, crc ^ 1);
                assert_eq!(again.is_ok(), is_kept && place == long, "{place:?}");
            }
        };
        passes_again(true);
        writer.start_epoch(Epoch(2)).unwrap();
        // What was right in the image may be wrong in the file.
        passes_again(is_mapped);
    }
}
