//! Two nodes, damage to one of them, and its repair by a copy of the other: whole, and with deaths at
//! every call of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline::repair::{RepairReport, repair};
use strandline::replica::Node;
use strandline::verify::verify;
use strandline::{Database, Durability, Error, ErrorKind, Options, ShardRouter};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{Notifier, Now};
use strandline_wal::io::fault::FaultDisk;
use strandline_wal::io::sim::{Damage, SimEnv};
use strandline_wal::io::{Access, Disk, Env};

use crate::plan::small_options;
use crate::run::{Tally, disk_of};
use crate::seed::Rng;

/// What a node shows.
pub type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// A leader and its follower, both closed, and every state that the leader went through.
pub struct Pair {
    /// Of both.
    pub options: Options,
    /// The leader first.
    pub machines: [SimEnv; 2],
    history: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// What the leader showed last, and the follower.
    states: [State; 2],
    /// Otherwise there are records that the leader alone has.
    pub is_caught_up: bool,
}

impl Pair {
    /// A pair that holds up to 120 keys.
    pub fn new(rng: &mut Rng) -> Pair {
        let count = rng.within(200, 700);
        Pair::with(rng, 120, count)
    }

    /// A pair that holds so many keys after so many writes.
    pub fn with(rng: &mut Rng, key_count: usize, count: usize) -> Pair {
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
    pub fn joined(&self, n: usize, copy: &SimEnv) -> SimEnv {
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
pub fn copy_into(machine: &SimEnv, copy: &SimEnv) {
    for (path, bytes) in copy.disk.files() {
        let path = Path::new("/copy").join(path.strip_prefix("/db").unwrap());
        machine.disk.create_dir_all(path.parent().unwrap()).unwrap();
        let file = machine.disk.create(&path).unwrap();
        file.write_at(&bytes, 0).unwrap();
    }
    machine.disk.settle();
}

/// The same machine again.
pub fn fork(machine: &SimEnv) -> SimEnv {
    SimEnv {
        disk: machine.disk.fork(),
        ..machine.clone()
    }
}

/// Everything that a node shows.
///
/// # Errors
/// The engine's.
pub fn state(db: &Database) -> Result<State, Error> {
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
pub fn damage(machine: &SimEnv, rng: &mut Rng) -> String {
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

/// Repairs a node and holds it against what it showed.
///
/// # Errors
/// What is wrong.
pub fn heal(
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

/// Random damage to one node after the other, each time healed.
///
/// # Errors
/// What is wrong.
pub fn round(seed: u64) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let mut rng = Rng::new(seed);
    let pair = Pair::new(&mut rng);
    // What nobody else has cannot be mended.
    let damaged: &[usize] = if pair.is_caught_up { &[1, 0] } else { &[1] };
    for n in damaged.iter().copied() {
        for count in 1..=3 {
            let machine = pair.joined(n, &pair.machines[1 - n]);
            let damages: Vec<String> = (0..count).map(|_| damage(&machine, &mut rng)).collect();
            heal(&pair, n, &machine, &damages, &mut tally)
                .map_err(|error| format!("node {n}: {damages:?}: {error}"))?;
            tally.add("nodes healed", 1);
        }
    }
    Ok(tally)
}

fn run(env: &Env) -> Result<RepairReport, Error> {
    repair(Path::new("/db"), Path::new("/copy"), env)
}

/// One node with damage that a repair has to mend, and the copy beside it.
fn hurt(pair: &Pair, n: usize, rng: &mut Rng) -> Result<(SimEnv, Vec<String>), String> {
    loop {
        let hurt = pair.joined(n, &pair.machines[1 - n]);
        let damages: Vec<String> = (0..2).map(|_| damage(&hurt, rng)).collect();
        let report = run(&fork(&hurt).env()).map_err(|e| format!("{damages:?}: {e}"))?;
        if report.repair_count() > 0 {
            return Ok((hurt, damages));
        }
    }
}

/// Dies at every call of a repair, with every damage. The copy stays as it is, what the node shows
/// before it is repaired again is right or refused, and a second repair heals it.
///
/// # Errors
/// The first call and damage at which something is wrong, and what.
pub fn sweep(seed: u64) -> Result<Tally, String> {
    let mut rng = Rng::new(seed);
    let count = rng.within(60, 200);
    let pair = Pair::with(&mut rng, 60, count);
    let n = if pair.is_caught_up { rng.below(2) } else { 1 };
    let (hurt, damages) = hurt(&pair, n, &mut rng)?;
    let whole = fork(&hurt);
    let before = whole.disk.io_count();
    run(&whole.env()).map_err(|e| format!("{damages:?}: {e}"))?;
    let call_count = whole.disk.io_count() - before;
    let mut tally = Tally::default();
    tally.add("calls", call_count);
    for at in 0..call_count {
        let dying = fork(&hurt);
        dying.disk.crash_at(dying.disk.io_count() + at);
        // What it can check no more it reports as a problem.
        let done = run(&dying.env());
        if !dying.disk.is_dead() {
            let reached = format!("call {at} of {call_count} is not reached");
            return Err(format!("{reached}: {done:?}"));
        }
        for (k, damage) in Damage::ALL.into_iter().map(Some).chain([None]).enumerate() {
            let after = match damage {
                Some(damage) => dying.crash(seed ^ (at << 16) ^ k as u64, damage),
                None => fork(&dying),
            };
            let judged = half_mended(&pair, n, &after)
                .and_then(|()| heal(&pair, n, &after, &damages, &mut tally));
            judged.map_err(|error| {
                format!("{damages:?}: death at call {at} of {call_count}, {damage:?}: {error}")
            })?;
            tally.add("recoveries", 1);
        }
    }
    Ok(tally)
}

/// A reader of what a repair left when it died sees what is right, or an error.
fn half_mended(pair: &Pair, n: usize, machine: &SimEnv) -> Result<(), String> {
    let options = pair.options.clone();
    let shown = options.open_read_only_with("/db", machine.env());
    match shown.and_then(|db| state(&db)) {
        Ok(found) if found == pair.states[n] || pair.went_through(&found) => Ok(()),
        Ok(found) => Err(format!("half mended it shows {} wrong keys", found.len())),
        Err(error) if error.kind() == ErrorKind::Bug => Err(format!("half mended: {error}")),
        Err(_) => Ok(()),
    }
}

/// Fails every call of a repair in every one of some ways; once the fault is gone the node is healed.
///
/// # Errors
/// The first call and way at which something is wrong, and what.
pub fn errors(seed: u64, modes: &[crate::errors::Mode]) -> Result<Tally, String> {
    let mut rng = Rng::new(seed);
    let pair = Pair::with(&mut rng, 40, 80);
    let n = if pair.is_caught_up { rng.below(2) } else { 1 };
    let (hurt, damages) = hurt(&pair, n, &mut rng)?;
    let mut tally = Tally::default();
    crate::errors::each_call(modes, &mut tally, |fault, tally| {
        let machine = fork(&hurt);
        let faults = FaultDisk::new(disk_of(&machine));
        fault.map(|fault| faults.add(fault.rule()));
        let env = Env {
            disk: Arc::new(faults.clone()),
            ..machine.env()
        };
        if let Err(error) = run(&env) {
            crate::errors::clear(&error.into())?;
            tally.add("errors", 1);
        }
        let call_count = faults.call_count();
        heal(&pair, n, &machine, &damages, tally).map_err(|e| format!("{damages:?}: {e}"))?;
        Ok(call_count)
    })?;
    Ok(tally)
}
