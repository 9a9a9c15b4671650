//! The last 96 bytes of a table: where the directory is, and the digest of everything before.
//!
//! | Offset | Size | Field         | Meaning                                                   |
//! |-------:|-----:|---------------|-----------------------------------------------------------|
//! |      0 |    8 | directory_at  | Where the directory of sections begins in the file.       |
//! |      8 |    4 | directory_len | Its length. It ends where the footer begins.              |
//! |     12 |    4 | directory_crc | CRC-32 of the directory.                                  |
//! |     16 |    8 | file_len      | Length of the file, this footer included.                 |
//! |     24 |    8 | number        | As in the header.                                         |
//! |     32 |   16 | lineage       | As in the header.                                         |
//! |     48 |   32 | digest        | BLAKE3 of all bytes before the footer.                    |
//! |     80 |    8 | reserved      | Zero. A reader rejects anything else.                     |
//! |     88 |    4 | crc           | CRC-32 of bytes 0..88.                                    |
//! |     92 |    4 | magic         | [`MAGIC_BYTES`]. A file that ends otherwise was cut.      |

use strandline_wal::bug::planted;

use super::damage::Damage;
use super::header::Identity;
use super::layout::{Field, hex};

/// Length of the footer. Part of the format.
pub(super) const FOOTER_LEN: usize = 96;

/// What a table ends with.
pub(super) const MAGIC_BYTES: [u8; 4] = *b"SLt\x8e";

const DIRECTORY_AT: Field = Field::first(8);
const DIRECTORY_LEN: Field = DIRECTORY_AT.then(4);
const DIRECTORY_CRC: Field = DIRECTORY_LEN.then(4);
const FILE_LEN: Field = DIRECTORY_CRC.then(8);
const NUMBER: Field = FILE_LEN.then(8);
const LINEAGE: Field = NUMBER.then(16);
const DIGEST: Field = LINEAGE.then(32);
const RESERVED: Field = DIGEST.then(8);
const CRC: Field = RESERVED.then(4);
const MAGIC: Field = CRC.then(4);

const _: () = assert!(MAGIC.end() == FOOTER_LEN);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Footer {
    pub directory_at: u64,
    pub directory_len: u32,
    pub directory_crc: u32,
    pub file_len: u64,
    pub identity: Identity,
    pub digest: [u8; 32],
}

