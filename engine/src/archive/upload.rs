//! What a leader uploads, step by step, without a thread: sealed segments, what is committed of the
//! growing ones, and bases.
//!
//! A leadership goes on from the newest segment that the archive has whole and that this log has, too; what
//! is there of the next one is uploaded again, under this epoch. So a term always begins with a segment, and
//! an earlier leader's bytes never stand beside its own in one file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline_replication::archive::{
    ArchiveStore, Base, BaseEnd, BaseFile, BaseName, Break, Error as ArchiveError, FileKind, Index,
    OBJECT_LEN_MAX, Piece, PieceKind, Root, Run, Start, Tail, Term, create, read, retried,
};
use strandline_replication::{LeaderId, Lineage};
use strandline_wal::batch::BatchHeader;
use strandline_wal::bug::planted;
use strandline_wal::io::read_file;
use strandline_wal::log::Segment;
use strandline_wal::segment::{SEGMENT_HEADER_LEN, path_of};
use strandline_wal::{Epoch, Hlc, IoContext, ShardId};

use super::{ArchiveOptions, ArchiveStatus, floor};
use crate::checkpoint::{CheckpointReport, copy_dataset};
use crate::dataset::{Dataset, DatasetInner};
use crate::error::{Error, Result};
use crate::files;
use crate::manifest::{EpochEntry, Manifest};
use crate::retention::{ARCHIVE, Hold};
use crate::store::watermarks::Mark;
use crate::store::{Role, Store};
use crate::table::PointerSource;

/// Longest part of a growing segment in one object, in bytes, unless one batch is longer.
const TAIL_LEN_MAX: usize = 8 << 20;
/// First and longest pause after a base that failed, in milliseconds.
const BASE_PAUSE_MS: u64 = 1_000;
const BASE_PAUSE_MS_MAX: u64 = 300_000;
/// How far it is archived is stored this often, in milliseconds.
const FLOOR_MS: u64 = 10_000;

/// Uploads one dataset. Every [`Uploader::step`] does all that can be done.
pub struct Uploader {
    dataset: Arc<DatasetInner>,
    archive: Arc<dyn ArchiveStore>,
    options: ArchiveOptions,
    session: Option<Session>,
    status: ArchiveStatus,
}

/// One leadership's uploading.
struct Session {
    root: Root,
    term: Term,
    is_begun: bool,
    shards: Vec<Shard>,
    /// Segments that the archive has whole.
    whole: BTreeMap<(ShardId, u64), Piece>,
    /// The objects of the newest base's files, and of what this session uploaded: nobody removes those.
    files: BTreeMap<[u8; 32], String>,
    needs_base: bool,
    len_since_base: u64,
    base_ms: u64,
    /// After a failure, from when on a base is tried again, and how long that was.
    base_from_ms: u64,
    pause_ms: u64,
    /// What of the log is not archived as it was stored, and when.
    floor: Vec<u64>,
    floor_ms: u64,
}

/// How far one log is archived.
#[derive(Clone, Debug, Default)]
struct Shard {
    /// The first record of the segment that is not archived whole.
    whole: u64,
    /// The first record that is not archived. Invariant: `whole <= next`.
    next: u64,
    /// The segment that `next` lies in and where, once a part of it is archived.
    segment: u64,
    offset: u64,
    /// Since which record the archive has no gap.
    first: u64,
    /// Parts of the segment at `whole` that this session uploaded.
    tails: Vec<String>,
    /// Tell that records before `whole` are missing.
    is_broken: bool,
}

impl Shard {
    fn at(whole: u64, first: u64) -> Shard {
        Shard {
            whole,
            next: whole,
            first,
            ..Shard::default()
        }
    }
}

impl Uploader {
    /// Of a dataset; nothing is asked of the store yet.
    pub fn new(
        dataset: &Dataset,
        archive: Arc<dyn ArchiveStore>,
        options: ArchiveOptions,
    ) -> Uploader {
        let uploader = Uploader {
            dataset: Arc::clone(dataset.inner()),
            archive,
            options,
            session: None,
            status: ArchiveStatus::default(),
        };
        uploader.keep_all(&uploader.dataset.store());
        uploader
    }

