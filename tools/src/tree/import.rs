//! Reads a directory tree into a dataset.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use strandline::options::VALUE_LEN_MAX;
use strandline::{Dataset, Keyspace};

use super::{Meta, Mtime, PART_LEN, meta_keyspace, part_key};
use crate::failure::{During, Failure, Result};
use crate::load::Loader;

/// How to import a tree.
pub struct ImportOptions<'a> {
    /// The keyspace of the contents.
    pub keyspace: &'a str,
    /// Names that are left out wherever they stand, with all below them.
    pub exclude: &'a [OsString],
    /// A directory that is never entered: the database that is written.
    pub avoid: Option<&'a Path>,
    /// Told every path and its length.
    pub progress: &'a dyn Fn(&Path, u64),
}

/// What an import did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Imported {
    /// Regular files.
    pub file_count: u64,
    /// Directories, the root not counted.
    pub dir_count: u64,
    /// Symbolic links.
    pub link_count: u64,
    /// Bytes of content.
    pub len: u64,
    /// Devices, pipes and sockets, which are left out.
    pub skipped: Vec<PathBuf>,
}

/// Puts the tree below `root` into a dataset. Keys that are there and not in the tree stay.
///
/// # Errors
/// The engine's; the disk's, naming the file.
pub fn import(
    dataset: &Dataset,
    loader: Loader,
    root: &Path,
    options: &ImportOptions<'_>,
) -> Result<Imported> {
    let is_dir = fs::metadata(root).during("read", root)?.is_dir();
    if !is_dir {
        let shown = root.display();
        return Err(Failure::usage(format!("{shown} is not a directory")));
    }
    let mut walk = Walk {
        files: dataset.keyspace(options.keyspace)?,
        metas: dataset.keyspace(&meta_keyspace(options.keyspace))?,
        loader,
        avoid: options.avoid.and_then(identity),
        options,
        imported: Imported::default(),
        buffer: Vec::new(),
    };
    walk.tree(root)?;
    walk.loader.finish()?;
    Ok(walk.imported)
}

/// Files and bytes below a root, as an import would count them. Unreadable places count nothing.
pub fn measure(root: &Path, exclude: &[OsString]) -> (u64, u64) {
    let (mut file_count, mut len) = (0, 0);
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if exclude.contains(&entry.file_name()) {
                continue;
            }
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => dirs.push(entry.path()),
                Ok(metadata) if metadata.is_file() => {
                    file_count += 1;
                    len += metadata.len();
                }
                _ => {}
            }
        }
    }
    (file_count, len)
}

/// What tells two directories apart, whatever they are called.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

struct Walk<'a> {
    files: Keyspace,
    metas: Keyspace,
    loader: Loader,
    avoid: Option<(u64, u64)>,
    options: &'a ImportOptions<'a>,
    imported: Imported,
    buffer: Vec<u8>,
}

