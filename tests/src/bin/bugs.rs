//! Plants every bug of the bank, one process each, and shows which test catches it and how soon.
//!
//! ```text
//! cargo run --profile checked -p strandline-tests --bin bugs -- [--only NAME]... [--jobs N]
//!     [--json FILE] [--discover [SUITE]...]
//! ```
//!
//! The tests are built once with `--cfg strandline_bugs` in a target directory of their own. Those
//! that the bank names must pass without a bug; then each bug must fail one of its tests within
//! [`LIMIT`]. The last line is the summary; the exit code is 1 unless all are caught. `--only` takes
//! the start of a name; there are as many jobs as cores. `--discover` looks through whole suites
//! instead, in the order given, for the first test that fails.
#![allow(clippy::unwrap_used, reason = "a harness fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use strandline_tests::bugs::{Bug, Test, bank};
use strandline_tests::sources::root;

/// A test that takes longer than this hangs, which is a failure too.
const LIMIT: Duration = Duration::from_secs(120);
const PACKAGES: [&str; 4] = [
    "strandline-wal",
    "strandline-replication",
    "strandline",
    "strandline-tests",
];

/// How a run of tests ended.
enum Outcome {
    Passed,
    /// The test that failed, and its message or how the process ended.
    Failed(String, String),
    /// Not within the limit.
    Hung,
}

/// One line of the table.
struct Row {
    bug: Bug,
    /// The test, and how it failed.
    caught: Option<(String, String)>,
    seconds: f64,
}

struct Options {
    only: Vec<String>,
    jobs: usize,
    json: Option<PathBuf>,
    discover: Option<Vec<String>>,
}

fn main() -> ExitCode {
    let options = options();
    let suites = build();
    let mut bugs = bank();
    if !options.only.is_empty() {
        bugs.retain(|bug| options.only.iter().any(|name| bug.name.starts_with(name)));
    }
    if let Some(ladder) = &options.discover {
        let test = |suite: &String| Test {
            suite: suite.clone(),
            name: String::new(),
        };
        for bug in &mut bugs {
            bug.tests = match ladder.is_empty() {
                true => suites.keys().map(test).collect(),
                false => ladder.iter().map(test).collect(),
            };
        }
    } else if !pass_without_bugs(&suites, &bugs, options.jobs) {
        return ExitCode::FAILURE;
    }
    let rows = in_parallel(options.jobs, bugs, |bug| {
        let row = plant(&suites, bug);
        println!("{}", line(&row));
        row
    });
    if let Some(path) = &options.json {
        std::fs::write(path, json(&rows)).unwrap();
    }
    summary(&rows)
}

fn options() -> Options {
    let mut options = Options {
        only: Vec::new(),
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        json: None,
        discover: None,
    };
    let mut args = std::env::args().skip(1).peekable();
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("the option has a value");
        match arg.as_str() {
            "--only" => options.only.push(value()),
            "--jobs" => options.jobs = value().parse().expect("a number of jobs"),
            "--json" => options.json = Some(value().into()),
            "--discover" => {
                let mut suites = Vec::new();
                while let Some(suite) = args.next_if(|arg| !arg.starts_with("--")) {
                    suites.push(suite);
                }
                options.discover = Some(suites);
            }
            _ => panic!("no such option: {arg}"),
        }
    }
    options
}

/// Builds the tests with the switches and returns the executable of each suite.
fn build() -> BTreeMap<String, PathBuf> {
    let target =
        std::env::var("CARGO_TARGET_DIR").map_or_else(|_| root().join("target"), PathBuf::from);
    let flags = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo
        .args(["test", "--profile", "checked", "--no-run"])
        .args([
            "--message-format",
            "json-render-diagnostics",
            "--target-dir",
        ])
        .arg(target.join("bugs"))
        .args(PACKAGES.iter().flat_map(|package| ["-p", package]))
        .env("RUSTFLAGS", format!("{flags} --cfg strandline_bugs"))
        .current_dir(root())
        .stderr(Stdio::inherit());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "the tests do not build");
    let mut suites = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let message: serde_json::Value = serde_json::from_str(line).unwrap();
        let Some(executable) = message["executable"].as_str() else {
            continue;
        };
        if message["profile"]["test"] == true {
            let source = Path::new(message["target"]["src_path"].as_str().unwrap());
            suites.insert(suite_of(source), PathBuf::from(executable));
        }
    }
    suites
}

