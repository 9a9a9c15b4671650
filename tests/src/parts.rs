//! What long runs are made of: kinds of runs that take a seed, and threads that work them off.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Profile};
use crate::linear::threads;
use crate::ops::Op;
use crate::run::Tally;
use crate::sweep::{Depth, sweep};
use crate::{check, follow, plan, rejoin, repairs, rot, salvages, workload};

/// One kind of run: its name, how many seeds it takes in a round, and what it does with one.
pub type Part = (&'static str, u64, fn(u64) -> Result<Tally, String>);

/// A round is made so that no part takes most of the time.
pub const PARTS: [Part; 16] = [
    ("clusters", 60, cluster),
    ("histories of threads", 400, threads::history),
    ("model cases", 60, model),
    ("crash sweeps of workloads", 1, workload_sweep),
    ("crash sweeps of random cases", 1, random_sweep),
    ("error runs of random cases", 40, random_errors),
    ("follower sweeps", 1, follow::sweep),
    ("bundle sweeps", 1, follow::bundle_sweep),
    ("sweeps of long pieces", 1, follow::behind_sweep),
    ("sweeps of deposed leaders", 1, rejoin::sweep),
    ("promotion sweeps", 1, rejoin::promotions),
    ("rot", 8, rot::random),
    ("repairs", 30, repairs::round),
    ("repair sweeps", 1, repairs::sweep),
    ("salvages", 30, salvages::round),
    ("salvage sweeps", 1, salvages::sweep),
];

/// Actions of a cluster's run.
pub const ACTION_COUNT: usize = 250;
/// Operations of a case of the model.
pub const OP_COUNT: usize = 200;
/// Operations of a random case that is killed or hit by an error at every call.
const SWEPT_OP_COUNT: usize = 25;

/// A cluster; one seed in a hundred runs twice and must do the same.
///
/// # Errors
/// Where it does not. What else is wrong is a panic.
pub fn cluster(seed: u64) -> Result<Tally, String> {
    let run = || Cluster::new(seed, Profile::Full).check(ACTION_COUNT);
    let outcome = run();
    let mut tally = Tally(outcome.counters.counts.clone());
    if seed.is_multiple_of(100) {
        tally.add("seeds run twice", 1);
        if run() != outcome {
            return Err("it is not deterministic".to_owned());
        }
    }
    Ok(tally)
}

/// A case of the model.
///
/// # Errors
/// None: what is wrong is a panic with the smallest case that fails.
pub fn model(seed: u64) -> Result<Tally, String> {
    Ok(check::cases(seed, 1, |seed| plan::case(seed, OP_COUNT)))
}

fn depth() -> Depth {
    Depth {
        seed_count: 1,
        nested_one_in: 12,
        nested_count: 3,
    }
}

/// Deaths at every call of one of the workloads.
///
/// # Errors
/// As [`sweep`].
pub fn workload_sweep(seed: u64) -> Result<Tally, String> {
    let all = workload::all();
    let (name, case) = &all[(seed % all.len() as u64) as usize];
    sweep(case, seed, depth()).map_err(|error| format!("{name}: {error}"))
}

/// Deaths at every call of a random case.
///
/// # Errors
/// As [`sweep`].
pub fn random_sweep(seed: u64) -> Result<Tally, String> {
    let mut case = plan::case(seed, SWEPT_OP_COUNT);
    // The sweep decides where it dies.
    case.ops
        .retain(|op| !matches!(op, Op::Crash(_) | Op::CrashAfter(..)));
    sweep(&case, seed, depth())
}

/// Calls of a random case that fail.
///
/// # Errors
/// As [`crate::errors::random`].
pub fn random_errors(seed: u64) -> Result<Tally, String> {
    crate::errors::random(seed, 2 * SWEPT_OP_COUNT)
}

/// Runs something; a panic is a failure like any other.
///
/// # Errors
/// Its own, or the panic's message.
pub fn guarded(run: impl FnOnce() -> Result<Tally, String>) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// Something to do on one of several threads.
pub struct Job {
    /// What it counts for.
    pub part: &'static str,
    /// Which one of its part.
    pub name: String,
    /// It.
    pub run: Box<dyn FnOnce() -> Result<Tally, String> + Send>,
}

impl Job {
    /// A job.
    pub fn new(
        part: &'static str,
        name: impl Into<String>,
        run: impl FnOnce() -> Result<Tally, String> + Send + 'static,
    ) -> Job {
        let name = name.into();
        let run = Box::new(run);
        Job { part, name, run }
    }
}

/// What became of a job: its part and name, and how long it took.
pub type Told<'a> = (&'static str, &'a str, Result<Tally, String>, Duration);

/// Works off jobs as they come, on so many threads, until there are no more.
pub fn work_off(
    thread_count: usize,
    next: impl FnMut() -> Option<Job> + Send,
    tell: impl Fn(Told<'_>) + Sync,
) {
    let jobs = Mutex::new(next);
    let next = || (jobs.lock().unwrap())();
    std::thread::scope(|scope| {
        for _ in 0..thread_count {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let began = Instant::now();
                    let done = guarded(job.run);
                    tell((job.part, &job.name, done, began.elapsed()));
                }
            });
        }
    });
}
