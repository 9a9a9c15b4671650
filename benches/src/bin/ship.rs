//! Measures Strandline's shipping to one follower, beside PostgreSQL's streaming replication and redis'
//! PSYNC with WAIT, at equal durability: every write is synced on the leader, and by level on the follower.
//!
//! Systems take turns within a run, each with a leader and a follower made anew, all on this machine.
//! Ours is a library: its clients are threads of the leader's process; those of the servers are threads
//! with a connection each. A server that is not installed is left out with a notice.
//!
//! `ship [--runs N] [--millis MS] [--clients N] [--dir DIR] [--json FILE]`

#[path = "../ship/mod.rs"]
mod ship;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strandline::Durability;
use strandline_benches::random::Random;
use strandline_wal::batch::HEADER_LEN;

use ship::ours::{self, Ours};
use ship::postgres::{self, Postgres};
use ship::redis::{self, Redis};
use ship::relay::Relay;
use ship::system::{Level, Result, STAMP_KEY, System, VALUE_LEN, stamp};

/// Who is measured, ours first.
const SYSTEMS: [(&str, &str); 3] = [
    (
        "strandline",
        "one shard, nothing flushed; Disk, Received(1), Durable(1), Applied(1); TCP over loopback",
    ),
    ("postgresql", postgres::SETTINGS),
    ("redis", redis::SETTINGS),
];

/// How long an idle pair is looked at.
const IDLE: Duration = Duration::from_secs(10);
/// Writes whose arrival a reader waits for.
const WAIT_COUNT: usize = 2_000;

struct Plan {
    runs: usize,
    time: Duration,
    clients: usize,
    dir: PathBuf,
    json: Option<PathBuf>,
}

impl Plan {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Plan> {
        let mut plan = Plan {
            runs: 5,
            time: Duration::from_secs(2),
            clients: 32,
            dir: std::env::temp_dir(),
            json: None,
        };
        while let Some(arg) = args.next() {
            let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
            match arg.as_str() {
                "--runs" => plan.runs = value.parse()?,
                "--millis" => plan.time = Duration::from_millis(value.parse()?),
                "--clients" => plan.clients = value.parse()?,
                "--dir" => plan.dir = value.into(),
                "--json" => plan.json = Some(value.into()),
                _ => return Err(format!("what is {arg}?").into()),
            }
        }
        match plan.runs > 0 && plan.clients > 0 && !plan.time.is_zero() {
            true => Ok(plan),
            false => Err("runs, clients and milliseconds are at least 1".into()),
        }
    }

    fn measure(&self) -> Result<()> {
        println!("{} runs; median (least to greatest)\n", self.runs);
        let mut table = Table::default();
        for run in 0..self.runs {
            for turn in 0..SYSTEMS.len() {
                let system = (run + turn) % SYSTEMS.len();
                let dir = tempfile::tempdir_in(&self.dir)?;
                let home = dir.path().join("pair");
                std::fs::create_dir(&home)?;
                if let Err(error) = self.pair(system, &home, &mut table) {
                    match system {
                        0 => return Err(error),
                        _ => eprintln!("NOTICE: {} left out: {error}", SYSTEMS[system].0),
                    }
                }
                rustix::fs::sync();
            }
            let dir = tempfile::tempdir_in(&self.dir)?;
            self.alone(dir.path(), &mut table)?;
            eprintln!("run {} of {}", run + 1, self.runs);
        }
        for (name, settings) in SYSTEMS {
            println!("- {name}: {settings}");
        }
        println!();
        table.print();
        if let Some(path) = &self.json {
            let settings: serde_json::Map<String, Value> = SYSTEMS
                .iter()
                .map(|(name, settings)| ((*name).to_owned(), json!(settings)))
                .collect();
            let report = json!({"runs": self.runs, "settings": settings, "rows": table.json()});
            std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
        }
        Ok(())
    }