/// `wal` for `wal/src/lib.rs`, `tests/crash` for `tests/tests/crash.rs`.
fn suite_of(source: &Path) -> String {
    let path = source.strip_prefix(root()).unwrap().with_extension("");
    let path = path.to_string_lossy();
    match path.strip_suffix("/src/lib") {
        Some(package) => package.to_owned(),
        None => path.replacen("/tests/", "/", 1),
    }
}

fn pass_without_bugs(suites: &BTreeMap<String, PathBuf>, bugs: &[Bug], jobs: usize) -> bool {
    let tests: BTreeSet<&Test> = bugs.iter().flat_map(|bug| &bug.tests).collect();
    let passed = in_parallel(jobs, tests, |test| {
        let start = Instant::now();
        let passes = matches!(run(suites, test, None), Outcome::Passed);
        let how = if passes { "passes" } else { "FAILS" };
        let seconds = start.elapsed().as_secs_f64();
        println!("{how} without a bug: {test} ({seconds:.1} s)");
        passes
    });
    passed.into_iter().all(|passes| passes)
}

/// Works on all items, so many at a time; the results are in the order of the items.
fn in_parallel<T: Send, R: Send>(
    jobs: usize,
    items: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> R + Sync,
) -> Vec<R> {
    let queue: Mutex<VecDeque<(usize, T)>> = Mutex::new(items.into_iter().enumerate().collect());
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let Some((n, item)) = queue.lock().pop_front() else {
                        return;
                    };
                    let result = work(item);
                    results.lock().insert(n, result);
                }
            });
        }
    });
    results.into_inner().into_values().collect()
}

/// Runs the tests of a bug until one fails.
fn plant(suites: &BTreeMap<String, PathBuf>, bug: Bug) -> Row {
    let start = Instant::now();
    let mut caught = None;
    for test in &bug.tests {
        let outcome = match test.name.is_empty() {
            true => discover(suites, &test.suite, &bug.name),
            false => run(suites, test, Some(&bug.name)),
        };
        match outcome {
            Outcome::Passed => continue,
            Outcome::Failed(name, how) => caught = Some((format!("{} {name}", test.suite), how)),
            Outcome::Hung => caught = Some((test.to_string(), "hung".to_owned())),
        }
        break;
    }
    Row {
        bug,
        caught,
        seconds: start.elapsed().as_secs_f64(),
    }
}

/// Looks through a suite for a test that fails with the bug each time, and passes without.
fn discover(suites: &BTreeMap<String, PathBuf>, suite: &str, bug: &str) -> Outcome {
    let mut skipped = Vec::new();
    loop {
        let test = |name: String| Test {
            suite: suite.to_owned(),
            name,
        };
        let outcome = run_some(suites, &test(String::new()), &skipped, Some(bug));
        let Outcome::Failed(name, how) = outcome else {
            return outcome;
        };
        let found = test(name.clone());
        let fails = |bug| !matches!(run(suites, &found, bug), Outcome::Passed);
        // A process that died names no test.
        if name.is_empty() || fails(Some(bug)) && !fails(None) {
            return Outcome::Failed(name, how);
        }
        skipped.push(name);
    }
}

fn run(suites: &BTreeMap<String, PathBuf>, test: &Test, bug: Option<&str>) -> Outcome {
    run_some(suites, test, &[], bug)
}

