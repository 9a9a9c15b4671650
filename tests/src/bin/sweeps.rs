//! The sweeps that CI runs behind the suite: `sweeps [--jobs N] [--only PART] [--seed S]`.
//!
//! Everything has fixed seeds, so that a run is the same everywhere; the soak takes fresh ones. In the
//! end it prints what was reached of what was wanted, and fails where something was found or less was
//! reached.
#![allow(clippy::unwrap_used, reason = "it fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use strandline_tests::linear::threads;
use strandline_tests::parts::{self, Job, work_off};
use strandline_tests::rot::{self, Look};
use strandline_tests::run::Tally;
use strandline_tests::sweep::{Depth, sweep};
use strandline_tests::{errors, follow, marks, plan, rejoin, repairs, salvages, workload};

const USAGE: &str = "usage: sweeps [--jobs N] [--only PART] [--seed S]";
const DEPTH: Depth = Depth {
    seed_count: 3,
    nested_one_in: 9,
    nested_count: 3,
};

/// What must be reached: the measure, how much of it, and the parts and the count that it is.
const WANTED: &[(&str, u64, &[&str], &str)] = &[
    ("recoveries of crashes", 200_000, DEATHS, "recoveries"),
    ("nested recoveries", 50_000, DEATHS, "nested recoveries"),
    ("workloads swept by deaths", 13, &["deaths"], "workloads"),
    ("workloads swept by errors", 13, &["errors"], "workloads"),
    ("runs with a failing call", 50_000, &["errors"], "runs"),
    (
        "runs of tools with a failing call",
        1_000,
        &["errors of tools"],
        "runs",
    ),
    ("bundles taken", 2, &["bundle"], "bundles"),
    (
        "deaths while a bundle is taken",
        1_000,
        &["bundle"],
        "recoveries",
    ),
    ("deaths in a promotion", 1_000, &["promotion"], "recoveries"),
    ("deaths in a repair", 1_000, &["repair"], "recoveries"),
    ("deaths in a salvage", 1_000, &["salvage"], "recoveries"),
    (
        "flipped bytes, of each three looks, two modes",
        500_000,
        &["flips"],
        "flips",
    ),
    ("clusters", 2_000, &["clusters"], "seeds"),
    ("clusters run twice", 20, &["clusters"], "seeds run twice"),
    ("histories of threads", 2_000, &["histories"], "seeds"),
    ("model sequences", 20_000, &["model"], "sequences"),
    (
        "option sets of the model",
        64,
        &["option sets"],
        "option sets",
    ),
];

/// The parts whose recoveries count together.
const DEATHS: &[&str] = &[
    "deaths",
    "deposed leader",
    "promotion",
    "follower",
    "bundle",
    "repair",
    "salvage",
];

fn jobs(base: u64) -> Vec<Job> {
    let mut jobs = Vec::new();
    // The longest ones first, so that no thread waits for another one's last job.
    for (name, case) in workload::all() {
        jobs.push(Job::new("deaths", name, move || {
            let mut tally = sweep(&case, base + 7, DEPTH)?;
            tally.add("workloads", 1);
            Ok(tally)
        }));
    }
    for (name, case) in workload::all() {
        jobs.push(Job::new("errors", name, move || {
            let mut tally = errors::sweep(&case, &errors::MODES)?;
            tally.add("workloads", 1);
            Ok(tally)
        }));
    }
    for (name, maps, look) in [
        ("readers, maps", true, Look::Read),
        ("readers, pread", false, Look::Read),
        ("writers, maps", true, Look::Write),
        ("writers, pread", false, Look::Write),
        ("verify, maps", true, Look::Verify),
        ("verify, pread", false, Look::Verify),
    ] {
        for first in 0..2 {
            let run = move || rot::flips(maps, look, first, 2);
            jobs.push(Job::new("flips", name, run));
        }
    }
    jobs.push(Job::new("errors of tools", "repair", move || {
        repairs::errors(base + 71, &errors::MODES)
    }));
    jobs.push(Job::new("errors of tools", "salvage", move || {
        salvages::errors(base + 71, &errors::MODES)
    }));
    seeds(&mut jobs, "deposed leader", base + 31, 2, 1, rejoin::sweep);
    seeds(&mut jobs, "promotion", base + 50, 2, 1, rejoin::promotions);
    seeds(&mut jobs, "follower", base + 21, 4, 1, follow::sweep);
    seeds(&mut jobs, "bundle", base + 41, 2, 1, follow::bundle_sweep);
    seeds(&mut jobs, "behind", base + 61, 2, 1, follow::behind_sweep);
    seeds(&mut jobs, "repair", base + 91, 3, 1, repairs::sweep);
    seeds(&mut jobs, "salvage", base + 61, 2, 1, salvages::sweep);
    seeds(&mut jobs, "clusters", base, 2_000, 100, parts::cluster);
    seeds(
        &mut jobs,
        "model",
        base + (2 << 32),
        20_000,
        500,
        parts::model,
    );
    seeds(
        &mut jobs,
        "histories",
        base + 51,
        2_000,
        500,
        threads::history,
    );
    jobs.push(Job::new("option sets", "of the model", move || {
        let set = |seed| {
            let case = plan::case(seed, 0);
            format!("{} {:?}", case.maps, case.options)
        };
        let sets: BTreeSet<String> = (0..20_000).map(|n| set(base + (2 << 32) + n)).collect();
        let mut tally = Tally::default();
        tally.add("option sets", sets.len() as u64);
        Ok(tally)
    }));
    jobs
}

