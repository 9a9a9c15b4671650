//! Tables against a model: a sorted list of rows.

use proptest::prelude::*;
use strandline_wal::io::sim::Damage as CrashDamage;

use super::*;

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0u8), Just(b'a'), Just(b'b'), Just(0xff)];
    prop_oneof![
        4 => proptest::collection::vec(byte.clone(), 0..5),
        4 => proptest::collection::vec(byte, 0..5).prop_map(|n| [b"a common prefix/", &n[..]].concat()),
        1 => (0u8..3).prop_map(|n| vec![n; 700]),
    ]
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        6 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Content::Value),
        1 => (100usize..3_000).prop_map(|len| Content::Value(vec![7; len])),
        2 => Just(Content::Tombstone),
        1 => (0u8..2, 0u16..3, 1u64..4, any::<u32>(), 0u32..9_000).prop_map(|(s, shard, file, offset, len)| {
            Content::Pointer(ValuePointer {
                source: [PointerSource::Segment, PointerSource::ValueFile][usize::from(s)],
                shard: ShardId(shard),
                file,
                offset,
                len,
                crc: 1,
            })
        }),
    ]
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let row = (name(), 1u64..30, content());
    proptest::collection::vec(row, 1..120).prop_map(|rows| {
        let mut rows: Vec<Row> = rows
            .into_iter()
            .map(|(name, version, content)| Row {
                name,
                version,
                content,
            })
            .collect();
        rows.sort_by(|a, b| key(a).cmp(&key(b)));
        rows.dedup_by(|a, b| key(a) == key(b));
        rows
    })
}

fn key(row: &Row) -> InternalKey<'_> {
    InternalKey {
        name: &row.name,
        version: Hlc(row.version),
    }
}

/// The ways to open a table, which must not differ in what they find.
fn opened(disk: &SimDisk, pread: &SimDisk, meta: &TableMeta) -> Vec<Arc<Table>> {
    let path = Path::new("t");
    let small_cache = OpenOptions::new(Arc::new(BlockCache::new(2_000)));
    let no_map = OpenOptions {
        map: false,
        ..options()
    };
    let no_index = OpenOptions {
        point_index: false,
        ..options()
    };
    [
        (disk, options()),
        (disk, no_map),
        (disk, no_index),
        (pread, small_cache),
    ]
    .iter()
    .map(|(disk, options)| Table::open(*disk, path, Some(meta), options).unwrap())
    .collect()
}

fn check_lookups(table: &Table, rows: &[Row], names: &[Vec<u8>]) {
    for name in names.iter().chain(rows.iter().map(|row| &row.name)) {
        for at in (0..31).chain([u64::MAX]) {
            let expected = rows
                .iter()
                .find(|row| row.name == *name && row.version <= at);
            let found = table.get(name, Hlc(at)).unwrap();
            let found = found.map(|found| (found.version.0, Content::of(found.value.source())));
            assert_eq!(
                found,
                expected.map(|row| (row.version, row.content.clone()))
            );
        }
    }
}

fn check_cursor(table: &Arc<Table>, rows: &[Row], moves: &[(u8, Vec<u8>, u64)]) {
    let mut cursor = table.cursor();
    let mut at: Option<usize> = None;
    for (kind, name, version) in moves {
        let wanted = InternalKey {
            name,
            version: Hlc(*version),
        };
        match kind {
            0 => {
                cursor.seek(wanted);
                at = rows.iter().position(|row| key(row) >= wanted);
            }
            1 => {
                cursor.seek_for_prev(wanted);
                at = rows.iter().rposition(|row| key(row) <= wanted);
            }
            2 => {
                cursor.first();
                at = Some(0);
            }
            3 => {
                cursor.last();
                at = Some(rows.len() - 1);
            }
            4..8 => {
                cursor.next();
                at = at.and_then(|at| (at + 1 < rows.len()).then_some(at + 1));
            }
            _ => {
                cursor.prev();
                at = at.and_then(|at| at.checked_sub(1));
            }
        }
        cursor.status().unwrap();
        assert_eq!(
            cursor.is_valid().then(|| row_at(&cursor)),
            at.map(|at| rows[at].clone())
        );
    }
}

