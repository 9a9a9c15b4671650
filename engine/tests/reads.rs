//! Every way to read: iterators from both ends, ranges, prefixes, cursors and snapshots, of keys in memory
//! and in tables; and batches, the way to write what they read.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use strandline::{
    Background, Cursor, Database, Durability, EntityRule, Error, Iter, Keyspace, Options,
    ShardRouter, Snapshot,
};
use strandline_wal::io::sim::{Damage, SimDisk, SimEnv};

fn options() -> Options {
    Options {
        memtable_len_max: 64 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        table_len_max: 64 << 10,
        reserve_len_max: 0,
        durability: Durability::Os,
        background: Background::Manual,
        ..Options::default()
    }
}

fn database() -> Database {
    options().open_with("/db", SimEnv::new(1).env()).unwrap()
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Writes and removes keys so that they lie in two runs of several tables, in the memtable, and in both;
/// other keyspaces lie around them.
fn layered(db: &Database) -> (Keyspace, Model) {
    let mut model = Model::new();
    let neighbours = ["before", "after"];
    db.keyspace(neighbours[0]).unwrap();
    let map = db.keyspace("map").unwrap();
    for name in neighbours {
        let other = db.keyspace(name).unwrap();
        other.put("", "not of map").unwrap();
        other.put([0xff; 5], "not of map").unwrap();
    }
    let key = |n: u32| format!("key {n:04}").into_bytes();
    let mut put = |key: Vec<u8>, value: Vec<u8>| {
        map.put(&key, &value).unwrap();
        model.insert(key, value);
    };
    for n in (0..600).step_by(2) {
        put(key(n), vec![n as u8; 400]);
    }
    put(vec![0xff; 3], b"the last one".to_vec());
    db.flush().unwrap();
    for n in (0..600).step_by(3) {
        put(key(n), vec![1; 500]);
    }
    db.flush().unwrap();
    for n in 250..260 {
        put(key(n), vec![2; 20]);
    }
    for n in [0, 1, 6, 7, 255, 598] {
        map.delete(key(n)).unwrap();
        model.remove(&key(n));
    }
    assert!(db.dataset("").unwrap().stats().run_count > 1);
    assert!(db.dataset("").unwrap().stats().table_count > 3);
    (map, model)
}

fn pairs(iter: impl Iterator<Item = strandline::Result<strandline::iter::Item>>) -> Vec<Vec<u8>> {
    iter.map(|item| {
        let (key, value) = item.unwrap();
        [&key[..], b"=", &value].concat()
    })
    .collect()
}

fn wanted<'a>(model: impl Iterator<Item = (&'a Vec<u8>, &'a Vec<u8>)>) -> Vec<Vec<u8>> {
    model
        .map(|(key, value)| [&key[..], b"=", value].concat())
        .collect()
}

fn check_both_ways(iter: impl Fn() -> Iter, wanted: &[Vec<u8>], what: &str) {
    assert!(pairs(iter()) == wanted, "{what}");
    let mut back = pairs(iter().rev());
    back.reverse();
    assert!(back == wanted, "{what} backward");
}

/// What a visit of the range shows until it has seen `count`.
fn visited(
    visit: impl FnOnce(&mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>) -> strandline::Result<()>,
    count: usize,
) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    visit(&mut |key, value| {
        seen.push([key, b"=", value].concat());
        match seen.len() < count {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })
    .unwrap();
    seen
}

#[test]
fn ranges_and_prefixes_show_what_a_map_of_the_same_keys_shows() {
    let db = database();
    let (map, model) = layered(&db);
    check_ranges(&db, &map, &model);
    // One run alone, with the versions of a snapshot in it, and then without.
    let snapshot = db.dataset("").unwrap().snapshot();
    map.put("key 0254", "a newer one").unwrap();
    map.delete("key 0256").unwrap();
    settle(&db);
    check_snapshot(&snapshot, &map, &model);
    drop(snapshot);
    map.put("key 0254", &model[&b"key 0254"[..]]).unwrap();
    map.put("key 0256", &model[&b"key 0256"[..]]).unwrap();
    check_ranges(&db, &map, &model);
    settle(&db);
    assert_eq!(db.dataset("").unwrap().stats().run_count, 1);
    check_ranges(&db, &map, &model);
}

