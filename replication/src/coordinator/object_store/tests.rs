//! Tests of records as objects: races on a simulated store, and stores that are not safe.

use super::super::testing::{self, Faults, Flaw, Way};
use super::*;

impl<S> StateObjects<S> {
    /// Other limits, so that a short race meets what comes after thousands of changes.
    pub fn with_counts(mut self, kept_count: u64, state_count_max: u64) -> Self {
        self.kept_count = kept_count;
        self.state_count_max = state_count_max;
        self
    }
}

fn over_seeds(seeds: std::ops::Range<u64>, faults: Faults) -> (testing::Told, u64, u64) {
    let (mut all, mut revived, mut deleted) = (testing::Told::default(), 0, 0);
    for seed in seeds {
        let (told, world) = testing::race::<StateObjects<Way>>(seed, faults);
        all.done.extend(told.done);
        all.conflicts.extend(told.conflicts);
        all.settled.extend(told.settled);
        all.error_count += told.error_count;
        revived += world.revived_count;
        deleted += world.deleted_count;
    }
    (all, revived, deleted)
}

#[test]
fn racing_clients_of_a_store_make_one_history_whatever_is_lost() {
    let (told, revived, deleted) = over_seeds(0..2_000, Faults::ALL);
    let landed = told.settled.iter().filter(|settled| settled.1).count();
    println!(
        "{} done, {} conflicts, {} errors, {} settled of which {landed} landed, {deleted} deleted, {revived} revived",
        told.done.len(),
        told.conflicts.len(),
        told.error_count,
        told.settled.len(),
    );
    assert!(told.done.len() > 10_000 && told.conflicts.len() > 10_000);
    assert!(landed > 100 && told.settled.len() - landed > 100);
    assert!(deleted > 1_000 && revived > 10, "{deleted} {revived}");
}

#[test]
fn without_faults_every_change_is_told() {
    let (told, revived, _) = over_seeds(0..200, Faults::default());
    assert_eq!((told.error_count, told.settled.len(), revived), (0, 0, 0));
}

fn probe(seed: u64, faults: Faults) -> Result<()> {
    let way = Way::new(seed, faults);
    let mut states = StateObjects::new(way.clone(), "sim", "p", way.nonces());
    let probed = testing::run(&way, states.probe());
    let left = way.0.borrow().object_count();
    assert!(
        faults.lost_request > 0 || left == 0,
        "{left} objects are left"
    );
    probed
}

#[test]
fn a_store_that_is_not_safe_is_refused_at_open() {
    let told = [
        (Flaw::LooksThenWrites, "creates of one object won"),
        (Flaw::Overwrites, "it creates an object that exists"),
        (Flaw::Forgets, "does not see what was created"),
        (Flaw::Refuses, "not implemented"),
    ];
    for seed in 0..200 {
        probe(seed, Faults::default()).unwrap();
        for (flaw, words) in told {
            let flaw = Some(flaw);
            let faults = Faults {
                flaw,
                ..Faults::default()
            };
            let error = probe(seed, faults).unwrap_err();
            assert!(matches!(error, Error::CoordinatorUnsafe { .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
        // A good store that is hard to reach is not called unsafe.
        if let Err(error) = probe(seed, Faults::ALL) {
            assert!(matches!(error, Error::Coordinator { .. }), "{error}");
        }
    }
}

#[test]
fn a_version_that_never_was_is_a_conflict() {
    let way = Way::new(1, Faults::default());
    let mut states = StateObjects::new(way.clone(), "sim", "p", way.nonces());
    let mut replace = |expected| {
        let record = way.0.borrow_mut().record();
        testing::run(&way, states.replace("d", Version(expected), &record)).unwrap()
    };
    assert_eq!(replace(1), Replaced::Conflict);
    assert_eq!(replace(0), Replaced::Done(Version(1)));
    assert_eq!(replace(7), Replaced::Conflict);
    assert_eq!(replace(0), Replaced::Conflict);
    assert_eq!(replace(1), Replaced::Done(Version(2)));
}

/// Nobody answers, then all do: what a read told of the change stays so.
#[test]
fn a_read_settles_what_a_store_did_not_answer() {
    let way = Way::new(1, Faults::default());
    let mut states = StateObjects::new(way.clone(), "sim", "p", way.nonces());
    let mut others = StateObjects::new(way.clone(), "sim", "p", way.nonces());
    assert_eq!(testing::run(&way, states.read("d")).unwrap(), None);
    let lossy = Faults {
        lost_request: 1_000,
        ..Faults::default()
    };
    way.0.borrow_mut().set_faults(lossy);
    let record = || way.0.borrow_mut().record();
    let (ours, theirs) = (record(), record());
    assert!(testing::run(&way, states.replace("d", Version(0), &ours)).is_err());
    way.0.borrow_mut().set_faults(Faults::default());
    let found = testing::run(&way, others.read("d")).unwrap();
    assert_eq!(found, None, "it was not made");
    let settled = testing::run(&way, states.read("d")).unwrap();
    assert_eq!(settled, Some((Version(1), ours)));
    let late = testing::run(&way, others.replace("d", Version(0), &theirs)).unwrap();
    assert_eq!(late, Replaced::Conflict);
}

/// Whoever comes late finds the newest of any number of states, and asks for few.
#[test]
fn names_without_gaps_are_found_by_gets() {
    let way = Way::new(1, Faults::default());
    let mut writer = StateObjects::new(way.clone(), "sim", "p", way.nonces());
    for n in 0..200 {
        let record = way.0.borrow_mut().record();
        let replaced = testing::run(&way, writer.replace("d", Version(n), &record));
        assert_eq!(replaced.unwrap(), Replaced::Done(Version(n + 1)));
        if n % 3 == 0 {
            testing::run(&way, writer.prune("d"));
        }
        let mut reader = StateObjects::new(way.clone(), "sim", "p", way.nonces());
        let before = way.0.borrow().request_count();
        let found = testing::run(&way, reader.read("d")).unwrap();
        assert_eq!(found, Some((Version(n + 1), record)));
        let count = way.0.borrow().request_count() - before;
        assert!(count <= 24, "{count} requests for {n} states");
        let before = way.0.borrow().request_count();
        testing::run(&way, reader.read("d")).unwrap();
        assert_eq!(
            way.0.borrow().request_count() - before,
            2,
            "nothing changed"
        );
    }
    let count = way.0.borrow().object_count() as u64;
    assert!(count < STATE_COUNT_MAX + 10, "{count} objects");
}

#[test]
fn names_of_datasets_do_not_meet() {
    assert_eq!(part("orders_2-x"), "orders_2-x");
    assert_eq!(part("../a b"), "=2e=2e=2fa=20b");
    assert_eq!(part("=2e"), "=3d2e");
}
