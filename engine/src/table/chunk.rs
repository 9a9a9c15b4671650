//! A chunk: records in order, then where each begins, under one checksum that binds the place.
//!
//! | Offset | Size | Field        | Meaning                                                    |
//! |-------:|-----:|--------------|------------------------------------------------------------|
//! |      0 |    4 | crc          | CRC-32 of the lineage, then of the chunk from byte 4 on.   |
//! |      4 |    4 | records_len  | Bytes of the records, a multiple of 8.                     |
//! |      8 |    4 | record_count | Never 0.                                                   |
//! |     12 |    4 | reserved     | Zero. A reader rejects anything else.                      |
//! |     16 |    8 | number       | Number of the table.                                       |
//! |     24 |    8 | offset       | Where the chunk begins in the file.                        |
//! |     32 |    n | records      | `records_len` bytes, see `record`.                         |
//! |   32+n |    m | starts       | Per record 2 bytes: where it begins in the chunk, over 8.  |
//!
//! Zeros follow up to a multiple of 8. The starts make the steps backward and the binary search; a
//! step forward needs only the record. A record that does not fit into the target length has a chunk
//! of its own, so that every start fits into its two bytes.

use std::cmp::Ordering;

use strandline_wal::bug::planted;

use super::damage::Damage;
use super::entry::{Entry, InternalKey};
use super::header::Identity;
use super::layout::{Field, is_zero};
use super::record::{self, Record};

/// Length of the fixed part. Part of the format.
pub(super) const HEADER_LEN: usize = 32;

/// Length that chunks are filled up to by default.
pub(super) const CHUNK_LEN_TARGET: usize = 32 << 10;

/// The least and the largest target that can be asked for.
pub(super) const CHUNK_LEN_TARGET_MIN: usize = 128;
pub(super) const CHUNK_LEN_TARGET_MAX: usize = 256 << 10;

/// The longest chunk: one record of the longest kind.
pub(super) const CHUNK_LEN_MAX: usize =
    HEADER_LEN + record::RECORD_LEN_MAX + START_LEN.next_multiple_of(record::ALIGN_LEN);

/// The shortest chunk: one record with an empty name and no value.
pub(super) const CHUNK_LEN_MIN: usize = HEADER_LEN + record::HEADER_LEN + 8;

const START_LEN: usize = 2;

const CRC: Field = Field::first(4);
const RECORDS_LEN: Field = CRC.then(4);
const RECORD_COUNT: Field = RECORDS_LEN.then(4);
const RESERVED: Field = RECORD_COUNT.then(4);
const NUMBER: Field = RESERVED.then(8);
const OFFSET: Field = NUMBER.then(8);

const _: () = assert!(OFFSET.end() == HEADER_LEN);
const _: () = assert!(HEADER_LEN.is_multiple_of(record::ALIGN_LEN));
const _: () = assert!(CHUNK_LEN_TARGET_MAX / record::ALIGN_LEN <= u16::MAX as usize);
const _: () = assert!(CHUNK_LEN_MAX <= u32::MAX as usize);

/// A chunk that is being filled.
pub(super) struct ChunkBuilder {
    bytes: Vec<u8>,
    starts: Vec<u16>,
}

impl ChunkBuilder {
    pub fn new(len: usize) -> ChunkBuilder {
        let mut bytes = Vec::with_capacity(len);
        bytes.resize(HEADER_LEN, 0);
        ChunkBuilder {
            bytes,
            starts: Vec::new(),
        }
    }

    /// Records in it.
    pub fn record_count(&self) -> usize {
        self.starts.len()
    }

    /// Its length, the starts left out.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How long the chunk would be with this entry in it.
    pub fn len_with(&self, entry: &Entry<'_>) -> usize {
        let starts_len = (self.starts.len() + 1) * START_LEN;
        (self.bytes.len() + Record::len_of(entry) + starts_len).next_multiple_of(record::ALIGN_LEN)
    }

    /// Appends an entry; tells where its record begins in the chunk.
    pub fn push(&mut self, entry: &Entry<'_>) -> usize {
        let at = self.bytes.len();
        let start = u16::try_from(at / record::ALIGN_LEN).expect("a full chunk was not closed");
        self.starts.push(start);
        Record::encode(entry, &mut self.bytes);
        at
    }

    /// Completes the chunk for its place in the file.
    pub fn seal(&mut self, identity: &Identity, at: u64) -> &[u8] {
        let records_len = (self.bytes.len() - HEADER_LEN) as u32;
        for start in &self.starts {
            self.bytes.extend_from_slice(&start.to_le_bytes());
        }
        self.bytes
            .resize(self.bytes.len().next_multiple_of(record::ALIGN_LEN), 0);
        let header: &mut [u8; HEADER_LEN] = self
            .bytes
            .first_chunk_mut()
            .expect("the header was there from the start");
        RECORDS_LEN.put(header, &records_len.to_le_bytes());
        RECORD_COUNT.put(header, &(self.starts.len() as u32).to_le_bytes());
        NUMBER.put(header, &identity.number.to_le_bytes());
        OFFSET.put(header, &at.to_le_bytes());
        let crc = crc_of(identity, &self.bytes[CRC.end()..]);
        self.bytes[..CRC.end()].copy_from_slice(&crc.to_le_bytes());
        &self.bytes
    }

