//! `walinspect diff`: the logs of two databases, byte by byte, up to where both have come.
//!
//! A leader alone decides how its log is laid out, so the segments of a follower are the same bytes.
//! What each node makes of them, its tables and manifests, is its own and not compared.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use strandline::{Position, ShardId};
use strandline_wal::io::{Disk, Env, read_exact_at};
use strandline_wal::{Epoch, IoContext};

use super::store::{self, DatasetFiles, SegmentFile, SegmentName, file_name};
use super::walk::Found;
use crate::failure::{Exit, Result};
use crate::text;

/// Bytes that are compared at once.
const BLOCK_LEN: usize = 1 << 20;

/// `walinspect diff`
#[derive(Args)]
pub struct Diff {
    /// One database directory
    a: PathBuf,
    /// The other one
    b: PathBuf,
    /// Only this dataset
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How two logs of one shard compare.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogDiff {
    /// The dataset.
    pub dataset: String,
    /// The shard.
    pub shard: ShardId,
    /// Where the first log ends.
    pub a_end: Position,
    /// Where the second log ends.
    pub b_end: Position,
    /// The last record up to which the bytes were compared and found the same.
    pub same_to: u64,
    /// Bytes that were compared.
    pub len: u64,
    /// Segments that were compared.
    pub segment_count: u64,
    /// Segments that one side has dropped, because all of them is in its tables.
    pub dropped_count: u64,
    /// The first difference, if there is one.
    pub difference: Option<String>,
}

impl LogDiff {
    /// Whether the logs are the same bytes up to where the shorter one ends.
    pub fn is_identical(&self) -> bool {
        self.difference.is_none()
    }
}

impl Diff {
    pub(super) fn run(self, env: &Env) -> Result<Exit> {
        let only = self.dataset.as_deref();
        let a = store::datasets(env, &self.a, only)?;
        let b = store::datasets(env, &self.b, only)?;
        let diffs = diff(env, &a, &b)?;
        let mut out = std::io::stdout().lock();
        match self.json {
            true => {
                let logs: Vec<Value> = diffs.iter().map(document).collect();
                writeln!(out, "{:#}", json!({ "logs": logs }))?;
            }
            false => {
                for log in &diffs {
                    writeln!(out, "{}", line(log))?;
                }
            }
        }
        match diffs.iter().all(LogDiff::is_identical) {
            true => Ok(Exit::Ok),
            false => Ok(Exit::Problems),
        }
    }
}

/// Compares every log that either database has.
///
/// # Errors
/// The disk's. Damage and differences are in the answer.
pub fn diff(env: &Env, a: &[DatasetFiles], b: &[DatasetFiles]) -> Result<Vec<LogDiff>> {
    let mut names: Vec<_> = a.iter().chain(b).map(|dataset| &dataset.id).collect();
    names.sort();
    names.dedup();
    let mut diffs = Vec::new();
    for name in names {
        let of = |list: &[DatasetFiles]| list.iter().position(|dataset| dataset.id == *name);
        let (Some(at_a), Some(at_b)) = (of(a), of(b)) else {
            let side = if of(a).is_some() { "second" } else { "first" };
            diffs.push(LogDiff {
                dataset: name.to_string(),
                shard: ShardId(0),
                a_end: Position::default(),
                b_end: Position::default(),
                same_to: 0,
                len: 0,
                segment_count: 0,
                dropped_count: 0,
                difference: Some(format!("the {side} database has no such dataset")),
            });
            continue;
        };
        let (a, b) = (&a[at_a], &b[at_b]);
        let mut shards = [a.shards(), b.shards()].concat();
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            diffs.push(Pair { env, a, b, shard }.run()?);
        }
    }
    Ok(diffs)
}

struct Pair<'a> {
    env: &'a Env,
    a: &'a DatasetFiles,
    b: &'a DatasetFiles,
    shard: ShardId,
}

/// A segment and where its good batches end.
struct Measured {
    open: SegmentFile,
    data_len: u64,
    end: Position,
}

