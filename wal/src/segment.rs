//! One log file: its name, its header, and the footer that seals it.
//!
//! A segment is a 512-byte header, batches back to back, and, once sealed, a footer behind the last
//! batch. While it grows, the file is longer than its batches: the rest is zeros, or what a recycled
//! file held before, which never parses, because every batch carries the segment's nonce.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SDLS` |
//! | 4 | 1 | version | 2 |
//! | 5 | 1 | flags | 0 |
//! | 6 | 2 | header_len | 512 |
//! | 8 | 8 | first_seq | sequence of the first record |
//! | 16 | 8 | created | hybrid logical clock at creation |
//! | 24 | 4 | nonce | random, not 0; stands in every batch of the segment |
//! | 28 | 4 | epoch | leadership that created it |
//! | 32 | 16 | lineage | of the database: new at create, clone and restore to the past |
//! | 48 | 4 | prev_crc | chain value before the first batch |
//! | 52 | 2 | shard_id | |
//! | 54 | 2 | region_id | |
//! | 56 | 8 | capacity | bytes that header and batches may take |
//! | 64 | 32 | prev_digest | BLAKE3 of the sealed segment before, up to its footer; zeros for the first |
//! | 96 | 2 | dataset_len | |
//! | 98 | 48 | dataset | name, then zeros |
//! | 146 | 362 | reserved | 0 |
//! | 508 | 4 | header_crc | CRC-32 (IEEE) of all other header bytes |
//!
//! The footer is typed, sized sections and a trailer, so that a later release adds a section and
//! not a version. A section that is not known is skipped, unless its `must` bit is set.
//!
//! | Offset | Size | Section field | Meaning |
//! |-------:|-----:|---------------|---------|
//! | 0 | 2 | kind | 1 summary, 2 digest, 3 index |
//! | 2 | 2 | flags | bit 0 `must`: a reader that does not know the kind refuses the file |
//! | 4 | 4 | len | bytes that follow, a multiple of 8 |
//!
//! Summary: first_seq, last_seq, batch_count, data_len, first timestamp, last timestamp (8 bytes
//! each), last epoch, chain value (4 bytes each). Digest: 32 bytes of BLAKE3 over the first
//! `data_len` bytes of the file. Index: pairs (seq, offset) of 8 bytes each, of the first batch that
//! starts in each 64 KiB.
//!
//! | Offset | Size | Trailer field | Meaning |
//! |-------:|-----:|---------------|---------|
//! | 0 | 8 | data_len | bytes of header and batches |
//! | 8 | 4 | sections_len | bytes of all sections |
//! | 12 | 4 | sections_crc | CRC-32 (IEEE) of them |
//! | 16 | 4 | nonce | of the segment |
//! | 20 | 4 | version | 2 |
//! | 24 | 4 | magic | `SDLF` |
//! | 28 | 4 | trailer_crc | CRC-32 (IEEE) of the 28 bytes before |

use std::path::{Path, PathBuf};

use crate::bug::planted;
use crate::bytes::{array_at, put, u16_at, u32_at, u64_at};
use crate::error::{Error, Result};
use crate::ids::{
    DATASET_NAME_LEN_MAX, DatasetId, Epoch, Hlc, LogId, RegionId, ShardId, WalSegmentId,
};

/// Length of the segment header.
pub const SEGMENT_HEADER_LEN: usize = 512;
/// Length of the footer's trailer.
pub const TRAILER_LEN: usize = 32;
/// Smallest capacity of a segment, in bytes.
pub const CAPACITY_MIN: u64 = 64 << 10;
/// Default capacity of a shard's first segment, in bytes.
pub const CAPACITY_START: u64 = 1 << 20;
/// Default capacity that a busy shard's segments grow to, in bytes.
pub const CAPACITY_MAX: u64 = 64 << 20;
/// Largest file a reader accepts: offsets into a segment are 32 bits wide.
pub const SEGMENT_LEN_MAX: u64 = u32::MAX as u64;
/// One index entry stands for this many bytes.
pub const INDEX_STEP: u64 = 64 << 10;

const MAGIC: [u8; 4] = *b"SDLS";
const FOOTER_MAGIC: [u8; 4] = *b"SDLF";
const VERSION: u8 = 2;
const SECTION_HEADER_LEN: usize = 8;
const SECTION_MUST: u16 = 1;
const SUMMARY_LEN: usize = 56;
const DIGEST_LEN: usize = 32;

