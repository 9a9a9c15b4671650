//! One record of a chunk: a short header, the whole name, the value.
//!
//! | Offset | Size | Field     | Meaning                                                     |
//! |-------:|-----:|-----------|-------------------------------------------------------------|
//! |      0 |    1 | name_len  |                                                             |
//! |      1 |    2 | rest      | Bits 0 and 1 the kind: 1 value, 2 pointer, 3 tombstone; then `value_len`. |
//! |      3 |    v | version   | Commit timestamp of its batch, above the chunk's `version_min`. |
//! |    3+v |    n | name      | `name_len` bytes.                                           |
//! |  3+v+n |    m | value     | `value_len` bytes: 28 for pointers, 0 for tombstones.       |
//!
//! Where a length does not fit, `name_len` and `rest` are 0, and between version and name stand:
//!
//! | Offset | Size | Field     | Meaning                                                     |
//! |-------:|-----:|-----------|-------------------------------------------------------------|
//! |      0 |    4 | value_len | At most [`VALUE_LEN_MAX`].                                  |
//! |      4 |    3 | name_len  | At most [`NAME_LEN_MAX`].                                   |
//! |      7 |    1 | kind      | 1 value, 2 pointer, 3 tombstone; 4 and 5 are reserved.      |
//!
//! The chunk says how many bytes v its versions take. Records follow each other without a gap. A name
//! is never shortened, so that a record can be compared and used where it stands.

use std::ops::Range;

use strandline_wal::Hlc;

use super::damage::Damage;
use super::entry::{Entry, EntryKind, InternalKey, NAME_LEN_MAX, VALUE_LEN_MAX};
use super::layout::{Field, hex, is_zero};
use super::pointer::{POINTER_LEN, ValuePointer};
use super::value::ValueSource;

const SHORT_NAME_LEN: Field = Field::first(1);
const REST: Field = SHORT_NAME_LEN.then(2);

/// Bytes before the version.
const LENS_LEN: usize = REST.end();

const VALUE_LEN: Field = Field::first(4);
const NAME_LEN: Field = VALUE_LEN.then(3);
const KIND: Field = NAME_LEN.then(1);

const WIDE_LEN: usize = KIND.end();

/// Most bytes of a version.
pub(super) const VERSION_LEN_MAX: usize = 8;

/// Bytes behind the last record of a chunk that may be loaded with a version.
pub(super) const TAIL_LEN: usize = VERSION_LEN_MAX;

/// Bytes that a short record is decoded from: the lengths and the longest version.
const LOAD_LEN: usize = LENS_LEN + VERSION_LEN_MAX;

/// Low bits of `rest` that are the kind.
const KIND_BITS: usize = 2;

const SHORT_NAME_LEN_MAX: usize = u8::MAX as usize;
const SHORT_VALUE_LEN_MAX: usize = (u16::MAX >> KIND_BITS) as usize;

const _: () = assert!(NAME_LEN_MAX < 1 << 24);
const _: () = assert!(VALUE_LEN_MAX <= u32::MAX as usize);

/// The shortest record.
pub(super) const RECORD_LEN_MIN: usize = LENS_LEN + 1;

/// The longest record.
pub(super) const RECORD_LEN_MAX: usize = LOAD_LEN + WIDE_LEN + NAME_LEN_MAX + VALUE_LEN_MAX;

/// How the records of a chunk have their versions: by how much they are newer than the oldest, in as many
/// bytes as the newest takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Versions {
    /// The oldest.
    pub min: Hlc,
    /// Bytes of each. Invariant: 1 to [`VERSION_LEN_MAX`].
    pub len: u8,
}

impl Versions {
    /// Those from `min` to `max`.
    pub fn between(min: Hlc, max: Hlc) -> Versions {
        let bits = u64::BITS - (max.0 - min.0).leading_zeros();
        let len = bits.div_ceil(8).max(1) as u8;
        Versions { min, len }
    }

