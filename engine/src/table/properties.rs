//! The property section: what is in the table, counted when it was written.
//!
//! | Offset | Size | Field         | Meaning                                                    |
//! |-------:|-----:|---------------|------------------------------------------------------------|
//! |      0 |    8 | entry_count   | Entries. Never 0.                                          |
//! |      8 |    8 | tombstone_count | Of them tombstones.                                      |
//! |     16 |    8 | name_count    | Distinct names.                                            |
//! |     24 |    8 | version_min   | Oldest version.                                            |
//! |     32 |    8 | version_max   | Newest version.                                            |
//! |     40 |    8 | names_len     | Bytes of the names, per entry.                             |
//! |     48 |    8 | values_len    | Bytes of the values, those behind pointers included.       |
//! |     56 |    4 | name_min_len  | Length of the first name.                                  |
//! |     60 |    4 | name_max_len  | Length of the last name.                                   |
//! |     64 |    4 | file_count    | Files that pointers lead to.                               |
//! |     68 |    4 | keyspace_count | Keyspaces with a name that has a value.                   |
//! |     72 |    n | name_min      | The first name.                                            |
//! |   72+n |    m | name_max      | The last name, then zeros up to a multiple of 8.           |
//!
//! `file_count` rows follow, ascending by source, shard and file:
//!
//! | Offset | Size | Field         | Meaning                                                    |
//! |-------:|-----:|---------------|------------------------------------------------------------|
//! |      0 |    1 | source        | As in a pointer.                                           |
//! |      1 |    1 | reserved      | Zero. A reader rejects anything else.                      |
//! |      2 |    2 | shard         | As in a pointer.                                           |
//! |      4 |    4 | reserved      | Zero. A reader rejects anything else.                      |
//! |      8 |    8 | file          | As in a pointer.                                           |
//! |     16 |    8 | live_len      | Bytes of the file that pointers of this table lead to.     |
//! |     24 |    8 | live_count    | Pointers of this table that lead there.                    |
//!
//! Then `keyspace_count` rows, ascending by keyspace:
//!
//! | Offset | Size | Field         | Meaning                                                    |
//! |-------:|-----:|---------------|------------------------------------------------------------|
//! |      0 |    4 | keyspace      | First four bytes of the names, read as a big-endian number. |
//! |      4 |    4 | reserved      | Zero. A reader rejects anything else.                      |
//! |      8 |    8 | value_count   | Names in it whose newest entry is not a tombstone. Never 0. |
//!
//! A name of less than four bytes is in no keyspace.

use strandline_wal::{Hlc, ShardId};

use super::damage::Damage;
use super::entry::NAME_LEN_MAX;
use super::layout::{Field, is_zero};
use super::pointer::{PointerSource, ValuePointer};

const HEADER_LEN: usize = 72;
const ROW_LEN: usize = 32;
/// Bytes of a keyspace's row.
pub(super) const COUNT_LEN: usize = 16;

const ENTRY_COUNT: Field = Field::first(8);
const TOMBSTONE_COUNT: Field = ENTRY_COUNT.then(8);
const NAME_COUNT: Field = TOMBSTONE_COUNT.then(8);
const VERSION_MIN: Field = NAME_COUNT.then(8);
const VERSION_MAX: Field = VERSION_MIN.then(8);
const NAMES_LEN: Field = VERSION_MAX.then(8);
const VALUES_LEN: Field = NAMES_LEN.then(8);
const NAME_MIN_LEN: Field = VALUES_LEN.then(4);
const NAME_MAX_LEN: Field = NAME_MIN_LEN.then(4);
const FILE_COUNT: Field = NAME_MAX_LEN.then(4);
const KEYSPACE_COUNT: Field = FILE_COUNT.then(4);

const SOURCE: Field = Field::first(1);
const RESERVED_1: Field = SOURCE.then(1);
const SHARD: Field = RESERVED_1.then(2);
const RESERVED_4: Field = SHARD.then(4);
const FILE: Field = RESERVED_4.then(8);
const LIVE_LEN: Field = FILE.then(8);
const LIVE_COUNT: Field = LIVE_LEN.then(8);

