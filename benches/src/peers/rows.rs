//! What is measured: groups of rows that one directory of one engine goes through.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use strandline_benches::random::Random;
use strandline_benches::{Values, keys};

use super::engine::{Engine, Entrant, Entry, Level, Result};

/// How much each row does. Every count is derived from one number.
pub struct Size {
    pub count: usize,
}

impl Size {
    fn reads(&self) -> usize {
        self.count
    }

    fn scans(&self) -> usize {
        (self.count / 100).max(10)
    }

    /// Writes of each thread: a sync each, so they are few.
    fn durable(&self) -> usize {
        (self.count / 400).clamp(25, 1_000)
    }

    fn large(&self) -> usize {
        (self.count / 20).clamp(100, 20_000)
    }
}

/// Rows that share a directory, in the order in which they run.
pub struct Group {
    pub rows: &'static [&'static str],
    run: fn(&Entrant, &Path, &Size) -> Result<Vec<f64>>,
}

impl Group {
    /// Operations per second, one number per row.
    pub fn run(&self, entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
        let rates = (self.run)(entrant, dir, size)?;
        assert_eq!(rates.len(), self.rows.len());
        Ok(rates)
    }
}

pub const GROUPS: [Group; 4] = [
    Group {
        rows: &["load, 1 per batch, Os"],
        run: load_single,
    },
    Group {
        rows: &[
            "load, 100 per batch, Os",
            "get, hit, settled",
            "scan of 100, settled",
        ],
        run: load_and_read,
    },
    Group {
        rows: &["durable put, 1 thread", "durable put, 8 threads"],
        run: durable,
    },
    Group {
        rows: &["load of 16 KiB, 1 per batch, Os", "get of 16 KiB, settled"],
        run: large,
    },
];

const SEED: u64 = 1;
const VALUE_LEN: usize = 100;
const LARGE_LEN: usize = 16 << 10;
const SCAN_LEN: usize = 100;
const THREADS: usize = 8;
/// Keys that are asked for in vain.
const ABSENT_COUNT: usize = 1_000;

fn load_single(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, Level::Os)?;
    let keys = keys(SEED, size.count);
    let load = load(engine.as_ref(), &keys, VALUE_LEN, 1)?;
    verify(engine.as_ref(), &[&keys], VALUE_LEN)?;
    engine.close()?;
    Ok(vec![load])
}

fn load_and_read(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, Level::Os)?;
    let loaded = keys(SEED, size.count);
    let load = load(engine.as_ref(), &loaded, VALUE_LEN, 100)?;
    engine.settle()?;
    let mut asked = loaded.clone();
    Random::new(SEED + 1).shuffle(&mut asked);
    let get = read(engine.as_ref(), &asked, size.reads(), VALUE_LEN)?;
    let scan = scan(engine.as_ref(), &asked, size.scans())?;
    verify(engine.as_ref(), &[&loaded], VALUE_LEN)?;
    engine.close()?;
    Ok(vec![load, get, scan])
}

fn durable(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, Level::Disk)?;
    let count = size.durable();
    let all = keys(SEED, count * (1 + THREADS));
    let (first, rest) = all.split_at(count);
    let alone = load(engine.as_ref(), first, VALUE_LEN, 1)?;
    let together = rate(rest.len(), || {
        std::thread::scope(|scope| {
            let writers: Vec<_> = rest
                .chunks(count)
                .map(|keys| scope.spawn(|| load(engine.as_ref(), keys, VALUE_LEN, 1)))
                .collect();
            for writer in writers {
                writer.join().expect("a writer does not panic")?;
            }
            Ok(())
        })
    })?;
    let parts: Vec<_> = all.chunks(count).collect();
    verify(engine.as_ref(), &parts, VALUE_LEN)?;
    engine.close()?;
    Ok(vec![alone, together])
}