    /// Those from `min` on that take `len` bytes; `None` where these are none or too many.
    pub fn of(min: Hlc, len: u8) -> Option<Versions> {
        let is_len = (1..=VERSION_LEN_MAX).contains(&usize::from(len));
        is_len.then_some(Versions { min, len })
    }

    /// The version that begins with these bytes.
    #[inline]
    fn version(&self, bytes: [u8; VERSION_LEN_MAX]) -> Hlc {
        let unused_bits = u64::BITS - 8 * u32::from(self.len);
        let above = u64::from_le_bytes(bytes) << unused_bits >> unused_bits;
        // A sum beyond the last version is found by the check of the chunk.
        Hlc(self.min.0.wrapping_add(above))
    }
}

/// Where the parts of a record stand in its chunk. The bytes are with whoever holds the chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Record {
    pub version: Hlc,
    // Half as long as a place in memory: records are copied much. No chunk has 4 GiB.
    name_at: u32,
    value_at: u32,
    end: u32,
    /// Bytes before the name.
    header_len: u8,
    pub kind: EntryKind,
}

impl Record {
    /// Bytes that an entry takes as a record, its version left out.
    pub fn len_of(entry: &Entry<'_>) -> usize {
        let (name_len, value_len) = (entry.name.len(), entry.value.len());
        let wide_len = if is_wide(name_len, value_len) {
            WIDE_LEN
        } else {
            0
        };
        LENS_LEN + wide_len + name_len + value_len
    }

    /// Appends an entry without its version. Its lengths are within the limits.
    pub fn encode(entry: &Entry<'_>, records: &mut Vec<u8>) {
        let (name_len, value_len) = (entry.name.len(), entry.value.len());
        assert!(name_len <= NAME_LEN_MAX);
        assert!(value_len <= VALUE_LEN_MAX);
        if is_wide(name_len, value_len) {
            let mut wide = [0; WIDE_LEN];
            VALUE_LEN.put(&mut wide, &(value_len as u32).to_le_bytes());
            NAME_LEN.put(&mut wide, &(name_len as u32).to_le_bytes()[..NAME_LEN.len]);
            KIND.put(&mut wide, &[entry.kind as u8]);
            records.extend_from_slice(&[0; LENS_LEN]);
            records.extend_from_slice(&wide);
        } else {
            let rest = (value_len << KIND_BITS | entry.kind as usize) as u16;
            records.push(name_len as u8);
            records.extend_from_slice(&rest.to_le_bytes());
        }
        records.extend_from_slice(entry.name);
        records.extend_from_slice(entry.value);
    }

    /// Appends what [`Self::encode`] has made of an entry of that version to a chunk.
    pub fn complete(record: &[u8], version: Hlc, versions: &Versions, chunk: &mut Vec<u8>) {
        let above = (version.0 - versions.min.0).to_le_bytes();
        let (lens, rest) = record.split_at(LENS_LEN);
        chunk.extend_from_slice(lens);
        chunk.extend_from_slice(&above[..usize::from(versions.len)]);
        chunk.extend_from_slice(rest);
    }

    /// Reads the record that begins at `at` of the chunk and ends within it. Says nothing about what
    /// [`Self::check`] has to look at: that was done once, when the chunk came into memory.
    #[inline]
    pub fn decode(chunk: &[u8], at: usize, versions: &Versions) -> Result<Record, Damage> {
        let load = chunk
            .get(at..)
            .and_then(|rest| rest.first_chunk::<LOAD_LEN>());
        let Some([name_len, rest_low, rest_high, version @ ..]) = load else {
            return Err(cut_header(at));
        };
        let version = versions.version(*version);
        let rest = u32::from(u16::from_le_bytes([*rest_low, *rest_high]));
        let header_len = LENS_LEN + usize::from(versions.len);
        let name_at = (at + header_len) as u32;
        let value_at = name_at + u32::from(*name_len);
        let record = match EntryKind::from_number((rest & ((1 << KIND_BITS) - 1)) as u8) {
            Some(kind) => Record {
                version,
                name_at,
                value_at,
                end: value_at + (rest >> KIND_BITS),
                header_len: header_len as u8,
                kind,
            },
            None => Record::decode_wide(chunk, at, name_at as usize, version)?,
        };
        if record.end() > chunk.len() {
            return Err(cut(at, record.end(), chunk.len()));
        }
        Ok(record)
    }

