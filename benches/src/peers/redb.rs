//! redb as an entrant: a copy-on-write tree in Rust.

use std::path::Path;

use redb::{
    Database, Durability, ReadOnlyTable, ReadableDatabase, ReadableTableMetadata, TableDefinition,
};

use super::engine::{Engine, Entrant, Entry, Level, Reader, Result, Setup};

/// redb has no level between memory and disk: `Durability::None` keeps pages in the process, and a
/// process that dies loses all commits since the last `Immediate` one. Where others hand bytes to the
/// system it therefore promises less.
pub const ENTRANT: Entrant = Entrant {
    name: "redb",
    settings: "Durability::None (weaker than Os: lost with the process) | Immediate; cache 256 MiB; \
               batches of any size",
    batch_len_max: usize::MAX,
    open: |dir, setup| Ok(Box::new(Redb::open(dir, setup)?)),
};

const MAP: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("map");

struct Redb {
    database: Database,
    durability: Durability,
}

impl Redb {
    fn open(dir: &Path, setup: &Setup) -> Result<Redb> {
        let database = Database::builder()
            .set_cache_size(setup.cache_len)
            .create(dir.join("redb"))?;
        let transaction = database.begin_write()?;
        transaction.open_table(MAP)?;
        transaction.commit()?;
        let durability = match setup.level {
            Level::Os => Durability::None,
            Level::Disk => Durability::Immediate,
        };
        Ok(Redb {
            database,
            durability,
        })
    }
}

impl Engine for Redb {
    fn put_batch(&self, entries: &[Entry<'_>]) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(self.durability)?;
        let mut table = transaction.open_table(MAP)?;
        for (key, value) in entries {
            table.insert(key, value)?;
        }
        drop(table);
        Ok(transaction.commit()?)
    }

    fn remove(&self, key: &[u8]) -> Result<()> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(self.durability)?;
        transaction.open_table(MAP)?.remove(key)?;
        Ok(transaction.commit()?)
    }

    /// A tree is settled always; what is still in memory is written.
    fn settle(&self) -> Result<()> {
        self.hand_over()
    }

    fn collect(&self) -> Result<()> {
        Ok(())
    }

    fn hand_over(&self) -> Result<()> {
        Ok(self.database.begin_write()?.commit()?)
    }

    fn reader(&self) -> Result<Box<dyn Reader + '_>> {
        Ok(Box::new(RedbReader {
            database: &self.database,
            table: table(&self.database)?,
        }))
    }

    fn len(&self) -> Result<usize> {
        Ok(usize::try_from(table(&self.database)?.len()?)?)
    }
}

type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

fn table(database: &Database) -> Result<Table> {
    Ok(database.begin_read()?.open_table(MAP)?)
}

struct RedbReader<'a> {
    database: &'a Database,
    table: Table,
}

impl Reader for RedbReader<'_> {
    fn get(&self, key: &[u8], see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let value = self.table.get(key)?;
        Ok(value.map(|value| see(value.value())).is_some())
    }

    fn scan(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut seen = 0;
        for entry in self.table.range(start..)?.take(count) {
            see(entry?.1.value());
            seen += 1;
        }
        Ok(seen)
    }

    fn scan_back(&self, start: &[u8], count: usize, see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut seen = 0;
        for entry in self.table.range(..=start)?.rev().take(count) {
            see(entry?.1.value());
            seen += 1;
        }
        Ok(seen)
    }

    fn refresh(&mut self) -> Result<()> {
        self.table = table(self.database)?;
        Ok(())
    }
}
