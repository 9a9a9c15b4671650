//! SurrealKV as an entrant: a log-structured tree in Rust, with an asynchronous commit.

use std::path::Path;

use surrealkv::{
    CompactRangeOptions, Durability, LSMIterator, Mode, Transaction, Tree, TreeBuilder,
};
use tokio::runtime::{Builder, Runtime};

use super::engine::{
    CACHE_LEN, Engine, Entrant, Entry, LARGE_VALUE_LEN, Level, MEMTABLE_LEN, Reader, Result,
};

pub const ENTRANT: Entrant = Entrant {
    name: "surrealkv",
    settings: "Durability::Eventual | Immediate; memtable 64 MiB; cache 256 MiB; values >= 4 KiB apart",
    open: |dir, level| Ok(Box::new(Surreal::open(dir, level)?)),
};

struct Surreal {
    tree: Tree,
    runtime: Runtime,
    durability: Durability,
}

impl Surreal {
    fn open(dir: &Path, level: Level) -> Result<Surreal> {
        let tree = TreeBuilder::new()
            .with_path(dir.to_owned())
            .with_max_memtable_size(MEMTABLE_LEN)
            .with_block_cache_capacity(CACHE_LEN as u64)
            .with_enable_vlog(true)
            .with_vlog_value_threshold(LARGE_VALUE_LEN)
            .build()?;
        Ok(Surreal {
            tree,
            runtime: Builder::new_current_thread().build()?,
            durability: match level {
                Level::Os => Durability::Eventual,
                Level::Disk => Durability::Immediate,
            },
        })
    }
}

impl Drop for Surreal {
    fn drop(&mut self) {
        // A benchmark's directory is removed next: a failed close loses nothing.
        let _ = self.runtime.block_on(self.tree.close());
    }
}

impl Engine for Surreal {
    fn put_batch(&self, entries: &[Entry<'_>]) -> Result<()> {
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
        let options = CompactRangeOptions::default();
        Ok(self.tree.compact_range(None, None, &options)?)
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        let transaction = self.tree.begin_with_mode(Mode::ReadOnly)?;
        Ok(Box::new(SurrealReader { transaction }))
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
