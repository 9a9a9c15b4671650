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
use crate::io::{Access, Env, File, Image, fill_zeros};
use crate::log::Segment;
use crate::segment::{Footer, parse_file_name};
use crate::unless;
use crate::writer::Face;

/// Spares kept for one database.
pub const SPARE_COUNT_MAX: usize = 2;
/// A spare is made ahead where it takes at most one part in so many of the free space.
const FREE_SHARE: u64 = 8;

const PREFIX: &str = "spare-";
const SUFFIX: &str = ".seg";

/// Spare segment files of one database.
pub struct Pool {
    env: Env,
    spares: Mutex<Vec<Spare>>,
    /// What writers will need soon, one for each directory.
    orders: Mutex<Vec<Order>>,
    /// Held while a file is made ahead.
    making: Mutex<()>,
    /// Tells whether another process reads the database right now.
    has_readers: Box<dyn Fn() -> bool + Send + Sync>,
    /// Calls whoever does [`Pool::work`] and hashes what was appended.
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Spare {
    path: PathBuf,
    len: u64,
    /// Made ahead: the open file and the image of a segment of `len` bytes.
    made: Option<(Arc<dyn File>, Image)>,
}

impl Spare {
    fn fits(&self, dir: &Path, capacity: u64) -> bool {
        // A retired file ends where its last segment was sealed, a little below its capacity.
        self.path.parent() == Some(dir)
            && (capacity / 2..=capacity.saturating_mul(2)).contains(&self.len)
    }
}

struct Order {
    dir: PathBuf,
    capacity: u64,
    face: Face,
}

/// A file for a segment, nobody else's, with its blocks and those of its footer allocated: once it is
/// begun, a segment meets no full disk.
pub(crate) struct Prepared {
    pub path: PathBuf,
    pub file: Arc<dyn File>,
    pub capacity: u64,
    /// The memory of the segment, where it was made ahead.
    pub image: Option<Image>,
    pub blocks: Blocks,
}

/// What the blocks of a segment's file hold when it is begun.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Blocks {
    /// Zeros that were written, so that a sync of small writes changes nothing but bytes.
    Zeros,
    /// Nothing: they are the file's and read as zeros. Each byte is written once, by a call, and a sync
    /// notes which blocks were.
    Unwritten,
}

