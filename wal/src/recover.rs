//! Recovery, first half: reads a log's directory and plans what to do. Writes nothing.
//!
//! The plan rests on one question asked at the first place where the log does not continue: was what
//! is missing there ever acknowledged as durable? Let `s` be the sequence that should stand there and
//! `D` the highest sequence known durable on this disk.
//!
//! | What stands there | behind it | s > D | s <= D |
//! |-------------------|-----------|-------|--------|
//! | nothing: zeros, the end, bytes of another incarnation | nothing | the log ends | corrupt |
//! | nothing | valid batches | cut | corrupt |
//! | a bad batch or a bad segment | nothing or batches | cut | corrupt |
//! | a batch of a newer version | anything | refuse | refuse |
//!
//! Unsynced pages land in any order, so a valid batch behind a bad one does not make it rot; what it
//! says of the highest synced sequence does: `D` is the maximum of the marks given by the caller and
//! of `first_seq - unsynced` of every valid batch found behind, of epochs that this node led itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::batch::{ALIGN, Batch, BatchHeader, Damage, HEADER_LEN, MAGIC};
use crate::bug::planted;
use crate::error::{Error, IoContext, Result};
use crate::ids::{Epoch, Hlc, LogId, Position};
use crate::io::{Access, Disk, File, FileKind, Map, read_exact_at, replace_file};
use crate::segment::{
    Footer, SEGMENT_HEADER_LEN, SEGMENT_LEN_MAX, SegmentHeader, TRAILER_LEN, parse_file_name,
    path_of,
};
use crate::unless;
use crate::writer::{Summary, Tail};

/// What the caller knows of a log before it is read.
pub struct Known<'a> {
    /// Which log.
    pub log: LogId,
    /// The history it must belong to; `None` accepts any.
    pub lineage: Option<[u8; 16]>,
    /// The highest sequence that marks outside the log call durable.
    pub durable_seq: u64,
    /// Everything up to here is in tables: segments below may have gaps between them.
    pub flushed_seq: u64,
    /// Epochs that this node led itself; only their batches speak of this disk.
    pub led: &'a dyn Fn(Epoch) -> bool,
    /// Cut everything behind this sequence, which must be a batch's end: the rest forked.
    pub fork_seq: Option<u64>,
}

/// One segment as it was found.
#[derive(Clone, Debug)]
pub struct FoundSegment {
    /// The file.
    pub path: PathBuf,
    /// Its header.
    pub header: SegmentHeader,
    /// Its footer, where it is sealed.
    pub footer: Option<Footer>,
    /// Bytes of the file.
    pub file_len: u64,
    /// Bytes of header and good batches.
    pub data_len: u64,
    /// Sequence of the last good record; `first_seq - 1` where there is none.
    pub last_seq: u64,
    /// Summary of its good batches, where they were read.
    pub(crate) summary: Summary,
    /// What the next batch would continue.
    pub(crate) tail: Tail,
}

/// Something to do before the log can be written, in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Remove a file: a spare, an empty segment, a segment behind a cut.
    Remove(PathBuf),
    /// Cut a file to a length, footer and all.
    Truncate {
        /// The file.
        path: PathBuf,
        /// Its new length.
        len: u64,
    },
}

/// What a cut takes away.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cut {
    /// The file that the log now ends in.
    pub path: PathBuf,
    /// The offset where it ends.
    pub at: u64,
    /// The first sequence that is gone.
    pub first_seq: u64,
    /// The highest sequence found behind; `None` where nothing intact lay there.
    pub last_seq: Option<u64>,
    /// Why.
    pub reason: String,
}

/// What a log is, and what must be done to write it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which log.
    pub log: LogId,
    /// Its directory.
    pub dir: PathBuf,
    /// Its segments after the actions, oldest first.
    pub segments: Vec<FoundSegment>,
    /// What to do, in order.
    pub actions: Vec<Action>,
    /// What is lost by it, if anything.
    pub cut: Option<Cut>,
    /// The highest sequence known durable.
    pub durable_seq: u64,
    /// As in [`Known::flushed_seq`].
    pub(crate) flushed_seq: u64,
    pub(crate) tail: Tail,
}

impl Plan {
    /// Where the log ends.
    pub fn position(&self) -> Position {
        Position {
            epoch: self.tail.epoch,
            seq: self.tail.next_seq - 1,
        }
    }

