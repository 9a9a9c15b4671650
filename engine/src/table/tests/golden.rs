//! A table that was written once and must be read, and written the same, ever after.

use super::*;

/// Hexadecimal text of the file, 32 bytes a line, so that a change of the format shows in review.
const GOLDEN: &str = include_str!("../testdata/tiny.table.hex");

fn rows() -> Vec<Row> {
    vec![
        value("\0\0\0\x01apple", 0x0001_0000, "red"),
        value("\0\0\0\x01apricot", 0x0003_0000, "orange, newer"),
        value("\0\0\0\x01apricot", 0x0002_0000, "orange"),
        pointer("\0\0\0\x01banana", 0x0004_0000, 42, 4_096),
        tombstone("\0\0\0\x01cherry", 0x0005_0000),
        value("\0\0\0\x02apple", 0x0006_0000, "of another keyspace"),
    ]
}

fn built() -> Vec<u8> {
    let disk = SimDisk::new(1);
    let options = TableOptions {
        chunk_len_target: 200,
        point_index: true,
    };
    build(&disk, "t", IDENTITY, options, &rows()).unwrap();
    file_bytes(&disk, "t")
}

fn text_of(bytes: &[u8]) -> String {
    bytes
        .chunks(32)
        .map(|line| layout::hex(line) + "\n")
        .collect()
}

fn bytes_of(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

#[test]
fn the_golden_table_is_read() {
    let disk = SimDisk::new(1);
    put_file(&disk, "t", &bytes_of(GOLDEN));
    let table = open(&disk, "t").unwrap();
    assert_eq!(*table.identity(), IDENTITY);
    assert_eq!(rows_of(&table).0, rows());
    assert_eq!([0, 1, 2].map(|n| table.value_count(n)), [0, 3, 1]);
    assert_eq!(table.verify(), []);
    assert_eq!(table.warnings(), []);
}

/// Run with `UPDATE=1` to rewrite the golden file, and review what changed.
#[test]
fn the_golden_table_is_still_written_the_same() {
    let found = text_of(&built());
    if std::env::var_os("UPDATE").is_some() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src/table/testdata/tiny.table.hex"
        );
        #[allow(
            clippy::disallowed_methods,
            reason = "a golden file of the source tree"
        )]
        std::fs::write(path, &found).unwrap();
    }
    assert_eq!(found, GOLDEN);
}
