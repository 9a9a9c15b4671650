//! A coordinator in memory, shared by all nodes of one process, that fails as told: for simulations
//! and tests.
//!
//! It does what the real ones may do and nothing else. A change whose answer is lost was made, was
//! not, or is still under way: then it may land at any later call of anybody, also after the node that
//! asked has died. Only a [`Coordinator::read`] by the same handle that succeeds tells, for good. All
//! that is random comes from one seed; it waits for nothing unless [`Memory::waiting`] made it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{Coordinator, Record, Replaced, Version};
use crate::error::{Error, Result};

/// How often each fault happens, of 1,000 calls where it can.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Faults {
    /// A call fails and does nothing.
    pub unavailable: u32,
    /// A change fails and was made.
    pub lost_answer: u32,
    /// A change fails and is made later, or never.
    pub late: u32,
    /// Another one comes first and writes the same record again: a conflict.
    pub overtaken: u32,
    /// A watch returns although nothing changed. One that does not wait fails by `unavailable` alone.
    pub early_watch: u32,
}

impl Faults {
    /// Each of them at once.
    pub fn all(per_mille: u32) -> Faults {
        Faults {
            unavailable: per_mille,
            lost_answer: per_mille,
            late: per_mille,
            overtaken: per_mille,
            early_watch: per_mille,
        }
    }
}

/// The engine. Its clones are the same one.
#[derive(Clone)]
pub struct Memory {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    waits: bool,
}

#[derive(Default)]
struct Shared {
    // Invariant: the record of version n stands at n - 1, and no entry ever changes.
    histories: BTreeMap<String, Vec<Record>>,
    under_way: Vec<UnderWay>,
    faults: Faults,
    random: u64,
    handle_count: u64,
    change_count: u64,
}

/// A change that was sent, and that the engine has not seen yet.
struct UnderWay {
    handle: u64,
    dataset: String,
    expected: Version,
    record: Record,
}

/// What one node has of it. One that is dropped leaves under way what it sent.
pub struct MemoryCoordinator {
    memory: Memory,
    name: String,
    handle: u64,
    is_cut_off: bool,
}

impl Memory {
    /// One that fails never, and whose watches return at once.
    pub fn new() -> Memory {
        Memory::faulty(0, Faults::default())
    }

    /// One that fails as `faults` says, as decided by `seed`, and whose watches return at once.
    pub fn faulty(seed: u64, faults: Faults) -> Memory {
        let shared = Shared {
            faults,
            random: seed,
            ..Shared::default()
        };
        Memory {
            shared: Arc::new((Mutex::new(shared), Condvar::new())),
            waits: false,
        }
    }

    /// The same one, with watches that wait: for nodes that are threads.
    pub fn waiting(self) -> Memory {
        Memory {
            waits: true,
            ..self
        }
    }

    /// From now on it fails like this.
    pub fn set_faults(&self, faults: Faults) {
        self.shared.0.lock().faults = faults;
    }

    /// What a node uses. `name` is told in its errors.
    pub fn handle(&self, name: &str) -> MemoryCoordinator {
        let mut shared = self.shared.0.lock();
        shared.handle_count += 1;
        MemoryCoordinator {
            memory: self.clone(),
            name: name.to_owned(),
            handle: shared.handle_count,
            is_cut_off: false,
        }
    }

    /// Every record that a dataset had, in order: the first one was version 1.
    pub fn history(&self, dataset: &str) -> Vec<Record> {
        let shared = self.shared.0.lock();
        shared.histories.get(dataset).cloned().unwrap_or_default()
    }

    /// How many changes were tried, and how many of them are still under way.
    pub fn counts(&self) -> (u64, usize) {
        let shared = self.shared.0.lock();
        (shared.change_count, shared.under_way.len())
    }
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::new()
    }
}

impl Shared {
    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn happens(&mut self, per_mille: u32) -> bool {
        self.next() % 1_000 < u64::from(per_mille)
    }

    fn newest(&self, dataset: &str) -> Option<(Version, &Record)> {
        let history = self.histories.get(dataset)?;
        Some((Version(history.len() as u64), history.last()?))
    }

