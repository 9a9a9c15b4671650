//! The simulated disk as the traits see it: every method is one call of the machine.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use super::SimDisk;
use super::file::Watch;
use super::state::{Node, NodeId};
use crate::io::map::HeapMemory;
use crate::io::{Access, DirEntry, Disk, File, FileKind, Image, Lock, LockMode, Map, Stat};

impl SimDisk {
    fn handle(&self, node: NodeId, access: Access) -> Arc<dyn File> {
        Arc::new(SimFile {
            disk: self.clone(),
            node,
            access,
        })
    }
}

impl Disk for SimDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.call()?;
        let node = state.create(path)?;
        state.open(node);
        drop(state);
        Ok(self.handle(node, Access::Write))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>> {
        let mut state = self.call()?;
        let node = state.resolve_file(path)?;
        state.open(node);
        drop(state);
        Ok(self.handle(node, access))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?.link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call()?.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.call()?.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.call()?.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let mut state = self.call()?;
        let dir = state.resolve(dir)?;
        let names = state.dir(dir)?.current.clone();
        state.unstick(dir);
        let entry = |(name, node): (std::ffi::OsString, NodeId)| DirEntry {
            name: name.to_string_lossy().into_owned(),
            kind: kind_of(state.node(node)),
            len: len_of(state.node(node)),
        };
        Ok(names.into_iter().map(entry).collect())
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let state = self.call()?;
        let node = state.node(state.resolve(path)?);
        let link_count = match node {
            Node::File(file) => file.link_count,
            _ => 1,
        };
        Ok(Stat {
            kind: kind_of(node),
            len: len_of(node),
            link_count,
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        let dir = state.resolve(dir)?;
        state.dir(dir)?;
        state.sync_dir(dir);
        Ok(())
    }

    fn lock(&self, path: &Path, mode: LockMode) -> io::Result<Box<dyn Lock>> {
        let mut state = self.call()?;
        let node = match state.resolve_file(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => state.create(path)?,
            node => node?,
        };
        state.lock(node, mode)?;
        drop(state);
        Ok(Box::new(SimLock {
            disk: self.clone(),
            node,
            mode,
        }))
    }

    fn free_len(&self, dir: &Path) -> io::Result<Option<u64>> {
        let state = self.call()?;
        state.dir(state.resolve(dir)?)?;
        Ok(state.capacity_len.map(|_| state.free_len()))
    }
}

fn kind_of(node: &Node) -> FileKind {
    match node {
        Node::File(_) => FileKind::File,
        Node::Dir(_) => FileKind::Dir,
        Node::Other => FileKind::Other,
    }
}

fn len_of(node: &Node) -> u64 {
    match node {
        // An image never changes the length, so there is nothing to take up first.
        Node::File(file) => file.current().len(),
        _ => 0,
    }
}

struct SimLock {
    disk: SimDisk,
    node: NodeId,
    mode: LockMode,
}

impl Lock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.0.lock().unlock(self.node, self.mode);
    }
}

/// An open file of a [`SimDisk`].
pub struct SimFile {
    disk: SimDisk,
    node: NodeId,
    access: Access,
}

impl SimFile {
    /// Lets a sync of this file fail, as [`crate::io::fault::FaultDisk`] does. What was unsynced is
    /// shown to readers and counts as clean: no later sync makes it durable, unless its sector is
    /// written again. Opening the file again settles what of it is on the disk and shows that.
    pub fn fail_sync(&self) {
        self.disk.0.lock().file_mut(self.node).fail_sync();
    }

    fn need_write(&self) -> io::Result<()> {
        match self.access {
            Access::Write => Ok(()),
            Access::Read => Err(ErrorKind::PermissionDenied.into()),
        }
    }
}

impl File for SimFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        Ok(self.disk.call()?.file(self.node).current().read(buf, at))
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        let mut state = self.disk.call()?;
        self.need_write()?;
        state.write(self.node, buf, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.call()?.file_mut(self.node).sync();
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.call()?.file(self.node).current().len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.call()?;
        self.need_write()?;
        state.set_len(self.node, len)
    }

    fn map(&self, len: usize) -> io::Result<Option<Map>> {
        let mut state = self.disk.call()?;
        if !state.maps || len == 0 {
            return Ok(None);
        }
        let content = state.file(self.node).current();
        check_len(len, content.len())?;
        Ok(Some(Map::owned(content.to_vec(len))))
    }

    fn image(&self, len: usize) -> io::Result<Option<Image>> {
        let mut state = self.disk.call()?;
        if !state.maps || len == 0 {
            return Ok(None);
        }
        self.need_write()?;
        let content = state.file(self.node).current();
        check_len(len, content.len())?;
        let memory = Arc::new(HeapMemory::of(content.to_vec(len)));
        state.watch(self.node, Watch::new(Arc::clone(&memory)));
        Ok(Some(Image::heap(memory)))
    }

    /// An image like any other: `Image::take_up` gives its memory what the file was written, as the
    /// page cache does, and the disk finds nothing new in it.
    fn view(&self, len: usize) -> io::Result<Option<Image>> {
        self.image(len)
    }
}

fn check_len(len: usize, file_len: u64) -> io::Result<()> {
    if file_len < len as u64 {
        let message = format!("cannot map {len} bytes of a file of {file_len}");
        return Err(io::Error::new(ErrorKind::InvalidInput, message));
    }
    Ok(())
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.0.lock().close(self.node);
    }
}
