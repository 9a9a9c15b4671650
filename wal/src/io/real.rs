//! The machine: files of the operating system, its clocks and its randomness.
//!
//! Besides `map.rs`, which holds the mappings, this is the only file that touches `std::fs`, a clock
//! or the system's randomness. Unix only; what Linux alone offers has a plain substitute beside it.
#![allow(unsafe_code)]

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{
    Access, Clock, DirEntry, Disk, File, FileKind, Image, Lock, LockMode, Map, Random, Stat,
};
use crate::bug::planted;
use crate::unless;

/// The file systems of this machine.
pub(super) struct RealDisk {
    maps: bool,
}

impl RealDisk {
    /// Files offer maps and images.
    pub(super) fn mapped() -> RealDisk {
        RealDisk { maps: true }
    }

    /// Files are only read and written by calls: a media error is an error, never a signal.
    pub(super) fn pread() -> RealDisk {
        RealDisk { maps: false }
    }

    fn file(&self, file: fs::File) -> Arc<dyn File> {
        Arc::new(RealFile {
            file,
            maps: self.maps,
            failed_sync: Mutex::new(None),
        })
    }
}

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        // `create_new` is O_EXCL, which does not follow a symlink that stands at the path.
        let file = options.read(true).write(true).create_new(true).open(path)?;
        Ok(self.file(file))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>> {
        let mut options = fs::OpenOptions::new();
        options.read(true).write(access == Access::Write);
        Ok(self.file(open_ordinary(path, &mut options)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        match fs::remove_dir_all(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed since the directory was read: it is no longer an entry.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            entries.push(DirEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                kind: kind_of(metadata.file_type()),
                len: metadata.len(),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Stat {
            kind: kind_of(metadata.file_type()),
            len: metadata.len(),
            link_count: metadata.nlink(),
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits();
        let dir = fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags.cast_signed())
            .open(dir)?;
        Ok(unless!("real.sync_dir", rustix::fs::fsync(dir))?)
    }

    fn lock(&self, path: &Path, mode: LockMode) -> io::Result<Box<dyn Lock>> {
        let file = open_lock(path, mode)?;
        // Each call opens the file anew, so that the lock belongs to this open file description and
        // a second holder in this process is refused like one in another.
        let taken = match mode {
            LockMode::Exclusive => file.try_lock(),
            LockMode::Shared => file.try_lock_shared(),
        };
        match taken {
            Ok(()) => Ok(Box::new(RealLock {
                file,
                process: std::process::id(),
            })),
            Err(fs::TryLockError::WouldBlock) => Err(ErrorKind::WouldBlock.into()),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }

    fn free_len(&self, dir: &Path) -> io::Result<Option<u64>> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(Some(stat.f_bavail.saturating_mul(stat.f_frsize)))
    }
}

/// Opens what must be an ordinary file, following no symlink and waiting for no pipe.
fn open_ordinary(path: &Path, options: &mut fs::OpenOptions) -> io::Result<fs::File> {
    // Asked before the open, because opening a device can already do something to it. Asked again
    // after, because the name may have changed hands in between.
    match fs::symlink_metadata(path) {
        Ok(metadata) => refuse_other(metadata.file_type())?,
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    // The standard library adds O_CLOEXEC to every open.
    let file = options.custom_flags(flags.cast_signed()).open(path)?;
    refuse_other(file.metadata()?.file_type())?;
    Ok(file)
}

fn refuse_other(kind: fs::FileType) -> io::Result<()> {
    let what = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_dir() => "a directory",
        _ if kind.is_symlink() => "a symlink",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ if kind.is_block_device() => "a block device",
        _ if kind.is_char_device() => "a character device",
        _ => "a special file",
    };
    Err(io::Error::new(
        ErrorKind::InvalidInput,
        format!("not an ordinary file but {what}"),
    ))
}

fn open_lock(path: &Path, mode: LockMode) -> io::Result<fs::File> {
    let opened = open_ordinary(
        path,
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false),
    );
    match opened {
        // A reader of files that it may not write, such as a mounted backup, can still share.
        Err(e)
            if mode == LockMode::Shared
                && matches!(
                    e.kind(),
                    ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                ) =>
        {
            open_ordinary(path, fs::OpenOptions::new().read(true))
        }
        opened => opened,
    }
}

fn kind_of(kind: fs::FileType) -> FileKind {
    match kind {
        _ if kind.is_file() => FileKind::File,
        _ if kind.is_dir() => FileKind::Dir,
        _ => FileKind::Other,
    }
}

/// An flock. It is released by the process that took it and by no other: a forked child that ran its
/// destructors would take the lock from its parent. Closing the file would not do, because a child that is
/// on its way to another program holds the file open for a moment.
struct RealLock {
    file: fs::File,
    process: u32,
}

impl Lock for RealLock {}

impl Drop for RealLock {
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // Where that fails, closing the file releases it.
            let _ = self.file.unlock();
        }
    }
}

