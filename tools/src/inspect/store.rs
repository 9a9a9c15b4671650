//! Which files a stored dataset has, and what they say at their heads and ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline::files;
use strandline::manifest::Manifest;
use strandline::{DatasetId, ShardId, keyspace_created};
use strandline_wal::batch::flags;
use strandline_wal::io::{Access, Disk, Env, File, FileKind, read_exact_at};
use strandline_wal::segment::{
    Footer, SEGMENT_HEADER_LEN, SEGMENT_LEN_MAX, SegmentHeader, TRAILER_LEN, parse_file_name,
};
use strandline_wal::{Error, IoContext};

use super::walk::{Found, Walk};
use crate::failure::{Failure, Result};

/// A dataset as its directory shows it.
pub struct DatasetFiles {
    /// Its name.
    pub id: DatasetId,
    /// Its directory.
    pub dir: PathBuf,
    /// Its manifest, or what is wrong with it.
    pub manifest: Result<Manifest, Error>,
    /// Its segment files, by shard and first sequence.
    pub segments: Vec<SegmentName>,
    /// Newest segments without a header on the disk yet: a live leader has them in memory, or a crash
    /// came before they were written out. Whether something is missing is recovery's to judge.
    pub unwritten: Vec<SegmentName>,
}

/// A segment file by its name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SegmentName {
    /// The file.
    pub path: PathBuf,
    /// The shard that the name says.
    pub shard: ShardId,
    /// The first sequence that the name says.
    pub first_seq: u64,
}

/// An open segment file whose header is intact.
pub struct SegmentFile {
    /// Its name.
    pub name: SegmentName,
    /// Its header.
    pub header: SegmentHeader,
    /// Its footer, where it is sealed; what is wrong with it, where it is damaged.
    pub footer: Option<Result<Footer, Error>>,
    /// Bytes of the file when it was opened.
    pub len: u64,
    pub(super) file: Arc<dyn File>,
}

/// The datasets of a database, or the one of that name.
///
/// # Errors
/// I/O, where there is no database or no dataset of that name.
pub fn datasets(env: &Env, root: &Path, only: Option<&str>) -> Result<Vec<DatasetFiles>> {
    let mut found = Vec::new();
    for (id, dir) in crate::open::datasets(env, root)? {
        if only.is_none_or(|only| only == id.as_str()) {
            found.push(DatasetFiles::read(env.disk.as_ref(), id, dir)?);
        }
    }
    match (found.is_empty(), only) {
        (true, Some(only)) => Err(Failure::io(format!(
            "{} has no dataset {only}",
            root.display()
        ))),
        _ => Ok(found),
    }
}

impl DatasetFiles {
    fn read(disk: &dyn Disk, id: DatasetId, dir: PathBuf) -> Result<DatasetFiles> {
        let path = files::manifest(&dir);
        let manifest = Manifest::load(disk, &path).and_then(|manifest| {
            let absent = || Error::corrupt(&path, 0, "manifest", "a manifest", "no such file");
            manifest.ok_or_else(absent)
        });
        let mut segments = Vec::new();
        for entry in disk.list(&dir).during("list", &dir)? {
            let is_region = entry.kind == FileKind::Dir && is_region(&entry.name);
            if is_region {
                let region = dir.join(&entry.name);
                segments.extend(segment_names(disk, &region)?);
            }
        }
        segments.sort_by_key(|segment| (segment.shard, segment.first_seq));
        let is_newest = |n: usize, all: &[SegmentName]| {
            all.get(n + 1).is_none_or(|next| next.shard != all[n].shard)
        };
        let unwritten: Vec<SegmentName> = (0..segments.len())
            .filter(|n| is_newest(*n, &segments) && is_unwritten(disk, &segments[*n].path))
            .map(|n| segments[n].clone())
            .collect();
        segments.retain(|segment| !unwritten.contains(segment));
        Ok(DatasetFiles {
            id,
            dir,
            manifest,
            segments,
            unwritten,
        })
    }

    /// The shards that have segments or that the manifest tells of.
    pub fn shards(&self) -> Vec<ShardId> {
        let stored = self.manifest.as_ref().map_or(0, |m| m.logs.len());
        let mut shards: Vec<ShardId> = (0..stored)
            .filter_map(|n| u16::try_from(n).ok().map(ShardId))
            .chain(self.segments.iter().map(|segment| segment.shard))
            .collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }

    /// The segments of a shard, oldest first.
    pub fn segments_of(&self, shard: ShardId) -> impl Iterator<Item = &SegmentName> {
        let segments = self.segments.iter();
        segments.filter(move |segment| segment.shard == shard)
    }

