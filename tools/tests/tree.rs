//! Directory trees in and out, and what an export never does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::{Bench, strandline, verb};

fn write(path: &Path, content: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn import(db: &Path, tree: &Path, rest: &[&str]) -> common::Said {
    let tree = tree.to_str().unwrap();
    verb(
        "import",
        db,
        &[&["--tree", tree, "--durability", "os"], rest].concat(),
    )
}

fn export(db: &Path, out: &Path) -> common::Said {
    verb("export", db, &["--tree", out.to_str().unwrap()])
}

#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let diff = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([a, b])
        .output()
        .unwrap();
    assert!(
        diff.status.success(),
        "{}{}",
        String::from_utf8_lossy(&diff.stdout),
        String::from_utf8_lossy(&diff.stderr)
    );
}

#[test]
fn a_tree_comes_back_with_modes_times_links_and_empty_directories() {
    let bench = Bench::new();
    let (db, tree, out) = (bench.path("db"), bench.path("tree"), bench.path("out"));
    write(&tree.join("plain"), b"content", 0o644);
    write(&tree.join("empty"), b"", 0o600);
    write(&tree.join("deep/er/script.sh"), b"#!/bin/sh\n", 0o755);
    write(&tree.join("deep/readonly"), b"\xff\0", 0o444);
    let odd = OsStr::from_bytes(b"n\xff\nx");
    write(&tree.join(odd), b"odd name", 0o640);
    fs::create_dir_all(tree.join("void/inside")).unwrap();
    symlink("plain", tree.join("link")).unwrap();
    symlink("/nowhere/at all", tree.join("dangling")).unwrap();
    symlink("..", tree.join("deep/up")).unwrap();
    let old =
        std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 123_456_789);
    fs::File::open(tree.join("plain"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    fs::File::open(tree.join("void"))
        .unwrap()
        .set_modified(old)
        .unwrap();
    fs::set_permissions(tree.join("deep/er"), fs::Permissions::from_mode(0o555)).unwrap();

    let said = import(&db, &tree, &[]).exits(0);
    assert_eq!(
        said.text(),
        "imported 5 files, 4 directories, 3 links, 27 B\n"
    );
    let said = export(&db, &out).exits(0);
    assert_eq!(
        said.text(),
        "exported 5 files, 4 directories, 3 links, 27 B\n"
    );
    assert_same(&tree, &out);
    for name in [
        "plain",
        "empty",
        "deep/er/script.sh",
        "deep/readonly",
        "deep/er",
        "void",
        "void/inside",
    ] {
        let (a, b) = (
            fs::metadata(tree.join(name)).unwrap(),
            fs::metadata(out.join(name)).unwrap(),
        );
        assert_eq!(a.mode(), b.mode(), "{name}");
        assert_eq!(
            (a.mtime(), a.mtime_nsec()),
            (b.mtime(), b.mtime_nsec()),
            "{name}"
        );
    }
    assert_eq!(
        fs::read_link(out.join("dangling")).unwrap(),
        Path::new("/nowhere/at all")
    );
    // The content is an ordinary value under the path.
    assert_eq!(verb("get", &db, &["plain"]).exits(0).out, b"content");
    assert_eq!(
        verb("get", &db, &["hex:6eff0a78"]).exits(0).out,
        b"odd name"
    );
    let meta = verb("get", &db, &["plain", "--keyspace", "default.tree"])
        .exits(0)
        .json();
    assert_eq!((&meta["kind"], &meta["len"]), (&"file".into(), &7.into()));
    for dir in [&tree, &out] {
        fs::set_permissions(dir.join("deep/er"), fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn a_file_over_the_value_limit_is_kept_in_parts() {
    let bench = Bench::new();
    let (db, tree) = (bench.path("db"), bench.path("tree"));
    let big: Vec<u8> = (0..(64u32 << 20) + 12_345)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    write(&tree.join("big"), &big, 0o644);
    write(&tree.join("whole"), &big[..64 << 20], 0o644);
    import(&db, &tree, &["--shards", "2"]).exits(0);
    let out = bench.path("out");
    export(&db, &out).exits(0);
    assert_same(&tree, &out);
    verb("get", &db, &["big"]).exits(1);
    assert_eq!(verb("get", &db, &["whole"]).exits(0).out.len(), 64 << 20);
    let meta = verb("get", &db, &["big", "-k", "default.tree"])
        .exits(0)
        .json();
    assert_eq!(meta["parts"].as_array().unwrap().len(), 5);
    // A small file in its place takes the parts away, and a large one the value.
    write(&tree.join("big"), b"small", 0o644);
    write(&tree.join("whole"), &big, 0o644);
    import(&db, &tree, &[]).exits(0);
    let out = bench.path("out2");
    export(&db, &out).exits(0);
    assert_same(&tree, &out);
    let keys = verb("scan", &db, &["--keys"]).exits(0);
    assert_eq!(keys.text().lines().count(), 1 + 5, "{}", keys.text());
}

#[test]
fn an_export_writes_nothing_outside_its_directory() {
    let bench = Bench::new();
    let (db, out) = (bench.path("db"), bench.path("a/out"));
    let put = |key: &str, value: &str, keyspace: &str| {
        verb(
            "put",
            &db,
            &[key, value, "-k", keyspace, "--durability", "os"],
        )
        .exits(0);
    };
    let outside = bench.path("outside");
    fs::create_dir(&outside).unwrap();
    put("good", "x", "default");
    put("../evil", "x", "default");
    put("/evil", "x", "default");
    put("a/../../evil", "x", "default");
    put("a//b", "x", "default");
    // A link out, and a file that would go through it; a link that is a link's child.
    let target = format!(
        "{{\"kind\":\"symlink\",\"target\":{:?}}}",
        outside.to_str().unwrap()
    );
    put("way", &target, "default.tree");
    put("way/evil", "x", "default");
    put("out", &target, "default.tree");
    put("out/evil", &target, "default.tree");
    put("../link", &target, "default.tree");
    put(
        "../dir",
        "{\"kind\":\"dir\",\"mode\":493,\"mtime_s\":0,\"mtime_ns\":0}",
        "default.tree",
    );
    let said = export(&db, &out).exits(1);
    for key in [
        "../evil",
        "/evil",
        "a/../../evil",
        "a//b",
        "../link",
        "../dir",
    ] {
        assert!(
            said.err.contains(&format!("{key}: not a path inside")),
            "{key}: {}",
            said.err
        );
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read_dir(bench.path("a")).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(out.join("good")).unwrap(), "x");
    assert_eq!(
        fs::read_to_string(out.join("way/evil")).unwrap(),
        "x",
        "a real directory"
    );
    assert!(!fs::symlink_metadata(out.join("way")).unwrap().is_symlink());
}

#[test]
fn an_export_goes_only_into_an_empty_directory() {
    let bench = Bench::new();
    let (db, out) = (bench.path("db"), bench.path("out"));
    verb("put", &db, &["f", "x"]).exits(0);
    fs::create_dir(&out).unwrap();
    export(&db, &out).exits(0);
    let said = export(&db, &out).exits(2);
    assert!(said.err.contains("is not empty"), "{}", said.err);
}

#[test]
fn what_is_no_file_is_left_out_and_told() {
    let bench = Bench::new();
    let (db, tree) = (bench.path("db"), bench.path("tree"));
    write(&tree.join("f"), b"x", 0o644);
    write(&tree.join("target/junk"), b"x", 0o644);
    write(&tree.join("sub/target/junk"), b"x", 0o644);
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    let said = import(&db, &tree, &["--exclude", "target"]).exits(0);
    assert_eq!(said.text(), "imported 1 file, 1 directory, 0 links, 1 B\n");
    assert!(said.err.contains("socket: not a file"), "{}", said.err);
}

#[test]
fn a_database_inside_its_own_tree_is_left_out() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    write(&tree.join("f"), b"x", 0o644);
    let db = tree.join("db");
    verb("put", &db, &["before", "x"]).exits(0);
    import(&db, &tree, &[]).exits(0);
    assert_eq!(verb("scan", &db, &["--keys"]).text(), "before\nf\n");
}

#[test]
fn a_file_is_no_tree() {
    let bench = Bench::new();
    let file = bench.path("file");
    fs::write(&file, "x").unwrap();
    let (db, file) = (bench.path("db"), file.to_str().unwrap());
    strandline(&["import", db.to_str().unwrap(), "--tree", file]).exits(2);
    assert!(!db.exists());
}