struct RealFile {
    file: fs::File,
    maps: bool,
    /// The error of the first failed sync. After one, Linux forgets which pages failed and a second
    /// sync would report success over lost data, so this handle never asks again. Held during a
    /// sync: of two at once the kernel tells the error to one and success to the other.
    failed_sync: Mutex<Option<Errno>>,
}

impl RealFile {
    /// The checks that map and image share; `false` where there is nothing to map.
    fn can_map(&self, len: usize) -> io::Result<bool> {
        if !self.maps || len == 0 {
            return Ok(false);
        }
        let file_len = self.file.metadata()?.len();
        if file_len < len as u64 {
            // A touch behind the end would be a SIGBUS.
            let message = format!("cannot map {len} bytes of a file of {file_len}");
            return Err(io::Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(true)
    }

    /// Asks the kernel to forget cached pages that never reached the disk, so that whoever reopens
    /// the file reads what is really there. Only advice: recovery trusts checksums, not this.
    fn drop_cache(&self) {
        #[cfg(target_os = "linux")]
        let _ = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

impl File for RealFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        uninterrupted(|| self.file.read_at(buf, at))
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        uninterrupted(|| self.file.write_at(buf, at))
    }

    fn sync(&self) -> io::Result<()> {
        let mut failed = self.failed_sync.lock();
        if let Some(e) = *failed {
            return Err(e.into());
        }
        // Not repeated when interrupted: an interrupted sync may have taken the write error of a
        // page with it, and the repetition would not see it any more.
        let Err(e) = unless!("real.sync", sync_data(&self.file)) else {
            return Ok(());
        };
        if !planted("real.retry") {
            *failed = Some(e);
        }
        self.drop_cache();
        Err(e.into())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    #[cfg(target_os = "linux")]
    fn allocate(&self, at: u64, end: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        use rustix::io::Errno;
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), at, end - at) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => super::fill_zeros(self, at, end),
            Err(e) => Err(e.into()),
        }
    }

    #[cfg(target_os = "linux")]
    fn keep_in_place(&self) {
        use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
        // Btrfs writes elsewhere unless it is told; it checks no sums of such files, we do.
        let flags = ioctl_getflags(&self.file);
        let _ = flags.and_then(|flags| ioctl_setflags(&self.file, flags | IFlags::NOCOW));
    }

    fn map(&self, len: usize) -> io::Result<Option<Map>> {
        if !self.can_map(len)? {
            return Ok(None);
        }
        // SAFETY: the caller promises (`File::map`) that the file no longer changes, and the first
        // `len` bytes exist. Another process that cuts the file raises SIGBUS, which the crash model
        // counts as a crash; it is never read as wrong memory.
        let map = unsafe { memmap2::MmapOptions::new().len(len).map(&self.file)? };
        Ok(Some(Map::mapped(map)))
    }

    fn image(&self, len: usize) -> io::Result<Option<Image>> {
        if !self.can_map(len)? {
            return Ok(None);
        }
        let raw = memmap2::MmapOptions::new().len(len).map_raw(&self.file)?;
        populate(&raw)?;
        Ok(Some(Image::shared(raw)))
    }

    fn view(&self, len: usize) -> io::Result<Option<Image>> {
        if !self.can_map(len)? {
            return Ok(None);
        }
        let raw = memmap2::MmapOptions::new()
            .len(len)
            .map_raw_read_only(&self.file)?;
        Ok(Some(Image::shared(raw)))
    }
}

impl Drop for RealFile {
    fn drop(&mut self) {
        // Again, because an image that was mapped when the sync failed kept its pages in the cache.
        if self.failed_sync.get_mut().is_some() {
            self.drop_cache();
        }
    }
}

