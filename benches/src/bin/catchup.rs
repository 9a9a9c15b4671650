//! Measures a follower that begins with nothing, beside its leader's own writes of the same batches and a
//! sequential read of the same log files.
//!
//! Leader and follower are processes of their own, each held to one core, over loopback. The leader writes
//! at `Os` before anyone follows it, and nothing is flushed, so the follower copies the whole log. It has
//! caught up once its readers see the last record.
//!
//! `catchup [--len MIB] [--runs N] [--dir DIR]`

use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::Advice;
use rustix::thread::{CpuSet, sched_setaffinity};
use strandline::{Durability, Options};
use strandline_benches::{Values, keys};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One kind of batches.
struct Row {
    value_len: usize,
    batch_count: usize,
}

const ROWS: [Row; 4] = [
    Row {
        value_len: 100,
        batch_count: 1,
    },
    Row {
        value_len: 100,
        batch_count: 100,
    },
    Row {
        value_len: 4096,
        batch_count: 1,
    },
    Row {
        value_len: 64 << 10,
        batch_count: 1,
    },
];

/// Longer than that nobody waits for a follower.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_micros(200);

struct Plan {
    len_mib: usize,
    runs: usize,
    dir: PathBuf,
}

impl Plan {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Plan> {
        let mut plan = Plan {
            len_mib: 256,
            runs: 5,
            dir: std::env::temp_dir(),
        };
        while let Some(arg) = args.next() {
            let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
            match arg.as_str() {
                "--len" => plan.len_mib = value.parse()?,
                "--runs" => plan.runs = value.parse()?,
                "--dir" => plan.dir = PathBuf::from(value),
                _ => return Err(format!("what is {arg}?").into()),
            }
        }
        Ok(plan)
    }

    fn measure(&self) -> Result<()> {
        println!(
            "{} MiB of records, {} runs; median (least to greatest)\n",
            self.len_mib, self.runs
        );
        println!(
            "| values | per batch | written, MB/s | copied and applied, MB/s | to its writes | \
             read warm, MB/s | to that | read cold, MB/s | to that |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for (n, row) in ROWS.iter().enumerate() {
            let mut columns: [Vec<f64>; 7] = Default::default();
            for _ in 0..self.runs {
                for (column, value) in columns.iter_mut().zip(self.run(n)?) {
                    column.push(value);
                }
            }
            let [written, copied, to_writes, warm, to_warm, cold, to_cold] = columns;
            println!(
                "| {} B | {} | {} | {} | {} | {} | {} | {} | {} |",
                row.value_len,
                row.batch_count,
                spread(written, 0),
                spread(copied, 0),
                spread(to_writes, 2),
                spread(warm, 0),
                spread(to_warm, 2),
                spread(cold, 0),
                spread(to_cold, 2)
            );
        }
        Ok(())
    }

    fn run(&self, row: usize) -> Result<[f64; 7]> {
        let dir = tempfile::tempdir_in(&self.dir)?;
        let (ours, theirs) = (dir.path().join("leader"), dir.path().join("follower"));
        let row = row.to_string();
        let words = ["lead", &row, &self.len_mib.to_string()];
        let mut leader = Started::new(&words, &ours)?;
        let written = Figures::of(&leader.line()?)?;
        let address = leader.line()?;
        let len = written.len;
        let copied = {
            let words = ["follow", &row, &address, &written.last_seq.to_string()];
            let mut follower = Started::new(&words, &theirs)?;
            follower.line()?.parse::<f64>()?
        };
        drop(leader);
        let files = log_files(&ours)?;
        let rate = |len: u64, secs: f64| len as f64 / secs / 1e6;
        let (written, copied) = (rate(len, written.secs), rate(len, copied));
        let read = |is_cold: bool| -> Result<f64> {
            prepare(&files, is_cold)?;
            let started = Instant::now();
            let len = read_all(&files)?;
            Ok(rate(len, started.elapsed().as_secs_f64()))
        };
        let (warm, cold) = (read(false)?, read(true)?);
        let (to_writes, to_warm, to_cold) = (copied / written, copied / warm, copied / cold);
        Ok([written, copied, to_writes, warm, to_warm, cold, to_cold])
    }
}

fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (least, greatest) = (values[0], values[values.len() - 1]);
    let median = values[values.len() / 2];
    format!("{median:.digits$} ({least:.digits$} to {greatest:.digits$})")
}

/// What a leader wrote.
struct Figures {
    secs: f64,
    len: u64,
    last_seq: u64,
}

