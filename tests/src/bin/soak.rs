//! Runs sweeps and simulations with fresh seeds for so many minutes, and keeps every seed that fails.
//!
//! `soak --minutes N [--seed S] [--only PART] [--failures FILE]`. A failing seed is written to the file
//! with its message, which has the smallest case where the harness makes cases smaller, and the soak
//! goes on; in the end it fails where any seed did. A seed that is printed runs alone by
//! `STRANDLINE_SEED` and `STRANDLINE_COUNT=1` (of a cluster: `STRANDLINE_SEED`) in the test of its part.
#![allow(clippy::unwrap_used, reason = "it fails by panicking")]

use std::fs::OpenOptions;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use strandline_tests::cluster::{Cluster, Profile};
use strandline_tests::linear::threads;
use strandline_tests::ops::Op;
use strandline_tests::run::Tally;
use strandline_tests::sweep::{Depth, sweep};
use strandline_tests::{check, follow, plan, seed, workload};

const USAGE: &str = "usage: soak --minutes N [--seed S] [--only PART] [--failures FILE]";
const ACTION_COUNT: usize = 250;
const OP_COUNT: usize = 200;
/// Operations of a random case that is killed at every call.
const SWEPT_OP_COUNT: usize = 25;

/// One kind of run: its name, how many seeds it takes in a round, and what it does with one.
type Part = (&'static str, u64, fn(u64) -> Result<Tally, String>);

/// A round is made so that no part takes most of the time.
const PARTS: [Part; 6] = [
    ("clusters", 60, cluster),
    ("histories of threads", 400, threads::history),
    ("model cases", 60, model),
    ("crash sweeps of workloads", 1, workload_sweep),
    ("crash sweeps of random cases", 1, random_sweep),
    ("follower sweeps", 1, follow::sweep),
];

fn cluster(seed: u64) -> Result<Tally, String> {
    let outcome = Cluster::new(seed, Profile::Full).check(ACTION_COUNT);
    Ok(Tally(outcome.counters.counts))
}

fn model(seed: u64) -> Result<Tally, String> {
    Ok(check::cases(seed, 1, |seed| plan::case(seed, OP_COUNT)))
}

fn depth() -> Depth {
    Depth {
        seed_count: 1,
        nested_one_in: 12,
        nested_count: 3,
    }
}

fn workload_sweep(seed: u64) -> Result<Tally, String> {
    let all = workload::all();
    let (name, case) = &all[(seed % all.len() as u64) as usize];
    sweep(case, seed, depth()).map_err(|error| format!("{name}: {error}"))
}

fn random_sweep(seed: u64) -> Result<Tally, String> {
    let mut case = plan::case(seed, SWEPT_OP_COUNT);
    // The sweep decides where it dies.
    case.ops
        .retain(|op| !matches!(op, Op::Crash(_) | Op::CrashAfter(..)));
    sweep(&case, seed, depth())
}

/// What was asked for.
struct Wish {
    minutes: u64,
    seed: u64,
    only: Option<String>,
    failures: String,
}

impl Wish {
    fn of(args: &[String]) -> Option<Wish> {
        let mut minutes = None;
        let mut seed = None;
        let mut only = None;
        let mut failures = None;
        for pair in args.chunks(2) {
            let [name, value] = pair else { return None };
            match name.as_str() {
                "--minutes" => minutes = Some(value.parse().ok()?),
                "--seed" => seed = Some(value.parse().ok()?),
                "--only" => only = Some(value.clone()),
                "--failures" => failures = Some(value.clone()),
                _ => return None,
            }
        }
        let named = |only: &String| PARTS.iter().any(|(name, ..)| name == only);
        if only.as_ref().is_some_and(|only| !named(only)) {
            return None;
        }
        // Fresh seeds: those of a fixed base were all run by the tests.
        let seed = seed.unwrap_or_else(fresh);
        Some(Wish {
            minutes: minutes?,
            seed,
            only,
            failures: failures.unwrap_or_else(|| format!("soak-{seed}.failures")),
        })
    }
}

fn fresh() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() >> 24
}

/// The commit that the working directory stands at.
fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let Some(commit) = git(&["rev-parse", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit} with changes"),
    }
}

struct Soak {
    wish: Wish,
    commit: String,
    began: Instant,
    told: Instant,
    /// Per part.
    tallies: Vec<Tally>,
    failure_count: u64,
}

impl Soak {
    fn is_over(&self) -> bool {
        self.began.elapsed() >= Duration::from_secs(60 * self.wish.minutes)
    }

    fn round(&mut self, number: u64) {
        for (n, (name, count, run)) in PARTS.into_iter().enumerate() {
            if self.wish.only.as_ref().is_some_and(|only| only != name) {
                continue;
            }
            for i in 0..count {
                if self.is_over() {
                    return;
                }
                let seed = self.wish.seed.wrapping_add(number * count + i);
                self.one(n, name, seed, run);
            }
        }
    }

    fn one(&mut self, n: usize, name: &str, seed: u64, run: fn(u64) -> Result<Tally, String>) {
        let done = catch_unwind(AssertUnwindSafe(|| run(seed)));
        match done.unwrap_or_else(|panic| Err(message(panic.as_ref()))) {
            Ok(tally) => self.tallies[n].merge(&tally),
            Err(error) => self.failed(name, seed, &error),
        }
        self.tallies[n].add("seeds", 1);
        if self.told.elapsed() >= Duration::from_secs(60) {
            self.told = Instant::now();
            self.tell();
        }
    }

    fn failed(&mut self, name: &str, seed: u64, error: &str) {
        self.failure_count += 1;
        let brief: String = error.chars().take(300).collect();
        println!("FAILED {name}, seed {seed}: {brief}");
        let path = &self.wish.failures;
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.unwrap_or_else(|error| panic!("{path}: {error}"));
        let commit = &self.commit;
        let replay = seed::replay(seed);
        writeln!(file, "== {name}, {replay}, commit {commit}\n{error}\n").unwrap();
    }

    fn tell(&self) {
        println!(
            "soak: {} s, {} failed, base seed {}, commit {}",
            self.began.elapsed().as_secs(),
            self.failure_count,
            self.wish.seed,
            self.commit
        );
        for ((name, ..), tally) in PARTS.iter().zip(&self.tallies) {
            println!("  {name}: {}", tally.line());
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panic: {}", text.unwrap_or_default())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(wish) = Wish::of(&args) else {
        let parts = PARTS.map(|(name, ..)| name).join(", ");
        eprintln!("{USAGE}\nparts: {parts}");
        return ExitCode::from(2);
    };
    // Failures are told by their message; the panics of cases being made smaller by none.
    std::panic::set_hook(Box::new(|_| {}));
    let mut soak = Soak {
        wish,
        commit: commit(),
        began: Instant::now(),
        told: Instant::now(),
        tallies: vec![Tally::default(); PARTS.len()],
        failure_count: 0,
    };
    let mut number = 0;
    while !soak.is_over() {
        soak.round(number);
        number += 1;
    }
    soak.tell();
    match soak.failure_count {
        0 => ExitCode::SUCCESS,
        n => {
            println!("{n} seeds failed: {}", soak.wish.failures);
            ExitCode::FAILURE
        }
    }
}
