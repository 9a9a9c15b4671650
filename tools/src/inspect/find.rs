//! `walinspect find`: every place that a key lives in, in the log and in tables.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};
use strandline::files;
use strandline::table::{
    BlockCache, Cursor, InternalKey, OpenOptions, Table, TableMeta, ValueSource,
};
use strandline_wal::io::{Disk, Env};

use super::Where;
use super::record;
use super::store::{DatasetFiles, SegmentFile, SegmentName, file_name};
use super::walk::Found;
use crate::failure::{Exit, Failure, Result};
use crate::open::KEYSPACE;
use crate::text;

/// `walinspect find`
#[derive(Args)]
pub struct Find {
    #[command(flatten)]
    place: Where,
    /// The key: text, or hex: and digits
    key: OsString,
    /// The keyspace
    #[arg(long, short, default_value = KEYSPACE, value_name = "NAME")]
    keyspace: String,
}

/// What was found, as a line and as an object.
struct Places {
    lines: Vec<String>,
    objects: Vec<Value>,
    problems: Vec<String>,
}

impl Find {
    pub(super) fn run(self, env: &Env) -> Result<Exit> {
        let disk = env.disk.as_ref();
        let key = text::parse(&self.key)?;
        let mut places = Places {
            lines: Vec::new(),
            objects: Vec::new(),
            problems: Vec::new(),
        };
        for dataset in self.place.datasets(env)? {
            let names = dataset.keyspaces(disk);
            let number = names.iter().find(|(_, name)| **name == self.keyspace);
            let Some((number, _)) = number else {
                continue;
            };
            let mut name = number.to_be_bytes().to_vec();
            name.extend_from_slice(&key);
            for segment in &dataset.segments {
                places.segment(disk, &dataset, segment, &name)?;
            }
            let runs = dataset.manifest.iter().flat_map(|m| m.runs.iter());
            for (run, tables) in runs.enumerate() {
                for table in tables.iter().filter(|table| table.spans(&name)) {
                    places.table(disk, &dataset, run, table, &name);
                }
            }
        }
        let mut out = std::io::stdout().lock();
        if self.place.json {
            let document = json!({ "places": places.objects, "problems": places.problems });
            writeln!(out, "{document:#}")?;
        } else {
            for line in &places.lines {
                writeln!(out, "{line}")?;
            }
            for problem in &places.problems {
                eprintln!("{problem}");
            }
        }
        if places.lines.is_empty() && !self.place.json {
            let (key, keyspace) = (text::show(&key), &self.keyspace);
            return Err(Failure::problems(format!(
                "no place holds key {key} of keyspace {keyspace}"
            )));
        }
        match places.lines.is_empty() || !places.problems.is_empty() {
            true => Ok(Exit::Problems),
            false => Ok(Exit::Ok),
        }
    }
}

impl Places {
    fn segment(
        &mut self,
        disk: &dyn Disk,
        dataset: &DatasetFiles,
        segment: &SegmentName,
        name: &[u8],
    ) -> Result<()> {
        let open = match SegmentFile::open(disk, segment) {
            Ok(open) => open,
            Err(error) => {
                self.problems.push(error.to_string());
                return Ok(());
            }
        };
        let mut walk = open.walk();
        let file = file_name(&segment.path);
        loop {
            let stored = match walk.step()? {
                Found::Batch(stored) => stored,
                Found::End => return Ok(()),
                Found::Damage(damage) => {
                    let (path, at) = (segment.path.display(), walk.at());
                    self.problems.push(format!("{path} @{at}: {damage}"));
                    return Ok(());
                }
            };
            let seqs = stored.header.first_seq..;
            for (record, seq) in stored.batch().records().flatten().zip(seqs) {
                if record.head != name || record.kind == strandline_wal::batch::Kind::Control {
                    continue;
                }
                let kind = record::kind_name(record.kind);
                let value_at =
                    stored.at + (strandline_wal::batch::HEADER_LEN + record.body_at) as u64;
                let (epoch, len) = (stored.header.epoch, record.body.len());
                let version = stored.header.timestamp;
                self.lines.push(format!(
                    "log   {file} @{value_at} position {epoch}/{seq} version {version} {kind} {len} bytes"
                ));
                self.objects.push(json!({
                    "place": "log",
                    "dataset": dataset.id.as_str(),
                    "file": file,
                    "at": value_at,
                    "epoch": epoch.0,
                    "seq": seq,
                    "shard": segment.shard.0,
                    "version": version.0,
                    "kind": kind,
                    "value_len": len,
                }));
            }
        }
    }

    fn table(
        &mut self,
        disk: &dyn Disk,
        dataset: &DatasetFiles,
        run: usize,
        meta: &TableMeta,
        name: &[u8],
    ) {
        let path = files::table(&dataset.dir, meta.identity.number);
        let options = OpenOptions::new(Arc::new(BlockCache::new(1 << 20)));
        let table = match Table::open(disk, &path, Some(meta), &options) {
            Ok(table) => table,
            Err(error) => return self.problems.push(error.to_string()),
        };
        let mut cursor = table.cursor_once();
        cursor.seek(InternalKey::first_of(name));
        while cursor.is_valid() && cursor.key().name == name {
            let version = cursor.key().version;
            let (what, pointer) = value_text(&cursor.value());
            let file = file_name(&path);
            self.lines
                .push(format!("table {file} run {run} version {version} {what}"));
            self.objects.push(json!({
                "place": "table",
                "dataset": dataset.id.as_str(),
                "file": file,
                "run": run,
                "version": version.0,
                "value": what,
                "pointer": pointer,
            }));
            cursor.next();
        }
        if let Err(error) = cursor.status() {
            self.problems.push(error.to_string());
        }
    }
}

fn value_text(value: &ValueSource<'_>) -> (String, Value) {
    match value {
        ValueSource::Bytes(bytes) => (format!("put {} bytes here", bytes.len()), Value::Null),
        ValueSource::Absent => ("delete".to_owned(), Value::Null),
        ValueSource::Pointer(pointer) => {
            let file = strandline_wal::segment::path_of(Path::new(""), pointer.shard, pointer.file);
            let file = file_name(&file);
            let (at, len) = (pointer.offset, pointer.len);
            let object = json!({ "file": file, "at": at, "len": len, "crc": pointer.crc });
            (format!("put {len} bytes at {file} @{at}"), object)
        }
        ValueSource::Log(place) => {
            let file =
                strandline_wal::segment::path_of(Path::new(""), place.shard, place.first_seq);
            let file = file_name(&file);
            let (at, len) = (place.offset, place.len);
            let object = json!({ "file": file, "at": at, "len": len });
            (format!("put {len} bytes at {file} @{at}"), object)
        }
    }
}
