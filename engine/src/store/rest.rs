//! What a dataset gives back once it was left alone and everything is in tables: space is held for what
//! comes soon alone.

use std::sync::atomic::Ordering;

use strandline_wal::ShardId;

use super::{Role, Store};
use crate::error::Result;
use crate::options::Durability;

/// A table at the bottom has this share of all tables, within limits: it is what a merge needs beside
/// them.
const PIECE_SHARE: u64 = 32;
/// The least length of a table at the bottom, in bytes, where the options allow it.
const PIECE_LEN_MIN: u64 = 1 << 20;

impl Store {
    /// Length at which a table at the bottom is full, in bytes, where all tables together have
    /// `tables_len`.
    pub(super) fn piece_len(&self, tables_len: u64) -> u64 {
        let len = (tables_len / PIECE_SHARE).max(PIECE_LEN_MIN);
        len.min(self.options().table_len_max)
    }

    /// Gives back what was held for writes to come: spare segments, and most of the growing one.
    pub(super) fn give_back(&self) -> Result<()> {
        match self.begin_small_segments() {
            // Who writes next meets the same disk, and is told.
            Err(error) if error.is_no_space() => {}
            begun => begun?,
        }
        {
            // Nobody else may come by for long.
            let _flushing = self.flushing.lock();
            self.drop_unneeded()?;
        }
        for log in &self.logs {
            self.shared.pool.clear_in(log.dir());
        }
        Ok(())
    }

    /// Has long growing segments whose batches are all in tables make way for short ones. A segment is
    /// dropped only once another one is durable behind it, and a log always goes on from a batch: so one
    /// is written that says again what a keyspace is called.
    fn begin_small_segments(&self) -> Result<()> {
        // Followers have the layout of their leader's log: nothing is added for the sake of its disk.
        let is_alone = !self.is_shipped.load(Ordering::Acquire);
        let keyspaces = self.catalog.list();
        let (Role::Leader, true, Some((number, name))) = (self.role, is_alone, keyspaces.first())
        else {
            return Ok(());
        };
        let flushed = self.manifest.lock().logs.clone();
        let timestamp = {
            let mut commit = self.commit.lock();
            self.check_writes()?;
            let before = commit.timestamp;
            for (shard, flushed) in flushed.iter().enumerate() {
                let writer = &mut commit.writers[shard];
                let done = flushed.position.seq.min(flushed.complete_seq);
                if writer.position().seq <= done && writer.begin_small()? {
                    let home = ShardId(shard as u16);
                    let payload = super::catalog::payload(home, *number, name);
                    self.write_locked(&mut commit, home, &payload)?;
                }
            }
            match commit.timestamp {
                timestamp if timestamp == before => return Ok(()),
                timestamp => timestamp,
            }
        };
        self.wait_local(timestamp, Durability::Disk)
    }
}