const _: () = assert!(SEGMENT_HEADER_LEN.is_multiple_of(crate::batch::ALIGN));
const _: () = assert!(TRAILER_LEN.is_multiple_of(crate::batch::ALIGN));
const _: () = assert!(at::DATASET + DATASET_NAME_LEN_MAX == at::RESERVED);

mod at {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 4;
    pub const FLAGS: usize = 5;
    pub const HEADER_LEN: usize = 6;
    pub const FIRST_SEQ: usize = 8;
    pub const CREATED: usize = 16;
    pub const NONCE: usize = 24;
    pub const EPOCH: usize = 28;
    pub const LINEAGE: usize = 32;
    pub const PREV_CRC: usize = 48;
    pub const SHARD_ID: usize = 52;
    pub const REGION_ID: usize = 54;
    pub const CAPACITY: usize = 56;
    pub const PREV_DIGEST: usize = 64;
    pub const DATASET_LEN: usize = 96;
    pub const DATASET: usize = 98;
    pub const RESERVED: usize = 146;
    pub const HEADER_CRC: usize = 508;
}

/// The file name of a segment: shard 0 `wal-{first_seq:020}.seg`, others
/// `wal-s{shard:05}-{first_seq:020}.seg`. The one owner of these names.
pub fn file_name(shard: ShardId, first_seq: u64) -> String {
    match shard.0 {
        0 => format!("wal-{first_seq:020}.seg"),
        shard => format!("wal-s{shard:05}-{first_seq:020}.seg"),
    }
}

/// The shard and first sequence of a segment's file name; `None` for any other name.
pub fn parse_file_name(name: &str) -> Option<(ShardId, u64)> {
    let body = name.strip_prefix("wal-")?.strip_suffix(".seg")?;
    let (shard, first_seq) = match body.strip_prefix('s') {
        None => (ShardId(0), body.parse().ok()?),
        Some(rest) => {
            let (shard, first_seq) = rest.split_once('-')?;
            (ShardId(shard.parse().ok()?), first_seq.parse().ok()?)
        }
    };
    (file_name(shard, first_seq) == name).then_some((shard, first_seq))
}

/// What stands at the head of every segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SegmentHeader {
    /// The log it belongs to.
    pub log: LogId,
    /// Sequence of its first record.
    pub first_seq: u64,
    /// When it was created.
    pub created: Hlc,
    /// Stands in every batch of the segment.
    pub nonce: u32,
    /// Leadership that created it.
    pub epoch: Epoch,
    /// Identity of the history it belongs to.
    pub lineage: [u8; 16],
    /// Chain value before the first batch.
    pub prev_crc: u32,
    /// Bytes that header and batches may take.
    pub capacity: u64,
    /// Digest of the sealed segment before it.
    pub prev_digest: [u8; 32],
}

impl SegmentHeader {
    /// The segment's name among all of a dataset's.
    pub fn id(&self) -> WalSegmentId {
        WalSegmentId {
            region: self.log.region,
            shard: self.log.shard,
            seqno: self.first_seq,
        }
    }

    /// The stored bytes.
    pub fn encode(&self) -> [u8; SEGMENT_HEADER_LEN] {
        let name = self.log.dataset.as_str().as_bytes();
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        put(&mut bytes, at::MAGIC, &MAGIC);
        bytes[at::VERSION] = VERSION;
        put(
            &mut bytes,
            at::HEADER_LEN,
            &(SEGMENT_HEADER_LEN as u16).to_le_bytes(),
        );
        put(&mut bytes, at::FIRST_SEQ, &self.first_seq.to_le_bytes());
        put(&mut bytes, at::CREATED, &self.created.0.to_le_bytes());
        put(&mut bytes, at::NONCE, &self.nonce.to_le_bytes());
        put(&mut bytes, at::EPOCH, &self.epoch.0.to_le_bytes());
        put(&mut bytes, at::LINEAGE, &self.lineage);
        put(&mut bytes, at::PREV_CRC, &self.prev_crc.to_le_bytes());
        put(&mut bytes, at::SHARD_ID, &self.log.shard.0.to_le_bytes());
        put(&mut bytes, at::REGION_ID, &self.log.region.0.to_le_bytes());
        put(&mut bytes, at::CAPACITY, &self.capacity.to_le_bytes());
        put(&mut bytes, at::PREV_DIGEST, &self.prev_digest);
        put(
            &mut bytes,
            at::DATASET_LEN,
            &(name.len() as u16).to_le_bytes(),
        );
        put(&mut bytes, at::DATASET, name);
        let crc = crc32fast::hash(&bytes[..at::HEADER_CRC]);
        put(&mut bytes, at::HEADER_CRC, &crc.to_le_bytes());
        bytes
    }

