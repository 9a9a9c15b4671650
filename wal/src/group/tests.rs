//! Tests of who does the work and who is covered by it; every interleaving is in the models.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::error::IoContext;

#[test]
fn whoever_waits_for_what_is_done_does_no_work() {
    let group = Group::new(5);
    assert_eq!(group.wait(5, || panic!("no work")).unwrap(), 5);
    assert_eq!(group.wait(6, || Ok(9)).unwrap(), 9);
    assert_eq!(group.wait(9, || panic!("no work")).unwrap(), 9);
    assert_eq!(group.done(), 9);
    assert!(group.failed().is_none());
}

#[test]
fn a_failure_is_told_to_all_whom_it_did_not_cover_and_ends_the_work() {
    let group = Group::new(5);
    let fail = || Err(std::io::Error::from(ErrorKind::StorageFull)).during("sync", Path::new("/a"));
    let first = group.wait(6, fail).unwrap_err();
    assert!(
        first.is_no_space() && first.to_string().starts_with("sync /a: "),
        "{first}"
    );
    let later = group
        .wait(7, || panic!("no work after a failure"))
        .unwrap_err();
    assert_eq!(later.to_string(), first.to_string());
    assert_eq!(group.failed().unwrap().to_string(), first.to_string());
    assert_eq!(group.wait(5, || panic!("it was covered")).unwrap(), 5);
}

/// Who comes while the work is under way waits for it, and is covered or does the next one.
#[test]
fn who_comes_during_the_work_waits_for_it() {
    let (group, works) = (Group::new(0), AtomicU64::new(0));
    let work = |waiting: usize, reached: u64| {
        while group.state.lock().waiting < waiting {
            std::thread::yield_now();
        }
        works.fetch_add(1, Ordering::AcqRel);
        Ok(reached)
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| group.wait(1, || work(2, 2)));
        while !group.state.lock().leading {
            std::thread::yield_now();
        }
        let covered = scope.spawn(|| group.wait(2, || panic!("it was covered")));
        let next = scope.spawn(|| group.wait(3, || work(0, 3)));
        assert_eq!(first.join().unwrap().unwrap(), 2);
        assert!(covered.join().unwrap().unwrap() >= 2);
        assert_eq!(next.join().unwrap().unwrap(), 3);
    });
    assert_eq!(works.load(Ordering::Acquire), 2);
}
