//! The bytes of a coordinator's record, the same in every engine.
//!
//! The nonce is of the one who wrote them: whoever did not hear whether a change was made knows its own
//! bytes again by it.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SLCR` |
//! | 4 | 4 | crc | CRC-32 (IEEE) of everything after it |
//! | 8 | 2 | version | 1 |
//! | 10 | 2 | member_count | 1 to [`MEMBER_COUNT_MAX`] |
//! | 12 | 2 | leader | which of the members may lead, from 0 |
//! | 14 | 2 | reserved | 0 |
//! | 16 | 4 | epoch | from 1 |
//! | 20 | 4 | min_in_sync | |
//! | 24 | 16 | nonce | random, of one attempt to write |
//! | 40 | 16 | lineage | |
//! | 56 | list | members | node (16) and incarnation (16), `member_count` times; nothing behind |
//!
//! A boundary, which only object stores have:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SLCB` |
//! | 4 | 4 | crc | CRC-32 (IEEE) of everything after it |
//! | 8 | 2 | version | 1 |
//! | 10 | 6 | reserved | 0 |
//! | 16 | 8 | first | the first state that stays, from 1; nothing behind |

use strandline_wal::Epoch;
use strandline_wal::bug::planted;

use super::Record;
use crate::error::{Error, Result};
use crate::ids::{Incarnation, Lineage, NodeId};
use crate::quorum::MEMBER_COUNT_MAX;

/// First bytes of every record.
pub const MAGIC: [u8; 4] = *b"SLCR";
/// The version that is written, and the only one that is read.
pub const VERSION: u16 = 1;
/// Length of a record without its members.
pub const FIXED_LEN: usize = at::MEMBERS;
/// Length of a member.
pub const MEMBER_LEN: usize = 32;
/// Longest record. Nothing longer is read.
pub const RECORD_LEN_MAX: usize = FIXED_LEN + MEMBER_COUNT_MAX * MEMBER_LEN;

const _: () = assert!(MEMBER_COUNT_MAX <= u16::MAX as usize);

/// First bytes of every boundary.
pub const BOUNDARY_MAGIC: [u8; 4] = *b"SLCB";
/// Length of a boundary.
pub const BOUNDARY_LEN: usize = 24;

/// Random, of one attempt to write: no two attempts have the same one.
pub type Nonce = [u8; 16];

mod at {
    pub const CRC: usize = 4;
    pub const VERSION: usize = 8;
    pub const MEMBER_COUNT: usize = 10;
    pub const LEADER: usize = 12;
    pub const RESERVED: usize = 14;
    pub const EPOCH: usize = 16;
    pub const MIN_IN_SYNC: usize = 20;
    pub const NONCE: usize = 24;
    pub const LINEAGE: usize = 40;
    pub const MEMBERS: usize = 56;
    /// Of a boundary.
    pub const FIRST: usize = 16;
}

