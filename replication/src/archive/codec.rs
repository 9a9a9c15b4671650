//! The bytes of the objects. A `.seg` is a segment's file and a `file` a table's, a manifest's or a
//! segment's, verbatim; the others are here. Little-endian; texts carry their length before them.
//!
//! A term, followed by one row for each shard (first record 8 bytes, chain value before it 4, zeros 4, first
//! record that `previous` no longer tells of 8) and a CRC-32 of all before:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SDAT` |
//! | 4 | 2 | version | 1 |
//! | 6 | 2 | shard_count | |
//! | 8 | 4 | epoch | of the leader that uploads |
//! | 12 | 4 | previous | the term that it goes on from; 0 for none |
//! | 16 | 16 | lineage | of the dataset |
//! | 32 | 16 | leader | random identity of the leadership |
//!
//! A tail, followed by the 512 bytes of the segment's header and the batches:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SDAP` |
//! | 4 | 2 | version | 1 |
//! | 6 | 2 | shard_id | |
//! | 8 | 4 | epoch | of the leader that uploads |
//! | 12 | 4 | batches_len | bytes of the batches |
//! | 16 | 8 | offset | where they stand in the segment |
//! | 24 | 32 | digest | BLAKE3 of everything behind this header |
//! | 56 | 4 | reserved | 0 |
//! | 60 | 4 | header_crc | CRC-32 of the 60 bytes before |
//!
//! A base, followed by one row for each shard (last record in tables 8, its epoch 4, its chain value 4,
//! last record that the base stands for 8),
//! one for each file (kind 1, zeros 7, number 8, length 8, BLAKE3 32, name of the object) and a CRC-32 of
//! all before:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SDAB` |
//! | 4 | 2 | version | 1 |
//! | 6 | 2 | shard_count | |
//! | 8 | 4 | epoch | of the leader that uploads |
//! | 12 | 4 | file_count | |
//! | 16 | 8 | timestamp | version of the newest batch that it stands for |
//! | 24 | 8 | wall_ms | when it was made, since 1970 |
//! | 32 | 16 | lineage | of the dataset |

use strandline_wal::bug::planted;
use strandline_wal::segment::SEGMENT_HEADER_LEN;
use strandline_wal::{Epoch, Hlc, Position, ShardId};

use super::{BaseName, Error, Result, damaged};
use crate::bundle::FILE_COUNT_MAX;
use crate::ids::{LeaderId, Lineage};

const TERM_MAGIC: [u8; 4] = *b"SDAT";
const TAIL_MAGIC: [u8; 4] = *b"SDAP";
const BASE_MAGIC: [u8; 4] = *b"SDAB";
const VERSION: u16 = 1;
/// Length of the fixed part of a term and of a base.
pub(super) const HEAD_LEN: usize = 48;
/// Length of a tail's own header.
pub(super) const TAIL_LEN: usize = 64;

/// A leadership that uploads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Term {
    /// Its epoch.
    pub epoch: Epoch,
    /// The term that it goes on from.
    pub previous: Epoch,
    /// Of the dataset.
    pub lineage: Lineage,
    /// Which leadership.
    pub leader: LeaderId,
    /// Per shard, where it begins.
    pub from: Vec<Start>,
}

/// Where a term begins in one log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Start {
    /// The first record that it uploads, which starts a segment.
    pub seq: u64,
    /// The chain value before it.
    pub chain: u32,
    /// The first record of the log that the leader of the previous term did not write or take over: what
    /// that term has from there on is another history.
    pub end: u64,
}

/// A part of a growing segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tail<'a> {
    /// Which log.
    pub shard: ShardId,
    /// Who uploads.
    pub epoch: Epoch,
    /// Where the batches stand in the segment.
    pub offset: u64,
    /// The first bytes of the segment.
    pub header: &'a [u8],
    /// The batches.
    pub batches: &'a [u8],
}

/// What of a shard's log is in a base's tables.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BaseEnd {
    /// The last record that is.
    pub position: Position,
    /// Its chain value.
    pub chain: u32,
    /// The record up to which the base needs the log: its point. Not below `position`.
    pub complete_seq: u64,
}

/// What a file of a base is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileKind {
    /// The manifest.
    Manifest,
    /// A table, by its number.
    Table,
    /// A segment that tables point into: shard in the upper 16 bits of the number, first record below.
    Segment,
}

