//! `walinspect header`: the bytes at the head and the end of a file, field by field.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value, json};
use strandline::Hlc;
use strandline::manifest::Manifest;
use strandline_wal::batch::{BatchHeader, HEADER_LEN};
use strandline_wal::io::{Access, Env, File, read_exact_at};
use strandline_wal::segment::{Footer, SEGMENT_HEADER_LEN, SegmentHeader, TRAILER_LEN};

use super::layout::{self, Field, Shape};
use crate::failure::{Exit, Failure, Result};
use crate::text;

/// `walinspect header`
#[derive(Args)]
pub struct Header {
    /// A segment, a table or a manifest
    file: PathBuf,
    /// Of a segment: the batch at this byte instead of the first one
    #[arg(long, value_name = "BYTE")]
    at: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

const TABLE_MAGIC: [u8; 8] = *b"\x8eSLtable";
const MANIFEST_MAGIC: [u8; 4] = *b"SDLM";
const SEGMENT_MAGIC: [u8; 4] = *b"SDLS";
const TABLE_HEADER_LEN: usize = 64;
const TABLE_FOOTER_LEN: usize = 96;
const MANIFEST_HEADER_LEN: usize = 64;

/// A part of a file: its fields and what is to be said of it.
struct Part {
    name: &'static str,
    at: u64,
    bytes: Vec<u8>,
    fields: &'static [Field],
    notes: Vec<String>,
    problem: Option<String>,
}

impl Header {
    pub(super) fn run(self, env: &Env) -> Result<Exit> {
        let path = &self.file;
        let refused = |error: std::io::Error| Failure::io(format!("{}: {error}", path.display()));
        let file = env.disk.open(path, Access::Read).map_err(refused)?;
        let len = file.len().map_err(refused)?;
        let reader = Reader {
            file: file.as_ref(),
            path,
            len,
        };
        let magic = reader.part(0, 8.min(len))?;
        let is = |expected: &[u8]| magic.starts_with(expected);
        let parts = match () {
            () if is(&SEGMENT_MAGIC) => reader.segment(self.at)?,
            () if is(&TABLE_MAGIC) => reader.table()?,
            () if is(&MANIFEST_MAGIC) => reader.manifest(env)?,
            () => {
                let (path, magic) = (path.display(), text::hex(&magic));
                return Err(Failure::problems(format!(
                    "{path} starts with {magic}: no segment, table or manifest of this version"
                )));
            }
        };
        let mut out = std::io::stdout().lock();
        match self.json {
            true => {
                let parts: Vec<Value> = parts.iter().map(Part::document).collect();
                writeln!(
                    out,
                    "{:#}",
                    json!({ "path": path, "len": len, "parts": parts })
                )?;
            }
            false => {
                writeln!(out, "{}: {} bytes", path.display(), text::count(len))?;
                parts.iter().try_for_each(|part| part.print(&mut out))?;
            }
        }
        match parts.iter().any(|part| part.problem.is_some()) {
            true => Ok(Exit::Problems),
            false => Ok(Exit::Ok),
        }
    }
}

struct Reader<'a> {
    file: &'a dyn File,
    path: &'a Path,
    len: u64,
}

