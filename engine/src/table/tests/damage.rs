//! Damaged, foreign, cut and crafted tables: the right answer or an error, never another.

use std::ops::{Bound, RangeBounds};

use strandline_wal::Error;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};

use super::*;
use crate::table::chunk;
use crate::table::directory::{self, ALIGN_LEN, Directory, Section};
use crate::table::footer::{FOOTER_LEN, Footer};
use crate::table::header::{self, HEADER_LEN};
use crate::table::point_index::{PointIndexBuilder, hash_of};

/// A table whose every byte is worth a test: small, with several chunks and all kinds of entries.
fn table_bytes(identity: Identity) -> (Vec<Row>, Vec<u8>) {
    let rows = sample();
    let disk = SimDisk::new(1);
    build(&disk, "t", identity, small_chunks(), &rows).unwrap();
    (rows, file_bytes(&disk, "t"))
}

/// Both ways to have a file with those bytes.
fn disks_with(bytes: &[u8]) -> [SimDisk; 2] {
    let disks = [SimDisk::new(1), SimDisk::pread(1)];
    for disk in &disks {
        put_file(disk, "t", bytes);
    }
    disks
}

fn check_error(error: &Error) {
    match error {
        Error::Corrupt { path, .. } => assert_eq!(path, Path::new("t")),
        Error::Unsupported { path, found, .. } => {
            assert_eq!(path, Path::new("t"));
            assert!(found.contains("byte"), "{found}");
        }
        other => panic!("damage was called {other}"),
    }
}

/// Every answer is right or an error. Returns whether there was an error.
fn check_answers(table: &Arc<Table>, rows: &[Row]) -> bool {
    let mut failed = false;
    for row in rows {
        for at in [row.version, row.version - 1, u64::MAX] {
            let expected = rows.iter().find(|r| r.name == row.name && r.version <= at);
            match table.get(&row.name, Hlc(at)) {
                Ok(found) => {
                    let found = found.map(|f| (f.version.0, Content::of(f.value.source())));
                    assert_eq!(
                        found,
                        expected.map(|row| (row.version, row.content.clone()))
                    );
                }
                Err(error) => {
                    check_error(&error);
                    failed = true;
                }
            }
        }
    }
    for absent in ["common", "common/name 05x", "zzz"] {
        match table.get(absent.as_bytes(), Hlc::MAX) {
            Ok(found) => assert!(found.is_none()),
            Err(error) => check_error(&error),
        }
    }
    let (found, status) = rows_of(table);
    match status {
        Ok(()) => assert_eq!(found, rows),
        Err(error) => {
            check_error(&error);
            assert_eq!(found, rows[..found.len()]);
            failed = true;
        }
    }
    let mut cursor = table.cursor();
    let mut back = Vec::new();
    cursor.last();
    while cursor.is_valid() {
        back.push(row_at(&cursor));
        cursor.prev();
    }
    back.reverse();
    assert_eq!(back, rows[rows.len() - back.len()..]);
    assert!(back.len() == rows.len() || cursor.status().is_err());
    failed
}

#[test]
fn every_flipped_byte_gives_an_error_or_the_right_answers() {
    let (rows, good) = table_bytes(IDENTITY);
    for disk in disks_with(&good) {
        assert!(!check_answers(&open(&disk, "t").unwrap(), &rows));
    }
    let mut harmless = 0;
    for at in 0..good.len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut bad = good.clone();
            bad[at] ^= mask;
            for disk in disks_with(&bad) {
                match open(&disk, "t") {
                    Err(error) => check_error(&error),
                    Ok(table) => {
                        let failed = check_answers(&table, &rows);
                        let damages = table.verify();
                        assert!(!damages.is_empty(), "byte {at} is not missed by verify");
                        assert!(!failed || damages.iter().any(|d| d.at <= at as u64));
                        harmless += usize::from(!failed);
                    }
                }
            }
        }
    }
    // Only the point index and the digest may be damaged without harm.
    assert!(harmless > 0 && harmless < 6 * (32 + 64 * 8), "{harmless}");
}