    /// Reads the header at the start of `path`'s bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Unsupported`], naming the file and the place.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<SegmentHeader> {
        let Some(bytes) = bytes.first_chunk::<SEGMENT_HEADER_LEN>() else {
            let found = format!("{} bytes", bytes.len());
            return Err(Error::corrupt(
                path,
                0,
                "segment header",
                "512 bytes",
                found,
            ));
        };
        if bytes[at::MAGIC..at::MAGIC + 4] != MAGIC {
            let found = format!("{:02x?}", &bytes[..4]);
            return Err(Error::corrupt(path, 0, "segment magic", "SDLS", found));
        }
        let (expected, found) = (
            crc32fast::hash(&bytes[..at::HEADER_CRC]),
            u32_at(bytes, at::HEADER_CRC),
        );
        if expected != found && !planted("segment.header_crc") {
            let place = at::HEADER_CRC as u64;
            let (expected, found) = (format!("{expected:#010x}"), format!("{found:#010x}"));
            return Err(Error::corrupt(
                path,
                place,
                "segment header checksum",
                expected,
                found,
            ));
        }
        if bytes[at::VERSION] != VERSION {
            return Err(Error::Unsupported {
                path: path.to_owned(),
                expected: format!("segment version {VERSION}"),
                found: format!("segment version {}", bytes[at::VERSION]),
            });
        }
        let field = |at: usize, what, expected: &str, found: u64| {
            Error::corrupt(path, at as u64, what, expected, found)
        };
        let header_len = u16_at(bytes, at::HEADER_LEN);
        if usize::from(header_len) != SEGMENT_HEADER_LEN {
            return Err(field(
                at::HEADER_LEN,
                "header_len",
                "512",
                header_len.into(),
            ));
        }
        let reserved = &bytes[at::RESERVED..at::HEADER_CRC];
        if bytes[at::FLAGS] != 0 || reserved.iter().any(|b| *b != 0) {
            return Err(field(
                at::FLAGS,
                "reserved bytes",
                "0",
                bytes[at::FLAGS].into(),
            ));
        }
        let name_len = usize::from(u16_at(bytes, at::DATASET_LEN));
        let name = bytes[at::DATASET..at::RESERVED].get(..name_len);
        let padding = bytes[at::DATASET..at::RESERVED].get(name_len..);
        let dataset = name
            // The empty name stands for the first dataset in calls; a file always says which it is of.
            .filter(|name| !name.is_empty())
            .filter(|_| padding.is_some_and(|p| p.iter().all(|b| *b == 0)))
            .and_then(|name| std::str::from_utf8(name).ok())
            .and_then(|name| DatasetId::new(name).ok())
            .ok_or_else(|| field(at::DATASET_LEN, "dataset name", "a name", name_len as u64))?;
        let header = SegmentHeader {
            log: LogId {
                dataset,
                region: RegionId(u16_at(bytes, at::REGION_ID)),
                shard: ShardId(u16_at(bytes, at::SHARD_ID)),
            },
            first_seq: u64_at(bytes, at::FIRST_SEQ),
            created: Hlc(u64_at(bytes, at::CREATED)),
            nonce: u32_at(bytes, at::NONCE),
            epoch: Epoch(u32_at(bytes, at::EPOCH)),
            lineage: array_at(bytes, at::LINEAGE),
            prev_crc: u32_at(bytes, at::PREV_CRC),
            capacity: u64_at(bytes, at::CAPACITY),
            prev_digest: array_at(bytes, at::PREV_DIGEST),
        };
        if header.first_seq == 0 {
            return Err(field(at::FIRST_SEQ, "first_seq", "1 or more", 0));
        }
        if header.nonce == 0 {
            return Err(field(at::NONCE, "nonce", "not 0", 0));
        }
        if !(SEGMENT_HEADER_LEN as u64..=SEGMENT_LEN_MAX).contains(&header.capacity) {
            return Err(field(
                at::CAPACITY,
                "capacity",
                "512 to 4294967295",
                header.capacity,
            ));
        }
        Ok(header)
    }
}

