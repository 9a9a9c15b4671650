//! Mends tables by key range: what their damaged blocks may have held is taken from the copy.
//!
//! The names of a damaged range are taken out of every table of this node and come back as one run
//! with what the copy's tables and the log behind them say. Versions above this node's complete mark are
//! left to its log, so no old value stands above a newer one.

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;

use strandline_wal::{Error as LogError, Hlc, IoContext};

use super::{Mending, table_options};
use crate::error::Result;
use crate::files;
use crate::manifest::Manifest;
use crate::salvage::{Hole, Remains};
use crate::table::{
    Cursor, Entry, EntryKind, Identity, IntactCursor, Table, TableBuilder, TableMeta, TableOptions,
    ValueSource,
};

/// Length at which a new table is begun, in bytes.
const TABLE_LEN_MAX: u64 = 64 << 20;

impl Mending<'_> {
    /// Replaces the damaged ranges of the tables.
    ///
    /// # Errors
    /// `Corrupt` where the copy is damaged in one of them or does not reach as far as the tables: the
    /// tables are as they were then.
    pub(super) fn mend_tables(&mut self) -> Result<()> {
        let ours = Remains::read(self.env, self.root, &self.done.id)?;
        let holes = ours.holes().to_vec();
        drop(ours);
        // The copy's tables, and behind them this node's log, which is mended by now.
        let (copy, id) = (&self.copy_root, &self.done.id);
        let mut theirs = Remains::read_with_logs(self.env, copy, id, Some(&self.region))?;
        self.check_copy(&theirs, &holes)?;
        let mut manifest = self.manifest.clone().expect("it was read");
        let before = manifest.clone();
        let mut written = Vec::new();
        let outcome = self
            .without(&mut manifest, &holes, &mut written)
            .and_then(|()| self.with_theirs(&mut manifest, &holes, &mut theirs, &mut written));
        if let Err(error) = outcome {
            for path in written {
                // The failure before is the one to report; the next open removes what is left.
                let _ = self.disk().remove(&path);
            }
            return Err(error);
        }
        let disk = self.disk();
        disk.sync_dir(&self.dir)
            .during("sync directory", &self.dir)?;
        manifest.generation += 1;
        manifest.store(disk, &files::manifest(&self.dir))?;
        let live: Vec<u64> = manifest.tables().map(|t| t.identity.number).collect();
        for table in before.tables() {
            let path = files::table(&self.dir, table.identity.number);
            if !live.contains(&table.identity.number) && disk.stat(&path).is_ok() {
                disk.remove(&path).during("remove", &path)?;
            }
        }
        self.manifest = Some(manifest);
        Ok(())
    }

    /// The copy has the ranges intact, and this node's log reaches back to its tables.
    fn check_copy(&self, theirs: &Remains<'_>, holes: &[Hole]) -> Result<()> {
        let path = files::manifest(&self.copy_dir);
        let refuse =
            |expected, found| Err(LogError::corrupt(&path, 0, "copy", expected, found).into());
        if theirs
            .holes()
            .iter()
            .any(|hole| holes.iter().any(|ours| ours.meets(hole)))
        {
            return refuse("the damaged range", "it is damaged there too");
        }
        if theirs.is_log_damaged() {
            return refuse(
                "tables that the log here goes on from",
                "records are missing between",
            );
        }
        Ok(())
    }

    /// Writes every table anew that has names of the ranges, without them.
    fn without(
        &self,
        manifest: &mut Manifest,
        holes: &[Hole],
        written: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let mut next_file = manifest.next_file;
        // What cannot be read now and is not among the ranges would be lost without a word.
        let is_known = |from: &[u8], to: &Bound<Vec<u8>>| {
            holes.iter().any(|hole| hole.from == from && hole.to == *to)
        };
        for run in &mut manifest.runs {
            let mut kept = Vec::new();
            for meta in std::mem::take(run) {
                let span = Hole {
                    from: meta.name_min.clone(),
                    to: Bound::Included(meta.name_max.clone()),
                    version_max: meta.version_max,
                };
                if !holes.iter().any(|hole| hole.meets(&span)) {
                    kept.push(meta);
                    continue;
                }
                let path = files::table(&self.dir, meta.identity.number);
                let opened = Table::open(self.disk(), &path, Some(&meta), &table_options());
                let table = match opened {
                    Ok(table) => table,
                    Err(LogError::Unsupported { .. }) => {
                        return Err(opened.expect_err("it is").into());
                    }
                    Err(_) if is_known(&span.from, &span.to) => continue,
                    Err(error) => return Err(error.into()),
                };
                let lost = table.lost_chunks();
                if let Some(lost) = lost.iter().find(|lost| !is_known(&lost.from, &lost.to)) {
                    return Err(lost.error.clone().into());
                }
                let mut out = Output::new(self, &mut next_file, written);
                let mut cursor = IntactCursor::new(&table, &lost);
                while let Some(entry) = cursor.entry() {
                    let key = entry.key();
                    if !holes.iter().any(|hole| hole.has(key.name)) {
                        match entry.value() {
                            ValueSource::Absent => {
                                out.add(key.name, key.version, EntryKind::Tombstone, &[])?
                            }
                            ValueSource::Bytes(bytes) => {
                                out.add(key.name, key.version, EntryKind::Value, bytes)?
                            }
                            ValueSource::Pointer(pointer) => {
                                out.add(
                                    key.name,
                                    key.version,
                                    EntryKind::Pointer,
                                    &pointer.encode(),
                                )?;
                            }
                            ValueSource::Log(_) => {
                                unreachable!("a table does not point into a memtable's log")
                            }
                        }
                    }
                    cursor.advance();
                }
                cursor.status()?;
                kept.extend(out.finish()?);
            }
            *run = kept;
        }
        manifest.runs.retain(|run| !run.is_empty());
        manifest.next_file = next_file;
        Ok(())
    }

    /// Adds a run of what the copy says of the ranges.
    fn with_theirs(
        &self,
        manifest: &mut Manifest,
        holes: &[Hole],
        theirs: &mut Remains<'_>,
        written: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let complete = manifest.complete_timestamp;
        let mut next_file = manifest.next_file;
        let mut out = Output::new(self, &mut next_file, written);
        theirs.for_each(&mut |name, version, value| {
            let is_asked = version <= complete && holes.iter().any(|hole| hole.has(name));
            match is_asked {
                true => out.add(name, version, EntryKind::Value, value),
                false => Ok(()),
            }
        })?;
        let run = out.finish()?;
        // A large value that could not be read has become a hole of the copy's by now.
        let is_bad = |hole: &Hole| holes.iter().any(|ours| ours.meets(hole));
        if theirs.holes().iter().any(is_bad) {
            let path = files::manifest(&self.copy_dir);
            let found = "a large value is damaged";
            return Err(LogError::corrupt(&path, 0, "copy", "the damaged range", found).into());
        }
        if !run.is_empty() {
            manifest.runs.insert(0, run);
        }
        manifest.next_file = next_file;
        Ok(())
    }
}

