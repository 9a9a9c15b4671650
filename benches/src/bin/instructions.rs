//! Counts the instructions that the engine's paths take, which a busy machine does not change, and holds
//! them against what is stored.
//!
//! Each row runs in a process of its own under `valgrind --tool=callgrind`, which counts what the
//! thread that does the work executes between the beginning and the end of the work. Valgrind knows no
//! AVX-512, so the code paths are the same on every x86-64 that has AVX2.
//!
//! `instructions [--store] [ROW ...]`: fails where a row takes more than [`TOLERANCE`] above
//! `benches/instructions.txt`; `--store` writes that file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use strandline::replica::Node;
use strandline::{Background, Database, Dataset, Durability, Keyspace, Options};
use strandline_benches::{Values, keys};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{Notifier, Now};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One path: what is done before, and what is counted.
struct Row {
    name: &'static str,
    /// Operations that `run` does.
    count: usize,
    run: fn(&Path, usize) -> Result<()>,
}

const ROWS: [Row; 14] = [
    Row {
        name: "put",
        count: 20_000,
        run: put,
    },
    Row {
        name: "commit of 100, per record",
        count: 50_000,
        run: commit,
    },
    Row {
        name: "get, hit in the memtable",
        count: 20_000,
        run: get_fresh,
    },
    Row {
        name: "get, hit in a table",
        count: 20_000,
        run: get_settled,
    },
    Row {
        name: "get, miss",
        count: 20_000,
        run: get_missing,
    },
    Row {
        name: "scan of 100, per entry",
        count: 20_000,
        run: scan,
    },
    Row {
        name: "visit of 100, per entry",
        count: 20_000,
        run: visit,
    },
    Row {
        name: "visit of 100 in reverse, per entry",
        count: 20_000,
        run: visit_back,
    },
    Row {
        name: "visit of 10, per entry",
        count: 10_000,
        run: visit_short,
    },
    Row {
        name: "visit of 100, a sixth in the memtable, per entry",
        count: 20_000,
        run: visit_layered,
    },
    Row {
        name: "scan of 100 in reverse, per entry",
        count: 20_000,
        run: scan_back,
    },
    Row {
        name: "scan of 10, per entry",
        count: 10_000,
        run: scan_short,
    },
    Row {
        name: "apply at the open, per record",
        count: 40_000,
        run: apply,
    },
    Row {
        name: "ship and apply, per batch of 1",
        count: 40_000,
        run: ship,
    },
];

/// How much more than what is stored passes. On one machine hash seeds and the growth of buffers move a
/// row by far less; another processor picks other copies of the same routines.
const TOLERANCE: f64 = 0.10;
const VALUE_LEN: usize = 100;
/// Entries that are there before something is counted.
const LOADED: usize = 40_000;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<String>) -> Result<bool> {
    if let [flag, name, dir] = &args[..]
        && flag == "--work"
    {
        let row = ROWS.iter().find(|row| row.name == name);
        let row = row.ok_or_else(|| format!("no row {name:?}"))?;
        (row.run)(Path::new(dir), row.count)?;
        return Ok(true);
    }
    if let [flag, dir] = &args[..]
        && flag == "--leave"
    {
        leave(Path::new(dir))?;
    }
    let is_stored = args.iter().any(|arg| arg == "--store");
    let wanted: Vec<&String> = args.iter().filter(|arg| *arg != "--store").collect();
    if let Some(name) = wanted
        .iter()
        .find(|name| !ROWS.iter().any(|row| row.name == **name))
    {
        return Err(format!("no row {name:?}").into());
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("instructions.txt");
    let mut stored = read_stored(&path)?;
    let mut is_good = true;
    println!("| path | instructions | stored | ratio |\n|---|---:|---:|---:|");
    for row in &ROWS {
        if !wanted.is_empty() && !wanted.iter().any(|name| *name == row.name) {
            continue;
        }
        let found = count(row)? / row.count as f64;
        match stored.get(row.name) {
            Some(before) if !is_stored => {
                let ratio = found / before;
                let word = if ratio > 1.0 + TOLERANCE {
                    is_good = false;
                    "  more than is allowed"
                } else if ratio < 1.0 - TOLERANCE {
                    "  less: store it"
                } else {
                    ""
                };
                println!(
                    "| {} | {found:.0} | {before:.0} | {ratio:.3} |{word}",
                    row.name
                );
            }
            None if !is_stored => {
                return Err(
                    format!("{}: nothing stored for {:?}", path.display(), row.name).into(),
                );
            }
            _ => println!("| {} | {found:.0} | | |", row.name),
        }
        stored.insert(row.name.to_owned(), found);
    }
    if is_stored {
        let mut text =
            String::from("# Instructions per operation, written by `instructions --store`.\n");
        for row in &ROWS {
            if let Some(found) = stored.get(row.name) {
                writeln!(text, "{found:.0}\t{}", row.name)?;
            }
        }
        std::fs::write(&path, text)?;
    }
    Ok(is_good)
}

fn read_stored(path: &Path) -> Result<BTreeMap<String, f64>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(format!("{}: {error}", path.display()).into()),
    };
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (count, name) = line
                .split_once('\t')
                .ok_or_else(|| format!("{line:?}: no tab"))?;
            Ok((name.to_owned(), count.parse()?))
        })
        .collect()
}

