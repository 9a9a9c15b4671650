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
