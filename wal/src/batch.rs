//! The batch: a 64-byte header and its records. The only encoder and the only decoder of both.
//!
//! A batch is the unit of the log. The bytes written here are the bytes shipped to followers and
//! the bytes found in their segments. All numbers are little-endian.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SDLB`; zero is never valid: unwritten space is zero |
//! | 4 | 1 | version | 1 or 2 |
//! | 5 | 1 | flags | see [`flags`]; a reader refuses bits that it does not know |
//! | 6 | 2 | header_len | 64 |
//! | 8 | 8 | first_seq | sequence of the first record, from 1 |
//! | 16 | 4 | record_count | at least 1 |
//! | 20 | 4 | payload_len | stored bytes after the header, a multiple of 8, at most [`PAYLOAD_LEN_MAX`] |
//! | 24 | 4 | unsynced | `first_seq` minus the highest sequence known synced when this batch was written, saturating |
//! | 28 | 4 | epoch | leadership that wrote it (v1: 0) |
//! | 32 | 8 | timestamp | hybrid logical clock, the version of every record in the batch |
//! | 40 | 4 | nonce | of the segment's incarnation (v1: 0) |
//! | 44 | 4 | prev_crc | header_crc of the batch before (v1: 0) |
//! | 48 | 4 | payload_crc | CRC-32 (IEEE) of the payload |
//! | 52 | 4 | header_crc | CRC-32 (IEEE) of all other header bytes |
//! | 56 | 2 | ordinal | low bits of the dataset's commit count, over all its shards (v1: 0) |
//! | 58 | 2 | shard_id | the log it belongs to (v1: 0) |
//! | 60 | 2 | region_id | the region that wrote it (v1: 0) |
//! | 62 | 2 | tail | 0 |
//!
//! Version 1 has the same layout with zeros in the fields marked so, and lies in files without a
//! segment header. It is read, never written. The version byte alone tells the two apart.
//!
//! The payload is `record_count` records, one after the other, then zeros up to a multiple of 8:
//!
//! | Offset | Size | Record field | Meaning |
//! |-------:|-----:|--------------|---------|
//! | 0 | 1 | kind | see [`Kind`]; zero is never valid |
//! | 1 | 1 | record_flags | 0; bits are reserved for session, origin region and value compression |
//! | 2 | 2 | shard | whose state the record changes: a cross-shard batch lies in one log |
//! | 4 | 4 | head_len | at most [`HEAD_LEN_MAX`] |
//! | 8 | 4 | body_len | |
//! | 12 | n | head | what the record is about: for data, the keyspace and the key |
//! | 12+n | m | body | what it says: for a put, the value |

use crate::bug::planted;
use crate::bytes::{put, u16_at, u32_at, u64_at};
use crate::ids::{Epoch, Hlc, RegionId, ShardId};

/// Length of the batch header.
pub const HEADER_LEN: usize = 64;
/// `SDLB`.
pub const MAGIC: [u8; 4] = *b"SDLB";
/// The version that is written.
pub const VERSION: u8 = 2;
/// Longest payload. A reader checks this before it allocates.
pub const PAYLOAD_LEN_MAX: usize = 256 << 20;
/// Length of a record before its head.
pub const RECORD_HEADER_LEN: usize = 12;
/// Longest record head: a 4-byte keyspace and a key of up to 65,535 bytes.
pub const HEAD_LEN_MAX: usize = 4 + 65_535;
/// Batches start on multiples of this.
pub const ALIGN: usize = 8;

const _: () = assert!(HEADER_LEN.is_multiple_of(ALIGN));
const _: () = assert!(PAYLOAD_LEN_MAX <= u32::MAX as usize);
const _: () = assert!(HEAD_LEN_MAX + RECORD_HEADER_LEN < PAYLOAD_LEN_MAX);

/// Bits of the header's `flags`.
pub mod flags {
    /// The batch holds control records: the start of an epoch, a new keyspace.
    pub const CONTROL: u8 = 1 << 0;
    /// The records belong to more than one shard.
    pub const CROSS_SHARD: u8 = 1 << 1;
    /// What this build understands. Compression and encryption will take bits beyond.
    pub const KNOWN: u8 = CONTROL | CROSS_SHARD;
}

