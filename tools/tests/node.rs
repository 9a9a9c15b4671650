//! `serve`, `follow`, `promote` and `status` over loopback, with processes that are killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::node::{Node, follow, load, serve, status, wait_equal};
use common::{Bench, inspect, strandline, verb, walinspect};

#[test]
fn a_tree_comes_out_of_a_follower_as_it_went_into_the_leader() {
    let bench = Bench::new();
    let (a, b, out) = (bench.path("a"), bench.path("b"), bench.path("out"));
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let source = bench.path("source");
    std::fs::create_dir(&source).unwrap();
    for part in ["tools", "engine", "wal"] {
        let copied = Command::new("cp")
            .arg("-r")
            .args([&tree.join(part), &source])
            .status();
        assert!(copied.unwrap().success());
    }
    let source = source.to_str().unwrap();
    verb("import", &a, &["--tree", source, "--shards", "3"]).exits(0);
    let leader = serve(&a);
    let follower = follow(&b, &leader.address);
    wait_equal(&leader.address, &follower.address);
    assert_eq!(status(&leader.address)["role"], "leader");
    assert_eq!(status(&follower.address)["role"], "follower");
    assert_eq!(status(&follower.address)["leader"], leader.address.as_str());
    // Beside the running follower.
    let started = Instant::now();
    loop {
        let said = verb("export", &b, &["--tree", out.to_str().unwrap()]);
        let mut diff = Command::new("diff");
        diff.args(["-r", "--no-dereference", source]).arg(&out);
        if said.code == 0 && diff.output().unwrap().status.success() {
            break;
        }
        // What a reader sees comes a moment after what the log has.
        assert!(started.elapsed() < Duration::from_secs(30), "{}", said.err);
        let _ = std::fs::remove_dir_all(&out);
    }
    for dir in [&a, &b] {
        inspect("verify", dir, &["--deep"]).exits(0);
    }
    let [a, b] = [a.to_str().unwrap(), b.to_str().unwrap()];
    let said = walinspect(&["diff", a, b]).exits(0);
    assert_eq!(
        said.text().matches("byte-identical").count(),
        3,
        "{}",
        said.text()
    );
    follower.stop();
    leader.stop();
    walinspect(&["diff", a, b]).exits(0);
    let said = strandline(&["status", a]).exits(0);
    assert!(
        said.text()
            .starts_with("dataset primary: leader, epoch 2\n"),
        "{}",
        said.text()
    );
    let said = strandline(&["status", b]).exits(0);
    assert!(
        said.text()
            .starts_with("dataset primary: follower, epoch 2\n"),
        "{}",
        said.text()
    );
}

#[test]
fn a_follower_takes_no_writes_and_does_not_lead() {
    let bench = Bench::new();
    let (a, b) = (bench.path("a"), bench.path("b"));
    load(&a, 0, 10, "1");
    let leader = serve(&a);
    let follower = follow(&b, &leader.address);
    wait_equal(&leader.address, &follower.address);
    verb("put", &a, &["k", "v"]).exits(3);
    verb("put", &b, &["k", "v"]).exits(3);
    follower.stop();
    for said in [
        verb("put", &b, &["k", "v"]),
        verb("delete", &b, &["k"]),
        verb("import", &b, &["--ndjson", "/dev/null"]),
        verb("serve", &b, &[]),
    ] {
        let said = said.exits(2);
        assert!(said.err.contains("follows another node"), "{}", said.err);
        assert!(said.err.contains("strandline promote"), "{}", said.err);
    }
    assert_eq!(
        verb("scan", &b, &["--keys"])
            .exits(0)
            .text()
            .lines()
            .count(),
        10
    );
    leader.stop();
}

#[test]
fn a_slot_outlives_both_and_is_dropped_by_hand() {
    let bench = Bench::new();
    let (a, b) = (bench.path("a"), bench.path("b"));
    load(&a, 0, 10, "1");
    let leader = serve(&a);
    let follower = follow(&b, &leader.address);
    wait_equal(&leader.address, &follower.address);
    let name = follower.address.clone();
    follower.kill();
    leader.kill();
    let slots = verb("slots", &a, &["--json"]).exits(0).json();
    assert_eq!(slots["slots"][0]["name"], name.as_str(), "{slots}");
    let said = verb("slots", &a, &[]).exits(0);
    assert!(
        said.text().contains(&format!("slot {name}  ")),
        "{}",
        said.text()
    );
    verb("slots", &a, &["--drop", "nobody"]).exits(2);
    let said = verb("slots", &a, &["--drop", &name, "--json"]).exits(0);
    assert_eq!(said.json()["slots"].as_array().unwrap().len(), 0);
    let slots = verb("slots", &b, &["--json"]).exits(0).json();
    assert_eq!(slots["slots"].as_array().unwrap().len(), 0);
}