    /// What all systems do.
    fn pair(&self, system: usize, dir: &Path, table: &mut Table) -> Result<()> {
        let pair: Box<dyn System> = match system {
            0 => Box::new(Ours::start(dir)?),
            1 => Box::new(Postgres::start(dir)?),
            _ => Box::new(Redis::start(dir)?),
        };
        let mut add = |row: String, unit, figure| table.add(row, unit, system, figure);
        let mut alone = Duration::ZERO;
        for level in Level::ALL {
            let name = level.name();
            let Some(latencies) = self.clients(pair.as_ref(), level, 1)? else {
                continue;
            };
            if level == Level::Async {
                alone = self.time / u32::try_from(latencies.len().max(1))?;
            }
            add(
                format!("{name}: put, 1 client, p50"),
                Unit::Micros,
                micros(&latencies, 0.5),
            );
            add(
                format!("{name}: put, 1 client, p99"),
                Unit::Micros,
                micros(&latencies, 0.99),
            );
            let many = self
                .clients(pair.as_ref(), level, self.clients)?
                .unwrap_or_default();
            let count = self.clients;
            let rate = many.len() as f64 / self.time.as_secs_f64();
            add(format!("{name}: puts, {count} clients"), Unit::Rate, rate);
            add(
                format!("{name}: put, {count} clients, p99"),
                Unit::Micros,
                micros(&many, 0.99),
            );
        }
        let ages = self.lag(pair.as_ref(), alone * 2)?;
        add(
            "lag at half load, p50".to_owned(),
            Unit::Micros,
            micros(&ages, 0.5),
        );
        add(
            "lag at half load, p99".to_owned(),
            Unit::Micros,
            micros(&ages, 0.99),
        );
        Ok(())
    }

    /// Nanoseconds of each put by so many clients, in order of length.
    fn clients(&self, pair: &dyn System, level: Level, count: usize) -> Result<Option<Vec<u64>>> {
        let mut writers = Vec::new();
        for _ in 0..count {
            let Some(writer) = pair.writer(level)? else {
                return Ok(None);
            };
            writers.push(writer);
        }
        let started = Instant::now();
        let one = |(n, mut writer): (usize, Box<dyn ship::system::Writer>)| {
            // Keys of other levels and runs may come again: then they are overwritten.
            let mut random = Random::new(100 + n as u64);
            let (mut latencies, value) = (Vec::new(), [0x5a; VALUE_LEN]);
            while started.elapsed() < self.time {
                let key = random.key();
                let start = Instant::now();
                writer.put(&key, &value)?;
                latencies.push(u64::try_from(start.elapsed().as_nanos())?);
            }
            Ok(latencies)
        };
        let found: Vec<Result<Vec<u64>>> = std::thread::scope(|scope| {
            let one = &one;
            let writers = writers.into_iter().enumerate();
            let threads: Vec<_> = writers.map(|each| scope.spawn(move || one(each))).collect();
            let threads = threads.into_iter();
            threads
                .map(|thread| thread.join().expect("a client does not panic"))
                .collect()
        });
        let mut latencies: Vec<u64> = found.into_iter().collect::<Result<Vec<_>>>()?.concat();
        latencies.sort_unstable();
        Ok(Some(latencies))
    }

    /// How old writes are when the follower's readers see them, one written in each `pause`.
    fn lag(&self, pair: &dyn System, pause: Duration) -> Result<Vec<u64>> {
        let mut writer = pair.writer(Level::Async)?.ok_or("a writer")?;
        let time = self.time;
        let ages = std::thread::scope(|scope| {
            let writing = scope.spawn(move || -> Result<()> {
                let (start, mut n) = (Instant::now(), 0);
                while start.elapsed() < time {
                    writer.put(&STAMP_KEY, &stamp())?;
                    n += 1;
                    std::thread::sleep((pause * n).saturating_sub(start.elapsed()));
                }
                Ok(())
            });
            let ages = pair.watch(time);
            writing.join().expect("a writer does not panic")?;
            ages
        });
        let mut ages = ages?;
        ages.sort_unstable();
        match ages.is_empty() {
            true => Err("the follower showed nothing".into()),
            false => Ok(ages),
        }
    }

