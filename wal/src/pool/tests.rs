//! Tests of recycling: only a file that nobody else holds is written again.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::Epoch;
use crate::io::sim::Damage;
use crate::open::Role;
use crate::writer::tests::{append, open_as};

/// A sealed segment that its log no longer has.
fn retired(env: &crate::io::sim::SimEnv) -> Arc<Segment> {
    let mut writer = open_as(env, Role::Leader);
    for epoch in [1, 2] {
        writer.start_epoch(Epoch(epoch)).unwrap();
        append(&mut writer);
    }
    writer.log().sync().unwrap();
    writer.log().detach(&[1]).pop().expect("it was there")
}

#[test]
fn a_file_that_is_ours_alone_is_used_again() {
    let env = crate::io::sim::SimEnv::new(1);
    let segment = retired(&env);
    assert!(Pool::new(env.env(), || false).retire(segment).unwrap());
}

#[test]
fn a_file_with_a_second_name_is_not_used_again() {
    let env = crate::io::sim::SimEnv::new(1);
    let segment = retired(&env);
    let disk = env.env().disk;
    disk.link(segment.path(), Path::new("/checkpoint")).unwrap();
    assert!(!Pool::new(env.env(), || false).retire(segment).unwrap());
}

#[test]
fn a_file_that_is_read_here_is_not_used_again() {
    let env = crate::io::sim::SimEnv::new(1);
    let segment = retired(&env);
    let _reader = Arc::clone(&segment);
    assert!(!Pool::new(env.env(), || false).retire(segment).unwrap());
}

#[test]
fn nothing_is_used_again_while_another_process_reads() {
    let env = crate::io::sim::SimEnv::new(1);
    let segment = retired(&env);
    let asked = Arc::new(AtomicBool::new(false));
    let note = Arc::clone(&asked);
    let pool = Pool::new(env.env(), move || !note.swap(true, Ordering::Relaxed));
    assert!(!pool.retire(segment).unwrap());
    assert!(asked.load(Ordering::Relaxed));
}

/// A crash that brought it back would show the next segment's bytes as those of the segment before.
#[test]
fn the_old_name_of_a_file_that_is_used_again_is_gone_for_good() {
    let env = crate::io::sim::SimEnv::new(1);
    let segment = retired(&env);
    let name = segment.path().to_owned();
    let pool = Pool::new(env.env(), || false);
    assert!(pool.retire(segment).unwrap());
    for damage in Damage::ALL {
        let files = env.crash(1, damage).disk.files();
        assert!(!files.contains_key(&name), "{damage:?}: {:?}", files.keys());
    }
}

#[test]
fn spares_are_made_ahead_and_taken_where_they_fit() {
    let env = crate::io::sim::SimEnv::new(1);
    let (dir, other) = (Path::new("/a"), Path::new("/b"));
    for dir in [dir, other] {
        env.env().disk.create_dir_all(dir).unwrap();
    }
    let pool = Pool::new(env.env(), || false);
    for count in [1, 2, 2] {
        pool.prepare(dir, 64 << 10).unwrap();
        assert_eq!(pool.spare_count(), count);
    }
    let names: Vec<_> = env.disk.files().into_keys().collect();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        names.iter().all(|path| is_spare_name(&name(path))),
        "{names:?}"
    );
    let (elsewhere, _) = pool.take(other, 64 << 10).unwrap();
    let (too_short, _) = pool.take(dir, 129 << 10).unwrap();
    let (too_long, _) = pool.take(dir, 31 << 10).unwrap();
    assert_eq!(pool.spare_count(), 2);
    assert!(
        ![elsewhere, too_short, too_long]
            .iter()
            .any(|path| names.contains(path))
    );
    let (path, file) = pool.take(dir, 100 << 10).unwrap();
    assert!(names.contains(&path), "it is made longer");
    assert!(file.len().unwrap() >= 100 << 10);
    pool.forget(other);
    assert_eq!(pool.spare_count(), 1);
    pool.clear().unwrap();
    assert_eq!(pool.spare_count(), 0);
    pool.prepare(dir, 64 << 10).unwrap();
    pool.forget(dir);
    assert_eq!(pool.spare_count(), 0);
}

#[test]
fn a_full_disk_leaves_no_half_made_spare_and_keeps_the_one_that_it_cannot_extend() {
    let env = crate::io::sim::SimEnv::new(1);
    let pool = Pool::new(env.env(), || false);
    env.disk.limit(Some(4096));
    let error = pool.prepare(Path::new("/"), 64 << 10).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    assert!(error.to_string().starts_with("allocate /spare-"), "{error}");
    assert!(env.disk.files().is_empty());
    env.disk.limit(None);
    pool.prepare(Path::new("/"), 64 << 10).unwrap();
    env.disk.limit(Some(80 << 10));
    let error = pool.take(Path::new("/"), 100 << 10).err().unwrap();
    assert!(error.is_no_space(), "{error}");
    assert_eq!(pool.spare_count(), 1);
}

#[test]
fn no_more_files_are_kept_than_the_limit() {
    let env = crate::io::sim::SimEnv::new(1);
    let segment = retired(&env);
    let pool = Pool::new(env.env(), || false);
    for _ in 0..SPARE_COUNT_MAX {
        pool.prepare(Path::new("/log"), 64 << 10).unwrap();
    }
    let path = segment.path().to_owned();
    assert!(!pool.retire(segment).unwrap());
    assert!(!env.disk.files().contains_key(&path));
}

#[test]
fn leftovers_are_known_by_their_names() {
    for name in [
        "spare-0.seg",
        "spare-00ff.seg",
        "wal-00000000000000000042.seg.tmp",
    ] {
        assert!(is_spare_name(name), "{name}");
    }
    for name in [
        "spare-0",
        "wal-00000000000000000042.seg",
        "durable.tmp",
        "x.seg",
    ] {
        assert!(!is_spare_name(name), "{name}");
    }
}