/// What a sealed segment says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Footer {
    /// Sequence of the first record.
    pub first_seq: u64,
    /// Sequence of the last record.
    pub last_seq: u64,
    /// Number of batches.
    pub batch_count: u64,
    /// Bytes of header and batches; the footer starts here.
    pub data_len: u64,
    /// Version of the first batch.
    pub first_timestamp: Hlc,
    /// Version of the last batch.
    pub last_timestamp: Hlc,
    /// Leadership of the last batch.
    pub last_epoch: Epoch,
    /// `header_crc` of the last batch.
    pub chain: u32,
    /// BLAKE3 of the first `data_len` bytes.
    pub digest: [u8; 32],
    /// The first batch that starts in each 64 KiB: (first sequence, offset).
    pub index: Vec<(u64, u64)>,
}

impl Footer {
    /// Most bytes that the footer of a segment with such a capacity takes.
    pub fn len_max(capacity: u64) -> u64 {
        let index_len = 16 * (capacity / INDEX_STEP + 1);
        (3 * 8 + SUMMARY_LEN + 32 + TRAILER_LEN) as u64 + index_len
    }

    /// The stored bytes, sections and trailer.
    pub fn encode(&self, nonce: u32) -> Vec<u8> {
        let mut summary = Vec::with_capacity(SUMMARY_LEN);
        for field in [
            self.first_seq,
            self.last_seq,
            self.batch_count,
            self.data_len,
            self.first_timestamp.0,
            self.last_timestamp.0,
        ] {
            summary.extend_from_slice(&field.to_le_bytes());
        }
        summary.extend_from_slice(&self.last_epoch.0.to_le_bytes());
        summary.extend_from_slice(&self.chain.to_le_bytes());
        let mut index = Vec::with_capacity(self.index.len() * 16);
        for (seq, offset) in &self.index {
            index.extend_from_slice(&seq.to_le_bytes());
            index.extend_from_slice(&offset.to_le_bytes());
        }
        let mut bytes = Vec::new();
        for (kind, flags, body) in [
            (1u16, SECTION_MUST, &summary[..]),
            (2, SECTION_MUST, &self.digest[..]),
            (3, 0, &index),
        ] {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
            bytes.extend_from_slice(body);
        }
        let mut trailer = [0; TRAILER_LEN];
        put(&mut trailer, 0, &self.data_len.to_le_bytes());
        put(&mut trailer, 8, &(bytes.len() as u32).to_le_bytes());
        put(&mut trailer, 12, &crc32fast::hash(&bytes).to_le_bytes());
        put(&mut trailer, 16, &nonce.to_le_bytes());
        put(&mut trailer, 20, &u32::from(VERSION).to_le_bytes());
        put(&mut trailer, 24, &FOOTER_MAGIC);
        let crc = crc32fast::hash(&trailer[..28]);
        put(&mut trailer, 28, &crc.to_le_bytes());
        bytes.extend_from_slice(&trailer);
        bytes
    }

    /// Whether these are the last bytes of some sealed segment, as far as they tell by themselves.
    pub(crate) fn is_trailer(trailer: &[u8; TRAILER_LEN]) -> bool {
        trailer[24..28] == FOOTER_MAGIC
    }

    /// Where the footer starts and how long its sections are, out of the file's last 32 bytes;
    /// `None` where they are no trailer of this segment: the file was not sealed, or its end is lost.
    pub fn peek(trailer: &[u8], nonce: u32, file_len: u64) -> Option<(u64, usize)> {
        let trailer = trailer.first_chunk::<TRAILER_LEN>()?;
        let intact = Footer::is_trailer(trailer)
            && (u32_at(trailer, 28) == crc32fast::hash(&trailer[..28])
                || planted("footer.trailer_crc"))
            && u32_at(trailer, 16) == nonce
            && u32_at(trailer, 20) == u32::from(VERSION);
        let (data_len, sections_len) = (u64_at(trailer, 0), u32_at(trailer, 8));
        let end = data_len
            .checked_add(sections_len.into())?
            .checked_add(TRAILER_LEN as u64)?;
        (intact && data_len >= SEGMENT_HEADER_LEN as u64 && end == file_len)
            .then_some((data_len, sections_len as usize))
    }

