//! The directory: which sections a table has, where they stand, and what a reader must understand.
//!
//! The directory is a sequence of entries of 32 bytes, one per section, in the order of the file:
//!
//! | Offset | Size | Field    | Meaning                                                     |
//! |-------:|-----:|----------|-------------------------------------------------------------|
//! |      0 |    4 | type     | See the constants below. Never 0.                           |
//! |      4 |    4 | flags    | Bit 0: a reader must understand it. Others are reserved.    |
//! |      8 |    8 | offset   | Where it begins in the file: a multiple of 64.              |
//! |     16 |    8 | len      | Its length in bytes.                                        |
//! |     24 |    4 | crc      | CRC-32 of its bytes.                                        |
//! |     28 |    4 | reserved | Zero. A reader rejects anything else.                       |
//!
//! | Type | Section     | Home of its layout | Must be understood |
//! |-----:|-------------|--------------------|--------------------|
//! |    1 | chunks      | `chunks`           | yes                |
//! |    2 | fences      | `fences`           | yes                |
//! |    3 | properties  | `properties`       | yes                |
//! |    4 | point index | `point_index`      | no                 |
//!
//! Sections follow the last chunk and each other on the next multiple of 64, the directory follows
//! the last section likewise, and what lies between is zero.

use super::damage::Damage;
use super::layout::{Field, hex};

/// Length of one entry. Part of the format.
pub(super) const ENTRY_LEN: usize = 32;

/// Sections and the directory begin on multiples of this, so that a bucket of the point index is one
/// cache line.
pub(super) const ALIGN_LEN: u64 = 64;

/// Most sections that a table may have.
pub(super) const SECTION_COUNT_MAX: usize = 64;

pub(super) const CHUNKS: u32 = 1;
pub(super) const FENCES: u32 = 2;
pub(super) const PROPERTIES: u32 = 3;
pub(super) const POINT_INDEX: u32 = 4;

const MUST_UNDERSTAND: u32 = 1;

const TYPE: Field = Field::first(4);
const FLAGS: Field = TYPE.then(4);
const OFFSET: Field = FLAGS.then(8);
const LEN: Field = OFFSET.then(8);
const CRC: Field = LEN.then(4);
const RESERVED: Field = CRC.then(4);

const _: () = assert!(RESERVED.end() == ENTRY_LEN);
const _: () = assert!(SECTION_COUNT_MAX * ENTRY_LEN <= u32::MAX as usize);

/// One section of a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Section {
    pub kind: u32,
    pub flags: u32,
    pub at: u64,
    pub len: u64,
    pub crc: u32,
}

impl Section {
    /// A section of a known type, with the flags of that type.
    pub fn of(kind: u32, at: u64, bytes: &[u8]) -> Section {
        let flags = if kind == POINT_INDEX {
            0
        } else {
            MUST_UNDERSTAND
        };
        Section {
            kind,
            flags,
            at,
            len: bytes.len() as u64,
            crc: crc32fast::hash(bytes),
        }
    }

    /// Whether this build knows what is in it.
    pub fn is_known(&self) -> bool {
        matches!(self.kind, CHUNKS | FENCES | PROPERTIES | POINT_INDEX)
    }

    /// Where it ends. Sections that were decoded end within the file.
    pub fn end(&self) -> u64 {
        self.at + self.len
    }

    fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut bytes = [0; ENTRY_LEN];
        TYPE.put(&mut bytes, &self.kind.to_le_bytes());
        FLAGS.put(&mut bytes, &self.flags.to_le_bytes());
        OFFSET.put(&mut bytes, &self.at.to_le_bytes());
        LEN.put(&mut bytes, &self.len.to_le_bytes());
        CRC.put(&mut bytes, &self.crc.to_le_bytes());
        bytes
    }

    /// Reads an entry that stands at `at`.
    fn decode(bytes: &[u8; ENTRY_LEN], at: u64) -> Result<Section, Damage> {
        let section = Section {
            kind: TYPE.u32(bytes),
            flags: FLAGS.u32(bytes),
            at: OFFSET.u64(bytes),
            len: LEN.u64(bytes),
            crc: CRC.u32(bytes),
        };
        let at = |field: Field| at + field.at as u64;
        if section.kind == 0 {
            return Err(Damage::new(at(TYPE), "type of a section", "above 0", 0));
        }
        if !RESERVED.is_zero(bytes) {
            let found = hex(RESERVED.of(bytes));
            return Err(Damage::new(
                at(RESERVED),
                "reserved bytes of a section",
                "zeros",
                found,
            ));
        }
        if section.flags & !MUST_UNDERSTAND != 0 {
            let found = format!("{:#x}", section.flags);
            return Err(Damage::unsupported(
                at(FLAGS),
                "flags of a section",
                "0 or 1",
                found,
            ));
        }
        if !section.is_known() && section.flags & MUST_UNDERSTAND != 0 {
            return Err(Damage::unsupported(
                at(TYPE),
                "section type",
                "1 to 4",
                section.kind,
            ));
        }
        Ok(section)
    }
}

/// The sections of a table, tiling the file between data and directory.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Directory {
    pub sections: Vec<Section>,
}