impl Footer {
    pub fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        DIRECTORY_AT.put(&mut bytes, &self.directory_at.to_le_bytes());
        DIRECTORY_LEN.put(&mut bytes, &self.directory_len.to_le_bytes());
        DIRECTORY_CRC.put(&mut bytes, &self.directory_crc.to_le_bytes());
        FILE_LEN.put(&mut bytes, &self.file_len.to_le_bytes());
        NUMBER.put(&mut bytes, &self.identity.number.to_le_bytes());
        LINEAGE.put(&mut bytes, &self.identity.lineage);
        DIGEST.put(&mut bytes, &self.digest);
        let crc = crc32fast::hash(&bytes[..CRC.at]);
        CRC.put(&mut bytes, &crc.to_le_bytes());
        MAGIC.put(&mut bytes, &MAGIC_BYTES);
        bytes
    }

    /// Reads the footer of the file with that header, trusting none of its bytes. `at` is where the
    /// footer begins.
    pub fn decode(
        bytes: &[u8; FOOTER_LEN],
        at: u64,
        identity: &Identity,
    ) -> Result<Footer, Damage> {
        let damage = |field: Field, what, expected: String, found: String| {
            Err(Damage::new(at + field.at as u64, what, expected, found))
        };
        if MAGIC.of(bytes) != MAGIC_BYTES {
            let found = hex(MAGIC.of(bytes));
            return damage(MAGIC, "end of the table", hex(&MAGIC_BYTES), found);
        }
        let crc = crc32fast::hash(&bytes[..CRC.at]);
        if CRC.u32(bytes) != crc && !planted("table.footer_crc") {
            let found = format!("{:08x}", CRC.u32(bytes));
            return damage(CRC, "checksum of the footer", format!("{crc:08x}"), found);
        }
        if !RESERVED.is_zero(bytes) {
            let found = hex(RESERVED.of(bytes));
            return damage(
                RESERVED,
                "reserved bytes of the footer",
                "zeros".into(),
                found,
            );
        }
        let footer = Footer {
            directory_at: DIRECTORY_AT.u64(bytes),
            directory_len: DIRECTORY_LEN.u32(bytes),
            directory_crc: DIRECTORY_CRC.u32(bytes),
            file_len: FILE_LEN.u64(bytes),
            identity: Identity {
                number: NUMBER.u64(bytes),
                lineage: LINEAGE.id(bytes),
            },
            digest: DIGEST.digest(bytes),
        };
        if footer.identity != *identity {
            let name = |id: &Identity| format!("table {} of {}", id.number, hex(&id.lineage));
            let found = name(&footer.identity);
            return damage(NUMBER, "identity in the footer", name(identity), found);
        }
        let file_len = at + FOOTER_LEN as u64;
        if footer.file_len != file_len {
            let found = file_len.to_string();
            return damage(
                FILE_LEN,
                "length of the file",
                footer.file_len.to_string(),
                found,
            );
        }
        if footer
            .directory_at
            .checked_add(u64::from(footer.directory_len))
            != Some(at)
        {
            let found = format!("{} + {}", footer.directory_at, footer.directory_len);
            return damage(DIRECTORY_AT, "end of the directory", at.to_string(), found);
        }
        Ok(footer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOOTER: Footer = Footer {
        directory_at: 640,
        directory_len: 64,
        directory_crc: 5,
        file_len: 640 + 64 + FOOTER_LEN as u64,
        identity: Identity {
            number: 7,
            lineage: [9; 16],
        },
        digest: [3; 32],
    };

    #[test]
    fn the_byte_table_is_what_the_code_does() {
        super::super::layout::check_byte_table(
            include_str!("footer.rs"),
            0,
            &[
                ("directory_at", DIRECTORY_AT),
                ("directory_len", DIRECTORY_LEN),
                ("directory_crc", DIRECTORY_CRC),
                ("file_len", FILE_LEN),
                ("number", NUMBER),
                ("lineage", LINEAGE),
                ("digest", DIGEST),
                ("reserved", RESERVED),
                ("crc", CRC),
                ("magic", MAGIC),
            ],
        );
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = FOOTER.encode();
        assert_eq!(Footer::decode(&good, 704, &FOOTER.identity), Ok(FOOTER));
        for bit in 0..FOOTER_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Footer::decode(&bad, 704, &FOOTER.identity).is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_field_that_cannot_be_is_named() {
        let mut bytes = FOOTER.encode();
        RESERVED.put(&mut bytes, &[1; RESERVED.len]);
        let crc = crc32fast::hash(&bytes[..CRC.at]);
        CRC.put(&mut bytes, &crc.to_le_bytes());
        let damage = Footer::decode(&bytes, 704, &FOOTER.identity).unwrap_err();
        assert_eq!(damage.at, 704 + RESERVED.at as u64);
        assert_eq!(damage.what, "reserved bytes of the footer");
        for directory_len in [63, 65, u32::MAX] {
            let other = Footer {
                directory_len,
                ..FOOTER
            };
            let damage = Footer::decode(&other.encode(), 704, &FOOTER.identity).unwrap_err();
            assert_eq!(damage.at, 704 + DIRECTORY_AT.at as u64);
            let text = format!("end of the directory: expected 704, found 640 + {directory_len}");
            assert!(damage.to_string().contains(&text), "{damage}");
        }
    }

    #[test]
    fn a_footer_fits_one_place_and_one_table() {
        let bytes = FOOTER.encode();
        assert!(Footer::decode(&bytes, 712, &FOOTER.identity).is_err());
        let other = Identity {
            number: 8,
            ..FOOTER.identity
        };
        assert!(Footer::decode(&bytes, 704, &other).is_err());
    }
}
