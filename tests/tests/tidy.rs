//! The invariants of the architecture that are absences, as checks of the sources.
//!
//! Only code is looked at: comments, and modules of tests, may name what they like.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use strandline_tests::sources::{Source, code_of, root, shipped, sources};

const CRATES: [&str; 4] = ["wal", "replication", "engine", "tools"];
/// Longest file, in lines.
const LINE_COUNT_MAX: usize = 900;

/// The words of the identifiers in a code, lower case: `KeyspaceId` and `keyspace_id` give both
/// `keyspace` and `id`.
fn words(code: &str) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for name in code.split(|c: char| !c.is_alphanumeric()) {
        let mut word = String::new();
        for c in name.chars() {
            if c.is_uppercase() && word.ends_with(|last: char| last.is_lowercase()) {
                words.insert(std::mem::take(&mut word).to_lowercase());
            }
            word.push(c);
        }
        words.insert(word.to_lowercase());
    }
    words
}

/// Code without the methods of the standard library that have such words in their names.
fn without_std_names(code: &str) -> String {
    let names = [
        "contains_key",
        "sort_by_key",
        "min_by_key",
        "max_by_key",
        "first_key_value",
    ];
    let mut code = code.replace(".keys()", "").replace(".into_keys()", "");
    for name in names
        .into_iter()
        .chain(["partition_by_key", "sort_unstable_by_key"])
    {
        code = code.replace(name, "");
    }
    code
}

/// Where one of the parts stands in code that may not have it.
fn hits(sources: &[Source], parts: &[&str], may: &[&str]) -> Vec<String> {
    let mut hits = Vec::new();
    for source in sources {
        if may.iter().any(|path| source.path.starts_with(path)) {
            continue;
        }
        for (n, line) in source.code.lines().enumerate() {
            if let Some(part) = parts.iter().find(|part| line.contains(*part)) {
                hits.push(format!("{}:{}: {part}", source.path, n + 1));
            }
        }
    }
    hits
}

fn none(what: &str, hits: &[String]) {
    assert!(hits.is_empty(), "{what}:\n{}", hits.join("\n"));
}

#[test]
fn files_and_clocks_are_touched_in_one_place() {
    let sources = shipped(&["wal", "replication", "engine"]);
    let parts = [
        "std::fs",
        "fs::File",
        "SystemTime",
        "Instant::",
        "UNIX_EPOCH",
    ];
    let may = [
        "wal/src/io/real.rs",
        "wal/src/io/map.rs",
        "wal/src/io/uring.rs",
    ];
    let hits = hits(&sources, &parts, &may);
    none("files and clocks come through `io::Env`", &hits);
}

#[test]
fn sockets_are_touched_by_transports_alone() {
    let sources = shipped(&["wal", "replication", "engine"]);
    let parts = [
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "UnixStream",
        "UnixListener",
    ];
    let may = [
        "replication/src/transport/tcp",
        "replication/src/transport/tls",
        "replication/src/transport/ssh",
    ];
    none(
        "sockets belong to `transport`",
        &hits(&sources, &parts, &may),
    );
}

#[test]
fn the_log_knows_no_keys_values_keyspaces_or_peers() {
    let forbidden = [
        "key",
        "keys",
        "keyspace",
        "keyspaces",
        "peer",
        "peers",
        "tombstone",
    ];
    let mut hits = Vec::new();
    for source in shipped(&["wal"]) {
        let words = words(&without_std_names(&source.code));
        let found = forbidden.iter().filter(|word| words.contains(**word));
        hits.extend(found.map(|word| format!("{}: {word}", source.path)));
    }
    none("`wal` names none of these", &hits);
    let sources = shipped(&["wal"]);
    let crates = ["strandline_replication", "strandline::", "strandline_tools"];
    none("`wal` is the bottom", &self::hits(&sources, &crates, &[]));
    let sources = shipped(&["replication"]);
    let crates = ["use strandline::", "strandline_tools"];
    none(
        "`replication` knows no engine",
        &self::hits(&sources, &crates, &[]),
    );
}

#[test]
fn only_some_modules_of_the_engine_know_replication() {
    let sources = shipped(&["engine"]);
    let may = [
        "lib",
        "error",
        "options",
        "config",
        "replica",
        "retention",
        "checkpoint",
        "verify",
        "reconcile",
        "sync",
        "archive",
        "archive_view",
    ];
    let may: Vec<String> = may
        .iter()
        .flat_map(|name| {
            [
                format!("engine/src/{name}.rs"),
                format!("engine/src/{name}/"),
            ]
        })
        .collect();
    let may: Vec<&str> = may.iter().map(String::as_str).collect();
    let hits = hits(&sources, &["strandline_replication"], &may);
    none("storage knows no replication", &hits);
}

