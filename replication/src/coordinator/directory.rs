//! Records in a directory that all nodes see: one machine's, or one of a shared file system with atomic
//! links (NFS from version 3 on). The same objects as in an object store, as files.
//!
//! An object is created by a link to a finished file: it is there whole, or not, and of two links of one
//! name one wins. What is not understood about the file system shows in the probe at open.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use strandline_wal::io::{Env, read_file, write_all_at};
use strandline_wal::unless;

use super::attempt::{Failure, Nonces};
use super::object_store::{Created, Objects, RACER_LEN, StateObjects};
use super::{Coordinator, Record, Replaced, Version};
use crate::error::Result;

#[cfg(test)]
mod tests;

/// The directory that all objects lie in.
pub const PREFIX: &str = "strandline";
/// Longest object that is read.
const OBJECT_LEN_MAX: u64 = RACER_LEN as u64;

/// A coordinator in a directory.
pub struct DirectoryCoordinator {
    states: StateObjects<Files>,
}

struct Files {
    env: Env,
    dir: PathBuf,
}

impl DirectoryCoordinator {
    /// Opens a directory that has one named `strandline`, which is made by hand, once: an empty mount point
    /// has none, and is not taken for a coordinator without records. Tries whether it does what is needed.
    ///
    /// # Errors
    /// [`crate::Error::CoordinatorUnsafe`] with what it did, [`crate::Error::Coordinator`] with the disk's.
    pub fn open(env: &Env, dir: &Path) -> Result<DirectoryCoordinator> {
        let name = dir.display().to_string();
        if let Err(error) = env.disk.list(&dir.join(PREFIX)) {
            let what = format!(
                "its directory {PREFIX} cannot be read ({error}): mount it, or make that directory \
                 where the coordinator is new"
            );
            return Err(Failure::new(what).error(&name));
        }
        let random = Arc::clone(&env.random);
        let nonces: Nonces = Box::new(move || random.next_id());
        let files = Files {
            env: env.clone(),
            dir: dir.to_owned(),
        };
        let mut states = StateObjects::new(files, &name, PREFIX, nonces);
        ready(states.probe())?;
        Ok(DirectoryCoordinator { states })
    }
}

impl Coordinator for DirectoryCoordinator {
    fn read(&mut self, dataset: &str) -> Result<Option<(Version, Record)>> {
        ready(self.states.read(dataset))
    }

    fn replace(&mut self, dataset: &str, expected: Version, record: &Record) -> Result<Replaced> {
        let replaced = ready(self.states.replace(dataset, expected, record))?;
        if let Replaced::Done(_) = replaced {
            ready(self.states.prune(dataset));
        }
        Ok(replaced)
    }

    fn watch(&mut self, dataset: &str, seen: Version, wait_ms: u64) -> Result<()> {
        ready(self.states.watch(dataset, seen, wait_ms))
    }
}

/// Files keep nobody waiting.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(done) = future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            return done;
        }
    }
}

fn failed(error: &io::Error) -> Failure {
    Failure::new(error.to_string())
}

impl Files {
    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key)
    }

    fn parent(&self, key: &str) -> PathBuf {
        self.path(key).parent().unwrap_or(&self.dir).to_owned()
    }

    fn link(&self, key: &str, bytes: &[u8]) -> io::Result<Created> {
        let (disk, path, dir) = (&self.env.disk, self.path(key), &self.parent(key));
        disk.create_dir_all(dir)?;
        let id = self.env.random.next_id();
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let temp = dir.join(format!("{id}.tmp"));
        let file = disk.create(&temp)?;
        let written = write_all_at(file.as_ref(), bytes, 0)
            .and_then(|()| unless!("directory.sync", file.sync()))
            .and_then(|()| disk.link(&temp, &path));
        // What cannot be removed is left, and nobody looks at it.
        let _ = disk.remove(&temp);
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Ok(Created::Exists);
            }
            Err(error) => return Err(error),
        }
        self.keep(dir)?;
        Ok(Created::Yes)
    }

    /// Makes the names in a directory durable, and the names of that and of all above it.
    fn keep(&self, dir: &Path) -> io::Result<()> {
        let is_ours = |at: &&Path| at.starts_with(&self.dir);
        for at in dir.ancestors().take_while(is_ours) {
            unless!("directory.name", self.env.disk.sync_dir(at))?;
        }
        Ok(())
    }
}

impl Objects for Files {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        let disk = self.env.disk.as_ref();
        match read_file(disk, &self.path(key), OBJECT_LEN_MAX) {
            // Its maker may have died before it was durable, and what is told of it must stay.
            Ok(bytes) => match unless!("directory.seen", self.keep(&self.parent(key))) {
                Ok(()) => Ok(Some(bytes)),
                Err(error) => Err(failed(&error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }

    async fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, Failure> {
        self.link(key, bytes).map_err(|error| failed(&error))
    }

    async fn delete(&self, key: &str) -> Result<(), Failure> {
        match self.env.disk.remove(&self.path(key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&error)),
            _ => Ok(()),
        }
    }

    /// A disk that failed is not asked again at once: its caller waits.
    async fn pause(&self, _: u64) {}
}
