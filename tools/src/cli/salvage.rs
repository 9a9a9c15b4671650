//! `salvage`: what is good in a damaged database, as a new one.

use std::io::Write;
use std::ops::Bound;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use strandline::salvage::{KeyPlace, Lost, LostWhat, SalvageReport, salvage};
use strandline_wal::io::Env;

use crate::failure::{Exit, Result};
use crate::text;

/// `strandline salvage`
#[derive(Args)]
pub struct Salvage {
    /// The damaged database directory, which is only read
    dir: PathBuf,
    /// The directory of the new database, which must not exist
    #[arg(long, value_name = "NEW")]
    into: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Salvage {
    pub(super) fn run(self) -> Result<Exit> {
        let report = salvage(&self.dir, &self.into, &Env::real_pread())?;
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{:#}", document(&report))?,
            false => print(&mut out, &report)?,
        }
        match report.is_whole() {
            true => Ok(Exit::Ok),
            false => Ok(Exit::Problems),
        }
    }
}

fn print(out: &mut impl Write, report: &SalvageReport) -> Result<()> {
    for dataset in &report.datasets {
        let keys = text::plural(dataset.key_count, "key");
        let batches = text::count(dataset.batch_count);
        writeln!(
            out,
            "dataset {}: {keys} saved; intact batches in its logs: {batches}",
            dataset.id
        )?;
        for lost in &dataset.lost {
            let at = lost.at.map_or(String::new(), |at| format!(" byte {at}"));
            let (path, why) = (lost.path.display(), &lost.why);
            writeln!(out, "  lost {}\n    {path}{at}: {why}", range(&lost.what))?;
        }
        for note in &dataset.notes {
            writeln!(out, "  note {note}")?;
        }
    }
    match report.is_whole() {
        true => writeln!(out, "nothing is lost")?,
        false => writeln!(out, "what is listed as lost is not in the new database")?,
    }
    Ok(())
}

fn range(what: &LostWhat) -> String {
    match what {
        LostWhat::Records {
            shard,
            first_seq,
            last_seq,
        } => format!("records {first_seq} to {last_seq} of shard {shard}"),
        LostWhat::Keys { from, to } => {
            let edge = |bound: &Bound<KeyPlace>, none: &str| match bound {
                Bound::Unbounded => none.to_owned(),
                Bound::Included(at) => format!("{} {}", at.keyspace, text::show(&at.key)),
                Bound::Excluded(at) => {
                    format!("{} {} (not included)", at.keyspace, text::show(&at.key))
                }
            };
            let (from, to) = (edge(from, "the first"), edge(to, "the last"));
            format!("keys from {from} to {to}, as far as nothing newer was found")
        }
    }
}

fn document(report: &SalvageReport) -> Value {
    let dataset = |dataset: &strandline::salvage::SalvagedDataset| {
        json!({
            "name": dataset.id.as_str(),
            "key_count": dataset.key_count,
            "batch_count": dataset.batch_count,
            "lost": dataset.lost.iter().map(lost).collect::<Vec<Value>>(),
            "notes": dataset.notes,
        })
    };
    json!({ "datasets": report.datasets.iter().map(dataset).collect::<Vec<Value>>() })
}

fn lost(lost: &Lost) -> Value {
    let place = |bound: &Bound<KeyPlace>| match bound {
        Bound::Unbounded => Value::Null,
        Bound::Included(at) | Bound::Excluded(at) => {
            let is_included = matches!(bound, Bound::Included(_));
            json!({
                "keyspace": at.keyspace,
                "key_hex": text::hex(&at.key),
                "included": is_included,
            })
        }
    };
    let what = match &lost.what {
        LostWhat::Records {
            shard,
            first_seq,
            last_seq,
        } => json!({ "shard": shard.0, "first_seq": first_seq, "last_seq": last_seq }),
        LostWhat::Keys { from, to } => json!({ "from": place(from), "to": place(to) }),
    };
    json!({
        "path": lost.path.display().to_string(),
        "at": lost.at,
        "why": lost.why,
        "what": what,
    })
}