    /// Version of the last batch.
    pub fn timestamp(&self) -> Hlc {
        self.tail.timestamp
    }

    /// Chain value of the last batch.
    pub fn chain(&self) -> u32 {
        self.tail.chain
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "log {} ends at {}", self.log, self.position())?;
        for segment in &self.segments {
            let state = if segment.footer.is_some() {
                "sealed"
            } else {
                "growing"
            };
            let name = segment
                .path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy();
            let (first, last) = (segment.header.first_seq, segment.last_seq);
            writeln!(
                f,
                "  {name} {state} {first}..={last} {} bytes",
                segment.data_len
            )?;
        }
        for action in &self.actions {
            match action {
                Action::Remove(path) => writeln!(f, "  remove {}", path.display())?,
                Action::Truncate { path, len } => {
                    writeln!(f, "  truncate {} to {len}", path.display())?;
                }
            }
        }
        match &self.cut {
            None => Ok(()),
            Some(cut) => writeln!(
                f,
                "  cut from {} at {} byte {}: {}",
                cut.first_seq,
                cut.path.display(),
                cut.at,
                cut.reason
            ),
        }
    }
}

/// Reads the directory of a log and plans its recovery.
///
/// # Errors
/// [`Error::Corrupt`] by the table above, [`Error::Unsupported`] for files of a newer release,
/// [`Error::Io`] where the disk fails. An absent directory is an empty log.
pub fn plan(disk: &dyn Disk, dir: &Path, known: &Known<'_>) -> Result<Plan> {
    let mut plan = Plan {
        log: known.log.clone(),
        dir: dir.to_owned(),
        segments: Vec::new(),
        actions: Vec::new(),
        cut: None,
        durable_seq: known.durable_seq,
        flushed_seq: known.flushed_seq,
        tail: Tail::default(),
    };
    let files = segment_files(disk, dir, known)?;
    let mut walk = Walk {
        disk,
        known,
        plan: &mut plan,
        expected: None,
    };
    for (n, (path, first_seq)) in files.iter().enumerate() {
        let rest = &files[n..];
        if walk.segment(path, *first_seq, rest)? == Next::Stop {
            break;
        }
    }
    walk.end()?;
    Ok(plan)
}

/// The log's segment files, oldest first.
fn segment_files(disk: &dyn Disk, dir: &Path, known: &Known<'_>) -> Result<Vec<(PathBuf, u64)>> {
    let entries = match disk.list(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).during("list", dir),
    };
    let mut files = Vec::new();
    for entry in entries {
        let Some((shard, first_seq)) = parse_file_name(&entry.name) else {
            continue;
        };
        if shard != known.log.shard {
            continue;
        }
        let path = dir.join(&entry.name);
        if entry.kind != FileKind::File {
            let found = format!("{:?}", entry.kind);
            return Err(Error::corrupt(
                &path,
                0,
                "kind of file",
                "an ordinary file",
                found,
            ));
        }
        files.push((path, first_seq));
    }
    files.sort_by_key(|(_, first_seq)| *first_seq);
    Ok(files)
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    Go,
    Stop,
}

struct Walk<'a> {
    disk: &'a dyn Disk,
    known: &'a Known<'a>,
    plan: &'a mut Plan,
    /// What the next segment must continue; `None` before the first one that matters.
    expected: Option<Tail>,
}

/// A segment whose bytes are at hand.
struct Opened {
    header: SegmentHeader,
    footer: Option<Footer>,
    /// Why its footer is none, where only its trailer is intact.
    footer_damage: Option<Error>,
    bytes: Map,
    file_len: u64,
}

