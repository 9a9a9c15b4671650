//! Runs sweeps and simulations with fresh seeds for so many minutes, and keeps every seed that fails.
//!
//! `soak --minutes N [--jobs N] [--seed S] [--only PART] [--failures FILE]`, on two threads by default. A failing seed is written to the file
//! with its message, which has the smallest case where the harness makes cases smaller, and the soak
//! goes on; in the end it fails where any seed did. A seed that is printed runs alone by
//! `STRANDLINE_SEED` and `STRANDLINE_COUNT=1` (of a cluster: `STRANDLINE_SEED`) in the test of its part.
#![allow(clippy::unwrap_used, reason = "it fails by panicking")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use strandline_tests::marks;
use strandline_tests::parts::{Job, PARTS, work_off};
use strandline_tests::run::Tally;
use strandline_tests::seed;

const USAGE: &str = "usage: soak --minutes N [--jobs N] [--seed S] [--only PART] [--failures FILE]";

/// What was asked for.
struct Wish {
    minutes: u64,
    jobs: usize,
    seed: u64,
    only: Option<String>,
    failures: String,
}

impl Wish {
    fn of(args: &[String]) -> Option<Wish> {
        let mut minutes = None;
        let mut jobs = 2;
        let mut seed = None;
        let mut only = None;
        let mut failures = None;
        for pair in args.chunks(2) {
            let [name, value] = pair else { return None };
            match name.as_str() {
                "--minutes" => minutes = Some(value.parse().ok()?),
                "--jobs" => jobs = value.parse().ok()?,
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
            jobs,
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
    /// By part.
    tallies: BTreeMap<&'static str, Tally>,
    failure_count: u64,
}

/// Every part's seeds, round after round.
fn endless(wish: &Wish) -> impl Iterator<Item = Job> + use<> {
    let (base, only) = (wish.seed, wish.only.clone());
    let is_wanted = move |name: &str| only.as_ref().is_none_or(|only| only == name);
    let of_round = move |number: u64| {
        let parts = PARTS.into_iter().filter(|(name, ..)| is_wanted(name));
        let seeds = parts.flat_map(move |(name, count, run)| {
            (0..count).map(move |i| (name, base.wrapping_add(number * count + i), run))
        });
        let jobs: Vec<Job> = seeds
            .map(|(name, seed, run)| Job::new(name, seed.to_string(), move || run(seed)))
            .collect();
        jobs
    };
    (0..).flat_map(of_round)
}

impl Soak {
    fn done(&mut self, name: &'static str, seed: &str, done: Result<Tally, String>) {
        let tally = self.tallies.entry(name).or_default();
        tally.add("seeds", 1);
        match done {
            Ok(one) => tally.merge(&one),
            Err(error) => self.failed(name, seed, &error),
        }
        if self.told.elapsed() >= Duration::from_secs(60) {
            self.told = Instant::now();
            self.tell();
        }
    }

    fn failed(&mut self, name: &str, seed: &str, error: &str) {
        self.failure_count += 1;
        let brief: String = error.chars().take(300).collect();
        println!("FAILED {name}, seed {seed}: {brief}");
        let path = &self.wish.failures;
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.unwrap_or_else(|error| panic!("{path}: {error}"));
        let commit = &self.commit;
        let replay = seed::replay(seed.parse().expect("it was made of a number"));
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
        for (name, tally) in &self.tallies {
            println!("  {name}: {}", tally.line());
        }
    }
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
    let until = Instant::now() + Duration::from_secs(60 * wish.minutes);
    let (job_count, mut jobs) = (wish.jobs, endless(&wish));
    let soak = Mutex::new(Soak {
        wish,
        commit: commit(),
        began: Instant::now(),
        told: Instant::now(),
        tallies: BTreeMap::new(),
        failure_count: 0,
    });
    work_off(
        job_count,
        || (Instant::now() < until).then(|| jobs.next()).flatten(),
        |(part, name, done, _)| soak.lock().unwrap().done(part, name, done),
    );
    let soak = soak.into_inner().unwrap();
    soak.tell();
    if soak.wish.only.is_none() {
        let never = marks::never(soak.tallies.values());
        println!("never met: {never:?}");
        // A shorter run cannot meet everything.
        if soak.wish.minutes >= 30 && !never.is_empty() {
            return ExitCode::FAILURE;
        }
    }
    match soak.failure_count {
        0 => ExitCode::SUCCESS,
        n => {
            println!("{n} seeds failed: {}", soak.wish.failures);
            ExitCode::FAILURE
        }
    }
}
