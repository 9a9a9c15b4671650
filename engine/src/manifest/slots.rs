//! The two slots of a manifest: stored together, and read from whichever is intact and newer.

use std::path::Path;
use strandline_wal::unless;

use strandline_wal::io::{Disk, read_file, write_beside};
use strandline_wal::{Error, IoContext, Result};

use super::Manifest;
use crate::files;

/// Largest manifest a reader accepts.
const LEN_MAX: u64 = 256 << 20;

/// Both stored copies of a manifest.
#[derive(Debug)]
pub struct Slots {
    /// The newer one.
    pub manifest: Manifest,
    /// Why the other one does not say the same: it is damaged, missing, or of an earlier generation.
    pub other: Option<Error>,
    /// Whether a crash explains that: it came between the two.
    pub is_behind: bool,
}

impl Slots {
    /// Reads both; `None` where there is neither.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where no slot is intact, naming the place; [`Error::Unsupported`].
    pub fn load(disk: &dyn Disk, path: &Path) -> Result<Option<Slots>> {
        let paths = [path.to_owned(), files::manifest_copy(path)];
        let mut intact: Vec<(usize, Manifest)> = Vec::new();
        let mut damage = None;
        for (n, slot) in paths.iter().enumerate() {
            match Manifest::read(disk, slot) {
                Ok(found) => intact.extend(found.map(|manifest| (n, manifest))),
                Err(error @ Error::Corrupt { .. }) => damage = damage.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        intact.sort_by_key(|(_, manifest)| std::cmp::Reverse(manifest.generation));
        let mut intact = intact.into_iter();
        let Some((n, manifest)) = intact.next() else {
            return damage.map_or(Ok(None), Err);
        };
        let other = &paths[1 - n];
        let corrupt = |expected, found| Error::corrupt(other, 0, "manifest", expected, found);
        let generation = manifest.generation;
        let (other, is_behind) = match intact.next() {
            _ if damage.is_some() => (damage, false),
            None => {
                let absent = corrupt("a copy".to_owned(), "no such file".to_owned());
                (Some(absent), generation == 1)
            }
            Some((_, second)) if second == manifest => (None, false),
            Some((_, second)) => {
                let expected = format!("generation {generation}, as in the other slot");
                let found = format!("generation {}", second.generation);
                let is_behind = second.generation + 1 == generation;
                (Some(corrupt(expected, found)), is_behind)
            }
        };
        Ok(Some(Slots {
            manifest,
            other,
            is_behind,
        }))
    }
}

impl Manifest {
    /// Replaces the stored manifest in both slots. A crash or a failure leaves the one before or this
    /// one in each, so what either names must stay until a later one is stored.
    ///
    /// # Errors
    /// The disk's.
    pub fn store(&self, disk: &dyn Disk, path: &Path) -> Result<()> {
        let bytes = self.encode();
        let slots = [path.to_owned(), files::manifest_copy(path)];
        // Both are written before either is renamed, so that a full disk changes nothing.
        let mut temps = Vec::new();
        for slot in &slots {
            temps.push(write_beside(disk, slot, &bytes).during("replace", slot)?);
        }
        for (temp, slot) in temps.iter().zip(&slots) {
            disk.rename(temp, slot).during("replace", slot)?;
        }
        let dir = path.parent().unwrap_or(Path::new("."));
        unless!("manifest.names", disk.sync_dir(dir)).during("sync directory", dir)
    }

    /// Reads a stored manifest: the newer of its two slots. `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where no slot is intact, naming the place; [`Error::Unsupported`].
    pub fn load(disk: &dyn Disk, path: &Path) -> Result<Option<Manifest>> {
        Ok(Slots::load(disk, path)?.map(|slots| slots.manifest))
    }

    /// Reads one slot; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] and [`Error::Unsupported`], naming the place.
    pub fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Manifest>> {
        match read_file(disk, path, LEN_MAX) {
            Ok(bytes) => Manifest::decode(&bytes, path).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).during("read", path),
        }
    }
}
