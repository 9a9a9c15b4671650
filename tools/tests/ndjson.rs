//! NDJSON in and out: lossless, with every broken line named.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fmt::Write;

use common::{Bench, strandline_fed, verb};

/// Lines with text, escapes and bytes, sorted by key as an export writes them.
fn lines(count: usize) -> String {
    let mut text = String::new();
    for n in 0..count {
        let line = match n % 5 {
            0 => format!("{{\"key\":\"k{n:06}\",\"value\":\"value {n}\"}}"),
            1 => format!("{{\"key\":\"k{n:06}\",\"value\":\"\"}}"),
            2 => format!("{{\"key\":\"k{n:06}\",\"value\":\"ü\\n\\u0001\\\"\\\\ {n}\"}}"),
            3 => format!("{{\"key\":\"k{n:06}\",\"value_hex\":\"ff{n:08x}\"}}"),
            _ => format!(
                "{{\"key\":\"k{n:06}\",\"value\":\"{}\"}}",
                "long ".repeat(20)
            ),
        };
        writeln!(text, "{line}").unwrap();
    }
    text
}

#[test]
fn a_hundred_thousand_lines_come_back_as_they_were() {
    let bench = Bench::new();
    let (db, source, out) = (bench.path("db"), bench.path("in"), bench.path("out"));
    let text = lines(100_000);
    std::fs::write(&source, &text).unwrap();
    let source = source.to_str().unwrap();
    let said = verb(
        "import",
        &db,
        &["--ndjson", source, "--durability", "os", "--shards", "3"],
    )
    .exits(0);
    assert_eq!(said.text(), "imported 100,000 lines\n");
    let said = verb("export", &db, &["--ndjson", out.to_str().unwrap()]).exits(0);
    assert_eq!(said.text(), "exported 100,000 lines\n");
    assert!(std::fs::read_to_string(&out).unwrap() == text);
}

#[test]
fn keys_that_are_no_text_and_keyspaces_come_back() {
    let bench = Bench::new();
    let db = bench.path("db");
    let text = "{\"key\":\"\",\"value\":\"empty\"}\n\
                {\"key_hex\":\"ff00\",\"value\":\"bytes\"}\n\
                {\"keyspace\":\"other\",\"key\":\"a\",\"value\":\"b\"}\n";
    let dir = db.to_str().unwrap();
    strandline_fed(&["import", dir, "--ndjson", "-"], text.as_bytes()).exits(0);
    assert_eq!(
        verb("export", &db, &["--ndjson", "-"]).exits(0).text(),
        text
    );
    let one = verb("export", &db, &["--ndjson", "-", "--keyspace", "other"]);
    assert_eq!(one.exits(0).text(), "{\"key\":\"a\",\"value\":\"b\"}\n");
    verb("export", &db, &["--ndjson", "-", "--keyspace", "none"]).exits(1);
}

#[test]
fn a_broken_line_is_named_and_what_came_before_stays() {
    let bench = Bench::new();
    let (db, source) = (bench.path("db"), bench.path("in.ndjson"));
    let text = "{\"key\":\"a\",\"value\":\"1\"}\n\n{\"key\":\"b\",\"value\":}\n{\"key\":\"c\",\"value\":\"3\"}\n";
    std::fs::write(&source, text).unwrap();
    let source = source.to_str().unwrap();
    let said = verb("import", &db, &["--ndjson", source]).exits(1);
    assert!(
        said.err.contains("in.ndjson:3: expected value (column 20)"),
        "{}",
        said.err
    );
    assert!(said.err.contains("the 1 line before it"), "{}", said.err);
    assert_eq!(verb("scan", &db, &["--keys"]).text(), "a\n");
    let said = verb("import", &db, &["--ndjson", source, "--skip-bad"]).exits(0);
    assert_eq!(said.text(), "imported 2 lines, skipped 1 broken line\n");
    assert!(said.err.contains("in.ndjson:3:"), "{}", said.err);
    assert_eq!(verb("scan", &db, &["--keys"]).text(), "a\nc\n");
}

#[test]
fn limits_are_named_with_the_line() {
    let bench = Bench::new();
    let db = bench.path("db");
    let long_key = format!("{{\"key\":\"{}\",\"value\":\"\"}}\n", "k".repeat(65_536));
    let dir = db.to_str().unwrap();
    let text = format!("{{\"key\":\"a\",\"value\":\"1\"}}\n{long_key}");
    let said = strandline_fed(&["import", dir, "--ndjson", "-"], text.as_bytes()).exits(1);
    let expected = "stdin:2: key is 65536 bytes, the limit is 65535";
    assert!(said.err.contains(expected), "{}", said.err);
    let long_value = format!(
        "{{\"key\":\"k\",\"value\":\"{}\"}}\n",
        "v".repeat((64 << 20) + 1)
    );
    let said = strandline_fed(&["import", dir, "--ndjson", "-"], long_value.as_bytes()).exits(1);
    let expected = "stdin:1: value is 67108865 bytes, the limit is 67108864";
    assert!(said.err.contains(expected), "{}", said.err);
    let fits = "v".repeat(64 << 20);
    let long_value = format!("{{\"key\":\"k\",\"value\":\"{fits}\"}}\n");
    strandline_fed(&["import", dir, "--ndjson", "-"], long_value.as_bytes()).exits(0);
    assert_eq!(verb("get", &db, &["k"]).exits(0).out.len(), 64 << 20);
}

#[test]
fn bytes_that_are_no_text_are_a_broken_line() {
    let bench = Bench::new();
    let db = bench.path("db");
    let dir = db.to_str().unwrap();
    let said = strandline_fed(&["import", dir, "--ndjson", "-"], b"{\"key\":\"\xff\"}\n").exits(1);
    assert!(said.err.contains("stdin:1:"), "{}", said.err);
}

#[test]
fn sources_are_required_and_exclusive() {
    let bench = Bench::new();
    let db = bench.path("db");
    verb("import", &db, &[]).exits(2);
    verb("import", &db, &["--ndjson", "-", "--tree", "."]).exits(2);
    verb("import", &db, &["--tree", ".", "--skip-bad"]).exits(2);
    let missing = bench.path("missing");
    let missing = missing.to_str().unwrap();
    verb("import", &db, &["--ndjson", missing]).exits(3);
    verb("import", &db, &["--tree", missing]).exits(3);
    assert!(!db.exists());
}
