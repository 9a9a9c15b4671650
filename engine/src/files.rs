//! Every file and directory name of a database, made and parsed here alone.
//!
//! ```text
//! LOCK                      held by the one writing process
//! READERS                   held shared by every process that reads
//! NODE                      who this node is
//! RESERVE                   disk space for removals on a full disk
//! {dataset}/manifest        which files are live
//! {dataset}/manifest.copy   the same once more
//! {dataset}/epoch           the highest epoch opened or promised
//! {dataset}/slots           what followers need of the log
//! {dataset}/archive         what of the log is not archived
//! {dataset}/{number}.tbl    a table
//! {dataset}/r{region}/      the logs of one region: segments, spares, `durable`
//! {dataset}/divergent/      tails that were cut, by shard, epoch and sequence
//! {dataset}/staging/        files on their way in
//! ```

use std::path::{Path, PathBuf};

use strandline_wal::{DatasetId, Position, RegionId, ShardId};

/// Held exclusively by the process that writes.
pub fn lock(root: &Path) -> PathBuf {
    root.join("LOCK")
}

/// Held shared by processes that read.
pub fn readers(root: &Path) -> PathBuf {
    root.join("READERS")
}

/// Who this node is.
pub fn node(root: &Path) -> PathBuf {
    root.join("NODE")
}

/// Disk space for removals on a full disk.
pub fn reserve(root: &Path) -> PathBuf {
    root.join("RESERVE")
}

/// A dataset's directory.
pub fn dataset(root: &Path, id: &DatasetId) -> PathBuf {
    root.join(id.as_str())
}

/// Which files of a dataset are live.
pub fn manifest(dataset: &Path) -> PathBuf {
    dataset.join("manifest")
}

/// The second slot of a manifest.
pub fn manifest_copy(manifest: &Path) -> PathBuf {
    manifest.with_extension("copy")
}

/// The highest epoch that was opened or promised.
pub fn epoch(dataset: &Path) -> PathBuf {
    dataset.join("epoch")
}

/// What followers need of the log.
pub fn slots(dataset: &Path) -> PathBuf {
    dataset.join("slots")
}

/// What of the log is not archived.
pub fn archive(dataset: &Path) -> PathBuf {
    dataset.join("archive")
}

/// A table.
pub fn table(dataset: &Path, number: u64) -> PathBuf {
    dataset.join(format!("{number:010}.tbl"))
}

/// The number of a table's file name.
pub fn parse_table(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".tbl")?.parse().ok()?;
    (format!("{number:010}.tbl") == name).then_some(number)
}

/// The directory of a region's logs.
pub fn region(dataset: &Path, region: RegionId) -> PathBuf {
    dataset.join(format!("r{:05}", region.0))
}

/// Where cut tails are saved.
pub fn divergent(dataset: &Path) -> PathBuf {
    dataset.join("divergent")
}

/// A saved tail: what stood behind `from` in a shard's log.
pub fn divergent_tail(dataset: &Path, shard: ShardId, from: Position) -> PathBuf {
    let name = format!("{}-{:020}.seg", from.epoch, from.seq);
    divergent(dataset)
        .join(format!("s{:05}", shard.0))
        .join(name)
}

/// Files on their way in.
pub fn staging(dataset: &Path) -> PathBuf {
    dataset.join("staging")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_parse_back() {
        let path = table(Path::new("d"), 42);
        assert_eq!(path, Path::new("d/0000000042.tbl"));
        assert_eq!(parse_table("0000000042.tbl"), Some(42));
        for foreign in ["42.tbl", "0000000042.tbl.tmp", "x.tbl", ".tbl", "manifest"] {
            assert_eq!(parse_table(foreign), None, "{foreign}");
        }
    }
}