#[test]
fn every_truncation_and_every_extension_is_refused() {
    let (_, good) = table_bytes(IDENTITY);
    for len in 0..good.len() {
        for disk in disks_with(&good[..len]) {
            check_error(&open(&disk, "t").unwrap_err());
        }
    }
    for extra in [&[0; 1][..], &[0; 512], b"junk", &good] {
        for disk in disks_with(&[&good[..], extra].concat()) {
            check_error(&open(&disk, "t").unwrap_err());
        }
    }
}

#[test]
fn an_absent_file_is_not_called_damaged() {
    let disk = SimDisk::new(1);
    assert!(open(&disk, "t").unwrap_err().is_not_found());
    disk.create_dir_all(Path::new("t")).unwrap();
    assert!(open(&disk, "t").is_err());
}

/// The bytes with the chunks at the two ranges exchanged.
fn chunk_ranges(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let disk = SimDisk::new(1);
    put_file(&disk, "t", bytes);
    let table = open(&disk, "t").unwrap();
    (0..table.chunks.count())
        .map(|n| table.chunks.range(n).unwrap())
        .map(|range| range.start as usize..range.end as usize)
        .collect()
}

#[test]
fn a_chunk_of_another_table_or_database_or_place_is_refused() {
    let (rows, good) = table_bytes(IDENTITY);
    let (_, other_table) = table_bytes(Identity {
        number: 8,
        ..IDENTITY
    });
    let (_, other_lineage) = table_bytes(Identity {
        lineage: [1; 16],
        ..IDENTITY
    });
    let ranges = chunk_ranges(&good);
    for foreign in [&other_table, &other_lineage] {
        assert_eq!(chunk_ranges(foreign), ranges);
        for range in &ranges {
            let mut bad = good.clone();
            bad[range.clone()].copy_from_slice(&foreign[range.clone()]);
            for disk in disks_with(&bad) {
                let table = open(&disk, "t").unwrap();
                assert!(check_answers(&table, &rows));
                assert!(range.contains(&(table.verify()[0].at as usize)));
            }
        }
    }
    let mut swapped = 0;
    for (n, a) in ranges.iter().enumerate() {
        for b in ranges[n + 1..].iter().filter(|b| b.len() == a.len()) {
            let mut bad = good.clone();
            bad[a.clone()].copy_from_slice(&good[b.clone()]);
            bad[b.clone()].copy_from_slice(&good[a.clone()]);
            for disk in disks_with(&bad) {
                let table = open(&disk, "t").unwrap();
                assert!(check_answers(&table, &rows));
                assert_eq!(table.verify().len(), 2);
                swapped += 1;
            }
        }
    }
    assert!(swapped > 0);
}

#[test]
fn the_tail_of_another_table_is_refused() {
    let (_, good) = table_bytes(IDENTITY);
    let (_, other) = table_bytes(Identity {
        number: 8,
        ..IDENTITY
    });
    assert_eq!(good.len(), other.len());
    let data_end = chunk_ranges(&good).last().unwrap().end;
    let bad = [&good[..data_end], &other[data_end..]].concat();
    for disk in disks_with(&bad) {
        check_error(&open(&disk, "t").unwrap_err());
    }
}

#[test]
fn the_manifest_must_agree_with_the_file() {
    let disk = SimDisk::new(1);
    let meta = build(&disk, "t", IDENTITY, small_chunks(), &sample()).unwrap();
    let opened = |meta: &TableMeta| Table::open(&disk, Path::new("t"), Some(meta), &options());
    opened(&meta).unwrap();
    let mut other = meta.clone();
    other.identity.number = 8;
    check_error(&opened(&other).unwrap_err());
    for change in [
        |meta: &mut TableMeta| meta.identity.lineage = [1; 16],
        |meta: &mut TableMeta| meta.len += 1,
        |meta: &mut TableMeta| meta.digest[0] ^= 1,
        |meta: &mut TableMeta| meta.tombstone_count += 1,
    ] {
        let mut other = meta.clone();
        change(&mut other);
        check_error(&opened(&other).unwrap_err());
    }
    let mut other = meta;
    other.digest[0] ^= 1;
    let error = opened(&other).unwrap_err().to_string();
    assert!(error.contains("digest of the table"), "{error}");
}

