//! Targets of what the command line imports: lines of JSON, and the metadata of trees.

use std::path::Component;

use strandline::Database;
use strandline_tools::load::Loader;
use strandline_tools::ndjson;
use strandline_tools::tree::{Meta, safe_path};

use crate::samples;

/// Control bit: the lines are imported into a database and exported again.
const IMPORT: u8 = 1;

/// Lines of an import: a pair that is read is written as a line that reads the same.
pub fn ndjson(input: &[u8]) {
    let Some((control, text)) = input.split_first() else {
        return;
    };
    for line in text.split(|byte| *byte == b'\n') {
        let Ok(pair) = ndjson::decode(line) else {
            continue;
        };
        let mut again = Vec::new();
        let keyspace = pair.keyspace.as_deref();
        ndjson::encode(&mut again, keyspace, &pair.key, &pair.value).expect("memory");
        assert_eq!(again.pop(), Some(b'\n'), "a line ends");
        assert!(!again.contains(&b'\n'), "a pair is one line");
        assert_eq!(ndjson::decode(&again), Ok(pair));
    }
    if control & IMPORT != 0 {
        import(text);
    }
}

/// Imports, exports, and imports that: both databases hold the same.
fn import(text: &[u8]) {
    let first = database();
    put(&first, text);
    let exported = export(&first);
    let second = database();
    put(&second, &exported);
    assert!(export(&second) == exported, "an export imports as itself");
}

fn database() -> Database {
    let (env, _) = samples::memory();
    samples::small_options()
        .open_with(samples::ROOT, env)
        .expect("a new database in memory")
}

fn put(db: &Database, mut text: &[u8]) {
    let dataset = db.dataset("").expect("it is there");
    let loader = Loader::new(&dataset, strandline::Durability::Memory);
    let options = ndjson::ImportOptions {
        keyspace: "default",
        skip_bad: false,
        progress: &|_| {},
    };
    // A broken line ends the import; what came before it stays.
    let _ = ndjson::import(&dataset, loader, "input", &mut text, &options);
}

fn export(db: &Database) -> Vec<u8> {
    let dataset = db.dataset("").expect("it is there");
    let mut out = Vec::new();
    ndjson::export(&dataset, None, &mut out, "memory", &|_| {}).expect("it is readable");
    out
}

/// The metadata of a tree's entry and its path: what is read is written alike, and no path that is
/// safe leads out of the tree.
pub fn tree(input: &[u8]) {
    let (path, meta) = match input.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, input),
    };
    if let Ok(meta) = Meta::decode(meta) {
        let stored = meta.encode();
        let again = Meta::decode(&stored).expect("what was written is read");
        assert_eq!(again, meta);
        assert_eq!(again.encode(), stored);
    }
    if let Ok(path) = safe_path(path) {
        assert!(path.components().next().is_some());
        let is_inside = path.components().all(|c| matches!(c, Component::Normal(_)));
        assert!(is_inside, "{path:?} leads out of the tree");
    }
}

/// Seeds of the targets above.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let lines = concat!(
        "{\"key\":\"a\",\"value\":\"b\"}\n",
        "{\"key_hex\":\"00ff\",\"value_hex\":\"\"}\n",
        "{\"keyspace\":\"other\",\"key\":\"\\u0000\",\"value\":\"\\n\\\"\"}\n",
        "\n{\"key\":\"a\",\"value\":\"again\"}\n",
    );
    let mut seeds = Vec::new();
    for control in [0, IMPORT] {
        seeds.push(("ndjson", [&[control], lines.as_bytes()].concat()));
    }
    let mtime = strandline_tools::tree::Mtime {
        mtime_s: -5,
        mtime_ns: 7,
    };
    let metas = [
        Meta::symlink(b"../target"),
        Meta::symlink(b"\xff"),
        Meta::Dir { mode: 0o755, mtime },
        Meta::File {
            mode: 0o644,
            mtime,
            len: 1 << 40,
            parts: vec![1 << 39, 1 << 39],
        },
    ];
    let paths: [&[u8]; 4] = [b"a/b", b"../up", b"/abs", b"\xff/c"];
    for (path, meta) in paths.iter().zip(metas) {
        seeds.push(("tree", [path, &b"\n"[..], &meta.encode()].concat()));
    }
    seeds
}
