//! Random damage to a database, and what a salvage makes of it: every key has its last value, or the
//! report covers it. With deaths at every call, too: the source stays as it is.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline::salvage::{KeyPlace, LostWhat, SalvageReport, salvage};
use strandline::{Durability, Options};
use strandline_wal::io::fault::FaultDisk;
use strandline_wal::io::sim::{Damage, SimEnv};
use strandline_wal::io::{Access, Disk, Env};

use crate::plan::small_options;
use crate::run::{Tally, disk_of, unchanged};
use crate::seed::Rng;

const OLD: &str = "/db";
const NEW: &str = "/new";
const KEYSPACES: [&str; 2] = ["left", "right"];

/// A value and the record that wrote it; the record 0 stands for the time before all.
type History = Vec<(u64, Option<Vec<u8>>)>;

/// A closed database and everything that its keys ever were.
struct Subject {
    machine: SimEnv,
    history: BTreeMap<(usize, Vec<u8>), History>,
    files: Vec<PathBuf>,
}

impl Subject {
    fn new(rng: &mut Rng, count: usize) -> Subject {
        let machine = SimEnv::new(rng.next_u64());
        let options = Options {
            large_value_len_min: 512,
            run_count_max: 3,
            ..small_options()
        };
        let db = options.open_with("/db", machine.env()).unwrap();
        let dataset = db.dataset("").unwrap();
        let maps = KEYSPACES.map(|name| dataset.keyspace(name).unwrap());
        let mut history: BTreeMap<(usize, Vec<u8>), History> = BTreeMap::new();
        for n in 0..count {
            let keyspace = rng.below(2);
            let key = format!("key-{:03}", rng.below(150)).into_bytes();
            let value = (!rng.percent(15)).then(|| {
                let len = if rng.percent(10) {
                    rng.below(5_000)
                } else {
                    rng.below(200)
                };
                let mut value = (n as u64).to_le_bytes().to_vec();
                value.resize(8 + len, n as u8);
                value
            });
            match &value {
                Some(value) => maps[keyspace]
                    .put_with(&key, value, Durability::Os)
                    .unwrap(),
                None => maps[keyspace].delete_with(&key, Durability::Os).unwrap(),
            }
            let seq = dataset.positions()[0].seq;
            history
                .entry((keyspace, key))
                .or_default()
                .push((seq, value));
            match rng.below(120) {
                0 => dataset.flush().unwrap(),
                1 => dataset.compact().unwrap(),
                _ => {}
            }
        }
        drop(maps);
        drop(dataset);
        db.close().unwrap();
        drop(db);
        machine.disk.settle();
        let is_data = |path: &PathBuf| path.starts_with("/db/primary");
        let files = machine.disk.files().into_keys().filter(is_data).collect();
        Subject {
            machine,
            history,
            files,
        }
    }

    /// Damages one place of one file.
    fn damage(&self, machine: &SimEnv, rng: &mut Rng) -> String {
        let path = rng.pick(&self.files).clone();
        let disk = &machine.disk;
        let Ok(stat) = disk.stat(&path) else {
            return "it is gone".to_owned();
        };
        let len = stat.len;
        let at = rng.next_u64() % len.max(1);
        let what = match rng.below(10) {
            0 => {
                disk.remove(&path).unwrap();
                "removed".to_owned()
            }
            1 => {
                disk.open(&path, Access::Write)
                    .unwrap()
                    .set_len(at)
                    .unwrap();
                format!("cut to {at}")
            }
            2 => {
                let start = at / 512 * 512;
                let zeros = vec![0; 512.min((len - start) as usize)];
                disk.open(&path, Access::Write)
                    .unwrap()
                    .write_at(&zeros, start)
                    .unwrap();
                format!("sector {start} zeroed")
            }
            _ if len == 0 => "empty".to_owned(),
            _ => {
                disk.rot(&path, at, 1 << rng.below(8)).unwrap();
                format!("flip at {at}")
            }
        };
        disk.settle();
        format!("{}: {what}", path.display())
    }