const KEYSPACE: Field = Field::first(4);
const COUNT_RESERVED: Field = KEYSPACE.then(4);
const VALUE_COUNT: Field = COUNT_RESERVED.then(8);

const _: () = assert!(KEYSPACE_COUNT.end() == HEADER_LEN);
const _: () = assert!(LIVE_COUNT.end() == ROW_LEN);
const _: () = assert!(VALUE_COUNT.end() == COUNT_LEN);

/// A file that pointers of a table lead to, and how much of it they need.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PointerFile {
    /// The kind of file.
    pub source: PointerSource,
    /// The shard whose file it is.
    pub shard: ShardId,
    /// First sequence of the segment, or number of the value file.
    pub file: u64,
    /// Bytes of it that pointers of this table lead to.
    pub live_len: u64,
    /// Pointers of this table that lead there.
    pub live_count: u64,
}

impl PointerFile {
    fn place(&self) -> (PointerSource, ShardId, u64) {
        (self.source, self.shard, self.file)
    }
}

/// How many names of a keyspace have a value as their newest entry in a table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct KeyspaceCount {
    pub keyspace: u32,
    /// Invariant: never 0.
    pub value_count: u64,
}

/// The keyspace that a name is in.
fn keyspace_of(name: &[u8]) -> Option<u32> {
    name.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// What is in a table.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Properties {
    pub entry_count: u64,
    pub tombstone_count: u64,
    pub name_count: u64,
    pub version_min: Hlc,
    pub version_max: Hlc,
    pub names_len: u64,
    pub values_len: u64,
    pub name_min: Vec<u8>,
    pub name_max: Vec<u8>,
    /// Invariant: ascending by source, shard and file.
    pub files: Vec<PointerFile>,
    /// Invariant: ascending by keyspace.
    pub keyspaces: Vec<KeyspaceCount>,
}

impl Properties {
    /// Of a table without entries; what no table is.
    pub fn empty() -> Properties {
        Properties {
            entry_count: 0,
            tombstone_count: 0,
            name_count: 0,
            version_min: Hlc::MAX,
            version_max: Hlc(0),
            names_len: 0,
            values_len: 0,
            name_min: Vec::new(),
            name_max: Vec::new(),
            files: Vec::new(),
            keyspaces: Vec::new(),
        }
    }

    /// Counts a name whose newest entry is not a tombstone. Names come in their order.
    pub fn count_value(&mut self, name: &[u8]) {
        let Some(keyspace) = keyspace_of(name) else {
            return;
        };
        match self.keyspaces.last_mut() {
            Some(last) if last.keyspace == keyspace => last.value_count += 1,
            _ => self.keyspaces.push(KeyspaceCount {
                keyspace,
                value_count: 1,
            }),
        }
    }

    /// Counts a pointer.
    pub fn count_pointer(&mut self, pointer: &ValuePointer) {
        let place = (pointer.source, pointer.shard, pointer.file);
        let at = match self.files.binary_search_by_key(&place, PointerFile::place) {
            Ok(at) => at,
            Err(at) => {
                let (source, shard, file) = place;
                let row = PointerFile {
                    source,
                    shard,
                    file,
                    live_len: 0,
                    live_count: 0,
                };
                self.files.insert(at, row);
                at
            }
        };
        self.files[at].live_len += u64::from(pointer.len);
        self.files[at].live_count += 1;
    }

