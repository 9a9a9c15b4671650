//! What rows are made of: writes, reads, scans, and the check that all is there.

use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use strandline_benches::{Values, keys};

use super::engine::{Engine, Entry, Reader, Result};

pub type Key = [u8; 16];

pub const SEED: u64 = 1;
pub const VALUE_LEN: usize = 100;
pub const LARGE_LEN: usize = 16 << 10;
/// Keys that are asked for in vain.
const ABSENT_COUNT: usize = 1_000;

/// Keys with values of one length. Values have numbers: the first key's is `first`.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub keys: &'a [Key],
    pub first: usize,
    pub len: usize,
}

impl<'a> Part<'a> {
    /// Values of the usual length, from number 0 on.
    pub fn new(keys: &'a [Key]) -> Part<'a> {
        Part {
            keys,
            first: 0,
            len: VALUE_LEN,
        }
    }

    /// The same keys with other values.
    pub fn changed(self) -> Part<'a> {
        Part {
            first: self.first + 1,
            ..self
        }
    }

    pub fn entries(self, values: &'a Values) -> impl Iterator<Item = (&'a Key, &'a [u8])> {
        let value = move |(n, key)| (key, values.value(n, self.len));
        (self.first..).zip(self.keys).map(value)
    }
}

/// How long each of some operations took.
#[derive(Default)]
pub struct Latencies(Vec<u64>);

impl Latencies {
    pub fn timed<T>(&mut self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let found = work()?;
        self.0.push(start.elapsed().as_nanos() as u64);
        Ok(found)
    }

    pub fn merge(all: Vec<Latencies>) -> Latencies {
        Latencies(all.into_iter().flat_map(|one| one.0).collect())
    }

    /// p50, p99 and p99.9 in microseconds.
    pub fn percentiles(mut self) -> [f64; 3] {
        self.0.sort_unstable();
        let last = self.0.len() - 1;
        [0.5, 0.99, 0.999].map(|part| self.0[(last as f64 * part).round() as usize] as f64 / 1e3)
    }
}

/// Puts entries per second.
pub fn load(engine: &dyn Engine, part: Part<'_>, batch_count: usize) -> Result<f64> {
    let values = Values::new(part.len);
    let mut batch: Vec<Entry<'_>> = Vec::with_capacity(batch_count.min(part.keys.len()));
    rate(part.keys.len(), || {
        let mut entries = part.entries(&values);
        loop {
            batch.clear();
            let next = entries.by_ref().take(batch_count);
            batch.extend(next.map(|(key, value)| (&key[..], value)));
            if batch.is_empty() {
                return Ok(());
            }
            engine.put_batch(&batch)?;
        }
    })
}

/// Puts one by one, each timed.
pub fn put_timed(engine: &dyn Engine, part: Part<'_>) -> Result<Latencies> {
    let values = Values::new(part.len);
    let mut latencies = Latencies(Vec::with_capacity(part.keys.len()));
    for (key, value) in part.entries(&values) {
        latencies.timed(|| engine.put_batch(&[(key, value)]))?;
    }
    Ok(latencies)
}

/// Gets per second of keys that are there, shared among threads.
pub fn read(engine: &dyn Engine, asked: &[Key], len: usize, threads: usize) -> Result<f64> {
    let (rate, hits, bytes) = get_all(engine, asked, threads)?;
    let count = asked.len();
    assert_eq!((hits, bytes), (count, count * len), "every key is there");
    Ok(rate)
}

/// Gets per second of keys that are not there, shared among threads.
pub fn read_absent(engine: &dyn Engine, asked: &[Key], threads: usize) -> Result<f64> {
    let (rate, hits, _) = get_all(engine, asked, threads)?;
    assert_eq!(hits, 0, "none of the keys is there");
    Ok(rate)
}

/// Gets per second, how many keys were there, and the bytes of their values.
fn get_all(engine: &dyn Engine, asked: &[Key], threads: usize) -> Result<(f64, usize, usize)> {
    let shares: Vec<_> = asked.chunks(asked.len().div_ceil(threads)).collect();
    let (found, seconds) = at_once(shares.len(), |n| {
        let reader = engine.reader()?;
        let (mut hits, mut bytes) = (0, 0);
        for key in shares[n] {
            let see = &mut |value: &[u8]| {
                bytes += value.len();
                touch(value);
            };
            hits += usize::from(reader.get(key, see)?);
        }
        Ok((hits, bytes))
    })?;
    let hits = found.iter().map(|found| found.0).sum();
    let bytes = found.iter().map(|found| found.1).sum();
    Ok((asked.len() as f64 / seconds, hits, bytes))
}

/// Gets a key that is there, and sees all that was written before.
pub fn get_fresh(reader: &mut dyn Reader, key: &Key) -> Result<()> {
    reader.refresh()?;
    let is_there = reader.get(key, &mut touch)?;
    assert!(is_there, "every key is there");
    Ok(())
}

#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Way {
    Forward,
    Back,
}

/// Scans per second of up to `len` entries from each key of `starts` on; `sorted` is all that there is.
pub fn scan(
    engine: &dyn Engine,
    sorted: &[Key],
    starts: &[Key],
    len: usize,
    way: Way,
) -> Result<f64> {
    let left = |start: &Key| match way {
        Way::Forward => sorted.len() - sorted.partition_point(|key| key < start),
        Way::Back => sorted.partition_point(|key| key <= start),
    };
    let expected: usize = starts.iter().map(|start| left(start).min(len)).sum();
    let reader = engine.reader()?;
    let mut found = 0;
    let rate = rate(starts.len(), || {
        for start in starts {
            found += match way {
                Way::Forward => reader.scan(start, len, &mut touch)?,
                Way::Back => reader.scan_back(start, len, &mut touch)?,
            };
        }
        Ok(())
    })?;
    assert_eq!(found, expected, "every scan goes on to its end");
    Ok(rate)
}