    /// The record of that version at `at`, whose lengths stand at `wide_at`.
    #[cold]
    fn decode_wide(
        chunk: &[u8],
        at: usize,
        wide_at: usize,
        version: Hlc,
    ) -> Result<Record, Damage> {
        let wide = chunk.get(wide_at..).and_then(|rest| rest.first_chunk());
        let Some(wide) = wide else {
            return Err(cut_header(at));
        };
        let (kind_at, number) = ((wide_at + KIND.at) as u64, KIND.u8::<WIDE_LEN>(wide));
        let Some(kind) = EntryKind::from_number(number) else {
            return Err(match EntryKind::is_reserved(number) {
                true => Damage::unsupported(kind_at, "kind of a record", "1 to 3", number),
                false => Damage::new(kind_at, "kind of a record", "1 to 3", number),
            });
        };
        let [a, b, c] = [0, 1, 2].map(|n| usize::from(wide[NAME_LEN.at + n]));
        let name_at = wide_at + WIDE_LEN;
        let value_at = name_at + (a | b << 8 | c << 16);
        let end = value_at + VALUE_LEN.u32(wide) as usize;
        // Before its places are shortened to four bytes.
        if end > chunk.len() {
            return Err(cut(at, end, chunk.len()));
        }
        Ok(Record {
            version,
            name_at: name_at as u32,
            value_at: value_at as u32,
            end: end as u32,
            header_len: (name_at - at) as u8,
            kind,
        })
    }

    /// Checks what [`Self::decode`] leaves out: limits, the form of the header, and what the kind demands.
    pub fn check(&self, chunk: &[u8], versions: &Versions) -> Result<(), Damage> {
        let at = self.at() as u64;
        let name_len = (self.value_at - self.name_at) as usize;
        let value_len = (self.end - self.value_at) as usize;
        if name_len > NAME_LEN_MAX {
            let expected = format!("at most {NAME_LEN_MAX}");
            return Err(Damage::new(at, "length of a name", expected, name_len));
        }
        if value_len > VALUE_LEN_MAX {
            let expected = format!("at most {VALUE_LEN_MAX}");
            return Err(Damage::new(at, "length of a value", expected, value_len));
        }
        let lens = chunk
            .get(self.at()..self.at() + LENS_LEN)
            .unwrap_or_default();
        let has_wide = usize::from(self.header_len) > LENS_LEN + usize::from(versions.len);
        if has_wide && (!is_zero(lens) || !is_wide(name_len, value_len)) {
            let expected = "0, and lengths that do not fit";
            return Err(Damage::new(at, "lengths of a record", expected, hex(lens)));
        }
        match self.kind {
            EntryKind::Value => {}
            EntryKind::Pointer => {
                ValuePointer::decode_at(self.value(chunk), u64::from(self.value_at))?;
            }
            EntryKind::Tombstone if value_len == 0 => {}
            EntryKind::Tombstone => {
                return Err(Damage::new(at, "value of a tombstone", "none", value_len));
            }
        }
        Ok(())
    }

    /// Where it begins in the chunk.
    #[inline]
    pub fn at(&self) -> usize {
        self.name_at as usize - usize::from(self.header_len)
    }

    /// Where the next record begins.
    #[inline]
    pub fn end(&self) -> usize {
        self.end as usize
    }

