//! Rows of a dataset four times as large as the memory that the process may use.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::blocks::{load_blocks, read_any, scan_any, verify_blocks};
use super::engine::{Entrant, Level, Result, Setup};
use super::rows::Size;
use super::work::{Key, VALUE_LEN, rate};

/// Below this the program itself is too much of it.
const MEMORY_LEN_MIN: usize = 64 << 20;

fn memory_len(size: &Size) -> usize {
    size.count * (size_of::<Key>() + VALUE_LEN) / 4
}

/// A control group with a limit of memory, removed when it is dropped.
pub struct Limit {
    pub dir: PathBuf,
}

impl Limit {
    /// Makes a group below `parent`, or tells why there is none.
    pub fn new(parent: &Path, size: &Size) -> std::result::Result<Limit, String> {
        let memory_len = memory_len(size);
        if memory_len < MEMORY_LEN_MIN {
            let least = 4 * MEMORY_LEN_MIN / (size_of::<Key>() + VALUE_LEN);
            return Err(format!("they need --n of {least} at least"));
        }
        let dir = parent.join(format!("strandline-peers-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let limit = Limit { dir };
        set(&limit.dir, "memory.max", memory_len).map_err(|error| error.to_string())?;
        // Without swap there is no such file.
        if limit.dir.join("memory.swap.max").exists() {
            set(&limit.dir, "memory.swap.max", 0).map_err(|error| error.to_string())?;
        }
        Ok(limit)
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.dir) {
            eprintln!("{} is left: {error}", self.dir.display());
        }
    }
}

/// Brings this process into the group.
pub fn enter(dir: &Path) -> Result<()> {
    set(dir, "cgroup.procs", 0)
}

/// Writes to a file of a control group, all of which are there from the start.
fn set(dir: &Path, name: &str, value: usize) -> Result<()> {
    let path = dir.join(name);
    let failed = |error| format!("{}: {error}", path.display());
    let mut file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
    Ok(write!(file, "{value}").map_err(failed)?)
}

/// A process of its own, within the limit.
pub fn larger_than_memory(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let setup = Setup::within(Level::Os, memory_len(size));
    let engine = (entrant.open)(dir, &setup)?;
    let engine = engine.as_ref();
    let count = size.count;
    let load = rate(count, || load_blocks(engine, count, 0))?;
    engine.settle()?;
    let reads = size.cold_reads();
    let get = rate(reads, || read_any(engine, count, reads))?;
    let scan = rate(reads / 10, || scan_any(engine, count, reads / 10, 100))?;
    verify_blocks(engine, count, 0)?;
    engine.close()?;
    Ok(vec![load, get, scan])
}
