//! The merge and its iterators against a sorted list.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use proptest::prelude::*;
use strandline_wal::{Hlc, ShardId};

use super::*;
use crate::store::batch::Name;
use crate::store::memtable::{MemEntry, Memtable, MemtableCursor};
use crate::table::EntryKind;
use crate::table::LogPlace;

/// An entry: name, version, whether it is a value, and a number that tells copies apart.
type Row = (Vec<u8>, u64, bool, u32);

fn name() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b')], 0..4)
}

fn sources() -> impl Strategy<Value = Vec<Vec<Row>>> {
    let row = (name(), 1u64..12, prop::bool::weighted(0.7));
    proptest::collection::vec(proptest::collection::vec(row, 0..40), 0..6).prop_map(|sources| {
        let mut number = 0;
        sources
            .into_iter()
            .map(|rows| {
                let mut keys = BTreeSet::new();
                rows.into_iter()
                    .filter(|(name, version, _)| keys.insert((name.clone(), *version)))
                    .map(|(name, version, is_value)| {
                        number += 1;
                        (name, version, is_value, number)
                    })
                    .collect()
            })
            .collect()
    })
}

fn merged(sources: &[Vec<Row>]) -> Merge<MemtableCursor> {
    let cursors = sources.iter().map(|rows| filled(rows).cursor());
    Merge::new(cursors.collect())
}

fn filled(rows: &[Row]) -> Arc<Memtable> {
    let memtable = Arc::new(Memtable::default());
    for (name, version, is_value, number) in rows {
        let kind = if *is_value {
            EntryKind::Value
        } else {
            EntryKind::Tombstone
        };
        let place = LogPlace {
            shard: ShardId(0),
            first_seq: 1,
            offset: *number,
            len: 0,
        };
        memtable.insert(name, Hlc(*version), MemEntry { kind, place });
    }
    memtable
}

/// A closure that sees what a visit shows.
struct Shown<F>(F);

impl<F: FnMut(&[u8], ValueSource<'_>) -> ControlFlow<()>> See for Shown<F> {
    fn see(&mut self, name: &[u8], value: ValueSource<'_>) -> ControlFlow<()> {
        (self.0)(name, value)
    }
}

/// Names and numbers that a visit shows until it has seen `count`.
fn visited<C: Cursor>(
    mut iter: VisibleIter<C>,
    is_back: bool,
    count: usize,
) -> Vec<(Vec<u8>, u32)> {
    let mut seen = Vec::new();
    let see = |name: &[u8], value: ValueSource<'_>| {
        let ValueSource::Log(place) = value else {
            panic!("a memtable has no {value:?}");
        };
        seen.push((name.to_vec(), place.offset));
        match seen.len() < count {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    };
    match is_back {
        true => iter.visit_back(see),
        false => iter.visit(&mut Shown(see)),
    }
    iter.status().unwrap();
    seen
}

/// All rows in the order of the merge, with the number of their source.
fn model(sources: &[Vec<Row>]) -> Vec<Row> {
    let mut rows: Vec<(usize, Row)> = sources
        .iter()
        .enumerate()
        .flat_map(|(source, rows)| rows.iter().map(move |row| (source, row.clone())))
        .collect();
    rows.sort_by(|(i, a), (j, b)| key(a).cmp(&key(b)).then(i.cmp(j)));
    rows.into_iter().map(|(_, row)| row).collect()
}

fn key(row: &Row) -> InternalKey<'_> {
    InternalKey {
        name: &row.0,
        version: Hlc(row.1),
    }
}

/// What the iterator stands on; the number is 0 for tombstones, which have no place.
fn standing(key: InternalKey<'_>, value: ValueSource<'_>) -> Row {
    let number = match value {
        ValueSource::Log(place) => place.offset,
        ValueSource::Absent => 0,
        other => panic!("a memtable has no {other:?}"),
    };
    (key.name.to_vec(), key.version.0, number != 0, number)
}

fn shown(row: &Row) -> Row {
    (row.0.clone(), row.1, row.2, if row.2 { row.3 } else { 0 })
}

