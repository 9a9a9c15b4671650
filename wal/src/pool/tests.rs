//! Tests of recycling: only a file that nobody else holds is written again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::Epoch;
use crate::io::sim::Damage;
use crate::open::{Role, open};
use crate::recover::plan;
use crate::writer::WriterOptions;
use crate::writer::tests::{DIR, LINEAGE, append, append_len, known, open_as};

/// A sealed segment, nearly full, that its log no longer has.
fn retired(env: &crate::io::sim::SimEnv) -> Arc<Segment> {
    let mut writer = open_as(env, Role::Leader);
    for epoch in [1, 2] {
        writer.start_epoch(Epoch(epoch)).unwrap();
        append(&mut writer);
        while writer.growing().unwrap().1 < 60 << 10 {
            append(&mut writer);
        }
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

/// Has a file of 64 KiB made ahead.
fn make(pool: &Pool, dir: &Path) -> Result<()> {
    pool.order(dir, 64 << 10, Face::Mapped);
    assert!(pool.work()?, "it was ordered");
    Ok(())
}

#[test]
fn spares_are_made_ahead_and_taken_where_they_fit() {
    let env = crate::io::sim::SimEnv::new(1);
    let (dir, other) = (Path::new("/a"), Path::new("/b"));
    for dir in [dir, other] {
        env.env().disk.create_dir_all(dir).unwrap();
    }
    let pool = Pool::new(env.env(), || false);
    make(&pool, dir).unwrap();
    make(&pool, dir).unwrap();
    assert_eq!(pool.spare_count(), 1, "one that fits is enough");
    assert!(!pool.work().unwrap(), "nothing is ordered");
    let names: Vec<_> = env.disk.files().into_keys().collect();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        names.iter().all(|path| is_spare_name(&name(path))),
        "{names:?}"
    );
    let take = |dir, capacity, needed| pool.take(dir, capacity, needed).unwrap();
    let others = [
        take(other, 64 << 10, 0),
        take(dir, 129 << 10, 0),
        take(dir, 31 << 10, 0),
        take(dir, 64 << 10, 65 << 10),
        pool.take_exact(dir, 63 << 10).unwrap(),
    ];
    assert_eq!(pool.spare_count(), 1);
    for taken in others {
        assert!(!names.contains(&taken.path) && taken.image.is_none());
    }
    let taken = take(dir, 100 << 10, 64 << 10);
    assert!(names.contains(&taken.path));
    assert_eq!(taken.capacity, 64 << 10);
    assert_eq!(taken.image.unwrap().len(), 64 << 10);
    assert!(taken.file.len().unwrap() >= room(64 << 10));
    assert_eq!(pool.spare_count(), 0);
    make(&pool, dir).unwrap();
    let exact = pool.take_exact(dir, 64 << 10).unwrap();
    assert!(exact.image.is_some() && pool.spare_count() == 0);
}

#[test]
fn spares_that_nobody_wants_make_way() {
    let env = crate::io::sim::SimEnv::new(1);
    let pool = Pool::new(env.env(), || false);
    let [a, b, c] = ["/a", "/b", "/c"].map(Path::new);
    for dir in [a, b, c] {
        env.env().disk.create_dir_all(dir).unwrap();
        make(&pool, dir).unwrap();
    }
    assert_eq!(pool.spare_count(), SPARE_COUNT_MAX);
    let dirs: Vec<_> = env.disk.files().into_keys().collect();
    assert!(dirs.len() == 2 && dirs.iter().any(|path| path.starts_with(c)));
    pool.order(a, 64 << 10, Face::Mapped);
    pool.forget(a);
    assert!(!pool.work().unwrap(), "its orders are forgotten too");
    pool.forget(c);
    assert_eq!(pool.spare_count(), 1);
    pool.clear();
    assert_eq!(pool.spare_count(), 0);
}

/// The first sync of a segment that is written out must not have its zeros to write.
#[test]
fn a_file_made_ahead_for_writing_is_durable_and_a_retired_one_is_made_ready() {
    let env = crate::io::sim::SimEnv::new(1);
    let segment = retired(&env);
    let pool = Pool::new(env.env(), || false);
    assert!(pool.retire(segment).unwrap());
    let retired: Vec<_> = env.disk.files().into_keys().collect();
    pool.order(Path::new("/log"), 64 << 10, Face::Written);
    assert!(pool.work().unwrap());
    assert_eq!(pool.spare_count(), 1);
    let taken = pool.take(Path::new("/log"), 64 << 10, 0).unwrap();
    assert!(retired.contains(&taken.path), "no other file was made");
    assert!(!taken.image.unwrap().is_shared());
    env.env().disk.sync_dir(Path::new("/")).unwrap();
    let lens = |damage| env.crash(1, damage).disk.files()[&taken.path].len() as u64;
    for damage in Damage::ALL {
        assert!(lens(damage) >= room(64 << 10), "{damage:?}");
    }
}

#[test]
fn a_full_disk_leaves_no_half_made_spare_and_keeps_the_one_that_it_cannot_extend() {
    let env = crate::io::sim::SimEnv::new(1);
    let pool = Pool::new(env.env(), || false);
    env.disk.limit(Some(4096));
    make(&pool, Path::new("/")).unwrap();
    assert!(env.disk.files().is_empty(), "the last space is left");
    let error = pool.take(Path::new("/"), 64 << 10, 0).err().unwrap();
    assert!(error.is_no_space(), "{error}");
    assert!(error.to_string().starts_with("allocate /spare-"), "{error}");
    assert!(env.disk.files().is_empty());
    env.disk.limit(None);
    let segment = retired(&env);
    let dir = segment.path().parent().unwrap().to_owned();
    assert!(pool.retire(segment).unwrap());
    env.disk.limit(Some(64 << 10));
    let error = pool.take(&dir, 100 << 10, 0).err().unwrap();
    assert!(error.is_no_space(), "{error}");
    assert_eq!(pool.spare_count(), 1);
}

#[test]
fn no_more_files_are_kept_than_the_limit() {
    let env = crate::io::sim::SimEnv::new(1);
    let segment = retired(&env);
    let pool = Pool::new(env.env(), || false);
    for dir in ["/a", "/b"].map(Path::new) {
        env.env().disk.create_dir_all(dir).unwrap();
        make(&pool, dir).unwrap();
    }
    assert_eq!(pool.spare_count(), SPARE_COUNT_MAX);
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

/// A log that fills its segments quickly finds the next one made; a slow one has none made.
#[test]
fn the_next_segment_is_made_while_the_growing_one_takes_batches() {
    for (seconds, is_busy) in [(0, true), (1, false)] {
        let env = crate::io::sim::SimEnv::new(1);
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let pool = Pool::new(env.env(), || false).waking(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let pool = Arc::new(pool);
        let options = WriterOptions {
            capacity_start: 64 << 10,
            capacity_max: 1 << 20,
            face: Face::Mapped,
        };
        let found = plan(env.env().disk.as_ref(), Path::new(DIR), &known()).unwrap();
        let pool_too = Arc::clone(&pool);
        let mut writer =
            open(&env.env(), &found, Role::Leader, pool_too, options, LINEAGE).unwrap();
        writer.start_epoch(Epoch(1)).unwrap();
        append_len(&mut writer, 20_000);
        assert!(!pool.work().unwrap(), "the half is not full");
        env.clock.advance_ms(seconds * 1000);
        append_len(&mut writer, 20_000);
        append_len(&mut writer, 100);
        assert_eq!(calls.load(Ordering::Relaxed), usize::from(is_busy));
        assert_eq!(pool.work().unwrap(), is_busy);
        assert_eq!(pool.spare_count(), usize::from(is_busy));
        append_len(&mut writer, 30_000);
        assert_eq!(pool.spare_count(), 0, "it is taken");
        let capacity = if is_busy { 128 << 10 } else { 64 << 10 };
        let segment = writer.log().segment_of(4).unwrap();
        assert_eq!(segment.header().capacity, capacity);
        assert_eq!(segment.image().unwrap().len() as u64, capacity);
        assert!(segment.image().unwrap().is_shared());
        // What was written into it is found again.
        writer.log().sync().unwrap();
        env.env().disk.sync_dir(Path::new("/")).unwrap();
        let last_seq = writer.log().last_seq();
        let crashed = env.crash(1, Damage::ALL[0]);
        let plan = plan(crashed.env().disk.as_ref(), Path::new(DIR), &known()).unwrap();
        assert_eq!(plan.position().seq, last_seq);
    }
}
