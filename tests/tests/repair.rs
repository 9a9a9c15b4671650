//! Random damage to one of two nodes, and a repair by the other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline::repair::repair;
use strandline::replica::Node;
use strandline::verify::verify;
use strandline::{Database, Durability, Error, ErrorKind, Options, ShardRouter};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{Notifier, Now};
use strandline_tests::plan::small_options;
use strandline_tests::run::Tally;
use strandline_tests::seed::{self, Rng};
use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{Access, Disk};

type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// A leader and its follower, both closed, and every state that the leader went through.
struct Pair {
    options: Options,
    /// The leader first.
    machines: [SimEnv; 2],
    history: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// What the leader showed last, and the follower.
    states: [State; 2],
    /// Otherwise there are records that the leader alone has.
    is_caught_up: bool,
}

impl Pair {
    fn new(rng: &mut Rng) -> Pair {
        let count = rng.within(200, 700);
        Pair::with(rng, 120, count)
    }

    /// A pair that holds so many keys after so many writes.
    fn with(rng: &mut Rng, key_count: usize, count: usize) -> Pair {
        let options = Options {
            router: ShardRouter::hash(rng.within(1, 3) as u16).unwrap(),
            large_value_len_min: 512,
            run_count_max: 3,
            durability: Durability::Disk,
            ..small_options()
        };
        let machines = [SimEnv::new(rng.next_u64()), SimEnv::new(rng.next_u64())];
        let network = LocalNetwork::new(rng.next_u64());
        let dbs =
            [0, 1].map(|n: usize| options.clone().open_with("/db", machines[n].env()).unwrap());
        let mut nodes = ["a", "b"].map(|name| {
            let transport = Box::new(network.attach(name));
            Node::new(name, transport, Arc::new(Notifier::default()))
        });
        let mut ms = 1_000_000;
        let now = |ms| Now {
            mono_ms: ms,
            wall_ms: ms,
        };
        nodes[0]
            .lead(now(ms), &dbs[0].dataset("").unwrap())
            .unwrap();
        let follower = dbs[1].follower("").unwrap();
        nodes[1]
            .follow(now(ms), &follower, &["a".to_owned()])
            .unwrap();
        let mut run = |nodes: &mut [Node; 2], count: u64| {
            for _ in 0..count {
                ms += 1;
                for node in nodes.iter_mut() {
                    while node.step(now(ms)) {}
                }
            }
        };
        let map = dbs[0].keyspace("map").unwrap();
        let mut history = Vec::new();
        for n in 0..count {
            let key = format!("key-{:03}", rng.below(key_count)).into_bytes();
            let value = (!rng.percent(12)).then(|| {
                let len = if rng.percent(10) {
                    rng.below(4_000)
                } else {
                    rng.below(300)
                };
                let mut value = (n as u64).to_le_bytes().to_vec();
                value.resize(8 + len, n as u8);
                value
            });
            match &value {
                Some(value) => map.put_with(&key, value, Durability::Os).unwrap(),
                None => map.delete_with(&key, Durability::Os).unwrap(),
            }
            history.push((key, value));
            if rng.percent(5) {
                run(&mut nodes, 5);
                dbs[rng.below(2)].run_background(4).unwrap();
            }
            match rng.below(150) {
                0 => dbs[0].flush().unwrap(),
                1 => dbs[0].dataset("").unwrap().compact().unwrap(),
                2 => dbs[1].flush().unwrap(),
                _ => {}
            }
        }
        dbs[0].dataset("").unwrap().sync().unwrap();
        let is_caught_up = rng.percent(70);
        if is_caught_up {
            run(&mut nodes, 2_500);
            if key_count > 500 {
                // Tables of the same keys on both.
                for db in &dbs {
                    db.dataset("").unwrap().compact().unwrap();
                }
            }
        }
        let states = [0, 1].map(|n: usize| state(&dbs[n]).unwrap());
        drop((nodes, map, follower));
        for db in dbs {
            db.close().unwrap();
        }
        for machine in &machines {
            machine.disk.settle();
        }
        Pair {
            options,
            machines,
            history,
            states,
            is_caught_up,
        }
    }

    /// A machine with one node's files at `/db` and the other's at `/copy`.
    fn joined(&self, n: usize, copy: &SimEnv) -> SimEnv {
        let machine = fork(&self.machines[n]);
        copy_into(&machine, copy);
        machine
    }

    /// Whether the leader went through a state.
    fn went_through(&self, found: &State) -> bool {
        let mut state = State::new();
        if state == *found {
            return true;
        }
        self.history.iter().any(|(key, value)| {
            match value {
                Some(value) => state.insert(key.clone(), value.clone()),
                None => state.remove(key),
            };
            state == *found
        })
    }
}

/// Puts a node's files at `/copy` of another machine.
fn copy_into(machine: &SimEnv, copy: &SimEnv) {
    for (path, bytes) in copy.disk.files() {
        let path = Path::new("/copy").join(path.strip_prefix("/db").unwrap());
        machine.disk.create_dir_all(path.parent().unwrap()).unwrap();
        let file = machine.disk.create(&path).unwrap();
        file.write_at(&bytes, 0).unwrap();
    }
    machine.disk.settle();
}

