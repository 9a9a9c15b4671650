//! The bytes of a stored table of slots.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SDSL` |
//! | 4 | 4 | crc | CRC-32 (IEEE) of everything after it |
//! | 8 | 2 | version | 1 |
//! | 10 | 2 | shard_count | 1 to 256 |
//! | 12 | 2 | slot_count | 0 to [`SLOT_COUNT_MAX`] |
//! | 14 | 2 | reserved | 0 |
//! | 16 | 8 | saved_ms | when it was stored, in milliseconds since 1970 |
//! | 24 | list | slots | `slot_count` of the following; nothing behind |
//!
//! A slot:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 16 | node | |
//! | 16 | 16 | incarnation | |
//! | 32 | 16 | lineage | |
//! | 48 | 8 | created_ms | |
//! | 56 | 8 | seen_ms | |
//! | 64 | 8 | idle_ms | |
//! | 72 | 2 | flags | bit 0: it takes a bundle or catches up; others 0 |
//! | 74 | 2 | name_len | at most [`NAME_LEN_MAX`] |
//! | 76 | n | name | UTF-8 |
//! | 76+n | list | durable | 8 bytes for each shard |

use strandline_wal::bug::planted;

use super::{SLOT_COUNT_MAX, Slot};
use crate::error::{Error, Result};
use crate::ids::{Incarnation, Lineage, NodeId};

/// First bytes of a table.
pub const MAGIC: [u8; 4] = *b"SDSL";
/// The version that is written, and the only one that is read.
pub const VERSION: u16 = 1;
/// Length of a table without slots.
pub const FIXED_LEN: usize = 24;
/// Length of a slot without its name and its shards.
pub const SLOT_FIXED_LEN: usize = 76;
/// Longest name, in bytes; the rest of a longer one is not stored.
pub const NAME_LEN_MAX: usize = 512;
/// Most shards.
pub const SHARD_COUNT_MAX: usize = 256;
/// Longest table. Nothing longer is read.
pub const TABLE_LEN_MAX: usize =
    FIXED_LEN + SLOT_COUNT_MAX * (SLOT_FIXED_LEN + NAME_LEN_MAX + 8 * SHARD_COUNT_MAX);

const _: () = assert!(NAME_LEN_MAX <= u16::MAX as usize);
const _: () = assert!(SLOT_COUNT_MAX <= u16::MAX as usize);

/// A stored table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stored {
    /// Shards of the dataset.
    pub shard_count: usize,
    /// When it was stored, in milliseconds since 1970.
    pub saved_ms: u64,
    /// Its slots, by node.
    pub slots: Vec<Slot>,
}

/// The bytes of a table.
pub fn encode(stored: &Stored) -> Vec<u8> {
    assert!(stored.slots.len() <= SLOT_COUNT_MAX, "slots are bounded");
    assert!(
        (1..=SHARD_COUNT_MAX).contains(&stored.shard_count),
        "shards are bounded"
    );
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(stored.shard_count as u16).to_le_bytes());
    bytes.extend_from_slice(&(stored.slots.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&stored.saved_ms.to_le_bytes());
    for slot in &stored.slots {
        assert_eq!(slot.durable.len(), stored.shard_count, "one for each shard");
        bytes.extend_from_slice(&slot.node.0);
        bytes.extend_from_slice(&slot.incarnation.0);
        bytes.extend_from_slice(&slot.lineage.0);
        for number in [slot.created_ms, slot.seen_ms, slot.idle_ms] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&u16::from(slot.catching).to_le_bytes());
        let mut name_len = slot.name.len().min(NAME_LEN_MAX);
        while !slot.name.is_char_boundary(name_len) {
            name_len -= 1;
        }
        let name = &slot.name[..name_len];
        bytes.extend_from_slice(&(name.len() as u16).to_le_bytes());
        bytes.extend_from_slice(name.as_bytes());
        for durable in &slot.durable {
            bytes.extend_from_slice(&durable.to_le_bytes());
        }
    }
    let crc = crc32fast::hash(&bytes[8..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads a table, trusting none of its bytes.
///
/// # Errors
/// [`Error::Damaged`] for bytes that no writer makes.
pub fn decode(bytes: &[u8]) -> Result<Stored> {
    let (head, body) = bytes
        .split_first_chunk::<8>()
        .ok_or_else(|| damaged("length", "a table", format!("{} bytes", bytes.len())))?;
    if head[..4] != MAGIC {
        return Err(damaged("magic", "SDSL", format!("{:?}", &head[..4])));
    }
    let stored_crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let crc = crc32fast::hash(body);
    if crc != stored_crc && !planted("slots.checksum") {
        let expected = format!("{stored_crc:08x}");
        return Err(damaged("checksum", &expected, format!("{crc:08x}")));
    }
    let mut bytes = body;
    let body = "fields as the table of the module has them";
    let wrong = || damaged("table of slots", body, "others".to_owned());
    let stored = parse(&mut bytes).ok_or_else(wrong)?;
    match bytes.is_empty() {
        true => Ok(stored),
        false => Err(wrong()),
    }
}

fn parse(bytes: &mut &[u8]) -> Option<Stored> {
    let (version, shard_count) = (u16_of(bytes)?, usize::from(u16_of(bytes)?));
    let (slot_count, reserved) = (usize::from(u16_of(bytes)?), u16_of(bytes)?);
    let is_valid = version == VERSION
        && (1..=SHARD_COUNT_MAX).contains(&shard_count)
        && slot_count <= SLOT_COUNT_MAX
        && reserved == 0;
    if !is_valid {
        return None;
    }
    let saved_ms = u64_of(bytes)?;
    let mut slots: Vec<Slot> = Vec::new();
    for _ in 0..slot_count {
        let slot = slot_of(bytes, shard_count)?;
        // Each node once, in order.
        if slots.last().is_some_and(|last| last.node >= slot.node) {
            return None;
        }
        slots.push(slot);
    }
    Some(Stored {
        shard_count,
        saved_ms,
        slots,
    })
}

fn slot_of(bytes: &mut &[u8], shard_count: usize) -> Option<Slot> {
    let (node, incarnation) = (NodeId(take(bytes)?), Incarnation(take(bytes)?));
    let lineage = Lineage(take(bytes)?);
    let (created_ms, seen_ms, idle_ms) = (u64_of(bytes)?, u64_of(bytes)?, u64_of(bytes)?);
    let flags = u16_of(bytes)?;
    let name_len = usize::from(u16_of(bytes)?);
    if flags > 1 || name_len > NAME_LEN_MAX {
        return None;
    }
    let (name, rest) = bytes.split_at_checked(name_len)?;
    *bytes = rest;
    let name = std::str::from_utf8(name).ok()?.to_owned();
    let durable = (0..shard_count)
        .map(|_| u64_of(bytes))
        .collect::<Option<_>>()?;
    Some(Slot {
        node,
        incarnation,
        lineage,
        name,
        created_ms,
        seen_ms,
        idle_ms,
        catching: flags == 1,
        durable,
    })
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (field, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*field)
}

fn u16_of(bytes: &mut &[u8]) -> Option<u16> {
    Some(u16::from_le_bytes(take(bytes)?))
}

fn u64_of(bytes: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(bytes)?))
}

fn damaged(what: &'static str, expected: &str, found: String) -> Error {
    Error::Damaged {
        what,
        expected: expected.to_owned(),
        found,
    }
}