    /// Holds every key of the new database against the history and the report.
    fn judge(
        &self,
        machine: &SimEnv,
        report: &SalvageReport,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let dataset = small_options()
            .open_read_only_with(NEW, machine.env())
            .and_then(|db| db.dataset(""))
            .map_err(|e| format!("what was saved does not open: {e}"))?;
        let lost = &report.datasets[0].lost;
        let is_end_unsure = report.datasets[0]
            .notes
            .iter()
            .any(|note| note.contains("is not known"));
        for (n, keyspace_name) in KEYSPACES.iter().enumerate() {
            // Where both slots of the manifest are gone, its name may be lost.
            let unnamed = format!("keyspace-{}", n + 1);
            let keyspace = dataset.keyspace(keyspace_name);
            let keyspace = keyspace.or_else(|_| dataset.keyspace(&unnamed)).ok();
            for ((_, key), history) in self.history.iter().filter(|((of, _), _)| *of == n) {
                let found = keyspace.as_ref().and_then(|k| k.get(key).unwrap());
                let found = found.map(|value| value.to_vec());
                let last = history.last().unwrap().1.clone();
                if found == last {
                    tally.add("keys kept", 1);
                    continue;
                }
                let place = KeyPlace {
                    keyspace: (*keyspace_name).to_owned(),
                    key: key.clone(),
                };
                let by_records = lost.iter().any(|lost| match &lost.what {
                    LostWhat::Records {
                        first_seq,
                        last_seq,
                        ..
                    } => history
                        .iter()
                        .any(|(seq, _)| first_seq <= seq && seq <= last_seq),
                    LostWhat::Keys { .. } => false,
                });
                let by_keys = lost.iter().any(|lost| covers(&lost.what, &place));
                let was_once = found.is_none() || history.iter().any(|(_, value)| *value == found);
                if is_end_unsure && !by_records && was_once {
                    tally.add("keys of before, the end of the log was unsure", 1);
                } else if by_records && was_once {
                    tally.add("keys of before, told as lost records", 1);
                } else if by_keys && found.is_none() {
                    tally.add("keys lost and told", 1);
                } else {
                    let key = String::from_utf8_lossy(key);
                    let (found, last) = (found.map(|v| v.len()), last.map(|v| v.len()));
                    return Err(format!(
                        "{keyspace_name} {key}: {found:?} instead of {last:?}, told: {lost:#?}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether a range of keys holds a key. Keyspaces stand in the order of their creation.
fn covers(what: &LostWhat, place: &KeyPlace) -> bool {
    let LostWhat::Keys { from, to } = what else {
        return false;
    };
    // A range may begin before the first keyspace, which has no name then.
    let number = |name: &str| {
        let of = |n: usize| name == KEYSPACES[n] || name == format!("keyspace-{}", n + 1);
        (0..KEYSPACES.len()).find(|n| of(*n)).map_or(0, |n| n + 1)
    };
    let order = |place: &KeyPlace| (number(&place.keyspace), place.key.clone());
    let order_up = |place: &KeyPlace| match number(&place.keyspace) {
        // Or end behind the last.
        0 => (usize::MAX, Vec::new()),
        _ => order(place),
    };
    let own = order(place);
    let starts = match from {
        Bound::Unbounded => true,
        Bound::Included(from) => order(from) <= own,
        Bound::Excluded(from) => order(from) < own,
    };
    starts
        && match to {
            Bound::Unbounded => true,
            Bound::Included(to) => own <= order_up(to),
            Bound::Excluded(to) => own < order_up(to),
        }
}

fn fork(machine: &SimEnv) -> SimEnv {
    SimEnv {
        disk: machine.disk.fork(),
        ..machine.clone()
    }
}

fn save(env: &Env) -> strandline::Result<SalvageReport> {
    salvage(Path::new(OLD), Path::new(NEW), env)
}

/// A database, damaged in more and more places, and salvaged each time.
///
/// # Errors
/// What is wrong.
pub fn round(seed: u64) -> Result<Tally, String> {
    let mut tally = Tally::default();
    let mut rng = Rng::new(seed);
    let count = rng.within(200, 900);
    let subject = Subject::new(&mut rng, count);
    for round in 0..8 {
        let machine = fork(&subject.machine);
        let damages: Vec<String> = (0..round)
            .map(|_| subject.damage(&machine, &mut rng))
            .collect();
        let report = save(&machine.env()).map_err(|e| format!("{damages:?}: {e}"))?;
        if round == 0 && !report.is_whole() {
            return Err(format!("nothing was damaged: {report:?}"));
        }
        tally.add("salvages", 1);
        tally.add("losses told", report.datasets[0].lost.len() as u64);
        subject
            .judge(&machine, &report, &mut tally)
            .map_err(|e| format!("{damages:?}: {e}"))?;
    }
    Ok(tally)
}

/// A small database, damaged in up to two places.
fn hurt(seed: u64) -> (Subject, SimEnv, Vec<String>) {
    let mut rng = Rng::new(seed);
    let count = rng.within(40, 120);
    let subject = Subject::new(&mut rng, count);
    let machine = fork(&subject.machine);
    let damages = (0..rng.below(3))
        .map(|_| subject.damage(&machine, &mut rng))
        .collect();
    (subject, machine, damages)
}

/// Dies at every call of a salvage, with every damage. The source is untouched, and once what is left
/// of the target is removed a second salvage saves what the first one would have.
///
/// # Errors
/// The first call and damage at which something is wrong, and what.
pub fn sweep(seed: u64) -> Result<Tally, String> {
    let (subject, machine, damages) = hurt(seed);
    let source = machine.disk.files();
    let whole = fork(&machine);
    let before = whole.disk.io_count();
    save(&whole.env()).map_err(|e| format!("{damages:?}: {e}"))?;
    let call_count = whole.disk.io_count() - before;
    let mut tally = Tally::default();
    tally.add("calls", call_count);
    for at in 0..call_count {
        let dying = fork(&machine);
        dying.disk.crash_at(dying.disk.io_count() + at);
        match save(&dying.env()) {
            Err(_) if dying.disk.is_dead() => {}
            done => {
                return Err(format!(
                    "call {at} of {call_count} is not reached: {done:?}"
                ));
            }
        }
        for (k, damage) in Damage::ALL.into_iter().map(Some).chain([None]).enumerate() {
            let after = match damage {
                Some(damage) => dying.crash(seed ^ (at << 16) ^ k as u64, damage),
                None => fork(&dying),
            };
            subject
                .again(&source, &after, &mut tally)
                .map_err(|error| {
                    format!("{damages:?}: death at call {at} of {call_count}, {damage:?}: {error}")
                })?;
            tally.add("recoveries", 1);
        }
    }
    Ok(tally)
}

/// Fails every call of a salvage in every one of some ways.
///
/// # Errors
/// The first call and way at which something is wrong, and what.
pub fn errors(seed: u64, modes: &[crate::errors::Mode]) -> Result<Tally, String> {
    let (subject, machine, damages) = hurt(seed);
    let source = machine.disk.files();
    let mut tally = Tally::default();
    crate::errors::each_call(modes, &mut tally, |fault, tally| {
        let machine = fork(&machine);
        let faults = FaultDisk::new(disk_of(&machine));
        fault.map(|fault| faults.add(fault.rule()));
        let env = Env {
            disk: Arc::new(faults.clone()),
            ..machine.env()
        };
        match save(&env) {
            Ok(report) => subject
                .judge(&machine, &report, tally)
                .map_err(|e| format!("{damages:?}: {e}"))?,
            Err(_) => tally.add("errors", 1),
        }
        let again = subject.again(&source, &machine, tally);
        again.map_err(|e| format!("{damages:?}: {e}"))?;
        Ok(faults.call_count())
    })?;
    Ok(tally)
}

impl Subject {
    /// After a salvage that was not finished: what is there, and what another one makes of it.
    fn again(
        &self,
        source: &BTreeMap<PathBuf, Vec<u8>>,
        machine: &SimEnv,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let disk = &machine.disk;
        disk.remove_dir_all(Path::new(NEW))
            .map_err(|e| format!("remove: {e}"))?;
        unchanged(source, disk).map_err(|e| format!("the source: {e}"))?;
        let report = save(&machine.env()).map_err(|e| format!("again: {e}"))?;
        self.judge(machine, &report, tally)
    }
}
