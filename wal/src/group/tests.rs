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

#[test]
fn a_group_that_is_stopped_ends_what_is_under_way_and_begins_nothing() {
    let group = Group::new(0);
    let began = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let working = scope.spawn(|| {
            group.wait(5, || {
                began.store(1, Ordering::SeqCst);
                std::thread::sleep(std::time::Duration::from_millis(50));
                began.store(2, Ordering::SeqCst);
                Ok(5)
            })
        });
        while began.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        group.stop(Error::Closed);
        assert_eq!(began.load(Ordering::SeqCst), 2, "it was waited for");
        assert_eq!(working.join().unwrap().unwrap(), 5, "it was done");
    });
    assert_eq!(group.wait(5, || panic!("it was covered")).unwrap(), 5);
    let closed = group.wait(6, || panic!("it was stopped")).unwrap_err();
    assert!(matches!(closed, Error::Closed), "{closed}");
}

/// Who comes while the work is under way waits for it, and is covered or does the next one.
#[test]
fn who_comes_during_the_work_waits_for_it() {
    let (group, works) = (Group::new(0), AtomicU64::new(0));
    let work = |waiting: usize, reached: u64| {
        while group.state.lock().waiters.len() < waiting {
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

/// Whom the last work covered tends to come again: the next one waits for as many, and a single one
/// waits for nobody.
#[test]
fn a_leader_lets_as_many_come_as_were_there_before_but_not_for_ever() {
    let group = Group::new(0);
    group.state.lock().crowd = 2;
    // Nobody comes.
    assert_eq!(group.wait(1, || Ok(1)).unwrap(), 1);
    assert_eq!(group.state.lock().crowd, 1);
    group.wait(2, || Ok(2)).unwrap();
    assert_eq!(group.state.lock().crowd, 1);
    // Those who are told of a failure are counted as well, and all of them wake.
    let fail = || {
        while group.state.lock().waiters.len() < 2 {
            std::thread::yield_now();
        }
        Err(std::io::Error::from(ErrorKind::StorageFull)).during("sync", Path::new("/a"))
    };
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| group.wait(3, fail));
        while !group.state.lock().leading {
            std::thread::yield_now();
        }
        let waiters = [4, 5].map(|target| {
            let group = &group;
            scope.spawn(move || group.wait(target, || panic!("no work after a failure")))
        });
        for waiter in waiters {
            waiter.join().unwrap().unwrap_err();
        }
        leader.join().unwrap().unwrap_err();
    });
    let state = group.state.lock();
    assert_eq!((state.crowd, state.waiters.len()), (3, 0));
}

#[test]
fn a_panic_in_the_work_is_told_to_all_who_wait() {
    let group = Group::new(0);
    let panics = || -> Result<u64> {
        while group.state.lock().waiters.is_empty() {
            std::thread::yield_now();
        }
        panic!("in the work");
    };
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| group.wait(1, panics));
        while !group.state.lock().leading {
            std::thread::yield_now();
        }
        let waiter = scope.spawn(|| group.wait(2, || panic!("no work after a panic")));
        assert!(leader.join().is_err(), "the panic goes on in its thread");
        let told = waiter.join().unwrap();
        assert!(matches!(told, Err(Error::Panicked)), "{told:?}");
    });
}
