//! Two nodes and one directory, which loses power at every call.

use strandline_wal::Epoch;
use strandline_wal::io::sim::{Damage, SimEnv};

use super::*;
use crate::ids::{Incarnation, Lineage, NodeId};

const DIR: &str = "/shared/coordinator";

fn record(epoch: u32, node: u8) -> Record {
    let leader = (NodeId([node; 16]), Incarnation([node; 16]));
    Record {
        lineage: Lineage([9; 16]),
        epoch: Epoch(epoch),
        leader,
        members: vec![leader],
        min_in_sync: 0,
    }
}

/// A machine with the directory above.
fn machine(seed: u64) -> SimEnv {
    let env = SimEnv::new(seed);
    let disk = env.env().disk;
    let dir = Path::new(DIR).join(PREFIX);
    disk.create_dir_all(&dir).unwrap();
    for made in dir.ancestors() {
        disk.sync_dir(made).unwrap();
    }
    env
}

fn open(env: &SimEnv) -> Result<DirectoryCoordinator> {
    DirectoryCoordinator::open(&env.env(), Path::new(DIR))
}

fn newest(coordinator: &mut DirectoryCoordinator) -> (u64, u32) {
    let found = coordinator.read("main").unwrap();
    found.map_or((0, 0), |(version, record)| (version.0, record.epoch.0))
}

#[test]
fn of_two_changes_of_one_version_one_is_made() {
    let env = machine(1);
    let (mut a, mut b) = (open(&env).unwrap(), open(&env).unwrap());
    for n in 1..200 {
        let (first, second) = match n % 2 {
            0 => (&mut a, &mut b),
            _ => (&mut b, &mut a),
        };
        let done = first.replace("main", Version(n - 1), &record(n as u32, 1));
        assert_eq!(done.unwrap(), Replaced::Done(Version(n)));
        let lost = second.replace("main", Version(n - 1), &record(n as u32, 2));
        assert_eq!(lost.unwrap(), Replaced::Conflict);
        assert_eq!(newest(second), (n, n as u32));
    }
    assert_eq!(newest(&mut open(&env).unwrap()), (199, 199));
    assert!(a.read("other").unwrap().is_none());
    let left = env.disk.files().len();
    assert!(left < 90, "old states are deleted: {left} files");
}

#[test]
fn a_change_that_was_told_outlives_the_power() {
    let mut told_count = 0;
    for damage in Damage::ALL {
        for call in 0.. {
            let env = machine(call);
            open(&env)
                .unwrap()
                .replace("main", Version(0), &record(1, 1))
                .unwrap();
            let mut node = open(&env).unwrap();
            node.read("main").unwrap();
            env.disk.crash_at(env.disk.io_count() + call);
            let done = node.replace("main", Version(1), &record(2, 1));
            let is_over = !env.disk.is_dead();
            let after = env.crash(call ^ 0x5eed, damage);
            let found = newest(&mut open(&after).unwrap());
            match done {
                Ok(told) => {
                    assert_eq!(told, Replaced::Done(Version(2)));
                    assert_eq!(found, (2, 2), "call {call} {damage:?}");
                    told_count += 1;
                }
                Err(_) => assert!([(1, 1), (2, 2)].contains(&found), "call {call}: {found:?}"),
            }
            if is_over {
                break;
            }
        }
    }
    assert!(told_count > 0);
}

/// A node died when the record was in place and not durable yet. What others read of it then stays.
#[test]
fn a_record_that_was_seen_outlives_the_power() {
    for damage in Damage::ALL {
        for call in 0..40 {
            let env = machine(call);
            let mut writer = open(&env).unwrap();
            writer.read("main").unwrap();
            env.disk.crash_at(env.disk.io_count() + call);
            let _ = writer.replace("main", Version(0), &record(1, 1));
            // Its process is over, and what it did stays in the memory of the machine.
            let here = SimEnv {
                disk: env.disk.fork(),
                ..env.clone()
            };
            let seen = newest(&mut open(&here).unwrap());
            let after = here.crash(call, damage);
            let found = newest(&mut open(&after).unwrap());
            assert!(
                found >= seen,
                "call {call} {damage:?}: {found:?} after {seen:?}"
            );
        }
    }
}

#[test]
fn a_directory_that_is_not_one_of_records_is_not_taken_for_one() {
    let env = SimEnv::new(1);
    env.env().disk.create_dir_all(Path::new(DIR)).unwrap();
    let error = open(&env).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("mount it, or make"), "{error}");

    let env = machine(1);
    env.disk.limit(Some(0));
    assert!(open(&env).is_err(), "nothing can be tried on a full disk");
}