    /// How far it has come.
    pub fn status(&self) -> &ArchiveStatus {
        &self.status
    }

    /// Uploads what is committed and not archived, and makes a base where one is due; sends nothing where
    /// there is nothing. Returns whether something was uploaded.
    ///
    /// # Errors
    /// The store's: the next step goes on where this one ended. [`ArchiveError::Taken`] where this node's
    /// leadership is over.
    pub fn step(&mut self) -> Result<bool> {
        let store = self.dataset.store();
        if store.role() != Role::Leader || store.check().is_err() {
            self.session = None;
            self.status.is_leading = false;
            if store.role() != Role::Leader {
                // Another one archives now.
                let_go(&store)?;
            }
            return Ok(false);
        }
        let outcome = self.step_inner(&store);
        self.status.request_count = self.archive.request_count();
        self.status.last_error = outcome.as_ref().err().map(Error::to_string);
        outcome
    }

    /// How far the archive goes is not known yet, unless from before.
    fn keep_all(&self, store: &Store) {
        if !store.retention().is_held(ARCHIVE) && store.role() == Role::Leader {
            let hold = Hold {
                from_seqs: vec![1; store.logs().len()],
                len_max: self.options.log_len_max,
            };
            store.retention().hold(ARCHIVE, "", Some(hold));
        }
    }

    fn step_inner(&mut self, store: &Store) -> Result<bool> {
        let now_ms = store.env().clock.wall_ms();
        self.status.is_leading = true;
        if self
            .session
            .as_ref()
            .is_none_or(|s| s.term.epoch != store.epoch())
        {
            self.session = None;
            self.keep_all(store);
            self.session = Some(Session::resume(store, self.archive.as_ref(), now_ms)?);
        }
        let session = self.session.as_mut().expect("it was begun above");
        let committed = store.watermarks().committed();
        let mut upload = Upload {
            store,
            archive: self.archive.as_ref(),
            session,
            status: &mut self.status,
        };
        let mut is_busy = false;
        for shard in 0..committed.seqs.len() {
            is_busy |= upload.log(shard, &committed)?;
        }
        upload.keep_log(self.options.log_len_max, now_ms)?;
        upload.tell(&committed);
        let session = &upload.session;
        let is_old = now_ms.saturating_sub(session.base_ms) >= self.options.checkpoint_ms;
        let is_due = session.needs_base
            || session.len_since_base >= self.options.checkpoint_len
            || session.len_since_base > 0 && is_old;
        if is_due && session.base_from_ms <= now_ms {
            let made = upload.base(now_ms);
            if !matches!(made, Ok(true)) {
                // It reads everything: what fails is not tried at every step.
                upload.wait(now_ms, made.is_err());
            }
            if !made? {
                return Ok(is_busy);
            }
            is_busy = true;
            let root = upload.session.root.clone();
            let own = Some(store.epoch());
            super::prune::prune(self.archive.as_ref(), &root, &self.options, now_ms, own)?;
        }
        Ok(is_busy)
    }
}

/// Nothing is kept for an archive any more.
pub(super) fn let_go(store: &Store) -> Result<()> {
    let retention = store.retention();
    if retention.is_held(ARCHIVE) && !planted("archive.let_go") {
        floor::remove(store.env(), store.dir())?;
        retention.hold(ARCHIVE, "", None);
    }
    Ok(())
}

