//! RocksDB as an entrant: a log-structured tree in C++.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DataBlockIndexType, Options, WriteBatch,
    WriteOptions,
};

use super::engine::{Engine, Entrant, Entry, LARGE_VALUE_LEN, Level, Reader, Result, Setup};

pub const ENTRANT: Entrant = Entrant {
    name: "rocksdb",
    settings: "sync=false | sync=true (fdatasync, grouped, pipelined); memtable 64 MiB, 3 at most; \
               cache of blocks and blobs 256 MiB; bloom 10 bits; hash index in blocks; blobs from \
               4 KiB, collected; no compression; 2 background jobs; \
               batches up to 2 GiB (it takes 4 with headers)",
    batch_len_max: 2 << 30,
    open: |dir, setup| Ok(Box::new(Rocks::open(dir, setup)?)),
};

struct Rocks {
    database: DB,
    level: Level,
}

impl Rocks {
    fn open(dir: &Path, setup: &Setup) -> Result<Rocks> {
        let cache = Cache::new_lru_cache(setup.cache_len);
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&cache);
        // What its tuning guide recommends for point reads; there is no filter otherwise.
        blocks.set_bloom_filter(10.0, false);
        // Spares a get the binary search within a block, for 2 % of space.
        blocks.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&blocks);
        options.set_write_buffer_size(setup.memtable_len);
        options.set_max_write_buffer_number(3);
        // A group writes the log while the one before it writes its memtable.
        options.set_enable_pipelined_write(true);
        // As everybody here: values are random bytes, compressing them is wasted time.
        options.set_compression_type(DBCompressionType::None);
        options.set_enable_blob_files(true);
        options.set_min_blob_size(LARGE_VALUE_LEN as u64);
        // Without it the blobs of values that were overwritten stay until whole files are dead.
        options.set_enable_blob_gc(true);
        // Without it every get of a blob is a read from its file.
        options.set_blob_cache(&cache);
        let database = DB::open(&options, dir)?;
        Ok(Rocks {
            database,
            level: setup.level,
        })
    }
}

impl Rocks {
    fn how(&self) -> WriteOptions {
        let mut how = WriteOptions::default();
        how.set_sync(self.level == Level::Disk);
        how
    }
}

impl Engine for Rocks {
    fn put_batch(&self, entries: &[Entry<'_>]) -> Result<()> {
        let how = self.how();
        if let [(key, value)] = entries {
            return Ok(self.database.put_opt(key, value, &how)?);
        }
        let mut batch = WriteBatch::default();
        for (key, value) in entries {
            batch.put(key, value);
        }
        Ok(self.database.write_opt(batch, &how)?)
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        Ok(self.database.delete_opt(key, &self.how())?)
    }

    fn settle(&self) -> Result<()> {
        self.database.flush()?;
        self.database.compact_range::<&[u8], &[u8]>(None, None);
        // The call above has no result: one that failed leaves tables in the first level.
        match self
            .database
            .property_int_value("rocksdb.num-files-at-level0")?
        {
            Some(0) => Ok(()),
            left => Err(format!("{left:?} tables are left in the first level").into()),
        }
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        Ok(Box::new(RocksReader {
            database: &self.database,
        }))
    }

    fn len(&self) -> Result<usize> {
        self.reader()?.scan(&[], usize::MAX, &mut |_| {})
    }
}

struct RocksReader<'a> {
    database: &'a DB,
}

impl Reader for RocksReader<'_> {
    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.database.get_pinned(key)?;
        Ok(value.map(|value| see(&value)).is_some())
    }

    fn scan(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        // The other iterator of the crate copies every key and value into a box.
        let mut entries = self.database.raw_iterator();
        entries.seek(start);
        let mut seen = 0;
        while seen < count
            && let Some(value) = entries.value()
        {
            see(value);
            seen += 1;
            if seen < count {
                entries.next();
            }
        }
        entries.status()?;
        Ok(seen)
    }

    fn scan_back(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut entries = self.database.raw_iterator();
        entries.seek_for_prev(start);
        let mut seen = 0;
        while seen < count
            && let Some(value) = entries.value()
        {
            see(value);
            seen += 1;
            if seen < count {
                entries.prev();
            }
        }
        entries.status()?;
        Ok(seen)
    }
}