/// Where the directory of a table with these bytes stands.
fn directory_of(bytes: &[u8]) -> std::ops::Range<usize> {
    let footer_at = bytes.len() - FOOTER_LEN;
    let footer_bytes = bytes[footer_at..].first_chunk().unwrap();
    let footer = Footer::decode(footer_bytes, footer_at as u64, &IDENTITY).unwrap();
    footer.directory_at as usize..footer_at
}

/// Without it most of them would be told as something else, and one might not be told.
#[test]
fn every_flipped_byte_of_the_directory_is_told_by_its_checksum() {
    let (_, good) = table_bytes(IDENTITY);
    for at in directory_of(&good) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        for disk in disks_with(&bad) {
            let error = open(&disk, "t").unwrap_err().to_string();
            assert!(error.contains("checksum of the directory"), "{error}");
        }
        for disk in disks_with(&good) {
            let table = open(&disk, "t").unwrap();
            disk.rot(Path::new("t"), at as u64, 1).unwrap();
            let found: Vec<&str> = table.verify().iter().map(|damage| damage.what).collect();
            assert!(found.contains(&"checksum of the directory"), "{found:?}");
        }
    }
}

/// Every part may be right by itself in a table that is not the one that was written.
#[test]
fn verify_compares_the_digest_of_all_bytes() {
    let (_, mut bytes) = table_bytes(IDENTITY);
    let footer_at = directory_of(&bytes).end;
    let footer_bytes = bytes[footer_at..].first_chunk().unwrap();
    let mut footer = Footer::decode(footer_bytes, footer_at as u64, &IDENTITY).unwrap();
    footer.digest[0] ^= 1;
    bytes.truncate(footer_at);
    bytes.extend_from_slice(&footer.encode());
    for disk in disks_with(&bytes) {
        let found = open(&disk, "t").unwrap().verify();
        let found: Vec<&str> = found.iter().map(|damage| damage.what).collect();
        assert_eq!(found, ["digest of the table"]);
    }
}

/// The counts by keyspace are the last rows of the properties, 16 bytes each: `comm` 9, `huge` 1, `last` 1.
#[test]
fn verify_tells_counts_by_keyspace_that_are_not_those_of_the_entries() {
    let (_, good) = table_bytes(IDENTITY);
    let number = |name: &[u8; 4]| u32::from_be_bytes(*name);
    let counts = |table: &Table| [b"comm", b"huge", b"last"].map(|n| table.value_count(number(n)));
    let mut rows_at = 0;
    let mut forged = |change: fn(&mut [u8])| {
        let bytes = with_sections(&good, |sections| {
            let (_, bytes) = sections
                .iter_mut()
                .find(|(s, _)| s.kind == directory::PROPERTIES)
                .unwrap();
            rows_at = bytes.len() - 48;
            change(&mut bytes[rows_at..]);
        });
        disks_with(&bytes).map(|disk| open(&disk, "t").unwrap())
    };
    for table in forged(|_| {}) {
        assert_eq!((counts(&table), table.verify().len()), ([9, 1, 1], 0));
    }
    let one_less: fn(&mut [u8]) = |rows| rows[8] = 8;
    let elsewhere: fn(&mut [u8]) = |rows| (rows[8], rows[24]) = (8, 2);
    let renamed: fn(&mut [u8]) = |rows| rows[32..36].copy_from_slice(&number_of(b"lost"));
    for (change, found) in [
        (one_less, [8, 1, 1]),
        (elsewhere, [8, 2, 1]),
        (renamed, [9, 1, 0]),
    ] {
        for table in forged(change) {
            assert_eq!(counts(&table), found);
            let damages = table.verify();
            let section = table.directory.find(directory::PROPERTIES).unwrap();
            let told = [(section.end() - 48, "counts by keyspace")];
            assert_eq!(
                damages.iter().map(|d| (d.at, d.what)).collect::<Vec<_>>(),
                told
            );
        }
    }
}

