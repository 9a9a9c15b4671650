//! A small record that is replaced in place and survives any crash: two slots, the newer one wins.
//!
//! The file is two slots of equal length. A write goes to the slot that does not hold the current
//! generation, so a torn write harms only what was already superseded.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | given by the owner |
//! | 4 | 4 | payload_len | |
//! | 8 | 8 | generation | from 1; the slot is `generation % 2` |
//! | 16 | n | payload | the owner's; then zeros to the end of the slot |
//! | end-4 | 4 | crc | CRC-32 (IEEE) of all other bytes of the slot |

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bug::planted;
use crate::bytes::{put, u32_at, u64_at};
use crate::error::{Error, IoContext, Result};
use crate::io::{Access, Disk, File, read_exact_at, write_all_at};
use crate::unless;

const HEADER_LEN: usize = 16;
const CRC_LEN: usize = 4;

/// An open two-slot file.
pub struct SlotFile {
    path: PathBuf,
    file: Arc<dyn File>,
    magic: [u8; 4],
    slot_len: usize,
    generation: u64,
}

/// What a two-slot file held when it was opened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Loaded {
    /// The newer intact payload; `None` where the file is new.
    pub payload: Option<Vec<u8>>,
    /// Byte offset of the other slot, which should hold the generation before, where it is damaged.
    pub damaged_at: Option<u64>,
}

impl SlotFile {
    /// Opens the file, or creates it with two empty slots and syncs file and directory.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where both slots are damaged: the file is never taken for empty.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        magic: [u8; 4],
        slot_len: usize,
    ) -> Result<(SlotFile, Loaded)> {
        assert!(
            slot_len.is_multiple_of(crate::io::SECTOR_LEN),
            "a slot is whole sectors"
        );
        match disk.open(path, Access::Write) {
            Ok(file) => {
                let loaded = load(file.as_ref(), path, magic, slot_len)?;
                let (generation, loaded) = loaded;
                let path = path.to_owned();
                Ok((
                    SlotFile {
                        path,
                        file,
                        magic,
                        slot_len,
                        generation,
                    },
                    loaded,
                ))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // Born complete: a crash leaves no file or two empty slots, never half of one.
                let empty = slot(magic, slot_len, 0, &[]);
                crate::io::replace_file(disk, path, &[empty.clone(), empty].concat())
                    .during("create", path)?;
                let file = disk.open(path, Access::Write).during("open", path)?;
                let path = path.to_owned();
                let slots = SlotFile {
                    path,
                    file,
                    magic,
                    slot_len,
                    generation: 0,
                };
                Ok((
                    slots,
                    Loaded {
                        payload: None,
                        damaged_at: None,
                    },
                ))
            }
            Err(e) => Err(e).during("open", path),
        }
    }

    /// Reads the current payload without opening for writing; `None` where the file is absent or
    /// was never written.
    ///
    /// # Errors
    /// As [`SlotFile::open`].
    pub fn read(
        disk: &dyn Disk,
        path: &Path,
        magic: [u8; 4],
        slot_len: usize,
    ) -> Result<Option<Loaded>> {
        match disk.open(path, Access::Read) {
            Ok(file) => Ok(Some(load(file.as_ref(), path, magic, slot_len)?.1)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).during("open", path),
        }
    }

    /// Longest payload.
    pub fn payload_len_max(&self) -> usize {
        self.slot_len - HEADER_LEN - CRC_LEN
    }

    /// Writes the next generation; with `sync` it is durable on return.
    ///
    /// # Errors
    /// The disk's. The generation before is still intact then.
    pub fn write(&mut self, payload: &[u8], sync: bool) -> Result<()> {
        assert!(
            payload.len() <= self.payload_len_max(),
            "the payload fits the slot"
        );
        let generation = self.generation + 1;
        let bytes = slot(self.magic, self.slot_len, generation, payload);
        let place = generation + u64::from(planted("slots.place"));
        let at = (place % 2) * self.slot_len as u64;
        write_all_at(self.file.as_ref(), &bytes, at).during("write", &self.path)?;
        if sync {
            unless!("slots.sync", self.file.sync()).during("sync", &self.path)?;
        }
        self.generation = generation;
        Ok(())
    }
}

fn slot(magic: [u8; 4], slot_len: usize, generation: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; slot_len];
    put(&mut bytes, 0, &magic);
    put(&mut bytes, 4, &(payload.len() as u32).to_le_bytes());
    put(&mut bytes, 8, &generation.to_le_bytes());
    put(&mut bytes, HEADER_LEN, payload);
    let crc = crc32fast::hash(&bytes[..slot_len - CRC_LEN]);
    put(&mut bytes, slot_len - CRC_LEN, &crc.to_le_bytes());
    bytes
}

fn load(file: &dyn File, path: &Path, magic: [u8; 4], slot_len: usize) -> Result<(u64, Loaded)> {
    let len = file.len().during("stat", path)?;
    if len != 2 * slot_len as u64 {
        let expected = format!("{} bytes", 2 * slot_len);
        return Err(Error::corrupt(
            path,
            0,
            "length",
            expected,
            format!("{len} bytes"),
        ));
    }
    let mut slots = [None, None];
    for (n, slot) in slots.iter_mut().enumerate() {
        let mut bytes = vec![0; slot_len];
        read_exact_at(file, &mut bytes, (n * slot_len) as u64).during("read", path)?;
        *slot = parse(&bytes, magic, n as u64);
    }
    let [a, b] = slots;
    let damaged = [&a, &b].iter().position(|slot| slot.is_none());
    let damaged_at = damaged.map(|n| (n * slot_len) as u64);
    match a.max(b) {
        None => Err(Error::corrupt(
            path,
            0,
            "both slots",
            "one intact",
            "neither",
        )),
        Some((generation, payload)) => {
            let payload = (generation > 0).then_some(payload);
            Ok((
                generation,
                Loaded {
                    payload,
                    damaged_at,
                },
            ))
        }
    }
}

fn parse(bytes: &[u8], magic: [u8; 4], slot: u64) -> Option<(u64, Vec<u8>)> {
    let end = bytes.len() - CRC_LEN;
    let generation = u64_at(bytes, 8);
    let payload_len = u32_at(bytes, 4) as usize;
    let intact = bytes[..4] == magic
        && (crc32fast::hash(&bytes[..end]) == u32_at(bytes, end) || planted("slots.crc"))
        // Generation 0 fills both slots at creation; later ones know their place.
        && (generation == 0 || generation % 2 == slot)
        // The last one has no next: no writer comes that far, whoever forged the checksum.
        && generation < u64::MAX;
    let payload = bytes[HEADER_LEN..end].get(..payload_len)?;
    intact.then(|| (generation, payload.to_vec()))
}

#[cfg(test)]
mod tests;
