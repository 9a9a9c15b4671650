//! What is in an archive, out of one list of its names, and which of it is the dataset's history.

use std::collections::BTreeMap;
use std::fmt;

use strandline_wal::bug::planted;
use strandline_wal::{Epoch, ShardId};

use super::name::Parsed;
use super::{
    ArchiveStore, Base, BaseEnd, BaseName, Break, Piece, PieceKind, Result, Root, Term, read,
    retried,
};

/// Records that the archive lacks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gap {
    /// Of which log.
    pub shard: ShardId,
    /// The first record that is missing.
    pub from: u64,
    /// The last one.
    pub to: u64,
    /// The object behind the gap, or before it where nothing follows.
    pub object: String,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gap {
            shard,
            from,
            to,
            object,
        } = self;
        match from <= to {
            true => write!(f, "shard {shard}, records {from} to {to}, at {object}"),
            false => write!(f, "shard {shard}, {object} does not continue record {to}"),
        }
    }
}

/// The names of one history.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Index {
    /// By epoch.
    pub terms: BTreeMap<Epoch, Term>,
    /// All pieces, by their names.
    pub pieces: Vec<Piece>,
    /// Bases, oldest first.
    pub bases: Vec<BaseName>,
    /// Places where records are known to be missing.
    pub breaks: Vec<Break>,
    /// Files of bases, by digest.
    pub files: BTreeMap<[u8; 32], Epoch>,
    /// Names that mean nothing here.
    pub unknown: Vec<String>,
    /// Bytes of all objects.
    pub len: u64,
}

impl Index {
    /// Lists an archive, and reads its terms.
    ///
    /// # Errors
    /// The store's; a damaged term.
    pub fn read(store: &dyn ArchiveStore, root: &Root) -> Result<Index> {
        let mut index = Index::default();
        for listed in retried(|| store.list(root.prefix()))? {
            index.len += listed.len;
            match root.parse(&listed.name) {
                Some(Parsed::Term(epoch)) => {
                    let term = Term::decode(&read(store, &listed.name)?, &listed.name)?;
                    if term.epoch != epoch && !planted("archive.term") {
                        return Err(super::damaged(&listed.name, "it is of another epoch"));
                    }
                    index.terms.insert(epoch, term);
                }
                Some(Parsed::Piece(piece)) => index.pieces.push(piece),
                Some(Parsed::Break(it)) => index.breaks.push(it),
                Some(Parsed::File(epoch, digest)) => {
                    index.files.insert(digest, epoch);
                }
                Some(Parsed::Base(base)) => index.bases.push(base),
                None => index.unknown.push(listed.name),
            }
        }
        index.bases.sort();
        Ok(index)
    }

    /// The newest term.
    pub fn last(&self) -> Option<&Term> {
        self.terms.values().next_back()
    }

    /// The terms that make the history, newest first, each with the first record of a shard that it no
    /// longer tells of: where the epoch of a later leader begins in the log of the one that goes on.
    fn path(&self, shard: ShardId) -> Vec<(&Term, u64)> {
        let mut path = Vec::new();
        let mut end = u64::MAX;
        let mut next = self.last();
        while let Some(term) = next {
            path.push((term, end));
            let start = term.from.get(usize::from(shard.0));
            end = start.map_or(0, |start| end.min(start.end));
            if planted("archive.path") {
                end = u64::MAX;
            }
            // Terms name earlier ones alone, so this ends.
            next = self.terms.get(&term.previous);
        }
        path
    }

    /// Whether a term is on the path of the history.
    pub fn is_on_path(&self, epoch: Epoch) -> bool {
        let path = self.path(ShardId(0));
        path.iter().any(|(term, _)| term.epoch == epoch)
    }

    /// Whether a base holds nothing but the history: its maker is on the path, and all that is in it lies
    /// before its successor's epoch. No other base is ever restored, relied on, or kept.
    pub fn is_usable(&self, base: &Base) -> bool {
        let is_its = |(n, end): (usize, &BaseEnd)| {
            let path = self.path(ShardId(u16::try_from(n).unwrap_or(u16::MAX)));
            let found = path.iter().find(|(term, _)| term.epoch == base.epoch);
            found.is_some_and(|(_, first)| end.complete_seq < *first || planted("archive.fork"))
        };
        let shard_count = self.last().map_or(0, |last| last.from.len());
        base.ends.len() == shard_count && base.ends.iter().enumerate().all(is_its)
    }