fn number_of(name: &[u8; 4]) -> [u8; 4] {
    u32::from_be_bytes(*name).to_le_bytes()
}

/// The file with other sections, under good checksums.
fn with_sections(good: &[u8], change: impl FnOnce(&mut Vec<(Section, Vec<u8>)>)) -> Vec<u8> {
    let footer_at = good.len() - FOOTER_LEN;
    let footer_bytes = good[footer_at..].first_chunk().unwrap();
    let mut footer = Footer::decode(footer_bytes, footer_at as u64, &IDENTITY).unwrap();
    let at = footer.directory_at as usize;
    let directory = Directory::decode(&good[at..footer_at], at as u64).unwrap();
    let mut sections: Vec<_> = directory
        .sections
        .iter()
        .map(|s| (*s, good[s.at as usize..s.end() as usize].to_vec()))
        .collect();
    let mut bytes = good[..directory.sections[0].at as usize].to_vec();
    change(&mut sections);
    let align = |bytes: &mut Vec<u8>| {
        bytes.resize(bytes.len().next_multiple_of(ALIGN_LEN as usize), 0);
    };
    for (section, content) in &mut sections {
        align(&mut bytes);
        section.at = bytes.len() as u64;
        section.len = content.len() as u64;
        section.crc = crc32fast::hash(content);
        bytes.extend_from_slice(content);
    }
    align(&mut bytes);
    let sections = sections.iter().map(|(section, _)| *section).collect();
    let directory = Directory { sections }.encode();
    footer.directory_at = bytes.len() as u64;
    footer.directory_len = directory.len() as u32;
    footer.directory_crc = crc32fast::hash(&directory);
    bytes.extend_from_slice(&directory);
    footer.file_len = (bytes.len() + FOOTER_LEN) as u64;
    footer.digest = blake3::hash(&bytes).into();
    bytes.extend_from_slice(&footer.encode());
    bytes
}

#[test]
fn a_damaged_point_index_is_reported_and_done_without() {
    let (rows, good) = table_bytes(IDENTITY);
    let footer_at = good.len() - FOOTER_LEN;
    let footer = Footer::decode(
        good[footer_at..].first_chunk().unwrap(),
        footer_at as u64,
        &IDENTITY,
    );
    let at = footer.unwrap().directory_at as usize;
    let directory = Directory::decode(&good[at..footer_at], at as u64).unwrap();
    let section = *directory.find(directory::POINT_INDEX).unwrap();
    for at in section.at..section.end() {
        let mut bad = good.clone();
        bad[at as usize] ^= 0x10;
        for disk in disks_with(&bad) {
            let table = open(&disk, "t").unwrap();
            assert_eq!(table.warnings().len(), 1);
            assert_eq!(table.warnings()[0].at, section.at);
            assert!(!check_answers(&table, &rows));
            assert_eq!(table.verify(), table.warnings());
        }
    }
}

#[test]
fn unknown_sections_are_skipped_unless_they_must_be_understood() {
    let (rows, good) = table_bytes(IDENTITY);
    let with = |flags: u32| {
        with_sections(&good, |sections| {
            let section = Section {
                kind: 77,
                flags,
                at: 0,
                len: 0,
                crc: 0,
            };
            sections.push((section, b"from the future".to_vec()));
        })
    };
    for disk in disks_with(&with(0)) {
        let table = open(&disk, "t").unwrap();
        assert!(!check_answers(&table, &rows));
        assert_eq!(table.verify(), []);
    }
    for disk in disks_with(&with(1)) {
        let error = open(&disk, "t").unwrap_err();
        assert!(
            error.to_string().contains("needs another version"),
            "{error}"
        );
    }
}