    /// What is ours alone.
    fn alone(&self, dir: &Path, table: &mut Table) -> Result<()> {
        let mut add = |row: &str, unit, figure| table.add(row.to_owned(), unit, 0, figure);
        // Followers wait for tokens while the same load goes on.
        let ours = Ours::start(&dir.join("waits"))?;
        let latencies = self.clients(&ours, Level::Async, 1)?.ok_or("latencies")?;
        let pause = self.time / u32::try_from(latencies.len().max(1))? * 2;
        let ages = self.lag(&ours, pause)?;
        let mut waits = ours.waits(WAIT_COUNT, pause)?;
        waits.sort_unstable();
        add(
            "read your writes: wait, p50",
            Unit::Micros,
            micros(&waits, 0.5),
        );
        add(
            "read your writes: wait, p99",
            Unit::Micros,
            micros(&waits, 0.99),
        );
        let over = micros(&waits, 0.99) - micros(&ages, 0.99);
        add("read your writes: wait over lag, p99", Unit::Micros, over);
        drop(ours);

        // Bytes, by a relay that counts them.
        for (name, batch) in [("1 per batch", 1), ("100 per batch", 100)] {
            let dir = dir.join(format!("wire-{batch}"));
            let ours = Ours::lead(&dir.join("leader"))?;
            let relay = Relay::to(ours.address())?;
            ours.follow(&relay.address, &dir.join("follower"), None)?;
            fill(&ours, batch, Duration::MAX, 200_000 / batch)?;
            ours.map
                .put_with(STAMP_KEY, stamp(), Durability::Applied(1))?;
            let sent = relay.back.len.load(Relaxed) as f64;
            if batch == 1 {
                let count = |count: &ship::relay::Count| {
                    (count.pieces.load(Relaxed), count.len.load(Relaxed))
                };
                let before = (count(&relay.there), count(&relay.back));
                std::thread::sleep(IDLE);
                let after = (count(&relay.there), count(&relay.back));
                let secs = IDLE.as_secs_f64();
                let pieces = (after.1.0 - before.1.0) as f64 / secs;
                add("idle: pieces to a follower", Unit::PerSecond, pieces);
                let pieces = (after.0.0 - before.0.0) as f64 / secs;
                add("idle: pieces from a follower", Unit::PerSecond, pieces);
                let len = (after.0.1 + after.1.1 - before.0.1 - before.1.1) as f64 / secs;
                add("idle: bytes both ways", Unit::PerSecond, len);
            }
            // The memtable covers all of it, and counts no heads.
            let stats = ours.dataset.stats();
            let log_len = stats.unflushed_len + stats.batch_count * HEADER_LEN as u64;
            let name = format!("bytes sent to bytes of log, {name}");
            add(&name, Unit::Times, sent / log_len as f64);
        }

        // The leader on one core, the follower on the other, against the leader on its core alone.
        for (name, batch) in [("1 per batch", 1), ("100 per batch", 100)] {
            let mut rates = [0.0; 2];
            for (followed, rate) in rates.iter_mut().enumerate() {
                let dir = dir.join(format!("pinned-{batch}-{followed}"));
                let work = || -> Result<f64> {
                    ours::pin(0)?;
                    let ours = Ours::lead(&dir.join("leader"))?;
                    if followed == 1 {
                        ours.follow(&ours.address(), &dir.join("follower"), Some(1))?;
                    }
                    fill(&ours, batch, self.time, usize::MAX)
                };
                *rate = std::thread::scope(|scope| {
                    scope.spawn(work).join().expect("a leader does not panic")
                })?;
                rustix::fs::sync();
            }
            let [none, one] = rates;
            add(
                &format!("Os puts, nobody follows, {name}"),
                Unit::Rate,
                none,
            );
            add(&format!("Os puts, one follows, {name}"), Unit::Rate, one);
            add(
                &format!("one follows to nobody, {name}"),
                Unit::Times,
                one / none,
            );
        }
        Ok(())
    }
}