    /// The names of the keyspaces: those of the manifest, and those that the log has created since.
    pub fn keyspaces(&self, disk: &dyn Disk) -> BTreeMap<u32, String> {
        let mut names = BTreeMap::new();
        let mut flushed_seq = 0;
        if let Ok(manifest) = &self.manifest {
            names.extend(manifest.keyspaces.iter().cloned());
            flushed_seq = manifest.logs.first().map_or(0, |log| log.position.seq);
        }
        for segment in self.segments_of(ShardId(0)) {
            // Damage is told of by whoever shows the segment; a name that is missing shows its number.
            let Ok(open) = SegmentFile::open(disk, segment) else {
                continue;
            };
            let is_flushed = matches!(&open.footer, Some(Ok(f)) if f.last_seq <= flushed_seq);
            if is_flushed {
                continue;
            }
            let mut walk = open.walk();
            while let Ok(Found::Batch(stored)) = walk.step() {
                if stored.header.flags & flags::CONTROL == 0 {
                    continue;
                }
                for record in stored.batch().records().flatten() {
                    if let Some((number, name)) = keyspace_created(&record) {
                        names.insert(number, name.to_owned());
                    }
                }
            }
        }
        names
    }
}

/// Whether a file has nothing but zeros where a segment header should be.
fn is_unwritten(disk: &dyn Disk, path: &Path) -> bool {
    let mut head = [1; SEGMENT_HEADER_LEN];
    let Ok(file) = disk.open(path, Access::Read) else {
        return false;
    };
    match read_exact_at(file.as_ref(), &mut head, 0) {
        Ok(()) => head == [0; SEGMENT_HEADER_LEN],
        // Not even created to its length.
        Err(error) => {
            error.kind() == std::io::ErrorKind::UnexpectedEof && file.is_empty().unwrap_or(false)
        }
    }
}

fn is_region(name: &str) -> bool {
    let digits = name.strip_prefix('r').unwrap_or_default();
    digits.len() == 5 && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// The segment files in a directory.
fn segment_names(disk: &dyn Disk, dir: &Path) -> Result<Vec<SegmentName>> {
    let entries = disk.list(dir).during("list", dir)?;
    Ok(entries
        .iter()
        .filter_map(|entry| {
            let (shard, first_seq) = parse_file_name(&entry.name)?;
            let path = dir.join(&entry.name);
            Some(SegmentName {
                path,
                shard,
                first_seq,
            })
        })
        .collect())
}

impl SegmentFile {
    /// Opens a segment and reads its header and footer.
    ///
    /// # Errors
    /// The disk's; damage in the header.
    pub fn open(disk: &dyn Disk, name: &SegmentName) -> Result<SegmentFile, Error> {
        let path = &name.path;
        let file = disk.open(path, Access::Read).during("open", path)?;
        let len = file.len().during("stat", path)?;
        if len > SEGMENT_LEN_MAX {
            let found = format!("{len} bytes");
            return Err(Error::corrupt(path, 0, "length", "less than 4 GiB", found));
        }
        let mut head = vec![0; SEGMENT_HEADER_LEN.min(usize::try_from(len).unwrap_or(0))];
        read_exact_at(file.as_ref(), &mut head, 0).during("read", path)?;
        let header = SegmentHeader::decode(&head, path)?;
        if header.log.shard != name.shard || header.first_seq != name.first_seq {
            let expected = format!("shard {} from {}", name.shard, name.first_seq);
            let found = format!("shard {} from {}", header.log.shard, header.first_seq);
            return Err(Error::corrupt(path, 0, "segment identity", expected, found));
        }
        let footer = read_footer(file.as_ref(), len, header.nonce, path)?;
        Ok(SegmentFile {
            name: name.clone(),
            header,
            footer,
            len,
            file,
        })
    }

    /// Where batches end and the footer starts; the end of the file where it is not sealed.
    pub fn data_end(&self) -> u64 {
        match &self.footer {
            Some(Ok(footer)) => footer.data_len,
            Some(Err(_)) | None => self.len,
        }
    }

    /// Whether it is sealed.
    pub fn is_sealed(&self) -> bool {
        self.footer.is_some()
    }

    /// Walks its batches from the first on.
    pub fn walk(&self) -> Walk {
        Walk::new(self)
    }

    /// The file name, without its directory.
    pub fn file_name(&self) -> String {
        file_name(&self.name.path)
    }
}

/// The last part of a path, for a person to read.
pub fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

type MaybeFooter = Option<Result<Footer, Error>>;

fn read_footer(file: &dyn File, len: u64, nonce: u32, path: &Path) -> Result<MaybeFooter, Error> {
    let Some(trailer_at) = len.checked_sub(TRAILER_LEN as u64) else {
        return Ok(None);
    };
    let mut trailer = [0; TRAILER_LEN];
    read_exact_at(file, &mut trailer, trailer_at).during("read", path)?;
    let Some((data_len, _)) = Footer::peek(&trailer, nonce, len) else {
        return Ok(None);
    };
    let mut bytes = vec![0; usize::try_from(len - data_len).expect("below 4 GiB")];
    read_exact_at(file, &mut bytes, data_len).during("read", path)?;
    Ok(Some(Footer::decode(&bytes, nonce, data_len, path)))
}
