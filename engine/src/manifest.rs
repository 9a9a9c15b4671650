//! Which files of a dataset are live, and what they hold. Replaced as a whole, atomically, and kept
//! in two slots, files of the same bytes: damage to one costs a warning, and it is written again.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SDLM` |
//! | 4 | 4 | version | 1 |
//! | 8 | 8 | generation | rises with every replacement |
//! | 16 | 8 | sections_len | bytes of the sections that follow |
//! | 24 | 32 | digest | BLAKE3 of the sections |
//! | 56 | 4 | reserved | 0 |
//! | 60 | 4 | header_crc | CRC-32 (IEEE) of the 60 bytes before |
//!
//! A section is its kind (4 bytes, bit 31 set where a reader must know it), its length (4 bytes) and
//! its body. Bodies are fields in order, little-endian; texts and byte strings carry a 4-byte length.
//! These sections come in this order, each once; unknown ones may stand among them.
//!
//! | Kind | Section | Body |
//! |-----:|---------|------|
//! | 1 | dataset | name, region (2), lineage (16) |
//! | 2 | layout | router version (4), router kind (1), shard count (2), count and ranges of (first, last, shard), entity rule kind (1), delimiter (1) |
//! | 3 | logs | count (4), then shard (2), epoch (4), seq (8), chain (4) of what is in tables, complete seq (8) |
//! | 4 | clock | timestamp (8) and ordinal (2) of the complete mark, next file number (8) |
//! | 5 | keyspaces | next number (4), count (4), then number (4) and name |
//! | 6 | runs | count (4), newest first; each: table count (4) and tables |
//! | 7 | epochs | count of logs (4); each: count (4), then epoch (4), leader (16), first sequence (8) |
//!
//! A table is: number (8), len (8), digest (32), first name, last name, entries, tombstones, names
//! (8 each), oldest and newest version (8 each), bytes of names and of values (8 each), count of
//! files (4), then source (1), shard (2), file (8), live bytes (8), live count (8).

use std::path::Path;

use strandline_wal::bug::planted;
use strandline_wal::{DatasetId, Epoch, Error, Hlc, Position, RegionId, Result, ShardId};

use crate::router::{EntityRule, ShardRange, ShardRouter};
use crate::table::{Identity, PointerFile, PointerSource, TableMeta};

mod slots;

pub use slots::Slots;

const MAGIC: [u8; 4] = *b"SDLM";
const VERSION: u32 = 1;
const HEADER_LEN: usize = 64;
const MUST: u32 = 1 << 31;
/// The sections that every manifest has, numbered from 1.
const SECTION_COUNT: u32 = 7;
/// Greatest generation, file number and sequence: far above what any dataset reaches, and far enough
/// below the end of numbers to count on from.
const NUMBER_MAX: u64 = u64::MAX >> 1;

/// What of a log is in tables.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FlushedLog {
    /// The last record that is.
    pub position: Position,
    /// Chain value there.
    pub chain: u32,
    /// The last record of the complete mark: up to there no log of the dataset misses a batch.
    pub complete_seq: u64,
}

/// One leadership in one log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EpochEntry {
    /// Its number.
    pub epoch: Epoch,
    /// Random identity of the claim to it.
    pub leader: [u8; 16],
    /// Sequence of its first record.
    pub first_seq: u64,
}

/// A dataset's state on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Rises with every replacement.
    pub generation: u64,
    /// Whose it is.
    pub dataset: DatasetId,
    /// Where it is written.
    pub region: RegionId,
    /// Identity of its history.
    pub lineage: [u8; 16],
    /// How entities are spread.
    pub router: ShardRouter,
    /// Which entity a key belongs to.
    pub entity_rule: EntityRule,
    /// Per shard, what is in tables.
    pub logs: Vec<FlushedLog>,
    /// Version of the newest batch of the complete mark, which covers everything in tables.
    pub complete_timestamp: Hlc,
    /// Ordinal of that batch.
    pub complete_ordinal: u16,
    /// Number of the next file.
    pub next_file: u64,
    /// Number of the next keyspace.
    pub next_keyspace: u32,
    /// Keyspaces by number.
    pub keyspaces: Vec<(u32, String)>,
    /// Sorted runs, newest first. Tables of a run do not overlap and ascend.
    pub runs: Vec<Vec<TableMeta>>,
    /// Per shard, who led which part of the log, oldest first.
    pub epochs: Vec<Vec<EpochEntry>>,
}

