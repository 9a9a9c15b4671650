//! Puts many records into a dataset: batches of bounded size, each within one shard.

use strandline::{Dataset, Durability, EntityRule, Keyspace, ShardRouter, WriteBatch};

use crate::failure::Result;

/// A batch is written once it holds this many bytes.
const BATCH_LEN_MAX: usize = 4 << 20;
/// A batch is written once it holds this many records.
const BATCH_RECORD_COUNT_MAX: usize = 4096;

/// A stream of changes into one dataset.
///
/// Batches go out without waiting for the disk; [`Loader::finish`] syncs once where the level asks
/// for it. So nothing is claimed before the end, and one sync pays for everything.
pub struct Loader {
    dataset: Dataset,
    level: Durability,
    router: ShardRouter,
    rule: EntityRule,
    /// One for each shard: a batch that stays within a shard goes into that shard's log.
    batches: Vec<WriteBatch>,
}

impl Loader {
    /// Into a dataset that is open for writing.
    pub fn new(dataset: &Dataset, level: Durability) -> Loader {
        let options = dataset.database().options();
        let shard_count = options.router.shard_count();
        Loader {
            dataset: dataset.clone(),
            level,
            router: options.router.clone(),
            rule: options.entity_rule,
            batches: (0..shard_count).map(|_| dataset.batch()).collect(),
        }
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// Usage, for a key or value over its limit: nothing is changed by it. The engine's.
    pub fn put(&mut self, keyspace: &Keyspace, key: &[u8], value: &[u8]) -> Result<()> {
        let shard = self.make_room(key, value.len())?;
        self.batches[shard].put(keyspace, key, value)?;
        Ok(())
    }

    /// Removes a key.
    ///
    /// # Errors
    /// As [`Loader::put`].
    pub fn delete(&mut self, keyspace: &Keyspace, key: &[u8]) -> Result<()> {
        let shard = self.make_room(key, 0)?;
        self.batches[shard].delete(keyspace, key)?;
        Ok(())
    }

    fn make_room(&mut self, key: &[u8], value_len: usize) -> Result<usize> {
        let shard = usize::from(self.router.route(self.rule.entity_of(key)).0);
        let batch = &self.batches[shard];
        let is_full =
            batch.log_len() + value_len > BATCH_LEN_MAX || batch.len() >= BATCH_RECORD_COUNT_MAX;
        if is_full {
            self.write(shard)?;
        }
        Ok(shard)
    }

    fn write(&mut self, shard: usize) -> Result<()> {
        let batch = std::mem::replace(&mut self.batches[shard], self.dataset.batch());
        Ok(batch.commit_with(Durability::Os)?)
    }

    /// Hands everything to the operating system.
    ///
    /// # Errors
    /// The engine's.
    pub fn flush(&mut self) -> Result<()> {
        (0..self.batches.len()).try_for_each(|shard| self.write(shard))
    }

    /// Ends the stream. What was put has reached the level when this returns.
    ///
    /// # Errors
    /// The engine's.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        match self.level {
            Durability::Memory | Durability::Os => Ok(()),
            _ => Ok(self.dataset.sync()?),
        }
    }
}
