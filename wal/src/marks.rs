//! The durable marks of a dataset's logs: what is known synced, kept beside the logs.
//!
//! Two slots ([`crate::slots`]) in a file named `durable`. Rewritten after a sync, at most every
//! 100 ms, and at close; it need not be synced itself, because an older mark only proves less.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 2 | count | number of entries that follow |
//! | 2 | 2 | shard | first entry: which log |
//! | 4 | 4 | reserved | 0 |
//! | 8 | 8 | seq | first entry: highest sequence known synced |
//!
//! Entries after the first repeat (shard, reserved, seq), 14 bytes each.

use std::path::Path;

use crate::bytes::{u16_at, u64_at};
use crate::error::{Error, Result};
use crate::ids::ShardId;
use crate::io::Disk;
use crate::slots::SlotFile;

/// Name of the file in a dataset's region directory.
pub const FILE_NAME: &str = "durable";
/// Least time between two rewrites, in nanoseconds.
pub const INTERVAL_NS: u64 = 100_000_000;

/// First bytes of each slot.
pub const MAGIC: [u8; 4] = *b"SDLD";
/// Bytes of each of the two slots.
pub const SLOT_LEN: usize = 4096;
const ENTRY_LEN: usize = 14;
/// Most shards that one dataset can have marks for.
pub const SHARD_COUNT_MAX: usize = 256;

const _: () = assert!(2 + SHARD_COUNT_MAX * ENTRY_LEN + 20 <= SLOT_LEN);

/// A shard and the highest sequence of its log that is known synced.
pub type Mark = (ShardId, u64);

/// The open file.
pub struct Marks {
    slots: SlotFile,
}

impl Marks {
    /// Opens or creates the file and returns the marks in it. Where both slots are damaged, the file
    /// is made anew: marks only ever add proof, and the damage is told in the second value.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(disk: &dyn Disk, dir: &Path) -> Result<(Marks, Vec<Mark>, bool)> {
        let path = dir.join(FILE_NAME);
        let (slots, loaded, damaged) = match SlotFile::open(disk, &path, MAGIC, SLOT_LEN) {
            Ok((slots, loaded)) => (slots, loaded.payload, false),
            Err(Error::Corrupt { .. }) => {
                crate::error::IoContext::during(disk.remove(&path), "remove", &path)?;
                let (slots, loaded) = SlotFile::open(disk, &path, MAGIC, SLOT_LEN)?;
                (slots, loaded.payload, true)
            }
            Err(error) => return Err(error),
        };
        let marks = loaded.map_or(Ok(Vec::new()), |payload| decode(&payload, &path))?;
        Ok((Marks { slots }, marks, damaged))
    }

    /// Reads the marks without touching the file.
    ///
    /// # Errors
    /// The disk's.
    pub fn read(disk: &dyn Disk, dir: &Path) -> Result<Vec<Mark>> {
        Ok(Marks::inspect(disk, dir)?.0)
    }

    /// As [`Marks::read`]; `true` where the file is absent or a slot of it is damaged, so that there
    /// may have been higher marks.
    ///
    /// # Errors
    /// The disk's.
    pub fn inspect(disk: &dyn Disk, dir: &Path) -> Result<(Vec<Mark>, bool)> {
        let path = dir.join(FILE_NAME);
        match SlotFile::read(disk, &path, MAGIC, SLOT_LEN) {
            Ok(Some(loaded)) => {
                let marks = loaded.payload.map(|payload| decode(&payload, &path));
                let is_damaged = loaded.damaged_at.is_some();
                Ok((marks.transpose()?.unwrap_or_default(), is_damaged))
            }
            Ok(None) | Err(Error::Corrupt { .. }) => Ok((Vec::new(), true)),
            Err(error) => Err(error),
        }
    }

    /// Rewrites the marks; with `sync` they are durable on return.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&mut self, marks: &[Mark], sync: bool) -> Result<()> {
        assert!(
            marks.len() <= SHARD_COUNT_MAX,
            "a dataset has at most 256 shards"
        );
        let mut payload = (marks.len() as u16).to_le_bytes().to_vec();
        for (shard, seq) in marks {
            payload.extend_from_slice(&shard.0.to_le_bytes());
            payload.extend_from_slice(&[0; 4]);
            payload.extend_from_slice(&seq.to_le_bytes());
        }
        self.slots.write(&payload, sync)
    }
}

fn decode(payload: &[u8], path: &Path) -> Result<Vec<Mark>> {
    let count = payload
        .first_chunk()
        .map_or(0, |c| usize::from(u16::from_le_bytes(*c)));
    let entries = payload.get(2..).unwrap_or_default();
    if entries.len() != count * ENTRY_LEN {
        let expected = format!("{count} entries");
        return Err(Error::corrupt(
            path,
            16,
            "marks",
            expected,
            format!("{} bytes", entries.len()),
        ));
    }
    Ok(entries
        .chunks(ENTRY_LEN)
        .map(|e| (ShardId(u16_at(e, 0)), u64_at(e, 6)))
        .collect())
}

#[cfg(test)]
mod tests;
