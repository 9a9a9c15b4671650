//! Contests 1 and 3 together: a whole put of 100 B, for the two end-to-end kill criteria.
//!
//! A put here is reserve (one mutex), encode a 64-byte header, key, and value in place, checksum,
//! append, and index. The engine adds publishing and back-pressure, which cost every entrant the
//! same.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use artmap::ArenaArtMap;
use crossbeam_skiplist::SkipMap;
use memmap2::{Advice, MmapMut};

use crate::append::{BUFFER_LEN, RECORD_LEN, timed};
use crate::contest::Contest;
use crate::map;
use crate::memtable::{ARENA_LEN, Key, Map};
use crate::random::Random;
use crate::segment::State;

pub fn measure(dir: &Path, count: usize, rounds: usize) -> io::Result<()> {
    let mut random = Random::new(4);
    let keys: Vec<Key> = (0..count).map(|_| random.key()).collect();
    let (dir, keys) = (dir.join("put"), keys.as_slice());
    let title = format!("put of 16 B + 100 B, {count} random keys, zeroed segment, 1 thread");
    let mut contest = Contest::new(title, &["ns per put"]);
    for index in [Index::Art, Index::Skiplist, Index::SkiplistBoxed] {
        for face in [
            Face::Buffer,
            Face::Pwrite,
            Face::MapTouched,
            Face::MapFresh,
            Face::MapClean,
        ] {
            let path = dir.clone();
            contest.enter(format!("{index:?} + {face:?}"), move || {
                let cost = put_all(index, face, &path, keys);
                std::fs::remove_file(&path)?;
                Ok(vec![cost?])
            });
        }
    }
    contest.run(rounds)
}

#[derive(Clone, Copy, Debug)]
enum Index {
    Art,
    Skiplist,
    SkiplistBoxed,
}

#[derive(Clone, Copy, Debug)]
enum Face {
    /// 64 KiB in user space, then `pwrite`: a weaker promise than the others.
    Buffer,
    Pwrite,
    MapTouched,
    /// Mapped just before the first append, nothing touched.
    MapFresh,
    /// Touched, then written back.
    MapClean,
}

fn put_all(index: Index, face: Face, path: &Path, keys: &[Key]) -> io::Result<f64> {
    match index {
        Index::Art => append_all(
            ArenaArtMap::<Key, u64>::with_capacity(ARENA_LEN),
            face,
            path,
            keys,
        ),
        Index::Skiplist => append_all(SkipMap::<Key, u64>::new(), face, path, keys),
        Index::SkiplistBoxed => append_all(SkipMap::<Box<[u8]>, u64>::new(), face, path, keys),
    }
}

fn append_all<'k>(
    index: impl Map<'k>,
    face: Face,
    path: &Path,
    keys: &'k [Key],
) -> io::Result<f64> {
    let len = keys.len() * RECORD_LEN;
    let file = State::Zeroed.create(path, len)?;
    let mut log = Log::open(face, file, len)?;
    let tail = Mutex::new(0);
    let value = [0x5a; VALUE_LEN];
    let nanos = timed(|| {
        for key in keys {
            let at = reserve(&tail);
            log.append(at, key, &value)?;
            index.insert(key, at as u64);
        }
        log.finish()
    })?;
    Ok(nanos / keys.len() as f64)
}

fn reserve(tail: &Mutex<usize>) -> usize {
    let mut tail = tail.lock().expect("no holder panics");
    let at = *tail;
    *tail += RECORD_LEN;
    at
}

enum Log {
    Buffer {
        file: File,
        buffer: Vec<u8>,
        used: usize,
        written: u64,
    },
    Pwrite(File),
    Map(MmapMut),
}

impl Log {
    fn open(face: Face, file: File, len: usize) -> io::Result<Log> {
        Ok(match face {
            Face::Buffer => Log::Buffer {
                file,
                buffer: vec![0; BUFFER_LEN],
                used: 0,
                written: 0,
            },
            Face::Pwrite => Log::Pwrite(file),
            Face::MapFresh => Log::Map(map::shared(&file, len)?),
            Face::MapTouched | Face::MapClean => {
                let mapping = map::shared(&file, len)?;
                mapping.advise(Advice::PopulateWrite)?;
                if matches!(face, Face::MapClean) {
                    file.sync_data()?;
                }
                Log::Map(mapping)
            }
        })
    }

    fn append(&mut self, at: usize, key: &Key, value: &[u8; VALUE_LEN]) -> io::Result<()> {
        match self {
            Log::Buffer {
                file,
                buffer,
                used,
                written,
            } => {
                if *used + RECORD_LEN > BUFFER_LEN {
                    file.write_all_at(&buffer[..*used], *written)?;
                    *written += *used as u64;
                    *used = 0;
                }
                encode(&mut buffer[*used..*used + RECORD_LEN], at, key, value);
                *used += RECORD_LEN;
            }
            Log::Pwrite(file) => {
                let mut record = [0; RECORD_LEN];
                encode(&mut record, at, key, value);
                file.write_all_at(&record, at as u64)?;
            }
            Log::Map(mapping) => encode(&mut mapping[at..at + RECORD_LEN], at, key, value),
        }
        Ok(())
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Log::Buffer {
                file,
                buffer,
                used,
                written,
            } => file.write_all_at(&buffer[..used], written),
            Log::Pwrite(_) | Log::Map(_) => Ok(()),
        }
    }
}

fn encode(record: &mut [u8], at: usize, key: &Key, value: &[u8; VALUE_LEN]) {
    let (header, body) = record.split_at_mut(HEADER_LEN);
    body[..16].copy_from_slice(key);
    body[16..16 + VALUE_LEN].copy_from_slice(value);
    header[8..16].copy_from_slice(&(at as u64).to_le_bytes());
    header[16..24].copy_from_slice(&(RECORD_LEN as u64).to_le_bytes());
    let crc = crc32fast::hash(&record[8..]);
    record[..4].copy_from_slice(&crc.to_le_bytes());
}

const HEADER_LEN: usize = 64;
const VALUE_LEN: usize = 100;