impl Manifest {
    /// Of a new dataset.
    pub fn new(
        dataset: DatasetId,
        region: RegionId,
        lineage: [u8; 16],
        router: ShardRouter,
        entity_rule: EntityRule,
    ) -> Manifest {
        let shard_count = usize::from(router.shard_count());
        Manifest {
            generation: 1,
            dataset,
            region,
            lineage,
            router,
            entity_rule,
            logs: vec![FlushedLog::default(); shard_count],
            complete_timestamp: Hlc(0),
            complete_ordinal: 0,
            next_file: 1,
            next_keyspace: 1,
            keyspaces: Vec::new(),
            runs: Vec::new(),
            epochs: vec![Vec::new(); shard_count],
        }
    }

    /// All tables.
    pub fn tables(&self) -> impl Iterator<Item = &TableMeta> {
        self.runs.iter().flatten()
    }

    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut sections = Vec::new();
        for (kind, body) in [
            (1, self.encode_dataset()),
            (2, self.encode_layout()),
            (3, self.encode_logs()),
            (4, self.encode_clock()),
            (5, self.encode_keyspaces()),
            (6, self.encode_runs()),
            (7, self.encode_epochs()),
        ] {
            sections.extend_from_slice(&(kind | MUST).to_le_bytes());
            sections.extend_from_slice(&len_u32(body.0.len()).to_le_bytes());
            sections.extend_from_slice(&body.0);
        }
        let mut out = Out::default();
        out.bytes(&MAGIC);
        out.u32(VERSION);
        out.u64(self.generation);
        out.u64(sections.len() as u64);
        out.bytes(blake3::hash(&sections).as_bytes());
        out.u32(0);
        out.u32(crc32fast::hash(&out.0));
        assert_eq!(out.0.len(), HEADER_LEN, "the table above");
        out.bytes(&sections);
        out.0
    }

    fn encode_dataset(&self) -> Out {
        let mut out = Out::default();
        out.text(self.dataset.as_str().as_bytes());
        out.u16(self.region.0);
        out.bytes(&self.lineage);
        out
    }

    fn encode_layout(&self) -> Out {
        let mut out = Out::default();
        out.u32(ShardRouter::VERSION);
        out.u8(match self.router {
            ShardRouter::Single => 0,
            ShardRouter::Hash(_) => 1,
            ShardRouter::Ranges(_) => 2,
        });
        out.u16(self.router.shard_count());
        let ranges = self.router.as_ranges();
        out.u32(len_u32(ranges.len()));
        for range in ranges {
            out.u64(range.first);
            out.u64(range.last);
            out.u16(range.shard.0);
        }
        let (kind, delimiter) = match self.entity_rule {
            EntityRule::KeyHash => (0, 0),
            EntityRule::PrefixHash(delimiter) => (1, delimiter),
            EntityRule::FirstEight => (2, 0),
        };
        out.u8(kind);
        out.u8(delimiter);
        out
    }

    fn encode_logs(&self) -> Out {
        let mut out = Out::default();
        out.u32(len_u32(self.logs.len()));
        for (shard, log) in self.logs.iter().enumerate() {
            out.u16(u16::try_from(shard).expect("at most 256 shards"));
            out.u32(log.position.epoch.0);
            out.u64(log.position.seq);
            out.u32(log.chain);
            out.u64(log.complete_seq);
        }
        out
    }

    fn encode_clock(&self) -> Out {
        let mut out = Out::default();
        out.u64(self.complete_timestamp.0);
        out.u16(self.complete_ordinal);
        out.u64(self.next_file);
        out
    }

    fn encode_keyspaces(&self) -> Out {
        let mut out = Out::default();
        out.u32(self.next_keyspace);
        out.u32(len_u32(self.keyspaces.len()));
        for (number, name) in &self.keyspaces {
            out.u32(*number);
            out.text(name.as_bytes());
        }
        out
    }

    fn encode_runs(&self) -> Out {
        let mut out = Out::default();
        out.u32(len_u32(self.runs.len()));
        for run in &self.runs {
            out.u32(len_u32(run.len()));
            for table in run {
                out.table(table);
            }
        }
        out
    }

    fn encode_epochs(&self) -> Out {
        let mut out = Out::default();
        out.u32(len_u32(self.epochs.len()));
        for epochs in &self.epochs {
            out.u32(len_u32(epochs.len()));
            for entry in epochs {
                out.u32(entry.epoch.0);
                out.bytes(&entry.leader);
                out.u64(entry.first_seq);
            }
        }
        out
    }

    /// Reads stored bytes, trusting none of them.
    ///
    /// # Errors
    /// As [`Manifest::load`].
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Manifest> {
        let mut input = In { bytes, at: 0, path };
        let wrong = |at: u64, what, expected: &str, found: String| {
            Err(Error::corrupt(path, at, what, expected, found))
        };
        let magic: [u8; 4] = input.array()?;
        if magic != MAGIC {
            return wrong(0, "manifest magic", "SDLM", format!("{magic:02x?}"));
        }
        let version = input.u32()?;
        let generation = input.u64()?;
        let sections_len = input.u64()?;
        let digest: [u8; 32] = input.array()?;
        let reserved = input.u32()?;
        let crc = input.u32()?;
        let expected = crc32fast::hash(&bytes[..HEADER_LEN - 4]);
        if crc != expected && !planted("manifest.header_crc") {
            return wrong(
                60,
                "manifest header checksum",
                &format!("{expected:#010x}"),
                format!("{crc:#010x}"),
            );
        }
        if version != VERSION || reserved != 0 {
            return Err(Error::Unsupported {
                path: path.to_owned(),
                expected: format!("manifest version {VERSION}"),
                found: format!("manifest version {version}"),
            });
        }
        let sections = &bytes[HEADER_LEN..];
        if sections_len != sections.len() as u64 {
            let expected = format!("{sections_len} bytes");
            return wrong(
                16,
                "manifest length",
                &expected,
                format!("{} bytes", sections.len()),
            );
        }
        if blake3::hash(sections).as_bytes() != &digest && !planted("manifest.digest") {
            return wrong(
                24,
                "manifest digest",
                "that of its sections",
                "another".to_owned(),
            );
        }
        if generation > NUMBER_MAX {
            let expected = format!("at most {NUMBER_MAX}");
            return wrong(8, "manifest generation", &expected, generation.to_string());
        }
        let default = DatasetId::default();
        let (single, rule) = (ShardRouter::Single, EntityRule::KeyHash);
        let mut manifest = Manifest::new(default, RegionId(0), [0; 16], single, rule);
        manifest.generation = generation;
        let mut last = 0;
        while input.at < bytes.len() {
            let kind = input.u32()?;
            let number = kind & !MUST;
            if (1..=SECTION_COUNT).contains(&number) {
                // What a section says may rest on those before it.
                if number != last + 1 {
                    let expected = match last {
                        SECTION_COUNT => "none behind the last one".to_owned(),
                        _ => format!("section {}", last + 1),
                    };
                    return Err(input.wrong("manifest sections", &expected, number.to_string()));
                }
                last = number;
            }
            let len = input.u32()? as usize;
            let start = input.at;
            match number {
                1 => input.dataset(&mut manifest)?,
                2 => input.layout(&mut manifest)?,
                3 => input.logs(&mut manifest)?,
                4 => input.clock(&mut manifest)?,
                5 => input.keyspaces(&mut manifest)?,
                6 => input.runs(&mut manifest)?,
                7 => input.epochs(&mut manifest)?,
                other if kind & MUST != 0 => {
                    return Err(Error::Unsupported {
                        path: path.to_owned(),
                        expected: "manifest sections 1 to 7".to_owned(),
                        found: format!("manifest section {other}, of a newer release"),
                    });
                }
                _ => {
                    input.take(len)?;
                }
            }
            if input.at - start != len {
                let found = format!("{} bytes", input.at - start);
                return wrong(
                    start as u64,
                    "manifest section length",
                    &format!("{len} bytes"),
                    found,
                );
            }
        }
        if last != SECTION_COUNT {
            let found = format!("1 to {last}");
            return wrong(64, "manifest sections", "1 to 7", found);
        }
        let last_file = manifest.tables().map(|table| table.identity.number).max();
        let (last_file, next_file) = (last_file.unwrap_or(0), manifest.next_file);
        if next_file <= last_file || next_file > NUMBER_MAX {
            let expected = format!("above {last_file}, at most {NUMBER_MAX}");
            return wrong(64, "next file number", &expected, next_file.to_string());
        }
        let shard_count = usize::from(manifest.router.shard_count());
        if manifest.logs.len() != shard_count || manifest.epochs.len() != shard_count {
            let found = format!("{} logs", manifest.logs.len());
            return wrong(64, "manifest logs", &format!("{shard_count} logs"), found);
        }
        Ok(manifest)
    }
}

fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("a manifest is far below 4 GiB")
}

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, bytes: &[u8]) {
        self.u32(len_u32(bytes.len()));
        self.bytes(bytes);
    }

    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    fn table(&mut self, table: &TableMeta) {
        self.u64(table.identity.number);
        self.u64(table.len);
        self.bytes(&table.digest);
        self.text(&table.name_min);
        self.text(&table.name_max);
        for field in [
            table.entry_count,
            table.tombstone_count,
            table.name_count,
            table.version_min.0,
            table.version_max.0,
            table.names_len,
            table.values_len,
        ] {
            self.u64(field);
        }
        self.u32(len_u32(table.files.len()));
        for file in &table.files {
            self.u8(file.source as u8);
            self.u16(file.shard.0);
            self.u64(file.file);
            self.u64(file.live_len);
            self.u64(file.live_count);
        }
    }
}

struct In<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> In<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let part = self.bytes.get(self.at..).and_then(|rest| rest.get(..len));
        let part = part.ok_or_else(|| {
            let found = format!("{} bytes", self.bytes.len() - self.at);
            Error::corrupt(
                self.path,
                self.at as u64,
                "manifest",
                format!("{len} bytes"),
                found,
            )
        })?;
        self.at += len;
        Ok(part)
    }

    fn wrong(&self, what: &'static str, expected: &str, found: String) -> Error {
        Error::corrupt(self.path, self.at as u64, what, expected, found)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N)?.try_into().expect("N bytes were taken"))
    }

    fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
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

    fn text(&mut self) -> Result<&'a [u8]> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    /// A count of things that take at least `len_min` bytes each: checked before anything is made.
    fn count(&mut self, len_min: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        let left = self.bytes.len() - self.at;
        if count.saturating_mul(len_min) > left {
            return Err(self.wrong("count", &format!("at most {left} bytes"), count.to_string()));
        }
        Ok(count)
    }

    fn name(&mut self, what: &'static str) -> Result<&'a str> {
        let bytes = self.text()?;
        std::str::from_utf8(bytes)
            .map_err(|_| self.wrong(what, "UTF-8", format!("{} bytes", bytes.len())))
    }

    fn dataset(&mut self, manifest: &mut Manifest) -> Result<()> {
        let name = self.name("dataset name")?;
        // The empty name stands for the first dataset in calls; a file says which it is of.
        if name.is_empty() {
            return Err(self.wrong("dataset name", "a name", "none".to_owned()));
        }
        manifest.dataset = DatasetId::new(name)
            .map_err(|error| self.wrong("dataset name", error.expected, error.found))?;
        manifest.region = RegionId(self.u16()?);
        manifest.lineage = self.array()?;
        Ok(())
    }

    fn layout(&mut self, manifest: &mut Manifest) -> Result<()> {
        let version = self.u32()?;
        if version != ShardRouter::VERSION {
            return Err(Error::Unsupported {
                path: self.path.to_owned(),
                expected: format!("router version {}", ShardRouter::VERSION),
                found: format!("router version {version}"),
            });
        }
        let kind = self.u8()?;
        let shard_count = self.u16()?;
        let mut ranges = Vec::new();
        for _ in 0..self.count(18)? {
            let (first, last) = (self.u64()?, self.u64()?);
            ranges.push(ShardRange {
                first,
                last,
                shard: ShardId(self.u16()?),
            });
        }
        let router = match kind {
            0 => Ok(ShardRouter::Single),
            1 => ShardRouter::hash(shard_count),
            2 => ShardRouter::ranges(ranges),
            _ => return Err(self.wrong("router kind", "0 to 2", kind.to_string())),
        };
        manifest.router = router.map_err(|e| self.wrong("router", "a router", e.to_string()))?;
        let (kind, delimiter) = (self.u8()?, self.u8()?);
        manifest.entity_rule = match kind {
            0 => EntityRule::KeyHash,
            1 => EntityRule::PrefixHash(delimiter),
            2 => EntityRule::FirstEight,
            _ => return Err(self.wrong("entity rule", "0 to 2", kind.to_string())),
        };
        Ok(())
    }

    fn logs(&mut self, manifest: &mut Manifest) -> Result<()> {
        manifest.logs.clear();
        for expected in 0..self.count(26)? {
            let shard = self.u16()?;
            if usize::from(shard) != expected {
                return Err(self.wrong("shard", &expected.to_string(), shard.to_string()));
            }
            let position = Position {
                epoch: Epoch(self.u32()?),
                seq: self.u64()?,
            };
            let (chain, complete_seq) = (self.u32()?, self.u64()?);
            let last = position.seq.max(complete_seq);
            if last > NUMBER_MAX {
                let expected = format!("at most {NUMBER_MAX}");
                return Err(self.wrong("sequence of a log", &expected, last.to_string()));
            }
            manifest.logs.push(FlushedLog {
                position,
                chain,
                complete_seq,
            });
        }
        Ok(())
    }

    fn clock(&mut self, manifest: &mut Manifest) -> Result<()> {
        manifest.complete_timestamp = Hlc(self.u64()?);
        manifest.complete_ordinal = self.u16()?;
        manifest.next_file = self.u64()?;
        Ok(())
    }

    fn keyspaces(&mut self, manifest: &mut Manifest) -> Result<()> {
        manifest.next_keyspace = self.u32()?;
        if manifest.next_keyspace == 0 {
            return Err(self.wrong("next keyspace number", "1 or more", "0".to_owned()));
        }
        for _ in 0..self.count(8)? {
            let number = self.u32()?;
            let name = self.name("keyspace name")?.to_owned();
            if number >= manifest.next_keyspace {
                let expected = format!("below {}", manifest.next_keyspace);
                return Err(self.wrong("keyspace number", &expected, number.to_string()));
            }
            manifest.keyspaces.push((number, name));
        }
        Ok(())
    }

    fn runs(&mut self, manifest: &mut Manifest) -> Result<()> {
        for _ in 0..self.count(4)? {
            let mut run: Vec<TableMeta> = Vec::new();
            for _ in 0..self.count(120)? {
                let table = self.table(manifest.lineage)?;
                let ordered = table.name_min <= table.name_max
                    && run.last().is_none_or(|last| last.name_max < table.name_min);
                if !ordered {
                    let found = format!("table {}", table.identity.number);
                    return Err(self.wrong("run", "tables that ascend", found));
                }
                run.push(table);
            }
            manifest.runs.push(run);
        }
        Ok(())
    }

    fn epochs(&mut self, manifest: &mut Manifest) -> Result<()> {
        manifest.epochs.clear();
        for _ in 0..self.count(4)? {
            let mut epochs: Vec<EpochEntry> = Vec::new();
            for _ in 0..self.count(28)? {
                let (epoch, leader) = (Epoch(self.u32()?), self.array()?);
                let entry = EpochEntry {
                    epoch,
                    leader,
                    first_seq: self.u64()?,
                };
                let rises = epochs
                    .last()
                    .is_none_or(|last| last.epoch < epoch && last.first_seq < entry.first_seq);
                if !rises && !planted("manifest.epochs") {
                    return Err(self.wrong("epochs", "epochs that rise", epoch.to_string()));
                }
                epochs.push(entry);
            }
            manifest.epochs.push(epochs);
        }
        Ok(())
    }

    fn table(&mut self, lineage: [u8; 16]) -> Result<TableMeta> {
        let identity = Identity {
            number: self.u64()?,
            lineage,
        };
        if identity.number == 0 {
            return Err(self.wrong("table number", "1 or more", "0".to_owned()));
        }
        let mut table = TableMeta {
            identity,
            len: self.u64()?,
            digest: self.array()?,
            name_min: self.text()?.to_vec(),
            name_max: self.text()?.to_vec(),
            entry_count: self.u64()?,
            tombstone_count: self.u64()?,
            name_count: self.u64()?,
            version_min: Hlc(self.u64()?),
            version_max: Hlc(self.u64()?),
            names_len: self.u64()?,
            values_len: self.u64()?,
            files: Vec::new(),
        };
        for _ in 0..self.count(27)? {
            let source = match self.u8()? {
                0 => PointerSource::Segment,
                1 => PointerSource::ValueFile,
                other => return Err(self.wrong("pointer source", "0 or 1", other.to_string())),
            };
            let (shard, file) = (ShardId(self.u16()?), self.u64()?);
            let (live_len, live_count) = (self.u64()?, self.u64()?);
            table.files.push(PointerFile {
                source,
                shard,
                file,
                live_len,
                live_count,
            });
        }
        Ok(table)
    }
}

#[cfg(test)]
mod tests;
