//! The bug bank is whole: a switch at every sync, checksum check and epoch check, and a story for
//! every switch.
//!
//! The sites are found in the sources, so that a new one needs a switch, a line in `tests/bugs.txt`
//! and a test that notices, or a reason in [`EXEMPT`] why none can.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use strandline_tests::bugs::{bank, switches};
use strandline_tests::sources::{Source, shipped};

/// Sites without a switch: file, a part of the line, and why.
const EXEMPT: &[(&str, &str, &str)] = &[
    (
        "engine/src/replica/node.rs",
        "parse().is_ok_and(|epoch| Epoch(epoch) <",
        "how a refusal is explained to people, which changes nothing",
    ),
    (
        "engine/src/store/epoch.rs",
        "(won > self.state.promised).then_some(won)",
        "which number is to be named to give it up; `epoch.yield` compares it",
    ),
    (
        "replication/src/failover.rs",
        "record.epoch <= self.known",
        "when it looks again, which safety never depends on",
    ),
    (
        "wal/src/io/real.rs",
        "rustix::fs::fdatasync(file)",
        SYNC_DATA,
    ),
    (
        "wal/src/io/real.rs",
        "rustix::fs::fcntl_fullfsync(file)",
        SYNC_DATA,
    ),
    ("wal/src/io/real.rs", "rustix::fs::fsync(file)", SYNC_DATA),
    ("wal/src/pool.rs", "file.sync().during(", ZEROS),
    (
        "engine/src/checkpoint.rs",
        "Role::Leader => store.sync()",
        LINKS,
    ),
    (
        "engine/src/checkpoint.rs",
        "Role::Follower => store.sync_shipped()",
        LINKS,
    ),
    (
        "engine/src/replica/bundle.rs",
        "disk.sync_dir(root).during",
        INSTALLED,
    ),
    (
        "engine/src/repair/tables.rs",
        "disk.sync_dir(&self.dir)",
        MENDED,
    ),
    ("wal/src/writer.rs", "epoch > self.tail.epoch,", ASSERTION),
    ("wal/src/writer.rs", "assert!(", ASSERTION),
    ("replication/src/epoch.rs", "assert!(", ASSERTION),
    ("replication/src/voter.rs", "assert!(", ASSERTION),
    ("engine/src/replica/bundle.rs", ".find(", LOOKUP),
    (
        "engine/src/store/mod.rs",
        "last.epoch < entry.epoch",
        LOOKUP,
    ),
    (
        "replication/src/epoch.rs",
        "table.last().is_some_and",
        LOOKUP,
    ),
    ("replication/src/epoch.rs", "== Epoch(0)", LOOKUP),
    ("replication/src/epoch.rs", "partition_point(", LOOKUP),
    ("replication/src/epoch.rs", "let n = if entry.epoch", LOOKUP),
    (
        "replication/src/epoch.rs",
        "if entry.epoch < told.epoch",
        LOOKUP,
    ),
    (
        "replication/src/driver/serve.rs",
        "entry.epoch == epoch",
        STARTED,
    ),
    (
        "replication/src/driver/dataset.rs",
        "leadership().0.epoch",
        LENDER,
    ),
    (
        "replication/src/candidate.rs",
        "epoch_count_max",
        "a limit of attempts",
    ),
    ("engine/src/replica/node.rs", "let sole =", RACE),
    (
        "replication/src/message/codec/decode.rs",
        "_ => position.epoch",
        USED,
    ),
    ("replication/src/epoch.rs", "let rises =", USED),
    ("engine/src/store/recover.rs", "let is_here =", USED),
    ("replication/src/voter.rs", "let again =", USED),
    (
        "replication/src/follower/agreeing.rs",
        "here.promise.epoch == welcome.epoch",
        USED,
    ),
    (
        "engine/src/archive/prune.rs",
        "let is_its = |epoch: Epoch|",
        KEEPS,
    ),
    (
        "engine/src/archive/upload.rs",
        "s.term.epoch != store.epoch()",
        LOOKUP,
    ),
    (
        "engine/src/archive/upload.rs",
        "(f.last_seq, f.chain)",
        MATCH,
    ),
    (
        "engine/src/archive/upload.rs",
        "let is_before = (piece.last_seq",
        MATCH,
    ),
    (
        "engine/src/archive/restore.rs",
        "disk.sync_dir(dir)",
        "the open that follows syncs them, too; it is not relied on",
    ),
    ("engine/src/archive/restore.rs", "last + 1 ==", MATCH),
    ("engine/src/archive/upload.rs", "last.epoch > epoch", BESIDE),
    (
        "engine/src/archive/restore.rs",
        "disk.sync_dir(staging)",
        AGAIN,
    ),
    (
        "engine/src/archive/prune.rs",
        "let is_old = |base: &&BaseName|",
        KEEPS,
    ),
    (
        "replication/src/archive/index.rs",
        "run.chain() == Some(piece.prev)",
        MATCH,
    ),
    (
        "replication/src/archive/index.rs",
        "path.iter().any(",
        LOOKUP,
    ),
    (
        "replication/src/archive/index.rs",
        "piece.epoch == term.epoch",
        LOOKUP,
    ),
    (
        "replication/src/archive/object_store.rs",
        "with_fsync(true)",
        LIBRARY,
    ),
];
const KEEPS: &str = "what it leaves out is removed later";
const MATCH: &str = "finds where a log goes on; what is read from there is checked by its chain";
const BESIDE: &str = "what a deposed leader uploads is on no path; it stops early";
const AGAIN: &str = "names were synced before, and what the open adds it does durably by itself";
const LIBRARY: &str = "an option of a library: what it syncs is not ours to leave out";
const SYNC_DATA: &str = "the one call of `sync_data` has the switch";
const ZEROS: &str = "a spare's zeros are synced for speed: whoever uses it syncs it again";
const LINKS: &str = "what is not durable is copied; it saves copies";
const INSTALLED: &str = "until then the bundle stands ready, and the next open installs it";
const MENDED: &str = "what is mended was damaged: after a crash it is, and is mended again";
const ASSERTION: &str = "our own invariant, which callers keep";
const LOOKUP: &str = "looks an epoch up in a history; what is found is checked elsewhere";
const STARTED: &str = "an epoch is open in every shard before its leader is served";
const LENDER: &str = "each promise ends the lender of the one before";
const RACE: &str = "a candidate gives up when it promises; only a race makes it false";
const USED: &str = "the use of it, below, has the switch";

