//! One record of a chunk: a fixed header, the whole name, the value, zeros up to the next record.
//!
//! | Offset | Size | Field     | Meaning                                                     |
//! |-------:|-----:|-----------|-------------------------------------------------------------|
//! |      0 |    8 | version   | Commit timestamp of its batch.                              |
//! |      8 |    4 | value_len | At most [`VALUE_LEN_MAX`]; 28 for pointers, 0 for tombstones. |
//! |     12 |    3 | name_len  | At most [`NAME_LEN_MAX`].                                   |
//! |     15 |    1 | kind      | 1 value, 2 pointer, 3 tombstone; 4 and 5 are reserved.      |
//! |     16 |    n | name      | `name_len` bytes.                                           |
//! |   16+n |    m | value     | `value_len` bytes, then zeros up to a multiple of 8.        |
//!
//! Records begin on multiples of 8 in the file: the point index counts in units of 8. A name is
//! never shortened, so that a record can be compared and used where it stands.

use strandline_wal::Hlc;

use super::damage::Damage;
use super::entry::{Entry, EntryKind, InternalKey, NAME_LEN_MAX, VALUE_LEN_MAX};
use super::layout::{Field, is_zero};
use super::pointer::{POINTER_LEN, ValuePointer};
use super::value::ValueSource;

/// Length of the fixed part. Part of the format.
pub(super) const HEADER_LEN: usize = 16;

/// What the places of records are multiples of.
pub(super) const ALIGN_LEN: usize = 8;

const VERSION: Field = Field::first(8);
const VALUE_LEN: Field = VERSION.then(4);
const NAME_LEN: Field = VALUE_LEN.then(3);
const KIND: Field = NAME_LEN.then(1);

const _: () = assert!(KIND.end() == HEADER_LEN);
const _: () = assert!(HEADER_LEN.is_multiple_of(ALIGN_LEN));
const _: () = assert!(NAME_LEN_MAX < 1 << 24);
const _: () = assert!(VALUE_LEN_MAX <= u32::MAX as usize);

/// The longest record, padding included.
pub(super) const RECORD_LEN_MAX: usize =
    (HEADER_LEN + NAME_LEN_MAX + VALUE_LEN_MAX).next_multiple_of(ALIGN_LEN);

/// Where the parts of a record stand in its chunk. The bytes are with whoever holds the chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Record {
    pub version: Hlc,
    pub kind: EntryKind,
    /// Where it begins in the chunk.
    pub at: usize,
    name_len: usize,
    value_len: usize,
}

impl Record {
    /// Bytes that an entry takes as a record.
    pub fn len_of(entry: &Entry<'_>) -> usize {
        (HEADER_LEN + entry.name.len() + entry.value.len()).next_multiple_of(ALIGN_LEN)
    }

    /// Appends an entry. Its lengths are within the limits.
    pub fn encode(entry: &Entry<'_>, chunk: &mut Vec<u8>) {
        assert!(entry.name.len() <= NAME_LEN_MAX);
        assert!(entry.value.len() <= VALUE_LEN_MAX);
        let mut header = [0; HEADER_LEN];
        VERSION.put(&mut header, &entry.version.0.to_le_bytes());
        VALUE_LEN.put(&mut header, &(entry.value.len() as u32).to_le_bytes());
        NAME_LEN.put(
            &mut header,
            &(entry.name.len() as u32).to_le_bytes()[..NAME_LEN.len],
        );
        KIND.put(&mut header, &[entry.kind as u8]);
        let end = chunk.len() + Record::len_of(entry);
        chunk.extend_from_slice(&header);
        chunk.extend_from_slice(entry.name);
        chunk.extend_from_slice(entry.value);
        chunk.resize(end, 0);
    }

