//! Pre-zeroed files for segments to come, and what becomes of segments that nobody needs.
//!
//! Writing into blocks that a file already has is far cheaper to sync than growing it. A retired
//! segment's file is used again only when it is the log's alone: one name, no bytes of it held in this
//! process, no other process reading the database. Otherwise it is unlinked, and whoever holds it
//! keeps it as it was. Old batches in a reused file never parse: the nonce of the segment is another.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::bug::planted;
use crate::error::{IoContext, Result};
use crate::io::{Access, Env, File, fill_zeros};
use crate::log::Segment;
use crate::segment::{Footer, parse_file_name};
use crate::unless;

/// Spares kept for one database.
pub const SPARE_COUNT_MAX: usize = 2;

const PREFIX: &str = "spare-";
const SUFFIX: &str = ".seg";

/// Spare segment files of one database.
pub struct Pool {
    env: Env,
    spares: Mutex<Vec<Spare>>,
    /// Tells whether another process reads the database right now.
    has_readers: Box<dyn Fn() -> bool + Send + Sync>,
}

struct Spare {
    path: PathBuf,
    len: u64,
}

/// Bytes that a segment of such a capacity takes with its footer.
fn room(capacity: u64) -> u64 {
    capacity + Footer::len_max(capacity)
}

/// Whether a file name is a spare's, or a segment's that was being replaced: left over by a crash, to
/// be removed.
pub fn is_spare_name(name: &str) -> bool {
    let replaced = name.strip_suffix(".tmp").and_then(parse_file_name);
    let is_spare = name
        .strip_prefix(PREFIX)
        .is_some_and(|rest| rest.ends_with(SUFFIX));
    is_spare || (replaced.is_some() && !planted("pool.replaced"))
}

impl Pool {
    /// An empty pool. `has_readers` tells whether another process reads the database.
    pub fn new(env: Env, has_readers: impl Fn() -> bool + Send + Sync + 'static) -> Pool {
        Pool {
            env,
            spares: Mutex::default(),
            has_readers: Box::new(has_readers),
        }
    }

    /// A file in `dir` with at least `capacity` allocated bytes, and those of a footer behind them, that
    /// is nobody else's: once it is begun, a segment meets no full disk.
    pub(crate) fn take(&self, dir: &Path, capacity: u64) -> Result<(PathBuf, Arc<dyn File>)> {
        let spare = {
            let mut spares = self.spares.lock();
            let fits = |spare: &Spare| {
                // A retired file ends where its last segment was sealed, a little below its capacity.
                spare.path.parent() == Some(dir)
                    && (capacity / 2..=capacity.saturating_mul(2)).contains(&spare.len)
            };
            spares
                .iter()
                .position(fits)
                .map(|at| spares.swap_remove(at))
        };
        match spare {
            Some(spare) => match self.ready(&spare, capacity) {
                Ok(file) => Ok((spare.path, file)),
                Err(error) => {
                    self.spares.lock().push(spare);
                    Err(error)
                }
            },
            None => self.create(dir, capacity),
        }
    }

    /// Opens a spare and allocates what it lacks.
    fn ready(&self, spare: &Spare, capacity: u64) -> Result<Arc<dyn File>> {
        let path = &spare.path;
        let file = self
            .env
            .disk
            .open(path, Access::Write)
            .during("open", path)?;
        fill_zeros(file.as_ref(), spare.len, room(capacity)).during("allocate", path)?;
        Ok(file)
    }

    fn create(&self, dir: &Path, capacity: u64) -> Result<(PathBuf, Arc<dyn File>)> {
        let name = format!("{PREFIX}{:016x}{SUFFIX}", self.env.random.next_u64());
        let path = dir.join(name);
        let file = self.env.disk.create(&path).during("create", &path)?;
        file.keep_in_place();
        if let Err(error) = fill_zeros(file.as_ref(), 0, room(capacity)) {
            drop(file);
            // The first failure is the one to report; the file is removed at the next open anyway.
            let _ = self.env.disk.remove(&path);
            return Err(error).during("allocate", &path);
        }
        Ok((path, file))
    }

    /// Makes a spare ahead of need, durable zeros and all. Housekeeping calls it.
    ///
    /// # Errors
    /// The disk's; nothing is lost by it.
    pub fn prepare(&self, dir: &Path, capacity: u64) -> Result<()> {
        if self.spares.lock().len() >= SPARE_COUNT_MAX {
            return Ok(());
        }
        let (path, file) = self.create(dir, capacity)?;
        file.sync().during("sync", &path)?;
        self.spares.lock().push(Spare {
            path,
            len: capacity,
        });
        Ok(())
    }

    /// Takes a detached segment's file: recycles it where it is ours alone, unlinks it otherwise.
    /// Returns whether it was recycled.
    ///
    /// # Errors
    /// The disk's.
    pub fn retire(&self, segment: Arc<Segment>) -> Result<bool> {
        let path = segment.path().to_owned();
        let dir = path
            .parent()
            .expect("a segment lies in a directory")
            .to_owned();
        let stat = self.env.disk.stat(&path).during("stat", &path)?;
        let full = self.spares.lock().len() >= SPARE_COUNT_MAX;
        let ours = segment.into_unpinned() && stat.link_count == 1 && !(self.has_readers)();
        if !(ours || planted("pool.shared")) || full {
            self.env.disk.remove(&path).during("remove", &path)?;
            return Ok(false);
        }
        let name = format!("{PREFIX}{:016x}{SUFFIX}", self.env.random.next_u64());
        let spare = dir.join(name);
        self.env
            .disk
            .rename(&path, &spare)
            .during("rename", &path)?;
        // Durable before the file is written again: a crash must not find the old name on new bytes.
        unless!("pool.retire", self.env.disk.sync_dir(&dir)).during("sync directory", &dir)?;
        let len = stat.len / 4096 * 4096;
        self.spares.lock().push(Spare { path: spare, len });
        Ok(true)
    }

    /// Forgets the spares in a directory: its log is opened anew, and that removes leftovers.
    pub fn forget(&self, dir: &Path) {
        self.spares
            .lock()
            .retain(|spare| spare.path.parent() != Some(dir));
    }

    /// Removes all spares: at close, and when the database has been idle.
    ///
    /// # Errors
    /// The disk's.
    pub fn clear(&self) -> Result<()> {
        for spare in std::mem::take(&mut *self.spares.lock()) {
            self.env
                .disk
                .remove(&spare.path)
                .during("remove", &spare.path)?;
        }
        Ok(())
    }

    /// Number of spares at hand.
    pub fn spare_count(&self) -> usize {
        self.spares.lock().len()
    }
}

#[cfg(test)]
mod tests;
