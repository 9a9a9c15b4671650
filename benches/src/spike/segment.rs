//! Segment files in the states a log can find them in.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags};

/// What happened to a segment file before the first append.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Empty: each append extends the file.
    Growing,
    /// Full length, but one hole.
    Sparse,
    /// Full length, blocks reserved, extents unwritten.
    Fallocated,
    /// Full length, zeros written and synced; in the page cache.
    Zeroed,
    /// As [`State::Zeroed`], but written 4 KiB at a time: the page cache then holds single pages
    /// and not large folios.
    ZeroedByPage,
    /// As [`State::Zeroed`], but out of the page cache, as direct writes leave a file.
    ZeroedCold,
}

impl State {
    /// Creates the file at `path`, which must be new, and brings it into this state.
    pub fn create(self, path: &Path, len: usize) -> io::Result<File> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        match self {
            State::Growing => {}
            State::Sparse => file.set_len(len as u64)?,
            State::Fallocated => {
                rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, len as u64)?;
            }
            State::Zeroed | State::ZeroedCold => write_zeros(&file, len, 1 << 20)?,
            State::ZeroedByPage => write_zeros(&file, len, 4096)?,
        }
        file.sync_all()?;
        if self == State::ZeroedCold {
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        Ok(file)
    }
}

fn write_zeros(file: &File, len: usize, step: usize) -> io::Result<()> {
    let zeros = vec![0; step];
    let mut at = 0;
    while at < len {
        let count = zeros.len().min(len - at);
        file.write_all_at(&zeros[..count], at as u64)?;
        at += count;
    }
    Ok(())
}