/// What is visible at a version within bounds, in order.
fn visible(rows: &[Row], at: u64, bounds: &(Bound<Vec<u8>>, Bound<Vec<u8>>)) -> Vec<Row> {
    let mut newest: BTreeMap<&[u8], &Row> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.1 <= at) {
        newest.entry(&row.0).or_insert(row);
    }
    let within = |row: &&Row| {
        use std::ops::RangeBounds;
        bounds.contains(&row.0)
    };
    newest
        .into_values()
        .filter(|row| row.2)
        .filter(within)
        .cloned()
        .collect()
}

fn bound() -> impl Strategy<Value = Bound<Vec<u8>>> {
    prop_oneof![
        Just(Bound::Unbounded),
        name().prop_map(Bound::Included),
        name().prop_map(Bound::Excluded),
    ]
}

/// Where a move leads in a list of sorted rows.
fn moved(rows: &[Row], at: Option<usize>, kind: u8, wanted: InternalKey<'_>) -> Option<usize> {
    match kind {
        0 => rows.iter().position(|row| key(row) >= wanted),
        1 => rows.iter().rposition(|row| key(row) <= wanted),
        2 => (!rows.is_empty()).then_some(0),
        3 => rows.len().checked_sub(1),
        4..10 => at.and_then(|at| (at + 1 < rows.len()).then_some(at + 1)),
        _ => at.and_then(|at| at.checked_sub(1)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_merge_is_its_sources_in_order_whatever_way_it_is_walked(
        sources in sources(),
        moves in proptest::collection::vec((0u8..16, name(), 0u64..13), 0..60),
    ) {
        let rows = model(&sources);
        let mut merge = merged(&sources);
        let mut at = None;
        for (kind, name, version) in &moves {
            let wanted = InternalKey { name, version: Hlc(*version) };
            at = moved(&rows, at, *kind, wanted);
            match kind {
                0 => merge.seek(wanted),
                1 => merge.seek_for_prev(wanted),
                2 => merge.first(),
                3 => merge.last(),
                4..10 => merge.next(),
                _ => merge.prev(),
            }
            let found = merge.is_valid().then(|| standing(merge.key(), merge.value()));
            prop_assert_eq!(found, at.map(|at| shown(&rows[at])));
        }
    }

    #[test]
    fn a_reader_sees_the_newest_version_of_each_name_and_no_deleted_one(
        sources in sources(),
        at in 0u64..13,
        bounds in (bound(), bound()),
        moves in proptest::collection::vec((0u8..16, name()), 0..60),
    ) {
        let rows = visible(&model(&sources), at, &bounds);
        let bounds = (bounds.0.map(Name::from), bounds.1.map(Name::from));
        let mut iter = VisibleIter::new(merged(&sources), Hlc(at), bounds);
        let mut position = None;
        for (kind, name) in &moves {
            // Rows have one version per name here, so the last key of a name is behind all of it.
            let wanted = match kind {
                0 => InternalKey::first_of(name),
                _ => InternalKey::last_of(name),
            };
            position = moved(&rows, position, *kind, wanted);
            match kind {
                0 => iter.seek(name),
                1 => iter.seek_for_prev(name),
                2 => iter.first(),
                3 => iter.last(),
                4..10 => iter.next(),
                _ => iter.prev(),
            }
            let found = iter.is_valid().then(|| {
                let version = iter.version();
                let found = iter.found();
                prop_assert_eq!(found.version, version);
                prop_assert_eq!(found.value.source(), iter.value());
                Ok(standing(InternalKey { name: iter.name(), version }, iter.value()))
            });
            let found = found.transpose()?;
            prop_assert_eq!(found.as_ref(), position.map(|at| &rows[at]));
        }
    }

    #[test]
    fn a_visit_shows_what_a_reader_sees_until_it_breaks(
        sources in sources(),
        at in 0u64..13,
        bounds in (bound(), bound()),
        count in 1usize..40,
        newest_only in any::<bool>(),
    ) {
        let mut rows = visible(&model(&sources), at, &bounds);
        let bounds = (bounds.0.map(Name::from), bounds.1.map(Name::from));
        for is_back in [false, true] {
            if is_back {
                rows.reverse();
            }
            let bounds = bounds.clone();
            let seen = match newest_only {
                true => {
                    let cursors = sources.iter().map(|rows| filled(rows).cursor_at(Hlc(at)));
                    let merge = Merge::new(cursors.collect());
                    visited(VisibleIter::new(merge, Hlc(at), bounds), is_back, count)
                }
                false => visited(VisibleIter::new(merged(&sources), Hlc(at), bounds), is_back, count),
            };
            let wanted = rows.iter().take(count).map(|row| (row.0.clone(), row.3));
            prop_assert_eq!(seen, wanted.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_compaction_changes_nothing_that_anyone_may_read(
        sources in sources(),
        snapshots in proptest::collection::btree_set(0u64..13, 0..4),
        horizon in prop_oneof![1u64..13, Just(u64::MAX)],
        is_bottom: bool,
    ) {
        let rules = CompactionRules {
            snapshots: snapshots.iter().copied().map(Hlc).collect(),
            horizon: Hlc(horizon),
            is_bottom,
        };
        let before = model(&sources);
        let mut dropped = Vec::new();
        let mut kept = Vec::new();
        let on_drop = |entry: Dropped<'_>| dropped.push(standing(entry.key, entry.value));
        let mut iter = CompactionIter::new(merged(&sources), rules, on_drop);
        iter.first();
        while iter.is_valid() {
            kept.push(standing(iter.key(), iter.value()));
            iter.next();
        }
        drop(iter);

        prop_assert!(kept.is_sorted_by(|a, b| key(a) < key(b)));
        let mut all: Vec<Row> = kept.iter().chain(&dropped).cloned().collect();
        let mut expected: Vec<Row> = before.iter().map(shown).collect();
        all.sort();
        expected.sort();
        prop_assert_eq!(all, expected, "every entry is kept or told of, once");

        let unbounded = (Bound::Unbounded, Bound::Unbounded);
        let later = (horizon.min(13)..=13).chain([u64::MAX]);
        for at in snapshots.iter().copied().chain(later) {
            let expected = visible(&before, at, &unbounded);
            prop_assert_eq!(visible(&kept, at, &unbounded), expected, "at {}", at);
        }
        // Above the bottom a tombstone stays for what it hides below, where it is the newest.
        if !is_bottom {
            let newest = |rows: &[Row]| {
                let mut newest = BTreeMap::new();
                for row in rows {
                    newest.entry(row.0.clone()).or_insert(row.1);
                }
                newest
            };
            prop_assert_eq!(newest(&kept), newest(&before));
        }
    }

    #[test]
    fn a_compaction_without_readers_keeps_one_version_of_each_name(sources in sources()) {
        let rules =
            CompactionRules { snapshots: Vec::new(), horizon: Hlc::MAX, is_bottom: true };
        let mut iter = CompactionIter::new(merged(&sources), rules, |_| {});
        let mut kept = Vec::new();
        iter.first();
        while iter.is_valid() {
            kept.push(standing(iter.key(), iter.value()));
            iter.next();
        }
        let unbounded = (Bound::Unbounded, Bound::Unbounded);
        prop_assert_eq!(kept, visible(&model(&sources), u64::MAX, &unbounded));
    }
}

#[test]
fn many_versions_of_one_name_are_searched_and_not_walked() {
    let rows: Vec<Row> = (1..500)
        .map(|version| (b"hot".to_vec(), version, true, 1))
        .collect();
    let sources = [
        rows,
        vec![(b"a".to_vec(), 1, true, 2), (b"z".to_vec(), 1, true, 3)],
    ];
    for at in [1, 5, 250, 499, 1_000] {
        let bounds = (Bound::Unbounded, Bound::Unbounded);
        let mut iter = VisibleIter::new(merged(&sources), Hlc(at), bounds);
        iter.first();
        let mut names = Vec::new();
        while iter.is_valid() {
            names.push((iter.name().to_vec(), iter.version().0));
            iter.next();
        }
        let expected = vec![
            (b"a".to_vec(), 1),
            (b"hot".to_vec(), at.min(499)),
            (b"z".to_vec(), 1),
        ];
        assert_eq!(names, expected);
        iter.last();
        for (name, version) in expected.iter().rev() {
            assert_eq!((iter.name(), iter.version()), (&name[..], Hlc(*version)));
            iter.prev();
        }
        assert!(!iter.is_valid());
    }
}

/// A cursor over nothing but an error, from its `steps_left`-th move on.
struct Failing {
    inner: MemtableCursor,
    steps_left: usize,
}

impl Failing {
    fn step(&mut self, go: impl FnOnce(&mut MemtableCursor)) {
        self.steps_left = self.steps_left.saturating_sub(1);
        go(&mut self.inner);
    }
}

impl Cursor for Failing {
    fn seek(&mut self, key: InternalKey<'_>) {
        self.step(|inner| inner.seek(key));
    }

    fn seek_for_prev(&mut self, key: InternalKey<'_>) {
        self.step(|inner| inner.seek_for_prev(key));
    }

    fn first(&mut self) {
        self.step(Cursor::first);
    }

    fn last(&mut self) {
        self.step(Cursor::last);
    }

    fn next(&mut self) {
        self.step(Cursor::next);
    }

    fn prev(&mut self) {
        self.step(Cursor::prev);
    }

    fn is_valid(&self) -> bool {
        self.steps_left > 0 && self.inner.is_valid()
    }

    fn key(&self) -> InternalKey<'_> {
        self.inner.key()
    }

    fn value(&self) -> ValueSource<'_> {
        self.inner.value()
    }

    fn found(&self) -> Found {
        self.inner.found()
    }

    fn status(&self) -> Result<()> {
        if self.steps_left > 0 {
            return Ok(());
        }
        Err(Error::corrupt(
            std::path::Path::new("t"),
            0,
            "test",
            "good",
            "bad",
        ))
    }
}

#[test]
fn an_error_of_one_source_stops_all_that_is_built_on_it() {
    let rows = |from: u32| -> Vec<Row> {
        (0..10)
            .map(|n| (format!("{n:02}").into(), u64::from(from), true, from + n))
            .collect()
    };
    let sources = [rows(1), rows(50), rows(90)];
    let all = visible(
        &model(&sources),
        u64::MAX,
        &(Bound::Unbounded, Bound::Unbounded),
    );
    let failing = |steps_left| {
        let Merge { sources, .. } = merged(&sources);
        let steps = [usize::MAX, steps_left, usize::MAX];
        let failing = sources.into_iter().zip(steps);
        Merge::new(
            failing
                .map(|(inner, steps_left)| Failing { inner, steps_left })
                .collect(),
        )
    };
    for steps_left in 0..14 {
        for is_back in [false, true] {
            let bounds = (Bound::Unbounded, Bound::Unbounded);
            let mut iter = VisibleIter::new(failing(steps_left), Hlc::MAX, bounds);
            if is_back {
                iter.last()
            } else {
                iter.first()
            }
            let mut seen = Vec::new();
            while iter.is_valid() {
                let key = InternalKey {
                    name: iter.name(),
                    version: iter.version(),
                };
                seen.push(standing(key, iter.value()));
                if is_back { iter.prev() } else { iter.next() }
            }
            if is_back {
                seen.reverse();
                assert_eq!(seen, all[all.len() - seen.len()..]);
            } else {
                assert_eq!(seen, all[..seen.len()]);
            }
            let is_whole = steps_left > 11;
            assert_eq!(iter.status().is_ok(), is_whole);
            assert!(!is_whole || seen.len() == all.len());
        }
        let bounds = (Bound::Unbounded, Bound::Unbounded);
        let mut iter = VisibleIter::new(failing(steps_left), Hlc::MAX, bounds);
        let mut seen = Vec::new();
        iter.visit(&mut Shown(|name: &[u8], _: ValueSource<'_>| {
            seen.push(name.to_vec());
            ControlFlow::Continue(())
        }));
        assert!(seen.iter().eq(all[..seen.len()].iter().map(|row| &row.0)));
        assert_eq!(iter.status().is_ok(), steps_left > 11);
        assert!(steps_left <= 11 || seen.len() == all.len());
        let rules = CompactionRules {
            snapshots: Vec::new(),
            horizon: Hlc::MAX,
            is_bottom: true,
        };
        let mut iter = CompactionIter::new(failing(steps_left), rules, |_| {});
        iter.first();
        while iter.is_valid() {
            iter.next();
        }
        assert_eq!(iter.status().is_ok(), steps_left > 11);
    }
}