impl Figures {
    fn of(line: &str) -> Result<Figures> {
        let words: Vec<&str> = line.split(' ').collect();
        let [secs, len, last_seq] = words[..] else {
            return Err(format!("three numbers, not {line}").into());
        };
        Ok(Figures {
            secs: secs.parse()?,
            len: len.parse()?,
            last_seq: last_seq.parse()?,
        })
    }
}

/// Every log segment below a directory.
fn log_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            found.extend(log_files(&path)?);
        } else if name.starts_with("wal-") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read_all(files: &[PathBuf]) -> Result<u64> {
    let mut buf = vec![0; 1 << 20];
    let mut len = 0;
    for path in files {
        let mut file = File::open(path)?;
        loop {
            let count = black_box(file.read(&mut buf)?);
            if count == 0 {
                break;
            }
            len += count as u64;
        }
    }
    Ok(len)
}

/// Brings the files into the page cache, or drops them from it.
fn prepare(files: &[PathBuf], is_cold: bool) -> Result<()> {
    for path in files {
        let file = File::open(path)?;
        // Only what is on the disk can be dropped, and nothing is written back while a clock runs.
        file.sync_all()?;
        if is_cold {
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    if !is_cold {
        read_all(files)?;
    }
    Ok(())
}

/// This program, started again with other words; killed when it is dropped.
struct Started {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Started {
    fn new(words: &[&str], dir: &Path) -> Result<Started> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(words)
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().ok_or("a pipe")?);
        Ok(Started { child, output })
    }

    fn line(&mut self) -> Result<String> {
        let line = (&mut self.output).lines().next();
        Ok(line.ok_or("the process ended before its time")??)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // It may have ended by itself; its directory is removed either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait_for_the_kill() -> ! {
    loop {
        std::thread::park();
    }
}

/// Holds this process to one core. Threads that are started later are held with it.
fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

fn options() -> Options {
    Options {
        durability: Durability::Os,
        memtable_len_max: 4 << 30,
        settle_after: None,
        ..Options::default()
    }
}

/// A process of its own: writes, tells how long that took, serves, and waits for its end.
fn lead(row: &Row, len_mib: usize, dir: &Path) -> Result<()> {
    pin(0)?;
    let database = options().open(dir)?;
    let dataset = database.dataset("")?;
    let map = database.keyspace("map")?;
    let values = Values::new(row.value_len);
    let count = (len_mib << 20) / (row.value_len + 16);
    let keys = keys(1, count);
    let started = Instant::now();
    for (first, keys) in (0..)
        .step_by(row.batch_count)
        .zip(keys.chunks(row.batch_count))
    {
        if let [key] = keys {
            map.put(key, values.value(first, row.value_len))?;
            continue;
        }
        let mut batch = dataset.batch();
        for (n, key) in (first..).zip(keys) {
            batch.put(&map, key, values.value(n, row.value_len))?;
        }
        batch.commit()?;
    }
    let secs = started.elapsed().as_secs_f64();
    dataset.sync()?;
    let last_seq = dataset.positions()[0].seq;
    println!("{secs} {} {last_seq}", count * (row.value_len + 16));
    let server = database.serve("127.0.0.1:0")?;
    println!("{}", server.address());
    wait_for_the_kill()
}

/// A process of its own: follows until it shows everything, and tells how long that took.
fn follow(address: &str, last_seq: u64, dir: &Path) -> Result<()> {
    pin(1)?;
    let database = options().open(dir)?;
    let started = Instant::now();
    let following = database.follow(address, "")?;
    loop {
        let status = following.status();
        let is_there = status
            .positions
            .first()
            .is_some_and(|end| end.seq >= last_seq);
        if is_there && status.apply_lag == 0 {
            break;
        }
        if started.elapsed() > PATIENCE {
            return Err(format!("it has not caught up: {status:?}").into());
        }
        std::thread::sleep(PAUSE);
    }
    println!("{}", started.elapsed().as_secs_f64());
    wait_for_the_kill()
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["lead", row, len_mib, dir] => lead(
            &ROWS[row.parse::<usize>()?],
            len_mib.parse()?,
            Path::new(dir),
        ),
        ["follow", _, address, last_seq, dir] => follow(address, last_seq.parse()?, Path::new(dir)),
        _ => Plan::parse(args.into_iter())?.measure(),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("catchup: {error}");
            ExitCode::FAILURE
        }
    }
}
