//! Tests of records as objects: races on a simulated store, and stores that are not safe.

use super::super::sim::{self, Faults, Flaw, Way, World};
use super::*;

impl<S> StateObjects<S> {
    /// Other limits, so that a short race meets what comes after thousands of changes.
    pub fn with_counts(mut self, kept_count: u64, state_count_max: u64) -> Self {
        self.kept_count = kept_count;
        self.state_count_max = state_count_max;
        self
    }
}

fn over_seeds(seeds: std::ops::Range<u64>, faults: Faults) -> (sim::Told, u64, u64) {
    let (mut all, mut revived, mut deleted) = (sim::Told::default(), 0, 0);
    for seed in seeds {
        let (told, world) = sim::race::<StateObjects<Way>>(seed, faults);
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
    let way = World::new(seed, faults);
    let mut states = StateObjects::new(way.clone(), "sim", "p", way.nonces());
    let probed = sim::run(&way, states.probe());
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
fn names_of_datasets_do_not_meet() {
    assert_eq!(part("orders_2-x"), "orders_2-x");
    assert_eq!(part("../a b"), "=2e=2e=2fa=20b");
    assert_eq!(part("=2e"), "=3d2e");
}