/// Runs a row under callgrind and returns all instructions that were counted.
fn count(row: &Row) -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("callgrind.out");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg("--toggle-collect=*instructions*measured*")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--work", row.name])
        .arg(dir.path().join("database"))
        .output()
        .map_err(|error| format!("valgrind: {error}; install it"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{}: {}: {errors}", row.name, output.status).into());
    }
    let text = std::fs::read_to_string(&out)?;
    let total = text.lines().find_map(|line| {
        line.strip_prefix("totals:")
            .or_else(|| line.strip_prefix("summary:"))
    });
    match total.map(|total| total.trim().parse()) {
        Some(Ok(total)) if total > 0.0 => Ok(total),
        _ => Err(format!("{}: nothing was counted: {errors}", row.name).into()),
    }
}

/// What happens in here is counted.
#[inline(never)]
fn measured<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    black_box(work())
}

struct Opened {
    database: Database,
    dataset: Dataset,
    map: Keyspace,
}

fn options() -> Options {
    Options {
        durability: Durability::Os,
        // Nobody else does a part of it, sometimes more and sometimes less.
        background: Background::Manual,
        ..Options::default()
    }
}

fn open(dir: &Path) -> Result<Opened> {
    let database = options().open(dir)?;
    Ok(Opened {
        dataset: database.dataset("")?,
        map: database.keyspace("map")?,
        database,
    })
}

impl Opened {
    fn load(&self, keys: &[[u8; 16]]) -> Result<()> {
        let values = Values::new(VALUE_LEN);
        for (n, keys) in keys.chunks(100).enumerate() {
            let mut batch = self.dataset.batch();
            for key in keys {
                batch.put(&self.map, key, values.value(n, VALUE_LEN))?;
            }
            batch.commit()?;
        }
        Ok(())
    }

    fn get(&self, keys: &[[u8; 16]], is_there: bool) -> Result<()> {
        for key in keys {
            let value = self.map.get(key)?;
            assert_eq!(value.is_some(), is_there);
            black_box(value);
        }
        Ok(())
    }
}

/// A database with entries in one table, or in the memtable.
fn loaded(dir: &Path, is_settled: bool) -> Result<(Opened, Vec<[u8; 16]>)> {
    let opened = open(dir)?;
    let keys = keys(1, LOADED);
    opened.load(&keys)?;
    if is_settled {
        opened.database.flush()?;
        opened.dataset.compact()?;
    }
    Ok((opened, keys))
}

fn put(dir: &Path, count: usize) -> Result<()> {
    let (opened, _) = loaded(dir, false)?;
    let (keys, values) = (keys(2, count), Values::new(VALUE_LEN));
    measured(|| {
        for (n, key) in keys.iter().enumerate() {
            opened.map.put(key, values.value(n, VALUE_LEN))?;
        }
        Ok(())
    })
}

fn commit(dir: &Path, count: usize) -> Result<()> {
    let (opened, _) = loaded(dir, false)?;
    let keys = keys(2, count);
    measured(|| opened.load(&keys))
}

fn get_fresh(dir: &Path, count: usize) -> Result<()> {
    let (opened, keys) = loaded(dir, false)?;
    measured(|| opened.get(&keys[..count], true))
}

fn get_settled(dir: &Path, count: usize) -> Result<()> {
    let (opened, keys) = loaded(dir, true)?;
    // The first look at a block checks it.
    opened.get(&keys, true)?;
    measured(|| opened.get(&keys[..count], true))
}

fn get_missing(dir: &Path, count: usize) -> Result<()> {
    let (opened, there) = loaded(dir, true)?;
    opened.get(&there, true)?;
    let keys = keys(2, count);
    measured(|| opened.get(&keys, false))
}

fn scan(dir: &Path, count: usize) -> Result<()> {
    scan_each(dir, count / 100, |map, start| {
        map.range(start..).take(100).try_fold(0, add)
    })
}

fn visit(dir: &Path, count: usize) -> Result<()> {
    scan_each(dir, count / 100, |map, start| {
        let mut sum = 0;
        map.visit(start.., first(100, &mut sum))?;
        Ok(sum)
    })
}