    fn version(&self, dataset: &str) -> Version {
        self.newest(dataset).map_or(Version(0), |newest| newest.0)
    }

    fn compare_and_set(&mut self, dataset: &str, expected: Version, record: Record) -> Replaced {
        let version = self.version(dataset);
        if version != expected {
            return Replaced::Conflict;
        }
        self.histories
            .entry(dataset.to_owned())
            .or_default()
            .push(record);
        Replaced::Done(Version(version.0 + 1))
    }

    /// What is under way lands now, or stays.
    fn land_some(&mut self) {
        let mut at = 0;
        while at < self.under_way.len() {
            if self.happens(250) {
                let it = self.under_way.remove(at);
                self.compare_and_set(&it.dataset, it.expected, it.record);
            } else {
                at += 1;
            }
        }
    }

    /// What one handle has under way for a dataset lands now, or never.
    fn settle(&mut self, handle: u64, dataset: &str) {
        let (own, others) = std::mem::take(&mut self.under_way)
            .into_iter()
            .partition(|it| it.handle == handle && it.dataset == dataset);
        self.under_way = others;
        let own: Vec<UnderWay> = own;
        for it in own {
            if self.happens(500) {
                self.compare_and_set(&it.dataset, it.expected, it.record);
            }
        }
    }
}

impl MemoryCoordinator {
    /// Whether every call fails from now on, as behind a partition.
    pub fn cut_off(&mut self, is_cut_off: bool) {
        self.is_cut_off = is_cut_off;
    }

    fn error(&self, what: &str) -> Error {
        Error::Coordinator {
            name: self.name.clone(),
            what: what.to_owned(),
        }
    }

    /// The engine as this call meets it.
    fn reach<'a>(&self, memory: &'a Memory) -> Result<MutexGuard<'a, Shared>> {
        let mut shared = memory.shared.0.lock();
        shared.land_some();
        let unavailable = shared.faults.unavailable;
        if self.is_cut_off || shared.happens(unavailable) {
            return Err(self.error("it is unavailable"));
        }
        Ok(shared)
    }
}

impl Coordinator for MemoryCoordinator {
    fn read(&mut self, dataset: &str) -> Result<Option<(Version, Record)>> {
        let mut shared = self.reach(&self.memory)?;
        shared.settle(self.handle, dataset);
        let newest = shared.newest(dataset);
        Ok(newest.map(|(version, record)| (version, record.clone())))
    }

    fn replace(&mut self, dataset: &str, expected: Version, record: &Record) -> Result<Replaced> {
        record.check()?;
        let mut shared = self.reach(&self.memory)?;
        shared.change_count += 1;
        let Faults {
            lost_answer,
            late,
            overtaken,
            ..
        } = shared.faults;
        if shared.happens(late) {
            let it = UnderWay {
                handle: self.handle,
                dataset: dataset.to_owned(),
                expected,
                record: record.clone(),
            };
            shared.under_way.push(it);
            return Err(self.error("the answer is late"));
        }
        if shared.happens(overtaken)
            && let Some((version, same)) = shared.newest(dataset)
        {
            let same = same.clone();
            shared.compare_and_set(dataset, version, same);
        }
        let replaced = shared.compare_and_set(dataset, expected, record.clone());
        self.memory.shared.1.notify_all();
        if shared.happens(lost_answer) {
            return Err(self.error("the answer is lost"));
        }
        Ok(replaced)
    }

