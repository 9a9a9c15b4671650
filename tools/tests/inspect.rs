//! `walinspect` on healthy and on damaged databases.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Bench, command, inspect, segments, strandline_fed, verb, walinspect};
use strandline::{Durability, Options};

/// A database with several segments, tables, large values, an old version and a tombstone.
fn rich(dir: &Path) {
    let db = Options {
        background: strandline::Background::Manual,
        segment_len_start: 64 << 10,
        segment_len_max: 128 << 10,
        durability: Durability::Disk,
        ..Options::default()
    }
    .open(dir)
    .unwrap();
    let map = db.keyspace("default").unwrap();
    for n in 0..200u32 {
        let value = vec![n as u8; if n % 10 == 0 { 9_000 } else { 300 }];
        map.put_with(format!("key{n:04}"), value, Durability::Os)
            .unwrap();
    }
    db.flush().unwrap();
    map.put("key0007", "changed").unwrap();
    map.delete("key0008").unwrap();
    db.keyspace("later").unwrap().put("x", "y").unwrap();
    db.close().unwrap();
}

fn flip(path: &Path, at: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn ls_shows_segments_tables_and_live_values() {
    let bench = Bench::new();
    let db = bench.path("db");
    rich(&db);
    let said = inspect("ls", &db, &[]).exits(0);
    let has = |word| said.text().contains(word);
    assert!(has("sealed") && has(".tbl"), "{}", said.text());
    let listed = inspect("ls", &db, &["--json"]).exits(0).json();
    let dataset = &listed["datasets"][0];
    let list = dataset["segments"].as_array().unwrap();
    assert_eq!(list.len(), segments(&db).len());
    for pair in list.windows(2) {
        let (last, first) = (&pair[0]["last_seq"], &pair[1]["first_seq"]);
        assert_eq!(last.as_u64().unwrap() + 1, first.as_u64().unwrap());
    }
    let live: u64 = list
        .iter()
        .map(|s| s["live_value_len"].as_u64().unwrap())
        .sum();
    assert_eq!(live, 20 * 9_000);
    let entries: u64 = dataset["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["entry_count"].as_u64().unwrap())
        .sum();
    assert!(entries >= 200);
    inspect("ls", &db, &["--dataset", "none"]).exits(3);
}

#[test]
fn dump_filters_by_position_keyspace_prefix_kind_and_shard() {
    let bench = Bench::new();
    let db = bench.path("db");
    rich(&db);
    let count = |rest: &[&str]| {
        let said = inspect("dump", &db, &[&["--json"], rest].concat()).exits(0);
        said.text().lines().count()
    };
    // One epoch start, two keyspaces, 200 puts, 2 changes, 1 in the other keyspace.
    assert_eq!(count(&[]), 206);
    assert_eq!(count(&["--kind", "control"]), 3);
    assert_eq!(count(&["--kind", "delete"]), 1);
    assert_eq!(count(&["--keyspace", "later"]), 1);
    assert_eq!(count(&["--prefix", "key000"]), 12);
    assert_eq!(count(&["--prefix", "key000", "--limit", "3"]), 3);
    assert_eq!(count(&["--from", "100", "--to", "1/149"]), 50);
    assert_eq!(count(&["--shard", "0"]), 206);
    assert_eq!(count(&["--shard", "1"]), 0);
    let said = inspect("dump", &db, &["--prefix", "key0007"]).exits(0);
    assert!(
        said.text().contains("put default key0007 = changed"),
        "{}",
        said.text()
    );
    let said = inspect("dump", &db, &["--json", "--values", "--keyspace", "later"]).exits(0);
    let record = said.json();
    assert_eq!(
        (&record["key"], &record["value"]),
        (&"x".into(), &"y".into())
    );
    inspect("dump", &db, &["--from", "x"]).exits(2);
}

#[test]
fn dump_follows_a_log_that_grows() {
    use std::io::{BufRead, BufReader};
    let bench = Bench::new();
    let path = bench.path("db");
    let db = Options {
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        ..Options::default()
    }
    .open(&path)
    .unwrap();
    let map = db.keyspace("default").unwrap();
    let dir = path.to_str().unwrap();
    let mut child = command(
        "walinspect",
        &[
            "dump", dir, "--follow", "--json", "--kind", "put", "--limit", "300",
        ],
    )
    .stdout(std::process::Stdio::piped())
    .spawn()
    .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // Several segments' worth, so that the follower has to step from one to the next.
    let writer = std::thread::spawn(move || {
        for n in 0..300u32 {
            map.put(format!("{n}"), vec![b'v'; 1_000]).unwrap();
        }
        (db, map)
    });
    let started = Instant::now();
    let mut keys = Vec::new();
    for line in lines {
        let record: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        keys.push(record["key"].as_str().unwrap().parse::<u32>().unwrap());
        assert!(started.elapsed() < Duration::from_secs(60));
    }
    assert!(keys.into_iter().eq(0..300));
    assert!(child.wait().unwrap().success());
    drop(writer.join().unwrap());
}

#[test]
fn find_names_every_place_of_a_key() {
    let bench = Bench::new();
    let db = bench.path("db");
    rich(&db);
    let found = inspect("find", &db, &["key0010", "--json"]).exits(0).json();
    let places = found["places"].as_array().unwrap();
    assert_eq!(places.len(), 2, "{found}");
    assert_eq!(
        (&places[0]["place"], &places[1]["place"]),
        (&"log".into(), &"table".into())
    );
    assert_eq!(places[0]["version"], places[1]["version"]);
    // The pointer of the table leads to where the log has the value.
    assert_eq!(places[1]["pointer"]["file"], places[0]["file"]);
    assert_eq!(places[1]["pointer"]["at"], places[0]["at"]);
    let said = inspect("find", &db, &["key0007"]).exits(0);
    assert!(said.text().lines().count() >= 3, "{}", said.text());
    inspect("find", &db, &["none"]).exits(1);
    inspect("find", &db, &["x"]).exits(1);
    inspect("find", &db, &["x", "--keyspace", "later"]).exits(0);
}

#[test]
fn stats_count_by_kind_keyspace_and_size() {
    let bench = Bench::new();
    let db = bench.path("db");
    rich(&db);
    let stats = inspect("stats", &db, &["--json"]).exits(0).json();
    let dataset = &stats["datasets"][0];
    assert_eq!(dataset["by_kind"]["put"]["record_count"], 202);
    assert_eq!(dataset["by_kind"]["delete"]["record_count"], 1);
    assert_eq!(dataset["by_keyspace"]["later"]["value_len"], 1);
    assert_eq!(
        dataset["by_size"][3]["sum"]["record_count"], 20,
        "9,000 bytes each"
    );
    inspect("stats", &db, &[]).exits(0);
}

#[test]
fn header_explains_every_kind_of_file() {
    let bench = Bench::new();
    let db = bench.path("db");
    rich(&db);
    let first = &segments(&db)[0];
    let said = walinspect(&["header", first.to_str().unwrap()]).exits(0);
    for part in [
        "segment header",
        "batch header",
        "segment footer",
        "prev_digest",
        "record_count 1",
    ] {
        assert!(said.text().contains(part), "{part}: {}", said.text());
    }
    let json = walinspect(&["header", first.to_str().unwrap(), "--json"])
        .exits(0)
        .json();
    assert_eq!(json["parts"][0]["fields"]["first_seq"], 1);
    let said = walinspect(&["header", db.join("primary/manifest").to_str().unwrap()]).exits(0);
    assert!(
        said.text().contains("keyspace 1 is default"),
        "{}",
        said.text()
    );
    let table = fs::read_dir(db.join("primary"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "tbl"))
        .unwrap();
    let said = walinspect(&["header", table.to_str().unwrap()]).exits(0);
    assert!(said.text().contains("table footer"), "{}", said.text());
    flip(first, 20);
    let said = walinspect(&["header", first.to_str().unwrap()]).exits(1);
    assert!(said.text().contains("damaged"), "{}", said.text());
    let other = bench.path("other");
    fs::write(&other, "hello").unwrap();
    walinspect(&["header", other.to_str().unwrap()]).exits(1);
    walinspect(&["header", bench.path("none").to_str().unwrap()]).exits(3);
}

#[test]
fn verify_names_each_damaged_file_and_the_offset() {
    let bench = Bench::new();
    let db = bench.path("db");
    rich(&db);
    inspect("verify", &db, &["--deep"]).exits(0);
    verb("verify", &db, &[]).exits(0);
    let files = segments(&db);
    assert!(files.len() >= 3, "{files:?}");
    let table = fs::read_dir(db.join("primary"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "tbl"))
        .unwrap();
    // The first batch after the segment header, in two segments, and a chunk of a table.
    flip(&files[0], 512 + 64 + 20);
    flip(&files[1], 512 + 64 + 20);
    flip(&table, 100);
    for said in [inspect("verify", &db, &[]), verb("verify", &db, &[])] {
        let said = said.exits(1);
        for (file, at) in [(&files[0], 512), (&files[1], 512), (&table, 64)] {
            let expected = format!("{} @{at}:", file.display());
            assert!(
                said.text().contains(&expected),
                "{expected}: {}",
                said.text()
            );
        }
    }
    let report = inspect("verify", &db, &["--json"]).exits(1).json();
    assert_eq!(report["clean"], false);
    let problems = report["problems"].as_array().unwrap();
    assert!(problems.iter().all(|problem| problem["path"].is_string()));
    let said = inspect("dump", &db, &[]).exits(1);
    assert!(said.text().contains("@512"), "{}", said.text());
    inspect("stats", &db, &[]).exits(1);
}

#[test]
fn a_torn_tail_is_a_plan_and_no_damage() {
    let bench = Bench::new();
    let db = bench.path("db");
    let dir = db.to_str().unwrap();
    let text = "{\"key\":\"a\",\"value\":\"1\"}\n";
    strandline_fed(&["import", dir, "--ndjson", "-"], text.as_bytes()).exits(0);
    inspect("recover", &db, &["--dry-run"]).exits(0);
    inspect("recover", &db, &[]).exits(2);
    // Half of a batch behind the end, as a crash leaves it.
    let growing = segments(&db).pop().unwrap();
    let state = || {
        let listed = inspect("ls", &db, &["--json"]).json();
        let list = listed["datasets"][0]["segments"].as_array().unwrap();
        list.last().unwrap()["state"].clone()
    };
    assert_eq!(state(), "sealed");
    let said = inspect("dump", &db, &["--json"]).exits(0);
    let record: serde_json::Value =
        serde_json::from_str(said.text().lines().last().unwrap()).unwrap();
    let at = record["at"].as_u64().unwrap();
    let bytes = fs::read(&growing).unwrap();
    let len = 64 + u32::from_le_bytes(*bytes[at as usize + 20..].first_chunk().unwrap()) as u64;
    let file = fs::File::options().write(true).open(&growing).unwrap();
    // Nor did it get to the footer that a close writes.
    file.set_len(at + len).unwrap();
    assert_eq!(state(), "growing");
    file.write_all_at(&bytes[at as usize..at as usize + 64], at + len)
        .unwrap();
    let said = inspect("recover", &db, &["--dry-run"]).exits(1);
    assert!(said.text().contains("cut from"), "{}", said.text());
    let json = inspect("recover", &db, &["--dry-run", "--json"])
        .exits(1)
        .json();
    assert_eq!(json["plans"][0]["cut"]["at"], at + len);
    let said = inspect("verify", &db, &[]).exits(0);
    assert!(said.text().contains("note:"), "{}", said.text());
    verb("put", &db, &["b", "2"]).exits(0);
    inspect("recover", &db, &["--dry-run"]).exits(0);
    assert_eq!(verb("scan", &db, &[]).text(), "a\t1\nb\t2\n");
}

#[test]
fn diff_finds_the_first_difference() {
    let bench = Bench::new();
    let (a, b, c) = (bench.path("a"), bench.path("b"), bench.path("c"));
    rich(&a);
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .args([&a, &b])
        .status()
        .unwrap();
    assert!(copied.success());
    let dirs = |a: &Path, b: &Path| {
        [
            a.to_str().unwrap().to_owned(),
            b.to_str().unwrap().to_owned(),
        ]
    };
    let diff = |a: &Path, b: &Path, rest: &[&str]| {
        let [a, b] = dirs(a, b);
        walinspect(&[&["diff", &a, &b], rest].concat())
    };
    let said = diff(&a, &b, &[]).exits(0);
    assert!(
        said.text().contains("byte-identical up to 1/206"),
        "{}",
        said.text()
    );
    // One goes on: still identical up to the common position.
    verb("put", &a, &["more", "x"]).exits(0);
    let said = diff(&a, &b, &[]).exits(0);
    assert!(
        said.text().contains("the first is 2 records ahead"),
        "{}",
        said.text()
    );
    flip(&segments(&b)[1], 700);
    let said = diff(&a, &b, &["--json"]).exits(1).json();
    let what = said["logs"][0]["difference"].as_str().unwrap();
    assert!(what.contains("@700"), "{what}");
    verb("put", &c, &["k", "v"]).exits(0);
    let said = diff(&a, &c, &[]).exits(1);
    assert!(said.text().contains("other histories"), "{}", said.text());
    diff(&a, &bench.path("none"), &[]).exits(3);
}

#[test]
fn a_damaged_database_is_salvaged_into_a_new_one() {
    let bench = Bench::new();
    let db = bench.path("db");
    let lines: String = (0..2_000)
        .map(|n| format!("{{\"key\":\"k{n:04}\",\"value\":\"value number {n}\"}}\n"))
        .collect();
    let dir = db.to_str().unwrap();
    strandline_fed(&["import", dir, "--ndjson", "-"], lines.as_bytes()).exits(0);
    let whole = bench.path("whole");
    let said = verb("salvage", &db, &["--into", whole.to_str().unwrap()]).exits(0);
    assert!(said.text().contains("2,000 keys saved"), "{}", said.text());
    assert!(said.text().contains("nothing is lost"), "{}", said.text());
    let said = verb("salvage", &db, &["--into", whole.to_str().unwrap()]).exits(2);
    assert!(said.err.contains("does not exist"), "{}", said.err);
    // The log is all there is: a hole in it is told by its records.
    let segment = std::fs::read_dir(db.join("primary/r00000"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "seg"))
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[700] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let saved = bench.path("saved");
    let said = verb("salvage", &db, &["--into", saved.to_str().unwrap()]).exits(1);
    let name = segment.file_name().unwrap().to_string_lossy().into_owned();
    assert!(said.text().contains(&name), "{}", said.text());
    assert!(said.text().contains("lost records"), "{}", said.text());
    verb("verify", &saved, &[]).exits(0);
    let json = verb(
        "salvage",
        &db,
        &["--json", "--into", bench.path("j").to_str().unwrap()],
    );
    let json: serde_json::Value = serde_json::from_str(json.exits(1).text()).unwrap();
    assert!(
        json["datasets"][0]["lost"][0]["what"]["first_seq"].is_u64(),
        "{json}"
    );
}
