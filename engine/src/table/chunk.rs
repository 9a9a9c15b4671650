//! A chunk: records in order, then where each begins, under one checksum that binds the place.
//!
//! | Offset | Size | Field        | Meaning                                                    |
//! |-------:|-----:|--------------|------------------------------------------------------------|
//! |      0 |    4 | crc          | CRC-32 of the lineage, then of the chunk from byte 4 on.   |
//! |      4 |    4 | records_len  | Bytes of the records.                                      |
//! |      8 |    4 | record_count | Never 0.                                                   |
//! |     12 |    4 | record_len   | Length of each record where all have one, else 0.          |
//! |     16 |    8 | number       | Number of the table.                                       |
//! |     24 |    8 | offset       | Where the chunk begins in the file.                        |
//! |     32 |    8 | version_min  | The oldest version.                                        |
//! |     40 |    1 | version_len  | Bytes of a record's version: those the newest needs.       |
//! |     41 |    7 | reserved     | Zero. A reader rejects anything else.                      |
//! |     48 |    n | records      | `records_len` bytes, see `record`.                         |
//! |   48+n |    m | starts       | Per record 2 bytes: where it begins in the chunk. None where `record_len` says it. |
//!
//! Eight zeros follow, so that a version is loaded at once. The starts make the steps backward and the
//! binary search; a step forward needs only the record. A record that does not fit into the target
//! length has a chunk of its own, so that every start fits into its two bytes.

use std::cmp::Ordering;

use strandline_wal::Hlc;
use strandline_wal::bug::planted;

use super::damage::Damage;
use super::entry::{Entry, InternalKey};
use super::header::Identity;
use super::layout::{Field, is_zero};
use super::record::{self, Record, TAIL_LEN, Versions};

/// Length of the fixed part. Part of the format.
pub(super) const HEADER_LEN: usize = 48;

/// Length that chunks are filled up to by default.
pub(super) const CHUNK_LEN_TARGET: usize = 32 << 10;

/// The least and the largest target that can be asked for.
pub(super) const CHUNK_LEN_TARGET_MIN: usize = 128;
pub(super) const CHUNK_LEN_TARGET_MAX: usize = 64 << 10;

/// The longest chunk: one record of the longest kind.
pub(super) const CHUNK_LEN_MAX: usize = HEADER_LEN + record::RECORD_LEN_MAX + TAIL_LEN;

/// The shortest chunk: one record with an empty name and no value.
pub(super) const CHUNK_LEN_MIN: usize = HEADER_LEN + record::RECORD_LEN_MIN + TAIL_LEN;

const START_LEN: usize = 2;

const CRC: Field = Field::first(4);
const RECORDS_LEN: Field = CRC.then(4);
const RECORD_COUNT: Field = RECORDS_LEN.then(4);
const RECORD_LEN: Field = RECORD_COUNT.then(4);
const NUMBER: Field = RECORD_LEN.then(8);
const OFFSET: Field = NUMBER.then(8);
const VERSION_MIN: Field = OFFSET.then(8);
const VERSION_LEN: Field = VERSION_MIN.then(1);
const RESERVED: Field = VERSION_LEN.then(7);

const _: () = assert!(RESERVED.end() == HEADER_LEN);
// The last start lies before the last record ends.
const _: () = assert!(CHUNK_LEN_TARGET_MAX <= 1 << 16);
const _: () = assert!(CHUNK_LEN_MAX <= u32::MAX as usize);

/// A chunk that is being filled.
pub(super) struct ChunkBuilder {
    /// The records without their versions: how long these are is known at the end.
    records: Vec<u8>,
    rows: Vec<Row>,
    version_min: Hlc,
    version_max: Hlc,
    /// The chunk as it was sealed last.
    bytes: Vec<u8>,
}

/// A record of a chunk that is being filled.
struct Row {
    version: Hlc,
    /// Its name's, where it is the newest of that.
    hash: Option<u64>,
    /// Where it ends among the records.
    end: usize,
}

