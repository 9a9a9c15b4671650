//! `walinspect ls`: every segment and every table, with what its head and its end say.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};
use strandline::files;
use strandline::table::{PointerSource, TableMeta};
use strandline_wal::io::{Disk, Env};

use super::Where;
use super::store::{DatasetFiles, SegmentFile, SegmentName, file_name};
use super::walk::Found;
use crate::failure::{Exit, Result};
use crate::text;

/// `walinspect ls`
#[derive(Args)]
pub struct Ls {
    #[command(flatten)]
    place: Where,
}

/// One segment as a line.
struct Row {
    file: String,
    shard: u16,
    first_seq: u64,
    /// `first_seq - 1` where it is empty.
    last_seq: u64,
    epoch: u32,
    state: String,
    len: u64,
    live_len: u64,
    is_damaged: bool,
}

impl Ls {
    pub(super) fn run(self, env: &Env) -> Result<Exit> {
        let mut exit = Exit::Ok;
        let mut documents = Vec::new();
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for dataset in self.place.datasets(env)? {
            let written = dataset.segments.iter();
            let written = written.map(|segment| row(env.disk.as_ref(), &dataset, segment));
            let unwritten = dataset.unwritten.iter().map(unwritten);
            let mut rows: Vec<Row> = written.chain(unwritten).collect();
            rows.sort_by_key(|row| (row.shard, row.first_seq));
            let is_damaged = dataset.manifest.is_err() || rows.iter().any(|row| row.is_damaged);
            if is_damaged {
                exit = Exit::Problems;
            }
            match self.place.json {
                true => documents.push(document(&dataset, &rows)),
                false => print(&mut out, &dataset, &rows)?,
            }
        }
        if self.place.json {
            writeln!(out, "{:#}", json!({ "datasets": documents }))?;
        }
        out.flush()?;
        Ok(exit)
    }
}

fn unwritten(name: &SegmentName) -> Row {
    Row {
        file: file_name(&name.path),
        shard: name.shard.0,
        first_seq: name.first_seq,
        last_seq: name.first_seq - 1,
        epoch: 0,
        state: "growing; not written out yet".to_owned(),
        len: 0,
        live_len: 0,
        is_damaged: false,
    }
}

fn row(disk: &dyn Disk, dataset: &DatasetFiles, name: &SegmentName) -> Row {
    let tables = dataset.manifest.iter().flat_map(|m| m.tables());
    let live_len = tables
        .flat_map(|table| &table.files)
        .filter(|file| {
            file.source == PointerSource::Segment
                && (file.shard, file.file) == (name.shard, name.first_seq)
        })
        .map(|file| file.live_len)
        .sum();
    let mut row = Row {
        file: file_name(&name.path),
        shard: name.shard.0,
        first_seq: name.first_seq,
        last_seq: name.first_seq - 1,
        epoch: 0,
        state: "growing".to_owned(),
        len: disk.stat(&name.path).map_or(0, |stat| stat.len),
        live_len,
        is_damaged: false,
    };
    let segment = match SegmentFile::open(disk, name) {
        Ok(segment) => segment,
        Err(error) => return row.damaged(&error),
    };
    row.epoch = segment.header.epoch.0;
    match &segment.footer {
        Some(Ok(footer)) => {
            row.state = "sealed".to_owned();
            row.last_seq = footer.last_seq;
        }
        Some(Err(error)) => return row.damaged(error),
        None => {
            let mut walk = segment.walk();
            loop {
                match walk.step() {
                    Ok(Found::Batch(batch)) => row.last_seq = batch.header.last_seq(),
                    Ok(Found::End) => break,
                    Ok(Found::Damage(damage)) => {
                        row.state = format!("growing; at byte {}: {damage}", walk.at());
                        break;
                    }
                    Err(error) => return row.damaged(&error),
                }
            }
        }
    }
    row
}

impl Row {
    fn damaged(self, error: &strandline_wal::Error) -> Row {
        Row {
            state: format!("damaged: {error}"),
            is_damaged: true,
            ..self
        }
    }

    fn records(&self) -> String {
        match self.last_seq < self.first_seq {
            true => format!("{}..", self.first_seq),
            false => format!("{}..={}", self.first_seq, self.last_seq),
        }
    }
}

