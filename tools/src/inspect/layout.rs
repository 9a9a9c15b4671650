//! Where the fields of the file formats stand, for `walinspect header` to name them.
//!
//! The formats have their home in the crates that write them; a test holds these lists against the
//! byte tables there.

/// How a field's bytes are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Shape {
    /// A little-endian number.
    Number,
    /// A number that reads better in hexadecimal digits: a checksum, a nonce.
    Digits,
    /// A hybrid clock value.
    Time,
    /// Bytes that mean a text.
    Text,
    /// Bytes.
    Bytes,
    /// Zeros.
    Zeros,
}

/// One field: offset, length, name, and how it is read.
pub(super) type Field = (usize, usize, &'static str, Shape);

use Shape::{Bytes, Digits, Number, Text, Time, Zeros};

/// The head of a segment file.
pub(super) const SEGMENT_HEADER: &[Field] = &[
    (0, 4, "magic", Text),
    (4, 1, "version", Number),
    (5, 1, "flags", Digits),
    (6, 2, "header_len", Number),
    (8, 8, "first_seq", Number),
    (16, 8, "created", Time),
    (24, 4, "nonce", Digits),
    (28, 4, "epoch", Number),
    (32, 16, "lineage", Bytes),
    (48, 4, "prev_crc", Digits),
    (52, 2, "shard_id", Number),
    (54, 2, "region_id", Number),
    (56, 8, "capacity", Number),
    (64, 32, "prev_digest", Bytes),
    (96, 2, "dataset_len", Number),
    (98, 48, "dataset", Text),
    (146, 362, "reserved", Zeros),
    (508, 4, "header_crc", Digits),
];

/// The end of a sealed segment file.
pub(super) const SEGMENT_TRAILER: &[Field] = &[
    (0, 8, "data_len", Number),
    (8, 4, "sections_len", Number),
    (12, 4, "sections_crc", Digits),
    (16, 4, "nonce", Digits),
    (20, 4, "version", Number),
    (24, 4, "magic", Text),
    (28, 4, "trailer_crc", Digits),
];

/// A batch header.
pub(super) const BATCH_HEADER: &[Field] = &[
    (0, 4, "magic", Text),
    (4, 1, "version", Number),
    (5, 1, "flags", Digits),
    (6, 2, "header_len", Number),
    (8, 8, "first_seq", Number),
    (16, 4, "record_count", Number),
    (20, 4, "payload_len", Number),
    (24, 4, "unsynced", Number),
    (28, 4, "epoch", Number),
    (32, 8, "timestamp", Time),
    (40, 4, "nonce", Digits),
    (44, 4, "prev_crc", Digits),
    (48, 4, "payload_crc", Digits),
    (52, 4, "header_crc", Digits),
    (56, 2, "ordinal", Number),
    (58, 2, "shard_id", Number),
    (60, 2, "region_id", Number),
    (62, 2, "tail", Zeros),
];

/// The head of a table file.
pub(super) const TABLE_HEADER: &[Field] = &[
    (0, 8, "magic", Bytes),
    (8, 2, "version", Number),
    (10, 2, "header_len", Number),
    (12, 4, "reserved", Zeros),
    (16, 8, "number", Number),
    (24, 16, "lineage", Bytes),
    (40, 20, "reserved", Zeros),
    (60, 4, "crc", Digits),
];

/// The end of a table file.
pub(super) const TABLE_FOOTER: &[Field] = &[
    (0, 8, "directory_at", Number),
    (8, 4, "directory_len", Number),
    (12, 4, "directory_crc", Digits),
    (16, 8, "file_len", Number),
    (24, 8, "number", Number),
    (32, 16, "lineage", Bytes),
    (48, 32, "digest", Bytes),
    (80, 8, "reserved", Zeros),
    (88, 4, "crc", Digits),
    (92, 4, "magic", Bytes),
];

/// The head of a manifest.
pub(super) const MANIFEST_HEADER: &[Field] = &[
    (0, 4, "magic", Text),
    (4, 4, "version", Number),
    (8, 8, "generation", Number),
    (16, 8, "sections_len", Number),
    (24, 32, "digest", Bytes),
    (56, 4, "reserved", Zeros),
    (60, 4, "header_crc", Digits),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows `| offset | size | name |` of the table that starts with a field at offset 0 and
    /// ends where rows end; `skip` tables come before it.
    fn byte_table(source: &str, skip: usize) -> Vec<(usize, usize, String)> {
        let mut tables: Vec<Vec<(usize, usize, String)>> = Vec::new();
        for line in source.lines() {
            let Some(row) = line.strip_prefix("//! |") else {
                continue;
            };
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let (Some(Ok(offset)), Some(Ok(size))) = (
                cells.first().map(|cell| cell.parse::<usize>()),
                cells.get(1).map(|cell| cell.parse::<usize>()),
            ) else {
                continue;
            };
            if offset == 0 {
                tables.push(Vec::new());
            }
            let table = tables.last_mut().expect("a table starts at offset 0");
            table.push((offset, size, cells[2].to_owned()));
        }
        tables.swap_remove(skip)
    }

    #[test]
    fn the_lists_are_the_byte_tables_of_the_formats() {
        let segment = include_str!("../../../wal/src/segment.rs");
        for (source, skip, fields) in [
            (segment, 0, SEGMENT_HEADER),
            (segment, 2, SEGMENT_TRAILER),
            (include_str!("../../../wal/src/batch.rs"), 0, BATCH_HEADER),
            (
                include_str!("../../../engine/src/table/header.rs"),
                0,
                TABLE_HEADER,
            ),
            (
                include_str!("../../../engine/src/table/footer.rs"),
                0,
                TABLE_FOOTER,
            ),
            (
                include_str!("../../../engine/src/manifest.rs"),
                0,
                MANIFEST_HEADER,
            ),
        ] {
            let ours: Vec<(usize, usize, String)> = fields
                .iter()
                .map(|(at, len, name, _)| (*at, *len, (*name).to_owned()))
                .collect();
            assert_eq!(ours, byte_table(source, skip));
        }
    }
}