/// Least number of bugs.
const BUG_COUNT_MIN: usize = 60;
/// A switch stands at most this many lines above its site: in its statement.
const REACH: usize = 3;

/// Files that imitate disks, or are the switches.
const NOT_SITES: [&str; 3] = ["wal/src/io/sim/", "wal/src/io/fault.rs", "wal/src/bug.rs"];

fn sites() -> Vec<Source> {
    let mut sources = shipped(&["wal", "replication", "engine"]);
    sources.retain(|source| !NOT_SITES.iter().any(|path| source.path.starts_with(path)));
    sources
}

/// Whether a line calls something that syncs: `sync`, `sync_dir`, `fdatasync`, but not `synced_seq`.
fn syncs(line: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    // `Watermarks::sync_to` only notes what was synced, and a channel is no disk.
    let is_sync = |name: &str| {
        !["sync_to", "sync_channel"].contains(&name)
            && name
                .split('_')
                .any(|word| ["sync", "fsync", "fdatasync", "fullfsync"].contains(&word))
    };
    line.match_indices('(').any(|(at, _)| {
        let before = &line[..at];
        let name = &before[before.trim_end_matches(is_name).len()..];
        let is_definition = before[..before.len() - name.len()].ends_with("fn ");
        is_sync(name) && !is_definition
    })
}

/// Whether a line compares something that has one of the words in its name.
fn compares(line: &str, operators: &[&str], words: &[&str]) -> bool {
    let tokens: Vec<&str> = line.split_whitespace().collect();
    let names = |token: &str| {
        let mut parts = token.split(|c: char| !c.is_alphanumeric());
        parts.any(|part| words.contains(&part))
    };
    tokens
        .windows(3)
        .any(|w| operators.contains(&w[1]) && (names(w[0]) || names(w[2])))
}