impl Walk<'_> {
    fn segment(&mut self, path: &Path, first_seq: u64, rest: &[(PathBuf, u64)]) -> Result<Next> {
        let opened = match self.open(path, first_seq) {
            Ok(opened) => opened,
            // A bad header is a break like any other: the table decides.
            Err(error @ Error::Corrupt { .. }) => {
                let reason = error.to_string();
                return self.broken(path, 0, first_seq, Some(error), &reason, rest);
            }
            Err(error) => return Err(error),
        };
        if let Some(footer) = &opened.footer
            && footer.last_seq <= self.known.flushed_seq
            && self.known.fork_seq.is_none_or(|f| f >= footer.last_seq)
        {
            self.keep_flushed(path, &opened, footer.clone());
            return Ok(Next::Go);
        }
        let expected = match &self.expected {
            Some(expected) => expected.clone(),
            None => match self.first_expected(&opened, path) {
                Ok(expected) => expected,
                Err(error) => {
                    let (seq, reason) = (self.known.flushed_seq + 1, error.to_string());
                    return self.broken(path, 0, seq, Some(error), &reason, rest);
                }
            },
        };
        if let Some(reason) = discontinuity(&opened.header, &expected) {
            let seq = expected.next_seq;
            // What is between two segments had a name, too.
            let error = (opened.header.first_seq > seq).then(|| {
                let absent = path_of(&self.plan.dir, self.known.log.shard, seq);
                let wanted = format!("a segment from record {seq}");
                Error::corrupt(&absent, 0, "file", wanted, "no such file")
            });
            return self.broken(path, 0, seq, error, &reason, rest);
        }
        self.content(path, &opened, expected, rest)
    }

    fn open(&self, path: &Path, first_seq: u64) -> Result<Opened> {
        let file = self.disk.open(path, Access::Read).during("open", path)?;
        let file_len = file.len().during("stat", path)?;
        if file_len > SEGMENT_LEN_MAX {
            let found = format!("{file_len} bytes");
            return Err(Error::corrupt(path, 0, "length", "less than 4 GiB", found));
        }
        let bytes = read_all(file.as_ref(), file_len, path)?;
        let header = SegmentHeader::decode(&bytes, path)?;
        if header.log != self.known.log || header.first_seq != first_seq {
            let expected = format!("{} from {first_seq}", self.known.log);
            let found = format!("{} from {}", header.log, header.first_seq);
            return Err(Error::corrupt(path, 0, "segment identity", expected, found));
        }
        if self
            .known
            .lineage
            .is_some_and(|lineage| lineage != header.lineage)
        {
            let expected = format!("{:02x?}", self.known.lineage.unwrap_or_default());
            let found = format!("{:02x?}", header.lineage);
            return Err(Error::corrupt(path, 32, "lineage", expected, found));
        }
        // A torn footer says nothing against the batches before it: the walk ends where it starts.
        let (footer, footer_damage) = match footer_of(&bytes, &header, path) {
            Ok(footer) => (footer, None),
            Err(error @ Error::Corrupt { .. }) => (None, Some(error)),
            Err(error) => return Err(error),
        };
        Ok(Opened {
            header,
            footer,
            footer_damage,
            bytes,
            file_len,
        })
    }

    /// The first segment that is not wholly flushed may start anywhere up to the flushed mark.
    fn first_expected(&self, opened: &Opened, path: &Path) -> Result<Tail> {
        if opened.header.first_seq > self.known.flushed_seq + 1 {
            let expected = format!("a segment with record {}", self.known.flushed_seq + 1);
            let found = format!("the first one starts with {}", opened.header.first_seq);
            return Err(Error::corrupt(path, 0, "start of the log", expected, found));
        }
        Ok(Tail {
            next_seq: opened.header.first_seq,
            chain: opened.header.prev_crc,
            prev_digest: opened.header.prev_digest,
            // Neither falls behind what stands in flushed segments before, gaps or not.
            epoch: self.plan.tail.epoch,
            timestamp: self.plan.tail.timestamp,
        })
    }

    /// A sealed segment that is wholly in tables: its end is taken from the footer, its batches are
    /// not read.
    fn keep_flushed(&mut self, path: &Path, opened: &Opened, footer: Footer) {
        let tail = tail_of(&footer);
        self.expected = (footer.last_seq == self.known.flushed_seq).then(|| tail.clone());
        self.plan.tail = tail.clone();
        self.plan.segments.push(FoundSegment {
            path: path.to_owned(),
            header: opened.header.clone(),
            file_len: opened.file_len,
            data_len: footer.data_len,
            last_seq: footer.last_seq,
            summary: Summary::default(),
            tail,
            footer: Some(footer),
        });
    }

    fn content(
        &mut self,
        path: &Path,
        opened: &Opened,
        expected: Tail,
        rest: &[(PathBuf, u64)],
    ) -> Result<Next> {
        let scan = scan(&opened.bytes, &opened.header, expected, self.known.fork_seq);
        let claimed = opened
            .footer
            .as_ref()
            .filter(|footer| footer.data_len == scan.data_len);
        // It says where these batches end, or it is as good as torn: whoever forges a footer forges its
        // checksum too.
        let footer = claimed.filter(|footer| {
            let tail = tail_of(footer);
            let prev_digest = scan.tail.prev_digest;
            Tail {
                prev_digest,
                ..tail
            } == scan.tail
        });
        let forged = claimed.filter(|_| footer.is_none()).map(|footer| {
            let expected = format!("the end of record {}", scan.tail.next_seq - 1);
            let found = format!("another, of record {}", footer.last_seq);
            Error::corrupt(path, scan.data_len, "footer summary", expected, found)
        });
        let found = FoundSegment {
            path: path.to_owned(),
            header: opened.header.clone(),
            footer: footer.cloned(),
            file_len: opened.file_len,
            data_len: scan.data_len,
            last_seq: scan.tail.next_seq - 1,
            summary: scan.summary,
            tail: Tail {
                prev_digest: footer.map_or(scan.tail.prev_digest, |footer| footer.digest),
                ..scan.tail.clone()
            },
        };
        let tail = found.tail.clone();
        self.plan.segments.push(found);
        self.plan.tail = tail.clone();
        self.expected = Some(tail.clone());
        let next_seq = tail.next_seq;
        if self.known.fork_seq == Some(next_seq - 1) {
            // What stands behind is cut and synced before the file is extended again: a crash in
            // between would leave some sectors of it, and their batches would prove a loss.
            let at = usize::try_from(scan.data_len).expect("a segment fits in memory");
            let behind = opened.bytes.get(at..).unwrap_or_default();
            let is_nothing = footer.is_some() || behind.iter().all(|byte| *byte == 0);
            let ends_here = rest.len() == 1 && is_nothing;
            if !ends_here && !planted("recover.fork") {
                let reason = "the history forks here";
                self.cut(path, scan.data_len, next_seq, None, reason, rest);
            }
            return Ok(Next::Stop);
        }
        match (scan.stop, footer) {
            (None, Some(_)) => Ok(Next::Go),
            (Some(Damage::Version(version)), _) => Err(Error::Unsupported {
                path: path.to_owned(),
                expected: "batches of versions 1 and 2".to_owned(),
                found: format!("batch version {version} at byte {}", scan.data_len),
            }),
            (stop, _) => {
                let nothing = stop.is_none_or(|damage| is_nothing(&damage, opened, scan.data_len));
                let behind = self.behind(opened, scan.data_len, rest);
                if nothing && !behind.any && rest.len() == 1 {
                    return self.ends(path, scan.data_len, next_seq);
                }
                let reason = match stop {
                    None => "the segment ends without a footer".to_owned(),
                    Some(_) if nothing => "unwritten space before later batches".to_owned(),
                    Some(damage) => damage.to_string(),
                };
                let error = forged.or_else(|| opened.footer_damage.clone());
                let error = error.filter(|_| stop.is_none());
                self.broken(path, scan.data_len, next_seq, error, &reason, rest)
            }
        }
    }

    /// The log ends cleanly at `next_seq`, unless that was durable.
    fn ends(&mut self, path: &Path, at: u64, next_seq: u64) -> Result<Next> {
        if next_seq <= self.plan.durable_seq {
            let expected = format!("records up to {}, which are durable", self.plan.durable_seq);
            let found = format!("the log ends before {next_seq}");
            return Err(Error::corrupt(path, at, "end of the log", expected, found));
        }
        Ok(Next::Stop)
    }

    /// The log breaks at `path` byte `at`, where record `seq` should stand: rot below the durable
    /// mark, a torn tail above it.
    fn broken(
        &mut self,
        path: &Path,
        at: u64,
        seq: u64,
        error: Option<Error>,
        reason: &str,
        rest: &[(PathBuf, u64)],
    ) -> Result<Next> {
        let seq = self.expected.as_ref().map_or(seq, |tail| tail.next_seq);
        let behind = match self.plan.segments.last() {
            Some(found) if found.path == path => {
                let opened = self.open(path, found.header.first_seq)?;
                self.behind(&opened, at, rest)
            }
            _ => self.behind_files(rest),
        };
        self.plan.durable_seq = self.plan.durable_seq.max(behind.synced_seq);
        let durable = self.plan.durable_seq;
        if seq <= durable && !planted("recover.cuts_durable")
            || self.expected.is_none() && !self.plan.segments.is_empty()
        {
            return Err(error.unwrap_or_else(|| {
                let expected = format!("record {seq}, which is durable (mark {durable})");
                Error::corrupt(path, at, "log", expected, reason)
            }));
        }
        self.cut(path, at, seq, behind.last_seq, reason, rest);
        Ok(Next::Stop)
    }

    /// Ends the log at `path` byte `at` and drops what follows.
    fn cut(
        &mut self,
        path: &Path,
        at: u64,
        first_seq: u64,
        last_seq: Option<u64>,
        reason: &str,
        rest: &[(PathBuf, u64)],
    ) {
        // Newest first: a crash between two removals leaves a prefix.
        for (later, _) in rest.iter().skip(1).rev() {
            self.plan.actions.push(Action::Remove(later.clone()));
        }
        if at < SEGMENT_HEADER_LEN as u64 {
            self.plan.actions.push(Action::Remove(path.to_owned()));
        } else {
            self.plan.actions.push(Action::Truncate {
                path: path.to_owned(),
                len: at,
            });
            let found = self.plan.segments.last_mut();
            let found = found.expect("its batches were read");
            found.footer = None;
            found.file_len = at;
        }
        self.plan.cut = Some(Cut {
            path: path.to_owned(),
            at,
            first_seq,
            last_seq,
            reason: reason.to_owned(),
        });
    }

    /// Valid batches behind byte `at` of a segment, and in the segments after it.
    fn behind(&self, opened: &Opened, at: u64, rest: &[(PathBuf, u64)]) -> Behind {
        let mut behind = self.behind_files(rest.get(1..).unwrap_or_default());
        behind.scan(&opened.bytes, at, &opened.header, self.known);
        behind
    }

    fn behind_files(&self, files: &[(PathBuf, u64)]) -> Behind {
        let mut behind = Behind::default();
        for (path, first_seq) in files {
            // A file that does not open here says nothing; the cut or the error names the break.
            if let Ok(opened) = self.open(path, *first_seq) {
                behind.scan(
                    &opened.bytes,
                    SEGMENT_HEADER_LEN as u64,
                    &opened.header,
                    self.known,
                );
            }
        }
        behind
    }

    /// All files are read. A segment without batches at the very end is removed, unless it alone tells
    /// where the log goes on: the next segment takes its name then.
    fn end(&mut self) -> Result<()> {
        let is_empty = |last: &mut FoundSegment| {
            last.footer.is_none() && last.last_seq < last.header.first_seq
        };
        if let Some(last) = self.plan.segments.pop_if(is_empty) {
            let first_seq = last.header.first_seq;
            let before = self.plan.segments.last().map_or(1, |s| s.last_seq + 1);
            if before == first_seq || planted("recover.keeps_place") {
                self.plan
                    .actions
                    .retain(|a| !matches!(a, Action::Truncate { path, .. } if *path == last.path));
                self.plan.actions.push(Action::Remove(last.path));
            }
        }
        let end_seq = self.plan.tail.next_seq - 1;
        let fork_seq = self.known.fork_seq.unwrap_or(u64::MAX);
        if end_seq > fork_seq {
            let expected = format!("a batch that ends with record {fork_seq}, where it forks");
            let found = format!("the log goes on to {end_seq}");
            return Err(Error::corrupt(
                &self.plan.dir,
                0,
                "history of the log",
                expected,
                found,
            ));
        }
        let needed = self.plan.durable_seq.max(self.known.flushed_seq);
        let needed = needed.min(fork_seq);
        if end_seq < needed && !planted("recover.short") {
            let expected = format!("records up to {needed}, which are durable");
            let found = format!("the log ends at {end_seq}");
            return Err(Error::corrupt(
                &self.plan.dir,
                0,
                "end of the log",
                expected,
                found,
            ));
        }
        self.plan.durable_seq = self
            .plan
            .durable_seq
            .max(self.known.flushed_seq)
            .min(end_seq);
        Ok(())
    }
}