fn fork(machine: &SimEnv) -> SimEnv {
    SimEnv {
        disk: machine.disk.fork(),
        ..machine.clone()
    }
}

fn state(db: &Database) -> Result<State, Error> {
    let dataset = db.dataset("")?;
    let Ok(map) = dataset.keyspace("map") else {
        return Ok(State::new());
    };
    map.iter()
        .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())))
        .collect()
}

fn is_data(path: &Path) -> bool {
    path.starts_with("/db") && !path.ends_with("LOCK") && !path.ends_with("READERS")
}

/// Damages one place of one file of a node.
fn damage(machine: &SimEnv, rng: &mut Rng) -> String {
    let disk = &machine.disk;
    let files: Vec<PathBuf> = disk.files().into_keys().filter(|p| is_data(p)).collect();
    let path = rng.pick(&files).clone();
    let len = disk.stat(&path).unwrap().len;
    let at = rng.next_u64() % len.max(1);
    let is_root = path.ends_with("NODE") || path.ends_with("epoch");
    let what = match rng.below(8) {
        0 if !is_root => {
            disk.remove(&path).unwrap();
            "removed".to_owned()
        }
        1 => {
            let start = at / 512 * 512;
            let zeros = vec![0; 512.min((len - start) as usize)];
            let file = disk.open(&path, Access::Write).unwrap();
            file.write_at(&zeros, start).unwrap();
            format!("sector {start} zeroed")
        }
        2 if !is_root => {
            let file = disk.open(&path, Access::Write).unwrap();
            file.set_len(at).unwrap();
            format!("cut to {at}")
        }
        _ => {
            disk.rot(&path, at, 1 << rng.below(8)).unwrap();
            format!("flip at {at}")
        }
    };
    disk.settle();
    format!("{}: {what}", path.display())
}

fn heal(
    pair: &Pair,
    n: usize,
    machine: &SimEnv,
    damages: &[String],
    tally: &mut Tally,
) -> Result<(), String> {
    let before: BTreeMap<_, _> = machine.disk.files();
    let copied = |files: &BTreeMap<PathBuf, Vec<u8>>| -> Vec<(PathBuf, Vec<u8>)> {
        let of_copy = files.iter().filter(|(path, _)| path.starts_with("/copy"));
        of_copy.map(|(p, b)| (p.clone(), b.clone())).collect()
    };
    let report =
        repair(Path::new("/db"), Path::new("/copy"), &machine.env()).map_err(|e| e.to_string())?;
    if !report.problems.is_empty() {
        return Err(format!("still damaged: {:#?}", report.problems));
    }
    let after = machine.disk.files();
    if copied(&before) != copied(&after) {
        return Err("the copy was changed".to_owned());
    }
    tally.add("places mended", report.repair_count() as u64);
    tally.add("damages", damages.len() as u64);
    for dataset in &report.datasets {
        tally.add("datasets replaced", dataset.is_replaced.into());
        tally.add("segments mended", dataset.segments.len() as u64);
        tally.add("tables replaced", dataset.tables.len() as u64);
    }
    let db = pair
        .options
        .clone()
        .open_with("/db", machine.env())
        .map_err(|e| e.to_string())?;
    let found = state(&db).map_err(|e| e.to_string())?;
    // A leader has all that it acknowledged; a follower shows what it knows to be committed. A leader
    // that lost its record of epochs follows until it is promoted.
    let follows = db.is_follower("").map_err(|e| e.to_string())?;
    let is_right = match follows {
        false => found == pair.states[n],
        true => pair.went_through(&found),
    };
    if !is_right {
        let lost = pair.states[n]
            .iter()
            .filter(|(key, value)| found.get(*key) != Some(value));
        let recovery = db.dataset("").map(|d| d.recovery());
        let lost = lost.count();
        return Err(format!(
            "another state: {lost} keys are not as they were: {report:#?} {recovery:#?}"
        ));
    }
    if !follows {
        db.keyspace("map")
            .and_then(|map| map.put("after", "repair"))
            .map_err(|e| format!("writing on: {e}"))?;
        tally.add("written on", 1);
    }
    db.close().map_err(|e| e.to_string())?;
    drop(db);
    let problems = verify(Path::new("/db"), &machine.env())
        .map_err(|e| e.to_string())?
        .problems;
    match problems.is_empty() {
        true => Ok(()),
        false => Err(format!("damaged after it was opened: {problems:#?}")),
    }
}

#[test]
fn a_damaged_node_is_healed_by_its_peer() {
    let base = seed::base(31);
    let mut tally = Tally::default();
    for round in 0..seed::count(75, 1_500) {
        let seed = base + round;
        let mut rng = Rng::new(seed);
        let pair = Pair::new(&mut rng);
        // What nobody else has cannot be mended.
        let damaged: &[usize] = if pair.is_caught_up { &[1, 0] } else { &[1] };
        for n in damaged.iter().copied() {
            for count in 1..=3 {
                let machine = pair.joined(n, &pair.machines[1 - n]);
                let damages: Vec<String> = (0..count).map(|_| damage(&machine, &mut rng)).collect();
                heal(&pair, n, &machine, &damages, &mut tally).unwrap_or_else(|e| {
                    panic!("STRANDLINE_SEED={seed}: node {n}: {damages:?}: {e}")
                });
                tally.add("nodes healed", 1);
            }
        }
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
