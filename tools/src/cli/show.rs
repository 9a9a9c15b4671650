//! `stats`, `status` and `verify`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use strandline::stats::DatasetStats;
use strandline_wal::io::Env;

use crate::failure::{Exit, Result};
use crate::{inspect, open, text};

/// `strandline stats`
#[derive(Args)]
pub struct Stats {
    /// The database directory
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Stats {
    pub(super) fn run(self) -> Result<Exit> {
        let database = open::reader(&self.dir)?;
        let stats = database.stats();
        let mut out = std::io::stdout().lock();
        if self.json {
            let datasets: Vec<_> = stats.datasets.iter().map(stats_json).collect();
            writeln!(out, "{:#}", json!({ "datasets": datasets }))?;
            return Ok(Exit::Ok);
        }
        for (dataset, open) in stats.datasets.iter().zip(database.datasets()) {
            let names: Vec<String> = open
                .keyspaces()
                .iter()
                .map(|keyspace| text::show(keyspace.name().as_bytes()))
                .collect();
            stats_text(&mut out, dataset, &names)?;
        }
        Ok(Exit::Ok)
    }
}

fn stats_text(out: &mut dyn Write, stats: &DatasetStats, keyspaces: &[String]) -> Result<()> {
    writeln!(out, "dataset {}", stats.name)?;
    writeln!(out, "  keyspaces    {}", keyspaces.join(", "))?;
    let seqs: Vec<String> = stats.last_seqs.iter().map(|n| text::count(*n)).collect();
    writeln!(out, "  records      {}", seqs.join(" + "))?;
    let (count, len) = (stats.segment_count as u64, text::len(stats.segment_len));
    writeln!(
        out,
        "  log          {}, {len}",
        text::plural(count, "segment")
    )?;
    let (count, len) = (stats.table_count as u64, text::len(stats.table_len));
    let runs = text::plural(stats.run_count as u64, "run");
    let tables = text::plural(count, "table");
    writeln!(out, "  tables       {tables} in {runs}, {len}")?;
    let entries = text::count(stats.table_entry_count);
    writeln!(
        out,
        "  entries      {entries}, old versions and tombstones included"
    )?;
    let live = text::len(stats.live_value_len);
    writeln!(out, "  large values {live} live in the log")?;
    let unflushed = text::len(stats.unflushed_len);
    writeln!(
        out,
        "  unflushed    {unflushed} of log are not in tables yet"
    )?;
    Ok(())
}

fn stats_json(stats: &DatasetStats) -> serde_json::Value {
    json!({
        "name": stats.name,
        "last_seqs": stats.last_seqs,
        "keyspace_count": stats.keyspace_count,
        "segment_count": stats.segment_count,
        "segment_len": stats.segment_len,
        "table_count": stats.table_count,
        "table_len": stats.table_len,
        "run_count": stats.run_count,
        "table_entry_count": stats.table_entry_count,
        "live_value_len": stats.live_value_len,
        "unflushed_len": stats.unflushed_len,
    })
}

/// `strandline verify`
#[derive(Args)]
pub struct Verify {
    /// The database directory
    dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(super) fn run(self) -> Result<Exit> {
        let env = Env::real_pread();
        open::datasets(&env, &self.dir)?;
        inspect::verify::run(&env, &self.dir, false, self.json, &mut |_| {})
    }
}

/// `strandline scrub`
#[derive(Args)]
pub struct Scrub {
    /// The database directory, which a process may have open
    dir: PathBuf,
    /// Bytes to read in a second
    #[arg(long, default_value_t = 16 << 20, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Scrub {
    pub(super) fn run(self) -> Result<Exit> {
        let env = Env::real_pread();
        open::datasets(&env, &self.dir)?;
        let mut ahead = Duration::ZERO;
        let mut pace = |len: usize| {
            ahead += Duration::from_secs_f64(len as f64 / self.rate as f64);
            if ahead >= AHEAD {
                std::thread::sleep(std::mem::take(&mut ahead));
            }
        };
        inspect::verify::run(&env, &self.dir, false, self.json, &mut pace)
    }
}

/// Time that a scrub is ahead of its rate before it waits.
const AHEAD: Duration = Duration::from_millis(10);