/// What lies behind a break.
#[derive(Default)]
struct Behind {
    any: bool,
    synced_seq: u64,
    last_seq: Option<u64>,
}

impl Behind {
    /// Looks at every aligned place for a batch of this segment.
    fn scan(&mut self, bytes: &[u8], from: u64, header: &SegmentHeader, known: &Known<'_>) {
        let mut at = usize::try_from(from)
            .unwrap_or(usize::MAX)
            .next_multiple_of(ALIGN);
        while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= HEADER_LEN) {
            // Most of it is zeros, as long as the segment was growing.
            let batch = rest.starts_with(&MAGIC).then(|| Batch::decode(rest));
            at += match batch {
                Some(Ok(batch)) if batch.header.nonce == header.nonce => {
                    self.note(&batch.header, known);
                    batch.header.batch_len()
                }
                _ => ALIGN,
            };
        }
    }

    fn note(&mut self, header: &BatchHeader, known: &Known<'_>) {
        self.any = true;
        self.last_seq = self.last_seq.max(Some(header.last_seq()));
        if (known.led)(header.epoch) {
            self.synced_seq = self.synced_seq.max(header.synced_seq());
        }
    }
}

/// Whether a place where no batch stands was never written in this incarnation.
fn is_nothing(damage: &Damage, opened: &Opened, at: u64) -> bool {
    match damage {
        Damage::Unwritten => true,
        // The end of the file, or less than a header before it.
        Damage::Short { .. } => opened.bytes.len() as u64 - at < HEADER_LEN as u64,
        // Bytes of an older incarnation of a recycled file.
        Damage::Magic { .. } | Damage::HeaderCrc { .. } | Damage::PayloadCrc { .. } => {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let nonce = opened.header.nonce.to_le_bytes();
            let claims = opened.bytes.get(at + 40..at + 44);
            claims.is_some_and(|claimed| claimed != nonce)
        }
        Damage::Field { field, .. } => *field == "nonce",
        Damage::Version(_) | Damage::Record { .. } => false,
    }
}

