//! Contest 3: the index of the memtable.
//!
//! Keys stand in an image of the log, one record after the other, as the engine has them. The
//! entrants either copy the key, inline or boxed, or keep a reference into the image.

use std::collections::BTreeMap;
use std::io;
use std::sync::RwLock;
use std::time::Instant;

use artmap::{ArenaArtMap, ArtMap};
use crossbeam_skiplist::SkipMap;

use crate::append::RECORD_LEN;
use crate::contest::Contest;
use crate::random::Random;

pub type Key = [u8; 16];

pub fn measure(count: usize, threads: usize, rounds: usize) -> io::Result<()> {
    let load = Load::new(count, threads);
    let title = format!("memtable of {count} random 16 B keys, {threads} threads");
    let columns = [
        "ns per insert",
        "ns per get, random hit",
        "ns per entry of a full scan",
    ];
    let mut contest = Contest::new(title, &columns);
    contest.enter("skiplist, boxed keys", || {
        Ok(load.run(SkipMap::<Box<[u8]>, u64>::new()))
    });
    contest.enter("skiplist, inline keys", || {
        Ok(load.run(SkipMap::<Key, u64>::new()))
    });
    contest.enter("ART in an arena, inline keys", || {
        Ok(load.run(ArenaArtMap::<Key, u64>::with_capacity(ARENA_LEN)))
    });
    contest.enter("ART in an arena, keys in the log", || {
        Ok(load.run(ArenaArtMap::<&Key, u64>::with_capacity(ARENA_LEN)))
    });
    contest.enter("ART on the heap, inline keys", || {
        Ok(load.run(ArtMap::<Key, u64>::new()))
    });
    contest.enter("BTreeMap in a RwLock, boxed keys", || {
        Ok(load.run(RwLock::new(BTreeMap::<Box<[u8]>, u64>::new())))
    });
    contest.run(rounds)?;
    println!(
        "\narena bytes per entry: {:.1}",
        arena_bytes(&load) / count as f64
    );
    Ok(())
}

pub const ARENA_LEN: usize = 256 << 20;

struct Load {
    image: Vec<u8>,
    // Shuffled copies, so that a lookup does not warm the record it looks for.
    wanted: Vec<Key>,
    threads: usize,
}

impl Load {
    fn new(count: usize, threads: usize) -> Load {
        let mut random = Random::new(3);
        let mut image = vec![0; count * RECORD_LEN];
        random.fill(&mut image);
        let mut wanted: Vec<Key> = image
            .chunks_exact(RECORD_LEN)
            .map(|slot| *key(slot))
            .collect();
        random.shuffle(&mut wanted);
        Load {
            image,
            wanted,
            threads,
        }
    }

    /// Returns the wall time per operation of all threads together.
    fn run<'k>(&'k self, map: impl Map<'k>) -> Vec<f64> {
        let count = self.wanted.len();
        let slots = count.div_ceil(self.threads) * RECORD_LEN;
        let insert = self.each(count, |thread| {
            let part = self
                .image
                .chunks(slots)
                .nth(thread)
                .expect("one part for each thread");
            for (at, slot) in part.chunks_exact(RECORD_LEN).enumerate() {
                map.insert(key(slot), at as u64);
            }
        });
        let find = self.each(count * self.threads, |thread| {
            let (front, back) = self.wanted.split_at(count / self.threads * thread);
            let found = back
                .iter()
                .chain(front)
                .filter(|key| map.find(key).is_some())
                .count();
            assert_eq!(found, count);
        });
        let scan = self.each(count * self.threads, |_| assert_eq!(map.scan().0, count));
        vec![insert, find, scan]
    }

    fn each(&self, operations: usize, work: impl Fn(usize) + Sync) -> f64 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            let work = &work;
            for thread in 0..self.threads {
                scope.spawn(move || work(thread));
            }
        });
        start.elapsed().as_nanos() as f64 / operations as f64
    }
}

fn key(slot: &[u8]) -> &Key {
    slot[64..]
        .first_chunk()
        .expect("a record is longer than its header and key")
}

