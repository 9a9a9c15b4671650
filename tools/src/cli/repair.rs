//! `repair` and `checkpoint`: a damaged database mended by another node's copy of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use strandline::repair::{RepairReport, RepairedDataset, repair, repair_from_by};
use strandline_wal::io::Env;

use super::links::LinkArgs;
use crate::failure::{Exit, Result};
use crate::{open, text};

/// `strandline repair`
#[derive(Args)]
pub struct Repair {
    /// The damaged database directory, which nobody may have open
    dir: PathBuf,
    /// Address of the node that leads; its logs are fetched
    #[arg(
        long,
        value_name = "PEER",
        required_unless_present = "copy",
        conflicts_with = "copy"
    )]
    from: Option<String>,
    #[command(flatten)]
    links: LinkArgs,
    /// Directory of an intact copy: a checkpoint of another node, or its closed database
    #[arg(long, value_name = "DIR")]
    copy: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Repair {
    pub(super) fn run(self) -> Result<Exit> {
        let env = Env::real_pread();
        let report = match (&self.from, &self.copy) {
            (Some(peer), _) => repair_from_by(
                &self.dir,
                std::slice::from_ref(peer),
                &self.links.read()?,
                &env,
            )?,
            (None, copy) => {
                let copy = copy.as_deref().unwrap_or(Path::new(""));
                repair(&self.dir, copy, &env)?
            }
        };
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{:#}", document(&report))?,
            false => print(&mut out, &report)?,
        }
        match report.problems.is_empty() {
            true => Ok(Exit::Ok),
            false => Ok(Exit::Problems),
        }
    }
}

fn print(out: &mut impl Write, report: &RepairReport) -> Result<()> {
    for dataset in &report.datasets {
        writeln!(out, "dataset {}", dataset.id)?;
        for segment in &dataset.segments {
            for range in &segment.ranges {
                let (path, from, to) = (segment.path.display(), range.start, range.end);
                writeln!(out, "  mended {path} bytes {from} to {to}")?;
            }
        }
        for table in &dataset.tables {
            writeln!(out, "  replaced {}", table.display())?;
        }
        if dataset.is_replaced {
            writeln!(out, "  manifest and tables are those of the copy")?;
        }
        for note in &dataset.notes {
            writeln!(out, "  note {note}")?;
        }
    }
    for problem in &report.problems {
        let at = problem.at.map_or(String::new(), |at| format!(" byte {at}"));
        writeln!(
            out,
            "still damaged: {}{at}: {}",
            problem.path.display(),
            problem.what
        )?;
    }
    match (report.problems.is_empty(), report.repair_count()) {
        (true, 0) => writeln!(out, "nothing was damaged")?,
        (true, count) => writeln!(
            out,
            "{}, and it verifies",
            text::plural(count as u64, "repair")
        )?,
        (false, _) => writeln!(out, "the copy does not have this intact either")?,
    }
    Ok(())
}

fn document(report: &RepairReport) -> Value {
    let segment = |segment: &strandline::repair::RepairedSegment| {
        let ranges = segment
            .ranges
            .iter()
            .map(|range| json!([range.start, range.end]));
        json!({
            "path": segment.path.display().to_string(),
            "ranges": ranges.collect::<Vec<Value>>(),
        })
    };
    let dataset = |dataset: &RepairedDataset| {
        let tables = dataset.tables.iter().map(|path| path.display().to_string());
        json!({
            "name": dataset.id.as_str(),
            "segments": dataset.segments.iter().map(segment).collect::<Vec<Value>>(),
            "tables": tables.collect::<Vec<String>>(),
            "is_replaced": dataset.is_replaced,
            "notes": dataset.notes,
        })
    };
    let problem = |problem: &strandline::verify::Problem| {
        json!({
            "path": problem.path.display().to_string(),
            "at": problem.at,
            "what": problem.what,
        })
    };
    json!({
        "datasets": report.datasets.iter().map(dataset).collect::<Vec<Value>>(),
        "repair_count": report.repair_count(),
        "problems": report.problems.iter().map(problem).collect::<Vec<Value>>(),
    })
}

/// `strandline checkpoint`
#[derive(Args)]
pub struct Checkpoint {
    /// The database directory
    dir: PathBuf,
    /// The directory of the checkpoint, which must not exist
    #[arg(long, value_name = "NEW")]
    into: PathBuf,
}

impl Checkpoint {
    pub(super) fn run(self) -> Result<Exit> {
        let env = Env::real_pread();
        let datasets = open::datasets(&env, &self.dir)?;
        let mut options = open::stored_options(&env, &self.dir)?;
        options.create = false;
        let database = options.open(&self.dir)?;
        for (id, _) in &datasets {
            open::dataset(&database, id.as_str())?;
        }
        let report = database.checkpoint(&self.into)?;
        database.close()?;
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{} in {} linked and {} copied files",
            text::len(report.len),
            report.linked_count,
            report.copied_count
        )?;
        Ok(Exit::Ok)
    }
}
