//! What every engine can do, and nothing that only one of them can.

use std::path::Path;

/// Any engine's error.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A key and its value.
pub type Entry<'a> = (&'a [u8], &'a [u8]);

/// What a write has survived when it returns.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// The death of the process: the bytes are with the operating system.
    Os,
    /// The death of the machine: the bytes are synced.
    Disk,
}

/// An open engine with one ordered map.
pub trait Engine: Send + Sync {
    /// Writes entries, all or none, at the level that the engine was opened for.
    fn put_batch(&self, entries: &[Entry<'_>]) -> Result<()>;

    /// Removes a key, at the level that the engine was opened for.
    fn remove(&self, key: &[u8]) -> Result<()>;

    /// Brings everything into the shape that reads want: flushed, compacted.
    fn settle(&self) -> Result<()>;

    /// Gives back the room of what was overwritten. A tree reuses it by itself.
    fn collect(&self) -> Result<()> {
        self.settle()
    }

    /// Hands to the system what a commit at [`Level::Os`] has not, where an engine has no such level.
    fn hand_over(&self) -> Result<()> {
        Ok(())
    }

    /// A reader of what was written before. Where an engine reads through a transaction this holds
    /// one open for all its reads, which is the fastest that the engine can do.
    fn reader(&self) -> Result<Box<dyn Reader + '_>>;

    /// The number of keys, exactly.
    fn len(&self) -> Result<usize>;

    /// Ends its background work and tells what went wrong in it. Nothing is read or written after.
    /// Most engines have no such call and end when they are dropped.
    fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Reads of one engine. `see` gets the bytes wherever the engine keeps them, without a forced copy.
pub trait Reader {
    /// Shows the value of a key; whether there is one.
    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Shows up to `count` values in key order from `start` on; how many there were.
    fn scan(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize>;

    /// As [`Reader::scan`], towards smaller keys.
    fn scan_back(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize>;

    /// Lets it see what was written until now. Readers without a transaction always do.
    fn refresh(&mut self) -> Result<()> {
        Ok(())
    }
}

/// How to open an engine, and what was set.
pub struct Entrant {
    /// Its name in the table.
    pub name: &'static str,
    /// Its settings, as far as they matter here.
    pub settings: &'static str,
    /// Bytes of keys and values that it takes in one batch.
    pub batch_len_max: usize,
    /// Opens it, or creates it in an empty directory.
    pub open: fn(&Path, &Setup) -> Result<Box<dyn Engine>>,
}

/// What is the same for every engine.
pub struct Setup {
    /// What a write has survived when it returns.
    pub level: Level,
    /// [`CACHE_LEN`], unless memory is limited.
    pub cache_len: usize,
    /// [`MEMTABLE_LEN`], unless memory is limited.
    pub memtable_len: usize,
}

impl Setup {
    pub fn new(level: Level) -> Setup {
        Setup {
            level,
            cache_len: CACHE_LEN,
            memtable_len: MEMTABLE_LEN,
        }
    }

    /// Under a limit of memory: a quarter of it for a cache, three memtables of a sixteenth, and what
    /// is left for filters, indexes, buffers and the page cache.
    pub fn within(level: Level, memory_len: usize) -> Setup {
        Setup {
            level,
            cache_len: memory_len / 4,
            memtable_len: memory_len / 16,
        }
    }
}

/// Memory for blocks of tables or pages of trees, where the engine has its own cache. Those that
/// read through a map (Strandline's tables, LMDB) have the page cache instead.
pub const CACHE_LEN: usize = 256 << 20;

/// Memtable of the log-structured engines. All may have two more waiting for their flush. Each counts
/// in its own way: the log behind it, its arena, or, in SurrealKV, the arena without the values.
pub const MEMTABLE_LEN: usize = 64 << 20;

/// Values of at least this many bytes stay out of the tables of the log-structured engines.
pub const LARGE_VALUE_LEN: usize = 4 << 10;
