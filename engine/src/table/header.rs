//! The first 64 bytes of a table: what the file is, and which table of which database.
//!
//! | Offset | Size | Field      | Meaning                                                      |
//! |-------:|-----:|------------|--------------------------------------------------------------|
//! |      0 |    8 | magic      | [`MAGIC_BYTES`].                                             |
//! |      8 |    2 | version    | [`VERSION_NUMBER`].                                          |
//! |     10 |    2 | header_len | 64.                                                          |
//! |     12 |    4 | reserved   | Zero. A reader rejects anything else.                        |
//! |     16 |    8 | number     | Number of the table, never used twice. Never 0.              |
//! |     24 |   16 | lineage    | Identity of the database.                                    |
//! |     40 |   20 | reserved   | Zero. A reader rejects anything else.                        |
//! |     60 |    4 | crc        | CRC-32 of bytes 0..60, in every version of the format.       |

use strandline_wal::bug::planted;

use super::damage::Damage;
use super::layout::{Field, hex};

/// Length of the header. Part of the format.
pub(super) const HEADER_LEN: usize = 64;

/// What a table begins with. The first byte is no text and no UTF-8.
pub(super) const MAGIC_BYTES: [u8; 8] = *b"\x8eSLtable";

/// The version that this build writes, and the only one that it reads.
pub(super) const VERSION_NUMBER: u16 = 3;

const MAGIC: Field = Field::first(8);
const VERSION: Field = MAGIC.then(2);
const HEADER_LEN_FIELD: Field = VERSION.then(2);
const RESERVED_4: Field = HEADER_LEN_FIELD.then(4);
const NUMBER: Field = RESERVED_4.then(8);
const LINEAGE: Field = NUMBER.then(16);
const RESERVED_20: Field = LINEAGE.then(20);
const CRC: Field = RESERVED_20.then(4);

const _: () = assert!(CRC.end() == HEADER_LEN);

/// Which table of which database. Every chunk's checksum covers it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Identity {
    /// Number of the table: unique in its database, never used again. Never 0.
    pub number: u64,
    /// Identity of the database.
    pub lineage: [u8; 16],
}

/// The bytes of the header.
pub(super) fn encode(identity: &Identity) -> [u8; HEADER_LEN] {
    assert!(identity.number != 0, "no table has the number 0");
    let mut bytes = [0; HEADER_LEN];
    MAGIC.put(&mut bytes, &MAGIC_BYTES);
    VERSION.put(&mut bytes, &VERSION_NUMBER.to_le_bytes());
    HEADER_LEN_FIELD.put(&mut bytes, &(HEADER_LEN as u16).to_le_bytes());
    NUMBER.put(&mut bytes, &identity.number.to_le_bytes());
    LINEAGE.put(&mut bytes, &identity.lineage);
    let crc = crc32fast::hash(&bytes[..CRC.at]);
    CRC.put(&mut bytes, &crc.to_le_bytes());
    bytes
}

/// Reads the header, trusting none of its bytes.
pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Identity, Damage> {
    let damage = |field: Field, what, expected: String, found: String| {
        Err(Damage::new(field.at as u64, what, expected, found))
    };
    if MAGIC.of(bytes) != MAGIC_BYTES {
        return damage(
            MAGIC,
            "magic of the table",
            hex(&MAGIC_BYTES),
            hex(MAGIC.of(bytes)),
        );
    }
    let crc = crc32fast::hash(&bytes[..CRC.at]);
    if CRC.u32(bytes) != crc && !planted("table.header_crc") {
        let found = format!("{:08x}", CRC.u32(bytes));
        return damage(CRC, "checksum of the header", format!("{crc:08x}"), found);
    }
    let version = VERSION.u16(bytes);
    if version != VERSION_NUMBER {
        return Err(Damage::unsupported(
            VERSION.at as u64,
            "format version",
            VERSION_NUMBER,
            version,
        ));
    }
    if usize::from(HEADER_LEN_FIELD.u16(bytes)) != HEADER_LEN {
        let found = HEADER_LEN_FIELD.u16(bytes).to_string();
        return damage(
            HEADER_LEN_FIELD,
            "length of the header",
            HEADER_LEN.to_string(),
            found,
        );
    }
    for reserved in [RESERVED_4, RESERVED_20] {
        if !reserved.is_zero(bytes) {
            let found = hex(reserved.of(bytes));
            return damage(
                reserved,
                "reserved bytes of the header",
                "zeros".into(),
                found,
            );
        }
    }
    let identity = Identity {
        number: NUMBER.u64(bytes),
        lineage: LINEAGE.id(bytes),
    };
    if identity.number == 0 {
        return damage(NUMBER, "number of the table", "above 0".into(), "0".into());
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        number: 7,
        lineage: [9; 16],
    };

    #[test]
    fn the_byte_table_is_what_the_code_does() {
        super::super::layout::check_byte_table(
            include_str!("header.rs"),
            0,
            &[
                ("magic", MAGIC),
                ("version", VERSION),
                ("header_len", HEADER_LEN_FIELD),
                ("reserved", RESERVED_4),
                ("number", NUMBER),
                ("lineage", LINEAGE),
                ("reserved", RESERVED_20),
                ("crc", CRC),
            ],
        );
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = encode(&IDENTITY);
        assert_eq!(decode(&good), Ok(IDENTITY));
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit}");
        }
    }

    /// The refusal of a header with another field, under a good checksum.
    fn refusal(field: Field, value: &[u8]) -> Damage {
        let mut bytes = encode(&IDENTITY);
        field.put(&mut bytes, value);
        let crc = crc32fast::hash(&bytes[..CRC.at]);
        CRC.put(&mut bytes, &crc.to_le_bytes());
        decode(&bytes).unwrap_err()
    }

    #[test]
    fn another_version_is_not_called_damage() {
        for version in [VERSION_NUMBER - 1, VERSION_NUMBER + 1] {
            assert!(refusal(VERSION, &version.to_le_bytes()).is_unsupported);
        }
    }

    #[test]
    fn a_field_that_cannot_be_is_named() {
        for (field, value, text) in [
            (
                HEADER_LEN_FIELD,
                &[65, 0][..],
                "length of the header: expected 64, found 65",
            ),
            (
                RESERVED_4,
                &[0, 0, 0, 1],
                "reserved bytes of the header: expected zeros",
            ),
            (
                RESERVED_20,
                &[1; 20],
                "reserved bytes of the header: expected zeros",
            ),
            (
                NUMBER,
                &[0; 8],
                "number of the table: expected above 0, found 0",
            ),
        ] {
            let damage = refusal(field, value);
            assert_eq!((damage.at, damage.is_unsupported), (field.at as u64, false));
            assert!(damage.to_string().contains(text), "{damage}");
        }
    }
}