/// Writes batches at `Os`, so many or for so long. Puts per second.
fn fill(ours: &Ours, batch_count: usize, time: Duration, most: usize) -> Result<f64> {
    let mut random = Random::new(7);
    let value = [0x5a; VALUE_LEN];
    let (start, mut n) = (Instant::now(), 0);
    while n < most && (n % 64 != 0 || start.elapsed() < time) {
        if batch_count == 1 {
            ours.map.put_with(random.key(), value, Durability::Os)?;
        } else {
            let mut batch = ours.dataset.batch();
            for _ in 0..batch_count {
                batch.put(&ours.map, random.key(), value)?;
            }
            batch.commit_with(Durability::Os)?;
        }
        n += 1;
    }
    Ok((n * batch_count) as f64 / start.elapsed().as_secs_f64())
}

/// The quantile of what is in order, in microseconds.
fn micros(sorted: &[u64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part) as usize;
    match sorted.get(at.min(sorted.len().saturating_sub(1))) {
        Some(nanos) => *nanos as f64 / 1e3,
        None => f64::NAN,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Micros,
    Rate,
    PerSecond,
    Times,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Micros => "µs",
            Unit::Rate | Unit::PerSecond => "per s",
            Unit::Times => "times",
        }
    }
}

/// A row: its name, its unit, and per system what each run found.
struct Row {
    name: String,
    unit: Unit,
    figures: [Vec<f64>; SYSTEMS.len()],
}

#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn add(&mut self, name: String, unit: Unit, system: usize, figure: f64) {
        let at = self
            .0
            .iter()
            .position(|row| row.name == name)
            .unwrap_or_else(|| {
                let figures = Default::default();
                self.0.push(Row {
                    name,
                    unit,
                    figures,
                });
                self.0.len() - 1
            });
        self.0[at].figures[system].push(figure);
    }

    fn print(&self) {
        println!(
            "| row | unit | strandline | postgresql | redis | ours to postgresql | ours to redis |"
        );
        println!("|---|---|---:|---:|---:|---:|---:|");
        for row in &self.0 {
            print!("| {} | {} |", row.name, row.unit.name());
            for figures in &row.figures {
                print!(" {} |", spread(figures));
            }
            for peer in 1..SYSTEMS.len() {
                match row.ratio(peer) {
                    Some(ratio) => print!(" {ratio:.2} |"),
                    None => print!(" |"),
                }
            }
            println!();
        }
    }

    fn json(&self) -> Vec<Value> {
        let rows = self.0.iter().map(|row| {
            let systems: serde_json::Map<String, Value> = SYSTEMS
                .iter()
                .zip(&row.figures)
                .map(|((name, _), figures)| ((*name).to_owned(), json!(figures)))
                .collect();
            json!({"row": row.name, "unit": row.unit.name(), "systems": systems})
        });
        rows.collect()
    }
}

impl Row {
    /// The median of ours to that of a peer.
    fn ratio(&self, peer: usize) -> Option<f64> {
        Some(median(&self.figures[0])? / median(&self.figures[peer])?)
    }
}

fn sorted(figures: &[f64]) -> Vec<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

fn median(figures: &[f64]) -> Option<f64> {
    sorted(figures).get(figures.len() / 2).copied()
}

fn spread(figures: &[f64]) -> String {
    let sorted = sorted(figures);
    let (Some(middle), Some(least), Some(greatest)) =
        (median(figures), sorted.first(), sorted.last())
    else {
        return "none".to_owned();
    };
    let digits = if *greatest < 100.0 { 3 } else { 0 };
    format!("{middle:.digits$} ({least:.digits$} to {greatest:.digits$})")
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        [ours::WORD, ref words @ ..] => ours::follower(words),
        _ => Plan::parse(args.into_iter())?.measure(),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ship: {error}");
            ExitCode::FAILURE
        }
    }
}
