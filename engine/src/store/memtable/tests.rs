//! The memtable against a sorted map.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use proptest::prelude::*;
use strandline_wal::ShardId;

use super::*;
use crate::table::{Cursor, InternalKey, Step};

fn entry(kind: EntryKind, offset: u32) -> MemEntry {
    let place = LogPlace {
        shard: ShardId(0),
        first_seq: 1,
        offset,
        len: 10,
    };
    MemEntry { kind, place }
}

type Model = BTreeMap<(Vec<u8>, Reverse<u64>), MemEntry>;

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![Just(0u8), Just(b'a'), Just(0xff)];
    let name = proptest::collection::vec(byte, 0..4);
    prop_oneof![
        name.clone(),
        name.prop_map(|name| [b"sixteen bytes of", &name[..]].concat())
    ]
}

/// A memtable of these records, which somebody walked before the record `walked` came, or that was in order
/// from the start.
fn filled(
    records: &[(Vec<u8>, u64, bool)],
    walked: usize,
    is_ordered: bool,
) -> (Arc<Memtable>, Model) {
    let shape = Shape {
        name_count: 0,
        seed: 1,
        is_ordered,
    };
    let (memtable, mut model) = (Arc::new(Memtable::new(shape)), Model::new());
    for (n, (name, version, is_tombstone)) in records.iter().enumerate() {
        if n == walked {
            memtable.cursor().first();
        }
        let kind = if *is_tombstone {
            EntryKind::Tombstone
        } else {
            EntryKind::Value
        };
        let entry = entry(kind, n as u32);
        memtable.insert(name, Hlc(*version), entry);
        model.insert((name.clone(), Reverse(*version)), entry);
    }
    (memtable, model)
}

fn standing(cursor: &impl Cursor) -> Option<Row<'_>> {
    cursor.is_valid().then(|| {
        let key = cursor.key();
        (key.name.to_vec(), key.version.0, cursor.value())
    })
}

/// Name, version and value.
type Row<'a> = (Vec<u8>, u64, ValueSource<'a>);

