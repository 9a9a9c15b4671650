//! A database that was loaded, flushed and compacted: what reads of a quiet one meet.

use strandline::{Database, Durability, Keyspace, Options};
use strandline_benches::{Values, keys};
use tempfile::TempDir;

pub const COUNT: usize = 100_000;
pub const VALUE_LEN: usize = 100;

pub struct Settled {
    pub map: Keyspace,
    /// In the order in which they were written.
    pub keys: Vec<[u8; 16]>,
    // Dropped after what uses it.
    _database: Database,
    _dir: TempDir,
}

impl Settled {
    pub fn load() -> strandline::Result<Settled> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let database = Options::default().open(dir.path())?;
        let map = database.keyspace("map")?;
        let (keys, values) = (keys(1, COUNT), Values::new(VALUE_LEN));
        for (n, key) in keys.iter().enumerate() {
            map.put_with(key, values.value(n, VALUE_LEN), Durability::Os)?;
        }
        database.flush()?;
        database.dataset("")?.compact()?;
        Ok(Settled {
            map,
            keys,
            _database: database,
            _dir: dir,
        })
    }
}