impl ChunkBuilder {
    pub fn new(len: usize) -> ChunkBuilder {
        ChunkBuilder {
            records: Vec::with_capacity(len),
            rows: Vec::new(),
            version_min: Hlc::MAX,
            version_max: Hlc(0),
            bytes: Vec::with_capacity(len),
        }
    }

    /// Records in it.
    pub fn record_count(&self) -> usize {
        self.rows.len()
    }

    /// Its length so far, starts and versions left out.
    pub fn len(&self) -> usize {
        HEADER_LEN + self.records.len()
    }

    /// How long the chunk would be with this entry in it, at most.
    pub fn len_with(&self, entry: &Entry<'_>) -> usize {
        let (min, max) = (self.version_min, self.version_max);
        let versions = Versions::between(min.min(entry.version), max.max(entry.version));
        let per_record = usize::from(versions.len) + START_LEN;
        self.len() + Record::len_of(entry) + (self.rows.len() + 1) * per_record + TAIL_LEN
    }

    /// Appends an entry. `hash` is that of a name whose newest version it is.
    pub fn push(&mut self, entry: &Entry<'_>, hash: Option<u64>) {
        Record::encode(entry, &mut self.records);
        self.version_min = self.version_min.min(entry.version);
        self.version_max = self.version_max.max(entry.version);
        self.rows.push(Row {
            version: entry.version,
            hash,
            end: self.records.len(),
        });
    }

    /// How the versions of its records are written.
    pub fn versions(&self) -> Versions {
        Versions::between(self.version_min, self.version_max)
    }

    /// Completes the chunk for its place in the file. Tells `see` where each record that has a hash
    /// begins in it.
    pub fn seal(&mut self, identity: &Identity, at: u64, mut see: impl FnMut(u64, usize)) -> &[u8] {
        let versions = self.versions();
        let bytes = &mut self.bytes;
        bytes.clear();
        bytes.resize(HEADER_LEN, 0);
        let mut from = 0;
        let mut starts = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let start = bytes.len();
            starts.push(start);
            if let Some(hash) = row.hash {
                see(hash, start);
            }
            Record::complete(&self.records[from..row.end], row.version, &versions, bytes);
            from = row.end;
        }
        let records_len = bytes.len() - HEADER_LEN;
        let mut record_len = records_len / starts.len();
        let is_even = |(n, start): (usize, &usize)| *start == HEADER_LEN + n * record_len;
        let are_even = starts.iter().enumerate().all(is_even);
        if !are_even || !records_len.is_multiple_of(starts.len()) {
            record_len = 0;
            for start in starts {
                let start = u16::try_from(start).expect("a full chunk was not closed");
                bytes.extend_from_slice(&start.to_le_bytes());
            }
        }
        bytes.extend_from_slice(&[0; TAIL_LEN]);
        let header: &mut [u8; HEADER_LEN] = bytes.first_chunk_mut().expect("it was made above");
        RECORDS_LEN.put(header, &(records_len as u32).to_le_bytes());
        RECORD_COUNT.put(header, &(self.rows.len() as u32).to_le_bytes());
        RECORD_LEN.put(header, &(record_len as u32).to_le_bytes());
        NUMBER.put(header, &identity.number.to_le_bytes());
        OFFSET.put(header, &at.to_le_bytes());
        VERSION_MIN.put(header, &versions.min.0.to_le_bytes());
        VERSION_LEN.put(header, &[versions.len]);
        let crc = crc_of(identity, &bytes[CRC.end()..]);
        bytes[..CRC.end()].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Begins the next chunk.
    pub fn clear(&mut self) {
        self.records.clear();
        self.rows.clear();
        (self.version_min, self.version_max) = (Hlc::MAX, Hlc(0));
    }
}

/// The shape of a chunk: where its records end, how many there are, and how their versions are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Shape {
    pub versions: Versions,
    pub record_count: u32,
    records_end: u32,
    /// Length of each record where all have one, else 0.
    record_len: u32,
}

