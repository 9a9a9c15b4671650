//! Opens a table: reads everything but the chunks, trusting nothing.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use strandline_wal::bug::planted;
use strandline_wal::io::{Access, Disk, File, Map, read_exact_at};
use strandline_wal::{Error, IoContext, Result};

use super::bytes::TableBytes;
use super::chunk::CHUNK_LEN_MIN;
use super::chunks::Chunks;
use super::damage::Damage;
use super::directory::{self, ALIGN_LEN, Directory, Section};
use super::fences::Fences;
use super::footer::{FOOTER_LEN, Footer};
use super::header::{self, HEADER_LEN, Identity};
use super::layout::{hex, is_zero};
use super::meta::TableMeta;
use super::point_index::PointIndex;
use super::properties::Properties;
use super::reader::{OpenOptions, Table};
use super::source::Source;

/// Opens the table at `path`.
pub(super) fn open(
    disk: &dyn Disk,
    path: &Path,
    expected: Option<&TableMeta>,
    options: &OpenOptions,
) -> Result<Table> {
    let file = disk.open(path, Access::Read).during("open", path)?;
    let len = file.len().during("stat", path)?;
    let wrong = |damage: Damage| damage.into_error(path);
    check_len(len, expected).map_err(wrong)?;
    let map = if options.map {
        let len = usize::try_from(len).map_err(|_| too_large(len))?;
        file.map(len).during("map", path)?
    } else {
        None
    };
    let bytes = FileBytes {
        file: &file,
        map: map.as_ref(),
        path,
    };

    let identity = header::decode(&bytes.array::<HEADER_LEN>(0)?).map_err(wrong)?;
    let footer_at = len - FOOTER_LEN as u64;
    let footer = bytes.array::<FOOTER_LEN>(footer_at)?;
    let footer = Footer::decode(&footer, footer_at, &identity).map_err(wrong)?;
    check_identity(&identity, &footer, footer_at, expected).map_err(wrong)?;

    let directory = read_directory(&bytes, &footer)?;
    let (at, section) = required(&bytes, &directory, directory::CHUNKS, footer.directory_at)?;
    let chunks = Chunks::decode(&section, at).map_err(wrong)?;
    check_gaps(&bytes, &directory, &chunks)?;
    // The fences are copied: they are small, every lookup by order reads them, and what they say
    // about lengths must not change after it was checked.
    let (at, section) = required(&bytes, &directory, directory::FENCES, footer.directory_at)?;
    let section = TableBytes::owned(section.to_vec());
    let fences = Fences::decode(section, at, chunks.count()).map_err(wrong)?;
    let (at, section) = required(
        &bytes,
        &directory,
        directory::PROPERTIES,
        footer.directory_at,
    )?;
    let mut properties = Properties::decode(&section, at).map_err(wrong)?;
    let keyspaces = std::mem::take(&mut properties.keyspaces);

    let mut warnings = Vec::new();
    let point_index = match directory.find(directory::POINT_INDEX) {
        Some(section) if options.point_index => {
            match bytes.point_index(section, chunks.data_end())? {
                Ok(index) => Some(index),
                Err(damage) => {
                    warnings.push(damage);
                    None
                }
            }
        }
        _ => None,
    };
    let source = match map {
        Some(map) => Source::mapped(map, chunks.count()),
        None => Source::read(
            Arc::clone(&file),
            Arc::clone(&options.cache),
            chunks.count(),
        ),
    };
    let meta = TableMeta::of(identity, len, footer.digest, properties);
    if let Some(expected) = expected.filter(|expected| **expected != meta) {
        let expected = format!("{} entries as in the manifest", expected.entry_count);
        let found = format!("{} entries", meta.entry_count);
        return Err(wrong(Damage::new(
            at,
            "properties of the table",
            expected,
            found,
        )));
    }
    let path = path.to_owned();
    Ok(Table {
        path,
        file,
        footer,
        directory,
        chunks,
        fences,
        point_index,
        source,
        meta,
        keyspaces,
        warnings,
    })
}

fn check_len(len: u64, expected: Option<&TableMeta>) -> Result<(), Damage> {
    if let Some(expected) = expected.filter(|expected| expected.len != len) {
        return Err(Damage::new(len, "length of the file", expected.len, len));
    }
    let len_min = (HEADER_LEN + CHUNK_LEN_MIN + FOOTER_LEN) as u64;
    if len < len_min {
        return Err(Damage::new(
            len,
            "length of the file",
            format!("at least {len_min}"),
            len,
        ));
    }
    Ok(())
}

fn check_identity(
    identity: &Identity,
    footer: &Footer,
    footer_at: u64,
    expected: Option<&TableMeta>,
) -> Result<(), Damage> {
    let Some(expected) = expected else {
        return Ok(());
    };
    if *identity != expected.identity {
        let name = |id: &Identity| format!("table {} of {}", id.number, hex(&id.lineage));
        let (expected, found) = (name(&expected.identity), name(identity));
        return Err(Damage::new(0, "identity of the table", expected, found));
    }
    if footer.digest != expected.digest && !planted("table.digest") {
        let (expected, found) = (hex(&expected.digest), hex(&footer.digest));
        return Err(Damage::new(
            footer_at,
            "digest of the table",
            expected,
            found,
        ));
    }
    Ok(())
}

