//! Measures the open of what a killed process left, beside one sequential read of the same log files.
//!
//! A process of its own writes until the log holds as much as was asked for and is killed with SIGKILL.
//! Each open is a process of its own too, timed from inside and killed once it is open: so the next one
//! finds the same. Reads and opens take turns. Warm: the files are in the page cache. Cold: they were
//! dropped from it before each read and each open.
//!
//! `recovery [--len MIB] [--runs N] [--dir DIR]`

use std::fs::File;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use rustix::fs::Advice;
use strandline::{Durability, Options};
use strandline_benches::{Values, keys};
use strandline_wal::batch::HEADER_LEN;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One kind of database that is left behind.
struct Row {
    value_len: usize,
    /// Whether no memtable is flushed, so that the whole log is replayed.
    is_unflushed: bool,
}

const ROWS: [Row; 4] = [
    Row {
        value_len: 100,
        is_unflushed: true,
    },
    Row {
        value_len: 4096,
        is_unflushed: true,
    },
    Row {
        value_len: 100,
        is_unflushed: false,
    },
    Row {
        value_len: 4096,
        is_unflushed: false,
    },
];

impl Row {
    fn options(&self) -> Options {
        let options = Options {
            settle_after: None,
            ..Options::default()
        };
        match self.is_unflushed {
            true => Options {
                memtable_len_max: 4 << 30,
                ..options
            },
            false => options,
        }
    }
}

struct Plan {
    len_mib: usize,
    runs: usize,
    dir: PathBuf,
}

impl Plan {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Plan> {
        let mut plan = Plan {
            len_mib: 1024,
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
            "{} MiB of log, {} runs; median (least to greatest)\n",
            self.len_mib, self.runs
        );
        println!(
            "| values | memtable | cache | log files | replayed | read, ms | open, ms | open / read |"
        );
        println!("|---|---|---|---|---|---|---|---|");
        for (n, row) in ROWS.iter().enumerate() {
            let dir = tempfile::tempdir_in(&self.dir)?;
            let words = ["write", &n.to_string(), &self.len_mib.to_string()];
            // Killed as soon as it says that it has written.
            heard(dir.path(), &words)?;
            let memtable = if row.is_unflushed { "all" } else { "default" };
            for (cache, is_cold) in [("warm", false), ("cold", true)] {
                let (mut reads, mut opens, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
                let (mut len, mut batch_count) = (0, String::new());
                for _ in 0..self.runs {
                    prepare(dir.path(), is_cold)?;
                    let started = Instant::now();
                    len = read_all(&log_files(dir.path())?)?;
                    reads.push(started.elapsed().as_secs_f64() * 1e3);
                    prepare(dir.path(), is_cold)?;
                    let line = heard(dir.path(), &["open", &n.to_string()])?;
                    let (open_ms, count) = line.split_once(' ').ok_or("two numbers")?;
                    opens.push(open_ms.parse::<f64>()?);
                    batch_count = count.to_owned();
                    ratios.push(opens[opens.len() - 1] / reads[reads.len() - 1]);
                }
                println!(
                    "| {} B | {memtable} | {cache} | {} MiB | {batch_count} | {} | {} | {} |",
                    row.value_len,
                    len >> 20,
                    spread(reads, 0),
                    spread(opens, 0),
                    spread(ratios, 2)
                );
            }
        }
        Ok(())
    }
}

fn spread(mut values: Vec<f64>, digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let (least, greatest) = (values[0], values[values.len() - 1]);
    let median = values[values.len() / 2];
    format!("{median:.digits$} ({least:.digits$} to {greatest:.digits$})")
}

/// Every log segment of the database.
fn log_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
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
fn prepare(dir: &Path, is_cold: bool) -> Result<()> {
    let files = log_files(dir)?;
    for path in &files {
        let file = File::open(path)?;
        // Only what is on the disk can be dropped, and nothing is written back while a clock runs.
        file.sync_all()?;
        if is_cold {
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        }
    }
    if !is_cold {
        read_all(&files)?;
    }
    Ok(())
}

/// Starts this program again with other words, hears one line, and kills it.
fn heard(dir: &Path, words: &[&str]) -> Result<String> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(words)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let line = line_of(&mut child);
    child.kill()?;
    child.wait()?;
    line
}

fn line_of(child: &mut Child) -> Result<String> {
    let output = child.stdout.take().ok_or("a pipe")?;
    let line = BufReader::new(output).lines().next();
    Ok(line.ok_or("the process ended before its time")??)
}

fn wait_for_the_kill() -> ! {
    loop {
        std::thread::park();
    }
}

/// A process of its own: writes and waits for its end.
fn write(row: &Row, len_mib: u64, dir: &Path) -> Result<()> {
    let database = row.options().open(dir)?;
    let dataset = database.dataset("")?;
    let map = database.keyspace("map")?;
    let values = Values::new(row.value_len);
    let mut random = 0;
    let log_len = || {
        let stats = dataset.stats();
        stats.payload_len + stats.batch_count * HEADER_LEN as u64
    };
    while log_len() < len_mib << 20 {
        random += 1;
        for (n, key) in keys(random, 10_000).iter().enumerate() {
            map.put_with(key, values.value(n, row.value_len), Durability::Os)?;
        }
    }
    println!("written");
    wait_for_the_kill()
}

/// A process of its own: opens and waits for its end.
fn open(row: &Row, dir: &Path) -> Result<()> {
    let options = row.options();
    let started = Instant::now();
    let database = options.open(dir)?;
    let took_ms = started.elapsed().as_secs_f64() * 1e3;
    let batch_count = database.dataset("")?.recovery().batch_count;
    println!("{took_ms} {batch_count}");
    wait_for_the_kill()
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["write", row, len_mib, dir] => write(
            &ROWS[row.parse::<usize>()?],
            len_mib.parse()?,
            Path::new(dir),
        ),
        ["open", row, dir] => open(&ROWS[row.parse::<usize>()?], Path::new(dir)),
        _ => Plan::parse(args.into_iter())?.measure(),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("recovery: {error}");
            ExitCode::FAILURE
        }
    }
}