fn settle(db: &Database) {
    db.flush().unwrap();
    db.dataset("").unwrap().compact().unwrap();
}

fn check_snapshot(snapshot: &Snapshot, map: &Keyspace, model: &Model) {
    let all = wanted(model.iter());
    check_both_ways(|| snapshot.iter(map), &all, "all of a snapshot");
    for count in [1, 2, 200, usize::MAX] {
        let seen = visited(|see| snapshot.visit::<&[u8], _>(map, .., see), count);
        assert!(seen == all[..all.len().min(count)], "{count} of a snapshot");
        let mut seen = visited(|see| snapshot.visit_rev::<&[u8], _>(map, .., see), count);
        seen.reverse();
        let rest = all.len().saturating_sub(count);
        assert!(seen == all[rest..], "the last {count} of a snapshot");
    }
}

/// Versions of one name end up on both sides of a chunk's end, and a chunk begins and ends with any of
/// them.
#[test]
fn visits_go_over_the_ends_of_chunks_with_several_versions_of_a_name() {
    let db = database();
    let map = db.keyspace("map").unwrap();
    let key = |n: usize| format!("key {n:05}").into_bytes();
    let value = |n: usize, round: usize| vec![n as u8; 40 + (n * 7 + round) % 90];
    let mut model = Model::new();
    let mut held = Vec::new();
    for round in 0..4 {
        for n in (0..4_000).filter(|n| round == 0 || n % (round + 1) == 0) {
            match (n + round) % 11 {
                0 => {
                    map.delete(key(n)).unwrap();
                    model.remove(&key(n));
                }
                _ => {
                    map.put(key(n), value(n, round)).unwrap();
                    model.insert(key(n), value(n, round));
                }
            }
        }
        held.push((db.dataset("").unwrap().snapshot(), model.clone()));
        if round == 2 {
            db.flush().unwrap();
        }
    }
    for _ in 0..2 {
        for (snapshot, model) in &held {
            check_snapshot(snapshot, &map, model);
            let range = key(1_000)..key(3_000);
            let wanted = wanted(model.range(range.clone()));
            let mut back = visited(
                |see| snapshot.visit_rev(&map, range.clone(), see),
                usize::MAX,
            );
            back.reverse();
            assert!(back == wanted, "a part, backward");
        }
        settle(&db);
    }
    assert_eq!(db.dataset("").unwrap().stats().run_count, 1);
}

/// Values stand in the table, in a segment beside it and in the memtable; whoever looks may write, flush and
/// compact meanwhile, and sees what there was.
#[test]
fn a_value_is_shown_where_it_stands_whatever_is_done_meanwhile() {
    let options = Options {
        large_value_len_min: 1 << 10,
        ..options()
    };
    let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put(b"small", b"1").unwrap();
    map.put(b"large", vec![2; 5_000]).unwrap();
    map.put(b"gone", b"3").unwrap();
    settle(&db);
    map.delete(b"gone").unwrap();
    map.put(b"fresh", b"4").unwrap();
    let snapshot = db.dataset("").unwrap().snapshot();
    let wanted: [(&[u8], Option<Vec<u8>>); 5] = [
        (b"small", Some(b"1".to_vec())),
        (b"large", Some(vec![2; 5_000])),
        (b"gone", None),
        (b"fresh", Some(b"4".to_vec())),
        (b"never", None),
    ];
    for (key, value) in &wanted {
        let seen = map.show(key, |seen| {
            map.put(key, b"other").unwrap();
            settle(&db);
            seen.to_vec()
        });
        assert_eq!(seen.unwrap(), *value);
        assert_eq!(map.contains(key).unwrap(), value.is_some());
        for (key, value) in &wanted {
            let seen = snapshot.show(&map, key, <[u8]>::to_vec).unwrap();
            assert_eq!(seen, *value, "of a snapshot");
        }
    }
}

