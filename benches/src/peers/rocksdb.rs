//! RocksDB as an entrant: a log-structured tree in C++.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, Options, WriteBatch,
    WriteOptions,
};

use super::engine::{
    CACHE_LEN, Engine, Entrant, Entry, LARGE_VALUE_LEN, Level, MEMTABLE_LEN, Reader, Result,
};

pub const ENTRANT: Entrant = Entrant {
    name: "rocksdb",
    settings: "sync=false | sync=true; memtable 64 MiB, 3 at most; block cache 256 MiB; bloom 10 bits; \
               blobs from 4 KiB; no compression; 2 background jobs",
    open: |dir, level| Ok(Box::new(Rocks::open(dir, level)?)),
};

struct Rocks {
    database: DB,
    level: Level,
}

impl Rocks {
    fn open(dir: &Path, level: Level) -> Result<Rocks> {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&Cache::new_lru_cache(CACHE_LEN));
        blocks.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&blocks);
        options.set_write_buffer_size(MEMTABLE_LEN);
        options.set_max_write_buffer_number(3);
        options.set_compression_type(DBCompressionType::None);
        options.set_enable_blob_files(true);
        options.set_min_blob_size(LARGE_VALUE_LEN as u64);
        let database = DB::open(&options, dir)?;
        Ok(Rocks { database, level })
    }
}

impl Engine for Rocks {
    fn put_batch(&self, entries: &[Entry<'_>]) -> Result<()> {
        let mut how = WriteOptions::default();
        how.set_sync(self.level == Level::Disk);
        if let [(key, value)] = entries {
            return Ok(self.database.put_opt(key, value, &how)?);
        }
        let mut batch = WriteBatch::default();
        for (key, value) in entries {
            batch.put(key, value);
        }
        Ok(self.database.write_opt(&batch, &how)?)
    }

    fn settle(&self) -> Result<()> {
        self.database.flush()?;
        self.database.compact_range::<&[u8], &[u8]>(None, None);
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        Ok(Box::new(RocksReader {
            database: &self.database,
        }))
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
        let mode = IteratorMode::From(start, Direction::Forward);
        let mut seen = 0;
        for entry in self.database.iterator(mode).take(count) {
            see(&entry?.1);
            seen += 1;
        }
        Ok(seen)
    }
}
