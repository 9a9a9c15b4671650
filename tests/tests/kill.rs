//! Processes that are killed while four threads write, on the real disk: nothing that they
//! acknowledged is lost, and no batch is torn.
//!
//! The writer is this test binary, started again with variables that tell it what to be. It tells of
//! each write before and after over a pipe that outlives it. `ROUNDS` says how often it is killed: 20
//! times in the ordinary suite, 300 times where `STRANDLINE_LONG=1`.

#![allow(clippy::unwrap_used, reason = "a failure here is a failing test")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use strandline::{Background, Options, ShardRouter};
use strandline_tests::oracle::{Oracle, THREAD_COUNT, intent};
use strandline_tests::seed::{self, Rng};

const ROLE: &str = "STRANDLINE_KILL_DIR";
const SEED: &str = "STRANDLINE_KILL_SEED";
const NEXT: &str = "STRANDLINE_KILL_NEXT";

fn options() -> Options {
    Options {
        router: ShardRouter::hash(3).unwrap(),
        memtable_len_max: 256 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 512 << 10,
        table_len_max: 256 << 10,
        large_value_len_min: 2 << 10,
        run_count_max: 2,
        background: Background::Thread,
        ..Options::default()
    }
}

/// Not a test of its own: the process that is killed. Without its variables it does nothing.
#[test]
fn writer() {
    let Ok(dir) = std::env::var(ROLE) else { return };
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let next = std::env::var(NEXT).unwrap();
    let next: Vec<u64> = next
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    let db = options().open(dir).unwrap();
    let map = db.keyspace("map").unwrap();
    let dataset = db.dataset("").unwrap();
    // One write call for each line: a line is told whole or not at all.
    let tell = Mutex::new(std::io::stderr());
    let line = |verb: char, thread: u64, number: u64| {
        let text = format!("{verb} {thread} {number}\n");
        tell.lock().unwrap().write_all(text.as_bytes()).unwrap();
    };
    std::thread::scope(|scope| {
        for thread in 0..THREAD_COUNT {
            let (dataset, map, line, first) = (&dataset, &map, &line, next[thread as usize]);
            scope.spawn(move || {
                for number in first.. {
                    let intent = intent(seed, thread, number);
                    let mut batch = dataset.batch();
                    for (key, value) in &intent.changes {
                        match value {
                            Some(value) => batch.put(map, key, value).unwrap(),
                            None => batch.delete(map, key).unwrap(),
                        };
                    }
                    line('i', thread, number);
                    batch.commit_with(intent.level).unwrap();
                    line('a', thread, number);
                }
            });
        }
    });
}

/// One life: starts the writer, hears it for a while, kills it, hears the rest.
fn life(dir: &Path, oracle: &mut Oracle, seed: u64, line_count: usize) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
        .env(ROLE, dir)
        .env(SEED, seed.to_string())
        .env(NEXT, oracle.next_numbers())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut heard = 0;
    while heard < line_count {
        let line = lines.next().expect("the writer lives until it is killed");
        oracle.hear(&line.unwrap()).unwrap();
        heard += 1;
    }
    // The next lines may be under way: the kill falls wherever the writer is by now.
    child.kill().unwrap();
    for line in lines {
        oracle.hear(&line.unwrap()).unwrap();
    }
    assert!(!child.wait().unwrap().success());
}

fn judge(rounds: u64) {
    let base = seed::base(11);
    let mut rng = Rng::new(base);
    let dir = tempfile::tempdir().unwrap();
    let mut oracle = Oracle::new(base);
    let mut cuts = 0;
    for round in 0..rounds {
        // Now and then at once, while the open is young; now and then after a few thousand lines.
        let line_count = match rng.below(5) {
            0 => rng.within(0, 8),
            1 => rng.within(1_000, 4_000),
            _ => rng.within(8, 1_000),
        };
        life(dir.path(), &mut oracle, base, line_count);
        let db = options().open(dir.path()).unwrap();
        cuts += db.dataset("").unwrap().recovery().cuts.len();
        oracle
            .judge(&db)
            .unwrap_or_else(|error| panic!("STRANDLINE_SEED={base}: round {round}: {error}"));
        db.close().unwrap();
    }
    println!(
        "kill -9: seed {base}, {rounds} rounds, {} writes acknowledged, 0 lost, 0 torn batches; {} \
         were under way, {} of them there afterwards; {cuts} cuts",
        oracle.acked_count, oracle.open_count, oracle.found_count
    );
    assert!(oracle.acked_count > rounds, "the writer writes");
}

#[test]
fn no_acknowledged_write_is_lost_to_a_kill() {
    let rounds = std::env::var("ROUNDS").ok().and_then(|n| n.parse().ok());
    judge(rounds.unwrap_or(if seed::is_long() { 300 } else { 20 }));
}