/// Field offsets, held against the table above by a test.
mod at {
    pub const MAGIC: usize = 0;
    pub const VERSION: usize = 4;
    pub const FLAGS: usize = 5;
    pub const HEADER_LEN: usize = 6;
    pub const FIRST_SEQ: usize = 8;
    pub const RECORD_COUNT: usize = 16;
    pub const PAYLOAD_LEN: usize = 20;
    pub const UNSYNCED: usize = 24;
    pub const EPOCH: usize = 28;
    pub const TIMESTAMP: usize = 32;
    pub const NONCE: usize = 40;
    pub const PREV_CRC: usize = 44;
    pub const PAYLOAD_CRC: usize = 48;
    pub const HEADER_CRC: usize = 52;
    pub const ORDINAL: usize = 56;
    pub const SHARD_ID: usize = 58;
    pub const REGION_ID: usize = 60;
    pub const TAIL: usize = 62;
}

/// Why bytes are not a batch. Recovery decides what it means; this module only says what it saw.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Damage {
    /// The bytes end before the batch does.
    #[error("{found} bytes where {needed} are needed")]
    Short {
        /// Bytes that the batch takes.
        needed: usize,
        /// Bytes there are.
        found: usize,
    },
    /// All header bytes are zero: nothing was written here.
    #[error("unwritten space")]
    Unwritten,
    /// Not a batch at all.
    #[error("magic {found:#010x} instead of {:#010x}", u32::from_le_bytes(MAGIC))]
    Magic {
        /// The first four bytes.
        found: u32,
    },
    /// A version that this build does not read. The header's checksum was not looked at.
    #[error("batch version {0}, this build reads 1 and 2")]
    Version(u8),
    /// The header's own checksum is off.
    #[error("header checksum {found:#010x}, computed {expected:#010x}")]
    HeaderCrc {
        /// Computed.
        expected: u32,
        /// Stored.
        found: u32,
    },
    /// A header field has a value that no writer gives it.
    #[error("header field {field} is {found}")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its value.
        found: u64,
    },
    /// The payload's checksum is off.
    #[error("payload checksum {found:#010x}, computed {expected:#010x}")]
    PayloadCrc {
        /// Computed.
        expected: u32,
        /// Stored.
        found: u32,
    },
    /// The payload's checksum holds and its records do not parse.
    #[error("record at payload byte {at}: {what} is {found}")]
    Record {
        /// Offset in the payload.
        at: usize,
        /// Which part.
        what: &'static str,
        /// Its value.
        found: u64,
    },
}

/// The fields of a batch header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BatchHeader {
    /// 1 or 2.
    pub version: u8,
    /// See [`flags`].
    pub flags: u8,
    /// Sequence of the first record.
    pub first_seq: u64,
    /// Number of records, at least 1.
    pub record_count: u32,
    /// Stored bytes after the header.
    pub payload_len: u32,
    /// `first_seq` minus the highest sequence known synced at the writer.
    pub unsynced: u32,
    /// Leadership that wrote it.
    pub epoch: Epoch,
    /// Version of its records.
    pub timestamp: Hlc,
    /// Of the segment's incarnation.
    pub nonce: u32,
    /// `header_crc` of the batch before.
    pub prev_crc: u32,
    /// Of the payload.
    pub payload_crc: u32,
    /// Low bits of the dataset's commit count: a gap between the logs of its shards shows.
    pub ordinal: u16,
    /// The log it belongs to.
    pub shard: ShardId,
    /// The region that wrote it.
    pub region: RegionId,
}

impl BatchHeader {
    /// Sequence of the last record.
    pub fn last_seq(&self) -> u64 {
        self.first_seq + u64::from(self.record_count) - 1
    }

    /// Bytes of the whole batch.
    pub fn batch_len(&self) -> usize {
        HEADER_LEN + self.payload_len as usize
    }

    /// The highest sequence that its writer knew synced when it wrote the batch.
    pub fn synced_seq(&self) -> u64 {
        self.first_seq.saturating_sub(u64::from(self.unsynced))
    }