struct Scan {
    data_len: u64,
    summary: Summary,
    tail: Tail,
    /// Why the walk ended; `None` at a footer.
    stop: Option<Damage>,
}

/// Walks the batches of a segment as long as each continues the one before.
fn scan(bytes: &[u8], segment: &SegmentHeader, expected: Tail, fork_seq: Option<u64>) -> Scan {
    let mut scan = Scan {
        data_len: SEGMENT_HEADER_LEN as u64,
        summary: Summary::default(),
        tail: expected,
        stop: None,
    };
    let end = footer_start(bytes, segment).unwrap_or(bytes.len());
    let mut at = SEGMENT_HEADER_LEN;
    while at < end {
        if fork_seq == Some(scan.tail.next_seq - 1) {
            break;
        }
        match next_batch(&bytes[at..end], segment, &scan.tail) {
            Ok(batch) => {
                scan.summary.note(&batch.header, at as u64);
                scan.tail.next_seq = batch.header.last_seq() + 1;
                scan.tail.chain = batch.header_crc;
                scan.tail.epoch = batch.header.epoch;
                scan.tail.timestamp = batch.header.timestamp;
                at += batch.header.batch_len();
                scan.data_len = at as u64;
            }
            Err(damage) => {
                scan.stop = Some(damage);
                break;
            }
        }
    }
    scan
}

