//! What is left of one log: the intact batches of its segments, and the records between them.

use std::path::{Path, PathBuf};

use strandline_wal::batch::{ALIGN, Batch, HEADER_LEN, Kind};
use strandline_wal::io::{Access, Env, File, read_exact_at};
use strandline_wal::segment::{SEGMENT_HEADER_LEN, SegmentHeader, parse_file_name};
use strandline_wal::{DatasetId, Hlc, IoContext, Result, ShardId};

use super::{Lost, LostWhat};
use crate::store::catalog::keyspace_created;

/// Where a value stands in a segment file. It was covered by its batch's checksum when it was found.
#[derive(Clone, Debug)]
pub(super) struct ValuePlace {
    /// Index among the segments that were scanned.
    pub segment: usize,
    pub at: u64,
    pub len: usize,
    pub crc: u32,
}

/// A change that an intact batch makes.
pub(super) struct Change<'a> {
    pub name: &'a [u8],
    pub version: Hlc,
    /// `None` removes the name.
    pub value: Option<ValuePlace>,
}

/// The segments of one shard, and what a walk over them found.
pub(super) struct LogScan<'a> {
    pub env: &'a Env,
    pub dataset: &'a DatasetId,
    pub shard: ShardId,
    /// The last record that is in tables.
    pub flushed_seq: u64,
    /// The last record that was known to be durable.
    pub durable_seq: u64,
    /// Segment files, ascending.
    pub segments: Vec<(u64, PathBuf)>,
    /// How many segments of other shards come before in [`ValuePlace::segment`].
    pub base: usize,
}

/// What a walk tells besides the changes.
#[derive(Default)]
pub(super) struct Found {
    pub keyspaces: Vec<(u32, String)>,
    pub lost: Vec<Lost>,
    pub batch_count: u64,
    /// First record of the part that reaches to the end without a gap.
    pub whole_from: u64,
}

/// The segment files of a directory by shard.
pub(super) fn segments_in(env: &Env, region: &Path) -> Result<Vec<(ShardId, u64, PathBuf)>> {
    let entries = match env.disk.list(region) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        listed => listed.during("list", region)?,
    };
    let mut found: Vec<_> = entries
        .into_iter()
        .filter_map(|entry| {
            let (shard, first_seq) = parse_file_name(&entry.name)?;
            Some((shard, first_seq, region.join(entry.name)))
        })
        .collect();
    found.sort_by_key(|(shard, first_seq, _)| (*shard, *first_seq));
    Ok(found)
}