impl Shape {
    /// Reads the shape of a chunk, trusting none of its bytes.
    pub fn decode(chunk: &[u8]) -> Result<Shape, Damage> {
        let Some(header) = chunk.first_chunk::<HEADER_LEN>() else {
            return Err(Damage::new(0, "header of a chunk", "48 bytes", chunk.len()));
        };
        let (min, len) = (Hlc(VERSION_MIN.u64(header)), VERSION_LEN.u8(header));
        let Some(versions) = Versions::of(min, len) else {
            let at = VERSION_LEN.at as u64;
            return Err(Damage::new(at, "length of versions", "1 to 8", len));
        };
        let records_len = RECORDS_LEN.u32(header);
        let shape = Shape {
            versions,
            record_count: RECORD_COUNT.u32(header),
            records_end: records_len.saturating_add(HEADER_LEN as u32),
            record_len: RECORD_LEN.u32(header),
        };
        let len = shape.starts_end() + TAIL_LEN;
        if len != chunk.len() || shape.record_count == 0 {
            return Err(Damage::new(4, "length of a chunk", chunk.len(), len));
        }
        let sum = u64::from(shape.record_len) * u64::from(shape.record_count);
        if shape.record_len != 0 && sum != u64::from(records_len) {
            let at = RECORD_LEN.at as u64;
            return Err(Damage::new(at, "length of the records", records_len, sum));
        }
        Ok(shape)
    }

    /// Where the records end and the starts begin.
    #[inline]
    pub fn records_end(&self) -> usize {
        self.records_end as usize
    }

    /// Where the starts end.
    fn starts_end(&self) -> usize {
        let start_len = if self.record_len == 0 { START_LEN } else { 0 };
        self.records_end() + self.record_count as usize * start_len
    }

    /// The record of that ordinal, or damage where there is none.
    #[inline]
    pub fn record(&self, chunk: &[u8], ordinal: u32) -> Result<Record, Damage> {
        self.record_at(chunk, self.start(chunk, ordinal)?)
    }

    /// The record that begins there.
    #[inline]
    pub fn record_at(&self, chunk: &[u8], at: usize) -> Result<Record, Damage> {
        Record::decode(chunk, at, &self.versions)
    }

    #[inline]
    fn start(&self, chunk: &[u8], ordinal: u32) -> Result<usize, Damage> {
        if ordinal >= self.record_count {
            return Err(self.missing(ordinal));
        }
        if self.record_len != 0 {
            return Ok(HEADER_LEN + ordinal as usize * self.record_len as usize);
        }
        let start = chunk.get(self.records_end() + ordinal as usize * START_LEN..);
        let start = start.and_then(|rest| rest.first_chunk::<START_LEN>());
        start
            .map(|start| usize::from(u16::from_le_bytes(*start)))
            .ok_or_else(|| self.missing(ordinal))
    }

    #[cold]
    fn missing(&self, ordinal: u32) -> Damage {
        Damage::new(8, "number of records", self.record_count, ordinal)
    }

