//! LMDB as an entrant, through heed: a copy-on-write tree in a map, in C.
#![allow(unsafe_code)]

use std::ops::Bound;
use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, RoTxn, WithTls};

use super::engine::{Engine, Entrant, Entry, Level, Reader, Result};

/// Without a sync LMDB still hands every page to the system at the commit, so the death of the process
/// loses nothing; the death of the machine may then cost the whole file and not just its tail.
pub const ENTRANT: Entrant = Entrant {
    name: "lmdb",
    settings: "MDB_NOSYNC | synced; MDB_NORDAHEAD; map 64 GiB; page cache only; batches of any size",
    batch_len_max: usize::MAX,
    open: |dir, setup| Ok(Box::new(Lmdb::open(dir, setup.level, EnvFlags::empty())?)),
};

/// LMDB with writes through its map. They too are with the system after a commit, and small unsynced
/// ones cost a fraction; large values cost more, and a stray pointer of the program can break the file.
/// Neither mode is the better one for all rows, so that both take part.
pub const WITH_WRITE_MAP: Entrant = Entrant {
    name: "lmdb-writemap",
    settings: "as lmdb, with MDB_WRITEMAP",
    batch_len_max: usize::MAX,
    open: |dir, setup| Ok(Box::new(Lmdb::open(dir, setup.level, EnvFlags::WRITE_MAP)?)),
};

const MAP_LEN: usize = 64 << 30;

type Map = Database<'static, Bytes, Bytes>;

struct Lmdb {
    env: Env,
    map: Map,
}

impl Lmdb {
    fn open(dir: &Path, level: Level, mode: EnvFlags) -> Result<Lmdb> {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_LEN);
        // Reads are at random, and so is the order of pages in the file after random puts.
        let mut flags = mode | EnvFlags::NO_READ_AHEAD;
        if level == Level::Os {
            flags |= EnvFlags::NO_SYNC;
        }
        // SAFETY: a file that a crash of the machine broke is not opened again, and no other code of
        // this process knows where the map is.
        unsafe { options.flags(flags) };
        // SAFETY: the directory is this process's own, and it opens it once at a time.
        let env = unsafe { options.open(dir)? };
        let transaction = env.write_txn()?;
        let created: heed::Result<_> =
            env.create_databases_and_commit(transaction, |creator, transaction| {
                let map = creator.create_database(transaction, None)?;
                Ok(CommitOrAbort::<_, ()>::Commit(map))
            });
        let map = created?.unwrap_commit();
        Ok(Lmdb { env, map })
    }
}

impl Engine for Lmdb {
    fn put_batch(&self, entries: &[Entry<'_>]) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        for (key, value) in entries {
            self.map.put(&mut transaction, key, value)?;
        }
        Ok(transaction.commit()?)
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        let mut transaction = self.env.write_txn()?;
        self.map.delete(&mut transaction, key)?;
        Ok(transaction.commit()?)
    }

    /// A tree is settled always.
    fn settle(&self) -> Result<()> {
        Ok(self.env.force_sync()?)
    }

    fn collect(&self) -> Result<()> {
        Ok(())
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        Ok(Box::new(LmdbReader {
            env: &self.env,
            map: self.map,
            transaction: Some(self.env.read_txn()?),
        }))
    }

    fn len(&self) -> Result<usize> {
        let transaction = self.env.read_txn()?;
        Ok(usize::try_from(self.map.len(&transaction)?)?)
    }
}

struct LmdbReader<'a> {
    env: &'a Env,
    map: Map,
    /// Always there. A thread has one at a time, so that a new one begins behind the end of the old.
    transaction: Option<RoTxn<'a, WithTls>>,
}

impl LmdbReader<'_> {
    fn transaction(&self) -> Result<&RoTxn<'_, WithTls>> {
        Ok(self.transaction.as_ref().ok_or("a refresh failed")?)
    }
}

impl Reader for LmdbReader<'_> {
    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.map.get(self.transaction()?, key)?.map(see).is_some())
    }

    fn scan(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let bounds = (Bound::Included(start), Bound::Unbounded);
        let mut seen = 0;
        for entry in self.map.range(self.transaction()?, &bounds)?.take(count) {
            see(entry?.1);
            seen += 1;
        }
        Ok(seen)
    }

    fn scan_back(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let bounds = (Bound::Unbounded, Bound::Included(start));
        let mut seen = 0;
        for entry in self
            .map
            .rev_range(self.transaction()?, &bounds)?
            .take(count)
        {
            see(entry?.1);
            seen += 1;
        }
        Ok(seen)
    }

    fn refresh(&mut self) -> Result<()> {
        self.transaction = None;
        self.transaction = Some(self.env.read_txn()?);
        Ok(())
    }
}