    /// The stored bytes and their `header_crc`, which is the chain value of the next batch.
    pub fn encode(&self) -> ([u8; HEADER_LEN], u32) {
        assert_eq!(self.version, VERSION, "version 1 is read, never written");
        assert!(self.record_count >= 1, "a batch has a record");
        assert!(
            (self.payload_len as usize).is_multiple_of(ALIGN),
            "a payload is padded"
        );
        let mut bytes = [0; HEADER_LEN];
        put(&mut bytes, at::MAGIC, &MAGIC);
        bytes[at::VERSION] = self.version;
        bytes[at::FLAGS] = self.flags;
        put(
            &mut bytes,
            at::HEADER_LEN,
            &(HEADER_LEN as u16).to_le_bytes(),
        );
        put(&mut bytes, at::FIRST_SEQ, &self.first_seq.to_le_bytes());
        put(
            &mut bytes,
            at::RECORD_COUNT,
            &self.record_count.to_le_bytes(),
        );
        put(&mut bytes, at::PAYLOAD_LEN, &self.payload_len.to_le_bytes());
        put(&mut bytes, at::UNSYNCED, &self.unsynced.to_le_bytes());
        put(&mut bytes, at::EPOCH, &self.epoch.0.to_le_bytes());
        put(&mut bytes, at::TIMESTAMP, &self.timestamp.0.to_le_bytes());
        put(&mut bytes, at::NONCE, &self.nonce.to_le_bytes());
        put(&mut bytes, at::PREV_CRC, &self.prev_crc.to_le_bytes());
        put(&mut bytes, at::PAYLOAD_CRC, &self.payload_crc.to_le_bytes());
        put(&mut bytes, at::ORDINAL, &self.ordinal.to_le_bytes());
        put(&mut bytes, at::SHARD_ID, &self.shard.0.to_le_bytes());
        put(&mut bytes, at::REGION_ID, &self.region.0.to_le_bytes());
        let crc = header_crc(&bytes);
        put(&mut bytes, at::HEADER_CRC, &crc.to_le_bytes());
        (bytes, crc)
    }

    /// Reads a header and its stored `header_crc`, trusting none of the bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<(BatchHeader, u32), Damage> {
        let Some(bytes) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(Damage::Short {
                needed: HEADER_LEN,
                found: bytes.len(),
            });
        };
        if bytes == &[0; HEADER_LEN] {
            return Err(Damage::Unwritten);
        }
        if bytes[at::MAGIC..at::MAGIC + 4] != MAGIC {
            return Err(Damage::Magic {
                found: u32_at(bytes, at::MAGIC),
            });
        }
        let version = bytes[at::VERSION];
        if version != 1 && version != VERSION {
            return Err(Damage::Version(version));
        }
        let (expected, found) = (header_crc(bytes), u32_at(bytes, at::HEADER_CRC));
        if expected != found && !planted("batch.header_crc") {
            return Err(Damage::HeaderCrc { expected, found });
        }
        let header = BatchHeader {
            version,
            flags: bytes[at::FLAGS],
            first_seq: u64_at(bytes, at::FIRST_SEQ),
            record_count: u32_at(bytes, at::RECORD_COUNT),
            payload_len: u32_at(bytes, at::PAYLOAD_LEN),
            unsynced: u32_at(bytes, at::UNSYNCED),
            epoch: Epoch(u32_at(bytes, at::EPOCH)),
            timestamp: Hlc(u64_at(bytes, at::TIMESTAMP)),
            nonce: u32_at(bytes, at::NONCE),
            prev_crc: u32_at(bytes, at::PREV_CRC),
            payload_crc: u32_at(bytes, at::PAYLOAD_CRC),
            ordinal: u16_at(bytes, at::ORDINAL),
            shard: ShardId(u16_at(bytes, at::SHARD_ID)),
            region: RegionId(u16_at(bytes, at::REGION_ID)),
        };
        header.check(u16_at(bytes, at::HEADER_LEN))?;
        if u16_at(bytes, at::TAIL) != 0 {
            return Err(Damage::Field {
                field: "tail",
                found: u16_at(bytes, at::TAIL).into(),
            });
        }
        Ok((header, found))
    }

    /// The rules that a checksum cannot hold: ranges, and zeros where version 1 has them.
    fn check(&self, header_len: u16) -> Result<(), Damage> {
        let payload_len = self.payload_len as usize;
        let records_len_min = u64::from(self.record_count) * RECORD_HEADER_LEN as u64;
        let v1_zeros = u64::from(self.epoch.0)
            | u64::from(self.nonce)
            | u64::from(self.prev_crc)
            | u64::from(self.ordinal)
            | u64::from(self.shard.0)
            | u64::from(self.region.0);
        let rules: [(bool, &'static str, u64); 8] = [
            (
                usize::from(header_len) == HEADER_LEN,
                "header_len",
                header_len.into(),
            ),
            (self.flags & !flags::KNOWN == 0, "flags", self.flags.into()),
            (self.first_seq >= 1, "first_seq", self.first_seq),
            (
                self.first_seq
                    .checked_add(u64::from(self.record_count))
                    .is_some(),
                "first_seq",
                self.first_seq,
            ),
            (
                self.record_count >= 1,
                "record_count",
                self.record_count.into(),
            ),
            (
                payload_len <= PAYLOAD_LEN_MAX
                    && payload_len.is_multiple_of(ALIGN)
                    && records_len_min <= payload_len as u64,
                "payload_len",
                payload_len as u64,
            ),
            (
                self.version != 1 || v1_zeros == 0,
                "zeros of version 1",
                v1_zeros,
            ),
            (
                self.version == 1 || self.epoch.0 >= 1 || planted("batch.epoch"),
                "epoch",
                self.epoch.0.into(),
            ),
        ];
        match rules.iter().find(|(holds, ..)| !holds) {
            None => Ok(()),
            Some((_, field, found)) => Err(Damage::Field {
                field,
                found: *found,
            }),
        }
    }
}

