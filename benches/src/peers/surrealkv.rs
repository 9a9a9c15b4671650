//! SurrealKV as an entrant: a log-structured tree in Rust, with an asynchronous commit.

use std::path::Path;

use surrealkv::{
    CompactRangeOptions, Durability, Error, LSMIterator, Mode, Options, Transaction, Tree,
    TreeBuilder,
};
use tokio::runtime::{Builder, Runtime};

use super::engine::{Engine, Entrant, Entry, LARGE_VALUE_LEN, Level, Reader, Result, Setup};

pub const ENTRANT: Entrant = Entrant {
    name: "surrealkv",
    settings: "Durability::Eventual (written to the system at each commit) | Immediate (fdatasync, \
               grouped; log written ahead with zeros); memtable 64 MiB; cache 256 MiB; bloom 10 bits; \
               values >= 4 KiB apart; no compression; batches up to 2 GiB (it takes 4 with headers); \
               a commit that met another write of its key is made again",
    batch_len_max: 2 << 30,
    open: |dir, setup| Ok(Box::new(Surreal::open(dir, setup)?)),
};

struct Surreal {
    tree: Tree,
    // Behind the tree, whose tasks run on it: it is dropped last.
    runtime: Runtime,
    durability: Durability,
}

impl Surreal {
    fn open(dir: &Path, setup: &Setup) -> Result<Surreal> {
        // Flushes, compactions and the sync of a group are tasks. On a runtime of one thread they
        // would stand still whenever nobody waits for a commit.
        let runtime = Builder::new_multi_thread().enable_time().build()?;
        let options = Options::new()
            .with_path(dir.to_owned())
            .with_max_memtable_size(setup.memtable_len)
            .with_block_cache_capacity(setup.cache_len as u64)
            // A sync that need not write a new file size; without syncs it only costs zeros.
            .with_wal_preallocation(setup.level == Level::Disk)
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
            durability: match setup.level {
                Level::Os => Durability::Eventual,
                Level::Disk => Durability::Immediate,
            },
        })
    }
}

impl Surreal {
    /// Commits what `fill` writes. It reads nothing, so that the commit has no read to check; where
    /// somebody wrote the same key since it began, it is made again, as its users do.
    fn commit(&self, fill: impl Fn(&mut Transaction) -> surrealkv::Result<()>) -> Result<()> {
        loop {
            let transaction = self.tree.begin_with_mode(Mode::WriteOnly)?;
            let mut transaction = transaction.with_durability(self.durability);
            fill(&mut transaction)?;
            match self.runtime.block_on(transaction.commit()) {
                Err(Error::TransactionWriteConflict | Error::TransactionRetry) => {}
                other => return Ok(other?),
            }
        }
    }
}

impl Engine for Surreal {
    fn put_batch(&self, entries: &[Entry<'_>]) -> Result<()> {
        self.commit(|transaction| {
            (entries.iter()).try_for_each(|(key, value)| transaction.set(*key, *value))
        })
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        self.commit(|transaction| transaction.delete(key))
    }

    fn settle(&self) -> Result<()> {
        let _inside = self.runtime.enter();
        // It flushes the memtable first.
        let options = CompactRangeOptions::default();
        Ok(self.tree.compact_range(None, None, &options)?)
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        Ok(Box::new(SurrealReader {
            tree: &self.tree,
            transaction: self.tree.begin_with_mode(Mode::ReadOnly)?,
        }))
    }

    fn len(&self) -> Result<usize> {
        self.reader()?.scan(&[], usize::MAX, &mut |_| {})
    }

    fn close(&self) -> Result<()> {
        Ok(self.runtime.block_on(self.tree.close())?)
    }
}

struct SurrealReader<'a> {
    tree: &'a Tree,
    transaction: Transaction,
}

impl Reader for SurrealReader<'_> {
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
            valid = seen < count && entries.next()?;
        }
        Ok(seen)
    }

    fn scan_back(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut entries = self.transaction.scan(..=start)?;
        let (mut seen, mut valid) = (0, entries.seek_last()?);
        while valid && seen < count {
            see(&entries.value_ref()?);
            seen += 1;
            valid = seen < count && entries.prev()?;
        }
        Ok(seen)
    }

    fn refresh(&mut self) -> Result<()> {
        self.transaction = self.tree.begin_with_mode(Mode::ReadOnly)?;
        Ok(())
    }
}