impl Session {
    /// Finds out how far the archive goes.
    fn resume(store: &Store, archive: &dyn ArchiveStore, now_ms: u64) -> Result<Session> {
        let root = Root::new(store.id(), Lineage(store.lineage()));
        let mut index = Index::read(archive, &root)?;
        let epoch = store.epoch();
        let leader = store.last_epoch_of(ShardId(0)).map(|entry| entry.leader);
        let leader = LeaderId(leader.unwrap_or_default());
        let own = index.terms.get(&epoch).cloned();
        if let Some(last) = index.last().filter(|last| last.epoch > epoch) {
            return Err(Error::Fenced {
                ours: epoch.0,
                found: last.epoch.0,
            });
        }
        if own.as_ref().is_some_and(|own| own.leader != leader) && !planted("archive.taken") {
            let object = root.term(epoch);
            return Err(ArchiveError::Taken { object }.into());
        }
        let is_begun = own.is_some();
        let mut term = own.unwrap_or_else(|| begin(store, &index, leader));
        // What there is, as this leadership sees it: a term that begins behind everything.
        index.terms.insert(epoch, term.clone());
        let mut shards = Vec::new();
        let mut whole = BTreeMap::new();
        for (log, start) in store.logs().iter().zip(&mut term.from) {
            let shard = log.id().shard;
            let runs = index.runs(shard);
            let (base, base_chain) = store.base_of(shard);
            let is_here = |run: &&Run| {
                let piece = &run.pieces[0];
                let segment = log
                    .segment(piece.first_seq)
                    .filter(|s| s.first_seq() > base);
                let footer = segment.as_ref().and_then(|s| s.sealed()).map(|s| &s.footer);
                let is_same =
                    footer.is_some_and(|f| (f.last_seq, f.chain) == (piece.last_seq, piece.chain));
                let is_before = (piece.last_seq, piece.chain) == (base, base_chain);
                run.is_whole() && run.end > piece.last_seq && (is_same || is_before)
            };
            let found = runs.iter().rev().find(is_here).map(|run| &run.pieces[0]);
            let is_broken = found.is_none() && !runs.is_empty() && base > 0;
            let goes_on = found.map(|piece| (piece.last_seq + 1, piece.chain));
            let (seq, chain) = goes_on.unwrap_or((base + 1, base_chain));
            let broken = index.breaks.iter().filter(|it| {
                it.shard == shard && it.first_seq <= seq && index.is_on_path(it.epoch)
            });
            let broken = broken.map(|it| it.first_seq).max();
            let first = match is_broken || found.is_none() {
                true => seq,
                false => broken.or(runs.first().map(Run::first_seq)).unwrap_or(seq),
            };
            shards.push(Shard {
                is_broken,
                ..Shard::at(seq, first)
            });
            if !is_begun {
                (start.seq, start.chain) = (seq, chain);
            }
            let pieces = runs.into_iter().filter(|run| run.is_whole());
            for piece in pieces.filter(|run| run.end > run.pieces[0].last_seq) {
                let piece = piece.pieces[0].clone();
                whole.insert((shard, piece.first_seq), piece);
            }
        }
        let base = newest_base(archive, &root, &index)?;
        let needs_base = base.is_none() && !planted("archive.needs_base")
            || shards.iter().any(|shard| shard.is_broken);
        let files = base.into_iter().flat_map(|base| base.files);
        for (shard, start) in shards.iter_mut().zip(&term.from) {
            // What it began with before holds.
            (shard.whole, shard.next) = (shard.whole.max(start.seq), shard.next.max(start.seq));
        }
        Ok(Session {
            root,
            is_begun,
            term,
            shards,
            whole,
            files: files.map(|file| (file.digest, file.object)).collect(),
            needs_base,
            len_since_base: 0,
            base_ms: now_ms,
            base_from_ms: 0,
            pause_ms: 0,
            floor: Vec::new(),
            floor_ms: 0,
        })
    }
}

/// A leadership's term: it goes on from the newest one whose leader's log this one has, in every shard.
fn begin(store: &Store, index: &Index, leader: LeaderId) -> Term {
    let epochs = store
        .logs()
        .iter()
        .map(|log| store.epochs_of(log.id().shard));
    let epochs: Vec<_> = epochs.collect();
    let (previous, ends) = goes_on(index.terms.keys().copied(), &epochs);
    let start = |end| Start {
        seq: u64::MAX,
        chain: 0,
        end,
    };
    Term {
        epoch: store.epoch(),
        previous,
        lineage: Lineage(store.lineage()),
        leader,
        from: ends.into_iter().map(start).collect(),
    }
}

