//! Reads a whole table again, from the file and not from memory, and reports what is wrong.

use std::ops::{ControlFlow, Range};

use strandline_wal::bug::planted;
use strandline_wal::io::read_exact_at;

use super::damage::Damage;
use super::directory;
use super::entry::EntryKind;
use super::footer::{FOOTER_LEN, Footer};
use super::header::{self, HEADER_LEN};
use super::layout::{hex, is_zero};
use super::meta::TableMeta;
use super::open::check_section;
use super::point_index::{PointIndex, hash_of};
use super::pointer::ValuePointer;
use super::properties::{COUNT_LEN, KeyspaceCount, Properties};
use super::reader::Table;
use super::record::Record;

/// Checks every byte of the file, and that chunks, indexes and properties agree.
pub(super) fn verify(table: &Table, pace: &mut dyn FnMut(usize)) -> Vec<Damage> {
    let mut check = Check {
        table,
        damages: table.warnings.clone(),
        digest: Some(blake3::Hasher::new()),
        counted: Properties::empty(),
        is_behind_damage: false,
        pace,
    };
    check.header();
    for chunk in 0..table.chunks.count() {
        check.chunk(chunk);
    }
    if check.damages.is_empty() {
        check.counts();
    }
    check.gap(0);
    for index in 0..table.directory.sections.len() {
        check.section(index);
        check.gap(index + 1);
    }
    check.footer();
    check.damages
}

struct Check<'t> {
    table: &'t Table,
    damages: Vec<Damage>,
    /// Of the bytes so far; `None` once some could not be read.
    digest: Option<blake3::Hasher>,
    counted: Properties,
    /// The chunk before was bad, so that the next name may have its newest version in there.
    is_behind_damage: bool,
    pace: &'t mut dyn FnMut(usize),
}