/// A file of a base.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BaseFile {
    /// What it is.
    pub kind: FileKind,
    /// Its number within the kind.
    pub number: u64,
    /// Its length in bytes.
    pub len: u64,
    /// BLAKE3 of its bytes.
    pub digest: [u8; 32],
    /// The object that has them.
    pub object: String,
}

/// A checkpoint: everything but the log behind it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Base {
    /// Who made it.
    pub epoch: Epoch,
    /// Version of the newest batch that it stands for: not below any in its tables.
    pub timestamp: Hlc,
    /// When it was made.
    pub wall_ms: u64,
    /// Of the dataset.
    pub lineage: Lineage,
    /// Per shard, what is in tables.
    pub ends: Vec<BaseEnd>,
    /// Its files, the manifest last.
    pub files: Vec<BaseFile>,
}

impl Term {
    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = head(TERM_MAGIC, self.from.len(), self.epoch, self.previous.0);
        out.extend_from_slice(&self.lineage.0);
        out.extend_from_slice(&self.leader.0);
        for start in &self.from {
            out.extend_from_slice(&start.seq.to_le_bytes());
            out.extend_from_slice(&start.chain.to_le_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&start.end.to_le_bytes());
        }
        sealed(out)
    }

    /// Reads the object of that name.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn decode(bytes: &[u8], name: &str) -> Result<Term> {
        let mut input = Input::open(bytes, name, TERM_MAGIC)?;
        let (count, epoch, previous) = (input.u16()?, Epoch(input.u32()?), Epoch(input.u32()?));
        let (lineage, leader) = (Lineage(input.array()?), LeaderId(input.array()?));
        let mut from = Vec::new();
        for _ in 0..count {
            let (seq, chain) = (input.u64()?, input.u32()?);
            input.zeros::<4>()?;
            let end = input.u64()?;
            from.push(Start { seq, chain, end });
        }
        input.end()?;
        if previous >= epoch && !planted("archive.previous") {
            return Err(damaged(name, "it goes on from a term that is not earlier"));
        }
        Ok(Term {
            epoch,
            previous,
            lineage,
            leader,
            from,
        })
    }
}

impl Tail<'_> {
    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        assert_eq!(self.header.len(), SEGMENT_HEADER_LEN);
        let len = u32::try_from(self.batches.len()).expect("a segment is shorter than 4 GiB");
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.header);
        hasher.update(self.batches);
        let mut out = head(TAIL_MAGIC, self.shard.0.into(), self.epoch, len);
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(hasher.finalize().as_bytes());
        out.extend_from_slice(&[0; 4]);
        let mut out = sealed(out);
        out.extend_from_slice(self.header);
        out.extend_from_slice(self.batches);
        out
    }

    /// Reads the object of that name.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn decode<'a>(bytes: &'a [u8], name: &str) -> Result<Tail<'a>> {
        let (head, body) = bytes
            .split_at_checked(TAIL_LEN)
            .ok_or_else(|| damaged(name, "it is cut"))?;
        let mut input = Input::open(head, name, TAIL_MAGIC)?;
        let (shard, epoch) = (ShardId(input.u16()?), Epoch(input.u32()?));
        let (len, offset) = (input.u32()?, input.u64()?);
        let digest: [u8; 32] = input.array()?;
        input.zeros::<4>()?;
        input.end()?;
        let is_whole = body.len() as u64 == SEGMENT_HEADER_LEN as u64 + u64::from(len);
        let is_intact = *blake3::hash(body).as_bytes() == digest || planted("archive.tail_digest");
        if !is_whole || !is_intact {
            return Err(damaged(name, "its bytes have another digest"));
        }
        let (header, batches) = body.split_at(SEGMENT_HEADER_LEN);
        Ok(Tail {
            shard,
            epoch,
            offset,
            header,
            batches,
        })
    }
}