fn check_meta(meta: &TableMeta, rows: &[Row]) {
    let versions = rows.iter().map(|row| Hlc(row.version));
    assert_eq!(meta.entry_count, rows.len() as u64);
    assert_eq!(Some(meta.version_min), versions.clone().min());
    assert_eq!(Some(meta.version_max), versions.max());
    assert_eq!(meta.name_min, rows[0].name);
    assert_eq!(meta.name_max, rows[rows.len() - 1].name);
    assert!(rows.iter().all(|row| meta.spans(&row.name)));
    let names: std::collections::BTreeSet<_> = rows.iter().map(|row| &row.name).collect();
    assert_eq!(meta.name_count, names.len() as u64);
    let mut live_len = 0;
    let mut tombstone_count = 0;
    for row in rows {
        match &row.content {
            Content::Pointer(pointer) => live_len += u64::from(pointer.len),
            Content::Tombstone => tombstone_count += 1,
            Content::Value(_) => {}
        }
    }
    assert_eq!(
        meta.files.iter().map(|file| file.live_len).sum::<u64>(),
        live_len
    );
    assert_eq!(meta.tombstone_count, tombstone_count);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn a_table_holds_what_was_added(
        rows in rows(),
        names in proptest::collection::vec(name(), 0..20),
        moves in proptest::collection::vec((0u8..12, name(), 0u64..32), 0..60),
        chunk_len_target in prop_oneof![Just(128usize), 200..6_000usize, Just(32usize << 10)],
        point_index: bool,
    ) {
        let (disk, pread) = (SimDisk::new(1), SimDisk::pread(1));
        let options = TableOptions { chunk_len_target, point_index };
        let meta = build(&disk, "t", IDENTITY, options.clone(), &rows).unwrap();
        prop_assert_eq!(&build(&pread, "t", IDENTITY, options, &rows).unwrap(), &meta);
        prop_assert_eq!(file_bytes(&disk, "t").len() as u64, meta.len);
        check_meta(&meta, &rows);
        for table in opened(&disk, &pread, &meta) {
            prop_assert_eq!(table.meta(), &meta);
            prop_assert_eq!(table.verify(), []);
            let (found, status) = rows_of(&table);
            status.unwrap();
            prop_assert_eq!(&found, &rows);
            check_lookups(&table, &rows, &names);
            check_cursor(&table, &rows, &moves);
        }
    }
}

#[test]
fn a_name_with_versions_over_many_chunks_is_found_at_each() {
    let disk = SimDisk::new(1);
    let mut rows = vec![value("before", 1, "")];
    rows.extend(
        (1..2_000)
            .rev()
            .map(|v| value("hot", v * 2, &v.to_string())),
    );
    rows.push(value("hotter", 1, ""));
    build(&disk, "t", IDENTITY, small_chunks(), &rows).unwrap();
    let table = open(&disk, "t").unwrap();
    for v in 1..2_000 {
        for at in [v * 2, v * 2 + 1] {
            let found = table.get(b"hot", Hlc(at)).unwrap().unwrap();
            assert_eq!(found.version, Hlc(v * 2));
            assert_eq!(
                Content::of(found.value.source()),
                Content::Value(v.to_string().into())
            );
        }
    }
    assert!(table.get(b"hot", Hlc(1)).unwrap().is_none());
    assert_eq!(table.meta().name_count, 3);
    assert_eq!(rows_of(&table).0, rows);
}

#[test]
fn the_longest_name_and_value_that_are_allowed_come_back() {
    let disk = SimDisk::new(1);
    let long = vec![b'n'; NAME_LEN_MAX];
    let longer = vec![b'n'; NAME_LEN_MAX + 1];
    let huge = vec![7; 3 << 20];
    let disk_arc: Arc<dyn Disk> = Arc::new(disk.clone());
    let path = Path::new("t");
    let mut builder =
        TableBuilder::create(disk_arc, path, IDENTITY, TableOptions::default()).unwrap();
    let entry = Entry {
        name: &long,
        version: Hlc(1),
        kind: EntryKind::Value,
        value: &huge,
    };
    builder.add(entry).unwrap();
    let error = builder
        .add(Entry {
            name: &longer,
            ..entry
        })
        .unwrap_err();
    assert!(
        matches!(error, strandline_wal::Error::TooLarge { .. }),
        "{error}"
    );
    builder.finish().unwrap();
    let table = open(&disk, "t").unwrap();
    let found = table.get(&long, Hlc::MAX).unwrap().unwrap();
    assert_eq!(Content::of(found.value.source()), Content::Value(huge));
    assert!(table.get(&longer, Hlc::MAX).unwrap().is_none());
}

/// Bytes of a table of 20,000 random names of 16 bytes in a keyspace, written over half a second.
fn table_len(value_len: fn(u64) -> usize) -> usize {
    let disk = SimDisk::new(1);
    let mut rows: Vec<Row> = (0..20_000_u64)
        .map(|n| {
            let key = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            Row {
                name: [&1_u32.to_be_bytes()[..], &key, &key].concat(),
                version: (1_700_000_000_000 + n / 40) << 16 | (n % 40),
                content: Content::Value(vec![7; value_len(n)]),
            }
        })
        .collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let meta = build(&disk, "t", IDENTITY, TableOptions::default(), &rows).unwrap();
    meta.len as usize
}

