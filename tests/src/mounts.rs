//! File systems of their own for tests: memory, or an image behind a loop device. They need root and
//! the tools; where those are missing the test says so and passes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use strandline::{Background, Database, Durability, Error, Options};
use strandline_wal::pool::SPARE_COUNT_MAX;
use strandline_wal::segment::Footer;

use crate::seed::Rng;

/// Disk space that is kept for removals.
const RESERVE_LEN: u64 = 4 << 20;

/// Length of a log's segments.
const SEGMENT_LEN: u64 = 512 << 10;

/// A mounted file system; unmounted when it is dropped.
pub struct Mount {
    dir: tempfile::TempDir,
    /// Of a file system that is in one.
    image: Option<tempfile::NamedTempFile>,
    is_mounted: bool,
}

/// Runs a program; `None` where it is absent or fails, which is printed.
fn run(words: &[&str]) -> Option<()> {
    let output = Command::new(words[0]).args(&words[1..]).output();
    match output {
        Ok(output) if output.status.success() => Some(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            println!("{words:?}: {}: {}", output.status, text.trim());
            None
        }
        Err(error) => {
            println!("{words:?}: {error}");
            None
        }
    }
}

impl Mount {
    /// A file system in memory; `None` where nothing can be mounted.
    pub fn memory(size: &str) -> Option<Mount> {
        let mount = Mount {
            dir: tempfile::tempdir().unwrap(),
            image: None,
            is_mounted: true,
        };
        let option = format!("size={size}");
        let root = mount.root().display().to_string();
        let mounted = run(&["mount", "-t", "tmpfs", "-o", &option, "tmpfs", &root]);
        mount.if_mounted(mounted, "tmpfs")
    }

    /// A file system of a kind, `ext4` or another that has a `mkfs`, in an image of `len` bytes.
    pub fn image(kind: &str, len: u64) -> Option<Mount> {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(len).unwrap();
        let path = image.path().display().to_string();
        let mut mount = Mount {
            dir: tempfile::tempdir().unwrap(),
            image: Some(image),
            is_mounted: false,
        };
        let made = run(&[&format!("mkfs.{kind}"), "-q", &path]);
        let mounted = made.and_then(|()| mount.mount("rw"));
        mount.if_mounted(mounted, kind)
    }

    fn if_mounted(mut self, mounted: Option<()>, kind: &str) -> Option<Mount> {
        if mounted.is_none() {
            self.is_mounted = false;
            println!("SKIPPED: no {kind} can be made and mounted here");
        }
        mounted.map(|()| self)
    }

    /// Its highest directory.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Mounts an image, `rw` or `ro`.
    pub fn mount(&mut self, option: &str) -> Option<()> {
        let image = self.image.as_ref().expect("memory is mounted once");
        let (image, root) = (image.path().display(), self.root().display());
        let options = format!("loop,{option}");
        run(&[
            "mount",
            "-o",
            &options,
            &image.to_string(),
            &root.to_string(),
        ])?;
        self.is_mounted = true;
        Some(())
    }

    /// Changes how it is mounted; `false` where the kernel refuses.
    pub fn remount(&self, option: &str) -> bool {
        let options = format!("remount,{option}");
        run(&["mount", "-o", &options, &self.root().display().to_string()]).is_some()
    }

    /// Unmounts it, which writes everything to its image.
    pub fn unmount(&mut self) {
        self.is_mounted = false;
        let root = self.root().display().to_string();
        // A child of another test that is on its way to its program holds files here for a moment.
        let is_unmounted = (0..50).any(|_| {
            let done = run(&["umount", &root]).is_some();
            if !done {
                std::thread::sleep(Duration::from_millis(20));
            }
            done
        });
        assert!(is_unmounted || std::thread::panicking(), "umount {root}");
    }

    /// Takes all space but `rest_len` bytes away with one large file.
    pub fn leave(&self, rest_len: u64) {
        let root = self.root().display().to_string();
        let output = Command::new("df")
            .args(["--output=avail", "-B1", &root])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let free: u64 = text.lines().nth(1).unwrap().trim().parse().unwrap();
        let len = free.saturating_sub(rest_len).to_string();
        let path = self.root().join("rest").display().to_string();
        assert!(run(&["fallocate", "-l", &len, &path]).is_some());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.is_mounted {
            self.unmount();
        }
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

/// Fills a file system with one database, over and over, and frees it each time by removing keys alone.
/// Everything acknowledged is read while it is full, and writes go on without a reopen. Needs about
/// 24 MiB.
pub fn fill_and_free(root: &Path, cycle_count: u64, rng: &mut Rng) {
    let path = root.join("full");
    let options = Options {
        memtable_len_max: 1 << 20,
        segment_len_start: SEGMENT_LEN,
        segment_len_max: SEGMENT_LEN,
        table_len_max: 1 << 20,
        cache_len_max: 1 << 20,
        reserve_len_max: RESERVE_LEN,
        background: Background::Thread,
        ..Options::default()
    };
    let db = options.open(&path).unwrap();
    let (dataset, map) = (db.dataset("").unwrap(), db.keyspace("map").unwrap());
    let mut empty_lens = Vec::new();
    let mut written = 0;
    for cycle in 0..cycle_count {
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
        empty_lens.push(used_len(&path));
    }
    println!("full: {cycle_count} cycles, {written} values, lengths when empty {empty_lens:?}");
    // Whatever came before, a database without a key takes what it took the first time, about, and its
    // spare segments.
    let spares_len = SPARE_COUNT_MAX as u64 * (SEGMENT_LEN + Footer::len_max(SEGMENT_LEN));
    let most = empty_lens[0] + empty_lens[0] / 10 + spares_len;
    assert!(empty_lens.iter().all(|len| *len <= most), "{empty_lens:?}");
    drop((dataset, map));
    db.close().unwrap();
    drop(db);
    let db = Database::open(&path).unwrap();
    assert_eq!(db.keyspace("map").unwrap().iter().count(), 0);
    db.close().unwrap();
}