/// The batch at the head of `bytes`, if it is the one that continues `tail`.
pub(crate) fn next_batch<'a>(
    bytes: &'a [u8],
    segment: &SegmentHeader,
    tail: &Tail,
) -> Result<Batch<'a>, Damage> {
    let batch = Batch::decode(bytes)?;
    let header = &batch.header;
    let rules = [
        (
            header.nonce == segment.nonce || planted("recover.nonce"),
            "nonce",
            u64::from(header.nonce),
        ),
        (
            header.first_seq == tail.next_seq,
            "first_seq",
            header.first_seq,
        ),
        (
            header.prev_crc == tail.chain || planted("recover.chain"),
            "prev_crc",
            u64::from(header.prev_crc),
        ),
        (
            header.shard == segment.log.shard,
            "shard_id",
            u64::from(header.shard.0),
        ),
        (
            header.region == segment.log.region,
            "region_id",
            u64::from(header.region.0),
        ),
        (
            header.epoch == segment.epoch || planted("recover.epoch"),
            "epoch",
            u64::from(header.epoch.0),
        ),
        (
            header.timestamp > tail.timestamp,
            "timestamp",
            header.timestamp.0,
        ),
    ];
    match rules.into_iter().find(|(holds, ..)| !holds) {
        None => Ok(batch),
        Some((_, field, found)) => Err(Damage::Field { field, found }),
    }
}

