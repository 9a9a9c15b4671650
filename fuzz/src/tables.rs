//! Targets of tables: whole files, and one part of a file at a time in a table that is otherwise good.

use std::path::Path;
use std::sync::Arc;

use strandline::table::{BlockCache, Cursor, InternalKey, OpenOptions, Table};
use strandline_wal::Hlc;

use crate::{MEND, mend, parts, samples};

const HEADER_LEN: usize = 64;
const FOOTER_LEN: usize = 96;
const ENTRY_LEN: usize = 32;

/// Control bit: the table is read without a map, through the cache.
const UNMAPPED: u8 = 8;
/// Control bit: lookups go by order alone.
const UNINDEXED: u8 = 16;

/// A table file as a whole.
pub fn table(input: &[u8]) {
    let Some((control, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if control & MEND != 0 {
        mend::table(&mut bytes);
    }
    open(*control, &bytes);
}

/// One chunk in a table whose other parts are good, checksums mended.
pub fn chunk(input: &[u8]) {
    let Some((control, chunk)) = input.split_first() else {
        return;
    };
    let mut chunk = chunk.to_vec();
    chunk.resize(chunk.len().max(60), 0);
    let mut sections = sections_of(samples::table());
    let end = (HEADER_LEN + chunk.len()) as u64;
    let mut row = (HEADER_LEN as u64).to_le_bytes();
    // The length of the versions, and the oldest.
    row[7] = chunk[40];
    sections[0].1 = [&row, &chunk[32..40], &end.to_le_bytes()].concat();
    open(*control, &assemble(&chunk, &sections));
}

/// Fences, properties and point index in a table whose chunks are good, checksums mended.
pub fn index(input: &[u8]) {
    let Some((control, rest)) = input.split_first() else {
        return;
    };
    let mut sections = sections_of(samples::table());
    for ((_, section), part) in sections.iter_mut().zip(parts(rest)) {
        // An empty part stands for the good one.
        if !part.is_empty() {
            *section = part.to_vec();
        }
    }
    open(*control, &assemble(chunks_of(samples::table()), &sections));
}

/// The end of a table, directory and footer, behind parts that are good.
pub fn ending(input: &[u8]) {
    let Some((control, end)) = input.split_first() else {
        return;
    };
    let table = samples::table();
    let mut bytes = table[..directory_at(table)].to_vec();
    bytes.extend_from_slice(end);
    if control & MEND != 0 {
        mend::table(&mut bytes);
    }
    open(*control, &bytes);
}

/// Opens a table, walks it in both directions, looks everything up and verifies it.
fn open(control: u8, bytes: &[u8]) {
    let (_, disk) = samples::memory();
    let path = Path::new("/db/0000000001.tbl");
    samples::put(disk.as_ref(), path, bytes);
    let options = OpenOptions {
        map: control & UNMAPPED == 0,
        point_index: control & UNINDEXED == 0,
        ..OpenOptions::new(Arc::new(BlockCache::new(64 << 10)))
    };
    let Ok(table) = Table::open(disk.as_ref(), path, None, &options) else {
        return;
    };
    assert_eq!(table.meta().len, bytes.len() as u64);
    let is_intact = table.verify().is_empty();
    let table = Arc::new(table);
    let mut cursor = table.cursor();
    let mut names: Vec<(Vec<u8>, Hlc)> = Vec::new();
    cursor.first();
    while cursor.is_valid() {
        let key = cursor.key();
        if let Some((name, version)) = names.last() {
            let before = InternalKey {
                name,
                version: *version,
            };
            assert!(before < key, "a table that opens is in order");
        }
        names.push((key.name.to_vec(), key.version));
        cursor.next();
    }
    let forward = cursor.status().is_ok();
    assert!(forward || !is_intact, "an intact table is read to its end");
    let mut count = 0;
    cursor.last();
    while cursor.is_valid() {
        if forward {
            let at = names.len() - 1 - count;
            let key = cursor.key();
            assert_eq!((key.name, key.version), (&names[at].0[..], names[at].1));
        }
        count += 1;
        cursor.prev();
    }
    if forward && cursor.status().is_ok() {
        assert_eq!(count, names.len(), "as many backward as forward");
    }
    for (name, version) in &names {
        let found = table.get(name, *version);
        if is_intact {
            let found = found
                .expect("an intact table is read")
                .expect("it is there");
            assert_eq!(found.version, *version);
        }
        cursor.seek(InternalKey {
            name,
            version: *version,
        });
        if cursor.is_valid() && forward {
            // A point index that lies may lead to an older version.
            let key = cursor.key();
            assert_eq!(key.name, &name[..]);
            assert!(key.version == *version || key.version < *version && !is_intact);
        }
    }
    if is_intact {
        assert_eq!(table.meta().entry_count, names.len() as u64);
        assert!(table.lost_chunks().is_empty());
    }
    // A name that is in no table: it is there, or absent, or the lookup meets damage.
    let _ = table.get(b"key", Hlc::MAX);
}

/// The bytes between header and sections.
fn chunks_of(table: &[u8]) -> &[u8] {
    let (_, starts) = &sections_of(table)[0];
    let end = starts.last_chunk().map(|c| u64::from_le_bytes(*c));
    &table[HEADER_LEN..end.expect("a table has a chunk") as usize]
}

fn directory_at(table: &[u8]) -> usize {
    let at = table[table.len() - FOOTER_LEN..].first_chunk();
    u64::from_le_bytes(*at.expect("a footer")) as usize
}

/// The sections of a good table: directory entry and bytes.
fn sections_of(table: &[u8]) -> Vec<([u8; ENTRY_LEN], Vec<u8>)> {
    let directory = &table[directory_at(table)..table.len() - FOOTER_LEN];
    let section = |entry: &[u8]| {
        let entry: [u8; ENTRY_LEN] = entry.try_into().expect("an entry");
        let number = |at: usize| entry[at..].first_chunk().map(|c| u64::from_le_bytes(*c));
        let at = number(8).expect("8 bytes") as usize;
        let len = number(16).expect("8 bytes") as usize;
        (entry, table[at..at + len].to_vec())
    };
    directory.chunks_exact(ENTRY_LEN).map(section).collect()
}

/// A table of these chunks and sections, with every place, length and checksum right.
fn assemble(chunks: &[u8], sections: &[([u8; ENTRY_LEN], Vec<u8>)]) -> Vec<u8> {
    let good = samples::table();
    let mut bytes = good[..HEADER_LEN].to_vec();
    bytes.extend_from_slice(chunks);
    let mut directory = Vec::new();
    for (entry, section) in sections {
        bytes.resize(bytes.len().next_multiple_of(64), 0);
        let mut entry = *entry;
        entry[8..16].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
        entry[16..24].copy_from_slice(&(section.len() as u64).to_le_bytes());
        directory.extend_from_slice(&entry);
        bytes.extend_from_slice(section);
    }
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    let at = bytes.len() as u64;
    bytes.extend_from_slice(&directory);
    let mut footer = good[good.len() - FOOTER_LEN..].to_vec();
    footer[..8].copy_from_slice(&at.to_le_bytes());
    footer[8..12].copy_from_slice(&(directory.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&footer);
    mend::table(&mut bytes);
    bytes
}

/// Seeds of the targets above, without their control byte.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let table = samples::table();
    let mut index = Vec::new();
    for (_, section) in sections_of(table) {
        index.extend_from_slice(&(section.len() as u32).to_le_bytes());
        index.extend_from_slice(&section);
    }
    vec![
        ("table", table.to_vec()),
        ("chunk", chunks_of(table).to_vec()),
        ("index", index),
        ("ending", table[directory_at(table)..].to_vec()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_its_own_parts_is_itself() {
        let table = samples::table();
        let again = assemble(chunks_of(table), &sections_of(table));
        assert!(again == table);
    }
}
