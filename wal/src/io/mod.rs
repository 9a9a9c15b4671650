//! The disk, the clock and the randomness as traits, and the crash model they obey.
//!
//! # The crash model
//!
//! Everything above this module relies on these promises and on no others; the simulated disk
//! (`sim`) produces every image that they allow.
//!
//! 1. *Sectors.* A 512-byte sector is written whole or not at all. A write into a sector never
//!    harms bytes of it that stay the same.
//! 2. *Unsynced writes* may be lost, torn at sector boundaries, and reordered, each sector on its
//!    own, across files and within one. A length change is a write like any other: after a crash
//!    the file has its last synced length or any length it had since; where the length survived and
//!    the bytes did not, the bytes read as zeros.
//! 3. *Synced data* ([`File::sync`] returned `Ok`) survives: contents and length.
//! 4. *A failed sync* loses any of the unsynced writes and says nothing of which. A second sync
//!    that succeeds proves nothing: the file must be reopened and read again before it is trusted.
//! 5. *Names.* Creating, renaming, linking and removing need [`Disk::sync_dir`] of the directory to
//!    survive. Until then each may or may not have happened; a rename is atomic: the old name or the
//!    new one, and where the target existed, its old or its new content, never neither.
//! 6. *A media error under a mapping* kills the process, which is a crash.
//! 7. *Locks* die with the process.

pub mod fault;
pub mod map;
mod real;
pub mod sim;
#[cfg(test)]
mod tests;
pub mod words;

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bug::planted;
use crate::unless;

pub use map::{Image, Map};

/// The atomic unit of the crash model, in bytes.
pub const SECTOR_LEN: usize = 512;

/// What a directory entry is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileKind {
    /// An ordinary file.
    File,
    /// A directory.
    Dir,
    /// A symlink, device, socket or pipe: never opened, never followed.
    Other,
}

/// What [`Disk::stat`] tells of a path, without following a symlink.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stat {
    /// What it is.
    pub kind: FileKind,
    /// Its length in bytes.
    pub len: u64,
    /// How many names the file has. More than one means a checkpoint or a copy holds it.
    pub link_count: u64,
}

/// One name in a directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DirEntry {
    /// The name, without the directory. Names that are not UTF-8 are given lossily.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
    /// Its length in bytes.
    pub len: u64,
}

/// How [`Disk::lock`] holds a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LockMode {
    /// Alone.
    Exclusive,
    /// Beside other shared holders.
    Shared,
}

/// A held lock; dropped, it is released.
pub trait Lock: Send + Sync {}

/// A file system. Errors are the plain `io::Error`; the caller adds path and operation.
///
/// `Any`, so that a decorator can tell a simulated disk below it that a sync failed.
pub trait Disk: Any + Send + Sync {
    /// Creates a file that must not exist, for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens an existing ordinary file. Symlinks and special files are refused with
    /// `InvalidInput`; an absent file is `NotFound`.
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>>;

    /// Renames, replacing the target if it exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes a second name for a file. The target must not exist.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and all below it; an absent one is `Ok`.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory and its missing parents; an existing one is `Ok`.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// The entries of a directory, sorted by name.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;

    /// What is at a path; `NotFound` where nothing is. Does not follow a symlink.
    fn stat(&self, path: &Path) -> io::Result<Stat>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes a lock on a file, created if absent, without waiting; `WouldBlock` where another
    /// holder (in this process or another) stands against it.
    fn lock(&self, path: &Path, mode: LockMode) -> io::Result<Box<dyn Lock>>;

    /// Bytes that can still be written below a directory, where that is known.
    fn free_len(&self, dir: &Path) -> io::Result<Option<u64>>;
}

/// Whether an opened file may be written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// Reading only.
    Read,
    /// Reading and writing.
    Write,
}

/// An open file. All calls take offsets; there is no cursor. Calls may come from any thread.
pub trait File: Any + Send + Sync {
    /// Reads into `buf` at `at`; returns how many bytes came, 0 only at the end of the file.
    /// Use [`read_exact_at`] unless a short read has a meaning.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes from `buf` at `at`, growing the file where needed; returns how many bytes went.
    /// Use [`write_all_at`] unless a short write has a meaning.
    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize>;

