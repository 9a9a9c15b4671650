//! `walinspect dump`: batches and records of the log, filtered, and on as the log grows.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufWriter, StdoutLock, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use strandline::ShardId;
use strandline_wal::batch::{Kind, Record, flags};
use strandline_wal::io::{Disk, Env};

use super::Where;
use super::record::{self, Names};
use super::store::{DatasetFiles, SegmentFile, SegmentName};
use super::walk::{Found, StoredBatch, Walk};
use crate::failure::{Exit, Failure, Result};
use crate::text;

/// How long `--follow` waits before it looks again.
const POLL: Duration = Duration::from_millis(100);
/// Bytes of a value that are shown without `--values`.
const VALUE_LEN_SHOWN: usize = 60;

/// `walinspect dump`
#[derive(Args)]
pub struct Dump {
    #[command(flatten)]
    place: Where,
    /// Only records from this sequence on; an epoch before it, as in 2/100, is allowed
    #[arg(long, value_name = "SEQ", value_parser = position)]
    from: Option<u64>,
    /// Only records up to this sequence
    #[arg(long, value_name = "SEQ", value_parser = position)]
    to: Option<u64>,
    /// Only the log of this shard
    #[arg(long, value_name = "N")]
    shard: Option<u16>,
    /// Only records of this keyspace
    #[arg(long, short, value_name = "NAME")]
    keyspace: Option<String>,
    /// Only records whose key starts with this
    #[arg(long, value_name = "KEY")]
    prefix: Option<OsString>,
    /// Only records of this kind
    #[arg(long, value_enum, value_name = "KIND")]
    kind: Option<KindName>,
    /// At most this many records
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print values as a whole
    #[arg(long)]
    values: bool,
    /// Go on as the log grows, until interrupted
    #[arg(long, short)]
    follow: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindName {
    Put,
    Delete,
    Control,
}

fn position(text: &str) -> Result<u64, String> {
    let seq = text.rsplit('/').next().unwrap_or(text);
    seq.parse()
        .map_err(|_| "not a position: a sequence as 100, or epoch and sequence as 2/100".to_owned())
}

/// The filters, made ready.
struct Filter {
    seqs: std::ops::RangeInclusive<u64>,
    keyspace: Option<String>,
    prefix: Option<Vec<u8>>,
    kind: Option<Kind>,
}

impl Filter {
    fn takes(&self, seq: u64, record: &Record<'_>, names: &Names) -> bool {
        if !self.seqs.contains(&seq) || self.kind.is_some_and(|kind| kind != record.kind) {
            return false;
        }
        if self.keyspace.is_none() && self.prefix.is_none() {
            return true;
        }
        let Some((number, key)) = record::split(record.head) else {
            return false;
        };
        let is_in = |wanted: &String| names.get(&number) == Some(wanted);
        record.kind != Kind::Control
            && self.keyspace.as_ref().is_none_or(is_in)
            && self
                .prefix
                .as_ref()
                .is_none_or(|prefix| key.starts_with(prefix))
    }
}

/// What is printed, and whether it goes on.
struct Printer<'a> {
    dump: &'a Dump,
    filter: Filter,
    names: Names,
    dataset: String,
    out: BufWriter<StdoutLock<'static>>,
    left: u64,
    exit: Exit,
}

impl Dump {
    pub(super) fn run(self, env: &Env) -> Result<Exit> {
        let datasets = self.place.datasets(env)?;
        if self.follow && datasets.len() > 1 {
            return Err(Failure::usage(
                "--follow shows one dataset: name it with --dataset",
            ));
        }
        let prefix = self.prefix.as_deref().map(text::parse).transpose()?;
        let mut left = self.limit.unwrap_or(u64::MAX);
        let mut exit = Exit::Ok;
        for dataset in &datasets {
            let filter = Filter {
                seqs: self.from.unwrap_or(0)..=self.to.unwrap_or(u64::MAX),
                keyspace: self.keyspace.clone(),
                prefix: prefix.clone(),
                kind: self.kind.map(|kind| match kind {
                    KindName::Put => Kind::Put,
                    KindName::Delete => Kind::Delete,
                    KindName::Control => Kind::Control,
                }),
            };
            let mut printer = Printer {
                dump: &self,
                filter,
                names: dataset.keyspaces(env.disk.as_ref()),
                dataset: dataset.id.to_string(),
                out: BufWriter::new(std::io::stdout().lock()),
                left,
                exit,
            };
            let mut tails = Tails::default();
            tails.look(env, dataset, &mut printer)?;
            printer.out.flush()?;
            while self.follow && printer.left > 0 {
                std::thread::sleep(POLL);
                let again = self.place.datasets(env)?;
                let Some(dataset) = again.iter().find(|other| other.id == dataset.id) else {
                    break;
                };
                tails.look(env, dataset, &mut printer)?;
                printer.out.flush()?;
            }
            (left, exit) = (printer.left, printer.exit);
        }
        Ok(exit)
    }
}

/// How far each log has been shown.
#[derive(Default)]
struct Tails {
    shards: BTreeMap<ShardId, Tail>,
}

struct Tail {
    /// The segment that is shown, and the place in it.
    first_seq: u64,
    walk: Walk,
    is_ended: bool,
}

impl Tails {
    /// Shows what has come since the last look.
    fn look(&mut self, env: &Env, dataset: &DatasetFiles, printer: &mut Printer<'_>) -> Result<()> {
        let only = printer.dump.shard.map(ShardId);
        for shard in dataset.shards() {
            if only.is_none_or(|only| only == shard) {
                self.shard(env.disk.as_ref(), dataset, shard, printer)?;
            }
        }
        Ok(())
    }

