//! Histories of several threads over one database, and of what they find after a loss of power.
//!
//! | Judged | calls |
//! |--------|-------|
//! | while it lives | every write, batch, delete, get and snapshot, at whatever level |
//! | after a loss of power | every write, and what the next two opens show of all keys |
//!
//! A write that failed is unknown in both; one that was only promised to survive the process is
//! unknown in the second. Reads before the loss are not in the second: a reader may see a write that
//! is not durable yet, and nothing promises that it stays.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use strandline::{Database, Dataset, Durability, Keyspace, Options, ShardRouter};
use strandline_wal::io::sim::{Damage, SimEnv};

use super::{Call, Content, check};
use crate::plan::small_options;
use crate::run::{ROOT, Tally};
use crate::seed::Rng;

/// A call, and whether the loss of power leaves what it wrote.
struct Recorded {
    call: Call,
    is_durable: bool,
}

/// What all threads of a history share.
struct Scene<'a> {
    dataset: Dataset,
    map: Keyspace,
    key_count: usize,
    /// Counts up with every begin and every end of a call: the time of the history.
    clock: AtomicU64,
    next_value: AtomicU64,
    start: Barrier,
    machine: &'a SimEnv,
}

/// Runs and judges the history of a seed.
///
/// # Errors
/// What no order of the calls explains, or what else went wrong.
pub fn history(seed: u64) -> Result<Tally, String> {
    let mut rng = Rng::new(seed);
    let machine = SimEnv::new(seed);
    let options = Options {
        router: ShardRouter::hash(rng.within(1, 3) as u16).expect("1 to 3 shards"),
        ..small_options()
    };
    let key_count = rng.within(1, 4);
    let thread_count = rng.within(2, 4);
    let call_count = rng.within(6, 14);
    let db = open(&options, &machine)?;
    let map = db.keyspace("map").map_err(|e| e.to_string())?;
    let scene = Scene {
        dataset: db.dataset("").map_err(|e| e.to_string())?,
        map,
        key_count,
        clock: AtomicU64::new(1),
        next_value: AtomicU64::new(1),
        start: Barrier::new(thread_count),
        machine: &machine,
    };
    let loses_power = rng.percent(30);
    if loses_power && rng.percent(70) {
        let at = machine.disk.io_count() + rng.below(call_count * thread_count * 2) as u64;
        machine.disk.crash_at(at);
    }
    let recorded = run(&scene, thread_count, call_count, seed)?;
    let mut tally = count(&recorded);
    let calls: Vec<Call> = recorded.iter().map(|r| r.call.clone()).collect();
    let states = check(&calls).map_err(|violation| violation.to_string())?;
    tally.add("states", states as u64);
    let now = scene.clock.load(Ordering::SeqCst);
    drop(scene);
    if loses_power {
        tally.add("losses of power", 1);
        let damage = *rng.pick(&Damage::ALL);
        let after = machine.crash(rng.next_u64(), damage);
        // Nothing of the old life may reach the disk that it shares with no one.
        machine.disk.crash_at(0);
        drop(db);
        judge_after(&options, &after, &recorded, now, key_count)
            .map_err(|error| format!("after a loss of power with {damage:?}: {error}"))?;
    }
    Ok(tally)
}

fn open(options: &Options, machine: &SimEnv) -> Result<Database, String> {
    let opened = options.clone().open_with(ROOT, machine.env());
    opened.map_err(|error| format!("it does not open: {error}"))
}

fn run(
    scene: &Scene<'_>,
    thread_count: usize,
    call_count: usize,
    seed: u64,
) -> Result<Vec<Recorded>, String> {
    std::thread::scope(|scope| {
        let client = |n| {
            let mut rng = Rng::new(seed ^ (1 + n as u64) << 48);
            scope.spawn(move || {
                scene.start.wait();
                let mut recorded = Vec::new();
                for _ in 0..call_count {
                    recorded.extend(scene.call(n, &mut rng)?);
                    if rng.percent(30) {
                        std::thread::yield_now();
                    }
                }
                Ok(recorded)
            })
        };
        let clients: Vec<_> = (0..thread_count).map(client).collect();
        let mut all = Vec::new();
        for client in clients {
            let recorded: Result<Vec<Recorded>, String> =
                client.join().map_err(|_| "a client panicked".to_owned())?;
            all.extend(recorded?);
        }
        Ok(all)
    })
}

