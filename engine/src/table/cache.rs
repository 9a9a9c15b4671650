//! Checked chunks in memory, for tables that are read without a map.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;
use strandline_wal::Result;

use super::chunk::CHUNK_LEN_TARGET;

/// A cache of chunks within a budget in bytes, shared by all tables that it is given to.
///
/// Only checked chunks are in it. Concurrent readers of one absent chunk wait for a single read.
pub struct BlockCache {
    chunks: Cache<ChunkKey, Arc<[u8]>, ByLen>,
    next_user: AtomicU64,
}

/// One chunk of one opened table. The table's own number is not enough: tables of other datasets
/// share the cache, and a file may be opened again after it was replaced.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct ChunkKey {
    pub user: u64,
    pub chunk: u32,
}

#[derive(Clone)]
struct ByLen;

impl Weighter<ChunkKey, Arc<[u8]>> for ByLen {
    fn weight(&self, _: &ChunkKey, chunk: &Arc<[u8]>) -> u64 {
        (chunk.len() + SLOT_LEN) as u64
    }
}

impl BlockCache {
    /// A cache that holds at most `budget_bytes_max` bytes.
    pub fn new(budget_bytes_max: u64) -> BlockCache {
        let chunk_count = (budget_bytes_max / CHUNK_LEN_TARGET as u64).max(1) as usize;
        BlockCache {
            chunks: Cache::with_weighter(chunk_count, budget_bytes_max, ByLen),
            next_user: AtomicU64::new(1),
        }
    }

    /// Bytes held now.
    pub fn len(&self) -> u64 {
        self.chunks.weight()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// A number that no other opened table has in this cache.
    pub(super) fn join(&self) -> u64 {
        self.next_user.fetch_add(1, Ordering::Relaxed)
    }

    /// The chunk, read and checked by `load` where it is not here.
    pub(super) fn chunk_or(
        &self,
        key: ChunkKey,
        load: impl FnOnce() -> Result<Arc<[u8]>>,
    ) -> Result<Arc<[u8]>> {
        self.chunks.get_or_insert_with(&key, load)
    }

    /// Gives the chunks of a closed table back.
    pub(super) fn leave(&self, user: u64, chunk_count: u32) {
        for chunk in 0..chunk_count {
            self.chunks.remove(&ChunkKey { user, chunk });
        }
    }
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "BlockCache({} of {} bytes)",
            self.len(),
            self.chunks.capacity()
        )
    }
}

/// What a cached chunk costs beside its bytes: key, list links and reference counts.
const SLOT_LEN: usize = 96;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_kept() {
        let cache = BlockCache::new(1 << 20);
        let user = cache.join();
        for chunk in 0..1_000 {
            let load = || Ok(Arc::from(vec![0; 32 << 10]));
            cache.chunk_or(ChunkKey { user, chunk }, load).unwrap();
            assert!(cache.len() <= 1 << 20);
        }
        assert!(cache.len() > 1 << 19);
        cache.leave(user, 1_000);
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn a_failed_read_leaves_nothing_behind() {
        let cache = BlockCache::new(1 << 20);
        let key = ChunkKey {
            user: cache.join(),
            chunk: 0,
        };
        let error = strandline_wal::Error::TooLarge {
            what: "test",
            limit: 0,
            found: 1,
        };
        assert!(cache.chunk_or(key, || Err(error)).is_err());
        assert_eq!(
            &*cache.chunk_or(key, || Ok(Arc::from(vec![7]))).unwrap(),
            [7]
        );
    }

    #[test]
    fn a_cache_without_budget_still_reads() {
        let cache = BlockCache::new(0);
        let key = ChunkKey {
            user: cache.join(),
            chunk: 0,
        };
        assert_eq!(
            &*cache.chunk_or(key, || Ok(Arc::from(vec![7]))).unwrap(),
            [7]
        );
        assert_eq!(cache.len(), 0);
        assert_eq!(format!("{cache:?}"), "BlockCache(0 of 0 bytes)");
    }
}
