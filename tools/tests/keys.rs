//! `put`, `get`, `delete`, `scan`, `stats` and what they say when they cannot.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Bench, inspect, strandline, strandline_fed, verb};

#[test]
fn a_value_comes_back_as_it_was() {
    let bench = Bench::new();
    let db = bench.path("db");
    verb("put", &db, &["greeting", "hello"]).exits(0);
    assert_eq!(verb("get", &db, &["greeting"]).exits(0).out, b"hello");
    verb("put", &db, &["hex:00ff", "--hex", "C0ffee"]).exits(0);
    let said = verb("get", &db, &["hex:00ff"]).exits(0);
    assert_eq!(said.out, b"\xc0\xff\xee", "raw");
    let said = verb("get", &db, &["hex:00ff", "--hex"]).exits(0);
    assert_eq!(said.text(), "c0ffee\n");
    let dir = db.to_str().unwrap();
    strandline_fed(&["put", dir, "piped", "--file", "-"], b"a\nb\0").exits(0);
    assert_eq!(verb("get", &db, &["piped"]).exits(0).out, b"a\nb\0");
    verb("delete", &db, &["greeting"]).exits(0);
    let said = verb("get", &db, &["greeting"]).exits(1);
    assert!(said.err.contains("has no key greeting"), "{}", said.err);
    verb("delete", &db, &["greeting"]).exits(0);
}

#[test]
fn keyspaces_and_datasets_are_apart() {
    let bench = Bench::new();
    let db = bench.path("db");
    verb("put", &db, &["k", "a"]).exits(0);
    verb("put", &db, &["k", "b", "--keyspace", "other"]).exits(0);
    verb("put", &db, &["k", "c", "--dataset", "second"]).exits(0);
    assert_eq!(verb("get", &db, &["k"]).out, b"a");
    assert_eq!(verb("get", &db, &["k", "-k", "other"]).out, b"b");
    assert_eq!(verb("get", &db, &["k", "--dataset", "second"]).out, b"c");
    let said = verb("get", &db, &["k", "-k", "none"]).exits(1);
    assert!(said.err.contains("it has: default, other"), "{}", said.err);
    let said = verb("get", &db, &["k", "--dataset", "none"]).exits(3);
    assert!(said.err.contains("it has: primary, second"), "{}", said.err);
}

#[test]
fn scan_takes_ranges_in_both_directions() {
    let bench = Bench::new();
    let db = bench.path("db");
    let lines: String = (0..20)
        .map(|n| format!("{{\"key\":\"k{n:02}\",\"value\":\"v{n}\"}}\n"))
        .collect();
    let dir = db.to_str().unwrap();
    strandline_fed(&["import", dir, "--ndjson", "-"], lines.as_bytes()).exits(0);
    let scan = |rest: &[&str]| verb("scan", &db, rest).exits(0).text().to_owned();
    assert_eq!(scan(&[]).lines().count(), 20);
    assert_eq!(
        scan(&["--prefix", "k1", "--limit", "2"]),
        "k10\tv10\nk11\tv11\n"
    );
    assert_eq!(
        scan(&["--from", "k03", "--to", "k05", "--keys"]),
        "k03\nk04\n"
    );
    assert_eq!(scan(&["--reverse", "--limit", "1"]), "k19\tv19\n");
    assert_eq!(scan(&["--from", "k05", "--to", "k03"]), "");
    assert_eq!(scan(&["--to", "k01", "--hex"]), "6b3030\t7630\n");
    let json = scan(&["--to", "k01", "--json"]);
    assert_eq!(json, "{\"key\":\"k00\",\"value\":\"v0\"}\n");
}

