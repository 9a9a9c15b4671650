//! fjall as an entrant: a log-structured tree in Rust.

use std::path::Path;

use fjall::config::{CompressionPolicy, HashRatioPolicy, PartitioningPolicy, PinningPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions};
use fjall::{PersistMode, UserValue};

use super::engine::{Engine, Entrant, Entry, LARGE_VALUE_LEN, Level, Reader, Result, Setup};

pub const ENTRANT: Entrant = Entrant {
    name: "fjall",
    settings: "PersistMode::Buffer | SyncData (the cheaper of its two syncs); memtable 64 MiB; cache \
               256 MiB, filters and indexes beside it; hash index in blocks; values >= 4 KiB separated; \
               no compression; batches up to 2 GiB (it has no limit of bytes)",
    batch_len_max: 2 << 30,
    open: |dir, setup| Ok(Box::new(Fjall::open(dir, setup)?)),
};

struct Fjall {
    database: Database,
    map: Keyspace,
    mode: PersistMode,
}

impl Fjall {
    fn open(dir: &Path, setup: &Setup) -> Result<Fjall> {
        let database = Database::builder(dir)
            .cache_size(setup.cache_len as u64)
            .journal_compression(CompressionType::None)
            .open()?;
        let map = database.keyspace("map", || {
            let separation = KvSeparationOptions::default()
                .separation_threshold(LARGE_VALUE_LEN as u32)
                .compression(CompressionType::None);
            KeyspaceCreateOptions::default()
                .max_memtable_size(setup.memtable_len as u64)
                // As everybody here: values are random bytes, compressing them is wasted time.
                .data_block_compression_policy(CompressionPolicy::disabled())
                // Spares a get the binary search within a block: 3 of 4 buckets are taken, as by
                // default in RocksDB. The default has no such index.
                .data_block_hash_ratio_policy(HashRatioPolicy::all(4.0 / 3.0))
                // Whole and in memory on all levels, as RocksDB's are. By default those of the last
                // level, where everything is after a compaction, are blocks like others.
                .filter_block_partitioning_policy(PartitioningPolicy::all(false))
                .filter_block_pinning_policy(PinningPolicy::all(true))
                .index_block_partitioning_policy(PartitioningPolicy::all(false))
                .index_block_pinning_policy(PinningPolicy::all(true))
                .with_kv_separation(Some(separation))
        })?;
        Ok(Fjall {
            database,
            map,
            mode: match setup.level {
                Level::Os => PersistMode::Buffer,
                Level::Disk => PersistMode::SyncData,
            },
        })
    }
}

impl Engine for Fjall {
    fn put_batch(&self, entries: &[Entry<'_>]) -> Result<()> {
        // A single insert persists to the buffers of the system by itself, without a batch's cost.
        if let ([(key, value)], PersistMode::Buffer) = (entries, self.mode) {
            return Ok(self.map.insert(*key, *value)?);
        }
        let mut batch = self.database.batch().durability(Some(self.mode));
        for (key, value) in entries {
            batch.insert(&self.map, *key, *value);
        }
        Ok(batch.commit()?)
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        if self.mode == PersistMode::Buffer {
            return Ok(self.map.remove(key)?);
        }
        let mut batch = self.database.batch().durability(Some(self.mode));
        batch.remove(&self.map, key);
        Ok(batch.commit()?)
    }

    fn settle(&self) -> Result<()> {
        self.map.rotate_memtable_and_wait()?;
        Ok(self.map.major_compact()?)
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        Ok(Box::new(FjallReader { map: &self.map }))
    }

    fn len(&self) -> Result<usize> {
        Ok(self.map.len()?)
    }
}

struct FjallReader<'a> {
    map: &'a Keyspace,
}

impl Reader for FjallReader<'_> {
    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value: Option<UserValue> = self.map.get(key)?;
        Ok(value.map(|value| see(&value)).is_some())
    }

    fn scan(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut seen = 0;
        for entry in self.map.range(start..).take(count) {
            see(&entry.into_inner()?.1);
            seen += 1;
        }
        Ok(seen)
    }

    fn scan_back(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut seen = 0;
        for entry in self.map.range(..=start).rev().take(count) {
            see(&entry.into_inner()?.1);
            seen += 1;
        }
        Ok(seen)
    }
}