    fn shard(
        &mut self,
        disk: &dyn Disk,
        dataset: &DatasetFiles,
        shard: ShardId,
        printer: &mut Printer<'_>,
    ) -> Result<()> {
        let segments: Vec<&SegmentName> = dataset.segments_of(shard).collect();
        for (n, name) in segments.iter().enumerate() {
            let next = segments.get(n + 1);
            let from = printer.filter.seqs.start();
            let is_before = next.is_some_and(|next| next.first_seq <= *from);
            let shown = self.shards.get(&shard).map_or(0, |tail| tail.first_seq);
            if is_before || name.first_seq < shown {
                continue;
            }
            if name.first_seq > *printer.filter.seqs.end() || printer.left == 0 {
                break;
            }
            if name.first_seq != shown {
                match SegmentFile::open(disk, name) {
                    Ok(segment) => {
                        let tail = Tail {
                            first_seq: name.first_seq,
                            walk: segment.walk(),
                            is_ended: false,
                        };
                        self.shards.insert(shard, tail);
                    }
                    // Recycled or removed since the directory was read.
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => {
                        printer.problem(name, None, &error)?;
                        continue;
                    }
                }
            }
            if let Some(tail) = self.shards.get_mut(&shard) {
                tail.show(name, next.is_none(), printer)?;
            }
        }
        Ok(())
    }
}

impl Tail {
    fn show(&mut self, name: &SegmentName, is_last: bool, printer: &mut Printer<'_>) -> Result<()> {
        if self.is_ended {
            return Ok(());
        }
        self.walk.forget();
        while printer.left > 0 {
            match self.walk.step()? {
                Found::Batch(stored) => printer.batch(name, &stored)?,
                Found::End => {
                    self.is_ended = !is_last;
                    break;
                }
                Found::Damage(damage) => {
                    printer.problem(name, Some(self.walk.at()), &damage)?;
                    self.is_ended = true;
                    break;
                }
            }
        }
        Ok(())
    }
}

impl Printer<'_> {
    fn batch(&mut self, name: &SegmentName, stored: &StoredBatch) -> Result<()> {
        let header = &stored.header;
        let seqs = &self.filter.seqs;
        if header.last_seq() < *seqs.start() || header.first_seq > *seqs.end() {
            return Ok(());
        }
        let batch = stored.batch();
        let mut is_told = false;
        for (record, seq) in batch.records().zip(header.first_seq..) {
            let record = match record {
                Ok(record) => record,
                Err(damage) => return self.problem(name, Some(stored.at), &damage),
            };
            if let Some((number, keyspace)) = strandline::keyspace_created(&record) {
                self.names.insert(number, keyspace.to_owned());
            }
            if self.left == 0 || !self.filter.takes(seq, &record, &self.names) {
                continue;
            }
            self.left -= 1;
            match self.dump.place.json {
                true => self.record_json(name, stored, seq, &record)?,
                false => {
                    if !is_told {
                        self.batch_line(name, stored)?;
                        is_told = true;
                    }
                    let value_len_max = match self.dump.values {
                        true => usize::MAX,
                        false => VALUE_LEN_SHOWN,
                    };
                    let line = record::line(&record, &self.names, value_len_max);
                    writeln!(self.out, "  {seq} {line}")?;
                }
            }
        }
        Ok(())
    }

    fn batch_line(&mut self, name: &SegmentName, stored: &StoredBatch) -> Result<()> {
        let header = &stored.header;
        let mut marks = String::new();
        if header.flags & flags::CONTROL != 0 {
            marks.push_str(" control");
        }
        if header.flags & flags::CROSS_SHARD != 0 {
            marks.push_str(" cross-shard");
        }
        let (file, at) = (super::store::file_name(&name.path), stored.at);
        let (epoch, first, last) = (header.epoch, header.first_seq, header.last_seq());
        let (time, version) = (text::time(header.timestamp), header.timestamp);
        let (shard, len) = (name.shard, text::len(header.batch_len() as u64));
        writeln!(
            self.out,
            "batch {epoch}/{first}..={last} shard {shard} {file} @{at} {len} {time} v{version}{marks}"
        )?;
        Ok(())
    }

    fn record_json(
        &mut self,
        name: &SegmentName,
        stored: &StoredBatch,
        seq: u64,
        record: &Record<'_>,
    ) -> Result<()> {
        let mut object = record::object(record, &self.names, self.dump.values);
        for (field, value) in [
            ("dataset", Value::from(self.dataset.as_str())),
            ("log", name.shard.0.into()),
            ("seq", seq.into()),
            ("epoch", stored.header.epoch.0.into()),
            ("version", stored.header.timestamp.0.into()),
            ("time", text::time(stored.header.timestamp).into()),
            ("file", super::store::file_name(&name.path).into()),
            ("at", stored.at.into()),
        ] {
            object.insert(field.to_owned(), value);
        }
        writeln!(self.out, "{}", Value::from(object))?;
        Ok(())
    }

    fn problem(
        &mut self,
        name: &SegmentName,
        at: Option<u64>,
        what: &dyn std::fmt::Display,
    ) -> Result<()> {
        self.exit = Exit::Problems;
        let path = name.path.display().to_string();
        match (self.dump.place.json, at) {
            (true, at) => {
                let line = json!({ "problem": what.to_string(), "file": path, "at": at });
                writeln!(self.out, "{line}")?;
            }
            (false, Some(at)) => writeln!(self.out, "{path} @{at}: {what}")?,
            (false, None) => writeln!(self.out, "{what}")?,
        }
        Ok(())
    }
}