#[test]
fn a_small_entry_costs_less_than_twenty_bytes_beside_its_own() {
    let len = table_len(|_| 100);
    let user_len = 20_000 * (16 + 100);
    assert!(len * 100 <= user_len * 116, "{len} bytes for {user_len}");
    // Where each record begins takes two bytes more where they are not equally long.
    let len = table_len(|n| 50 + n as usize % 101);
    let user_len: usize = (0..20_000).map(|n| 16 + 50 + n % 101).sum();
    assert!(len <= user_len + 20_000 * 20, "{len} bytes for {user_len}");
}

#[test]
fn the_length_between_two_names_is_about_right() {
    let disk = SimDisk::new(1);
    let rows: Vec<Row> = (0..10_000)
        .map(|n| value(&format!("{n:08}"), 1, &"v".repeat(76)))
        .collect();
    build(&disk, "t", IDENTITY, TableOptions::default(), &rows).unwrap();
    let table = open(&disk, "t").unwrap();
    // A record has 3 + 1 + 8 + 76 bytes.
    let expected = 88 * 5_000;
    let found = table.approximate_len(b"00002500", b"00007500");
    assert!(found.abs_diff(expected) < 12_000, "{found}");
    assert_eq!(table.approximate_len(b"00007500", b"00002500"), 0);
    assert_eq!(table.approximate_len(b"x", b"y"), 0);
}

#[test]
fn a_value_outlives_table_and_cache() {
    for disk in [SimDisk::new(1), SimDisk::pread(1)] {
        build(&disk, "t", IDENTITY, small_chunks(), &sample()).unwrap();
        let found = open(&disk, "t")
            .unwrap()
            .get(b"huge", Hlc::MAX)
            .unwrap()
            .unwrap();
        disk.remove(Path::new("t")).unwrap();
        assert_eq!(
            Content::of(found.value.source()),
            Content::Value(vec![b'x'; 500])
        );
    }
}

#[test]
fn a_closed_table_gives_its_cache_back() {
    let disk = SimDisk::pread(1);
    build(&disk, "t", IDENTITY, small_chunks(), &sample()).unwrap();
    let options = options();
    let table = Table::open(&disk, Path::new("t"), None, &options).unwrap();
    let mut once = table.cursor_once();
    once.first();
    while once.is_valid() {
        once.next();
    }
    drop(once);
    assert_eq!(options.cache.len(), 0);
    assert_eq!(rows_of(&table).0, sample());
    assert!(!options.cache.is_empty());
    drop(table);
    assert_eq!(options.cache.len(), 0);
}

#[test]
#[should_panic(expected = "out of order")]
fn entries_out_of_order_are_a_bug_of_the_caller() {
    let rows = [value("a", 1, ""), value("a", 2, "")];
    let _ = build(&SimDisk::new(1), "t", IDENTITY, small_chunks(), &rows);
}

#[test]
fn a_full_disk_is_an_error_and_a_discarded_table_is_gone() {
    let disk = SimDisk::new(1);
    disk.limit(Some(1_000));
    let rows: Vec<Row> = (0..100)
        .map(|n| value(&format!("{n:08}"), 1, "value"))
        .collect();
    let error = build(&disk, "t", IDENTITY, small_chunks(), &rows).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    let disk_arc: Arc<dyn Disk> = Arc::new(disk.clone());
    let path = Path::new("u");
    let builder = TableBuilder::create(disk_arc, path, IDENTITY, small_chunks()).unwrap();
    builder.discard().unwrap();
    assert!(disk.open(path, Access::Read).is_err());
}

#[test]
fn a_crash_at_any_call_leaves_a_whole_table_or_one_that_is_refused() {
    let rows = sample();
    let started = || {
        let disk = SimDisk::new(1);
        disk.create_dir_all(Path::new("d")).unwrap();
        disk.settle();
        disk
    };
    let disk = started();
    let before = disk.io_count();
    build(&disk, "d/t", IDENTITY, small_chunks(), &rows).unwrap();
    disk.sync_dir(Path::new("d")).unwrap();
    let end = disk.io_count();
    for seed in 0..20 {
        let after = disk.crash(seed, CrashDamage::Sectors);
        assert_eq!(rows_of(&open(&after, "d/t").unwrap()).0, rows);
    }
    for at in before..end {
        let disk = started();
        disk.crash_at(at);
        let built = build(&disk, "d/t", IDENTITY, small_chunks(), &rows);
        assert!(built.is_err() || at + 1 == end);
        for seed in 0..20 {
            let after = disk.crash(seed, CrashDamage::Sectors);
            if let Ok(table) = open(&after, "d/t") {
                let (found, status) = rows_of(&table);
                assert!(found == rows || status.is_err());
            }
        }
    }
}
