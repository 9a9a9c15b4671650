//! Writes a tree that is in a dataset into a directory.
//!
//! Nothing is ever written outside that directory: it is new or empty at the start, keys that are no
//! path inside it are left out and told of, files are created and never opened, and links come last,
//! so nothing is written through them. Directories get their modes and times at the very end.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use strandline::{Dataset, Keyspace, Snapshot};

use super::{Meta, Mtime, meta_keyspace, part_key, safe_path};
use crate::failure::{During, Failure, Result};
use crate::text;

/// What an export did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Exported {
    /// Regular files.
    pub file_count: u64,
    /// Directories that the metadata tells of.
    pub dir_count: u64,
    /// Symbolic links.
    pub link_count: u64,
    /// Bytes of content.
    pub len: u64,
    /// Keys that were left out, and why.
    pub problems: Vec<String>,
}

/// Permission bits that are given back. Those that lend rights are kept in the metadata only.
const MODE_MASK: u32 = 0o1777;

/// Writes the tree of a keyspace below `out`, which must be new or empty.
///
/// # Errors
/// Usage, where `out` is something else; problems where there is no such keyspace; the engine's;
/// the disk's.
pub fn export(
    dataset: &Dataset,
    keyspace: &str,
    out: &Path,
    progress: &dyn Fn(&Path, u64),
) -> Result<Exported> {
    let (snapshot, files) = crate::open::read_keyspace(dataset, keyspace)?;
    let metas = crate::open::keyspace(dataset, &meta_keyspace(keyspace));
    prepare(out)?;
    let mut writer = Writer {
        snapshot,
        files,
        out,
        made: BTreeSet::from([out.to_owned()]),
        dirs: Vec::new(),
        links: Vec::new(),
        exported: Exported::default(),
        progress,
    };
    writer.contents(metas.as_ref())?;
    if let Some(metas) = &metas {
        writer.others(metas)?;
    }
    writer.links()?;
    writer.dirs()?;
    Ok(writer.exported)
}

fn prepare(out: &Path) -> Result<()> {
    fs::create_dir_all(out).during("create directory", out)?;
    let is_empty = fs::read_dir(out).during("list", out)?.next().is_none();
    match is_empty {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "{} is not empty; name a new or an empty directory",
            out.display()
        ))),
    }
}

struct Writer<'a> {
    snapshot: Snapshot,
    files: Keyspace,
    out: &'a Path,
    /// Directories that were made here.
    made: BTreeSet<PathBuf>,
    /// Modes and times that directories get at the end.
    dirs: Vec<(PathBuf, u32, Mtime)>,
    links: Vec<(PathBuf, Vec<u8>)>,
    exported: Exported,
    progress: &'a dyn Fn(&Path, u64),
}