/// Why a segment does not continue the log, if it does not.
fn discontinuity(header: &SegmentHeader, expected: &Tail) -> Option<String> {
    if header.first_seq != expected.next_seq {
        Some(format!("record {} is missing", expected.next_seq))
    } else if header.prev_crc != expected.chain && !planted("recover.prev_crc") {
        Some(format!("chain value {:#010x} before it", header.prev_crc))
    } else if header.prev_digest != expected.prev_digest && !planted("recover.prev_digest") {
        Some("the digest of the segment before it is another".to_owned())
    } else if header.epoch < expected.epoch && !planted("recover.older_epoch") {
        Some(format!("epoch {} after {}", header.epoch, expected.epoch))
    } else {
        None
    }
}

fn footer_start(bytes: &[u8], segment: &SegmentHeader) -> Option<usize> {
    let trailer = bytes.len().checked_sub(TRAILER_LEN)?;
    let (data_len, _) = Footer::peek(&bytes[trailer..], segment.nonce, bytes.len() as u64)?;
    usize::try_from(data_len).ok()
}

/// The footer of a segment; `None` where the file does not end in its trailer.
fn footer_of(bytes: &[u8], segment: &SegmentHeader, path: &Path) -> Result<Option<Footer>> {
    match footer_start(bytes, segment) {
        None => Ok(None),
        Some(start) => Footer::decode(&bytes[start..], segment.nonce, start as u64, path).map(Some),
    }
}

pub(crate) fn tail_of(footer: &Footer) -> Tail {
    Tail {
        next_seq: footer.last_seq.saturating_add(1),
        chain: footer.chain,
        prev_digest: footer.digest,
        epoch: footer.last_epoch,
        timestamp: footer.last_timestamp,
    }
}

/// The whole file: mapped where the disk has maps, read otherwise.
pub(crate) fn read_all(file: &dyn File, len: u64, path: &Path) -> Result<Map> {
    let len = usize::try_from(len).expect("a segment fits in memory");
    if let Some(map) = file.map(len).during("map", path)? {
        return Ok(map);
    }
    let mut bytes = vec![0; len];
    read_exact_at(file, &mut bytes, 0).during("read", path)?;
    Ok(Map::owned(bytes))
}

/// Carries out a plan's actions. The names that it removed are not durable yet: the open that follows
/// sees to it.
///
/// # Errors
/// The disk's. Carrying it out again does no harm.
pub fn execute(disk: &Arc<dyn Disk>, plan: &Plan) -> Result<()> {
    for action in &plan.actions {
        match action {
            Action::Remove(path) => {
                unless!("execute.keeps_file", disk.remove(path)).during("remove", path)?
            }
            Action::Truncate { path, len } => {
                // Removals reach the disk first, so that no crash leaves a gap behind the cut.
                unless!("execute.removals", disk.sync_dir(&plan.dir))
                    .during("sync directory", &plan.dir)?;
                let link_count = disk.stat(path).during("stat", path)?.link_count;
                let file = disk.open(path, Access::Read).during("open", path)?;
                let is_shared = link_count > 1 || was_sealed(file.as_ref(), path)?;
                if is_shared && !planted("execute.shared") {
                    // A checkpoint, or what it was made of, has this file too and keeps all of it; and a
                    // reader of this process may have a map of a sealed one.
                    let bytes = read_all(file.as_ref(), *len, path)?;
                    replace_file(disk.as_ref(), path, &bytes).during("replace", path)?;
                    continue;
                }
                let file = disk.open(path, Access::Write).during("open", path)?;
                unless!("execute.keeps_tail", file.set_len(*len)).during("set length of", path)?;
                unless!("execute.cut", file.sync()).during("sync", path)?;
            }
        }
    }
    Ok(())
}

/// Whether a segment's file ends as only a sealed one does.
fn was_sealed(file: &dyn File, path: &Path) -> Result<bool> {
    let file_len = file.len().during("stat", path)?;
    let Some(at) = file_len.checked_sub(TRAILER_LEN as u64) else {
        return Ok(false);
    };
    let mut trailer = [0; TRAILER_LEN];
    read_exact_at(file, &mut trailer, at).during("read", path)?;
    Ok(Footer::is_trailer(&trailer))
}

#[cfg(test)]
mod tests;