impl Base {
    /// What its object is called.
    pub fn name(&self) -> BaseName {
        BaseName {
            timestamp: self.timestamp,
            epoch: self.epoch,
        }
    }

    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.files.len()).expect("at most FILE_COUNT_MAX files");
        let mut out = head(BASE_MAGIC, self.ends.len(), self.epoch, count);
        out.extend_from_slice(&self.timestamp.0.to_le_bytes());
        out.extend_from_slice(&self.wall_ms.to_le_bytes());
        out.extend_from_slice(&self.lineage.0);
        for end in &self.ends {
            out.extend_from_slice(&end.position.seq.to_le_bytes());
            out.extend_from_slice(&end.position.epoch.0.to_le_bytes());
            out.extend_from_slice(&end.chain.to_le_bytes());
            out.extend_from_slice(&end.complete_seq.to_le_bytes());
        }
        for file in &self.files {
            out.push(match file.kind {
                FileKind::Manifest => 1,
                FileKind::Table => 2,
                FileKind::Segment => 3,
            });
            out.extend_from_slice(&[0; 7]);
            out.extend_from_slice(&file.number.to_le_bytes());
            out.extend_from_slice(&file.len.to_le_bytes());
            out.extend_from_slice(&file.digest);
            let name_len = u16::try_from(file.object.len()).expect("names are short");
            out.extend_from_slice(&name_len.to_le_bytes());
            out.extend_from_slice(file.object.as_bytes());
        }
        sealed(out)
    }

    /// Reads the object of that name.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn decode(bytes: &[u8], name: &str) -> Result<Base> {
        let mut input = Input::open(bytes, name, BASE_MAGIC)?;
        let (shard_count, epoch, file_count) = (input.u16()?, Epoch(input.u32()?), input.u32()?);
        let (timestamp, wall_ms) = (Hlc(input.u64()?), input.u64()?);
        let lineage = Lineage(input.array()?);
        if file_count > FILE_COUNT_MAX {
            return Err(damaged(name, format!("{file_count} files are too many")));
        }
        let mut ends = Vec::new();
        for _ in 0..shard_count {
            let (seq, epoch) = (input.u64()?, Epoch(input.u32()?));
            ends.push(BaseEnd {
                position: Position { epoch, seq },
                chain: input.u32()?,
                complete_seq: input.u64()?,
            });
        }
        let mut files = Vec::new();
        for _ in 0..file_count {
            let kind = match input.array::<1>()? {
                [1] => FileKind::Manifest,
                [2] => FileKind::Table,
                [3] => FileKind::Segment,
                [kind] => return Err(damaged(name, format!("a file of kind {kind}"))),
            };
            input.zeros::<7>()?;
            let (number, len, digest) = (input.u64()?, input.u64()?, input.array()?);
            let name_len = input.u16()?.into();
            let object = String::from_utf8(input.take(name_len)?.to_vec());
            files.push(BaseFile {
                kind,
                number,
                len,
                digest,
                object: object.map_err(|_| damaged(name, "a name is no text"))?,
            });
        }
        input.end()?;
        Ok(Base {
            epoch,
            timestamp,
            wall_ms,
            lineage,
            ends,
            files,
        })
    }
}

fn head(magic: [u8; 4], count: usize, epoch: Epoch, next: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_LEN);
    out.extend_from_slice(&magic);
    out.extend_from_slice(&VERSION.to_le_bytes());
    let count = u16::try_from(count).expect("at most 256 shards");
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&epoch.0.to_le_bytes());
    out.extend_from_slice(&next.to_le_bytes());
    out
}

fn sealed(mut out: Vec<u8>) -> Vec<u8> {
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

/// Foreign bytes, read front to back.
struct Input<'a> {
    rest: &'a [u8],
    name: &'a str,
}

impl<'a> Input<'a> {
    /// Checks checksum, magic and version.
    fn open(bytes: &'a [u8], name: &'a str, magic: [u8; 4]) -> Result<Input<'a>> {
        let wrong = |what: &str| damaged(name, what);
        let (rest, crc) = bytes
            .split_last_chunk::<4>()
            .ok_or_else(|| wrong("it is cut"))?;
        if crc32fast::hash(rest).to_le_bytes() != *crc && !planted("archive.crc") {
            return Err(wrong("its checksum is another"));
        }
        let mut input = Input { rest, name };
        if input.array::<4>()? != magic {
            return Err(wrong("it is no such object"));
        }
        match input.u16()? {
            VERSION => Ok(input),
            version => Err(Error::Refused(format!(
                "{name} has format version {version}, this build reads {VERSION}"
            ))),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| damaged(self.name, "it is cut"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N)?;
        Ok(*bytes.first_chunk().expect("it took as many"))
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn zeros<const N: usize>(&mut self) -> Result<()> {
        match self.array::<N>()? == [0; N] {
            true => Ok(()),
            false => Err(damaged(self.name, "reserved bytes are not zero")),
        }
    }

    fn end(&self) -> Result<()> {
        match self.rest.is_empty() {
            true => Ok(()),
            false => Err(damaged(self.name, "bytes follow its end")),
        }
    }
}