#[test]
fn the_state_machines_of_replication_hold_nothing_of_the_world() {
    let machines = [
        "leader", "follower", "progress", "epoch", "quorum", "slot", "credit", "merkle", "merge",
        "threeway", "voter",
    ];
    let is_machine = |source: &Source| {
        machines.iter().any(|name| {
            source.path == format!("replication/src/{name}.rs")
                || source.path.starts_with(&format!("replication/src/{name}/"))
        })
    };
    let mut sources = shipped(&["replication"]);
    sources.retain(is_machine);
    assert!(sources.len() >= 5, "the machines are where they were");
    let parts = [
        "std::fs",
        "std::net",
        "std::thread",
        "thread::",
        "Mutex",
        "RwLock",
        "Condvar",
        "Atomic",
        "std::time",
        "Instant",
        "SystemTime",
        "Duration",
        "rand::",
        "getrandom",
        "Arc<dyn",
    ];
    none(
        "a machine is `handle` and `poll_action`",
        &hits(&sources, &parts, &[]),
    );
}

#[test]
fn every_file_says_what_it_is() {
    let mut hits = Vec::new();
    for source in sources(&[
        "wal",
        "replication",
        "engine",
        "tools",
        "tests",
        "benches",
        "fuzz",
    ]) {
        if !source.text.starts_with("//!") && !source.text.starts_with("#!") {
            hits.push(source.path);
        }
    }
    none("the first line is `//!`", &hits);
}

#[test]
fn nothing_is_left_for_later() {
    // In parts, so that this file does not find itself.
    let parts = [
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("#[ig", "nore"),
        concat!("db", "g!("),
        concat!("FIX", "ME"),
    ];
    let all = sources(&[
        "wal",
        "replication",
        "engine",
        "tools",
        "tests",
        "benches",
        "fuzz",
    ]);
    let mut hits = Vec::new();
    for source in &all {
        for (n, line) in source.text.lines().enumerate() {
            if parts.iter().any(|part| line.contains(part)) {
                hits.push(format!("{}:{}: {}", source.path, n + 1, line.trim()));
            }
        }
    }
    none("finished, or written down elsewhere", &hits);
}

#[test]
fn unsafe_code_is_fenced() {
    let fenced = [
        "wal/src/io/map.rs",
        "wal/src/io/real.rs",
        "wal/src/io/uring.rs",
        "wal/src/io/words.rs",
        // The wrapper around loom's locks, compiled for its models alone.
        "wal/src/sync.rs",
    ];
    let sources = shipped(&CRATES);
    let parts = [
        "unsafe {",
        "unsafe fn",
        "unsafe impl",
        "unsafe trait",
        "allow(unsafe_code)",
    ];
    none(
        "unsafe is for the fenced modules",
        &hits(&sources, &parts, &fenced),
    );
    for source in shipped(&CRATES) {
        let lines: Vec<&str> = source.text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("unsafe {") || code.contains("unsafe impl") {
                let above = &lines[n.saturating_sub(6)..n];
                let reasons = above.iter().chain([line]).any(|l| l.contains("SAFETY"));
                assert!(reasons, "{}:{}: no `// SAFETY:`", source.path, n + 1);
            }
        }
    }
}

#[test]
fn no_file_is_a_hub() {
    let mut hits = Vec::new();
    for source in sources(&[
        "wal",
        "replication",
        "engine",
        "tools",
        "tests",
        "benches",
        "fuzz",
    ]) {
        let count = source.text.lines().count();
        if count > LINE_COUNT_MAX {
            hits.push(format!("{}: {count} lines", source.path));
        }
    }
    none("a file has one noun", &hits);
}

/// The checks can fail: on a source that breaks each of them.
#[test]
fn the_checks_see_what_they_look_for() {
    let text = "//! Text.\nuse std::fs; // std::net\nstruct KeyspaceId;\n#[cfg(test)]\nmod tests {\nstd::thread\n";
    let code = code_of(text);
    assert!(code.contains("std::fs") && !code.contains("std::net"));
    assert!(!code.contains("std::thread"));
    assert!(words(&code).contains("keyspace") && words("a_peer").contains("peer"));
    let source = Source {
        path: "wal/src/x.rs".to_owned(),
        text: text.to_owned(),
        code,
    };
    let sources = [source];
    assert_eq!(
        hits(&sources, &["std::fs"], &[]),
        ["wal/src/x.rs:2: std::fs"]
    );
    assert!(hits(&sources, &["std::fs"], &["wal/src/x"]).is_empty());
}

/// A peer chooses keys; a table in memory that hashes them the same way everywhere can be flooded.
#[test]
fn no_map_of_foreign_keys_has_a_fixed_hash() {
    for source in shipped(&["wal", "replication", "engine"]) {
        for name in ["BuildHasherDefault", "FxHash", "with_hasher", "FixedState"] {
            assert!(!source.code.contains(name), "{}: {name}", source.path);
        }
    }
}

/// What an application takes in with the engine, without what only the compiler runs.
#[test]
fn runtime_dependencies_stay_few() {
    let cargo = std::env::var("CARGO").unwrap_or("cargo".to_owned());
    let args = [
        "tree",
        "-p",
        "strandline",
        "-e",
        "normal",
        "--prefix",
        "none",
        "--offline",
    ];
    let output = std::process::Command::new(cargo)
        .args(args)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let only_compiled = ["proc-macro2", "quote", "syn", "unicode-ident"];
    let names: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.contains("(proc-macro)"))
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty() && !name.starts_with("strandline"))
        .filter(|name| !only_compiled.contains(name))
        .collect();
    assert!(names.len() <= 30, "{} crates: {names:?}", names.len());
}
