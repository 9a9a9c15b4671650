//! What a killed process had promised: the lines that its writers sent before and after each commit.
//!
//! Each thread of the writing process owns its keys. It sends what it is about to write, commits, and
//! sends that it was acknowledged; the lines reach this process over a pipe, so that they outlive the
//! writer. Afterwards each thread's part of the database must be a prefix of its intents that holds
//! every acknowledged one, and every batch must be whole.

use std::collections::BTreeMap;
use std::fmt::Write;

use strandline::{Database, Durability};

use crate::model::Bytes;
use crate::run::bytes;
use crate::seed::Rng;

/// Threads of a writer.
pub const THREAD_COUNT: u64 = 4;
/// Keys of each thread.
const KEY_COUNT: usize = 60;

/// What one thread writes: it follows from the thread, the life it began in, and a count.
#[derive(Clone, Debug)]
pub struct Intent {
    /// Keys and values; `None` removes.
    pub changes: Vec<(Vec<u8>, Option<Bytes>)>,
    /// At what level.
    pub level: Durability,
}

/// The write `number` of a thread. Numbers go on over lives.
pub fn intent(seed: u64, thread: u64, number: u64) -> Intent {
    let mut rng = Rng::new(seed ^ (thread << 56) ^ number);
    let count = match rng.below(4) {
        0 => rng.within(2, 8),
        _ => 1,
    };
    let change = |n: usize, rng: &mut Rng| {
        let key = format!("t{thread}-{:03}", rng.below(KEY_COUNT)).into_bytes();
        let len = match rng.below(40) {
            0 => rng.within(16 << 10, 64 << 10),
            1..8 => rng.within(1_000, 8_000),
            _ => rng.within(8, 500),
        };
        let unique = thread << 48 | number << 8 | n as u64;
        (key, (!rng.percent(15)).then(|| bytes(unique, len)))
    };
    let mut changes: Vec<_> = (0..count).map(|n| change(n, &mut rng)).collect();
    // Every write leaves its number: so any prefix can be told from any other.
    let last = format!("t{thread}-last").into_bytes();
    changes.push((last, Some(number.to_be_bytes().to_vec().into())));
    let level = *rng.pick(&[Durability::Disk, Durability::Os, Durability::Os]);
    Intent { changes, level }
}

/// What is known of one thread's writes.
#[derive(Clone, Debug, Default)]
struct Thread {
    /// The state of all writes up to `settled`.
    state: BTreeMap<Vec<u8>, Bytes>,
    settled: u64,
    /// The last write that was begun, and the last that was acknowledged.
    begun: u64,
    acked: u64,
}

/// Judges one database over many lives.
#[derive(Clone, Debug)]
pub struct Oracle {
    seed: u64,
    threads: Vec<Thread>,
    /// Writes that were acknowledged.
    pub acked_count: u64,
    /// Writes that were begun and not acknowledged when the process died.
    pub open_count: u64,
    /// Of those, how many were there afterwards.
    pub found_count: u64,
}

impl Oracle {
    /// Of an empty database.
    pub fn new(seed: u64) -> Oracle {
        Oracle {
            seed,
            threads: vec![Thread::default(); THREAD_COUNT as usize],
            acked_count: 0,
            open_count: 0,
            found_count: 0,
        }
    }

    /// Takes a line: `i thread number` before a write, `a thread number` after it.
    ///
    /// # Errors
    /// For any other line.
    pub fn hear(&mut self, line: &str) -> Result<(), String> {
        let wrong = || format!("a line of the writer: {line:?}");
        let mut words = line.split(' ');
        let (verb, thread, number) = (words.next(), words.next(), words.next());
        let number: u64 = number.and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
        let thread = thread.and_then(|t| t.parse().ok());
        let thread: &mut Thread = thread
            .and_then(|t: usize| self.threads.get_mut(t))
            .ok_or_else(wrong)?;
        match verb {
            Some("i") => thread.begun = number,
            Some("a") if number == thread.begun => {
                thread.acked = number;
                self.acked_count += 1;
            }
            _ => return Err(wrong()),
        }
        Ok(())
    }

    /// Where each thread goes on.
    pub fn next_numbers(&self) -> String {
        let mut text = String::new();
        for thread in &self.threads {
            write!(text, "{} ", thread.settled + 1).expect("writing to a string does not fail");
        }
        text
    }

    /// What a copy must hold that was begun when `earlier` was all that was known, and may hold what
    /// is known now.
    #[must_use]
    pub fn as_of(&self, earlier: &Oracle) -> Oracle {
        let mut copy = self.clone();
        for (thread, then) in copy.threads.iter_mut().zip(&earlier.threads) {
            thread.acked = then.acked;
        }
        copy
    }

    /// Reads a database after the death of its writer and judges it.
    ///
    /// # Errors
    /// What is lost, torn, or out of nowhere.
    pub fn judge(&mut self, db: &Database) -> Result<(), String> {
        let map = db.keyspace("map").map_err(|e| e.to_string())?;
        for n in 0..THREAD_COUNT {
            let mut found = BTreeMap::new();
            for entry in map.prefix(format!("t{n}-")) {
                let (key, value) = entry.map_err(|e| e.to_string())?;
                found.insert(key, Bytes::from(&value[..]));
            }
            self.judge_thread(n, found)
                .map_err(|error| format!("thread {n}: {error}"))?;
        }
        Ok(())
    }

    fn judge_thread(&mut self, n: u64, found: BTreeMap<Vec<u8>, Bytes>) -> Result<(), String> {
        let thread = &mut self.threads[n as usize];
        let last = found.get(format!("t{n}-last").as_bytes());
        let reached = last.map_or(Ok(0), |bytes| {
            let bytes = bytes[..].try_into().map_err(|_| "a torn number")?;
            Ok::<u64, String>(u64::from_be_bytes(bytes))
        })?;
        if reached < thread.acked {
            return Err(format!(
                "acknowledged writes are lost: it ends at {reached}, {} was acknowledged",
                thread.acked
            ));
        }
        if reached > thread.begun {
            return Err(format!(
                "it ends at {reached}, only {} was begun",
                thread.begun
            ));
        }
        for number in thread.settled + 1..=reached {
            for (key, value) in intent(self.seed, n, number).changes {
                match value {
                    Some(value) => thread.state.insert(key, value),
                    None => thread.state.remove(&key),
                };
            }
        }
        if thread.state != found {
            let differs = |key: &&Vec<u8>| thread.state.get(*key) != found.get(*key);
            let keys = thread.state.keys().chain(found.keys()).find(differs);
            let key = keys.map(|key| String::from_utf8_lossy(key).into_owned());
            return Err(format!(
                "a torn batch or a wrong value up to {reached}: key {key:?}"
            ));
        }
        self.open_count += thread.begun - thread.acked;
        self.found_count += reached - thread.acked;
        (thread.settled, thread.begun, thread.acked) = (reached, reached, reached);
        Ok(())
    }
}
