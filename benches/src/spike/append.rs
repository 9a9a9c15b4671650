//! Contest 1: how a small record reaches the operating system.
//!
//! A record that was copied into a shared mapping or handed to `pwrite` survives a crash of the
//! process. One that sits in a user-space buffer does not: that entrant is faster for a weaker
//! promise, and takes part because the kill criterion names it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use memmap2::{Advice, MmapMut};

use crate::contest::Contest;
use crate::map;
use crate::random::Random;
use crate::segment::State;

pub const RECORD_LEN: usize = 190;
pub const BUFFER_LEN: usize = 64 << 10;

pub fn measure(dir: &Path, count: usize, rounds: usize) -> io::Result<()> {
    let mib = (count * RECORD_LEN) >> 20;
    let title = format!("append of {RECORD_LEN} B for OS durability, {mib} MiB, 1 thread");
    let mut contest = Contest::new(title, &["ns per append"]);
    for case in CASES {
        let path = dir.join("append");
        contest.enter(case.name, move || {
            let cost = case.append(&path, count);
            std::fs::remove_file(&path)?;
            Ok(vec![cost?])
        });
    }
    contest.run(rounds)
}

struct Case {
    name: &'static str,
    state: State,
    face: Face,
    sync_beside: bool,
}

#[derive(Clone, Copy)]
enum Face {
    Map(Touch),
    Pwrite,
    Buffer,
}

#[derive(Clone, Copy)]
enum Touch {
    /// No page has been mapped.
    None,
    /// Every page is mapped and writable: the copy meets no fault.
    Write,
    /// Touched, then written back: each page faults once more to become writable.
    Clean,
}

impl Case {
    fn append(&self, path: &Path, count: usize) -> io::Result<f64> {
        let len = count * RECORD_LEN;
        let file = self.state.create(path, len)?;
        let mut source = vec![0; SOURCE_LEN];
        Random::new(1).fill(&mut source);
        let mapping = match self.face {
            Face::Map(touch) => Some(mapped(&file, len, touch)?),
            Face::Pwrite | Face::Buffer => None,
        };
        let append = || match (self.face, mapping) {
            (Face::Map(_), Some(mut mapping)) => {
                append_mapped(&mut mapping, &source);
                Ok(())
            }
            (Face::Buffer, _) => append_buffered(&file, count, &source),
            _ => append_written(&file, count, &source),
        };
        let nanos = if self.sync_beside {
            beside_sync(&file, append)?
        } else {
            timed(append)?
        };
        Ok(nanos / count as f64)
    }
}

pub fn timed(work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_nanos() as f64)
}

/// Times `work` while another thread syncs the same file without a pause.
fn beside_sync(file: &File, work: impl FnOnce() -> io::Result<()>) -> io::Result<f64> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let syncer = scope.spawn(|| -> io::Result<()> {
            while !done.load(Ordering::Relaxed) {
                file.sync_data()?;
            }
            Ok(())
        });
        let nanos = timed(work);
        done.store(true, Ordering::Relaxed);
        syncer.join().expect("the syncer does not panic")?;
        nanos
    })
}

fn mapped(file: &File, len: usize, touch: Touch) -> io::Result<MmapMut> {
    let mapping = map::shared(file, len)?;
    match touch {
        Touch::None => {}
        Touch::Write => mapping.advise(Advice::PopulateWrite)?,
        Touch::Clean => {
            mapping.advise(Advice::PopulateWrite)?;
            file.sync_data()?;
        }
    }
    Ok(mapping)
}

fn append_mapped(mapping: &mut MmapMut, source: &[u8]) {
    for (at, slot) in mapping.chunks_exact_mut(RECORD_LEN).enumerate() {
        slot.copy_from_slice(record(source, at));
    }
}

fn append_written(file: &File, count: usize, source: &[u8]) -> io::Result<()> {
    for at in 0..count {
        file.write_all_at(record(source, at), (at * RECORD_LEN) as u64)?;
    }
    Ok(())
}

fn append_buffered(file: &File, count: usize, source: &[u8]) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(BUFFER_LEN);
    let mut written = 0;
    for at in 0..count {
        if buffer.len() + RECORD_LEN > BUFFER_LEN {
            file.write_all_at(&buffer, written)?;
            written += buffer.len() as u64;
            buffer.clear();
        }
        buffer.extend_from_slice(record(source, at));
    }
    file.write_all_at(&buffer, written)
}

fn record(source: &[u8], at: usize) -> &[u8] {
    let start = at * 64 % (SOURCE_LEN - RECORD_LEN);
    &source[start..start + RECORD_LEN]
}

const SOURCE_LEN: usize = 4096;

const fn case(name: &'static str, state: State, face: Face, sync_beside: bool) -> Case {
    Case {
        name,
        state,
        face,
        sync_beside,
    }
}

#[rustfmt::skip]
const CASES: [Case; 16] = [
    case("64 KiB buffer + pwrite, zeroed (weaker promise)", State::Zeroed, Face::Buffer, false),
    case("64 KiB buffer + pwrite, growing (weaker promise)", State::Growing, Face::Buffer, false),
    case("pwrite each, zeroed", State::Zeroed, Face::Pwrite, false),
    case("pwrite each, growing", State::Growing, Face::Pwrite, false),
    case("map, zeroed, touched", State::Zeroed, Face::Map(Touch::Write), false),
    case("map, zeroed, touched, written back since", State::Zeroed, Face::Map(Touch::Clean), false),
    case("map, zeroed, not touched", State::Zeroed, Face::Map(Touch::None), false),
    case("map, fallocated, not touched", State::Fallocated, Face::Map(Touch::None), false),
    case("map, sparse, not touched", State::Sparse, Face::Map(Touch::None), false),
    case("pwrite each, zeroed by page", State::ZeroedByPage, Face::Pwrite, false),
    case("map, zeroed by page, touched", State::ZeroedByPage, Face::Map(Touch::Write), false),
    case("map, zeroed by page, touched, written back since", State::ZeroedByPage, Face::Map(Touch::Clean), false),
    case("map, zeroed by page, not touched", State::ZeroedByPage, Face::Map(Touch::None), false),
    case("64 KiB buffer + pwrite, zeroed, beside fdatasync", State::Zeroed, Face::Buffer, true),
    case("pwrite each, zeroed, beside fdatasync", State::Zeroed, Face::Pwrite, true),
    case("map, zeroed, touched, beside fdatasync", State::Zeroed, Face::Map(Touch::Write), true),
];