#[test]
fn what_was_created_with_shards_opens_without_naming_them() {
    let bench = Bench::new();
    let db = bench.path("db");
    verb("put", &db, &["a", "1", "--shards", "4"]).exits(0);
    for n in 0..20 {
        verb("put", &db, &[&format!("k{n}"), "v", "--durability", "os"]).exits(0);
    }
    assert_eq!(verb("get", &db, &["k19"]).exits(0).out, b"v");
    let said = verb("put", &db, &["a", "2", "--shards", "3"]).exits(2);
    assert!(
        said.err.contains("created with shard count 4"),
        "{}",
        said.err
    );
    let listed = inspect("ls", &db, &["--json"]).exits(0).json();
    let shards: std::collections::BTreeSet<u64> = listed["datasets"][0]["segments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|segment| segment["shard"].as_u64().unwrap())
        .collect();
    assert_eq!(shards.len(), 4);
}

#[test]
fn limits_are_named() {
    let bench = Bench::new();
    let (db, big) = (bench.path("db"), bench.path("big"));
    let said = verb("put", &db, &[&"k".repeat(65_536), "v"]).exits(2);
    assert!(said.err.contains("the limit is 65535"), "{}", said.err);
    std::fs::write(&big, vec![7; (64 << 20) + 1]).unwrap();
    let said = verb("put", &db, &["k", "--file", big.to_str().unwrap()]).exits(2);
    assert!(said.err.contains("the limit is 67108864"), "{}", said.err);
}

#[test]
fn wrong_commands_exit_with_2_and_missing_databases_with_3() {
    let bench = Bench::new();
    let db = bench.path("db");
    strandline(&["frobnicate"]).exits(2);
    strandline(&["put"]).exits(2);
    verb("put", &db, &["k"]).exits(2);
    verb("put", &db, &["k", "v", "--durability", "durable:1"]).exits(2);
    verb("put", &db, &["hex:1", "v"]).exits(2);
    verb("get", &db, &["k"]).exits(3);
    verb("scan", &db, &[]).exits(3);
    verb("stats", &db, &[]).exits(3);
    verb("verify", &db, &[]).exits(3);
    verb("delete", &db, &["k"]).exits(3);
    assert!(!db.exists(), "reading creates nothing");
    std::fs::create_dir(&db).unwrap();
    let said = verb("get", &db, &["k"]).exits(3);
    assert!(said.err.contains("holds no database"), "{}", said.err);
    assert_eq!(std::fs::read_dir(&db).unwrap().count(), 0);
    std::fs::write(db.join("letter.txt"), "dear").unwrap();
    let said = verb("put", &db, &["k", "v"]).exits(2);
    assert!(said.err.contains("holds other files"), "{}", said.err);
    let file = bench.path("file");
    std::fs::write(&file, "x").unwrap();
    verb("put", &file, &["k", "v"]).exits(3);
    strandline(&["--help"]).exits(0);
    strandline(&["--version"]).exits(0);
}

#[test]
fn a_locked_database_is_read_and_not_written() {
    let bench = Bench::new();
    let db = bench.path("db");
    verb("put", &db, &["k", "v"]).exits(0);
    let open = strandline::Database::open(&db).unwrap();
    let said = verb("put", &db, &["k", "w"]).exits(3);
    assert!(said.err.contains("open in another process"), "{}", said.err);
    open.keyspace("default").unwrap().put("k", "new").unwrap();
    assert_eq!(verb("get", &db, &["k"]).exits(0).out, b"new");
    inspect("verify", &db, &["--deep"]).exits(0);
    inspect("ls", &db, &[]).exits(0);
}

#[test]
fn stats_count_what_is_there() {
    let bench = Bench::new();
    let db = bench.path("db");
    verb("put", &db, &["k", "v"]).exits(0);
    let said = verb("stats", &db, &[]).exits(0);
    assert!(
        said.text().contains("keyspaces    default"),
        "{}",
        said.text()
    );
    let stats = verb("stats", &db, &["--json"]).exits(0).json();
    assert_eq!(stats["datasets"][0]["name"], "primary");
    // Epoch start, keyspace, key.
    assert_eq!(stats["datasets"][0]["last_seqs"][0], 3);
}

#[test]
fn output_that_nobody_reads_is_no_error() {
    let bench = Bench::new();
    let db = bench.path("db");
    let lines: String = (0..5_000)
        .map(|n| format!("{{\"key\":\"{n}\",\"value\":\"{}\"}}\n", "x".repeat(100)))
        .collect();
    let dir = db.to_str().unwrap();
    strandline_fed(&["import", dir, "--ndjson", "-"], lines.as_bytes()).exits(0);
    let mut child = common::command("strandline", &["scan", dir])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}