impl Check<'_> {
    /// Reads the next bytes of the file.
    fn read(&mut self, range: Range<u64>) -> Option<Vec<u8>> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        match read_exact_at(self.table.file.as_ref(), &mut bytes, range.start) {
            Ok(()) => {
                (self.pace)(bytes.len());
                if let Some(digest) = &mut self.digest {
                    digest.update(&bytes);
                }
                Some(bytes)
            }
            Err(error) => {
                let expected = format!("{} bytes", bytes.len());
                self.damages
                    .push(Damage::new(range.start, "read", expected, error));
                self.digest = None;
                None
            }
        }
    }

    fn report(&mut self, result: Result<(), Damage>) {
        self.damages.extend(result.err());
    }

    fn header(&mut self) {
        let Some(bytes) = self.read(0..HEADER_LEN as u64) else {
            return;
        };
        let identity = bytes.first_chunk().map(header::decode);
        match identity {
            Some(Ok(identity)) if identity == *self.table.identity() => {}
            Some(Err(damage)) => self.damages.push(damage),
            _ => {
                let damage = Damage::new(0, "identity of the table", "as it was opened", "other");
                self.damages.push(damage);
            }
        }
    }

    fn chunk(&mut self, chunk: u32) {
        let range = self.table.chunks.range(chunk).unwrap_or_default();
        let Some(bytes) = self.read(range.clone()) else {
            self.is_behind_damage = true;
            return;
        };
        let result = self.table.check_chunk(chunk, &bytes).and_then(|shape| {
            (0..shape.record_count).try_for_each(|ordinal| {
                let record = shape.record(&bytes, ordinal)?;
                self.record(range.start, &bytes, &record)
            })
        });
        self.is_behind_damage = result.is_err();
        self.report(result);
    }

    /// Counts a record and looks it up in the point index.
    fn record(&mut self, chunk_at: u64, chunk: &[u8], record: &Record) -> Result<(), Damage> {
        let (name, value) = (record.name(chunk), record.value(chunk));
        let counted = &mut self.counted;
        let is_new_name = counted.entry_count == 0 || counted.name_max != name;
        if counted.entry_count == 0 {
            counted.name_min = name.to_vec();
        }
        counted.entry_count += 1;
        counted.name_count += u64::from(is_new_name);
        counted.names_len += name.len() as u64;
        counted.version_min = counted.version_min.min(record.version);
        counted.version_max = counted.version_max.max(record.version);
        match record.kind {
            EntryKind::Value => counted.values_len += value.len() as u64,
            EntryKind::Pointer => {
                let at = chunk_at + record.value_range().start as u64;
                let pointer = ValuePointer::decode_at(value, at)?;
                counted.values_len += u64::from(pointer.len);
                counted.count_pointer(&pointer);
            }
            EntryKind::Tombstone => counted.tombstone_count += 1,
        }
        let place_at = chunk_at + record.at() as u64;
        if !is_new_name {
            return match &self.table.point_index {
                Some(index) if holds(index, name, place_at) => Err(Damage::new(
                    place_at,
                    "point index",
                    "the newest version of a name",
                    "an older one",
                )),
                _ => Ok(()),
            };
        }
        counted.name_max.clear();
        counted.name_max.extend_from_slice(name);
        if record.kind != EntryKind::Tombstone {
            counted.count_value(name);
        }
        let is_newest_known = !std::mem::take(&mut self.is_behind_damage);
        match &self.table.point_index {
            Some(index) if is_newest_known && !holds(index, name, place_at) => Err(Damage::new(
                place_at,
                "point index",
                "the place of this record",
                "none",
            )),
            _ => Ok(()),
        }
    }

    /// The properties say what the chunks have. Asked only where all chunks were good.
    fn counts(&mut self) {
        let table = self.table;
        let mut counted = std::mem::replace(&mut self.counted, Properties::empty());
        let section = table.directory.find(directory::PROPERTIES);
        let keyspaces = std::mem::take(&mut counted.keyspaces);
        if keyspaces != table.keyspaces {
            // They are the last rows of the section.
            let rows_len = (table.keyspaces.len() * COUNT_LEN) as u64;
            let at = section.map_or(0, |section| section.end() - rows_len);
            let sum = |rows: &[KeyspaceCount]| rows.iter().map(|row| row.value_count).sum::<u64>();
            let names = |rows| format!("{} names in {} keyspaces", sum(rows), rows.len());
            let (expected, found) = (names(&keyspaces), names(&table.keyspaces));
            self.damages
                .push(Damage::new(at, "counts by keyspace", expected, found));
        }
        let meta = &table.meta;
        let counted = TableMeta::of(meta.identity, meta.len, meta.digest, counted);
        if counted != *meta {
            let at = section.map_or(0, |section| section.at);
            let expected = format!("{} entries as counted", counted.entry_count);
            let found = format!("{} entries and what goes with them", meta.entry_count);
            self.damages
                .push(Damage::new(at, "properties of the table", expected, found));
        }
    }

    fn section(&mut self, index: usize) {
        let Some(section) = self.table.directory.sections.get(index).copied() else {
            return;
        };
        let mut crc = crc32fast::Hasher::new();
        let mut at = section.at;
        while at < section.end() {
            let end = section.end().min(at + PIECE_LEN);
            let Some(bytes) = self.read(at..end) else {
                return;
            };
            crc.update(&bytes);
            at = end;
        }
        let result = check_section(&section, crc.finalize());
        // What opening had to say about the section is among the warnings.
        self.report(result.or_else(|damage| {
            if self.damages.contains(&damage) {
                Ok(())
            } else {
                Err(damage)
            }
        }));
    }

    fn gap(&mut self, index: usize) {
        let data_end = self.table.chunks.data_end();
        let Some((at, len)) = self.table.directory.gaps(data_end).nth(index) else {
            return;
        };
        if self
            .read(at..at + len as u64)
            .is_some_and(|bytes| !is_zero(&bytes))
        {
            let damage = Damage::new(at, "padding between sections", "zeros", "other bytes");
            self.damages.push(damage);
        }
    }

    fn footer(&mut self) {
        let at = self.table.footer.directory_at;
        let footer_at = at + u64::from(self.table.footer.directory_len);
        if let Some(bytes) = self.read(at..footer_at) {
            let (crc, expected) = (crc32fast::hash(&bytes), self.table.footer.directory_crc);
            if crc != expected && !planted("verify.directory_crc") {
                let (expected, found) = (format!("{expected:08x}"), format!("{crc:08x}"));
                let damage = Damage::new(at, "checksum of the directory", expected, found);
                self.damages.push(damage);
            }
        }
        let digest = self
            .digest
            .take()
            .map(|digest| <[u8; 32]>::from(digest.finalize()));
        let Some(bytes) = self.read(footer_at..footer_at + FOOTER_LEN as u64) else {
            return;
        };
        let Some(bytes) = bytes.first_chunk() else {
            return;
        };
        match Footer::decode(bytes, footer_at, self.table.identity()) {
            Err(damage) => self.damages.push(damage),
            Ok(footer) if footer != self.table.footer => {
                let damage = Damage::new(footer_at, "footer", "as it was opened", "other bytes");
                self.damages.push(damage);
            }
            Ok(footer) => {
                let found = digest
                    .filter(|found| *found != footer.digest && !planted("verify.table_digest"));
                // Other damage explains another digest.
                if let Some(found) = found.filter(|_| self.damages.is_empty()) {
                    let (expected, found) = (hex(&footer.digest), hex(&found));
                    self.damages
                        .push(Damage::new(0, "digest of the table", expected, found));
                }
            }
        }
    }
}

/// Whether the point index leads from a name to a place.
fn holds(index: &PointIndex, name: &[u8], place_at: u64) -> bool {
    let is_it = |place| match place == place_at {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    index.probe(hash_of(name), is_it).is_break()
}

/// Bytes of a section that are read at once.
const PIECE_LEN: u64 = 256 << 10;