    fn watch(&mut self, dataset: &str, seen: Version, wait_ms: u64) -> Result<()> {
        let mut shared = self.reach(&self.memory)?;
        let early = shared.faults.early_watch;
        let is_newer = shared.version(dataset) > seen;
        if self.memory.waits && !is_newer && !shared.happens(early) {
            let wait = Duration::from_millis(wait_ms);
            self.memory.shared.1.wait_for(&mut shared, wait);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Incarnation, Lineage, NodeId};
    use strandline_wal::Epoch;

    fn record(epoch: u32, node: u8) -> Record {
        let leader = (NodeId([node; 16]), Incarnation([node; 16]));
        Record {
            lineage: Lineage([9; 16]),
            epoch: Epoch(epoch),
            leader,
            members: vec![leader],
            min_in_sync: 0,
        }
    }

    #[test]
    fn one_of_two_changes_of_a_version_is_made() {
        let memory = Memory::new();
        let (mut a, mut b) = (memory.handle("a"), memory.handle("b"));
        assert_eq!(a.read("d").unwrap(), None);
        let done = Replaced::Done(Version(1));
        assert_eq!(a.replace("d", Version(0), &record(1, 1)).unwrap(), done);
        let conflict = b.replace("d", Version(0), &record(1, 2)).unwrap();
        assert_eq!(conflict, Replaced::Conflict);
        let newest = b.read("d").unwrap();
        assert_eq!(newest, Some((Version(1), record(1, 1))));
        assert_eq!(b.read("other").unwrap(), None, "datasets are apart");
        let mut nobody = record(1, 1);
        nobody.members.clear();
        assert!(a.replace("d", Version(1), &nobody).is_err());
    }

    #[test]
    fn a_watch_that_waits_returns_with_the_change() {
        let memory = Memory::new().waiting();
        let mut a = memory.handle("a");
        let mut b = memory.handle("b");
        let waiting = std::thread::spawn(move || {
            while b.read("d").unwrap().is_none() {
                b.watch("d", Version(0), 60_000).unwrap();
            }
        });
        a.replace("d", Version(0), &record(1, 1)).unwrap();
        waiting.join().unwrap();
    }

    /// Three handles, one of which dies now and then, change one record as often as they can.
    #[test]
    fn what_is_told_is_true_whatever_fails() {
        let (mut lost, mut late) = (0, 0);
        for seed in 0..500 {
            let memory = Memory::faulty(seed, Faults::all(150));
            let mut handles = [memory.handle("a"), memory.handle("b"), memory.handle("c")];
            let (mut done, mut never, mut told) = (Vec::new(), Vec::new(), Vec::new());
            let mut unknown: [Option<Record>; 3] = Default::default();
            for epoch in 1..60 {
                let n = (memory.shared.0.lock().next() % 3) as usize;
                if epoch % 20 == 0 {
                    handles[n] = memory.handle("again");
                    unknown[n] = None;
                }
                let Ok(newest) = handles[n].read("d") else {
                    continue;
                };
                if let Some(asked) = unknown[n].take() {
                    // What is not there now never comes: later records have other epochs.
                    let landed = memory.history("d").contains(&asked);
                    told.push((asked, landed));
                }
                let version = newest.map_or(Version(0), |newest| newest.0);
                let record = record(epoch, n as u8 + 1);
                match handles[n].replace("d", version, &record) {
                    Ok(Replaced::Done(version)) => done.push((version, record)),
                    Ok(Replaced::Conflict) => never.push(record),
                    Err(_) => unknown[n] = Some(record),
                }
            }
            let history = memory.history("d");
            for (version, record) in &done {
                assert_eq!(&history[version.0 as usize - 1], record, "seed {seed}");
            }
            for record in &never {
                assert!(!history.contains(record), "seed {seed}: {record:?}");
            }
            for (record, landed) in &told {
                assert_eq!(history.contains(record), *landed, "seed {seed}");
                lost += u32::from(*landed);
                late += u32::from(!*landed);
            }
        }
        assert!(lost > 100 && late > 100, "both happen: {lost} {late}");
    }

    #[test]
    fn a_seed_repeats_itself_and_who_is_cut_off_reaches_nothing() {
        let run = |seed| {
            let memory = Memory::faulty(seed, Faults::all(300));
            let mut a = memory.handle("a");
            let one = |epoch| {
                let version = memory.shared.0.lock().version("d");
                a.replace("d", version, &record(epoch, 1)).is_ok()
            };
            (1..50).map(one).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        let memory = Memory::new();
        let mut a = memory.handle("a");
        a.cut_off(true);
        assert!(a.read("d").is_err() && a.watch("d", Version(0), 1).is_err());
        a.cut_off(false);
        assert!(a.read("d").is_ok());
    }
}