/// The newest term whose leader's log this one has, in every shard, and the first record of each shard that
/// is of a later epoch.
fn goes_on(
    terms: impl DoubleEndedIterator<Item = Epoch>,
    epochs: &[Vec<EpochEntry>],
) -> (Epoch, Vec<u64>) {
    let is_in = |entries: &Vec<EpochEntry>, epoch| {
        let mut entries = entries.iter();
        entries.any(|entry| entry.epoch == epoch || planted("archive.ancestor"))
    };
    let mut newest_first = terms.rev();
    let previous = newest_first.find(|epoch| epochs.iter().all(|entries| is_in(entries, *epoch)));
    let previous = previous.unwrap_or_default();
    let end = |entries: &Vec<EpochEntry>| {
        let next = entries.iter().find(|entry| entry.epoch > previous);
        let next = next.filter(|_| !planted("archive.epoch_end"));
        next.map_or(u64::MAX, |entry| entry.first_seq)
    };
    (previous, epochs.iter().map(end).collect())
}

/// The newest base that a restore may take.
fn newest_base(archive: &dyn ArchiveStore, root: &Root, index: &Index) -> Result<Option<Base>> {
    for name in index.bases.iter().rev() {
        if let Some(base) = usable_base(archive, root, index, name)? {
            return Ok(Some(base));
        }
    }
    Ok(None)
}

/// One step.
struct Upload<'a> {
    store: &'a Store,
    archive: &'a dyn ArchiveStore,
    session: &'a mut Session,
    status: &'a mut ArchiveStatus,
}