/// Runs a test, or the tests of a suite until the first that fails.
fn run_some(
    suites: &BTreeMap<String, PathBuf>,
    test: &Test,
    skipped: &[String],
    bug: Option<&str>,
) -> Outcome {
    let executable = suites
        .get(&test.suite)
        .unwrap_or_else(|| panic!("no such suite: {}", test.suite));
    let mut command = Command::new(executable);
    if !test.name.is_empty() {
        command.args(["--exact", &test.name]);
    }
    for name in skipped {
        command.args(["--skip", name]);
    }
    command
        .env_remove("STRANDLINE_BUG")
        // The same cases with the bug and without, and no file that remembers those of a bug.
        .env("PROPTEST_RNG_SEED", "1")
        .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
        .envs(bug.map(|bug| ("STRANDLINE_BUG", bug)))
        .current_dir(root().join(test.suite.split('/').next().unwrap()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // Processes that a test starts end with it.
        .process_group(0);
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (sender, receiver) = channel();
    let reader = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    // A whole suite is only looked through.
    let limit = if test.name.is_empty() {
        6 * LIMIT
    } else {
        LIMIT
    };
    let deadline = Instant::now() + limit;
    let (mut ran_count, mut failed) = (0, None);
    let mut panicked = false;
    let outcome = loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            // The message stands behind the line that tells of the panic.
            Ok(line) if panicked => break failed.map(|name| Outcome::Failed(name, line)),
            Ok(line) => {
                let ended = line
                    .strip_prefix("test ")
                    .and_then(|rest| rest.rsplit_once(" ... "));
                ran_count += usize::from(ended.is_some());
                if let Some((name, "FAILED")) = ended {
                    let name = name.trim_end_matches(" - should panic").to_owned();
                    if test.name.is_empty() {
                        break Some(Outcome::Failed(name, "failed".to_owned()));
                    }
                    failed = Some(name);
                }
                panicked = failed.is_some() && line.contains("panicked at ");
            }
            Err(RecvTimeoutError::Timeout) => break Some(Outcome::Hung),
            Err(RecvTimeoutError::Disconnected) => break None,
        }
    };
    if outcome.is_some()
        && let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed())
    {
        // It may have ended by itself.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    let status = child.wait().unwrap();
    drop(receiver);
    reader.join().unwrap();
    outcome.unwrap_or_else(|| match status.success() {
        true if ran_count == 0 => panic!("no such test: {test}"),
        true => Outcome::Passed,
        false => Outcome::Failed(test.name.clone(), status.to_string()),
    })
}

fn line(row: &Row) -> String {
    let (test, how) = match &row.caught {
        Some((test, how)) => (test.as_str(), how.as_str()),
        None => ("-", "SURVIVES"),
    };
    format!(
        "{:<22} {:>5.1} s  {test}: {how:.80}",
        row.bug.name, row.seconds
    )
}

fn json(rows: &[Row]) -> String {
    let row = |row: &Row| {
        let (test, how) = row.caught.clone().unzip();
        serde_json::json!({
            "bug": row.bug.name,
            "story": row.bug.story,
            "caught_by": test,
            "how": how,
            "seconds": row.seconds,
        })
    };
    let rows: Vec<serde_json::Value> = rows.iter().map(row).collect();
    serde_json::to_string_pretty(&rows).unwrap()
}

/// Prints the table and what it comes to.
fn summary(rows: &[Row]) -> ExitCode {
    println!();
    for row in rows {
        println!("{}", line(row));
    }
    let mut seconds: Vec<f64> = rows.iter().map(|row| row.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or_default();
    let slowest = seconds.last().copied().unwrap_or_default();
    let caught_count = rows.iter().filter(|row| row.caught.is_some()).count();
    let count = rows.len();
    println!(
        "\nbug bank: {count} planted, {caught_count} caught, median {median:.1} s, slowest {slowest:.1} s"
    );
    match caught_count == count && count > 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