fn arena_bytes(load: &Load) -> f64 {
    let map = ArenaArtMap::<Key, u64>::with_capacity(ARENA_LEN);
    for slot in load.image.chunks_exact(RECORD_LEN) {
        map.insert(*key(slot), 0);
    }
    map.arena().size() as f64
}

/// An ordered map that several threads share. Keys outlive it.
pub trait Map<'k>: Sync {
    fn insert(&self, key: &'k Key, value: u64);
    fn find(&self, key: &Key) -> Option<u64>;
    /// Visits every entry in order. Returns their number and a digest of what was read.
    fn scan(&self) -> (usize, u64);
}

fn digest<'a>(entries: impl Iterator<Item = (&'a [u8], u64)>) -> (usize, u64) {
    entries.fold((0, 0), |(count, sum), (key, value)| {
        (
            count + 1,
            std::hint::black_box(sum + u64::from(key[15]) + value),
        )
    })
}

impl<'k> Map<'k> for SkipMap<Box<[u8]>, u64> {
    fn insert(&self, key: &'k Key, value: u64) {
        SkipMap::insert(self, Box::from(key.as_slice()), value);
    }

    fn find(&self, key: &Key) -> Option<u64> {
        self.get(key.as_slice()).map(|entry| *entry.value())
    }

    fn scan(&self) -> (usize, u64) {
        self.iter().fold((0, 0), |(count, sum), entry| {
            (
                count + 1,
                std::hint::black_box(sum + u64::from(entry.key()[15]) + entry.value()),
            )
        })
    }
}

impl<'k> Map<'k> for SkipMap<Key, u64> {
    fn insert(&self, key: &'k Key, value: u64) {
        SkipMap::insert(self, *key, value);
    }

    fn find(&self, key: &Key) -> Option<u64> {
        self.get(key).map(|entry| *entry.value())
    }

    fn scan(&self) -> (usize, u64) {
        self.iter().fold((0, 0), |(count, sum), entry| {
            (
                count + 1,
                std::hint::black_box(sum + u64::from(entry.key()[15]) + entry.value()),
            )
        })
    }
}

impl<'k> Map<'k> for ArenaArtMap<Key, u64> {
    fn insert(&self, key: &'k Key, value: u64) {
        ArenaArtMap::insert(self, *key, value);
    }

    fn find(&self, key: &Key) -> Option<u64> {
        self.get_slice(key)
    }

    fn scan(&self) -> (usize, u64) {
        digest(
            self.iter()
                .map(|entry| (entry.key().as_slice(), *entry.value())),
        )
    }
}

impl<'k> Map<'k> for ArenaArtMap<&'k Key, u64> {
    fn insert(&self, key: &'k Key, value: u64) {
        ArenaArtMap::insert(self, key, value);
    }

    fn find(&self, key: &Key) -> Option<u64> {
        self.get_slice(key)
    }

    fn scan(&self) -> (usize, u64) {
        digest(
            self.iter()
                .map(|entry| (entry.key().as_slice(), *entry.value())),
        )
    }
}

impl<'k> Map<'k> for ArtMap<Key, u64> {
    fn insert(&self, key: &'k Key, value: u64) {
        ArtMap::insert(self, *key, value);
    }

    fn find(&self, key: &Key) -> Option<u64> {
        self.get(key).map(|entry| *entry.value())
    }

    fn scan(&self) -> (usize, u64) {
        self.iter().fold((0, 0), |(count, sum), entry| {
            (
                count + 1,
                std::hint::black_box(sum + u64::from(entry.key()[15]) + entry.value()),
            )
        })
    }
}

impl<'k> Map<'k> for RwLock<BTreeMap<Box<[u8]>, u64>> {
    fn insert(&self, key: &'k Key, value: u64) {
        self.write()
            .expect("no writer panics")
            .insert(Box::from(key.as_slice()), value);
    }

    fn find(&self, key: &Key) -> Option<u64> {
        self.read()
            .expect("no writer panics")
            .get(key.as_slice())
            .copied()
    }

    fn scan(&self) -> (usize, u64) {
        let map = self.read().expect("no writer panics");
        digest(map.iter().map(|(key, value)| (&key[..], *value)))
    }
}