    /// A shard's history as runs of pieces, in order. Of one segment that several terms uploaded, the parts
    /// that reach furthest are taken: where their leaders' logs are one, so are the bytes.
    pub fn runs(&self, shard: ShardId) -> Vec<Run> {
        let mut best: BTreeMap<u64, Vec<Run>> = BTreeMap::new();
        for (term, end) in self.path(shard) {
            let Some(start) = term.from.get(usize::from(shard.0)) else {
                continue;
            };
            let is_its = |piece: &&Piece| {
                piece.shard == shard
                    && piece.epoch == term.epoch
                    && start.seq <= piece.segment()
                    && piece.first_seq < end
            };
            let mut its: BTreeMap<u64, Vec<&Piece>> = BTreeMap::new();
            for piece in self.pieces.iter().filter(is_its) {
                its.entry(piece.segment()).or_default().push(piece);
            }
            for (segment, pieces) in its {
                let runs = runs_of(pieces, end);
                let reach = |runs: &[Run]| runs.first().map_or(0, Run::last_seq);
                match best.get(&segment) {
                    Some(newer) if reach(newer) >= reach(&runs) => {}
                    _ => {
                        best.insert(segment, runs);
                    }
                }
            }
        }
        let mut runs: Vec<Run> = Vec::new();
        for run in best.into_values().flatten() {
            match runs.last_mut() {
                Some(last) if run.last_seq() <= last.last_seq() => continue,
                // Segments of leaders that cut theirs elsewhere.
                Some(last) => last.end = last.end.min(run.first_seq()),
                None => {}
            }
            runs.push(run);
        }
        runs
    }

    /// The runs of a shard from record `from` on, as far as they go without a gap, and the gap. Where a
    /// run holds `from`, it comes along whole: it tells where the log goes on.
    pub fn span(&self, root: &Root, shard: ShardId, from: u64) -> (Vec<Run>, Option<Gap>) {
        let mut span: Vec<Run> = Vec::new();
        let (mut next, mut chain) = (from, None);
        for run in self.runs(shard) {
            if run.last_seq() < from {
                continue;
            }
            let first = &run.pieces[0];
            if span.is_empty() && first.first_seq <= from {
                next = first.segment();
            }
            let is_missing = first.first_seq > next && !planted("archive.gap");
            let is_forked = first.first_seq == next && chain.is_some_and(|it| it != first.prev);
            if is_missing || is_forked {
                let gap = Gap {
                    shard,
                    from: next,
                    to: first.first_seq - 1,
                    object: root.piece(first),
                };
                return (span, Some(gap));
            }
            (next, chain) = (run.last_seq() + 1, run.chain());
            span.push(run);
        }
        (span, None)
    }
}

/// Pieces of one segment without a gap between them: the segment's file, or parts that may overlap.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Run {
    /// In order; never empty.
    pub pieces: Vec<Piece>,
    /// The first record that is not the history's, though the pieces may go on.
    pub end: u64,
}

impl Run {
    /// Its first record.
    pub fn first_seq(&self) -> u64 {
        self.pieces[0].first_seq
    }

    /// Its last record.
    pub fn last_seq(&self) -> u64 {
        let last = self.pieces.iter().map(|piece| piece.last_seq).max();
        last.unwrap_or_default().min(self.end - 1)
    }

    /// Whether it is a segment's file.
    pub fn is_whole(&self) -> bool {
        self.pieces[0].kind == PieceKind::Segment
    }

    /// The chain value of its last record, where that ends a piece.
    fn chain(&self) -> Option<u32> {
        let last = self.last_seq();
        let piece = self.pieces.iter().find(|piece| piece.last_seq == last);
        piece.map(|piece| piece.chain)
    }
}

/// The pieces of one segment by one term.
fn runs_of(mut pieces: Vec<&Piece>, end: u64) -> Vec<Run> {
    if let Some(whole) = pieces.iter().find(|p| p.kind == PieceKind::Segment) {
        pieces = vec![*whole];
    }
    pieces.sort_by_key(|piece| (piece.first_seq, piece.last_seq));
    let mut runs: Vec<Run> = Vec::new();
    for piece in pieces {
        let piece = piece.clone();
        match runs.last_mut() {
            Some(run) if piece.first_seq <= run.last_seq() => run.pieces.push(piece),
            Some(run)
                if piece.first_seq == run.last_seq() + 1 && run.chain() == Some(piece.prev) =>
            {
                run.pieces.push(piece);
            }
            _ => runs.push(Run {
                pieces: vec![piece],
                end,
            }),
        }
    }
    runs
}