impl Writer<'_> {
    /// Every key with a whole content.
    fn contents(&mut self, metas: Option<&Keyspace>) -> Result<()> {
        let entries = self.snapshot.iter(&self.files);
        for entry in entries {
            let (key, value) = entry?;
            if key.contains(&0) {
                // A part: the metadata of its file leads to it.
                continue;
            }
            let meta = match metas {
                Some(metas) => self.snapshot.get(metas, &key)?,
                None => None,
            };
            let (mode, mtime) = match meta.as_deref().map(Meta::decode) {
                Some(Ok(Meta::File { mode, mtime, .. })) => (mode, Some(mtime)),
                // No metadata: a key that was put by hand.
                None => (0o644, None),
                // The path is a directory or a link now; its old content is not the tree's.
                Some(Ok(_)) => continue,
                Some(Err(error)) => {
                    self.problem(&key, &format!("its metadata is not readable: {error}"));
                    (0o644, None)
                }
            };
            self.file(&key, mode, mtime, &mut |file| file.write_all(&value))?;
        }
        Ok(())
    }

    /// What has only metadata: directories, links, files in parts.
    fn others(&mut self, metas: &Keyspace) -> Result<()> {
        let entries = self.snapshot.iter(metas);
        for entry in entries {
            let (key, value) = entry?;
            let Ok(path) = safe_path(&key) else {
                let is_told = self.snapshot.get(&self.files, &key)?.is_some();
                if !is_told {
                    self.refuse(&key);
                }
                continue;
            };
            match Meta::decode(&value) {
                Ok(Meta::Dir { mode, mtime }) => {
                    if self.make_dir(&key, &self.out.join(&path))? {
                        self.dirs.push((path, mode, mtime));
                        self.exported.dir_count += 1;
                    }
                }
                Ok(Meta::Symlink { target, target_hex }) => {
                    let digits = target_hex.and_then(|digits| text::unhex(digits.as_bytes()));
                    match target.map(String::into_bytes).or(digits) {
                        Some(target) => self.links.push((path, target)),
                        None => self.problem(&key, "its metadata has no link target"),
                    }
                }
                Ok(Meta::File {
                    mode, mtime, parts, ..
                }) if !parts.is_empty() => {
                    self.parted(&key, mode, mtime, &parts)?;
                }
                Ok(Meta::File { .. }) => {
                    if self.snapshot.get(&self.files, &key)?.is_none() {
                        self.problem(&key, "there is metadata and no content");
                    }
                }
                Err(error) => {
                    if self.snapshot.get(&self.files, &key)?.is_none() {
                        self.problem(&key, &format!("its metadata is not readable: {error}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn parted(&mut self, key: &[u8], mode: u32, mtime: Mtime, parts: &[u64]) -> Result<()> {
        for (number, len) in parts.iter().enumerate() {
            let part = self.snapshot.get(&self.files, part_key(key, number))?;
            let found = part.map(|part| part.len() as u64);
            if found != Some(*len) {
                let found = found.map_or("none".to_owned(), |len| format!("{len} bytes"));
                self.problem(
                    key,
                    &format!("part {number} has {len} bytes, found {found}"),
                );
                return Ok(());
            }
        }
        let (snapshot, files) = (self.snapshot.clone(), self.files.clone());
        self.file(key, mode, Some(mtime), &mut |file| {
            for number in 0..parts.len() {
                let part = snapshot
                    .get(&files, part_key(key, number))
                    .map_err(io::Error::other)?;
                let part = part.ok_or_else(|| io::Error::other("a part is gone"))?;
                file.write_all(&part)?;
            }
            Ok(())
        })
    }

    fn file(
        &mut self,
        key: &[u8],
        mode: u32,
        mtime: Option<Mtime>,
        write: &mut dyn FnMut(&mut File) -> io::Result<()>,
    ) -> Result<()> {
        let Ok(path) = safe_path(key) else {
            self.refuse(key);
            return Ok(());
        };
        let path = self.out.join(path);
        let parent = path.parent().unwrap_or(self.out).to_owned();
        if !self.make_dir(key, &parent)? {
            return Ok(());
        }
        // Creating refuses whatever stands there, links included.
        let mut options = File::options();
        let created = options.write(true).create_new(true).mode(0o600).open(&path);
        let mut file = match created {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.problem(key, "a directory of that name is needed by another key");
                return Ok(());
            }
            created => created.during("create", &path)?,
        };
        write(&mut file).during("write", &path)?;
        file.set_permissions(Permissions::from_mode(mode & MODE_MASK))
            .during("set mode of", &path)?;
        if let Some(mtime) = mtime {
            file.set_modified(time(mtime))
                .during("set time of", &path)?;
        }
        let len = file.metadata().during("read", &path)?.len();
        self.exported.file_count += 1;
        self.exported.len += len;
        (self.progress)(&path, len);
        Ok(())
    }

    /// Makes a directory and those above it; `false` where a file stands in the way.
    fn make_dir(&mut self, key: &[u8], dir: &Path) -> Result<bool> {
        if self.made.contains(dir) {
            return Ok(true);
        }
        let above = dir.parent().unwrap_or(self.out).to_owned();
        if !self.make_dir(key, &above)? {
            return Ok(false);
        }
        match fs::create_dir(dir) {
            Ok(()) => {
                self.made.insert(dir.to_owned());
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.problem(key, "a file of that name is another key");
                Ok(false)
            }
            Err(error) => Err(error).during("create directory", dir),
        }
    }

    fn links(&mut self) -> Result<()> {
        for (path, target) in std::mem::take(&mut self.links) {
            use std::os::unix::ffi::OsStrExt;
            let key = path.as_os_str().as_bytes().to_vec();
            let at = self.out.join(&path);
            let parent = at.parent().unwrap_or(self.out).to_owned();
            if !self.made.contains(&parent) && !self.make_dir(&key, &parent)? {
                continue;
            }
            let target = PathBuf::from(std::ffi::OsString::from_vec(target));
            match std::os::unix::fs::symlink(&target, &at) {
                Ok(()) => self.exported.link_count += 1,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    self.problem(&key, "another key of that name is there already");
                }
                Err(error) => return Err(error).during("create link", &at),
            }
        }
        Ok(())
    }

    /// Deepest first: a directory that may not be written may still get its content.
    fn dirs(&mut self) -> Result<()> {
        let mut dirs = std::mem::take(&mut self.dirs);
        dirs.sort_by(|(a, ..), (b, ..)| b.cmp(a));
        for (path, mode, mtime) in dirs {
            let path = self.out.join(path);
            let dir = File::open(&path).during("open", &path)?;
            dir.set_modified(time(mtime)).during("set time of", &path)?;
            dir.set_permissions(Permissions::from_mode(mode & MODE_MASK))
                .during("set mode of", &path)?;
        }
        Ok(())
    }

    fn refuse(&mut self, key: &[u8]) {
        let why = safe_path(key).err().unwrap_or("it is no path");
        self.problem(key, &format!("not a path inside the directory: {why}"));
    }

    fn problem(&mut self, key: &[u8], what: &str) {
        let key = text::show(key);
        self.exported.problems.push(format!("{key}: {what}"));
    }
}

fn time(mtime: Mtime) -> SystemTime {
    let seconds = Duration::from_secs(mtime.mtime_s.unsigned_abs());
    let whole = match mtime.mtime_s {
        0.. => SystemTime::UNIX_EPOCH.checked_add(seconds),
        _ => SystemTime::UNIX_EPOCH.checked_sub(seconds),
    };
    let nanos = Duration::from_nanos(mtime.mtime_ns.into());
    whole
        .and_then(|whole| whole.checked_add(nanos))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