fn print(out: &mut dyn Write, dataset: &DatasetFiles, rows: &[Row]) -> Result<()> {
    writeln!(out, "dataset {}", dataset.id)?;
    match &dataset.manifest {
        Ok(manifest) => writeln!(
            out,
            "  manifest generation {}, lineage {}, {}, {}",
            manifest.generation,
            text::hex(&manifest.lineage),
            manifest.router,
            manifest.entity_rule
        )?,
        Err(error) => writeln!(out, "  {error}")?,
    }
    let headings = [
        "segment",
        "shard",
        "records",
        "epoch",
        "bytes",
        "live values",
        "state",
    ];
    let lines: Vec<[String; 7]> = rows
        .iter()
        .map(|row| {
            [
                row.file.clone(),
                row.shard.to_string(),
                row.records(),
                row.epoch.to_string(),
                text::len(row.len),
                text::len(row.live_len),
                row.state.clone(),
            ]
        })
        .collect();
    columns(out, headings, &lines)?;
    let Ok(manifest) = &dataset.manifest else {
        return Ok(());
    };
    let headings = [
        "table",
        "run",
        "entries",
        "tombstones",
        "bytes",
        "from",
        "to",
    ];
    let runs = manifest.runs.iter().enumerate();
    let lines: Vec<[String; 7]> = runs
        .flat_map(|(run, tables)| tables.iter().map(move |table| (run, table)))
        .map(|(run, table)| {
            [
                file_name(&files::table(&dataset.dir, table.identity.number)),
                run.to_string(),
                text::count(table.entry_count),
                text::count(table.tombstone_count),
                text::len(table.len),
                text::preview(&table.name_min, 24),
                text::preview(&table.name_max, 24),
            ]
        })
        .collect();
    columns(out, headings, &lines)
}

/// Prints lines with their fields below each other, two spaces in.
pub(super) fn columns<const N: usize>(
    out: &mut dyn Write,
    headings: [&str; N],
    lines: &[[String; N]],
) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut widths = headings.map(|heading| heading.chars().count());
    for line in lines {
        for (width, field) in widths.iter_mut().zip(line) {
            *width = (*width).max(field.chars().count());
        }
    }
    let headings = headings.map(str::to_owned);
    for line in std::iter::once(&headings).chain(lines) {
        let mut shown = String::new();
        for (field, width) in line.iter().zip(widths) {
            shown.push_str("  ");
            shown.push_str(field);
            shown.extend(std::iter::repeat_n(' ', width - field.chars().count()));
        }
        writeln!(out, "{}", shown.trim_end())?;
    }
    Ok(())
}

fn document(dataset: &DatasetFiles, rows: &[Row]) -> Value {
    let segments: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "file": row.file,
                "shard": row.shard,
                "first_seq": row.first_seq,
                "last_seq": row.last_seq,
                "epoch": row.epoch,
                "state": row.state,
                "len": row.len,
                "live_value_len": row.live_len,
            })
        })
        .collect();
    let manifest = dataset.manifest.as_ref().ok();
    let table = |run: usize, table: &TableMeta| {
        json!({
            "file": file_name(&files::table(&dataset.dir, table.identity.number)),
            "run": run,
            "entry_count": table.entry_count,
            "tombstone_count": table.tombstone_count,
            "len": table.len,
            "name_min_hex": text::hex(&table.name_min),
            "name_max_hex": text::hex(&table.name_max),
            "version_min": table.version_min.0,
            "version_max": table.version_max.0,
        })
    };
    let tables: Vec<Value> = manifest
        .iter()
        .flat_map(|manifest| manifest.runs.iter().enumerate())
        .flat_map(|(run, tables)| tables.iter().map(move |meta| (run, meta)))
        .map(|(run, meta)| table(run, meta))
        .collect();
    json!({
        "name": dataset.id.as_str(),
        "lineage": manifest.map(|manifest| text::hex(&manifest.lineage)),
        "generation": manifest.map(|manifest| manifest.generation),
        "manifest_error": dataset.manifest.as_ref().err().map(ToString::to_string),
        "segments": segments,
        "tables": tables,
    })
}