impl Reader<'_> {
    /// The bytes at a place, fewer where the file ends before.
    fn part(&self, at: u64, len: u64) -> Result<Vec<u8>> {
        let len = len.min(self.len.saturating_sub(at));
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        read_exact_at(self.file, &mut bytes, at)
            .map_err(|error| Failure::io(format!("read {}: {error}", self.path.display())))?;
        Ok(bytes)
    }

    fn segment(&self, batch_at: Option<u64>) -> Result<Vec<Part>> {
        let bytes = self.part(0, SEGMENT_HEADER_LEN as u64)?;
        let header = SegmentHeader::decode(&bytes, self.path);
        let nonce = header.as_ref().map_or(0, |header| header.nonce);
        let mut parts = vec![Part {
            name: "segment header",
            at: 0,
            bytes,
            fields: layout::SEGMENT_HEADER,
            notes: header.iter().map(|h| format!("log {}", h.log)).collect(),
            problem: header.err().map(|error| error.to_string()),
        }];
        let at = batch_at.unwrap_or(SEGMENT_HEADER_LEN as u64);
        let bytes = self.part(at, HEADER_LEN as u64)?;
        let is_asked_for = batch_at.is_some();
        if is_asked_for || bytes.iter().any(|byte| *byte != 0) {
            let batch = BatchHeader::decode(&bytes);
            parts.push(Part {
                name: "batch header",
                at,
                bytes,
                fields: layout::BATCH_HEADER,
                notes: batch
                    .iter()
                    .map(|(header, _)| {
                        let (first, last) = (header.first_seq, header.last_seq());
                        let next = at + header.batch_len() as u64;
                        format!("records {first}..={last}; the next batch is at byte {next}")
                    })
                    .collect(),
                problem: batch.err().map(|damage| damage.to_string()),
            });
        }
        let trailer_at = self.len.saturating_sub(TRAILER_LEN as u64);
        let trailer = self.part(trailer_at, TRAILER_LEN as u64)?;
        if let Some((data_len, _)) = Footer::peek(&trailer, nonce, self.len) {
            parts.push(self.footer(data_len, nonce, trailer_at, trailer)?);
        }
        Ok(parts)
    }

    fn footer(&self, data_len: u64, nonce: u32, at: u64, trailer: Vec<u8>) -> Result<Part> {
        let bytes = self.part(data_len, self.len - data_len)?;
        let footer = Footer::decode(&bytes, nonce, data_len, self.path);
        let notes = match &footer {
            Ok(footer) => vec![
                format!(
                    "records {}..={} in {} batches, epoch {}",
                    footer.first_seq, footer.last_seq, footer.batch_count, footer.last_epoch
                ),
                format!(
                    "from {} to {}",
                    text::time(footer.first_timestamp),
                    text::time(footer.last_timestamp)
                ),
                format!("digest {}", text::hex(&footer.digest)),
                format!("{} index entries", footer.index.len()),
            ],
            Err(_) => Vec::new(),
        };
        Ok(Part {
            name: "segment footer, trailer",
            at,
            bytes: trailer,
            fields: layout::SEGMENT_TRAILER,
            notes,
            problem: footer.err().map(|error| error.to_string()),
        })
    }

    fn table(&self) -> Result<Vec<Part>> {
        let header = self.part(0, TABLE_HEADER_LEN as u64)?;
        let footer_at = self.len.saturating_sub(TABLE_FOOTER_LEN as u64);
        let footer = self.part(footer_at, TABLE_FOOTER_LEN as u64)?;
        let part = |name, at, bytes: Vec<u8>, fields: &'static [Field], crc_at| Part {
            name,
            at,
            problem: crc_problem(&bytes, crc_at),
            bytes,
            fields,
            notes: Vec::new(),
        };
        Ok(vec![
            part("table header", 0, header, layout::TABLE_HEADER, 60),
            part("table footer", footer_at, footer, layout::TABLE_FOOTER, 88),
        ])
    }

    fn manifest(&self, env: &Env) -> Result<Vec<Part>> {
        let bytes = self.part(0, MANIFEST_HEADER_LEN as u64)?;
        let manifest = Manifest::read(env.disk.as_ref(), self.path);
        let notes = match &manifest {
            Ok(Some(manifest)) => manifest_notes(manifest),
            _ => Vec::new(),
        };
        Ok(vec![Part {
            name: "manifest header",
            at: 0,
            bytes,
            fields: layout::MANIFEST_HEADER,
            notes,
            problem: manifest.err().map(|error| error.to_string()),
        }])
    }
}