impl Upload<'_> {
    fn create(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        if !self.session.is_begun {
            let (root, term) = (&self.session.root, &self.session.term);
            create(self.archive, &root.term(term.epoch), &term.encode())?;
            self.session.is_begun = true;
        }
        if bytes.len() as u64 > OBJECT_LEN_MAX {
            let text = format!(
                "{name} has {} bytes, the limit is {OBJECT_LEN_MAX}",
                bytes.len()
            );
            return Err(ArchiveError::Refused(text).into());
        }
        create(self.archive, name, bytes)?;
        self.status.uploaded_len += bytes.len() as u64;
        self.session.len_since_base += bytes.len() as u64;
        Ok(())
    }

    /// Uploads what is committed of a log.
    fn log(&mut self, n: usize, committed: &Mark) -> Result<bool> {
        let committed = match planted("archive.uncommitted") {
            true => self.store.watermarks().published().seqs[n],
            false => committed.seqs[n],
        };
        let log = Arc::clone(&self.store.logs()[n]);
        let mut is_busy = false;
        loop {
            // The log may be dropped at any time, past its limit.
            let (base, _) = self.store.base_of(log.id().shard);
            self.skip(n, base);
            let shard = &self.session.shards[n];
            let (whole, next) = (shard.whole, shard.next);
            let segment = log.segment(whole).filter(|segment| {
                segment.is_settled()
                    && segment.last_seq() <= committed
                    && segment.last_seq() >= whole
            });
            if let Some((segment, sealed)) = segment.as_ref().and_then(|s| Some((s, s.sealed()?))) {
                let footer = &sealed.footer;
                let data = segment.read(0, footer.data_len as usize)?;
                let bytes = [&data[..], &sealed.bytes].concat();
                let piece = self.piece(
                    segment,
                    (whole, footer.last_seq),
                    footer.chain,
                    PieceKind::Segment,
                );
                let piece = Piece {
                    prev: segment.header().prev_crc,
                    ..piece
                };
                self.upload(n, &piece, &bytes)?;
                self.session.whole.insert((piece.shard, whole), piece);
                let shard = &mut self.session.shards[n];
                shard.whole = footer.last_seq + 1;
                shard.next = shard.next.max(shard.whole);
                for tail in std::mem::take(&mut self.session.shards[n].tails) {
                    // What is left of them is passed over, and removed with the segment.
                    let _ = retried(|| self.archive.delete(&tail));
                }
            } else if next <= committed {
                let segment = log.segment_of(next);
                let segment = segment.filter(|segment| segment.first_seq() > base);
                let Some(segment) = segment else {
                    // It was dropped just now: the next step looks again.
                    return Ok(is_busy);
                };
                if !self.tail(n, &segment, committed)? {
                    return Ok(is_busy);
                }
            } else {
                return Ok(is_busy);
            }
            is_busy = true;
        }
    }

    /// Goes on behind what was dropped from the log, and tells of a gap where that was not archived.
    fn skip(&mut self, n: usize, base: u64) {
        let shard = &mut self.session.shards[n];
        if shard.whole > base {
            return;
        }
        // The rest of a segment that is archived in parts was dropped with it.
        let is_broken = shard.next <= base || shard.is_broken;
        let next = shard.next.max(base + 1);
        let first = if is_broken { base + 1 } else { shard.first };
        *shard = Shard {
            next,
            is_broken,
            segment: shard.segment,
            offset: shard.offset,
            ..Shard::at(base + 1, first)
        };
        self.session.needs_base |= is_broken;
    }

    fn piece(
        &self,
        segment: &Segment,
        (first_seq, last_seq): (u64, u64),
        chain: u32,
        kind: PieceKind,
    ) -> Piece {
        Piece {
            epoch: self.session.term.epoch,
            shard: segment.header().log.shard,
            first_seq,
            last_seq,
            prev: segment.header().prev_crc,
            chain,
            kind,
        }
    }

    fn upload(&mut self, n: usize, piece: &Piece, bytes: &[u8]) -> Result<()> {
        let shard = &self.session.shards[n];
        if shard.is_broken {
            let it = Break {
                epoch: piece.epoch,
                shard: piece.shard,
                first_seq: shard.first,
            };
            let name = self.session.root.broken(&it);
            self.create(&name, b"")?;
            self.status.break_count += 1;
            self.session.shards[n].is_broken = false;
        }
        let name = self.session.root.piece(piece);
        self.create(&name, bytes)?;
        if piece.kind != PieceKind::Segment {
            self.session.shards[n].tails.push(name);
        }
        Ok(())
    }

    /// Uploads the next part of a segment; `false` where nothing of it is there.
    fn tail(&mut self, n: usize, segment: &Segment, committed: u64) -> Result<bool> {
        let shard = &mut self.session.shards[n];
        if shard.segment != segment.first_seq() {
            (shard.segment, shard.offset) = (segment.first_seq(), SEGMENT_HEADER_LEN as u64);
            shard.next = segment.first_seq();
        }
        let (offset, first_seq) = (shard.offset, shard.next);
        let data = segment.read(offset, (segment.data_len() - offset) as usize)?;
        let (mut end, mut last, mut prev) = (0, None, None);
        while end < TAIL_LEN_MAX && end < data.len() {
            let decoded = BatchHeader::decode(&data[end..]);
            let (header, crc) = decoded.map_err(|damage| {
                let at = offset + end as u64;
                strandline_wal::Error::corrupt(segment.path(), at, "batch", "a batch", damage)
            })?;
            if header.last_seq() > committed {
                break;
            }
            prev = prev.or(Some(header.prev_crc));
            last = Some((header.last_seq(), crc));
            end += header.batch_len();
        }
        let (Some((last_seq, chain)), Some(prev)) = (last, prev) else {
            return Ok(false);
        };
        let kind = PieceKind::Tail(segment.first_seq());
        let piece = Piece {
            prev,
            ..self.piece(segment, (first_seq, last_seq), chain, kind)
        };
        let bytes = Tail {
            shard: piece.shard,
            epoch: piece.epoch,
            offset,
            header: &segment.read(0, SEGMENT_HEADER_LEN)?,
            batches: &data[..end],
        }
        .encode();
        self.upload(n, &piece, &bytes)?;
        let shard = &mut self.session.shards[n];
        (shard.next, shard.offset) = (last_seq + 1, offset + end as u64);
        Ok(true)
    }

    /// What is not archived stays on the disk.
    fn keep_log(&mut self, len_max: u64, now_ms: u64) -> Result<()> {
        let lacks = |shard: &Shard| match planted("archive.floor") {
            true => u64::MAX,
            false => shard.whole,
        };
        let from_seqs = self.session.shards.iter().map(lacks).collect();
        let hold = Hold { from_seqs, len_max };
        let store = self.store;
        store.retention().hold(ARCHIVE, "", Some(hold.clone()));
        let is_old = now_ms.saturating_sub(self.session.floor_ms) >= FLOOR_MS;
        if hold.from_seqs != self.session.floor && (is_old || self.session.floor.is_empty()) {
            floor::store(store.env(), store.dir(), &hold)?;
            self.session.floor.clone_from(&hold.from_seqs);
            self.session.floor_ms = now_ms;
        }
        Ok(())
    }

    fn tell(&mut self, committed: &Mark) {
        self.status.epoch = self.session.term.epoch.0;
        self.status.seqs = self
            .session
            .shards
            .iter()
            .map(|shard| shard.next - 1)
            .collect();
        self.status.timestamp = committed.timestamp;
    }

    /// Makes a base; `false` where it has to wait.
    fn base(&mut self, now_ms: u64) -> Result<bool> {
        let env = self.store.env();
        let id = u128::from_be_bytes(env.random.next_id());
        let dir = files::staging(self.store.dir()).join(format!("archive-{id:032x}"));
        let made = self.base_in(&dir, now_ms);
        // What cannot be removed now is removed when the dataset is opened next.
        let _ = env.disk.remove_dir_all(&dir);
        made
    }

    fn base_in(&mut self, dir: &Path, now_ms: u64) -> Result<bool> {
        let env = self.store.env().clone();
        let disk = env.disk.as_ref();
        copy_dataset(self.store, dir, &mut CheckpointReport::default())?;
        let path = files::manifest(dir);
        let manifest = Manifest::load(disk, &path)?.expect("the checkpoint has just stored it");
        let shards = &self.session.shards;
        let is_archived = |(n, shard): (usize, &Shard)| {
            let log = &manifest.logs[n];
            log.position.seq.max(log.complete_seq) < shard.next
        };
        if !shards.iter().enumerate().all(is_archived) {
            return Ok(false);
        }
        let (epoch, timestamp) = (self.session.term.epoch, manifest.complete_timestamp);
        let name = self.session.root.base(&BaseName { timestamp, epoch });
        // What it names must be there: retention may have removed it since it was uploaded.
        let listed = retried(|| self.archive.list(self.session.root.prefix()))?;
        let stored: BTreeSet<String> = listed.into_iter().map(|it| it.name).collect();
        if stored.contains(&name) {
            // The same state: made of other tables, or at another time.
            self.based(now_ms);
            return Ok(true);
        }
        if !planted("archive.dangling") {
            let session = &mut *self.session;
            let (files, whole) = (&mut session.files, &mut session.whole);
            files.retain(|_, object| stored.contains(object));
            whole.retain(|_, piece| stored.contains(&session.root.piece(piece)));
        }
        let shards = &self.session.shards;
        let mut list: Vec<(FileKind, u64, PathBuf)> = Vec::new();
        for table in manifest.tables() {
            let number = table.identity.number;
            list.push((FileKind::Table, number, files::table(dir, number)));
        }
        let region = files::region(dir, manifest.region);
        let pointed = manifest.tables().flat_map(|table| &table.files);
        let pointed = pointed.filter(|file| file.source == PointerSource::Segment);
        let pointed: BTreeSet<_> = pointed.map(|file| (file.shard, file.file)).collect();
        for (shard, first_seq) in pointed {
            let n = usize::from(shard.0);
            let flushed = manifest.logs[n].position.seq;
            let Some(segment) = self.store.logs()[n].segment(first_seq) else {
                return Ok(false);
            };
            // The segment that holds the last record in tables comes with the log, if it is archived.
            if segment.last_seq() >= flushed && flushed >= shards[n].first {
                continue;
            }
            let number = u64::from(shard.0) << 48 | first_seq;
            list.push((
                FileKind::Segment,
                number,
                path_of(&region, shard, first_seq),
            ));
        }
        list.push((FileKind::Manifest, 0, path));
        let mut listed = Vec::new();
        for (kind, number, path) in list {
            let bytes = read_file(disk, &path, OBJECT_LEN_MAX).during("read", &path)?;
            listed.push(self.file(kind, number, &bytes)?);
        }
        let ends = manifest.logs.iter().map(|log| BaseEnd {
            position: log.position,
            chain: log.chain,
            complete_seq: log.complete_seq.max(log.position.seq),
        });
        let base = Base {
            epoch,
            timestamp,
            wall_ms: now_ms,
            lineage: self.session.term.lineage,
            ends: ends.collect(),
            files: listed,
        };
        match self.create(&name, &base.encode()) {
            Ok(()) => self.status.base_count += 1,
            // One of the same state came late.
            Err(Error::Archive(ArchiveError::Taken { .. })) => {}
            Err(error) => return Err(error),
        }
        self.based(now_ms);
        Ok(true)
    }

    /// Waits before a base is tried again, after failures longer each time.
    fn wait(&mut self, now_ms: u64, is_failure: bool) {
        let session = &mut *self.session;
        let longer = session.pause_ms * if is_failure { 2 } else { 1 };
        session.pause_ms = longer.clamp(BASE_PAUSE_MS, BASE_PAUSE_MS_MAX);
        session.base_from_ms = now_ms.saturating_add(session.pause_ms);
    }

    fn based(&mut self, now_ms: u64) {
        let session = &mut *self.session;
        (session.needs_base, session.len_since_base) = (false, 0);
        (session.base_ms, session.pause_ms) = (now_ms, 0);
    }

    /// A file of a base, uploaded unless the archive has it.
    fn file(&mut self, kind: FileKind, number: u64, bytes: &[u8]) -> Result<BaseFile> {
        let digest = *blake3::hash(bytes).as_bytes();
        let key = (ShardId((number >> 48) as u16), number & ((1 << 48) - 1));
        let known = self
            .session
            .whole
            .get(&key)
            .filter(|_| kind == FileKind::Segment);
        let known = known.map(|piece| self.session.root.piece(piece));
        let object = match (known, self.session.files.get(&digest)) {
            (Some(name), _) => name,
            (None, Some(name)) => name.clone(),
            (None, None) => {
                let name = self.session.root.file(self.session.term.epoch, &digest);
                self.create(&name, bytes)?;
                self.session.files.insert(digest, name.clone());
                name
            }
        };
        Ok(BaseFile {
            kind,
            number,
            len: bytes.len() as u64,
            digest,
            object,
        })
    }
}

