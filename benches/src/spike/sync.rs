//! Contest 2: how a group of records reaches stable storage.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use crate::contest::Contest;
use crate::random::Random;
use crate::segment::State;

pub fn measure(dir: &Path, count: usize, rounds: usize) -> io::Result<()> {
    for len in [512, 4096, 65536] {
        let title = format!("synced append of {len} B, {count} in a row, 1 thread");
        let mut contest = Contest::new(title, &["µs mean", "µs p50", "µs p99"]);
        for state in [State::Growing, State::Fallocated, State::Zeroed] {
            for method in [Method::Fdatasync, Method::Direct, Method::DirectFull] {
                // A file that direct writes recycle was never in the page cache.
                let cold = method != Method::Fdatasync && state == State::Zeroed;
                let state = if cold { State::ZeroedCold } else { state };
                let path = dir.join("sync");
                contest.enter(format!("{}, {state:?}", method.name()), move || {
                    let costs = method.append(state, &path, count, len);
                    std::fs::remove_file(&path)?;
                    costs
                });
            }
        }
        contest.run(rounds)?;
    }
    measure_beside_writer(dir, count, rounds)
}

/// The same file states while another thread writes an unrelated file, as a compaction does.
fn measure_beside_writer(dir: &Path, count: usize, rounds: usize) -> io::Result<()> {
    let len = 4096;
    let title = format!("synced append of {len} B beside a buffered writer of another file");
    let mut contest = Contest::new(title, &["µs mean", "µs p50", "µs p99"]);
    let growing = (Method::Fdatasync, State::Growing);
    let zeroed = [
        (Method::Fdatasync, State::Zeroed),
        (Method::Direct, State::ZeroedCold),
    ];
    for (method, state) in std::iter::once(growing).chain(zeroed) {
        let (path, other) = (dir.join("sync"), dir.join("other"));
        contest.enter(format!("{}, {state:?}", method.name()), move || {
            let costs = beside_writer(&other, || method.append(state, &path, count, len));
            std::fs::remove_file(&path)?;
            costs
        });
    }
    contest.run(rounds)
}

fn beside_writer<T>(path: &Path, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let other = State::Growing.create(path, 0)?;
    let done = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> io::Result<()> {
            let slice = vec![0x5a; 64 << 10];
            let mut at = 0;
            while !done.load(Ordering::Relaxed) {
                other.write_all_at(&slice, at)?;
                at += slice.len() as u64;
                // 64 KiB each 500 µs: about 125 MB/s.
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok(())
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        writer.join().expect("the writer does not panic")?;
        result
    });
    std::fs::remove_file(path)?;
    result
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Method {
    Fdatasync,
    Direct,
    /// As [`Method::Direct`] with the flag that `rustix::fs::OFlags::DSYNC` stands for.
    DirectFull,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Fdatasync => "pwrite + fdatasync",
            Method::Direct => "O_DIRECT|O_DSYNC",
            Method::DirectFull => "O_DIRECT|O_SYNC",
        }
    }

    fn append(self, state: State, path: &Path, count: usize, len: usize) -> io::Result<Vec<f64>> {
        let prepared = state.create(path, count * len)?;
        let file = match self {
            Method::Fdatasync => prepared,
            Method::Direct => open_direct(path, O_DSYNC)?,
            Method::DirectFull => open_direct(path, O_SYNC)?,
        };
        // Page-aligned, as direct writes demand.
        let mut block = MmapMut::map_anon(len)?;
        Random::new(2).fill(&mut block);
        let mut micros = Vec::with_capacity(count);
        for at in 0..count {
            let start = Instant::now();
            file.write_all_at(&block, (at * len) as u64)?;
            if self == Method::Fdatasync {
                file.sync_data()?;
            }
            micros.push(start.elapsed().as_nanos() as f64 / 1e3);
        }
        micros.sort_by(f64::total_cmp);
        let mean = micros.iter().sum::<f64>() / count as f64;
        Ok(vec![mean, micros[count / 2], micros[count * 99 / 100]])
    }
}

fn open_direct(path: &Path, flag: i32) -> io::Result<File> {
    let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
    File::options()
        .write(true)
        .custom_flags(direct | flag)
        .open(path)
}

// Linux values on x86-64, AArch64, and RISC-V. On Linux `rustix::fs::OFlags::DSYNC` is `O_SYNC`,
// which waits for timestamps as well.
const O_DSYNC: i32 = 0x1000;
const O_SYNC: i32 = 0x10_1000;