#[test]
fn a_table_without_a_section_that_it_needs_is_refused() {
    let (_, good) = table_bytes(IDENTITY);
    for kind in [directory::CHUNKS, directory::FENCES, directory::PROPERTIES] {
        let bad = with_sections(&good, |sections| sections.retain(|(s, _)| s.kind != kind));
        for disk in disks_with(&bad) {
            check_error(&open(&disk, "t").unwrap_err());
        }
    }
}

/// Uses a table in every way. Crafted bytes may answer anything, but they answer.
fn use_up(table: &Arc<Table>, rows: &[Row]) {
    for row in rows {
        let _ = table
            .get(&row.name, Hlc(row.version))
            .map(|f| f.map(|f| format!("{f:?}")));
        table.approximate_len(&row.name, b"z");
        let mut cursor = table.cursor();
        let key = InternalKey {
            name: &row.name,
            version: Hlc(row.version),
        };
        cursor.seek(key);
        cursor.prev();
        cursor.seek_for_prev(key);
        cursor.next();
    }
    let mut cursor = table.cursor();
    cursor.first();
    for _ in 0..2 * rows.len() {
        cursor.next();
    }
    cursor.last();
    for _ in 0..2 * rows.len() {
        cursor.prev();
    }
    table.verify();
}

#[test]
fn crafted_sections_under_good_checksums_never_panic() {
    let (rows, good) = table_bytes(IDENTITY);
    for kind in 1..=4 {
        let mut len = 0;
        with_sections(&good, |sections| {
            len = sections
                .iter()
                .find(|(s, _)| s.kind == kind)
                .unwrap()
                .1
                .len();
        });
        for at in 0..len {
            for byte in [0x00, 0x01, 0x09, 0x7f, 0xff] {
                let bad = with_sections(&good, |sections| {
                    let section = sections.iter_mut().find(|(s, _)| s.kind == kind).unwrap();
                    section.1[at] = byte;
                });
                let [disk, pread] = disks_with(&bad);
                if let Ok(table) = open(&disk, "t") {
                    use_up(&table, &rows);
                    use_up(&open(&pread, "t").unwrap(), &rows);
                }
            }
        }
    }
}

#[test]
fn crafted_chunks_under_good_checksums_never_panic() {
    let (rows, good) = table_bytes(IDENTITY);
    for range in chunk_ranges(&good) {
        for at in range.start + 4..range.end.min(range.start + 160) {
            for byte in [0x00, 0x04, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let crc = chunk::crc_of(&IDENTITY, &bad[range.start + 4..range.end]);
                bad[range.start..range.start + 4].copy_from_slice(&crc.to_le_bytes());
                for disk in disks_with(&bad) {
                    use_up(&open(&disk, "t").unwrap(), &rows);
                }
            }
        }
    }
}

#[test]
fn verify_lists_every_damaged_chunk() {
    let (rows, good) = table_bytes(IDENTITY);
    let ranges = chunk_ranges(&good);
    let mut bad = good;
    let damaged = [0, 2, ranges.len() - 1];
    for n in damaged {
        bad[ranges[n].start + 40] ^= 1;
    }
    for disk in disks_with(&bad) {
        let table = open(&disk, "t").unwrap();
        assert!(check_answers(&table, &rows));
        let found: Vec<u64> = table.verify().iter().map(|damage| damage.at).collect();
        assert_eq!(found, damaged.map(|n| ranges[n].start as u64));
        // What is not in a damaged chunk is still there.
        let answers = rows
            .iter()
            .filter(|row| table.get(&row.name, Hlc(row.version)).is_ok());
        assert!(answers.count() > 0);
        // A cursor that stopped goes on only where it is sent.
        let mut cursor = table.cursor();
        cursor.first();
        assert!(!cursor.is_valid() && cursor.status().is_err());
        cursor.next();
        assert!(!cursor.is_valid() && cursor.status().is_err());
        cursor.seek(InternalKey::first_of(&rows[8].name));
        assert!(cursor.is_valid() || cursor.status().is_err());
    }
}

