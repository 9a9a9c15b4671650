//! The demonstration on a small tree, and interrupted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, command, strandline};

/// A small tree to load.
fn tree(bench: &Bench) -> String {
    let tree = bench.path("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    for n in 0..200 {
        let path = tree.join("sub").join(format!("file {n}"));
        std::fs::write(path, vec![n as u8; n * 37]).unwrap();
    }
    tree.to_str().unwrap().to_owned()
}

#[test]
fn nothing_acknowledged_is_lost_and_three_copies_are_equal() {
    let bench = Bench::new();
    let home = bench.path("home");
    std::fs::create_dir(&home).unwrap();
    let tree = tree(&bench);
    let started = Instant::now();
    let output = command(
        "strandline",
        &["demo", "--tree", &tree, "--seconds", "2", "--json"],
    )
    .env("TMPDIR", &home)
    .output()
    .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{told}");
    assert!(started.elapsed() < Duration::from_secs(60));
    let outcome: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(outcome["lost"], 0);
    assert_eq!(outcome["wrong_reads"], 0);
    assert_eq!(outcome["equal"], true);
    for count in ["acknowledged_batches", "acknowledged_files", "reads"] {
        assert!(outcome[count].as_u64().unwrap() > 0, "{count}: {text}");
    }
    assert_eq!(outcome["states"].as_array().unwrap().len(), 3);
    let left: Vec<_> = std::fs::read_dir(&home).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The leader stands still until another one leads, and wakes with clients that write on.
#[test]
fn a_leader_that_was_paused_acknowledges_nothing_that_is_lost() {
    let bench = Bench::new();
    let home = bench.path("home");
    std::fs::create_dir(&home).unwrap();
    let tree = tree(&bench);
    let arguments = [
        "demo",
        "--tree",
        &tree,
        "--seconds",
        "2",
        "--rounds",
        "2",
        "--lease",
        "500",
        "--pause",
        "3000",
        "--json",
    ];
    let output = command("strandline", &arguments)
        .env("TMPDIR", &home)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}\n{told}");
    let outcome: serde_json::Value = serde_json::from_str(&text).unwrap();
    for none in ["lost", "wrong_reads", "woken_unsaved", "full_copies"] {
        assert_eq!(outcome[none], 0, "{none}: {text}");
    }
    assert_eq!(outcome["equal"], true);
    assert_eq!(outcome["failover_ms"].as_array().unwrap().len(), 2);
}

#[test]
fn an_interrupted_demonstration_leaves_nothing_behind() {
    let bench = Bench::new();
    let home = bench.path("home");
    std::fs::create_dir(&home).unwrap();
    let mut child = command(
        "strandline",
        &["demo", "--tree", &tree(&bench), "--seconds", "20"],
    )
    .env("TMPDIR", &home)
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .unwrap();
    let started = Instant::now();
    while std::fs::read_dir(&home).unwrap().next().is_none() {
        assert!(started.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert_eq!(std::fs::read_dir(&home).unwrap().count(), 0);
}

#[test]
fn a_tree_without_files_is_refused() {
    let bench = Bench::new();
    let empty = bench.path("empty");
    std::fs::create_dir(&empty).unwrap();
    strandline(&["demo", "--tree", empty.to_str().unwrap()]).exits(2);
    strandline(&["demo", "--tree", bench.path("none").to_str().unwrap()]).exits(3);
}