    /// The bytes of the section.
    pub fn encode(&self) -> Vec<u8> {
        let mut header = [0; HEADER_LEN];
        ENTRY_COUNT.put(&mut header, &self.entry_count.to_le_bytes());
        TOMBSTONE_COUNT.put(&mut header, &self.tombstone_count.to_le_bytes());
        NAME_COUNT.put(&mut header, &self.name_count.to_le_bytes());
        VERSION_MIN.put(&mut header, &self.version_min.0.to_le_bytes());
        VERSION_MAX.put(&mut header, &self.version_max.0.to_le_bytes());
        NAMES_LEN.put(&mut header, &self.names_len.to_le_bytes());
        VALUES_LEN.put(&mut header, &self.values_len.to_le_bytes());
        NAME_MIN_LEN.put(&mut header, &(self.name_min.len() as u32).to_le_bytes());
        NAME_MAX_LEN.put(&mut header, &(self.name_max.len() as u32).to_le_bytes());
        FILE_COUNT.put(&mut header, &(self.files.len() as u32).to_le_bytes());
        let keyspace_count = self.keyspaces.len() as u32;
        KEYSPACE_COUNT.put(&mut header, &keyspace_count.to_le_bytes());
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(&self.name_min);
        bytes.extend_from_slice(&self.name_max);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        for file in &self.files {
            let mut row = [0; ROW_LEN];
            SOURCE.put(&mut row, &[file.source as u8]);
            SHARD.put(&mut row, &file.shard.0.to_le_bytes());
            FILE.put(&mut row, &file.file.to_le_bytes());
            LIVE_LEN.put(&mut row, &file.live_len.to_le_bytes());
            LIVE_COUNT.put(&mut row, &file.live_count.to_le_bytes());
            bytes.extend_from_slice(&row);
        }
        for count in &self.keyspaces {
            let mut row = [0; COUNT_LEN];
            KEYSPACE.put(&mut row, &count.keyspace.to_le_bytes());
            VALUE_COUNT.put(&mut row, &count.value_count.to_le_bytes());
            bytes.extend_from_slice(&row);
        }
        bytes
    }

    /// Reads the section, which stands at `at`. Its checksum has been compared.
    pub fn decode(bytes: &[u8], at: u64) -> Result<Properties, Damage> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(Damage::new(
                at,
                "length of the properties",
                "72 or more",
                bytes.len(),
            ));
        };
        let name_min_len = NAME_MIN_LEN.u32(header) as usize;
        let name_max_len = NAME_MAX_LEN.u32(header) as usize;
        let names_len = name_min_len.saturating_add(name_max_len);
        let padded_len = names_len.saturating_add(7) / 8 * 8;
        let names_at = at + HEADER_LEN as u64;
        let Some((names, rows)) = rest.split_at_checked(padded_len) else {
            let expected = format!("at most {} bytes", rest.len());
            return Err(Damage::new(
                names_at,
                "names in the properties",
                expected,
                names_len,
            ));
        };
        let (name_min, names) = names.split_at(name_min_len);
        let (name_max, padding) = names.split_at(name_max_len);
        if name_min_len.max(name_max_len) > NAME_LEN_MAX || name_min > name_max {
            let expected = format!("ascending, at most {NAME_LEN_MAX} bytes");
            return Err(Damage::new(
                names_at,
                "names in the properties",
                expected,
                "others",
            ));
        }
        if !is_zero(padding) {
            let at = names_at + names_len as u64;
            return Err(Damage::new(
                at,
                "padding of the properties",
                "zeros",
                "other bytes",
            ));
        }
        let files_at = names_at + padded_len as u64;
        let files_len = (FILE_COUNT.u32(header) as usize).saturating_mul(ROW_LEN);
        let Some((files, keyspaces)) = rows.split_at_checked(files_len) else {
            return Err(Damage::new(
                files_at,
                "length of the pointer files",
                format!("at most {}", rows.len()),
                files_len,
            ));
        };
        let keyspaces_at = files_at + files_len as u64;
        let keyspaces = decode_keyspaces(keyspaces, KEYSPACE_COUNT.u32(header), keyspaces_at)?;
        let files = decode_files(files, files_at)?;
        let properties = Properties {
            entry_count: ENTRY_COUNT.u64(header),
            tombstone_count: TOMBSTONE_COUNT.u64(header),
            name_count: NAME_COUNT.u64(header),
            version_min: Hlc(VERSION_MIN.u64(header)),
            version_max: Hlc(VERSION_MAX.u64(header)),
            names_len: NAMES_LEN.u64(header),
            values_len: VALUES_LEN.u64(header),
            name_min: name_min.to_vec(),
            name_max: name_max.to_vec(),
            files,
            keyspaces,
        };
        properties.check(at)?;
        Ok(properties)
    }

    /// The counts do not contradict each other.
    fn check(&self, at: u64) -> Result<(), Damage> {
        let value_count = self
            .keyspaces
            .iter()
            .fold(0u64, |sum, row| sum.saturating_add(row.value_count));
        let is_sane = self.entry_count > 0
            && self.tombstone_count <= self.entry_count
            && (1..=self.entry_count).contains(&self.name_count)
            && value_count <= self.name_count.min(self.entry_count - self.tombstone_count)
            && self.version_min <= self.version_max;
        if is_sane {
            return Ok(());
        }
        Err(Damage::new(
            at,
            "counts in the properties",
            "counts of one table",
            "others",
        ))
    }
}