impl Pair<'_> {
    fn run(&self) -> Result<LogDiff> {
        let disk = self.env.disk.as_ref();
        let mut log = LogDiff {
            dataset: self.a.id.to_string(),
            shard: self.shard,
            a_end: Position::default(),
            b_end: Position::default(),
            same_to: 0,
            len: 0,
            segment_count: 0,
            dropped_count: 0,
            difference: None,
        };
        let a: Vec<&SegmentName> = self.a.segments_of(self.shard).collect();
        let b: Vec<&SegmentName> = self.b.segments_of(self.shard).collect();
        log.a_end = end_of(disk, &a)?;
        log.b_end = end_of(disk, &b)?;
        let common_end = log.a_end.seq.min(log.b_end.seq);
        if let Some(what) = self.lineages() {
            log.difference = Some(what);
            return Ok(log);
        }
        let mut starts: Vec<u64> = a.iter().chain(&b).map(|name| name.first_seq).collect();
        starts.sort_unstable();
        starts.dedup();
        for first_seq in starts
            .into_iter()
            .filter(|first_seq| *first_seq <= common_end)
        {
            let of = |list: &[&'_ SegmentName]| {
                let found = list.iter().find(|name| name.first_seq == first_seq);
                found.map(|name| (*name).clone())
            };
            let is_same = match (of(&a), of(&b)) {
                (Some(a), Some(b)) => self.segment(disk, &a, &b, &mut log)?,
                (Some(name), None) => self.dropped(disk, &name, (self.b, "first"), &mut log)?,
                (None, Some(name)) => self.dropped(disk, &name, (self.a, "second"), &mut log)?,
                (None, None) => true,
            };
            if !is_same {
                return Ok(log);
            }
        }
        if log.segment_count == 0 && common_end > 0 {
            log.difference = Some("no segment is in both databases".to_owned());
        }
        Ok(log)
    }

    /// A segment that only one side has: the other one may have dropped it, once all of it was in its
    /// tables.
    fn dropped(
        &self,
        disk: &dyn Disk,
        name: &SegmentName,
        (other, side): (&DatasetFiles, &str),
        log: &mut LogDiff,
    ) -> Result<bool> {
        let end_seq = match measure(disk, name)? {
            Ok(measured) => measured.end.seq,
            Err(_) => u64::MAX,
        };
        let logs = other.manifest.as_ref().map(|manifest| &manifest.logs);
        let flushed = logs
            .ok()
            .and_then(|logs| logs.get(usize::from(self.shard.0)));
        let is_flushed = flushed.is_some_and(|flushed| flushed.position.seq >= end_seq);
        if is_flushed {
            log.dropped_count += 1;
            return Ok(true);
        }
        let file = file_name(&name.path);
        log.difference = Some(format!("{file} is only in the {side} database"));
        Ok(false)
    }

    fn lineages(&self) -> Option<String> {
        let (Ok(a), Ok(b)) = (&self.a.manifest, &self.b.manifest) else {
            return None;
        };
        let (a, b) = (text::hex(&a.lineage), text::hex(&b.lineage));
        (a != b).then(|| format!("other histories: lineage {a} and {b}"))
    }

    /// Compares one segment; `false` where there is a difference.
    fn segment(
        &self,
        disk: &dyn Disk,
        a: &SegmentName,
        b: &SegmentName,
        log: &mut LogDiff,
    ) -> Result<bool> {
        let (measured_a, measured_b) = (measure(disk, a)?, measure(disk, b)?);
        let (a, b) = match (measured_a, measured_b) {
            (Ok(a), Ok(b)) => (a, b),
            (Err(what), _) | (_, Err(what)) => {
                log.difference = Some(what);
                return Ok(false);
            }
        };
        let len = a.data_len.min(b.data_len);
        log.segment_count += 1;
        if let Some(at) = first_difference(&a.open, &b.open, len)? {
            log.len += at;
            let file = a.open.file_name();
            let seq = seq_at(&a.open, at)?;
            log.same_to = log.same_to.max(seq.saturating_sub(1));
            log.difference = Some(format!("{file} @{at}, in the batch of record {seq}"));
            return Ok(false);
        }
        log.len += len;
        let shorter = if a.data_len <= b.data_len { &a } else { &b };
        log.same_to = log.same_to.max(shorter.end.seq);
        let are_sealed = a.open.is_sealed() && b.open.is_sealed();
        if are_sealed && a.data_len != b.data_len {
            let file = a.open.file_name();
            let (a, b) = (a.data_len, b.data_len);
            log.difference = Some(format!("{file} is sealed at byte {a} and at byte {b}"));
            return Ok(false);
        }
        Ok(true)
    }
}

/// Where the logs of a dataset end, by shard.
///
/// # Errors
/// The disk's.
pub fn ends(env: &Env, dataset: &DatasetFiles) -> Result<Vec<Position>> {
    let end = |shard: ShardId| {
        let segments: Vec<&SegmentName> = dataset.segments_of(shard).collect();
        end_of(env.disk.as_ref(), &segments)
    };
    dataset.shards().into_iter().map(end).collect()
}