#[test]
fn a_follower_is_promoted_and_the_old_leader_comes_back() {
    let bench = Bench::new();
    let (a, b, c) = (bench.path("a"), bench.path("b"), bench.path("c"));
    load(&a, 0, 500, "2");
    let leader = serve(&a);
    let followers = [follow(&b, &leader.address), follow(&c, &leader.address)];
    for follower in &followers {
        wait_equal(&leader.address, &follower.address);
    }
    leader.kill();
    let [b_node, c_node] = followers;
    b_node.stop();
    // Alone it is one of three, and nobody answers for the others.
    let said = verb("promote", &b, &["--peer", "127.0.0.1:1", "--nodes", "3"]).exits(3);
    assert!(said.err.contains("1 of 2 promises"), "{}", said.err);
    let dir = b.to_str().unwrap();
    let peer = c_node.address.clone();
    let arguments = [
        "promote",
        dir,
        "--peer",
        &peer,
        "--nodes",
        "3",
        "--listen",
        "127.0.0.1:0",
    ];
    let new_leader = Node::start(&arguments);
    assert_eq!(status(&new_leader.address)["role"], "leader");
    c_node.stop();
    let c_node = follow(&c, &new_leader.address);
    let a_node = follow(&a, &new_leader.address);
    wait_equal(&new_leader.address, &c_node.address);
    wait_equal(&new_leader.address, &a_node.address);
    for node in [a_node, c_node, new_leader] {
        node.stop();
    }
    // The new leader goes on writing.
    load(&b, 500, 600, "2");
    let leader = serve(&b);
    let a_node = follow(&a, &leader.address);
    wait_equal(&leader.address, &a_node.address);
    a_node.stop();
    leader.stop();
    assert_eq!(
        verb("scan", &a, &["--keys"])
            .exits(0)
            .text()
            .lines()
            .count(),
        600
    );
    walinspect(&["diff", a.to_str().unwrap(), dir]).exits(0);
    inspect("verify", &a, &["--deep"]).exits(0);
}

#[test]
fn a_promotion_can_be_forced() {
    let bench = Bench::new();
    let (a, b) = (bench.path("a"), bench.path("b"));
    load(&a, 0, 10, "1");
    let leader = serve(&a);
    let follower = follow(&b, &leader.address);
    wait_equal(&leader.address, &follower.address);
    follower.stop();
    leader.kill();
    let said = verb("promote", &b, &["--force", "--json"]).exits(0);
    assert!(said.json()["epoch"].as_u64().unwrap() >= 3);
    assert!(said.err.contains("may be lost"), "{}", said.err);
    verb("put", &b, &["k", "v"]).exits(0);
}

#[test]
fn addresses_that_cannot_be_are_named() {
    let bench = Bench::new();
    let a = bench.path("a");
    verb("serve", &a, &[]).exits(3);
    verb("promote", &a, &["--force"]).exits(3);
    load(&a, 0, 1, "1");
    let said = verb("serve", &a, &["--listen", "0.0.0.0:0"]).exits(3);
    assert!(said.err.contains("loopback"), "{}", said.err);
    strandline(&["status", "127.0.0.1:1"]).exits(3);
    strandline(&["status", "/nowhere/at/all"]).exits(3);
    verb("follow", &a, &[]).exits(2);
}

/// A leader that serves, in `a`, and a follower that has everything and ended, in `b`; what that shows.
fn followed(a: &Path, b: &Path) -> (Node, String) {
    load(a, 0, 3_000, "2");
    let leader = serve(a);
    let follower = follow(b, &leader.address);
    wait_equal(&leader.address, &follower.address);
    follower.stop();
    let shown = verb("scan", b, &[]).exits(0).text().to_owned();
    (leader, shown)
}

#[test]
fn a_damaged_node_is_repaired_from_the_leader_and_from_a_checkpoint() {
    let bench = Bench::new();
    let (a, b) = (bench.path("a"), bench.path("b"));
    let (leader, before) = followed(&a, &b);
    let segment = common::segments(&b).remove(0);
    let hurt = || {
        let mut bytes = std::fs::read(&segment).unwrap();
        bytes[3_000] ^= 64;
        std::fs::write(&segment, &bytes).unwrap();
        let manifest = b.join("primary/manifest");
        std::fs::write(&manifest, b"?").unwrap();
        verb("verify", &b, &[]).exits(1);
    };
    hurt();
    let said = verb("repair", &b, &["--from", &leader.address]).exits(0);
    assert!(said.text().contains("it verifies"), "{}", said.text());
    assert!(said.text().contains("mended"), "{}", said.text());
    verb("verify", &b, &[]).exits(0);
    assert_eq!(verb("scan", &b, &[]).exits(0).text(), before);
    assert!(!bench.path("b.copy").exists());
    leader.stop();
    // A checkpoint of the other node does as well.
    let copy = bench.path("copy");
    verb("checkpoint", &a, &["--into", copy.to_str().unwrap()]).exits(0);
    hurt();
    let said = verb("repair", &b, &["--copy", copy.to_str().unwrap(), "--json"]).exits(0);
    assert!(
        said.json()["repair_count"].as_u64() > Some(0),
        "{}",
        said.text()
    );
    verb("verify", &b, &[]).exits(0);
    assert_eq!(verb("scan", &b, &[]).exits(0).text(), before);
    let said = verb("repair", &b, &["--copy", copy.to_str().unwrap()]).exits(0);
    assert!(
        said.text().contains("nothing was damaged"),
        "{}",
        said.text()
    );
}

#[test]
fn a_follower_that_may_heal_mends_its_damage_and_a_scrub_tells_of_it() {
    let bench = Bench::new();
    let (a, b) = (bench.path("a"), bench.path("b"));
    let (leader, before) = followed(&a, &b);
    verb("scrub", &b, &["--rate", "100000000"]).exits(0);
    verb("scrub", &b, &["--rate", "0"]).exits(2);
    for slot in ["manifest", "manifest.copy"] {
        std::fs::write(b.join("primary").join(slot), b"?").unwrap();
    }
    let said = verb("scrub", &b, &[]).exits(1);
    assert!(said.text().contains("manifest"), "{}", said.text());
    verb("follow", &b, &["--leader", &leader.address]).exits(1);
    let follower = Node::start(&[
        "follow",
        b.to_str().unwrap(),
        "--leader",
        &leader.address,
        "--heal",
        "--scrub-rate",
        "100000000",
    ]);
    wait_equal(&leader.address, &follower.address);
    follower.stop();
    verb("scrub", &b, &[]).exits(0);
    assert_eq!(verb("scan", &b, &[]).exits(0).text(), before);
}
