//! Contest 4: how a get finds its record in the runs.

use std::io;
use std::time::Instant;

use xorf::Filter;
use xxhash_rust::xxh3::xxh3_64;

use crate::contest::Contest;
use crate::memtable::Key;
use crate::random::Random;
use crate::run::{Run, VALUE_LEN};

/// Measures gets over `count` records that are spread over `run_count` runs at random.
pub fn measure(count: usize, run_count: usize, rounds: usize) -> io::Result<()> {
    let load = Load::new(count, run_count);
    load.print_space();
    let title = format!("{count} records of 16 B + {VALUE_LEN} B in {run_count} runs, 1 thread");
    let mut contest = Contest::new(title, &COLUMNS);
    contest.enter("fuse filter + fences", || Ok(load.run(by_filter)));
    contest.enter("fences alone", || Ok(load.run(by_fence)));
    contest.enter("point index", || Ok(load.run(by_point)));
    contest.enter("point index, no prefetch", || {
        Ok(load.run(by_point_unprefetched))
    });
    contest.run(rounds)
}

const COLUMNS: [&str; 3] = [
    "ns per hit, one after the other",
    "ns per hit",
    "ns per miss",
];

struct Load {
    runs: Vec<Run>,
    hits: Vec<Key>,
    misses: Vec<Key>,
}

impl Load {
    fn new(count: usize, run_count: usize) -> Load {
        let mut random = Random::new(5);
        let mut hits: Vec<Key> = (0..count).map(|_| random.key()).collect();
        let runs = hits.chunks(count.div_ceil(run_count)).map(|keys| {
            let mut keys = keys.to_vec();
            keys.sort_unstable();
            Run::build(&keys)
        });
        let runs = runs.collect();
        random.shuffle(&mut hits);
        hits.truncate(count / 2);
        let misses = hits.iter().map(|_| random.key()).collect();
        Load { runs, hits, misses }
    }

    fn print_space(&self) {
        let count = (self.hits.len() * 2) as f64;
        let sum = |bytes: fn(&Run) -> usize| self.runs.iter().map(bytes).sum::<usize>() as f64;
        let points = sum(|run| run.points.bytes());
        let fences = sum(|run| run.fences.bytes());
        let filter = sum(|run| run.filter.len());
        println!(
            "\nbytes per record: point index {:.2}, fences {:.2}, filter {:.2}",
            points / count,
            fences / count,
            filter / count
        );
    }

    fn run(&self, find: impl Fn(&[Run], &Key) -> Option<u8>) -> Vec<f64> {
        let each = |keys: &[Key], expected: usize| {
            let start = Instant::now();
            let found = keys.iter().filter_map(|key| find(&self.runs, key));
            let found = found
                .filter(|byte| std::hint::black_box(*byte) == 0x5a)
                .count();
            let nanos = start.elapsed().as_nanos() as f64 / keys.len() as f64;
            assert_eq!(found, expected);
            nanos
        };
        let hit = each(&self.hits, self.hits.len());
        vec![self.chain(&find), hit, each(&self.misses, 0)]
    }

    /// Each key is known only when the value before it was read, so no two gets overlap.
    fn chain(&self, find: impl Fn(&[Run], &Key) -> Option<u8>) -> f64 {
        let start = Instant::now();
        let mut skip = 0;
        for at in 0..self.hits.len() {
            let byte = find(&self.runs, &self.hits[at + skip]).expect("every hit is in a run");
            skip = usize::from(std::hint::black_box(byte) ^ 0x5a);
        }
        start.elapsed().as_nanos() as f64 / self.hits.len() as f64
    }
}

fn by_point(runs: &[Run], key: &Key) -> Option<u8> {
    let hash = xxh3_64(key);
    if runs.len() > 1 {
        runs.iter().for_each(|run| run.points.prefetch(hash));
    }
    newest(runs, |run| run.by_point(key, hash))
}

fn by_point_unprefetched(runs: &[Run], key: &Key) -> Option<u8> {
    let hash = xxh3_64(key);
    newest(runs, |run| run.by_point(key, hash))
}

fn by_fence(runs: &[Run], key: &Key) -> Option<u8> {
    newest(runs, |run| run.by_fence(key))
}

/// Asks the filters of all runs before it looks into any run, which is their form of prefetching.
fn by_filter(runs: &[Run], key: &Key) -> Option<u8> {
    let hash = xxh3_64(key);
    if let [run] = runs {
        return run.by_filter(key, hash).map(touch);
    }
    let asked = runs.iter().enumerate();
    let maybe = asked.fold(0_u32, |bits, (at, run)| {
        bits | u32::from(run.filter.contains(&hash)) << at
    });
    let maybe_in = runs
        .iter()
        .enumerate()
        .filter(|(at, _)| maybe >> at & 1 == 1);
    maybe_in
        .rev()
        .find_map(|(_, run)| run.by_fence(key))
        .map(touch)
}

fn newest<'r>(runs: &'r [Run], find: impl Fn(&'r Run) -> Option<&'r [u8]>) -> Option<u8> {
    runs.iter().rev().find_map(find).map(touch)
}

fn touch(value: &[u8]) -> u8 {
    value[0]
}