    /// Begins the next chunk.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(HEADER_LEN, 0);
        self.starts.clear();
    }
}

/// The shape of a chunk: where its records end and how many there are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shape {
    pub record_count: u32,
    /// Where the records end and the starts begin.
    pub records_end: usize,
}

impl Shape {
    /// Reads the shape of a chunk, trusting none of its bytes.
    pub fn decode(chunk: &[u8]) -> Result<Shape, Damage> {
        let Some(header) = chunk.first_chunk::<HEADER_LEN>() else {
            return Err(Damage::new(0, "header of a chunk", "32 bytes", chunk.len()));
        };
        let record_count = RECORD_COUNT.u32(header);
        let records_end = HEADER_LEN + RECORDS_LEN.u32(header) as usize;
        let end = records_end + record_count as usize * START_LEN;
        let len = end.next_multiple_of(record::ALIGN_LEN);
        if len != chunk.len() || record_count == 0 {
            return Err(Damage::new(4, "length of a chunk", chunk.len(), len));
        }
        Ok(Shape {
            record_count,
            records_end,
        })
    }

    /// The record of that ordinal, or damage where there is none.
    pub fn record(&self, chunk: &[u8], ordinal: u32) -> Result<Record, Damage> {
        self.record_at(chunk, self.start(chunk, ordinal)?)
    }

    /// The record that begins there.
    pub fn record_at(&self, chunk: &[u8], at: usize) -> Result<Record, Damage> {
        Record::decode(chunk.get(..self.records_end).unwrap_or_default(), at)
    }

    fn start(&self, chunk: &[u8], ordinal: u32) -> Result<usize, Damage> {
        let at = self.records_end + ordinal as usize * START_LEN;
        match chunk
            .get(at..)
            .and_then(|rest| rest.first_chunk::<START_LEN>())
        {
            Some(start) if ordinal < self.record_count => {
                Ok(usize::from(u16::from_le_bytes(*start)) * record::ALIGN_LEN)
            }
            _ => Err(Damage::new(
                8,
                "number of records",
                self.record_count,
                ordinal,
            )),
        }
    }

    /// The ordinal of the record that begins there.
    pub fn ordinal_of(&self, chunk: &[u8], at: usize) -> Result<u32, Damage> {
        let (mut low, mut high) = (0, self.record_count);
        // Where it is if all are equally long.
        let records_len = (self.records_end - HEADER_LEN).max(1) as u64;
        let before = at.saturating_sub(HEADER_LEN) as u64;
        let mut middle = (before * u64::from(high) / records_len) as u32;
        while low < high {
            middle = middle.clamp(low, high - 1);
            match self.start(chunk, middle)?.cmp(&at) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Ok(middle),
                Ordering::Greater => high = middle,
            }
            middle = low.midpoint(high);
        }
        Err(Damage::new(at as u64, "start of a record", at, "none"))
    }

    /// The first ordinal of `low..high` whose record is at or behind `key`; `high` where none is.
    pub fn search(
        &self,
        chunk: &[u8],
        key: InternalKey<'_>,
        mut low: u32,
        mut high: u32,
    ) -> Result<u32, Damage> {
        while low < high {
            let middle = low.midpoint(high);
            if self.record(chunk, middle)?.key(chunk) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
    }
}

/// Checks everything about the chunk that should stand at `at`: checksum, place, every record and
/// every start, padding, and the order. Offsets in the answer count from the start of the file.
pub(super) fn check(chunk: &[u8], at: u64, identity: &Identity) -> Result<Shape, Damage> {
    checked(chunk, at, identity).map_err(|damage| Damage {
        at: at + damage.at,
        ..damage
    })
}

fn checked(chunk: &[u8], at: u64, identity: &Identity) -> Result<Shape, Damage> {
    let Some(header) = chunk.first_chunk::<HEADER_LEN>() else {
        return Err(Damage::new(0, "header of a chunk", "32 bytes", chunk.len()));
    };
    // The place is compared first, so that a chunk that strayed is called that.
    let place = (NUMBER.u64(header), OFFSET.u64(header));
    let crc = crc_of(identity, chunk.get(CRC.end()..).unwrap_or_default());
    if CRC.u32(header) != crc && !planted("chunk.crc") {
        let (mut expected, mut found) = (format!("{crc:08x}"), format!("{:08x}", CRC.u32(header)));
        if place != (identity.number, at) {
            expected = format!("{expected} of table {} at {at}", identity.number);
            found = format!("{found} of table {} at {}", place.0, place.1);
        }
        return Err(Damage::new(0, "checksum of a chunk", expected, found));
    }
    if place != (identity.number, at) {
        let expected = format!("table {} at {at}", identity.number);
        let found = format!("table {} at {}", place.0, place.1);
        return Err(Damage::new(
            NUMBER.at as u64,
            "place of a chunk",
            expected,
            found,
        ));
    }
    if !RESERVED.is_zero(header) {
        let at = RESERVED.at as u64;
        return Err(Damage::new(
            at,
            "reserved bytes of a chunk",
            "zeros",
            "other bytes",
        ));
    }
    let shape = Shape::decode(chunk)?;
    check_records(chunk, &shape)?;
    let end = shape.records_end + shape.record_count as usize * START_LEN;
    if !chunk.get(end..).is_some_and(is_zero) {
        return Err(Damage::new(
            end as u64,
            "padding of a chunk",
            "zeros",
            "other bytes",
        ));
    }
    Ok(shape)
}

