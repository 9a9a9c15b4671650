//! Tests of records in etcd: races on a simulated one.

use super::super::testing::{self, Faults, Way};
use super::*;

#[test]
fn racing_clients_of_etcd_make_one_history_whatever_is_lost() {
    let (mut done, mut conflicts, mut settled, mut landed) = (0, 0, 0, 0);
    for seed in 0..2_000 {
        let (told, _) = testing::race::<Keys<Way>>(seed, Faults::ALL);
        done += told.done.len();
        conflicts += told.conflicts.len();
        settled += told.settled.len();
        landed += told.settled.iter().filter(|settled| settled.1).count();
    }
    println!("{done} done, {conflicts} conflicts, {settled} settled of which {landed} landed");
    assert!(done > 10_000 && conflicts > 10_000);
    assert!(landed > 100 && settled - landed > 100);
}

/// Nobody answers, then all do: nothing was told that is not so.
#[test]
fn what_etcd_does_not_answer_is_unknown() {
    let way = Way::new(1, Faults::default());
    let mut keys = Keys::new(way.clone(), "sim", "p", way.nonces());
    let mut others = Keys::new(way.clone(), "sim", "p", way.nonces());
    let record = || way.0.borrow_mut().record();
    let first = record();
    let done = testing::run(&way, keys.replace("d", Version(0), &first)).unwrap();
    let Replaced::Done(version) = done else {
        panic!("nobody else writes: {done:?}");
    };
    let minority = Faults {
        lost_request: 1_000,
        ..Faults::default()
    };
    way.0.borrow_mut().set_faults(minority);
    let (ours, theirs) = (record(), record());
    assert!(testing::run(&way, keys.replace("d", version, &ours)).is_err());
    assert!(testing::run(&way, keys.read("d")).is_err());
    way.0.borrow_mut().set_faults(Faults::default());
    let found = testing::run(&way, others.read("d")).unwrap();
    assert_eq!(found, Some((version, first)), "it was not made");
    // Who asked settles it before it looks, and then nobody can take it for undone.
    let settled = testing::run(&way, keys.read("d")).unwrap();
    assert_eq!(settled.map(|settled| settled.1), Some(ours));
    let late = testing::run(&way, others.replace("d", version, &theirs)).unwrap();
    assert_eq!(late, Replaced::Conflict);
}