impl LogScan<'_> {
    /// Walks every intact batch in order. `change` gets each change with its record's sequence.
    pub fn walk(&self, mut change: impl FnMut(u64, Change<'_>)) -> Found {
        let mut found = Found::default();
        // 0 until the first batch: where a log begins is known only from what it has.
        let mut next_seq = 0;
        let mut broken: Option<(PathBuf, u64, String)> = None;
        for (n, (first_seq, path)) in self.segments.iter().enumerate() {
            if *first_seq == next_seq {
                // The log goes on here: what stands behind the last batch before is no record.
                broken = None;
            }
            let bytes = match self.read(path) {
                Ok(bytes) => bytes,
                Err(why) => {
                    broken.get_or_insert((path.clone(), 0, why));
                    continue;
                }
            };
            let nonce = match self.nonce(&bytes, *first_seq, path) {
                Ok(nonce) => nonce,
                Err((why, Some(nonce))) => {
                    broken.get_or_insert((path.clone(), 0, why));
                    nonce
                }
                Err((why, None)) => {
                    broken.get_or_insert((path.clone(), 0, why));
                    continue;
                }
            };
            let mut at = SEGMENT_HEADER_LEN;
            while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= HEADER_LEN) {
                let batch = match Batch::decode(rest) {
                    Ok(batch)
                        if batch.header.nonce == nonce && batch.header.shard == self.shard =>
                    {
                        batch
                    }
                    Ok(_) => {
                        at += ALIGN;
                        continue;
                    }
                    Err(damage) => {
                        // Only a later record proves that something stood here.
                        broken.get_or_insert((path.clone(), at as u64, damage.to_string()));
                        at += ALIGN;
                        continue;
                    }
                };
                let header = batch.header;
                if header.first_seq < next_seq {
                    at += ALIGN;
                    continue;
                }
                if header.first_seq > next_seq {
                    self.gap(
                        next_seq,
                        header.first_seq - 1,
                        broken.take(),
                        path,
                        &mut found.lost,
                    );
                    found.whole_from = header.first_seq;
                }
                broken = None;
                next_seq = header.last_seq() + 1;
                found.batch_count += 1;
                for (record, seq) in batch.records().zip(header.first_seq..) {
                    // The checksum holds, so a record that cannot be read was written like that.
                    let Ok(record) = record else { break };
                    if let Some((number, name)) = keyspace_created(&record) {
                        found.keyspaces.push((number, name.to_owned()));
                    }
                    if record.kind == Kind::Control {
                        continue;
                    }
                    let value = (record.kind == Kind::Put).then(|| ValuePlace {
                        segment: self.base + n,
                        at: (at + HEADER_LEN + record.body_at) as u64,
                        len: record.body.len(),
                        crc: crc32fast::hash(record.body),
                    });
                    let (name, version) = (record.head, header.timestamp);
                    change(
                        seq,
                        Change {
                            name,
                            version,
                            value,
                        },
                    );
                }
                at += header.batch_len();
            }
        }
        let last = next_seq.saturating_sub(1);
        let known = self.durable_seq.max(self.flushed_seq);
        if known > last {
            let path = self
                .segments
                .last()
                .map_or(PathBuf::new(), |(_, path)| path.clone());
            self.gap(last + 1, known, broken, &path, &mut found.lost);
            found.whole_from = known + 1;
        }
        found
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
        let read = || {
            let file = self.env.disk.open(path, Access::Read)?;
            let len = usize::try_from(file.len()?).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
            let mut bytes = Vec::new();
            bytes
                .try_reserve_exact(len)
                .map_err(|_| std::io::ErrorKind::OutOfMemory)?;
            bytes.resize(len, 0);
            read_intact(file.as_ref(), &mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error: std::io::Error| error.to_string())
    }

    /// What the batches of a segment carry. Where the header is damaged it comes from the first
    /// batch, if that is the one that the file's name tells.
    fn nonce(
        &self,
        bytes: &[u8],
        first_seq: u64,
        path: &Path,
    ) -> Result<u32, (String, Option<u32>)> {
        let why = match SegmentHeader::decode(bytes, path) {
            Ok(header) if header.log.dataset == *self.dataset && header.first_seq == first_seq => {
                return Ok(header.nonce);
            }
            Ok(header) => return Err((format!("a segment of {}", header.log.dataset), None)),
            Err(error) => error.to_string(),
        };
        let first = bytes.get(SEGMENT_HEADER_LEN..).map(Batch::decode);
        match first {
            Some(Ok(batch)) if batch.header.first_seq == first_seq => {
                Err((why, Some(batch.header.nonce)))
            }
            _ => Err((why, None)),
        }
    }

    /// Records that nobody finds: those in tables are no loss.
    fn gap(
        &self,
        first_seq: u64,
        last_seq: u64,
        broken: Option<(PathBuf, u64, String)>,
        path: &Path,
        lost: &mut Vec<Lost>,
    ) {
        let first_seq = first_seq.max(self.flushed_seq + 1);
        if first_seq > last_seq {
            return;
        }
        let (path, at, why) = match broken {
            Some((path, at, why)) => (path, Some(at), why),
            None => (
                path.to_owned(),
                None,
                "records before it are missing".to_owned(),
            ),
        };
        lost.push(Lost {
            path,
            at,
            why,
            what: LostWhat::Records {
                shard: self.shard,
                first_seq,
                last_seq,
            },
        });
    }
}

/// Reads as much as can be read: a sector that gives an error stays zero, which no checksum takes.
fn read_intact(file: &dyn File, bytes: &mut [u8]) -> std::io::Result<()> {
    if read_exact_at(file, bytes, 0).is_ok() {
        return Ok(());
    }
    const SECTOR: usize = strandline_wal::io::SECTOR_LEN;
    let mut any = false;
    let mut failed = None;
    for (n, sector) in bytes.chunks_mut(SECTOR).enumerate() {
        match read_exact_at(file, sector, (n * SECTOR) as u64) {
            Ok(()) => any = true,
            Err(error) => {
                sector.fill(0);
                failed = Some(error);
            }
        }
    }
    match failed {
        Some(error) if !any => Err(error),
        _ => Ok(()),
    }
}
