//! A pointer to a value that stands outside the table: in a log segment or in a value file.
//!
//! | Offset | Size | Field    | Meaning                                                        |
//! |-------:|-----:|----------|----------------------------------------------------------------|
//! |      0 |    1 | source   | 0 = log segment, 1 = value file. See [`PointerSource`].        |
//! |      1 |    1 | reserved | Zero. A reader rejects anything else.                          |
//! |      2 |    2 | shard    | Shard whose log or value file it is.                           |
//! |      4 |    4 | reserved | Zero. A reader rejects anything else.                          |
//! |      8 |    8 | file     | First sequence of the segment, or number of the file. Never 0. |
//! |     16 |    4 | offset   | Where the stored value begins in that file.                    |
//! |     20 |    4 | len      | Its stored length in bytes.                                    |
//! |     24 |    4 | crc      | CRC-32 of the stored bytes.                                    |

use strandline_wal::ShardId;

use super::damage::Damage;
use super::layout::Field;

/// Length of an encoded pointer. Part of the format.
pub const POINTER_LEN: usize = 28;

const SOURCE: Field = Field::first(1);
const RESERVED_1: Field = SOURCE.then(1);
const SHARD: Field = RESERVED_1.then(2);
const RESERVED_4: Field = SHARD.then(4);
const FILE: Field = RESERVED_4.then(8);
const OFFSET: Field = FILE.then(4);
const LEN: Field = OFFSET.then(4);
const CRC: Field = LEN.then(4);

const _: () = assert!(CRC.end() == POINTER_LEN);

/// The kind of file that a pointer leads to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum PointerSource {
    /// A segment of the log.
    Segment = 0,
    /// A file of values that were moved out of the log.
    ValueFile = 1,
}

impl PointerSource {
    pub(super) fn from_number(number: u8) -> Option<PointerSource> {
        match number {
            0 => Some(PointerSource::Segment),
            1 => Some(PointerSource::ValueFile),
            _ => None,
        }
    }
}

/// Where a value stands that is not in the table itself. Verifiable alone, by its checksum.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ValuePointer {
    /// The kind of file.
    pub source: PointerSource,
    /// The shard whose file it is.
    pub shard: ShardId,
    /// First sequence of the segment, or number of the value file. Never 0.
    pub file: u64,
    /// Where the stored value begins.
    pub offset: u32,
    /// Its stored length.
    pub len: u32,
    /// CRC-32 of the stored bytes.
    pub crc: u32,
}

impl ValuePointer {
    /// The bytes of the pointer.
    pub fn encode(&self) -> [u8; POINTER_LEN] {
        assert!(
            self.file != 0,
            "no segment and no value file has the number 0"
        );
        let mut bytes = [0; POINTER_LEN];
        SOURCE.put(&mut bytes, &[self.source as u8]);
        SHARD.put(&mut bytes, &self.shard.0.to_le_bytes());
        FILE.put(&mut bytes, &self.file.to_le_bytes());
        OFFSET.put(&mut bytes, &self.offset.to_le_bytes());
        LEN.put(&mut bytes, &self.len.to_le_bytes());
        CRC.put(&mut bytes, &self.crc.to_le_bytes());
        bytes
    }

    /// Reads a pointer, or `None` where the bytes are none.
    pub fn decode(bytes: &[u8]) -> Option<ValuePointer> {
        let bytes: &[u8; POINTER_LEN] = bytes.try_into().ok()?;
        let pointer = ValuePointer {
            source: PointerSource::from_number(SOURCE.u8(bytes))?,
            shard: ShardId(SHARD.u16(bytes)),
            file: FILE.u64(bytes),
            offset: OFFSET.u32(bytes),
            len: LEN.u32(bytes),
            crc: CRC.u32(bytes),
        };
        let is_ours = pointer.file != 0 && RESERVED_1.is_zero(bytes) && RESERVED_4.is_zero(bytes);
        is_ours.then_some(pointer)
    }

    /// As [`Self::decode`], for bytes that stand at `at` in a file.
    pub(super) fn decode_at(bytes: &[u8], at: u64) -> Result<ValuePointer, Damage> {
        ValuePointer::decode(bytes).ok_or_else(|| {
            Damage::new(
                at,
                "value pointer",
                "28 bytes of a pointer",
                super::layout::hex(bytes.get(..POINTER_LEN).unwrap_or(bytes)),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_byte_table_is_what_the_code_does() {
        super::super::layout::check_byte_table(
            include_str!("pointer.rs"),
            0,
            &[
                ("source", SOURCE),
                ("reserved", RESERVED_1),
                ("shard", SHARD),
                ("reserved", RESERVED_4),
                ("file", FILE),
                ("offset", OFFSET),
                ("len", LEN),
                ("crc", CRC),
            ],
        );
    }

    proptest! {
        #[test]
        fn a_pointer_comes_back_as_it_was(
            moved: bool, shard: u16, file in 1u64.., offset: u32, len: u32, crc: u32,
        ) {
            let source = if moved { PointerSource::ValueFile } else { PointerSource::Segment };
            let pointer =
                ValuePointer { source, shard: ShardId(shard), file, offset, len, crc };
            prop_assert_eq!(ValuePointer::decode(&pointer.encode()), Some(pointer));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes: [u8; POINTER_LEN]) {
            if let Some(pointer) = ValuePointer::decode(&bytes) {
                prop_assert_eq!(pointer.encode(), bytes);
            }
        }
    }

    #[test]
    fn foreign_bytes_are_no_pointer() {
        let good = ValuePointer {
            source: PointerSource::Segment,
            shard: ShardId(1),
            file: 7,
            offset: 0,
            len: 0,
            crc: 0,
        }
        .encode();
        assert!(ValuePointer::decode(&good).is_some());
        assert!(ValuePointer::decode(&good[..27]).is_none());
        assert!(ValuePointer::decode(&[0; 28]).is_none());
        for (at, byte) in [(0, 2), (1, 1), (4, 1), (7, 0x80), (8, 0)] {
            let mut bad = good;
            bad[at] = byte;
            assert!(ValuePointer::decode(&bad).is_none(), "byte {at}");
        }
    }
}