fn decode_keyspaces(bytes: &[u8], count: u32, at: u64) -> Result<Vec<KeyspaceCount>, Damage> {
    let (rows, rest) = bytes.as_chunks::<COUNT_LEN>();
    if rows.len() != count as usize || !rest.is_empty() {
        return Err(Damage::new(
            at,
            "length of the counts by keyspace",
            u64::from(count) * COUNT_LEN as u64,
            bytes.len(),
        ));
    }
    let mut keyspaces: Vec<KeyspaceCount> = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let count = KeyspaceCount {
            keyspace: KEYSPACE.u32(row),
            value_count: VALUE_COUNT.u64(row),
        };
        let before = keyspaces.last().map(|before| before.keyspace);
        if before >= Some(count.keyspace) || count.value_count == 0 || !COUNT_RESERVED.is_zero(row)
        {
            return Err(Damage::new(
                at + (index * COUNT_LEN) as u64,
                "count of a keyspace",
                "ascending, above 0",
                "other bytes",
            ));
        }
        keyspaces.push(count);
    }
    Ok(keyspaces)
}

/// Reads rows that fill `bytes`.
fn decode_files(bytes: &[u8], at: u64) -> Result<Vec<PointerFile>, Damage> {
    let (rows, _) = bytes.as_chunks::<ROW_LEN>();
    let mut files: Vec<PointerFile> = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let at = at + (index * ROW_LEN) as u64;
        let source = PointerSource::from_number(SOURCE.u8(row));
        let (Some(source), true, true) = (source, RESERVED_1.is_zero(row), RESERVED_4.is_zero(row))
        else {
            return Err(Damage::new(
                at,
                "row of a pointer file",
                "source 0 or 1",
                "other bytes",
            ));
        };
        let file = PointerFile {
            source,
            shard: ShardId(SHARD.u16(row)),
            file: FILE.u64(row),
            live_len: LIVE_LEN.u64(row),
            live_count: LIVE_COUNT.u64(row),
        };
        if files
            .last()
            .is_some_and(|before| before.place() >= file.place())
        {
            return Err(Damage::new(
                at,
                "order of the pointer files",
                "ascending",
                "not so",
            ));
        }
        files.push(file);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_tables_are_what_the_code_does() {
        let source = include_str!("properties.rs");
        let header = [
            ("entry_count", ENTRY_COUNT),
            ("tombstone_count", TOMBSTONE_COUNT),
            ("name_count", NAME_COUNT),
            ("version_min", VERSION_MIN),
            ("version_max", VERSION_MAX),
            ("names_len", NAMES_LEN),
            ("values_len", VALUES_LEN),
            ("name_min_len", NAME_MIN_LEN),
            ("name_max_len", NAME_MAX_LEN),
            ("file_count", FILE_COUNT),
            ("keyspace_count", KEYSPACE_COUNT),
        ];
        super::super::layout::check_byte_table(source, 0, &header);
        let row = [
            ("source", SOURCE),
            ("reserved", RESERVED_1),
            ("shard", SHARD),
            ("reserved", RESERVED_4),
            ("file", FILE),
            ("live_len", LIVE_LEN),
            ("live_count", LIVE_COUNT),
        ];
        super::super::layout::check_byte_table(source, 1, &row);
        let row = [
            ("keyspace", KEYSPACE),
            ("reserved", COUNT_RESERVED),
            ("value_count", VALUE_COUNT),
        ];
        super::super::layout::check_byte_table(source, 2, &row);
    }

    fn sample() -> Properties {
        let mut properties = Properties {
            entry_count: 5,
            tombstone_count: 1,
            name_count: 4,
            version_min: Hlc(3),
            version_max: Hlc(9),
            names_len: 40,
            values_len: 400,
            name_min: b"first".to_vec(),
            name_max: b"last name".to_vec(),
            files: Vec::new(),
            keyspaces: Vec::new(),
        };
        for name in [&b"first"[..], b"fir", b"fish", b"last name"] {
            properties.count_value(name);
        }
        let mut pointer = ValuePointer {
            source: PointerSource::ValueFile,
            shard: ShardId(2),
            file: 9,
            offset: 0,
            len: 100,
            crc: 0,
        };
        properties.count_pointer(&pointer);
        properties.count_pointer(&pointer);
        pointer.source = PointerSource::Segment;
        properties.count_pointer(&pointer);
        properties
    }

    #[test]
    fn properties_come_back_as_they_were() {
        let properties = sample();
        assert_eq!(properties.files.len(), 2);
        assert_eq!(properties.files[0].source, PointerSource::Segment);
        assert_eq!(
            (properties.files[1].live_len, properties.files[1].live_count),
            (200, 2)
        );
        let counts = properties.keyspaces.iter();
        let counts: Vec<(u32, u64)> = counts.map(|c| (c.keyspace, c.value_count)).collect();
        let number = |name: &[u8; 4]| u32::from_be_bytes(*name);
        assert_eq!(
            counts,
            [
                (number(b"firs"), 1),
                (number(b"fish"), 1),
                (number(b"last"), 1)
            ]
        );
        assert_eq!(Properties::decode(&properties.encode(), 0), Ok(properties));
    }

    #[test]
    fn counts_by_keyspace_that_cannot_be_are_refused_where_they_stand() {
        let good = sample().encode();
        let rows_at = (good.len() - 3 * COUNT_LEN) as u64;
        let refused = |change: fn(&mut Properties)| {
            let mut properties = sample();
            change(&mut properties);
            let damage = Properties::decode(&properties.encode(), 64).unwrap_err();
            (damage.at - 64, damage.what)
        };
        let row = |n: usize| (rows_at + (n * COUNT_LEN) as u64, "count of a keyspace");
        assert_eq!(refused(|p| p.keyspaces[1].value_count = 0), row(1));
        assert_eq!(refused(|p| p.keyspaces.swap(1, 2)), row(2));
        assert_eq!(refused(|p| p.keyspaces[1] = p.keyspaces[0]), row(1));
        // Four names, and four entries that are no tombstones.
        let counts = (0, "counts in the properties");
        assert_eq!(refused(|p| p.keyspaces[2].value_count = 3), counts);
        assert_eq!(refused(|p| p.keyspaces[2].value_count = u64::MAX), counts);
        assert_eq!(refused(|p| p.tombstone_count = 3), counts);
        // As many rows as are declared, and whole ones.
        let len = (rows_at, "length of the counts by keyspace");
        for (at, byte) in [(KEYSPACE_COUNT.at, 2), (KEYSPACE_COUNT.at + 3, 0xff)] {
            let mut bad = good.clone();
            bad[at] = byte;
            let damage = Properties::decode(&bad, 0).unwrap_err();
            assert_eq!((damage.at, damage.what), len);
        }
        let mut bad = good.clone();
        bad[FILE_COUNT.at + 3] = 0xff;
        let damage = Properties::decode(&bad, 0).unwrap_err();
        assert_eq!(damage.what, "length of the pointer files");
    }

    #[test]
    fn a_name_over_its_limit_is_refused() {
        for (name_len, is_good) in [(NAME_LEN_MAX, true), (NAME_LEN_MAX + 1, false)] {
            let mut properties = sample();
            properties.name_max = vec![b'z'; name_len];
            let decoded = Properties::decode(&properties.encode(), 64);
            let refused = decoded.map_err(|damage| (damage.at, damage.what)).err();
            let names = (64 + HEADER_LEN as u64, "names in the properties");
            assert_eq!(refused, (!is_good).then_some(names));
        }
    }

    #[test]
    fn crafted_sections_never_panic() {
        let good = sample().encode();
        for at in 0..good.len() {
            for byte in [0, 1, 2, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                if let Ok(properties) = Properties::decode(&bad, 0) {
                    assert_eq!(properties.encode(), bad);
                }
            }
        }
        for len in 0..good.len() {
            assert!(Properties::decode(&good[..len], 0).is_err(), "length {len}");
        }
    }
}