    /// The ordinal of the record that begins there.
    pub fn ordinal_of(&self, chunk: &[u8], at: usize) -> Result<u32, Damage> {
        let (mut low, mut high) = (0, self.record_count);
        // Where it is if all are equally long.
        let records_len = (self.records_end() - HEADER_LEN).max(1) as u64;
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
    checked(chunk, at, identity).map_err(|damage| damage.behind(at))
}

fn checked(chunk: &[u8], at: u64, identity: &Identity) -> Result<Shape, Damage> {
    let Some(header) = chunk.first_chunk::<HEADER_LEN>() else {
        return Err(Damage::new(0, "header of a chunk", "48 bytes", chunk.len()));
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
    let end = shape.starts_end();
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

/// The records tile their part of the chunk, the starts name them, they ascend, and the versions are between
/// those that the header has.
fn check_records(chunk: &[u8], shape: &Shape) -> Result<(), Damage> {
    let mut at = HEADER_LEN;
    let mut before: Option<Record> = None;
    let (mut version_min, mut version_max) = (Hlc::MAX, Hlc(0));
    for ordinal in 0..shape.record_count {
        let start = shape.start(chunk, ordinal)?;
        if start != at {
            return Err(Damage::new(at as u64, "start of a record", at, start));
        }
        let record = shape.record_at(chunk, at)?;
        record.check(chunk, &shape.versions)?;
        if before.is_some_and(|before| before.key(chunk) >= record.key(chunk)) {
            return Err(Damage::new(
                at as u64,
                "order of records",
                "ascending",
                "not so",
            ));
        }
        version_min = version_min.min(record.version);
        version_max = version_max.max(record.version);
        at = record.end();
        before = Some(record);
    }
    if at != shape.records_end() {
        return Err(Damage::new(
            at as u64,
            "end of the records",
            shape.records_end(),
            at,
        ));
    }
    let versions = Versions::between(version_min, version_max);
    if versions != shape.versions {
        let text = |versions: Versions| format!("{} bytes above {}", versions.len, versions.min.0);
        let (expected, found) = (text(versions), text(shape.versions));
        let at = VERSION_MIN.at as u64;
        return Err(Damage::new(at, "versions of a chunk", expected, found));
    }
    Ok(())
}

/// Makes a chunk that was checked one of another history.
pub(super) fn set_lineage(chunk: &mut [u8], identity: &Identity) {
    let crc = crc_of(identity, &chunk[CRC.end()..]);
    chunk[..CRC.end()].copy_from_slice(&crc.to_le_bytes());
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
            let entry = Entry {
                name: name.as_bytes(),
                version: Hlc(name.len() as u64),
                kind,
                value: b"v",
            };
            builder.push(&entry, None);
        }
        builder.seal(&IDENTITY, 64, |_, _| {}).to_vec()
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
                ("record_len", RECORD_LEN),
                ("number", NUMBER),
                ("offset", OFFSET),
                ("version_min", VERSION_MIN),
                ("version_len", VERSION_LEN),
                ("reserved", RESERVED),
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
        assert_eq!(damage.found, "47");
        let mut bytes = [0; HEADER_LEN + TAIL_LEN];
        let damage = Shape::decode(&bytes).unwrap_err();
        assert_eq!((damage.at, damage.what), (40, "length of versions"));
        bytes[VERSION_LEN.at] = 1;
        let damage = Shape::decode(&bytes).unwrap_err();
        assert_eq!((damage.at, damage.what), (4, "length of a chunk"));
    }

    /// Equal lengths need no starts, and the checks hold for both forms.
    #[test]
    fn a_header_that_does_not_fit_its_records_is_refused_under_a_good_checksum() {
        for (names, starts_len) in [(["a", "b", "c"], 0), (["a", "bb", "c"], 6)] {
            let good = chunk(&names);
            let shape = check(&good, 64, &IDENTITY).unwrap();
            assert_eq!(shape.starts_end() - shape.records_end(), starts_len);
            for ordinal in 0..3 {
                let record = shape.record(&good, ordinal).unwrap();
                assert_eq!(record.name(&good), names[ordinal as usize].as_bytes());
            }
            let refused = |field: Field, byte: u8| {
                let mut bad = good.clone();
                bad[field.at] = byte;
                let damage = check(&resealed(bad), 64, &IDENTITY).unwrap_err();
                (damage.at - 64, damage.what)
            };
            let lens = [(4, "length of a chunk"), (12, "length of the records")];
            assert!(lens.contains(&refused(RECORD_LEN, 5)));
            assert_eq!(refused(VERSION_LEN, 0), (40, "length of versions"));
            assert_eq!(refused(VERSION_LEN, 9), (40, "length of versions"));
            assert_eq!(refused(RESERVED, 1), (41, "reserved bytes of a chunk"));
        }
        // Records of six bytes, of which the fourth is the version: none is the oldest any more.
        let mut bad = chunk(&["a", "b", "c"]);
        (bad[51], bad[57], bad[63]) = (1, 1, 1);
        let damage = check(&resealed(bad), 64, &IDENTITY).unwrap_err();
        assert_eq!((damage.at, damage.what), (64 + 32, "versions of a chunk"));
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