    /// The name, of a record that was read from this chunk.
    #[inline]
    pub fn name<'a>(&self, chunk: &'a [u8]) -> &'a [u8] {
        &chunk[self.name_at as usize..self.value_at as usize]
    }

    /// Where the record stands among others.
    #[inline]
    pub fn key<'a>(&self, chunk: &'a [u8]) -> InternalKey<'a> {
        InternalKey {
            name: self.name(chunk),
            version: self.version,
        }
    }

    /// Where the value lies in the chunk.
    #[inline]
    pub fn value_range(&self) -> Range<usize> {
        self.value_at as usize..self.end()
    }

    /// Where its value is, of a record that was read from this chunk.
    #[inline]
    pub fn value_source<'a>(&self, chunk: &'a [u8]) -> Result<ValueSource<'a>, Damage> {
        Ok(match self.kind {
            EntryKind::Value => ValueSource::Bytes(self.value(chunk)),
            EntryKind::Tombstone => ValueSource::Absent,
            EntryKind::Pointer => ValueSource::Pointer(ValuePointer::decode_at(
                self.value(chunk),
                self.value_at as u64,
            )?),
        })
    }

    /// The bytes of the value, of a record that was read from this chunk.
    #[inline]
    pub fn value<'a>(&self, chunk: &'a [u8]) -> &'a [u8] {
        &chunk[self.value_range()]
    }
}

#[cold]
fn cut_header(at: usize) -> Damage {
    let expected = format!("{LOAD_LEN} bytes");
    Damage::new(at as u64, "header of a record", expected, "the end")
}

#[cold]
fn cut(at: usize, end: usize, chunk_len: usize) -> Damage {
    let found = format!("{end} of {chunk_len}");
    Damage::new(at as u64, "end of a record", "in its chunk", found)
}

/// Whether lengths do not fit into `lens`.
fn is_wide(name_len: usize, value_len: usize) -> bool {
    name_len > SHORT_NAME_LEN_MAX || value_len > SHORT_VALUE_LEN_MAX
}