/// A tag of the point index may lead into a chunk that the name is not in. Where that is damaged, the name is
/// looked for where it belongs.
#[test]
fn a_damaged_chunk_costs_its_own_names_alone() {
    let name = |n: u32| format!("name {n:05}");
    let rows: Vec<Row> = (0..3_000).map(|n| value(&name(n), 1, "a value")).collect();
    let disk = SimDisk::new(1);
    let options = TableOptions {
        chunk_len_target: 16 << 10,
        point_index: true,
    };
    build(&disk, "t", IDENTITY, options, &rows).unwrap();
    let mut bytes = file_bytes(&disk, "t");
    let ranges = chunk_ranges(&bytes);
    assert!(ranges.len() > 3);
    bytes[ranges[1].start + 99] ^= 1;
    for disk in disks_with(&bytes) {
        let table = open(&disk, "t").unwrap();
        let [lost] = &table.lost_chunks()[..] else {
            panic!("one chunk is damaged")
        };
        let range = (Bound::Included(lost.from.clone()), lost.to.clone());
        let mut failed = 0;
        for row in &rows {
            let absent = [&row.name[..], b"+"].concat();
            let found = [&row.name, &absent].map(|name| table.get(name, Hlc::MAX));
            if range.contains(&row.name) || range.contains(&absent) {
                failed += found.iter().filter(|found| found.is_err()).count();
            } else {
                let found = found.map(Result::unwrap);
                assert!(found[0].is_some() && found[1].is_none(), "{row:?}");
            }
        }
        assert!(failed > 0);
    }
}

/// An index whose checksum holds may still lead to an older version first.
#[test]
fn verify_tells_an_index_that_knows_older_versions() {
    let rows = [
        value("name", 9, "new"),
        value("name", 3, "old"),
        value("other", 1, "one"),
    ];
    let disk = SimDisk::new(1);
    build(&disk, "t", IDENTITY, TableOptions::default(), &rows).unwrap();
    let good = file_bytes(&disk, "t");
    let range = chunk_ranges(&good)[0].clone();
    let chunk = &good[range.clone()];
    let shape = chunk::check(chunk, range.start as u64, &IDENTITY).unwrap();
    let places = [0, 1, 2].map(|n| (range.start + shape.record(chunk, n).unwrap().at()) as u64);
    let verified = |order: &[usize]| {
        let mut index = PointIndexBuilder::default();
        for n in order {
            index.push(hash_of(&rows[*n].name), places[*n]);
        }
        let bytes = with_sections(&good, |sections| {
            let mut sections = sections.iter_mut();
            let is_index = |(s, _): &&mut (Section, Vec<u8>)| s.kind == directory::POINT_INDEX;
            sections.find(is_index).unwrap().1 = index.encode(range.end as u64);
        });
        let [disk, _] = disks_with(&bytes);
        let found = open(&disk, "t").unwrap().verify();
        found
            .iter()
            .map(|damage| (damage.at, damage.what))
            .collect::<Vec<_>>()
    };
    assert_eq!(verified(&[0, 2]), []);
    assert_eq!(verified(&[1, 0, 2]), [(places[1], "point index")]);
    assert_eq!(verified(&[0]), [(places[2], "point index")]);
}

#[test]
fn rot_after_opening_is_found_by_verify() {
    let (_, good) = table_bytes(IDENTITY);
    for disk in disks_with(&good) {
        let table = open(&disk, "t").unwrap();
        assert_eq!(table.verify(), []);
        for at in 0..good.len() as u64 {
            disk.rot(Path::new("t"), at, 4).unwrap();
            assert!(!table.verify().is_empty(), "byte {at}");
            disk.rot(Path::new("t"), at, 4).unwrap();
        }
        assert_eq!(table.verify(), []);
    }
    assert!(good.len() > HEADER_LEN + FOOTER_LEN);
}