    /// Reads the record that begins at `at` of the chunk and ends within it. Says nothing about what
    /// [`Self::check`] has to look at: that was done once, when the chunk came into memory.
    #[inline]
    pub fn decode(chunk: &[u8], at: usize) -> Result<Record, Damage> {
        let Some(header) = chunk
            .get(at..)
            .and_then(|rest| rest.first_chunk::<HEADER_LEN>())
        else {
            return Err(Damage::new(
                at as u64,
                "header of a record",
                "16 bytes",
                "the end",
            ));
        };
        let Some(kind) = EntryKind::from_number(KIND.u8(header)) else {
            let (at, number) = ((at + KIND.at) as u64, KIND.u8(header));
            return Err(if EntryKind::is_reserved(number) {
                Damage::unsupported(at, "kind of a record", "1 to 3", number)
            } else {
                Damage::new(at, "kind of a record", "1 to 3", number)
            });
        };
        let [a, b, c] = [0, 1, 2].map(|n| u32::from(header[NAME_LEN.at + n]));
        let record = Record {
            version: Hlc(VERSION.u64(header)),
            kind,
            at,
            name_len: (a | b << 8 | c << 16) as usize,
            value_len: VALUE_LEN.u32(header) as usize,
        };
        if record.end() > chunk.len() {
            let found = format!("{} of {}", record.end(), chunk.len());
            return Err(Damage::new(
                at as u64,
                "end of a record",
                "in its chunk",
                found,
            ));
        }
        Ok(record)
    }

    /// Checks what [`Self::decode`] leaves out: limits, what the kind demands, and the padding.
    pub fn check(&self, chunk: &[u8]) -> Result<(), Damage> {
        let at = self.at as u64;
        if self.name_len > NAME_LEN_MAX {
            let expected = format!("at most {NAME_LEN_MAX}");
            return Err(Damage::new(at, "length of a name", expected, self.name_len));
        }
        if self.value_len > VALUE_LEN_MAX {
            let expected = format!("at most {VALUE_LEN_MAX}");
            return Err(Damage::new(
                at,
                "length of a value",
                expected,
                self.value_len,
            ));
        }
        match self.kind {
            EntryKind::Value => {}
            EntryKind::Pointer => {
                let value_at = (self.at + HEADER_LEN + self.name_len) as u64;
                ValuePointer::decode_at(self.value(chunk), value_at)?;
            }
            EntryKind::Tombstone if self.value_len == 0 => {}
            EntryKind::Tombstone => {
                return Err(Damage::new(
                    at,
                    "value of a tombstone",
                    "none",
                    self.value_len,
                ));
            }
        }
        let end = self.at + HEADER_LEN + self.name_len + self.value_len;
        if !chunk.get(end..self.end()).is_some_and(is_zero) {
            return Err(Damage::new(
                end as u64,
                "padding of a record",
                "zeros",
                "other bytes",
            ));
        }
        Ok(())
    }

    /// Where the next record begins.
    #[inline]
    pub fn end(&self) -> usize {
        // No overflow: the lengths have 24 and 32 bits, and `at` lies within a file.
        (self.at + HEADER_LEN + self.name_len + self.value_len).next_multiple_of(ALIGN_LEN)
    }

    /// The name, of a record that was read from this chunk.
    #[inline]
    pub fn name<'a>(&self, chunk: &'a [u8]) -> &'a [u8] {
        let at = self.at + HEADER_LEN;
        &chunk[at..at + self.name_len]
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
    pub fn value_range(&self) -> std::ops::Range<usize> {
        let at = self.at + HEADER_LEN + self.name_len;
        at..at + self.value_len
    }

    /// Where its value is, of a record that was read from this chunk.
    #[inline]
    pub fn value_source<'a>(&self, chunk: &'a [u8]) -> Result<ValueSource<'a>, Damage> {
        Ok(match self.kind {
            EntryKind::Value => ValueSource::Bytes(self.value(chunk)),
            EntryKind::Tombstone => ValueSource::Absent,
            EntryKind::Pointer => {
                let at = self.value_range().start as u64;
                ValueSource::Pointer(ValuePointer::decode_at(self.value(chunk), at)?)
            }
        })
    }

    /// The bytes of the value, of a record that was read from this chunk.
    #[inline]
    pub fn value<'a>(&self, chunk: &'a [u8]) -> &'a [u8] {
        &chunk[self.value_range()]
    }
}

