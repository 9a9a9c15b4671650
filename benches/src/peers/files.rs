//! What lies on the disk.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::engine::Result;

/// Bytes that the files of a folder take up, holes left out.
pub fn len_on_disk(dir: &Path) -> Result<u64> {
    let mut len = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // A compaction removes files while this looks.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        len += match metadata.is_dir() {
            true => len_on_disk(&entry.path())?,
            false => metadata.blocks() * BLOCK_LEN,
        };
    }
    Ok(len)
}

/// What `st_blocks` counts.
const BLOCK_LEN: u64 = 512;
