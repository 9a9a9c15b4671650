//! Rows of a byte table as constants: where a field stands, how long it is, and how it is read.

/// One row of a byte table. All numbers are little-endian.
///
/// The accessors take arrays, not slices: whether a field lies within its structure is known when
/// the code is written, and whether the bytes are long enough is decided once, by the caller.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Field {
    pub at: usize,
    pub len: usize,
}

impl Field {
    /// The first field of a structure.
    pub const fn first(len: usize) -> Field {
        Field { at: 0, len }
    }

    /// The field directly behind this one.
    pub const fn then(self, len: usize) -> Field {
        Field {
            at: self.end(),
            len,
        }
    }

    /// Where the field ends.
    pub const fn end(self) -> usize {
        self.at + self.len
    }

    /// The field's bytes.
    pub fn of<const N: usize>(self, bytes: &[u8; N]) -> &[u8] {
        &bytes[self.at..self.end()]
    }

    fn array<const N: usize, const M: usize>(self, bytes: &[u8; N]) -> [u8; M] {
        *self
            .of(bytes)
            .first_chunk()
            .expect("the field is as long as the number")
    }

    /// The field as a number of one byte.
    pub fn u8<const N: usize>(self, bytes: &[u8; N]) -> u8 {
        bytes[self.at]
    }

    /// The field as a number of two bytes.
    pub fn u16<const N: usize>(self, bytes: &[u8; N]) -> u16 {
        u16::from_le_bytes(self.array(bytes))
    }

    /// The field as a number of four bytes.
    pub fn u32<const N: usize>(self, bytes: &[u8; N]) -> u32 {
        u32::from_le_bytes(self.array(bytes))
    }

    /// The field as a number of eight bytes.
    pub fn u64<const N: usize>(self, bytes: &[u8; N]) -> u64 {
        u64::from_le_bytes(self.array(bytes))
    }

    /// The field as an identity of 16 bytes.
    pub fn id<const N: usize>(self, bytes: &[u8; N]) -> [u8; 16] {
        self.array(bytes)
    }

    /// The field as a digest of 32 bytes.
    pub fn digest<const N: usize>(self, bytes: &[u8; N]) -> [u8; 32] {
        self.array(bytes)
    }

    /// Whether all bytes of the field are zero.
    pub fn is_zero<const N: usize>(self, bytes: &[u8; N]) -> bool {
        is_zero(self.of(bytes))
    }

    /// Writes the field. `value` is exactly as long as the field.
    pub fn put<const N: usize>(self, bytes: &mut [u8; N], value: &[u8]) {
        bytes[self.at..self.end()].copy_from_slice(value);
    }
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The bytes as hexadecimal digits, for messages.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Compares the byte table in a file's head comment with its constants.
#[cfg(test)]
pub(super) fn check_byte_table(source: &str, table: usize, fields: &[(&str, Field)]) {
    let mut tables: Vec<Vec<(String, String, String)>> = Vec::new();
    let mut inside = false;
    for line in source.lines().take_while(|line| line.starts_with("//")) {
        let cells: Vec<&str> = line
            .trim_start_matches(['/', '!', ' '])
            .split('|')
            .map(str::trim)
            .collect();
        if cells.len() < 6 {
            inside = false;
        } else if cells[1] == "Offset" {
            inside = true;
            tables.push(Vec::new());
        } else if inside && !cells[1].ends_with("-:") {
            let row = (
                cells[1].to_owned(),
                cells[2].to_owned(),
                cells[3].to_owned(),
            );
            tables.last_mut().expect("a table was begun").push(row);
        }
    }
    let expected: Vec<_> = fields
        .iter()
        .map(|(name, field)| {
            (
                field.at.to_string(),
                field.len.to_string(),
                (*name).to_owned(),
            )
        })
        .collect();
    // Rows whose size is a word describe what follows the fixed part.
    let fixed: Vec<_> = tables[table]
        .iter()
        .filter(|row| row.1.parse::<usize>().is_ok())
        .cloned()
        .collect();
    assert_eq!(fixed, expected);
    let mut end = 0;
    for (name, field) in fields {
        assert_eq!(field.at, end, "{name} leaves a hole before it");
        end = field.end();
    }
}