    /// Makes contents and length durable (fdatasync). Never call it again on a file after an error.
    fn sync(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Cuts or extends with zeros.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Takes the disk space from `at` to `end`, which become zeros where the file ended before. What
    /// space it takes is all that counts.
    fn allocate(&self, at: u64, end: u64) -> io::Result<()> {
        fill_zeros(self, at, end)
    }

    /// Asks that an empty file is overwritten where it lies, so that overwriting takes no space. A file
    /// system that cannot, or always does, is as good.
    fn keep_in_place(&self) {}

    /// Whether there is nothing in it.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// A read-only map of the first `len` bytes of a file that no longer changes; `None` where
    /// this disk has no maps or `len` is 0.
    fn map(&self, len: usize) -> io::Result<Option<Map>>;

    /// The first `len` bytes as a writable image shared with the page cache; `None` where this
    /// disk has none. What is written to it counts as written to the file at once. The file must
    /// be at least `len` long and its blocks allocated.
    fn image(&self, len: usize) -> io::Result<Option<Image>>;

    /// As [`File::image`] for a file that is written by [`File::write_at`] alone: the image only shows
    /// what was written. Nothing of the file is touched, so its blocks need not be written yet.
    fn view(&self, len: usize) -> io::Result<Option<Image>>;
}

/// Reads exactly `buf.len()` bytes; `UnexpectedEof` where the file ends before.
pub fn read_exact_at(file: &dyn File, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes zeros over a file from `at` to `end`, so that later writes allocate nothing.
pub(crate) fn fill_zeros<F: File + ?Sized>(file: &F, mut at: u64, end: u64) -> io::Result<()> {
    const STEP: usize = 256 << 10;
    let step_len = |at: u64| usize::try_from(end.saturating_sub(at)).map_or(STEP, |n| n.min(STEP));
    let zeros = vec![0; step_len(at)];
    while at < end {
        let step = &zeros[..step_len(at)];
        write_all_at(file, step, at)?;
        at += step.len() as u64;
    }
    Ok(())
}

/// Writes all of `buf`; `WriteZero` where the disk takes no more.
pub fn write_all_at<F: File + ?Sized>(file: &F, mut buf: &[u8], mut at: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match file.write_at(buf, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                buf = &buf[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The whole of a file, at most `len_max` bytes; `InvalidData` where it is longer.
pub fn read_file(disk: &dyn Disk, path: &Path, len_max: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path, Access::Read)?;
    let len = file.len()?;
    if len > len_max {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("file is {len} bytes, at most {len_max} expected"),
        ));
    }
    let mut bytes = vec![0; len as usize];
    read_exact_at(file.as_ref(), &mut bytes, 0)?;
    Ok(bytes)
}

/// Writes a file so that a crash leaves the old content or the new: temporary file, sync, rename,
/// directory sync.
pub fn replace_file(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let temp = write_beside(disk, path, bytes)?;
    disk.rename(&temp, path)?;
    unless!("replace_file.name", disk.sync_dir(dir))
}

/// Writes and syncs what is to become a file under its temporary name, which is returned.
///
/// # Errors
/// The disk's; the file itself is as it was.
pub fn write_beside(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let mut temp = path.as_os_str().to_owned();
    temp.push(".tmp");
    let temp = match planted("replace_file.in_place") {
        true => path.to_owned(),
        false => PathBuf::from(temp),
    };
    match disk.remove(&temp) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = disk.create(&temp)?;
    write_all_at(file.as_ref(), bytes, 0)?;
    unless!("replace_file.sync", file.sync())?;
    Ok(temp)
}

/// Time. Order and durability never depend on it.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970. May jump.
    fn wall_ms(&self) -> u64;

    /// Nanoseconds since some start. Never goes back.
    fn mono_ns(&self) -> u64;

    /// As [`Clock::mono_ns`], a few milliseconds late where that is cheaper.
    fn coarse_ns(&self) -> u64 {
        self.mono_ns()
    }
}

/// Random numbers, for identities and nonces.
pub trait Random: Send + Sync + 'static {
    /// The next number.
    fn next_u64(&self) -> u64;

    /// 16 random bytes: a lineage, a leader id, an incarnation.
    fn next_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next_u64().to_le_bytes());
        id[8..].copy_from_slice(&self.next_u64().to_le_bytes());
        id
    }
}

/// Everything of the outside world that the log and the engine touch.
#[derive(Clone)]
pub struct Env {
    /// Files.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub random: Arc<dyn Random>,
}

impl Env {
    /// The machine: real files, real time, the operating system's randomness.
    pub fn real() -> Env {
        Env {
            disk: Arc::new(real::RealDisk::mapped()),
            clock: Arc::new(real::RealClock::start()),
            random: Arc::new(real::RealRandom),
        }
    }

    /// The machine without maps and images: a media error is an error of one call and not the end
    /// of the process (`io = pread`).
    pub fn real_pread() -> Env {
        Env {
            disk: Arc::new(real::RealDisk::pread()),
            ..Env::real()
        }
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Env")
    }
}
