//! Checkpoints: a second, independent database out of the files of a live one.
//!
//! Tables and sealed segments never change, so they get a second name; the growing segments are
//! copied as far as they are durable. The copy is made under a temporary name, synced, and renamed:
//! it is there whole or not at all. Recycling leaves linked files alone, so the copy stays what it is
//! whatever the database does next.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline_wal::io::{Access, Disk, write_all_at};
use strandline_wal::log::Segment;
use strandline_wal::marks::Marks;
use strandline_wal::unless;
use strandline_wal::{IoContext, ShardId};

use crate::database::Database;
use crate::error::{Error, Result};
use crate::files;
use crate::manifest::Manifest;
use crate::store::{Role, Store};

/// What a checkpoint holds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CheckpointReport {
    /// Files that got a second name.
    pub linked_count: u64,
    /// Files that were copied.
    pub copied_count: u64,
    /// Bytes that were copied.
    pub copied_len: u64,
    /// Bytes of all files.
    pub len: u64,
}

impl Database {
    /// Makes a checkpoint of every dataset in a directory that must not exist yet. It is a database
    /// of its own, to be opened like any other. Writers go on meanwhile; flushes and compactions
    /// wait.
    ///
    /// # Errors
    /// [`Error::Argument`] where the target exists; the disk's: then nothing is left at the target.
    pub fn checkpoint(&self, target: impl AsRef<Path>) -> Result<CheckpointReport> {
        let target = target.as_ref();
        let disk = &self.env().disk;
        if disk.stat(target).is_ok() {
            return Err(Error::Argument {
                what: "checkpoint directory",
                expected: "a directory that does not exist".to_owned(),
                found: target.display().to_string(),
            });
        }
        let temp = temporary(target);
        disk.remove_dir_all(&temp).during("remove", &temp)?;
        let outcome = self.checkpoint_to(&temp);
        match outcome {
            Ok(report) => {
                disk.rename(&temp, target).during("rename", &temp)?;
                unless!("checkpoint.target", sync_parent(disk.as_ref(), target))?;
                Ok(report)
            }
            Err(error) => {
                // The first failure is the one to report; the next checkpoint removes the rest.
                let _ = disk.remove_dir_all(&temp);
                Err(error)
            }
        }
    }

    fn checkpoint_to(&self, root: &Path) -> Result<CheckpointReport> {
        let disk = self.env().disk.as_ref();
        disk.create_dir_all(root).during("create directory", root)?;
        let mut report = CheckpointReport::default();
        for dataset in self.datasets() {
            let store = dataset.inner().store();
            copy_dataset(&store, &files::dataset(root, store.id()), &mut report)?;
        }
        unless!("checkpoint.datasets", disk.sync_dir(root)).during("sync directory", root)?;
        Ok(report)
    }
}

fn temporary(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

fn sync_parent(disk: &dyn Disk, path: &Path) -> Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    Ok(unless!("checkpoint.parent", disk.sync_dir(parent)).during("sync directory", parent)?)
}

/// Copies one dataset, as it is durable now, into a new directory.
pub(crate) fn copy_dataset(
    store: &Store,
    target: &Path,
    report: &mut CheckpointReport,
) -> Result<()> {
    // What is durable can be linked; the rest is copied.
    match store.role() {
        Role::Leader => store.sync()?,
        Role::Follower => store.sync_shipped().map(|_| ())?,
        Role::Reader => {}
    }
    // Nothing that the manifest names, and no segment, is removed while this runs.
    store.with_files(|manifest| {
        Copy {
            store,
            target,
            report,
        }
        .run(manifest)
    })
}

struct Copy<'a> {
    store: &'a Store,
    target: &'a Path,
    report: &'a mut CheckpointReport,
}

impl Copy<'_> {
    fn disk(&self) -> &dyn Disk {
        self.store.env().disk.as_ref()
    }

    fn run(mut self, manifest: &Manifest) -> Result<()> {
        let region = files::region(self.target, manifest.region);
        self.disk()
            .create_dir_all(&region)
            .during("create directory", &region)?;
        for table in manifest.tables() {
            let number = table.identity.number;
            let to = files::table(self.target, number);
            self.link(&files::table(self.store.dir(), number), &to, table.len)?;
        }
        let mut marks = Vec::new();
        for log in self.store.logs() {
            let mut end = 0;
            for segment in log.segments() {
                end = self.segment(&segment, &region)?;
            }
            marks.push((log.id().shard, end));
        }
        // The names of the segments are durable with that of the marks, those of the tables and of
        // the logs' directory with that of the manifest.
        let (mut file, _, _) = Marks::open(self.disk(), &region)?;
        file.write(&marks, true)?;
        // Epochs that began since the last flush are in the copied segments too.
        let mut manifest = manifest.clone();
        manifest.epochs = self
            .store
            .logs()
            .iter()
            .map(|log| self.store.epochs_of(log.id().shard))
            .collect();
        manifest.store(self.disk(), &files::manifest(self.target))?;
        Ok(())
    }

    /// Links a sealed segment or copies a growing one; returns its last sequence in the copy.
    fn segment(&mut self, segment: &Arc<Segment>, region: &Path) -> Result<u64> {
        let shard: ShardId = segment.header().log.shard;
        let to = strandline_wal::segment::path_of(region, shard, segment.first_seq());
        // A segment that is sealed but not synced would be linked without its bytes.
        if segment.sealed().is_some() && segment.is_settled() {
            self.link(segment.path(), &to, segment.file_len())?;
            return Ok(segment.last_seq());
        }
        // The sequence first: bytes that are published later are copied too, and prove nothing.
        let last_seq = segment.last_seq();
        let len = segment.data_len();
        let bytes = segment.read(0, usize::try_from(len).expect("a segment fits in memory"))?;
        self.write(&to, &bytes)?;
        if let Some(sealed) = segment
            .sealed()
            .filter(|sealed| sealed.footer.data_len == len)
        {
            let file = self.disk().open(&to, Access::Write).during("open", &to)?;
            write_all_at(file.as_ref(), &sealed.bytes, len).during("write", &to)?;
            unless!("checkpoint.footer", file.sync()).during("sync", &to)?;
        }
        Ok(last_seq)
    }

    fn link(&mut self, from: &Path, to: &Path, len: u64) -> Result<()> {
        self.report.len += len;
        match self.disk().link(from, to) {
            Ok(()) => {
                self.report.linked_count += 1;
                Ok(())
            }
            // Another file system, or one without links.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::CrossesDevices | io::ErrorKind::Unsupported
                ) =>
            {
                self.report.len -= len;
                let bytes = strandline_wal::io::read_file(self.disk(), from, u64::MAX)
                    .during("read", from)?;
                self.write(to, &bytes)
            }
            Err(e) => Err(e).during("link", from).map_err(Error::from),
        }
    }

    fn write(&mut self, to: &Path, bytes: &[u8]) -> Result<()> {
        let file = self.disk().create(to).during("create", to)?;
        write_all_at(file.as_ref(), bytes, 0).during("write", to)?;
        unless!("checkpoint.copy", file.sync()).during("sync", to)?;
        self.report.copied_count += 1;
        self.report.copied_len += bytes.len() as u64;
        self.report.len += bytes.len() as u64;
        Ok(())
    }
}