    /// Reads a whole footer: `bytes` are everything from `data_len` to the end of the file.
    ///
    /// # Errors
    /// [`Error::Corrupt`] or [`Error::Unsupported`], naming the file and the place.
    pub fn decode(bytes: &[u8], nonce: u32, data_len: u64, path: &Path) -> Result<Footer> {
        let wrong = |at: usize, what, expected: String, found: String| {
            Error::corrupt(path, data_len + at as u64, what, expected, found)
        };
        let sections_len = bytes.len().checked_sub(TRAILER_LEN).ok_or_else(|| {
            wrong(
                0,
                "footer",
                "a trailer".to_owned(),
                format!("{} bytes", bytes.len()),
            )
        })?;
        let (sections, trailer) = bytes.split_at(sections_len);
        let peeked = Footer::peek(trailer, nonce, data_len + bytes.len() as u64);
        if peeked != Some((data_len, sections_len)) {
            let expected = format!("a trailer of nonce {nonce:#x}");
            return Err(wrong(
                sections_len,
                "footer trailer",
                expected,
                "another".to_owned(),
            ));
        }
        let (expected, found) = (crc32fast::hash(sections), u32_at(trailer, 12));
        if expected != found && !planted("footer.crc") {
            let (expected, found) = (format!("{expected:#010x}"), format!("{found:#010x}"));
            return Err(wrong(0, "footer checksum", expected, found));
        }
        let (mut summary, mut digest, mut index) = (None, None, Vec::new());
        let mut at = 0;
        while at < sections.len() {
            let rest = &sections[at..];
            let body_len = if rest.len() < SECTION_HEADER_LEN {
                usize::MAX
            } else {
                u32_at(rest, 4) as usize
            };
            let body = rest
                .get(SECTION_HEADER_LEN..)
                .and_then(|rest| rest.get(..body_len));
            let Some(body) = body.filter(|body| body.len().is_multiple_of(8)) else {
                let found = format!("{body_len} bytes");
                return Err(wrong(
                    at,
                    "section length",
                    "a section within".to_owned(),
                    found,
                ));
            };
            let (kind, flags) = (u16_at(rest, 0), u16_at(rest, 2));
            match kind {
                1 if body.len() == SUMMARY_LEN => summary = Some(body),
                2 if body.len() == DIGEST_LEN => digest = Some(array_at(body, 0)),
                3 if body.len().is_multiple_of(16) => {
                    index = body
                        .chunks(16)
                        .map(|e| (u64_at(e, 0), u64_at(e, 8)))
                        .collect();
                }
                1..=3 => {
                    let found = format!("{body_len} bytes for kind {kind}");
                    return Err(wrong(
                        at,
                        "section length",
                        "its fixed size".to_owned(),
                        found,
                    ));
                }
                _ if flags & SECTION_MUST != 0 => {
                    return Err(Error::Unsupported {
                        path: path.to_owned(),
                        expected: "footer sections 1 to 3".to_owned(),
                        found: format!("footer section {kind}, of a newer release"),
                    });
                }
                _ => {}
            }
            at += SECTION_HEADER_LEN + body_len;
        }
        let (Some(summary), Some(digest)) = (summary, digest) else {
            let found = "a footer without".to_owned();
            return Err(wrong(
                0,
                "footer sections",
                "summary and digest".to_owned(),
                found,
            ));
        };
        let footer = Footer {
            first_seq: u64_at(summary, 0),
            last_seq: u64_at(summary, 8),
            batch_count: u64_at(summary, 16),
            data_len: u64_at(summary, 24),
            first_timestamp: Hlc(u64_at(summary, 32)),
            last_timestamp: Hlc(u64_at(summary, 40)),
            last_epoch: Epoch(u32_at(summary, 48)),
            chain: u32_at(summary, 52),
            digest,
            index,
        };
        if footer.data_len != data_len || footer.last_seq < footer.first_seq {
            let expected = format!("{data_len} bytes of data");
            return Err(wrong(
                0,
                "footer summary",
                expected,
                format!("{}", footer.data_len),
            ));
        }
        Ok(footer)
    }
}

/// Where a log's segment lies: `dir` is the dataset's region directory.
pub fn path_of(dir: &Path, shard: ShardId, first_seq: u64) -> PathBuf {
    dir.join(file_name(shard, first_seq))
}

#[cfg(test)]
mod tests;
