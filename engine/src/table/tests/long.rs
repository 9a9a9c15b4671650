//! A table whose file is longer than 4 GiB. Its values are zeros, of which the simulated disk holds none.

use super::*;

const LEN: usize = VALUE_LEN_MAX;
const COUNT: u64 = (4 << 30) / LEN as u64 + 3;

fn name(n: u64) -> Vec<u8> {
    format!("name {n:04}").into_bytes()
}

/// Records, chunks, sections and the footer lie behind 2^32, and all are found there.
#[test]
fn a_table_longer_than_four_gib_is_read_to_its_end() {
    let disk = SimDisk::pread(1);
    let path = Path::new("t");
    let target: Arc<dyn Disk> = Arc::new(disk.clone());
    let mut builder =
        TableBuilder::create(target, path, IDENTITY, TableOptions::default()).unwrap();
    let zeros = vec![0; LEN];
    let tail = |n: u64| format!("small {n}").into_bytes();
    for n in 0..COUNT {
        for (version, value) in [(2, &tail(n)), (1, &zeros)] {
            builder
                .add(Entry {
                    name: &name(n),
                    version: Hlc(version),
                    kind: EntryKind::Value,
                    value,
                })
                .unwrap();
        }
    }
    let meta = builder.finish().unwrap();
    assert!(meta.len > (4 << 30) + 2 * LEN as u64, "{}", meta.len);
    let table = Table::open(&disk, path, Some(&meta), &options()).unwrap();
    for n in (0..COUNT).step_by(16).chain(COUNT - 4..COUNT) {
        let newest = table.get(&name(n), Hlc::MAX).unwrap().unwrap();
        assert_eq!(Content::of(newest.value.source()), Content::Value(tail(n)));
        let older = table.get(&name(n), Hlc(1)).unwrap().unwrap();
        assert!(Content::of(older.value.source()) == Content::Value(zeros.clone()));
    }
    assert!(table.get(b"name 9999", Hlc::MAX).unwrap().is_none());
    let mut cursor = table.cursor();
    cursor.last();
    for n in (COUNT - 4..COUNT).rev() {
        for version in [1, 2] {
            assert_eq!(cursor.key().name, name(n));
            assert_eq!(cursor.key().version, Hlc(version));
            cursor.prev();
        }
    }
    // Damage behind 2^32 is found where it is.
    let at = (4 << 30) + LEN as u64;
    disk.rot(path, at, 1).unwrap();
    let last = table.get(&name(COUNT - 2), Hlc(1)).err();
    let other = table.get(&name(COUNT - 3), Hlc(1)).err();
    let error = last.or(other).expect("one of them has the byte");
    assert!(matches!(error, strandline_wal::Error::Corrupt { at, .. } if at > 4 << 30));
}
