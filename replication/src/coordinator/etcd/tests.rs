//! Tests of records in etcd: races on a simulated one.

use super::super::sim::{self, Faults, Way};
use super::*;

#[test]
fn racing_clients_of_etcd_make_one_history_whatever_is_lost() {
    let (mut done, mut conflicts, mut settled, mut landed) = (0, 0, 0, 0);
    for seed in 0..2_000 {
        let (told, _) = sim::race::<Keys<Way>>(seed, Faults::ALL);
        done += told.done.len();
        conflicts += told.conflicts.len();
        settled += told.settled.len();
        landed += told.settled.iter().filter(|settled| settled.1).count();
    }
    println!("{done} done, {conflicts} conflicts, {settled} settled of which {landed} landed");
    assert!(done > 10_000 && conflicts > 10_000);
    assert!(landed > 100 && settled - landed > 100);
}
