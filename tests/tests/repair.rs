//! Random damage to one of two nodes, and a repair by the other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use strandline::repair::repair;
use strandline::{Error, ErrorKind};
use strandline_tests::plan::small_options;
use strandline_tests::repairs::{Pair, copy_into, fork, heal, round, state, sweep};
use strandline_tests::run::Tally;
use strandline_tests::seed::{self, Rng};
use strandline_wal::io::Disk;
use strandline_wal::io::sim::SimEnv;

#[test]
fn a_damaged_node_is_healed_by_its_peer() {
    let base = seed::base(31);
    let mut tally = Tally::default();
    for n in 0..seed::count(75, 1_500) {
        let seed = base + n;
        let one = round(seed).unwrap_or_else(|e| panic!("STRANDLINE_SEED={seed}: {e}"));
        tally.merge(&one);
    }
    println!("repair: base seed {base}, {}", tally.line());
    for what in [
        "datasets replaced",
        "segments mended",
        "tables replaced",
        "written on",
    ] {
        assert!(tally.count(what) > 0, "no {what} in all of the run");
    }
}

/// A repair may die at any call: it is made again.
#[test]
fn a_repair_survives_its_death_at_every_call() {
    let base = seed::base(91);
    for n in 0..seed::count(1, 50) {
        let seed = base + n;
        let tally = sweep(seed).unwrap_or_else(|e| panic!("STRANDLINE_SEED={seed}: {e}"));
        println!("deaths of a repair: seed {seed}, {}", tally.line());
    }
}

/// Both nodes are damaged, each in another file: each has what the other needs, and both heal.
#[test]
fn damage_on_both_in_different_places_heals_on_both() {
    let base = seed::base(77);
    let mut tally = Tally::default();
    for round in 0..seed::count(25, 400) {
        let seed = base + round;
        let mut rng = Rng::new(seed);
        let pair = Pair::with(&mut rng, 900, 2_500);
        if !pair.is_caught_up {
            continue;
        }
        let files = pair.machines[0].disk.files();
        let shared: Vec<&PathBuf> = files
            .iter()
            .filter(|(path, _)| path.extension().is_some_and(|e| e == "seg"))
            .filter(|(path, bytes)| pair.machines[1].disk.files().get(*path) == Some(bytes))
            .map(|(path, _)| path)
            .collect();
        let hurt = [fork(&pair.machines[0]), fork(&pair.machines[1])];
        let mut damages = Vec::new();
        let places = [
            700 + rng.below(2_000) as u64,
            9_000 + rng.below(20_000) as u64,
        ];
        let (mut any, mut has_tables) = (false, false);
        if let Some(path) = shared.first().filter(|path| files[**path].len() > 40_000) {
            // One segment, two places.
            for (machine, at) in hurt.iter().zip(places) {
                machine.disk.rot(path, at, 1).unwrap();
                damages.push(format!("{}: flip at {at}", path.display()));
                any = true;
            }
        }
        // Tables hold their keys in order: one node's first block, the other's last.
        let tables = |machine: &SimEnv| -> Vec<PathBuf> {
            let files = machine.disk.files().into_iter();
            let is_table = |path: &Path| path.extension().is_some_and(|e| e == "tbl");
            let tables = files.filter(|(path, bytes)| is_table(path) && bytes.len() > 45_000);
            tables.map(|(path, _)| path).collect()
        };
        let len = |n: usize, path: &PathBuf| hurt[n].disk.stat(path).unwrap().len;
        if let (Some(a), Some(b)) = (tables(&hurt[0]).first(), tables(&hurt[1]).first())
            // Of one length they have the same keys in the same blocks.
            && len(0, a) == len(1, b)
        {
            hurt[0].disk.rot(a, 2_000, 1).unwrap();
            hurt[1].disk.rot(b, 42_000, 1).unwrap();
            damages.push(format!("{} at 2000, {} at 42000", a.display(), b.display()));
            has_tables = true;
        }
        tally.add("pairs of tables", has_tables.into());
        if !any && !has_tables {
            continue;
        }
        for machine in &hurt {
            machine.disk.settle();
        }
        let joined = |n: usize, copy: &SimEnv| {
            let machine = fork(&hurt[n]);
            copy_into(&machine, copy);
            machine
        };
        let mut copy = hurt[1].clone();
        for n in [0, 1] {
            let machine = joined(n, &copy);
            heal(&pair, n, &machine, &damages, &mut tally)
                .unwrap_or_else(|e| panic!("STRANDLINE_SEED={seed}: node {n}: {damages:?}: {e}"));
            machine.disk.remove_dir_all(Path::new("/copy")).unwrap();
            copy = machine;
        }
        tally.add("pairs healed", 1);
    }
    println!("repair of both: base seed {base}, {}", tally.line());
    assert!(tally.count("pairs healed") > 0 && tally.count("pairs of tables") > 0);
}

/// The same place of a segment is damaged on both: the repair changes nothing there and says so, and
/// the open refuses by the name of the file.
#[test]
fn what_is_damaged_on_both_is_told_and_refused() {
    let mut rng = Rng::new(5);
    let pair = Pair::new(&mut rng);
    let segments = |machine: &SimEnv| -> BTreeMap<PathBuf, Vec<u8>> {
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|e| e == "seg");
        let files = machine.disk.files().into_iter();
        files.filter(|(path, _)| is_segment(path)).collect()
    };
    let theirs = segments(&pair.machines[1]);
    let (path, _) = segments(&pair.machines[0])
        .into_iter()
        .find(|(path, bytes)| {
            theirs
                .get(path)
                .is_some_and(|b| b[..2_000] == bytes[..2_000])
        })
        .unwrap();
    for machine in &pair.machines {
        machine.disk.rot(&path, 700, 4).unwrap();
        machine.disk.settle();
    }
    let machine = pair.joined(0, &pair.machines[1]);
    let report = repair(Path::new("/db"), Path::new("/copy"), &machine.env()).unwrap();
    assert!(
        report.problems.iter().any(|p| p.path == path),
        "{report:#?}"
    );
    let opened = pair.options.clone().open_with("/db", machine.env());
    let error = opened.and_then(|db| state(&db)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Restore);
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    assert!(error.to_string().contains(&name), "{error}");
}

/// A copy of another history is refused, and so is a database that is open.
#[test]
fn a_repair_that_cannot_be_is_refused_and_changes_nothing() {
    let machine = SimEnv::new(1);
    let env = machine.env();
    for root in ["/db", "/copy"] {
        let db = small_options().open_with(root, machine.env()).unwrap();
        db.keyspace("map").unwrap().put("k", root).unwrap();
        if root == "/copy" {
            let error = repair(Path::new(root), Path::new("/db"), &env).unwrap_err();
            assert!(matches!(error, Error::Locked { .. }), "{error}");
        }
        db.close().unwrap();
    }
    let before = machine.disk.files();
    let run = |root: &str, copy: &str| repair(Path::new(root), Path::new(copy), &env);
    assert!(matches!(run("/db", "/copy"), Err(Error::Mismatch { .. })));
    assert!(matches!(run("/none", "/copy"), Err(Error::NotFound { .. })));
    assert!(matches!(run("/db", "/none"), Err(Error::NotFound { .. })));
    assert_eq!(machine.disk.files(), before);
}
