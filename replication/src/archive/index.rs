//! What is in an archive, out of one list of its names, and which of it is the dataset's history.

use std::collections::BTreeMap;
use std::fmt;

use strandline_wal::bug::planted;
use strandline_wal::{Epoch, ShardId};

use super::name::Parsed;
use super::{ArchiveStore, BaseName, Break, Piece, PieceKind, Result, Root, Term, read, retried};

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
    /// longer tells of.
    fn path(&self, shard: ShardId) -> Vec<(&Term, u64)> {
        let mut path = Vec::new();
        let mut end = u64::MAX;
        let mut next = self.last();
        while let Some(term) = next {
            path.push((term, end));
            let from = term.from.get(usize::from(shard.0));
            end = from.map_or(end, |(from, _)| end.min(*from));
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

    /// The pieces of a shard's history in order. Parts of a segment that is there as a whole are left
    /// out; parts may overlap.
    pub fn pieces(&self, shard: ShardId) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (term, end) in self.path(shard) {
            let Some((from, _)) = term.from.get(usize::from(shard.0)) else {
                continue;
            };
            let is_its = |piece: &&Piece| {
                let start = piece.segment();
                piece.shard == shard && piece.epoch == term.epoch && *from <= start && start < end
            };
            let its: Vec<&Piece> = self.pieces.iter().filter(is_its).collect();
            let is_whole = |segment| {
                let is_it = |p: &&&Piece| p.kind == PieceKind::Segment && p.first_seq == segment;
                its.iter().find(is_it).is_some()
            };
            let is_needed = |p: &&&Piece| p.kind == PieceKind::Segment || !is_whole(p.segment());
            pieces.extend(its.iter().filter(is_needed).map(|piece| (**piece).clone()));
        }
        pieces.sort_by_key(|piece| (piece.segment(), piece.first_seq, piece.last_seq));
        pieces
    }

    /// The pieces of a shard from record `from` on, as far as they go without a gap, and the gap. Where a
    /// piece holds `from`, its whole segment comes along: it tells where the log goes on.
    pub fn span(&self, root: &Root, shard: ShardId, from: u64) -> (Vec<Piece>, Option<Gap>) {
        let all = self.pieces(shard);
        let holds = |piece: &&Piece| piece.first_seq <= from && from <= piece.last_seq;
        let start = all.iter().find(holds).map_or(from, Piece::segment);
        let mut span: Vec<Piece> = Vec::new();
        let (mut next, mut chain) = (start, None);
        for piece in all {
            if piece.last_seq < next || piece.segment() < start {
                continue;
            }
            let is_missing = piece.first_seq > next && !planted("archive.gap");
            let is_forked = piece.first_seq == next && chain.is_some_and(|it| it != piece.prev);
            if is_missing || is_forked {
                let gap = Gap {
                    shard,
                    from: next,
                    to: piece.first_seq - 1,
                    object: root.piece(&piece),
                };
                return (span, Some(gap));
            }
            (next, chain) = (piece.last_seq + 1, Some(piece.chain));
            span.push(piece);
        }
        (span, None)
    }
}