fn visit_back(dir: &Path, count: usize) -> Result<()> {
    scan_each(dir, count / 100, |map, start| {
        let mut sum = 0;
        map.visit_rev(..=start, first(100, &mut sum))?;
        Ok(sum)
    })
}

fn visit_short(dir: &Path, count: usize) -> Result<()> {
    scan_each(dir, count / 10, |map, start| {
        let mut sum = 0;
        map.visit(start.., first(10, &mut sum))?;
        Ok(sum)
    })
}

/// Every sixth key has a newer value in the memtable, which is in order already.
fn visit_layered(dir: &Path, count: usize) -> Result<()> {
    let (opened, keys) = loaded(dir, true)?;
    opened.get(&keys, true)?;
    let values = Values::new(VALUE_LEN);
    for (n, key) in keys.iter().enumerate().step_by(6) {
        opened.map.put(key, values.value(n + 1, VALUE_LEN))?;
    }
    opened.map.visit(&[][..].., first(1, &mut 0))?;
    measured(|| {
        for start in &keys[..count / 100] {
            let mut sum = 0;
            opened.map.visit(&start[..].., first(100, &mut sum))?;
            assert!(black_box(sum) > 0);
        }
        Ok(())
    })
}

/// Sees as many entries.
fn first(count: usize, sum: &mut usize) -> impl FnMut(&[u8], &[u8]) -> ControlFlow<()> {
    let mut seen = 0;
    move |key, value| {
        *sum += key.len() + value.len();
        seen += 1;
        match seen < count {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }
}

fn scan_back(dir: &Path, count: usize) -> Result<()> {
    scan_each(dir, count / 100, |map, start| {
        map.range(..start).rev().take(100).try_fold(0, add)
    })
}

fn scan_short(dir: &Path, count: usize) -> Result<()> {
    scan_each(dir, count / 10, |map, start| {
        map.range(start..).take(10).try_fold(0, add)
    })
}

fn add(
    sum: usize,
    item: strandline::Result<(Vec<u8>, strandline::Value)>,
) -> strandline::Result<usize> {
    let (key, value) = item?;
    Ok(sum + key.len() + value.len())
}

fn scan_each(
    dir: &Path,
    count: usize,
    scan: impl Fn(&Keyspace, &[u8]) -> strandline::Result<usize>,
) -> Result<()> {
    let (opened, keys) = loaded(dir, true)?;
    opened.get(&keys, true)?;
    measured(|| {
        for start in &keys[..count] {
            assert!(black_box(scan(&opened.map, start)?) > 0);
        }
        Ok(())
    })
}

/// Everything stands in the log alone: a process that died left it.
fn apply(dir: &Path, count: usize) -> Result<()> {
    assert_eq!(count, LOADED, "what is loaded is what is applied");
    let mut writer = Command::new(std::env::current_exe()?);
    let status = writer.arg("--leave").arg(dir).status()?;
    if !status.success() {
        return Err(format!("the writer: {status}").into());
    }
    let opened = measured(|| open(dir))?;
    assert!(opened.map.get(keys(1, 1)[0])?.is_some());
    Ok(())
}

/// A follower begins with nothing: what its leader does for it counts, too.
fn ship(dir: &Path, count: usize) -> Result<()> {
    std::fs::create_dir(dir)?;
    let leader = open(&dir.join("leader"))?;
    let follower = options().open(dir.join("follower"))?;
    let values = Values::new(VALUE_LEN);
    for (n, key) in keys(1, count).iter().enumerate() {
        leader.map.put(key, values.value(n, VALUE_LEN))?;
    }
    let network = LocalNetwork::new(1);
    let node = |name| {
        let transport = Box::new(network.attach(name));
        Node::new(name, transport, Arc::new(Notifier::default()))
    };
    let [mut leads, mut follows] = ["leader", "follower"].map(node);
    let mut now = Now {
        mono_ms: 1_000_000,
        wall_ms: 1_000_000,
    };
    leads.lead(now, &leader.dataset)?;
    let copy = follower.follower("")?;
    follows.follow(now, &copy, &["leader".to_owned()])?;
    measured(|| {
        while copy.positions() != leader.dataset.positions() {
            now.mono_ms += 1;
            now.wall_ms += 1;
            for _ in 0..100 {
                if !(leads.step(now) | follows.step(now)) {
                    break;
                }
            }
        }
        Ok(())
    })
}

/// Loads a database and ends without a close.
fn leave(dir: &Path) -> Result<()> {
    let (opened, _) = loaded(dir, false)?;
    std::mem::forget(opened);
    std::process::exit(0)
}