fn check_ranges(db: &Database, map: &Keyspace, model: &Model) {
    let snapshot = db.dataset("").unwrap().snapshot();
    check_snapshot(&snapshot, map, model);
    let all = wanted(model.iter());
    check_both_ways(|| map.iter(), &all, "all");
    let edges = [
        &b""[..],
        b"key 0000",
        b"key 0250",
        b"key 0254x",
        b"key 0598",
        &[0xff; 3],
        &[0xff; 4],
    ];
    for (n, low) in edges.iter().enumerate() {
        for high in &edges[n..] {
            let (low, high) = (low.to_vec(), high.to_vec());
            for range in [
                (Bound::Included(low.clone()), Bound::Included(high.clone())),
                (Bound::Included(low.clone()), Bound::Excluded(high.clone())),
                (Bound::Excluded(low.clone()), Bound::Included(high.clone())),
                (Bound::Excluded(low.clone()), Bound::Unbounded),
                (Bound::Unbounded, Bound::Excluded(high.clone())),
            ] {
                let wanted = wanted(model.range(range.clone()));
                let what = format!("{range:?}");
                check_both_ways(|| map.range(range.clone()), &wanted, &what);
                check_both_ways(|| snapshot.range(map, range.clone()), &wanted, &what);
                let seen = visited(|see| map.visit(range.clone(), see), usize::MAX);
                assert!(seen == wanted, "visit of {what}");
                let mut seen = visited(|see| map.visit_rev(range.clone(), see), usize::MAX);
                seen.reverse();
                assert!(seen == wanted, "visit of {what}, descending");
            }
        }
    }
    for prefix in [
        &b""[..],
        b"key 02",
        b"key 0254",
        b"none",
        &[0xff],
        &[0xff; 4],
    ] {
        let wanted = wanted(model.iter().filter(|(key, _)| key.starts_with(prefix)));
        let what = format!("prefix {prefix:?}");
        check_both_ways(|| map.prefix(prefix), &wanted, &what);
        check_both_ways(|| snapshot.prefix(map, prefix), &wanted, &what);
    }
}

/// Many versions and deletions of few keys in memtables and runs, and readers of all times.
#[test]
fn visits_show_what_a_map_shows_whatever_lies_where() {
    for seed in 0..VISIT_SEEDS {
        let random = SimEnv::new(seed).env().random;
        let below = |count: u64| random.next_u64() % count;
        let db = database();
        let (map, dataset) = (db.keyspace("map").unwrap(), db.dataset("").unwrap());
        db.keyspace("next").unwrap().put("", "not of map").unwrap();
        let key = |n: u64| {
            let long = "k".repeat(if n.is_multiple_of(5) { 40 } else { 2 });
            format!("{}{n:02}", if n.is_multiple_of(3) { "" } else { &long }).into_bytes()
        };
        let mut model = Model::new();
        let mut past: Vec<(Snapshot, Model)> = Vec::new();
        for step in 0..300u32 {
            let name = key(below(50));
            match below(100) {
                0..55 => {
                    let len = if below(9) == 0 {
                        5_000
                    } else {
                        below(60) as usize
                    };
                    let value = [&step.to_be_bytes()[..], &vec![7; len]].concat();
                    map.put(&name, &value).unwrap();
                    model.insert(name, value);
                }
                55..75 => {
                    map.delete(&name).unwrap();
                    model.remove(&name);
                }
                75..80 => db.flush().unwrap(),
                80 => dataset.compact().unwrap(),
                81..85 => past.push((dataset.snapshot(), model.clone())),
                _ => {
                    let now = (dataset.snapshot(), model.clone());
                    let other = key(below(50));
                    let (low, high) = (name.clone().min(other.clone()), name.max(other));
                    let range = match below(4) {
                        0 => (Bound::Unbounded, Bound::Excluded(high)),
                        1 => (Bound::Excluded(low), Bound::Unbounded),
                        2 => (Bound::Included(low), Bound::Included(high)),
                        _ => (Bound::Unbounded, Bound::Unbounded),
                    };
                    let count = 1 + below(60) as usize;
                    for (snapshot, model) in past.iter().chain([&now]) {
                        let mut all = wanted(model.range(range.clone()));
                        let seen = visited(|see| snapshot.visit(&map, range.clone(), see), count);
                        let what = format!("seed {seed}, step {step}: {range:?}");
                        assert!(seen == all[..all.len().min(count)], "{what}");
                        all.reverse();
                        let seen =
                            visited(|see| snapshot.visit_rev(&map, range.clone(), see), count);
                        assert!(seen == all[..all.len().min(count)], "{what}, descending");
                    }
                }
            }
        }
    }
}