/// Makes every page of a mapping present and writable, so that appends do not fault one by one.
#[cfg(target_os = "linux")]
fn populate(raw: &memmap2::MmapRaw) -> io::Result<()> {
    use rustix::mm::{Advice, madvise};
    // SAFETY: the range is the mapping itself, which nobody else knows yet; populating changes no
    // byte of it.
    let populated = unsafe {
        madvise(
            raw.as_mut_ptr().cast(),
            raw.len(),
            Advice::LinuxPopulateWrite,
        )
    };
    match populated {
        // What these say is that a later store would kill the process: no block, or a bad page.
        Err(e @ (Errno::FAULT | Errno::HWPOISON)) => Err(e.into()),
        // Anything else, such as a kernel before 5.14, costs only speed.
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
fn populate(_raw: &memmap2::MmapRaw) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
fn sync_data(file: impl AsFd) -> rustix::io::Result<()> {
    rustix::fs::fdatasync(file)
}

/// F_FULLFSYNC: elsewhere than on Linux a plain fsync may stop in the drive's cache.
#[cfg(target_vendor = "apple")]
fn sync_data(file: impl AsFd) -> rustix::io::Result<()> {
    rustix::fs::fcntl_fullfsync(file)
}

#[cfg(not(any(target_os = "linux", target_vendor = "apple")))]
fn sync_data(file: impl AsFd) -> rustix::io::Result<()> {
    rustix::fs::fsync(file)
}

fn uninterrupted(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// The clocks of the machine. Every write asks for both, so the ones that the kernel sets at each of its
/// ticks, a few milliseconds apart, are taken where there are such.
pub(super) struct RealClock {
    start: Instant,
    #[cfg(target_os = "linux")]
    start_ns: u64,
}

impl RealClock {
    pub(super) fn start() -> RealClock {
        RealClock {
            start: Instant::now(),
            #[cfg(target_os = "linux")]
            start_ns: ns_of(rustix::time::ClockId::Monotonic),
        }
    }
}

impl Clock for RealClock {
    #[cfg(target_os = "linux")]
    fn wall_ms(&self) -> u64 {
        ns_of(rustix::time::ClockId::RealtimeCoarse) / 1_000_000
    }

    #[cfg(not(target_os = "linux"))]
    fn wall_ms(&self) -> u64 {
        // A clock set before 1970 reads as 1970: time may jump, so this is one more jump.
        let since = std::time::SystemTime::now()
            .duration_since(std::time::SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn mono_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    #[cfg(target_os = "linux")]
    fn coarse_ns(&self) -> u64 {
        ns_of(rustix::time::ClockId::MonotonicCoarse).saturating_sub(self.start_ns)
    }
}

/// What a clock shows, in nanoseconds. One that is set before its beginning reads as that: time may jump, so
/// this is one more jump.
#[cfg(target_os = "linux")]
fn ns_of(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let secs = u64::try_from(time.tv_sec).unwrap_or_default();
    secs.saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec).unwrap_or_default())
}

/// The randomness of the operating system.
pub(super) struct RealRandom;

impl Random for RealRandom {
    fn next_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        fill_random(&mut bytes).expect("the operating system gives random bytes");
        u64::from_le_bytes(bytes)
    }
}

#[cfg(target_os = "linux")]
fn fill_random(bytes: &mut [u8; 8]) -> io::Result<()> {
    use rustix::rand::{GetRandomFlags, getrandom};
    // Up to 256 bytes come whole; only the wait for the first seed of a booting machine is interrupted.
    loop {
        match getrandom(&mut bytes[..], GetRandomFlags::empty()) {
            Ok(count) if count == bytes.len() => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn fill_random(bytes: &mut [u8; 8]) -> io::Result<()> {
    use std::io::Read;
    fs::File::open("/dev/urandom")?.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_sync_is_never_tried_again() {
        let (reader, _writer) = io::pipe().unwrap();
        let mut file = RealFile {
            file: fs::File::from(std::os::fd::OwnedFd::from(reader)),
            maps: false,
            failed_sync: Mutex::new(None),
        };
        let first = file.sync().unwrap_err();
        assert_eq!(
            first.raw_os_error(),
            Some(Errno::INVAL.raw_os_error()),
            "pipes do not sync"
        );
        // From here on a sync would succeed, as it does after the kernel has told of lost pages.
        file.file = tempfile::tempfile().unwrap();
        assert_eq!(
            file.sync().unwrap_err().raw_os_error(),
            first.raw_os_error()
        );
    }

    /// Directories of `/proc` do not sync, and say so to whoever asks.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_directory_that_cannot_be_synced_is_an_error() {
        let error = RealDisk::pread().sync_dir(Path::new("/proc")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    }

    #[test]
    fn an_interrupted_call_is_made_again() {
        let mut results = vec![
            Ok(7),
            Err(ErrorKind::Interrupted),
            Err(ErrorKind::Interrupted),
        ];
        let call = || results.pop().unwrap().map_err(io::Error::from);
        assert_eq!(uninterrupted(call).unwrap(), 7);
        assert!(results.is_empty());
    }

    /// A child that is on its way to another program holds every file of its parent for a moment.
    #[test]
    fn a_lock_that_is_released_is_free_though_its_file_is_still_open_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("LOCK");
        let file = open_lock(&path, LockMode::Exclusive).unwrap();
        file.try_lock().unwrap();
        let held_by_child = file.try_clone().unwrap();
        let of_parent = |process| RealLock {
            file: held_by_child.try_clone().unwrap(),
            process,
        };
        let second = || open_lock(&path, LockMode::Exclusive).unwrap().try_lock();
        // A child's destructors release nothing.
        drop(of_parent(std::process::id() + 1));
        assert!(matches!(second(), Err(fs::TryLockError::WouldBlock)));
        drop(of_parent(std::process::id()));
        second().unwrap();
    }
}