/// The records tile their part of the chunk, the starts name them, and they ascend.
fn check_records(chunk: &[u8], shape: &Shape) -> Result<(), Damage> {
    let mut at = HEADER_LEN;
    let mut before: Option<Record> = None;
    for ordinal in 0..shape.record_count {
        let start = shape.start(chunk, ordinal)?;
        if start != at {
            return Err(Damage::new(at as u64, "start of a record", at, start));
        }
        let record = shape.record_at(chunk, at)?;
        record.check(chunk)?;
        if before.is_some_and(|before| before.key(chunk) >= record.key(chunk)) {
            return Err(Damage::new(
                at as u64,
                "order of records",
                "ascending",
                "not so",
            ));
        }
        at = record.end();
        before = Some(record);
    }
    if at != shape.records_end {
        return Err(Damage::new(
            at as u64,
            "end of the records",
            shape.records_end,
            at,
        ));
    }
    Ok(())
}

pub(super) fn crc_of(identity: &Identity, bytes: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&identity.lineage);
    crc.update(bytes);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::EntryKind;
    use strandline_wal::Hlc;

    const IDENTITY: Identity = Identity {
        number: 7,
        lineage: [9; 16],
    };

    fn chunk(names: &[&str]) -> Vec<u8> {
        let mut builder = ChunkBuilder::new(1024);
        for name in names {
            let kind = EntryKind::Value;
            builder.push(&Entry {
                name: name.as_bytes(),
                version: Hlc(1),
                kind,
                value: b"v",
            });
        }
        builder.seal(&IDENTITY, 64).to_vec()
    }

    /// The bytes with a checksum as if they had been written so.
    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let crc = crc_of(&IDENTITY, &bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn the_byte_table_is_what_the_code_does() {
        super::super::layout::check_byte_table(
            include_str!("chunk.rs"),
            0,
            &[
                ("crc", CRC),
                ("records_len", RECORDS_LEN),
                ("record_count", RECORD_COUNT),
                ("reserved", RESERVED),
                ("number", NUMBER),
                ("offset", OFFSET),
            ],
        );
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = chunk(&["a", "b", "c"]);
        check(&good, 64, &IDENTITY).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&bad, 64, &IDENTITY).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(check(&good[..len], 64, &IDENTITY).is_err(), "length {len}");
        }
    }

    #[test]
    fn a_chunk_fits_one_place_of_one_table_of_one_database() {
        let good = chunk(&["a"]);
        assert!(check(&good, 72, &IDENTITY).is_err());
        assert!(
            check(
                &good,
                64,
                &Identity {
                    number: 8,
                    ..IDENTITY
                }
            )
            .is_err()
        );
        assert!(
            check(
                &good,
                64,
                &Identity {
                    lineage: [8; 16],
                    ..IDENTITY
                }
            )
            .is_err()
        );
    }

    #[test]
    fn records_out_of_order_are_refused_under_a_good_checksum() {
        assert!(check(&chunk(&["b", "a"]), 64, &IDENTITY).is_err());
        assert!(check(&chunk(&["a", "a"]), 64, &IDENTITY).is_err());
    }

    #[test]
    fn a_chunk_without_a_header_or_a_record_has_no_shape() {
        let damage = Shape::decode(&[0; HEADER_LEN - 1]).unwrap_err();
        assert_eq!((damage.at, damage.what), (0, "header of a chunk"));
        assert_eq!(damage.found, "31");
        let damage = Shape::decode(&[0; HEADER_LEN]).unwrap_err();
        assert_eq!((damage.at, damage.what), (4, "length of a chunk"));
    }

    #[test]
    fn crafted_chunks_with_good_checksums_never_panic() {
        let good = chunk(&["a", "b", "c"]);
        for at in 4..good.len() {
            for byte in [0, 1, 2, 3, 4, 5, 8, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                let bad = resealed(bad);
                if let Ok(shape) = check(&bad, 64, &IDENTITY) {
                    for ordinal in 0..shape.record_count {
                        shape.record(&bad, ordinal).unwrap();
                    }
                }
                if let Ok(shape) = Shape::decode(&bad) {
                    for ordinal in 0..=shape.record_count.min(9) {
                        let _ = shape.record(&bad, ordinal);
                    }
                }
            }
        }
    }
}