fn header_crc(bytes: &[u8; HEADER_LEN]) -> u32 {
    // All others side by side: one call is cheaper than two.
    let mut others = [0; HEADER_LEN - 4];
    others[..at::HEADER_CRC].copy_from_slice(&bytes[..at::HEADER_CRC]);
    others[at::HEADER_CRC..].copy_from_slice(&bytes[at::HEADER_CRC + 4..]);
    crc32fast::hash(&others)
}

/// A batch in memory: a checked header and the payload that it describes.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The header.
    pub header: BatchHeader,
    /// The stored `header_crc`, the chain value of the next batch.
    pub header_crc: u32,
    /// The stored payload.
    pub payload: &'a [u8],
}

impl<'a> Batch<'a> {
    /// Reads the batch at the head of `bytes` and checks both checksums. Bytes behind it may follow.
    ///
    /// # Errors
    /// What is wrong with them. Records are looked at by [`Batch::records`].
    pub fn decode(bytes: &'a [u8]) -> Result<Batch<'a>, Damage> {
        let (header, header_crc) = BatchHeader::decode(bytes)?;
        Batch::behind(header, header_crc, bytes)
    }

    /// As [`Batch::decode`], where the header was read already.
    pub(crate) fn behind(
        header: BatchHeader,
        header_crc: u32,
        bytes: &'a [u8],
    ) -> Result<Batch<'a>, Damage> {
        let Some(payload) = bytes.get(HEADER_LEN..header.batch_len()) else {
            return Err(Damage::Short {
                needed: header.batch_len(),
                found: bytes.len(),
            });
        };
        let expected = crc32fast::hash(payload);
        if expected != header.payload_crc && !planted("batch.payload_crc") {
            return Err(Damage::PayloadCrc {
                expected,
                found: header.payload_crc,
            });
        }
        Ok(Batch {
            header,
            header_crc,
            payload,
        })
    }

    /// Its records in order. The first one that does not parse ends the walk with its error.
    pub fn records(&self) -> Records<'a> {
        Records {
            payload: self.payload,
            at: 0,
            left: self.header.record_count,
            failed: false,
        }
    }
}

/// What a record does.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Kind {
    /// Sets the value of a key.
    Put = 1,
    /// Removes a key.
    Delete = 2,
    /// Says something about the log or the dataset itself.
    Control = 3,
}

/// Kinds that have a number and no meaning yet: range delete, merge operand, ingest.
pub const KINDS_RESERVED: std::ops::RangeInclusive<u8> = 4..=6;

impl Kind {
    fn of(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::Put),
            2 => Some(Kind::Delete),
            3 => Some(Kind::Control),
            _ => None,
        }
    }
}

/// One change. The log knows no keys: the head says what it is about, the body what it says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Record<'a> {
    /// What it does.
    pub kind: Kind,
    /// Whose state it changes.
    pub shard: ShardId,
    /// What it is about.
    pub head: &'a [u8],
    /// What it says.
    pub body: &'a [u8],
    /// Offset of the body in the payload.
    pub body_at: usize,
}

/// Walks the records of a batch.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    payload: &'a [u8],
    at: usize,
    left: u32,
    failed: bool,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.left == 1 && self.at > 0 && planted("batch.last_record") {
            return None;
        }
        let record = if self.left == 0 {
            self.end()?
        } else {
            self.record()
        };
        self.failed = record.is_err();
        Some(record)
    }
}

