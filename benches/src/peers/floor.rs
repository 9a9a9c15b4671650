//! What the machine itself can do, with no engine between.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use serde_json::{Value, json};
use strandline_benches::random::Random;

use super::engine::Result;
use super::report::short;
use super::rows::Size;
use super::work::{Key, LARGE_LEN, Latencies, VALUE_LEN, at_once, rate};

/// A name, a unit, and a figure; none where the place cannot do it.
pub struct Floor(Vec<(&'static str, &'static str, f64)>);

const PAGE_LEN: usize = 4096;
const FILE_LEN: usize = 256 << 20;
const READ_COUNT: usize = 2_000;
/// Reads under way at once.
const DEPTH: usize = 32;

impl Floor {
    pub fn measure(dir: &Path, size: &Size) -> Result<Floor> {
        let dir = tempfile::tempdir_in(dir)?;
        let path = dir.path().join("floor");
        let count = size.durable();
        let mut figures = Vec::new();

        let appends = synced_appends(dir.path(), size)?;
        figures.push(("append of 512 B and fdatasync", "per s", appends[0]));
        figures.push(("append of 512 B and fdatasync, p50", "µs", appends[1]));

        let mut buf = vec![1; 2 * PAGE_LEN];
        let page = aligned(&mut buf);
        let mut direct = [f64::NAN; 2];
        zeroed(&path, count * PAGE_LEN)?;
        if let Some(file) = open_direct(&path, OFlags::DSYNC)? {
            [direct[0], direct[1], ..] = synced(count, |n| {
                Ok(file.write_all_at(page, (n * PAGE_LEN) as u64)?)
            })?;
        }
        figures.push(("O_DIRECT, O_DSYNC write of 4 KiB", "per s", direct[0]));
        figures.push(("O_DIRECT, O_DSYNC write of 4 KiB, p50", "µs", direct[1]));

        std::fs::remove_file(&path)?;
        let written = buffered(&path, FILE_LEN)?;
        figures.push(("buffered write", "MB/s", written / 1e6));
        File::open(&path)?.sync_all()?;

        for (name, depth) in [
            ("read of 4 KiB past the cache", 1),
            ("read of 4 KiB past the cache, 32 at once", DEPTH),
        ] {
            let mut per_second = f64::NAN;
            if let Some(file) = open_direct(&path, OFlags::empty())? {
                let (_, seconds) = at_once(depth, |n| read_pages(&file, n as u64))?;
                per_second = (depth * READ_COUNT) as f64 / seconds;
            }
            figures.push((name, "per s", per_second));
        }

        let (from, mut to) = (vec![1u8; FILE_LEN / 4], vec![0u8; FILE_LEN / 4]);
        let copies = 8;
        let copied = rate(copies * from.len(), || {
            for _ in 0..copies {
                to.copy_from_slice(black_box(&from));
                black_box(&mut to);
            }
            Ok(())
        })?;
        figures.push(("memcpy", "GB/s", copied / 1e9));
        Ok(Floor(figures))
    }

    pub fn print(&self) {
        println!("| the machine alone | unit | |\n|---|---|---:|");
        for (name, unit, figure) in &self.0 {
            println!("| {name} | {unit} | {} |", short(*figure));
        }
        println!();
    }

    pub fn json(&self) -> Value {
        let rows = self.0.iter();
        rows.map(|(name, unit, figure)| json!({ "row": name, "unit": unit, "figure": figure }))
            .collect()
    }
}

/// Synced appends per second to a file of zeros; their p50, p99 and p99.9. Large enough for what an engine
/// adds to an entry of the usual size.
pub fn synced_appends(dir: &Path, size: &Size) -> Result<Vec<f64>> {
    const LEN: usize = 512;
    let count = size.durable();
    let file = zeroed(&dir.join("appends"), count * LEN)?;
    let figures = synced(count, |n| {
        file.write_all_at(&[1; LEN], (n * LEN) as u64)?;
        Ok(file.sync_data()?)
    })?;
    Ok(Vec::from(figures))
}

/// Entries per second whose keys and values alone are handed to the system in large pieces.
pub fn small_entries(dir: &Path, size: &Size) -> Result<Vec<f64>> {
    entries(dir, size.count, VALUE_LEN)
}

/// As [`small_entries`], with large values.
pub fn large_entries(dir: &Path, size: &Size) -> Result<Vec<f64>> {
    entries(dir, size.large(), LARGE_LEN)
}

fn entries(dir: &Path, count: usize, value_len: usize) -> Result<Vec<f64>> {
    let len = size_of::<Key>() + value_len;
    let written = buffered(&dir.join("entries"), count * len)?;
    Ok(vec![written / len as f64])
}

/// Bytes per second, written to a new file and not synced.
fn buffered(path: &Path, len: usize) -> Result<f64> {
    let mut file = File::create(path)?;
    let chunk = vec![1u8; (1 << 20).min(len)];
    let chunks = len / chunk.len();
    rate(chunks * chunk.len(), || {
        Ok((0..chunks).try_for_each(|_| file.write_all(&chunk))?)
    })
}

/// A file of zeros that are on the disk, so that a sync need not write where they are.
fn zeroed(path: &Path, len: usize) -> Result<File> {
    let file = File::create(path)?;
    file.write_all_at(&vec![0; len], 0)?;
    file.sync_all()?;
    Ok(file)
}

/// None where files can only be used through the page cache.
fn open_direct(path: &Path, more: OFlags) -> Result<Option<File>> {
    let flags = (OFlags::DIRECT | more).bits() as i32;
    let mut options = OpenOptions::new();
    let found = options
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path);
    match found {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A page within twice as many bytes, as direct writes and reads want it.
fn aligned(buf: &mut [u8]) -> &mut [u8] {
    let start = buf.as_ptr().align_offset(PAGE_LEN);
    &mut buf[start..][..PAGE_LEN]
}

/// How many there are per second; p50, p99 and p99.9 in microseconds.
fn synced(count: usize, mut write: impl FnMut(usize) -> Result<()>) -> Result<[f64; 4]> {
    let mut latencies = Latencies::default();
    let per_second = rate(count, || {
        (0..count).try_for_each(|n| latencies.timed(|| write(n)))
    })?;
    let [p50, p99, p999] = latencies.percentiles();
    Ok([per_second, p50, p99, p999])
}

fn read_pages(file: &File, seed: u64) -> Result<()> {
    let mut buf = vec![0; 2 * PAGE_LEN];
    let page = aligned(&mut buf);
    let mut random = Random::new(seed);
    for _ in 0..READ_COUNT {
        let at = random.below(FILE_LEN / PAGE_LEN) * PAGE_LEN;
        file.read_exact_at(page, at as u64)?;
    }
    Ok(())
}
