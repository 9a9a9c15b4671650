//! Writes a table front to back: entries in order in, one synced file out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline_wal::io::{Disk, File, write_all_at};
use strandline_wal::unless;
use strandline_wal::{Error, Hlc, IoContext, Result};

use super::chunk::{CHUNK_LEN_TARGET, CHUNK_LEN_TARGET_MAX, CHUNK_LEN_TARGET_MIN, ChunkBuilder};
use super::chunks::{Chunks, Start};
use super::directory::{self, Directory, Section};
use super::entry::{Entry, EntryKind, InternalKey, NAME_LEN_MAX, VALUE_LEN_MAX};
use super::fences::{FencesBuilder, STRIDE_LEN};
use super::footer::{FOOTER_LEN, Footer};
use super::header::{self, Identity};
use super::meta::TableMeta;
use super::point_index::{PointIndexBuilder, hash_of};
use super::pointer::ValuePointer;
use super::properties::Properties;
use super::record::Record;

/// How a table is written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TableOptions {
    /// Bytes up to which a chunk is filled. 128 bytes to 64 KiB; 32 KiB by default. A cold lookup
    /// reads and checks one chunk.
    pub chunk_len_target: usize,
    /// Whether to write the point index, 5 to 8 bytes per name in a table of less than 4 GiB. On by default.
    pub point_index: bool,
}

impl Default for TableOptions {
    fn default() -> TableOptions {
        TableOptions {
            chunk_len_target: CHUNK_LEN_TARGET,
            point_index: true,
        }
    }
}

/// A table that is being written. Memory grows with the indexes, not with the entries.
///
/// The file counts for nothing until [`Self::finish`] has returned: it has no footer before. After
/// an error the builder can only be discarded.
pub struct TableBuilder {
    disk: Arc<dyn Disk>,
    output: Output,
    identity: Identity,
    options: TableOptions,
    chunk: ChunkBuilder,
    /// The closed chunks.
    chunk_starts: Vec<Start>,
    fences: FencesBuilder,
    /// Bytes of records since the last fence.
    stride_len: usize,
    point_index: Option<PointIndexBuilder>,
    properties: Properties,
    /// The entry before, where there is one.
    name: Vec<u8>,
    version: Hlc,
}

impl TableBuilder {
    /// Creates the file, which must not exist.
    ///
    /// # Errors
    /// The disk's.
    ///
    /// # Panics
    /// Where the options are out of bounds or the identity has the number 0.
    pub fn create(
        disk: Arc<dyn Disk>,
        path: &Path,
        identity: Identity,
        options: TableOptions,
    ) -> Result<TableBuilder> {
        let bounds = CHUNK_LEN_TARGET_MIN..=CHUNK_LEN_TARGET_MAX;
        assert!(
            bounds.contains(&options.chunk_len_target),
            "chunk_len_target is out of bounds"
        );
        let file = disk.create(path).during("create", path)?;
        let mut output = Output::new(file, path);
        output.write(&header::encode(&identity))?;
        Ok(TableBuilder {
            disk,
            output,
            identity,
            chunk: ChunkBuilder::new(options.chunk_len_target),
            chunk_starts: Vec::new(),
            fences: FencesBuilder::default(),
            stride_len: 0,
            point_index: options.point_index.then(PointIndexBuilder::default),
            options,
            properties: Properties::empty(),
            name: Vec::new(),
            version: Hlc(0),
        })
    }

    /// Appends an entry, which must stand behind the one before.
    ///
    /// # Errors
    /// The disk's; [`Error::TooLarge`] where the entry or the file exceeds a limit.
    ///
    /// # Panics
    /// Where the order is broken, or a kind has not the value that it demands: entries come from
    /// our own log and from tables whose chunks were checked for both.
    pub fn add(&mut self, entry: Entry<'_>) -> Result<()> {
        limit(
            "length of a name",
            NAME_LEN_MAX as u64,
            entry.name.len() as u64,
        )?;
        limit(
            "length of a value",
            VALUE_LEN_MAX as u64,
            entry.value.len() as u64,
        )?;
        let is_first = self.properties.entry_count == 0;
        let names = self.name.as_slice().cmp(entry.name);
        let is_behind = names.then(entry.version.cmp(&self.version)).is_lt();
        assert!(is_first || is_behind, "entries were added out of order");
        let is_new_name = is_first || names.is_ne();
        let is_full = self.chunk.len_with(&entry) > self.options.chunk_len_target;
        if is_full && self.chunk.record_count() > 0 {
            self.close_chunk()?;
        }
        if self.chunk.record_count() == 0 || self.stride_len >= STRIDE_LEN {
            let names_len = self.fences.names_len() as u64 + entry.name.len() as u64;
            limit("length of the fences", u64::from(u32::MAX), names_len)?;
            let before = InternalKey {
                name: &self.name,
                version: self.version,
            };
            self.fences.push(
                (!is_first).then_some(before),
                entry.key(),
                self.chunk_starts.len() as u32,
                self.chunk.record_count() as u32,
            );
            self.stride_len = 0;
        }
        let is_hashed = is_new_name && self.point_index.is_some();
        self.chunk
            .push(&entry, is_hashed.then(|| hash_of(entry.name)));
        self.stride_len += Record::len_of(&entry) + usize::from(self.chunk.versions().len);
        self.count(&entry, is_new_name);
        Ok(())
    }

    /// Bytes that the file would have about now, without its indexes. For splitting outputs.
    pub fn len(&self) -> u64 {
        self.output.at() + self.chunk.len() as u64
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.properties.entry_count == 0
    }

