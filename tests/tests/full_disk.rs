//! A real file system of 24 MiB that is filled and freed, over and over, under one open database.
//!
//! Nothing but removals of keys frees it: what they and compaction write comes from the reserve.
//!
//! Needs root for the mount; elsewhere it says so and passes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use strandline::{Background, Database, Durability, Error, Options};
use strandline_tests::seed::{self, Rng};

/// Disk space that is kept for removals.
const RESERVE_LEN: u64 = 4 << 20;

/// A mounted file system; unmounted when it is dropped.
struct Mount {
    dir: tempfile::TempDir,
}

impl Mount {
    fn new(size: &str) -> Option<Mount> {
        let dir = tempfile::tempdir().unwrap();
        let option = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &option, "tmpfs"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Mount { dir }),
            _ => {
                println!("SKIPPED: no file system can be mounted here");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("db")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.dir.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "umount");
    }
}

fn used_len(dir: &Path) -> u64 {
    let mut len = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        len += match meta.is_dir() {
            true => used_len(&entry.path()),
            false => meta.len(),
        };
    }
    len
}

/// Calls until it succeeds: background work may be freeing space meanwhile.
fn patiently(what: &str, mut call: impl FnMut() -> Result<(), Error>) {
    let started = Instant::now();
    loop {
        match call() {
            Ok(()) => return,
            Err(error) => {
                assert!(error.is_no_space(), "{what}: {error}");
                assert!(
                    started.elapsed() < Duration::from_secs(20),
                    "{what}: still {error}"
                );
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

#[test]
fn a_full_file_system_is_freed_and_filled_again() {
    let Some(mount) = Mount::new("24m") else {
        return;
    };
    let options = Options {
        memtable_len_max: 1 << 20,
        segment_len_start: 512 << 10,
        segment_len_max: 512 << 10,
        table_len_max: 1 << 20,
        cache_len_max: 1 << 20,
        reserve_len_max: RESERVE_LEN,
        background: Background::Thread,
        ..Options::default()
    };
    let db = options.open(mount.path()).unwrap();
    let (dataset, map) = (db.dataset("").unwrap(), db.keyspace("map").unwrap());
    let mut rng = Rng::new(seed::base(3));
    let mut empty_lens = Vec::new();
    let cycles = seed::count(10, 50);
    let mut written = 0;
    for cycle in 0..cycles {
        let mut state = BTreeMap::new();
        let refused = loop {
            let key = format!("{cycle:03}-{:06}", rng.below(1_000_000));
            let value = vec![cycle as u8; rng.within(100, 4_000)];
            match map.put_with(&key, &value, Durability::Os) {
                Ok(()) => state.insert(key, value),
                Err(error) => break error,
            };
        };
        assert!(refused.is_no_space(), "cycle {cycle}: {refused}");
        assert!(
            state.len() > 1_000,
            "cycle {cycle}: full after {} values",
            state.len()
        );
        written += state.len();
        // Everything acknowledged is read while nothing can be written.
        let found: Vec<(Vec<u8>, usize)> = map
            .iter()
            .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.len())))
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(found.len(), state.len(), "cycle {cycle}");
        for ((key, len), (expected, value)) in found.iter().zip(&state) {
            assert!(
                key == expected.as_bytes() && *len == value.len(),
                "cycle {cycle}"
            );
        }
        for key in state.keys() {
            patiently("delete", || map.delete_with(key, Durability::Os));
        }
        patiently("flush", || dataset.flush());
        patiently("compact", || dataset.compact());
        assert_eq!(map.iter().count(), 0);
        // Without a reopen.
        patiently("write again", || {
            map.put_with("again", [7; 100], Durability::Disk)
        });
        patiently("delete again", || map.delete("again"));
        patiently("compact again", || dataset.compact());
        empty_lens.push(used_len(&mount.path()));
    }
    println!("full disk: {cycles} cycles, {written} values, lengths when empty {empty_lens:?}");
    // Whatever came before, a database without a key takes what it took the first time, about.
    let most = empty_lens[0] + empty_lens[0] / 10;
    assert!(empty_lens.iter().all(|len| *len <= most), "{empty_lens:?}");
    drop((dataset, map));
    db.close().unwrap();
    drop(db);
    let db = Database::open(mount.path()).unwrap();
    assert_eq!(db.keyspace("map").unwrap().iter().count(), 0);
    db.close().unwrap();
}