/// A base, if a restore may take it: it lies on the history. Restores, checks, retention and whoever goes
/// on with an archive ask this alone.
pub(super) fn usable_base(
    archive: &dyn ArchiveStore,
    root: &Root,
    index: &Index,
    name: &BaseName,
) -> Result<Option<Base>, ArchiveError> {
    if !index.is_on_path(name.epoch) {
        return Ok(None);
    }
    let object = root.base(name);
    let base = Base::decode(&read(archive, &object)?, &object)?;
    let is_it = (base.epoch, base.timestamp) == (name.epoch, name.timestamp);
    if !is_it && !planted("archive.misplaced") || base.timestamp == Hlc::MAX {
        let what = "it is of another place".to_owned();
        return Err(ArchiveError::Damaged { object, what });
    }
    Ok(index.is_usable(&base).then_some(base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_goes_on_from_a_leader_whose_log_this_one_has() {
        let entry = |(epoch, first_seq)| EpochEntry {
            epoch: Epoch(epoch),
            leader: [epoch as u8; 16],
            first_seq,
        };
        let table = |entries: &[(u32, u64)]| entries.iter().copied().map(entry).collect();
        // Of epoch 2 the second log has nothing, and of epoch 4 neither.
        let epochs: [Vec<EpochEntry>; 2] = [
            table(&[(1, 1), (2, 50), (3, 60), (5, 90)]),
            table(&[(1, 1), (3, 40), (5, 70)]),
        ];
        let goes_on = |terms: &[u32]| goes_on(terms.iter().map(|n| Epoch(*n)), &epochs);
        assert_eq!(goes_on(&[1, 2, 4]), (Epoch(1), vec![50, 40]));
        assert_eq!(goes_on(&[1, 2, 3, 4]), (Epoch(3), vec![90, 70]));
        assert_eq!(goes_on(&[]), (Epoch(0), vec![1, 1]));
    }
}
