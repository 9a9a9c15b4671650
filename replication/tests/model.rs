//! Every history of three nodes and a coordinator's record, within bounds: epochs, promises, the in-sync
//! set, acknowledgement and truncation, explored completely.
//!
//! What a node decides here is decided by the functions that the crate runs: [`Membership`] and
//! [`Election`] for the record, `quorum` for what is confirmed and which log is the longest, [`EpochTable`]
//! for where two logs part, [`Promise::admits`]. The model adds what lies between them: logs, disks that
//! lose what was not synced, and answers that come late or never.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use stateright::{Checker, HasDiscoveries, Model, Property};

#[path = "model/node.rs"]
mod node;
#[path = "model/world.rs"]
mod world;

use world::{Bounds, Step, World};

impl Model for Bounds {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(*self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        world.steps(steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        world.after(step)
    }

    fn properties(&self) -> Vec<Property<Bounds>> {
        let mut properties = vec![
            Property::always("confirmed prefixes never disagree", |_, w: &World| {
                !w.forked
            }),
            Property::always("no two nodes acknowledge in one epoch", |_, w: &World| {
                !w.two_in_one
            }),
            Property::always("no log is cut below what it has of them", |_, w: &World| {
                !w.cut
            }),
            Property::always("the record keeps its minimum", |_, w: &World| {
                !w.below_minimum()
            }),
            Property::always("who leads has what was acknowledged", |_, w: &World| {
                w.leaders_have_history()
            }),
            Property::always(
                "every member has what was acknowledged, on its disk",
                |_, w: &World| w.members_have_history(),
            ),
            Property::sometimes("a write outlives its leader", |_, w: &World| w.outlived()),
            Property::sometimes(
                "a leader that was passed over learns of it",
                |_, w: &World| w.zombie_refused(),
            ),
        ];
        // Of two members none may go: the minimum is one follower.
        if self.changes > 0 && self.members > 2 {
            properties.push(Property::sometimes(
                "a member is dropped",
                |_, w: &World| w.has_dropped,
            ));
        }
        if self.changes > 1 || self.changes > 0 && self.members == 2 {
            properties.push(Property::sometimes("a member joins", |_, w: &World| {
                w.has_joined
            }));
        }
        if self.unknowns > 0 {
            properties.push(Property::sometimes(
                "what had no answer is in place",
                |_, w: &World| w.unknown_landed(),
            ));
            properties.push(Property::sometimes(
                "what had no answer is not in place, and may come",
                |_, w: &World| w.unknown_pending(),
            ));
        }
        properties
    }
}

fn explore(name: &str, bounds: Bounds) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = bounds
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    println!(
        "{name}: {} states, {} steps, {} deep",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth()
    );
    checker.assert_properties();
}

/// One crash, two campaigns that ask the others for promises.
#[test]
fn leaders_follow_each_other() {
    let (campaigns, crashes, promises) = (2, 1, 1);
    explore(
        "failovers",
        Bounds {
            campaigns,
            crashes,
            promises,
            ..ONE_WRITE
        },
    );
}

/// Members are dropped and join while answers are lost.
#[test]
fn the_set_changes_while_answers_are_lost() {
    let (campaigns, crashes, changes, unknowns) = (1, 1, 2, 1);
    explore(
        "changes",
        Bounds {
            campaigns,
            crashes,
            changes,
            unknowns,
            ..ONE_WRITE
        },
    );
}

/// A node loses its disk and comes back under its old name.
#[test]
fn a_wiped_node_comes_back() {
    let (campaigns, wipes, changes) = (1, 1, 2);
    explore(
        "wipes",
        Bounds {
            campaigns,
            wipes,
            changes,
            ..ONE_WRITE
        },
    );
}

/// Two candidates at a time, whose answers are lost.
#[test]
fn elections_end_without_their_answers() {
    let (campaigns, unknowns) = (2, 2);
    explore(
        "elections",
        Bounds {
            campaigns,
            unknowns,
            ..ONE_WRITE
        },
    );
}

/// Two nodes are in sync, the third one follows and may join.
#[test]
fn two_nodes_are_enough_to_go_on() {
    let (members, campaigns, changes, unknowns) = (2, 2, 1, 1);
    explore(
        "two in sync",
        Bounds {
            members,
            campaigns,
            changes,
            unknowns,
            ..ONE_WRITE
        },
    );
}

#[test]
fn two_writes_and_a_fetched_log() {
    let (writes, campaigns, changes, promises) = (2, 1, 1, 1);
    explore(
        "two writes",
        Bounds {
            writes,
            campaigns,
            changes,
            promises,
            ..ONE_WRITE
        },
    );
}

/// More at once, with `STRANDLINE_LONG=1`: some four million states.
#[test]
fn all_of_it_at_once() {
    if std::env::var("STRANDLINE_LONG").is_err() {
        return println!("SKIPPED: STRANDLINE_LONG is not set");
    }
    explore(
        "all at once",
        Bounds {
            members: 2,
            campaigns: 2,
            crashes: 1,
            changes: 1,
            unknowns: 1,
            ..ONE_WRITE
        },
    );
}

const ONE_WRITE: Bounds = Bounds {
    writes: 1,
    campaigns: 0,
    crashes: 0,
    wipes: 0,
    changes: 0,
    unknowns: 0,
    promises: 0,
    members: 3,
};