fn read_directory(bytes: &FileBytes<'_>, footer: &Footer) -> Result<Directory> {
    let at = footer.directory_at;
    let limit_len = (directory::SECTION_COUNT_MAX * directory::ENTRY_LEN) as u32;
    if footer.directory_len > limit_len {
        let expected = format!("at most {limit_len}");
        let damage = Damage::new(
            at,
            "length of the directory",
            expected,
            footer.directory_len,
        );
        return Err(damage.into_error(bytes.path));
    }
    let directory = bytes.range(at..at + u64::from(footer.directory_len))?;
    let crc = crc32fast::hash(&directory);
    let damage = if crc == footer.directory_crc || planted("table.directory_crc") {
        match Directory::decode(&directory, at) {
            Ok(directory) => return Ok(directory),
            Err(damage) => damage,
        }
    } else {
        let (expected, found) = (
            format!("{:08x}", footer.directory_crc),
            format!("{crc:08x}"),
        );
        Damage::new(at, "checksum of the directory", expected, found)
    };
    Err(damage.into_error(bytes.path))
}

/// The bytes of a section that no table is without, and where they stand.
fn required(
    bytes: &FileBytes<'_>,
    directory: &Directory,
    kind: u32,
    directory_at: u64,
) -> Result<(u64, TableBytes)> {
    let Some(section) = directory.find(kind) else {
        let damage = Damage::new(directory_at, "sections", format!("type {kind}"), "none");
        return Err(damage.into_error(bytes.path));
    };
    let content = bytes.range(section.at..section.end())?;
    match check_section(section, crc32fast::hash(&content)) {
        Ok(()) => Ok((section.at, content)),
        Err(damage) => Err(damage.into_error(bytes.path)),
    }
}

/// Compares the checksum of a section with what its bytes have.
pub(super) fn check_section(section: &Section, crc: u32) -> Result<(), Damage> {
    if crc == section.crc || planted("table.section_crc") {
        return Ok(());
    }
    let what = match section.kind {
        directory::CHUNKS => "checksum of the chunk section",
        directory::FENCES => "checksum of the fences",
        directory::PROPERTIES => "checksum of the properties",
        directory::POINT_INDEX => "checksum of the point index",
        _ => "checksum of an unknown section",
    };
    Err(Damage::new(
        section.at,
        what,
        format!("{:08x}", section.crc),
        format!("{crc:08x}"),
    ))
}

/// The data ends where the first section begins, and what lies between the parts is zero.
fn check_gaps(bytes: &FileBytes<'_>, directory: &Directory, chunks: &Chunks) -> Result<()> {
    let first = directory.sections.first().map(|section| section.at);
    let data_end = chunks.data_end();
    if first != Some(data_end.next_multiple_of(ALIGN_LEN)) {
        let expected = data_end.next_multiple_of(ALIGN_LEN);
        let found = first.unwrap_or_default();
        let damage = Damage::new(data_end, "start of the sections", expected, found);
        return Err(damage.into_error(bytes.path));
    }
    for (at, len) in directory.gaps(data_end) {
        if !is_zero(&bytes.range(at..at + len as u64)?) {
            let damage = Damage::new(at, "padding between sections", "zeros", "other bytes");
            return Err(damage.into_error(bytes.path));
        }
    }
    Ok(())
}

/// The bytes of a file that is being opened. Ranges lie within its length, which was looked at.
struct FileBytes<'a> {
    file: &'a Arc<dyn File>,
    map: Option<&'a Map>,
    path: &'a Path,
}

impl FileBytes<'_> {
    fn range(&self, range: Range<u64>) -> Result<TableBytes> {
        let len = usize::try_from(range.end - range.start).map_err(|_| too_large(range.end))?;
        if let Some(map) = self.map {
            let start = usize::try_from(range.start).map_err(|_| too_large(range.start))?;
            return TableBytes::mapped(map, start..start + len).ok_or_else(|| {
                Damage::new(range.start, "length of the map", range.end, map.len())
                    .into_error(self.path)
            });
        }
        let mut bytes = vec![0; len];
        read_exact_at(self.file.as_ref(), &mut bytes, range.start).during("read", self.path)?;
        Ok(TableBytes::owned(bytes))
    }

    fn array<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(&self.range(at..at + N as u64)?);
        Ok(array)
    }

    /// The point index, or what is wrong with it: reads go on without it.
    fn point_index(&self, section: &Section, data_end: u64) -> Result<Result<PointIndex, Damage>> {
        let content = self.range(section.at..section.end())?;
        Ok(check_section(section, crc32fast::hash(&content))
            .and_then(|()| PointIndex::decode(content, section.at, data_end)))
    }
}

fn too_large(found: u64) -> Error {
    Error::TooLarge {
        what: "length of a table",
        limit: usize::MAX as u64,
        found,
    }
}