/// A length that no directory has is refused before it is read.
#[test]
fn a_directory_of_an_absurd_length_is_refused() {
    let directory_len = ((directory::SECTION_COUNT_MAX + 1) * directory::ENTRY_LEN) as u32;
    let footer_at = HEADER_LEN as u64 + u64::from(directory_len);
    let footer = Footer {
        directory_at: HEADER_LEN as u64,
        directory_len,
        directory_crc: 0,
        file_len: footer_at + FOOTER_LEN as u64,
        identity: IDENTITY,
        digest: [0; 32],
    };
    let mut bytes = header::encode(&IDENTITY).to_vec();
    bytes.resize(footer_at as usize, 0);
    bytes.extend_from_slice(&footer.encode());
    for disk in disks_with(&bytes) {
        let error = open(&disk, "t").unwrap_err().to_string();
        let text = format!("at byte {HEADER_LEN}: length of the directory");
        assert!(error.contains(&text), "{error}");
        assert!(error.contains(&directory_len.to_string()), "{error}");
    }
}

/// Header and footer may be replaced by intact ones while the table is open.
#[test]
fn verify_tells_a_header_and_a_footer_of_something_else() {
    let (_, good) = table_bytes(IDENTITY);
    let footer_at = directory_of(&good).end;
    let footer_bytes = good[footer_at..].first_chunk().unwrap();
    let footer = Footer::decode(footer_bytes, footer_at as u64, &IDENTITY).unwrap();
    let other = Identity {
        number: 8,
        ..IDENTITY
    };
    let digest = [7; 32];
    for (at, bytes, what) in [
        (0, header::encode(&other).to_vec(), "identity of the table"),
        (
            footer_at,
            Footer { digest, ..footer }.encode().to_vec(),
            "footer",
        ),
    ] {
        for disk in disks_with(&good) {
            let table = open(&disk, "t").unwrap();
            let file = disk.open(Path::new("t"), Access::Write).unwrap();
            write_all_at(file.as_ref(), &bytes, at as u64).unwrap();
            let found: Vec<_> = table.verify().iter().map(|d| (d.at, d.what)).collect();
            assert_eq!(found, [(at as u64, what)]);
        }
    }
}

/// A place that cannot be read is listed with the disk's answer, and the rest is still checked.
#[test]
fn verify_goes_on_behind_a_read_that_fails() {
    let (_, mut bytes) = table_bytes(IDENTITY);
    let last = chunk_ranges(&bytes).pop().unwrap().start;
    bytes[last + 40] ^= 1;
    let disk = SimDisk::pread(1);
    put_file(&disk, "t", &bytes);
    let faults = FaultDisk::new(Arc::new(disk));
    let table = Table::open(&faults, Path::new("t"), None, &options()).unwrap();
    let before = faults.count(Call::Read);
    assert_eq!(table.verify().len(), 1);
    let read_count = faults.count(Call::Read) - before;
    let mut places = Vec::new();
    for at in 0..read_count {
        let rule = Rule::new(Effect::EIO).on(Call::Read);
        let rule = faults.add(rule.after(at));
        let found = table.verify();
        assert_eq!(faults.fired_count(rule), 1);
        let failed: Vec<_> = found.iter().filter(|d| d.what == "read").collect();
        assert_eq!(failed.len(), 1, "{found:?}");
        assert!(failed[0].found.contains("os error 5"), "{found:?}");
        let is_last = failed[0].at == last as u64;
        let is_told = found
            .iter()
            .any(|d| d.at == last as u64 && d.what != "read");
        assert_ne!(is_told, is_last, "{found:?}");
        places.push(failed[0].at);
    }
    assert!(places.is_sorted() && places[0] == 0, "{places:?}");
}

#[test]
fn a_table_prints_its_number_and_file_alone() {
    let (_, good) = table_bytes(IDENTITY);
    for disk in disks_with(&good) {
        let table = open(&disk, "t").unwrap();
        assert_eq!(format!("{table:?}"), "Table(7 at t)");
        let found = table.get(b"last", Hlc::MAX).unwrap().unwrap();
        assert_eq!(found.value.source(), ValueSource::Bytes(b""));
    }
}