fn checks_a_sum(line: &str) -> bool {
    compares(
        line,
        &["==", "!="],
        &["crc", "crc32fast", "digest", "chain", "checksum"],
    )
}

fn checks_an_epoch(line: &str) -> bool {
    let words = ["epoch", "promise", "promised"];
    compares(line, &["<", ">", "<=", ">=", "==", "!="], &words)
}

/// The sites of one kind that have no switch of their own.
fn uncovered(sources: &[Source], is_site: fn(&str) -> bool) -> (usize, Vec<String>) {
    let (mut count, mut missing) = (0, Vec::new());
    for source in sources {
        let lines: Vec<&str> = source.code.lines().collect();
        let mut switches = switches(source);
        for (n, line) in lines.iter().enumerate().filter(|(_, line)| is_site(line)) {
            count += 1;
            let is_exempt = EXEMPT
                .iter()
                .any(|(path, part, _)| source.path == *path && line.contains(part));
            // The nearest one; it serves no other site.
            let own = (0..switches.len())
                .filter(|i| (n.saturating_sub(REACH)..=n + 1).contains(&switches[*i].0))
                .min_by_key(|i| (n.abs_diff(switches[*i].0), switches[*i].0 > n));
            match own {
                _ if is_exempt => {}
                Some(own) => {
                    switches.remove(own);
                }
                None => missing.push(format!("{}:{}: {}", source.path, n + 1, line.trim())),
            }
        }
    }
    (count, missing)
}

#[track_caller]
fn all_have_switches(what: &str, count_min: usize, is_site: fn(&str) -> bool) {
    let (count, missing) = uncovered(&sites(), is_site);
    assert!(count >= count_min, "only {count} {what}s were found");
    assert!(
        missing.is_empty(),
        "a {what} without a switch:\n{}",
        missing.join("\n")
    );
}

#[test]
fn every_sync_can_be_left_out() {
    all_have_switches("sync", 40, syncs);
}

#[test]
fn every_checksum_can_go_unchecked() {
    all_have_switches("checksum check", 20, checks_a_sum);
}

#[test]
fn every_epoch_can_go_unchecked() {
    all_have_switches("epoch check", 20, checks_an_epoch);
}

#[test]
fn every_switch_has_a_story_and_a_test() {
    let sources = shipped(&["wal", "replication", "engine"]);
    let found: Vec<String> = sources
        .iter()
        .flat_map(switches)
        .map(|(_, name)| name)
        .collect();
    let names: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(names.len(), found.len(), "two switches have one name");
    let bank = bank();
    let told: BTreeSet<String> = bank.iter().map(|bug| bug.name.clone()).collect();
    assert_eq!(told.len(), bank.len(), "two lines have one name");
    let untold: Vec<_> = names.symmetric_difference(&told).collect();
    assert!(
        untold.is_empty(),
        "not both in the sources and in bugs.txt: {untold:?}"
    );
    for bug in &bank {
        assert!(!bug.tests.is_empty(), "{}: no test notices it", bug.name);
        assert!(bug.story.len() >= 20, "{}: no story", bug.name);
    }
    assert!(bank.len() >= BUG_COUNT_MIN, "only {} bugs", bank.len());
}

#[test]
fn the_sites_are_recognised() {
    assert!(
        syncs("file.sync()?;") && syncs("disk.sync_dir(dir)") && syncs("rustix::fs::fdatasync(f)")
    );
    assert!(!syncs("log.synced_seq()") && !syncs("fn sync(&self)") && !syncs("marks.sync_to(m)"));
    assert!(checks_a_sum("if crc != expected {") && checks_a_sum("x == header_crc(bytes)"));
    assert!(checks_an_epoch("if head.epoch != self.epoch {") && !checks_an_epoch("epoch: Epoch"));
    let source = |code: &str| Source {
        path: "wal/src/x.rs".to_owned(),
        text: code.to_owned(),
        code: code.to_owned(),
    };
    let two = source("unless!(\"a\", file.sync())?;\nfile.sync()?;\n");
    let (count, missing) = uncovered(&[two], syncs);
    assert_eq!(
        (count, missing),
        (2, vec!["wal/src/x.rs:2: file.sync()?;".to_owned()])
    );
}
