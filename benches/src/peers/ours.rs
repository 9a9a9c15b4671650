//! Strandline as an entrant.

use std::ops::ControlFlow;
use std::path::Path;

use strandline::{Database, Dataset, Durability, Keyspace, Options};

use super::engine::{Engine, Entrant, Entry, LARGE_VALUE_LEN, Level, Reader, Result, Setup};

pub const ENTRANT: Entrant = Entrant {
    name: "strandline",
    settings: "Os | Disk (fdatasync, grouped); memtable 64 MiB; tables mapped; values >= 4 KiB apart; \
               one shard; no compression; settles when left alone (default); batches of at most \
               256 MiB, records with their headers",
    batch_len_max: 192 << 20,
    open: |dir, setup| Ok(Box::new(Ours::open(dir, setup)?)),
};

struct Ours {
    database: Database,
    dataset: Dataset,
    map: Keyspace,
    level: Durability,
}

impl Ours {
    fn open(dir: &Path, setup: &Setup) -> Result<Ours> {
        let level = match setup.level {
            Level::Os => Durability::Os,
            Level::Disk => Durability::Disk,
        };
        let options = Options {
            durability: level,
            memtable_len_max: setup.memtable_len as u64,
            cache_len_max: setup.cache_len as u64,
            large_value_len_min: LARGE_VALUE_LEN,
            ..Options::default()
        };
        let database = options.open(dir)?;
        Ok(Ours {
            dataset: database.dataset("")?,
            map: database.keyspace("map")?,
            database,
            level,
        })
    }
}

impl Engine for Ours {
    fn put_batch(&self, entries: &[Entry<'_>]) -> Result<()> {
        if let [(key, value)] = entries {
            return Ok(self.map.put_with(key, value, self.level)?);
        }
        let mut batch = self.dataset.batch();
        for (key, value) in entries {
            batch.put(&self.map, key, value)?;
        }
        Ok(batch.commit_with(self.level)?)
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        Ok(self.map.delete_with(key, self.level)?)
    }

    fn settle(&self) -> Result<()> {
        self.database.flush()?;
        Ok(self.dataset.compact()?)
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        Ok(Box::new(OurReader { map: &self.map }))
    }

    fn len(&self) -> Result<usize> {
        Ok(usize::try_from(self.map.len()?)?)
    }

    fn close(&self) -> Result<()> {
        Ok(self.database.close()?)
    }
}

struct OurReader<'a> {
    map: &'a Keyspace,
}

impl Reader for OurReader<'_> {
    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.map.show(key, see)?.is_some())
    }

    fn scan(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut seen = 0;
        self.map.visit(start.., |_, value| {
            see(value);
            seen += 1;
            match seen < count {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        Ok(seen)
    }

    fn scan_back(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut seen = 0;
        self.map.visit_rev(..=start, |_, value| {
            see(value);
            seen += 1;
            match seen < count {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        Ok(seen)
    }
}