const VISIT_SEEDS: u64 = 20;

/// Whatever the order of the steps, each key comes once, and none behind the place where the ends met.
#[test]
fn the_two_ends_of_an_iterator_meet_once() {
    let db = database();
    let map = db.keyspace("map").unwrap();
    let keys = ["a", "b", "c", "d", "e"];
    for key in keys {
        map.put(key, key).unwrap();
    }
    for steps in 0..1u32 << 7 {
        let (mut front, mut back) = (0, keys.len());
        let mut iter = map.iter();
        for n in 0..7 {
            let is_back = steps >> n & 1 == 1;
            let wanted = (front < back).then(|| match is_back {
                true => {
                    back -= 1;
                    keys[back]
                }
                false => {
                    front += 1;
                    keys[front - 1]
                }
            });
            let found = match is_back {
                true => iter.next_back(),
                false => iter.next(),
            };
            let found = found.map(|item| item.unwrap().0);
            let wanted = wanted.map(|key| key.as_bytes().to_vec());
            assert_eq!(found, wanted, "step {n} of {steps:#b}");
        }
    }
}

fn key_of(cursor: &Cursor) -> Option<(Vec<u8>, Vec<u8>)> {
    let value = cursor.value().unwrap();
    let pair = cursor.key().map(<[u8]>::to_vec).zip(value);
    pair.map(|(key, value)| (key, value.to_vec()))
}

#[test]
fn a_cursor_goes_where_it_is_told() {
    let db = database();
    let (map, model) = layered(&db);
    let snapshot = db.dataset("").unwrap().snapshot();
    let owned = |pair: Option<(&Vec<u8>, &Vec<u8>)>| pair.map(|(k, v)| (k.clone(), v.clone()));
    for mut cursor in [map.cursor(), snapshot.cursor(&map)] {
        assert_eq!(key_of(&cursor), None, "it stands nowhere yet");
        assert!(!cursor.next().unwrap() && !cursor.prev().unwrap());
        assert!(cursor.first().unwrap());
        assert_eq!(key_of(&cursor), owned(model.iter().next()));
        assert!(!cursor.prev().unwrap());
        assert_eq!(key_of(&cursor), None);
        assert!(cursor.last().unwrap());
        assert_eq!(key_of(&cursor), owned(model.iter().next_back()));
        assert!(!cursor.next().unwrap());
        for key in [
            &b""[..],
            b"key 0001",
            b"key 0255",
            b"key 0598",
            b"zzz",
            &[0xff; 9],
        ] {
            let (from, to) = (model.range(key.to_vec()..), model.range(..=key.to_vec()));
            let (mut from, mut to) = (from, to.rev());
            let mut found = cursor.seek(key).unwrap();
            for _ in 0..3 {
                let wanted = owned(from.next());
                assert_eq!((found, key_of(&cursor)), (wanted.is_some(), wanted));
                found = cursor.next().unwrap();
            }
            let mut found = cursor.seek_back(key).unwrap();
            for _ in 0..3 {
                let wanted = owned(to.next());
                assert_eq!((found, key_of(&cursor)), (wanted.is_some(), wanted));
                found = cursor.prev().unwrap();
            }
        }
        // Back and forth over one place, in memory and in tables.
        for key in [&b"key 0100"[..], b"key 0254"] {
            cursor.seek(key).unwrap();
            let at = key_of(&cursor);
            assert!(cursor.next().unwrap() && cursor.prev().unwrap());
            assert_eq!(key_of(&cursor), at);
            assert!(cursor.prev().unwrap() && cursor.next().unwrap());
            assert_eq!(key_of(&cursor), at);
        }
    }
}

