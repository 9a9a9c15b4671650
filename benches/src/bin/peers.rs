//! Measures Strandline beside its peers, at equal durability and comparable memory.
//!
//! Engines take turns within every group of rows, so that a slow minute of the machine hits all of
//! them; who goes first and who goes before whom changes from run to run. Every trial starts in an
//! empty directory, with nothing left to be written back of the one before. Opening, settling,
//! closing and the check that all is there are not timed.
//!
//! `peers [--n COUNT] [--runs N] [--json FILE] [--svg DIR] [--dir DIR] [--touch MIB] [--only ENGINE]...
//! [--rows PART] [--cgroup DIR]`

#[path = "../peers/mod.rs"]
mod peers;

use std::hint::black_box;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use peers::engine::{Entrant, Result};
use peers::floor::Floor;
use peers::limited::Limit;
use peers::report::{self, Figures, Row};
use peers::rows::{GROUPS, Group, Place, Size, Unit};
use peers::{all, child, svg};

/// How much to measure, and where.
struct Plan {
    size: Size,
    runs: usize,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
    cgroup: PathBuf,
    dir: PathBuf,
    touch_mib: usize,
    only: Vec<String>,
    rows: String,
}

impl Plan {
    fn parse(mut args: impl Iterator<Item = String>) -> std::result::Result<Plan, String> {
        let mut plan = Plan {
            size: Size { count: 200_000 },
            runs: 5,
            json: None,
            svg: None,
            cgroup: PathBuf::from("/sys/fs/cgroup"),
            dir: std::env::temp_dir(),
            touch_mib: TOUCH_MIB,
            only: Vec::new(),
            rows: String::new(),
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--n" => plan.size.count = number(&value()?)?,
                "--runs" => plan.runs = number(&value()?)?,
                "--json" => plan.json = Some(PathBuf::from(value()?)),
                "--svg" => plan.svg = Some(PathBuf::from(value()?)),
                "--cgroup" => plan.cgroup = PathBuf::from(value()?),
                "--dir" => plan.dir = PathBuf::from(value()?),
                "--touch" => plan.touch_mib = number(&value()?)?,
                "--rows" => plan.rows = value()?,
                "--only" => plan.only.push(value()?),
                _ => return Err(format!("what is {arg}?")),
            }
        }
        let known: Vec<&str> = all().iter().map(|entrant| entrant.name).collect();
        let only = &plan.only;
        if let Some(name) = only.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("{name} is none of {known:?}"));
        }
        if !GROUPS.iter().any(|group| group.has(&plan.rows)) {
            return Err(format!("no row has \"{}\" in its name", plan.rows));
        }
        Ok(plan)
    }

    /// Ours, always and first, and the peers that were asked for.
    fn entrants(&self) -> Vec<Entrant> {
        let is_asked = |entrant: &Entrant| {
            self.only.is_empty() || self.only.iter().any(|name| name == entrant.name)
        };
        let mut entrants = all();
        let peers = entrants.split_off(1);
        entrants.extend(peers.into_iter().filter(is_asked));
        entrants
    }

    fn measure(&self) -> Result<()> {
        let entrants = self.entrants();
        println!("n = {}, {} runs\n", self.size.count, self.runs);
        for entrant in &entrants {
            println!("- {}: {}", entrant.name, entrant.settings);
        }
        println!();
        touch_memory(self.touch_mib);
        let floor = Floor::measure(&self.dir, &self.size)?;
        floor.print();
        report::print_head(&entrants);
        let mut rows = Vec::new();
        for (at, group) in GROUPS.iter().enumerate() {
            if group.has(&self.rows) {
                let more = self.measure_group(at, group, &entrants)?;
                report::print(&more);
                rows.extend(more);
                // Hours may lie behind, and what comes may fail.
                self.write(&entrants, &floor, &rows)?;
            }
        }
        if let Some(mean) = report::mean_ratio(&rows, "YCSB") {
            println!("\nYCSB, geometric mean of ours to the best peer: {mean:.2}");
        }
        Ok(())
    }

    /// Writes what was measured so far into the files that were asked for.
    fn write(&self, entrants: &[Entrant], floor: &Floor, rows: &[Row]) -> Result<()> {
        if let Some(dir) = &self.svg {
            svg::write(rows, dir)?;
        }
        if let Some(path) = &self.json {
            let settings: serde_json::Map<String, serde_json::Value> = entrants
                .iter()
                .map(|entrant| (entrant.name.to_owned(), json!(entrant.settings)))
                .collect();
            let rows: Vec<_> = rows.iter().map(Row::json).collect();
            let report = json!({
                "n": self.size.count, "runs": self.runs, "settings": settings,
                "floor": floor.json(), "rows": rows,
            });
            std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
        }
        Ok(())
    }

    fn measure_group(
        &self,
        number: usize,
        group: &Group,
        entrants: &[Entrant],
    ) -> Result<Vec<Row>> {
        let limit = match group.place {
            Place::Limited => match Limit::new(&self.cgroup, &self.size) {
                Ok(limit) => Some(limit),
                Err(reason) => {
                    eprintln!("{}: left out: {reason}", group.rows[0].0);
                    return Ok(Vec::new());
                }
            },
            Place::Here | Place::Child => None,
        };
        let limit = limit.as_ref().map(|limit| limit.dir.as_path());
        // By engine, then by row, then by run.
        let mut figures = vec![vec![Vec::new(); group.rows.len()]; entrants.len()];
        let mut floors = vec![Vec::new(); group.rows.len()];
        for run in 0..self.runs {
            let dir = tempfile::tempdir_in(&self.dir)?;
            for (floors, floor) in floors.iter_mut().zip(group.floor(dir.path(), &self.size)?) {
                floors.push(floor);
            }
            dir.close()?;
            rustix::fs::sync();
            for turn in 0..entrants.len() {
                let at = turn_of(run, turn, entrants.len());
                let dir = tempfile::tempdir_in(&self.dir)?;
                let (entrant, path, size) = (&entrants[at], dir.path(), &self.size);
                let found = match group.place {
                    Place::Here => group.run(entrant, path, size).map(Some),
                    Place::Child | Place::Limited => {
                        child::figures(number, entrant, path, size, limit)
                    }
                };
                let found = found.map_err(|error| format!("{}: {error}", entrant.name))?;
                let found = found.unwrap_or_else(|| {
                    eprintln!("{}: killed by its limit of memory", entrant.name);
                    vec![f64::NAN; group.rows.len()]
                });
                for (figures, figure) in figures[at].iter_mut().zip(found) {
                    figures.push(figure);
                }
                // Nobody pays for the disk's work on what another one left.
                dir.close()?;
                rustix::fs::sync();
            }
            eprintln!("{}: run {} of {}", group.rows[0].0, run + 1, self.runs);
        }
        let row = |(at, &(name, unit)): (usize, &(&'static str, Unit))| Row {
            name,
            unit,
            engines: entrants
                .iter()
                .zip(&figures)
                .map(|(entrant, figures)| (entrant.name, Figures::new(figures[at].clone())))
                .collect(),
            machine: Figures::new(floors[at].clone()),
        };
        Ok(group.rows.iter().enumerate().map(row).collect())
    }
}

/// Whose turn it is: the first one rotates, and every other run goes round the other way, so that
/// nobody always comes behind the same neighbour.
fn turn_of(run: usize, turn: usize, count: usize) -> usize {
    let turn = if run.is_multiple_of(2) {
        turn
    } else {
        count - turn
    };
    (run + turn) % count
}

/// Writes to memory and gives it back. A virtual machine gets its memory page by page at the first
/// touch, which takes seconds per GiB: whoever measures first would pay for it.
fn touch_memory(mib: usize) {
    let mut memory = vec![0u8; mib << 20];
    for byte in memory.iter_mut().step_by(4096) {
        *byte = 1;
    }
    black_box(&memory);
}

/// More than one trial of the default size needs.
const TOUCH_MIB: usize = 4 << 10;

fn number(text: &str) -> std::result::Result<usize, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("{text} is not a positive number"))
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match &args[..] {
        [first, words @ ..] if first == child::WORD => child::run(words),
        _ => match Plan::parse(args.into_iter()) {
            Ok(plan) => plan.measure(),
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(2);
            }
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