/// Makes the blocks of a segment's file behind its first `end` bytes zeros that were written.
pub(crate) fn write_zeros(file: &dyn File, end: u64, capacity: u64) -> std::io::Result<()> {
    fill_zeros(file, end, room(capacity))
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
            orders: Mutex::default(),
            making: Mutex::default(),
            has_readers: Box::new(has_readers),
            wake: Box::new(|| {}),
        }
    }

    /// The same pool, which calls `wake` where there is work for [`Pool::work`] or
    /// [`crate::log::Log::hash_step`]. It must be quick: writers call it while they hold their lock.
    #[must_use]
    pub fn waking(self, wake: impl Fn() + Send + Sync + 'static) -> Pool {
        Pool {
            wake: Box::new(wake),
            ..self
        }
    }

    /// A file for a segment of `capacity` bytes, or, where one was made ahead, of at least half and at
    /// most twice as many, but no less than `needed`.
    pub(crate) fn take(&self, dir: &Path, capacity: u64, needed: u64) -> Result<Prepared> {
        self.take_where(dir, capacity, |spare| {
            spare.made.is_none() || spare.len >= needed
        })
    }

    /// A file for a segment of exactly `capacity` bytes.
    pub(crate) fn take_exact(&self, dir: &Path, capacity: u64) -> Result<Prepared> {
        self.take_where(dir, capacity, |spare| {
            spare.made.is_none() || spare.len == capacity
        })
    }

    /// A file for a segment of exactly `capacity` bytes that is written in long pieces: its blocks are
    /// allocated and not written, and its image only shows what was written. `None` where this disk has
    /// no such image.
    pub(crate) fn take_unwritten(&self, dir: &Path, capacity: u64) -> Result<Option<Prepared>> {
        let allocate = |file: &dyn File| {
            file.allocate(0, room(capacity))?;
            file.view(usize::try_from(capacity).expect("a segment fits in memory"))
        };
        let (path, file, image) = self.create(dir, allocate)?;
        if image.is_none() {
            self.remove(&path)?;
        }
        Ok(image.map(|image| Prepared {
            path,
            file,
            capacity,
            image: Some(image),
            blocks: Blocks::Unwritten,
        }))
    }

    fn take_where(
        &self,
        dir: &Path,
        capacity: u64,
        suits: impl Fn(&Spare) -> bool,
    ) -> Result<Prepared> {
        let Some(spare) = self.find(|spare| spare.fits(dir, capacity) && suits(spare)) else {
            let zeros = |file: &dyn File| fill_zeros(file, 0, room(capacity));
            let (path, file, ()) = self.create(dir, zeros)?;
            return Ok(Prepared {
                path,
                file,
                capacity,
                image: None,
                blocks: Blocks::Zeros,
            });
        };
        if let Some((file, image)) = spare.made {
            return Ok(Prepared {
                path: spare.path,
                file,
                capacity: spare.len,
                image: Some(image),
                blocks: Blocks::Zeros,
            });
        }
        match self.ready(&spare, capacity) {
            Ok(file) => Ok(Prepared {
                path: spare.path,
                file,
                capacity,
                image: None,
                blocks: Blocks::Zeros,
            }),
            Err(error) => {
                self.spares.lock().push(spare);
                Err(error)
            }
        }
    }

    /// Takes the first spare that `suits`.
    fn find(&self, suits: impl Fn(&Spare) -> bool) -> Option<Spare> {
        let mut spares = self.spares.lock();
        let at = spares.iter().position(suits)?;
        Some(spares.swap_remove(at))
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

    fn create<T>(
        &self,
        dir: &Path,
        allocate: impl FnOnce(&dyn File) -> std::io::Result<T>,
    ) -> Result<(PathBuf, Arc<dyn File>, T)> {
        let path = self.new_name(dir);
        let file = self.env.disk.create(&path).during("create", &path)?;
        file.keep_in_place();
        match allocate(file.as_ref()) {
            Ok(allocated) => Ok((path, file, allocated)),
            Err(error) => {
                drop(file);
                // The first failure is the one to report; the file is removed at the next open anyway.
                let _ = self.env.disk.remove(&path);
                Err(error).during("allocate", &path)
            }
        }
    }

    fn new_name(&self, dir: &Path) -> PathBuf {
        let number = self.env.random.next_u64();
        dir.join(format!("{PREFIX}{number:016x}{SUFFIX}"))
    }

    /// Tells that `dir` will soon need a segment of `capacity` bytes: [`Pool::work`] makes it ahead.
    pub(crate) fn order(&self, dir: &Path, capacity: u64, face: Face) {
        let mut orders = self.orders.lock();
        orders.retain(|order| order.dir != dir);
        orders.push(Order {
            dir: dir.to_owned(),
            capacity,
            face,
        });
        drop(orders);
        self.wake();
    }

    /// Calls whoever works for the pool.
    pub(crate) fn wake(&self) {
        (self.wake)();
    }

    /// Makes one file ahead that a writer will need, zeros, memory and all. Returns whether one was
    /// needed.
    ///
    /// # Errors
    /// The disk's; nothing is lost by it.
    pub fn work(&self) -> Result<bool> {
        let _making = self.making.lock();
        let Some(order) = self.orders.lock().pop() else {
            return Ok(false);
        };
        self.make(&order).map(|()| true)
    }

    fn make(&self, order: &Order) -> Result<()> {
        let (dir, capacity) = (&order.dir, order.capacity);
        let is_made = |spare: &Spare| spare.made.is_some() && spare.fits(dir, capacity);
        if self.spares.lock().iter().any(is_made) || !self.has_room(dir, capacity)? {
            return Ok(());
        }
        // Only one that is not mapped yet is left. Where none fits, one that nobody asks for makes way.
        while self.spare_count() >= SPARE_COUNT_MAX {
            match self.find(|spare| !spare.fits(dir, capacity)) {
                Some(spare) => self.remove(&spare.path)?,
                None => break,
            }
        }
        let prepared = self.take_where(dir, capacity, |spare| spare.made.is_none())?;
        let Prepared { path, file, .. } = prepared;
        let made = self.finish(&path, file.as_ref(), order);
        match made {
            Ok(image) => {
                self.spares.lock().push(Spare {
                    path,
                    len: capacity,
                    made: Some((file, image)),
                });
                Ok(())
            }
            Err(error) => {
                drop(file);
                // The first failure is the one to report; the file is removed at the next open anyway.
                let _ = self.env.disk.remove(&path);
                Err(error)
            }
        }
    }

    /// What else a growing segment's file needs: zeros that the first sync does not have to write, or
    /// memory without faults.
    fn finish(&self, path: &Path, file: &dyn File, order: &Order) -> Result<Image> {
        if order.face == Face::Written {
            file.sync().during("sync", path)?;
        }
        order.face.image(file, order.capacity, path)
    }

    /// A spare must not take the last space: who writes next may be about to free some.
    fn has_room(&self, dir: &Path, capacity: u64) -> Result<bool> {
        let free_len = self.env.disk.free_len(dir).during("stat", dir)?;
        Ok(free_len.is_none_or(|free_len| free_len / FREE_SHARE >= capacity))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.env.disk.remove(path).during("remove", path)
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
            self.remove(&path)?;
            return Ok(false);
        }
        let spare = self.new_name(&dir);
        self.env
            .disk
            .rename(&path, &spare)
            .during("rename", &path)?;
        // Durable before the file is written again: a crash must not find the old name on new bytes.
        unless!("pool.retire", self.env.disk.sync_dir(&dir)).during("sync directory", &dir)?;
        let len = stat.len / 4096 * 4096;
        self.spares.lock().push(Spare {
            path: spare,
            len,
            made: None,
        });
        Ok(true)
    }

    /// Forgets the spares in a directory: its log is opened anew, and that removes leftovers.
    pub fn forget(&self, dir: &Path) {
        let _making = self.making.lock();
        self.orders.lock().retain(|order| order.dir != dir);
        self.spares
            .lock()
            .retain(|spare| spare.path.parent() != Some(dir));
    }

    /// Removes all spares, at the close. One that cannot be removed is left to the next open.
    pub fn clear(&self) {
        for spare in std::mem::take(&mut *self.spares.lock()) {
            let _ = self.env.disk.remove(&spare.path);
        }
    }

    /// Removes the spares in one directory, as [`Pool::clear`] does.
    pub fn clear_in(&self, dir: &Path) {
        while let Some(spare) = self.find(|spare| spare.path.parent() == Some(dir)) {
            let _ = self.env.disk.remove(&spare.path);
        }
    }

    /// Number of spares at hand.
    pub fn spare_count(&self) -> usize {
        self.spares.lock().len()
    }
}

#[cfg(test)]
mod tests;