const _: () = assert!(POINTER_LEN <= VALUE_LEN_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_byte_tables_are_what_the_code_does() {
        let source = include_str!("record.rs");
        super::super::layout::check_byte_table(
            source,
            0,
            &[("name_len", SHORT_NAME_LEN), ("rest", REST)],
        );
        let wide = [
            ("value_len", VALUE_LEN),
            ("name_len", NAME_LEN),
            ("kind", KIND),
        ];
        super::super::layout::check_byte_table(source, 1, &wide);
    }

    fn versions() -> Versions {
        Versions::between(Hlc(5), Hlc(5 + 300))
    }

    /// A record as a chunk has it, with the bytes behind it.
    fn record(kind: EntryKind, name: &[u8], value: &[u8]) -> Vec<u8> {
        let version = Hlc(6);
        let entry = Entry {
            name,
            version,
            kind,
            value,
        };
        let (mut bytes, mut chunk) = (Vec::new(), Vec::new());
        Record::encode(&entry, &mut bytes);
        assert_eq!(bytes.len(), Record::len_of(&entry));
        Record::complete(&bytes, version, &versions(), &mut chunk);
        chunk.extend_from_slice(&[0; TAIL_LEN]);
        chunk
    }

    fn checked(bytes: &[u8]) -> Result<(), Damage> {
        Record::decode(bytes, 0, &versions())?.check(bytes, &versions())
    }

    /// A record that is not short, with that kind and those lengths.
    fn wide(number: u8, name_len: usize, value_len: usize) -> Vec<u8> {
        let mut bytes = vec![0; LENS_LEN + usize::from(versions().len)];
        bytes.extend_from_slice(&(value_len as u32).to_le_bytes());
        bytes.extend_from_slice(&(name_len as u32).to_le_bytes()[..3]);
        bytes.push(number);
        bytes.resize(bytes.len() + name_len + value_len + TAIL_LEN, 0);
        bytes
    }

    #[test]
    fn a_version_takes_the_bytes_that_the_newest_needs() {
        for (above, len) in [
            (0, 1),
            (1, 1),
            (255, 1),
            (256, 2),
            (1 << 32, 5),
            (u64::MAX - 7, 8),
        ] {
            let versions = Versions::between(Hlc(7), Hlc(7 + above));
            assert_eq!((versions.min, versions.len), (Hlc(7), len), "{above}");
            assert_eq!(Versions::of(Hlc(7), len), Some(versions));
        }
        assert_eq!([0, 9].map(|len| Versions::of(Hlc(7), len)), [None; 2]);
    }

    #[test]
    fn a_kind_has_the_value_that_it_demands() {
        use EntryKind::{Pointer, Tombstone, Value};
        checked(&record(Value, b"name", b"value")).unwrap();
        checked(&record(Tombstone, b"name", b"")).unwrap();
        checked(&record(Tombstone, &[b'n'; 300], b"")).unwrap();
        assert!(checked(&record(Tombstone, b"name", b"v")).is_err());
        assert!(checked(&record(Pointer, b"name", &[0; POINTER_LEN])).is_err());
        assert!(checked(&record(Pointer, b"name", b"short")).is_err());
        checked(&wide(1, 300, 5)).unwrap();
        for number in [0, 4, 5, 6, 255] {
            let damage = checked(&wide(number, 300, 5)).unwrap_err();
            assert_eq!((damage.at, damage.what), (12, "kind of a record"));
            assert_eq!(damage.is_unsupported, matches!(number, 4 | 5));
        }
    }

    #[test]
    fn every_short_prefix_is_refused() {
        for good in [
            record(EntryKind::Value, b"name", b"value"),
            record(EntryKind::Value, &[b'n'; 300], b"value"),
        ] {
            checked(&good).unwrap();
            for len in 0..good.len() - TAIL_LEN {
                assert!(checked(&good[..len]).is_err(), "{len}");
            }
        }
    }

    /// There is one way to write an entry.
    #[test]
    fn lengths_that_would_have_fitted_are_refused() {
        checked(&wide(1, 256, 0)).unwrap();
        checked(&wide(1, 0, 1 << 14)).unwrap();
        let damage = checked(&wide(1, 255, (1 << 14) - 1)).unwrap_err();
        assert_eq!((damage.at, damage.what), (0, "lengths of a record"));
        let mut bytes = wide(1, 256, 0);
        bytes[2] = 1;
        assert_eq!(checked(&bytes).unwrap_err().what, "lengths of a record");
    }

    #[test]
    fn lengths_over_the_limits_are_named() {
        for (name_len, value_len, what) in [
            (NAME_LEN_MAX + 1, 0, "length of a name"),
            (0, VALUE_LEN_MAX + 1, "length of a value"),
        ] {
            let damage = checked(&wide(1, name_len, value_len)).unwrap_err();
            assert_eq!((damage.at, damage.what), (0, what));
            assert_eq!(damage.found, (name_len + value_len).to_string());
        }
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was(
            name in proptest::collection::vec(any::<u8>(), 0..300),
            value in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..300),
                (16_380usize..16_390).prop_map(|len| vec![9; len]),
            ],
            version: u64,
            others: (u64, u64),
        ) {
            let (min, max) = (others.0.min(others.1).min(version), others.0.max(others.1).max(version));
            let versions = Versions::between(Hlc(min), Hlc(max));
            let (kind, version) = (EntryKind::Value, Hlc(version));
            let entry = Entry { name: &name, version, kind, value: &value };
            let (mut bytes, mut chunk) = (Vec::new(), vec![7; 8]);
            Record::encode(&entry, &mut bytes);
            Record::complete(&bytes, version, &versions, &mut chunk);
            let end = chunk.len();
            chunk.extend_from_slice(&[0xff; TAIL_LEN]);
            let record = Record::decode(&chunk, 8, &versions).unwrap();
            record.check(&chunk, &versions).unwrap();
            prop_assert_eq!(record.key(&chunk), entry.key());
            prop_assert_eq!(record.value(&chunk), &value[..]);
            prop_assert_eq!(record.end(), end);
            prop_assert_eq!(end - 8, Record::len_of(&entry) + usize::from(versions.len));
        }

        #[test]
        fn foreign_bytes_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            at in 0usize..80,
            min: u64,
            len in 1u8..9,
        ) {
            let versions = Versions::of(Hlc(min), len).unwrap();
            if let Ok(record) = Record::decode(&bytes, at, &versions) {
                let _ = record.check(&bytes, &versions);
                let _ = (record.key(&bytes), record.value(&bytes));
            }
        }
    }
}
