//! The seeds of every fuzz target, and systematic damage to them, as ordinary tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use strandline_fuzz::{TARGETS, Target, damage, seeds, whole};

/// Inputs of each target, about: whole databases take longer than a frame.
const COUNT: usize = 2_000;
const COUNT_SLOW: usize = 300;

fn is_slow(target: &str) -> bool {
    ["open", "salvage", "ops", "session", "plan", "merge"].contains(&target)
}

#[test]
fn every_target_takes_its_seeds_and_their_damage() {
    let seeds = seeds();
    for (name, target) in TARGETS {
        let own: Vec<&Vec<u8>> = seeds
            .iter()
            .filter(|(n, _)| *n == name)
            .map(|(_, b)| b)
            .collect();
        assert!(!own.is_empty(), "{name} has no seed");
        let count = if is_slow(name) { COUNT_SLOW } else { COUNT };
        let started = std::time::Instant::now();
        for seed in &own {
            let inputs = std::iter::once((*seed).clone());
            for input in inputs.chain(damage::of(seed, count / own.len())) {
                if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                    let path = std::env::temp_dir().join(format!("fuzz-{name}"));
                    std::fs::write(&path, &input).unwrap();
                    panic!("{name}: an input of {} bytes, in {path:?}", input.len());
                }
            }
        }
        println!("{name}: {} seeds, {:?}", own.len(), started.elapsed());
    }
    let known = |name: &str| TARGETS.iter().any(|(known, _)| *known == name);
    assert!(seeds.iter().all(|(name, _)| known(name)));
}

#[test]
fn every_target_takes_nothing_and_noise() {
    for (_, target) in TARGETS {
        target(&[]);
        let mut state = 1u64;
        for len in [1, 63, 64, 511, 512, 600, 5_000] {
            let noise: Vec<u8> = (0..len)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 56) as u8
                })
                .collect();
            target(&noise);
        }
    }
}

/// Every field of every file of a database, set to what it cannot mean, with checksums that say it is
/// right: the database opens or refuses.
#[test]
fn every_field_of_a_database_may_lie() {
    let mut failed = Vec::new();
    let mut count = 0;
    for input in whole::lies(5) {
        count += 1;
        for (name, target) in [("open", whole::open as Target), ("salvage", whole::salvage)] {
            if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
                failed.push((name, input.clone()));
            }
        }
    }
    println!("{count} lies");
    assert!(failed.is_empty(), "{} fail: {failed:?}", failed.len());
    assert!(count > 300, "only {count} fields");
}

/// A target that has no program of its own is never fuzzed.
#[test]
fn every_target_has_its_program() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let cargo = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        let program = dir.join(format!("fuzz_targets/{name}.rs"));
        let text = std::fs::read_to_string(program).unwrap();
        assert!(text.contains(&format!("run(\"{name}\", bytes)")), "{name}");
        assert!(cargo.contains(&format!("name = \"fuzz-{name}\"")), "{name}");
    }
    let count = std::fs::read_dir(dir.join("fuzz_targets")).unwrap().count();
    assert_eq!(count, TARGETS.len());
}

/// With `STRANDLINE_SEED_DIR` set, writes the seeds there, and the names of the targets, for
/// `fuzz/run`.
#[test]
fn the_seeds_can_be_written_out() {
    let Some(dir) = std::env::var_os("STRANDLINE_SEED_DIR") else {
        return;
    };
    let dir = std::path::Path::new(&dir);
    std::fs::create_dir_all(dir).unwrap();
    for (n, (target, bytes)) in seeds().into_iter().enumerate() {
        let dir = dir.join(target);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("seed-{n:04}")), bytes).unwrap();
    }
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    std::fs::write(dir.join("targets"), names.join("\n")).unwrap();
}