#[test]
fn a_snapshot_reads_the_same_whatever_happens_behind_it() {
    let db = database();
    let (map, model) = layered(&db);
    let dataset = db.dataset("").unwrap();
    let snapshot = dataset.snapshot();
    let wanted = wanted(model.iter());
    let keys: Vec<Vec<u8>> = model.keys().cloned().collect();
    for key in &keys {
        map.delete(key).unwrap();
    }
    map.put("new", "value").unwrap();
    assert_eq!(snapshot.get(&map, "new").unwrap(), None);
    assert!(dataset.snapshot().timestamp() > snapshot.timestamp());
    dataset.compact().unwrap();
    assert!(pairs(snapshot.clone().iter(&map)) == wanted);
    let (first, value) = model.iter().next().unwrap();
    assert_eq!(snapshot.get(&map, first).unwrap().unwrap(), *value);
    assert_eq!(snapshot.dataset().name(), "primary");
    assert_eq!(map.iter().count(), 1);
    assert!(map.contains("new").unwrap() && !map.contains(first).unwrap());
    let found = map.multi_get([&b"new"[..], first, b"no"]).unwrap();
    let found: Vec<Option<Vec<u8>>> = found
        .iter()
        .map(|v| v.as_ref().map(|v| v.to_vec()))
        .collect();
    assert_eq!(found, [Some(b"value".to_vec()), None, None]);
}

#[test]
fn a_batch_happens_all_at_once_across_keyspaces_and_shards() {
    let options = Options {
        router: ShardRouter::hash(4).unwrap(),
        entity_rule: EntityRule::PrefixHash(b'/'),
        ..options()
    };
    let machine = SimEnv::new(1);
    let db = options.clone().open_with("/db", machine.env()).unwrap();
    let dataset = db.dataset("").unwrap();
    let (one, two) = (db.keyspace("one").unwrap(), db.keyspace("two").unwrap());
    one.put("user 1/old", "x").unwrap();
    let mut batch = dataset.batch();
    assert!(batch.is_empty());
    for n in 0..20 {
        batch.put(&one, format!("user {n}/name"), "a").unwrap();
        batch.put(&two, format!("user {n}/name"), "b").unwrap();
    }
    batch.delete(&one, "user 1/old").unwrap();
    assert_eq!((batch.len(), batch.is_empty()), (41, false));
    assert!(batch.log_len() > 41 * 13);
    assert_eq!(two.iter().count(), 0, "nothing before it is committed");
    batch.commit().unwrap();
    dataset.batch().commit().unwrap();
    dataset.sync().unwrap();
    assert_eq!(dataset.stats().last_seqs, dataset.stats().synced_seqs);
    let after = machine.crash(1, Damage::LoseAll).env();
    for db in [db.clone(), options.open_with("/db", after).unwrap()] {
        let names: Vec<String> = db
            .dataset("")
            .unwrap()
            .keyspaces()
            .iter()
            .map(|k| k.name().to_owned())
            .collect();
        assert_eq!(names, ["one", "two"]);
        for name in names {
            assert_eq!(db.keyspace(&name).unwrap().iter().count(), 20);
        }
    }
}

