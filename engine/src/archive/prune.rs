//! Removes from an archive what no point needs that it is to restore.
//!
//! Every point since the window began needs the newest base from before then, and all of the log from there
//! on. An older base that is kept is a point by itself: its files, and what of the log lies between its
//! tables and its point.

use std::collections::{BTreeMap, BTreeSet};

use strandline_replication::archive::{ArchiveStore, Base, BaseName, Index, Piece, Root, retried};
use strandline_wal::bug::planted;
use strandline_wal::{Epoch, Hlc, ShardId};

use super::upload::usable_base;
use super::{ArchiveOptions, PruneReport};
use crate::error::Result;

/// As [`super::prune`], of one history.
pub(super) fn prune(
    archive: &dyn ArchiveStore,
    root: &Root,
    options: &ArchiveOptions,
    now_ms: u64,
    own: Option<Epoch>,
) -> Result<PruneReport> {
    let mut report = PruneReport::default();
    let begin = Hlc::from_millis(now_ms.saturating_sub(options.pitr_window_ms));
    let oldest = Hlc::from_millis(now_ms.saturating_sub(options.retention_ms));
    let index = Index::read(archive, root)?;
    let last = index.last().map(|last| last.epoch).unwrap_or_default();
    if own.is_some_and(|own| own != last) {
        // Another leads.
        return Ok(report);
    }
    let mut bases: Vec<Base> = Vec::new();
    for name in &index.bases {
        bases.extend(usable_base(archive, root, &index, name)?);
    }
    let before = bases.iter().rposition(|base| base.timestamp <= begin);
    let Some(first) = before.filter(|n| *n > 0) else {
        return Ok(report);
    };
    let (first, oldest) = match planted("archive.prune") {
        true => (bases.len() - 1, Hlc::MAX),
        false => (first, oldest),
    };
    let mut needed = BTreeSet::new();
    let mut points: Vec<Vec<(u64, u64)>> = Vec::new();
    let mut log_from = Vec::new();
    for (n, base) in bases.iter().enumerate() {
        if n < first && base.timestamp < oldest {
            continue;
        }
        needed.insert(root.base(&base.name()));
        needed.extend(base.files.iter().map(|file| file.object.clone()));
        let seqs = base
            .ends
            .iter()
            .map(|end| (end.position.seq, end.complete_seq));
        let seqs: Vec<(u64, u64)> = seqs.collect();
        if n == first {
            log_from.clone_from(&seqs);
        }
        points.push(seqs);
    }
    let mut ends: BTreeMap<(ShardId, u64), u64> = BTreeMap::new();
    for piece in &index.pieces {
        let end = ends.entry((piece.shard, piece.segment())).or_default();
        *end = piece.last_seq.max(*end);
    }
    let is_needed = |piece: &Piece| {
        let n = usize::from(piece.shard.0);
        let segment_end = ends[&(piece.shard, piece.segment())];
        let holds = |seqs: &Vec<(u64, u64)>| {
            let (first, last) = seqs.get(n).copied().unwrap_or_default();
            piece.segment() <= last && first <= segment_end
        };
        log_from.get(n).is_none_or(|(from, _)| segment_end >= *from) || points.iter().any(holds)
    };
    // Bases first: one that is there is whole.
    let mut doomed: Vec<String> = Vec::new();
    // One that lies off the history never comes back to it.
    let is_old = |base: &&BaseName| base.epoch < last || base.timestamp < bases[first].timestamp;
    let old = index.bases.iter().filter(is_old);
    doomed.extend(old.map(|base| root.base(base)));
    let mut pieces: Vec<&Piece> = index
        .pieces
        .iter()
        .filter(|piece| !is_needed(piece))
        .collect();
    pieces.sort_by_key(|piece| piece.last_seq);
    doomed.extend(pieces.into_iter().map(|piece| root.piece(piece)));
    // What the leader uploads now may be of a base that is not there yet.
    let is_its = |epoch: Epoch| epoch < last || own == Some(epoch);
    let files = index.files.iter().filter(|(_, epoch)| is_its(**epoch));
    doomed.extend(files.map(|(digest, epoch)| root.file(*epoch, digest)));
    for name in doomed {
        if !needed.contains(&name) {
            retried(|| archive.delete(&name))?;
            report.removed_count += 1;
        }
    }
    Ok(report)
}