/// Where a log's last good batch ends.
fn end_of(disk: &dyn Disk, segments: &[&SegmentName]) -> Result<Position> {
    for name in segments.iter().rev() {
        match measure(disk, name)? {
            Ok(measured) if measured.end.seq >= name.first_seq => return Ok(measured.end),
            _ => {}
        }
    }
    Ok(Position::default())
}

/// Opens a segment and walks to its end; what is damaged comes back as text.
fn measure(disk: &dyn Disk, name: &SegmentName) -> Result<Result<Measured, String>> {
    let open = match SegmentFile::open(disk, name) {
        Ok(open) => open,
        Err(error @ strandline_wal::Error::Io { .. }) => return Err(error.into()),
        Err(error) => return Ok(Err(error.to_string())),
    };
    if let Some(Ok(footer)) = &open.footer {
        let (data_len, epoch, seq) = (footer.data_len, footer.last_epoch, footer.last_seq);
        let end = Position { epoch, seq };
        return Ok(Ok(Measured {
            open,
            data_len,
            end,
        }));
    }
    let mut walk = open.walk();
    let mut end = Position {
        epoch: Epoch(0),
        seq: name.first_seq - 1,
    };
    while let Found::Batch(stored) = walk.step()? {
        end = Position {
            epoch: stored.header.epoch,
            seq: stored.header.last_seq(),
        };
    }
    let data_len = walk.at();
    Ok(Ok(Measured {
        open,
        data_len,
        end,
    }))
}

/// The first offset below `len` at which two files differ.
fn first_difference(a: &SegmentFile, b: &SegmentFile, len: u64) -> Result<Option<u64>> {
    let mut blocks = [vec![0; BLOCK_LEN], vec![0; BLOCK_LEN]];
    let mut at = 0;
    while at < len {
        let part = usize::try_from(len - at).map_or(BLOCK_LEN, |left| left.min(BLOCK_LEN));
        for (segment, block) in [a, b].iter().zip(&mut blocks) {
            let path = &segment.name.path;
            read_exact_at(segment.file.as_ref(), &mut block[..part], at).during("read", path)?;
        }
        let [block_a, block_b] = &blocks;
        if block_a[..part] != block_b[..part] {
            let pairs = block_a.iter().zip(block_b);
            let offset = pairs.take_while(|(a, b)| a == b).count();
            return Ok(Some(at + offset as u64));
        }
        at += part as u64;
    }
    Ok(None)
}

/// The first record of the batch that byte `at` lies in; the segment's first one for its header.
fn seq_at(segment: &SegmentFile, at: u64) -> Result<u64> {
    let mut walk = segment.walk();
    let mut seq = segment.header.first_seq;
    while walk.at() <= at {
        match walk.step()? {
            Found::Batch(stored) => seq = stored.header.first_seq,
            Found::End | Found::Damage(_) => break,
        }
    }
    Ok(seq)
}

/// One log as a line of text.
pub fn line(log: &LogDiff) -> String {
    let place = format!("{} shard {}", log.dataset, log.shard);
    if let Some(what) = &log.difference {
        let same = match log.same_to {
            0 => String::new(),
            seq => format!("; identical up to record {seq}"),
        };
        return format!("{place}: differs: {what}{same}");
    }
    let ahead = match (log.a_end.seq, log.b_end.seq) {
        (a, b) if a > b => format!("; the first is {} ahead", text::plural(a - b, "record")),
        (a, b) if b > a => format!("; the second is {} ahead", text::plural(b - a, "record")),
        _ => String::new(),
    };
    let common = log.a_end.min(log.b_end);
    let segments = text::plural(log.segment_count, "segment");
    let len = text::len(log.len);
    let dropped = match log.dropped_count {
        0 => String::new(),
        n => format!(
            " ({} more on one side only: the other has them in tables)",
            text::count(n)
        ),
    };
    format!("{place}: byte-identical up to {common}, {len} in {segments}{dropped}{ahead}")
}

fn document(log: &LogDiff) -> Value {
    json!({
        "dataset": log.dataset,
        "shard": log.shard.0,
        "identical": log.is_identical(),
        "a_epoch": log.a_end.epoch.0,
        "a_seq": log.a_end.seq,
        "b_epoch": log.b_end.epoch.0,
        "b_seq": log.b_end.seq,
        "same_to": log.same_to,
        "len": log.len,
        "segment_count": log.segment_count,
        "dropped_count": log.dropped_count,
        "difference": log.difference,
    })
}