/// The bytes of a record.
///
/// # Errors
/// [`Error::BadRecord`] for one that cannot be.
pub fn encode(nonce: &Nonce, record: &Record) -> Result<Vec<u8>> {
    record.check()?;
    let leader = record.members.iter().position(|m| *m == record.leader);
    let leader = leader.expect("a record that passed its check names its leader");
    let mut bytes = vec![0; at::MEMBERS];
    bytes[..at::CRC].copy_from_slice(&MAGIC);
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(at::VERSION, &VERSION.to_le_bytes());
    let count = record.members.len() as u16;
    put(at::MEMBER_COUNT, &count.to_le_bytes());
    put(at::LEADER, &(leader as u16).to_le_bytes());
    put(at::EPOCH, &record.epoch.0.to_le_bytes());
    put(at::MIN_IN_SYNC, &record.min_in_sync.to_le_bytes());
    put(at::NONCE, nonce);
    put(at::LINEAGE, &record.lineage.0);
    for (node, incarnation) in &record.members {
        bytes.extend_from_slice(&node.0);
        bytes.extend_from_slice(&incarnation.0);
    }
    let crc = crc32fast::hash(&bytes[at::VERSION..]);
    bytes[at::CRC..at::VERSION].copy_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// The record of foreign bytes, and the nonce of who wrote them.
///
/// # Errors
/// [`Error::BadRecord`] with what was expected and found.
pub fn decode(bytes: &[u8]) -> Result<(Nonce, Record)> {
    let Some((fixed, members)) = bytes.split_first_chunk::<FIXED_LEN>() else {
        return Err(bad("its length", FIXED_LEN, bytes.len()));
    };
    if fixed[..at::CRC] != MAGIC {
        return Err(bad("its magic", hex(&MAGIC), hex(&fixed[..at::CRC])));
    }
    if bytes.len() > RECORD_LEN_MAX {
        return Err(bad("its longest length", RECORD_LEN_MAX, bytes.len()));
    }
    let crc = crc32fast::hash(&bytes[at::VERSION..]);
    let found = u32_at(fixed, at::CRC);
    if crc != found && !planted("coordinator.crc") {
        return Err(bad(
            "its checksum",
            format!("{crc:#x}"),
            format!("{found:#x}"),
        ));
    }
    let version = u16_at(fixed, at::VERSION);
    if version != VERSION {
        return Err(bad("its version", VERSION, version));
    }
    let reserved = u16_at(fixed, at::RESERVED);
    if reserved != 0 {
        return Err(bad("its reserved bytes", 0, reserved));
    }
    let count = usize::from(u16_at(fixed, at::MEMBER_COUNT));
    if members.len() != count * MEMBER_LEN {
        return Err(bad(
            "the length of its members",
            count * MEMBER_LEN,
            members.len(),
        ));
    }
    let (members, _) = members.as_chunks::<MEMBER_LEN>();
    let members: Vec<_> = members
        .iter()
        .map(|member| (NodeId(id_at(member, 0)), Incarnation(id_at(member, 16))))
        .collect();
    let leader = u16_at(fixed, at::LEADER);
    let Some(leader) = members.get(usize::from(leader)).copied() else {
        return Err(bad("its leader", format!("below {count}"), leader));
    };
    let record = Record {
        lineage: Lineage(id_at(fixed, at::LINEAGE)),
        epoch: Epoch(u32_at(fixed, at::EPOCH)),
        leader,
        members,
        min_in_sync: u32_at(fixed, at::MIN_IN_SYNC),
    };
    if !planted("coordinator.decoded") {
        record.check()?;
    }
    Ok((id_at(fixed, at::NONCE), record))
}

/// The bytes of a boundary.
pub fn encode_boundary(first: u64) -> Vec<u8> {
    let mut bytes = [0; BOUNDARY_LEN];
    bytes[..at::CRC].copy_from_slice(&BOUNDARY_MAGIC);
    bytes[at::VERSION..at::VERSION + 2].copy_from_slice(&VERSION.to_le_bytes());
    bytes[at::FIRST..].copy_from_slice(&first.to_le_bytes());
    let crc = crc32fast::hash(&bytes[at::VERSION..]);
    bytes[at::CRC..at::VERSION].copy_from_slice(&crc.to_le_bytes());
    bytes.to_vec()
}

/// The first state that stays, of foreign bytes.
///
/// # Errors
/// [`Error::BadRecord`].
pub fn decode_boundary(bytes: &[u8]) -> Result<u64> {
    let Some((fixed, [])) = bytes.split_first_chunk::<BOUNDARY_LEN>() else {
        return Err(bad("a boundary's length", BOUNDARY_LEN, bytes.len()));
    };
    let first = u64::from_le_bytes(std::array::from_fn(|n| fixed[at::FIRST + n]));
    // There is one way to write a number.
    if encode_boundary(first) != bytes && !planted("coordinator.boundary") || first == 0 {
        return Err(bad("a boundary", hex(&encode_boundary(first)), hex(bytes)));
    }
    Ok(first)
}

fn bad(field: &str, expected: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::BadRecord {
        what: format!("{field}: expected {expected}, found {found}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// Offsets are constants below the length of the array, so that no bytes can make these panic.

fn u16_at<const LEN: usize>(bytes: &[u8; LEN], at: usize) -> u16 {
    u16::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}

fn u32_at<const LEN: usize>(bytes: &[u8; LEN], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| bytes[at + n]))
}

fn id_at<const LEN: usize>(bytes: &[u8; LEN], at: usize) -> [u8; 16] {
    std::array::from_fn(|n| bytes[at + n])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(count: u8) -> Record {
        let member = |n| (NodeId([n; 16]), Incarnation([n + 100; 16]));
        Record {
            lineage: Lineage([0xaa; 16]),
            epoch: Epoch(0x0102_0304),
            leader: member(count - 1),
            members: (0..count).map(member).collect(),
            min_in_sync: 1,
        }
    }

    fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
        let crc = crc32fast::hash(&bytes[at::VERSION..]);
        bytes[at::CRC..at::VERSION].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn the_byte_table_is_the_constants() {
        let mut tables: Vec<Vec<(usize, Option<usize>, &str)>> = Vec::new();
        for line in include_str!("codec.rs").lines() {
            let Some(line) = line.strip_prefix("//! | ") else {
                continue;
            };
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            match cells[0].parse() {
                Ok(at) => {
                    let row = (at, cells[1].parse().ok(), cells[2]);
                    tables.last_mut().unwrap().push(row);
                }
                Err(_) => tables.push(Vec::new()),
            }
        }
        let record = [
            ("magic", 0),
            ("crc", at::CRC),
            ("version", at::VERSION),
            ("member_count", at::MEMBER_COUNT),
            ("leader", at::LEADER),
            ("reserved", at::RESERVED),
            ("epoch", at::EPOCH),
            ("min_in_sync", at::MIN_IN_SYNC),
            ("nonce", at::NONCE),
            ("lineage", at::LINEAGE),
            ("members", at::MEMBERS),
        ];
        let boundary = [
            ("magic", 0),
            ("crc", at::CRC),
            ("version", at::VERSION),
            ("reserved", at::VERSION + 2),
            ("first", at::FIRST),
        ];
        let lens = [FIXED_LEN, BOUNDARY_LEN];
        assert_eq!(tables.len(), 2);
        for ((rows, constants), len) in tables.iter().zip([&record[..], &boundary]).zip(lens) {
            let names: Vec<_> = rows.iter().map(|(at, _, name)| (*name, *at)).collect();
            assert_eq!(names, constants);
            let mut end = 0;
            for (at, len, name) in rows {
                assert_eq!(*at, end, "{name} leaves a gap");
                end = at + len.unwrap_or(0);
            }
            assert_eq!(end, len);
        }
    }

    /// Byte for byte, by hand: what other releases write.
    #[test]
    fn a_golden_record_does_not_change() {
        let bytes = encode(&[0xee; 16], &record(2)).unwrap();
        let fields = [
            "01000200",
            "01000000",
            "04030201",
            "01000000",
            &"ee".repeat(16),
            &"aa".repeat(16),
            &"00".repeat(16),
            &"64".repeat(16),
            &"01".repeat(16),
            &"65".repeat(16),
        ];
        assert_eq!(hex(&bytes[..4]), "534c4352");
        assert_eq!(hex(&bytes[4..8]), "7d56115e");
        assert_eq!(hex(&bytes[8..]), fields.concat());
        assert_eq!(decode(&bytes).unwrap(), ([0xee; 16], record(2)));
    }

    #[test]
    fn every_flip_and_every_cut_of_a_record_is_told() {
        for count in [1, 3, MEMBER_COUNT_MAX as u8] {
            let bytes = encode(&[7; 16], &record(count)).unwrap();
            assert_eq!(decode(&bytes).unwrap(), ([7; 16], record(count)));
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(&flipped).is_err(), "bit {bit}");
            }
            for len in 0..bytes.len() {
                assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
                assert!(decode(&with_crc_of(&bytes[..len])).is_err(), "{len} bytes");
            }
        }
    }

    #[test]
    fn every_flip_and_every_cut_of_a_boundary_is_told() {
        let bytes = encode_boundary(0x0102_0304);
        assert_eq!(hex(&bytes[8..]), "01000000000000000403020100000000");
        assert_eq!(decode_boundary(&bytes).unwrap(), 0x0102_0304);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_boundary(&flipped).is_err(), "bit {bit}");
            assert!(decode_boundary(&bytes[..bit / 8]).is_err());
        }
        assert!(decode_boundary(&encode_boundary(0)).is_err());
        assert!(decode_boundary(&[&bytes[..], &[0]].concat()).is_err());
    }

    fn with_crc_of(bytes: &[u8]) -> Vec<u8> {
        match bytes.len() {
            0..at::VERSION => bytes.to_vec(),
            _ => with_crc(bytes.to_vec()),
        }
    }

    #[test]
    fn records_that_no_writer_makes_are_refused() {
        let bytes = encode(&[7; 16], &record(3)).unwrap();
        let changed = |at: usize, field: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + field.len()].copy_from_slice(field);
            decode(&with_crc(bytes)).map(drop)
        };
        let wrong: [(usize, &[u8], &str); 7] = [
            (0, b"SLCX", "its magic"),
            (at::VERSION, &[2, 0], "its version: expected 1, found 2"),
            (at::RESERVED, &[0, 1], "its reserved bytes"),
            (at::MEMBER_COUNT, &[4, 0], "the length of its members"),
            (at::LEADER, &[3, 0], "its leader: expected below 3, found 3"),
            (at::EPOCH, &[0; 4], "its epoch is 0"),
            (at::MEMBERS, &[1; 16], "names a node twice"),
        ];
        for (at, field, words) in wrong {
            let text = changed(at, field).unwrap_err().to_string();
            assert!(text.contains(words), "{words:?} is not in {text:?}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode(&with_crc(longer)).is_err(), "a byte behind the end");
        let none = Record {
            members: Vec::new(),
            ..record(1)
        };
        assert!(encode(&[0; 16], &none).is_err(), "nor is one written");
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic_and_what_is_read_is_written_again(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            is_mended: bool,
        ) {
            if is_mended && bytes.len() >= FIXED_LEN {
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[at::VERSION..at::MEMBER_COUNT].copy_from_slice(&VERSION.to_le_bytes());
                bytes[at::MEMBER_COUNT..at::LEADER].copy_from_slice(&[1, 0]);
                bytes[at::LEADER..at::EPOCH].copy_from_slice(&[0; 4]);
                bytes.resize(FIXED_LEN + MEMBER_LEN, 1);
                bytes = with_crc(bytes);
            }
            let found = decode(&bytes);
            prop_assert!(found.is_ok() || !is_mended || bytes.len() < FIXED_LEN
                || bytes[at::EPOCH..at::MIN_IN_SYNC] == [0; 4]);
            if let Ok((nonce, record)) = found {
                prop_assert_eq!(encode(&nonce, &record).unwrap(), bytes);
            }
        }
    }
}