impl Directory {
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.sections.len() <= SECTION_COUNT_MAX);
        self.sections.iter().flat_map(Section::encode).collect()
    }

    /// Reads the directory that stands at `at`. Its checksum has been compared.
    pub fn decode(bytes: &[u8], at: u64) -> Result<Directory, Damage> {
        let (entries, rest) = bytes.as_chunks::<ENTRY_LEN>();
        if !rest.is_empty() || entries.len() > SECTION_COUNT_MAX {
            let expected = format!("at most {SECTION_COUNT_MAX} entries of {ENTRY_LEN} bytes");
            return Err(Damage::new(
                at,
                "length of the directory",
                expected,
                bytes.len(),
            ));
        }
        let mut sections: Vec<Section> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let entry_at = at + (index * ENTRY_LEN) as u64;
            let section = Section::decode(entry, entry_at)?;
            if section.at > at {
                let (at, limit) = (entry_at + OFFSET.at as u64, at);
                let expected = format!("at most {limit}");
                return Err(Damage::new(at, "place of a section", expected, section.at));
            }
            let expected = match sections.last() {
                Some(before) => before.end().next_multiple_of(ALIGN_LEN),
                // Where the first one begins is known when the chunks are.
                None => section.at.next_multiple_of(ALIGN_LEN),
            };
            if section.at != expected {
                let at = entry_at + OFFSET.at as u64;
                return Err(Damage::new(at, "place of a section", expected, section.at));
            }
            if section.len > at.saturating_sub(section.at) {
                let (at, limit) = (entry_at + LEN.at as u64, at.saturating_sub(section.at));
                let expected = format!("at most {limit}");
                return Err(Damage::new(
                    at,
                    "length of a section",
                    expected,
                    section.len,
                ));
            }
            if sections.iter().any(|before| before.kind == section.kind) {
                return Err(Damage::new(
                    entry_at,
                    "type of a section",
                    "once",
                    section.kind,
                ));
            }
            sections.push(section);
        }
        let end = sections
            .last()
            .map_or(0, Section::end)
            .next_multiple_of(ALIGN_LEN);
        if end != at {
            return Err(Damage::new(at, "place of the directory", end, at));
        }
        Ok(Directory { sections })
    }

    /// The section of that type.
    pub fn find(&self, kind: u32) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == kind)
    }

    /// The ranges between data, sections and directory that hold nothing, all shorter than
    /// [`ALIGN_LEN`]. The first section is known to begin behind `data_end`.
    pub fn gaps(&self, data_end: u64) -> impl Iterator<Item = (u64, usize)> {
        let ends = std::iter::once(data_end).chain(self.sections.iter().map(Section::end));
        ends.map(|end| (end, (end.next_multiple_of(ALIGN_LEN) - end) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(kind: u32, flags: u32, at: u64, len: u64) -> Section {
        Section {
            kind,
            flags,
            at,
            len,
            crc: 0,
        }
    }

    fn decoded(sections: &[Section]) -> Result<Directory, Damage> {
        let directory = Directory {
            sections: sections.to_vec(),
        };
        let at = directory
            .sections
            .last()
            .map_or(0, Section::end)
            .next_multiple_of(ALIGN_LEN);
        Directory::decode(&directory.encode(), at)
    }

    #[test]
    fn the_byte_table_is_what_the_code_does() {
        super::super::layout::check_byte_table(
            include_str!("directory.rs"),
            0,
            &[
                ("type", TYPE),
                ("flags", FLAGS),
                ("offset", OFFSET),
                ("len", LEN),
                ("crc", CRC),
                ("reserved", RESERVED),
            ],
        );
    }

    #[test]
    fn unknown_sections_are_skipped_unless_they_must_be_understood() {
        let known = section(CHUNKS, 1, 128, 100);
        assert_eq!(
            decoded(&[known, section(99, 0, 256, 7)])
                .unwrap()
                .sections
                .len(),
            2
        );
        assert!(
            decoded(&[known, section(99, 1, 256, 7)])
                .unwrap_err()
                .is_unsupported
        );
        assert!(
            decoded(&[known, section(FENCES, 2, 256, 7)])
                .unwrap_err()
                .is_unsupported
        );
    }

    #[test]
    fn sections_tile_the_file() {
        let known = section(CHUNKS, 1, 128, 100);
        for bad in [
            section(FENCES, 1, 320, 7),
            section(FENCES, 1, 128, 7),
            section(FENCES, 1, 250, 7),
            section(CHUNKS, 1, 256, 7),
            section(0, 0, 256, 7),
        ] {
            assert!(decoded(&[known, bad]).is_err(), "{bad:?}");
        }
        let huge = Directory {
            sections: vec![section(CHUNKS, 1, 128, u64::MAX - 200)],
        };
        assert!(Directory::decode(&huge.encode(), 256).is_err());
        let far = Directory {
            sections: vec![section(CHUNKS, 1, u64::MAX - 63, 1)],
        };
        assert!(Directory::decode(&far.encode(), 256).is_err());
        assert!(Directory::decode(&[0; 31], 64).is_err());
    }

    #[test]
    fn a_directory_that_cannot_be_is_named() {
        let mut bytes = section(CHUNKS, 1, 128, 100).encode();
        RESERVED.put(&mut bytes, &[1; RESERVED.len]);
        let damage = Directory::decode(&bytes, 256).unwrap_err();
        assert_eq!(damage.at, 256 + RESERVED.at as u64);
        assert_eq!(damage.what, "reserved bytes of a section");
        let damage = Directory::decode(&vec![0; (SECTION_COUNT_MAX + 1) * ENTRY_LEN], 64);
        assert_eq!(damage.unwrap_err().what, "length of the directory");
        let one = section(CHUNKS, 1, 128, 100).encode();
        let damage = Directory::decode(&one, 320).unwrap_err();
        let text = "byte 320: place of the directory: expected 256, found 320";
        assert_eq!(damage.to_string(), text);
    }

    #[test]
    fn gaps_lie_between_the_parts() {
        let sections = vec![section(CHUNKS, 1, 128, 100), section(FENCES, 1, 256, 64)];
        let gaps: Vec<_> = Directory { sections }.gaps(120).collect();
        assert_eq!(gaps, [(120, 8), (228, 28), (320, 0)]);
    }
}