/// Tables of one run on their way out.
struct Output<'o> {
    mending: &'o Mending<'o>,
    next_file: &'o mut u64,
    written: &'o mut Vec<PathBuf>,
    builder: Option<TableBuilder>,
    last_name: Vec<u8>,
    metas: Vec<TableMeta>,
}

impl<'o> Output<'o> {
    fn new(
        mending: &'o Mending<'_>,
        next_file: &'o mut u64,
        written: &'o mut Vec<PathBuf>,
    ) -> Output<'o> {
        Output {
            mending,
            next_file,
            written,
            builder: None,
            last_name: Vec::new(),
            metas: Vec::new(),
        }
    }

    fn add(&mut self, name: &[u8], version: Hlc, kind: EntryKind, value: &[u8]) -> Result<()> {
        let is_full = self
            .builder
            .as_ref()
            .is_some_and(|b| b.len() >= TABLE_LEN_MAX);
        if is_full && self.last_name != name {
            self.close()?;
        }
        if self.builder.is_none() {
            let number = *self.next_file;
            *self.next_file += 1;
            let path = files::table(&self.mending.dir, number);
            let identity = Identity {
                number,
                lineage: self.mending.copy.lineage,
            };
            if self.mending.disk().stat(&path).is_ok() {
                // Of a repair that died: no manifest names it.
                self.mending.disk().remove(&path).during("remove", &path)?;
            }
            self.written.push(path.clone());
            let disk = Arc::clone(&self.mending.env.disk);
            self.builder = Some(TableBuilder::create(
                disk,
                &path,
                identity,
                TableOptions::default(),
            )?);
        }
        let builder = self.builder.as_mut().expect("made above");
        builder.add(Entry {
            name,
            version,
            kind,
            value,
        })?;
        self.last_name.clear();
        self.last_name.extend_from_slice(name);
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if let Some(builder) = self.builder.take() {
            self.metas.push(builder.finish()?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<TableMeta>> {
        self.close()?;
        Ok(std::mem::take(&mut self.metas))
    }
}