impl Walk<'_> {
    /// Goes through all directories, each in the order of its names.
    fn tree(&mut self, root: &Path) -> Result<()> {
        let mut dirs = vec![(root.to_owned(), Vec::new())];
        while let Some((dir, key)) = dirs.pop() {
            let mut names = Vec::new();
            for entry in fs::read_dir(&dir).during("list", &dir)? {
                names.push(entry.during("list", &dir)?.file_name());
            }
            names.sort();
            let mut below = Vec::new();
            for name in names {
                if self.options.exclude.contains(&name) {
                    continue;
                }
                let path = dir.join(&name);
                let mut key: Vec<u8> = key.clone();
                if !key.is_empty() {
                    key.push(b'/');
                }
                key.extend_from_slice(name.as_bytes());
                if self.entry(&path, &key)? {
                    below.push((path, key));
                }
            }
            dirs.extend(below.into_iter().rev());
        }
        Ok(())
    }

    /// Takes up one name; returns whether it is a directory to enter.
    fn entry(&mut self, path: &Path, key: &[u8]) -> Result<bool> {
        let metadata = fs::symlink_metadata(path).during("read", path)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            if self.avoid == Some((metadata.dev(), metadata.ino())) {
                return Ok(false);
            }
            self.meta(key, &dir_meta(&metadata))?;
            self.imported.dir_count += 1;
            return Ok(true);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).during("read link", path)?;
            let target = target.into_os_string().into_vec();
            self.meta(key, &Meta::symlink(&target))?;
            self.imported.link_count += 1;
        } else if kind.is_file() {
            let len = self.file(path, key)?;
            self.imported.file_count += 1;
            self.imported.len += len;
            (self.options.progress)(path, len);
        } else {
            self.imported.skipped.push(path.to_owned());
        }
        Ok(false)
    }

    fn meta(&mut self, key: &[u8], meta: &Meta) -> Result<()> {
        self.drop_parts(key)?;
        let place = super::text::show(key);
        self.loader
            .put(&self.metas, key, &meta.encode())
            .map_err(|failure| failure.at(place))
    }

    /// Removes the parts of a longer file that stood at this path before.
    fn drop_parts(&mut self, key: &[u8]) -> Result<()> {
        let Some(before) = self.metas.get(key)? else {
            return Ok(());
        };
        if let Ok(Meta::File { parts, .. }) = Meta::decode(&before) {
            for number in 0..parts.len() {
                self.loader.delete(&self.files, &part_key(key, number))?;
            }
        }
        Ok(())
    }

    /// Puts content first and metadata second: metadata tells of nothing that is not there.
    fn file(&mut self, path: &Path, key: &[u8]) -> Result<u64> {
        let mut file = open_ordinary(path)?;
        let metadata = file.metadata().during("read", path)?;
        self.buffer.clear();
        read_part(&mut file, &mut self.buffer, VALUE_LEN_MAX).during("read", path)?;
        let mut parts = Vec::new();
        let mut len = self.buffer.len() as u64;
        let is_long = self.buffer.len() == VALUE_LEN_MAX && has_more(&mut file, &mut self.buffer);
        self.drop_parts(key)?;
        if is_long {
            (len, parts) = self.parts(&mut file, path, key)?;
        } else {
            let place = super::text::show(key);
            self.loader
                .put(&self.files, key, &self.buffer)
                .map_err(|failure| failure.at(place))?;
        }
        let meta = Meta::File {
            mode: metadata.mode() & 0o7777,
            mtime: mtime(&metadata),
            len,
            parts,
        };
        self.loader.put(&self.metas, key, &meta.encode())?;
        Ok(len)
    }

    /// Puts a file whose first bytes are in the buffer, part by part.
    fn parts(&mut self, file: &mut File, path: &Path, key: &[u8]) -> Result<(u64, Vec<u64>)> {
        // What stood here as one value would be the content of another file now.
        self.loader.delete(&self.files, key)?;
        let (mut len, mut parts) = (0, Vec::new());
        let mut rest = std::mem::take(&mut self.buffer);
        while !rest.is_empty() {
            if rest.len() < PART_LEN {
                let missing = PART_LEN - rest.len();
                read_part(file, &mut rest, missing).during("read", path)?;
            }
            let part_len = rest.len().min(PART_LEN);
            let part_key = part_key(key, parts.len());
            self.loader.put(&self.files, &part_key, &rest[..part_len])?;
            rest.drain(..part_len);
            parts.push(part_len as u64);
            len += part_len as u64;
        }
        // Metadata goes into another shard's batch, perhaps: the parts go first.
        self.loader.flush()?;
        self.buffer = rest;
        Ok((len, parts))
    }
}

/// Opens a regular file that is not a link, and waits for no pipe that took its name meanwhile.
fn open_ordinary(path: &Path) -> Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let mut options = fs::OpenOptions::new();
    let file = options
        .read(true)
        .custom_flags(flags.cast_signed())
        .open(path)
        .during("open", path)?;
    match file.metadata().during("read", path)?.is_file() {
        true => Ok(file),
        false => Err(Failure::io(format!(
            "{} changed while it was read",
            path.display()
        ))),
    }
}

fn read_part(file: &mut File, buffer: &mut Vec<u8>, len_max: usize) -> std::io::Result<usize> {
    file.take(len_max as u64).read_to_end(buffer)
}

/// Whether the file goes on; what was read to find out is in the buffer.
fn has_more(file: &mut File, buffer: &mut Vec<u8>) -> bool {
    let before = buffer.len();
    // An error here shows again at the next read.
    let _ = read_part(file, buffer, 1);
    buffer.len() > before
}

fn dir_meta(metadata: &fs::Metadata) -> Meta {
    Meta::Dir {
        mode: metadata.mode() & 0o7777,
        mtime: mtime(metadata),
    }
}

fn mtime(metadata: &fs::Metadata) -> Mtime {
    Mtime {
        mtime_s: metadata.mtime(),
        mtime_ns: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
    }
}
