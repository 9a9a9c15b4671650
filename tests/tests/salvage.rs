//! Random damage to a database, and what a salvage makes of it: every key has its last value, or the
//! report covers it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use strandline::salvage::{KeyPlace, LostWhat, SalvageReport, salvage};
use strandline::{Database, Durability, Error, Options};
use strandline_tests::plan::small_options;
use strandline_tests::run::Tally;
use strandline_tests::seed::{self, Rng};
use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{Access, Disk};

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
    fn new(rng: &mut Rng) -> Subject {
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
        let count = rng.within(200, 900);
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
        let db = Database::open_read_only_env("/new", machine);
        let dataset = db.dataset("").unwrap();
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

trait OpenReadOnlyEnv {
    fn open_read_only_env(path: &str, machine: &SimEnv) -> Database;
}

impl OpenReadOnlyEnv for Database {
    fn open_read_only_env(path: &str, machine: &SimEnv) -> Database {
        small_options()
            .open_read_only_with(path, machine.env())
            .unwrap()
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

#[test]
fn every_key_has_its_last_value_or_is_told_as_lost() {
    let base = seed::base(11);
    let mut tally = Tally::default();
    for n in 0..seed::count(60, 2_000) {
        let seed = base + n;
        let mut rng = Rng::new(seed);
        let subject = Subject::new(&mut rng);
        for round in 0..8 {
            let machine = SimEnv {
                disk: subject.machine.disk.fork(),
                ..subject.machine.clone()
            };
            let damages: Vec<String> = (0..round)
                .map(|_| subject.damage(&machine, &mut rng))
                .collect();
            let saved = salvage(Path::new("/db"), Path::new("/new"), &machine.env());
            let report =
                saved.unwrap_or_else(|e| panic!("STRANDLINE_SEED={seed}: {damages:?}: {e}"));
            assert!(round > 0 || report.is_whole(), "{report:?}");
            tally.add("salvages", 1);
            tally.add("losses told", report.datasets[0].lost.len() as u64);
            subject
                .judge(&machine, &report, &mut tally)
                .unwrap_or_else(|e| panic!("STRANDLINE_SEED={seed}: {damages:?}: {e}"));
        }
    }
    println!("salvage: base seed {base}, {}", tally.line());
    for what in [
        "keys kept",
        "keys lost and told",
        "keys of before, told as lost records",
    ] {
        assert!(tally.count(what) > 0, "no {what} in all of the run");
    }
}

#[test]
fn what_cannot_be_salvaged_is_named_and_nothing_is_overwritten() {
    let machine = SimEnv::new(1);
    let env = machine.env();
    let run = |from: &str, to: &str| salvage(Path::new(from), Path::new(to), &env).unwrap_err();
    assert!(matches!(run("/none", "/new"), Error::NotFound { .. }));
    let db = small_options().open_with("/db", machine.env()).unwrap();
    db.keyspace("map").unwrap().put("k", "v").unwrap();
    assert!(matches!(run("/db", "/new"), Error::Locked { .. }));
    db.close().unwrap();
    drop(db);
    assert!(matches!(run("/db", "/db"), Error::Argument { .. }));
    let report = salvage(Path::new("/db"), Path::new("/new"), &env).unwrap();
    assert!(
        report.is_whole() && report.datasets[0].key_count == 1,
        "{report:?}"
    );
}
