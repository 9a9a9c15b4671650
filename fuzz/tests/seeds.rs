//! The seeds of every fuzz target, and small damage to them, as ordinary tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline_fuzz::{batch, manifest, message, seeds, segment, table};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 5] = [
    ("batch", batch),
    ("segment", segment),
    ("table", table),
    ("manifest", manifest),
    ("message", message),
];

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
        for seed in own {
            target(seed);
            // About 200 flips and 40 cuts of each, spread over the whole seed.
            for at in (0..seed.len()).step_by((seed.len() / 200).max(1)) {
                let mut bytes = seed.clone();
                bytes[at] ^= 1 << (at % 8);
                target(&bytes);
            }
            for len in (0..seed.len()).step_by((seed.len() / 40).max(1)) {
                target(&seed[..len]);
            }
        }
    }
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

/// With `STRANDLINE_SEED_DIR` set, writes the seeds there, for `fuzz/run`.
#[test]
fn the_seeds_can_be_written_out() {
    let Some(dir) = std::env::var_os("STRANDLINE_SEED_DIR") else {
        return;
    };
    for (n, (target, bytes)) in seeds().into_iter().enumerate() {
        let dir = std::path::Path::new(&dir).join(target);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("seed-{n}")), bytes).unwrap();
    }
}
