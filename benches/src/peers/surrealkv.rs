//! SurrealKV as an entrant: a log-structured tree in Rust, with an asynchronous commit.

use std::path::Path;

use surrealkv::{
    CompactRangeOptions, Durability, LSMIterator, Mode, Options, Transaction, Tree, TreeBuilder,
};
use tokio::runtime::{Builder, Runtime};

use super::engine::{
    CACHE_LEN, Engine, Entrant, Entry, LARGE_VALUE_LEN, Level, MEMTABLE_LEN, Reader, Result,
};

pub const ENTRANT: Entrant = Entrant {
    name: "surrealkv",
    settings: "Durability::Eventual (written to the system at each commit) | Immediate (fdatasync, \
               grouped; log written ahead with zeros); memtable 64 MiB; cache 256 MiB; bloom 10 bits; \
               values >= 4 KiB apart; no compression",
    open: |dir, level| Ok(Box::new(Surreal::open(dir, level)?)),
};

struct Surreal {
    tree: Tree,
    // Behind the tree, whose tasks run on it: it is dropped last.
    runtime: Runtime,
    durability: Durability,
}

impl Surreal {
    fn open(dir: &Path, level: Level) -> Result<Surreal> {
        // Flushes, compactions and the sync of a group are tasks. On a runtime of one thread they
        // would stand still whenever nobody waits for a commit.
        let runtime = Builder::new_multi_thread().enable_time().build()?;
        let options = Options::new()
            .with_path(dir.to_owned())
            .with_max_memtable_size(MEMTABLE_LEN)
            .with_block_cache_capacity(CACHE_LEN as u64)
            // A sync that need not write a new file size; without syncs it only costs zeros.
            .with_wal_preallocation(level == Level::Disk)
            .without_compression()
            .with_enable_vlog(true)
            .with_vlog_value_threshold(LARGE_VALUE_LEN);
        let tree = {
            let _inside = runtime.enter();
            TreeBuilder::with_options(options).build()?
        };
        Ok(Surreal {
            tree,
            runtime,
            durability: match level {
                Level::Os => Durability::Eventual,
                Level::Disk => Durability::Immediate,
            },
        })
    }
}

impl Engine for Surreal {
    fn put_batch(&self, entries: &[Entry<'_>]) -> Result<()> {
        // It reads nothing, so that the commit has no read to check.
        let mut transaction = self
            .tree
            .begin_with_mode(Mode::WriteOnly)?
            .with_durability(self.durability);
        for (key, value) in entries {
            transaction.set(*key, *value)?;
        }
        Ok(self.runtime.block_on(transaction.commit())?)
    }

    fn settle(&self) -> Result<()> {
        let _inside = self.runtime.enter();
        // It flushes the memtable first.
        let options = CompactRangeOptions::default();
        Ok(self.tree.compact_range(None, None, &options)?)
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        let transaction = self.tree.begin_with_mode(Mode::ReadOnly)?;
        Ok(Box::new(SurrealReader { transaction }))
    }

    fn close(&self) -> Result<()> {
        Ok(self.runtime.block_on(self.tree.close())?)
    }
}

struct SurrealReader {
    transaction: Transaction,
}

impl Reader for SurrealReader {
    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.transaction.get(key)?;
        Ok(value.map(|value| see(&value)).is_some())
    }

    fn scan(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut entries = self.transaction.scan(start..)?;
        let (mut seen, mut valid) = (0, entries.seek_first()?);
        while valid && seen < count {
            see(&entries.value_ref()?);
            seen += 1;
            valid = entries.next()?;
        }
        Ok(seen)
    }
}