/// A cursor over `rows` stands where each move leads.
fn walk(
    mut cursor: impl Cursor,
    rows: &[Row<'_>],
    moves: &[(u8, Vec<u8>, u64)],
) -> Result<(), TestCaseError> {
    let mut at: Option<usize> = None;
    for (kind, name, version) in moves {
        let key = InternalKey {
            name,
            version: Hlc(*version),
        };
        let keys = rows.iter().map(|row| InternalKey {
            name: &row.0,
            version: Hlc(row.1),
        });
        match kind {
            0 => {
                cursor.seek(key);
                at = keys.clone().position(|other| other >= key);
            }
            1 => {
                cursor.seek_for_prev(key);
                at = keys.clone().rposition(|other| other <= key);
            }
            2 => {
                cursor.first();
                at = (!rows.is_empty()).then_some(0);
            }
            3 => {
                cursor.last();
                at = rows.len().checked_sub(1);
            }
            4..10 => {
                cursor.next();
                at = at.and_then(|at| (at + 1 < rows.len()).then_some(at + 1));
            }
            _ => {
                cursor.prev();
                at = at.and_then(|at| at.checked_sub(1));
            }
        }
        prop_assert_eq!(standing(&cursor), at.map(|at| rows[at].clone()));
    }
    Ok(())
}

proptest! {
    #[test]
    fn lookups_find_the_newest_version_not_above_the_one_asked_for(
        records in proptest::collection::vec((name(), 1u64..8, any::<bool>()), 0..200),
        names in proptest::collection::vec(name(), 0..20),
    ) {
        let (memtable, model) = filled(&records, 100, false);
        for name in names.iter().chain(records.iter().map(|record| &record.0)) {
            for at in 0..9 {
                let expected = model
                    .range((name.clone(), Reverse(at))..)
                    .next()
                    .filter(|(key, _)| key.0 == *name)
                    .map(|(key, entry)| (key.1.0, entry.source()));
                let found = memtable.get(name, Hlc(at));
                let found = found.as_ref().map(|f| (f.version.0, f.value.source()));
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn cursors_walk_every_key_once_in_both_directions(
        records in proptest::collection::vec((name(), 1u64..8, any::<bool>()), 0..200),
        moves in proptest::collection::vec((0u8..16, name(), 0u64..9), 0..80),
        is_sealed in any::<bool>(),
        is_ordered in any::<bool>(),
        walked in 0..200usize,
    ) {
        let (memtable, model) = filled(&records, walked, is_ordered);
        let rows: Vec<_> = model
            .iter()
            .map(|((name, version), entry)| (name.clone(), version.0, entry.source()))
            .collect();
        walk(memtable.cursor(), &rows, &moves)?;
        if is_sealed {
            memtable.seal();
            walk(memtable.cursor(), &rows, &moves)?;
        }
        for limit in 0..9 {
            let mut seen: Vec<Row<'_>> = Vec::new();
            for row in &rows {
                match seen.last_mut() {
                    Some(before) if before.0 == row.0 => {
                        if before.1 > limit && row.1 <= limit {
                            *before = row.clone();
                        }
                    }
                    _ => seen.push(row.clone()),
                }
            }
            walk(memtable.cursor_at(Hlc(limit)), &seen, &moves)?;
            for (_, name, _) in &moves {
                let mut cursor = memtable.cursor_at(Hlc(limit));
                cursor.seek(InternalKey::first_of(name));
                let mut visited = Vec::new();
                let _ = cursor.visit(&mut |Step { key, value, repeats }| {
                    assert!(!repeats);
                    visited.push((key.name.to_vec(), key.version.0, format!("{value:?}")));
                    ControlFlow::Continue(())
                });
                let behind = seen.iter().filter(|row| row.0 >= *name);
                let behind: Vec<_> = behind
                    .map(|row| (row.0.clone(), row.1, format!("{:?}", row.2)))
                    .collect();
                prop_assert_eq!(visited, behind);
            }
        }
    }
}

#[test]
fn the_last_record_of_a_batch_wins() {
    let memtable = Arc::new(Memtable::default());
    memtable.insert(b"name", Hlc(5), entry(EntryKind::Value, 0));
    memtable.insert(b"name", Hlc(5), entry(EntryKind::Tombstone, 2));
    memtable.insert(b"name", Hlc(5), entry(EntryKind::Value, 9));
    let found = memtable.get(b"name", Hlc(5)).unwrap();
    assert_eq!(found.value.source(), entry(EntryKind::Value, 9).source());
    let mut cursor = memtable.cursor();
    for is_back in [false, true] {
        if is_back {
            cursor.last()
        } else {
            cursor.first()
        }
        assert_eq!(cursor.value(), entry(EntryKind::Value, 9).source());
        if is_back {
            cursor.prev()
        } else {
            cursor.next()
        }
        assert!(!cursor.is_valid());
    }
}

#[test]
fn a_record_that_is_replayed_changes_nothing() {
    let memtable = Memtable::default();
    assert!(memtable.is_empty());
    memtable.insert(b"name", Hlc(5), entry(EntryKind::Value, 7));
    memtable.insert(b"name", Hlc(5), entry(EntryKind::Value, 7));
    assert_eq!(memtable.entry_count(), 1);
    let found = memtable.get(b"name", Hlc(9)).unwrap();
    assert_eq!(found.value.source(), entry(EntryKind::Value, 7).source());
}

#[test]
fn writers_and_readers_go_at_once() {
    let memtable = Arc::new(Memtable::default());
    std::thread::scope(|scope| {
        for writer in 0..2u32 {
            let memtable = &memtable;
            scope.spawn(move || {
                for n in 0..2_000u32 {
                    let name = format!("{:05}", n * 2 + writer);
                    let version = Hlc(u64::from(n + 1));
                    memtable.insert(name.as_bytes(), version, entry(EntryKind::Value, n));
                }
            });
        }
        let memtable = &memtable;
        scope.spawn(move || {
            for _ in 0..20 {
                let mut cursor = memtable.cursor();
                let mut before = Vec::new();
                cursor.first();
                while cursor.is_valid() {
                    assert!(before.is_empty() || *before < *cursor.key().name);
                    before = cursor.key().name.to_vec();
                    cursor.next();
                }
            }
        });
    });
    assert_eq!(memtable.entry_count(), 4_000);
    assert_eq!(walked(memtable.cursor()), 4_000);
    memtable.seal();
    assert_eq!(walked(memtable.cursor()), 4_000);
}

/// How many entries a cursor shows.
fn walked(mut cursor: MemtableCursor) -> usize {
    cursor.first();
    let mut count = 0;
    while cursor.is_valid() {
        count += 1;
        cursor.next();
    }
    count
}

/// Whoever makes the order and those who insert meanwhile leave no name out between them.
#[test]
fn an_order_that_is_made_meanwhile_has_every_name() {
    for round in 0..200 {
        let memtable = Arc::new(Memtable::default());
        let barrier = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for writer in 0..2u32 {
                let (memtable, barrier) = (&memtable, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    for n in 0..100u32 {
                        let name = (n * 2 + (writer & round)).to_be_bytes();
                        let version = Hlc(u64::from(n * 2 + writer + 1));
                        memtable.insert(&name, version, entry(EntryKind::Value, n));
                    }
                });
            }
            barrier.wait();
            let cursor = memtable.cursor();
            assert!(walked(cursor) <= 200);
        });
        assert_eq!(walked(memtable.cursor()), 200);
        for n in 0..100 {
            let name = (n * 2u32).to_be_bytes();
            let found = memtable.get(&name, Hlc(u64::from(n * 2 + 1))).unwrap();
            assert_eq!(found.version, Hlc(u64::from(n * 2 + 1)));
        }
    }
}

/// Names that are newer than a reader's time are shown for it to see, one by one.
#[test]
fn a_cursor_passes_over_nothing_that_is_too_new() {
    for is_sealed in [false, true] {
        let memtable = Arc::new(Memtable::default());
        for n in 0..10_000u32 {
            memtable.insert(&n.to_be_bytes(), Hlc(9), entry(EntryKind::Value, n));
        }
        memtable.insert(b"z", Hlc(1), entry(EntryKind::Value, 1));
        if is_sealed {
            memtable.seal();
        }
        let mut cursor = memtable.cursor_at(Hlc(1));
        cursor.first();
        assert_eq!(cursor.key().version, Hlc(9), "to be passed over");
        let mut count = 0;
        let _ = cursor.visit(&mut |step: Step<'_>| {
            count += 1;
            assert_eq!(step.key.version, Hlc(9));
            if count == 20 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!(count, 20);
    }
}

/// Versions of one name that come in any order, from any thread, stand in theirs.
#[test]
fn versions_stand_in_their_order() {
    let memtable = Arc::new(Memtable::default());
    std::thread::scope(|scope| {
        for writer in 0..2u64 {
            let memtable = &memtable;
            scope.spawn(move || {
                for n in 0..1_000 {
                    let version = (n * 7 % 1_000) * 2 + writer + 1;
                    memtable.insert(
                        b"name",
                        Hlc(version),
                        entry(EntryKind::Value, version as u32),
                    );
                }
            });
        }
    });
    for at in 1..=2_000 {
        let found = memtable.get(b"name", Hlc(at)).unwrap();
        assert_eq!(found.version, Hlc(at));
        assert_eq!(
            found.value.source(),
            entry(EntryKind::Value, at as u32).source()
        );
    }
}

/// More versions of one name than a batch of a cursor takes.
#[test]
fn many_versions_of_one_name_are_walked_in_both_directions() {
    let memtable = Arc::new(Memtable::default());
    let count = 200_000;
    for n in 1..=count {
        memtable.insert(b"name", Hlc(n), entry(EntryKind::Value, n as u32));
    }
    memtable.insert(b"before", Hlc(1), entry(EntryKind::Value, 1));
    memtable.insert(b"behind", Hlc(1), entry(EntryKind::Value, 1));
    let mut cursor = memtable.cursor();
    cursor.seek(InternalKey {
        name: b"name",
        version: Hlc(count),
    });
    for n in (1..=count).rev() {
        assert_eq!(cursor.key().version, Hlc(n));
        cursor.next();
    }
    assert!(!cursor.is_valid());
    cursor.last();
    for n in 1..=count {
        assert_eq!(cursor.key().version, Hlc(n));
        cursor.prev();
    }
    assert_eq!(cursor.key().name, b"behind");
}

/// What was inserted is found from then on, and stands once, however often the table grows meanwhile.
#[test]
fn names_are_found_while_their_table_grows() {
    const COUNT: u32 = 20_000;
    let memtable = Arc::new(Memtable::default());
    let inserted = [const { AtomicU32::new(0) }; 2];
    let version = |n: u32, writer: u32| Hlc(u64::from(n * 2 + writer + 1));
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (memtable, inserted) = (&memtable, &inserted);
            scope.spawn(move || {
                // Each inserts every name, so that they meet at some of them.
                for n in 0..COUNT {
                    let name = n.to_be_bytes();
                    memtable.insert(&name, version(n, writer), entry(EntryKind::Value, n));
                    inserted[writer as usize].store(n + 1, Release);
                }
            });
        }
        let (memtable, inserted) = (&memtable, &inserted);
        scope.spawn(move || {
            let mut random = 1u32;
            loop {
                let known = [0, 1].map(|writer: usize| inserted[writer].load(Acquire));
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                for writer in 0..2 {
                    let Some(n) = random.checked_rem(known[writer as usize]) else {
                        continue;
                    };
                    let at = version(n, writer);
                    let found = memtable.get(&n.to_be_bytes(), at).unwrap();
                    assert_eq!(found.version, at);
                }
                if known == [COUNT; 2] {
                    return;
                }
            }
        });
    });
    assert_eq!(memtable.name_count(), COUNT as usize);
    assert_eq!(memtable.entry_count(), 2 * COUNT as usize);
}
