//! Tests of whole table files: against a model, damaged, and against a golden file.

mod damage;
mod golden;
mod long;
mod model;

use std::path::Path;
use std::sync::Arc;

use strandline_wal::io::sim::SimDisk;
use strandline_wal::io::{Access, Disk, read_file, write_all_at};
use strandline_wal::{Hlc, Result, ShardId};

use super::*;

const IDENTITY: Identity = Identity {
    number: 7,
    lineage: *b"a table of tests",
};

/// An entry that owns its bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Row {
    name: Vec<u8>,
    version: u64,
    content: Content,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Content {
    Value(Vec<u8>),
    Pointer(ValuePointer),
    Tombstone,
}

impl Content {
    fn of(source: ValueSource<'_>) -> Content {
        match source {
            ValueSource::Bytes(bytes) => Content::Value(bytes.to_vec()),
            ValueSource::Pointer(pointer) => Content::Pointer(pointer),
            ValueSource::Absent => Content::Tombstone,
            ValueSource::Log(_) => panic!("a table holds nothing in the log"),
        }
    }
}

fn value(name: &str, version: u64, value: &str) -> Row {
    let (name, content) = (name.into(), Content::Value(value.into()));
    Row {
        name,
        version,
        content,
    }
}

fn tombstone(name: &str, version: u64) -> Row {
    Row {
        name: name.into(),
        version,
        content: Content::Tombstone,
    }
}

fn pointer(name: &str, version: u64, file: u64, len: u32) -> Row {
    let content = Content::Pointer(ValuePointer {
        source: PointerSource::Segment,
        shard: ShardId(3),
        file,
        offset: 64,
        len,
        crc: 0xdead_beef,
    });
    Row {
        name: name.into(),
        version,
        content,
    }
}

fn small_chunks() -> TableOptions {
    TableOptions {
        chunk_len_target: 160,
        point_index: true,
    }
}

fn build(
    disk: &SimDisk,
    path: &str,
    identity: Identity,
    options: TableOptions,
    rows: &[Row],
) -> Result<TableMeta> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut builder = TableBuilder::create(disk, Path::new(path), identity, options)?;
    for row in rows {
        let encoded;
        let (kind, value) = match &row.content {
            Content::Value(value) => (EntryKind::Value, &value[..]),
            Content::Pointer(pointer) => {
                encoded = pointer.encode();
                (EntryKind::Pointer, &encoded[..])
            }
            Content::Tombstone => (EntryKind::Tombstone, &[][..]),
        };
        builder.add(Entry {
            name: &row.name,
            version: Hlc(row.version),
            kind,
            value,
        })?;
    }
    builder.finish()
}

fn options() -> OpenOptions {
    OpenOptions::new(Arc::new(BlockCache::new(1 << 20)))
}

fn open(disk: &SimDisk, path: &str) -> Result<Arc<Table>> {
    Table::open(disk, Path::new(path), None, &options())
}

fn put_file(disk: &SimDisk, path: &str, bytes: &[u8]) {
    let path = Path::new(path);
    let _ = disk.remove(path);
    let file = disk.create(path).unwrap();
    write_all_at(file.as_ref(), bytes, 0).unwrap();
}

fn file_bytes(disk: &SimDisk, path: &str) -> Vec<u8> {
    read_file(disk, Path::new(path), u64::MAX).unwrap()
}

/// All rows in order, or what stopped the cursor and the rows before it.
fn rows_of(table: &Arc<Table>) -> (Vec<Row>, Result<()>) {
    let mut cursor = table.cursor();
    let mut rows = Vec::new();
    cursor.first();
    while cursor.is_valid() {
        rows.push(row_at(&cursor));
        cursor.next();
    }
    (rows, cursor.status())
}

fn row_at(cursor: &TableCursor) -> Row {
    let key = cursor.key();
    let content = Content::of(cursor.value());
    assert_eq!(Content::of(cursor.found().value.source()), content);
    assert_eq!(cursor.found().version, key.version);
    Row {
        name: key.name.to_vec(),
        version: key.version.0,
        content,
    }
}

/// Some names with several versions, all kinds, and a value that needs a chunk of its own.
fn sample() -> Vec<Row> {
    let mut rows = vec![value("", 5, "the empty name")];
    for n in 0..12 {
        let name = format!("common/name {n:02}");
        match n % 4 {
            0 => rows.push(value(&name, 100 + n, "a value")),
            1 => {
                rows.push(tombstone(&name, 210 + n));
                rows.push(value(&name, 110 + n, "an older value"));
            }
            2 => rows.push(pointer(&name, 120 + n, n, 5_000)),
            _ => rows.extend((0..6).map(|v| value(&name, 300 - v, &format!("version {v}")))),
        }
    }
    rows.push(value("huge", 9, &"x".repeat(500)));
    rows.push(value("last", 1, ""));
    rows
}