#[test]
fn what_a_batch_cannot_take_is_named_and_leaves_it_as_it_was() {
    let db = database();
    let dataset = db.dataset("").unwrap();
    let map = db.keyspace("map").unwrap();
    let foreign = db.dataset("logs").unwrap().keyspace("lines").unwrap();
    let mut batch = dataset.batch();
    batch.put(&map, "kept", "1").unwrap();
    let refused = [
        batch.put(&foreign, "key", "value").err(),
        dataset.batch().delete(&foreign, "key").err(),
    ];
    for error in refused {
        let text = error.unwrap().to_string();
        assert!(text.contains("lines of dataset logs"), "{text}");
        assert!(text.contains("one of dataset primary"), "{text}");
    }
    let too_large = |error: Error, wanted: (&str, u64, u64)| {
        let Error::TooLarge { what, limit, found } = error else {
            panic!("{error}");
        };
        assert_eq!((what, limit, found), wanted);
    };
    let long = vec![7; 65_536];
    too_large(
        batch.put(&map, &long, "").err().unwrap(),
        ("key", 65_535, 65_536),
    );
    too_large(
        batch.delete(&map, &long).err().unwrap(),
        ("key", 65_535, 65_536),
    );
    too_large(map.delete(&long).unwrap_err(), ("key", 65_535, 65_536));
    let value = vec![7; (64 << 20) + 1];
    let found = batch.put(&map, "key", &value).err().unwrap();
    too_large(found, ("value", 64 << 20, (64 << 20) + 1));
    for n in 0..3 {
        batch.put(&map, [n], &value[1..]).unwrap();
    }
    let Error::TooLarge { what, limit, found } = batch.put(&map, [9], &value[1..]).err().unwrap()
    else {
        panic!("it is over 256 MiB");
    };
    assert_eq!((what, limit), ("batch", 256 << 20));
    assert!(found > limit);
    assert_eq!(batch.len(), 4);
    drop(batch);
    assert_eq!(map.iter().count(), 0);
}

#[test]
fn a_damaged_value_ends_what_reads_it_and_nothing_else() {
    let machine = SimEnv {
        disk: SimDisk::pread(1),
        ..SimEnv::new(1)
    };
    let value = |n: u8| vec![n + 100; 16 << 10];
    let db = options().open_with("/db", machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    for n in 0..8u8 {
        map.put([n], value(n)).unwrap();
    }
    db.flush().unwrap();
    let files = machine.disk.files();
    let (path, at) = files
        .iter()
        .find_map(|(path, bytes)| {
            let at = bytes
                .windows(1 << 10)
                .position(|part| part == &value(2)[..1 << 10])?;
            path.extension()
                .is_some_and(|e| e == "seg")
                .then_some((path, at))
        })
        .unwrap();
    machine.disk.rot(path, at as u64 + 100, 1).unwrap();
    let is_named = |error: Error| {
        let text = error.to_string();
        assert!(error.is_corruption(), "{text}");
        assert!(text.contains(&path.display().to_string()), "{text}");
        assert!(text.contains(&format!("byte {at}")), "{text}");
        assert!(text.contains("value checksum"), "{text}");
    };
    is_named(map.get([2]).unwrap_err());
    is_named(map.multi_get([[1], [2]]).unwrap_err());
    assert_eq!(map.get([3]).unwrap().unwrap(), value(3));
    let mut iter = map.iter();
    assert_eq!(iter.by_ref().take(2).filter(Result::is_ok).count(), 2);
    is_named(iter.next().unwrap().unwrap_err());
    assert!(iter.next().is_none() && iter.next_back().is_none());
    let mut iter = map.iter();
    assert_eq!(iter.by_ref().rev().take(5).filter(Result::is_ok).count(), 5);
    is_named(iter.next_back().unwrap().unwrap_err());
    assert!(iter.next().is_none() && iter.next_back().is_none());
    let mut cursor = map.cursor();
    assert!(cursor.seek([2]).unwrap(), "the key is not damaged");
    is_named(cursor.value().unwrap_err());
    assert!(cursor.next().unwrap());
    assert_eq!(cursor.value().unwrap().unwrap(), value(3));
}

#[test]
fn what_is_printed_names_the_thing_and_no_data() {
    let db = database();
    let map = db.keyspace("map").unwrap();
    map.put("secret key", "secret value").unwrap();
    let value = map.get("secret key").unwrap().unwrap();
    assert_eq!(value.as_ref(), b"secret value");
    assert_eq!(format!("{value:?}"), "Value(12 bytes)");
    assert_eq!(format!("{db:?}"), "Database(/db)");
    assert_eq!(format!("{:?}", map.dataset()), "Dataset(primary)");
    assert!(!format!("{map:?}").contains("secret"));
}