/// Entries per second of one scan over all.
pub fn scan_all(engine: &dyn Engine, count: usize) -> Result<f64> {
    let reader = engine.reader()?;
    let mut found = 0;
    let rate = rate(count, || {
        found = reader.scan(&[0; 16], usize::MAX, &mut touch)?;
        Ok(())
    })?;
    assert_eq!(found, count, "a scan shows all");
    Ok(rate)
}

/// Counts per second of all keys: as many as fit into a while, for some engines read everything.
pub fn count(engine: &dyn Engine, expected: usize) -> Result<f64> {
    const WHILE: Duration = Duration::from_millis(50);
    let (mut counts, start) = (0u32, Instant::now());
    while start.elapsed() < WHILE {
        assert_eq!(engine.len()?, expected, "the count is right");
        counts += 1;
    }
    Ok(f64::from(counts) / start.elapsed().as_secs_f64())
}

/// Reads back what was written, outside of any clock: an engine that loses, mixes up or invents entries
/// gets no figure.
pub fn verify(engine: &dyn Engine, parts: &[Part<'_>], gone: &[Key]) -> Result<()> {
    let values: Vec<_> = parts.iter().map(|part| Values::new(part.len)).collect();
    let entries = parts.iter().zip(&values);
    let expected = entries.flat_map(|(part, values)| part.entries(values));
    verify_entries(engine, expected.collect(), gone)
}

/// As [`verify`], of entries in any order.
pub fn verify_entries(
    engine: &dyn Engine,
    mut expected: Vec<(&Key, &[u8])>,
    gone: &[Key],
) -> Result<()> {
    let reader = engine.reader()?;
    for (key, value) in &expected {
        verify_get(reader.as_ref(), key, value)?;
    }
    for key in gone.iter().chain(&keys(SEED + 2, ABSENT_COUNT)) {
        let is_there = reader.get(key, &mut |_| {})?;
        assert!(!is_there, "a get shows what nobody put or somebody removed");
    }
    // LMDB gives a thread one transaction at a time, and `len` takes one.
    drop(reader);
    assert_eq!(engine.len()?, expected.len(), "the count is right");
    let reader = engine.reader()?;
    expected.sort_unstable();
    let count = expected.len() + 1;
    let forward = expected.iter().map(|entry| entry.1);
    let backward = expected.iter().rev().map(|entry| entry.1);
    shows(forward, |see| reader.scan(&[0; 16], count, see))?;
    shows(backward, |see| reader.scan_back(&[0xff; 16], count, see))
}

pub fn verify_get(reader: &dyn Reader, key: &Key, value: &[u8]) -> Result<()> {
    let mut is_right = false;
    let is_there = reader.get(key, &mut |found| is_right = found == value)?;
    assert!(is_there && is_right, "a get shows what was put");
    Ok(())
}

fn shows<'a>(
    mut expected: impl ExactSizeIterator<Item = &'a [u8]>,
    scan: impl FnOnce(&mut dyn FnMut(&[u8])) -> Result<usize>,
) -> Result<()> {
    let (count, mut wrong) = (expected.len(), 0);
    let found = scan(&mut |value| wrong += usize::from(expected.next() != Some(value)))?;
    assert_eq!((found, wrong), (count, 0), "a scan shows all in order");
    Ok(())
}

/// Runs `work` in some threads that begin together. What each found, and the seconds from the first
/// begin to the last end.
pub fn at_once<T: Send>(
    threads: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<(Vec<T>, f64)> {
    let barrier = Barrier::new(threads);
    let one = |n| {
        barrier.wait();
        let start = Instant::now();
        let found = work(n);
        (start, found, Instant::now())
    };
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|n| scope.spawn(move || one(n))).collect();
        let threads = threads.into_iter();
        threads
            .map(|thread| thread.join().expect("a thread of a row does not panic"))
            .collect()
    });
    let start = done.iter().map(|one| one.0).min();
    let end = done.iter().map(|one| one.2).max();
    let seconds = (start.zip(end)).map_or(0.0, |(start, end)| (end - start).as_secs_f64());
    let found: Result<_> = done.into_iter().map(|one| one.1).collect();
    Ok((found?, seconds))
}

/// Sets a flag when it is dropped, by a panic too: nobody waits for ever.
pub struct Ended<'a>(pub &'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Looks at every cache line: engines that return a map and engines that copy pay for the same bytes.
pub fn touch(value: &[u8]) {
    let sum = value.iter().step_by(64).fold(0u8, |sum, byte| sum ^ byte);
    black_box(sum);
}

pub fn rate(count: usize, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_leave_as_many_behind_them_as_they_say() {
        let latencies = Latencies((0..=10_000).rev().map(|n| n * 1_000).collect());
        assert_eq!(latencies.percentiles(), [5_000.0, 9_900.0, 9_990.0]);
    }

    #[test]
    fn threads_begin_together_and_the_last_one_ends_the_clock() {
        let wait = std::time::Duration::from_millis(20);
        let (found, seconds) = at_once(3, |n| {
            std::thread::sleep(wait * n as u32);
            Ok(n)
        })
        .expect("nothing failed");
        assert_eq!(found, [0, 1, 2]);
        assert!(seconds >= wait.as_secs_f64() * 2.0, "{seconds}");
    }
}