fn large(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, Level::Os)?;
    let loaded = keys(SEED, size.large());
    let load = load(engine.as_ref(), &loaded, LARGE_LEN, 1)?;
    engine.settle()?;
    let mut asked = loaded.clone();
    Random::new(SEED + 1).shuffle(&mut asked);
    let get = read(engine.as_ref(), &asked, size.large(), LARGE_LEN)?;
    verify(engine.as_ref(), &[&loaded], LARGE_LEN)?;
    engine.close()?;
    Ok(vec![load, get])
}

fn load(engine: &dyn Engine, keys: &[[u8; 16]], len: usize, batch_len: usize) -> Result<f64> {
    let values = Values::new(len);
    let mut batch: Vec<Entry<'_>> = Vec::with_capacity(batch_len);
    rate(keys.len(), || {
        for (at, chunk) in keys.chunks(batch_len).enumerate() {
            batch.clear();
            for (n, key) in chunk.iter().enumerate() {
                batch.push((key, values.value(at * batch_len + n, len)));
            }
            engine.put_batch(&batch)?;
        }
        Ok(())
    })
}

fn read(engine: &dyn Engine, keys: &[[u8; 16]], count: usize, len: usize) -> Result<f64> {
    let reader = engine.reader()?;
    let (mut hits, mut bytes) = (0, 0);
    let rate = rate(count, || {
        for key in keys.iter().cycle().take(count) {
            let hit = reader.get(key, &mut |value| {
                bytes += value.len();
                touch(value);
            })?;
            hits += usize::from(hit);
        }
        Ok(())
    })?;
    assert_eq!((hits, bytes), (count, count * len), "every key is there");
    Ok(rate)
}

fn scan(engine: &dyn Engine, keys: &[[u8; 16]], count: usize) -> Result<f64> {
    let mut sorted = keys.to_vec();
    sorted.sort_unstable();
    let behind = |key: &[u8; 16]| sorted.len() - sorted.partition_point(|other| other < key);
    let starts = || keys.iter().cycle().take(count);
    let expected: usize = starts().map(|key| behind(key).min(SCAN_LEN)).sum();
    let reader = engine.reader()?;
    let mut found = 0;
    let rate = rate(count, || {
        for key in starts() {
            found += reader.scan(key, SCAN_LEN, &mut touch)?;
        }
        Ok(())
    })?;
    assert_eq!(found, expected, "every scan goes on to its end");
    Ok(rate)
}

/// Reads back what was loaded, outside of any clock: an engine that loses, mixes up or invents entries
/// gets no figure. Each part of the keys was loaded on its own, and its values begin anew.
fn verify(engine: &dyn Engine, parts: &[&[[u8; 16]]], len: usize) -> Result<()> {
    let values = Values::new(len);
    let reader = engine.reader()?;
    let mut expected = Vec::new();
    for part in parts {
        expected.extend((0..).zip(*part).map(|(n, key)| (key, values.value(n, len))));
    }
    for (key, value) in &expected {
        let mut is_right = false;
        let is_there = reader.get(*key, &mut |found| is_right = found == *value)?;
        assert!(is_there && is_right, "a get shows what was put");
    }
    for key in keys(SEED + 2, ABSENT_COUNT) {
        let is_there = reader.get(&key, &mut |_| {})?;
        assert!(!is_there, "a get shows what nobody put");
    }
    expected.sort_unstable();
    let (mut at, mut wrong) = (0, 0);
    let count = reader.scan(&[0; 16], expected.len() + 1, &mut |found| {
        let value = expected.get(at).map(|(_, value)| *value);
        wrong += usize::from(value != Some(found));
        at += 1;
    })?;
    assert_eq!(
        (count, wrong),
        (expected.len(), 0),
        "a scan shows all in order"
    );
    Ok(())
}

/// Looks at every cache line: engines that return a map and engines that copy pay for the same bytes.
fn touch(value: &[u8]) {
    let sum = value.iter().step_by(64).fold(0u8, |sum, byte| sum ^ byte);
    black_box(sum);
}

fn rate(count: usize, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}