/// Jobs of so many seeds of a part, several in each.
fn seeds(
    jobs: &mut Vec<Job>,
    part: &'static str,
    base: u64,
    count: u64,
    step: u64,
    run: fn(u64) -> Result<Tally, String>,
) {
    for first in (0..count).step_by(step as usize) {
        let end = count.min(first + step);
        let name = format!("seeds {} to {}", base + first, base + end - 1);
        jobs.push(Job::new(part, name, move || {
            let mut tally = Tally::default();
            for seed in base + first..base + end {
                let one = parts::guarded(|| run(seed));
                tally.merge(&one.map_err(|error| format!("seed {seed}: {error}"))?);
                tally.add("seeds", 1);
            }
            Ok(tally)
        }));
    }
}

#[derive(Default)]
struct Reached {
    tallies: BTreeMap<&'static str, (Tally, Duration)>,
    failures: Vec<String>,
}

impl Reached {
    fn sum(&self, parts: &[&str], what: &str) -> u64 {
        let of = |part: &&str| self.tallies.get(*part).map_or(0, |(t, _)| t.count(what));
        parts.iter().map(of).sum()
    }

    /// Prints everything; returns what is missing.
    fn tell(&self, only: Option<&str>) -> Vec<String> {
        let mut missing = self.failures.clone();
        for (part, (tally, took)) in &self.tallies {
            println!("{part}, {} s: {}", took.as_secs(), tally.line());
        }
        println!("\n{:<44} {:>12} {:>12}", "measure", "reached", "wanted");
        for (measure, wanted, parts, what) in WANTED.iter().copied() {
            if only.is_some_and(|only| parts != [only]) {
                continue;
            }
            let reached = self.sum(parts, what);
            println!("{measure:<44} {reached:>12} {wanted:>12}");
            if reached < wanted {
                missing.push(format!("{measure}: {reached} of {wanted}"));
            }
        }
        if only.is_none() {
            let tallies = self.tallies.values().map(|(tally, _)| tally);
            let never = marks::never(tallies);
            let count = marks::LIST.lines().count();
            println!(
                "{:<44} {:>12} {count:>12}",
                "marks met",
                count - never.len()
            );
            missing.extend(never.iter().map(|name| format!("never met: {name}")));
        }
        missing
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (mut thread_count, mut base) = (2, 0);
    let mut only: Option<&str> = None;
    for pair in args.chunks(2) {
        let parsed = match pair {
            [name, value] if name == "--jobs" => value.parse().map(|n| thread_count = n).is_ok(),
            [name, value] if name == "--seed" => value.parse().map(|n| base = n).is_ok(),
            [name, value] if name == "--only" => {
                only = Some(value);
                true
            }
            _ => false,
        };
        if !parsed {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    }
    let began = Instant::now();
    let reached = Mutex::new(Reached::default());
    let mut jobs = jobs(base);
    jobs.retain(|job| only.is_none_or(|only| only == job.part));
    let mut jobs = jobs.into_iter();
    work_off(
        thread_count,
        || jobs.next(),
        |(part, name, done, took)| {
            let mut reached = reached.lock().unwrap();
            let outcome = if done.is_ok() { "ok" } else { "FAILED" };
            println!("{part}, {name}: {outcome}, {:.1} s", took.as_secs_f64());
            match done {
                Ok(tally) => {
                    let (sum, time) = reached.tallies.entry(part).or_default();
                    sum.merge(&tally);
                    *time += took;
                }
                Err(error) => reached.failures.push(format!("{part}, {name}: {error}")),
            }
        },
    );
    let missing = reached.into_inner().unwrap().tell(only);
    println!(
        "sweeps: {} s, {thread_count} jobs",
        began.elapsed().as_secs()
    );
    for what in &missing {
        println!("FAILED {what}");
    }
    match missing.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