const _: () = assert!(POINTER_LEN <= VALUE_LEN_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_byte_table_is_what_the_code_does() {
        super::super::layout::check_byte_table(
            include_str!("record.rs"),
            0,
            &[
                ("version", VERSION),
                ("value_len", VALUE_LEN),
                ("name_len", NAME_LEN),
                ("kind", KIND),
            ],
        );
    }

    fn record(number: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
        let kind = EntryKind::Value;
        let mut bytes = Vec::new();
        Record::encode(
            &Entry {
                name,
                version: Hlc(5),
                kind,
                value,
            },
            &mut bytes,
        );
        bytes[KIND.at] = number;
        bytes
    }

    fn checked(bytes: &[u8]) -> Result<(), Damage> {
        Record::decode(bytes, 0)?.check(bytes)
    }

    #[test]
    fn a_kind_has_the_value_that_it_demands() {
        checked(&record(1, b"name", b"value")).unwrap();
        checked(&record(3, b"name", b"")).unwrap();
        assert!(checked(&record(3, b"name", b"v")).is_err());
        assert!(checked(&record(2, b"name", &[0; POINTER_LEN])).is_err());
        assert!(checked(&record(2, b"name", b"short")).is_err());
        assert!(checked(&record(0, b"name", b"value")).is_err());
        assert!(
            checked(&record(4, b"name", b"value"))
                .unwrap_err()
                .is_unsupported
        );
        assert!(
            checked(&record(5, b"name", b"value"))
                .unwrap_err()
                .is_unsupported
        );
    }

    #[test]
    fn every_short_prefix_and_every_padding_byte_is_refused() {
        let good = record(1, b"name", b"value");
        assert_eq!(good.len(), 32);
        for len in 0..good.len() {
            assert!(checked(&good[..len]).is_err(), "{len}");
        }
        for at in 25..32 {
            let mut bad = good.clone();
            bad[at] = 1;
            assert!(checked(&bad).is_err(), "{at}");
        }
    }

    #[test]
    fn lengths_over_the_limits_are_named() {
        for (name_len, value_len, what) in [
            (NAME_LEN_MAX + 1, 0, "length of a name"),
            (0, VALUE_LEN_MAX + 1, "length of a value"),
        ] {
            let (version, kind, at) = (Hlc(1), EntryKind::Value, 32);
            let record = Record {
                version,
                kind,
                at,
                name_len,
                value_len,
            };
            let damage = record.check(&[]).unwrap_err();
            assert_eq!((damage.at, damage.what), (32, what));
            assert_eq!(damage.found, (name_len + value_len).to_string());
        }
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was(
            name in proptest::collection::vec(any::<u8>(), 0..300),
            value in proptest::collection::vec(any::<u8>(), 0..300),
            version: u64,
        ) {
            let kind = EntryKind::Value;
            let entry = Entry { name: &name, version: Hlc(version), kind, value: &value };
            let mut bytes = vec![7; 8];
            Record::encode(&entry, &mut bytes);
            let record = Record::decode(&bytes, 8).unwrap();
            record.check(&bytes).unwrap();
            prop_assert_eq!(record.key(&bytes), entry.key());
            prop_assert_eq!(record.value(&bytes), &value[..]);
            prop_assert_eq!(record.end(), bytes.len());
            prop_assert_eq!(record.end() - 8, Record::len_of(&entry));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), at in 0usize..80) {
            if let Ok(record) = Record::decode(&bytes, at) {
                let _ = record.check(&bytes);
                let _ = (record.key(&bytes), record.value(&bytes));
            }
        }
    }
}