    /// Writes indexes and footer and syncs the file. Syncing its directory is the caller's.
    ///
    /// # Errors
    /// The disk's. The file is then worth nothing; discarding it is the caller's.
    ///
    /// # Panics
    /// Where nothing was added: no table is empty. [`Self::discard`] it.
    pub fn finish(mut self) -> Result<TableMeta> {
        assert!(!self.is_empty(), "a table without entries");
        self.close_chunk()?;
        let data_end = self.output.at();
        self.properties.name_max = std::mem::take(&mut self.name);
        let mut directory = Directory {
            sections: Vec::new(),
        };
        let chunks = Chunks::encode(&self.chunk_starts, data_end);
        self.output
            .section(directory::CHUNKS, &chunks, &mut directory)?;
        self.output
            .section(directory::FENCES, &self.fences.encode(), &mut directory)?;
        let properties = self.properties.encode();
        self.output
            .section(directory::PROPERTIES, &properties, &mut directory)?;
        if let Some(index) = self.point_index.take() {
            self.output.section(
                directory::POINT_INDEX,
                &index.encode(data_end),
                &mut directory,
            )?;
        }
        let (len, digest) = self.output.finish(&directory, self.identity)?;
        Ok(TableMeta::of(self.identity, len, digest, self.properties))
    }

    /// Removes the file.
    ///
    /// # Errors
    /// The disk's.
    pub fn discard(self) -> Result<()> {
        let TableBuilder {
            disk,
            output: Output { path, file, .. },
            ..
        } = self;
        drop(file);
        disk.remove(&path).during("remove", &path)
    }

    fn close_chunk(&mut self) -> Result<()> {
        let at = self.output.at();
        self.chunk_starts.push((at, self.chunk.versions()));
        let index = &mut self.point_index;
        let bytes = self.chunk.seal(&self.identity, at, |hash, start| {
            if let Some(index) = index {
                index.push(hash, at + start as u64);
            }
        });
        self.output.write(bytes)?;
        self.chunk.clear();
        Ok(())
    }

    fn count(&mut self, entry: &Entry<'_>, is_new_name: bool) {
        let properties = &mut self.properties;
        if properties.entry_count == 0 {
            properties.name_min = entry.name.to_vec();
        }
        properties.entry_count += 1;
        properties.name_count += u64::from(is_new_name);
        properties.version_min = properties.version_min.min(entry.version);
        properties.version_max = properties.version_max.max(entry.version);
        properties.names_len += entry.name.len() as u64;
        match entry.kind {
            EntryKind::Value => properties.values_len += entry.value.len() as u64,
            EntryKind::Pointer => {
                let pointer = ValuePointer::decode(entry.value).expect("a pointer was encoded");
                properties.values_len += u64::from(pointer.len);
                properties.count_pointer(&pointer);
            }
            EntryKind::Tombstone => {
                assert!(entry.value.is_empty(), "a tombstone has no value");
                properties.tombstone_count += 1;
            }
        }
        if is_new_name && entry.kind != EntryKind::Tombstone {
            properties.count_value(entry.name);
        }
        if is_new_name {
            self.name.clear();
            self.name.extend_from_slice(entry.name);
        }
        self.version = entry.version;
    }
}

/// The file, written front to back in large pieces and digested on the way.
struct Output {
    file: Arc<dyn File>,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Bytes of the file before the buffer.
    written_len: u64,
    digest: blake3::Hasher,
}

impl Output {
    fn new(file: Arc<dyn File>, path: &Path) -> Output {
        Output {
            file,
            path: path.to_owned(),
            buffer: Vec::with_capacity(BUFFER_LEN),
            written_len: 0,
            digest: blake3::Hasher::new(),
        }
    }

    /// Where the next byte goes.
    fn at(&self) -> u64 {
        self.written_len + self.buffer.len() as u64
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = BUFFER_LEN - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == BUFFER_LEN {
                self.digest.update(&self.buffer);
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let at = self.written_len;
        write_all_at(self.file.as_ref(), &self.buffer, at).during("write", &self.path)?;
        self.written_len += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn align(&mut self) -> Result<()> {
        let at = self.at();
        let gap = at.next_multiple_of(directory::ALIGN_LEN) - at;
        self.write(&[0; directory::ALIGN_LEN as usize][..gap as usize])
    }

    fn section(&mut self, kind: u32, bytes: &[u8], directory: &mut Directory) -> Result<()> {
        self.align()?;
        directory.sections.push(Section::of(kind, self.at(), bytes));
        self.write(bytes)
    }

    /// Writes directory and footer and syncs. Returns length and digest.
    fn finish(&mut self, directory: &Directory, identity: Identity) -> Result<(u64, [u8; 32])> {
        self.align()?;
        let directory_at = self.at();
        let bytes = directory.encode();
        self.write(&bytes)?;
        self.digest.update(&self.buffer);
        let footer = Footer {
            directory_at,
            directory_len: bytes.len() as u32,
            directory_crc: crc32fast::hash(&bytes),
            file_len: self.at() + FOOTER_LEN as u64,
            identity,
            digest: self.digest.finalize().into(),
        };
        // The buffer may grow beyond its usual length here; the digest is complete.
        self.buffer.extend_from_slice(&footer.encode());
        self.flush()?;
        unless!("table.sync", self.file.sync()).during("sync", &self.path)?;
        Ok((footer.file_len, footer.digest))
    }
}

fn limit(what: &'static str, limit: u64, found: u64) -> Result<()> {
    if found > limit {
        Err(Error::TooLarge { what, limit, found })
    } else {
        Ok(())
    }
}

/// Bytes that are written to the file at once.
const BUFFER_LEN: usize = 256 << 10;