impl<'a> Records<'a> {
    /// How many are left, if all of them parse.
    pub fn left(&self) -> usize {
        self.left as usize
    }

    #[inline]
    fn record(&mut self) -> Result<Record<'a>, Damage> {
        let wrong = |what, found| Damage::Record {
            at: self.at,
            what,
            found,
        };
        let rest = &self.payload[self.at..];
        let Some((header, rest)) = rest.split_first_chunk::<RECORD_HEADER_LEN>() else {
            return Err(wrong("bytes left", rest.len() as u64));
        };
        let kind = Kind::of(header[0]).ok_or_else(|| wrong("kind", header[0].into()))?;
        if header[1] != 0 {
            return Err(wrong("flags", header[1].into()));
        }
        let (head_len, body_len) = (u32_at(header, 4) as usize, u32_at(header, 8) as usize);
        if head_len > HEAD_LEN_MAX && !planted("record.head_len") {
            return Err(wrong("head_len", head_len as u64));
        }
        let parts = rest.split_at_checked(head_len);
        let Some((head, Some(body))) = parts.map(|(head, tail)| (head, tail.get(..body_len)))
        else {
            return Err(wrong("length", (head_len + body_len) as u64));
        };
        let shard = ShardId(u16_at(header, 2));
        let body_at = self.at + RECORD_HEADER_LEN + head_len;
        self.at = body_at + body_len;
        self.left -= 1;
        Ok(Record {
            kind,
            shard,
            head,
            body,
            body_at,
        })
    }

    /// Checks the padding once all records are read.
    fn end(&mut self) -> Option<Result<Record<'a>, Damage>> {
        let rest = &self.payload[self.at..];
        let clean =
            (rest.len() < ALIGN && rest.iter().all(|b| *b == 0)) || planted("records.padding");
        (!clean).then_some({
            Err(Damage::Record {
                at: self.at,
                what: "padding",
                found: rest.len() as u64,
            })
        })
    }
}

/// Records on their way into a batch, already in stored form.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    bytes: Vec<u8>,
    record_count: u32,
}

impl Payload {
    /// No records yet.
    pub fn new() -> Payload {
        Payload::default()
    }

    /// Adds a record and returns where its body will lie in the payload, or `None` where the
    /// payload would pass [`PAYLOAD_LEN_MAX`].
    ///
    /// # Panics
    /// Where the head is longer than [`HEAD_LEN_MAX`]: the caller checks keys.
    pub fn push(
        &mut self,
        kind: Kind,
        shard: ShardId,
        head: &[&[u8]],
        body: &[u8],
    ) -> Option<usize> {
        let head_len: usize = head.iter().map(|part| part.len()).sum();
        assert!(
            head_len <= HEAD_LEN_MAX,
            "a record head of {head_len} bytes"
        );
        let end = RECORD_HEADER_LEN + head_len + body.len();
        if self.bytes.len() + end > PAYLOAD_LEN_MAX - ALIGN || self.record_count == u32::MAX {
            return None;
        }
        self.bytes.reserve(end + ALIGN);
        let mut header = [0; RECORD_HEADER_LEN];
        header[0] = kind as u8;
        header[2..4].copy_from_slice(&shard.0.to_le_bytes());
        header[4..8].copy_from_slice(&(head_len as u32).to_le_bytes());
        header[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&header);
        for part in head {
            self.bytes.extend_from_slice(part);
        }
        let body_at = self.bytes.len();
        self.bytes.extend_from_slice(body);
        self.record_count += 1;
        Some(body_at)
    }

    /// Number of records.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Pads to the stored form and computes the checksum.
    ///
    /// # Panics
    /// Where there is no record.
    pub fn seal(mut self, flags: u8) -> SealedPayload {
        assert!(self.record_count >= 1, "a batch has a record");
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let crc = crc32fast::hash(&self.bytes);
        SealedPayload {
            bytes: self.bytes,
            record_count: self.record_count,
            crc,
            flags,
        }
    }
}

/// A payload as it will be stored.
#[derive(Clone, Debug)]
pub struct SealedPayload {
    bytes: Vec<u8>,
    record_count: u32,
    crc: u32,
    flags: u8,
}

impl SealedPayload {
    /// The stored bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of records.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Checksum of the bytes.
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// Header flags.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Its records, read back from the stored bytes.
    pub fn records(&self) -> Records<'_> {
        Records {
            payload: &self.bytes,
            at: 0,
            left: self.record_count,
            failed: false,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