impl Scene<'_> {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// One random call; nothing is recorded of work that clients do not see.
    fn call(&self, client: usize, rng: &mut Rng) -> Result<Option<Recorded>, String> {
        let key = rng.below(self.key_count);
        let level = match rng.percent(80) {
            true => Durability::Disk,
            false => Durability::Os,
        };
        match rng.below(100) {
            0..=29 => self.get(client, key),
            30..=44 => self.snapshot(client),
            45..=69 => self.write(client, &[key], rng, level),
            70..=89 => {
                let mut keys: Vec<usize> = (0..self.key_count).collect();
                keys.remove(rng.below(self.key_count));
                let keys = if keys.is_empty() { vec![key] } else { keys };
                self.write(client, &keys, rng, level)
            }
            90..=95 => self.work(|| self.dataset.flush()),
            96..=97 => self.work(|| self.dataset.compact()),
            _ => self.work(|| self.dataset.database().run_background(2).map(|_| ())),
        }
    }

    fn get(&self, client: usize, key: usize) -> Result<Option<Recorded>, String> {
        let began = self.tick();
        let found = self.map.get(name(key));
        let ended = self.tick();
        match found {
            Ok(value) => {
                let content = content(value.as_deref())?;
                let call = Call::read(client, (began, ended), key, content);
                Ok(Some(Recorded {
                    call,
                    is_durable: false,
                }))
            }
            Err(error) => self.only_when_dead(&error).map(|()| None),
        }
    }

    /// All keys at one moment.
    fn snapshot(&self, client: usize) -> Result<Option<Recorded>, String> {
        let began = self.tick();
        let snapshot = self.dataset.snapshot();
        let ended = self.tick();
        let mut reads = Vec::new();
        for key in 0..self.key_count {
            match snapshot.get(&self.map, name(key)) {
                Ok(value) => reads.push((key, content(value.as_deref())?)),
                Err(error) => return self.only_when_dead(&error).map(|()| None),
            }
        }
        let call = Call {
            reads,
            ..Call::read(client, (began, ended), 0, None)
        };
        Ok(Some(Recorded {
            call,
            is_durable: false,
        }))
    }

    fn write(
        &self,
        client: usize,
        keys: &[usize],
        rng: &mut Rng,
        level: Durability,
    ) -> Result<Option<Recorded>, String> {
        let mut batch = self.dataset.batch();
        let mut writes = Vec::new();
        for key in keys {
            let value = self.next_value.fetch_add(1, Ordering::SeqCst);
            let to = (!rng.percent(25)).then_some(value);
            let put = match to {
                Some(value) => batch.put(&self.map, name(*key), bytes(value)).map(|_| ()),
                None => batch.delete(&self.map, name(*key)).map(|_| ()),
            };
            put.map_err(|error| error.to_string())?;
            writes.push((*key, to));
        }
        let began = self.tick();
        let written = batch.commit_with(level);
        let ended = self.tick();
        if let Err(error) = &written {
            self.only_when_dead(error)?;
        }
        let call = Call {
            writes,
            ..Call::write(client, began, written.is_ok().then_some(ended), 0, None)
        };
        Ok(Some(Recorded {
            call,
            is_durable: written.is_ok() && level == Durability::Disk,
        }))
    }

    fn work(
        &self,
        work: impl FnOnce() -> strandline::Result<()>,
    ) -> Result<Option<Recorded>, String> {
        match work() {
            Ok(()) => Ok(None),
            Err(error) => self.only_when_dead(&error).map(|()| None),
        }
    }

    /// No call fails on a machine that lives.
    fn only_when_dead(&self, error: &strandline::Error) -> Result<(), String> {
        match self.machine.disk.is_dead() {
            true => Ok(()),
            false => Err(format!("a call failed: {error}")),
        }
    }
}

fn name(key: usize) -> Vec<u8> {
    format!("key{key}").into_bytes()
}

/// The bytes of a value: some in the log, some large enough to stay there.
fn bytes(value: u64) -> Vec<u8> {
    let len = [0, 40, 300, 2_000][(value % 4) as usize];
    [&value.to_be_bytes()[..], &vec![value as u8; len]].concat()
}

fn content(found: Option<&[u8]>) -> Result<Content, String> {
    let Some(found) = found else {
        return Ok(None);
    };
    let number = found.first_chunk().map(|head| u64::from_be_bytes(*head));
    let value = number.ok_or("a value of nobody")?;
    match *found == *bytes(value) {
        true => Ok(Some(value)),
        false => Err(format!("value {value} has other bytes")),
    }
}

fn judge_after(
    options: &Options,
    machine: &SimEnv,
    recorded: &[Recorded],
    now: u64,
    key_count: usize,
) -> Result<(), String> {
    let written = recorded.iter().filter(|r| !r.call.writes.is_empty());
    let mut calls: Vec<Call> = written
        .map(|r| Call {
            ended: r.call.ended.filter(|_| r.is_durable),
            reads: Vec::new(),
            ..r.call.clone()
        })
        .collect();
    for open_count in 0..2 {
        let db = open(options, machine)?;
        let map = db.keyspace("map").map_err(|e| e.to_string())?;
        let mut reads = Vec::new();
        for key in 0..key_count {
            let found = map.get(name(key)).map_err(|e| e.to_string())?;
            reads.push((key, content(found.as_deref())?));
        }
        let at = now + open_count;
        calls.push(Call {
            reads,
            ..Call::read(usize::MAX, (at, at), 0, None)
        });
        db.close().map_err(|e| e.to_string())?;
    }
    check(&calls).map_err(|violation| violation.to_string())?;
    Ok(())
}

fn count(recorded: &[Recorded]) -> Tally {
    let mut tally = Tally::default();
    tally.add("histories", 1);
    for (n, r) in recorded.iter().enumerate() {
        let call = &r.call;
        let what = match (call.reads.len(), call.writes.len()) {
            (1, 0) => "gets",
            (_, 0) => "snapshots",
            (_, 1) => "single writes",
            _ => "batches",
        };
        tally.add(what, 1);
        tally.add("unknown writes", u64::from(call.ended.is_none()));
        let ended = call.ended.unwrap_or(u64::MAX);
        let overlaps = |other: &&Recorded| {
            other.call.client != call.client
                && other.call.began < ended
                && call.began < other.call.ended.unwrap_or(u64::MAX)
        };
        tally.add(
            "overlaps",
            recorded[n + 1..].iter().filter(overlaps).count() as u64,
        );
    }
    tally
}