/// What is wrong with a checksum of everything before it.
fn crc_problem(bytes: &[u8], crc_at: usize) -> Option<String> {
    let stored = bytes.get(crc_at..).and_then(|rest| rest.first_chunk::<4>());
    let Some(stored) = stored.map(|stored| u32::from_le_bytes(*stored)) else {
        return Some(format!("only {} bytes", bytes.len()));
    };
    let computed = crc32fast::hash(&bytes[..crc_at]);
    (stored != computed)
        .then(|| format!("checksum: expected {computed:#010x}, found {stored:#010x}"))
}

fn manifest_notes(manifest: &Manifest) -> Vec<String> {
    let mut notes = vec![
        format!("dataset {} region {}", manifest.dataset, manifest.region),
        format!("lineage {}", text::hex(&manifest.lineage)),
        format!(
            "router {}, entities by {}",
            manifest.router, manifest.entity_rule
        ),
    ];
    for (shard, log) in manifest.logs.iter().enumerate() {
        let (position, complete) = (log.position, log.complete_seq);
        notes.push(format!(
            "shard {shard}: in tables up to {position}, complete up to {complete}"
        ));
    }
    for (number, name) in &manifest.keyspaces {
        let name = text::show(name.as_bytes());
        notes.push(format!("keyspace {number} is {name}"));
    }
    let (runs, tables) = (manifest.runs.len(), manifest.tables().count());
    notes.push(format!(
        "{tables} tables in {runs} runs, next file {}",
        manifest.next_file
    ));
    notes
}

impl Part {
    fn print(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(out, "{} at byte {}", self.name, self.at)?;
        for (at, len, name, shape) in self.fields {
            let Some(bytes) = self.bytes.get(*at..at + len) else {
                writeln!(
                    out,
                    "  {:>8}  {name}: the file ends before",
                    self.at + *at as u64
                )?;
                continue;
            };
            let place = self.at + *at as u64;
            let digits = match bytes.len() {
                0..=16 => text::hex(bytes),
                _ => format!("{}…", text::hex(&bytes[..15])),
            };
            writeln!(
                out,
                "  {place:>8}  {digits:<32}  {name} {}",
                meaning(bytes, *shape)
            )?;
        }
        for note in &self.notes {
            writeln!(out, "  {note}")?;
        }
        if let Some(problem) = &self.problem {
            writeln!(out, "  damaged: {problem}")?;
        }
        Ok(())
    }

    fn document(&self) -> Value {
        let mut fields = Map::new();
        for (at, len, name, shape) in self.fields {
            if *shape == Shape::Zeros {
                continue;
            }
            if let Some(bytes) = self.bytes.get(*at..at + len) {
                let value = match shape {
                    Shape::Number | Shape::Time => number(bytes).into(),
                    _ => meaning(bytes, *shape).into(),
                };
                fields.insert((*name).to_owned(), value);
            }
        }
        json!({
            "part": self.name,
            "at": self.at,
            "fields": fields,
            "notes": self.notes,
            "problem": self.problem,
        })
    }
}

fn number(bytes: &[u8]) -> u64 {
    let mut wide = [0; 8];
    wide[..bytes.len().min(8)].copy_from_slice(&bytes[..bytes.len().min(8)]);
    u64::from_le_bytes(wide)
}

fn meaning(bytes: &[u8], shape: Shape) -> String {
    match shape {
        Shape::Number => number(bytes).to_string(),
        Shape::Digits => format!("{:#0width$x}", number(bytes), width = bytes.len() * 2 + 2),
        Shape::Time => {
            let time = Hlc(number(bytes));
            format!("{time} = {}", text::time(time))
        }
        Shape::Text => {
            let end = bytes.iter().position(|byte| *byte == 0);
            text::show(&bytes[..end.unwrap_or(bytes.len())])
        }
        Shape::Bytes => text::hex(bytes),
        Shape::Zeros => match bytes.iter().all(|byte| *byte == 0) {
            true => "zeros".to_owned(),
            false => "not zeros".to_owned(),
        },
    }
}
