//! Measures the four open choices of the engine on bare prototypes, before any engine code exists.
//!
//! Each contest runs its entrants interleaved, rotates who goes first, throws one warm-up round
//! away, and prints median, spread, and the paired ratio to the first entrant. The decision
//! records under `engine/decisions` quote these tables.
//!
//! `spike [--dir DIR] [--rounds N] [--only append|sync|memtable|put|point]... [--quick]`

#[path = "../spike/append.rs"]
mod append;
#[path = "../spike/contest.rs"]
mod contest;
#[path = "../spike/huge.rs"]
mod huge;
#[path = "../spike/map.rs"]
mod map;
#[path = "../spike/memtable.rs"]
mod memtable;
#[path = "../spike/point.rs"]
mod point;
#[path = "../spike/put.rs"]
mod put;
#[path = "../spike/random.rs"]
mod random;
#[path = "../spike/run.rs"]
mod run;
#[path = "../spike/segment.rs"]
mod segment;
#[path = "../spike/sync.rs"]
mod sync;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// How much to measure, and where.
struct Plan {
    dir: PathBuf,
    rounds: usize,
    only: Vec<String>,
    quick: bool,
}

impl Plan {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Plan, String> {
        let mut plan = Plan {
            dir: std::env::temp_dir(),
            rounds: 7,
            only: Vec::new(),
            quick: false,
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--dir" => plan.dir = PathBuf::from(value()?),
                "--rounds" => {
                    plan.rounds = value()?.parse().map_err(|_| "--rounds needs a number")?;
                }
                "--only" => plan.only.push(value()?),
                "--quick" => plan.quick = true,
                _ => return Err(format!("unknown argument {arg}")),
            }
        }
        if plan.rounds == 0 {
            return Err("--rounds must be at least 1".into());
        }
        match plan
            .only
            .iter()
            .find(|name| !CONTESTS.contains(&name.as_str()))
        {
            Some(name) => Err(format!("unknown contest {name}, one of {CONTESTS:?}")),
            None => Ok(plan),
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }

    fn scale(&self, full: usize) -> usize {
        if self.quick { full / 10 } else { full }
    }
}

const CONTESTS: [&str; 5] = ["append", "sync", "memtable", "put", "point"];

fn main() -> ExitCode {
    let plan = match Plan::parse(std::env::args().skip(1)) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("spike: {error}");
            return ExitCode::from(2);
        }
    };
    match measure(&plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("spike: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(plan: &Plan) -> io::Result<()> {
    let dir = tempfile::TempDir::new_in(&plan.dir)?;
    let dir = dir.path();
    if plan.wants("append") {
        append::measure(dir, plan.scale(700_000), plan.rounds)?;
    }
    if plan.wants("sync") {
        sync::measure(dir, plan.scale(300), plan.rounds)?;
    }
    if plan.wants("memtable") {
        for threads in [1, 2] {
            memtable::measure(plan.scale(1_000_000), threads, plan.rounds)?;
        }
    }
    if plan.wants("put") {
        put::measure(dir, plan.scale(500_000), plan.rounds)?;
    }
    if plan.wants("point") {
        for run_count in [1, 4] {
            point::measure(plan.scale(2_000_000), run_count, plan.rounds)?;
        }
    }
    Ok(())
}
